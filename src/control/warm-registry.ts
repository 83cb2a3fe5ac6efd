/**
 * A registry that is remembered: what the real one tells goes through, and is kept in the daemon's state, so that after a
 * restart while the registry is away its last word is in force at once. It is told as what it is, a snapshot with trouble.
 */
import type { NetworkConfig } from './allocation.js';
import type { Cidr } from './cidr.js';
import { type Records, reduceRecords } from './records.js';
import type { Cursor, Registry, RegistryUpdate } from './registry.js';
import type { Remembered, State } from './state.js';

/** Milliseconds; a flood of changes is remembered this often. */
const REMEMBER_EVERY = 1000;
const CONFIRM_EVERY = 20_000;

export interface WarmOptions {
  readonly inner: Registry;
  readonly state: State;
  readonly config: NetworkConfig;
  readonly subnets: readonly Cidr[];
  /** Start with this, because of `reason`. */
  readonly warm?: { readonly remembered: Remembered; readonly reason: string };
}

export class WarmRegistry implements Registry {
  readonly name: string;
  readonly #options: WarmOptions;
  #records: Records = new Map();
  /** The registry has told them, in this run, and has no trouble now. */
  #current = false;
  #unsaved = false;
  #savedAt = 0;

  constructor(options: WarmOptions) {
    this.name = options.inner.name;
    this.#options = options;
  }

  async *watch(signal: AbortSignal, cursor?: Cursor): AsyncGenerator<RegistryUpdate> {
    const { inner, warm } = this.#options;
    if (warm && cursor === undefined) {
      const { records, confirmed } = warm.remembered;
      yield { kind: 'snapshot', records, cursor: '', trouble: { reason: warm.reason, since: confirmed } };
    }
    const timer = setInterval(() => this.#tick(), REMEMBER_EVERY);
    timer.unref();
    try {
      for await (const update of inner.watch(signal, cursor || undefined)) {
        const records = reduceRecords(this.#records, update);
        this.#current = update.trouble === undefined;
        // An empty snapshot changes nothing, and is worth remembering all the same.
        if (update.kind === 'snapshot' || records !== this.#records) this.#unsaved = true;
        this.#records = records;
        this.#tick();
        yield update;
      }
    } finally {
      clearInterval(timer);
      if (this.#unsaved) this.#save();
    }
  }

  #tick(): void {
    const since = performance.now() - this.#savedAt;
    if (this.#unsaved && (since > REMEMBER_EVERY || this.#savedAt === 0)) this.#save();
    else if (this.#current && !this.#unsaved && since > CONFIRM_EVERY) {
      this.#options.state.confirm();
      this.#savedAt = performance.now();
    }
  }

  #save(): void {
    const { state, config, subnets } = this.#options;
    this.#unsaved = !state.remember({ config, subnets, records: [...this.#records.values()] });
    this.#savedAt = performance.now();
  }
}
