/** Tables: lookups by size, and what control pays for changes. */
import { lookup4 } from '../src/dataplane/routes.js';
import type { Bench } from './bench.js';
import { makeRig, peerAddress, routePrefix } from './rig.js';

const LOOKUPS = 1 << 21;

export const tableBenches: readonly Bench[] = [lookup(64), lookup(100_000), joins(), replace()];

function lookup(routes: number): Bench {
  return {
    name: `routes: random hit among ${routes}`,
    unit: 'lookup',
    prepare: async () => {
      const { memory } = await makeRig({ peers: 64, routes });
      const table = memory.layout.tables[1];
      const destinations = Int32Array.from({ length: 1 << 17 }, (_, i) => routePrefix(Math.imul(i, 7919) % routes) + 5);
      let found = 0;
      return () => {
        for (let i = 0; i < LOOKUPS; i++) {
          found += lookup4(memory.i32, table.roots4 >> 2, table.nodes >> 2, destinations[i & 0x1ffff]);
        }
        return found === 0 ? 0 : LOOKUPS;
      };
    },
  };
}

function joins(): Bench {
  return {
    name: 'tables: 1,000 joins (peer and route) over 100,000 routes',
    unit: 'join',
    prepare: async () => {
      const rig = await makeRig({ peers: 64, routes: 100_000 });
      return async () => {
        const joined = Array.from({ length: 1000 }, (_, i) => {
          const ref = rig.tables.addPeer({
            address: peerAddress(1000 + i),
            port: 8285,
            mtu: 1472,
            ecn: false,
            network: 0,
          });
          const prefix = { bytes: Uint8Array.of(11, i >> 8, i & 255, 0), length: 24 };
          rig.tables.setRoute(0, prefix, ref);
          return { ref, prefix };
        });
        await rig.tables.commit();
        for (const { ref, prefix } of joined) {
          rig.tables.removeRoute(0, prefix);
          rig.tables.removePeer(ref);
        }
        await rig.tables.commit();
        return 2000; // joins and leaves
      };
    },
  };
}

function replace(): Bench {
  return {
    name: 'tables: 100,000 routes given to other peers',
    unit: 'route',
    prepare: async () => {
      const rig = await makeRig({ peers: 64, routes: 100_000 });
      const extra = rig.tables.addPeer({ address: peerAddress(2000), port: 8285, mtu: 1472, ecn: false, network: 0 });
      await rig.tables.commit();
      return async () => {
        for (let i = 0; i < 100_000; i++) {
          const prefix = routePrefix(i);
          rig.tables.setRoute(
            0,
            { bytes: Uint8Array.of(prefix >>> 24, prefix >>> 16, prefix >>> 8, prefix), length: 24 },
            extra,
          );
        }
        await rig.tables.commit();
        return 100_000;
      };
    },
  };
}
