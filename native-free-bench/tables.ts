/** What control pays for changes of the tables. */
import type { Bench } from './bench.js';
import { makeRig, peerAddress, routePrefix } from './rig.js';

export const tableBenches: readonly Bench[] = [joins(), replace()];

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
