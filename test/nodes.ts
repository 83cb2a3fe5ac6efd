/**
 * Runs the compiled tests (run.ts) under several versions of Node, one after the other, and ends with a table and the
 * plain line "N passed, N failed", summed. The version that runs this file is used as it is; the others come from npm
 * once and stay in node_modules/.cache/weft-nodes.
 *
 *   npm run test:nodes                       every version of NODES
 *   npm run test:nodes -- hosts/wire         only files whose path contains a word, as in run.ts; --full too
 *   npm run test:nodes -- --nodes 22,24.1    these versions: a major, or more of it
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const NODES = '20,22,24';
/** Seen from dist/test. */
const CACHE = fileURLToPath(new URL('../../node_modules/.cache/weft-nodes', import.meta.url));
const RUNNER = fileURLToPath(new URL('run.js', import.meta.url));
const NPM_INSTALL = ['install', '--no-save', '--no-package-lock', '--ignore-scripts', '--loglevel=error'];
/** npm's own waits between attempts are 10 and 60 s. */
const NPM_RETRIES = ['--fetch-retries=1', '--fetch-retry-mintimeout=1000'];

/** An error whose message is all that is to be printed. */
class Problem extends Error {}

interface Row {
  readonly node: string;
  readonly passed: number;
  readonly failed: number;
  readonly seconds: number;
}

let running: ChildProcess | undefined;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    // The whole group: the test file that runs hears of it too, and removes its namespaces.
    if (running?.pid !== undefined) process.kill(-running.pid, 'SIGTERM');
    process.exit(1);
  });
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof Problem)) throw error;
  console.error(`test:nodes: ${error.message}`);
  process.exitCode = 1;
}

async function main(args: readonly string[]): Promise<number> {
  const { versions, words } = readArgs(args);
  // All of them before the first test: a missing one shows at once, not after ten minutes.
  const nodes = versions.map(find);
  const rows: Row[] = [];
  for (const node of nodes) rows.push(await runTests(node, words));

  const passed = rows.reduce((sum, row) => sum + row.passed, 0);
  const failed = rows.reduce((sum, row) => sum + row.failed, 0);
  console.log(`\n${table(rows)}\n\n${passed} passed, ${failed} failed`);
  return failed > 0 ? 1 : 0;
}

function readArgs(args: readonly string[]): { versions: string[]; words: string[] } {
  const words = args.flatMap((word) => (word.startsWith('--nodes=') ? word.split('=') : word));
  const at = words.indexOf('--nodes');
  const versions = (at < 0 ? NODES : (words.splice(at, 2)[1] ?? '')).split(',');
  const wrong = versions.find((version) => !/^\d+(\.\d+){0,2}$/.test(version));
  if (wrong !== undefined) throw new Problem(`--nodes: "${wrong}" is not a version; give some as in --nodes 22,24.1`);
  return { versions, words };
}

// --- getting a version ---

interface Node {
  readonly version: string;
  readonly path: string;
}

/** A node of this version: this process's own if it fits, else the cache's, else npm's. */
function find(wanted: string): Node {
  if (`${process.versions.node}.`.startsWith(`${wanted}.`)) {
    return { version: process.versions.node, path: process.execPath };
  }
  // What the install script of npm's package "node" fetches for this machine: it needs no script itself.
  const name = `node-${process.platform}-${process.arch}`;
  const folder = join(CACHE, wanted);
  const path = join(folder, 'node_modules', name, 'bin', 'node');
  if (!existsSync(path)) fetch(wanted, `${name}@${wanted}`, folder);
  const { status, signal, stdout, stderr, error } = spawnSync(path, ['--version'], { encoding: 'utf8' });
  if (status !== 0) {
    const why = error?.message ?? (stderr.trim().split('\n')[0] || signal);
    throw new Problem(`node ${wanted} does not start: ${why}; remove ${folder} to have it fetched again`);
  }
  return { version: stdout.trim().replace(/^v/, ''), path };
}

/** Installs into a folder beside the final one, so that what is there is whole. */
function fetch(wanted: string, spec: string, folder: string): void {
  console.log(`== fetching node ${wanted}`);
  let half: string | undefined;
  try {
    mkdirSync(CACHE, { recursive: true });
    half = mkdtempSync(join(CACHE, 'half-'));
    const npm = spawnSync('npm', [...NPM_INSTALL, ...NPM_RETRIES, '--prefix', half, spec], { encoding: 'utf8' });
    if (npm.error !== undefined) throw new Problem(`npm does not start: ${npm.error.message}`);
    if (npm.status !== 0) throw new Problem(`node ${wanted} cannot be had from npm: ${npmCause(npm.stderr)}`);
    rmSync(folder, { recursive: true, force: true });
    renameSync(half, folder);
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(`node ${wanted} cannot be kept: ${(error as Error).message}`);
  } finally {
    if (half !== undefined) rmSync(half, { recursive: true, force: true });
  }
}

/** The one line of npm's dozen that says what went wrong. */
function npmCause(stderr: string): string {
  const lines = stderr
    .split('\n')
    .filter((line) => line.startsWith('npm error '))
    .map((line) => line.slice('npm error '.length));
  const sentence = lines.find((line) => !/^(code|syscall|errno|path|dest) /.test(line));
  return (sentence ?? lines[0] ?? 'npm says nothing').replace(/^(network|notarget|\d{3}) /, '');
}

// --- running the tests ---

/** The tests under one node: their output as it comes, and what their last line says. */
function runTests({ version, path }: Node, words: readonly string[]): Promise<Row> {
  console.log(`\n== node ${version}`);
  const start = Date.now();
  return new Promise((resolve, reject) => {
    const child = spawn(path, [RUNNER, ...words], { stdio: ['ignore', 'pipe', 'inherit'], detached: true });
    running = child;
    let tail = '';
    child.stdout.on('data', (chunk: Buffer) => {
      process.stdout.write(chunk);
      tail = (tail + chunk.toString()).slice(-1000);
    });
    child.on('error', (error) => reject(new Problem(`node ${version} does not start: ${error.message}`)));
    child.on('close', (code) => {
      running = undefined;
      const [, passed, failed] = /(?:^|\n)(\d+) passed, (\d+) failed\n$/.exec(tail) ?? ['', '0', '0'];
      // A run that ended early, or that tested nothing, failed.
      const least = code === 0 ? 0 : 1;
      const seconds = Math.round((Date.now() - start) / 1000);
      resolve({ node: version, passed: Number(passed), failed: Math.max(Number(failed), least), seconds });
    });
  });
}

function table(rows: readonly Row[]): string {
  const lines = [
    ['node', 'passed', 'failed', 'seconds'],
    ...rows.map(({ node, passed, failed, seconds }) => [node, `${passed}`, `${failed}`, `${seconds}`]),
  ];
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)));
  const cell = (text: string, column: number): string =>
    column === 0 ? text.padEnd(widths[0]) : text.padStart(widths[column]);
  return lines.map((line) => line.map(cell).join('  ')).join('\n');
}
