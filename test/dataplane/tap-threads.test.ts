/**
 * The capture ring between two threads: a worker that writes as fast as it can, and a reader that is now quick, now slow, begins and
 * ends captures, and kills the worker in between. Nothing is damaged, twice or out of order, and what is missing is counted.
 */
import { once } from 'node:events';
import { setTimeout as pause } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { OUT_IN, readCounter } from '../../src/dataplane/counters.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import type { CapturedPacket } from '../../src/inspect/capture-frames.js';
import { DEVICE_IN, UNDERLAY_OUT } from '../../src/io/capture-record.js';
import { EngineMemory } from '../../src/io/memory.js';
import { Choice } from '../lib/choice.js';
import { address, prefix } from '../lib/packets.js';
import { beginCapture, Captured, EVERYTHING } from '../lib/tapped.js';

// The default is too little for a busy machine.
t.setTimeout(120_000);

const LENGTHS = [32, 33, 100, 700, 1400];
const rounds = process.env.WEFT_TEST_FULL === '1' ? 400 : 10;

/** Its number; throws unless its bytes are those of that number. */
function numberOf({ bytes, length }: CapturedPacket): number {
  const number = Buffer.from(bytes.buffer, bytes.byteOffset).readUInt32BE(28);
  if (length !== LENGTHS[number % LENGTHS.length] || bytes.length !== length)
    throw new Error(`${number}: ${length} bytes`);
  for (let i = 32; i < length; i++)
    if (bytes[i] !== (number & 255)) throw new Error(`${number}: byte ${i} is ${bytes[i]}`);
  return number;
}

t.test('a thread that writes and one that reads', { timeout: 120_000 }, async (t) => {
  const memory = EngineMemory.create({ workers: 1, peers: 16, routeNodes: 256, networks: 1 });
  const layout = memory.layout.workers[0];
  const shared = new SharedWords(memory);
  const tables = new Tables(memory, () => {});
  const ref = tables.addPeer({ address: address('192.168.77.2'), port: 8285, mtu: 1472, ecn: false, network: 0 });
  tables.setRoute(0, prefix('10.5.2.0/24'), ref);
  await tables.commit();
  let first = 0;
  const spawn = (): Worker => {
    const workerData = { memory: memory.share(), first };
    first += 10_000_000; // more than one of them gets to
    return new Worker(new URL('../lib/tap-worker.js', import.meta.url), { workerData });
  };
  let worker = spawn();
  t.teardown(() => worker.terminate());
  const passed = async (): Promise<void> => {
    const epochs = shared.epochs();
    while (!shared.passed(epochs)) await pause(1);
  };
  const pulled = (): number => readCounter(memory, OUT_IN);
  while (pulled() < 1000) await pause(5);

  const seed = Date.now() % 1e6;
  const choose = new Choice(seed);
  t.comment(`seed ${seed}`);
  let [captured, lost] = [0, 0];
  for (let round = 0; round < rounds; round++) {
    const place = choose.of([DEVICE_IN, UNDERLAY_OUT]);
    const kills = choose.once(4);
    const before = pulled();
    const capture = new Captured(memory, layout, beginCapture(memory, { ...EVERYTHING, places: [place] }));
    const numbers: number[] = [];
    const read = (chunks?: number): void => {
      for (const one of capture.take(chunks)) numbers.push(numberOf(one));
    };
    for (let i = 0; i < 4; i++) {
      read(4);
      await pause(choose.of([0, 0, 1, 5]));
    }
    if (kills) {
      await worker.terminate();
      shared.setRunning(0, false);
      read();
      worker = spawn();
      await once(worker, 'online');
      for (const at = pulled(); pulled() < at + 1000; ) await pause(2);
    }
    while (pulled() < before + 500) await pause(1); // it may not have had a core
    shared.endCapture();
    await passed();
    read();
    if (numbers.some((number, i) => i > 0 && number <= numbers[i - 1])) t.fail(`round ${round}: out of order`);
    const all = numbers.length + capture.ring.lost;
    if (all > pulled() - before) t.fail(`round ${round}: ${all} of ${pulled() - before}`);
    const span = numbers[numbers.length - 1] - numbers[0] + 1;
    if (!kills && all < span) t.fail(`round ${round}: ${numbers.length} and ${capture.ring.lost} lost of ${span}`);
    t.ok(numbers.length > 0, `round ${round}${kills ? ', in which the worker was killed' : ''}: ${numbers.length}`);
    captured += numbers.length;
    lost += capture.ring.lost;
  }
  t.comment(`${captured} captured, ${lost} lost, of ${pulled()}`);
  shared.stop();
  await once(worker, 'exit');
  t.ok(memory.intactGuards());
});
