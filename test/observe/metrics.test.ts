/** /metrics: every counter of the walks under its name, summed over workers, and control's state, read at scrape. */
import t from 'tap';
import type { LoopState } from '../../src/control/loop.js';
import { COUNTER_INFOS } from '../../src/dataplane/counters.js';
import { EngineMemory, PEER_COUNTERS } from '../../src/io/memory.js';
import { ALL_OFFLOADS, OFFLOADS } from '../../src/io/offloads.js';
import { createMetrics, MOST_PEERS, type Observed } from '../../src/observe/metrics.js';

function setUp(workers: number): {
  memory: EngineMemory;
  observed: Observed;
  peers: { name: string; ref: number }[];
  state: { now: LoopState };
} {
  const memory = EngineMemory.create({ workers, peers: 512, routeNodes: 64, networks: 1 });
  const peers = [
    { name: 'c', ref: (1 << 16) | 3 },
    { name: 'b', ref: (9 << 16) | 7 },
  ];
  const state = {
    now: {
      synced: true,
      problem: undefined as string | undefined,
      staleSince: 0,
      updates: 4,
      applied: 3,
      failures: 1,
      lastApplied: 1_700_000_000_500,
    },
  };
  const observed: Observed = {
    version: '1.2.3',
    memory,
    mtu: 1472,
    segments: [],
    host: { routes: 3, refused: 1 },
    requests: () => 12,
    forwarding: { summary: async () => ({ macs: [], neighbours: [], oldest: [] }) },
    tables: { routeCount: 5 },
    peers: () => peers,
    workers: { running: workers, restarts: 2, socketDrops: 7, offloads: ALL_OFFLOADS & ~OFFLOADS.uso },
    loop: {
      get state() {
        return state.now;
      },
    },
    lease: { secondsLeft: () => 41.5, forwards: () => true },
    pathMtu: { lowered: 1 },
  };
  return { memory, observed, peers, state };
}

/** The samples in a scrape: name and labels to value. */
const samples = (text: string): Map<string, number> =>
  new Map(
    text
      .split('\n')
      .filter((line) => line && !line.startsWith('#'))
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
  );

t.test('counters of the walks', async (t) => {
  const { memory, observed } = setUp(2);
  const registry = createMetrics(observed);
  COUNTER_INFOS.forEach((_, id) => {
    memory.layout.workers.forEach((worker, i) => {
      memory.f64[(worker.counters >> 3) + id] = (id + 1) * 10 ** i;
    });
  });
  const found = samples(await registry.metrics());
  const name = {
    in: (direction: string, stage: string) => `weft_packets_total{direction="${direction}",stage="${stage}",role="in"}`,
    made: (direction: string, stage: string) =>
      `weft_packets_total{direction="${direction}",stage="${stage}",role="made"}`,
    sent: (direction: string, stage: string) =>
      `weft_packets_total{direction="${direction}",stage="${stage}",role="sent"}`,
    consumed: (direction: string, stage: string) =>
      `weft_packets_total{direction="${direction}",stage="${stage}",role="consumed"}`,
    dropped: (direction: string, reason: string) => `weft_drops_total{direction="${direction}",reason="${reason}"}`,
    bytes: (direction: string, stage: string) => `weft_bytes_total{direction="${direction}",stage="${stage}"}`,
    note: (direction: string, note: string) => `weft_notes_total{direction="${direction}",note="${note}"}`,
  };
  COUNTER_INFOS.forEach((info, id) => {
    t.equal(found.get(name[info.role](info.direction, info.name)), (id + 1) * 11, `${info.direction} ${info.name}`);
  });
  t.ok(found.size > COUNTER_INFOS.length);
  const again = samples(await registry.metrics());
  t.equal(
    again.get('weft_drops_total{direction="outbound",reason="no_route"}'),
    found.get('weft_drops_total{direction="outbound",reason="no_route"}'),
    'a second scrape adds nothing',
  );
});

t.test('names follow the conventions', async (t) => {
  const text = await createMetrics(setUp(1).observed).metrics();
  const types = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)];
  t.ok(types.length > 15);
  for (const [, name, type] of types) {
    t.match(name, /^(weft|process)_[a-z0-9_]+$/);
    t.equal(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`);
    t.match(text, new RegExp(`^# HELP ${name} .+\\.$`, 'm'), `${name} has a help text`);
  }
});

t.test('peers, by name, and not without bound', async (t) => {
  const { memory, observed, peers } = setUp(2);
  const registry = createMetrics(observed);
  memory.layout.workers.forEach((worker, i) => {
    for (let column = 0; column < PEER_COUNTERS; column++) {
      memory.f64[(worker.peerCounters >> 3) + 7 * PEER_COUNTERS + column] = (column + 1) * 10 ** i;
    }
  });
  const found = samples(await registry.metrics());
  t.equal(found.get('weft_peer_packets_total{peer="b",direction="outbound"}'), 11);
  t.equal(found.get('weft_peer_bytes_total{peer="b",direction="outbound"}'), 22);
  t.equal(found.get('weft_peer_packets_total{peer="b",direction="inbound"}'), 33);
  t.equal(found.get('weft_peer_bytes_total{peer="b",direction="inbound"}'), 44);
  t.equal(found.get('weft_peer_packets_total{peer="c",direction="outbound"}'), 0);
  t.equal(found.get('weft_peers_not_shown'), 0);

  peers.splice(0, 1); // c leaves, and 400 come
  for (let i = 0; i < 400; i++) peers.push({ name: `p${i}`, ref: (1 << 16) | (i + 8) });
  const many = samples(await registry.metrics());
  t.equal([...many.keys()].filter((key) => key.startsWith('weft_peer_packets_total')).length, MOST_PEERS * 2);
  t.equal(many.has('weft_peer_packets_total{peer="c",direction="outbound"}'), false, 'who left is not shown');
  t.equal(many.get('weft_peers_not_shown'), 401 - MOST_PEERS);
});

t.test("control's state", async (t) => {
  const { observed, state } = setUp(1);
  const registry = createMetrics(observed);
  const found = samples(await registry.metrics());
  const expected: Record<string, number> = {
    weft_peers: 2,
    weft_routes: 5,
    weft_peers_path_mtu_lowered: 1,
    weft_device_mtu_bytes: 1472,
    'weft_offload_in_use{offload="tso4"}': 1,
    'weft_offload_in_use{offload="uso"}': 0,
    weft_workers_running: 1,
    weft_worker_restarts_total: 2,
    weft_registry_up: 1,
    weft_registry_updates_total: 4,
    weft_registry_applied_total: 3,
    weft_registry_failures_total: 1,
    weft_registry_last_applied_timestamp_seconds: 1_700_000_000.5,
    'weft_build_info{version="1.2.3"}': 1,
  };
  for (const [name, value] of Object.entries(expected)) t.equal(found.get(name), value, name);
  t.ok((found.get('process_resident_memory_bytes') ?? 0) > 1e6);
  state.now = { ...state.now, problem: 'away' };
  t.equal(samples(await registry.metrics()).get('weft_registry_up'), 0);
});

t.test('layer 2: what is known in each network, and peers that are in several', async (t) => {
  const { memory, observed, peers } = setUp(1);
  peers.push({ name: 'b', ref: (1 << 16) | 9 });
  const registry = createMetrics({
    ...observed,
    segments: [
      { vni: 42, device: 'weft42', mtu: 1450 },
      { vni: 7, device: 'red', mtu: 9000 },
    ],
    forwarding: {
      summary: async () => ({
        macs: [
          { local: 1, peer: 2, static: 3 },
          { local: 0, peer: 0, static: 0 },
        ],
        neighbours: [
          { learned: 4, static: 5 },
          { learned: 0, static: 6 },
        ],
        oldest: [12.5, 0],
      }),
    },
  });
  for (const slot of [7, 9]) memory.f64[(memory.layout.workers[0].peerCounters >> 3) + slot * PEER_COUNTERS] = slot;
  const found = samples(await registry.metrics());
  const expected: Record<string, number> = {
    'weft_macs{vni="42",device="weft42",origin="local"}': 1,
    'weft_macs{vni="42",device="weft42",origin="peer"}': 2,
    'weft_macs{vni="42",device="weft42",origin="static"}': 3,
    'weft_macs{vni="7",device="red",origin="peer"}': 0,
    'weft_neighbours{vni="42",device="weft42",origin="learned"}': 4,
    'weft_neighbours{vni="7",device="red",origin="static"}': 6,
    'weft_mac_oldest_age_seconds{vni="42",device="weft42"}': 12.5,
    'weft_mac_oldest_age_seconds{vni="7",device="red"}': 0,
    'weft_device_mtu_bytes{device="weft42",vni="42"}': 1450,
    'weft_device_mtu_bytes{device="red",vni="7"}': 9000,
    weft_peers: 2,
    'weft_peer_packets_total{peer="b",direction="outbound"}': 16,
  };
  for (const [name, value] of Object.entries(expected)) t.equal(found.get(name), value, name);
  t.equal(found.has('weft_device_mtu_bytes'), false, 'each device for itself');
});
