/** A super-packet split where it lies (kernels/split.ts). */
import type { Bench } from '../bench.js';
import { tcp } from '../packets.js';
import { makeKernelRig } from './rig.js';

export const splitBenches: readonly Bench[] = [split()];

function split(): Bench {
  return {
    name: 'split: TCP super-packet, 44 x 1420 B, with its copy in',
    unit: 'super',
    prepare: async () => {
      const { memory, layout, kernels } = makeKernelRig();
      const packet = tcp(0x0a000001, 0x0a000002, 44 * 1420, 1);
      memory.u8.set(packet, layout.scratch);
      return () => {
        for (let i = 0; i < 1 << 14; i++) {
          kernels.copy(layout.arena, layout.scratch, packet.length);
          kernels.split(layout.arena, packet.length, 20, 52, 1420, 1, 0);
        }
        return 1 << 14;
      };
    },
  };
}
