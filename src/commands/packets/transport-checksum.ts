/** Checksums of TCP, UDP and ICMP (RFC 1071), as a receiver would see them. */
import { onesSum } from '../../packet/checksum.js';
import type { Checksum } from './layers.js';

/** `segment`: from the header on, all of it; `at`: where the field is in it; `pseudo`: the sum of the pseudo-header, 0: it has none. */
export function checksumOf(segment: Uint8Array, at: number, pseudo: number): Checksum {
  const field = (segment[at] << 8) | segment[at + 1];
  if (onesSum(segment, pseudo) === 0xffff) return 'good';
  // Who leaves it to the device writes the sum of the pseudo-header there (linux/skbuff.h, CHECKSUM_PARTIAL).
  return pseudo !== 0 && field === pseudo ? 'offload' : 'wrong';
}
