/**
 * Peers on our own links, which flannel's DirectRouting reaches without encapsulation. The kernel is asked about each underlay
 * address until it knows a way there.
 */
import type { Path } from '../host/routes.js';
import type { EventLog } from './event-log.js';
import { reasonOf } from './reason.js';
import type { Records } from './records.js';

export class DirectPeers {
  /** The device that leads there, by underlay address, canonical text. */
  readonly devices = new Map<string, string>();
  readonly #answered = new Set<string>();
  readonly #query: (addresses: readonly string[]) => Promise<readonly Path[]>;
  readonly #log: EventLog;

  constructor(query: (addresses: readonly string[]) => Promise<readonly Path[]>, log: EventLog) {
    this.#query = query;
    this.#log = log;
  }

  /** Asks about those that are new. Never rejects: who is not answered for is reached with encapsulation. */
  async learn(records: Records): Promise<void> {
    const fresh = [...records.values()].map(({ address }) => address).filter((address) => !this.#answered.has(address));
    if (fresh.length === 0) return;
    try {
      for (const { address, device, onLink } of await this.#query(fresh)) {
        this.#answered.add(address);
        if (onLink) this.devices.set(address, device);
      }
    } catch (error) {
      this.#log.warn('direct_routing_unknown', { reason: reasonOf(error) });
    }
  }
}
