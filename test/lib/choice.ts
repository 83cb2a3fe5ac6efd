/** A seeded source of choices for the fuzz tests. */
import { random } from './packets.js';

export class Choice {
  readonly #next: () => number;
  constructor(seed: number) {
    this.#next = random(seed);
  }
  below(n: number): number {
    return Math.floor(this.#next() * n);
  }
  /** True once in `n`. */
  once(n: number): boolean {
    return this.#next() * n < 1;
  }
  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
  /** A number that is often at an edge. */
  edge(bits: number): number {
    const max = 2 ** bits - 1;
    const kind = this.below(8);
    if (kind === 0) return 0;
    if (kind === 1) return max;
    if (kind === 2) return this.below(4);
    if (kind === 3) return max - this.below(4);
    if (kind < 6) return (2 ** this.below(bits + 1) + this.below(5) - 2) & max;
    return this.below(max + 1);
  }
}
