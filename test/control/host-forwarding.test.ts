/**
 * Where the kernel routes to the peers (flannel's vxlan and host-gw): from records through plan, reconcile and apply to the
 * real tables and to a model of the kernel's. Whatever changes, after each single step every route that the kernel has leads
 * somewhere: its neighbour is there, the neighbour's MAC is in our tables, and behind it is a peer.
 */
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { Applier } from '../../src/control/apply.js';
import { parseCidr } from '../../src/control/cidr.js';
import { DirectPeers } from '../../src/control/direct-peers.js';
import { HostForwarding } from '../../src/control/host-forwarding.js';
import { parseMac } from '../../src/control/mac.js';
import { EMPTY_PLAN, type HostRouting, type Plan, planFor, type Self } from '../../src/control/plan.js';
import { reconcile } from '../../src/control/reconcile.js';
import { makeRecord, type PeerRecord, type Records } from '../../src/control/records.js';
import { lookupStaticMac, macHigh, macLow } from '../../src/dataplane/macs.js';
import { PEER_GENERATION } from '../../src/dataplane/peers.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import type { KernelChange, KernelNeighbour, KernelRoute, KernelState, Path } from '../../src/host/routes.js';
import { EngineMemory, PEER_BYTES } from '../../src/io/memory.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const NETWORKS = ['10.5.0.0/16', 'fd05::/48'].map(parseCidr);
const DEVICES = ['flannel.1', 'flannel-v6.1'];
const UNDERLAY = 'eth0';

/** A node of the cluster, by small numbers so that they meet. */
interface Node {
  readonly host: number;
  readonly subnet: number;
  readonly mac: number;
  /** Prefix length of its IPv4 subnet. */
  readonly length: 24 | 25;
  readonly families: readonly (4 | 6)[];
}

const nodes = fc.uniqueArray(
  fc.record({
    host: fc.nat(7),
    subnet: fc.nat(7),
    mac: fc.nat(9),
    length: fc.constantFrom(24 as const, 25 as const),
    families: fc.constantFrom<(4 | 6)[]>([4], [6], [4, 6], [4, 6]),
  }),
  { maxLength: 7, comparator: (a, b) => a.host === b.host || a.subnet === b.subnet || a.mac === b.mac },
);

const addressOf = (family: 4 | 6, host: number): string =>
  family === 4 ? `192.168.77.${host + 2}` : `fd99::${host + 2}`;
const baseOf = (family: 4 | 6, subnet: number): string =>
  family === 4 ? `10.5.${subnet + 2}.0` : `fd05:0:0:${subnet + 2}::`;
const prefixOf = (family: 4 | 6, { subnet, length }: Node): string =>
  `${baseOf(family, subnet)}/${family === 4 ? length : 64}`;
/** Each family's device has a MAC of its own. */
const macOf = (family: 4 | 6, { mac }: Node): string => `02:00:00:00:0${family}:0${mac}`;

/** As etcd's leases become records: one for each family, with MACs where there are devices. */
const recordsOf = (list: readonly Node[], { hostRouting }: Self): Records =>
  new Map(
    list.flatMap((node) =>
      node.families.map((family): [string, PeerRecord] => {
        const id = prefixOf(family, node).replace('/', '-');
        const address = addressOf(family, node.host);
        const subnets = [prefixOf(family, node)];
        const macs = hostRouting?.kind === 'vxlan' ? [{ mac: macOf(family, node) }] : [];
        return [id, makeRecord({ id, name: id, address, port: 8472, ecn: true, subnets, macs })];
      }),
    ),
  );

/** Links to peers who need no encapsulation: those with an even number are on another one than the rest. */
const linkTo = (host: number): string => (host % 2 === 0 ? 'eth1' : UNDERLAY);
const vxlan = (direct: readonly number[] = []): Self => {
  const devices = direct.flatMap((host) =>
    ([4, 6] as const).map((f): [string, string] => [addressOf(f, host), linkTo(host)]),
  );
  return selfOf({ kind: 'vxlan', devices: DEVICES, direct: new Map(devices) });
};
const hostGateway = (): Self => selfOf({ kind: 'host-gw', interface: UNDERLAY });
const selfOf = (hostRouting: HostRouting): Self => ({
  addresses: [
    { family: 4, text: '192.168.77.1' },
    { family: 6, text: 'fd99::1' },
  ],
  networks: NETWORKS,
  subnets: ['10.5.1.0/24', 'fd05:0:0:1::/64'].map(parseCidr),
  underlayMtu: 1500,
  vnis: hostRouting.kind === 'vxlan' ? [1, 1] : [],
  families: [4, 6],
  hostRouting,
});

const planOf = (list: readonly Node[], self: Self): Plan => planFor(recordsOf(list, self), self);

/** What the kernel should have, by what flannel does; made from nodes, not from a plan. */
function wanted(list: readonly Node[], self: Self): string[] {
  const lines: string[] = [];
  for (const node of list) {
    for (const family of node.families) {
      const device = DEVICES[family === 4 ? 0 : 1];
      const base = baseOf(family, node.subnet);
      const address = addressOf(family, node.host);
      const overlay = self.hostRouting?.kind === 'vxlan';
      const direct = self.hostRouting?.kind === 'vxlan' && self.hostRouting.direct.has(address);
      if (overlay) lines.push(`neighbour ${base} ${macOf(family, node)} ${device}`);
      lines.push(
        overlay && !direct
          ? `route ${prefixOf(family, node)} ${base} ${device} onlink`
          : `route ${prefixOf(family, node)} ${address} ${overlay ? linkTo(node.host) : UNDERLAY}`,
      );
    }
  }
  return lines.sort();
}

const lineOf = (one: KernelRoute | KernelNeighbour): string =>
  'prefix' in one
    ? `route ${one.prefix} ${one.via} ${one.device}${one.onlink ? ' onlink' : ''}`
    : `neighbour ${one.address} ${one.mac} ${one.device}`;

/** The kernel's tables, and somebody who looks at them after each change. Changes take their time, as those of `ip` do. */
class ModelKernel {
  readonly routes = new Map<string, KernelRoute>();
  readonly neighbours = new Map<string, KernelNeighbour>();
  /** Routes via these it refuses. */
  readonly refused = new Set<string>();
  /** What was done, in order. */
  readonly made: string[] = [];
  afterEach: () => void = () => {};
  #busy = false;

  async read(): Promise<KernelState> {
    const state = { routes: [...this.routes.values()], neighbours: [...this.neighbours.values()] };
    await setImmediate();
    return state;
  }

  async change(changes: readonly KernelChange[]): Promise<ReadonlyMap<number, string>> {
    if (this.#busy) throw new Error('two at once');
    this.#busy = true;
    try {
      const failures = new Map<number, string>();
      for (const [at, change] of changes.entries()) {
        if (at % 3 === 0) await setImmediate();
        const reason = this.#make(change);
        if (reason !== undefined) failures.set(at, reason);
        this.afterEach();
      }
      return failures;
    } finally {
      this.#busy = false;
    }
  }

  #make(change: KernelChange): string | undefined {
    if (change.kind === 'set-route' || change.kind === 'remove-route') {
      const { route } = change;
      if (change.kind === 'remove-route') {
        if (lineOf(this.routes.get(route.prefix) ?? route) === lineOf(route)) this.routes.delete(route.prefix);
      } else if (this.refused.has(route.via)) return 'Nexthop has invalid gateway';
      else this.routes.set(route.prefix, route);
      this.made.push(`${change.kind} ${route.prefix}`);
    } else {
      const { neighbour } = change as Extract<KernelChange, { readonly neighbour: unknown }>;
      const key = `${neighbour.device} ${neighbour.address}`;
      if (change.kind === 'remove-neighbour') this.neighbours.delete(key);
      else this.neighbours.set(key, neighbour);
      this.made.push(`${change.kind} ${neighbour.address}`);
    }
    return undefined;
  }

  lines(): string[] {
    return [...this.routes.values(), ...this.neighbours.values()].map(lineOf).sort();
  }
}

class WatchedTables extends Tables {
  afterEach: () => void = () => {};

  override async commit(): Promise<void> {
    await super.commit();
    this.afterEach();
  }
}

interface Rig {
  readonly memory: EngineMemory;
  readonly tables: WatchedTables;
  readonly kernel: ModelKernel;
  readonly host: HostForwarding;
  readonly applier: Applier;
  /** Warnings and errors. */
  readonly said: string[];
  /** The peer behind a MAC, as a worker finds it; 0: nobody. */
  behind(mac: string, network: number): number;
}

/** Those that were started: a timer of theirs would keep this process. */
const started = new Set<HostForwarding>();
t.teardown(async () => {
  for (const host of started) await host.stop();
});

async function setUpStarted(peers?: number, statics?: number): Promise<Rig> {
  const rig = setUp(peers, statics);
  started.add(rig.host);
  await rig.host.start();
  return rig;
}

function setUp(peers = 32, statics = 64): Rig {
  const options = { workers: 1, routeNodes: 256, networks: 2, macs: 16, neighbours: 16 };
  const memory = EngineMemory.create({ ...options, peers, statics });
  const tables = new WatchedTables(memory, () => {});
  const kernel = new ModelKernel();
  const said: string[] = [];
  const say = (event: string, fields?: unknown): void => void said.push(`${event} ${JSON.stringify(fields)}`);
  const log = { debug: () => {}, info: () => {}, warn: say, error: say };
  const host = new HostForwarding({
    networks: NETWORKS,
    devices: DEVICES,
    log,
    kernel: { read: () => kernel.read(), change: (changes) => kernel.change(changes) },
  });
  const shared = new SharedWords(memory);
  const rig: Rig = {
    memory,
    tables,
    kernel,
    host,
    applier: new Applier(tables, host),
    said,
    behind(mac, network) {
      const { bytes } = parseMac(mac);
      const table = memory.layout.tables[shared.activeVersion()].staticMacs >> 2;
      const mask = memory.layout.staticSlots - 1;
      const ref = lookupStaticMac(memory.i32, table, mask, macLow(bytes), macHigh(bytes), network);
      if (ref <= 0) return 0;
      const peer = (memory.layout.peers + (ref & 0xffff) * PEER_BYTES) >> 2;
      return memory.i32[peer + PEER_GENERATION] === ref >>> 16 ? ref : 0;
    },
  };
  const check = (): void => checkNoHole(rig);
  kernel.afterEach = check;
  tables.afterEach = check;
  return rig;
}

/** Throws if the kernel has a route into one of our devices that ends there. */
function checkNoHole({ kernel, behind }: Rig): void {
  for (const { prefix, via, device } of kernel.routes.values()) {
    const network = DEVICES.indexOf(device);
    if (network < 0) continue; // to another host itself
    const neighbour = kernel.neighbours.get(`${device} ${via}`);
    if (!neighbour) throw new Error(`${prefix} via ${via}: no neighbour`);
    if (behind(neighbour.mac, network) === 0) throw new Error(`${prefix}: nobody is behind ${neighbour.mac}`);
  }
}

const equal = (found: readonly string[], want: readonly string[]): void => {
  if (found.join('\n') !== want.join('\n')) throw new Error(`found\n${found.join('\n')}\nwanted\n${want.join('\n')}`);
};

const ways = fc.oneof(
  fc.subarray([0, 1, 2, 3, 4, 5, 6, 7]).map((direct) => ({ kind: 'vxlan' as const, direct })),
  fc.constant({ kind: 'host-gw' as const, direct: [] as number[] }),
);
type Way = { readonly kind: 'vxlan' | 'host-gw'; readonly direct: readonly number[] };
const selfFor = ({ kind, direct }: Way): Self => (kind === 'host-gw' ? hostGateway() : vxlan(direct));

t.test('from any cluster to any other: no hole on the way, nothing else at the end', async () => {
  await fc.assert(
    fc.asyncProperty(ways, fc.array(nodes, { minLength: 1, maxLength: 6 }), async (way, clusters) => {
      const self = selfFor(way);
      const rig = await setUpStarted();
      for (const list of [...clusters, []]) {
        const before = new Set(rig.kernel.routes.keys());
        const stays = wanted(list, self).flatMap((line) => {
          const [kind, prefix] = line.split(' ');
          return kind === 'route' && before.has(prefix) ? [prefix] : [];
        });
        rig.kernel.afterEach = () => {
          checkNoHole(rig);
          for (const prefix of stays) if (!rig.kernel.routes.has(prefix)) throw new Error(`a hole at ${prefix}`);
        };
        await rig.applier.apply(planOf(list, self));
        equal(rig.kernel.lines(), wanted(list, self));
        rig.kernel.made.length = 0;
        if ((await rig.applier.apply(planOf(list, self))) !== 0) throw new Error('again, and not nothing');
        if (rig.kernel.made.length > 0) throw new Error(`again: ${rig.kernel.made}`);
      }
      equal([String(rig.tables.peerCount), String(rig.tables.macCount)], ['0', '0']);
      equal(rig.said, []);
      await rig.host.stop();
    }),
    { numRuns: 150 },
  );
});

t.test('peers that come and go by the way: what stays is not touched', async () => {
  await fc.assert(
    fc.property(ways, nodes, nodes, (way, before, after) => {
      const self = selfFor(way);
      const actions = reconcile(planOf(before, self), planOf(after, self));
      const had = new Set(wanted(before, self));
      const stays = new Set(wanted(after, self).filter((line) => had.has(line)));
      for (const action of actions) {
        if (action.kind !== 'change-kernel') continue;
        const one = 'route' in action.change ? action.change.route : action.change.neighbour;
        if (stays.has(lineOf(one))) throw new Error(`${action.change.kind}: ${lineOf(one)}`);
      }
    }),
    { numRuns: 500 },
  );
});

const node = (host: number, change: Partial<Node> = {}): Node => ({
  host,
  subnet: host,
  mac: host,
  length: 24,
  families: [4],
  ...change,
});

t.test('a node comes: peer, MAC, neighbour, route; it goes: the reverse', async (t) => {
  const have = EMPTY_PLAN;
  const want = planOf([node(0)], vxlan());
  const steps = (from: Plan, to: Plan): string[] =>
    reconcile(from, to).map((action) =>
      action.kind === 'change-kernel' ? `kernel ${action.change.kind}` : action.kind,
    );
  t.same(steps(have, want), ['add-peer', 'set-mac', 'kernel set-neighbour', 'kernel set-route']);
  t.same(steps(want, have), ['kernel remove-route', 'kernel remove-neighbour', 'remove-mac', 'remove-peer']);

  const restarted = planOf([node(0, { mac: 9 })], vxlan());
  t.same(steps(want, restarted), ['set-mac', 'kernel set-neighbour', 'remove-mac'], 'another MAC, the route stays');
  const moved = planOf([node(5, { subnet: 0, mac: 0 })], vxlan());
  t.same(steps(want, moved), ['add-peer', 'set-mac', 'remove-peer'], 'another address is nothing to the kernel');
  const near = planOf([node(0)], vxlan([0]));
  t.same(steps(want, near), ['kernel set-route'], 'no encapsulation any more: the same route, replaced');
  const gateway = planOf([node(0)], hostGateway());
  t.same(steps(gateway, planOf([node(3, { subnet: 0 })], hostGateway())), [
    'add-peer',
    'set-route',
    'kernel set-route',
    'remove-peer',
  ]);
});

t.test(
  'what goes from the tables has gone from the kernel before, and what comes has come to the tables',
  async (t) => {
    const rig = await setUpStarted();
    const self = vxlan();
    const events: string[] = [];
    rig.tables.afterEach = () => events.push(`tables: ${rig.tables.macCount} MACs`);
    rig.kernel.afterEach = () => events.push(`kernel: ${rig.kernel.made.at(-1)}`);
    await rig.applier.apply(planOf([node(0), node(1)], self));
    t.same(events.splice(0), [
      'tables: 2 MACs',
      'kernel: set-neighbour 10.5.2.0',
      'kernel: set-neighbour 10.5.3.0',
      'kernel: set-route 10.5.2.0/24',
      'kernel: set-route 10.5.3.0/24',
      'tables: 2 MACs',
    ]);
    await rig.applier.apply(planOf([node(1)], self));
    t.same(events.splice(0), [
      'tables: 2 MACs',
      'kernel: remove-route 10.5.2.0/24',
      'kernel: remove-neighbour 10.5.2.0',
      'tables: 1 MACs',
    ]);
    await rig.host.stop();
  },
);

t.test('more than one commit holds: the order is the same', async (t) => {
  const rig = await setUpStarted(8192, 8192);
  const self = vxlan();
  rig.kernel.afterEach = () => {};
  const many: Records = new Map(
    Array.from({ length: 3000 }, (_, i): [string, PeerRecord] => {
      const id = `p${i}`;
      const [high, low] = [i >> 8, i & 255].map((byte) => byte.toString(16).padStart(2, '0'));
      const address = `192.168.${80 + (i >> 8)}.${i & 255}`;
      const macs = [{ mac: `02:00:00:00:${high}:${low}` }];
      return [
        id,
        makeRecord({
          id,
          name: id,
          address,
          port: 8472,
          ecn: true,
          subnets: [`10.5.${16 + (i >> 4)}.${(i & 15) << 4}/28`],
          macs,
        }),
      ];
    }),
  );
  let commits = 0;
  rig.tables.afterEach = () => {
    commits++;
    checkNoHole(rig);
  };
  await rig.applier.apply(planFor(many, self));
  t.equal(rig.kernel.lines().length, 6000);
  await rig.applier.apply(EMPTY_PLAN);
  t.same(rig.kernel.lines(), []);
  t.ok(commits >= 6, `${commits} commits`);
  t.same(rig.said, []);
  await rig.host.stop();
});

t.test('a plan that does not fit leaves tables and kernel as they were', async (t) => {
  let refused = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(nodes, { minLength: 2, maxLength: 8 }), fc.boolean(), async (clusters, few) => {
      // Too few peers, or too few static MACs, for some of them.
      const rig = await (few ? setUpStarted(8, 64) : setUpStarted(32, 6));
      const self = vxlan();
      let inForce: readonly Node[] = [];
      for (const list of clusters) {
        rig.kernel.made.length = 0;
        const plan = planOf(list, self);
        try {
          await rig.applier.apply(plan);
          inForce = list;
        } catch (error) {
          if (!(error instanceof RangeError)) throw error;
          refused++;
          if (rig.kernel.made.length > 0) throw new Error(`refused, and yet: ${rig.kernel.made}`);
        }
        equal(rig.kernel.lines(), wanted(inForce, self));
        const macs = inForce.flatMap((one) => one.families.map((family) => [macOf(family, one), family] as const));
        for (const [mac, family] of macs) if (!rig.behind(mac, family === 4 ? 0 : 1)) throw new Error(`${mac} is lost`);
        if (rig.tables.macCount !== macs.length || rig.tables.peerCount !== macs.length) {
          throw new Error(`${rig.tables.peerCount} peers, ${rig.tables.macCount} MACs; ${macs.length} of each wanted`);
        }
      }
      if (!rig.memory.intactGuards()) throw new Error('guards');
      await rig.host.stop();
    }),
    { numRuns: 150 },
  );
  t.ok(refused > 20, `${refused} plans were refused`);
});

t.test('records with a flaw are refused whole', async (t) => {
  const self = vxlan();
  const [one] = recordsOf([node(0)], self).values();
  const plans: readonly (readonly [RegExp, PeerRecord[]])[] = [
    [/the MAC of its VXLAN device is missing/, [makeRecord({ ...one, macs: [] })]],
    [/is not in --network/, [makeRecord({ ...one, subnets: ['10.6.0.0/24'] })]],
    [/overlaps --subnet/, [makeRecord({ ...one, subnets: ['10.5.1.0/25'] })]],
    [/have one address/, [one, makeRecord({ ...one, id: 'x', name: 'x', subnets: ['10.5.9.0/24'] })]],
    [/two owners/, [one, makeRecord({ ...one, id: 'x', name: 'x', address: addressOf(4, 5) })]],
    [
      /is behind two hosts/,
      [one, makeRecord({ ...one, id: 'x', name: 'x', address: addressOf(4, 5), subnets: ['10.5.9.0/24'] })],
    ],
  ];
  for (const [pattern, list] of plans) {
    t.throws(() => planFor(new Map(list.map((record) => [record.id, record])), self), pattern);
  }
});

// --- What others do to the kernel's tables ---

type Meddling =
  | { readonly kind: 'lose'; readonly which: number }
  | { readonly kind: 'spoil'; readonly which: number }
  | { readonly kind: 'stale-route' | 'stale-neighbour' | 'foreign-route'; readonly which: number };

const meddlings: fc.Arbitrary<Meddling> = fc.record({
  kind: fc.constantFrom('lose', 'lose', 'spoil', 'stale-route', 'stale-neighbour', 'foreign-route'),
  which: fc.nat(20),
});

/** Does it behind everybody's back. */
function meddle({ routes, neighbours }: ModelKernel, { kind, which }: Meddling): void {
  if (kind === 'lose' || kind === 'spoil') {
    const all = [...routes.keys(), ...neighbours.keys()];
    if (all.length === 0) return;
    const key = all[which % all.length];
    const [route, neighbour] = [routes.get(key), neighbours.get(key)];
    if (kind === 'lose') {
      routes.delete(key);
      neighbours.delete(key);
    } else if (route && which % 2 === 0) routes.set(key, { ...route, onlink: !route.onlink });
    else if (route) routes.set(key, { ...route, via: '192.168.77.250' });
    else if (neighbour) neighbours.set(key, { ...neighbour, mac: '02:99:00:00:00:01' });
  } else if (kind === 'stale-neighbour') {
    const device = DEVICES[which % 2];
    const address = `10.5.${100 + which}.0`;
    neighbours.set(`${device} ${address}`, { device, address, mac: '02:99:00:00:00:02' });
  } else {
    const prefix =
      kind === 'stale-route' ? `10.5.${100 + which}.0/24` : which === 0 ? 'default/32' : `10.9.${which}.0/24`;
    routes.set(prefix, { prefix, via: '192.168.77.250', device: UNDERLAY, onlink: false });
  }
}

t.test('whatever others do, the next look mends it; what is not ours is left alone', async () => {
  await fc.assert(
    fc.asyncProperty(ways, nodes, nodes, fc.array(meddlings, { maxLength: 12 }), async (way, before, after, done) => {
      const self = selfFor(way);
      const rig = await setUpStarted();
      rig.kernel.afterEach = () => {};
      rig.tables.afterEach = () => {};
      const foreign = (): string[] => rig.kernel.lines().filter((line) => / (10\.9\.|default)/.test(line));
      const ours = (): string[] => rig.kernel.lines().filter((line) => !foreign().includes(line));
      await rig.applier.apply(planOf(before, self));
      for (const one of done) meddle(rig.kernel, one);
      const others = foreign();
      await rig.host.look();
      equal(ours(), wanted(before, self));
      equal(foreign(), others);
      // And in the middle of a change.
      for (const one of done) meddle(rig.kernel, one);
      const othersNow = foreign();
      await Promise.all([
        rig.host.look(),
        rig.applier.apply(planOf(after, self)),
        rig.host.look(),
        setImmediate().then(() => rig.host.look()),
      ]);
      await rig.host.look();
      equal(ours(), wanted(after, self));
      equal(foreign(), othersNow);
      await rig.host.stop();
    }),
    { numRuns: 150 },
  );
});

t.test('looks in the middle of changes find nothing to complain of', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(nodes, { minLength: 1, maxLength: 6 }), fc.array(fc.nat(5)), async (clusters, pauses) => {
      const self = vxlan();
      const rig = await setUpStarted();
      let over = false;
      const looker = (async () => {
        for (let i = 0; !over; i++) {
          for (let n = pauses.length > 0 ? pauses[i % pauses.length] : 0; n >= 0; n--) await setImmediate();
          await rig.host.look();
        }
      })();
      try {
        for (const list of clusters) await rig.applier.apply(planOf(list, self));
      } finally {
        over = true;
        await looker;
      }
      equal(rig.kernel.lines(), wanted(clusters[clusters.length - 1], self));
      equal(rig.said, []);
      await rig.host.stop();
    }),
    { numRuns: 150 },
  );
});

t.test('before there are devices it is only noted; then it is put in, and what an earlier run left goes', async (t) => {
  const rig = setUp();
  const self = vxlan();
  for (const which of [1, 2])
    for (const kind of ['stale-route', 'stale-neighbour'] as const) meddle(rig.kernel, { kind, which });
  rig.tables.afterEach = () => {};
  rig.kernel.afterEach = () => {};
  await rig.applier.apply(planOf([node(0), node(1)], self));
  await rig.applier.apply(planOf([node(1), node(2)], self));
  await rig.host.look();
  t.same(rig.kernel.made, []);
  await rig.host.start();
  t.same(rig.kernel.lines(), wanted([node(1), node(2)], self));
  t.same(rig.said, [], 'a start is no repair');
  await rig.host.stop();
  await rig.applier.apply(EMPTY_PLAN);
  t.same(rig.kernel.lines(), wanted([node(1), node(2)], self), 'after the end nothing is touched');
});

t.test('one that the kernel refuses keeps no other from its way, and is said once', async (t) => {
  const rig = await setUpStarted();
  const self = hostGateway();
  rig.kernel.refused.add(addressOf(4, 1));
  const all = [node(0), node(1), node(2)];
  await rig.applier.apply(planOf(all, self));
  t.same(rig.kernel.lines(), wanted([node(0), node(2)], self));
  t.equal(rig.host.refused, 1);
  for (let i = 0; i < 3; i++) await rig.host.look();
  t.equal(rig.said.length, 1);
  t.match(rig.said[0], /^kernel_refuses .*10\.5\.3\.0\/24.*Nexthop has invalid gateway/);
  rig.kernel.refused.clear();
  await rig.host.look();
  t.same(rig.kernel.lines(), wanted(all, self), 'tried again');
  t.equal(rig.host.refused, 0);
  t.equal(rig.said.length, 1, 'not a repair');

  // Refused again, and then not wanted any more.
  rig.kernel.refused.add(addressOf(4, 3));
  await rig.applier.apply(planOf([...all, node(3)], self));
  t.equal(rig.host.refused, 1);
  await rig.applier.apply(planOf(all, self));
  await rig.host.look();
  t.equal(rig.host.refused, 0);
  t.same(rig.kernel.lines(), wanted(all, self));
  await rig.host.stop();
});

t.test('where the kernel cannot be asked, it is said once, and all is well again when it can', async (t) => {
  const rig = await setUpStarted();
  const self = vxlan();
  const { read, change } = rig.kernel;
  const fail = (): never => {
    throw new Error('the ip command cannot be run');
  };
  rig.kernel.change = fail;
  rig.kernel.read = fail;
  await rig.applier.apply(planOf([node(0)], self));
  for (let i = 0; i < 3; i++) await rig.host.look();
  t.same(rig.kernel.lines(), []);
  t.match(rig.said, [/^kernel_routes_unknown .*cannot be run/]);
  rig.kernel.read = read;
  rig.kernel.change = change;
  await rig.host.look();
  t.same(rig.kernel.lines(), wanted([node(0)], self));
  await rig.host.stop();
});

t.test('who is on a link of ours is asked until the kernel knows a way, and then no more', async (t) => {
  const asked: string[][] = [];
  const said: string[] = [];
  const say = (event: string, fields?: unknown): void => void said.push(`${event} ${JSON.stringify(fields)}`);
  let up = false;
  let broken = true;
  const direct = new DirectPeers(
    async (addresses): Promise<Path[]> => {
      asked.push([...addresses]);
      if (broken) throw new Error('no ip');
      if (!up) return [];
      return addresses.map((address) => ({ address, device: UNDERLAY, onLink: address.startsWith('192.168.77.') }));
    },
    { debug: say, info: say, warn: say, error: say },
  );
  const routing: HostRouting = { kind: 'vxlan', devices: DEVICES, direct: direct.devices };
  const self = { ...vxlan(), hostRouting: routing };
  const near = addressOf(4, 0);
  const records = (...addresses: string[]): Records =>
    new Map(
      addresses.map((address, i): [string, PeerRecord] => {
        const subnets = [`10.5.${i + 2}.0/24`];
        const macs = [{ mac: `02:00:00:00:00:0${i}` }];
        return [address, makeRecord({ id: address, name: address, address, port: 8472, ecn: true, subnets, macs })];
      }),
    );
  const both = records(near, '203.0.113.1');
  const devicesOf = (): string[] => [...planFor(both, self).hostRoutes.values()].map(({ route }) => route.device);
  await direct.learn(both);
  t.match(said, [/^direct_routing_unknown .*no ip/]);
  broken = false;
  await direct.learn(both);
  t.same(devicesOf(), [DEVICES[0], DEVICES[0]], 'nobody knows: with encapsulation');
  up = true;
  await direct.learn(both);
  t.same(devicesOf(), [UNDERLAY, DEVICES[0]]);
  t.same(asked.splice(0), [
    [near, '203.0.113.1'],
    [near, '203.0.113.1'],
    [near, '203.0.113.1'],
  ]);
  await direct.learn(both);
  await direct.learn(records(near));
  t.same(asked.splice(0), []);
  await direct.learn(records(near, '203.0.113.1', '203.0.113.2'));
  t.same(asked.splice(0), [['203.0.113.2']], 'only who is new');
  t.equal(said.length, 1);
});
