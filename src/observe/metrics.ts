/**
 * Prometheus metrics. Nothing is counted here: at each scrape the counters in the shared memory and control's state are read
 * (design.md, "one writer per datum"). Names follow Prometheus' conventions: base units, `_total` for what only grows.
 *
 * `weft_packets_total` and `weft_drops_total` together show the conservation of packets, by `role`:
 * in + made = sent + consumed + dropped.
 */
import { Counter, Gauge, Registry } from 'prom-client';
import type { LoopState } from '../control/loop.js';
import { COUNTER_INFOS, type CounterRole, readCounter } from '../dataplane/counters.js';
import { slotOf } from '../dataplane/peers.js';
import { type EngineMemory, PEER_COUNTERS } from '../io/memory.js';
import { OFFLOAD_NAMES, OFFLOADS } from '../io/offloads.js';
import type { PeerInForce, TablesSummary } from './tables.js';

/** Series per peer cost a scrape and a database; a large mesh shows its first peers by name, and how many it left out. */
export const MOST_PEERS = 256;

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
  /** What is known in each. */
  readonly forwarding: { summary(): Promise<TablesSummary> };
  readonly tables: { readonly routeCount: number };
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
  /** Seconds are undefined where there are no leases. */
  readonly lease: { secondsLeft(): number | undefined; forwards(): boolean };
  readonly pathMtu: { readonly lowered: number };
}

type Labels = Record<string, string>;
type Sample = readonly [labels: Labels, value: number];

/** A registry of its own, whose `metrics()` is the text of /metrics. */
export function createMetrics(observed: Observed): Registry {
  const registry = new Registry();
  const registers = [registry];
  const counter = (name: string, help: string, labelNames: string[], samples: () => Iterable<Sample>): void => {
    new Counter({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        for (const [labels, value] of samples()) this.inc(labels, value);
      },
    });
  };
  const gauge: DefineGauge = (name, help, labelNames, samples): void => {
    new Gauge({
      name,
      help,
      labelNames,
      registers,
      async collect() {
        const found = await samples();
        this.reset();
        for (const [labels, value] of found) this.set(labels, value);
      },
    });
  };

  walkCounters(observed.memory, counter);
  peerCounters(observed, counter, gauge);
  if (observed.segments.length > 0) forwardingGauges(observed, gauge);

  gauge('weft_peers', 'Peers in force.', [], () => [[{}, peersByName(observed).size]]);
  gauge('weft_routes', 'Prefixes in force.', [], () => [[{}, observed.tables.routeCount]]);
  gauge('weft_kernel_routes', "Peers' subnets that the kernel has routes to (vxlan and host-gw backends).", [], () => [
    [{}, observed.host.routes],
  ]);
  gauge('weft_kernel_routes_refused', 'Routes and neighbours that the kernel does not take.', [], () => [
    [{}, observed.host.refused],
  ]);
  gauge('weft_peers_path_mtu_lowered', 'Peers whose path carries less than was planned.', [], () => [
    [{}, observed.pathMtu.lowered],
  ]);
  gauge('weft_device_mtu_bytes', "The device's MTU; in layer 2 each device's.", ['device', 'vni'], () =>
    observed.segments.length > 0
      ? observed.segments.map(({ vni, device, mtu }) => [{ device, vni: String(vni) }, mtu])
      : [[{}, observed.mtu]],
  );
  gauge('weft_offload_in_use', '1 while an offload is in use.', ['offload'], () =>
    OFFLOAD_NAMES.map((name) => [{ offload: name }, observed.workers.offloads & OFFLOADS[name] ? 1 : 0]),
  );
  counter(
    'weft_socket_overflow_total',
    "Messages that the kernel dropped because a socket's buffer was full (with UDP_GRO one may hold many datagrams).",
    [],
    () => [[{}, observed.workers.socketDrops]],
  );
  gauge('weft_workers_running', 'Dataplane threads that run.', [], () => [[{}, observed.workers.running]]);
  counter('weft_worker_restarts_total', 'Times a dataplane thread was started again.', [], () => [
    [{}, observed.workers.restarts],
  ]);

  const state = (): LoopState => observed.loop.state;
  gauge('weft_registry_up', '1 while what the registry says now is in force, 0 while an older state is.', [], () => [
    [{}, state().synced && state().problem === undefined ? 1 : 0],
  ]);
  counter('weft_registry_updates_total', 'Updates from the registry.', [], () => [[{}, state().updates]]);
  counter('weft_registry_applied_total', 'Times a state of the registry was put in force.', [], () => [
    [{}, state().applied],
  ]);
  const { requests } = observed;
  if (requests) counter('weft_registry_requests_total', 'Requests sent to the registry.', [], () => [[{}, requests()]]);
  counter(
    'weft_registry_failures_total',
    'Times a state of the registry was refused or could not be applied.',
    [],
    () => [[{}, state().failures]],
  );
  gauge('weft_registry_last_applied_timestamp_seconds', 'When a state was last put in force.', [], () => [
    [{}, state().lastApplied / 1000],
  ]);

  gauge(
    'weft_registry_stale_since_timestamp_seconds',
    'When what is in force was last known to be right, 0 while it is.',
    [],
    () => [[{}, state().staleSince / 1000]],
  );
  gauge('weft_forwarding', '1 while packets are forwarded, 0 while our lease has ended.', [], () => [
    [{}, observed.lease.forwards() ? 1 : 0],
  ]);
  gauge('weft_lease_seconds_left', 'Until our lease ends unless it is renewed; negative after that.', [], () => {
    const left = observed.lease.secondsLeft();
    return left === undefined ? [] : [[{}, left]];
  });

  gauge('weft_build_info', 'Always 1; the version is a label.', ['version'], () => [
    [{ version: observed.version }, 1],
  ]);
  counter('process_cpu_seconds_total', 'CPU time of all threads.', [], () => {
    const { user, system } = process.cpuUsage();
    return [[{}, (user + system) / 1e6]];
  });
  gauge('process_resident_memory_bytes', 'Resident memory.', [], () => [[{}, process.memoryUsage.rss()]]);
  const started = Date.now() / 1000 - process.uptime();
  gauge('process_start_time_seconds', 'When the process started.', [], () => [[{}, started]]);
  return registry;
}

type Define = (name: string, help: string, labelNames: string[], samples: () => Iterable<Sample>) => void;

/** The counters of both walks, under the names of dataplane/counters.ts. */
function walkCounters(memory: EngineMemory, counter: Define): void {
  const samples = (roles: readonly CounterRole[], label: string, withRole = false) =>
    function* (): Generator<Sample> {
      for (const [id, { name, direction, role }] of COUNTER_INFOS.entries()) {
        if (!roles.includes(role)) continue;
        yield [{ direction, [label]: name, ...(withRole ? { role } : {}) }, readCounter(memory, id)];
      }
    };
  counter(
    'weft_packets_total',
    'Packets that came in, were made, sent, or consumed, by stage of the walk (docs/walk.md).',
    ['direction', 'stage', 'role'],
    samples(['in', 'made', 'sent', 'consumed'], 'stage', true),
  );
  counter(
    'weft_drops_total',
    'Packets dropped, by reason (docs/walk.md).',
    ['direction', 'reason'],
    samples(['dropped'], 'reason'),
  );
  counter(
    'weft_bytes_total',
    'Bytes in and out of the device and the sockets, outer headers not counted.',
    ['direction', 'stage'],
    samples(['bytes'], 'stage'),
  );
  counter(
    'weft_notes_total',
    'What else happened on the walk; no packet ends here (docs/walk.md).',
    ['direction', 'note'],
    samples(['note'], 'note'),
  );
}

/** By name: references, one for each network that the peer is in. */
function peersByName({ peers }: Observed): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const { name, ref } of peers()) {
    const refs = found.get(name);
    if (refs) refs.push(ref);
    else found.set(name, [ref]);
  }
  return found;
}

/** A peer's series are the sums over all networks that it is in. */
function peerCounters(observed: Observed, counter: Define, gauge: Define): void {
  const { memory } = observed;
  const shown = (): [string, number[]][] =>
    [...peersByName(observed)].sort(([a], [b]) => (a < b ? -1 : 1)).slice(0, MOST_PEERS);
  /** `column` 0: packets, 1: bytes; out first, then in (io/memory.ts). */
  const samples = (column: number) =>
    function* (): Generator<Sample> {
      for (const [name, refs] of shown()) {
        for (const [i, direction] of (['outbound', 'inbound'] as const).entries()) {
          let sum = 0;
          for (const { peerCounters: at } of memory.layout.workers) {
            for (const ref of refs) sum += memory.f64[(at >> 3) + slotOf(ref) * PEER_COUNTERS + i * 2 + column];
          }
          yield [{ peer: name, direction }, sum];
        }
      }
    };
  const labels = ['peer', 'direction'];
  counter('weft_peer_packets_total', 'Packets to and from a peer.', labels, samples(0));
  counter('weft_peer_bytes_total', 'Bytes to and from a peer, outer headers not counted.', labels, samples(1));
  gauge('weft_peers_not_shown', `Peers beyond the ${MOST_PEERS} that have series of their own.`, [], () => [
    [{}, Math.max(0, peersByName(observed).size - MOST_PEERS)],
  ]);
}

type DefineGauge = (
  name: string,
  help: string,
  labelNames: string[],
  samples: () => Iterable<Sample> | Promise<Iterable<Sample>>,
) => void;

function forwardingGauges({ segments, forwarding }: Observed, gauge: DefineGauge): void {
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
  gauge(
    'weft_macs',
    "MACs that are known, by origin: behind our own device, behind peers, or the registry's.",
    ['vni', 'device', 'origin'],
    byNetwork((network, { macs }) => macs[network], 'origin'),
  );
  gauge(
    'weft_neighbours',
    "IP addresses whose MAC is known, by origin: learned, or the registry's.",
    ['vni', 'device', 'origin'],
    byNetwork((network, { neighbours }) => neighbours[network], 'origin'),
  );
  gauge(
    'weft_mac_oldest_age_seconds',
    'Age of the learned MAC that was quiet for longest.',
    ['vni', 'device'],
    async () => {
      const { oldest } = await forwarding.summary();
      return segments.map(({ vni, device }, network): Sample => [{ vni: String(vni), device }, oldest[network]]);
    },
  );
}
