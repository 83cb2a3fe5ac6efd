/**
 * Locks on files, flock(2): held by the open descriptor, and so gone with the process however it ends. The file stays: a lock
 * file that is removed can be held twice.
 */
import { closeSync, fstatSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { flock, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN } from '../io/syscalls.js';

const EWOULDBLOCK = -11;

export class FileLock {
  readonly path: string;
  readonly #fd: number;
  #open = true;

  /**
   * Opens the file, and makes it if need be, for its owner alone: a lock can be held by whoever may read the file. Locks nothing
   * yet. Throws what open(2) says.
   */
  constructor(path: string) {
    this.path = path;
    this.#fd = openSync(path, 'a+', 0o600);
  }

  /** Takes the lock, or changes its kind, if that needs no waiting; false otherwise (and then it may have lost what it had). */
  tryLock(kind: 'shared' | 'exclusive'): boolean {
    const result = flock(this.#fd, (kind === 'shared' ? LOCK_SH : LOCK_EX) | LOCK_NB);
    if (result === 0) return true;
    if (result === EWOULDBLOCK) return false;
    throw new Error(`cannot lock ${this.path}: errno ${-result}`);
  }

  /** The file is still the one of that name: a lock on another would keep nobody out. */
  get inPlace(): boolean {
    return statSync(this.path, { throwIfNoEntry: false })?.ino === fstatSync(this.#fd).ino;
  }

  /** What its holder wrote, for whoever finds it taken. */
  read(): string {
    return readFileSync(this.path, 'utf8').trim();
  }

  write(text: string): void {
    ftruncateSync(this.#fd);
    writeSync(this.#fd, `${text}\n`);
  }

  /** Lets go of the lock; it can be taken again. */
  unlock(): void {
    flock(this.#fd, LOCK_UN);
  }

  close(): void {
    if (this.#open) closeSync(this.#fd);
    this.#open = false;
  }
}
