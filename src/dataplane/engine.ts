/**
 * One worker's engine: both walks on one device and up to two sockets. It knows no thread and no clock, so tests and
 * benchmarks drive it as the worker does.
 */
import type { Device, Socket } from '../io/device.js';
import { loadKernels } from '../io/kernels.js';
import type { EngineMemory } from '../io/memory.js';
import { IcmpErrors } from './icmp-errors.js';
import { Inbound } from './inbound.js';
import { Outbound } from './outbound.js';
import { Outbox } from './outbox.js';
import type { EngineSettings } from './settings.js';
import { SharedWords } from './shared.js';

/** Bytes one socket may bring in a turn before the device has its turn, which is bounded by packets. */
const TURN_BYTES = 1 << 20;

/** What a turn looks at, as poll found it. */
export const READY_DEVICE = 1;
export const READY_SOCKETS: readonly number[] = [2, 4];
export const READY_ALL = 7;

export class Engine {
  readonly #shared: SharedWords;
  readonly #worker: number;
  readonly #sockets: readonly (Socket | undefined)[];
  readonly #outbound: Outbound;
  readonly #inbound: Inbound;
  readonly #icmp: IcmpErrors;

  /** `sockets` by underlay family: IPv4 first, IPv6 second. */
  constructor(
    memory: EngineMemory,
    worker: number,
    device: Device,
    sockets: readonly (Socket | undefined)[],
    settings: EngineSettings,
  ) {
    const layout = memory.layout.workers[worker];
    const kernels = loadKernels(memory);
    const view = new DataView(memory.memory.buffer);
    this.#shared = new SharedWords(memory);
    this.#worker = worker;
    this.#sockets = sockets;
    this.#icmp = new IcmpErrors(memory, layout, kernels, device, view, settings);
    const outboxes = sockets.map((socket, underlay) =>
      socket ? new Outbox(memory, layout, underlay, socket, this.#shared, settings.maxSegments) : undefined,
    );
    this.#outbound = new Outbound(memory, layout, kernels, device, outboxes, this.#icmp, view);
    this.#inbound = new Inbound(memory, layout, kernels, device, this.#shared, view, settings);
  }

  /** READY_SOCKETS bits of the full sockets: poll those for POLLOUT, and the device not at all while there is one. */
  get blocked(): number {
    return this.#outbound.blocked << 1; // underlay i is READY_SOCKETS[i], 2 << i
  }

  /** True after a read found that the device is gone (deleted under us). */
  get deviceLost(): boolean {
    return this.#outbound.deviceLost;
  }

  /** A turn that touches no packet: control learns that the tables in use are the active ones. */
  pause(): void {
    this.#shared.beginTurn(this.#worker);
  }

  /**
   * One turn: inbound first, then outbound, so that the acknowledgements which the host answers with leave in the same pass
   * (hot-path.md 4). `now` in milliseconds; `ready`: READY_* bits of what may have something. Returns the bytes moved.
   */
  turn(now: number, ready: number): number {
    const version = this.#shared.beginTurn(this.#worker);
    this.#icmp.tick(now);
    this.#inbound.useTables(version);
    this.#outbound.useTables(version);
    let bytes = 0;
    for (let i = 0; i < this.#sockets.length; i++) {
      const socket = this.#sockets[i];
      if (socket !== undefined && ready & READY_SOCKETS[i]) bytes += this.#inbound.run(socket, i, TURN_BYTES);
    }
    if (bytes > 0 || ready & READY_DEVICE || this.#outbound.blocked !== 0) bytes += this.#outbound.run();
    return bytes;
  }
}
