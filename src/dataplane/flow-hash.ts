/**
 * The flow that a frame belongs to, as a number: what picks the outer source port (RFC 7348 4.1). The same for all frames of a
 * flow, so that they stay in order; fragments have no ports to tell, so all of a pair of hosts go one way.
 */
import * as ethernet from '../packet/ethernet.js';
import * as ip from '../packet/ip.js';

/** 32 bits. `version` of the IP packet at `packet` (0: none) in the frame of `length` bytes at `at`. */
export function flowHash(view: DataView, version: number, packet: number, at: number, length: number): number {
  let h: number;
  if (version === 4) {
    h = Math.imul(view.getInt32(packet + ip.IPV4_SOURCE), 0x85ebca6b) ^ view.getInt32(packet + ip.IPV4_DESTINATION);
    const protocol = view.getUint8(packet + ip.IPV4_PROTOCOL);
    const ports = packet + ((view.getUint8(packet) & 15) << 2);
    const whole = (view.getUint16(packet + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) === 0;
    if (whole && hasPorts(protocol) && ports + 4 <= at + length) h ^= Math.imul(view.getInt32(ports), 0x9e3779b1);
    h ^= protocol;
  } else if (version === 6) {
    h = 0;
    for (let i = ip.IPV6_SOURCE; i < ip.IPV6_HEADER; i += 4) h = Math.imul(h, 0x85ebca6b) ^ view.getInt32(packet + i);
    const protocol = view.getUint8(packet + ip.IPV6_NEXT_HEADER);
    const ports = packet + ip.IPV6_HEADER;
    if (hasPorts(protocol) && ports + 4 <= at + length) h ^= Math.imul(view.getInt32(ports), 0x9e3779b1);
    h ^= protocol;
  } else {
    h = Math.imul(view.getInt32(at), 0x85ebca6b) ^ Math.imul(view.getInt32(at + 4), 0x9e3779b1);
    h ^= view.getInt32(at + ethernet.SOURCE + 2);
  }
  h = Math.imul(h ^ (h >>> 16), 0x45d9f3b);
  return Math.imul(h ^ (h >>> 16), 0x45d9f3b) ^ (h >>> 13);
}

const hasPorts = (protocol: number): boolean => protocol === ip.PROTOCOL_TCP || protocol === ip.PROTOCOL_UDP;
