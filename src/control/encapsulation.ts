/**
 * The two kinds of overlay, and what their outer headers cost.
 *
 *   l3   IP packets in UDP, as flannel's udp backend has them
 *   l2   Ethernet frames in VXLAN (RFC 7348)
 */
import type { Family } from '../dataplane/routes.js';
import { ETHERNET_HEADER } from '../packet/ethernet.js';
import { VXLAN_HEADER } from '../packet/vxlan.js';

export const MODES = ['l3', 'l2'] as const;
export type Mode = (typeof MODES)[number];

/** Outer headers in bytes, without options: IPv4 20 or IPv6 40, UDP 8, and in layer 2 VXLAN's. */
export const OVERHEAD: Readonly<Record<Mode, Readonly<Record<Family, number>>>> = {
  l3: { 4: 28, 6: 48 },
  l2: { 4: 28 + VXLAN_HEADER, 6: 48 + VXLAN_HEADER },
};

/** Bytes of what is carried that the device's MTU does not count: the inner Ethernet header. */
export const LINK_HEADER: Readonly<Record<Mode, number>> = { l3: 0, l2: ETHERNET_HEADER };

/** Most bytes of a UDP datagram over IPv4. */
const DATAGRAM_MOST = 65507;
/** The largest inner packet or frame. */
export const INNER_MOST: Readonly<Record<Mode, number>> = { l3: DATAGRAM_MOST, l2: DATAGRAM_MOST - VXLAN_HEADER };

/** Where peers listen when nobody says otherwise: flannel's udp backend, and IANA's port of VXLAN. */
export const DEFAULT_PORTS: Readonly<Record<Mode, number>> = { l3: 8285, l2: 4789 };
