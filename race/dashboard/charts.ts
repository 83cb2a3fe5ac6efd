/** Charts of values over time, as SVG text: lines and areas, and heat maps of histograms. Legends are the page's. */

import { type ChartOption, INK, PAPER, QUIET_INK, RULE, renderSvg } from '../chart.js';
import type { Axis } from './units.js';

export type Point = readonly [ms: number, value: number];

export interface TimeSeries {
  readonly name: string;
  readonly color: string;
  /** By time. NaN makes a gap. */
  readonly points: readonly Point[];
}

interface Frame {
  readonly width: number;
  readonly height: number;
  /** What the time axis shows, milliseconds since 1970. */
  readonly from: number;
  readonly to: number;
}

export interface TimeSeriesChart extends Frame {
  readonly series: readonly TimeSeries[];
  readonly stacked: boolean;
  /** Opacity of what is below a line, 0 to 1. */
  readonly fill: number;
  readonly axis: Axis;
  /** A value of the other axis, in its unit. */
  readonly format: (value: number) => string;
  /** Dashed lines across. */
  readonly limits: readonly { readonly value: number; readonly color: string }[];
}

export interface HeatMap extends Frame {
  /** Upper bounds of the buckets, lowest first, as the axis shows them. */
  readonly buckets: readonly string[];
  /** By time. Values by bucket; what is 0 stays blank. */
  readonly columns: readonly { readonly ms: number; readonly values: readonly number[] }[];
}

const FONT_SIZE = 11;
const GRID = { left: 8, right: 14, top: 12, bottom: 6, containLabel: true } as const;
const LABEL = { color: QUIET_INK, fontSize: FONT_SIZE } as const;
const CELLS = ['#dce9f5', '#9ec6e6', '#4a95cb', '#1f67a8', '#0a3d73'];

const two = (n: number): string => String(n).padStart(2, '0');

/** Hours and minutes of a point in time, seconds where the page shows only minutes; UTC, as the page says. */
function clock(ms: number, withSeconds: boolean): string {
  const date = new Date(ms);
  const minutes = `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
  return withSeconds ? `${minutes}:${two(date.getUTCSeconds())}` : minutes;
}

/** Steps that the time axis may have, seconds. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400];

/** Milliseconds between two labels of a time axis, so that they do not touch. */
function timeStep({ from, to, width }: Frame): number {
  const most = Math.max(2, Math.floor(width / 95));
  return 1000 * (STEPS.find((step) => (to - from) / 1000 / step <= most) ?? 86_400);
}

/** Lines or areas over time as one SVG element, `width` by `height` pixels; nothing of ECharts outlives the call. */
export function timeSeriesSvg(chart: TimeSeriesChart): string {
  const { series, stacked, fill, axis, from, to, format, limits, width, height } = chart;
  const step = timeStep(chart);
  const option: ChartOption = {
    backgroundColor: PAPER,
    animation: false,
    grid: GRID,
    textStyle: { color: INK },
    xAxis: {
      type: 'value',
      min: from,
      max: to,
      axisLabel: { ...LABEL, customValues: ticks(from, to, step), formatter: (ms: number) => clock(ms, step < 60_000) },
      axisTick: { show: false },
      axisLine: { lineStyle: { color: RULE } },
      splitLine: { show: false },
    },
    yAxis: {
      type: 'value',
      ...axis,
      axisLabel: { ...LABEL, formatter: format },
      splitLine: { lineStyle: { color: RULE } },
    },
    series: series.map(({ name, color, points }, i) => ({
      type: 'line',
      name,
      data: points.map(([ms, value]) => [ms, Number.isFinite(value) ? value : null]),
      ...(stacked ? { stack: 'all' } : {}),
      showSymbol: points.length < 2,
      symbolSize: 4,
      itemStyle: { color },
      lineStyle: { color, width: 1.5 },
      areaStyle: { color, opacity: fill },
      ...(i === 0 && limits.length > 0
        ? {
            markLine: {
              symbol: 'none',
              silent: true,
              label: { show: false },
              data: limits.map(({ value, color: ink }) => ({
                yAxis: value,
                lineStyle: { color: ink, type: 'dashed' },
              })),
            },
          }
        : {}),
    })),
  };
  return renderSvg(option, width, height);
}

function ticks(from: number, to: number, step: number): number[] {
  const found: number[] = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(at);
  return found;
}

/** A column for each point in time, a row for each bucket; the more is in a cell, the darker it is (by the square root). */
export function heatMapSvg(chart: HeatMap): string {
  const { buckets, columns, width, height } = chart;
  const step = timeStep(chart);
  const cells = columns.flatMap(({ values }, x) =>
    values.flatMap((value, y) => (value > 0 ? [[x, y, Math.sqrt(value)]] : [])),
  );
  // Labels at the first column of each step.
  const labelled = new Set<number>();
  columns.forEach(({ ms }, i) => {
    if (i > 0 && Math.floor(ms / step) !== Math.floor(columns[i - 1].ms / step)) labelled.add(i);
  });
  const option: ChartOption = {
    backgroundColor: PAPER,
    animation: false,
    grid: GRID,
    xAxis: {
      type: 'category',
      data: columns.map(({ ms }) => clock(Math.floor(ms / step) * step, step < 60_000)),
      axisLabel: {
        ...LABEL,
        interval: (index: number) => labelled.has(index),
        showMinLabel: false,
        showMaxLabel: false,
      },
      axisTick: { show: false },
      axisLine: { lineStyle: { color: RULE } },
    },
    yAxis: {
      type: 'category',
      data: [...buckets],
      axisLabel: { ...LABEL, interval: 0 },
      axisTick: { show: false },
      axisLine: { lineStyle: { color: RULE } },
      splitLine: { show: true, lineStyle: { color: RULE, opacity: 0.5 } },
    },
    visualMap: {
      show: false,
      min: 0,
      max: Math.max(...cells.map(([, , value]) => value), Number.MIN_VALUE),
      inRange: { color: CELLS },
    },
    series: [{ type: 'heatmap', data: cells, itemStyle: { borderColor: PAPER, borderWidth: 0.5 } }],
  };
  return renderSvg(option, width, height);
}
