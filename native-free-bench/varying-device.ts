/**
 * A device whose frames differ in one MAC, at the cost of three stores each: a set of that many frames would measure the cache
 * that they fill, not the table they are looked up in. (The same for layer 3: random-device.ts.)
 */
import { type Device, EAGAIN } from '../src/io/device.js';
import type { EngineMemory, WorkerLayout } from '../src/io/memory.js';

/** Where the MAC that varies is in a frame, in 16-bit words. */
export const DESTINATION = 0;
export const SOURCE = 3;

export class VaryingDevice implements Device {
  readonly #u16: Uint16Array;
  readonly #i32: Int32Array;
  readonly #vnetIn: number;
  readonly #template: Uint16Array;
  readonly #where: number;
  /** Three words of each MAC, as they lie in memory. */
  readonly #macs: Uint16Array;
  #next = 0;
  #left = 0;
  /** Every `every`th frame only has a MAC of `macs`; the others are as the template. */
  every = 1;
  #countdown = 1;

  /** `template`: a frame of an even length. `macs`: at least one, 6 bytes each; they are gone round. */
  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    template: Uint8Array,
    where: typeof DESTINATION | typeof SOURCE,
    macs: Uint8Array,
  ) {
    this.#u16 = memory.u16;
    this.#i32 = memory.i32;
    this.#vnetIn = layout.vnetIn >> 2;
    this.#template = new Uint16Array(template.slice().buffer);
    this.#where = where;
    this.#macs = new Uint16Array(macs.slice().buffer);
  }

  load(count: number): void {
    this.#left = count;
  }

  pull(at: number): number {
    if (this.#left === 0) return -EAGAIN;
    this.#left--;
    const header = this.#vnetIn;
    this.#i32[header] = 0;
    this.#i32[header + 1] = 0;
    this.#i32[header + 2] = 0;
    const to = at >> 1; // `at` is even, or the engine itself would be slow
    const u16 = this.#u16;
    const template = this.#template;
    for (let i = 0; i < template.length; i++) u16[to + i] = template[i];
    if (--this.#countdown === 0) {
      this.#countdown = this.every;
      const mac = to + this.#where;
      u16[mac] = this.#macs[this.#next];
      u16[mac + 1] = this.#macs[this.#next + 1];
      u16[mac + 2] = this.#macs[this.#next + 2];
      this.#next = this.#next + 3 === this.#macs.length ? 0 : this.#next + 3;
    }
    return template.length * 2;
  }

  push(): number {
    return 0;
  }
}
