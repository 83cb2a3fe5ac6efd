/**
 * How packets go from host to host in a cluster that flannel's config describes, by flannel's names.
 *
 *   udp       IP in UDP, through a TUN; IPv6 subnets of a peer go the same way
 *   vxlan     the kernel routes to a TAP for each family (`flannel.<VNI>`, `flannel-v6.<VNI>`), frames go in VXLAN
 *   host-gw   the kernel routes to the other host itself: nothing is encapsulated, and nothing passes through us
 *   alloc     a subnet for this host, and no more
 */
export type Backend = UdpBackend | VxlanBackend | { readonly type: 'host-gw' } | { readonly type: 'alloc' };

export interface UdpBackend {
  readonly type: 'udp';
  readonly port: number;
}

export interface VxlanBackend {
  readonly type: 'vxlan';
  readonly port: number;
  readonly vni: number;
  /** Instead of the external interface's MTU, in bytes, before the outer headers are taken off; undefined: the interface's. */
  readonly mtu: number | undefined;
  /** MACs are learned from what arrives. */
  readonly learning: boolean;
  /** Peers on our own link are reached without encapsulation. */
  readonly directRouting: boolean;
}

export type BackendType = Backend['type'];

/** Port of the kernel's vxlan devices when nobody says otherwise (Linux, from before IANA gave one). */
export const KERNEL_VXLAN_PORT = 8472;
