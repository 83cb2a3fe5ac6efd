/**
 * The part of Grafana's dashboard JSON that ours uses (deploy/grafana/dashboard.json): panels on a grid of 24 columns, rows that
 * head them, queries with variables. Read by the rendering (panels.ts) and by the tests, which hold the file to it.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Of the repository. */
export const DASHBOARD = fileURLToPath(new URL('../../../deploy/grafana/dashboard.json', import.meta.url));

export interface GridPos {
  readonly x: number;
  readonly y: number;
  readonly w: number;
  readonly h: number;
}

export interface Target {
  readonly refId: string;
  readonly expr: string;
  /** `{{label}}` stands for a label's value. */
  readonly legendFormat: string;
  readonly format: 'time_series' | 'table' | 'heatmap';
  /** The value at the end of the range and no other. */
  readonly instant?: boolean;
}

export interface ThresholdStep {
  readonly color: string;
  /** null: from the lowest on. */
  readonly value: number | null;
}

export interface ValueMapping {
  readonly type: 'value';
  readonly options: Readonly<Record<string, { readonly text: string; readonly color: string }>>;
}

export interface Override {
  readonly matcher: { readonly id: 'byName' | 'byRegexp' | 'byFrameRefID'; readonly options: string };
  readonly properties: readonly { readonly id: string; readonly value: unknown }[];
}

export interface FieldConfig {
  readonly defaults: {
    readonly unit: string;
    readonly decimals?: number;
    readonly min?: number;
    readonly max?: number;
    readonly mappings?: readonly ValueMapping[];
    readonly thresholds?: { readonly mode: 'absolute'; readonly steps: readonly ThresholdStep[] };
    readonly custom?: Readonly<Record<string, unknown>>;
  };
  readonly overrides: readonly Override[];
}

export interface Transformation {
  readonly id: string;
  readonly options: Readonly<Record<string, unknown>>;
}

export type PanelType = 'timeseries' | 'stat' | 'table' | 'bargauge' | 'heatmap' | 'row';

export interface Panel {
  readonly id: number;
  readonly type: PanelType;
  readonly title: string;
  readonly description?: string;
  readonly gridPos: GridPos;
  readonly targets?: readonly Target[];
  readonly fieldConfig?: FieldConfig;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly transformations?: readonly Transformation[];
  /** A row that is folded holds its panels. */
  readonly panels?: readonly Panel[];
}

export interface Variable {
  readonly name: string;
  readonly type: 'datasource' | 'query';
  readonly query: unknown;
  /** What is put in for "All" instead of all values. */
  readonly allValue?: string;
}

export interface Annotation {
  readonly name: string;
  /** Grafana's own, the alerts', have none. */
  readonly expr?: string;
}

export interface Dashboard {
  readonly uid: string;
  readonly title: string;
  readonly schemaVersion: number;
  readonly refresh: string;
  readonly panels: readonly Panel[];
  readonly templating: { readonly list: readonly Variable[] };
  readonly annotations: { readonly list: readonly Annotation[] };
}

export const readDashboard = (file = DASHBOARD): Dashboard => JSON.parse(readFileSync(file, 'utf8')) as Dashboard;

/** Rows and panels in the order of the page, those of folded rows behind their row. */
export const allPanels = ({ panels }: Dashboard): Panel[] =>
  panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);

/** Those that show something: all but the rows. */
export const drawnPanels = (dashboard: Dashboard): Panel[] => allPanels(dashboard).filter(({ type }) => type !== 'row');

export interface Variables {
  /** A regular expression, escaped as in a PromQL string; for "All", Grafana puts in all values that the variable has. */
  readonly instance: string;
  /** Seconds: a rate over less than four scrapes may see a single one. */
  readonly rateInterval: number;
  /** Seconds that the page shows. */
  readonly range: number;
}

/** A regular expression of just these values, escaped as Grafana does it for a PromQL string. */
export const anyOf = (values: readonly string[]): string =>
  values.map((value) => value.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\\\$&')).join('|');

/** A query with Grafana's variables filled in. */
export function fillIn(expression: string, { instance, rateInterval, range }: Variables): string {
  const values: Readonly<Record<string, string>> = {
    $instance: instance,
    $__rate_interval: `${rateInterval}s`,
    $__range: `${range}s`,
  };
  return expression.replaceAll(/\$\w+/g, (name) => values[name] ?? name);
}

/** A series' name by its query's legend. */
export const legendOf = (format: string, labels: Readonly<Record<string, string>>): string =>
  format.replaceAll(/\{\{\s*(\w+)\s*\}\}/g, (_, label: string) => labels[label] ?? '');
