/**
 * Records that a new snapshot lacks, kept for a while. When a registry was lost and made anew, its first snapshot has nobody in
 * it but the first who came back; the others come within a second, and nobody should lose a packet for that. What somebody else
 * has got meanwhile goes at once.
 */
import type { PeerRecord } from './records.js';
import type { RegistryEvent } from './registry.js';

export class Lingering {
  readonly #patience: number;
  /** All that is told now, by id. */
  readonly #told = new Map<string, PeerRecord>();
  /** Ids of those that the registry does not know. */
  readonly #lingering = new Set<string>();
  #until = 0;

  /** `known`: what was in force before the registry said anything. `patience` in the unit of every `now`. */
  constructor(known: Iterable<PeerRecord>, patience: number) {
    this.#patience = patience;
    for (const record of known) this.#told.set(record.id, record);
  }

  /** The snapshot, and what lingers. */
  snapshot(records: readonly PeerRecord[], now: number): PeerRecord[] {
    const present = new Set(records.map((record) => record.id));
    const taken = new Set(records.flatMap(claims));
    this.#lingering.clear();
    for (const [id, record] of this.#told) {
      if (present.has(id)) continue;
      if (claims(record).some((claim) => taken.has(claim))) this.#told.delete(id);
      else this.#lingering.add(id);
    }
    this.#until = now + this.#patience;
    for (const record of records) this.#told.set(record.id, record);
    return [...this.#told.values()];
  }

  /** The events, and the end of what lingers in their way or has lingered long enough. */
  events(events: readonly RegistryEvent[], now: number): RegistryEvent[] {
    const all: RegistryEvent[] = [];
    const taken = new Set(events.flatMap((event) => (event.type === 'put' ? claims(event.record) : [])));
    for (const event of events) this.#lingering.delete(event.type === 'put' ? event.record.id : event.id);
    for (const id of this.#lingering) {
      const record = this.#told.get(id);
      if (now < this.#until && record && !claims(record).some((claim) => taken.has(claim))) continue;
      this.#lingering.delete(id);
      all.push({ type: 'delete', id });
    }
    all.push(...events);
    for (const event of all) {
      if (event.type === 'put') this.#told.set(event.record.id, event.record);
      else this.#told.delete(event.id);
    }
    return all;
  }
}

/** What no two records may have in common. */
const claims = (record: PeerRecord): string[] => [record.address, ...record.subnets];
