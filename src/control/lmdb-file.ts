/**
 * Is a file an LMDB environment that can be mapped? LMDB trusts its file: a page that is beyond its end, or an offset that is
 * beyond its page, is a fatal signal. So everything that it would follow is followed here first, with checks.
 *
 * The file begins with two meta pages; the one with the higher transaction number counts. In it are the roots of two trees, of
 * the entries and of the pages that are free. That the file is shorter than the last page it has given out is no damage: free
 * pages need not have been written. (mdb.c of the package lmdb 3.5, data version 2, on 64-bit little-endian machines.)
 */
import { readFileSync } from 'node:fs';

const MAGIC = 0xbeefc0de;
const VERSION = 2;
/** No map that one can have is larger. */
const MOST_BYTES = 2 ** 44;
/** Kinds of pages. */
const [BRANCH, LEAF, OVERFLOW, META] = [1, 2, 4, 8];
const PAGE_HEADER = 24;
/** Offsets in a page's header. OVERFLOW pages have their count where others have `lower` and `upper`. */
const PAGE = { number: 0, transaction: 8, flags: 0x12, lower: 0x14, upper: 0x16, overflows: 0x14 };
/** Offsets in a meta page. */
const FIELDS = {
  magic: 0x18,
  version: 0x1c,
  mapSize: 0x28,
  pageSize: 0x30,
  free: 0x30,
  main: 0x60,
  lastPage: 0x90,
  transaction: 0x98,
};
const META_END = 0xa0;
/** Offsets in a tree's record, which is in the meta page. */
const TREE = { flags: 0x04, depth: 0x06, entries: 0x20, root: 0x28 };
/** Of a tree's flags: what its keys and values are. The free pages' tree has flags of the environment besides. */
const TREE_KIND = 0x207f;
const INTEGER_KEYS = 8;
const NO_ROOT = 0xffff_ffff_ffff_ffffn;
/** Offsets in a node. `low` is the size of its data, or in a branch the low part of a page number and `flags` the rest. */
const NODE = { low: 0, flags: 4, keySize: 6, key: 8 };
/** The data is on overflow pages, whose first number, transaction and count are in its place. */
const BIG_DATA = 1;
const BIG_DATA_SIZE = 24;

/** What is wrong with a file; thrown here and caught here. */
class Damage extends Error {}

/** What is wrong with the file, in a few words; undefined if it is sound, absent, or empty (a crash at its creation). */
export function checkLmdbFile(path: string): string | undefined {
  try {
    const bytes = readFileSync(path);
    if (bytes.length > 0) check(bytes);
  } catch (error) {
    if (error instanceof Damage) return error.message;
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
  }
  return undefined;
}

interface Meta {
  /** Where it is in the file. */
  readonly at: number;
  readonly pageSize: number;
  readonly lastPage: number;
  readonly transaction: bigint;
}

function check(bytes: Buffer): void {
  const first = readMeta(bytes, 0);
  const second = readMeta(bytes, first.pageSize);
  const newer = first.transaction >= second.transaction ? first : second;
  const walk = new Walk(bytes, newer);
  walk.tree(newer.at + FIELDS.main, () => {});
  walk.tree(newer.at + FIELDS.free, (at, size) => walk.free(at, size));
}

function readMeta(bytes: Buffer, at: number): Meta {
  if (bytes.length < at + META_END) throw new Damage(`truncated: ${bytes.length} bytes`);
  const magic = bytes.readUInt32LE(at + FIELDS.magic);
  if (magic !== MAGIC) throw new Damage(`not an LMDB file: magic ${magic.toString(16)}`);
  const version = bytes.readUInt32LE(at + FIELDS.version);
  if (version !== VERSION) throw new Damage(`LMDB format ${version}, not ${VERSION}`);
  if ((bytes.readUInt16LE(at + PAGE.flags) & META) === 0) throw new Damage('its first pages are no meta pages');
  const pageSize = bytes.readUInt32LE(at + FIELDS.pageSize);
  const isPower = (pageSize & (pageSize - 1)) === 0;
  if (pageSize < 256 || pageSize > 65536 || !isPower) throw new Damage(`page size ${pageSize}`);
  const mainKind = bytes.readUInt16LE(at + FIELDS.main + TREE.flags);
  const freeKind = bytes.readUInt16LE(at + FIELDS.free + TREE.flags) & TREE_KIND;
  if (mainKind !== 0 || freeKind !== INTEGER_KEYS) throw new Damage(`trees of kinds ${mainKind} and ${freeKind}`);
  const lastPage = Number(bytes.readBigUInt64LE(at + FIELDS.lastPage));
  const most = Math.min(Number(bytes.readBigUInt64LE(at + FIELDS.mapSize)), MOST_BYTES);
  if (lastPage < 1 || (lastPage + 1) * pageSize > most) throw new Damage(`last page ${lastPage}`);
  return { at, pageSize, lastPage, transaction: bytes.readBigUInt64LE(at + FIELDS.transaction) };
}

/** What else there is to check of an entry: its data is `size` bytes at `at`. */
type Visit = (at: number, size: number) => void;

class Walk {
  readonly #bytes: Buffer;
  readonly #meta: Meta;
  /** By page: 1 once it has been seen, in use or free. One that is both, or used twice, would be overwritten. */
  readonly #seen: Uint8Array;

  constructor(bytes: Buffer, meta: Meta) {
    this.#bytes = bytes;
    this.#meta = meta;
    this.#seen = new Uint8Array(Math.ceil(bytes.length / meta.pageSize));
  }

  /** The tree whose record is at that place in the file. */
  tree(record: number, visit: Visit): void {
    const root = this.#bytes.readBigUInt64LE(record + TREE.root);
    const depth = this.#bytes.readUInt16LE(record + TREE.depth);
    const stated = this.#number(record + TREE.entries);
    const found = root === NO_ROOT ? 0 : this.#page(Number(root), depth, visit);
    if (found !== stated) throw new Damage(`${found} entries, not ${stated}`);
  }

  /** A list of free pages: how many numbers follow, then pages, minus the length of a run before its first, or zeros. */
  free(at: number, size: number): void {
    const length = size < 8 ? 0 : this.#number(at);
    if (8 * (length + 1) > size) throw new Damage(`a list of ${length} free pages in ${size} bytes`);
    for (let i = 1, run = 1; i <= length; i++) {
      const number = Number(this.#bytes.readBigInt64LE(at + 8 * i));
      if (number > 0) this.#claim(number, run);
      run = number < 0 ? -number : 1;
    }
  }

  #number(at: number): number {
    return Number(this.#bytes.readBigUInt64LE(at));
  }

  /** Pages that nobody else may have. */
  #claim(number: number, count: number): void {
    if (number < 2 || count < 1 || number + count - 1 > this.#meta.lastPage) {
      throw new Damage(`page ${number} does not exist`);
    }
    const end = Math.min(number + count, this.#seen.length);
    for (let page = number; page < end; page++) {
      if (this.#seen[page] === 1) throw new Damage(`page ${page} is used twice`);
      this.#seen[page] = 1;
    }
  }

  /** Where pages in use, `count` from `number` on, begin in the file. */
  #use(number: number, count: number): number {
    const { pageSize, transaction } = this.#meta;
    this.#claim(number, count);
    if ((number + count) * pageSize > this.#bytes.length) {
      throw new Damage(`truncated: page ${number + count - 1} of ${Math.floor(this.#bytes.length / pageSize)} is used`);
    }
    const at = number * pageSize;
    if (this.#number(at + PAGE.number) !== number) throw new Damage(`page ${number} is another`);
    // LMDB takes a page of a later transaction for one that it may write to.
    if (this.#bytes.readBigUInt64LE(at + PAGE.transaction) > transaction) throw new Damage(`page ${number} is too new`);
    return at;
  }

  /** Checks a page and those below it; `levels` 1 is a leaf. Gives the number of entries. */
  #page(number: number, levels: number, visit: Visit): number {
    const bytes = this.#bytes;
    const at = this.#use(number, 1);
    const wrong = (what: string): Damage => new Damage(`page ${number}: ${what}`);
    const flags = bytes.readUInt16LE(at + PAGE.flags);
    if (flags !== (levels === 1 ? LEAF : BRANCH)) throw wrong(`flags ${flags}, ${levels} from the leaves`);
    const room = this.#meta.pageSize - PAGE_HEADER;
    const lower = bytes.readUInt16LE(at + PAGE.lower);
    const upper = bytes.readUInt16LE(at + PAGE.upper);
    const nodes = lower >> 1;
    if ((lower & 1) !== 0 || nodes < 1 || lower > upper || upper > room) throw wrong(`bounds ${lower} and ${upper}`);
    let entries = levels === 1 ? nodes : 0;
    let used = 0;
    for (let i = 0; i < nodes; i++) {
      const offset = bytes.readUInt16LE(at + PAGE_HEADER + 2 * i);
      if (offset < upper || offset + NODE.key > room) throw wrong(`node ${i} at ${offset}`);
      const node = at + PAGE_HEADER + offset;
      const keySize = bytes.readUInt16LE(node + NODE.keySize);
      const low = bytes.readUInt32LE(node + NODE.low);
      const nodeFlags = bytes.readUInt16LE(node + NODE.flags);
      const size = NODE.key + keySize + (levels > 1 ? 0 : nodeFlags === BIG_DATA ? BIG_DATA_SIZE : low);
      if (offset + size > room || (keySize === 0 && !(levels > 1 && i === 0)))
        throw wrong(`node ${i} of ${size} bytes`);
      used += size + (size & 1);
      const data = node + NODE.key + keySize;
      if (levels > 1) entries += this.#page(low + nodeFlags * 2 ** 32, levels - 1, visit);
      else if (nodeFlags === BIG_DATA) visit(this.#overflow(data, low), low);
      else if (nodeFlags === 0) visit(data, low);
      else throw wrong(`node ${i} has flags ${nodeFlags}`);
    }
    if (used !== room - upper) throw wrong(`${used} bytes of nodes in ${room - upper}`);
    return entries;
  }

  /** Checks the pages of a large value, which a node's data at `place` names. Gives where the value begins. */
  #overflow(place: number, size: number): number {
    const number = this.#number(place);
    const count = this.#number(place + 16);
    const at = this.#use(number, count);
    const flags = this.#bytes.readUInt16LE(at + PAGE.flags);
    const stated = this.#bytes.readUInt32LE(at + PAGE.overflows);
    if (flags !== OVERFLOW || stated !== count || PAGE_HEADER + size > count * this.#meta.pageSize) {
      throw new Damage(`page ${number}: ${stated} overflow pages with flags ${flags}, not ${count} for ${size} bytes`);
    }
    return at + PAGE_HEADER;
  }
}
