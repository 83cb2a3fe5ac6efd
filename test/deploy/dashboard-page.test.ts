/** The dashboard drawn without Grafana (race/dashboard): units, axes, tables, histograms, the page, and what can go wrong. */
import { spawn } from 'node:child_process';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import type { Panel, Target } from '../../race/dashboard/dashboard.js';
import { type Answered, bucketsOf, type PanelData, tableOf } from '../../race/dashboard/data.js';
import { PrometheusClient, type Series } from '../../race/dashboard/prometheus.js';
import { axisFor, onAxis, withUnit } from '../../race/dashboard/units.js';
import { drawStats } from '../../race/dashboard/values.js';

const PANELS = fileURLToPath(new URL('../../race/dashboard/panels.js', import.meta.url));

t.test('units', async (t) => {
  const texts: [number, string, string][] = [
    [0, 'bps', '0 b/s'],
    [999, 'bps', '999 b/s'],
    [999.99, 'bps', '1 kb/s'],
    [16_200_000_000, 'bps', '16.2 Gb/s'],
    [252_128, 'pps', '252 k p/s'],
    [0.25, 'pps', '0.25 p/s'],
    [1536, 'bytes', '1.5 KiB'],
    [1024 ** 2 * 85.8, 'bytes', '85.8 MiB'],
    [0.0000345, 's', '34.5 µs'],
    [0.0425, 's', '42.5 ms'],
    [59.4, 's', '59.4 s'],
    [600, 's', '10 min'],
    [86_400, 's', '24 h'],
    [-15, 's', '-15 s'],
    [0.905, 'percentunit', '90.5 %'],
    [1500, 'short', '1.5 k'],
    [1450, 'none', '1450'],
    [1, 'bool_yes_no', 'Yes'],
    [1_700_000_000_000, 'dateTimeAsIso', '2023-11-14 22:13 UTC'],
    [Number.NaN, 'pps', '–'],
    [Number.POSITIVE_INFINITY, 's', '+Inf'],
  ];
  for (const [value, unit, text] of texts) t.equal(withUnit(value, unit), text, `${value} ${unit}`);
  t.equal(withUnit(0.0312, 'percentunit', 2), '3.12 %');
  t.throws(() => withUnit(1, 'furlongs'), /furlongs/);
});

t.test('axes', async (t) => {
  t.same(axisFor(0, 2.8e9, 4, 'bps'), { min: 0, max: 3e9, interval: 1e9 });
  t.same(axisFor(-2.2e5, 2.4e5, 4, 'pps'), { min: -4e5, max: 4e5, interval: 2e5 });
  t.same(axisFor(0, 0, 4, 'pps'), { min: 0, max: 1, interval: 0.5 }, 'all is 0');
  t.same(axisFor(0, 1, 4, 'short', true), { min: 0, max: 1, interval: 1 }, 'whole numbers');
  t.same(axisFor(0, 1, 5, 'percentunit'), { min: 0, max: 1, interval: 0.2 });
  t.same(axisFor(0, 95 * 2 ** 20, 4, 'bytes'), { min: 0, max: 96 * 2 ** 20, interval: 32 * 2 ** 20 });
  const minutes = axisFor(0, 290, 4, 's');
  t.same(minutes, { min: 0, max: 360, interval: 120 });
  t.equal(onAxis(240, minutes, 's'), '4 min');
  t.equal(onAxis(0.05, axisFor(0, 0.2, 4, 's'), 's'), '50 ms');
  for (const high of [1e-9, 0.003, 0.7, 1, 3.3, 99, 1e5, 3.2e9, 1e15])
    for (const unit of ['s', 'bytes', 'bps', 'percentunit']) {
      const { min, max, interval } = axisFor(0, high, 5, unit);
      t.ok(min === 0 && max >= high && max / interval <= 7 && max / interval >= 1, `${high} ${unit} is on its axis`);
    }
});

const series = (labels: Record<string, string>, ...values: number[]): Series => ({
  labels,
  points: values.map((value, i) => [i * 1000, value] as const),
});

const target = (refId: string): Target => ({ refId, expr: '', legendFormat: '', format: 'table' });

function panelData(transformations: Panel['transformations'], ...answers: readonly Series[][]): PanelData {
  const panel: Panel = {
    ...{ id: 1, type: 'table', title: 'x', gridPos: { x: 0, y: 0, w: 1, h: 1 } },
    ...(transformations ? { transformations } : {}),
  };
  const all = answers.map((one, i): Answered => {
    return { target: target('AB'[i]), expression: '', series: one, empty: false };
  });
  return { panel, answers: all, empty: false };
}

t.test('tables', async (t) => {
  const merged = panelData(
    [
      { id: 'merge', options: {} },
      {
        id: 'organize',
        options: {
          excludeByName: { version: true },
          indexByName: { instance: 0, 'Value #B': 1, 'Value #A': 2 },
          renameByName: { 'Value #B': 'since' },
        },
      },
    ],
    [series({ instance: 'a', version: '1' }, 5), series({ instance: 'b', version: '2' }, 6)],
    [series({ instance: 'a' }, 7), series({ instance: 'c' }, 8)],
  );
  t.same(tableOf(merged), {
    columns: ['instance', 'since', 'Value #A'],
    rows: [
      ['a', 7, 5],
      ['b', undefined, 6],
      ['c', 8, undefined],
    ],
  });
  const matrix = panelData(
    [
      {
        id: 'groupingToMatrix',
        options: { rowField: 'instance', columnField: 'offload', valueField: 'Value' },
      },
    ],
    [series({ instance: 'a', offload: 'gro' }, 0, 1), series({ instance: 'a', offload: 'uso' }, 1, 0)],
  );
  t.same(tableOf(matrix), { columns: ['instance\\offload', 'gro', 'uso'], rows: [['a', 1, 0]] });
  t.throws(() => tableOf(panelData([{ id: 'sing', options: {} }], [])), /sing/);
});

t.test('histograms', async (t) => {
  const found = bucketsOf(
    [series({ le: '+Inf' }, 10, 12), series({ le: '2' }, 4, 4), series({ le: '16' }, 9, 12)],
    1,
    0,
    1000,
  );
  t.same(found.bounds, ['2', '16', 'more'], 'by size and not by name');
  t.same(
    found.columns.map(({ values }) => values),
    [
      [4, 5, 1],
      [4, 8, 0],
    ],
  );
});

/** A stand-in for Prometheus that answers every query alike, and has one instance. */
async function answering(status: number, body: string): Promise<{ url: string; asked: string[]; close(): void }> {
  const asked: string[] = [];
  const names = JSON.stringify({ status: 'success', data: ['a.b:9469'] });
  const server = createServer(({ url = '' }, response) => {
    asked.push(decodeURIComponent(url));
    response.writeHead(status).end(url.startsWith('/api/v1/label/') ? names : body);
  }).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    close: () => server.close(),
  };
}

function panels(...args: string[]): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [PANELS, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
    child.on('close', (code) => resolve({ code, text: text.trim() }));
  });
}

t.test('what Prometheus may say', async (t) => {
  const page = join(t.testdir(), 'page.html');
  const nobody = await answering(200, '');
  nobody.close();
  const gone = await panels('--prometheus', nobody.url, '--out', page);
  t.equal(gone.code, 2);
  t.match(gone.text, /^can't ask Prometheus at 127\.0\.0\.1:\d+: .*ECONNREFUSED.*: does it run there\?$/);
  t.match(await panels('--prometheus', nobody.url), { code: 2, text: /^--out is missing/ });

  const other = await answering(404, '<h1>not found</h1>');
  await t.rejects(new PrometheusClient(other.url).query('up'), /answers up with 404 and no JSON$/);
  other.close();
  const refusing = await answering(400, '{"status":"error","errorType":"bad_data","error":"parse error"}');
  await t.rejects(new PrometheusClient(refusing.url).query('up('), /^Prometheus refuses up\(: parse error$/);
  refusing.close();

  const silent = await answering(200, '{"status":"success","data":{"resultType":"vector","result":[]}}');
  const empty = await panels('--prometheus', silent.url, '--out', page);
  silent.close();
  t.equal(empty.code, 1, 'empty panels are named');
  t.match(empty.text, /empty: Forwarding, Registry, /);
  const queries = silent.asked.filter((url) => url.includes('query='));
  t.ok(queries.length > 40 && queries.every((url) => url.includes('instance=~"a\\\\.b:9469"')), 'all are ours');
});

t.test('what daemons may be called', async (t) => {
  const named = panelData(undefined, [series({ instance: '<script>"&' }, 1)]);
  const answers = named.answers.map((one) => ({ ...one, target: { ...one.target, legendFormat: '{{instance}}' } }));
  t.match(
    drawStats({ ...named, answers }),
    '<span>&lt;script&gt;&quot;&amp;</span>',
    'is text on the page and nothing else',
  );
});
