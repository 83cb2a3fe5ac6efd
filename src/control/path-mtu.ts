/**
 * Path MTU: what really fits on the way to each peer.
 *
 * Datagrams leave with DF set; when the kernel has learned that a path is smaller it refuses with EMSGSIZE, the worker marks
 * the peer and counts an event. Here that count is looked at four times a second, one word when nothing happened. For the
 * marked peers the kernel is asked what it knows of the path, and the peer's MTU lowered to that. Lowered peers are asked
 * about again every 30 s, so that they grow back when the kernel has forgotten (it does after ten minutes) or the path has
 * become larger. What the peers file or the interface says is never exceeded (RFC 1191, RFC 8201).
 */
import type { PeerRef } from '../dataplane/peers.js';
import type { SharedWords } from '../dataplane/shared.js';
import type { Tables } from '../dataplane/tables.js';
import type { Applier } from './apply.js';
import type { EventLog } from './event-log.js';
import type { PlannedPeer } from './plan.js';
import { reasonOf } from './reason.js';

const LOOK_EVERY = 250;
const ASK_AGAIN_AFTER = 30_000;
/** Least time between questions while workers keep on complaining. */
const ASK_EVERY = 1000;
/** Most peers in one question; the others wait for the next. */
const MOST_AT_ONCE = 256;
/** RFC 791: what every IPv4 link carries. */
const LEAST = 68;

/** The underlay's MTU in bytes on the way to each address that a route is known for. */
export type PathQuery = (addresses: readonly string[]) => Promise<ReadonlyMap<string, number>>;

export interface PathMtuOptions {
  readonly shared: Pick<SharedWords, 'mtuEvents'>;
  readonly tables: Pick<Tables, 'takeMtuSuspect' | 'setPeerMtu'>;
  readonly applier: Pick<Applier, 'have' | 'ref'>;
  readonly query: PathQuery;
  readonly log: EventLog;
}

interface Lowered {
  readonly ref: PeerRef;
  readonly mtu: number;
  /** What was planned when it was lowered. */
  readonly planned: number;
  readonly asked: number;
}

export class PathMtu {
  readonly #options: PathMtuOptions;
  readonly #suspects = new Set<string>();
  readonly #lowered = new Map<string, Lowered>();
  #events = 0;
  #asked = Number.NEGATIVE_INFINITY;
  #asking = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: PathMtuOptions) {
    this.#options = options;
  }

  /** How many peers have less than was planned. */
  get lowered(): number {
    return this.#lowered.size;
  }

  start(): void {
    this.#timer = setInterval(() => void this.look(performance.now()), LOOK_EVERY);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** One look. `now` in milliseconds of any clock that only goes forward. Never rejects. */
  async look(now: number): Promise<void> {
    const { shared, applier, query, log } = this.#options;
    const events = shared.mtuEvents();
    if (events !== this.#events) {
      this.#events = events;
      this.#collectSuspects();
    }
    if (this.#asking || (this.#suspects.size === 0 && this.#lowered.size === 0)) return;
    this.#forgetChanged();
    const peers = this.#due(now);
    if (peers.length === 0) return;
    this.#asking = true;
    this.#asked = now;
    try {
      const refs = peers.map((peer) => applier.ref(peer.key));
      const found = await query([...new Set(peers.map((peer) => peer.address))]);
      peers.forEach((peer, i) => {
        const ref = refs[i];
        // The tables may have changed while the kernel was asked.
        const same = applier.ref(peer.key) === ref && applier.have.peers.get(peer.key)?.mtu === peer.mtu;
        if (ref !== undefined && same) this.#set(peer, ref, found.get(peer.address), now);
      });
    } catch (error) {
      log.warn('path_mtu_unknown', { reason: reasonOf(error) });
    } finally {
      this.#asking = false;
    }
  }

  /** A path is that of the peer in every network. */
  #collectSuspects(): void {
    const { applier, tables } = this.#options;
    const { peers } = applier.have;
    const addresses = new Set<string>();
    for (const { key, address } of peers.values()) {
      const ref = applier.ref(key);
      if (ref !== undefined && tables.takeMtuSuspect(ref)) addresses.add(address);
    }
    if (addresses.size === 0) return;
    for (const { key, address } of peers.values()) if (addresses.has(address)) this.#suspects.add(key);
  }

  /** A peer that is gone, or that was planned anew, starts afresh. */
  #forgetChanged(): void {
    const { applier } = this.#options;
    for (const [key, { ref, planned }] of this.#lowered) {
      if (applier.ref(key) !== ref || applier.have.peers.get(key)?.mtu !== planned) this.#lowered.delete(key);
    }
  }

  #due(now: number): PlannedPeer[] {
    const keys = new Set<string>();
    if (now - this.#asked >= ASK_EVERY) {
      for (const key of this.#suspects) {
        if (keys.size === MOST_AT_ONCE) break;
        keys.add(key);
        this.#suspects.delete(key);
      }
    }
    for (const [key, { asked }] of this.#lowered) {
      if (keys.size === MOST_AT_ONCE) break;
      if (now - asked >= ASK_AGAIN_AFTER) keys.add(key);
    }
    const { peers } = this.#options.applier.have;
    return [...keys].map((key) => peers.get(key)).filter((peer) => peer !== undefined);
  }

  #set(peer: PlannedPeer, ref: PeerRef, path: number | undefined, now: number): void {
    const before = this.#lowered.get(peer.key)?.mtu ?? peer.mtu;
    const mtu = path === undefined ? before : Math.max(LEAST, Math.min(peer.mtu, path - peer.overhead));
    if (mtu < peer.mtu) this.#lowered.set(peer.key, { ref, mtu, planned: peer.mtu, asked: now });
    else this.#lowered.delete(peer.key);
    if (mtu === before) return;
    this.#options.tables.setPeerMtu(ref, mtu);
    this.#options.log.info('path_mtu', { peer: peer.name, mtu, before, planned: peer.mtu });
  }
}
