/**
 * Weft's TAP on one host and the kernel's own vxlan device on the other, each in a Linux bridge, and what stations behind them
 * see of each other: ARP and ND, ping, broadcast, TCP byte for byte, UDP of every size, UDP_SEGMENT. With veth's offloads as
 * they are (then a kernel sends super-frames with partial checksums), with none of them, with and without outer checksums,
 * over IPv4 and IPv6, and with a large MTU. Weft at both ends has to do the same.
 */
import t from 'tap';
import { Lab } from '../../race/hosts.js';
import { OFFLOAD_NAMES } from '../../src/io/offloads.js';
import { Agent, MiB, PYTHON, sendSegments } from './lib/agents.js';
import {
  assertEverybodyOnce,
  assertResolves,
  assertSegments,
  assertTcp,
  assertUdp,
  type Family,
  forgetNeighbours,
  HABITS,
  kernelVxlan,
  makeSites,
  OVERHEAD,
  pings,
  type Site,
  startSwitch,
  writeSwitchPeers,
} from './lib/l2.js';
import { type Assertions, assertConserved, FULL, impossible, type Weft } from './lib/weft.js';

const why = impossible('ethtool', 'bridge', PYTHON);
t.setTimeout(0);

const BULK = FULL ? 1024 * MiB : 128 * MiB;
const SOME = FULL ? 256 * MiB : 32 * MiB;

type Kind = 'kernel' | 'weft';

interface Setup {
  /** At host a and at host b. */
  readonly ends: readonly [Kind, Kind];
  readonly family?: Family;
  readonly mtu?: number;
  /** Of weftd. */
  readonly args?: readonly string[];
  /** Of the kernel's device. */
  readonly extra?: string;
  /** ethtool -K words for the underlay and for all veths of stations; default: as veth comes. */
  readonly offloads?: readonly string[];
  /** The same, for the underlay's ends alone. */
  readonly underlayOffloads?: readonly string[];
  /** Default true. */
  readonly checked?: boolean;
}

const NONE = ['tx', 'rx', 'sg', 'tso', 'gso', 'gro'].flatMap((name) => [name, 'off']);

interface Rig {
  readonly sites: readonly [Site, Site];
  readonly agents: readonly [Agent, Agent];
  readonly wefts: readonly Weft[];
  /** Of the stations. */
  readonly mtu: number;
}

/** Two hosts for the time of `work`. */
async function during(setup: Setup, work: (rig: Rig) => Promise<void>): Promise<void> {
  const { ends, family = 4, mtu = 1500, offloads, extra = '', args = [], checked = true } = setup;
  const lab = new Lab('ht-l2-kernel');
  try {
    const stationMtu = mtu - OVERHEAD[family];
    const [a, b] = makeSites(lab, { count: 2, mtu, stationMtu });
    const sites = [a, b] as const;
    for (const { ns, stations } of sites) {
      if (offloads) {
        ns.runSync('ethtool', '-K', 'eth0', ...offloads);
        for (const station of stations) {
          ns.runSync('ethtool', '-K', station.port, ...offloads);
          station.ns.runSync('ethtool', '-K', 'eth0', ...offloads);
        }
      }
      if (setup.underlayOffloads) ns.runSync('ethtool', '-K', 'eth0', ...setup.underlayOffloads);
    }
    const peers = writeSwitchPeers(lab, sites, { family });
    const wefts: Weft[] = [];
    for (const [i, site] of sites.entries()) {
      if (ends[i] === 'kernel') kernelVxlan(site, sites, { family, extra });
      else wefts.push(await startSwitch(site, { peers, family, args, checked }));
    }
    const agents = [await Agent.start(a.client), await Agent.start(b.client)] as const;
    await work({ sites, agents, wefts, mtu: stationMtu });
  } finally {
    await lab.close();
  }
}

/** One datagram of each size in one frame, then sizes that the station's kernel has to fragment. */
function sizesUpTo(mtu: number): number[] {
  const whole = mtu - 28;
  const step = FULL ? 1 : Math.max(7, Math.floor(whole / 250));
  const sizes = Array.from({ length: whole }, (_, i) => i + 1);
  const chosen = sizes.filter((size) => size < 70 || size > whole - 30 || size % step === 0);
  return [...chosen, whole + 1, whole + 20, 2 * whole, 8192, 8972, 9001].filter((size) => size <= 9001);
}

interface Extent {
  readonly bulk: number;
  readonly some: number;
}

/** All that is asked of two hosts. */
async function everything(t: Assertions, rig: Rig, { bulk, some }: Extent): Promise<void> {
  const { sites, agents, wefts, mtu } = rig;
  const [a, b] = sites.map((site) => site.stations[0]);
  const [left, right] = agents;
  await assertResolves(t, a, b, 'neighbours');
  for (const [from, to] of [
    [a, b],
    [b, a],
  ]) {
    const whole = ['-M', 'do', '-s'];
    t.ok(await pings(from, to.address4, 2, ...whole, String(mtu - 28)), `ping with a full frame to ${to.name}`);
    t.ok(await pings(from, to.address6, 2, ...whole, String(mtu - 48)), `the same by IPv6 to ${to.name}`);
  }
  await assertEverybodyOnce(
    t,
    [a, b],
    [
      { station: a, agent: left },
      { station: b, agent: right },
    ],
    'groups',
    20,
  );
  await assertTcp(t, left, b.address4, `${a.name} to ${b.name}, IPv4`, { bytes: bulk });
  await assertTcp(t, right, a.address4, `${b.name} to ${a.name}, IPv4`, { bytes: bulk });
  await assertTcp(t, left, b.address6, `${a.name} to ${b.name}, IPv6`, { bytes: some });
  await assertTcp(t, right, a.address6, `${b.name} to ${a.name}, IPv6`, { bytes: some });
  await assertTcp(t, left, b.address4, 'both ways at once, IPv4', { bytes: some, duplex: true });
  await assertTcp(t, right, a.address6, '16 flows both ways, IPv6', { bytes: some / 16, flows: 16, duplex: true });
  for (const [from, to] of [
    [left, b],
    [right, a],
  ] as const) {
    const whole = sizesUpTo(mtu);
    await assertUdp(t, from, to.address4, `UDP to ${to.name}, IPv4`, whole);
    await assertUdp(t, from, to.address6, `UDP to ${to.name}, IPv6`, whole);
  }
  await assertSegments(t, a, b, right, `UDP_SEGMENT from ${a.name}`, mtu);
  await assertSegments(t, b, a, left, `UDP_SEGMENT from ${b.name}`, mtu);
  if (wefts.length > 0) await assertConserved(t, wefts, 'afterwards', HABITS);
}

/** The parts that may go wrong where only the outer headers differ. */
async function essentials(t: Assertions, rig: Rig, some = SOME): Promise<void> {
  const { sites, agents, wefts, mtu } = rig;
  const [a, b] = sites.map((site) => site.stations[0]);
  const [left, right] = agents;
  await assertResolves(t, a, b, 'neighbours');
  await assertTcp(t, left, b.address4, `${a.name} to ${b.name}, IPv4`, { bytes: some });
  await assertTcp(t, right, a.address4, `${b.name} to ${a.name}, IPv4`, { bytes: some });
  await assertTcp(t, left, b.address6, '8 flows both ways, IPv6', { bytes: some / 8, flows: 8, duplex: true });
  const sizes = [1, 2, 3, 17, 18, 46, 64, 500, 1000, mtu - 48, mtu - 28, mtu - 27, 3000, 8192];
  await assertUdp(t, left, b.address4, `UDP to ${b.name}`, sizes);
  await assertUdp(t, right, a.address6, `UDP to ${a.name}, IPv6`, sizes);
  await assertSegments(t, a, b, right, `UDP_SEGMENT from ${a.name}`, mtu);
  if (wefts.length > 0) await assertConserved(t, wefts, 'afterwards', HABITS);
}

const MIXED = ['kernel', 'weft'] as const;
const BOTH = ['weft', 'weft'] as const;

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  // The bench itself, before anybody blames Weft.
  if (FULL) {
    await t.test('kernel and kernel, for comparison', (t) =>
      during({ ends: ['kernel', 'kernel'] }, (rig) => everything(t, rig, { bulk: SOME, some: SOME })),
    );
  }

  await t.test('kernel and Weft, veth as it comes', (t) =>
    during({ ends: MIXED, checked: false }, async (rig) => {
      await everything(t, rig, { bulk: BULK, some: SOME });
      const now = await rig.wefts[0].counters();
      t.ok(now.get('inbound.partial_checksums') > 0, 'the kernel left checksums to the device, and Weft saw it');
      t.ok(now.get('inbound.unsegmented') > 0, 'and segmentation');
      t.ok(now.get('outbound.super_packets') > 0, "the station's super-packets were split");
    }),
  );

  await t.test('kernel and Weft, no offload anywhere', (t) =>
    during({ ends: MIXED, offloads: NONE }, async (rig) => {
      await everything(t, rig, { bulk: FULL ? BULK : SOME, some: FULL ? SOME : 8 * MiB });
      const now = await rig.wefts[0].counters();
      t.equal(now.get('inbound.unsegmented'), 0, 'every frame came whole');
    }),
  );

  await t.test('kernel and Weft, the underlay like a network card', (t) =>
    // Checksummed and cut up on the way out, put together on the way in.
    during({ ends: MIXED, underlayOffloads: ['tx', 'off', 'tso', 'off', 'gso', 'off', 'gro', 'on'] }, (rig) =>
      essentials(t, rig),
    ),
  );

  await t.test('kernel and Weft, udpcsum', (t) =>
    during({ ends: MIXED, extra: 'udpcsum', args: ['--outer-checksum', 'on'] }, (rig) => essentials(t, rig)),
  );

  await t.test('kernel and Weft, no outer checksums', (t) =>
    during({ ends: MIXED, extra: 'noudpcsum', args: ['--outer-checksum', 'off'] }, (rig) =>
      FULL ? everything(t, rig, { bulk: BULK, some: SOME }) : essentials(t, rig),
    ),
  );

  await t.test('kernel and Weft, no outer checksums, no offload anywhere', (t) =>
    during({ ends: MIXED, extra: 'noudpcsum', args: ['--outer-checksum', 'off'], offloads: NONE }, (rig) =>
      essentials(t, rig, FULL ? SOME : 8 * MiB),
    ),
  );

  await t.test('kernel and Weft over IPv6', (t) =>
    during({ ends: MIXED, family: 6 }, (rig) =>
      FULL ? everything(t, rig, { bulk: BULK, some: SOME }) : essentials(t, rig),
    ),
  );

  for (const checksum of ['on', 'off'] as const) {
    await t.test(`kernel and Weft over IPv6, udp6zerocsumtx, udp6zerocsumrx, ours ${checksum}`, (t) =>
      during(
        {
          ends: MIXED,
          family: 6,
          extra: 'udp6zerocsumtx udp6zerocsumrx',
          args: ['--outer-checksum', checksum],
        },
        (rig) => (FULL ? everything(t, rig, { bulk: BULK, some: SOME }) : essentials(t, rig)),
      ),
    );
  }

  for (const ends of [MIXED, BOTH]) {
    await t.test(`${ends.join(' and ')}, MTU 9050`, (t) =>
      during({ ends, mtu: 9050 }, async (rig) => {
        const [a, b] = rig.sites.map((site) => site.stations[0]);
        const [left, right] = rig.agents;
        t.equal(rig.mtu, 9000, 'a station sends 9000 bytes');
        await assertUdp(t, left, b.address4, `UDP to ${b.name}, IPv4`, sizesUpTo(9000));
        await assertUdp(t, right, a.address4, `UDP to ${a.name}, IPv4`, sizesUpTo(9000));
        await assertUdp(t, left, b.address6, `UDP to ${b.name}, IPv6`, sizesUpTo(9000));
        await assertTcp(t, left, b.address4, `${a.name} to ${b.name}, IPv4`, { bytes: SOME });
        await assertTcp(t, right, a.address6, `${b.name} to ${a.name}, IPv6`, { bytes: SOME });
        await assertSegments(t, a, b, right, `UDP_SEGMENT from ${a.name}`, 9000);
        for (const [from, to] of [
          [a, b],
          [b, a],
        ]) {
          forgetNeighbours(a, b);
          t.ok(await pings(from, to.address4, 2, '-M', 'do', '-s', '8972'), `a ping of 8972 bytes to ${to.name}`);
        }
        await assertConserved(t, rig.wefts, 'afterwards', HABITS);
      }),
    );
  }

  await t.test('kernel and Weft, MTU 9050, IPv6 underlay, no offload anywhere', (t) =>
    during({ ends: MIXED, family: 6, mtu: 9050, offloads: NONE }, (rig) => essentials(t, rig, 8 * MiB)),
  );

  await t.test('Weft and Weft', (t) =>
    during({ ends: BOTH, checked: false }, (rig) => everything(t, rig, { bulk: BULK, some: SOME })),
  );

  await t.test('Weft and Weft, none of its offloads', (t) =>
    during({ ends: BOTH, args: ['--offload', 'none'] }, (rig) => essentials(t, rig, FULL ? SOME : 16 * MiB)),
  );

  await t.test('Weft and Weft over IPv6, no outer checksums', (t) =>
    during({ ends: BOTH, family: 6, args: ['--outer-checksum', 'off'] }, (rig) =>
      FULL ? everything(t, rig, { bulk: BULK, some: SOME }) : essentials(t, rig),
    ),
  );

  await t.test('kernel and Weft, none of its offloads', (t) =>
    during({ ends: MIXED, args: ['--offload', 'none'] }, (rig) => essentials(t, rig, FULL ? SOME : 16 * MiB)),
  );

  await t.test('kernel and Weft, two workers', (t) =>
    during({ ends: MIXED, args: ['--workers', '2'] }, async (rig) => {
      await essentials(t, rig);
      // What one worker learned the other one knows.
      const [a, b] = rig.sites.map((site) => site.stations[0]);
      const before = await rig.wefts[0].idle();
      await assertTcp(t, rig.agents[1], a.address4, '32 flows, IPv4', { bytes: MiB, flows: 32, duplex: true });
      await assertTcp(t, rig.agents[0], b.address6, '32 flows, IPv6', { bytes: MiB, flows: 32, duplex: true });
      const now = await rig.wefts[0].idle();
      const flooded = now.get('outbound.flooded') - before.get('outbound.flooded');
      t.ok(flooded < 20, `${flooded} frames were flooded for want of knowledge`);
      const sent = now.get('outbound.socket_sent') - before.get('outbound.socket_sent');
      t.ok(sent > 10_000, `of ${sent}`);
    }),
  );

  for (const ends of [MIXED, BOTH]) {
    await t.test(`${ends.join(' and ')}, TCP and UDP as some senders have them`, (t) =>
      during({ ends }, async (rig) => {
        const [a, b] = rig.sites.map((site) => site.stations[0]);
        const [left, right] = rig.agents;
        const both = async (what: string, bytes: number): Promise<void> => {
          await assertTcp(t, left, b.address4, `${what}, IPv4`, { bytes, duplex: true });
          await assertTcp(t, right, a.address6, `${what}, IPv6`, { bytes, duplex: true });
        };
        for (const { ns } of [a, b]) ns.sysctl({ 'net/ipv4/tcp_ecn': 1 });
        await both('TCP with ECN', SOME / 4);
        for (const mss of [1001, 537, 88]) {
          for (const { ns } of [a, b]) {
            ns.ip(`route replace 10.7.0.0/24 dev eth0 advmss ${mss}`, `route replace fd07::/64 dev eth0 advmss ${mss}`);
          }
          await both(`segments of ${mss} bytes`, FULL ? 16 * MiB : 2 * MiB);
        }
        for (const { ns } of [a, b]) {
          ns.ip('route replace 10.7.0.0/24 dev eth0', 'route replace fd07::/64 dev eth0');
          ns.sysctl({ 'net/ipv4/tcp_timestamps': 0, 'net/ipv4/tcp_sack': 0 });
        }
        await both('no TCP options', SOME / 4);
        await assertTcp(t, left, b.address4, '64 flows', { bytes: MiB / 4, flows: 64, duplex: true });
        for (const [from, to, receiver] of [
          [a, b, right],
          [b, a, left],
        ] as const) {
          for (const size of [100, 1200]) {
            await receiver.expect();
            const sent = await sendSegments(from.ns, to.address4, {
              size,
              each: 40,
              calls: 10,
              last: size - 1,
              bare: true,
            });
            const { received, wrong, missing, reordered } = await receiver.countedUpTo(sent);
            const expected = { received: sent, wrong: 0, missing: 0, reordered: 0 };
            t.same(
              { received, wrong, missing, reordered },
              expected,
              `UDP without checksums to ${to.name}, ${size} bytes`,
            );
          }
          for (const size of [0, 1, 1472, 4000, 20_000]) {
            t.ok(await pings(from, to.address4, 2, '-s', String(size)), `a ping of ${size} bytes to ${to.name}`);
            t.ok(await pings(from, to.address6, 2, '-s', String(size)), `a ping of ${size} bytes to ${to.name}, IPv6`);
          }
        }
        await assertConserved(t, rig.wefts, 'afterwards', HABITS);
      }),
    );
  }

  if (FULL) {
    for (const off of ['tx', 'tso', 'gso', 'tx-udp-segmentation', 'sg']) {
      await t.test(`kernel and Weft, without ${off} on veth`, (t) =>
        during({ ends: MIXED, offloads: [off, 'off'] }, (rig) => essentials(t, rig)),
      );
      await t.test(`kernel and Weft, without ${off} on the underlay`, (t) =>
        during({ ends: MIXED, underlayOffloads: [off, 'off'] }, (rig) => essentials(t, rig)),
      );
    }
    await t.test('kernel and Weft, GRO on every veth', (t) =>
      during({ ends: MIXED, offloads: ['gro', 'on'] }, (rig) => essentials(t, rig)),
    );
    for (const off of OFFLOAD_NAMES) {
      await t.test(`kernel and Weft, Weft without ${off}`, (t) =>
        during({ ends: MIXED, args: ['--offload', `all,-${off}`] }, (rig) => essentials(t, rig)),
      );
    }
  }
}
