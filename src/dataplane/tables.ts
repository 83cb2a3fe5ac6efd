/**
 * Control's hand on the tables: two versions, one in use. Changes are gathered, then `commit()` applies them to the spare
 * version, flips, waits until every worker has let go of the old version, and applies them there too. So k changes cost
 * O(k), workers see all of a commit or nothing, and no packet waits.
 *
 * A removed peer's slot is free again when the commit that removed it has ended.
 */
import type { EngineMemory } from '../io/memory.js';
import { AddressTable, addressWords } from './addresses.js';
import { type PeerRef, PeerSlots, type PeerSpec } from './peers.js';
import { type Prefix, RouteTrie } from './routes.js';
import { SharedWords } from './shared.js';

type Change = (version: { readonly routes: RouteTrie; readonly addresses: AddressTable }) => void;

/** A number for IPv4: a fifth of what a string costs, and 10^5 of them change hands at once. */
const prefixKey = (network: number, bytes: Uint8Array, length: number): number | string =>
  bytes.length === 4
    ? (network * 64 + length) * 2 ** 32 + (((bytes[0] << 24) | (bytes[1] << 16) | (bytes[2] << 8) | bytes[3]) >>> 0)
    : `${network}/${length}/${String.fromCharCode(...bytes)}`;

export class Tables {
  readonly #shared: SharedWords;
  readonly #versions;
  readonly #peers: PeerSlots;
  readonly #wake: () => void;
  readonly #routes = new Map<number | string, PeerRef>();
  readonly #addresses = new Map<PeerRef, { readonly words: Int32Array; readonly network: number }>();
  #changes: Change[] = [];
  #removed: PeerRef[] = [];
  #nodesWanted = 0;
  #committing: Promise<void> | undefined;

  /** `wake` ends the blocking poll of every worker, so that an idle one takes a turn. */
  constructor(memory: EngineMemory, wake: () => void) {
    this.#shared = new SharedWords(memory);
    this.#peers = new PeerSlots(memory);
    this.#wake = wake;
    this.#versions = memory.layout.tables.map((table) => ({
      routes: new RouteTrie(memory, table),
      addresses: new AddressTable(memory, table),
    }));
  }

  get routeCount(): number {
    return this.#routes.size;
  }

  get peerCount(): number {
    return this.#addresses.size;
  }

  /** Adds a peer; senders at its address are accepted after the next commit. Throws a RangeError when the table is full. */
  addPeer(spec: PeerSpec): PeerRef {
    const ref = this.#peers.add(spec);
    const words = addressWords(spec.address);
    this.#addresses.set(ref, { words, network: spec.network });
    this.#changes.push((version) => version.addresses.add(words, spec.network, ref));
    return ref;
  }

  /** Removes a peer. Its routes must have been removed or given to others first. */
  removePeer(ref: PeerRef): void {
    const known = this.#addresses.get(ref);
    if (!known) throw new RangeError(`no such peer: ${ref}`);
    this.#addresses.delete(ref);
    this.#changes.push((version) => version.addresses.remove(known.words, known.network, ref));
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

  /** Gives a prefix to a peer, whoever had it. Throws a RangeError when the table could overflow; nothing is changed then. */
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
    for (const change of changes) change(this.#versions[spare]);
    this.#shared.flip(spare);
    await this.#workersPassed();
    for (const change of changes) change(this.#versions[1 - spare]);
    this.#nodesWanted -= nodesWanted;
    for (const ref of removed) this.#peers.remove(ref);
  }

  async #workersPassed(): Promise<void> {
    const epochs = this.#shared.epochs();
    this.#wake();
    while (!this.#shared.passed(epochs)) await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
