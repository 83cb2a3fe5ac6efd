/**
 * The host's ends of the overlay: one TUN in layer 3, in layer 2 a TAP for each network. Each worker has a queue of each. One that
 * somebody deletes is made anew by itself; the others stay as they are.
 */
import { isOurs, markDevice } from './host/device.js';
import { openTun, type Tun } from './io/tun.js';

export interface DeviceWish {
  readonly name: string;
  readonly kind: 'tun' | 'tap';
  /** Gives the open device what it needs from the host; must be repeatable. */
  readonly setUp: () => Promise<void>;
}

export interface DevicesOptions {
  /** By network. */
  readonly wishes: readonly DeviceWish[];
  readonly workers: number;
  /** Wanted offloads (io/offloads.ts). */
  readonly offloads: number;
  readonly signal: AbortSignal;
}

interface Device {
  readonly wish: DeviceWish;
  /** A predecessor left it. */
  reused: boolean;
  tun: Tun | undefined;
  /** Set up, since it was opened last. */
  complete: boolean;
}

export class Devices {
  readonly #options: DevicesOptions;
  readonly #devices: readonly Device[];

  constructor(options: DevicesOptions) {
    this.#options = options;
    this.#devices = options.wishes.map((wish) => ({ wish, reused: false, tun: undefined, complete: false }));
  }

  /**
   * Looks which there are already; `again`: they are our own then, not a predecessor's. Of the names in `replaced`, what is there
   * goes before they are opened. Throws a SetupError: taken by others.
   */
  async find(again: boolean, replaced: readonly string[] = []): Promise<void> {
    for (const device of this.#devices) {
      if (replaced.includes(device.wish.name)) continue;
      device.reused = (await isOurs(device.wish.name, device.wish.kind)) && !again;
    }
  }

  /** By network: a predecessor left it. */
  get reused(): readonly boolean[] {
    return this.#devices.map((device) => device.reused);
  }

  /** Offloads that all open ones have. */
  get offloads(): number {
    return this.#devices.reduce((bits, { tun }) => bits & (tun?.offloads ?? bits), this.#options.offloads);
  }

  /**
   * Opens and sets up those that are not, or that are lost; resolves to descriptors, by worker and network. Rejects with a
   * SetupError, and can be called again then.
   */
  async open(): Promise<readonly (readonly number[])[]> {
    for (const device of this.#devices) {
      if (!device.complete || device.tun?.lost() !== false) await this.#open(device);
    }
    const { workers } = this.#options;
    return Array.from({ length: workers }, (_, worker) => this.#devices.map(({ tun }) => tun?.fds[worker] ?? -1));
  }

  async #open(device: Device): Promise<void> {
    const { workers, offloads, signal } = this.#options;
    const { name, kind, setUp } = device.wish;
    device.complete = false;
    device.tun?.close();
    device.tun = undefined;
    const fresh = !(await isOurs(name, kind));
    signal.throwIfAborted();
    device.tun = openTun({ name, kind, queues: workers, offloads });
    if (fresh) await markDevice(name);
    signal.throwIfAborted();
    device.tun.persist(true);
    await setUp();
    signal.throwIfAborted();
    device.complete = true;
  }

  /** Says which stay when they are closed: all if `keep`, or those of a predecessor if `keepReused`. */
  persist(keep: boolean, keepReused: boolean): void {
    for (const { tun, reused } of this.#devices) tun?.persist(keep || (reused && keepReused));
  }

  close(): void {
    for (const { tun } of this.#devices) tun?.close();
  }
}
