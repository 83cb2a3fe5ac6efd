/** What the parts of the page share: the size of things, colours, and how a series is called and marked. */
import { type GridPos, legendOf, type Panel } from './dashboard.js';
import type { PanelData } from './data.js';
import type { Series } from './prometheus.js';

export const WIDTH = 1560;
export const COLUMNS = 24;
export const ROW = 30;
export const GAP = 8;
export const HEAD = 30;
/** Inside a panel, left and right. */
export const PADDING = 10;
export const LEGEND_LINE = 17;
export const MOST_LEGEND_LINES = 4;

export const COLORS: Readonly<Record<string, string>> = {
  green: '#2c8c3c',
  orange: '#d9822b',
  red: '#d0342c',
  blue: '#1f78c1',
};

export interface Box {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

export const escapeHtml = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');

/** Where a panel lies on the page, pixels: Grafana's grid has 24 columns, and rows of 30 pixels with gaps of 8. */
export function boxOf({ x, y, w, h }: GridPos): Box {
  const column = (WIDTH + GAP) / COLUMNS;
  return { left: x * column, top: y * (ROW + GAP), width: w * column - GAP, height: h * (ROW + GAP) - GAP };
}

/** The properties that overrides give a series of that name. */
export function overridden(panel: Panel, name: string): ReadonlyMap<string, unknown> {
  const fitting = (panel.fieldConfig?.overrides ?? []).filter(({ matcher: { id, options } }) =>
    id === 'byName' ? options === name : new RegExp(options.replace(/^\/|\/$/g, '')).test(name),
  );
  return new Map(fitting.flatMap(({ properties }) => properties.map(({ id, value }) => [id, value])));
}

/** The series of all queries under their legends, by name; what is NaN throughout is left out. */
export function named({ answers }: PanelData): { name: string; series: Series }[] {
  return answers
    .flatMap(({ target, series }) =>
      series.map((one) => ({ name: legendOf(target.legendFormat, one.labels), series: one })),
    )
    .filter(({ series }) => series.points.some(([, value]) => !Number.isNaN(value)))
    .sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}
