/** deploy/grafana: every query names what a daemon really serves, and every panel says what it shows, and in which unit. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { allPanels, anyOf, drawnPanels, fillIn, readDashboard } from '../../race/dashboard/dashboard.js';
import { KNOWN_UNITS } from '../../race/dashboard/units.js';
import { DEPLOY } from '../lib/prometheus.js';
import { askedBy, notServed } from '../lib/promql.js';
import { everythingServed } from '../lib/served.js';

const dashboard = readDashboard();
const panels = drawnPanels(dashboard);
const served = await everythingServed();

/** That a metric which others serve, too, is asked only of weftd: `process_…`, `nodejs_…`. */
const OURS = /and on \(job, instance\) weft_build_info\{/g;

/** Metrics of an expression that another job's daemons on the same host, or of the same name, may have. */
function unguarded(expr: string): string[] {
  const foreign = askedBy(expr)
    .selectors.map(({ metric }) => metric)
    .filter((metric) => !metric.startsWith('weft_'));
  return foreign.slice(expr.match(OURS)?.length ?? 0);
}

const labelsIn = (legend: string): string[] => [...legend.matchAll(/\{\{\s*(\w+)\s*\}\}/g)].map((match) => match[1]);

t.test('queries', async (t) => {
  t.ok(panels.length > 30, `${panels.length} panels`);
  for (const { title, targets = [] } of panels) {
    t.ok(targets.length > 0, `${title} asks something`);
    t.equal(
      new Set(targets.map(({ refId }) => refId)).size,
      targets.length,
      `${title}: each query has a letter of its own`,
    );
    for (const { expr, legendFormat } of targets) {
      t.same(notServed(expr, labelsIn(legendFormat), served), [], `${title}: ${expr}`);
      for (const { metric, matchers } of askedBy(expr).selectors)
        t.ok(
          matchers.some(({ label, value }) => label === 'instance' && value === '$instance'),
          `${title}: ${metric} is that of the instances chosen`,
        );
      t.same(unguarded(expr), [], `${title}: no other job's`);
      const filled = fillIn(expr, { instance: '.*', rateInterval: 20, range: 900 });
      t.notMatch(filled, '$', `${title}: no variable that Grafana would not fill in`);
    }
  }
});

t.test('annotations and variables ask only for ours', async (t) => {
  const annotations = dashboard.annotations.list.filter(({ expr }) => expr !== undefined);
  t.same(
    annotations.map(({ name }) => name),
    ['Restarts'],
  );
  for (const { name, expr = '' } of annotations) {
    t.same(notServed(expr, ['instance'], served), [], `${name}: ${expr}`);
    t.same(unguarded(expr), [], `${name}: no other job's`);
    for (const { metric, matchers } of askedBy(expr).selectors)
      t.match(
        matchers,
        [{ label: 'instance', value: '$instance' }],
        `${name}: ${metric} is that of the instances chosen`,
      );
  }
  const [, instance] = dashboard.templating.list;
  const { query } = instance.query as { query: string };
  const [, metric, label] = /^label_values\((\w+), (\w+)\)$/.exec(query) ?? [];
  t.match(metric, /^weft_/, `only our instances can be chosen: ${query}`);
  t.same(notServed(metric, [label], served), []);
  t.notOk('allValue' in instance, '"All" stands for these, and not for every instance of every job');
  t.equal(anyOf(['a.b:9469', 'c+d']), 'a\\\\.b:9469|c\\\\+d', 'names are no patterns');
});

t.test('what the queries leave out', async (t) => {
  const asked = new Set(
    panels
      .flatMap(({ targets = [] }) => targets.flatMap(({ expr }) => askedBy(expr).selectors))
      .map(({ metric }) => metric),
  );
  const left = [...served.samples.keys()].filter((name) => name.startsWith('weft_') && !asked.has(name));
  // What else there is to say of a histogram, and what another panel says better.
  t.same(
    left.sort(),
    [
      'weft_batch_size_count',
      'weft_batch_size_sum',
      'weft_message_datagrams_count',
      'weft_message_datagrams_sum',
      'weft_registry_last_applied_timestamp_seconds',
    ],
    'no metric of ours is forgotten',
  );
});

t.test('the test itself notices what is wrong', async (t) => {
  const wrong = (expr: string, ...labels: string[]): number => notServed(expr, labels, served).length;
  t.equal(wrong('sum by (instance) (rate(weft_packets_total{stage=~"socket_sent|icmp_made"}[1m]))', 'instance'), 0);
  t.equal(wrong('weft_packet_total'), 1, 'a metric');
  t.equal(wrong('weft_drops_total{stage="short"}'), 1, 'a label');
  t.equal(wrong('weft_drops_total{reason="shorter"}'), 1, 'a value');
  t.equal(wrong('weft_drops_total{reason=~"short|shorter"}'), 1, 'one value of several');
  t.equal(wrong('weft_drops_total{reason="no_route", direction="inbound"}'), 2, 'values that do not come together');
  t.equal(wrong('sum by (reson) (weft_drops_total)'), 1, 'a label to group by');
  t.equal(wrong('weft_peers', 'peer'), 1, 'a label of the legend');
  t.equal(wrong('1 + 1'), 1, 'nothing at all');
  t.same(unguarded('weft_peers + process_cpu_seconds_total'), ['process_cpu_seconds_total'], "another job's");
});

t.test('panels', async (t) => {
  const all = allPanels(dashboard);
  t.equal(new Set(all.map(({ id }) => id)).size, all.length, 'no number twice');
  t.equal(new Set(all.map(({ title }) => title)).size, all.length, 'no title twice');
  for (const { title, description = '', fieldConfig, gridPos } of panels) {
    t.match(description, /^[A-Z"].{10,}\.$/s, `${title} has a description: a sentence`);
    t.ok(KNOWN_UNITS.includes(fieldConfig?.defaults.unit ?? ''), `${title} has a unit: ${fieldConfig?.defaults.unit}`);
    t.ok(gridPos.x >= 0 && gridPos.x + gridPos.w <= 24 && gridPos.h > 2, `${title} is on the page`);
  }
  const taken = new Map<string, string>();
  for (const { title, gridPos } of all) {
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++)
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
        const before = taken.get(`${x},${y}`);
        if (before !== undefined) t.fail(`${title} lies over ${before}`);
        taken.set(`${x},${y}`, title);
      }
  }
});

t.test('Grafana finds its way', async (t) => {
  t.match(dashboard, { uid: 'weft', title: 'Weft' });
  t.ok(dashboard.schemaVersion >= 39, "Grafana 11's schema");
  t.same(
    dashboard.templating.list.map(({ name, type }) => [name, type]),
    [
      ['datasource', 'datasource'],
      ['instance', 'query'],
    ],
  );
  const sources = [...JSON.stringify(dashboard).matchAll(/"type":"prometheus","uid":"([^"]*)"/g)].map(([, uid]) => uid);
  t.ok(sources.length > panels.length);
  for (const uid of new Set(sources)) t.match(uid, /^\$\{datasource\}$/, 'no data source but the one that is chosen');
  const folder = join(DEPLOY, 'grafana', 'provisioning');
  const provisioned = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) =>
    file.endsWith('.yml'),
  );
  t.equal(provisioned.length, 2);
  t.match(readFileSync(join(folder, 'datasources', 'prometheus.yml'), 'utf8'), /type: prometheus\n.*\n.*:9090$/m);
});
