/**
 * The demo: two hosts in network namespaces, a real weftd on each, and packets between the clients behind them.
 *
 *     sudo npm run demo [-- --mode l2] [-- --seconds N] [-- --keep] [-- --clean]
 *
 * There is no peers file: the daemons find each other by an embedded registry. In layer 3 (demo-layer3.ts) each takes a subnet
 * by itself, and its client gets an address out of it: a ping, a TCP transfer, the same over the kernel's VXLAN on the same
 * veth, the counters, and how a daemon that was killed comes back while the registry is away. In layer 2 (demo-layer2.ts) each
 * stretches one Ethernet segment to a bridge with two clients. Then everything is removed, on Ctrl-C too. With --keep the hosts
 * are left running, until --clean.
 *
 * There can be one demo on a machine: its namespaces have fixed names, short enough to type. LOCK says who runs it.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { showLayer2 } from './demo-layer2.js';
import { showLayer3 } from './demo-layer3.js';
import { type Finished, hostsImpossible, Lab, namespacesNamed, removeNamespaces, run } from './hosts.js';
import { say, silence, status } from './show.js';
import { DAEMON } from './subjects.js';

const LOCK = '/run/weft-demo.json';
const PREFIX = 'weft-demo-';
const PROGRAMS: Readonly<Record<string, string>> = { ip: 'iproute2', ping: 'iputils-ping', iperf3: 'iperf3' };

const USAGE = `usage: demo [--mode l3|l2] [--seconds N] [--keep | --clean]
  --mode     l3 (default): subnets and routes; l2: one Ethernet segment with two clients on each host
  --seconds  length of each TCP transfer (default 5)
  --keep     leave the two hosts running, and say how to look around
  --clean    remove what --keep left`;

class UsageError extends Error {}

interface Options {
  readonly mode: 'l3' | 'l2';
  readonly seconds: number;
  readonly keep: boolean;
  readonly clean: boolean;
}

function readOptions(): Options {
  try {
    const { values } = parseArgs({
      options: {
        mode: { type: 'string', default: 'l3' },
        seconds: { type: 'string', default: '5' },
        keep: { type: 'boolean', default: false },
        clean: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) {
      say(USAGE);
      process.exit(0);
    }
    const { mode } = values;
    if (mode !== 'l3' && mode !== 'l2') throw new Error(`--mode ${mode}: l3 or l2`);
    const seconds = Number(values.seconds);
    if (!Number.isInteger(seconds) || seconds < 1 || seconds > 3600) {
      throw new Error(`--seconds ${values.seconds}: a whole number from 1 to 3600`);
    }
    if (values.keep && values.clean) throw new Error('--keep and --clean exclude each other');
    return { mode, seconds, keep: values.keep, clean: values.clean };
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

// --- one demo at a time ---

interface LockContent {
  readonly pid: number;
  /** When that process began, in clock ticks since boot, for the kernel gives pids out again. */
  readonly begun: string;
  /** Its folder of logs. */
  readonly dir?: string;
  /** It ended and left its hosts running. */
  readonly kept?: boolean;
}

/** Field 22 of /proc/PID/stat; the command in field 2 may hold spaces, so count from its closing bracket. */
function begunAt(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

function readLock(): LockContent | undefined {
  try {
    return JSON.parse(readFileSync(LOCK, 'utf8')) as LockContent;
  } catch {
    return undefined;
  }
}

/** Fails if another demo runs or, unless `cleaning`, was kept. What one that is gone left behind is removed. */
function takeLock(cleaning: boolean): void {
  const other = readLock();
  if (other && !other.kept && begunAt(other.pid) === other.begun) {
    throw new Error(`another demo is running (pid ${other.pid}): wait for it, or stop it with Ctrl-C there`);
  }
  if (other?.kept && !cleaning && namespacesNamed(PREFIX).length > 0) {
    throw new Error('a demo was left running with --keep: remove it first, with sudo npm run demo -- --clean');
  }
  rmSync(LOCK, { force: true });
  try {
    // Of two that begin at the same moment one fails here.
    writeFileSync(LOCK, lockContent({}), { flag: 'wx' });
  } catch {
    throw new Error('another demo has just been started: wait for it');
  }
  process.on('exit', () => {
    const lock = readLock();
    if (lock?.pid === process.pid && !lock.kept) rmSync(LOCK, { force: true });
  });
  const removed = removeNamespaces(PREFIX);
  if (other?.dir?.startsWith(join(tmpdir(), PREFIX))) rmSync(other.dir, { recursive: true, force: true });
  if (cleaning) say(removed > 0 ? 'Removed: nothing of the demo is left.' : 'There was nothing to remove.');
  else if (removed > 0) say('Removed what an earlier demo, killed half-way, had left.');
}

const lockContent = (more: Partial<LockContent>): string =>
  JSON.stringify({ pid: process.pid, begun: begunAt(process.pid) ?? '', ...more } satisfies LockContent);

// --- what it needs ---

const installed = (program: string): boolean => !spawnSync(program, ['-V']).error;

async function installMissing(): Promise<void> {
  const missing = Object.keys(PROGRAMS).filter((program) => !installed(program));
  if (missing.length === 0) return;
  const packages = missing.map((program) => PROGRAMS[program]);
  if (spawnSync('apt-get', ['--version']).error) {
    throw new Error(`${missing.join(', ')} missing and no apt-get here: install ${packages.join(' ')} and start again`);
  }
  say(`Installing ${packages.join(', ')} with apt-get, which the demo needs …`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = (...args: string[]): Promise<Finished> => run('apt-get', ['-qq', ...args], { env });
  const install = ['install', '-y', '--no-install-recommends', ...packages];
  if ((await apt(...install)).code === 0) return;
  say('… after apt-get update, since the package lists are missing or old …');
  await apt('update');
  const done = await apt(...install);
  if (done.code !== 0) {
    throw new Error(`apt-get install ${packages.join(' ')} failed: ${done.stderr.trim().split('\n')[0]}`);
  }
}

// --- and away ---

async function main(): Promise<void> {
  const options = readOptions();
  if (process.geteuid?.() !== 0) throw new Error('needs root, to make network namespaces: sudo npm run demo');
  if (!existsSync(DAEMON)) throw new Error('weftd is not built (dist/src/main.js is missing): npm run build');
  takeLock(options.clean);
  if (options.clean) return;
  const lab = new Lab('demo', { single: true });
  writeFileSync(LOCK, lockContent({ dir: lab.dir }));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      say('\nStopped: removing the hosts.');
      silence();
    });
  }
  try {
    await installMissing();
    const impossible = hostsImpossible();
    if (impossible) throw new Error(impossible);
    const show = options.mode === 'l2' ? showLayer2 : showLayer3;
    const lookAround = await show(lab, options.seconds);
    if (options.keep) {
      lab.keep();
      writeFileSync(LOCK, lockContent({ dir: lab.dir, kept: true }));
      say('\nThe two hosts keep running. To look around:');
      say(lookAround);
      say('To remove it all:\n  sudo npm run demo -- --clean');
    }
  } catch (error) {
    if (!(await lab.interrupted())) throw error;
  } finally {
    await lab.close();
  }
}

// Whoever reads may stop: `demo | head`.
process.stdout.on('error', () => process.exit(1));

try {
  await main();
} catch (error) {
  status('');
  process.stderr.write(`demo: ${(error instanceof Error ? error.message : String(error)).split('\n')[0]}\n`);
  if (error instanceof UsageError) process.stderr.write(`${USAGE}\n`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
