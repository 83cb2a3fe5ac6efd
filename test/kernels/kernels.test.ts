/** The WASM kernels against plain TypeScript references, on random input at random alignment. */
import fc from 'fast-check';
import t from 'tap';
import { loadKernels } from '../../src/io/kernels.js';
import { ARENA_BYTES, EngineMemory, MERGE_SLOTS, MERGE_WORDS } from '../../src/io/memory.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import { decode, decodeVnet } from '../lib/decode.js';
import {
  ACK,
  add,
  CWR,
  changed,
  concat,
  ECE,
  extension,
  FIN,
  flip,
  hex,
  type IpSpec,
  icmp,
  onesSum,
  PSH,
  packet,
  pattern,
  RST,
  random,
  raw,
  rechecksum,
  SYN,
  superPacket,
  type Transport,
  tcp,
  URG,
  udp,
} from '../lib/packets.js';
import { onTheWire } from '../lib/segment.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const memory = EngineMemory.create({ workers: 1, peers: 4, routeNodes: 16, networks: 1 });
const kernels = loadKernels(memory);
const layout = memory.layout.workers[0];
const { u8, i32 } = memory;
const RUNS = Number(process.env.WEFT_RUNS ?? 1);

/** The engine's sums are of little-endian words: swap to compare with the byte loop. */
const swap = (value: number): number => ((value & 255) << 8) | (value >> 8);
/** 0 and 0xffff are the same number in one's complement. */
const same = (a: number, b: number): boolean => a % 0xffff === b % 0xffff;

function fill(at: number, length: number, seed: number): Uint8Array {
  const rng = random(seed);
  // Runs of 0xff and 0x00 between random bytes: where carries go wrong, if they do.
  for (let i = 0; i < length; ) {
    const kind = rng();
    const run = Math.min(length - i, 1 + Math.floor(rng() * 300));
    for (let end = i + run; i < end; i++) u8[at + i] = kind < 0.2 ? 0xff : kind < 0.3 ? 0 : rng() * 256;
  }
  return u8.slice(at, at + length);
}

const lengths = fc.oneof(fc.nat(200), fc.nat(3000), fc.integer({ min: 60000, max: 65535 }));
const seeds = fc.nat(0x7fffffff);

t.test('sum', async (t) => {
  fc.assert(
    fc.property(lengths, fc.nat(63), seeds, fc.nat(0xffff), (length, shift, seed, start) => {
      const bytes = fill(layout.arena + shift, length, seed);
      return same(kernels.sum(layout.arena + shift, length, start), swap(onesSum(bytes, swap(start))));
    }),
    { numRuns: 1000 * RUNS },
  );
  for (const byte of [0, 0xff]) {
    u8.fill(byte, layout.arena, layout.arena + 65536);
    t.ok(
      same(kernels.sum(layout.arena, 65535, 0xffff), swap(onesSum(new Uint8Array(65535).fill(byte), 0xffff))),
      `all ${byte}`,
    );
  }
  t.equal(kernels.sum(layout.arena, 0, 0), 0, 'nothing sums to nothing');
});

t.test('copy touches its bytes and no other', async () => {
  fc.assert(
    fc.property(lengths, fc.nat(63), fc.nat(63), seeds, (length, from, to, seed) => {
      const bytes = fill(layout.arena + from, length, seed);
      const target = layout.arena + 200_000 + to;
      u8.fill(0x5a, target - 64, target + length + 64);
      kernels.copy(target, layout.arena + from, length);
      const around = [u8.subarray(target - 64, target), u8.subarray(target + length, target + length + 64)];
      return (
        Buffer.compare(u8.subarray(target, target + length), bytes) === 0 &&
        around.every((part) => part.every((b) => b === 0x5a))
      );
    }),
    { numRuns: 500 * RUNS },
  );
});

t.test('finish completes a checksum, and writes 0xffff for 0', async (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 40, max: 3000 }),
      fc.nat(63),
      seeds,
      fc.nat(30),
      fc.nat(8),
      (length, shift, seed, start, offset) => {
        const at = layout.arena + shift;
        const before = fill(at, length, seed);
        kernels.finish(at, length, start, offset);
        const after = u8.slice(at, at + length);
        const field = start + offset;
        const value = 0xffff - onesSum(before.subarray(start));
        // An odd offset is not aligned to the words summed: no protocol has one, only memory safety matters there.
        const right = offset % 2 === 1 || ((after[field] << 8) | after[field + 1]) === (value || 0xffff);
        return (
          right &&
          hex(after.subarray(0, field)) === hex(before.subarray(0, field)) &&
          hex(after.subarray(field + 2)) === hex(before.subarray(field + 2))
        );
      },
    ),
    { numRuns: 1000 * RUNS },
  );
  const at = layout.arena;
  u8.set([0xff, 0xff, 0, 0, 0, 0, 0, 0], at);
  kernels.finish(at, 8, 0, 6);
  t.same([u8[at + 6], u8[at + 7]], [0xff, 0xff]);
});

const V4: IpSpec = { source: '10.5.1.2', destination: '10.5.2.9' };
const V6: IpSpec = { source: 'fd00:5:0:1::2', destination: 'fd00:5:0:2::9' };

/** IP headers of all shapes. */
const ipSpecs: fc.Arbitrary<IpSpec> = fc.oneof(
  fc.record({
    source: fc.constant(V4.source),
    destination: fc.constantFrom('10.5.2.9', '255.255.254.255'),
    tos: fc.nat(255),
    ttl: fc.integer({ min: 1, max: 255 }),
    id: fc.oneof(fc.nat(65535), fc.constant(65530)),
    df: fc.boolean(),
    options: fc.nat(10).map((words) => pattern(words * 4)),
  }),
  fc.record({
    source: fc.constant(V6.source),
    destination: fc.constantFrom(V6.destination, 'ffff:ffff::ffff'),
    tos: fc.nat(255),
    ttl: fc.integer({ min: 1, max: 255 }),
    flow: fc.nat(0xfffff),
    extensions: fc.array(fc.tuple(fc.constantFrom(0, 60), fc.integer({ min: 1, max: 4 }).map(extension)), {
      maxLength: 2,
    }),
  }),
);
const ports = fc.nat(65535);
const tcpSpecs = fc.record({
  from: ports,
  to: ports,
  seq: fc.oneof(fc.nat(0xffffffff), fc.constant(0xffffff00)),
  ack: fc.nat(0xffffffff),
  flags: fc.nat(255),
  window: ports,
  urgent: ports,
  options: fc.nat(10).map((words) => pattern(words * 4, 77)),
});

/** Writes a super-packet at `at`, splits it, returns the segments; fails if a byte around them was touched, or a prefix is not copied. */
function split({ vnet, bytes }: DevicePacket, at: number, prefix: number): Uint8Array[] {
  const { size } = decodeVnet(vnet);
  const ip = decode(bytes, 'partial');
  const headers = ip.l4At + (ip.tcp ? ip.tcp.dataOffset * 4 : 8);
  const count = Math.ceil((bytes.length - headers) / size);
  const stride = prefix + headers + size;
  const front = pattern(prefix, 91);
  const last = bytes.length - (count - 1) * size;
  const end = at + (count - 1) * stride + last;
  u8.fill(0x5a, at - 64, Math.max(end, at + bytes.length) + 64);
  u8.set(front, at - prefix);
  u8.set(bytes, at);
  const made = kernels.split(at, bytes.length, ip.l4At, headers, size, ip.tcp ? 1 : 0, prefix);
  if (made !== count) throw new Error(`split made ${made} segments of ${count}`);
  const outside = [
    u8.subarray(at - 64, at - prefix),
    u8.subarray(Math.max(end, at + bytes.length), Math.max(end, at + bytes.length) + 64),
  ];
  if (!outside.every((part) => part.every((byte) => byte === 0x5a))) throw new Error('split wrote outside');
  for (let i = 0; i < count; i++) {
    const start = at + i * stride;
    if (Buffer.compare(u8.subarray(start - prefix, start), front) !== 0) throw new Error(`segment ${i} has no prefix`);
  }
  return Array.from({ length: count }, (_, i) =>
    u8.slice(at + i * stride, at + i * stride + (i === count - 1 ? last : headers + size)),
  );
}

const equalLists = (got: readonly Uint8Array[], want: readonly Uint8Array[]): boolean =>
  got.length === want.length && got.every((bytes, i) => Buffer.compare(bytes, want[i]) === 0);

t.test('split makes what a network card with TSO or USO would', async () => {
  const transports: fc.Arbitrary<(payload: Uint8Array) => Transport> = fc.oneof(
    tcpSpecs.map((spec) => (payload: Uint8Array) => tcp({ ...spec, payload })),
    fc.record({ from: ports, to: ports }).map((spec) => (payload: Uint8Array) => udp({ ...spec, payload })),
  );
  const sizes = fc.oneof(
    fc.tuple(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 400 })),
    fc.tuple(fc.integer({ min: 500, max: 9000 }), fc.integer({ min: 1, max: 65000 })),
    fc.tuple(fc.integer({ min: 1, max: 65535 }), fc.integer({ min: 60000, max: 65100 })),
  );
  fc.assert(
    fc.property(
      ipSpecs,
      transports,
      sizes,
      fc.nat(63),
      fc.constantFrom(0, 10, 22, 26, 30),
      (ip, make, [size, length], shift, prefix) => {
        const payload = pattern(Math.min(length, size * 512), size);
        const bare = make(new Uint8Array(0)).bytes.length;
        const given = superPacket(ip, make(payload.subarray(0, 65535 - 140 - bare)), size);
        return equalLists(split(given, layout.arena + 64 + shift, prefix), onTheWire(given));
      },
    ),
    { numRuns: 1500 * RUNS },
  );
});

t.test('split: every combination of TCP flags; FIN and PSH on the last, CWR on the first', async (t) => {
  for (let flags = 0; flags < 256; flags++) {
    const given = superPacket(V4, tcp({ flags, payload: pattern(2500) }), 1000);
    const made = split(given, layout.arena + 64, 0).map((bytes) => decode(bytes).tcp?.flags ?? -1);
    t.same(made, [flags & ~(FIN | PSH), flags & ~(FIN | PSH | CWR), flags & ~CWR], `flags ${flags}`);
  }
});

t.test('split: a UDP checksum of 0 goes out as 0xffff, on each segment', async (t) => {
  for (const spec of [V4, V6]) {
    const found = [0, 0, 0];
    for (let word = 0; word < 65536; word++) {
      const payload = pattern(30);
      for (const i of [0, 10, 20]) payload.set([word >> 8, word & 255], i);
      const made = split(superPacket(spec, udp({ payload }), 10), layout.arena + 64, 0);
      made.forEach((bytes, i) => {
        const ip = decode(bytes);
        if (ip.udp?.checksum === 0) throw new Error(`word ${word}: checksum 0 means none`);
        if (ip.udp?.checksum === 0xffff) found[i]++;
      });
    }
    t.ok(
      found.every((count) => count >= 1),
      `${found} segments with 0xffff`,
    );
  }
});

// ---- merge ----

const TCP4 = 1;
const TCP6 = 2;
const UDP46 = 4;
const ALL = 7;

/** What the caller of the merge kernel does by its contract, over packets one behind the other. */
class Merger {
  readonly out: DevicePacket[] = [];
  #open: number[] = [];
  readonly #allow: number;

  constructor(allow = ALL) {
    this.#allow = allow;
    i32.fill(0, layout.mergeStates >> 2, (layout.mergeStates >> 2) + MERGE_SLOTS * MERGE_WORDS);
  }

  /** A run of datagrams of equal size, but for a shorter last one. */
  run(packets: readonly Uint8Array[], shift = 0): this {
    const at = layout.arena + shift;
    const size = packets[0].length;
    const last = packets[packets.length - 1].length;
    u8.set(concat(...packets), at);
    for (let i = 0; i < packets.length; ) {
      const { mergeStates, mergeBuffers, mergeStride, kernelOut } = layout;
      i32[kernelOut >> 2] = 1234;
      const left = packets.length - i;
      // The caller's own check: the kernel may trust the first packet's IP header, but no other's.
      if (packets[i][0] === 0x45 && onesSum(packets[i].subarray(0, 20)) !== 0xffff) {
        this.out.push({ vnet: new Uint8Array(10), bytes: packets[i] });
        i++;
        continue;
      }
      const taken = kernels.merge(
        mergeStates,
        mergeBuffers,
        mergeStride,
        kernelOut,
        at + i * size,
        size,
        left,
        last,
        this.#allow,
        0,
      );
      const slot = i32[kernelOut >> 2];
      if (taken > 0) {
        if (taken > left) throw new Error(`took ${taken} of ${left}`);
        if (!this.#open.includes(slot)) this.#open.push(slot);
        i += taken;
        continue;
      }
      if (slot === -2) this.close();
      else if (slot >= 0) this.close(slot);
      if (i32[(kernelOut >> 2) + 1] === 0) {
        this.out.push({ vnet: new Uint8Array(10), bytes: packets[i] });
        i++;
      }
    }
    return this;
  }

  /** Each packet as a message of its own. */
  each(packets: readonly Uint8Array[]): this {
    for (const bytes of packets) this.run([bytes]);
    return this;
  }

  close(only?: number): this {
    for (const slot of this.#open.filter((one) => only === undefined || one === only)) {
      const buffer = layout.mergeBuffers + slot * layout.mergeStride;
      const length = kernels.mergeClose(layout.mergeStates + slot * MERGE_WORDS * 4, buffer, 0);
      this.out.push({ vnet: u8.slice(buffer - 10, buffer), bytes: u8.slice(buffer, buffer + length) });
    }
    this.#open = only === undefined ? [] : this.#open.filter((one) => one !== only);
    return this;
  }
}

const merged = (packets: readonly Uint8Array[], allow = ALL): DevicePacket[] =>
  new Merger(allow).each(packets).close().out;

/** Packet `i` of a stream of equal segments. */
type Make = (
  i: number,
  change?: { ip?: Partial<IpSpec>; l4?: Record<string, unknown>; payload?: Uint8Array },
) => Uint8Array;
const SIZE = 100;
const makeTcp =
  (base: IpSpec): Make =>
  (i, change = {}) =>
    packet(
      { ...base, id: 100 + i, ...change.ip },
      tcp({ seq: 1000 + i * SIZE, payload: change.payload ?? pattern(SIZE, i * SIZE), ...change.l4 }),
    );
const makeUdp =
  (base: IpSpec): Make =>
  (i, change = {}) =>
    packet(
      { ...base, id: 100 + i, ...change.ip },
      udp({ payload: change.payload ?? pattern(SIZE, i * SIZE), ...change.l4 }),
    );

/** A packet without its IPv4 id, which merging does not keep. A wrong header checksum stays wrong. */
function timeless(bytes: Uint8Array): string {
  if (bytes[0] >> 4 !== 4 || onesSum(bytes.subarray(0, (bytes[0] & 15) * 4)) !== 0xffff) return hex(bytes);
  return hex(rechecksum(changed(bytes, (copy) => copy.fill(0, 4, 6))));
}

const bytesOf = (list: readonly DevicePacket[]): string[] => list.map(({ bytes }) => hex(bytes));

t.test('merge: equal neighbours become one super-packet', async (t) => {
  const kinds: readonly (readonly [string, Make, number])[] = [
    ['TCP over IPv4', makeTcp(V4), 1],
    ['TCP over IPv6', makeTcp(V6), 4],
    ['UDP over IPv4', makeUdp(V4), 5],
    ['UDP over IPv6', makeUdp(V6), 5],
  ];
  for (const [name, make, type] of kinds) {
    const packets = Array.from({ length: 5 }, (_, i) => make(i));
    const run = new Merger().run(packets).close().out;
    t.same(bytesOf(merged(packets)), bytesOf(run), `${name}: run or single messages, no difference`);
    t.equal(run.length, 1, name);
    const virtio = decodeVnet(run[0].vnet);
    const ip = decode(run[0].bytes, 'partial');
    const headers = ip.l4At + (ip.tcp ? 32 : 8);
    t.same(
      virtio,
      { flags: 1, type, headerLength: headers, size: SIZE, start: ip.l4At, offset: ip.tcp ? 16 : 6 },
      `${name}: virtio header`,
    );
    t.ok(equalLists(onTheWire(run[0]), packets), `${name}: cut again, it is what it was`);
    t.same(bytesOf(merged([packets[0]])), [hex(packets[0])], `${name}: a single one stays as it is`);
    t.same(merged([packets[0]])[0].vnet, new Uint8Array(10), `${name}: with an empty virtio header`);
  }
});

t.test('merge: each rule by itself', async (t) => {
  const second = (make: Make, change: Parameters<Make>[1]): Uint8Array[] => [make(0), make(1, change), make(2, change)];
  const wrongSum = (bytes: Uint8Array, at: number): Uint8Array => changed(bytes, flip(at, 1));
  const tcp4 = makeTcp(V4);
  const tcp6 = makeTcp(V6);
  const udp4 = makeUdp(V4);
  const udp6 = makeUdp(V6);
  /** The middle one of three differs: it must come out untouched, in its place, and alone. */
  const alone: readonly (readonly [string, readonly Uint8Array[]])[] = [
    ['TTL', [tcp4(0), tcp4(1, { ip: { ttl: 63 } }), tcp4(2)]],
    ['TOS', [tcp4(0), tcp4(1, { ip: { tos: 4 } }), tcp4(2)]],
    ['ECN', [tcp4(0), tcp4(1, { ip: { tos: 2 } }), tcp4(2)]],
    ['DF', [tcp4(0), tcp4(1, { ip: { df: false } }), tcp4(2)]],
    ['MF', [tcp4(0), tcp4(1, { ip: { mf: true } }), tcp4(2)]],
    ['fragment offset', [tcp4(0), tcp4(1, { ip: { offset: 5 } }), tcp4(2)]],
    ['IPv4 options', [tcp4(0), tcp4(1, { ip: { options: new Uint8Array(4).fill(1) } }), tcp4(2)]],
    ['source address', [tcp4(0), tcp4(1, { ip: { source: '10.5.1.3' } }), tcp4(2)]],
    ['destination address', [tcp4(0), tcp4(1, { ip: { destination: '10.5.2.10' } }), tcp4(2)]],
    ['source port', [tcp4(0), tcp4(1, { l4: { from: 4001 } }), tcp4(2)]],
    ['destination port', [tcp4(0), tcp4(1, { l4: { to: 5001 } }), tcp4(2)]],
    ['acknowledgement', [tcp4(0), tcp4(1, { l4: { ack: 2 } }), tcp4(2)]],
    ['window', [tcp4(0), tcp4(1, { l4: { window: 501 } }), tcp4(2)]],
    ['urgent pointer', [tcp4(0), tcp4(1, { l4: { urgent: 1 } }), tcp4(2)]],
    ['sequence gap', [tcp4(0), tcp4(1, { l4: { seq: 1101 } }), tcp4(2)]],
    ['sequence repeated', [tcp4(0), tcp4(1, { l4: { seq: 1000 } }), tcp4(2)]],
    [
      'options: other bytes',
      [tcp4(0), tcp4(1, { l4: { options: Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2) } }), tcp4(2)],
    ],
    [
      'options: last byte',
      [tcp4(0), tcp4(1, { l4: { options: Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 3) } }), tcp4(2)],
    ],
    ['options: none', [tcp4(0), tcp4(1, { l4: { options: new Uint8Array(0) } }), tcp4(2)]],
    ['reserved TCP bits', [tcp4(0), fixTcp(changed(tcp4(1), add(32, 1))), tcp4(2)]],
    ['wrong TCP checksum', [tcp4(0), wrongSum(tcp4(1), 36), tcp4(2)]],
    ['wrong payload byte', [tcp4(0), wrongSum(tcp4(1), 60), tcp4(2)]],
    ['wrong last payload byte', [tcp4(0), wrongSum(tcp4(1), tcp4(1).length - 1), tcp4(2)]],
    ['wrong IPv4 checksum', [tcp4(0), wrongSum(tcp4(1), 10), tcp4(2)]],
    ['empty segment', [tcp4(0), tcp4(1, { payload: new Uint8Array(0) }), tcp4(2)]],
    ['traffic class', [tcp6(0), tcp6(1, { ip: { tos: 4 } }), tcp6(2)]],
    ['flow label', [tcp6(0), tcp6(1, { ip: { flow: 9 } }), tcp6(2)]],
    ['hop limit', [tcp6(0), tcp6(1, { ip: { ttl: 63 } }), tcp6(2)]],
    ['IPv6 source', [tcp6(0), tcp6(1, { ip: { source: 'fd00:5:0:1::3' } }), tcp6(2)]],
    ['IPv6 source, first word', [tcp6(0), tcp6(1, { ip: { source: 'fd01:5:0:1::2' } }), tcp6(2)]],
    ['IPv6 destination', [tcp6(0), tcp6(1, { ip: { destination: 'fd00:5:0:2::a' } }), tcp6(2)]],
    ['IPv6 extension header', [tcp6(0), tcp6(1, { ip: { extensions: [[60, extension(1)]] } }), tcp6(2)]],
    ['wrong TCP checksum over IPv6', [tcp6(0), wrongSum(tcp6(1), 56), tcp6(2)]],
    ['UDP source port', [udp4(0), udp4(1, { l4: { from: 1 } }), udp4(2)]],
    ['UDP over IPv4 without checksum', [udp4(0), changed(udp4(1), (copy) => void copy.fill(0, 26, 28)), udp4(2)]],
    ['wrong UDP checksum', [udp4(0), wrongSum(udp4(1), 40), udp4(2)]],
    ['wrong UDP checksum over IPv6', [udp6(0), wrongSum(udp6(1), 60), udp6(2)]],
    ['UDP length that lies', [udp4(0), fixUdp(changed(udp4(1), add(25, -1))), udp4(2)]],
    ['empty UDP datagram', [udp4(0), udp4(1, { payload: new Uint8Array(0) }), udp4(2)]],
    ...[0, FIN, SYN, RST, URG, ECE, CWR].map((flag): readonly [string, readonly Uint8Array[]] => [
      `TCP flags ${flag | (flag ? ACK : 0)}`,
      [tcp4(0), tcp4(1, { l4: { flags: flag | (flag ? ACK : 0) } }), tcp4(2)],
    ]),
  ];
  for (const [what, packets] of alone) {
    const middle = merged(packets).filter(({ bytes }) => hex(bytes) === hex(packets[1]));
    t.equal(middle.length, 1, `${what}: goes by itself`);
    t.ok(middle[0] && decodeVnet(middle[0].vnet).type === 0, `${what}: not marked as a super-packet`);
    const whole = merged(packets).flatMap(onTheWire);
    t.same(whole.map(timeless).sort(), packets.map(timeless).sort(), `${what}: nothing is lost`);
    if (packets[1].length === packets[0].length) {
      const run = new Merger().run(packets).close().out.flatMap(onTheWire);
      t.same(run.map(timeless).sort(), packets.map(timeless).sort(), `${what}: the same in one run`);
    }
    // And as the first of its flow.
    const first = merged([packets[1], packets[2]]).flatMap(onTheWire);
    t.same(first.map(timeless).sort(), [packets[1], packets[2]].map(timeless).sort(), `${what}: as the first`);
  }
  // What is the same in two neighbours does merge: the rule is about the difference, not the value.
  for (const [what, change] of [
    ['another TTL', { ip: { ttl: 9 } }],
    ['CE', { ip: { tos: 3 } }],
    ['DF off', { ip: { df: false } }],
    ['window 0', { l4: { window: 0 } }],
    ['no options', { l4: { options: new Uint8Array(0) } }],
    ['40 bytes of options', { l4: { options: pattern(40) } }],
  ] as const) {
    t.equal(merged(second(tcp4, change)).length, 2, `${what} twice: the two merge`);
  }
});

/** Right TCP or UDP checksum after a change to an IPv4 packet without options. */
function fixTcp(bytes: Uint8Array): Uint8Array {
  return fixAt(bytes, 36);
}
function fixUdp(bytes: Uint8Array): Uint8Array {
  return fixAt(bytes, 26);
}
function fixAt(bytes: Uint8Array, at: number): Uint8Array {
  const length = bytes.length - 20;
  bytes.fill(0, at, at + 2);
  const pseudo = onesSum(concat(bytes.subarray(12, 20), [0, bytes[9], length >> 8, length & 255]));
  const value = 0xffff - onesSum(bytes.subarray(20), pseudo);
  bytes.set([value >> 8, value & 255], at);
  return bytes;
}

t.test('merge: what closes a super-packet', async (t) => {
  for (const [name, base] of [
    ['IPv4', V4],
    ['IPv6', V6],
  ] as const) {
    const make = makeTcp(base);
    const psh = [make(0), make(1, { l4: { flags: ACK | PSH } }), make(2), make(3)];
    const out = merged(psh);
    t.same(
      out.map((one) => onTheWire(one).length),
      [2, 2],
      `${name}: PSH is the last of its super-packet`,
    );
    t.same(out.flatMap(onTheWire).map(hex), psh.map(hex), `${name}: and stays on its segment`);
    const shorter = [
      make(0),
      make(1, { payload: pattern(50) }),
      make(2, { l4: { seq: 1150 } }),
      make(3, { l4: { seq: 1250 } }),
    ];
    t.same(
      merged(shorter).map((one) => onTheWire(one).length),
      [2, 2],
      `${name}: a shorter one is the last`,
    );
    const longer = [make(0, { payload: pattern(50) }), make(1, { l4: { seq: 1050 } }), make(2, { l4: { seq: 1150 } })];
    t.same(
      merged(longer).map((one) => onTheWire(one).length),
      [1, 2],
      `${name}: a longer one begins anew`,
    );
    const datagram = makeUdp(base);
    const short = [datagram(0), datagram(1, { payload: pattern(50) }), datagram(2)];
    t.same(
      merged(short).map((one) => onTheWire(one).length),
      [2, 1],
      `${name}: the same for UDP`,
    );
    const fin = [make(0), make(1, { l4: { flags: ACK | FIN } })];
    t.same(
      merged(fin).map(({ bytes }) => hex(bytes)),
      fin.map(hex),
      `${name}: FIN closes what was open and goes alone`,
    );
  }
  for (const base of [V4, V6]) {
    const l3 = base === V4 ? 20 : 40;
    const big = Array.from({ length: 50 }, (_, i) =>
      packet(base, tcp({ seq: 1 + i * 1400, payload: pattern(1400, i) })),
    );
    const out = new Merger().run(big).close().out;
    const fit = Math.floor((65535 - l3 - 32) / 1400);
    t.same(
      out.map(({ bytes }) => bytes.length),
      [l3 + 32 + fit * 1400, l3 + 32 + (50 - fit) * 1400],
      'never above 65,535 bytes',
    );
    t.ok(out.flatMap(onTheWire).map(hex).join() === idless(big, out), 'and nothing lost');
    // Exactly 65,535 is allowed.
    const size = 65535 - l3 - 8 - 40000;
    const two = [packet(base, udp({ payload: pattern(40000) })), packet(base, udp({ payload: pattern(size) }))];
    t.same(
      merged(two).map(({ bytes }) => bytes.length),
      [65535],
      '65,535 bytes fit',
    );
    const more = [packet(base, udp({ payload: pattern(40000) })), packet(base, udp({ payload: pattern(size + 1) }))];
    t.equal(merged(more).length, 2, '65,536 do not');
  }
});

/** `packets` with the ids that cutting `out` gives them. */
function idless(packets: readonly Uint8Array[], out: readonly DevicePacket[]): string {
  const ids = out.flatMap(onTheWire).map((bytes) => (bytes[0] >> 4 === 4 ? (bytes[4] << 8) | bytes[5] : 0));
  return packets
    .map((bytes, i) =>
      bytes[0] >> 4 === 4
        ? hex(rechecksum(changed(bytes, (copy) => copy.set([ids[i] >> 8, ids[i] & 255], 4))))
        : hex(bytes),
    )
    .join();
}

t.test("merge: no more segments than the caller and the caller's scratch area allow", async (t) => {
  const small = (base: IpSpec, i: number, isUdp: boolean): Uint8Array =>
    packet({ ...base, id: i }, isUdp ? udp({ payload: pattern(1, i) }) : tcp({ seq: i, payload: pattern(1, i) }));
  for (const base of [V4, V6]) {
    for (const limit of [1, 2, 64, 128]) {
      const datagrams = Array.from({ length: 300 }, (_, i) => small(base, i, true));
      const out = new Merger(ALL | (limit << 8)).run(datagrams).close().out;
      const most = Math.max(...out.map((one) => onTheWire(one).length));
      t.equal(most, limit, `UDP: ${limit} at most`);
      t.equal(out.flatMap(onTheWire).map(timeless).join(), datagrams.map(timeless).join());
    }
    const segments = Array.from({ length: 1300 }, (_, i) => small(base, i, false));
    const out = new Merger(ALL | (64 << 8)).run(segments).close().out;
    t.same(
      out.map((one) => onTheWire(one).length),
      [512, 512, 276],
      'TCP: 512 at most',
    );
  }
});

t.test('merge: what is not allowed is not merged', async (t) => {
  const kinds: readonly (readonly [Make, number])[] = [
    [makeTcp(V4), TCP4],
    [makeTcp(V6), TCP6],
    [makeUdp(V4), UDP46],
    [makeUdp(V6), UDP46],
  ];
  for (const [make, bit] of kinds) {
    const packets = [make(0), make(1), make(2)];
    t.equal(merged(packets, bit).length, 1, `allowed by ${bit}`);
    t.same(bytesOf(merged(packets, ALL & ~bit)), packets.map(hex), `not without ${bit}`);
  }
});

t.test('merge: other packets of a flow close what is open before them', async (t) => {
  const make = makeTcp(V4);
  const order = (packets: readonly Uint8Array[]): string[] => merged(packets).flatMap(onTheWire).map(hex);
  for (const [what, other] of [
    ['a pure ACK', make(2, { payload: new Uint8Array(0) })],
    ['a FIN', make(2, { l4: { flags: FIN | ACK } })],
    ['a fragment', packet({ ...V4, mf: true, df: false }, raw(6, pattern(48)))],
    ['a later fragment, which has no ports', packet({ ...V4, df: false, offset: 6 }, raw(6, pattern(48)))],
    ['a packet with options', make(2, { ip: { options: new Uint8Array(8).fill(1) } })],
    ['one with a wrong checksum', changed(make(2), flip(36, 1))],
  ] as const) {
    const packets = [make(0), make(1), other, make(3), make(4)];
    t.same(order(packets), packets.map(hex), `${what} stays in its place`);
  }
  const ping = [make(0), packet(V4, icmp(8)), make(1)];
  t.equal(merged(ping).length, 2, 'a ping between two does not part them');
});

t.test('merge: flows side by side, one run or many; nothing lost, order of each flow kept', async () => {
  interface Step {
    readonly flow: number;
    readonly length: number;
    readonly flags: number;
    readonly skip: boolean;
    readonly spoil: boolean;
  }
  const steps = fc.array(
    fc.record({
      flow: fc.nat(11),
      length: fc.constantFrom(0, 1, 99, 100, 100, 100, 100, 100),
      flags: fc.constantFrom(ACK, ACK, ACK, ACK, ACK | PSH, ACK | FIN, ACK | CWR),
      skip: fc.constantFrom(false, false, false, true),
      spoil: fc.constantFrom(false, false, false, false, true),
    }),
    { minLength: 1, maxLength: 80 },
  );
  const flowOf = (bytes: Uint8Array): string => {
    const l4 = bytes[0] >> 4 === 4 ? 20 : 40;
    return hex(concat(bytes.subarray(l4 === 20 ? 12 : 8, l4 + 4), [bytes[l4 === 20 ? 9 : 6]]));
  };
  fc.assert(
    fc.property(steps, fc.boolean(), fc.nat(7), (list: readonly Step[], inRuns, allow) => {
      const sequence = new Array<number>(12).fill(0xffffff00);
      const packets = list.map((step) => {
        const base = step.flow % 2 ? V4 : V6;
        const payload = pattern(step.length, sequence[step.flow]);
        if (step.skip) sequence[step.flow] += 5;
        const seq = sequence[step.flow] >>> 0;
        sequence[step.flow] += step.length;
        const ports = { from: 1000 + (step.flow >> 2), to: 2000 };
        const made =
          step.flow % 4 < 2
            ? packet(base, tcp({ ...ports, seq, flags: step.flags, payload }))
            : packet(base, udp({ ...ports, payload }));
        if (step.spoil) made[made.length - 1] ^= 0x10;
        return made;
      });
      const merger = new Merger(allow);
      if (inRuns) {
        for (let i = 0; i < packets.length; ) {
          let end = i + 1;
          while (end < packets.length && packets[end].length === packets[i].length) end++;
          if (end < packets.length && packets[end].length < packets[i].length) end++;
          merger.run(packets.slice(i, end), i % 16);
          i = end;
        }
      } else {
        merger.each(packets);
      }
      const out = merger.close().out.flatMap(onTheWire);
      for (const flow of new Set(packets.map(flowOf))) {
        const want = packets.filter((bytes) => flowOf(bytes) === flow).map(timeless);
        const got = out.filter((bytes) => flowOf(bytes) === flow).map(timeless);
        if (got.join() !== want.join()) return false;
      }
      return out.length === packets.length;
    }),
    { numRuns: 1500 * RUNS },
  );
});

t.test('merge(split(x)) is x, byte for byte', async () => {
  const packets = fc.oneof(
    fc.record({ spec: tcpSpecs, push: fc.boolean() }).map(
      ({ spec, push }) =>
        (payload: Uint8Array) =>
          tcp({ ...spec, flags: push ? ACK | PSH : ACK, payload }),
    ),
    fc.record({ from: ports, to: ports }).map((spec) => (payload: Uint8Array) => udp({ ...spec, payload })),
  );
  const plainIp = ipSpecs.map((ip) => ({ ...ip, options: new Uint8Array(0), extensions: [] }));
  const sizes = fc.tuple(fc.integer({ min: 1, max: 3000 }), fc.integer({ min: 2, max: 60 }), fc.nat(2999));
  fc.assert(
    fc.property(plainIp, packets, sizes, fc.nat(15), (ip, make, [size, count, rest], shift) => {
      const length = Math.min(size * (count - 1) + 1 + (rest % size), 65535 - 100);
      if (length <= size) return true;
      const given = superPacket(ip, make(pattern(length)), size);
      const segments = split(given, layout.arena + 64, 0);
      const out = new Merger().run(segments, shift).close().out;
      return out.length === 1 && hex(out[0].bytes) === hex(given.bytes) && hex(out[0].vnet) === hex(given.vnet);
    }),
    { numRuns: 1000 * RUNS },
  );
});

t.test('the guards are whole, and the arena was large enough for these tests', async (t) => {
  t.ok(memory.intactGuards());
  t.ok(ARENA_BYTES > 1 << 20);
});
