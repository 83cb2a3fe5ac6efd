/**
 * What goes in comes out: TCP byte for byte and UDP datagram for datagram between clients of real hosts, with every offload
 * on, every offload off, and each one off alone; IPv4 and IPv6 inside; on either underlay and on both at once. After each:
 * the packets' books balance, and nothing was dropped.
 *
 * The bytes are made from a seed on both sides, and hashed on both sides (lib/agent.ts). Except in the run with everything
 * as users have it, the daemons check every address that goes into a system call (WEFT_CHECK_ADDRESSES).
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Host, Lab, makeHosts, twoHosts } from '../../race/hosts.js';
import { OFFLOAD_NAMES } from '../../src/io/offloads.js';
import { Agent, MiB, PYTHON, sendSegments } from './lib/agents.js';
import { type Assertions, assertConserved, FULL, impossible, METRICS, Weft, writePeers } from './lib/weft.js';

const why = impossible(PYTHON);
t.setTimeout(0);

const BULK = 1024 * MiB;
const CHECKED = { WEFT_CHECK_ADDRESSES: '1' };

/** Everything that fits into one datagram, at least a sample of it, and what the clients' kernels have to fragment. */
const WHOLE = FULL
  ? Array.from({ length: 1444 }, (_, i) => i + 1)
  : [...Array.from({ length: 1444 }, (_, i) => i + 1)].filter((size) => size < 66 || size > 1380 || size % 7 === 0);
const FRAGMENTED = [1445, 1472, 1473, 1500, 2000, 2889, 3000, 4096, 5001, 7777, 8191, 8192];

function sameBytes(
  t: Assertions,
  flows: readonly { sent: string; received: string; wrongAt: number }[],
  message: string,
): void {
  const wrong = flows.filter(({ sent, received, wrongAt }) => sent !== received || wrongAt >= 0);
  t.same(wrong, [], `${message}: the same bytes at both ends`);
}

async function tcp(
  t: Assertions,
  from: Agent,
  to: string,
  what: string,
  options: { bytes: number; flows?: number; duplex?: boolean },
): Promise<void> {
  const { flows, seconds } = await from.tcp(to, options);
  const bytes = flows.reduce((sum, flow) => sum + flow.bytes, 0);
  sameBytes(t, flows, what);
  t.comment(
    `${what}: ${bytes / MiB} MiB in ${seconds.toFixed(1)} s, ${((bytes * 8) / seconds / 1e9).toFixed(2)} Gbit/s`,
  );
}

async function udp(t: Assertions, from: Agent, to: string, what: string, sizes: readonly number[]): Promise<void> {
  const { echoed, again, lost, wrong } = await from.udp(to, sizes);
  t.same(
    { echoed, lost, wrong },
    { echoed: sizes.length, lost: [], wrong: [] },
    `${what}: every datagram came back as it was`,
  );
  // The first one above a path's MTU is lost to path MTU discovery, once per family and direction.
  const few = sizes.some((size) => size > 1400) ? 2 : 0;
  t.ok(again.length <= few, `${what}: sent again: ${again.join(' ') || 'none'}`);
}

/** Datagrams that leave the client many in one piece, as QUIC sends them, and arrive one by one. */
async function segments(t: Assertions, from: Host, to: Agent, address: string, what: string): Promise<void> {
  for (const [size, each, last] of [
    [1200, 40, 1200],
    [1400, 46, 700],
    [512, 64, 4],
    [100, 64, 99],
    [5, 30, 5],
  ]) {
    await to.expect();
    const sent = await sendSegments(from.client, address, { size, each, calls: 50, last });
    const { received, wrong, duplicates, reordered, missing } = await to.countedUpTo(sent);
    const expected = { received: sent, wrong: 0, duplicates: 0, reordered: 0, missing: 0 };
    t.same(
      { received, wrong, duplicates, reordered, missing },
      expected,
      `${what}: ${each} datagrams of ${size} bytes a call`,
    );
  }
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-transfer');
  t.teardown(() => lab.close());

  const [a, b] = twoHosts(lab);
  const hosts = [a, b];
  const peers4 = writePeers(lab, hosts);
  const peers6 = writePeers(lab, hosts, { family: 6, name: 'peers6.json' });
  const [left, right] = await Promise.all(hosts.map((host) => Agent.start(host.client)));

  /** Two daemons for the time of `work`. */
  async function during(
    options: { args?: readonly string[]; underlay?: 4 | 6; env?: Readonly<Record<string, string>> },
    work: (wefts: Weft[]) => Promise<void>,
  ): Promise<void> {
    const { args = [], underlay = 4, env = CHECKED } = options;
    const wefts = await Promise.all(
      hosts.map((host) =>
        Weft.start(host, {
          peers: underlay === 4 ? peers4 : peers6,
          publicIp: underlay === 4 ? host.underlay4 : host.underlay6,
          args,
          env,
        }),
      ),
    );
    try {
      await work(wefts);
    } finally {
      await Promise.all(wefts.map((weft) => weft.stop()));
    }
  }

  /** All that is asked of a pair of hosts. */
  async function everything(t: Assertions, wefts: readonly Weft[], bulk: number, rest: number): Promise<void> {
    await tcp(t, left, b.client4, 'one flow, IPv4', { bytes: bulk });
    await tcp(t, left, b.client6, 'one flow, IPv6', { bytes: FULL ? bulk : rest });
    await tcp(t, right, a.client4, 'the other way, IPv4', { bytes: rest });
    await tcp(t, left, b.client4, 'both ways at once, IPv4', { bytes: rest, duplex: true });
    await tcp(t, right, a.client6, 'both ways at once, IPv6', { bytes: rest, duplex: true });
    await tcp(t, left, b.client4, '32 flows both ways, IPv4', { bytes: rest / 32, flows: 32, duplex: true });
    await Promise.all([
      tcp(t, left, b.client6, '8 flows, IPv6, while', { bytes: rest / 8, flows: 8 }),
      tcp(t, right, a.client4, '8 flows the other way, IPv4', { bytes: rest / 8, flows: 8 }),
    ]);
    for (const [family, to] of [
      ['IPv4', b.client4],
      ['IPv6', b.client6],
    ]) {
      await udp(t, left, to, `UDP in one datagram, ${family}`, WHOLE);
      await udp(t, left, to, `UDP in fragments, ${family}`, FRAGMENTED);
    }
    await segments(t, a, right, b.client4, 'UDP_SEGMENT, IPv4');
    await segments(t, b, left, a.client6, 'UDP_SEGMENT, IPv6');
    await assertConserved(t, wefts, 'afterwards');
  }

  await t.test('all offloads', (t) =>
    during({ env: {} }, async (wefts) => {
      t.same(wefts[0].events('ready')[0].offloads, OFFLOAD_NAMES, 'this kernel has every offload');
      await everything(t, wefts, BULK, FULL ? BULK : 128 * MiB);
      const [, far] = await Promise.all(wefts.map((weft) => weft.counters()));
      t.ok(far.get('inbound.super_packets') > 0 && far.get('outbound.super_packets') > 0, 'super-packets went through');
    }),
  );

  await t.test('no offload', (t) =>
    during({ args: ['--offload', 'none'] }, async (wefts) => {
      t.same(wefts[0].events('ready')[0].offloads, [], 'all are off');
      await everything(t, wefts, BULK, FULL ? BULK : 32 * MiB);
      for (const weft of wefts) {
        const now = await weft.counters();
        for (const name of ['outbound.super_packets', 'inbound.super_packets', 'inbound.merged']) {
          t.equal(now.get(name), 0, `${weft.host.letter}: ${name}`);
        }
        t.equal(now.get('inbound.messages_received'), now.get('inbound.socket_received'), 'one datagram a message in');
        t.equal(now.get('outbound.messages_sent'), now.get('outbound.socket_sent'), 'one datagram a message out');
      }
    }),
  );

  for (const name of OFFLOAD_NAMES) {
    await t.test(`without ${name}`, (t) =>
      during({ args: ['--offload', `all,-${name}`] }, async (wefts) => {
        t.notOk((wefts[0].events('ready')[0].offloads as string[]).includes(name), 'it is off');
        await tcp(t, left, b.client4, 'IPv4', { bytes: 64 * MiB });
        await tcp(t, right, a.client6, 'IPv6', { bytes: 64 * MiB });
        await tcp(t, left, b.client4, 'flows both ways', { bytes: 2 * MiB, flows: 8, duplex: true });
        await udp(t, left, b.client4, 'UDP', [1, 2, 3, 100, 1000, 1444, 4000, 8192]);
        await udp(t, left, b.client6, 'UDP, IPv6', [1, 2, 3, 100, 1000, 1424, 4000, 8192]);
        await segments(t, a, right, b.client4, 'UDP_SEGMENT, IPv4');
        await segments(t, b, left, a.client6, 'UDP_SEGMENT, IPv6');
        await assertConserved(t, wefts, 'afterwards');
      }),
    );
  }

  await t.test('only one side has offloads', async (t) => {
    const wefts = await Promise.all([
      Weft.start(a, { peers: peers4, env: CHECKED }),
      Weft.start(b, { peers: peers4, env: CHECKED, args: ['--offload', 'none'] }),
    ]);
    await tcp(t, left, b.client4, 'from the one that has', { bytes: 64 * MiB });
    await tcp(t, right, a.client6, 'from the one that has not, IPv6', { bytes: 64 * MiB });
    await assertConserved(t, wefts, 'afterwards');
    await Promise.all(wefts.map((weft) => weft.stop()));
  });

  await t.test('IPv6 underlay', (t) =>
    during({ underlay: 6 }, async (wefts) => {
      t.equal(wefts[0].events('ready')[0].mtu, 1452, 'the device leaves room for 48 bytes');
      await everything(t, wefts, FULL ? BULK : 128 * MiB, FULL ? BULK : 32 * MiB);
    }),
  );

  await t.test('two workers', (t) =>
    during({ args: ['--workers', '2'] }, async (wefts) => {
      await tcp(t, left, b.client4, '8 flows, IPv4', { bytes: 16 * MiB, flows: 8, duplex: true });
      await tcp(t, right, a.client6, '8 flows, IPv6', { bytes: 8 * MiB, flows: 8 });
      await assertConserved(t, wefts, 'afterwards');
    }),
  );

  await t.test('TCP and UDP as some senders have them', (t) =>
    during({}, async (wefts) => {
      await tcp(t, left, b.client4, '128 flows', { bytes: MiB / 2, flows: 128, duplex: true });
      for (const mss of [1001, 537, 88]) {
        for (const { client, number } of hosts) {
          client.ip(
            `route replace default via 10.5.${number}.1 advmss ${mss}`,
            `route replace default via fd00:5:0:${number}::1 advmss ${mss}`,
          );
        }
        await tcp(t, left, b.client4, `segments of ${mss} bytes, IPv4`, { bytes: 4 * MiB, duplex: true });
        await tcp(t, right, a.client6, `segments of ${mss} bytes, IPv6`, { bytes: 4 * MiB, duplex: true });
      }
      for (const { client, number } of hosts) {
        client.ip(`route replace default via 10.5.${number}.1`, `route replace default via fd00:5:0:${number}::1`);
        client.sysctl({ 'net/ipv4/tcp_timestamps': 0, 'net/ipv4/tcp_sack': 0 });
      }
      await tcp(t, left, b.client4, 'no TCP options', { bytes: 32 * MiB, duplex: true });
      await tcp(t, left, b.client6, 'no TCP options, IPv6', { bytes: 32 * MiB, duplex: true });
      for (const { client } of hosts) client.sysctl({ 'net/ipv4/tcp_timestamps': 1, 'net/ipv4/tcp_sack': 1 });
      for (const size of [100, 1200]) {
        await right.expect();
        const sent = await sendSegments(a.client, b.client4, { size, each: 40, calls: 25, last: size - 1, bare: true });
        const { received, wrong, missing, reordered } = await right.countedUpTo(sent);
        const expected = { received: sent, wrong: 0, missing: 0, reordered: 0 };
        t.same({ received, wrong, missing, reordered }, expected, `UDP without checksums, ${size} bytes`);
      }
      await assertConserved(t, wefts, 'afterwards');
    }),
  );

  for (const mtu of [9000, 65_535]) {
    await t.test(`an underlay with an MTU of ${mtu}`, async (t) => {
      const lab = new Lab('ht-jumbo');
      t.teardown(() => lab.close());
      const hosts = makeHosts(lab, { count: 2, join: 'veth', clients: 'own', mtu });
      const peers = writePeers(lab, hosts);
      for (const { ns, client } of hosts) {
        ns.ip(`link set lan0 mtu ${mtu}`);
        client.ip(`link set eth0 mtu ${mtu}`);
      }
      const wefts = await Promise.all(hosts.map((host) => Weft.start(host, { peers, env: CHECKED })));
      const [left, right] = await Promise.all(hosts.map((host) => Agent.start(host.client)));
      const [a, b] = hosts;
      t.equal(wefts[0].events('ready')[0].mtu, mtu - 28, 'all of it is used');
      await tcp(t, left, b.client4, 'IPv4', { bytes: 64 * MiB, duplex: true });
      await tcp(t, right, a.client6, 'IPv6', { bytes: 64 * MiB, duplex: true });
      await udp(t, left, b.client4, 'UDP', [1, 1444, 8000, 8944, 9000, 20_000, 65_000]);
      await udp(t, left, b.client6, 'UDP, IPv6', [1, 1444, 8000, 8924, 9000, 20_000, 65_000]);
      await assertConserved(t, wefts, 'afterwards');
    });
  }

  await t.test('IPv4 only, ports of their own', async (t) => {
    const entry = (host: Host, port: number): object => ({ address: host.underlay4, port, subnets: [host.subnet4] });
    const path = join(lab.dir, 'ports.json');
    writeFileSync(path, JSON.stringify({ peers: [entry(a, 8290), entry(b, 8291)] }));
    const wefts = [a, b].map((host, i) => {
      const args = ['--network', '10.5.0.0/16', '--subnet', host.subnet4, '--public-ip', host.underlay4];
      args.push('--port', String(8290 + i), '--peers', path, '--metrics-address', METRICS);
      return Weft.spawnBare(host, args);
    });
    await Promise.all(wefts.map((weft) => weft.ready()));
    await tcp(t, left, b.client4, 'IPv4', { bytes: 16 * MiB, duplex: true });
    await assertConserved(t, wefts, 'afterwards');
    for (const weft of wefts) {
      t.same((await weft.idle()).drops, {}, `${weft.host.letter}: an overlay without IPv6 hears nothing of it`);
      await weft.stop();
    }
  });

  await t.test('three hosts, peers on both underlay families', async (t) => {
    const mesh = new Lab('ht-transfer3');
    t.teardown(() => mesh.close());
    const three = makeHosts(mesh, { count: 3, join: 'bridge', clients: 'own' });
    const [a, b, c] = three;
    // a and b meet over IPv4, c over IPv6; b and c over IPv4 again. a has both kinds of peers, so a and c need both addresses.
    const entry = (host: Host, address: string): object => ({
      name: host.letter,
      address,
      subnets: [host.subnet4, host.subnet6],
    });
    const files: readonly (readonly [Host, readonly object[]])[] = [
      [a, [entry(b, b.underlay4), entry(c, c.underlay6)]],
      [b, [entry(a, a.underlay4), entry(c, c.underlay4)]],
      [c, [entry(a, a.underlay6), entry(b, b.underlay4)]],
    ];
    const wefts = await Promise.all(
      files.map(([host, peers]) => {
        const path = join(mesh.dir, `${host.letter}.json`);
        writeFileSync(path, JSON.stringify({ peers }));
        return Weft.start(host, { peers: path, publicIp: `${host.underlay4},${host.underlay6}`, env: CHECKED });
      }),
    );
    const agents = await Promise.all(three.map((host) => Agent.start(host.client)));
    for (const from of three) {
      for (const to of three) {
        if (from === to) continue;
        t.ok(await answersPing(from.client, to.client4), `${from.letter} reaches ${to.letter}, IPv4`);
        t.ok(await answersPing(from.client, to.client6), `${from.letter} reaches ${to.letter}, IPv6`);
      }
    }
    const bytes = FULL ? 256 * MiB : 24 * MiB;
    await Promise.all([
      tcp(t, agents[0], b.client4, 'a to b, IPv4 on IPv4', { bytes, duplex: true }),
      tcp(t, agents[1], c.client6, 'b to c, IPv6 on IPv4', { bytes, duplex: true }),
      tcp(t, agents[2], a.client4, 'c to a, IPv4 on IPv6', { bytes, duplex: true }),
    ]);
    await tcp(t, agents[0], c.client6, 'a to c, IPv6 on IPv6', { bytes, flows: 2 });
    await udp(t, agents[0], c.client4, 'UDP a to c', [1, 700, 1424, 1425, 3000, 8192]);
    await assertConserved(t, wefts, 'afterwards');
  });
}
