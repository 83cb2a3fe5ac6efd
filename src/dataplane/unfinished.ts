/**
 * Frames that a kernel did not finish. A kernel's VXLAN across a veth (containers, and all that is made of them) leaves
 * checksums, and the segmentation of super-frames, to a network card that is never reached: they arrive here with only the
 * folded pseudo-header sum in the checksum field, up to 64 KiB long, and nothing says so (kernel-interfaces.md, trap 1).
 *
 * They are told by that sum. A right checksum may have that value too, once in 65,536: it is recognised as right.
 */
import type { Kernels } from '../io/kernels.js';
import { VNET_HEADER } from '../io/memory.js';
import * as ip from '../packet/ip.js';
import * as vnet from '../packet/virtio-net.js';

export const FINISHED = 0;
/** Its checksum is missing; the virtio header says where. */
export const PARTIAL = 1;
/** So is its segmentation; the virtio header says how. */
export const UNSEGMENTED = 2;

/**
 * Looks at the IP packet at `at`, `l2` bytes behind the start of its frame, before which a zeroed virtio header lies, and fills
 * that in. `exact`: it fills the frame to the last byte. `mtu`: largest IP packet; `size`: payload bytes of each UDP datagram in a super-frame, 0 if it is not one. A TCP
 * super-frame is to be cut as the MTU demands, since nobody says how its sender would have.
 */
export function findUnfinished(
  view: DataView,
  kernels: Kernels,
  at: number,
  l2: number,
  version: number,
  exact: boolean,
  mtu: number,
  size: number,
): number {
  const v4 = version === 4;
  if (v4 && view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) return FINISHED;
  const protocol = view.getUint8(at + (v4 ? ip.IPV4_PROTOCOL : ip.IPV6_NEXT_HEADER));
  const tcp = protocol === ip.PROTOCOL_TCP;
  if (!tcp && protocol !== ip.PROTOCOL_UDP) return FINISHED;
  const l3 = v4 ? (view.getUint8(at) & 15) << 2 : ip.IPV6_HEADER;
  const length = v4 ? view.getUint16(at + ip.IPV4_TOTAL_LENGTH) : l3 + view.getUint16(at + ip.IPV6_PAYLOAD_LENGTH);
  if (length < l3 + (tcp ? 20 : 8)) return FINISHED;

  const segment = length - l3;
  const offset = tcp ? 16 : 6;
  if (!tcp && view.getUint16(at + l3 + 4) !== segment) return FINISHED; // no kernel leaves that behind
  const rest = ((segment & 0xff) << 8) + (segment >> 8) + (protocol << 8); // as little-endian words, like the sum itself
  const pseudo = v4 ? kernels.sum(at + ip.IPV4_SOURCE, 8, rest) : kernels.sum(at + ip.IPV6_SOURCE, 32, rest);
  if (view.getUint16(at + l3 + offset, true) !== pseudo) return FINISHED;
  const headers = l3 + (tcp ? (view.getUint8(at + l3 + 12) >> 4) << 2 : 8);
  const each = tcp ? mtu - headers : size;
  const whole = !exact || each <= 0 || length - headers <= each || (tcp && (length <= mtu || headers < l3 + 20));
  if (whole && kernels.sum(at + l3, segment, pseudo) === 0xffff) return FINISHED;

  const header = at - l2 - VNET_HEADER;
  view.setUint8(header, vnet.VNET_NEEDS_CSUM);
  view.setUint16(header + vnet.VNET_CSUM_START, l2 + l3, true);
  view.setUint16(header + vnet.VNET_CSUM_OFFSET, offset, true);
  if (whole) return PARTIAL;
  view.setUint8(header + vnet.VNET_GSO_TYPE, tcp ? (v4 ? vnet.GSO_TCPV4 : vnet.GSO_TCPV6) : vnet.GSO_UDP_L4);
  view.setUint16(header + vnet.VNET_HDR_LEN, l2 + headers, true);
  view.setUint16(header + vnet.VNET_GSO_SIZE, each, true);
  return UNSEGMENTED;
}
