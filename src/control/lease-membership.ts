/** Membership by a lease of the embedded registry, with the daemon's own memory of it. */
import { join, resolve } from 'node:path';
import { systemClock } from '../host/clock.js';
import { readSubnetFile } from '../host/subnet-file.js';
import { SetupError } from '../io/setup-error.js';
import { disagreement, type NetworkConfig } from './allocation.js';
import { type Cidr, parsePrefixOf } from './cidr.js';
import { EmbeddedRegistry, type Joined } from './embedded-registry.js';
import { PATIENCE, RegistryAway } from './embedded-store.js';
import type { EventLog } from './event-log.js';
import type { Membership, MembershipOptions } from './membership.js';
import { type Remembered, State } from './state.js';
import { WarmRegistry } from './warm-registry.js';

/** Rejects with a SetupError. */
export async function byLease(options: MembershipOptions): Promise<Membership> {
  const { wish, configWish, stateDir, addresses, log } = options;
  // In layer 2 there is no subnet to tell of.
  const subnetFile = wish.mode === 'l2' ? undefined : (wish.subnetFile ?? join(stateDir, 'subnet.env'));
  if (resolve(stateDir) === resolve(wish.registryPath)) {
    throw new SetupError('SAME_DIRECTORY', `--state-dir ${stateDir} is the registry: give this daemon one of its own`);
  }
  const clock = systemClock();
  const state = State.open(stateDir, clock, log);
  const owner = `${wish.registryPath} ${addresses[0].text}`;
  const embedded = new EmbeddedRegistry({
    path: wish.registryPath,
    wish: configWish,
    addresses,
    vnis: wish.segments.map(({ vni }) => vni),
    ttl: wish.leaseTtl * 1000,
    clock,
    log,
    gate: options.gate,
    moved: () => {
      state.forget(); // those subnets are another's: not even a start without the registry may use them
      options.moved();
    },
  });
  const close = async (): Promise<void> => {
    await embedded.close();
    await state.close();
  };
  try {
    const remembered = state.recall(owner);
    const joined = await joinOrRemember(
      embedded,
      options,
      remembered,
      subnetFile === undefined ? [] : await subnetsIn(subnetFile, log),
    );
    const { config, subnets, how: lease, warm } = joined;
    // As often as a short lease is renewed, and often enough that a quiet registry is never remembered as an old one.
    const confirmEvery = Math.min(20_000, (wish.leaseTtl * 1000) / 3, Math.max(500, (wish.staleLimit * 1000) / 4));
    const registry = new WarmRegistry({
      inner: embedded,
      state,
      owner,
      config,
      subnets,
      confirmEvery,
      ...(warm ? { warm } : {}),
    });
    const networks = config.pools.map((pool) => pool.network);
    const secondsLeft = (): number => embedded.leaseSecondsLeft;
    const forwards = (): boolean => embedded.gateOpen;
    return { networks, subnets, port: config.backend.port, registry, subnetFile, lease, secondsLeft, forwards, close };
  } catch (error) {
    await close();
    throw error;
  }
}

interface Start {
  readonly config: NetworkConfig;
  readonly subnets: readonly Cidr[];
  readonly how: Joined['how'] | 'warm';
  readonly warm?: { readonly remembered: Remembered; readonly reason: string };
}

async function joinOrRemember(
  embedded: EmbeddedRegistry,
  { wish, configWish, log }: MembershipOptions,
  remembered: Remembered | undefined,
  prefer: readonly Cidr[],
): Promise<Start> {
  const tooOld = remembered !== undefined && remembered.age > wish.staleLimit * 1000;
  try {
    return await embedded.join(prefer, {
      // Who remembers a registry does not make one: it is away, perhaps not mounted yet, and the others are in it.
      create: remembered === undefined && (wish.mode === 'l2' || wish.networks.length > 0),
      patience: remembered === undefined || tooOld ? PATIENCE.first : PATIENCE.running,
    });
  } catch (error) {
    if (!(error instanceof RegistryAway) || !remembered) throw error;
    if (tooOld) {
      throw new SetupError(
        'TOO_STALE',
        `${error.message}; what is remembered of it is ${Math.ceil(remembered.age / 1000)} s old, more than --stale-limit ${wish.staleLimit} allows`,
      );
    }
    const differs = disagreement(remembered.config, configWish);
    if (differs !== undefined) throw new SetupError('CONFIG_DIFFERS', `${embedded.name}: away, and ${differs}`);
    const { config, subnets, confirmed } = remembered;
    log.warn('warm_start', { reason: error.message, since: new Date(confirmed).toISOString() });
    const reason = embedded.assume(remembered, error);
    return { config, subnets, how: 'warm', warm: { remembered, reason } };
  }
}

/** The subnets that subnet.env names; none if there is no such file, or it makes no sense. */
async function subnetsIn(path: string, log: EventLog): Promise<readonly Cidr[]> {
  const warn = (reason: string): void => log.warn('subnet_file_ignored', { reason });
  return (await readSubnetFile(path, parsePrefixOf, warn))?.subnets ?? [];
}
