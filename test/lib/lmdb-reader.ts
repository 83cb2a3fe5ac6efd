/**
 * Opens and reads LMDB files, for tests of what the check before lets through: a fatal signal ends this process, not the test.
 * Arguments: the files. Prints each one's path once it is done with it; that LMDB refuses one is fine.
 */
import { writeSync } from 'node:fs';
import { open } from 'lmdb';

for (const path of process.argv.slice(2)) {
  try {
    const db = open({ path, noSubdir: true, encoding: 'json', mapSize: 1 << 28, cache: false, overlappingSync: false });
    try {
      for (const { value } of db.getRange({ limit: 10_000 })) JSON.stringify(value);
      db.transactionSync(() => {
        for (let i = 0; i < 100; i++) db.putSync(['more', i], 'x'.repeat(i === 0 ? 12_000 : 150));
      });
    } finally {
      void db.close();
    }
  } catch {
    // An exception is what can be dealt with.
  }
  writeSync(1, `${path}\n`);
}
