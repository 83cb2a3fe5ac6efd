/** The internet checksum (RFC 1071) of bytes that are not in the engine's memory; on the packet path the kernels sum. */

/** The folded one's complement sum of `bytes`, in network byte order, an odd last byte padded with zero, and `initial`. */
export function onesSum(bytes: Uint8Array, initial = 0): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let sum = initial;
  let at = 0;
  // Two words at once: 2^16 is 1 modulo 2^16 - 1, and the sum of any packet is far below 2^53.
  for (; at + 3 < bytes.length; at += 4) sum += view.getUint32(at);
  if (at + 1 < bytes.length) {
    sum += view.getUint16(at);
    at += 2;
  }
  if (at < bytes.length) sum += bytes[at] << 8;
  while (sum > 0xffff) sum = (sum % 0x10000) + Math.floor(sum / 0x10000);
  return sum;
}

/** Of the pseudo-header (RFC 768, RFC 8200 8.1): two addresses, protocol and length. */
export const pseudoSum = (source: Uint8Array, destination: Uint8Array, protocol: number, length: number): number =>
  onesSum(source, onesSum(destination, protocol + length));
