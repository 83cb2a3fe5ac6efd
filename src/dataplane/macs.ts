/**
 * MACs → where they are: open-addressed hashes with linear probing, at most half full, so that a lookup almost always
 * reads one cache line. Two kinds: the registry's (static), one in each version of the tables, and each worker's own
 * (learned), which it alone writes. Whoever looks one up asks the static one first, so learning never overrides it.
 *
 * A MAC is two numbers: `low`, its bytes 0 to 3 as a little-endian i32 load, and `high`, bytes 4 and 5 as a
 * little-endian u16. An entry is four i32 words: low; high | network << 16; reference (0: free); when last seen (learned
 * ones only). That is all that a frame of a known MAC reads, so four entries share a cache line. The details of a learned
 * entry are four more words at the same place of another array: when learned, start of the window in which moves are
 * counted, moves in it (and HEARD), when other workers were last told. They move with the entry. Times are milliseconds
 * that wrap at 32 bits: only differences mean anything.
 *
 * Ageing as in a bridge (IEEE 802.1Q 8.8.3): what was not seen for `age` is not found any more, and `sweep` clears it
 * away. Moves are followed at once; one MAC at two places (a loop, or a duplicate) would move for ever, so after more
 * than MOST_MOVES in MOVES_WINDOW it stays where it is for as long (as RFC 7432 15.1 does with a timer and a count).
 */
import {
  type EngineMemory,
  MAC_BYTES,
  PEER_BYTES,
  type TableLayout,
  type WorkerLayout,
  workerLayout,
} from '../io/memory.js';
import { MACS_AGED, MACS_FULL, MACS_HELD, MACS_LEARNED, MACS_MOVED, MACS_OVER_LIMIT } from './counters.js';
import { macsSecretAt, macsUsedAt } from './gauges.js';
import { PEER_GENERATION, type PeerRef } from './peers.js';
import type { Rings } from './rings.js';

/** The "reference" of what is behind our own device. */
export const LOCAL = -1;

const ENTRY = MAC_BYTES / 4;
/** Words of an entry, see above. */
export const MAC_LOW = 0;
export const MAC_KEY = 1;
export const MAC_REF = 2;
export const MAC_SEEN = 3;
/** Words of its details, see above. */
const LEARNED = 0;
const WINDOW = 1;
const MOVES = 2;
const ANNOUNCED = 3;

/** In MOVES: another worker told us. It counts this MAC as learned and aged, so we do not. */
const HEARD = 0x10000;
const MOVES_MASK = 0xffff;
const MOST_MOVES = 5;
const MOVES_WINDOW = 10_000;

/** A table is swept in about this time, if that takes no more than SWEEP_STEP slots a call. */
const SWEEP_TIME = 10_000;
const SWEEP_STEP = 64;
/** Slots in a call after so many milliseconds without one: then nothing waits for us. */
const IDLE_STEP = 1 << 14;
const IDLE = 100;

/**
 * Where probing starts. Every bit of the MAC and of the network reaches the low bits, and neighbouring MACs (a
 * vendor's, a hypervisor's) scatter. Workers' own tables add a secret, so that nobody can choose MACs that form one
 * long chain.
 */
export function hashMac(low: number, key: number, secret: number): number {
  let h = Math.imul(low ^ secret, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 15) ^ key, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 16), 0x2c1b3c6d);
  return h ^ (h >>> 15);
}

/** A secret for `hashMac` and `hashNeighbour`. */
export const randomSecret = (): number => (Math.random() * 2 ** 32) | 0;

/** The two numbers of a MAC of 6 bytes. */
export const macLow = (mac: Uint8Array): number => mac[0] | (mac[1] << 8) | (mac[2] << 16) | (mac[3] << 24);
export const macHigh = (mac: Uint8Array): number => mac[4] | (mac[5] << 8);

/** The 6 bytes of a MAC; of `high` only the lower 16 bits count. */
export const macBytes = (low: number, high: number): Uint8Array =>
  Uint8Array.of(low, low >> 8, low >> 16, low >> 24, high, high >> 8);

/**
 * The peer of a MAC that the registry names, or 0. `table` is an i32 index; `mask` is slots - 1 (-1: there is no
 * table).
 */
export function lookupStaticMac(
  i32: Int32Array,
  table: number,
  mask: number,
  low: number,
  high: number,
  network: number,
): PeerRef {
  if (mask < 0) return 0;
  return i32[probe(i32, table, mask, 0, low, high | (network << 16)) + MAC_REF];
}

/** The i32 index of a key's entry, or of the free one where it would go. */
function probe(i32: Int32Array, table: number, mask: number, secret: number, low: number, key: number): number {
  for (let slot = hashMac(low, key, secret) & mask; ; slot = (slot + 1) & mask) {
    const at = table + slot * ENTRY;
    if ((i32[at + MAC_LOW] === low && i32[at + MAC_KEY] === key) || i32[at + MAC_REF] === 0) return at;
  }
}

/**
 * Frees a slot and closes the gap (Knuth 6.4, algorithm R), so that no tombstones gather. `details`: how many words behind
 * an entry its details are; 0: it has none.
 */
function free(i32: Int32Array, table: number, details: number, mask: number, secret: number, slot: number): void {
  let gap = slot;
  for (let next = (gap + 1) & mask; ; next = (next + 1) & mask) {
    const at = table + next * ENTRY;
    if (i32[at + MAC_REF] === 0) break;
    const distance = (next - hashMac(i32[at + MAC_LOW], i32[at + MAC_KEY], secret)) & mask;
    if (distance >= ((next - gap) & mask)) {
      const to = table + gap * ENTRY;
      i32.copyWithin(to, at, at + ENTRY);
      if (details !== 0) i32.copyWithin(to + details, at + details, at + details + ENTRY);
      gap = next;
    }
  }
  clear(i32, table + gap * ENTRY, details);
}

function clear(i32: Int32Array, at: number, details: number): void {
  i32.fill(0, at, at + ENTRY);
  if (details !== 0) i32.fill(0, at + details, at + details + ENTRY);
}

/** Slots to sweep `elapsed` milliseconds (of a clock that wraps) after the last time, at `pace` slots a millisecond. */
export function sweepStep(elapsed: number, pace: number, mask: number): number {
  const most = elapsed < 0 || elapsed > IDLE ? Math.min(IDLE_STEP, mask + 1) : SWEEP_STEP;
  return elapsed < 0 || elapsed > IDLE_STEP ? most : Math.min(most, elapsed * pace);
}

/**
 * Control's side of one version: the MACs that the registry names. The caller sees to it that they are not too many.
 */
export class StaticMacTable {
  readonly #i32: Int32Array;
  readonly #table: number;
  readonly #mask: number;
  #size = 0;

  constructor(memory: EngineMemory, table: TableLayout) {
    this.#i32 = memory.i32;
    this.#table = table.staticMacs >> 2;
    this.#mask = memory.layout.staticSlots - 1;
  }

  get size(): number {
    return this.#size;
  }

  /** Gives a MAC to a peer, whoever had it. */
  add(low: number, high: number, network: number, ref: PeerRef): void {
    const key = high | (network << 16);
    const at = probe(this.#i32, this.#table, this.#mask, 0, low, key);
    if (this.#i32[at + MAC_REF] === 0) this.#size++;
    this.#i32[at + MAC_LOW] = low;
    this.#i32[at + MAC_KEY] = key;
    this.#i32[at + MAC_REF] = ref;
  }

  /** Takes a MAC out, if it is there. */
  remove(low: number, high: number, network: number): void {
    const at = probe(this.#i32, this.#table, this.#mask, 0, low, high | (network << 16));
    if (this.#i32[at + MAC_REF] === 0) return;
    this.#size--;
    free(this.#i32, this.#table, 0, this.#mask, 0, (at - this.#table) / ENTRY);
  }
}

/**
 * How many entries of a learned table each peer has, so that none can fill it. References below 1 (LOCAL, nobody) have
 * no limit but the table's.
 */
export class PeerShares {
  readonly #i32: Int32Array;
  readonly #peers: number;
  readonly #most: number;
  /** By slot: whose entries are counted. What a slot's last owner left behind does not count for the next. */
  readonly #owners: Int32Array;
  readonly #counts: Int32Array;

  constructor(memory: EngineMemory, most: number) {
    this.#i32 = memory.i32;
    this.#peers = (memory.layout.peers >> 2) + PEER_GENERATION;
    this.#most = most;
    this.#owners = new Int32Array(memory.options.peers);
    this.#counts = new Int32Array(memory.options.peers);
  }

  /** False once the peer has been removed, even if another has its slot. */
  alive(ref: PeerRef): boolean {
    return ref <= 0 || this.#i32[this.#peers + (ref & 0xffff) * (PEER_BYTES / 4)] === ref >>> 16;
  }

  /** May the peer have one more? */
  room(ref: PeerRef): boolean {
    if (ref <= 0) return true;
    const slot = ref & 0xffff;
    return (this.#owners[slot] === ref ? this.#counts[slot] : 0) < this.#most;
  }

  add(ref: PeerRef): void {
    if (ref <= 0) return;
    const slot = ref & 0xffff;
    if (this.#owners[slot] !== ref) {
      this.#owners[slot] = ref;
      this.#counts[slot] = 0;
    }
    this.#counts[slot]++;
  }

  remove(ref: PeerRef): void {
    if (ref > 0 && this.#owners[ref & 0xffff] === ref) this.#counts[ref & 0xffff]--;
  }

  set(ref: PeerRef, count: number): void {
    if (ref <= 0) return;
    this.#owners[ref & 0xffff] = ref;
    this.#counts[ref & 0xffff] = count;
  }
}

/** Words of an entry and its details, as `copyMac` gives them. */
export const MAC_COPY = 2 * ENTRY;

/**
 * Copies to `entry` (MAC_COPY words) what a worker has learned of a MAC (`key`: high | network << 16); false: nothing. For other
 * threads than that worker's: it may be missed while the worker moves it, but what is copied is of that MAC.
 */
export function copyMac(
  { i32, f64 }: Pick<EngineMemory, 'i32' | 'f64'>,
  layout: WorkerLayout,
  low: number,
  key: number,
  entry: Int32Array,
): boolean {
  const mask = layout.macSlots - 1;
  const table = layout.macs >> 2;
  const details = (layout.macDetails >> 2) - table;
  let slot = hashMac(low, key, f64[macsSecretAt(layout)]) & mask;
  for (let tried = 0; tried <= mask; tried++, slot = (slot + 1) & mask) {
    const at = table + slot * ENTRY;
    if (i32[at + MAC_REF] === 0) return false;
    if (i32[at + MAC_LOW] !== low || i32[at + MAC_KEY] !== key) continue;
    for (let word = 0; word < ENTRY; word++) {
      entry[word] = i32[at + word];
      entry[ENTRY + word] = i32[at + details + word];
    }
    return entry[MAC_LOW] === low && entry[MAC_KEY] === key && entry[MAC_REF] !== 0;
  }
  return false;
}

/** How many MACs a worker has learned from a peer. For other threads: about. Reads the whole table. */
export function countMacsOf({ i32 }: Pick<EngineMemory, 'i32'>, layout: WorkerLayout, ref: PeerRef): number {
  let count = 0;
  const from = layout.macs >> 2;
  for (let at = from; at < from + layout.macSlots * ENTRY; at += ENTRY) if (i32[at + MAC_REF] === ref) count++;
  return count;
}

/** What one worker has learned, from frames or from other workers. Only that worker may call it. */
export class LearnedMacs {
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #counters: number;
  readonly #table: number;
  /** How many words behind an entry its details are. */
  readonly #details: number;
  readonly #mask: number;
  readonly #secret = randomSecret();
  readonly #age: number;
  readonly #most: number;
  readonly #shares: PeerShares;
  readonly #rings: Rings | undefined;
  /** Others are told again of what is still seen after this long. */
  readonly #announceAfter: number;
  /** Slots to look at in a millisecond. */
  readonly #pace: number;
  readonly #usedAt: number;
  readonly #fetched = new Int32Array(1); // nobody reads it
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
    const { macSlots } = layout;
    if (macSlots === 0) throw new RangeError('no room for MACs: the memory was made without any (options.macs)');
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#counters = layout.counters >> 3;
    this.#table = layout.macs >> 2;
    this.#details = (layout.macDetails >> 2) - this.#table;
    this.#mask = macSlots - 1;
    this.#age = settings.age;
    this.#most = memory.options.macs ?? 0;
    this.#shares = new PeerShares(memory, settings.perPeer);
    this.#rings = rings;
    this.#announceAfter = Math.floor(settings.age / 3);
    this.#pace = Math.ceil(macSlots / SWEEP_TIME);
    this.#usedAt = macsUsedAt(layout);
    this.restart(0);
    this.#f64[macsSecretAt(layout)] = this.#secret;
  }

  /** Empties the table, which counts as one of `used` entries then: more than 0 only where it stands for another (dry.ts). */
  protected restart(used: number): void {
    this.#used = used;
    this.#f64[this.#usedAt] = used;
    // Only what is used is cleared: pages that were never touched cost nothing, and that stays so.
    for (let at = this.#table; at <= this.#table + this.#mask * ENTRY; at += ENTRY) {
      if (this.#i32[at + MAC_REF] !== 0) clear(this.#i32, at, this.#details);
    }
  }

  /** Takes over an entry of another table that is not in this one: its words, then its details. It is not counted as used. */
  protected adopt(entry: Int32Array): void {
    const at = probe(this.#i32, this.#table, this.#mask, this.#secret, entry[MAC_LOW], entry[MAC_KEY]);
    if (this.#i32[at + MAC_REF] !== 0) return;
    this.#i32.set(entry.subarray(0, ENTRY), at);
    this.#i32.set(entry.subarray(ENTRY), at + this.#details);
  }

  /** Says how many entries a peer has elsewhere. */
  protected setShare(ref: PeerRef, count: number): void {
    this.#shares.set(ref, count);
  }

  /** Entries in the table, aged ones that were not swept yet among them. */
  get size(): number {
    return this.#used;
  }

  /**
   * A frame from this MAC came from `ref` (a living peer, or LOCAL). The caller has left out group and zero addresses.
   * What is not learned or not followed is counted; the frame itself is none the worse for it.
   */
  learn(low: number, high: number, network: number, ref: PeerRef, now: number): void {
    const i32 = this.#i32;
    const key = high | (network << 16);
    const at = probe(i32, this.#table, this.#mask, this.#secret, low, key);
    const known = i32[at + MAC_REF];
    if (known === ref) {
      i32[at + MAC_SEEN] = now;
      // Without anybody to tell the details are not even read.
      if (this.#rings !== undefined && ((now - i32[at + this.#details + ANNOUNCED]) | 0) > this.#announceAfter) {
        this.#announce(at, now);
      }
    } else if (known !== 0) {
      this.#move(at, ref, now);
    } else if (this.#used >= this.#most) {
      this.#f64[this.#counters + MACS_FULL]++;
    } else if (!this.#shares.room(ref)) {
      this.#f64[this.#counters + MACS_OVER_LIMIT]++;
    } else {
      this.#insert(at, low, key, ref, now, 0);
      this.#f64[this.#counters + MACS_LEARNED]++;
      this.#announce(at, now);
    }
  }

  /**
   * Loads the cache line where a MAC would be found, so that it is there when `lookup` asks, after whatever is done between. A load
   * whose value nobody waits for costs next to nothing.
   */
  prefetch(low: number, high: number, network: number): void {
    this.#fetched[0] =
      this.#i32[this.#table + (hashMac(low, high | (network << 16), this.#secret) & this.#mask) * ENTRY + MAC_REF];
  }

  /** LOCAL, the living peer that a MAC is behind, or 0: unknown, aged, or its peer is gone. */
  lookup(low: number, high: number, network: number, now: number): PeerRef {
    const i32 = this.#i32;
    const at = probe(i32, this.#table, this.#mask, this.#secret, low, high | (network << 16));
    const ref = i32[at + MAC_REF];
    // A free entry's reference is 0, which is the answer.
    return ((now - i32[at + MAC_SEEN]) | 0) <= this.#age && this.#shares.alive(ref) ? ref : 0;
  }

  /** Another worker saw this MAC (`key`: high | network << 16) at `seen`, and followed it to `ref`. */
  hear(low: number, key: number, ref: PeerRef, seen: number, now: number): void {
    if (((now - seen) | 0) > this.#age || !this.#shares.alive(ref)) return;
    const i32 = this.#i32;
    const at = probe(i32, this.#table, this.#mask, this.#secret, low, key);
    const detail = at + this.#details;
    const known = i32[at + MAC_REF];
    const newer = (seen - i32[at + MAC_SEEN]) | 0;
    if (known === 0) {
      if (this.#used < this.#most && this.#shares.room(ref)) this.#insert(at, low, key, ref, seen, HEARD);
    } else if (known === ref) {
      if (newer > 0) i32[at + MAC_SEEN] = seen;
      // All have been told, so we need not.
      if (((seen - i32[detail + ANNOUNCED]) | 0) > 0) i32[detail + ANNOUNCED] = seen;
    } else if (this.#gone(at, now)) {
      if (this.#shares.room(ref)) this.#replace(at, ref, seen, HEARD);
    } else if ((newer > 0 || (newer === 0 && ref > known)) && this.#shares.room(ref)) {
      // Two workers that saw it at two places in one millisecond agree on one: the greater. A move that another worker
      // followed is followed also while it is held here: better all at one place than each at its own.
      this.#mayMove(at, seen);
      this.#put(at, ref, seen);
      i32[detail + ANNOUNCED] = seen;
    }
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
      if (i32[at + MAC_REF] !== 0) {
        if (this.#gone(at, now)) {
          this.#forget(at);
          continue; // another entry may have taken its place
        }
        // An old window must not look like a new one when the clock has wrapped.
        const detail = at + this.#details;
        if (((now - i32[detail + WINDOW]) | 0) >= MOVES_WINDOW) i32[detail + MOVES] &= ~MOVES_MASK;
      }
      this.#cursor = (this.#cursor + 1) & this.#mask;
    }
  }

  #gone(at: number, now: number): boolean {
    return ((now - this.#i32[at + MAC_SEEN]) | 0) > this.#age || !this.#shares.alive(this.#i32[at + MAC_REF]);
  }

  #insert(at: number, low: number, key: number, ref: PeerRef, seen: number, heard: number): void {
    const i32 = this.#i32;
    const detail = at + this.#details;
    this.#f64[this.#usedAt] = ++this.#used;
    this.#shares.add(ref);
    i32[at + MAC_LOW] = low;
    i32[at + MAC_KEY] = key;
    i32[at + MAC_SEEN] = seen;
    i32[detail + LEARNED] = seen;
    i32[detail + WINDOW] = seen;
    i32[detail + MOVES] = heard;
    i32[detail + ANNOUNCED] = seen;
    i32[at + MAC_REF] = ref; // last: now the entry is in use, for forwarding.ts too
  }

  /** Changes where an entry is. The caller has checked the peer's share. */
  #put(at: number, ref: PeerRef, seen: number): void {
    this.#shares.remove(this.#i32[at + MAC_REF]);
    this.#shares.add(ref);
    this.#i32[at + MAC_REF] = ref;
    this.#i32[at + MAC_SEEN] = seen;
  }

  /** Makes a new entry of one that is only still there because the sweep has not come by. */
  #replace(at: number, ref: PeerRef, seen: number, heard: number): void {
    const i32 = this.#i32;
    const detail = at + this.#details;
    if ((i32[detail + MOVES] & HEARD) === 0) this.#f64[this.#counters + MACS_AGED]++;
    this.#put(at, ref, seen);
    i32[detail + LEARNED] = seen;
    i32[detail + MOVES] = heard;
    i32[detail + ANNOUNCED] = seen;
  }

  #move(at: number, ref: PeerRef, now: number): void {
    const counters = this.#counters;
    if (!this.#shares.room(ref)) {
      this.#f64[counters + MACS_OVER_LIMIT]++;
      return;
    }
    if (this.#gone(at, now)) {
      this.#replace(at, ref, now, 0);
      this.#f64[counters + MACS_LEARNED]++;
    } else if (this.#mayMove(at, now)) {
      this.#put(at, ref, now);
      this.#f64[counters + MACS_MOVED]++;
    } else {
      this.#f64[counters + MACS_HELD]++;
      return;
    }
    this.#announce(at, now);
  }

  /** Counts a move; false while the MAC is held. */
  #mayMove(at: number, now: number): boolean {
    const i32 = this.#i32;
    const detail = at + this.#details;
    const moves = i32[detail + MOVES] & MOVES_MASK;
    const since = (now - i32[detail + WINDOW]) | 0;
    const first = moves === 0 || since < 0 || since >= MOVES_WINDOW;
    if (!first && moves > MOST_MOVES) return false;
    i32[detail + MOVES] = (i32[detail + MOVES] & HEARD) | (first ? 1 : moves + 1);
    // The move that is one too many starts the time for which it is held.
    if (first || moves === MOST_MOVES) i32[detail + WINDOW] = now;
    return first || moves < MOST_MOVES;
  }

  /** Tells the other workers; what does not fit into a ring is tried again when the MAC is seen next. */
  #announce(at: number, now: number): void {
    const i32 = this.#i32;
    if (this.#rings === undefined) return;
    const told = this.#rings.sendMac(i32[at + MAC_LOW], i32[at + MAC_KEY], i32[at + MAC_REF], now);
    i32[at + this.#details + ANNOUNCED] = told ? now : (now - this.#announceAfter - 1) | 0;
  }

  #forget(at: number): void {
    const i32 = this.#i32;
    this.#f64[this.#usedAt] = --this.#used;
    this.#shares.remove(i32[at + MAC_REF]);
    if ((i32[at + this.#details + MOVES] & HEARD) === 0) this.#f64[this.#counters + MACS_AGED]++;
    free(i32, this.#table, this.#details, this.#mask, this.#secret, (at - this.#table) / ENTRY);
  }
}
