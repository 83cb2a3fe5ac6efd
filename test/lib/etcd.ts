/**
 * A real etcd for tests: Debian's etcd-server and etcd-client (3.4), one member or three, in a temporary folder of its own.
 *
 *     const etcd = await Etcd.start({ namespace: underlay.name, address: '192.168.77.250' });
 *     await etcd.put('/coreos.com/network/config', '{"Network":"10.5.0.0/16"}');
 *     … etcd.endpoints …                                       // what a daemon is given: http://192.168.77.250:2379
 *     await etcd.members[0].stop('SIGKILL'); await etcd.members[0].start();  // again, on the same data
 *     await etcd.close();
 *
 * Keys are read and written by etcdctl, so that what a test sees is what another program would. All of it (processes, folder)
 * goes when `close` is called, when this process ends in whatever way (its members die with it, by prctl's PDEATHSIG), and
 * what a SIGKILL leaves of folders is removed by the next start. The network namespace is the caller's.
 *
 * A member needs about 0.3 s to start, 125 MB on disk and 30 MB of memory; an etcdctl command 20 ms.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type Certificates, makeCertificates } from './certificates.js';

const FOLDER = 'weft-etcd-';
/** In a namespace the ports are free: 2379, 2380, 2381 and so on by tens. */
const FIRST_PORT = 2379;
const READY_WITHIN_MS = 20_000;
const GRACE_MS = 5000;

/** Why these tests can't run here, for a SKIPPED line; undefined if they can. */
export function etcdMissing(): string | undefined {
  const missing = ['etcd', 'etcdctl', 'openssl', 'setpriv', 'bash'].filter(
    (command) => spawnSync('which', [command]).status !== 0,
  );
  return missing.length > 0 ? `needs the commands ${missing.join(', ')}` : undefined;
}

/** Where one member lives. */
export interface EtcdPlace {
  /** A network namespace's name (`ip netns`); undefined: this process's. */
  readonly namespace?: string | undefined;
  /** What it listens on and is known by; default 127.0.0.1. In a namespace it listens on 127.0.0.1 too, for etcdctl. */
  readonly address?: string;
  /** Default: in a namespace 2379 and so on, else a free one. The next two are for its peers and its metrics. */
  readonly clientPort?: number;
}

export interface EtcdOptions extends EtcdPlace {
  /** 1 or 3; all in the same place, each with ports of its own. Default 1. */
  readonly members?: number;
  /** A place for each member, instead of `members` and of one place for all. */
  readonly places?: readonly EtcdPlace[];
  /**
   * Clients must use TLS. Default false.
   *   `server`       any client may come that trusts the CA
   *   `mutual`       with a certificate of the CA's
   */
  readonly tls?: false | 'server' | 'mutual';
  /** The server's own certificate has expired. Default false. */
  readonly expiredServer?: boolean;
  /**
   * Users: root, with password `root-secret`, for etcdctl here, and this one, who may read and write all below `prefix`
   * (default: everything) and no more.
   */
  readonly user?: { readonly name: string; readonly password: string; readonly prefix?: string };
  /** More of etcd's own flags, for example --heartbeat-interval=50. */
  readonly args?: readonly string[];
}

/** A key as etcdctl gives it. Revisions are etcd's; a lease is its id, 0 for none. */
export interface KeyValue {
  readonly key: string;
  readonly value: string;
  readonly createRevision: number;
  readonly modRevision: number;
  /** How often it was written since it was made, from 1. */
  readonly version: number;
  readonly lease: bigint;
}

export interface LeaseState {
  /** Seconds left; -1: there is no such lease. */
  readonly ttl: number;
  readonly granted: number;
  readonly keys: readonly string[];
}

/** What happened to a key, as a watcher sees it. */
export interface KeyEvent {
  readonly type: 'put' | 'delete';
  readonly key: string;
  /** Empty for a deletion. */
  readonly value: string;
  readonly modRevision: number;
  /** performance.now() when it was seen. */
  readonly at: number;
}

/**
 * Requests since the member started, by gRPC method (Range, Put, Txn, LeaseGrant, Watch, …), from its /metrics. A method that
 * nobody called is missing. etcdctl's own are among them; take the difference of two counts with no etcdctl in between.
 */
export interface Requests {
  /** grpc_server_handled_total: answered. A stream (Watch, LeaseKeepAlive) counts when it ends. */
  readonly handled: Readonly<Record<string, number>>;
  /** Of those, answered with an error. */
  readonly failed: Readonly<Record<string, number>>;
  /** grpc_server_msg_received_total of streams: watches made and cancelled, keep-alives. */
  readonly streamed: Readonly<Record<string, number>>;
  /** All messages from clients (grpc_server_msg_received_total, streams or not). */
  readonly total: number;
}

interface Settings {
  readonly name: string;
  readonly place: Required<Pick<EtcdPlace, 'address'>> & { readonly namespace: string | undefined };
  readonly ports: { readonly client: number; readonly peer: number; readonly metrics: number };
  readonly dir: string;
  readonly args: readonly string[];
}

// --- a member ---

/** One etcd process and its data, which outlive each other. */
export class Member {
  readonly name: string;
  /** What clients connect to, e.g. `http://127.0.0.1:2379`. */
  readonly endpoint: string;
  readonly #settings: Settings;
  #child: ChildProcess | undefined;

  /** For Etcd. */
  constructor(settings: Settings, scheme: string) {
    this.#settings = settings;
    this.name = settings.name;
    this.endpoint = `${scheme}://${inUrl(settings.place.address)}:${settings.ports.client}`;
  }

  get running(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Of the process that runs (setpriv and ip replace themselves by it). Throws if none does. */
  get pid(): number {
    if (!this.#child?.pid || !this.running) throw new Error(`etcd ${this.name} does not run`);
    return this.#child.pid;
  }

  /** What it said, of all its runs. */
  log(): string {
    return readFileSync(this.#logFile, 'utf8');
  }

  get #logFile(): string {
    return `${this.#settings.dir}.log`;
  }

  /** Starts it, on the data that it has, and waits until it serves; with `wait: false` (no quorum yet) not. */
  async start(options: { readonly wait?: boolean } = {}): Promise<void> {
    if (this.running) throw new Error(`etcd ${this.name} runs already`);
    const { place, dir, args } = this.#settings;
    const log = openSync(this.#logFile, 'a');
    // Whatever becomes of this process, its etcds go with it.
    const command = [...['--pdeathsig', 'KILL', '--'], ...inNamespace(place.namespace, ['etcd', ...args])];
    this.#child = spawn('setpriv', command, { stdio: ['ignore', log, log], detached: true, cwd: dir });
    closeSync(log);
    await new Promise((resolve, reject) => this.#child?.once('spawn', resolve).once('error', reject));
    if (options.wait !== false) await this.ready();
  }

  /** Resolves once it has a leader and serves; rejects with its last words. */
  async ready(timeoutMs = READY_WITHIN_MS): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!(await this.#get('/health')).includes('"health":"true"')) {
      const last = this.log().trim().split('\n').at(-1);
      if (!this.running) throw new Error(`etcd ${this.name} ended: ${last}`);
      if (performance.now() > deadline) throw new Error(`etcd ${this.name} is not ready: ${last}`);
      await sleep(20);
    }
  }

  /** Ends it and waits until it is gone. Harmless where it does not run. Its data stay. */
  async stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    const child = this.#child;
    if (!child || !this.running) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGCONT');
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), GRACE_MS);
    await gone;
    clearTimeout(timer);
  }

  /** SIGSTOP: it answers nobody, and its connections stay. */
  pause(): void {
    process.kill(this.pid, 'SIGSTOP');
  }

  /** SIGCONT. */
  resume(): void {
    process.kill(this.pid, 'SIGCONT');
  }

  /** For the exit handler. */
  kill(): void {
    if (this.running) this.#child?.kill('SIGKILL');
  }

  /** Its counts since it started. */
  async requests(): Promise<Requests> {
    return parseRequests(await this.#get('/metrics'));
  }

  /** One of its metrics, by name and labels as they are printed, e.g. `etcd_debugging_mvcc_watcher_total`. */
  async metric(nameAndLabels: string): Promise<number | undefined> {
    const line = (await this.#get('/metrics')).split('\n').find((text) => text.startsWith(`${nameAndLabels} `));
    return line === undefined ? undefined : Number(line.slice(nameAndLabels.length + 1));
  }

  /** A plain HTTP answer's body; empty if nobody answers. By bash alone, since it has to come from inside the namespace. */
  async #get(path: string): Promise<string> {
    const { place, ports } = this.#settings;
    const script = `exec 3<>/dev/tcp/127.0.0.1/${ports.metrics} && printf 'GET ${path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3`;
    const { stdout } = await run(inNamespace(place.namespace, ['timeout', '3', 'bash', '-c', script]));
    return stdout.slice(stdout.indexOf('\r\n\r\n') + 4);
  }
}

// --- all of them ---

/** One etcd cluster and its folder. */
export class Etcd {
  /** Where its data, logs and certificates are. */
  readonly dir: string;
  readonly members: readonly Member[];
  /** With `tls`; all kinds of them, the wrong ones too. */
  readonly certificates: Certificates | undefined;
  readonly #namespace: string | undefined;
  readonly #local: readonly string[];
  readonly #user: EtcdOptions['user'];
  #authOn = false;

  private constructor(dir: string, options: EtcdOptions, settings: readonly Settings[], certificates?: Certificates) {
    this.dir = dir;
    this.certificates = certificates;
    this.#user = options.user;
    const scheme = certificates ? 'https' : 'http';
    this.members = settings.map((one) => new Member(one, scheme));
    this.#namespace = settings[0].place.namespace;
    // etcdctl runs beside the first member; those of other namespaces it reaches as clients do.
    this.#local = settings.map(({ place, ports }, i) =>
      place.namespace === this.#namespace ? `${scheme}://127.0.0.1:${ports.client}` : this.members[i].endpoint,
    );
  }

  /** Starts all members and waits until they serve (and, with `user`, until they ask for a password). */
  static async start(options: EtcdOptions = {}): Promise<Etcd> {
    removeDead();
    watchExit();
    const dir = mkdtempSync(join(tmpdir(), `${FOLDER}${process.pid}-`));
    const places = options.places ?? Array.from({ length: options.members ?? 1 }, () => options);
    const certificates = options.tls ? makeCertificates(join(dir, 'tls'), places.map(addressOf)) : undefined;
    const etcd = new Etcd(dir, options, await settle(dir, places, options, certificates), certificates);
    open.add(etcd);
    try {
      await Promise.all(etcd.members.map((member) => member.start()));
      if (options.user) await etcd.#askForPasswords(options.user);
      return etcd;
    } catch (error) {
      await etcd.close();
      throw error;
    }
  }

  /** Of all members, as clients in any namespace of the same network reach them. */
  get endpoints(): string[] {
    return this.members.map(({ endpoint }) => endpoint);
  }

  /** flannel's flags for it: endpoints, certificates, user. */
  get flags(): string[] {
    const flags = [`--etcd-endpoints=${this.endpoints.join(',')}`];
    const { certificates } = this;
    if (certificates) {
      flags.push(`--etcd-cafile=${certificates.ca}`);
      flags.push(`--etcd-certfile=${certificates.client.cert}`, `--etcd-keyfile=${certificates.client.key}`);
    }
    if (this.#user) flags.push(`--etcd-username=${this.#user.name}`, `--etcd-password=${this.#user.password}`);
    return flags;
  }

  /** The member that leads now; undefined: nobody does. */
  async leader(): Promise<Member | undefined> {
    for (const member of this.members) {
      if (member.running && (await member.metric('etcd_server_is_leader')) === 1) return member;
    }
    return undefined;
  }

  /** Runs etcdctl here (JSON, as root where there are users); its answer's text. Throws with its error. */
  async ctl(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await run(this.#ctlCommand(args));
    if (code === 0) return stdout;
    const lines = stderr.trim().split('\n');
    throw new Error(`etcdctl ${args[0]}: ${lines.find((line) => line.startsWith('Error')) ?? lines.at(-1)}`);
  }

  #ctlCommand(args: readonly string[]): string[] {
    const flags = [`--endpoints=${this.#local.join(',')}`, '--dial-timeout=2s', '--command-timeout=10s', '-w=json'];
    const { certificates } = this;
    if (certificates) {
      flags.push(
        `--cacert=${certificates.ca}`,
        `--cert=${certificates.client.cert}`,
        `--key=${certificates.client.key}`,
      );
    }
    if (this.#authOn) flags.push('--user=root:root-secret');
    return inNamespace(this.#namespace, ['env', 'ETCDCTL_API=3', 'etcdctl', ...flags, ...args]);
  }

  /**
   * Writes a key; its revision and lease (0: none). `ttl` (seconds) grants a lease of its own for it, `lease` uses one that
   * there is; with neither the key loses the lease that it had.
   */
  async put(
    key: string,
    value: string,
    options: { readonly ttl?: number; readonly lease?: bigint } = {},
  ): Promise<{ readonly revision: number; readonly lease: bigint }> {
    const lease = options.lease ?? (options.ttl === undefined ? 0n : await this.grant(options.ttl));
    const flags = lease === 0n ? [] : [`--lease=${lease.toString(16)}`];
    const answer = parse<{ header: Header }>(await this.ctl('put', ...flags, '--', key, value));
    return { revision: answer.header.revision, lease };
  }

  async get(key: string): Promise<KeyValue | undefined> {
    return keyValues(await this.ctl('get', '--', key))[0];
  }

  /** All keys that begin with `prefix`, by name. */
  async list(prefix: string): Promise<KeyValue[]> {
    return keyValues(await this.ctl('get', '--prefix', '--', prefix));
  }

  /** Deletes a key, or with `prefix` all that begin with it; how many there were. */
  async del(key: string, options: { readonly prefix?: boolean } = {}): Promise<number> {
    const flags = options.prefix ? ['--prefix'] : [];
    return parse<{ deleted?: number }>(await this.ctl('del', ...flags, '--', key)).deleted ?? 0;
  }

  /** A new lease's id. */
  async grant(ttl: number): Promise<bigint> {
    return BigInt(parse<{ ID: string }>(await this.ctl('lease', 'grant', String(ttl))).ID);
  }

  /** Ends a lease, and its keys with it. */
  async revoke(lease: bigint): Promise<void> {
    await this.ctl('lease', 'revoke', lease.toString(16));
  }

  async lease(id: bigint): Promise<LeaseState> {
    const text = await this.ctl('lease', 'timetolive', '--keys', id.toString(16));
    const answer = parse<{ ttl: number; 'granted-ttl': number; keys: string[] | null }>(text);
    return { ttl: answer.ttl, granted: answer['granted-ttl'], keys: (answer.keys ?? []).map(decode) };
  }

  /** The store's revision now. */
  async revision(): Promise<number> {
    return parse<{ header: Header }>(await this.ctl('get', '--', 'no such key')).header.revision;
  }

  /** Forgets history before `revision`; default: before now. Returns it. */
  async compact(revision?: number): Promise<number> {
    const at = revision ?? (await this.revision());
    await this.ctl('compact', String(at));
    return at;
  }

  /** What happens below a prefix from now on (a watch stream of etcdctl's, which counts among the requests). */
  async watch(prefix: string): Promise<Watching> {
    const from = (await this.revision()) + 1;
    const [command, ...args] = this.#ctlCommand(['watch', '--prefix', `--rev=${from}`, prefix]);
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', command, ...args], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    watchers.add(child);
    child.once('close', () => watchers.delete(child));
    return new Watching(child);
  }

  /** The sum of all members' counts. */
  async requests(): Promise<Requests> {
    const all = await Promise.all(this.members.filter(({ running }) => running).map((member) => member.requests()));
    const sum = (pick: (one: Requests) => Readonly<Record<string, number>>): Record<string, number> => {
      const totals: Record<string, number> = {};
      for (const [name, value] of all.flatMap((one) => Object.entries(pick(one)))) {
        totals[name] = (totals[name] ?? 0) + value;
      }
      return totals;
    };
    return {
      handled: sum(({ handled }) => handled),
      failed: sum(({ failed }) => failed),
      streamed: sum(({ streamed }) => streamed),
      total: all.reduce((total, one) => total + one.total, 0),
    };
  }

  /** Ends all members and removes the folder. Safe to call more than once. */
  async close(): Promise<void> {
    await Promise.all(this.members.map((member) => member.stop('SIGKILL')));
    this.closeNow();
  }

  /** The same without waiting, for the exit handler. */
  closeNow(): void {
    if (!open.delete(this)) return;
    for (const member of this.members) member.kill();
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5 });
  }

  async #askForPasswords({ name, password, prefix = '' }: NonNullable<EtcdOptions['user']>): Promise<void> {
    await this.ctl('user', 'add', 'root:root-secret');
    await this.ctl('user', 'grant-role', 'root', 'root');
    await this.ctl('user', 'add', `${name}:${password}`);
    await this.ctl('role', 'add', 'tester');
    await this.ctl('role', 'grant-permission', 'tester', '--prefix=true', 'readwrite', prefix);
    await this.ctl('user', 'grant-role', name, 'tester');
    await this.ctl('auth', 'enable');
    this.#authOn = true;
  }
}

/** A watch of etcdctl's. */
export class Watching {
  readonly events: KeyEvent[] = [];
  readonly #child: ChildProcess;

  /** For Etcd. */
  constructor(child: ChildProcess) {
    this.#child = child;
    createInterface({ input: child.stdout! }).on('line', (line) => {
      if (!line.startsWith('{')) return;
      const answer = parse<{ Events?: { type?: number; kv: RawKeyValue }[] }>(line);
      for (const { type, kv } of answer.Events ?? []) {
        this.events.push({
          type: type === 1 ? 'delete' : 'put',
          key: decode(kv.key),
          value: decode(kv.value ?? ''),
          modRevision: kv.mod_revision,
          at: performance.now(),
        });
      }
    });
  }

  stop(): void {
    this.#child.kill('SIGKILL');
  }
}

// --- what etcdctl prints ---

interface Header {
  readonly revision: number;
}

interface RawKeyValue {
  readonly key: string;
  readonly value?: string;
  readonly create_revision: number;
  readonly mod_revision: number;
  readonly version?: number;
  readonly lease?: string | number;
}

/** Ids have 63 bits: numbers of more than 15 digits become text. */
const parse = <T>(text: string): T => JSON.parse(text.replace(/:(\d{16,})(?=[,}])/g, ':"$1"')) as T;

const decode = (base64: string): string => Buffer.from(base64, 'base64').toString();

function keyValues(text: string): KeyValue[] {
  const { kvs = [] } = parse<{ kvs?: RawKeyValue[] }>(text);
  return kvs.map((kv) => ({
    key: decode(kv.key),
    value: decode(kv.value ?? ''),
    createRevision: kv.create_revision,
    modRevision: kv.mod_revision,
    version: kv.version ?? 0,
    lease: BigInt(kv.lease ?? 0),
  }));
}

function parseRequests(text: string): Requests {
  const handled: Record<string, number> = {};
  const failed: Record<string, number> = {};
  const streamed: Record<string, number> = {};
  let total = 0;
  const add = (to: Record<string, number>, name: string, value: number): void => {
    if (value > 0) to[name] = (to[name] ?? 0) + value;
  };
  for (const [, what, labels, digits] of text.matchAll(
    /^grpc_server_(handled|msg_received)_total\{([^}]*)\} (\S+)$/gm,
  )) {
    const label = (name: string): string => new RegExp(`${name}="([^"]*)"`).exec(labels)?.[1] ?? '';
    const [method, value] = [label('grpc_method'), Number(digits)];
    if (what === 'handled') {
      add(handled, method, value);
      if (label('grpc_code') !== 'OK') add(failed, method, value);
    } else {
      total += value;
      if (label('grpc_type') !== 'unary') add(streamed, method, value);
    }
  }
  return { handled, failed, streamed, total };
}

// --- where members are, and what they are told ---

const addressOf = (place: EtcdPlace): string => place.address ?? '127.0.0.1';
const inUrl = (address: string): string => (address.includes(':') ? `[${address}]` : address);

function inNamespace(namespace: string | undefined, command: readonly string[]): string[] {
  return namespace === undefined ? [...command] : ['ip', 'netns', 'exec', namespace, ...command];
}

/** Ports that nobody had a moment ago. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, '127.0.0.1');
      await new Promise((resolve, reject) => server.once('listening', resolve).once('error', reject));
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as { port: number }).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

async function settle(
  dir: string,
  places: readonly EtcdPlace[],
  options: EtcdOptions,
  certificates: Certificates | undefined,
): Promise<Settings[]> {
  const spots = await Promise.all(
    places.map(async (place, i) => {
      // Of all in one place the port that was asked for is the first's; the others count on from it.
      const asked = place.clientPort === undefined ? undefined : place.clientPort + (options.places ? 0 : 10 * i);
      const first = asked ?? (place.namespace === undefined ? undefined : FIRST_PORT + 10 * i);
      const [client, peer, metrics] = first === undefined ? await freePorts(3) : [first, first + 1, first + 2];
      return { place, ports: { client, peer, metrics } };
    }),
  );
  const peerUrl = (i: number): string => `http://${inUrl(addressOf(places[i]))}:${spots[i].ports.peer}`;
  const cluster = places.map((_, i) => `m${i + 1}=${peerUrl(i)}`).join(',');
  const scheme = certificates ? 'https' : 'http';
  return spots.map(({ place, ports }, i) => {
    const name = `m${i + 1}`;
    const address = addressOf(place);
    const url = (host: string, port: number): string => `${scheme}://${inUrl(host)}:${port}`;
    const listen = [...new Set([url(address, ports.client), url('127.0.0.1', ports.client)])];
    mkdirSync(join(dir, name), { mode: 0o700 });
    const args = [
      `--name=${name}`,
      `--data-dir=${join(dir, name)}`,
      `--listen-client-urls=${listen.join(',')}`,
      `--advertise-client-urls=${url(address, ports.client)}`,
      `--listen-peer-urls=${peerUrl(i)}`,
      `--initial-advertise-peer-urls=${peerUrl(i)}`,
      `--initial-cluster=${cluster}`,
      `--initial-cluster-token=${FOLDER}${process.pid}`,
      `--listen-metrics-urls=http://127.0.0.1:${ports.metrics}`,
      ...['--logger=zap', '--log-level=warn'],
      ...(certificates ? tlsArgs(certificates, options) : []),
      ...(options.args ?? []),
    ];
    return { name, place: { namespace: place.namespace, address }, ports, dir: join(dir, name), args };
  });
}

function tlsArgs(certificates: Certificates, { tls, expiredServer = false }: EtcdOptions): string[] {
  const { cert, key } = expiredServer ? certificates.expiredServer : certificates.server;
  const mutual = tls === 'mutual' ? ['--client-cert-auth', `--trusted-ca-file=${certificates.ca}`] : [];
  return [`--cert-file=${cert}`, `--key-file=${key}`, ...mutual];
}

// --- processes ---

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

function run(command: readonly string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(command[0], command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', (error) => reject(new Error(`can't run ${command[0]}: ${error.message}`)));
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

const open = new Set<Etcd>();
const watchers = new Set<ChildProcess>();

/** Folders of processes that were killed before they could remove them. */
function removeDead(): void {
  for (const name of readdirSync(tmpdir()).filter((one) => one.startsWith(FOLDER))) {
    const pid = new RegExp(`^${FOLDER}(\\d+)-`).exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`))
      rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
}

let watching = false;

function watchExit(): void {
  if (watching) return;
  watching = true;
  const closeAll = (): void => {
    for (const child of watchers) child.kill('SIGKILL');
    for (const etcd of open) etcd.closeNow();
  };
  // 'exit' also comes after an uncaught error.
  process.on('exit', closeAll);
  for (const [signal, number] of [
    ['SIGINT', 2],
    ['SIGTERM', 15],
    ['SIGHUP', 1],
  ] as const) {
    process.on(signal, () => {
      closeAll();
      // A Lab has a handler too, which exits once it has closed; where there is none, this ends it.
      setTimeout(() => process.exit(128 + number), GRACE_MS);
    });
  }
}

/**
 * Node 20 sometimes goes round in circles for ever when it frees what HTTP/2 has left behind, after the last line of JavaScript
 * (https://github.com/nodejs/node/issues/47748). Ending in the last listener of `exit`, it never gets there; nor does weftd,
 * which ends by process.exit.
 */
process.once('beforeExit', () => process.on('exit', () => process.exit()));
