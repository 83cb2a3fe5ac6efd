/**
 * This host's place in the overlay: which subnets are its own (in layer 2 none are anybody's), and the registry that tells of the
 * others. With a static registry the configuration says it; with the embedded one it is a lease, or, while that registry is away, what we remember of it.
 */
import type { ConfigWish } from './allocation.js';
import type { Address, Cidr } from './cidr.js';
import { DEFAULT_PORTS, type Mode } from './encapsulation.js';
import type { EventLog } from './event-log.js';
import type { Registry } from './registry.js';
import { StaticRegistry } from './static-registry.js';

/** Of the configuration, what says who we are. */
export interface MembershipWish {
  readonly mode: Mode;
  /** The networks of layer 2. */
  readonly segments: readonly { readonly vni: number }[];
  readonly registry: 'embedded' | 'static';
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  readonly peersFile: string | undefined;
  readonly port: number | undefined;
  readonly registryPath: string;
  readonly subnetFile: string | undefined;
  /** Seconds. */
  readonly leaseTtl: number;
  readonly staleLimit: number;
}

export interface MembershipOptions {
  readonly wish: MembershipWish;
  readonly stateDir: string;
  readonly configWish: ConfigWish;
  /** Underlay addresses, the first of which we are known by. */
  readonly addresses: readonly Address[];
  readonly log: EventLog;
  /** Packets may be forwarded until this reading of CLOCK_MONOTONIC in milliseconds; never called: for ever. */
  readonly gate: (until: number) => void;
  /** Our subnets are others now: start again. */
  readonly moved: () => void;
}

export interface Membership {
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  readonly port: number;
  readonly registry: Registry;
  readonly subnetFile: string | undefined;
  /** How we came by the subnets; undefined where there are no leases. */
  readonly lease: 'new' | 'reused' | 'taken over' | 'warm' | undefined;
  /** Seconds until the lease ends; undefined where there are no leases. */
  secondsLeft(): number | undefined;
  /** False while nothing is forwarded because our lease has ended. */
  forwards(): boolean;
  /** To be called when nobody watches the registry any more. */
  close(): Promise<void>;
}

/** Rejects with a SetupError. */
export async function becomeMember(options: MembershipOptions): Promise<Membership> {
  if (options.wish.registry === 'static') return byFile(options.wish);
  // Loaded when it is needed: nobody else has to carry LMDB.
  const { byLease } = await import('./lease-membership.js');
  return byLease(options);
}

function byFile(wish: MembershipWish): Membership {
  const { mode, networks, subnets, subnetFile, peersFile = '', port = DEFAULT_PORTS[mode] } = wish;
  const registry = new StaticRegistry(peersFile, { mode, port });
  const none = { lease: undefined, secondsLeft: () => undefined, forwards: () => true, close: async () => {} };
  return { networks, subnets, port, registry, subnetFile, ...none };
}
