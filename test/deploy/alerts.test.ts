/** deploy/prometheus: what promtool says, and that every alert names what a daemon serves, helps, and is tested. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { DEPLOY, prometheusMissing } from '../lib/prometheus.js';
import { askedBy, notServed } from '../lib/promql.js';
import { everythingServed } from '../lib/served.js';

const folder = join(DEPLOY, 'prometheus');
const text = readFileSync(join(folder, 'alerts.yml'), 'utf8');
const tests = readFileSync(join(folder, 'alerts.test.yml'), 'utf8');

/** A key's value, folded lines as one; only as much of YAML as the file uses. */
function readKey(block: string, key: string): string {
  const [, indent, first] = new RegExp(`^( *)${key}: (.*)$`, 'm').exec(block) ?? [];
  if (first !== '>-') return (first ?? '').replace(/^"(.*)"$/, '$1');
  const from = block
    .slice(block.indexOf(`${key}: >-`))
    .split('\n')
    .slice(1);
  const end = from.findIndex((line) => line.search(/\S/) <= indent.length);
  return from
    .slice(0, end < 0 ? undefined : end)
    .map((line) => line.trim())
    .join(' ');
}

const alerts = text
  .split(/^ {6}- alert: /m)
  .slice(1)
  .map((block) => {
    const get = (key: string): string => readKey(block, key);
    return {
      name: block.slice(0, block.indexOf('\n')),
      expr: get('expr'),
      severity: /severity: (\w+)/.exec(block)?.[1],
      summary: get('summary'),
      description: get('description'),
      runbook: get('runbook'),
    };
  });

/** What Prometheus itself says of a scrape. */
const PROMETHEUS_OWN = /\b(up|scrape_duration_seconds)\b/;

/** Where GitHub puts a heading. */
const anchor = (heading: string): string =>
  heading
    .toLowerCase()
    .replaceAll(/[^\w\- ]/g, '')
    .replaceAll(' ', '-');

t.test('promtool', async (t) => {
  const why = prometheusMissing();
  if (why) {
    t.comment(`SKIPPED: ${why}`);
    return;
  }
  for (const args of [
    ['check', 'rules', 'alerts.yml'],
    ['check', 'config', 'prometheus.yml'],
    ['test', 'rules', 'alerts.test.yml'],
  ]) {
    const { status, stdout, stderr } = spawnSync('promtool', args, { cwd: folder, encoding: 'utf8' });
    t.equal(status, 0, `promtool ${args.join(' ')}: ${status === 0 ? 'no complaints' : stdout + stderr}`);
  }
});

t.test('each alert', async (t) => {
  const served = await everythingServed();
  const operations = readFileSync(join(DEPLOY, '..', 'docs', 'operations.md'), 'utf8');
  const chapters = [...operations.matchAll(/^#{2,3} (.*)$/gm)].map(([, heading]) => anchor(heading));
  t.ok(alerts.length >= 20, `${alerts.length} alerts`);
  t.equal(new Set(alerts.map(({ name }) => name)).size, alerts.length, 'no name twice');
  for (const { name, expr, severity, summary, description, runbook } of alerts) {
    t.match(name, /^Weft[A-Z]/);
    t.ok(['critical', 'warning', 'info'].includes(severity ?? ''), `${name} is ${severity}`);
    const labels = [...`${summary} ${description}`.matchAll(/\$labels\.(\w+)/g)].map((match) => match[1]);
    const own = PROMETHEUS_OWN.test(expr);
    if (!own) t.same(notServed(expr, labels, served), [], `${name}: ${expr}`);
    for (const { metric, matchers } of askedBy(expr).selectors)
      t.ok(
        metric.startsWith('weft_') || matchers.some(({ label, value }) => label === 'job' && value === 'weft'),
        `${name}: ${metric} is no other job's`,
      );
    for (const [, minutes, unit] of expr.matchAll(/\[(\d+)(\w)\]/g))
      t.ok(unit === 'm' && Number(minutes) >= 5, `${name}: ${minutes}${unit} have two samples and more`);
    t.match(`${description} `, /`[^`]+`|\blog\b|--[a-z]/, `${name} says where to look`);
    const [file, chapter] = runbook.split('#');
    t.equal(file, 'docs/operations.md', name);
    t.ok(chapters.includes(chapter), `${name}: there is a chapter ${chapter}`);
  }
});

t.test('each alert is seen to fire', async (t) => {
  for (const { name } of alerts) t.match(tests, `alertname="${name}"`, name);
  t.ok((tests.match(/exp_samples: \[\]/g) ?? []).length >= alerts.length, 'and to be silent');
});
