/**
 * Packets for `weft explain`: made as a question describes them, with every checksum right, and told in a line for people. Sizes and
 * fields are those of the RFCs (791, 8200, 792, 4443, 768, 9293, 826, 4861, 7348); nothing here is on the packet path.
 */
import { textOf } from '../control/cidr.js';
import { macText } from '../control/mac.js';
import * as arp from '../packet/arp.js';
import { onesSum, pseudoSum } from '../packet/checksum.js';
import * as ethernet from '../packet/ethernet.js';
import * as icmp from '../packet/icmp.js';
import * as ip from '../packet/ip.js';
import * as nd from '../packet/nd.js';

const ECHO_REQUEST = 8;
const ECHO_REPLY = 0;
const ECHO_REQUEST_6 = 128;
const ECHO_REPLY_6 = 129;

/** Bytes of the transport's header that is made, by protocol number; of another protocol none. */
const TRANSPORT_HEADER: Readonly<Record<number, number>> = {
  [ip.PROTOCOL_ICMP]: 8,
  [ip.PROTOCOL_ICMPV6]: 8,
  [ip.PROTOCOL_UDP]: 8,
  [ip.PROTOCOL_TCP]: 20,
};

/** Ports of what is made: traceroute's, and the ephemeral range's first. */
const TO_PORT = 33434;
const FROM_PORT = 49152;

export interface IpWish {
  /** Both of one family. */
  readonly source: Uint8Array;
  readonly destination: Uint8Array;
  /** Bytes of the whole packet. */
  readonly size: number;
  readonly ttl: number;
  readonly df: boolean;
  /** Number of the protocol in the header. */
  readonly protocol: number;
}

/** Fewest bytes that such a packet has. */
export const leastSize = (v4: boolean, protocol: number): number =>
  (v4 ? ip.IPV4_HEADER : ip.IPV6_HEADER) + (TRANSPORT_HEADER[protocol] ?? 0);

/** An IP packet as it is wished; `size` is at least `leastSize`. */
export function makeIp({ source, destination, size, ttl, df, protocol }: IpWish): Uint8Array {
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  const v4 = source.length === 4;
  const header = v4 ? ip.IPV4_HEADER : ip.IPV6_HEADER;
  bytes.set(source, v4 ? ip.IPV4_SOURCE : ip.IPV6_SOURCE);
  bytes.set(destination, v4 ? ip.IPV4_DESTINATION : ip.IPV6_DESTINATION);
  writeTransport(bytes.subarray(header), protocol, source, destination);
  if (!v4) {
    view.setUint8(0, 0x60);
    view.setUint16(ip.IPV6_PAYLOAD_LENGTH, size - header);
    view.setUint8(ip.IPV6_NEXT_HEADER, protocol);
    view.setUint8(ip.IPV6_HOP_LIMIT, ttl);
    return bytes;
  }
  view.setUint8(0, 0x45);
  view.setUint16(ip.IPV4_TOTAL_LENGTH, size);
  view.setUint16(ip.IPV4_FRAGMENT, df ? ip.IPV4_DF : 0);
  view.setUint8(ip.IPV4_TTL, ttl);
  view.setUint8(ip.IPV4_PROTOCOL, protocol);
  ip.writeHeaderChecksum(view, 0, header);
  return bytes;
}

/** `bytes`: from the transport's header on. */
function writeTransport(bytes: Uint8Array, protocol: number, source: Uint8Array, destination: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const pseudo = pseudoSum(source, destination, protocol, bytes.length);
  if (protocol === ip.PROTOCOL_ICMP || protocol === ip.PROTOCOL_ICMPV6) {
    view.setUint8(0, protocol === ip.PROTOCOL_ICMP ? ECHO_REQUEST : ECHO_REQUEST_6);
    view.setUint16(2, checksum(bytes, protocol === ip.PROTOCOL_ICMP ? 0 : pseudo));
  } else if (protocol === ip.PROTOCOL_UDP || protocol === ip.PROTOCOL_TCP) {
    const udp = protocol === ip.PROTOCOL_UDP;
    view.setUint16(0, FROM_PORT);
    view.setUint16(2, TO_PORT);
    if (udp) view.setUint16(4, bytes.length);
    else view.setUint16(12, 0x5002); // five words of header, SYN
    view.setUint16(udp ? 6 : 16, checksum(bytes, pseudo) || 0xffff);
  }
}

const checksum = (bytes: Uint8Array, pseudo: number): number => ~onesSum(bytes, pseudo) & 0xffff;

/** A frame without tags. */
export function makeFrame(destination: Uint8Array, source: Uint8Array, type: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(ethernet.ETHERNET_HEADER + payload.length);
  bytes.set(destination, ethernet.DESTINATION);
  bytes.set(source, ethernet.SOURCE);
  new DataView(bytes.buffer).setUint16(ethernet.TYPE, type);
  bytes.set(payload, ethernet.ETHERNET_HEADER);
  return bytes;
}

const BROADCAST = new Uint8Array(6).fill(255);

/** The frame by which a host asks who has `target`: an ARP request, or in IPv6 a neighbour solicitation. */
export function makeRequest(sourceMac: Uint8Array, source: Uint8Array, target: Uint8Array): Uint8Array {
  if (target.length === 4) {
    const packet = new Uint8Array(arp.ARP_LENGTH);
    const view = new DataView(packet.buffer);
    view.setUint16(0, 1); // Ethernet
    view.setUint16(2, ethernet.ETHERTYPE_IPV4);
    view.setUint16(4, 0x0604);
    view.setUint16(arp.ARP_OPERATION, arp.ARP_REQUEST);
    packet.set(sourceMac, arp.ARP_SENDER_MAC);
    packet.set(source, arp.ARP_SENDER_IP);
    packet.set(target, arp.ARP_TARGET_IP);
    return makeFrame(BROADCAST, sourceMac, ethernet.ETHERTYPE_ARP, packet);
  }
  // The solicited-node group of the target, and its MAC (RFC 4291 2.7.1, RFC 2464 7).
  const group = Uint8Array.from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ...target.subarray(13)]);
  const protocol = ip.PROTOCOL_ICMPV6;
  const bytes = makeIp({ source, destination: group, size: ip.IPV6_HEADER + 32, ttl: 255, df: false, protocol });
  const view = new DataView(bytes.buffer);
  const at = ip.IPV6_HEADER;
  view.setUint16(at, nd.ND_SOLICITATION << 8);
  view.setUint16(at + nd.ND_CHECKSUM, 0);
  bytes.set(target, at + nd.ND_TARGET);
  view.setUint16(at + 24, (nd.ND_SOURCE_LINK_LAYER << 8) | 1);
  bytes.set(sourceMac, at + 26);
  const message = bytes.subarray(at);
  view.setUint16(at + nd.ND_CHECKSUM, checksum(message, pseudoSum(source, group, protocol, message.length)));
  return makeFrame(Uint8Array.of(0x33, 0x33, ...group.subarray(12)), sourceMac, ethernet.ETHERTYPE_IPV6, bytes);
}

/** What is in a packet, as far as it can be made out; never throws. */
export interface Described {
  readonly text: string;
  readonly sourceMac: Uint8Array | undefined;
  readonly destinationMac: Uint8Array | undefined;
  /** IP. */
  readonly source: Uint8Array | undefined;
  readonly destination: Uint8Array | undefined;
  /** A frame with a VLAN tag. */
  readonly tagged: boolean;
  /** Whom an ARP or ND request asks for. */
  readonly asksFor: Uint8Array | undefined;
}

/** `l2`: a frame, or else an IP packet. */
export function describe(bytes: Uint8Array, l2: boolean): Described {
  const size = bytes.length === 1 ? '1 byte' : `${bytes.length} bytes`;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const header = l2 ? ethernet.headerLength(view, 0, bytes.length) : 0;
  if (l2 && header === 0) return { ...NOTHING, text: `${size}, no Ethernet frame` };
  const tagged = header > ethernet.ETHERNET_HEADER;
  const macs = l2 ? { destinationMac: bytes.slice(0, 6), sourceMac: bytes.slice(6, 12), tagged } : {};
  const way = l2 ? `, ${macText(bytes.subarray(6, 12))} > ${macText(bytes.subarray(0, 6))}` : '';
  const rest = bytes.subarray(header);
  const type = l2 ? view.getUint16(header - 2) : undefined;
  if (type === ethernet.ETHERTYPE_ARP && rest.length >= arp.ARP_LENGTH) return described(size, way, macs, arpOf(rest));
  const version = rest.length === 0 ? 0 : rest[0] >> 4;
  const isIp = type === undefined || type === ethernet.ETHERTYPE_IPV4 || type === ethernet.ETHERTYPE_IPV6;
  const known = isIp && ((version === 4 && rest.length >= ip.IPV4_HEADER) || (version === 6 && rest.length >= 40));
  if (known) return described(size, way, macs, version === 4 ? ipv4Of(rest) : ipv6Of(rest));
  const what = type === undefined || isIp ? 'no whole IP header' : `type 0x${type.toString(16).padStart(4, '0')}`;
  return { ...NOTHING, ...macs, text: `${size}, ${what}${way}` };
}

const NOTHING = {
  sourceMac: undefined,
  destinationMac: undefined,
  source: undefined,
  destination: undefined,
  tagged: false,
  asksFor: undefined,
};

type Inner = Partial<Described> & { readonly text: string };

const described = (size: string, way: string, macs: Partial<Described>, inner: Inner): Described => ({
  ...NOTHING,
  ...macs,
  ...inner,
  text: `${size}, ${inner.text}${way}`,
});

function arpOf(bytes: Uint8Array): Inner {
  const source = bytes.slice(arp.ARP_SENDER_IP, arp.ARP_SENDER_IP + 4);
  const target = bytes.slice(arp.ARP_TARGET_IP, arp.ARP_TARGET_IP + 4);
  const operation = (bytes[arp.ARP_OPERATION] << 8) | bytes[arp.ARP_OPERATION + 1];
  if (operation === arp.ARP_REQUEST) {
    return { text: `ARP: who has ${textOf(target)}? asks ${textOf(source)}`, source, asksFor: target };
  }
  const mac = macText(bytes.subarray(arp.ARP_SENDER_MAC, arp.ARP_SENDER_MAC + 6));
  return { text: operation === arp.ARP_REPLY ? `ARP: ${textOf(source)} is at ${mac}` : `ARP ${operation}`, source };
}

function ipv4Of(bytes: Uint8Array): Inner {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const source = bytes.slice(ip.IPV4_SOURCE, ip.IPV4_SOURCE + 4);
  const destination = bytes.slice(ip.IPV4_DESTINATION, ip.IPV4_DESTINATION + 4);
  const fragment = view.getUint16(ip.IPV4_FRAGMENT);
  const first = (fragment & ip.IPV4_OFFSET_MASK) === 0;
  const header = (bytes[0] & 15) << 2;
  const what = first ? payloadText(bytes[ip.IPV4_PROTOCOL], bytes.subarray(header)) : 'a later fragment';
  const flags = `${fragment & ip.IPV4_DF ? ', DF' : ''}${fragment & ip.IPV4_MF ? ', MF' : ''}`;
  return {
    text: `${what}, ${textOf(source)} > ${textOf(destination)}, TTL ${bytes[ip.IPV4_TTL]}${flags}`,
    source,
    destination,
  };
}

function ipv6Of(bytes: Uint8Array): Inner {
  const source = bytes.slice(ip.IPV6_SOURCE, ip.IPV6_SOURCE + 16);
  const destination = bytes.slice(ip.IPV6_DESTINATION, ip.IPV6_DESTINATION + 16);
  const payload = bytes.subarray(ip.IPV6_HEADER);
  const next = bytes[ip.IPV6_NEXT_HEADER];
  const asks = next === ip.PROTOCOL_ICMPV6 && payload[0] === nd.ND_SOLICITATION && payload.length >= nd.ND_TARGET + 16;
  const target = asks ? payload.slice(nd.ND_TARGET, nd.ND_TARGET + 16) : undefined;
  const what = target ? `ND: who has ${textOf(target)}?` : payloadText(next, payload);
  return {
    text: `${what}, ${textOf(source)} > ${textOf(destination)}, hop limit ${bytes[ip.IPV6_HOP_LIMIT]}`,
    source,
    destination,
    asksFor: target,
  };
}

const ICMP_TEXTS: Readonly<Record<number, string>> = {
  [ECHO_REPLY]: 'ICMP echo reply',
  [ECHO_REQUEST]: 'ICMP echo request',
  [icmp.ICMP_TIME_EXCEEDED]: 'ICMP time exceeded',
};
const ICMPV6_TEXTS: Readonly<Record<number, string>> = {
  [icmp.ICMPV6_UNREACHABLE]: 'ICMPv6 no route',
  [icmp.ICMPV6_TIME_EXCEEDED]: 'ICMPv6 time exceeded',
  [ECHO_REQUEST_6]: 'ICMPv6 echo request',
  [ECHO_REPLY_6]: 'ICMPv6 echo reply',
};

function payloadText(protocol: number, bytes: Uint8Array): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (protocol === ip.PROTOCOL_ICMP && bytes.length >= 8) {
    if (bytes[0] !== icmp.ICMP_UNREACHABLE) return ICMP_TEXTS[bytes[0]] ?? `ICMP type ${bytes[0]}`;
    const tooBig = bytes[1] === icmp.ICMP_FRAGMENTATION_NEEDED;
    return tooBig ? `ICMP fragmentation needed, MTU ${view.getUint16(6)}` : 'ICMP net unreachable';
  }
  if (protocol === ip.PROTOCOL_ICMPV6 && bytes.length >= 8) {
    if (bytes[0] === icmp.ICMPV6_TOO_BIG) return `ICMPv6 packet too big, MTU ${view.getUint32(4)}`;
    if (bytes[0] === nd.ND_ADVERTISEMENT && bytes.length >= nd.ND_TARGET + 16) {
      return `ND: ${textOf(bytes.slice(nd.ND_TARGET, nd.ND_TARGET + 16))} is there`;
    }
    return ICMPV6_TEXTS[bytes[0]] ?? `ICMPv6 type ${bytes[0]}`;
  }
  const ports = bytes.length >= 4 ? ` ${view.getUint16(0)} > ${view.getUint16(2)}` : '';
  if (protocol === ip.PROTOCOL_UDP) return `UDP${ports}`;
  return protocol === ip.PROTOCOL_TCP ? `TCP${ports}` : `protocol ${protocol}`;
}
