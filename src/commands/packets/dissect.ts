/**
 * Takes captured packets apart, from the link type on: Ethernet with VLAN tags, ARP, IPv4 and IPv6, TCP, UDP, ICMP, and what Weft
 * puts into UDP: VXLAN, or an IP packet as it is. It believes nothing: what is not there, or lies about its length, becomes a
 * broken layer, and no input makes it throw or go on for long.
 */
import { textOf } from '../../control/cidr.js';
import { macText } from '../../control/mac.js';
import { onesSum, pseudoSum } from '../../packet/checksum.js';
import {
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  ETHERTYPE_SERVICE_VLAN,
  ETHERTYPE_VLAN,
} from '../../packet/ethernet.js';
import { isIcmpError, isIcmpv6Error } from '../../packet/icmp.js';
import {
  NEXT_DESTINATION,
  NEXT_FRAGMENT,
  NEXT_HOP_BY_HOP,
  NEXT_ROUTING,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
} from '../../packet/ip.js';
import * as read from './headers.js';
import { SIZE } from './headers.js';
import { icmpMeaning, icmpv6Meaning } from './icmp-names.js';
import type { Layer } from './layers.js';
import {
  LINK_ETHERNET,
  LINK_IPV4,
  LINK_IPV6,
  LINK_LINUX_SLL,
  LINK_LINUX_SLL2,
  LINK_LOOP,
  LINK_NULL,
  LINK_RAW,
  LINK_RAW_BSD,
} from './pcapng-format.js';
import { checksumOf } from './transport-checksum.js';

/** UDP ports behind which packets are looked for. */
export interface Tunnels {
  /** VXLAN: IANA's, and Linux' and flannel's. */
  readonly vxlan: ReadonlySet<number>;
  /** An IP packet without another header: flannel's udp backend, and Weft. */
  readonly ip: ReadonlySet<number>;
}
export const TUNNELS: Tunnels = { vxlan: new Set([4789, 8472]), ip: new Set([8285]) };

/** Packets within packets that are looked into. */
const MOST_DEPTH = 4;

/** The layers of a packet; `bytes` may be fewer than it had. */
export function dissect(linkType: number, bytes: Uint8Array, tunnels: Tunnels = TUNNELS): readonly Layer[] {
  const walk = new Dissection(tunnels);
  walk.link(linkType, bytes);
  return walk.layers;
}

class Dissection {
  readonly layers: Layer[] = [];
  readonly #tunnels: Tunnels;
  readonly #depth: number;

  constructor(tunnels: Tunnels, depth = 0) {
    this.#tunnels = tunnels;
    this.#depth = depth;
  }

  // --- links ---

  link(type: number, bytes: Uint8Array): void {
    if (type === LINK_ETHERNET) this.#ethernet(bytes);
    else if (type === LINK_RAW || type === LINK_RAW_BSD || type === LINK_IPV4 || type === LINK_IPV6) this.#ip(bytes);
    else if (type === LINK_LINUX_SLL) this.#cooked(bytes, SIZE.sll, read.sllHeader);
    else if (type === LINK_LINUX_SLL2) this.#cooked(bytes, SIZE.sll2, read.sll2Header);
    else if (type === LINK_NULL || type === LINK_LOOP) this.#has(bytes, 4, 'loopback') && this.#ip(bytes.subarray(4));
    else this.#other(`link type ${type}`, bytes);
  }

  #ethernet(bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.ethernet, 'Ethernet')) return;
    const { source, destination, type: first } = read.ethernetHeader(bytes);
    const vlans: number[] = [];
    let type = first;
    let at: number = SIZE.ethernet;
    while (type === ETHERTYPE_VLAN || type === ETHERTYPE_SERVICE_VLAN) {
      if (bytes.length < at + SIZE.vlan) break;
      const tag = read.vlanTag(bytes.subarray(at));
      vlans.push(tag.control & 0xfff);
      type = tag.type;
      at += SIZE.vlan;
    }
    this.layers.push({
      layer: 'ethernet',
      source: macText(source),
      destination: macText(destination),
      vlans,
      type,
    });
    this.#network(type, bytes.subarray(at));
  }

  #cooked(bytes: Uint8Array, size: number, header: (bytes: Uint8Array) => read.SllHeader): void {
    if (this.#has(bytes, size, 'Linux cooked')) this.#network(header(bytes).type, bytes.subarray(size));
  }

  #network(type: number, bytes: Uint8Array): void {
    if (type === ETHERTYPE_IPV4 || type === ETHERTYPE_IPV6) this.#ip(bytes);
    else if (type === ETHERTYPE_ARP) this.#arp(bytes);
    else if (type <= MOST_LENGTH) this.#other('802.3', bytes);
    else this.#other(`ethertype 0x${type.toString(16).padStart(4, '0')}`, bytes);
  }

  #arp(bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.arp, 'ARP')) return;
    const { hardware, protocol, hardwareLength, protocolLength } = read.arpHeader(bytes);
    if (hardware !== 1 || protocol !== ETHERTYPE_IPV4 || hardwareLength !== 6 || protocolLength !== 4) {
      this.#broken(`ARP for hardware ${hardware} and protocol ${protocol}`);
      return;
    }
    if (!this.#has(bytes, SIZE.arpIpv4, 'ARP')) return;
    const { operation, senderMac, sender, targetMac, target } = read.arpIpv4(bytes);
    this.layers.push({
      layer: 'arp',
      operation: operation === 1 ? 'request' : operation === 2 ? 'reply' : operation,
      senderMac: macText(senderMac),
      sender: textOf(sender),
      targetMac: macText(targetMac),
      target: textOf(target),
    });
  }

  // --- IP ---

  #ip(bytes: Uint8Array): void {
    if (!this.#has(bytes, 1, 'IP')) return;
    const version = bytes[0] >> 4;
    if (version === 4) this.#ipv4(bytes);
    else if (version === 6) this.#ipv6(bytes);
    else this.#broken(`IP version ${version}`);
  }

  #ipv4(bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.ipv4, 'IPv4')) return;
    const header = read.ipv4Header(bytes);
    const { protocol, totalLength, source, destination, offset } = header;
    const size = header.headerWords * 4;
    if (size < SIZE.ipv4) {
      this.#broken(`IPv4 header of ${size} bytes`);
      return;
    }
    if (!this.#has(bytes, size, 'IPv4')) return;
    if (totalLength < size) {
      this.#broken(`IPv4 of ${totalLength} bytes with a header of ${size}`);
      return;
    }
    const more = header.moreFragments === 1;
    const fragment = more || offset > 0 ? { fragment: { id: header.id, offset: offset * 8, more } } : {};
    this.layers.push({
      layer: 'ipv4',
      source: textOf(source),
      destination: textOf(destination),
      ttl: header.ttl,
      dscp: header.dscp,
      ecn: header.ecn,
      length: totalLength,
      protocol,
      dontFragment: header.dontFragment === 1,
      checksum: onesSum(bytes.subarray(0, size)) === 0xffff ? 'good' : 'wrong',
      ...fragment,
    });
    const all = totalLength - size;
    this.#transport({ protocol, source, destination, fragment: more || offset > 0, offset, all }, bytes.subarray(size));
  }

  #ipv6(bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.ipv6, 'IPv6')) return;
    const header = read.ipv6Header(bytes);
    const { source, destination } = header;
    let next = header.next;
    let at: number = SIZE.ipv6;
    let fragment: { id: number; offset: number; more: boolean } | undefined;
    while (isExtension(next) && bytes.length >= at + SIZE.extension && (fragment?.offset ?? 0) === 0) {
      const extension = read.extensionHeader(bytes.subarray(at));
      const { id, offset, more } = extension;
      if (next === NEXT_FRAGMENT) fragment = { id, offset: offset * 8, more: more === 1 };
      at += next === NEXT_FRAGMENT ? SIZE.extension : (extension.length + 1) * 8;
      next = extension.next;
    }
    this.layers.push({
      layer: 'ipv6',
      source: textOf(source),
      destination: textOf(destination),
      ttl: header.hopLimit,
      dscp: header.dscp,
      ecn: header.ecn,
      length: SIZE.ipv6 + header.payloadLength,
      protocol: next,
      ...(fragment ? { fragment } : {}),
    });
    if (at > bytes.length || (isExtension(next) && (fragment?.offset ?? 0) === 0)) {
      this.#broken('IPv6 extension headers that are not all there');
      return;
    }
    const all = SIZE.ipv6 + header.payloadLength - at;
    if (all < 0) {
      this.#broken(`IPv6 with ${header.payloadLength} bytes behind its header, its extensions longer`);
      return;
    }
    const partial = fragment !== undefined && (fragment.more || fragment.offset > 0);
    this.#transport(
      { protocol: next, source, destination, fragment: partial, offset: fragment?.offset ?? 0, all },
      bytes.subarray(at),
    );
  }

  // --- transport ---

  #transport(ip: Transport, bytes: Uint8Array): void {
    const { protocol, all, offset } = ip;
    // What is beyond is padding, or Ethernet's.
    const here = bytes.subarray(0, all);
    if (offset > 0) return;
    if (protocol === PROTOCOL_TCP) this.#tcp(ip, here);
    else if (protocol === PROTOCOL_UDP) this.#udp(ip, here);
    else if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) this.#icmp(ip, here);
    else if (protocol !== NO_NEXT_HEADER) this.#other(`protocol ${protocol}`, here);
  }

  #tcp(ip: Transport, bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.tcp, 'TCP')) return;
    const { from, to, sequence, acknowledgement, headerWords, flags, window } = read.tcpHeader(bytes);
    const size = headerWords * 4;
    if (size < SIZE.tcp || size > ip.all) {
      this.#broken(`TCP header of ${size} bytes in ${ip.all}`);
      return;
    }
    this.layers.push({
      layer: 'tcp',
      from,
      to,
      sequence,
      acknowledgement,
      flags: TCP_FLAGS.filter((_, bit) => flags & (1 << bit)),
      window,
      payload: ip.all - size,
      checksum: this.#checksum(ip, bytes, 16),
    });
  }

  #udp(ip: Transport, bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.udp, 'UDP')) return;
    const { from, to, length, checksum } = read.udpHeader(bytes);
    if (length < SIZE.udp || (length > ip.all && !ip.fragment)) {
      this.#broken(`UDP of ${length} bytes in ${ip.all}`);
      return;
    }
    this.layers.push({
      layer: 'udp',
      from,
      to,
      payload: length - SIZE.udp,
      checksum: checksum === 0 ? 'none' : this.#checksum({ ...ip, all: length }, bytes.subarray(0, length), 6),
    });
    if (ip.fragment) return;
    const payload = bytes.subarray(SIZE.udp, length);
    const { vxlan, ip: plain } = this.#tunnels;
    if (vxlan.has(to) || vxlan.has(from)) this.#inner(() => this.#vxlan(payload));
    else if (plain.has(to) || plain.has(from)) this.#inner(() => this.#ip(payload));
  }

  #vxlan(bytes: Uint8Array): void {
    if (!this.#has(bytes, SIZE.vxlan, 'VXLAN')) return;
    const { flags, vni } = read.vxlanHeader(bytes);
    const valid = (flags & VNI_VALID) !== 0;
    this.layers.push({ layer: 'vxlan', vni: valid ? vni : undefined });
    this.#ethernet(bytes.subarray(SIZE.vxlan));
  }

  #icmp(ip: Transport, bytes: Uint8Array): void {
    const layer = ip.protocol === PROTOCOL_ICMP ? 'icmp' : 'icmpv6';
    if (!this.#has(bytes, SIZE.icmp, layer === 'icmp' ? 'ICMP' : 'ICMPv6')) return;
    const { type, code, high, low } = read.icmpHeader(bytes);
    const isV4 = layer === 'icmp';
    const isError = isV4 ? isIcmpError(type) : isIcmpv6Error(type) && type !== REDIRECT;
    const echo = isV4 ? type === 0 || type === 8 : type === 128 || type === 129;
    const needed = isV4 ? type === 3 && code === 4 : type === 2;
    const discovery = !isV4 && (type === 135 || type === 136) && bytes.length >= 24;
    this.layers.push({
      layer,
      type,
      code,
      meaning: isV4 ? icmpMeaning(type, code) : icmpv6Meaning(type, code),
      ...(echo ? { id: high, sequence: low } : {}),
      ...(needed ? { mtu: isV4 ? low : high * 65536 + low } : {}),
      ...(discovery ? { target: textOf(bytes.subarray(8, 24)) } : {}),
      ...(isError ? { about: this.#quoted(bytes.subarray(SIZE.icmp)) } : {}),
      checksum: this.#checksum(ip, bytes, 2, isV4),
    });
  }

  /** The packet that an error quotes: mostly cut. */
  #quoted(bytes: Uint8Array): readonly Layer[] {
    if (this.#depth >= MOST_DEPTH) return [];
    const walk = new Dissection(NO_TUNNELS, this.#depth + 1);
    walk.#ip(bytes);
    return walk.layers.filter(({ layer }) => layer !== 'broken');
  }

  #inner(look: () => void): void {
    const tunnelled = this.layers.filter(({ layer }) => layer === 'udp').length;
    if (tunnelled <= MOST_DEPTH) look();
  }

  // --- helpers ---

  /** Undefined where not all of it is there. */
  #checksum(ip: Transport, bytes: Uint8Array, at: number, plain = false): ReturnType<typeof checksumOf> | undefined {
    if (ip.fragment || bytes.length < ip.all) return undefined;
    return checksumOf(bytes, at, plain ? 0 : pseudoSum(ip.source, ip.destination, ip.protocol, ip.all));
  }

  #has(bytes: Uint8Array, size: number, what: string): boolean {
    if (bytes.length >= size) return true;
    this.#broken(`${bytes.length} bytes of ${what}, whose header has ${size}`);
    return false;
  }

  #other(what: string, bytes: Uint8Array): void {
    this.layers.push({ layer: 'other', what, bytes: bytes.length });
  }

  #broken(reason: string): void {
    this.layers.push({ layer: 'broken', reason });
  }
}

/** What an IP header says of the bytes behind it. */
interface Transport {
  readonly protocol: number;
  readonly source: Uint8Array;
  readonly destination: Uint8Array;
  readonly fragment: boolean;
  readonly offset: number;
  /** Bytes that there are by the header. */
  readonly all: number;
}

const NO_TUNNELS: Tunnels = { vxlan: new Set(), ip: new Set() };
const NO_NEXT_HEADER = 59;
const REDIRECT = 137;
const VNI_VALID = 0x08;
/** An ethertype below is a length (IEEE 802.3). */
const MOST_LENGTH = 1500;
const TCP_FLAGS = ['FIN', 'SYN', 'RST', 'PSH', 'ACK', 'URG', 'ECE', 'CWR'];

const isExtension = (next: number): boolean =>
  next === NEXT_HOP_BY_HOP || next === NEXT_ROUTING || next === NEXT_FRAGMENT || next === NEXT_DESTINATION;
