/**
 * Daemons that die, stop, meet each other, lose their device or their underlay, and learn of new peers, while traffic flows.
 *
 * Most of it is watched by a numbered stream of UDP datagrams, 500 to 1,000 a second: what is missing at the other end was
 * lost. Times are bounds that the design promises, or generous ones.
 */
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Host, Lab, makeHosts, NETWORK4, sleep, twoHosts } from '../../race/hosts.js';
import { Agent, MiB } from './lib/agents.js';
import { type Assertions, assertConserved, type Counters, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('nft');
t.setTimeout(0);

/** What the issue promises after a kill. */
const BACK_WITHIN_MS = 2000;

interface Rig {
  readonly lab: Lab;
  readonly a: Host;
  readonly b: Host;
  readonly left: Agent;
  readonly right: Agent;
  readonly peers: string;
}

/** Two hosts of their own for each test: what one breaks is not the next one's trouble. */
async function makeRig(t: Assertions & { teardown(work: () => Promise<void>): void }): Promise<Rig> {
  const lab = new Lab('ht-life');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
  return { lab, a, b, left, right, peers: writePeers(lab, [a, b]) };
}

const startBoth = ({ a, b, peers }: Rig, ...args: string[]): Promise<[Weft, Weft]> =>
  Promise.all([Weft.start(a, { peers, args }), Weft.start(b, { peers, args })]);

/** Replaces a file in one step, as careful tools do. */
function replace(path: string, text: string): void {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

const linkExists = (host: Host, name: string): boolean => {
  try {
    host.ns.runSync('ip', 'link', 'show', name);
    return true;
  } catch {
    return false;
  }
};

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

/** Forgets what `host`'s client has learned about path MTUs. */
function forgetPaths(host: Host): void {
  for (const family of ['-4', '-6']) host.client.runSync('ip', family, 'route', 'flush', 'cache');
}

/** TCP goes through, inside IPv4 and (unless the path is too small for it) IPv6. */
async function carries(t: Assertions, from: Agent, to: Host, what: string, only: { v4?: boolean } = {}): Promise<void> {
  for (const address of only.v4 ? [to.client4] : [to.client4, to.client6]) {
    const { flows, seconds } = await from.tcp(address, { bytes: 8 * MiB, stallMs: 20_000 });
    t.ok(
      flows.every((flow) => flow.sent === flow.received),
      `${what}: TCP to ${address} goes`,
    );
    t.comment(`${what}: ${seconds.toFixed(1)} s`);
  }
}

/** A client that does not know the path is told by an ICMP error how much it carries. */
async function tellsClients(t: Assertions, from: Host, to: Host, mtu: number, what: string): Promise<void> {
  forgetPaths(from);
  const { stdout } = await from.client.run('ping', ['-n', '-c1', '-W2', '-M', 'do', '-s', '1400', to.client4]);
  t.match(stdout, `mtu = ${mtu}`, `${what}: clients are told the right size`);
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
    t.ok(left.daemon.running, 'and runs');
  });

  await t.test('the peers file changes while traffic flows', async (t) => {
    const lab = new Lab('ht-peers');
    t.teardown(() => lab.close());
    const hosts = makeHosts(lab, { count: 3, join: 'bridge', clients: 'own' });
    const [a, b, c] = hosts;
    const own = writePeers(lab, hosts, { name: 'all.json' });
    const peers = join(lab.dir, 'a.json');
    const entry = (host: Host, more: object = {}): object => ({
      name: host.letter,
      address: host.underlay4,
      subnets: [host.subnet4, host.subnet6],
      ...more,
    });
    const write = (...entries: object[]): void => replace(peers, JSON.stringify({ peers: entries }));
    write(entry(a), entry(b));
    const weft = await Weft.start(a, { peers });
    await Weft.start(b, { peers: own });
    let weftC = await Weft.start(c, { peers: own });
    const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    const applied = async (work: () => void): Promise<void> => {
      const before = weft.events('tables_applied').length;
      work();
      const deadline = Date.now() + 10_000;
      while (weft.events('tables_applied').length === before) {
        if (Date.now() > deadline) throw new Error('the change was not applied within 10 s');
        await sleep(20);
      }
    };
    const reaches = async (host: Host): Promise<boolean> =>
      (await a.client.run('ping', ['-n', '-c', '1', '-W', '1', host.client4])).code === 0;

    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    await right.expect();
    await left.send(b.client4, 1000);
    await sleep(300);

    t.notOk(await reaches(c), 'c is not known');
    await applied(() => write(entry(a), entry(b), entry(c)));
    t.ok(await reaches(c), 'added: a reaches c');
    await applied(() => write(entry(a), entry(b)));
    t.notOk(await reaches(c), 'removed: a does not reach c');

    // c moves to another underlay address.
    await applied(() => write(entry(b), entry(c, { name: 'called-otherwise' })));
    t.ok(await reaches(c), 'added under another name');
    c.ns.ip('addr add 192.168.77.33/24 dev eth0');
    await weftC.stop();
    const others = writePeers(lab, [a, b], { name: 'others.json' });
    weftC = await Weft.start(c, { peers: others, publicIp: '192.168.77.33' });
    const before = await weft.counters();
    await c.client.run('ping', ['-n', '-c', '3', '-i', '0.1', '-W', '1', a.client4]);
    const after = await weft.counters();
    t.equal(
      after.get('inbound.unknown_peer') - before.get('inbound.unknown_peer'),
      3,
      'moved: from there it is a stranger',
    );
    await applied(() => write(entry(b), entry(c, { address: '192.168.77.33' })));
    t.ok(await reaches(c), 'moved: a knows the new address');
    await weftC.stop();
    weftC = await Weft.start(c, { peers: own });
    await applied(() => write(entry(b), entry(c)));
    t.ok(await reaches(c), 'moved back');

    // A port, an MTU, ECN: the peer stays what it is, for others and for itself.
    await applied(() => write(entry(b, { ecn: true }), entry(c, { port: 8285, mtu: 1400 })));
    t.ok(await reaches(c), 'other properties');
    await applied(() => write(entry(b, { mtu: 1450 }), entry(c)));

    // A subnet moves from one peer to another.
    await applied(() => write(entry(b), entry(c, { subnets: [c.subnet4, '10.5.64.0/20'] })));
    await applied(() => write(entry(b, { subnets: [b.subnet4, b.subnet6, '10.5.64.0/20'] }), entry(c)));

    // What cannot be read changes nothing, is said once, and so is its end.
    const good = JSON.stringify({ peers: [entry(b), entry(c)] });
    await applied(() => replace(peers, good));
    for (const [what, text] of [
      ['malformed', good.slice(0, -10)],
      ['empty', ''],
      ['no JSON', 'peers: []\n'],
      ['unknown key', JSON.stringify({ peers: [entry(b, { colour: 'red' })] })],
      ['two owners of one subnet', JSON.stringify({ peers: [entry(b), entry(c, { subnets: [b.subnet4] })] })],
      ['an address that is none', JSON.stringify({ peers: [entry(b, { address: '192.168.77.256' })] })],
      ['our own subnet', JSON.stringify({ peers: [entry(b), entry(c, { subnets: [a.subnet4] })] })],
    ]) {
      const said = weft.events().length;
      replace(peers, text);
      const complaint = (): Record<string, unknown>[] =>
        weft
          .events()
          .slice(said)
          .filter(({ event }) => event === 'registry_trouble' || event === 'peers_refused');
      const deadline = Date.now() + 10_000;
      while (complaint().length === 0 && Date.now() < deadline) await sleep(20);
      t.match(
        complaint().map(({ reason }) => reason),
        [/a\.json/],
        `${what}: said once, with the file's name`,
      );
      t.ok(await reaches(c), `${what}: the last good one stays in force`);
      t.equal(await weft.sample('weft_registry_up'), 0, `${what}: metrics tell`);
      replace(peers, good);
      while ((await weft.sample('weft_registry_up')) !== 1 && Date.now() < deadline) await sleep(50);
      t.equal(await weft.sample('weft_registry_up'), 1, `${what}: and it is over when the file is good again`);
    }
    // Written in place, not by rename; and gone for a moment.
    await applied(() => writeFileSync(peers, JSON.stringify({ peers: [entry(b)] })));
    renameSync(peers, `${peers}.away`);
    await sleep(1500);
    t.ok(await reaches(b), 'the file is gone: what it said stays in force');
    await applied(() => write(entry(b), entry(c)));
    t.ok(await reaches(c), 'and it is back');

    const { sent } = await left.stop();
    const got = await right.countedUpTo(sent);
    t.same(
      { received: got.received, missing: got.missing, reordered: got.reordered, duplicates: got.duplicates },
      { received: sent, missing: 0, reordered: 0, duplicates: 0 },
      `b's stream of ${sent} datagrams lost nothing through all that`,
    );
    await assertConserved(t, [weft], 'after all changes', { 'outbound.no_route': true, 'inbound.unknown_peer': true });
  });

  await t.test('the underlay path becomes smaller, and larger again', async (t) => {
    const one = async (family: 4 | 6): Promise<void> => {
      const rig = await makeRig(t);
      const { a, b, left } = rig;
      const peers = writePeers(rig.lab, [a, b], { family });
      const wefts = await Promise.all(
        [a, b].map((host) => Weft.start(host, { peers, publicIp: family === 4 ? host.underlay4 : host.underlay6 })),
      );
      const overhead = family === 4 ? 28 : 48;
      const to = family === 4 ? rig.b.underlay4 : rig.b.underlay6;
      const from = family === 4 ? rig.a.underlay4 : rig.a.underlay6;
      const name = `IPv${family} underlay`;
      const okay = (what: string): Promise<void> => carries(t, left, b, `${name}: ${what}`);
      await okay('before');

      // A connection that is under way when it happens.
      const flying = left.tcp(b.client4, { bytes: 384 * MiB, stallMs: 20_000 });
      await sleep(300);
      a.ns.ip(`route replace ${to} dev eth0 src ${from} mtu lock 1400`);
      const { flows, seconds } = await flying;
      t.ok(
        flows.every((flow) => flow.sent === flow.received),
        `${name}: a TCP flow recovers from it`,
      );
      t.comment(`${name}: shrunk under way: ${seconds.toFixed(1)} s`);
      await wefts[0].event('path_mtu', ({ mtu }) => mtu === 1400 - overhead);
      t.equal(await wefts[0].sample('weft_peers_path_mtu_lowered'), 1, `${name}: metrics tell of one lowered peer`);
      const { drops } = await wefts[0].counters();
      t.ok(
        drops['outbound.path_mtu'] > 0,
        `${name}: ${drops['outbound.path_mtu']} datagrams were refused, and counted`,
      );
      await okay('smaller');
      await tellsClients(t, a, b, 1400 - overhead, name);
      await okay('still');
      await assertConserved(t, wefts, `${name}: smaller`, { 'outbound.path_mtu': true, 'outbound.too_big': true });

      // Larger again: lowered peers are asked about every 30 s.
      a.ns.ip(`route del ${to} dev eth0`);
      await wefts[0].event('path_mtu', ({ mtu, before }) => Number(mtu) > Number(before), 45_000);
      t.equal(await wefts[0].sample('weft_peers_path_mtu_lowered'), 0, `${name}: it grows back`);
      forgetPaths(a);
      const size = String(1500 - overhead - 28);
      const { stdout } = await a.client.run('ping', ['-n', '-c1', '-W2', '-M', 'do', '-s', size, b.client4]);
      t.match(stdout, 'bytes from', `${name}: full size goes through`);

      // The interface itself becomes smaller, on both hosts.
      for (const host of [a, b]) host.ns.ip('link set eth0 mtu 1400');
      await okay('smaller link');
      for (const host of [a, b]) host.ns.ip('link set eth0 mtu 1500');
      await okay('larger link');
      await Promise.all(wefts.map((weft) => weft.stop()));
    };
    await Promise.all([one(4), one(6)]);
  });

  await t.test('a router on the underlay says that its next link is smaller', async (t) => {
    const rig = await makeRig(t);
    const { lab, a, b, left } = rig;
    // a.up0 -- r -- b.up0, of which the far half carries 1300.
    const r = lab.namespace('r');
    r.sysctl({ 'net/ipv4/ip_forward': 1 });
    const ends = [
      { host: a, net: '192.168.78', mtu: 1500 },
      { host: b, net: '192.168.79', mtu: 1300 },
    ];
    for (const { host, net, mtu } of ends) {
      lab.veth(host.ns, 'up0', r, `down-${host.letter}`, 1500);
      host.ns.ip(`addr add ${net}.1/24 dev up0`, `route add 192.168.78.0/23 via ${net}.254`);
      r.ip(`addr add ${net}.254/24 dev down-${host.letter}`, `link set down-${host.letter} mtu ${mtu}`);
    }
    const entries = ends.map(({ host, net }) => ({
      name: host.letter,
      address: `${net}.1`,
      subnets: [host.subnet4, host.subnet6],
    }));
    const peers = join(lab.dir, 'routed.json');
    writeFileSync(peers, JSON.stringify({ peers: entries }));
    const wefts = await Promise.all(
      ends.map(({ host, net }) => Weft.start(host, { peers, publicIp: `${net}.1`, args: ['--iface', 'up0'] })),
    );
    await carries(t, left, b, 'over a router', { v4: true });
    await wefts[0].event('path_mtu', ({ mtu }) => mtu === 1272);
    await tellsClients(t, a, b, 1272, 'over a router');
    await carries(t, left, b, 'over a router, again', { v4: true });
    await assertConserved(t, wefts, 'over a router', { 'outbound.path_mtu': true, 'outbound.too_big': true });
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

  await t.test('the underlay goes and comes', async (t) => {
    const rig = await makeRig(t);
    const wefts = await startBoth(rig);
    const { a, b, left, right } = rig;
    t.ok(await answersPing(a.client, b.client4), 'they reach each other');
    await right.expect();
    await left.send(b.client4, 1000);
    await sleep(500);
    a.ns.ip('link set eth0 down');
    await sleep(1500);
    a.ns.ip('link set eth0 up');
    // With the link, the kernel took the IPv6 address; the IPv4 one and its route come back by themselves.
    const up = performance.now();
    t.ok(await answersPing(a.client, b.client4, 10_000), 'it comes back');
    t.comment(`after ${Math.round(performance.now() - up)} ms`);
    await sleep(300);
    const { sent } = await left.stop();
    const got = await right.countedUpTo(sent);
    t.ok(got.gaps.length <= 3, `the stream went on: ${got.received} of ${sent}, in ${got.gaps.length} gaps`);
    t.equal(got.reordered + got.duplicates + got.wrong, 0, 'in order, nothing twice');
    const all = { 'outbound.socket_refused': true, 'outbound.path_mtu': true } as const;
    const [now] = await assertConserved(t, wefts, 'link down', all);
    t.ok(now.drops['outbound.socket_refused'] > 0, `${now.drops['outbound.socket_refused']} refused, and counted`);

    // The far end goes instead: its sender notices nothing but the missing answers.
    b.ns.ip('link set eth0 down');
    await sleep(500);
    b.ns.ip('link set eth0 up');
    t.ok(await answersPing(b.client, a.client4, 10_000), 'and back again');

    // The address goes and comes.
    a.ns.ip(`addr del ${a.underlay4}/24 dev eth0`);
    await sleep(500);
    a.ns.ip(`addr add ${a.underlay4}/24 dev eth0`);
    t.ok(await answersPing(a.client, b.client4, 10_000), 'the address went and came');

    // A firewall that refuses, as an operator may write one.
    a.ns.runSync('nft', 'add', 'table', 'ip', 'f');
    a.ns.runSync('nft', 'add chain ip f o { type filter hook output priority 0 ; }');
    a.ns.runSync('nft', 'add', 'rule', 'ip', 'f', 'o', 'udp', 'dport', '8285', 'reject');
    t.notOk(await answersPing(a.client, b.client4, 500), 'a firewall stops it');
    a.ns.runSync('nft', 'delete', 'table', 'ip', 'f');
    t.ok(await answersPing(a.client, b.client4, 10_000), 'and lets it go on');
    await assertConserved(t, wefts, 'after all', all);
    for (const weft of wefts) t.ok(weft.daemon.running, `${weft.host.letter} runs`);
  });

  await t.test('the device is deleted', async (t) => {
    const rig = await makeRig(t);
    const wefts = await startBoth(rig);
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
    t.equal(await wefts[0].sample('weft_worker_restarts_total'), 2, 'two restarts, counted');
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
