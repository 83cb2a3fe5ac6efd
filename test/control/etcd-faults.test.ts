/**
 * A real etcd that goes away, hangs, forgets its history or loses its leader, and leases that end before their time: what hosts
 * have in force afterwards is what etcd has, and nothing that they said or asked on the way was too much. Control only, in this process; what
 * lies between a host and etcd is a wire that is cut.
 */
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { systemClock } from '../../src/host/clock.js';
import { Wire } from '../lib/cut.js';
import { pause, until } from '../lib/embedded.js';
import { Etcd, type EtcdOptions, etcdMissing } from '../lib/etcd.js';
import { EtcdNode, NodeFolders, type NodeOptions } from '../lib/etcd-nodes.js';

const why = etcdMissing();
t.setTimeout(0);

const PREFIX = '/coreos.com/network';
const SUBNETS = `${PREFIX}/subnets/`;
/** Own leases are of the lower half, hand-written ones of the upper. */
const CONFIG = '{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"udp"}}';
/** Once etcd is reached again. */
const RECOVERED_WITHIN_MS = 5000;
const OWN = '192.168.77.1';

const leaseText = (address: string): string => `{"PublicIP":"${address}","PublicIPv6":null}`;

interface Stage {
  readonly etcd: Etcd;
  readonly wire: Wire;
  readonly folders: NodeFolders;
  /** Another host's lease, by hand. */
  put(number: number, address: string): Promise<void>;
  del(number: number): Promise<void>;
  /** A node behind the wire. */
  node(options?: Partial<NodeOptions>): EtcdNode;
  start(options?: Partial<NodeOptions>): Promise<EtcdNode>;
}

async function setUp(t: Test, options: EtcdOptions = {}, config = CONFIG): Promise<Stage> {
  const etcd = await Etcd.start(options);
  const wire = await Wire.to(etcd.endpoints[0]);
  const folders = new NodeFolders(t);
  const nodes: EtcdNode[] = [];
  t.teardown(async () => {
    await Promise.all(nodes.map((node) => node.stop()));
    wire.close();
    await etcd.close();
  });
  await etcd.put(`${PREFIX}/config`, config);
  const node = (more: Partial<NodeOptions> = {}): EtcdNode => {
    const made = new EtcdNode(folders, { endpoints: [wire.endpoint], address: OWN, ...more });
    nodes.push(made);
    return made;
  };
  return {
    etcd,
    wire,
    folders,
    put: async (number, address) => void (await etcd.put(`${SUBNETS}10.5.${number}.0-24`, leaseText(address))),
    del: async (number) => void (await etcd.del(`${SUBNETS}10.5.${number}.0-24`)),
    node,
    start: async (more) => {
      const made = node(more);
      await made.join();
      await made.follow();
      return made;
    },
  };
}

const route = (number: number, address: string): string => `10.5.${number}.0/24 ${address}`;

/** Waits until just these routes are in force, and says after how long. */
async function assertRoutes(t: Test, node: EtcdNode, want: readonly string[], what: string): Promise<void> {
  const begun = performance.now();
  const sorted = [...want].sort().join();
  await until(() => node.routes.join() === sorted, RECOVERED_WITHIN_MS);
  t.same(node.routes, [...want].sort(), `${what} (${Math.round(performance.now() - begun)} ms)`);
}

/** An outage that was noticed was said once, and so was its end. */
async function assertSaidOnce(t: Test, node: EtcdNode, what: string): Promise<void> {
  t.ok(await until(() => node.problem === undefined, RECOVERED_WITHIN_MS), `${what}: all is well again`);
  const [began, ended] = [node.log.count('registry_trouble'), node.log.count('registry_recovered')];
  t.equal(began, ended, `${what}: as many beginnings as ends`);
  t.ok(began <= 1, `${what}: said once`);
  const others = node.log.lines.filter(({ event }) => !/^(registry_(trouble|recovered)|tables_applied)$/.test(event));
  t.same(others, [], `${what}: and nothing else`);
}

/** The lease of a node as etcd has it. */
const leaseOf = (etcd: Etcd, node: EtcdNode) => etcd.get(SUBNETS + node.key);

/** Most of their time is waiting. */
const beside = (name: string, work: (t: Test) => Promise<void>): void => {
  t.jobs = 8;
  void t.test(name, { buffered: true }, work);
};

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  beside('etcd killed, and started on the same data', async (t) => {
    const { etcd, put, del, start } = await setUp(t);
    await put(101, '192.168.77.101');
    await put(102, '192.168.77.102');
    const node = await start({ endpoints: etcd.endpoints });
    await assertRoutes(t, node, [route(101, '192.168.77.101'), route(102, '192.168.77.102')], 'at the start');
    await etcd.members[0].stop('SIGKILL');
    t.ok(await until(() => node.problem !== undefined), 'it is noticed');
    t.match(node.problem, new RegExp(new URL(etcd.endpoints[0]).host), 'and said where');
    await pause(2000);
    t.equal(node.routes.length, 2, 'what was in force stays');
    await etcd.members[0].start();
    await put(103, '192.168.77.103');
    await del(101);
    await assertRoutes(t, node, [route(102, '192.168.77.102'), route(103, '192.168.77.103')], 'news once it is back');
    await assertSaidOnce(t, node, 'killed');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'the lease is still ours');
  });

  beside('etcd stopped by SIGSTOP', async (t) => {
    const { etcd, put, start } = await setUp(t);
    const node = await start({ endpoints: etcd.endpoints });
    etcd.members[0].pause();
    await pause(2000);
    etcd.members[0].resume();
    await put(101, '192.168.77.101');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'shortly: news');
    t.equal(node.log.count('registry_trouble'), 0, 'shortly: nothing to say');

    // Long enough for the pings of a connection to remain unanswered.
    etcd.members[0].pause();
    t.ok(await until(() => node.problem !== undefined, 30_000), 'for long: it is noticed');
    t.equal(node.routes.length, 1, 'for long: what was in force stays');
    await pause(3000);
    etcd.members[0].resume();
    await put(102, '192.168.77.102');
    await assertRoutes(t, node, [route(101, '192.168.77.101'), route(102, '192.168.77.102')], 'for long: news');
    await assertSaidOnce(t, node, 'for long');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'the lease is still ours');
  });

  for (const compacted of [false, true]) {
    beside(`a watcher that was away${compacted ? ', and history is gone' : ''}`, async (t) => {
      const { etcd, wire, put, del, start } = await setUp(t);
      for (const i of [101, 102, 103, 104]) await put(i, `192.168.77.${i}`);
      const node = await start();
      t.equal(node.routes.length, 4, 'at the start');
      const before = await etcd.requests();
      wire.cut();
      t.ok(await until(() => node.problem !== undefined), 'it is noticed');
      await put(105, '192.168.77.105'); // comes
      await del(101); // goes
      await put(102, '192.168.77.202'); // moves
      await del(103); // goes, and comes back elsewhere
      await put(103, '192.168.77.203');
      await put(106, '192.168.77.106'); // comes and goes
      await del(106);
      await put(104, '192.168.77.104'); // renewed
      if (compacted) await etcd.compact();
      t.equal(node.routes.length, 4, 'what was in force stays');
      const plans = node.plans;
      wire.mend();
      const want = [
        route(102, '192.168.77.202'),
        route(103, '192.168.77.203'),
        route(104, '192.168.77.104'),
        route(105, '192.168.77.105'),
      ];
      await assertRoutes(t, node, want, 'what came, went and moved meanwhile');
      await pause(200);
      t.ok(node.plans - plans <= 2, `the tables changed ${node.plans - plans} times for it`);
      await assertSaidOnce(t, node, 'away');
      t.same(node.happened, { moved: 0, revoked: 0 }, 'the lease is still ours');
      await put(107, '192.168.77.107');
      await assertRoutes(t, node, [...want, route(107, '192.168.77.107')], 'and it goes on');
      const after = await etcd.requests();
      const lists =
        (after.handled.Range ?? 0) - (before.handled.Range ?? 0) + (after.handled.Txn ?? 0) - (before.handled.Txn ?? 0);
      t.comment(`${lists} reads by etcd's count`);
    });
  }

  beside('a lost connection that nobody tells of', async (t) => {
    const { wire, put, start } = await setUp(t);
    const node = await start();
    wire.freeze();
    await put(101, '192.168.77.101');
    const begun = performance.now();
    t.ok(await until(() => node.routes.length === 1, 30_000), 'it is found out, and replaced by another');
    t.comment(`after ${Math.round(performance.now() - begun)} ms`);
    await assertSaidOnce(t, node, 'silent');
  });

  beside('while etcd is away nobody is busy', async (t) => {
    const { wire, start } = await setUp(t);
    const node = await start();
    wire.cut();
    t.ok(await until(() => node.problem !== undefined), 'it is noticed');
    await pause(6000);
    t.ok(wire.refused >= 1, `it tries again: ${wire.refused} times in 6 s`);
    t.ok(wire.refused <= 30, 'and not in a loop');
    t.equal(node.log.count('registry_trouble'), 1, 'one line');
    wire.mend();
    await assertSaidOnce(t, node, 'away');
  });

  beside('three members, of which the leader is killed', async (t) => {
    const { etcd, folders } = await setUp(t, { members: 3 });
    const nodes: EtcdNode[] = [];
    t.teardown(() => Promise.all(nodes.map((node) => node.stop())));
    // Leases of seconds, so that there is always one to be renewed.
    const make = (i: number): EtcdNode => {
      const node = new EtcdNode(folders, { endpoints: etcd.endpoints, address: `192.168.77.${i}`, ttl: 12 });
      nodes.push(node);
      return node;
    };
    const bring = async (node: EtcdNode): Promise<void> => {
      await node.join();
      await node.follow();
    };
    await Promise.all(Array.from({ length: 10 }, (_, i) => bring(make(i + 1))));
    const early = nodes.map((node) => node.subnet);
    const leader = await etcd.leader();
    t.ok(leader, 'there is one');
    const joining = Array.from({ length: 10 }, async (_, i) => {
      const node = make(i + 11);
      await pause(i * 150);
      await bring(node);
    });
    await pause(500);
    await leader?.stop('SIGKILL');
    const killed = performance.now();
    await Promise.all(joining);
    t.comment(`all have joined ${Math.round(performance.now() - killed)} ms after it`);
    const complete = (): boolean => nodes.every((node) => node.routes.length === 19);
    t.ok(await until(complete, 15_000), 'all know all');
    t.equal(new Set(nodes.map(({ subnet }) => subnet)).size, 20, 'twenty subnets');
    await pause(10_000); // beyond a renewal of each
    t.ok(await until(complete, RECOVERED_WITHIN_MS), 'and still do after leases were renewed');
    t.same(
      nodes.slice(0, 10).map(({ subnet }) => subnet),
      early,
      'those of before are where they were',
    );
    t.same(
      nodes.filter(({ happened }) => happened.moved + happened.revoked > 0).map(({ address }) => address),
      [],
      'nobody lost a lease',
    );
    const loudest = Math.max(...nodes.map(({ log }) => log.count('registry_trouble')));
    t.ok(loudest <= 3, `nobody told of it more than ${loudest} times`);
    await leader?.start();
    const endpoint = etcd.members.find((member) => member !== leader)?.endpoint ?? '';
    t.ok(endpoint, 'it comes back');
    t.ok(await until(() => nodes.every(({ problem }) => problem === undefined), RECOVERED_WITHIN_MS), 'all is well');
    const subnets = (await etcd.list(SUBNETS)).map(({ key, value }) => `${key.slice(SUBNETS.length)} ${value}`);
    t.same(subnets.sort(), nodes.map((node) => `${node.key} ${leaseText(node.address)}`).sort(), 'etcd has just these');
  });

  beside('three members, of which two are killed', async (t) => {
    const { etcd, put, start } = await setUp(t, { members: 3 });
    const node = await start({ endpoints: etcd.endpoints });
    await put(101, '192.168.77.101');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'at the start');
    const leader = await etcd.leader();
    const others = etcd.members.filter((member) => member !== leader);
    // One that is left may still answer, and knows nothing for sure.
    await Promise.all([leader, others[0]].map((member) => member?.stop('SIGKILL')));
    t.ok(await until(() => node.problem !== undefined, 20_000), `it is noticed: ${node.problem}`);
    await pause(1500);
    t.equal(node.routes.length, 1, 'what was in force stays');
    await Promise.all([leader, others[0]].map((member) => member?.start({ wait: false })));
    await Promise.all(etcd.members.map((member) => member.ready()));
    await put(102, '192.168.77.102');
    await assertRoutes(t, node, [route(101, '192.168.77.101'), route(102, '192.168.77.102')], 'they are back: news');
    t.ok(await until(() => node.problem === undefined, RECOVERED_WITHIN_MS), 'all is well');
    t.ok(node.log.count('registry_trouble') <= 2, `said ${node.log.count('registry_trouble')} times`);
    t.same(node.happened, { moved: 0, revoked: 0 }, 'the lease is still ours');
  });

  beside('an etcd that is full', async (t) => {
    const { etcd, put, start } = await setUp(t, { args: ['--quota-backend-bytes=1000000'] });
    const node = await start({ endpoints: etcd.endpoints, ttl: 12 });
    await put(101, '192.168.77.101');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'at the start');
    const filler = 'x'.repeat(100_000);
    let full: unknown;
    for (let i = 0; i < 40 && !full; i++)
      full = await etcd
        .put(`/filler/${i}`, filler)
        .catch((error: unknown) => error)
        .then((done) => (done instanceof Error ? done : undefined));
    t.match(String(full), /space exceeded/, 'nothing can be written');
    t.ok(await until(() => node.problem !== undefined, 10_000), 'a renewal fails: it is noticed');
    t.match(node.problem, /space/, `and said: ${node.problem}`);
    t.equal(node.routes.length, 1, 'what is in force stays');
    await etcd.del('/filler/', { prefix: true });
    await etcd.compact();
    await etcd.ctl('defrag');
    await etcd.ctl('alarm', 'disarm');
    t.ok(await until(() => node.problem === undefined, RECOVERED_WITHIN_MS), 'there is room: it is renewed');
    t.ok((node.member?.secondsLeft() ?? 0) > 6, 'for its whole time');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'the lease is still ours');
  });

  beside('endpoints of which some are dead', async (t) => {
    const { etcd, put, start } = await setUp(t);
    const closed = await Wire.to(etcd.endpoints[0]);
    const { endpoint: dead } = closed;
    closed.close();
    const begun = performance.now();
    const node = await start({ endpoints: [dead, etcd.endpoints[0], 'http://192.0.2.1:2379'] });
    t.comment(`joined after ${Math.round(performance.now() - begun)} ms`);
    await put(101, '192.168.77.101');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'the one that lives will do');
    t.equal(node.log.count('registry_trouble'), 0, 'without a word');
  });

  beside('another etcd in the place of the first', async (t) => {
    const { wire, put, start } = await setUp(t);
    await put(101, '192.168.77.101');
    const node = await start();
    const other = await Etcd.start();
    t.teardown(() => other.close());
    wire.cut();
    t.ok(await until(() => node.problem !== undefined), 'etcd is away');
    wire.lead(other.endpoints[0]);
    wire.mend();
    await pause(3000);
    t.same(node.happened, { moved: 0, revoked: 0 }, 'an empty one: nobody has taken our lease from us');
    t.same(await other.list('/'), [], 'an empty one: nobody makes it a network');
    await other.put(`${PREFIX}/config`, CONFIG);
    await other.put(`${SUBNETS}10.5.102.0-24`, leaseText('192.168.77.102'));
    t.ok(await until(() => node.problem === undefined, RECOVERED_WITHIN_MS), 'configured: all is well');
    await assertRoutes(t, node, [route(102, '192.168.77.102')], 'its leases are in force');
    t.ok(await leaseOf(other, node), 'and ours is among them, on the same subnet');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'all goes on');
  });

  beside('users', async (t) => {
    const user = { name: 'flanneld', password: 'secret', prefix: '/coreos.com/' };
    const { etcd, wire, put, start } = await setUp(t, { user });
    const more = { username: user.name, password: user.password };
    const node = await start({ ttl: 6, more });
    await put(101, '192.168.77.101');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'with a password');
    // Its tokens are those of a process.
    await etcd.members[0].stop('SIGKILL');
    await etcd.members[0].start();
    await put(102, '192.168.77.102');
    await assertRoutes(t, node, [route(101, '192.168.77.101'), route(102, '192.168.77.102')], 'etcd started again');
    await assertSaidOnce(t, node, 'etcd started again');
    // Whoever changes the rights of anybody makes all tokens old.
    await etcd.ctl('user', 'add', 'another:secret');
    const before = await leaseOf(etcd, node);
    t.ok(await until(() => (node.member?.secondsLeft() ?? 0) > 5, 8000), 'another user is added: the lease is renewed');
    t.equal((await leaseOf(etcd, node))?.createRevision, before?.createRevision, 'another user is added: it stays');

    await etcd.ctl('user', 'revoke-role', user.name, 'tester');
    wire.cut();
    t.ok(await until(() => node.problem !== undefined), 'no rights any more: it is noticed');
    wire.mend();
    t.ok(await until(() => /may not|permission/.test(node.problem ?? ''), 10_000), `and said: ${node.problem}`);
    t.equal(node.routes.length, 2, 'what was in force stays');
    await etcd.ctl('user', 'grant-role', user.name, 'tester');
    t.ok(await until(() => node.problem === undefined, RECOVERED_WITHIN_MS), 'the rights are back: all is well');
    await put(103, '192.168.77.103');
    t.ok(await until(() => node.routes.length === 3), 'with news');
    t.equal(node.happened.revoked, 0, 'the lease is still ours');
  });

  beside('tokens that end after two seconds', async (t) => {
    const keys = new NodeFolders(t).path;
    const [key, pub] = [join(keys, 'jwt.key'), join(keys, 'jwt.pub')];
    const made = generateKeyPairSync('rsa', { modulusLength: 2048 });
    writeFileSync(key, made.privateKey.export({ type: 'pkcs1', format: 'pem' }));
    writeFileSync(pub, made.publicKey.export({ type: 'spki', format: 'pem' }));
    const user = { name: 'flanneld', password: 'secret' };
    const args = [`--auth-token=jwt,pub-key=${pub},priv-key=${key},sign-method=RS256,ttl=2s`];
    const { etcd, put, start } = await setUp(t, { user, args });
    const node = await start({ ttl: 6, more: { username: user.name, password: user.password } });
    const first = await leaseOf(etcd, node);
    await pause(8000);
    const now = await leaseOf(etcd, node);
    t.equal(now?.createRevision, first?.createRevision, 'the lease is renewed all the same');
    t.ok((now?.version ?? 0) > 1, 'several times');
    await put(101, '192.168.77.101');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'and news come');
    t.equal(node.log.lines.filter(({ event }) => event !== 'tables_applied').length, 0, 'without a word about it');
  });

  beside('as many hosts as subnets, at once', async (t) => {
    // Fifteen of 10.5.0.0/26's /30, since the first is left out.
    const { etcd, folders, node } = await setUp(t, {}, '{"Network":"10.5.0.0/26","SubnetLen":30}');
    const nodes = Array.from({ length: 15 }, (_, i) => {
      return new EtcdNode(folders, { endpoints: etcd.endpoints, address: `192.168.77.${i + 1}` });
    });
    t.teardown(() => Promise.all(nodes.map((one) => one.stop())));
    const outcomes = await Promise.allSettled(nodes.map((one) => one.join()));
    const failed = outcomes.flatMap((one) => (one.status === 'rejected' ? [String(one.reason)] : []));
    t.same(failed, [], 'all find one, whoever chose the same');
    t.equal(new Set(nodes.map(({ subnet }) => subnet)).size, 15, 'each its own');
    const late = node({ address: '192.168.77.99' });
    await t.rejects(late.join(), { name: /Error$/, message: /^(?=.*10\.5\.0\.0\/26)(?!.*\n)/ }, 'one more finds none');
    const error: unknown = await late.join().catch((one: unknown) => one);
    t.comment(String(error));
    t.equal((await etcd.list(SUBNETS)).length, 15, 'and takes none');
  });

  // --- leases ---

  beside('a lease that is renewed', async (t) => {
    const { etcd, put, start } = await setUp(t);
    const node = await start({ ttl: 6 });
    const other = await start({ address: '192.168.77.2' });
    const first = await leaseOf(etcd, node);
    t.ok(first && first.lease !== 0n, 'it has a lease of etcd’s');
    const { granted } = await etcd.lease(first?.lease ?? 0n);
    t.equal(granted, 6, 'of so many seconds');
    await put(101, '192.168.77.101');
    await until(() => other.routes.length === 2);
    const plans = other.plans;
    await pause(9000);
    const now = await leaseOf(etcd, node);
    t.equal(now?.createRevision, first?.createRevision, 'after more than its time it is the same key');
    t.ok((now?.version ?? 0) > 1 && now?.lease !== first?.lease, 'put again, with another lease');
    t.equal(now?.value, first?.value, 'of the same value');
    t.equal((await etcd.lease(first?.lease ?? 0n)).ttl, -1, 'the first lease is gone');
    t.equal(other.plans, plans, 'which changed nothing for anybody');
    t.ok((now?.version ?? 0) <= 9, `it was written ${now?.version} times in 9 s`);
    t.same(
      [node.happened, other.happened],
      [
        { moved: 0, revoked: 0 },
        { moved: 0, revoked: 0 },
      ],
      'all goes on',
    );
  });

  beside('a renewal that fails is tried again', async (t) => {
    const { etcd, wire, start } = await setUp(t);
    const node = await start({ ttl: 12 });
    const first = await leaseOf(etcd, node);
    await pause(3000);
    wire.cut();
    await pause(6000);
    wire.mend();
    t.ok(
      await until(() => node.problem === undefined && (node.member?.secondsLeft() ?? 0) > 6, RECOVERED_WITHIN_MS),
      'etcd is back before the lease ends: it is renewed',
    );
    await pause(4000);
    const now = await leaseOf(etcd, node);
    t.equal(now?.createRevision, first?.createRevision, 'the key never went away');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'all goes on');
  });

  beside('a lease that ended while etcd was away', async (t) => {
    const { etcd, wire, put, start } = await setUp(t);
    await put(101, '192.168.77.101');
    const node = await start({ ttl: 5 });
    const first = await leaseOf(etcd, node);
    wire.cut();
    t.ok(await until(() => (node.member?.secondsLeft() ?? 1) <= 0, 10_000), 'its time runs out by our own clock');
    for (let i = 0; i < 100 && (await leaseOf(etcd, node)); i++) await pause(100);
    t.equal(await leaseOf(etcd, node), undefined, 'and in etcd');
    t.equal(node.routes.length, 1, 'what is in force stays');
    t.ok(node.member?.forwards(), 'and packets flow');
    wire.mend();
    t.ok(await until(() => (node.member?.secondsLeft() ?? 0) > 0, RECOVERED_WITHIN_MS), 'it is taken again');
    const now = await leaseOf(etcd, node);
    t.ok(now && first && now.createRevision > first.createRevision, 'the same subnet, anew');
    t.equal(now?.value, first?.value, 'with the same value');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'nobody had taken it: all goes on');
    await assertRoutes(t, node, [route(101, '192.168.77.101')], 'as before');
    await pause(6000);
    t.ok(await leaseOf(etcd, node), 'and it is renewed from then on');
    const said = node.log.events.filter((event) => event !== 'tables_applied');
    t.ok(said.length <= 8 && new Set(said).size === said.length, `all that was said of it: ${said.join(', ')}`);
  });

  beside('a lease that ended, and its subnet is another’s', async (t) => {
    const { etcd, wire, start } = await setUp(t);
    const node = await start({ ttl: 5 });
    wire.cut();
    for (let i = 0; i < 150 && (await leaseOf(etcd, node)); i++) await pause(100);
    await etcd.put(SUBNETS + node.key, leaseText('192.168.77.66'));
    wire.mend();
    t.ok(await until(() => node.happened.moved > 0, RECOVERED_WITHIN_MS), 'it has to move');
    await pause(500);
    t.same(node.happened, { moved: 1, revoked: 0 }, 'and is told once');
    t.equal((await leaseOf(etcd, node))?.value, leaseText('192.168.77.66'), 'the other keeps it');
    const { subnet } = node;
    await node.stop();
    const again = await start({ ttl: 5 });
    t.not(again.subnet, subnet, 'started again, it has another');
    await assertRoutes(t, again, [`${subnet} 192.168.77.66`], 'and knows whose the old one is');
  });

  beside('a lease that is taken away', async (t) => {
    const { etcd, wire, start } = await setUp(t);
    const nodes = await Promise.all([1, 2, 3, 4].map((i) => start({ address: `192.168.77.${i}` })));
    const [deleted, revoked, away, stays] = nodes;
    await etcd.del(SUBNETS + deleted.key);
    await etcd.revoke((await leaseOf(etcd, revoked))?.lease ?? 0n);
    for (const [node, how] of [
      [deleted, 'its key deleted'],
      [revoked, 'its lease revoked'],
    ] as const) {
      t.ok(await until(() => node.happened.revoked > 0), `${how}: it is told`);
    }
    await Promise.all([deleted.stop(), revoked.stop()]);
    wire.cut();
    t.ok(await until(() => away.problem !== undefined), 'etcd is away');
    await etcd.del(SUBNETS + away.key);
    wire.mend();
    t.ok(await until(() => away.happened.revoked > 0, RECOVERED_WITHIN_MS), 'meanwhile: it is told afterwards');
    await pause(1500);
    t.same(
      nodes.map(({ happened }) => happened),
      [1, 1, 1, 0].map((times) => ({ moved: 0, revoked: times })),
      'each once, and nobody else',
    );
    t.equal((await etcd.list(SUBNETS)).length, 1, 'and none of them takes it again');
    await assertRoutes(t, stays, [], 'the one that is left knows');
  });

  beside('reservations', async (t) => {
    const { etcd, start, put } = await setUp(
      t,
      {},
      '{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.9.0"}',
    );
    await put(8, OWN);
    await put(9, '192.168.77.9');
    const node = await start({ ttl: 5 });
    t.equal(node.subnet, '10.5.8.0/24', 'a key with our address is ours');
    t.equal(node.member?.lease, 'taken over', 'taken over');
    const other = await start({ address: '192.168.77.2', ttl: 5 });
    t.equal(other.subnet, '10.5.7.0/24', 'one of another host’s is given to nobody');
    await pause(8000);
    const kept = await etcd.get(`${SUBNETS}10.5.8.0-24`);
    t.equal(kept?.lease, 0n, 'it has no time, and after that of a lease still none');
    t.equal(kept?.value, leaseText(OWN), 'and its value');
    await node.stop();
    await pause(6000);
    t.ok(await etcd.get(`${SUBNETS}10.5.8.0-24`), 'it stays without its host');
    t.same(other.routes, [route(8, OWN), route(9, '192.168.77.9')], 'and the others have it in force');
  });

  beside('started again', async (t) => {
    const { etcd, folders, start } = await setUp(t);
    const first = await start();
    const { subnet } = first;
    await first.stop();
    const taken = await start();
    t.same([taken.member?.lease, taken.subnet], ['taken over', subnet], 'its lease is still there');
    await taken.stop();
    // Nothing of it in etcd: subnet.env remembers.
    await etcd.del(SUBNETS, { prefix: true });
    const file = join(folders.of(OWN), 'subnet.env');
    const number = Number(subnet.split('.')[2]);
    writeFileSync(
      file,
      `FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.${number}.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n`,
    );
    rmSync(join(folders.of(OWN), 'state'), { recursive: true });
    const reused = await start();
    t.same([reused.member?.lease, reused.subnet], ['reused', subnet], 'and so does subnet.env');
    t.match(readFileSync(file, 'utf8'), 'FLANNEL_MTU=1472', 'which the registry does not touch');
    await reused.stop();
    await etcd.del(SUBNETS, { prefix: true });
    await etcd.put(SUBNETS + reused.key, leaseText('192.168.77.66'));
    const other = await start();
    t.equal(other.member?.lease, 'new', 'a subnet that is another’s now');
    t.not(other.subnet, subnet, 'is not taken from him');
  });

  beside('a clock that the test moves', async (t) => {
    // A day, renewed an hour before it ends. What is overdue is done when etcd is found again.
    const real = systemClock();
    let ahead = 0;
    const clock = { boot: real.boot, monotonic: (): number => real.monotonic() + ahead * 3_600_000 };
    const { etcd, wire, start } = await setUp(t);
    const node = await start({ clock });
    const lose = async (meanwhile: () => Promise<unknown> = () => Promise.resolve()): Promise<void> => {
      wire.cut();
      t.ok(await until(() => node.problem !== undefined), 'etcd is away');
      await meanwhile();
      wire.mend();
      t.ok(await until(() => node.problem === undefined, RECOVERED_WITHIN_MS), 'and back');
    };
    const first = await leaseOf(etcd, node);
    t.equal((await etcd.lease(first?.lease ?? 0n)).granted, 86_400, 'a day');
    const left = node.member?.secondsLeft() ?? 0;
    t.ok(left > 86_380 && left <= 86_400, `of which ${Math.round(left)} s are left`);
    ahead = 22.9;
    await lose();
    await pause(500);
    t.equal((await leaseOf(etcd, node))?.version, 1, 'not renewed before its margin');
    t.ok((node.member?.secondsLeft() ?? 0) < 1.2 * 3600, 'it runs out by our own clock');
    ahead = 23.1;
    await lose();
    t.ok(await until(() => (node.member?.secondsLeft() ?? 0) > 86_000), 'renewed within it');
    t.equal((await leaseOf(etcd, node))?.version, 2, 'by a put');

    // What etcd lost before our own deadline was taken from us; after it, we were late.
    ahead += 24.1;
    await lose(() => etcd.del(SUBNETS + node.key));
    t.ok(await until(() => (node.member?.secondsLeft() ?? 0) > 86_000), 'gone after its time: taken again');
    t.equal((await leaseOf(etcd, node))?.version, 1, 'anew');
    t.same(node.happened, { moved: 0, revoked: 0 }, 'and all goes on');
    ahead += 1;
    await lose(() => etcd.del(SUBNETS + node.key));
    t.ok(await until(() => node.happened.revoked > 0), 'gone before its time: revoked');
  });
}
