/**
 * What a packet costs by stage of the walk: each load in a process of its own (profile.ts), its samples given to stages by
 * line, function and table (table.ts). The time is that of the rounds without the profiler; the profile only divides it.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { type FunctionRange, functionAt, functionsOf } from './functions.js';
import { type Module, modules } from './lines.js';
import type { Sampled } from './profile.js';
import { type StageName, stageOf, stageOfKernel } from './table.js';

export interface Load {
  /** Name of the benchmark. */
  readonly name: string;
  readonly group: string;
  readonly label: string;
  /** What a figure is for: the benchmark's operation, or a part of it of which it has `parts`. */
  readonly per: string;
  readonly parts: number;
}

const OUTBOUND = 'Layer 3, outbound';
const INBOUND = 'Layer 3, inbound';
const SWITCH = 'Layer 2';

const load = (group: string, name: string, label: string, per: string, parts = 1): Load => ({
  group,
  name,
  label,
  per,
  parts,
});

export const LOADS: readonly Load[] = [
  load(OUTBOUND, 'walk: outbound 64 B to 1 peer', '64 B to one peer', 'packet'),
  load(OUTBOUND, 'walk: outbound 64 B, random among 100000 routes, 64 peers', '64 B, one of 100,000 routes', 'packet'),
  load(OUTBOUND, 'walk: outbound TCP super-packet, 44 x 1420 B', 'TCP super-packet, per segment', 'segment', 44),
  load(INBOUND, 'walk: inbound 64 B, 64 to a message', '64 B, 64 to a message', 'packet'),
  load(INBOUND, 'walk: inbound 64 B, 1 to a message', '64 B, one to a message', 'packet'),
  load(INBOUND, 'walk: inbound TCP run, 44 x 1420 B', 'TCP run, per segment', 'segment', 44),
  load(SWITCH, 'switch: outbound 64 B, one MAC', 'outbound 64 B, one MAC', 'frame'),
  load(
    SWITCH,
    'switch: outbound 64 B, random among 100000 MACs, 64 peers',
    'outbound 64 B, one of 100,000 MACs',
    'frame',
  ),
  load(SWITCH, 'switch: outbound 64 B flooded to 100 peers', 'flooded to 100 peers, per copy', 'copy'),
  load(SWITCH, 'switch: inbound 64 B, 64 to a message', 'inbound 64 B, 64 to a message', 'frame'),
];

export interface Cost extends Load {
  /** ns for one of `per`, without the profiler: the best round, and the middle one. */
  readonly nanoseconds: number;
  readonly median: number;
  /** How much longer the profiler makes the median round: above 1. */
  readonly profiled: number;
  readonly samples: number;
  /** ns of `nanoseconds`; stages without any are left out. */
  readonly stages: Readonly<Partial<Record<StageName, number>>>;
  /** What "other" consists of, in shares of all. */
  readonly others: Readonly<Record<string, number>>;
}

const PROFILE = fileURLToPath(new URL('./profile.js', import.meta.url));

/** Runs one load for about `seconds` after its warm-up. */
export async function measure(one: Load, seconds: number): Promise<Cost> {
  // All positions from the first compilation on, lest a function be compiled before they are wanted.
  const args = ['--no-enable-lazy-source-positions', PROFILE, one.name, `${seconds}`];
  const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 1 << 26 });
  return attribute(one, JSON.parse(stdout) as Sampled);
}

/** Gives the samples of one load to stages: what has no line, or no stage, to "other". */
export function attribute(one: Load, sampled: Sampled): Cost {
  const counts = new Map<StageName, number>();
  const others = new Map<string, number>();
  const give = (stage: StageName, what: string, samples: number): void => {
    counts.set(stage, (counts.get(stage) ?? 0) + samples);
    if (stage === 'other') others.set(what, (others.get(what) ?? 0) + samples);
  };
  const finder = new Finder();
  for (const { line, within, samples } of sampled.lines) {
    const found = finder.find(line);
    if (found) give(stageOf(found.module, found.name), `${found.module} ${found.name}`, samples);
    else give('other', `node ${within}`, samples);
  }
  for (const [name, samples] of Object.entries(sampled.kernels)) give(stageOfKernel(name), `kernel ${name}`, samples);
  for (const [name, samples] of Object.entries(sampled.others)) give('other', name, samples);

  const all = [...counts.values()].reduce((sum, samples) => sum + samples, 0);
  const best = Math.min(...sampled.plain) / one.parts;
  const median = middle(sampled.plain) / one.parts;
  return {
    ...one,
    nanoseconds: round(best),
    median: round(median),
    profiled: round(middle(sampled.profiled) / one.parts / median),
    samples: all,
    stages: Object.fromEntries([...counts].map(([stage, samples]) => [stage, round((samples / all) * best)])),
    others: Object.fromEntries(
      [...others].sort(([, a], [, b]) => b - a).map(([what, samples]) => [what, round(samples / all)]),
    ),
  };
}

/** From the number of a line to its function. */
class Finder {
  readonly #modules: readonly Module[] = modules();
  readonly #functions = new Map<Module, FunctionRange[]>();

  find(line: number): { module: string; name: string } | undefined {
    const module = this.#modules.find(({ before, lines }) => line > before && line <= before + lines);
    if (!module) return undefined;
    const functions = this.#functions.get(module) ?? functionsOf(module.file);
    this.#functions.set(module, functions);
    return { module: module.name, name: functionAt(functions, line - module.before) ?? '(top)' };
  }
}

const middle = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1];

const round = (value: number): number => Number(value.toPrecision(4));
