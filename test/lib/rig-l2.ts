/**
 * A switch over in-memory devices and sockets: two networks (VNI 42 and 43), each with a device of its own, one socket per
 * underlay that receives and a pool of them that sends, and the second set of books of rig.ts: what crossed devices and
 * sockets is counted there, apart from the engine's own counters.
 *
 * The stage: our hosts have MACs 02:00:00:00:01:xx and addresses 10.7.0.x and fd07::x; those behind peer i have
 * 02:00:00:00:(i+2):xx, 10.7.(i+2).x and fd07::(i+2):x. All of them are in one segment.
 */
import { COUNTER_INFOS, conservation, readCounter } from '../../src/dataplane/counters.js';
import { Engine, READY_ALL } from '../../src/dataplane/engine.js';
import { readGauges } from '../../src/dataplane/gauges.js';
import { MAC_REF } from '../../src/dataplane/macs.js';
import { writeOwnMacs } from '../../src/dataplane/networks.js';
import type { PeerRef } from '../../src/dataplane/peers.js';
import type { EngineSettings, SwitchSettings } from '../../src/dataplane/settings.js';
import { Tables } from '../../src/dataplane/tables.js';
import { CheckedDevice, CheckedSocket } from '../../src/io/checked.js';
import type { Device, Socket } from '../../src/io/device.js';
import {
  EngineMemory,
  MAC_BYTES,
  NEIGHBOUR_BYTES,
  SIZEOF_IOVEC,
  SIZEOF_MMSGHDR,
  sendIndex,
  type WorkerLayout,
} from '../../src/io/memory.js';
import { type DevicePacket, MemoryDevice } from '../../src/io/memory-device.js';
import {
  type IncomingMessage,
  MemorySocket,
  type MemorySocketOptions,
  type OutgoingDatagram,
} from '../../src/io/memory-socket.js';
import { MSG_IOV, MSG_IOVLEN } from '../../src/io/messages.js';
import { ALL_OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { decodeVxlan, frame, mac, vxlan } from './frames.js';
import { address, message, pattern, udp } from './packets.js';
import { auditSizes } from './sizes.js';
import { beginCapture, Tapped } from './tapped.js';

export const VNIS = [42, 43] as const;
export const PORT = 4789;
/** The largest frame that a path of 1,500 bytes carries, over IPv4. */
export const FRAME = 1464;
/** The MTU of the devices. */
export const MTU = 1450;

/** What crossed the ends of one worker. */
interface Ends {
  readonly pulled: number;
  readonly pushed: number;
  readonly sent: number;
  readonly sentBytes: number;
  readonly sentMessages: number;
  readonly received: number;
}

function endsOf({ devices, sockets, senders }: SwitchRig): Ends {
  const ports = [...new Set([...sockets, ...senders.flat()])];
  const of = (key: 'sent' | 'sentBytes' | 'sentMessages' | 'received'): number =>
    ports.reduce((sum, socket) => sum + socket[key], 0);
  return {
    pulled: devices.reduce((sum, device) => sum + device.pulled, 0),
    pushed: devices.reduce((sum, device) => sum + device.pushed, 0),
    sent: of('sent'),
    sentBytes: of('sentBytes'),
    sentMessages: of('sentMessages'),
    received: of('received'),
  };
}

const two = (n: number): string => n.toString(16).padStart(2, '0');
/** A host of ours. */
export const ourMac = (n = 1): string => `02:00:00:00:01:${two(n)}`;
export const our4 = (n = 1): string => `10.7.0.${n}`;
export const our6 = (n = 1): string => `fd07::${n.toString(16)}`;
/** A host behind peer i. */
export const theirMac = (peer = 0, n = 1): string => `02:00:00:00:${two(peer + 2)}:${two(n)}`;
export const their4 = (peer = 0, n = 1): string => `10.7.${peer + 2}.${n}`;
export const their6 = (peer = 0, n = 1): string => `fd07::${(peer + 2).toString(16)}:${n.toString(16)}`;

export interface SwitchPeer {
  /** Underlay address; default 192.168.77.(i+2). */
  readonly address?: string;
  /** Largest frame. */
  readonly mtu?: number;
  /** Which networks it is in; default both. */
  readonly networks?: readonly number[];
}

export interface SwitchOptions {
  readonly peers?: readonly SwitchPeer[];
  readonly settings?: Partial<EngineSettings>;
  readonly l2?: Partial<SwitchSettings>;
  readonly socket?: MemorySocketOptions;
  /** Sockets per underlay that send; 0: the one that receives. */
  readonly senders?: number;
  readonly workers?: number;
  readonly memory?: {
    readonly peers?: number;
    readonly macs?: number;
    readonly neighbours?: number;
    readonly statics?: number;
  };
  readonly wrapDevice?: (device: MemoryDevice, network: number) => Device;
  /** `sender` is -1 for the socket that receives. */
  readonly wrapSocket?: (socket: MemorySocket, underlay: number, sender: number) => Socket;
  /** Keep what was sent and pushed (default). Off where millions of frames go through. */
  readonly keep?: boolean;
  /** A capture of everything runs, and `audit` checks it too. */
  readonly tapped?: boolean;
}

/** A datagram as it left, and by which socket. */
export interface Sent extends OutgoingDatagram {
  readonly underlay: number;
  /** Which of the pool; -1: the socket that receives. */
  readonly sender: number;
}

/** A frame as it was written, and to which device. */
export interface Pushed extends DevicePacket {
  readonly network: number;
}

export interface SwitchRig {
  readonly memory: EngineMemory;
  readonly layout: WorkerLayout;
  readonly devices: readonly MemoryDevice[];
  /** By underlay, IPv4 and IPv6: the sockets that receive. */
  readonly sockets: readonly [MemorySocket, MemorySocket];
  /** By underlay: all sockets that send. */
  readonly senders: readonly [readonly MemorySocket[], readonly MemorySocket[]];
  readonly tables: Tables;
  readonly engine: Engine;
  /** By network and peer; 0 where the peer is not in that network. */
  readonly refs: readonly (readonly PeerRef[])[];
  /** What the engine is told the time is, in milliseconds; turns that are not given another use it. */
  now: number;
  /** The same tables and memory, seen by another worker, whose settings may differ. */
  other(worker: number, l2?: Partial<SwitchSettings>): SwitchRig;
  /** struct sockaddr of peer i, as recvmmsg gives it. */
  name(i: number): Uint8Array;
  take(): { readonly sent: Sent[]; readonly pushed: Pushed[] };
  drain(): void;
  /** Host → network: gives frames to the device of `network`, drains, returns the datagrams sent. */
  out(network: number, ...frames: readonly DevicePacket[]): Sent[];
  /** Network → host: gives messages to the socket of `underlay`, drains, returns the frames pushed. */
  in(messages: readonly IncomingMessage[], underlay?: number): Pushed[];
  /** A message of peer i; several datagrams as UDP_GRO delivers them. */
  from(i: number, datagrams: readonly Uint8Array[], outer?: { readonly tos?: number }): IncomingMessage;
  /** Index of the peer that a datagram went to; -1: nobody. */
  peerOf(datagram: OutgoingDatagram): number;
  counter(name: string): number;
  /** Counters that changed since the last call, by `direction.name`, bytes and calls left out. */
  changes(): Record<string, number>;
  /** Entries of this worker's learned tables. */
  learned(): { readonly macs: number; readonly neighbours: number; readonly byPeer: Map<number, number> };
  /** Throws unless the guards are whole, both sets of books agree and the tables hold no more than they may. */
  audit(): void;
}

export const counterName = (id: number): string => `${COUNTER_INFOS[id].direction}.${COUNTER_INFOS[id].name}`;

const NOISE = new Set(['outbound.send_calls', 'outbound.messages_sent', 'inbound.messages_received']);
const IDS = new Map(COUNTER_INFOS.map((_, id) => [counterName(id), id]));

export async function makeSwitch(options: SwitchOptions = {}): Promise<SwitchRig> {
  const senders = options.senders ?? 4;
  const specs = options.peers ?? [{}];
  const memory = EngineMemory.create({
    workers: options.workers ?? 1,
    peers: options.memory?.peers ?? 64,
    routeNodes: 64,
    networks: VNIS.length,
    macs: options.memory?.macs ?? 4096,
    neighbours: options.memory?.neighbours ?? 1024,
    statics: options.memory?.statics ?? 256,
    senders: Math.max(senders, 1),
  });
  const addresses = specs.map((spec, i) => address(spec.address ?? `192.168.77.${i + 2}`));
  const tables = new Tables(memory, () => {});
  const refs = VNIS.map((_, network) =>
    specs.map((spec, i) =>
      (spec.networks ?? [0, 1]).includes(network)
        ? tables.addPeer({ address: addresses[i], port: PORT, mtu: spec.mtu ?? FRAME, ecn: true, network })
        : 0,
    ),
  );
  await tables.commit();
  const names = addresses.map((bytes) => socketAddress(bytes, PORT));
  const byName = new Map(names.map((name, i) => [Buffer.from(name).toString('hex'), i]));
  const settings: EngineSettings = {
    sourceCheck: 'peer',
    offloads: ALL_OFFLOADS,
    maxSegments: 128,
    mtu: MTU,
    address4: undefined,
    address6: undefined,
    l2: {
      networks: VNIS.map((vni) => ({ vni, mtu: MTU })),
      age: 300_000,
      macsPerPeer: Math.ceil((options.memory?.macs ?? 4096) / 4),
      floodUnknown: true,
      learning: true,
      floods: true,
      stormLimit: 0,
      ...options.l2,
    },
    ...options.settings,
  };
  const rigs: SwitchRig[] = [];
  const session = options.tapped ? beginCapture(memory) : 0;

  const attach = (worker: number, l2: Partial<SwitchSettings> = {}): SwitchRig => {
    const layout = memory.layout.workers[worker];
    const learning = l2.learning ?? settings.l2?.learning;
    let sent: Sent[] = [];
    let pushed: Pushed[] = [];
    const devices = VNIS.map(() => new MemoryDevice(memory, layout));
    const sockets = [0, 1].map(
      (underlay) => new MemorySocket(memory, layout, sendIndex(memory.options, underlay, 0), options.socket, underlay),
    ) as [MemorySocket, MemorySocket];
    const pools = [0, 1].map((underlay) =>
      Array.from(
        { length: senders },
        (_, s) => new MemorySocket(memory, layout, sendIndex(memory.options, underlay, s), options.socket, underlay),
      ),
    );
    if (options.keep ?? true) {
      devices.forEach((device, network) => {
        device.onPush = (packet) => pushed.push({ ...packet, network });
      });
      [0, 1].forEach((underlay) => {
        sockets[underlay].onSend = (datagram) => sent.push({ ...datagram, underlay, sender: -1 });
        pools[underlay].forEach((socket, sender) => {
          socket.onSend = (datagram) => sent.push({ ...datagram, underlay, sender });
        });
      });
    }
    const tapped = options.tapped ? new Tapped(memory, layout, session) : undefined;
    const wrap = (socket: MemorySocket, underlay: number, sender: number): Socket => {
      const index = sendIndex(memory.options, underlay, Math.max(sender, 0));
      const wrapped = options.wrapSocket?.(socket, underlay, sender) ?? socket;
      return new CheckedSocket(tapped?.socket(wrapped, index, underlay) ?? wrapped, memory, layout, index);
    };
    const engine = new Engine(
      memory,
      worker,
      {
        devices: devices.map((device, network) => {
          const wrapped = options.wrapDevice?.(device, network) ?? device;
          return new CheckedDevice(tapped?.device(wrapped, network) ?? wrapped, layout);
        }),
        sockets: sockets.map((socket, underlay) => wrap(socket, underlay, -1)),
        senders: [
          pools[0].map((socket, sender) => wrap(socket, 0, sender)),
          pools[1].map((socket, sender) => wrap(socket, 1, sender)),
        ],
      },
      { ...settings, l2: settings.l2 && { ...settings.l2, ...l2 } },
    );
    let before = COUNTER_INFOS.map(() => 0);
    const rig: SwitchRig = {
      memory,
      layout,
      devices,
      sockets,
      senders: senders === 0 ? [[sockets[0]], [sockets[1]]] : [pools[0], pools[1]],
      tables,
      engine,
      refs,
      now: 0,
      other: attach,
      name: (i) => names[i],
      take() {
        const taken = { sent, pushed };
        sent = [];
        pushed = [];
        return taken;
      },
      drain() {
        while (engine.turn(rig.now, READY_ALL) > 0);
      },
      out(network, ...frames) {
        devices[network].load(frames);
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
      from: (i, datagrams, outer = {}) => message(names[i], datagrams, outer),
      peerOf: (datagram) => byName.get(Buffer.from(datagram.name).toString('hex')) ?? -1,
      counter(name) {
        const id = IDS.get(name);
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
      learned() {
        const byPeer = new Map<number, number>();
        let macs = 0;
        for (let i = 0; i < memory.layout.macSlots; i++) {
          const ref = memory.i32[((layout.macs + i * MAC_BYTES) >> 2) + MAC_REF];
          if (ref === 0) continue;
          macs++;
          byPeer.set(ref, (byPeer.get(ref) ?? 0) + 1);
        }
        let neighbours = 0;
        for (let i = 0; i < memory.layout.neighbourSlots; i++) {
          if (memory.i32[(layout.neighbours + i * NEIGHBOUR_BYTES) >> 2] !== 0) neighbours++;
        }
        return { macs, neighbours, byPeer };
      },
      audit() {
        if (!memory.intactGuards()) throw new Error('guard bytes were overwritten');
        auditSizes(memory);
        const sums = conservation(memory);
        const [put, got] = [sums.in + sums.made, sums.sent + sums.consumed + sums.dropped];
        if (put !== got) throw new Error(`in + made is ${put}, sent + consumed + dropped is ${got}`);
        const ends = rigs.map((one) => endsOf(one));
        const total = (key: keyof Ends): number => ends.reduce((sum, end) => sum + end[key], 0);
        const answered = rig.counter('outbound.icmp_sent') + rig.counter('outbound.answers_sent');
        const books: readonly (readonly [string, number, number])[] = [
          ['device_pulled', rig.counter('outbound.device_pulled'), total('pulled')],
          ['socket_sent', rig.counter('outbound.socket_sent'), total('sent')],
          ['socket_sent_bytes', rig.counter('outbound.socket_sent_bytes'), total('sentBytes')],
          ['messages_sent', rig.counter('outbound.messages_sent'), total('sentMessages')],
          ['socket_received', rig.counter('inbound.socket_received'), total('received')],
          [
            'device_pushed + icmp_sent + answers_sent',
            rig.counter('inbound.device_pushed') + answered,
            total('pushed'),
          ],
        ];
        for (const [what, mine, theirs] of books) {
          if (mine !== theirs) throw new Error(`${what}: the engine counted ${mine}, the in-memory end ${theirs}`);
        }
        tapped?.check();
        const { macs, neighbours, byPeer } = rig.learned();
        const told = readGauges(memory, worker);
        if (told.macs !== macs || told.neighbours !== neighbours) {
          throw new Error(
            `told of ${told.macs} MACs and ${told.neighbours} neighbours, in the tables ${macs}, ${neighbours}`,
          );
        }
        const most = settings.l2?.macsPerPeer ?? 0;
        if (macs > (memory.options.macs ?? 0)) throw new Error(`${macs} MACs in the table`);
        if (!learning && macs + neighbours > 0)
          throw new Error(`${macs} MACs and ${neighbours} neighbours were learned`);
        if (neighbours > (memory.options.neighbours ?? 0)) throw new Error(`${neighbours} neighbours in the table`);
        for (const [ref, count] of byPeer) {
          if (ref !== -1 && count > most) throw new Error(`${count} MACs of peer ${ref}, ${most} allowed`);
        }
      },
    };
    rigs.push(rig);
    return rig;
  };
  return attach(0);
}

/** What a datagram that was sent carries. Throws unless its VXLAN header is as it must be. */
export const carried = (datagram: OutgoingDatagram): { vni: number; frame: Uint8Array } => decodeVxlan(datagram.bytes);

/** The pieces of message `m` in the send arrays of `index`: byte offset and length. */
export function piecesOf(
  { memory, layout }: Pick<SwitchRig, 'memory' | 'layout'>,
  index: number,
  m: number,
): { at: number; length: number }[] {
  const at = layout.send[index].messages + m * SIZEOF_MMSGHDR;
  const iov = memory.readPointer(at + MSG_IOV);
  return Array.from({ length: memory.i32[(at + MSG_IOVLEN) >> 2] }, (_, p) => ({
    at: memory.readPointer(iov + p * SIZEOF_IOVEC),
    length: memory.i32[((iov + p * SIZEOF_IOVEC) >> 2) + 2],
  }));
}

/** Teaches that a MAC is behind peer `i`, as any frame from there does. What comes of it is thrown away. */
export function hear(rig: SwitchRig, i = 0, network = 0, source = theirMac(i)): void {
  const seen = frame(
    { source, destination: ourMac() },
    { source: their4(i), destination: our4() },
    udp({ payload: pattern(30) }),
  );
  rig.in([rig.from(i, [vxlan(VNIS[network], seen)])], rig.name(i).length === 16 ? 0 : 1);
  rig.take();
  rig.changes();
}

/** Whom each datagram went to, sorted. */
export const receivers = (rig: SwitchRig, sent: readonly Sent[]): number[] =>
  sent.map((one) => rig.peerOf(one)).sort((a, b) => a - b);

/** Says what our own MACs in a network are: the device's, and its bridge's. */
export function setOwnMacs({ memory }: SwitchRig, network: number, device: string, bridge?: string): void {
  writeOwnMacs(memory, network, mac(device), bridge === undefined ? undefined : mac(bridge));
}
