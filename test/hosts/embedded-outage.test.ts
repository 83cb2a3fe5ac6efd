/**
 * The registry goes away, is full, read-only or locked, while hosts forward; daemons are killed meanwhile, or stopped for longer
 * than their lease. A numbered stream of datagrams runs through nearly all of it: what is missing at its end was lost.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { answersPing, type Host, Lab, makeHosts, NETWORK4, sleep } from '../../race/hosts.js';
import { Agent } from './lib/agents.js';
import {
  dataFiles,
  type EmbeddedOptions,
  holdTransaction,
  makeImmutable,
  readyz,
  refusal,
  registryMetrics,
  registryOf,
  SmallDisk,
  settle,
  signal,
  spawnEmbedded,
  startEmbedded,
  subnetFileOf,
  subnetsIn,
  unlockDead,
  until,
  weft as weftCommand,
} from './lib/embedded.js';
import { impossible, type Weft } from './lib/weft.js';

const why = impossible('flock');
t.setTimeout(0);

const TTL = 3;
const LEASE = ['--lease-ttl', String(TTL)];
/** Well beyond every lease that was there when it began. */
const BEYOND_TTL_MS = 2 * TTL * 1000;
/** What the issue promises after a restart. */
const BACK_WITHIN_MS = 2000;
/** And once the registry is back. */
const RECOVERED_WITHIN_MS = 5000;

interface Rig {
  readonly lab: Lab;
  /** With the addresses of the subnets that their daemons got. */
  readonly hosts: Host[];
  readonly wefts: Weft[];
  readonly left: Agent;
  readonly right: Agent;
  readonly options: (host: Host) => EmbeddedOptions;
}

interface RigOptions {
  readonly count?: number;
  /** How many of the hosts have a daemon. */
  readonly running?: number;
  readonly more?: (host: Host) => EmbeddedOptions;
  readonly args?: readonly string[];
}

/** Hosts of their own for each test, the first `running` of them with a daemon; agents behind the first two. */
async function makeRig(
  t: Test,
  { count = 2, running = count, more = () => ({}), args = LEASE }: RigOptions = {},
): Promise<Rig> {
  unlockDead('ht-outage');
  const lab = new Lab('ht-outage');
  t.teardown(() => lab.close());
  const options = (host: Host): EmbeddedOptions => ({ args, ...more(host) });
  const hosts = makeHosts(lab, { count, join: 'bridge', clients: 'own' });
  const wefts = await Promise.all(hosts.slice(0, running).map((host) => startEmbedded(host, options(host))));
  for (const [i, weft] of wefts.entries()) {
    hosts[i] = settle(hosts[i], subnetFileIn(hosts[i], options(hosts[i])));
    t.ok(await until(async () => (await registryMetrics(weft)).peers === running - 1), `${hosts[i].letter}: ready`);
  }
  const [left, right] = await Promise.all([Agent.start(hosts[0].client), Agent.start(hosts[1].client)]);
  return { lab, hosts, wefts, left, right, options };
}

const subnetFileIn = (host: Host, { stateDir }: EmbeddedOptions): string =>
  stateDir === undefined ? subnetFileOf(host) : `${stateDir}/subnet.env`;

const subnetOf = (host: Host, options: EmbeddedOptions = {}): string | undefined =>
  subnetsIn(subnetFileIn(host, options)).v4;

/** Events as Weft.events() gives them, also where something else was written in front of one. */
const eventsOf = (weft: Weft, name: string): number => weft.daemon.log().split(`"event":"${name}"`).length - 1;

const linesOf = (weft: Weft): string[] => weft.daemon.log().split('\n').filter(Boolean);

/** A daemon forwards by what it knew: one line said so, and so do /readyz and the metrics. */
async function assertStale(t: Test, weft: Weft, what: string, since: number): Promise<void> {
  const { letter } = weft.host;
  const { code, text, staleSince = 0 } = await readyz(weft);
  t.equal(code, 200, `${what}: ${letter}: /readyz: it is ready`);
  t.match(text, /^flanneld is ready, stale since \d{4}-\d\d-\d\dT[\d:.]+Z: \S/, `${what}: ${letter}: but stale`);
  t.comment(`${letter}: ${text}`);
  const metrics = await registryMetrics(weft);
  t.equal(metrics.up, 0, `${what}: ${letter}: the registry is not up`);
  t.ok(Math.abs((metrics.staleSince ?? 0) * 1000 - staleSince) <= 1000, `${what}: ${letter}: metrics say since when`);
  // The last good news may be older than the trouble by a renewal.
  t.ok(staleSince >= since - TTL * 1000 && staleSince <= Date.now(), `${what}: ${letter}: which is true`);
}

async function assertGood(t: Test, weft: Weft, what: string): Promise<void> {
  const { letter } = weft.host;
  const ready = await readyz(weft);
  t.same([ready.code, ready.text], [200, 'flanneld is ready'], `${what}: ${letter}: /readyz`);
  const { up, staleSince, leaseSecondsLeft = 0 } = await registryMetrics(weft);
  t.same([up, staleSince], [1, 0], `${what}: ${letter}: up, and not stale`);
  t.ok(leaseSecondsLeft > 0 && leaseSecondsLeft <= TTL, `${what}: ${letter}: has a lease again`);
}

/** Waits until each has noticed, or recovered, for the `times`th time. */
async function all(wefts: readonly Weft[], event: string, times = 1, timeoutMs = 3 * TTL * 1000): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (const weft of wefts) {
    if (!(await until(() => eventsOf(weft, event) >= times, deadline - performance.now()))) return false;
  }
  return true;
}

/** Nothing of a stream was lost, doubled, or came in another order. */
async function assertWhole(t: Test, from: Agent, to: Agent, what: string): Promise<void> {
  const { sent } = await from.stop();
  const got = await to.countedUpTo(sent);
  const { received, missing, duplicates, reordered, wrong } = got;
  t.same(
    { received, missing, duplicates, reordered, wrong, gaps: got.gaps.slice(0, 5) },
    { received: sent, missing: 0, duplicates: 0, reordered: 0, wrong: 0, gaps: [] },
    `${what}: a stream lost nothing`,
  );
}

/** The stream's count still grows. */
async function assertFlows(t: Test, to: Agent, what: string): Promise<void> {
  const { received } = await to.counted();
  t.ok(await until(async () => (await to.counted()).received > received, 1000), `${what}: traffic flows`);
}

/** Most of their time is waiting: three at a time, each with hosts of its own. */
const beside = (name: string, work: (t: Test) => Promise<void>): void => {
  t.jobs = 3;
  void t.test(name, { buffered: true }, work);
};

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('a restart under load without the registry', async (t) => {
    const rig = await makeRig(t);
    const { lab, hosts, left, right } = rig;
    const [a, b] = hosts;
    const [, other] = rig.wefts;
    let [first] = rig.wefts;
    const subnets = hosts.map((host) => subnetOf(host));
    const load = await Agent.start(b.ns);
    await right.expect();
    await left.send(b.client4, 1000);
    await sleep(2500);
    const loading = load.blast(a.client4, 4);
    await sleep(200);
    const begun = Date.now();
    const [registry, away] = [registryOf(lab), `${registryOf(lab)}.away`];
    renameSync(registry, away);
    await first.stop('SIGKILL');
    await sleep(100);
    const { received } = await right.counted();
    const killed = performance.now();
    first = spawnEmbedded(a, rig.options(a));
    while ((await right.counted()).received === received && performance.now() - killed < 20_000) await sleep(10);
    const took = performance.now() - killed;
    t.ok(took < BACK_WITHIN_MS, `traffic again after ${Math.round(took)} ms`);
    await first.ready();
    t.equal(first.events('ready')[0].lease, 'warm', 'from the snapshot');
    t.equal(subnetOf(a), subnets[0], 'on its subnet');
    t.ok((await loading).bytes > 0, 'under load');
    await assertStale(t, first, 'restarted', begun);
    t.ok(await all([other], 'registry_trouble'), 'the other noticed as well');
    await assertStale(t, other, 'running', begun);
    await sleep(Math.max(0, begun + BEYOND_TTL_MS - Date.now()));
    await assertFlows(t, right, 'beyond every lease');

    renameSync(away, registry);
    t.ok(await all([first, other], 'registry_recovered', 1, RECOVERED_WITHIN_MS), 'it came back: both recovered');
    for (const weft of [first, other]) {
      const { letter } = weft.host;
      await assertGood(t, weft, 'back');
      t.ok(eventsOf(weft, 'registry_trouble') <= 1, `${letter}: one line about the trouble`);
      t.equal(eventsOf(weft, 'registry_recovered'), 1, `${letter}: one about its end`);
      t.equal((await registryMetrics(weft)).peers, 1, `${letter}: knows the other`);
    }
    t.same(
      hosts.map((host) => subnetOf(host)),
      subnets,
      'on the same subnets',
    );
    const { sent } = await left.stop();
    const got = await right.countedUpTo(sent);
    const after = got.gaps.filter(([from]) => from > received + 1000);
    t.same(after, [], `no datagram was lost after the restart, ${got.missing} by it`);

    // The snapshot has its age.
    await first.stop('SIGKILL');
    renameSync(registry, away);
    const limit = 1;
    await sleep(limit * 1000 + 1200);
    const late = await refusal(spawnEmbedded(a, { args: [...LEASE, '--stale-limit', String(limit)] }));
    t.equal(late.code, 1, 'a snapshot older than --stale-limit: exit code 1');
    t.equal(late.lines.length, 1, `a snapshot older than --stale-limit: one line: ${late.lines.join(' | ')}`);
    t.match(late.lines[0], /^weftd: .*(registry).*/, 'which says that the registry is away');
    t.match(late.lines[0], /--stale-limit/, 'and why the snapshot does not help');
    renameSync(away, registry);
    const again = await startEmbedded(a, { args: [...LEASE, '--stale-limit', String(limit)] });
    t.equal(subnetOf(a), subnets[0], 'with the registry it starts, on its subnet');
    t.ok(await answersPing(a.client, b.client4), 'and forwards');
    await again.stop();
    await other.stop();
  });

  beside('killed right after news', async (t) => {
    const rig = await makeRig(t, { count: 3, running: 2 });
    const { lab, hosts, wefts } = rig;
    const [a, , c] = hosts;
    await sleep(1000); // what it heard at its start is kept by then
    await startEmbedded(c, rig.options(c));
    hosts[2] = settle(c);
    t.ok(await until(async () => (await registryMetrics(wefts[0])).peers === 2), 'a knows the new host');
    await sleep(400);
    renameSync(registryOf(lab), `${registryOf(lab)}.away`);
    await wefts[0].stop('SIGKILL');
    const again = await startEmbedded(a, rig.options(a));
    t.equal(again.events('ready')[0].lease, 'warm', 'from the snapshot');
    t.equal((await registryMetrics(again)).peers, 2, 'which has the new host');
    t.ok(await answersPing(a.client, hosts[2].client4), 'and reaches it');
  });

  beside('a quiet registry', async (t) => {
    // Nothing changes for longer than the limit; the news is no older than the last renewal all the same.
    const limit = 4;
    const rig = await makeRig(t, { args: [...LEASE, '--stale-limit', String(limit)] });
    const { lab, hosts, wefts } = rig;
    const [a, b] = hosts;
    await sleep(limit * 1000 + 1500);
    const begun = Date.now();
    renameSync(registryOf(lab), `${registryOf(lab)}.away`);
    await wefts[0].stop('SIGKILL');
    const again = await startEmbedded(a, rig.options(a));
    t.equal(again.events('ready')[0].lease, 'warm', 'from the snapshot');
    t.ok(await answersPing(a.client, b.client4), 'and forwards');
    await assertStale(t, again, 'restarted', begun);
  });

  beside('the registry removed under running daemons, and made anew', async (t) => {
    const { lab, hosts, wefts, left, right } = await makeRig(t);
    const subnets = hosts.map((host) => subnetOf(host));
    await right.expect();
    await left.send(hosts[1].client4, 500);
    await sleep(200);
    const begun = Date.now();
    rmSync(registryOf(lab), { recursive: true });
    t.ok(await all(wefts, 'registry_trouble'), 'all notice');
    await sleep(BEYOND_TTL_MS);
    await assertFlows(t, right, 'beyond every lease');
    for (const weft of wefts) {
      await assertStale(t, weft, 'removed', begun);
      t.equal((await registryMetrics(weft)).peers, 1, `${weft.host.letter}: keeps its peer`);
      t.equal(eventsOf(weft, 'registry_trouble'), 1, `${weft.host.letter}: one line`);
    }
    // Somebody puts back what is no registry: no reason to end for those who run.
    mkdirSync(registryOf(lab));
    writeFileSync(join(registryOf(lab), 'data.mdb'), 'no registry\n'.repeat(2000));
    await sleep(1000);
    await assertFlows(t, right, 'something else in its place');
    for (const weft of wefts) t.equal((await readyz(weft)).code, 200, `${weft.host.letter}: runs on`);
    rmSync(registryOf(lab), { recursive: true });
    const made = weftCommand('init', '--registry-path', registryOf(lab), '--network', NETWORK4);
    t.equal(made.code, 0, 'weft init makes a new one');
    t.ok(await all(wefts, 'registry_recovered', 1, RECOVERED_WITHIN_MS), 'all recover');
    for (const weft of wefts) {
      await assertGood(t, weft, 'made anew');
      t.ok(await until(async () => (await registryMetrics(weft)).peers === 1), `${weft.host.letter}: knows the other`);
      t.equal(eventsOf(weft, 'lease_moved'), 0, `${weft.host.letter}: did not move`);
    }
    t.same(
      hosts.map((host) => subnetOf(host)),
      subnets,
      'on the same subnets',
    );
    await assertWhole(t, left, right, 'removed and made anew');
  });

  beside("the registry's disk is full", async (t) => {
    const disk = new SmallDisk('4m');
    t.teardown(() => disk.remove());
    const registryPath = `${disk.path}/registry`;
    const rig = await makeRig(t, { more: () => ({ registryPath }) });
    const { hosts, wefts, left, right } = rig;
    const subnets = hosts.map((host) => subnetOf(host));
    // Without a reader that stays, LMDB needs no space: it uses old pages again.
    await holdTransaction(hosts[1], registryPath, 'reader');
    await right.expect();
    await left.send(hosts[1].client4, 500);
    await sleep(200);
    const said = wefts.map((weft) => linesOf(weft).length);
    const begun = Date.now();
    disk.fill();
    t.ok(await all(wefts, 'registry_trouble'), 'all notice');
    await sleep(BEYOND_TTL_MS);
    await assertFlows(t, right, 'beyond every lease');
    for (const [i, weft] of wefts.entries()) {
      await assertStale(t, weft, 'full', begun);
      t.equal((await registryMetrics(weft)).peers, 1, `${weft.host.letter}: keeps its peer`);
      t.equal(eventsOf(weft, 'registry_trouble'), 1, `${weft.host.letter}: one registry_trouble`);
      t.same(linesOf(weft).slice(said[i] + 1), [], `${weft.host.letter}: and not a line more`);
    }
    disk.release();
    t.ok(await all(wefts, 'registry_recovered', 1, RECOVERED_WITHIN_MS), 'space again: all recover');
    for (const weft of wefts) {
      await assertGood(t, weft, 'space again');
      t.equal((await registryMetrics(weft)).peers, 1, `${weft.host.letter}: knows the other`);
      t.equal(eventsOf(weft, 'lease_moved'), 0, `${weft.host.letter}: did not move`);
    }
    await assertWhole(t, left, right, 'full and not');

    // One dies meanwhile.
    disk.fill();
    t.ok(await all(wefts, 'registry_trouble', 2), 'full again: all notice');
    await wefts[0].stop('SIGKILL');
    wefts[0] = await startEmbedded(hosts[0], rig.options(hosts[0]));
    t.ok(await answersPing(hosts[0].client, hosts[1].client4), 'a restart on a full disk forwards');
    await assertStale(t, wefts[0], 'restarted', begun);
    disk.release();
    t.ok(await until(async () => (await registryMetrics(wefts[0])).up === 1, RECOVERED_WITHIN_MS), 'and recovers');
    t.same(
      hosts.map((host) => subnetOf(host)),
      subnets,
      'on the same subnets to the end',
    );
  });

  beside("the state directory's disk is full", async (t) => {
    const disk = new SmallDisk('4m');
    t.teardown(() => disk.remove());
    const stateDir = `${disk.path}/state`;
    const rig = await makeRig(t, { count: 3, running: 2, more: ({ letter }) => (letter === 'a' ? { stateDir } : {}) });
    const { lab, hosts, wefts, left, right } = rig;
    const subnet = subnetOf(hosts[0], { stateDir });
    await holdTransaction(hosts[1], dirname(dataFiles(stateDir)[0]), 'reader');
    await right.expect();
    await left.send(hosts[1].client4, 500);
    const said = linesOf(wefts[0]).length;
    disk.fill();
    // There is news to keep: a third host.
    wefts.push(await startEmbedded(hosts[2], rig.options(hosts[2])));
    hosts[2] = settle(hosts[2]);
    t.ok(await answersPing(hosts[0].client, hosts[2].client4), 'a new host is reached');
    await sleep(BEYOND_TTL_MS);
    await assertFlows(t, right, 'beyond every lease');
    const lines = linesOf(wefts[0])
      .slice(said)
      .filter((line) => !/"level":"(debug|info)"/.test(line));
    t.equal(lines.length, 1, `one line about it: ${lines.join(' | ')}`);
    t.match(lines[0], /no space|ENOSPC|full/i, 'which says what');
    t.match(lines[0], disk.path, 'and where');
    for (const weft of wefts) {
      const { up, peers, leaseSecondsLeft = 0 } = await registryMetrics(weft);
      t.same([up, peers], [1, 2], `${weft.host.letter}: the registry is up, both others are known`);
      t.ok(leaseSecondsLeft > 0, `${weft.host.letter}: its lease is renewed`);
    }
    disk.release();
    await sleep(RECOVERED_WITHIN_MS);
    await assertWhole(t, left, right, 'full and not');

    // What could not be kept then was kept since.
    await wefts[0].stop('SIGKILL');
    renameSync(registryOf(lab), `${registryOf(lab)}.away`);
    wefts[0] = await startEmbedded(hosts[0], rig.options(hosts[0]));
    t.equal(wefts[0].events('ready')[0].lease, 'warm', 'a restart without the registry: from the snapshot');
    t.equal(subnetOf(hosts[0], { stateDir }), subnet, 'on its subnet');
    t.ok(await answersPing(hosts[0].client, hosts[2].client4), 'which knows the new host');
  });

  beside('a registry that cannot be written', async (t) => {
    const rig = await makeRig(t);
    const { lab, hosts, wefts, left, right } = rig;
    const [a, b] = hosts;
    const subnets = hosts.map((host) => subnetOf(host));
    const said = wefts.map((weft) => linesOf(weft).length);
    const begun = Date.now();
    const undo = makeImmutable(dataFiles(registryOf(lab))[0]);
    if (undo) {
      t.teardown(undo);
      await right.expect();
      await left.send(b.client4, 500);
      t.ok(await all(wefts, 'registry_trouble'), 'immutable: all notice');
      await sleep(BEYOND_TTL_MS);
      await assertFlows(t, right, 'beyond every lease');
      for (const [i, weft] of wefts.entries()) {
        await assertStale(t, weft, 'immutable', begun);
        t.equal(eventsOf(weft, 'registry_trouble'), 1, `${weft.host.letter}: one registry_trouble`);
        t.same(linesOf(weft).slice(said[i] + 1), [], `${weft.host.letter}: and not a line more`);
        t.match(linesOf(weft).at(-1), /^\{.*\}$/, `${weft.host.letter}: which is JSON from end to end`);
      }
      await assertWhole(t, left, right, 'immutable');
      await wefts[0].stop('SIGKILL');
      wefts[0] = await startEmbedded(a, rig.options(a));
      t.equal(wefts[0].events('ready')[0].lease, 'warm', 'a restart: from the snapshot');
      await assertStale(t, wefts[0], 'restarted', begun);
      t.ok(await answersPing(a.client, b.client4), 'and it forwards');
      undo();
      t.ok(await all(wefts, 'registry_recovered', 1, RECOVERED_WITHIN_MS), 'writable again: all recover');
    } else {
      // Seen only by those who start after it.
      const path = registryOf(lab);
      const mount = (...args: string[]): void => {
        const done = spawnSync('mount', args, { encoding: 'utf8' });
        if (done.status !== 0) throw new Error(done.stderr);
      };
      const unmount = (): void => void spawnSync('umount', ['--lazy', path], { stdio: 'ignore' });
      t.teardown(unmount);
      await wefts[0].stop('SIGKILL');
      mount('--bind', path, path);
      mount('-o', 'remount,bind,ro', path);
      wefts[0] = await startEmbedded(a, rig.options(a));
      t.equal(wefts[0].events('ready')[0].lease, 'warm', 'read-only: a restart: from the snapshot');
      await assertStale(t, wefts[0], 'read-only', begun);
      t.ok(await answersPing(a.client, b.client4), 'and it forwards');
      unmount();
      await wefts[0].stop('SIGKILL');
      wefts[0] = await startEmbedded(a, rig.options(a));
    }
    for (const weft of wefts) await assertGood(t, weft, 'writable again');
    t.ok(await answersPing(a.client, b.client4), 'they reach each other');
    t.same(
      hosts.map((host) => subnetOf(host)),
      subnets,
      'on the same subnets',
    );
  });

  beside('somebody stopped in the middle of a write', async (t) => {
    const rig = await makeRig(t);
    const { lab, hosts, wefts, left, right } = rig;
    const [a, b] = hosts;
    const subnets = hosts.map((host) => subnetOf(host));
    await right.expect();
    await left.send(b.client4, 500);
    const begun = Date.now();
    const holder = await holdTransaction(b, registryOf(lab), 'writer');
    t.ok(await all(wefts, 'registry_trouble'), 'all notice');
    await sleep(BEYOND_TTL_MS);
    await assertFlows(t, right, 'beyond every lease');
    for (const weft of wefts) {
      await assertStale(t, weft, 'locked', begun);
      t.equal(eventsOf(weft, 'registry_trouble'), 1, `${weft.host.letter}: one line`);
      t.equal((await registryMetrics(weft)).peers, 1, `${weft.host.letter}: keeps its peer`);
    }
    await assertWhole(t, left, right, 'locked');
    // Nobody waits for that lock: not who stops, and not who starts.
    const took = await wefts[0].stop();
    t.equal(wefts[0].daemon.child.exitCode, 0, `SIGTERM ends one, after ${Math.round(took)} ms`);
    wefts[0] = await startEmbedded(a, rig.options(a));
    t.equal(wefts[0].events('ready')[0].lease, 'warm', 'a start: from the snapshot');
    t.ok(await answersPing(a.client, b.client4), 'and it forwards');
    await holder.stop('SIGKILL');
    t.ok(await all(wefts, 'registry_recovered', 1, RECOVERED_WITHIN_MS), 'that process ended: all recover');
    for (const weft of wefts) await assertGood(t, weft, 'free again');
    t.same(
      hosts.map((host) => subnetOf(host)),
      subnets,
      'on the same subnets',
    );
  });

  beside('SIGSTOP', async (t) => {
    const rig = await makeRig(t);
    const { hosts, wefts, left, right } = rig;
    const [a, b] = hosts;
    const [other, stopped] = wefts;
    const subnet = subnetOf(b);
    await right.expect();
    await left.send(b.client4, 100);
    await sleep(200);
    const said = wefts.map((weft) => linesOf(weft).length);
    // Just renewed, so that it has most of its time.
    const fresh = (TTL * 5) / 6;
    t.ok(await until(async () => ((await registryMetrics(stopped)).leaseSecondsLeft ?? 0) > fresh), 'just renewed');
    signal(stopped, 'SIGSTOP');
    await sleep(TTL * 500);
    signal(stopped, 'SIGCONT');
    await sleep(TTL * 1000);
    for (const [i, weft] of wefts.entries()) {
      t.same(linesOf(weft).slice(said[i]), [], `shorter than the lease: ${weft.host.letter}: nothing to say`);
      t.equal((await registryMetrics(weft)).peers, 1, `shorter than the lease: ${weft.host.letter}: knows the other`);
    }
    await assertGood(t, stopped, 'shorter than the lease');
    await assertWhole(t, left, right, 'shorter than the lease');

    signal(stopped, 'SIGSTOP');
    t.ok(await until(async () => (await registryMetrics(other)).peers === 0), 'longer: the other drops it');
    t.equal((await registryMetrics(other)).up, 1, 'longer: the other has its registry');
    signal(stopped, 'SIGCONT');
    t.ok(await until(async () => (await registryMetrics(other)).peers === 1), 'it acquires again: the other knows it');
    t.equal(subnetOf(b), subnet, 'it acquires again: nobody had taken its subnet');
    t.equal(eventsOf(stopped, 'lease_moved'), 0, 'it acquires again: so it did not move');
    await assertGood(t, stopped, 'it acquires again');
    t.ok(await answersPing(a.client, b.client4), 'it acquires again: and answers');
  });

  beside('SIGSTOP, and the subnet is gone', async (t) => {
    // As many subnets as daemons at first: a new one can only get that of who lost his.
    const args = [...LEASE, '--subnet-min', '10.5.1.0', '--subnet-max', '10.5.3.0'];
    const rig = await makeRig(t, { count: 4, running: 3, args });
    const { hosts, wefts, left, right } = rig;
    const [a, b, c, d] = hosts;
    const [, stopped, third] = wefts;
    const old = subnetOf(b);
    await left.expect();
    await right.send(a.client4, 500);
    t.ok(await until(async () => (await left.counted()).received > 50), 'b sends');
    signal(stopped, 'SIGSTOP');
    t.ok(await until(async () => (await registryMetrics(wefts[0])).peers === 1), 'b is dropped');
    const heir = await startEmbedded(d, rig.options(d));
    t.equal(subnetOf(d), old, 'd got its subnet');
    t.ok(await until(async () => (await registryMetrics(wefts[0])).peers === 2), 'and a knows that');
    const { received } = await left.counted();
    const strangers = async (): Promise<number[]> =>
      Promise.all([wefts[0], heir, third].map(async (weft) => (await weft.counters()).get('inbound.unknown_peer')));
    const before = await strangers();

    // Now there are none left. What its client sent meanwhile waits in its device.
    signal(stopped, 'SIGCONT');
    t.ok(await until(() => /exhausted/.test(stopped.daemon.log())), 'b says that the subnets are exhausted');
    await sleep(500);
    t.same(await strangers(), before, 'and sends nothing by its old tables');
    t.equal((await left.counted()).received, received, 'which would have arrived');
    if (stopped.daemon.running) {
      const { code, text } = await readyz(stopped);
      t.equal(code, 503, '/readyz: it is not ready');
      t.match(text, /^weftd forwards nothing: ./, '/readyz says so');
    }
    t.equal(eventsOf(stopped, 'lease_moved'), 0, 'it has not moved');
    t.equal(subnetOf(d), old, 'd keeps it');

    // One gets free: b takes it, by itself or (if it ended) when it is started again.
    const free = subnetOf(c);
    await third.stop('SIGKILL');
    let moved = stopped;
    if (stopped.daemon.running) {
      await stopped.event('lease_moved', undefined, 15_000);
      t.ok(await all([stopped], 'ready', 2), 'it starts again inside');
    } else {
      t.equal(stopped.daemon.child.exitCode, 1, 'it ended with exit code 1');
      t.ok(await until(async () => (await registryMetrics(wefts[0])).peers === 1), 'c is dropped');
      moved = await startEmbedded(b, rig.options(b));
    }
    await right.stop();
    t.equal(subnetOf(b), free, 'b has the one that got free');
    const settled = settle(b);
    t.ok(await until(async () => (await registryMetrics(moved)).peers === 2), 'and knows a and d');
    t.ok(await answersPing(a.client, settled.client4), 'a reaches it there');
    t.ok(await answersPing(settled.client, a.client4), 'and it a');
    await assertGood(t, moved, 'on another subnet');
    t.match(b.ns.runSync('ip', '-o', 'addr', 'show', 'flannel0'), `inet ${free?.replace(/\/.*/, '')}/32`, 'its device');
    t.equal(subnetOf(d), old, 'd has kept its');
  });
}
