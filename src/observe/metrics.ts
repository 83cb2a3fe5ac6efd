/**
 * Prometheus metrics. Nothing is counted here: at each scrape the counters in the shared memory and control's state are read
 * (design.md, "one writer per datum"). Names follow Prometheus' conventions: base units, `_total` for what only grows;
 * `promtool check metrics` has nothing to say about them.
 *
 * `weft_packets_total` and `weft_drops_total` together show the conservation of packets, by `role`:
 * in + made = sent + consumed + dropped.
 */
import { Registry } from 'prom-client';
import type { LoopState } from '../control/loop.js';
import { COUNTER_INFOS, type CounterRole, readCounter } from '../dataplane/counters.js';
import { readGauges, type WorkerGauges } from '../dataplane/gauges.js';
import { BOUNDS, HISTOGRAM_INFOS, type HistogramInfo, readHistogram } from '../dataplane/histograms.js';
import { type EngineMemory, MAX_PEERS } from '../io/memory.js';
import { OFFLOAD_NAMES, OFFLOADS } from '../io/offloads.js';
import { addNodeMetrics } from './node-metrics.js';
import { MOST_PEERS, OTHERS, PeerCounters, type PeersSeen } from './peer-counters.js';
import { Definitions, type Distribution, one, type Sample } from './sampled.js';
import type { PeerInForce, TablesSummary } from './tables.js';

/** A network of layer 2. */
export interface Segment {
  readonly vni: number;
  readonly device: string;
  /** The device's, in bytes. */
  readonly mtu: number;
}

/** What metrics read; each is asked at scrape. */
export interface Observed {
  readonly version: string;
  readonly memory: EngineMemory;
  /** The device's, of layer 3. */
  readonly mtu: number;
  /** By network; empty in layer 3. */
  readonly segments: readonly Segment[];
  /** What the kernel dropped at our devices, by their names. */
  readonly deviceDrops: () => ReadonlyMap<string, { readonly outbound: number; readonly inbound: number }>;
  /** What is known in each. */
  readonly forwarding: { summary(): Promise<TablesSummary> };
  readonly tables: {
    readonly routeCount: number;
    /** 0 to 1. */
    readonly routeFill: number;
    readonly peerCount: number;
    readonly macCount: number;
    readonly neighbourCount: number;
  };
  /** What the kernel routes by itself. */
  readonly host: { readonly routes: number; readonly refused: number };
  /** Requests sent to the registry; undefined where that means nothing. */
  readonly requests?: (() => number) | undefined;
  /** Peers in force; one of several of our networks comes once for each. */
  readonly peers: () => Iterable<PeerInForce>;
  readonly workers: {
    readonly running: number;
    readonly restarts: number;
    readonly offloads: number;
    /** Messages that the kernel dropped because a socket's buffer was full. */
    readonly socketDrops: number;
  };
  readonly loop: { readonly state: LoopState };
  /** How often each kind of action was carried out. */
  readonly applier: { readonly carriedOut: Readonly<Record<string, number>> };
  /** Seconds are undefined where there are no leases. */
  readonly lease: { secondsLeft(): number | undefined; forwards(): boolean };
  readonly pathMtu: { readonly lowered: number };
  /** Somebody captures packets. */
  readonly capturing: () => boolean;
}

/** The text of /metrics, made anew by each call, and its content type. */
export interface Metrics {
  readonly contentType: string;
  metrics(): Promise<string>;
}

export function createMetrics(observed: Observed): Metrics {
  const registry = new Registry();
  const define = new Definitions(registry);
  const peerCounters = new PeerCounters(observed.memory);
  // All that is told of peers in one scrape is from one look at them.
  let peers = peerCounters.see([]);
  defineWalks(observed.memory, define);
  definePeers(define, () => peers);
  defineTables(observed, define);
  if (observed.segments.length > 0) defineForwarding(observed, define);
  defineDevices(observed, define);
  defineWorkers(observed, define);
  defineRegistry(observed, define);
  define.gauge('weft_build_info', 'Always 1; the versions of weftd and of Node are labels.', () => [
    [{ version: observed.version, node_version: process.version }, 1],
  ]);
  addNodeMetrics(registry);
  return {
    contentType: registry.contentType,
    metrics: async () => {
      peers = peerCounters.see(observed.peers());
      return registry.metrics();
    },
  };
}

/** The counters of both walks, under the names of dataplane/counters.ts; and the sizes of what goes through them at once. */
function defineWalks(memory: EngineMemory, define: Definitions): void {
  const samples = (roles: readonly CounterRole[], label: string, withRole = false) =>
    function* (): Generator<Sample> {
      for (const [id, { name, direction, role }] of COUNTER_INFOS.entries()) {
        if (!roles.includes(role)) continue;
        yield [{ direction, [label]: name, ...(withRole ? { role } : {}) }, readCounter(memory, id)];
      }
    };
  const sizes = (wanted: HistogramInfo['name']) =>
    function* (): Generator<Distribution> {
      for (const [id, { name, direction }] of HISTOGRAM_INFOS.entries()) {
        if (name === wanted) yield { labels: { direction }, ...readHistogram(memory, id) };
      }
    };
  define.counter(
    'weft_packets_total',
    'Packets that came in, were made, sent, or consumed, by stage of the walk (docs/walk.md).',
    samples(['in', 'made', 'sent', 'consumed'], 'stage', true),
  );
  define.counter('weft_drops_total', 'Packets dropped, by reason (docs/walk.md).', samples(['dropped'], 'reason'));
  define.counter(
    'weft_bytes_total',
    'Bytes in and out of the device and the sockets, outer headers not counted.',
    samples(['bytes'], 'stage'),
  );
  define.counter(
    'weft_notes_total',
    'What else happened on the walk; no packet ends here (docs/walk.md).',
    samples(['note'], 'note'),
  );
  define.histogram(
    'weft_batch_size',
    'What was read at once: packets from the device (outbound), messages from a socket (inbound).',
    BOUNDS,
    sizes('batch_size'),
  );
  define.histogram(
    'weft_message_datagrams',
    'Datagrams of one message to or from a socket: segments of UDP_SEGMENT (outbound) or UDP_GRO (inbound).',
    BOUNDS,
    sizes('message_datagrams'),
  );
}

/** A peer's series are the sums over all networks that it is in. */
function definePeers(define: Definitions, seen: () => PeersSeen): void {
  /** `column` 0: packets, 1: bytes; out first, then in (io/memory.ts). */
  const samples = (column: number) =>
    function* (): Generator<Sample> {
      for (const [peer, sums] of seen().shown) {
        yield [{ peer, direction: 'outbound' }, sums[column]];
        yield [{ peer, direction: 'inbound' }, sums[2 + column]];
      }
    };
  const rest = `those beyond the first ${MOST_PEERS} are ${OTHERS}`;
  define.counter('weft_peer_packets_total', `Packets to and from a peer; ${rest}.`, samples(0));
  define.counter('weft_peer_bytes_total', `Bytes to and from a peer, outer headers not counted; ${rest}.`, samples(1));
  define.gauge('weft_peers', 'Peers in force.', () => one(seen().names));
  define.gauge('weft_peers_not_shown', `Peers that have no series of their own, but are in ${OTHERS}.`, () =>
    one(seen().notShown),
  );
}

function defineTables({ memory, tables, host, pathMtu }: Observed, define: Definitions): void {
  define.gauge('weft_routes', 'Prefixes in force.', () => one(tables.routeCount));
  define.gauge('weft_kernel_routes', "Peers' subnets that the kernel has routes to (vxlan and host-gw backends).", () =>
    one(host.routes),
  );
  define.gauge('weft_kernel_routes_refused', 'Routes and neighbours that the kernel does not take.', () =>
    one(host.refused),
  );
  define.gauge('weft_peers_path_mtu_lowered', 'Peers whose path carries less than was planned.', () =>
    one(pathMtu.lowered),
  );
  const { peers, macs = 0, neighbours = 0, statics = 0 } = memory.options;
  const fullest = (of: (gauges: WorkerGauges) => number): number =>
    memory.layout.workers.reduce((most, _, worker) => Math.max(most, of(readGauges(memory, worker))), 0);
  const ratio = (table: string, used: number, room: number): Sample => [{ table }, room === 0 ? 0 : used / room];
  define.gauge(
    'weft_table_used_ratio',
    'How full each table is, 0 to 1; of those that each worker has, the fullest.',
    function* () {
      yield ratio('peers', tables.peerCount, Math.min(peers, MAX_PEERS));
      yield [{ table: 'route_nodes' }, tables.routeFill];
      if (macs === 0) return;
      yield ratio(
        'macs',
        fullest((gauges) => gauges.macs),
        macs,
      );
      yield ratio(
        'neighbours',
        fullest((gauges) => gauges.neighbours),
        neighbours,
      );
      yield ratio('static_macs', tables.macCount, statics);
      yield ratio('static_neighbours', tables.neighbourCount, statics);
    },
  );
}

/** What layer 2 has learned, and was told. */
function defineForwarding({ segments, forwarding }: Observed, define: Definitions): void {
  const byNetwork =
    (values: (network: number, summary: TablesSummary) => Record<string, number>, label: string) =>
    async (): Promise<Sample[]> => {
      const summary = await forwarding.summary();
      return segments.flatMap(({ vni, device }, network) =>
        Object.entries(values(network, summary)).map(
          ([name, value]): Sample => [{ vni: String(vni), device, [label]: name }, value],
        ),
      );
    };
  define.gauge(
    'weft_macs',
    "MACs that are known, by origin: behind our own device, behind peers, or the registry's.",
    byNetwork((network, { macs }) => macs[network], 'origin'),
  );
  define.gauge(
    'weft_neighbours',
    "IP addresses whose MAC is known, by origin: learned, or the registry's.",
    byNetwork((network, { neighbours }) => neighbours[network], 'origin'),
  );
  define.gauge('weft_mac_oldest_age_seconds', 'Age of the learned MAC that was quiet for longest.', async () => {
    const { oldest } = await forwarding.summary();
    return segments.map(({ vni, device }, network): Sample => [{ vni: String(vni), device }, oldest[network]]);
  });
}

function defineDevices({ segments, mtu, deviceDrops, workers }: Observed, define: Definitions): void {
  define.gauge('weft_device_mtu_bytes', "The device's MTU; in layer 2 each device's.", () =>
    segments.length > 0
      ? segments.map((segment) => [{ device: segment.device, vni: String(segment.vni) }, segment.mtu])
      : one(mtu),
  );
  define.counter(
    'weft_device_dropped_total',
    "Packets that the kernel dropped at a device: its queue to us was full (outbound), or the host took no more (inbound). From the device's making on.",
    function* () {
      for (const [device, { outbound, inbound }] of deviceDrops()) {
        yield [{ device, direction: 'outbound' }, outbound];
        yield [{ device, direction: 'inbound' }, inbound];
      }
    },
  );
  define.counter(
    'weft_socket_overflow_total',
    "Messages that the kernel dropped because a socket's buffer was full (with UDP_GRO one may hold many datagrams).",
    () => one(workers.socketDrops),
  );
  define.gauge('weft_offload_in_use', '1 while an offload is in use.', () =>
    OFFLOAD_NAMES.map((name) => [{ offload: name }, workers.offloads & OFFLOADS[name] ? 1 : 0]),
  );
}

function defineWorkers({ memory, workers, capturing }: Observed, define: Definitions): void {
  define.gauge('weft_workers_running', 'Dataplane threads that run.', () => one(workers.running));
  define.counter('weft_worker_restarts_total', 'Times a dataplane thread was started again.', () =>
    one(workers.restarts),
  );
  define.gauge('weft_capture_running', '1 while somebody captures packets (weft capture).', () =>
    one(capturing() ? 1 : 0),
  );
  const byWorker = (of: (gauges: WorkerGauges) => number) => (): Sample[] =>
    memory.layout.workers.map((_, worker) => [{ worker: String(worker) }, of(readGauges(memory, worker))]);
  define.counter(
    'weft_worker_busy_seconds_total',
    'Time that a dataplane thread took for turns that moved packets.',
    byWorker(({ busy }) => busy),
  );
  define.counter(
    'weft_worker_spinning_seconds_total',
    'Time that a dataplane thread took to look again, without sleeping, and found nothing.',
    byWorker(({ spinning }) => spinning),
  );
  define.gauge(
    'weft_worker_longest_gap_seconds',
    'Longest time between two looks for packets while awake, of the last 30 to 60 seconds.',
    byWorker(({ longestGap }) => longestGap),
  );
}

function defineRegistry({ loop, applier, requests, lease }: Observed, define: Definitions): void {
  const state = (): LoopState => loop.state;
  define.gauge('weft_registry_up', '1 while what the registry says now is in force, 0 while an older state is.', () =>
    one(state().synced && state().problem === undefined ? 1 : 0),
  );
  define.counter('weft_registry_updates_total', 'Updates from the registry.', () => one(state().updates));
  define.counter('weft_registry_applied_total', 'Times a state of the registry was put in force.', () =>
    one(state().applied),
  );
  if (requests) define.counter('weft_registry_requests_total', 'Requests sent to the registry.', () => one(requests()));
  define.counter(
    'weft_registry_failures_total',
    'Times a state of the registry was refused or could not be applied.',
    () => one(state().failures),
  );
  define.gauge('weft_registry_last_event_timestamp_seconds', 'When the registry last told something, 0 before.', () =>
    one(state().lastEvent / 1000),
  );
  define.gauge('weft_registry_last_applied_timestamp_seconds', 'When a state was last put in force.', () =>
    one(state().lastApplied / 1000),
  );
  define.gauge(
    'weft_registry_stale_since_timestamp_seconds',
    'When what is in force was last known to be right, 0 while it is.',
    () => one(state().staleSince / 1000),
  );
  define.counter(
    'weft_reconcile_actions_total',
    'Actions by which what the registry says was put in force, by kind.',
    () => Object.entries(applier.carriedOut).map(([kind, times]) => [{ action: kind.replaceAll('-', '_') }, times]),
  );
  define.gauge('weft_forwarding', '1 while packets are forwarded, 0 while our lease has ended.', () =>
    one(lease.forwards() ? 1 : 0),
  );
  define.gauge('weft_lease_seconds_left', 'Until our lease ends unless it is renewed; negative after that.', () => {
    const left = lease.secondsLeft();
    return left === undefined ? [] : one(left);
  });
}
