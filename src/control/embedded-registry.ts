/**
 * The embedded registry as one daemon uses it: it joins once (opens the store, takes a lease), and from then on one loop keeps
 * the lease, notices what others changed, and finds the registry again after it was away.
 *
 * The gate: packets are forwarded until a deadline that this keeps moving, so that a process which was stopped for longer than
 * its lease forwards nothing with it when it wakes, before any of its code could have looked at the clock. While the registry
 * takes no writes nobody can be given our subnet, so the gate is moved on without a renewal; not so after an oversleep.
 *
 * Ended leases are removed by whoever sees them first, but only after SETTLE without trouble: those that could not renew while
 * the registry was away get their turn before that.
 */
import { join } from 'node:path';
import type { Clock } from '../host/clock.js';
import { FileLock } from '../host/file-lock.js';
import { SetupError } from '../io/setup-error.js';
import type { ConfigWish, NetworkConfig } from './allocation.js';
import type { Address, Cidr } from './cidr.js';
import {
  type Acquired,
  EmbeddedStore,
  type Lease,
  PATIENCE,
  type Position,
  RegistryAway,
  registryName,
} from './embedded-store.js';
import type { EventLog } from './event-log.js';
import { Lingering } from './lingering.js';
import { reasonOf } from './reason.js';
import { makeRecord, type PeerRecord } from './records.js';
import type { Cursor, Registry, RegistryEvent, RegistryUpdate } from './registry.js';
import { sleep } from './waiting.js';

export interface EmbeddedTimes {
  /** Milliseconds between looks at the revision, and at the lease. */
  readonly poll: number;
  /** Before something that failed is tried again. */
  readonly retry: number;
  /** Without trouble, before ended leases of others are removed. */
  readonly settle: number;
}

const TIMES: EmbeddedTimes = { poll: 80, retry: 500, settle: 5000 };

export interface EmbeddedOptions {
  readonly path: string;
  /** What the command line says of the configuration. */
  readonly wish: ConfigWish;
  /** Our underlay addresses; the lease is known by the first. */
  readonly addresses: readonly Address[];
  /** Milliseconds from a renewal to the end of the lease; it is renewed at a third. */
  readonly ttl: number;
  readonly clock: Clock;
  readonly log: EventLog;
  /** Packets may be forwarded until this reading of the clock; called again and again. */
  readonly gate: (until: number) => void;
  /** Our subnets are no longer those that are in use here: start again. */
  readonly moved: () => void;
  readonly times?: Partial<EmbeddedTimes>;
}

export interface Joined {
  readonly config: NetworkConfig;
  readonly subnets: readonly Cidr[];
  readonly how: Acquired['how'];
}

interface Session {
  readonly store: EmbeddedStore;
  readonly config: NetworkConfig;
  readonly hostLock: FileLock;
}

export class EmbeddedRegistry implements Registry {
  readonly name: string;
  readonly #options: EmbeddedOptions;
  readonly #times: EmbeddedTimes;
  readonly #texts: readonly string[];
  #lingering: Lingering;
  #session: Session | undefined;
  /** What is in use here, and what we want back. */
  #subnets: readonly Cidr[] = [];
  #expires = 0;
  #renewAt = 0;
  #gateUntil = 0;
  #trouble: string | undefined;
  /** Of the trouble, or of the start. */
  #lastTrouble = 0;
  #beat: NodeJS.Timeout | undefined;
  /** Leases that are of no use to us, each said once. */
  readonly #said = new Set<string>();

  constructor(options: EmbeddedOptions) {
    this.name = registryName(options.path);
    this.#options = options;
    this.#times = { ...TIMES, ...options.times };
    this.#lingering = new Lingering([], this.#times.settle);
    this.#texts = options.addresses.map((address) => address.text);
  }

  /** Seconds until our lease ends; negative after it, 0 while there is none. */
  get leaseSecondsLeft(): number {
    return this.#expires === 0 ? 0 : (this.#expires - this.#options.clock.monotonic()) / 1000;
  }

  /**
   * Opens the registry and takes a lease: ours of before, else `prefer` if that can be had. `first`: we know of no registry, so
   * it may be made, and is worth a longer wait. Rejects with RegistryAway or another SetupError; after RegistryAway, `assume`
   * lets `watch` go on trying.
   */
  async join(prefer: readonly Cidr[], first: boolean): Promise<Joined> {
    const { config, store } = await this.#open(first);
    this.#subnets = prefer;
    const { subnets, how } = await this.#acquire();
    store.patience = PATIENCE.running;
    this.#subnets = subnets;
    this.#startBeat();
    return { config, subnets, how };
  }

  /**
   * Instead of joining, while the registry is away: these subnets were ours and are in use, and these records are in force.
   * Returns the trouble as it tells it.
   */
  assume(subnets: readonly Cidr[], records: readonly PeerRecord[], trouble: string): string {
    this.#subnets = subnets;
    this.#lingering = new Lingering(records, this.#times.settle);
    const reason = this.#fail(trouble);
    this.#startBeat();
    return reason;
  }

  async *watch(signal: AbortSignal, cursor?: Cursor): AsyncGenerator<RegistryUpdate> {
    let position = parsePosition(cursor);
    let told: string | undefined;
    while (!signal.aborted) {
      await this.#keep();
      const update = this.#read(position);
      const trouble = this.#trouble === undefined ? undefined : { trouble: { reason: this.#trouble } };
      if (update) {
        position = parsePosition(update.cursor);
        yield { ...update, ...trouble };
      } else if (this.#trouble !== told) {
        yield trouble && !position
          ? { kind: 'trouble', ...trouble }
          : { kind: 'events', events: [], cursor: formatPosition(position), ...trouble };
      }
      told = this.#trouble;
      await sleep(this.#times.poll, signal);
    }
  }

  /** Lets go of the registry; the lease stays until it ends by itself. */
  async close(): Promise<void> {
    clearInterval(this.#beat);
    await this.#closeSession();
  }

  /** Sees to the session and the lease; what goes wrong is the trouble until it goes right. */
  async #keep(): Promise<void> {
    const now = this.#options.clock.monotonic();
    try {
      const lost = this.#session?.store.replaced ?? false;
      if (lost) await this.#closeSession();
      if (!lost && this.#trouble !== undefined && now < this.#lastTrouble + this.#times.retry) return;
      if (!this.#session) await this.#open(false);
      if (lost || this.#trouble !== undefined || now >= this.#renewAt) this.#compare(await this.#acquire());
      const settled = now > this.#lastTrouble + this.#times.settle;
      if (settled && this.#session?.store.hasExpired) await this.#session.store.reap();
      this.#trouble = undefined;
    } catch (error) {
      this.#fail(reasonOf(error));
      // We know that our subnet is another's now: nothing may be forwarded as if it were ours.
      if (error instanceof SetupError && error.code === 'EXHAUSTED') this.#setGate(now);
    }
  }

  /** Returns the reason as it is told, without our name before it. */
  #fail(reason: string): string {
    this.#trouble = reason.startsWith(`${this.name}: `) ? reason.slice(this.name.length + 2) : reason;
    this.#lastTrouble = this.#options.clock.monotonic();
    return this.#trouble;
  }

  async #open(first: boolean): Promise<Session> {
    const { path, clock, wish } = this.#options;
    const patience = first ? PATIENCE.first : PATIENCE.running;
    const store = await EmbeddedStore.open(path, clock, first && wish.networks.length > 0, patience);
    try {
      const { config } = await store.configure(wish);
      const hostLock = this.#lockHost();
      this.#session = { store, config, hostLock };
      this.#lastTrouble = clock.monotonic();
      return this.#session;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  /** Tells a live daemon with our address (an error) from a dead one (whose lease is ours to take over). */
  #lockHost(): FileLock {
    const [host] = this.#texts;
    const lock = new FileLock(join(this.#options.path, `host-${host}`));
    if (lock.tryLock('exclusive')) {
      lock.write(String(process.pid));
      return lock;
    }
    const pid = lock.read();
    lock.close();
    throw new SetupError(
      'TWIN',
      `${this.name}: another weftd (pid ${pid}) has public IP ${host}: stop it, or choose another --public-ip`,
    );
  }

  async #acquire(): Promise<Acquired> {
    const { clock, ttl } = this.#options;
    const session = this.#session;
    if (!session) throw new RegistryAway(`${this.name}: is not open`);
    const acquired = await session.store.acquire(
      { addresses: this.#texts, prefer: this.#subnets, ttl },
      session.config,
    );
    this.#expires = acquired.expires;
    this.#renewAt = acquired.expires - (ttl * 2) / 3;
    if (clock.monotonic() < acquired.expires && sameSubnets(acquired.subnets, this.#subnets))
      this.#setGate(this.#expires);
    return acquired;
  }

  #compare(acquired: Acquired): void {
    if (sameSubnets(acquired.subnets, this.#subnets)) return;
    const texts = (subnets: readonly Cidr[]): string[] => subnets.map((subnet) => subnet.text);
    this.#options.log.warn('lease_moved', { from: texts(this.#subnets), to: texts(acquired.subnets) });
    this.#setGate(this.#options.clock.monotonic());
    this.#options.moved();
  }

  /** Moves the gate on, unless it has fallen shut: then only a lease opens it again. */
  #startBeat(): void {
    const { clock, ttl } = this.#options;
    this.#setGate(this.#trouble === undefined ? this.#expires : clock.monotonic() + ttl);
    this.#beat = setInterval(() => {
      const now = clock.monotonic();
      if (this.#trouble !== undefined && now < this.#gateUntil) this.#setGate(Math.max(this.#expires, now + ttl));
    }, this.#times.poll);
    this.#beat.unref();
  }

  #setGate(until: number): void {
    this.#gateUntil = until;
    this.#options.gate(until);
  }

  #read(position: Position | undefined): Exclude<RegistryUpdate, { kind: 'trouble' }> | undefined {
    try {
      return this.#session && this.#news(this.#session, position);
    } catch (error) {
      this.#fail(reasonOf(error));
      return undefined;
    }
  }

  /** What changed since `position`; undefined: nothing. */
  #news(session: Session, position: Position | undefined): Exclude<RegistryUpdate, { kind: 'trouble' }> | undefined {
    const now = session.store.position();
    const time = this.#options.clock.monotonic();
    const cursor = formatPosition(now);
    if (position && position.id === now.id && position.revision === now.revision) {
      const events = this.#lingering.events([], time);
      return events.length > 0 ? { kind: 'events', events, cursor } : undefined;
    }
    const changes = position && session.store.changes(position);
    if (!changes) {
      const leases = [...session.store.leases()];
      this.#lookAtOwn(leases.find((lease) => lease.host === this.#texts[0]));
      const records = leases
        .map((lease) => this.#toRecord(lease, session.config))
        .filter((record) => record !== undefined);
      return { kind: 'snapshot', records: this.#lingering.snapshot(records, time), cursor };
    }
    const events = changes.map(({ host, lease }): RegistryEvent => {
      if (host === this.#texts[0]) this.#lookAtOwn(lease);
      const record = lease && this.#toRecord(lease, session.config);
      return record ? { type: 'put', record } : { type: 'delete', id: host };
    });
    return { kind: 'events', events: this.#lingering.events(events, time), cursor };
  }

  /** Someone took our lease away, or changed it: see to it at once. */
  #lookAtOwn(lease: Lease | undefined): void {
    const same = lease?.subnets.every((text, i) => text === this.#subnets[i]?.text) ?? false;
    if (!same) this.#renewAt = 0;
  }

  /** A peer by the first of its addresses that we have an underlay for. */
  #toRecord(lease: Lease, config: NetworkConfig): PeerRecord | undefined {
    const { host, subnets } = lease;
    try {
      const families = this.#options.addresses.map((address) => address.family);
      const address = lease.addresses.find((text) => families.includes(text.includes(':') ? 6 : 4));
      if (address === undefined)
        throw new RangeError(`none of ${lease.addresses.join(', ')} is of a family that this host's underlay has`);
      return makeRecord({ id: host, name: host, address, port: config.backend.port, subnets, ecn: true });
    } catch (error) {
      if (!this.#said.has(host)) this.#options.log.warn('lease_skipped', { host, reason: reasonOf(error) });
      this.#said.add(host);
      return undefined;
    }
  }

  async #closeSession(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    session?.hostLock.close();
    await session?.store.close();
  }
}

const sameSubnets = (a: readonly Cidr[], b: readonly Cidr[]): boolean =>
  a.length === b.length && a.every((subnet, i) => subnet.text === b[i].text);

/** A cursor is `revision@registry`; empty before the first. */
const formatPosition = (position: Position | undefined): Cursor =>
  position ? `${position.revision}@${position.id}` : '';

function parsePosition(cursor: Cursor | undefined): Position | undefined {
  const match = /^(\d+)@(.+)$/.exec(cursor ?? '');
  return match ? { revision: Number(match[1]), id: match[2] } : undefined;
}
