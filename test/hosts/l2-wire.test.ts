/**
 * What Weft's layer 2 puts on the wire, as independent readers see it (tcpdump, test/lib/decode.ts, tshark, scapy), and what
 * it makes of what others put there: headers that are right in unusual ways, and headers that are wrong.
 *
 * As in wire.test.ts captures are made where packets are real: the underlay's ends have their offloads off.
 */
import t from 'tap';
import { Lab, run, sleep } from '../../race/hosts.js';
import { type Decoded, decode } from '../lib/decode.js';
import { address, concat, icmp, packet, pattern, tcp, udp } from '../lib/packets.js';
import { Agent, PYTHON, STREAM_PORT } from './lib/agents.js';
import { Capture, realPackets } from './lib/capture.js';
import {
  assertSegments,
  assertTcp,
  assertUdp,
  BROADCAST,
  type Family,
  frame,
  framesIn,
  HABITS,
  mac,
  macOf,
  makeSites,
  pings,
  type Site,
  type Station,
  sendDatagrams,
  sendFrames,
  startSwitch,
  underlayOf,
  VNI,
  VXLAN_PORT,
  writeSwitchPeers,
} from './lib/l2.js';
import { type Assertions, assertConserved, changes, impossible, type Weft } from './lib/weft.js';

const why = impossible('tcpdump', 'tshark', 'ethtool', PYTHON);
t.setTimeout(0);

const ARP = 0x0806;
const IPV4 = 0x0800;
const IPV6 = 0x86dd;
/** For local experiments (IEEE 802): no kernel answers it. */
const NOBODYS = 0x88b5;
const MiB = 1024 * 1024;

// --- readers ---

/** A datagram on the underlay: its headers, and the frame in it. */
interface Tunnelled {
  readonly outer: Decoded;
  readonly vxlan: Uint8Array;
  readonly frame: Buffer;
  readonly type: number;
  /** The packet in the frame, if it is IP. */
  readonly inner: Decoded | undefined;
}

/** Ends a capture; everything in it, every length and checksum checked, outside and inside. */
async function tunnelled(capture: Capture): Promise<Tunnelled[]> {
  return (await capture.stop()).map((bytes) => {
    const outer = decode(bytes);
    const frame = Buffer.from(outer.payload.subarray(8));
    const type = frame.readUInt16BE(12);
    const isIp = type === IPV4 || type === IPV6;
    return {
      outer,
      vxlan: outer.payload.slice(0, 8),
      frame,
      type,
      inner: isIp ? decode(frame.subarray(14)) : undefined,
    };
  });
}

const onWire = (site: Site): Promise<Capture> => Capture.start(site.ns, 'eth0', `udp dst port ${VXLAN_PORT}`);

/** Of tshark's complaints, those about what Weft makes or carries headers of: it also guesses at what is in datagrams. */
const OURS = /Malformed Packet: (VXLAN|Ethernet|IPv?[46]|UDP|TCP|ARP|ICMP)/i;

/** tshark's verdict: how many packets of VXLAN it sees, and every one that it has a complaint about. */
async function tsharkComplaints(
  file: string,
  zeroChecksums: boolean,
): Promise<{ packets: number; complaints: string[] }> {
  const checks = ['ip', 'tcp', 'udp'].flatMap((name) => ['-o', `${name}.check_checksum:TRUE`]);
  const statuses = ['ip', 'udp', 'tcp', 'icmp', 'icmpv6'].map((name) => `${name}.checksum.status`);
  const fields = ['vxlan.vni', 'vxlan.flags', 'vxlan.reserved8', 'vxlan.gbp', '_ws.malformed', 'eth.type', ...statuses];
  const args = ['-r', file, ...checks, '-Y', 'vxlan', '-T', 'fields', ...fields.flatMap((field) => ['-e', field])];
  const { code, stdout, stderr } = await run('tshark', args);
  if (code !== 0) throw new Error(`tshark: ${stderr.trim().split('\n').at(-1)}`);
  const lines = stdout.split('\n').filter(Boolean);
  const complaints = lines.filter((line) => {
    const [vni, flags, reserved, group, malformed, types, ...rest] = line.split('\t');
    const sums = rest.flatMap((text) => text.split(',').filter(Boolean)); // 1 is good, 3 not present, 0 bad, 2 unchecked
    const right =
      Number(vni) === VNI &&
      Number(flags) === 0x0800 &&
      Number(reserved) === 0 &&
      Number(group) === 0 &&
      !OURS.test(malformed);
    return !right || types.split(',').length < 2 || sums.includes('0') || (!zeroChecksums && rest[1].startsWith('3'));
  });
  return { packets: lines.length, complaints };
}

/** scapy takes frames out and builds them anew, with lengths and checksums left to it: prints what differs. */
const SCAPY_REBUILD = `
import sys
from scapy.all import RawPcapReader, Ether, IP, IPv6, TCP, UDP, ICMP, IPv6ExtHdrFragment
from scapy.layers.vxlan import VXLAN
count = 0
for frame, _ in RawPcapReader(sys.argv[1]):
    count += 1
    if count % 5 and count > 200: continue # it takes a millisecond for each
    raw = bytes(Ether(frame)[UDP].payload)
    v = VXLAN(raw)
    if int(v.flags) != 8 or v.vni != int(sys.argv[2]) or v.reserved1 or v.reserved2: print('header', count, raw[:8].hex())
    p = v.payload
    if not isinstance(p, Ether): print('no frame', count); continue
    before = bytes(raw[8:])
    if p.type in (0x800, 0x86dd):
        fragment = (IP in p and (p[IP].frag or p[IP].flags.MF)) or IPv6ExtHdrFragment in p
        if IP in p: del p[IP].chksum, p[IP].len
        elif IPv6 in p: del p[IPv6].plen
        if not fragment:
            for layer in (TCP, UDP):
                if layer in p and ICMP not in p:
                    del p[layer].chksum
                    if layer is UDP: del p[layer].len
    again = bytes(p)
    if again != before: print('frame', count, before.hex(), again.hex())
print('count', count)
`;

async function scapyRebuild(file: string): Promise<string[] | undefined> {
  const { code, stdout, stderr } = await run(PYTHON, ['-c', SCAPY_REBUILD, file, String(VNI)]);
  if (code !== 0 && stderr.includes("No module named 'scapy'")) return undefined;
  if (code !== 0) throw new Error(`scapy: ${stderr.trim().split('\n').at(-1)}`);
  return stdout.trim().split('\n');
}

// --- what is sent ---

interface Rig {
  readonly sites: readonly [Site, Site];
  readonly wefts: readonly [Weft, Weft];
  readonly agents: readonly [Agent, Agent];
}

/** Two hosts with Weft, for the time of `work`. */
async function during(args: readonly string[], work: (rig: Rig) => Promise<void>, family: Family = 4): Promise<void> {
  const lab = new Lab('ht-l2-wire');
  try {
    const [a, b] = makeSites(lab, { count: 2, stationMtu: family === 4 ? 1450 : 1430 });
    for (const { ns } of [a, b]) realPackets(ns, 'eth0');
    const peers = writeSwitchPeers(lab, [a, b], { family });
    const wefts = await Promise.all([startSwitch(a, { peers, family, args }), startSwitch(b, { peers, family, args })]);
    const agents = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    await work({ sites: [a, b], wefts, agents });
  } finally {
    await lab.close();
  }
}

/** Datagrams of `port` with each of `marks` in the TOS or traffic class byte, both families. */
async function sendMarked(from: Station, to: Station, port: number, marks: readonly number[]): Promise<void> {
  for (const tos of marks) {
    for (const where of [to.address4, to.address6]) {
      await sendDatagrams(from.ns, where, [pattern(64)], { tos, port });
    }
  }
}

/** Some of everything, both families, both ways. */
async function variety(t: Assertions, { sites, agents }: Rig): Promise<void> {
  const [a, b] = sites.map((site) => site.stations[0]);
  for (const [from, to] of [
    [agents[0], b],
    [agents[1], a],
  ] as const) {
    for (const where of [to.address4, to.address6]) {
      await assertTcp(t, from, where, `TCP to ${where}`, { bytes: MiB });
      await assertUdp(t, from, where, `UDP to ${where}`, [1, 2, 3, 17, 64, 500, 1380, 1382, 1402, 1422, 1500, 3000]);
    }
  }
  await assertSegments(t, a, b, agents[1], 'UDP_SEGMENT');
  t.ok(await pings(a, b.address4), 'ping');
  t.ok(await pings(a, b.address6), 'ping, IPv6');
  await sendFrames(a.ns, [frame(BROADCAST, a.mac, NOBODYS, pattern(100))], { times: 10 });
}

/** What identifies a flow inside: what a hash of the inner headers may use. */
function flowOf({ frame, inner, type }: Tunnelled): string {
  const macs = frame.subarray(0, 12).toString('hex');
  if (!inner) return `${macs} ${type}`;
  const ports = inner.tcp ?? inner.udp;
  return `${macs} ${inner.source} ${inner.destination} ${inner.protocol} ${ports?.from ?? ''} ${ports?.to ?? ''}`;
}

/** What holds of every datagram. */
function assertVxlan(
  t: Assertions,
  carried: readonly Tunnelled[],
  options: { family?: Family; zero?: boolean; df?: boolean },
): void {
  const { family = 4, zero = false, df = true } = options;
  const all = (what: string, holds: (one: Tunnelled) => boolean): void => {
    t.same(carried.filter((one) => !holds(one)).slice(0, 3), [], `all ${carried.length} datagrams: ${what}`);
  };
  t.ok(carried.length > 500, `${carried.length} datagrams were seen`);
  all('to port 4789, from one above 1023', ({ outer }) => outer.udp?.to === VXLAN_PORT && outer.udp.from > 1023);
  all(
    'the VXLAN header is 08 000000 00002a 00',
    ({ vxlan }) => Buffer.from(vxlan).toString('hex') === '0800000000002a00',
  );
  all('TTL 64', ({ outer }) => outer.ttl === 64);
  // decode() has verified those that are not zero.
  all(`the outer checksum is ${zero ? 'zero' : 'there'}`, ({ outer }) => (outer.udp?.checksum === 0) === zero);
  all('no outer fragments, options or extension headers', ({ outer }) => {
    return !outer.mf && outer.offset === 0 && outer.options.length === 0 && outer.extensions.length === 0;
  });
  if (family === 4) all(`DF is ${df ? 'set' : 'not set'}`, ({ outer }) => outer.df === df);
  all('nothing longer than the underlay takes', ({ outer }) => outer.l4At + outer.l4.length <= 1500);
}

/** Source ports: few, and each flow keeps to one. */
function assertPorts(t: Assertions, carried: readonly Tunnelled[], most: number, atLeast: number): void {
  const flows = new Map<string, Set<number>>();
  const bySource = new Map<string, Set<number>>();
  for (const one of carried) {
    const port = one.outer.udp?.from ?? 0;
    // A fragment but the first has no ports to go by.
    if (!one.inner?.mf && !one.inner?.offset && one.inner?.extensions.length !== 8) {
      const flow = flowOf(one);
      flows.set(flow, (flows.get(flow) ?? new Set()).add(port));
    }
    bySource.set(one.outer.source, (bySource.get(one.outer.source) ?? new Set()).add(port));
  }
  const restless = [...flows].filter(([, ports]) => ports.size > 1);
  t.same(restless.slice(0, 3), [], `each of ${flows.size} flows keeps to one source port`);
  for (const [source, ports] of bySource) {
    t.ok(ports.size <= most && ports.size >= atLeast, `${source} used ${ports.size} source ports, of ${most}`);
  }
}

/** A TCP and UDP flow each from many ports, so that every socket has its turn. */
async function manyFlows(t: Assertions, { sites, agents }: Rig): Promise<void> {
  const [a, b] = sites.map((site) => site.stations[0]);
  await assertTcp(t, agents[0], b.address4, '24 flows', { bytes: 16_384, flows: 24, duplex: true });
  await assertTcp(t, agents[1], a.address6, '24 flows, IPv6', { bytes: 16_384, flows: 24, duplex: true });
  for (const [from, to] of [
    [a, b],
    [b, a],
  ]) {
    const frames = Array.from({ length: 64 }, (_, i) =>
      frame(
        to.mac,
        from.mac,
        IPV4,
        packet({ source: from.address4, destination: to.address4 }, udp({ from: 20_000 + i, to: STREAM_PORT })),
      ),
    );
    await sendFrames(from.ns, frames, { times: 3 });
  }
}

// --- what is received ---

const header = (vni: number, flags = 8, reserved1 = 0, reserved2 = 0): Uint8Array =>
  Uint8Array.of(
    flags,
    ...[16, 8, 0].map((by) => (reserved1 >> by) & 255),
    ...[16, 8, 0].map((by) => (vni >> by) & 255),
    reserved2,
  );

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('the wire', (t) =>
    during([], async (rig) => {
      const { sites, wefts } = rig;
      const capture = await onWire(sites[1]);
      await variety(t, rig);
      await manyFlows(t, rig);
      const carried = await tunnelled(capture);
      assertVxlan(t, carried, {});
      assertPorts(t, carried, 4, 3);
      t.ok(
        carried.every(({ outer }) => outer.tos === 0),
        'TOS 0 outside',
      );
      const types = new Set(carried.map(({ type }) => type));
      t.same(
        [ARP, IPV4, IPV6, NOBODYS].filter((type) => !types.has(type)),
        [],
        'ARP, IPv4, IPv6 and something else were among them',
      );
      const stations = sites.map((site) => site.stations[0]);
      const unicast = carried.filter(({ inner }) => stations.some(({ address4 }) => address4 === inner?.source));
      t.ok(
        unicast.every(({ inner }) => inner?.ttl === 64 || inner?.ttl === 255),
        'inner TTLs are as they were: a switch counts no hops',
      );
      // A sender's segments are numbered one by one, in whatever super-packets they came.
      const flows = new Map<string, Decoded[]>();
      for (const one of carried) {
        if (one.inner?.tcp && one.inner.family === 4)
          flows.set(flowOf(one), [...(flows.get(flowOf(one)) ?? []), one.inner]);
      }
      const jumps = [...flows.values()].flatMap((packets) =>
        packets.slice(1).filter((now, i) => {
          const before = packets[i];
          const follows = now.tcp?.seq === ((before.tcp?.seq ?? 0) + before.payload.length) >>> 0;
          const data = before.payload.length > 0 && now.payload.length > 0;
          return data && follows && ((now.id - before.id) & 0xffff) !== 1;
        }),
      );
      t.same(
        jumps.map(({ source, id }) => [source, id]),
        [],
        'IPv4 ids follow each other',
      );
      const shark = await tsharkComplaints(capture.file, false);
      t.same(shark, { packets: carried.length, complaints: [] }, 'tshark agrees about every field and checksum');
      const scapy = await scapyRebuild(capture.file);
      if (scapy) t.same(scapy, [`count ${carried.length}`], 'scapy builds the same frames, byte for byte');
      else t.comment('no scapy here');
      await assertConserved(t, wefts, 'wire', HABITS);
    }),
  );

  await t.test('no outer checksums, DF not set, one source port', (t) =>
    during(['--outer-checksum', 'off', '--outer-df', 'unset', '--source-ports', '1'], async (rig) => {
      const capture = await onWire(rig.sites[1]);
      await variety(t, rig);
      await manyFlows(t, rig);
      const carried = await tunnelled(capture);
      assertVxlan(t, carried, { zero: true, df: false });
      assertPorts(t, carried, 1, 1);
      const shark = await tsharkComplaints(capture.file, true);
      t.same(shark, { packets: carried.length, complaints: [] }, 'tshark agrees');
      await assertConserved(t, rig.wefts, 'wire', HABITS);
    }),
  );

  for (const checksum of ['on', 'off'] as const) {
    await t.test(`the wire over IPv6, outer checksums ${checksum}, eight source ports`, (t) =>
      during(
        ['--outer-checksum', checksum, '--source-ports', '8'],
        async (rig) => {
          const capture = await onWire(rig.sites[1]);
          await variety(t, rig);
          await manyFlows(t, rig);
          const carried = await tunnelled(capture);
          assertVxlan(t, carried, { family: 6, zero: checksum === 'off' });
          assertPorts(t, carried, 8, 5);
          t.ok(
            carried.every(({ outer }) => outer.family === 6 && outer.tos === 0),
            'IPv6 outside, traffic class 0',
          );
          const shark = await tsharkComplaints(capture.file, checksum === 'off');
          t.same(shark, { packets: carried.length, complaints: [] }, 'tshark agrees');
          await assertConserved(t, rig.wefts, 'wire over IPv6', HABITS);
        },
        6,
      ),
    );
  }

  for (const dscp of ['zero', 'inherit'] as const) {
    for (const family of [4, 6] as const) {
      await t.test(`ECN and DSCP, --dscp ${dscp}, IPv${family} outside`, (t) =>
        during(
          ['--dscp', dscp],
          async (rig) => {
            const [a, b] = rig.sites.map((site) => site.stations[0]);
            t.ok((await pings(a, b.address4)) && (await pings(a, b.address6)), 'they know each other');
            const marks = [0, 1, 2, 3, 0xb8, 0xb9, 0xba, 0xbb, 0x28, 0xfc];
            const capture = await onWire(rig.sites[1]);
            const inside = await Capture.start(b.ns, 'eth0', 'udp port 7777');
            await sendMarked(a, b, 7777, marks);
            const carried = (await tunnelled(capture)).filter(({ inner }) => inner?.udp?.to === 7777);
            const outside = (inner: number): number => (dscp === 'inherit' ? inner : inner & 3);
            t.same(
              carried.map(({ outer, inner }) => [inner?.tos, outer.tos]),
              marks.flatMap((mark) => [
                [mark, outside(mark)],
                [mark, outside(mark)],
              ]),
              'RFC 6040, normal mode: ECN as inside',
            );
            const arrived = (await inside.stop()).map((bytes) => decode(bytes, 'quoted').tos);
            t.same(
              arrived,
              marks.flatMap((mark) => [mark, mark]),
              'and inside it stays as it was',
            );
            await assertConserved(t, rig.wefts, 'ECN', HABITS);
          },
          family,
        ),
      );
    }
  }

  for (const family of [4, 6] as const) {
    await t.test(`what others send, IPv${family} outside`, async (t) => {
      // Host a has no daemon: what comes from its address is made here. Host b's registry knows a neighbour behind a.
      const lab = new Lab('ht-l2-wire');
      t.teardown(() => lab.close());
      const [a, b] = makeSites(lab, { count: 2, stationMtu: 1430 });
      const known = { address: '10.7.0.200', mac: '02:07:00:00:00:c8' };
      const known6 = { address: 'fd07::200', mac: '02:07:00:00:00:c8' };
      const peers = writeSwitchPeers(lab, [a, b], { family, extra: { a: { neighbours: [known, known6] } } });
      const weft = await startSwitch(b, { peers, family });
      const far = '02:07:00:00:0a:01';
      const [station] = b.stations;
      const stranger = family === 4 ? '192.168.77.99' : 'fd77::99';
      a.ns.ip(`addr add ${stranger}/${family === 4 ? 24 : 64} dev eth0${family === 4 ? '' : ' nodad'}`);
      const here = { source: '10.7.0.100', destination: station.address4 };
      const here6 = { source: 'fd07::100', destination: station.address6 };
      let number = 0;
      /** A frame that the station can tell from all others. */
      const fresh = (from = far, to = station.mac): Uint8Array =>
        frame(to, from, NOBODYS, concat([0xfe, 0xed, number >> 8, number++ & 255], pattern(60)));
      const framed = (one: Uint8Array, head = header(VNI)): Uint8Array => concat(head, one);

      // The station's MAC is learned, and what its kernel says by itself is over.
      await sendFrames(station.ns, [frame(BROADCAST, station.mac, NOBODYS, pattern(46))]);
      await sleep(1500);

      const capture = await Capture.start(station.ns, 'eth0', `ether src not ${station.mac}`);
      let counted = await weft.idle();
      let seen = 0;

      /** What is counted, and how many frames reach the station, when `payloads` are sent as datagrams. */
      async function expectCounts(
        what: string,
        payloads: readonly Uint8Array[],
        expected: Readonly<Record<string, number>>,
        options: { from?: string; bare?: boolean; tos?: number } = {},
      ): Promise<Buffer[]> {
        await sendDatagrams(a.ns, underlayOf(b, family), payloads, { from: underlayOf(a, family), ...options });
        const before = counted;
        counted = await weft.idle();
        const { 'inbound.super_packets': _, ...moved } = changes(before, counted, 'inbound');
        t.same(moved, { 'inbound.socket_received': payloads.length, ...expected }, what);
        const frames = framesIn(capture.file).slice(seen);
        seen += frames.length;
        const pushed = expected['inbound.device_pushed'] ?? 0;
        t.equal(frames.length, pushed, `${what}: ${pushed} delivered`);
        return frames.map((bytes) => Buffer.from(bytes));
      }
      const delivered = (count: number): Record<string, number> => ({ 'inbound.device_pushed': count });

      const plain = fresh();
      const [arrived] = await expectCounts('a plain frame', [framed(plain)], delivered(1));
      t.equal(arrived.toString('hex'), Buffer.from(plain).toString('hex'), 'arrives as it was sent');
      await expectCounts(
        'reserved bits are ignored',
        [
          framed(fresh(), header(VNI, 0xff)),
          framed(fresh(), header(VNI, 0x88)),
          framed(fresh(), header(VNI, 8, 0xffffff)),
          framed(fresh(), header(VNI, 8, 0, 0xff)),
          framed(fresh(), header(VNI, 0xff, 0xffffff, 0xff)),
        ],
        delivered(5),
      );
      await expectCounts(
        'no I flag',
        [0, 0xf7, 0x80].map((flags) => framed(fresh(), header(VNI, flags))),
        { 'inbound.no_vni_flag': 3 },
      );
      await expectCounts(
        'a short header',
        [1, 2, 4, 7].map((length) => header(VNI).slice(0, length)),
        { 'inbound.short_vxlan': 4 },
      );
      await expectCounts(
        'another VNI',
        [0, 41, 43, VNI << 8, 0xffffff].map((vni) => framed(fresh(), header(vni))),
        { 'inbound.unknown_vni': 5 },
      );
      await expectCounts(
        'a runt',
        [0, 1, 6, 12, 13].map((length) => framed(fresh().slice(0, length))),
        { 'inbound.runt': 5 },
      );
      await expectCounts('nothing but an Ethernet header', [framed(fresh().slice(0, 14))], delivered(1));
      await expectCounts(
        'a source MAC that is a group or nothing',
        ['01:00:5e:00:00:01', BROADCAST, '00:00:00:00:00:00', '33:33:00:00:00:01'].map((from) => framed(fresh(from))),
        { 'inbound.bad_source_mac': 4 },
      );
      const own = [macOf(b.ns, 'weft42'), macOf(b.ns, 'br0')];
      await expectCounts(
        `a loop: from the TAP's MAC, and from its bridge's (${own.join(', ')})`,
        own.map((from) => framed(fresh(from))),
        { 'inbound.loop': 2 },
      );
      await expectCounts(
        'a stranger',
        [framed(fresh()), framed(fresh())],
        { 'inbound.unknown_peer': 2 },
        { from: stranger },
      );
      await expectCounts('no outer checksum', [framed(fresh()), framed(fresh())], delivered(2), { bare: true });
      await expectCounts(
        'a destination that is nobody, and a group',
        [
          framed(fresh(far, '02:ee:00:00:00:01')),
          framed(fresh(far, BROADCAST)),
          framed(fresh(far, '01:00:5e:01:02:03')),
        ],
        delivered(3),
      );
      const tagged = frame(station.mac, far, 0x8100, concat([0, 100, 0x88, 0xb5, 0xfe, 0xed], pattern(60)));
      await expectCounts('a VLAN tag', [framed(tagged)], delivered(1));
      await expectCounts(
        'the largest frame that UDP can carry',
        [framed(frame(station.mac, far, IPV4, packet({ ...here, df: false }, udp({ payload: pattern(1400) }))))],
        delivered(1),
      );

      // ARP, RFC 826.
      const arp = (
        sender: string,
        senderAddress: string,
        target: string,
        head = [0, 1, 8, 0, 6, 4, 0, 1],
      ): Uint8Array =>
        framed(
          frame(
            BROADCAST,
            sender,
            ARP,
            concat(head, mac(sender), address(senderAddress), mac('00:00:00:00:00:00'), address(target), pattern(18)),
          ),
        );
      await expectCounts('an ARP request', [arp(far, here.source, '10.7.0.250')], delivered(1));
      await expectCounts(
        'ARP with wrong lengths',
        [
          arp(far, here.source, '10.7.0.250', [0, 1, 8, 0, 5, 4, 0, 1]),
          arp(far, here.source, '10.7.0.250', [0, 1, 8, 0, 6, 16, 0, 1]),
          arp(far, here.source, '10.7.0.250').slice(0, 8 + 14 + 27),
        ],
        { 'inbound.bad_arp': 3 },
      );
      await expectCounts('ARP that lies about a static neighbour', [arp(far, known.address, known.address)], {
        'inbound.neighbour_conflict': 1,
      });
      await expectCounts(
        'ARP that tells the truth about it',
        [arp(known.mac, known.address, known.address)],
        delivered(1),
      );

      // Neighbour discovery, RFC 4861 7.1.
      const solicitation = (source: string, from: string, ttl: number, body: Uint8Array): Uint8Array => {
        const message = { ...icmp(135, new Uint8Array(0), true), bytes: concat([135, 0, 0, 0, 0, 0, 0, 0], body) };
        const ip = packet({ source, destination: 'ff02::1:ff00:250', ttl, flow: 0 }, message);
        return framed(frame('33:33:ff:00:02:50', from, IPV6, ip));
      };
      const asks = concat(address('fd07::250'), [1, 1], mac(far));
      await expectCounts('a neighbour solicitation', [solicitation(here6.source, far, 255, asks)], delivered(1));
      await expectCounts(
        'neighbour discovery that cannot be: hop limit 254, an option of length 0, half a target',
        [
          solicitation(here6.source, far, 254, asks),
          solicitation(here6.source, far, 255, concat(address('fd07::250'), [1, 0], mac(far))),
          solicitation(here6.source, far, 255, address('fd07::250').slice(0, 8)),
        ],
        { 'inbound.bad_nd': 3 },
      );
      await expectCounts(
        'neighbour discovery that lies about a static neighbour',
        [solicitation(known6.address, far, 255, asks)],
        { 'inbound.neighbour_conflict': 1 },
      );

      // RFC 6040, decapsulation: what a congested router of the underlay says.
      const marked = (tos: number, v6: boolean): Uint8Array => {
        const ip = v6 ? here6 : here;
        const bytes = packet({ ...ip, tos }, tcp({ payload: pattern(100) }));
        return framed(frame(station.mac, far, v6 ? IPV6 : IPV4, bytes));
      };
      for (const v6 of [false, true]) {
        const name = v6 ? 'IPv6' : 'IPv4';
        const bytes = [1, 2, 3].map((tos) => marked(tos, v6));
        const got = await expectCounts(
          `a congestion mark outside, ECN-capable ${name} inside`,
          bytes,
          { ...delivered(3), 'inbound.ecn_marked': 2 },
          { tos: 3 },
        );
        t.same(
          got.map((one) => decode(one.subarray(14)).ecn),
          [3, 3, 3],
          `${name}: the mark goes in, checksums and all`,
        );
        await expectCounts(
          `a congestion mark outside, ${name} inside that is not ECN-capable`,
          [marked(0, v6)],
          { 'inbound.ecn_ce_not_ect': 1 },
          { tos: 3 },
        );
        const kept = await expectCounts(
          `ECT outside, ${name} inside`,
          [0, 1, 2, 3].map((tos) => marked(tos, v6)),
          delivered(4),
          { tos: 2 },
        );
        t.same(
          kept.map((one) => decode(one.subarray(14)).ecn),
          [0, 1, 2, 3],
          `${name}: ECN stays what it was`,
        );
      }

      // Noise, from a seed: some of it good frames in bad headers and the other way round.
      const before = counted;
      const noise = Array.from({ length: 2000 }, (_, i) => {
        const bytes = pattern(1 + ((i * 7919) % 1400), i * 104_729);
        if (i % 4 === 1) return concat(header(VNI), bytes);
        if (i % 4 === 2) return framed(frame(station.mac, far, i % 8 < 4 ? IPV4 : IPV6, bytes));
        if (i % 4 === 3) return framed(frame(BROADCAST, far, i % 8 < 4 ? ARP : IPV6, bytes));
        return bytes;
      });
      await sendDatagrams(a.ns, underlayOf(b, family), noise, { from: underlayOf(a, family) });
      await sleep(200);
      const after = await weft.idle();
      t.equal(after.in - before.in >= noise.length, true, 'noise: every datagram came in');
      t.equal(after.in + after.made, after.sent + after.consumed + after.dropped, 'noise: and ended somewhere');
      counted = after;
      seen = framesIn(capture.file).length;
      await expectCounts('after the noise a plain frame', [framed(fresh())], delivered(1));
      t.equal(await weft.sample('weft_worker_restarts_total'), 0, 'its worker never fell over');
    });
  }
}
