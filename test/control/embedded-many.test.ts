/**
 * Many daemons in one embedded registry, as processes of their own: fifty that start at once, and five of which a random one is
 * killed again and again while all of them write.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { EmbeddedStore, PATIENCE } from '../../src/control/embedded-store.js';
import { systemClock } from '../../src/host/clock.js';
import { ControlDaemon } from '../lib/control-daemons.js';

t.setTimeout(0);
const FULL = process.env.WEFT_TEST_FULL === '1';

const folders: string[] = [];
const running = new Set<ControlDaemon>();
function cleanUp(): void {
  for (const daemon of running) daemon.child.kill('SIGKILL');
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}
process.on('exit', cleanUp);
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => process.exit(1));

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'weft-many-'));
  folders.push(path);
  return join(path, 'registry');
}

function start(...args: ConstructorParameters<typeof ControlDaemon>): ControlDaemon {
  const daemon = new ControlDaemon(...args);
  running.add(daemon);
  daemon.child.once('exit', () => running.delete(daemon));
  return daemon;
}

/** Every lease in the registry, opened anew, which checks its file. */
async function leasesIn(path: string): Promise<{ host: string; subnets: readonly string[] }[]> {
  const store = await EmbeddedStore.open(path, systemClock(), false, PATIENCE.first);
  try {
    store.position();
    return [...store.leases()];
  } finally {
    await store.close();
  }
}

t.test('fifty daemons that start at once take fifty subnets and know each other', async (t) => {
  const path = folder();
  const count = 50;
  const daemons = Array.from({ length: count }, (_, i) =>
    start({ path, host: `192.168.77.${i + 1}`, network: '10.5.0.0/16', ttl: 60_000 }),
  );
  await Promise.all(daemons.map((daemon) => daemon.said('started', undefined, 60_000)));
  const begun = performance.now();
  for (const daemon of daemons) daemon.go();
  const joined = await Promise.all(daemons.map((daemon) => daemon.said('joined')));
  t.equal(new Set(joined.map(({ line }) => line.subnet)).size, count, 'as many subnets');
  t.ok(joined.every(({ line }) => line.how === 'new'));
  const known = await Promise.all(daemons.map((daemon) => daemon.said('applied', (line) => line.peers === count - 1)));
  const last = (lines: readonly { at: number }[]): number => Math.max(...lines.map(({ at }) => at)) - begun;
  t.comment(`all joined after ${last(joined).toFixed(0)} ms, all know all after ${last(known).toFixed(0)} ms`);
  // 2 s on a quiet machine, which a test cannot ask for.
  t.ok(last(known) < 10_000, 'all know all');
  t.ok(known.every(({ line }) => line.routes === count - 1));
  await Promise.all(daemons.map((daemon) => daemon.kill('SIGTERM')));
});

t.test('kill -9 in the middle of writes: no subnet twice, no damage', async (t) => {
  const path = folder();
  const kills = FULL ? 1000 : 150;
  // Renewed at every look, a thousand looks a second: most of a daemon's time goes into writing.
  const times = { poll: 1, settle: 1e9 };
  const launch = (i: number): ControlDaemon => {
    const daemon = start({ path, host: `192.168.77.${i + 1}`, network: '10.5.0.0/16', ttl: 3, times });
    daemon.go();
    return daemon;
  };
  const daemons = Array.from({ length: 5 }, (_, i) => launch(i));
  const subnets = (await Promise.all(daemons.map((daemon) => daemon.said('joined')))).map(({ line }) => line.subnet);
  t.equal(new Set(subnets).size, 5, 'five subnets');
  let state = 20261121; // a random order that can be had again
  const random = (n: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % n;
  };
  const wrong: string[] = [];
  for (let kill = 1; kill <= kills; kill++) {
    const i = random(5);
    await new Promise((resolve) => setTimeout(resolve, random(8)));
    await daemons[i].kill('SIGKILL');
    daemons[i] = launch(i);
    const { line } = await daemons[i].said('joined');
    if (line.subnet !== subnets[i] || line.how !== 'taken over') wrong.push(`kill ${kill}: ${line.how} ${line.subnet}`);
    if (kill % 50 === 0) {
      const leases = await leasesIn(path);
      if (leases.length !== 5 || new Set(leases.flatMap((lease) => lease.subnets)).size !== 5) {
        wrong.push(`kill ${kill}: ${JSON.stringify(leases)}`);
      }
    }
  }
  t.same(wrong, [], `${kills} kills`);
  // Those that live still hear of what comes.
  const newcomer = start({ path, host: '192.168.77.99', network: '', ttl: 60_000 });
  newcomer.go();
  const { line } = await newcomer.said('joined');
  t.notOk(subnets.includes(line.subnet), 'a newcomer takes another subnet');
  await newcomer.said('applied', ({ peers }) => peers === 5);
  for (const daemon of daemons) await daemon.said('applied', ({ peers }) => peers === 5);
  t.equal((await leasesIn(path)).length, 6);
  await Promise.all([...running].map((daemon) => daemon.kill()));
});
