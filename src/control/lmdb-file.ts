/**
 * Is a file an LMDB environment that can be mapped? LMDB trusts its file: a page that is beyond its end is a fatal signal.
 *
 * The file begins with two meta pages; the one with the higher transaction number counts (lmdb.h, mdb.c; data version 2, as the
 * package lmdb 3.5 writes it on 64-bit little-endian machines).
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

const MAGIC = 0xbeefc0de;
const VERSION = 2;
const P_META = 8;
/** Of a meta page; the first page's size is in it. */
const FIELDS = {
  flags: 0x12,
  magic: 0x18,
  version: 0x1c,
  pageSize: 0x30,
  lastPage: 0x90,
  transaction: 0x98,
  end: 0xa0,
};

/** What is wrong with the file, in a few words; undefined if it is sound, absent, or empty (a crash at its creation). */
export function checkLmdbFile(path: string): string | undefined {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    const { size } = fstatSync(fd);
    return size === 0 ? undefined : checkPages(fd, size);
  } finally {
    closeSync(fd);
  }
}

function checkPages(fd: number, size: number): string | undefined {
  const first = readMeta(fd, 0);
  if (typeof first === 'string') return first;
  const second = readMeta(fd, first.pageSize);
  if (typeof second === 'string') return second;
  const newer = first.transaction >= second.transaction ? first : second;
  const pages = Math.floor(size / first.pageSize);
  if (newer.lastPage < 1 || newer.lastPage >= 2 ** 40) return `last page ${newer.lastPage}`;
  return pages > newer.lastPage ? undefined : `truncated: ${pages} pages of ${newer.lastPage + 1}`;
}

interface Meta {
  readonly pageSize: number;
  readonly lastPage: number;
  readonly transaction: bigint;
}

function readMeta(fd: number, at: number): Meta | string {
  const bytes = Buffer.alloc(FIELDS.end);
  const found = readSync(fd, bytes, 0, bytes.length, at);
  if (found < bytes.length) return `truncated: its ${at === 0 ? 'first' : 'second'} page ends after ${found} bytes`;
  const magic = bytes.readUInt32LE(FIELDS.magic);
  if (magic !== MAGIC) return `not an LMDB file: magic ${magic.toString(16)}`;
  const version = bytes.readUInt32LE(FIELDS.version);
  if (version !== VERSION) return `LMDB format ${version}, not ${VERSION}`;
  if ((bytes.readUInt16LE(FIELDS.flags) & P_META) === 0) return 'its first pages are no meta pages';
  const pageSize = bytes.readUInt32LE(FIELDS.pageSize);
  if (pageSize < 256 || pageSize > 65536 || (pageSize & (pageSize - 1)) !== 0) return `page size ${pageSize}`;
  const lastPage = Number(bytes.readBigUInt64LE(FIELDS.lastPage));
  return { pageSize, lastPage, transaction: bytes.readBigUInt64LE(FIELDS.transaction) };
}
