/** The embedded registry in layer 2: leases without subnets that name networks, and what becomes of them. */
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  type ConfigWish,
  configFromJson,
  configToJson,
  disagreement,
  makeNetworkConfig,
  modeOf,
  type NetworkConfig,
} from '../../src/control/allocation.js';
import { parseCidr, parseHostAddress } from '../../src/control/cidr.js';
import { EmbeddedRegistry } from '../../src/control/embedded-registry.js';
import { EmbeddedStore } from '../../src/control/embedded-store.js';
import { byLease } from '../../src/control/lease-membership.js';
import { becomeMember, type Membership, type MembershipWish } from '../../src/control/membership.js';
import { type PeerRecord, type Records, reduceRecords } from '../../src/control/records.js';
import { State } from '../../src/control/state.js';
import { systemClock } from '../../src/host/clock.js';
import {
  configFor,
  contentsOf,
  contradictions,
  folder,
  meddle,
  pause,
  TestClock,
  TestLog,
  until,
  wishFor,
} from '../lib/embedded.js';

const A = '192.168.77.1';
const B = '192.168.77.2';
const C = '192.168.77.3';
const wish: ConfigWish = { ...wishFor(''), mode: 'l2' };
const JSON_L2 = { EnableIPv4: false, EnableIPv6: false, Backend: { Type: 'vxlan', Port: 4789 } };

t.test('the configuration', async (t) => {
  const config = makeNetworkConfig(wish);
  t.same(config, { pools: [], backend: { type: 'vxlan', port: 4789 } });
  t.same(configToJson(config), JSON_L2);
  t.same(configFromJson(JSON_L2), config);
  t.same(configFromJson({ EnableIPv4: false, Backend: { Type: 'vxlan' } }), config);
  t.same(makeNetworkConfig({ ...wish, port: 8472 }).backend, { type: 'vxlan', port: 8472 });
  t.same([modeOf(config), modeOf(configFor('10.5.0.0/16'))], ['l2', 'l3']);
  t.throws(
    () => configFromJson({ ...JSON_L2, EnableIPv4: true, Network: '10.5.0.0/16' }),
    /^Backend\.Type: vxlan is for layer 2/,
  );
  t.throws(
    () => configFromJson({ ...JSON_L2, Backend: { Type: 'udp' } }),
    /^EnableIPv4 and EnableIPv6 are both false$/,
  );
  t.equal(disagreement(config, wish), undefined);
  t.equal(disagreement(config, { ...wish, port: 8472 }), '--port 8472, but the registry says 4789');
  t.equal(disagreement(config, wishFor('10.5.0.0/16')), '--mode l3, but the registry says l2');
  t.equal(disagreement(configFor('10.5.0.0/16'), wish), '--mode l2, but the registry says l3');
});

t.test('the store', async (t) => {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  const store = await EmbeddedStore.open(path, clock, true, 1000);
  t.teardown(() => store.close());
  const { config, created } = await store.configure(wish, true);
  t.ok(created);
  await t.rejects(store.configure(wishFor('10.5.0.0/16'), true), {
    code: 'CONFIG_DIFFERS',
    message: `registry ${path}: --mode l3, but the registry says l2: give --mode l2, or choose another --registry-path`,
  });
  const acquire = (host: string, ...vnis: number[]) =>
    store.acquire({ addresses: [host], prefer: [], ttl: 1000, vnis }, config);
  t.match(await acquire(A, 43, 42), { how: 'new', subnets: [], expires: clock.now + 1000 });
  const before = store.position();
  t.match(await acquire(A, 42, 43), { how: 'taken over' });
  t.same(store.position(), before, 'a renewal is nobody’s news, nor is the order');
  await acquire(A, 42, 44);
  const own = { host: A, addresses: [A], subnets: [], vnis: [42, 44] };
  t.same(store.changes(before), [{ host: A, lease: own }], 'other VNIs are');
  for (let i = 2; i < 300; i++) await acquire(`10.0.${i >> 8}.${i & 255}`, 42);
  t.equal([...store.leases()].length, 299, 'there is nothing to run out of');
  t.same(contradictions(await contentsOf(path)), []);
  clock.boot = 'another boot';
  await acquire(B, 7);
  t.same(
    [...store.leases()].find(({ host }) => host === A),
    own,
    'VNIs outlast a boot',
  );
  clock.now += 2000;
  t.ok((await store.reap()) > 0);
  await meddle(path, [['lease', C], { addresses: [C], subnets: [], ttl: 1, expires: 1 }]);
  t.same([...store.leases()].find(({ host }) => host === C)?.vnis, [], 'a lease of before has none');
});

interface Daemon {
  readonly registry: EmbeddedRegistry;
  readonly log: TestLog;
  records(): Records;
  stop(): Promise<void>;
}

async function join2(t: Test, path: string, clock: TestClock, host: string, ...vnis: number[]): Promise<Daemon> {
  const log = new TestLog();
  const registry = new EmbeddedRegistry({
    path,
    wish,
    addresses: [parseHostAddress(host)],
    vnis,
    ttl: 3000,
    clock,
    log,
    gate: () => {},
    moved: () => t.fail('has not moved'),
    times: { poll: 2, retry: 500, settle: 5000 },
  });
  t.match(await registry.join([], { create: true, patience: 5000 }), { subnets: [], config: { pools: [] } });
  const abort = new AbortController();
  let records: Records = new Map();
  const watch = async (): Promise<void> => {
    for await (const update of registry.watch(abort.signal)) records = reduceRecords(records, update);
  };
  const watching = watch();
  const stop = async (): Promise<void> => {
    abort.abort();
    await watching;
    await registry.close();
  };
  t.teardown(stop);
  return { registry, log, records: () => records, stop };
}

t.test('daemons see the networks of the others', async (t) => {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  const a = await join2(t, path, clock, A, 42);
  const b = await join2(t, path, clock, B, 43, 42);
  const vnisOf = (daemon: Daemon, host: string): string | undefined => daemon.records().get(host)?.vnis.join();
  t.ok(await until(() => vnisOf(a, B) === '42,43'));
  t.match(a.records().get(B), { name: B, address: B, port: 4789, subnets: [], ecn: true, macs: [], neighbours: [] });
  await b.stop();
  const again = await join2(t, path, clock, B, 7);
  t.ok(await until(() => vnisOf(a, B) === '7'), 'restarted with others, its lease changes');
  t.ok(await until(() => vnisOf(again, A) === '42'));

  // Somebody writes another VNI into a's lease; a puts it right.
  const lease = (await contentsOf(path)).leases.get(A);
  await meddle(path, [['lease', A], { ...lease, vnis: [9] }]);
  clock.now += 2500;
  t.ok(await until(() => a.registry.leaseSecondsLeft > 2));
  t.same((await contentsOf(path)).leases.get(A)?.vnis, [42]);

  // A lease that names none is of no use, and says so once.
  const other = await EmbeddedStore.open(path, clock, false, 1000);
  t.teardown(() => other.close());
  await other.acquire({ addresses: [C], prefer: [], ttl: 1e9 }, (await other.configure(wish, false)).config);
  t.ok(await until(() => a.log.count('lease_skipped') === 1));
  t.match(a.log.lines.at(-1)?.fields, { host: C, reason: /it names no VNI/ });
  t.notOk(a.records().has(C));
});

t.test('membership', async (t) => {
  const base = folder(t);
  const path = join(base, 'registry');
  const log = new TestLog();
  const become = async (more: Partial<MembershipWish> = {}, configWish = wish): Promise<Membership> => {
    const member = await byLease({
      wish: {
        mode: 'l2',
        segments: [{ vni: 42 }, { vni: 7 }],
        registry: 'embedded',
        networks: [],
        subnets: [],
        peersFile: undefined,
        port: undefined,
        registryPath: path,
        subnetFile: undefined,
        leaseTtl: 60,
        staleLimit: 86_400,
        ...more,
      },
      stateDir: join(base, 'state'),
      configWish,
      addresses: [parseHostAddress(A)],
      log,
      gate: () => {},
      moved: () => {},
    });
    t.teardown(() => member.close().catch(() => {}));
    return member;
  };
  const first = await become();
  t.match(first, { lease: 'new', port: 4789, networks: [], subnets: [] });
  t.equal(first.subnetFile, undefined, 'no subnet to tell of');
  t.same((await contentsOf(path)).leases.get(A)?.vnis, [7, 42]);
  const abort = new AbortController();
  for await (const update of first.registry.watch(abort.signal)) if (update.kind === 'snapshot') abort.abort();
  await pause(50);
  await first.close();

  renameSync(path, `${path}.away`);
  const warm = await become();
  t.match(warm, { lease: 'warm', port: 4789, subnets: [] });
  await warm.close();
  await t.rejects(become({ mode: 'l3', segments: [] }, wishFor('')), {
    message: `registry ${path}: away, and --mode l3, but the registry says l2`,
  });
  renameSync(`${path}.away`, path);
  await t.rejects(become({ mode: 'l3', segments: [], networks: [parseCidr('10.5.0.0/16')] }, wishFor('10.5.0.0/16')), {
    message: `registry ${path}: --mode l3, but the registry says l2: give --mode l2, or choose another --registry-path`,
  });

  const byFile = await becomeMember({
    wish: {
      mode: 'l2',
      segments: [{ vni: 42 }],
      registry: 'static',
      networks: [],
      subnets: [],
      peersFile: join(base, 'peers.json'),
      port: undefined,
      registryPath: path,
      subnetFile: undefined,
      leaseTtl: 60,
      staleLimit: 60,
    },
    stateDir: join(base, 'state'),
    configWish: wish,
    addresses: [parseHostAddress(A)],
    log,
    gate: () => {},
    moved: () => {},
  });
  t.match(byFile, { port: 4789, networks: [], subnets: [], subnetFile: undefined });
});

t.test('what an older daemon remembered is read, and what is new comes back', async (t) => {
  const directory = join(folder(t), 'state');
  const log = new TestLog();
  const old = { id: B, name: B, address: B, port: 8285, subnets: ['10.5.2.0/24'], ecn: true };
  const now = { ...old, underlayMtu: undefined, vnis: [], macs: [], neighbours: [] };
  const full = {
    ...now,
    subnets: [],
    vnis: [42],
    macs: [{ vni: 42, mac: '02:00:00:00:00:05' }],
    neighbours: [{ vni: undefined, address: 'fd07::5', mac: '02:00:00:00:00:05', router: true }],
  };
  const cases: [stored: unknown, read: PeerRecord, config: NetworkConfig][] = [
    [old, now, configFor('10.5.0.0/16')],
    [full, full, makeNetworkConfig(wish)],
  ];
  for (const [stored, read, config] of cases) {
    const state = State.open(directory, systemClock(), log);
    t.ok(state.remember({ owner: 'me', config, subnets: [], records: [stored as PeerRecord] }));
    t.same(state.recall('me')?.records, [read]);
    t.same(state.recall('me')?.config, config);
    await state.close();
  }
  t.same(log.lines, []);
});
