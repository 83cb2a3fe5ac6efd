/** The check that every packet passes, and the TTL (packet/ip.ts). */
import { checkIp, decrementTtl } from '../../src/packet/ip.js';
import type { Bench } from '../bench.js';
import { udp } from '../packets.js';
import { makeKernelRig, TIMES } from './rig.js';

export const ipBenches: readonly Bench[] = [check(), ttl()];

function check(): Bench {
  return {
    name: 'ip: check of an IPv4 header',
    unit: 'packet',
    prepare: async () => {
      const { memory, layout, view } = makeKernelRig();
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
      const { memory, layout, view } = makeKernelRig();
      memory.u8.set(udp(0x0a000001, 0x0a000002, 64), layout.arena);
      return () => {
        for (let i = 0; i < TIMES; i++) decrementTtl(view, layout.arena);
        return TIMES;
      };
    },
  };
}
