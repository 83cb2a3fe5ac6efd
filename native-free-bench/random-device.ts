/**
 * A device whose packets go to ever different destinations, at the cost of two stores each: a set of that many packets would
 * measure the cache that they fill, not the table they are looked up in.
 */
import { type Device, EAGAIN } from '../src/io/device.js';
import type { EngineMemory, WorkerLayout } from '../src/io/memory.js';
import { udp } from './packets.js';

export class RandomDevice implements Device {
  readonly #i32: Int32Array;
  readonly #vnetIn: number;
  readonly #template: Int32Array;
  /** Word 2 (TTL, protocol, header checksum) and word 4 (destination) of each packet. */
  readonly #vary: Int32Array;
  #next = 0;
  #left = 0;

  /** `destinations` in host byte order; a power of two of them. */
  constructor(memory: EngineMemory, layout: WorkerLayout, destinations: readonly number[]) {
    this.#i32 = memory.i32;
    this.#vnetIn = layout.vnetIn >> 2;
    const words = (destination: number): Int32Array => new Int32Array(udp(0x0a000001, destination, 64).buffer);
    this.#template = words(0);
    this.#vary = new Int32Array(destinations.length * 2);
    destinations.forEach((destination, i) => {
      const packet = words(destination);
      this.#vary[i * 2] = packet[2];
      this.#vary[i * 2 + 1] = packet[4];
    });
  }

  load(count: number): void {
    this.#left = count;
  }

  pull(at: number): number {
    if (this.#left === 0) return -EAGAIN;
    this.#left--;
    const i32 = this.#i32;
    i32[this.#vnetIn] = 0;
    const to = at >> 2;
    for (let i = 0; i < 16; i++) i32[to + i] = this.#template[i];
    i32[to + 2] = this.#vary[this.#next];
    i32[to + 4] = this.#vary[this.#next + 1];
    this.#next = (this.#next + 2) & (this.#vary.length - 1);
    return 64;
  }

  push(): number {
    return 0;
  }
}
