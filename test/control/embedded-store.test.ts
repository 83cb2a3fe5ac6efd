/** The embedded registry's data: who gets which subnet, for how long, and how others learn of it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import type { NetworkConfig } from '../../src/control/allocation.js';
import { parseCidr } from '../../src/control/cidr.js';
import { type Acquired, EmbeddedStore, RegistryAway } from '../../src/control/embedded-store.js';
import { FileLock } from '../../src/host/file-lock.js';
import { SetupError } from '../../src/io/setup-error.js';
import { configFor, contentsOf, contradictions, folder, meddle, TestClock, wishFor } from '../lib/embedded.js';

const A = '192.168.77.1';
const B = '192.168.77.2';
const C = '192.168.77.3';
const D = '192.168.77.4';
const host = (i: number): string => `192.168.${77 + (i >> 8)}.${i & 255}`;

/** Three subnets: 10.5.0.16/28, .32 and .48. */
const SMALL = { networks: '10.5.0.0/26', lengths: [28] } as const;

interface Stage {
  readonly path: string;
  readonly clock: TestClock;
  readonly store: EmbeddedStore;
  readonly config: NetworkConfig;
  /** `hosts` addresses, separated by commas. */
  acquire(addresses: string, prefer?: readonly string[], ttl?: number): Promise<Acquired>;
  another(): Promise<EmbeddedStore>;
}

async function setUp(t: Test, networks = '10.5.0.0/16', lengths: readonly number[] = []): Promise<Stage> {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  const open = async (): Promise<EmbeddedStore> => {
    const store = await EmbeddedStore.open(path, clock, true, 1000);
    t.teardown(() => store.close());
    return store;
  };
  const store = await open();
  const { config } = await store.configure(wishFor(networks, lengths), true);
  return {
    path,
    clock,
    store,
    config,
    acquire: (addresses, prefer = [], ttl = 1000) =>
      store.acquire({ addresses: addresses.split(','), prefer: prefer.map(parseCidr), ttl }, config),
    another: open,
  };
}

const texts = ({ subnets }: Acquired): string[] => subnets.map((subnet) => subnet.text);
const codeOf = async (failing: Promise<unknown>): Promise<string> => {
  try {
    await failing;
    return 'did not fail';
  } catch (error) {
    return error instanceof SetupError ? error.code : `not a SetupError: ${error}`;
  }
};

t.test('a host without anything gets a random one of the first hundred that are free', async (t) => {
  const { acquire } = await setUp(t);
  const free = Array.from({ length: 255 }, (_, i) => `10.5.${i + 1}.0/24`);
  let firsts = 0;
  for (let i = 1; i <= 130; i++) {
    const { how, subnets } = await acquire(host(i));
    const at = free.indexOf(subnets[0].text);
    if (how !== 'new' || at < 0 || at >= 100) t.fail(`host ${i}: ${how} ${subnets[0].text}, place ${at} of the free`);
    if (at === 0) firsts++;
    free.splice(at, 1);
  }
  t.ok(firsts < 30, 'at random');
});

t.test('a lease of the same host is taken over, whatever else is preferred', async (t) => {
  const { acquire, clock, store } = await setUp(t);
  const first = await acquire(A, ['10.5.7.0/24']);
  t.match(first, { how: 'reused', expires: clock.now + 1000 }, 'preferred, free and fitting');
  t.same(texts(first), ['10.5.7.0/24']);
  clock.now += 10;
  const second = await acquire(A, ['10.5.8.0/24']);
  t.match(second, { how: 'taken over', expires: clock.now + 1000 });
  t.same(texts(second), ['10.5.7.0/24']);
  clock.now += 100_000;
  const third = await acquire(A);
  t.match(third, { how: 'taken over', expires: clock.now + 1000 }, 'even one that has ended, while it is there');
  t.same(texts(third), ['10.5.7.0/24']);
  t.equal([...store.leases()].length, 1);
});

t.test('what is preferred must be free and fit', async (t) => {
  const { acquire, path } = await setUp(t);
  await acquire(A, ['10.5.7.0/24']);
  for (const [i, prefer] of ['10.5.7.0/24', '10.5.0.0/24', '10.6.7.0/24', '10.5.8.0/25', 'fd00:5::/64'].entries()) {
    const { how, subnets } = await acquire(host(10 + i), [prefer]);
    t.match([how, subnets[0].text], ['new', /^10\.5\.\d+\.0\/24$/], prefer);
    t.not(subnets[0].text, prefer);
  }
  t.match(await acquire(B, ['10.5.200.0/24', '10.5.201.0/24']), { how: 'new' }, 'two of one family');
  t.match(await acquire(C, ['10.5.255.0/24']), { how: 'reused' }, 'the last of the network');
  t.same(contradictions(await contentsOf(path)), []);
});

t.test('a lease that does not fit the configuration any more is replaced', async (t) => {
  const { acquire, store, path } = await setUp(t);
  const ask = (prefer: readonly string[]): Promise<Acquired> =>
    store.acquire({ addresses: [A], prefer: prefer.map(parseCidr), ttl: 1000 }, configFor('10.9.0.0/16'));
  await acquire(A, ['10.5.7.0/24']);
  const before = store.position();
  const moved = await ask([]);
  t.match([moved.how, texts(moved)[0]], ['new', /^10\.9\./]);
  t.equal(store.position().revision, before.revision + 1, 'one change');
  t.same(store.changes(before), [{ host: A, lease: { host: A, addresses: [A], subnets: texts(moved), vnis: [] } }]);
  t.match(await acquire(B, ['10.5.7.0/24']), { how: 'reused' }, 'the old one is free');
  await acquire(C, ['10.5.9.0/24']);
  const preferred = await store.acquire(
    { addresses: [C], prefer: [parseCidr('10.9.200.0/24')], ttl: 1000 },
    configFor('10.9.0.0/16'),
  );
  t.match(
    [preferred.how, ...texts(preferred)],
    ['reused', '10.9.200.0/24'],
    'by the one that is preferred, if there is',
  );
  t.same(contradictions(await contentsOf(path)), []);
});

t.test('a host is who has one of its addresses, in whatever order it has them', async (t) => {
  const { acquire, store, path } = await setUp(t);
  const six = 'fd00:77::1';
  const hosts = (): string[] => [...store.leases()].map((lease) => lease.host);
  const first = await acquire(A, ['10.5.7.0/24']);
  const start = store.position();
  t.match(await acquire(`${six},${A}`), { how: 'taken over', subnets: first.subnets });
  t.same(hosts(), [six], 'one lease, under its first address');
  t.same(
    store.changes(start)?.map((change) => [change.host, change.lease?.addresses]),
    [
      [A, undefined],
      [six, [six, A]],
    ],
  );
  t.match(await acquire(`${A},${six}`), { how: 'taken over', subnets: first.subnets }, 'the other way round');
  t.match(await acquire(six), { how: 'taken over', subnets: first.subnets }, 'with one of them');
  t.same(hosts(), [six]);
  t.match(await acquire(A), { how: 'new' }, 'the one that it has given up is another host’s now');
  t.same(hosts().sort(), [A, six].sort());
  const two = await acquire(`${six},${A}`);
  t.match(two, { how: 'taken over', subnets: first.subnets }, 'who was two is one');
  t.same(hosts(), [six]);
  t.same(contradictions(await contentsOf(path)), []);
});

t.test('exhausted', async (t) => {
  const { acquire, store, clock, path } = await setUp(t, SMALL.networks, SMALL.lengths);
  await acquire(A, [], 1000);
  await acquire(B, [], 2000);
  await acquire(C, [], 3000);
  const before = await contentsOf(path);
  t.equal(new Set(before.subnets.keys()).size, 3);
  const refused = acquire(D);
  await t.rejects(
    refused,
    new SetupError(
      'EXHAUSTED',
      `registry ${path}: subnets exhausted: all from 10.5.0.16 to 10.5.0.48/28 are taken: stop a host and wait for its lease to end, or make a registry of a larger network`,
    ),
  );
  t.same(await contentsOf(path), before, 'and nothing was written');
  t.match(await acquire(B, [], 2000), { how: 'taken over' }, 'who has one renews it');

  clock.now += 1000;
  t.equal(await codeOf(acquire(D)), 'EXHAUSTED', 'a lease has all of its last millisecond');
  clock.now += 1;
  const got = await acquire(D, [], 1000);
  t.equal(got.how, 'new');
  t.same(texts(got), before.leases.get(A)?.subnets, 'the one whose lease had ended');
  t.same([...store.leases()].map((lease) => lease.host).sort(), [B, C, D]);
  t.same(contradictions(await contentsOf(path)), []);
});

t.test('a lease that has ended keeps its subnet as long as there is another', async (t) => {
  const { acquire, store, clock } = await setUp(t, SMALL.networks, SMALL.lengths);
  const a = await acquire(A);
  clock.now += 1_000_000;
  const b = await acquire(B);
  const c = await acquire(C);
  t.equal(new Set([a, b, c].flatMap(texts)).size, 3);
  t.equal([...store.leases()].length, 3);
  t.match(await acquire(A), { how: 'taken over', subnets: a.subnets }, 'and gets it back');
});

t.test('a preferred subnet whose lease has ended but is there is still taken', async (t) => {
  const { acquire, clock } = await setUp(t);
  await acquire(A, ['10.5.7.0/24']);
  clock.now += 1_000_000;
  t.match(await acquire(B, ['10.5.7.0/24']), { how: 'new' });
});

t.test('dual stack: one subnet of each family, together or not at all', async (t) => {
  const { acquire, store, path } = await setUp(t, '10.5.0.0/26,fd00:5::/56', [28, 64]);
  const both = await acquire(`${A},fd00:77::1`);
  t.match(texts(both), [/^10\.5\.0\.(16|32|48)\/28$/, /^fd00:5:0:\w+::\/64$/]);
  const six = 'fd00:5:0:f0::/64'; // beyond the first hundred, so that nobody gets it by chance
  t.match(await acquire(B, ['10.5.0.16/28']), { how: 'new' }, 'one of two is not preferred enough');
  const last = ['10.5.0.16/28', '10.5.0.32/28', '10.5.0.48/28'].find(
    (text) => ![...store.leases()].some((lease) => lease.subnets.includes(text)),
  );
  t.match(texts(await acquire(C, [String(last), six])), [last, six]);
  const before = await contentsOf(path);
  t.equal(await codeOf(acquire(D)), 'EXHAUSTED', 'with IPv6 subnets left');
  t.same(await contentsOf(path), before);
  t.same(contradictions(before), []);
});

t.test('a renewal is nobody’s news; another address is', async (t) => {
  const { acquire, store, clock, path } = await setUp(t);
  await acquire(A);
  const before = store.position();
  for (let i = 0; i < 5; i++) {
    clock.now += 300;
    await acquire(A);
  }
  t.same(store.position(), before);
  t.same(store.changes(before), []);
  const { deadlines, leases, log } = await contentsOf(path);
  t.same(deadlines, [{ host: A, expires: clock.now + 1000 }], 'only its deadline moved');
  t.equal(leases.get(A)?.expires, clock.now + 1000);
  t.equal(log.length, 1);
  await acquire(`${A},fd00:77::1`);
  t.equal(store.position().revision, before.revision + 1);
  t.match(store.changes(before), [{ host: A, lease: { addresses: [A, 'fd00:77::1'] } }]);
});

t.test('what changed is told from a position on', async (t) => {
  const { acquire, store, clock, another } = await setUp(t);
  const other = await another();
  const start = other.position();
  await acquire(A, ['10.5.1.0/24']);
  await acquire(B, ['10.5.2.0/24'], 5000);
  const middle = other.position();
  t.same(other.changes(start), [
    { host: A, lease: { host: A, addresses: [A], subnets: ['10.5.1.0/24'], vnis: [] } },
    { host: B, lease: { host: B, addresses: [B], subnets: ['10.5.2.0/24'], vnis: [] } },
  ]);
  clock.now += 1001;
  t.equal(await other.reap(), 1);
  await acquire(C, ['10.5.3.0/24']);
  t.same(
    store.changes(middle)?.map((change) => [change.host, change.lease?.subnets]),
    [
      [A, undefined],
      [C, ['10.5.3.0/24']],
    ],
  );
  await acquire(A);
  t.same(
    store.changes(start)?.map((change) => [change.host, change.lease !== undefined]),
    [
      [A, true],
      [B, true],
      [C, true],
    ],
    'each host once, as it is now',
  );
  t.same(store.changes(store.position()), []);
});

t.test('a position of before the log, of the future or of another registry tells nothing', async (t) => {
  const { acquire, store } = await setUp(t);
  await acquire(A);
  const oldest = store.position();
  const first = await acquire(`${A},fd00:77::1`);
  for (let i = 0; i < 999; i++) await acquire(i % 2 ? `${A},fd00:77::1` : A);
  const { id, revision } = store.position();
  t.equal(revision, oldest.revision + 1000);
  t.same(
    store.changes(oldest)?.map((change) => change.lease?.subnets),
    [texts(first)],
    'a thousand changes are kept',
  );
  await acquire(B);
  t.equal(store.changes(oldest), undefined, 'and no more');
  t.equal(store.changes({ id, revision: 0 }), undefined);
  t.equal(store.changes({ id: 'another', revision }), undefined);
  t.equal(store.changes({ id, revision: revision + 2 }), undefined);
  t.equal(store.changes({ id, revision })?.length, 1);
});

t.test('what has ended is removed, in the order in which it ended', async (t) => {
  const { acquire, store, clock, path } = await setUp(t);
  t.notOk(store.hasExpired);
  t.equal(await store.reap(), 0);
  for (const [address, ttl] of [
    [A, 300],
    [B, 100],
    [C, 200],
  ] as const)
    await acquire(address, [], ttl);
  const before = store.position();
  clock.now += 100;
  store.position();
  t.notOk(store.hasExpired, 'not in its last millisecond');
  t.equal(await store.reap(), 0);
  clock.now += 101;
  t.ok(store.hasExpired);
  t.equal(await store.reap(), 2);
  t.same(store.position().revision, before.revision + 2);
  t.same(
    (await contentsOf(path)).log.slice(-2).map((line) => line.host),
    [B, C],
  );
  t.notOk(store.hasExpired);
  t.same(
    [...store.leases()].map((lease) => lease.host),
    [A],
  );
  t.same(contradictions(await contentsOf(path)), []);
  t.match(await acquire(B), { how: 'new' });
});

t.test('deadlines of all sizes keep their order', async (t) => {
  const { acquire, store, clock } = await setUp(t);
  clock.now = 1;
  const ttls = [1, 9, 10, 99, 100, 255, 256, 65_535, 65_536, 2 ** 31, 2 ** 32, 2 ** 40];
  for (const [i, ttl] of ttls.entries()) await acquire(host(i + 1), [], ttl);
  for (const [i, ttl] of ttls.entries()) {
    clock.now = 1 + ttl;
    t.equal(await store.reap(), 0, `${ttl} not yet`);
    clock.now++;
    t.ok(store.hasExpired);
    t.equal(await store.reap(), 1, `${ttl} now`);
    t.equal([...store.leases()].length, ttls.length - 1 - i);
  }
});

t.test('after another boot every lease begins anew', async (t) => {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  let store = await EmbeddedStore.open(path, clock, true, 1000);
  const { config } = await store.configure(wishFor('10.5.0.0/16'), true);
  const take = (address: string, ttl: number): Promise<Acquired> =>
    store.acquire({ addresses: [address], prefer: [], ttl }, config);
  const subnets = new Map<string, string[]>();
  for (const [address, ttl] of [
    [A, 500],
    [B, 5000],
    [C, 900],
  ] as const)
    subnets.set(address, texts(await take(address, ttl)));
  const before = store.position();
  await store.close();

  clock.boot = 'second boot';
  clock.now = 20; // the clock begins anew, so that every old deadline is far away; or it could be past them all
  store = await EmbeddedStore.open(path, clock, false, 1000);
  t.notOk(store.hasExpired, 'old deadlines mean nothing');
  t.same(texts(await take(B, 5000)), subnets.get(B), 'the first to come finds its subnet');
  t.same(
    (await contentsOf(path)).deadlines,
    [
      { host: A, expires: 520 },
      { host: C, expires: 920 },
      { host: B, expires: 5020 },
    ],
    'and all have their whole time',
  );
  t.same(store.position(), before, 'which is nobody’s news');
  clock.now = 521;
  t.equal(await store.reap(), 1);
  await store.close();

  clock.boot = 'third boot';
  clock.now = 1e9;
  store = await EmbeddedStore.open(path, clock, false, 1000);
  t.teardown(() => store.close());
  t.notOk(store.hasExpired);
  t.equal(await store.reap(), 0, 'nor do old deadlines that lie behind');
  t.same(
    [...store.leases()].map((lease) => lease.host),
    [B, C],
  );
  t.same(contradictions(await contentsOf(path)), []);
});

t.test('two stores see each other at once', async (t) => {
  const { acquire, store, another, config } = await setUp(t);
  const other = await another();
  t.match(await other.configure(wishFor(''), true), { created: false, config });
  await acquire(A, ['10.5.1.0/24']);
  other.position();
  t.same([...other.leases()], [{ host: A, addresses: [A], subnets: ['10.5.1.0/24'], vnis: [] }]);
  t.match(await other.acquire({ addresses: [B], prefer: [parseCidr('10.5.1.0/24')], ttl: 1000 }, config), {
    how: 'new',
  });
  t.same(store.position(), other.position());
  t.equal([...store.leases()].length, 2);
});

t.test('a lease that does not parse is left out', async (t) => {
  const { acquire, store, path } = await setUp(t);
  await acquire(A);
  await acquire(B);
  const before = store.position();
  await meddle(
    path,
    [['lease', B], { addresses: [], subnets: 'none' }],
    [['lease', C], 'nonsense'],
    [['log', before.revision + 1], B],
    [['meta', 'revision'], before.revision + 1],
  );
  t.same(store.changes(before), [{ host: B, lease: undefined }]);
  t.same(
    [...store.leases()].map((lease) => lease.host),
    [A],
  );
});

t.test('a host whose lease does not parse takes another, and the rest agrees with it', async (t) => {
  const { acquire, store, path, clock } = await setUp(t);
  for (const [address, lease] of [
    [A, { addresses: [], subnets: 'none' }],
    [B, { addresses: [B], subnets: ['nonsense'], ttl: 1000, expires: 1 }],
  ] as const) {
    await acquire(address);
    await meddle(path, [['lease', address], lease]);
    t.equal(await codeOf(acquire(address, [], 60_000)), 'did not fail');
  }
  clock.now += 2000;
  t.equal(await store.reap(), 0, 'the deadline of before is not that of the new one');
  t.same(contradictions(await contentsOf(path)), []);
});

t.test('configuration: written once, and then all must agree', async (t) => {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  const store = await EmbeddedStore.open(path, clock, true, 1000);
  t.teardown(() => store.close());
  const none = store.configure(wishFor('10.5.0.0/16'), false);
  await t.rejects(none, RegistryAway);
  await t.rejects(none, { message: `registry ${path}: has no network yet: run weft init, or give --network` });
  await t.rejects(store.configure(wishFor(''), true), RangeError, 'nor can one be made of nothing');
  await t.rejects(store.configure(wishFor('10.5.0.0/29'), true), RangeError);
  t.match(await store.configure(wishFor('10.5.0.0/16'), true), { created: true, config: configFor('10.5.0.0/16') });
  t.match(await store.configure(wishFor('10.5.0.0/16'), true), { created: false, config: configFor('10.5.0.0/16') });
  t.match(await store.configure(wishFor(''), false), { created: false });
  const differs = (message: string): SetupError => new SetupError('CONFIG_DIFFERS', `registry ${path}: ${message}`);
  await t.rejects(
    store.configure(wishFor('10.6.0.0/16'), true),
    differs('--network 10.6.0.0/16, but the registry says 10.5.0.0/16'),
  );
  await t.rejects(
    store.configure(wishFor('10.5.0.0/16', [25]), true),
    differs('--subnet-len 25, but the registry says 24'),
  );
  await t.rejects(store.configure({ ...wishFor(''), port: 9 }, true), differs('--port 9, but the registry says 8285'));
});

t.test('of those who configure at once one writes, and the others agree or say so', async (t) => {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  const stores = await Promise.all(Array.from({ length: 6 }, () => EmbeddedStore.open(path, clock, true, 5000)));
  t.teardown(() => Promise.all(stores.map((store) => store.close())));
  const lock = new FileLock(join(path, 'writer'));
  lock.tryLock('exclusive');
  const configuring = stores.map((store, i) => store.configure(wishFor(i % 2 ? '10.5.0.0/16' : '10.6.0.0/16'), true));
  lock.close(); // all have seen that there is none
  const results = await Promise.allSettled(configuring);
  const configured = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  t.equal(configured.filter((one) => one.created).length, 1, 'one has written it');
  t.equal(configured.length, 3);
  const codes = results.flatMap((result) => (result.status === 'rejected' ? [result.reason.code] : []));
  t.same(codes, ['CONFIG_DIFFERS', 'CONFIG_DIFFERS', 'CONFIG_DIFFERS']);
  t.equal(new Set(stores.map((store) => store.position().id)).size, 1);
});

t.test('a registry of another format, or with a configuration that makes no sense, is refused', async (t) => {
  const { store, path } = await setUp(t);
  await meddle(path, [['meta', 'format'], 2]);
  await t.rejects(
    store.configure(wishFor(''), true),
    new SetupError('REGISTRY_FORMAT', `registry ${path}: has format 2, this weftd knows 1: use one version`),
  );
  await meddle(path, [['meta', 'format'], 1], [['meta', 'config'], { Network: '10.5.0.1/16' }]);
  t.equal(await codeOf(store.configure(wishFor(''), true)), 'REGISTRY_DAMAGED');
});

t.test('where there is none, it is made only if asked; where it cannot be, that is said', async (t) => {
  const path = folder(t);
  const clock = new TestClock();
  const absent = join(path, 'registry');
  const away = EmbeddedStore.open(absent, clock, false, 100);
  await t.rejects(away, RegistryAway);
  await t.rejects(away, {
    code: 'REGISTRY_AWAY',
    message: `registry ${absent}: does not exist: put it back, or make it with weft init`,
  });
  writeFileSync(join(path, 'file'), '');
  t.equal(await codeOf(EmbeddedStore.open(join(path, 'file'), clock, true, 100)), 'NO_REGISTRY');
  t.equal(await codeOf(EmbeddedStore.open(join(path, 'file', 'below'), clock, true, 100)), 'NO_REGISTRY');
  mkdirSync(join(path, 'damaged'));
  writeFileSync(join(path, 'damaged', 'data.mdb'), 'this is no registry');
  t.equal(await codeOf(EmbeddedStore.open(join(path, 'damaged'), clock, true, 100)), 'REGISTRY_DAMAGED');
});

t.test('a registry that was moved away or replaced is noticed', async (t) => {
  const { store, path, clock, acquire } = await setUp(t);
  t.notOk(store.replaced);
  await acquire(A);
  t.notOk(store.replaced, 'not by being written');
  renameSync(path, `${path}.away`);
  t.ok(store.replaced);
  const other = await EmbeddedStore.open(path, clock, true, 1000);
  await other.configure(wishFor('10.5.0.0/16'), true);
  t.not(other.position().id, store.position().id, 'another one has another id');
  t.ok(store.replaced);
  await other.close();
  renameSync(path, `${path}.other`);
  renameSync(`${path}.away`, path);
  t.notOk(store.replaced);
  t.ok((await contentsOf(path)).leases.has(A));
});

/** A process that holds a lock until it is killed. */
async function holdIn(t: Test, path: string): Promise<ChildProcess> {
  const module = new URL('../../src/host/file-lock.js', import.meta.url).href;
  const program = `
    const { FileLock } = await import(${JSON.stringify(module)});
    const lock = new FileLock(${JSON.stringify(path)});
    console.log(lock.tryLock('exclusive') ? 'held' : 'not to be had');
    setInterval(() => lock.read(), 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  const [said] = await once(child.stdout, 'data');
  t.equal(String(said).trim(), 'held');
  return child;
}

t.test('a write lock that another process holds is waited for with patience, while all else goes on', async (t) => {
  const { acquire, store, path, clock } = await setUp(t);
  await acquire(A);
  const holder = await holdIn(t, join(path, 'writer'));
  store.patience = 400;
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 5);
  t.teardown(() => clearInterval(timer));
  const begun = performance.now();
  await t.rejects(acquire(B), {
    code: 'REGISTRY_AWAY',
    message: `registry ${path}: another process holds its write lock, and does not let go`,
  });
  const took = performance.now() - begun;
  t.ok(took > 390 && took < 3000, `after ${Math.round(took)} ms`);
  t.ok(longest < 300, `the event loop stood for ${Math.round(longest)} ms at most`);
  t.same(
    [...store.leases()].map((lease) => lease.host),
    [A],
    'reading needs no lock',
  );
  t.equal(await codeOf(EmbeddedStore.open(path, clock, false, 100)), 'REGISTRY_AWAY', 'nor can it be opened');

  store.patience = 10_000;
  const waiting = acquire(B);
  holder.kill('SIGKILL');
  t.match(await waiting, { how: 'new' }, 'the lock goes with the process that held it');
});

t.test('users of another boot or namespace are kept out as long as someone is in', async (t) => {
  const { path, clock, store } = await setUp(t);
  const stranger = new TestClock();
  stranger.boot = 'another machine';
  await t.rejects(EmbeddedStore.open(path, stranger, false, 100), {
    code: 'OTHER_WORLD',
    message: `registry ${path}: in use by a weftd in another PID namespace: give each its own --registry-path, or a registry for several machines`,
  });
  const world = readFileSync(join(path, 'world'), 'utf8');
  t.match(world, /^first boot pid:\[\d+\] time:\[\w+\]\n$/);
  await store.close();

  const lock = new FileLock(join(path, 'world'));
  lock.write('another world');
  lock.tryLock('shared');
  t.equal(await codeOf(EmbeddedStore.open(path, clock, false, 100)), 'OTHER_WORLD');
  t.equal(lock.read(), 'another world', 'which is left as it is');
  lock.tryLock('exclusive');
  t.equal(await codeOf(EmbeddedStore.open(path, clock, false, 100)), 'REGISTRY_AWAY', 'someone is just coming in');
  lock.close();
  const again = await EmbeddedStore.open(path, clock, false, 100);
  t.equal(readFileSync(join(path, 'world'), 'utf8'), world, 'nobody is in: it is ours');
  await again.close();
});

// --- anything that many hosts may do ---

type Step =
  | { readonly do: 'acquire'; readonly host: number; readonly prefer: number; readonly ttl: number }
  | { readonly do: 'together'; readonly hosts: readonly number[] }
  | { readonly do: 'wait'; readonly ms: number }
  | { readonly do: 'reap' }
  | { readonly do: 'look' }
  | { readonly do: 'reboot' };

const HOSTS = 10;
/** Seven: 10.5.0.16/28 to 10.5.0.112/28. */
const POOL = Array.from({ length: 7 }, (_, i) => `10.5.0.${16 * (i + 1)}/28`);
const anyHost = fc.integer({ min: 0, max: HOSTS - 1 });
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('acquire' as const),
      host: anyHost,
      prefer: fc.integer({ min: -1, max: POOL.length }),
      ttl: fc.integer({ min: 1, max: 300 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant('together' as const), hosts: fc.uniqueArray(anyHost, { minLength: 2 }) }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 1, max: 200 }) }) },
  { weight: 2, arbitrary: fc.constant({ do: 'reap' as const }) },
  { weight: 2, arbitrary: fc.constant({ do: 'look' as const }) },
  { weight: 1, arbitrary: fc.constant({ do: 'reboot' as const }) },
);

/** What the registry must have, by the rules and nothing else. */
interface Held {
  readonly subnet: string;
  readonly ttl: number;
  readonly expires: number;
}

t.test('whatever many hosts do, no subnet is given twice, and all that is stored agrees', async (t) => {
  const base = folder(t);
  let run = 0;
  const check = async (steps: readonly Step[]): Promise<void> => {
    const path = join(base, String(run++));
    const clock = new TestClock();
    const open = (): Promise<EmbeddedStore[]> =>
      Promise.all([1, 2].map(() => EmbeddedStore.open(path, clock, true, 5000)));
    let stores = await open();
    try {
      const { config } = await stores[0].configure(wishFor('10.5.0.0/25', [28]), true);
      const model = new Map<string, Held>();
      const reader = { at: stores[1].position(), knows: new Map<string, string>() };
      const take = async (who: number, prefer: number, ttl: number): Promise<void> => {
        const address = host(who + 1);
        const expires = clock.now + ttl;
        const wanted = POOL[prefer] ?? '10.6.0.0/28';
        const wish = { addresses: [address], prefer: prefer < 0 ? [] : [parseCidr(wanted)], ttl };
        let got: string;
        try {
          got = texts(await stores[who % 2].acquire(wish, config))[0];
        } catch (error) {
          if (!(error instanceof SetupError && error.code === 'EXHAUSTED')) throw error;
          const full = !model.has(address) && model.size === POOL.length;
          const ended = [...model.values()].filter((held) => held.expires < clock.now).length;
          if (!full || ended > 0) throw new Error(`exhausted, with ${model.size} leases, ${ended} of them ended`);
          return;
        }
        const mine = model.get(address);
        const owner = [...model].find(([, held]) => held.subnet === got)?.[0];
        if (mine && got !== mine.subnet) throw new Error(`${address} lost ${mine.subnet}`);
        if (!mine && owner !== undefined) {
          // Only when nothing else was left, and then all that have ended go.
          if (model.size < POOL.length) throw new Error(`${got} was taken from ${owner} with others free`);
          if ((model.get(owner)?.expires ?? 0) >= clock.now) throw new Error(`${got} was taken from ${owner}, alive`);
          for (const [one, held] of model) if (held.expires < clock.now) model.delete(one);
        } else if (!mine && POOL.includes(wanted) && prefer >= 0 && got !== wanted) {
          const free = ![...model.values()].some((held) => held.subnet === wanted);
          if (free) throw new Error(`${wanted} was preferred and free, ${got} given`);
        }
        model.set(address, { subnet: got, ttl, expires });
      };
      for (const one of steps) {
        if (one.do === 'acquire') await take(one.host, one.prefer, one.ttl);
        else if (one.do === 'wait') clock.now += one.ms;
        else if (one.do === 'reap') {
          const ended = [...model].filter(([, held]) => held.expires < clock.now);
          stores[0].position(); // from here on it sees what the other has written
          if (stores[0].hasExpired !== ended.length > 0) throw new Error(`hasExpired with ${ended.length} ended`);
          const reaped = await stores[0].reap();
          if (reaped !== ended.length) throw new Error(`${reaped} removed, ${ended.length} had ended`);
          for (const [address] of ended) model.delete(address);
        } else if (one.do === 'reboot') {
          await Promise.all(stores.map((store) => store.close()));
          clock.boot += '+';
          clock.now = 1000;
          stores = await open();
          await stores[0].reap();
          for (const [address, held] of model) model.set(address, { ...held, expires: clock.now + held.ttl });
        } else if (one.do === 'look') {
          const now = stores[1].position();
          for (const { host: who, lease } of stores[1].changes(reader.at) ?? []) {
            if (lease) reader.knows.set(who, lease.subnets[0]);
            else reader.knows.delete(who);
          }
          reader.at = now;
          const all = [...stores[1].leases()].map((lease) => [lease.host, lease.subnets[0]].join());
          const known = [...reader.knows].map((entry) => entry.join()).sort();
          if (known.join(' ') !== all.sort().join(' ')) throw new Error(`the log tells ${known}, there is ${all}`);
        } else {
          // All at once through both stores: the lock puts them in some order.
          const wishes = one.hosts.map((who) => ({
            addresses: [host(who + 1)],
            prefer: [parseCidr(POOL[0])],
            ttl: 250,
          }));
          const results = await Promise.allSettled(wishes.map((wish, i) => stores[i % 2].acquire(wish, config)));
          for (const result of results) {
            if (result.status === 'rejected' && result.reason.code !== 'EXHAUSTED') throw result.reason;
          }
          model.clear();
          for (const [address, lease] of (await contentsOf(path)).leases) {
            model.set(address, { subnet: lease.subnets[0], ttl: lease.ttl, expires: lease.expires });
          }
          for (const [i, result] of results.entries()) {
            const got = result.status === 'fulfilled' ? texts(result.value)[0] : undefined;
            // One that had ended already when all began may have been given away again; none of these has.
            const held = model.get(wishes[i].addresses[0])?.subnet;
            if (got !== held) throw new Error(`${wishes[i].addresses[0]} got ${got}, has ${held}`);
          }
        }
        const contents = await contentsOf(path);
        const wrong = contradictions(contents);
        if (wrong.length > 0) throw new Error(wrong.join('; '));
        const found = [...contents.leases].map(([address, { subnets, ttl, expires }]) =>
          [address, ...subnets, ttl, expires].join(),
        );
        const wanted = [...model].map(([address, { subnet, ttl, expires }]) => [address, subnet, ttl, expires].join());
        if (found.sort().join(' ') !== wanted.sort().join(' ')) throw new Error(`there is ${found}, not ${wanted}`);
      }
    } finally {
      await Promise.all(stores.map((store) => store.close()));
    }
  };
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 40, size: 'max' }), check), { numRuns: 40 });
  t.pass();
});
