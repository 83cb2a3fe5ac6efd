/** A registry that is remembered: its last word at once after a restart, and what it says now kept for the next. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { parseCidr } from '../../src/control/cidr.js';
import { makeRecord, type PeerRecord } from '../../src/control/records.js';
import type { RegistryUpdate } from '../../src/control/registry.js';
import { type Remembered, State } from '../../src/control/state.js';
import { WarmRegistry } from '../../src/control/warm-registry.js';
import { configFor, folder, TestClock, TestLog } from '../lib/embedded.js';
import { TestRegistry } from '../lib/test-registry.js';

const OWNER = '/registry 192.168.77.1';

const record = (number: number, subnet = number): PeerRecord =>
  makeRecord({
    id: `p${number}`,
    name: `p${number}`,
    address: `192.168.77.${number}`,
    port: 8285,
    subnets: [`10.5.${subnet}.0/24`],
    ecn: true,
  });

const snapshot = (cursor: string, ...records: PeerRecord[]): RegistryUpdate => ({ kind: 'snapshot', records, cursor });
const put = (cursor: string, one: PeerRecord): RegistryUpdate => ({
  kind: 'events',
  events: [{ type: 'put', record: one }],
  cursor,
});
const AWAY: RegistryUpdate = { kind: 'trouble', trouble: { reason: 'away' } };

interface Stage {
  readonly inner: TestRegistry;
  readonly state: State;
  /** What the state was asked to do, in order. */
  readonly asked: string[];
  /** A full disk does not work; a slow one takes milliseconds for each. */
  readonly disk: { works: boolean; takes: number };
  readonly updates: RegistryUpdate[];
  /** Moves time on, from timer to timer. */
  pass(seconds: number): void;
  watch(cursor?: string): Promise<unknown>;
  /** Timers that run. */
  readonly timers: { readonly size: number };
  end(): Promise<void>;
}

/** Time is the test's: performance.now() and the timers that are set. */
function setUp(t: Test, warm?: { readonly remembered: Remembered; readonly reason: string }): Stage {
  const state = State.open(join(folder(t), 'state'), new TestClock(), new TestLog());
  const asked: string[] = [];
  const disk = { works: true, takes: 0 };
  let now = 1000;
  const { remember, confirm } = state;
  state.remember = (what) => {
    asked.push(`remember ${what.records.map((one) => one.id).sort()}`);
    now += disk.takes;
    return disk.works && remember.call(state, what);
  };
  state.confirm = () => {
    asked.push('confirm');
    return disk.works && confirm.call(state);
  };

  const timers = new Map<object, { readonly run: () => void; readonly at: number }>();
  const { setTimeout, clearTimeout } = globalThis;
  const performanceNow = Object.getOwnPropertyDescriptor(performance, 'now');
  const fakeTimeout = (run: () => void, ms = 0): object => {
    if (ms === 0) return setTimeout(run); // LMDB's, for the end of this turn of the event loop
    const timer = { unref: () => timer };
    timers.set(timer, { run, at: now + ms });
    return timer;
  };
  const cancel = (timer: NodeJS.Timeout): void => {
    if (!timers.delete(timer)) clearTimeout(timer);
  };
  Object.assign(globalThis, { setTimeout: fakeTimeout, clearTimeout: cancel });
  performance.now = () => now;

  const inner = new TestRegistry();
  const registry = new WarmRegistry({
    inner,
    state,
    owner: OWNER,
    config: configFor('10.5.0.0/16'),
    subnets: [parseCidr('10.5.1.0/24')],
    confirmEvery: 20_000,
    ...(warm ? { warm } : {}),
  });
  t.equal(registry.name, inner.name);
  const updates: RegistryUpdate[] = [];
  let abort = new AbortController();
  let watching: Promise<unknown> = Promise.resolve();
  const end = async (): Promise<void> => {
    abort.abort();
    await watching;
  };
  t.teardown(async () => {
    await end();
    Object.assign(globalThis, { setTimeout, clearTimeout });
    if (performanceNow) Object.defineProperty(performance, 'now', performanceNow);
    else Reflect.deleteProperty(performance, 'now');
    await state.close();
  });
  return {
    inner,
    state,
    asked,
    disk,
    updates,
    timers,
    end,
    pass: (seconds) => {
      for (const end = now + seconds * 1000; ; ) {
        const [first] = [...timers].sort(([, a], [, b]) => a.at - b.at);
        if (!first || first[1].at > end) {
          now = Math.max(now, end);
          return;
        }
        now = Math.max(now, first[1].at);
        timers.delete(first[0]);
        first[1].run();
      }
    },
    watch: (cursor) => {
      abort = new AbortController();
      const read = async (): Promise<unknown> => {
        try {
          for await (const update of registry.watch(abort.signal, cursor)) updates.push(update);
          return undefined;
        } catch (error) {
          return error;
        }
      };
      watching = read();
      return watching;
    },
  };
}

/** As many turns of the event loop as anything here needs; time stands still. */
async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
}

const REMEMBERED: Remembered = {
  owner: OWNER,
  config: configFor('10.5.0.0/16'),
  subnets: [parseCidr('10.5.1.0/24')],
  records: [record(2), record(3)],
  confirmed: 1_700_000_000_000,
  age: 5000,
};

t.test('warm: what is remembered first, as what it is, and then the registry', async (t) => {
  const { inner, updates, asked, state, pass, watch } = setUp(t, { remembered: REMEMBERED, reason: 'does not exist' });
  watch();
  await settle();
  t.same(updates, [
    {
      kind: 'snapshot',
      records: [record(2), record(3)],
      cursor: '',
      trouble: { reason: 'does not exist', since: 1_700_000_000_000 },
    },
  ]);
  inner.say(AWAY, AWAY);
  await settle();
  t.same(updates.slice(1), [AWAY, AWAY]);
  pass(100);
  t.same(asked, [], 'nothing new is known: what is remembered grows old');
  inner.say(snapshot('7', record(2)));
  await settle();
  t.same(updates.slice(3), [snapshot('7', record(2))]);
  t.same(asked, ['remember p2']);
  t.match(state.recall(OWNER), { records: [record(2)], subnets: [{ text: '10.5.1.0/24' }], config: REMEMBERED.config });
  t.same(inner.cursors, [undefined]);
});

t.test('warm is told once: who has a cursor goes on from it', async (t) => {
  const { inner, updates, watch } = setUp(t, { remembered: REMEMBERED, reason: 'away' });
  const ended = watch();
  inner.say(undefined);
  t.match(await ended, { message: 'connection lost' }, 'what the registry throws is thrown');
  t.equal(updates.length, 1);
  const again = watch('');
  inner.say(snapshot('7', record(2)), undefined);
  await again;
  t.same(updates.slice(1), [snapshot('7', record(2))], 'the cursor of what was remembered: not told again');
  watch('7');
  inner.say(put('8', record(4)));
  await settle();
  t.same(inner.cursors, [undefined, undefined, '7'], 'and it means nothing to the registry');
  t.same(updates.slice(2), [put('8', record(4))]);
});

t.test('without: nothing but the registry', async (t) => {
  const { inner, updates, watch } = setUp(t);
  watch();
  await settle();
  t.same(updates, []);
  inner.say(snapshot('1'), put('2', record(2)), AWAY);
  await settle();
  t.same(updates, [snapshot('1'), put('2', record(2)), AWAY]);
});

t.test('a change is remembered before it is told', async (t) => {
  const { inner, asked, updates, pass, watch } = setUp(t);
  watch();
  for (const [i, update] of [snapshot('1', record(2)), put('2', record(3)), put('3', record(4))].entries()) {
    inner.say(update);
    await settle();
    t.equal(updates.length, i + 1);
    t.equal(asked.length, i + 1);
    pass(0.1);
  }
  t.same(asked, ['remember p2', 'remember p2,p3', 'remember p2,p3,p4']);
});

t.test('a flood of changes on a slow disk is remembered together', async (t) => {
  const { inner, asked, disk, state, pass, watch } = setUp(t);
  watch();
  disk.takes = 20;
  inner.say(snapshot('1', record(2)));
  await settle();
  t.same(asked.splice(0), ['remember p2']);
  for (let i = 0; i < 300; i++) inner.say(put(String(i), record(3, 3 + (i % 50))));
  inner.say(put('x', record(3, 99)));
  await settle();
  t.same(asked, [], 'not at once again');
  pass(1);
  t.same(asked.splice(0), ['remember p2,p3']);
  t.same(state.recall(OWNER)?.records, [record(2), record(3, 99)], 'the last of them');
  for (let i = 0; i < 500; i++) {
    inner.say(put('y', record(4, i % 250)));
    await settle();
    pass(0.02);
  }
  t.ok(asked.length >= 10 && asked.length <= 60, `${asked.length} times in 10 s with 500 changes`);
  inner.say({ kind: 'events', events: [{ type: 'delete', id: 'p4' }], cursor: 'z' });
  await settle();
  pass(1);
  t.same(state.recall(OWNER)?.records, [record(2), record(3, 99)]);
});

t.test('nobody is worth remembering too', async (t) => {
  const { inner, asked, state, watch } = setUp(t);
  watch();
  inner.say(snapshot('1'));
  await settle();
  t.same(asked, ['remember ']);
  t.match(state.recall(OWNER), { records: [] });
});

t.test('what does not change is confirmed, as long as the registry is there', async (t) => {
  const { inner, asked, pass, watch } = setUp(t);
  watch();
  inner.say(snapshot('1', record(2)));
  await settle();
  asked.length = 0;
  inner.say(put('1', record(2)), put('1', record(2)));
  await settle();
  t.same(asked, [], 'a renewal is nothing to remember');
  pass(60);
  t.ok(asked.length >= 2 && asked.length <= 60 && asked.every((one) => one === 'confirm'), asked.join());
  inner.say({ kind: 'events', events: [], cursor: '1', trouble: { reason: 'away' } });
  await settle();
  asked.length = 0;
  pass(100);
  t.same(asked, [], 'not while it is away');
  inner.say({ kind: 'events', events: [], cursor: '1' });
  await settle();
  pass(21);
  t.same([...new Set(asked)], ['confirm'], 'and again when it is back');
});

t.test('what could not be remembered is tried again, every second and no more', async (t) => {
  const { inner, asked, state, disk, pass, watch } = setUp(t);
  watch();
  disk.works = false;
  inner.say(snapshot('1', record(2)));
  await settle();
  pass(10);
  t.ok(asked.length >= 5 && asked.length <= 11, `${asked.length} times in 10 s`);
  t.equal(state.recall(OWNER), undefined);
  disk.works = true;
  pass(2);
  t.match(state.recall(OWNER), { records: [record(2)] });
  asked.length = 0;
  pass(10);
  t.same(asked, []);
});

t.test('what was not remembered yet is, at the end', async (t) => {
  const { inner, asked, disk, state, timers, watch, end } = setUp(t);
  watch();
  disk.takes = 20;
  inner.say(snapshot('1', record(2)));
  await settle();
  inner.say(put('2', record(3)));
  await settle();
  t.same(asked.splice(0), ['remember p2']);
  await end();
  t.same(asked.splice(0), ['remember p2,p3']);
  t.match(state.recall(OWNER), { records: [record(2), record(3)] });
  t.equal(timers.size, 0, 'and no timer is left');
  watch('2');
  await settle();
  await end();
  t.same(asked, [], 'once');
});

t.test('a watch from a cursor adds to what the one before it knew', async (t) => {
  const { inner, state, pass, watch } = setUp(t);
  const ended = watch();
  inner.say(snapshot('1', record(2)), undefined);
  await ended;
  watch('1');
  inner.say(put('2', record(3)));
  await settle();
  pass(2);
  t.same(state.recall(OWNER)?.records, [record(2), record(3)]);
});
