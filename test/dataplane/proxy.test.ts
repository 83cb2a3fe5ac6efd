/**
 * The ARP and ND proxy by itself, on an engine memory with real tables. The proxy sees the memory through a view and kernels
 * that refuse to reach outside the frame and, for writes, the scratch area. test/dataplane/l2-proxy.test.ts has it in the
 * walk.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import t, { type Test } from 'tap';
import { addressWords } from '../../src/dataplane/addresses.js';
import { COUNTER_INFOS, conservation, readCounter } from '../../src/dataplane/counters.js';
import { LearnedMacs, LOCAL, macHigh, macLow, StaticMacTable } from '../../src/dataplane/macs.js';
import {
  LearnedNeighbours,
  NEIGHBOUR_FLAGS,
  NEIGHBOUR_MAC_HIGH,
  NEIGHBOUR_MAC_LOW,
  NEIGHBOUR_REF,
  ROUTER,
  ROUTER_KNOWN,
  StaticNeighbourTable,
  scopeOf,
} from '../../src/dataplane/neighbours.js';
import { PeerSlots } from '../../src/dataplane/peers.js';
import { ANSWERED, DROP, NeighbourProxy, PASS } from '../../src/dataplane/proxy.js';
import { CheckedDevice } from '../../src/io/checked.js';
import { EIO } from '../../src/io/device.js';
import { type Kernels, loadKernels } from '../../src/io/kernels.js';
import { EngineMemory, GAUGES, HEADROOM, MAC_BYTES } from '../../src/io/memory.js';
import { MemoryDevice } from '../../src/io/memory-device.js';
import { headerLength } from '../../src/packet/ethernet.js';
import {
  type ArpSpec,
  advertise,
  advertisement,
  arpFrame,
  BROADCAST,
  type EthernetSpec,
  ethernet,
  frame,
  linkLayer,
  mac,
  macText,
  NOBODY,
  O_FLAG,
  padded,
  R_FLAG,
  routerAdvertisement,
  routerSolicitation,
  S_FLAG,
  SERVICE_VLAN,
  solicit,
  solicitation,
  solicitedNode,
  VLAN,
} from '../lib/frames.js';
import {
  add,
  address,
  changed,
  checksum,
  concat,
  extension,
  flip,
  hex,
  put,
  random,
  udp,
  vnet,
} from '../lib/packets.js';

const AGE = 300_000;
/** A host of ours, one behind each of two peers, and what else may call itself a MAC. */
const OURS = '02:00:00:00:01:01';
const THEIRS = '02:aa:bb:cc:02:01';
const OTHERS = '02:aa:bb:cc:03:01';
const OUR4 = '10.7.0.1';
const THEIR4 = '10.7.2.1';
const OUR6 = 'fd07::1';
const THEIR6 = 'fd07::1234:5678';
const ALL_NODES = { ip: 'ff02::1', mac: '33:33:00:00:00:01' };

/** Where a test's frame lies: at an odd place, after the arena's start. */
const OFFSET = 4099;
const LARGEST = 200;

/** The bytes that the proxy may touch. */
interface Reach {
  /** The frame: where it is, and how long. */
  at: number;
  length: number;
  readonly scratch: number;
  readonly vnetIn: number;
}

function mayRead(reach: Reach, at: number, bytes: number): void {
  const inside = (from: number, length: number): boolean => at >= from && at + bytes <= from + length;
  if (inside(reach.at, reach.length) || inside(reach.scratch, LARGEST) || inside(reach.vnetIn, 10)) return;
  throw new Error(`read of ${bytes} bytes at ${at - reach.at} of a frame of ${reach.length}`);
}

function mayWrite(reach: Reach, at: number, bytes: number): void {
  if (at >= reach.scratch && at + bytes <= reach.scratch + LARGEST) return;
  throw new Error(`write of ${bytes} bytes outside scratch`);
}

/** A view of the memory that throws where a read or a write is out of reach. */
function boundedView(memory: EngineMemory, reach: Reach): DataView {
  const real = new DataView(memory.memory.buffer);
  return Object.assign(new DataView(memory.memory.buffer), {
    getUint8(at: number): number {
      mayRead(reach, at, 1);
      return real.getUint8(at);
    },
    getUint16(at: number, little?: boolean): number {
      mayRead(reach, at, 2);
      return real.getUint16(at, little);
    },
    getInt32(at: number, little?: boolean): number {
      mayRead(reach, at, 4);
      return real.getInt32(at, little);
    },
    setUint8(at: number, value: number): void {
      mayWrite(reach, at, 1);
      real.setUint8(at, value);
    },
    setUint16(at: number, value: number, little?: boolean): void {
      mayWrite(reach, at, 2);
      real.setUint16(at, value, little);
    },
    setInt32(at: number, value: number, little?: boolean): void {
      mayWrite(reach, at, 4);
      real.setInt32(at, value, little);
    },
    setUint32(at: number, value: number, little?: boolean): void {
      mayWrite(reach, at, 4);
      real.setUint32(at, value, little);
    },
  });
}

interface Given {
  readonly network?: number;
  readonly now?: number;
  readonly vnet?: Uint8Array;
}

interface Got {
  /** `pass`, `drop` or `answered`. */
  readonly verdict: string;
  /** Frames written to the device. */
  readonly answers: readonly Uint8Array[];
  /** Counters that changed, but for those of the tables. */
  readonly counted: Record<string, number>;
}

interface Stage {
  readonly memory: EngineMemory;
  readonly device: MemoryDevice;
  readonly macs: LearnedMacs;
  /** Two peers. */
  readonly refs: readonly number[];
  out(bytes: Uint8Array, given?: Given): Got;
  in(ref: number, bytes: Uint8Array, given?: Given): Got;
  /** What the registry says. */
  fix(ip: string, mac: string, ref: number, flags?: number, network?: number): void;
  fixMac(mac: string, ref: number): void;
  /** A frame came from a MAC. */
  see(mac: string, ref: number, now?: number): void;
  /** Whom a learned entry names: `MAC ref flags`, or ''. */
  known(ip: string, now?: number, network?: number, tags?: EthernetSpec['tags']): string;
}

function makeStage(statics = 64): Stage {
  const options = { workers: 1, peers: 8, routeNodes: 16, networks: 2, macs: 1024, neighbours: 256, statics };
  const memory = EngineMemory.create(options);
  const layout = memory.layout.workers[0];
  const reach: Reach = { at: 0, length: 0, scratch: layout.scratch, vnetIn: layout.vnetIn };
  const view = boundedView(memory, reach);
  const real = loadKernels(memory);
  const kernels: Kernels = {
    ...real,
    sum(at, length, seed) {
      mayRead(reach, at, length);
      return real.sum(at, length, seed);
    },
  };
  const limits = { age: AGE, perPeer: 200 };
  const macs = new LearnedMacs(memory, 0, limits, undefined);
  const neighbours = new LearnedNeighbours(memory, 0, limits, undefined);
  const proxy = new NeighbourProxy(memory, layout, kernels, view, neighbours, macs);
  const version = 1;
  proxy.useTables(version);
  const staticNeighbours = new StaticNeighbourTable(memory, memory.layout.tables[version]);
  const staticMacs = new StaticMacTable(memory, memory.layout.tables[version]);
  const peers = new PeerSlots(memory);
  const refs = [2, 3].map((i) =>
    peers.add({ address: address(`192.168.77.${i}`), port: 4789, mtu: 1464, ecn: true, network: 0 }),
  );
  const device = new MemoryDevice(memory, layout);
  const checked = new CheckedDevice(device, layout);
  let answers: Uint8Array[] = [];
  device.onPush = ({ bytes, vnet: header }) => {
    if (header.some((byte) => byte !== 0)) throw new Error(`virtio header ${hex(header)}`);
    answers.push(bytes);
  };
  const counters = (): number[] => COUNTER_INFOS.map((_, id) => readCounter(memory, id));
  const verdicts = new Map([
    [PASS, 'pass'],
    [DROP, 'drop'],
    [ANSWERED, 'answered'],
  ]);

  const give = (bytes: Uint8Array, given: Given, what: (at: number, l2: number) => number): Got => {
    const at = layout.arena + OFFSET;
    // What follows the frame is another's: it must not matter, and not be read.
    memory.u8.fill(0xee, at - 64, at + 2048);
    memory.u8.set(bytes, at);
    memory.u8.set(given.vnet ?? new Uint8Array(10), layout.vnetIn);
    reach.at = at;
    reach.length = bytes.length;
    const l2 = headerLength(new DataView(bytes.buffer, bytes.byteOffset), 0, bytes.length);
    const before = counters();
    answers = [];
    const verdict = verdicts.get(what(at, l2)) ?? 'nonsense';
    if (hex(memory.u8.slice(at, at + bytes.length)) !== hex(bytes)) throw new Error('the frame was changed');
    const counted: Record<string, number> = {};
    counters().forEach((value, id) => {
      const { direction, name } = COUNTER_INFOS[id];
      if (value !== before[id] && direction !== 'tables') counted[`${direction}.${name}`] = value - before[id];
    });
    return { verdict, answers, counted };
  };

  const words = (ip: string): readonly number[] => [...addressWords(address(ip))];
  return {
    memory,
    device,
    macs,
    refs,
    out: (bytes, given = {}) =>
      give(bytes, given, (at, l2) => proxy.outbound(checked, at, bytes.length, l2, given.network ?? 0, given.now ?? 0)),
    in: (ref, bytes, given = {}) =>
      give(bytes, given, (at, l2) => proxy.inbound(at, bytes.length, l2, given.network ?? 0, ref, given.now ?? 0)),
    fix(ip, owner, ref, flags = 0, network = 0) {
      staticNeighbours.add(addressWords(address(ip)), network, macLow(mac(owner)), macHigh(mac(owner)), flags, ref);
    },
    fixMac: (owner, ref) => staticMacs.add(macLow(mac(owner)), macHigh(mac(owner)), 0, ref),
    see: (owner, ref, now = 0) => macs.learn(macLow(mac(owner)), macHigh(mac(owner)), 0, ref, now),
    known(ip, now = 0, network = 0, tags = []) {
      const [w0, w1, w2, w3] = words(ip);
      const [outer = 0, inner = 0] = tags.map(([, tag]) => tag & 0xfff);
      const at = neighbours.find(w0, w1, w2, w3, scopeOf(network, outer, inner), now);
      if (at < 0) return '';
      const entry = new DataView(memory.memory.buffer, at * 4, 64);
      const bytes = Uint8Array.from({ length: 6 }, (_, i) => entry.getUint8(NEIGHBOUR_MAC_LOW * 4 + i));
      if (entry.getInt32(NEIGHBOUR_MAC_HIGH * 4, true) >> 16 !== 0) throw new Error('more than 16 bits of MAC');
      const ref = entry.getInt32(NEIGHBOUR_REF * 4, true);
      const where = ref === LOCAL ? 'local' : `peer${refs.indexOf(ref)}`;
      return `${macText(bytes)} ${where} ${entry.getInt32(NEIGHBOUR_FLAGS * 4, true)}`;
    },
  };
}

/** A frame from our host, or from theirs, unless `change` says otherwise. */
const ours = (change: Partial<ArpSpec> = {}, ether: Partial<EthernetSpec> = {}): Uint8Array =>
  arpFrame({ senderMac: OURS, sender: OUR4, target: THEIR4, ...change }, ether);
const theirs = (change: Partial<ArpSpec> = {}, ether: Partial<EthernetSpec> = {}): Uint8Array =>
  arpFrame({ senderMac: THEIRS, sender: THEIR4, target: OUR4, ...change }, ether);

const passed: Got = { verdict: 'pass', answers: [], counted: {} };
const dropped = (counter: string): Got => ({ verdict: 'drop', answers: [], counted: { [counter]: 1 } });
const ARP_ANSWER = { 'outbound.arp_answers_made': 1, 'outbound.answers_sent': 1 };
const ND_ANSWER = { 'outbound.nd_answers_made': 1, 'outbound.answers_sent': 1 };
const GONE = { 'outbound.answered': 1 };

/** `got` is the answer, and the request goes no further. */
function answered(t: Test, got: Got, made: Record<string, number>, answer: Uint8Array, what: string): void {
  t.same(got.answers.map(hex), [hex(answer)], what);
  t.equal(got.verdict, 'answered', what);
  t.same(got.counted, { ...made, ...GONE }, what);
}

/** `got` is the answer, and the request goes on. */
function answeredToo(t: Test, got: Got, made: Record<string, number>, answer: Uint8Array, what: string): void {
  t.same(got.answers.map(hex), [hex(answer)], what);
  t.equal(got.verdict, 'pass', what);
  t.same(got.counted, made, what);
}

const arpAnswer = (owner: string, ip: string, to: string, asker: string, tags: EthernetSpec['tags'] = []): Uint8Array =>
  arpFrame({ operation: 2, senderMac: owner, sender: ip, targetMac: to, target: asker }, { tags });

const ndAnswer = (
  owner: string,
  ip: string,
  flags: number,
  to: { readonly ip: string; readonly mac: string },
  tags: EthernetSpec['tags'] = [],
): Uint8Array => advertise(owner, ip, flags, to, { tags });

const TAGS: readonly NonNullable<EthernetSpec['tags']>[] = [
  [],
  [[VLAN, 0xe005]],
  [
    [SERVICE_VLAN, 7],
    [VLAN, 9],
  ],
];

// --- Bytes made by hand (by scapy) ---

t.test('answers, byte for byte', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  stage.fix(THEIR6, THEIRS, stage.refs[0], ROUTER | ROUTER_KNOWN);
  const out = (text: string): Got => stage.out(Uint8Array.from(Buffer.from(text, 'hex')));
  const arp = out('ffffffffffff020000000101080600010800060400010200000001010a0700010000000000000a070201');
  t.same(arp.answers.map(hex), [
    '02000000010102aabbcc02010806000108000604000202aabbcc02010a0702010200000001010a070001',
  ]);
  const nd = out(
    '3333ff34567802000000010186dd6000000000203afffd070000000000000000000000000001ff0200000000000000000001ff345678' +
      '8700bd3400000000fd0700000000000000000000123456780101020000000101',
  );
  t.same(nd.answers.map(hex), [
    '02000000010102aabbcc020186dd6000000000203afffd070000000000000000000012345678fd070000000000000000000000000001' +
      '88002cbac0000000fd070000000000000000000012345678020102aabbcc0201',
  ]);
});

const PYTHON = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3';
/** Requests and the answers to them, built by scapy: lines of `name request answer`. */
const SCAPY = `
from scapy.layers.l2 import Ether, ARP, Dot1Q, Dot1AD
from scapy.layers.inet6 import IPv6, ICMPv6ND_NS, ICMPv6ND_NA, ICMPv6NDOptSrcLLAddr, ICMPv6NDOptDstLLAddr
ours, theirs, group = '${OURS}', '${THEIRS}', '${solicitedNode(THEIR6).mac}'
def line(name, request, answer): print(name, bytes(request).hex(), bytes(answer).hex())
def stack(first, tags, rest):
    for tag in tags: first = first / tag
    return first / rest
for name, tags in (('plain', []), ('tagged', [Dot1Q(vlan=5, prio=7)]), ('twice', [Dot1AD(vlan=7), Dot1Q(vlan=9)])):
    for ip in ('${OUR4}', '0.0.0.0'):
        line(f'arp-{name}-{ip}',
            stack(Ether(src=ours, dst='ff:ff:ff:ff:ff:ff'), tags,
                ARP(op='who-has', hwsrc=ours, psrc=ip, hwdst='00:00:00:00:00:00', pdst='${THEIR4}')),
            stack(Ether(src=theirs, dst=ours), tags, ARP(op='is-at', hwsrc=theirs, psrc='${THEIR4}', hwdst=ours, pdst=ip)))
    ip = '${OUR6}'
    for options in (True, False):
        request = IPv6(src=ip, dst='${solicitedNode(THEIR6).ip}') / ICMPv6ND_NS(tgt='${THEIR6}')
        if options: request = request / ICMPv6NDOptSrcLLAddr(lladdr=ours)
        line(f'nd-{name}-{options}', stack(Ether(src=ours, dst=group), tags, request),
            stack(Ether(src=theirs, dst=ours), tags, IPv6(src='${THEIR6}', dst=ip)
                / ICMPv6ND_NA(R=1, S=1, O=0, tgt='${THEIR6}') / ICMPv6NDOptDstLLAddr(lladdr=theirs)))
    line(f'dad-{name}',
        stack(Ether(src=ours, dst=group), tags,
            IPv6(src='::', dst='${solicitedNode(THEIR6).ip}') / ICMPv6ND_NS(tgt='${THEIR6}')),
        stack(Ether(src=theirs, dst='33:33:00:00:00:01'), tags, IPv6(src='${THEIR6}', dst='ff02::1')
            / ICMPv6ND_NA(R=1, S=0, O=0, tgt='${THEIR6}') / ICMPv6NDOptDstLLAddr(lladdr=theirs)))
`;

t.test('answers as scapy builds them', async (t) => {
  const { status, stdout, stderr } = spawnSync(PYTHON, ['-c', SCAPY], { encoding: 'utf8', timeout: 60_000 });
  if (status !== 0 && (status === null || stderr.includes("No module named 'scapy'"))) {
    t.comment('no scapy here');
    return;
  }
  if (status !== 0) throw new Error(`scapy: ${stderr.trim().split('\n').at(-1)}`);
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  stage.fix(THEIR6, THEIRS, stage.refs[0], ROUTER | ROUTER_KNOWN);
  const lines = stdout.trim().split('\n');
  t.equal(lines.length, 15);
  for (const line of lines) {
    const [name, request, answer] = line.split(' ');
    t.same(stage.out(Uint8Array.from(Buffer.from(request, 'hex'))).answers.map(hex), [answer], name);
  }
});

// --- ARP ---

t.test('ARP: not for IPv4 over Ethernet, or another operation: untouched', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  // Each would be answered, or be a conflict, if it were looked at.
  const cases: readonly (readonly [string, Partial<ArpSpec>])[] = [
    ['other hardware', { hardware: 6 }],
    ['other hardware, other lengths', { hardware: 32, hardwareLength: 20 }],
    ['another protocol', { protocol: 0x86dd, protocolLength: 16 }],
    ['RARP', { operation: 3 }],
    ['InARP', { operation: 8, sender: THEIR4 }],
    ['operation 0', { operation: 0, sender: THEIR4 }],
  ];
  for (const [what, change] of cases) {
    t.same(stage.out(ours(change)), passed, what);
    t.same(stage.in(stage.refs[1], ours(change)), passed, what);
  }
  t.equal(stage.known(OUR4), '', 'nothing was learned');
  t.same(stage.out(ours({ hardware: 6 }).subarray(0, 20)), passed, 'other hardware, shorter');
  t.same(stage.out(ethernet({ source: OURS, destination: BROADCAST }, 0x0800, new Uint8Array(28))), passed, 'IPv4');
});

t.test('ARP: wrong lengths', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  const good = ours();
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['hardware length', ours({ hardwareLength: 8 })],
    ['protocol length', ours({ protocolLength: 16 })],
    ['in a reply', ours({ operation: 2, protocolLength: 0 })],
    ...Array.from({ length: 28 }, (_, n) => [`cut to ${n}`, good.subarray(0, 14 + n)] as const),
    ['tagged and cut', ours({}, { tags: [[VLAN, 5]] }).subarray(0, 45)],
  ];
  for (const [what, bytes] of cases) {
    t.same(stage.out(bytes), dropped('outbound.bad_arp'), what);
    t.same(stage.in(stage.refs[1], bytes), dropped('inbound.bad_arp'), what);
  }
  t.equal(stage.known(OUR4), '');
});

t.test('ARP: who teaches', async (t) => {
  const cases: readonly (readonly [string, Partial<ArpSpec>, Partial<EthernetSpec>, boolean])[] = [
    ['a request', {}, {}, true],
    ['a unicast request', {}, { destination: OURS }, true],
    ['a reply', { operation: 2, targetMac: OURS }, {}, true],
    ['a gratuitous request', { target: THEIR4 }, {}, true],
    ['a gratuitous reply', { operation: 2, target: THEIR4, targetMac: BROADCAST }, {}, true],
    ['a tagged one', {}, { tags: TAGS[2] }, true],
    ['one that speaks for another', {}, { source: OTHERS }, false],
    ['one that calls itself a group', { senderMac: '03:00:00:00:00:01' }, {}, false],
    ['one that calls itself nobody', { senderMac: NOBODY }, {}, false],
    ['a probe', { sender: '0.0.0.0' }, {}, false],
    ['loopback', { sender: '127.0.0.1' }, {}, false],
    ['multicast', { sender: '224.0.0.251' }, {}, false],
    ['broadcast', { sender: '255.255.255.255' }, {}, false],
  ];
  for (const [what, change, ether, teaches] of cases) {
    const stage = makeStage();
    const ip = change.sender ?? THEIR4;
    t.same(stage.in(stage.refs[0], theirs(change, ether)), passed, what);
    t.equal(stage.known(ip, 0, 0, ether.tags), teaches ? `${THEIRS} peer0 0` : '', `${what}, from a peer`);
    t.equal(stage.known(ip, 0, 1, ether.tags), '', 'in that network only');
    t.equal(stage.known(ip, 0, 0, [[VLAN, 77]]), '', 'in that VLAN only');
    t.same(stage.out(theirs(change, ether)), passed, what);
    t.equal(stage.known(ip, 0, 0, ether.tags), teaches ? `${THEIRS} local 0` : '', `${what}, from our side`);
    t.same(stage.in(0, theirs({ ...change, target: '10.7.0.99' }, ether)), passed, what);
    t.equal(stage.known(ip, 0, 0, ether.tags), teaches ? `${THEIRS} local 0` : '', 'a stranger teaches nothing');
  }
  const stage = makeStage();
  stage.in(stage.refs[0], padded(theirs()));
  stage.in(stage.refs[1], theirs({ senderMac: OTHERS }), { now: 1000 });
  t.equal(stage.known(THEIR4, 1000), `${OTHERS} peer1 0`, 'the last one is believed');
  t.equal(stage.known(THEIR4, 1000 + AGE), `${OTHERS} peer1 0`);
  t.equal(stage.known(THEIR4, 1001 + AGE), '', 'and forgotten');
});

t.test('ARP: a sender that lies about a static neighbour', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  const lies: readonly (readonly [string, Uint8Array])[] = [
    ['a request', ours({ sender: THEIR4, target: '10.7.0.9' })],
    ['a reply', ours({ operation: 2, sender: THEIR4, target: '10.7.0.9', targetMac: OTHERS })],
    ['gratuitously', ours({ sender: THEIR4 })],
    ['a gratuitous reply', ours({ operation: 2, sender: THEIR4, targetMac: BROADCAST })],
    ["under the owner's MAC", ours({ sender: THEIR4, target: '10.7.0.9' }, { source: THEIRS })],
    ['nobody', ours({ sender: THEIR4, senderMac: NOBODY })],
    ['only the last byte differs', ours({ sender: THEIR4, senderMac: '02:aa:bb:cc:02:02' })],
    ['only the first byte differs', ours({ sender: THEIR4, senderMac: '06:aa:bb:cc:02:01' })],
  ];
  for (const [what, bytes] of lies) {
    t.same(stage.out(bytes), dropped('outbound.neighbour_conflict'), what);
    t.same(stage.in(stage.refs[1], bytes), dropped('inbound.neighbour_conflict'), what);
    t.same(stage.in(0, bytes), dropped('inbound.neighbour_conflict'), `${what}, from a stranger`);
  }
  t.same(stage.out(ours({ sender: THEIR4, target: '10.7.0.9' }), { network: 1 }), passed, 'in another network');
  t.same(stage.in(stage.refs[0], theirs()), passed, 'the owner itself');
  t.same(stage.out(theirs({ target: THEIR4 })), passed, 'even from our side');
  t.equal(stage.known(THEIR4), '', 'static ones are not learned as well');
  t.same(stage.out(ours({ sender: '0.0.0.0', target: '10.7.0.9' })), passed, 'a probe claims nothing');
});

t.test('ARP: a static neighbour is answered for', async (t) => {
  for (const tags of TAGS) {
    const stage = makeStage();
    stage.fix(THEIR4, THEIRS, stage.refs[0]);
    const reply = arpAnswer(THEIRS, THEIR4, OURS, OUR4, tags);
    answered(t, stage.out(ours({}, { tags })), ARP_ANSWER, reply, `${tags.length} tags`);
    answered(t, stage.out(concat(ours({}, { tags }), new Uint8Array(18))), ARP_ANSWER, reply, 'padded');
    t.equal(stage.known(OUR4, 0, 0, tags), `${OURS} local 0`, 'the asker is learned');
    const someone = ours({}, { tags, destination: '33:33:00:00:00:05' });
    answered(t, stage.out(someone), ARP_ANSWER, reply, 'to any group');
    t.same(stage.in(stage.refs[1], ours({}, { tags })), passed, 'not to a peer');
  }
});

t.test('ARP: what is not answered', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  stage.fix('10.7.0.5', '02:00:00:00:01:05', LOCAL);
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['unknown', ours({ target: '10.7.2.2' })],
    ['unicast', ours({}, { destination: THEIRS })],
    ['a reply', ours({ operation: 2 }, { destination: BROADCAST })],
    ['from the owner', ours({ senderMac: THEIRS, sender: '10.7.2.3' })],
    ['from one that speaks for another', ours({ senderMac: OTHERS }, { source: OURS })],
    ['from the owner, that calls itself another', ours({}, { source: THEIRS })],
    ['from a group', ours({ senderMac: '03:00:00:00:00:01' })],
    ['from loopback', ours({ sender: '127.0.0.1' })],
    ['from a multicast address', ours({ sender: '224.0.0.1' })],
    ['from the broadcast address', ours({ sender: '255.255.255.255' })],
    ['static, on our side', ours({ target: '10.7.0.5' })],
    ['a gratuitous request', ours({ target: OUR4 })],
    ['one for nothing', ours({ target: '0.0.0.0' })],
    ['one for nothing from nothing', ours({ sender: '0.0.0.0', target: '0.0.0.0' })],
  ];
  for (const [what, bytes] of cases) t.same(stage.out(bytes), passed, what);
  t.same(stage.out(ours(), { network: 1 }), passed, 'in another network');
  stage.fix(OUR4, OURS, stage.refs[0]);
  t.same(stage.out(ours({ target: OUR4 })), passed, 'a gratuitous request of a static neighbour');
});

t.test('ARP: a learned neighbour is answered for while its MAC is behind a peer', async (t) => {
  const stage = makeStage();
  const [first, second] = stage.refs;
  const reply = arpAnswer(THEIRS, THEIR4, OURS, OUR4);
  stage.in(first, theirs());
  t.same(stage.out(ours()), passed, 'nobody knows where the MAC is');
  stage.see(THEIRS, first);
  answered(t, stage.out(ours()), ARP_ANSWER, reply, 'behind a peer');
  stage.see(THEIRS, second);
  answered(t, stage.out(ours()), ARP_ANSWER, reply, 'moved to another');
  t.same(stage.out(ours({ senderMac: THEIRS, sender: '10.7.2.3' })), passed, 'not to itself');
  t.same(stage.out(ours({ sender: '0.0.0.0' })), passed, 'a probe');
  stage.see(THEIRS, LOCAL);
  t.same(stage.out(ours()), passed, 'moved to our side');
  stage.fixMac(THEIRS, second);
  answered(t, stage.out(ours()), ARP_ANSWER, reply, 'the registry knows better where the MAC is');
  t.same(stage.out(ours(), { network: 1 }), passed, 'in another network');
  answered(t, stage.out(ours(), { now: AGE }), ARP_ANSWER, reply, 'old');
  t.same(stage.out(ours(), { now: AGE + 1 }), passed, 'too old');
  stage.in(first, theirs(), { now: 7 });
  answered(t, stage.out(ours(), { now: AGE + 7 }), ARP_ANSWER, reply, 'taught again');
  stage.fix(THEIR4, OTHERS, first);
  answered(t, stage.out(ours()), ARP_ANSWER, arpAnswer(OTHERS, THEIR4, OURS, OUR4), 'the registry comes first');
});

t.test('ARP: a learned neighbour whose MAC has aged is not answered for', async (t) => {
  const stage = makeStage();
  stage.see(THEIRS, stage.refs[0], 0);
  stage.in(stage.refs[0], theirs(), { now: 1000 });
  t.equal(stage.out(ours(), { now: AGE }).verdict, 'answered');
  t.same(stage.out(ours(), { now: AGE + 1 }), passed);
});

t.test('ARP: probes', async (t) => {
  const stage = makeStage();
  const probe = (change: Partial<ArpSpec> = {}, ether = {}): Uint8Array =>
    ours({ sender: '0.0.0.0', ...change }, ether);
  stage.see(THEIRS, stage.refs[0]);
  stage.in(stage.refs[0], theirs());
  t.same(stage.out(probe()), passed, 'for a learned neighbour');
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  const reply = arpAnswer(THEIRS, THEIR4, OURS, '0.0.0.0');
  answeredToo(t, stage.out(probe()), ARP_ANSWER, reply, 'for a static one');
  t.same(stage.out(probe({ senderMac: THEIRS })), passed, 'from its owner');
  t.same(stage.out(probe({}, { destination: THEIRS })), passed, 'unicast');
  t.same(stage.out(probe({ senderMac: OTHERS }, { source: OURS })), passed, 'from one that speaks for another');
  t.same(stage.in(stage.refs[1], probe()), passed, 'from a peer');
  t.equal(stage.known('0.0.0.0'), '');
});

t.test('answers that the device refuses', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, stage.refs[0]);
  stage.fix(THEIR6, THEIRS, stage.refs[0]);
  stage.device.refuseWith(() => EIO);
  const refused = (made: string): Got => ({
    verdict: 'answered',
    answers: [],
    counted: { [`outbound.${made}`]: 1, 'outbound.answers_refused': 1, ...GONE },
  });
  t.same(stage.out(ours()), refused('arp_answers_made'));
  t.same(stage.out(solicit(OURS, OUR6, THEIR6)), refused('nd_answers_made'));
});

t.test('a registry that names no peer', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR4, THEIRS, 0);
  t.same(stage.out(ours()), passed, 'nobody knows where the MAC is');
  stage.see(THEIRS, stage.refs[1]);
  t.equal(stage.out(ours()).verdict, 'answered');
  stage.see(THEIRS, LOCAL);
  t.same(stage.out(ours()), passed);
});

t.test('memory without static tables', async (t) => {
  const stage = makeStage(0);
  t.same(stage.out(ours()), passed);
  stage.see(THEIRS, stage.refs[0]);
  stage.in(stage.refs[0], theirs());
  t.equal(stage.out(ours()).verdict, 'answered');
});

// --- Neighbour Discovery ---

/** A solicitation by our host; an advertisement by theirs. */
const ns = (target = THEIR6, ether: Partial<EthernetSpec> = {}): Uint8Array => solicit(OURS, OUR6, target, ether);
const na = (flags = O_FLAG, to = ALL_NODES): Uint8Array => advertise(THEIRS, THEIR6, flags, to);
const dad = (from = OURS): Uint8Array => solicit(from, '::', THEIR6);
const US = { ip: OUR6, mac: OURS };

/** An IPv6 frame between MACs and addresses, hop limit 255, with a message. */
const nd = (
  ether: readonly [from: string, to: string],
  ip: readonly [from: string, to: string],
  body: Parameters<typeof frame>[2],
  ttl = 255,
): Uint8Array =>
  frame({ source: ether[0], destination: ether[1] }, { source: ip[0], destination: ip[1], ttl, flow: 0 }, body);

t.test('ND: what is not it, or comes in pieces: untouched', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR6, THEIRS, stage.refs[0]);
  const group = solicitedNode(THEIR6);
  const asks = solicitation(THEIR6, linkLayer(1, OURS));
  const ether = { source: OURS, destination: group.mac };
  const ip = { source: OUR6, destination: group.ip, ttl: 255 };
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['behind hop-by-hop options', frame(ether, { ...ip, extensions: [[0, extension(1)]] }, asks)],
    ['an atomic fragment', frame(ether, { ...ip, extensions: [[44, Uint8Array.of(0, 0, 0, 0, 0, 0, 1)]] }, asks)],
    ['behind destination options', frame(ether, { ...ip, ttl: 3, extensions: [[60, extension(1)]] }, asks)],
    ['UDP', frame(ether, ip, udp())],
    ['a router solicitation', frame(ether, { ...ip, ttl: 9 }, routerSolicitation(linkLayer(1, OURS)))],
    ['not IPv6', changed(ns(), put(14, 0x40))],
    ['too short', ns().subarray(0, 54)],
  ];
  for (const [what, bytes] of cases) {
    t.same(stage.out(bytes), passed, what);
    t.same(stage.in(stage.refs[1], bytes), passed, what);
  }
  t.equal(stage.known(OUR6), '');
});

t.test('ND: what hosts discard', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR6, THEIRS, stage.refs[0]);
  const group = solicitedNode(THEIR6);
  const asked = [OURS, group.mac] as const;
  const source = linkLayer(1, OURS);
  const empty = new Uint8Array(8);
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['hop limit 254', nd(asked, [OUR6, group.ip], solicitation(THEIR6, source), 254)],
    ['advertisement, hop limit 64', nd([OURS, THEIRS], [OUR6, THEIR6], advertisement(OUR6, 0), 64)],
    ['router, hop limit 1', nd([OURS, ALL_NODES.mac], ['fe80::1', 'ff02::1'], routerAdvertisement(source), 1)],
    ['code 1', changed(ns(), put(55, 1))],
    ['empty option', nd(asked, [OUR6, group.ip], solicitation(THEIR6, empty))],
    ['empty option behind a good one', nd(asked, [OUR6, group.ip], solicitation(THEIR6, concat(source, empty)))],
    ['router, empty option', nd([OURS, ALL_NODES.mac], ['fe80::1', 'ff02::1'], routerAdvertisement(empty))],
    ['no source, to a host', nd([OURS, THEIRS], ['::', THEIR6], solicitation(THEIR6))],
    ['no source, yet a source address option', nd(asked, ['::', group.ip], solicitation(THEIR6, source))],
    ['target a group', nd(asked, [OUR6, group.ip], solicitation('ff02::1', source))],
    ['solicited, to all', advertise(OURS, OUR6, S_FLAG | O_FLAG)],
    ['router, not link-local', nd([OURS, ALL_NODES.mac], [OUR6, 'ff02::1'], routerAdvertisement(source))],
    ['cut', ns().subarray(0, ns().length - 1)],
    ['cut to its type', ns().subarray(0, 55)],
    ['longer than the frame', changed(ns(), add(19, 8))],
  ];
  for (const [what, bytes] of cases) {
    t.same(stage.out(bytes), dropped('outbound.bad_nd'), what);
    t.same(stage.in(stage.refs[1], bytes), dropped('inbound.bad_nd'), what);
  }
  t.equal(stage.known(OUR6), '');
});

t.test('ND: a wrong checksum is carried, and nobody believes or answers it', async (t) => {
  const stage = makeStage();
  const [peer] = stage.refs;
  stage.fix(THEIR6, THEIRS, peer);
  const wrong = (bytes: Uint8Array): Uint8Array => changed(bytes, flip(14 + 40 + 3, 1));
  t.same(stage.out(wrong(ns())), passed);
  t.same(stage.in(peer, wrong(ns())), passed);
  t.same(stage.out(wrong(dad())), passed);
  t.same(stage.out(wrong(advertise(OURS, THEIR6, O_FLAG))), passed, 'it is no conflict either: no host believes it');
  t.equal(stage.known(OUR6), '');
  t.same(stage.out(changed(ns(), put(14 + 40 + 2, 0, 0))), passed, 'left out');
  // What a virtual machine behind the device leaves to it: the pseudo-header's sum, and a virtio header that says so.
  const partial = changed(ns(), put(56, 0, 0));
  const seed = 0xffff - checksum(concat(partial.subarray(22, 54), [0, 0, 0, 32, 0, 0, 0, 58]));
  partial.set([seed >> 8, seed & 255], 56);
  t.same(stage.out(partial), passed, 'a partial checksum that nobody speaks of');
  const left = (start: number, offset: number, flags = 1): Uint8Array => vnet({ flags, start, offset });
  t.same(stage.out(partial, { vnet: left(54, 2, 0) }), passed, 'nor there');
  t.same(stage.out(partial, { vnet: left(54, 6) }), passed, 'another field is left to the device');
  t.same(stage.out(partial, { vnet: left(58, 2) }), passed, 'or another header');
  t.same(stage.in(peer, partial, { vnet: left(54, 2) }), passed, 'from a peer nothing is left to us');
  t.equal(stage.known(OUR6), '');
  const reply = ndAnswer(THEIRS, THEIR6, S_FLAG, US);
  answered(t, stage.out(partial, { vnet: left(54, 2) }), ND_ANSWER, reply, 'left to the device');
  t.equal(stage.known(OUR6), `${OURS} local 0`);
  const tagged = concat(partial.subarray(0, 12), [0x81, 0, 0, 5], partial.subarray(12));
  const taggedReply = ndAnswer(THEIRS, THEIR6, S_FLAG, US, [[VLAN, 5]]);
  answered(t, stage.out(tagged, { vnet: left(58, 2) }), ND_ANSWER, taggedReply, 'tagged');
});

t.test('ND: who teaches', async (t) => {
  const router = ROUTER | ROUTER_KNOWN;
  const own = linkLayer(1, THEIRS);
  const group = solicitedNode(OUR6);
  const asks = solicitation(OUR6, own);
  const all = [THEIRS, ALL_NODES.mac] as const;
  const cases: readonly (readonly [string, Uint8Array, string, number | undefined])[] = [
    ['a solicitation', nd([THEIRS, group.mac], [THEIR6, group.ip], asks), THEIR6, 0],
    ['a unicast one', nd([THEIRS, OURS], [THEIR6, OUR6], asks), THEIR6, 0],
    ['one without option', nd([THEIRS, OURS], [THEIR6, OUR6], solicitation(OUR6)), THEIR6, undefined],
    ['for another MAC', nd([OTHERS, group.mac], [THEIR6, group.ip], asks), THEIR6, undefined],
    [
      'the wrong option',
      nd([THEIRS, OURS], [THEIR6, OUR6], solicitation(OUR6, linkLayer(2, THEIRS))),
      THEIR6,
      undefined,
    ],
    ['duplicate address detection', dad(THEIRS), THEIR6, undefined],
    ['its source', dad(THEIRS), '::', undefined],
    ['loopback', nd([THEIRS, group.mac], ['::1', group.ip], asks), '::1', undefined],
    ['a group as source', nd([THEIRS, group.mac], ['ff02::5', group.ip], asks), 'ff02::5', undefined],
    ['an unsolicited advertisement', na(O_FLAG), THEIR6, ROUTER_KNOWN],
    ['a solicited one', na(S_FLAG | O_FLAG, US), THEIR6, ROUTER_KNOWN],
    ["a router's", na(R_FLAG | O_FLAG), THEIR6, router],
    ['one that does not override', na(0), THEIR6, ROUTER_KNOWN],
    ['without option', nd(all, [THEIR6, 'ff02::1'], advertisement(THEIR6, O_FLAG)), THEIR6, undefined],
    ['the wrong option', nd(all, [THEIR6, 'ff02::1'], advertisement(THEIR6, O_FLAG, own)), THEIR6, undefined],
    [
      'an advertisement for a target, not for its source',
      nd(all, [THEIR6, 'ff02::1'], advertisement('fd07::77', O_FLAG, linkLayer(2, THEIRS))),
      THEIR6,
      undefined,
    ],
    [
      'but for the target',
      nd(all, [THEIR6, 'ff02::1'], advertisement('fd07::77', O_FLAG, linkLayer(2, THEIRS))),
      'fd07::77',
      ROUTER_KNOWN,
    ],
    [
      'for another MAC',
      nd([OTHERS, ALL_NODES.mac], [THEIR6, 'ff02::1'], advertisement(THEIR6, O_FLAG, linkLayer(2, THEIRS))),
      THEIR6,
      undefined,
    ],
    ['for loopback', nd(all, [THEIR6, 'ff02::1'], advertisement('::1', 0, linkLayer(2, THEIRS))), '::1', undefined],
    ['for nothing', nd(all, [THEIR6, 'ff02::1'], advertisement('::', 0, linkLayer(2, THEIRS))), '::', undefined],
    ['a router', nd(all, ['fe80::1', 'ff02::1'], routerAdvertisement(own)), 'fe80::1', router],
    ['one that is no default router', nd(all, ['fe80::1', 'ff02::1'], routerAdvertisement(own, 0)), 'fe80::1', 0],
    ['one without option', nd(all, ['fe80::1', 'ff02::1'], routerAdvertisement()), 'fe80::1', undefined],
  ];
  for (const [what, bytes, ip, flags] of cases) {
    const stage = makeStage();
    const entry = (where: string): string => (flags === undefined ? '' : `${THEIRS} ${where} ${flags}`);
    t.same(stage.in(0, bytes), passed, what);
    t.equal(stage.known(ip), '', `${what}, from a stranger`);
    t.same(stage.in(stage.refs[1], bytes), passed, what);
    t.equal(stage.known(ip), entry('peer1'), `${what}, from a peer`);
    t.equal(stage.known(ip, 0, 1), '', 'in that network only');
    t.same(stage.out(bytes), passed, what);
    t.equal(stage.known(ip), entry('local'), `${what}, from our side`);
  }
});

t.test('ND: an advertisement without its MAC, from where the target is known to be', async (t) => {
  const stage = makeStage();
  const [peer, other] = stage.refs;
  const bare = (source: string): Uint8Array =>
    frame(
      { source, destination: OURS },
      { source: THEIR6, destination: OUR6, ttl: 255 },
      advertisement(THEIR6, R_FLAG | S_FLAG),
    );
  stage.in(peer, bare(THEIRS));
  t.equal(stage.known(THEIR6), '', 'it teaches no MAC');
  stage.in(peer, na(O_FLAG));
  stage.in(other, bare(OTHERS));
  t.equal(stage.known(THEIR6), `${THEIRS} peer0 ${ROUTER_KNOWN}`, 'not from another MAC');
  stage.in(peer, bare(THEIRS), { now: 1000 });
  t.equal(stage.known(THEIR6, 1000 + AGE), `${THEIRS} peer0 ${ROUTER | ROUTER_KNOWN}`, 'but the rest');
});

t.test('ND: a solicitation does not unlearn whether its sender is a router', async (t) => {
  const stage = makeStage();
  const [peer] = stage.refs;
  stage.in(peer, na(R_FLAG | O_FLAG));
  stage.in(peer, solicit(THEIRS, THEIR6, OUR6));
  t.equal(stage.known(THEIR6), `${THEIRS} peer0 ${ROUTER | ROUTER_KNOWN}`);
  stage.in(peer, na(O_FLAG));
  t.equal(stage.known(THEIR6), `${THEIRS} peer0 ${ROUTER_KNOWN}`, 'an advertisement does');
});

t.test('ND: IPv4-mapped addresses are not taken for IPv4 ones', async (t) => {
  const stage = makeStage();
  const [peer] = stage.refs;
  const mapped = '::ffff:a07:201';
  t.equal(hex(addressWordsBytes(mapped)), hex(addressWordsBytes(THEIR4)), 'tables keep them in one place');
  const lie = advertisement(mapped, O_FLAG, linkLayer(2, OTHERS));
  const frames = [
    nd([OTHERS, ALL_NODES.mac], [THEIR6, 'ff02::1'], lie),
    nd([OTHERS, '33:33:ff:00:00:01'], [mapped, 'ff02::1:ff00:1'], solicitation(OUR6, linkLayer(1, OTHERS))),
  ];
  for (const bytes of frames) t.same(stage.in(peer, bytes), passed);
  t.equal(stage.known(THEIR4), '');
  stage.fix(THEIR4, THEIRS, peer);
  for (const bytes of frames) t.same(stage.in(peer, bytes), passed, 'no conflict');
  t.same(stage.out(ns(mapped)), passed, 'no answer');
  t.same(stage.out(solicit(OURS, mapped, THEIR6)), passed);
});

function addressWordsBytes(ip: string): Uint8Array {
  return new Uint8Array(addressWords(address(ip)).buffer);
}

t.test('ND: a sender that lies about a static neighbour', async (t) => {
  const stage = makeStage();
  const [peer] = stage.refs;
  stage.fix(THEIR6, THEIRS, peer);
  stage.fix('fe80::1', THEIRS, peer);
  const all = [OURS, ALL_NODES.mac] as const;
  const own = linkLayer(1, OURS);
  const lies: readonly (readonly [string, Uint8Array])[] = [
    ['a solicitation', solicit(OURS, THEIR6, OUR6)],
    ['an unsolicited advertisement', advertise(OURS, THEIR6, O_FLAG)],
    ['a solicited one', advertise(OURS, THEIR6, S_FLAG | O_FLAG, { ip: OUR6, mac: OTHERS })],
    ["under the owner's MAC", advertise(OURS, THEIR6, O_FLAG, ALL_NODES, { source: THEIRS })],
    ['a router', nd(all, ['fe80::1', 'ff02::1'], routerAdvertisement(own))],
    ['a router that ends', nd(all, ['fe80::1', 'ff02::1'], routerAdvertisement(own, 0))],
  ];
  for (const [what, bytes] of lies) {
    t.same(stage.out(bytes), dropped('outbound.neighbour_conflict'), what);
    t.same(stage.in(stage.refs[1], bytes), dropped('inbound.neighbour_conflict'), what);
  }
  t.same(stage.out(advertise(OURS, THEIR6, O_FLAG), { network: 1 }), passed, 'in another network');
  t.same(stage.in(peer, na()), passed, 'the owner itself');
  t.equal(stage.known(THEIR6), '', 'static ones are not learned as well');
  const silent = nd([OURS, THEIRS], [THEIR6, OUR6], solicitation(OUR6));
  t.same(stage.out(silent), passed, 'without option nothing is claimed');
});

t.test('ND: a static neighbour is answered for, with O=0 and its R flag', async (t) => {
  for (const tags of TAGS) {
    for (const [flags, answer] of [
      [0, S_FLAG],
      [ROUTER_KNOWN, S_FLAG],
      [ROUTER_KNOWN | ROUTER, S_FLAG | R_FLAG],
    ] as const) {
      const stage = makeStage();
      stage.fix(THEIR6, THEIRS, stage.refs[0], flags);
      const reply = ndAnswer(THEIRS, THEIR6, answer, US, tags);
      const what = `${tags.length} tags, flags ${flags}`;
      answered(t, stage.out(ns(THEIR6, { tags })), ND_ANSWER, reply, what);
      t.equal(stage.known(OUR6, 0, 0, tags), `${OURS} local 0`, 'the asker is learned');
      const group = solicitedNode(THEIR6);
      const bare = frame(
        { source: OURS, destination: group.mac, tags },
        { source: OUR6, destination: group.ip, ttl: 255 },
        solicitation(THEIR6),
      );
      answered(t, stage.out(bare), ND_ANSWER, reply, `${what}, asked without option`);
      answered(t, stage.out(concat(bare, new Uint8Array(9))), ND_ANSWER, reply, `${what}, padded`);
      t.same(stage.in(stage.refs[1], ns(THEIR6, { tags })), passed, 'not to a peer');
      const dads = ndAnswer(THEIRS, THEIR6, answer & ~S_FLAG, ALL_NODES, tags);
      answeredToo(t, stage.out(solicit(OURS, '::', THEIR6, { tags })), ND_ANSWER, dads, `${what}, DAD`);
    }
  }
});

t.test('ND: what is not answered', async (t) => {
  const stage = makeStage();
  stage.fix(THEIR6, THEIRS, stage.refs[0], ROUTER_KNOWN);
  stage.fix('fd07::5', '02:00:00:00:01:05', LOCAL, ROUTER_KNOWN);
  const group = solicitedNode(THEIR6);
  const asks = solicitation(THEIR6, linkLayer(1, OURS));
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['unknown', ns('fd07::9')],
    ['unicast', nd([OURS, THEIRS], [OUR6, THEIR6], asks)],
    ['unicast to the group', nd([OURS, THEIRS], [OUR6, group.ip], asks)],
    ['from the owner', solicit(THEIRS, OUR6, THEIR6)],
    ['from one that speaks for another', nd([OTHERS, group.mac], [OUR6, group.ip], asks)],
    ['from loopback', nd([OURS, group.mac], ['::1', group.ip], asks)],
    ['from a group', nd([OURS, group.mac], ['ff02::5', group.ip], asks)],
    ['static, on our side', ns('fd07::5')],
    ['for nothing', ns('::')],
    ['for loopback', ns('::1')],
    ['DAD of the owner', dad(THEIRS)],
    ['unicast DAD', nd([OURS, THEIRS], ['::', group.ip], solicitation(THEIR6))],
    ['an advertisement', advertise(OURS, OUR6, O_FLAG)],
  ];
  for (const [what, bytes] of cases) t.same(stage.out(bytes), passed, what);
  t.same(stage.out(ns(), { network: 1 }), passed, 'in another network');
});

t.test('ND: a learned neighbour is answered for while its MAC is behind a peer and its R flag known', async (t) => {
  const stage = makeStage();
  const [first, second] = stage.refs;
  stage.in(first, solicit(THEIRS, THEIR6, OUR6));
  stage.see(THEIRS, first);
  t.same(stage.out(ns()), passed, 'nobody knows whether it is a router');
  stage.in(first, na(O_FLAG));
  answered(t, stage.out(ns()), ND_ANSWER, ndAnswer(THEIRS, THEIR6, S_FLAG, US), 'a host');
  stage.in(first, na(O_FLAG | R_FLAG));
  const reply = ndAnswer(THEIRS, THEIR6, S_FLAG | R_FLAG, US);
  answered(t, stage.out(ns()), ND_ANSWER, reply, 'a router');
  t.same(stage.out(dad()), passed, 'not to DAD');
  t.same(stage.out(solicit(THEIRS, OUR6, THEIR6)), passed, 'not to itself');
  stage.see(THEIRS, LOCAL);
  t.same(stage.out(ns()), passed, 'moved to our side');
  stage.see(THEIRS, second);
  answered(t, stage.out(ns()), ND_ANSWER, reply, 'moved to another peer');
  t.same(stage.out(ns(), { now: AGE + 1 }), passed, 'too old');
  stage.fix(THEIR6, OTHERS, first);
  answered(t, stage.out(ns()), ND_ANSWER, ndAnswer(OTHERS, THEIR6, S_FLAG, US), 'the registry comes first');
});

t.test('ND: a router is answered for once it has advertised itself', async (t) => {
  const stage = makeStage();
  const [peer] = stage.refs;
  stage.see(THEIRS, peer);
  const ra = nd([THEIRS, ALL_NODES.mac], ['fe80::1', 'ff02::1'], routerAdvertisement(linkLayer(1, THEIRS)));
  stage.in(peer, ra);
  answered(t, stage.out(ns('fe80::1')), ND_ANSWER, ndAnswer(THEIRS, 'fe80::1', S_FLAG | R_FLAG, US), 'router');
});

// --- Anything at all ---

t.test('100,000 changed frames: no throw, no read outside them, no write outside scratch', async (t) => {
  const seed = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 1_000_000);
  t.comment(`WEFT_FUZZ_SEED=${seed}`);
  const next = random(seed);
  const below = (n: number): number => Math.floor(next() * n);
  const stage = makeStage();
  const { memory, refs } = stage;
  const layout = memory.layout.workers[0];
  for (let i = 0; i < 20; i++) {
    stage.fix(`10.7.2.${i}`, THEIRS, refs[i % 2]);
    stage.fix(`fd07::1234:56${i + 10}`, THEIRS, refs[i % 2], i % 4);
  }
  stage.fix(THEIR6, THEIRS, refs[0]);
  stage.see(THEIRS, refs[0]);
  stage.see(OTHERS, refs[1]);
  const tags = (): NonNullable<EthernetSpec['tags']> => TAGS[below(3)];
  const group = solicitedNode(THEIR6);
  const makers: readonly (() => Uint8Array)[] = [
    () => ours({ target: `10.7.${below(4)}.${below(8)}`, sender: `10.7.0.${below(8)}` }, { tags: tags() }),
    () => theirs({ operation: 1 + below(2), sender: `10.7.${below(4)}.${below(30)}` }, { tags: tags() }),
    () => ours({ sender: '0.0.0.0' }, { tags: tags() }),
    () => solicit(OURS, `fd07::${below(5)}`, THEIR6, { tags: tags() }),
    () => solicit(OURS, '::', `fd07::1234:56${10 + below(25)}`, { tags: tags() }),
    () => advertise(OTHERS, `fd07::${below(40)}`, below(256), below(2) ? ALL_NODES : US, { tags: tags() }),
    () => nd([THEIRS, ALL_NODES.mac], ['fe80::1', 'ff02::1'], routerAdvertisement(linkLayer(1, THEIRS), below(2))),
    () =>
      nd([OURS, group.mac], [OUR6, group.ip], solicitation(THEIR6, concat(linkLayer(2, OTHERS), linkLayer(1, OURS)))),
  ];
  /** Makes an ICMPv6 checksum right again, so that changes behind it are met. */
  const repair = (bytes: Uint8Array): void => {
    const at = headerLength(new DataView(bytes.buffer), 0, bytes.length);
    if (at === 0 || bytes.length < at + 44 || bytes[at + 6] !== 58) return;
    const payload = bytes[at + 4] * 256 + bytes[at + 5];
    if (payload < 4 || at + 40 + payload > bytes.length) return;
    bytes.fill(0, at + 42, at + 44);
    const pseudo = concat(bytes.subarray(at + 8, at + 40), [0, 0, bytes[at + 4], bytes[at + 5], 0, 0, 0, 58]);
    const sum = checksum(concat(pseudo, bytes.subarray(at + 40, at + 40 + payload)));
    bytes.set([sum >> 8, sum & 255], at + 42);
  };
  memory.u8.fill(0xee, layout.scratch - HEADROOM, layout.scratch + 4096);
  const before = Buffer.from(memory.u8);
  const seen = new Map<string, number>();
  for (let i = 0; i < 100_000; i++) {
    let bytes = makers[below(makers.length)]();
    for (let n = below(4); n > 0; n--) {
      const at = next() < 0.7 ? 12 + below(Math.min(bytes.length - 12, 60)) : below(bytes.length);
      bytes[at] = next() < 0.5 ? below(8) : next() < 0.5 ? bytes[at] ^ (1 << below(8)) : below(256);
    }
    if (next() < 0.7) repair(bytes);
    const size = below(10);
    if (size === 0) bytes = bytes.slice(0, 14 + below(bytes.length - 13));
    else if (size === 1) bytes = concat(bytes, new Uint8Array(below(30)).fill(below(256)));
    if (headerLength(new DataView(bytes.buffer), 0, bytes.length) === 0) continue;
    const header = vnet({ flags: below(2), start: 54 + 4 * below(3), offset: below(2) * 2 });
    const given = { network: below(2), now: i * 10, vnet: header };
    const outbound = next() < 0.6;
    const got = outbound ? stage.out(bytes, given) : stage.in([0, ...refs][below(3)], bytes, given);
    const what = `${outbound ? 'out' : 'in'} ${got.verdict} ${Object.keys(got.counted).sort().join(' ')}`;
    seen.set(what, (seen.get(what) ?? 0) + 1);
    if (got.answers.length > 1) t.fail(`${hex(bytes)}: ${got.answers.length} answers`);
    for (const answer of got.answers) {
      if (answer.length > 22 + 72) t.fail(`an answer of ${answer.length} bytes`);
    }
    if (i % 1000 === 0) {
      stage.see(THEIRS, refs[0], i * 10);
      stage.see(OTHERS, refs[1], i * 10);
    }
  }
  for (const [what, times] of [...seen].sort()) t.comment(`${times} ${what}`);
  for (const counter of [
    'bad_arp',
    'bad_nd',
    'neighbour_conflict',
    'arp_answers_made',
    'nd_answers_made',
    'answered',
  ]) {
    t.ok(
      [...seen.keys()].some((what) => what.startsWith('out') && what.includes(`outbound.${counter}`)),
      counter,
    );
  }
  for (const counter of ['bad_arp', 'bad_nd', 'neighbour_conflict']) {
    t.ok(
      [...seen.keys()].some((what) => what.startsWith('in drop') && what.includes(`inbound.${counter}`)),
      counter,
    );
  }
  t.ok(memory.intactGuards());
  const { made, sent } = conservation(memory);
  t.equal(made, sent, 'every answer that was made was sent');

  /** Everything but what the proxy and its tables may write, and the test itself. */
  const allowed: readonly (readonly [number, number])[] = [
    [layout.counters, 128 * 8],
    [layout.vnetIn, 10],
    [layout.arena + OFFSET - 64, 64 + 2048],
    [layout.scratch + HEADROOM - 10, 10 + 22 + 72],
    [layout.macs, memory.layout.macSlots * MAC_BYTES],
    [layout.macDetails, memory.layout.macSlots * MAC_BYTES],
    [layout.neighbours, memory.layout.neighbourSlots * 64],
    [layout.gauges, GAUGES * 8],
  ];
  let from = 0;
  const after = Buffer.from(memory.u8.buffer);
  for (const [at, length] of [...allowed].sort((a, b) => a[0] - b[0])) {
    t.equal(before.compare(after, from, at, from, at), 0, `bytes ${from} to ${at} are as they were`);
    from = at + length;
  }
  t.equal(before.compare(after, from, before.length, from, before.length), 0, 'and the rest');
});
