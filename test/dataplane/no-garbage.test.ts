/**
 * No garbage collection in 10^7 packets, of all kinds and both directions, through an engine in memory. One object for every
 * packet would make a dozen; the test shows that it sees them.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';

// A busy machine may be slow: longer than the default.
t.setTimeout(600_000);

const CHILD = fileURLToPath(new URL('../lib/no-garbage-child.js', import.meta.url));
/** A young generation of 1 MB, so that a tenth of a byte a packet is too much. */
const FLAGS = ['--trace-gc', '--expose-gc', '--min-semi-space-size=1', '--max-semi-space-size=1'];
const WARM_UP = 1e6;
/** Fewer: capturing takes longer. */
const CAPTURED = 2e6;
const PACKETS = 1e7;

interface Result {
  /** Lines of --trace-gc between the two marks. */
  readonly collections: string[];
  readonly passed: number;
  readonly balanced: boolean;
  readonly captured: boolean;
}

function run(packets: number, ...more: readonly string[]): Promise<Result> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...FLAGS, CHILD, String(WARM_UP), String(packets), ...more], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, NODE_OPTIONS: '' },
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code) => {
      const lines = output.split('\n');
      const traced = lines.filter((line) => / ms: (Scavenge|Mark-|Minor)/.test(line));
      const marks = traced.flatMap((line, i) => (line.includes('testing') ? [i] : []));
      const summary = lines.find((line) => line.startsWith('{'));
      if (code !== 0 || marks.length !== 2 || !summary)
        return reject(new Error(`the child ended with ${code}:\n${output}`));
      const result = JSON.parse(summary) as Omit<Result, 'collections'>;
      resolve({ collections: traced.slice(marks[0] + 1, marks[1]), ...result });
    });
  });
}

t.test('no collection in 10^7 packets', { timeout: 300_000 }, async (t) => {
  const { collections, passed, balanced } = await run(PACKETS);
  t.same(collections, []);
  t.ok(passed >= PACKETS, `${passed} packets`);
  t.ok(balanced);
});

t.test('nor while every packet is captured', { timeout: 300_000 }, async (t) => {
  const { collections, passed, balanced, captured } = await run(CAPTURED, 'capture');
  t.same(collections, []);
  t.ok(passed >= CAPTURED, `${passed} packets`);
  t.ok(balanced && captured);
});

t.test('one object a packet would be seen', { timeout: 300_000 }, async (t) => {
  const { collections } = await run(PACKETS, 'allocate');
  t.ok(collections.length > 0, `${collections.length} collections`);
});
