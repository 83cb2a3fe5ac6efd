/**
 * The underlay changes while traffic flows: paths become smaller and larger, links, addresses and firewalls go and come.
 *
 * Most of it is watched by a numbered stream of UDP datagrams, 500 to 1,000 a second: what is missing at the other end was
 * lost. Times are bounds that the design promises, or generous ones.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Host, sleep } from '../../race/hosts.js';
import { type Agent, MiB } from './lib/agents.js';
import { makeRig, startBoth } from './lib/rig.js';
import { type Assertions, assertConserved, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('nft');
t.setTimeout(0);

/** Forgets what `host`'s client has learned about path MTUs. */
function forgetPaths(host: Host): void {
  for (const family of ['-4', '-6']) host.client.runSync('ip', family, 'route', 'flush', 'cache');
}

/** TCP goes through, inside IPv4 and (unless the path is too small for it) IPv6. */
async function carries(t: Assertions, from: Agent, to: Host, what: string, only: { v4?: boolean } = {}): Promise<void> {
  for (const address of only.v4 ? [to.client4] : [to.client4, to.client6]) {
    const { flows, seconds } = await from.tcp(address, { bytes: 8 * MiB, stallMs: 20_000 });
    t.ok(
      flows.every((flow) => flow.sent === flow.received),
      `${what}: TCP to ${address} goes`,
    );
    t.comment(`${what}: ${seconds.toFixed(1)} s`);
  }
}

/** A client that does not know the path is told by an ICMP error how much it carries. */
async function tellsClients(t: Assertions, from: Host, to: Host, mtu: number, what: string): Promise<void> {
  forgetPaths(from);
  const { stdout } = await from.client.run('ping', ['-n', '-c1', '-W2', '-M', 'do', '-s', '1400', to.client4]);
  t.match(stdout, `mtu = ${mtu}`, `${what}: clients are told the right size`);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('the underlay path becomes smaller, and larger again', async (t) => {
    const one = async (family: 4 | 6): Promise<void> => {
      const rig = await makeRig(t);
      const { a, b, left } = rig;
      const peers = writePeers(rig.lab, [a, b], { family });
      const wefts = await Promise.all(
        [a, b].map((host) => Weft.start(host, { peers, publicIp: family === 4 ? host.underlay4 : host.underlay6 })),
      );
      const overhead = family === 4 ? 28 : 48;
      const to = family === 4 ? rig.b.underlay4 : rig.b.underlay6;
      const from = family === 4 ? rig.a.underlay4 : rig.a.underlay6;
      const name = `IPv${family} underlay`;
      const okay = (what: string): Promise<void> => carries(t, left, b, `${name}: ${what}`);
      await okay('before');

      // A connection that is under way when it happens.
      const flying = left.tcp(b.client4, { bytes: 384 * MiB, stallMs: 20_000 });
      await sleep(300);
      a.ns.ip(`route replace ${to} dev eth0 src ${from} mtu lock 1400`);
      const { flows, seconds } = await flying;
      t.ok(
        flows.every((flow) => flow.sent === flow.received),
        `${name}: a TCP flow recovers from it`,
      );
      t.comment(`${name}: shrunk under way: ${seconds.toFixed(1)} s`);
      await wefts[0].event('path_mtu', ({ mtu }) => mtu === 1400 - overhead);
      t.equal(await wefts[0].sample('weft_peers_path_mtu_lowered'), 1, `${name}: metrics tell of one lowered peer`);
      const { drops } = await wefts[0].counters();
      t.ok(
        drops['outbound.path_mtu'] > 0,
        `${name}: ${drops['outbound.path_mtu']} datagrams were refused, and counted`,
      );
      await okay('smaller');
      await tellsClients(t, a, b, 1400 - overhead, name);
      await okay('still');
      await assertConserved(t, wefts, `${name}: smaller`, { 'outbound.path_mtu': true, 'outbound.too_big': true });

      // Larger again: lowered peers are asked about every 30 s.
      a.ns.ip(`route del ${to} dev eth0`);
      await wefts[0].event('path_mtu', ({ mtu, before }) => Number(mtu) > Number(before), 45_000);
      t.equal(await wefts[0].sample('weft_peers_path_mtu_lowered'), 0, `${name}: it grows back`);
      forgetPaths(a);
      const size = String(1500 - overhead - 28);
      const { stdout } = await a.client.run('ping', ['-n', '-c1', '-W2', '-M', 'do', '-s', size, b.client4]);
      t.match(stdout, 'bytes from', `${name}: full size goes through`);

      // The interface itself becomes smaller, on both hosts.
      for (const host of [a, b]) host.ns.ip('link set eth0 mtu 1400');
      await okay('smaller link');
      for (const host of [a, b]) host.ns.ip('link set eth0 mtu 1500');
      await okay('larger link');
      await Promise.all(wefts.map((weft) => weft.stop()));
    };
    await Promise.all([one(4), one(6)]);
  });

  await t.test('a router on the underlay says that its next link is smaller', async (t) => {
    const rig = await makeRig(t);
    const { lab, a, b, left } = rig;
    // a.up0 -- r -- b.up0, of which the far half carries 1300.
    const r = lab.namespace('r');
    r.sysctl({ 'net/ipv4/ip_forward': 1 });
    const ends = [
      { host: a, net: '192.168.78', mtu: 1500 },
      { host: b, net: '192.168.79', mtu: 1300 },
    ];
    for (const { host, net, mtu } of ends) {
      lab.veth(host.ns, 'up0', r, `down-${host.letter}`, 1500);
      host.ns.ip(`addr add ${net}.1/24 dev up0`, `route add 192.168.78.0/23 via ${net}.254`);
      r.ip(`addr add ${net}.254/24 dev down-${host.letter}`, `link set down-${host.letter} mtu ${mtu}`);
    }
    const entries = ends.map(({ host, net }) => ({
      name: host.letter,
      address: `${net}.1`,
      subnets: [host.subnet4, host.subnet6],
    }));
    const peers = join(lab.dir, 'routed.json');
    writeFileSync(peers, JSON.stringify({ peers: entries }));
    const wefts = await Promise.all(
      ends.map(({ host, net }) => Weft.start(host, { peers, publicIp: `${net}.1`, args: ['--iface', 'up0'] })),
    );
    await carries(t, left, b, 'over a router', { v4: true });
    await wefts[0].event('path_mtu', ({ mtu }) => mtu === 1272);
    await tellsClients(t, a, b, 1272, 'over a router');
    await carries(t, left, b, 'over a router, again', { v4: true });
    await assertConserved(t, wefts, 'over a router', { 'outbound.path_mtu': true, 'outbound.too_big': true });
  });

  await t.test('the underlay goes and comes', async (t) => {
    const rig = await makeRig(t);
    const wefts = await startBoth(rig);
    const { a, b, left, right } = rig;
    t.ok(await answersPing(a.client, b.client4), 'they reach each other');
    await right.expect();
    await left.send(b.client4, 1000);
    await sleep(500);
    a.ns.ip('link set eth0 down');
    await sleep(1500);
    a.ns.ip('link set eth0 up');
    // With the link, the kernel took the IPv6 address; the IPv4 one and its route come back by themselves.
    const up = performance.now();
    t.ok(await answersPing(a.client, b.client4, 10_000), 'it comes back');
    t.comment(`after ${Math.round(performance.now() - up)} ms`);
    await sleep(300);
    const { sent } = await left.stop();
    const got = await right.countedUpTo(sent);
    t.ok(got.gaps.length <= 3, `the stream went on: ${got.received} of ${sent}, in ${got.gaps.length} gaps`);
    t.equal(got.reordered + got.duplicates + got.wrong, 0, 'in order, nothing twice');
    const all = { 'outbound.socket_refused': true, 'outbound.path_mtu': true } as const;
    const [now] = await assertConserved(t, wefts, 'link down', all);
    t.ok(now.drops['outbound.socket_refused'] > 0, `${now.drops['outbound.socket_refused']} refused, and counted`);

    // The far end goes instead: its sender notices nothing but the missing answers.
    b.ns.ip('link set eth0 down');
    await sleep(500);
    b.ns.ip('link set eth0 up');
    t.ok(await answersPing(b.client, a.client4, 10_000), 'and back again');

    // The address goes and comes.
    a.ns.ip(`addr del ${a.underlay4}/24 dev eth0`);
    await sleep(500);
    a.ns.ip(`addr add ${a.underlay4}/24 dev eth0`);
    t.ok(await answersPing(a.client, b.client4, 10_000), 'the address went and came');

    // A firewall that refuses, as an operator may write one.
    a.ns.runSync('nft', 'add', 'table', 'ip', 'f');
    a.ns.runSync('nft', 'add chain ip f o { type filter hook output priority 0 ; }');
    a.ns.runSync('nft', 'add', 'rule', 'ip', 'f', 'o', 'udp', 'dport', '8285', 'reject');
    t.notOk(await answersPing(a.client, b.client4, 500), 'a firewall stops it');
    a.ns.runSync('nft', 'delete', 'table', 'ip', 'f');
    t.ok(await answersPing(a.client, b.client4, 10_000), 'and lets it go on');
    await assertConserved(t, wefts, 'after all', all);
    for (const weft of wefts) t.ok(weft.daemon.running, `${weft.host.letter} runs`);
  });
}
