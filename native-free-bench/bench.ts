/**
 * The native-free benchmark: no root, no native code, one core.
 *
 *   npm run bench                        every benchmark, a table
 *   npm run bench -- --only walk         those whose name contains a word
 *   npm run bench -- -j                  one JSON object a line
 *   npm run bench -- --compare BASE      this tree against a git revision, interleaved, as a ratio
 *   npm run bench -- --stages            what a packet costs by stage of the walk
 *   npm run bench -- --save              all of it, kept in native-free-bench/results/
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
import { describeMachine } from './machine.js';
import type { Cost } from './stages/stages.js';
import { STAGES } from './stages/table.js';
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
  /** Of the best round; of the middle one and the worst. */
  readonly nanoseconds: number;
  readonly median: number;
  readonly worst: number;
}

const USAGE = `usage: bench [--only WORD] [--rounds N] [-j | --list | --compare BASE | --stages | --save [--results FOLDER]]
  --only     benchmarks whose name contains a word
  --rounds   of each benchmark, of which the best counts (default 5)
  -j         one JSON object a line
  --compare  this tree against a git revision
  --stages   what a packet costs by stage of the walk; --seconds N for each load (default 6)
  --save     all of it, kept in FOLDER (default native-free-bench/results)
example: npm run bench -- --only walk`;

/** How long a load's stages are sampled: some 30,000 samples. */
const STAGE_SECONDS = 6;

const { values } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    rounds: { type: 'string', default: '5' },
    json: { type: 'boolean', short: 'j', default: false },
    list: { type: 'boolean', default: false },
    compare: { type: 'string' },
    stages: { type: 'boolean', default: false },
    seconds: { type: 'string', default: `${STAGE_SECONDS}` },
    save: { type: 'boolean', default: false },
    results: { type: 'string' },
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

/** An option that is a number above 0; ends the process for another. */
function positive(name: 'rounds' | 'seconds'): number {
  const value = Number(values[name]);
  if (value > 0) return value;
  console.error(`bench: --${name} ${values[name]}: a number above 0`);
  process.exit(2);
}
const rounds = positive('rounds');
const seconds = positive('seconds');

if (values.help) {
  console.log(USAGE);
} else if (values.list) {
  for (const bench of benches) console.log(bench.name);
} else if (values.compare !== undefined) {
  compare(values.compare, values.only, rounds);
} else if (values.stages) {
  await runStages();
} else if (values.save && values.only !== '' && values.results === undefined) {
  // The stages kept there would be replaced by a part of them.
  console.error('bench: --save keeps whole runs: leave --only out, or name another folder with --results');
  process.exitCode = 2;
} else {
  const machine = describeMachine();
  const results: Result[] = [];
  for (const bench of benches) {
    const other = values.json ? undefined : all.find(({ name }) => name === bench.against);
    const [result, against] = await run(other ? [bench, other] : [bench]);
    results.push(result);
    if (values.json) console.log(JSON.stringify(result));
    else console.log(line(result) + (against ? difference(result, against) : ''));
  }
  if (values.save) {
    const costs = await runStages();
    const { RESULTS, save } = await import('./save.js'); // it draws, which this process had no use for while it measured
    const asked = { machine, rounds, only: values.only };
    const say = values.json ? console.error : console.log;
    for (const name of save(values.results ?? RESULTS, asked, results, costs)) say(`saved ${name}`);
  }
}

/** The stages of each load, a line as soon as it is known. */
async function runStages(): Promise<Cost[]> {
  const { LOADS, measure } = await import('./stages/stages.js');
  const costs: Cost[] = [];
  for (const load of LOADS.filter(({ name }) => name.includes(values.only))) {
    const cost = await measure(load, seconds);
    costs.push(cost);
    if (values.json) {
      console.log(JSON.stringify(cost));
      continue;
    }
    const stages = STAGES.flatMap(({ name }) => {
      const nanoseconds = cost.stages[name] ?? 0;
      return nanoseconds >= 0.05 ? [`${name} ${nanoseconds.toFixed(1)}`] : [];
    });
    console.log(
      `${load.name.padEnd(62)} ${cost.nanoseconds.toFixed(1).padStart(10)} ns/${load.per}: ${stages.join(', ')}`,
    );
  }
  return costs;
}

/** Runs benchmarks round by round in turn. */
async function run(turns: readonly Bench[]): Promise<Result[]> {
  const prepared = [];
  for (const bench of turns) prepared.push(await bench.prepare());
  for (const round of prepared) await round(); // warm-up: compiled by the second or third round
  const times = turns.map((): number[] => []);
  for (let i = 0; i < rounds; i++) {
    for (const [b, round] of prepared.entries()) {
      const start = process.hrtime.bigint();
      const operations = await round();
      times[b].push(Number(process.hrtime.bigint() - start) / operations);
    }
  }
  return turns.map(({ name, unit }, b) => {
    const sorted = times[b].sort((x, y) => x - y);
    const [nanoseconds, median, worst] = [sorted[0], sorted[sorted.length >> 1], sorted[sorted.length - 1]];
    return { name, unit, nanoseconds, median, worst };
  });
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
