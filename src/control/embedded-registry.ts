/**
 * The embedded registry as one daemon uses it: it joins once (opens the store, takes a lease), and from then on one loop keeps
 * the lease, notices what others changed, and finds the registry again after it was away.
 *
 * The gate: packets are forwarded until a deadline that this keeps moving, so that a process which was stopped for longer than
 * its lease forwards nothing with it when it wakes, before any of its code could have looked at the clock. In troubles in which
 * nobody at all can be given our subnet the gate is moved on without a renewal; not so after an oversleep, and not when it is
 * only we whom the registry refuses.
 *
 * Ended leases are removed by whoever sees them first, but only after SETTLE without trouble: those that could not renew while
 * the registry was away get their turn before that.
 */
import { join } from 'node:path';
import type { Clock } from '../host/clock.js';
import { FileLock } from '../host/file-lock.js';
import { SetupError } from '../io/setup-error.js';
import { type ConfigWish, configToJson, fits, modeOf, type NetworkConfig, type NetworkPool } from './allocation.js';
import { type Address, type Cidr, contains, parseCidr, parseHostAddress } from './cidr.js';
import {
  type Acquired,
  EmbeddedStore,
  type Lease,
  PATIENCE,
  type Position,
  RegistryAway,
  registryName,
  unusable,
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

/** Milliseconds after which a shut gate is shut anew: workers compare 32 bits of them, which go round in 49 days. */
const GATE_AGE = 2 ** 30;

export interface EmbeddedOptions {
  readonly path: string;
  /** What the command line says of the configuration. */
  readonly wish: ConfigWish;
  /** Our underlay addresses; the lease is known by the first. */
  readonly addresses: readonly Address[];
  /** Layer 2: the networks that we are in; the lease names them. */
  readonly vnis?: readonly number[];
  /** Milliseconds from a renewal to the end of the lease; it is renewed at a third. */
  readonly ttl: number;
  readonly clock: Clock;
  readonly log: EventLog;
  /** Packets may be forwarded until this reading of the clock; called again and again. */
  readonly gate: (until: number) => void;
  /** Our subnets, or the configuration, are no longer those that are in use here: start again. */
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
  readonly hostLocks: readonly FileLock[];
}

/** What is in use here. */
interface InUse {
  readonly config: NetworkConfig;
  readonly subnets: readonly Cidr[];
}

/** Of troubles in which no daemon can be given a subnet, so that ours stays ours beyond the end of the lease. */
const NOBODY_GETS_LEASES = new Set(['REGISTRY_AWAY', 'REGISTRY_DAMAGED', 'REGISTRY_FORMAT', 'NO_REGISTRY']);

export class EmbeddedRegistry implements Registry {
  readonly name: string;
  readonly #options: EmbeddedOptions;
  readonly #times: EmbeddedTimes;
  readonly #texts: readonly string[];
  #lingering: Lingering;
  #session: Session | undefined;
  /** What we want back; undefined before there was any. */
  #inUse: InUse | undefined;
  #expires = 0;
  #renewAt = 0;
  #gateUntil = 0;
  #shut = false;
  /** We have asked to be started again. */
  #moved = false;
  #trouble: string | undefined;
  /** The trouble is of a kind that keeps everybody from taking a lease. */
  #nobodyGetsLeases = false;
  /** When there was trouble last, or a new session. */
  #lastTrouble = 0;
  #retryAt = 0;
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

  /** Packets may be forwarded. */
  get gateOpen(): boolean {
    return this.#options.clock.monotonic() < this.#gateUntil;
  }

  /**
   * Opens the registry (and makes it, if `create`) and takes a lease: ours of before, else `prefer` if that can be had. Rejects
   * with RegistryAway, or another SetupError; after RegistryAway, `assume` lets `watch` go on trying.
   */
  async join(
    prefer: readonly Cidr[],
    { create, patience }: { readonly create: boolean; readonly patience: number },
  ): Promise<Joined> {
    const { config, store } = await this.#open(create, patience);
    const { subnets, how } = await this.#acquire(prefer);
    store.patience = PATIENCE.running;
    this.#inUse = { config, subnets };
    this.#startBeat(this.#expires);
    return { config, subnets, how };
  }

  /**
   * Instead of joining, because of `error`: these subnets were ours and are in use, and these records are in force. Returns the
   * trouble as it tells it.
   */
  assume(known: InUse & { readonly records: readonly PeerRecord[] }, error: RegistryAway): string {
    this.#inUse = known;
    this.#lingering = new Lingering(known.records, this.#times.settle);
    const reason = this.#fail(error);
    this.#startBeat(this.#options.clock.monotonic() + this.#options.ttl);
    return reason;
  }

  async *watch(signal: AbortSignal, cursor?: Cursor): AsyncGenerator<RegistryUpdate> {
    let position = parsePosition(cursor);
    let told: string | null | undefined = null; // something is told at once, even that all is as it was
    let session: Session | undefined;
    while (!signal.aborted) {
      await this.#keep();
      // Another session may be of a copy of the registry, with a history of its own.
      if (session && this.#session && session !== this.#session) position = undefined;
      session = this.#session ?? session;
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
    // To wake late is trouble too: all the others may have slept as long.
    if (now >= this.#expires) this.#lastTrouble = now;
    try {
      const lost = this.#session?.store.replaced ?? false;
      if (lost) await this.#closeSession();
      else if (this.#trouble !== undefined && now < this.#retryAt) return;
      if (!this.#session) await this.#open(false, PATIENCE.running);
      if (lost || this.#trouble !== undefined || now >= this.#renewAt) await this.#renew();
      const settled = now > this.#lastTrouble + this.#times.settle;
      if (settled && this.#session?.store.hasExpired) await this.#session.store.reap();
      this.#trouble = undefined;
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Returns the reason as it is told, without our name before it. */
  #fail(error: unknown): string {
    const reason = reasonOf(error);
    const now = this.#options.clock.monotonic();
    this.#trouble = reason.startsWith(`${this.name}: `) ? reason.slice(this.name.length + 2) : reason;
    // What the file system or LMDB says of reading, it says to everybody.
    this.#nobodyGetsLeases = !(error instanceof SetupError) || NOBODY_GETS_LEASES.has(error.code);
    this.#lastTrouble = now;
    this.#retryAt = now + this.#times.retry;
    // We know that our subnet is another's now: nothing may be forwarded as if it were ours.
    if (error instanceof SetupError && error.code === 'EXHAUSTED') this.#setGate(now);
    return this.#trouble;
  }

  async #open(create: boolean, patience: number): Promise<Session> {
    const { path, clock, wish } = this.#options;
    const store = await EmbeddedStore.open(path, clock, create, patience);
    try {
      const { config } = await store.configure(wish, create);
      this.#checkAddresses(config);
      this.#session = { store, config, hostLocks: this.#lockHosts() };
      this.#lastTrouble = clock.monotonic();
      return this.#session;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  /** A host in its own overlay would make every other refuse its record. */
  #checkAddresses(config: NetworkConfig): void {
    for (const address of this.#options.addresses) {
      const pool = poolAround(address, config);
      if (!pool) continue;
      throw new SetupError(
        'ADDRESS_INSIDE',
        `${this.name}: our underlay address ${address.text} lies in its network ${pool.network.text}: choose another --public-ip, --iface or network`,
      );
    }
  }

  /** Tells a live daemon with an address of ours (an error) from a dead one (whose lease is ours to take over). */
  #lockHosts(): FileLock[] {
    const locks: FileLock[] = [];
    try {
      for (const text of this.#texts) {
        const lock = new FileLock(join(this.#options.path, `host-${text}`));
        locks.push(lock);
        if (!lock.tryLock('exclusive')) {
          const pid = lock.read() || 'unknown';
          throw new SetupError(
            'TWIN',
            `${this.name}: another weftd (pid ${pid}) has public IP ${text}: stop it, or choose another --public-ip`,
          );
        }
        lock.write(String(process.pid));
      }
      return locks;
    } catch (error) {
      for (const lock of locks) lock.close();
      throw error instanceof SetupError ? error : unusable(this.name, error);
    }
  }

  async #acquire(prefer: readonly Cidr[]): Promise<Acquired> {
    const { ttl, vnis = [] } = this.#options;
    const session = this.#session;
    if (!session) throw new RegistryAway(`${this.name}: is not open`);
    const acquired = await session.store.acquire({ addresses: this.#texts, prefer, ttl, vnis }, session.config);
    this.#expires = acquired.expires;
    this.#renewAt = acquired.expires - (ttl * 2) / 3;
    return acquired;
  }

  /** Acquires again, and moves the gate on, if what we have is what is in use. */
  async #renew(): Promise<void> {
    const { subnets } = await this.#acquire(this.#inUse?.subnets ?? []);
    const inUse = this.#inUse;
    const config = this.#session?.config;
    if (!inUse || !config) return;
    if (sameSubnets(subnets, inUse.subnets) && sameConfig(config, inUse.config)) {
      this.#moved = false;
      this.#setGate(this.#expires);
      return;
    }
    if (this.#moved) return;
    this.#moved = true;
    const texts = (list: readonly Cidr[]): string[] => list.map((subnet) => subnet.text);
    this.#options.log.warn('lease_moved', { from: texts(inUse.subnets), to: texts(subnets) });
    this.#setGate(this.#options.clock.monotonic());
    this.#options.moved();
  }

  /** Moves the gate on while nobody can take our subnet, unless it has fallen shut: then only a lease opens it again. */
  #startBeat(until: number): void {
    const { clock, ttl } = this.#options;
    this.#setGate(until);
    this.#beat = setInterval(() => {
      const now = clock.monotonic();
      const keeps = this.#trouble !== undefined && this.#nobodyGetsLeases;
      if (keeps && now < this.#gateUntil) this.#setGate(Math.max(this.#expires, now + ttl));
      else this.#sayGate(now);
      if (this.#shut && now - this.#gateUntil > GATE_AGE) this.#setGate(now);
    }, this.#times.poll);
    this.#beat.unref();
  }

  #setGate(until: number): void {
    this.#gateUntil = until;
    this.#options.gate(until);
    this.#sayGate(this.#options.clock.monotonic());
  }

  #sayGate(now: number): void {
    const shut = now >= this.#gateUntil;
    if (shut === this.#shut) return;
    this.#shut = shut;
    if (shut) this.#options.log.error('forwarding_stopped', { reason: 'our lease has ended' });
    else this.#options.log.info('forwarding_resumed');
  }

  #read(position: Position | undefined): Exclude<RegistryUpdate, { kind: 'trouble' }> | undefined {
    try {
      return this.#session && this.#news(this.#session, position);
    } catch (error) {
      this.#fail(error);
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
    const { vnis = [] } = this.#options;
    const same =
      lease?.subnets.every((text, i) => text === this.#inUse?.subnets[i]?.text) &&
      lease.vnis.length === vnis.length &&
      lease.vnis.every((vni) => vnis.includes(vni));
    if (!same) this.#renewAt = 0;
  }

  /** A peer by the first of its addresses that we have an underlay for. */
  #toRecord(lease: Lease, config: NetworkConfig): PeerRecord | undefined {
    const { host, subnets, vnis } = lease;
    try {
      return makeRecord({
        id: host,
        name: host,
        address: this.#reach(lease, config),
        port: config.backend.port,
        subnets,
        vnis,
        ecn: true,
      });
    } catch (error) {
      if (!this.#said.has(host)) this.#options.log.warn('lease_skipped', { host, reason: reasonOf(error) });
      this.#said.add(host);
      return undefined;
    }
  }

  /** The address by which we reach a host. Throws a RangeError if its lease would make the whole plan impossible. */
  #reach({ addresses, subnets, vnis }: Lease, config: NetworkConfig): string {
    if (!fits(subnets.map(parseCidr), config)) throw new RangeError(`${subnets.join(', ')} cannot be of this network`);
    if (modeOf(config) === 'l2' && vnis.length === 0) throw new RangeError('it names no VNI');
    const families = this.#options.addresses.map((address) => address.family);
    const address = addresses.map(parseHostAddress).find(({ family }) => families.includes(family));
    if (!address) throw new RangeError(`none of ${addresses.join(', ')} is of a family that our underlay has`);
    const pool = poolAround(address, config);
    if (pool) throw new RangeError(`${address.text} lies in the network ${pool.network.text}`);
    return address.text;
  }

  async #closeSession(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    for (const lock of session?.hostLocks ?? []) lock.close();
    await session?.store.close();
  }
}

const poolAround = ({ bytes }: Address, { pools }: NetworkConfig): NetworkPool | undefined =>
  pools.find(({ network }) => contains(network, { bytes, length: bytes.length * 8 }));

const sameConfig = (a: NetworkConfig, b: NetworkConfig): boolean =>
  JSON.stringify(configToJson(a)) === JSON.stringify(configToJson(b));

const sameSubnets = (a: readonly Cidr[], b: readonly Cidr[]): boolean =>
  a.length === b.length && a.every((subnet, i) => subnet.text === b[i].text);

/** A cursor is `revision@registry`; empty before the first. */
const formatPosition = (position: Position | undefined): Cursor =>
  position ? `${position.revision}@${position.id}` : '';

function parsePosition(cursor: Cursor | undefined): Position | undefined {
  const match = /^(\d+)@(.+)$/.exec(cursor ?? '');
  return match ? { revision: Number(match[1]), id: match[2] } : undefined;
}
