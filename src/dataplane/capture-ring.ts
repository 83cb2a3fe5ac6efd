/**
 * A worker's capture ring: records (io/capture-record.ts) one behind the other in `layout.capture`, from the worker that writes
 * them to the control thread that reads them. Neither waits for the other.
 *
 * Head and tail are offsets of bytes; the ring is empty where they are equal, so it never fills to the last byte. A record is
 * never split: where it does not fit before the end, RING_WRAP stands in the place of its size, and it begins at 0.
 */
import {
  MAX_RECORD,
  RECORD_ALIGN,
  RECORD_HEADER,
  RECORD_PEER,
  RECORD_SESSION,
  RECORD_SIZE,
} from '../io/capture-record.js';
import { CAPTURE_BYTES, type EngineMemory, type WorkerLayout } from '../io/memory.js';

/** Words (i32) from the ring's start, each alone in its cache line. */
/** The worker's: where its next record begins. */
export const RING_HEAD = 0;
/** Control's: what is before it has been read. */
export const RING_TAIL = 16;
/** The worker's: packets that found no room; wraps. */
export const RING_LOST = 32;
/** Bytes before the records. */
const RING_HEADER = 192;
/** Bytes of all records. */
export const RING_ROOM = CAPTURE_BYTES - RING_HEADER;
export const RING_WRAP = -1;

/** Where the records of a worker begin, in bytes. */
export const ringRecords = (layout: WorkerLayout): number => layout.capture + RING_HEADER;

/** Control's end of one ring. */
export class CaptureRing {
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #words: number;
  readonly #records: number;
  #lost = 0;

  constructor(memory: EngineMemory, layout: WorkerLayout) {
    this.#u8 = memory.u8;
    this.#i32 = memory.i32;
    this.#words = layout.capture >> 2;
    this.#records = ringRecords(layout);
  }

  /** Forgets what was written before. */
  start(): void {
    Atomics.store(this.#i32, this.#words + RING_TAIL, Atomics.load(this.#i32, this.#words + RING_HEAD));
    this.#lost = this.#i32[this.#words + RING_LOST];
  }

  get empty(): boolean {
    return Atomics.load(this.#i32, this.#words + RING_HEAD) === this.#i32[this.#words + RING_TAIL];
  }

  /** Packets since `start` that found no room. */
  get lost(): number {
    return (this.#i32[this.#words + RING_LOST] - this.#lost) >>> 0;
  }

  /** Passes over all that is there; returns how many records of `session` that were. */
  skip(session: number): number {
    let skipped = 0;
    const chunk = new Uint8Array(MAX_RECORD);
    const seen = (): void => {
      skipped++;
    };
    while (!this.empty) this.take(session, chunk, 0, Number.POSITIVE_INFINITY, seen);
    return skipped;
  }

  /**
   * Moves records of `session` to `into` from byte `from` on, at most `most` of them and what there is room for; `seen` is told
   * of each one's peer. Others are skipped. Returns the bytes moved.
   */
  take(session: number, into: Uint8Array, from: number, most: number, seen: (peer: number) => void): number {
    const head = Atomics.load(this.#i32, this.#words + RING_HEAD);
    let at = this.#i32[this.#words + RING_TAIL];
    let to = from;
    let taken = 0;
    while (at !== head) {
      const word = (this.#records + at) >> 2;
      const size = this.#i32[word + RECORD_SIZE];
      if (size === RING_WRAP) {
        at = 0;
        continue;
      }
      if (size < RECORD_HEADER || size > MAX_RECORD || size % RECORD_ALIGN !== 0 || at + size > RING_ROOM) {
        throw new Error(`capture ring: a record of ${size} bytes at ${at}`);
      }
      if (this.#i32[word + RECORD_SESSION] === session) {
        if (taken === most || to + size > into.length) break;
        into.set(this.#u8.subarray(this.#records + at, this.#records + at + size), to);
        seen(this.#i32[word + RECORD_PEER]);
        to += size;
        taken++;
      }
      at = at + size === RING_ROOM ? 0 : at + size;
    }
    Atomics.store(this.#i32, this.#words + RING_TAIL, at);
    return to - from;
  }
}
