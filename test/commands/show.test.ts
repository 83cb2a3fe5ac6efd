/** What commands of `weft` print: quantities, tables, what was asked for of a list, and rates. */
import t from 'tap';
import { ratesOf } from '../../src/commands/rates.js';
import { bytes, count, duration, endpoint, perSecond, shortTime } from '../../src/commands/text/format.js';
import { COLOURS, jsonText } from '../../src/commands/text/output.js';
import { cut } from '../../src/commands/text/screen.js';
import { clean, table } from '../../src/commands/text/table.js';
import { topText } from '../../src/commands/top.js';
import { matching } from '../../src/commands/view.js';
import type { CountersAnswer, DropEntry, Traffic } from '../../src/inspect/protocol.js';

t.test('quantities', async (t) => {
  t.same([0, 12, 1234567].map(count), ['0', '12', '1,234,567']);
  t.same([0, 999, 1000, 1234, 12_345, 123_456, 999_600, 1e9].map(bytes), [
    '0 B',
    '999 B',
    '1.00 kB',
    '1.23 kB',
    '12.3 kB',
    '123 kB',
    '1.00 MB',
    '1.00 GB',
  ]);
  t.same(
    [0, 0.4, 3, 1500].map(perSecond),
    ['0/s', '0.40/s', '3.0/s', '1.50 k/s'],
    'a packet in two seconds is not none',
  );
  t.same([0, 0.4, 59.6, 185, 7200, 90_061, 86_400 * 400].map(duration), [
    '0 s',
    '0 s',
    '1 min',
    '3 min 5 s',
    '2 h',
    '1 d 1 h',
    '400 d',
  ]);
  t.equal(duration(3605), '1 h', 'never more than two units, and those beside each other');
  t.same([2.5, 0.0012, 0.00004].map(shortTime), ['2.5 s', '1.2 ms', '40 µs']);
  t.equal(endpoint('fd00::1', 8472), '[fd00::1]:8472');
  t.equal(endpoint('10.0.0.1', null), '10.0.0.1');
  t.equal(endpoint('10.0.0.1', 0), '10.0.0.1', 'nothing is encapsulated to there');
});

t.test('JSON', async (t) => {
  const value = { name: 'a\u009b2J\u202e\x7f\u2028b\u{e0001}c\x1b', more: ['é', 1] };
  const text = jsonText(value);
  t.same(JSON.parse(text), value, 'says the same');
  t.notMatch(text, /[\p{Cc}\p{Cf}\u2028]/u, 'and is no instruction to a terminal');
  t.match(text, 'é', 'and is readable');
});

t.test('tables', async (t) => {
  const columns = [{ title: 'NAME' }, { title: 'N', align: 'right' }, { title: 'WHAT' }] as const;
  t.equal(
    table(columns, [
      ['a', '1,000', 'first'],
      ['longer', '2', ''],
    ]),
    'NAME        N  WHAT\na       1,000  first\nlonger      2\n',
    'aligned, and no line ends with a space',
  );
  const coloured = table(columns, [['a', ['7', 'red'], 'x']], COLOURS);
  t.match(coloured, '\x1b[31m7\x1b[0m');
  const plain = table(columns, [['a', '7', 'x']]);
  t.equal(coloured.replaceAll(/\p{Cc}\[\d+m/gu, ''), plain, 'colours take no place');
  t.equal(clean('a\x1b[2Jb\nc\u202ed'), 'a?[2Jb?c?d', 'a name is no instruction to a terminal');
  t.equal(table([{ title: 'X' }], [['a\x1b[2J']]), 'X\na?[2J\n');
});

t.test('what was asked for of a list', async (t) => {
  const entries = [
    { name: 'b', prefix: '10.5.2.0/24', address: '192.168.77.2', macs: [] },
    { name: 'c', prefix: '10.5.0.0/16', address: '192.168.77.3', macs: ['02:00:00:00:00:0A'] },
    { name: '10', prefix: 'fd00:5::/48', address: 'fd77::3', macs: [] },
  ];
  const found = (...wanted: string[]): string[] => matching(entries, wanted).map(({ name }) => name);
  t.same(found(), ['b', 'c', '10'], 'nothing said: all of them');
  t.same(found('b'), ['b'], 'a whole value: the b of an address is none');
  t.same(found('10.5.2.7'), ['b', 'c'], 'prefixes that have an address');
  t.same(found('10.5.2.0/25'), ['b', 'c'], 'and a prefix');
  t.same(found('10.5.0.0/16'), ['b', 'c'], 'and those in it');
  t.same(found('10.5.2.9/24'), ['b', 'c'], 'with bits beyond its length');
  t.same(found('fd00:5:0:7::1'), ['10']);
  t.same(found('02:00:00:00:00:0a'), ['c'], 'in either case');
  t.same(found('b', '192.168.77.3'), ['b', 'c'], 'one of several');
  t.same(found('192.168.77'), [], 'no part of a value');
});

const traffic = (packetsOut: number, bytesOut = 0): Traffic => ({ packetsOut, bytesOut, packetsIn: 0, bytesIn: 0 });
const drop = (reason: string, packets: number): DropEntry => ({
  direction: 'outbound',
  by: 'engine',
  reason,
  packets,
  meaning: 'why',
  device: null,
});

function look(monotonic: number, sent: number, peers: Record<string, Traffic>, dropped: Record<string, number>) {
  const counters: CountersAnswer = {
    monotonic,
    counters: { 'outbound.socket_sent': sent, 'outbound.socket_sent_bytes': sent * 1000 },
    peers: Object.entries(peers).map(([name, one]) => ({ name, ...one })),
    workers: [{ running: true, busySeconds: monotonic / 2, spinningSeconds: 0, longestGapSeconds: 0.0002 }],
    cpuSeconds: monotonic * 1.5,
  };
  const drops = Object.entries(dropped).map(([reason, packets]) => drop(reason, packets));
  return { counters, drops: { drops, notes: [], entered: { outbound: 0, inbound: 0 } } };
}

t.test('rates', async (t) => {
  const before = look(10, 100, { b: traffic(50, 500), c: traffic(5) }, { no_route: 3, too_big: 7 });
  const after = look(
    12,
    300,
    { b: traffic(250, 1500), c: traffic(5), d: traffic(20, 10_000) },
    { no_route: 9, too_big: 7 },
  );
  const rates = ratesOf(before, after);
  t.equal(rates.packetsOut, 100);
  t.equal(rates.bytesOut, 100_000);
  t.equal(rates.cores, 1.5);
  t.equal(rates.workers[0].busy, 0.5);
  t.same(
    rates.drops.map(({ reason, packets }) => [reason, packets]),
    [['no_route', 3]],
    'only what is dropped now',
  );
  t.same(
    rates.peers.map(({ name, packetsOut }) => [name, packetsOut]),
    [
      ['d', 10],
      ['b', 100],
      ['c', 0],
    ],
    'the busiest first; one that has just come is there',
  );
  const again = ratesOf(after, look(13, 4, { b: traffic(1) }, { no_route: 1 }));
  t.equal(again.packetsOut, 0, 'nothing runs backwards when a daemon has started again');
  t.same(again.drops, []);

  const text = topText(rates, { ...COLOURS, bold: (one) => one, red: (one) => one }, 100);
  t.match(text, /^out 100\/s, 800 kbit\/s {3}in 0\/s, 0 bit\/s {3}dropped 3\.0\/s {3}CPU 150 %\n/);
  t.match(text, /worker 0: 50 % busy, 0 % looking, a packet waited 200 µs at most/);
  t.match(text, /DROPPED +DIRECTION +REASON +MEANING\n +3\.0\/s +outbound +no_route +why/);
  const few = topText(rates, COLOURS, 9);
  t.match(few, /and 2 more\n$/, 'what does not fit is counted');
  t.ok(few.split('\n').length <= 10, 'and fits');
});

t.test('a line that is wider than the terminal', async (t) => {
  t.equal(cut('abcdef', 3), 'abc');
  t.equal(cut('a\x1b[31mbcd\x1b[0mef', 3), 'a\x1b[31mbc\x1b[0m', 'is cut, but its colours end');
  t.equal(cut('', 3), '');
});
