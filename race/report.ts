/** What a race found: collected by row, subject and round; written as JSON lines and as a table. */
import { median } from './measures.js';

export interface RowInfo {
  /** The measure, or the measure and a suffix for its further rows. */
  readonly measure: string;
  /** The measure of `--measures` that brings it. */
  readonly by: string;
  /** For readers of a published table. */
  readonly title: string;
  readonly unit: string;
  readonly better: 'higher' | 'lower';
  readonly digits: number;
}

export const ROWS: readonly RowInfo[] = [
  { measure: 'bulk', by: 'bulk', title: 'one TCP flow, cubic', unit: 'Gbit/s', better: 'higher', digits: 2 },
  {
    measure: 'bulk-both',
    by: 'bulk',
    title: 'one TCP flow each way, sum',
    unit: 'Gbit/s',
    better: 'higher',
    digits: 2,
  },
  { measure: 'bulk-8', by: 'bulk', title: 'eight TCP flows, sum', unit: 'Gbit/s', better: 'higher', digits: 2 },
  { measure: 'bulk-bbr', by: 'bulk', title: 'one TCP flow, BBR', unit: 'Gbit/s', better: 'higher', digits: 2 },
  {
    measure: 'pps64',
    by: 'pps64',
    title: '64-byte packets, ≤ 0.1 % lost',
    unit: 'packets/s',
    better: 'higher',
    digits: 0,
  },
  {
    measure: 'imix',
    by: 'imix',
    title: 'IMIX to 4 peers, ≤ 0.1 % lost',
    unit: 'packets/s',
    better: 'higher',
    digits: 0,
  },
  { measure: 'ping', by: 'ping', title: 'ping every 2 ms, median', unit: 'us', better: 'lower', digits: 1 },
  { measure: 'rr', by: 'rr', title: 'TCP request/response, median', unit: 'us p50', better: 'lower', digits: 1 },
  {
    measure: 'rr-p99',
    by: 'rr',
    title: 'TCP request/response, p99',
    unit: 'us p99',
    better: 'lower',
    digits: 1,
  },
  { measure: 'cpu', by: 'cpu', title: 'processor time, whole machine', unit: 'ms/Gbit', better: 'lower', digits: 1 },
];

export interface Row {
  readonly subject: string;
  readonly measure: string;
  readonly unit: string;
  /** One figure a round; null where the measurement failed. */
  readonly rounds: readonly (number | null)[];
  readonly median: number | null;
  /** Median of the per-round ratios; null without rounds that have both. */
  readonly ratio_to_kernel_vxlan: number | null;
  readonly ratio_to_direct: number | null;
  /** Within 10 % of direct: the subject may be better than this. */
  readonly generator_limited: boolean;
  /** A packet rate at which nothing was lost but no more could be sent; see lossless.ts. */
  readonly sender_bound: boolean;
}

const LIMITED = 0.1;

export class Results {
  /** measure → subject → one figure a round. */
  readonly #figures = new Map<string, Map<string, (number | null)[]>>();
  readonly #senderBound = new Set<string>();

  add(measure: string, subject: string, round: number, figure: number | null): void {
    const subjects = this.#figures.get(measure) ?? new Map<string, (number | null)[]>();
    this.#figures.set(measure, subjects);
    const rounds = subjects.get(subject) ?? [];
    subjects.set(subject, rounds);
    while (rounds.length < round) rounds.push(null);
    rounds[round] = figure;
  }

  markSenderBound(measure: string, subject: string): void {
    this.#senderBound.add(`${measure} ${subject}`);
  }

  rows(): Row[] {
    const rows: Row[] = [];
    for (const { measure, unit, better } of ROWS) {
      const subjects = this.#figures.get(measure) ?? new Map<string, (number | null)[]>();
      for (const [subject, rounds] of subjects) {
        const toDirect = ratio(rounds, subjects.get('direct'));
        const close =
          toDirect !== null && (better === 'higher' ? toDirect >= 1 - LIMITED : toDirect <= 1 / (1 - LIMITED));
        rows.push({
          subject,
          measure,
          unit,
          rounds,
          median: medianOrNull(rounds.filter((figure) => figure !== null)),
          ratio_to_kernel_vxlan: ratio(rounds, subjects.get('kernel-vxlan')),
          ratio_to_direct: toDirect,
          generator_limited: subject !== 'direct' && close,
          sender_bound: this.#senderBound.has(`${measure} ${subject}`),
        });
      }
    }
    return rows;
  }

  /** One JSON object a line, the set-up first. */
  json(setup: object): string {
    const round = (_: string, value: unknown): unknown =>
      typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value;
    return `${[{ setup }, ...this.rows()].map((line) => JSON.stringify(line, round)).join('\n')}\n`;
  }

  table(): string {
    const lines = [['measure', 'unit', 'subject', 'median', 'min', 'max', '× vxlan', '× direct', '']];
    let previous = '';
    for (const row of this.rows()) {
      const info = ROWS.find((one) => one.measure === row.measure);
      const show = (value: number | null): string => (value === null ? '-' : value.toFixed(info?.digits ?? 2));
      const showRatio = (value: number | null): string => (value === null ? '-' : value.toFixed(2));
      const figures = row.rounds.filter((figure) => figure !== null);
      if (row.measure !== previous && previous) lines.push([]);
      lines.push([
        row.measure === previous ? '' : row.measure,
        row.measure === previous ? '' : row.unit,
        row.subject,
        show(row.median),
        show(figures.length ? Math.min(...figures) : null),
        show(figures.length ? Math.max(...figures) : null),
        showRatio(row.ratio_to_kernel_vxlan),
        showRatio(row.ratio_to_direct),
        [
          row.generator_limited ? 'generator-limited' : '',
          row.sender_bound ? 'sender-bound' : '',
          figures.length < row.rounds.length ? 'failed rounds' : '',
        ]
          .filter(Boolean)
          .join(', '),
      ]);
      previous = row.measure;
    }
    const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => (line[column] ?? '').length)));
    const align = (cell: string, column: number): string =>
      column < 3 || column === 8 ? cell.padEnd(widths[column]) : cell.padStart(widths[column]);
    return `${lines.map((line) => line.map(align).join('  ').trimEnd()).join('\n')}\n`;
  }
}

function ratio(of: readonly (number | null)[], to: readonly (number | null)[] | undefined): number | null {
  if (!to) return null;
  return medianOrNull(
    of.flatMap((figure, round) => {
      const other = to[round];
      return figure !== null && other !== null && other !== undefined ? [figure / other] : [];
    }),
  );
}

function medianOrNull(values: readonly number[]): number | null {
  return values.length > 0 ? median(values) : null;
}
