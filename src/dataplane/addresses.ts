/**
 * Underlay addresses → peers: an open-addressed hash with linear probing, at most a quarter full, so that a lookup almost
 * always reads one cache line. An entry is 8 words: reference (0: free), the address as four words in network order (IPv4
 * as ::ffff:a.b.c.d, RFC 4291 2.5.5.2), network.
 */
import { ADDRESS_BYTES, type EngineMemory, type TableLayout } from '../io/memory.js';
import type { PeerRef } from './peers.js';

const ENTRY = ADDRESS_BYTES / 4;
/** The third word of an IPv4-mapped address, as a little-endian load sees it. */
export const MAPPED = 0xffff0000 | 0;

/** Where probing starts. The words are as loaded, so mixing must reach every bit. */
export function hashAddress(w0: number, w1: number, w2: number, w3: number, network: number): number {
  let h = Math.imul(w0 ^ Math.imul(w1, 0x85ebca6b), 0xcc9e2d51) ^ Math.imul(w2 ^ Math.imul(w3, 0x1b873593), 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 15) ^ network, 0x2c1b3c6d);
  return h ^ (h >>> 13);
}

/** The peer at an underlay address, or 0. `table` is an i32 index; `mask` is slots - 1. */
export function lookupAddress(
  i32: Int32Array,
  table: number,
  mask: number,
  w0: number,
  w1: number,
  w2: number,
  w3: number,
  network: number,
): PeerRef {
  for (let slot = hashAddress(w0, w1, w2, w3, network) & mask; ; slot = (slot + 1) & mask) {
    const at = table + slot * ENTRY;
    const ref = i32[at];
    if (ref === 0) return 0;
    if (
      i32[at + 4] === w3 &&
      i32[at + 3] === w2 &&
      i32[at + 2] === w1 &&
      i32[at + 1] === w0 &&
      i32[at + 5] === network
    ) {
      return ref;
    }
  }
}

/** An address of 4 or 16 bytes as the four words that the hash uses. */
export function addressWords(address: Uint8Array): Int32Array {
  const words = new Int32Array(4);
  const bytes = new Uint8Array(words.buffer);
  if (address.length === 4) {
    words[2] = MAPPED;
    bytes.set(address, 12);
  } else {
    bytes.set(address);
  }
  return words;
}

/** Control's side of one version. */
export class AddressTable {
  readonly #i32: Int32Array;
  readonly #at: number;
  readonly #mask: number;

  constructor(memory: EngineMemory, table: TableLayout) {
    this.#i32 = memory.i32;
    this.#at = table.addresses >> 2;
    this.#mask = memory.layout.addressSlots - 1;
  }

  #home(at: number): number {
    const i = this.#i32;
    return hashAddress(i[at + 1], i[at + 2], i[at + 3], i[at + 4], i[at + 5]) & this.#mask;
  }

  /** Adds an address that is not in the table. It is never more than a quarter full: peers are bounded. */
  add(words: Int32Array, network: number, ref: PeerRef): void {
    let slot = hashAddress(words[0], words[1], words[2], words[3], network) & this.#mask;
    while (this.#i32[this.#at + slot * ENTRY] !== 0) slot = (slot + 1) & this.#mask;
    const at = this.#at + slot * ENTRY;
    this.#i32.set(words, at + 1);
    this.#i32[at + 5] = network;
    this.#i32[at] = ref;
  }

  /**
   * Removes the entry of `ref` at an address (another peer may have taken the address over), and closes the gap (Knuth 6.4,
   * algorithm R), so that no tombstones gather.
   */
  remove(words: Int32Array, network: number, ref: PeerRef): void {
    let slot = hashAddress(words[0], words[1], words[2], words[3], network) & this.#mask;
    const matches = (at: number): boolean =>
      this.#i32[at] === ref &&
      this.#i32[at + 5] === network &&
      words.every((word, i) => this.#i32[at + 1 + i] === word);
    while (!matches(this.#at + slot * ENTRY)) {
      if (this.#i32[this.#at + slot * ENTRY] === 0) return;
      slot = (slot + 1) & this.#mask;
    }
    for (let next = (slot + 1) & this.#mask; ; next = (next + 1) & this.#mask) {
      const at = this.#at + next * ENTRY;
      if (this.#i32[at] === 0) break;
      const distance = (next - this.#home(at)) & this.#mask;
      if (distance >= ((next - slot) & this.#mask)) {
        this.#i32.copyWithin(this.#at + slot * ENTRY, at, at + ENTRY);
        slot = next;
      }
    }
    const at = this.#at + slot * ENTRY;
    this.#i32.fill(0, at, at + ENTRY);
  }
}
