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

const monotonic = (): number => Number(process.hrtime.bigint() / 1_000_000n) | 0;

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
    this.macs = sparing(() => this.#macs());
    this.neighbours = sparing(() => this.#neighbours());
    this.summary = sparing(() => this.#summary());
  }

  async #macs(): Promise<string> {
    const { memory, vnis, age: most } = this.#options;
    const names = this.#names();
    const macs: object[] = [];
    let more = 0;
    for await (const { network, mac, ref, origin, age } of sliced(readMacs(memory, this.#now(), most))) {
      const peer = ref === LOCAL ? null : names.get(ref);
      if (peer === undefined) continue; // it has just left
      if (macs.length === MOST_ENTRIES) more++;
      else macs.push({ vni: vnis[network], mac: macText(mac), peer, origin, ageSeconds: ageOf(age) });
    }
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
    for await (const { network, ref, origin, age = 0 } of sliced(readMacs(memory, now, most))) {
      macs[network][origin === 'static' ? 'static' : ref === LOCAL ? 'local' : 'peer']++;
      oldest[network] = Math.max(oldest[network], seconds(age));
    }
    for await (const { network, origin } of sliced(readNeighbours(memory, now, most))) neighbours[network][origin]++;
    return { macs, neighbours, oldest };
  }

  #names(): Map<number, string> {
    return new Map(Array.from(this.#options.peers(), ({ ref, name }) => [ref, name]));
  }
}

const ageOf = (age: number | undefined): number | null => (age === undefined ? null : seconds(age));

/** Entries between turns of the event loop: some milliseconds' worth. */
const SLICE = 2000;

/** A table of 10^6 entries, in slices, so that no signal, no lease and no scrape waits for all of it. */
async function* sliced<T>(entries: Iterable<T>): AsyncGenerator<T> {
  let slice: T[] = [];
  for (const entry of entries) {
    slice.push(entry);
    if (slice.length < SLICE) continue;
    yield* slice;
    slice = [];
    await setImmediate();
  }
  yield* slice;
}

/**
 * Reading a large table takes its time: its result is given again for ten times as long as that took, and to all who ask
 * meanwhile, so that nobody can take more than a tenth of control's time by asking.
 */
function sparing<T>(read: () => Promise<T>): () => Promise<T> {
  let last: Promise<T> | undefined;
  let until = Number.NEGATIVE_INFINITY;
  return () => {
    const begun = performance.now();
    if (last && begun < until) return last;
    until = Number.POSITIVE_INFINITY;
    last = read().finally(() => {
      const ended = performance.now();
      until = ended + 10 * (ended - begun);
    });
    return last;
  };
}
