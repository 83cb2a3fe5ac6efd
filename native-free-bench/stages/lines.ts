/**
 * Gives every line of the compiled sources a number of its own.
 *
 * V8's profiler names the line of what it found running, also where TurboFan inlined that; but the file only of the function
 * into which it was inlined. So each module is loaded behind empty lines, as many that no two modules have a line in common.
 * The machine code is the same.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const DIST = fileURLToPath(new URL('../..', import.meta.url));
const FOLDERS = ['src', 'native-free-bench'];
/** Node's own modules, which nobody can move, have fewer lines. */
const FIRST = 100_000;

export interface Module {
  /** As "src/dataplane/outbound". */
  readonly name: string;
  readonly url: string;
  readonly file: string;
  /** Empty lines before it. */
  readonly before: number;
  readonly lines: number;
}

/** All modules that a benchmark may load, the same ones at each call. */
export function modules(): Module[] {
  let before = FIRST;
  return FOLDERS.flatMap((folder) =>
    readdirSync(join(DIST, folder), { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`),
  )
    .filter((name) => name.endsWith('.js'))
    .sort()
    .map((path) => {
      const file = join(DIST, path);
      const lines = readFileSync(file, 'utf8').split('\n').length;
      const module = { name: path.slice(0, -'.js'.length), url: pathToFileURL(file).href, file, before, lines };
      before += lines;
      return module;
    });
}

// --- the loader's hooks (module.register) ---

let moves = new Map<string, number>();

/** Called by Node, with the data of `register`. */
export function initialize(data: readonly Module[]): void {
  moves = new Map(data.map(({ url, before }) => [url, before]));
}

interface Loaded {
  readonly format: string;
  readonly source: string | Uint8Array | null;
}

/** Called by Node for each module. */
export async function load(
  url: string,
  context: object,
  next: (url: string, context: object) => Promise<Loaded>,
): Promise<Loaded> {
  const loaded = await next(url, context);
  const before = moves.get(url);
  if (before === undefined || loaded.source === null) return loaded;
  const text = typeof loaded.source === 'string' ? loaded.source : Buffer.from(loaded.source).toString('utf8');
  return { ...loaded, source: '\n'.repeat(before) + text };
}
