/**
 * Membership by a lease in etcd, as flannel keeps it, with the daemon's own memory of it.
 *
 * In two steps, since the configuration in etcd says which devices there are, and the lease their MACs: `openEtcd` connects and
 * reads the configuration, `join` takes the lease. Both wait for an etcd that is away, unless what is remembered of it allows
 * to start at once; what will not pass by itself (a wrong certificate or password, a configuration that makes no sense)
 * ends them with one line.
 */
import { resolve } from 'node:path';
import * as v from 'valibot';
import { type Clock, systemClock } from '../host/clock.js';
import { readSubnetFile } from '../host/subnet-file.js';
import { SetupError } from '../io/setup-error.js';
import { type Address, type Cidr, parsePrefixOf } from './cidr.js';
import { EtcdClient } from './etcd-client.js';
import { EtcdError } from './etcd-error.js';
import { EtcdRegistry, keyIn, troubleReason } from './etcd-registry.js';
import type { EventLog } from './event-log.js';
import { type FlannelConfig, readFlannelConfig, sameFlannelConfig } from './flannel-config.js';
import type { Candidate, MacsByFamily, Membership } from './membership.js';
import { type Codec, type Remembered, State } from './state.js';
import { Backoff, sleep } from './waiting.js';
import { WarmRegistry } from './warm-registry.js';

export interface EtcdOptions {
  /** `http://host:port`, `https://host:port`, or `host:port`, which is TLS if a file of it is given. */
  readonly endpoints: readonly string[];
  /** `/coreos.com/network` */
  readonly prefix: string;
  readonly keyFile: string | undefined;
  readonly certFile: string | undefined;
  readonly caFile: string | undefined;
  readonly username: string | undefined;
  readonly password: string | undefined;
  /** Seconds from a renewal to the end of the lease. */
  readonly ttl: number;
  /** Minutes before its end at which it is renewed. */
  readonly renewMargin: number;
  /** Seconds for which what is remembered may be started from. */
  readonly staleLimit: number;
  readonly stateDir: string;
  /** Where subnet.env is. */
  readonly subnetFile: string | undefined;
  /** Found without the registry; memory is known by the first. */
  readonly addresses: readonly Address[];
  /** Asked once the configuration says which families the overlay's hosts reach each other by. */
  readonly underlayFor: (families: readonly (4 | 6)[]) => Promise<EtcdUnderlay>;
  readonly log: EventLog;
  readonly clock?: Clock;
  /** Ends the waiting for etcd. */
  readonly signal: AbortSignal;
  /** Our subnets, or the configuration, are no longer those in use here: start again. */
  readonly moved: () => void;
  /** Our lease was taken away: stop. */
  readonly revoked: () => void;
}

export interface EtcdUnderlay {
  /** That our sockets are bound to. */
  readonly addresses: readonly Address[];
  /** That the others are told. */
  readonly publicAddresses: readonly Address[];
}

/** Milliseconds between looks for a configuration that is not there, as in flannel. */
const CONFIG_EVERY = 1000;
/** Between attempts to reach etcd. */
const RETRY = { first: 100, most: 2000 } as const;

/** Between two saves of what is remembered. */
const SAVE_EVERY = 1000;

/** What is remembered besides the leases. */
interface Memory {
  readonly endpoints: readonly string[];
  readonly config: FlannelConfig;
  /** Of our VXLAN devices. */
  readonly macs: MacsByFamily;
}

const memorySchema = v.object({
  endpoints: v.array(v.string()),
  config: v.string(),
  macs: v.object({ 4: v.optional(v.string()), 6: v.optional(v.string()) }),
});

const MEMORY: Codec<Memory> = {
  toJson: ({ endpoints, config, macs }) => ({ endpoints, config: config.text, macs }),
  fromJson: (json) => {
    const { endpoints, config, macs } = v.parse(memorySchema, json);
    return { endpoints, config: readFlannelConfig(config), macs };
  },
};

/** What etcd did not do, and what is remembered instead. */
interface Warm {
  readonly remembered: Remembered<Memory>;
  readonly reason: string;
}

/** Connects, and waits for the configuration. Rejects with a SetupError, or what `signal` aborts with. */
export async function openEtcd(options: EtcdOptions): Promise<Candidate> {
  const { log, stateDir, addresses, prefix, signal } = options;
  const client = new EtcdClient(options);
  const clock = options.clock ?? systemClock();
  let state: State<Memory> | undefined;
  const giveUp = (): void => client.close();
  signal.addEventListener('abort', giveUp, { once: true });
  const close = async (): Promise<void> => {
    client.close();
    await state?.close();
  };
  try {
    state = State.openFor(MEMORY, resolve(stateDir), clock, log);
    const owner = `etcd ${prefix} ${addresses[0].text}`;
    const remembered = ofThatEtcd(state.recall(owner), options);
    const opened = await new Opening(options, client, remembered).run();
    signal.throwIfAborted();
    const { config } = opened;
    for (const reason of config.warnings) log.warn('config_ignored', { reason });
    const underlay = await options.underlayFor(familiesOf(config));
    signal.throwIfAborted();
    return new EtcdCandidate({ options, client, clock, state, owner, underlay, ...opened });
  } catch (error) {
    await close();
    throw error;
  } finally {
    signal.removeEventListener('abort', giveUp);
  }
}

/** A cluster's members come and go; one that has none of them in common is another cluster. */
function ofThatEtcd(
  remembered: Remembered<Memory> | undefined,
  { endpoints, stateDir, log }: EtcdOptions,
): Remembered<Memory> | undefined {
  const before = remembered?.config.endpoints ?? [];
  if (!remembered || before.some((one) => endpoints.includes(one))) return remembered;
  log.warn('state_ignored', { directory: stateDir, of: before.join(), we: endpoints.join() });
  return undefined;
}

/** Of the underlay that the overlay's hosts reach each other by: flannel's udp has IPv4, and IPv6 where there is nothing else. */
function familiesOf({ pools, backend }: FlannelConfig): (4 | 6)[] {
  const families = pools.map(({ family }) => family);
  return backend.type === 'udp' ? families.slice(0, 1) : families;
}

/** Milliseconds for which nothing else is said about an etcd that is waited for. */
const SAY_EVERY = 10_000;

/** Says what is waited for, and no more often than it changes. */
class Waiting {
  readonly #log: EventLog;
  #said: string | undefined;
  #saidAt = 0;

  constructor(log: EventLog) {
    this.#log = log;
  }

  say(reason: string): void {
    const now = performance.now();
    if (reason === this.#said || (this.#said !== undefined && now < this.#saidAt + SAY_EVERY)) return;
    this.#said = reason;
    this.#saidAt = now;
    this.#log.warn('etcd_waiting', { reason, effect: 'waiting for it' });
  }

  over(registry: string): void {
    if (this.#said !== undefined) this.#log.info('etcd_found', { registry });
  }
}

/** Waits for the configuration. */
class Opening {
  readonly #options: EtcdOptions;
  readonly #client: EtcdClient;
  readonly #remembered: Remembered<Memory> | undefined;
  readonly #waiting: Waiting;

  constructor(options: EtcdOptions, client: EtcdClient, remembered: Remembered<Memory> | undefined) {
    this.#options = options;
    this.#client = client;
    this.#remembered = remembered;
    this.#waiting = new Waiting(options.log);
  }

  async run(): Promise<{ readonly config: FlannelConfig; readonly warm: Warm | undefined }> {
    const { signal } = this.#options;
    const backoff = new Backoff(RETRY.first, RETRY.most);
    for (; ; signal.throwIfAborted()) {
      try {
        const config = await this.#read();
        if (config) {
          this.#waiting.over(this.#client.name);
          return { config, warm: undefined };
        }
        await sleep(CONFIG_EVERY, signal);
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof EtcdError)) throw error;
        const warm = this.#warm(error);
        if (warm) return { config: warm.remembered.config.config, warm };
        if (error.kind !== 'away') throw error;
        this.#waiting.say(error.message + this.#tooOld());
        await sleep(backoff.next(), signal);
      }
    }
  }

  /** undefined: there is none. */
  async #read(): Promise<FlannelConfig | undefined> {
    const { prefix } = this.#options;
    const key = keyIn(prefix, 'config');
    const { entry } = await this.#client.get(key);
    if (entry) return readFlannelConfig(entry.value, `${this.#client.name}: ${key}`);
    this.#waiting.say(
      `${this.#client.name}: there is no key ${key}: flannel's configuration has to be put there, through the v3 API`,
    );
    return undefined;
  }

  /** undefined: there is nothing to start from, or it is too old. */
  #warm(error: EtcdError): Warm | undefined {
    const remembered = this.#remembered;
    if (!remembered || this.#tooOld() !== '') return undefined;
    const since = new Date(remembered.confirmed).toISOString();
    this.#options.log.warn('warm_start', { reason: error.message, since });
    return { remembered, reason: troubleReason(error, this.#client.name) };
  }

  /** To be added to a reason; empty: it is not, or there is nothing. */
  #tooOld(): string {
    const { staleLimit } = this.#options;
    const remembered = this.#remembered;
    if (!remembered || remembered.age <= staleLimit * 1000) return '';
    const since = new Date(remembered.confirmed).toISOString();
    return `; what is remembered of it is from ${since}, older than --stale-limit ${staleLimit} allows`;
  }
}

interface CandidateParts {
  readonly options: EtcdOptions;
  readonly client: EtcdClient;
  readonly clock: Clock;
  readonly state: State<Memory>;
  readonly owner: string;
  readonly underlay: EtcdUnderlay;
  readonly config: FlannelConfig;
  readonly warm: Warm | undefined;
}

class EtcdCandidate implements Candidate {
  readonly networks: readonly Cidr[];
  readonly backend: FlannelConfig['backend'];
  readonly nftables: boolean;
  readonly #parts: CandidateParts;
  #registry: EtcdRegistry | undefined;
  #closing: Promise<void> | undefined;

  constructor(parts: CandidateParts) {
    const { pools, backend, nftables } = parts.config;
    this.networks = pools.map(({ network }) => network);
    this.backend = backend;
    this.nftables = nftables;
    this.#parts = parts;
  }

  async join(given: MacsByFamily): Promise<Membership> {
    const { options, client, clock, state, owner, underlay, config, warm } = this.#parts;
    const { log, ttl, staleLimit } = options;
    const registry = new EtcdRegistry({
      client,
      prefix: options.prefix,
      config,
      ...underlay,
      ttl,
      renewMargin: options.renewMargin * 60,
      clock,
      log,
      // Those subnets are not ours any more: not even a start without etcd may use them.
      moved: () => {
        state.forget();
        options.moved();
      },
      revoked: () => {
        state.forget();
        options.revoked();
      },
      isCurrent: () => this.#isCurrent(),
    });
    this.#registry = registry;
    const { subnets, how } = warm ? this.#assume(registry, warm, given) : await this.#acquire(registry, given);
    const { macs } = registry.lease;
    const warmRegistry = new WarmRegistry({
      inner: registry,
      state,
      owner,
      config: { endpoints: options.endpoints, config, macs },
      subnets,
      // Often enough that a quiet etcd is never remembered as an old one.
      confirmEvery: Math.min(20_000, Math.max(500, (staleLimit * 1000) / 4)),
      saveEvery: SAVE_EVERY,
      ...(warm ? { warm } : {}),
    });
    return {
      networks: this.networks,
      subnets,
      port: 'port' in config.backend ? config.backend.port : 0,
      registry: warmRegistry,
      subnetFile: options.subnetFile,
      macs,
      lease: how,
      secondsLeft: () => registry.lease.secondsLeft,
      requests: () => client.requests,
      forwards: () => true, // flannel's hosts forward on whatever becomes of etcd
      close: () => this.close(),
    };
  }

  /** May be called more than once. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const { client, state } = this.#parts;
    client.close();
    await this.#registry?.close();
    await state.close();
  }

  #assume(registry: EtcdRegistry, { remembered, reason }: Warm, given: MacsByFamily): Started {
    const { subnets, config } = remembered;
    registry.assume(subnets, { ...config.macs, ...known(given) }, reason);
    return { subnets, how: 'warm' };
  }

  async #acquire(registry: EtcdRegistry, given: MacsByFamily): Promise<Started> {
    const { options, client } = this.#parts;
    const { signal, log, subnetFile } = options;
    const prefer = subnetFile === undefined ? [] : await subnetsIn(subnetFile, log);
    const backoff = new Backoff(RETRY.first, RETRY.most);
    const giveUp = (): void => client.close();
    signal.addEventListener('abort', giveUp, { once: true });
    const waiting = new Waiting(log);
    try {
      for (; ; await sleep(backoff.next(), signal)) {
        signal.throwIfAborted();
        try {
          const { held, how } = await registry.join(prefer, given);
          waiting.over(client.name);
          return { subnets: held.subnets, how };
        } catch (error) {
          signal.throwIfAborted();
          if (!(error instanceof EtcdError) || error.kind !== 'away') throw error;
          waiting.say(error.message);
        }
      }
    } finally {
      signal.removeEventListener('abort', giveUp);
    }
  }

  /** Throws if there is no configuration, or none that makes sense. */
  async #isCurrent(): Promise<boolean> {
    const { client, options, config } = this.#parts;
    const key = keyIn(options.prefix, 'config');
    const name = `${client.name}: ${key}`;
    const { entry } = await client.get(key);
    if (!entry) throw new SetupError('NO_CONFIG', `${name}: there is none any more`);
    return sameFlannelConfig(readFlannelConfig(entry.value, name), config);
  }
}

interface Started {
  readonly subnets: readonly Cidr[];
  readonly how: NonNullable<Membership['lease']>;
}

/** Those that are said. */
const known = (macs: MacsByFamily): MacsByFamily =>
  Object.fromEntries(Object.entries(macs).filter(([, mac]) => mac !== undefined));

/** The subnets that subnet.env names; none if there is no such file, or it makes no sense. */
async function subnetsIn(path: string, log: EventLog): Promise<readonly Cidr[]> {
  const warn = (reason: string): void => log.warn('subnet_file_ignored', { reason });
  return (await readSubnetFile(path, parsePrefixOf, warn))?.subnets ?? [];
}
