/**
 * weftd, put together. Starting goes from what changes nothing (looking, checking, locking) to what does (device, routes), so
 * that most mistakes leave no trace (a lease that was taken ends by itself); the workers come last, on tables that are filled. Stopping goes the other way.
 */
import { join } from 'node:path';
import { type Config, DIRECTORY, type Segment, wishOf } from './config.js';
import { Applier } from './control/apply.js';
import { type Address, addressOf, type Cidr, cidrOf, contains, parsePrefixOf, textOf } from './control/cidr.js';
import { Dataplane } from './control/dataplane.js';
import { DirectPeers } from './control/direct-peers.js';
import type { EventLog } from './control/event-log.js';
import { HostForwarding } from './control/host-forwarding.js';
import { HostRules } from './control/host-rules.js';
import { ControlLoop } from './control/loop.js';
import { type Membership, openRegistry } from './control/membership.js';
import { OwnMacsWatch } from './control/own-macs.js';
import { PathMtu } from './control/path-mtu.js';
import type { HostRouting, Self } from './control/plan.js';
import type { Records } from './control/records.js';
import { findUnderlay, type Underlay } from './control/underlay.js';
import { findVteps, interfaceTexts, macOf, macsOf, removeLeftovers, setUpDevice } from './device-setup.js';
import { Devices } from './devices.js';
import { readinessOf, STARTING, serveAll } from './endpoints.js';
import { engineSettingsFor, memoryFor } from './engine-options.js';
import { checkBridge, checkRoutes, removeDevice } from './host/device.js';
import { lockDevice } from './host/lock.js';
import { notify } from './host/notify.js';
import { readOwnMacs } from './host/own-macs.js';
import { pathMtus } from './host/path-mtu.js';
import { pathsTo } from './host/routes.js';
import { udpPorts } from './host/socket-ports.js';
import { readSubnetFile, writeSubnetFile } from './host/subnet-file.js';
import { createExplain } from './inspect/explain.js';
import type { Inspected } from './inspect/inspected.js';
import { paced } from './inspect/pace.js';
import { inspectedFor, noting, startControl } from './inspection.js';
import { offloadNames } from './io/offloads.js';
import { type Readiness, serveHttp } from './observe/http.js';
import type { Log } from './observe/log.js';
import { checkPublicIps, deviceNames, mtusOf, type Overlay, overlayOf, vtepAddresses } from './overlay.js';
import { openSockets } from './sockets.js';

/** Why a daemon has to end by itself: `moved`, our subnets are others now: start again; `revoked`: our lease was taken away. */
export type End = 'moved' | 'revoked';

export interface Daemon {
  /** Resolves when it has to be stopped; mostly never. */
  readonly ended: Promise<End>;
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
  log: Log,
  signal: AbortSignal,
  again = false,
): Promise<Daemon> {
  const undo: (() => void | Promise<void>)[] = [];
  const inspected = inspectedFor(config, version, log);
  const run: Run = { config, version, log, signal, undo, again, inspected, letGo: () => {}, end: () => {} };
  const stop = async (keepDevice = config.keepDevice): Promise<void> => {
    inspected.stopping = true;
    // First of all: it takes no time, and holds even if the rest does not come to an end.
    run.letGo(keepDevice);
    for (let step = undo.pop(); step; step = undo.pop()) await step();
  };
  const ended = new Promise<End>((resolve) => {
    run.end = resolve;
  });
  try {
    await start(run);
    return { stop, ended };
  } catch (error) {
    await stop().catch(() => {}); // why it failed matters more
    throw error;
  }
}

/** Milliseconds. */
const WAITING_AFTER = 5000;

interface Run {
  readonly config: Config;
  readonly version: string;
  readonly log: EventLog;
  readonly signal: AbortSignal;
  readonly undo: (() => void | Promise<void>)[];
  readonly again: boolean;
  readonly inspected: Inspected;
  end: (why: End) => void;
  /** Says whether the devices stay when their descriptors are closed. */
  letGo: (keepDevice: boolean) => void;
}

async function start(run: Run): Promise<void> {
  const { config, version, log, signal, undo, inspected } = run;
  const control = await startControl(config, inspected);
  undo.push(() => control?.close());
  let ready = false;
  let readiness = (): Readiness => STARTING;
  if (config.healthAddress) {
    const health = await serveHttp({ ...config.healthAddress, only: 'health', ready: () => readiness() });
    undo.push(() => health.close());
  }
  const wish = { ...config, outside: config.registry === 'etcd' };
  let underlay = await findUnderlay(wish);
  inspected.underlay = underlay;
  // While the registry keeps us waiting, people want to see which interface it was.
  const waiting = setTimeout(() => log.info('underlay', describedUnderlay(underlay)), WAITING_AFTER);
  undo.push(() => clearTimeout(waiting));
  let gate = (_until: number): void => {};
  inspected.waitingFor = `the registry (${config.registry})`;
  const candidate = await openRegistry({
    wish: config,
    configWish: wishOf(config),
    stateDir: config.stateDir ?? join(DIRECTORY, underlay.addresses[0].text),
    underlay,
    underlayFor: async (families) => {
      underlay = await findUnderlay({ ...wish, families });
      inspected.underlay = underlay;
      return underlay;
    },
    log: noting(log, inspected),
    signal,
    gate: (until) => gate(until),
    moved: () => run.end('moved'),
    revoked: () => run.end('revoked'),
  });
  clearTimeout(waiting);
  undo.push(() => candidate.close());
  signal.throwIfAborted();

  const overlay = overlayOf(config, candidate);
  checkPublicIps(overlay, underlay);
  const { mode, workers, segments } = overlay;
  const names = deviceNames(overlay);
  for (const name of names) undo.push(lockDevice(name));
  for (const { bridge } of segments) if (bridge !== undefined) await checkBridge(bridge);
  const dataplane = new Dataplane({ workers, log, memory: memoryFor(overlay) });
  gate = (until) => dataplane.setGate(until);
  let setUp = async (_network: number): Promise<void> => {};
  let vtepMac = (_network: number): Uint8Array | undefined => undefined;
  const ownMacs = new OwnMacsWatch({
    memory: dataplane.memory,
    devices: names,
    query: readOwnMacs,
    wanted: (network) => vtepMac(network),
    restore: async (network) => {
      await setUp(network);
      if (ready) await host.look(); // the kernel forgets a device's neighbours with its MAC
    },
    log,
  });
  const devices = new Devices({
    wishes: names.map((name, network) => ({ name, kind: mode === 'l2' ? 'tap' : 'tun', setUp: () => setUp(network) })),
    workers,
    offloads: overlay.offloads,
    signal,
  });
  const vteps = await findVteps(overlay);
  const replaced = vteps.flatMap((vtep) => (vtep?.kernel ? [vtep.name] : []));
  await devices.find(run.again, replaced);
  const member = await candidate.join(macsOf(vteps, overlay));
  const { networks, subnets, port } = member;
  const mtus = mtusOf(overlay, underlay, networks);
  if (candidate.backend) await removeLeftovers(overlay, networks, names, log);
  if (mode === 'l3' && workers > 0) await checkRoutes(overlay.device, networks);
  signal.throwIfAborted();

  for (const name of replaced) {
    log.warn('device_taken_over', { device: name, from: "the kernel's vxlan", mac: 'kept' });
    await removeDevice(name);
  }
  if (overlay.routing === 'vxlan') vtepMac = (network) => macOf(member, segments[network].family);
  setUp = (network) => setUpDevice(network, { overlay, member, names, mtus, ownMacs, log });
  const sockets = openSockets(underlay, port, overlay);
  undo.push(() => sockets.close());

  const former = member.subnetFile === undefined ? undefined : await readSubnetFile(member.subnetFile, parsePrefixOf);
  const host = new HostForwarding({
    networks: [...networks, ...(former?.networks ?? [])],
    devices: overlay.routing === 'vxlan' ? names : [],
    restore: async () => {
      for (const network of names.keys()) await setUp(network);
    },
    log,
  });
  const applier = new Applier(dataplane.tables, host);
  const direct = new DirectPeers(pathsTo, log);
  let records: Records = new Map();
  const loop = new ControlLoop({
    registry: member.registry,
    self: selfOf(overlay, underlay, member, names, direct),
    applier,
    prepare: async (told) => {
      records = told;
      if (overlay.directRouting) await direct.learn(told);
    },
    log,
  });
  undo.push(() => loop.stop());
  await Promise.race([loop.start(), aborted(signal)]);
  inspected.waitingFor = undefined;
  signal.throwIfAborted();

  const pathMtu = new PathMtu({
    shared: dataplane.shared,
    tables: dataplane.tables,
    applier,
    log,
    query: (addresses) => pathMtus(addresses, (address) => sourceFor(address, underlay.addresses)),
  });
  readiness = () => readinessOf(ready && dataplane.running === workers, member.forwards(), loop.state);
  const parts = { overlay, member, mtus, dataplane, applier, host, loop, pathMtu, captures: inspected };
  const endpoint = await serveAll(config, version, () => readiness(), parts, log);
  undo.push(() => endpoint?.close());
  const deviceAddresses = names.map((_, network) => addressesOf(overlay, member, network));
  inspected.running = {
    ...parts,
    backend: candidate.backend?.type ?? (mode === 'l2' ? 'vxlan' : 'udp'),
    underlay,
    devices: names,
    addresses: deviceAddresses,
    records: () => records,
    metrics: endpoint && config.metricsAddress && hostAndPort(config.metricsAddress.host, endpoint.port),
    sourcePorts: [0, 1].map((family) => udpPorts(sockets.senders.flatMap((senders) => senders[family]))),
  };
  signal.throwIfAborted();

  const openDevices = async (): Promise<readonly (readonly number[])[]> => {
    const fds = await devices.open();
    if (mode === 'l2') await ownMacs.look();
    if (ready) await host.look();
    return fds;
  };
  undo.push(() => devices.close());
  undo.push(() => dataplane.stop());
  run.letGo = (keepDevice) => devices.persist(keepDevice, !ready);
  const deviceFds = await openDevices();
  const offloads = devices.offloads & sockets.offloads;
  const { maxSegments } = sockets;
  const addresses = subnets.map(({ bytes }) => addressOf(bytes));
  const settings = engineSettingsFor(overlay, { offloads, maxSegments, mtus, addresses });
  await dataplane.start({
    deviceFds,
    socketFds: sockets.receivers,
    senderFds: sockets.senders,
    settings,
    reopenDevices: openDevices,
  });
  const hasSocket = (family: 0 | 1): boolean => sockets.receivers.some((receivers) => receivers[family] >= 0);
  inspected.forwarding = {
    granted: offloads,
    maxSegments,
    explain: paced(
      createExplain({
        memory: dataplane.memory,
        settings,
        underlays: [hasSocket(0), hasSocket(1)],
        devices: names,
        mtus,
        addresses: deviceAddresses,
        applier,
        networkNamespace: inspected.options.networkNamespace,
      }),
    ),
  };
  signal.throwIfAborted();
  if (candidate.backend) {
    undo.push(() => host.stop());
    await host.start(); // takes away, too, what a run with another backend left
    if (!overlay.routing) await host.stop();
  }
  pathMtu.start();
  undo.push(() => pathMtu.stop());
  if (mode === 'l2') {
    ownMacs.start();
    undo.push(() => ownMacs.stop());
  }
  const rules = new HostRules({
    networks,
    subnets,
    ipMasq: config.ipMasq,
    randomFully: config.ipMasqRandomFully,
    forward: config.forwardRules,
    blackhole: config.blackholeRoute,
    nftables: candidate.nftables,
    resync: config.rulesResync,
    log,
  });
  undo.push(() => rules.stop());
  await rules.start();
  if (member.subnetFile !== undefined) {
    await writeSubnetFile(member.subnetFile, {
      networks,
      subnets,
      mtu: Math.min(...mtus),
      ipMasq: config.ipMasq,
    });
  }
  ready = true;
  inspected.ready = true;
  notify('READY=1');
  log.info('ready', {
    version,
    ...(candidate.backend ? { backend: candidate.backend.type } : {}),
    ...(mode === 'l2' ? { mode } : {}),
    ...devicesOf(overlay, member, mtus, devices.reused),
    ...(subnets.length > 0 ? { networks: texts(networks), subnets: texts(subnets) } : {}),
    lease: member.lease,
    underlay: { ...describedUnderlay(underlay), ...(workers > 0 ? { port } : {}) },
    peers: dataplane.tables.peerCount,
    ...(mode === 'l2' ? {} : { routes: dataplane.tables.routeCount }),
    workers,
    ...(workers > 0 ? { offloads: offloadNames(offloads), reused: devices.reused.some((reused) => reused) } : {}),
  });
}

/** Resolves when `signal` aborts. */
const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

function selfOf(
  overlay: Overlay,
  underlay: Underlay,
  { networks, subnets }: Membership,
  devices: readonly string[],
  { devices: direct }: DirectPeers,
): Self {
  const { mode, routing, segments, underlayMtu } = overlay;
  const hostRouting: HostRouting | undefined =
    routing === 'vxlan'
      ? { kind: routing, devices, direct }
      : routing && { kind: routing, interface: underlay.interface };
  return {
    // Where others may think that we are; a record there is our own.
    addresses: [...underlay.addresses, ...underlay.publicAddresses],
    networks: mode === 'l2' && !routing ? prefixesOf(segments, underlay) : networks,
    subnets,
    underlayMtu: underlayMtu ?? underlay.mtu,
    vnis: segments.map(({ vni }) => vni),
    families: segments.map(({ family }) => family),
    underlayInside: overlay.registry === 'etcd',
    hostRouting,
  };
}

const sourceFor = (address: string, own: readonly Address[]): string | undefined =>
  own.find((one) => one.family === (address.includes(':') ? 6 : 4))?.text;

const texts = (items: readonly (Address | Cidr)[]): string[] => items.map((item) => item.text);

/** What is reached through the TAPs: no peer's underlay address may lie there, unless the underlay lies in it as well. */
const prefixesOf = (segments: readonly Segment[], underlay: Underlay): Cidr[] =>
  segments
    .flatMap(({ addresses }) => addresses.map(({ bytes, length }) => cidrOf(bytes, length)))
    .filter((prefix) => !underlay.addresses.some(({ bytes }) => contains(prefix, { bytes, length: bytes.length * 8 })));

/** For log lines; what others are told is said where it is something else. */
function describedUnderlay(underlay: Underlay): Record<string, unknown> {
  const { interface: name, mtu, addresses, publicAddresses } = underlay;
  const [own, told] = [texts(addresses), texts(publicAddresses)];
  return { interface: name, mtu, addresses: own, ...(own.join() === told.join() ? {} : { public: told }) };
}

/** For the ready line: the devices, or the MTU alone where there is none. */
function devicesOf(overlay: Overlay, member: Membership, mtus: readonly number[], reused: readonly boolean[]): object {
  const { mode, workers, device, segments } = overlay;
  if (workers === 0) return { mtu: mtus[0] };
  if (mode === 'l3') return { device, mtu: mtus[0], addresses: addressesOf(overlay, member, 0) };
  const devices = segments.map(({ vni, device: name, bridge }, i) => {
    return { vni, device: name, bridge, addresses: addressesOf(overlay, member, i), mtu: mtus[i], reused: reused[i] };
  });
  return { devices };
}

/** Of a network's device; with prefix lengths in layer 2. */
function addressesOf({ mode, segments, routing }: Overlay, { subnets }: Membership, network: number): string[] {
  if (mode === 'l3') return subnets.map(({ bytes }) => textOf(bytes));
  const { family, addresses } = segments[network];
  return interfaceTexts(routing === 'vxlan' ? vtepAddresses(family, subnets) : addresses);
}

const hostAndPort = (host: string, port: number): string => `${host.includes(':') ? `[${host}]` : host}:${port}`;
