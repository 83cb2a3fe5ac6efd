/**
 * Strangers and liars: whatever is thrown at a daemon from the network, or by its own host, ends in the counter that is for
 * it, and the daemon carries on.
 *
 * Datagrams come from plain sockets on the other host; past the kernel's own checks, a packet socket on the TUN gives the
 * daemon what no honest kernel would.
 */
import t from 'tap';
import { Lab, sleep } from '../../race/hosts.js';
import { decode } from '../lib/decode.js';
import { changed, concat, extension, packet, pattern, rechecksum, udp } from '../lib/packets.js';
import { Capture } from './lib/capture.js';
import { type Assertions, changes, impossible, type Weft } from './lib/weft.js';
import { intoDevice, makeWireRig, ping, WIRE_TOOLS } from './lib/wire.js';

const why = impossible(...WIRE_TOOLS);
t.setTimeout(0);

/** A port that nobody listens on: the answer is an ICMP error from the client, which is its business. */
const PORT_OF_NOBODY = 7777;

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-liars');
  t.teardown(() => lab.close());
  const { a, b, hostA, during } = await makeWireRig(lab);

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
