/** What the shared memory says of a peer: its path MTU, and the packets and bytes that the workers counted. */
import { PEER_MTU, type PeerRef, slotOf } from '../../dataplane/peers.js';
import { type EngineMemory, PEER_BYTES, PEER_COUNTERS } from '../../io/memory.js';
import type { Traffic } from '../protocol.js';

/** Largest inner packet, in layer 2 frame, that is sent to it. */
export const pathMtuOf = ({ i32, layout }: EngineMemory, ref: PeerRef): number =>
  Atomics.load(i32, ((layout.peers + slotOf(ref) * PEER_BYTES) >> 2) + PEER_MTU);

/** Columns of a peer's counters (io/memory.ts). */
const [PACKETS_OUT, BYTES_OUT, PACKETS_IN, BYTES_IN] = [0, 1, 2, 3];

/** Sums over workers and these references, all of one peer. */
export function trafficOf({ f64, layout }: EngineMemory, refs: Iterable<PeerRef>): Traffic {
  const sums = [0, 0, 0, 0];
  for (const ref of refs) {
    for (const { peerCounters } of layout.workers) {
      const at = (peerCounters >> 3) + slotOf(ref) * PEER_COUNTERS;
      for (let column = 0; column < PEER_COUNTERS; column++) sums[column] += f64[at + column];
    }
  }
  return {
    packetsOut: sums[PACKETS_OUT],
    bytesOut: sums[BYTES_OUT],
    packetsIn: sums[PACKETS_IN],
    bytesIn: sums[BYTES_IN],
  };
}
