/** What the daemon tells of itself over HTTP: health to whoever probes it, all to who may look. */
import type { Config } from './config.js';
import type { Applier } from './control/apply.js';
import type { Dataplane } from './control/dataplane.js';
import type { EventLog } from './control/event-log.js';
import type { HostForwarding } from './control/host-forwarding.js';
import type { ControlLoop, LoopState } from './control/loop.js';
import type { Membership } from './control/membership.js';
import type { PathMtu } from './control/path-mtu.js';
import { deviceDrops } from './host/device-drops.js';
import type { Inspected } from './inspect/inspected.js';
import { SetupError } from './io/setup-error.js';
import { type HttpEndpoint, NOT_READY, READY, type Readiness, serveHttp } from './observe/http.js';
import { createMetrics, type Metrics } from './observe/metrics.js';
import { sparing } from './observe/sparing.js';
import { ForwardingTables, type PeerInForce } from './observe/tables.js';
import { deviceNames, type Overlay } from './overlay.js';

export const STARTING: Readiness = { ready: false, text: NOT_READY };

export function readinessOf(running: boolean, forwards: boolean, { problem, staleSince }: LoopState): Readiness {
  if (!running) return STARTING;
  const stale = problem === undefined ? '' : `, stale since ${new Date(staleSince).toISOString()}: ${problem}`;
  return forwards
    ? { ready: true, text: `${READY}${stale}` }
    : { ready: false, text: `weftd forwards nothing: its lease has ended${stale}` };
}

export interface ObservedParts {
  readonly overlay: Overlay;
  readonly member: Membership;
  /** By network, in bytes. */
  readonly mtus: readonly [number, ...number[]];
  readonly dataplane: Dataplane;
  readonly applier: Applier;
  readonly host: HostForwarding;
  readonly loop: ControlLoop;
  readonly pathMtu: PathMtu;
  /** Whoever captures packets now. */
  readonly captures: Pick<Inspected, 'captures'>;
}

/** Whoever scrapes without end gets a fifth of control's time; what they read is 50 ms old at most. */
const SCRAPE_SPARED = { times: 4, most: 50 };

/**
 * /metrics and all else. Resolves to nothing where that is not wanted, or where nobody said it and the default address cannot be
 * had. Rejects with a SetupError.
 */
export async function serveAll(
  { metricsAddress, metricsSaid }: Pick<Config, 'metricsAddress' | 'metricsSaid'>,
  version: string,
  ready: () => Readiness,
  parts: ObservedParts,
  log: EventLog,
): Promise<HttpEndpoint | undefined> {
  if (metricsAddress === undefined) return undefined;
  const { tables, metrics } = observe(version, parts);
  const { contentType } = metrics;
  const text = sparing(() => metrics.metrics(), SCRAPE_SPARED.times, SCRAPE_SPARED.most);
  try {
    return await serveHttp({ ...metricsAddress, metrics: { contentType, metrics: text }, tables, ready });
  } catch (error) {
    if (metricsSaid || !(error instanceof SetupError)) throw error;
    log.warn('metrics_off', { reason: error.message });
    return undefined;
  }
}

function observe(
  version: string,
  { overlay, member, mtus, dataplane, applier, host, loop, pathMtu, captures }: ObservedParts,
): { readonly tables: ForwardingTables; readonly metrics: Metrics } {
  const { memory, tables } = dataplane;
  const { segments, macAge } = overlay;
  const peers = (): Iterable<PeerInForce> => peersInForce(applier);
  const devices = deviceNames(overlay);
  const vnis = segments.map(({ vni }) => vni);
  const forwarding = new ForwardingTables({ memory, vnis, peers, age: macAge * 1000 });
  const metrics = createMetrics({
    version,
    memory,
    mtu: mtus[0],
    segments: segments.map(({ vni, device }, network) => ({ vni, device, mtu: mtus[network] })),
    deviceDrops: () => deviceDrops(devices),
    forwarding,
    tables,
    host,
    requests: member.requests,
    peers,
    workers: dataplane,
    loop,
    applier,
    lease: member,
    pathMtu,
    capturing: () => captures.captures?.running !== undefined,
  });
  return { tables: forwarding, metrics };
}

/** In layer 2 one of several of our networks comes several times. */
function* peersInForce(applier: Applier): Generator<PeerInForce> {
  for (const { key, name } of applier.have.peers.values()) {
    const ref = applier.ref(key);
    if (ref !== undefined) yield { name, ref };
  }
}
