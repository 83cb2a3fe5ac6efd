/** Host → network: every way a packet can go, checked by an independent decoder and by the second set of books. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { READY_DEVICE, READY_SOCKETS } from '../../src/dataplane/engine.js';
import { ICMP_BURST, ICMP_RATE } from '../../src/dataplane/icmp-errors.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { EAGAIN, EBADFD, EINTR, EINVAL, EIO, EPERM } from '../../src/io/device.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import type { OutgoingDatagram } from '../../src/io/memory-socket.js';
import { OFFLOADS } from '../../src/io/offloads.js';
import { type Decoded, decode, reassemble } from '../lib/decode.js';
import {
  ACK,
  add,
  address,
  changed,
  concat,
  difference,
  extension,
  flip,
  GSO,
  hex,
  type IpSpec,
  icmp,
  PSH,
  packet,
  pattern,
  plain,
  prefix,
  put,
  random,
  raw,
  rechecksum,
  superPacket,
  tcp,
  udp,
  unfinished,
  type Vnet,
  vnet,
} from '../lib/packets.js';
import { DEVICE_4, HOST_4, HOST_6, makeRig, type Rig, remote4, remote6 } from '../lib/rig.js';
import { hop, onTheWire } from '../lib/segment.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const v4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: HOST_4, destination: remote4(), ...change });
const v6 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: HOST_6, destination: remote6(), ...change });
const both = [v4, v6] as const;
const DEVICE_6_TEXT = 'fd00:5:0:1:0:0:0:0';

/** What has to arrive for packets that the device gave: one hop on, super-packets cut. */
const expected = (packets: readonly DevicePacket[]): string[] => packets.flatMap(onTheWire).map(hop).map(hex);
const bytesOf = (datagrams: readonly OutgoingDatagram[]): string[] => datagrams.map(({ bytes }) => hex(bytes));

t.test('what is well-formed goes out one hop on, to its peer, with right checksums', async (t) => {
  const rig = await makeRig();
  const payload = pattern(1000);
  const packets: DevicePacket[] = both.flatMap((ip) => [
    plain(packet(ip(), udp({ payload }))),
    plain(packet(ip(), tcp({ payload }))),
    plain(packet(ip(), icmp(ip === v4 ? 8 : 128, payload, ip === v6))),
    plain(packet(ip({ ttl: 2 }), raw(132, payload))),
    plain(packet(ip({ ttl: 255 }), raw(50, new Uint8Array(0)))),
    unfinished(ip(), udp({ payload })),
    unfinished(ip(), tcp({ payload })),
    unfinished(ip(), udp()), // the checksum is the last two bytes
    unfinished(ip(), tcp({ options: new Uint8Array(0) })),
    superPacket(ip(), tcp({ payload: pattern(40000), flags: ACK | PSH }), 1400),
    superPacket(ip({ id: 65530 }), udp({ payload: pattern(9001) }), 500),
    superPacket(ip(), tcp({ payload: pattern(100) }), 1400), // one segment only
    superPacket(ip(), tcp({ payload: pattern(4000), options: new Uint8Array(0) }), 1400),
    superPacket(ip(), tcp({ payload: pattern(4000), options: new Uint8Array(40).fill(1) }), 1300),
  ]);
  packets.push(superPacket(v4({ options: new Uint8Array(8).fill(1) }), tcp({ payload: pattern(5000) }), 1000));
  packets.push(
    superPacket(
      v6({
        extensions: [
          [0, extension(2)],
          [60, extension(1)],
        ],
      }),
      tcp({ payload: pattern(5000) }),
      1000,
    ),
  );
  const sent = rig.out(...packets);
  t.equal(difference(bytesOf(sent), expected(packets)), '');
  for (const { bytes, name, tos } of sent) {
    decode(bytes);
    t.same([...name], [2, 0, 8285 >> 8, 8285 & 255, 192, 168, 77, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    t.equal(tos, 0);
  }
  const changes = rig.changes();
  t.equal(changes['outbound.super_packets'], 12);
  t.equal(changes['outbound.ip_options'], 1);
  t.equal(changes['outbound.segments_made'], sent.length - packets.length);
  rig.audit();
});

t.test('bad packets: each its own counter, nothing sent, nothing answered', async (t) => {
  const rig = await makeRig();
  const good = packet(v4(), tcp({ payload: pattern(100) }));
  const six = packet(v6(), tcp({ payload: pattern(100) }));
  const gso = (lie: Vnet, ip: IpSpec = v4()): DevicePacket =>
    superPacket(ip, tcp({ payload: pattern(5000) }), 1000, lie);
  const uso = (lie: Vnet, ip: IpSpec = v4()): DevicePacket =>
    superPacket(ip, udp({ payload: pattern(5000) }), 1000, lie);
  const unfinishedAt = (start: number, offset: number, bytes = good): DevicePacket => ({
    vnet: vnet({ flags: 1, start, offset }),
    bytes,
  });
  const cases: readonly (readonly [string, string, DevicePacket])[] = [
    ['one byte', 'short', plain(good.subarray(0, 1))],
    ['19 bytes of IPv4', 'short', plain(good.subarray(0, 19))],
    ['39 bytes of IPv6', 'short', plain(six.subarray(0, 39))],
    ['version 0', 'bad_version', plain(changed(good, put(0, 0x05)))],
    ['version 5', 'bad_version', plain(changed(good, put(0, 0x55)))],
    ['header of 16', 'bad_header_length', plain(changed(good, put(0, 0x44)))],
    ['header beyond the packet', 'bad_header_length', plain(changed(good.slice(0, 40), put(0, 0x4f)))],
    ['total length + 1', 'bad_total_length', plain(changed(good, add(3, 1)))],
    ['total length - 1', 'bad_total_length', plain(changed(good, add(3, -1)))],
    ['payload length + 1', 'bad_total_length', plain(changed(six, add(5, 1)))],
    ['a trailing byte', 'bad_total_length', plain(concat(good, [0]))],
    ['header checksum', 'bad_header_checksum', plain(changed(good, flip(10, 1)))],
    ['gso_size 0', 'bad_offload', gso({ size: 0 })],
    ['UDP gso_size 0', 'bad_offload', uso({ size: 0 })],
    ['more segments than can be', 'bad_offload', gso({ size: 1 })],
    ['csum_start in the IP header', 'bad_offload', gso({ start: 10 })],
    ['csum_start 0', 'bad_offload', gso({ start: 0 })],
    ['csum_start beyond TCP', 'bad_offload', gso({ start: 40 })],
    ['csum_start beyond the packet', 'bad_offload', gso({ start: 65535 })],
    ['csum_offset of UDP', 'bad_offload', gso({ offset: 6 })],
    ['csum_offset of TCP', 'bad_offload', uso({ offset: 16 })],
    ['no NEEDS_CSUM', 'bad_offload', gso({ flags: 0 })],
    ['gso_type 2', 'bad_offload', gso({ type: 2 })],
    ['gso_type UDP fragments (3)', 'bad_offload', uso({ type: 3 })],
    ['gso_type ECN alone', 'bad_offload', gso({ type: GSO.ecn })],
    ['TCPv6 on IPv4', 'bad_offload', gso({ type: GSO.tcp6 })],
    ['TCPv4 on IPv6', 'bad_offload', gso({ type: GSO.tcp4 }, v6())],
    ['UDP on TCP', 'bad_offload', gso({ type: GSO.udp, offset: 6 })],
    ['TCP on UDP', 'bad_offload', uso({ type: GSO.tcp4, offset: 16 })],
    ['UDP on TCP over IPv6', 'bad_offload', gso({ type: GSO.udp, offset: 6 }, v6())],
    ['TCP on UDP over IPv6', 'bad_offload', uso({ type: GSO.tcp6, offset: 16 }, v6())],
    ['TCP header beyond the packet', 'bad_offload', cut(gso({}), 50)],
    ['TCP header that is all there is', 'bad_offload', cut(gso({}), 52)],
    ['not even 20 bytes of TCP', 'bad_offload', cut(gso({}), 39)],
    ['not even 8 bytes of UDP', 'bad_offload', cut(uso({}), 27)],
    ['TCP data offset 4', 'bad_offload', { ...gso({}), bytes: changed(gso({}).bytes, put(32, 0x40)) }],
    ['no payload', 'bad_offload', superPacket(v4(), tcp(), 1000)],
    ['no payload, UDP', 'bad_offload', superPacket(v4(), udp(), 1000)],
    [
      'fragment as super-packet',
      'bad_offload',
      superPacket(v4({ mf: true, df: false }), tcp({ payload: pattern(5000) }), 1000),
    ],
    [
      'extension header beyond the packet',
      'bad_offload',
      cut(gso({ start: 40 + 2048 }, v6({ extensions: [[60, extension(256)]] })), 2000),
    ],
    ['extension header cut in two', 'bad_offload', cut(gso({}, v6({ extensions: [[0, extension(1)]] })), 46)],
    ['unfinished, csum_start in the header', 'bad_offload', unfinishedAt(19, 16)],
    ['unfinished, field beyond the packet', 'bad_offload', unfinishedAt(20, good.length - 21)],
    ['unfinished, start beyond the packet', 'bad_offload', unfinishedAt(good.length, 0)],
    ['unfinished, both at the limit', 'bad_offload', unfinishedAt(65535, 65535)],
    ['unfinished IPv6, csum_start in the header', 'bad_offload', unfinishedAt(39, 16, six)],
  ];
  for (const [what, counter, given] of cases) {
    const sent = rig.out(given);
    t.equal(sent.length, 0, `${what}: nothing sent`);
    const changes = rig.changes();
    t.same(
      changes,
      {
        'outbound.device_pulled': 1,
        [`outbound.${counter}`]: 1,
        ...(what.startsWith('fragment') ? { 'outbound.ip_fragments': 1 } : {}),
      },
      what,
    );
    t.equal(rig.take().pushed.length, 0, `${what}: nothing answered`);
    rig.audit();
  }
});

t.test('super-packets whose headers would not fit the arena many times over', async (t) => {
  const rig = await makeRig({ peers: [{ mtu: 65535 }] });
  // Destination options of 2,048 bytes each: headers of kilobytes, payload of a byte or ten a segment.
  const shapes = [
    [1, 170, 10, 5000],
    [4, 255, 10, 5000],
    [20, 256, 16, 8000],
    [3, 256, 200, 50000],
    [1, 1, 100, 50000],
  ] as const;
  for (const [count, units, size, payload] of shapes) {
    const ip = v6({ extensions: Array.from({ length: count }, () => [60, extension(units)] as const) });
    const given = superPacket(ip, udp({ payload: pattern(payload) }), size);
    const packets = Array.from({ length: 64 }, () => given);
    const sent = rig.out(...packets);
    t.ok(rig.memory.intactGuards(), `${count} x ${units * 8} bytes of options, gso_size ${size}`);
    const changes = rig.changes();
    t.equal((changes['outbound.bad_offload'] ?? 0) + (changes['outbound.super_packets'] ?? 0), 64);
    if (sent.length > 0)
      t.equal(difference(bytesOf(sent), Array.from({ length: 64 }, () => expected([given])).flat()), '');
    rig.audit();
  }
});

/** The first `length` bytes of a packet, with lengths and header checksum made right again. */
function cut({ vnet: header, bytes }: DevicePacket, length: number): DevicePacket {
  const shorter = changed(bytes.subarray(0, length), (copy, view) => {
    if (copy[0] >> 4 === 6) return view.setUint16(4, length - 40);
    view.setUint16(2, length);
    rechecksum(copy);
  });
  return { vnet: header, bytes: shorter };
}

interface Error4 {
  readonly type: number;
  readonly code: number;
  readonly mtu: number;
}

/** The one ICMP error that was pushed, checked from end to end: `about` is the packet as the host sent it. */
function checkError(
  t: Pick<Test, 'equal' | 'same' | 'ok'> & { match(a: unknown, b: unknown): boolean },
  pushed: readonly DevicePacket[],
  about: Uint8Array,
  want: Error4,
): void {
  t.equal(pushed.length, 1, 'one answer');
  if (pushed.length !== 1) return;
  const { bytes, vnet: header } = pushed[0];
  t.same(header, new Uint8Array(10), 'an empty virtio header: checksums are complete');
  const error = decode(bytes);
  const offending = about[0] >> 4 === 4;
  t.equal(error.family, offending ? 4 : 6);
  t.equal(error.protocol, offending ? 1 : 58);
  t.match(error.icmp, { type: want.type, code: want.code, word: want.mtu });
  t.equal(error.source, offending ? DEVICE_4 : DEVICE_6_TEXT, "the device's own address");
  t.equal(error.destination, decode(about.length > 0 ? about : bytes, 'quoted').source, 'to who sent it');
  t.equal(error.ttl, 64);
  const most = offending ? 576 : 1280;
  t.equal(hex(error.payload), hex(about.subarray(0, most - (offending ? 28 : 48))), 'quotes as much as fits');
  t.ok(bytes.length <= most, `${bytes.length} bytes in all`);
}

t.test('no route: net unreachable, or no route to destination', async (t) => {
  const rig = await makeRig();
  for (const length of [0, 8, 500, 1200, 1400]) {
    for (const [ip, want] of [
      [v4({ destination: '10.77.0.1' }), { type: 3, code: 0, mtu: 0 }],
      [v6({ destination: 'fd00:77::1' }), { type: 1, code: 0, mtu: 0 }],
    ] as const) {
      const about = packet(ip, udp({ payload: pattern(length) }));
      t.equal(rig.out(plain(about)).length, 0);
      checkError(t, rig.take().pushed, about, want);
      t.same(rig.changes(), {
        'outbound.device_pulled': 1,
        'outbound.no_route': 1,
        'outbound.icmp_made': 1,
        'outbound.icmp_sent': 1,
      });
    }
  }
  rig.audit();
});

t.test('TTL 0 and 1: time exceeded; 2 goes out as 1', async (t) => {
  const rig = await makeRig();
  for (const ip of both) {
    for (const ttl of [0, 1]) {
      const about = packet(ip({ ttl }), udp({ payload: pattern(60) }));
      t.equal(rig.out(plain(about)).length, 0);
      checkError(t, rig.take().pushed, about, { type: ip === v4 ? 11 : 3, code: 0, mtu: 0 });
      t.same(rig.changes(), {
        'outbound.device_pulled': 1,
        'outbound.ttl_exceeded': 1,
        'outbound.icmp_made': 1,
        'outbound.icmp_sent': 1,
      });
    }
    const [sent] = rig.out(plain(packet(ip({ ttl: 2 }), udp())));
    t.equal(decode(sent.bytes).ttl, 1);
    rig.changes();
  }
  rig.audit();
});

t.test('path MTU: DF and IPv6 are answered, with the mtu that fits', async (t) => {
  const rig = await makeRig({ peers: [{ mtu: 1300 }] });
  const big = pattern(1350);
  const cases: readonly (readonly [string, DevicePacket, Error4])[] = [
    ['IPv4 with DF', plain(packet(v4(), udp({ payload: big }))), { type: 3, code: 4, mtu: 1300 }],
    ['IPv6', plain(packet(v6(), udp({ payload: big }))), { type: 2, code: 0, mtu: 1300 }],
    [
      'TCP super-packet with DF',
      superPacket(v4(), tcp({ payload: pattern(9000) }), 1400),
      { type: 3, code: 4, mtu: 1300 },
    ],
    [
      'TCP super-packet over IPv6',
      superPacket(v6(), tcp({ payload: pattern(9000) }), 1400),
      { type: 2, code: 0, mtu: 1300 },
    ],
    [
      'UDP super-packet with DF',
      superPacket(v4(), udp({ payload: pattern(9000) }), 1400),
      { type: 3, code: 4, mtu: 1300 },
    ],
    [
      'UDP super-packet over IPv6',
      superPacket(v6(), udp({ payload: pattern(9000) }), 1300),
      { type: 2, code: 0, mtu: 1300 },
    ],
  ];
  for (const [what, given, want] of cases) {
    await t.test(what, async (t) => {
      t.equal(rig.out(given).length, 0);
      checkError(t, rig.take().pushed, given.bytes, want);
      t.match(rig.changes(), { 'outbound.too_big': 1, 'outbound.icmp_made': 1, 'outbound.icmp_sent': 1 });
    });
  }
  // The limit itself passes: a packet of 1,300 bytes; segments of 1,300 bytes.
  const fits = [
    plain(packet(v4(), udp({ payload: pattern(1272) }))),
    plain(packet(v6(), udp({ payload: pattern(1252) }))),
    superPacket(v4(), tcp({ payload: pattern(9000) }), 1248),
    superPacket(v6(), tcp({ payload: pattern(9000) }), 1228),
    superPacket(v6(), udp({ payload: pattern(9000) }), 1252),
  ];
  t.equal(difference(bytesOf(rig.out(...fits)), expected(fits)), '');
  t.equal(rig.counter('outbound.too_big'), cases.length);
  rig.audit();
});

t.test('path MTU without DF: fragments that make the packet again', async (t) => {
  for (const mtu of [1300, 576, 100, 68]) {
    const rig = await makeRig({ peers: [{ mtu }] });
    const packets = [
      packet(v4({ df: false, id: 7 }), udp({ payload: pattern(1350) })),
      packet(v4({ df: false, id: 8, tos: 0xb8 }), tcp({ payload: pattern(1400) })),
      packet(v4({ df: false, id: 9, options: new Uint8Array(12).fill(1) }), udp({ payload: pattern(1370) })),
      packet(v4({ df: false, id: 10 }), icmp(8, pattern(3001))),
      // Fragments that are all full: their payload is a multiple of what fits.
      packet(v4({ df: false, id: 12 }), udp({ payload: pattern(3 * ((mtu - 20) & ~7) - 8) })),
      packet(v4({ df: false, id: 13 }), udp({ payload: pattern(3 * ((mtu - 20) & ~7) - 7) })),
      packet(v4({ df: false, id: 14 }), udp({ payload: pattern(Math.max(3 * ((mtu - 20) & ~7) - 9, mtu)) })),
    ];
    for (const [i, bytes] of packets.entries()) {
      const given = i === 0 ? unfinished(v4({ df: false, id: 7 }), udp({ payload: pattern(1350) })) : plain(bytes);
      const sent = rig.out(given);
      t.ok(
        sent.length > 1 && sent.every((one) => one.bytes.length <= mtu),
        `${sent.length} fragments of at most ${mtu}`,
      );
      const offsets = sent.map((one) => decode(one.bytes).offset);
      t.same(
        offsets,
        offsets.toSorted((a, b) => a - b),
        'in order',
      );
      t.equal(hex(reassemble(sent.map((one) => one.bytes))), hex(hop(bytes)));
      const changes = rig.changes();
      t.equal(changes['outbound.fragments_made'], sent.length - 1);
      rig.audit();
    }
    // What would reach beyond the longest packet there can be is no fragment.
    const beyond = packet(v4({ df: false, id: 15, offset: 8100 }), raw(17, pattern(1400)));
    t.equal(rig.out(plain(beyond)).length, 0);
    t.match(rig.changes(), { 'outbound.bad_total_length': 1 });
    // A fragment is fragmented again, and stays where it was.
    const middle = packet(v4({ df: false, id: 11, mf: true, offset: 100 }), raw(17, pattern(1360)));
    const parts = rig.out(plain(middle)).map((one) => decode(one.bytes));
    t.ok(
      parts.every((part) => part.mf),
      'all of them have followers',
    );
    t.equal(parts[0].offset, 800);
    t.equal(hex(concat(...parts.map((part) => part.payload))), hex(pattern(1360)));
    const end = packet(v4({ df: false, id: 11, offset: 100 }), raw(17, pattern(1361)));
    const ends = rig.out(plain(end)).map((one) => decode(one.bytes));
    t.same(
      ends.map((part) => part.mf),
      ends.map((_, i) => i < ends.length - 1),
    );
    rig.audit();
  }
});

t.test('path MTU, super-packets without DF: TCP is cut smaller, UDP datagrams are fragmented', async (t) => {
  for (const mtu of [1300, 600]) {
    const rig = await makeRig({ peers: [{ mtu }] });
    const stream = pattern(20000);
    const given = superPacket(v4({ df: false }), tcp({ payload: stream, seq: 0xfffff000, flags: ACK | PSH }), 1400);
    const sent = rig.out(given);
    let sequence = 0xfffff000;
    for (const [i, { bytes }] of sent.entries()) {
      const { tcp: header, payload } = decode(bytes);
      t.ok(bytes.length <= mtu);
      t.equal(header?.seq, sequence);
      t.equal(header?.flags, i === sent.length - 1 ? ACK | PSH : ACK);
      sequence = (sequence + payload.length) >>> 0;
    }
    t.equal(hex(concat(...sent.map(({ bytes }) => decode(bytes).payload))), hex(stream));
    rig.audit();

    for (const [size, length] of [
      [1400, 20000],
      [1400, 2800],
      [1400, 1401],
      [1301, 60000],
      [1280, 1000],
    ] as const) {
      const datagrams = superPacket(v4({ df: false, id: 500 }), udp({ payload: pattern(length) }), size);
      const want = onTheWire(datagrams).map(hop);
      const fragments = new Map<number, Uint8Array[]>();
      for (const { bytes } of rig.out(datagrams)) {
        t.ok(bytes.length <= mtu, `${bytes.length} bytes`);
        const { id } = decode(bytes);
        fragments.set(id, [...(fragments.get(id) ?? []), bytes]);
      }
      const whole = [...fragments.values()].map((parts) => (parts.length === 1 ? parts[0] : reassemble(parts)));
      t.same(whole.map(hex), want.map(hex), `${length} bytes in datagrams of ${size}`);
      rig.audit();
    }
  }
});

t.test('path MTU so small that nothing can be done: dropped, counted, nothing overwritten', async (t) => {
  for (const mtu of [68, 40, 28, 27, 20, 1, 0]) {
    const rig = await makeRig({ peers: [{ mtu }] });
    const packets = [
      superPacket(v4({ df: false }), tcp({ payload: pattern(60000) }), 1400),
      superPacket(v4({ df: false }), udp({ payload: pattern(60000) }), 1400),
      superPacket(v4({ df: false }), udp({ payload: pattern(600) }), 100),
      superPacket(v4({ df: false, options: new Uint8Array(40).fill(1) }), udp({ payload: pattern(600) }), 100),
      plain(packet(v4({ df: false }), udp({ payload: pattern(60000) }))),
      plain(packet(v4({ df: false, options: new Uint8Array(40).fill(1) }), udp({ payload: pattern(1000) }))),
      plain(packet(v6(), udp({ payload: pattern(1000) }))),
    ];
    const sent = rig.out(...packets);
    t.ok(
      sent.every(({ bytes }) => bytes.length <= mtu),
      `mtu ${mtu}`,
    );
    rig.audit();
  }
});

t.test('errors are never sent about these', async (t) => {
  const rig = await makeRig({ peers: [{ mtu: 1300 }] });
  const nowhere4 = { destination: '10.77.0.1' };
  const nowhere6 = { destination: 'fd00:77::1' };
  const cases: [string, Uint8Array][] = [
    ...[3, 4, 5, 11, 12].map((type): [string, Uint8Array] => [`ICMP error ${type}`, packet(v4(nowhere4), icmp(type))]),
    ...[1, 2, 3, 4, 100, 127, 137].map((type): [string, Uint8Array] => [
      `ICMPv6 error ${type}`,
      packet(v6(nowhere6), icmp(type, undefined, true)),
    ]),
    [
      'ICMPv6 error behind extension headers',
      packet(
        v6({
          ...nowhere6,
          extensions: [
            [0, extension(1)],
            [60, extension(2)],
          ],
        }),
        icmp(1, undefined, true),
      ),
    ],
    [
      'ICMPv6 cut off before its type',
      packet(v6({ ...nowhere6, extensions: [[0, extension(1)]] }), raw(58, new Uint8Array(0))),
    ],
    ['ICMP without a type', packet(v4(nowhere4), raw(1, new Uint8Array(0)))],
    ['a later fragment', packet(v4({ ...nowhere4, offset: 10, df: false }), raw(17, pattern(100)))],
    ['the last fragment', packet(v4({ ...nowhere4, offset: 1, df: false }), raw(17, pattern(8)))],
    [
      'a later fragment over IPv6',
      packet(v6({ ...nowhere6, extensions: [[44, Uint8Array.of(0, 0, 0x10, 0, 0, 0, 1)]] }), raw(17, pattern(100))),
    ],
    ['multicast', packet(v4({ destination: '224.0.0.251' }), udp())],
    ['multicast, high', packet(v4({ destination: '239.1.2.3' }), udp())],
    ['broadcast', packet(v4({ destination: '255.255.255.255' }), udp())],
    ['reserved', packet(v4({ destination: '250.0.0.1' }), udp())],
    ['IPv6 multicast', packet(v6({ destination: 'ff02::fb' }), udp())],
    ['source 0.0.0.0', packet(v4({ ...nowhere4, source: '0.0.0.0' }), udp())],
    ['source 0.1.2.3', packet(v4({ ...nowhere4, source: '0.1.2.3' }), udp())],
    ['source 127.0.0.1', packet(v4({ ...nowhere4, source: '127.0.0.1' }), udp())],
    ['source multicast', packet(v4({ ...nowhere4, source: '224.0.0.1' }), udp())],
    ['source broadcast', packet(v4({ ...nowhere4, source: '255.255.255.255' }), udp())],
    ['source reserved', packet(v4({ ...nowhere4, source: '240.0.0.1' }), udp())],
    ['source ::', packet(v6({ ...nowhere6, source: '::' }), udp())],
    ['source ::1', packet(v6({ ...nowhere6, source: '::1' }), udp())],
    ['source multicast, IPv6', packet(v6({ ...nowhere6, source: 'ff02::1' }), udp())],
    ['TTL 1 of an error', packet(v4({ ttl: 1 }), icmp(11))],
    ['TTL 1 of a fragment', packet(v4({ ttl: 1, offset: 5, df: false }), raw(6, pattern(64)))],
    ['hop limit 1 of an error', packet(v6({ ttl: 1 }), icmp(1, undefined, true))],
    ['too big, an error', packet(v4(), icmp(3, pattern(1400)))],
    ['too big, an ICMPv6 error', packet(v6(), icmp(1, pattern(1400), true))],
  ];
  for (const [what, bytes] of cases) {
    t.equal(rig.out(plain(bytes)).length, 0, what);
    t.equal(rig.take().pushed.length, 0, `${what}: no answer`);
    t.match(rig.changes(), { 'outbound.icmp_forbidden': 1 }, what);
  }
  // And these, close to them, are answered.
  for (const [what, bytes] of [
    ['an echo request', packet(v4(nowhere4), icmp(8))],
    ['an echo reply', packet(v4(nowhere4), icmp(0))],
    ['a timestamp request', packet(v4(nowhere4), icmp(13))],
    ['an ICMPv6 echo request', packet(v6(nowhere6), icmp(128, undefined, true))],
    ['a first fragment', packet(v4({ ...nowhere4, mf: true, df: false }), raw(17, pattern(64)))],
    [
      'a first fragment over IPv6',
      packet(v6({ ...nowhere6, extensions: [[44, Uint8Array.of(0, 0, 1, 0, 0, 0, 1)]] }), raw(17, pattern(64))),
    ],
    ['an unknown protocol', packet(v4(nowhere4), raw(200, pattern(4)))],
    ['no next header', packet(v6(nowhere6), raw(59, pattern(4)))],
    ['source fd00:5:0:1::1', packet(v6({ ...nowhere6, source: 'fd00:5:0:1::1' }), udp())],
    ['source fd00:5:0:1::', packet(v6({ ...nowhere6, source: 'fd00:5:0:1::' }), udp())],
    ['source ::2', packet(v6({ ...nowhere6, source: '::2' }), udp())],
    ['source 223.255.255.254', packet(v4({ ...nowhere4, source: '223.255.255.254' }), udp())],
  ] as const) {
    rig.out(plain(bytes));
    t.equal(rig.take().pushed.length, 1, what);
  }
  rig.audit();
});

t.test('a device without an address of that family sends no errors', async (t) => {
  const rig = await makeRig({ settings: { address4: undefined, address6: undefined } });
  for (const bytes of [
    packet(v4({ destination: '10.77.0.1' }), udp()),
    packet(v6({ destination: 'fd00:77::1' }), udp()),
  ]) {
    rig.out(plain(bytes));
    t.equal(rig.take().pushed.length, 0);
    t.match(rig.changes(), { 'outbound.icmp_forbidden': 1, 'outbound.no_route': 1 });
  }
  rig.audit();
});

t.test('the token bucket: a burst, then a rate, whatever the clock says', async (t) => {
  for (const start of [0, 5000, 0x7fffff00, -0x80000000]) {
    const rig = await makeRig({ keep: false });
    const about = plain(packet(v4({ destination: '10.77.0.1' }), udp()));
    const answered = (now: number): number => {
      const before = rig.counter('outbound.icmp_sent');
      rig.device.load([about], 1000);
      rig.drain(now | 0);
      return rig.counter('outbound.icmp_sent') - before;
    };
    t.equal(answered(start), ICMP_BURST, `clock at ${start}`);
    t.equal(answered(start), 0);
    t.equal(answered(start + 100), ICMP_RATE / 10, '100 ms later');
    t.equal(answered(start + 105), ICMP_RATE / 200);
    t.equal(answered(start + 110), ICMP_RATE / 200);
    t.equal(answered(start + 60_000), ICMP_BURST, 'a minute later: the burst, no more');
    t.equal(answered(start + 50_000), 0, 'a clock that goes back gives nothing');
    t.equal(rig.counter('outbound.icmp_limited') + rig.counter('outbound.icmp_sent'), rig.counter('outbound.no_route'));
    rig.audit();
  }
});

t.test('"too big" has a bucket of its own, so that a scan cannot stall path MTU discovery', async (t) => {
  const rig = await makeRig({ keep: false });
  const scan = plain(packet(v4({ destination: '10.77.0.1' }), udp()));
  const big = [v4, v6].map((ip) => plain(packet(ip(), udp({ payload: pattern(1460) }))));
  const answered = (packets: readonly DevicePacket[], now: number): number => {
    const before = rig.counter('outbound.icmp_sent');
    rig.device.load(packets, 1000);
    rig.drain(now);
    return rig.counter('outbound.icmp_sent') - before;
  };
  t.equal(answered([scan], 0), ICMP_BURST);
  t.equal(answered(big, 0), ICMP_BURST);
  t.equal(answered(big, 0), 0, 'but it has an end too');
  t.equal(answered(big, 100), ICMP_RATE / 10);
  t.equal(answered([scan], 100), ICMP_RATE / 10);
  rig.audit();
});

t.test('a device that refuses the ICMP error', async (t) => {
  const rig = await makeRig();
  rig.device.refuseWith(() => EIO);
  rig.out(plain(packet(v4({ destination: '10.77.0.1' }), udp())));
  t.match(rig.changes(), { 'outbound.icmp_made': 1, 'outbound.icmp_refused': 1 });
  rig.audit();
});

t.test('outer ECN: 0, unless the peer is known to be Weft', async (t) => {
  const rig = await makeRig({ peers: [{ ecn: false }, { ecn: true }, { ecn: true, address: 'fd99::2' }] });
  for (const family of [4, 6] as const) {
    for (let tos = 0; tos < 256; tos += tos < 8 ? 1 : 31) {
      for (const peer of [0, 1, 2]) {
        const ip = family === 4 ? v4({ tos, destination: remote4(peer) }) : v6({ tos, destination: remote6(peer) });
        const [sent] = rig.out(plain(packet(ip, udp({ payload: pattern(20) }))));
        t.equal(sent.tos, peer === 0 ? 0 : tos & 3, `IPv${family}, TOS ${tos}, peer ${peer}`);
        t.equal(decode(sent.bytes).tos, tos, 'the inner one stays');
      }
    }
  }
  // Of one peer, marked and unmarked do not share a message, and keep their order.
  const mixed = Array.from({ length: 40 }, (_, i) =>
    plain(packet(v4({ tos: (i * 7) & 3, id: i, destination: remote4(1) }), udp({ payload: pattern(20) }))),
  );
  const sent = rig.out(...mixed);
  t.same(
    sent.map(({ bytes, tos }) => [decode(bytes).id, tos]),
    mixed.map((_, i) => [i, (i * 7) & 3]),
  );
  rig.audit();
});

t.test('IPv6 underlay, and both at once', async (t) => {
  const rig = await makeRig({ peers: [{}, { address: 'fd99::2' }, { address: 'fd99::3' }] });
  const packets = Array.from({ length: 30 }, (_, i) =>
    plain(packet(v4({ id: i, destination: remote4(i % 3) }), udp({ payload: pattern(i * 10) }))),
  );
  const sent = rig.out(...packets);
  t.equal(sent.length, 30);
  for (const { bytes, name } of sent) {
    const peer = decode(bytes).id % 3;
    if (peer === 0) t.same([...name.subarray(0, 8)], [2, 0, 32, 93, 192, 168, 77, 2]);
    else t.same([...name], [10, 0, 32, 93, 0, 0, 0, 0, ...address(`fd99::${peer + 1}`), 0, 0, 0, 0]);
  }
  t.equal(rig.sockets[0].sent, 10);
  t.equal(rig.sockets[1].sent, 20);
  rig.audit();
});

t.test('a peer of a family that this host has no socket for', async (t) => {
  for (const missing of [0, 1]) {
    const rig = await makeRig({
      peers: [{}, { address: 'fd99::2' }],
      underlays: missing === 0 ? [false, true] : [true, false],
    });
    for (const peer of [0, 1]) {
      const about = packet(v4({ destination: remote4(peer) }), udp());
      const sent = rig.out(plain(about));
      t.equal(sent.length, peer === missing ? 0 : 1);
      const answers = rig.take().pushed;
      if (peer === missing) checkError(t, answers, about, { type: 3, code: 0, mtu: 0 });
      t.equal(rig.changes()['outbound.no_route'], peer === missing ? 1 : undefined);
    }
    rig.audit();
  }
});

t.test('a turn looks only at what is ready; after packets in, it looks at the device too', async (t) => {
  const rig = await makeRig({ peers: [{}, { address: 'fd99::2' }] });
  const arrive = (underlay: number): void =>
    rig.sockets[underlay].load([
      { name: rig.name(underlay), bytes: packet({ source: remote4(underlay), destination: HOST_4 }, udp()) },
    ]);
  const leave = (): void => rig.device.load([plain(packet(v4(), udp()))]);
  const counts = (): number[] => [rig.device.pulled, rig.sockets[0].received, rig.sockets[1].received];
  leave();
  t.equal(rig.engine.turn(0, 0), 0);
  t.same(counts(), [0, 0, 0], 'nothing is ready');
  t.equal(rig.engine.turn(0, READY_SOCKETS[0] | READY_SOCKETS[1]), 0);
  t.same(counts(), [0, 0, 0], 'sockets are, but have nothing');
  arrive(0);
  arrive(1);
  t.equal(rig.engine.turn(0, READY_DEVICE), 28);
  t.same(counts(), [1, 0, 0], 'the device is');
  leave();
  t.equal(rig.engine.turn(0, READY_SOCKETS[1]), 56);
  t.same(counts(), [2, 0, 1], 'the IPv6 socket is, and the answer leaves in the same turn');
  t.equal(rig.engine.turn(0, READY_SOCKETS[0]), 28);
  t.same(counts(), [2, 1, 1], 'the IPv4 socket is');
  rig.audit();
});

t.test('as much as a batch can grow to: the arena and the message arrays end before they overflow', async (t) => {
  for (const maxSegments of [1, 128]) {
    const rig = await makeRig({ peers: [{}, { mtu: 68 }], settings: { maxSegments }, keep: false });
    const options = new Uint8Array(40).fill(1);
    const given = [
      superPacket(v4({ options }), tcp({ payload: pattern(65535 - 120), options }), 130),
      superPacket(v6(), tcp({ payload: pattern(65535 - 100), options }), 130),
      superPacket(v4(), udp({ payload: pattern(65535 - 28) }), 130),
      plain(packet(v4({ destination: remote4(1), df: false }), udp({ payload: pattern(20000) }))),
      superPacket(v4({ destination: remote4(1), df: false }), udp({ payload: pattern(9000) }), 200),
    ];
    for (const one of given) {
      rig.device.load([one], 100);
      const before = rig.device.pulled;
      rig.drain();
      t.equal(rig.device.pulled - before, 100);
      rig.audit();
    }
    t.equal(
      rig.counter('outbound.bad_offload') + rig.counter('outbound.too_big') + rig.counter('outbound.path_mtu'),
      0,
    );
  }
});

/** A message as sendmmsg would see it: its datagrams. */
async function messagesOf(rig: Rig, run: () => void): Promise<OutgoingDatagram[][]> {
  const messages: OutgoingDatagram[][] = [];
  let seen = 0;
  const previous = rig.sockets.map((socket) => socket.onSend);
  for (const socket of rig.sockets) {
    socket.onSend = (datagram) => {
      const total = rig.sockets[0].sentMessages + rig.sockets[1].sentMessages;
      if (total !== seen) messages.push([]);
      seen = total;
      messages[messages.length - 1].push(datagram);
    };
  }
  run();
  rig.sockets.forEach((socket, i) => {
    socket.onSend = previous[i];
  });
  return messages;
}

t.test('grouping: equal datagrams of one peer share a message; what limits it', async (t) => {
  const feed = async (rig: Rig, packets: readonly DevicePacket[]): Promise<number[][]> => {
    const messages = await messagesOf(rig, () => {
      rig.device.load(packets);
      rig.drain();
    });
    rig.audit();
    return messages.map((message) => message.map(({ bytes }) => bytes.length));
  };
  const of = (length: number, peer = 0): DevicePacket =>
    plain(packet(v4({ destination: remote4(peer) }), udp({ payload: pattern(length - 28) })));
  const rig = await makeRig({ peers: [{}, {}] });
  t.same(await feed(rig, [of(100), of(100), of(100)]), [[100, 100, 100]]);
  t.same(await feed(rig, [of(100), of(60), of(100)]), [[100, 60], [100]], 'a shorter one is the last');
  t.same(await feed(rig, [of(100), of(101)]), [[100], [101]], 'a longer one begins another');
  t.same(
    await feed(rig, [of(100), of(100, 1), of(100), of(100, 1)]),
    [
      [100, 100],
      [100, 100],
    ],
    'peers do not disturb each other',
  );
  t.same(await feed(rig, [of(100), superPacket(v4(), udp({ payload: pattern(250) }), 100)]), [[100], [128, 128, 78]]);
  t.same(
    await feed(rig, [of(128), superPacket(v4(), udp({ payload: pattern(250) }), 100)]),
    [[128, 128, 128, 78]],
    'a super-packet joins',
  );
  const bulk = await feed(rig, [superPacket(v4(), tcp({ payload: pattern(65000) }), 1420)]);
  t.same(
    bulk.map((message) => message.length),
    [44, 2],
    '65,507 bytes a message',
  );
  t.ok(bulk[0].reduce((sum, length) => sum + length, 0) <= 65507);
  const tiny = await feed(rig, [superPacket(v4(), udp({ payload: pattern(4000) }), 10)]);
  t.same(
    tiny.map((message) => message.length),
    [128, 128, 128, 16],
    '128 segments a message',
  );
  const half = await makeRig({ settings: { maxSegments: 64 } });
  t.same(
    (await feed(half, [superPacket(v4(), udp({ payload: pattern(1500) }), 10)])).map((message) => message.length),
    [64, 64, 22],
  );
  const none = await makeRig({ settings: { maxSegments: 1 } });
  t.same(
    await feed(none, [of(100), of(100), superPacket(v4(), udp({ payload: pattern(25) }), 10)]),
    [[100], [100], [38], [38], [33]],
    'one datagram a message without UDP_SEGMENT',
  );
  // Exactly as much as fits, and one more.
  const large = await makeRig({ peers: [{ mtu: 65535 }] });
  t.same(await feed(large, [of(32753), of(32753), of(32753)]), [[32753, 32753], [32753]]);
  t.same(await feed(large, [of(32754), of(32753), of(10000)]), [[32754, 32753], [10000]]);
  t.same(await feed(large, [of(65507), of(65507)]), [[65507], [65507]], 'the longest datagram');
});

t.test('grouping: a message gathers from at most 16 places', async (t) => {
  const rig = await makeRig({ peers: [{}, {}] });
  const packets = Array.from({ length: 64 }, (_, i) =>
    plain(packet(v4({ id: i, destination: remote4(i & 1) }), udp({ payload: pattern(72) }))),
  );
  const sent = rig.out(...packets);
  for (const peer of [0, 1]) {
    const ids = sent
      .map(({ bytes }) => decode(bytes))
      .filter((ip) => ip.destination === remote4(peer))
      .map((ip) => ip.id);
    t.same(
      ids,
      Array.from({ length: 32 }, (_, i) => i * 2 + peer),
    );
  }
  rig.audit();
});

t.test('order to a peer and within a flow never changes, whatever is mixed', async () => {
  interface Step {
    readonly peer: number;
    readonly flow: number;
    readonly kind: 'udp' | 'tcp' | 'super' | 'uso' | 'fragment';
    readonly length: number;
    readonly size: number;
    readonly tos: number;
    readonly six: boolean;
  }
  const steps = fc.array(
    fc.record({
      peer: fc.nat(3),
      flow: fc.nat(5),
      kind: fc.constantFrom('udp', 'udp', 'tcp', 'super', 'uso', 'fragment') as fc.Arbitrary<Step['kind']>,
      length: fc.oneof(fc.constantFrom(64, 64, 64, 576, 1400), fc.integer({ min: 8, max: 1400 })),
      size: fc.integer({ min: 20, max: 1300 }),
      tos: fc.constantFrom(0, 0, 0, 1, 2, 3),
      six: fc.boolean(),
    }),
    { minLength: 1, maxLength: 150 },
  );
  /** Every packet carries its number, so that order can be read off at the other end. */
  const mark = (number: number, length: number): Uint8Array => {
    const bytes = new Uint8Array(Math.max(8, length));
    for (let at = 0; at + 4 <= bytes.length; at += 4) new DataView(bytes.buffer).setUint32(at, number);
    return bytes;
  };
  await fc.assert(
    fc.asyncProperty(
      steps,
      fc.constantFrom(1, 2, 64, 128),
      fc.array(fc.nat(6), { maxLength: 40 }),
      fc.constantFrom(0, EINVAL, EIO),
      async (list, maxSegments, rooms, refuse) => {
        const rig = await makeRig({
          peers: [{}, { ecn: true }, { address: 'fd99::2', ecn: true }, { mtu: 700 }],
          settings: { maxSegments },
          socket: refuse ? { refuseSegments: refuse } : {},
        });
        const number = [0, 0, 0, 0];
        const packets = list.map((step: Step) => {
          const n = number[step.peer]++;
          const ip =
            step.six && step.peer !== 3
              ? v6({ destination: remote6(step.peer), tos: step.tos })
              : v4({ destination: remote4(step.peer), tos: step.tos, df: false, id: n });
          const ports = { from: 1000 + step.flow, to: 2000 };
          if (step.kind === 'udp') return plain(packet(ip, udp({ ...ports, payload: mark(n, step.length) })));
          if (step.kind === 'tcp') return unfinished(ip, tcp({ ...ports, payload: mark(n, step.length) }));
          if (step.kind === 'fragment') return plain(packet(ip, udp({ ...ports, payload: mark(n, 1400) })));
          return superPacket(
            ip,
            step.kind === 'super'
              ? tcp({ ...ports, payload: mark(n, Math.min(step.length * 20, step.size * 400)) })
              : udp({ ...ports, payload: mark(n, step.length * 4) }),
            step.size & ~3,
          );
        });
        rig.device.load(packets);
        // The socket takes some messages, then no more, again and again.
        for (const room of rooms) {
          for (const socket of rig.sockets) socket.room = room;
          rig.engine.turn(0, 7);
        }
        for (const socket of rig.sockets) socket.room = Number.POSITIVE_INFINITY;
        for (let i = 0; i < 400; i++) rig.engine.turn(0, 7);
        const { sent } = rig.take();
        rig.audit();
        const read = (bytes: Uint8Array): number => {
          const ip = decode(bytes);
          if (ip.offset > 0) return -1;
          const at = ip.l4At + (ip.protocol === 6 ? 32 : 8);
          return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at);
        };
        for (const peer of [0, 1, 2, 3]) {
          const name = hex(rig.name(peer));
          const numbers = sent
            .filter((one) => hex(one.name).startsWith(name.slice(0, 40)))
            .map(({ bytes }) => read(bytes))
            .filter((n) => n >= 0);
          if (new Set(numbers).size !== number[peer]) return false;
          if (!numbers.every((n, i) => i === 0 || numbers[i - 1] <= n)) return false;
        }
        return rig.device.pulled === list.length;
      },
    ),
    { numRuns: 300 },
  );
});

t.test('EAGAIN: nothing lost, nothing reordered, the device is not read meanwhile', async (t) => {
  const packets = Array.from({ length: 100 }, (_, i) =>
    plain(packet(v4({ id: i }), udp({ payload: pattern(20 + i + (i & 1 ? 0 : 3)) }))),
  );
  for (let room = 0; room < 16; room++) {
    const rig = await makeRig();
    rig.device.load(packets);
    rig.sockets[0].room = room;
    rig.engine.turn(0, 7);
    t.ok(rig.engine.blocked, `room for ${room}`);
    t.equal(rig.counter('outbound.socket_full'), 1);
    const pulled = rig.device.pulled;
    for (let i = 0; i < 5; i++) rig.engine.turn(0, 7);
    t.equal(rig.device.pulled, pulled, 'not read while blocked');
    rig.sockets[0].room = 1;
    rig.engine.turn(0, 0);
    t.equal(rig.sockets[0].sentMessages, room + 1, 'one more is one more');
    rig.sockets[0].room = Number.POSITIVE_INFINITY;
    rig.drain();
    t.notOk(rig.engine.blocked);
    t.equal(difference(bytesOf(rig.take().sent), expected(packets)), '');
    rig.audit();
  }
});

t.test('EAGAIN of one underlay holds the device, but not the other underlay', async (t) => {
  const rig = await makeRig({ peers: [{}, { address: 'fd99::2' }] });
  const packets = Array.from({ length: 20 }, (_, i) =>
    plain(packet(v4({ id: i, destination: remote4(i & 1) }), udp())),
  );
  rig.device.load(packets);
  rig.sockets[0].room = 0;
  rig.engine.turn(0, 7);
  t.equal(rig.sockets[1].sent, 10);
  t.equal(rig.sockets[0].sent, 0);
  t.equal(rig.engine.blocked, 1, 'only that one has to be polled for room');
  rig.sockets[0].room = Number.POSITIVE_INFINITY;
  rig.drain();
  t.equal(rig.sockets[0].sent, 10);
  rig.audit();
});

t.test('EINVAL or EIO for a segmented message: replayed singly; if singles pass, segmentation is off', async (t) => {
  for (const errno of [EINVAL, EIO]) {
    const rig = await makeRig({ socket: { refuseSegments: errno } });
    const shared = new SharedWords(rig.memory);
    const first = [
      superPacket(v4(), tcp({ payload: pattern(9000) }), 1400),
      plain(packet(v4(), udp({ payload: pattern(30) }))),
    ];
    t.equal(difference(bytesOf(rig.out(...first)), expected(first)), '', `errno ${errno}: all of it arrives`);
    t.equal(shared.refusedOffloads(), OFFLOADS.segment);
    const changes = rig.changes();
    t.ok(changes['outbound.messages_replayed'] >= 1);
    t.equal(difference(bytesOf(rig.out(...first)), expected(first)), '');
    t.equal(rig.changes()['outbound.messages_replayed'], undefined, 'not tried again');
    rig.audit();
  }
});

t.test('a replay that meets EAGAIN and EINTR goes on where it stopped', async (t) => {
  for (let room = 0; room < 9; room++) {
    let left = room;
    let interrupted = 0;
    const rig = await makeRig({
      socket: { refuseSegments: EINVAL },
      wrapSocket: (socket) => ({
        pull: () => socket.pull(),
        push(first, count) {
          if (interrupted++ % 3 === 0) return -EINTR;
          if (left === 0) return -EAGAIN;
          const before = socket.sentMessages;
          const result = socket.push(first, count);
          left -= socket.sentMessages - before;
          return result;
        },
      }),
    });
    const packets = [
      superPacket(v4(), tcp({ payload: pattern(6000) }), 1400),
      plain(packet(v4({ tos: 1 }), udp({ payload: pattern(30) }))),
      plain(packet(v4({ tos: 1 }), udp({ payload: pattern(30, 1) }))),
    ];
    rig.device.load(packets);
    for (let i = 0; i < 50; i++) rig.engine.turn(0, 7);
    left = 100;
    rig.drain();
    t.equal(difference(bytesOf(rig.take().sent), expected(packets)), '', `stopped after ${room}`);
    rig.audit();
  }
});

t.test('EMSGSIZE: counted as path_mtu, the peer is marked; segmentation stays on', async (t) => {
  const rig = await makeRig({ peers: [{}, {}], socket: { mtu: 1000 } });
  const shared = new SharedWords(rig.memory);
  t.equal(rig.out(plain(packet(v4(), udp({ payload: pattern(1200) })))).length, 0);
  t.match(rig.changes(), { 'outbound.path_mtu': 1 });
  t.equal(shared.mtuEvents(), 1);
  // A segmented message is refused with EINVAL where the path has shrunk; its singles say why.
  t.equal(rig.out(superPacket(v4(), tcp({ payload: pattern(6000) }), 1200)).length, 0);
  t.match(rig.changes(), { 'outbound.path_mtu': 5, 'outbound.messages_replayed': 1 });
  t.equal(shared.mtuEvents(), 1, 'one event until control has looked');
  t.ok(rig.tables.takeMtuSuspect(rig.refs[0]));
  t.notOk(rig.tables.takeMtuSuspect(rig.refs[0]));
  t.notOk(rig.tables.takeMtuSuspect(rig.refs[1]));
  t.equal(shared.refusedOffloads(), 0);
  // The short last one of a refused message fits by itself.
  const sent = rig.out(superPacket(v4(), tcp({ payload: pattern(2500) }), 1200));
  t.equal(sent.length, 1);
  t.equal(shared.refusedOffloads(), 0, 'some were too big: that is no reason to switch segmentation off');
  t.equal(shared.mtuEvents(), 2);
  const [small] = await messagesOf(rig, () => void rig.out(superPacket(v4(), tcp({ payload: pattern(2500) }), 500)));
  t.equal(small.length, 5, 'smaller ones still go as one message');
  rig.tables.setPeerMtu(rig.refs[0], 1000);
  const answered = rig.out(plain(packet(v4(), udp({ payload: pattern(1200) }))));
  t.equal(answered.length, 0);
  t.equal(rig.take().pushed.length, 1, 'control lowered the mtu: now the host is told');
  rig.audit();
});

t.test('other refusals drop the message and go on with the next', async (t) => {
  for (const errno of [EPERM, 101, 105, 111, 113]) {
    const rig = await makeRig({ peers: [{}, {}] });
    rig.sockets[0].failOnce = errno;
    const packets = [
      ...Array.from({ length: 3 }, () => plain(packet(v4(), udp({ payload: pattern(40) })))),
      plain(packet(v4({ destination: remote4(1) }), udp({ payload: pattern(40) }))),
    ];
    const sent = rig.out(...packets);
    t.equal(difference(bytesOf(sent), expected(packets.slice(3))), '', `errno ${errno}`);
    t.match(rig.changes(), { 'outbound.socket_refused': 3 });
    rig.audit();
  }
});

t.test('errors of the device', async (t) => {
  const answers = [-EINTR, -EIO, -EBADFD];
  const rig = await makeRig({
    wrapDevice: (device) => ({
      pull: (at) => answers.shift() ?? device.pull(at),
      push: (at, length) => device.push(at, length),
    }),
  });
  rig.device.load([plain(packet(v4(), udp()))]);
  for (let i = 0; i < 3; i++) rig.engine.turn(0, 7);
  t.ok(rig.engine.deviceLost);
  rig.drain();
  t.equal(rig.sockets[0].sent, 1);
  t.ok(rig.counter('outbound.device_errors') >= 2);
  rig.audit();
});

t.test('65,535 bytes: the largest packets and super-packets there are, 32 and more of them', async (t) => {
  const rig = await makeRig({ peers: [{ mtu: 65535 }, {}], keep: false });
  const largest = [
    plain(packet(v4(), udp({ payload: pattern(65479) }))), // 65,507 in all
    superPacket(v4({ destination: remote4(1) }), tcp({ payload: pattern(65535 - 52) }), 1420),
    superPacket(
      v4({ destination: remote4(1), options: new Uint8Array(40).fill(1) }),
      tcp({ payload: pattern(65535 - 120), options: new Uint8Array(40).fill(1) }),
      130,
    ),
    superPacket(v6({ destination: remote6(1) }), udp({ payload: pattern(65535 - 48) }), 200),
    superPacket(v4({ destination: remote4(1), df: false }), udp({ payload: pattern(65535 - 28) }), 1500),
  ];
  rig.device.load(largest, 500);
  rig.drain();
  t.equal(rig.device.pulled, 500);
  t.equal(
    rig.counter('outbound.socket_refused') + rig.counter('outbound.path_mtu') + rig.counter('outbound.bad_offload'),
    0,
  );
  rig.audit();
  // Longer than any datagram: the socket says EMSGSIZE.
  rig.device.load([plain(packet(v4(), udp({ payload: pattern(65507) })))]);
  rig.drain();
  t.equal(rig.counter('outbound.path_mtu'), 1);
  rig.audit();
});

t.test('every combination of offloads carries the same bytes', async (t) => {
  const rng = random(11);
  const flows = Array.from({ length: 6 }, () => 1);
  const stream = Array.from({ length: 120 }, (_, i) => {
    const flow = Math.floor(rng() * 6);
    const ip = flow & 1 ? v6({ destination: remote6(flow % 3) }) : v4({ destination: remote4(flow % 3), id: i });
    const payload = pattern(1 + Math.floor(rng() * 6000), i);
    const seq = flows[flow];
    flows[flow] += payload.length;
    return { flow, ip, payload, seq };
  });
  const streams = (datagrams: readonly OutgoingDatagram[]): string[] => {
    const parts: Uint8Array[][] = flows.map(() => []);
    for (const { bytes } of datagrams) {
      const ip: Decoded = decode(bytes);
      parts[(ip.tcp?.from ?? 0) - 1000].push(ip.payload);
    }
    return parts.map((list) => hex(concat(...list)));
  };
  let want: string[] | undefined;
  // What the device hands over differs with csum, tso and uso; what the socket takes with segment.
  for (const how of ['plain', 'unfinished', 'super'] as const) {
    for (const maxSegments of [1, 64, 128]) {
      for (const refuseSegments of [0, EIO]) {
        const rig = await makeRig({
          peers: [{}, {}, { address: 'fd99::2' }],
          settings: { maxSegments },
          socket: refuseSegments ? { refuseSegments } : {},
        });
        const packets = stream.flatMap(({ flow, ip, payload, seq }) => {
          const make = (from: number, length: number) =>
            tcp({ from: 1000 + flow, seq: seq + from, payload: payload.subarray(from, from + length) });
          if (how === 'super') return [superPacket(ip, make(0, payload.length), 1400)];
          return Array.from({ length: Math.ceil(payload.length / 1400) }, (_, k) =>
            how === 'plain' ? plain(packet(ip, make(k * 1400, 1400))) : unfinished(ip, make(k * 1400, 1400)),
          );
        });
        const got = streams(rig.out(...packets));
        want ??= got;
        t.same(got, want, `${how}, ${maxSegments} segments, ${refuseSegments ? 'refused' : 'taken'}`);
        rig.audit();
      }
    }
  }
});

t.test('per peer: packets and bytes out, singly or in messages; a successor begins at 0', async (t) => {
  const rig = await makeRig({ peers: [{}, { address: 'fd99::2' }], memory: { peers: 2 } });
  const totals = (peer: number): number[] => {
    const at = (rig.layout.peerCounters >> 3) + (rig.refs[peer] & 0xffff) * 4;
    return [...rig.memory.f64.subarray(at, at + 4)];
  };
  rig.out(plain(packet(v4(), udp({ payload: pattern(72) }))), superPacket(v4(), udp({ payload: pattern(250) }), 100));
  t.same(totals(0), [4, 100 + 250 + 3 * 28, 0, 0]);
  rig.sockets[1].failOnce = EINVAL; // so that it goes singly
  rig.out(superPacket(v4({ destination: remote4(1) }), udp({ payload: pattern(250) }), 100));
  t.same(totals(1), [3, 250 + 3 * 28, 0, 0]);
  t.same(totals(0), [4, 100 + 250 + 3 * 28, 0, 0]);
  for (const subnet of ['10.5.2.0/24', 'fd00:5:0:2::/64']) rig.tables.removeRoute(0, prefix(subnet));
  rig.tables.removePeer(rig.refs[0]);
  await rig.tables.commit();
  rig.tables.addPeer({ address: address('203.0.113.66'), port: 8285, mtu: 1472, ecn: false, network: 0 });
  t.same(totals(0), [0, 0, 0, 0]);
  rig.audit();
});

t.test('what waits for a full socket goes to the peer it was for, though its slot has a new owner', async (t) => {
  const rig = await makeRig({ peers: [{}], memory: { peers: 1 } });
  const shared = new SharedWords(rig.memory);
  shared.setRunning(0, true);
  const turnsUntil = async (commit: Promise<void>): Promise<void> => {
    let done = false;
    void commit.then(() => {
      done = true;
    });
    while (!done) {
      rig.engine.turn(0, 7);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  rig.sockets[0].room = 0;
  rig.device.load(Array.from({ length: 5 }, (_, i) => plain(packet(v4({ id: i }), udp({ payload: pattern(40 + i) })))));
  rig.engine.turn(0, 7);
  t.ok(rig.engine.blocked);
  rig.tables.removeRoute(0, prefix('10.5.2.0/24'));
  rig.tables.removeRoute(0, prefix('fd00:5:0:2::/64'));
  rig.tables.removePeer(rig.refs[0]);
  await turnsUntil(rig.tables.commit());
  rig.tables.addPeer({ address: address('203.0.113.66'), port: 8285, mtu: 1472, ecn: false, network: 0 });
  await turnsUntil(rig.tables.commit());
  rig.sockets[0].room = Number.POSITIVE_INFINITY;
  rig.drain();
  const strangers = rig.take().sent.filter(({ name }) => [...name.subarray(4, 8)].join('.') !== '192.168.77.2');
  t.equal(strangers.length, 0, "the new owner never gets another's packets");
  const counted = rig.layout.peerCounters >> 3;
  t.same([...rig.memory.f64.subarray(counted, counted + 4)], [0, 0, 0, 0], 'nor are they counted for it');
  shared.setRunning(0, false);
  rig.audit();
});

t.test('super-packets of very small segments are no lie: TCP may agree on a segment size of 88 and less', async (t) => {
  const rig = await makeRig();
  for (const ip of both) {
    for (const [size, length] of [
      [88, 65000],
      [48, 60000],
      [100, 64000],
      [536, 65000],
    ] as const) {
      const given = superPacket(ip(), tcp({ payload: pattern(length) }), size);
      t.equal(difference(bytesOf(rig.out(given)), expected([given])), '', `gso_size ${size}, ${length} bytes`);
      rig.changes();
      rig.audit();
    }
  }
});
