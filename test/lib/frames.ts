/**
 * Ethernet frames for the tests, built field by field on packets.ts: VLAN tags, VXLAN datagrams, ARP, neighbour discovery,
 * super-frames as a TAP hands them over. Slow and obvious on purpose, and sharing no code with the engine. Network byte
 * order unless a name says otherwise.
 */
import type { DevicePacket } from '../../src/io/memory-device.js';
import { decodeVnet } from './decode.js';
import {
  address,
  concat,
  ICMPV6,
  type IpSpec,
  packet,
  superPacket,
  type Transport,
  unfinished,
  type Vnet,
  vnet,
} from './packets.js';
import { onTheWire } from './segment.js';

const be16 = (value: number): number[] => [(value >> 8) & 255, value & 255];

export const IPV4 = 0x0800;
export const ARP = 0x0806;
export const VLAN = 0x8100;
export const SERVICE_VLAN = 0x88a8;
export const IPV6 = 0x86dd;
/** A type that nobody looks into (IEEE 802 local experimental). */
export const OTHER = 0x88b5;

/** `02:00:00:00:00:05`. */
export const mac = (text: string): Uint8Array => Uint8Array.from(text.split(':'), (part) => Number.parseInt(part, 16));
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));
export function macText(bytes: Uint8Array): string {
  let text = HEX[bytes[0]];
  for (let i = 1; i < 6; i++) text += `:${HEX[bytes[i]]}`;
  return text;
}

export const BROADCAST = 'ff:ff:ff:ff:ff:ff';
export const NOBODY = '00:00:00:00:00:00';

/** A VLAN tag: its type, and priority, DEI and VLAN number as one. */
export type Tag = readonly [type: number, control: number];

export interface EthernetSpec {
  readonly source: string;
  readonly destination: string;
  readonly tags?: readonly Tag[];
}

/** The kinds of frame that the engine has to look into, by name. */
export const TAGGED: readonly (readonly [string, readonly Tag[]])[] = [
  ['untagged', []],
  ['tagged', [[VLAN, 0x6005]]],
  [
    'tagged twice',
    [
      [SERVICE_VLAN, 7],
      [VLAN, 9],
    ],
  ],
];

/** An Ethernet header of 14, 18 or 22 bytes, and what follows it. */
export function ethernet({ source, destination, tags = [] }: EthernetSpec, type: number, body: Uint8Array): Uint8Array {
  const tagBytes = tags.flatMap(([tagType, control]) => [...be16(tagType), ...be16(control)]);
  return concat(mac(destination), mac(source), tagBytes, be16(type), body);
}

export const headerOf = ({ tags = [] }: EthernetSpec): number => 14 + 4 * tags.length;

const typeOf = (ip: IpSpec): number => (ip.source.includes(':') ? IPV6 : IPV4);

/** A frame with a whole IP packet with right checksums. */
export const frame = (ether: EthernetSpec, ip: IpSpec, transport: Transport): Uint8Array =>
  ethernet(ether, typeOf(ip), packet(ip, transport));

/** A virtio header for a frame, made from one for the packet in it. */
function shifted(header: Uint8Array, by: number): Uint8Array {
  const { flags, type, headerLength, size, start, offset } = decodeVnet(header);
  if (flags === 0) return header;
  return vnet({
    flags,
    type,
    headerLength: headerLength === 0 ? 0 : headerLength + by,
    size,
    start: start + by,
    offset,
  });
}

/** A frame as a TAP hands it over, its checksum left to the device. */
export function unfinishedFrame(ether: EthernetSpec, ip: IpSpec, transport: Transport): DevicePacket {
  const inner = unfinished(ip, transport);
  return { vnet: shifted(inner.vnet, headerOf(ether)), bytes: ethernet(ether, typeOf(ip), inner.bytes) };
}

/** A super-frame as a TAP hands it over: segments of `size` payload bytes. `lie` changes its virtio header. */
export function superFrame(
  ether: EthernetSpec,
  ip: IpSpec,
  transport: Transport,
  size: number,
  lie: Vnet = {},
): DevicePacket {
  const inner = superPacket(ip, transport, size);
  const { flags, type, headerLength, start, offset } = decodeVnet(inner.vnet);
  const by = headerOf(ether);
  return {
    vnet: vnet({ flags, type, headerLength: headerLength + by, size, start: start + by, offset, ...lie }),
    bytes: ethernet(ether, typeOf(ip), inner.bytes),
  };
}

/** A frame whose checksum is the pseudo-header's sum only: what a kernel sends across a veth. */
export const partialFrame = (ether: EthernetSpec, ip: IpSpec, transport: Transport): Uint8Array =>
  unfinishedFrame(ether, ip, transport).bytes;

/** A frame filled up with zeros to `length` bytes, as cards do. */
export function padded(bytes: Uint8Array, length = 60): Uint8Array {
  return bytes.length >= length ? bytes : concat(bytes, new Uint8Array(length - bytes.length));
}

// --- Reading ---

export interface DecodedFrame {
  readonly destination: string;
  readonly source: string;
  readonly tags: readonly Tag[];
  readonly type: number;
  readonly header: number;
  readonly body: Uint8Array;
}

/** Takes a frame apart; looks through at most two tags. Throws if it is shorter than its header. */
export function decodeFrame(bytes: Uint8Array): DecodedFrame {
  if (bytes.length < 14) throw new Error(`a frame of ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const tags: Tag[] = [];
  let at = 12;
  while (tags.length < 2 && (view.getUint16(at) === VLAN || view.getUint16(at) === SERVICE_VLAN)) {
    if (bytes.length < at + 6) throw new Error(`a tagged frame of ${bytes.length} bytes`);
    tags.push([view.getUint16(at), view.getUint16(at + 2)]);
    at += 4;
  }
  return {
    destination: macText(bytes.subarray(0, 6)),
    source: macText(bytes.subarray(6, 12)),
    tags,
    type: view.getUint16(at),
    header: at + 2,
    body: bytes.slice(at + 2),
  };
}

/** Frames as they leave a card: a super-frame's segments, or the one frame with its checksum finished. */
export function framesOnTheWire({ vnet: header, bytes }: DevicePacket): Uint8Array[] {
  if (header.every((byte) => byte === 0)) return [bytes];
  const { header: l2 } = decodeFrame(bytes);
  return onTheWire({ vnet: shifted(header, -l2), bytes: bytes.slice(l2) }).map((segment) =>
    concat(bytes.subarray(0, l2), segment),
  );
}

// --- VXLAN (RFC 7348) ---

export interface VxlanLie {
  readonly flags?: number;
  /** The three reserved bytes before the VNI. */
  readonly reserved?: number;
  /** The reserved byte behind it. */
  readonly last?: number;
}

export function vxlan(vni: number, inner: Uint8Array, lie: VxlanLie = {}): Uint8Array {
  const reserved = lie.reserved ?? 0;
  return concat(
    [lie.flags ?? 0x08, reserved >> 16, (reserved >> 8) & 255, reserved & 255],
    [(vni >> 16) & 255, (vni >> 8) & 255, vni & 255, lie.last ?? 0],
    inner,
  );
}

/** Takes a datagram apart that has to be as RFC 7348 wants it sent: only the I flag, all reserved bits zero. */
export function decodeVxlan(bytes: Uint8Array): { vni: number; frame: Uint8Array } {
  if (bytes.length < 8) throw new Error(`a VXLAN datagram of ${bytes.length} bytes`);
  if (bytes[0] !== 8 || bytes[1] !== 0 || bytes[2] !== 0 || bytes[3] !== 0 || bytes[7] !== 0) {
    throw new Error(`a VXLAN header of ${bytes.subarray(0, 8).join(' ')}`);
  }
  return { vni: (bytes[4] << 16) | (bytes[5] << 8) | bytes[6], frame: bytes.slice(8) };
}

// --- ARP (RFC 826) ---

export interface ArpSpec {
  /** 1 request, 2 reply. */
  readonly operation?: number;
  readonly senderMac: string;
  readonly sender: string;
  readonly targetMac?: string;
  readonly target: string;
  readonly hardware?: number;
  readonly protocol?: number;
  readonly hardwareLength?: number;
  readonly protocolLength?: number;
}

export const arp = (spec: ArpSpec): Uint8Array =>
  concat(
    be16(spec.hardware ?? 1),
    be16(spec.protocol ?? IPV4),
    [spec.hardwareLength ?? 6, spec.protocolLength ?? 4],
    be16(spec.operation ?? 1),
    mac(spec.senderMac),
    address(spec.sender),
    mac(spec.targetMac ?? NOBODY),
    address(spec.target),
  );

/** An ARP frame; a request goes to all unless `ether` says otherwise, a reply to its target. */
export function arpFrame(spec: ArpSpec, ether: Partial<EthernetSpec> = {}): Uint8Array {
  const destination = (spec.operation ?? 1) === 1 ? BROADCAST : (spec.targetMac ?? BROADCAST);
  return ethernet({ source: spec.senderMac, destination, ...ether }, ARP, arp(spec));
}

// --- Neighbour discovery (RFC 4861) ---

export const ROUTER_SOLICITATION = 133;
export const ROUTER_ADVERTISEMENT = 134;
export const NEIGHBOUR_SOLICITATION = 135;
export const NEIGHBOUR_ADVERTISEMENT = 136;

export const R_FLAG = 0x80;
export const S_FLAG = 0x40;
export const O_FLAG = 0x20;

/** A source (1) or target (2) link-layer address option. */
export const linkLayer = (type: 1 | 2, of: string): Uint8Array => concat([type, 1], mac(of));

const nd = (type: number, rest: Uint8Array): Transport => ({
  protocol: ICMPV6,
  bytes: concat([type, 0, 0, 0], rest),
  checksumAt: 2,
  header: 4 + rest.length,
});

const NO_OPTIONS = new Uint8Array(0);

export const solicitation = (target: string, options: Uint8Array = NO_OPTIONS): Transport =>
  nd(NEIGHBOUR_SOLICITATION, concat([0, 0, 0, 0], address(target), options));

export const advertisement = (target: string, flags: number, options: Uint8Array = NO_OPTIONS): Transport =>
  nd(NEIGHBOUR_ADVERTISEMENT, concat([flags, 0, 0, 0], address(target), options));

export const routerAdvertisement = (options: Uint8Array = NO_OPTIONS, lifetime = 1800): Transport =>
  nd(ROUTER_ADVERTISEMENT, concat([64, 0, ...be16(lifetime), 0, 0, 0, 0, 0, 0, 0, 0], options));

export const routerSolicitation = (options: Uint8Array = NO_OPTIONS): Transport =>
  nd(ROUTER_SOLICITATION, concat([0, 0, 0, 0], options));

/** The solicited-node multicast address (RFC 4291 2.7.1) of an address, and its MAC (RFC 2464 7). */
export function solicitedNode(target: string): { ip: string; mac: string } {
  const [high, middle, low] = address(target).subarray(13);
  const two = (byte: number): string => byte.toString(16).padStart(2, '0');
  return {
    ip: `ff02::1:ff${two(high)}:${two(middle)}${two(low)}`,
    mac: `33:33:ff:${two(high)}:${two(middle)}:${two(low)}`,
  };
}

/** A neighbour solicitation as a host sends it when it knows nothing of `target`; `from` `::` makes it a DAD probe. */
export function solicit(
  asker: string,
  from: string,
  target: string,
  ether: Partial<EthernetSpec> = {},
  ip: Partial<IpSpec> = {},
): Uint8Array {
  const group = solicitedNode(target);
  const options = from === '::' ? NO_OPTIONS : linkLayer(1, asker);
  return frame(
    { source: asker, destination: group.mac, ...ether },
    { source: from, destination: group.ip, ttl: 255, flow: 0, ...ip },
    solicitation(target, options),
  );
}

/** A neighbour advertisement from `owner` about its address; to all nodes unless `to` says otherwise. */
export function advertise(
  owner: string,
  target: string,
  flags: number,
  to: { readonly ip: string; readonly mac: string } = { ip: 'ff02::1', mac: '33:33:00:00:00:01' },
  ether: Partial<EthernetSpec> = {},
  ip: Partial<IpSpec> = {},
): Uint8Array {
  return frame(
    { source: owner, destination: to.mac, ...ether },
    { source: target, destination: to.ip, ttl: 255, flow: 0, ...ip },
    advertisement(target, flags, linkLayer(2, owner)),
  );
}
