/** A race as readers see it: what the table and the chart say is what the race's JSON says, and nothing of the machine's own. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { TONES } from '../../race/chart.js';
import { checkFolder, checkReadme, parseRace, publish, publishTo, type Race } from '../../race/publish/publish.js';
import { subjectsOf } from '../../race/publish/table.js';
import { Results, ROWS } from '../../race/report.js';
import { checkXml } from '../lib/xml.js';

const BEGIN = '<!-- race: begin -->';
const END = '<!-- race: end -->';
const SUBJECTS = [
  'direct',
  'weft-udp',
  'kernel-vxlan',
  'weft-vxlan',
  'fastd',
  'tinc',
  'openvpn',
  'wireguard-go',
  'ovs',
];
const MEASURES = ['bulk', 'pps64', 'imix', 'ping', 'rr', 'cpu'];
const PRIVATE = ['/home/alice/x.json', '/srv/secret/socket', 'alice'];

/** Something that is different for each row, subject and round, and larger for later subjects. */
const figureOf = (row: number, subject: number, round: number): number =>
  [16.25, 1234.5, 250_000, 97.5][row % 4] * (1 + subject / 4) + round * (1 + row);

interface Given {
  readonly subjects?: readonly string[];
  readonly measures?: readonly string[];
  readonly rounds?: number;
  /** Instead of the figure; undefined: the figure. */
  readonly change?: (measure: string, subject: string, round: number) => number | null | undefined;
  readonly setup?: object;
}

function textOf({ subjects = SUBJECTS, measures = MEASURES, rounds = 3, change, setup = {} }: Given = {}): string {
  const results = new Results();
  for (const [r, { measure, by }] of ROWS.entries()) {
    if (!measures.includes(by)) continue;
    for (const [s, subject] of subjects.entries()) {
      for (let round = 0; round < rounds; round++) {
        const changed = change?.(measure, subject, round);
        results.add(measure, subject, round, changed === undefined ? figureOf(r, s, round) : changed);
      }
    }
  }
  if (measures.includes('pps64')) results.markSenderBound('pps64', subjects[0]);
  return results.json({
    date: '2026-11-21T06:59:14.522Z',
    options: { subjects, measures, rounds, seconds: 3, weftArgs: [], json: PRIVATE[0], ...setup },
    versions: {
      kernel: '6.18.44',
      node: 'v20.20.2',
      weft: '0.1.0, commit abcdef',
      iperf3: 'iperf 3.12 (cJSON 1.7.15)',
    },
    processors: { count: 2, model: 'AMD EPYC' },
    load: [0.25, 1, 2],
    load_after_each_round: [1.5, 2.5],
    'ip -d link': { a: '1: lo: <LOOPBACK> mtu 65536\n    link/ether 02:00:00:00:00:01' },
    note: `listens at ${PRIVATE[1]}`,
  });
}

const raceOf = (given?: Given): Race => parseRace(textOf(given));

function published(t: Test, race: Race): { md: string; svg: string } {
  const dir = t.testdir();
  publishTo(race, dir);
  const read = (name: string): string => readFileSync(join(dir, name), 'utf8');
  t.same(parseRace(read('race.json')), race, 'the JSON is the race');
  return { md: read('race.md'), svg: read('race.svg') };
}

/** The cells of all tables by title of the row and subject. */
function cellsOf(md: string): Map<string, Map<string, string>> {
  const split = (line: string): string[] =>
    line
      .slice(1, -1)
      .split('|')
      .map((one) => one.trim());
  const cells = new Map<string, Map<string, string>>();
  for (const [head, , ...lines] of tablesOf(md)) {
    const [, , ...subjects] = split(head).map((one) => one.replaceAll('`', ''));
    for (const line of lines) {
      const [title, , ...figures] = split(line);
      const row = cells.get(title) ?? new Map<string, string>();
      cells.set(title, row);
      for (const [i, figure] of figures.entries()) row.set(subjects[i], figure);
    }
  }
  return cells;
}

const tablesOf = (md: string): string[][] =>
  md.split('\n\n').flatMap((part) => (part.startsWith('|') ? [part.trim().split('\n')] : []));

const numberIn = (text: string): number => Number(text.replaceAll(/[,*]/g, ''));

t.test('the table says what the JSON says', async (t) => {
  const race = raceOf();
  const { md } = published(t, race);
  const cells = cellsOf(md);
  t.equal(cells.size, ROWS.length);
  for (const { measure, title, better, digits } of ROWS) {
    const rows = race.rows.filter((row) => row.measure === measure);
    const overlays = rows.filter(({ subject }) => subject !== 'direct').map(({ median }) => median as number);
    const best = better === 'higher' ? Math.max(...overlays) : Math.min(...overlays);
    for (const row of rows) {
      const cell = cells.get(title)?.get(row.subject) ?? '';
      const parts = /^(\**[\d,.]+\**)(?: \(([\d.]+)\))?( [†‡§]+)?$/.exec(cell);
      if (!t.ok(parts, `${measure} ${row.subject}: "${cell}"`) || !parts) continue;
      const [, figure, ratio, marks = ''] = parts;
      t.ok(
        Math.abs(numberIn(figure) - (row.median as number)) <= 0.5 * 10 ** -digits + 1e-9,
        `${cell} is ${row.median}`,
      );
      if (row.subject === 'kernel-vxlan') t.equal(ratio, undefined);
      else t.equal(ratio, row.ratio_to_kernel_vxlan?.toFixed(2));
      t.equal(
        figure.startsWith('**'),
        row.subject !== 'direct' && row.median === best,
        `${measure} ${row.subject}: bold`,
      );
      t.equal(marks.includes('†'), row.generator_limited);
      t.equal(marks.includes('‡'), row.sender_bound);
      t.notOk(marks.includes('§'));
    }
  }
  t.match(
    md,
    /AMD EPYC, two processors, Linux 6\.18\.44; 2026-11-21 06:59 UTC; load average 0\.3 before, 1\.5 to 2\.5 after/,
  );
  t.match(md.replaceAll('\n', ' '), 'Weft 0.1.0, commit abcdef; node 20.20.2; iperf3 3.12.');
  t.match(
    md,
    `    sudo npm run race -- --subjects ${SUBJECTS.slice(1).join(',')} --measures ${MEASURES.join(',')} --rounds 3 --seconds 3\n`,
  );
  t.notMatch(md, 'Not the whole race');
  t.equal(tablesOf(md).length, 2, 'what does not fit beside each other is in a second table');
  for (const lines of tablesOf(md)) {
    t.equal(new Set(lines.map((line) => line.length)).size, 1, 'its source is aligned');
  }
  const few = published(t, raceOf({ subjects: ['direct', 'weft-udp', 'kernel-vxlan'] }));
  t.equal(tablesOf(few.md).length, 1);
});

t.test('what is missing is said', async (t) => {
  const part = published(t, raceOf({ measures: ['bulk', 'ping'], setup: { subjects: SUBJECTS, rounds: 7 } }));
  t.match(part.md, /\*\*Not the whole race:\*\* not measured: pps64, imix, rr, cpu; ended after 3 of 7 rounds\./);
  t.match(part.md, '--measures bulk,ping');

  const failing = raceOf({
    change: (measure, subject, round) =>
      (measure === 'ping' && subject === 'fastd') || (measure === 'rr' && subject === 'weft-udp' && round === 1)
        ? null
        : undefined,
  });
  const { md, svg } = published(t, failing);
  const cells = cellsOf(md);
  t.equal(cells.get('ping every 2 ms, median')?.get('fastd'), 'failed');
  t.match(cells.get('TCP request/response, median')?.get('weft-udp'), /\(\d\.\d\d\) §$/);
  const said = md.replaceAll('\n', ' ');
  t.match(said, 'ping of fastd failed in three of three rounds');
  t.match(said, 'rr of weft-udp failed in one of three rounds');
  checkXml(t, svg);

  const setup = parseRace(textOf()).setup;
  const left = { setup: { ...setup, left_out: ['ovs: not installed'] }, rows: failing.rows };
  t.match(published(t, left).md.replaceAll('\n', ' '), 'left out: ovs: not installed');

  t.throws(() => parseRace(textOf({ change: () => null })), { message: 'the race has no figures: nothing to publish' });
  t.throws(() => parseRace('{"setup":{}}\n', 'x.json'), {
    message: /^x\.json, line 1, is not what npm run race -- --json writes: .+$/,
  });
  t.throws(() => parseRace(`${textOf()}{"subject":1}\n`), { message: /^the race, line \d+, is not/ });
  t.throws(() => parseRace('hello'), { message: /^the race, line 1, is not/ });
});

/** Widths of the filled bars, in the order of the panels and their subjects; without those of nothing. */
const barsOf = (svg: string): { width: number; fill: string }[] =>
  [...svg.matchAll(/<path d="M[\d.]+ [\d.]+l([\d.]+) 0l0 -?[\d.]+l-[\d.]+ 0Z" fill="(#\w+)"/g)].flatMap(
    ([, width, fill]) => ((Object.values(TONES) as string[]).includes(fill) ? [{ width: Number(width), fill }] : []),
  );

t.test('the chart says what the JSON says', async (t) => {
  const race = raceOf();
  const { svg } = published(t, race);
  checkXml(t, svg);
  t.ok(svg.length < 60_000, `${svg.length} bytes`);
  t.match(svg, /<rect [^>]*fill="#ffffff"/, 'opaque, so that it can be read on a dark page');
  t.notMatch(svg, /<style|class=|zr\d|font-family:/);
  const bars = barsOf(svg);
  t.equal(bars.length, race.rows.length);
  let at = 0;
  for (const { measure, title } of ROWS) {
    t.match(svg, `>${title}</text>`);
    const medians = subjectsOf(race.rows).map(
      (name) => race.rows.find((row) => row.subject === name && row.measure === measure)?.median ?? 0,
    );
    const widths = bars.slice(at, at + medians.length).map(({ width }) => width);
    at += medians.length;
    const scale = widths[widths.length - 1] / medians[medians.length - 1];
    for (const [i, median] of medians.entries()) {
      t.ok(Math.abs(widths[i] - median * scale) < 0.3, `${measure}: ${widths[i]} px for ${median}`);
    }
  }
  t.equal(bars.filter(({ fill }) => fill === TONES.kernel).length, ROWS.length);
  t.equal(published(t, race).svg, svg, 'the same race, the same text');
});

t.test("between the README's markers", async (t) => {
  const root = t.testdir({ 'README.md': `# Weft\n\nBefore.\n\n${BEGIN}\nOld.\n${END}\n\nAfter.\n` });
  checkReadme(root);
  const race = raceOf();
  const readAll = (): Record<string, string> =>
    Object.fromEntries(files.map((file) => [file, readFileSync(join(root, file), 'utf8')]));
  const files = publish(race, root);
  t.same(files, ['README.md', 'docs/race.svg', 'race/results/2026-11-21T065914Z.json']);
  const first = readAll();
  const readme = first['README.md'];
  t.ok(readme.startsWith(`# Weft\n\nBefore.\n\n${BEGIN}\n<!-- Made by `));
  t.ok(readme.endsWith(`\n${END}\n\nAfter.\n`));
  t.match(readme, '](docs/race.svg)');
  t.notMatch(readme, 'Old.');
  t.same(parseRace(first[files[2]]), race);
  publish(parseRace(first[files[2]]), root);
  t.same(readAll(), first, 'published again from what was kept: nothing changes');
  for (const text of Object.values(first)) for (const secret of PRIVATE) t.notOk(text.includes(secret), secret);
  t.match(first[files[2]], 'link/ether', 'what only looks like a path stays');

  for (const wrong of [
    '',
    `${BEGIN}\n`,
    `${END}\n${BEGIN}\n`,
    `${BEGIN}\n${END}\n${BEGIN}\n${END}\n`,
    `${BEGIN}${END}${END}`,
  ]) {
    writeFileSync(join(root, 'README.md'), wrong);
    t.throws(() => checkReadme(root), { message: /^README\.md has no place for the race: .+$/ });
    t.throws(() => publish(race, root), { message: /^README\.md has no place/ });
    t.equal(readFileSync(join(root, 'README.md'), 'utf8'), wrong, 'left alone');
  }
});

t.test('a folder that cannot be written to', async (t) => {
  const dir = t.testdir({ file: '' });
  checkFolder(join(dir, 'new'));
  t.same(readdirSync(dir), ['file', 'new']);
  t.throws(() => checkFolder(join(dir, 'file')), { message: /^--publish-to .*file: .+$/ });
});

t.test('by the command, from a file', async (t) => {
  const dir = t.testdir({ 'race.json': textOf() });
  mkdirSync(join(dir, 'out'));
  const program = fileURLToPath(new URL('../../race/race.js', import.meta.url));
  const run = (...args: string[]): { status: number | null; stderr: string } =>
    spawnSync(process.execPath, [program, ...args], { encoding: 'utf8', cwd: dir, timeout: 60_000 });
  const done = run('--from', 'race.json', '--publish-to', 'out');
  t.equal(done.status, 0, done.stderr);
  t.same(readdirSync(join(dir, 'out')).sort(), ['race.json', 'race.md', 'race.svg']);
  t.same(parseRace(readFileSync(join(dir, 'out/race.json'), 'utf8')), raceOf());

  const missing = run('--from', 'nothing.json', '--publish-to', 'out');
  t.not(missing.status, 0);
  t.match(missing.stderr, /^race: .*nothing\.json/);
  t.notMatch(missing.stderr, /\n {4}at /, 'one line, no stack');
});
