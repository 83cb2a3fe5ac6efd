/**
 * The words (i32) that control and workers share, and the epoch that tells control when a worker has let go of what it
 * replaced.
 *
 * A worker, at the start of every turn, stores its next epoch and then loads the active table version. Control flips the
 * version and then reads the epoch e: the worker may be in turn e with the old version, but any turn after e loads the
 * new one (both sides are sequentially consistent). So once the epoch differs from e, or the worker is not running, the
 * old version and the peers only it named may be reused. What a worker keeps over turns (messages that wait for a full
 * socket) names no peer record: it has copied what it needs.
 */
import type { EngineMemory } from '../io/memory.js';

const ACTIVE_VERSION = 0;
const STOP = 1;
/** Bit set of offloads that workers had to switch off (see io/offloads.ts). */
const REFUSED_OFFLOADS = 2;
/** Count of peers whose path MTU a worker found too large; control looks for them when it changes. */
const MTU_EVENTS = 3;
/** 1 while forwarding ends at GATE_UNTIL; a process whose control sleeps must not outlive its lease. */
const GATED = 4;
/** Milliseconds of CLOCK_MONOTONIC, wrapped to 32 bits. */
const GATE_UNTIL = 5;
/** By table version: 1 while it has static MACs or neighbours. */
const STATICS = 6;
/** Which capture runs: its number, and in the low CAPTURE_REVISIONS bits how often what it wants has changed. 0: none. */
const CAPTURE = 8;
const CAPTURE_REVISIONS = 8;
/** The number of the last capture, 1 to CAPTURES. */
const LAST_CAPTURE = 9;
const CAPTURES = (1 << (31 - CAPTURE_REVISIONS)) - 1;
const EPOCHS = 16;
const RUNNING = 32;

/** The number of the capture that a `captureWord` is of. */
export const captureOf = (word: number): number => word >> CAPTURE_REVISIONS;

export class SharedWords {
  readonly #words: Int32Array;
  readonly #workers: number;

  constructor(memory: EngineMemory) {
    this.#words = memory.i32.subarray(memory.layout.words >> 2, (memory.layout.words >> 2) + 64);
    this.#workers = memory.options.workers;
  }

  /** Worker: begins a turn; returns the table version (0 or 1) that this whole turn uses. */
  beginTurn(worker: number): number {
    const words = this.#words;
    Atomics.store(words, EPOCHS + worker, (words[EPOCHS + worker] + 1) | 0);
    return Atomics.load(words, ACTIVE_VERSION);
  }

  /** Worker: says whether it takes turns at all, so that control need not wait for one that does not. */
  setRunning(worker: number, running: boolean): void {
    Atomics.store(this.#words, RUNNING + worker, running ? 1 : 0);
  }

  /** Control: the version that workers use. */
  activeVersion(): number {
    return Atomics.load(this.#words, ACTIVE_VERSION);
  }

  /** Control: makes `version` the one that every later turn uses. */
  flip(version: number): void {
    Atomics.store(this.#words, ACTIVE_VERSION, version);
  }

  /** Control: a snapshot of the epochs, for `passed`. */
  epochs(): number[] {
    return Array.from({ length: this.#workers }, (_, i) => Atomics.load(this.#words, EPOCHS + i));
  }

  /** Control: true once every running worker has begun a turn after `epochs` was taken. */
  passed(epochs: readonly number[]): boolean {
    return epochs.every(
      (epoch, i) => Atomics.load(this.#words, RUNNING + i) === 0 || Atomics.load(this.#words, EPOCHS + i) !== epoch,
    );
  }

  /** Control: whether `version` has static MACs or neighbours; to be said before the flip. */
  setStatics(version: number, has: boolean): void {
    Atomics.store(this.#words, STATICS + version, has ? 1 : 0);
  }

  /** Worker: whether there is anything static to look up. */
  hasStatics(version: number): boolean {
    return this.#words[STATICS + version] !== 0;
  }

  stop(): void {
    Atomics.store(this.#words, STOP, 1);
  }

  stopping(): boolean {
    return Atomics.load(this.#words, STOP) !== 0;
  }

  /** Control: packets may be forwarded until `until`, in milliseconds of CLOCK_MONOTONIC, at most 24 days ahead. */
  setGate(until: number): void {
    Atomics.store(this.#words, GATE_UNTIL, until | 0);
    Atomics.store(this.#words, GATED, 1);
  }

  /** Worker: may packets be forwarded at `now`, milliseconds of CLOCK_MONOTONIC wrapped to 32 bits? */
  gateOpen(now: number): boolean {
    return this.#words[GATED] === 0 || ((Atomics.load(this.#words, GATE_UNTIL) - now) | 0) > 0;
  }

  /** Control: begins a capture, whose filter has been written; returns its number, which no other of the last millions had. */
  beginCapture(): number {
    const last = this.#words[LAST_CAPTURE];
    const session = last >= CAPTURES ? 1 : last + 1;
    this.#words[LAST_CAPTURE] = session;
    Atomics.store(this.#words, CAPTURE, session << CAPTURE_REVISIONS);
    return session;
  }

  /** Control: the running capture's filter has been written anew. */
  reviseCapture(): void {
    const word = this.#words[CAPTURE];
    const mask = (1 << CAPTURE_REVISIONS) - 1;
    if (word !== 0) Atomics.store(this.#words, CAPTURE, (word & ~mask) | ((word + 1) & mask));
  }

  endCapture(): void {
    Atomics.store(this.#words, CAPTURE, 0);
  }

  /** Worker, once a turn and behind `beginTurn`, which orders it: a word that changes whenever there is something else to capture. */
  captureWord(): number {
    return this.#words[CAPTURE];
  }

  /** Worker: the same again, after it has changed; what control wrote before is seen then. 0: nothing is to be captured. */
  changedCaptureWord(): number {
    return Atomics.load(this.#words, CAPTURE);
  }

  /** Worker: an offload that the kernel refused at run time, as a bit of io/offloads.ts. */
  refuseOffload(bit: number): void {
    Atomics.or(this.#words, REFUSED_OFFLOADS, bit);
  }

  refusedOffloads(): number {
    return Atomics.load(this.#words, REFUSED_OFFLOADS);
  }

  /** Worker: some peer's path turned out smaller; the peer's record says which. */
  noteMtuEvent(): void {
    Atomics.add(this.#words, MTU_EVENTS, 1);
  }

  mtuEvents(): number {
    return Atomics.load(this.#words, MTU_EVENTS);
  }
}
