/** Pseudo-random bytes from a seed, fast enough for gigabytes: AES-128 in counter mode over zeros. The same everywhere. */
import { type Cipher, createCipheriv } from 'node:crypto';

export const CHUNK = 64 * 1024;
const ZEROS = Buffer.alloc(CHUNK);

export class ByteStream {
  readonly #cipher: Cipher;

  constructor(seed: number) {
    const key = Buffer.alloc(16);
    key.writeUInt32BE(seed >>> 0);
    this.#cipher = createCipheriv('aes-128-ctr', key, Buffer.alloc(16));
  }

  /** The next `length` bytes, at most CHUNK. */
  next(length: number): Buffer {
    return this.#cipher.update(length === CHUNK ? ZEROS : ZEROS.subarray(0, length));
  }
}

/** `length` bytes (at most CHUNK) that belong to `seed` and no other. */
export const bytesOf = (seed: number, length: number): Buffer => new ByteStream(seed).next(length);
