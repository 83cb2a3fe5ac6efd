/**
 * Imports point one way: packet ← io ← dataplane ← control ← observe ← inspect ← main; and one file alone knows koffi. The `weft`
 * command (commands) knows of the daemon only what goes over the control socket.
 */
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
  inspect: ['packet', 'io', 'dataplane', 'host', 'control', 'observe'],
  commands: ['packet', 'io', 'host', ''],
  '': ['packet', 'io', 'dataplane', 'host', 'control', 'observe', 'inspect'],
};

/** Files of folders that it may not import from otherwise. */
const exceptions: Record<string, readonly string[]> = {
  commands: [
    'control/cidr.js',
    'control/event-log.js',
    'control/mac.js',
    'inspect/protocol.js',
    'inspect/explain-answer.js',
    'inspect/capture-frames.js',
  ],
};

/** The bin of the `weft` command, which alone of the daemon's files knows the commands. */
const CLI = 'cli.ts';

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
      const path = normalize(join(dirname(file), target));
      const other = folderOf(path);
      if (other === folder || allowed[folder]?.includes(other) || exceptions[folder]?.includes(path)) continue;
      if (file === CLI && other === 'commands') continue;
      t.fail(`${file} imports ${target}`);
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
