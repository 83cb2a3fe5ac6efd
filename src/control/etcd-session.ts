/**
 * One connection to one member of etcd: calls with a deadline, and watch streams. The only file that knows the etcd3 package,
 * which brings gRPC with it and is loaded when the first connection is made.
 *
 * Of etcd3 this takes the connection and the encoding, and none of its retries, breakers, watchers and leases: its breaker goes on
 * rejecting after etcd is back, and its lease is lost after twice its time only.
 */
import { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';
import type * as Etcd3Module from 'etcd3';
import type { Endpoint, TlsMaterial } from './etcd-dial.js';

/** Milliseconds that a call may take. */
export const PATIENCE = 5000;

/** Pings of HTTP/2 while a watch is open, in ms; etcd ends connections that ping more often than every 5 s. */
const PING_EVERY = 10_000;
const PING_PATIENCE = 5000;

export type Service = 'KV' | 'Lease' | 'Watch' | 'Auth';

export interface CallMetadata {
  /** Of authentication. */
  readonly token?: string | undefined;
  /** Fails rather than waits while the member has no leader. */
  readonly leader?: boolean;
}

/** A stream both ways. Errors come by `on('error')`, whose listener must stay. */
export interface Stream {
  write(message: unknown): void;
  cancel(): void;
  on(event: 'data', listener: (message: unknown) => void): void;
  on(event: 'error', listener: (error: unknown) => void): void;
  on(event: 'end', listener: () => void): void;
}

interface Metadata {
  set(key: string, value: string): void;
}

/** What gRPC makes of a service, as much of it as is used. */
type UnaryMethod = (
  payload: unknown,
  metadata: Metadata,
  options: { readonly deadline: number },
  done: (error: Error | null, answer: unknown) => void,
) => void;
type StreamMethod = (metadata: Metadata) => Stream;

let loaded: Promise<typeof Etcd3Module> | undefined;

/** gRPC reads, when it is loaded, how much it may write to standard error: nothing; what there is to say comes as errors. */
function load(): Promise<typeof Etcd3Module> {
  if (loaded) return loaded;
  const { GRPC_NODE_VERBOSITY } = process.env;
  process.env.GRPC_NODE_VERBOSITY = GRPC_NODE_VERBOSITY ?? 'NONE';
  hushTls();
  loaded = import('etcd3').finally(() => {
    if (GRPC_NODE_VERBOSITY === undefined) delete process.env.GRPC_NODE_VERBOSITY;
  });
  return loaded;
}

/**
 * gRPC names the server by its address, if that is how we know it, and Node warns of that on standard error: once in a process,
 * and that once is used up here.
 */
function hushTls(): void {
  const { noDeprecation } = process;
  process.noDeprecation = true;
  connectTls({ socket: new Duplex({ read() {}, write() {} }), servername: '127.0.0.1' })
    .on('error', () => {})
    .destroy();
  process.noDeprecation = noDeprecation ?? false;
}

let sessions = 0;

export class EtcdSession {
  readonly endpoint: Endpoint;
  /** As `authenticate` of a user gave it. */
  token: string | undefined;
  /** Aborted when it is given up. */
  readonly ended: AbortSignal;
  readonly #end = new AbortController();
  readonly #etcd: InstanceType<typeof Etcd3Module.Etcd3> & Pooled;

  private constructor(endpoint: Endpoint, etcd: InstanceType<typeof Etcd3Module.Etcd3> & Pooled) {
    this.endpoint = endpoint;
    this.ended = this.#end.signal;
    this.#etcd = etcd;
  }

  /** `material`: undefined without TLS. Connects with the first call. */
  static async create(endpoint: Endpoint, material: TlsMaterial | undefined): Promise<EtcdSession> {
    const { Etcd3 } = await load();
    class Connection extends Etcd3 implements Pooled {
      get connections(): Connections {
        return this.pool;
      }
    }
    const { host, port } = endpoint;
    const policy = { execute: async (run: (context: object) => unknown): Promise<unknown> => run({}) };
    const etcd = new Connection({
      hosts: `${host.includes(':') ? `[${host}]` : host}:${port}`,
      ...(material ? { credentials: credentialsOf(material) } : {}),
      // Called once, whatever comes of it.
      faultHandling: { host: () => policy as never, global: policy as never },
      grpcOptions: {
        // Sessions do not share connections: one that is given up must not be found again by the next.
        'weft.session': sessions++,
        'grpc.keepalive_time_ms': PING_EVERY,
        'grpc.keepalive_timeout_ms': PING_PATIENCE,
        'grpc.enable_retries': 0,
        'grpc.service_config_disable_resolution': 1,
        // As etcd's own clients, which go through no proxy.
        'grpc.enable_http_proxy': 0,
        // A list of all leases may be large.
        'grpc.max_receive_message_length': -1,
        'grpc.max_send_message_length': -1,
      },
    });
    return new EtcdSession(endpoint, etcd);
  }

  /** One call. Rejects with gRPC's error. `T` is what the method answers; who calls knows. */
  call<T>(service: Service, method: string, payload: object, metadata: CallMetadata = {}): Promise<T> {
    return this.#with(service, (client, empty) => {
      return new Promise<Outcome<T>>((resolve) => {
        const given = (): void => resolve({ error: new Error('the connection was given up') });
        if (this.ended.aborted) return given();
        this.ended.addEventListener('abort', given, { once: true });
        const unary = Reflect.get(client, method) as UnaryMethod;
        unary.call(client, payload, fill(empty, metadata), { deadline: Date.now() + PATIENCE }, (error, answer) => {
          this.ended.removeEventListener('abort', given);
          resolve(error ? { error } : { value: answer as T });
        });
      });
    });
  }

  /** Opens a watch stream; nothing is watched before something is written to it. */
  watch(metadata: CallMetadata): Promise<Stream> {
    return this.#with('Watch', async (client, empty) => {
      const open = Reflect.get(client, 'watch') as StreamMethod;
      return { value: open.call(client, fill(empty, metadata)) };
    });
  }

  /** Gives it up, and what is under way with it. */
  close(): void {
    this.#end.abort();
    this.#etcd.close();
  }

  /** etcd3 would make new connections of its own after what is thrown in here, so nothing is. */
  async #with<T>(service: Service, run: (client: object, metadata: Metadata) => Promise<Outcome<T>>): Promise<T> {
    const outcome = await this.#etcd.connections.withConnection(service, async ({ client, metadata }) => {
      try {
        return await run(client, metadata);
      } catch (error) {
        return { error };
      }
    });
    if ('error' in outcome) throw outcome.error;
    return outcome.value;
  }
}

type Outcome<T> = { readonly value: T } | { readonly error: unknown };

interface Connections {
  withConnection<T>(
    service: Service,
    run: (args: { client: object; metadata: Metadata }) => Promise<T> | T,
  ): Promise<T>;
}

/** etcd3 keeps it from all but its heirs. */
interface Pooled {
  readonly connections: Connections;
}

function fill(metadata: Metadata, { token, leader }: CallMetadata): never {
  if (token !== undefined) metadata.set('token', token);
  if (leader) metadata.set('hasleader', 'true');
  return metadata as never;
}

/** etcd3's type wants a CA; gRPC does without. */
const credentialsOf = ({ ca, key, cert }: TlsMaterial) =>
  ({ rootCertificate: ca, privateKey: key, certChain: cert }) as {
    rootCertificate: Buffer;
    privateKey: Buffer;
    certChain: Buffer;
  };
