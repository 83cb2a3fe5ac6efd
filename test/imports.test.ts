/** Imports point one way: packet ← io ← dataplane ← control ← main; and one file alone knows koffi. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const src = fileURLToPath(new URL('../../src', import.meta.url));

/** What each folder may import from, besides itself. '' is src itself. */
const allowed: Record<string, readonly string[]> = {
  packet: [],
  io: ['packet'],
  dataplane: ['packet', 'io'],
  host: ['packet', 'io'],
  control: ['packet', 'io', 'dataplane', 'host'],
  observe: ['packet', 'io', 'dataplane', 'control'],
  '': ['packet', 'io', 'dataplane', 'host', 'control', 'observe'],
};

const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter(
  (file) => file.endsWith('.ts') && !file.startsWith('kernels/') && !file.endsWith('.d.ts'),
);

const importsOf = (file: string): string[] =>
  [...readFileSync(join(src, file), 'utf8').matchAll(/^(?:import|export) [^;]*?from '([^']+)'/gms)].map(
    (found) => found[1],
  );

const folderOf = (file: string): string => (file.includes('/') ? file.slice(0, file.indexOf('/')) : '');

t.test('imports point one way', async (t) => {
  t.ok(files.length > 20, 'the sources are found');
  for (const file of files) {
    const folder = folderOf(file);
    for (const target of importsOf(file).filter((name) => name.startsWith('.'))) {
      const other = folderOf(normalize(join(dirname(file), target)));
      if (other !== folder && !allowed[folder]?.includes(other)) t.fail(`${file} imports ${target}`);
    }
  }
});

t.test('one file knows koffi', async (t) => {
  t.same(
    files.filter((file) => importsOf(file).includes('koffi')),
    ['io/syscalls.ts'],
  );
});

t.test('the in-memory engine loads no native code', async (t) => {
  const seen = new Set<string>();
  const visit = (file: string): void => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const target of importsOf(file)) {
      t.not(target, 'koffi', `${file} imports koffi`);
      if (target.startsWith('.')) visit(normalize(join(dirname(file), target)).replace(/\.js$/, '.ts'));
    }
  };
  for (const entry of ['dataplane/engine.ts', 'dataplane/tables.ts', 'io/memory-device.ts', 'io/memory-socket.ts'])
    visit(entry);
  t.ok(seen.has('dataplane/outbound.ts'));
});
