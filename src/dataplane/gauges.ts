/**
 * What a worker says of itself in the shared memory besides its counters: how it spends its time, and how full its own tables are.
 * One writer for each value (an f64, so that nothing overflows and no load is torn), read at scrape.
 *
 * Time is told from the clock that a worker reads after each poll anyway. Between two such looks it was awake if it did not let
 * poll sleep: busy where the turn in between moved something, spinning where it only looked again. The longest of these
 * stretches is for how long a packet may have waited for us: a long turn, or the time for which another process had our core.
 */
import type { EngineMemory, WorkerLayout } from '../io/memory.js';

/** Microseconds. */
const BUSY = 0;
const SPINNING = 1;
/** Microseconds: the longest stretch awake in this window of time, and in the one before. */
const GAP = 2;
const GAP_BEFORE = 3;
/** Entries in use. */
const MACS_USED = 4;
const NEIGHBOURS_USED = 5;
/** What its tables hash with, for whoever looks something up in them from outside. */
const MACS_SECRET = 6;
const NEIGHBOURS_SECRET = 7;

/** Milliseconds: the longest gap told is that of the last one to two of these, whoever asks however often. */
export const GAP_WINDOW = 30_000;

/** A worker's own account of its time. Only that worker may call it. */
export class WorkerTimes {
  readonly #f64: Float64Array;
  readonly #at: number;
  #looked = 0;
  #longest = 0;
  #windowFrom = 0;
  #begun = false;

  constructor(memory: EngineMemory, layout: WorkerLayout) {
    this.#f64 = memory.f64;
    this.#at = layout.gauges >> 3;
    // What an earlier worker on the same memory took is added to; its gaps are not ours.
    this.#f64[this.#at + GAP] = 0;
    this.#f64[this.#at + GAP_BEFORE] = 0;
  }

  /**
   * After each poll. Both times are of CLOCK_MONOTONIC and wrap at 32 bits. `awake`: this poll could not sleep; `moved`: what came
   * between it and the poll before moved something.
   */
  look(microseconds: number, milliseconds: number, awake: boolean, moved: boolean): void {
    const passed = (microseconds - this.#looked) | 0;
    this.#looked = microseconds;
    if (((milliseconds - this.#windowFrom) | 0) >= GAP_WINDOW || !this.#begun) this.#nextWindow(milliseconds);
    if (!awake || passed < 0) return; // negative: this process was stopped for longer than the clock can tell
    this.#f64[this.#at + (moved ? BUSY : SPINNING)] += passed;
    if (passed <= this.#longest) return;
    this.#longest = passed;
    this.#f64[this.#at + GAP] = passed;
  }

  #nextWindow(milliseconds: number): void {
    this.#begun = true;
    this.#windowFrom = milliseconds;
    this.#f64[this.#at + GAP_BEFORE] = this.#longest;
    this.#f64[this.#at + GAP] = 0;
    this.#longest = 0;
  }
}

/** Where a worker says how many MACs it has learned (an index of the f64 view). */
export const macsUsedAt = (layout: WorkerLayout): number => (layout.gauges >> 3) + MACS_USED;
/** The same for neighbours. */
export const neighboursUsedAt = (layout: WorkerLayout): number => (layout.gauges >> 3) + NEIGHBOURS_USED;

/** Where it says what its MACs are hashed with, and its neighbours. */
export const macsSecretAt = (layout: WorkerLayout): number => (layout.gauges >> 3) + MACS_SECRET;
export const neighboursSecretAt = (layout: WorkerLayout): number => (layout.gauges >> 3) + NEIGHBOURS_SECRET;

export interface WorkerGauges {
  /** Seconds since the start. */
  readonly busy: number;
  readonly spinning: number;
  /** Seconds. */
  readonly longestGap: number;
  /** Entries in use. */
  readonly macs: number;
  readonly neighbours: number;
}

/** Safe from any thread. */
export function readGauges(memory: EngineMemory, worker: number): WorkerGauges {
  const at = memory.layout.workers[worker].gauges >> 3;
  const { f64 } = memory;
  return {
    busy: f64[at + BUSY] / 1e6,
    spinning: f64[at + SPINNING] / 1e6,
    longestGap: Math.max(f64[at + GAP], f64[at + GAP_BEFORE]) / 1e6,
    macs: f64[at + MACS_USED],
    neighbours: f64[at + NEIGHBOURS_USED],
  };
}
