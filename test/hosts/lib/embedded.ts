/**
 * Real weftds that find each other by an embedded registry: hosts in namespaces share the file system, so one folder of the
 * lab serves all of them. And what such a registry may meet: a full disk, somebody who holds its lock, a mount that is
 * read-only.
 *
 *     <lab.dir>/registry    shared          <lab.dir>/state-<letter>    one daemon's own, with subnet.env
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Daemon, type Finished, type Host, type Lab, moveHost, NETWORK4, sleep } from '../../../race/hosts.js';
import { METRICS, Weft } from './weft.js';

export const WEFT = fileURLToPath(new URL('../../../src/cli.js', import.meta.url));

export const registryOf = (lab: Lab): string => join(lab.dir, 'registry');
export const stateOf = (host: Host): string => join(host.ns.lab.dir, `state-${host.letter}`);
export const subnetFileOf = (host: Host): string => join(stateOf(host), 'subnet.env');

// --- daemons ---

export interface EmbeddedOptions {
  /** --network; null: none, as a daemon that is not the first may do. Default: the IPv4 overlay. */
  readonly network?: string | null;
  readonly registryPath?: string;
  readonly stateDir?: string;
  readonly publicIp?: string;
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** The arguments of a weftd on `host` that uses the lab's registry. */
export function embeddedArgs(host: Host, options: EmbeddedOptions = {}): string[] {
  const { network = NETWORK4 } = options;
  return [
    ...['--registry', 'embedded', '--registry-path', options.registryPath ?? registryOf(host.ns.lab)],
    ...['--state-dir', options.stateDir ?? stateOf(host), ...(network === null ? [] : ['--network', network])],
    ...['--iface', 'eth0', '--public-ip', options.publicIp ?? host.underlay4, '--metrics-address', METRICS],
    ...(options.args ?? []),
  ];
}

/** Starts weftd on `host`, without waiting. */
export function spawnEmbedded(host: Host, options: EmbeddedOptions = {}): Weft {
  const before = { ...process.env };
  Object.assign(process.env, options.env); // the daemon inherits this process's environment
  try {
    return Weft.spawnBare(host, embeddedArgs(host, options));
  } finally {
    for (const name of Object.keys(options.env ?? {})) {
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
    }
  }
}

/** Starts weftd on `host` and waits until it forwards. */
export async function startEmbedded(host: Host, options: EmbeddedOptions = {}): Promise<Weft> {
  const weft = spawnEmbedded(host, options);
  await weft.ready();
  return weft;
}

/** Signals a daemon: `ip netns exec` became the daemon itself, so its pid is the daemon's. */
export function signal(weft: Weft, name: NodeJS.Signals): void {
  const { pid } = weft.daemon.child;
  if (pid === undefined || !weft.daemon.running) throw new Error(`${weft.daemon.name} does not run`);
  process.kill(pid, name);
}

/** What a daemon that should refuse to start says, and its exit code; it is ended if it has not by then. */
export async function refusal(weft: Weft, timeoutMs = 15_000): Promise<{ code: number | null; lines: string[] }> {
  const { daemon } = weft;
  await until(() => !daemon.running, timeoutMs);
  if (daemon.running) await daemon.stop('SIGKILL');
  await sleep(20);
  return { code: daemon.child.exitCode, lines: daemon.log().trim().split('\n') };
}

/** Waits until `so` holds; false if it does not within `timeoutMs`. */
export async function until(so: () => boolean | Promise<boolean>, timeoutMs = 10_000): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    if (await so()) return true;
    if (performance.now() > deadline) return false;
    await sleep(20);
  }
}

// --- what they say ---

/** The lines of a subnet.env. */
export function readSubnetEnv(path: string): Record<string, string> {
  const lines = readFileSync(path, 'utf8').trim().split('\n');
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
}

/** The subnet in a subnet.env, by its base, e.g. 10.5.7.0/24 and fd00:5:0:7::/64. */
export function subnetsIn(path: string): { v4: string | undefined; v6: string | undefined } {
  const { FLANNEL_SUBNET: v4, FLANNEL_IPV6_SUBNET: v6 } = readSubnetEnv(path);
  return {
    v4: v4?.replace(/(\d+)\//, (_, last) => `${Number(last) - 1}/`),
    v6: v6?.replace(/1\//, '/'),
  };
}

/** Gives the host's `lan0` and its client the addresses of the subnet that its daemon got. */
export function settle(host: Host, subnetFile = subnetFileOf(host)): Host {
  const { v4, v6 } = subnetsIn(subnetFile);
  return moveHost(host, v4, v6);
}

/** An HTTP answer of a daemon, headers and all; empty if nobody answers. */
async function get(weft: Weft, path: string): Promise<string> {
  const [address, port] = METRICS.split(':');
  const script = `exec 3<>/dev/tcp/${address}/${port} && printf 'GET ${path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3`;
  return (await weft.host.ns.run('timeout', ['5', 'bash', '-c', script])).stdout;
}

export interface Readiness {
  readonly code: number;
  readonly text: string;
  /** The daemon's clock when it answered, milliseconds. */
  readonly date: number;
  /** What it says after "stale since", milliseconds; undefined: not stale. */
  readonly staleSince: number | undefined;
}

export async function readyz(weft: Weft): Promise<Readiness> {
  const answer = await get(weft, '/readyz');
  const text = answer.split('\r\n\r\n')[1]?.trim() ?? '';
  const since = /, stale since (\S+): \S/.exec(text)?.[1];
  return {
    code: Number(/^HTTP\/1\.\d (\d+)/.exec(answer)?.[1]),
    text,
    date: Date.parse(/^date: (.*)$/im.exec(answer)?.[1] ?? ''),
    staleSince: since === undefined ? undefined : Date.parse(since),
  };
}

export interface RegistryMetrics {
  readonly up: number | undefined;
  /** Seconds since 1970; 0: not stale. */
  readonly staleSince: number | undefined;
  readonly leaseSecondsLeft: number | undefined;
  readonly peers: number | undefined;
  readonly routes: number | undefined;
  readonly workerRestarts: number | undefined;
}

export async function registryMetrics(weft: Weft): Promise<RegistryMetrics> {
  const text = await get(weft, '/metrics'); // which gives up on a daemon that hangs
  const sample = (name: string): number | undefined => {
    const value = new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1];
    return value === undefined ? undefined : Number(value);
  };
  return {
    up: sample('weft_registry_up'),
    staleSince: sample('weft_registry_stale_since_timestamp_seconds'),
    leaseSecondsLeft: sample('weft_lease_seconds_left'),
    peers: sample('weft_peers'),
    routes: sample('weft_routes'),
    workerRestarts: sample('weft_worker_restarts_total'),
  };
}

/** Runs `weft` (dist/src/cli.js) here. */
export function weft(...args: string[]): { code: number | null; stdout: string; stderr: string } {
  const done = spawnSync(process.execPath, [WEFT, ...args], { encoding: 'utf8', timeout: 15_000 });
  return { code: done.status, stdout: done.stdout, stderr: done.stderr };
}

/** Those of `addresses` that do not answer one of three pings from `host`'s namespace or its client's. */
export async function unanswered(
  from: Host,
  where: 'host' | 'client',
  addresses: readonly string[],
): Promise<string[]> {
  const script = 'for a; do { ping -n -c3 -i0.2 -W2 "$a" >/dev/null || echo "$a"; } & done; wait';
  const ns = where === 'host' ? from.ns : from.client;
  const { stdout }: Finished = await ns.run('sh', ['-c', script, 'sh', ...addresses]);
  return stdout.split('\n').filter(Boolean).sort();
}

// --- a small disk ---

/** Of the folders that a SIGKILL may leave behind; they carry the pid. */
const DISK = 'weft-disk-';
const disks = new Set<SmallDisk>();

/**
 * A tmpfs of its own size, mounted on a folder beside the lab's. Daemons see it if they start after it was made (`ip netns
 * exec` copies the mounts there are).
 */
export class SmallDisk {
  readonly path: string;
  readonly #filler: string;

  constructor(size: string) {
    removeDeadDisks();
    this.path = mkdtempSync(join(tmpdir(), `${DISK}${process.pid}-`));
    this.#filler = join(this.path, 'filler');
    const done = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size},mode=755`, 'none', this.path]);
    if (done.status !== 0) {
      rmdirSync(this.path);
      throw new Error(`mount: ${done.stderr}`);
    }
    process.prependOnceListener('exit', () => this.remove());
    disks.add(this);
  }

  get freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.path);
    return bavail * bsize;
  }

  /** Takes all the space that is left. */
  fill(): void {
    spawnSync('dd', ['if=/dev/zero', `of=${this.#filler}`, 'bs=4096', 'oflag=append', 'conv=notrunc']);
    if (this.freeBytes > 0) throw new Error(`${this.path} has ${this.freeBytes} bytes left`);
  }

  /** Gives it back. */
  release(): void {
    rmSync(this.#filler, { force: true });
  }

  remove(): void {
    if (!disks.delete(this)) return;
    spawnSync('umount', ['--lazy', this.path]);
    rmSync(this.path, { recursive: true, force: true });
  }
}

function removeDeadDisks(): void {
  for (const path of foldersOfTheDead(DISK)) {
    spawnSync('umount', ['--lazy', path]);
    rmSync(path, { recursive: true, force: true });
  }
}

/** Temporary folders named `<prefix><pid>-…` of processes that are gone: a SIGKILL lets nobody clean up. */
function foldersOfTheDead(prefix: string): string[] {
  return readdirSync(tmpdir())
    .filter((name) => {
      const pid = new RegExp(`^${prefix}(\\d+)-`).exec(name)?.[1];
      return pid !== undefined && !existsSync(`/proc/${pid}`);
    })
    .map((name) => join(tmpdir(), name));
}

// --- others who use the registry's file ---

const LMDB = import.meta.resolve('lmdb');

const HOLDERS = {
  /** A reader that stays where it is, as a backup does: pages of its time can't be used again, so every write needs space. */
  reader: `const transaction = db.useReadTransaction(); db.getRange({ limit: 1, transaction }).asArray; hold();`,
  /** A process that was stopped in the middle of a write, as a weftd would be: it holds the lock of the file `writer` as well. */
  writer: `db.transactionSync(() => hold());`,
};

/** A process that holds a transaction of the LMDB environment in `folder` until it is stopped. */
export async function holdTransaction(host: Host, folder: string, kind: keyof typeof HOLDERS): Promise<Daemon> {
  const program = `import { open } from ${JSON.stringify(LMDB)};
    import { writeSync } from 'node:fs';
    const db = open({ path: ${JSON.stringify(folder)}, noSubdir: false, maxDbs: 16 });
    const hold = () => { writeSync(1, 'held\\n'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0); };
    ${HOLDERS[kind]}`;
  const name = `hold-${kind}-${++holders}`;
  const node = [process.execPath, '--input-type=module', '-e', program];
  const [command, ...args] = kind === 'reader' ? node : ['flock', '--no-fork', join(folder, 'writer'), ...node];
  const daemon = host.ns.start(name, command, args);
  await daemon.ready('held');
  return daemon;
}
let holders = 0;

/** The LMDB data files below a folder. */
export function dataFiles(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => /(^|\/)[^/]*\.(mdb|lmdb)$/.test(name) && !/lock[^/]*$/.test(name))
    .map((name) => join(folder, name));
}

// --- read-only ---

/**
 * Makes a data file unwritable even for root, where the file system can; returns how to undo it, or undefined. The file's
 * folder stays writable.
 */
export function makeImmutable(path: string): (() => void) | undefined {
  const undo = (): void => void spawnSync('chattr', ['-i', path]);
  const done = spawnSync('chattr', ['+i', path]);
  if (done.status !== 0) return undefined;
  process.prependOnceListener('exit', undo); // else the lab's folder could not be removed
  return undo;
}

/** Lets the next lab of that purpose remove what a killed one left immutable; to be called before it is made. */
export function unlockDead(purpose: string): void {
  for (const path of foldersOfTheDead(`weft-${purpose}-`)) spawnSync('chattr', ['-R', '-i', path], { stdio: 'ignore' });
}
