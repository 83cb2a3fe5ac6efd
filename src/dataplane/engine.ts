/**
 * One worker's engine: both walks on its devices and sockets. It knows no thread and no clock, so tests and benchmarks drive it
 * as the worker does.
 */
import type { Device, Socket } from '../io/device.js';
import { loadKernels } from '../io/kernels.js';
import { type EngineMemory, sendIndex, workerLayout } from '../io/memory.js';
import { IcmpErrors } from './icmp-errors.js';
import { Inbound } from './inbound.js';
import { Outbound } from './outbound.js';
import { Outbox } from './outbox.js';
import { Routing } from './routing.js';
import type { EngineSettings } from './settings.js';
import { SharedWords } from './shared.js';
import { type Learned, Switching } from './switching.js';
import { Tap } from './tap.js';

/** Bytes one socket may bring in a turn before the device has its turn, which is bounded by packets. */
const TURN_BYTES = 1 << 20;

/** What a turn looks at, as poll found it. */
export const READY_SOCKETS: readonly number[] = [2, 4];
/** The only device of layer 3, the first of layer 2. */
export const READY_DEVICE = 1;
/** The bit of the device of `network`. */
export const readyDevice = (network: number): number => (network === 0 ? READY_DEVICE : 4 << network);
export const READY_ALL = (1 << 30) - 1;

/** What an engine works on. */
export interface EngineIo {
  /** By network; layer 3 has one. */
  readonly devices: readonly Device[];
  /** By underlay: IPv4 first, IPv6 second. They receive. */
  readonly sockets: readonly (Socket | undefined)[];
  /** By underlay, `options.senders` of them each: sockets that send. None: those that receive. */
  readonly senders?: readonly (readonly Socket[])[];
}

/** What an engine that forwards nothing has instead of a worker's; see dry.ts. */
export interface Instead {
  readonly shared: SharedWords;
  /** Layer 2, where anything is learned. */
  readonly learned: Learned | undefined;
}

export class Engine {
  readonly #shared: SharedWords;
  readonly #worker: number;
  readonly #devices: readonly Device[];
  readonly #sockets: readonly (Socket | undefined)[];
  readonly #outbound: Outbound;
  readonly #inbound: Inbound;
  readonly #icmp: IcmpErrors;
  readonly #switching: Switching | undefined;
  readonly #tap: Tap;
  /** What passes here is nobody's packet. */
  readonly #dry: boolean;

  constructor(memory: EngineMemory, worker: number, io: EngineIo, settings: EngineSettings, instead?: Instead) {
    const { devices, sockets } = io;
    const layout = workerLayout(memory.layout, worker);
    const kernels = loadKernels(memory);
    const view = new DataView(memory.memory.buffer);
    const shared = instead?.shared ?? new SharedWords(memory);
    const tap = new Tap(memory, layout, worker, kernels);
    this.#tap = tap;
    this.#dry = instead !== undefined;
    this.#shared = shared;
    this.#worker = worker;
    this.#devices = devices;
    this.#sockets = sockets;
    this.#icmp = new IcmpErrors(memory, layout, kernels, devices[0], view, settings, tap);
    this.#switching =
      settings.l2 && new Switching(memory, worker, kernels, devices, shared, view, settings.l2, tap, instead?.learned);
    const layer = this.#switching ?? new Routing(memory, layout, this.#icmp, view, settings.sourceCheck === 'strict');
    const outboxes = [0, 1].flatMap((underlay) => {
      const senders: readonly (Socket | undefined)[] = io.senders?.[underlay]?.length
        ? io.senders[underlay]
        : [sockets[underlay]];
      return Array.from({ length: memory.options.senders ?? 1 }, (_, i) => {
        const socket = senders[i];
        const index = sendIndex(memory.options, underlay, i);
        return socket && new Outbox(memory, layout, index, underlay, socket, shared, settings.maxSegments, tap);
      });
    });
    this.#outbound = new Outbound(memory, layout, kernels, layer, outboxes, this.#icmp, view, settings, tap);
    this.#inbound = new Inbound(memory, layout, kernels, layer, devices, shared, view, settings, tap);
  }

  /** Bit set of the outboxes (`sendIndex`) whose socket is full: poll those for POLLOUT, and no device while there is one. */
  get blocked(): number {
    return this.#outbound.blocked;
  }

  /** True after a read found that a device is gone (deleted under us). */
  get deviceLost(): boolean {
    return this.#outbound.deviceLost;
  }

  /** A turn that touches no packet: control learns that the tables in use are the active ones. */
  pause(): void {
    this.#inbound.forgetSender(); // two commits may pass, and the version's number be what it was
    this.#shared.beginTurn(this.#worker);
  }

  /** As if nothing had come for a while: every bucket is full at `now`, and no sender is remembered. */
  rest(now: number): void {
    this.#inbound.forgetSender();
    for (const time of [(now - 10_000) | 0, now]) {
      this.#icmp.tick(time);
      this.#switching?.tick(time);
    }
  }

  /**
   * One turn: inbound first, then outbound, so that the acknowledgements which the host answers with leave in the same pass
   * (hot-path.md 4). `now` in milliseconds; `ready`: READY_* bits of what may have something. Returns the bytes moved.
   */
  turn(now: number, ready: number): number {
    const version = this.#shared.beginTurn(this.#worker);
    if (!this.#dry) this.#tap.beginTurn(this.#shared);
    this.#icmp.tick(now);
    this.#inbound.useTables(version);
    this.#outbound.useTables(version);
    this.#switching?.tick(now);
    let bytes = 0;
    for (let i = 0; i < this.#sockets.length; i++) {
      const socket = this.#sockets[i];
      if (socket !== undefined && ready & READY_SOCKETS[i]) bytes += this.#inbound.run(socket, i, TURN_BYTES);
    }
    const all = bytes > 0 || this.#outbound.blocked !== 0;
    for (let i = 0; i < this.#devices.length; i++) {
      if (all || ready & readyDevice(i)) bytes += this.#outbound.run(this.#devices[i], i);
    }
    return bytes;
  }
}
