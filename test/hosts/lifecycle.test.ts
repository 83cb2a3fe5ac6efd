/**
 * Daemons that are killed, stopped, started twice, fall over, or lose their device, while traffic flows.
 *
 * Most of it is watched by a numbered stream of UDP datagrams, 500 to 1,000 a second: what is missing at the other end was
 * lost. Times are bounds that the design promises, or generous ones.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, NETWORK4, sleep } from '../../race/hosts.js';
import { MiB } from './lib/agents.js';
import { linkExists, makeRig, replace, startBoth } from './lib/rig.js';
import { type Assertions, assertConserved, type Counters, impossible, Weft } from './lib/weft.js';

const why = impossible();
t.setTimeout(0);

/** What the issue promises after a kill. */
const BACK_WITHIN_MS = 2000;
/** The last stderr or log line of a daemon that refused to start: not a stack, one line that says why. */
async function refusal(weft: Weft): Promise<{ code: number | null; lines: string[] }> {
  const { child } = weft.daemon;
  if (weft.daemon.running) await new Promise((resolve) => child.once('exit', resolve));
  await sleep(50);
  return { code: child.exitCode, lines: weft.daemon.log().trim().split('\n') };
}

/** No counter of `now` is below what it was. */
function assertMonotonic(t: Assertions, before: Counters, now: Counters, what: string): void {
  const back = [...before.values].filter(([name, value]) => now.get(name) < value).map(([name]) => name);
  t.same(back, [], what);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('kill -9 and restart', async (t) => {
    const rig = await makeRig(t);
    const [first, other] = await startBoth(rig);
    const { pid } = other.daemon.child;
    await rig.right.expect();
    await rig.left.send(rig.b.client4, 1000);
    await sleep(1000);
    const before = await other.counters();
    await first.stop('SIGKILL');
    t.equal(first.daemon.child.signalCode, 'SIGKILL', 'it is dead');
    t.ok(linkExists(rig.a, 'flannel0'), 'its device is still there, routes and all');
    await sleep(300);
    const { received } = await rig.right.counted();
    await sleep(200);
    t.equal((await rig.right.counted()).received, received, 'nothing flows while it is dead');

    const begun = performance.now();
    const second = Weft.spawn(rig.a, { peers: rig.peers });
    while ((await rig.right.counted()).received === received && performance.now() - begun < 20_000) await sleep(10);
    const took = performance.now() - begun;
    t.ok(took < BACK_WITHIN_MS, `traffic again after ${Math.round(took)} ms`);
    await second.ready();
    t.equal(second.events('ready')[0].reused, true, 'it took its device over');
    await sleep(500);
    t.equal(other.daemon.child.pid, pid, 'the other: same process');
    t.ok(other.daemon.running, 'the other: runs');
    t.same(
      other.events().map(({ event }) => event),
      ['ready'],
      'the other: nothing to say about it',
    );
    assertMonotonic(t, before, await other.counters(), 'the other: its counters only grew');
    const { sent } = await rig.left.stop();
    const got = await rig.right.countedUpTo(sent);
    t.equal(got.duplicates + got.reordered + got.wrong, 0, 'nothing twice, out of order or wrong');
    t.equal(got.gaps.length, 1, `one gap, of ${got.missing} datagrams`);

    // The other direction, and under load: a TCP connection lives through it.
    const transfer = rig.right.tcp(rig.a.client4, { bytes: 256 * MiB, stallMs: 15_000 });
    await sleep(200);
    await second.stop('SIGKILL');
    const third = await Weft.start(rig.a, { peers: rig.peers });
    const { flows } = await transfer;
    t.ok(
      flows.every((flow) => flow.sent === flow.received),
      'a TCP flow went on where it was',
    );
    await assertConserved(t, [third, other], 'after a kill', { 'inbound.device_refused': true });
  });

  await t.test('SIGTERM under load', async (t) => {
    const rig = await makeRig(t);
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      const [left, right] = await startBoth(rig);
      const load = Promise.all([rig.left.blast(rig.b.client4, 2), rig.right.blast(rig.a.client6, 2)]);
      await sleep(700);
      const took = await left.stop(signal);
      t.ok(took < 1000, `${signal}: out after ${Math.round(took)} ms`);
      t.equal(left.daemon.child.exitCode, 0, `${signal}: exit code 0`);
      t.notOk(linkExists(rig.a, 'flannel0'), `${signal}: the device is gone`);
      t.equal(rig.a.ns.runSync('ip', 'route', 'show', NETWORK4), '', `${signal}: so are its routes`);
      t.same(
        left.events().map(({ event }) => event),
        ['ready', 'stopping', 'stopped'],
        `${signal}: and it said so`,
      );
      await load;
      await right.stop();
    }
    // Starting is no time to be deaf either.
    const hasty = Weft.spawn(rig.a, { peers: rig.peers });
    await sleep(120);
    const took = await hasty.stop();
    t.ok(took < 1500, `while it starts: out after ${Math.round(took)} ms`);
    t.notOk(linkExists(rig.a, 'flannel0'), 'while it starts: no device is left');
  });

  await t.test('--keep-device', async (t) => {
    const rig = await makeRig(t);
    const [left] = await startBoth(rig, '--keep-device');
    t.ok(await answersPing(rig.a.client, rig.b.client4), 'they reach each other');
    const took = await left.stop();
    t.ok(took < 1000, `out after ${Math.round(took)} ms`);
    t.equal(left.daemon.child.exitCode, 0, 'exit code 0');
    t.ok(linkExists(rig.a, 'flannel0'), 'the device stays');
    t.match(rig.a.ns.runSync('ip', 'route', 'show', NETWORK4), 'dev flannel0', 'with its route');
    t.match(rig.a.ns.runSync('ip', 'addr', 'show', 'dev', 'flannel0'), 'inet 10.5.1.0/32', 'and its address');
    const again = await Weft.start(rig.a, { peers: rig.peers });
    t.equal(again.events('ready')[0].reused, true, 'the next start takes it over');
    t.ok(await answersPing(rig.a.client, rig.b.client4), 'and forwards');
    await again.stop();
    t.notOk(linkExists(rig.a, 'flannel0'), 'without --keep-device it goes');
  });

  await t.test('two daemons', async (t) => {
    const rig = await makeRig(t);
    const [left] = await startBoth(rig);
    await rig.right.expect();
    await rig.left.send(rig.b.client4, 500);
    await sleep(300);
    const cases: readonly (readonly [string, readonly string[], RegExp])[] = [
      ['one device', ['--port', '8286', '--metrics-address', 'off'], /flannel0/],
      ['one port', ['--device', 'weft1', '--metrics-address', 'off'], /8285|10\.5\.0\.0/],
      [
        'one port, other networks',
        ['--device', 'weft1', '--metrics-address', 'off', '--network', '10.77.0.0/16', '--subnet', '10.77.1.0/24'],
        /8285 of 192\.168\.77\.1 is in use/,
      ],
    ];
    for (const [what, args, expected] of cases) {
      const peers = join(rig.lab.dir, 'none.json');
      writeFileSync(peers, '{"peers":[]}');
      // Later flags go before earlier ones, except lists, which add up; those are given alone.
      const alone = args.includes('--network');
      const second = alone
        ? Weft.spawnBare(rig.a, [...args, '--iface', 'eth0', '--public-ip', rig.a.underlay4, '--peers', peers])
        : Weft.spawn(rig.a, { peers: rig.peers, args });
      const { code, lines } = await refusal(second);
      t.equal(code, 1, `${what}: the second exits with 1`);
      t.equal(lines.length, 1, `${what}: and says one line: ${lines.join(' | ')}`);
      t.match(lines[0], expected, `${what}: which names the trouble`);
    }
    const taken = Weft.spawn(rig.a, { peers: rig.peers, args: ['--device', 'lan0', '--port', '8286'] });
    const { code, lines } = await refusal(taken);
    t.equal(code, 1, 'a device name that is taken: exits with 1');
    t.match(lines, [/lan0.*taken/], 'a device name that is taken: one line');
    const { sent } = await rig.left.stop();
    const { received, missing } = await rig.right.countedUpTo(sent);
    t.same({ received, missing }, { received: sent, missing: 0 }, 'the first lost nothing by all that');

    // Two that keep out of each other's way may share a host.
    const both = [rig.a, rig.b].map((host) => {
      const file = join(rig.lab.dir, `second-${host.letter}.json`);
      const entries = [rig.a, rig.b].map((one) => ({ address: one.underlay4, subnets: [`10.77.${one.number}.0/24`] }));
      writeFileSync(file, JSON.stringify({ peers: entries }));
      const args = ['--network', '10.77.0.0/16', '--subnet', `10.77.${host.number}.0/24`, '--port', '8300'];
      return Weft.spawnBare(host, [...args, '--public-ip', host.underlay4, '--device', 'weft1', '--peers', file]);
    });
    await Promise.all(both.map((weft) => weft.ready()));
    t.ok(await answersPing(rig.a.ns, '10.77.2.0'), 'a second daemon with device, port and network of its own works');
    t.ok(await answersPing(rig.a.client, rig.b.client4), 'beside the first');
    await both[0].stop();
    t.ok(await answersPing(rig.a.client, rig.b.client4), 'and its end does not touch the first');
    t.ok(left.daemon.running, 'and runs');
  });

  await t.test('a worker falls over', async (t) => {
    const rig = await makeRig(t);
    const { lab, a, b, left, right } = rig;
    // Loaded before the daemon, in each of its threads: the worker throws, or exits, once the file is there.
    const order = join(lab.dir, 'order');
    const preload = join(lab.dir, 'preload.mjs');
    writeFileSync(
      preload,
      `import { isMainThread } from 'node:worker_threads';
       import { readFileSync, rmSync } from 'node:fs';
       const load = Atomics.load;
       if (!isMainThread) Atomics.load = (array, index) => {
         let what = '';
         try { what = readFileSync(${JSON.stringify(order)}, 'utf8'); rmSync(${JSON.stringify(order)}); } catch {}
         if (what === 'throw') throw new Error('the test asked for it');
         if (what === 'exit') process.exit(3);
         return load(array, index);
       };`,
    );
    const weft = await Weft.start(a, { peers: rig.peers, nodeArgs: ['--import', preload] });
    const other = await Weft.start(b, { peers: rig.peers });
    await right.expect();
    await left.send(b.client4, 500);
    for (const [round, what] of ['throw', 'exit', 'throw'].entries()) {
      await sleep(500);
      replace(order, what);
      await weft.event('worker_ended', () => weft.events('worker_ended').length === round + 1);
      const deadline = Date.now() + 10_000;
      while ((await weft.sample('weft_worker_restarts_total')) !== round + 1 && Date.now() < deadline) await sleep(50);
      t.ok(await answersPing(a.client, b.client4), `${what}: it is started again and goes on`);
    }
    t.match(
      weft.events('worker_ended').map(({ reason }) => reason),
      ['the test asked for it', /3/, 'the test asked for it'],
      'each is said once, with its reason',
    );
    t.equal(await weft.sample('weft_worker_restarts_total'), 3, 'and counted');
    const { sent } = await left.stop();
    const got = await right.countedUpTo(sent);
    t.same(
      { received: got.received, missing: got.missing },
      { received: sent, missing: 0 },
      'what came meanwhile waited in the kernel: nothing is lost',
    );
    const now = await weft.idle();
    t.equal(now.in + now.made, now.sent + now.consumed + now.dropped, 'the books balance over all its lives');
    t.same(
      other.events().map(({ event }) => event),
      ['ready'],
      'the other host noticed nothing',
    );
    const took = await weft.stop();
    t.equal(weft.daemon.child.exitCode, 0, `SIGTERM ends it as ever, after ${Math.round(took)} ms`);
  });

  for (const workers of [1, 2]) {
    await t.test(`the device is deleted, ${workers} worker${workers > 1 ? 's' : ''}`, async (t) => {
      const rig = await makeRig(t);
      const wefts = await startBoth(rig, '--workers', String(workers));
      const { a, b, left, right } = rig;
      await right.expect();
      await left.send(b.client4, 500);
      for (const round of [1, 2]) {
        await sleep(500);
        a.ns.ip('link del flannel0');
        await wefts[0].event('device_reopened', () => wefts[0].events('device_reopened').length === round, 20_000);
        t.ok(await answersPing(a.client, b.client4, 10_000), `round ${round}: it makes the device again and goes on`);
        t.match(
          a.ns.runSync('ip', 'addr', 'show', 'dev', 'flannel0'),
          'inet 10.5.1.0/32',
          `round ${round}: with its address`,
        );
        t.match(a.ns.runSync('ip', 'route', 'show', NETWORK4), 'dev flannel0', `round ${round}: and its route`);
      }
      const { sent } = await left.stop();
      const got = await right.countedUpTo(sent);
      t.ok(
        got.received > 0 && got.reordered + got.duplicates + got.wrong === 0,
        `${got.received} of ${sent} came through`,
      );
      const now = await wefts[0].idle();
      t.equal(now.in + now.made, now.sent + now.consumed + now.dropped, 'the books balance');
      t.equal(await wefts[0].sample('weft_workers_running'), workers, 'every worker runs');
      t.equal(await wefts[0].sample('weft_worker_restarts_total'), 2 * workers, 'restarts are counted');
      const took = await wefts[0].stop();
      t.equal(wefts[0].daemon.child.exitCode, 0, `SIGTERM ends it as ever, after ${Math.round(took)} ms`);
      t.notOk(linkExists(a, 'flannel0'), 'and the device goes with it');

      // Down, and up again by hand; its route gone and put back.
      b.ns.ip('link set flannel0 down');
      await sleep(300);
      b.ns.ip('link set flannel0 up', `route replace ${NETWORK4} dev flannel0`);
      const again = await Weft.start(a, { peers: rig.peers });
      t.ok(await answersPing(a.client, b.client4, 10_000), 'a device that was down and up again goes on');
      t.ok(wefts[1].daemon.running && again.daemon.running, 'both run');
    });
  }
}
