/**
 * Every subject of the race that is installed, side by side on two hosts: it is switched to, carries pings and TCP both
 * ways, byte for byte, and by its own device; and nothing of any is left behind, neither by a lab that is closed nor by a race
 * that gets a Ctrl-C.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import {
  answersPing,
  type Host,
  Lab,
  makeHosts,
  type Namespace,
  namespacesNamed,
  sleep,
  twoHosts,
} from '../../race/hosts.js';
import {
  installed,
  makeSubject,
  SUBJECTS,
  type Subject,
  type SubjectName,
  use,
  versions,
} from '../../race/subjects.js';
import { Agent, MiB } from '../hosts/lib/agents.js';
import { type Assertions, FULL, impossible } from '../hosts/lib/weft.js';

const why = impossible();
t.setTimeout(0);

const RACE = fileURLToPath(new URL('../../race/race.js', import.meta.url));
const BYTES = (FULL ? 64 : 4) * MiB;
/** What subjects' programs would leave if they were asked to stay, or killed: sockets, pid files, devices of the machine. */
const SHARED_FOLDERS = ['/run', '/var/run/wireguard', '/var/run/openvswitch', '/var/log/openvswitch', '/sys/class/net'];
const TRACES = /^(wg0|tinc|openvpn-|fastd|ovs-|under1|wireguard|openvswitch|db\.sock|conf\.db)/;

/** Those that can run here; says which cannot. */
function present(t: Assertions): SubjectName[] {
  return SUBJECTS.filter((name) => {
    const here = installed(name);
    if ('missing' in here) t.comment(`SKIPPED: ${name}, which is not installed: ${here.missing}`);
    return !('missing' in here);
  });
}

/** Neither the kernel's work nor Weft's. */
const isProgram = (name: SubjectName): boolean => name in versions([name]);

function traces(): string[] {
  const of = (folder: string): string[] =>
    existsSync(folder) ? readdirSync(folder).map((name) => `${folder}/${name}`) : [];
  return SHARED_FOLDERS.flatMap(of).filter((path) => TRACES.test(path.slice(path.lastIndexOf('/') + 1)));
}

/** The processes in all namespaces whose names begin with `prefix`. */
function processesIn(prefix: string): number[] {
  const pids = namespacesNamed(prefix).map((name) => spawnSync('ip', ['netns', 'pids', name], { encoding: 'utf8' }));
  return pids.flatMap(({ stdout }) => stdout.split('\n').filter(Boolean).map(Number));
}

/** Nothing that belonged to a lab is there any more. `pids` and `before` were taken while it was up, and before. */
async function assertGone(t: Assertions, prefix: string, pids: readonly number[], before: string[]): Promise<void> {
  const alive = (): number[] => pids.filter((pid) => existsSync(`/proc/${pid}`));
  for (let tries = 0; tries < 50 && alive().length > 0; tries++) await sleep(20);
  t.same(alive(), [], `${prefix}: of ${pids.length} processes none is left`);
  t.same(namespacesNamed(`${prefix}-`), [], 'nor is a namespace');
  const folders = readdirSync(tmpdir()).filter((name) => name.startsWith(`${prefix}-`));
  t.same(folders, [], 'nor a folder');
  t.same(traces(), before, 'nor a socket, file or device outside of it');
}

/** Bytes that a device sent and received. */
function carriedBy(ns: Namespace, device: string): number[] {
  const counters = ['rx_bytes', 'tx_bytes'].map((name) => `/sys/class/net/${device}/statistics/${name}`);
  return ns
    .runSync('cat', ...counters)
    .trim()
    .split('\n')
    .map(Number);
}

async function carries(t: Assertions, subject: Subject, a: Host, b: Host, agent: Agent): Promise<void> {
  t.ok(await answersPing(a.client, b.client4), 'a ping from host a is answered');
  t.ok(await answersPing(b.client, a.client4), 'and from host b');
  const device = subject.device(a, b);
  const before = carriedBy(a.ns, device);
  const { flows, seconds } = await agent.tcp(b.client4, { bytes: BYTES, duplex: true });
  const wrong = flows.filter(({ sent, received, wrongAt }) => sent !== received || wrongAt >= 0);
  t.same(wrong, [], `TCP, ${BYTES / MiB} MiB each way: the same bytes at both ends`);
  t.equal(flows.length, 2, 'both ways');
  const moved = carriedBy(a.ns, device).map((now, i) => now - before[i]);
  t.ok(
    moved.every((bytes) => bytes > BYTES),
    `all of it by ${device}`,
  );
  t.comment(`${subject.name}: ${seconds.toFixed(2)} s`);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('side by side', async (t) => {
    const names = present(t);
    for (const [name, version] of Object.entries(versions(names))) t.match(version, /\d/, `${name}: ${version}`);
    const before = traces();
    const lab = new Lab('test-subjects');
    try {
      const [a, b] = twoHosts(lab);
      const agent = await Agent.start(a.client);
      await Agent.start(b.client);
      const subjects = names.map((name) => makeSubject(name, lab, [a, b], []));
      for (const subject of subjects) await subject.start();
      for (const subject of subjects) {
        await t.test(subject.name, async (t) => {
          await use(subject, [a, b]);
          await carries(t, subject, a, b, agent);
        });
      }
      // The other way round: each of them follows another one than before.
      for (const subject of subjects.toReversed()) await use(subject, [a, b]);
      const pids = processesIn(`${lab.prefix}-`);
      await lab.close();
      await assertGone(t, lab.prefix, pids, before);
    } finally {
      await lab.close();
    }
  });

  await t.test('five hosts, as imix has them', async (t) => {
    const lab = new Lab('test-subjects');
    try {
      const hosts = makeHosts(lab, { count: 5, join: 'veth', clients: 'shared' });
      for (const name of present(t).filter(isProgram)) {
        const subject = makeSubject(name, lab, hosts, []);
        await subject.start();
        await use(subject, hosts);
        t.pass(`${name}: all clients answer`);
      }
    } finally {
      await lab.close();
    }
  });

  await t.test('a race that gets a Ctrl-C', async (t) => {
    const others = present(t).filter(isProgram);
    const before = traces();
    const args = ['--subjects', ['weft-udp', ...others].join(','), '--measures', 'ping', '--rounds', '99'];
    const race = spawn(process.execPath, [RACE, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    race.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    const ended = new Promise((resolve) => race.once('exit', resolve));
    try {
      while (race.exitCode === null && race.signalCode === null && !said.includes('] ping')) await sleep(50);
      const prefix = `weft-race-${race.pid}`;
      const pids = processesIn(`${prefix}-`);
      race.kill('SIGINT');
      t.equal(await ended, 130, `it ends as interrupted; it had said: ${said.trim().split('\n').at(-1)}`);
      t.ok(pids.length > others.length, 'it had started them');
      await assertGone(t, prefix, pids, before);
    } finally {
      race.kill('SIGTERM');
      await ended;
    }
  });
}
