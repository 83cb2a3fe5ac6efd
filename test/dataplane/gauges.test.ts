/** A worker's account of its time, with a clock of our own; and of how full its tables are (rig-l2.ts compares those too). */
import t from 'tap';
import { GAP_WINDOW, readGauges, WorkerTimes } from '../../src/dataplane/gauges.js';
import { EngineMemory } from '../../src/io/memory.js';

const makeMemory = (workers = 1): EngineMemory =>
  EngineMemory.create({ workers, peers: 16, routeNodes: 16, networks: 1 });

/** A worker's loop without the packets: what it did since it looked last, and for how many microseconds. */
function makeWorker(memory: EngineMemory, startMilliseconds = 0) {
  const times = new WorkerTimes(memory, memory.layout.workers[0]);
  let now = startMilliseconds * 1000;
  const look = (awake: boolean, moved: boolean): void => times.look(now | 0, Math.floor(now / 1000) | 0, awake, moved);
  look(false, false);
  return {
    moves(microseconds: number): void {
      now += microseconds;
      look(true, true);
    },
    spins(microseconds: number): void {
      now += microseconds;
      look(true, false);
    },
    sleeps(microseconds: number): void {
      now += microseconds;
      look(false, false);
    },
  };
}

const gap = (memory: EngineMemory): number => Math.round(readGauges(memory, 0).longestGap * 1e6);

t.test('busy, spinning, and asleep', async (t) => {
  const memory = makeMemory();
  const worker = makeWorker(memory);
  worker.sleeps(500_000);
  worker.moves(300);
  worker.moves(200);
  worker.spins(20);
  worker.spins(30);
  worker.sleeps(400_000);
  worker.moves(100);
  const { busy, spinning } = readGauges(memory, 0);
  t.equal(Math.round(busy * 1e6), 600);
  t.equal(Math.round(spinning * 1e6), 50);
  t.equal(gap(memory), 300, 'the longest that it did not look while awake');
  t.ok(memory.intactGuards());
});

t.test('the longest gap is of the last one to two windows, whoever reads it', async (t) => {
  const memory = makeMemory();
  const worker = makeWorker(memory);
  const window = GAP_WINDOW * 1000;
  worker.moves(5000);
  for (let i = 0; i < 10; i++) t.equal(gap(memory), 5000, 'reading changes nothing');
  worker.sleeps(window);
  t.equal(gap(memory), 5000, 'in the window before');
  worker.moves(700);
  t.equal(gap(memory), 5000);
  worker.sleeps(window);
  t.equal(gap(memory), 700, 'forgotten');
  worker.spins(900);
  t.equal(gap(memory), 900, 'another process had the core');
  for (let i = 0; i < 2; i++) worker.sleeps(window);
  t.equal(gap(memory), 0);
});

t.test('a clock that wraps, at any time', async (t) => {
  for (const start of [2 ** 31 - 1, 2 ** 32 - 1, 2 ** 31 / 1000 - 0.1, 2 ** 32 / 1000 - 0.1]) {
    const memory = makeMemory();
    const worker = makeWorker(memory, Math.floor(start));
    for (let i = 0; i < 1000; i++) worker.moves(10);
    t.equal(Math.round(readGauges(memory, 0).busy * 1e6), 10_000, `from ${start} ms on`);
    t.equal(gap(memory), 10);
    worker.sleeps(2 * GAP_WINDOW * 1000);
    worker.sleeps(2 * GAP_WINDOW * 1000);
    t.equal(gap(memory), 0);
  }
});

t.test('a worker that is started again adds to its time, and has no gaps yet', async (t) => {
  const memory = makeMemory();
  makeWorker(memory).moves(4000);
  const again = makeWorker(memory, 1_000_000);
  t.equal(gap(memory), 0);
  again.moves(1000);
  t.equal(Math.round(readGauges(memory, 0).busy * 1e6), 5000);
  t.equal(gap(memory), 1000);
});

t.test('each worker for itself', async (t) => {
  const memory = makeMemory(2);
  makeWorker(memory).moves(1000);
  t.same(readGauges(memory, 1), { busy: 0, spinning: 0, longestGap: 0, macs: 0, neighbours: 0 });
});
