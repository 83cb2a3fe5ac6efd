/** Where a capture goes: a file, a pipe by its name, or standard output. Blocks are written whole, or not at all. */
import { once } from 'node:events';
import { constants, fstatSync, openSync, write as writeDescriptor } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { SetupError } from '../../io/setup-error.js';
import type { Output } from '../text/output.js';

export interface Sink {
  /** As messages say it. */
  readonly name: string;
  /** Blocks that were written, whole. */
  readonly blocks: number;
  /** Resolves when it takes more; to false when nobody reads it any more. Rejects with a SetupError. */
  write(blocks: readonly Uint8Array[]): Promise<boolean>;
  /** Rejects with a SetupError. */
  close(): Promise<void>;
}

/** Packets are nobody else's to read. */
const MODE = 0o600;
const WAIT_FOR_READER_MS = 100;

/** `-` is standard output. A pipe waits for its reader until `out.signal` aborts. Rejects with a SetupError. */
export async function openSink(path: string, out: Output): Promise<Sink> {
  if (path === '-') return standardOutput(out);
  try {
    const there = await stat(path).catch(() => undefined);
    if (there?.isFIFO()) return await openPipe(path, out.signal);
    return new FileSink(path, descriptorOf(await open(path, 'w', MODE), there === undefined || there.isFile()));
  } catch (error) {
    throw failed('open', path, error);
  }
}

function standardOutput(out: Output): Sink {
  const name = 'standard output';
  const stats = fstatSync(1);
  if (stats.isFIFO() || stats.isSocket()) return new OutputSink(name, out);
  const write = promisify(writeDescriptor);
  return new FileSink(name, {
    write: (bytes, at) => write(1, bytes, at),
    truncate: async () => {},
    close: async () => {},
  });
}

/** A pipe that the shell made. */
class OutputSink implements Sink {
  readonly name: string;
  blocks = 0;
  readonly #out: Output;
  #gone = false;

  constructor(name: string, out: Output) {
    this.name = name;
    this.#out = out;
    process.stdout.once('error', () => {
      this.#gone = true;
    });
  }

  async write(blocks: readonly Uint8Array[]): Promise<boolean> {
    this.#out.print(Buffer.concat(blocks));
    await unlessAborted(this.#out.flushed(), this.#out.signal);
    if (!this.#gone) this.blocks += blocks.length;
    return !this.#gone;
  }

  async close(): Promise<void> {}
}

/** What a file is written with. */
interface Descriptor {
  /** Writes from `at` on; `place` is where, in a regular file. */
  write(bytes: Uint8Array, at: number, place: number): Promise<{ readonly bytesWritten: number }>;
  truncate(length: number): Promise<void>;
  close(): Promise<void>;
}

/** `regular`: a device has no length, and no places to write to. */
const descriptorOf = (file: FileHandle, regular: boolean): Descriptor => ({
  write: (bytes, at, place) => file.write(bytes, at, bytes.length - at, regular ? place : null),
  truncate: async (length) => {
    if (regular) await file.truncate(length);
  },
  close: () => file.close(),
});

/** Where it does not take a block any more, the file ends with the last whole one. */
class FileSink implements Sink {
  readonly name: string;
  blocks = 0;
  readonly #file: Descriptor;
  /** Bytes of those blocks. */
  #length = 0;

  constructor(name: string, file: Descriptor) {
    this.name = name;
    this.#file = file;
  }

  async write(blocks: readonly Uint8Array[]): Promise<boolean> {
    const bytes = Buffer.concat(blocks);
    let at = 0;
    try {
      while (at < bytes.length) at += (await this.#file.write(bytes, at, this.#length + at)).bytesWritten;
      this.#wrote(blocks, at);
      return true;
    } catch (error) {
      this.#wrote(blocks, at);
      await this.#file.truncate(this.#length).catch(() => {});
      throw failed('write', this.name, error);
    }
  }

  /** Counts the blocks that are within so many bytes. */
  #wrote(blocks: readonly Uint8Array[], bytes: number): void {
    let left = bytes;
    for (const { length } of blocks) {
      left -= length;
      if (left < 0) return;
      this.blocks++;
      this.#length += length;
    }
  }

  async close(): Promise<void> {
    try {
      await this.#file.close();
    } catch (error) {
      throw failed('write', this.name, error);
    }
  }
}

/** Opened so that a reader who does not come, or does not read, holds nothing up that a signal could not end. */
async function openPipe(path: string, signal: AbortSignal): Promise<Sink> {
  for (;;) {
    try {
      return new PipeSink(path, openSync(path, constants.O_WRONLY | constants.O_NONBLOCK), signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO') throw error;
      if (signal.aborted) throw new SetupError('NO_READER', `nobody opened the pipe ${path} to read it`);
      await sleep(WAIT_FOR_READER_MS, undefined, { signal }).catch(() => {});
    }
  }
}

class PipeSink implements Sink {
  readonly name: string;
  blocks = 0;
  readonly #pipe: Socket;
  readonly #signal: AbortSignal;

  constructor(name: string, descriptor: number, signal: AbortSignal) {
    this.name = name;
    this.#signal = signal;
    this.#pipe = new Socket({ fd: descriptor, readable: false, writable: true });
    this.#pipe.on('error', () => {}); // told by `destroyed`
  }

  async write(blocks: readonly Uint8Array[]): Promise<boolean> {
    if (!this.#pipe.destroyed && !this.#pipe.write(Buffer.concat(blocks))) {
      await unlessAborted(Promise.race([once(this.#pipe, 'drain'), once(this.#pipe, 'close')]), this.#signal);
    }
    if (!this.#pipe.destroyed) this.blocks += blocks.length;
    return !this.#pipe.destroyed;
  }

  async close(): Promise<void> {
    this.#pipe.destroySoon();
    if (!this.#pipe.closed) await unlessAborted(once(this.#pipe, 'close'), this.#signal);
    this.#pipe.destroy();
  }
}

/** What a reader who does not read may still hold up after a signal. */
const GRACE_MS = 500;

/** Waits for something that never rejects for long; not much longer than until the signal aborts. */
async function unlessAborted(done: Promise<unknown>, signal: AbortSignal): Promise<void> {
  const settled = done.catch(() => {});
  const over = new AbortController();
  const aborted = signal.aborted ? Promise.resolve() : once(signal, 'abort', { signal: over.signal });
  await Promise.race([settled, aborted.catch(() => {})]);
  if (signal.aborted)
    await Promise.race([settled, sleep(GRACE_MS, undefined, { signal: over.signal }).catch(() => {})]);
  over.abort();
}

const WORDS: Readonly<Record<string, string>> = {
  ENOSPC: 'no space left on it',
  EDQUOT: 'the quota is used up',
  EFBIG: 'it may not be larger',
  EACCES: 'permission denied',
  EISDIR: 'it is a folder',
  ENOENT: 'there is no such folder',
  EROFS: 'it is on a file system that is read-only',
};

function failed(what: 'open' | 'write', name: string, error: unknown): Error {
  if (error instanceof SetupError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === undefined) return error as Error;
  return new SetupError('NOT_WRITTEN', `capture: cannot ${what} ${name}: ${WORDS[code] ?? message}`);
}
