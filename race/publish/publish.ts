/**
 * What a race found, for readers: a Markdown table, a chart, and the figures as JSON.
 *
 * A published race says what a reader needs to judge it and to repeat it; of the machine it says what it is, not where: no
 * path, no name of host or user. The text is made from the JSON alone, so an earlier race can be published again, and
 * publishing twice changes nothing.
 */
import { accessSync, constants, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import * as v from 'valibot';
import { ROWS } from '../report.js';
import { raceChart } from './race-chart.js';
import { raceText } from './table.js';
import { ROOT } from './tree.js';

const BEGIN = '<!-- race: begin -->';
const END = '<!-- race: end -->';
const WARNING = '<!-- Made by `npm run race -- --publish` (race/publish/): what is written here by hand is lost. -->';
const README = 'README.md';
const CHART = 'docs/race.svg';

const OPTIONS = v.looseObject({
  subjects: v.array(v.string()),
  measures: v.array(v.string()),
  rounds: v.number(),
  seconds: v.optional(v.number()),
  weftArgs: v.optional(v.array(v.string())),
});

const SETUP = v.looseObject({
  date: v.pipe(v.string(), v.isoTimestamp()),
  options: OPTIONS,
  versions: v.record(v.string(), v.optional(v.string())),
  processors: v.object({ count: v.number(), model: v.optional(v.string()) }),
  load: v.array(v.number()),
  load_after_each_round: v.optional(v.array(v.number()), []),
  left_out: v.optional(v.array(v.string()), []),
  where: v.optional(v.string()),
});

const FIGURE = v.nullable(v.number());

const ROW = v.object({
  subject: v.string(),
  measure: v.picklist(ROWS.map(({ measure }) => measure)),
  unit: v.string(),
  rounds: v.array(FIGURE),
  median: FIGURE,
  ratio_to_kernel_vxlan: FIGURE,
  ratio_to_direct: FIGURE,
  generator_limited: v.boolean(),
  sender_bound: v.boolean(),
});

export type Setup = v.InferOutput<typeof SETUP>;

/** Its rows are those of report.ts. */
export interface Race {
  readonly setup: Setup;
  readonly rows: readonly v.InferOutput<typeof ROW>[];
}

/** A race from the text that Results.json makes; `name` is for errors, which are Errors of one line. */
export function parseRace(text: string, name = 'the race'): Race {
  const lines = text.trim().split('\n');
  const parse = <T>(schema: v.GenericSchema<unknown, T>, line: number): T => {
    try {
      return v.parse(schema, JSON.parse(lines[line]));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new Error(`${name}, line ${line + 1}, is not what npm run race -- --json writes: ${why}`);
    }
  };
  const { setup } = parse(v.object({ setup: SETUP }), 0);
  const rows = lines.slice(1).map((_, i) => parse(ROW, i + 1));
  if (!rows.some(({ median }) => median !== null)) throw new Error(`${name} has no figures: nothing to publish`);
  return { setup: v.parse(SETUP, withoutPaths(setup)), rows };
}

/** `parseRace` of a file. */
export function readRace(file: string): Race {
  return parseRace(readFileSync(file, 'utf8'), file);
}

/** Throws an Error of one line if README.md in `root` lacks the markers; to be called before a run begins. */
export function checkReadme(root = ROOT): void {
  splitReadme(root);
}

/** Makes the folder, or throws an Error of one line if it cannot be written to; to be called before a run begins. */
export function checkFolder(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true });
    accessSync(directory, constants.W_OK);
  } catch (error) {
    throw new Error(`--publish-to ${directory}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Rewrites README.md, docs/race.svg, race/results/<date>.json below `root`; returns the files written, relative to it. */
export function publish(race: Race, root = ROOT): string[] {
  const [before, after] = splitReadme(root);
  const block = `${BEGIN}\n${WARNING}\n\n${raceText(race, CHART)}\n${END}`;
  return writeAll(root, {
    [README]: `${before}${block}${after}`,
    [CHART]: raceChart(race),
    [`race/results/${race.setup.date.replace(/\.\d+/, '').replaceAll(':', '')}.json`]: jsonOf(race),
  });
}

/** Writes race.md, race.svg and race.json into `directory`, which is made; returns the files written. */
export function publishTo(race: Race, directory: string): string[] {
  return writeAll(directory, {
    'race.md': `# Race of ${race.setup.date.slice(0, 10)}\n\n${raceText(race, 'race.svg')}`,
    'race.svg': raceChart(race),
    'race.json': jsonOf(race),
  });
}

/** What stands before the markers and behind them. */
function splitReadme(root: string): [string, string] {
  const text = readFileSync(join(root, README), 'utf8');
  const [before, between, ...more] = text.split(BEGIN);
  const [, after, ...evenMore] = between?.split(END) ?? [];
  if (after === undefined || more.length > 0 || evenMore.length > 0) {
    throw new Error(`${README} has no place for the race: it needs one line "${BEGIN}" and below it one "${END}"`);
  }
  return [before, after];
}

/** One JSON object a line, as Results.json has it. */
const jsonOf = ({ setup, rows }: Race): string =>
  `${[{ setup }, ...rows].map((line) => JSON.stringify(line)).join('\n')}\n`;

function writeAll(root: string, files: Record<string, string>): string[] {
  return Object.entries(files).map(([name, text]) => {
    const file = join(root, name);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    return relative(root, file);
  });
}

/** The options that say where something was written or read. */
const PATHS = new Set(['json', 'publish', 'publishTo', 'publish-to', 'from', 'containers']);

/** A copy in which no option and no text names a path of this machine; of a path in a text, the last part stays. */
function withoutPaths(value: unknown): unknown {
  if (typeof value === 'string') return value.replace(/(^|[\s"'=:,(])(?:\/[\w.@+-]+)*\/([\w.@+-]+)/g, '$1$2');
  if (Array.isArray(value)) return value.map(withoutPaths);
  if (typeof value !== 'object' || value === null) return value;
  const kept = Object.entries(value).filter(([name, one]) => !(PATHS.has(name) && typeof one === 'string'));
  return Object.fromEntries(kept.map(([name, one]) => [name, withoutPaths(one)]));
}
