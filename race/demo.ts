/**
 * The demo: two hosts in network namespaces, a real weftd on each, and packets between the clients behind them.
 *
 *     sudo npm run demo [-- --seconds N] [-- --keep] [-- --clean]
 *
 * There is no peers file: each weftd takes a subnet by itself, and its client gets an address out of it. The demo shows the
 * topology, a ping, a TCP transfer, the same over the kernel's VXLAN on the same veth, the counters, and how a daemon that was
 * killed comes back while the registry is away. Then it removes everything, on Ctrl-C too. With --keep it leaves the hosts
 * running, until --clean.
 *
 * There can be one demo on a machine: its namespaces have fixed names, short enough to type. LOCK says who runs it.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import {
  answersPing,
  type Finished,
  type Host,
  hostsImpossible,
  ipv6Works,
  Lab,
  moveHost,
  NETWORK4,
  NETWORK6,
  namespacesNamed,
  removeNamespaces,
  run,
  sleep,
  twoHosts,
} from './hosts.js';
import { median } from './measures.js';
import { readMetrics, showCounters } from './scrape.js';
import { DAEMON, EmbeddedWeftd, embeddedWeft, kernelVxlan, type Subject, use } from './subjects.js';

const LOCK = '/run/weft-demo.json';
const PREFIX = 'weft-demo-';
const METRICS = '127.0.0.1:9469';
const PROGRAMS: Readonly<Record<string, string>> = { ip: 'iproute2', ping: 'iputils-ping', iperf3: 'iperf3' };

const USAGE = `usage: demo [--seconds N] [--keep | --clean]
  --seconds  length of each TCP transfer (default 5)
  --keep     leave the two hosts running, and say how to look around
  --clean    remove what --keep left`;

class UsageError extends Error {}

let stopped = false;
const say = (text = ''): boolean => !stopped && process.stdout.write(`${text}\n`);
const live = process.stdout.isTTY;
/** Replaces the terminal's current line; says nothing where there is no terminal. */
const status = (text: string): boolean => live && !stopped && process.stdout.write(`\r\x1b[K${text}`);

interface Options {
  readonly seconds: number;
  readonly keep: boolean;
  readonly clean: boolean;
}

function readOptions(): Options {
  try {
    const { values } = parseArgs({
      options: {
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
    const seconds = Number(values.seconds);
    if (!Number.isInteger(seconds) || seconds < 1 || seconds > 3600) {
      throw new Error(`--seconds ${values.seconds}: a whole number from 1 to 3600`);
    }
    if (values.keep && values.clean) throw new Error('--keep and --clean exclude each other');
    return { seconds, keep: values.keep, clean: values.clean };
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

// --- the show ---

/** Starts the daemon, says what was said to it and what it took, and addresses its host and client out of that. */
async function showStart(weftd: EmbeddedWeftd): Promise<Host> {
  const command = `  ${weftd.host.letter}# weftd ${weftd.args.join(' ')}`.padEnd(58);
  status(`${command} …`);
  const begun = performance.now();
  const subnets = await weftd.start();
  status('');
  say(`${command} ready after ${since(begun)}, took ${subnets.join(', ')}`);
  const [v4, v6] = subnets;
  return moveHost(weftd.host, v4, v6);
}

function showTopology(a: Host, b: Host): void {
  const cell = (text: string): string => ` ${text} `.padEnd(16);
  const client = (host: Host): string => host.client4.padEnd(10);
  say(`
    client-a               host a                                          host b               client-b
  ┌────────────┐      ┌────────────────┐                             ┌────────────────┐      ┌────────────┐
  │ ${client(a)} ├──────┤${cell('weftd')}│    underlay: a veth pair    │${cell('weftd')}├──────┤ ${client(b)} │
  └────────────┘      │${cell(a.underlay4)}╞═════════════════════════════╡${cell(b.underlay4)}│      └────────────┘
                      │${cell(a.subnet4)}│    IP in UDP, port 8285     │${cell(b.subnet4)}│
                      └───────┬────────┘                             └───────┬────────┘
                              └───── registry: a folder that both use ───────┘
`);
}

/** The lines of each daemon's subnet.env that say what is the host's own. */
function showSubnetFiles(weftds: readonly EmbeddedWeftd[]): void {
  say('What each wrote into its file subnet.env, for other programs to read (among other lines):');
  for (const { host, subnetFile } of weftds) {
    const lines = readFileSync(subnetFile, 'utf8').split('\n');
    say(`  host ${host.letter}  ${lines.filter((line) => /_(SUBNET|MTU)=/.test(line)).join('  ')}`);
  }
  say();
}

const since = (begun: number): string => `${((performance.now() - begun) / 1000).toFixed(1)} s`;

async function showPing(from: Host, address: string): Promise<void> {
  await answersPing(from.client, address); // the first waits for the neighbours' addresses
  const { stdout } = await from.client.run('ping', ['-n', '-c', '10', '-i', '0.1', '-W', '2', address]);
  const times = [...stdout.matchAll(/time=([\d.]+) ms/g)].map((match) => Number(match[1]));
  if (times.length === 0) throw new Error(`no answer from ${address} (${from.client.name} pinged it ten times)`);
  say(`  ping ${address.padEnd(15)} ${times.length} of 10 answered, median ${median(times).toFixed(3)} ms`);
}

/** One TCP transfer by iperf3 with the rate shown as it runs. Gbit/s received. */
async function transfer(label: string, a: Host, b: Host, seconds: number): Promise<number> {
  const server = b.client.spawn('iperf3', ['-s', '-1', '--forceflush'], { stdio: ['ignore', 'pipe', 'ignore'] });
  const listening = createInterface({ input: server.stdout! });
  await new Promise((resolve) => listening.on('line', resolve).on('close', resolve));
  const args = ['-c', b.client4, '-t', `${seconds}`, '-i', '0.5', '-f', 'm', '--forceflush'];
  const client = a.client.spawn('iperf3', args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let problem = '';
  client.stderr!.setEncoding('utf8').on('data', (text: string) => {
    problem += text;
  });
  let received: number | undefined;
  for await (const line of createInterface({ input: client.stdout! })) {
    if (line.includes('error')) problem += line;
    const interval = /-([\d.]+)\s+sec\s+[\d.]+ \w+\s+([\d.]+) Mbits\/sec/.exec(line);
    if (!interval) continue;
    const rate = Number(interval[2]) / 1000;
    if (line.includes('receiver')) received = rate;
    else if (!line.includes('sender'))
      status(`  ${label.padEnd(15)} ${bar(rate)} ${rate.toFixed(2)} Gbit/s  ${interval[1]} s`);
  }
  server.kill('SIGKILL');
  status('');
  if (received === undefined) throw new Error(`iperf3: ${problem.trim().split('\n')[0] || 'the transfer broke off'}`);
  say(`  ${label.padEnd(15)} ${bar(received)} ${received.toFixed(2)} Gbit/s over ${seconds} s`);
  return received;
}

/** A bar on which 30 Gbit/s fill 30 columns. */
const bar = (gbits: number): string => '█'.repeat(Math.min(30, Math.max(1, Math.round(gbits)))).padEnd(30, '·');

/** The daemon of `host` crashes and starts again while the registry is away; then the registry comes back. */
async function showCrash(from: Host, host: Host, weftd: EmbeddedWeftd): Promise<void> {
  const { registry } = weftd;
  const step = (text: string, came: string): boolean => say(`  ${text.padEnd(27)} ${came}`);
  say(`weftd on host ${host.letter} crashes, and starts again while the registry is away:`);
  const longestSilence = pingAllTheTime(from, host.client4);
  await sleep(500);
  await weftd.kill();
  step('kill -9', 'its subnet stays its own for up to 60 s');
  renameSync(registry, `${registry}.away`);
  step('mv registry registry.away', 'nobody can ask it');
  const begun = performance.now();
  const [subnet] = await weftd.start();
  if (subnet !== host.subnet4) throw new Error(`weftd came back on host ${host.letter} with ${subnet}`);
  step(`weftd ${weftd.args.join(' ')}`, `ready after ${since(begun)} on its own ${subnet}, from what it remembers`);
  if (!(await answersPing(from.client, host.client4))) throw new Error(`${host.client4} answers no more`);
  step('ping client-a to client-b', `answered again; no answer for ${(await longestSilence()).toFixed(1)} s in all`);
  const indent = ''.padEnd(30);
  step('its /readyz says', (await readyz(host)).replace(': registry', `:\n${indent}registry`));
  renameSync(`${registry}.away`, registry);
  const back = performance.now();
  step('mv registry.away registry', 'it is back');
  let said = await readyz(host);
  while (said !== 'weftd is ready') {
    if (performance.now() > back + 10_000) throw new Error(`weftd did not find the registry again: ${said}`);
    said = await readyz(host);
  }
  step('its /readyz says', said);
}

/** Pings until the result is called, which resolves to the longest time between two answers, in seconds. */
function pingAllTheTime(from: Host, address: string): () => Promise<number> {
  const ping = from.client.spawn('ping', ['-n', '-D', '-i', '0.05', address], { stdio: ['ignore', 'pipe', 'ignore'] });
  let text = '';
  ping.stdout!.setEncoding('utf8').on('data', (more: string) => {
    text += more;
  });
  const ended = new Promise((resolve) => ping.once('close', resolve));
  return async () => {
    ping.kill('SIGINT');
    await ended;
    const times = [...text.matchAll(/^\[([\d.]+)\] .* time=/gm)].map((match) => Number(match[1]));
    return Math.max(...times.slice(1).map((time, i) => time - times[i]));
  };
}

/** What a daemon says of itself. There may be no curl. */
async function readyz({ ns }: Host): Promise<string> {
  const fetched = 'fetch(process.argv[1]).then((r) => r.text()).then((text) => process.stdout.write(text))';
  const { stdout } = await ns.run(process.execPath, ['-e', fetched, `http://${METRICS}/readyz`]);
  return stdout.trim();
}

interface Shown {
  readonly weftds: readonly EmbeddedWeftd[];
  readonly hosts: readonly Host[];
}

async function show(lab: Lab, options: Options): Promise<Shown> {
  const inside = ipv6Works() ? [NETWORK4, NETWORK6] : [NETWORK4];
  const pair = twoHosts(lab);
  for (const { client } of pair) client.sysctl({ 'net/ipv4/tcp_no_metrics_save': 1 });
  const weftds = pair.map((host, i) => {
    const args = [...(i === 0 ? ['--network', inside.join(',')] : []), '--iface', 'eth0'];
    return new EmbeddedWeftd(host, args, ['--metrics-address', METRICS]);
  });
  say('Two hosts on this machine, as network namespaces. The first names the network, and each takes a subnet of it:');
  const hosts: Host[] = [];
  for (const weftd of weftds) hosts.push(await showStart(weftd));
  say('  (and --registry-path and --state-dir in a folder of the demo: else they would be below /var/lib/weft)');
  const [a, b] = hosts;
  showTopology(a, b);
  showSubnetFiles(weftds);

  const through = async (subject: Subject): Promise<void> => use(subject, hosts);
  await through(embeddedWeft);
  say('Through Weft, from client-a to client-b:');
  await showPing(a, b.client4);
  if (inside.length > 1) await showPing(a, b.client6);
  say();
  say('One TCP flow from client-a to client-b:');
  const ours = await transfer('Weft', a, b, options.seconds);
  const vxlan = kernelVxlan(hosts);
  await vxlan.start();
  await through(vxlan);
  const kernels = await transfer('kernel VXLAN', a, b, options.seconds);
  await through(embeddedWeft);
  for (const host of hosts) host.ns.ip('link del vxlan0');
  say(`  Weft carries ${(ours / kernels).toFixed(2)} × what the kernel's VXLAN does on the same veth.`);
  say();
  say('What the two daemons counted (without what is zero on both):');
  say(showCounters(['host a', 'host b'], await Promise.all(hosts.map((host) => readMetrics(host.ns, METRICS)))));
  say();
  await showCrash(a, b, weftds[1]);
  return { weftds, hosts };
}

function explainKept({ weftds, hosts: [, b] }: Shown): void {
  const inside = (where: string, command: string): string => `  sudo ip netns exec ${PREFIX}${where} ${command}`;
  say(`
The two hosts keep running. To look around:
${inside('client-a', `ping ${b.client4}`)}
${inside('client-b', 'iperf3 -s -1 &')}
${inside('client-a', `iperf3 -c ${b.client4}`)}
${inside('a', 'ip route')}
${inside('a', `curl -s http://${METRICS}/metrics`)}
${inside('b', `curl -s http://${METRICS}/readyz`)}
  sudo cat ${weftds[1].subnetFile}
  sudo tail -f ${weftds[0].logFile}
To take the registry away, and see that packets still flow and what /readyz says (then move it back):
  sudo mv ${weftds[0].registry} ${weftds[0].registry}.away
To remove it all:
  sudo npm run demo -- --clean`);
}

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
      stopped = true;
    });
  }
  try {
    await installMissing();
    const impossible = hostsImpossible();
    if (impossible) throw new Error(impossible);
    const shown = await show(lab, options);
    if (options.keep) {
      lab.keep();
      writeFileSync(LOCK, lockContent({ dir: lab.dir, kept: true }));
      explainKept(shown);
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
