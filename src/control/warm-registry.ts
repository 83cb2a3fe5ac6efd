/**
 * A registry that is remembered: what the real one tells goes through, and is kept in the daemon's state, so that after a
 * restart while the registry is away its last word is in force at once. It is told as what it is, a snapshot with trouble.
 */
import type { NetworkConfig } from './allocation.js';
import type { Cidr } from './cidr.js';
import { type Records, reduceRecords } from './records.js';
import type { Cursor, Registry, RegistryUpdate } from './registry.js';
import type { Remembered, State } from './state.js';

/** Milliseconds. */
const RETRY_EVERY = 1000;
/** A flood of changes may take this part of the time for being remembered. */
const MOST_OF_TIME = 0.1;

export interface WarmOptions<Config = NetworkConfig> {
  readonly inner: Registry;
  readonly state: State<Config>;
  readonly owner: string;
  readonly config: Config;
  readonly subnets: readonly Cidr[];
  /** Milliseconds after which what is remembered is noted to be so still, while it is. */
  readonly confirmEvery: number;
  /** Milliseconds between two saves, at least; default: none. */
  readonly saveEvery?: number;
  /** Start with this, because of `reason`. */
  readonly warm?: { readonly remembered: Remembered<Config>; readonly reason: string };
}

export class WarmRegistry<Config = NetworkConfig> implements Registry {
  readonly name: string;
  readonly #options: WarmOptions<Config>;
  #records: Records = new Map();
  /** The registry has told them, in this run, and has no trouble now. */
  #current = false;
  #unsaved = false;
  /** performance.now() before which nothing is saved, and after which the last save needs to be confirmed. */
  #notBefore = 0;
  #confirmAt = 0;

  constructor(options: WarmOptions<Config>) {
    this.name = options.inner.name;
    this.#options = options;
  }

  async *watch(signal: AbortSignal, cursor?: Cursor): AsyncGenerator<RegistryUpdate> {
    const { inner, warm } = this.#options;
    if (warm && cursor === undefined) {
      const { records, confirmed } = warm.remembered;
      yield { kind: 'snapshot', records, cursor: '', trouble: { reason: warm.reason, since: confirmed } };
    }
    let timer: NodeJS.Timeout | undefined;
    const tick = (): void => {
      clearTimeout(timer);
      timer = setTimeout(tick, this.#see());
      timer.unref();
    };
    tick();
    try {
      for await (const update of inner.watch(signal, cursor || undefined)) {
        const records = reduceRecords(this.#records, update);
        this.#current = update.trouble === undefined;
        // An empty snapshot changes nothing, and is worth remembering all the same.
        if (update.kind === 'snapshot' || records !== this.#records) this.#unsaved = true;
        this.#records = records;
        tick();
        yield update;
      }
    } finally {
      clearTimeout(timer);
      if (this.#unsaved) this.#save();
    }
  }

  /** Saves or confirms what is due; returns in how many milliseconds to look again. */
  #see(): number {
    const now = performance.now();
    if (this.#unsaved && now >= this.#notBefore) this.#save();
    else if (this.#current && !this.#unsaved && now >= this.#confirmAt) {
      this.#options.state.confirm();
      this.#confirmAt = now + this.#options.confirmEvery;
    }
    if (this.#unsaved) return Math.max(1, this.#notBefore - performance.now());
    return this.#current ? Math.max(1, this.#confirmAt - performance.now()) : this.#options.confirmEvery;
  }

  #save(): void {
    const { state, owner, config, subnets, saveEvery = 0 } = this.#options;
    const begun = performance.now();
    this.#unsaved = !state.remember({ owner, config, subnets, records: [...this.#records.values()] });
    const now = performance.now();
    this.#notBefore = now + Math.max(saveEvery, this.#unsaved ? RETRY_EVERY : (now - begun) / MOST_OF_TIME);
    this.#confirmAt = now + this.#options.confirmEvery;
  }
}
