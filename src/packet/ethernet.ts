/**
 * Ethernet II frames (IEEE 802.3) with up to two VLAN tags (802.1Q, 802.1ad): offsets from the start of the frame, as a TAP
 * and VXLAN carry them, without preamble and frame check sequence.
 */

export const DESTINATION = 0;
export const SOURCE = 6;
/** Ethertype, or the first tag. */
export const TYPE = 12;
/** Without tags. */
export const ETHERNET_HEADER = 14;
/** Tag type (2 bytes), then priority, drop eligible and VLAN identifier (2 bytes). */
export const VLAN_TAG = 4;
/** With as many tags as are looked through. */
export const ETHERNET_MAX_HEADER = ETHERNET_HEADER + 2 * VLAN_TAG;

export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_IPV6 = 0x86dd;
export const ETHERTYPE_VLAN = 0x8100;
export const ETHERTYPE_SERVICE_VLAN = 0x88a8;

/**
 * Bytes before the network layer of the frame of `length` bytes at `at`: 14, 18 or 22, and the ethertype is in the last two
 * of them. 0: the frame is shorter than that. A third tag counts as network layer.
 */
export function headerLength(view: DataView, at: number, length: number): number {
  let header = ETHERNET_HEADER;
  while (header <= length) {
    const type = view.getUint16(at + header - 2);
    if ((type !== ETHERTYPE_VLAN && type !== ETHERTYPE_SERVICE_VLAN) || header === ETHERNET_MAX_HEADER) return header;
    header += VLAN_TAG;
  }
  return 0;
}

/** The VLAN identifier (12 bits) of the `nth` tag, 0 or 1, of a frame whose headers are `header` bytes long; 0: there is none. */
export const vlanOf = (view: DataView, at: number, header: number, nth: number): number =>
  header > ETHERNET_HEADER + nth * VLAN_TAG ? view.getUint16(at + ETHERNET_HEADER + nth * VLAN_TAG) & 0xfff : 0;

/** Whether the MAC at `at` is a group address: multicast or broadcast. */
export const isGroupMac = (view: DataView, at: number): boolean => (view.getUint8(at) & 1) !== 0;

/** Writes the group address of all IPv6 nodes (RFC 2464 section 7). */
export function writeAllNodesMac(view: DataView, at: number): void {
  view.setUint16(at, 0x3333);
  view.setInt32(at + 2, 1);
}
