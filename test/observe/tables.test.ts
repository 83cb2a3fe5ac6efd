/** /v1/macs and /v1/neighbours, and what /metrics says of the same tables. */
import t from 'tap';
import { LearnedMacs, LOCAL } from '../../src/dataplane/macs.js';
import { LearnedNeighbours, ROUTER, ROUTER_KNOWN } from '../../src/dataplane/neighbours.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory } from '../../src/io/memory.js';
import { ForwardingTables, MOST_ENTRIES } from '../../src/observe/tables.js';
import { address } from '../lib/packets.js';

const VNIS = [42, 7];
const NOW = 100_000;
const MAPPED = 0xffff0000 | 0; // the third word of ::ffff:a.b.c.d, little-endian

async function setUp(macs = 1024) {
  const options = { workers: 1, peers: 16, routeNodes: 16, networks: 2, macs, neighbours: 64, statics: 64 };
  const memory = EngineMemory.create(options);
  const tables = new Tables(memory, () => {});
  const spec = { port: 4789, mtu: 1464, ecn: true };
  const refs = VNIS.map((_, network) => tables.addPeer({ ...spec, address: address('192.168.77.2'), network }));
  await tables.commit();
  const limits = { age: 300_000, perPeer: macs };
  const learned = new LearnedMacs(memory, 0, limits, undefined);
  const neighbours = new LearnedNeighbours(memory, 0, limits, undefined);
  const shown = new ForwardingTables({
    memory,
    vnis: VNIS,
    age: 300_000,
    peers: () => refs.map((ref) => ({ name: 'b', ref })),
    now: () => NOW,
  });
  return { tables, refs, learned, neighbours, shown };
}

const json = (text: string): unknown => JSON.parse(text);

t.test('nothing known', async (t) => {
  const { shown } = await setUp();
  t.same(json(await shown.macs()), { macs: [], more: 0 });
  t.same(json(await shown.neighbours()), { neighbours: [], more: 0 });
});

t.test('static and learned, local and behind peers', async (t) => {
  const { tables, refs, learned, neighbours, shown } = await setUp();
  tables.setMac(0, Uint8Array.of(2, 0, 0, 0, 0, 5), refs[0]);
  tables.setNeighbour(0, address('fd07::5'), Uint8Array.of(2, 0, 0, 0, 0, 5), true, refs[0]);
  await tables.commit();
  learned.learn(0x03020102, 0x0504, 0, refs[0], NOW - 1500);
  learned.learn(0x03020102, 0x0504, 1, LOCAL, NOW - 20_250);
  learned.learn(0x03020102, 0x0604, 1, LOCAL, NOW - 300_001); // not swept yet
  const [w0, w1, w2, w3] = [0, 0, MAPPED, new Int32Array(address('10.7.0.9').buffer)[0]];
  neighbours.teach(w0, w1, w2, w3, 1, 0x03020102, 0x0504, ROUTER_KNOWN | ROUTER, LOCAL, NOW - 250);
  const { macs } = json(await shown.macs()) as { macs: unknown[] };
  const mac = '02:01:02:03:04:05';
  t.same(
    new Set(macs.map((one) => JSON.stringify(one))),
    new Set([
      '{"vni":42,"mac":"02:00:00:00:00:05","peer":"b","origin":"static","ageSeconds":null}',
      `{"vni":42,"mac":"${mac}","peer":"b","origin":"learned","ageSeconds":1.5}`,
      `{"vni":7,"mac":"${mac}","peer":null,"origin":"learned","ageSeconds":20.25}`,
    ]),
  );
  const found = json(await shown.neighbours()) as { neighbours: { vni: number }[] };
  t.same(
    found.neighbours.sort((a, b) => a.vni - b.vni),
    [
      { vni: 7, address: '10.7.0.9', mac, router: true, origin: 'learned', ageSeconds: 0.25 },
      { vni: 42, address: 'fd07::5', mac: '02:00:00:00:00:05', router: true, origin: 'static', ageSeconds: null },
    ],
  );
  t.same(await shown.summary(), {
    macs: [
      { local: 0, peer: 1, static: 1 },
      { local: 1, peer: 0, static: 0 },
    ],
    neighbours: [
      { learned: 0, static: 1 },
      { learned: 1, static: 0 },
    ],
    oldest: [1.5, 20.25],
  });
});

t.test('an answer is bounded', async (t) => {
  const { refs, learned, shown } = await setUp(16_384);
  for (let i = 0; i < 12_000; i++) learned.learn((i << 8) | 2, 0x0504, 0, refs[0], NOW);
  const { macs, more } = json(await shown.macs()) as { macs: unknown[]; more: number };
  t.equal(macs.length, MOST_ENTRIES);
  t.equal(more, 2000);
  t.equal((await shown.summary()).macs[0].peer, 12_000);
});
