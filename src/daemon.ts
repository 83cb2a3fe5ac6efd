/**
 * weftd, put together. Starting goes from what changes nothing (looking, checking, locking) to what does (device, routes), so
 * that most mistakes leave no trace (a lease that was taken ends by itself); the workers come last, on tables that are filled. Stopping goes the other way.
 */
import { closeSync } from 'node:fs';
import { join } from 'node:path';
import { type Config, DIRECTORY, wishOf } from './config.js';
import { Applier } from './control/apply.js';
import { type Address, type Cidr, textOf } from './control/cidr.js';
import { Dataplane } from './control/dataplane.js';
import type { EventLog } from './control/event-log.js';
import { ControlLoop, type LoopState } from './control/loop.js';
import { becomeMember } from './control/membership.js';
import { PathMtu } from './control/path-mtu.js';
import { deviceMtuOf, findUnderlay, type Underlay } from './control/underlay.js';
import { checkRoutes, isOurs, markDevice, setUpDevice } from './host/device.js';
import { lockDevice } from './host/lock.js';
import { pathMtus } from './host/path-mtu.js';
import { probePort } from './host/probe.js';
import { writeSubnetFile } from './host/subnet-file.js';
import { offloadNames } from './io/offloads.js';
import { openTun, type Tun } from './io/tun.js';
import { openUdp, type UdpSocket } from './io/udp.js';
import { type Readiness, serveHttp } from './observe/http.js';
import { createMetrics } from './observe/metrics.js';

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
  const { device, workers } = config;
  const underlay = await findUnderlay(config);
  undo.push(lockDevice(device));
  const reused = (await isOurs(device)) && !run.again;
  const dataplane = new Dataplane({ workers, log });
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
  const deviceMtu = deviceMtuOf(underlay, { mtu: config.mtu, networks });
  await checkRoutes(device, networks);
  signal.throwIfAborted();

  const sockets = openSockets(underlay, port, config);
  undo.push(() => {
    for (const socket of sockets.flat()) closeSync(socket.fd);
  });

  const applier = new Applier(dataplane.tables);
  const self = { addresses: underlay.addresses, networks, subnets, underlayMtu: underlay.mtu };
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
    const metrics = createMetrics({
      version,
      memory: dataplane.memory,
      mtu: deviceMtu,
      tables: dataplane.tables,
      peers: () => peersInForce(applier),
      workers: dataplane,
      loop,
      lease: member,
      pathMtu,
    });
    const endpoint = await serveHttp({
      ...config.metricsAddress,
      metrics,
      ready: () => readiness(ready && dataplane.running === workers, member.forwards(), loop.state),
    });
    undo.push(() => endpoint.close());
    signal.throwIfAborted();
  }

  const addresses = subnets.map(({ family, bytes }) => ({ family, bytes, text: textOf(bytes) }));
  let tun: Tun | undefined;
  undo.push(() => tun?.close());
  undo.push(() => dataplane.stop());
  // First of all when stopping: it takes no time, and holds even if the rest does not come to an end.
  undo.push(() => tun?.persist(run.keepDevice || (reused && !ready)));
  const openDevice = async (): Promise<Tun> => {
    tun?.close();
    tun = undefined;
    const fresh = !(await isOurs(device));
    signal.throwIfAborted();
    tun = openTun({ name: device, queues: workers, offloads: config.offloads });
    if (fresh) await markDevice(device);
    signal.throwIfAborted();
    tun.persist(true);
    await setUpDevice({ name: device, mtu: deviceMtu, addresses, networks }, (reason) =>
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
      mtu: deviceMtu,
      address4: addresses.find((address) => address.family === 4)?.bytes,
      address6: addresses.find((address) => address.family === 6)?.bytes,
    },
    reopenDevice: async () => (await openDevice()).fds,
  });
  signal.throwIfAborted();
  pathMtu.start();
  undo.push(() => pathMtu.stop());
  if (member.subnetFile !== undefined) {
    await writeSubnetFile(member.subnetFile, { networks, subnets, mtu: deviceMtu, ipMasq: false });
  }
  ready = true;
  log.info('ready', {
    version,
    device,
    mtu: deviceMtu,
    addresses: addresses.map((address) => address.text),
    networks: texts(networks),
    subnets: texts(subnets),
    lease: member.lease,
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
function openSockets(underlay: Underlay, port: number, { workers, offloads }: Config): UdpSocket[][] {
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

function readiness(running: boolean, forwards: boolean, { problem, staleSince }: LoopState): Readiness {
  if (!running) return { ready: false, text: 'weftd is not ready yet' };
  const stale = problem === undefined ? '' : `, stale since ${new Date(staleSince).toISOString()}: ${problem}`;
  return forwards
    ? { ready: true, text: `weftd is ready${stale}` }
    : { ready: false, text: `weftd forwards nothing: its lease has ended${stale}` };
}
