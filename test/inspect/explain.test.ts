/**
 * `weft explain` against the engine: what it says of a packet, before, is what a worker does with it, after, counter by counter and
 * peer by peer; for random addresses, for every reason to drop, in both layers. And it leaves no trace: of the whole memory only its
 * own regions change.
 */
import { createHash } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { COUNTER_INFOS } from '../../src/dataplane/counters.js';
import { createExplain, type Explain } from '../../src/inspect/explain.js';
import type { ExplainAnswer } from '../../src/inspect/explain-answer.js';
import { paced } from '../../src/inspect/pace.js';
import { type EngineMemory, layoutFor, MAX_NETWORKS, MAX_SENDERS } from '../../src/io/memory.js';
import { ALL_OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { type DropCase, LAYER_2_DROPS, LAYER_3_DROPS, outFrame, questionOf, STRANGER } from '../lib/drops.js';
import { applierOf, asking, type HostHopSpec, peersIn } from '../lib/explained.js';
import { advertise, arpFrame, BROADCAST, ethernet, mac, O_FLAG, OTHER, solicit, vxlan } from '../lib/frames.js';
import { address, concat, hex, icmp, packet, pattern, plain, random, udp } from '../lib/packets.js';
import { DEVICE_4, DEVICE_6, HOST_4, makeRig, type Rig } from '../lib/rig.js';
import {
  hear,
  makeSwitch,
  our4,
  our6,
  ourMac,
  PORT,
  type SwitchRig,
  setOwnMacs,
  their4,
  their6,
  theirMac,
  VNIS,
} from '../lib/rig-l2.js';

t.setTimeout(180_000);

/** Explains what one of the rigs would do. */
interface Stage<R> {
  readonly rig: R;
  readonly explain: Explain;
}

// Layer 3.

interface PeerSpec {
  readonly name: string;
  readonly address: string;
  readonly mtu: number;
  readonly subnets: readonly string[];
}

async function routed(specs: readonly PeerSpec[], strict = false): Promise<Stage<Rig>> {
  const settings = { sourceCheck: strict ? 'strict' : 'peer' } as const;
  const rig = await makeRig({ peers: specs, settings, memory: { peers: 256, routeNodes: 1 << 15 } });
  const explain = createExplain({
    memory: rig.memory,
    settings: {
      ...settings,
      offloads: ALL_OFFLOADS,
      maxSegments: 128,
      mtu: 1472,
      address4: address(DEVICE_4),
      address6: address(DEVICE_6),
    },
    underlays: [true, true],
    devices: ['weft0'],
    mtus: [1472],
    addresses: [[`${DEVICE_4}/24`, DEVICE_6]],
    applier: applierOf(specs.map((spec, i) => ({ ...spec, ref: rig.refs[i] }))),
    networkNamespace: '1',
    now: () => 0,
  });
  return { rig, explain };
}

/** Peers with subnets of many lengths, some inside others. */
function randomPeers(next: () => number, count: number): PeerSpec[] {
  const byte = (): number => Math.floor(next() * 256);
  const used = new Set<string>();
  return Array.from({ length: count }, (_, i) => {
    const subnets = Array.from({ length: 3 }, () => {
      if (next() < 0.5) {
        const length = 17 + Math.floor(next() * 16);
        const bits = ((10 << 24) | (5 << 16) | (byte() << 8) | byte()) >>> (32 - length);
        const whole = (bits << (32 - length)) >>> 0;
        return `${whole >>> 24}.${(whole >>> 16) & 255}.${(whole >>> 8) & 255}.${whole & 255}/${length}`;
      }
      const length = next() < 0.5 ? 48 + Math.floor(next() * 17) : 128;
      const third = length < 128 ? byte() & 0xff : byte();
      return `fd00:5:${third.toString(16)}::/${Math.min(length, length < 128 ? 48 : 128)}`;
    }).filter((subnet) => !used.has(subnet) && used.add(subnet));
    const v6 = i % 5 === 4;
    return {
      name: `peer-${i}`,
      address: v6 ? `fd77::${(i + 2).toString(16)}` : `192.168.77.${i + 2}`,
      mtu: i % 3 === 2 ? 1000 + i : 1472,
      subnets,
    };
  });
}

interface Case {
  readonly question: Readonly<Record<string, string | number>>;
  readonly bytes: Uint8Array;
}

function randomCase(next: () => number, v4: boolean): Case {
  const byte = (): number => Math.floor(next() * 256);
  const to = v4
    ? next() < 0.9
      ? `10.5.${byte()}.${byte()}`
      : `${byte()}.${byte()}.${byte()}.${byte()}`
    : next() < 0.9
      ? `fd00:5:${byte().toString(16)}::${next() < 0.5 ? '' : byte().toString(16)}`
      : `2001:db8::${(byte() + 1).toString(16)}`;
  const header = v4 ? 20 : 40;
  const size = next() < 0.7 ? header + 8 + Math.floor(next() * 900) : header + 8 + Math.floor(next() * 2000);
  const df = next() < 0.5;
  const ttl = next() < 0.9 ? 64 : Math.floor(next() * 3);
  const source = v4 ? DEVICE_4 : DEVICE_6;
  const echo = icmp(v4 ? 8 : 128, new Uint8Array(size - header - 8), !v4);
  const bytes = packet({ source, destination: to, ttl, df, id: 0, flow: 0 }, echo);
  return { question: { to, size, ttl, ...(df ? { df: 1 } : {}) }, bytes };
}

t.test('layer 3: 10,000 random addresses end as explained', async (t) => {
  const next = random(7);
  const specs = randomPeers(next, 60);
  const { rig, explain } = await routed(specs);
  const wrong: string[] = [];
  const verdicts = new Map<string, number>();
  for (let i = 0; i < 10_000 && wrong.length < 5; i++) {
    const { question, bytes } = randomCase(next, i % 2 === 0);
    const answer = explain(asking(question));
    rig.drain(i * 1000); // whatever earlier errors have cost is there again
    rig.changes();
    rig.device.load([plain(bytes)]);
    rig.drain(i * 1000);
    const { sent } = rig.take();
    const names = new Map(specs.map((spec, peer) => [hex(rig.name(peer)), spec.name]));
    const got = [...new Set(sent.map(({ name }) => names.get(hex(name)) ?? 'nobody'))].sort();
    const problem = differs(
      answer,
      rig.changes(),
      got,
      sent.map((one) => one.bytes.length),
    );
    if (problem !== '') wrong.push(`${JSON.stringify(question)}: ${problem}`);
    verdicts.set(answer.reason ?? answer.verdict, (verdicts.get(answer.reason ?? answer.verdict) ?? 0) + 1);
  }
  t.same(wrong, []);
  for (const verdict of ['sent', 'no_route', 'too_big', 'ttl_exceeded'])
    t.ok((verdicts.get(verdict) ?? 0) > 50, verdict);
  rig.audit();
});

/** '' if an answer is what has happened. */
function differs(
  answer: ExplainAnswer,
  changes: Record<string, number>,
  peers: readonly string[],
  sizes: readonly number[],
): string {
  const problems: string[] = [];
  const compare = (what: string, said: unknown, was: unknown): void => {
    if (JSON.stringify(said) !== JSON.stringify(was))
      problems.push(`${what}: said ${JSON.stringify(said)}, was ${JSON.stringify(was)}`);
  };
  const sorted = (counters: Readonly<Record<string, number>>): [string, number][] =>
    Object.entries(counters).sort(([a], [b]) => (a < b ? -1 : 1));
  compare('counters', sorted(answer.counters), sorted(changes));
  if (sizes.length > 0) compare('peers', peersIn(answer), peers);
  compare(
    'datagrams',
    answer.datagrams.map(({ bytes }) => bytes),
    sizes.slice(0, 64),
  );
  compare('verdict', answer.verdict === 'sent', sizes.length > 0);
  return problems.join('; ');
}

// Layer 2.

const AGE = 300_000;

interface SwitchedOptions {
  readonly workers?: number;
  readonly perPeer?: number;
  readonly stormLimit?: number;
  readonly floods?: boolean;
  readonly floodUnknown?: boolean;
  readonly learning?: boolean;
  readonly hops?: readonly HostHopSpec[];
}

async function switched(options: SwitchedOptions = {}): Promise<Stage<SwitchRig>> {
  const { workers = 1, perPeer = 1024, stormLimit = 0, floods = true, floodUnknown = true } = options;
  const { learning = true, hops = [] } = options;
  const specs = [
    { name: 'peer-0', address: '192.168.77.2', mtu: 1464, networks: [0] },
    { name: 'peer-1', address: '192.168.77.3', mtu: 1000, networks: [0] },
    { name: 'peer-2', address: 'fd77::4', mtu: 1464, networks: [0] },
  ];
  const l2 = { age: AGE, macsPerPeer: perPeer, stormLimit, floods, floodUnknown, learning };
  const rig = await makeSwitch({ workers, peers: specs, l2, memory: { macs: 2048, neighbours: 2048, statics: 64 } });
  const stations = [0, 1].map((peer) => ({
    network: 0,
    mac: mac(theirMac(peer, 200)),
    address: address(their4(peer, 200)),
    ref: rig.refs[0][peer],
  }));
  for (const { mac: bytes, address: ip, ref } of stations) {
    rig.tables.setMac(0, bytes, ref);
    rig.tables.setNeighbour(0, ip, bytes, undefined, ref);
  }
  await rig.tables.commit();
  setOwnMacs(rig, 0, ourMac(250));
  setOwnMacs(rig, 1, ourMac(251));
  const peers = specs.flatMap((spec, i) =>
    spec.networks.map((network) => ({ ...spec, network, port: PORT, ref: rig.refs[network][i] })),
  );
  const explain = createExplain({
    memory: rig.memory,
    settings: {
      sourceCheck: 'peer',
      offloads: ALL_OFFLOADS,
      maxSegments: 128,
      mtu: 1450,
      address4: undefined,
      address6: undefined,
      l2: { networks: VNIS.map((vni) => ({ vni, mtu: 1450 })), ...l2 },
    },
    underlays: [true, true],
    devices: ['weft42', 'weft43'],
    mtus: [1450, 1450],
    addresses: [[`${our4(250)}/24`, `${our6(250)}/64`], []],
    applier: applierOf(peers, stations, hops),
    networkNamespace: '1',
    now: () => rig.now,
  });
  return { rig, explain };
}

const PEERS = ['peer-0', 'peer-1', 'peer-2'];

/** What the rig did with one frame. */
function happens(
  rig: SwitchRig,
  input: { readonly frame?: Uint8Array; readonly from?: number; readonly datagram?: Uint8Array },
) {
  rig.take();
  rig.changes();
  const sent = input.frame ? rig.out(0, plain(input.frame)) : [];
  if (input.datagram && input.from !== undefined) {
    rig.in([rig.from(input.from, [input.datagram])], rig.name(input.from).length === 16 ? 0 : 1);
  }
  return {
    changes: rig.changes(),
    peers: [...new Set(sent.map((one) => PEERS[rig.peerOf(one)]))].sort(),
    sizes: sent.map(({ bytes }) => bytes.length),
  };
}

t.test('layer 2: 10,000 random MACs end as explained, from both sides, while tables fill and age', async (t) => {
  const next = random(11);
  const { rig, explain } = await switched({ perPeer: 150 });
  const some = (most: number): number => Math.floor(next() * most);
  const wrong: string[] = [];
  const seen = new Map<string, number>();
  for (let i = 0; i < 10_000 && wrong.length < 5; i++) {
    rig.now = (rig.now + (i % 2500 === 2499 ? AGE + 1 : 40)) | 0;
    for (let turn = 0; turn < (i % 2500 === 2499 ? 40 : 0); turn++) rig.engine.turn(rig.now, 0);
    rig.engine.rest(rig.now); // whatever earlier errors have cost is there again, and what is to be swept now is swept
    const station = (peer: number): string =>
      next() < 0.5
        ? theirMac(peer, 1 + some(60))
        : `02:aa:0${peer}:00:${hex(Uint8Array.of(some(256), some(256))).replace(/(..)(..)/, '$1:$2')}`;
    const destination = [station(0), station(1), station(2), theirMac(some(2), 200), ourMac(1 + some(8)), BROADCAST][
      some(6)
    ];
    const size = 28 + some(1500);
    let answer: ExplainAnswer;
    let was: ReturnType<typeof happens>;
    let told: string;
    if (i % 2 === 0) {
      const source = ourMac(1 + some(8));
      const df = next() < 0.5;
      const body = packet(
        { source: our4(250), destination: '192.0.2.2', df, id: 0 },
        icmp(8, new Uint8Array(size - 28)),
      );
      const question = { to: destination, from: source, size, vni: 42, ...(df ? { df: 1 } : {}) };
      answer = explain(asking(question));
      was = happens(rig, { frame: ethernet({ source, destination }, 0x0800, body) });
      told = JSON.stringify(question);
    } else {
      const from = some(3);
      const source = station(next() < 0.9 ? from : some(3)); // now and then somebody else's: it moves
      const datagram = vxlan(
        42,
        ethernet({ source, destination: ourMac(1 + some(8)) }, OTHER, pattern(30 + some(1400))),
      );
      const question = { in: PEERS[from], packet: hex(datagram), vni: 42 };
      answer = explain(asking(question));
      was = happens(rig, { from, datagram });
      told = `${source} in from ${PEERS[from]}`;
    }
    const problem = differs(answer, was.changes, was.peers, was.sizes);
    if (problem !== '') wrong.push(`${i}: ${told}: ${problem}`);
    for (const name of [answer.verdict, ...Object.keys(answer.counters)]) seen.set(name, (seen.get(name) ?? 0) + 1);
  }
  t.same(wrong, []);
  const reached = ['sent', 'delivered', 'dropped', 'outbound.flooded', 'outbound.same_port', 'outbound.too_big'];
  reached.push('tables.macs_learned', 'tables.macs_moved', 'tables.macs_over_limit', 'outbound.fragments_made');
  for (const name of reached) t.ok((seen.get(name) ?? 0) > 0, `${name}: ${seen.get(name)}`);
  rig.audit();
});

t.test('layer 2: ARP and ND, asked and taught, end as explained', async (t) => {
  const next = random(13);
  const { rig, explain } = await switched();
  const some = (most: number): number => Math.floor(next() * most);
  const wrong: string[] = [];
  const seen = new Map<string, number>();
  for (let i = 0; i < 2000 && wrong.length < 5; i++) {
    rig.now = (rig.now + 10) | 0;
    rig.engine.turn(rig.now, 0);
    const [from, n] = [some(2), 1 + some(20)];
    const kind = some(4);
    let question: Record<string, string | number>;
    let input: Parameters<typeof happens>[1];
    if (kind < 2) {
      const target = next() < 0.2 ? their4(from, 200) : kind === 0 ? their4(from, n) : their6(from, n);
      const ask = target.includes(':')
        ? solicit(ourMac(2), our6(2), target)
        : arpFrame({ senderMac: ourMac(2), sender: our4(2), target });
      question = { packet: hex(ask), vni: 42 };
      input = { frame: ask };
    } else {
      const lie = next() < 0.1;
      const says = theirMac(from, n);
      const tells =
        kind === 2
          ? arpFrame({ senderMac: says, sender: lie ? their4(from, 200) : their4(from, n), target: our4(1) })
          : advertise(says, their6(from, n), O_FLAG);
      const datagram = vxlan(42, tells);
      question = { in: PEERS[from], packet: hex(datagram), vni: 42 };
      input = { from, datagram };
    }
    const answer = explain(asking(question));
    const { changes, peers, sizes } = happens(rig, input);
    const problem = differs(answer, changes, peers, sizes);
    if (problem !== '') wrong.push(`${i}: ${JSON.stringify(question)}: ${problem}`);
    for (const name of Object.keys(answer.counters)) seen.set(name, (seen.get(name) ?? 0) + 1);
  }
  t.same(wrong, []);
  const reached = ['outbound.answered', 'outbound.arp_answers_made', 'outbound.nd_answers_made', 'outbound.flooded'];
  for (const name of [...reached, 'tables.neighbours_learned', 'inbound.neighbour_conflict']) {
    t.ok((seen.get(name) ?? 0) > 0, `${name}: ${seen.get(name)}`);
  }
  rig.audit();
});

// Every reason to drop.

const outgoing = packet({ source: HOST_4, destination: '10.5.2.9', id: 0 }, udp({ payload: pattern(100) }));
const incoming = packet({ source: '10.5.2.9', destination: HOST_4, id: 0 }, udp({ payload: pattern(100) }));
const noRoute = packet({ source: HOST_4, destination: '10.99.0.1', id: 0 }, udp());

/** Does it. */
function happenIn(rig: Rig, { device, datagram: bytes, tos, stranger }: DropCase): void {
  if (device) rig.out(device);
  const name = stranger ? socketAddress(address(STRANGER), 8285) : rig.name(0);
  if (bytes) rig.in([{ name, bytes, ...(tos === undefined ? {} : { tos }) }]);
}

function happenBehind(rig: SwitchRig, { device, datagram: bytes, network = 0 }: DropCase): void {
  if (device) rig.out(network, device);
  if (bytes) rig.in([{ name: rig.name(0), bytes }]);
}

const SMALL: readonly PeerSpec[] = [
  { name: 'b', address: '192.168.77.2', mtu: 1472, subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'] },
  { name: 'c', address: '192.168.77.3', mtu: 1000, subnets: ['10.5.3.0/24'] },
];

/** By the reason: what only the kernel decides, or what else comes: how the rig is made to do it. */
const DEPENDS: Record<
  string,
  (
    stage: Stage<Rig>,
    flat: Stage<SwitchRig>,
  ) => { readonly answer: ExplainAnswer; readonly moved: Record<string, number> }
> = {
  'outbound.socket_refused': ({ rig, explain }) => {
    const answer = explain(asking({ to: '10.5.2.9' }));
    rig.sockets[0].failOnce = 1;
    rig.out(plain(outgoing));
    return { answer, moved: rig.changes() };
  },
  'outbound.path_mtu': ({ rig, explain }) => {
    const answer = explain(asking({ to: '10.5.2.9' }));
    rig.sockets[0].failOnce = 90;
    rig.out(plain(outgoing));
    return { answer, moved: rig.changes() };
  },
  'outbound.icmp_refused': ({ rig, explain }) => {
    const answer = explain(asking({ to: '10.99.0.1' }));
    rig.device.refuseWith(() => 5);
    rig.out(plain(noRoute));
    rig.device.refuseWith(() => 0);
    return { answer, moved: rig.changes() };
  },
  'inbound.device_refused': ({ rig, explain }) => {
    const answer = explain(asking({ in: 'b' }));
    rig.device.refuseWith(() => 5);
    rig.in([{ name: rig.name(0), bytes: incoming }]);
    rig.device.refuseWith(() => 0);
    return { answer, moved: rig.changes() };
  },
  'inbound.truncated': ({ rig, explain }) => {
    const answer = explain(asking({ in: 'b' }));
    rig.in([{ name: rig.name(0), bytes: new Uint8Array(66_000) }]);
    return { answer, moved: rig.changes() };
  },
  'outbound.storm': (_, { rig, explain }) => {
    const answer = explain(asking({ to: BROADCAST, vni: 42 }));
    rig.devices[0].load([plain(outFrame(BROADCAST))], 200);
    rig.drain();
    return { answer, moved: rig.changes() };
  },
  'outbound.answers_refused': (_, { rig, explain }) => {
    const answer = explain(asking({ to: their4(0, 200), proto: 'arp', vni: 42 }));
    rig.devices[0].refuseWith(() => 5);
    rig.out(0, plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: their4(0, 200) })));
    return { answer, moved: rig.changes() };
  },
};

t.test('every reason to drop is named before it comes, or what it depends on', async (t) => {
  const dropped = COUNTER_INFOS.filter(({ role }) => role === 'dropped').map(
    ({ direction, name }) => `${direction}.${name}`,
  );
  const covered = [...Object.keys(LAYER_3_DROPS), ...Object.keys(LAYER_2_DROPS), ...Object.keys(DEPENDS)];
  t.same([...new Set(covered)].sort(), dropped.toSorted(), 'none is left out');
  for (const [name, drop] of Object.entries(LAYER_3_DROPS)) {
    const { rig, explain } = await routed(SMALL, true);
    const answer = explain(asking(questionOf(drop, 'b')));
    happenIn(rig, drop);
    t.same(answer.counters, rig.changes(), `${name}: the counters that move`);
    t.same([answer.verdict, answer.reason], ['dropped', name.split('.')[1]], name);
    t.match(answer.text, new RegExp(`^dropped, ${answer.reason}: `), answer.text);
  }
  for (const [name, drop] of Object.entries(LAYER_2_DROPS)) {
    const { floods = true, floodUnknown = true } = drop;
    const { rig, explain } = await switched({ floods, floodUnknown });
    rig.out(0, plain(outFrame(theirMac()))); // who we are is known
    rig.changes();
    const answer = explain(asking(questionOf(drop, 'peer-0', VNIS)));
    happenBehind(rig, drop);
    t.same(answer.counters, rig.changes(), `layer 2, ${name}: the counters that move`);
    t.same([answer.verdict, answer.reason], ['dropped', name.split('.')[1]], `layer 2, ${name}`);
  }
  for (const [name, happen] of Object.entries(DEPENDS)) {
    const flat = await switched({ stormLimit: 100 });
    hear(flat.rig);
    const stage = await routed(SMALL, true);
    const { answer, moved } = happen(stage, flat);
    t.ok(
      answer.depends.some(({ counter, when }) => counter === name && when.length > 0),
      `${name} is told as what may come`,
    );
    t.ok((moved[name] ?? 0) > 0, `${name} is what comes`);
  }
});

t.test('any bytes at all end as explained', async (t) => {
  const next = random(17);
  const some = (most: number): number => Math.floor(next() * most);
  /** A case with some bytes changed or cut, and now and then another virtio header. */
  const spoilt = (drop: DropCase): DropCase => {
    const spoil = (bytes: Uint8Array): Uint8Array => {
      const copy = bytes.slice(0, next() < 0.2 ? some(bytes.length + 1) : bytes.length);
      for (let n = some(4); n > 0 && copy.length > 0; n--) copy[some(Math.min(copy.length, 60))] = some(256);
      return copy;
    };
    if (drop.datagram) return { ...drop, datagram: spoil(drop.datagram) };
    const { vnet, bytes } = drop.device ?? plain(outgoing);
    const header = next() < 0.3 ? spoil(vnet) : vnet;
    return { ...drop, device: { bytes: spoil(bytes), vnet: header.length === 10 ? header : vnet } };
  };
  const { rig, explain } = await routed(SMALL, true);
  const flat = await switched();
  const whole = [{ device: plain(outgoing) }, { datagram: incoming }];
  const routedCases: readonly DropCase[] = [...Object.values(LAYER_3_DROPS), ...whole, ...whole, ...whole];
  const switchedCases: readonly DropCase[] = [
    ...Object.values(LAYER_2_DROPS),
    { device: plain(outFrame(theirMac(0, 200))) },
    { device: plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: their4(0, 200) })) },
    { device: plain(solicit(ourMac(), our6(), their6())) },
  ];
  const wrong: string[] = [];
  const compare = (answer: ExplainAnswer, was: Record<string, number>, question: object): void => {
    const sorted = (counters: object): string => JSON.stringify(Object.entries(counters).sort());
    if (sorted(answer.counters) !== sorted(was)) {
      wrong.push(`${JSON.stringify(question)}: said ${sorted(answer.counters)}, was ${sorted(was)}`);
    }
  };
  for (let i = 0; i < 3000 && wrong.length < 3; i++) {
    const drop = spoilt(routedCases[some(routedCases.length)]);
    const question = questionOf(drop, 'b');
    rig.engine.rest(0);
    const answer = explain(asking(question));
    happenIn(rig, drop);
    compare(answer, rig.changes(), question);
    const frame = spoilt(switchedCases[some(switchedCases.length)]);
    const asked = questionOf(frame, 'peer-0', VNIS);
    flat.rig.engine.rest(flat.rig.now);
    const said = flat.explain(asking(asked));
    happenBehind(flat.rig, frame);
    compare(said, flat.rig.changes(), asked);
  }
  t.same(wrong, []);
  rig.audit();
  flat.rig.audit();
});

t.test("several workers that have learned different things: each one's answer", async (t) => {
  const { rig, explain } = await switched({ workers: 2, floodUnknown: false });
  const second = rig.other(1, { floodUnknown: false });
  hear(second, 0); // the first has not read its ring yet
  const question = asking({ to: theirMac(), vni: 42 });
  const before = explain(question);
  t.equal(before.reason, 'unknown_unicast', 'by the first');
  t.match(before.others, [{ worker: 1, text: /^sent to peer peer-0/ }]);
  rig.engine.turn(rig.now, 0);
  const after = explain(question);
  t.equal(after.verdict, 'sent');
  t.same(after.others, []);
  t.match(after.entries, [{ table: 'macs', key: theirMac(), origin: 'learned', ageSeconds: 0, peer: 'peer-0' }]);
});

t.test('a request in a VLAN: the neighbours of the network without tag are others', async (t) => {
  const { rig, explain } = await switched();
  hear(rig, 0);
  const ask = arpFrame({ senderMac: ourMac(), sender: our4(), target: their4() });
  const plainly = explain(asking({ packet: hex(ask), vni: 42 }));
  t.equal(plainly.entries[0].table, 'neighbours');
  const tagged = explain(asking({ packet: hex(concat(ask.slice(0, 12), [0x81, 0, 0, 5], ask.slice(12))), vni: 42 }));
  t.same(
    tagged.entries.map(({ table }) => table),
    ['floods'],
  );
});

t.test("flannel's vxlan: the kernel's next hop, its MAC, and whose that is", async (t) => {
  const hop = { prefix: '10.5.2.0/24', via: '10.5.2.0', device: 'weft42', mac: mac(theirMac(0, 200)) };
  const { explain } = await switched({ learning: false, floods: false, hops: [hop] });
  const answer = explain(asking({ to: '10.5.2.7', vni: 42 }));
  t.match(answer, { verdict: 'sent', peers: [{ name: 'peer-0' }], packet: { destinationMac: theirMac(0, 200) } });
  t.match(answer.entries, [
    { table: 'neighbours', key: '10.5.2.7', entry: theirMac(0, 200), text: /next hop to 10.5.2.7 is 10.5.2.0/ },
    { table: 'macs', key: theirMac(0, 200), origin: 'registry', peer: 'peer-0' },
  ]);
  const nowhere = explain(asking({ to: '10.5.9.9', vni: 42 }));
  t.match(nowhere, { verdict: 'dropped', reason: 'not_flooded', notes: [/the host asks for it first$/] });
});

// What it leaves behind.

/** The memory without the regions of the dry engine, as a string that two of them can be compared by. */
function restOf(memory: EngineMemory): string {
  const { dry } = memory.layout;
  const whole = createHash('sha256');
  whole.update(memory.u8.subarray(0, dry.counters));
  return whole.digest('hex');
}

t.test('it leaves no trace outside its own regions, and everything inside its guards', async (t) => {
  const { rig, explain } = await routed(SMALL, true);
  const flat = await switched({ perPeer: 4, stormLimit: 100 });
  for (let n = 1; n < 8; n++) hear(flat.rig, n % 3, 0, theirMac(n % 3, n));
  for (const { memory, layout } of [rig, flat.rig]) {
    t.ok(memory.layout.dry.counters > memory.layout.workers[0].counters, 'they lie behind all others');
    t.equal(layout, memory.layout.workers[0]);
  }
  const before = [restOf(rig.memory), restOf(flat.rig.memory)];
  for (const drop of Object.values(LAYER_3_DROPS)) explain(asking(questionOf(drop, 'b')));
  for (const drop of Object.values(LAYER_2_DROPS)) flat.explain(asking(questionOf(drop, 'peer-0', VNIS)));
  for (let n = 0; n < 300; n++) {
    explain(asking({ to: `10.5.${n & 3}.${n & 255}`, size: 28 + n * 10, ttl: n & 3 }));
    explain(asking({ in: n & 1 ? 'b' : '192.0.2.7', size: 28 + n * 10 }));
    flat.explain(asking({ to: theirMac(n % 4, n % 50), size: 28 + n * 10, vni: 42 }));
    flat.explain(asking({ in: PEERS[n % 3], from: theirMac(n % 4, n % 50), vni: 42 }));
    flat.explain(asking({ to: their4(n % 3, n % 9), proto: 'arp', vni: 42 }));
  }
  t.same([restOf(rig.memory), restOf(flat.rig.memory)], before);
  t.same(rig.changes(), {}, 'no counter that anybody reads');
  rig.audit();
  flat.rig.audit();
  // And forwarding goes on as if nobody had asked.
  t.equal(rig.out(plain(outgoing)).length, 1);
});

t.test('memory does not grow with the number of questions', async (t) => {
  const { explain } = await routed(SMALL);
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const ask = async (): Promise<void> => {
    for (let n = 0; n < 5000; n++) explain(asking({ to: `10.5.2.${n & 255}`, size: 28 + (n % 2000) }));
    for (let round = 0; round < 3; round++) {
      collect();
      await setImmediate(); // buffers are freed behind the collector's back
    }
  };
  await ask();
  const before = process.memoryUsage();
  await ask();
  await ask();
  const after = process.memoryUsage();
  t.ok(after.heapUsed - before.heapUsed < 2 ** 20, `heap: ${after.heapUsed - before.heapUsed} bytes more`);
  t.ok(after.arrayBuffers - before.arrayBuffers < 2 ** 22, `buffers: ${after.arrayBuffers - before.arrayBuffers} more`);
});

t.test('questions without end get a quarter of the time, and all of them an answer', async (t) => {
  let done = 0;
  const work = paced((milliseconds: number) => {
    const until = performance.now() + milliseconds;
    while (performance.now() < until);
    if (milliseconds === 1) throw new RangeError('nonsense');
    return ++done;
  });
  const begun = performance.now();
  t.same((await Promise.all([work(40), work(40), work(40)])).sort(), [1, 2, 3]);
  const took = performance.now() - begun;
  t.ok(took >= 40 + ((80 - 20) * 4 - 80) / 2, `120 ms of work took ${Math.round(took)} ms`);
  await t.rejects(work(1), { name: 'RangeError', message: 'nonsense' });
});

t.test('a question that makes no sense: one line', async (t) => {
  const { explain } = await routed(SMALL);
  const { explain: flat } = await switched();
  const refused: readonly (readonly [Explain, Record<string, string | number>, RegExp])[] = [
    [explain, {}, /^what is to be explained/],
    [explain, { to: 'nobody' }, /^"nobody" is no address, and no peer in force has that name$/],
    [explain, { to: '10.5.2.9', size: 5 }, /^size: such a packet has at least 28 bytes$/],
    [explain, { to: '10.5.2.9', size: 70_000 }, /^size: "70000": expected a number, 1 to 65535$/],
    [explain, { to: '10.5.2.9', ttl: -1 }, /^ttl: "-1": expected a number, 0 to 255$/],
    [explain, { to: '10.5.2.9', colour: 'red' }, /^no such parameter: colour/],
    [explain, { to: '10.5.2.9', packet: '45' }, /^to: a packet that is given says that itself/],
    [explain, { packet: '45'.repeat(70_000) }, /^packet: more than 65535 bytes$/],
    [explain, { packet: '4' }, /^packet: expected bytes in hexadecimal$/],
    [explain, { packet: '45', vnet: '00' }, /^vnet: expected 10 bytes, not 1$/],
    [explain, { to: ourMac() }, /^a MAC decides nothing in layer 3$/],
    [explain, { to: '10.5.2.9', proto: 'arp' }, /^proto: there is no ARP/],
    [explain, { to: '10.5.2.9', proto: 'gre' }, /^proto: "gre": expected icmp, udp, tcp, arp or a number$/],
    [explain, { to: '10.5.2.9', vni: 42 }, /^vni: there is none in layer 3$/],
    [explain, { to: '10.5.2.9', from: 'fd00::1' }, /are of two families$/],
    [explain, { to: '10.5.2.9', from: 'b' }, /^from: expected an address or a MAC$/],
    [explain, { in: 'b', from: 'c' }, /^from: expected an address or a MAC$/],
    [explain, { in: 'b', size: 65_508 }, /^in: no datagram over IPv4 carries 65508 bytes, only 65507$/],
    [explain, { in: ourMac() }, /^in: expected a peer or an underlay address, not a MAC$/],
    [explain, { to: 'c', from: 'fd00::1' }, /^peer c owns no IPv6 subnet: give an address$/],
    [flat, { to: theirMac(), vni: 9 }, /^vni 9 is none of ours: 42, 43$/],
    [flat, { to: '02:00:00:00:00:99' }, /^vni: say in which network: 42, 43$/],
    [flat, { to: 'peer-2', vni: 42 }, /^nothing is known to be behind peer peer-2/],
    [flat, { to: 'peer-0', mac: '1:2', vni: 42 }, /^mac: "1:2" is not a MAC address$/],
  ];
  for (const [ask, question, message] of refused) {
    t.throws(() => ask(asking(question)), { name: 'RangeError', message }, JSON.stringify(question));
  }
  const twice = new URLSearchParams('to=10.5.2.9&to=10.5.2.8');
  t.throws(() => explain(twice), { name: 'RangeError', message: 'to: said twice' });
});

t.test('all that could be set up before still fits below 2 GiB', async (t) => {
  const largest = { workers: 8, peers: 32_768, routeNodes: 16, networks: MAX_NETWORKS, senders: MAX_SENDERS };
  const tables = { macs: 1_000_000, neighbours: 1_000_000, statics: 131_072 };
  t.ok(layoutFor({ ...largest, ...tables }).bytes < 2 ** 31 - 1);
});
