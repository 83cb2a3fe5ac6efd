/** What the daemon tells of itself over HTTP: health to whoever probes it, all to who may look. */
import type { Config } from './config.js';
import type { Applier } from './control/apply.js';
import type { Dataplane } from './control/dataplane.js';
import type { HostForwarding } from './control/host-forwarding.js';
import type { ControlLoop, LoopState } from './control/loop.js';
import type { Membership } from './control/membership.js';
import type { PathMtu } from './control/path-mtu.js';
import { type HttpEndpoint, NOT_READY, READY, type Readiness, serveHttp } from './observe/http.js';
import { createMetrics } from './observe/metrics.js';
import { ForwardingTables, type PeerInForce } from './observe/tables.js';
import type { Overlay } from './overlay.js';

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
}

/** /metrics and all else. Rejects with a SetupError. */
export function serveAll(
  address: NonNullable<Config['metricsAddress']>,
  version: string,
  ready: () => Readiness,
  { overlay, member, mtus, dataplane, applier, host, loop, pathMtu }: ObservedParts,
): Promise<HttpEndpoint> {
  const { memory, tables } = dataplane;
  const { segments, macAge } = overlay;
  const peers = (): Iterable<PeerInForce> => peersInForce(applier);
  const vnis = segments.map(({ vni }) => vni);
  const forwarding = new ForwardingTables({ memory, vnis, peers, age: macAge * 1000 });
  const metrics = createMetrics({
    version,
    memory,
    mtu: mtus[0],
    segments: segments.map(({ vni, device }, network) => ({ vni, device, mtu: mtus[network] })),
    forwarding,
    tables,
    host,
    requests: member.requests,
    peers,
    workers: dataplane,
    loop,
    lease: member,
    pathMtu,
  });
  return serveHttp({ ...address, metrics, tables: forwarding, ready });
}

/** In layer 2 one of several of our networks comes several times. */
function* peersInForce(applier: Applier): Generator<PeerInForce> {
  for (const { key, name } of applier.have.peers.values()) {
    const ref = applier.ref(key);
    if (ref !== undefined) yield { name, ref };
  }
}
