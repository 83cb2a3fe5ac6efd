/** Network → host: every way a datagram can go, checked by an independent decoder and by the second set of books. */
import fc from 'fast-check';
import t from 'tap';
import { SharedWords } from '../../src/dataplane/shared.js';
import { EINVAL, EIO } from '../../src/io/device.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';
import { ALL_OFFLOADS, OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { decode, decodeVnet } from '../lib/decode.js';
import {
  ACK,
  add,
  address,
  changed,
  concat,
  difference,
  extension,
  FIN,
  flip,
  hex,
  type IpSpec,
  icmp,
  message,
  onesSum,
  PSH,
  packet,
  pattern,
  prefix,
  put,
  random,
  raw,
  rechecksum,
  tcp,
  udp,
} from '../lib/packets.js';
import { HOST_4, HOST_6, makeRig, type Rig, remote4, remote6 } from '../lib/rig.js';
import { onTheWire } from '../lib/segment.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const v4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: remote4(), destination: HOST_4, ...change });
const v6 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: remote6(), destination: HOST_6, ...change });
const both = [v4, v6] as const;

const single = (name: Uint8Array, bytes: Uint8Array, tos?: number): IncomingMessage =>
  tos === undefined ? { name, bytes } : { name, bytes, tos };

/** A packet without its IPv4 id, which merging does not keep. */
const timeless = (bytes: Uint8Array): string =>
  bytes[0] >> 4 === 4 && onesSum(bytes.subarray(0, (bytes[0] & 15) * 4)) === 0xffff
    ? hex(rechecksum(changed(bytes, (copy) => copy.fill(0, 4, 6))))
    : hex(bytes);
const cut = (pushed: readonly DevicePacket[]): Uint8Array[] => pushed.flatMap(onTheWire);

t.test('what is well-formed arrives as it was sent, TTL and all, behind an empty virtio header', async (t) => {
  const rig = await makeRig();
  const packets = both.flatMap((ip) => [
    packet(ip({ ttl: 1 }), udp({ payload: pattern(1000) })),
    packet(ip({ ttl: 255 }), tcp({ payload: pattern(1000), flags: ACK | FIN })),
    packet(ip(), icmp(ip === v4 ? 0 : 129, pattern(56), ip === v6)),
    packet(ip(), raw(132, pattern(3))),
    packet(ip(), raw(59, new Uint8Array(0))),
  ]);
  packets.push(packet(v4({ options: new Uint8Array(12).fill(1) }), udp({ payload: pattern(10) })));
  packets.push(packet(v4({ mf: true, df: false }), raw(17, pattern(80))));
  packets.push(packet(v4({ offset: 10, df: false }), raw(17, pattern(7))));
  packets.push(
    packet(
      v6({
        extensions: [
          [0, extension(1)],
          [60, extension(3)],
        ],
      }),
      tcp({ payload: pattern(9) }),
    ),
  );
  // An IPv4 UDP datagram without a checksum is legal.
  packets.push(changed(packet(v4(), udp({ payload: pattern(9) })), (copy) => void copy.fill(0, 26, 28)));
  // And what the engine cannot judge, the host will: wrong transport checksums pass as they are.
  packets.push(changed(packet(v4(), tcp({ payload: pattern(9) })), flip(40, 1)));
  const pushed = rig.in(packets.map((bytes) => single(rig.name(0), bytes)));
  t.equal(difference(pushed.map(({ bytes }) => hex(bytes)).sort(), packets.map(hex).sort()), '');
  t.ok(pushed.every(({ vnet }) => hex(vnet) === '00'.repeat(10)));
  t.match(rig.changes(), { 'inbound.ip_options': 1, 'inbound.ip_fragments': 2 });
  rig.audit();
});

t.test('bad datagrams: each its own counter, nothing written', async (t) => {
  const rig = await makeRig({ settings: { sourceCheck: 'strict' } });
  const good = packet(v4(), tcp({ payload: pattern(100) }));
  const six = packet(v6(), tcp({ payload: pattern(100) }));
  const stranger = socketAddress(address('192.168.77.99'), 8285);
  const peer = rig.name(0);
  const cases: readonly (readonly [string, string, IncomingMessage])[] = [
    ['one byte', 'short', single(peer, good.subarray(0, 1))],
    ['19 bytes of IPv4', 'short', single(peer, good.subarray(0, 19))],
    ['39 bytes of IPv6', 'short', single(peer, six.subarray(0, 39))],
    ['version 0', 'bad_version', single(peer, changed(good, put(0, 5)))],
    ['version 15', 'bad_version', single(peer, changed(good, put(0, 0xf5)))],
    ['header of 0', 'bad_header_length', single(peer, changed(good, put(0, 0x40)))],
    ['header of 16', 'bad_header_length', single(peer, changed(good, put(0, 0x44)))],
    ['header beyond the datagram', 'bad_header_length', single(peer, changed(good.slice(0, 40), put(0, 0x4f)))],
    ['total length + 1', 'bad_total_length', single(peer, changed(good, add(3, 1)))],
    ['total length - 1', 'bad_total_length', single(peer, changed(good, add(3, -1)))],
    [
      'total length 0',
      'bad_total_length',
      single(
        peer,
        changed(good, (copy) => void copy.fill(0, 2, 4)),
      ),
    ],
    ['payload length + 1', 'bad_total_length', single(peer, changed(six, add(5, 1)))],
    [
      'payload length 0',
      'bad_total_length',
      single(
        peer,
        changed(six, (copy) => void copy.fill(0, 4, 6)),
      ),
    ],
    ['a trailing byte', 'bad_total_length', single(peer, concat(good, [0]))],
    ['header checksum', 'bad_header_checksum', single(peer, changed(good, flip(11, 0x80)))],
    ['TTL 0', 'ttl_zero', single(peer, packet(v4({ ttl: 0 }), udp()))],
    ['hop limit 0', 'ttl_zero', single(peer, packet(v6({ ttl: 0 }), udp()))],
    ['no payload', 'empty', single(peer, new Uint8Array(0))],
    ['unknown peer', 'unknown_peer', single(stranger, good)],
    ['unknown peer without payload', 'unknown_peer', single(stranger, new Uint8Array(0))],
    ["another's source", 'spoofed_source', single(peer, packet(v4({ source: '10.5.3.9' }), udp()))],
    ['our own source', 'spoofed_source', single(peer, packet(v4({ source: HOST_4 }), udp()))],
    ["another's IPv6 source", 'spoofed_source', single(peer, packet(v6({ source: remote6(1) }), udp()))],
    ['CE outside, not ECN-capable inside', 'ecn_ce_not_ect', single(peer, packet(v4({ tos: 0xb8 }), udp()), 3)],
    ['the same over IPv6', 'ecn_ce_not_ect', single(peer, packet(v6(), udp()), 3)],
  ];
  for (const [what, counter, given] of cases) {
    t.equal(rig.in([given]).length, 0, `${what}: nothing written`);
    t.same(rig.changes(), { 'inbound.socket_received': 1, [`inbound.${counter}`]: 1 }, what);
    rig.audit();
  }
  // In a run, only the bad one is lost.
  const segments = Array.from({ length: 9 }, (_, i) =>
    packet(v4({ id: i }), tcp({ seq: 1 + i * 100, payload: pattern(100, i) })),
  );
  for (const spoil of [0, 3, 8]) {
    for (const [what, counter, change] of [
      ['version', 'bad_version', put(0, 0x75)],
      ['length', 'bad_total_length', add(3, 1)],
      ['checksum', 'bad_header_checksum', flip(5, 1)],
      ['TTL', 'ttl_zero', (copy: Uint8Array) => void rechecksum(copy.fill(0, 8, 9))],
      ['source', 'spoofed_source', (copy: Uint8Array) => void rechecksum(copy.fill(77, 13, 14))],
    ] as const) {
      const given = segments.map((bytes, i) => (i === spoil ? changed(bytes, change) : bytes));
      const pushed = cut(rig.in([message(peer, given)]));
      t.equal(
        difference(pushed.map(timeless), segments.filter((_, i) => i !== spoil).map(timeless)),
        '',
        `${what} of segment ${spoil}`,
      );
      t.match(rig.changes(), { [`inbound.${counter}`]: 1, 'inbound.socket_received': 9 });
      rig.audit();
    }
  }
});

t.test('a message longer than the buffer is dropped whole and counted', async (t) => {
  const rig = await makeRig();
  const bytes = new Uint8Array(65537 + 1000);
  bytes.set(packet(v4(), udp({ payload: pattern(100) })));
  t.equal(rig.in([{ name: rig.name(0), bytes }]).length, 0);
  t.same(rig.changes(), { 'inbound.socket_received': 1, 'inbound.truncated': 1 });
  const segment = packet(v4(), udp({ payload: pattern(1000) }));
  const run = concat(...Array.from({ length: 66 }, () => segment));
  t.equal(rig.in([{ name: rig.name(0), bytes: run, segment: segment.length }]).length, 0);
  t.same(rig.changes(), { 'inbound.socket_received': 64, 'inbound.truncated': 64 });
  t.equal(rig.in([single(rig.name(0), segment)]).length, 1, 'the next one is received as ever');
  rig.audit();
});

t.test('the longest datagram: 65,507 bytes', async (t) => {
  const rig = await makeRig({ settings: { mtu: 65535 } });
  const longest = [
    packet(v4(), udp({ payload: pattern(65507 - 28) })),
    packet(v4(), tcp({ payload: pattern(65507 - 52) })),
    packet(v6(), tcp({ payload: pattern(65507 - 72) })),
    packet(v4(), icmp(8, pattern(65507 - 28))),
  ];
  const pushed = rig.in(longest.map((bytes) => single(rig.name(0), bytes)));
  t.equal(difference(pushed.map(({ bytes }) => hex(bytes)).sort(), longest.map(hex).sort()), '');
  // Two of them side by side never make one packet above 65,535 bytes.
  const two = [0, 1].map((i) => packet(v4({ id: i }), tcp({ seq: 1 + i * 40000, payload: pattern(40000, i) })));
  t.equal(rig.in(two.map((bytes) => single(rig.name(0), bytes))).length, 2);
  rig.audit();
});

t.test('source-check peer, strict, off', async (t) => {
  const stranger = socketAddress(address('192.168.77.99'), 8285);
  for (const [sourceCheck, ofStranger, spoofed] of [
    ['peer', 0, 1],
    ['strict', 0, 0],
    ['off', 1, 1],
  ] as const) {
    const rig = await makeRig({ peers: [{}, {}], settings: { sourceCheck } });
    for (const ip of both) {
      const honest = packet(ip(), udp({ payload: pattern(5) }));
      const other = packet(ip({ source: ip === v4 ? '10.5.3.9' : remote6(1) }), udp({ payload: pattern(5) }));
      const nobody = packet(ip({ source: ip === v4 ? '8.8.8.8' : '2001:db8::1' }), udp({ payload: pattern(5) }));
      t.equal(rig.in([single(rig.name(0), honest)]).length, 1, `${sourceCheck}: a peer`);
      t.equal(rig.in([single(rig.name(0), other)]).length, spoofed, `${sourceCheck}: another peer's source`);
      t.equal(rig.in([single(rig.name(0), nobody)]).length, spoofed, `${sourceCheck}: nobody's source`);
      t.equal(rig.in([single(stranger, honest)]).length, ofStranger, `${sourceCheck}: an unknown sender`);
      t.equal(rig.in([single(rig.name(1), other)]).length, 1, `${sourceCheck}: the other peer itself`);
      // A run that begins honestly does not carry a lie along.
      const run = [honest, other, honest].map((bytes) => bytes);
      t.equal(cut(rig.in([message(rig.name(0), run)])).length, 2 + spoofed);
    }
    rig.audit();
  }
});

t.test('the sender is looked up anew for every sender, and after every change of the tables', async (t) => {
  const rig = await makeRig({ peers: [{}, {}, { address: 'fd99::2' }], settings: { sourceCheck: 'strict' } });
  const shared = new SharedWords(rig.memory);
  const from = (i: number): IncomingMessage =>
    single(rig.name(i), packet(v4({ source: remote4(i) }), udp({ payload: pattern(8) })));
  const stranger = single(socketAddress(address('192.168.77.200'), 1), packet(v4(), udp()));
  t.equal(cut(rig.in([from(0), from(1), from(0), stranger, from(0), stranger, stranger, from(1)])).length, 5);
  t.equal(rig.counter('inbound.unknown_peer'), 3);
  t.equal(rig.in([from(2)], 1).length, 1);
  t.equal(rig.in([from(2)], 1).length, 1);
  // An IPv4 sender whose bytes are like the IPv6 one's last four, and the other way round.
  t.equal(rig.in([single(socketAddress(Uint8Array.of(0, 0, 0, 2), 8285), from(2).bytes)]).length, 0);
  t.equal(rig.in([from(0)], 0).length, 1);

  shared.setRunning(0, true);
  rig.tables.removeRoute(0, prefix('10.5.2.0/24'));
  rig.tables.removeRoute(0, prefix('fd00:5:0:2::/64'));
  rig.tables.removePeer(rig.refs[0]);
  const commit = rig.tables.commit();
  while (await Promise.race([commit.then(() => false), new Promise((resolve) => setTimeout(() => resolve(true), 2))]))
    rig.drain();
  t.equal(rig.in([from(0)]).length, 0, 'removed');
  t.equal(rig.in([from(1)]).length, 1);
  shared.setRunning(0, false);
  rig.audit();
});

t.test('ECN on the way in (RFC 6040, figure 4): all sixteen, IPv4 and IPv6, both underlays', async (t) => {
  const [NOT, ECT1, ECT0, CE] = [0, 1, 2, 3];
  const table: readonly (readonly [inner: number, outer: number, result: number])[] = [
    [NOT, NOT, NOT],
    [NOT, ECT0, NOT],
    [NOT, ECT1, NOT],
    [NOT, CE, -1],
    [ECT0, NOT, ECT0],
    [ECT0, ECT0, ECT0],
    [ECT0, ECT1, ECT1],
    [ECT0, CE, CE],
    [ECT1, NOT, ECT1],
    [ECT1, ECT0, ECT1],
    [ECT1, ECT1, ECT1],
    [ECT1, CE, CE],
    [CE, NOT, CE],
    [CE, ECT0, CE],
    [CE, ECT1, CE],
    [CE, CE, CE],
  ];
  for (const underlay of [0, 1]) {
    const rig = await makeRig({ peers: [underlay === 0 ? {} : { address: 'fd99::2' }] });
    for (const ip of both) {
      for (const [inner, outer, result] of table) {
        for (const dscp of [0, 0xb8, 0xfc]) {
          const make = (ecn: number): Uint8Array => packet(ip({ tos: dscp | ecn }), tcp({ payload: pattern(30) }));
          const pushed = rig.in([single(rig.name(0), make(inner), outer | (dscp ^ 0x20))], underlay);
          const what = `inner ${inner}, outer ${outer}, DSCP ${dscp}`;
          if (result < 0) {
            t.equal(pushed.length, 0, `${what}: dropped`);
          } else {
            t.equal(pushed.length, 1, what);
            t.equal(hex(pushed[0].bytes), hex(make(result)), what);
          }
          const changes = rig.changes();
          t.equal(changes['inbound.ecn_ce_not_ect'] ?? 0, result < 0 ? 1 : 0, what);
          t.equal(changes['inbound.ecn_marked'] ?? 0, result === CE && inner !== CE ? 1 : 0, what);
        }
      }
      // The same in a run of segments: every one of them is marked.
      for (const [inner, outer, result] of table) {
        const segments = (ecn: number): Uint8Array[] =>
          Array.from({ length: 12 }, (_, i) =>
            packet(ip({ tos: ecn, id: i }), tcp({ seq: i * 50, payload: pattern(50, i) })),
          );
        const pushed = cut(rig.in([{ ...message(rig.name(0), segments(inner)), tos: outer }], underlay));
        t.equal(
          difference(pushed.map(timeless), result < 0 ? [] : segments(result).map(timeless)),
          '',
          `a run: inner ${inner}, outer ${outer}`,
        );
        t.equal(rig.changes()['inbound.ecn_ce_not_ect'] ?? 0, result < 0 ? 12 : 0);
      }
    }
    rig.audit();
  }
});

t.test('merged: one super-packet per flow, across runs, messages and pulls', async (t) => {
  for (const ip of both) {
    const rig = await makeRig();
    const segments = Array.from({ length: 40 }, (_, i) =>
      packet(
        ip({ id: i }),
        tcp({ seq: 1 + i * 1400, payload: pattern(1400, i * 1400), flags: i === 39 ? ACK | PSH : ACK }),
      ),
    );
    const runs = [message(rig.name(0), segments)];
    const singles = segments.map((bytes) => single(rig.name(0), bytes));
    for (const messages of [runs, singles, [message(rig.name(0), segments.slice(0, 20)), ...singles.slice(20)]]) {
      const pushed = rig.in(messages);
      t.equal(pushed.length, 1);
      t.equal(decodeVnet(pushed[0].vnet).size, 1400);
      t.equal(hex(decode(pushed[0].bytes, 'partial').payload), hex(pattern(56000)));
      t.equal(difference(cut(pushed).map(timeless), segments.map(timeless)), '');
      t.match(rig.changes(), {
        'inbound.merged': 39,
        'inbound.super_packets': 1,
        'inbound.device_pushed': 1,
        'inbound.socket_received': 40,
      });
    }
    rig.audit();
  }
});

t.test('merged: UDP, no more datagrams than the kernel takes as one', async (t) => {
  for (const maxSegments of [1, 64, 128]) {
    const rig = await makeRig({ settings: { maxSegments } });
    const datagrams = Array.from({ length: 500 }, (_, i) => packet(v4({ id: i }), udp({ payload: pattern(64, i) })));
    const pushed = rig.in([message(rig.name(0), datagrams)]);
    t.equal(difference(cut(pushed).map(timeless), datagrams.map(timeless)), '');
    const most = Math.max(...pushed.map((one) => onTheWire(one).length));
    t.equal(most, Math.max(64, maxSegments), `${most} datagrams in one`);
    rig.audit();
  }
});

t.test('not merged without the offloads that it needs', async (t) => {
  const makes = {
    tso4: (i: number) => packet(v4({ id: i }), tcp({ seq: i * 100, payload: pattern(100, i) })),
    tso6: (i: number) => packet(v6(), tcp({ seq: i * 100, payload: pattern(100, i) })),
    uso: (i: number) => packet(v4({ id: i }), udp({ payload: pattern(100, i) })),
    merge: (i: number) => packet(v4({ id: i }), tcp({ seq: i * 100, payload: pattern(100, i) })),
    csum: (i: number) => packet(v6(), tcp({ seq: i * 100, payload: pattern(100, i) })),
  } as const;
  for (const [name, make] of Object.entries(makes)) {
    const run = Array.from({ length: 10 }, (_, i) => make(i));
    const on = await makeRig();
    t.equal(on.in([message(on.name(0), run)]).length, 1, `${name} on`);
    const off = await makeRig({ settings: { offloads: ALL_OFFLOADS & ~OFFLOADS[name as keyof typeof makes] } });
    const pushed = off.in([message(off.name(0), run)]);
    t.equal(
      difference(
        pushed.map(({ bytes }) => hex(bytes)),
        run.map(hex),
      ),
      '',
      `${name} off`,
    );
    t.ok(pushed.every(({ vnet }) => hex(vnet) === '00'.repeat(10)));
    off.audit();
  }
});

t.test('the device refuses a super-packet: its segments follow singly, that kind is off, others are not', async (t) => {
  const kinds = [
    [
      'tso4',
      (i: number, size: number) =>
        packet(v4({ id: i }), tcp({ seq: 1 + i * size, payload: pattern(size, i), flags: i === 29 ? ACK | PSH : ACK })),
      1,
    ],
    ['tso6', (i: number, size: number) => packet(v6(), tcp({ seq: 1 + i * size, payload: pattern(size, i) })), 4],
    ['uso', (i: number, size: number) => packet(v4({ id: i }), udp({ payload: pattern(size, i) })), 5],
    ['uso', (i: number, size: number) => packet(v6(), udp({ payload: pattern(size, i) })), 5],
  ] as const;
  for (const [name, make, type] of kinds) {
    const rig = await makeRig();
    const shared = new SharedWords(rig.memory);
    rig.device.refuseWith(({ vnet }) => (vnet[1] === type ? EINVAL : 0));
    const run = Array.from({ length: 30 }, (_, i) => make(i, 1000));
    const pushed = rig.in([message(rig.name(0), run)]);
    t.equal(
      difference(
        pushed.map(({ bytes }) => timeless(bytes)),
        run.map(timeless),
      ),
      '',
      `${name}: every segment, in order`,
    );
    t.ok(pushed.every(({ vnet }) => hex(vnet) === '00'.repeat(10)));
    for (const { bytes } of pushed) decode(bytes);
    t.equal(shared.refusedOffloads(), OFFLOADS[name]);
    t.match(rig.changes(), { 'inbound.merged': 29, 'inbound.unmerged': 29, 'inbound.device_pushed': 30 });
    rig.audit();
    rig.in([message(rig.name(0), run)]);
    t.equal(rig.changes()['inbound.merged'], undefined, `${name}: not merged again`);
    const other = kinds.find(([kind]) => kind !== name)![1];
    t.equal(
      rig.in([
        message(
          rig.name(0),
          Array.from({ length: 30 }, (_, i) => other(i, 1000)),
        ),
      ]).length,
      1,
      'other kinds still are',
    );
    rig.audit();
  }
});

t.test('the device refuses a super-packet of very many, very small segments: nothing is overwritten', async (t) => {
  for (const [what, make] of [
    ['TCP with 1 byte', (i: number) => packet(v4({ id: i }), tcp({ seq: i, payload: pattern(1, i) }))],
    [
      'TCP with 60 bytes of header over IPv6',
      (i: number) => packet(v6(), tcp({ seq: i * 4, options: new Uint8Array(40).fill(1), payload: pattern(4, i) })),
    ],
    [
      'TCP with 120 bytes',
      (i: number) => packet(v6(), tcp({ seq: i * 120, options: new Uint8Array(40).fill(1), payload: pattern(120, i) })),
    ],
    ['UDP with 1 byte', (i: number) => packet(v4({ id: i }), udp({ payload: pattern(1, i) }))],
    ['UDP over IPv6', (i: number) => packet(v6(), udp({ payload: pattern(7, i) }))],
  ] as const) {
    const rig = await makeRig();
    rig.device.refuseWith(({ vnet }) => (vnet[1] !== 0 ? EINVAL : 0));
    const each = Math.min(400, Math.floor(65000 / make(0).length));
    const packets = Array.from({ length: 16 * each }, (_, i) => make(i));
    const messages = Array.from({ length: 16 }, (_, m) =>
      message(rig.name(0), packets.slice(m * each, m * each + each)),
    );
    const pushed = rig.in(messages);
    t.ok(rig.memory.intactGuards(), what);
    t.equal(
      difference(
        pushed.map(({ bytes }) => timeless(bytes)),
        packets.map(timeless),
      ),
      '',
      what,
    );
    rig.audit();
  }
});

t.test('the device refuses otherwise: dropped and counted', async (t) => {
  const rig = await makeRig();
  rig.device.refuseWith(({ bytes }) => (bytes.length > 500 ? EIO : 0));
  const run = Array.from({ length: 5 }, (_, i) => packet(v4({ id: i }), tcp({ seq: i * 400, payload: pattern(400) })));
  t.equal(rig.in([message(rig.name(0), run), single(rig.name(0), packet(v4(), icmp(8)))]).length, 1);
  t.same(rig.changes(), {
    'inbound.socket_received': 6,
    'inbound.merged': 4,
    'inbound.device_refused': 1,
    'inbound.device_pushed': 1,
  });
  rig.device.refuseWith(() => EINVAL);
  t.equal(rig.in([single(rig.name(0), packet(v4(), icmp(8)))]).length, 0, 'EINVAL for a plain packet');
  t.match(rig.changes(), { 'inbound.device_refused': 1 });
  rig.audit();
});

t.test('packets above the MTU are carried, and counted one by one', async (t) => {
  for (const offloads of [ALL_OFFLOADS, 0]) {
    const rig = await makeRig({ settings: { mtu: 1000, offloads } });
    const run = Array.from({ length: 7 }, (_, i) =>
      packet(v4({ id: i }), tcp({ seq: i * 1200, payload: pattern(1200) })),
    );
    const last = packet(v4({ id: 7 }), tcp({ seq: 7 * 1200, payload: pattern(100) }));
    rig.in([
      message(rig.name(0), [...run, last]),
      single(rig.name(0), packet(v4(), icmp(8, pattern(972)))),
      single(rig.name(0), packet(v4(), icmp(8, pattern(973)))),
    ]);
    t.equal(rig.counter('inbound.above_mtu'), 8);
    // The MTU itself is not above it; nor is what just follows a longer one.
    const counted = (...lengths: readonly number[]): number => {
      const before = rig.counter('inbound.above_mtu');
      let seq = 1;
      const packets = lengths.map((length, i) => {
        const made = packet(v4({ id: i }), tcp({ seq, payload: pattern(length - 52) }));
        seq += length - 52;
        return made;
      });
      rig.in([message(rig.name(0), packets)]);
      return rig.counter('inbound.above_mtu') - before;
    };
    t.equal(counted(1001), 1);
    t.equal(counted(1000), 0);
    t.equal(counted(1001, 1001), 2);
    t.equal(counted(1001, 1000), 1);
    t.equal(counted(1200, 1200, 1001), 3);
    t.equal(counted(1000, 1000, 900), 0);
    rig.audit();
  }
});

t.test('control messages of other kinds are passed over, wherever they stand', async (t) => {
  const [SOL_SOCKET, SOL_IP, SOL_UDP, SOL_IPV6] = [1, 0, 17, 41];
  const strange: readonly (readonly [level: number, type: number, length: number])[] = [
    [SOL_SOCKET, 29, 16], // SO_TIMESTAMP
    [SOL_SOCKET, 35, 16],
    [SOL_IP, 8, 12], // IP_PKTINFO
    [SOL_IP, 2, 4], // IP_TTL
    [SOL_UDP, 103, 2],
    [SOL_IPV6, 52, 4],
    [SOL_IP, 67, 1],
    [SOL_SOCKET, 1, 0],
    [SOL_UDP, 1, 4],
    [SOL_SOCKET, 103, 4],
    [SOL_SOCKET, 104, 4],
    [SOL_IP, 40, 4],
    [SOL_SOCKET, 67, 4],
  ];
  for (const underlay of [0, 1]) {
    for (const [level, type, length] of strange) {
      for (const before of [true, false]) {
        const rig: Rig = await makeRig({
          peers: [underlay === 0 ? {} : { address: 'fd99::2' }],
          wrapSocket: (socket) => ({
            push: (first, count) => socket.push(first, count),
            pull() {
              const taken = socket.pull();
              if (taken > 0) insertControl(rig, level, type, length, before);
              return taken;
            },
          }),
        });
        const what = `level ${level}, type ${type}, ${before ? 'before' : 'behind'} the others`;
        const packets = Array.from({ length: 4 }, (_, i) => packet(v4({ id: i, tos: 2 }), icmp(8, pattern(100, i))));
        const [first] = rig.in([message(rig.name(0), packets, { tos: 3 })], underlay);
        t.equal(rig.counter('inbound.socket_received'), 4, what);
        t.equal(rig.counter('inbound.ecn_marked'), 4, what);
        t.equal(decode(first.bytes).ecn, 3, what);
        rig.audit();
      }
    }
  }
});

/** Adds a control message, its data all ones, to the first message received. */
function insertControl({ memory, layout }: Rig, level: number, type: number, length: number, before: boolean): void {
  const { u8 } = memory;
  const view = new DataView(memory.memory.buffer);
  const control = layout.receive.controls;
  const used = view.getUint32(layout.receive.messages + 40, true);
  const space = 16 + ((length + 7) & ~7);
  if (before) u8.copyWithin(control + space, control, control + used);
  const at = before ? control : control + used;
  u8.fill(0xff, at, at + space);
  view.setBigUint64(at, BigInt(16 + length), true);
  view.setInt32(at + 8, level, true);
  view.setInt32(at + 12, type, true);
  view.setUint32(layout.receive.messages + 40, used + space, true);
}

t.test('empty datagrams cannot keep the engine in one turn', async (t) => {
  const empty: IncomingMessage = { name: socketAddress(address('192.168.77.99'), 1), bytes: new Uint8Array(0) };
  const rig = await makeRig();
  rig.sockets[0].load([empty], 5_000_000);
  rig.engine.turn(0, 7);
  t.ok(rig.sockets[0].received < 200_000, `${rig.sockets[0].received} of them in one turn`);
  // And a run of them does not hide what comes behind.
  rig.sockets[0].load([...Array.from({ length: 40 }, () => empty), single(rig.name(0), packet(v4(), icmp(8)))]);
  for (let i = 0; i < 10; i++) rig.engine.turn(0, 7);
  t.equal(rig.take().pushed.length, 1);
  rig.audit();
});

t.test('one direction cannot starve the other', async (t) => {
  const rig = await makeRig({ keep: false });
  const run = message(
    rig.name(0),
    Array.from({ length: 40 }, (_, i) => packet(v4({ id: i }), tcp({ seq: i * 1400, payload: pattern(1400) }))),
  );
  rig.sockets[0].load([run], 1_000_000);
  rig.device.load(
    [{ vnet: new Uint8Array(10), bytes: packet({ source: HOST_4, destination: remote4() }, icmp(8)) }],
    1000,
  );
  for (let i = 0; i < 10; i++) rig.engine.turn(0, 7);
  t.ok(rig.device.pulled >= 10, `${rig.device.pulled} packets out in ten turns`);
  t.ok(rig.sockets[0].received / 10 < 10_000, `${rig.sockets[0].received} datagrams in`);
  rig.audit();
});

t.test('order within every flow is kept and nothing is lost, whatever arrives how', async () => {
  interface Step {
    readonly peer: number;
    readonly flow: number;
    readonly kind: 'tcp' | 'udp' | 'ack' | 'options' | 'fragment' | 'extension';
    readonly length: number;
    readonly flags: number;
    readonly tos: number;
    readonly count: number;
  }
  const steps = fc.array(
    fc.record({
      peer: fc.nat(2),
      flow: fc.nat(7),
      kind: fc.constantFrom(
        'tcp',
        'tcp',
        'tcp',
        'udp',
        'udp',
        'ack',
        'options',
        'fragment',
        'extension',
      ) as fc.Arbitrary<Step['kind']>,
      length: fc.constantFrom(12, 100, 100, 100, 1400),
      flags: fc.constantFrom(ACK, ACK, ACK, ACK | PSH, ACK | FIN),
      tos: fc.constantFrom(0, 0, 0, 1, 2),
      count: fc.constantFrom(1, 1, 2, 5, 30),
    }),
    { minLength: 1, maxLength: 60 },
  );
  const number = (n: number, length: number): Uint8Array => {
    const bytes = pattern(length, n);
    new DataView(bytes.buffer).setUint32(0, n);
    return bytes;
  };
  const flowOf = (bytes: Uint8Array): string => {
    const ip = decode(bytes);
    return `${ip.source} ${ip.destination} ${ip.protocol}`;
  };
  await fc.assert(
    fc.asyncProperty(
      steps,
      fc.nat(127),
      fc.constantFrom(0, EINVAL),
      fc.boolean(),
      async (list, offloads, refuse, grouped) => {
        const rig = await makeRig({ peers: [{}, {}, {}], settings: { offloads } });
        if (refuse) rig.device.refuseWith(({ vnet }) => (vnet[1] !== 0 ? refuse : 0));
        const sequence = new Map<number, number>();
        let next = 0;
        const all: Uint8Array[] = [];
        const messages: IncomingMessage[] = [];
        for (const step of list as readonly Step[]) {
          // Each flow has a destination of its own, so that fragments belong to one too.
          const six = step.flow & 1;
          const ip = {
            source: six ? remote6(step.peer) : remote4(step.peer),
            destination: six ? `fd00:5:0:1::1${step.flow}` : `10.5.1.1${step.flow}`,
            tos: 2,
          };
          const key = step.peer * 8 + step.flow;
          const packets = Array.from({ length: step.count }, () => {
            const seq = sequence.get(key) ?? 1;
            const payload = number(next, step.length);
            const id = next++ & 0xffff;
            if (step.kind === 'udp') return packet({ ...ip, id }, udp({ payload }));
            if (step.kind === 'fragment' && !six) return packet({ ...ip, id, df: false, offset: 4 }, raw(6, payload));
            if (step.kind === 'ack')
              return packet(
                { ...ip, id },
                tcp({ seq, flags: ACK, payload: new Uint8Array(0), options: number(id, 12) }),
              );
            sequence.set(key, seq + payload.length);
            if (step.kind === 'options' && !six)
              return packet({ ...ip, id, options: new Uint8Array(4).fill(1) }, tcp({ seq, payload }));
            if (step.kind === 'extension' && six)
              return packet({ ...ip, extensions: [[60, extension(1)]] }, tcp({ seq, payload }));
            return packet({ ...ip, id }, tcp({ seq, flags: step.flags, payload }));
          });
          all.push(...packets);
          if (grouped) messages.push({ ...message(rig.name(step.peer), packets), tos: step.tos });
          else messages.push(...packets.map((bytes) => single(rig.name(step.peer), bytes, step.tos)));
        }
        const pushed = cut(rig.in(messages));
        rig.audit();
        // Outer ECT(1) turns an inner ECT(0) into ECT(1): look past it.
        const plainEcn = (bytes: Uint8Array): string => {
          const copy = Uint8Array.from(bytes);
          if (copy[0] >> 4 === 6) copy[1] &= 0xcf;
          else copy[1] &= 0xfc;
          return timeless(copy[0] >> 4 === 4 ? rechecksum(copy) : copy);
        };
        if (pushed.length !== all.length) return false;
        return [...new Set(all.map(flowOf))].every((flow) => {
          const want = all.filter((bytes) => flowOf(bytes) === flow).map(plainEcn);
          const got = pushed.filter((bytes) => flowOf(bytes) === flow).map(plainEcn);
          return want.join() === got.join();
        });
      },
    ),
    { numRuns: 250 },
  );
});

t.test('every set of offloads delivers the same bytes', async (t) => {
  const rng = random(3);
  const sequence = Array.from({ length: 6 }, () => 1);
  const runs = Array.from({ length: 80 }, (_, r) => {
    const flow = Math.floor(rng() * 6);
    const ip = flow & 1 ? v6({ source: remote6(flow % 3) }) : v4({ source: remote4(flow % 3), id: r });
    const count = 1 + Math.floor(rng() * 30);
    const size = [64, 700, 1400][Math.floor(rng() * 3)];
    const packets = Array.from({ length: count }, (_, i) => {
      const length = i === count - 1 ? 1 + Math.floor(rng() * size) : size;
      const seq = sequence[flow];
      sequence[flow] += length;
      return packet(ip, tcp({ from: 1000 + flow, seq, payload: pattern(length, seq) }));
    });
    return { peer: flow % 3, packets };
  });
  const deliver = (rig: Rig, gro: boolean): string[] => {
    const parts: Uint8Array[][] = sequence.map(() => []);
    const messages = runs.flatMap(({ peer, packets }) =>
      gro ? [message(rig.name(peer), packets)] : packets.map((bytes) => single(rig.name(peer), bytes)),
    );
    for (const bytes of cut(rig.in(messages))) {
      const ip = decode(bytes);
      parts[(ip.tcp?.from ?? 0) - 1000].push(ip.payload);
    }
    rig.audit();
    return parts.map((list) => hex(concat(...list)));
  };
  let want: string[] | undefined;
  for (let offloads = 0; offloads <= ALL_OFFLOADS; offloads++) {
    if (offloads & OFFLOADS.segment) continue; // of no account on the way in
    const rig = await makeRig({ peers: [{}, {}, {}], settings: { offloads } });
    const got = deliver(rig, (offloads & OFFLOADS.gro) !== 0);
    want ??= got;
    if (got.join() !== want.join()) t.fail(`offloads ${offloads}`);
  }
  t.equal(want?.length, 6);
});

t.test('per peer: packets and bytes in, counted for who sent them', async (t) => {
  const rig = await makeRig({ peers: [{}, { address: 'fd99::2' }], settings: { sourceCheck: 'off' } });
  const totals = (peer: number): number[] => {
    const at = (rig.layout.peerCounters >> 3) + (rig.refs[peer] & 0xffff) * 4;
    return [...rig.memory.f64.subarray(at, at + 4)];
  };
  const run = Array.from({ length: 5 }, (_, i) => packet(v4({ id: i }), tcp({ seq: i * 100, payload: pattern(100) })));
  rig.in([message(rig.name(0), run), single(rig.name(0), new Uint8Array(3))]);
  t.same(totals(0), [0, 0, 6, 5 * 152 + 3]);
  rig.in([message(rig.name(1), run)], 1);
  t.same(totals(1), [0, 0, 5, 5 * 152]);
  rig.in([single(socketAddress(address('192.0.2.9'), 1), run[0])]);
  t.same(totals(0), [0, 0, 6, 5 * 152 + 3], "a stranger's are nobody's");
  rig.audit();
});

t.test('both underlays at once', async (t) => {
  const rig = await makeRig({ peers: [{}, { address: 'fd99::2' }], settings: { sourceCheck: 'strict' } });
  const of = (peer: number): IncomingMessage =>
    message(
      rig.name(peer),
      Array.from({ length: 10 }, (_, i) =>
        packet(v4({ source: remote4(peer), id: i }), tcp({ seq: i * 99, payload: pattern(99) })),
      ),
    );
  rig.sockets[0].load([of(0)], 50);
  rig.sockets[1].load([of(1)], 50);
  rig.drain();
  const delivered = cut(rig.take().pushed).map((bytes) => decode(bytes).source);
  t.equal(delivered.filter((source) => source === remote4(0)).length, 500);
  t.equal(delivered.filter((source) => source === remote4(1)).length, 500);
  rig.audit();
});
