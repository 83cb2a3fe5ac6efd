/**
 * A real etcd goes away under two hosts that forward as fast as half of what they carry without loss. Nobody may notice: no packet
 * is lost, the control thread sleeps, the log says it once, and when etcd is back its news are in force at once. And a daemon
 * that is killed meanwhile forwards again by what it remembers.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { answersPing, type Host, Lab, makeHosts, sleep } from '../../race/hosts.js';
import { Blaster } from '../../race/lossless.js';
import { Etcd, etcdMissing } from '../lib/etcd.js';
import { Agent } from './lib/agents.js';
import { readyz, registryMetrics, settle, subnetsIn, until } from './lib/embedded.js';
import { FULL, impossible, METRICS, Weft } from './lib/weft.js';

const why = impossible() ?? etcdMissing();
t.setTimeout(0);

const PREFIX = '/coreos.com/network';
const ETCD = '192.168.77.250';
const OUTAGE_SECONDS = FULL ? 180 : 25;
/** What the issue promises once etcd is back. */
const RECOVERED_WITHIN_MS = 5000;
/** Of one core, while etcd is away. */
const MOST_CPU = 0.01;
/** All that a daemon may say of an outage, whatever its length: that it began, that it ended, and what changed since. */
const MOST_LINES = 4;
/** A peer that exists in etcd only. */
const STRANGER = { key: `${PREFIX}/subnets/10.5.250.0-24`, value: '{"PublicIP":"192.168.77.99","PublicIPv6":null}' };

// --- daemons ---

const stateOf = (host: Host): string => join(host.ns.lab.dir, `state-${host.letter}`);
const subnetFileOf = (host: Host): string => join(host.ns.lab.dir, `subnet-${host.letter}.env`);

function spawnWeft(host: Host, etcd: Etcd, ...more: string[]): Weft {
  const own = [`--state-dir=${stateOf(host)}`, `--subnet-file=${subnetFileOf(host)}`, `--metrics-address=${METRICS}`];
  return Weft.spawnBare(host, [...etcd.flags, '--iface=eth0', ...own, ...more]);
}

const linesOf = (weft: Weft): string[] => weft.daemon.log().split('\n').filter(Boolean);
const peersOf = async (weft: Weft): Promise<number | undefined> => (await registryMetrics(weft)).peers;

interface Rig {
  readonly lab: Lab;
  readonly hosts: Host[];
  readonly etcd: Etcd;
  readonly wefts: Weft[];
}

/** Two hosts with a daemon each, and etcd beside their switch. */
async function makeRig(t: Test, purpose: string, running = 2): Promise<Rig> {
  const lab = new Lab(purpose);
  t.teardown(() => lab.close());
  const hosts = makeHosts(lab, { count: 2, join: 'bridge', clients: 'own' });
  const underlay = lab.namespaces.find(({ name }) => name.endsWith('-underlay'));
  if (!underlay) throw new Error('no underlay');
  underlay.ip(`addr add ${ETCD}/24 dev switch`);
  const etcd = await Etcd.start({ namespace: underlay.name, address: ETCD });
  t.teardown(() => etcd.close());
  await etcd.put(`${PREFIX}/config`, '{"Network":"10.5.0.0/16","SubnetMax":"10.5.200.0","Backend":{"Type":"udp"}}');
  const wefts = hosts.slice(0, running).map((host) => spawnWeft(host, etcd));
  for (const [i, weft] of wefts.entries()) {
    await weft.ready();
    hosts[i] = settle(hosts[i], subnetFileOf(hosts[i]));
  }
  for (const weft of wefts) {
    t.ok(await until(async () => (await peersOf(weft)) === running - 1), `${weft.host.letter}: knows the other`);
  }
  return { lab, hosts, etcd, wefts };
}

// --- what it costs ---

/** Clock ticks (10 ms) that each thread of a process has run, by its id; the main thread's is the process's. */
function ticksOf(pid: number): Map<number, number> {
  const ticks = new Map<number, number>();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' '); // from the third on; utime is the 14th, stime the 15th
    ticks.set(Number(thread), Number(fields[11]) + Number(fields[12]));
  }
  return ticks;
}

/** Shares of a core from `before` until now: of the main thread, and of all others. */
function shareSince(pid: number, before: ReadonlyMap<number, number>, ms: number): { main: number; others: number } {
  const share = (ticks: number): number => (ticks * 10) / ms;
  let [main, others] = [0, 0];
  for (const [thread, ticks] of ticksOf(pid)) {
    const ran = ticks - (before.get(thread) ?? 0);
    if (thread === pid) main = ran;
    else others += ran;
  }
  return { main: share(main), others: share(others) };
}

const percent = (share: number): string => `${(share * 100).toFixed(2)} %`;

/** Packets a second of 64 bytes of which none is lost in two of three steps of a second each. */
async function losslessRate(t: Test, blaster: Blaster): Promise<number> {
  const flood = await blaster.step('pps64', null, 1);
  for (let rate = flood.received; rate > 1000; rate *= 0.85) {
    let [passed, failed] = [0, 0];
    while (passed < 2 && failed < 2) {
      const { loss } = await blaster.step('pps64', rate, 1);
      if (loss === 0) passed++;
      else failed++;
    }
    if (passed === 2) {
      t.comment(`lossless: ${Math.round(rate / 1000)} kpps (flooded, ${Math.round(flood.received / 1000)} arrive)`);
      return rate;
    }
  }
  throw new Error('no rate is lossless');
}

/** True for what the kernel itself sends into the device now and then, and nobody has a route for. */
const kernelsOwn = (name: string): boolean => name === 'outbound.no_route';

const droppedBy = async (weft: Weft): Promise<Record<string, number>> =>
  Object.fromEntries(Object.entries((await weft.counters()).drops).filter(([name]) => !kernelsOwn(name)));

/** Most of their time is waiting, each with hosts of its own. */
const beside = (name: string, work: (t: Test) => Promise<void>): void => {
  t.jobs = 2;
  void t.test(name, { buffered: true }, work);
};

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test(`etcd away for ${OUTAGE_SECONDS} s under half the lossless rate`, async (t) => {
    const { hosts, etcd, wefts } = await makeRig(t, 'ht-etcd-outage');
    const [a, b] = hosts;
    const [member] = etcd.members;
    t.ok(await answersPing(a.client, b.client4), 'they reach each other');
    const blaster = new Blaster(hosts);
    const rate = (await losslessRate(t, blaster)) / 2;
    const dropped = await Promise.all(wefts.map(droppedBy));
    const said = wefts.map((weft) => linesOf(weft).length);
    const pids = wefts.map((weft) => Number(weft.daemon.child.pid));

    // From before the outage until well after it, in one go.
    const seconds = OUTAGE_SECONDS + 2 + RECOVERED_WITHIN_MS / 1000 + 3;
    const traffic = blaster.step('pps64', rate, seconds);
    await sleep(1000);
    const running = pids.map(ticksOf);
    const begun = performance.now();
    const stopping = Date.now();
    await member.stop(FULL ? 'SIGKILL' : 'SIGTERM');
    await sleep(OUTAGE_SECONDS * 1000 - (performance.now() - begun));
    const away = performance.now() - begun;
    for (const [i, weft] of wefts.entries()) {
      const { main, others } = shareSince(pids[i], running[i], away);
      const { letter } = weft.host;
      t.comment(
        `${letter}: etcd away: control thread ${percent(main)} of a core, all other threads ${percent(others)}`,
      );
      t.ok(main < MOST_CPU, `${letter}: the control thread needs less than 1 % of a core: ${percent(main)}`);
    }
    for (const weft of wefts) {
      const { letter } = weft.host;
      t.same(weft.events('registry_trouble').length, 1, `${letter}: one line says that it is away`);
      const { code, text, staleSince = 0 } = await readyz(weft);
      t.equal(code, 200, `${letter}: ready`);
      t.match(text, /^flanneld is ready, stale since \S+: \S/, `${letter}: and stale: ${text}`);
      t.ok(staleSince >= stopping - 1000 && staleSince <= Date.now(), `${letter}: since when it is`);
      t.equal(await peersOf(weft), 1, `${letter}: keeps its peer`);
    }

    await member.start();
    const back = performance.now();
    await etcd.put(STRANGER.key, STRANGER.value, { ttl: 600 });
    const known = await Promise.all(
      wefts.map((weft) => until(async () => (await peersOf(weft)) === 2, RECOVERED_WITHIN_MS)),
    );
    t.comment(`a lease that was put is in force ${Math.round(performance.now() - back)} ms after etcd was back`);
    t.same(known, [true, true], `etcd is back: its news are in force within ${RECOVERED_WITHIN_MS / 1000} s`);

    const { loss, reordered, sent, received } = await traffic;
    const [most, got] = [sent, received].map((perSecond) => Math.round(perSecond * seconds));
    t.comment(`${Math.round(sent / 1000)} kpps for ${seconds} s: some ${most} packets sent, ${got} received`);
    t.equal(loss, 0, 'not one packet was lost');
    t.equal(reordered, 0, 'nor came out of order');
    t.same(await Promise.all(wefts.map(droppedBy)), dropped, 'nor did a daemon drop any');
    for (const [i, weft] of wefts.entries()) {
      const { letter } = weft.host;
      const lines = linesOf(weft).slice(said[i]);
      t.ok(lines.length <= MOST_LINES, `${letter}: ${lines.length} lines about all of it`);
      for (const line of lines) t.comment(`${letter}: ${line}`);
      t.equal(weft.events('registry_trouble').length, 1, `${letter}: one says that it was away`);
      t.equal(weft.events('registry_recovered').length, 1, `${letter}: one that it is back`);
      const { up, staleSince, workerRestarts } = await registryMetrics(weft);
      t.same([up, staleSince, workerRestarts], [1, 0, 0], `${letter}: up, not stale`);
      t.equal((await readyz(weft)).text, 'flanneld is ready', `${letter}: /readyz says so`);
    }
    t.equal((await etcd.list(`${PREFIX}/subnets/`)).length, 3, 'nobody took another subnet');
  });

  beside('a daemon is killed, and starts again, while etcd is away', async (t) => {
    const { hosts, etcd, wefts } = await makeRig(t, 'ht-etcd-warm');
    const [a, b] = hosts;
    const [member] = etcd.members;
    const subnets = hosts.map((host) => subnetsIn(subnetFileOf(host)).v4);
    const leases = (await etcd.list(`${PREFIX}/subnets/`)).map(({ key, value }) => `${key} ${value}`);
    const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    await sleep(1000); // what it heard at its start is kept by then
    await right.expect();
    await left.send(b.client4, 1000);
    await sleep(300);
    const begun = Date.now();
    await member.stop('SIGKILL');
    await wefts[0].stop('SIGKILL');
    await sleep(100);
    const { received } = await right.counted();
    const killed = performance.now();
    wefts[0] = spawnWeft(a, etcd);
    const again = await until(async () => (await right.counted()).received > received, 15_000);
    t.ok(again, `traffic again after ${Math.round(performance.now() - killed)} ms`);
    await wefts[0].ready();
    t.equal(wefts[0].events('ready')[0].lease, 'warm', 'by what it remembers');
    t.equal(subnetsIn(subnetFileOf(a)).v4, subnets[0], 'on its subnet');
    const { code, text, staleSince = 0 } = await readyz(wefts[0]);
    t.equal(code, 200, '/readyz: it is ready');
    t.match(text, /^flanneld is ready, stale since \d{4}-\d\d-\d\dT[\d:.]+Z: \S/, `but stale: ${text}`);
    t.ok(staleSince <= Date.now() && staleSince > begun - 60_000, 'which is true');
    const { up, peers } = await registryMetrics(wefts[0]);
    t.same([up, peers], [0, 1], 'metrics say the same');
    t.ok(await answersPing(b.client, a.client4), 'the other way as well');

    await member.start();
    await etcd.put(STRANGER.key, STRANGER.value, { ttl: 600 });
    for (const weft of wefts) {
      const so = await until(async () => (await peersOf(weft)) === 2, RECOVERED_WITHIN_MS);
      t.ok(so, `${weft.host.letter}: etcd is back: its news are in force`);
      t.equal((await readyz(weft)).text, 'flanneld is ready', `${weft.host.letter}: not stale any more`);
    }
    const now = (await etcd.list(`${PREFIX}/subnets/`)).filter(({ key }) => key !== STRANGER.key);
    t.same(
      now.map(({ key, value }) => `${key} ${value}`),
      leases,
      'the same leases as before',
    );
    const { sent } = await left.stop();
    const { gaps, missing } = await right.countedUpTo(sent);
    t.same(
      gaps.filter(([from]) => from > received + 1000),
      [],
      `no datagram was lost after the restart, ${missing} by it`,
    );
  });

  beside('a first start without etcd waits for it', async (t) => {
    const { hosts, etcd, wefts } = await makeRig(t, 'ht-etcd-first', 1);
    const [a, b] = hosts;
    const [member] = etcd.members;
    await member.stop();
    const weft = spawnWeft(b, etcd, '--healthz-ip=127.0.0.1', '--healthz-port=9471');
    const ask = async (path: string): Promise<string> => {
      const script = `exec 3<>/dev/tcp/127.0.0.1/9471 && printf 'GET ${path} HTTP/1.0\r\n\r\n' >&3 && timeout 3 cat <&3`;
      const { stdout } = await b.ns.run('bash', ['-c', script]);
      return `${/^HTTP\/1\.\d (\d+)/.exec(stdout)?.[1]} ${stdout.split('\r\n\r\n')[1]}`;
    };
    t.ok(
      await until(async () => (await ask('/healthz')) === '200 flanneld is running'),
      '/healthz answers from the start',
    );
    t.equal(await ask('/readyz'), '503 flanneld is not ready yet', '/readyz: it waits');
    await sleep(4000);
    t.ok(weft.daemon.running, 'it goes on waiting');
    const lines = linesOf(weft);
    t.ok(lines.length >= 1 && lines.length <= 2, `and says so, not again and again: ${lines.join(' | ')}`);
    t.match(lines.join('\n'), `${ETCD}:2379`, 'and where');
    await member.start();
    const back = performance.now();
    await weft.ready(RECOVERED_WITHIN_MS);
    t.comment(`ready ${Math.round(performance.now() - back)} ms after etcd was back`);
    hosts[1] = settle(b, subnetFileOf(b));
    t.equal(await ask('/readyz'), '200 flanneld is ready', '/readyz: ready');
    t.ok(await until(async () => (await peersOf(wefts[0])) === 1, RECOVERED_WITHIN_MS), 'the other knows it');
    t.ok(await answersPing(a.client, hosts[1].client4), 'and reaches it');
  });
}
