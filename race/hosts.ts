/**
 * Hosts out of network namespaces, for the race, the demo and the tests. Needs root and iproute2. A namespace may also be a
 * container's, behind an agent (agent.ts): commands run in either kind alike.
 *
 * A `Lab` owns everything it makes: namespaces (named `weft-<purpose>-<pid>-<host>`), processes and one temporary folder.
 * All of it goes when the lab is closed, when this process exits, and on SIGINT, SIGTERM and SIGHUP; closing twice is
 * harmless. What a SIGKILL leaves behind is found by its name and its dead pid, and removed by the next lab of that purpose.
 *
 *     client-a ── host a ══ underlay ══ host b ── client-b         host i: underlay 192.168.77.i, fd77::i
 *     10.5.1.2    10.5.1.1              10.5.2.1  10.5.2.2         client i: 10.5.i.2/24, fd00:5:0:i::2/64
 *
 * Inside a host the underlay interface is `eth0` and the one to its clients `lan0`; a client has `eth0`. Making things is
 * synchronous (a few milliseconds each), so that a signal never finds one half made; running commands is not.
 */
import { type ChildProcess, type SpawnOptions, spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The whole overlay, of which host i has 10.5.i.0/24 and fd00:5:0:i::/64. */
export const NETWORK4 = '10.5.0.0/16';
export const NETWORK6 = 'fd00:5::/48';

const NAMESPACES = '/var/run/netns';
const REMOTE = fileURLToPath(new URL('remote.js', import.meta.url));
/** What SIGTERM gets before SIGKILL follows. */
const GRACE_MS = 2000;

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

// --- processes ---

const openLabs = new Set<Lab>();

/** Ends what is left in a namespace, processes first: a process keeps its namespace alive. */
function removeNamespace(name: string): void {
  const pids = spawnSync('ip', ['netns', 'pids', name], { encoding: 'utf8' }).stdout ?? '';
  for (const pid of pids.split('\n').filter(Boolean)) signalPid(Number(pid), 'SIGKILL');
  spawnSync('ip', ['netns', 'del', name]);
}

function signalPid(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It is gone already.
  }
}

function isAlive(pid: number): boolean {
  return existsSync(`/proc/${pid}`);
}

/** Names of the existing namespaces that begin with `prefix`. */
export function namespacesNamed(prefix: string): string[] {
  return existsSync(NAMESPACES) ? readdirSync(NAMESPACES).filter((name) => name.startsWith(prefix)) : [];
}

/** Removes the namespaces whose names begin with `prefix`, and the processes in them. Returns how many. */
export function removeNamespaces(prefix: string): number {
  const names = namespacesNamed(prefix);
  for (const name of names) removeNamespace(name);
  return names.length;
}

/**
 * Why this machine can't make hosts, in one line for a SKIPPED test or an error, or undefined if it can.
 * It really makes (and removes) a namespace: in many containers root may not.
 */
export function hostsImpossible(): string | undefined {
  if (process.geteuid?.() !== 0) return 'needs root, to make network namespaces';
  const name = `weft-probe-${process.pid}`;
  const made = spawnSync('ip', ['netns', 'add', name], { encoding: 'utf8' });
  if (made.error) return 'needs the command `ip` (package iproute2)';
  if (made.status !== 0) return `may not make network namespaces here (${made.stderr.trim().split('\n')[0]})`;
  const link = ['-n', name, 'link', 'add', 'weft0', 'type', 'veth', 'peer', 'name', 'weft1'];
  const veth = spawnSync('ip', link, { encoding: 'utf8' });
  spawnSync('ip', ['netns', 'del', name]);
  return veth.status === 0 ? undefined : `the kernel makes no veth pairs (${veth.stderr.trim().split('\n')[0]})`;
}

/** Runs a command here, with its output collected; rejects with one line if it can't start. */
export function run(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<Finished> {
  return collect(spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options }), command);
}

/** What a process writes until it ends; its pipes must not have been read before. */
export function collect(child: ChildProcess, command: string): Promise<Finished> {
  return new Promise((resolve, reject) => {
    let stdout = '';
    let stderr = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.on('error', (error) => reject(new Error(`can't run ${command}: ${error.message}`)));
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

// --- a namespace ---

/** A long-running process whose output goes to a file of the lab. */
export class Daemon {
  readonly child: ChildProcess;
  readonly name: string;
  readonly logFile: string;

  constructor(child: ChildProcess, name: string, logFile: string) {
    this.child = child;
    this.name = name;
    this.logFile = logFile;
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  log(): string {
    return readFileSync(this.logFile, 'utf8');
  }

  /** What its log says last: an uncaught error if there is one, else the last line. */
  lastWords(): string {
    const lines = this.log().trim().split('\n');
    return lines.findLast((line) => /^\w*Error\b/.test(line)) ?? (lines.at(-1) || 'it said nothing');
  }

  /** Resolves once `text` stands in its log; rejects with its last words if it ends or `timeoutMs` pass before that. */
  async ready(text: string, timeoutMs = 10_000): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      if (this.log().includes(text)) return;
      if (!this.running) throw new Error(`${this.name} ended before it was ready: ${this.lastWords()}`);
      if (Date.now() > deadline) {
        throw new Error(`${this.name} was not ready within ${timeoutMs / 1000} s: ${this.lastWords()}`);
      }
      await sleep(20);
    }
  }

  /** Signals it and waits until it is gone, with SIGKILL after two seconds. Milliseconds that it took. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number> {
    const begun = performance.now();
    await endAll([this.child], signal);
    return performance.now() - begun;
  }
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function endAll(children: readonly ChildProcess[], signal: NodeJS.Signals): Promise<void> {
  const running = children.filter((child) => child.exitCode === null && child.signalCode === null && child.pid);
  const gone = Promise.all(running.map((child) => new Promise((resolve) => child.once('exit', resolve))));
  for (const child of running) child.kill(signal);
  const timer = setTimeout(() => {
    for (const child of running) child.kill('SIGKILL');
  }, GRACE_MS);
  await gone;
  clearTimeout(timer);
}

export class Namespace {
  readonly lab: Lab;
  /** Its name for `ip netns`; a container's is one for messages only. */
  readonly name: string;
  /** The agent's socket of a container. */
  readonly #socket: string | undefined;

  constructor(lab: Lab, name: string, socket?: string) {
    this.lab = lab;
    this.name = name;
    this.#socket = socket;
  }

  /**
   * The command line that runs a command there. `env`: for a container only what differs from this process's environment
   * is handed over, since PATH and the like are its own.
   */
  #line(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env): [string, string[]] {
    if (this.#socket === undefined) return ['ip', ['netns', 'exec', this.name, command, ...args]];
    const differs = ([name, value]: [string, string | undefined]): boolean => value !== process.env[name];
    const settings = Object.entries(env)
      .filter(differs)
      .map(([name, value]) => `${name}=${value ?? ''}`);
    return [process.execPath, [REMOTE, this.#socket, ...settings, '--', command, ...args]];
  }

  /** Runs `ip` commands (`link add …`, `route replace …`) in one process; throws at the first that fails. */
  ip(...commands: string[]): void {
    const [program, words] = this.#line('ip', ['-batch', '-']);
    const done = spawnSync(program, words, { input: `${commands.join('\n')}\n`, encoding: 'utf8' });
    if (done.status === 0) return;
    const failed = /Command failed -:(\d+)/.exec(done.stderr);
    const command = failed ? commands[Number(failed[1]) - 1] : commands.join('; ');
    throw new Error(`ip ${command} in ${this.name}: ${done.stderr.trim().split('\n')[0] || done.error?.message}`);
  }

  /** Runs a command to its end, synchronously; its output, or throws. */
  runSync(command: string, ...args: string[]): string {
    const [program, words] = this.#line(command, args);
    const done = spawnSync(program, words, { encoding: 'utf8' });
    if (done.status === 0) return done.stdout;
    const why = `${done.stderr}`.trim().split('\n')[0] || done.error?.message || `exit ${done.status}`;
    throw new Error(`${[command, ...args].join(' ')} in ${this.name}: ${why}`);
  }

  /** Sets kernel parameters by their path below /proc/sys, for example {'net/ipv4/ip_forward': 1}. */
  sysctl(values: Readonly<Record<string, number | string>>): void {
    const set = 'while [ $# -gt 0 ]; do printf %s "$2" >"/proc/sys/$1" || exit 1; shift 2; done';
    this.runSync('sh', '-c', set, 'sh', ...Object.entries(values).flatMap(([path, value]) => [path, `${value}`]));
  }

  /**
   * Starts a process here. The lab ends it when it closes; it is in a process group of its own, so that a Ctrl-C reaches
   * it through the lab, in order, and not from the terminal.
   */
  spawn(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
    this.lab.assertOpen();
    const [program, words] = this.#line(command, args, options.env);
    const child = spawn(program, words, { detached: true, ...options });
    this.lab.adopt(child);
    return child;
  }

  /** Runs a command to its end and collects its output. */
  run(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<Finished> {
    return collect(this.spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options }), command);
  }

  /** Starts a long-running process whose stdout and stderr go to `<name>.log` in the lab's folder. */
  start(name: string, command: string, args: readonly string[], options: SpawnOptions = {}): Daemon {
    const logFile = join(this.lab.dir, `${name}.log`);
    const log = openSync(logFile, 'a');
    try {
      return new Daemon(this.spawn(command, args, { stdio: ['ignore', log, log], ...options }), name, logFile);
    } finally {
      closeSync(log);
    }
  }
}

// --- the lab ---

export interface LabOptions {
  /** Leave the pid out of the names: for what can run only once on a machine. */
  readonly single?: boolean;
}

export class Lab {
  /** Every namespace's name begins with it. */
  readonly prefix: string;
  /** A temporary folder for logs, configuration and results. */
  readonly dir: string;
  readonly namespaces: Namespace[] = [];
  readonly #children = new Set<ChildProcess>();
  readonly #undo: (() => void)[] = [];
  #closing: Promise<void> | undefined;
  #kept = false;

  constructor(purpose: string, options: LabOptions = {}) {
    if (!options.single) removeDead(purpose);
    this.prefix = options.single ? `weft-${purpose}` : `weft-${purpose}-${process.pid}`;
    this.dir = mkdtempSync(join(tmpdir(), `${this.prefix}-`));
    // A second lab of one purpose in one process: tests do that.
    for (let n = 2; namespacesNamed(`${this.prefix}-`).length > 0 && !options.single; n++) {
      this.prefix = `weft-${purpose}-${process.pid}-${n}`;
    }
    openLabs.add(this);
    watchSignals();
  }

  /**
   * For whoever catches an error: true if a signal came and the error is only its consequence. It waits a moment first,
   * since a Ctrl-C ends a synchronous child before it gets to us.
   */
  async interrupted(): Promise<boolean> {
    await sleep(20);
    return this.closing;
  }

  get closing(): boolean {
    return this.#closing !== undefined;
  }

  assertOpen(): void {
    if (this.closing) throw new Error(`${this.prefix} is being removed`);
  }

  /**
   * Makes the namespace `<prefix>-<name>`, with its loopback up, and without reverse path filtering and duplicate address
   * detection, which would keep IPv6 silent for its first second.
   */
  namespace(name: string): Namespace {
    this.assertOpen();
    const made = new Namespace(this, `${this.prefix}-${name}`);
    const done = spawnSync('ip', ['netns', 'add', made.name], { encoding: 'utf8' });
    if (done.status !== 0) {
      throw new Error(`can't make network namespace ${made.name}: ${done.stderr?.trim() || done.error?.message}`);
    }
    this.namespaces.push(made);
    const inet6 = ipv6Works() ? { 'net/ipv6/conf/all/accept_dad': 0, 'net/ipv6/conf/default/accept_dad': 0 } : {};
    made.sysctl({ 'net/ipv4/conf/all/rp_filter': 0, 'net/ipv4/conf/default/rp_filter': 0, ...inet6 });
    made.ip('link set lo up');
    return made;
  }

  /**
   * The namespace of a container whose agent listens at `socket`, under a name for messages. It is somebody else's: it
   * outlives the lab, but not the commands that the lab runs there.
   */
  remote(name: string, socket: string): Namespace {
    return new Namespace(this, name, socket);
  }

  /** Joins two namespaces by a veth pair, both ends up. */
  veth(a: Namespace, nameA: string, b: Namespace, nameB: string, mtu = 1500): void {
    a.ip(
      `link add ${nameA} mtu ${mtu} type veth peer name ${nameB} mtu ${mtu} netns ${b.name}`,
      `link set ${nameA} up`,
    );
    b.ip(`link set ${nameB} up`);
  }

  /**
   * For what must be put back where it is not the lab's own: `undo` runs when the lab closes, whatever made it close, once
   * its processes are gone; the last one first. It has to be synchronous.
   */
  whenClosing(undo: () => void): void {
    this.#undo.unshift(undo);
  }

  adopt(child: ChildProcess): void {
    this.#children.add(child);
    const forget = (): boolean => this.#children.delete(child);
    child.once('exit', forget).once('error', forget);
  }

  /** Lets everything live on after this process. */
  keep(): void {
    this.#kept = true;
    openLabs.delete(this);
    for (const child of this.#children) child.unref();
  }

  /** Ends the processes, removes the namespaces and the folder. Safe to call at any time and more than once. */
  async close(): Promise<void> {
    if (this.#kept) return;
    this.#closing ??= endAll([...this.#children], 'SIGTERM').then(() => this.closeNow());
    await this.#closing;
  }

  /** The same without waiting, for the exit handler: nobody gets time to say goodbye. */
  closeNow(): void {
    if (this.#kept || !openLabs.delete(this)) return;
    for (const child of this.#children) child.kill('SIGKILL');
    for (const undo of this.#undo) {
      try {
        undo();
      } catch (error) {
        process.stderr.write(`${(error as Error).message}\n`);
      }
    }
    for (const { name } of this.namespaces) removeNamespace(name);
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Removes the namespaces and folders of labs whose process was killed before it could do so. */
function removeDead(purpose: string): void {
  const pattern = new RegExp(`^weft-${purpose}-(\\d+)-`);
  const isDead = (name: string): boolean => {
    const pid = pattern.exec(name)?.[1];
    return pid !== undefined && !isAlive(Number(pid));
  };
  for (const name of namespacesNamed(`weft-${purpose}-`).filter(isDead)) removeNamespace(name);
  for (const name of readdirSync(tmpdir()).filter(isDead))
    rmSync(join(tmpdir(), name), { recursive: true, force: true });
}

let watching = false;

function watchSignals(): void {
  if (watching) return;
  watching = true;
  // 'exit' also comes after an uncaught error.
  process.on('exit', () => {
    for (const lab of openLabs) lab.closeNow();
  });
  for (const [signal, number] of [
    ['SIGINT', 2],
    ['SIGTERM', 15],
    ['SIGHUP', 1],
  ] as const) {
    process.on(signal, () => {
      void Promise.all([...openLabs].map((lab) => lab.close())).finally(() => process.exit(128 + number));
    });
  }
}

// --- topologies ---

export interface Host {
  /** a, b, c, … */
  readonly letter: string;
  /** 1, 2, 3, …: the number in its addresses. */
  readonly number: number;
  readonly ns: Namespace;
  /** Its own interfaces. In a lab `eth0` and `lan0`; in a container whichever has the address. */
  readonly underlayInterface: string;
  readonly lanInterface: string;
  readonly underlay4: string;
  readonly underlay6: string;
  readonly subnet4: string;
  readonly subnet6: string;
  /** Where the client behind it lives; with clients 'shared', hosts b, c, … name the same namespace. */
  readonly client: Namespace;
  readonly client4: string;
  readonly client6: string;
  /** The client's interface towards this host. */
  readonly clientInterface: string;
}

export interface HostsOptions {
  /** How many, 2 to 26. */
  readonly count: number;
  /**
   * How the hosts are joined. `veth`: one pair; the third host on are macvlans on host b's end, so that all of them share
   * that one veth (the race's imix needs four peers over the same link as everything else). `bridge`: a switch in a
   * namespace of its own, one veth a host.
   */
  readonly join: 'veth' | 'bridge';
  /** One client namespace per host, or one for host a and one that hosts b, c, … share (by one link each). */
  readonly clients: 'own' | 'shared';
  /** Of the underlay. */
  readonly mtu?: number;
}

/** False where the kernel runs without IPv6. */
export const ipv6Works = (): boolean => existsSync('/proc/sys/net/ipv6/conf/all');

type Addresses = Pick<Host, 'underlay4' | 'underlay6' | 'subnet4' | 'subnet6' | 'client4' | 'client6'>;

/** What host `number` and its client have, in a lab and in containers. */
export const addressesOf = (number: number): Addresses => ({
  underlay4: `192.168.77.${number}`,
  underlay6: `fd77::${number}`,
  subnet4: `10.5.${number}.0/24`,
  subnet6: `fd00:5:0:${number}::/64`,
  client4: `10.5.${number}.2`,
  client6: `fd00:5:0:${number}::2`,
});

/** Makes hosts with forwarding on, joined by an underlay, and clients behind them with a default route. */
export function makeHosts(lab: Lab, options: HostsOptions): Host[] {
  const mtu = options.mtu ?? 1500;
  const inet6 = ipv6Works();
  const underlay = options.join === 'bridge' ? lab.namespace('underlay') : undefined;
  underlay?.ip('link add switch type bridge', 'link set switch up');
  const hosts: Host[] = [];
  for (let number = 1; number <= options.count; number++) {
    const letter = String.fromCharCode(96 + number);
    const ns = lab.namespace(letter);
    const shares = options.clients === 'shared' && number > 2;
    const client = shares ? hosts[1].client : lab.namespace(`client-${letter}`);
    const host: Host = {
      letter,
      number,
      ns,
      underlayInterface: 'eth0',
      lanInterface: 'lan0',
      ...addressesOf(number),
      client,
      clientInterface: shares ? `eth${number - 2}` : 'eth0',
    };
    hosts.push(host);
    ns.sysctl({ 'net/ipv4/ip_forward': 1, ...(inet6 ? { 'net/ipv6/conf/all/forwarding': 1 } : {}) });

    if (underlay) {
      lab.veth(ns, 'eth0', underlay, `port-${letter}`, mtu);
      underlay.ip(`link set port-${letter} master switch`);
    } else if (number === 2) {
      lab.veth(hosts[0].ns, 'eth0', ns, 'eth0', mtu);
    } else if (number > 2) {
      const far = `far-${letter}`;
      hosts[1].ns.ip(
        `link add link eth0 name ${far} mtu ${mtu} type macvlan mode bridge`,
        `link set ${far} netns ${ns.name}`,
      );
      ns.ip(`link set ${far} name eth0`, 'link set eth0 up');
    }
    lab.veth(ns, 'lan0', client, host.clientInterface);
    ns.ip(`addr add 10.5.${number}.1/24 dev lan0`);
    client.ip(`addr add ${host.client4}/24 dev ${host.clientInterface}`);
    if (!shares) client.ip(`route add default via 10.5.${number}.1`);
    else {
      // Answers go back through the host that was asked: engines that know who has which address refuse others'.
      client.ip(
        `rule add from ${host.client4} table ${number}`,
        `route add default via 10.5.${number}.1 table ${number}`,
      );
    }
    if (inet6) {
      ns.ip(`addr add fd00:5:0:${number}::1/64 dev lan0 nodad`);
      client.ip(`addr add ${host.client6}/64 dev ${host.clientInterface} nodad`);
      if (!shares) client.ip(`route add default via fd00:5:0:${number}::1`);
    }
  }
  for (const { ns, underlay4, underlay6 } of hosts) {
    ns.ip(`addr add ${underlay4}/24 dev eth0`, ...(inet6 ? [`addr add ${underlay6}/64 dev eth0 nodad`] : []));
  }
  return hosts;
}

/**
 * The same host with another subnet of each family (an allocated one): its `lan0` and its client get the addresses that
 * `makeHosts` would have given them there, base + 1 and base + 2. A family that is left out gets no address.
 */
export function moveHost(host: Host, subnet4: string | undefined, subnet6?: string): Host {
  const { ns, client, clientInterface } = host;
  const moved = { ...host };
  ns.ip('addr flush dev lan0 scope global');
  client.ip(`addr flush dev ${clientInterface} scope global`);
  for (const subnet of [subnet4, subnet6]) {
    if (subnet === undefined) continue;
    const [base, length] = subnet.split('/');
    const v6 = base.includes(':');
    const nth = (n: number): string => (v6 ? `${base}${n}` : base.replace(/\d+$/, (last) => `${Number(last) + n}`));
    ns.ip(`addr add ${nth(1)}/${length} dev lan0${v6 ? ' nodad' : ''}`);
    client.ip(`addr add ${nth(2)}/${length} dev ${clientInterface}${v6 ? ' nodad' : ''}`);
    // Of hosts that share a client, the first has the default route.
    if (clientInterface === 'eth0') client.ip(`route replace default via ${nth(1)}`);
    Object.assign(moved, v6 ? { subnet6: subnet, client6: nth(2) } : { subnet4: subnet, client4: nth(2) });
  }
  return moved;
}

/** Two hosts joined by one veth, a client namespace behind each. */
export function twoHosts(lab: Lab): [Host, Host] {
  const [a, b] = makeHosts(lab, { count: 2, join: 'veth', clients: 'own' });
  return [a, b];
}

/** The peers file (JSON) that names all of `hosts`, by their IPv4 or IPv6 underlay address; the same file suits each. */
export function peersFile(hosts: readonly Host[], family: 4 | 6 = 4, subnets: 'v4' | 'both' = 'both'): string {
  const peers = hosts.map((host) => ({
    name: host.letter,
    address: family === 4 ? host.underlay4 : host.underlay6,
    subnets: subnets === 'both' ? [host.subnet4, host.subnet6] : [host.subnet4],
  }));
  return `${JSON.stringify({ peers }, null, 2)}\n`;
}

/** True once one ping from `from` to `address` is answered; tries for `timeoutMs`. */
export async function answersPing(from: Namespace, address: string, timeoutMs = 5000): Promise<boolean> {
  const deadline = Date.now() + timeoutMs;
  while (Date.now() < deadline) {
    if ((await from.run('ping', ['-n', '-c', '1', '-W', '1', address])).code === 0) return true;
    await sleep(50);
  }
  return false;
}
