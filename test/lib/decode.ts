/**
 * The tests' independent reader of packets: binary-parser takes the fields apart, the byte loop of packets.ts checks the
 * sums. It shares no code with the engine. `decode` throws on anything that a strict host would not take.
 */
import { Parser } from 'binary-parser';
import { checksum, ICMP, ICMPV6, onesSum, pseudoSum, TCP, UDP } from './packets.js';

interface RawIpv4 {
  version: number;
  ihl: number;
  dscp: number;
  ecn: number;
  totalLength: number;
  id: number;
  reserved: number;
  df: number;
  mf: number;
  offset: number;
  ttl: number;
  protocol: number;
  checksum: number;
  source: Uint8Array;
  destination: Uint8Array;
}

const ipv4Parser = new Parser()
  .endianess('big')
  .bit4('version')
  .bit4('ihl')
  .bit6('dscp')
  .bit2('ecn')
  .uint16('totalLength')
  .uint16('id')
  .bit1('reserved')
  .bit1('df')
  .bit1('mf')
  .bit13('offset')
  .uint8('ttl')
  .uint8('protocol')
  .uint16('checksum')
  .buffer('source', { length: 4 })
  .buffer('destination', { length: 4 });

interface RawIpv6 {
  version: number;
  dscp: number;
  ecn: number;
  flow: number;
  payloadLength: number;
  next: number;
  hopLimit: number;
  source: Uint8Array;
  destination: Uint8Array;
}

const ipv6Parser = new Parser()
  .endianess('big')
  .bit4('version')
  .bit6('dscp')
  .bit2('ecn')
  .bit20('flow')
  .uint16('payloadLength')
  .uint8('next')
  .uint8('hopLimit')
  .buffer('source', { length: 16 })
  .buffer('destination', { length: 16 });

interface RawTcp {
  from: number;
  to: number;
  seq: number;
  ack: number;
  dataOffset: number;
  reserved: number;
  flags: number;
  window: number;
  checksum: number;
  urgent: number;
}

const tcpParser = new Parser()
  .endianess('big')
  .uint16('from')
  .uint16('to')
  .uint32('seq')
  .uint32('ack')
  .bit4('dataOffset')
  .bit4('reserved')
  .bit8('flags')
  .uint16('window')
  .uint16('checksum')
  .uint16('urgent');

interface RawUdp {
  from: number;
  to: number;
  length: number;
  checksum: number;
}

const udpParser = new Parser().endianess('big').uint16('from').uint16('to').uint16('length').uint16('checksum');

interface RawIcmp {
  type: number;
  code: number;
  checksum: number;
  word: number;
}

const icmpParser = new Parser().endianess('big').uint8('type').uint8('code').uint16('checksum').uint32('word');

const vnetParser = new Parser()
  .endianess('little')
  .uint8('flags')
  .uint8('type')
  .uint16('headerLength')
  .uint16('size')
  .uint16('start')
  .uint16('offset');

export interface DecodedVnet {
  readonly flags: number;
  readonly type: number;
  readonly headerLength: number;
  readonly size: number;
  readonly start: number;
  readonly offset: number;
}

export const decodeVnet = (bytes: Uint8Array): DecodedVnet => vnetParser.parse(bytes) as DecodedVnet;

export interface Decoded {
  readonly family: 4 | 6;
  readonly source: string;
  readonly destination: string;
  readonly ttl: number;
  readonly tos: number;
  readonly ecn: number;
  /** IPv4 only. */
  readonly id: number;
  readonly df: boolean;
  readonly mf: boolean;
  /** Fragment offset in bytes. */
  readonly offset: number;
  readonly options: Uint8Array;
  readonly flow: number;
  /** IPv6 extension headers, whole. */
  readonly extensions: Uint8Array;
  readonly protocol: number;
  /** Transport header and payload. */
  readonly l4: Uint8Array;
  readonly l4At: number;
  readonly tcp?: RawTcp & { readonly options: Uint8Array };
  readonly udp?: RawUdp;
  readonly icmp?: RawIcmp;
  /** What follows the transport header. */
  readonly payload: Uint8Array;
}

function must(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(what);
}

const text = (bytes: Uint8Array): string =>
  bytes.length === 4 ? bytes.join('.') : Array.from({ length: 8 }, (_, i) => hex16(bytes, i)).join(':');
const hex16 = (bytes: Uint8Array, i: number): string => ((bytes[i * 2] << 8) | bytes[i * 2 + 1]).toString(16);

/**
 * Takes a packet apart. Lengths, header checksum and (unless `partial`, or for fragments) the transport checksum must be
 * right. `partial`: the transport checksum must be the folded pseudo-header sum, as a virtio NEEDS_CSUM packet has it.
 * `quoted`: a packet cut short inside an ICMP error; then lengths may say more and no transport checksum is looked at.
 */
export function decode(bytes: Uint8Array, how: 'full' | 'partial' | 'quoted' = 'full'): Decoded {
  must(bytes.length > 0, 'empty packet');
  return bytes[0] >> 4 === 4 ? decode4(bytes, how) : decode6(bytes, how);
}

function decode4(bytes: Uint8Array, how: 'full' | 'partial' | 'quoted'): Decoded {
  must(bytes.length >= 20, `IPv4 header of ${bytes.length} bytes`);
  const header = ipv4Parser.parse(bytes) as RawIpv4;
  const l4At = header.ihl * 4;
  must(header.version === 4, `version ${header.version}`);
  must(l4At >= 20 && l4At <= bytes.length, `header length ${l4At} of ${bytes.length}`);
  must(onesSum(bytes.subarray(0, l4At)) === 0xffff, 'IPv4 header checksum is wrong');
  must(
    how === 'quoted' ? header.totalLength >= bytes.length : header.totalLength === bytes.length,
    `total length ${header.totalLength}, packet ${bytes.length}`,
  );
  const fragment = header.mf === 1 || header.offset > 0;
  const rest = bytes.subarray(l4At);
  return {
    family: 4,
    source: text(header.source),
    destination: text(header.destination),
    ttl: header.ttl,
    tos: (header.dscp << 2) | header.ecn,
    ecn: header.ecn,
    id: header.id,
    df: header.df === 1,
    mf: header.mf === 1,
    offset: header.offset * 8,
    options: bytes.slice(20, l4At),
    flow: 0,
    extensions: new Uint8Array(0),
    protocol: header.protocol,
    l4: rest.slice(),
    l4At,
    ...transport(header.protocol, rest, fragment || how === 'quoted' ? 'skip' : how, header.source, header.destination),
  };
}

function decode6(bytes: Uint8Array, how: 'full' | 'partial' | 'quoted'): Decoded {
  must(bytes.length >= 40, `IPv6 header of ${bytes.length} bytes`);
  const header = ipv6Parser.parse(bytes) as RawIpv6;
  must(header.version === 6, `version ${header.version}`);
  const left = bytes.length - 40;
  must(
    how === 'quoted' ? header.payloadLength >= left : header.payloadLength === left,
    `payload length ${header.payloadLength}, packet ${left}`,
  );
  let next = header.next;
  let at = 40;
  let fragment = false;
  while (next === 0 || next === 43 || next === 44 || next === 60) {
    must(at + 8 <= bytes.length, 'extension header beyond the packet');
    if (next === 44) fragment = true;
    const units = next === 44 ? 1 : bytes[at + 1] + 1;
    next = bytes[at];
    at += units * 8;
  }
  must(at <= bytes.length, 'extension header beyond the packet');
  const rest = bytes.subarray(at);
  return {
    family: 6,
    source: text(header.source),
    destination: text(header.destination),
    ttl: header.hopLimit,
    tos: (header.dscp << 2) | header.ecn,
    ecn: header.ecn,
    id: 0,
    df: true,
    mf: false,
    offset: 0,
    options: new Uint8Array(0),
    flow: header.flow,
    extensions: bytes.slice(40, at),
    protocol: next,
    l4: rest.slice(),
    l4At: at,
    ...transport(next, rest, fragment || how === 'quoted' ? 'skip' : how, header.source, header.destination),
  };
}

function transport(
  protocol: number,
  bytes: Uint8Array,
  how: 'full' | 'partial' | 'skip',
  source: Uint8Array,
  destination: Uint8Array,
): Pick<Decoded, 'tcp' | 'udp' | 'icmp' | 'payload'> {
  if (how === 'skip') return { payload: bytes.slice() };
  const pseudo = protocol === ICMP ? 0 : pseudoSum(source, destination, protocol, bytes.length);
  const verify = (at: number): void => {
    const field = (bytes[at] << 8) | bytes[at + 1];
    if (how === 'partial') must(field === pseudo, `partial checksum ${field}, pseudo-header sum ${pseudo}`);
    else must(checksum(bytes, pseudo) === 0, `transport checksum ${field} of protocol ${protocol} is wrong`);
  };
  if (protocol === TCP) {
    must(bytes.length >= 20, 'TCP header is short');
    const tcp = tcpParser.parse(bytes) as RawTcp;
    const header = tcp.dataOffset * 4;
    must(header >= 20 && header <= bytes.length, `TCP header of ${header} bytes in ${bytes.length}`);
    verify(16);
    return { tcp: { ...tcp, options: bytes.slice(20, header) }, payload: bytes.slice(header) };
  }
  if (protocol === UDP) {
    must(bytes.length >= 8, 'UDP header is short');
    const udp = udpParser.parse(bytes) as RawUdp;
    must(udp.length === bytes.length, `UDP length ${udp.length} of ${bytes.length}`);
    if (udp.checksum !== 0) verify(6);
    return { udp, payload: bytes.slice(8) };
  }
  if (protocol === ICMP || protocol === ICMPV6) {
    must(bytes.length >= 8, 'ICMP header is short');
    must(how !== 'partial', 'ICMP checksums are never partial');
    verify(2);
    return { icmp: icmpParser.parse(bytes) as RawIcmp, payload: bytes.slice(8) };
  }
  return { payload: bytes.slice() };
}

/** Puts fragments together (RFC 791 3.2), in any order; throws if any byte is missing, doubled, or headers disagree. */
export function reassemble(fragments: readonly Uint8Array[]): Uint8Array {
  const parts = fragments
    .map((bytes) => ({ bytes, ip: decode4(bytes, 'full') }))
    .sort((a, b) => a.ip.offset - b.ip.offset);
  const first = parts[0];
  let filled = 0;
  for (const [i, { ip }] of parts.entries()) {
    const last = i === parts.length - 1;
    must(ip.offset === filled, `fragment at ${ip.offset}, expected ${filled}`);
    must(ip.mf === !last, `MF ${ip.mf} on fragment ${i} of ${parts.length}`);
    must(last || ip.l4.length % 8 === 0, 'a fragment that is not the last must be a multiple of 8');
    must(!ip.df, 'DF on a fragment');
    for (const key of ['source', 'destination', 'id', 'ttl', 'tos', 'protocol'] as const) {
      must(ip[key] === first.ip[key], `fragments differ in ${key}`);
    }
    filled += ip.l4.length;
  }
  const header = first.bytes.slice(0, first.ip.l4At);
  const whole = new Uint8Array(header.length + filled);
  whole.set(header);
  for (const { ip } of parts) whole.set(ip.l4, header.length + ip.offset);
  const view = new DataView(whole.buffer);
  view.setUint16(2, whole.length);
  view.setUint16(6, 0);
  view.setUint16(10, 0);
  view.setUint16(10, checksum(whole.subarray(0, header.length)));
  return whole;
}
