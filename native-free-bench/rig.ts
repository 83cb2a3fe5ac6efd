/** An engine over the in-memory device and socket, with peers and routes, for the benchmarks. */
import { Engine, READY_ALL } from '../src/dataplane/engine.js';
import { Tables } from '../src/dataplane/tables.js';
import type { Device } from '../src/io/device.js';
import { EngineMemory, type WorkerLayout } from '../src/io/memory.js';
import { MemoryDevice } from '../src/io/memory-device.js';
import { MemorySocket } from '../src/io/memory-socket.js';
import { ALL_OFFLOADS } from '../src/io/offloads.js';
import { socketAddress } from '../src/io/socket-address.js';

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
  const engine = new Engine(memory, 0, options.device?.(memory, layout) ?? device, [socket, undefined], {
    sourceCheck: 'peer',
    offloads: ALL_OFFLOADS,
    maxSegments: 128,
    mtu: 1472,
    address4: Uint8Array.of(10, 0, 0, 0),
    address6: undefined,
  });
  return {
    memory,
    device,
    socket,
    tables,
    name: (i) => {
      const name = new Uint8Array(16);
      name.set(socketAddress(peerAddress(i), 8285));
      return name;
    },
    turn: () => void engine.turn(0, READY_ALL),
    drain: () => {
      while (engine.turn(0, READY_ALL) > 0);
    },
  };
}
