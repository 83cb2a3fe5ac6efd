/** Grouping datagrams into messages, and handing them to a socket that takes all (dataplane/outbox.ts). */
import { Outbox } from '../../src/dataplane/outbox.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import type { Bench } from '../bench.js';
import { makeKernelRig, TIMES } from './rig.js';

export const outboxBenches: readonly Bench[] = [group(1), group(8)];

function group(peers: number): Bench {
  return {
    name: `outbox: 32 datagrams of 64 B to ${peers} peer${peers > 1 ? 's' : ''} and a flush`,
    unit: 'datagram',
    prepare: async () => {
      const { memory, layout } = makeKernelRig();
      const socket = { pull: () => 0, push: (_first: number, count: number) => count };
      const outbox = new Outbox(memory, layout, 0, 0, socket, new SharedWords(memory), 128);
      return () => {
        for (let i = 0; i < TIMES; i += 32) {
          for (let p = 0; p < 32; p++) outbox.append(p % peers, layout.arena + p * 64, 64, 1, 64, 0);
          outbox.flush();
        }
        return TIMES;
      };
    },
  };
}
