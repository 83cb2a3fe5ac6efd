/** Who we are by a lease: the registry, what we remember of it, and which of the two is believed. */
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { parseCidr, parseHostAddress } from '../../src/control/cidr.js';
import { EmbeddedStore } from '../../src/control/embedded-store.js';
import { byLease } from '../../src/control/lease-membership.js';
import type { Membership, MembershipOptions } from '../../src/control/membership.js';
import { type Remembered, State } from '../../src/control/state.js';
import { systemClock } from '../../src/host/clock.js';
import { contentsOf, folder, meddle, pause, TestLog, until, wishFor } from '../lib/embedded.js';

const A = '192.168.77.1';
const B = '192.168.77.2';

interface Stage {
  readonly path: string;
  readonly log: TestLog;
  become(wish?: Partial<MembershipOptions['wish']>, more?: Partial<MembershipOptions>): Promise<Membership>;
  /** Reads the registry until it has told something, and then some. */
  watch(member: Membership): Promise<() => Promise<void>>;
  /** What the state directory has for us. */
  remembered(): Promise<Remembered | undefined>;
}

function setUp(t: Test): Stage {
  const base = folder(t);
  const path = join(base, 'registry');
  const stateDir = join(base, 'state');
  const log = new TestLog();
  return {
    path,
    log,
    become: async (wish = {}, more = {}) => {
      const networks = wish.networks ?? [parseCidr('10.5.0.0/16')];
      const member = await byLease({
        wish: {
          mode: 'l3',
          segments: [],
          registry: 'embedded',
          networks,
          subnets: [],
          peersFile: undefined,
          port: undefined,
          registryPath: path,
          subnetFile: undefined,
          leaseTtl: 60,
          staleLimit: 86_400,
          ...wish,
        },
        stateDir,
        configWish: { ...wishFor(''), networks },
        addresses: [parseHostAddress(A)],
        log,
        gate: () => {},
        moved: () => {},
        ...more,
      });
      let closed = false;
      const { close } = member;
      member.close = async () => {
        if (!closed) await close();
        closed = true;
      };
      t.teardown(() => member.close());
      return member;
    },
    watch: async (member) => {
      const abort = new AbortController();
      let told = 0;
      const read = async (): Promise<void> => {
        for await (const _ of member.registry.watch(abort.signal)) told++;
      };
      const reading = read();
      const stop = async (): Promise<void> => {
        abort.abort();
        await reading;
      };
      t.teardown(stop);
      await until(() => told > 0);
      return stop;
    },
    remembered: async () => {
      const state = State.open(stateDir, systemClock(), log);
      try {
        return state.recall(`${path} ${A}`);
      } finally {
        await state.close();
      }
    },
  };
}

/** Runs once with the registry, and takes that away. */
async function runOnce({ become, watch, path }: Stage): Promise<readonly string[]> {
  const member = await become();
  await (await watch(member))();
  await member.close();
  renameSync(path, `${path}.away`);
  return member.subnets.map((subnet) => subnet.text);
}

t.test('first with the registry, then without it', async (t) => {
  const stage = setUp(t);
  const { become, watch, path, log } = stage;
  const first = await become();
  t.match(first, { lease: 'new', port: 8285, networks: [{ text: '10.5.0.0/16' }] });
  t.ok(Number(first.secondsLeft()) > 55 && first.forwards());
  await (await watch(first))();
  await first.close();
  const again = await become();
  t.match(again, { lease: 'taken over', subnets: first.subnets });
  await again.close();
  renameSync(path, `${path}.away`);
  t.same(log.lines, []);
  const warm = await become();
  t.match(warm, { lease: 'warm', subnets: first.subnets, port: 8285, networks: first.networks });
  t.ok(warm.forwards());
  t.match(log.lines, [{ event: 'warm_start', fields: { reason: /does not exist/ } }]);
  for await (const update of warm.registry.watch(AbortSignal.timeout(5000))) {
    t.match(update, { kind: 'snapshot', records: [{ id: A }], trouble: { reason: /^does not exist/ } });
    t.ok(Date.now() - Number(update.kind === 'snapshot' && update.trouble?.since) < 30_000);
    break;
  }
});

t.test('without a memory there is no start without the registry', async (t) => {
  const { become } = setUp(t);
  await t.rejects(become({ networks: [] }), { code: 'REGISTRY_AWAY', message: /does not exist/ });
});

t.test('who remembers a registry does not make one', async (t) => {
  const stage = setUp(t);
  const subnets = await runOnce(stage);
  await (await EmbeddedStore.open(stage.path, systemClock(), true, 1000)).close(); // as a killed maker leaves it
  for (const networks of [[parseCidr('10.5.0.0/16')], []]) {
    const warm = await stage.become({ networks });
    t.match([warm.lease, ...warm.subnets.map((subnet) => subnet.text)], ['warm', ...subnets]);
    const stop = await stage.watch(warm);
    await pause(300);
    await stop();
    await warm.close();
    t.equal((await contentsOf(stage.path)).leases.size, 0);
    t.ok(Number.isNaN((await contentsOf(stage.path)).revision), 'nobody has configured it');
  }
});

t.test('what is remembered must agree with what is asked for', async (t) => {
  const stage = setUp(t);
  await runOnce(stage);
  await t.rejects(stage.become({ networks: [parseCidr('10.9.0.0/16')] }), {
    code: 'CONFIG_DIFFERS',
    message: `registry ${stage.path}: away, and --network 10.9.0.0/16, but the registry says 10.5.0.0/16`,
  });
  t.match(await stage.become({ networks: [] }), { lease: 'warm' });
});

t.test('what is remembered must not be too old', async (t) => {
  const stage = setUp(t);
  await runOnce(stage);
  await pause(1100);
  await t.rejects(stage.become({ staleLimit: 1 }), {
    code: 'TOO_STALE',
    message: /; what is remembered of it is [234] s old, more than --stale-limit 1 allows$/,
  });
  t.match(await stage.become({ staleLimit: 60 }), { lease: 'warm' });
});

t.test('another’s memory is nobody’s', async (t) => {
  const stage = setUp(t);
  await runOnce(stage);
  const addresses = [parseHostAddress(B)];
  await t.rejects(stage.become({ networks: [] }, { addresses }), { code: 'REGISTRY_AWAY' });
  await t.rejects(stage.become({ networks: [], registryPath: `${stage.path}.other` }), { code: 'REGISTRY_AWAY' });
  t.equal(stage.log.count('state_ignored'), 2);
  t.match(await stage.become({ networks: [] }), { lease: 'warm' });
});

t.test('subnets that are another’s now are forgotten: no start without the registry may use them', async (t) => {
  const stage = setUp(t);
  const { become, watch, path } = stage;
  let stop: (() => Promise<void>) | undefined;
  let stopped: Promise<void> | undefined;
  const member = await become(
    {},
    {
      moved: () => {
        stopped ??= stop?.();
      },
    },
  );
  stop = await watch(member);
  const [subnet] = member.subnets.map(({ text }) => text);
  const { leases, revision } = await contentsOf(path);
  const expires = Number(leases.get(A)?.expires);
  await meddle(
    path,
    [['lease', A], undefined],
    [['address', A], undefined],
    [['deadline', expires, A], undefined],
    [['lease', B], { addresses: [B], subnets: [subnet], ttl: 60_000, expires }],
    [['address', B], B],
    [['subnet', subnet], B],
    [['deadline', expires, B], null],
    [['log', revision + 1], A],
    [['log', revision + 2], B],
    [['meta', 'revision'], revision + 2],
  );
  t.ok(await until(() => stopped !== undefined), 'start again, and that at once');
  t.notOk(member.forwards());
  await stopped;
  await member.close();
  const known = await stage.remembered();
  t.notOk(
    known?.subnets.some(({ text }) => text === subnet),
    `remembered: ${known?.subnets.map(({ text }) => text)}`,
  );
});
