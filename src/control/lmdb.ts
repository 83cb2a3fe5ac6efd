/**
 * LMDB environments as Weft uses them: one unnamed table of texts, mostly JSON, under keys that are short arrays, durable
 * commits, no cache. An environment is a directory with data.mdb and lock.mdb in it.
 *
 * All writing is synchronous. The package's asynchronous transactions keep what a callback wrote before it threw, and end the
 * process when a commit fails (lmdb 3.5, a full disk); its synchronous ones roll back and throw. What they cost is that a write
 * lock held elsewhere blocks this thread, so processes that share an environment take a lock of their own first, which can be
 * waited for (embedded-store.ts).
 */
import { accessSync, constants, existsSync, statfsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { open, type RootDatabase } from 'lmdb';
import { SetupError } from '../io/setup-error.js';
import { errnoText } from '../io/syscalls.js';
import { checkLmdbFile } from './lmdb-file.js';
import { reasonOf } from './reason.js';

export type LmdbKey = (string | number)[];
export type Lmdb = RootDatabase<string, LmdbKey>;

/** Address space, not memory or disk. An environment that may grow in another process must not outgrow this one's map. */
const MAP_BYTES = 1 << 30;
const MOST_READERS = 1024;
/** At least 64 bytes a reader and a header (mdb.c, MDB_reader and MDB_txninfo). */
const LOCK_BYTES = MOST_READERS * 64 + 4096;
/** LMDB complains to standard error, past the log, when a commit fails; so none is tried that would. */
const LEAST_FREE_BYTES = 256 << 10;

/** The file that an environment in `directory` has its pages in. */
export const dataFile = (directory: string): string => join(directory, 'data.mdb');

/** Opens or makes the environment in an existing directory. Throws a SetupError DAMAGED, or what the file system says. */
export function openLmdb(directory: string): Lmdb {
  const wrong = checkLmdbFile(dataFile(directory));
  if (wrong !== undefined) throw new SetupError('DAMAGED', wrong);
  const locks = join(directory, 'lock.mdb');
  // LMDB maps its table of readers for writing: with holes in it, a full disk would be a fatal signal.
  if (!existsSync(locks)) {
    checkSpace(directory);
    writeFileSync(locks, Buffer.alloc(LOCK_BYTES));
  }
  return open<string, LmdbKey>({
    path: directory,
    noSubdir: false,
    encoding: 'string',
    mapSize: MAP_BYTES,
    maxReaders: MOST_READERS,
    cache: false,
    overlappingSync: false,
  });
}

/** Commits what `change` does, all of it or, if it or the commit throws, nothing. */
export function transact<T>(db: Lmdb, directory: string, change: () => T): T {
  accessSync(dataFile(directory), constants.W_OK); // a read-only file system, for one
  checkSpace(directory);
  return db.transactionSync(change);
}

function checkSpace(directory: string): void {
  const { bfree, bsize } = statfsSync(directory);
  if (bfree * bsize < LEAST_FREE_BYTES) throw new Error('no space left on its disk');
}

/** The value of a key; undefined if there is none, or it is no JSON: values are checked by whoever reads them. */
export const readValue = (db: Lmdb, key: LmdbKey): unknown => parseJson(db.get(key));

/** In a transaction. */
export function writeValue(db: Lmdb, key: LmdbKey, value: unknown): void {
  db.putSync(key, JSON.stringify(value));
}

/** All entries whose keys begin with `space`, in the order of the rest of the key; values as `readValue` gives them. */
export function* entriesOf(db: Lmdb, space: string): Generator<{ readonly key: LmdbKey; readonly value: unknown }> {
  for (const { key, value } of db.getRange({ start: [space], end: [`${space}\0`] })) {
    yield { key, value: parseJson(value) };
  }
}

function parseJson(text: string | undefined): unknown {
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What LMDB threw, without what differs from one time to the next (page numbers). */
export function lmdbReason(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'number' && code > 0 ? errnoText(-code) : reasonOf(error);
}
