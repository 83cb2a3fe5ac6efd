/** ARP (RFC 826) for IPv4 over Ethernet: offsets from the start of the packet, its check, and answers. */

const HARDWARE_TYPE = 0;
const PROTOCOL_TYPE = 2;
const HARDWARE_LENGTH = 4;
const PROTOCOL_LENGTH = 5;
export const ARP_OPERATION = 6;
export const ARP_SENDER_MAC = 8;
export const ARP_SENDER_IP = 14;
export const ARP_TARGET_MAC = 18;
export const ARP_TARGET_IP = 24;
/** Length of a packet for IPv4 over Ethernet; frames are often padded beyond. */
export const ARP_LENGTH = 28;

export const ARP_REQUEST = 1;
export const ARP_REPLY = 2;

const HARDWARE_ETHERNET = 1;
const PROTOCOL_IPV4 = 0x0800;

/** What the bytes are: for other hardware or another protocol; for IPv4 over Ethernet but malformed; well-formed. */
export const ARP_OTHER = 0;
export const ARP_BAD = 1;
export const ARP_GOOD = 2;

/** ARP_GOOD, ARP_BAD or ARP_OTHER for the `length` bytes at `at`, of which padding may be a part. */
export function checkArp(view: DataView, at: number, length: number): number {
  if (length < HARDWARE_LENGTH) return ARP_BAD;
  if (view.getUint16(at + HARDWARE_TYPE) !== HARDWARE_ETHERNET) return ARP_OTHER;
  if (view.getUint16(at + PROTOCOL_TYPE) !== PROTOCOL_IPV4) return ARP_OTHER;
  if (length < ARP_LENGTH) return ARP_BAD;
  return view.getUint8(at + HARDWARE_LENGTH) === 6 && view.getUint8(at + PROTOCOL_LENGTH) === 4 ? ARP_GOOD : ARP_BAD;
}

/**
 * Whether the IPv4 address at `at` can be one host's: not zero, loopback, multicast or broadcast. A sender with another one
 * says nothing about who has it.
 */
export function isHost4(view: DataView, at: number): boolean {
  const address = view.getInt32(at);
  const first = address >>> 24;
  return address !== 0 && address !== -1 && first !== 127 && first >> 4 !== 14;
}

/**
 * Writes, to `to`, the reply to the request at `from`: its target is at the MAC `low` (bytes 0 to 3, little-endian) and
 * `high` (4 and 5).
 */
export function writeArpReply(view: DataView, to: number, from: number, low: number, high: number): void {
  view.setUint16(to + HARDWARE_TYPE, HARDWARE_ETHERNET);
  view.setUint16(to + PROTOCOL_TYPE, PROTOCOL_IPV4);
  view.setUint8(to + HARDWARE_LENGTH, 6);
  view.setUint8(to + PROTOCOL_LENGTH, 4);
  view.setUint16(to + ARP_OPERATION, ARP_REPLY);
  view.setInt32(to + ARP_SENDER_MAC, low, true);
  view.setUint16(to + ARP_SENDER_MAC + 4, high, true);
  view.setInt32(to + ARP_SENDER_IP, view.getInt32(from + ARP_TARGET_IP));
  view.setInt32(to + ARP_TARGET_MAC, view.getInt32(from + ARP_SENDER_MAC));
  view.setUint16(to + ARP_TARGET_MAC + 4, view.getUint16(from + ARP_SENDER_MAC + 4));
  view.setInt32(to + ARP_TARGET_IP, view.getInt32(from + ARP_SENDER_IP));
}
