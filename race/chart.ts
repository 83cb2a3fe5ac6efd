/**
 * Charts as SVG text, without a browser: the only module that imports echarts.
 *
 * What comes out is for a README: an opaque background, so that it reads the same on a light and on a dark page; generic
 * fonts; and the same text for the same input, so that the difference of two published charts is one of figures. echarts
 * numbers its charts within the process and adds what only a browser's pointer needs; `tidy` takes both away.
 */
import { type EChartsOption, init } from 'echarts';

export type ChartOption = EChartsOption;

export const INK = '#24292f';
export const QUIET_INK = '#57606a';
export const RULE = '#d8dee4';
export const PAPER = '#ffffff';

/** What a bar stands for, which decides its colour. */
export type Tone = 'weft' | 'kernel' | 'bound' | 'other';

export const TONES: Readonly<Record<Tone, string>> = {
  weft: '#1f77b4',
  kernel: '#6e7781',
  bound: '#c9d1d9',
  other: '#d9a441',
};

export interface Bar {
  readonly label: string;
  readonly tone: Tone;
  /** null: not measured, or nothing of it succeeded. */
  readonly median: number | null;
  readonly min: number | null;
  readonly max: number | null;
}

/** One measure: a bar for each subject, on a scale of its own from 0. */
export interface Panel {
  readonly title: string;
  /** Unit and direction, as "Gbit/s, more is better". */
  readonly note: string;
  readonly bars: readonly Bar[];
  /** Where the dashed line stands. */
  readonly reference: number | null;
  /** Decimal places of the figures beside the bars. */
  readonly digits: number;
}

export interface BarsChart {
  readonly title: string;
  readonly subtitle: string;
  /** All with bars for the same labels in the same order. */
  readonly panels: readonly Panel[];
}

export interface Part {
  readonly name: string;
  readonly value: number;
}

export interface Stack {
  readonly label: string;
  /** Parts of names that the chart's stages lack are an error. */
  readonly parts: readonly Part[];
  /** Beside the bar; the sum by default. */
  readonly note: string;
}

export interface StackedChart {
  readonly title: string;
  readonly subtitle: string;
  /** From left to right, with their colours. */
  readonly stages: readonly { readonly name: string; readonly color: string }[];
  readonly groups: readonly Group[];
}

/** Stacks on one scale. */
export interface Group {
  readonly title: string;
  readonly stacks: readonly Stack[];
}

/** Draws one chart; ends what would keep the process running. */
export function renderSvg(option: ChartOption, width: number, height: number): string {
  const chart = init(null, null, { renderer: 'svg', ssr: true, width, height });
  try {
    chart.setOption({ animation: false, backgroundColor: PAPER, ...option });
    return tidy(chart.renderToSVGString());
  } finally {
    chart.dispose();
  }
}

/**
 * Without what is numbered by process, what only a pointer needs and what cannot be seen. The font is said once; and text is put in
 * the middle of a line by a shift, since not everything that draws SVG knows baselines.
 */
const tidy = (svg: string): string =>
  `${svg
    .replace(/<style ?>.*?<\/style>\n?/gs, '')
    .replace(/<path [^>]*(?:fill-opacity="0"[^>]*|fill="none")><\/path>\n/g, '')
    .replace(/><\/(?:path|polyline|rect)>/g, '/>')
    .replace(/ (?:class|pointer-events|ecmeta_\w+)="[^"]*"/g, '')
    .replace(/\bzr\d+-/g, 'zr-')
    .replace(/ style="font: normal normal (\d+)px sans-serif"/g, ' font-size="$1"')
    .replace(/ style="font-size:(\d+)px;font-family:sans-serif;"/g, ' font-size="$1"')
    .replace(
      / style="font-size:(\d+)px;font-family:sans-serif;font-weight:(\w+);"/g,
      ' font-size="$1" font-weight="$2"',
    )
    .replace(/ dominant-baseline="central"/g, ' dy=".35em"')
    .replace('<svg ', '<svg font-family="sans-serif" ')
    .trim()}\n`;

// --- bars with their spread, a panel for each measure ---

const WIDTH = 920;
const MARGIN = 16;
/** Title and subtitle. */
const HEAD = 62;
/** Of the subjects' names, at the left of the first column only. */
const NAMES = 112;
/** Of the figures, at the right of each panel. */
const FIGURES = 64;
const GAP = 28;
const COLUMNS = 2;
const ROW = 19;
/** A panel's title above its bars, and its axis below. */
const PANEL_HEAD = 26;
const PANEL_FOOT = 34;

/** Panels of bars, two beside each other, each bar with its whisker and its figure; SVG text. */
export function barsSvg(chart: BarsChart): string {
  const labels = chart.panels[0]?.bars.map(({ label }) => label) ?? [];
  const columns = Math.min(COLUMNS, chart.panels.length);
  const panelWidth = (WIDTH - 2 * MARGIN - NAMES - (columns - 1) * GAP) / columns;
  const panelHeight = PANEL_HEAD + labels.length * ROW + PANEL_FOOT;
  const places = chart.panels.map((_, i) => ({
    left: MARGIN + NAMES + (i % columns) * (panelWidth + GAP),
    top: HEAD + Math.floor(i / columns) * panelHeight,
  }));
  const names = {
    type: 'category' as const,
    inverse: true,
    axisTick: { show: false },
    axisLine: { lineStyle: { color: QUIET_INK } },
  };
  const height = HEAD + Math.ceil(chart.panels.length / columns) * panelHeight;
  return renderSvg(
    {
      title: [
        ...heading(chart),
        ...chart.panels.flatMap((panel, i) => panelTitle(panel, places[i].left, places[i].top, panelWidth)),
      ],
      grid: places.map(({ left, top }) => ({
        left,
        top: top + PANEL_HEAD,
        width: panelWidth - FIGURES,
        height: labels.length * ROW,
      })),
      xAxis: chart.panels.map((_, i) => ({ ...valueAxis(), gridIndex: i })),
      yAxis: chart.panels.flatMap((panel, i) => [
        {
          ...names,
          gridIndex: i,
          data: labels,
          axisLabel: {
            show: i % columns === 0,
            color: INK,
            fontSize: 12,
            interval: 0,
            formatter: (label: string) => (toneOf(panel, label) === 'weft' ? `{weft|${label}}` : label),
            rich: { weft: { fontWeight: 'bold', color: TONES.weft, fontSize: 12 } },
          },
        },
        // The figures: a second axis that has them for its names.
        {
          ...names,
          gridIndex: i,
          position: 'right' as const,
          axisLine: { show: false },
          data: panel.bars.map((_, bar) => `${bar}`),
          axisLabel: {
            color: INK,
            fontSize: 12,
            interval: 0,
            align: 'right' as const,
            margin: FIGURES,
            formatter: (bar: string) => figure(panel.bars[Number(bar)].median, panel.digits),
          },
        },
      ]),
      series: chart.panels.flatMap((panel, i) => [bars(panel, i), whiskers(panel, i)]),
    },
    WIDTH,
    height,
  );
}

const toneOf = (panel: Panel, label: string): Tone | undefined => panel.bars.find((bar) => bar.label === label)?.tone;

const figure = (value: number | null, digits: number): string =>
  value === null
    ? '–'
    : value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });

const heading = ({ title, subtitle }: { title: string; subtitle: string }): object[] => [
  {
    text: title,
    subtext: subtitle,
    left: MARGIN,
    top: 10,
    padding: 0,
    itemGap: 6,
    textStyle: { color: INK, fontSize: 16 },
    subtextStyle: { color: QUIET_INK, fontSize: 12, lineHeight: 15 },
  },
];

/** Left what is measured, right in what. */
const panelTitle = ({ title, note }: Panel, left: number, top: number, width: number): object[] => [
  { text: title, left, top: top + 4, padding: 0, textStyle: { color: INK, fontSize: 13 } },
  {
    text: note,
    left: left + width,
    top: top + 5,
    padding: 0,
    textAlign: 'right',
    textStyle: { color: QUIET_INK, fontSize: 11, fontWeight: 'normal' },
  },
];

const valueAxis = (): object => ({
  type: 'value',
  min: 0,
  splitNumber: 4,
  axisLabel: { color: QUIET_INK, fontSize: 11, hideOverlap: true, formatter: short },
  splitLine: { lineStyle: { color: RULE } },
});

/** 150,000 as 150 k. */
const short = (value: number): string =>
  value >= 1e6 ? `${value / 1e6} M` : value >= 1e4 ? `${value / 1e3} k` : `${value}`;

type Series = Exclude<ChartOption['series'], undefined | readonly unknown[]>;

const bars = (panel: Panel, i: number): Series => ({
  type: 'bar',
  xAxisIndex: i,
  yAxisIndex: 2 * i,
  barWidth: 11,
  silent: true,
  data: panel.bars.map(({ median, tone }) => ({ value: median ?? '-', itemStyle: { color: TONES[tone] } })),
  markLine: {
    silent: true,
    symbol: 'none',
    label: { show: false },
    lineStyle: { color: INK, type: [4, 3], width: 1 },
    data: panel.reference === null ? [] : [{ xAxis: panel.reference }],
  },
});

/** From the least round to the most, with a cap at each end; the axis makes room for them. */
const whiskers = (panel: Panel, i: number): Series => ({
  type: 'custom',
  xAxisIndex: i,
  yAxisIndex: 2 * i,
  silent: true,
  z: 5,
  encode: { x: [1, 2], y: 0 },
  data: panel.bars.flatMap(({ min, max }, bar) => (min === null || max === null ? [] : [[bar, min, max]])),
  renderItem: (_, api) => {
    const [left, y] = api.coord([api.value(1), api.value(0)]);
    const [right] = api.coord([api.value(2), api.value(0)]);
    const cap = 3;
    return {
      type: 'polyline',
      shape: {
        points: [
          [left, y - cap],
          [left, y + cap],
          [left, y],
          [right, y],
          [right, y - cap],
          [right, y + cap],
        ],
      },
      style: { stroke: INK, lineWidth: 1, fill: 'none' },
    };
  },
});

// --- stacked bars ---

/** Of the stacks' names. */
const STACK_NAMES = 240;
const STACK_ROW = 34;
const LEGEND = 62;
/** Rough width of a letter at the labels' size, to know what fits into a part. */
const LETTER = 5.6;

/** Bars made of parts, in groups, with one legend; SVG text. Throws for a part that no stage is named after. */
export function stackedBarsSvg(chart: StackedChart): string {
  const left = MARGIN + STACK_NAMES;
  const width = WIDTH - left - MARGIN - FIGURES;
  let top = HEAD + LEGEND;
  const places = chart.groups.map(({ stacks }) => {
    const at = top;
    top += PANEL_HEAD + stacks.length * STACK_ROW + PANEL_FOOT;
    return at;
  });
  for (const { parts } of chart.groups.flatMap(({ stacks }) => stacks)) {
    const lost = parts.find(({ name }) => !chart.stages.some((stage) => stage.name === name));
    if (lost) throw new Error(`chart "${chart.title}": no stage is called ${lost.name}`);
  }
  return renderSvg(
    {
      title: [
        ...heading(chart),
        ...chart.groups.map(({ title }, i) => ({
          text: title,
          left: MARGIN,
          top: places[i] + 4,
          padding: 0,
          textStyle: { color: INK, fontSize: 13 },
        })),
      ],
      legend: {
        left: MARGIN,
        top: HEAD,
        width: WIDTH - 2 * MARGIN,
        padding: 0,
        itemWidth: 12,
        itemHeight: 12,
        itemGap: 20,
        textStyle: { color: INK, fontSize: 12 },
        data: chart.stages.map(({ name }) => name),
      },
      grid: chart.groups.map(({ stacks }, i) => ({
        left,
        top: places[i] + PANEL_HEAD,
        width,
        height: stacks.length * STACK_ROW,
      })),
      xAxis: chart.groups.map((group, i) => ({
        ...valueAxis(),
        gridIndex: i,
        // The longest bar ends at the frame, whatever the next round number is.
        max: longest(group),
        axisLabel: { color: QUIET_INK, fontSize: 11, hideOverlap: true, showMaxLabel: false },
      })),
      yAxis: chart.groups.flatMap(({ stacks }, i) => [
        {
          type: 'category' as const,
          gridIndex: i,
          inverse: true,
          data: stacks.map(({ label }) => label),
          axisTick: { show: false },
          axisLine: { lineStyle: { color: QUIET_INK } },
          axisLabel: { color: INK, fontSize: 12, interval: 0 },
        },
        {
          type: 'category' as const,
          gridIndex: i,
          inverse: true,
          position: 'right' as const,
          data: stacks.map((_, stack) => `${stack}`),
          axisTick: { show: false },
          axisLine: { show: false },
          axisLabel: {
            color: INK,
            fontSize: 12,
            interval: 0,
            formatter: (stack: string) => stacks[Number(stack)].note,
          },
        },
      ]),
      series: chart.groups.flatMap((group, i) =>
        chart.stages.map(({ name, color }): Series => {
          const values = group.stacks.map(({ parts }) => parts.find((part) => part.name === name)?.value ?? 0);
          const scale = width / longest(group);
          return {
            type: 'bar',
            name,
            stack: `${i}`,
            xAxisIndex: i,
            yAxisIndex: 2 * i,
            barWidth: 20,
            silent: true,
            itemStyle: { color, borderColor: PAPER, borderWidth: 0.5 },
            data: values.map((value) => {
              const text = [`${name} ${value.toFixed(1)}`, value.toFixed(1)].find(
                (one) => one.length * LETTER + 6 <= value * scale,
              );
              const label = { show: text !== undefined, formatter: text ?? '', color: inkOn(color), fontSize: 11 };
              return value > 0 ? { value, label } : { value: '-' };
            }),
          };
        }),
      ),
    },
    WIDTH,
    top,
  );
}

const longest = ({ stacks }: Group): number =>
  Math.max(...stacks.map(({ parts }) => parts.reduce((sum, { value }) => sum + value, 0)));

/** Black or white, whichever is easier to read on a colour `#rrggbb` (relative luminance, roughly). */
function inkOn(color: string): string {
  const [red, green, blue] = [1, 3, 5].map((at) => Number.parseInt(color.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? INK : PAPER;
}
