/** The embedded registry as daemons use it: who hears what, who may forward and until when, and what happens to it on the way. */
import { execFileSync } from 'node:child_process';
import { closeSync, cpSync, openSync, renameSync, rmSync, symlinkSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { ConfigWish } from '../../src/control/allocation.js';
import { parseCidr, parseHostAddress } from '../../src/control/cidr.js';
import { EmbeddedRegistry, type Joined } from '../../src/control/embedded-registry.js';
import { type Acquired, EmbeddedStore, RegistryAway } from '../../src/control/embedded-store.js';
import { ControlLoop } from '../../src/control/loop.js';
import { makeRecord, type Records, reduceRecords } from '../../src/control/records.js';
import type { RegistryUpdate } from '../../src/control/registry.js';
import { FileLock } from '../../src/host/file-lock.js';
import { SetupError } from '../../src/io/setup-error.js';
import {
  configFor,
  contentsOf,
  contradictions,
  folder,
  meddle,
  pause,
  TestClock,
  TestLog,
  until,
  wishFor,
} from '../lib/embedded.js';

const A = '192.168.77.1';
const B = '192.168.77.2';
const C = '192.168.77.3';
const D = '192.168.77.4';
const TTL = 3000;
/** The clock is the test's: only `poll` is in real milliseconds. */
const TIMES = { poll: 2, retry: 500, settle: 5000 };
/** Long enough for many looks: what has not happened by then does not happen. */
const MANY_LOOKS = 80;

/** One daemon's registry, with what it tells and lets through. */
class Daemon {
  readonly log = new TestLog();
  readonly registry: EmbeddedRegistry;
  readonly updates: RegistryUpdate[] = [];
  records: Records = new Map();
  /** May forward until this reading of the clock. */
  gate = 0;
  moved = 0;
  readonly #abort = new AbortController();
  #watching = Promise.resolve();

  constructor(path: string, clock: TestClock, addresses: string, wish: ConfigWish) {
    this.registry = new EmbeddedRegistry({
      path,
      wish,
      addresses: addresses.split(',').map(parseHostAddress),
      ttl: TTL,
      clock,
      log: this.log,
      gate: (until) => {
        this.gate = until;
      },
      moved: () => {
        this.moved++;
      },
      times: TIMES,
    });
  }

  join(prefer: readonly string[] = [], create = true): Promise<Joined> {
    return this.registry.join(prefer.map(parseCidr), { create, patience: 5000 });
  }

  watch(cursor?: string): void {
    const read = async (): Promise<void> => {
      for await (const update of this.registry.watch(this.#abort.signal, cursor)) {
        this.updates.push(update);
        this.records = reduceRecords(this.records, update);
      }
    };
    this.#watching = read();
    this.#watching.catch(() => {}); // see `failure`
  }

  /** What ended the watch; undefined: nothing. */
  async failure(): Promise<unknown> {
    return Promise.race([
      this.#watching.then(
        () => undefined,
        (error: unknown) => error,
      ),
      pause(1),
    ]);
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#watching.catch(() => {});
    await this.registry.close();
  }

  get peers(): string {
    return [...this.records.keys()].sort().join(' ');
  }

  get trouble(): string | undefined {
    return this.updates.at(-1)?.trouble?.reason;
  }
}

interface Stage {
  readonly path: string;
  readonly clock: TestClock;
  /** A daemon that has joined and watches. */
  daemon(addresses: string, prefer?: readonly string[]): Promise<Daemon>;
  /** One that has done nothing yet. */
  made(addresses: string, wish?: ConfigWish): Daemon;
  /** Somebody without a daemon. */
  other(): Promise<{ store: EmbeddedStore; acquire(host: string, prefer?: string, ttl?: number): Promise<Acquired> }>;
  /** Moves the clock in small steps, and lets those who can renew do so. */
  walk(ms: number, ...renewing: Daemon[]): Promise<void>;
}

function setUp(t: Test, networks = '10.5.0.0/16', lengths: readonly number[] = []): Stage {
  const path = join(folder(t), 'registry');
  const clock = new TestClock();
  const made = (addresses: string, wish = wishFor(networks, lengths)): Daemon => {
    const daemon = new Daemon(path, clock, addresses, wish);
    t.teardown(() => daemon.stop());
    return daemon;
  };
  return {
    path,
    clock,
    made,
    daemon: async (addresses, prefer = []) => {
      const daemon = made(addresses);
      await daemon.join(prefer);
      daemon.watch();
      await until(() => daemon.updates.length > 0);
      return daemon;
    },
    other: async () => {
      const store = await EmbeddedStore.open(path, clock, true, 1000);
      t.teardown(() => store.close());
      const { config } = await store.configure(wishFor(networks, lengths), true);
      return {
        store,
        acquire: (host, prefer, ttl = 1e9) =>
          store.acquire({ addresses: host.split(','), prefer: prefer ? [parseCidr(prefer)] : [], ttl }, config),
      };
    },
    walk: async (ms, ...renewing) => {
      for (const end = clock.now + ms; clock.now < end; ) {
        clock.now = Math.min(end, clock.now + TTL / 4);
        if (renewing.length === 0) await pause(MANY_LOOKS / 4);
        for (const daemon of renewing) await until(() => daemon.gate - clock.now >= TTL * 0.6);
      }
      await pause(MANY_LOOKS);
    },
  };
}

t.test('watch: a snapshot, and then what changes', async (t) => {
  const { daemon, clock, made } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  t.match(a.updates, [{ kind: 'snapshot', records: [{ id: A }] }]);
  t.notOk(a.trouble);
  const b = await daemon(`${B},fd00:77::2`, ['10.5.2.0/24']);
  t.match(b.updates, [{ kind: 'snapshot' }]);
  t.equal(b.peers, `${A} ${B}`);
  t.ok(await until(() => a.updates.length === 2));
  t.same(a.updates[1], {
    kind: 'events',
    cursor: a.updates[1].kind === 'events' ? a.updates[1].cursor : '',
    events: [
      {
        type: 'put',
        record: makeRecord({ id: B, name: B, address: B, port: 8285, subnets: ['10.5.2.0/24'], ecn: true }),
      },
    ],
  });
  clock.now += TTL / 2;
  t.ok(await until(() => a.gate === clock.now + TTL && b.gate === clock.now + TTL), 'renewed at a third of the time');
  await pause(MANY_LOOKS);
  t.same([a.updates.length, b.updates.length], [2, 1], 'and nobody is told');

  const last = a.updates[1].kind === 'events' ? a.updates[1].cursor : '';
  await a.stop();
  const again = made(A);
  t.equal((await again.join()).how, 'taken over');
  again.watch(last);
  await pause(MANY_LOOKS);
  t.same(
    again.updates,
    [{ kind: 'events', events: [], cursor: last }],
    'with the last cursor nothing is told twice, but that all is well',
  );
  await daemon(C, ['10.5.3.0/24']);
  t.ok(await until(() => again.updates.length === 2));
  t.match(again.updates[1], { kind: 'events', events: [{ type: 'put', record: { id: C } }] });
});

t.test('with a cursor that means nothing here there is a snapshot', async (t) => {
  const { made } = setUp(t);
  for (const cursor of ['', '0@another registry', 'nonsense', '99999@']) {
    const a = made(A);
    await a.join();
    a.watch(cursor);
    t.ok(await until(() => a.updates.length > 0));
    t.match(a.updates, [{ kind: 'snapshot', records: [{ id: A }] }], cursor);
    await a.stop();
  }
});

t.test('who does not renew is gone for the others, after its time and after they have settled', async (t) => {
  const { daemon, walk, path } = setUp(t);
  const a = await daemon(A);
  const b = await daemon(B);
  const c = await daemon(C);
  await walk(1, a, b, c);
  await b.stop();
  await walk(TTL + 1000, a, c);
  t.equal(a.peers, `${A} ${B} ${C}`, 'its time is over, but nobody has been here for long enough to say so');
  t.ok((await contentsOf(path)).leases.has(B));
  await walk(1001, a, c);
  t.ok(await until(() => a.peers === `${A} ${C}` && c.peers === `${A} ${C}`), 'both notice');
  t.match(a.updates.at(-1), { kind: 'events', events: [{ type: 'delete', id: B }] });
  const d = await daemon(B);
  t.ok(await until(() => a.peers === `${A} ${B} ${C}`), 'and notice when it is back');
  await d.stop();
  await walk(TTL - 500, a, c);
  t.equal(a.peers, `${A} ${B} ${C}`);
  await walk(501 + TTL / 4, a, c);
  t.ok(await until(() => a.peers === `${A} ${C}`), 'now without delay');
  t.same(contradictions(await contentsOf(path)), []);
  t.equal(a.moved + c.moved, 0);
});

t.test('after trouble nobody is removed until all had the chance to come back', async (t) => {
  const { daemon, walk, path } = setUp(t);
  const a = await daemon(A);
  const b = await daemon(B);
  await walk(6000, a, b);
  await b.stop();
  renameSync(path, `${path}.away`);
  await until(() => a.trouble !== undefined);
  await walk(2 * TTL, a);
  t.equal(a.peers, `${A} ${B}`);
  renameSync(`${path}.away`, path);
  await walk(1000);
  t.ok(await until(() => a.trouble === undefined));
  await walk(3500, a);
  t.equal(a.peers, `${A} ${B}`, 'ended long ago, and still there');
  await walk(1600, a);
  t.ok(await until(() => a.peers === A), 'gone after that');
});

t.test('the gate: as long as the lease, moved with every renewal', async (t) => {
  const { clock, made } = setUp(t);
  const a = made(A);
  t.equal(a.registry.leaseSecondsLeft, 0);
  await a.join();
  t.equal(a.gate, clock.now + TTL);
  t.equal(a.registry.leaseSecondsLeft, TTL / 1000);
  clock.now += TTL - 1;
  await pause(MANY_LOOKS);
  t.equal(a.gate, clock.now + 1, 'it moves with the lease only');
  a.watch();
  t.ok(await until(() => a.gate === clock.now + TTL));
  t.equal(a.registry.leaseSecondsLeft, TTL / 1000);
});

t.test('the gate: while the registry is away it is moved on', async (t) => {
  const { daemon, clock, path, walk } = setUp(t);
  const a = await daemon(A);
  renameSync(path, `${path}.away`);
  t.ok(await until(() => a.trouble !== undefined));
  for (let i = 0; i < 12; i++) {
    clock.now += TTL / 2;
    t.ok(a.gate > clock.now, 'open all the time');
    t.ok(await until(() => a.gate >= clock.now + TTL));
  }
  t.ok(a.registry.leaseSecondsLeft < -10);
  renameSync(`${path}.away`, path);
  await walk(1000);
  t.ok(await until(() => a.trouble === undefined));
  t.ok(Math.abs(a.gate - clock.now - TTL) <= 1000 && a.registry.leaseSecondsLeft > 0, 'and then renewed');
});

t.test('the gate: who overslept forwards nothing until it has acquired again', async (t) => {
  const { daemon, clock, path, walk } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  const before = a.gate;
  clock.now += TTL + 1;
  t.equal(a.gate, before, 'shut in the moment in which it wakes');
  t.ok(await until(() => a.gate === clock.now + TTL), 'the lease was still there');
  t.equal((await contentsOf(path)).leases.get(A)?.expires, a.gate);

  renameSync(path, `${path}.away`);
  t.ok(await until(() => a.trouble !== undefined));
  t.ok(await until(() => a.gate === clock.now + TTL));
  const shut = a.gate;
  clock.now += TTL;
  await pause(MANY_LOOKS);
  t.equal(a.gate, shut, 'while the registry is away: not even then');
  await walk(2 * TTL);
  t.equal(a.gate, shut);
  renameSync(`${path}.away`, path);
  await walk(1000);
  t.ok(await until(() => a.gate > clock.now));
  t.equal(a.gate, (await contentsOf(path)).leases.get(A)?.expires, 'only by a lease');
  t.equal(a.moved, 0);
});

t.test('the gate: who overslept and lost its subnet starts again, forwarding nothing', async (t) => {
  const { daemon, clock, other } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  const { store, acquire } = await other();
  clock.now += TTL + 1;
  // Both in this turn of the event loop, before `a` wakes.
  const reaped = store.reap();
  const taken = acquire(B, '10.5.1.0/24');
  t.equal(await reaped, 1);
  t.match(await taken, { how: 'reused' });
  t.ok(await until(() => a.moved > 0), 'start again');
  t.ok(a.gate <= clock.now, 'shut');
  const { event, fields } = a.log.lines[0];
  t.match([event, fields], ['lease_moved', { from: ['10.5.1.0/24'], to: [/^10\.5\./] }]);
  t.not(String(fields.to), '10.5.1.0/24');
  const shut = a.gate;
  clock.now += TTL / 2;
  await pause(MANY_LOOKS);
  t.ok(a.gate <= clock.now && a.gate >= shut, 'and stays shut: what we have now is not what is in use');
  const first = await a.stop().then(() => daemon(A));
  t.equal(first.gate, clock.now + TTL, 'the next one has it');
});

t.test('the gate: who overslept and finds all subnets taken forwards nothing', async (t) => {
  const { daemon, clock, other, walk } = setUp(t, '10.5.0.0/26', [28]);
  const a = await daemon(A, ['10.5.0.16/28']);
  const { acquire } = await other();
  await acquire(B);
  await acquire(C, undefined, TTL + 8000);
  clock.now += TTL + 1;
  const taken = acquire(D);
  t.match((await taken).subnets, [{ text: '10.5.0.16/28' }]);
  t.ok(await until(() => a.trouble !== undefined));
  t.match(a.trouble, /^subnets exhausted: all from 10\.5\.0\.16 to 10\.5\.0\.48\/28 are taken: stop a host/);
  t.ok(a.gate <= clock.now);
  await walk(7000);
  t.ok(a.gate <= clock.now, 'for as long as that is so');
  t.equal(a.moved, 0);
  await walk(2000);
  t.ok(await until(() => a.moved > 0), 'until another one is free: start again with that');
  t.ok(a.gate <= clock.now);
});

t.test('the gate: all subnets taken, and then ours is free again', async (t) => {
  const { daemon, clock, other, walk } = setUp(t, '10.5.0.0/26', [28]);
  const a = await daemon(A, ['10.5.0.16/28']);
  const { acquire } = await other();
  await acquire(B);
  await acquire(C);
  clock.now += TTL + 1;
  await acquire(D, undefined, 4000);
  t.ok(await until(() => a.trouble !== undefined));
  await walk(5000);
  t.ok(await until(() => a.gate > clock.now), 'open');
  t.equal(a.moved, 0);
  t.ok(await until(() => a.trouble === undefined));
});

t.test('when all have slept, the first to wake removes nobody before they had their chance', async (t) => {
  const { daemon, made, clock, walk, path } = setUp(t);
  const a = await daemon(A);
  const b = made(B);
  await b.join();
  await walk(2 * TTL, a); // settled; and `b`, which does not watch, has ended
  t.ok(await until(() => a.peers === A), 'who does not renew is removed');
  await b.stop();
  const c = made(C);
  await c.join();
  t.ok(await until(() => a.peers === `${A} ${C}`));
  clock.now += 2 * TTL;
  t.ok(await until(() => a.gate > clock.now), 'awake');
  await pause(MANY_LOOKS);
  t.equal(a.peers, `${A} ${C}`);
  t.ok((await contentsOf(path)).leases.has(C));
  c.watch();
  t.ok(await until(() => c.gate > clock.now), 'and so is the other, a little later');
  await walk(7000, a, c);
  t.equal(a.peers, `${A} ${C}`);
  t.equal(
    a.updates.filter((update) => update.kind === 'events' && update.events.some((e) => e.type === 'delete')).length,
    1,
  );
  t.equal(a.moved + c.moved, 0);
});

t.test('the gate: what it does is said', async (t) => {
  const { daemon, clock, path } = setUp(t);
  const a = await daemon(A);
  t.ok(a.registry.gateOpen);
  renameSync(path, `${path}.away`);
  t.ok(await until(() => a.trouble !== undefined));
  t.same(a.log.lines, [], 'it stays open');
  await until(() => a.gate === clock.now + TTL);
  clock.now += TTL;
  t.notOk(a.registry.gateOpen);
  t.ok(await until(() => a.log.lines.length > 0));
  await pause(MANY_LOOKS);
  t.same(a.log.lines, [{ event: 'forwarding_stopped', fields: { reason: 'our lease has ended' } }]);
  renameSync(`${path}.away`, path);
  clock.now += 500;
  t.ok(await until(() => a.registry.gateOpen));
  await pause(MANY_LOOKS);
  t.same(a.log.events, ['forwarding_stopped', 'forwarding_resumed'], 'once each');
});

t.test('an underlay address inside the overlay is refused, and such a lease of another disturbs nobody', async (t) => {
  const { daemon, made, other, path } = setUp(t);
  const a = await daemon(A);
  await t.rejects(
    made('10.5.9.9').join(),
    new SetupError(
      'ADDRESS_INSIDE',
      `registry ${path}: our underlay address 10.5.9.9 lies in its network 10.5.0.0/16: choose another --public-ip, --iface or network`,
    ),
  );
  t.same([...(await contentsOf(path)).leases.keys()], [A], 'before it has a lease');
  const { acquire } = await other();
  await acquire('10.5.9.9');
  await meddle(path, [['lease', D], { addresses: [D], subnets: ['10.9.0.0/24'], ttl: 1e9, expires: 1e12 }]);
  const b = await daemon(B);
  t.equal(b.peers, `${A} ${B}`);
  t.ok(await until(() => a.peers === `${A} ${B}`));
  t.match(b.log.lines.map(({ event, fields }) => [event, fields.host, fields.reason]).sort(), [
    ['lease_skipped', '10.5.9.9', '10.5.9.9 lies in the network 10.5.0.0/16'],
    ['lease_skipped', D, '10.9.0.0/24 cannot be of this network'],
  ]);
});

t.test('two live daemons that share any address are twins', async (t) => {
  const { daemon, made } = setUp(t);
  const a = await daemon(`${A},fd00:77::1`, ['10.5.1.0/24']);
  await t.rejects(made('fd00:77::1').join(), { code: 'TWIN', message: /has public IP fd00:77::1: stop it/ });
  await t.rejects(made(`${B},fd00:77::1`).join(), { code: 'TWIN' });
  t.match(await made(B).join(), { how: 'new' }, 'a failed try holds nothing');
  await a.stop();
  t.match(await made(`fd00:77::1,${A}`).join(), { how: 'taken over', subnets: [{ text: '10.5.1.0/24' }] });
});

t.test('a live twin is an error, a dead one’s lease is taken over', async (t) => {
  const { daemon, made, path } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  await t.rejects(
    made(A).join(),
    new SetupError(
      'TWIN',
      `registry ${path}: another weftd (pid ${process.pid}) has public IP ${A}: stop it, or choose another --public-ip`,
    ),
  );
  const b = made(B);
  t.match(await b.join(['10.5.1.0/24']), { how: 'new' }, 'another host may come');
  await a.stop();
  t.match(await made(A).join(['10.5.9.0/24']), { how: 'taken over', subnets: [{ text: '10.5.1.0/24' }] });
});

t.test('join: what cannot be is said', async (t) => {
  const { path, clock, made, other } = setUp(t);
  await t.rejects(made(A).join([], false), RegistryAway, 'nothing there');
  await (await EmbeddedStore.open(path, clock, true, 1000)).close();
  await t.rejects(made(A).join([], false), RegistryAway, 'one that nobody has configured: it is not made either');
  t.ok(Number.isNaN((await contentsOf(path)).revision));
  await other();
  await t.rejects(made(A, wishFor('10.6.0.0/16')).join(), { code: 'CONFIG_DIFFERS' });
  const { config } = await made(A, wishFor('')).join([], false);
  t.same(config, configFor('10.5.0.0/16'), 'the registry says what is not given');
  t.ok((await contentsOf(path)).leases.has(A));
});

t.test('removed and put back: one line each, and nothing else changes', async (t) => {
  const { daemon, made, path, walk, clock } = setUp(t);
  await daemon(B, ['10.5.2.0/24']);
  const a = made(A);
  const { subnets } = await a.join(['10.5.1.0/24']);
  const plans: string[] = [];
  const loop = new ControlLoop({
    registry: a.registry,
    self: {
      addresses: [parseHostAddress(A)],
      networks: [parseCidr('10.5.0.0/16')],
      subnets,
      underlayMtu: 1500,
      vnis: [],
    },
    applier: { apply: async (plan) => plans.push([...plan.peers.values()].map((peer) => peer.name).join()) },
    log: a.log,
  });
  await loop.start();
  t.teardown(() => loop.stop());
  for (let round = 1; round <= 2; round++) {
    renameSync(path, `${path}.away`);
    t.ok(await until(() => loop.state.problem !== undefined));
    t.match(loop.state.problem, `registry ${path}: does not exist: put it back, or make it with weft init`);
    await walk(4000);
    renameSync(`${path}.away`, path);
    clock.now += 500;
    t.ok(await until(() => loop.state.problem === undefined));
    await walk(1000);
    t.equal(a.log.count('registry_trouble'), round);
    t.equal(a.log.count('registry_recovered'), round);
  }
  t.same(plans, [B], 'applied once, at the start');
  t.ok(a.gate > clock.now);
});

t.test('made anew: everybody comes back with the subnet of before, and nobody is missed meanwhile', async (t) => {
  const { daemon, path, clock, other, walk } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  const b = await daemon(B, ['10.5.2.0/24']);
  const c = await daemon(C, ['10.5.3.0/24']);
  const all = `${A} ${B} ${C}`;
  t.ok(await until(() => [a, b, c].every((one) => one.peers === all)));
  await c.stop();
  const missed: string[] = [];
  const watched = setInterval(() => {
    for (const one of [a, b]) if (one.peers !== all) missed.push(one.peers);
  }, 1);
  t.teardown(() => clearInterval(watched));
  renameSync(path, `${path}.old`);
  await until(() => a.trouble !== undefined && b.trouble !== undefined);
  await other(); // weft init
  await walk(600);
  t.ok(await until(() => a.trouble === undefined && b.trouble === undefined));
  const { leases } = await contentsOf(path);
  t.same(leases.get(A)?.subnets, ['10.5.1.0/24']);
  t.same(leases.get(B)?.subnets, ['10.5.2.0/24']);
  await walk(4000, a, b);
  t.same(missed, [], 'who did not come lingers');
  await walk(2000, a, b);
  clearInterval(watched);
  t.ok(await until(() => a.peers === `${A} ${B}` && b.peers === `${A} ${B}`), 'but not for ever');
  t.equal(a.moved + b.moved, 0);
  t.ok(a.gate > clock.now && b.gate > clock.now);
});

t.test('replaced by another registry in which our subnet is another’s, and put back', async (t) => {
  const { daemon, path, clock, other, walk } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  const b = await daemon(B, ['10.5.2.0/24']);
  t.ok(await until(() => a.peers === `${A} ${B}`));
  await b.stop();
  renameSync(path, `${path}.first`);
  await until(() => a.trouble !== undefined);
  const { acquire } = await other();
  await acquire(D, '10.5.1.0/24');
  await acquire(C, '10.5.2.0/24');
  await walk(600);
  t.ok(await until(() => a.moved > 0), 'it has to start again');
  t.ok(a.gate <= clock.now);
  t.ok(await until(() => a.records.has(D)));
  t.notOk(a.records.has(B), 'a record whose subnet is another’s does not linger');
  const moves = a.moved;
  renameSync(path, `${path}.second`);
  renameSync(`${path}.first`, path);
  clock.now += 600;
  t.ok(await until(() => a.gate > clock.now), 'the first one has our lease');
  t.ok(await until(() => a.records.get(B)?.subnets[0] === '10.5.2.0/24' && !a.records.has(C)));
  await walk(1000, a);
  t.equal(a.moved, moves);
  t.same((await contentsOf(path)).leases.get(A)?.subnets, ['10.5.1.0/24']);
});

t.test('a copy of the registry put back: what it knows, and not a mixture of two histories', async (t) => {
  const { daemon, path, clock, walk, other } = setUp(t);
  const b = await daemon(B);
  const a = await daemon(A);
  await b.stop();
  await a.stop();
  cpSync(path, `${path}.copy`, { recursive: true });
  const again = await daemon(A);
  const first = await other();
  for (const host of ['192.168.77.10', '192.168.77.11', '192.168.77.12']) await first.acquire(host);
  t.ok(await until(() => again.peers === `${A} 192.168.77.10 192.168.77.11 192.168.77.12 ${B}`));
  renameSync(path, `${path}.old`);
  t.ok(await until(() => again.trouble !== undefined));
  renameSync(`${path}.copy`, path);
  const second = await other();
  for (const host of [20, 21, 22, 23]) await second.acquire(`192.168.77.${host}`);
  clock.now += 500;
  t.ok(await until(() => again.records.has('192.168.77.20') && again.records.has('192.168.77.22')));
  await walk(6000, again);
  t.notOk(
    ['10', '11', '12'].some((host) => again.records.has(`192.168.77.${host}`)),
    'they are in the other one',
  );
});

const root = process.getuid?.() === 0;
t.test('a full disk under the locks is trouble that passes', { skip: !root && 'needs root' }, async (t) => {
  const mount = folder(t);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'weft-unit', mount]);
  const unmount = (): void => {
    execFileSync('umount', ['-l', mount]);
  };
  process.once('exit', unmount);
  try {
    const path = join(mount, 'registry');
    const clock = new TestClock();
    const store = await EmbeddedStore.open(path, clock, true, 1000);
    await store.configure(wishFor('10.5.0.0/16'), true);
    const fill = openSync(join(mount, 'filler'), 'w');
    try {
      for (;;) writeSync(fill, Buffer.alloc(4096));
    } catch (error) {
      t.match(error, { code: 'ENOSPC' });
    }
    closeSync(fill);
    const a = new Daemon(path, clock, A, wishFor('10.5.0.0/16'));
    for (let i = 0; i < 2; i++) {
      const full = a.join([], false);
      await t.rejects(full, RegistryAway);
      await t.rejects(full, { message: /no space left/ }, 'and our own lock is in nobody’s way');
    }
    rmSync(join(mount, 'filler'));
    t.match(await a.join([], false), { how: 'new' });
    await a.stop();
    await store.close();
  } finally {
    process.off('exit', unmount);
    unmount();
  }
});

t.test('a lease of ours that someone removes is acquired again at once', async (t) => {
  const { daemon, path, clock } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  const b = await daemon(B);
  const { leases, revision } = await contentsOf(path);
  await meddle(
    path,
    [['lease', A], undefined],
    [['subnet', '10.5.1.0/24'], undefined],
    [['deadline', Number(leases.get(A)?.expires), A], undefined],
    [['log', revision + 1], A],
    [['meta', 'revision'], revision + 1],
  );
  clock.now += 1; // the lease has nearly all of its time before it
  t.ok(await until(() => a.gate === clock.now + TTL));
  t.same((await contentsOf(path)).leases.get(A)?.subnets, ['10.5.1.0/24']);
  t.ok(await until(() => b.records.has(A)));
  t.equal(a.moved, 0);
  t.notOk(a.trouble);
});

t.test('a lease of a family that we have no underlay for is skipped, and said once', async (t) => {
  const { daemon, other } = setUp(t);
  const { acquire } = await other();
  await acquire('fd00:77::9', '10.5.9.0/24');
  const a = await daemon(A);
  t.equal(a.peers, A);
  await acquire('fd00:77::9,192.168.77.9');
  t.ok(await until(() => a.peers === `${A} fd00:77::9`), 'by the address that we can reach');
  t.equal(a.records.get('fd00:77::9')?.address, '192.168.77.9');
  await acquire('fd00:77::9');
  t.ok(await until(() => a.peers === A), 'and not without it');
  await daemon(B);
  t.ok(await until(() => a.peers === `${A} ${B}`));
  t.match(a.log.lines, [
    {
      event: 'lease_skipped',
      fields: { host: 'fd00:77::9', reason: 'none of fd00:77::9 is of a family that our underlay has' },
    },
  ]);
  t.equal(a.log.lines.length, 1);
});

t.test('a registry that takes no writes is read on', async (t) => {
  const { daemon, path, clock } = setUp(t);
  const a = await daemon(A, ['10.5.1.0/24']);
  const lock = new FileLock(join(path, 'writer'));
  t.teardown(() => lock.close());
  t.ok(await until(() => lock.tryLock('exclusive')));
  clock.now += TTL / 2;
  t.ok(await until(() => a.trouble !== undefined));
  t.equal(a.trouble, 'another process holds its write lock, and does not let go');
  const { revision } = await contentsOf(path);
  await meddle(
    path,
    [['lease', B], { addresses: [B], subnets: ['10.5.2.0/24'], ttl: 1e9, expires: 2e9 }],
    [['subnet', '10.5.2.0/24'], B],
    [['deadline', 2e9, B], null],
    [['log', revision + 1], B],
    [['meta', 'revision'], revision + 1],
  );
  t.ok(await until(() => a.records.has(B)));
  t.match(a.updates.at(-1), { kind: 'events', trouble: { reason: /write lock/ } });
  t.ok(a.gate > clock.now);
  lock.unlock();
  clock.now += 600;
  t.ok(await until(() => a.trouble === undefined));
  t.match(a.updates.at(-1), { kind: 'events', events: [] });
  t.ok(await until(() => a.gate === clock.now + TTL));
  t.equal(a.updates.length, 4, 'snapshot, trouble, the change, the end of it');
});

t.test('a registry that cannot even be looked at is trouble like any other', async (t) => {
  const { daemon, path, clock, walk } = setUp(t);
  const a = await daemon(A);
  renameSync(path, `${path}.away`);
  symlinkSync(path, path); // stat(2): ELOOP, as it may say EIO or EACCES
  t.ok(await until(() => a.trouble !== undefined, 1000), 'told');
  t.equal(await a.failure(), undefined, 'it does not end the watch for a failure that may pass');
  await walk(2 * TTL);
  t.ok(a.gate > clock.now, 'forwarding goes on');
  unlinkSync(path);
  renameSync(`${path}.away`, path);
  await walk(1000);
  t.ok(await until(() => a.updates.length > 1 && a.trouble === undefined, 1000), 'and its end');
});

t.test('a registry that comes back with a configuration that we were told not to take', async (t) => {
  const { daemon, path, clock, walk } = setUp(t);
  const a = await daemon(A);
  renameSync(path, `${path}.away`);
  t.ok(await until(() => a.trouble !== undefined));
  const store = await EmbeddedStore.open(path, clock, true, 1000);
  await store.configure(wishFor('10.6.0.0/16'), true);
  clock.now += 1000;
  t.ok(await until(() => a.trouble?.startsWith('--network 10.5.0.0/16, but the registry says') === true));
  t.notOk((await contentsOf(path)).leases.has(A), 'is not joined');
  t.ok(a.registry.gateOpen, 'what was so stays so while it is ours');
  await walk(TTL + 1000);
  t.notOk(a.registry.gateOpen, 'and no longer: others may be given our subnet');
  t.equal(a.moved, 0);
  await store.close();
  renameSync(path, `${path}.wrong`);
  renameSync(`${path}.away`, path);
  clock.now += 1000;
  t.ok(await until(() => a.trouble === undefined && a.registry.gateOpen));
  t.same(a.log.events, ['forwarding_stopped', 'forwarding_resumed']);
});

t.test('a registry that comes back with another configuration, in which our subnet still fits', async (t) => {
  const { daemon, path, clock, made } = setUp(t);
  const b = await daemon(B);
  const a = made(A, wishFor(''));
  await a.join(['10.5.1.0/24'], false);
  a.watch();
  await b.stop();
  renameSync(path, `${path}.away`);
  t.ok(await until(() => a.trouble !== undefined));
  const store = await EmbeddedStore.open(path, clock, true, 1000);
  t.teardown(() => store.close());
  await store.configure({ ...wishFor('10.5.0.0/16'), port: 9000 }, true);
  clock.now += 1000;
  t.ok(await until(() => a.moved > 0), 'start again: the port is another');
  t.notOk(a.registry.gateOpen);
});

t.test('started without the registry: what is remembered is in force until it is there', async (t) => {
  const { made, path, clock, walk, other } = setUp(t);
  const record = makeRecord({ id: B, name: B, address: B, port: 8285, subnets: ['10.5.2.0/24'], ecn: true });
  const a = made(A);
  t.equal(
    a.registry.assume(
      { config: configFor('10.5.0.0/16'), subnets: [parseCidr('10.5.1.0/24')], records: [record] },
      new RegistryAway(`registry ${path}: away`),
    ),
    'away',
    'the name is not said twice',
  );
  t.equal(a.gate, clock.now + TTL, 'open');
  t.equal(a.registry.leaseSecondsLeft, 0);
  a.watch();
  await walk(3 * TTL);
  t.ok(a.gate > clock.now);
  t.ok(a.updates.every((update) => update.kind === 'trouble'));
  t.match(a.trouble, /^does not exist/, 'it never makes one');
  await other();
  await walk(600);
  t.ok(await until(() => a.updates.some((update) => update.kind === 'snapshot')));
  t.same((await contentsOf(path)).leases.get(A)?.subnets, ['10.5.1.0/24'], 'its own subnet again');
  t.ok(a.records.has(B), 'who was remembered lingers');
  await walk(6000, a);
  t.ok(await until(() => a.peers === A));
  t.equal(a.moved, 0);
});

t.test('started without the registry, and overslept: nothing is forwarded any more', async (t) => {
  const { made, clock, other, walk } = setUp(t);
  const a = made(A);
  const known = { config: configFor('10.5.0.0/16'), subnets: [parseCidr('10.5.1.0/24')], records: [] };
  a.registry.assume(known, new RegistryAway('away'));
  a.watch();
  await pause(MANY_LOOKS);
  const shut = a.gate;
  clock.now += TTL + 1;
  await pause(MANY_LOOKS);
  t.equal(a.gate, shut);
  await other();
  await walk(600);
  t.ok(await until(() => a.gate > clock.now), 'until there is a lease');
});

t.test('the watch ends soon after its signal, and the lease stays', async (t) => {
  const { daemon, path } = setUp(t);
  const a = await daemon(A);
  const begun = performance.now();
  await a.stop();
  t.ok(performance.now() - begun < 1000);
  t.ok((await contentsOf(path)).leases.has(A));
});

t.test('nor after a trouble in which the registry stayed open', async (t) => {
  const { daemon, walk, path, clock } = setUp(t);
  const a = await daemon(A);
  const b = await daemon(B);
  await walk(6000, a, b);
  await b.stop();
  clock.now += 1400;
  t.ok(await until(() => a.gate === clock.now + TTL));
  const lock = new FileLock(join(path, 'writer'));
  t.teardown(() => lock.close());
  t.ok(await until(() => lock.tryLock('exclusive')));
  clock.now += 1700; // the end of b's lease, and not of a's
  t.ok(await until(() => a.trouble !== undefined));
  lock.unlock();
  clock.now += 500;
  t.ok(await until(() => a.trouble === undefined));
  await walk(4000, a);
  t.equal(a.peers, `${A} ${B}`);
  await walk(1500, a);
  t.ok(await until(() => a.peers === A));
});

t.test('the gate: another registry in which all subnets are taken shuts it at once', async (t) => {
  const { daemon, clock, path, other } = setUp(t, '10.5.0.0/26', [28]);
  const a = await daemon(A);
  renameSync(path, `${path}.away`);
  t.ok(await until(() => a.trouble !== undefined));
  const { acquire } = await other();
  for (const host of [B, C, D]) await acquire(host);
  clock.now += 500;
  t.ok(await until(() => a.trouble?.startsWith('subnets exhausted') === true));
  t.notOk(a.registry.gateOpen, 'with much of the lease before us');
});
