/**
 * Bridges with several stations behind each TAP, and what people do to such a segment: stations move, with an announcement or
 * without a word; they ask whether an address is free; they tag frames, and send frames that are too large for the path. And
 * what the daemon keeps from the wire: questions that it can answer, storms, and more MACs than a peer may have.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { Lab, type Namespace, sleep } from '../../race/hosts.js';
import { decode } from '../lib/decode.js';
import { address, concat, hex, icmp, packet, pattern, udp } from '../lib/packets.js';
import { Agent, MiB, PYTHON, STREAM_PORT } from './lib/agents.js';
import { Capture } from './lib/capture.js';
import {
  assertResolves,
  assertSegments,
  assertTcp,
  assertUdp,
  BROADCAST,
  forgetNeighbours,
  frame,
  framesIn,
  HABITS,
  kernelVxlan,
  mac,
  macsOf,
  makeSites,
  neighboursOf,
  pings,
  type Site,
  type Station,
  type SwitchOptions,
  sendFrames,
  spawnSwitch,
  startSwitch,
  VXLAN_PORT,
  writeSwitchPeers,
} from './lib/l2.js';
import { type Assertions, assertConserved, FULL, impossible, type Weft } from './lib/weft.js';

const why = impossible('bridge', 'tcpdump', 'ethtool', PYTHON);
t.setTimeout(0);

const SOME = FULL ? 128 * MiB : 16 * MiB;
const ARP = 0x0806;
const IPV4 = 0x0800;
const IPV6 = 0x86dd;
/** For local experiments (IEEE 802): no kernel answers it. */
const NOBODYS = 0x88b5;
const UNKNOWN_MAC = '00:00:00:00:00:00';

type Teardown = { teardown(work: () => Promise<void>): void };

interface Rig {
  readonly lab: Lab;
  readonly sites: readonly Site[];
  readonly wefts: readonly Weft[];
}

interface RigOptions {
  readonly count: number;
  readonly stations?: number;
  readonly mtu?: number;
  readonly stationMtu?: number;
  readonly args?: readonly string[];
  /** For the peers file, by a host's letter. */
  readonly extra?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
}

/** Hosts with Weft on each, gone with the test. */
async function makeRig(t: Assertions & Teardown, options: RigOptions): Promise<Rig> {
  const { args = [], extra = {} } = options;
  const lab = new Lab('ht-l2-bridge');
  t.teardown(() => lab.close());
  const sites = makeSites(lab, options);
  const start: SwitchOptions = { peers: writeSwitchPeers(lab, sites, { extra }), args };
  const wefts = await Promise.all(sites.map((site) => startSwitch(site, start)));
  return { lab, sites, wefts };
}

// --- moving ---

/** Unplugs a station's cable from one host's bridge, and plugs it into another's. The station itself is not touched. */
function replug(station: Station, from: Site, to: Site, all: readonly Site[]): void {
  from.ns.ip(`link set ${station.port} netns ${to.ns.name}`);
  to.ns.sysctl({ [`net/ipv6/conf/${station.port}/disable_ipv6`]: 1 });
  to.ns.ip(`link set ${station.port} master br0`, `link set ${station.port} up`);
  // Linux bridges have a memory of their own, of 300 s. It is Weft's that matters here.
  for (const { ns } of all) ns.ip('link set br0 type bridge fdb_flush');
}

/** Nobody needs ARP: then nothing but what a test sends says where a station is. */
function knowEachOther(stations: readonly Station[]): void {
  for (const from of stations) {
    from.ns.ip(
      ...stations
        .filter((to) => to !== from)
        .map((to) => `neigh replace ${to.address4} lladdr ${to.mac} dev eth0 nud permanent`),
    );
  }
}

/** RFC 826, RFC 5227. */
function arp(
  operation: number,
  sender: { readonly mac: string; readonly address: string },
  target: { readonly mac: string; readonly address: string },
  to = BROADCAST,
): Uint8Array {
  const head = [0, 1, 8, 0, 6, 4, 0, operation];
  const body = concat(head, mac(sender.mac), address(sender.address), mac(target.mac), address(target.address));
  return frame(to, sender.mac, ARP, body);
}

/** An ARP announcement: a request, or a reply, for one's own address. */
const gratuitous = ({ mac, address4 }: Station, operation: 1 | 2): Uint8Array =>
  arp(operation, { mac, address: address4 }, { mac: operation === 1 ? UNKNOWN_MAC : BROADCAST, address: address4 });

/** RFC 4861 4.4, 7.2.6: an unsolicited neighbour advertisement with the override flag. */
function unsolicited({ mac: own, address6 }: Station, router = false): Uint8Array {
  const body = concat(address(address6), [2, 1], mac(own));
  const flags = router ? 0xa0 : 0x20;
  const advertisement = { ...icmp(136, body, true), bytes: concat([136, 0, 0, 0, flags, 0, 0, 0], body) };
  return frame(
    '33:33:00:00:00:01',
    own,
    IPV6,
    packet({ source: address6, destination: 'ff02::1', ttl: 255, flow: 0 }, advertisement),
  );
}

/** RFC 4861 4.3: who has this address? To the MAC `to`, or to the address's group. */
function solicitation({ mac: own, address6 }: Station, target: string, to?: string): Uint8Array {
  const wanted = address(target);
  const last = [...wanted.slice(13)];
  const group = `ff02::1:ff${last[0].toString(16).padStart(2, '0')}:${((last[1] << 8) | last[2]).toString(16)}`;
  const groupMac = `33:33:ff:${last.map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`;
  const body = concat([135, 0, 0, 0, 0, 0, 0, 0], wanted, [1, 1], mac(own));
  const ip = { source: address6, destination: to === undefined ? group : target, ttl: 255, flow: 0 };
  return frame(to ?? groupMac, own, IPV6, packet(ip, { ...icmp(135, new Uint8Array(0), true), bytes: body }));
}

/** Milliseconds from `begun` until `agent` has counted a datagram more. */
async function reachedAfter(agent: Agent, begun: number, timeoutMs: number): Promise<number> {
  const { received } = await agent.counted();
  while (performance.now() - begun < timeoutMs) {
    if ((await agent.counted()).received > received) break;
    await sleep(10);
  }
  return performance.now() - begun;
}

// --- duplicate address detection ---

/** Adds an address with detection on, and tells what came of it: `unique`, or `duplicate`. */
async function detect(station: Station, address6: string): Promise<string> {
  station.ns.sysctl({ 'net/ipv6/conf/eth0/accept_dad': 1, 'net/ipv6/conf/eth0/dad_transmits': 1 });
  station.ns.ip(`addr add ${address6}/64 dev eth0`);
  const [text] = address6.split('/');
  const deadline = performance.now() + 5000;
  for (;;) {
    await sleep(50);
    const line = station.ns.runSync('ip', '-6', '-o', 'addr', 'show', 'dev', 'eth0', 'to', text);
    if (line.includes('tentative') && !line.includes('dadfailed') && performance.now() < deadline) continue;
    station.ns.ip(`addr del ${address6}/64 dev eth0`);
    if (line.includes('dadfailed')) return 'duplicate';
    return line.includes('tentative') ? 'undecided' : 'unique';
  }
}

/** RFC 5227: an ARP probe, from nobody. The MACs that answer within a moment. */
async function probe(station: Station, address4: string): Promise<string[]> {
  const script = `
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
s.bind(('eth0', 0x0806))
s.settimeout(0.1)
target = socket.inet_aton(sys.argv[2])
s.send(bytes.fromhex(sys.argv[1]))
end = time.time() + 0.6
while time.time() < end:
    try: data, where = s.recvfrom(2000)
    except socket.timeout: continue
    if where[2] != 4 and data[20:22] == b'\\0\\2' and data[28:32] == target: print(data[22:28].hex(':'))`;
  const bytes = arp(1, { mac: station.mac, address: '0.0.0.0' }, { mac: UNKNOWN_MAC, address: address4 });
  const { stdout, code, stderr } = await station.ns.run(PYTHON, [
    '-c',
    script,
    Buffer.from(bytes).toString('hex'),
    address4,
  ]);
  if (code !== 0) throw new Error(`ARP probe: ${stderr.trim().split('\n').at(-1)}`);
  return [...new Set(stdout.split('\n').filter(Boolean))];
}

/**
 * What a VLAN device does, for kernels that have none: a TAP whose packets, super-packets with partial checksums among them,
 * go out of eth0 with tags in front of their type, and whose own frames come from there. Arguments: its name, tags in hex.
 */
const PYTHON_TAGS = `
import fcntl, os, select, socket, struct, sys
tags = bytes.fromhex(sys.argv[2])
tap = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', sys.argv[1].encode(), 0x5002))
fcntl.ioctl(tap, 0x400454d0, 7)
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.setsockopt(263, 15, 1) # PACKET_VNET_HDR
link.setsockopt(263, 8, 1)  # PACKET_AUXDATA
link.setsockopt(1, 33, 1 << 25)
link.bind(('eth0', 3))
link.setblocking(False)
def moved(header, by):
    flags, kind, length, size, start, offset = struct.unpack('<BBHHHH', header)
    if flags & 1: start += by
    if kind: length += by
    return struct.pack('<BBHHHH', flags, kind, length, size, start, offset)
print('ready', flush=True)
poll = select.poll()
poll.register(tap, 1)
poll.register(link, 1)
while True:
    poll.poll()
    for _ in range(32):
        try: data = os.read(tap, 70000)
        except BlockingIOError: break
        try: link.send(moved(data[:10], len(tags)) + data[10:22] + tags + data[22:])
        except OSError: pass
    for _ in range(32):
        try: data, extra, _, where = link.recvmsg(70000, 64)
        except BlockingIOError: break
        if where[2] == 4 or not extra: continue
        status, _, _, _, _, tci, tpid = struct.unpack('<IIIHHHH', extra[0][2][:20])
        rest = tags[4:]
        if not status & 16 or struct.pack('>HH', tpid, tci) != tags[:4] or data[22:22 + len(rest)] != rest: continue
        try: os.write(tap, moved(data[:10], -len(rest)) + data[10:22] + data[22 + len(rest):])
        except OSError: pass
`;

/** Gives a station an interface whose frames carry tags (hex, outermost first), with addresses 10.8.net.x, fd08:net::x. */
async function addTagged(station: Station, net: number, tags: string, mtu: number): Promise<Station> {
  const link = `tag${net}`;
  const tagger = station.ns.start(`${station.name}-${link}`, PYTHON, ['-c', PYTHON_TAGS, link, tags]);
  await tagger.ready('ready');
  const number = station.address4.split('.')[3];
  const tagged = {
    ...station,
    mac: station.mac.replace('02:07:00', `02:08:0${net}`),
    address4: `10.8.${net}.${number}`,
    address6: `fd08:${net}::${number}`,
  };
  station.ns.ip(
    `link set ${link} address ${tagged.mac} mtu ${mtu} txqueuelen 10000 up`,
    `addr add ${tagged.address4}/24 dev ${link}`,
    `addr add ${tagged.address6}/64 dev ${link} nodad`,
  );
  station.ns.ip('link set eth0 promisc on');
  return tagged;
}

/** What ping prints about one packet: an answer, or who says why not. */
async function pingLine(from: Namespace, to: string, ...flags: string[]): Promise<string> {
  const { stdout, stderr } = await from.run('ping', ['-n', '-c', '1', '-W', '2', ...flags, to]);
  return (
    `${stdout}${stderr}`.split('\n').find((line) => /^From|bytes from|local error|too long/i.test(line)) ?? 'no answer'
  );
}

const forgetPaths = (...stations: readonly Station[]): void => {
  for (const { ns } of stations) {
    for (const family of ['-4', '-6']) ns.runSync('ip', family, 'route', 'flush', 'cache');
  }
};

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('several stations behind each TAP', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 2, stations: 3 });
    const stations = sites.flatMap((site) => site.stations);
    const [a, b] = sites.map((site) => site.stations);
    const agents = await Promise.all(stations.map((station) => Agent.start(station.ns)));
    await assertResolves(t, a[0], b[2], 'bridge');
    await assertResolves(t, a[1], b[0], 'bridge');
    const pairs = stations.flatMap((from) => stations.filter((to) => to !== from).map((to) => [from, to]));
    const lost = await Promise.all(
      pairs.map(async ([from, to]) => {
        const answered = (await pings(from, to.address4, 3)) && (await pings(from, to.address6, 3));
        return answered ? '' : `${from.name} to ${to.name}`;
      }),
    );
    t.same(lost.filter(Boolean), [], 'every station reaches every other');
    await Promise.all(
      a.map((_, i) =>
        assertTcp(t, agents[i], b[(i + 1) % 3].address4, `a${i + 1} to the other host`, {
          bytes: SOME,
          duplex: true,
        }),
      ),
    );
    await Promise.all([
      assertTcp(t, agents[0], a[1].address4, 'between neighbours', { bytes: SOME }),
      assertTcp(t, agents[3], a[2].address6, 'and across', { bytes: SOME }),
    ]);
    const shown = (await macsOf(wefts[0])).filter((entry) => entry.mac.startsWith('02:07:'));
    const at = (station: Station): string | null | undefined => shown.find((entry) => entry.mac === station.mac)?.peer;
    t.same(b.map(at), ['b', 'b', 'b'], "the other host's stations are there");
    t.same(a.map(at), [null, null, null], 'ours are here');
    t.ok(
      shown.every(({ vni, origin, ageSeconds }) => vni === 42 && origin === 'learned' && (ageSeconds ?? 99) < 20),
      'learned, and their age is that of the last frame',
    );
    const neighbours = await neighboursOf(wefts[0]);
    for (const station of b) {
      t.ok(
        neighbours.some((entry) => entry.address === station.address4 && entry.mac === station.mac),
        `the neighbours have ${station.address4}`,
      );
    }
    await assertConserved(t, wefts, 'bridge', HABITS);
  });

  await t.test('questions that the daemon can answer stay at home', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 2, stations: 2 });
    const [[a1, a2], [b1, b2]] = sites.map((site) => site.stations);
    await assertResolves(t, a1, b1, 'first');
    const before = await wefts[0].idle();
    const capture = await Capture.start(sites[0].ns, 'eth0', `udp port ${VXLAN_PORT}`);
    forgetNeighbours(a1, a2);
    // The other station never asked: what the first one's question taught is good for all.
    t.ok(await pings(a2, b1.address4), 'a station that has not asked before reaches the far one');
    t.ok(await pings(a2, b1.address6), 'and by IPv6');
    await capture.stop();
    const asked = framesIn(capture.file)
      .map((bytes) => Buffer.from(bytes.subarray(50))) // outer Ethernet, IPv4, UDP, VXLAN
      .filter((inner) => inner.subarray(6, 12).equals(Buffer.from(mac(a2.mac))))
      .filter((inner) => inner.readUInt16BE(12) === ARP && inner.readUInt16BE(20) === 1 && inner[0] === 0xff);
    t.same(asked.length, 0, 'no ARP request went to the wire');
    const now = await wefts[0].idle();
    t.ok(now.get('outbound.answered') > before.get('outbound.answered'), 'the daemon answered');
    t.ok(now.get('outbound.arp_answers_made') > before.get('outbound.arp_answers_made'), 'by ARP');
    const known = a2.ns.runSync('ip', 'neigh', 'show', 'dev', 'eth0');
    t.match(known, `${b1.address4} lladdr ${b1.mac}`, "with the owner's MAC");

    // The answers' bytes. The owner becomes a router meanwhile, and says so.
    for (const router of [false, true]) {
      await sendFrames(b1.ns, [unsolicited(b1, router)]);
      await sleep(50);
      const answers = await Capture.start(a2.ns, 'eth0', `ether dst ${a2.mac}`);
      await sendFrames(a2.ns, [
        arp(1, { mac: a2.mac, address: a2.address4 }, { mac: UNKNOWN_MAC, address: b1.address4 }),
      ]);
      await sendFrames(a2.ns, [solicitation(a2, b1.address6)]);
      await answers.stop();
      const frames = framesIn(answers.file).map((bytes) => Buffer.from(bytes));
      const [reply, ...moreReplies] = frames.filter((bytes) => bytes.readUInt16BE(12) === ARP);
      const wanted = arp(2, { mac: b1.mac, address: b1.address4 }, { mac: a2.mac, address: a2.address4 }, a2.mac);
      t.equal(
        reply?.subarray(0, 42).toString('hex'),
        Buffer.from(wanted).toString('hex'),
        'an ARP reply as the owner sends it',
      );
      t.same(moreReplies, [], 'one');
      const [advertised, ...more] = frames.filter((bytes) => bytes.readUInt16BE(12) === IPV6 && bytes[54] === 136);
      const { icmp: fields, payload, ttl, source } = decode(advertised.subarray(14));
      const option = concat(address(b1.address6), [2, 1], mac(b1.mac));
      const got = `from ${hex(advertised.subarray(6, 12))}, ${source}, ${ttl}: ${fields?.word.toString(16)} ${hex(payload)}`;
      t.equal(
        got,
        `from ${hex(mac(b1.mac))}, fd07:0:0:0:0:0:0:21, 255: ${router ? 'c' : '4'}0000000 ${hex(option)}`,
        `an advertisement with S, without O, and ${router ? 'with' : 'without'} R`,
      );
      t.same(more, [], 'one');
    }

    // Asked by unicast, Linux answers without its MAC (RFC 4861 7.2.4): the flag counts all the same.
    for (const router of [false, true]) {
      b1.ns.sysctl({ 'net/ipv6/conf/all/forwarding': router ? 1 : 0 });
      await sendFrames(a1.ns, [solicitation(a1, b1.address6, b1.mac)]);
      await sleep(100);
      const entry = (await neighboursOf(wefts[0])).find(({ address }) => address === b1.address6);
      t.equal(entry?.router, router, `an advertisement without option says that it is ${router ? 'a' : 'no'} router`);
    }

    // An address that changes hands: to a station next to it, and to one of ours.
    for (const [from, to] of [
      [b1, b2],
      [b2, a1],
    ] as const) {
      from.ns.ip(`addr del ${b1.address4}/24 dev eth0`);
      to.ns.ip(`addr add ${b1.address4}/24 dev eth0`);
      await sendFrames(to.ns, [gratuitous({ ...to, address4: b1.address4 }, 1)]);
      await sleep(50);
      forgetNeighbours(a2);
      t.ok(await pings(a2, b1.address4), `an address goes from ${from.name} to ${to.name}`);
      t.match(
        a2.ns.runSync('ip', 'neigh', 'show', 'dev', 'eth0'),
        `${b1.address4} lladdr ${to.mac}`,
        'and its MAC with it',
      );
    }
    await assertConserved(t, wefts, 'proxy', HABITS);
  });

  await t.test('static neighbours', async (t) => {
    // The registry knows a station behind b that has never said a word.
    const quiet = { mac: '02:07:00:00:02:01', address4: '10.7.0.21', address6: 'fd07::21' };
    const { sites, wefts } = await makeRig(t, {
      count: 2,
      stations: 2,
      extra: {
        b: {
          neighbours: [
            { address: quiet.address4, mac: quiet.mac, router: false },
            { address: quiet.address6, mac: quiet.mac, router: false },
          ],
        },
      },
    });
    const [[a1, a2], [b1, b2]] = sites.map((site) => site.stations);
    const capture = await Capture.start(sites[0].ns, 'eth0', `udp port ${VXLAN_PORT}`);
    t.ok(await pings(a1, quiet.address4), 'it is reached');
    t.ok(await pings(a1, quiet.address6), 'and by IPv6');
    await capture.stop();
    const inner = framesIn(capture.file).map((bytes) => Buffer.from(bytes.subarray(50)));
    const mine = inner.filter((bytes) => bytes.subarray(6, 12).equals(Buffer.from(mac(a1.mac))));
    const questions = mine.filter(
      (bytes) =>
        (bytes.readUInt16BE(12) === ARP && bytes.readUInt16BE(20) === 1 && bytes[0] === 0xff) ||
        (bytes.readUInt16BE(12) === IPV6 && bytes[20] === 58 && bytes[54] === 135 && bytes[0] === 0x33),
    );
    t.same(
      questions.map((bytes) => bytes.toString('hex')),
      [],
      'without a question on the wire',
    );
    const entry = (await neighboursOf(wefts[0])).find(({ address }) => address === quiet.address4);
    t.same(entry, {
      vni: 42,
      address: quiet.address4,
      mac: quiet.mac,
      router: false,
      origin: 'static',
      ageSeconds: null,
    });
    const macEntry = (await macsOf(wefts[0])).find((one) => one.mac === quiet.mac && one.origin === 'static');
    t.same(macEntry, { vni: 42, mac: quiet.mac, peer: 'b', origin: 'static', ageSeconds: null });

    // Who lies about it is not heard, from here and from there.
    const before = await Promise.all(wefts.map((weft) => weft.idle()));
    await sendFrames(a2.ns, [gratuitous({ ...a2, address4: quiet.address4 }, 1)]);
    await sendFrames(b2.ns, [gratuitous({ ...b2, address4: quiet.address4 }, 2)]);
    const after = await Promise.all(wefts.map((weft) => weft.idle()));
    const moved = (i: number, name: string): number => after[i].get(name) - before[i].get(name);
    t.equal(moved(0, 'outbound.neighbour_conflict'), 1, 'a lie of our own station is counted');
    const far = moved(0, 'inbound.neighbour_conflict') + moved(1, 'outbound.neighbour_conflict');
    t.equal(far, 1, "and one of the owner's own neighbour, there or here");
    forgetNeighbours(a1);
    t.ok(await pings(a1, quiet.address4), 'the truth is still known');
    t.match(a1.ns.runSync('ip', 'neigh', 'show', 'dev', 'eth0'), `${quiet.address4} lladdr ${quiet.mac}`);
    t.same(await probe(a2, quiet.address4), [b1.mac], 'a probe for it is answered');
    t.equal(await detect(a2, quiet.address6), 'duplicate', 'and so is duplicate address detection');
    await assertConserved(t, wefts, 'static', {
      ...HABITS,
      'outbound.neighbour_conflict': true,
      'inbound.neighbour_conflict': true,
    });
  });

  await t.test('stations that move', async (t) => {
    const AGE = 10;
    const { sites, wefts } = await makeRig(t, { count: 3, stations: 2, args: ['--mac-age', String(AGE)] });
    const [a, b, c] = sites;
    const mover = a.stations[1];
    const stations = [a.stations[0], b.stations[0], c.stations[0], mover];
    const [atA, atB, atC] = stations;
    // Nothing but what is sent here says where the mover is: it has no IPv6 for now, which would speak for it.
    mover.ns.sysctl({ 'net/ipv6/conf/eth0/disable_ipv6': 1 });
    knowEachOther(stations);
    const [agentC, agentMover] = await Promise.all([Agent.start(atC.ns), Agent.start(mover.ns)]);
    const where = async (): Promise<(string | null | undefined)[]> =>
      Promise.all(wefts.map(async (weft) => (await macsOf(weft)).find((one) => one.mac === mover.mac)?.peer));

    await Promise.all([atA, atB, atC].map((from) => pings(from, mover.address4, 3)));
    await sendFrames(mover.ns, [gratuitous(mover, 1)]);
    await sleep(50);
    t.same(await where(), [null, 'a', 'a'], 'all know that it is at a');

    // It announces itself: by ARP request, by ARP reply.
    await agentMover.expect();
    await agentC.send(mover.address4, 500);
    await sleep(300);
    t.ok((await agentMover.counted()).received > 50, 'a stream reaches it');
    for (const [operation, from, to] of [
      [1, a, b],
      [2, b, c],
      [2, c, a],
    ] as const) {
      replug(mover, from, to, sites);
      await sleep(60);
      const begun = performance.now();
      const arrived = reachedAfter(agentMover, begun, 5000);
      await sendFrames(mover.ns, [gratuitous(mover, operation)]);
      const took = await arrived;
      t.ok(
        took < 1000,
        `from ${from.letter} to ${to.letter} with an ARP of operation ${operation}: ${Math.round(took)} ms`,
      );
      const answered = await Promise.all([atA, atB, atC].map((one) => pings(one, mover.address4, 1)));
      t.same(answered, [true, true, true], `all reach it at ${to.letter} at once`);
      const expected = sites.map((site) => (site === to ? null : to.letter));
      t.same(await where(), expected, `all know that it is at ${to.letter}`);
    }
    await agentC.stop();

    // Without a word: from a to b. What c sends goes to a until that is too old to believe.
    await Promise.all([atA, atB, atC].map((from) => pings(from, mover.address4, 3)));
    await sendFrames(mover.ns, [gratuitous(mover, 1)]);
    const spoke = performance.now();
    await sleep(100);
    replug(mover, a, b, sites);
    await agentMover.expect();
    await agentC.send(mover.address4, 200);
    const limit = (AGE + 2) * 1000;
    const tookC = reachedAfter(agentMover, spoke, 2 * limit);
    const tookA = untilAnswered(atA, mover.address4, spoke, 2 * limit);
    const [byC, byA] = await Promise.all([tookC, tookA]);
    t.ok(byC < limit, `silently: reached by c after ${Math.round(byC)} ms, with an age of ${AGE} s`);
    t.ok(byA < limit, `and by a, where it was before, after ${Math.round(byA)} ms`);
    t.ok(Math.min(byC, byA) > 0.5 * AGE * 1000, 'not before: it really was silent');
    await agentC.stop();
    t.ok(await pings(atB, mover.address4), 'and by b');
    // The tables are swept in small steps, which takes a while where little happens.
    for (const weft of FULL ? [wefts[0], wefts[2]] : []) {
      const aged = async (): Promise<number> => (await weft.counters()).get('tables.macs_aged');
      await until(async () => (await aged()) > 0, 30_000);
      t.ok((await aged()) > 0, `${weft.host.letter} counted that it forgot MACs`);
    }

    // By IPv6: an unsolicited advertisement.
    mover.ns.sysctl({ 'net/ipv6/conf/eth0/disable_ipv6': 0 });
    mover.ns.ip(`addr replace ${mover.address6}/64 dev eth0 nodad`);
    await sleep(300);
    t.ok(await pings(atC, mover.address6, 4), 'c reaches it by IPv6');
    await agentMover.expect();
    await agentC.send(mover.address6, 500);
    await sleep(300);
    replug(mover, b, c, sites);
    replug(mover, c, a, sites);
    await sleep(60);
    const begun = performance.now();
    const arrived = reachedAfter(agentMover, begun, 5000);
    await sendFrames(mover.ns, [unsolicited(mover)]);
    const took = await arrived;
    t.ok(took < 1000, `with an unsolicited neighbour advertisement: ${Math.round(took)} ms`);
    await agentC.stop();
    for (const from of [atA, atB, atC]) t.ok(await pings(from, mover.address6), `${from.name} reaches it by IPv6`);
    await assertConserved(t, wefts, 'moves', HABITS);
  });

  await t.test('is this address free?', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 3, stations: 2 });
    const [a, b, c] = sites;
    const owner = a.stations[0];
    const asker = b.stations[0];
    let asked = 0;
    const ask = async (what: string, at: Station): Promise<void> => {
      const [free, taken] = [`fd07::f:${++asked}`, owner.address6];
      const [ofTaken, ofFree, ...probed] = await Promise.all([
        detect(at, taken),
        detect(at, free),
        probe(at, owner.address4),
        probe(at, '10.7.0.250'),
      ]);
      t.same([ofTaken, ...probed], ['duplicate', [owner.mac], []], `${what}: taken, and one answer to a probe`);
      t.equal(ofFree, 'unique', `${what}: another one is free`);
    };
    await ask('before anybody has spoken', asker);
    t.ok(await pings(c.stations[0], owner.address4), 'the owner speaks');
    t.ok(await pings(asker, owner.address6), 'and by IPv6');
    await ask('when its address is known', asker);
    replug(owner, a, c, sites);
    await sendFrames(owner.ns, [gratuitous(owner, 1), unsolicited(owner)]);
    await sleep(100);
    await ask('after it moved', asker);
    await ask('where it was before', a.stations[1]);
    t.equal(await detect(owner, 'fd07::9999'), 'unique', 'the owner itself gets another one');
    // What is only remembered is no owner: addresses of the dead are free, and one's own is.
    owner.ns.ip('link set eth0 down');
    const [ofDead, ...probed] = await Promise.all([detect(asker, owner.address6), probe(asker, owner.address4)]);
    t.same([ofDead, ...probed], ['unique', []], 'an address whose owner is gone is free, and nobody answers for it');
    owner.ns.ip('link set eth0 up', `addr replace ${owner.address6}/64 dev eth0 nodad`);
    t.ok(await pings(owner, asker.address6, 4), 'the owner is back');
    owner.ns.ip(`addr del ${owner.address6}/64 dev eth0`);
    t.equal(await detect(owner, owner.address6), 'unique', 'it finds its own address free');
    t.same(await probe(owner, owner.address4), [], 'and hears no answer when it asks for itself');
    await assertConserved(t, wefts, 'detection', HABITS);
  });

  await t.test('a MAC that cannot make up its mind', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 3, stations: 1 });
    const [a, b, c] = sites.map((site) => site.stations[0]);
    const twin = '02:07:00:00:77:77';
    const shout = (from: Station): Promise<void> => sendFrames(from.ns, [frame(BROADCAST, twin, NOBODYS, pattern(46))]);
    t.ok((await pings(c, a.address4, 3)) && (await pings(c, b.address4, 3)), 'they reach each other');
    const where = async (): Promise<string | null | undefined> =>
      (await macsOf(wefts[2])).find((entry) => entry.mac === twin)?.peer;
    const seen: (string | null | undefined)[] = [];
    const expected = ['a', 'b', 'a', 'b', 'a', 'b', 'b', 'b', 'b', 'b'];
    for (const [i, peer] of expected.entries()) {
      const before = (await wefts[2].counters()).get('inbound.device_pushed');
      await shout(i % 2 === 0 ? a : b);
      await until(async () => (await wefts[2].counters()).get('inbound.device_pushed') > before, 1000);
      await until(async () => (await where()) === peer, 300);
      seen.push(await where());
    }
    t.same(seen, expected, 'c follows five moves, and no more');
    const now = await wefts[2].idle();
    t.ok(now.get('tables.mac_moves_held') >= 2, `${now.get('tables.mac_moves_held')} moves were held, and counted`);
    t.equal(now.get('tables.macs_moved'), 5, 'and five followed');
    t.ok((await pings(c, a.address4)) && (await pings(c, b.address4)), 'others are not touched');
    if (FULL) {
      await sleep(11_000);
      await shout(a);
      await sleep(30);
      t.equal(await where(), 'a', 'after ten seconds it is followed again');
    }
    await assertConserved(t, wefts, 'flapping', HABITS);
  });

  await t.test('daemons that die, stop, and lose their peers', async (t) => {
    const { lab, sites, wefts } = await makeRig(t, { count: 3, stations: 1 });
    const [a, b, c] = sites.map((site) => site.stations[0]);
    const peers = join(lab.dir, 'peers.json');
    const everybody = readFileSync(peers, 'utf8');
    const [left, right] = await Promise.all([a, b].map((station) => Agent.start(station.ns)));
    t.ok((await pings(a, b.address4, 3)) && (await pings(a, c.address4, 3)), 'they reach each other');

    // A crash: the TAP stays in its bridge, and the next daemon takes both over.
    await right.expect();
    await left.send(b.address4, 500);
    await sleep(300);
    await wefts[0].stop('SIGKILL');
    t.match(
      sites[0].ns.runSync('ip', 'link', 'show', 'weft42'),
      'master br0',
      'a dead one leaves its TAP in the bridge',
    );
    await sleep(200);
    const { received } = await right.counted();
    const begun = performance.now();
    const again = await startSwitch(sites[0], { peers });
    while ((await right.counted()).received === received && performance.now() - begun < 10_000) await sleep(10);
    const took = performance.now() - begun;
    t.ok(took < 2000, `a stream goes on ${Math.round(took)} ms after the next one was started`);
    t.ok((await right.counted()).received > received, 'it does');
    await left.stop();
    t.equal((await right.counted()).duplicates, 0, 'nothing came twice');
    t.ok(await pings(a, b.address6, 3), 'and by IPv6');

    // A peer that goes takes along what was learned from it.
    t.ok(await pings(a, c.address4, 3), 'c is there');
    t.ok(
      (await macsOf(again)).some(({ peer, mac }) => peer === 'c' && mac === c.mac),
      'and in the table',
    );
    const without = JSON.stringify({
      peers: JSON.parse(everybody).peers.filter((one: { name: string }) => one.name !== 'c'),
    });
    replaceFile(peers, without);
    await until(async () => (await again.sample('weft_peers')) === 1, 10_000);
    const ofC = async (): Promise<number> => (await macsOf(again)).filter(({ peer }) => peer === 'c').length;
    await until(async () => (await ofC()) === 0, 1000);
    t.equal(await ofC(), 0, 'its MACs go with it');
    t.notOk(await pings(a, c.address4, 1), 'nobody reaches it');
    t.ok(await pings(a, b.address4), 'b is as it was');
    replaceFile(peers, everybody);
    await until(async () => (await again.sample('weft_peers')) === 2, 10_000);
    t.ok(await pings(a, c.address4, 4), 'and it comes back');
    await assertConserved(t, [again, wefts[1]], 'peers', { ...HABITS, 'inbound.unknown_peer': true });

    const stopped = await again.stop();
    t.ok(stopped < 1000, `SIGTERM: out after ${Math.round(stopped)} ms`);
    t.equal(again.daemon.child.exitCode, 0, 'exit code 0');
    t.throws(() => sites[0].ns.runSync('ip', 'link', 'show', 'weft42'), 'the TAP is gone');
    t.match(sites[0].ns.runSync('ip', 'link', 'show', 'br0'), 'br0', 'the bridge is not');

    // No bridge, no segment.
    const refused = spawnSwitch(sites[0], { peers, bridge: 'nosuch' });
    await until(() => !refused.daemon.running, 10_000);
    t.equal(refused.daemon.child.exitCode, 1, 'a bridge that is not there: exit code 1');
    const lines = refused.daemon.log().trim().split('\n');
    t.ok(lines.length === 1 && lines[0].includes('nosuch'), `and one line: ${lines.join(' / ')}`);
    const veth = spawnSwitch(sites[0], { peers, bridge: 'eth0' });
    await until(() => !veth.daemon.running, 10_000);
    t.equal(veth.daemon.child.exitCode, 1, 'a device that is no bridge: exit code 1');
    t.equal(veth.daemon.log().trim().split('\n').length, 1, `and one line: ${veth.daemon.log().trim()}`);
    t.throws(() => sites[0].ns.runSync('ip', 'link', 'show', 'weft42'), 'and no TAP is left');
  });

  await t.test('a path that shrinks', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 2, stations: 1 });
    const [a, b] = sites.map((site) => site.stations[0]);
    const [left, right] = await Promise.all([a, b].map((station) => Agent.start(station.ns)));
    await assertTcp(t, left, b.address4, 'as it is', { bytes: SOME / 4 });
    for (const [i, site] of sites.entries()) {
      const other = sites[1 - i];
      site.ns.ip(`route replace ${other.underlay4}/32 dev eth0 mtu 1400`);
    }
    const flows = [b.address4, b.address6].map((to) =>
      assertTcp(t, left, to, `then: TCP to ${to}`, { bytes: SOME / 4, duplex: true, stallMs: 15_000 }),
    );
    await Promise.all(flows);
    forgetPaths(a, b);
    await pingLine(a.ns, b.address4, '-M', 'do', '-s', '1422');
    t.match(await pingLine(a.ns, b.address4, '-M', 'do', '-s', '1422'), /mtu ?= ?1350/, 'senders are told');
    forgetPaths(a, b);
    await assertUdp(t, right, a.address4, 'UDP that fits', [1, 100, 1322]);
    await assertConserved(t, wefts, 'shrunken', {
      ...HABITS,
      'outbound.too_big': true,
      'outbound.path_mtu': true,
    });
  });

  await t.test('VLAN tags', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 2, stations: 1 });
    const [a, b] = sites.map((site) => site.stations[0]);
    const agents = await Promise.all([a, b].map((station) => Agent.start(station.ns)));
    const pairs: [Station, Station][] = [];
    for (const [what, tags, mtu] of [
      ['one tag', '81000064', 1446],
      ['a priority in the tag', '8100a065', 1446],
      ['two tags', '88a800c881000007', 1442],
    ] as const) {
      const net = pairs.length + 1;
      const here = await addTagged(a, net, tags, mtu);
      const there = await addTagged(b, net, tags, mtu);
      pairs.push([here, there]);
      for (const to of [there.address4, there.address6]) {
        t.ok(await pings(here, to, 3), `${what}: a ping to ${to}`);
        t.ok(
          await pings(here, to, 1, '-M', 'do', '-s', `${mtu - (to.includes(':') ? 48 : 28)}`),
          `${what}: a full frame`,
        );
        await assertTcp(t, agents[0], to, `${what}: TCP to ${to}`, { bytes: SOME, duplex: true });
        await assertUdp(t, agents[0], to, `${what}: UDP to ${to}`, [1, 100, mtu - 48, mtu - 28, 3000]);
      }
      await assertSegments(t, here, there, agents[1], what, mtu);
    }
    t.ok((await wefts[0].counters()).get('outbound.super_packets') > 0, 'super-packets with tags were among them');
    // A tag takes four bytes of the path.
    for (const [net, mtu, more] of [
      [1, 1446, 1450],
      [3, 1442, 1446],
    ]) {
      const [here, there] = pairs[net - 1];
      for (const site of sites) site.ns.ip(`link set ${site.stations[0].port} mtu 1500`);
      here.ns.ip('link set eth0 mtu 1500', `link set tag${net} mtu ${more}`);
      const said = new RegExp(`^From ${there.address4.replaceAll('.', '\\.')} .*mtu ?= ?${mtu}`);
      t.match(
        await pingLine(here.ns, there.address4, '-M', 'do', '-s', `${more - 28}`),
        said,
        `net ${net}: too big by its tags`,
      );
      const said6 = new RegExp(`^From ${there.address6} .*mtu ?= ?${mtu}`);
      t.match(
        await pingLine(here.ns, there.address6, '-M', 'do', '-s', `${more - 48}`),
        said6,
        `net ${net}: and by IPv6`,
      );
      forgetPaths(here);
      t.ok(
        await pings(here, there.address4, 2, '-M', 'dont', '-s', `${more - 28}`),
        `net ${net}: fragmented without DF`,
      );
      forgetPaths(here);
      await assertTcp(t, agents[0], there.address4, `net ${net}: TCP recovers`, { bytes: SOME / 4 });
      here.ns.ip(`link set tag${net} mtu ${mtu}`);
      forgetPaths(here);
    }
    // One address in two VLANs is two neighbours.
    const [[one], [two]] = pairs.map(([, there]) => [{ ...there, address4: '10.8.9.9', address6: 'fd08:9::9' }]);
    for (const [link, there, twin] of [
      ['tag1', one, two],
      ['tag2', two, one],
      ['tag1', one, two],
    ] as const) {
      there.ns.ip(
        `addr replace ${there.address4}/32 dev ${link}`,
        `addr replace ${there.address6}/128 dev ${link} nodad`,
      );
      for (const [address, flag] of [
        [there.address4, '-4'],
        [there.address6, '-6'],
      ]) {
        a.ns.runSync('ip', flag, 'route', 'replace', address, 'dev', link);
        a.ns.ip(`neigh flush dev ${link}`);
        t.ok(await pings({ ...a, ns: a.ns }, address, 2, '-I', link), `${address} in the VLAN of ${link}`);
        const known = a.ns.runSync('ip', 'neigh', 'show', 'dev', link);
        t.match(known, `${address} lladdr ${there.mac}`, 'is who it is there');
        t.notMatch(known, twin.mac, 'and not who it is elsewhere');
      }
      there.ns.ip(`addr del ${there.address4}/32 dev ${link}`, `addr del ${there.address6}/128 dev ${link}`);
    }
    await assertConserved(t, wefts, 'tags', { ...HABITS, 'outbound.too_big': true });
    // And with the kernel's device at the other end.
    await wefts[1].stop();
    kernelVxlan(sites[1], sites);
    for (const [here, there] of pairs) {
      for (const to of [there.address4, there.address6]) {
        t.ok(await pings(here, to, 3), `to the kernel: a ping to ${to}`);
        await assertTcp(t, agents[0], to, `to the kernel: TCP to ${to}`, { bytes: SOME / 2, duplex: true });
      }
    }
    await assertConserved(t, [wefts[0]], 'tags and the kernel', { ...HABITS, 'outbound.too_big': true });
  });

  await t.test('jumbo frames', async (t) => {
    const { sites, wefts } = await makeRig(t, { count: 2, stations: 2, mtu: 9050 });
    const [[a1, a2], [b1, b2]] = sites.map((site) => site.stations);
    const [left, right] = await Promise.all([a1, b1].map((station) => Agent.start(station.ns)));
    t.match(sites[0].ns.runSync('ip', 'link', 'show', 'weft42'), 'mtu 9000', 'the device has the MTU');
    for (const size of [1472, 4000, 8971, 8972]) {
      t.ok(await pings(a2, b2.address4, 2, '-M', 'do', '-s', String(size)), `a ping of ${size} bytes`);
    }
    t.ok(await pings(a2, b2.address6, 2, '-M', 'do', '-s', '8952'), 'a ping of 8952 bytes by IPv6');
    await assertTcp(t, left, b1.address4, 'IPv4', { bytes: 2 * SOME, duplex: true });
    await assertTcp(t, right, a1.address6, 'IPv6', { bytes: 2 * SOME, duplex: true });
    await assertUdp(t, left, b1.address4, 'UDP', [1, 1472, 4000, 8971, 8972, 8973, 20_000, 60_000]);
    await assertUdp(t, left, b1.address6, 'UDP, IPv6', [1, 1472, 4000, 8951, 8952, 8953, 20_000, 60_000]);
    await assertConserved(t, wefts, 'jumbo', HABITS);
  });

  await t.test('frames that are too large for the path', async (t) => {
    // Stations and TAPs take 1500 bytes, the path 1450: somebody has to say so.
    const { sites, wefts } = await makeRig(t, { count: 2, stations: 2, stationMtu: 1500, args: ['--mtu', '1500'] });
    const [[a1, a2], [b1]] = sites.map((site) => site.stations);
    const [left, right] = await Promise.all([a1, b1].map((station) => Agent.start(station.ns)));
    t.ok(await pings(a1, b1.address4), 'they reach each other');
    t.ok(await pings(a1, b1.address6), 'and by IPv6');
    const before = await wefts[0].idle();
    // In the name of the destination: a segment has no routers.
    t.match(
      await pingLine(a1.ns, b1.address4, '-M', 'do', '-s', '1472'),
      new RegExp(`^From ${b1.address4.replaceAll('.', '\\.')} .*mtu ?= ?1450`),
      'IPv4: fragmentation needed',
    );
    t.match(
      await pingLine(a1.ns, b1.address6, '-M', 'do', '-s', '1452'),
      new RegExp(`^From ${b1.address6} .*too big.*mtu ?= ?1450`, 'i'),
      'IPv6: packet too big',
    );
    forgetPaths(a1, b1);
    t.ok(await pings(a1, b1.address4, 1, '-M', 'do', '-s', '1422'), 'what fits exactly passes');
    t.ok(await pings(a1, b1.address6, 1, '-M', 'do', '-s', '1402'), 'and by IPv6');
    const now = await wefts[0].idle();
    t.equal(now.get('outbound.too_big') - before.get('outbound.too_big'), 2, 'each was counted');
    t.equal(now.get('outbound.icmp_made') - before.get('outbound.icmp_made'), 2, 'and answered');
    forgetPaths(a1, b1);
    t.ok(await pings(a1, b1.address4, 2, '-M', 'dont', '-s', '1472'), 'IPv4 without DF is fragmented');
    t.ok((await wefts[0].idle()).get('outbound.fragments_made') > 0, 'and counted');

    // Nobody knows where this one is: it would be flooded, but fits no path.
    a2.ns.ip('neigh replace 10.7.0.99 lladdr 02:ee:ee:ee:ee:ee dev eth0 nud permanent');
    t.match(
      await pingLine(a2.ns, '10.7.0.99', '-M', 'do', '-s', '1472'),
      /mtu ?= ?1450/,
      'unknown unicast is answered, too',
    );
    forgetPaths(a2);

    for (const [from, to] of [
      [left, b1],
      [right, a1],
    ] as const) {
      for (const address of [to.address4, to.address6]) {
        forgetPaths(a1, b1);
        const bytes = SOME / 4;
        await assertTcp(t, from, address, `TCP to ${address} recovers`, { bytes, stallMs: 10_000 });
      }
    }
    forgetPaths(a1, b1);
    await assertTcp(t, left, b1.address4, '8 flows both ways recover', { bytes: SOME / 8, flows: 8, duplex: true });

    // What has nobody to tell is dropped: no IP, and a broadcast (which goes where it fits).
    const beforeOther = await wefts[0].idle();
    await sendFrames(a2.ns, [
      frame(b1.mac, a2.mac, NOBODYS, pattern(1451)),
      frame(b1.mac, a2.mac, NOBODYS, pattern(1450)),
    ]);
    const other = await wefts[0].idle();
    t.equal(other.get('outbound.too_big') - beforeOther.get('outbound.too_big'), 1, 'no IP: dropped and counted');
    t.equal(other.get('outbound.icmp_made') - beforeOther.get('outbound.icmp_made'), 0, 'without an answer');
    await assertConserved(t, wefts, 'large frames', { ...HABITS, 'outbound.too_big': true });
  });

  await t.test('paths of different sizes', async (t) => {
    // b's path is smaller than c's; its MTU is in the peers file.
    const { sites, wefts } = await makeRig(t, { count: 3, stations: 1, extra: { b: { mtu: 1400 }, a: { mtu: 1400 } } });
    const [a, b, c] = sites.map((site) => site.stations[0]);
    const [left, far] = await Promise.all([a, c].map((station) => Agent.start(station.ns)));
    await Promise.all([b, c].map((to) => pings(a, to.address4, 3)));
    t.ok(await pings(a, c.address4, 2, '-M', 'do', '-s', '1422'), 'a full frame to c passes');
    t.match(await pingLine(a.ns, b.address4, '-M', 'do', '-s', '1422'), /mtu ?= ?1350/, 'one to b does not');
    forgetPaths(a, b, c);
    await Agent.start(b.ns);
    await assertTcp(t, left, b.address4, 'TCP to b recovers', { bytes: SOME / 2, duplex: true });
    await assertTcp(t, left, b.address6, 'by IPv6, too', { bytes: SOME / 2, duplex: true });
    await assertTcp(t, left, c.address4, 'TCP to c', { bytes: SOME / 2 });
    // A broadcast goes to whom it fits.
    await far.expect();
    const before = await wefts[0].idle();
    const source = { source: a.address4, destination: '10.7.0.255', df: false };
    const payload = concat([0, 0, 0, 0], pattern(1396));
    await sendFrames(a.ns, [frame(BROADCAST, a.mac, IPV4, packet(source, udp({ to: STREAM_PORT, payload })))]);
    await sleep(200);
    const now = await wefts[0].idle();
    t.equal((await far.counted()).wrong, 1, 'a large broadcast reaches c');
    t.equal(now.get('outbound.too_big') - before.get('outbound.too_big'), 1, 'its other copy is too big');
    await assertConserved(t, wefts, 'sizes', { ...HABITS, 'outbound.too_big': true });
  });

  await t.test('storms, unknown destinations, and too many MACs', async (t) => {
    const { lab, sites, wefts } = await makeRig(t, {
      count: 2,
      stations: 2,
      args: ['--storm-limit', '200', '--mac-table', '1024', '--mac-per-peer', '64'],
    });
    const [[a1, a2], [b1]] = sites.map((site) => site.stations);
    t.ok(await pings(a1, b1.address4), 'they reach each other');
    await sleep(1200);
    const before = await wefts[0].idle();
    await sendFrames(a2.ns, [frame(BROADCAST, a2.mac, NOBODYS, pattern(46))], { times: 2000 });
    const now = await wefts[0].idle();
    const dropped = now.get('outbound.storm') - before.get('outbound.storm');
    const flooded = now.get('outbound.flooded') - before.get('outbound.flooded');
    t.ok(dropped > 1000, `${dropped} of 2000 broadcasts were too many`);
    t.ok(flooded >= 150 && flooded + dropped >= 2000, `${flooded} went out`);
    t.ok(await pings(a1, b1.address4), 'what is not flooded passes');

    await sleep(1200);
    const sources = Array.from({ length: 100 }, (_, i) =>
      frame(b1.mac, `02:aa:00:00:00:${i.toString(16).padStart(2, '0')}`, NOBODYS, pattern(46)),
    );
    const beforeMany = await wefts[1].idle();
    await sendFrames(a2.ns, sources);
    const many = await wefts[1].idle();
    const ofA = (await macsOf(wefts[1])).filter(({ peer }) => peer === 'a');
    t.equal(ofA.length, 64, 'a peer has its share of the table, and no more');
    t.ok(many.get('tables.macs_over_limit') > beforeMany.get('tables.macs_over_limit'), 'what is beyond is counted');
    t.ok(many.get('inbound.device_pushed') - beforeMany.get('inbound.device_pushed') >= 100, 'and carried');
    await assertConserved(t, wefts, 'storm', { ...HABITS, 'outbound.storm': true });
    await Promise.all(wefts.map((weft) => weft.stop()));

    const peers = join(lab.dir, 'peers.json');
    const weft = await startSwitch(sites[0], { peers, args: ['--unknown-unicast', 'drop', '--storm-limit', 'off'] });
    const far = await startSwitch(sites[1], { peers });
    t.ok(await pings(a1, b1.address4, 3), 'unknown-unicast drop: what is known passes');
    const calm = await weft.idle();
    await sendFrames(a2.ns, [frame('02:dd:00:00:00:01', a2.mac, NOBODYS, pattern(46))], { times: 5 });
    await sendFrames(a2.ns, [frame(BROADCAST, a2.mac, NOBODYS, pattern(46))], { times: 3000 });
    const then = await weft.idle();
    t.equal(then.get('outbound.unknown_unicast') - calm.get('outbound.unknown_unicast'), 5, 'what is unknown does not');
    t.ok(then.get('outbound.flooded') - calm.get('outbound.flooded') >= 3000, 'no storm limit: all of it is flooded');
    await assertConserved(t, [weft, far], 'unknown', { ...HABITS, 'outbound.unknown_unicast': true });
  });
}

/** Milliseconds from `begun` until a ping is answered; they come five a second. */
async function untilAnswered(from: Station, to: string, begun: number, timeoutMs: number): Promise<number> {
  const seconds = Math.ceil(timeoutMs / 1000);
  await from.ns.run('ping', ['-n', '-i', '0.2', '-c', '1', '-w', String(seconds), to]);
  return performance.now() - begun;
}

/** Replaces a file in one step, as careful tools do. */
function replaceFile(path: string, text: string): void {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

async function until(so: () => boolean | Promise<boolean>, timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await so()) && performance.now() < deadline) await sleep(50);
}
