/**
 * From records to what the tables should hold: which peers, and which prefix goes to whom. Pure.
 *
 * This is where what no record shows alone is found: two owners of one subnet, two peers at one address, an address that
 * none of our sockets reaches. A set of records with such a flaw is refused whole, so what is in force stays.
 */
import { setImmediate } from 'node:timers/promises';
import type { Family } from '../dataplane/routes.js';
import { MAX_PEERS } from '../io/memory.js';
import { type Cidr, contains, overlaps, parseAddress, parseCidr } from './cidr.js';
import type { PeerRecord, Records } from './records.js';

/** Layer 3 has one network; the tables are keyed by it all the same. */
const NETWORK = 0;

/** Every link must carry IPv6 packets of this many bytes (RFC 8200 5). */
const MTU_LEAST_IPV6 = 1280;

/** Outer headers without options: IPv4 20, IPv6 40, and UDP 8 bytes. */
export const OVERHEAD: Readonly<Record<Family, number>> = { 4: 28, 6: 48 };

export interface PlannedPeer {
  /** Equal for two peers exactly when one record in the tables can serve for both: all but the MTU is in it. */
  readonly key: string;
  readonly name: string;
  readonly network: number;
  readonly family: Family;
  /** Underlay address: canonical text, and network byte order. */
  readonly address: string;
  readonly bytes: Uint8Array;
  readonly port: number;
  readonly ecn: boolean;
  /** Largest inner packet, in bytes. */
  readonly mtu: number;
}

export interface PlannedRoute {
  readonly key: string;
  readonly network: number;
  readonly prefix: Cidr;
  /** Key of the peer that owns it. */
  readonly peer: string;
}

export interface Plan {
  readonly peers: ReadonlyMap<string, PlannedPeer>;
  readonly routes: ReadonlyMap<string, PlannedRoute>;
}

export const EMPTY_PLAN: Plan = { peers: new Map(), routes: new Map() };

/** What a plan must know of this host. */
export interface Self {
  /** Underlay addresses that we have sockets on, canonical text; a record at one of them is our own. */
  readonly addresses: readonly { readonly family: Family; readonly text: string }[];
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  /** MTU of the underlay interface, in bytes. */
  readonly underlayMtu: number;
}

interface Owned {
  readonly prefix: Cidr;
  readonly route: PlannedRoute;
  /** Sorts prefixes so that if any two of a list overlap, two neighbours do. */
  readonly order: string;
}

/** What a record comes to alone, kept as long as the record: of 10^5 subnets only the changed are parsed again. */
const parsed = new WeakMap<PeerRecord, { readonly peer: Omit<PlannedPeer, 'mtu'>; readonly owned: readonly Owned[] }>();

/** Subnets that are parsed before the event loop has its turn: some 20 ms' worth. */
const SLICE = 2000;

/**
 * Parses what `planFor` will need, in slices, so that 10^5 subnets keep no signal and no scrape waiting. What does not parse is
 * left for `planFor` to say. Ends early when `signal` aborts.
 */
export async function parseAhead(records: Records, signal: AbortSignal): Promise<void> {
  let since = 0;
  for (const record of records.values()) {
    if (!parsed.has(record)) {
      since += record.subnets.length;
      try {
        parse(record);
      } catch {
        // said by planFor
      }
    }
    if (since < SLICE) continue;
    since = 0;
    await setImmediate();
    if (signal.aborted) return;
  }
}

/** Throws a RangeError, one line, that names the peers and what is wrong. */
export function planFor(records: Records, self: Self): Plan {
  const own = new Set(self.addresses.map((address) => address.text));
  const families = new Set(self.addresses.map((address) => address.family));
  const peers = new Map<string, PlannedPeer>();
  const names = new Map<string, string>();
  const called = new Set<string>();
  const owned: Owned[] = [];
  for (const record of records.values()) {
    if (own.has(record.address)) continue;
    const { peer, owned: its } = parse(record);
    if (!families.has(peer.family)) {
      throw new RangeError(
        `peer ${record.name}: ${record.address} is IPv${peer.family}, but this host has no IPv${peer.family} underlay: add its address to --public-ip`,
      );
    }
    const other = names.get(record.address);
    if (other !== undefined)
      throw new RangeError(`peers ${other} and ${record.name} have one address, ${record.address}`);
    names.set(record.address, record.name);
    if (called.has(record.name)) throw new RangeError(`two peers are called ${record.name}`);
    called.add(record.name);
    const within = self.networks.find((network) =>
      contains(network, { bytes: peer.bytes, length: peer.bytes.length * 8 }),
    );
    if (within) {
      throw new RangeError(
        `peer ${record.name}: ${record.address} lies in --network ${within.text}: give its underlay address, not its overlay one`,
      );
    }
    const mtu = (record.underlayMtu ?? self.underlayMtu) - OVERHEAD[peer.family];
    if (mtu < MTU_LEAST_IPV6 && its.some((one) => one.prefix.family === 6)) {
      throw new RangeError(
        `peer ${record.name}: mtu ${record.underlayMtu} is too small for its IPv6 subnets: at least ${MTU_LEAST_IPV6 + OVERHEAD[peer.family]}`,
      );
    }
    peers.set(peer.key, { ...peer, mtu });
    for (const one of its) {
      const network = self.networks.find((candidate) => candidate.family === one.prefix.family);
      if (!network) continue; // a family that this host's overlay does not have
      if (!contains(network, one.prefix)) {
        throw new RangeError(`peer ${record.name}: subnet ${one.prefix.text} is not in --network ${network.text}`);
      }
      owned.push(one);
    }
  }
  if (peers.size > MAX_PEERS) throw new RangeError(`${peers.size} peers: at most ${MAX_PEERS} are possible`);
  return { peers, routes: routesOf(owned, peers, self) };
}

function routesOf(owned: Owned[], peers: ReadonlyMap<string, PlannedPeer>, self: Self): Map<string, PlannedRoute> {
  owned.sort((a, b) => (a.order < b.order ? -1 : a.order > b.order ? 1 : 0));
  const nameOf = (one: Owned): string => peers.get(one.route.peer)?.name ?? '';
  const routes = new Map<string, PlannedRoute>();
  for (const [i, one] of owned.entries()) {
    const before = owned[i - 1];
    if (before && contains(before.prefix, one.prefix)) {
      throw new RangeError(
        before.prefix.text === one.prefix.text
          ? `subnet ${one.prefix.text} has two owners, peers ${nameOf(before)} and ${nameOf(one)}`
          : `subnets ${before.prefix.text} of peer ${nameOf(before)} and ${one.prefix.text} of peer ${nameOf(one)} overlap`,
      );
    }
    for (const subnet of self.subnets) {
      if (overlaps(subnet, one.prefix)) {
        throw new RangeError(
          `peer ${nameOf(one)}: subnet ${one.prefix.text} overlaps --subnet ${subnet.text} of this host`,
        );
      }
    }
    routes.set(one.route.key, one.route);
  }
  return routes;
}

function parse(record: PeerRecord): { readonly peer: Omit<PlannedPeer, 'mtu'>; readonly owned: readonly Owned[] } {
  const known = parsed.get(record);
  if (known) return known;
  const { family, bytes } = parseAddress(record.address);
  const { name, address, port, ecn } = record;
  const key = `${NETWORK} ${address} ${port} ${ecn ? 'ecn' : 'plain'}`;
  const owned = record.subnets.map((text): Owned => {
    const prefix = parseCidr(text);
    return {
      prefix,
      route: { key: `${NETWORK} ${text}`, network: NETWORK, prefix, peer: key },
      order: String.fromCharCode(prefix.family, ...prefix.bytes, prefix.length),
    };
  });
  const made = { peer: { key, name, network: NETWORK, family, address, bytes, port, ecn }, owned };
  parsed.set(record, made);
  return made;
}
