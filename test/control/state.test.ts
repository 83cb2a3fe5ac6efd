/** What one daemon remembers over a restart, and what it does when it cannot. */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { parseCidr } from '../../src/control/cidr.js';
import { openLmdb } from '../../src/control/lmdb.js';
import { makeRecord } from '../../src/control/records.js';
import { type Snapshot, State } from '../../src/control/state.js';
import { SetupError } from '../../src/io/setup-error.js';
import { configFor, folder, TestClock, TestLog } from '../lib/embedded.js';

const HOUR = 3_600_000;
const OWNER = '/registry 192.168.77.1';

const snapshot = (...numbers: number[]): Snapshot => ({
  owner: OWNER,
  config: configFor('10.5.0.0/16,fd00:5::/48'),
  subnets: ['10.5.1.0/24', 'fd00:5:0:1::/64'].map(parseCidr),
  records: numbers.map((number) =>
    makeRecord({
      id: `192.168.77.${number}`,
      name: `host ${number}`,
      address: `192.168.77.${number}`,
      port: 8285,
      subnets: [`10.5.${number}.0/24`, `fd00:5:0:${number}::/64`],
      underlayMtu: number % 2 ? 1400 : undefined,
      ecn: number % 3 === 0,
    }),
  ),
});

interface Stage {
  readonly directory: string;
  readonly clock: TestClock;
  readonly log: TestLog;
  open(): State;
}

function setUp(t: Test, directory = join(folder(t), 'state')): Stage {
  const clock = new TestClock();
  const log = new TestLog();
  const open = (): State => {
    const state = State.open(directory, clock, log);
    t.teardown(() => state.close().catch(() => {})); // that may have been done already
    return state;
  };
  return { directory, clock, log, open };
}

/** Sets the wall clock, until the test ends. */
function stopWallClock(t: Test): { now: number } {
  const wall = { now: 1_700_000_000_000 };
  const { now } = Date;
  Date.now = () => wall.now;
  t.teardown(() => {
    Date.now = now;
  });
  return wall;
}

t.test('remembers over a restart what it was told last', async (t) => {
  const { open, log } = setUp(t);
  const first = open();
  t.equal(first.recall(OWNER), undefined, 'nothing yet');
  t.ok(first.remember(snapshot(2, 3)));
  t.ok(first.remember(snapshot(2, 3, 4)));
  await first.close();
  const again = open();
  t.match(again.recall(OWNER), snapshot(2, 3, 4));
  t.ok(again.remember({ ...snapshot(), subnets: [parseCidr('10.5.7.0/24')] }));
  t.match(again.recall(OWNER), { records: [], subnets: [{ text: '10.5.7.0/24' }] }, 'nobody is something too');
  t.same(log.lines, []);
});

t.test('any records come back as they were', async (t) => {
  const { open } = setUp(t);
  const state = open();
  const text = fc.string({ unit: 'grapheme', maxLength: 20 });
  const records = fc.array(
    fc
      .record({
        id: text,
        name: text,
        number: fc.integer({ min: 1, max: 254 }),
        port: fc.integer({ min: 1, max: 65535 }),
        underlayMtu: fc.option(fc.integer({ min: 68, max: 65535 }), { nil: undefined }),
        ecn: fc.boolean(),
      })
      .map(({ number, ...rest }) =>
        makeRecord({ ...rest, address: `192.168.77.${number}`, subnets: [`10.5.${number}.0/24`] }),
      ),
  );
  fc.assert(
    fc.property(records, (some) => {
      if (!state.remember({ ...snapshot(), records: some })) throw new Error('not remembered');
      t.same(state.recall(OWNER)?.records, some);
    }),
    { numRuns: 50 },
  );
});

t.test('age: by the monotonic clock within a boot, whatever the wall clock is set to', async (t) => {
  const { open, clock } = setUp(t);
  const wall = stopWallClock(t);
  const state = open();
  state.remember(snapshot(2));
  const confirmed = wall.now;
  clock.now += HOUR;
  for (const step of [HOUR, 24 * HOUR, -24 * HOUR]) {
    wall.now = confirmed + step;
    t.match(state.recall(OWNER), { age: HOUR, confirmed });
  }
  wall.now = confirmed + HOUR;
  t.ok(state.confirm());
  clock.now += 10;
  t.match(state.recall(OWNER), { age: 10, confirmed: confirmed + HOUR }, 'a confirmation makes it young again');
});

t.test('age: by the wall clock after another boot, and never negative', async (t) => {
  const { open, clock } = setUp(t);
  const wall = stopWallClock(t);
  const state = open();
  state.remember(snapshot(2));
  clock.boot = 'second boot';
  clock.now = 5;
  wall.now += 3 * HOUR;
  t.match(state.recall(OWNER), { age: 3 * HOUR, confirmed: wall.now - 3 * HOUR });
  wall.now -= 100 * HOUR;
  t.match(state.recall(OWNER), { age: 0 }, 'a wall clock that went back');
  t.ok(state.confirm());
  clock.now += 7;
  t.match(state.recall(OWNER), { age: 7, confirmed: wall.now });
});

t.test('another’s memory is not used, and that is said', async (t) => {
  const { open, directory, log } = setUp(t);
  const state = open();
  state.remember(snapshot(2));
  t.equal(state.recall('/registry 192.168.77.2'), undefined);
  t.same(log.lines, [{ event: 'state_ignored', fields: { directory, of: OWNER, we: '/registry 192.168.77.2' } }]);
  t.match(state.recall(OWNER), snapshot(2), 'whose it is, it still is');
});

t.test('forgets', async (t) => {
  const { open, log } = setUp(t);
  const state = open();
  state.remember(snapshot(2));
  t.ok(state.forget());
  t.equal(state.recall(OWNER), undefined);
  await state.close();
  const again = open();
  t.equal(again.recall(OWNER), undefined, 'for good');
  t.ok(again.forget());
  t.same(log.lines, []);
});

t.test('a snapshot that is not what was written is not used, and that is said', async (t) => {
  for (const [what, key, change] of [
    ['another text', 'snapshot', (text: string) => text.replace('10.5.2', '10.5.3')],
    ['half of it', 'snapshot', (text: string) => text.slice(0, 199)],
    ['no digest', 'snapshot', (text: string) => text.slice(65)],
    ['something else', 'snapshot', () => 'nonsense'],
    ['nothing', 'snapshot', () => ''],
    ['no time', 'confirmed', () => undefined],
    ['a time that is none', 'confirmed', () => '{"wall":"noon","boot":"first boot","monotonic":1}'],
    ['a time that is no JSON', 'confirmed', () => '{"wall":'],
  ] as const) {
    const { open, directory, log } = setUp(t);
    const state = open();
    state.remember(snapshot(2));
    await state.close();
    const db = openLmdb(directory);
    const changed = change(String(db.get([key])));
    db.transactionSync(() => {
      if (changed === undefined) db.removeSync([key]);
      else db.putSync([key], changed);
    });
    await db.close();
    const again = open();
    t.equal(again.recall(OWNER), undefined, what);
    t.match(
      log.lines,
      [{ event: 'state_damaged', fields: { directory, reason: /^snapshot: /, effect: 'not used' } }],
      what,
    );
    t.equal(log.lines.length, 1);
    t.ok(again.remember(snapshot(3)));
    t.match(again.recall(OWNER), snapshot(3), 'and it can remember anew');
  }
});

t.test('bytes of it that have changed are never believed, and never stop the daemon', async (t) => {
  const { open, directory, log } = setUp(t);
  const state = open();
  state.remember(snapshot(2));
  await state.close();
  const file = join(directory, 'data.mdb');
  const sound = readFileSync(file);
  const text = '{"owner":';
  const from = sound.lastIndexOf(text) - 65; // its digest and a space
  const to = sound.indexOf(JSON.stringify(snapshot(2).records), from) + JSON.stringify(snapshot(2).records).length + 1;
  t.ok(from > 0 && to > from, 'it is in the file as it is');
  const wrong: string[] = [];
  let kept = 0;
  for (let byte = from; byte < to; byte += 3) {
    for (const flip of [1, 0x80]) {
      const damaged = Buffer.from(sound);
      damaged[byte] ^= flip;
      writeFileSync(file, damaged);
      rmSync(join(directory, 'lock.mdb'));
      log.lines.length = 0;
      let again: State | undefined;
      try {
        again = State.open(directory, new TestClock(), log);
        const recalled = again.recall(OWNER);
        if (recalled !== undefined) kept++;
        else if (log.events.join() !== 'state_damaged') wrong.push(`byte ${byte - from} ^ ${flip}: said ${log.events}`);
      } catch (error) {
        wrong.push(`byte ${byte - from} ^ ${flip}: ${error}`);
      } finally {
        await again?.close();
      }
    }
  }
  t.same(wrong, []);
  t.equal(kept, 0, `of ${to - from} bytes`);
});

t.test('a damaged file is moved aside, and all goes on as if there was none', async (t) => {
  const { open, directory, log } = setUp(t);
  const file = join(directory, 'data.mdb');
  for (const [i, damage] of [
    (): void => writeFileSync(file, 'this is no database'),
    (): void => {
      const fd = openSync(file, 'r+');
      writeSync(fd, Buffer.alloc(8), 0, 8, 0x18); // the magic number of the first page
      closeSync(fd);
    },
    (): void => writeFileSync(file, readFileSync(file).subarray(0, 8192)),
  ].entries()) {
    let state = open();
    for (let n = 0; n < 5; n++) state.remember(snapshot(...Array.from({ length: 50 }, (_, k) => k + 2)));
    await state.close();
    damage();
    const damaged = readFileSync(file);
    log.lines.length = 0;
    state = open();
    t.equal(state.recall(OWNER), undefined);
    t.equal(log.lines.length, 1);
    const { event, fields } = log.lines[0];
    t.match([event, fields.directory, fields.reason], ['state_damaged', directory, /^(not an LMDB|truncated)/]);
    const [, aside] = /^moved aside to (.*data\.mdb\.damaged-[\dTZ-]+)$/.exec(String(fields.effect)) ?? [];
    t.ok(readFileSync(aside).equals(damaged), 'as it was');
    t.equal(readdirSync(directory).filter((name) => name.includes('damaged')).length, i + 1, 'and each is kept');
    t.ok(state.remember(snapshot(2)));
    t.match(state.recall(OWNER), snapshot(2));
    await state.close();
  }
});

t.test('one daemon for each directory', async (t) => {
  const { open, directory, log } = setUp(t);
  const state = open();
  t.throws(
    () => State.open(directory, new TestClock(), log),
    new SetupError(
      'STATE_IN_USE',
      `state directory ${directory} is in use by another weftd (pid ${process.pid}): give each its own --state-dir`,
    ),
  );
  t.ok(state.remember(snapshot(2)), 'which disturbs nobody');
  await state.close();
  t.match(open().recall(OWNER), snapshot(2), 'free when it is closed');
});

t.test('a directory that is removed or replaced under a running daemon', async (t) => {
  const { open, directory, log } = setUp(t);
  const state = open();
  t.ok(state.remember(snapshot(2)));
  renameSync(directory, `${directory}.away`);
  t.notOk(state.remember(snapshot(3)));
  mkdirSync(directory);
  t.notOk(state.remember(snapshot(3)), 'it would be lost');
  const other = State.open(directory, new TestClock(), new TestLog());
  t.notOk(state.confirm(), 'nor into what another made there');
  t.equal(other.recall(OWNER), undefined);
  await other.close();
  rmSync(directory, { recursive: true });
  renameSync(`${directory}.away`, directory);
  t.ok(state.remember(snapshot(4)));
  t.match(log.lines, [
    { event: 'state_trouble', fields: { reason: 'its directory was removed or replaced' } },
    { event: 'state_recovered' },
  ]);
  t.equal(log.lines.length, 2);
  t.match(state.recall(OWNER), snapshot(4));
});

t.test('a directory that cannot be used', async (t) => {
  const file = join(folder(t), 'file');
  writeFileSync(file, '');
  for (const directory of [file, join(file, 'below')]) {
    t.throws(() => State.open(directory, new TestClock(), new TestLog()), {
      code: 'NO_STATE',
      message: /^state directory .* cannot be used: E(EXIST|NOTDIR)[^\n]*: check --state-dir$/,
    });
  }
});

const root = process.getuid?.() === 0;
t.test('a full disk is said once, and so is that it has room again', { skip: !root && 'needs root' }, async (t) => {
  const mount = join(folder(t), 'small');
  mkdirSync(mount);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'weft-unit', mount]);
  let mounted = true;
  const unmount = (): void => {
    if (mounted) execFileSync('umount', [mount]);
    mounted = false;
  };
  process.once('exit', unmount);
  const clock = new TestClock();
  const log = new TestLog();
  const state = State.open(join(mount, 'state'), clock, log);
  try {
    t.ok(state.remember(snapshot(2)));
    const fill = openSync(join(mount, 'filler'), 'w');
    try {
      for (;;) writeSync(fill, Buffer.alloc(4096));
    } catch (error) {
      t.match(error, { code: 'ENOSPC' });
    }
    closeSync(fill);
    for (let i = 0; i < 5; i++) t.notOk(i % 2 ? state.confirm() : state.remember(snapshot(3)));
    t.match(log.lines, [
      {
        event: 'state_trouble',
        fields: { reason: 'no space left on its disk', effect: 'a restart may know less' },
      },
    ]);
    t.equal(log.lines.length, 1);
    t.match(state.recall(OWNER), snapshot(2), 'what was there is there');
    rmSync(join(mount, 'filler'));
    t.ok(state.remember(snapshot(4)));
    t.ok(state.remember(snapshot(5)));
    t.same(log.events, ['state_trouble', 'state_recovered']);
    t.match(state.recall(OWNER), snapshot(5));
  } finally {
    await state.close();
    unmount();
    process.off('exit', unmount);
  }
});
