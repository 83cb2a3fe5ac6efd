/**
 * IPv4 fragmentation (RFC 791 3.2) of a packet that may be fragmented and does not fit its peer's path. A slow path: the
 * host knows the device's MTU, so this happens only for a peer whose path is smaller.
 */
import type { EngineMemory } from '../io/memory.js';
import * as ip from '../packet/ip.js';

/**
 * Writes the fragments of the packet at `at` one behind the other, beginning at `at`, and returns how many there are, each
 * `header + fragmentPayload(…)` long but the last. The `prefix` bytes before the packet are copied to before each of them.
 * `scratch` is room for a copy of the packet.
 *
 * Options are carried in every fragment: those that need not be copied are harmless there, and RFC 791 lets the receiver use
 * the first fragment's.
 */
export function fragmentIpv4(
  memory: EngineMemory,
  view: DataView,
  at: number,
  length: number,
  mtu: number,
  scratch: number,
  prefix: number,
): number {
  const { u8 } = memory;
  const header = (view.getUint8(at) & 15) << 2;
  const unit = fragmentPayload(header, mtu);
  const word = view.getUint16(at + ip.IPV4_FRAGMENT);
  u8.copyWithin(scratch, at, at + length);
  let to = at;
  let count = 0;
  for (let offset = 0; header + offset < length; offset += unit, count++) {
    const bytes = Math.min(unit, length - header - offset);
    const last = header + offset + bytes === length;
    if (count > 0) u8.copyWithin(to - prefix, at - prefix, at);
    u8.copyWithin(to, scratch, scratch + header);
    u8.copyWithin(to + header, scratch + header + offset, scratch + header + offset + bytes);
    view.setUint16(to + ip.IPV4_TOTAL_LENGTH, header + bytes);
    const more = last ? word & ip.IPV4_MF : ip.IPV4_MF;
    view.setUint16(to + ip.IPV4_FRAGMENT, ((word & ip.IPV4_OFFSET_MASK) + (offset >> 3)) | more);
    ip.writeHeaderChecksum(view, to, header);
    to += header + bytes + prefix;
  }
  return count;
}

/** Payload bytes of every fragment but the last: a multiple of 8. */
export const fragmentPayload = (header: number, mtu: number): number => (mtu - header) & ~7;
