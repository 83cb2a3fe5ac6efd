/** Flood lists against sets, and as commits keep them. */
import t from 'tap';
import { FloodLists, floodList } from '../../src/dataplane/floods.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory } from '../../src/io/memory.js';
import { address, random } from '../lib/packets.js';

t.setTimeout(180_000);

const PEERS = 64;
const makeMemory = (macs: number): EngineMemory =>
  EngineMemory.create({ workers: 1, peers: PEERS, routeNodes: 64, networks: 3, macs, neighbours: macs, statics: 8 });

/** A network's list in one version. */
function listOf(memory: EngineMemory, version: number, network: number): number[] {
  const at = floodList(memory.layout.tables[version], memory.options.peers, network);
  return [...memory.i32.subarray(at + 1, at + 1 + memory.i32[at])];
}

const sorted = (refs: Iterable<number>): number[] => [...refs].sort((a, b) => a - b);

t.test('added and removed in any order, like sets', async (t) => {
  const memory = makeMemory(1024);
  const lists = new FloodLists(memory, memory.layout.tables[0]);
  const model = [0, 1, 2].map(() => new Set<number>());
  const rng = random(7);
  for (let step = 0; step < 20_000; step++) {
    const network = Math.floor(rng() * 3);
    const ref = 65536 + Math.floor(rng() * PEERS);
    if (model[network].has(ref)) {
      lists.remove(network, ref);
      model[network].delete(ref);
    } else if (rng() < 0.7) {
      lists.add(network, ref);
      model[network].add(ref);
    } else {
      lists.remove(network, ref); // one that is not there
    }
    const got = listOf(memory, 0, network);
    if (sorted(got).join() !== sorted(model[network]).join()) {
      t.fail(`step ${step}`);
      break;
    }
  }
  for (const [network, refs] of model.entries()) for (const ref of refs) lists.remove(network, ref);
  for (const network of [0, 1, 2]) t.same(listOf(memory, 0, network), []);
  // All slots in one list: the longest there can be.
  for (let ref = 0; ref < PEERS; ref++) lists.add(2, 65536 + ref);
  t.equal(listOf(memory, 0, 2).length, PEERS);
  t.ok(memory.intactGuards());
});

t.test('peers come and go with commits, each in the list of its network', async (t) => {
  const memory = makeMemory(1024);
  const shared = new SharedWords(memory);
  const tables = new Tables(memory, () => {});
  const spec = { address: address('192.168.77.2'), port: 4789, mtu: 1464, ecn: true };
  const refs = [0, 0, 1, 0].map((network) => tables.addPeer({ ...spec, network }));
  t.same(listOf(memory, shared.activeVersion(), 0), [], 'not before the commit');
  await tables.commit();
  for (const version of [0, 1]) {
    t.same(listOf(memory, version, 0), [refs[0], refs[1], refs[3]]);
    t.same(listOf(memory, version, 1), [refs[2]]);
    t.same(listOf(memory, version, 2), []);
  }
  // Replaced in one change: the new one is there, the old one is not, at any time a turn may look.
  const fresh = tables.addPeer({ ...spec, network: 0 });
  tables.removePeer(refs[0]);
  shared.setRunning(0, true);
  const old = shared.beginTurn(0);
  const commit = tables.commit();
  await new Promise((resolve) => setTimeout(resolve, 5));
  t.same(listOf(memory, old, 0), [refs[0], refs[1], refs[3]]);
  t.same(sorted(listOf(memory, shared.activeVersion(), 0)), sorted([refs[1], refs[3], fresh]));
  shared.beginTurn(0);
  await commit;
  for (const version of [0, 1]) t.same(sorted(listOf(memory, version, 0)), sorted([refs[1], refs[3], fresh]));
  shared.setRunning(0, false);
  // One that comes and goes within one change leaves nothing behind.
  tables.removePeer(tables.addPeer({ ...spec, network: 2 }));
  await tables.commit();
  for (const version of [0, 1]) t.same(listOf(memory, version, 2), []);
});

t.test('layer 3 keeps no lists', async (t) => {
  const memory = makeMemory(0);
  const tables = new Tables(memory, () => {});
  const ref = tables.addPeer({ address: address('192.168.77.2'), port: 1, mtu: 1, ecn: false, network: 0 });
  await tables.commit();
  for (const version of [0, 1]) t.same(listOf(memory, version, 0), []);
  tables.removePeer(ref);
  await tables.commit();
  t.equal(tables.peerCount, 0);
});

t.test('as many peers as there can be are replaced quickly', async (t) => {
  const peers = 32768;
  const memory = EngineMemory.create({ workers: 1, peers, routeNodes: 64, networks: 1, macs: 1024, statics: 8 });
  const lists = new FloodLists(memory, memory.layout.tables[0]);
  const start = performance.now();
  for (let ref = 65536; ref < 65536 + peers; ref++) lists.add(0, ref);
  for (let ref = 65536; ref < 65536 + peers; ref++) lists.remove(0, ref);
  t.same(listOf(memory, 0, 0), []);
  t.ok(performance.now() - start < 5000, 'not quadratic');
});
