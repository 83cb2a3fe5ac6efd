/**
 * etcd's v3 API as the registry needs it, on whichever of its members will do.
 *
 * Every call has a deadline and is made once (reads: once on each member). A connection is made after a first word with the member
 * (etcd-dial.ts) and given up, for another's, at the first sign that it cannot serve us. While etcd is away nothing runs here but
 * the dialler, and that only when somebody asks: whoever wants to wait decides how often.
 */
import type { ICompare, IEvent, IKeyValue, IRangeRequest, IRequestOp, IResponseHeader } from 'etcd3';
import { type Endpoint, parseEndpoint, readTls, sayHello, type TlsFiles, type TlsMaterial } from './etcd-dial.js';
import { callError, EtcdError, isStaleToken, noneOf } from './etcd-error.js';
import { EtcdSession, PATIENCE, type Service } from './etcd-session.js';
import { reasonOf } from './reason.js';
import { Bell, sleep, unlessAborted } from './waiting.js';

/** Milliseconds between the first words with several members. */
const STAGGER = 100;
/** How often a call is made again because its token of authentication was too old. */
const TOKENS = 2;

export interface EtcdClientOptions extends TlsFiles {
  readonly endpoints: readonly string[];
  readonly username: string | undefined;
  readonly password: string | undefined;
}

/** Of which cluster, and as of which of its revisions, an answer is. */
export interface Moment {
  readonly cluster: string;
  readonly revision: number;
}

export interface KeyValue {
  readonly key: string;
  readonly value: string;
  readonly createRevision: number;
  readonly modRevision: number;
  /** The lease's id, or NO_LEASE. */
  readonly lease: string;
}

export const NO_LEASE = '0';

export interface Listing extends Moment {
  readonly keys: readonly KeyValue[];
}

export interface Write {
  readonly key: string;
  /** Only if the key was last changed at this revision; 0: if there is none. */
  readonly at: number;
  /** undefined: deletes. */
  readonly value: string | undefined;
  readonly lease?: string;
  /** What is listed afterwards, whether it was written or not. */
  readonly list: string;
}

export interface Written extends Listing {
  readonly written: boolean;
}

/** What a watch tells: that it watches, what happened to keys since (the last of each), or that its history is gone. */
export type WatchNews =
  | ({ readonly kind: 'watching' } & Moment)
  | { readonly kind: 'events'; readonly revision: number; readonly events: readonly KeyEvent[] }
  | { readonly kind: 'compacted' };

export type KeyEvent =
  | { readonly type: 'put'; readonly entry: KeyValue }
  | { readonly type: 'delete'; readonly key: string; readonly revision: number };

/** What requests are counted by: methods of etcd's API. */
export type Method = 'range' | 'txn' | 'leaseGrant' | 'leaseRevoke' | 'authenticate' | 'watch';

export class EtcdClient {
  readonly #options: EtcdClientOptions;
  readonly #endpoints: readonly Endpoint[];
  readonly #counts = new Map<Method, number>();
  readonly #closed = new AbortController();
  #session: EtcdSession | undefined;
  #dialling: Promise<EtcdSession> | undefined;
  /** The member that failed us last; the others come first. */
  #suspect: Endpoint | undefined;

  /** Throws a SetupError: an endpoint is none, a file of TLS is of no use. */
  constructor(options: EtcdClientOptions) {
    this.#options = options;
    this.#endpoints = options.endpoints.map((text) => parseEndpoint(text, options));
    if (this.#endpoints.some(({ tls }) => tls)) readTls(options);
  }

  /** For messages: all endpoints. */
  get name(): string {
    return `etcd ${this.#endpoints.map(({ text }) => text).join()}`;
  }

  /** Requests that were sent, each attempt counted. */
  get counts(): ReadonlyMap<Method, number> {
    return this.#counts;
  }

  /** All of them. */
  get requests(): number {
    return [...this.#counts.values()].reduce((sum, count) => sum + count, 0);
  }

  /** The methods reject with an EtcdError. */
  async get(key: string): Promise<{ readonly entry: KeyValue | undefined } & Moment> {
    const { keys, ...moment } = await this.#range({ key: Buffer.from(key) }, `read ${key}`);
    return { entry: keys[0], ...moment };
  }

  /** All keys that begin with `prefix`. */
  async list(prefix: string): Promise<Listing> {
    return this.#range(rangeOf(prefix), `read below ${prefix}`);
  }

  /** Writes or deletes one key, if it is as expected, and lists: all at one moment. */
  async write({ key: name, at, value, lease = NO_LEASE, list }: Write): Promise<Written> {
    const key = Buffer.from(name);
    const compare: ICompare[] = [{ key, target: MOD, result: EQUAL, mod_revision: at }];
    const put = { request_put: { key, value: Buffer.from(value ?? ''), lease } };
    const listing: IRequestOp = { request_range: rangeOf(list) };
    const txn = {
      compare,
      success: [value === undefined ? { request_delete_range: { key } } : put, listing],
      failure: [listing],
    };
    const answer = await this.#call<RawTxn>('KV', 'txn', txn, `write ${name}`);
    const range = answer.responses.at(-1)?.response_range;
    return { written: answer.succeeded, ...momentOf(answer.header), keys: (range?.kvs ?? []).map(keyValueOf) };
  }

  /** A new lease, of `ttl` seconds at least. */
  async grant(ttl: number): Promise<{ readonly id: string; readonly ttl: number }> {
    const answer = await this.#call<{ ID: string; TTL: string }>('Lease', 'leaseGrant', { TTL: ttl }, 'take a lease');
    return { id: answer.ID, ttl: Number(answer.TTL) };
  }

  /** Ends a lease, and the keys that have it. */
  async revoke(id: string): Promise<void> {
    await this.#call('Lease', 'leaseRevoke', { ID: id }, 'end a lease');
  }

  /**
   * Watches all keys that begin with `prefix`, from revision `from` on, at a member that has a leader. Tells first that it
   * watches. Ends when `signal` aborts (while connecting by throwing its reason), or after `compacted`; throws an EtcdError when the stream breaks. What happens while the
   * reader is busy is told together.
   */
  async *watch(prefix: string, from: number, signal: AbortSignal): AsyncGenerator<WatchNews> {
    const session = await unlessAborted(this.#connect(), signal);
    const what = `read below ${prefix}`;
    const news = new WatchBuffer();
    this.#count('watch');
    const stream = await session.watch({ token: session.token, leader: true }).catch((error: unknown) => {
      throw this.#failed(session, error, what);
    });
    stream.on('data', (message) => news.take(message as RawWatch));
    stream.on('error', (error) => news.fail(error));
    stream.on('end', () => news.fail(new Error('the watch was ended')));
    const patience = setTimeout(() => news.fail(noAnswer()), PATIENCE);
    const ended = (): void => news.fail(new EtcdError('away', session.endpoint.text, 'connection lost'));
    session.ended.addEventListener('abort', ended);
    try {
      if (session.ended.aborted) ended();
      stream.write({ create_request: { ...rangeOf(prefix), start_revision: from } });
      while (!signal.aborted) {
        await news.bell.wait(signal);
        const told = news.drain();
        if (told.length > 0) clearTimeout(patience);
        yield* told;
        if (told.some(({ kind }) => kind === 'compacted')) return;
        if (news.error !== undefined) throw this.#failed(session, news.error, what);
      }
    } finally {
      clearTimeout(patience);
      session.ended.removeEventListener('abort', ended);
      stream.cancel();
    }
  }

  /** Ends all that is under way. */
  close(): void {
    this.#closed.abort();
    this.#session?.close();
    this.#session = undefined;
  }

  async #range(request: IRangeRequest, what: string): Promise<Listing> {
    const answer = await this.#call<RawRange>('KV', 'range', request, what, this.#endpoints.length);
    return { ...momentOf(answer.header), keys: answer.kvs.map(keyValueOf) };
  }

  /** `attempts`: at how many members. */
  async #call<T>(service: Service, method: Method, payload: object, what: string, attempts = 1): Promise<T> {
    for (let attempt = 1, tokens = 0; ; ) {
      const session = await this.#connect();
      try {
        this.#count(method);
        return await session.call<T>(service, method, payload, { token: session.token });
      } catch (error) {
        if (session.token !== undefined && isStaleToken(error) && tokens++ < TOKENS) {
          session.token = await this.#authenticate(session);
          continue;
        }
        const failed = this.#failed(session, error, what);
        if (failed.kind !== 'away' || attempt++ >= attempts) throw failed;
      }
    }
  }

  /** What gRPC's error means; a connection that does not serve is given up. */
  #failed(session: EtcdSession, error: unknown, what: string): EtcdError {
    if (error instanceof EtcdError) return error;
    const { username: user } = this.#options;
    const failed = callError(error, { endpoint: session.endpoint.text, user, patience: PATIENCE / 1000, what });
    // Even a refusal may be of a token that a watch cannot renew, or of this member only.
    if (failed.kind !== 'answer') this.#giveUp(session);
    return failed;
  }

  #giveUp(session: EtcdSession): void {
    this.#suspect = session.endpoint;
    if (this.#session === session) this.#session = undefined;
    session.close();
  }

  /** The connection, made if there is none; several who wait for it wait for one. */
  #connect(): Promise<EtcdSession> {
    if (this.#session) return Promise.resolve(this.#session);
    this.#dialling ??= this.#dial().finally(() => {
      this.#dialling = undefined;
    });
    return this.#dialling;
  }

  /** Has a first word with all members, one a little after the other, and connects to the first that answers. */
  async #dial(): Promise<EtcdSession> {
    const { signal } = this.#closed;
    const others = new AbortController();
    const stop = others.signal;
    let session: EtcdSession | undefined;
    const end = (): void => {
      others.abort();
      session?.close();
    };
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    const start = Math.floor(Math.random() * this.#endpoints.length);
    const order = [...this.#endpoints.slice(start), ...this.#endpoints.slice(0, start)].sort(
      (a, b) => Number(a === this.#suspect) - Number(b === this.#suspect),
    );
    const words = order.map(async (endpoint, i) => {
      if (i > 0) await sleep(i * STAGGER, stop);
      const material = this.#materialFor(endpoint);
      await sayHello(endpoint, material, stop);
      return { endpoint, material };
    });
    try {
      const { endpoint, material } = await Promise.any(words);
      session = await EtcdSession.create(endpoint, material);
      try {
        if (this.#options.username !== undefined) session.token = await this.#authenticate(session);
        if (signal.aborted) throw new EtcdError('away', endpoint.text, 'given up');
      } catch (error) {
        this.#giveUp(session);
        throw error;
      }
      this.#session = session;
      return session;
    } catch (error) {
      if (!(error instanceof AggregateError)) throw error;
      throw noneOf(error.errors.map((one) => this.#asEtcdError(one)));
    } finally {
      signal.removeEventListener('abort', end);
      others.abort();
    }
  }

  #asEtcdError(error: unknown): EtcdError {
    return error instanceof EtcdError ? error : new EtcdError('tls', this.#endpoints[0].text, reasonOf(error));
  }

  #materialFor(endpoint: Endpoint): TlsMaterial | undefined {
    return endpoint.tls ? readTls(this.#options) : undefined;
  }

  /** undefined: this etcd asks for none. */
  async #authenticate(session: EtcdSession): Promise<string | undefined> {
    const { username: name = '', password = '' } = this.#options;
    this.#count('authenticate');
    try {
      return (await session.call<{ token: string }>('Auth', 'authenticate', { name, password })).token;
    } catch (error) {
      if (/authentication is not enabled/.test(reasonOf(error))) return undefined;
      throw this.#failed(session, error, 'log in');
    }
  }

  #count(method: Method): void {
    this.#counts.set(method, (this.#counts.get(method) ?? 0) + 1);
  }
}

/** What came on a watch stream and was not told yet. */
class WatchBuffer {
  readonly bell = new Bell();
  error: unknown;
  #watching: Moment | undefined;
  #compacted = false;
  #revision = 0;
  /** By key, the last of each. */
  #events = new Map<string, KeyEvent>();

  take(message: RawWatch): void {
    const { created, canceled, compact_revision, cancel_reason, events, header } = message;
    if (Number(compact_revision) > 0) this.#compacted = true;
    else if (canceled) this.fail(new Error(cancel_reason || 'etcd cancelled the watch'));
    else if (created) this.#watching = momentOf(header);
    for (const { type, kv } of events) {
      const key = kv.key.toString();
      const revision = Number(kv.mod_revision);
      this.#revision = Math.max(this.#revision, revision);
      this.#events.delete(key); // so that keys are in the order of their last change
      this.#events.set(
        key,
        String(type).toUpperCase() === 'DELETE'
          ? { type: 'delete', key, revision }
          : { type: 'put', entry: keyValueOf(kv) },
      );
    }
    this.bell.ring();
  }

  fail(error: unknown): void {
    this.error ??= error;
    this.bell.ring();
  }

  drain(): WatchNews[] {
    this.bell.silence();
    const news: WatchNews[] = [];
    if (this.#watching) news.push({ kind: 'watching', ...this.#watching });
    if (this.#events.size > 0)
      news.push({ kind: 'events', revision: this.#revision, events: [...this.#events.values()] });
    if (this.#compacted) news.push({ kind: 'compacted' });
    this.#watching = undefined;
    this.#events = new Map();
    return news;
  }
}

// What etcd3 gives, as it is at run time: 64-bit numbers as text.

interface RawRange {
  readonly header: IResponseHeader;
  readonly kvs: readonly IKeyValue[];
}

interface RawTxn {
  readonly header: IResponseHeader;
  readonly succeeded: boolean;
  readonly responses: readonly { readonly response_range?: RawRange }[];
}

interface RawWatch {
  readonly header: IResponseHeader;
  readonly created: boolean;
  readonly canceled: boolean;
  readonly compact_revision: string;
  readonly cancel_reason: string;
  readonly events: readonly IEvent[];
}

/** Of etcd's Compare: `target` and `result`. */
const MOD = 2;
const EQUAL = 0;

const momentOf = (header: IResponseHeader): Moment => ({
  cluster: header.cluster_id,
  revision: Number(header.revision),
});

const keyValueOf = ({ key, value, create_revision, mod_revision, lease }: IKeyValue): KeyValue => ({
  key: key.toString(),
  value: value.toString(),
  createRevision: Number(create_revision),
  modRevision: Number(mod_revision),
  lease,
});

/** All keys that begin with `prefix`, which ends in a slash: up to the same with the next character. */
function rangeOf(prefix: string): { key: Buffer; range_end: Buffer } {
  const key = Buffer.from(prefix);
  const range_end = Buffer.from(key);
  range_end[range_end.length - 1]++;
  return { key, range_end };
}

/** As gRPC says it. */
const noAnswer = (): Error => Object.assign(new Error('no answer'), { code: 4, details: 'no answer' });
