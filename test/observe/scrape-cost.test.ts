/** What a scrape costs with 1,000 peers: below 20 ms of control's time, in layer 3 and in layer 2. */
import t from 'tap';
import { LearnedMacs } from '../../src/dataplane/macs.js';
import { Tables } from '../../src/dataplane/tables.js';
import { deviceDrops } from '../../src/host/device-drops.js';
import { type MemoryOptions, PEER_COUNTERS } from '../../src/io/memory.js';
import { createMetrics, type Metrics } from '../../src/observe/metrics.js';
import { ForwardingTables, type PeerInForce } from '../../src/observe/tables.js';
import { LAYER_2, makeObserved, samplesOf } from '../lib/observed.js';

/** Milliseconds: what is promised. */
const MOST = 20;
const PEERS = 1000;
const SCRAPES = 25;

const peersOf = (count: number): PeerInForce[] =>
  Array.from({ length: count }, (_, i) => ({ name: `node-${i}.cluster.example`, ref: (1 << 16) | i }));

/** Milliseconds of this thread, by scrape, sorted. Not wall-clock time: the machine may have others to serve. */
async function costs(metrics: Metrics): Promise<number[]> {
  const found: number[] = [];
  for (let i = 0; i < SCRAPES; i++) {
    const begun = process.cpuUsage();
    const at = performance.now();
    await metrics.metrics();
    const { user, system } = process.cpuUsage(begun);
    found.push(Math.min((user + system) / 1000, performance.now() - at));
  }
  return found.sort((a, b) => a - b);
}

async function isCheap(t: Pick<typeof import('tap').default, 'ok' | 'comment'>, metrics: Metrics): Promise<void> {
  const found = await costs(metrics);
  const [median, worst] = [found[SCRAPES >> 1], found[SCRAPES - 1]].map((ms) => ms.toFixed(1));
  const bytes = (await metrics.metrics()).length;
  t.comment(`median ${median} ms, worst ${worst} ms, ${(bytes / 1024).toFixed(0)} KiB`);
  t.ok(found[SCRAPES >> 1] < MOST, `${median} ms`);
}

function observedWith(peers: number, workers = 2, options: Partial<MemoryOptions> = {}) {
  const rig = makeObserved(workers, { peers: 32_768, ...options });
  rig.peers.splice(0, rig.peers.length, ...peersOf(peers));
  for (const { peerCounters } of rig.memory.layout.workers) {
    for (let i = 0; i < peers * PEER_COUNTERS; i++) rig.memory.f64[(peerCounters >> 3) + i] = 1e9 + i;
  }
  return { ...rig, observed: { ...rig.observed, deviceDrops: () => deviceDrops(['lo']) } };
}

t.test('layer 3', async (t) => {
  const { observed } = observedWith(PEERS);
  const metrics = createMetrics(observed);
  await isCheap(t, metrics);
  t.equal(samplesOf(await metrics.metrics()).get('weft_peers'), PEERS);
});

t.test('layer 2: MACs are counted anew each time', async (t) => {
  const room = { networks: 2, macs: 65_536, neighbours: 65_536, statics: 1024 };
  const { memory, observed, peers } = observedWith(PEERS, 1, room);
  const tables = new Tables(memory, () => {});
  const address = Uint8Array.of(192, 168, 77, 2);
  const ref = tables.addPeer({ address, port: 4789, mtu: 1464, ecn: true, network: 0 });
  await tables.commit();
  const learned = new LearnedMacs(memory, 0, { age: 300_000, perPeer: 65_536 }, undefined);
  const now = Number(process.hrtime.bigint() / 1_000_000n) | 0;
  const learn = (macs: number): void => {
    for (let i = 0; i < macs; i++) learned.learn((i << 8) | 2, 0x0504, 0, ref, now);
  };
  // Each by one that has read nothing yet: who has read a large table gives the same answer again for a while.
  const summary = () => new ForwardingTables({ memory, vnis: [42, 7], peers: () => peers, age: 300_000 }).summary();
  const metrics = createMetrics({ ...observed, ...LAYER_2, forwarding: { summary: once(summary) } });
  learn(10_000);
  await isCheap(t, metrics);
  learn(60_000);
  const full = await costs(metrics);
  t.comment(`60,000 MACs: median ${full[SCRAPES >> 1].toFixed(1)} ms`);
  const found = samplesOf(await metrics.metrics());
  t.equal(found.get('weft_macs{vni="42",device="weft42",origin="peer"}'), 60_000);
  t.equal(found.get('weft_table_used_ratio{table="macs"}'), 60_000 / 65_536);
});

/** Three metrics ask in one scrape. */
function once<T>(read: () => Promise<T>): () => Promise<T> {
  let pending: Promise<T> | undefined;
  return () => {
    pending ??= read().finally(() => {
      pending = undefined;
    });
    return pending;
  };
}

t.test('its size is bounded: 16,384 peers', async (t) => {
  const few = await createMetrics(observedWith(PEERS).observed).metrics();
  const metrics = createMetrics(observedWith(16_384).observed);
  const many = await metrics.metrics();
  t.ok(many.length < few.length * 1.1, `${few.length} and ${many.length} bytes`);
  const found = await costs(metrics);
  t.comment(`median ${found[SCRAPES >> 1].toFixed(1)} ms`);
});
