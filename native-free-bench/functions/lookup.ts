/** Longest-prefix match (dataplane/routes.ts). */
import { lookup4 } from '../../src/dataplane/routes.js';
import type { Bench } from '../bench.js';
import { makeRig, routePrefix } from '../rig.js';

const LOOKUPS = 1 << 21;

export const lookupBenches: readonly Bench[] = [lookup(64), lookup(100_000)];

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
