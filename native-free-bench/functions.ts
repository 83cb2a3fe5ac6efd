/** The hot functions one by one. */
import { loadKernels } from '../src/io/kernels.js';
import { EngineMemory, MERGE_SLOTS } from '../src/io/memory.js';
import { checkIp, decrementTtl } from '../src/packet/ip.js';
import type { Bench } from './bench.js';
import { message, tcp, udp } from './packets.js';

const TIMES = 1 << 19;

export const functionBenches: readonly Bench[] = [sum(64), sum(1400), check(), ttl(), split(), merge()];

function rig() {
  const memory = EngineMemory.create({ workers: 1, peers: 16, routeNodes: 64, networks: 1 });
  return {
    memory,
    layout: memory.layout.workers[0],
    kernels: loadKernels(memory),
    view: new DataView(memory.memory.buffer),
  };
}

function sum(size: number): Bench {
  return {
    name: `checksum: sum of ${size} B`,
    unit: 'call',
    prepare: async () => {
      const { kernels, layout } = rig();
      let total = 0;
      return () => {
        for (let i = 0; i < TIMES; i++) total += kernels.sum(layout.scratch, size, i & 0xff);
        return total < 0 ? 0 : TIMES;
      };
    },
  };
}

function check(): Bench {
  return {
    name: 'ip: check of an IPv4 header',
    unit: 'packet',
    prepare: async () => {
      const { memory, layout, view } = rig();
      memory.u8.set(udp(0x0a000001, 0x0a000002, 64), layout.arena);
      let bad = 0;
      return () => {
        for (let i = 0; i < TIMES; i++) bad += checkIp(view, layout.arena, 64);
        return bad === 0 ? TIMES : 0;
      };
    },
  };
}

function ttl(): Bench {
  return {
    name: 'ip: TTL decrement',
    unit: 'packet',
    prepare: async () => {
      const { memory, layout, view } = rig();
      memory.u8.set(udp(0x0a000001, 0x0a000002, 64), layout.arena);
      return () => {
        for (let i = 0; i < TIMES; i++) decrementTtl(view, layout.arena);
        return TIMES;
      };
    },
  };
}

function split(): Bench {
  return {
    name: 'split: TCP super-packet, 44 x 1420 B, with its copy in',
    unit: 'super',
    prepare: async () => {
      const { memory, layout, kernels } = rig();
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

function merge(): Bench {
  return {
    name: 'merge: TCP run of 44 x 1420 B, verified and closed',
    unit: 'super',
    prepare: async () => {
      const { memory, layout, kernels } = rig();
      const run = Array.from({ length: 44 }, (_, i) => tcp(0x0a000001, 0x0a000002, 1420, i * 1420));
      memory.u8.set(message(new Uint8Array(16), run).bytes, layout.receive.buffers);
      return () => {
        for (let i = 0; i < 1 << 14; i++) {
          const { mergeStates, mergeBuffers, mergeStride, kernelOut, receive } = layout;
          kernels.merge(mergeStates, mergeBuffers, mergeStride, kernelOut, receive.buffers, 1472, 44, 1472, 7);
          const slot = memory.i32[kernelOut >> 2] % MERGE_SLOTS;
          kernels.mergeClose(mergeStates + slot * 64, mergeBuffers + slot * mergeStride);
        }
        return 1 << 14;
      };
    },
  };
}
