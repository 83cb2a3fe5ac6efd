/**
 * ICMP and ICMPv6 echo (RFC 792, RFC 4443 4.1), and what an ICMP error says of a packet that we sent. For `weft ping`; the packet path
 * makes no echoes. Reading never throws: what is too short, or something else, is undefined.
 */
import { onesSum } from './checksum.js';
import { PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP } from './ip.js';

const HEADER = 8;
const ECHO_REQUEST = { 4: 8, 6: 128 } as const;
const ECHO_REPLY = { 4: 0, 6: 129 } as const;
/** Bytes of an IP header without options or extension headers. */
export const IP_HEADER = { 4: 20, 6: 40 } as const;
/** The least that has room for a token. */
const ECHO_LEAST = 16;

export type Family = 4 | 6;

/** What tells our echoes from those of others. */
export interface EchoMark {
  /** 16 bits. */
  readonly id: number;
  /** 32 bits, in the payload. */
  readonly token: number;
}

export interface EchoReply {
  readonly kind: 'reply';
  readonly sequence: number;
}

/** An ICMP error, and what it quotes. */
export interface IcmpError {
  readonly kind: 'error';
  readonly type: number;
  readonly code: number;
  /** Too big: bytes that the next link takes, if it says so. */
  readonly mtu: number | undefined;
  /** Destination of the packet that it is about, 4 or 16 bytes. */
  readonly to: Uint8Array;
  /** Sequence number, if that was an echo with our id. */
  readonly sequence: number | undefined;
  /** UDP destination port, if that was a datagram. */
  readonly udpPort: number | undefined;
}

/** An echo request of `length` bytes, at least ECHO_LEAST, from the ICMP header on. ICMPv6's checksum is the kernel's work. */
export function echoRequest(family: Family, { id, token }: EchoMark, sequence: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  bytes[0] = ECHO_REQUEST[family];
  view.setUint16(4, id);
  view.setUint16(6, sequence);
  view.setUint32(HEADER, token);
  for (let at = HEADER + 4; at < length; at++) bytes[at] = at;
  if (family === 4) view.setUint16(2, ~onesSum(bytes) & 0xffff);
  return bytes;
}

/** Where the ICMP message begins in what a raw IPv4 socket gives; -1: nowhere. */
export function icmpOffset(packet: Uint8Array): number {
  const header = (packet[0] & 15) * 4;
  return header >= IP_HEADER[4] && packet.length >= header + HEADER ? header : -1;
}

/** An ICMP message, from its header on: an answer to our echo, or an error about anything. */
export function readIcmp(family: Family, message: Uint8Array, mark: EchoMark): EchoReply | IcmpError | undefined {
  if (message.length < HEADER) return undefined;
  const view = new DataView(message.buffer, message.byteOffset, message.length);
  const type = message[0];
  if (type === ECHO_REPLY[family]) {
    const ours = message.length >= ECHO_LEAST && view.getUint16(4) === mark.id && view.getUint32(HEADER) === mark.token;
    return ours ? { kind: 'reply', sequence: view.getUint16(6) } : undefined;
  }
  return family === 4 ? readError4(view, mark) : readError6(view, mark);
}

function readError4(view: DataView, { id }: EchoMark): IcmpError | undefined {
  const [type, code] = [view.getUint8(0), view.getUint8(1)];
  if (type !== 3 && type !== 11) return undefined;
  const header = view.byteLength >= HEADER + IP_HEADER[4] ? (view.getUint8(HEADER) & 15) * 4 : 0;
  const inner = HEADER + header;
  if (header < IP_HEADER[4] || view.byteLength < inner + HEADER) return undefined;
  const mtu = type === 3 && code === 4 ? view.getUint16(6) : 0;
  const quoted = quotedAt(view, inner, view.getUint8(HEADER + 9), PROTOCOL_ICMP, ECHO_REQUEST[4], id);
  return { kind: 'error', type, code, mtu: mtu || undefined, to: bytesAt(view, HEADER + 16, 4), ...quoted };
}

function readError6(view: DataView, { id }: EchoMark): IcmpError | undefined {
  const [type, code] = [view.getUint8(0), view.getUint8(1)];
  const inner = HEADER + IP_HEADER[6];
  if (type < 1 || type > 3 || view.byteLength < inner + HEADER) return undefined;
  const mtu = type === 2 ? view.getUint32(4) : 0;
  const quoted = quotedAt(view, inner, view.getUint8(HEADER + 6), PROTOCOL_ICMPV6, ECHO_REQUEST[6], id);
  return { kind: 'error', type, code, mtu: mtu || undefined, to: bytesAt(view, HEADER + 24, 16), ...quoted };
}

/** What an error quotes behind the IP header: an echo of ours, or the port of a datagram. */
function quotedAt(
  view: DataView,
  at: number,
  protocol: number,
  icmp: number,
  request: number,
  id: number,
): Pick<IcmpError, 'sequence' | 'udpPort'> {
  const ours = protocol === icmp && view.getUint8(at) === request && view.getUint16(at + 4) === id;
  return {
    sequence: ours ? view.getUint16(at + 6) : undefined,
    udpPort: protocol === PROTOCOL_UDP ? view.getUint16(at + 2) : undefined,
  };
}

const bytesAt = (view: DataView, at: number, length: number): Uint8Array =>
  new Uint8Array(view.buffer, view.byteOffset + at, length).slice();
