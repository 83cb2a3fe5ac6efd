/**
 * The engine run dry: what would become of a packet, told by the very walks that would decide it, on the tables in force, but with
 * nothing behind it. It has regions of its own (`Layout.dry`), in-memory ends, and shared words that it only reads; so it moves no
 * packet, no counter that anybody sums, no epoch and no table of a worker.
 *
 * What a worker has learned is copied when the walk asks for it: its own tables, which are small, begin each run empty, and count as
 * full as those of the worker that they stand for.
 *
 * It belongs in the thread that commits changes to the tables: a run is over before the next one can begin, so the version that it
 * reads cannot change under it.
 */
import type { Device } from '../io/device.js';
import { DRY, type EngineMemory, sendIndex, type WorkerLayout } from '../io/memory.js';
import { type DevicePacket, MemoryDevice } from '../io/memory-device.js';
import { type IncomingMessage, MemorySocket, type OutgoingDatagram } from '../io/memory-socket.js';
import { COUNTER_INFOS } from './counters.js';
import { Engine, READY_SOCKETS, readyDevice } from './engine.js';
import { readGauges } from './gauges.js';
import { copyMac, countMacsOf, LearnedMacs, MAC_COPY } from './macs.js';
import { copyNeighbour, countNeighboursOf, LearnedNeighbours, NEIGHBOUR_COPY } from './neighbours.js';
import type { PeerRef } from './peers.js';
import type { EngineSettings } from './settings.js';
import { SharedWords } from './shared.js';

/** Reads what the others share, and tells nobody anything. */
class DryWords extends SharedWords {
  override beginTurn(): number {
    return this.activeVersion();
  }

  override setRunning(): void {}

  override refuseOffload(): void {}

  override noteMtuEvent(): void {}
}

interface Limits {
  readonly age: number;
  readonly perPeer: number;
}

/** Entries that one run may copy: a bound that no packet comes near, below what the tables hold. */
const MOST_COPIED = 24;

class DryMacs extends LearnedMacs {
  readonly #memory: EngineMemory;
  readonly #perPeer: number;
  readonly #entry = new Int32Array(MAC_COPY);
  #worker: WorkerLayout;
  #crowded = false;
  #copied = 0;

  constructor(memory: EngineMemory, limits: Limits) {
    super(memory, DRY, limits, undefined);
    this.#memory = memory;
    this.#perPeer = limits.perPeer;
    this.#worker = memory.layout.dry;
  }

  /** Stands for the table of `worker`, which has `used` entries. */
  standFor(worker: WorkerLayout, used: number): void {
    this.restart(used);
    this.#worker = worker;
    this.#crowded = used >= this.#perPeer;
    this.#copied = 0;
  }

  override learn(low: number, high: number, network: number, ref: PeerRef, now: number): void {
    this.#copy(low, high | (network << 16));
    // What earlier runs have counted is forgotten; below the limit for all, nobody can be above his own.
    this.setShare(ref, this.#crowded && ref > 0 ? countMacsOf(this.#memory, this.#worker, ref) : 0);
    super.learn(low, high, network, ref, now);
  }

  override lookup(low: number, high: number, network: number, now: number): PeerRef {
    this.#copy(low, high | (network << 16));
    return super.lookup(low, high, network, now);
  }

  #copy(low: number, key: number): void {
    if (this.#copied === MOST_COPIED || !copyMac(this.#memory, this.#worker, low, key, this.#entry)) return;
    this.#copied++;
    this.adopt(this.#entry);
  }
}

class DryNeighbours extends LearnedNeighbours {
  readonly #memory: EngineMemory;
  readonly #perPeer: number;
  readonly #entry = new Int32Array(NEIGHBOUR_COPY);
  #worker: WorkerLayout;
  #crowded = false;
  #copied = 0;

  constructor(memory: EngineMemory, limits: Limits) {
    super(memory, DRY, limits, undefined);
    this.#memory = memory;
    this.#perPeer = limits.perPeer;
    this.#worker = memory.layout.dry;
  }

  standFor(worker: WorkerLayout, used: number): void {
    this.restart(used);
    this.#worker = worker;
    this.#crowded = used >= this.#perPeer;
    this.#copied = 0;
  }

  override teach(
    w0: number,
    w1: number,
    w2: number,
    w3: number,
    network: number,
    macLow: number,
    macHigh: number,
    flags: number,
    ref: PeerRef,
    now: number,
  ): void {
    this.#copy(w0, w1, w2, w3, network);
    this.setShare(ref, this.#crowded && ref > 0 ? countNeighboursOf(this.#memory, this.#worker, ref) : 0);
    super.teach(w0, w1, w2, w3, network, macLow, macHigh, flags, ref, now);
  }

  override find(w0: number, w1: number, w2: number, w3: number, network: number, now: number): number {
    this.#copy(w0, w1, w2, w3, network);
    return super.find(w0, w1, w2, w3, network, now);
  }

  #copy(w0: number, w1: number, w2: number, w3: number, network: number): void {
    if (this.#copied === MOST_COPIED) return;
    if (!copyNeighbour(this.#memory, this.#worker, w0, w1, w2, w3, network, this.#entry)) return;
    this.#copied++;
    this.adopt(this.#entry);
  }
}

/** What a run has shown. */
export interface DryOutcome {
  /** By how much each counter moved, by its number (counters.ts); those that did not are left out. */
  readonly moved: ReadonlyMap<number, number>;
  /** The datagrams that would leave, the first MOST_KEPT of them, and how many there are. */
  readonly sent: readonly DrySent[];
  readonly sentCount: number;
  /** What would be written to which network's device. */
  readonly pushed: readonly DryPushed[];
}

export interface DrySent extends OutgoingDatagram {
  /** Index of the sending socket, if there are several to an underlay. */
  readonly sender: number;
}

export interface DryPushed extends DevicePacket {
  readonly network: number;
}

/** Datagrams of a run that are kept: a flood may have ten thousand. */
const MOST_KEPT = 64;

/** What goes in: from the device of a network, or into the socket of an underlay (0 IPv4, 1 IPv6). */
export type DryInput =
  | { readonly from: 'device'; readonly network: number; readonly packet: DevicePacket }
  | { readonly from: 'network'; readonly underlay: number; readonly message: IncomingMessage };

export class DryEngine {
  readonly #memory: EngineMemory;
  readonly #engine: Engine;
  readonly #macs: DryMacs | undefined;
  readonly #neighbours: DryNeighbours | undefined;
  readonly #devices: readonly MemoryDevice[];
  readonly #receivers: readonly (MemorySocket | undefined)[];
  readonly #senders: readonly { readonly socket: MemorySocket; readonly sender: number }[];
  #sent: DrySent[] = [];
  #pushed: DryPushed[] = [];

  /** `underlays`: which there are sockets of. Takes some megabytes of the memory into use. */
  constructor(memory: EngineMemory, settings: EngineSettings, underlays: readonly [boolean, boolean]) {
    const layout = memory.layout.dry;
    const { l2 } = settings;
    this.#memory = memory;
    this.#devices = Array.from({ length: l2?.networks.length ?? 1 }, (_, network) => {
      const device = new MemoryDevice(memory, layout);
      device.onPush = (packet) => this.#pushed.push({ ...packet, network });
      return device;
    });
    const { senders = 1 } = memory.options;
    const pools = underlays.map((there, underlay) =>
      Array.from({ length: there ? senders : 0 }, (_, sender) => {
        const index = sendIndex(memory.options, underlay, sender);
        return new MemorySocket(memory, layout, index, { maxSegments: settings.maxSegments }, underlay);
      }),
    );
    this.#receivers = underlays.map((_, underlay) => pools[underlay].at(0));
    this.#senders = pools.flatMap((pool) => pool.map((socket, sender) => ({ socket, sender })));
    const limits = l2 && { age: l2.age, perPeer: l2.macsPerPeer };
    if (l2?.learning && limits) {
      this.#macs = new DryMacs(memory, limits);
      this.#neighbours = new DryNeighbours(memory, limits);
    }
    const learned = this.#macs && this.#neighbours && { macs: this.#macs, neighbours: this.#neighbours };
    const devices: readonly Device[] = this.#devices;
    this.#engine = new Engine(memory, DRY, { devices, sockets: this.#receivers, senders: pools }, settings, {
      shared: new DryWords(memory),
      learned,
    });
  }

  /** One packet, as `worker` would have it at `now` (its clock, milliseconds). */
  run(input: DryInput, worker: number, now: number): DryOutcome {
    const { f64, layout } = this.#memory;
    const counters = layout.dry.counters >> 3;
    this.#standFor(worker);
    f64.fill(0, counters, counters + COUNTER_INFOS.length);
    this.#sent = [];
    this.#pushed = [];
    this.#keep(true);
    const before = this.#sentCount();
    this.#engine.rest(now);
    this.#engine.turn(now, this.#put(input));
    const moved = new Map<number, number>();
    for (let id = 0; id < COUNTER_INFOS.length; id++) if (f64[counters + id] > 0) moved.set(id, f64[counters + id]);
    return { moved, sent: this.#sent, sentCount: this.#sentCount() - before, pushed: this.#pushed };
  }

  #sentCount(): number {
    return this.#senders.reduce((sum, { socket }) => sum + socket.sent, 0);
  }

  #standFor(worker: number): void {
    const layout = this.#memory.layout.workers[worker];
    if (this.#macs === undefined) return;
    const { macs, neighbours } = readGauges(this.#memory, worker);
    this.#macs.standFor(layout, macs);
    this.#neighbours?.standFor(layout, neighbours);
  }

  /** Gives it what it is to read; returns what its turn is to look at. */
  #put(input: DryInput): number {
    for (const device of this.#devices) device.load([]);
    for (const socket of this.#receivers) socket?.load([]);
    if (input.from === 'device') {
      this.#devices[input.network].load([input.packet]);
      return readyDevice(input.network);
    }
    this.#receivers[input.underlay]?.load([input.message]);
    return READY_SOCKETS[input.underlay];
  }

  /** Whether datagrams are kept; they are counted in any case. */
  #keep(kept: boolean): void {
    for (const { socket, sender } of this.#senders) {
      socket.onSend = kept ? (datagram) => this.#took({ ...datagram, sender }) : undefined;
    }
  }

  #took(datagram: DrySent): void {
    if (this.#sent.push(datagram) === MOST_KEPT) this.#keep(false);
  }
}
