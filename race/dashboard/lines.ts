/** Panels that show values over time: lines, areas, heat maps; each chart with its legend below. */
import { heatMapSvg, type TimeSeries, timeSeriesSvg } from './charts.js';
import type { Panel } from './dashboard.js';
import { bucketsOf, type PanelData } from './data.js';
import {
  type Box,
  COLORS,
  escapeHtml,
  GAP,
  HEAD,
  LEGEND_LINE,
  MOST_LEGEND_LINES,
  named,
  overridden,
  PADDING,
} from './layout.js';
import type { Series } from './prometheus.js';
import { axisFor, onAxis } from './units.js';

/** Of the legend's font, on average, pixels. */
const CHARACTER = 5.9;
/** Of the value axis: pixels between two lines. */
const LINE_EVERY = 38;

/** Grafana's classic palette, without what cannot be seen on white. */
const PALETTE = [
  ...['#3f8f3a', '#e0a400', '#2fa4c7', '#ef843c', '#d0342c', '#1f78c1', '#ba43a9', '#705da0', '#7eb26d', '#8a6d00'],
  ...['#447ebc', '#c15c17', '#890f02', '#0a437c', '#6d1f62', '#584477', '#5fb7b0', '#b7a85f', '#a56a9e', '#4d5d53'],
];

/** What a page shows of the past: milliseconds since 1970, seconds between two points. */
export interface Span {
  readonly from: number;
  readonly to: number;
  readonly step: number;
}

/** All points in time at which one of them has a value. */
const instantsOf = (series: readonly Series[]): number[] =>
  [...new Set(series.flatMap(({ points }) => points.map(([ms]) => ms)))].sort((a, b) => a - b);

/** What is stacked has to have a value wherever another one has: nothing of it was there, so 0. */
function filledUp(points: Series['points'], instants: readonly number[]): (readonly [number, number])[] {
  const values = new Map(points);
  return instants.map((ms) => [ms, values.get(ms) || 0] as const);
}

/** Points with a NaN where a scrape is missing, so that lines break there. */
function withGaps(points: Series['points'], step: number): (readonly [number, number])[] {
  return points.flatMap((point, i) =>
    i > 0 && point[0] - points[i - 1][0] > step * 1500 ? [[point[0] - 1, Number.NaN] as const, point] : [point],
  );
}

/** What is drawn downwards, so that what goes out and what comes in are not one over the other. */
const isMirrored = (panel: Panel, name: string): boolean =>
  overridden(panel, name).get('custom.transform') === 'negative-Y';

function seriesOf(data: PanelData, stacked: boolean, step: number): TimeSeries[] {
  const found = named(data);
  const instants = stacked ? instantsOf(found.map(({ series }) => series)) : [];
  return found.map(({ name, series: { points } }, i) => {
    const sign = isMirrored(data.panel, name) ? -1 : 1;
    const all = withGaps(stacked ? filledUp(points, instants) : points, step);
    return { name, color: PALETTE[i % PALETTE.length], points: all.map(([ms, value]) => [ms, sign * value] as const) };
  });
}

/** A `timeseries` panel's chart and legend as HTML; `box` is the panel's, its heading included. */
export function drawSeries(data: PanelData, box: Box, { from, to, step }: Span): string {
  const { panel } = data;
  const { unit = 'short', decimals, min, max, custom = {}, thresholds } = panel.fieldConfig?.defaults ?? {};
  const stacked = (custom.stacking as { mode: string } | undefined)?.mode === 'normal';
  const series = seriesOf(data, stacked, step);
  const width = Math.floor(box.width - 2 * PADDING);
  const { html, lines } = legend(series, width);
  const height = Math.floor(box.height - HEAD - lines * LEGEND_LINE - GAP);
  const { low, high } = extent(series, stacked);
  const most = Math.max(2, Math.round(height / LINE_EVERY));
  const axis = axisFor(min ?? Math.min(0, low), max ?? high, most, unit, decimals === 0);
  const mirrored = series.some(({ name }) => isMirrored(panel, name));
  const svg = timeSeriesSvg({
    series,
    stacked,
    fill: Number(custom.fillOpacity ?? 0) / 100,
    axis,
    from,
    to,
    width,
    height,
    // What is drawn downwards is no less than nothing: it goes the other way.
    format: (value) => onAxis(mirrored ? Math.abs(value) : value, axis, unit),
    limits: (thresholds?.steps ?? []).flatMap(({ color, value }) =>
      value === null ? [] : [{ value, color: COLORS[color] ?? color }],
    ),
  });
  return `${svg}\n${html}`;
}

/** The least and the greatest value, of the sums where series are stacked. */
function extent(series: readonly TimeSeries[], stacked: boolean): { low: number; high: number } {
  let [low, high] = [0, 0];
  const sums = new Map<number, number>();
  for (const { points } of series) {
    for (const [ms, value] of points) {
      if (!Number.isFinite(value)) continue;
      const top = stacked ? (sums.get(ms) ?? 0) + value : value;
      sums.set(ms, top);
      low = Math.min(low, top);
      high = Math.max(high, top);
    }
  }
  return { low, high };
}

function legend(series: readonly TimeSeries[], width: number): { html: string; lines: number } {
  let lines = 1;
  let used = 0;
  const shown: TimeSeries[] = [];
  for (const one of series) {
    const wide = one.name.length * CHARACTER + 30;
    if (used + wide > width && used > 0) {
      lines++;
      used = 0;
    }
    if (lines > MOST_LEGEND_LINES) break;
    used += wide;
    shown.push(one);
  }
  const more = series.length - shown.length;
  const items = shown.map(({ name, color }) => `<span><i style="background:${color}"></i>${escapeHtml(name)}</span>`);
  if (more > 0) items.push(`<span>+ ${more} more</span>`);
  return { html: `<div class="legend">${items.join('')}</div>`, lines: Math.min(lines, MOST_LEGEND_LINES) };
}

/** A `heatmap` panel's chart: what its histogram counted in each bucket, a second. */
export function drawHeatMap({ answers }: PanelData, box: Box, { from, to, step }: Span): string {
  const { bounds, columns } = bucketsOf(
    answers.flatMap(({ series }) => series),
    step,
    from,
    to,
  );
  return heatMapSvg({
    buckets: bounds,
    columns,
    from,
    to,
    width: Math.floor(box.width - 2 * PADDING),
    height: Math.floor(box.height - HEAD - GAP),
  });
}
