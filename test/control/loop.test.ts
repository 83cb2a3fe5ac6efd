/** The loop between a registry and the tables, both played by the test; and the path MTU's. */
import t from 'tap';
import { parseCidr } from '../../src/control/cidr.js';
import type { EventLog } from '../../src/control/event-log.js';
import { ControlLoop } from '../../src/control/loop.js';
import { PathMtu } from '../../src/control/path-mtu.js';
import { type Plan, planFor, type Self } from '../../src/control/plan.js';
import { makeRecord, type PeerRecord } from '../../src/control/records.js';
import type { RegistryUpdate } from '../../src/control/registry.js';
import { SetupError } from '../../src/io/setup-error.js';
import { TestRegistry } from '../lib/test-registry.js';

const self: Self = {
  addresses: [{ family: 4, text: '192.168.77.1' }],
  networks: [parseCidr('10.5.0.0/16')],
  subnets: [parseCidr('10.5.1.0/24')],
  underlayMtu: 1500,
  vnis: [],
};

const record = (number: number, subnet = `10.5.${number}.0/24`): PeerRecord =>
  makeRecord({
    id: `p${number}`,
    name: `p${number}`,
    address: `192.168.77.${number}`,
    port: 8285,
    subnets: [subnet],
    ecn: false,
  });

const snapshot = (cursor: string, ...records: PeerRecord[]): RegistryUpdate => ({ kind: 'snapshot', records, cursor });
/** Waits until something is so; a busy machine only makes it later. */
const until = async (so: () => boolean): Promise<void> => {
  for (let waited = 0; !so() && waited < 5000; waited += 5) await pause(5);
};
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

class TestLog implements EventLog {
  readonly events: string[] = [];
  readonly debug = (event: string): unknown => this.events.push(event);
  readonly info = this.debug;
  readonly warn = this.debug;
  readonly error = this.debug;
}

function setUp(): {
  registry: TestRegistry;
  log: TestLog;
  loop: ControlLoop;
  applied: { names: string; at: number }[];
  full: { value: boolean };
} {
  const registry = new TestRegistry();
  const log = new TestLog();
  const applied: { names: string; at: number }[] = [];
  const full = { value: false };
  const applier = {
    apply: async (plan: Plan): Promise<number> => {
      await pause(1);
      if (full.value) throw new RangeError('table full');
      applied.push({ names: [...plan.peers.values()].map((peer) => peer.name).join(), at: performance.now() });
      return 1;
    },
  };
  return { registry, log, applied, full, loop: new ControlLoop({ registry, self, applier, log }) };
}

t.test('the first snapshot is in force before start resolves', async (t) => {
  const { registry, loop, applied } = setUp();
  registry.say(snapshot('1', record(2)));
  await loop.start();
  t.same(
    applied.map((one) => one.names),
    ['p2'],
  );
  t.match(loop.state, { synced: true, problem: undefined, applied: 1, updates: 1, failures: 0 });
  await loop.stop();
});

t.test('when the registry last told something', async (t) => {
  const { registry, loop } = setUp();
  t.equal(loop.state.lastEvent, 0, 'nothing yet');
  const trouble = { reason: 'away' };
  registry.say({ ...snapshot('1', record(2)), trouble } as RegistryUpdate);
  await loop.start();
  t.equal(loop.state.lastEvent, 0, 'that was only remembered');
  const begun = Date.now();
  registry.say({ kind: 'events', events: [], cursor: '2', trouble });
  await until(() => loop.state.updates === 2);
  const told = loop.state.lastEvent;
  t.ok(told >= begun && told <= Date.now(), 'one that cannot be written, but tells');
  registry.say({ kind: 'trouble', trouble });
  await until(() => loop.state.updates === 3);
  t.equal(loop.state.lastEvent, told, 'trouble is no news of the registry');
  registry.say(snapshot('3', record(2)));
  await until(() => loop.state.updates === 4);
  t.ok(loop.state.lastEvent >= told);
  await loop.stop();
});

t.test('at first a bad registry is a failure of the set-up', async (t) => {
  for (const [update, reason] of [
    [{ kind: 'trouble', trouble: { reason: 'not JSON' } }, 'test registry: not JSON'],
    [
      snapshot('1', record(2), record(3, '10.5.2.0/24')),
      'test registry: subnet 10.5.2.0/24 has two owners, peers p2 and p3',
    ],
  ] as const) {
    const { registry, loop } = setUp();
    registry.say(update);
    await t.rejects(loop.start(), new SetupError('BAD_PEERS', reason));
    await loop.stop();
  }
});

t.test('later what was applied last stays in force', async (t) => {
  const { registry, loop, applied, log } = setUp();
  registry.say(snapshot('1', record(2)));
  await loop.start();
  registry.say(snapshot('2', record(2), record(3, '10.5.2.0/24')));
  await until(() => loop.state.problem !== undefined);
  t.match(loop.state.problem, /two owners/);
  registry.say({ kind: 'trouble', trouble: { reason: 'away' } });
  await until(() => loop.state.problem?.includes('away') === true);
  t.match(loop.state.problem, /away/);
  t.equal(applied.length, 1);
  registry.say({ kind: 'trouble', trouble: { reason: 'away' } }, { kind: 'trouble', trouble: { reason: 'away' } });
  registry.say({ kind: 'events', events: [{ type: 'put', record: record(3) }], cursor: '3' });
  await until(() => applied.length === 2 && loop.state.problem === undefined);
  t.same(
    applied.map((one) => one.names),
    ['p2', 'p2,p3'],
  );
  t.equal(loop.state.problem, undefined);
  t.equal(loop.state.failures, 1);
  t.same(
    log.events,
    ['peers_refused', 'registry_trouble', 'registry_recovered', 'peers_accepted', 'tables_applied'],
    'one line when it begins and one when it ends',
  );
  await loop.stop();
});

t.test('a flood of events is applied together, at most every 50 ms', async (t) => {
  const { registry, loop, applied } = setUp();
  registry.say(snapshot('1'));
  await loop.start();
  for (let i = 0; i < 300; i++) {
    registry.say({ kind: 'events', events: [{ type: 'put', record: record(2 + (i % 200)) }], cursor: String(i) });
    if (i % 3 === 0) await pause(1);
  }
  await until(() => applied.at(-1)?.names.split(',').length === 200);
  t.equal(applied.at(-1)?.names.split(',').length, 200);
  const gaps = applied.slice(1).map((one, i) => one.at - applied[i].at);
  t.ok(gaps.length > 0 && gaps.every((gap) => gap > 45), `${applied.length} changes, ${gaps.map(Math.round)} ms apart`);
  await loop.stop();
});

t.test('what could not be applied is tried again', async (t) => {
  const { registry, loop, applied, full } = setUp();
  registry.say(snapshot('1', record(2)));
  await loop.start();
  full.value = true;
  registry.say(snapshot('2', record(3)));
  await until(() => loop.state.failures >= 2);
  t.match(loop.state.problem, /table full/);
  t.ok(loop.state.failures >= 2, 'more than once');
  full.value = false;
  await until(() => loop.state.problem === undefined);
  t.equal(applied.at(-1)?.names, 'p3');
  t.equal(loop.state.problem, undefined);
  await loop.stop();
});

t.test('a registry that throws is watched again from the last cursor', async (t) => {
  const { registry, loop, applied } = setUp();
  registry.say(snapshot('7', record(2)));
  await loop.start();
  registry.say(undefined);
  await until(() => loop.state.problem !== undefined);
  t.match(loop.state.problem, /connection lost/);
  registry.say({ kind: 'events', events: [{ type: 'delete', id: 'p2' }], cursor: '8' });
  await until(() => applied.at(-1)?.names === '' && loop.state.problem === undefined);
  t.same(registry.cursors, [undefined, '7']);
  t.equal(applied.at(-1)?.names, '');
  t.equal(loop.state.problem, undefined);
  await loop.stop();
});

t.test('path MTU', async (t) => {
  const plan = (mtu?: number): Plan => {
    const one = (number: number): PeerRecord => ({ ...record(number), underlayMtu: mtu });
    return planFor(new Map([2, 3].map((number) => [`p${number}`, one(number)])), self);
  };
  let have = plan();
  const keys = [...have.peers.keys()];
  const suspects = new Set<number>();
  const mtus = new Map<number, number>();
  const asked: string[] = [];
  const paths = new Map<string, number>();
  let events = 0;
  const path = new PathMtu({
    shared: { mtuEvents: () => events },
    tables: { takeMtuSuspect: (ref) => suspects.delete(ref), setPeerMtu: (ref, mtu) => void mtus.set(ref, mtu) },
    applier: {
      get have() {
        return have;
      },
      ref: (key) => (have.peers.has(key) ? keys.indexOf(key) + 1 : undefined),
    },
    query: async (addresses) => {
      asked.push(addresses.join());
      return paths;
    },
    log: new TestLog(),
  });
  const suspect = (...refs: number[]): void => {
    for (const ref of refs) suspects.add(ref);
    events++;
  };
  await path.look(0);
  t.same(asked, [], 'nothing happened: nobody is asked');

  suspect(1);
  paths.set('192.168.77.2', 1400);
  await path.look(1000);
  t.same(asked.splice(0), ['192.168.77.2'], 'only the one');
  t.same([...mtus], [[1, 1372]]);
  t.equal(path.lowered, 1);

  suspect(1, 2);
  await path.look(1250);
  t.same(asked, [], 'not again at once');
  paths.set('192.168.77.2', 1300);
  paths.set('192.168.77.3', 9000);
  await path.look(2000);
  t.same(asked.splice(0), ['192.168.77.2,192.168.77.3']);
  t.same([...mtus], [[1, 1272]], 'smaller still; the other path has room, and the plan is not exceeded');

  await path.look(31_000);
  t.same(asked, []);
  await path.look(32_000);
  t.same(asked.splice(0), ['192.168.77.2'], 'asked again after 30 s');
  paths.delete('192.168.77.2');
  await path.look(62_000);
  t.equal(mtus.get(1), 1272, 'no route now: as it was');
  paths.set('192.168.77.2', 1450);
  await path.look(92_000);
  t.equal(mtus.get(1), 1422, 'grown');
  paths.set('192.168.77.2', 1500);
  await path.look(122_000);
  t.equal(mtus.get(1), 1472, 'whole again');
  t.equal(path.lowered, 0);
  asked.length = 0;
  await path.look(200_000);
  t.same(asked, [], 'and no longer asked about');

  paths.set('192.168.77.2', 1000);
  suspect(1);
  await path.look(201_000);
  t.equal(path.lowered, 1);
  have = plan(1100); // control sets the new MTU in the tables itself
  await path.look(202_000);
  t.equal(path.lowered, 0, 'planned anew: starts afresh');
});

t.test('path MTU of a peer in several networks', async (t) => {
  const both: Self = { ...self, networks: [], subnets: [], vnis: [42, 43] };
  const one = (number: number): PeerRecord => makeRecord({ ...record(number), subnets: [] });
  const have = planFor(new Map([2, 3].map((number) => [`p${number}`, one(number)])), both);
  const keys = [...have.peers.keys()];
  t.equal(keys.length, 4);
  const mtus = new Map<number, number>();
  const asked: string[] = [];
  const suspects = new Set([2]);
  const path = new PathMtu({
    shared: { mtuEvents: () => 1 },
    tables: { takeMtuSuspect: (ref) => suspects.delete(ref), setPeerMtu: (ref, mtu) => void mtus.set(ref, mtu) },
    applier: { have, ref: (key) => keys.indexOf(key) + 1 },
    query: async (addresses) => {
      asked.push(addresses.join());
      return new Map([['192.168.77.2', 1400]]);
    },
    log: new TestLog(),
  });
  await path.look(1000);
  t.same(asked, ['192.168.77.2'], 'one question');
  t.same([...mtus].sort(), [
    [1, 1364],
    [2, 1364],
  ]);
  t.same([...have.peers.values()].map(({ address }) => address).slice(0, 2), ['192.168.77.2', '192.168.77.2']);
});
