/**
 * The outer headers of a datagram, which the engine never sees: the kernel makes them and takes them off. For a capture they are
 * made again, from what is known (addresses, ports, TOS) and as the kernel makes them (TTL 64, DF), with right lengths and checksums.
 */
import { parseAddress } from '../../control/cidr.js';
import type { CapturedOuter, CaptureHead } from '../../inspect/capture-frames.js';
import { onesSum, pseudoSum } from '../../packet/checksum.js';
import {
  IPV4_DESTINATION,
  IPV4_DF,
  IPV4_FRAGMENT,
  IPV4_HEADER,
  IPV4_PROTOCOL,
  IPV4_SOURCE,
  IPV4_TOS,
  IPV4_TOTAL_LENGTH,
  IPV4_TTL,
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_HOP_LIMIT,
  IPV6_NEXT_HEADER,
  IPV6_PAYLOAD_LENGTH,
  IPV6_SOURCE,
  PROTOCOL_UDP,
  writeHeaderChecksum,
} from '../../packet/ip.js';

const UDP_HEADER = 8;
const TTL = 64;
/** Longest IP and UDP headers. */
export const MOST_OUTER = IPV6_HEADER + UDP_HEADER;

/** A UDP payload; `bytes` may be fewer than it had. */
export interface Datagram {
  readonly outer: CapturedOuter;
  /** Our own underlay address of that family. */
  readonly own: Uint8Array;
  readonly inbound: boolean;
  readonly bytes: Uint8Array;
  readonly length: number;
}

/** IP and UDP headers. A checksum over bytes that were cut off is 0. */
export function outerHeaders({ outer, own, inbound, bytes, length }: Datagram): Uint8Array {
  const udp = outer.family === 4 ? IPV4_HEADER : IPV6_HEADER;
  const headers = new Uint8Array(udp + UDP_HEADER);
  const view = new DataView(headers.buffer);
  const [source, destination] = inbound ? [outer.address, own] : [own, outer.address];
  const [from, to] = inbound ? [outer.port, outer.ownPort] : [outer.ownPort, outer.port];
  if (outer.family === 4) {
    view.setUint8(0, 0x45);
    view.setUint8(IPV4_TOS, outer.tos);
    view.setUint16(IPV4_TOTAL_LENGTH, IPV4_HEADER + UDP_HEADER + length);
    view.setUint16(IPV4_FRAGMENT, IPV4_DF);
    view.setUint8(IPV4_TTL, TTL);
    view.setUint8(IPV4_PROTOCOL, PROTOCOL_UDP);
    headers.set(source, IPV4_SOURCE);
    headers.set(destination, IPV4_DESTINATION);
    writeHeaderChecksum(view, 0, IPV4_HEADER);
  } else {
    view.setUint32(0, (6 << 28) | (outer.tos << 20));
    view.setUint16(IPV6_PAYLOAD_LENGTH, UDP_HEADER + length);
    view.setUint8(IPV6_NEXT_HEADER, PROTOCOL_UDP);
    view.setUint8(IPV6_HOP_LIMIT, TTL);
    headers.set(source, IPV6_SOURCE);
    headers.set(destination, IPV6_DESTINATION);
  }
  view.setUint16(udp, from);
  view.setUint16(udp + 2, to);
  view.setUint16(udp + 4, UDP_HEADER + length);
  if (bytes.length === length) {
    const sum = pseudoSum(source, destination, PROTOCOL_UDP, UDP_HEADER + length);
    const checksum = ~onesSum(bytes, onesSum(headers.subarray(udp), sum)) & 0xffff;
    // 0 would say that there is none (RFC 768).
    view.setUint16(udp + 6, checksum === 0 ? 0xffff : checksum);
  }
  return headers;
}

/** Our own underlay address of a family; all zero if there is none. */
export function ownAddress({ underlay }: CaptureHead, family: 4 | 6): Uint8Array {
  for (const text of underlay.addresses) {
    const address = parseAddress(text);
    if (address.family === family) return address.bytes;
  }
  return new Uint8Array(family === 4 ? 4 : 16);
}
