/**
 * Packets and bytes by peer, for /metrics. Series cost a scrape and a database, so the first MOST_PEERS names have some of their
 * own, and the rest has one sum.
 *
 * That sum must never go down, though the peers that it is of change with every one that comes or goes. So it is not the sum of
 * what they have counted, but of what they counted while they were among the rest: from scrape to scrape each of those adds what it
 * has grown by. It does not matter how many scrape, or how often.
 */
import { type PeerRef, slotOf } from '../dataplane/peers.js';
import { type EngineMemory, PEER_COUNTERS } from '../io/memory.js';
import type { PeerInForce } from './tables.js';

/** Names with series of their own. */
export const MOST_PEERS = 256;
/** The name of all others. A peer that calls itself so is one of them. */
export const OTHERS = '(others)';

/** PEER_COUNTERS numbers: packets and bytes, out and in (io/memory.ts). */
export type PeerSums = Float64Array;

export interface PeersSeen {
  /** By name, sorted; sums over all networks that the peer is in. The rest comes last, once there has been any. */
  readonly shown: readonly (readonly [name: string, sums: PeerSums])[];
  /** Names, and how many of them have no series of their own. */
  readonly names: number;
  readonly notShown: number;
}

export class PeerCounters {
  readonly #memory: EngineMemory;
  /** By slot: whose counters were read last, and what they were. */
  readonly #refs: Int32Array;
  readonly #last: Float64Array;
  readonly #rest: PeerSums = new Float64Array(PEER_COUNTERS);
  #restBegun = false;

  constructor(memory: EngineMemory) {
    this.#memory = memory;
    this.#refs = new Int32Array(memory.options.peers);
    this.#last = new Float64Array(memory.options.peers * PEER_COUNTERS);
  }

  /** Reads the counters of all peers in force; one in several of our networks comes once for each. */
  see(peers: Iterable<PeerInForce>): PeersSeen {
    const byName = refsByName(peers);
    const rest = byName.get(OTHERS) ?? [];
    byName.delete(OTHERS);
    const names = byName.size + (rest.length > 0 ? 1 : 0);
    const shown: (readonly [string, PeerSums])[] = [];
    for (const name of [...byName.keys()].sort()) {
      const refs = byName.get(name) ?? [];
      if (shown.length === MOST_PEERS) rest.push(...refs);
      else {
        const sums = new Float64Array(PEER_COUNTERS);
        for (const ref of refs) this.#read(ref, sums, undefined);
        shown.push([name, sums]);
      }
    }
    for (const ref of rest) this.#read(ref, undefined, this.#rest);
    const notShown = names - shown.length;
    this.#restBegun ||= notShown > 0;
    if (this.#restBegun) shown.push([OTHERS, this.#rest]);
    return { shown, names, notShown };
  }

  /** Adds a peer's counters to `sums`, and what they have grown by since they were read last to `growth`. */
  #read(ref: PeerRef, sums: PeerSums | undefined, growth: PeerSums | undefined): void {
    const { f64, layout } = this.#memory;
    const slot = slotOf(ref);
    const last = slot * PEER_COUNTERS;
    if (this.#refs[slot] !== ref) {
      this.#refs[slot] = ref;
      this.#last.fill(0, last, last + PEER_COUNTERS); // as the slot was when it got this peer
    }
    for (let column = 0; column < PEER_COUNTERS; column++) {
      let now = 0;
      for (const { peerCounters } of layout.workers) now += f64[(peerCounters >> 3) + last + column];
      if (sums) sums[column] += now;
      if (growth) growth[column] += now - this.#last[last + column];
      this.#last[last + column] = now;
    }
  }
}

/** By name: references, one for each network that the peer is in. */
function refsByName(peers: Iterable<PeerInForce>): Map<string, PeerRef[]> {
  const found = new Map<string, PeerRef[]>();
  for (const { name, ref } of peers) {
    const refs = found.get(name);
    if (refs) refs.push(ref);
    else found.set(name, [ref]);
  }
  return found;
}
