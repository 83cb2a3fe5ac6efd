/** packet/ip.ts and icmp.ts against plain references; every check runs in a view that ends with the packet. */
import fc from 'fast-check';
import t from 'tap';
import { isIcmpError, isIcmpv6Error } from '../../src/packet/icmp.js';
import * as ip from '../../src/packet/ip.js';
import {
  add,
  checksum,
  extension,
  flip,
  hex,
  onesSum,
  packet,
  pattern,
  put,
  random,
  raw,
  rechecksum,
  tcp,
  udp,
} from '../lib/packets.js';

const v4 = { source: '10.5.1.2', destination: '10.5.2.9' };
const v6 = { source: 'fd00:5:0:1::2', destination: 'fd00:5:0:2::9' };

/** A view in which a read before or behind the packet throws. */
const exact = (bytes: Uint8Array): DataView => new DataView(Uint8Array.from(bytes).buffer);

const GOOD_PACKETS: readonly Uint8Array[] = [
  packet(v4, tcp({ payload: pattern(100) })),
  packet({ ...v4, options: new Uint8Array(40).fill(1) }, udp()),
  packet(v6, udp({ payload: pattern(7) })),
  packet({ ...v6, extensions: [[0, extension(1)]] }, tcp()),
  packet(v4, raw(99, new Uint8Array(0))),
  packet(v6, raw(59, new Uint8Array(0))),
];

t.test('checkIp names what is wrong', async (t) => {
  for (const bytes of GOOD_PACKETS)
    t.equal(ip.checkIp(exact(bytes), 0, bytes.length), ip.GOOD, hex(bytes.subarray(0, 20)));
  const four = GOOD_PACKETS[0];
  const six = GOOD_PACKETS[2];
  const check = (bytes: Uint8Array, change?: (copy: Uint8Array) => void): number => {
    const copy = Uint8Array.from(bytes);
    change?.(copy);
    return ip.checkIp(exact(copy), 0, copy.length);
  };
  t.equal(check(new Uint8Array(0)), ip.BAD_SHORT, 'nothing');
  for (let length = 1; length < 20; length++)
    t.equal(check(four.subarray(0, length)), ip.BAD_SHORT, `IPv4 of ${length}`);
  for (let length = 1; length < 40; length++)
    t.equal(check(six.subarray(0, length)), ip.BAD_SHORT, `IPv6 of ${length}`);
  for (let version = 0; version < 16; version++) {
    if (version === 4 || version === 6) continue;
    t.equal(check(four, put(0, (version << 4) | 5)), ip.BAD_VERSION, `version ${version}`);
  }
  for (let words = 0; words < 5; words++) {
    t.equal(check(four, put(0, 0x40 | words)), ip.BAD_HEADER_LENGTH, `header of ${words * 4}`);
  }
  t.equal(check(four.subarray(0, 24), put(0, 0x4f)), ip.BAD_HEADER_LENGTH, 'header beyond the packet');
  t.equal(check(four, add(3, 1)), ip.BAD_TOTAL_LENGTH, 'total length too long');
  t.equal(check(four, add(3, -1)), ip.BAD_TOTAL_LENGTH, 'total length too short');
  t.equal(check(six, add(5, 1)), ip.BAD_TOTAL_LENGTH, 'payload length too long');
  t.equal(check(six, add(5, -1)), ip.BAD_TOTAL_LENGTH, 'payload length too short');
  for (let bit = 4 * 8; bit < 20 * 8; bit++) {
    const found = check(four, flip(bit >> 3, 1 << (bit & 7)));
    t.equal(found, ip.BAD_CHECKSUM, `bit ${bit} flipped`);
  }
});

t.test('checkIp agrees with a reference on anything, and reads nothing outside', async () => {
  const reference = (bytes: Uint8Array): number => {
    if (bytes.length === 0) return ip.BAD_SHORT;
    const version = bytes[0] >> 4;
    if (version === 6) {
      if (bytes.length < 40) return ip.BAD_SHORT;
      return bytes[4] * 256 + bytes[5] + 40 === bytes.length ? ip.GOOD : ip.BAD_TOTAL_LENGTH;
    }
    if (version !== 4) return ip.BAD_VERSION;
    if (bytes.length < 20) return ip.BAD_SHORT;
    const header = (bytes[0] % 16) * 4;
    if (header < 20 || header > bytes.length) return ip.BAD_HEADER_LENGTH;
    if (bytes[2] * 256 + bytes[3] !== bytes.length) return ip.BAD_TOTAL_LENGTH;
    return onesSum(bytes.subarray(0, header)) === 0xffff ? ip.GOOD : ip.BAD_CHECKSUM;
  };
  const anything = fc.oneof(
    fc.uint8Array({ maxLength: 90 }),
    fc
      .tuple(
        fc.constantFrom(...GOOD_PACKETS),
        fc.array(fc.tuple(fc.nat(60), fc.nat(255)), { maxLength: 3 }),
        fc.boolean(),
      )
      .map(([good, changes, fix]) => {
        const bytes = Uint8Array.from(good);
        for (const [at, value] of changes) bytes[at % bytes.length] = value;
        return fix && bytes.length >= 20 ? rechecksum(bytes) : bytes;
      }),
  );
  fc.assert(
    fc.property(anything, fc.nat(9), (bytes, at) => {
      const room = new Uint8Array(at + bytes.length);
      room.set(bytes, at);
      return ip.checkIp(new DataView(room.buffer), at, bytes.length) === reference(bytes);
    }),
    { numRuns: 5000 },
  );
});

t.test('decrementTtl: every checksum there is stays right, and never becomes 0xffff', async (t) => {
  const bytes = packet(v4, raw(99, new Uint8Array(0)));
  const view = new DataView(bytes.buffer);
  let wrong = 0;
  for (let id = 0; id < 65536; id++) {
    view.setUint16(4, id);
    view.setUint8(8, 1 + (id % 255));
    rechecksum(bytes);
    ip.decrementTtl(view, 0);
    if (onesSum(bytes.subarray(0, 20)) !== 0xffff || bytes[8] !== id % 255 || view.getUint16(10) === 0xffff) wrong++;
  }
  t.equal(wrong, 0);
});

t.test('writeEcn changes two bits and keeps the checksum right; ecnOf reads them back', async (t) => {
  const rng = random(7);
  let wrong = 0;
  for (let i = 0; i < 100_000; i++) {
    const tos = Math.floor(rng() * 256);
    const ecn = i & 3;
    const spec = { tos, id: Math.floor(rng() * 65536) };
    const bytes = packet({ ...(i & 4 ? v4 : v6), ...spec }, raw(99, new Uint8Array(0)));
    const want = packet({ ...(i & 4 ? v4 : v6), ...spec, tos: (tos & 0xfc) | ecn }, raw(99, new Uint8Array(0)));
    const view = new DataView(bytes.buffer);
    if (ip.ecnOf(view, 0) !== (tos & 3)) wrong++;
    ip.writeEcn(view, 0, ecn);
    // A checksum of 0 may be written as 0xffff and the other way round: both are zero in one's complement.
    const same =
      hex(bytes.subarray(0, 10)) === hex(want.subarray(0, 10)) && hex(bytes.subarray(12)) === hex(want.subarray(12));
    if (!same || ip.ecnOf(view, 0) !== ecn || (i & 4 && onesSum(bytes.subarray(0, 20)) !== 0xffff)) wrong++;
  }
  t.equal(wrong, 0);
});

t.test('header checksums of every header length', async () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 60, maxLength: 60 }), fc.integer({ min: 5, max: 15 }), (bytes, words) => {
      const header = words * 4;
      const copy = Uint8Array.from(bytes);
      const view = new DataView(copy.buffer);
      ip.writeHeaderChecksum(view, 0, header);
      copy.fill(0, 10, 12);
      const want = checksum(copy.subarray(0, header));
      ip.writeHeaderChecksum(view, 0, header);
      return view.getUint16(10) === want && (want === 0xffff || ip.headerSum(view, 0, header) === 0xffff);
    }),
    { numRuns: 2000 },
  );
});

t.test('ICMP types that are errors (RFC 792, RFC 1122 3.2.2)', async (t) => {
  const errors = Array.from({ length: 256 }, (_, type) => type).filter(isIcmpError);
  t.same(errors, [3, 4, 5, 11, 12]);
  const errors6 = Array.from({ length: 256 }, (_, type) => type).filter(isIcmpv6Error);
  t.same(errors6, [...Array.from({ length: 128 }, (_, type) => type), 137], 'RFC 4443 2.1, and redirects (2.4 e)');
});
