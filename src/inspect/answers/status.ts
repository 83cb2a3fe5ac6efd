/** /v1/status: what this daemon is, and whether all is well with it. It answers from the first moment on. */
import type { LoopState } from '../../control/loop.js';
import { conservation, IN_IN, IN_IN_BYTES, OUT_SENT, OUT_SENT_BYTES, readCounter } from '../../dataplane/counters.js';
import { readGauges } from '../../dataplane/gauges.js';
import { kernelForwards } from '../../host/kernel-counters.js';
import { type LinkState as Link, linkStates } from '../../host/link-state.js';
import { offloadNames } from '../../io/offloads.js';
import type { Inspected, Running } from '../inspected.js';
import { textsOf } from '../inspected.js';
import type {
  DaemonState,
  DeviceStatus,
  LinkState,
  RegistryStatus,
  StatusAnswer,
  UnderlayStatus,
} from '../protocol.js';
import { kernelEntries } from './drops.js';
import { ownLease } from './leases.js';

type Links = ReadonlyMap<string, Link>;

export async function statusAnswer(inspected: Inspected): Promise<StatusAnswer> {
  const { running, started, options } = inspected;
  const { version, networkNamespace, log } = options;
  const loop = running?.loop.state;
  const links = linkStates([
    ...(running?.devices ?? []),
    ...(inspected.underlay ? [inspected.underlay.interface] : []),
  ]);
  const bridges = await inspected.bridges();
  const [state, text] = stateOf(inspected, loop);
  const underlay = underlayOf(inspected, links);
  const devices = running ? devicesOf(running, links, bridges) : [];
  const forwarding = { ipv4: kernelForwards(4) ?? null, ipv6: kernelForwards(6) ?? null };
  const troubles =
    state === 'forwarding' && running ? troublesOf(running, { underlay, devices, forwarding, bridges }) : [];
  return {
    pid: process.pid,
    version,
    node: process.version,
    networkNamespace,
    started: started.toISOString(),
    uptimeSeconds: (Date.now() - started.getTime()) / 1000,
    state,
    text: state === 'forwarding' && loop?.problem === undefined ? (troubles[0] ?? text) : text,
    troubles,
    waitingFor: inspected.waitingFor ?? null,
    problem: loop?.problem ?? null,
    staleSince: loop && loop.staleSince > 0 ? new Date(loop.staleSince).toISOString() : null,
    mode: running?.overlay.mode ?? null,
    backend: running?.backend ?? null,
    registry: registryOf(inspected, loop),
    underlay,
    devices,
    networks: running ? textsOf(running.member.networks) : [],
    subnets: running ? textsOf(running.member.subnets) : [],
    lease: running ? ownLease(running) : null,
    ...sizesOf(running),
    workers: workersOf(running),
    traffic: trafficOf(running),
    offloads: offloadNames(running && running.overlay.workers > 0 ? running.dataplane.offloads : 0),
    capture: captureOf(inspected),
    logLevel: log.level,
    residentBytes: process.memoryUsage.rss(),
    metrics: running?.metrics ?? null,
    forwarding,
  };
}

/** And the same for people. */
function stateOf(inspected: Inspected, loop: LoopState | undefined): [DaemonState, string] {
  const { running, waitingFor, ready, stopping } = inspected;
  if (stopping) return ['stopping', 'stopping'];
  if (waitingFor !== undefined) return ['waiting', `waiting for ${waitingFor}`];
  if (!running || !ready) return ['starting', 'being set up'];
  if (!running.member.forwards()) return ['shut', 'nothing is forwarded: our lease has ended'];
  const { workers } = running.overlay;
  const idle = workers - running.dataplane.running;
  if (idle > 0) return ['shut', `${idle} of ${workers} workers do not run: see the log`];
  const { problem } = loop ?? {};
  return ['forwarding', problem === undefined ? 'all is well' : `what was applied last is in force: ${problem}`];
}

function registryOf({ options, running }: Inspected, loop: LoopState | undefined): RegistryStatus {
  const { updates = 0, failures = 0, lastEvent = 0 } = loop ?? {};
  return {
    kind: options.registry,
    name: running?.member.registry.name ?? null,
    lastEvent: lastEvent > 0 ? new Date(lastEvent).toISOString() : null,
    updates,
    failures,
  };
}

function underlayOf({ underlay, running }: Inspected, links: Links): UnderlayStatus | null {
  if (!underlay) return null;
  const { interface: name, mtu, addresses, publicAddresses } = underlay;
  const port = running && running.overlay.workers > 0 ? running.member.port : null;
  return {
    interface: name,
    mtu,
    link: linkOf(links, name),
    addresses: textsOf(addresses),
    publicAddresses: textsOf(publicAddresses),
    port,
  };
}

type Bridges = readonly (string | undefined)[];

const devicesOf = ({ devices, mtus, addresses, overlay }: Running, links: Links, bridges: Bridges): DeviceStatus[] =>
  devices.map((name, network) => {
    const { vni = null, bridge = null } = overlay.segments[network] ?? {};
    const link = linkOf(links, name, bridges[network]);
    return { name, vni, bridge, mtu: mtus[network], addresses: addresses[network], link };
  });

function linkOf(links: Links, name: string, bridge: string | null = null): LinkState | null {
  const found = links.get(name);
  return found ? { ...found, bridge } : null;
}

interface Seen extends Pick<StatusAnswer, 'underlay' | 'devices' | 'forwarding'> {
  readonly bridges: Bridges;
}

/** What explains silence, worst first. */
function troublesOf({ overlay, member }: Running, { underlay, devices, forwarding, bridges }: Seen): string[] {
  const found: string[] = [];
  if (underlay) found.push(...linkTroubles(`underlay ${underlay.interface}`, underlay.mtu, underlay.link));
  for (const { name, mtu, link, bridge } of devices) {
    found.push(...linkTroubles(`device ${name}`, mtu, link));
    if (bridge === null || link === null || bridges.length === 0 || link.bridge === bridge) continue;
    found.push(
      `device ${name} is in ${link.bridge === null ? 'no bridge' : `bridge ${link.bridge}`}, not in ${bridge}`,
    );
  }
  if (overlay.mode === 'l2' && !overlay.routing) return found; // bridges need no routing host
  const families = new Set(member.networks.map(({ family }) => family));
  if (families.has(4) && forwarding.ipv4 === false) found.push('the host does not forward IPv4 (net.ipv4.ip_forward)');
  if (families.has(6) && forwarding.ipv6 === false)
    found.push('the host does not forward IPv6 (net.ipv6.conf.all.forwarding)');
  return found;
}

function linkTroubles(what: string, mtu: number, link: LinkState | null): string[] {
  if (link === null) return [`${what} is gone`];
  const down = link.up ? [] : [`${what} is down`];
  return link.mtu === mtu ? down : [...down, `${what} has an MTU of ${link.mtu}, not ${mtu}`];
}

type Sizes = Pick<StatusAnswer, 'peers' | 'routes' | 'macs' | 'neighbours'>;

function sizesOf(running: Running | undefined): Sizes {
  if (!running) return { peers: 0, routes: 0, macs: 0, neighbours: 0 };
  const { dataplane, applier, overlay } = running;
  const { memory, tables } = dataplane;
  const { peers, routes, hostRoutes } = applier.have;
  // Each worker has its own; the fullest knows what the others do, or will soon.
  const gauges = memory.layout.workers.map((_, worker) => readGauges(memory, worker));
  const most = (values: readonly number[]): number => Math.max(0, ...values);
  return {
    peers: new Set(Array.from(peers.values(), ({ name }) => name)).size,
    routes: (overlay.routing ? hostRoutes : routes).size,
    macs: tables.macCount + most(gauges.map(({ macs }) => macs)),
    neighbours: tables.neighbourCount + most(gauges.map(({ neighbours }) => neighbours)),
  };
}

function workersOf(running: Running | undefined): StatusAnswer['workers'] {
  if (!running) return { wanted: 0, running: 0, restarts: 0, longestGapSeconds: 0 };
  const { overlay, dataplane } = running;
  const gaps = dataplane.memory.layout.workers.map((_, worker) => readGauges(dataplane.memory, worker).longestGap);
  return {
    wanted: overlay.workers,
    running: dataplane.running,
    restarts: dataplane.restarts,
    longestGapSeconds: Math.max(0, ...gaps),
  };
}

/** Over the underlay. */
function trafficOf(running: Running | undefined): StatusAnswer['traffic'] {
  if (!running) return { packetsOut: 0, bytesOut: 0, packetsIn: 0, bytesIn: 0, drops: 0, kernelDrops: 0 };
  const { memory } = running.dataplane;
  return {
    packetsOut: readCounter(memory, OUT_SENT),
    bytesOut: readCounter(memory, OUT_SENT_BYTES),
    packetsIn: readCounter(memory, IN_IN),
    bytesIn: readCounter(memory, IN_IN_BYTES),
    drops: conservation(memory).dropped,
    kernelDrops: kernelEntries(running).reduce((sum, { packets }) => sum + packets, 0),
  };
}

function captureOf({ captures }: Inspected): StatusAnswer['capture'] {
  const run = captures?.running;
  return run ? { since: new Date(run.since).toISOString(), captured: run.captured, lost: run.lost } : null;
}
