/**
 * Peer records: where a peer is in the underlay, and what fits on the way to it.
 *
 * Control writes a record whole before any table names it, and never changes it while it is named, except the path MTU
 * (one aligned word). A peer is named by a reference: slot in the low 16 bits, generation (1 to 32767) above; 0 is no peer.
 * A removed peer's slot gets a new generation, so whatever still names the old one finds nobody.
 */
import { type EngineMemory, PEER_BYTES, PEER_COUNTERS } from '../io/memory.js';
import { socketAddress } from '../io/socket-address.js';

/** Words of a record, in i32s from its start. */
export const PEER_GENERATION = 0;
/** Index of the underlay socket: 0 IPv4, 1 IPv6. */
export const PEER_UNDERLAY = 1;
/** Largest inner packet that the path carries, in bytes. */
export const PEER_MTU = 2;
/** PEER_FLAG_*. */
export const PEER_FLAGS = 3;
/** Length of the socket address. */
export const PEER_NAME_LENGTH = 4;
/** A worker sets it to 1 when the kernel said EMSGSIZE; control clears it when it has looked. */
export const PEER_MTU_SUSPECT = 5;
/** struct sockaddr_in or sockaddr_in6, from word 8. */
export const PEER_NAME = 8;

/** The peer handles ECN as RFC 6040 asks (it is Weft), so the inner ECN field is copied to the outer header. */
export const PEER_FLAG_ECN = 1;

export interface PeerSpec {
  /** Network byte order, 4 or 16 bytes. */
  readonly address: Uint8Array;
  readonly port: number;
  /** Largest inner packet, in bytes. */
  readonly mtu: number;
  readonly ecn: boolean;
  readonly network: number;
}

/** A reference to a peer, see above. */
export type PeerRef = number;

export const slotOf = (ref: PeerRef): number => ref & 0xffff;

/** Control's side: allots slots and writes records. */
export class PeerSlots {
  readonly #memory: EngineMemory;
  readonly #free: number[] = [];

  constructor(memory: EngineMemory) {
    this.#memory = memory;
    for (let slot = memory.options.peers - 1; slot >= 0; slot--) this.#free.push(slot);
  }

  get free(): number {
    return this.#free.length;
  }

  #word(slot: number): number {
    return (this.#memory.layout.peers + slot * PEER_BYTES) >> 2;
  }

  /** Writes a record; nobody sees it until a table names the reference. Throws a RangeError when all slots are taken. */
  add(spec: PeerSpec): PeerRef {
    const slot = this.#free.pop();
    if (slot === undefined) throw new RangeError(`no free slot among ${this.#memory.options.peers} peers`);
    const { i32, u8 } = this.#memory;
    const at = this.#word(slot);
    const generation = (i32[at + PEER_GENERATION] % 32767) + 1;
    const v4 = spec.address.length === 4;
    i32.fill(0, at + 1, at + PEER_BYTES / 4);
    i32[at + PEER_UNDERLAY] = v4 ? 0 : 1;
    i32[at + PEER_MTU] = spec.mtu;
    i32[at + PEER_FLAGS] = spec.ecn ? PEER_FLAG_ECN : 0;
    i32[at + PEER_NAME_LENGTH] = v4 ? 16 : 28;
    const name = (at + PEER_NAME) << 2;
    u8.set(socketAddress(spec.address, spec.port), name);
    // Nobody counts for this slot yet: the last peer's totals must not show under this one's name.
    for (const worker of this.#memory.layout.workers) {
      const counters = (worker.peerCounters >> 3) + slot * PEER_COUNTERS;
      this.#memory.f64.fill(0, counters, counters + PEER_COUNTERS);
    }
    Atomics.store(i32, at + PEER_GENERATION, generation);
    return slot | (generation << 16);
  }

  /** Frees a slot. Only after every worker's epoch has passed since the last table stopped naming it. */
  remove(ref: PeerRef): void {
    const slot = slotOf(ref);
    const at = this.#word(slot);
    // The next generation is made here, so that a stale reference fails from now on; `add` moves on from it.
    Atomics.store(this.#memory.i32, at + PEER_GENERATION, ((ref >>> 16) % 32767) + 1);
    this.#free.push(slot);
  }

  mtu(ref: PeerRef): number {
    return Atomics.load(this.#memory.i32, this.#word(slotOf(ref)) + PEER_MTU);
  }

  /** Changes the largest inner packet while the peer is in use. */
  setMtu(ref: PeerRef, mtu: number): void {
    Atomics.store(this.#memory.i32, this.#word(slotOf(ref)) + PEER_MTU, mtu);
  }

  /** True once after a worker found the path smaller than it sent. */
  takeMtuSuspect(ref: PeerRef): boolean {
    return Atomics.exchange(this.#memory.i32, this.#word(slotOf(ref)) + PEER_MTU_SUSPECT, 0) !== 0;
  }
}
