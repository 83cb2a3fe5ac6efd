/**
 * A third set of books: a capture runs, and what it says is compared with what crossed the devices and sockets, byte by byte, and
 * with the engine's counters. Every packet must be there exactly once on each side that it crossed, in order, with a verdict that
 * the counters confirm.
 */
import { type CaptureWish, writeCaptureFilter } from '../../src/dataplane/capture-filter.js';
import { CaptureRing } from '../../src/dataplane/capture-ring.js';
import { COUNTER_INFOS, IN_MERGED, OUT_NO_PEER, OUT_TOO_BIG } from '../../src/dataplane/counters.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { FORWARDED, SENT, VERDICT_INFOS } from '../../src/dataplane/verdicts.js';
import {
  type CapturedPacket,
  CaptureReader,
  FRAME_END,
  FRAME_HEAD,
  FRAME_PEERS,
  FRAME_RECORDS,
  frameOf,
  jsonFrame,
} from '../../src/inspect/capture-frames.js';
import { MAX_SNAPLEN } from '../../src/io/capture-record.js';
import type { Device, Socket } from '../../src/io/device.js';
import {
  type EngineMemory,
  RECEIVE_CONTROL,
  SIZEOF_IOVEC,
  SIZEOF_MMSGHDR,
  VNET_HEADER,
  type WorkerLayout,
} from '../../src/io/memory.js';
import {
  CMSG_HEADER,
  MSG_CONTROL,
  MSG_CONTROLLEN,
  MSG_IOV,
  MSG_IOVLEN,
  MSG_LEN,
  MSG_NAME,
} from '../../src/io/messages.js';
import * as sys from '../../src/io/syscalls-constants.js';

export const ALL_PLACES = [0, 1, 2, 3];
export const EVERYTHING: CaptureWish = {
  snaplen: MAX_SNAPLEN,
  places: ALL_PLACES,
  verdicts: undefined,
  peers: undefined,
  hosts: undefined,
};

/** What crossed an end, in the words of the record that there must be of it. */
interface Crossed {
  readonly bytes: Uint8Array;
  readonly network?: number;
  readonly segment?: number;
  readonly partial?: boolean;
  /** The other end, port and address, in hexadecimal. */
  readonly name?: string;
  readonly tos?: number;
  /** From which of all sending sockets, as its port in HEAD. */
  readonly ownPort?: number;
}

const placeOf = ({ side, entering }: CapturedPacket): string => `${side} ${entering ? 'in' : 'out'}`;
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const nameText = (name: Uint8Array): string =>
  hex(name[0] === sys.AF_INET ? name.subarray(2, 8) : concatBytes(name.subarray(2, 4), name.subarray(8, 24)));
const concatBytes = (a: Uint8Array, b: Uint8Array): Uint8Array => Buffer.concat([a, b]);

/** Begins a capture of all workers of a memory; returns its number. */
export function beginCapture(memory: EngineMemory, wish: CaptureWish = EVERYTHING): number {
  writeCaptureFilter(memory, wish);
  return new SharedWords(memory).beginCapture();
}

/** By sending socket: of up to 4 workers with 8 each. */
const PORTS = Array.from({ length: 32 }, (_, i) => 50_000 + i);

const HEAD = {
  mode: 'l3',
  devices: [],
  underlay: { interface: 'eth0', mtu: 1500, addresses: [], port: 1, sourcePorts: [PORTS, PORTS] },
  version: 'test',
  clock: { seconds: 0, nanoseconds: 0 },
  snaplen: MAX_SNAPLEN,
  verdicts: VERDICT_INFOS,
};

/** What a worker has captured, as it comes out of the stream. Peers are named by their references. */
export class Captured {
  readonly ring: CaptureRing;
  readonly #session: number;
  readonly #reader = new CaptureReader();
  readonly #chunk = Buffer.alloc(256 * 1024);

  constructor(memory: EngineMemory, layout: WorkerLayout, session: number) {
    this.ring = new CaptureRing(memory, layout);
    this.ring.start();
    this.#session = session;
    for (const _ of this.#reader.read(jsonFrame(FRAME_HEAD, HEAD)));
  }

  /** All that is there; of a writer that does not rest, at most `chunks` of a quarter of a megabyte. */
  take(chunks = Number.POSITIVE_INFINITY): CapturedPacket[] {
    const packets: CapturedPacket[] = [];
    for (let i = 0; i < chunks; i++) {
      const peers: Record<string, object> = {};
      const seen = (ref: number): void => {
        if (ref !== 0) peers[ref] = { name: String(ref), address: '' };
      };
      const bytes = this.ring.take(this.#session, this.#chunk, 0, Number.POSITIVE_INFINITY, seen);
      if (bytes === 0) return packets;
      for (const _ of this.#reader.read(jsonFrame(FRAME_PEERS, peers)));
      for (const item of this.#reader.read(frameOf(FRAME_RECORDS, this.#chunk.subarray(0, bytes)))) {
        if (item.kind === 'packet') packets.push(item.packet);
      }
    }
    return packets;
  }
}

export class Tapped {
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #captured: Captured;
  readonly #before: Float64Array;
  #packets: CapturedPacket[] = [];
  /** What has crossed since the last check. */
  #crossed: Record<string, Crossed[]> = {};
  /** By verdict, how many there have been: of those that entered, and of those that left. */
  readonly #entered = new Map<number, number>();
  readonly #left = new Map<number, number>();
  packets = 0;

  /** `session`: of `beginCapture`, whose wish is EVERYTHING. */
  constructor(memory: EngineMemory, layout: WorkerLayout, session: number) {
    this.#memory = memory;
    this.#layout = layout;
    this.#captured = new Captured(memory, layout, session);
    this.#before = this.#counters();
  }

  #counters(): Float64Array {
    const at = this.#layout.counters >> 3;
    return this.#memory.f64.slice(at, at + COUNTER_INFOS.length);
  }

  #cross(place: string, one: Crossed): void {
    this.#crossed[place] ??= [];
    this.#crossed[place].push(one);
  }

  /** Before the engine goes on: so the ring never fills. */
  #drain(): void {
    this.#packets.push(...this.#captured.take());
  }

  #vnet(at: number): { segment: number; partial: boolean } {
    const { u8 } = this.#memory;
    return { segment: u8[at + 1] === 0 ? 0 : u8[at + 4] + 256 * u8[at + 5], partial: (u8[at] & 1) !== 0 };
  }

  device(device: Device, network: number): Device {
    const { u8 } = this.#memory;
    return {
      pull: (at) => {
        this.#drain();
        const length = device.pull(at);
        if (length >= 0) {
          const bytes = u8.slice(at, at + length);
          this.#cross('device in', { bytes, network, ...this.#vnet(this.#layout.vnetIn) });
        }
        return length;
      },
      push: (at, length) => {
        const bytes = u8.slice(at, at + length);
        const header = this.#vnet(at - VNET_HEADER);
        const result = device.push(at, length);
        if (result >= 0) this.#cross('device out', { bytes, network, ...header });
        return result;
      },
    };
  }

  /** `index`: whose arrays in `layout.send` it sends from. */
  socket(socket: Socket, index: number, underlay: number): Socket {
    return {
      pull: () => {
        this.#drain();
        const messages = socket.pull();
        for (let m = 0; m < messages; m++) this.#received(m, underlay);
        return messages;
      },
      push: (first, count) => {
        const result = socket.push(first, count);
        for (let m = first; m < first + result; m++) this.#sent(index, m, this.#portOf(index, underlay));
        return result;
      },
    };
  }

  /** A message: how it is cut into datagrams is the engine's decision, so only the whole is compared. */
  #received(m: number, underlay: number): void {
    const { u8, i32 } = this.#memory;
    const { receive } = this.#layout;
    const length = i32[(receive.messages + m * SIZEOF_MMSGHDR + MSG_LEN) >> 2];
    const at = receive.buffers + m * receive.stride;
    const name = receive.names + m * 32;
    const control = receive.controls + m * RECEIVE_CONTROL;
    const used = i32[(receive.messages + m * SIZEOF_MMSGHDR + MSG_CONTROLLEN) >> 2];
    let tos = 0;
    for (let offset = 0; offset + CMSG_HEADER < used; ) {
      const word = (control + offset) >> 2;
      const [level, type] = [i32[word + 2], i32[word + 3]];
      if (level === sys.SOL_IP && type === sys.IP_TOS) tos = u8[control + offset + CMSG_HEADER];
      if (level === sys.SOL_IPV6 && type === sys.IPV6_TCLASS) tos = i32[word + 4] & 0xff;
      if (i32[word] < CMSG_HEADER) break;
      offset += (i32[word] + 7) & ~7;
    }
    const full = underlay === 0 ? 16 : 28;
    const text = nameText(u8.slice(name, name + full));
    this.#cross('underlay in', { bytes: u8.slice(at, at + length), name: text, tos });
  }

  #portOf(index: number, underlay: number): number {
    const { senders = 1 } = this.#memory.options;
    const worker = this.#memory.layout.workers.indexOf(this.#layout);
    return PORTS[worker * senders + index - underlay * senders];
  }

  #sent(index: number, m: number, ownPort: number): void {
    const { u8, i32 } = this.#memory;
    const message = this.#layout.send[index].messages + m * SIZEOF_MMSGHDR;
    const iov = this.#memory.readPointer(message + MSG_IOV) >> 2;
    const parts: Uint8Array[] = [];
    for (let p = 0; p < i32[(message + MSG_IOVLEN) >> 2]; p++) {
      const at = this.#memory.readPointer((iov + p * (SIZEOF_IOVEC >> 2)) << 2);
      parts.push(u8.slice(at, at + i32[iov + p * (SIZEOF_IOVEC >> 2) + 2]));
    }
    const bytes = Buffer.concat(parts);
    const control = this.#memory.readPointer(message + MSG_CONTROL);
    let [size, tos] = [bytes.length, 0];
    for (let offset = 0; offset < i32[(message + MSG_CONTROLLEN) >> 2]; ) {
      const word = (control + offset) >> 2;
      if (i32[word + 2] === sys.SOL_UDP) size = i32[word + 4] & 0xffff;
      else tos = i32[word + 4];
      offset += (i32[word] + 7) & ~7;
    }
    const name = this.#memory.readPointer(message + MSG_NAME);
    const text = nameText(u8.slice(name, name + 28));
    for (let at = 0; at < bytes.length; at += size) {
      this.#cross('underlay out', { bytes: bytes.subarray(at, at + size), name: text, tos, ownPort });
    }
  }

  /** Throws unless the capture agrees with what crossed the ends and with the counters. The engine must be idle. */
  check(): void {
    this.#drain();
    const packets = this.#packets;
    const crossed = this.#crossed;
    this.#packets = [];
    this.#crossed = {};
    this.packets += packets.length;
    if (this.#captured.ring.lost > 0) throw new Error(`${this.#captured.ring.lost} packets were lost`);
    for (const packet of packets) {
      const counts = packet.entering ? this.#entered : this.#left;
      counts.set(packet.verdict.verdict, (counts.get(packet.verdict.verdict) ?? 0) + 1);
    }
    const at = (place: string): CapturedPacket[] => packets.filter((packet) => placeOf(packet) === place);
    const sent = (place: string): CapturedPacket[] => at(place).filter(({ verdict }) => verdict.verdict === SENT);
    this.#compare('device in', at('device in'), crossed['device in'] ?? []);
    this.#compareWhole(at('underlay in'), crossed['underlay in'] ?? []);
    this.#compare('device out', sent('device out'), crossed['device out'] ?? []);
    this.#compare('underlay out', sent('underlay out'), crossed['underlay out'] ?? []);
    this.#compareCounters();
  }

  #compare(place: string, packets: readonly CapturedPacket[], crossed: readonly Crossed[]): void {
    if (packets.length !== crossed.length) {
      throw new Error(`${place}: ${packets.length} were captured, ${crossed.length} crossed`);
    }
    packets.forEach((packet, i) => {
      const one = crossed[i];
      const { outer } = packet;
      const same =
        packet.length === one.bytes.length &&
        Buffer.compare(packet.bytes, one.bytes) === 0 &&
        packet.network === one.network &&
        packet.segment === (one.segment ?? 0) &&
        packet.checksumLeft === (one.partial ?? false) &&
        outer?.tos === one.tos &&
        (one.ownPort === undefined || outer?.ownPort === one.ownPort) &&
        (outer === undefined ? undefined : nameOf(outer)) === one.name;
      if (!same)
        throw new Error(`${place}: number ${i} is not what crossed: ${describe(packet)}, not ${describe(one)}`);
    });
  }

  /** Datagrams, one behind the other, are the messages that were received. */
  #compareWhole(packets: readonly CapturedPacket[], crossed: readonly Crossed[]): void {
    let next = 0;
    for (const { bytes, name, tos } of crossed) {
      let at = 0;
      do {
        const packet = packets[next++];
        if (packet?.outer === undefined) throw new Error('underlay in: fewer were captured than crossed');
        const there = bytes.subarray(at, at + packet.length);
        const same = Buffer.compare(packet.bytes, there) === 0 && packet.bytes.length === there.length;
        if (!same || nameOf(packet.outer) !== name || packet.outer.tos !== tos) {
          throw new Error(`underlay in: number ${next - 1} is not what crossed: ${describe(packet)}`);
        }
        at += packet.length;
      } while (at < bytes.length);
    }
    if (next !== packets.length) throw new Error('underlay in: more were captured than crossed');
  }

  #compareCounters(): void {
    const now = this.#counters();
    const moved = (id: number): number => now[id] - this.#before[id];
    COUNTER_INFOS.forEach((info, id) => {
      if ((info.role !== 'dropped' && info.role !== 'consumed') || id === IN_MERGED) return;
      const found = (this.#entered.get(id) ?? 0) + (this.#left.get(id) ?? 0);
      // A flood that finds nobody drops every segment of its super-packet, which came in as one.
      const least = id === OUT_NO_PEER ? Math.min(found, moved(id)) : moved(id);
      if (found !== least || (found === 0) !== (moved(id) === 0)) {
        throw new Error(`${info.direction}.${info.name}: ${found} were captured, ${moved(id)} counted`);
      }
    });
    const total = (role: string): number =>
      COUNTER_INFOS.reduce((sum, info, id) => sum + (info.role === role ? moved(id) : 0), 0);
    const all = (counts: ReadonlyMap<number, number>): number => [...counts.values()].reduce((sum, n) => sum + n, 0);
    if (all(this.#entered) !== total('in')) {
      throw new Error(`${all(this.#entered)} entered the capture, ${total('in')} the engine`);
    }
    if ((this.#left.get(SENT) ?? 0) !== total('sent')) {
      throw new Error(`${this.#left.get(SENT)} left in the capture, the engine counted ${total('sent')}`);
    }
    if ((this.#left.get(FORWARDED) ?? 0) > 0 || (this.#entered.get(SENT) ?? 0) > 0) throw new Error('sides mixed up');
    for (const verdict of this.#left.keys()) {
      const name = VERDICT_INFOS.find((info) => info.verdict === verdict)?.name ?? '';
      if (verdict !== OUT_TOO_BIG && !['sent', ...LEAVING].includes(name)) throw new Error(`${name} cannot leave`);
    }
  }
}

const LEAVING = ['socket_refused', 'path_mtu', 'device_refused', 'icmp_refused', 'answers_refused'];

const nameOf = ({ address, port }: NonNullable<CapturedPacket['outer']>): string =>
  hex(concatBytes(Uint8Array.of(port >> 8, port & 255), address));

function describe(one: CapturedPacket | Crossed): string {
  const { bytes, ...rest } = one;
  return `${JSON.stringify(rest)} ${hex(bytes.subarray(0, 60))} (${bytes.length})`;
}

/** The end of a stream, for tests of readers. */
export const endFrame = (captured: number, lost: number): Buffer =>
  jsonFrame(FRAME_END, { captured, lost, reason: 'count' });
