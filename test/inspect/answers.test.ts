/** What the control socket tells of a daemon: everything is read from the real tables and counters, of which each case makes its own. */
import t from 'tap';
import { Applier } from '../../src/control/apply.js';
import { type Cidr, parseAddress, parseCidr } from '../../src/control/cidr.js';
import { Dataplane } from '../../src/control/dataplane.js';
import type { LoopState } from '../../src/control/loop.js';
import type { Membership } from '../../src/control/membership.js';
import { planFor, type Self } from '../../src/control/plan.js';
import { makeRecord, type PeerFields, type PeerRecord } from '../../src/control/records.js';
import { COUNTER_INFOS, IN_IN, OUT_IN, OUT_NO_ROUTE, OUT_SENT } from '../../src/dataplane/counters.js';
import { LearnedMacs, LOCAL } from '../../src/dataplane/macs.js';
import { LearnedNeighbours } from '../../src/dataplane/neighbours.js';
import { slotOf } from '../../src/dataplane/peers.js';
import { countersAnswer } from '../../src/inspect/answers/counters.js';
import { dropsAnswer } from '../../src/inspect/answers/drops.js';
import { leasesAnswer } from '../../src/inspect/answers/leases.js';
import { offloadsAnswer } from '../../src/inspect/answers/offloads.js';
import { peersAnswer } from '../../src/inspect/answers/peers.js';
import { routesAnswer } from '../../src/inspect/answers/routes.js';
import { statusAnswer } from '../../src/inspect/answers/status.js';
import { macsAnswer, neighboursAnswer } from '../../src/inspect/answers/tables.js';
import { targetAnswer } from '../../src/inspect/answers/target.js';
import { Inspected, type OverlayParts, type Running } from '../../src/inspect/inspected.js';
import { MOST_ENTRIES } from '../../src/inspect/protocol.js';
import { PEER_COUNTERS } from '../../src/io/memory.js';
import { ALL_OFFLOADS, OFFLOADS } from '../../src/io/offloads.js';
import { createLog } from '../../src/observe/log.js';

const log = createLog('error', { to: { write: () => {} } });
const WELL: LoopState = {
  synced: true,
  problem: undefined,
  staleSince: 0,
  updates: 3,
  lastEvent: Date.UTC(2026, 0, 2),
  applied: 2,
  failures: 1,
  lastApplied: 0,
};

const L3: OverlayParts = {
  mode: 'l3',
  workers: 1,
  offloads: ALL_OFFLOADS,
  macAge: 300,
  segments: [],
  routing: undefined,
};

interface Case {
  readonly overlay?: Partial<OverlayParts>;
  readonly self?: Partial<Self>;
  readonly peers: readonly (Partial<PeerFields> & { readonly name: string; readonly address: string })[];
  readonly member?: Partial<Membership>;
  readonly running?: Partial<Running>;
}

const cidrs = (...texts: string[]): Cidr[] => texts.map(parseCidr);
const registry = { name: 'test registry', async *watch() {} };

/** A daemon at 192.168.77.1 that forwards, without any thread or device. */
async function daemon(t: { teardown(end: () => unknown): void }, { overlay, self, peers, member, running }: Case) {
  const parts = { ...L3, ...overlay };
  const dataplane = new Dataplane({
    workers: parts.workers,
    log,
    memory: { peers: 16_384, networks: Math.max(1, parts.segments.length), macs: 1024, neighbours: 64, statics: 64 },
  });
  t.teardown(() => dataplane.stop());
  const applier = new Applier(dataplane.tables);
  const own = parseAddress('192.168.77.1');
  const networks = cidrs('10.5.0.0/16', 'fd00:5::/48');
  const subnets = cidrs('10.5.1.0/24', 'fd00:5:0:1::/64');
  const records = new Map<string, PeerRecord>(
    peers.map((fields) => {
      const record = makeRecord({ id: fields.name, port: 8285, subnets: [], ecn: false, ...fields });
      return [record.id, record];
    }),
  );
  await applier.apply(
    planFor(records, {
      addresses: [own],
      networks,
      subnets,
      underlayMtu: 1500,
      vnis: parts.segments.map(({ vni }) => vni),
      ...self,
    }),
  );
  const inspected = new Inspected({
    version: '1.2.3',
    registry: 'static',
    log,
    logFormat: 'json',
    networkNamespace: '4026531840',
  });
  const underlay = { interface: 'lo', mtu: 65_536, addresses: [own], publicAddresses: [own] };
  inspected.underlay = underlay;
  inspected.ready = true;
  inspected.running = {
    overlay: parts,
    backend: 'udp',
    underlay,
    member: {
      networks,
      subnets,
      port: 8285,
      registry,
      subnetFile: undefined,
      lease: undefined,
      secondsLeft: () => undefined,
      forwards: () => true,
      close: async () => {},
      ...member,
    },
    devices: parts.workers > 0 ? ['weft-none'] : [],
    mtus: [1472],
    addresses: [['10.5.1.0', 'fd00:5:0:1::']],
    dataplane,
    applier,
    loop: { state: WELL },
    records: () => records,
    metrics: '127.0.0.1:9469',
    sourcePorts: [[], []],
    ...running,
  };
  inspected.forwarding = {
    granted: ALL_OFFLOADS & ~OFFLOADS.uso,
    maxSegments: 128,
    explain: async () => {
      throw new RangeError('not asked here');
    },
  };
  const { f64, layout } = dataplane.memory;
  return {
    inspected,
    dataplane,
    count: (id: number, packets: number): void => {
      f64[(layout.workers[0].counters >> 3) + id] += packets;
    },
    /** Packets and bytes, out and in. */
    countPeer: (name: string, ...values: number[]): void => {
      const peer = [...applier.have.peers.values()].find((one) => one.name === name);
      const ref = peer && applier.ref(peer.key);
      if (ref === undefined) throw new Error(`no peer ${name}`);
      f64.set(values, (layout.workers[0].peerCounters >> 3) + slotOf(ref) * PEER_COUNTERS);
    },
    ref: (name: string): number => {
      const peer = [...applier.have.peers.values()].find((one) => one.name === name);
      return (peer && applier.ref(peer.key)) ?? 0;
    },
  };
}

const B = { name: 'b', address: '192.168.77.2', subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'], ecn: true };
const C = { name: 'c', address: '192.168.77.3', port: 9999, subnets: ['10.5.3.0/24'], underlayMtu: 1400 };
const OUT_AND_IN = { packetsOut: 5, bytesOut: 500, packetsIn: 7, bytesIn: 700 };
const NOTHING = { packetsOut: 0, bytesOut: 0, packetsIn: 0, bytesIn: 0 };

t.test('layer 3', async (t) => {
  const { inspected, dataplane, count, countPeer, ref } = await daemon(t, { peers: [C, B] });
  countPeer('b', 5, 500, 7, 700);
  dataplane.tables.setPeerMtu(ref('b'), 1380);
  t.same(peersAnswer(inspected), {
    mode: 'l3',
    peers: [
      {
        name: 'b',
        address: '192.168.77.2',
        port: 8285,
        vni: null,
        pathMtu: 1380,
        plannedMtu: 1472,
        ecn: true,
        subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'],
        macs: [],
        ...OUT_AND_IN,
        ref: ref('b'),
      },
      {
        name: 'c',
        address: '192.168.77.3',
        port: 9999,
        vni: null,
        pathMtu: 1372,
        plannedMtu: 1372,
        ecn: false,
        subnets: ['10.5.3.0/24'],
        macs: [],
        ...NOTHING,
        ref: ref('c'),
      },
    ],
    more: 0,
  });
  const toB = { peer: 'b', address: '192.168.77.2', port: 8285, vni: null, pathMtu: 1380, by: 'weft', kernel: null };
  const local = { peer: null, address: null, port: null, vni: null, pathMtu: null, by: 'local', kernel: null };
  t.same(routesAnswer(inspected), {
    mode: 'l3',
    routes: [
      { prefix: '10.5.1.0/24', ...local },
      { prefix: 'fd00:5:0:1::/64', ...local },
      { prefix: '10.5.2.0/24', ...toB },
      { prefix: '10.5.3.0/24', ...toB, peer: 'c', address: '192.168.77.3', port: 9999, pathMtu: 1372 },
      { prefix: 'fd00:5:0:2::/64', ...toB },
    ],
    more: 0,
  });
  t.same(await macsAnswer(inspected), { mode: 'l3', macs: [], more: 0 });
  t.same(await neighboursAnswer(inspected), { mode: 'l3', neighbours: [], more: 0 });

  count(OUT_IN, 100);
  count(OUT_SENT, 90);
  count(IN_IN, 60);
  const counters = countersAnswer(inspected);
  t.equal(counters.counters['outbound.device_pulled'], 100);
  t.equal(Object.keys(counters.counters).length, COUNTER_INFOS.length + 3, 'each counter under its own name');
  t.same(counters.peers, [
    { name: 'b', ...OUT_AND_IN },
    { name: 'c', ...NOTHING },
  ]);
  t.match(counters.workers, [{ running: false, busySeconds: 0, longestGapSeconds: 0 }]);
  t.ok(counters.monotonic > 0 && counters.cpuSeconds > 0);
});

t.test('drops', async (t) => {
  const { inspected, count } = await daemon(t, { peers: [B] });
  count(OUT_IN, 10);
  t.same(dropsAnswer(inspected, false), { drops: [], notes: [], entered: { outbound: 10, inbound: 0 } });
  count(OUT_NO_ROUTE, 3);
  const full = COUNTER_INFOS.findIndex(({ name }) => name === 'socket_full');
  count(full, 2);
  const { drops, notes } = dropsAnswer(inspected, false);
  t.same(drops, [
    {
      direction: 'outbound',
      by: 'engine',
      reason: 'no_route',
      packets: 3,
      meaning: 'no peer owns the destination',
      device: null,
    },
  ]);
  t.match(notes, [{ reason: 'socket_full', packets: 2 }]);

  const all = dropsAnswer(inspected, true);
  const reasons = all.drops
    .filter(({ by }) => by === 'engine')
    .map(({ direction, reason }) => `${direction}.${reason}`);
  const dropped = COUNTER_INFOS.filter(({ role }) => role === 'dropped').map(
    (info) => `${info.direction}.${info.name}`,
  );
  t.same(
    reasons,
    dropped.filter((name) => reasons.includes(name)),
    'in the order of the walk',
  );
  t.notOk(
    reasons.some((reason) => /vxlan|arp|storm/.test(reason)),
    'none of layer 2',
  );
  t.same(
    all.drops.filter(({ by }) => by === 'kernel').map(({ reason, device }) => [reason, device]),
    [
      ['socket_overflow', null],
      ['device_queue_full', 'weft-none'],
      ['device_not_taken', 'weft-none'],
    ],
  );
  t.ok(all.notes.filter(({ by }) => by === 'host').length > 5, 'what the kernel dropped in the namespace');
  for (const { reason, meaning } of [...all.drops, ...all.notes]) {
    if (!/^[^\n]{10,}[^.\n]$/.test(meaning)) t.fail(`${reason} says what it means: ${meaning}`);
  }
});

t.test('offloads', async (t) => {
  const { inspected, dataplane } = await daemon(t, {
    peers: [B],
    overlay: { offloads: ALL_OFFLOADS & ~OFFLOADS.merge },
  });
  dataplane.shared.refuseOffload(OFFLOADS.segment);
  const found = offloadsAnswer(inspected).offloads.map(({ name, wanted, granted, refused }) => {
    return `${name} ${[wanted && 'wanted', granted && 'granted', refused && 'refused'].filter(Boolean).join(' ')}`;
  });
  t.same(found, [
    'csum wanted granted',
    'tso4 wanted granted',
    'tso6 wanted granted',
    'uso wanted',
    'segment wanted granted refused',
    'gro wanted granted',
    'merge granted',
  ]);
  t.equal(offloadsAnswer(inspected).maxSegments, 1);
});

t.test('leases', async (t) => {
  const lease = { lease: 'reused', secondsLeft: () => 41.5, forwards: () => false } as const;
  const { inspected } = await daemon(t, {
    peers: [B, { name: 'a', address: '192.168.77.1', subnets: ['10.5.1.0/24'] }],
    member: lease,
  });
  t.match(leasesAnswer(inspected), {
    own: { how: 'reused', secondsLeft: 41.5, forwards: false, subnets: ['10.5.1.0/24', 'fd00:5:0:1::/64'] },
    leases: [
      { id: 'a', name: 'a', address: '192.168.77.1', ours: true, inForce: false },
      { id: 'b', name: 'b', subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'], ours: false, inForce: true },
    ],
    more: 0,
  });
  t.match(await statusAnswer(inspected), { state: 'shut', text: 'nothing is forwarded: our lease has ended' });
  const static_ = await daemon(t, { peers: [B] });
  t.equal(leasesAnswer(static_.inspected).own, null);
});

t.test('status', async (t) => {
  const { inspected, count } = await daemon(t, { peers: [B, C], overlay: { workers: 1 } });
  t.match(await statusAnswer(inspected), { state: 'shut', text: '1 of 1 workers do not run: see the log' });
  const { running } = inspected;
  if (!running) throw new Error('it runs');
  const parts = { workers: 0, routing: 'host-gw' as const };
  const problem = 'etcd: away';
  inspected.running = {
    ...running,
    overlay: { ...running.overlay, ...parts },
    loop: { state: { ...WELL, problem, staleSince: Date.UTC(2026, 0, 3) } },
  };
  count(OUT_NO_ROUTE, 2);
  t.match(await statusAnswer(inspected), {
    state: 'forwarding',
    text: 'what was applied last is in force: etcd: away',
    problem,
    staleSince: '2026-01-03T00:00:00.000Z',
    mode: 'l3',
    registry: { kind: 'static', name: 'test registry', lastEvent: '2026-01-02T00:00:00.000Z', updates: 3, failures: 1 },
    underlay: { interface: 'lo', mtu: 65_536, addresses: ['192.168.77.1'] },
    devices: [{ name: 'weft-none', mtu: 1472, link: null }],
    networks: ['10.5.0.0/16', 'fd00:5::/48'],
    subnets: ['10.5.1.0/24', 'fd00:5:0:1::/64'],
    peers: 2,
    traffic: { drops: 2, kernelDrops: 0 },
    metrics: '127.0.0.1:9469',
  });
  t.match((await statusAnswer(inspected)).troubles.join('\n'), /^device weft-none is gone$/m);
});

t.test('where to ping', async (t) => {
  const { inspected, countPeer } = await daemon(t, { peers: [B, C] });
  countPeer('b', 5, 500, 7, 700);
  const b = {
    name: 'b',
    mode: 'l3',
    networkNamespace: '4026531840',
    address: '192.168.77.2',
    port: 8285,
    ownAddress: '192.168.77.1',
    interface: 'lo',
    underlayMtu: 65_536,
    overhead: 28,
    pathMtu: 1472,
    plannedMtu: 1472,
    inner: [
      { from: '10.5.1.0', to: '10.5.2.0' },
      { from: 'fd00:5:0:1::', to: 'fd00:5:0:2::' },
    ],
    devices: ['weft-none'],
    vnis: [],
    traffic: OUT_AND_IN,
  };
  t.same(await targetAnswer(inspected, 'b'), b, 'by name');
  t.same(await targetAnswer(inspected, '192.168.77.2'), b, 'by underlay address');
  t.same(
    await targetAnswer(inspected, 'FD00:5:0:2:0::99'),
    { ...b, inner: [b.inner[0], { from: 'fd00:5:0:1::', to: 'fd00:5:0:2::99' }] },
    'by overlay address',
  );
  t.match(await targetAnswer(inspected, 'c'), { port: 9999, inner: [{ from: '10.5.1.0', to: '10.5.3.0' }] });
  const fails = (who: string, message: string): Promise<unknown> =>
    t.rejects(targetAnswer(inspected, who), { status: 404, message });
  await fails('d', 'there is no peer called d: see weft peers');
  await fails('10.5.9.9', 'no peer has 10.5.9.9: see weft peers and weft routes');
  await fails('192.168.77.1', "192.168.77.1 is this host's own");
  await fails('10.5.1.7', "10.5.1.7 is this host's own");
});

const SEGMENTS = [
  { vni: 42, bridge: undefined },
  { vni: 7, bridge: undefined },
];

t.test('layer 2', async (t) => {
  const { inspected, dataplane, ref } = await daemon(t, {
    overlay: { mode: 'l2', segments: SEGMENTS },
    peers: [
      {
        name: 'b',
        address: '192.168.77.2',
        port: 4789,
        vnis: [42],
        neighbours: [{ mac: '02:00:00:00:00:05', address: '10.7.0.5', router: true }],
      },
    ],
    self: { networks: [], subnets: [] },
    member: { networks: [], subnets: [] },
    running: { devices: ['weft42', 'weft7'], mtus: [1450, 1450], addresses: [['10.7.0.1/24'], []] },
  });
  t.match(peersAnswer(inspected).peers, [
    { name: 'b', vni: 42, pathMtu: 1450, plannedMtu: 1450, ecn: true, subnets: [], macs: [] },
  ]);
  t.same(routesAnswer(inspected), { mode: 'l2', routes: [], more: 0 });

  const limits = { age: 300_000, perPeer: 1024 };
  const now = Number(process.hrtime.bigint() / 1_000_000n) | 0;
  const learned = new LearnedMacs(dataplane.memory, 0, limits, undefined);
  learned.learn(0x03020102, 0x0504, 0, ref('b'), now - 1500);
  learned.learn(0x03020102, 0x0604, 1, LOCAL, now);
  const neighbours = new LearnedNeighbours(dataplane.memory, 0, limits, undefined);
  const mapped = 0xffff0000 | 0; // the third word of ::ffff:a.b.c.d, little-endian
  neighbours.teach(0, 0, mapped, 0x0900070a, 0, 0x03020102, 0x0504, 0, ref('b'), now);
  const { macs } = await macsAnswer(inspected);
  t.same(macs.map(({ vni, mac, peer, origin }) => `${vni} ${mac} ${peer} ${origin}`).sort(), [
    '42 02:00:00:00:00:05 b static',
    '42 02:01:02:03:04:05 b learned',
    '7 02:01:02:03:04:06 null learned',
  ]);
  const age = macs.find(({ mac }) => mac === '02:01:02:03:04:05')?.ageSeconds ?? 0;
  t.ok(age >= 1.5 && age < 60, `seen ${age} s ago`);
  const found = await neighboursAnswer(inspected);
  t.same(
    found.neighbours
      .map(({ vni, address, peer, router, origin }) => `${vni} ${address} ${peer} ${router} ${origin}`)
      .sort(),
    ['42 10.7.0.5 b true static', '42 10.7.0.9 b null learned'],
  );

  t.match(await targetAnswer(inspected, 'b'), { overhead: 50, devices: ['weft42'], vnis: [42] });
  const { inner } = await targetAnswer(inspected, 'b');
  t.match(inner, [{ from: '10.7.0.1', to: /^10\.7\.0\.[59]$/ }], 'a neighbour that is behind it');
  t.same((await targetAnswer(inspected, '10.7.0.9')).inner, [{ from: '10.7.0.1', to: '10.7.0.9' }]);
  await t.rejects(targetAnswer(inspected, '10.7.0.77'), {
    message: 'no peer has 10.7.0.77: see weft peers and weft routes',
  });
});

t.test('the kernel routes', async (t) => {
  const vxlan = await daemon(t, {
    overlay: { mode: 'l2', routing: 'vxlan', segments: [{ vni: 1, bridge: undefined }] },
    self: {
      hostRouting: { kind: 'vxlan', devices: ['flannel.1'], direct: new Map([['192.168.77.3', 'eth0']]) },
      underlayInside: true,
    },
    peers: [
      { ...B, subnets: ['10.5.2.0/24'], port: 8472, macs: [{ mac: '02:00:00:00:00:0b' }] },
      { ...C, port: 8472, macs: [{ mac: '02:00:00:00:00:0c' }] },
    ],
    running: { devices: ['flannel.1'], mtus: [1450], addresses: [['10.5.1.0/32']] },
  });
  t.match(routesAnswer(vxlan.inspected), {
    mode: 'l2',
    routes: [
      { prefix: '10.5.1.0/24', by: 'local' },
      { prefix: 'fd00:5:0:1::/64', by: 'local' },
      {
        prefix: '10.5.2.0/24',
        peer: 'b',
        address: '192.168.77.2',
        port: 8472,
        vni: 1,
        pathMtu: 1450,
        by: 'kernel',
        kernel: { via: '10.5.2.0', device: 'flannel.1', encapsulated: true },
      },
      {
        prefix: '10.5.3.0/24',
        peer: 'c',
        port: null,
        vni: null,
        by: 'kernel',
        kernel: { via: '192.168.77.3', device: 'eth0', encapsulated: false },
      },
    ],
    more: 0,
  });
  t.match(await targetAnswer(vxlan.inspected, 'b'), {
    inner: [{ from: '10.5.1.0', to: '10.5.2.0' }],
    overhead: 50,
    vnis: [1],
  });

  const gateway = await daemon(t, {
    overlay: { workers: 0, routing: 'host-gw' },
    self: { hostRouting: { kind: 'host-gw', interface: 'eth0' } },
    peers: [B],
  });
  const { inspected } = gateway;
  t.match(routesAnswer(inspected).routes.at(-1), {
    prefix: '10.5.2.0/24',
    peer: 'b',
    pathMtu: 65_536,
    kernel: { via: '192.168.77.2', device: 'eth0', encapsulated: false },
  });
  t.match(await targetAnswer(inspected, 'b'), { inner: [], overhead: 0, devices: [] });
  for (const ask of [() => offloadsAnswer(inspected), () => inspected.needForwarding()]) {
    t.throws(ask, { status: 409, message: /^no packet passes through weftd with this backend: the kernel routes/ });
  }
});

t.test('answers are bounded', async (t) => {
  const count = 12_000;
  const { inspected } = await daemon(t, {
    self: { networks: cidrs('10.0.0.0/8') },
    peers: Array.from({ length: count }, (_, i) => {
      const at = `${i >> 8}.${i & 255}`;
      return { name: `n${i}`, address: `172.16.${at}`, subnets: [`10.64.${at}/32`] };
    }),
  });
  for (const { more, list } of [
    { ...peersAnswer(inspected), list: peersAnswer(inspected).peers.length },
    { ...leasesAnswer(inspected), list: leasesAnswer(inspected).leases.length },
  ]) {
    t.same({ more, list }, { more: count - MOST_ENTRIES, list: MOST_ENTRIES });
  }
  const { routes, more } = routesAnswer(inspected);
  t.same({ more, list: routes.length }, { more: count + 2 - MOST_ENTRIES, list: MOST_ENTRIES });
  t.equal(countersAnswer(inspected).peers.length, MOST_ENTRIES);
});
