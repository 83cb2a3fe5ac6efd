/** An engine's memory and kernels without an engine, for the benchmarks of single functions. */
import { type Kernels, loadKernels } from '../../src/io/kernels.js';
import { EngineMemory, type WorkerLayout } from '../../src/io/memory.js';

/** Calls in a round of a benchmark whose call takes nanoseconds. */
export const TIMES = 1 << 19;

export interface KernelRig {
  readonly memory: EngineMemory;
  readonly layout: WorkerLayout;
  readonly kernels: Kernels;
  readonly view: DataView;
}

export function makeKernelRig(): KernelRig {
  const memory = EngineMemory.create({ workers: 1, peers: 16, routeNodes: 64, networks: 1 });
  return {
    memory,
    layout: memory.layout.workers[0],
    kernels: loadKernels(memory),
    view: new DataView(memory.memory.buffer),
  };
}
