/** Headers of captured packets, taken apart by binary-parser. The caller has checked that their bytes are there. */
import { Parser } from 'binary-parser';

const start = (): Parser => new Parser().endianess('big');
const reader =
  <T>(parser: Parser) =>
  (bytes: Uint8Array): T =>
    parser.parse(bytes) as T;

/** How many bytes each reader needs. */
export const SIZE = {
  ethernet: 14,
  vlan: 4,
  sll: 16,
  sll2: 20,
  arp: 8,
  arpIpv4: 28,
  ipv4: 20,
  ipv6: 40,
  extension: 8,
  tcp: 20,
  udp: 8,
  icmp: 8,
  vxlan: 8,
} as const;

export interface EthernetHeader {
  readonly destination: Uint8Array;
  readonly source: Uint8Array;
  readonly type: number;
}
export const ethernetHeader = reader<EthernetHeader>(
  start().buffer('destination', { length: 6 }).buffer('source', { length: 6 }).uint16('type'),
);

/** What follows the type of a tag: priority, drop eligible, VLAN; and the next type. */
export interface VlanTag {
  readonly control: number;
  readonly type: number;
}
export const vlanTag = reader<VlanTag>(start().uint16('control').uint16('type'));

/** Linux cooked captures: what a packet socket on all interfaces knows. */
export interface SllHeader {
  readonly kind: number;
  readonly type: number;
}
export const sllHeader = reader<SllHeader>(start().uint16('kind').skip(12).uint16('type'));
export const sll2Header = reader<SllHeader>(start().uint16('type').skip(8).uint8('kind'));

export interface ArpHeader {
  readonly hardware: number;
  readonly protocol: number;
  readonly hardwareLength: number;
  readonly protocolLength: number;
  readonly operation: number;
}
const arpFields = (): Parser =>
  start().uint16('hardware').uint16('protocol').uint8('hardwareLength').uint8('protocolLength').uint16('operation');
export const arpHeader = reader<ArpHeader>(arpFields());

export interface ArpIpv4 extends ArpHeader {
  readonly senderMac: Uint8Array;
  readonly sender: Uint8Array;
  readonly targetMac: Uint8Array;
  readonly target: Uint8Array;
}
export const arpIpv4 = reader<ArpIpv4>(
  arpFields()
    .buffer('senderMac', { length: 6 })
    .buffer('sender', { length: 4 })
    .buffer('targetMac', { length: 6 })
    .buffer('target', { length: 4 }),
);

export interface Ipv4Header {
  readonly version: number;
  /** In units of 4 bytes. */
  readonly headerWords: number;
  readonly dscp: number;
  readonly ecn: number;
  readonly totalLength: number;
  readonly id: number;
  readonly dontFragment: number;
  readonly moreFragments: number;
  /** In units of 8 bytes. */
  readonly offset: number;
  readonly ttl: number;
  readonly protocol: number;
  readonly checksum: number;
  readonly source: Uint8Array;
  readonly destination: Uint8Array;
}
export const ipv4Header = reader<Ipv4Header>(
  start()
    .bit4('version')
    .bit4('headerWords')
    .bit6('dscp')
    .bit2('ecn')
    .uint16('totalLength')
    .uint16('id')
    .bit1('reserved')
    .bit1('dontFragment')
    .bit1('moreFragments')
    .bit13('offset')
    .uint8('ttl')
    .uint8('protocol')
    .uint16('checksum')
    .buffer('source', { length: 4 })
    .buffer('destination', { length: 4 }),
);

export interface Ipv6Header {
  readonly version: number;
  readonly dscp: number;
  readonly ecn: number;
  readonly flow: number;
  readonly payloadLength: number;
  readonly next: number;
  readonly hopLimit: number;
  readonly source: Uint8Array;
  readonly destination: Uint8Array;
}
export const ipv6Header = reader<Ipv6Header>(
  start()
    .bit4('version')
    .bit6('dscp')
    .bit2('ecn')
    .bit20('flow')
    .uint16('payloadLength')
    .uint8('next')
    .uint8('hopLimit')
    .buffer('source', { length: 16 })
    .buffer('destination', { length: 16 }),
);

/** Of an IPv6 extension header; for a fragment header `length` is reserved, and offset and more count. */
export interface ExtensionHeader {
  readonly next: number;
  /** In units of 8 bytes, the first not counted. */
  readonly length: number;
  /** In units of 8 bytes. */
  readonly offset: number;
  readonly more: number;
  readonly id: number;
}
export const extensionHeader = reader<ExtensionHeader>(
  start().uint8('next').uint8('length').bit13('offset').bit2('reserved').bit1('more').uint32('id'),
);

export interface TcpHeader {
  readonly from: number;
  readonly to: number;
  readonly sequence: number;
  readonly acknowledgement: number;
  /** In units of 4 bytes. */
  readonly headerWords: number;
  readonly flags: number;
  readonly window: number;
}
export const tcpHeader = reader<TcpHeader>(
  start()
    .uint16('from')
    .uint16('to')
    .uint32('sequence')
    .uint32('acknowledgement')
    .bit4('headerWords')
    .bit4('reserved')
    .bit8('flags')
    .uint16('window')
    .uint16('checksum')
    .uint16('urgent'),
);

export interface UdpHeader {
  readonly from: number;
  readonly to: number;
  readonly length: number;
  readonly checksum: number;
}
export const udpHeader = reader<UdpHeader>(start().uint16('from').uint16('to').uint16('length').uint16('checksum'));

export interface IcmpHeader {
  readonly type: number;
  readonly code: number;
  readonly checksum: number;
  /** The second word, as two halves: identifier and sequence number of an echo, an MTU, … */
  readonly high: number;
  readonly low: number;
}
export const icmpHeader = reader<IcmpHeader>(
  start().uint8('type').uint8('code').uint16('checksum').uint16('high').uint16('low'),
);

export interface VxlanHeader {
  readonly flags: number;
  readonly vni: number;
}
export const vxlanHeader = reader<VxlanHeader>(start().uint8('flags').bit24('reserved').bit24('vni').bit8('reserved2'));
