/**
 * What our tables say of an address, a MAC or a name, for people: the registry's plan, indexed once for each version of it, and what
 * workers have learned, copied from their tables. Whom a packet really goes to is told by the walk; this tells which entry it was.
 */
import type { Applier } from '../control/apply.js';
import { type Cidr, cidrOf, parseAddress, textOf } from '../control/cidr.js';
import { macBytesOf, macText } from '../control/mac.js';
import { OURSELVES, type Plan, type PlannedMac, type PlannedPeer, type PlannedRoute } from '../control/plan.js';
import { addressWords } from '../dataplane/addresses.js';
import { floodList } from '../dataplane/floods.js';
import { addressOf as entryAddress } from '../dataplane/forwarding.js';
import {
  copyMac,
  LOCAL,
  MAC_COPY,
  MAC_REF,
  MAC_SEEN,
  macBytes,
  macHigh,
  macLow,
  PeerShares,
} from '../dataplane/macs.js';
import {
  copyNeighbour,
  NEIGHBOUR_COPY,
  NEIGHBOUR_MAC_HIGH,
  NEIGHBOUR_MAC_LOW,
  NEIGHBOUR_NETWORK,
  NEIGHBOUR_REF,
  NEIGHBOUR_SEEN,
  NEIGHBOUR_STATE,
} from '../dataplane/neighbours.js';
import { NETWORK_DEVICE_MAC } from '../dataplane/networks.js';
import { PEER_MTU } from '../dataplane/peers.js';
import { SharedWords } from '../dataplane/shared.js';
import { type EngineMemory, NETWORK_BYTES, PEER_BYTES } from '../io/memory.js';

/** Where something is: what the registry says, or what a worker has learned. */
export interface Found {
  readonly origin: 'registry' | 'learned';
  /** Milliseconds since it was seen; undefined: it does not age. */
  readonly age: number | undefined;
  /** Behind our own device; else behind `peer`, unless that has just left. */
  readonly ours: boolean;
  readonly peer: PlannedPeer | undefined;
}

export interface FoundNeighbour extends Found {
  readonly mac: Uint8Array;
}

/** Slots that are looked through for any entry that will do, where something else does as well. */
export const MOST_LOOKED_AT = 1 << 11;

/** Made once for a plan. */
interface Index {
  readonly byName: Map<string, PlannedPeer[]>;
  readonly byAddress: Map<string, PlannedPeer[]>;
  readonly byRef: Map<number, PlannedPeer>;
  /** First of a peer's, by its key. */
  readonly routes: Map<string, PlannedRoute[]>;
  readonly macs: Map<string, PlannedMac>;
  /** Lengths of prefixes that there are, the longest first, by family. */
  readonly lengths: Readonly<Record<4 | 6, readonly number[]>>;
  readonly hostLengths: Readonly<Record<4 | 6, readonly number[]>>;
}

export interface KnownParts {
  readonly memory: EngineMemory;
  readonly applier: Pick<Applier, 'have' | 'ref'>;
  /** Names of our devices, by network. */
  readonly devices: readonly string[];
  /** Milliseconds after which what was learned is not used any more. */
  readonly age: number;
}

export class Known {
  readonly #parts: KnownParts;
  readonly #shared: SharedWords;
  readonly #shares: PeerShares;
  readonly #mac = new Int32Array(MAC_COPY);
  readonly #neighbour = new Int32Array(NEIGHBOUR_COPY);
  #plan: Plan | undefined;
  #index: Index = indexOf(new Map(), new Map(), new Map(), new Map(), () => undefined);

  constructor(parts: KnownParts) {
    this.#parts = parts;
    this.#shared = new SharedWords(parts.memory);
    this.#shares = new PeerShares(parts.memory, 0);
  }

  peersNamed(name: string): readonly PlannedPeer[] {
    return this.#indexed().byName.get(name) ?? [];
  }

  /** At an underlay address, canonical text. */
  peersAt(address: string): readonly PlannedPeer[] {
    return this.#indexed().byAddress.get(address) ?? [];
  }

  /** The first prefix of a peer, of that family if there is one. */
  routeOf(peer: PlannedPeer, family: 4 | 6 | undefined): Cidr | undefined {
    const all = this.#indexed().routes.get(peer.key) ?? [];
    return all.find(({ prefix }) => family === undefined || prefix.family === family)?.prefix;
  }

  /** A MAC that the registry says is behind a peer. */
  macOf(peer: PlannedPeer): Uint8Array | undefined {
    return this.#indexed().macs.get(peer.key)?.macBytes;
  }

  /** A MAC that the first worker has learned from a peer. Reads at most so many slots of its table until it finds one. */
  learnedMacOf(peer: PlannedPeer, now: number, most = Number.POSITIVE_INFINITY): Uint8Array | undefined {
    const { memory, applier } = this.#parts;
    const ref = applier.ref(peer.key);
    const [worker] = memory.layout.workers;
    const { i32 } = memory;
    const words = this.#mac.length / 2;
    for (let slot = 0; slot < Math.min(worker.macSlots, most); slot++) {
      const at = (worker.macs >> 2) + slot * words;
      if (i32[at + MAC_REF] === ref && ((now - i32[at + MAC_SEEN]) | 0) <= this.#parts.age) {
        return macBytes(i32[at], i32[at + 1]);
      }
    }
    return undefined;
  }

  /** The longest prefix that an address is in. */
  route(address: Uint8Array): { readonly prefix: Cidr; readonly peer: PlannedPeer | undefined } | undefined {
    const { have } = this.#parts.applier;
    const { lengths } = this.#indexed();
    for (const length of lengths[address.length === 4 ? 4 : 6]) {
      const found = have.routes.get(`0 ${cidrOf(address, length).text}`);
      if (found) return { prefix: found.prefix, peer: have.peers.get(found.peer) };
    }
    return undefined;
  }

  /** Where this host's kernel sends an address through one of our devices: flannel's routes and neighbours. */
  hostHop(
    address: Uint8Array,
  ): { readonly via: string; readonly mac: Uint8Array; readonly network: number } | undefined {
    const { applier, devices } = this.#parts;
    for (const length of this.#indexed().hostLengths[address.length === 4 ? 4 : 6]) {
      const found = applier.have.hostRoutes.get(cidrOf(address, length).text);
      if (!found) continue;
      const { via, device } = found.route;
      const neighbour = applier.have.hostNeighbours.get(`${device} ${via}`)?.neighbour;
      const network = devices.indexOf(device);
      const mac = neighbour && macBytesOf(neighbour.mac);
      if (mac && network >= 0) return { via, mac, network };
    }
    return undefined;
  }

  /** Where a MAC is, as the freshest of the workers has it. */
  mac(network: number, mac: Uint8Array, now: number): Found | undefined {
    const { applier, memory, age: most } = this.#parts;
    const fixed = applier.have.macs.get(`${network} ${macText(mac)}`);
    if (fixed) return this.#fixed(fixed);
    let found: Found | undefined;
    for (const worker of memory.layout.workers) {
      if (!copyMac(memory, worker, macLow(mac), macHigh(mac) | (network << 16), this.#mac)) continue;
      const one = this.#learned(this.#mac[MAC_REF], (now - this.#mac[MAC_SEEN]) | 0, most);
      if (one && (found === undefined || (one.age ?? 0) < (found.age ?? 0))) found = one;
    }
    return found;
  }

  /** Who has an address on a network, untagged. */
  neighbour(network: number, address: Uint8Array, now: number): FoundNeighbour | undefined {
    const { applier, memory, age: most } = this.#parts;
    const fixed = applier.have.neighbours.get(`${network} ${textOf(address)}`);
    if (fixed) return { ...this.#fixed(fixed), mac: fixed.macBytes };
    const [w0, w1, w2, w3] = addressWords(address);
    let found: FoundNeighbour | undefined;
    for (const worker of memory.layout.workers) {
      const entry = this.#neighbour;
      if (!copyNeighbour(memory, worker, w0, w1, w2, w3, network, entry)) continue;
      const one = this.#learned(entry[NEIGHBOUR_REF], (now - entry[NEIGHBOUR_SEEN]) | 0, most);
      if (one && (found === undefined || (one.age ?? 0) < (found.age ?? 0))) {
        found = { ...one, mac: macBytes(entry[NEIGHBOUR_MAC_LOW], entry[NEIGHBOUR_MAC_HIGH]) };
      }
    }
    return found;
  }

  /** A station on our side, of which a worker has learned an address of that family; one that may be asked for. */
  station(
    network: number,
    family: 4 | 6,
    now: number,
  ): { readonly address: Uint8Array; readonly mac: Uint8Array } | undefined {
    const { memory, age: most } = this.#parts;
    const [{ neighbours, neighbourSlots }] = memory.layout.workers;
    const words = this.#neighbour.length;
    for (let slot = 0; slot < Math.min(neighbourSlots, MOST_LOOKED_AT); slot++) {
      const entry = memory.i32.subarray((neighbours >> 2) + slot * words, (neighbours >> 2) + (slot + 1) * words);
      if (entry[NEIGHBOUR_STATE] === 0 || entry[NEIGHBOUR_REF] !== LOCAL || entry[NEIGHBOUR_NETWORK] !== network)
        continue;
      const address = entryAddress(entry);
      const isHere = address.length === (family === 4 ? 4 : 16) && ((now - entry[NEIGHBOUR_SEEN]) | 0) <= most;
      if (isHere) return { address, mac: macBytes(entry[NEIGHBOUR_MAC_LOW], entry[NEIGHBOUR_MAC_HIGH]) };
    }
    return undefined;
  }

  #fixed({ peer }: PlannedMac): Found {
    const ours = peer === OURSELVES;
    return { origin: 'registry', age: undefined, ours, peer: this.#parts.applier.have.peers.get(peer) };
  }

  #learned(ref: number, age: number, most: number): Found | undefined {
    if (age > most || !this.#shares.alive(ref)) return undefined;
    return { origin: 'learned', age: Math.max(0, age), ours: ref === LOCAL, peer: this.#byRef(ref) };
  }

  #byRef(ref: number): PlannedPeer | undefined {
    const found = this.#indexed().byRef.get(ref);
    if (found && this.#parts.applier.ref(found.key) === ref) return found;
    this.#plan = undefined; // a change that was undone gave peers new references
    return this.#indexed().byRef.get(ref);
  }

  /** How many peers a network's frames are flooded to. */
  floodCount(network: number): number {
    const { memory } = this.#parts;
    const table = memory.layout.tables[this.#shared.activeVersion()];
    return memory.i32[floodList(table, memory.options.peers, network)];
  }

  /** The largest packet (layer 2: frame) that is sent to a peer now. */
  pathMtu(peer: PlannedPeer): number {
    const ref = this.#parts.applier.ref(peer.key);
    if (ref === undefined) return peer.mtu;
    const { memory } = this.#parts;
    return memory.i32[((memory.layout.peers + (ref & 0xffff) * PEER_BYTES) >> 2) + PEER_MTU];
  }

  /** Our device's MAC, if that is known. */
  deviceMac(network: number): Uint8Array | undefined {
    const { i32, layout } = this.#parts.memory;
    const at = ((layout.networks + network * NETWORK_BYTES) >> 2) + NETWORK_DEVICE_MAC;
    const bytes = macBytes(i32[at], i32[at + 1]);
    return bytes.some((byte) => byte !== 0) ? bytes : undefined;
  }

  /** Why nothing is forwarded at all at `now`; undefined: it is. */
  shut(now: number): string | undefined {
    return this.#shared.gateOpen(now) ? undefined : 'our lease has ended: nothing is forwarded until it is renewed';
  }

  #indexed(): Index {
    const { applier } = this.#parts;
    const { have } = applier;
    if (this.#plan !== have) {
      this.#index = indexOf(have.peers, have.routes, have.macs, have.hostRoutes, (key) => applier.ref(key));
      this.#plan = have;
    }
    return this.#index;
  }
}

function indexOf(
  peers: Plan['peers'],
  routes: Plan['routes'],
  macs: Plan['macs'],
  hostRoutes: Plan['hostRoutes'],
  refOf: (key: string) => number | undefined,
): Index {
  const byName = new Map<string, PlannedPeer[]>();
  const byAddress = new Map<string, PlannedPeer[]>();
  const byRef = new Map<number, PlannedPeer>();
  for (const peer of peers.values()) {
    append(byName, peer.name, peer);
    append(byAddress, peer.address, peer);
    const ref = refOf(peer.key);
    if (ref !== undefined) byRef.set(ref, peer);
  }
  const byPeer = new Map<string, PlannedRoute[]>();
  const lengths = { 4: new Set<number>(), 6: new Set<number>() };
  for (const route of routes.values()) {
    lengths[route.prefix.family].add(route.prefix.length);
    const known = byPeer.get(route.peer);
    // One of each family is enough.
    if (!known?.some(({ prefix }) => prefix.family === route.prefix.family)) append(byPeer, route.peer, route);
  }
  const firstMacs = new Map<string, PlannedMac>();
  for (const mac of macs.values()) if (!firstMacs.has(mac.peer)) firstMacs.set(mac.peer, mac);
  const hostLengths = { 4: new Set<number>(), 6: new Set<number>() };
  for (const { route } of hostRoutes.values()) {
    const [address, length] = route.prefix.split('/');
    hostLengths[parseAddress(address).family].add(Number(length));
  }
  return {
    byName,
    byAddress,
    byRef,
    routes: byPeer,
    macs: firstMacs,
    lengths: { 4: longestFirst(lengths[4]), 6: longestFirst(lengths[6]) },
    hostLengths: { 4: longestFirst(hostLengths[4]), 6: longestFirst(hostLengths[6]) },
  };
}

function append<T>(map: Map<string, T[]>, key: string, value: T): void {
  const known = map.get(key);
  if (known) known.push(value);
  else map.set(key, [value]);
}

const longestFirst = (lengths: Iterable<number>): number[] => [...lengths].sort((a, b) => b - a);
