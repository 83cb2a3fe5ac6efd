/**
 * Ten hosts without a peers file: each weftd takes a subnet of its own out of the registry that they share, and they know each
 * other. One of them dies: the others drop it when its lease ends, not before, and nobody else notices.
 */
import { existsSync, statSync } from 'node:fs';
import t from 'tap';
import { answersPing, type Host, Lab, makeHosts, sleep } from '../../race/hosts.js';
import { Agent, MiB } from './lib/agents.js';
import {
  readSubnetEnv,
  readyz,
  registryMetrics,
  settle,
  spawnEmbedded,
  startEmbedded,
  subnetFileOf,
  subnetsIn,
  unanswered,
  until,
} from './lib/embedded.js';
import { impossible, type Weft } from './lib/weft.js';

const why = impossible('tc');
t.setTimeout(0);

const COUNT = 10;
const TTL = 4;
/** Running daemons notice an expired lease within about a second; the rest is for two busy cores. */
const NOTICED_WITHIN_MS = 5000;
const OPTIONS = { args: ['--lease-ttl', String(TTL)] };
/** The long TCP flow's rate, so that it lasts as long as what happens beside it. */
const FLOW_MBIT = 80;
const FLOW_SECONDS = 14;

const peersOf = async (weft: Weft): Promise<number | undefined> => (await registryMetrics(weft)).peers;

/** Waits until each of `wefts` has `count` peers in force. */
async function knows(wefts: readonly Weft[], count: number, timeoutMs = 20_000): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  for (const weft of wefts) {
    if (!(await until(async () => (await peersOf(weft)) === count, deadline - performance.now()))) return false;
  }
  return true;
}

/** Events that a daemon logs when something is wrong, or when it moves. */
const troubles = (weft: Weft): unknown[] =>
  weft.events().filter(({ event, level }) => event === 'lease_moved' || level === 'warn' || level === 'error');

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-mesh');
  t.teardown(() => lab.close());
  let hosts: Host[] = makeHosts(lab, { count: COUNT, join: 'bridge', clients: 'own' });
  const subnetOf = (host: Host): string | undefined => subnetsIn(subnetFileOf(host)).v4;

  // All at once, none with a word about the others. The first of them to get there writes the registry's configuration.
  const begun = performance.now();
  const wefts = hosts.map((host) => spawnEmbedded(host, OPTIONS));
  await Promise.all(wefts.map((weft) => weft.ready(60_000)));
  t.comment(`ten daemons ready after ${((performance.now() - begun) / 1000).toFixed(1)} s`);
  hosts = hosts.map((host) => settle(host));

  await t.test('ten daemons that start at once', async (t) => {
    t.ok(await knows(wefts, COUNT - 1), 'all know nine peers');
    const subnets = hosts.map(subnetOf);
    t.equal(new Set(subnets).size, COUNT, `ten different subnets: ${subnets.join(' ')}`);
    for (const [i, weft] of wefts.entries()) {
      const { letter } = hosts[i];
      const [ready] = weft.events('ready');
      t.equal(ready.lease, 'new', `${letter}: a new lease`);
      t.same(ready.subnets, [subnets[i]], `${letter}: and says which subnet`);
      const file = readSubnetEnv(subnetFileOf(hosts[i]));
      const [base, length] = subnets[i]?.split('/') ?? [];
      t.same(
        Object.entries(file),
        Object.entries({
          FLANNEL_NETWORK: '10.5.0.0/16',
          FLANNEL_SUBNET: `${base.replace(/\.0$/, '.1')}/${length}`,
          FLANNEL_MTU: '1472',
          FLANNEL_IPMASQ: 'false',
        }),
        `${letter}: subnet.env has flannel's lines in flannel's order`,
      );
      t.equal(statSync(subnetFileOf(hosts[i])).mode & 0o777, 0o644, `${letter}: for all to read`);
      t.match(hosts[i].ns.runSync('ip', '-o', 'addr', 'show', 'flannel0'), `inet ${base}/32`, `${letter}: its device`);
    }
    const metrics = await registryMetrics(wefts[0]);
    t.equal(metrics.up, 1, 'the registry is up');
    t.equal(metrics.staleSince, 0, 'nothing is stale');
    t.equal(metrics.routes, COUNT - 1, 'a route to each');
    t.ok((metrics.leaseSecondsLeft ?? 0) > 0 && (metrics.leaseSecondsLeft ?? 9) <= TTL, 'the lease has its time');
    t.same(await readyz(wefts[0]).then(({ code, text }) => [code, text]), [200, 'flanneld is ready'], '/readyz');
  });

  const gatewayOf = (host: Host): string => host.client4.replace(/\d+$/, '1');
  const mesh = async (t: { same(found: unknown, wanted: unknown, message: string): void }): Promise<void> => {
    for (const where of ['host', 'client'] as const) {
      const silent = await Promise.all(
        hosts.map(async (from) => {
          const to = hosts.filter((host) => host !== from);
          const missing = await unanswered(from, where, to.map(where === 'host' ? gatewayOf : (host) => host.client4));
          return missing.map((address) => `${from.letter}->${address}`);
        }),
      );
      t.same(silent.flat(), [], `full mesh, ${where} to ${where}`);
    }
  };

  await t.test('full mesh', mesh);

  await t.test('kill -9 of one', async (t) => {
    // c -> d carries a numbered stream, e -> f a TCP flow, each through the death and the return of j.
    const [c, d, e, f] = [2, 3, 4, 5].map((i) => hosts[i]);
    const agents = await Promise.all([c, d, e, f].map((host) => Agent.start(host.client)));
    const [fromC, toD, fromE] = agents;
    await toD.expect();
    await fromC.send(d.client4, 500);
    e.client.runSync(
      ...(['tc', 'qdisc', 'add', 'dev', 'eth0', 'root', 'tbf', 'rate', `${FLOW_MBIT}mbit`] as const),
      ...(['burst', '64kb', 'latency', '100ms'] as const),
    );
    let transferred = false;
    const transfer = fromE
      .tcp(f.client4, { bytes: Math.round((FLOW_MBIT * FLOW_SECONDS) / 8) * MiB, stallMs: 15_000 })
      .finally(() => {
        transferred = true;
      });
    await sleep(300);

    const last = COUNT - 1;
    const [host, victim, others] = [hosts[last], wefts[last], wefts.slice(0, last)];
    const subnet = subnetOf(host);
    const leftBefore = performance.now();
    const { leaseSecondsLeft = 0 } = await registryMetrics(victim);
    // It may have renewed after that; then its lease lasts longer.
    const notBefore = leftBefore + leaseSecondsLeft * 1000;
    t.ok(leaseSecondsLeft > TTL / 3, `its lease has ${leaseSecondsLeft.toFixed(1)} s left`);
    await victim.stop('SIGKILL');
    const killed = performance.now();

    const seen = new Map<Weft, number>();
    while (seen.size < others.length && performance.now() < killed + TTL * 1000 + NOTICED_WITHIN_MS) {
      await Promise.all(
        others
          .filter((weft) => !seen.has(weft))
          .map(async (weft) => {
            if ((await peersOf(weft)) === COUNT - 2) seen.set(weft, performance.now());
          }),
      );
      await sleep(100);
    }
    t.equal(seen.size, others.length, 'all others dropped it once its lease had ended');
    t.notOk(transferred, 'the TCP flow went on all that time');
    const first = Math.min(...seen.values());
    t.ok(first >= notBefore, `not before: ${Math.round(first - killed)} ms after its death`);
    t.comment(`the last noticed ${Math.round(Math.max(...seen.values()) - killed)} ms after its death`);
    for (const weft of others)
      t.equal((await registryMetrics(weft)).routes, COUNT - 2, `${weft.host.letter}: no route`);

    const again = await startEmbedded(host, OPTIONS);
    wefts[last] = again;
    t.equal(subnetOf(host), subnet, 'back: on the same subnet');
    t.equal(again.events('ready')[0].lease, 'reused', 'which subnet.env told');
    t.ok(await knows(wefts, COUNT - 1), 'back: known to all');
    t.ok(await answersPing(hosts[0].client, host.client4), 'back: answers');

    // Dead for less than its lease: nobody drops it.
    await again.stop('SIGKILL');
    const third = await startEmbedded(host, OPTIONS);
    wefts[last] = third;
    t.equal(third.events('ready')[0].lease, 'taken over', 'a short death: takes its lease over');
    t.equal(subnetOf(host), subnet, 'a short death: on the same subnet');
    t.same(
      await Promise.all(others.map(peersOf)),
      others.map(() => COUNT - 1),
      'a short death: all still know it',
    );
    t.ok(await answersPing(hosts[1].client, host.client4), 'a short death: answers');

    const { flows, seconds } = await transfer;
    t.ok(
      flows.every((flow) => flow.sent === flow.received && flow.wrongAt === -1),
      `the TCP flow between two others lost nothing, in ${seconds.toFixed(1)} s`,
    );
    const { sent } = await fromC.stop();
    const got = await toD.countedUpTo(sent);
    t.same(
      { ...got, gaps: got.gaps.slice(0, 5), longestSilence: 0 },
      { received: sent, wrong: 0, duplicates: 0, reordered: 0, end: sent, missing: 0, gaps: [], longestSilence: 0 },
      'a numbered stream between two others lost nothing',
    );
    for (const weft of others) {
      const { letter } = weft.host;
      t.ok(weft.daemon.running, `${letter}: runs`);
      t.same(troubles(weft), [], `${letter}: has nothing to complain of`);
      t.equal((await registryMetrics(weft)).workerRestarts, 0, `${letter}: its worker never fell over`);
    }
  });

  await t.test('full mesh after that', mesh);

  await t.test('kill -9 of all', async (t) => {
    const subnets = hosts.map(subnetOf);
    await Promise.all(wefts.map((weft) => weft.stop('SIGKILL')));
    const again = hosts.map((host) => spawnEmbedded(host, OPTIONS));
    await Promise.all(again.map((weft) => weft.ready(60_000)));
    wefts.splice(0, COUNT, ...again);
    t.same(hosts.map(subnetOf), subnets, 'all are back on their subnets');
    t.ok(await knows(wefts, COUNT - 1), 'and know each other');
    for (const weft of wefts) t.same(troubles(weft), [], `${weft.host.letter}: has nothing to complain of`);
    await mesh(t);
  });

  await t.test('SIGTERM leaves the lease and subnet.env', async (t) => {
    const host = hosts[COUNT - 1];
    const subnet = subnetOf(host);
    await wefts[COUNT - 1].stop();
    t.equal(wefts[COUNT - 1].daemon.child.exitCode, 0, 'exit code 0');
    t.ok(existsSync(subnetFileOf(host)), 'subnet.env is there');
    t.equal(subnetOf(host), subnet, 'unchanged');
    const others = wefts.slice(0, COUNT - 1);
    t.same(
      await Promise.all(others.map(peersOf)),
      others.map(() => COUNT - 1),
      'the others still know it',
    );
    const again = await startEmbedded(host, OPTIONS);
    t.equal(again.events('ready')[0].lease, 'taken over', 'it takes its lease over');
    t.equal(subnetOf(host), subnet, 'and has the same subnet');
    t.ok(await answersPing(hosts[0].client, host.client4), 'and answers');
    await again.stop();
    t.ok(await knows(others, COUNT - 2), 'stopped for longer than its lease, it goes');
  });
}
