/** Whether the histograms of batches and messages agree with the counters beside them. */
import { IN_MESSAGES, OUT_MESSAGES, readCounter } from '../../src/dataplane/counters.js';
import { HISTOGRAM_INFOS, histogramAt, IN_MESSAGE, OUT_MESSAGE } from '../../src/dataplane/histograms.js';
import { type EngineMemory, HISTOGRAM_SLOTS } from '../../src/io/memory.js';

/** Throws unless there is one size for each message, and the sums are such as these sizes can have. */
export function auditSizes(memory: EngineMemory): void {
  for (const [id, { name, direction, sum }] of HISTOGRAM_INFOS.entries()) {
    let [count, least, most] = [0, 0, 0];
    for (const worker of memory.layout.workers) {
      for (let slot = 0; slot < HISTOGRAM_SLOTS; slot++) {
        const times = memory.f64[histogramAt(worker, id) + slot];
        count += times;
        least += times * (slot === 0 ? 1 : 2 ** (slot - 1) + 1);
        most += times * 2 ** slot;
      }
    }
    const what = `${direction} ${name}`;
    const total = readCounter(memory, sum);
    if (total < least || total > most) throw new Error(`${what}: sizes make ${least} to ${most}, counted are ${total}`);
    const messages = id === OUT_MESSAGE ? OUT_MESSAGES : id === IN_MESSAGE ? IN_MESSAGES : undefined;
    const expected = messages === undefined ? count : readCounter(memory, messages);
    if (count !== expected) throw new Error(`${what}: ${count} sizes of ${expected} messages`);
  }
}
