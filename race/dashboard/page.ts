/**
 * The dashboard as one HTML page with charts in SVG: panels where Grafana puts them (a grid of 24 columns, 30 pixels a row), rows
 * as headings, values in their units. For places without Grafana; nothing in the page moves or loads anything.
 */
import { allPanels, type Dashboard } from './dashboard.js';
import type { PanelData } from './data.js';
import {
  type Box,
  boxOf,
  escapeHtml,
  GAP,
  HEAD,
  LEGEND_LINE,
  MOST_LEGEND_LINES,
  PADDING,
  ROW,
  WIDTH,
} from './layout.js';
import { drawHeatMap, drawSeries, type Span } from './lines.js';
import { drawBars, drawStats, drawTable } from './values.js';

export interface PageOptions extends Span {
  /** Whose values these are. */
  readonly source: string;
}

const place = ({ left, top, width, height }: Box): string =>
  `left:${left.toFixed(1)}px;top:${top}px;width:${width.toFixed(1)}px;height:${height}px`;

/** The whole page as HTML. Panels of which `data` has nothing, or nothing but NaN, say "No data". Throws for what it cannot draw. */
export function pageOf(dashboard: Dashboard, data: readonly PanelData[], options: PageOptions): string {
  const panels = allPanels(dashboard);
  const height = Math.max(...panels.map(({ gridPos: { y, h } }) => (y + h) * (ROW + GAP)));
  const byId = new Map(data.map((one) => [one.panel.id, one]));
  const drawn = panels.map((panel) => {
    const box = boxOf(panel.gridPos);
    if (panel.type === 'row') return `<h2 style="${place(box)}">${escapeHtml(panel.title)}</h2>`;
    const found = byId.get(panel.id);
    return `<section style="${place(box)}" title="${escapeHtml(panel.description ?? '')}">
<h3>${escapeHtml(panel.title)}</h3>
${found && !found.empty ? withOwnNames(drawPanel(found, box, options), panel.id) : '<p class="empty">No data</p>'}
</section>`;
  });
  const time = (ms: number): string => new Date(ms).toISOString().slice(0, 19).replace('T', ' ');
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escapeHtml(dashboard.title)}</title><style>${CSS}</style></head>
<body><header><h1>${escapeHtml(dashboard.title)}</h1>
<p>${time(options.from)} to ${time(options.to)} UTC · ${escapeHtml(options.source)}</p></header>
<main style="height:${height}px">
${drawn.join('\n')}
</main></body></html>
`;
}

/** Names inside an SVG are the page's: the same ones in each would all mean those of the first. */
const withOwnNames = (svg: string, id: number): string => svg.replaceAll(/(\bid="|url\(#|href="#)/g, `$1p${id}-`);

function drawPanel(data: PanelData, box: Box, options: PageOptions): string {
  switch (data.panel.type) {
    case 'timeseries':
      return drawSeries(data, box, options);
    case 'heatmap':
      return drawHeatMap(data, box, options);
    case 'stat':
      return drawStats(data);
    case 'bargauge':
      return drawBars(data, box);
    case 'table':
      return drawTable(data);
    case 'row':
      return '';
  }
}

const CSS = `
body { margin: 0; padding: 16px 20px 20px; background: #f1f3f5; color: #24292f; width: ${WIDTH}px;
  font: 12px/1.35 "DejaVu Sans", "Helvetica Neue", Arial, sans-serif; }
header { display: flex; align-items: baseline; gap: 18px; margin-bottom: 8px; }
header p, h1 { margin: 0; }
header p { color: #57606a; }
h1 { font-size: 20px; }
main { position: relative; }
main > * { position: absolute; box-sizing: border-box; margin: 0; }
h2 { font-size: 14px; line-height: ${ROW}px; border-bottom: 1px solid #c9d1d9; }
section { background: #fff; border: 1px solid #d8dee4; border-radius: 4px; padding: 0 ${PADDING - 1}px; overflow: hidden; }
h3 { margin: 0; font-size: 12.5px; line-height: ${HEAD - 2}px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
svg { display: block; }
.empty { text-align: center; color: #d0342c; margin-top: 60px; }
.legend { display: flex; flex-wrap: wrap; column-gap: 14px; font-size: 11px; line-height: ${LEGEND_LINE}px;
  max-height: ${MOST_LEGEND_LINES * LEGEND_LINE}px; overflow: hidden; padding-left: 6px; }
.legend span { white-space: nowrap; }
.legend i { display: inline-block; width: 10px; height: 3px; margin-right: 4px; vertical-align: middle; border-radius: 1px; }
.stats { display: flex; flex-direction: column; justify-content: space-evenly; height: calc(100% - ${HEAD}px); }
.stats div { display: flex; justify-content: space-between; align-items: baseline; gap: 8px; }
.stats span { color: #57606a; font-size: 11px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.stats b { font-size: 17px; font-weight: 600; white-space: nowrap; }
.bars div { display: grid; grid-template-columns: minmax(100px, 46%) 1fr 72px; align-items: center; gap: 8px; font-size: 11px; }
.bars span { text-align: right; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars em { height: 62%; background: #eef1f4; display: block; }
.bars i { display: block; height: 100%; }
.bars b { font-weight: 600; white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: 11px; }
th { text-align: left; color: #57606a; font-weight: 600; }
th, td { padding: 4px 6px; border-bottom: 1px solid #eaeef2; white-space: nowrap; }
.number { text-align: right; }
`;
