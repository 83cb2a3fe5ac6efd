// The Internet checksum (RFC 1071) over the engine's memory.
//
// Words are summed as little-endian loads see them: the one's complement sum does not mind the byte order as long as the
// result is stored the same way (RFC 1071 section 2(B)). Four 32-bit lanes take pairs of 16-bit words, so 64 KiB (4,096
// vectors of at most 2 x 65,535 a lane) cannot overflow them.

/** Folds a sum to 16 bits. */
// @ts-ignore: decorator
@inline
export function fold(sum: u64): u32 {
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffffffff) + (sum >> 32);
  let s = <u32>((sum & 0xffff) + (sum >> 16));
  s = (s & 0xffff) + (s >> 16);
  return (s & 0xffff) + (s >> 16);
}

// @ts-ignore: decorator
@inline
function lanes(v: v128): u64 {
  return (
    <u64>(<u32>i32x4.extract_lane(v, 0)) +
    <u64>(<u32>i32x4.extract_lane(v, 1)) +
    <u64>(<u32>i32x4.extract_lane(v, 2)) +
    <u64>(<u32>i32x4.extract_lane(v, 3))
  );
}

/** The last 0 to 15 bytes; an odd one counts as the low byte of a word. */
// @ts-ignore: decorator
@inline
function tail(at: usize, length: i32): u64 {
  let s: u64 = 0;
  if (length & 8) {
    const w = load<u64>(at);
    s += (w & 0xffffffff) + (w >> 32);
    at += 8;
  }
  if (length & 4) {
    s += load<u32>(at);
    at += 4;
  }
  if (length & 2) {
    s += load<u16>(at);
    at += 2;
  }
  if (length & 1) s += load<u8>(at);
  return s;
}

/** Sum of `length` bytes at `at`, folded to 16 bits, on top of `seed`. */
export function sum(at: usize, length: i32, seed: u32): u32 {
  return fold(sumWide(at, length) + seed);
}

// @ts-ignore: decorator
@inline
export function sumWide(at: usize, length: i32): u64 {
  let a = i32x4.splat(0);
  let b = i32x4.splat(0);
  let c = i32x4.splat(0);
  let d = i32x4.splat(0);
  let n = length;
  for (; n >= 64; n -= 64, at += 64) {
    a = i32x4.add(a, i32x4.extadd_pairwise_i16x8_u(v128.load(at)));
    b = i32x4.add(b, i32x4.extadd_pairwise_i16x8_u(v128.load(at, 16)));
    c = i32x4.add(c, i32x4.extadd_pairwise_i16x8_u(v128.load(at, 32)));
    d = i32x4.add(d, i32x4.extadd_pairwise_i16x8_u(v128.load(at, 48)));
  }
  for (; n >= 16; n -= 16, at += 16) a = i32x4.add(a, i32x4.extadd_pairwise_i16x8_u(v128.load(at)));
  a = i32x4.add(i32x4.add(a, b), i32x4.add(c, d));
  return lanes(a) + tail(at, n);
}

/** Copies the last 0 to 15 bytes. */
// @ts-ignore: decorator
@inline
function copyTail(to: usize, from: usize, length: i32): void {
  let i = 0;
  if (length & 8) {
    store<u64>(to, load<u64>(from));
    i = 8;
  }
  if (length & 4) {
    store<u32>(to + i, load<u32>(from + i));
    i += 4;
  }
  if (length & 2) {
    store<u16>(to + i, load<u16>(from + i));
    i += 2;
  }
  if (length & 1) store<u8>(to + i, load<u8>(from + i));
}

/** Copies and sums at once, upwards: `to` below `from`, or apart. */
// @ts-ignore: decorator
@inline
export function copySumUp(to: usize, from: usize, length: i32): u64 {
  let a = i32x4.splat(0);
  let b = i32x4.splat(0);
  let n = length;
  for (; n >= 32; n -= 32, from += 32, to += 32) {
    const v = v128.load(from);
    const w = v128.load(from, 16);
    v128.store(to, v);
    v128.store(to, w, 16);
    a = i32x4.add(a, i32x4.extadd_pairwise_i16x8_u(v));
    b = i32x4.add(b, i32x4.extadd_pairwise_i16x8_u(w));
  }
  if (n >= 16) {
    const v = v128.load(from);
    v128.store(to, v);
    a = i32x4.add(a, i32x4.extadd_pairwise_i16x8_u(v));
    n -= 16;
    from += 16;
    to += 16;
  }
  const rest = tail(from, n);
  copyTail(to, from, n);
  return lanes(i32x4.add(a, b)) + rest;
}

/** Copies and sums at once, downwards: `to` above `from` by 16 bytes or more, or by 0. */
// @ts-ignore: decorator
@inline
export function copySumDown(to: usize, from: usize, length: i32): u64 {
  let a = i32x4.splat(0);
  let b = i32x4.splat(0);
  const odd = length & 15;
  let n: i32 = length - odd;
  const rest = tail(from + n, odd);
  copyTail(to + n, from + n, odd);
  if (n & 16) {
    n -= 16;
    const v = v128.load(from + n);
    v128.store(to + n, v);
    a = i32x4.add(a, i32x4.extadd_pairwise_i16x8_u(v));
  }
  while (n > 0) {
    n -= 32;
    // Both loads come before the stores: the two ranges may overlap by all but 16 bytes.
    const v = v128.load(from + n);
    const w = v128.load(from + n, 16);
    v128.store(to + n, v);
    v128.store(to + n, w, 16);
    a = i32x4.add(a, i32x4.extadd_pairwise_i16x8_u(v));
    b = i32x4.add(b, i32x4.extadd_pairwise_i16x8_u(w));
  }
  return lanes(i32x4.add(a, b)) + rest;
}

/** Copies `length` bytes between ranges that do not overlap. */
export function copy(to: usize, from: usize, length: i32): void {
  let n = length;
  for (; n >= 16; n -= 16, from += 16, to += 16) v128.store(to, v128.load(from));
  copyTail(to, from, n);
}

/**
 * Completes a checksum that the sender left to the device: the field at `start + offset` holds the folded pseudo-header
 * sum, and becomes the checksum of `length - start` bytes. A result of 0 is stored as 0xffff, as the kernel does.
 */
export function finish(at: usize, length: i32, start: i32, offset: i32): void {
  const s = ~fold(sumWide(at + start, length - start)) & 0xffff;
  store<u16>(at + start + offset, s == 0 ? 0xffff : s);
}
