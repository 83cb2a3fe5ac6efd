/**
 * IPv6 Neighbour Discovery (RFC 4861): router advertisements, neighbour solicitations and advertisements. `at` is the byte
 * offset of the IPv6 header in `view`; offsets called ND_… count from the ICMPv6 header behind it.
 *
 * Only messages straight behind the IPv6 header are looked at. Others are carried as they are: fragmented ones, which RFC
 * 6980 forbids, and ones behind extension headers, which hosts do not send.
 */
import {
  IPV6_DESTINATION,
  IPV6_HEADER,
  IPV6_HOP_LIMIT,
  IPV6_NEXT_HEADER,
  IPV6_PAYLOAD_LENGTH,
  IPV6_SOURCE,
  PROTOCOL_ICMPV6,
} from './ip.js';

export const ND_ROUTER_ADVERTISEMENT = 134;
export const ND_SOLICITATION = 135;
export const ND_ADVERTISEMENT = 136;

const CODE = 1;
export const ND_CHECKSUM = 2;
/** First byte of an advertisement's flags. */
export const ND_FLAGS = 4;
/** Of a router advertisement, in seconds (2 bytes). */
export const ND_ROUTER_LIFETIME = 6;
/** Of a solicitation or an advertisement. */
export const ND_TARGET = 8;
const OPTIONS = 24;
const ROUTER_OPTIONS = 16;

export const ND_FLAG_ROUTER = 0x80;
export const ND_FLAG_SOLICITED = 0x40;

export const ND_SOURCE_LINK_LAYER = 1;
export const ND_TARGET_LINK_LAYER = 2;
/** Where the address is in a link-layer address option, and how long the option is for Ethernet (RFC 2464 section 6). */
const OPTION_ADDRESS = 2;
const OPTION_BYTES = 8;

/** An advertisement with its target link-layer address option: ICMPv6 header, target, option. */
export const ND_ANSWER = OPTIONS + OPTION_BYTES;

/** What the bytes are, if not the type of a message that hosts accept: none of the three; or one to be discarded. */
export const ND_OTHER = 0;
export const ND_BAD = 1;

/**
 * The type of the message in the `length` bytes at `at`, or ND_OTHER, or ND_BAD where RFC 4861 (6.1.2, 7.1.1, 7.1.2) has
 * hosts discard it. Bytes behind the IPv6 packet are padding. The checksum is not looked at.
 */
export function checkNd(view: DataView, at: number, length: number): number {
  if (length <= IPV6_HEADER || view.getUint8(at) >> 4 !== 6) return ND_OTHER;
  if (view.getUint8(at + IPV6_NEXT_HEADER) !== PROTOCOL_ICMPV6) return ND_OTHER;
  const payload = view.getUint16(at + IPV6_PAYLOAD_LENGTH);
  if (payload === 0) return ND_OTHER;
  const type = view.getUint8(at + IPV6_HEADER);
  if (type < ND_ROUTER_ADVERTISEMENT || type > ND_ADVERTISEMENT) return ND_OTHER;
  const options = type === ND_ROUTER_ADVERTISEMENT ? ROUTER_OPTIONS : OPTIONS;
  if (payload > length - IPV6_HEADER || payload < options) return ND_BAD;
  if (view.getUint8(at + IPV6_HOP_LIMIT) !== 255 || view.getUint8(at + IPV6_HEADER + CODE) !== 0) return ND_BAD;
  if (!goodOptions(view, at + IPV6_HEADER + options, payload - options)) return ND_BAD;
  if (type === ND_ROUTER_ADVERTISEMENT) return isLinkLocal(view, at + IPV6_SOURCE) ? type : ND_BAD;
  if (isMulticast(view, at + IPV6_HEADER + ND_TARGET)) return ND_BAD;
  const good = type === ND_SOLICITATION ? goodSolicitation(view, at) : goodAdvertisement(view, at);
  return good ? type : ND_BAD;
}

/** Who has no address yet asks a solicited-node group, and has nothing to say about itself. */
function goodSolicitation(view: DataView, at: number): boolean {
  if (!isUnspecified(view, at + IPV6_SOURCE)) return true;
  return isSolicitedNode(view, at + IPV6_DESTINATION) && linkLayerAddress(view, at, ND_SOURCE_LINK_LAYER) === 0;
}

function goodAdvertisement(view: DataView, at: number): boolean {
  if (!isMulticast(view, at + IPV6_DESTINATION)) return true;
  return (view.getUint8(at + IPV6_HEADER + ND_FLAGS) & ND_FLAG_SOLICITED) === 0;
}

/** Whether options fill `length` bytes, none is empty, and link-layer addresses are as long as Ethernet's. */
function goodOptions(view: DataView, at: number, length: number): boolean {
  let left = length;
  while (left > 0) {
    if (left < 2) return false;
    const option = at + length - left;
    const bytes = view.getUint8(option + 1) << 3;
    if (bytes === 0 || bytes > left) return false;
    const type = view.getUint8(option);
    if ((type === ND_SOURCE_LINK_LAYER || type === ND_TARGET_LINK_LAYER) && bytes !== OPTION_BYTES) return false;
    left -= bytes;
  }
  return true;
}

/**
 * Where the address is in the first link-layer address option of `type` of a message whose lengths are right, or 0 if it has
 * none. (The first one is what hosts use.)
 */
export function linkLayerAddress(view: DataView, at: number, type: number): number {
  const message = at + IPV6_HEADER;
  const end = message + view.getUint16(at + IPV6_PAYLOAD_LENGTH);
  let option = message + (view.getUint8(message) === ND_ROUTER_ADVERTISEMENT ? ROUTER_OPTIONS : OPTIONS);
  while (option < end) {
    if (view.getUint8(option) === type) return option + OPTION_ADDRESS;
    option += view.getUint8(option + 1) << 3;
  }
  return 0;
}

const isMulticast = (view: DataView, at: number): boolean => view.getUint8(at) === 0xff;

export const isUnspecified = (view: DataView, at: number): boolean =>
  isZero12(view, at) && view.getInt32(at + 12) === 0;

/**
 * Whether the IPv6 address at `at` can be one host's on a link: not unspecified, loopback or multicast, and not IPv4-mapped:
 * such addresses are never on a link, and tables keep IPv4 hosts under them.
 */
export function isHost6(view: DataView, at: number): boolean {
  if (isMulticast(view, at)) return false;
  if (view.getInt32(at) !== 0 || view.getInt32(at + 4) !== 0) return true;
  const third = view.getInt32(at + 8);
  return third !== 0xffff && (third !== 0 || view.getInt32(at + 12) >>> 1 !== 0);
}

const isZero12 = (view: DataView, at: number): boolean =>
  view.getInt32(at) === 0 && view.getInt32(at + 4) === 0 && view.getInt32(at + 8) === 0;

/** fe80::/10 */
const isLinkLocal = (view: DataView, at: number): boolean => view.getUint16(at) >> 6 === 0xfe80 >> 6;

/** ff02::1:ff00:0/104 (RFC 4291 2.7.1) */
const isSolicitedNode = (view: DataView, at: number): boolean =>
  view.getUint16(at) === 0xff02 &&
  view.getUint16(at + 2) === 0 &&
  view.getInt32(at + 4) === 0 &&
  view.getInt32(at + 8) === 1 &&
  view.getUint8(at + 12) === 0xff;

/**
 * Writes, to `to`, an IPv6 packet with the advertisement that answers the solicitation whose IPv6 header is at `from`: its
 * target is at the MAC `low` (bytes 0 to 3, little-endian) and `high` (4 and 5). It never overrides (O=0), as RFC 4861 7.2.8
 * asks of proxies. A solicitation without a source address is answered to all nodes. The checksum is left 0.
 */
export function writeAdvertisement(
  view: DataView,
  to: number,
  from: number,
  low: number,
  high: number,
  router: boolean,
): void {
  const message = to + IPV6_HEADER;
  const everyone = isUnspecified(view, from + IPV6_SOURCE);
  view.setUint32(to, 0x60000000);
  view.setUint16(to + IPV6_PAYLOAD_LENGTH, ND_ANSWER);
  view.setUint8(to + IPV6_NEXT_HEADER, PROTOCOL_ICMPV6);
  view.setUint8(to + IPV6_HOP_LIMIT, 255);
  copy16(view, to + IPV6_SOURCE, from + IPV6_HEADER + ND_TARGET);
  if (everyone) writeAllNodes(view, to + IPV6_DESTINATION);
  else copy16(view, to + IPV6_DESTINATION, from + IPV6_SOURCE);
  view.setUint16(message, ND_ADVERTISEMENT << 8);
  view.setUint16(message + ND_CHECKSUM, 0);
  view.setInt32(message + ND_FLAGS, 0);
  view.setUint8(message + ND_FLAGS, (router ? ND_FLAG_ROUTER : 0) | (everyone ? 0 : ND_FLAG_SOLICITED));
  copy16(view, message + ND_TARGET, from + IPV6_HEADER + ND_TARGET);
  view.setUint8(message + OPTIONS, ND_TARGET_LINK_LAYER);
  view.setUint8(message + OPTIONS + 1, OPTION_BYTES >> 3);
  view.setInt32(message + OPTIONS + OPTION_ADDRESS, low, true);
  view.setUint16(message + OPTIONS + OPTION_ADDRESS + 4, high, true);
}

/** ff02::1 */
function writeAllNodes(view: DataView, at: number): void {
  view.setInt32(at, 0xff020000 | 0);
  view.setInt32(at + 4, 0);
  view.setInt32(at + 8, 0);
  view.setInt32(at + 12, 1);
}

function copy16(view: DataView, to: number, from: number): void {
  for (let i = 0; i < 16; i += 4) view.setInt32(to + i, view.getInt32(from + i));
}
