/**
 * weftd, put together. Starting goes from what changes nothing (looking, checking, locking) to what does (device, routes), so
 * that most mistakes leave no trace; the workers come last, on tables that are filled. Stopping goes the other way.
 */
import { closeSync } from 'node:fs';
import { type Config, MTU_LEAST, MTU_LEAST_IPV6, MTU_MOST } from './config.js';
import { Applier } from './control/apply.js';
import { type Address, type Cidr, textOf } from './control/cidr.js';
import { Dataplane } from './control/dataplane.js';
import type { EventLog } from './control/event-log.js';
import { ControlLoop } from './control/loop.js';
import { PathMtu } from './control/path-mtu.js';
import { StaticRegistry } from './control/static-registry.js';
import { findUnderlay, type Underlay } from './control/underlay.js';
import { checkRoutes, isOurs, markDevice, setUpDevice } from './host/device.js';
import { lockDevice } from './host/lock.js';
import { pathMtus } from './host/path-mtu.js';
import { probePort } from './host/probe.js';
import { offloadNames } from './io/offloads.js';
import { openTun, type Tun } from './io/tun.js';
import { openUdp, type UdpSocket } from './io/udp.js';
import { serveHttp } from './observe/http.js';
import { createMetrics } from './observe/metrics.js';

export interface Daemon {
  /** Ends everything; resolves in less than a second. The device stays or goes as the configuration says. */
  stop(): Promise<void>;
}

/**
 * Starts; resolves once packets flow. Throws a SetupError, or what `signal` aborts with, after undoing what was done; a device
 * that a predecessor left stays then.
 */
export async function startDaemon(
  config: Config,
  version: string,
  log: EventLog,
  signal: AbortSignal,
): Promise<Daemon> {
  const undo: (() => void | Promise<void>)[] = [];
  const stop = async (): Promise<void> => {
    for (let step = undo.pop(); step; step = undo.pop()) await step();
  };
  try {
    await start(config, version, log, signal, undo);
    return { stop };
  } catch (error) {
    await stop().catch(() => {}); // why it failed matters more
    throw error;
  }
}

async function start(
  config: Config,
  version: string,
  log: EventLog,
  signal: AbortSignal,
  undo: (() => void | Promise<void>)[],
): Promise<void> {
  const { device, port, networks, subnets, workers, keepDevice } = config;
  const ipv6 = networks.some((network) => network.family === 6);
  const underlay = await findUnderlay({ ...config, mtuLeast: ipv6 ? MTU_LEAST_IPV6 : MTU_LEAST, mtuMost: MTU_MOST });
  undo.push(lockDevice(device));
  const reused = await isOurs(device);
  await checkRoutes(device, networks);
  signal.throwIfAborted();

  const sockets = openSockets(underlay, config);
  undo.push(() => {
    for (const socket of sockets.flat()) closeSync(socket.fd);
  });

  const dataplane = new Dataplane({ workers, log });
  const applier = new Applier(dataplane.tables);
  const registry = new StaticRegistry(config.peersFile, port);
  const self = { addresses: underlay.addresses, networks, subnets, underlayMtu: underlay.mtu };
  const loop = new ControlLoop({ registry, self, applier, log });
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
    const metrics = createMetrics({
      version,
      memory: dataplane.memory,
      mtu: underlay.deviceMtu,
      tables: dataplane.tables,
      peers: () => peersInForce(applier),
      workers: dataplane,
      loop,
      pathMtu,
    });
    const endpoint = await serveHttp({
      ...config.metricsAddress,
      metrics,
      ready: () => (ready && dataplane.running === workers ? readiness(loop.state.problem) : undefined),
    });
    undo.push(() => endpoint.close());
    signal.throwIfAborted();
  }

  const addresses = subnets.map(({ family, bytes }) => ({ family, bytes, text: textOf(bytes) }));
  let tun: Tun | undefined;
  undo.push(() => tun?.close());
  undo.push(() => dataplane.stop());
  // First of all when stopping: it takes no time, and holds even if the rest does not come to an end.
  undo.push(() => tun?.persist(keepDevice || (reused && !ready)));
  const openDevice = async (): Promise<Tun> => {
    tun?.close();
    tun = undefined;
    const fresh = !(await isOurs(device));
    signal.throwIfAborted();
    tun = openTun({ name: device, queues: workers, offloads: config.offloads });
    if (fresh) await markDevice(device);
    signal.throwIfAborted();
    tun.persist(true);
    await setUpDevice({ name: device, mtu: underlay.deviceMtu, addresses, networks }, (reason) =>
      log.warn('device_setup', { reason }),
    );
    signal.throwIfAborted();
    return tun;
  };
  const { fds, offloads: deviceOffloads } = await openDevice();
  const offloads = sockets.flat().reduce((bits, socket) => bits & socket.offloads, deviceOffloads);
  await dataplane.start({
    deviceFds: fds,
    socketFds: sockets.map((each) => [fdOf(each, 4), fdOf(each, 6)]),
    settings: {
      sourceCheck: config.sourceCheck,
      offloads,
      maxSegments: Math.min(...sockets.flat().map((socket) => socket.maxSegments)),
      mtu: underlay.deviceMtu,
      address4: addresses.find((address) => address.family === 4)?.bytes,
      address6: addresses.find((address) => address.family === 6)?.bytes,
    },
    reopenDevice: async () => (await openDevice()).fds,
  });
  signal.throwIfAborted();
  pathMtu.start();
  undo.push(() => pathMtu.stop());
  ready = true;
  log.info('ready', {
    version,
    device,
    mtu: underlay.deviceMtu,
    addresses: addresses.map((address) => address.text),
    networks: texts(networks),
    underlay: { interface: underlay.interface, mtu: underlay.mtu, addresses: texts(underlay.addresses), port },
    peers: dataplane.tables.peerCount,
    routes: dataplane.tables.routeCount,
    workers,
    offloads: offloadNames(offloads),
    reused,
  });
}

/** Resolves when `signal` aborts. */
const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });

/** By worker, one socket an address; all of an address share its port. */
function openSockets(underlay: Underlay, { port, workers, offloads }: Config): UdpSocket[][] {
  for (const { bytes, text } of underlay.addresses) probePort(bytes, text, port);
  const sockets: UdpSocket[][] = [];
  try {
    for (let i = 0; i < workers; i++) {
      const each: UdpSocket[] = [];
      sockets.push(each);
      for (const { bytes, text } of underlay.addresses) each.push(openUdp({ address: bytes, text, port, offloads }));
    }
    return sockets;
  } catch (error) {
    for (const socket of sockets.flat()) closeSync(socket.fd);
    throw error;
  }
}

const fdOf = (sockets: readonly UdpSocket[], family: 4 | 6): number =>
  sockets.find((socket) => socket.family === family)?.fd ?? -1;

const sourceFor = (address: string, own: readonly Address[]): string | undefined =>
  own.find((one) => one.family === (address.includes(':') ? 6 : 4))?.text;

const texts = (items: readonly (Address | Cidr)[]): string[] => items.map((item) => item.text);

function* peersInForce(applier: Applier): Generator<{ name: string; ref: number }> {
  for (const { key, name } of applier.have.peers.values()) {
    const ref = applier.ref(key);
    if (ref !== undefined) yield { name, ref };
  }
}

const readiness = (problem: string | undefined): string =>
  problem === undefined ? 'weftd is ready' : `weftd is ready, with what it knew before this: ${problem}`;
