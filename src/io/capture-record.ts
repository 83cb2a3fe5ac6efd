/**
 * A captured packet, as a worker writes it to its capture ring (dataplane/tap.ts) and as the daemon streams it
 * (inspect/capture-frames.ts): a header of RECORD_HEADER bytes, then the packet's first bytes, padded to RECORD_ALIGN.
 * Little-endian throughout.
 */

/** Where a packet was seen. */
export const DEVICE_IN = 0;
export const UNDERLAY_OUT = 1;
export const UNDERLAY_IN = 2;
export const DEVICE_OUT = 3;
export const PLACES = 4;

/** Header words (i32), from the record's start. */
/** Bytes of the whole record, with header and padding. */
export const RECORD_SIZE = 0;
/** Which capture it belongs to; RECORD_VOID: to none, skip it. */
export const RECORD_SESSION = 1;
/** CLOCK_MONOTONIC at the beginning of the worker's turn: seconds, nanoseconds. */
export const RECORD_SECONDS = 2;
export const RECORD_NANOSECONDS = 3;
/** Bytes: place, network (device side; NO_NETWORK on the underlay's), worker, RECORD_FLAG_*. */
export const RECORD_WHERE = 4;
/** u16 verdict (dataplane/verdicts.ts), u16 segment size of a super-packet on the device side, 0: it is none. */
export const RECORD_VERDICT = 5;
/** The peer's reference (dataplane/peers.ts); 0: none, or several. */
export const RECORD_PEER = 6;
/** Bytes of the packet, and how many of them follow. */
export const RECORD_LENGTH = 7;
export const RECORD_CAPTURED = 8;
/** Bytes: outer TOS or traffic class, which of all workers' sending sockets, underlay (0 IPv4, 1 IPv6), zero. Underlay side only. */
export const RECORD_OUTER = 9;
/** struct sockaddr_in or sockaddr_in6 of the other end. Underlay side only. */
export const RECORD_NAME = 10;
export const RECORD_NAME_WORDS = 8;
/** Bytes of the header. */
export const RECORD_HEADER = (RECORD_NAME + RECORD_NAME_WORDS) * 4;
export const RECORD_ALIGN = 8;

export const RECORD_VOID = 0;
export const NO_NETWORK = 255;
/** Its checksum is left to the device: what stands in its place is only the pseudo-header's sum. */
export const RECORD_FLAG_PARTIAL = 1;

/** Bytes of a record with `captured` bytes of packet. */
export const recordSize = (captured: number): number =>
  (RECORD_HEADER + captured + RECORD_ALIGN - 1) & ~(RECORD_ALIGN - 1);

/** Most bytes of a packet that are kept: longer than any frame. */
export const MAX_SNAPLEN = 65_600;
/** Longest record. */
export const MAX_RECORD = recordSize(MAX_SNAPLEN);
