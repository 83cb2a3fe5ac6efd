/** What a dashboard's panels show: their queries' answers, and the tables that Grafana's transformations make of them. */
import { type Dashboard, drawnPanels, fillIn, type Panel, type Target, type Transformation } from './dashboard.js';
import type { PrometheusClient, Range, Series } from './prometheus.js';

export interface Answered {
  readonly target: Target;
  /** As it was asked, variables filled in. */
  readonly expression: string;
  readonly series: readonly Series[];
  /** Nothing came, or nothing but NaN. */
  readonly empty: boolean;
}

export interface PanelData {
  readonly panel: Panel;
  readonly answers: readonly Answered[];
  /** None of its queries brought anything. */
  readonly empty: boolean;
}

export interface AskOptions extends Range {
  /** A regular expression of the instances shown. */
  readonly instance: string;
  /** Seconds; at least four scrapes. */
  readonly rateInterval: number;
}

/** Asks every query of every panel, a panel at a time. Rejects with the first that Prometheus refuses. */
export async function askPanels(
  dashboard: Dashboard,
  client: PrometheusClient,
  options: AskOptions,
): Promise<PanelData[]> {
  const found: PanelData[] = [];
  for (const panel of drawnPanels(dashboard)) {
    const answers = await Promise.all((panel.targets ?? []).map((target) => ask(target, client, options)));
    found.push({ panel, answers, empty: answers.every(({ empty }) => empty) });
  }
  return found;
}

async function ask(target: Target, client: PrometheusClient, options: AskOptions): Promise<Answered> {
  const { from, to, instance, rateInterval } = options;
  const expression = fillIn(target.expr, { instance, rateInterval, range: Math.round((to - from) / 1000) });
  const series = target.instant ? await client.query(expression, to) : await client.queryRange(expression, options);
  const empty = !series.some(({ points }) => points.some(([, value]) => !Number.isNaN(value)));
  return { target, expression, series, empty };
}

// --- tables ---

export type Cell = string | number | undefined;

export interface Table {
  readonly columns: readonly string[];
  readonly rows: readonly (readonly Cell[])[];
}

type Row = Record<string, Cell>;

/** A table panel's rows, as Grafana has them after the panel's transformations. */
export function tableOf({ panel, answers }: PanelData): Table {
  const single = answers.length === 1;
  let rows: Row[] = answers.flatMap(({ target, series }) =>
    series.map(({ labels, points }) => ({
      ...labels,
      [single ? 'Value' : `Value #${target.refId}`]: points.at(-1)?.[1],
    })),
  );
  let order: string[] | undefined;
  for (const transformation of panel.transformations ?? []) {
    if (transformation.id === 'merge') rows = merge(rows);
    else if (transformation.id === 'groupingToMatrix') rows = matrix(rows, transformation);
    else if (transformation.id === 'organize') ({ rows, order } = organize(rows, transformation));
    else throw new Error(`panel ${panel.title}: no way to do the transformation ${transformation.id}`);
  }
  const [sortBy] = (panel.options?.sortBy ?? []) as readonly { readonly displayName: string }[];
  if (sortBy) rows.sort((a, b) => (String(a[sortBy.displayName]) < String(b[sortBy.displayName]) ? -1 : 1));
  const columns = order ?? [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return { columns, rows: rows.map((row) => columns.map((name) => row[name])) };
}

/** Rows that agree in all that they share become one; a row of less detail joins each of more. */
function merge(rows: readonly Row[]): Row[] {
  const joined = rows.map((row) => ({ ...row }));
  const done: Row[] = [];
  for (const row of joined) {
    const fitting = done.filter((other) => {
      const shared = Object.keys(row).filter((name) => name in other);
      return shared.length > 0 && shared.every((name) => row[name] === other[name]);
    });
    if (fitting.length === 0) done.push(row);
    for (const other of fitting) Object.assign(other, row);
  }
  return done;
}

/** A row for each value of one label, a column for each of another. */
function matrix(rows: readonly Row[], { options }: Transformation): Row[] {
  const { rowField, columnField, valueField } = options as Record<string, string>;
  const byRow = new Map<Cell, Row>();
  for (const row of rows) {
    const name = row[rowField];
    const into = byRow.get(name) ?? { [`${rowField}\\${columnField}`]: name };
    into[String(row[columnField])] = row[valueField];
    byRow.set(name, into);
  }
  return [...byRow.values()];
}

function organize(rows: readonly Row[], { options }: Transformation): { rows: Row[]; order: string[] } {
  const { excludeByName, indexByName, renameByName } = options as {
    excludeByName: Record<string, boolean>;
    indexByName: Record<string, number>;
    renameByName: Record<string, string>;
  };
  const place = (name: string): number => indexByName[name] ?? Number.MAX_SAFE_INTEGER;
  const kept = [...new Set(rows.flatMap((row) => Object.keys(row)))]
    .filter((name) => !excludeByName[name])
    .sort((a, b) => place(a) - place(b));
  const renamed = (name: string): string => renameByName[name] ?? name;
  return {
    rows: rows.map((row) => Object.fromEntries(kept.map((name) => [renamed(name), row[name]]))),
    order: kept.map(renamed),
  };
}

// --- histograms ---

export interface Buckets {
  /** Upper bounds, lowest first. */
  readonly bounds: readonly string[];
  readonly columns: readonly { readonly ms: number; readonly values: readonly number[] }[];
}

/** A histogram's series, which each count what is below a bound, as what is in each bucket. */
export function bucketsOf(series: readonly Series[], step: number, from: number, to: number): Buckets {
  const bound = (labels: Series['labels']): number =>
    labels.le === '+Inf' ? Number.POSITIVE_INFINITY : Number(labels.le);
  const sorted = [...series].sort((a, b) => bound(a.labels) - bound(b.labels));
  const values = sorted.map(({ points }) => new Map(points));
  const columns: { ms: number; values: number[] }[] = [];
  for (let ms = from; ms <= to; ms += step * 1000) {
    let below = 0;
    const inEach = values.map((at) => {
      const upTo = at.get(ms) ?? below;
      const inside = Math.max(0, upTo - below);
      below = Math.max(below, upTo);
      return inside;
    });
    columns.push({ ms, values: inEach });
  }
  return { bounds: sorted.map(({ labels }) => (labels.le === '+Inf' ? 'more' : labels.le)), columns };
}
