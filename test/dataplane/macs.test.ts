/**
 * MAC tables: learned ones with an injected clock and against a Map, static ones through commits, and what people read.
 */
import t from 'tap';
import * as counters from '../../src/dataplane/counters.js';
import { readMacs } from '../../src/dataplane/forwarding.js';
import {
  hashMac,
  LearnedMacs,
  LOCAL,
  lookupStaticMac,
  macBytes,
  macHigh,
  macLow,
  StaticMacTable,
} from '../../src/dataplane/macs.js';
import { PeerSlots, type PeerSpec } from '../../src/dataplane/peers.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory, MAC_BYTES, type MemoryOptions } from '../../src/io/memory.js';
import { address, hex, random } from '../lib/packets.js';

t.setTimeout(180_000);

const AGE = 300_000;
const SPEC: PeerSpec = { address: address('192.168.77.2'), port: 4789, mtu: 1464, ecn: true, network: 0 };

function makeMemory(options: Partial<MemoryOptions> = {}): EngineMemory {
  return EngineMemory.create({
    workers: 1,
    peers: 64,
    routeNodes: 64,
    networks: 2,
    macs: 1024,
    neighbours: 1024,
    statics: 64,
    ...options,
  });
}

/** A learned table, four peers, and short ways to use them. A MAC is a number: its last bytes. */
function make(options: Partial<MemoryOptions> = {}, settings: { age?: number; perPeer?: number } = {}) {
  const memory = makeMemory(options);
  const slots = new PeerSlots(memory);
  const refs = Array.from({ length: 4 }, () => slots.add(SPEC));
  const macs = new LearnedMacs(memory, 0, { age: settings.age ?? AGE, perPeer: settings.perPeer ?? 1e6 }, undefined);
  return {
    memory,
    slots,
    refs,
    macs,
    learn: (mac: number, ref: number, now: number, network = 0) =>
      macs.learn(lowOf(mac), highOf(mac), network, ref, now | 0),
    look: (mac: number, now: number, network = 0) => macs.lookup(lowOf(mac), highOf(mac), network, now | 0),
    /** Enough calls for the cursor to come by every slot. */
    sweepAll: (now: number) => {
      for (let i = 0; i < memory.layout.macSlots + 64; i += 1) macs.sweep((now + (i & 1)) | 0);
    },
    count: (id: number) => counters.readCounter(memory, id),
  };
}

/** 02:00:xx:xx:xx:xx with the number at the end, as software counts them up. */
const bytesOf = (mac: number): Uint8Array => Uint8Array.of(2, 0, mac >>> 24, mac >>> 16, mac >>> 8, mac);
const lowOf = (mac: number): number => macLow(bytesOf(mac));
const highOf = (mac: number): number => macHigh(bytesOf(mac));

/** Starts of the clock: an early one, and some that wrap within the test (i32, and the sign). */
const STARTS = [1000, 0, 2 ** 31 - 150_000, 2 ** 32 - 150_000, 2 ** 31 - 1, 2 ** 32 - 1];

t.test('the two numbers of a MAC', async (t) => {
  const mac = Uint8Array.of(0x02, 0x80, 0xff, 0x81, 0xfe, 0x07);
  t.equal(macLow(mac), new DataView(mac.buffer).getInt32(0, true));
  t.equal(macHigh(mac), 0x07fe);
  t.same(macBytes(macLow(mac), macHigh(mac) | (3 << 16)), mac);
});

t.test('ageing: 299 s alive, 301 s gone, refreshed at 299 s, wherever the clock wraps', async (t) => {
  for (const start of STARTS) {
    for (const swept of [false, true]) {
      const { learn, look, refs, sweepAll, macs, count } = make();
      const sweep = (now: number): void => {
        if (swept) sweepAll(now);
      };
      learn(1, refs[0], start);
      learn(2, refs[1], start);
      learn(3, LOCAL, start);
      sweep(start + 299_000);
      t.equal(look(1, start + 299_000), refs[0]);
      t.equal(look(3, start + 299_000), LOCAL);
      learn(2, refs[1], start + 299_000);
      sweep(start + 301_000);
      t.equal(look(1, start + 301_000), 0, `start ${start}, swept: ${swept}`);
      t.equal(look(2, start + 301_000), refs[1], 'refreshed');
      t.equal(look(3, start + 301_000), 0);
      t.equal(macs.size, swept ? 1 : 3);
      t.equal(count(counters.MACS_AGED), swept ? 2 : 0);
      sweep(start + 598_000);
      t.equal(look(2, start + 598_000), refs[1]);
      sweep(start + 600_000);
      t.equal(look(2, start + 600_000), 0);
      t.equal(count(counters.MACS_LEARNED), 3);
      // Aged at another place: nothing has moved, it is new.
      learn(1, refs[3], start + 601_000);
      t.equal(look(1, start + 601_000), refs[3]);
      t.equal(count(counters.MACS_MOVED), 0);
      t.equal(count(counters.MACS_LEARNED), 4);
      sweepAll(start + 601_500);
      t.equal(count(counters.MACS_AGED), 3);
      t.equal(macs.size, 1);
    }
  }
});

t.test('ageing: the longest age, over all of the clock', async (t) => {
  const { learn, look, refs, sweepAll, macs } = make({}, { age: 1e9 });
  learn(1, refs[0], 2 ** 31 - 5);
  t.equal(look(1, 2 ** 31 - 5 + 1e9), refs[0]);
  t.equal(look(1, 2 ** 31 - 5 + 1e9 + 1), 0);
  sweepAll(2 ** 31 - 5 + 1e9 + 1);
  t.equal(macs.size, 0);
});

t.test('the sweep takes small steps', async (t) => {
  const { macs, learn, refs, memory, count } = make();
  for (let i = 0; i < 1024; i++) learn(i, refs[0], 0);
  let calls = 0;
  macs.sweep(AGE); // not idle before
  for (let now = AGE + 1; macs.size > 0; now++) {
    const before = macs.size;
    macs.sweep(now);
    macs.sweep(now); // the same millisecond: nothing to do
    t.ok(before - macs.size <= 64);
    calls++;
    if (calls > 2 * memory.layout.macSlots) break;
  }
  t.equal(macs.size, 0);
  t.equal(count(counters.MACS_AGED), 1024);
});

t.test('a worker that is idle sweeps all of the table in some ten seconds', async (t) => {
  const { macs, learn, refs } = make();
  for (let i = 0; i < 1024; i++) learn(i, refs[0], 0);
  let now = AGE + 1;
  for (; macs.size > 0 && now < AGE + 60_000; now += 500) macs.sweep(now);
  t.equal(macs.size, 0);
  t.ok(now < AGE + 15_000, `after ${now - AGE} ms`);
});

t.test('moves are followed at once, between peers and us', async (t) => {
  const { learn, look, refs, count } = make();
  learn(1, refs[0], 100);
  learn(1, refs[1], 101);
  t.equal(look(1, 101), refs[1]);
  learn(1, LOCAL, 102);
  t.equal(look(1, 102), LOCAL);
  learn(1, refs[0], 103);
  t.equal(look(1, 103), refs[0]);
  t.equal(count(counters.MACS_MOVED), 3);
  t.equal(count(counters.MACS_LEARNED), 1);
  // A move refreshes.
  t.equal(look(1, 103 + AGE), refs[0]);
  t.equal(look(1, 104 + AGE), 0);
  // Back after ageing where it was.
  learn(1, refs[0], 200 + AGE);
  t.equal(look(1, 200 + AGE), refs[0]);
});

t.test('more than 5 moves in 10 s: held for 10 s, and counted', async (t) => {
  for (const start of STARTS) {
    const { learn, look, refs, count, sweepAll } = make();
    const [a, b] = refs;
    learn(1, a, start);
    for (let i = 1; i <= 5; i++) {
      learn(1, i & 1 ? b : a, start + i * 1000);
      t.equal(look(1, start + i * 1000), i & 1 ? b : a);
    }
    t.equal(count(counters.MACS_MOVED), 5);
    learn(1, a, start + 10_900); // 9.9 s after the first move
    t.equal(look(1, start + 10_900), b, `held, start ${start}`);
    learn(1, b, start + 11_000);
    t.equal(look(1, start + 11_000), b);
    learn(1, a, start + 20_899);
    t.equal(look(1, start + 20_899), b, 'still held');
    t.equal(count(counters.MACS_HELD), 2);
    learn(1, a, start + 20_900);
    t.equal(look(1, start + 20_900), a, 'followed again 10 s later');
    t.equal(count(counters.MACS_MOVED), 6);
    t.equal(count(counters.MACS_HELD), 2);
    // And all of it again, from one.
    for (let i = 1; i <= 4; i++) learn(1, i & 1 ? b : a, start + 20_900 + i);
    t.equal(count(counters.MACS_MOVED), 10);
    learn(1, b, start + 20_910);
    t.equal(count(counters.MACS_HELD), 3);
    t.equal(look(1, start + 20_910), a);
    sweepAll(start + 40_000);
    learn(1, b, start + 40_000);
    t.equal(look(1, start + 40_000), b);
  }
});

t.test('five moves in each 10 s are followed for ever; another MAC is not held with it', async (t) => {
  const { learn, look, refs, count } = make();
  learn(1, refs[0], 0);
  learn(2, refs[0], 0);
  for (let i = 1; i <= 50; i++) {
    learn(1, refs[i & 1], i * 2000);
    t.equal(look(1, i * 2000), refs[i & 1]);
  }
  t.equal(count(counters.MACS_HELD), 0);
  for (let i = 1; i <= 20; i++) learn(1, refs[i & 1], 200_000 + i);
  // At most five were followed; of the rest every second one was where it is held.
  t.ok(count(counters.MACS_HELD) >= 7);
  learn(2, refs[1], 200_050);
  t.equal(look(2, 200_050), refs[1]);
});

t.test('a window of moves from before the clock went half round is no window', async (t) => {
  const { learn, look, refs, count, sweepAll } = make({}, { age: 1e9 });
  for (let i = 0; i <= 5; i++) learn(1, refs[i & 1], i);
  const kept = look(1, 5);
  // Kept alive for 2^32 ms; the sweep comes by now and then.
  for (let days = 0; days < 2 ** 32; days += 5e8) {
    learn(1, kept, days);
    sweepAll(days);
  }
  learn(1, kept, 2 ** 32);
  const other = kept === refs[0] ? refs[1] : refs[0];
  learn(1, other, 2 ** 32 + 7);
  t.equal(look(1, 2 ** 32 + 7), other);
  t.equal(count(counters.MACS_HELD), 0);
});

t.test('a peer has its share, and none of another', async (t) => {
  const { learn, look, refs, count, sweepAll, macs } = make({}, { perPeer: 10 });
  for (let i = 0; i < 15; i++) learn(i, refs[0], 0);
  for (let i = 100; i < 110; i++) learn(i, refs[1], 0);
  for (let i = 200; i < 300; i++) learn(i, LOCAL, 0);
  t.equal(count(counters.MACS_OVER_LIMIT), 5);
  t.equal(macs.size, 120);
  t.equal(look(9, 0), refs[0]);
  t.equal(look(10, 0), 0);
  // A move to a peer that has its share is not followed, a move away makes room.
  learn(100, refs[0], 1);
  t.equal(look(100, 1), refs[1]);
  t.equal(count(counters.MACS_OVER_LIMIT), 6);
  learn(0, refs[2], 1);
  t.equal(look(0, 1), refs[2]);
  learn(100, refs[0], 2);
  t.equal(look(100, 2), refs[0]);
  learn(101, LOCAL, 2);
  learn(110, refs[1], 2);
  learn(111, refs[1], 2);
  t.equal(look(111, 2), refs[1]);
  learn(112, refs[1], 2);
  t.equal(look(112, 2), 0);
  // Ageing makes room.
  sweepAll(2 + AGE + 1);
  t.equal(macs.size, 0);
  for (let i = 0; i < 10; i++) learn(i, refs[0], 2 + AGE + 1);
  t.equal(look(9, 2 + AGE + 1), refs[0]);
  learn(10, refs[0], 2 + AGE + 1);
  t.equal(look(10, 2 + AGE + 1), 0);
});

t.test('the table is full at options.macs, whoever fills it', async (t) => {
  const { learn, look, refs, count, sweepAll, macs } = make();
  for (let i = 0; i < 1024; i++) learn(i, i & 1 ? LOCAL : refs[0], 0);
  learn(5000, refs[1], 0);
  learn(5001, LOCAL, 0);
  t.equal(count(counters.MACS_FULL), 2);
  t.equal(macs.size, 1024);
  t.equal(look(5000, 0), 0);
  learn(7, refs[1], 0); // what is known may still move
  t.equal(look(7, 0), refs[1]);
  for (let i = 0; i < 1024; i++) if (i !== 7 && look(i, 0) === 0) t.fail(`${i} is gone`);
  sweepAll(AGE + 1);
  t.equal(macs.size, 0);
  learn(5000, refs[1], AGE + 1);
  t.equal(look(5000, AGE + 1), refs[1]);
});

t.test("a removed peer's MACs die with it, and do not count for who has its slot next", async (t) => {
  const { learn, look, refs, slots, count, sweepAll, macs } = make({}, { perPeer: 10 });
  for (let i = 0; i < 10; i++) learn(i, refs[0], 0);
  learn(50, refs[1], 0);
  slots.remove(refs[0]);
  t.equal(look(3, 1), 0);
  const next = slots.add(SPEC);
  t.equal(next & 0xffff, refs[0] & 0xffff);
  t.equal(look(3, 1), 0);
  learn(3, next, 2);
  t.equal(look(3, 2), next);
  t.equal(count(counters.MACS_MOVED), 0, 'the old peer is gone: this is no move');
  for (let i = 100; i < 109; i++) learn(i, next, 2);
  t.equal(count(counters.MACS_OVER_LIMIT), 0);
  learn(109, next, 2);
  t.equal(count(counters.MACS_OVER_LIMIT), 1);
  sweepAll(3);
  t.equal(macs.size, 11);
  t.equal(count(counters.MACS_AGED), 10);
  learn(109, next, 4);
  t.equal(count(counters.MACS_OVER_LIMIT), 2, 'sweeping the dead does not change what the living have');
});

t.test('networks are apart', async (t) => {
  const { learn, look, refs } = make();
  learn(1, refs[0], 0, 0);
  learn(1, refs[1], 0, 1);
  t.equal(look(1, 0, 0), refs[0]);
  t.equal(look(1, 0, 1), refs[1]);
});

t.test('a worker that starts again starts with nothing', async (t) => {
  const { memory, learn, refs } = make();
  for (let i = 0; i < 500; i++) learn(i, refs[0], 0);
  const again = new LearnedMacs(memory, 0, { age: AGE, perPeer: 10 }, undefined);
  t.equal(again.size, 0);
  t.equal(again.lookup(lowOf(3), highOf(3), 0, 0), 0);
  const { macs, macSlots } = { ...memory.layout.workers[0], ...memory.layout };
  t.ok(memory.u8.subarray(macs, macs + macSlots * MAC_BYTES).every((byte) => byte === 0));
  t.throws(
    () => new LearnedMacs(makeMemory({ macs: 0 }), 0, { age: AGE, perPeer: 10 }, undefined),
    RangeError,
    'and one without a table does not start',
  );
});

t.test('like a Map: 2 × 10^5 random steps with moves, ageing, peers that go, and deletions', async (t) => {
  for (const [seed, most] of [
    [1, 64],
    [2, 1024],
  ]) {
    const rng = random(seed);
    const pick = (below: number): number => Math.floor(rng() * below);
    const age = 500;
    const { macs, memory, learn, look, slots, refs, count } = make({ macs: most }, { age, perPeer: most / 4 });
    const model = new Map<number, { ref: number; seen: number; window: number; moves: number }>();
    const alive = (ref: number): boolean => ref === LOCAL || refs.includes(ref);
    let now = 2 ** 31 - 10_000;
    let wrong = 0;
    let checked = 0;
    let held = 0;
    for (let step = 0; step < 100_000 && wrong === 0; step++) {
      if (pick(4) === 0) now++;
      if (pick(5000) === 0) now += age / 2;
      if (pick(2000) === 0) {
        const which = pick(refs.length);
        slots.remove(refs[which]);
        refs[which] = slots.add(SPEC);
      }
      const mac = pick(most * 1.2);
      macs.sweep(now | 0);
      const known = model.get(mac);
      const good = known !== undefined && now - known.seen <= age && alive(known.ref) ? known : undefined;
      checked++;
      if (look(mac, now) !== (good?.ref ?? 0)) {
        wrong++;
        t.fail(`step ${step}: ${mac} is at ${look(mac, now)}, not ${good?.ref}`);
      }
      const ref = pick(3) === 0 || !good ? [LOCAL, ...refs][pick(5)] : good.ref;
      // One that comes back where it was keeps the count of its moves if the sweep has not come by: not in the model.
      if (!good && known?.ref === ref) continue;
      const counted = [counters.MACS_FULL, counters.MACS_OVER_LIMIT].map(count);
      learn(mac, ref, now);
      if (count(counters.MACS_FULL) !== counted[0] || count(counters.MACS_OVER_LIMIT) !== counted[1]) continue;
      if (!good) {
        model.set(mac, { ref, seen: now, window: 0, moves: 0 });
      } else if (good.ref === ref) {
        good.seen = now;
      } else if (good.moves === 0 || now - good.window >= 10_000) {
        Object.assign(good, { ref, seen: now, window: now, moves: 1 });
      } else if (good.moves < 5) {
        Object.assign(good, { ref, seen: now, moves: good.moves + 1 });
      } else {
        if (good.moves === 5) good.window = now;
        good.moves = 6;
        held++;
      }
    }
    for (const mac of model.keys()) {
      const known = model.get(mac)!;
      const want = now - known.seen <= age && alive(known.ref) ? known.ref : 0;
      if (look(mac, now) !== want) t.fail(`at the end ${mac}`);
    }
    t.equal(count(counters.MACS_HELD), held);
    t.equal(count(counters.MACS_LEARNED) - count(counters.MACS_AGED), macs.size);
    t.ok(checked >= 100_000 && macs.size <= most, `${macs.size} of ${most}`);
    t.ok(memory.intactGuards());
    t.comment(`held ${held}, full ${count(counters.MACS_FULL)}, over ${count(counters.MACS_OVER_LIMIT)}`);
    // Nothing is left, and everything of it is free, when all has aged.
    for (let i = 0; i < memory.layout.macSlots * 2; i++) macs.sweep((now + age + 1 + i) | 0);
    t.equal(macs.size, 0);
    const { macs: at } = memory.layout.workers[0];
    t.ok(memory.u8.subarray(at, at + memory.layout.macSlots * MAC_BYTES).every((byte) => byte === 0));
  }
});

t.test('static: like a Map, with removals in any order, 2 × 10^5 random steps', async (t) => {
  const memory = makeMemory({ statics: 64 });
  const table = new StaticMacTable(memory, memory.layout.tables[0]);
  const at = memory.layout.tables[0].staticMacs >> 2;
  const mask = memory.layout.staticSlots - 1;
  const model = new Map<number, number>();
  const rng = random(3);
  for (let step = 0; step < 200_000; step++) {
    const mac = Math.floor(rng() * 100);
    const network = mac & 1;
    if (rng() < 0.5 && (model.size < 64 || model.has(mac))) {
      table.add(lowOf(mac), highOf(mac), network, 65536 + step);
      model.set(mac, 65536 + step);
    } else {
      table.remove(lowOf(mac), highOf(mac), network);
      model.delete(mac);
    }
    const other = Math.floor(rng() * 100);
    const got = lookupStaticMac(memory.i32, at, mask, lowOf(other), highOf(other), other & 1);
    if (got !== (model.get(other) ?? 0)) t.fail(`step ${step}`);
  }
  t.equal(table.size, model.size);
  t.equal(lookupStaticMac(memory.i32, at, -1, 1, 1, 0), 0, 'no table at all');
});

t.test('static: through commits, both versions, and refused beyond options.statics', async (t) => {
  const memory = makeMemory({ statics: 3 });
  const shared = new SharedWords(memory);
  const tables = new Tables(memory, () => {});
  const look = (version: number, mac: number, network = 0): number =>
    lookupStaticMac(
      memory.i32,
      memory.layout.tables[version].staticMacs >> 2,
      memory.layout.staticSlots - 1,
      lowOf(mac),
      highOf(mac),
      network,
    );
  const [one, two] = [0, 0].map(() => tables.addPeer(SPEC));
  tables.setMac(0, bytesOf(1), one);
  tables.setMac(0, bytesOf(2), one);
  tables.setMac(1, bytesOf(1), two);
  t.throws(() => tables.setMac(0, bytesOf(3), one), { message: 'static MAC table full: 3 entries' });
  tables.setMac(0, bytesOf(2), two);
  t.equal(tables.macCount, 3);
  t.equal(look(shared.activeVersion(), 1), 0, 'not before the commit');
  t.notOk(shared.hasStatics(shared.activeVersion()));
  await tables.commit();
  for (const version of [0, 1]) {
    t.same([look(version, 1), look(version, 2), look(version, 1, 1), look(version, 3)], [one, two, two, 0]);
    t.ok(shared.hasStatics(version));
  }
  tables.removeMac(0, bytesOf(1));
  tables.removeMac(0, bytesOf(77));
  tables.setMac(0, bytesOf(3), one);
  await tables.commit();
  for (const version of [0, 1]) t.same([look(version, 1), look(version, 3)], [0, one]);
  for (const [network, mac] of [
    [0, 2],
    [0, 3],
    [1, 1],
  ])
    tables.removeMac(network, bytesOf(mac));
  await tables.commit();
  t.equal(tables.macCount, 0);
  for (const version of [0, 1]) t.notOk(shared.hasStatics(version));
  const none = new Tables(makeMemory({ macs: 0, statics: 0 }), () => {});
  t.throws(() => none.setMac(0, bytesOf(1), one), RangeError, 'layer 3 has none');
});

t.test('what people read: static ones once, learned ones with their age', async (t) => {
  const { memory, macs, learn, refs, slots } = make();
  const tables = new Tables(memory, () => {});
  const start = 2 ** 31 - 500;
  tables.setMac(0, bytesOf(1), refs[0]);
  tables.setMac(1, bytesOf(0xfffefdfc), refs[1]);
  await tables.commit();
  learn(1, refs[1], start); // the registry says otherwise, and it is asked first
  learn(2, refs[1], start);
  learn(3, LOCAL, start + 800, 1);
  learn(4, refs[2], start);
  slots.remove(refs[2]);
  const list = (now: number, most?: number): string[] =>
    [...readMacs(memory, now | 0, most)]
      .map((one) => `${one.network} ${hex(one.mac)} ${refs.indexOf(one.ref)} ${one.origin} ${one.age}`)
      .sort();
  const statics = ['0 020000000001 0 static undefined', '1 0200fffefdfc 1 static undefined'];
  t.same(list(start + 1000), [
    statics[0],
    '0 020000000002 1 learned 1000',
    '1 020000000003 -1 learned 200',
    statics[1],
  ]);
  t.same(list(start + 1000, 999), [statics[0], '1 020000000003 -1 learned 200', statics[1]]);
  t.equal(macs.size, 4);
});

t.test('MACs that are counted up, as vendors and hypervisors do, scatter like random ones', async (t) => {
  const slots = 1 << 18;
  const count = 100_000;
  const rng = random(4);
  const patterns: Record<string, (i: number) => number[]> = {
    random: () => [2, rng() * 256, rng() * 256, rng() * 256, rng() * 256, rng() * 256],
    last: (i) => [2, 0, 0, i >> 16, i >> 8, i],
    first: (i) => [2, i, i >> 8, i >> 16, 0, 0],
    middle: (i) => [2, 0x42, i >> 16, i >> 8, i, 2],
    addresses: (i) => [2, 0x42, 10, 7 + (i >> 16), i >> 8, i],
    sixteens: (i) => [0, 0x16, 0x3e, i >> 12, i >> 4, i << 4],
    bytes: (i) => [2, 0, 0, i % 47, (i / 47) % 47, (i / 2209) % 47],
  };
  for (const secret of [0, (rng() * 2 ** 32) | 0, (rng() * 2 ** 32) | 0]) {
    for (const [name, pattern] of Object.entries(patterns)) {
      const taken = new Uint8Array(slots);
      let lines = 0;
      let longest = 0;
      for (let i = 0; i < count; i++) {
        const mac = Uint8Array.from(pattern(i));
        let slot = hashMac(macLow(mac), macHigh(mac), secret) & (slots - 1);
        let probes = 1;
        for (; taken[slot] === 1; slot = (slot + 1) & (slots - 1)) probes++;
        taken[slot] = 1;
        lines += 1 + ((slot & 1) + probes > 2 ? 1 : 0);
        longest = Math.max(longest, probes);
      }
      t.ok(lines / count < 1.3 && longest < 60, `${name}: ${(lines / count).toFixed(3)} lines, longest ${longest}`);
    }
  }
});

t.test('10^6 MACs', async (t) => {
  const { learn, look, refs, macs, memory, count } = make({ macs: 1_000_000 });
  for (let i = 0; i < 1_000_000; i++) learn(i, refs[i & 3], 0);
  t.equal(macs.size, 1_000_000);
  learn(1_000_000, refs[0], 0);
  t.equal(count(counters.MACS_FULL), 1);
  let wrong = 0;
  for (let i = 0; i < 1_000_000; i++) if (look(i, 1) !== refs[i & 3]) wrong++;
  t.equal(wrong, 0);
  let read = 0;
  for (const _ of readMacs(memory, 1)) read++;
  t.equal(read, 1_000_000);
  for (let now = AGE + 1; macs.size > 0 && now < AGE + 100_000; now++) macs.sweep(now);
  t.equal(macs.size, 0);
});
