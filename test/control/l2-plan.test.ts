/** Layer 2, from a peers file to the tables: what is taken, planned in which network, refused by name, and found there. */
import t from 'tap';
import { Applier } from '../../src/control/apply.js';
import { parseAddress, parseCidr } from '../../src/control/cidr.js';
import { macText, parseMac } from '../../src/control/mac.js';
import { EMPTY_PLAN, type Plan, parseAhead, planFor, type Self } from '../../src/control/plan.js';
import { makeRecord, type PeerFields, type PeerRecord, type Records, sameRecord } from '../../src/control/records.js';
import { parsePeers } from '../../src/control/static-registry.js';
import { deviceMtuOf } from '../../src/control/underlay.js';
import { addressWords } from '../../src/dataplane/addresses.js';
import { LOCAL, lookupStaticMac } from '../../src/dataplane/macs.js';
import { findStaticNeighbour, NEIGHBOUR_FLAGS, ROUTER, ROUTER_KNOWN } from '../../src/dataplane/neighbours.js';
import { PeerSlots } from '../../src/dataplane/peers.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory } from '../../src/io/memory.js';

const MAC5 = '02:00:00:00:00:05';
const MAC6 = '02:00:00:00:00:06';
const L2 = { mode: 'l2', port: 4789 } as const;

const record = (name: string, fields: Partial<PeerFields> = {}): PeerRecord =>
  makeRecord({ id: name, name, address: '192.168.77.2', port: 4789, subnets: [], ecn: true, ...fields });
const records = (...all: PeerRecord[]): Records => new Map(all.map((one) => [one.id, one]));

const self: Self = {
  addresses: [{ family: 4, text: '192.168.77.1' }],
  networks: [],
  subnets: [],
  underlayMtu: 1500,
  vnis: [42, 7],
};

t.test('a MAC address', async (t) => {
  t.same([...parseMac('02:00:00:AB:cd:05').bytes], [2, 0, 0, 0xab, 0xcd, 5]);
  t.equal(parseMac('02:00:00:AB:cd:05').text, '02:00:00:ab:cd:05', 'canonical');
  t.equal(macText(Uint8Array.of(0, 16, 1, 255, 10, 9)), '00:10:01:ff:0a:09');
  for (const odd of ['', '02:00:00:00:00', '2:0:0:0:0:5', '02-00-00-00-00-05', '0200.0000.0005', '02:00:00:00:00:0g']) {
    t.throws(() => parseMac(odd), /is not a MAC address$/, odd);
  }
  t.throws(() => parseMac('01:00:5e:00:00:01'), /is a group address/);
  t.throws(() => parseMac('ff:ff:ff:ff:ff:ff'), /is a group address/);
  t.throws(() => parseMac('00:00:00:00:00:00'), /is no station's address/);
});

t.test('the peers file', async (t) => {
  const text = JSON.stringify({
    peers: [
      { name: 'a', address: '192.168.77.1' },
      {
        name: 'b',
        address: '192.168.77.2',
        port: 8472,
        mtu: 1400,
        vnis: [43, 42],
        macs: ['02:00:00:00:00:0A', { vni: 42, mac: MAC5 }],
        neighbours: [
          { address: 'FD07::6', mac: MAC6, router: true },
          { address: '10.7.0.5', mac: MAC5, vni: 42 },
        ],
      },
    ],
  });
  t.match(await parsePeers(text, L2), [
    { name: 'a', port: 4789, subnets: [], underlayMtu: undefined, ecn: true, vnis: [], macs: [], neighbours: [] },
    {
      name: 'b',
      port: 8472,
      underlayMtu: 1400,
      ecn: true,
      vnis: [42, 43],
      macs: [
        { vni: 42, mac: MAC5 },
        { vni: undefined, mac: '02:00:00:00:00:0a' },
      ],
      neighbours: [
        { vni: 42, address: '10.7.0.5', mac: MAC5, router: false },
        { vni: undefined, address: 'fd07::6', mac: MAC6, router: true },
      ],
    },
  ]);
  const bad = async (fields: object, expected: RegExp, mode: 'l2' | 'l3' = 'l2'): Promise<void> => {
    const peers = [{ name: 'b', address: '192.168.77.2', ...fields }];
    await t.rejects(parsePeers(JSON.stringify({ peers }), { mode, port: 1 }), expected, JSON.stringify(fields));
  };
  await bad({ subnets: ['10.5.2.0/24'] }, /^peers\.0\.subnets: is not for --mode l2/);
  await bad({ ecn: false }, /^peers\.0\.ecn: is not for --mode l2: VXLAN always copies it$/);
  await bad({ vnis: [] }, /^peers\.0\.vnis: /);
  await bad({ vnis: [16_777_216] }, /^peers\.0\.vnis\.0: /);
  await bad({ vnis: [42, 42] }, /^peer b: VNI 42 is listed twice$/);
  await bad({ macs: ['02:00'] }, /^peer b: "02:00" is not a MAC address$/);
  await bad({ macs: [5] }, /^peers\.0\.macs\.0: /);
  await bad({ macs: [{ mac: 'ff:ff:ff:ff:ff:ff' }] }, /^peer b: .* is a group address/);
  await bad(
    { vnis: [42], macs: [{ vni: 43, mac: MAC5 }] },
    /^peer b: MAC .*:05 is of VNI 43, which is not among .* 42$/,
  );
  await bad({ neighbours: [{ address: '10.7.0.5' }] }, /^peers\.0\.neighbours\.0\.mac: /);
  await bad(
    { neighbours: [{ address: '10.7.0.5/24', mac: MAC5 }] },
    /^peer b: "10\.7\.0\.5\/24" is not an IP address$/,
  );
  await bad({ neighbours: [{ address: 'ff02::1', mac: MAC5 }] }, /^peer b: "ff02::1" is a multicast address$/);
  await bad(
    { neighbours: [{ address: '10.7.0.5', mac: '00:00:00:00:00:00' }] },
    /^peer b: .* is no station's address$/,
  );
  await bad({ neighbours: [{ address: '10.7.0.5', mac: MAC5, vnis: [42] }] }, /^peers\.0\.neighbours\.0\.vnis: /);
  await bad({ subnets: [], vnis: [42] }, /^peers\.0\.vnis: is not for --mode l3/, 'l3');
  await bad({ subnets: [], macs: [] }, /^peers\.0\.macs: is not for --mode l3/, 'l3');
  await bad({}, /^peers\.0\.subnets: /, 'l3');
  t.equal(record('b', { neighbours: [{ address: 'fe80::5', mac: MAC5, router: false }] }).neighbours.length, 1);
});

t.test('records are compared with all of it', async (t) => {
  const some: Partial<PeerFields> = {
    vnis: [42],
    macs: [{ mac: MAC5 }],
    neighbours: [{ address: '10.7.0.5', mac: MAC5, router: false }],
  };
  t.ok(sameRecord(record('b', some), record('b', structuredClone(some))));
  t.ok(
    sameRecord(
      record('b', { macs: [{ mac: MAC5 }, { mac: MAC6 }] }),
      record('b', { macs: [{ mac: MAC6 }, { mac: MAC5.toUpperCase(), vni: undefined }] }),
    ),
    'the order and the case mean nothing',
  );
  const changes: Partial<PeerFields>[] = [
    { vnis: [43] },
    { vnis: [] },
    { macs: [] },
    { macs: [{ mac: MAC6 }] },
    { macs: [{ mac: MAC5, vni: 42 }] },
    { neighbours: [{ address: '10.7.0.6', mac: MAC5, router: false }] },
    { neighbours: [{ address: '10.7.0.5', mac: MAC6, router: false }] },
    { neighbours: [{ address: '10.7.0.5', mac: MAC5, router: true }] },
    { neighbours: [{ address: '10.7.0.5', mac: MAC5, router: false, vni: 42 }] },
  ];
  for (const change of changes) {
    t.notOk(sameRecord(record('b', some), record('b', { ...some, ...change })), JSON.stringify(change));
  }
});

t.test('a plan has each peer in each of its networks', async (t) => {
  const all = records(
    record('a', { address: '192.168.77.1', vnis: [42] }),
    record('b', {
      macs: [{ mac: MAC5 }, { mac: '02:00:00:00:00:09', vni: 99 }],
      neighbours: [{ address: '10.7.0.6', mac: MAC6, router: true, vni: 7 }],
    }),
    record('c', { address: '192.168.77.3', vnis: [42, 99], underlayMtu: 1400, macs: [{ mac: MAC6 }] }),
    record('d', { address: '192.168.77.4', vnis: [99], macs: [{ mac: '02:00:00:00:00:0d' }] }),
  );
  await parseAhead(all, self, new AbortController().signal);
  const plan = planFor(all, self);
  t.same(
    [...plan.peers.values()].map(({ name, network, mtu, ecn, overhead }) => [name, network, mtu, ecn, overhead]),
    [
      ['b', 0, 1464, true, 36],
      ['b', 1, 1464, true, 36],
      ['c', 0, 1364, true, 36],
    ],
  );
  const at = ({ peer, network }: { readonly peer: string; readonly network: number }): string =>
    `${plan.peers.get(peer)?.name} ${plan.peers.get(peer)?.network === network ? network : 'wrong'}`;
  t.same(
    [...plan.macs.values()].map((one) => [one.mac, at(one)]),
    [
      [MAC5, 'b 0'],
      [MAC5, 'b 1'],
      [MAC6, 'b 1'],
      [MAC6, 'c 0'],
    ],
    'those of a VNI that is not ours are for others; a neighbour is a MAC too',
  );
  t.same(
    [...plan.neighbours.values()].map((one) => [one.address, one.mac, one.router, at(one)]),
    [['10.7.0.6', MAC6, true, 'b 1']],
  );
  t.equal(plan.routes.size, 0);

  const both: Self = { ...self, addresses: [...self.addresses, { family: 6, text: 'fd77::1' }], vnis: [99] };
  const six = planFor(records(record('b', { address: 'fd77::2', ecn: false })), both);
  t.match([...six.peers.values()], [{ mtu: 1444, overhead: 56, ecn: true, network: 0 }]);
  t.equal([...planFor(all, both).peers.values()].length, 3, 'the same records for other VNIs');
  const lo = planFor(records(record('b')), { ...self, underlayMtu: 65_536 });
  t.equal([...lo.peers.values()][0].mtu, 65_499, 'what a datagram holds');
});

t.test('what no record shows alone is refused', async (t) => {
  const other = { address: '192.168.77.3' };
  const neighbour = (address: string, mac: string, more: object = {}) => ({ address, mac, router: false, ...more });
  const cases: [what: string, expected: RegExp, ...all: PeerRecord[]][] = [
    [
      'one MAC on two peers',
      /^MAC 02:00:00:00:00:05 of VNI 42 is behind two hosts, [bc] and [bc]$/,
      record('b', { macs: [{ mac: MAC5 }] }),
      record('c', { ...other, macs: [{ mac: MAC5, vni: 42 }] }),
    ],
    [
      'one MAC on two peers, by a neighbour',
      /^MAC 02:00:00:00:00:05 of VNI 42 is behind two hosts/,
      record('b', { macs: [{ mac: MAC5 }] }),
      record('c', { ...other, neighbours: [neighbour('10.7.0.5', MAC5)] }),
    ],
    [
      'one address, two MACs',
      /^neighbour 10\.7\.0\.5 of VNI 42 has two MACs, 02:\S+ of [bc] and 02:\S+ of [bc]$/,
      record('b', { neighbours: [neighbour('10.7.0.5', MAC5)] }),
      record('c', { ...other, neighbours: [neighbour('10.7.0.5', MAC6)] }),
    ],
    [
      'one address, two MACs of one peer',
      /^neighbour 10\.7\.0\.5 of VNI 7 has two MACs/,
      record('b', { neighbours: [neighbour('10.7.0.5', MAC5, { vni: 7 }), neighbour('10.7.0.5', MAC6, { vni: 7 })] }),
    ],
    [
      'a router and none',
      /^b: neighbour 10\.7\.0\.5 of VNI 42 is listed as a router and as none$/,
      record('b', { neighbours: [neighbour('10.7.0.5', MAC5), neighbour('10.7.0.5', MAC5, { router: true })] }),
    ],
    [
      'one MAC here and there',
      /^MAC 02:00:00:00:00:05 of VNI 42 is behind two hosts, (this host and b|b and this host)$/,
      record('a', { address: '192.168.77.1', macs: [{ mac: MAC5 }] }),
      record('b', { macs: [{ mac: MAC5, vni: 42 }] }),
    ],
    ['one address', /^peers [bc] and [bc] have one address/, record('b'), record('c')],
    ['within', /^peer b: 10\.7\.0\.9 lies in --address 10\.7\.0\.0\/24: give/, record('b', { address: '10.7.0.9' })],
    ['no socket', /^peer b: fd77::2 is IPv6, but this host/, record('b', { address: 'fd77::2' })],
  ];
  const inside: Self = { ...self, networks: [parseCidr('10.7.0.0/24')] };
  for (const [what, expected, ...all] of cases) {
    t.throws(() => planFor(records(...all), inside), expected, what);
    t.throws(() => planFor(records(...all.reverse()), inside), expected, `${what}, in the other order`);
  }
  const apart = planFor(
    records(
      record('b', { macs: [{ mac: MAC5, vni: 42 }] }),
      record('c', { ...other, macs: [{ mac: MAC5, vni: 7 }] }),
      record('d', { address: '192.168.77.4', macs: [{ mac: MAC5, vni: 99 }] }),
    ),
    self,
  );
  t.equal(apart.macs.size, 2, 'of two networks they are two stations');
  const twice = { macs: [{ mac: MAC5 }, { mac: MAC5, vni: 42 }], neighbours: [neighbour('10.7.0.5', MAC5)] };
  t.equal(planFor(records(record('b', twice)), self).macs.size, 2, 'the same said twice is no conflict');
  const strange = record('c', { address: 'fd77::3', vnis: [99] });
  t.equal(planFor(records(record('b'), strange), inside).peers.size, 2, 'who is in none of our networks is no concern');
});

/** What workers would find in the tables. */
function look(memory: EngineMemory) {
  const { layout, i32 } = memory;
  const table = layout.tables[new SharedWords(memory).activeVersion()];
  const mask = layout.staticSlots - 1;
  return {
    macAt: (text: string, network: number): number => {
      const view = new DataView(parseMac(text).bytes.buffer);
      const [low, high] = [view.getInt32(0, true), view.getUint16(4, true)];
      return lookupStaticMac(i32, table.staticMacs >> 2, mask, low, high, network);
    },
    neighbour: (text: string, network: number): number | undefined => {
      const [w0, w1, w2, w3] = addressWords(parseAddress(text).bytes);
      const at = findStaticNeighbour(i32, table.staticNeighbours >> 2, mask, w0, w1, w2, w3, network);
      return at < 0 ? undefined : i32[at + NEIGHBOUR_FLAGS];
    },
    flood: (network: number): number[] => {
      const at = (table.floods >> 2) + network * (memory.options.peers + 1);
      return [...i32.subarray(at + 1, at + 1 + i32[at])].sort();
    },
  };
}

const setUp = (statics: number) => {
  const memory = EngineMemory.create({
    workers: 1,
    peers: 8,
    routeNodes: 64,
    networks: 2,
    macs: 64,
    neighbours: 64,
    statics,
  });
  const tables = new Tables(memory, () => {});
  return { memory, tables, applier: new Applier(tables) };
};

const refOf = (applier: Applier, plan: Plan, name: string, network: number): number => {
  const peer = [...plan.peers.values()].find((one) => one.name === name && one.network === network);
  return (peer && applier.ref(peer.key)) ?? 0;
};

t.test('apply fills, changes and empties the tables', async (t) => {
  const { memory, tables, applier } = setUp(16);
  const neighbours = [{ address: '10.7.0.6', mac: MAC6, router: true, vni: 7 }];
  const first = planFor(
    records(record('b', { macs: [{ mac: MAC5 }], neighbours }), record('c', { address: '192.168.77.3', vnis: [42] })),
    self,
  );
  await applier.apply(first);
  const [b42, b7, c42] = [refOf(applier, first, 'b', 0), refOf(applier, first, 'b', 1), refOf(applier, first, 'c', 0)];
  t.ok(b42 > 0 && b7 > 0 && c42 > 0 && b42 !== b7);
  t.same([look(memory).macAt(MAC5, 0), look(memory).macAt(MAC5, 1)], [b42, b7]);
  t.same([look(memory).macAt(MAC6, 0), look(memory).macAt(MAC6, 1)], [0, b7]);
  t.same(
    [look(memory).neighbour('10.7.0.6', 0), look(memory).neighbour('10.7.0.6', 1)],
    [undefined, ROUTER | ROUTER_KNOWN],
  );
  t.same([look(memory).flood(0), look(memory).flood(1)], [[b42, c42].sort(), [b7]]);
  t.same([tables.peerCount, tables.macCount, tables.neighbourCount], [3, 3, 1]);
  t.equal(await applier.apply(first), 0, 'again: nothing to do');

  // The stations move to c; the neighbour is a router no longer, and c listens elsewhere.
  const second = planFor(
    records(
      record('b', { vnis: [42] }),
      record('c', {
        address: '192.168.77.3',
        port: 8472,
        macs: [{ mac: MAC5 }],
        neighbours: [{ ...neighbours[0], router: false }],
      }),
    ),
    self,
  );
  await applier.apply(second);
  const [d42, d7] = [refOf(applier, second, 'c', 0), refOf(applier, second, 'c', 1)];
  t.same([look(memory).macAt(MAC5, 0), look(memory).macAt(MAC5, 1), look(memory).macAt(MAC6, 1)], [d42, d7, d7]);
  t.equal(look(memory).neighbour('10.7.0.6', 1), ROUTER_KNOWN);
  t.same([look(memory).flood(0), look(memory).flood(1)], [[b42, d42].sort(), [d7]]);

  await applier.apply(EMPTY_PLAN);
  t.same(
    [look(memory).macAt(MAC5, 0), look(memory).neighbour('10.7.0.6', 1), look(memory).flood(0)],
    [0, undefined, []],
  );
  t.same([tables.peerCount, tables.macCount, tables.neighbourCount], [0, 0, 0]);
  t.ok(memory.intactGuards());
});

t.test('what is ours is behind our own device, whoever says otherwise', async (t) => {
  const { memory, tables, applier } = setUp(16);
  const ours = {
    address: '192.168.77.1',
    macs: [{ mac: MAC5, vni: 42 }],
    neighbours: [{ address: '10.7.0.6', mac: MAC6, router: false, vni: 42 }],
  };
  await applier.apply(planFor(records(record('a', ours), record('b')), self));
  t.equal(look(memory).macAt(MAC5, 0), LOCAL);
  t.equal(look(memory).macAt(MAC6, 0), LOCAL);
  t.equal(look(memory).neighbour('10.7.0.6', 0), ROUTER_KNOWN);
  t.equal(tables.peerCount, 2);
  await applier.apply(planFor(records(record('b')), self));
  t.equal(look(memory).macAt(MAC5, 0), 0);
});

t.test('a plan that does not fit changes nothing', async (t) => {
  const { memory, tables, applier } = setUp(4);
  const macs = (count: number): { mac: string }[] =>
    Array.from({ length: count }, (_, i) => ({ mac: `02:00:00:00:01:0${i}` }));
  const first = planFor(records(record('b', { vnis: [42], macs: macs(3) })), self);
  await applier.apply(first);
  const ref = refOf(applier, first, 'b', 0);
  const neighbours = [{ address: '10.7.0.5', mac: MAC5, router: false }];
  const moved = record('c', { address: '192.168.77.3', vnis: [42], macs: macs(6), neighbours });
  await t.rejects(applier.apply(planFor(records(moved), self)), RangeError);
  t.same([look(memory).macAt('02:00:00:00:01:02', 0), look(memory).flood(0)], [ref, [ref]], 'as before');
  t.same([tables.peerCount, tables.macCount, tables.neighbourCount], [1, 3, 0]);
  t.equal(look(memory).neighbour('10.7.0.5', 0), undefined);
  t.equal(new PeerSlots(memory).mtu(ref), 1464);
  const fits = record('c', { address: '192.168.77.3', vnis: [42], macs: macs(3), neighbours });
  await applier.apply(planFor(records(fits), self));
  t.not(look(memory).macAt('02:00:00:00:01:02', 0), ref);
  t.ok(memory.intactGuards());
});

t.test("the device's MTU", async (t) => {
  const underlay = (mtu: number, ...texts: string[]) => ({
    interface: 'eth0',
    mtu,
    addresses: texts.map(parseAddress),
  });
  const wish = { mode: 'l2', mtu: undefined, networks: [] } as const;
  t.equal(deviceMtuOf(underlay(1500, '192.168.77.1'), wish), 1450);
  t.equal(deviceMtuOf(underlay(1500, 'fd77::1'), wish), 1430);
  t.equal(deviceMtuOf(underlay(9050, '192.168.77.1', 'fd77::1'), wish), 8980);
  t.equal(deviceMtuOf(underlay(65_536, '127.0.0.1'), wish), 65_485, 'what a datagram holds');
  t.equal(deviceMtuOf(underlay(1500, '192.168.77.1'), { ...wish, mtu: 9000 }), 9000, 'or what was asked for');
  t.equal(deviceMtuOf(underlay(626, '192.168.77.1'), wish), 576, 'IPv6 is not demanded');
  t.throws(() => deviceMtuOf(underlay(625, '192.168.77.1'), wish), /which leaves 575 for the device, less than 576/);
  t.equal(deviceMtuOf(underlay(1500, '192.168.77.1'), { ...wish, mode: 'l3' }), 1472);
});
