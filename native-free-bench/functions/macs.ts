/** A learned MAC looked up, and seen again (dataplane/macs.ts). */
import { LearnedMacs, LOCAL } from '../../src/dataplane/macs.js';
import { EngineMemory } from '../../src/io/memory.js';
import type { Bench } from '../bench.js';

const TIMES = 1 << 21;
const MASK = (1 << 17) - 1;

export const macBenches: readonly Bench[] = [
  macs('random hit', 64, (table, low) => table.lookup(low, 0, 0, 1)),
  macs('random hit', 100_000, (table, low) => table.lookup(low, 0, 0, 1)),
  macs('random one seen again', 100_000, (table, low) => table.learn(low, 0, 0, LOCAL, 1)),
];

function macs(what: string, count: number, use: (table: LearnedMacs, low: number) => unknown): Bench {
  return {
    name: `macs: ${what} among ${count}`,
    unit: 'MAC',
    prepare: async () => {
      const memory = EngineMemory.create({ workers: 1, peers: 16, routeNodes: 64, networks: 1, macs: 1 << 17 });
      const table = new LearnedMacs(memory, 0, { age: 300_000, perPeer: 1 << 17 }, undefined);
      for (let i = 0; i < count; i++) table.learn(i, 0, 0, LOCAL, 0);
      const order = Int32Array.from({ length: MASK + 1 }, (_, i) => (Math.imul(i, 7919) >>> 0) % count);
      return () => {
        for (let i = 0; i < TIMES; i++) use(table, order[i & MASK]);
        return TIMES;
      };
    },
  };
}
