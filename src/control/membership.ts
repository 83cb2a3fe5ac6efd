/**
 * This host's place in the overlay: which subnets are its own (in layer 2 none are anybody's), and the registry that tells of the
 * others. With a static registry the configuration says it; with the embedded one it is a lease, or, while that registry is away, what we remember of it.
 */
import type { Family } from '../dataplane/routes.js';
import type { ConfigWish } from './allocation.js';
import type { Backend } from './backend.js';
import type { Address, Cidr } from './cidr.js';
import { DEFAULT_PORTS, type Mode } from './encapsulation.js';
import type { EventLog } from './event-log.js';
import type { Registry } from './registry.js';
import { StaticRegistry } from './static-registry.js';
import type { Underlay } from './underlay.js';

/** Of the configuration, what says who we are. */
export interface MembershipWish {
  readonly mode: Mode;
  /** The networks of layer 2. */
  readonly segments: readonly { readonly vni: number }[];
  readonly registry: 'embedded' | 'static' | 'etcd';
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

/** What only etcd is asked with. */
export interface EtcdWish {
  /** Minutes. */
  readonly renewMargin: number;
  readonly etcdEndpoints: readonly string[];
  readonly etcdPrefix: string;
  readonly etcdKeyFile: string | undefined;
  readonly etcdCertFile: string | undefined;
  readonly etcdCaFile: string | undefined;
  readonly etcdUsername: string | undefined;
  readonly etcdPassword: string | undefined;
  readonly publicIps: readonly Address[];
}

export interface RegistryOptions extends Omit<MembershipOptions, 'addresses'> {
  readonly wish: MembershipWish & EtcdWish;
  /** What was found without the registry. */
  readonly underlay: Underlay;
  /** Finds one with an address of each of these families, which is then the one that is used. Rejects with a SetupError. */
  readonly underlayFor: (families: readonly Family[]) => Promise<Underlay>;
  /** Our lease was taken away: stop. */
  readonly revoked: () => void;
  /** Ends the waiting for a registry that is away. */
  readonly signal: AbortSignal;
}

/** MACs of our VXLAN devices by underlay family: canonical text. */
export interface MacsByFamily {
  readonly 4?: string | undefined;
  readonly 6?: string | undefined;
}

/** Knows the overlay, and is not in it yet. */
export interface Candidate {
  /** IPv4 first; empty: only joining tells. */
  readonly networks: readonly Cidr[];
  /** What the registry says; undefined: it leaves that to the configuration. */
  readonly backend: Backend | undefined;
  /** The registry wants the host's rules made by nft, not by iptables. */
  readonly nftables: boolean;
  /**
   * Takes a lease. `macs`: those that our VXLAN devices have already; for others that of our own lease before, or else a random
   * one, is found. Rejects with a SetupError.
   */
  join(macs: MacsByFamily): Promise<Membership>;
  /** Lets go of the registry, in the overlay or not; nobody may watch it any more. */
  close(): Promise<void>;
}

export interface Membership {
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  readonly port: number;
  readonly registry: Registry;
  readonly subnetFile: string | undefined;
  /** Of our VXLAN devices, as the others know them; empty where the registry knows of none. */
  readonly macs?: MacsByFamily;
  /** How we came by the subnets; undefined where there are no leases. */
  readonly lease: 'new' | 'reused' | 'taken over' | 'warm' | undefined;
  /** Seconds until the lease ends; undefined where there are no leases. */
  secondsLeft(): number | undefined;
  /** Requests that were sent to the registry; undefined where that means nothing. */
  readonly requests?: () => number;
  /** False while nothing is forwarded because our lease has ended. */
  forwards(): boolean;
  /** To be called when nobody watches the registry any more; `Candidate.close` does. */
  close(): Promise<void>;
}

/** Opens the registry, as far as it has to be to know the overlay. Rejects with a SetupError. */
export async function openRegistry(options: RegistryOptions): Promise<Candidate> {
  if (options.wish.registry === 'etcd') return openEtcdRegistry(options);
  const { addresses } = options.underlay;
  return candidateBy(() => becomeMember({ ...options, addresses }));
}

/** By a peers file, or by a lease of the embedded registry. Rejects with a SetupError. */
export async function becomeMember(options: MembershipOptions): Promise<Membership> {
  if (options.wish.registry === 'static') return byFile(options.wish);
  // Loaded when it is needed: nobody else has to carry LMDB.
  const { byLease } = await import('./lease-membership.js');
  return byLease(options);
}

/** Of a registry that says nothing before we are in it. */
function candidateBy(become: () => Promise<Membership>): Candidate {
  let member: Membership | undefined;
  return {
    networks: [],
    backend: undefined,
    nftables: false,
    async join() {
      member = await become();
      return member;
    },
    async close() {
      await member?.close();
    },
  };
}

async function openEtcdRegistry(options: RegistryOptions): Promise<Candidate> {
  const { wish, stateDir, underlay, underlayFor, log, signal, moved, revoked } = options;
  // Loaded when it is needed: nobody else has to carry gRPC.
  const { openEtcd } = await import('./etcd-membership.js');
  return openEtcd({
    endpoints: wish.etcdEndpoints,
    prefix: wish.etcdPrefix,
    keyFile: wish.etcdKeyFile,
    certFile: wish.etcdCertFile,
    caFile: wish.etcdCaFile,
    username: wish.etcdUsername,
    password: wish.etcdPassword,
    ttl: wish.leaseTtl,
    renewMargin: wish.renewMargin,
    staleLimit: wish.staleLimit,
    stateDir,
    subnetFile: wish.subnetFile,
    addresses: underlay.addresses,
    underlayFor,
    log,
    signal,
    moved,
    revoked,
  });
}

function byFile(wish: MembershipWish): Membership {
  const { mode, networks, subnets, subnetFile, peersFile = '', port = DEFAULT_PORTS[mode] } = wish;
  const registry = new StaticRegistry(peersFile, { mode, port });
  const none = { lease: undefined, secondsLeft: () => undefined, forwards: () => true, close: async () => {} };
  return { networks, subnets, port, registry, subnetFile, ...none };
}
