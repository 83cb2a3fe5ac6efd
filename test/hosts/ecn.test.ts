/**
 * Congestion marks (RFC 6040): what is outside on the wire, towards Weft and towards others, and what arrives inside.
 */
import t from 'tap';
import { Lab } from '../../race/hosts.js';
import { type Decoded, decode } from '../lib/decode.js';
import { packet, pattern, udp } from '../lib/packets.js';
import { Capture, OVERLAY } from './lib/capture.js';
import { assertConserved, changes, impossible, writePeers } from './lib/weft.js';
import { inject, makeWireRig, ping, WIRE_TOOLS } from './lib/wire.js';

const why = impossible(...WIRE_TOOLS);
t.setTimeout(0);

const isTcpData = (one: Decoded): boolean => one.tcp !== undefined && one.payload.length > 0;

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-ecn');
  t.teardown(() => lab.close());
  const { a, b, hosts, left, hostA, during } = await makeWireRig(lab);

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
          await inject(hostA, a.ns, b.underlay4, outerPackets);
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
}
