/**
 * Packets for the tests, built field by field and checksummed by a byte loop: slow and obvious on purpose, and sharing no
 * code with the engine. Everything is in network byte order unless a name says otherwise.
 */
import type { DevicePacket } from '../../src/io/memory-device.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';

/** RFC 1071: the one's complement sum of 16-bit big-endian words, an odd last byte padded with zero. Not complemented. */
export function onesSum(bytes: Uint8Array, seed = 0): number {
  let sum = seed;
  for (let i = 0; i < bytes.length; i++) {
    sum += i % 2 === 0 ? bytes[i] * 256 : bytes[i];
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

export const checksum = (bytes: Uint8Array, seed = 0): number => 0xffff - onesSum(bytes, seed);

export function concat(...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const be16 = (value: number): number[] => [(value >> 8) & 255, value & 255];
const be32 = (value: number): number[] => [...be16(value >>> 16), ...be16(value & 0xffff)];

/** `10.5.1.2` or `fd00:5::1`. */
export function address(text: string): Uint8Array {
  if (!text.includes(':')) return Uint8Array.from(text.split('.'), Number);
  const [head, tail] = text.split('::');
  const words = (part: string): number[] =>
    part === '' ? [] : part.split(':').flatMap((word) => be16(Number.parseInt(word, 16)));
  if (tail === undefined) return Uint8Array.from(words(head));
  const [first, last] = [words(head), words(tail)];
  return Uint8Array.from([...first, ...new Array<number>(16 - first.length - last.length).fill(0), ...last]);
}

export function prefix(text: string): { bytes: Uint8Array; length: number } {
  const [base, length] = text.split('/');
  return { bytes: address(base), length: Number(length) };
}

export const TCP = 6;
export const UDP = 17;
export const ICMP = 1;
export const ICMPV6 = 58;

export const FIN = 0x01;
export const SYN = 0x02;
export const RST = 0x04;
export const PSH = 0x08;
export const ACK = 0x10;
export const URG = 0x20;
export const ECE = 0x40;
export const CWR = 0x80;

/** TCP timestamps, as Linux sends them with every segment: 12 bytes. */
export const TIMESTAMPS = Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2);

/** An IP header. Addresses are text; the family is the source's. */
export interface IpSpec {
  readonly source: string;
  readonly destination: string;
  readonly tos?: number;
  readonly ttl?: number;
  readonly id?: number;
  readonly df?: boolean;
  readonly mf?: boolean;
  /** Fragment offset in units of 8 bytes. */
  readonly offset?: number;
  /** IPv4 options; a multiple of 4 bytes. */
  readonly options?: Uint8Array;
  readonly flow?: number;
  /** IPv6 extension headers: [its own type, its bytes behind the next-header byte]. */
  readonly extensions?: readonly (readonly [number, Uint8Array])[];
}

/** What an IP packet carries. */
export interface Transport {
  readonly protocol: number;
  /** Header and payload; the checksum field is zero. */
  readonly bytes: Uint8Array;
  /** Where the checksum field is, or -1 if there is none. */
  readonly checksumAt: number;
  /** Header length. */
  readonly header: number;
  /** 0 means 0xffff on the wire (UDP). */
  readonly zeroIsOnes?: boolean;
}

export interface TcpSpec {
  readonly from?: number;
  readonly to?: number;
  readonly seq?: number;
  readonly ack?: number;
  readonly flags?: number;
  readonly window?: number;
  readonly urgent?: number;
  readonly options?: Uint8Array;
  readonly payload?: Uint8Array;
}

export function tcp(spec: TcpSpec = {}): Transport {
  const options = spec.options ?? TIMESTAMPS;
  const header = 20 + options.length;
  const bytes = concat(
    be16(spec.from ?? 4000),
    be16(spec.to ?? 5000),
    be32(spec.seq ?? 1),
    be32(spec.ack ?? 1),
    [(header / 4) << 4, spec.flags ?? ACK],
    be16(spec.window ?? 500),
    [0, 0],
    be16(spec.urgent ?? 0),
    options,
    spec.payload ?? new Uint8Array(0),
  );
  return { protocol: TCP, bytes, checksumAt: 16, header };
}

export interface UdpSpec {
  readonly from?: number;
  readonly to?: number;
  readonly payload?: Uint8Array;
}

export function udp(spec: UdpSpec = {}): Transport {
  const payload = spec.payload ?? new Uint8Array(0);
  const bytes = concat(be16(spec.from ?? 4000), be16(spec.to ?? 5000), be16(8 + payload.length), [0, 0], payload);
  return { protocol: UDP, bytes, checksumAt: 6, header: 8, zeroIsOnes: true };
}

export function icmp(type: number, payload: Uint8Array = new Uint8Array(32), v6 = false): Transport {
  return {
    protocol: v6 ? ICMPV6 : ICMP,
    bytes: concat([type, 0, 0, 0, 0, 1, 0, 1], payload),
    checksumAt: 2,
    header: 8,
  };
}

export const raw = (protocol: number, bytes: Uint8Array): Transport => ({ protocol, bytes, checksumAt: -1, header: 0 });

/** The pseudo-header's sum (RFC 9293 3.1, RFC 8200 8.1). ICMP has none. */
export function pseudoSum(source: Uint8Array, destination: Uint8Array, protocol: number, length: number): number {
  return onesSum(concat(source, destination, be32(length), be32(protocol)));
}

/** How many bytes of IP header a packet built from `ip` has. */
export function ipHeader(ip: IpSpec): number {
  if (!ip.source.includes(':')) return 20 + (ip.options?.length ?? 0);
  return 40 + (ip.extensions ?? []).reduce((sum, [, bytes]) => sum + bytes.length + 1, 0);
}

function build(ip: IpSpec, transport: Transport, partial: boolean): Uint8Array {
  const source = address(ip.source);
  const destination = address(ip.destination);
  const l4 = Uint8Array.from(transport.bytes);
  if (transport.checksumAt >= 0) {
    const seed = transport.protocol === ICMP ? 0 : pseudoSum(source, destination, transport.protocol, l4.length);
    let value = partial ? seed : checksum(l4, seed);
    if (!partial && value === 0 && transport.zeroIsOnes) value = 0xffff;
    l4.set(be16(value), transport.checksumAt);
  }
  if (source.length === 4) {
    const options = ip.options ?? new Uint8Array(0);
    const fragment = ((ip.df ?? true) ? 0x4000 : 0) | (ip.mf ? 0x2000 : 0) | (ip.offset ?? 0);
    const header = concat(
      [0x45 + options.length / 4, ip.tos ?? 0],
      be16(20 + options.length + l4.length),
      be16(ip.id ?? 0x1234),
      be16(fragment),
      [ip.ttl ?? 64, transport.protocol, 0, 0],
      source,
      destination,
      options,
    );
    header.set(be16(checksum(header)), 10);
    return concat(header, l4);
  }
  const extensions = ip.extensions ?? [];
  const types = [...extensions.map(([type]) => type), transport.protocol];
  const chain = concat(...extensions.flatMap(([, bytes], i) => [[types[i + 1]], bytes]));
  const tos = ip.tos ?? 0;
  const flow = ip.flow ?? 0x12345;
  return concat(
    [0x60 | (tos >> 4), ((tos & 15) << 4) | (flow >> 16)],
    be16(flow & 0xffff),
    be16(chain.length + l4.length),
    [types[0], ip.ttl ?? 64],
    source,
    destination,
    chain,
    l4,
  );
}

/** A whole packet with right checksums. */
export const packet = (ip: IpSpec, transport: Transport): Uint8Array => build(ip, transport, false);

/** An extension header's bytes behind its next-header byte: `units` x 8 bytes in all, filled with Pad1. */
export function extension(units: number): Uint8Array {
  const bytes = new Uint8Array(units * 8 - 1);
  bytes[0] = units - 1;
  return bytes;
}

export interface Vnet {
  readonly flags?: number;
  readonly type?: number;
  readonly headerLength?: number;
  readonly size?: number;
  readonly start?: number;
  readonly offset?: number;
}

/** struct virtio_net_hdr, little-endian. */
export function vnet(spec: Vnet): Uint8Array {
  const bytes = new Uint8Array(10);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, spec.flags ?? 0);
  view.setUint8(1, spec.type ?? 0);
  view.setUint16(2, spec.headerLength ?? 0, true);
  view.setUint16(4, spec.size ?? 0, true);
  view.setUint16(6, spec.start ?? 0, true);
  view.setUint16(8, spec.offset ?? 0, true);
  return bytes;
}

export const GSO = { tcp4: 1, tcp6: 4, udp: 5, ecn: 0x80 } as const;

/** As the kernel hands over a packet whose checksum it left to the device (VIRTIO_NET_HDR_F_NEEDS_CSUM). */
export function unfinished(ip: IpSpec, transport: Transport): DevicePacket {
  return {
    vnet: vnet({ flags: 1, start: ipHeader(ip), offset: transport.checksumAt }),
    bytes: build(ip, transport, true),
  };
}

/** As the kernel hands over a super-packet: segments of `size` payload bytes. `lie` changes its virtio header. */
export function superPacket(ip: IpSpec, transport: Transport, size: number, lie: Vnet = {}): DevicePacket {
  const v4 = !ip.source.includes(':');
  const start = ipHeader(ip);
  const type = transport.protocol === UDP ? GSO.udp : v4 ? GSO.tcp4 : GSO.tcp6;
  const header = { flags: 1, type, headerLength: start + transport.header, size, start, offset: transport.checksumAt };
  return { vnet: vnet({ ...header, ...lie }), bytes: build(ip, transport, true) };
}

/** A plain packet as the device gives it. */
export const plain = (bytes: Uint8Array): DevicePacket => ({ vnet: new Uint8Array(10), bytes });

/** Payload that says where it is from: byte i is a function of `start + i`, with no short period. */
export function pattern(length: number, start = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) {
    const n = start + i;
    bytes[i] = (n ^ (n >> 7) ^ (n >> 13)) & 255;
  }
  return bytes;
}

/** One message as UDP_GRO delivers it: all `packets` of the first one's size but the last, which may be shorter. */
export function message(
  name: Uint8Array,
  packets: readonly Uint8Array[],
  outer: { readonly tos?: number } = {},
): IncomingMessage {
  const segment = packets.length > 1 ? packets[0].length : 0;
  packets.forEach((bytes, i) => {
    const fits = i === packets.length - 1 ? bytes.length <= packets[0].length : bytes.length === packets[0].length;
    if (!fits) throw new Error('a GRO message holds equal datagrams');
  });
  return { name, bytes: concat(...packets), segment, ...outer };
}

/** Recomputes an IPv4 header checksum after a change to the header. */
export function rechecksum(bytes: Uint8Array): Uint8Array {
  const header = (bytes[0] & 15) * 4;
  bytes[10] = 0;
  bytes[11] = 0;
  bytes.set(be16(checksum(bytes.subarray(0, header))), 10);
  return bytes;
}

/** The same bytes with `change` applied to a copy. */
export function changed(bytes: Uint8Array, change: (copy: Uint8Array, view: DataView) => void): Uint8Array {
  const copy = Uint8Array.from(bytes);
  change(copy, new DataView(copy.buffer));
  return copy;
}

/** Changes for `changed`: write bytes, flip bits, add to a byte. */
type Change = (copy: Uint8Array) => void;
export const put =
  (at: number, ...values: readonly number[]): Change =>
  (copy) =>
    copy.set(values, at);
export const flip =
  (at: number, mask: number): Change =>
  (copy) => {
    copy[at] ^= mask;
  };
export const add =
  (at: number, n: number): Change =>
  (copy) => {
    copy[at] += n;
  };

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** '' if both lists hold the same, or what differs first: a message that stays short however long the lists are. */
export function difference(got: readonly string[], want: readonly string[]): string {
  for (let i = 0; i < Math.max(got.length, want.length); i++) {
    if (got[i] === want[i]) continue;
    const short = (text: string | undefined): string => (text === undefined ? 'nothing' : text.slice(0, 160));
    return `item ${i} of ${got.length} (expected ${want.length}): ${short(got[i])}, expected ${short(want[i])}`;
  }
  return '';
}

/** A small, seeded generator (mulberry32): the same numbers for the same seed everywhere. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
