/**
 * The native-free benchmark: no root, no native code, one core.
 *
 *   npm run bench                        every benchmark, a table
 *   npm run bench -- --only walk         those whose name contains a word
 *   npm run bench -- -j                  one JSON object a line
 *   npm run bench -- --compare BASE      this tree against a git revision, interleaved, as a ratio
 *
 * A figure is the best of several rounds: on a shared machine noise only ever adds time.
 */
import { parseArgs } from 'node:util';
import { compare } from './compare.js';
import { checksumBenches } from './functions/checksum.js';
import { ipBenches } from './functions/ip.js';
import { lookupBenches } from './functions/lookup.js';
import { mergeBenches } from './functions/merge.js';
import { outboxBenches } from './functions/outbox.js';
import { splitBenches } from './functions/split.js';
import { tableBenches } from './tables.js';
import { walkBenches } from './walk.js';

export interface Bench {
  readonly name: string;
  /** What one operation is. */
  readonly unit: string;
  /** Sets up and returns a round: runs once, returns how many operations it did. */
  prepare(): Promise<() => number | Promise<number>>;
}

export interface Result {
  readonly name: string;
  readonly unit: string;
  readonly nanoseconds: number;
}

const { values } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    rounds: { type: 'string', default: '5' },
    json: { type: 'boolean', short: 'j', default: false },
    list: { type: 'boolean', default: false },
    compare: { type: 'string' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

const benches = [
  ...walkBenches,
  ...tableBenches,
  ...checksumBenches,
  ...ipBenches,
  ...lookupBenches,
  ...outboxBenches,
  ...splitBenches,
  ...mergeBenches,
].filter((bench) => bench.name.includes(values.only));

if (values.help) {
  console.log(
    'usage: bench [--only WORD] [--rounds N] [-j] [--list] [--compare BASE]\nexample: npm run bench -- --only walk',
  );
} else if (values.list) {
  for (const bench of benches) console.log(bench.name);
} else if (values.compare !== undefined) {
  compare(values.compare, values.only, Number(values.rounds));
} else {
  for (const bench of benches) {
    const result = await run(bench, Number(values.rounds));
    if (values.json) console.log(JSON.stringify(result));
    else console.log(line(result));
  }
}

async function run(bench: Bench, rounds: number): Promise<Result> {
  const round = await bench.prepare();
  await round(); // warm-up: compiled by the second or third round
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < rounds; i++) {
    const start = process.hrtime.bigint();
    const operations = await round();
    best = Math.min(best, Number(process.hrtime.bigint() - start) / operations);
  }
  return { name: bench.name, unit: bench.unit, nanoseconds: best };
}

function line({ name, unit, nanoseconds }: Result): string {
  const rate = 1e9 / nanoseconds;
  const text = rate >= 1e6 ? `${(rate / 1e6).toFixed(2)} M/s` : `${(rate / 1e3).toFixed(1)} k/s`;
  return `${name.padEnd(58)} ${nanoseconds.toFixed(1).padStart(10)} ns/${unit.padEnd(12)} ${text.padStart(12)}`;
}
