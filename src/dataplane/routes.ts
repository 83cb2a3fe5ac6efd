/**
 * Routes: longest-prefix match by a trie with a 16-bit root and nodes of 16 entries, one cache line each.
 *
 * An entry (i32) is 0 (nothing), a peer reference (> 0), or minus the index of a child node (< 0). Prefixes are pushed to
 * the leaves, so a lookup follows children and takes what it finds: at most four steps for IPv4 and 29 for IPv6, whatever
 * the number of routes, and no step back. With /24s under one /16 (flannel's usual shape) it is three.
 *
 * Control keeps, beside every entry, the length of the prefix that put it there (plus one; 0: nobody), which is what
 * replacing and removing need; workers never read it.
 */
import type { EngineMemory, TableLayout } from '../io/memory.js';
import type { PeerRef } from './peers.js';

export type Family = 4 | 6;

/** A prefix in network byte order (4 or 16 bytes); bits beyond `length` are zero. */
export interface Prefix {
  readonly bytes: Uint8Array;
  readonly length: number;
}

const ROOT_BITS = 16;
const NODE_BITS = 4;
const NODE_ENTRIES = 1 << NODE_BITS;

/**
 * The reference for an IPv4 destination given in host byte order. `roots` and `nodes` are i32 indices.
 */
export function lookup4(i32: Int32Array, roots: number, nodes: number, destination: number): PeerRef {
  let entry = i32[roots + (destination >>> 16)];
  for (let shift = 12; entry < 0; shift -= NODE_BITS)
    entry = i32[nodes - (entry << 4) + ((destination >>> shift) & 15)];
  return entry;
}

/** The same for the IPv6 destination whose 16 bytes start at byte `at`. */
export function lookup6(i32: Int32Array, u8: Uint8Array, roots: number, nodes: number, at: number): PeerRef {
  let entry = i32[roots + ((u8[at] << 8) | u8[at + 1])];
  for (let bit = ROOT_BITS; entry < 0; bit += NODE_BITS) {
    const byte = u8[at + (bit >> 3)];
    entry = i32[nodes - (entry << 4) + (bit & 4 ? byte & 15 : byte >> 4)];
  }
  return entry;
}

/** Control's side of one version of the tables: both families, all networks. */
export class RouteTrie {
  readonly #i32: Int32Array;
  readonly #roots4: number;
  readonly #roots6: number;
  readonly #nodes: number;
  readonly #capacity: number;
  /** Length + 1 of the prefix behind each entry: roots first, then nodes. */
  readonly #lengths4: Uint8Array;
  readonly #lengths6: Uint8Array;
  readonly #lengthsNodes: Uint8Array;
  /** Prefixes that end in a node or below it. */
  readonly #uses: Int32Array;
  readonly #freeNodes: number[] = [];
  #nextNode = 1; // 0 cannot be named by a negative entry

  constructor(memory: EngineMemory, table: TableLayout) {
    this.#i32 = memory.i32;
    this.#roots4 = table.roots4 >> 2;
    this.#roots6 = table.roots6 >> 2;
    this.#nodes = table.nodes >> 2;
    this.#capacity = memory.options.routeNodes;
    const roots = memory.options.networks * 65536;
    this.#lengths4 = new Uint8Array(roots);
    this.#lengths6 = new Uint8Array(roots);
    this.#lengthsNodes = new Uint8Array(this.#capacity * NODE_ENTRIES);
    this.#uses = new Int32Array(this.#capacity);
  }

  /** Nodes that are not in use. A prefix needs at most 3 (IPv4) or 28 (IPv6). */
  get freeNodes(): number {
    return this.#capacity - this.#nextNode + this.#freeNodes.length;
  }

  /** Of `nodes`, how full they are: 0 to 1. */
  get fill(): number {
    return 1 - this.freeNodes / Math.max(this.#capacity - 1, 1);
  }

  /** Most new nodes that adding a prefix can take. */
  static nodesFor(prefix: Prefix): number {
    return Math.max(0, Math.ceil((prefix.length - ROOT_BITS) / NODE_BITS));
  }

  /** Adds a prefix that is not there yet; `fresh` false replaces the owner of one that is. */
  set(network: number, prefix: Prefix, ref: PeerRef, fresh: boolean): void {
    this.#paint(network, prefix, ref, prefix.length + 1, prefix.length + 1, fresh ? 1 : 0);
  }

  /** Removes a prefix; what it covered goes to the next shorter prefix (`cover`, length -1: none). */
  remove(network: number, prefix: Prefix, cover: PeerRef, coverLength: number): void {
    this.#paint(network, prefix, cover, coverLength + 1, prefix.length + 1, -1);
  }

  /**
   * Gives every entry under `prefix` whose owner's length (plus one) is at most `upTo` to (`ref`, `owner`). `change` counts
   * the prefix in (1) or out (-1) of the nodes on its way; nodes that no prefix uses any more are freed.
   */
  #paint(network: number, prefix: Prefix, ref: PeerRef, owner: number, upTo: number, change: number): void {
    const { bytes, length } = prefix;
    const v4 = bytes.length === 4;
    const root = network * 65536 + ((bytes[0] << 8) | bytes[1]);
    let words = v4 ? this.#roots4 : this.#roots6;
    let lengths = v4 ? this.#lengths4 : this.#lengths6;
    let index = root;
    const path: { words: number; lengths: Uint8Array; index: number; node: number }[] = [];
    let depth = ROOT_BITS;
    for (; length > depth; depth += NODE_BITS) {
      const node = this.#child(words, lengths, index);
      this.#uses[node] += change;
      path.push({ words, lengths, index, node });
      words = this.#nodes;
      lengths = this.#lengthsNodes;
      const byte = bytes[depth >> 3];
      index = node * NODE_ENTRIES + (depth & 4 ? byte & 15 : byte >> 4);
    }
    const count = 1 << (depth - length);
    for (let i = index; i < index + count; i++) this.#paintEntry(words, lengths, i, ref, owner, upTo);
    for (const step of path.reverse()) {
      if (this.#uses[step.node] > 0) break;
      // Only pushed-down entries of one covering prefix are left in it: they all look the same.
      const first = step.node * NODE_ENTRIES;
      const entry = this.#i32[this.#nodes + first];
      step.lengths[step.index] = this.#lengthsNodes[first];
      Atomics.store(this.#i32, step.words + step.index, entry);
      this.#freeNodes.push(step.node);
    }
  }

  #paintEntry(words: number, lengths: Uint8Array, index: number, ref: PeerRef, owner: number, upTo: number): void {
    const entry = this.#i32[words + index];
    if (entry < 0) {
      const first = -entry * NODE_ENTRIES;
      for (let i = first; i < first + NODE_ENTRIES; i++) {
        this.#paintEntry(this.#nodes, this.#lengthsNodes, i, ref, owner, upTo);
      }
    } else if (lengths[index] <= upTo) {
      lengths[index] = owner;
      this.#i32[words + index] = ref;
    }
  }

  /** The child node of an entry, made if there is none: its entries start as what the entry was. */
  #child(words: number, lengths: Uint8Array, index: number): number {
    const entry = this.#i32[words + index];
    if (entry < 0) return -entry;
    const node = this.#freeNodes.pop() ?? this.#nextNode++;
    if (node >= this.#capacity) throw new RangeError(`route table full: ${this.#capacity} nodes`);
    this.#i32.fill(entry, this.#nodes + node * NODE_ENTRIES, this.#nodes + (node + 1) * NODE_ENTRIES);
    this.#lengthsNodes.fill(lengths[index], node * NODE_ENTRIES, (node + 1) * NODE_ENTRIES);
    this.#uses[node] = 0;
    this.#i32[words + index] = -node;
    return node;
  }
}
