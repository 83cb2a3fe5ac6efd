/** From text to records, from updates to a set of records, and from that to a plan: what is taken, and what is refused. */
import t from 'tap';
import { contains, overlaps, parseAddress, parseCidr, parseHostAddress, textOf } from '../../src/control/cidr.js';
import { type Plan, planFor, type Self } from '../../src/control/plan.js';
import {
  makeRecord,
  type PeerFields,
  type PeerRecord,
  type Records,
  reduceRecords,
  sameRecord,
} from '../../src/control/records.js';

const record = (name: string, fields: Partial<PeerFields> = {}): PeerRecord =>
  makeRecord({ id: name, name, address: '192.168.77.2', port: 8285, subnets: ['10.5.2.0/24'], ecn: false, ...fields });

const records = (...all: PeerRecord[]): Records => new Map(all.map((one) => [one.id, one]));

t.test('addresses and prefixes', async (t) => {
  t.same([...parseAddress('192.168.77.2').bytes], [192, 168, 77, 2]);
  t.equal(parseAddress('FD00:0:0::1').text, 'fd00::1', 'canonical');
  t.equal(parseCidr('fd00:5:0:2:0::/64').text, 'fd00:5:0:2::/64');
  t.equal(textOf(parseAddress('2001:db8::1').bytes), '2001:db8::1');
  for (const odd of [
    '1.2.3',
    '01.2.3.4',
    '1.2.3.4.5',
    '1.2.3.256',
    '::ffff:1.2.3.4',
    'fe80::1%1',
    ' 1.2.3.4',
    'host',
    '',
  ]) {
    t.throws(() => parseAddress(odd), RangeError, odd);
  }
  for (const none of ['0.0.0.0', '224.0.0.1', '255.255.255.255', '::', 'fe80::1', 'ff02::1']) {
    t.throws(() => parseHostAddress(none), RangeError, none);
  }
  const [a, b, c] = ['10.5.0.0/16', '10.5.2.0/24', '10.6.0.0/16'].map(parseCidr);
  t.ok(contains(a, b) && !contains(b, a) && contains(a, a));
  t.ok(overlaps(b, a) && !overlaps(b, c) && !overlaps(parseCidr('fd00::/16'), a));
  t.ok(overlaps(parseCidr('10.5.2.128/25'), b) && !overlaps(parseCidr('10.5.2.128/25'), parseCidr('10.5.2.0/25')));
});

t.test('a record is canonical and compared whole', async (t) => {
  const one = record('b', { subnets: ['fd00:5:0:02::/64', '10.5.2.0/24'] });
  t.same(one.subnets, ['10.5.2.0/24', 'fd00:5:0:2::/64']);
  t.ok(sameRecord(one, record('b', { subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'] })));
  const changes: Partial<PeerFields>[] = [
    { id: 'x' },
    { name: 'x' },
    { address: '192.168.77.3' },
    { port: 1 },
    { subnets: ['10.5.3.0/24'] },
    { subnets: [] },
    { underlayMtu: 1400 },
    { ecn: true },
  ];
  for (const change of changes) t.notOk(sameRecord(record('b'), record('b', change)), Object.keys(change)[0]);
  t.throws(() => record('b', { subnets: ['10.5.2.1/24'] }), /^peer b: "10\.5\.2\.1\/24" has host bits set/);
  t.throws(() => record('b', { address: '10.1' }), /^peer b: "10\.1" is not an IP address$/);
  t.throws(() => record('b', { subnets: ['10.5.2.0/24', '10.5.2.0/24'] }), /listed twice/);
});

t.test('snapshots and events meet in one reducer', async (t) => {
  const b = record('b');
  const c = record('c', { address: '192.168.77.3', subnets: ['10.5.3.0/24'] });
  const first = reduceRecords(new Map(), { kind: 'snapshot', records: [b, c], cursor: '1' });
  t.same([...first.keys()], ['b', 'c']);
  t.equal(reduceRecords(first, { kind: 'snapshot', records: [record('b'), c], cursor: '2' }), first, 'nothing new');
  t.equal(
    reduceRecords(first, { kind: 'events', events: [{ type: 'put', record: record('b') }], cursor: '2' }),
    first,
    'a renewal changes nothing',
  );
  t.equal(reduceRecords(first, { kind: 'trouble', trouble: { reason: 'away' } }), first);
  const moved = record('b', { address: '192.168.77.9' });
  const second = reduceRecords(first, {
    kind: 'events',
    events: [
      { type: 'put', record: moved },
      { type: 'delete', id: 'c' },
      { type: 'delete', id: 'unknown' },
    ],
    cursor: '3',
  });
  t.same([...second.values()], [moved]);
  t.equal(first.get('b'), b, 'the old set is as it was');
  const third = reduceRecords(second, { kind: 'snapshot', records: [c], cursor: '4' });
  t.same([...third.keys()], ['c'], 'a snapshot replaces all');
});

const self: Self = {
  addresses: [{ family: 4, text: '192.168.77.1' }],
  networks: [parseCidr('10.5.0.0/16')],
  subnets: [parseCidr('10.5.1.0/24')],
  underlayMtu: 1500,
  vnis: [],
};

t.test('a plan', async (t) => {
  const plan: Plan = planFor(
    records(
      record('a', { address: '192.168.77.1', subnets: ['10.5.1.0/24'] }),
      record('b', { subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'] }),
      record('c', { address: '192.168.77.3', subnets: ['10.5.3.0/25', '10.5.3.128/25'], underlayMtu: 1400, ecn: true }),
    ),
    self,
  );
  t.same(
    [...plan.peers.values()].map(({ name, mtu, ecn }) => ({ name, mtu, ecn })),
    [
      { name: 'b', mtu: 1472, ecn: false },
      { name: 'c', mtu: 1372, ecn: true },
    ],
    'our own record is left out; MTUs are of what the path carries inside',
  );
  const owner = (route: { readonly peer: string }): string | undefined => plan.peers.get(route.peer)?.name;
  t.same(
    [...plan.routes.values()].map((route) => [route.prefix.text, owner(route)]),
    [
      ['10.5.2.0/24', 'b'],
      ['10.5.3.0/25', 'c'],
      ['10.5.3.128/25', 'c'],
    ],
    'without an IPv6 network no IPv6 routes',
  );
  const both: Self = { ...self, addresses: [...self.addresses, { family: 6, text: 'fd77::1' }] };
  const six = planFor(records(record('b', { address: 'fd77::2' })), both);
  t.equal([...six.peers.values()][0].mtu, 1452, 'an IPv6 underlay takes 48 bytes');
});

t.test('what no record shows alone is refused', async (t) => {
  const other = { address: '192.168.77.3', subnets: ['10.5.3.0/24'] };
  const cases: [what: string, expected: RegExp, ...all: PeerRecord[]][] = [
    [
      'two owners',
      /^subnet 10\.5\.2\.0\/24 has two owners, peers b and c$/,
      record('b'),
      record('c', { ...other, subnets: ['10.5.2.0/24'] }),
    ],
    [
      'overlap',
      /^subnets 10\.5\.2\.0\/24 of peer b and 10\.5\.2\.64\/26 of peer c overlap$/,
      record('b'),
      record('c', { ...other, subnets: ['10.5.2.64/26'] }),
    ],
    [
      'one address',
      /^peers b and c have one address, 192\.168\.77\.2$/,
      record('b'),
      record('c', { subnets: ['10.5.3.0/24'] }),
    ],
    ['one name', /^two peers are called b$/, record('b'), record('c', { ...other, name: 'b' })],
    [
      'own subnet',
      /^peer b: subnet 10\.5\.1\.128\/25 overlaps --subnet 10\.5\.1\.0\/24 of this host$/,
      record('b', { subnets: ['10.5.1.128/25'] }),
    ],
    [
      'outside',
      /^peer b: subnet 10\.6\.0\.0\/24 is not in --network 10\.5\.0\.0\/16$/,
      record('b', { subnets: ['10.6.0.0/24'] }),
    ],
    ['no socket', /^peer b: fd77::2 is IPv6, but this host has no IPv6 underlay/, record('b', { address: 'fd77::2' })],
  ];
  for (const [what, expected, ...all] of cases) {
    t.throws(() => planFor(records(...all), self), expected, what);
    t.throws(() => planFor(records(...all.reverse()), self), RangeError, `${what}, in the other order`);
  }
});

t.test('overlaps are found among many', async (t) => {
  const subnets = Array.from({ length: 2000 }, (_, i) => `10.5.${64 + (i >> 4)}.${(i & 15) << 4}/28`);
  const many = record('b', { subnets });
  t.equal(planFor(records(many), self).routes.size, 2000);
  const big = record('c', { address: '192.168.77.3', subnets: ['10.5.128.0/18'] });
  t.throws(
    () => planFor(records(many, big), self),
    /10\.5\.128\.0\/18 of peer c and 10\.5\.128\.0\/28 of peer b overlap/,
  );
});
