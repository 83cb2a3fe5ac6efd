/** Keeps what a run found, with what is needed to compare it with another. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import { ROOT } from '../race/publish/tree.js';
import type { Result } from './bench.js';
import type { Machine } from './machine.js';
import { stagesChart } from './stages/chart.js';
import type { Cost } from './stages/stages.js';

export const RESULTS = join(ROOT, 'native-free-bench/results');

/** How a run was asked for; `only`: "" if all benchmarks ran. */
export interface Run {
  readonly machine: Machine;
  readonly rounds: number;
  readonly only: string;
}

/** Writes <date>-<commit>.json, and stages.json and stages.svg unless there are no costs; returns the files' names. */
export function save(folder: string, run: Run, results: readonly Result[], costs: readonly Cost[]): string[] {
  const { machine } = run;
  mkdirSync(folder, { recursive: true });
  const write = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text);
    return name;
  };
  const commit = machine.commit ? `-${machine.commit.hash}` : '';
  const head = { ...run, load_after: loadavg()[0] };
  const written = [write(`${machine.date.slice(0, 10)}${commit}.json`, lines(head, 'results', results))];
  if (costs.length === 0) return written;
  const on = `${machine.processors.model}, Node ${machine.node.slice(1)}, ${machine.date.slice(0, 10)}`;
  const label = machine.commit
    ? `${on}, commit ${machine.commit.hash}${machine.commit.dirty ? ' with changes' : ''}`
    : on;
  return [
    ...written,
    write('stages.json', lines(head, 'costs', costs)),
    write('stages.svg', stagesChart(costs, label)),
  ];
}

/** JSON with a line for each entry of the list, so that two files can be compared by eye. */
function lines(head: object, name: string, list: readonly object[]): string {
  const start = JSON.stringify(head, null, 2).replace(/\n\}$/, '');
  return `${start},\n  "${name}": [\n${list.map((one) => `    ${JSON.stringify(one)}`).join(',\n')}\n  ]\n}\n`;
}
