/** The text around a race and its table, in Markdown. */

import { ROWS, type Row, type RowInfo } from '../report.js';
import type { Race, Setup } from './publish.js';

export const KERNEL = 'kernel-vxlan';
const DIRECT = 'direct';
const WIDTH = 128;
/** Subjects of one table. */
const MOST_COLUMNS = 6;

type Rows = Race['rows'];

/** `chart`: where the picture is, seen from the text. */
export function raceText({ setup, rows }: Race, chart: string): string {
  const parts = [
    about(setup),
    `    ${command(setup)}`,
    wholeness(setup, rows),
    `![The race as bars: ${subjectsOf(rows).join(', ')}](${chart})`,
    wrap(
      `Medians of the rounds; in brackets the ratio to the kernel's VXLAN, which is the median of the ratios of each round. In bold: ` +
        `the best overlay. \`${DIRECT}\` is no overlay at all.`,
    ),
    tables(rows),
    notes(rows),
  ];
  return `${parts.filter(Boolean).join('\n\n')}\n`;
}

/** Direct, the kernel, Weft, others; among those in the order in which they were asked for. */
export function subjectsOf(rows: Rows): string[] {
  const rank = (name: string): number => (name === DIRECT ? 0 : name === KERNEL ? 1 : isWeft(name) ? 2 : 3);
  return [...new Set(rows.map(({ subject }) => subject))].sort((a, b) => rank(a) - rank(b));
}

export const isWeft = (subject: string): boolean => subject.includes('weft');

export const unitOf = ({ unit }: RowInfo): string => unit.replace(/ p\d+$/, '').replace(/^us\b/, 'µs');

const COUNTS = ['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];
const countOf = (n: number, what: string): string => `${COUNTS[n] ?? n} ${what}${n === 1 ? '' : 's'}`;
const capital = (text: string): string => text[0].toUpperCase() + text.slice(1);

/** Machine, programs, time, load, topology. */
function about(setup: Setup): string {
  const { processors, versions, options, load, load_after_each_round: after } = setup;
  const loads = after.map((one) => one.toFixed(1));
  const low = loads.length > 0 ? Math.min(...after).toFixed(1) : '';
  const high = loads.length > 0 ? Math.max(...after).toFixed(1) : '';
  const hosts =
    setup.where === 'containers'
      ? 'Two hosts and a client behind each, in containers, over a bridge'
      : 'Two hosts and a client behind each, in network namespaces, over one veth with an MTU of 1500';
  return wrap(
    `${processors.model ?? 'Unknown processor'}, ${countOf(processors.count, 'processor')}, Linux ${versions.kernel ?? 'unknown'}; ` +
      `${setup.date.slice(0, 16).replace('T', ' ')} UTC; load average ${load[0]?.toFixed(1) ?? 'unknown'} before` +
      `${loads.length > 0 ? `, ${low === high ? low : `${low} to ${high}`} after the rounds (the race's own)` : ''}. ` +
      `${hosts}; ${countOf(options.rounds, 'interleaved round')}` +
      `${options.seconds === undefined ? '' : ` of ${countOf(options.seconds, 'second')} a TCP run`}. ${programs(versions)}.`,
  );
}

function programs(versions: Setup['versions']): string {
  const { kernel: _, weft, ...others } = versions;
  const named = Object.entries({ ...(weft === undefined ? {} : { Weft: weft }), ...others }).flatMap(
    ([name, version]) => (version ? [`${name} ${withoutName(version, name)}`] : []),
  );
  return capital(named.join('; '));
}

/** "iperf 3.12 (cJSON 1.7.15)" as "3.12": from the first figure on that is no part of the name, to the first bracket or comma. */
function withoutName(version: string, name: string): string {
  if (name === 'Weft') return version;
  return /\d[^\s,(]*/.exec(version.replaceAll(name, ''))?.[0] ?? version;
}

function command({ options, where }: Setup): string {
  if (where === 'containers') return 'docker compose --profile bench run --rm bench';
  const subjects = options.subjects.filter((name) => name !== DIRECT);
  const weftArgs = options.weftArgs?.length ? ` --weft-args="${options.weftArgs.join(' ')}"` : '';
  return (
    `sudo npm run race -- --subjects ${subjects.join(',')} --measures ${options.measures.join(',')} --rounds ${options.rounds}` +
    `${options.seconds === undefined ? '' : ` --seconds ${options.seconds}`}${weftArgs}`
  );
}

/** What a reader might take for granted and would be wrong about. Empty: nothing is missing. */
function wholeness(setup: Setup, rows: Rows): string {
  const { options, left_out: leftOut } = setup;
  const measures = [...new Set(ROWS.map(({ by }) => by))].filter((by) => !options.measures.includes(by));
  const empty = ROWS.filter(
    ({ by, measure }) => options.measures.includes(by) && !rows.some((row) => row.measure === measure),
  );
  const done = Math.max(...rows.map(({ rounds }) => rounds.length));
  const said = [
    measures.length > 0 ? `not measured: ${measures.join(', ')}` : '',
    empty.length > 0 ? `without a figure: ${empty.map(({ measure }) => measure).join(', ')}` : '',
    done < options.rounds ? `ended after ${done} of ${options.rounds} rounds` : '',
    leftOut.length > 0 ? `left out: ${leftOut.join(', ')}` : '',
    ...failures(rows),
  ].filter(Boolean);
  return said.length > 0 ? wrap(`**Not the whole race:** ${said.join('; ')}.`) : '';
}

function failures(rows: Rows): string[] {
  return rows.flatMap(({ subject, measure, rounds }) => {
    const failed = rounds.filter((figure) => figure === null).length;
    return failed > 0
      ? [`${measure} of ${subject} failed in ${COUNTS[failed] ?? failed} of ${countOf(rounds.length, 'round')}`]
      : [];
  });
}

interface Mark {
  readonly sign: string;
  readonly text: string;
  readonly when: (row: Row) => boolean;
}

const MARKS: readonly Mark[] = [
  {
    sign: '†',
    text: 'generator-limited: within a tenth of `direct`, so the subject may be better than this',
    when: (row) => row.generator_limited,
  },
  {
    sign: '‡',
    text: 'sender-bound: nothing was lost, but no more could be sent',
    when: (row) => row.sender_bound,
  },
  {
    sign: '§',
    text: 'some rounds failed, and the figure is of the others',
    when: ({ rounds }) => rounds.includes(null) && rounds.some((figure) => figure !== null),
  },
];

/** One table, or one with Weft and one with the others where a page is too narrow for all. Best is the best of all. */
function tables(rows: Rows): string {
  const subjects = subjectsOf(rows);
  if (subjects.length <= MOST_COLUMNS) return table(rows, subjects);
  const others = subjects.filter((subject) => subject !== DIRECT && !isWeft(subject));
  const ours = subjects.filter((subject) => subject === KERNEL || !others.includes(subject));
  return `${table(rows, ours)}\n\nThe others, in the same rounds:\n\n${table(rows, others)}`;
}

function table(rows: Rows, subjects: readonly string[]): string {
  const lines = [['', '', ...subjects.map((subject) => `\`${subject}\``)]];
  for (const info of ROWS) {
    const ofMeasure = rows.filter(({ measure }) => measure === info.measure);
    if (ofMeasure.length === 0) continue;
    const best = bestOverlay(ofMeasure, info);
    const cells = subjects.map((subject) =>
      cell(
        ofMeasure.find((row) => row.subject === subject),
        info,
        best,
      ),
    );
    lines.push([info.title, unitOf(info), ...cells]);
  }
  return aligned(lines);
}

function bestOverlay(rows: Rows, { better }: RowInfo): number | undefined {
  const medians = rows.flatMap(({ subject, median }) => (subject === DIRECT || median === null ? [] : [median]));
  if (medians.length < 2) return undefined;
  return better === 'higher' ? Math.max(...medians) : Math.min(...medians);
}

function cell(row: Row | undefined, { digits }: RowInfo, best: number | undefined): string {
  if (!row) return '–';
  if (row.median === null) return 'failed';
  const figure = row.median.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const shown = row.subject !== DIRECT && row.median === best ? `**${figure}**` : figure;
  const ratio = row.ratio_to_kernel_vxlan;
  const bracket = ratio === null || row.subject === KERNEL ? '' : ` (${ratio.toFixed(2)})`;
  const marks = MARKS.filter(({ when }) => when(row)).map(({ sign }) => sign);
  return `${shown}${bracket}${marks.length > 0 ? ` ${marks.join('')}` : ''}`;
}

/** Words to the left, figures to the right; the source as easy to read as the page. */
function aligned(lines: readonly (readonly string[])[]): string {
  const widths = lines[0].map((_, column) => Math.max(3, ...lines.map((line) => line[column].length)));
  const row = (cells: readonly string[]): string =>
    `| ${cells.map((one, i) => (i < 2 ? one.padEnd(widths[i]) : one.padStart(widths[i]))).join(' | ')} |`;
  const rule = `|${widths.map((width, i) => (i < 2 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join('|')}|`;
  return [row(lines[0]), rule, ...lines.slice(1).map(row)].join('\n');
}

function notes(rows: Rows): string {
  return MARKS.filter(({ when }) => rows.some(when))
    .map(({ sign, text }) => `${sign} ${text}.`)
    .join('\\\n');
}

/** Breaks a paragraph into lines; a reader of the source has to read it too. */
function wrap(text: string): string {
  const lines = [''];
  for (const word of text.split(' ')) {
    const line = lines[lines.length - 1];
    if (line !== '' && line.length + 1 + word.length > WIDTH) lines.push(word);
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
  }
  return lines.join('\n');
}
