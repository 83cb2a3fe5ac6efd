/**
 * What differs between the two layers in the walks: who gets an outbound packet, and which inbound ones are let in. Layer 3
 * routes (routing.ts), layer 2 switches (switching.ts); everything else is the same.
 */

/** Outbound: the packet has been dropped or answered, and counted. */
export const DONE = 0;
/** Outbound: to all peers of the network. Any other number is a peer's reference. */
export const FLOOD = -1;

export interface Layer {
  // Of the packet last looked at:
  /** Bytes before its IP header: 0 in layer 3. */
  readonly l2: number;
  /** 4 or 6; 0: it is not IP, or its IP header makes no sense. */
  readonly version: number;
  /** The IP packet fills the rest to the last byte (short frames may be padded). */
  readonly exact: boolean;

  /** The table version for this turn. */
  useTables(version: number): void;
  /** Looks at a packet from the device of `network`, at `at`; returns a peer's reference, FLOOD or DONE. */
  outbound(at: number, length: number, network: number): number;
  /** The peer that `outbound` returned is gone, or in an underlay that we have no socket of: drops and counts the packet. */
  lost(at: number, length: number): void;
  /** Called once for an outbound packet that goes on as it is, before it is split. */
  depart(at: number): void;
  /** Looks at a packet from peer `ref` (0: a sender that nobody knows). False: dropped and counted. */
  inbound(at: number, length: number, ref: number, network: number): boolean;
}
