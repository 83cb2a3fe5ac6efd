/**
 * 10^5 routes are replaced while traffic flows, and not a packet is lost for it: a numbered stream to one peer, and TCP both
 * ways, while the peers file changes whole, again and again. Then a mesh: every host reaches every other.
 */
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, Lab, makeHosts, peersFile, sleep, twoHosts } from '../../race/hosts.js';
import { Agent, MiB } from './lib/agents.js';
import { assertConserved, FULL, impossible, METRICS, Weft, writePeers } from './lib/weft.js';

const why = impossible();
t.setTimeout(0);

const ROUTES = 100_000;
/** Datagrams a second: far below what saturates anything, so that nothing else loses them. */
const RATE = 1000;

/** `count` prefixes of 10.128.0.0/9 and fd00:5:0:8000::/64, those of one `generation` all different from those of another. */
function prefixes(count: number, generation: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    const n = i * 2 + (generation & 1);
    if (i % 10 === 0) return `fd00:5:0:8000:${(n >> 12).toString(16)}:${(n & 0xfff).toString(16)}::/96`;
    return `10.${128 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}/32`;
  });
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test(`${ROUTES.toLocaleString('en')} routes replaced under way`, async (t) => {
    const lab = new Lab('ht-tables');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const own = writePeers(lab, [a, b]);
    const peers = join(lab.dir, 'many.json');
    /** b, and 1,000 peers that nobody ever sends to, each with 100 routes. */
    const write = (generation: number, b4 = b.underlay4): void => {
      // Not the same number twice: the log folds lines that are equal.
      const all = prefixes(ROUTES + generation, generation);
      const others = Array.from({ length: 1000 }, (_, i) => ({
        name: `n${i}`,
        address: `192.168.${100 + (i >> 8) + (generation % 3) * 4}.${i & 255}`,
        subnets: all.slice(i * 100, i === 999 ? undefined : i * 100 + 100),
      }));
      const entry = { name: 'b', address: b4, subnets: [b.subnet4, b.subnet6] };
      writeFileSync(`${peers}.new`, JSON.stringify({ peers: [entry, ...others] }));
      renameSync(`${peers}.new`, peers);
    };
    write(0);
    const args = ['--network', '10.0.0.0/8,fd00:5::/48', '--subnet', `${a.subnet4},${a.subnet6}`, '--iface', 'eth0'];
    args.push('--public-ip', a.underlay4, '--peers', peers, '--metrics-address', METRICS);
    const weft = Weft.spawnBare(a, args);
    await weft.ready(60_000);
    const started = weft.events('ready')[0];
    t.equal(started.routes, ROUTES + 2, 'all routes are there from the start');
    const other = await Weft.start(b, { peers: own });
    const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    await sleep(1500);

    const before = await weft.idle();
    await right.expect();
    await left.send(b.client4, RATE);
    const bulk = right.tcp(a.client6, { bytes: (FULL ? 4096 : 512) * MiB, stallMs: 20_000 });
    const rounds = FULL ? 12 : 4;
    for (let round = 1; round <= rounds; round++) {
      await sleep(300);
      const applied = weft.events('tables_applied').length;
      const begun = performance.now();
      write(round);
      await weft.event('tables_applied', () => weft.events('tables_applied').length > applied, 60_000);
      const took = performance.now() - begun;
      const { actions } = weft.events('tables_applied')[applied];
      t.ok(Number(actions) >= 2 * ROUTES, `round ${round}: ${actions} changes`);
      t.comment(`round ${round}: from the file's change to tables in force ${Math.round(took)} ms`);
    }
    await sleep(300);
    const { sent, refused } = await left.stop();
    const got = await right.countedUpTo(sent);
    t.same(
      { received: got.received, missing: got.missing, reordered: got.reordered, duplicates: got.duplicates, refused },
      { received: sent, missing: 0, reordered: 0, duplicates: 0, refused: 0 },
      `all ${sent} datagrams arrived, in order`,
    );
    t.comment(`longest silence of the stream: ${got.longestSilence} ms`);
    const { flows } = await bulk;
    t.ok(
      flows.every((flow) => flow.sent === flow.received),
      'TCP arrived byte for byte meanwhile',
    );
    const [now] = await assertConserved(t, [weft, other], 'after all', { 'outbound.no_route': true });
    t.equal(
      now.get('outbound.no_route') - before.get('outbound.no_route'),
      now.get('outbound.icmp_forbidden') - before.get('outbound.icmp_forbidden'),
      'no packet of a client found no route',
    );
    t.ok(
      now.get('outbound.device_pulled') - before.get('outbound.device_pulled') >= sent,
      'the counters saw the stream',
    );
    t.equal(await weft.sample('weft_routes'), ROUTES + rounds + 2, 'as many routes as were written last');
    t.equal(await weft.sample('weft_peers'), 1001, 'and peers');
    const took = await weft.stop();
    t.ok(took < 1000, `SIGTERM with full tables: out after ${Math.round(took)} ms`);

    // A change of that size must not make the daemon deaf, neither at the start nor later.
    for (const [what, ready, wait] of [
      ['it starts', false, 700],
      ['they change', true, 300],
      ['they change', true, 900],
    ] as const) {
      write(0);
      const again = Weft.spawnBare(a, args);
      if (ready) {
        await again.ready(60_000);
        write(1);
      }
      await sleep(wait);
      const out = await again.stop();
      t.ok(out < 1000, `SIGTERM ${wait} ms into 10^5 routes while ${what}: out after ${Math.round(out)} ms`);
      t.equal(again.daemon.child.exitCode, 0, `SIGTERM while ${what}: exit code 0`);
    }
  });

  const COUNT = FULL ? 10 : 3;
  await t.test(`a mesh of ${COUNT} hosts`, async (t) => {
    const lab = new Lab('ht-mesh');
    t.teardown(() => lab.close());
    const hosts = makeHosts(lab, { count: COUNT, join: 'bridge', clients: 'own' });
    const peers = join(lab.dir, 'peers.json');
    // The first half knows each other before the second half joins.
    const half = Math.ceil(COUNT / 2);
    writeFileSync(peers, peersFile(hosts.slice(0, half)));
    const wefts: Weft[] = [];
    for (const host of hosts.slice(0, half)) wefts.push(await Weft.start(host, { peers }));
    writeFileSync(peers, peersFile(hosts));
    for (const host of hosts.slice(half)) wefts.push(await Weft.start(host, { peers }));
    for (const weft of wefts.slice(0, half)) await weft.event('tables_applied', ({ peers }) => peers === COUNT - 1);
    const failed: string[] = [];
    await Promise.all(
      hosts.map(async (from) => {
        for (const to of hosts) {
          if (from === to) continue;
          for (const address of [to.client4, to.client6, `10.5.${to.number}.0`]) {
            if (!(await answersPing(from.client, address))) failed.push(`${from.letter} → ${address}`);
          }
        }
      }),
    );
    t.same(failed, [], `all ${COUNT * (COUNT - 1)} pairs reach each other, over IPv4 and IPv6, and the other's device`);
    const agents = await Promise.all(hosts.map((host) => Agent.start(host.client)));
    const flows = await Promise.all(
      agents.map((agent, i) => agent.tcp(hosts[(i + 1) % COUNT].client4, { bytes: 8 * MiB, duplex: true })),
    );
    t.ok(
      flows.every((one) => one.flows.every((flow) => flow.sent === flow.received)),
      'TCP around the ring, all at once',
    );
    await assertConserved(t, wefts, 'mesh', { 'outbound.no_route': true });
  });
}
