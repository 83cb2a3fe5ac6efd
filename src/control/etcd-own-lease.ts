/**
 * This host's own lease in etcd: how it is had, kept, and lost (flannel.md 4; pkg/subnet/etcd/local_manager.go).
 *
 *   acquire   one with our public IP is taken over, or deleted if the network is another now; else the subnet that we had
 *             before, if it is free; else a random one of the first free ones
 *   renew     a new grant of etcd's, and the key put with it, only if nobody has changed the key since we looked: a key that was
 *             deleted stays deleted, and one that has no time to live (a reservation) gets none
 *   lost      deleted before its time: revoked, we stop; after it: acquired again, and if it is another subnet now, moved
 *
 * All that is written is guarded by the key's revision and answered with the list as it is then, so that after a conflict the
 * next choice is made of what is so, without asking. Each conflict makes the choice wider: hosts that start together draw
 * apart in a few rounds.
 *
 * Time is the monotonic clock's, or that of the machine where it slept meanwhile; never etcd's word alone.
 */
import { randomBytes } from 'node:crypto';
import { uptime } from 'node:os';
import type { Clock } from '../host/clock.js';
import { SetupError } from '../io/setup-error.js';
import { CHOICE, chooseSubnets, fits } from './allocation.js';
import type { BackendType } from './backend.js';
import { type Address, type Cidr, cidrOf } from './cidr.js';
import { type EtcdClient, type KeyValue, type Listing, NO_LEASE } from './etcd-client.js';
import { type Deadline, Grant } from './etcd-grant.js';
import { addressesIn, publicIpOf, takenIn } from './etcd-taken.js';
import type { EventLog } from './event-log.js';
import type { FlannelConfig } from './flannel-config.js';
import { formatLease, formatLeaseKey, type LeaseAttributes, parseLease, parseLeaseKey } from './flannel-lease.js';
import { macText } from './mac.js';
import type { MacsByFamily } from './membership.js';
import type { PrefixSet } from './prefix-set.js';
import { reasonOf } from './reason.js';
import { Bell, sleep } from './waiting.js';

export interface OwnLeaseTimes {
  /** Milliseconds after which a renewal that failed is tried again, at most. */
  readonly retry: number;
  /** Milliseconds between looks at the clock. */
  readonly look: number;
}

const TIMES: OwnLeaseTimes = { retry: 60_000, look: 60_000 };

/** Milliseconds after our value was written, before it is because somebody has written another. */
const PUT_BACK_EVERY = 60_000;
/** Milliseconds between looks for a configuration that is gone. */
const CONFIG_EVERY = 1000;

/** How often a subnet is chosen before something is thought to be wrong. */
const ROUNDS = 100;
/** Backends by which flannel's hosts reach each other over IPv6 too. */
const TELL_BOTH: ReadonlySet<string> = new Set<BackendType>(['vxlan', 'host-gw']);
/** How much wider the choice is after a conflict. */
const WIDER = 4;

export interface OwnLeaseOptions {
  readonly client: EtcdClient;
  /** Of the keys: `/coreos.com/network/subnets/`. */
  readonly prefix: string;
  readonly config: FlannelConfig;
  /** That our sockets are bound to. */
  readonly addresses: readonly Address[];
  /** As others know us. */
  readonly publicAddresses: readonly Address[];
  /** Seconds. */
  readonly ttl: number;
  /** Seconds before its end at which the lease is renewed. */
  readonly renewMargin: number;
  readonly clock: Clock;
  readonly log: EventLog;
  /** Something of `held` or `trouble` has changed. */
  readonly changed: () => void;
  /** Our subnets are others now. */
  readonly moved: () => void;
  readonly revoked: () => void;
  /** Asked before a lost lease is acquired again: false, the configuration is another now. Rejects if that cannot be told. */
  readonly isCurrent: () => Promise<boolean>;
  readonly times?: Partial<OwnLeaseTimes> | undefined;
  /** Numbers from 0 to below 1. */
  readonly random?: (() => number) | undefined;
}

export interface Held {
  readonly name: string;
  readonly subnets: readonly Cidr[];
  readonly createRevision: number;
  readonly modRevision: number;
  /** NO_LEASE: a reservation. */
  readonly lease: string;
  /** When it ends if it is not renewed; undefined: never. */
  readonly ends: Deadline | undefined;
}

export interface Acquired {
  readonly held: Held;
  readonly how: 'new' | 'reused' | 'taken over';
  /** All leases, as of then. */
  readonly listing: Listing;
}

export class OwnLease {
  readonly #options: OwnLeaseOptions;
  readonly #times: OwnLeaseTimes;
  readonly #closed = new AbortController();
  readonly #bell = new Bell();
  #held: Held | undefined;
  #macs: MacsByFamily | undefined;
  /** What we want back when we have lost it. */
  #inUse: readonly Cidr[] = [];
  /** Of etcd's leases, those that we have asked for and not yet put a key with. */
  readonly #granted = new Map<string, Deadline>();
  #trouble: string | undefined;
  /** The log says that it is not kept. */
  #said = false;
  #dueAt = 0;
  #writtenAt = Number.NEGATIVE_INFINITY;
  #ended = false;
  #saidNotReused = false;
  #over = false;
  #keeping: Promise<void> = Promise.resolve();

  constructor(options: OwnLeaseOptions) {
    this.#options = options;
    this.#times = { ...TIMES, ...options.times };
  }

  get held(): Held | undefined {
    return this.#held;
  }

  /** The subnets that are in use here, whether we have the lease or not. */
  get inUse(): readonly Cidr[] {
    return this.#inUse;
  }

  /** Of our VXLAN devices. */
  get macs(): MacsByFamily {
    return this.#macs ?? {};
  }

  /** Why it is not kept; undefined while it is. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  /** Until it ends: undefined for a reservation, 0 while we have none. */
  get secondsLeft(): number | undefined {
    if (!this.#held) return 0;
    return this.#held.ends && (this.#held.ends.monotonic - this.#options.clock.monotonic()) / 1000;
  }

  /**
   * Takes a lease. `macs`: of our devices, where they are known. Rejects with an EtcdError, or a SetupError: there is no subnet left.
   */
  async acquire(prefer: readonly Cidr[], macs: MacsByFamily): Promise<Acquired> {
    const { client, prefix } = this.#options;
    let listing: Listing = await client.list(prefix);
    const grant = new Grant(this.#options, this.#granted);
    try {
      for (let round = 0; round < ROUNDS; round++) {
        const attempt = await this.#attempt(listing, prefer, macs, grant, CHOICE * WIDER ** round);
        if ('held' in attempt) {
          this.#held = attempt.held;
          if (this.#inUse.length === 0) this.#inUse = attempt.held.subnets;
          this.#ended = false;
          this.#plan();
          return attempt;
        }
        listing = attempt.listing;
      }
    } finally {
      grant.release(this.#held?.lease);
    }
    throw new SetupError(
      'ETCD_RACE',
      `${client.name}: no subnet was left alone for long enough to be taken, in ${ROUNDS} attempts`,
    );
  }

  /** Uses these subnets without a lease, because etcd is away; keeping it will acquire one. */
  assume(subnets: readonly Cidr[], macs: MacsByFamily): void {
    this.#inUse = subnets;
    this.#macs = macs;
  }

  /** Keeps it, until `close`. */
  keep(): void {
    this.#keeping = this.#keep();
  }

  /** Does at once what is overdue: etcd is back. */
  hurry(): void {
    if (this.#trouble === undefined && this.#held && this.#now() < this.#dueAt) return;
    this.#setTrouble(undefined); // of an etcd that was away; what is wrong still will be said again
    this.#dueAt = 0;
    this.#bell.ring();
  }

  async close(): Promise<void> {
    this.#over = true;
    this.#closed.abort();
    await this.#keeping;
  }

  /**
   * What etcd says of our key, as of `revision`; undefined: there is none. `replaced`: this is not the etcd that it was, so that nobody
   * has deleted anything.
   */
  note(entry: KeyValue | undefined, revision: number, replaced = false): void {
    const held = this.#held;
    if (!held || this.#over || (!replaced && revision <= held.modRevision)) return;
    if (!entry) this.#lost(replaced);
    else if (replaced || entry.modRevision > held.modRevision) this.#noteChange(held, entry);
  }

  #noteChange(held: Held, { value, lease, createRevision, modRevision }: KeyValue): void {
    const { log } = this.#options;
    const now = { ...held, createRevision, modRevision, lease };
    const granted = this.#granted.get(lease);
    if (granted) this.#hold({ ...now, ends: granted });
    else if (!this.#isOurs(value)) {
      log.error('lease_overwritten', { lease: held.name, by: value });
      this.#lost(true);
    } else if (lease === NO_LEASE) {
      if (held.lease !== NO_LEASE) log.info('lease_reserved', { lease: held.name });
      this.#hold({ ...now, ends: undefined });
      if (value !== this.#value()) this.#putBack();
    } else {
      if (lease !== held.lease) {
        log.warn('lease_overwritten', { lease: held.name, reason: 'has another daemon our public IP?' });
      }
      this.#hold({ ...now, ends: held.ends });
      // What was a reservation has a time to live now, and we do not know how long.
      if (held.lease === NO_LEASE || value !== this.#value()) this.#putBack();
    }
  }

  /** Our own value is written again, with a lease or without as it is now; two daemons with one public IP must not fight. */
  #putBack(): void {
    this.#dueAt = Math.min(this.#dueAt, Math.max(this.#now(), this.#writtenAt + PUT_BACK_EVERY));
    this.#bell.ring();
  }

  /** The key of the lease that is ours, in full; undefined while we have none. */
  get key(): string | undefined {
    return this.#held && this.#options.prefix + this.#held.name;
  }

  #now(): number {
    return this.#options.clock.monotonic();
  }

  #hold(held: Held): void {
    this.#held = held;
    this.#plan();
    this.#bell.ring();
  }

  /** When it is renewed: with a short life after a third of it. */
  #plan(): void {
    const { ttl, renewMargin } = this.#options;
    const margin = renewMargin < ttl ? renewMargin : (ttl * 2) / 3;
    const ends = this.#held?.ends;
    this.#dueAt = ends ? ends.monotonic - margin * 1000 : Number.POSITIVE_INFINITY;
  }

  #isPast({ monotonic, uptime: awake }: Deadline): boolean {
    return this.#now() >= monotonic || uptime() * 1000 >= awake;
  }

  /** `innocent`: nobody has taken it from us. */
  #lost(innocent: boolean): void {
    const held = this.#held;
    if (!held) return;
    this.#held = undefined;
    this.#options.changed();
    if (innocent || (held.ends && this.#isPast(held.ends))) {
      this.#options.log.warn('lease_lost', { lease: held.name, effect: 'acquired again' });
      this.#dueAt = 0;
      this.#bell.ring();
      return;
    }
    this.#over = true;
    this.#bell.ring();
    const reason = 'Lease has been revoked. Shutting down daemon.';
    this.#options.log.error('lease_revoked', { lease: held.name, reason });
    this.#options.revoked();
  }

  /** Until the bell rings, or `close`. */
  async #pause(milliseconds: number): Promise<void> {
    const { signal } = this.#closed;
    const waiting = new AbortController();
    const end = (): void => waiting.abort();
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    await Promise.race([sleep(milliseconds, waiting.signal), this.#bell.wait(waiting.signal)]);
    end();
    signal.removeEventListener('abort', end);
    this.#bell.silence();
  }

  async #keep(): Promise<void> {
    while (!this.#over) {
      await this.#pause(Math.min(this.#times.look, Math.max(0, this.#dueAt - this.#now())));
      if (this.#over) return;
      this.#sayEnd();
      if (this.#now() < this.#dueAt) continue;
      try {
        if (this.#held) await this.#renew(this.#held);
        else await this.#acquireAgain();
        if (this.#said && this.#held && !this.#over) this.#options.log.info('lease_kept', { lease: this.#held.name });
        this.#said = false;
        this.#setTrouble(undefined);
      } catch (error) {
        if (this.#over) return;
        this.#dueAt = this.#now() + this.#retryAfter(error);
        this.#setTrouble(error);
      }
    }
  }

  #retryAfter(error: unknown): number {
    if (error instanceof SetupError && error.code === 'NO_CONFIG') return CONFIG_EVERY;
    return Math.min(this.#times.retry, Math.max(1000, (this.#options.ttl * 1000) / 6));
  }

  /** The reason stays what it was when it began. */
  #setTrouble(error: unknown): void {
    if ((error === undefined) === (this.#trouble === undefined)) return;
    const reason = error === undefined ? undefined : reasonOf(error);
    if (reason !== undefined && !this.#said) {
      const lease = this.#held?.name ?? formatLeaseKey(this.#inUse);
      this.#options.log.warn('lease_not_kept', { lease, reason });
      this.#said = true;
    }
    this.#trouble = reason && `our lease is not kept: ${reason}`;
    this.#options.changed();
  }

  #sayEnd(): void {
    const held = this.#held;
    if (this.#ended || !held?.ends || !this.#isPast(held.ends)) return;
    this.#ended = true;
    this.#options.log.error('lease_ended', {
      lease: held.name,
      effect: 'forwarding goes on; another may be given its subnet',
    });
  }

  async #renew(held: Held): Promise<void> {
    const { client, prefix } = this.#options;
    const grant = new Grant(this.#options, this.#granted);
    try {
      this.#writtenAt = this.#now();
      const reserved = held.lease === NO_LEASE;
      const { id, ends } = reserved ? { id: NO_LEASE, ends: undefined } : await grant.take();
      const key = prefix + held.name;
      const put = { key, at: held.modRevision, value: this.#value(), lease: id, list: prefix };
      const answer = await grant.risk(() => client.write(put));
      const entry = answer.keys.find((one) => one.key === key);
      if (answer.written && entry) {
        this.#ended = false;
        this.#hold({ ...held, modRevision: entry.modRevision, lease: id, ends });
      } else this.note(entry, answer.revision);
    } finally {
      grant.release(this.#held?.lease);
    }
  }

  async #acquireAgain(): Promise<void> {
    const inUse = this.#inUse;
    if (!(await this.#options.isCurrent())) {
      this.#options.log.warn('network_changed', { effect: 'started again' });
      return this.#move();
    }
    const { held } = await this.acquire(inUse, this.macs);
    this.#options.changed();
    const same = held.subnets.length === inUse.length && held.subnets.every(({ text }, i) => text === inUse[i].text);
    this.#options.log.info('lease_acquired_again', { lease: held.name });
    if (same) return;
    this.#options.log.warn('lease_moved', {
      from: inUse.map(({ text }) => text),
      to: held.subnets.map(({ text }) => text),
    });
    this.#move();
  }

  #move(): void {
    this.#over = true;
    this.#options.moved();
  }

  /** One round: had, or the list as it is now. */
  async #attempt(
    listing: Listing,
    prefer: readonly Cidr[],
    macs: MacsByFamily,
    grant: Grant,
    choice: number,
  ): Promise<Acquired | { readonly listing: Listing }> {
    const { client, prefix, config, log } = this.#options;
    const ours = this.#ours(listing);
    const usable = this.#best(
      ours.filter(({ subnets }) => fits(subnets, config)),
      prefer,
    );
    if (!this.#macs) this.#macs = this.#chooseMacs(macs, (usable ?? ours[0])?.attributes.macs ?? {});
    if (usable) return this.#put(usable.entry, usable.subnets, 'taken over', grant);
    const [useless] = ours;
    if (useless) {
      const { key, modRevision } = useless.entry;
      const answer = await client.write({ key, at: modRevision, value: undefined, list: prefix });
      if (answer.written) log.info('lease_deleted', { lease: key.slice(prefix.length), reason: 'not of this network' });
      return { listing: answer };
    }
    const taken = takenIn(listing, prefix);
    this.#keepApart(taken, listing);
    if (fits(prefer, config) && !prefer.some((subnet) => taken.overlaps(subnet))) {
      return this.#put(undefined, prefer, 'reused', grant);
    }
    if (prefer.length > 0) this.#sayNotReused(prefer, listing);
    const chosen = chooseSubnets(
      config,
      (subnet) => taken.overlaps(subnet),
      this.#options.random ?? Math.random,
      choice,
    );
    if (!chosen) {
      const networks = config.pools.map(({ network }) => network.text).join();
      throw new SetupError('EXHAUSTED', `${client.name}: out of subnets: no free one is left in ${networks}`);
    }
    return this.#put(undefined, chosen, 'new', grant);
  }

  /** Of several that are ours: the one in use, else one that somebody has reserved, else the one we had, else the first. */
  #best(ours: readonly Ours[], prefer: readonly Cidr[]): Ours | undefined {
    const of = (subnets: readonly Cidr[]): Ours | undefined => {
      const name = subnets.length > 0 ? formatLeaseKey(subnets) : undefined;
      return ours.find(({ entry }) => entry.key === `${this.#options.prefix}${name}`);
    };
    return of(this.#inUse) ?? ours.find(({ entry }) => entry.lease === NO_LEASE) ?? of(prefer) ?? ours[0];
  }

  /** No subnet of ours may have an underlay address in it, ours or another's. */
  #keepApart(taken: PrefixSet, { keys }: Listing): void {
    const { addresses, publicAddresses } = this.#options;
    const others = keys.flatMap(({ value }) => addressesIn(value));
    for (const { bytes } of [...addresses, ...publicAddresses, ...others]) {
      taken.add(cidrOf(bytes, bytes.length * 8));
    }
  }

  /** Leases with our public IP, as flannel looks for them. */
  #ours({ keys }: Listing): Ours[] {
    const texts = this.#options.publicAddresses.map(({ text }) => text);
    return keys.flatMap((entry) => {
      // Most are not ours, and need not be taken apart to see that; unless something is written in another way.
      const value = entry.value.toLowerCase();
      if (!texts.some((text) => value.includes(text)) && !/\\|::|:0/.test(value)) return [];
      try {
        const subnets = parseLeaseKey(entry.key.slice(this.#options.prefix.length));
        const attributes = parseLease(entry.value);
        return this.#isOurAddress(attributes) ? [{ entry, subnets, attributes }] : [];
      } catch {
        return [];
      }
    });
  }

  #isOurs(value: string): boolean {
    try {
      return this.#isOurAddress(parseLease(value));
    } catch {
      return false;
    }
  }

  #isOurAddress({ publicIp, publicIpv6 }: LeaseAttributes): boolean {
    const { publicAddresses } = this.#options;
    const own = this.#options.config.pools[0].family === 4 ? publicIp : publicIpv6;
    return own !== undefined && publicAddresses.some(({ text }) => text === own.text);
  }

  /** Puts a key that is as it was listed (undefined: not there). */
  async #put(
    before: KeyValue | undefined,
    subnets: readonly Cidr[],
    how: Acquired['how'],
    grant: Grant,
  ): Promise<Acquired | { readonly listing: Listing }> {
    const { client, prefix } = this.#options;
    const name = formatLeaseKey(subnets);
    const key = prefix + name;
    const reserved = before?.lease === NO_LEASE;
    const { id, ends } = reserved ? { id: NO_LEASE, ends: undefined } : await grant.take();
    const value = this.#value();
    const put = { key, at: before?.modRevision ?? 0, value, lease: id, list: prefix };
    const answer = await grant.risk(() => client.write(put));
    const entry = answer.keys.find((one) => one.key === key);
    if (!answer.written || !entry) return { listing: answer };
    if (!before && this.#isLate(entry, subnets, answer)) {
      return { listing: await client.write({ key, at: entry.modRevision, value: undefined, list: prefix }) };
    }
    const { createRevision, modRevision } = entry;
    return { held: { name, subnets, createRevision, modRevision, lease: id, ends }, how, listing: answer };
  }

  /** Somebody has taken one of our subnets before us, under another key: with two families a key is both. */
  #isLate(own: KeyValue, subnets: readonly Cidr[], { keys }: Listing): boolean {
    const before = keys.filter(({ key, createRevision }) => key !== own.key && createRevision < own.createRevision);
    const taken = takenIn({ keys: before }, this.#options.prefix);
    return subnets.some((subnet) => taken.overlaps(subnet));
  }

  #value(): string {
    const { config, publicAddresses } = this.#options;
    const { backend, pools } = config;
    const address = (family: 4 | 6): Address | undefined => {
      const enabled = pools.some((pool) => pool.family === family);
      // flannel's udp tells IPv6 to nobody; alone it must, or nobody could be reached.
      const told = enabled && (family === 4 || pools.length === 1 || TELL_BOTH.has(backend.type));
      return told ? publicAddresses.find((one) => one.family === family) : undefined;
    };
    const plain = backend.type === 'udp' || backend.type === 'alloc';
    return formatLease({
      publicIp: address(4),
      publicIpv6: address(6),
      backendType: plain ? '' : backend.type,
      macs: this.#macs ?? {},
      vni: backend.type === 'vxlan' ? backend.vni : undefined,
    });
  }

  #chooseMacs(given: MacsByFamily, before: MacsByFamily): MacsByFamily {
    const { backend, pools } = this.#options.config;
    if (backend.type !== 'vxlan') return {};
    return Object.fromEntries(pools.map(({ family }) => [family, given[family] ?? before[family] ?? randomMac()]));
  }

  /** As in flannel a subnet belongs to the public IP that its lease names, whatever a file here says. */
  #sayNotReused(prefer: readonly Cidr[], { keys }: Listing): void {
    if (this.#saidNotReused) return;
    this.#saidNotReused = true;
    const { log, prefix, publicAddresses } = this.#options;
    const key = prefix + formatLeaseKey(prefer);
    const value = keys.find((entry) => entry.key === key)?.value;
    const ours = publicAddresses.map(({ text }) => text).join();
    log.warn('subnet_not_reused', {
      subnet: prefer.map(({ text }) => text),
      reason: value ? `its lease is of ${publicIpOf(value)}, and we are ${ours}` : 'not free, or not of this network',
    });
  }
}

/** A lease with our public IP. */
interface Ours {
  readonly entry: KeyValue;
  readonly subnets: readonly Cidr[];
  readonly attributes: LeaseAttributes;
}

/** Locally administered, of one station. */
function randomMac(): string {
  const bytes = randomBytes(6);
  bytes[0] = (bytes[0] & 0xfc) | 2;
  return macText(bytes);
}
