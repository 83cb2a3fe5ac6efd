/**
 * What layer 2 knows, for people: which MAC and which IP address is behind which peer, with age and origin, as JSON for /v1/macs
 * and /v1/neighbours; and in numbers for /metrics. All is read from the shared memory when it is asked for.
 */
import { setImmediate } from 'node:timers/promises';
import { textOf } from '../control/cidr.js';
import { macText } from '../control/mac.js';
import { readMacs, readNeighbours } from '../dataplane/forwarding.js';
import { LOCAL } from '../dataplane/macs.js';
import type { EngineMemory } from '../io/memory.js';
import { sparing } from './sparing.js';

/** Entries of one answer; the rest is only counted. */
export const MOST_ENTRIES = 10_000;

/** A peer in one of our networks. */
export interface PeerInForce {
  readonly name: string;
  /** Its reference in the tables. */
  readonly ref: number;
}

export interface TablesOptions {
  readonly memory: EngineMemory;
  /** By network; empty in layer 3. */
  readonly vnis: readonly number[];
  readonly peers: () => Iterable<PeerInForce>;
  /** Milliseconds after which what was learned is not used any more, even while it is still in the tables. */
  readonly age: number;
  /** Milliseconds of CLOCK_MONOTONIC wrapped to 32 bits, as workers have it; tests give their own. */
  readonly now?: () => number;
}

/** How many there are, by network. */
export interface TablesSummary {
  readonly macs: readonly Readonly<Record<'local' | 'peer' | 'static', number>>[];
  readonly neighbours: readonly Readonly<Record<'learned' | 'static', number>>[];
  /** Seconds since the learned MAC that was quiet for longest was seen. */
  readonly oldest: readonly number[];
}

/** Milliseconds of CLOCK_MONOTONIC wrapped to 32 bits. */
export const monotonic = (): number => Number(process.hrtime.bigint() / 1_000_000n) | 0;

/** Milliseconds to seconds. */
const seconds = (age: number): number => Math.max(0, age) / 1000;

export class ForwardingTables {
  readonly #options: TablesOptions;
  readonly #now: () => number;
  /** JSON, as text. */
  readonly macs: () => Promise<string>;
  readonly neighbours: () => Promise<string>;
  readonly summary: () => Promise<TablesSummary>;

  constructor(options: TablesOptions) {
    this.#options = options;
    this.#now = options.now ?? monotonic;
    // Reading a large table takes its time: nobody can take more than a tenth of control's by asking.
    this.macs = sparing(() => this.#macs(), 10);
    this.neighbours = sparing(() => this.#neighbours(), 10);
    this.summary = sparing(() => this.#summary(), 10);
  }

  async #macs(): Promise<string> {
    const { memory, vnis, age: most } = this.#options;
    const names = this.#names();
    const macs: object[] = [];
    let more = 0;
    await inSlices(readMacs(memory, this.#now(), most), ({ network, mac, ref, origin, age }) => {
      const peer = ref === LOCAL ? null : names.get(ref);
      if (peer === undefined) return; // it has just left
      if (macs.length === MOST_ENTRIES) more++;
      else macs.push({ vni: vnis[network], mac: macText(mac), peer, origin, ageSeconds: ageOf(age) });
    });
    return JSON.stringify({ macs, more });
  }

  async #neighbours(): Promise<string> {
    const { memory, vnis, age: most } = this.#options;
    const neighbours: object[] = [];
    let more = 0;
    for (const { network, vlans, address, mac, router = null, origin, age } of readNeighbours(
      memory,
      this.#now(),
      most,
    )) {
      if (neighbours.length === MOST_ENTRIES) more++;
      else {
        const [text, ageSeconds] = [textOf(address), ageOf(age)];
        const where = { vni: vnis[network], ...(vlans.length > 0 ? { vlans } : {}) };
        neighbours.push({ ...where, address: text, mac: macText(mac), router, origin, ageSeconds });
      }
    }
    return JSON.stringify({ neighbours, more });
  }

  async #summary(): Promise<TablesSummary> {
    const { memory, vnis, age: most } = this.#options;
    const now = this.#now();
    const macs = vnis.map(() => ({ local: 0, peer: 0, static: 0 }));
    const neighbours = vnis.map(() => ({ learned: 0, static: 0 }));
    const oldest = vnis.map(() => 0);
    await inSlices(readMacs(memory, now, most), ({ network, ref, origin, age = 0 }) => {
      macs[network][origin === 'static' ? 'static' : ref === LOCAL ? 'local' : 'peer']++;
      oldest[network] = Math.max(oldest[network], seconds(age));
    });
    await inSlices(readNeighbours(memory, now, most), ({ network, origin }) => {
      neighbours[network][origin]++;
    });
    return { macs, neighbours, oldest };
  }

  #names(): Map<number, string> {
    return new Map(Array.from(this.#options.peers(), ({ ref, name }) => [ref, name]));
  }
}

const ageOf = (age: number | undefined): number | null => (age === undefined ? null : seconds(age));

/** Entries between turns of the event loop: some milliseconds' worth. */
const SLICE = 2000;

/**
 * A table of 10^6 entries, in slices, so that no signal, no lease and no scrape waits for all of it. Slices, since to wait for each
 * entry by itself would be most of the work.
 */
export async function inSlices<T>(entries: Iterable<T>, take: (entry: T) => void): Promise<void> {
  let left = SLICE;
  for (const entry of entries) {
    take(entry);
    if (--left > 0) continue;
    left = SLICE;
    await setImmediate();
  }
}
