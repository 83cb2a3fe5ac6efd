/**
 * The VXLAN header (RFC 7348 section 5), 8 bytes in network byte order: flags (only I, "the VNI is valid", is defined), 24
 * reserved bits, the VNI, 8 reserved bits. Reserved bits are sent as zero and ignored on receipt.
 */

export const VXLAN_HEADER = 8;
export const VNI_MOST = 0xffffff;
/** Bytes 4..6, and a reserved one. */
const VNI = 4;
/** The first byte. */
const FLAG_I = 0x08;

/** True when the header at `at` says that it has a VNI. */
export const hasVni = (view: DataView, at: number): boolean => (view.getUint8(at) & FLAG_I) !== 0;

export const vniOf = (view: DataView, at: number): number => view.getUint32(at + VNI) >>> 8;

/** Writes the header for `vni`. */
export function writeVxlan(view: DataView, at: number, vni: number): void {
  view.setInt32(at, FLAG_I << 24);
  view.setInt32(at + VNI, vni << 8);
}
