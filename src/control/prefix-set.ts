/**
 * Prefixes, of which is asked whether one overlaps any. Prefixes nest or are disjoint, so that a look-up for each length that occurs
 * answers it, and lengths that occur are few.
 */
import type { Cidr } from './cidr.js';

/** Of one length and family. */
interface Kind {
  readonly family: 4 | 6;
  readonly length: number;
  readonly prefixes: Set<string>;
}

export class PrefixSet {
  readonly #all: Cidr[] = [];
  /** By length and family. */
  readonly #whole = new Map<number, Kind>();
  /** The longer ones, cut to a length; made when that length is first asked about. */
  readonly #cut = new Map<number, Kind>();

  add(prefix: Cidr): void {
    this.#all.push(prefix);
    kindIn(this.#whole, prefix).prefixes.add(keyOf(prefix, prefix.length));
    for (const cut of this.#cut.values()) addCut(prefix, cut);
  }

  overlaps(prefix: Cidr): boolean {
    for (const { family, length, prefixes } of this.#whole.values()) {
      if (family === prefix.family && length <= prefix.length && prefixes.has(keyOf(prefix, length))) return true;
    }
    let cut = this.#cut.get(numberOf(prefix));
    if (!cut) {
      cut = kindIn(this.#cut, prefix);
      for (const one of this.#all) addCut(one, cut);
    }
    return cut.prefixes.has(keyOf(prefix, prefix.length));
  }
}

const numberOf = ({ family, length }: Cidr): number => family * 256 + length;

function kindIn(kinds: Map<number, Kind>, prefix: Cidr): Kind {
  let kind = kinds.get(numberOf(prefix));
  if (!kind) {
    kind = { family: prefix.family, length: prefix.length, prefixes: new Set() };
    kinds.set(numberOf(prefix), kind);
  }
  return kind;
}

function addCut(prefix: Cidr, { family, length, prefixes }: Kind): void {
  if (family === prefix.family && length < prefix.length) prefixes.add(keyOf(prefix, length));
}

/** The first `length` bits, as text: as many letters as there are bytes in them. */
function keyOf({ bytes }: Cidr, length: number): string {
  let key = '';
  for (let at = 0; at * 8 < length; at++) {
    const bits = length - at * 8;
    key += String.fromCharCode(bits >= 8 ? bytes[at] : bytes[at] & (0xff00 >> bits));
  }
  return key;
}
