/**
 * No garbage collection in 10^7 packets, in the real engine: device, sockets, worker thread and all.
 *
 * The daemons run with --trace-gc, which prints a line for each collection of each isolate: the main thread (control,
 * metrics) and the worker have one each. A module loaded before the daemon makes each thread collect once at its start, so
 * that the first isolate in the log is the main thread's and the second the worker's. That such a test can fail is shown by a
 * daemon with one allocation per packet patched in.
 *
 * Packets are datagrams that a daemon's sockets sent or received, over both daemons.
 */
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Host, Lab, sleep, twoHosts } from '../../race/hosts.js';
import { Agent, PYTHON, sendSegments } from './lib/agents.js';
import { realPackets } from './lib/capture.js';
import { assertConserved, DAEMON, FULL, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('ethtool', PYTHON);
t.setTimeout(0);

const PACKETS = FULL ? 40_000_000 : 10_000_000;
/** A machine that is busy with something else gets its time; beyond that, something is wrong. */
const MOST_SECONDS = FULL ? 1800 : 240;

const COLLECTION = /^\[\d+:(0x[0-9a-f]+)\]\s+(\d+) ms: (.*)$/;

interface Collection {
  readonly isolate: string;
  readonly text: string;
}

function collections(weft: Weft): Collection[] {
  return weft.daemon
    .log()
    .split('\n')
    .flatMap((line) => {
      const [, isolate, ms, what] = COLLECTION.exec(line) ?? [];
      return isolate ? [{ isolate, text: `${ms} ms: ${what}` }] : [];
    });
}

/** Isolates in the order of their first collection: the main thread's, then the worker's. */
function isolates(weft: Weft): string[] {
  return [...new Set(collections(weft).map(({ isolate }) => isolate))];
}

const packetsOf = async (wefts: readonly Weft[]): Promise<number> => {
  const counters = await Promise.all(wefts.map((weft) => weft.counters()));
  return counters.reduce((sum, now) => sum + now.get('outbound.socket_sent') + now.get('inbound.socket_received'), 0);
};

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-garbage');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const peers = writePeers(lab, [a, b]);
  const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
  const preload = join(lab.dir, 'collect-once.mjs');
  writeFileSync(preload, 'gc();\n');
  const nodeArgs = ['--trace-gc', '--expose-gc', '--import', preload];
  const start = (host: Host, program?: string): Promise<Weft> =>
    Weft.start(host, { peers, nodeArgs, ...(program ? { program } : {}) });

  /** Clients whose kernels hand over super-packets, or one packet at a time. */
  function superPackets(on: boolean): void {
    for (const { client, ns } of [a, b]) {
      if (!on) realPackets(client, 'eth0');
      else client.runSync('ethtool', '-K', 'eth0', 'tx', 'on', 'tso', 'on', 'gso', 'on', 'gro', 'on');
      ns.runSync('ethtool', '-K', 'lan0', 'gro', on ? 'on' : 'off');
    }
  }

  /** Traffic of every kind for some seconds: both ways, both families, TCP and UDP, whole and fragmented. */
  async function traffic(seconds: number): Promise<void> {
    await Promise.all([left.blast(b.client4, seconds), right.blast(a.client6, seconds)]);
    await sendSegments(a.client, b.client4, { size: 1200, each: 50, calls: 20 });
    await left.udp(b.client4, [1, 100, 1444, 4000]);
  }

  await t.test('the real engine collects nothing', async (t) => {
    const wefts = await Promise.all([start(a), start(b)]);
    await right.expect(); // somebody listens to the datagrams
    for (const on of [false, true, false, true]) {
      superPackets(on);
      await traffic(1.5);
    }
    const known = wefts.map(isolates);
    t.same(
      known.map((list) => list.length),
      [2, 2],
      'two isolates in each daemon: the main thread and a worker',
    );

    const marks = wefts.map((weft) => collections(weft).length);
    const first = await packetsOf(wefts);
    const begun = performance.now();
    const elapsed = (): number => (performance.now() - begun) / 1000;
    let moved = 0;
    for (let round = 0; moved < PACKETS && elapsed() < MOST_SECONDS; round++) {
      superPackets(round % 3 !== 2);
      await traffic(4);
      moved = (await packetsOf(wefts)) - first;
    }
    t.ok(moved >= PACKETS, `${moved.toLocaleString('en')} packets in ${elapsed().toFixed(0)} s`);
    for (const [i, weft] of wefts.entries()) {
      const since = collections(weft).slice(marks[i]);
      const ofWorker = since.filter(({ isolate }) => isolate !== known[i][0]);
      t.same(
        ofWorker.map(({ text }) => text),
        [],
        `${weft.host.letter}: the worker collected nothing`,
      );
      t.comment(`${weft.host.letter}: collections of the main thread meanwhile: ${since.length - ofWorker.length}`);
    }
    await assertConserved(t, wefts, 'afterwards', { 'outbound.no_route': true });
    await Promise.all(wefts.map((weft) => weft.stop()));
  });

  await t.test('an allocation per packet would show', async (t) => {
    // A copy of what was built, in which each packet from the device makes an object that is kept until the next.
    const project = fileURLToPath(new URL('../../../', import.meta.url));
    const root = join(lab.dir, 'mutant');
    mkdirSync(root);
    cpSync(dirname(DAEMON), join(root, 'dist', 'src'), { recursive: true });
    symlinkSync(join(project, 'node_modules'), join(root, 'node_modules'));
    cpSync(join(project, 'package.json'), join(root, 'package.json'));
    const file = join(root, 'dist', 'src', 'dataplane', 'outbound.js');
    const text = readFileSync(file, 'utf8');
    const place = /#forward\(at, length\) \{/;
    t.match(text, place, 'the place for it is where it was');
    writeFileSync(
      file,
      text.replace(place, (found) => `${found} globalThis.kept = { at };`),
    );

    const wefts = await Promise.all([start(a, join(root, 'dist', 'src', 'main.js')), start(b)]);
    superPackets(false);
    await traffic(1.5);
    const [main] = isolates(wefts[0]);
    const mark = collections(wefts[0]).length;
    const first = (await wefts[0].counters()).get('outbound.device_pulled');
    let pulled = 0;
    for (let i = 0; i < 20 && pulled < 300_000; i++) {
      await traffic(1);
      pulled = (await wefts[0].counters()).get('outbound.device_pulled') - first;
    }
    const seen = collections(wefts[0])
      .slice(mark)
      .filter(({ isolate }) => isolate !== main);
    t.ok(seen.length > 0, `${seen.length} collections in ${pulled.toLocaleString('en')} packets`);
    await sleep(10);
    await Promise.all(wefts.map((weft) => weft.stop()));
  });
}
