/** struct virtio_net_hdr (linux/virtio_net.h), little-endian, 10 bytes: what a TUN with IFF_VNET_HDR exchanges. */

export const VNET_GSO_TYPE = 1;
export const VNET_HDR_LEN = 2;
export const VNET_GSO_SIZE = 4;
export const VNET_CSUM_START = 6;
export const VNET_CSUM_OFFSET = 8;

export const VNET_NEEDS_CSUM = 1;

export const GSO_NONE = 0;
export const GSO_TCPV4 = 1;
export const GSO_TCPV6 = 4;
export const GSO_UDP_L4 = 5;
/** Or-ed: the super-packet has CWR set on its first segment. */
export const GSO_ECN = 0x80;
