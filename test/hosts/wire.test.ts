/**
 * What is on the wire, as independent readers see it: tcpdump captures, test/lib/decode.ts, tshark and scapy take apart.
 *
 * Captures are made where packets are real: the veth ends towards them have their offloads off, so the kernel segments and
 * checksums before the wire. stopCarried() throws unless each datagram holds one whole packet, and every length and
 * checksum inside and outside is right.
 */
import t from 'tap';
import { type Host, Lab } from '../../race/hosts.js';
import type { Decoded } from '../lib/decode.js';
import { changed, TCP, UDP } from '../lib/packets.js';
import { sendSegments } from './lib/agents.js';
import { Capture, type Carried, OVERLAY, realPackets } from './lib/capture.js';
import { type Assertions, assertConserved, impossible, writePeers } from './lib/weft.js';
import { expand6, makeWireRig, ping, scapyRebuild, tsharkComplaints, WIRE_TOOLS } from './lib/wire.js';

const why = impossible(...WIRE_TOOLS);
t.setTimeout(0);

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

const same = (one: readonly string[], other: readonly string[]): boolean =>
  one.length === other.length && one.every((text, i) => text === other[i]);

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-wire');
  t.teardown(() => lab.close());
  const { a, b, hosts, left, right, during } = await makeWireRig(lab);

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
}
