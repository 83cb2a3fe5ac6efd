/**
 * Neighbour tables: learned ones with an injected clock and against a Map, static ones through commits, what people
 * read.
 */
import t from 'tap';
import { addressWords } from '../../src/dataplane/addresses.js';
import * as counters from '../../src/dataplane/counters.js';
import { readNeighbours } from '../../src/dataplane/forwarding.js';
import { LOCAL, macBytes, macHigh, macLow } from '../../src/dataplane/macs.js';
import {
  findStaticNeighbour,
  LearnedNeighbours,
  NEIGHBOUR_FLAGS,
  NEIGHBOUR_MAC_HIGH,
  NEIGHBOUR_MAC_LOW,
  ROUTER,
  ROUTER_KNOWN,
  StaticNeighbourTable,
} from '../../src/dataplane/neighbours.js';
import { PeerSlots, type PeerSpec } from '../../src/dataplane/peers.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory, type MemoryOptions, NEIGHBOUR_BYTES } from '../../src/io/memory.js';
import { address, hex, random } from '../lib/packets.js';

t.setTimeout(180_000);

const AGE = 300_000;
const SPEC: PeerSpec = { address: address('192.168.77.2'), port: 4789, mtu: 1464, ecn: true, network: 0 };
const STARTS = [1000, 0, 2 ** 31 - 150_000, 2 ** 32 - 150_000, 2 ** 31 - 1, 2 ** 32 - 1];

const makeMemory = (options: Partial<MemoryOptions> = {}): EngineMemory =>
  EngineMemory.create({
    workers: 1,
    peers: 64,
    routeNodes: 64,
    networks: 2,
    macs: 1024,
    neighbours: 256,
    statics: 64,
    ...options,
  });

const macOf = (n: number): Uint8Array => Uint8Array.of(2, 0, n >>> 24, n >>> 16, n >>> 8, n);

/** What an entry says: the MAC's number and its flags, or nothing. */
function entryOf(i32: Int32Array, at: number): [number, number] | undefined {
  if (at < 0) return undefined;
  const mac = macBytes(i32[at + NEIGHBOUR_MAC_LOW], i32[at + NEIGHBOUR_MAC_HIGH]);
  return [new DataView(mac.buffer).getUint32(2), i32[at + NEIGHBOUR_FLAGS]];
}

function make(options: Partial<MemoryOptions> = {}, settings: { age?: number; perPeer?: number } = {}) {
  const memory = makeMemory(options);
  const slots = new PeerSlots(memory);
  const refs = Array.from({ length: 4 }, () => slots.add(SPEC));
  const table = new LearnedNeighbours(
    memory,
    0,
    { age: settings.age ?? AGE, perPeer: settings.perPeer ?? 1e6 },
    undefined,
  );
  return {
    memory,
    slots,
    refs,
    table,
    teach: (text: string, mac: number, ref: number, now: number, flags = 0, network = 0): void => {
      const [w0, w1, w2, w3] = addressWords(address(text));
      table.teach(w0, w1, w2, w3, network, macLow(macOf(mac)), macHigh(macOf(mac)), flags, ref, now | 0);
    },
    find: (text: string, now: number, network = 0): [number, number] | undefined => {
      const [w0, w1, w2, w3] = addressWords(address(text));
      return entryOf(memory.i32, table.find(w0, w1, w2, w3, network, now | 0));
    },
    sweepAll: (now: number): void => {
      for (let i = 0; i < memory.layout.neighbourSlots + 64; i++) table.sweep((now + (i & 1)) | 0);
    },
    count: (id: number) => counters.readCounter(memory, id),
  };
}

t.test('ageing: 299 s alive, 301 s gone, refreshed at 299 s, wherever the clock wraps', async (t) => {
  for (const start of STARTS) {
    for (const swept of [false, true]) {
      const { teach, find, refs, sweepAll, table, count } = make();
      const sweep = (now: number): void => {
        if (swept) sweepAll(now);
      };
      teach('10.7.0.1', 1, refs[0], start);
      teach('fd07::2', 2, refs[1], start);
      teach('10.7.0.3', 3, LOCAL, start);
      sweep(start + 299_000);
      t.same(find('10.7.0.1', start + 299_000), [1, 0]);
      t.same(find('10.7.0.3', start + 299_000), [3, 0]);
      teach('fd07::2', 2, refs[1], start + 299_000);
      sweep(start + 301_000);
      t.equal(find('10.7.0.1', start + 301_000), undefined, `start ${start}, swept: ${swept}`);
      t.equal(find('10.7.0.3', start + 301_000), undefined);
      t.same(find('fd07::2', start + 301_000), [2, 0]);
      t.equal(table.size, swept ? 1 : 3);
      sweep(start + 600_000);
      t.equal(find('fd07::2', start + 600_000), undefined);
      t.equal(count(counters.NEIGHBOURS_LEARNED), 3);
      t.equal(count(counters.NEIGHBOURS_AGED), swept ? 3 : 0);
      teach('10.7.0.1', 1, refs[0], start + 700_000);
      t.equal(count(counters.NEIGHBOURS_LEARNED), 4);
      sweepAll(start + 700_000);
      t.equal(count(counters.NEIGHBOURS_AGED), 3);
      t.equal(table.size, 1);
    }
  }
});

t.test('another MAC is believed at once, and counted', async (t) => {
  const { teach, find, refs, count } = make();
  teach('10.7.0.1', 1, refs[0], 0);
  teach('10.7.0.1', 1, refs[0], 1);
  t.equal(count(counters.NEIGHBOURS_LEARNED), 1);
  teach('10.7.0.1', 2, refs[1], 2);
  t.same(find('10.7.0.1', 2), [2, 0]);
  t.equal(count(counters.NEIGHBOURS_LEARNED), 2);
  teach('10.7.0.1', 2, LOCAL, 3); // the same MAC elsewhere: it moved, the neighbour did not change
  t.equal(count(counters.NEIGHBOURS_LEARNED), 2);
});

t.test('router or not: what is told replaces, what is not told keeps, unless the MAC is another', async (t) => {
  const { teach, find, refs } = make();
  const router = ROUTER | ROUTER_KNOWN;
  teach('fd07::1', 1, refs[0], 0);
  t.same(find('fd07::1', 0), [1, 0]);
  teach('fd07::1', 1, refs[0], 0, router);
  teach('fd07::1', 1, refs[0], 0, 0);
  t.same(find('fd07::1', 0), [1, router]);
  teach('fd07::1', 1, refs[0], 0, ROUTER_KNOWN);
  t.same(find('fd07::1', 0), [1, ROUTER_KNOWN]);
  teach('fd07::1', 1, refs[0], 0, router);
  teach('fd07::1', 2, refs[0], 0, 0);
  t.same(find('fd07::1', 0), [2, 0]);
  teach('fd07::1', 2, refs[0], 1, router);
  teach('fd07::1', 2, refs[0], 2 + AGE, 0);
  t.same(find('fd07::1', 2 + AGE), [2, 0], 'what has aged tells nothing');
});

t.test('families and networks are apart', async (t) => {
  const { teach, find, refs } = make();
  teach('10.7.0.1', 1, refs[0], 0, 0, 0);
  teach('10.7.0.1', 2, refs[0], 0, 0, 1);
  teach('::10.7.0.1', 3, refs[0], 0, 0, 0);
  t.same(find('10.7.0.1', 0, 0), [1, 0]);
  t.same(find('10.7.0.1', 0, 1), [2, 0]);
  t.same(find('::10.7.0.1', 0, 0), [3, 0]);
  t.equal(find('::10.7.0.1', 0, 1), undefined);
});

t.test('a share for each peer, and a full table', async (t) => {
  const { teach, find, refs, count, table, sweepAll, slots } = make({}, { perPeer: 10 });
  for (let i = 0; i < 15; i++) teach(`10.7.1.${i}`, i, refs[0], 0);
  t.equal(table.size, 10);
  t.equal(count(counters.NEIGHBOURS_FULL), 5);
  teach('10.7.1.0', 100, refs[0], 0);
  t.same(find('10.7.1.0', 0), [100, 0], 'what is known may change');
  teach('10.7.2.1', 1, refs[1], 0);
  teach('10.7.2.1', 1, refs[0], 0);
  t.equal(count(counters.NEIGHBOURS_FULL), 6, 'a peer with its share takes over none');
  teach('10.7.1.1', 1, refs[1], 0);
  teach('10.7.2.1', 1, refs[0], 0);
  t.equal(count(counters.NEIGHBOURS_FULL), 6, 'but one it lost makes room');
  for (let i = 0; i < 300; i++) teach(`10.7.${10 + (i >> 8)}.${i & 255}`, i, LOCAL, 0);
  t.equal(table.size, 256);
  t.equal(count(counters.NEIGHBOURS_FULL), 6 + 300 - 245);
  // A removed peer's go with it.
  slots.remove(refs[0]);
  t.equal(find('10.7.1.3', 0), undefined);
  const next = slots.add(SPEC);
  teach('10.7.1.3', 33, next, 1);
  t.same(find('10.7.1.3', 1), [33, 0]);
  sweepAll(2);
  t.equal(table.size, 247);
  t.equal(count(counters.NEIGHBOURS_AGED), 10);
  sweepAll(AGE + 10);
  t.equal(table.size, 0);
});

t.test('a worker that starts again starts with nothing', async (t) => {
  const { memory, teach, refs } = make();
  for (let i = 0; i < 200; i++) teach(`10.7.0.${i}`, i, refs[0], 0);
  t.equal(new LearnedNeighbours(memory, 0, { age: AGE, perPeer: 10 }, undefined).size, 0);
  const at = memory.layout.workers[0].neighbours;
  t.ok(memory.u8.subarray(at, at + memory.layout.neighbourSlots * NEIGHBOUR_BYTES).every((byte) => byte === 0));
  t.throws(
    () => new LearnedNeighbours(makeMemory({ neighbours: 0 }), 0, { age: 1, perPeer: 1 }, undefined),
    RangeError,
  );
});

t.test('like a Map: 10^5 random steps with ageing, peers that go, and deletions', async (t) => {
  const rng = random(11);
  const pick = (below: number): number => Math.floor(rng() * below);
  const age = 400;
  const { teach, find, refs, slots, table, count, memory } = make({ neighbours: 64 }, { age, perPeer: 20 });
  const model = new Map<string, { mac: number; flags: number; ref: number; seen: number }>();
  const alive = (ref: number): boolean => ref === LOCAL || refs.includes(ref);
  let now = 2 ** 32 - 12_000;
  for (let step = 0; step < 100_000; step++) {
    if (pick(4) === 0) now++;
    if (pick(5000) === 0) now += age / 2;
    if (pick(1000) === 0) {
      const which = pick(refs.length);
      slots.remove(refs[which]);
      refs[which] = slots.add(SPEC);
    }
    table.sweep(now | 0);
    const text = pick(2) ? `10.7.0.${pick(40)}` : `fd07:${pick(2)}::${pick(20)}`;
    const known = model.get(text);
    const good = known && now - known.seen <= age && alive(known.ref) ? known : undefined;
    const got = find(text, now);
    if (got?.[0] !== good?.mac || got?.[1] !== good?.flags) {
      t.fail(`step ${step}: ${text} ${got} instead of ${good?.mac},${good?.flags}`);
      break;
    }
    const ref = [LOCAL, ...refs][pick(5)];
    const mac = pick(3);
    const flags = [0, ROUTER_KNOWN, ROUTER | ROUTER_KNOWN][pick(3)];
    const full = count(counters.NEIGHBOURS_FULL);
    teach(text, mac, ref, now, flags);
    if (count(counters.NEIGHBOURS_FULL) !== full) continue;
    model.set(text, { mac, ref, seen: now, flags: flags === 0 && good?.mac === mac ? good.flags : flags });
  }
  t.ok(table.size <= 64 && count(counters.NEIGHBOURS_FULL) > 0);
  for (let i = 0; i < 1000; i++) table.sweep((now + age + 1 + i) | 0);
  t.equal(table.size, 0);
  t.ok(memory.intactGuards());
});

t.test('static: like a Map, with removals in any order', async (t) => {
  const memory = makeMemory({ statics: 64 });
  const table = new StaticNeighbourTable(memory, memory.layout.tables[1]);
  const at = memory.layout.tables[1].staticNeighbours >> 2;
  const mask = memory.layout.staticSlots - 1;
  const model = new Map<string, number>();
  const rng = random(3);
  const name = (): string =>
    rng() < 0.5 ? `10.7.0.${Math.floor(rng() * 50)}` : `fd07::${Math.floor(rng() * 50).toString(16)}`;
  for (let step = 0; step < 100_000; step++) {
    const text = name();
    const words = addressWords(address(text));
    if (rng() < 0.5 && (model.size < 64 || model.has(text))) {
      table.add(words, 1, macLow(macOf(step)), macHigh(macOf(step)), step & 3, 0);
      model.set(text, step);
    } else {
      table.remove(words, 1);
      model.delete(text);
    }
    const other = name();
    const [w0, w1, w2, w3] = addressWords(address(other));
    const got = entryOf(memory.i32, findStaticNeighbour(memory.i32, at, mask, w0, w1, w2, w3, 1));
    const want = model.get(other);
    if (got?.[0] !== want || (got && got[1] !== (got[0] & 3))) t.fail(`step ${step}`);
    if (findStaticNeighbour(memory.i32, at, mask, w0, w1, w2, w3, 0) !== -1) t.fail('another network');
  }
  t.equal(table.size, model.size);
  t.equal(findStaticNeighbour(memory.i32, at, -1, 0, 0, 0, 0, 0), -1, 'no table at all');
});

t.test('static: through commits, both versions, and refused beyond options.statics', async (t) => {
  const memory = makeMemory({ statics: 2 });
  const shared = new SharedWords(memory);
  const tables = new Tables(memory, () => {});
  const look = (version: number, text: string, network = 0): [number, number] | undefined => {
    const [w0, w1, w2, w3] = addressWords(address(text));
    const at = memory.layout.tables[version].staticNeighbours >> 2;
    return entryOf(
      memory.i32,
      findStaticNeighbour(memory.i32, at, memory.layout.staticSlots - 1, w0, w1, w2, w3, network),
    );
  };
  const ref = tables.addPeer(SPEC);
  tables.setNeighbour(0, address('10.7.0.5'), macOf(5), undefined, ref);
  tables.setNeighbour(1, address('fd07::5'), macOf(6), true, ref);
  t.throws(() => tables.setNeighbour(0, address('fd07::5'), macOf(6), true, ref), {
    message: 'static neighbour table full: 2 entries',
  });
  t.equal(look(shared.activeVersion(), '10.7.0.5'), undefined, 'not before the commit');
  await tables.commit();
  t.equal(tables.neighbourCount, 2);
  for (const version of [0, 1]) {
    t.same(look(version, '10.7.0.5'), [5, 0]);
    t.same(look(version, 'fd07::5', 1), [6, ROUTER | ROUTER_KNOWN]);
    t.equal(look(version, 'fd07::5', 0), undefined);
    t.ok(shared.hasStatics(version));
  }
  tables.setNeighbour(0, address('10.7.0.5'), macOf(7), false, ref);
  tables.removeNeighbour(1, address('fd07::5'));
  tables.removeNeighbour(0, address('fd07::5'));
  await tables.commit();
  for (const version of [0, 1]) {
    t.same(look(version, '10.7.0.5'), [7, ROUTER_KNOWN]);
    t.equal(look(version, 'fd07::5', 1), undefined);
  }
  t.equal(tables.neighbourCount, 1);
  t.equal(tables.macCount, 0);
});

t.test('what people read', async (t) => {
  const { memory, teach, refs } = make();
  const tables = new Tables(memory, () => {});
  tables.setNeighbour(0, address('10.7.0.5'), macOf(5), undefined, refs[0]);
  tables.setNeighbour(1, address('fd07::5'), macOf(6), true, 0);
  await tables.commit();
  const start = 2 ** 32 - 100;
  teach('10.7.0.5', 9, refs[1], start); // the registry says otherwise
  teach('10.7.0.6', 6, LOCAL, start, ROUTER_KNOWN);
  teach('fd07::6', 6, refs[1], start + 200, 0, 1);
  const list = [...readNeighbours(memory, (start + 1000) | 0)].map(
    (one) =>
      `${one.network} ${hex(one.address)} ${hex(one.mac)} ${one.router} ${refs.indexOf(one.ref)} ${one.origin} ${one.age}`,
  );
  t.same(list.sort(), [
    '0 0a070005 020000000005 undefined 0 static undefined',
    '0 0a070006 020000000006 false -1 learned 1000',
    '1 fd070000000000000000000000000005 020000000006 true -1 static undefined',
    '1 fd070000000000000000000000000006 020000000006 undefined 1 learned 800',
  ]);
  t.equal([...readNeighbours(memory, (start + 1000) | 0, 900)].length, 3);
});
