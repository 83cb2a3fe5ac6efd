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
import { macBenches } from './functions/macs.js';
import { mergeBenches } from './functions/merge.js';
import { outboxBenches } from './functions/outbox.js';
import { splitBenches } from './functions/split.js';
import { switchBenches } from './switch.js';
import { tableBenches } from './tables.js';
import { walkBenches } from './walk.js';

export interface Bench {
  readonly name: string;
  /** What one operation is. */
  readonly unit: string;
  /** Name of another benchmark: the difference to it is what this one is about, so their rounds alternate. */
  readonly against?: string | undefined;
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

const all = [
  ...walkBenches,
  ...switchBenches,
  ...tableBenches,
  ...checksumBenches,
  ...ipBenches,
  ...lookupBenches,
  ...macBenches,
  ...outboxBenches,
  ...splitBenches,
  ...mergeBenches,
];
const benches = all.filter((bench) => bench.name.includes(values.only));

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
    const other = values.json ? undefined : all.find(({ name }) => name === bench.against);
    const [result, against] = await run(other ? [bench, other] : [bench], Number(values.rounds));
    if (values.json) console.log(JSON.stringify(result));
    else console.log(line(result) + (against ? difference(result, against) : ''));
  }
}

/** Runs benchmarks round by round in turn. */
async function run(turns: readonly Bench[], rounds: number): Promise<Result[]> {
  const prepared = [];
  for (const bench of turns) prepared.push(await bench.prepare());
  for (const round of prepared) await round(); // warm-up: compiled by the second or third round
  const best = turns.map(() => Number.POSITIVE_INFINITY);
  for (let i = 0; i < rounds; i++) {
    for (const [b, round] of prepared.entries()) {
      const start = process.hrtime.bigint();
      const operations = await round();
      best[b] = Math.min(best[b], Number(process.hrtime.bigint() - start) / operations);
    }
  }
  return turns.map(({ name, unit }, b) => ({ name, unit, nanoseconds: best[b] }));
}

function line({ name, unit, nanoseconds }: Result): string {
  const rate = 1e9 / nanoseconds;
  const text = rate >= 1e6 ? `${(rate / 1e6).toFixed(2)} M/s` : `${(rate / 1e3).toFixed(1)} k/s`;
  return `${name.padEnd(62)} ${nanoseconds.toFixed(1).padStart(10)} ns/${unit.padEnd(12)} ${text.padStart(12)}`;
}

function difference(result: Result, base: Result): string {
  const more = result.nanoseconds - base.nanoseconds;
  return `   ${more < 0 ? '-' : '+'}${Math.abs(more).toFixed(1)} ns, ${(base.nanoseconds / result.nanoseconds).toFixed(3)} x the rate`;
}
