/**
 * Random and mutated frames through whole switches, both directions at once, over devices and sockets that refuse at random,
 * while control changes what it says and the clock leaps. After every batch: guards whole, books balanced and equal to the
 * independent ones, every address in bounds, tables no fuller than they may be, nothing thrown; and in some rounds every
 * frame that comes out is read by the independent decoder.
 *
 *   WEFT_FUZZ_SEED=n     begin with round n (a failure names its round: only that one is needed to see it again)
 *   WEFT_FUZZ_PACKETS=n  frames in each direction (default 10^6; npm run test:full 10^8)
 *   WEFT_FUZZ_COUNTERS=1 say how often each exit was taken
 */
import t from 'tap';
import { COUNTER_INFOS, OUT_RUNT, readCounter } from '../../src/dataplane/counters.js';
import { READY_ALL } from '../../src/dataplane/engine.js';
import type { EngineSettings, SwitchSettings } from '../../src/dataplane/settings.js';
import { type Device, EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, EPERM, type Socket } from '../../src/io/device.js';
import type { DevicePacket, MemoryDevice } from '../../src/io/memory-device.js';
import type { IncomingMessage, MemorySocket, OutgoingDatagram } from '../../src/io/memory-socket.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { Choice } from '../lib/choice.js';
import { decode, decodeVnet } from '../lib/decode.js';
import {
  ARP,
  advertise,
  arpFrame,
  BROADCAST,
  decodeFrame,
  type EthernetSpec,
  ethernet,
  frame,
  framesOnTheWire,
  IPV4,
  IPV6,
  linkLayer,
  mac,
  NOBODY,
  OTHER,
  padded,
  partialFrame,
  routerAdvertisement,
  SERVICE_VLAN,
  solicit,
  solicitation,
  superFrame,
  type Tag,
  unfinishedFrame,
  VLAN,
  vxlan,
} from '../lib/frames.js';
import {
  ACK,
  address,
  checksum,
  concat,
  extension,
  FIN,
  type IpSpec,
  icmp,
  PSH,
  pattern,
  plain,
  pseudoSum,
  random,
  raw,
  SYN,
  type Transport,
  tcp,
  udp,
} from '../lib/packets.js';
import {
  counterName,
  makeSwitch,
  our4,
  our6,
  ourMac,
  PORT,
  type SwitchPeer,
  type SwitchRig,
  setOwnMacs,
  their4,
  their6,
  theirMac,
  VNIS,
} from '../lib/rig-l2.js';

// Millions of frames take longer than the default allows; test/run.ts has a limit for whole files.
t.setTimeout(0);

const full = process.env.WEFT_TEST_FULL === '1';
const FRAMES = Number(process.env.WEFT_FUZZ_PACKETS ?? (full ? 1e8 : 1e6));
const FIRST_SEED = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 1e9);
/** Rounds that are always run: each once found something, or stands for a kind. */
const RECORDED: readonly number[] = process.env.WEFT_FUZZ_SEED ? [] : Array.from({ length: 8 }, (_, i) => i + 1);
/** Rounds after this one have settings that the recorded ones did not have. */
const LAST_RECORDED = 8;
/** Frames of each direction in one round, which has one engine with settings of its own. */
const ROUND = 20_000;
const BATCH = 128;

const PEERS: readonly SwitchPeer[] = [
  {},
  { networks: [0] },
  { address: 'fd99::4', mtu: 1444 },
  { mtu: 1300, networks: [1] },
  { address: 'fd99::6', mtu: 600 },
  { mtu: 65_499 },
  { mtu: 90 },
];
const HOSTS = 12;
const OUR_OWN = ourMac(250);

interface Corpus {
  readonly frames: DevicePacket[];
  /** Frames of one flow, equal in size but for the last. */
  readonly runs: Uint8Array[][];
  /** Unsegmented frames of a kernel, with the segment size that its message names (0: none). */
  readonly kernel: { readonly bytes: Uint8Array; readonly size: number }[];
}

/** Frames of all shapes from one side to the other; made once, since honest checksums are slow. */
function makeCorpus(choose: Choice, outbound: boolean): Corpus {
  const host = (ours: boolean, six: boolean): { mac: string; ip: string } => {
    const n = 1 + choose.below(HOSTS);
    if (ours) return { mac: ourMac(n), ip: six ? our6(n) : our4(n) };
    const peer = choose.below(PEERS.length);
    return { mac: theirMac(peer, n), ip: six ? their6(peer, n) : their4(peer, n) };
  };
  const oddMacs = [
    BROADCAST,
    NOBODY,
    '01:00:5e:00:00:fb',
    '33:33:00:00:00:01',
    '01:80:c2:00:00:00',
    OUR_OWN,
    '02:99:00:00:00:01',
  ];
  const ends = (six: boolean): { ether: EthernetSpec; ip: IpSpec } => {
    const from = host(outbound !== choose.once(15), six);
    const to = host(outbound === choose.once(15), six);
    const tags: Tag[] = choose.once(5)
      ? Array.from({ length: 1 + choose.below(3) }, () => [
          choose.of([VLAN, SERVICE_VLAN, 0x9100]),
          choose.below(65536),
        ])
      : [];
    return {
      ether: {
        source: choose.once(25) ? choose.of(oddMacs) : from.mac,
        destination: choose.once(5) ? choose.of(oddMacs) : to.mac,
        tags,
      },
      ip: {
        source: choose.once(20) ? (six ? choose.of(['::', 'fe80::1', 'ff02::1']) : '0.0.0.0') : from.ip,
        destination: choose.once(20) ? (six ? 'ff02::1' : choose.of(['255.255.255.255', '224.0.0.251'])) : to.ip,
        tos: choose.once(2) ? choose.below(4) : choose.below(256),
        ttl: choose.once(10) ? choose.below(3) : 64,
        id: choose.below(65536),
        df: !choose.once(3),
        ...(six && choose.once(6)
          ? { extensions: [[choose.of([0, 60, 43, 44]), extension(1 + choose.below(3))] as const] }
          : {}),
        ...(!six && choose.once(10) ? { options: new Uint8Array(4 * choose.below(11)).fill(1) } : {}),
        ...(!six && choose.once(12) ? { df: false, mf: choose.once(2), offset: choose.below(3) * 8 } : {}),
      },
    };
  };
  const length = (): number =>
    choose.of([0, 1, 7, 18, 22, 64, 100, 536, 1000, 1350, 1400, 1422, 1444, choose.below(1500)]);
  const transport = (payload: Uint8Array, six: boolean): Transport => {
    const ports = { from: 1000 + choose.below(6), to: 80 };
    const kind = choose.below(10);
    if (kind < 4)
      return tcp({
        ...ports,
        seq: choose.below(2 ** 32),
        flags: choose.of([ACK, ACK, ACK | PSH, SYN, ACK | FIN, choose.below(256)]),
        options: choose.of([new Uint8Array(0), new Uint8Array(12).fill(1), new Uint8Array(40).fill(1)]),
        payload,
      });
    if (kind < 8) return udp({ ...ports, payload });
    if (kind === 8) return icmp(choose.below(2) ? (six ? 128 : 8) : choose.below(256), payload, six);
    return raw(choose.of([0, 4, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 255]), payload);
  };
  const arp = (): Uint8Array => {
    const [from, to] = [host(outbound !== choose.once(12), false), host(choose.once(2), false)];
    const kind = choose.below(8);
    return arpFrame(
      {
        operation: choose.once(3) ? 2 : 1,
        senderMac: from.mac,
        sender: kind === 0 ? '0.0.0.0' : from.ip,
        targetMac: to.mac,
        target: kind === 1 ? from.ip : to.ip,
      },
      {
        ...(choose.once(3) ? {} : { destination: BROADCAST }),
        ...(choose.once(8) ? { tags: [[VLAN, 5] as const] } : {}),
      },
    );
  };
  const nd = (): Uint8Array => {
    const [from, to] = [host(outbound !== choose.once(12), true), host(choose.once(2), true)];
    const ether = choose.once(8) ? { tags: [[VLAN, 5] as const] } : {};
    const kind = choose.below(6);
    if (kind === 0) return solicit(from.mac, '::', to.ip, ether);
    if (kind === 1) {
      const options = concat(linkLayer(1, from.mac), choose.once(2) ? [5, 1, 0, 0, 0, 0, 5, 0xdc] : []);
      return frame(
        { source: from.mac, destination: '33:33:00:00:00:01', ...ether },
        { source: 'fe80::1', destination: 'ff02::1', ttl: 255 },
        routerAdvertisement(options, choose.below(2) * 1800),
      );
    }
    if (kind < 4) return solicit(from.mac, from.ip, to.ip, ether);
    if (kind === 4) {
      return frame(
        { source: from.mac, destination: to.mac, ...ether },
        { source: from.ip, destination: to.ip, ttl: 255 },
        solicitation(to.ip, choose.once(2) ? linkLayer(1, from.mac) : new Uint8Array(0)),
      );
    }
    return advertise(from.mac, from.ip, choose.below(8) << 5, undefined, ether);
  };

  const frames: DevicePacket[] = [];
  for (let i = 0; i < 160; i++) {
    const six = choose.once(2);
    const { ether, ip } = ends(six);
    const kind = choose.below(12);
    if (kind < 2) frames.push(plain(arp()));
    else if (kind < 4) frames.push(plain(nd()));
    else if (kind === 4)
      frames.push(
        plain(ethernet(ether, choose.of([OTHER, 0x0026, ARP, IPV4, IPV6, choose.below(65536)]), pattern(length(), i))),
      );
    else {
      const inside = transport(pattern(length(), i), six);
      if (inside.checksumAt >= 0 && inside.protocol !== 1 && choose.once(3)) {
        frames.push(outbound ? unfinishedFrame(ether, ip, inside) : plain(partialFrame(ether, ip, inside)));
      } else {
        const bytes = frame(ether, ip, inside);
        frames.push(plain(choose.once(4) ? padded(bytes, 60 + choose.below(40)) : bytes));
      }
    }
  }
  for (let i = 0; i < 60 && outbound; i++) {
    const { ether, ip } = ends(choose.once(2));
    const size = choose.of([1, 8, 100, 536, 1200, 1350, 1398, 1400, choose.below(1500) + 1]);
    const total = choose.once(6) ? 60_000 - choose.below(5000) : choose.below(Math.min(size * 40, 20_000)) + 1;
    const ports = { from: 1000 + choose.below(4), to: 80, payload: pattern(total, i) };
    const inside = choose.once(3) ? udp(ports) : tcp({ ...ports, flags: choose.of([ACK, ACK | PSH, 0x91]) });
    frames.push(superFrame(ether, ip, inside, size));
  }
  const runs: Uint8Array[][] = [];
  for (let i = 0; i < 60 && !outbound; i++) {
    const { ether, ip } = ends(choose.once(2));
    const size = choose.of([1, 4, 22, 64, 100, 536, 1350, 1350, 1398]);
    const count = Math.min(2 + choose.below(60), Math.floor(60_000 / (size + 160)));
    const isUdp = choose.once(3);
    const partial = choose.once(6);
    const start = choose.below(2 ** 32);
    runs.push(
      Array.from({ length: count }, (_, k) => {
        const last = k === count - 1;
        const payload = pattern(last ? 1 + choose.below(size) : size, k);
        const ports = { from: 1000 + choose.below(choose.once(10) ? 2 : 1), to: 80, payload };
        const inside = isUdp
          ? udp(ports)
          : tcp({ ...ports, seq: (start + k * size) >>> 0, flags: last ? ACK | PSH : ACK });
        return (partial ? partialFrame : frame)(ether, { ...ip, id: ((ip.id ?? 0) + k) & 0xffff }, inside);
      }),
    );
  }
  const kernel: { bytes: Uint8Array; size: number }[] = [];
  for (let i = 0; i < 20 && !outbound; i++) {
    const { ether, ip } = ends(choose.once(2));
    const isUdp = choose.once(2);
    const payload = pattern(1 + choose.below(choose.once(3) ? 60_000 : 6000), i);
    const inside = isUdp ? udp({ payload }) : tcp({ payload, flags: choose.of([ACK, ACK | PSH, 0x91, SYN]) });
    kernel.push({
      bytes: partialFrame(ether, ip, inside),
      size: isUdp ? Math.max(1 + choose.below(1500), Math.ceil(payload.length / 100)) : 0,
    });
  }
  return { frames, runs, kernel };
}

/** Changes a copy of a frame as a broken or hostile sender would. */
function mutate(choose: Choice, bytes: Uint8Array): Uint8Array {
  const kind = choose.below(16);
  if (kind < 6) return bytes;
  if (kind === 6)
    return bytes.slice(0, choose.below(choose.once(2) ? Math.min(bytes.length, 80) + 1 : bytes.length + 1));
  if (kind === 7) {
    const noise = new Uint8Array(choose.below(100));
    for (let i = 0; i < noise.length; i++) noise[i] = choose.below(256);
    if (noise.length > 16 && choose.once(2))
      noise.set(
        choose.of([
          [8, 0],
          [8, 6],
          [0x86, 0xdd],
          [0x81, 0],
          [0x88, 0xa8],
        ]),
        12,
      );
    return noise;
  }
  const copy = Uint8Array.from(bytes);
  if (copy.length < 24) return copy;
  const view = new DataView(copy.buffer);
  const type = view.getUint16(12);
  const l2 = type === VLAN || type === SERVICE_VLAN ? 18 : 14;
  const inner = view.getUint16(l2 - 2);
  if (kind === 8) {
    // Ethernet: MACs, type, tags.
    const what = choose.below(5);
    if (what === 0) copy.set(mac(choose.of([BROADCAST, NOBODY, OUR_OWN, ourMac(1), theirMac(0), theirMac(1)])), 6);
    else if (what === 1) copy.set(mac(choose.of([BROADCAST, NOBODY, OUR_OWN, ourMac(1), theirMac(0), theirMac(1)])), 0);
    else if (what === 2) view.setUint16(12, choose.of([IPV4, IPV6, ARP, VLAN, SERVICE_VLAN, choose.edge(16)]));
    else if (what === 3)
      return concat(copy.subarray(0, 12), [0x81, 0, choose.below(256), choose.below(256)], copy.subarray(12));
    else return concat(copy.subarray(0, 12), copy.subarray(Math.min(16, copy.length)));
    return copy;
  }
  if (kind === 9) copy[choose.below(Math.min(copy.length, 110))] ^= 1 << choose.below(8);
  else if (kind === 10) copy[choose.below(copy.length)] = choose.below(256);
  else if (inner === ARP && copy.length >= l2 + 28) {
    const what = choose.below(9);
    if (what < 4)
      view.setUint16(l2 + choose.of([0, 2, 4, 6]), choose.of([0, 1, 2, 0x800, 0x604, 0x504, 0x610, choose.edge(16)]));
    else if (what === 4) copy.set(address(choose.of(['0.0.0.0', '255.255.255.255', their4(0, 1), our4(1)])), l2 + 14);
    else if (what === 5) copy.set(address(choose.of(['0.0.0.0', their4(0, 1), their4(2, 2), our4(1)])), l2 + 24);
    else if (what === 6) copy.set(mac(choose.of([BROADCAST, NOBODY, theirMac(0), theirMac(5, 5)])), l2 + 8);
    else if (what === 7) return copy.slice(0, l2 + choose.below(29));
    else copy.copyWithin(l2 + 24, l2 + 14, l2 + 18); // gratuitous
  } else if (inner === IPV6 && copy.length >= l2 + 64 && copy[l2 + 6] === 58) {
    const what = choose.below(8);
    if (what === 0) copy[l2 + 7] = choose.edge(8);
    else if (what === 1) copy[l2 + 40] = 130 + choose.below(10);
    else if (what === 2) copy[l2 + 41] = choose.edge(8);
    else if (what === 3) copy[l2 + 44] = choose.edge(8);
    else if (what === 4 && copy.length > l2 + 65) copy[l2 + 65] = choose.of([0, 2, 31, 255]);
    else if (what === 5)
      copy.set(address(choose.of(['::', 'ff02::1', their6(0, 1), our6(1)])), l2 + choose.of([8, 24, 48]));
    else if (what === 6) {
      const shorter = copy.slice(0, l2 + 40 + choose.below(copy.length - l2 - 39));
      new DataView(shorter.buffer).setUint16(l2 + 4, shorter.length - l2 - 40);
      return shorter;
    } else view.setUint16(l2 + 4, choose.edge(16));
  } else if (inner === IPV4 && copy.length >= l2 + 20) {
    const what = choose.below(8);
    if (what === 0) copy[l2] = choose.below(256);
    else if (what === 1) view.setUint16(l2 + 2, choose.edge(16));
    else if (what === 2) view.setUint16(l2 + 6, choose.edge(16));
    else if (what === 3) copy[l2 + 9] = choose.of([1, 6, 17, choose.below(256)]);
    else if (what === 4) view.setUint16(l2 + 10, choose.edge(16));
    else if (what === 5 && copy.length >= l2 + 40) copy[l2 + 32 + choose.below(2)] = choose.edge(8);
    else if (copy.length >= l2 + 28) view.setUint16(l2 + 20 + choose.below(4) * 2, choose.edge(16));
  } else if (copy.length >= l2 + 40) {
    const what = choose.below(4);
    if (what === 0) copy[l2] = choose.below(256);
    else if (what === 1) view.setUint16(l2 + 4, choose.edge(16));
    else if (what === 2) copy[l2 + 6] = choose.of([0, 6, 17, 43, 44, 50, 58, 59, 60]);
    else view.setUint16(l2 + choose.below(20) * 2, choose.edge(16));
  }
  return copy;
}

function mutateVnet(choose: Choice, vnet: Uint8Array, length: number): Uint8Array {
  if (!choose.once(6)) return vnet;
  const copy = Uint8Array.from(vnet);
  const view = new DataView(copy.buffer);
  const kind = choose.below(7);
  if (kind === 0) for (let i = 0; i < 10; i++) copy[i] = choose.below(256);
  else if (kind === 1) copy[0] = choose.edge(8);
  else if (kind === 2) copy[1] = choose.of([0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x85, 0x20, 0x40, 255]);
  else if (kind === 3) view.setUint16(4, choose.once(2) ? choose.edge(16) : choose.below(length + 2), true);
  else if (kind === 4) view.setUint16(6, choose.once(2) ? choose.edge(16) : choose.below(length + 2), true);
  else if (kind === 5) view.setUint16(8, choose.once(2) ? choose.edge(16) : choose.below(length + 2), true);
  else view.setUint16(2, choose.edge(16), true);
  return copy;
}

/** Puts a frame behind a VXLAN header that mostly tells the truth. */
function wrap(choose: Choice, bytes: Uint8Array, vni: number): Uint8Array {
  const datagram = vxlan(vni, bytes);
  const kind = choose.below(60);
  if (kind === 0) datagram[0] = choose.edge(8);
  else if (kind === 1) datagram[4 + choose.below(3)] = choose.edge(8);
  else if (kind === 2) datagram[choose.of([1, 2, 3, 7])] = choose.edge(8);
  else if (kind === 3) return datagram.slice(0, choose.below(24));
  else if (kind === 4) datagram[choose.below(8)] ^= 1 << choose.below(8);
  return datagram;
}

/** How a round's devices and sockets misbehave: one answer in `rate` is an error (0: never). */
interface Faults {
  readonly rate: number;
  readonly device: readonly number[];
  readonly socket: readonly number[];
}

const FAULTS: readonly Faults[] = [
  { rate: 0, device: [], socket: [] },
  { rate: 0, device: [], socket: [] },
  { rate: 3, device: [EINTR, EIO], socket: [EAGAIN, EINTR] },
  { rate: 20, device: [EIO, 12, 105], socket: [EPERM, EMSGSIZE, 101, 105, 111, EAGAIN] },
  { rate: 200, device: [EINVAL], socket: [EINVAL, EIO, EMSGSIZE] },
  { rate: 2, device: [EINVAL, EIO], socket: [EINVAL, EIO, EMSGSIZE, EAGAIN, EINTR, EPERM] },
];

interface Progress {
  /** Messages that the engine has taken from both sockets. */
  messages: number;
  /** No more faults: the round wants to end. */
  honest: boolean;
}

function faultyDevice(device: MemoryDevice, choose: Choice, faults: Faults, progress: Progress): Device {
  const fails = (): boolean => faults.rate > 0 && !progress.honest && choose.once(faults.rate);
  return {
    pull: (at) => (fails() ? -choose.of([EINTR, EIO, EAGAIN]) : device.pull(at)),
    push: (at, length) => (fails() ? -choose.of(faults.device) : device.push(at, length)),
  };
}

function faultySocket(socket: MemorySocket, choose: Choice, faults: Faults, progress: Progress): Socket {
  const fails = (): boolean => faults.rate > 0 && !progress.honest && choose.once(faults.rate);
  return {
    pull() {
      if (fails()) return -choose.of([EINTR, EAGAIN, 111]);
      const taken = socket.pull();
      if (taken > 0) progress.messages += taken;
      return taken;
    },
    push(first, count) {
      if (fails()) return -choose.of(faults.socket);
      return socket.push(first, choose.once(4) ? 1 + choose.below(count) : count);
    },
  };
}

function randomMessage(choose: Choice, corpus: Corpus, names: readonly Uint8Array[]): IncomingMessage {
  const outer = {
    name: choose.of(names),
    ...(choose.once(2) ? { tos: choose.once(2) ? choose.below(4) : choose.below(256) } : {}),
  };
  const vni = choose.of(VNIS);
  const kind = choose.below(20);
  if (kind < 8) {
    const run = choose.of(corpus.runs);
    const from = choose.below(run.length);
    const both = choose.once(6);
    const datagrams = run
      .slice(from, from + 1 + choose.below(run.length - from))
      .map((bytes) => wrap(choose, bytes, both ? choose.of(VNIS) : vni));
    if (choose.once(3)) {
      const at = choose.below(datagrams.length);
      const copy = concat(datagrams[at].subarray(0, 8), mutate(choose, datagrams[at].slice(8)));
      if (copy.length === datagrams[at].length) datagrams[at] = copy;
    }
    const size = Math.max(datagrams[0].length, 24);
    return { ...outer, bytes: concat(...datagrams).subarray(0, 65_507), segment: size };
  }
  if (kind === 8) {
    // Segments that do not agree with what is in them.
    const bytes = concat(
      ...Array.from({ length: 1 + choose.below(6) }, () =>
        wrap(choose, mutate(choose, choose.of(corpus.frames).bytes), vni),
      ),
    ).subarray(0, 65_507);
    // UDP_GRO delivers at most 128 as one message.
    const segment = Math.ceil((bytes.length + 1) / 128) + choose.below(choose.once(2) ? 100 : bytes.length + 2);
    return { ...outer, bytes, segment };
  }
  if (kind === 9 && choose.once(20)) return { ...outer, bytes: new Uint8Array(65_000 + choose.below(2000)).fill(8) };
  if (kind === 10 || kind === 11) {
    const { bytes, size } = choose.of(corpus.kernel);
    const datagram = wrap(choose, choose.once(4) ? mutate(choose, bytes) : bytes, vni).subarray(0, 65_507);
    return size > 0 && choose.once(8) === false
      ? { ...outer, bytes: datagram, segment: size }
      : { ...outer, bytes: datagram };
  }
  return { ...outer, bytes: wrap(choose, mutate(choose, choose.of(corpus.frames).bytes), vni) };
}

/** Whether what the engine sent is as RFC 7348 wants it, and a frame that a switch passes on. No text is made: there are millions. */
function checkSent({ bytes }: OutgoingDatagram): void {
  const vni = (bytes[4] << 16) | (bytes[5] << 8) | bytes[6];
  if (bytes[0] !== 8 || bytes[1] | bytes[2] | bytes[3] | bytes[7] || (vni !== VNIS[0] && vni !== VNIS[1])) {
    throw new Error(`sent with a VXLAN header of ${bytes.subarray(0, 8).join(' ')}`);
  }
  checkFrame(bytes, 8);
}

function checkFrame(bytes: Uint8Array, at: number): void {
  if (bytes.length < at + 14) throw new Error(`a frame of ${bytes.length - at} bytes went through`);
  let zero = true;
  for (let i = at + 6; i < at + 12; i++) if (bytes[i] !== 0) zero = false;
  if (zero || bytes[at + 6] & 1)
    throw new Error(`a frame from ${bytes.subarray(at + 6, at + 12).join(':')} went through`);
}

function checkPushed({ vnet, bytes }: DevicePacket): void {
  checkFrame(bytes, 0);
  const virtio = decodeVnet(vnet);
  if (virtio.type !== 0) {
    const segments = framesOnTheWire({ vnet, bytes });
    if (segments.length < 2) throw new Error('a super-frame of one segment');
    for (const segment of segments) {
      const { header } = decodeFrame(segment);
      decode(segment.slice(header));
    }
  } else if (virtio.flags & 1) {
    const { header, body } = decodeFrame(bytes);
    if (virtio.start < header + 20 || virtio.start + virtio.offset + 2 > bytes.length) {
      throw new Error(`an unfinished frame whose checksum is at ${virtio.start} + ${virtio.offset} of ${bytes.length}`);
    }
    // What finishes it must make a right one of it, where its lengths agree at all.
    const [whole] = framesOnTheWire({ vnet, bytes });
    const length = body[0] >> 4 === 4 ? (body[2] << 8) | body[3] : 40 + ((body[4] << 8) | body[5]);
    const l4 = virtio.start - header;
    const rest = whole.slice(header + l4, header + length);
    const [source, destination] =
      body[0] >> 4 === 4 ? [body.slice(12, 16), body.slice(16, 20)] : [body.slice(8, 24), body.slice(24, 40)];
    const pseudo = pseudoSum(source, destination, virtio.offset === 6 ? 17 : 6, rest.length);
    if (body.subarray(length).every((byte) => byte === 0) && checksum(rest, pseudo) !== 0) {
      throw new Error('an unfinished frame that no finishing makes right');
    }
  } else if (vnet.some((byte) => byte !== 0)) {
    throw new Error(`a plain frame with virtio header ${vnet.join(' ')}`);
  }
}

/** What came later: said by the round's number, so that those that are recorded stay what they were. */
function laterSettings(seed: number, networks: SwitchSettings['networks']): Partial<SwitchSettings> {
  if (seed <= LAST_RECORDED) return { networks };
  const [first, second] = networks;
  return {
    learning: seed % 5 !== 2,
    floods: seed % 6 !== 4,
    // One VNI twice; or each over one underlay; or both over either.
    networks:
      seed % 4 === 1
        ? [
            { ...first, family: 4 },
            { ...second, vni: first.vni, family: 6 },
          ]
        : seed % 4 === 2
          ? [{ ...first, family: 6 }, second]
          : networks,
  };
}

async function round(seed: number): Promise<{ out: number; in: number; counters: number[] }> {
  const choose = new Choice(seed);
  const settings: Partial<EngineSettings> = {
    sourceCheck: choose.of(['peer', 'peer', 'off'] as const),
    offloads: choose.once(2) ? 127 : choose.below(128),
    maxSegments: choose.of([1, 2, 64, 128, 128]),
    inheritDscp: choose.once(2),
  };
  const l2: Partial<SwitchSettings> = {
    ...laterSettings(
      seed,
      VNIS.map((vni) => ({ vni, mtu: choose.of([1300, 1450, 9000]) })),
    ),
    age: choose.of([10_000, 300_000]),
    macsPerPeer: choose.of([5, 20, 1000]),
    floodUnknown: !choose.once(4),
    stormLimit: choose.of([0, 0, 100, 10_000]),
  };
  const faults = choose.of(FAULTS);
  const progress: Progress = { messages: 0, honest: false };
  const keep = choose.once(4);
  const workers = choose.once(4) ? 2 : 1;
  /** Now and then the second network has no peer at all. */
  const peers = choose.once(8) ? PEERS.map((peer) => ({ ...peer, networks: [0] })) : PEERS;
  // The tables' secrets come from there; a round has to be the same every time.
  const unseeded = Math.random;
  Math.random = random(seed);
  const rig = await makeSwitch({
    peers,
    settings,
    l2,
    keep: false,
    tapped: seed % 10 === 4,
    senders: choose.of([0, 1, 4, 8]),
    memory: { peers: 32, macs: choose.of([16, 64, 1024]), neighbours: choose.of([8, 256]), statics: 32 },
    workers,
    socket: {
      maxSegments: choose.of([64, 128]),
      ...(choose.once(4) ? { mtu: 1300 } : {}),
      ...(choose.once(8) ? { refuseSegments: choose.of([EINVAL, EIO]) } : {}),
    },
    wrapDevice: (device) => faultyDevice(device, choose, faults, progress),
    wrapSocket: (socket) => faultySocket(socket, choose, faults, progress),
  });
  // The second worker has no traffic, and hears of what the first one learns.
  const other = workers === 2 ? rig.other(1) : undefined;
  const listens = choose.of([3, 10_000]);
  Math.random = unseeded;
  setOwnMacs(rig, 0, OUR_OWN);
  setOwnMacs(rig, 1, OUR_OWN, ourMac(251));
  if (choose.once(6))
    for (const device of rig.devices) device.refuseWith(({ vnet }) => (vnet[1] !== 0 && !choose.once(3) ? EINVAL : 0));
  const pools = [...new Set([...rig.sockets, ...rig.senders.flat()])];
  if (keep) {
    for (const device of rig.devices) device.onPush = checkPushed;
    for (const socket of pools) socket.onSend = checkSent;
  }
  const outbound = makeCorpus(choose, true);
  const inbound = makeCorpus(choose, false);
  const stranger = [socketAddress(address('192.168.1.1'), PORT), socketAddress(address('fd98::1'), PORT)];
  const names = [0, 1].map((underlay) => [
    ...PEERS.map((_, i) => rig.name(i)).filter((name) => name.length === (underlay === 0 ? 16 : 28)),
    stranger[underlay],
  ]);
  /** What the registry says, changed at random: static MACs and neighbours of hosts that may lie elsewhere. */
  const refs = rig.refs.map((list) => [...list]);
  const govern = async (): Promise<void> => {
    const network = choose.below(2);
    const peer = choose.below(PEERS.length);
    const ref = refs[network][peer];
    if (ref === 0) return;
    if (choose.once(6)) {
      // It goes, with all that the registry said of it, and comes back as another.
      for (let n = 1; n <= 3; n++) {
        rig.tables.removeMac(network, mac(theirMac(peer, n)));
        rig.tables.removeNeighbour(network, address(their4(peer, n)));
        rig.tables.removeNeighbour(network, address(their6(peer, n)));
      }
      rig.tables.removePeer(ref);
      if (choose.once(2)) await rig.tables.commit();
      const at = address(PEERS[peer].address ?? `192.168.77.${peer + 2}`);
      refs[network][peer] = rig.tables.addPeer({
        address: at,
        port: PORT,
        mtu: PEERS[peer].mtu ?? 1464,
        ecn: true,
        network,
      });
      await rig.tables.commit();
      return;
    }
    const n = 1 + choose.below(3);
    const [four, six, owner] = [address(their4(peer, n)), address(their6(peer, n)), mac(theirMac(peer, n))];
    if (choose.once(2)) {
      rig.tables.setMac(network, owner, ref);
      rig.tables.setNeighbour(network, choose.once(2) ? four : six, owner, choose.of([true, false, undefined]), ref);
    } else {
      rig.tables.removeMac(network, owner);
      rig.tables.removeNeighbour(network, four);
      rig.tables.removeNeighbour(network, six);
    }
    if (choose.once(3)) rig.tables.setPeerMtu(ref, choose.of([64, 600, 1464, 9000, 65_499]));
    await rig.tables.commit();
  };

  let messages = 0;
  rig.now = choose.edge(32) | 0;
  const pulledNow = (): number => rig.devices[0].pulled + rig.devices[1].pulled;
  for (let done = 0; done < ROUND || rig.sockets[0].received + rig.sockets[1].received < ROUND; done += BATCH) {
    progress.honest = false;
    if (choose.once(8)) await govern();
    const pulled = pulledNow() + BATCH;
    for (const device of rig.devices) {
      const frames = Array.from({ length: BATCH / 2 }, () => {
        const { vnet, bytes } = choose.of(outbound.frames);
        const changed = mutate(choose, bytes);
        return { vnet: mutateVnet(choose, vnet, changed.length), bytes: changed };
      });
      device.load(frames);
    }
    let most = 0;
    for (const underlay of [0, 1]) {
      const batch = Array.from({ length: 6 + choose.below(12) }, () => randomMessage(choose, inbound, names[underlay]));
      messages += batch.length;
      most += batch.reduce((sum, one) => sum + fewer(one), 0);
      rig.sockets[underlay].load(batch);
    }
    for (let turns = 0; pulledNow() < pulled || progress.messages < messages || rig.engine.blocked; turns++) {
      if (turns > 200) progress.honest = true;
      if (turns > 2000)
        throw new Error(`no end: ${pulled - pulledNow()} frames and ${messages - progress.messages} messages are left`);
      for (const socket of pools) {
        socket.room = turns > 100 || !choose.once(3) ? Number.POSITIVE_INFINITY : choose.below(8);
      }
      rig.now = (rig.now + choose.below(choose.once(50) ? 12_000 : 20)) | 0;
      rig.engine.turn(rig.now, choose.once(4) ? choose.below(16) : READY_ALL);
      if (other && choose.once(listens)) other.engine.turn(rig.now, READY_ALL);
    }
    settleReceived(rig, most);
    rig.audit();
  }
  return {
    out: pulledNow(),
    in: rig.sockets[0].received + rig.sockets[1].received,
    counters: COUNTER_INFOS.map((_, id) => readCounter(rig.memory, id)),
  };
}

const MAY_BE_IP = new Set([IPV4, IPV6, VLAN, SERVICE_VLAN]);

/**
 * How many datagrams less a message may be than the in-memory socket counts by the segment size that it names: a frame that a
 * kernel left whole, its inner packet as long as all of the message, is one.
 */
function fewer({ bytes, segment = 0 }: IncomingMessage): number {
  if (segment === 0 || segment >= bytes.length || bytes.length < 8 + 14 + 40) return 0;
  if (!MAY_BE_IP.has(bytes[8 + 12] * 256 + bytes[8 + 13])) return 0;
  const { header, type, body } = decodeFrame(bytes.subarray(8));
  const length = type === IPV4 ? (body[2] << 8) | body[3] : type === IPV6 ? 40 + ((body[4] << 8) | body[5]) : -1;
  return 8 + header + length === bytes.length ? Math.ceil(bytes.length / segment) - 1 : 0;
}

/** Brings the in-memory socket's count of datagrams down to the engine's, if no more than `most` explains the difference. */
function settleReceived(rig: SwitchRig, most: number): void {
  const less = rig.sockets[0].received + rig.sockets[1].received - rig.counter('inbound.socket_received');
  if (less < 0 || less > most) throw new Error(`${less} datagrams were not counted, ${most} are explained`);
  rig.sockets[0].received -= less;
}

t.test(`fuzz from seed ${FIRST_SEED}`, { timeout: 0 }, async (t) => {
  let out = 0;
  let into = 0;
  const counted = COUNTER_INFOS.map(() => 0);
  const run = async (seed: number): Promise<void> => {
    try {
      const counts = await round(seed);
      out += counts.out;
      into += counts.in;
      counts.counters.forEach((n, id) => {
        counted[id] += n;
      });
    } catch (error) {
      throw new Error(`round ${seed} (repeat it with WEFT_FUZZ_SEED=${seed} WEFT_FUZZ_PACKETS=1): ${error}`, {
        cause: error,
      });
    }
  };
  for (const seed of RECORDED) await run(seed);
  for (let seed = FIRST_SEED; out < FRAMES || into < FRAMES; seed++) await run(seed);
  t.ok(out >= FRAMES && into >= FRAMES);
  // A fuzzer that never gets somewhere finds nothing there.
  if (FRAMES >= 1e6)
    t.same(
      COUNTER_INFOS.map((_, id) => counterName(id)).filter((_, id) => id >= OUT_RUNT && counted[id] === 0),
      [],
      'every counter was reached',
    );
  if (process.env.WEFT_FUZZ_COUNTERS) for (const [id, n] of counted.entries()) t.comment(`${counterName(id)} ${n}`);
  t.comment(`${out} frames out and ${into} in, seeds ${RECORDED.join(', ')} and from ${FIRST_SEED}`);
});
