/** A run of segments verified and merged (kernels/merge.ts). */
import { MERGE_SLOTS } from '../../src/io/memory.js';
import type { Bench } from '../bench.js';
import { message, tcp } from '../packets.js';
import { makeKernelRig } from './rig.js';

export const mergeBenches: readonly Bench[] = [merge()];

function merge(): Bench {
  return {
    name: 'merge: TCP run of 44 x 1420 B, verified and closed',
    unit: 'super',
    prepare: async () => {
      const { memory, layout, kernels } = makeKernelRig();
      const run = Array.from({ length: 44 }, (_, i) => tcp(0x0a000001, 0x0a000002, 1420, i * 1420));
      memory.u8.set(message(new Uint8Array(16), run).bytes, layout.receive.buffers);
      return () => {
        for (let i = 0; i < 1 << 14; i++) {
          const { mergeStates, mergeBuffers, mergeStride, kernelOut, receive } = layout;
          kernels.merge(mergeStates, mergeBuffers, mergeStride, kernelOut, receive.buffers, 1472, 44, 1472, 7, 0);
          const slot = memory.i32[kernelOut >> 2] % MERGE_SLOTS;
          kernels.mergeClose(mergeStates + slot * 64, mergeBuffers + slot * mergeStride, 0);
        }
        return 1 << 14;
      };
    },
  };
}
