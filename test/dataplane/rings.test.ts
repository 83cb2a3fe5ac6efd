/** Workers in one memory tell each other what they learn: new, moved, still there; through rings that may be full. */
import { Worker as Thread } from 'node:worker_threads';
import t from 'tap';
import { addressWords } from '../../src/dataplane/addresses.js';
import * as counters from '../../src/dataplane/counters.js';
import { readMacs, readNeighbours } from '../../src/dataplane/forwarding.js';
import { LearnedMacs, LOCAL, macHigh, macLow } from '../../src/dataplane/macs.js';
import {
  LearnedNeighbours,
  NEIGHBOUR_FLAGS,
  NEIGHBOUR_MAC_LOW,
  ROUTER,
  ROUTER_KNOWN,
} from '../../src/dataplane/neighbours.js';
import { PeerSlots, type PeerSpec } from '../../src/dataplane/peers.js';
import { Rings } from '../../src/dataplane/rings.js';
import { EngineMemory } from '../../src/io/memory.js';
import { address, random } from '../lib/packets.js';

t.setTimeout(180_000);

const AGE = 300_000;
const RING = 1024;
const SPEC: PeerSpec = { address: address('192.168.77.2'), port: 4789, mtu: 1464, ecn: true, network: 0 };
const STARTS = [1000, 2 ** 31 - 150_000, 2 ** 32 - 150_000];

const bytesOf = (mac: number): Uint8Array => Uint8Array.of(2, 0, mac >>> 24, mac >>> 16, mac >>> 8, mac);

class Worker {
  readonly rings: Rings;
  readonly macs: LearnedMacs;
  readonly neighbours: LearnedNeighbours;
  readonly #i32: Int32Array;

  constructor(memory: EngineMemory, worker: number, perPeer: number) {
    this.#i32 = memory.i32;
    this.rings = new Rings(memory, worker);
    this.macs = new LearnedMacs(memory, worker, { age: AGE, perPeer }, this.rings);
    this.neighbours = new LearnedNeighbours(memory, worker, { age: AGE, perPeer }, this.rings);
  }
  learn(mac: number, ref: number, now: number): void {
    this.macs.learn(macLow(bytesOf(mac)), macHigh(bytesOf(mac)), 1, ref, now | 0);
  }
  look(mac: number, now: number): number {
    return this.macs.lookup(macLow(bytesOf(mac)), macHigh(bytesOf(mac)), 1, now | 0);
  }
  teach(text: string, mac: number, flags: number, ref: number, now: number): void {
    const [w0, w1, w2, w3] = addressWords(address(text));
    this.neighbours.teach(w0, w1, w2, w3, 1, mac, 7, flags, ref, now | 0);
  }
  find(text: string, now: number): [number, number] | undefined {
    const [w0, w1, w2, w3] = addressWords(address(text));
    const at = this.neighbours.find(w0, w1, w2, w3, 1, now | 0);
    return at < 0 ? undefined : [this.#i32[at + NEIGHBOUR_MAC_LOW], this.#i32[at + NEIGHBOUR_FLAGS]];
  }
  receive(now: number): void {
    this.rings.receive(this.macs, this.neighbours, now | 0);
  }
  sweepAll(now: number): void {
    for (let i = 0; i < 20_000; i++) {
      this.macs.sweep((now + (i & 1)) | 0);
      this.neighbours.sweep((now + (i & 1)) | 0);
    }
  }
}

function make(count = 2, perPeer = 1e6) {
  const memory = EngineMemory.create({
    workers: count,
    peers: 64,
    routeNodes: 64,
    networks: 2,
    macs: 4096,
    neighbours: 1024,
    statics: 8,
  });
  const slots = new PeerSlots(memory);
  const refs = Array.from({ length: 4 }, () => slots.add(SPEC));
  const workers = Array.from({ length: count }, (_, i) => new Worker(memory, i, perPeer));
  return { memory, slots, refs, workers, perPeer, count: (id: number) => counters.readCounter(memory, id) };
}

t.test('what one learns the other knows, and it is counted once', async (t) => {
  const { refs, workers, count, memory } = make(3);
  const [a, b, c] = workers;
  a.learn(1, refs[0], 100);
  b.learn(2, LOCAL, 100);
  a.teach('10.7.0.1', 1, 0, refs[0], 100);
  a.teach('fd07::1', 1, ROUTER | ROUTER_KNOWN, refs[0], 100);
  t.equal(b.look(1, 100), 0);
  for (const worker of workers) worker.receive(101);
  for (const worker of workers) {
    t.equal(worker.look(1, 101), refs[0]);
    t.equal(worker.look(2, 101), LOCAL);
    t.same(worker.find('10.7.0.1', 101), [1, 0]);
    t.same(worker.find('fd07::1', 101), [1, ROUTER | ROUTER_KNOWN]);
  }
  t.equal(count(counters.MACS_LEARNED), 2);
  t.equal(count(counters.NEIGHBOURS_LEARNED), 2);
  t.same([...readMacs(memory, 101)].length, 2, 'people see each once');
  t.same([...readNeighbours(memory, 101)].length, 2);
  // A change of MAC and of the router's flag is passed on too.
  c.teach('10.7.0.1', 2, ROUTER_KNOWN, refs[1], 102);
  for (const worker of workers) worker.receive(103);
  for (const worker of workers) t.same(worker.find('10.7.0.1', 103), [2, ROUTER_KNOWN]);
  for (const worker of workers) worker.sweepAll(101 + 2 * AGE);
  t.equal(count(counters.MACS_AGED), 2);
  t.equal(count(counters.NEIGHBOURS_AGED), 2);
  for (const worker of workers) t.equal(worker.macs.size + worker.neighbours.size, 0);
});

t.test('moves: the other follows, the newest wins in whatever order they are read', async (t) => {
  const { refs, workers, count } = make();
  const [a, b] = workers;
  a.learn(1, refs[0], 100);
  b.receive(100);
  b.learn(1, refs[1], 200);
  t.equal(a.look(1, 200), refs[0]);
  a.receive(200);
  t.equal(a.look(1, 200), refs[1]);
  t.equal(count(counters.MACS_MOVED), 1, 'counted once');
  // An old message: b's move to peer 2 was before a's to peer 3.
  b.learn(1, refs[2], 300);
  a.learn(1, refs[3], 301);
  a.receive(302);
  b.receive(302);
  t.equal(a.look(1, 302), refs[3]);
  t.equal(b.look(1, 302), refs[3]);
  // In one millisecond: both take the same.
  a.learn(1, refs[0], 20_000);
  b.learn(1, refs[1], 20_000);
  a.receive(20_001);
  b.receive(20_001);
  t.equal(a.look(1, 20_001), b.look(1, 20_001));
  a.teach('10.7.0.1', 1, 0, refs[0], 20_000);
  b.teach('10.7.0.1', 2, 0, refs[1], 20_000);
  a.receive(20_001);
  b.receive(20_001);
  t.same(a.find('10.7.0.1', 20_001), b.find('10.7.0.1', 20_001));
});

t.test('a MAC that two workers see at two places is held by both, at one place', async (t) => {
  const { refs, workers, count } = make();
  const [a, b] = workers;
  for (let now = 0; now < 9000; now += 10) {
    a.learn(1, refs[0], now);
    b.receive(now);
    b.learn(1, refs[1], now + 5);
    a.receive(now + 5);
  }
  t.equal(count(counters.MACS_MOVED), 5);
  t.ok(count(counters.MACS_HELD) > 800);
  t.equal(a.look(1, 9000), b.look(1, 9000));
});

t.test('what is still seen is told again after a third of the age, not sooner', async (t) => {
  for (const start of STARTS) {
    const { refs, workers, memory } = make();
    const [a, b] = workers;
    const written = (): number => memory.i32[(memory.layout.workers[0].rings[1] >> 2) + 8];
    for (let now = start; now < start + 3 * AGE; now += 1000) {
      a.learn(1, refs[0], now);
      a.teach('10.7.0.1', 1, 0, refs[0], now);
      b.receive(now);
      if (b.look(1, now) !== refs[0]) t.fail(`forgotten at ${now - start}`);
      if (!b.find('10.7.0.1', now)) t.fail(`neighbour forgotten at ${now - start}`);
      if ((now - start) % 100_000 === 0) b.sweepAll(now);
    }
    t.equal(written(), 2 * 9, `start ${start}`);
    // Two that both see it need not both tell.
    const before = written();
    const other = (): number => memory.i32[(memory.layout.workers[1].rings[0] >> 2) + 8];
    const end = start + 3 * AGE;
    for (let now = end; now < end + AGE; now += 1000) {
      for (const worker of workers) {
        worker.receive(now);
        worker.learn(1, refs[0], now);
      }
    }
    t.ok(written() - before + other() <= 4, `${written() - before} and ${other()}`);
  }
});

t.test('ageing in both: gone at 301 s, known in the other for two thirds of it at least', async (t) => {
  for (const start of STARTS) {
    for (const swept of [false, true]) {
      const { refs, workers } = make();
      const [a, b] = workers;
      a.learn(1, refs[0], start);
      a.teach('10.7.0.1', 1, 0, refs[0], start);
      b.receive(start + 10_000); // late: what counts is when it was seen
      for (const worker of workers) {
        if (swept) worker.sweepAll(start + 299_000);
        t.equal(worker.look(1, start + 299_000), refs[0]);
        t.ok(worker.find('10.7.0.1', start + 299_000));
        if (swept) worker.sweepAll(start + 301_000);
        t.equal(worker.look(1, start + 301_000), 0);
        t.notOk(worker.find('10.7.0.1', start + 301_000));
      }
      // Seen last just before it would have been told again.
      a.learn(2, refs[0], start);
      a.learn(2, refs[0], start + AGE / 3);
      b.receive(start + AGE / 3);
      t.equal(b.look(2, start + AGE / 3 + (2 * AGE) / 3), refs[0]);
      t.equal(a.look(2, start + AGE / 3 + AGE), refs[0]);
      // Refreshed at 299 s: known to both for another 299 s.
      a.learn(3, refs[0], start);
      b.receive(start);
      a.learn(3, refs[0], start + 299_000);
      b.receive(start + 299_000);
      for (const worker of workers) {
        t.equal(worker.look(3, start + 598_000), refs[0]);
        t.equal(worker.look(3, start + 600_000), 0);
      }
      // A message read only when all is over teaches nothing.
      a.learn(4, refs[0], start + 1_000_000);
      b.receive(start + 1_000_000 + AGE + 1);
      t.equal(b.look(4, start + 1_000_000 + AGE + 1), 0);
    }
  }
});

t.test('a full ring: counted, and tried again when the MAC is seen next', async (t) => {
  const { refs, workers, count, memory } = make();
  const [a, b] = workers;
  // Twice round the ring first, so that its indices have wrapped.
  for (let i = 0; i < 2 * RING; i++) {
    a.learn(i, refs[i & 3], 50);
    if (i % 50 === 0) b.receive(50);
  }
  for (let i = 0; i < RING; i++) b.receive(50);
  t.equal(b.macs.size, 2 * RING);
  t.equal(count(counters.RING_FULL), 0);
  for (let i = 0; i < RING + 3; i++) a.learn(10_000 + i, refs[i & 3], 60);
  t.equal(count(counters.RING_FULL), 3);
  b.receive(61);
  t.equal(b.macs.size, 2 * RING + 64, 'a bounded number a call');
  for (let i = 0; i < RING; i++) b.receive(61);
  t.equal(b.look(10_000 + RING - 1, 61), refs[(RING - 1) & 3]);
  for (let i = RING; i < RING + 3; i++) {
    t.equal(a.look(10_000 + i, 61), refs[i & 3], 'known here');
    t.equal(b.look(10_000 + i, 61), 0, 'not there');
    a.learn(10_000 + i, refs[i & 3], 61);
  }
  b.receive(62);
  for (let i = RING; i < RING + 3; i++) t.equal(b.look(10_000 + i, 62), refs[i & 3]);
  t.equal(count(counters.RING_FULL), 3);
  // Neighbours use the same ring.
  for (let i = 0; i < RING; i++) a.learn(20_000 + (i & 511), refs[i >> 9], 70);
  a.teach('10.7.0.1', 1, 0, refs[0], 70);
  t.equal(count(counters.RING_FULL), 4);
  for (let i = 0; i < RING; i++) b.receive(70);
  a.teach('10.7.0.1', 1, 0, refs[0], 71);
  b.receive(71);
  t.same(b.find('10.7.0.1', 71), [1, 0]);
  t.ok(memory.intactGuards());
});

t.test('with a third worker whose ring is full the second is told all the same', async (t) => {
  const { refs, workers, count } = make(3);
  const [a, b, c] = workers;
  for (let i = 0; i < RING + 1; i++) {
    a.learn(i, refs[0], 10);
    b.receive(10);
  }
  t.equal(count(counters.RING_FULL), 1);
  t.equal(b.look(RING, 10), refs[0]);
  for (let i = 0; i < RING; i++) c.receive(11);
  t.equal(c.look(RING, 11), 0);
  a.learn(RING, refs[0], 11);
  c.receive(11);
  t.equal(c.look(RING, 11), refs[0]);
});

t.test('limits hold for what is told, and the dead teach nobody', async (t) => {
  const { refs, workers, slots, count } = make(2, 10);
  const [a, b] = workers;
  for (let i = 0; i < 10; i++) b.learn(100 + i, refs[0], 0);
  a.learn(1, refs[0], 1);
  a.learn(2, refs[1], 1);
  a.teach('10.7.0.1', 1, 0, refs[1], 1);
  slots.remove(refs[1]);
  b.receive(2);
  t.equal(b.macs.size, 10);
  t.equal(b.look(1, 2), 0, 'the peer has its share there');
  t.equal(b.look(2, 2), 0, 'the peer is gone');
  t.notOk(b.find('10.7.0.1', 2));
  t.equal(count(counters.MACS_OVER_LIMIT), 0, 'counted where frames are seen');
});

t.test('a worker that starts again goes on with the rings, and hears of what is still seen', async (t) => {
  const { refs, workers, memory, perPeer } = make();
  const [a, b] = workers;
  a.learn(1, refs[0], 0);
  b.receive(0);
  a.learn(2, refs[0], 1);
  const again = new Worker(memory, 1, perPeer);
  again.receive(2);
  t.equal(again.look(2, 2), refs[0], 'what was on its way');
  t.equal(again.look(1, 2), 0);
  a.learn(1, refs[0], AGE / 3 + 1);
  again.receive(AGE / 3 + 1);
  t.equal(again.look(1, AGE / 3 + 1), refs[0]);
  again.learn(3, refs[2], AGE / 3 + 2);
  a.receive(AGE / 3 + 2);
  t.equal(a.look(3, AGE / 3 + 2), refs[2]);
});

t.test('random traffic at three workers: after the last messages all agree', async (t) => {
  const { refs, workers, count, memory } = make(3);
  const rng = random(21);
  const pick = (below: number): number => Math.floor(rng() * below);
  let now = 2 ** 32 - 50_000;
  const home = Array.from({ length: 300 }, () => pick(4));
  for (let step = 0; step < 100_000; step++) {
    if (pick(3) === 0) now++;
    if (pick(500) === 0) home[pick(300)] = pick(4);
    const mac = pick(300);
    const worker = workers[pick(3)];
    worker.learn(mac, [LOCAL, ...refs][home[mac]], now);
    if (pick(4) === 0) worker.receive(now);
    worker.macs.sweep(now | 0);
  }
  for (let i = 0; i < 100; i++) for (const worker of workers) worker.receive(now);
  const [a, b, c] = workers;
  let known = 0;
  for (let mac = 0; mac < 300; mac++) {
    const at = a.look(mac, now);
    if (at !== 0) known++;
    if (b.look(mac, now) !== at || c.look(mac, now) !== at)
      t.fail(`${mac}: ${at} ${b.look(mac, now)} ${c.look(mac, now)}`);
    if (at !== [LOCAL, ...refs][home[mac]]) t.comment(`${mac} was seen last before it moved, or is held`);
  }
  t.equal(known, 300);
  t.comment(
    `moved ${count(counters.MACS_MOVED)}, held ${count(counters.MACS_HELD)}, full ${count(counters.RING_FULL)}`,
  );
  t.ok(memory.intactGuards());
});

t.test('two threads: every record arrives, whole and in order', async (t) => {
  const { memory } = make();
  const records = 200_000;
  // The other thread is worker 1; it says record by record what can be computed here too.
  const source = `
    import { workerData } from 'node:worker_threads';
    const { EngineMemory } = await import(workerData.memory);
    const { Rings } = await import(workerData.rings);
    const rings = new Rings(new EngineMemory(workerData.shared), 1);
    for (let i = 0; i < workerData.records; i++) while (!rings.sendMac(i, ~i, i ^ 0x5555, -i));
  `;
  const thread = new Thread(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    workerData: {
      memory: new URL('../../src/io/memory.js', import.meta.url).href,
      rings: new URL('../../src/dataplane/rings.js', import.meta.url).href,
      shared: memory.share(),
      records,
    },
  });
  const ended = new Promise((resolve, reject) => thread.once('exit', resolve).once('error', reject));
  let next = 0;
  let wrong = 0;
  const ear = {
    hear: (low: number, key: number, ref: number, seen: number): void => {
      if (low !== next || key !== ~next || ref !== (next ^ 0x5555) || seen !== (-next | 0)) wrong++;
      next++;
    },
  };
  const rings = new Rings(memory, 0);
  const until = Date.now() + 60_000;
  while (next < records && Date.now() < until) {
    for (let i = 0; i < 100; i++) {
      rings.receive(ear as unknown as LearnedMacs, undefined as unknown as LearnedNeighbours, 0);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  await ended;
  t.equal(next, records);
  t.equal(wrong, 0);
  t.ok(memory.intactGuards());
});
