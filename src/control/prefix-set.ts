/**
 * Prefixes, of which is asked whether one overlaps any. Prefixes nest or are disjoint, so that a few look-ups per length that occurs
 * answer it, and lengths that occur are few.
 */
import { type Cidr, cidrOf } from './cidr.js';

export class PrefixSet {
  /** Texts, by length and family. */
  readonly #whole = new Map<string, Set<string>>();
  /** Of those that are longer than a length, what they are when cut to it; made when it is first asked for. */
  readonly #cut = new Map<string, Set<string>>();
  readonly #all: Cidr[] = [];

  add(prefix: Cidr): void {
    this.#all.push(prefix);
    const kind = kindOf(prefix.family, prefix.length);
    const whole = this.#whole.get(kind);
    if (whole) whole.add(prefix.text);
    else this.#whole.set(kind, new Set([prefix.text]));
    for (const [cut, texts] of this.#cut) addCut(prefix, cut, texts);
  }

  overlaps(prefix: Cidr): boolean {
    for (const [kind, texts] of this.#whole) {
      const length = lengthIn(kind, prefix);
      if (length !== undefined && length <= prefix.length && texts.has(cidrOf(prefix.bytes, length).text)) return true;
    }
    const kind = kindOf(prefix.family, prefix.length);
    let cut = this.#cut.get(kind);
    if (!cut) {
      cut = new Set();
      for (const one of this.#all) addCut(one, kind, cut);
      this.#cut.set(kind, cut);
    }
    return cut.has(prefix.text);
  }
}

const kindOf = (family: 4 | 6, length: number): string => `${family}/${length}`;

/** The length of a kind, if it is of the prefix's family. */
const lengthIn = (kind: string, { family }: Cidr): number | undefined =>
  kind.startsWith(`${family}/`) ? Number(kind.slice(2)) : undefined;

function addCut(prefix: Cidr, kind: string, texts: Set<string>): void {
  const length = lengthIn(kind, prefix);
  if (length !== undefined && length < prefix.length) texts.add(cidrOf(prefix.bytes, length).text);
}
