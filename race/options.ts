/** The race's command line. */
import { parseArgs } from 'node:util';
import { CONTAINER_SUBJECTS } from './containers.js';
import { SUBJECTS, type SubjectName, WATCHED, type WatchedName } from './subjects.js';

export const MEASURES = ['bulk', 'pps64', 'imix', 'ping', 'rr', 'cpu'] as const;
export type Measure = (typeof MEASURES)[number];

export const USAGE = `usage: race [--subjects LIST] [--measures LIST] [--rounds N] [--seconds N] [--weft-args ARGS]
            [--containers DIR] [--json FILE] [--publish] [--publish-to DIR] [--from FILE]
  --subjects    of ${SUBJECTS.slice(1).join(', ')}
                (default: all that are installed); direct always runs too. Weft in layer 2: weft-vxlan has it at both ends,
                weft-to-kernel on host a and the kernel's vxlan on the others, kernel-to-weft the other way round;
                bulk goes from host a to host b. Only when named: ${WATCHED.join(', ')}: weft-udp while weft capture runs
  --measures    of ${MEASURES.join(', ')}, or all (default)
  --rounds      interleaved rounds (default 7)
  --seconds     length of one bulk run; rr and ping take two thirds of it (default 3)
  --weft-args   more arguments for every weftd, as one word: --weft-args="--offload all,-uso"
  --containers  race between containers instead, whose agents listen at a.sock, b.sock, client-a.sock and client-b.sock in
                DIR; subjects there: ${CONTAINER_SUBJECTS.join(', ')} (the daemons that run in them); no imix
  --json        write the set-up and the results there, one JSON object a line
  --publish     rewrite the README's table and chart, and keep the results in race/results
  --publish-to  write race.md, race.svg and race.json into DIR
  --from        race nothing; publish what an earlier --json wrote`;

export class UsageError extends Error {}

export interface Options {
  readonly subjects: SubjectName[];
  /** weft-udp once more, while somebody looks inside. */
  readonly watched: WatchedName[];
  readonly measures: Set<Measure>;
  readonly rounds: number;
  readonly seconds: number;
  readonly weftArgs: string[];
  /** Folder with the agents' sockets. */
  readonly containers: string | undefined;
  readonly json: string | undefined;
  readonly publish: boolean;
  readonly publishTo: string | undefined;
  /** The results of an earlier race. */
  readonly from: string | undefined;
}

const STRINGS = [
  'subjects',
  'measures',
  'rounds',
  'seconds',
  'weft-args',
  'containers',
  'json',
  'publish-to',
  'from',
] as const;
const FLAGS = ['publish', 'help'] as const;

/** Throws a UsageError, of one line, for what is wrong; ends the process after --help. */
export function readOptions(): Options {
  const parsed = (): {
    values: Partial<Record<(typeof STRINGS)[number] | (typeof FLAGS)[number], string | boolean>>;
  } => {
    const options = Object.fromEntries(STRINGS.map((name) => [name, { type: 'string' }] as const));
    try {
      return parseArgs({
        options: { ...options, publish: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } },
      });
    } catch (error) {
      throw new UsageError(error instanceof Error ? error.message : String(error));
    }
  };
  const { values } = parsed();
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    process.exit(0);
  }
  const text = (name: (typeof STRINGS)[number], otherwise: string): string => (values[name] as string) ?? otherwise;
  const list = <T extends string, U extends T>(
    name: 'subjects' | 'measures',
    known: readonly T[],
    otherwise: readonly U[],
  ): T[] => {
    const words = text(name, 'all').split(',').filter(Boolean);
    if (words.includes('all')) return [...otherwise];
    const wrong = words.find((word) => !known.includes(word as T));
    if (wrong) throw new UsageError(`--${name} ${wrong}: choose from ${known.join(', ')}`);
    return words as T[];
  };
  const number = (name: 'rounds' | 'seconds', otherwise: number): number => {
    const value = Number(text(name, `${otherwise}`));
    if (!(value >= 1 && value <= 1000)) throw new UsageError(`--${name} ${values[name]}: a number from 1 to 1000`);
    return value;
  };
  const word = (name: (typeof STRINGS)[number]): string | undefined => {
    if (values[name] === '') throw new UsageError(`--${name} needs a value`);
    return values[name] as string | undefined;
  };
  const containers = word('containers');
  const weftArgs = text('weft-args', '').split(/\s+/).filter(Boolean);
  if (containers !== undefined && weftArgs.length > 0) {
    throw new UsageError(
      '--weft-args: between containers Weft is the daemons that run in them, with the options they have',
    );
  }
  if (containers !== undefined && values.publish) {
    throw new UsageError('--publish: the README shows a race between namespaces; use --publish-to between containers');
  }
  const possible = containers === undefined ? SUBJECTS : CONTAINER_SUBJECTS;
  const known: readonly (SubjectName | WatchedName)[] = containers === undefined ? [...possible, ...WATCHED] : possible;
  const named = list('subjects', known, possible);
  const watched = WATCHED.filter((name) => named.includes(name));
  const subjects = named.filter((name): name is SubjectName => !WATCHED.includes(name as WatchedName));
  return {
    // direct comes first: what cannot be reached without an overlay cannot be reached with one.
    subjects: [...new Set<SubjectName>(['direct', ...subjects, ...(watched.length > 0 ? ['weft-udp' as const] : [])])],
    watched,
    measures: new Set(list('measures', MEASURES, MEASURES)),
    rounds: Math.round(number('rounds', 7)),
    seconds: number('seconds', 3),
    weftArgs,
    containers,
    json: word('json'),
    publish: values.publish === true,
    publishTo: word('publish-to'),
    from: word('from'),
  };
}
