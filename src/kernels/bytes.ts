// Small moves that both directions need.

/** Swaps the bytes of a 16-bit number: between network order and a little-endian load. */
// @ts-ignore: decorator
@inline
export function swap16(v: u32): u32 {
  return ((v & 0xff) << 8) | ((v >> 8) & 0xff);
}

/** Copies exactly `length` bytes, a multiple of 4, between ranges that do not overlap. */
// @ts-ignore: decorator
@inline
export function copyHeaders(to: usize, from: usize, length: i32): void {
  let i = 0;
  for (; i + 8 <= length; i += 8) store<u64>(to + i, load<u64>(from + i));
  if (i < length) store<u32>(to + i, load<u32>(from + i));
}
