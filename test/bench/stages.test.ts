/** What a packet costs by stage: the table names what there is, the profile says which function ran even where it was inlined. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Result } from '../../native-free-bench/bench.js';
import type { Machine } from '../../native-free-bench/machine.js';
import { functionAt, functionsOf } from '../../native-free-bench/stages/functions.js';
import { modules } from '../../native-free-bench/stages/lines.js';
import type { Sampled } from '../../native-free-bench/stages/profile.js';
import { attribute, type Cost, LOADS, measure } from '../../native-free-bench/stages/stages.js';
import { FUNCTIONS, STAGES, stageOf } from '../../native-free-bench/stages/table.js';
import { loadKernels } from '../../src/io/kernels.js';
import { EngineMemory } from '../../src/io/memory.js';
import { checkXml } from '../lib/xml.js';

const ROOT = fileURLToPath(new URL('../../..', import.meta.url));
const MOST_OTHER = 0.05;

t.setTimeout(0);

const loadOf = (name: string): (typeof LOADS)[number] => {
  const found = LOADS.find((one) => one.name === name);
  if (!found) throw new Error(`no load ${name}`);
  return found;
};

const sum = (values: readonly number[]): number => values.reduce((all, one) => all + one, 0);

t.test('the table', async (t) => {
  const kernels = Object.keys(loadKernels(EngineMemory.create({ workers: 1, peers: 16, routeNodes: 16, networks: 1 })));
  for (const [module, stages] of Object.entries(FUNCTIONS)) {
    const known = new Set(functionsOf(join(ROOT, `${module}.ts`)).map(({ name }) => name));
    const named = Object.values(stages).flat();
    t.equal(new Set(named).size, named.length, `${module}: each function in one stage`);
    for (const name of named) {
      t.ok(known.has(name), `${module} ${name} is in the source`);
      if (module.startsWith('src/kernels/')) t.ok(kernels.includes(name), `${name} is a kernel`);
    }
  }
  t.equal(stageOf('src/packet/ip', 'decrementTtl'), 'TTL');
  t.equal(stageOf('src/packet/ip', 'nothing'), 'other');
  for (const { about, color } of STAGES) t.ok(about && /^#[0-9a-f]{6}$/.test(color));
});

t.test('every line has a number of its own', async (t) => {
  const all = modules();
  let end = 0;
  for (const { name, before, lines } of all) {
    t.ok(before >= end, name);
    end = before + lines;
  }
  const ip = all.find(({ name }) => name === 'src/packet/ip');
  if (!ip) throw new Error('src/packet/ip is not built');
  const source = readFileSync(ip.file, 'utf8').split('\n');
  const functions = functionsOf(ip.file);
  const line = source.findIndex((text) => text.startsWith('export function decrementTtl')) + 1;
  t.equal(functionAt(functions, line), 'decrementTtl');
  t.not(functionAt(functions, line - 2), 'decrementTtl');

  // A made-up profile: 6 of 10 samples in decrementTtl, wherever it was inlined; the rest in a kernel and in nothing known.
  const sampled: Sampled = {
    name: 'x',
    unit: 'packet',
    plain: [30, 20, 25],
    profiled: [50, 50, 50],
    samples: 10,
    lines: [
      { line: ip.before + line, within: '#forward', samples: 4 },
      { line: ip.before + line + 1, within: 'decrementTtl', samples: 2 },
      { line: 12, within: 'now', samples: 1 },
    ],
    kernels: { split: 2 },
    others: { '(program)': 1 },
  };
  const load = { name: 'x', group: '', label: '', per: 'half', parts: 2 };
  const cost = attribute(load, sampled);
  t.match(cost, { nanoseconds: 10, median: 12.5, profiled: 2, samples: 10 });
  t.same(cost.stages, { TTL: 6, split: 2, other: 2 });
  t.same(cost.others, { 'node now': 0.1, '(program)': 0.1 });
});

t.test('each load is a benchmark', async (t) => {
  const bench = join(ROOT, 'dist/native-free-bench/bench.js');
  const names = spawnSync(process.execPath, [bench, '--list'], { encoding: 'utf8' }).stdout.split('\n');
  for (const { name } of LOADS) t.ok(names.includes(name), name);
});

t.test('the real walk', async (t) => {
  const expected: Record<string, readonly string[]> = {
    'walk: outbound 64 B to 1 peer': ['in-memory device', 'pull', 'check', 'look up', 'TTL', 'join', 'push'],
    'switch: inbound 64 B, 64 to a message': ['decapsulate', 'check', 'merge', 'push'],
  };
  const names = process.env.WEFT_TEST_FULL === '1' ? LOADS.map(({ name }) => name) : Object.keys(expected);
  for (const name of names) {
    const stages = expected[name] ?? [];
    let cost = await measure(loadOf(name), 0.4);
    // A machine that had others to serve: longer, so that the rare stages are seen.
    if (cost.samples < 1000) cost = await measure(loadOf(name), 3);
    t.ok(cost.samples > 200, `${name}: ${cost.samples} samples`);
    const other = (cost.stages.other ?? 0) / cost.nanoseconds;
    t.ok(other < MOST_OTHER, `${name}: ${(other * 100).toFixed(1)} % in no stage: ${JSON.stringify(cost.others)}`);
    t.ok(Math.abs(sum(Object.values(cost.stages)) / cost.nanoseconds - 1) < 0.01, 'the stages are the whole');
    for (const stage of stages) t.ok((cost.stages[stage as keyof Cost['stages']] ?? 0) > 0, `${name}: ${stage}`);
  }
});

t.test('npm run bench -- --save', async (t) => {
  const bench = join(ROOT, 'dist/native-free-bench/bench.js');
  const dir = join(t.testdir(), 'kept');
  const name = 'walk: outbound TCP super-packet, 44 x 1420 B';
  const run = (...args: string[]): { status: number | null; stderr: string; stdout: string } =>
    spawnSync(process.execPath, [bench, '--save', '--only', name, '--rounds', '2', '--seconds', '0.3', ...args], {
      encoding: 'utf8',
      cwd: ROOT,
    });
  const partly = run();
  t.equal(partly.status, 2);
  t.match(partly.stderr, /^bench: --save keeps whole runs: .+\n$/);

  const done = run('--results', dir);
  t.equal(done.status, 0, done.stderr);
  const files = readdirSync(dir).sort();
  t.equal(files.length, 3, files.join(' '));
  t.match(files[0], /^\d{4}-\d\d-\d\d(-[0-9a-f]{10})?\.json$/);
  t.same(files.slice(1), ['stages.json', 'stages.svg']);
  const read = (file: string): string => readFileSync(join(dir, file), 'utf8');
  const kept = JSON.parse(read(files[0])) as { machine: Machine; only: string; results: Result[] };
  t.match(kept, { only: name, rounds: 2, machine: { node: process.version, processors: { count: Number } } });
  t.equal(kept.results.length, 1);
  const [{ nanoseconds, median, worst }] = kept.results;
  t.ok(nanoseconds > 0 && nanoseconds <= median && median <= worst);
  t.equal(kept.machine.commit === null, !existsSync(join(ROOT, '.git')));
  if (kept.machine.commit) t.ok(files[0].includes(kept.machine.commit.hash));

  const { costs } = JSON.parse(read('stages.json')) as { costs: Cost[] };
  t.equal(costs.length, 1);
  const svg = read('stages.svg');
  checkXml(t, svg);
  t.ok(svg.length < 60_000);
  const scales = STAGES.flatMap(({ name: stage, color }) => {
    const value = costs[0].stages[stage] ?? 0;
    const width = new RegExp(`<path d="M[\\d.]+ [\\d.]+l([\\d.]+) 0l0 -?[\\d.]+l-[\\d.]+ 0Z" fill="${color}"`).exec(
      svg,
    );
    return value * 20 > costs[0].nanoseconds ? [Number(width?.[1]) / value] : [];
  });
  t.ok(scales.length > 1);
  for (const scale of scales) t.ok(Math.abs(scale / scales[0] - 1) < 0.05, 'as long as it costs');
});
