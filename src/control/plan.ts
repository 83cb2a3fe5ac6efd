/**
 * From records to what the tables should hold: which peers are in which network, and which prefix, MAC and neighbour is whose;
 * and, where the kernel routes, what its tables should. Pure.
 *
 * This is where what no record shows alone is found: two owners of one subnet or MAC, two peers at one address, an address
 * that none of our sockets reaches. A set of records with such a flaw is refused whole, so what is in force stays.
 */
import { setImmediate } from 'node:timers/promises';
import type { Family } from '../dataplane/routes.js';
import type { KernelNeighbour, KernelRoute } from '../host/routes.js';
import { MAX_PEERS } from '../io/memory.js';
import { type Address, type Cidr, contains, overlaps, parseAddress, parseCidr, textOf } from './cidr.js';
import { INNER_MOST, type Mode, OVERHEAD } from './encapsulation.js';
import { parseMac } from './mac.js';
import type { PeerRecord, Records, StationMac } from './records.js';

/** Layer 3 has one network; the tables are keyed by it all the same. */
const NETWORK = 0;

/** Every link must carry IPv6 packets of this many bytes (RFC 8200 5). */
const MTU_LEAST_IPV6 = 1280;

/** A record in one of our networks. */
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
  /** Bytes of the outer headers on the way to it. */
  readonly overhead: number;
  /** Largest inner packet, in layer 2 frame, in bytes. */
  readonly mtu: number;
}

export interface PlannedRoute {
  readonly key: string;
  readonly network: number;
  readonly prefix: Cidr;
  /** Key of the peer that owns it. */
  readonly peer: string;
}

/** A station behind a peer. */
export interface PlannedMac {
  readonly key: string;
  readonly network: number;
  /** Canonical text, and six bytes. */
  readonly mac: string;
  readonly macBytes: Uint8Array;
  /** Key of the peer that it is behind. */
  readonly peer: string;
}

/** An IP address of one. */
export interface PlannedNeighbour extends PlannedMac {
  /** Canonical text, and network byte order. */
  readonly address: string;
  readonly addressBytes: Uint8Array;
  readonly router: boolean;
}

/** A route of this host's kernel, to a peer's subnet. */
export interface PlannedHostRoute {
  readonly key: string;
  readonly route: KernelRoute;
}

/** A permanent neighbour of this host's kernel, on one of our devices. */
export interface PlannedHostNeighbour {
  readonly key: string;
  readonly neighbour: KernelNeighbour;
}

/** Each by its key. */
export interface Plan {
  readonly peers: ReadonlyMap<string, PlannedPeer>;
  readonly routes: ReadonlyMap<string, PlannedRoute>;
  readonly macs: ReadonlyMap<string, PlannedMac>;
  readonly neighbours: ReadonlyMap<string, PlannedNeighbour>;
  readonly hostRoutes: ReadonlyMap<string, PlannedHostRoute>;
  readonly hostNeighbours: ReadonlyMap<string, PlannedHostNeighbour>;
}

/** Instead of a peer's key: our own side of the tunnel. */
export const OURSELVES = 'ourselves';

export const EMPTY_PLAN: Plan = {
  peers: new Map(),
  routes: new Map(),
  macs: new Map(),
  neighbours: new Map(),
  hostRoutes: new Map(),
  hostNeighbours: new Map(),
};

/** How this host's kernel is to route to the peers' subnets, by flannel's names. */
export type HostRouting =
  | {
      readonly kind: 'vxlan';
      /** By network. */
      readonly devices: readonly string[];
      /** The device that leads to peers who need no encapsulation, by underlay address, canonical text. */
      readonly direct: ReadonlyMap<string, string>;
    }
  | { readonly kind: 'host-gw'; readonly interface: string };

/** What a plan must know of this host. */
export interface Self {
  /** Underlay addresses that we have sockets on, canonical text; a record at one of them is our own. */
  readonly addresses: readonly { readonly family: Family; readonly text: string }[];
  /** What is routed into the device: the overlay, in layer 2 the prefixes of the devices' addresses. */
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  /** MTU of the underlay interface, in bytes. */
  readonly underlayMtu: number;
  /** Layer 2: our VNIs, by network. Empty in layer 3. */
  readonly vnis: readonly number[];
  /** Layer 2: the underlay that a network goes over, by network; where there is none, any. */
  readonly families?: readonly (Family | undefined)[];
  /** Peers' underlay addresses may lie in the networks, as flannel lets them: the links that they are on have routes of their own. */
  readonly underlayInside?: boolean;
  /** undefined: no kernel routes to peers; all goes through our devices. */
  readonly hostRouting?: HostRouting | undefined;
}

interface Owned {
  readonly prefix: Cidr;
  readonly route: PlannedRoute;
  /** Sorts prefixes so that if any two of a list overlap, two neighbours do. */
  readonly order: string;
}

/** What a record comes to alone. */
interface Parsed {
  readonly underlay: Address;
  /** By network that it is in. */
  readonly peers: readonly Omit<PlannedPeer, 'mtu'>[];
  readonly owned: readonly Owned[];
  readonly macs: readonly PlannedMac[];
  readonly neighbours: readonly PlannedNeighbour[];
  /** For whom: `Self.vnis`. */
  readonly vnis: readonly number[];
}

/** Kept as long as the record: of 10^5 subnets only the changed are parsed again. */
const parsed = new WeakMap<PeerRecord, Parsed>();

/** Subnets, MACs and neighbours that are parsed before the event loop has its turn: some 20 ms' worth. */
const SLICE = 2000;

/**
 * Parses what `planFor` will need, in slices, so that 10^5 subnets keep no signal and no scrape waiting. What does not parse is
 * left for `planFor` to say. Ends early when `signal` aborts.
 */
export async function parseAhead(records: Records, self: Self, signal: AbortSignal): Promise<void> {
  let since = 0;
  for (const record of records.values()) {
    if (parsed.get(record)?.vnis !== self.vnis) {
      since += record.subnets.length + record.macs.length + record.neighbours.length;
      try {
        parse(record, self);
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
  const mode = modeOf(self);
  const own = new Set(self.addresses.map((address) => address.text));
  const families = new Set(self.addresses.map((address) => address.family));
  const peers = new Map<string, PlannedPeer>();
  const names = new Map<string, string>();
  const called = new Set<string>();
  const owned: Owned[] = [];
  const macs: PlannedMac[] = [];
  const neighbours: PlannedNeighbour[] = [];
  const host = new HostPlan(self.hostRouting);
  for (const record of records.values()) {
    if (own.has(record.address)) {
      // What the registry says of our own stations holds against everybody else.
      const ours = parse(record, self);
      for (const one of ours.macs) macs.push({ ...one, peer: OURSELVES });
      for (const one of ours.neighbours) neighbours.push({ ...one, peer: OURSELVES });
      continue;
    }
    const its = parse(record, self);
    const { family, bytes } = its.underlay;
    const other = names.get(record.address);
    if (other !== undefined)
      throw new RangeError(`peers ${other} and ${record.name} have one address, ${record.address}`);
    names.set(record.address, record.name);
    if (called.has(record.name)) throw new RangeError(`two peers are called ${record.name}`);
    called.add(record.name);
    if (its.peers.length === 0) continue; // it is in none of our networks
    if (!families.has(family)) {
      throw new RangeError(
        `peer ${record.name}: ${record.address} is IPv${family}, but this host has no IPv${family} underlay: add its address to --public-ip`,
      );
    }
    const within =
      !self.underlayInside && self.networks.find((network) => contains(network, { bytes, length: bytes.length * 8 }));
    if (within) {
      throw new RangeError(
        `peer ${record.name}: ${record.address} lies in ${mode === 'l2' ? '--address' : '--network'} ${within.text}: give its underlay address, not its overlay one`,
      );
    }
    for (const peer of its.peers) {
      const mtu = Math.min((record.underlayMtu ?? self.underlayMtu) - peer.overhead, INNER_MOST[mode]);
      if (mtu < MTU_LEAST_IPV6 && its.owned.some((one) => one.prefix.family === 6)) {
        throw new RangeError(
          `peer ${record.name}: mtu ${record.underlayMtu} is too small for its IPv6 subnets: at least ${MTU_LEAST_IPV6 + peer.overhead}`,
        );
      }
      peers.set(peer.key, { ...peer, mtu });
    }
    for (const one of its.macs) macs.push(one);
    for (const one of its.neighbours) neighbours.push(one);
    for (const one of its.owned) {
      const network = self.networks.find((candidate) => candidate.family === one.prefix.family);
      if (!network) continue; // a family that this host's overlay does not have
      if (!contains(network, one.prefix)) {
        throw new RangeError(`peer ${record.name}: subnet ${one.prefix.text} is not in --network ${network.text}`);
      }
      owned.push(one);
      host.add(record.name, its, one.prefix);
    }
  }
  if (peers.size > MAX_PEERS) throw new RangeError(`${peers.size} peers: at most ${MAX_PEERS} are possible`);
  const routes = routesOf(owned, peers, self);
  return {
    peers,
    routes: mode === 'l3' ? routes : new Map(), // in layer 2 nobody in the dataplane asks whose a prefix is
    macs: macsOf(macs, peers, self),
    neighbours: neighboursOf(neighbours, peers, self),
    hostRoutes: host.routes,
    hostNeighbours: host.neighbours,
  };
}

/** What the kernel should know of the peers' subnets, as flannel's backends tell it. */
class HostPlan {
  readonly routes = new Map<string, PlannedHostRoute>();
  readonly neighbours = new Map<string, PlannedHostNeighbour>();
  readonly #routing: HostRouting | undefined;

  constructor(routing: HostRouting | undefined) {
    this.#routing = routing;
  }

  /** A subnet of a peer. A next hop is of the subnet's own family. */
  add(name: string, { underlay, peers: [{ network }], macs }: Parsed, prefix: Cidr): void {
    const routing = this.#routing;
    if (!routing || prefix.family !== underlay.family) return;
    if (routing.kind === 'host-gw') {
      this.#route({ prefix: prefix.text, via: underlay.text, device: routing.interface, onlink: false });
      return;
    }
    const mac = macs.find((one) => one.network === network)?.mac;
    if (mac === undefined) throw new RangeError(`peer ${name}: the MAC of its VXLAN device is missing`);
    const device = routing.devices[network];
    const via = textOf(prefix.bytes);
    this.neighbours.set(`${device} ${via}`, { key: `${device} ${via}`, neighbour: { device, address: via, mac } });
    const direct = routing.direct.get(underlay.text);
    this.#route(
      direct !== undefined
        ? { prefix: prefix.text, via: underlay.text, device: direct, onlink: false }
        : { prefix: prefix.text, via, device, onlink: true },
    );
  }

  #route(route: KernelRoute): void {
    this.routes.set(route.prefix, { key: route.prefix, route });
  }
}

type Peers = ReadonlyMap<string, PlannedPeer>;

const nameIn = (peers: Peers, { peer }: { readonly peer: string }): string => peers.get(peer)?.name ?? 'this host';

function routesOf(owned: Owned[], peers: Peers, self: Self): Map<string, PlannedRoute> {
  owned.sort((a, b) => (a.order < b.order ? -1 : a.order > b.order ? 1 : 0));
  const nameOf = (one: Owned): string => nameIn(peers, one.route);
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

function macsOf(all: readonly PlannedMac[], peers: Peers, self: Self): Map<string, PlannedMac> {
  const macs = new Map<string, PlannedMac>();
  for (const one of all) {
    const other = macs.get(one.key) ?? one;
    if (other.peer !== one.peer) {
      throw new RangeError(
        `MAC ${one.mac} of VNI ${self.vnis[one.network]} is behind two hosts, ${nameIn(peers, other)} and ${nameIn(peers, one)}`,
      );
    }
    macs.set(one.key, other);
  }
  return macs;
}

function neighboursOf(all: readonly PlannedNeighbour[], peers: Peers, self: Self): Map<string, PlannedNeighbour> {
  const neighbours = new Map<string, PlannedNeighbour>();
  for (const one of all) {
    const other = neighbours.get(one.key) ?? one;
    const what = `neighbour ${one.address} of VNI ${self.vnis[one.network]}`;
    if (other.mac !== one.mac) {
      throw new RangeError(
        `${what} has two MACs, ${other.mac} of ${nameIn(peers, other)} and ${one.mac} of ${nameIn(peers, one)}`,
      );
    }
    if (other.router !== one.router) {
      throw new RangeError(`${nameIn(peers, one)}: ${what} is listed as a router and as none`);
    }
    neighbours.set(one.key, other);
  }
  return neighbours;
}

const modeOf = (self: Self): Mode => (self.vnis.length > 0 ? 'l2' : 'l3');

function parse(record: PeerRecord, self: Self): Parsed {
  const known = parsed.get(record);
  if (known && known.vnis === self.vnis) return known;
  const mode = modeOf(self);
  const underlay = parseAddress(record.address);
  const { name, address, port } = record;
  // Whoever speaks VXLAN does with ECN what RFC 6040 says.
  const ecn = record.ecn || mode === 'l2';
  const keyIn = (network: number): string => `${network} ${address} ${port} ${ecn ? 'ecn' : 'plain'}`;
  const numbers =
    mode === 'l3'
      ? [NETWORK]
      : networksOf(record.vnis, self).filter((network) => {
          return (self.families?.[network] ?? underlay.family) === underlay.family;
        });
  /** Each station in each of our networks that it is in. */
  const stations = <T extends StationMac>(list: readonly T[]) =>
    list.flatMap((station) => {
      const { text: mac, bytes: macBytes } = parseMac(station.mac);
      const its =
        station.vni === undefined ? numbers : networksOf([station.vni], self).filter((one) => numbers.includes(one));
      return its.map((network) => ({ station, network, mac, macBytes, peer: keyIn(network) }));
    });
  const made: Parsed = {
    underlay,
    peers: numbers.map((network) => {
      const { family, bytes } = underlay;
      return {
        key: keyIn(network),
        name,
        network,
        family,
        address,
        bytes,
        port,
        ecn,
        overhead: OVERHEAD[mode][family],
      };
    }),
    owned: record.subnets.map((text): Owned => {
      const prefix = parseCidr(text);
      return {
        prefix,
        route: { key: `${NETWORK} ${text}`, network: NETWORK, prefix, peer: keyIn(NETWORK) },
        order: String.fromCharCode(prefix.family, ...prefix.bytes, prefix.length),
      };
    }),
    macs: stations<StationMac>([...record.macs, ...record.neighbours]).map(({ network, mac, macBytes, peer }) => {
      return { key: `${network} ${mac}`, network, mac, macBytes, peer };
    }),
    neighbours: stations(record.neighbours).map(({ station, network, mac, macBytes, peer }) => {
      const { text: address, bytes: addressBytes } = parseAddress(station.address);
      const { router } = station;
      return { key: `${network} ${address}`, network, mac, macBytes, peer, address, addressBytes, router };
    }),
    vnis: self.vnis,
  };
  parsed.set(record, made);
  return made;
}

/** Our networks with these VNIs; all if there are none. A VNI that is not ours is for others. */
const networksOf = (vnis: readonly number[], self: Self): number[] =>
  [...self.vnis.keys()].filter((network) => vnis.length === 0 || vnis.includes(self.vnis[network]));
