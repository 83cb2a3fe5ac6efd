/**
 * What is on the wire, as independent readers see it: tcpdump captures, test/lib/decode.ts, tshark and scapy take apart. And
 * what hosts see that do something wrong: ICMP errors, and a daemon that shrugs off whatever is thrown at it.
 *
 * Captures are made where packets are real: the veth ends towards them have their offloads off, so the kernel segments and
 * checksums before the wire. Packets are injected by plain sockets, by raw-socket where it loads (else Python's), and by a
 * packet socket on the TUN itself.
 */
import t from 'tap';
import { type Host, Lab, type Namespace, run, sleep, twoHosts } from '../../race/hosts.js';
import { type Decoded, decode } from '../lib/decode.js';
import { changed, concat, extension, icmp, packet, pattern, rechecksum, TCP, UDP, udp } from '../lib/packets.js';
import { Agent, MiB, PYTHON, sendSegments } from './lib/agents.js';
import { Capture, type Carried, OVERLAY, realPackets } from './lib/capture.js';
import {
  type Assertions,
  assertConserved,
  changes,
  impossible,
  Weft,
  type WeftOptions,
  writePeers,
} from './lib/weft.js';

const why = impossible('tcpdump', 'tshark', 'ethtool', PYTHON);
t.setTimeout(0);

const FRAGMENTATION_NEEDED = 4;
/** The kernel's multicast reports on the new device are over after this. */
const QUIET_MS = 1500;

// --- readers ---

/** tshark's verdict on a capture: every line that it has a complaint about. Retransmissions and the like are no fault of ours. */
async function tsharkComplaints(file: string): Promise<{ packets: number; complaints: string[] }> {
  const checks = ['ip', 'tcp', 'udp'].flatMap((name) => ['-o', `${name}.check_checksum:TRUE`]);
  const fields = ['ip.checksum.status', 'udp.checksum.status', 'tcp.checksum.status', 'icmp.checksum.status'];
  fields.push('icmpv6.checksum.status', '_ws.malformed', 'ip.version');
  const args = ['-r', file, '-d', 'udp.port==8285,ip', ...checks, '-Y', 'udp.port==8285', '-T', 'fields'];
  const { code, stdout, stderr } = await run('tshark', [...args, ...fields.flatMap((field) => ['-e', field])]);
  if (code !== 0) throw new Error(`tshark: ${stderr.trim().split('\n').at(-1)}`);
  const lines = stdout.split('\n').filter(Boolean);
  const bad = lines.filter((line) => {
    const columns = line.split('\t');
    const statuses = columns.slice(0, 5).flatMap((text) => text.split(',').filter(Boolean));
    // 1 is good, 3 not present (a fragment's, or the ICMP quote's).
    return columns[5] !== '' || statuses.some((status) => status === '0') || columns[6].split(',').length < 2;
  });
  return { packets: lines.length, complaints: bad };
}

/** Builds every inner packet anew, with lengths and checksums left to scapy, and compares: prints what differs. */
const SCAPY_REBUILD = `
import sys
from scapy.all import rdpcap, IP, IPv6, TCP, UDP, ICMP, IPv6ExtHdrFragment
count = 0
for frame in rdpcap(sys.argv[1]):
    if UDP not in frame: continue
    inner = bytes(frame[UDP].payload)
    count += 1
    p = (IP if inner[0] >> 4 == 4 else IPv6)(inner)
    fragment = (IP in p and (p.frag or p.flags.MF)) or IPv6ExtHdrFragment in p
    if IP in p: del p[IP].chksum, p[IP].len
    else: del p[IPv6].plen
    if not fragment:
        for layer in (TCP, UDP, ICMP):
            if layer in p and ICMP not in p.payload.payload.__class__.__mro__:
                del p[layer].chksum
                if layer is UDP: del p[layer].len
    again = bytes(p)
    if again != inner: print('frame', count, inner.hex(), again.hex())
print('count', count)
`;

async function scapyRebuild(file: string): Promise<string[] | undefined> {
  const { code, stdout, stderr } = await run(PYTHON, ['-c', SCAPY_REBUILD, file]);
  if (code !== 0 && stderr.includes("No module named 'scapy'")) return undefined;
  if (code !== 0) throw new Error(`scapy: ${stderr.trim().split('\n').at(-1)}`);
  return stdout.trim().split('\n');
}

const isFrom = (host: Host) => (one: Carried) => one.outer.source === host.underlay4;

const isTcpData = (one: Decoded): boolean => one.tcp !== undefined && one.payload.length > 0;

/** A packet without what a router changes, for comparison. */
const routed = (bytes: Uint8Array): string =>
  Buffer.from(
    changed(bytes, (copy) => {
      if (copy[0] >> 4 === 4) {
        copy[8] = 0;
        copy[10] = 0;
        copy[11] = 0;
      } else copy[7] = 0;
    }),
  ).toString('hex');

// --- injection ---

/** Sends whole IPv4 packets as raw-socket would: the kernel fills in only the total length and the checksum. */
const PYTHON_RAW = `
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for a in sys.argv[2:]: s.sendto(bytes.fromhex(a), (sys.argv[1], 0))`;

let rawSocketLeftOut = false;

/** Whole IPv4 packets, header and all, from a host. */
async function inject(
  t: Assertions,
  from: Agent,
  ns: Namespace,
  to: string,
  packets: readonly Uint8Array[],
): Promise<void> {
  try {
    await from.raw(to, packets);
  } catch (error) {
    // Not installed, not built, or built for another Node: from Node 24 on it does not build.
    if (!(error instanceof Error) || !/raw-socket|raw\.node/.test(error.message)) throw error;
    if (!rawSocketLeftOut) {
      t.comment(`SKIPPED: raw-socket, which does not load in Node ${process.versions.node}: Python injects instead`);
    }
    rawSocketLeftOut = true;
    const hex = packets.map((bytes) => Buffer.from(bytes).toString('hex'));
    const { code, stderr } = await ns.run(PYTHON, ['-c', PYTHON_RAW, to, ...hex]);
    if (code !== 0) throw new Error(`neither raw-socket nor Python: ${stderr.trim().split('\n').at(-1)}`);
  }
}

/** Bytes straight into the device, past the kernel's own checks: what no honest kernel would send. */
async function intoDevice(ns: Namespace, packets: readonly Uint8Array[]): Promise<void> {
  const script = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
for a in sys.argv[1:]:
    b = bytes.fromhex(a)
    s.sendto(b, ('flannel0', 0x86dd if b[0] >> 4 == 6 else 0x0800))`;
  const hex = packets.map((bytes) => Buffer.from(bytes).toString('hex'));
  const { code, stderr } = await ns.run(PYTHON, ['-c', script, ...hex]);
  if (code !== 0) throw new Error(`packet socket: ${stderr.trim().split('\n').at(-1)}`);
}

/** One ping's verdict in words, as ping prints it: `64 bytes from 10.5.2.2` or `From 10.5.1.0 icmp_seq=1 Time to live exceeded`. */
async function ping(from: Namespace, address: string, ...args: string[]): Promise<string> {
  const { stdout, stderr } = await from.run('ping', ['-n', '-c', '1', '-W', '2', ...args, address]);
  return `${stdout}${stderr}`.split('\n').find((line) => /^From|bytes from|local error/i.test(line)) ?? 'no answer';
}

/** A port that nobody listens on: the answer is an ICMP error from the client, which is its business. */
const PORT_OF_NOBODY = 7777;

/** As decode() writes IPv6 addresses: all eight groups. */
function expand6(address: string): string {
  const [head, tail] = address.split('::');
  const groups = (text: string): string[] => text.split(':').filter(Boolean);
  if (tail === undefined) return address;
  const zeros = 8 - groups(head).length - groups(tail).length;
  return [...groups(head), ...new Array<string>(zeros).fill('0'), ...groups(tail)].join(':');
}

const same = (one: readonly string[], other: readonly string[]): boolean =>
  one.length === other.length && one.every((text, i) => text === other[i]);

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-wire');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const hosts = [a, b];
  const plainPeers = writePeers(lab, hosts);
  const [left, right, hostA] = await Promise.all([a.client, b.client, a.ns].map((ns) => Agent.start(ns)));
  for (const host of hosts) realPackets(host.ns, 'eth0');

  /** Two daemons for the time of `work`, which begins when both are quiet. */
  async function during(
    work: (wefts: [Weft, Weft]) => Promise<void>,
    ofA: Partial<WeftOptions> = {},
    ofB: Partial<WeftOptions> = {},
  ): Promise<void> {
    const env = { WEFT_CHECK_ADDRESSES: '1' };
    const wefts = await Promise.all([
      Weft.start(a, { peers: plainPeers, env, ...ofA }),
      Weft.start(b, { peers: plainPeers, env, ...ofB }),
    ]);
    await sleep(QUIET_MS);
    for (const { client } of hosts) client.ip('route flush cache');
    try {
      await work(wefts);
    } finally {
      await Promise.all(wefts.map((weft) => weft.stop()));
    }
  }

  /** Some of everything, both families, both ways. */
  async function variety(t: Assertions): Promise<void> {
    for (const [from, to4, to6] of [
      [left, b.client4, b.client6],
      [right, a.client4, a.client6],
    ] as const) {
      for (const to of [to4, to6]) {
        const { flows } = await from.tcp(to, { bytes: 400_000 });
        t.ok(
          flows.every((flow) => flow.sent === flow.received),
          `TCP to ${to}`,
        );
        const sizes = [1, 2, 3, 17, 64, 500, 1400, 1424, 1425, 3000, 8192];
        t.equal((await from.udp(to, sizes)).echoed, sizes.length, `UDP to ${to}`);
      }
    }
    await right.expect();
    const sent = await sendSegments(a.client, b.client4, { size: 1000, each: 30, calls: 10, last: 77 });
    t.equal((await right.countedUpTo(sent)).received, sent, 'UDP_SEGMENT');
    t.match(await ping(a.client, b.client4), 'bytes from', 'ping');
    t.match(await ping(a.client, b.client6, '-s', '1400'), 'bytes from', 'ping, IPv6');
  }

  /** What holds of every datagram of this wire. */
  function assertFlannelWire(t: Assertions, carried: readonly Carried[], family: 4 | 6 = 4): void {
    const all = (what: string, holds: (one: Carried) => boolean): void => {
      t.same(carried.filter((one) => !holds(one)).slice(0, 3), [], `all ${carried.length} datagrams: ${what}`);
    };
    all('from port 8285 to port 8285', ({ outer }) => outer.udp?.from === 8285 && outer.udp.to === 8285);
    all('TTL 64 outside', ({ outer }) => outer.ttl === 64);
    all('a UDP checksum outside', ({ outer }) => outer.udp?.checksum !== 0);
    if (family === 4) {
      all('DF outside, no fragments, no options', ({ outer }) => {
        return outer.df && !outer.mf && outer.offset === 0 && outer.options.length === 0;
      });
    }
    // decode() has checked lengths and checksums of both packets.
    all('the payload is one whole packet', ({ outer, bytes }) => outer.payload.length === bytes.length);
  }

  await t.test("flannel's wire", (t) =>
    during(async (wefts) => {
      // Path MTUs are learned first: what the host's kernel refuses for its size has used up an IPv4 id.
      for (const [from, to4, to6] of [
        [a.client, b.client4, b.client6],
        [b.client, a.client4, a.client6],
      ] as const) {
        for (const to of [to4, to6]) await ping(from, to, '-M', 'do', '-s', '1452');
      }
      const capture = await Capture.start(b.ns, 'eth0', OVERLAY);
      await variety(t);
      const carried = await capture.stopCarried();
      assertFlannelWire(t, carried);
      t.same(carried.filter(({ outer }) => outer.tos !== 0).length, 0, 'TOS 0 outside');
      for (const host of hosts) {
        const other = host === a ? b : a;
        const mine = carried.filter(isFrom(host));
        const sources = mine.filter(({ inner }) => ![host.client4, expand6(host.client6)].includes(inner.source));
        t.same(sources, [], `from ${host.letter} come its client's packets`);
        t.ok(
          mine.every(({ outer }) => outer.destination === other.underlay4),
          `they go to ${other.letter}`,
        );
        // Both routers on the way to the wire: the host's kernel, and Weft.
        const hops = mine.filter(({ inner }) => inner.ttl !== 62);
        t.same(
          hops.map(({ inner }) => inner.ttl),
          [],
          `from ${host.letter}: TTL and hop limit went down once for weft`,
        );
      }
      t.ok(carried.filter(({ inner }) => isTcpData(inner)).length > 1000, 'TCP data was among them');

      // A TCP sender numbers its packets one by one, in whatever super-packets they came.
      for (const host of hosts) {
        const flow = carried.filter(isFrom(host)).filter(({ inner }) => inner.family === 4 && isTcpData(inner));
        const ports = new Map<number, Decoded[]>();
        for (const { inner } of flow) {
          const port = inner.tcp?.from ?? 0;
          ports.set(port, [...(ports.get(port) ?? []), inner]);
        }
        for (const [port, packets] of ports) {
          const steps = packets.slice(1).filter((now, i) => {
            const before = packets[i];
            const next = ((before.tcp?.seq ?? 0) + before.payload.length) >>> 0;
            return now.tcp?.seq === next && ((now.id - before.id) & 0xffff) !== 1;
          });
          t.same(
            steps.map(({ id }) => id),
            [],
            `TCP from ${host.letter}, port ${port}: IPv4 ids follow each other over ${packets.length} segments`,
          );
          const flags = packets.slice(0, -1).filter((one) => (one.tcp?.flags ?? 0) & 1);
          t.same(flags, [], `TCP from ${host.letter}, port ${port}: FIN only at the end`);
        }
      }
      const shark = await tsharkComplaints(capture.file);
      t.same(shark, { packets: carried.length, complaints: [] }, 'tshark agrees about every length and checksum');
      const scapy = await scapyRebuild(capture.file);
      if (scapy) t.same(scapy, [`count ${carried.length}`], 'scapy builds the same packets, byte for byte');
      else t.comment('no scapy here');
      await assertConserved(t, wefts, 'wire');
    }),
  );

  await t.test('the wire over IPv6', async (t) => {
    const peers = writePeers(lab, hosts, { family: 6, name: 'peers6.json' });
    await during(
      async (wefts) => {
        const capture = await Capture.start(b.ns, 'eth0', OVERLAY);
        await variety(t);
        const carried = await capture.stopCarried();
        assertFlannelWire(t, carried, 6);
        t.ok(
          carried.every(({ outer }) => outer.family === 6 && outer.tos === 0 && outer.extensions.length === 0),
          'IPv6 outside, traffic class 0, no extension headers',
        );
        t.ok(
          carried.every(({ bytes }) => bytes.length <= 1452),
          'nothing larger than 1452 inside',
        );
        const shark = await tsharkComplaints(capture.file);
        t.same(shark, { packets: carried.length, complaints: [] }, 'tshark agrees');
        await assertConserved(t, wefts, 'wire over IPv6');
      },
      { peers, publicIp: a.underlay6 },
      { peers, publicIp: b.underlay6 },
    );
  });

  await t.test('from client to client', (t) =>
    during(async (wefts) => {
      // Nothing of a client's own goes in one piece, so what leaves it, what is on the wire and what arrives are one to one.
      for (const { client, ns } of hosts) {
        realPackets(client, 'eth0');
        realPackets(ns, 'lan0');
      }
      const filter = 'ip or ip6';
      const leaving = await Capture.start(a.client, 'eth0', filter);
      const wire = await Capture.start(b.ns, 'eth0', OVERLAY);
      const arriving = await Capture.start(b.client, 'eth0', filter);
      await variety(t);
      const [sent, carried, got] = [await leaving.stop(), await wire.stopCarried(), await arriving.stop()];
      const mine = carried.filter(isFrom(a));

      // Only what reached the wire: the host's kernel answers what is above the device's MTU.
      const ttl = (bytes: Uint8Array): number => bytes[bytes[0] >> 4 === 4 ? 8 : 7];
      const bySender = new Map<string, number>();
      for (const bytes of sent) bySender.set(routed(bytes), ttl(bytes));
      const strange = mine.filter(({ bytes, inner }) => {
        const before = bySender.get(routed(bytes));
        return inner.offset === 0 && !inner.mf && before === undefined;
      });
      t.same(
        strange,
        [],
        `all ${mine.length} packets on the wire are what the client sent, byte for byte but for the TTL`,
      );
      const wrongTtl = mine.filter(({ bytes, inner }) => {
        const before = bySender.get(routed(bytes));
        return before !== undefined && inner.ttl !== before - 2;
      });
      t.same(wrongTtl, [], 'TTL: once by the kernel, once by weft');

      const arrived = new Map<string, number>();
      for (const bytes of got) arrived.set(routed(bytes), ttl(bytes));
      const missing = mine.filter(({ bytes }) => !arrived.has(routed(bytes)));
      // A kernel puts TCP super-packets down as segments again, which may be cut elsewhere; datagrams stay what they were.
      const others = missing.filter(({ inner }) => inner.protocol !== TCP);
      t.same(others, [], 'and all that is not TCP arrives as it was on the wire');
      const wrongAgain = mine.filter(({ bytes, inner }) => {
        const after = arrived.get(routed(bytes));
        return after !== undefined && after !== inner.ttl - 1;
      });
      t.same(wrongAgain, [], "TTL: on arrival once by the other host's kernel, not by weft");

      // Order within a flow: of UDP by what was in it, of TCP by its sequence numbers.
      const orders = (from: readonly Uint8Array[]): Map<string, string[]> => {
        const flows = new Map<string, string[]>();
        for (const bytes of from) {
          const protocol = bytes[0] >> 4 === 4 ? bytes[9] : bytes[6];
          if (protocol !== UDP) continue;
          const key = `${bytes[0] >> 4}`;
          flows.set(key, [...(flows.get(key) ?? []), routed(bytes)]);
        }
        return flows;
      };
      const onWire = new Set(mine.map(({ bytes }) => routed(bytes)));
      const inOrder = (list: readonly string[] | undefined): string[] => (list ?? []).filter((one) => onWire.has(one));
      const [before, after] = [orders(sent), orders(mine.map(({ bytes }) => bytes))];
      for (const family of ['4', '6']) {
        t.ok(
          same(inOrder(before.get(family)), after.get(family) ?? []),
          `UDP over IPv${family} is in order on the wire`,
        );
      }
      await assertConserved(t, wefts, 'from client to client');
    }),
  );

  await t.test('congestion marks outside, and inside on arrival (RFC 6040)', async (t) => {
    const peers = writePeers(lab, hosts, { name: 'ecn.json', extra: { ecn: true } });
    for (const ecn of [false, true]) {
      await during(
        async (wefts) => {
          const capture = await Capture.start(b.ns, 'eth0', OVERLAY);
          for (const { client } of hosts) client.sysctl({ 'net/ipv4/tcp_ecn': 1 });
          for (const mark of [0, 1, 2, 3]) {
            for (const to of [b.client4, b.client6]) {
              const tos = mark | 0xb8;
              t.match(await ping(a.client, to, '-Q', String(tos)), 'bytes from', `mark ${mark} to ${to}`);
            }
          }
          await left.tcp(b.client4, { bytes: 300_000, duplex: true });
          await left.tcp(b.client6, { bytes: 300_000, duplex: true });
          for (const { client } of hosts) client.sysctl({ 'net/ipv4/tcp_ecn': 2 });
          const carried = await capture.stopCarried();
          const name = ecn ? 'peers known to be weft' : 'other peers';
          const marks = new Set(carried.map(({ inner }) => inner.ecn));
          t.same([...marks].sort(), [0, 1, 2, 3], `${name}: all four marks went`);
          const wrong = carried.filter(({ outer, inner }) => outer.tos !== (ecn ? inner.ecn : 0));
          t.same(
            wrong.map(({ outer, inner }) => [outer.tos, inner.tos]),
            [],
            `${name}: the outer TOS is ${ecn ? "the inner packet's mark, and nothing more" : '0'}`,
          );
          t.ok(
            carried.some(({ inner }) => isTcpData(inner) && inner.ecn === 2),
            `${name}: TCP with ECN was among them`,
          );
          await assertConserved(t, wefts, name);
        },
        ecn ? { peers } : {},
        ecn ? { peers } : {},
      );
    }

    await during(async ([, weftB]) => {
      const marks = ['Not-ECT', 'ECT(1)', 'ECT(0)', 'CE'];
      // RFC 6040 figure 4: rows are the inner mark, columns the outer one; -1 is a drop.
      const table = [
        [0, 0, 0, -1],
        [1, 1, 1, 3],
        [2, 1, 2, 3],
        [3, 3, 3, 3],
      ];
      for (const family of [4, 6] as const) {
        const [from, to] = family === 4 ? [a.client4, b.client4] : [a.client6, b.client6];
        for (const inner of [0, 1, 2, 3]) {
          const before = await weftB.idle();
          const capture = await Capture.start(b.client, 'eth0', 'udp port 7777');
          const payloads = [0, 1, 2, 3].map((outer) =>
            packet(
              { source: from, destination: to, tos: 0x28 | inner },
              udp({ to: 7777, payload: pattern(40 + outer) }),
            ),
          );
          const outerPackets = payloads.map((bytes, outer) =>
            packet(
              { source: a.underlay4, destination: b.underlay4, tos: outer },
              udp({ from: 8285, to: 8285, payload: bytes }),
            ),
          );
          await inject(t, hostA, a.ns, b.underlay4, outerPackets);
          const got = (await capture.stop()).map((bytes) => decode(bytes));
          const seen = [0, 1, 2, 3].map((outer) => got.find(({ payload }) => payload.length === 40 + outer)?.tos ?? -1);
          const expected = table[inner].map((mark) => (mark < 0 ? -1 : 0x28 | mark));
          t.same(seen, expected, `IPv${family}, ${marks[inner]} inside: what arrives under each outer mark`);
          const marked = { ...(inner === 1 || inner === 2 ? { 'inbound.ecn_marked': 1 } : {}) };
          const dropped = { ...(inner === 0 ? { 'inbound.ecn_ce_not_ect': 1 } : {}) };
          const pushed = { 'inbound.device_pushed': inner === 0 ? 3 : 4, 'inbound.socket_received': 4 };
          t.same(
            changes(before, await weftB.idle(), 'inbound'),
            { ...pushed, ...marked, ...dropped },
            `IPv${family}, ${marks[inner]} inside: counted`,
          );
        }
      }
    });
  });

  await t.test('ICMP errors reach the client', (t) =>
    during(async (wefts) => {
      // traceroute: the host's kernel, this weft, the other host's kernel (its nearest address is its device's), the client.
      const hops4 = ['10.5.1.1', '10.5.1.0', '10.5.2.0'];
      const hops6 = ['fd00:5:0:1::1', 'fd00:5:0:1::', 'fd00:5:0:2::'];
      for (const [to, hops] of [
        [b.client4, hops4],
        [b.client6, hops6],
      ] as const) {
        for (const [i, hop] of hops.entries()) {
          const line = await ping(a.client, to, '-t', String(i + 1));
          t.match(
            line,
            new RegExp(`^From ${hop} .*(Time to live exceeded|Time exceeded: Hop limit)`),
            `hop ${i + 1} to ${to}`,
          );
        }
        t.match(await ping(a.client, to, '-t', String(hops.length + 1)), `from ${to}`, `then ${to} itself`);
      }
      t.match(await ping(a.client, '10.5.99.1'), /^From 10\.5\.1\.0 .*Destination Net Unreachable/, 'no route, IPv4');
      t.match(await ping(a.client, 'fd00:5:0:99::1'), /^From fd00:5:0:1:: .*No route/, 'no route, IPv6');
      t.match(await ping(a.ns, '10.5.99.1'), /^From 10\.5\.1\.0 .*Net Unreachable/, "no route, the host's own program");

      // Hosts that check sources strictly believe them too.
      a.ns.sysctl({ 'net/ipv4/conf/all/rp_filter': 1, 'net/ipv4/conf/flannel0/rp_filter': 1 });
      t.match(await ping(a.client, b.client4, '-t', '2'), /^From 10\.5\.1\.0 /, 'under rp_filter=1');
      t.match(await ping(a.ns, '10.5.99.1'), /^From 10\.5\.1\.0 /, "under rp_filter=1, the host's own program");
      a.ns.sysctl({ 'net/ipv4/conf/all/rp_filter': 0, 'net/ipv4/conf/flannel0/rp_filter': 0 });

      // The errors themselves: sources, quotes.
      const capture = await Capture.start(a.client, 'eth0', 'icmp[icmptype] != icmp-echo or icmp6');
      await ping(a.client, b.client4, '-t', '2', '-s', '1000');
      await ping(a.client, b.client6, '-t', '2', '-s', '1300');
      await left.datagrams('10.5.99.7', [pattern(900)], undefined, 4321);
      await left.datagrams('fd00:5:0:99::7', [pattern(900)], undefined, 4321);
      const errors = (await capture.stop())
        .map((bytes) => ({ bytes, got: decode(bytes) }))
        .filter(({ got }) => ['10.5.1.0', expand6('fd00:5:0:1::')].includes(got.source));
      const expected = [
        { type: 11, code: 0, to: b.client4, ttl: 1 },
        { type: 3, code: 0, to: b.client6, ttl: 1 },
        { type: 3, code: 0, to: '10.5.99.7', ttl: 63 },
        { type: 1, code: 0, to: 'fd00:5:0:99::7', ttl: 63 },
      ];
      t.equal(errors.length, expected.length, 'one error each');
      for (const [i, want] of expected.entries()) {
        if (!errors[i]) continue;
        const { got, bytes } = errors[i];
        const quoted = decode(got.payload, 'quoted');
        t.same(
          { type: got.icmp?.type, code: got.icmp?.code, word: got.icmp?.word, to: quoted.destination, ttl: quoted.ttl },
          { ...want, to: want.to.includes(':') ? expand6(want.to) : want.to, word: 0 },
          `error about a packet to ${want.to}: type, code, and the packet as weft saw it`,
        );
        t.equal(quoted.source, got.destination, 'it goes to the sender of the quoted packet');
        if (got.family === 4) t.ok(bytes.length <= 576, `${bytes.length} bytes, at most 576 (RFC 1812 4.3.2.3)`);
        else t.ok(bytes.length <= 1280, `${bytes.length} bytes, at most 1280 (RFC 4443 2.4 c)`);
        t.ok(got.payload.length >= Math.min(quoted.l4At + 64, 500), 'quotes as much as there is room for');
      }

      // Never about errors, multicast, later fragments, or strange sources.
      const before = await wefts[0].idle();
      const to = '10.5.99.9';
      const header = { source: a.client4, destination: to };
      const forbidden = [
        packet(header, icmp(3, packet({ source: to, destination: a.client4 }, udp({ payload: pattern(8) })))),
        packet(header, icmp(11, packet({ source: to, destination: a.client4 }, udp({ payload: pattern(8) })))),
        packet({ ...header, offset: 100, df: false }, udp({ payload: pattern(64) })),
        packet({ ...header, destination: '239.1.2.3' }, udp()),
        packet({ ...header, destination: '255.255.255.255' }, udp()),
        packet({ ...header, source: '0.0.0.0' }, udp()),
        packet({ ...header, source: '127.0.0.1' }, udp()),
        packet({ ...header, source: '224.0.0.1' }, udp()),
        packet({ ...header, source: '255.255.255.255' }, udp()),
        packet({ source: a.client6, destination: 'fd00:5:0:99::9' }, icmp(1, pattern(48), true)),
        packet({ source: a.client6, destination: 'ff05::9' }, udp()),
        packet({ source: 'ff05::9', destination: 'fd00:5:0:99::9' }, udp()),
        packet({ source: '::', destination: 'fd00:5:0:99::9' }, udp()),
      ];
      await intoDevice(a.ns, forbidden);
      t.same(
        changes(before, await wefts[0].idle(), 'outbound'),
        {
          'outbound.device_pulled': forbidden.length,
          'outbound.no_route': forbidden.length,
          'outbound.icmp_forbidden': forbidden.length,
          'outbound.ip_fragments': 1,
        },
        'no error about errors, later fragments, multicast, broadcast or sources that are not one host',
      );

      // A flood of hopeless packets is not answered by a flood.
      const quiet = await wefts[0].idle();
      await left.datagrams(
        to,
        Array.from({ length: 3000 }, () => pattern(10)),
        undefined,
        4321,
      );
      const moved = changes(quiet, await wefts[0].idle(), 'outbound');
      t.equal(moved['outbound.no_route'], 3000, 'a flood: all counted');
      t.ok(moved['outbound.icmp_limited'] > 1500, `a flood: ${moved['outbound.icmp_limited']} not answered`);
      t.ok(moved['outbound.icmp_made'] >= 100, `a flood: ${moved['outbound.icmp_made']} answered`);
      t.equal(moved['outbound.icmp_made'], moved['outbound.icmp_sent'], 'all that were made got out');
      await assertConserved(t, wefts, 'ICMP', { 'outbound.no_route': true, 'outbound.ttl_exceeded': true });
    }),
  );

  await t.test('a peer behind a smaller path', async (t) => {
    const peers = writePeers(lab, hosts, { name: 'small.json', extra: { mtu: 1400 } });
    const small = 1372;
    await during(
      async (wefts) => {
        const capture = await Capture.start(
          a.client,
          'eth0',
          'icmp[icmptype] == icmp-unreach or icmp6[icmp6type] == 2',
        );
        const wire = await Capture.start(b.ns, 'eth0', OVERLAY);
        t.match(
          await ping(a.client, b.client4, '-M', 'do', '-s', '1400'),
          /^From 10\.5\.1\.0 .*[Ff]rag needed and DF set \(mtu = 1372\)/,
          'DF: fragmentation needed, with the MTU',
        );
        t.match(
          await ping(a.client, b.client6, '-M', 'do', '-s', '1400'),
          /^From fd00:5:0:1:: .*Packet too big: mtu=1372/,
          'IPv6: packet too big, with the MTU',
        );
        t.match(
          await ping(a.client, b.client4, '-M', 'do', '-s', String(small - 28)),
          'bytes from',
          'what just fits goes',
        );
        t.match(
          await ping(a.client, b.client6, '-M', 'do', '-s', String(small - 48)),
          'bytes from',
          'and so over IPv6',
        );

        for (const { client } of hosts) {
          client.ip('route flush cache');
          client.runSync('ip', '-6', 'route', 'flush', 'cache');
        }
        t.match(
          await ping(a.client, b.client4, '-M', 'dont', '-s', '1440'),
          '1448 bytes from',
          'without DF it arrives whole',
        );
        const sizes = [1344, 1345, 1400, 1472, 2000, 4000, 8192];
        t.equal((await left.udp(b.client4, sizes)).echoed, sizes.length, 'UDP in fragments arrives whole');
        t.equal((await left.udp(b.client6, sizes)).echoed, sizes.length, 'and so over IPv6');
        await right.expect();
        const options = { size: 1420, each: 30, calls: 20, last: 900, mayFragment: true };
        const sent = await sendSegments(a.client, b.client4, options);
        const { received, wrong, missing } = await right.countedUpTo(sent);
        t.same(
          { received, wrong, missing },
          { received: sent, wrong: 0, missing: 0 },
          'UDP super-packets without DF, too',
        );

        for (const to of [b.client4, b.client6]) {
          const { flows } = await left.tcp(to, { bytes: 8 * MiB, duplex: true });
          t.ok(
            flows.every((flow) => flow.sent === flow.received),
            `TCP finds its size: ${to}`,
          );
        }
        const carried = await wire.stopCarried();
        const large = carried.filter(({ bytes }) => bytes.length > small);
        t.same(
          large.map(({ bytes }) => bytes.length),
          [],
          `nothing above ${small} bytes on the wire`,
        );
        t.ok(
          carried.some(({ inner }) => inner.mf && inner.source === a.client4),
          'fragments are among it',
        );
        const errors = (await capture.stop())
          .map((bytes) => decode(bytes))
          .filter(({ source }) => /:0$|\.0$/.test(source));
        const mtus = new Set(errors.map(({ icmp }) => icmp?.word));
        t.same([...mtus], [small], `all ${errors.length} errors name ${small}`);
        t.ok(
          errors.every(({ icmp, family }) => family === 6 || icmp?.code === FRAGMENTATION_NEEDED),
          'all are about size',
        );
        const [now] = await assertConserved(t, wefts, 'small path', { 'outbound.too_big': true });
        t.ok(now.get('outbound.fragments_made') > 0, 'fragments were made, and counted');
      },
      { peers },
      { peers },
    );
  });

  await t.test('strangers and liars from the network', async (t) => {
    const stranger = { address: '192.168.77.99', port: 8285 };
    a.ns.ip(`addr add ${stranger.address}/24 dev eth0`);
    const good = (source: string, destination = b.client4): Uint8Array =>
      packet({ source, destination }, udp({ to: 7777, payload: pattern(64) }));
    const good6 = (source: string): Uint8Array =>
      packet({ source, destination: b.client6 }, udp({ to: 7777, payload: pattern(64) }));
    const peer = { address: a.underlay4, port: 8299 };

    /** What the other side counts, and how many packets come through, when `payloads` are sent as datagrams. */
    async function expectCounts(
      t: Assertions,
      weft: Weft,
      what: string,
      payloads: readonly Uint8Array[],
      expected: Readonly<Record<string, number>>,
      from = peer,
    ): Promise<void> {
      const before = await weft.idle();
      await hostA.datagrams(b.underlay4, payloads, from);
      await sleep(100);
      const { 'inbound.super_packets': _, ...moved } = changes(before, await weft.idle(), 'inbound');
      t.same(moved, { 'inbound.socket_received': payloads.length, ...expected }, what);
    }

    await during(async ([, weft]) => {
      await expectCounts(
        t,
        weft,
        'a stranger is dropped',
        [good(a.client4), good6(a.client6)],
        { 'inbound.unknown_peer': 2 },
        stranger,
      );
      await expectCounts(
        t,
        weft,
        'a peer may say what it likes by default',
        [good('203.0.113.5'), good6('2001:db8::5')],
        {
          'inbound.device_pushed': 2,
        },
      );

      const packet4 = good(a.client4);
      const packet6 = good6(a.client6);
      const word = (at: number, value: number) => (bytes: Uint8Array) =>
        changed(bytes, (_, view) => view.setUint16(at, value));
      const bad: readonly (readonly [string, readonly Uint8Array[], Readonly<Record<string, number>>])[] = [
        ['empty', [new Uint8Array(0), new Uint8Array(0)], { 'inbound.empty': 2 }],
        ['short', [packet4.slice(0, 1), packet4.slice(0, 19), packet6.slice(0, 39)], { 'inbound.short': 3 }],
        [
          'bad version',
          [0, 1, 5, 7, 15].map((version) => changed(packet4, (copy) => copy.fill((version << 4) | 5, 0, 1))),
          { 'inbound.bad_version': 5 },
        ],
        [
          'header length',
          [
            changed(packet4, (copy) => copy.fill(0x44, 0, 1)),
            changed(packet4, (copy) => copy.fill(0x40, 0, 1)),
            changed(packet4.slice(0, 40), (copy) => copy.fill(0x4f, 0, 1)),
          ],
          { 'inbound.bad_header_length': 3 },
        ],
        [
          'total length',
          [
            rechecksum(word(2, packet4.length + 1)(packet4)),
            rechecksum(word(2, packet4.length - 1)(packet4)),
            rechecksum(word(2, 0)(packet4)),
            rechecksum(word(2, 65_535)(packet4)),
            word(4, packet6.length - 39)(packet6),
            word(4, 0)(packet6),
            concat(packet4, [0]),
          ],
          { 'inbound.bad_total_length': 7 },
        ],
        [
          'header checksum',
          [changed(packet4, (copy) => copy.fill(copy[10] ^ 1, 10, 11))],
          { 'inbound.bad_header_checksum': 1 },
        ],
        [
          'TTL 0',
          [rechecksum(changed(packet4, (copy) => copy.fill(0, 8, 9))), changed(packet6, (copy) => copy.fill(0, 7, 8))],
          { 'inbound.ttl_zero': 2 },
        ],
        [
          'TTL 1 is for the next router to judge',
          [packet({ source: a.client4, destination: b.client4, ttl: 1 }, udp())],
          { 'inbound.device_pushed': 1 },
        ],
        [
          'IP options are carried',
          [
            packet(
              { source: a.client4, destination: b.client4, options: Uint8Array.of(7, 7, 4, 0, 0, 0, 0, 0) },
              udp(),
            ),
          ],
          { 'inbound.device_pushed': 1, 'inbound.ip_options': 1 },
        ],
        [
          'IPv6 extension headers are carried',
          [packet({ source: a.client6, destination: b.client6, extensions: [[60, extension(1)]] }, udp())],
          { 'inbound.device_pushed': 1 },
        ],
        [
          'fragments are carried',
          [
            packet({ source: a.client4, destination: b.client4, df: false, mf: true }, udp({ payload: pattern(64) })),
            packet({ source: a.client4, destination: b.client4, df: false, offset: 9 }, udp({ payload: pattern(64) })),
          ],
          { 'inbound.device_pushed': 2, 'inbound.ip_fragments': 2 },
        ],
        [
          'the largest datagram, of noise',
          [changed(pattern(65_507), (copy) => copy.fill(0, 0, 1))],
          { 'inbound.bad_version': 1 },
        ],
        [
          'the largest datagram, one packet',
          [
            packet(
              { source: a.client4, destination: b.client4, df: false },
              udp({ to: PORT_OF_NOBODY, payload: pattern(65_479) }),
            ),
          ],
          { 'inbound.device_pushed': 1, 'inbound.above_mtu': 1 },
        ],
        [
          'a wrong TCP or UDP checksum is for the receiver to judge',
          [
            changed(packet4, (copy) => copy.fill(copy[26] ^ 1, 26, 27)),
            changed(packet4, (copy) => copy.fill(0, 26, 28)),
          ],
          { 'inbound.device_pushed': 2 },
        ],
      ];
      for (const [what, payloads, expected] of bad) await expectCounts(t, weft, what, payloads, expected);

      // The largest packet really arrives.
      const capture = await Capture.start(b.client, 'eth0', 'ip[6:2] & 0x3fff != 0');
      const whole = packet(
        { source: a.client4, destination: b.client4, df: false },
        udp({ to: 7777, payload: pattern(65_479) }),
      );
      await hostA.datagrams(b.underlay4, [whole], peer);
      const pieces = (await capture.stop()).map((bytes) => decode(bytes));
      t.equal(
        pieces.reduce((sum, piece) => sum + piece.l4.length, 0),
        65_487,
        'the largest packet reaches the client, in fragments',
      );

      // Noise of all kinds, from a seed.
      const before = await weft.idle();
      const noise = Array.from({ length: 2000 }, (_, i) => {
        const bytes = pattern(1 + ((i * 7919) % 1600), i * 104_729);
        return changed(bytes, (copy) => {
          if (i % 3 > 0) copy[0] = i % 3 === 1 ? 0x45 : 0x60;
        });
      });
      await hostA.datagrams(b.underlay4, noise, peer);
      const after = await weft.idle();
      t.equal(after.in - before.in, noise.length, 'noise: every datagram came in');
      t.equal(after.in + after.made, after.sent + after.consumed + after.dropped, 'noise: and ended somewhere');
      t.match(await ping(a.client, b.client4), 'bytes from', 'and the daemon carries on');
      t.equal(await weft.sample('weft_worker_restarts_total'), 0, 'its worker never fell over');
    });

    await during(
      async ([, weft]) => {
        await expectCounts(
          t,
          weft,
          "strict: a source that is not the peer's is dropped",
          [good('10.5.9.9'), good('203.0.113.5'), good(b.client4), good6('fd00:5:0:9::1'), good6('2001:db8::5')],
          { 'inbound.spoofed_source': 5 },
        );
        await expectCounts(
          t,
          weft,
          "strict: the peer's own passes",
          [good(a.client4), good6(a.client6), good('10.5.1.0')],
          {
            'inbound.device_pushed': 3,
          },
        );
        await expectCounts(
          t,
          weft,
          'strict: a stranger is dropped',
          [good(a.client4)],
          { 'inbound.unknown_peer': 1 },
          stranger,
        );
        t.match(await ping(a.client, b.client4), 'bytes from', 'strict: the clients reach each other');
        t.match(await ping(a.client, b.client6), 'bytes from', 'strict: and by IPv6');
      },
      {},
      { args: ['--source-check', 'strict'] },
    );

    await during(
      async ([, weft]) => {
        await expectCounts(
          t,
          weft,
          'off: a stranger is heard',
          [good('203.0.113.5')],
          { 'inbound.device_pushed': 1 },
          stranger,
        );
      },
      {},
      { args: ['--source-check', 'off'] },
    );
  });

  await t.test('liars from the host', (t) =>
    during(async ([weft]) => {
      const good = packet({ source: a.client4, destination: b.client4 }, udp({ to: 7777, payload: pattern(64) }));
      const good6 = packet({ source: a.client6, destination: b.client6 }, udp({ to: 7777, payload: pattern(64) }));
      const word = (bytes: Uint8Array, at: number, value: number): Uint8Array =>
        changed(bytes, (_, view) => view.setUint16(at, value));
      const cases: readonly (readonly [string, readonly Uint8Array[], Readonly<Record<string, number>>])[] = [
        ['short', [good.slice(0, 1), good.slice(0, 19), good6.slice(0, 39)], { 'outbound.short': 3 }],
        ['version', [changed(good, (copy) => copy.fill(0x55, 0, 1))], { 'outbound.bad_version': 1 }],
        [
          'header length',
          [changed(good, (copy) => copy.fill(0x44, 0, 1)), changed(good.slice(0, 40), (copy) => copy.fill(0x4f, 0, 1))],
          { 'outbound.bad_header_length': 2 },
        ],
        [
          'total length',
          [rechecksum(word(good, 2, good.length + 1)), rechecksum(word(good, 2, 20)), word(good6, 4, 1)],
          { 'outbound.bad_total_length': 3 },
        ],
        [
          'header checksum',
          [changed(good, (copy) => copy.fill(copy[10] ^ 1, 10, 11))],
          { 'outbound.bad_header_checksum': 1 },
        ],
        [
          'TTL 0 and 1',
          [0, 1].map((ttl) => packet({ source: a.client4, destination: b.client4, ttl }, udp())),
          { 'outbound.ttl_exceeded': 2, 'outbound.icmp_made': 2, 'outbound.icmp_sent': 2 },
        ],
        [
          'hop limit 0 and 1',
          [0, 1].map((ttl) => packet({ source: a.client6, destination: b.client6, ttl }, udp())),
          { 'outbound.ttl_exceeded': 2, 'outbound.icmp_made': 2, 'outbound.icmp_sent': 2 },
        ],
        [
          'options and fragments are carried',
          [
            packet({ source: a.client4, destination: b.client4, options: Uint8Array.of(1, 1, 1, 0) }, udp()),
            packet({ source: a.client4, destination: b.client4, df: false, mf: true }, udp({ payload: pattern(64) })),
          ],
          { 'outbound.ip_options': 1, 'outbound.ip_fragments': 1, 'outbound.socket_sent': 2 },
        ],
      ];
      for (const [what, packets, expected] of cases) {
        const before = await weft.idle();
        await intoDevice(a.ns, packets);
        t.same(
          changes(before, await weft.idle(), 'outbound'),
          { 'outbound.device_pulled': packets.length, ...expected },
          what,
        );
      }
      t.match(await ping(a.client, b.client4), 'bytes from', 'and the daemon carries on');
      t.equal(await weft.sample('weft_worker_restarts_total'), 0, 'its worker never fell over');
    }),
  );
}
