/**
 * How large batches and messages are: histograms in the shared memory, one add for each batch or message, none for a packet.
 *
 * A histogram of a worker is HISTOGRAM_SLOTS counts (f64) of which slot k has the sizes above 2^(k-1) up to 2^k, so that finding
 * the slot is one instruction. Sums are not kept: what is sized is counted by itself already (`sum`), in the same place.
 */
import { type EngineMemory, HISTOGRAM_SLOTS, HISTOGRAMS, type WorkerLayout } from '../io/memory.js';
import { IN_IN, IN_MESSAGES, OUT_IN, OUT_SENT, readCounter } from './counters.js';

export interface HistogramInfo {
  readonly name: 'batch_size' | 'message_datagrams';
  readonly direction: 'outbound' | 'inbound';
  /** The counter that is the sum of all sizes. */
  readonly sum: number;
}

const infos: HistogramInfo[] = [];

function histogram(name: HistogramInfo['name'], direction: HistogramInfo['direction'], sum: number): number {
  infos.push({ name, direction, sum });
  return infos.length - 1;
}

/** Packets that were read from the device at once. */
export const OUT_BATCH = histogram('batch_size', 'outbound', OUT_IN);
/** Datagrams of a message that the socket took. */
export const OUT_MESSAGE = histogram('message_datagrams', 'outbound', OUT_SENT);
/** Messages that one recvmmsg brought. */
export const IN_BATCH = histogram('batch_size', 'inbound', IN_MESSAGES);
/** Datagrams of a message that was received. */
export const IN_MESSAGE = histogram('message_datagrams', 'inbound', IN_IN);

export const HISTOGRAM_INFOS: readonly HistogramInfo[] = infos;
if (infos.length > HISTOGRAMS) throw new Error(`${infos.length} histograms do not fit into ${HISTOGRAMS}`);

/** The f64 index of a worker's histogram. */
export const histogramAt = (layout: WorkerLayout, id: number): number =>
  (layout.histograms >> 3) + id * HISTOGRAM_SLOTS;

/** Counts one batch or message of `size`, at least 1. */
export function countSize(f64: Float64Array, histogram: number, size: number): void {
  f64[histogram + 32 - Math.clz32(size - 1)]++;
}

/** The finite bounds that are told of: 1, 2, 4 … 128. More is hardly possible. */
export const BOUNDS: readonly number[] = [0, 1, 2, 3, 4, 5, 6, 7].map((power) => 1 << power);

export interface HistogramCounts {
  /** By BOUNDS: how many are not larger. */
  readonly upTo: readonly number[];
  readonly count: number;
  readonly sum: number;
}

/** Sums one histogram over all workers. Safe from any thread, as readCounter. */
export function readHistogram(memory: EngineMemory, id: number): HistogramCounts {
  const slots = new Float64Array(HISTOGRAM_SLOTS);
  for (const worker of memory.layout.workers) {
    const at = histogramAt(worker, id);
    for (let slot = 0; slot < HISTOGRAM_SLOTS; slot++) slots[slot] += memory.f64[at + slot];
  }
  let count = 0;
  const upTo = Array.from(slots, (more) => {
    count += more;
    return count;
  });
  return { upTo: upTo.slice(0, BOUNDS.length), count, sum: readCounter(memory, infos[id].sum) };
}
