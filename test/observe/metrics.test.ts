/** /metrics: every counter of the walks under its name, summed over workers, and control's state, read at scrape. */
import t from 'tap';
import { COUNTER_INFOS, OUT_IN } from '../../src/dataplane/counters.js';
import { macsUsedAt, neighboursUsedAt, WorkerTimes } from '../../src/dataplane/gauges.js';
import { countSize, histogramAt, OUT_BATCH } from '../../src/dataplane/histograms.js';
import { deviceDrops } from '../../src/host/device-drops.js';
import { PEER_COUNTERS } from '../../src/io/memory.js';
import { createMetrics } from '../../src/observe/metrics.js';
import { MOST_PEERS } from '../../src/observe/peer-counters.js';
import { LAYER_2, samplesOf as samples, makeObserved as setUp } from '../lib/observed.js';

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
    t.match(name, /^(weft|process|nodejs)_[a-z0-9_]+$/);
    t.equal(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`);
    if (name.startsWith('weft_')) t.match(text, new RegExp(`^# HELP ${name} .+\\.$`, 'm'), `${name} has a help text`);
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
  const shown = [...many.keys()].filter((key) => key.startsWith('weft_peer_packets_total'));
  t.equal(shown.length, (MOST_PEERS + 1) * 2, 'of the rest there is a sum');
  t.equal(many.has('weft_peer_packets_total{peer="c",direction="outbound"}'), false, 'who left is not shown');
  t.equal(many.get('weft_peers_not_shown'), 401 - MOST_PEERS);
});

t.test('the rest of the peers: a sum that never goes down, whoever comes and goes', async (t) => {
  const { memory, observed, peers } = setUp(2);
  peers.length = 0;
  const add = (name: string, slot: number, generation = 1): void => {
    peers.push({ name, ref: (generation << 16) | slot });
  };
  /** What all four columns of a slot grow by, on one worker. */
  const carry = (slot: number, times: number, worker = 0): void => {
    const at = (memory.layout.workers[worker].peerCounters >> 3) + slot * PEER_COUNTERS;
    for (let column = 0; column < PEER_COUNTERS; column++) memory.f64[at + column] += times * (column + 1);
  };
  const metrics = createMetrics(observed);
  const scrape = async () => samples(await metrics.metrics());
  const key = (peer: string, kind = 'packets', direction = 'outbound'): string =>
    `weft_peer_${kind}_total{peer="${peer}",direction="${direction}"}`;
  const rest = async (): Promise<number | undefined> => (await scrape()).get(key('(others)'));

  for (let i = 0; i < MOST_PEERS; i++) add(`m${i + 1000}`, i);
  carry(255, 50);
  t.equal(await rest(), undefined, 'there is no rest yet');
  add('n', 300);
  add('o', 301);
  carry(300, 7);
  carry(301, 3, 1);
  const found = await scrape();
  t.equal(found.get(key('(others)')), 10);
  t.equal(found.get(key('(others)', 'bytes')), 20);
  t.equal(found.get(key('(others)', 'packets', 'inbound')), 30);
  t.equal(found.get(key('(others)', 'bytes', 'inbound')), 40);
  t.equal(found.get('weft_peers_not_shown'), 2);
  t.equal(await rest(), 10, 'a scrape adds nothing');

  add('a', 400); // m1255 is beyond them now, with 50 that were told under its name
  carry(255, 5);
  const moved = await scrape();
  t.equal(moved.get(key('(others)')), 15, 'what it carries from now on');
  t.equal(moved.has(key('m1255')), false);
  peers.splice(
    peers.findIndex(({ name }) => name === 'a'),
    1,
  );
  carry(255, 1);
  const back = await scrape();
  t.equal(back.get(key('m1255')), 56, 'it is back, with all it has carried');
  t.equal(back.get(key('(others)')), 15);

  peers.splice(
    peers.findIndex(({ name }) => name === 'n'),
    1,
  );
  t.equal(await rest(), 15, 'one of the rest has gone');
  for (const { peerCounters } of memory.layout.workers) {
    memory.f64.fill(0, (peerCounters >> 3) + 300 * PEER_COUNTERS, (peerCounters >> 3) + 301 * PEER_COUNTERS);
  }
  add('p', 300, 2);
  carry(300, 2);
  t.equal(await rest(), 17, 'another has its slot');
  peers.length = 10;
  const few = await scrape();
  t.equal(few.get(key('(others)')), 17, 'it stays when nobody is left in it');
  t.equal(few.get('weft_peers_not_shown'), 0);
  add('(others)', 310);
  carry(310, 100);
  const named = await scrape();
  t.equal(named.get(key('(others)')), 117, 'a peer of that name is one of them');
  t.equal(named.get('weft_peers'), 11);
});

t.test('sizes and workers', async (t) => {
  const { memory, observed } = setUp(2, { macs: 64, neighbours: 32, statics: 128 });
  const tables = { ...observed.tables, macCount: 32, neighbourCount: 64 };
  const metrics = createMetrics({ ...observed, tables });
  memory.layout.workers.forEach((worker, i) => {
    for (const size of [1, 3, 32, 200]) {
      countSize(memory.f64, histogramAt(worker, OUT_BATCH), size);
      memory.f64[(worker.counters >> 3) + OUT_IN] += size;
    }
    const times = new WorkerTimes(memory, worker);
    times.look(0, 0, false, false);
    times.look(250_000 << i, 250 << i, true, true);
    times.look((250_000 << i) + 125_000, (250 << i) + 125, true, false);
    memory.f64[macsUsedAt(worker)] = 16 * (i + 1);
    memory.f64[neighboursUsedAt(worker)] = 8 / (i + 1);
  });
  const found = samples(await metrics.metrics());
  const buckets = [...found].filter(([name]) => /^weft_batch_size_bucket.*outbound/.test(name));
  t.same(
    buckets.map(([name, value]) => [/le="([^"]+)"/.exec(name)?.[1], value]),
    [
      ['1', 2],
      ['2', 2],
      ['4', 4],
      ['8', 4],
      ['16', 4],
      ['32', 6],
      ['64', 6],
      ['128', 6],
      ['+Inf', 8],
    ],
  );
  const expected: Record<string, number> = {
    'weft_batch_size_sum{direction="outbound"}': 2 * 236,
    'weft_batch_size_count{direction="outbound"}': 8,
    'weft_batch_size_count{direction="inbound"}': 0,
    'weft_message_datagrams_count{direction="outbound"}': 0,
    'weft_worker_busy_seconds_total{worker="0"}': 0.25,
    'weft_worker_busy_seconds_total{worker="1"}': 0.5,
    'weft_worker_spinning_seconds_total{worker="0"}': 0.125,
    'weft_worker_longest_gap_seconds{worker="1"}': 0.5,
    'weft_table_used_ratio{table="macs"}': 0.5,
    'weft_table_used_ratio{table="neighbours"}': 0.25,
    'weft_table_used_ratio{table="static_macs"}': 0.25,
    'weft_table_used_ratio{table="static_neighbours"}': 0.5,
  };
  for (const [name, value] of Object.entries(expected)) t.equal(found.get(name), value, name);
});

t.test('a device that is not there now is left out', async (t) => {
  const { observed } = setUp(1);
  const text = await createMetrics({ ...observed, deviceDrops: () => deviceDrops(['no-such-device']) }).metrics();
  t.notMatch(text, /^weft_device_dropped_total\{/m);
  t.match(text, /^# TYPE weft_device_dropped_total counter$/m);
  t.match([...deviceDrops(['lo'])], [['lo', { outbound: Number, inbound: Number }]]);
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
    weft_capture_running: 1,
    weft_worker_restarts_total: 2,
    weft_registry_up: 1,
    weft_registry_updates_total: 4,
    weft_registry_applied_total: 3,
    weft_registry_failures_total: 1,
    weft_registry_last_applied_timestamp_seconds: 1_700_000_000.5,
    weft_registry_last_event_timestamp_seconds: 1_700_000_001.25,
    'weft_reconcile_actions_total{action="add_peer"}': 6,
    'weft_reconcile_actions_total{action="set_route"}': 0,
    'weft_device_dropped_total{device="flannel0",direction="outbound"}': 21,
    'weft_device_dropped_total{device="flannel0",direction="inbound"}': 22,
    'weft_table_used_ratio{table="peers"}': 0.25,
    'weft_table_used_ratio{table="route_nodes"}': 0.25,
    [`weft_build_info{version="1.2.3",node_version="${process.version}"}`]: 1,
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
    ...LAYER_2,
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
