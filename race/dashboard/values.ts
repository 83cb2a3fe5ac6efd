/** Panels that show what is now: single values, bars, tables. */
import type { FieldConfig, Panel, ThresholdStep } from './dashboard.js';
import { type Cell, type PanelData, tableOf } from './data.js';
import { type Box, COLORS, escapeHtml, GAP, HEAD, named, overridden } from './layout.js';
import type { Series } from './prometheus.js';
import { withUnit } from './units.js';

const lastOf = (series: Series): number =>
  series.points.findLast(([, value]) => !Number.isNaN(value))?.[1] ?? Number.NaN;

const colorAt = (value: number, steps: readonly ThresholdStep[]): string => {
  const { color } = steps.findLast((step) => step.value === null || value >= step.value) ?? { color: 'green' };
  return COLORS[color] ?? color;
};

/** A value as the panel writes it, and its colour. */
function written({ fieldConfig }: Panel, value: number, unit?: string): { text: string; color: string } {
  const defaults: FieldConfig['defaults'] = fieldConfig?.defaults ?? { unit: 'short' };
  const mapping = defaults.mappings?.find(({ options }) => String(value) in options)?.options[String(value)];
  if (mapping) return { text: mapping.text, color: COLORS[mapping.color] ?? mapping.color };
  const text = withUnit(value, unit ?? defaults.unit, defaults.decimals);
  return { text, color: colorAt(value, defaults.thresholds?.steps ?? []) };
}

/** A `stat` panel: the last value of each series with its name, in the colour of its threshold. */
export function drawStats(data: PanelData): string {
  const items = named(data).map(({ name, series }) => {
    const { text, color } = written(data.panel, lastOf(series));
    return `<div><span>${escapeHtml(name)}</span><b style="color:${color}">${escapeHtml(text)}</b></div>`;
  });
  return `<div class="stats">${items.join('')}</div>`;
}

/** A `bargauge` panel: the largest values as bars, as many as fit into the box, of the panel's maximum or of the largest. */
export function drawBars(data: PanelData, box: Box): string {
  const { max } = data.panel.fieldConfig?.defaults ?? {};
  const items = named(data)
    .map(({ name, series }) => ({ name, value: lastOf(series) }))
    .sort((a, b) => b.value - a.value);
  const most = max ?? Math.max(...items.map(({ value }) => value));
  const each = Math.max(12, Math.min(30, (box.height - HEAD - GAP) / items.length));
  const shown = items.slice(0, Math.floor((box.height - HEAD - GAP) / each));
  const bars = shown.map(({ name, value }) => {
    const { text, color } = written(data.panel, value);
    const share = most > 0 ? Math.max(0, Math.min(100, (value / most) * 100)) : 0;
    const bar = `<em><i style="width:${share.toFixed(1)}%;background:${color}"></i></em>`;
    const label = `<span>${escapeHtml(name)}</span>`;
    return `<div style="height:${each.toFixed(1)}px">${label}${bar}<b>${escapeHtml(text)}</b></div>`;
  });
  return `<div class="bars">${bars.join('')}</div>`;
}

/** A `table` panel, after its transformations. Throws for a transformation that is not known here. */
export function drawTable(data: PanelData): string {
  const { panel } = data;
  const { columns, rows } = tableOf(data);
  const colored = (panel.fieldConfig?.defaults.mappings?.length ?? 0) > 0;
  const cell = (value: Cell, column: string): string => {
    if (value === undefined) return '<td></td>';
    if (typeof value === 'string') return `<td>${escapeHtml(value)}</td>`;
    const unit = overridden(panel, column).get('unit') as string | undefined;
    const { text, color } = written(panel, value, unit);
    return `<td class="number"${colored ? ` style="color:${color}"` : ''}>${escapeHtml(text)}</td>`;
  };
  const numeric = (i: number): boolean => rows.some((row) => typeof row[i] === 'number');
  const head = columns.map((name, i) => `<th${numeric(i) ? ' class="number"' : ''}>${escapeHtml(name)}</th>`).join('');
  const body = rows.map((row) => `<tr>${row.map((value, i) => cell(value, columns[i])).join('')}</tr>`).join('\n');
  return `<table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>`;
}
