/**
 * The clock of one host is stepped a day forward and a day back while it forwards, by libfaketime (Debian's `faketime`): leases
 * and snapshots count by a clock that nobody sets, so nothing may happen.
 */
import { existsSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, Lab, sleep, twoHosts } from '../../race/hosts.js';
import { Agent } from './lib/agents.js';
import { readyz, registryMetrics, registryOf, settle, startEmbedded, subnetFileOf, subnetsIn } from './lib/embedded.js';
import { impossible, type Weft } from './lib/weft.js';

const TTL = 3;
const DAY_MS = 86_400_000;
/** More than two clocks of one machine differ by while a process is busy, and much less than a day. */
const NEAR_MS = 60_000;

/** Where Debian puts the library, whatever the architecture. */
function libfaketime(): string | undefined {
  return readdirSync('/usr/lib')
    .map((folder) => join('/usr/lib', folder, 'faketime', 'libfaketime.so.1'))
    .find(existsSync);
}

const library = libfaketime();
const why = impossible() ?? (library ? undefined : 'needs libfaketime (package faketime)');
t.setTimeout(0);

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-clock');
  t.teardown(() => lab.close());
  const file = join(lab.dir, 'faketime');
  const step = (offset: '+0' | '+1d' | '-1d' | '+3d'): void => {
    writeFileSync(`${file}.new`, `${offset}\n`);
    renameSync(`${file}.new`, file);
  };
  step('+0');
  const args = ['--lease-ttl', String(TTL)];
  const env = {
    LD_PRELOAD: library ?? '',
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
    FAKETIME_TIMESTAMP_FILE: file,
    FAKETIME_NO_CACHE: '1',
  };
  let [a, b] = twoHosts(lab);
  const moved = await startEmbedded(a, { args, env });
  const steady = await startEmbedded(b, { args });
  [a, b] = [settle(a), settle(b)];
  const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);

  /** How far a daemon's clock is from ours, by the Date header of its answers. Node renews that once a second. */
  const offset = async (weft: Weft): Promise<number> => (await readyz(weft)).date - Date.now();

  await t.test('a day forward, and a day back', async (t) => {
    t.ok(await answersPing(a.client, b.client4), 'they reach each other');
    const subnets = [a, b].map((host) => subnetsIn(subnetFileOf(host)).v4);
    await right.expect();
    await left.send(b.client4, 500);
    const said = [moved, steady].map((weft) => weft.events().length);
    for (const [to, expected] of [
      ['+1d', DAY_MS],
      ['-1d', -DAY_MS],
      ['+0', 0],
    ] as const) {
      step(to);
      const until = performance.now() + 2 * TTL * 1000;
      let looked = 0;
      const bad: string[] = [];
      while (performance.now() < until) {
        await sleep(500);
        for (const weft of [moved, steady]) {
          const { up, staleSince, leaseSecondsLeft = 0, peers } = await registryMetrics(weft);
          looked++;
          if (up === 1 && staleSince === 0 && peers === 1 && leaseSecondsLeft > 0 && leaseSecondsLeft <= TTL) continue;
          bad.push(
            `${weft.host.letter}: up ${up}, stale since ${staleSince}, left ${leaseSecondsLeft}, peers ${peers}`,
          );
        }
      }
      t.ok(looked > 4, `${to}: looked ${looked} times`);
      t.same(bad.slice(0, 3), [], `${to}: both kept their lease and each other`);
      const off = await offset(moved);
      t.ok(Math.abs(off - expected) < NEAR_MS, `${to}: its clock is really ${Math.round(off / 1000)} s from ours`);
      t.ok(Math.abs(await offset(steady)) < NEAR_MS, `${to}: the other's is not`);
      const ready = await readyz(moved);
      t.same([ready.code, ready.text], [200, 'flanneld is ready'], `${to}: /readyz`);
    }
    const { sent } = await left.stop();
    const { received, missing } = await right.countedUpTo(sent);
    t.same({ received, missing }, { received: sent, missing: 0 }, 'no traffic was lost');
    for (const [i, weft] of [moved, steady].entries()) {
      t.same(weft.events().slice(said[i]), [], `${weft.host.letter}: nothing to say`);
    }
    t.same(
      [a, b].map((host) => subnetsIn(subnetFileOf(host)).v4),
      subnets,
      'the same subnets',
    );
  });

  await t.test('a restart with a clock that is wrong', async (t) => {
    const subnet = subnetsIn(subnetFileOf(a)).v4;
    await moved.stop('SIGKILL');
    step('+1d');
    const again = await startEmbedded(a, { args, env });
    const [ready] = again.events('ready');
    const off = Date.parse(String(ready.time)) - Date.now();
    t.ok(Math.abs(off - DAY_MS) < NEAR_MS, `its log is ${Math.round(off / 1000)} s ahead`);
    t.equal(ready.lease, 'taken over', 'it takes its lease over');
    t.equal(subnetsIn(subnetFileOf(a)).v4, subnet, 'on the same subnet');
    t.ok(await answersPing(a.client, b.client4), 'and forwards');

    // Older than --stale-limit by the wall clock, a moment old in truth.
    await again.stop('SIGKILL');
    const [registry, away] = [registryOf(lab), `${registryOf(lab)}.away`];
    renameSync(registry, away);
    step('+3d');
    const third = await startEmbedded(a, { args, env });
    t.equal(third.events('ready')[0].lease, 'warm', 'its snapshot is not too old because of that');
    t.ok(await answersPing(a.client, b.client4), 'and it forwards with it');
    renameSync(away, registry);
    await third.event('registry_recovered');
    await third.stop();
    const [stopping] = third.events('stopping');
    t.ok(
      Math.abs(Date.parse(String(stopping.time)) - Date.now() - 3 * DAY_MS) < NEAR_MS,
      'three days ahead to the end',
    );
    t.ok(steady.daemon.running, 'the other runs');
  });
}
