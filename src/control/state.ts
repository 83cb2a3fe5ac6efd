/**
 * What one daemon remembers over a restart, in an LMDB environment of its own (`--state-dir`): the last good snapshot of the
 * registry, with the subnets that were ours, and when it was last known to be right.
 *
 * The directory is locked: two daemons with one memory would each believe the other's. What is damaged is moved aside, because a
 * daemon without memory still works; the snapshot carries a digest, so that half of one is never believed.
 */
import { createHash } from 'node:crypto';
import { existsSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import type { Clock } from '../host/clock.js';
import { ensureDirectory } from '../host/directory.js';
import { FileLock } from '../host/file-lock.js';
import { SetupError } from '../io/setup-error.js';
import { configFromJson, configToJson, type NetworkConfig } from './allocation.js';
import { type Cidr, parseCidr } from './cidr.js';
import type { EventLog } from './event-log.js';
import { dataFile, type Lmdb, lmdbReason, openLmdb, readValue, transact, writeValue } from './lmdb.js';
import { reasonOf } from './reason.js';
import { makeRecord, type PeerRecord } from './records.js';

export interface Snapshot<Config = NetworkConfig> {
  /** Whose it is: the registry and our first underlay address. */
  readonly owner: string;
  /** Of the registry, and what else its kind remembers. */
  readonly config: Config;
  readonly subnets: readonly Cidr[];
  readonly records: readonly PeerRecord[];
}

export interface Remembered<Config = NetworkConfig> extends Snapshot<Config> {
  /** Date.now() of when it was last known to be right. */
  readonly confirmed: number;
  /** Milliseconds since then. */
  readonly age: number;
}

/** How a kind of registry writes its configuration; `fromJson` throws for what it cannot have written. */
export interface Codec<Config> {
  toJson(config: Config): unknown;
  fromJson(json: unknown): Config;
}

const EMBEDDED: Codec<NetworkConfig> = { toJson: configToJson, fromJson: configFromJson };

const vni = v.optional(v.number());
/** What came with layer 2 is not in the memory of an older daemon. */
const recordSchema = v.object({
  id: v.string(),
  name: v.string(),
  address: v.string(),
  port: v.number(),
  subnets: v.array(v.string()),
  underlayMtu: v.optional(v.number()),
  ecn: v.boolean(),
  vnis: v.optional(v.array(v.number())),
  macs: v.optional(v.array(v.object({ vni, mac: v.string() }))),
  neighbours: v.optional(v.array(v.object({ vni, mac: v.string(), address: v.string(), router: v.boolean() }))),
});
const snapshotSchema = v.object({
  owner: v.string(),
  config: v.unknown(),
  subnets: v.array(v.string()),
  records: v.array(recordSchema),
});
const confirmedSchema = v.object({ wall: v.number(), boot: v.string(), monotonic: v.number() });

export class State<Config = NetworkConfig> {
  readonly #directory: string;
  readonly #codec: Codec<Config>;
  readonly #db: Lmdb;
  readonly #lock: FileLock;
  readonly #clock: Clock;
  readonly #log: EventLog;
  readonly #inode: number | undefined;
  #failing = false;
  #forgotten = false;

  private constructor(directory: string, codec: Codec<Config>, db: Lmdb, lock: FileLock, clock: Clock, log: EventLog) {
    this.#directory = directory;
    this.#codec = codec;
    this.#db = db;
    this.#lock = lock;
    this.#clock = clock;
    this.#log = log;
    this.#inode = inodeOf(directory);
  }

  /** Opens the directory, and makes it if need be, for the embedded registry. Throws a SetupError as `openFor`. */
  static open(directory: string, clock: Clock, log: EventLog): State {
    return State.openFor(EMBEDDED, directory, clock, log);
  }

  /** The same for any kind of registry. Throws a SetupError: the directory cannot be used, or another daemon uses it. */
  static openFor<Config>(codec: Codec<Config>, directory: string, clock: Clock, log: EventLog): State<Config> {
    let lock: FileLock | undefined;
    try {
      ensureDirectory(directory);
      lock = new FileLock(join(directory, 'daemon'));
      if (!lock.tryLock('exclusive')) {
        throw new SetupError(
          'STATE_IN_USE',
          `state directory ${directory} is in use by another weftd (pid ${lock.read()}): give each its own --state-dir`,
        );
      }
      lock.write(String(process.pid));
      return new State(directory, codec, openOrReplace(directory, log), lock, clock, log);
    } catch (error) {
      lock?.close();
      if (error instanceof SetupError) throw error;
      throw new SetupError(
        'NO_STATE',
        `state directory ${directory} cannot be used: ${lmdbReason(error)}: check --state-dir`,
      );
    }
  }

  /** What `owner` remembered last; undefined: nothing, or (said in the log) nothing that can be believed. */
  recall(owner: string): Remembered<Config> | undefined {
    const stored = this.#db.get(['snapshot']);
    if (stored === undefined) return undefined;
    try {
      const [digest, text] = [stored.slice(0, DIGEST_LENGTH), stored.slice(DIGEST_LENGTH + 1)];
      if (digestOf(text) !== digest) throw new RangeError('its digest is wrong');
      const found = v.parse(snapshotSchema, JSON.parse(text));
      if (found.owner !== owner) {
        this.#log.warn('state_ignored', { directory: this.#directory, of: found.owner, we: owner });
        return undefined;
      }
      const { wall, boot, monotonic } = v.parse(confirmedSchema, readValue(this.#db, ['confirmed']));
      // Within one boot by a clock that nobody sets; else by the wall clock, which may have gone back.
      const age = boot === this.#clock.boot ? this.#clock.monotonic() - monotonic : Math.max(0, Date.now() - wall);
      return {
        owner,
        config: this.#codec.fromJson(found.config),
        subnets: found.subnets.map(parseCidr),
        records: found.records.map((record) => makeRecord(record)),
        confirmed: wall,
        age,
      };
    } catch (error) {
      this.#log.error('state_damaged', {
        directory: this.#directory,
        reason: `snapshot: ${reasonOf(error)}`,
        effect: 'not used',
      });
      return undefined;
    }
  }

  /** Remembers `snapshot`, durably; false (said in the log) if it cannot. Does nothing after `forget`. */
  remember({ owner, config, subnets, records }: Snapshot<Config>): boolean {
    if (this.#forgotten) return true;
    const texts = subnets.map((subnet) => subnet.text);
    const text = JSON.stringify({ owner, config: this.#codec.toJson(config), subnets: texts, records });
    return this.#write(() => {
      this.#db.putSync(['snapshot'], `${digestOf(text)} ${text}`);
      this.#confirm();
    });
  }

  /** What is remembered is so no longer, nor is what this run may still want to remember. */
  forget(): boolean {
    this.#forgotten = true;
    return this.#write(() => this.#db.removeSync(['snapshot']));
  }

  /** What is remembered is still so. */
  confirm(): boolean {
    return this.#write(() => this.#confirm());
  }

  async close(): Promise<void> {
    await this.#db.close();
    this.#lock.close();
  }

  #confirm(): void {
    const { boot } = this.#clock;
    writeValue(this.#db, ['confirmed'], { wall: Date.now(), boot, monotonic: this.#clock.monotonic() });
  }

  #write(change: () => unknown): boolean {
    try {
      if (inodeOf(this.#directory) !== this.#inode) throw new Error('its directory was removed or replaced');
      transact(this.#db, this.#directory, change);
      if (this.#failing) this.#log.info('state_recovered', { directory: this.#directory });
      this.#failing = false;
    } catch (error) {
      const reason = lmdbReason(error);
      if (!this.#failing)
        this.#log.error('state_trouble', { directory: this.#directory, reason, effect: 'a restart may know less' });
      this.#failing = true;
    }
    return !this.#failing;
  }
}

const inodeOf = (directory: string): number | undefined =>
  statSync(dataFile(directory), { throwIfNoEntry: false })?.ino;

/** Of a SHA-256 in hexadecimal digits. */
const DIGEST_LENGTH = 64;
const digestOf = (text: string): string => createHash('sha256').update(text).digest('hex');

/** Opens the environment; one that is damaged is moved aside first. */
function openOrReplace(directory: string, log: EventLog): Lmdb {
  try {
    return openLmdb(directory);
  } catch (error) {
    if (!(error instanceof SetupError && error.code === 'DAMAGED')) throw error;
    const file = dataFile(directory);
    const aside = freeName(`${file}.damaged-${new Date().toISOString().replace(/[:.]/g, '-')}`);
    renameSync(file, aside);
    rmSync(join(directory, 'lock.mdb'), { force: true });
    log.error('state_damaged', { directory, reason: error.message, effect: `moved aside to ${aside}` });
    return openLmdb(directory);
  }
}

function freeName(name: string): string {
  let free = name;
  for (let i = 2; existsSync(free); i++) free = `${name}-${i}`;
  return free;
}
