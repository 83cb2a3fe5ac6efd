/**
 * Flood lists: to whom a network's broadcast, multicast and unknown unicast frames go. One in each version of the
 * tables and for each network: a count, then that many peer references in no order, which a walk reads from the first
 * to the last.
 */
import type { EngineMemory, TableLayout } from '../io/memory.js';
import type { PeerRef } from './peers.js';

/** The i32 index of a network's list. */
export const floodList = (table: TableLayout, peers: number, network: number): number =>
  (table.floods >> 2) + network * (peers + 1);

/** Control's side of one version. */
export class FloodLists {
  readonly #i32: Int32Array;
  readonly #table: TableLayout;
  readonly #peers: number;
  /** By network and reference: where it is in the list. */
  readonly #positions = new Map<number, number>();

  constructor(memory: EngineMemory, table: TableLayout) {
    this.#i32 = memory.i32;
    this.#table = table;
    this.#peers = memory.options.peers;
  }

  /** Adds a peer that is not in the network's list. There is room for all peers that there can be. */
  add(network: number, ref: PeerRef): void {
    const list = floodList(this.#table, this.#peers, network);
    const position = ++this.#i32[list];
    this.#i32[list + position] = ref;
    this.#positions.set(network * 2 ** 32 + ref, position);
  }

  /** Takes a peer out, if it is there; the last one takes its place. */
  remove(network: number, ref: PeerRef): void {
    const position = this.#positions.get(network * 2 ** 32 + ref);
    if (position === undefined) return;
    this.#positions.delete(network * 2 ** 32 + ref);
    const list = floodList(this.#table, this.#peers, network);
    const count = this.#i32[list]--;
    const last = this.#i32[list + count];
    this.#i32[list + count] = 0;
    if (position === count) return;
    this.#i32[list + position] = last;
    this.#positions.set(network * 2 ** 32 + last, position);
  }
}
