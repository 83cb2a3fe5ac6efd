/**
 * The switch's tables for people: what the registry says, and what the workers have learned.
 *
 * Workers write their tables meanwhile, so an entry is read twice and left out if it changed in between; one that is
 * moved to another slot just then may be missed. Each is right again at the next reading; nothing here may be used to
 * forward.
 */
import { type EngineMemory, MAC_BYTES, NEIGHBOUR_BYTES } from '../io/memory.js';
import { MAPPED } from './addresses.js';
import { MAC_KEY, MAC_LOW, MAC_REF, MAC_SEEN, macBytes, PeerShares } from './macs.js';
import {
  NEIGHBOUR_FLAGS,
  NEIGHBOUR_MAC_HIGH,
  NEIGHBOUR_MAC_LOW,
  NEIGHBOUR_NETWORK,
  NEIGHBOUR_REF,
  NEIGHBOUR_SEEN,
  NEIGHBOUR_STATE,
  networkOf,
  ROUTER,
  ROUTER_KNOWN,
  vlansOf,
} from './neighbours.js';
import type { PeerRef } from './peers.js';
import { SharedWords } from './shared.js';

export interface MacEntry {
  readonly network: number;
  /** 6 bytes. */
  readonly mac: Uint8Array;
  /** The peer that it is behind; LOCAL: our device. */
  readonly ref: PeerRef;
  readonly origin: 'learned' | 'static';
  /** Milliseconds since it was last seen; undefined: it does not age. */
  readonly age: number | undefined;
}

export interface NeighbourEntry extends MacEntry {
  /** 4 or 16 bytes, network byte order. */
  readonly address: Uint8Array;
  /** Of the tags of the frames that said so, the outer first; none: untagged. */
  readonly vlans: readonly number[];
  /** Is it a router? undefined: nobody said. */
  readonly router: boolean | undefined;
}

const MAC_WORDS = MAC_BYTES / 4;
const NEIGHBOUR_WORDS = NEIGHBOUR_BYTES / 4;

/** How one kind of table is read. */
interface Kind<Entry> {
  readonly words: number;
  /** The word that is 0 in a free entry, and those with the reference and the time. */
  readonly used: number;
  readonly ref: number;
  readonly seen: number;
  readonly key: (entry: Int32Array) => number | string;
  readonly entry: (entry: Int32Array, origin: MacEntry['origin'], age: number | undefined) => Entry;
}

const MACS: Kind<MacEntry> = {
  words: MAC_WORDS,
  used: MAC_REF,
  ref: MAC_REF,
  seen: MAC_SEEN,
  key: (entry) => (entry[MAC_KEY] >>> 0) * 2 ** 32 + (entry[MAC_LOW] >>> 0),
  entry: (entry, origin, age) => ({
    network: entry[MAC_KEY] >>> 16,
    mac: macBytes(entry[MAC_LOW], entry[MAC_KEY]),
    ref: entry[MAC_REF],
    origin,
    age,
  }),
};

const NEIGHBOURS: Kind<NeighbourEntry> = {
  words: NEIGHBOUR_WORDS,
  used: NEIGHBOUR_STATE,
  ref: NEIGHBOUR_REF,
  seen: NEIGHBOUR_SEEN,
  key: (entry) => entry.subarray(1, 6).join(),
  entry: (entry, origin, age) => ({
    network: networkOf(entry[NEIGHBOUR_NETWORK]),
    vlans: vlansOf(entry[NEIGHBOUR_NETWORK]),
    address: addressOf(entry),
    mac: macBytes(entry[NEIGHBOUR_MAC_LOW], entry[NEIGHBOUR_MAC_HIGH]),
    router: entry[NEIGHBOUR_FLAGS] & ROUTER_KNOWN ? (entry[NEIGHBOUR_FLAGS] & ROUTER) !== 0 : undefined,
    ref: entry[NEIGHBOUR_REF],
    origin,
    age,
  }),
};

/** Of a neighbour's entry. An IPv4-mapped address is an IPv4 one: none other may be on a wire (RFC 4291 2.5.5.2). */
export function addressOf(entry: Int32Array): Uint8Array {
  const bytes = new Uint8Array(entry.slice(1, 5).buffer);
  return entry[1] === 0 && entry[2] === 0 && entry[3] === MAPPED ? bytes.slice(12) : bytes;
}

/**
 * All MACs that are known: static ones first, and of what several workers have learned the freshest. `now` is the
 * workers' clock; learned ones that were not seen for `most` milliseconds (aged, not swept yet) are left out.
 */
export function readMacs(memory: EngineMemory, now: number, most = Number.POSITIVE_INFINITY): Generator<MacEntry> {
  const { tables, workers, staticSlots, macSlots } = memory.layout;
  const version = new SharedWords(memory).activeVersion();
  return read(
    memory,
    MACS,
    { at: tables[version].staticMacs, slots: staticSlots },
    workers.map(({ macs }) => ({ at: macs, slots: macSlots })),
    now,
    most,
  );
}

/** The same for neighbours. */
export function readNeighbours(
  memory: EngineMemory,
  now: number,
  most = Number.POSITIVE_INFINITY,
): Generator<NeighbourEntry> {
  const { tables, workers, staticSlots, neighbourSlots } = memory.layout;
  const version = new SharedWords(memory).activeVersion();
  return read(
    memory,
    NEIGHBOURS,
    { at: tables[version].staticNeighbours, slots: staticSlots },
    workers.map(({ neighbours }) => ({ at: neighbours, slots: neighbourSlots })),
    now,
    most,
  );
}

interface Table {
  readonly at: number;
  readonly slots: number;
}

function* read<Entry>(
  memory: EngineMemory,
  kind: Kind<Entry>,
  statics: Table,
  learned: readonly Table[],
  now: number,
  most: number,
): Generator<Entry> {
  const peers = new PeerShares(memory, 0);
  const named = new Set<number | string>();
  for (const entry of used(memory, kind, statics)) {
    named.add(kind.key(entry));
    yield kind.entry(entry, 'static', undefined);
  }
  /** Only where workers may know the same: the age of the freshest that was found. */
  const freshest = learned.length > 1 ? new Map<number | string, Int32Array>() : undefined;
  const ageOf = (entry: Int32Array): number => Math.max(0, (now - entry[kind.seen]) | 0);
  for (const table of learned) {
    for (const entry of used(memory, kind, table)) {
      const age = ageOf(entry);
      const key = named.size > 0 || freshest ? kind.key(entry) : 0;
      if (age > most || !peers.alive(entry[kind.ref]) || (named.size > 0 && named.has(key))) continue;
      if (freshest === undefined) {
        yield kind.entry(entry, 'learned', age);
      } else {
        const known = freshest.get(key);
        if (known === undefined || age < ageOf(known)) freshest.set(key, entry.slice());
      }
    }
  }
  for (const entry of freshest?.values() ?? []) yield kind.entry(entry, 'learned', ageOf(entry));
}

/** The entries in use: a copy of each, good until the next one is asked for. */
function* used<Entry>(memory: EngineMemory, kind: Kind<Entry>, { at, slots }: Table): Generator<Int32Array> {
  const { i32 } = memory;
  const entry = new Int32Array(kind.words);
  for (let from = at >> 2; from < (at >> 2) + slots * kind.words; from += kind.words) {
    if (i32[from + kind.used] === 0) continue;
    for (let word = 0; word < kind.words; word++) entry[word] = i32[from + word];
    // Backwards: what is written first is compared last.
    let same = true;
    for (let word = kind.words - 1; word >= 0; word--) {
      if (word !== kind.seen && i32[from + word] !== entry[word]) same = false;
    }
    if (same && entry[kind.used] !== 0) yield entry;
  }
}
