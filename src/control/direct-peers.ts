/**
 * Peers on our own link, which flannel's DirectRouting reaches without encapsulation. The kernel is asked about each underlay
 * address once, when it is first seen.
 */
import type { EventLog } from './event-log.js';
import { reasonOf } from './reason.js';
import type { Records } from './records.js';

export class DirectPeers {
  /** Underlay addresses, canonical text. */
  readonly addresses = new Set<string>();
  readonly #asked = new Set<string>();
  readonly #query: (addresses: readonly string[]) => Promise<ReadonlySet<string>>;
  readonly #log: EventLog;

  /** `query` gives those of the addresses that are on our link. */
  constructor(query: (addresses: readonly string[]) => Promise<ReadonlySet<string>>, log: EventLog) {
    this.#query = query;
    this.#log = log;
  }

  /** Asks about those that are new. Never rejects: who could not be asked about is reached with encapsulation. */
  async learn(records: Records): Promise<void> {
    const fresh = [...records.values()].map(({ address }) => address).filter((address) => !this.#asked.has(address));
    if (fresh.length === 0) return;
    try {
      for (const address of await this.#query(fresh)) this.addresses.add(address);
      for (const address of fresh) this.#asked.add(address);
    } catch (error) {
      this.#log.warn('direct_routing_unknown', { reason: reasonOf(error) });
    }
  }
}
