/**
 * weftd, put together. Starting goes from what changes nothing (looking, checking, locking) to what does (device, routes), so
 * that most mistakes leave no trace (a lease that was taken ends by itself); the workers come last, on tables that are filled. Stopping goes the other way.
 */
import { join } from 'node:path';
import { type Config, DIRECTORY, type Segment, wishOf } from './config.js';
import { Applier } from './control/apply.js';
import { type Address, type Cidr, cidrOf, contains, textOf } from './control/cidr.js';
import { Dataplane } from './control/dataplane.js';
import type { EventLog } from './control/event-log.js';
import { ControlLoop, type LoopState } from './control/loop.js';
import { becomeMember } from './control/membership.js';
import { OwnMacsWatch } from './control/own-macs.js';
import { PathMtu } from './control/path-mtu.js';
import { deviceMtuOf, findUnderlay, type Underlay } from './control/underlay.js';
import { Devices } from './devices.js';
import { engineSettingsFor, memoryFor } from './engine-options.js';
import { checkBridge, checkRoutes, rejoinBridge, setUpTap, setUpTun } from './host/device.js';
import { lockDevice } from './host/lock.js';
import { readOwnMacs } from './host/own-macs.js';
import { pathMtus } from './host/path-mtu.js';
import { writeSubnetFile } from './host/subnet-file.js';
import { offloadNames } from './io/offloads.js';
import { type Readiness, serveHttp } from './observe/http.js';
import { createMetrics } from './observe/metrics.js';
import { ForwardingTables, type PeerInForce } from './observe/tables.js';
import { openSockets } from './sockets.js';

export interface Daemon {
  /** Resolves when it has to be stopped and started again, because our subnets are others now; mostly never. */
  readonly moved: Promise<'moved'>;
  /** Ends everything; resolves in less than a second. The device stays if `keepDevice`, or else as the configuration says. */
  stop(keepDevice?: boolean): Promise<void>;
}

/**
 * Starts; resolves once packets flow. Throws a SetupError, or what `signal` aborts with, after undoing what was done; a device
 * that a predecessor left stays then. `again`: this process has just stopped one, whose device is not a predecessor's.
 */
export async function startDaemon(
  config: Config,
  version: string,
  log: EventLog,
  signal: AbortSignal,
  again = false,
): Promise<Daemon> {
  const undo: (() => void | Promise<void>)[] = [];
  const run: Run = { config, version, log, signal, undo, again, keepDevice: config.keepDevice, moved: () => {} };
  const stop = async (keepDevice = config.keepDevice): Promise<void> => {
    run.keepDevice = keepDevice;
    for (let step = undo.pop(); step; step = undo.pop()) await step();
  };
  const moved = new Promise<'moved'>((resolve) => {
    run.moved = () => resolve('moved');
  });
  try {
    await start(run);
    return { stop, moved };
  } catch (error) {
    await stop().catch(() => {}); // why it failed matters more
    throw error;
  }
}

interface Run {
  readonly config: Config;
  readonly version: string;
  readonly log: EventLog;
  readonly signal: AbortSignal;
  readonly undo: (() => void | Promise<void>)[];
  readonly again: boolean;
  moved: () => void;
  keepDevice: boolean;
}

async function start(run: Run): Promise<void> {
  const { config, version, log, signal, undo } = run;
  const { mode, device, workers, segments } = config;
  const names = mode === 'l2' ? segments.map((segment) => segment.device) : [device];
  const underlay = await findUnderlay(config);
  for (const name of names) undo.push(lockDevice(name));
  for (const { bridge } of segments) if (bridge !== undefined) await checkBridge(bridge);
  const dataplane = new Dataplane({ workers, log, memory: memoryFor(config) });
  const ownMacs = new OwnMacsWatch({ memory: dataplane.memory, devices: names, query: readOwnMacs, log });
  const devices = new Devices({
    wishes: names.map((name, network) => ({ name, kind: mode === 'l2' ? 'tap' : 'tun', setUp: () => setUp(network) })),
    workers,
    offloads: config.offloads,
    signal,
  });
  await devices.find(run.again);
  const member = await becomeMember({
    wish: config,
    configWish: wishOf(config),
    stateDir: config.stateDir ?? join(DIRECTORY, underlay.addresses[0].text),
    addresses: underlay.addresses,
    log,
    gate: (until) => dataplane.setGate(until),
    moved: () => run.moved(),
  });
  undo.push(() => member.close());
  const { networks, subnets, port } = member;
  const mtus =
    mode === 'l2'
      ? segments.map(({ mtu }) => deviceMtuOf(underlay, { mode, mtu, networks: [] }))
      : [deviceMtuOf(underlay, { mode, mtu: config.mtu, networks })];
  await checkRoutes(device, networks);
  signal.throwIfAborted();

  const sockets = openSockets(underlay, port, config);
  undo.push(() => sockets.close());

  const applier = new Applier(dataplane.tables);
  const vnis = segments.map(({ vni }) => vni);
  const self = {
    addresses: underlay.addresses,
    networks: mode === 'l2' ? prefixesOf(segments, underlay) : networks,
    subnets,
    underlayMtu: underlay.mtu,
    vnis,
  };
  const loop = new ControlLoop({ registry: member.registry, self, applier, log });
  undo.push(() => loop.stop());
  await Promise.race([loop.start(), aborted(signal)]);
  signal.throwIfAborted();

  const pathMtu = new PathMtu({
    shared: dataplane.shared,
    tables: dataplane.tables,
    applier,
    log,
    query: (addresses) => pathMtus(addresses, (address) => sourceFor(address, underlay.addresses)),
  });
  let ready = false;
  if (config.metricsAddress) {
    const peers = (): Iterable<PeerInForce> => peersInForce(applier);
    const forwarding = new ForwardingTables({ memory: dataplane.memory, vnis, peers, age: config.macAge * 1000 });
    const metrics = createMetrics({
      version,
      memory: dataplane.memory,
      mtu: mtus[0],
      segments: segments.map(({ vni, device: name }, network) => ({ vni, device: name, mtu: mtus[network] })),
      forwarding,
      tables: dataplane.tables,
      peers,
      workers: dataplane,
      loop,
      lease: member,
      pathMtu,
    });
    const endpoint = await serveHttp({
      ...config.metricsAddress,
      metrics,
      tables: forwarding,
      ready: () => readiness(ready && dataplane.running === workers, member.forwards(), loop.state),
    });
    undo.push(() => endpoint.close());
    signal.throwIfAborted();
  }

  const addresses = subnets.map(({ family, bytes }) => ({ family, bytes, text: textOf(bytes) }));
  async function setUp(network: number): Promise<void> {
    const [name, mtu] = [names[network], mtus[network]];
    const warn = (reason: string): void => log.warn('device_setup', { device: name, reason });
    if (mode === 'l3') return setUpTun({ name, mtu, addresses, networks }, warn);
    const { bridge } = segments[network];
    const before = ownMacs.last(network); // if it was lost, what it had then, even if the operator gave it that
    await setUpTap({ name, mtu, bridge, addresses: interfaceTexts(segments[network]), mac: before?.mac });
    if (bridge === undefined && before?.bridge !== undefined) await rejoinBridge(name, before.bridge, warn);
  }
  const openDevices = async (): Promise<readonly (readonly number[])[]> => {
    const fds = await devices.open();
    if (mode === 'l2') await ownMacs.look();
    return fds;
  };
  undo.push(() => devices.close());
  undo.push(() => dataplane.stop());
  // First of all when stopping: it takes no time, and holds even if the rest does not come to an end.
  undo.push(() => devices.persist(run.keepDevice, !ready));
  const deviceFds = await openDevices();
  const offloads = devices.offloads & sockets.offloads;
  await dataplane.start({
    deviceFds,
    socketFds: sockets.receivers,
    senderFds: sockets.senders,
    settings: engineSettingsFor(config, { offloads, maxSegments: sockets.maxSegments, mtus, addresses }),
    reopenDevices: openDevices,
  });
  signal.throwIfAborted();
  pathMtu.start();
  undo.push(() => pathMtu.stop());
  if (mode === 'l2') {
    ownMacs.start();
    undo.push(() => ownMacs.stop());
  }
  if (member.subnetFile !== undefined) {
    await writeSubnetFile(member.subnetFile, { networks, subnets, mtu: mtus[0], ipMasq: false });
  }
  ready = true;
  log.info('ready', {
    version,
    ...(mode === 'l2'
      ? {
          mode,
          devices: segments.map((segment, i) => ({ ...described(segment), mtu: mtus[i], reused: devices.reused[i] })),
        }
      : { device, mtu: mtus[0], addresses: texts(addresses), networks: texts(networks), subnets: texts(subnets) }),
    lease: member.lease,
    underlay: { interface: underlay.interface, mtu: underlay.mtu, addresses: texts(underlay.addresses), port },
    peers: dataplane.tables.peerCount,
    ...(mode === 'l2' ? {} : { routes: dataplane.tables.routeCount }),
    workers,
    offloads: offloadNames(offloads),
    reused: devices.reused.some((reused) => reused),
  });
}

/** Resolves when `signal` aborts. */
const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

const sourceFor = (address: string, own: readonly Address[]): string | undefined =>
  own.find((one) => one.family === (address.includes(':') ? 6 : 4))?.text;

const texts = (items: readonly (Address | Cidr)[]): string[] => items.map((item) => item.text);

const interfaceTexts = ({ addresses }: Segment): string[] => addresses.map(({ text, length }) => `${text}/${length}`);

/** What is reached through the TAPs: no peer's underlay address may lie there, unless the underlay lies in it as well. */
const prefixesOf = (segments: readonly Segment[], underlay: Underlay): Cidr[] =>
  segments
    .flatMap(({ addresses }) => addresses.map(({ bytes, length }) => cidrOf(bytes, length)))
    .filter((prefix) => !underlay.addresses.some(({ bytes }) => contains(prefix, { bytes, length: bytes.length * 8 })));

const described = (segment: Segment): object => {
  const { vni, device, bridge } = segment;
  return { vni, device, bridge, addresses: interfaceTexts(segment) };
};

/** In layer 2 one of several of our networks comes several times. */
function* peersInForce(applier: Applier): Generator<PeerInForce> {
  for (const { key, name } of applier.have.peers.values()) {
    const ref = applier.ref(key);
    if (ref !== undefined) yield { name, ref };
  }
}

function readiness(running: boolean, forwards: boolean, { problem, staleSince }: LoopState): Readiness {
  if (!running) return { ready: false, text: 'weftd is not ready yet' };
  const stale = problem === undefined ? '' : `, stale since ${new Date(staleSince).toISOString()}: ${problem}`;
  return forwards
    ? { ready: true, text: `weftd is ready${stale}` }
    : { ready: false, text: `weftd forwards nothing: its lease has ended${stale}` };
}
