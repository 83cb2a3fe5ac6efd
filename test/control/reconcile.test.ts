/**
 * Reconcile, on a model that knows nothing of the tables: its actions lead from any plan to any other, in an order that never
 * sends a packet nowhere. Apply, on the real tables without an engine: a plan that does not fit changes nothing.
 */
import fc from 'fast-check';
import t from 'tap';
import { Applier } from '../../src/control/apply.js';
import { parseAddress, parseCidr } from '../../src/control/cidr.js';
import { parseMac } from '../../src/control/mac.js';
import {
  EMPTY_PLAN,
  type Plan,
  type PlannedMac,
  type PlannedNeighbour,
  type PlannedPeer,
  type PlannedRoute,
} from '../../src/control/plan.js';
import { type Action, reconcile } from '../../src/control/reconcile.js';
import { addressWords, lookupAddress } from '../../src/dataplane/addresses.js';
import { PeerSlots } from '../../src/dataplane/peers.js';
import { lookup4 } from '../../src/dataplane/routes.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory } from '../../src/io/memory.js';

/** Of a world of 8 peers, 12 prefixes, 6 MACs and 6 IP addresses of stations: who is where, and who owns what. */
interface Spec {
  readonly peers: readonly { readonly id: number; readonly port: number; readonly mtu: number }[];
  readonly routes: readonly { readonly prefix: number; readonly owner: number }[];
  readonly macs?: readonly { readonly mac: number; readonly owner: number }[];
  /** Behind whoever has the MAC. */
  readonly neighbours?: readonly { readonly address: number; readonly mac: number; readonly router: boolean }[];
}

const specs: fc.Arbitrary<Spec> = fc.record({
  peers: fc.uniqueArray(
    fc.record({ id: fc.nat(7), port: fc.integer({ min: 1, max: 2 }), mtu: fc.constantFrom(1400, 1472) }),
    {
      selector: (peer) => peer.id,
    },
  ),
  routes: fc.uniqueArray(fc.record({ prefix: fc.nat(11), owner: fc.nat(7) }), { selector: (route) => route.prefix }),
  macs: fc.uniqueArray(fc.record({ mac: fc.nat(5), owner: fc.nat(7) }), { selector: (one) => one.mac }),
  neighbours: fc.uniqueArray(fc.record({ address: fc.nat(5), mac: fc.nat(5), router: fc.boolean() }), {
    selector: (one) => one.address,
  }),
});

function planOf(spec: Spec): Plan {
  const byId = new Map<number, PlannedPeer>();
  for (const { id, port, mtu } of spec.peers) {
    const { family, bytes, text: address } = parseAddress(`192.168.77.${id + 2}`);
    const key = `0 ${address} ${port}`;
    byId.set(id, { key, name: `p${id}`, network: 0, family, address, bytes, port, ecn: false, overhead: 28, mtu });
  }
  const routes = new Map<string, PlannedRoute>();
  for (const { prefix: i, owner } of spec.routes) {
    const peer = byId.get(owner);
    const prefix = parseCidr(`10.5.${i + 16}.0/24`);
    const key = `0 ${prefix.text}`;
    if (peer) routes.set(key, { key, network: 0, prefix, peer: peer.key });
  }
  const macs = new Map<string, PlannedMac>();
  for (const { mac: i, owner } of spec.macs ?? []) {
    const peer = byId.get(owner);
    const { text: mac, bytes: macBytes } = parseMac(`02:00:00:00:00:0${i}`);
    const key = `0 ${mac}`;
    if (peer) macs.set(key, { key, network: 0, mac, macBytes, peer: peer.key });
  }
  const neighbours = new Map<string, PlannedNeighbour>();
  for (const { address: i, mac, router } of spec.neighbours ?? []) {
    const station = macs.get(`0 02:00:00:00:00:0${mac}`);
    const { text: address, bytes: addressBytes } = parseAddress(`10.7.0.${i + 1}`);
    const key = `0 ${address}`;
    if (station) neighbours.set(key, { ...station, key, address, addressBytes, router });
  }
  const peers = new Map([...byId.values()].map((peer) => [peer.key, peer]));
  return { ...EMPTY_PLAN, peers, routes, macs, neighbours };
}

/** What the tables hold: peers to their MTUs, prefixes and MACs to their owners, neighbours to what is said of them. */
interface Model {
  readonly mtus: Map<string, number>;
  readonly owners: Map<string, string>;
  readonly macs: Map<string, string>;
  readonly neighbours: Map<string, string>;
}

const said = ({ peer, mac, router }: PlannedNeighbour): string => `${peer} ${mac} ${router}`;

const modelOf = (plan: Plan): Model => ({
  mtus: new Map([...plan.peers.values()].map((peer) => [peer.key, peer.mtu])),
  owners: new Map([...plan.routes.values()].map((route) => [route.key, route.peer])),
  macs: new Map([...plan.macs.values()].map((mac) => [mac.key, mac.peer])),
  neighbours: new Map([...plan.neighbours.values()].map((one) => [one.key, said(one)])),
});

/** Does an action, or throws when it could not be done on tables in that state. */
function act({ mtus, owners, macs, neighbours }: Model, action: Action): void {
  const must = (condition: boolean, what: string): void => {
    if (!condition) throw new Error(`${action.kind}: ${what}`);
  };
  if (action.kind === 'add-peer') {
    must(!mtus.has(action.peer.key), 'is there');
    mtus.set(action.peer.key, action.peer.mtu);
  } else if (action.kind === 'set-mtu') {
    must(mtus.get(action.peer) === action.before, 'had another');
    mtus.set(action.peer, action.mtu);
  } else if (action.kind === 'set-route') {
    must(mtus.has(action.route.peer), 'to a peer that is not there');
    must(owners.get(action.route.key) === action.before, 'belonged to another');
    owners.set(action.route.key, action.route.peer);
  } else if (action.kind === 'remove-route') {
    must(owners.delete(action.route.key), 'is not there');
  } else if (action.kind === 'set-mac') {
    must(mtus.has(action.mac.peer), 'to a peer that is not there');
    must(macs.get(action.mac.key) === action.before?.peer, 'belonged to another');
    macs.set(action.mac.key, action.mac.peer);
  } else if (action.kind === 'set-neighbour') {
    must(mtus.has(action.neighbour.peer), 'to a peer that is not there');
    must(neighbours.get(action.neighbour.key) === (action.before && said(action.before)), 'was another');
    neighbours.set(action.neighbour.key, said(action.neighbour));
  } else if (action.kind === 'remove-mac') {
    must(macs.delete(action.mac.key), 'is not there');
  } else if (action.kind === 'remove-neighbour') {
    must(neighbours.delete(action.neighbour.key), 'is not there');
  } else if (action.kind === 'change-kernel') {
    must(false, 'these plans have nothing for the kernel'); // those that have: host-forwarding.test.ts
  } else {
    must(![...owners.values(), ...macs.values()].includes(action.peer.key), 'still has routes or MACs');
    must(mtus.delete(action.peer.key), 'is not there');
  }
}

t.test('actions lead from have to want, without a hole on the way', async (t) => {
  const sides = fc.tuple(specs, specs);
  fc.assert(
    fc.property(sides, ([before, after]) => {
      const have = planOf(before);
      const want = planOf(after);
      const model = modelOf(have);
      const actions = reconcile(have, want);
      const kept = [...have.routes.keys()].filter((key) => want.routes.has(key));
      const keptMacs = [...have.macs.keys()].filter((key) => want.macs.has(key));
      for (const action of actions) {
        act(model, action);
        for (const key of kept) if (!model.owners.has(key)) throw new Error(`a hole at ${key}`);
        for (const key of keptMacs) if (!model.macs.has(key)) throw new Error(`a hole at ${key}`);
        for (const owner of model.owners.values()) if (!model.mtus.has(owner)) throw new Error(`nobody at ${owner}`);
      }
      const goal = modelOf(want);
      return (
        JSON.stringify([...model.mtus].sort()) === JSON.stringify([...goal.mtus].sort()) &&
        JSON.stringify([...model.owners].sort()) === JSON.stringify([...goal.owners].sort()) &&
        JSON.stringify([...model.macs].sort()) === JSON.stringify([...goal.macs].sort()) &&
        JSON.stringify([...model.neighbours].sort()) === JSON.stringify([...goal.neighbours].sort())
      );
    }),
    { numRuns: 2000 },
  );
  fc.assert(fc.property(specs, (spec) => reconcile(planOf(spec), planOf(spec)).length === 0));
  t.pass('2,000 pairs; and nothing for what is the same');
});

t.test('a moved peer is added, gets the routes, and then the old one goes', async (t) => {
  const routes = [
    { prefix: 0, owner: 0 },
    { prefix: 1, owner: 0 },
  ];
  const have = planOf({ peers: [{ id: 0, port: 1, mtu: 1472 }], routes });
  const want = planOf({ peers: [{ id: 0, port: 2, mtu: 1472 }], routes });
  t.same(
    reconcile(have, want).map((action) => action.kind),
    ['add-peer', 'set-route', 'set-route', 'remove-peer'],
  );
  const smaller = planOf({ peers: [{ id: 0, port: 1, mtu: 1400 }], routes });
  t.same(
    reconcile(have, smaller).map((action) => action.kind),
    ['set-mtu'],
    'an MTU is changed in place',
  );
});

/** What a worker would find in the tables. */
function look(memory: EngineMemory): {
  ownerOf(address: string): number;
  peerAt(address: string): number;
  mtu(ref: number): number;
} {
  const table = memory.layout.tables[new SharedWords(memory).activeVersion()];
  const slots = new PeerSlots(memory);
  return {
    ownerOf: (address) => {
      const [a, b, c, d] = parseAddress(address).bytes;
      return lookup4(memory.i32, table.roots4 >> 2, table.nodes >> 2, ((a << 24) | (b << 16) | (c << 8) | d) >>> 0);
    },
    peerAt: (address) => {
      const [w0, w1, w2, w3] = addressWords(parseAddress(address).bytes);
      const mask = memory.layout.addressSlots - 1;
      return lookupAddress(memory.i32, table.addresses >> 2, mask, w0, w1, w2, w3, 0);
    },
    mtu: (ref) => slots.mtu(ref),
  };
}

function setUp(peers: number, routeNodes: number): { memory: EngineMemory; tables: Tables; applier: Applier } {
  const memory = EngineMemory.create({ workers: 1, peers, routeNodes, networks: 1 });
  const tables = new Tables(memory, () => {});
  return { memory, tables, applier: new Applier(tables) };
}

t.test('apply fills, changes and empties the tables', async (t) => {
  const { memory, tables, applier } = setUp(8, 64);
  const first = planOf({
    peers: [
      { id: 0, port: 1, mtu: 1472 },
      { id: 1, port: 1, mtu: 1472 },
    ],
    routes: [
      { prefix: 0, owner: 0 },
      { prefix: 1, owner: 1 },
    ],
  });
  t.equal(await applier.apply(first), 4);
  const [p0, p1] = ['192.168.77.2', '192.168.77.3'].map((address) => look(memory).peerAt(address));
  t.ok(p0 > 0 && p1 > 0 && p0 !== p1);
  t.equal(look(memory).ownerOf('10.5.16.9'), p0);
  t.equal(look(memory).ownerOf('10.5.17.9'), p1);
  t.equal(look(memory).ownerOf('10.5.18.9'), 0);
  t.equal(applier.ref([...first.peers.keys()][0]), p0);
  t.equal(await applier.apply(first), 0, 'again: nothing to do');
  t.match(applier.carriedOut, { 'add-peer': 2, 'set-route': 2, 'remove-peer': 0, 'change-kernel': 0 });

  // The first changes its port, at the same address; the second loses its subnet to it, and has a smaller MTU.
  const second = planOf({
    peers: [
      { id: 0, port: 2, mtu: 1472 },
      { id: 1, port: 1, mtu: 1400 },
    ],
    routes: [
      { prefix: 0, owner: 0 },
      { prefix: 1, owner: 0 },
    ],
  });
  await applier.apply(second);
  const moved = look(memory).peerAt('192.168.77.2');
  t.not(moved, p0, 'another peer in the tables');
  t.equal(look(memory).ownerOf('10.5.16.9'), moved);
  t.equal(look(memory).ownerOf('10.5.17.9'), moved);
  t.equal(look(memory).peerAt('192.168.77.3'), p1, 'the same peer in the tables');
  t.equal(look(memory).mtu(p1), 1400);
  t.same([tables.peerCount, tables.routeCount], [2, 2]);

  await applier.apply(EMPTY_PLAN);
  t.same([tables.peerCount, tables.routeCount], [0, 0]);
  t.same([look(memory).ownerOf('10.5.16.9'), look(memory).peerAt('192.168.77.2')], [0, 0]);
});

t.test('a plan that does not fit changes nothing', async (t) => {
  const { memory, tables, applier } = setUp(4, 64);
  const routes = [
    { prefix: 0, owner: 0 },
    { prefix: 1, owner: 1 },
  ];
  const peers = [
    { id: 0, port: 1, mtu: 1472 },
    { id: 1, port: 1, mtu: 1472 },
  ];
  const first = planOf({ peers, routes });
  await applier.apply(first);
  const before = JSON.stringify(refs(memory));

  // Both move to another port at their addresses, which takes two slots more; then there is none for three others.
  const tooMany = planOf({
    peers: [...peers.map((peer) => ({ ...peer, port: 2 })), ...[2, 3, 4].map((id) => ({ id, port: 1, mtu: 1472 }))],
    routes,
  });
  await t.rejects(applier.apply(tooMany), RangeError);
  t.equal(JSON.stringify(refs(memory)), before, 'too many peers: as before');
  t.match(applier.carriedOut, { 'add-peer': 2, 'set-route': 2, 'remove-peer': 0 }, 'what was undone does not count');
  t.equal(applier.have, first);

  const many = Array.from({ length: 40 }, (_, i) => parseCidr(`10.6.${i}.0/28`));
  const peer = [...first.peers.keys()][1];
  const tooLong: Plan = {
    ...EMPTY_PLAN,
    peers: new Map([...first.peers].map(([key, one]) => [key, { ...one, mtu: 1400 }])),
    routes: new Map([
      ['0 10.5.16.0/24', { key: '0 10.5.16.0/24', network: 0, prefix: parseCidr('10.5.16.0/24'), peer }],
      ...many.map((prefix): [string, PlannedRoute] => [
        `0 ${prefix.text}`,
        { key: `0 ${prefix.text}`, network: 0, prefix, peer },
      ]),
    ]),
  };
  await t.rejects(applier.apply(tooLong), /route table full/);
  t.equal(JSON.stringify(refs(memory)), before, 'too many routes: as before');
  t.same([tables.peerCount, tables.routeCount], [2, 2]);

  // And what fits can still be applied, as often as one likes.
  for (let i = 0; i < 20; i++) {
    await applier.apply(planOf({ peers: peers.map((one) => ({ ...one, port: 1 + (i & 1) })), routes }));
    const now = look(memory);
    t.ok(now.ownerOf('10.5.16.1') > 0 && now.ownerOf('10.5.16.1') === now.peerAt('192.168.77.2'));
    t.ok(now.ownerOf('10.5.17.1') > 0 && now.ownerOf('10.5.17.1') === now.peerAt('192.168.77.3'));
  }
  t.ok(memory.intactGuards());

  function refs(memory: EngineMemory): unknown {
    const now = look(memory);
    const all = ['192.168.77.2', '192.168.77.3', '192.168.77.4', '192.168.77.5', '192.168.77.6'].map(now.peerAt);
    return [all, all.slice(0, 2).map(now.mtu), ['10.5.16.1', '10.5.17.1', '10.6.0.1', '10.6.9.1'].map(now.ownerOf)];
  }
});
