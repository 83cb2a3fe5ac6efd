/** An engine over the in-memory device and socket, with peers and routes, for the benchmarks. */
import { Engine, READY_ALL } from '../src/dataplane/engine.js';
import { Tables } from '../src/dataplane/tables.js';
import type { Device } from '../src/io/device.js';
import { EngineMemory, sendIndex, type WorkerLayout } from '../src/io/memory.js';
import { MemoryDevice } from '../src/io/memory-device.js';
import { MemorySocket } from '../src/io/memory-socket.js';
import { ALL_OFFLOADS } from '../src/io/offloads.js';
import { socketAddress } from '../src/io/socket-address.js';
import { frame, message, OUR_MAC, udp, VNI, vxlan } from './packets.js';

export interface Rig {
  readonly memory: EngineMemory;
  readonly device: MemoryDevice;
  readonly socket: MemorySocket;
  readonly tables: Tables;
  /** struct sockaddr of peer `i`. */
  name(i: number): Uint8Array;
  /** One turn. */
  turn(): void;
  /** Turns until nothing moves. */
  drain(): void;
}

/** The largest frame that a path of 1,500 bytes carries in VXLAN over IPv4, and the MTU of a TAP for it. */
const MAX_INNER_FRAME = 1464;
const TAP_MTU = 1450;
const VXLAN_PORT = 4789;
const SENDERS = 4;

const SETTINGS = {
  sourceCheck: 'peer',
  offloads: ALL_OFFLOADS,
  maxSegments: 128,
  address6: undefined,
} as const;

/** A struct sockaddr_in as recvmmsg gives it. */
const nameOf = (peer: number, port: number): Uint8Array => socketAddress(peerAddress(peer), port);

export const peerAddress = (i: number): Uint8Array => Uint8Array.of(192, 168, i >> 8, (i & 255) + 1);

/** Route `i` of a table: /24s, as flannel allots them, scattered over 10.0.0.0/7 by an odd multiplier: neighbours are far apart. */
export const routePrefix = (i: number): number => (0x0a000000 + (((i * 40503) & 0x1ffff) << 8)) >>> 0;

export interface RigOptions {
  readonly peers: number;
  readonly routes: number;
  /** A device in place of the ordinary one. */
  readonly device?: (memory: EngineMemory, layout: WorkerLayout) => Device;
}

/** A destination inside route `i`, host byte order. */
export const destination = (i: number): number => (routePrefix(i) + 5) >>> 0;

export async function makeRig(options: RigOptions): Promise<Rig> {
  const memory = EngineMemory.create({ workers: 1, peers: 4096, routeNodes: 1 << 19, networks: 1 });
  const layout = memory.layout.workers[0];
  const device = new MemoryDevice(memory, layout);
  const socket = new MemorySocket(memory, layout, 0);
  const tables = new Tables(memory, () => {});
  const refs = Array.from({ length: options.peers }, (_, i) =>
    tables.addPeer({ address: peerAddress(i), port: 8285, mtu: 1472, ecn: false, network: 0 }),
  );
  for (let i = 0; i < options.routes; i++) {
    const prefix = routePrefix(i);
    const bytes = Uint8Array.of(prefix >>> 24, prefix >>> 16, prefix >>> 8, prefix);
    tables.setRoute(0, { bytes, length: 24 }, refs[i % options.peers]);
  }
  await tables.commit();
  const ports = {
    devices: [options.device?.(memory, layout) ?? device],
    sockets: [socket, undefined],
    senders: [[], []] as [[], []],
  };
  const engine = new Engine(memory, 0, ports, {
    ...SETTINGS,
    mtu: 1472,
    address4: Uint8Array.of(10, 0, 0, 0),
  });
  return {
    memory,
    device,
    socket,
    tables,
    name: (i) => nameOf(i, 8285),
    turn: () => void engine.turn(0, READY_ALL),
    drain: () => {
      while (engine.turn(0, READY_ALL) > 0);
    },
  };
}

export interface SwitchRigOptions {
  readonly peers: number;
  /** Most MACs; default 65,536, as in the daemon. */
  readonly macs?: number;
  /** A device in place of the ordinary one. */
  readonly device?: (memory: EngineMemory, layout: WorkerLayout) => Device;
}

export interface SwitchRig {
  readonly memory: EngineMemory;
  readonly device: MemoryDevice;
  readonly socket: MemorySocket;
  /** struct sockaddr of peer `i`. */
  name(i: number): Uint8Array;
  /** Turns until nothing moves; every turn reads the clock, as the worker does. */
  drain(): void;
  /** Lets the switch learn that `macs[i]` is behind peer i modulo `peers`. */
  teach(macs: readonly Uint8Array[]): void;
}

/** A switch of one network over four sending sockets, as the daemon has them. */
export async function makeSwitchRig(options: SwitchRigOptions): Promise<SwitchRig> {
  const macs = options.macs ?? 65_536;
  const memory = EngineMemory.create({
    workers: 1,
    peers: 1024,
    routeNodes: 64,
    networks: 1,
    macs,
    neighbours: 1024,
    statics: 1024,
    senders: SENDERS,
  });
  const layout = memory.layout.workers[0];
  const device = new MemoryDevice(memory, layout);
  const socket = new MemorySocket(memory, layout, sendIndex(memory.options, 0, 0));
  const senders = Array.from(
    { length: SENDERS },
    (_, i) => new MemorySocket(memory, layout, sendIndex(memory.options, 0, i), {}, 0),
  );
  const tables = new Tables(memory, () => {});
  for (let i = 0; i < options.peers; i++) {
    tables.addPeer({ address: peerAddress(i), port: VXLAN_PORT, mtu: MAX_INNER_FRAME, ecn: true, network: 0 });
  }
  await tables.commit();
  const ports = {
    devices: [options.device?.(memory, layout) ?? device],
    sockets: [socket, undefined],
    senders: [senders, []] as [MemorySocket[], MemorySocket[]],
  };
  const engine = new Engine(memory, 0, ports, {
    ...SETTINGS,
    mtu: TAP_MTU,
    address4: undefined,
    l2: {
      networks: [{ vni: VNI, mtu: TAP_MTU }],
      age: 300_000,
      macsPerPeer: macs,
      floodUnknown: true,
      learning: true,
      floods: true,
      stormLimit: 0,
    },
  });
  const drain = (): void => {
    while (engine.turn(performance.now() | 0, READY_ALL) > 0);
  };
  const name = (i: number): Uint8Array => nameOf(i, VXLAN_PORT);
  return {
    memory,
    device,
    socket,
    name,
    drain,
    teach(taught) {
      const packet = udp(0x0a000002, 0x0a000001, 50);
      const names = Array.from({ length: options.peers }, (_, i) => name(i));
      socket.load(taught.map((mac, i) => message(names[i % options.peers], [vxlan(frame(OUR_MAC, mac, packet))])));
      drain();
    },
  };
}
