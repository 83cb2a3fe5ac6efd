/**
 * Draws the dashboard without Grafana: every panel of deploy/grafana/dashboard.json with what a Prometheus answers to its queries,
 * as one HTML page. For places where Grafana cannot be had, and for the tests, which look for panels that stay empty.
 *
 *   node dist/race/dashboard/panels.js --prometheus http://127.0.0.1:9090 --out weft.html
 */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { anyOf, DASHBOARD, readDashboard } from './dashboard.js';
import { askPanels, type PanelData } from './data.js';
import { pageOf } from './page.js';
import { PrometheusClient } from './prometheus.js';

const USAGE = `Usage: node dist/race/dashboard/panels.js --out FILE.html [options]

Draws the panels of deploy/grafana/dashboard.json with what a Prometheus says, as one HTML page.

  --prometheus URL     where Prometheus answers (default: http://127.0.0.1:9090)
  --socket PATH        a unix socket that leads there, instead of the URL's host
  --out FILE           the page
  --minutes N          how much of the past to show (default: 15)
  --scrape N           seconds between two scrapes (default: 5, as in deploy/prometheus/prometheus.yml)
  --instance REGEXP    whom to show (default: all that have weft_build_info)
  --queries            list the queries, too, that bring nothing

Says which panels are empty, if any, and ends with 1 then.`;

/** About so many points a line. */
const POINTS = 180;
/** As Grafana has it: a rate that misses one scrape still sees two. */
const SCRAPES_OF_A_RATE = 4;

export interface RenderOptions {
  readonly client: PrometheusClient;
  readonly dashboard?: string;
  /** Milliseconds since 1970. */
  readonly from: number;
  readonly to: number;
  /** Seconds between two scrapes. */
  readonly scrape: number;
  /** A regular expression; default: every instance that is weftd's. */
  readonly instance?: string;
}

export interface Rendered {
  readonly html: string;
  readonly data: readonly PanelData[];
}

/** Asks all queries and draws the page. Rejects with one line when Prometheus does not answer or refuses a query. */
export async function render(options: RenderOptions): Promise<Rendered> {
  const { client, scrape, dashboard: file = DASHBOARD } = options;
  const step = Math.max(scrape, Math.ceil((options.to - options.from) / 1000 / POINTS));
  // On whole steps, so that points of all series are at the same times.
  const align = (ms: number): number => Math.floor(ms / (step * 1000)) * step * 1000;
  const [from, to] = [align(options.from), align(options.to)];
  const dashboard = readDashboard(file);
  const rateInterval = Math.max(scrape * SCRAPES_OF_A_RATE, step + scrape);
  const instances = await client.labelValues('instance', 'weft_build_info');
  const instance = options.instance ?? anyOf(instances);
  const data = await askPanels(dashboard, client, { from, to, step, instance, rateInterval });
  const source = `${instances.length} daemons, a scrape every ${scrape} s`;
  return { html: pageOf(dashboard, data, { from, to, step, source }), data };
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      prometheus: { type: 'string', default: 'http://127.0.0.1:9090' },
      socket: { type: 'string' },
      out: { type: 'string' },
      minutes: { type: 'string', default: '15' },
      scrape: { type: 'string', default: '5' },
      instance: { type: 'string' },
      queries: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    console.log(USAGE);
    return 0;
  }
  const { out } = values;
  if (out === undefined) throw new Error('--out is missing: say where the page goes, --out weft.html');
  const number = (name: 'minutes' | 'scrape'): number => {
    const value = Number(values[name]);
    if (!(value > 0)) throw new Error(`--${name} ${values[name]}: a number above 0`);
    return value;
  };
  const to = Date.now();
  const { html, data } = await render({
    client: new PrometheusClient(values.prometheus, values.socket),
    from: to - number('minutes') * 60_000,
    to,
    scrape: number('scrape'),
    ...(values.instance === undefined ? {} : { instance: values.instance }),
  });
  writeFileSync(out, html);
  const empty = data.filter((one) => one.empty).map(({ panel }) => panel.title);
  console.log(`${out}: ${data.length} panels${empty.length > 0 ? `, empty: ${empty.join(', ')}` : ''}`);
  if (values.queries) {
    for (const { panel, answers } of data)
      for (const { expression } of answers.filter((one) => one.empty)) console.log(`${panel.title}: ${expression}`);
  }
  return empty.length > 0 ? 1 : 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main().then(
    (code) => {
      process.exitCode = code;
    },
    (error: Error) => {
      console.error(error.message);
      process.exitCode = 2;
    },
  );
}
