/** Bytes of a stream, taken in pieces of any length. Chunks are joined only where a piece spans several. */
export class ByteQueue {
  readonly #source: AsyncIterator<Uint8Array>;
  #chunks: Uint8Array[] = [];
  /** Bytes of the first chunk that have been taken. */
  #used = 0;
  #held = 0;
  #position = 0;

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** How many bytes have been taken. */
  get position(): number {
    return this.#position;
  }

  /** How many bytes are here and not taken. */
  get held(): number {
    return this.#held;
  }

  /** The next `length` bytes, valid for good; undefined if the stream ends before them, which leaves them where they are. */
  async take(length: number): Promise<Uint8Array | undefined> {
    if (!(await this.#hold(length))) return undefined;
    return this.takeHeld(length);
  }

  /** The same without waiting: undefined if they are not here yet. */
  takeHeld(length: number): Uint8Array | undefined {
    if (this.#held < length) return undefined;
    this.#held -= length;
    this.#position += length;
    const first = this.#chunks[0] ?? new Uint8Array(0);
    if (first.length - this.#used >= length) {
      this.#used += length;
      return first.subarray(this.#used - length, this.#used);
    }
    return this.#join(length);
  }

  /** Closes the stream. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }

  async #hold(length: number): Promise<boolean> {
    while (this.#held < length) {
      const { done, value } = await this.#source.next();
      if (done) return false;
      if (value.length === 0) continue;
      this.#chunks.push(value);
      this.#held += value.length;
    }
    return true;
  }

  #join(length: number): Uint8Array {
    const joined = new Uint8Array(length);
    let filled = 0;
    let whole = 0;
    for (const chunk of this.#chunks) {
      const piece = chunk.subarray(this.#used, this.#used + length - filled);
      joined.set(piece, filled);
      filled += piece.length;
      this.#used += piece.length;
      if (this.#used < chunk.length) break;
      this.#used = 0;
      whole++;
    }
    this.#chunks.splice(0, whole);
    return joined;
  }
}
