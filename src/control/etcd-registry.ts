/**
 * etcd as the registry (registry.ts): the leases of a flannel network, listed once and watched from there on.
 *
 * One reader keeps the leases as etcd has them (etcd-leases.ts): a list, then a watch from the revision after it; when the watch
 * breaks, the same from the last revision that was seen; when that was compacted away, or the etcd is another one, a list again.
 * What is told is the difference between the records that were told last and those that are so now, so that a flood of events,
 * a new list and a renewal all come to what they change and no more. Our own lease is kept beside it (etcd-own-lease.ts).
 */
import { posix } from 'node:path';
import type { Cidr } from './cidr.js';
import type { KeyEvent, Listing } from './etcd-client.js';
import { EtcdError } from './etcd-error.js';
import { EtcdLeases, type Own } from './etcd-leases.js';
import { type Acquired, OwnLease, type OwnLeaseOptions } from './etcd-own-lease.js';
import { formatLeaseKey } from './flannel-lease.js';
import type { MacsByFamily } from './membership.js';
import { reasonOf } from './reason.js';
import { type PeerRecord, type Records, sameRecord } from './records.js';
import type { Cursor, Registry, RegistryEvent, RegistryUpdate, Trouble } from './registry.js';
import { Backoff, Bell, sleep, unlessAborted } from './waiting.js';

/** Milliseconds between attempts to reach etcd: it must be found within 5 s after it is back, the attempt's own time included. */
const RETRY = { first: 100, most: 2000 } as const;

/** Milliseconds for which changes are gathered before they are told. */
const TELL_EVERY = 50;

export interface EtcdRegistryOptions extends Omit<OwnLeaseOptions, 'prefix' | 'changed' | 'isCurrent'> {
  /** `/coreos.com/network` */
  readonly prefix: string;
  /** Default: it is. */
  readonly isCurrent?: OwnLeaseOptions['isCurrent'];
}

export class EtcdRegistry implements Registry {
  readonly name: string;
  readonly lease: OwnLease;
  readonly #options: EtcdRegistryOptions;
  readonly #prefix: string;
  readonly #leases: EtcdLeases;
  readonly #bell = new Bell();
  #own: Own | undefined;
  /** As of when the leases are; undefined: they have to be listed. */
  #revision: number | undefined;
  /** The last that was seen, of which etcd. */
  #last: { readonly cluster: string; readonly revision: number } | undefined;
  #trouble: Trouble | undefined;
  #troubleKind: string | undefined;

  constructor(options: EtcdRegistryOptions) {
    const { client, config, prefix, addresses, publicAddresses, log } = options;
    this.name = client.name;
    this.#options = options;
    this.#prefix = subnetsPrefix(prefix);
    const families = [...new Set([...addresses, ...publicAddresses].map(({ family }) => family))];
    this.#leases = new EtcdLeases({ prefix: this.#prefix, config, families, log });
    this.lease = new OwnLease({
      ...options,
      prefix: this.#prefix,
      isCurrent: options.isCurrent ?? (async () => true),
      changed: () => {
        this.#own = undefined;
        this.#bell.ring();
      },
    });
  }

  /** Takes a lease and keeps it. Rejects as OwnLease.acquire. */
  async join(prefer: readonly Cidr[], macs: MacsByFamily): Promise<Acquired> {
    const acquired = await this.lease.acquire(prefer, macs);
    this.#load(acquired.listing);
    this.lease.keep();
    return acquired;
  }

  /** Instead of joining, because etcd is away: these subnets were ours and are in use. */
  assume(subnets: readonly Cidr[], macs: MacsByFamily, reason: string): void {
    this.lease.assume(subnets, macs);
    this.#trouble = { reason };
    this.lease.keep();
  }

  async *watch(signal: AbortSignal, _cursor?: Cursor): AsyncGenerator<RegistryUpdate> {
    // Ended by whatever ends this.
    const ending = new AbortController();
    const end = (): void => ending.abort();
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    const following = this.#follow(ending.signal);
    let told: Records | undefined;
    let troubleTold: string | undefined;
    try {
      while (!signal.aborted) {
        this.#bell.silence();
        const { lease } = this;
        const problem = this.#trouble ?? (lease.trouble === undefined ? undefined : { reason: lease.trouble });
        const trouble = problem && { trouble: problem };
        const cursor = String(this.#last?.revision ?? '');
        const records = this.#last && this.#leases.records(this.#ownNow());
        if (records && !told) {
          yield { kind: 'snapshot', records: [...records.values()], cursor, ...trouble };
        } else if (records && told && records !== told) {
          yield { kind: 'events', events: differences(told, records), cursor, ...trouble };
        } else if (problem?.reason !== troubleTold) {
          yield trouble && !told ? { kind: 'trouble', ...trouble } : { kind: 'events', events: [], cursor, ...trouble };
        }
        troubleTold = problem?.reason;
        told = records ?? told;
        await this.#bell.wait(signal);
        await sleep(TELL_EVERY, signal); // whatever else comes is told with it
      }
    } finally {
      signal.removeEventListener('abort', end);
      end();
      await following;
    }
  }

  async close(): Promise<void> {
    await this.lease.close();
  }

  #ownNow(): Own {
    const { addresses, publicAddresses } = this.#options;
    const { macs, inUse } = this.lease;
    const key = inUse.length > 0 ? formatLeaseKey(inUse) : undefined;
    this.#own ??= { key, subnets: inUse, macs, addresses: [...addresses, ...publicAddresses] };
    return this.#own;
  }

  /** Keeps the leases as etcd has them, until `signal` aborts. */
  async #follow(signal: AbortSignal): Promise<void> {
    const { client } = this.#options;
    const backoff = new Backoff(RETRY.first, RETRY.most);
    while (!signal.aborted) {
      let watching = false;
      try {
        if (this.#revision === undefined) this.#load(await unlessAborted(client.list(this.#prefix), signal));
        const from = (this.#revision ?? 0) + 1;
        for await (const news of client.watch(this.#prefix, from, signal)) {
          if (news.kind === 'events') this.#apply(news.events, news.revision);
          else if (news.kind === 'compacted') this.#revision = undefined;
          else if (news.cluster !== this.#last?.cluster || news.revision < this.#last.revision) {
            this.#revision = undefined; // another etcd; or a member that lags behind: the list will tell
            break;
          } else {
            watching = true;
            backoff.reset();
            this.#setTrouble(undefined);
            this.lease.hurry();
          }
        }
      } catch (error) {
        // A member that goes away is no trouble if another is found at once.
        if (!signal.aborted && !watching) this.#setTrouble(error);
      }
      // Hosts that lost it together do not come back together.
      await sleep(backoff.next() * (0.75 + Math.random() / 2), signal);
    }
  }

  #load({ cluster, revision, keys }: Listing): void {
    const last = this.#last;
    const replaced = last !== undefined && (last.cluster !== cluster || revision < last.revision);
    if (replaced) this.#options.log.warn('registry_replaced', { registry: this.name, effect: 'listed again' });
    this.#leases.load(keys);
    this.#revision = revision;
    this.#last = { cluster, revision };
    const own = this.lease.key;
    this.lease.note(
      keys.find(({ key }) => key === own),
      revision,
      replaced,
    );
    this.#own = undefined;
    this.#bell.ring();
  }

  #apply(events: readonly KeyEvent[], revision: number): void {
    this.#leases.apply(events);
    this.#revision = Math.max(revision, this.#revision ?? 0);
    if (this.#last) this.#last = { ...this.#last, revision: Math.max(revision, this.#last.revision) };
    const own = this.lease.key;
    for (const event of events) {
      if (event.type === 'put' && event.entry.key === own) this.lease.note(event.entry, event.entry.modRevision);
      else if (event.type === 'delete' && event.key === own) this.lease.note(undefined, event.revision);
    }
    this.#bell.ring();
  }

  /** The reason stays what it was when it began, unless it becomes one of another kind: one line an outage. */
  #setTrouble(error: unknown): void {
    if (error === undefined) {
      this.#troubleKind = undefined;
      if (!this.#trouble) return;
      this.#trouble = undefined;
    } else {
      const kind = error instanceof EtcdError ? error.kind : 'other';
      if (this.#trouble && (this.#troubleKind ?? kind) === kind) return;
      this.#troubleKind = kind;
      this.#trouble = { reason: troubleReason(error, this.name), since: this.#trouble?.since ?? Date.now() };
    }
    this.#bell.ring();
  }
}

/** As it is told, without the registry's name before it; of several members, the one that it is about. */
export function troubleReason(error: unknown, name: string): string {
  if (!(error instanceof EtcdError)) return reasonOf(error).replace(`${name}: `, '');
  return name === `etcd ${error.endpoint}` ? error.reason : `${error.endpoint}: ${error.reason}`;
}

/** Keys of `prefix` as Go's path.Join makes them. */
export const keyIn = (prefix: string, name: string): string => posix.join(prefix, name);
export const subnetsPrefix = (prefix: string): string => `${keyIn(prefix, 'subnets')}/`;

/** Deletions come first, so that what moves from one to another has one owner at any time. */
function differences(before: Records, now: Records): RegistryEvent[] {
  const deleted = [...before.keys()].filter((id) => !now.has(id)).map((id) => ({ type: 'delete' as const, id }));
  const put = [...now.values()].filter((record) => !isSame(before.get(record.id), record));
  return [...deleted, ...put.map((record) => ({ type: 'put' as const, record }))];
}

const isSame = (a: PeerRecord | undefined, b: PeerRecord): boolean => a !== undefined && (a === b || sameRecord(a, b));
