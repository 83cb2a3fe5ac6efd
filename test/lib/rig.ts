/**
 * An engine over the in-memory device and sockets, with peers and routes, and a second set of books: what crossed the device
 * and the sockets is counted there, apart from the engine's own counters.
 *
 * The stage: this host is 10.5.1.0/24 and fd00:5:0:1::/64; peer i has 10.5.(i+2).0/24 and fd00:5:0:(i+2)::/64.
 */
import { COUNTER_INFOS, conservation, readCounter } from '../../src/dataplane/counters.js';
import { Engine, READY_ALL } from '../../src/dataplane/engine.js';
import type { PeerRef } from '../../src/dataplane/peers.js';
import type { EngineSettings } from '../../src/dataplane/settings.js';
import { Tables } from '../../src/dataplane/tables.js';
import { CheckedDevice, CheckedSocket } from '../../src/io/checked.js';
import type { Device, Socket } from '../../src/io/device.js';
import { EngineMemory, type WorkerLayout } from '../../src/io/memory.js';
import { type DevicePacket, MemoryDevice } from '../../src/io/memory-device.js';
import {
  type IncomingMessage,
  MemorySocket,
  type MemorySocketOptions,
  type OutgoingDatagram,
} from '../../src/io/memory-socket.js';
import { ALL_OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { address, prefix } from './packets.js';
import { auditSizes } from './sizes.js';
import { beginCapture, Tapped } from './tapped.js';

export interface PeerOptions {
  /** Underlay address; default 192.168.77.(i+2). */
  readonly address?: string;
  readonly mtu?: number;
  readonly ecn?: boolean;
  /** Instead of its two usual subnets. */
  readonly subnets?: readonly string[];
}

export interface RigOptions {
  readonly peers?: readonly PeerOptions[];
  readonly settings?: Partial<EngineSettings>;
  readonly socket?: MemorySocketOptions;
  /** Puts something between the engine and the in-memory device or sockets. */
  readonly wrapDevice?: (device: MemoryDevice) => Device;
  readonly wrapSocket?: (socket: MemorySocket, underlay: number) => Socket;
  /** Which sockets the engine has; default both, IPv4 and IPv6. */
  readonly underlays?: readonly [boolean, boolean];
  readonly memory?: { readonly peers?: number; readonly routeNodes?: number };
  /** Keep what was sent and pushed (default). Off where millions of packets go through. */
  readonly keep?: boolean;
  /** A capture of everything runs, and `audit` checks it too. */
  readonly tapped?: boolean;
}

export interface Rig {
  readonly memory: EngineMemory;
  readonly layout: WorkerLayout;
  readonly device: MemoryDevice;
  /** IPv4 and IPv6 underlay. */
  readonly sockets: readonly [MemorySocket, MemorySocket];
  readonly tables: Tables;
  readonly engine: Engine;
  readonly refs: readonly PeerRef[];
  /** struct sockaddr of peer i, as recvmmsg gives it. */
  name(i: number): Uint8Array;
  /** Everything sent and pushed since the last call of `take`. */
  take(): { readonly sent: OutgoingDatagram[]; readonly pushed: DevicePacket[] };
  /** Turns until nothing moves. */
  drain(now?: number): void;
  /** Host → network: gives packets to the device, drains, returns the datagrams sent. */
  out(...packets: readonly DevicePacket[]): OutgoingDatagram[];
  /** Network → host: gives messages to the socket of `underlay`, drains, returns the packets pushed. */
  in(messages: readonly IncomingMessage[], underlay?: number): DevicePacket[];
  counter(name: string): number;
  /** Counters that changed since the last call, by `direction.name`, bytes and calls left out. */
  changes(): Record<string, number>;
  /** Throws unless the guards are whole and both sets of books agree. */
  audit(): void;
}

export const DEVICE_4 = '10.5.1.0';
export const DEVICE_6 = 'fd00:5:0:1::';
export const HOST_4 = '10.5.1.2';
export const HOST_6 = 'fd00:5:0:1::2';
/** A host behind peer i. */
export const remote4 = (i = 0): string => `10.5.${i + 2}.9`;
export const remote6 = (i = 0): string => `fd00:5:0:${(i + 2).toString(16)}::9`;

export const counterName = (id: number): string => `${COUNTER_INFOS[id].direction}.${COUNTER_INFOS[id].name}`;

const NOISE = new Set(['outbound.send_calls', 'outbound.messages_sent', 'inbound.messages_received']);

export async function makeRig(options: RigOptions = {}): Promise<Rig> {
  const memory = EngineMemory.create({
    workers: 1,
    peers: options.memory?.peers ?? 64,
    routeNodes: options.memory?.routeNodes ?? 4096,
    networks: 1,
  });
  const layout = memory.layout.workers[0];
  const keep = options.keep ?? true;
  let sent: OutgoingDatagram[] = [];
  let pushed: DevicePacket[] = [];

  const device = new MemoryDevice(memory, layout);
  const sockets = [0, 1].map((i) => new MemorySocket(memory, layout, i, options.socket)) as [
    MemorySocket,
    MemorySocket,
  ];
  if (keep) {
    device.onPush = (packet) => pushed.push(packet);
    for (const socket of sockets) socket.onSend = (datagram) => sent.push(datagram);
  }
  const specs = options.peers ?? [{}];
  const addresses = specs.map((spec, i) => address(spec.address ?? `192.168.77.${i + 2}`));
  const tables = new Tables(memory, () => {});
  const refs = specs.map((spec, i) =>
    tables.addPeer({ address: addresses[i], port: 8285, mtu: spec.mtu ?? 1472, ecn: spec.ecn ?? false, network: 0 }),
  );
  specs.forEach((spec, i) => {
    const usual = [`10.5.${i + 2}.0/24`, `fd00:5:0:${(i + 2).toString(16)}::/64`];
    for (const subnet of spec.subnets ?? usual) tables.setRoute(0, prefix(subnet), refs[i]);
  });
  await tables.commit();

  const settings: EngineSettings = {
    sourceCheck: 'peer',
    offloads: ALL_OFFLOADS,
    maxSegments: 128,
    mtu: 1472,
    address4: address(DEVICE_4),
    address6: address(DEVICE_6),
    ...options.settings,
  };
  const tapped = options.tapped ? new Tapped(memory, layout, beginCapture(memory)) : undefined;
  const watched = options.wrapDevice?.(device) ?? device;
  const engine = new Engine(
    memory,
    0,
    {
      devices: [new CheckedDevice(tapped?.device(watched, 0) ?? watched, layout)],
      sockets: sockets.map((socket, i) => {
        if (options.underlays?.[i] === false) return undefined;
        const wrapped = options.wrapSocket?.(socket, i) ?? socket;
        return new CheckedSocket(tapped?.socket(wrapped, i, i) ?? wrapped, memory, layout, i);
      }),
    },
    settings,
  );

  const ids = new Map(COUNTER_INFOS.map((_, id) => [counterName(id), id]));
  let before = COUNTER_INFOS.map(() => 0);
  const rig: Rig = {
    memory,
    layout,
    device,
    sockets,
    tables,
    engine,
    refs,
    name: (i) => socketAddress(addresses[i], 8285),
    take() {
      const taken = { sent, pushed };
      sent = [];
      pushed = [];
      return taken;
    },
    drain(now = 0) {
      while (engine.turn(now, READY_ALL) > 0);
    },
    out(...packets) {
      device.load(packets);
      rig.drain();
      const taken = sent;
      sent = [];
      return taken;
    },
    in(messages, underlay = 0) {
      sockets[underlay].load(messages);
      rig.drain();
      const taken = pushed;
      pushed = [];
      return taken;
    },
    counter(name) {
      const id = ids.get(name);
      if (id === undefined) throw new Error(`no counter ${name}`);
      return readCounter(memory, id);
    },
    changes() {
      const now = COUNTER_INFOS.map((_, id) => readCounter(memory, id));
      const found: Record<string, number> = {};
      COUNTER_INFOS.forEach((info, id) => {
        const name = counterName(id);
        if (now[id] !== before[id] && info.role !== 'bytes' && !NOISE.has(name)) found[name] = now[id] - before[id];
      });
      before = now;
      return found;
    },
    audit() {
      if (!memory.intactGuards()) throw new Error('guard bytes were overwritten');
      auditSizes(memory);
      const sums = conservation(memory);
      const [put, got] = [sums.in + sums.made, sums.sent + sums.consumed + sums.dropped];
      if (put !== got) throw new Error(`in + made is ${put}, sent + consumed + dropped is ${got}`);
      const books: readonly (readonly [string, number, number])[] = [
        ['device_pulled', rig.counter('outbound.device_pulled'), device.pulled],
        ['socket_sent', rig.counter('outbound.socket_sent'), sockets[0].sent + sockets[1].sent],
        ['socket_sent_bytes', rig.counter('outbound.socket_sent_bytes'), sockets[0].sentBytes + sockets[1].sentBytes],
        ['messages_sent', rig.counter('outbound.messages_sent'), sockets[0].sentMessages + sockets[1].sentMessages],
        ['socket_received', rig.counter('inbound.socket_received'), sockets[0].received + sockets[1].received],
        [
          'device_pushed + icmp_sent',
          rig.counter('inbound.device_pushed') + rig.counter('outbound.icmp_sent'),
          device.pushed,
        ],
      ];
      for (const [what, mine, theirs] of books) {
        if (mine !== theirs) throw new Error(`${what}: the engine counted ${mine}, the in-memory end ${theirs}`);
      }
      tapped?.check();
    },
  };
  return rig;
}
