/**
 * What workers tell each other: single-producer single-consumer rings, one for each ordered pair of workers.
 *
 * A worker's learned tables are its own, but the frames of one host may come to any worker. So a worker sends what is
 * new or has moved to all others, and what it still sees again after a third of the age, so that it stays known to
 * those that never see it. A record carries when the MAC was seen, so the newest wins in whatever order they are read,
 * and a worker that was only told forgets it at most a third of the age sooner than the one that saw it, and never
 * later.
 *
 * A ring is 64 bytes (the count of records read and, 32 bytes on, the count of records written; both wrap) and RECORDS
 * records of 64 bytes. Only these counts need Atomics: a record is written before its count and read after it. All of
 * it is in the shared memory, so a worker that starts again goes on where the last one ended.
 */
import { type EngineMemory, RING_BYTES } from '../io/memory.js';
import { RING_FULL } from './counters.js';
import type { LearnedMacs } from './macs.js';
import type { LearnedNeighbours } from './neighbours.js';
import type { PeerRef } from './peers.js';

const READ = 0;
const WRITTEN = 8;
const FIRST = 16;
const RECORD = 16;
const RECORDS = (RING_BYTES / 4 - FIRST) / RECORD;
/** Records of one ring that are read in one turn. */
const RECEIVE_MOST = 64;

/** The first word of a record. */
const MAC = 1;
const NEIGHBOUR = 2;

export class Rings {
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #full: number;
  /** i32 indices of the rings to and from each other worker. */
  readonly #to: Int32Array;
  readonly #from: Int32Array;

  constructor(memory: EngineMemory, worker: number) {
    const { workers } = memory.layout;
    const others = workers.map((_, other) => other).filter((other) => other !== worker);
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#full = (workers[worker].counters >> 3) + RING_FULL;
    this.#to = Int32Array.from(others, (other) => workers[worker].rings[other] >> 2);
    this.#from = Int32Array.from(others, (other) => workers[other].rings[worker] >> 2);
  }

  /** Tells all others where a MAC (`key`: high | network << 16) was seen. False if one of them could not be told. */
  sendMac(low: number, key: number, ref: PeerRef, seen: number): boolean {
    let told = true;
    for (let i = 0; i < this.#to.length; i++) {
      const at = this.#slot(this.#to[i]);
      if (at < 0) {
        told = false;
        continue;
      }
      const i32 = this.#i32;
      i32[at] = MAC;
      i32[at + 1] = low;
      i32[at + 2] = key;
      i32[at + 3] = ref;
      i32[at + 4] = seen;
      this.#written(this.#to[i]);
    }
    return told;
  }

  /** Tells all others of a neighbour: words 1 to 10 of the entry at `entry` (an i32 index). False as above. */
  sendNeighbour(entry: number): boolean {
    let told = true;
    for (let i = 0; i < this.#to.length; i++) {
      const at = this.#slot(this.#to[i]);
      if (at < 0) {
        told = false;
        continue;
      }
      const i32 = this.#i32;
      i32[at] = NEIGHBOUR;
      for (let word = 1; word <= 10; word++) i32[at + word] = i32[entry + word];
      this.#written(this.#to[i]);
    }
    return told;
  }

  /** Takes in what the others have sent: at most RECEIVE_MOST records of each in one call. */
  receive(macs: LearnedMacs, neighbours: LearnedNeighbours, now: number): void {
    const i32 = this.#i32;
    for (let i = 0; i < this.#from.length; i++) {
      const ring = this.#from[i];
      let read = i32[ring + READ]; // only we write it
      const waiting = (Atomics.load(i32, ring + WRITTEN) - read) | 0;
      if (waiting === 0) continue;
      const end = (read + Math.min(waiting, RECEIVE_MOST)) | 0;
      for (; read !== end; read = (read + 1) | 0) {
        const at = ring + FIRST + (read & (RECORDS - 1)) * RECORD;
        if (i32[at] === MAC) macs.hear(i32[at + 1], i32[at + 2], i32[at + 3], i32[at + 4], now);
        else neighbours.hear(at, now);
      }
      Atomics.store(i32, ring + READ, end);
    }
  }

  /** The i32 index of a ring's next free record, or -1, counted, if there is none. */
  #slot(ring: number): number {
    const written = this.#i32[ring + WRITTEN]; // only we write it
    if (((written - Atomics.load(this.#i32, ring + READ)) | 0) < RECORDS) {
      return ring + FIRST + (written & (RECORDS - 1)) * RECORD;
    }
    this.#f64[this.#full]++;
    return -1;
  }

  #written(ring: number): void {
    Atomics.store(this.#i32, ring + WRITTEN, (this.#i32[ring + WRITTEN] + 1) | 0);
  }
}
