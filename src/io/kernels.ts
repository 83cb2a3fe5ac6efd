/**
 * The WASM kernels, typed. All offsets are bytes in the engine's memory; the kernels check nothing that their contract
 * says the caller has checked. Sources: src/kernels/.
 */
import { readFileSync } from 'node:fs';
import type { EngineMemory } from './memory.js';

export interface Kernels {
  /** Copies between ranges that do not overlap. */
  copy(to: number, from: number, length: number): void;
  /** One's complement sum of little-endian 16-bit words, folded to 16 bits, on top of `seed`. */
  sum(at: number, length: number, seed: number): number;
  /** Completes the checksum at `at + start + offset`, which holds the folded pseudo-header sum. */
  finish(at: number, length: number, start: number, offset: number): void;
  /**
   * Splits the super-packet at `at` where it lies: `l3` bytes of IP header, `headers` up to the payload, `size` payload bytes
   * a segment, `prefix` bytes before `at` that each segment gets a copy of. `tcp` 1 or 0 (UDP). Returns the number of
   * segments.
   */
  split(at: number, length: number, l3: number, headers: number, size: number, tcp: number, prefix: number): number;
  /** See src/kernels/merge.ts. */
  merge(
    states: number,
    buffers: number,
    stride: number,
    out: number,
    at: number,
    size: number,
    count: number,
    last: number,
    allow: number,
    prefix: number,
  ): number;
  /** Finishes an open merge for the device, with `l2` bytes before the IP packet; returns the length of all of it. */
  mergeClose(state: number, buffer: number, l2: number): number;
}

let compiled: WebAssembly.Module | undefined;

/** Instantiates the kernels on a memory. The module is compiled once a thread. */
export function loadKernels(memory: EngineMemory): Kernels {
  compiled ??= new WebAssembly.Module(readFileSync(new URL('../kernels/kernels.wasm', import.meta.url)));
  return new WebAssembly.Instance(compiled, { env: { memory: memory.memory } }).exports as unknown as Kernels;
}
