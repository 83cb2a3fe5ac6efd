/**
 * The embedded registry's data: one LMDB environment that the daemons of one machine share.
 *
 *   ['meta', 'format' | 'id' | 'config' | 'boot' | 'revision']
 *   ['lease', host]                 {addresses, subnets, vnis, ttl, expires} host: the first of its underlay addresses
 *   ['subnet', cidr]                host                                     who has it
 *   ['address', address]            host                                     whose underlay address it is
 *   ['deadline', expires, host]     null                                     leases in the order in which they end
 *   ['log', revision]               host                                     what changed; the last LOG_KEPT of them
 *
 * Every change is one transaction, and what others must learn of it (who has which subnets, or is in which networks) gets a revision and a line in the
 * log there. A renewal only moves a deadline: it is nobody's news, so it has neither.
 *
 * Deadlines are milliseconds of CLOCK_MONOTONIC, which nobody can set, and mean something only within one boot: the first
 * transaction after another boot gives every lease its whole time again, so that hosts that come up slowly find their subnets.
 *
 * Files beside LMDB's own: `writer`, locked around every write, because LMDB's lock can only be waited for by blocking;
 * `world`, locked by every user, says which boot and which PID and time namespaces the users are in.
 */
import { randomUUID } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import * as v from 'valibot';
import { type Clock, processWorld } from '../host/clock.js';
import { ensureDirectory } from '../host/directory.js';
import { FileLock } from '../host/file-lock.js';
import { SetupError } from '../io/setup-error.js';
import { VNI_MOST } from '../packet/vxlan.js';
import {
  type ConfigWish,
  chooseSubnets,
  configFromJson,
  configToJson,
  disagreement,
  fits,
  makeNetworkConfig,
  modeOf,
  type NetworkConfig,
} from './allocation.js';
import { type Cidr, parseCidr } from './cidr.js';
import {
  dataFile,
  entriesOf,
  type Lmdb,
  type LmdbKey,
  lmdbReason,
  openLmdb,
  readValue,
  transact,
  writeValue,
} from './lmdb.js';
import { reasonOf } from './reason.js';

const FORMAT = 1;
const LOG_KEPT = 1000;
/** Milliseconds to wait for a lock that others hold before the registry counts as away. */
export const PATIENCE = { running: 1000, first: 10_000 } as const;
/** Between looks at a lock that others hold: at random, so that fifty who wait do not spend the machine on looking. */
const lockDelay = (): number => 2 + Math.random() * 20;

/** The registry cannot be used now, but may come back: its directory is absent, its disk full, its lock held. */
export class RegistryAway extends SetupError {
  constructor(message: string) {
    super('REGISTRY_AWAY', message);
    this.name = 'RegistryAway';
  }
}

export interface Lease {
  readonly host: string;
  /** Underlay addresses, at most one of each family, `host` first. */
  readonly addresses: readonly string[];
  readonly subnets: readonly string[];
  /** Layer 2: the networks that it is in. */
  readonly vnis: readonly number[];
}

export interface LeaseWish {
  /** Underlay addresses; the first is what the lease is known by. */
  readonly addresses: readonly string[];
  /** Taken if they are free and fit, and there is no lease yet; may be empty. */
  readonly prefer: readonly Cidr[];
  /** Milliseconds from one renewal until the lease ends. */
  readonly ttl: number;
  /** Layer 2: the networks that we are in, in any order. */
  readonly vnis?: readonly number[];
}

export interface Acquired {
  readonly subnets: readonly Cidr[];
  readonly how: 'new' | 'reused' | 'taken over';
  /** Clock.monotonic() at which the lease ends unless it is acquired again. */
  readonly expires: number;
}

/** How far a reader has come. */
export interface Position {
  /** Of the registry: another one's revisions mean nothing. */
  readonly id: string;
  readonly revision: number;
}

export interface Change {
  readonly host: string;
  /** Absent: it has none any more. */
  readonly lease: Lease | undefined;
}

const leaseSchema = v.object({
  addresses: v.pipe(v.array(v.string()), v.minLength(1)),
  subnets: v.array(v.pipe(v.string(), v.check(isCidr))),
  // Leases from before layer 2 have none.
  vnis: v.optional(v.array(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(VNI_MOST))), []),
  ttl: v.number(),
  expires: v.number(),
});
type StoredLease = v.InferOutput<typeof leaseSchema>;

export const registryName = (path: string): string => `registry ${path}`;

export class EmbeddedStore {
  /** For messages, all of which begin with it and a colon. */
  readonly name: string;
  readonly #path: string;
  readonly #clock: Clock;
  readonly #db: Lmdb;
  readonly #writer: FileLock;
  readonly #world: FileLock;
  /** Milliseconds; see PATIENCE. */
  patience: number;
  readonly #inode: number;

  private constructor(path: string, clock: Clock, db: Lmdb, writer: FileLock, world: FileLock, patience: number) {
    this.name = registryName(path);
    this.#path = path;
    this.#clock = clock;
    this.#db = db;
    this.#writer = writer;
    this.#world = world;
    this.patience = patience;
    this.#inode = statSync(dataFile(path)).ino;
  }

  /**
   * Opens the registry in directory `path`; makes it first if there is none and `create` says so. Rejects with RegistryAway
   * (after `patience` milliseconds, if it is for a lock), or with another SetupError when waiting would not help.
   */
  static async open(path: string, clock: Clock, create: boolean, patience: number): Promise<EmbeddedStore> {
    const name = registryName(path);
    const locks: FileLock[] = [];
    try {
      if (!existsSync(dataFile(path))) {
        if (!create && !isNoDirectory(path)) {
          throw new RegistryAway(`${name}: does not exist: put it back, or make it with weft init`);
        }
        ensureDirectory(path, 0o700);
      }
      const world = new FileLock(join(path, 'world'));
      locks.push(world);
      await joinWorld(world, clock.boot, name, patience);
      const writer = new FileLock(join(path, 'writer'));
      locks.push(writer);
      const db = await whileLocked(writer, patience, () => {
        if (!locks.every((lock) => lock.inPlace)) throw new RegistryAway(`${name}: was replaced while it was opened`);
        return openLmdb(path);
      });
      return new EmbeddedStore(path, clock, db, writer, world, patience);
    } catch (error) {
      for (const lock of locks) lock.close();
      if (error instanceof SetupError && error.code === 'DAMAGED') {
        throw new SetupError(
          'REGISTRY_DAMAGED',
          `${name}: damaged (${error.message}): stop every weftd that uses it, remove it or put back a copy, and start again`,
        );
      }
      throw error instanceof SetupError ? error : unusable(name, error);
    }
  }

  /** Another file has taken the place of the one that is open, or none has. Throws what stat(2) says otherwise. */
  get replaced(): boolean {
    return statSync(dataFile(this.#path), { throwIfNoEntry: false })?.ino !== this.#inode;
  }

  /**
   * The configuration; if there is none, and `create` says so, it is written from `wish`. Rejects with RegistryAway when there is
   * none, with a SetupError when it is not what `wish` says, with a RangeError when the wish is no good.
   */
  async configure(
    wish: ConfigWish,
    create: boolean,
  ): Promise<{ readonly config: NetworkConfig; readonly created: boolean }> {
    const { name } = this;
    const found = this.#config();
    if (!found && !create) {
      const hint = wish.mode === 'l2' ? 'run weft init --mode l2' : 'run weft init, or give --network';
      throw new RegistryAway(`${name}: has no network yet: ${hint}`);
    }
    const mine = found ? undefined : makeNetworkConfig(wish);
    const created =
      mine !== undefined &&
      (await this.#write(() => {
        if (this.#config()) return false; // another was quicker
        this.#set(['meta', 'format'], FORMAT);
        this.#set(['meta', 'id'], randomUUID());
        this.#set(['meta', 'config'], configToJson(mine));
        this.#set(['meta', 'boot'], this.#clock.boot);
        this.#set(['meta', 'revision'], 0);
        return true;
      }));
    const config = this.#config();
    if (!config) throw new RegistryAway(`${name}: has lost its configuration`);
    const differs = disagreement(config, wish);
    if (differs !== undefined) {
      const mode = modeOf(config);
      const hint = mode === wish.mode ? 'leave it out' : `give --mode ${mode}`;
      throw new SetupError('CONFIG_DIFFERS', `${name}: ${differs}: ${hint}, or choose another --registry-path`);
    }
    return { config, created };
  }

  /**
   * Takes a lease or renews it, by flannel's rules: the lease of the same host if it fits the configuration, else what is
   * preferred if it is free and fits, else a random one of the first free ones. In layer 2 there are no subnets to be had: the
   * lease says who is in which networks. Rejects with a SetupError EXHAUSTED.
   */
  acquire(wish: LeaseWish, config: NetworkConfig): Promise<Acquired> {
    return this.#write(() => {
      const now = this.#startBoot();
      const [host] = wish.addresses;
      const mine = this.#lease(host);
      if (!mine && this.#db.doesExist(['lease', host])) this.#forget(host);
      // Our addresses in another order, or one more before them, make us another host: the lease of the one that we were is ours.
      const former = wish.addresses.slice(1).map((address) => this.#removeOwner(address, host));
      const earlier = mine ?? this.#removeOwner(host, host) ?? former.find((lease) => lease !== undefined);
      const taken = (subnet: Cidr): boolean => (this.#get(['subnet', subnet.text]) ?? host) !== host;
      const kept = earlier?.subnets.map(parseCidr);
      let how: Acquired['how'] = 'taken over';
      let subnets = kept && fits(kept, config) ? kept : undefined;
      if (!subnets && wish.prefer.length > 0 && fits(wish.prefer, config) && !wish.prefer.some(taken)) {
        how = 'reused';
        subnets = [...wish.prefer];
      }
      if (!subnets) {
        how = 'new';
        subnets = chooseSubnets(config, taken, Math.random);
        // Those who had no chance to renew keep theirs as long as there is another: see `reap`.
        if (!subnets && this.#removeExpired(now) > 0) subnets = chooseSubnets(config, taken, Math.random);
      }
      if (!subnets) {
        const ranges = config.pools.map(({ min, max, subnetLength }) => `${min.text} to ${max.text}/${subnetLength}`);
        throw new SetupError(
          'EXHAUSTED',
          `${this.name}: subnets exhausted: all from ${ranges.join(' and ')} are taken: stop a host and wait for its lease to end, or make a registry of a larger network`,
        );
      }
      const expires = now + wish.ttl;
      const texts = subnets.map((subnet) => subnet.text);
      const vnis = [...(wish.vnis ?? [])].sort((a, b) => a - b);
      this.#put(host, { addresses: [...wish.addresses], subnets: texts, vnis, ttl: wish.ttl, expires }, mine);
      return { subnets, how, expires };
    });
  }

  /** True when some lease has ended and is still there. */
  get hasExpired(): boolean {
    if (this.#get(['meta', 'boot']) !== this.#clock.boot) return false;
    const [first] = this.#db.getRange({ start: ['deadline'], end: ['deadline\0'], limit: 1 });
    return first !== undefined && Number(first.key[1]) < this.#clock.monotonic();
  }

  /** Removes the leases that have ended; resolves to how many. */
  reap(): Promise<number> {
    return this.#write(() => this.#removeExpired(this.#startBoot()));
  }

  /** What the last transaction of anybody left, from here to the end of this turn of the event loop. */
  position(): Position {
    this.#db.resetReadTxn();
    return { id: String(this.#get(['meta', 'id'])), revision: Number(this.#get(['meta', 'revision'])) };
  }

  /** What changed after `since` up to `position()`; undefined when the log does not go back so far. */
  changes(since: Position): Change[] | undefined {
    const now = this.position();
    if (now.id !== since.id || since.revision > now.revision) return undefined;
    const hosts = new Set<string>();
    let next = since.revision + 1;
    for (; next <= now.revision; next++) {
      const host = this.#get(['log', next]);
      if (typeof host !== 'string') return undefined;
      hosts.add(host);
    }
    return [...hosts].map((host) => ({ host, lease: toLease(host, this.#lease(host)) }));
  }

  /** Every lease. */
  *leases(): Generator<Lease> {
    for (const { key, value } of entriesOf(this.#db, 'lease')) {
      const host = String(key[1]);
      const lease = toLease(host, parseLease(value));
      if (lease) yield lease;
    }
  }

  /** Lets go of the environment and the locks. No write may be under way. */
  async close(): Promise<void> {
    await this.#db.close();
    this.#writer.close();
    this.#world.close();
  }

  #get(key: LmdbKey): unknown {
    return readValue(this.#db, key);
  }

  #set(key: LmdbKey, value: unknown): void {
    writeValue(this.#db, key, value);
  }

  #lease(host: string): StoredLease | undefined {
    return parseLease(this.#get(['lease', host]));
  }

  #config(): NetworkConfig | undefined {
    this.#db.resetReadTxn();
    const { name } = this;
    try {
      if (!this.#db.doesExist(['meta', 'config'])) return undefined;
      const json = this.#get(['meta', 'config']);
      const format = this.#get(['meta', 'format']);
      if (format === FORMAT) return configFromJson(json);
      throw new SetupError(
        'REGISTRY_FORMAT',
        `${name}: has format ${format}, this weftd knows ${FORMAT}: use one version`,
      );
    } catch (error) {
      if (error instanceof SetupError) throw error;
      throw new SetupError('REGISTRY_DAMAGED', `${name}: damaged: its configuration: ${reasonOf(error)}`);
    }
  }

  // --- inside a transaction ---

  /** The time; in the first transaction of a boot every lease begins anew. */
  #startBoot(): number {
    const now = this.#clock.monotonic();
    if (this.#get(['meta', 'boot']) === this.#clock.boot) return now;
    this.#set(['meta', 'boot'], this.#clock.boot);
    for (const { key } of [...entriesOf(this.#db, 'deadline')]) this.#db.removeSync(key);
    for (const { key, value } of [...entriesOf(this.#db, 'lease')]) {
      const lease = parseLease(value);
      const host = String(key[1]);
      if (lease) this.#put(host, { ...lease, expires: now + lease.ttl }, lease);
      else this.#forget(host);
    }
    return now;
  }

  #put(host: string, lease: StoredLease, before: StoredLease | undefined): void {
    const news =
      before === undefined ||
      !sameItems(before.subnets, lease.subnets) ||
      !sameItems(before.vnis, lease.vnis) ||
      !sameItems(before.addresses, lease.addresses);
    if (before) {
      this.#db.removeSync(['deadline', before.expires, host]);
      if (news) this.#removeIndex(before);
    }
    this.#set(['lease', host], lease);
    this.#set(['deadline', lease.expires, host], null);
    if (!news) return;
    for (const subnet of lease.subnets) this.#set(['subnet', subnet], host);
    for (const address of lease.addresses) this.#set(['address', address], host);
    this.#tell(host);
  }

  #remove(host: string, lease: StoredLease): void {
    this.#db.removeSync(['lease', host]);
    this.#db.removeSync(['deadline', lease.expires, host]);
    this.#removeIndex(lease);
    this.#tell(host);
  }

  #removeIndex({ subnets, addresses }: StoredLease): void {
    for (const subnet of subnets) this.#db.removeSync(['subnet', subnet]);
    for (const address of addresses) this.#db.removeSync(['address', address]);
  }

  /** Removes the lease that an address belongs to, if it is not that of `host`; returns it. */
  #removeOwner(address: string, host: string): StoredLease | undefined {
    const owner = this.#get(['address', address]);
    if (typeof owner !== 'string' || owner === host) return undefined;
    const lease = this.#lease(owner);
    if (lease) this.#remove(owner, lease);
    else this.#forget(owner);
    return lease;
  }

  /** Removes a lease that makes no sense, and whatever may have belonged to it. */
  #forget(host: string): void {
    this.#db.removeSync(['lease', host]);
    for (const space of ['subnet', 'address']) {
      for (const { key, value } of [...entriesOf(this.#db, space)]) if (value === host) this.#db.removeSync(key);
    }
    for (const { key } of [...entriesOf(this.#db, 'deadline')]) if (key[2] === host) this.#db.removeSync(key);
    this.#tell(host);
  }

  #removeExpired(now: number): number {
    const ended = [...this.#db.getRange({ start: ['deadline'], end: ['deadline', now] })];
    for (const { key } of ended) {
      const host = String(key[2]);
      const lease = this.#lease(host);
      if (lease) this.#remove(host, lease);
      else this.#forget(host);
    }
    return ended.length;
  }

  #tell(host: string): void {
    const revision = Number(this.#get(['meta', 'revision'])) + 1;
    this.#set(['meta', 'revision'], revision);
    this.#set(['log', revision], host);
    this.#db.removeSync(['log', revision - LOG_KEPT]);
  }

  /** One transaction. Rejects with RegistryAway when it cannot be had or committed, or with the SetupError that `change` threw. */
  async #write<T>(change: () => T): Promise<T> {
    try {
      return await whileLocked(this.#writer, this.patience, () => {
        this.#db.readerCheck(); // readers that were killed would keep old pages from being used again
        return transact(this.#db, this.#path, change);
      });
    } catch (error) {
      throw error instanceof SetupError ? error : new RegistryAway(`${this.name}: ${lmdbReason(error)}`);
    }
  }
}

/** Does `work` with the lock; rejects when that is not to be had. From taking it to letting go nothing else runs here. */
async function whileLocked<T>(lock: FileLock, patience: number, work: () => T): Promise<T> {
  const deadline = performance.now() + patience;
  while (!lock.tryLock('exclusive')) {
    if (performance.now() > deadline) throw new Error('another process holds its write lock, and does not let go');
    await setTimeout(lockDelay());
  }
  try {
    return work();
  } finally {
    lock.unlock();
  }
}

/** Takes a share in the lock, after writing our world into it if nobody else is there. */
async function joinWorld(lock: FileLock, boot: string, name: string, patience: number): Promise<void> {
  const world = processWorld(boot);
  const deadline = performance.now() + patience;
  for (;;) {
    if (lock.tryLock('exclusive')) lock.write(world);
    if (lock.tryLock('shared')) break;
    if (performance.now() > deadline) throw new RegistryAway(`${name}: another process holds the lock ${lock.path}`);
    await setTimeout(lockDelay());
  }
  if (lock.read() === world) return;
  throw new SetupError(
    'OTHER_WORLD',
    `${name}: in use by a weftd in another PID namespace: give each its own --registry-path, or a registry for several machines`,
  );
}

function isCidr(text: string): boolean {
  try {
    parseCidr(text);
    return true;
  } catch {
    return false;
  }
}

function parseLease(value: unknown): StoredLease | undefined {
  const parsed = v.safeParse(leaseSchema, value);
  return parsed.success ? parsed.output : undefined;
}

const toLease = (host: string, stored: StoredLease | undefined): Lease | undefined =>
  stored && { host, addresses: stored.addresses, subnets: stored.subnets, vnis: stored.vnis };

const sameItems = <T extends string | number>(a: readonly T[], b: readonly T[]): boolean =>
  a.length === b.length && a.every((item, i) => item === b[i]);

/** What the file system says; some of it passes. */
export function unusable(name: string, error: unknown): SetupError {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  const reason = lmdbReason(error);
  if (code === 'ENOTDIR' || code === 'EEXIST')
    return new SetupError('NO_REGISTRY', `${name}: not a directory: ${reason}: choose another --registry-path`);
  const hint = ['EACCES', 'EPERM', 'EROFS'].includes(String(code))
    ? ': make its directory writable, or choose another --registry-path'
    : '';
  return new RegistryAway(`${name}: cannot be used: ${reason}${hint}`);
}

const isNoDirectory = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isDirectory() === false;
