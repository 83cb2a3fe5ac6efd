/**
 * Random and mutated packets through whole engines, both directions at once, over devices and sockets that refuse at random.
 * After every batch: guards whole, books balanced and equal to the independent ones, every address in bounds, nothing thrown;
 * and in some rounds every packet that comes out is read by the independent decoder.
 *
 *   WEFT_FUZZ_SEED=n     begin with round n (a failure names its round: only that one is needed to see it again)
 *   WEFT_FUZZ_PACKETS=n  packets in each direction (default 10^6; npm run test:full 10^8)
 *   WEFT_FUZZ_COUNTERS=1 say how often each exit was taken
 */
import t from 'tap';
import { COUNTER_INFOS, FIRST_OF_LAYER_2, readCounter } from '../../src/dataplane/counters.js';
import type { EngineSettings } from '../../src/dataplane/settings.js';
import { type Device, EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, EPERM, type Socket } from '../../src/io/device.js';
import { RECEIVE_CONTROL, SIZEOF_MMSGHDR } from '../../src/io/memory.js';
import type { DevicePacket, MemoryDevice } from '../../src/io/memory-device.js';
import type { IncomingMessage, MemorySocket } from '../../src/io/memory-socket.js';
import { CMSG_HEADER, MSG_CONTROL, MSG_CONTROLLEN } from '../../src/io/messages.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { Choice } from '../lib/choice.js';
import { decode, decodeVnet } from '../lib/decode.js';
import {
  ACK,
  address,
  concat,
  extension,
  FIN,
  type IpSpec,
  icmp,
  onesSum,
  PSH,
  packet,
  pattern,
  plain,
  raw,
  rechecksum,
  SYN,
  superPacket,
  type Transport,
  tcp,
  udp,
  unfinished,
} from '../lib/packets.js';
import { counterName, HOST_4, HOST_6, makeRig, type PeerOptions, type Rig, remote4, remote6 } from '../lib/rig.js';
import { onTheWire } from '../lib/segment.js';

// Millions of packets take longer than the default allows; test/run.ts has a limit for whole files.
t.setTimeout(0);

const full = process.env.WEFT_TEST_FULL === '1';
const PACKETS = Number(process.env.WEFT_FUZZ_PACKETS ?? (full ? 1e8 : 1e6));
const FIRST_SEED = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 1e9);
/** Rounds that are always run: each once found something, or stands for a kind. */
const RECORDED: readonly number[] = process.env.WEFT_FUZZ_SEED ? [] : Array.from({ length: 8 }, (_, i) => i + 1);
/** Packets of each direction in one round, which has one engine with settings of its own. */
const ROUND = 20_000;
const BATCH = 128;

const PEERS: readonly PeerOptions[] = [
  {},
  { ecn: true },
  { address: 'fd99::4', ecn: true, mtu: 1452 },
  { mtu: 1300 },
  { address: 'fd99::6', mtu: 600 },
  { mtu: 65535 },
  { mtu: 68 },
];

/** Packets of all shapes from one side to the other; made once, since honest checksums are slow. */
function makeCorpus(choose: Choice, outbound: boolean): { packets: DevicePacket[]; runs: Uint8Array[][] } {
  const ip = (): IpSpec => {
    const peer = choose.below(PEERS.length + 1); // the last one does not exist
    const six = choose.once(2);
    const [here, there] = six ? [HOST_6, remote6(peer)] : [HOST_4, remote4(peer)];
    const odd = six
      ? ['ff02::1', '::', '::1', 'fd00:77::1']
      : ['224.0.0.1', '0.0.0.0', '127.0.0.1', '255.255.255.255', '8.8.8.8'];
    const spec: IpSpec = {
      source: choose.once(20) ? choose.of(odd) : outbound ? here : there,
      destination: choose.once(20) ? choose.of(odd) : outbound ? there : here,
      tos: choose.once(2) ? choose.below(4) : choose.below(256),
      ttl: choose.once(10) ? choose.below(3) : 64,
      id: choose.below(65536),
      df: !choose.once(3),
    };
    if (six)
      return choose.once(5)
        ? {
            ...spec,
            extensions: [[choose.of([0, 60, 60, 43, 44]), extension(1 + choose.below(choose.once(4) ? 170 : 3))]],
          }
        : spec;
    if (choose.once(8)) return { ...spec, options: new Uint8Array(4 * choose.below(11)).fill(1) };
    if (choose.once(12)) return { ...spec, df: false, mf: choose.once(2), offset: choose.below(3) * 8 };
    return spec;
  };
  const length = (): number =>
    choose.of([0, 1, 7, 18, 22, 64, 100, 536, 1000, 1400, 1400, 1420, 1431, 1444, choose.below(1500)]);
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
  const six = (spec: IpSpec): boolean => spec.source.includes(':');
  // Both addresses are of one family by construction.
  const packets: DevicePacket[] = [];
  for (let i = 0; i < 160; i++) {
    const spec = ip();
    const carried = transport(pattern(length(), i), six(spec));
    if (outbound && choose.once(3) && carried.checksumAt >= 0 && carried.protocol !== 1)
      packets.push(unfinished(spec, carried));
    else packets.push(plain(packet(spec, carried)));
  }
  if (outbound) {
    for (let i = 0; i < 60; i++) {
      const spec = ip();
      const size = choose.of([1, 8, 100, 536, 1200, 1400, 1432, 1448, choose.below(1500) + 1]);
      const total = choose.once(6) ? 60000 - choose.below(5000) : choose.below(Math.min(size * 40, 20000)) + 1;
      const ports = { from: 1000 + choose.below(4), to: 80, payload: pattern(total, i) };
      packets.push(
        superPacket(
          spec,
          choose.once(3) ? udp(ports) : tcp({ ...ports, flags: choose.of([ACK, ACK | PSH, 0x91]) }),
          size,
        ),
      );
    }
  }
  const runs: Uint8Array[][] = [];
  for (let i = 0; i < 60 && !outbound; i++) {
    const spec = ip();
    const size = choose.of([1, 4, 22, 64, 100, 536, 1400, 1400, 1448]);
    const count = Math.min(2 + choose.below(60), Math.floor(60000 / (size + 140)));
    const isUdp = choose.once(3);
    const start = choose.below(2 ** 32);
    runs.push(
      Array.from({ length: count }, (_, k) => {
        const last = k === count - 1;
        const payload = pattern(last ? 1 + choose.below(size) : size, k);
        const ports = { from: 1000 + choose.below(choose.once(10) ? 2 : 1), to: 80, payload };
        return packet(
          { ...spec, id: (spec.id ?? 0) + k },
          isUdp ? udp(ports) : tcp({ ...ports, seq: (start + k * size) >>> 0, flags: last ? ACK | PSH : ACK }),
        );
      }),
    );
  }
  return { packets, runs };
}

/** Changes a copy of a packet as a broken or hostile sender would. Its header checksum is mostly made right again. */
function mutate(choose: Choice, bytes: Uint8Array): Uint8Array {
  const kind = choose.below(16);
  if (kind < 5) return bytes;
  if (kind === 5) return bytes.slice(0, choose.below(bytes.length + 1));
  if (kind === 6) {
    const random = new Uint8Array(choose.below(100));
    for (let i = 0; i < random.length; i++) random[i] = choose.below(256);
    if (random.length > 0 && choose.once(2)) random[0] = choose.of([0x45, 0x60, 0x46, 0x4f]);
    return random;
  }
  const copy = Uint8Array.from(bytes);
  const view = new DataView(copy.buffer);
  if (copy.length < 40) return copy;
  const v4 = copy[0] >> 4 === 4;
  const l4 = v4 ? (copy[0] & 15) * 4 : 40;
  if (kind === 7) copy[0] = choose.below(256);
  else if (kind === 8) view.setUint16(v4 ? 2 : 4, choose.edge(16));
  else if (kind === 9) copy[choose.below(Math.min(copy.length, 80))] ^= 1 << choose.below(8);
  else if (kind === 10) copy[choose.below(copy.length)] = choose.below(256);
  else if (kind === 11 && v4) view.setUint16(6, choose.edge(16));
  else if (kind === 11) copy[6] = choose.of([0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135]);
  else if (kind === 12) copy[v4 ? 8 : 7] = choose.edge(8);
  else if (kind === 13) copy[v4 ? 9 : 6] = choose.of([1, 6, 17, 58, choose.below(256)]);
  else if (kind === 14 && l4 + 14 <= copy.length) copy[l4 + 12 + choose.below(2)] = choose.edge(8);
  else if (l4 + 8 <= copy.length) view.setUint16(l4 + choose.below(4) * 2, choose.edge(16));
  if (choose.once(3)) {
    // Cut or stretch it, honestly in its header.
    const length = choose.once(2) ? choose.below(copy.length + 1) : Math.min(65535, copy.length + choose.below(100));
    const other = new Uint8Array(length);
    other.set(copy.subarray(0, length));
    if (length >= 40 && v4) new DataView(other.buffer).setUint16(2, length);
    else if (length >= 40) new DataView(other.buffer).setUint16(4, length - 40);
    return v4 && length >= 60 ? rechecksum(other) : other;
  }
  return v4 && l4 >= 20 && l4 <= copy.length && !choose.once(8) ? rechecksum(copy) : copy;
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

/** How a round's device and socket misbehave: one answer in `rate` is an error (0: never). */
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

function faultySocket(
  rig: () => Rig,
  socket: MemorySocket,
  choose: Choice,
  faults: Faults,
  progress: Progress,
): Socket {
  const fails = (): boolean => faults.rate > 0 && !progress.honest && choose.once(faults.rate);
  return {
    pull() {
      if (fails()) return -choose.of([EINTR, EAGAIN, 111]);
      const taken = socket.pull();
      if (taken > 0) {
        progress.messages += taken;
        for (let m = 0; m < taken; m++) if (choose.once(4)) moreControl(rig(), m, choose);
      }
      return taken;
    },
    push(first, count) {
      if (fails()) return -choose.of(faults.socket);
      return socket.push(first, choose.once(4) ? 1 + choose.below(count) : count);
    },
  };
}

/** Puts a control message that the engine does not ask for before the others, as other socket options would. */
function moreControl({ memory, layout }: Rig, m: number, choose: Choice): void {
  const { u8, i32 } = memory;
  const message = layout.receive.messages + m * SIZEOF_MMSGHDR;
  const control = memory.readPointer(message + MSG_CONTROL);
  const used = i32[(message + MSG_CONTROLLEN) >> 2];
  const data = choose.of([0, 1, 4, 8, 12, 16]);
  const space = CMSG_HEADER + ((data + 7) & ~7);
  if (used + space > RECEIVE_CONTROL) return;
  u8.copyWithin(control + space, control, control + used);
  i32.fill(choose.below(256), control >> 2, (control + space) >> 2);
  i32[control >> 2] = CMSG_HEADER + data;
  i32[(control >> 2) + 1] = 0;
  i32[(control >> 2) + 2] = choose.of([0, 1, 41, 17]);
  i32[(control >> 2) + 3] = choose.of([29, 35, 37, 8]);
  i32[(message + MSG_CONTROLLEN) >> 2] = used + space;
}

function randomMessage(
  choose: Choice,
  corpus: ReturnType<typeof makeCorpus>,
  names: readonly Uint8Array[],
): IncomingMessage {
  const outer = {
    name: choose.of(names),
    ...(choose.once(2) ? { tos: choose.once(2) ? choose.below(4) : choose.below(256) } : {}),
  };
  const kind = choose.below(20);
  if (kind < 8) {
    const run = choose.of(corpus.runs);
    const from = choose.below(run.length);
    const packets = run.slice(from, from + 1 + choose.below(run.length - from));
    if (choose.once(3)) {
      const at = choose.below(packets.length);
      const copy = mutate(choose, packets[at]);
      if (copy.length === packets[at].length) packets[at] = copy;
    }
    if (choose.once(6)) packets.push(packets[0].slice(0, choose.below(packets[0].length)));
    return { ...outer, bytes: concat(...packets), segment: packets[0].length };
  }
  if (kind === 8) {
    // Segments that do not agree with what is in them.
    const bytes = concat(
      ...Array.from({ length: 1 + choose.below(6) }, () => mutate(choose, choose.of(corpus.packets).bytes)),
    ).subarray(0, 65536);
    // UDP_GRO delivers at most 128 as one message.
    return {
      ...outer,
      bytes,
      segment: Math.ceil((bytes.length + 1) / 128) + choose.below(choose.once(2) ? 100 : bytes.length + 2),
    };
  }
  if (kind === 9 && choose.once(20)) return { ...outer, bytes: new Uint8Array(65000 + choose.below(2000)).fill(0x45) };
  return { ...outer, bytes: mutate(choose, choose.of(corpus.packets).bytes) };
}

/** Whether a packet that the engine let through is a well-formed IP packet. */
function checkOut(bytes: Uint8Array): void {
  const version = bytes[0] >> 4;
  if (version === 6) {
    if (bytes.length < 40 || bytes[4] * 256 + bytes[5] + 40 !== bytes.length)
      throw new Error('an IPv6 packet whose length lies went through');
    return;
  }
  const header = (bytes[0] & 15) * 4;
  if (version !== 4 || bytes[2] * 256 + bytes[3] !== bytes.length || onesSum(bytes.subarray(0, header)) !== 0xffff) {
    throw new Error('a malformed IPv4 packet went through');
  }
}

function checkPushed({ vnet, bytes }: DevicePacket): void {
  checkOut(bytes);
  const virtio = decodeVnet(vnet);
  if (virtio.type === 0) {
    if (vnet.some((byte) => byte !== 0)) throw new Error(`a plain packet with virtio header ${vnet.join(' ')}`);
    return;
  }
  const segments = onTheWire({ vnet, bytes });
  if (segments.length < 2) throw new Error('a super-packet of one segment');
  for (const segment of segments) decode(segment);
}

async function round(seed: number): Promise<{ out: number; in: number; counters: number[] }> {
  const choose = new Choice(seed);
  const settings: Partial<EngineSettings> = {
    sourceCheck: choose.of(['peer', 'peer', 'strict', 'off'] as const),
    offloads: choose.once(2) ? 127 : choose.below(128),
    maxSegments: choose.of([1, 2, 64, 128, 128]),
    mtu: choose.of([1300, 1472, 9000]),
  };
  const faults = choose.of(FAULTS);
  const progress: Progress = { messages: 0, honest: false };
  const keep = choose.once(4);
  const rig: Rig = await makeRig({
    peers: PEERS,
    settings,
    keep: false,
    tapped: seed % 10 === 4,
    memory: { peers: 8, routeNodes: 512 },
    socket: {
      maxSegments: choose.of([64, 128]),
      ...(choose.once(4) ? { mtu: 1280 } : {}),
      ...(choose.once(8) ? { refuseSegments: choose.of([EINVAL, EIO]) } : {}),
    },
    wrapDevice: (device) => faultyDevice(device, choose, faults, progress),
    wrapSocket: (socket) => faultySocket(() => rig, socket, choose, faults, progress),
  });
  if (choose.once(6)) rig.device.refuseWith(({ vnet }) => (vnet[1] !== 0 && !choose.once(3) ? EINVAL : 0));
  if (keep) {
    rig.device.onPush = checkPushed;
    for (const socket of rig.sockets) socket.onSend = ({ bytes }) => checkOut(bytes);
  }
  const outbound = makeCorpus(choose, true);
  const inbound = makeCorpus(choose, false);
  const stranger = [socketAddress(address('192.168.1.1'), 1), socketAddress(address('fd98::1'), 1)];
  const names = [0, 1].map((underlay) => [
    ...PEERS.map((_, i) => rig.name(i)).filter((name) => name.length === (underlay === 0 ? 16 : 28)),
    stranger[underlay],
  ]);

  let messages = 0;
  let now = choose.edge(32) | 0;
  for (let done = 0; done < ROUND || rig.sockets[0].received + rig.sockets[1].received < ROUND; done += BATCH) {
    progress.honest = false;
    const packets = Array.from({ length: BATCH }, () => {
      const { vnet, bytes } = choose.of(outbound.packets);
      const changed = mutate(choose, bytes);
      return { vnet: mutateVnet(choose, vnet, changed.length), bytes: changed };
    });
    rig.device.load(packets);
    for (const underlay of [0, 1]) {
      const batch = Array.from({ length: 6 + choose.below(12) }, () => randomMessage(choose, inbound, names[underlay]));
      messages += batch.length;
      rig.sockets[underlay].load(batch);
    }
    const pulled = rig.device.pulled + BATCH;
    for (let turns = 0; rig.device.pulled < pulled || progress.messages < messages || rig.engine.blocked; turns++) {
      if (turns > 200) progress.honest = true;
      if (turns > 2000)
        throw new Error(
          `no end: ${pulled - rig.device.pulled} packets and ${messages - progress.messages} messages are left`,
        );
      if (turns > 100) for (const socket of rig.sockets) socket.room = Number.POSITIVE_INFINITY;
      else for (const socket of rig.sockets) socket.room = choose.once(3) ? choose.below(4) : Number.POSITIVE_INFINITY;
      now = (now + choose.below(20)) | 0;
      rig.engine.turn(now, choose.once(4) ? choose.below(8) : 7);
    }
    rig.audit();
  }
  return {
    out: rig.device.pulled,
    in: rig.sockets[0].received + rig.sockets[1].received,
    counters: COUNTER_INFOS.map((_, id) => readCounter(rig.memory, id)),
  };
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
  for (let seed = FIRST_SEED; out < PACKETS || into < PACKETS; seed++) await run(seed);
  t.ok(out >= PACKETS && into >= PACKETS);
  // A fuzzer that never gets somewhere finds nothing there.
  if (PACKETS >= 1e6)
    t.same(
      COUNTER_INFOS.slice(0, FIRST_OF_LAYER_2)
        .map((_, id) => counterName(id))
        .filter((_, id) => counted[id] === 0),
      [],
      'every counter was reached',
    );
  if (process.env.WEFT_FUZZ_COUNTERS) for (const [id, n] of counted.entries()) t.comment(`${counterName(id)} ${n}`);
  t.comment(`${out} packets out and ${into} in, seeds ${RECORDED.join(', ')} and from ${FIRST_SEED}`);
});
