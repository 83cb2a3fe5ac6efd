/**
 * IP addresses → MACs, for the ARP and ND proxy: open-addressed hashes with linear probing, at most half full. Two
 * kinds, as in macs.ts: the registry's (static), one in each version of the tables, and each worker's own (learned)
 * from what ARP (RFC 826) and ND (RFC 4861) say.
 *
 * An entry is 16 i32 words, one cache line: state (0: free), the address as addressWords() makes it (IPv4 as
 * ::ffff:a.b.c.d), network and VLANs (`scopeOf`), MAC (low, high: see macs.ts), flags, reference of the peer that has it (LOCAL: our side; 0:
 * unknown), then, learned ones only: when last taught, when learned, when other workers were last told.
 * Times are milliseconds that wrap at 32 bits: only differences mean anything.
 */
import {
  type EngineMemory,
  MAX_NETWORKS,
  NEIGHBOUR_BYTES,
  type TableLayout,
  type WorkerLayout,
  workerLayout,
} from '../io/memory.js';
import { NEIGHBOURS_AGED, NEIGHBOURS_FULL, NEIGHBOURS_LEARNED } from './counters.js';
import { neighboursSecretAt, neighboursUsedAt } from './gauges.js';
import { PeerShares, randomSecret, sweepStep } from './macs.js';
import type { PeerRef } from './peers.js';
import type { Rings } from './rings.js';

const ENTRY = NEIGHBOUR_BYTES / 4;
/** Words of an entry, see above. */
export const NEIGHBOUR_STATE = 0;
export const NEIGHBOUR_ADDRESS = 1;
export const NEIGHBOUR_NETWORK = 5;
export const NEIGHBOUR_MAC_LOW = 6;
export const NEIGHBOUR_MAC_HIGH = 7;
export const NEIGHBOUR_FLAGS = 8;
export const NEIGHBOUR_REF = 9;
export const NEIGHBOUR_SEEN = 10;
const LEARNED = 11;
const ANNOUNCED = 12;

/** Flags: it is a router; and we know whether it is one (an advertisement or the registry said so). */
export const ROUTER = 1;
export const ROUTER_KNOWN = 2;

/**
 * A network and the VLANs of the tags in it (0: no such tag), as one number: what was learned in one VLAN is not so in another,
 * since one address may be two hosts in two VLANs. What the registry says is of the network, whatever the VLAN.
 */
export const scopeOf = (network: number, outer: number, inner: number): number =>
  network | (outer << SCOPE_OUTER) | (inner << SCOPE_INNER);
export const networkOf = (scope: number): number => scope & (MAX_NETWORKS - 1);
/** The VLANs in a scope, the outer first. */
export const vlansOf = (scope: number): number[] =>
  [(scope >> SCOPE_OUTER) & 0xfff, (scope >> SCOPE_INNER) & 0xfff].filter((vlan) => vlan !== 0);
const SCOPE_OUTER = 4;
const SCOPE_INNER = 16;

const TAUGHT = 1;
/** State: another worker told us. It counts this neighbour as learned and aged, so we do not. */
const HEARD = 2;

/** As in macs.ts. */
const SWEEP_TIME = 10_000;
const NEVER = 0x7fffffff;

/** Where probing starts; `secret` as for hashMac. */
export function hashNeighbour(w0: number, w1: number, w2: number, w3: number, network: number, secret: number): number {
  let h = Math.imul(w0 ^ secret, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 15) ^ w1, 0xcc9e2d51);
  h = Math.imul(h ^ (h >>> 16) ^ w2, 0x1b873593);
  h = Math.imul(h ^ (h >>> 15) ^ w3, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 16) ^ network, 0x2c1b3c6d);
  return h ^ (h >>> 15);
}

/**
 * The i32 index of the entry that the registry has for an address, or -1. `table` and `mask` as for lookupStaticMac.
 */
export function findStaticNeighbour(
  i32: Int32Array,
  table: number,
  mask: number,
  w0: number,
  w1: number,
  w2: number,
  w3: number,
  network: number,
): number {
  if (mask < 0) return -1;
  const at = probe(i32, table, mask, 0, w0, w1, w2, w3, network);
  return i32[at] === 0 ? -1 : at;
}

/** The i32 index of an address's entry, or of the free one where it would go. */
function probe(
  i32: Int32Array,
  table: number,
  mask: number,
  secret: number,
  w0: number,
  w1: number,
  w2: number,
  w3: number,
  network: number,
): number {
  for (let slot = hashNeighbour(w0, w1, w2, w3, network, secret) & mask; ; slot = (slot + 1) & mask) {
    const at = table + slot * ENTRY;
    if (i32[at] === 0) return at;
    if (
      i32[at + 4] === w3 &&
      i32[at + 3] === w2 &&
      i32[at + 2] === w1 &&
      i32[at + 1] === w0 &&
      i32[at + NEIGHBOUR_NETWORK] === network
    ) {
      return at;
    }
  }
}

/** Frees a slot and closes the gap (Knuth 6.4, algorithm R). */
function free(i32: Int32Array, table: number, mask: number, secret: number, slot: number): void {
  let gap = slot;
  for (let next = (gap + 1) & mask; ; next = (next + 1) & mask) {
    const at = table + next * ENTRY;
    if (i32[at] === 0) break;
    const home = hashNeighbour(i32[at + 1], i32[at + 2], i32[at + 3], i32[at + 4], i32[at + NEIGHBOUR_NETWORK], secret);
    if (((next - home) & mask) >= ((next - gap) & mask)) {
      i32.copyWithin(table + gap * ENTRY, at, at + ENTRY);
      gap = next;
    }
  }
  const at = table + gap * ENTRY;
  i32.fill(0, at, at + ENTRY);
}

/** Control's side of one version. The caller sees to it that they are not too many. */
export class StaticNeighbourTable {
  readonly #i32: Int32Array;
  readonly #table: number;
  readonly #mask: number;
  #size = 0;

  constructor(memory: EngineMemory, table: TableLayout) {
    this.#i32 = memory.i32;
    this.#table = table.staticNeighbours >> 2;
    this.#mask = memory.layout.staticSlots - 1;
  }

  get size(): number {
    return this.#size;
  }

  /**
   * Gives an address to a MAC, whoever had it. `words` as addressWords() makes them; `ref` 0: nobody knows whose it is.
   */
  add(words: Int32Array, network: number, macLow: number, macHigh: number, flags: number, ref: PeerRef): void {
    const at = this.#probe(words, network);
    if (this.#i32[at] === 0) this.#size++;
    this.#i32.set(words, at + NEIGHBOUR_ADDRESS);
    this.#i32[at + NEIGHBOUR_NETWORK] = network;
    this.#i32[at + NEIGHBOUR_MAC_LOW] = macLow;
    this.#i32[at + NEIGHBOUR_MAC_HIGH] = macHigh;
    this.#i32[at + NEIGHBOUR_FLAGS] = flags;
    this.#i32[at + NEIGHBOUR_REF] = ref;
    this.#i32[at] = TAUGHT;
  }

  /** Takes an address out, if it is there. */
  remove(words: Int32Array, network: number): void {
    const at = this.#probe(words, network);
    if (this.#i32[at] === 0) return;
    this.#size--;
    free(this.#i32, this.#table, this.#mask, 0, (at - this.#table) / ENTRY);
  }

  #probe(words: Int32Array, network: number): number {
    return probe(this.#i32, this.#table, this.#mask, 0, words[0], words[1], words[2], words[3], network);
  }
}

/** What one worker has been taught, by ARP and ND or by other workers. Only that worker may call it. */
export class LearnedNeighbours {
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #counters: number;
  readonly #table: number;
  readonly #mask: number;
  readonly #secret = randomSecret();
  readonly #age: number;
  readonly #most: number;
  readonly #shares: PeerShares;
  readonly #rings: Rings | undefined;
  readonly #announceAfter: number;
  readonly #pace: number;
  readonly #usedAt: number;
  #used = 0;
  #cursor = 0;
  #swept = 0;

  /** Starts with an empty table, whatever an earlier worker left. Without `rings` nobody is told. */
  constructor(
    memory: EngineMemory,
    worker: number,
    settings: { readonly age: number; readonly perPeer: number },
    rings: Rings | undefined,
  ) {
    const layout = workerLayout(memory.layout, worker);
    const { neighbourSlots } = layout;
    if (neighbourSlots === 0) {
      throw new RangeError('no room for neighbours: the memory was made without any (options.neighbours)');
    }
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#counters = layout.counters >> 3;
    this.#table = layout.neighbours >> 2;
    this.#mask = neighbourSlots - 1;
    this.#age = settings.age;
    this.#most = memory.options.neighbours ?? 0;
    this.#shares = new PeerShares(memory, settings.perPeer);
    this.#rings = rings;
    this.#announceAfter = rings ? Math.floor(settings.age / 3) : NEVER;
    this.#pace = Math.ceil(neighbourSlots / SWEEP_TIME);
    this.#usedAt = neighboursUsedAt(layout);
    this.restart(0);
    this.#f64[neighboursSecretAt(layout)] = this.#secret;
  }

  /** As in macs.ts, and so are the two below. */
  protected restart(used: number): void {
    this.#used = used;
    this.#f64[this.#usedAt] = used;
    for (let at = this.#table; at <= this.#table + this.#mask * ENTRY; at += ENTRY) {
      if (this.#i32[at] !== 0) this.#i32.fill(0, at, at + ENTRY);
    }
  }

  protected adopt(entry: Int32Array): void {
    const at = probe(
      this.#i32,
      this.#table,
      this.#mask,
      this.#secret,
      entry[1],
      entry[2],
      entry[3],
      entry[4],
      entry[NEIGHBOUR_NETWORK],
    );
    if (this.#i32[at] === 0) this.#i32.set(entry, at);
  }

  protected setShare(ref: PeerRef, count: number): void {
    this.#shares.set(ref, count);
  }

  /** Entries in the table, aged ones that were not swept yet among them. */
  get size(): number {
    return this.#used;
  }

  /**
   * ARP or ND from `ref` (a living peer, or LOCAL) said that an address is at a MAC. `flags`: ROUTER_KNOWN with or
   * without ROUTER; 0 if the message does not tell: what is known of that address at that MAC stays then.
   */
  teach(
    w0: number,
    w1: number,
    w2: number,
    w3: number,
    network: number,
    macLow: number,
    macHigh: number,
    flags: number,
    ref: PeerRef,
    now: number,
  ): void {
    const i32 = this.#i32;
    const at = probe(i32, this.#table, this.#mask, this.#secret, w0, w1, w2, w3, network);
    const fresh = i32[at] === 0;
    const known = i32[at + NEIGHBOUR_REF];
    if ((fresh && this.#used >= this.#most) || ((fresh || known !== ref) && !this.#shares.room(ref))) {
      this.#f64[this.#counters + NEIGHBOURS_FULL]++;
      return;
    }
    const again = !fresh && this.#gone(at, now);
    if (again && i32[at] === TAUGHT) this.#f64[this.#counters + NEIGHBOURS_AGED]++;
    const sameMac =
      !fresh && !again && i32[at + NEIGHBOUR_MAC_LOW] === macLow && i32[at + NEIGHBOUR_MAC_HIGH] === macHigh;
    const told = flags === 0 && sameMac ? i32[at + NEIGHBOUR_FLAGS] : flags;
    const news = !sameMac || known !== ref || told !== i32[at + NEIGHBOUR_FLAGS];
    if (fresh) {
      this.#claim(at, w0, w1, w2, w3, network);
    } else if (known !== ref) {
      this.#shares.remove(known);
    }
    if (fresh || known !== ref) this.#shares.add(ref);
    if (!sameMac) {
      this.#f64[this.#counters + NEIGHBOURS_LEARNED]++;
      if (fresh || again) {
        i32[at + LEARNED] = now;
        i32[at] = TAUGHT;
      }
    }
    this.#write(at, macLow, macHigh, told, ref, now);
    if (news || ((now - i32[at + ANNOUNCED]) | 0) > this.#announceAfter) this.#announce(at, now);
  }

  /** The i32 index of an address's entry, or -1: unknown, aged, or the peer that taught it is gone. */
  find(w0: number, w1: number, w2: number, w3: number, network: number, now: number): number {
    const at = probe(this.#i32, this.#table, this.#mask, this.#secret, w0, w1, w2, w3, network);
    return this.#i32[at] === 0 || this.#gone(at, now) ? -1 : at;
  }

  /** Another worker was taught a neighbour; words 1 to 10 of its entry are at `record` (an i32 index). */
  hear(record: number, now: number): void {
    const i32 = this.#i32;
    const ref = i32[record + NEIGHBOUR_REF];
    const seen = i32[record + NEIGHBOUR_SEEN];
    if (((now - seen) | 0) > this.#age || !this.#shares.alive(ref)) return;
    const w0 = i32[record + 1];
    const w1 = i32[record + 2];
    const w2 = i32[record + 3];
    const w3 = i32[record + 4];
    const network = i32[record + NEIGHBOUR_NETWORK];
    const macLow = i32[record + NEIGHBOUR_MAC_LOW];
    const macHigh = i32[record + NEIGHBOUR_MAC_HIGH];
    const at = probe(i32, this.#table, this.#mask, this.#secret, w0, w1, w2, w3, network);
    const known = i32[at + NEIGHBOUR_REF];
    if (i32[at] === 0) {
      if (this.#used >= this.#most || !this.#shares.room(ref)) return;
      this.#claim(at, w0, w1, w2, w3, network);
      this.#shares.add(ref);
      i32[at + LEARNED] = seen;
      i32[at] = HEARD;
    } else {
      const newer = (seen - i32[at + NEIGHBOUR_SEEN]) | 0;
      // Of two that were taught in one millisecond all workers take the same one.
      const greater = i32[at + NEIGHBOUR_MAC_LOW] - macLow || i32[at + NEIGHBOUR_MAC_HIGH] - macHigh || known - ref;
      if (newer < 0 || (newer === 0 && greater > 0)) return;
      if (known !== ref) {
        if (!this.#shares.room(ref)) return;
        this.#shares.remove(known);
        this.#shares.add(ref);
      }
    }
    this.#write(at, macLow, macHigh, i32[record + NEIGHBOUR_FLAGS], ref, seen);
    i32[at + ANNOUNCED] = seen; // all have been told
  }

  /** Forgets what has aged, or whose peer is gone: a small step, so that a turn stays short. Call it every turn. */
  sweep(now: number): void {
    const elapsed = (now - this.#swept) | 0;
    if (elapsed === 0) return;
    this.#swept = now;
    const i32 = this.#i32;
    const due = sweepStep(elapsed, this.#pace, this.#mask);
    for (let i = 0; i < due; i++) {
      const at = this.#table + this.#cursor * ENTRY;
      if (i32[at] !== 0 && this.#gone(at, now)) {
        this.#f64[this.#usedAt] = --this.#used;
        this.#shares.remove(i32[at + NEIGHBOUR_REF]);
        if (i32[at] === TAUGHT) this.#f64[this.#counters + NEIGHBOURS_AGED]++;
        free(i32, this.#table, this.#mask, this.#secret, this.#cursor);
      } else {
        this.#cursor = (this.#cursor + 1) & this.#mask;
      }
    }
  }

  #gone(at: number, now: number): boolean {
    return (
      ((now - this.#i32[at + NEIGHBOUR_SEEN]) | 0) > this.#age || !this.#shares.alive(this.#i32[at + NEIGHBOUR_REF])
    );
  }

  #claim(at: number, w0: number, w1: number, w2: number, w3: number, network: number): void {
    const i32 = this.#i32;
    this.#f64[this.#usedAt] = ++this.#used;
    i32[at + 1] = w0;
    i32[at + 2] = w1;
    i32[at + 3] = w2;
    i32[at + 4] = w3;
    i32[at + NEIGHBOUR_NETWORK] = network;
  }

  #write(at: number, macLow: number, macHigh: number, flags: number, ref: PeerRef, seen: number): void {
    const i32 = this.#i32;
    i32[at + NEIGHBOUR_MAC_LOW] = macLow;
    i32[at + NEIGHBOUR_MAC_HIGH] = macHigh;
    i32[at + NEIGHBOUR_FLAGS] = flags;
    i32[at + NEIGHBOUR_REF] = ref;
    i32[at + NEIGHBOUR_SEEN] = seen;
  }

  /** Tells the other workers; what does not fit into a ring is tried again when the neighbour is taught next. */
  #announce(at: number, now: number): void {
    const told = this.#rings === undefined || this.#rings.sendNeighbour(at);
    this.#i32[at + ANNOUNCED] = told ? now : (now - this.#announceAfter - 1) | 0;
  }
}

/** Words of an entry, as `copyNeighbour` gives them. */
export const NEIGHBOUR_COPY = ENTRY;

/** Copies to `entry` (NEIGHBOUR_COPY words) what a worker has learned of an address; false: nothing. As copyMac. */
export function copyNeighbour(
  { i32, f64 }: Pick<EngineMemory, 'i32' | 'f64'>,
  layout: WorkerLayout,
  w0: number,
  w1: number,
  w2: number,
  w3: number,
  network: number,
  entry: Int32Array,
): boolean {
  const mask = layout.neighbourSlots - 1;
  const table = layout.neighbours >> 2;
  const same = (words: Int32Array, at: number): boolean =>
    words[at + 1] === w0 &&
    words[at + 2] === w1 &&
    words[at + 3] === w2 &&
    words[at + 4] === w3 &&
    words[at + NEIGHBOUR_NETWORK] === network;
  let slot = hashNeighbour(w0, w1, w2, w3, network, f64[neighboursSecretAt(layout)]) & mask;
  for (let tried = 0; tried <= mask; tried++, slot = (slot + 1) & mask) {
    const at = table + slot * ENTRY;
    if (i32[at] === 0) return false;
    if (!same(i32, at)) continue;
    for (let word = 0; word < ENTRY; word++) entry[word] = i32[at + word];
    return entry[0] !== 0 && same(entry, 0);
  }
  return false;
}

/** How many neighbours a worker was taught by a peer. For other threads: about. Reads the whole table. */
export function countNeighboursOf({ i32 }: Pick<EngineMemory, 'i32'>, layout: WorkerLayout, ref: PeerRef): number {
  let count = 0;
  const from = layout.neighbours >> 2;
  for (let at = from; at < from + layout.neighbourSlots * ENTRY; at += ENTRY) {
    if (i32[at] !== 0 && i32[at + NEIGHBOUR_REF] === ref) count++;
  }
  return count;
}
