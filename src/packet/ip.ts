/**
 * IPv4 (RFC 791) and IPv6 (RFC 8200) headers: offsets, the one check that every packet passes first, and the few writes
 * that a router makes. `at` is the byte offset of the header in `view`; a check never reads outside [at, at + length).
 */

export const IPV4_TOS = 1;
export const IPV4_TOTAL_LENGTH = 2;
export const IPV4_ID = 4;
/** Flags (3 bits: 0, DF, MF) and fragment offset (13 bits, units of 8 bytes). */
export const IPV4_FRAGMENT = 6;
export const IPV4_TTL = 8;
export const IPV4_PROTOCOL = 9;
export const IPV4_CHECKSUM = 10;
export const IPV4_SOURCE = 12;
export const IPV4_DESTINATION = 16;
export const IPV4_HEADER = 20;
export const IPV4_DF = 0x4000;
export const IPV4_MF = 0x2000;
export const IPV4_OFFSET_MASK = 0x1fff;

export const IPV6_PAYLOAD_LENGTH = 4;
export const IPV6_NEXT_HEADER = 6;
export const IPV6_HOP_LIMIT = 7;
export const IPV6_SOURCE = 8;
export const IPV6_DESTINATION = 24;
export const IPV6_HEADER = 40;

export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_ICMPV6 = 58;
export const NEXT_HOP_BY_HOP = 0;
export const NEXT_ROUTING = 43;
export const NEXT_FRAGMENT = 44;
export const NEXT_DESTINATION = 60;

/** Why a packet is not one. The numbers are offsets from the walk's first `bad …` counter. */
export const GOOD = 0;
export const BAD_SHORT = 1;
export const BAD_VERSION = 2;
export const BAD_HEADER_LENGTH = 3;
export const BAD_TOTAL_LENGTH = 4;
export const BAD_CHECKSUM = 5;

/** GOOD, or why the `length` bytes at `at` are not a well-formed IP packet. */
export function checkIp(view: DataView, at: number, length: number): number {
  if (length < 1) return BAD_SHORT;
  const first = view.getUint8(at);
  if (first >> 4 === 4) return checkIpv4(view, at, length, first);
  if (first >> 4 !== 6) return BAD_VERSION;
  if (length < IPV6_HEADER) return BAD_SHORT;
  return view.getUint16(at + IPV6_PAYLOAD_LENGTH) === length - IPV6_HEADER ? GOOD : BAD_TOTAL_LENGTH;
}

function checkIpv4(view: DataView, at: number, length: number, first: number): number {
  if (length < IPV4_HEADER) return BAD_SHORT;
  const header = (first & 15) << 2;
  if (header < IPV4_HEADER || header > length) return BAD_HEADER_LENGTH;
  if (view.getUint16(at + IPV4_TOTAL_LENGTH) !== length) return BAD_TOTAL_LENGTH;
  return headerSum(view, at, header) === 0xffff ? GOOD : BAD_CHECKSUM;
}

/** The folded one's complement sum of an IPv4 header in little-endian words: 0xffff if its checksum is right. */
export function headerSum(view: DataView, at: number, header: number): number {
  let sum = 0;
  for (let i = 0; i < header; i += 4) {
    const word = view.getInt32(at + i, true);
    sum += (word & 0xffff) + (word >>> 16);
  }
  sum = (sum & 0xffff) + (sum >>> 16);
  return (sum & 0xffff) + (sum >>> 16);
}

/** Computes and writes an IPv4 header checksum. */
export function writeHeaderChecksum(view: DataView, at: number, header: number): void {
  view.setUint16(at + IPV4_CHECKSUM, 0);
  view.setUint16(at + IPV4_CHECKSUM, ~headerSum(view, at, header), true);
}

/** Takes one from an IPv4 TTL above 0 and updates the checksum (RFC 1624 eqn. 3; never to 0xffff, as Linux does). */
export function decrementTtl(view: DataView, at: number): void {
  view.setUint8(at + IPV4_TTL, view.getUint8(at + IPV4_TTL) - 1);
  const sum = view.getUint16(at + IPV4_CHECKSUM, true) + 1;
  view.setUint16(at + IPV4_CHECKSUM, sum >= 0xffff ? sum + 1 : sum, true);
}

/** The TOS byte or traffic class (RFC 2474): DSCP in the high 6 bits, ECN in the low 2. */
export function tosOf(view: DataView, at: number): number {
  return view.getUint8(at) >> 4 === 4 ? view.getUint8(at + IPV4_TOS) : (view.getUint16(at) >> 4) & 255;
}

/** The ECN field (RFC 3168): 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE. */
export function ecnOf(view: DataView, at: number): number {
  const byte = view.getUint8(at + 1);
  return view.getUint8(at) >> 4 === 4 ? byte & 3 : (byte >> 4) & 3;
}

/** Writes the ECN field and, for IPv4, updates the checksum (RFC 1624). */
export function writeEcn(view: DataView, at: number, ecn: number): void {
  const byte = view.getUint8(at + 1);
  if (view.getUint8(at) >> 4 === 6) {
    view.setUint8(at + 1, (byte & 0xcf) | (ecn << 4));
    return;
  }
  const old = view.getUint16(at);
  view.setUint8(at + IPV4_TOS, (byte & 0xfc) | ecn);
  let sum = (~view.getUint16(at + IPV4_CHECKSUM) & 0xffff) + (~old & 0xffff) + view.getUint16(at);
  sum = (sum & 0xffff) + (sum >>> 16);
  sum = (sum & 0xffff) + (sum >>> 16);
  view.setUint16(at + IPV4_CHECKSUM, ~sum);
}
