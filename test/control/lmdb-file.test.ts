/** The check before LMDB maps a file: it takes all that LMDB writes, and nothing that would be a fatal signal. */
import { spawn } from 'node:child_process';
import { copyFileSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { open, type RootDatabase } from 'lmdb';
import t from 'tap';
import { checkLmdbFile } from '../../src/control/lmdb-file.js';

const PAGE = 4096;
const READER = fileURLToPath(new URL('../lib/lmdb-reader.js', import.meta.url));

const openFile = (path: string): RootDatabase<unknown, (string | number)[]> =>
  open({ path, noSubdir: true, encoding: 'json', mapSize: 1 << 28, cache: false, overlappingSync: false });

/** A generator of the same numbers every time, below `most`. */
function numbers(seed: number): (most: number) => number {
  let state = seed;
  return (most) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * most);
  };
}

/** A file with branches, leaves, large values and free pages. */
async function makeFile(path: string): Promise<Buffer> {
  const db = openFile(path);
  for (let round = 0; round < 4; round++) {
    db.transactionSync(() => {
      for (let i = 0; i < 300; i++) db.putSync(['lease', i], { round, i, what: 'x'.repeat(60) });
      db.putSync(['large'], 'y'.repeat(9000 + round));
    });
  }
  await db.close();
  return readFileSync(path);
}

/** The place of the newer meta page. */
const newer = (bytes: Buffer): number => (bytes.readBigUInt64LE(0x98) >= bytes.readBigUInt64LE(PAGE + 0x98) ? 0 : PAGE);

t.test('what LMDB writes is sound after every commit', async (t) => {
  const path = join(t.testdir(), 'data.mdb');
  const random = numbers(7);
  const db = openFile(path);
  t.equal(checkLmdbFile(path), undefined, 'just made');
  const rounds: [what: string, change: (round: number) => void][] = [
    ['small values', () => db.putSync(['k', random(500)], 'v'.repeat(random(300)))],
    ['large values', () => db.putSync(['k', random(50)], 'v'.repeat(random(15_000)))],
    ['removals', () => db.removeSync(['k', random(500)])],
  ];
  for (let round = 0; round < 90; round++) {
    const [what, change] = rounds[round % rounds.length];
    db.transactionSync(() => {
      for (let i = random(150); i >= 0; i--) change(round);
    });
    const wrong = checkLmdbFile(path);
    if (wrong !== undefined) t.fail(`${what}, round ${round}: ${wrong}`);
  }
  await db.close();
  t.equal(checkLmdbFile(path), undefined, 'closed');
});

t.test('nothing there, or not ours', async (t) => {
  const dir = t.testdir({
    empty: '',
    text: 'some text\n',
    zeros: Buffer.alloc(4 * PAGE),
    long: Buffer.alloc(4 * PAGE, 'text'),
  });
  t.equal(checkLmdbFile(join(dir, 'absent')), undefined);
  t.equal(checkLmdbFile(join(dir, 'none', 'absent')), undefined);
  t.equal(checkLmdbFile(join(dir, 'empty')), undefined, 'a crash while it was made');
  t.match(checkLmdbFile(join(dir, 'text')), /^truncated: /);
  t.match(checkLmdbFile(join(dir, 'zeros')), /^not an LMDB file: magic 0$/);
  t.match(checkLmdbFile(join(dir, 'long')), /^not an LMDB file: magic 74786574$/);
  t.throws(() => checkLmdbFile(dir), { code: 'EISDIR' }, 'what cannot be read is another matter');
});

t.test('what is wrong with the first pages', async (t) => {
  const path = join(t.testdir(), 'data.mdb');
  const sound = await makeFile(path);
  const at = newer(sound);
  const cases: [what: string, damage: (bytes: Buffer) => void, expected: RegExp][] = [
    ['magic', (bytes) => bytes.writeUInt32LE(0, 0x18), /^not an LMDB file: magic 0$/],
    ['magic of the second', (bytes) => bytes.writeUInt32LE(1, PAGE + 0x18), /^not an LMDB file: magic 1$/],
    ['version', (bytes) => bytes.writeUInt32LE(7, 0x1c), /^LMDB format 7, not 2$/],
    ['kind of page', (bytes) => bytes.writeUInt16LE(2, 0x12), /no meta pages$/],
    ['page size', (bytes) => bytes.writeUInt32LE(4095, 0x30), /^page size 4095$/],
    ['a small page size', (bytes) => bytes.writeUInt32LE(0, 0x30), /^page size 0$/],
    ['no pages', (bytes) => bytes.writeBigUInt64LE(0n, at + 0x90), /^last page 0$/],
    ['too many pages', (bytes) => bytes.writeBigUInt64LE(2n ** 50n, at + 0x90), /^last page 1\d+$/],
    ['second page zero', (bytes) => bytes.fill(0, PAGE, 2 * PAGE), /^not an LMDB file: magic 0$/],
  ];
  for (const [what, damage, expected] of cases) {
    const bytes = Buffer.from(sound);
    damage(bytes);
    writeFileSync(path, bytes);
    t.match(checkLmdbFile(path), expected, what);
  }
  writeFileSync(path, sound);
  t.equal(checkLmdbFile(path), undefined, 'as it was');
});

t.test('truncated', async (t) => {
  const dir = t.testdir();
  const path = join(dir, 'data.mdb');
  const { length } = await makeFile(path);
  const cut = join(dir, 'cut.mdb');
  for (const size of [100, PAGE, PAGE + 100, 2 * PAGE, 10 * PAGE, length >> 1, (length >> 1) + 1]) {
    copyFileSync(path, cut);
    truncateSync(cut, size);
    t.match(checkLmdbFile(cut), /^truncated: /, `${size} bytes`);
  }
  copyFileSync(path, cut);
  truncateSync(cut, length + 3 * PAGE + 5);
  t.equal(checkLmdbFile(cut), undefined, 'longer: a commit that was cut short');
});

t.test('free pages at the end need not be there', async (t) => {
  const path = join(t.testdir(), 'data.mdb');
  const db = openFile(path);
  for (let i = 0; i < 20; i++) {
    db.transactionSync(() => {
      db.putSync(['large'], 'v'.repeat(6000));
      db.removeSync(['large']);
      db.putSync(['small'], i);
    });
  }
  const bytes = readFileSync(path);
  const last = Number(bytes.readBigUInt64LE(newer(bytes) + 0x90));
  t.ok(statSync(path).size < (last + 1) * PAGE, 'LMDB does that');
  t.equal(checkLmdbFile(path), undefined);
  t.equal(db.get(['small']), 19);
  await db.close();
});

t.test('what is wrong with the trees', async (t) => {
  const path = join(t.testdir(), 'data.mdb');
  const sound = await makeFile(path);
  const meta = newer(sound);
  const place = (record: number): number => Number(sound.readBigUInt64LE(meta + record + 0x28)) * PAGE;
  const root = place(0x60);
  const free = place(0x30);
  const child = (page: number): number => sound.readUInt32LE(page + 24 + sound.readUInt16LE(page + 24)) * PAGE;
  let leaf = root;
  while (sound.readUInt16LE(leaf + 0x12) === 1) leaf = child(leaf);
  t.not(leaf, root, 'it has a branch');
  const node = (page: number, i = 0): number => page + 24 + sound.readUInt16LE(page + 24 + 2 * i);
  // The large value is the first: its key sorts before the others.
  const large = node(leaf);
  t.equal(sound.readUInt16LE(large + 4), 1, 'it has a large value');
  const value = large + 8 + sound.readUInt16LE(large + 6);
  const pages = Number(sound.readBigUInt64LE(value)) * PAGE;

  const cases: [what: string, damage: (bytes: Buffer) => void, expected: RegExp][] = [
    ['root beyond the last page', (bytes) => bytes.writeUInt32LE(60_000, meta + 0x88), /^page 60000 does not exist$/],
    ['root is a meta page', (bytes) => bytes.writeUInt32LE(1, meta + 0x88), /^page 1 does not exist$/],
    ['kind of tree', (bytes) => bytes.writeUInt16LE(4, meta + 0x64), /^trees of kinds 4 and 8$/],
    ['kind of free tree', (bytes) => bytes.writeUInt16LE(0x2008, meta + 0x34), /^trees of kinds 0 and 8200$/],
    ['depth', (bytes) => bytes.writeUInt16LE(9, meta + 0x66), /from the leaves$/],
    ['entries', (bytes) => bytes.writeUInt32LE(9, meta + 0x80), /^301 entries, not 9$/],
    ['free entries', (bytes) => bytes.writeUInt32LE(99, meta + 0x50), /^\d+ entries, not 99$/],
    ['a page of zeros', (bytes) => bytes.fill(0, leaf, leaf + PAGE), /^page \d+ is another$/],
    ['another page', (bytes) => bytes.copy(bytes, leaf, root, root + PAGE), /^page \d+ is another$/],
    ['too new', (bytes) => bytes.writeUInt8(1, leaf + 15), /^page \d+ is too new$/],
    ['kind of page', (bytes) => bytes.writeUInt16LE(1, leaf + 0x12), /flags 1, 1 from the leaves$/],
    ['odd bounds', (bytes) => bytes.writeUInt8(1 + (sound[leaf + 0x14] & ~1), leaf + 0x14), /: bounds /],
    ['no nodes', (bytes) => bytes.writeUInt16LE(0, leaf + 0x14), /: bounds /],
    ['bounds that cross', (bytes) => bytes.writeUInt16LE(0, leaf + 0x16), /: bounds /],
    ['a bound outside', (bytes) => bytes.writeUInt16LE(PAGE, leaf + 0x16), /: bounds /],
    ['a node outside', (bytes) => bytes.writeUInt16LE(PAGE - 8, leaf + 24), /: node 0 at 4088$/],
    ['a node in the header', (bytes) => bytes.writeUInt16LE(0, leaf + 24), /: node 0 at 0$/],
    ['a key that is too long', (bytes) => bytes.writeUInt16LE(PAGE, large + 6), /: node 0 of \d+ bytes$/],
    ['no key', (bytes) => bytes.writeUInt16LE(0, large + 6), /: node 0 of \d+ bytes$/],
    ['a shorter key', (bytes) => bytes.writeUInt16LE(2, large + 6), /bytes of nodes|does not exist/],
    ['kind of node', (bytes) => bytes.writeUInt16LE(2, large + 4), /: node 0 of \d+ bytes$/],
    ['kind of another node', (b) => b.writeUInt16LE(2, leaf + 24 + sound.readUInt16LE(leaf + 26) + 4), /has flags 2$/],
    ['large value twice', (b) => b.writeUInt16LE(b.readUInt16LE(leaf + 24), leaf + 26), /used twice$/],
    ['a shorter value', (b) => b.writeUInt8(9, leaf + 24 + b.readUInt16LE(leaf + 26)), /bytes of nodes in/],
    ['a child twice', (b) => b.writeUInt32LE(child(root) / PAGE, node(root, 1)), /used twice$/],
    ['large value elsewhere', (bytes) => bytes.writeUInt32LE(leaf / PAGE, value), /^page \d+ is used twice$/],
    ['large value outside', (bytes) => bytes.writeUInt32LE(1 << 20, value), /^page 1048576 does not exist$/],
    ['large value of no pages', (bytes) => bytes.writeUInt32LE(0, value + 16), /does not exist$/],
    ['large value is too large', (bytes) => bytes.writeUInt32LE(50_000, large), /overflow pages .* for 50000 bytes$/],
    ['kind of large page', (bytes) => bytes.writeUInt16LE(2, pages + 0x12), /overflow pages with flags 2/],
    ['large page count', (bytes) => bytes.writeUInt32LE(9, pages + 0x14), /9 overflow pages/],
    ['free page list', (bytes) => bytes.writeUInt32LE(5000, node(free) + 16), /^a list of 5000 free pages/],
    ['free list length', (bytes) => bytes.writeUInt16LE(12, node(free)), /^a list of|bytes of nodes in/],
    ['a free page in use', (bytes) => bytes.writeBigInt64LE(BigInt(root / PAGE), node(free) + 24), /used twice$/],
    ['a free page outside', (bytes) => bytes.writeBigInt64LE(70_000n, node(free) + 24), /^page 70000 does not exist$/],
    [
      'a run of free pages that ends outside',
      (bytes) => {
        bytes.writeBigInt64LE(-3n, node(free) + 24);
        bytes.writeBigInt64LE(bytes.readBigInt64LE(meta + 0x90) - 1n, node(free) + 32);
      },
      /^page \d+ does not exist$/,
    ],
    ['a free meta page', (bytes) => bytes.writeBigInt64LE(1n, node(free) + 24), /^page 1 does not exist$/],
  ];
  for (const [what, damage, expected] of cases) {
    const bytes = Buffer.from(sound);
    damage(bytes);
    writeFileSync(path, bytes);
    t.match(checkLmdbFile(path), expected, what);
  }
});

t.test('what passes kills nobody', async (t) => {
  const dir = t.testdir();
  const base = join(dir, 'data.mdb');
  const sound = await makeFile(base);
  const seed = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 1_000_000);
  t.comment(`WEFT_FUZZ_SEED=${seed}`);
  const random = numbers(seed);
  const pages = sound.length / PAGE;
  const kinds: ((bytes: Buffer) => Buffer)[] = [
    (bytes) => bytes.fill(random(256), random(pages) * PAGE + random(64)).subarray(0, sound.length), // to the end
    (bytes) => {
      bytes[random(bytes.length)] ^= 1 << random(8);
      return bytes;
    },
    (bytes) => {
      bytes[random(2) * PAGE + random(0xa0)] ^= 1 << random(8);
      return bytes;
    },
    (bytes) => {
      bytes[(2 + random(pages - 2)) * PAGE + random(64)] = random(256);
      return bytes;
    },
    (bytes) => {
      const page = (2 + random(pages - 2)) * PAGE;
      return bytes.fill(0, page + random(2) * 2048, page + PAGE);
    },
    (bytes) => {
      const [to, from] = [2 + random(pages - 2), random(pages)];
      bytes.copy(bytes, to * PAGE, from * PAGE, (from + 1) * PAGE);
      return bytes;
    },
    (bytes) => bytes.subarray(0, random(bytes.length)),
  ];
  const passed: string[] = [];
  for (let i = 0; i < 700; i++) {
    const path = join(dir, `${i}.mdb`);
    writeFileSync(path, kinds[i % kinds.length](Buffer.from(sound)));
    if (checkLmdbFile(path) === undefined) passed.push(path);
  }
  t.ok(passed.length > 20 && passed.length < 600, `${passed.length} of 700 pass`);
  const child = spawn(process.execPath, [READER, ...passed], { stdio: ['ignore', 'pipe', 'ignore'], timeout: 60_000 });
  let done = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    done += text;
  });
  const ended = await new Promise((resolve) => child.on('close', (code, signal) => resolve(signal ?? code)));
  t.equal(ended, 0, `the reader ended after ${done.trim().split('\n').at(-1)}`);
  t.equal(done.trim().split('\n').length, passed.length);
});

t.test('a registry of thousands of leases is checked in milliseconds', async (t) => {
  const path = join(t.testdir(), 'data.mdb');
  const db = openFile(path);
  db.transactionSync(() => {
    for (let i = 0; i < 10_000; i++) db.putSync(['lease', `10.0.${i >> 8}.${i & 255}`], { what: 'x'.repeat(120) });
  });
  await db.close();
  const times = Array.from({ length: 5 }, () => {
    const begin = performance.now();
    t.equal(checkLmdbFile(path), undefined);
    return performance.now() - begin;
  });
  const best = Math.min(...times);
  t.comment(`${statSync(path).size} bytes: ${best.toFixed(1)} ms`);
  t.ok(best < 50);
});
