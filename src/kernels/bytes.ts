// Small moves that both directions need.

/** Swaps the bytes of a 16-bit number: between network order and a little-endian load. */
// @ts-ignore: decorator
@inline
export function swap16(v: u32): u32 {
  return ((v & 0xff) << 8) | ((v >> 8) & 0xff);
}

/** Copies exactly `length` bytes, an even number, between ranges that do not overlap. */
// @ts-ignore: decorator
@inline
export function copyHeaders(to: usize, from: usize, length: i32): void {
  let i = 0;
  for (; i + 8 <= length; i += 8) store<u64>(to + i, load<u64>(from + i));
  if (length & 4) {
    store<u32>(to + i, load<u32>(from + i));
    i += 4;
  }
  if (length & 2) store<u16>(to + i, load<u16>(from + i));
}

/** Whether `length` bytes, an even number, are the same. */
// @ts-ignore: decorator
@inline
export function sameBytes(a: usize, b: usize, length: i32): bool {
  let i = 0;
  for (; i + 8 <= length; i += 8) if (load<u64>(a + i) != load<u64>(b + i)) return false;
  if (length & 4) {
    if (load<u32>(a + i) != load<u32>(b + i)) return false;
    i += 4;
  }
  return !(length & 2) || load<u16>(a + i) == load<u16>(b + i);
}
