/** Leases of etcd's own kind, which keys are put with and end with. */
import { uptime } from 'node:os';
import type { Clock } from '../host/clock.js';
import type { EtcdClient } from './etcd-client.js';

/** Milliseconds of CLOCK_MONOTONIC, and of a clock that goes on while the machine sleeps; whichever comes first. */
export interface Deadline {
  readonly monotonic: number;
  readonly uptime: number;
}

export interface GrantOptions {
  readonly client: Pick<EtcdClient, 'grant' | 'revoke'>;
  readonly clock: Clock;
  /** Seconds. */
  readonly ttl: number;
}

/** A lease of etcd's, asked for when it is first needed. */
export class Grant {
  readonly #options: GrantOptions;
  readonly #granted: Map<string, Deadline>;
  #taken: { readonly id: string; readonly ends: Deadline } | undefined;
  /** A key may have it, and we were not told. */
  #risked = false;

  /** `granted`: of etcd's leases, those that were asked for and that no key was put with yet. */
  constructor(options: GrantOptions, granted: Map<string, Deadline>) {
    this.#options = options;
    this.#granted = granted;
  }

  async take(): Promise<{ readonly id: string; readonly ends: Deadline }> {
    if (this.#taken) return this.#taken;
    const { client, clock, ttl } = this.#options;
    // From before it was asked for: etcd's own count begins later.
    const [monotonic, awake] = [clock.monotonic(), uptime() * 1000];
    const { id, ttl: granted } = await client.grant(ttl);
    const ends = { monotonic: monotonic + granted * 1000, uptime: awake + granted * 1000 };
    for (const [old, { monotonic: past }] of this.#granted) if (past <= monotonic) this.#granted.delete(old);
    this.#granted.set(id, ends);
    this.#taken = { id, ends };
    return this.#taken;
  }

  /** `write` puts a key with it. */
  async risk<T>(write: () => Promise<T>): Promise<T> {
    this.#risked = true;
    const answer = await write();
    this.#risked = false;
    return answer;
  }

  /** It is ended if nothing has it. To end one that our key has after all would be to delete the key. */
  release(inUse: string | undefined): void {
    if (!this.#taken || this.#risked) return;
    const { id } = this.#taken;
    this.#granted.delete(id);
    if (id !== inUse) this.#options.client.revoke(id).catch(() => {}); // it ends by itself
  }
}
