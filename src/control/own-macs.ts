/**
 * Keeps workers informed of the MACs that are our own (dataplane/networks.ts). A device gets a new one when it is made anew, and
 * an operator may put it into a bridge at any time; so the kernel is asked every 5 s.
 */
import { writeOwnMacs } from '../dataplane/networks.js';
import type { OwnMacs } from '../host/own-macs.js';
import type { EngineMemory } from '../io/memory.js';
import type { EventLog } from './event-log.js';
import { macText } from './mac.js';
import { reasonOf } from './reason.js';

const ASK_EVERY = 5000;

export interface OwnMacsOptions {
  readonly memory: EngineMemory;
  /** By network. */
  readonly devices: readonly string[];
  readonly query: (devices: readonly string[]) => Promise<(OwnMacs | undefined)[]>;
  /** The MAC (six bytes) that a network's device must have, since the others know us by it; undefined: whatever it has. */
  readonly wanted?: (network: number) => Uint8Array | undefined;
  /** Gives a device anew what it should have. May reject. */
  readonly restore?: (network: number) => Promise<void>;
  readonly log: EventLog;
}

export class OwnMacsWatch {
  readonly #options: OwnMacsOptions;
  readonly #last: (OwnMacs | undefined)[] = [];
  #asking: Promise<void> | undefined;
  #said: string | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: OwnMacsOptions) {
    this.#options = options;
  }

  /** What was last known of a network's device, which may be lost since. */
  last(network: number): OwnMacs | undefined {
    return this.#last[network];
  }

  start(): void {
    this.#timer = setInterval(() => void this.look(), ASK_EVERY);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** Asks and tells, once; a call meanwhile waits for the same answer. Never rejects. */
  look(): Promise<void> {
    this.#asking ??= this.#look().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  async #look(): Promise<void> {
    const { memory, devices, query, wanted, restore, log } = this.#options;
    try {
      for (const [network, own] of (await query(devices)).entries()) {
        if (!own) continue; // lost: workers find that out, and it is looked at again when it is back
        const mac = wanted?.(network) ?? own.mac;
        if (own.mac && mac && macText(own.mac) !== macText(mac)) {
          // udev may do so, or an operator (flannel issue 1155).
          log.warn('device_mac_changed', { device: devices[network], to: macText(own.mac), back: macText(mac) });
          await restore?.(network);
        }
        this.#last[network] = { ...own, mac };
        writeOwnMacs(memory, network, mac, own.bridgeMac);
      }
      this.#said = undefined;
    } catch (error) {
      const reason = reasonOf(error);
      if (reason !== this.#said) log.warn('own_macs_unknown', { reason });
      this.#said = reason;
    }
  }
}
