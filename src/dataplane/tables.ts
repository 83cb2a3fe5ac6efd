/**
 * Control's hand on the tables: two versions, one in use. Changes are gathered, then `commit()` applies them to the spare
 * version, flips, waits until every worker has let go of the old version, and applies them there too. So k changes cost
 * O(k), workers see all of a commit or nothing, and no packet waits.
 *
 * A removed peer's slot is free again when the commit that removed it has ended.
 *
 * A switch (layer 2) has static MACs, static neighbours and flood lists too; layer 3 has none of them and does nothing
 * for them.
 */
import type { EngineMemory } from '../io/memory.js';
import { AddressTable, addressWords } from './addresses.js';
import { FloodLists } from './floods.js';
import { macHigh, macLow, StaticMacTable } from './macs.js';
import { ROUTER, ROUTER_KNOWN, StaticNeighbourTable } from './neighbours.js';
import { type PeerRef, PeerSlots, type PeerSpec } from './peers.js';
import { type Prefix, RouteTrie } from './routes.js';
import { SharedWords } from './shared.js';

/** What only a switch has. */
interface SwitchTables {
  readonly macs: StaticMacTable;
  readonly neighbours: StaticNeighbourTable;
  readonly floods: FloodLists;
}

interface Version {
  readonly routes: RouteTrie;
  readonly addresses: AddressTable;
  readonly l2: SwitchTables | undefined;
}

type Change = (version: Version) => void;

/** A number for IPv4: a fifth of what a string costs, and 10^5 of them change hands at once. */
const prefixKey = (network: number, bytes: Uint8Array, length: number): number | string =>
  bytes.length === 4
    ? (network * 64 + length) * 2 ** 32 + (((bytes[0] << 24) | (bytes[1] << 16) | (bytes[2] << 8) | bytes[3]) >>> 0)
    : `${network}/${length}/${String.fromCharCode(...bytes)}`;

/** The same for MACs: exact, since a network needs 4 bits and a MAC 48. */
const macKey = (network: number, mac: Uint8Array): number =>
  (network * 65536 + macHigh(mac)) * 2 ** 32 + (macLow(mac) >>> 0);

export class Tables {
  readonly #shared: SharedWords;
  readonly #versions: readonly Version[];
  readonly #peers: PeerSlots;
  readonly #wake: () => void;
  readonly #routes = new Map<number | string, PeerRef>();
  readonly #addresses = new Map<PeerRef, { readonly words: Int32Array; readonly network: number }>();
  /** Most static MACs, and most static neighbours; undefined in layer 3. */
  readonly #statics: number | undefined;
  readonly #macs = new Set<number>();
  readonly #neighbours = new Set<number | string>();
  #changes: Change[] = [];
  #removed: PeerRef[] = [];
  #nodesWanted = 0;
  #committing: Promise<void> | undefined;

  /** `wake` ends the blocking poll of every worker, so that an idle one takes a turn. */
  constructor(memory: EngineMemory, wake: () => void) {
    this.#shared = new SharedWords(memory);
    this.#peers = new PeerSlots(memory);
    this.#wake = wake;
    const { macs = 0, statics = 0 } = memory.options;
    this.#statics = macs > 0 ? statics : undefined;
    this.#versions = memory.layout.tables.map((table) => ({
      routes: new RouteTrie(memory, table),
      addresses: new AddressTable(memory, table),
      l2:
        macs > 0
          ? {
              macs: new StaticMacTable(memory, table),
              neighbours: new StaticNeighbourTable(memory, table),
              floods: new FloodLists(memory, table),
            }
          : undefined,
    }));
  }

  get routeCount(): number {
    return this.#routes.size;
  }

  /** How full the fuller version's nodes are: 0 to 1. */
  get routeFill(): number {
    return Math.max(...this.#versions.map((version) => version.routes.fill));
  }

  get peerCount(): number {
    return this.#addresses.size;
  }

  get macCount(): number {
    return this.#macs.size;
  }

  get neighbourCount(): number {
    return this.#neighbours.size;
  }

  /**
   * Adds a peer; senders at its address are accepted, and a switch floods to it, after the next commit. Throws a
   * RangeError when the table is full.
   */
  addPeer(spec: PeerSpec): PeerRef {
    const ref = this.#peers.add(spec);
    const words = addressWords(spec.address);
    this.#addresses.set(ref, { words, network: spec.network });
    this.#changes.push((version) => {
      version.addresses.add(words, spec.network, ref);
      version.l2?.floods.add(spec.network, ref);
    });
    return ref;
  }

  /** Removes a peer. Its routes, MACs and neighbours must have been removed or given to others first. */
  removePeer(ref: PeerRef): void {
    const known = this.#addresses.get(ref);
    if (!known) throw new RangeError(`no such peer: ${ref}`);
    this.#addresses.delete(ref);
    this.#changes.push((version) => {
      version.addresses.remove(known.words, known.network, ref);
      version.l2?.floods.remove(known.network, ref);
    });
    this.#removed.push(ref);
  }

  /** Largest inner packet to a peer; takes effect at once. */
  setPeerMtu(ref: PeerRef, mtu: number): void {
    this.#peers.setMtu(ref, mtu);
  }

  /** True once after the kernel refused a datagram to this peer as too big for its path. */
  takeMtuSuspect(ref: PeerRef): boolean {
    return this.#peers.takeMtuSuspect(ref);
  }

  /**
   * Gives a prefix to a peer, whoever had it. Throws a RangeError when the table could overflow; nothing is changed
   * then.
   */
  setRoute(network: number, prefix: Prefix, ref: PeerRef): void {
    const key = prefixKey(network, prefix.bytes, prefix.length);
    const fresh = !this.#routes.has(key);
    if (fresh) {
      const need = RouteTrie.nodesFor(prefix);
      const free = Math.min(...this.#versions.map((version) => version.routes.freeNodes));
      if (this.#nodesWanted + need > free) throw new RangeError(`route table full: ${this.#routes.size} routes`);
      this.#nodesWanted += need;
    }
    this.#routes.set(key, ref);
    this.#changes.push((version) => version.routes.set(network, prefix, ref, fresh));
  }

  /** Takes a prefix out; what it covered goes to the next shorter one. */
  removeRoute(network: number, prefix: Prefix): void {
    if (!this.#routes.delete(prefixKey(network, prefix.bytes, prefix.length))) return;
    const { ref, length } = this.#cover(network, prefix);
    this.#changes.push((version) => version.routes.remove(network, prefix, ref, length));
  }

  /** The owner of the longest shorter prefix around `prefix`. */
  #cover(network: number, prefix: Prefix): { ref: PeerRef; length: number } {
    const bytes = Uint8Array.from(prefix.bytes);
    for (let length = prefix.length - 1; length >= 0; length--) {
      bytes[length >> 3] &= 0xff00 >> (length & 7);
      const ref = this.#routes.get(prefixKey(network, bytes, length));
      if (ref !== undefined) return { ref, length };
    }
    return { ref: 0, length: -1 };
  }

  /**
   * Says which peer a MAC (6 bytes) is behind, whatever was said before. Throws a RangeError when the table is full.
   */
  setMac(network: number, mac: Uint8Array, ref: PeerRef): void {
    this.#claimStatic(this.#macs, macKey(network, mac), 'MAC');
    const low = macLow(mac);
    const high = macHigh(mac);
    this.#changes.push((version) => version.l2?.macs.add(low, high, network, ref));
  }

  /** Takes a MAC out, if it is there. */
  removeMac(network: number, mac: Uint8Array): void {
    if (!this.#macs.delete(macKey(network, mac))) return;
    const low = macLow(mac);
    const high = macHigh(mac);
    this.#changes.push((version) => version.l2?.macs.remove(low, high, network));
  }

  /**
   * Says which MAC (6 bytes) has an address (4 or 16 bytes), and behind which peer, whatever was said before; `router`
   * undefined: nobody knows. Throws a RangeError when the table is full.
   */
  setNeighbour(network: number, address: Uint8Array, mac: Uint8Array, router: boolean | undefined, ref: PeerRef): void {
    this.#claimStatic(this.#neighbours, prefixKey(network, address, address.length * 8), 'neighbour');
    const words = addressWords(address);
    const low = macLow(mac);
    const high = macHigh(mac);
    const flags = router === undefined ? 0 : router ? ROUTER | ROUTER_KNOWN : ROUTER_KNOWN;
    this.#changes.push((version) => version.l2?.neighbours.add(words, network, low, high, flags, ref));
  }

  /** Takes an address's neighbour out, if it is there. */
  removeNeighbour(network: number, address: Uint8Array): void {
    if (!this.#neighbours.delete(prefixKey(network, address, address.length * 8))) return;
    const words = addressWords(address);
    this.#changes.push((version) => version.l2?.neighbours.remove(words, network));
  }

  #claimStatic<Key>(known: Set<Key>, key: Key, what: string): void {
    const most = this.#statics ?? 0;
    if (known.size >= most && !known.has(key)) throw new RangeError(`static ${what} table full: ${most} entries`);
    known.add(key);
  }

  /** Makes all changes so far visible at once. Calls made meanwhile join the next commit. */
  commit(): Promise<void> {
    const next = (this.#committing ?? Promise.resolve()).then(() => this.#commit());
    this.#committing = next;
    return next;
  }

  async #commit(): Promise<void> {
    if (this.#changes.length === 0) return;
    const changes = this.#changes;
    const removed = this.#removed;
    const nodesWanted = this.#nodesWanted;
    this.#changes = [];
    this.#removed = [];
    const spare = 1 - this.#shared.activeVersion();
    this.#apply(changes, spare);
    this.#shared.flip(spare);
    await this.#workersPassed();
    this.#apply(changes, 1 - spare);
    this.#nodesWanted -= nodesWanted;
    for (const ref of removed) this.#peers.remove(ref);
  }

  #apply(changes: readonly Change[], index: number): void {
    const version = this.#versions[index];
    for (const change of changes) change(version);
    if (version.l2) this.#shared.setStatics(index, version.l2.macs.size + version.l2.neighbours.size > 0);
  }

  async #workersPassed(): Promise<void> {
    const epochs = this.#shared.epochs();
    this.#wake();
    while (!this.#shared.passed(epochs)) await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
