/** The one's complement sum (kernels/checksum.ts). */
import type { Bench } from '../bench.js';
import { makeKernelRig, TIMES } from './rig.js';

export const checksumBenches: readonly Bench[] = [sum(64), sum(1400)];

function sum(size: number): Bench {
  return {
    name: `checksum: sum of ${size} B`,
    unit: 'call',
    prepare: async () => {
      const { kernels, layout } = makeKernelRig();
      let total = 0;
      return () => {
        for (let i = 0; i < TIMES; i++) total += kernels.sum(layout.scratch, size, i & 0xff);
        return total < 0 ? 0 : TIMES;
      };
    },
  };
}
