/** The memory's layout, addresses, the kernel's structures in it, and the in-memory and checked ends, all without native code. */
import fc from 'fast-check';
import t from 'tap';
import { CheckedDevice, CheckedSocket } from '../../src/io/checked.js';
import { EAGAIN, EINVAL, EIO, EMSGSIZE } from '../../src/io/device.js';
import {
  ARENA_BYTES,
  DEFAULT_MEMORY,
  EngineMemory,
  HEADROOM,
  layoutFor,
  MAX_FRAME,
  MAX_PACKET,
  MERGE_SLOTS,
  type MemoryOptions,
  RECEIVE_MESSAGES,
  RECEIVE_ROOM,
  SEND_CONTROL,
  SEND_MESSAGES,
  SEND_PIECES,
  VNET_HEADER,
} from '../../src/io/memory.js';
import { MemoryDevice } from '../../src/io/memory-device.js';
import { MemorySocket, type OutgoingDatagram } from '../../src/io/memory-socket.js';
import { initReceiveArrays, initSendArrays } from '../../src/io/messages.js';
import { ALL_OFFLOADS, OFFLOADS, offloadNames, parseOffloads } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { address, hex, pattern, plain } from '../lib/packets.js';

const SMALL: MemoryOptions = { workers: 1, peers: 8, routeNodes: 16, networks: 1 };

t.test('layout: regions lie apart, aligned, each followed by a guard', async (t) => {
  for (const options of [
    SMALL,
    { workers: 3, peers: 100, routeNodes: 1000, networks: 2 },
    DEFAULT_MEMORY,
    { ...DEFAULT_MEMORY, workers: 8 },
    { ...DEFAULT_MEMORY, networks: 16, macs: 1_000_000, neighbours: 65536, statics: 65536, senders: 8 },
  ]) {
    const layout = layoutFor(options);
    t.same(layoutFor(options), layout, 'a pure function of the options');
    t.ok(layout.bytes < 2 ** 31, `${layout.bytes} bytes`);
    const starts: number[] = [layout.words, layout.networks, layout.captureFilter, layout.peers];
    for (const table of layout.tables) {
      starts.push(table.roots4, table.roots6, table.nodes, table.addresses);
      starts.push(table.staticMacs, table.staticNeighbours, table.floods);
    }
    for (const worker of [...layout.workers, layout.dry]) {
      const { receive } = worker;
      const send = new Set(worker.send); // all senders of the dry engine have the same
      starts.push(worker.macs, worker.macDetails, worker.neighbours, ...worker.rings);
      starts.push(worker.histograms, worker.gauges, worker.capture);
      starts.push(worker.counters, worker.peerCounters, worker.vnetIn, worker.pullIov, worker.pushIov, worker.arena);
      starts.push(
        worker.mergeStates,
        worker.mergeBuffers,
        worker.scratch,
        worker.pollfds,
        worker.timespec,
        worker.kernelOut,
      );
      for (const one of send) starts.push(one.messages, one.iovecs, one.controls, one.names);
      starts.push(receive.messages, receive.iovecs, receive.controls, receive.names, receive.buffers);
      for (let i = 1; i < RECEIVE_MESSAGES; i++) starts.push(receive.buffers + i * receive.stride);
      for (let i = 1; i < MERGE_SLOTS; i++) starts.push(worker.mergeBuffers + i * worker.mergeStride);
      t.ok(receive.stride >= RECEIVE_ROOM + HEADROOM + 64);
      t.ok(worker.mergeStride >= MAX_PACKET + 1 + HEADROOM + 64);
    }
    t.ok(
      starts.every((at) => at % 64 === 0 && at >= 1024),
      'aligned to 64',
    );
    const sorted = starts.toSorted((a, b) => a - b);
    const guards = [...layout.guards].sort((a, b) => a - b);
    t.equal(new Set(sorted).size, sorted.length);
    t.equal(guards.length, sorted.length, 'one guard a region');
    t.ok(
      sorted.every((at, i) => at <= guards[i] && (i + 1 === sorted.length || guards[i] + 64 <= sorted[i + 1])),
      'between each two',
    );
  }
});

t.test('guards: any single byte is noticed', async (t) => {
  const memory = EngineMemory.create(SMALL);
  t.ok(memory.intactGuards());
  for (const at of memory.layout.guards) {
    for (const byte of [at, at + 31, at + 63]) {
      memory.u8[byte] ^= 1;
      if (memory.intactGuards()) t.fail(`byte ${byte}`);
      memory.u8[byte] ^= 1;
    }
  }
  t.ok(memory.intactGuards());
});

t.test('addresses, wherever the memory lies', async (t) => {
  const { memory } = EngineMemory.create(SMALL);
  const bases = fc.oneof(
    fc.constantFrom(
      0,
      4096,
      2 ** 31 - 65536,
      2 ** 31,
      2 ** 32 - 65536,
      2 ** 32 - 4096,
      2 ** 32,
      0x7f0012345000,
      0x7ffffffff000,
      0xffff00000000,
    ),
    fc.nat(2 ** 20).map((page) => 0x7f0000000000 + page * 4096),
  );
  const bytes = layoutFor(SMALL).bytes;
  fc.assert(
    fc.property(bases, fc.nat(bytes - 1), fc.nat(65535), (base, at, length) => {
      const engine = new EngineMemory({ memory, options: SMALL }, () => base);
      const to = engine.layout.workers[0].pullIov;
      engine.i32.fill(-1, to >> 2, (to >> 2) + 4);
      engine.writeIovec(to, at, length);
      const view = new DataView(memory.buffer, to, 16);
      return (
        view.getBigUint64(0, true) === BigInt(base) + BigInt(at) &&
        view.getBigUint64(8, true) === BigInt(length) &&
        engine.readPointer(to) === at &&
        engine.pointer(at) === base + at
      );
    }),
    { numRuns: 5000 },
  );
  t.throws(() => new EngineMemory({ memory, options: { ...SMALL, routeNodes: 1 << 25 } }), RangeError);
});

t.test('a second view of the same memory sees the same bytes', async (t) => {
  const first = EngineMemory.create(SMALL);
  const second = new EngineMemory(first.share());
  first.u8[5000] = 77;
  t.equal(second.u8[5000], 77);
  t.same(second.layout, first.layout);
});

t.test('struct mmsghdr, iovec and cmsghdr as the kernel reads them', async (t) => {
  const memory = EngineMemory.create(SMALL);
  const layout = memory.layout.workers[0];
  const view = new DataView(memory.memory.buffer);
  const u64 = (at: number): number => Number(view.getBigUint64(at, true));
  for (const underlay of [0, 1]) {
    initSendArrays(memory, layout, underlay, underlay);
    const { messages, iovecs, controls } = layout.send[underlay];
    for (const m of [0, 1, 500, SEND_MESSAGES - 1]) {
      t.equal(u64(messages + m * 64 + 16), iovecs + m * SEND_PIECES * 16, 'msg_iov');
      const control = controls + m * SEND_CONTROL;
      t.equal(u64(control), 18, 'cmsg_len of UDP_SEGMENT');
      t.same([view.getInt32(control + 8, true), view.getInt32(control + 12, true)], [17, 103]);
      t.equal(u64(control + 24), 20, 'cmsg_len of IP_TOS or IPV6_TCLASS');
      t.same(
        [view.getInt32(control + 32, true), view.getInt32(control + 36, true)],
        underlay === 0 ? [0, 1] : [41, 67],
      );
    }
  }
  initReceiveArrays(memory, layout);
  const { messages, iovecs, controls, names, buffers, stride } = layout.receive;
  for (let m = 0; m < RECEIVE_MESSAGES; m++) {
    const at = messages + m * 64;
    t.same([u64(at), view.getUint32(at + 8, true)], [names + m * 32, 28]);
    t.same([u64(at + 16), u64(at + 24)], [iovecs + m * 16, 1]);
    t.same([u64(at + 32), u64(at + 40), view.getInt32(at + 48, true)], [controls + m * 128, 128, 0]);
    t.same([u64(iovecs + m * 16), u64(iovecs + m * 16 + 8)], [buffers + m * stride, RECEIVE_ROOM]);
  }
  t.ok(memory.intactGuards());
});

t.test('struct sockaddr_in and sockaddr_in6', async (t) => {
  t.equal(hex(socketAddress(address('192.168.77.2'), 8285)), '0200205dc0a84d020000000000000000');
  t.equal(hex(socketAddress(address('fd00::2'), 65535)), `0a00ffff00000000${'fd00'}${'00'.repeat(13)}0200000000`);
});

t.test('the checked ends throw on any address outside', async (t) => {
  const memory = EngineMemory.create(SMALL);
  const layout = memory.layout.workers[0];
  const device = new CheckedDevice(new MemoryDevice(memory, layout), layout);
  const end = layout.arena + ARENA_BYTES;
  t.equal(device.pull(layout.arena), -EAGAIN);
  t.equal(device.pull(end - MAX_FRAME), -EAGAIN);
  t.throws(() => device.pull(layout.arena - 1));
  t.throws(() => device.pull(end - MAX_FRAME + 1));
  t.throws(() => device.pull(Number.NaN));
  t.equal(device.push(layout.receive.buffers, 100), 0);
  t.equal(device.push(layout.mergeBuffers, 100), 0);
  t.equal(device.push(layout.scratch, 100), 0);
  t.throws(() => device.push(layout.receive.buffers - 1, 100));
  t.throws(() => device.push(layout.timespec, 1));
  t.throws(() => device.push(layout.scratch, -1));
  t.throws(() => device.push(layout.receive.buffers, 2 ** 30));

  initSendArrays(memory, layout, 0, 0);
  const socket = new CheckedSocket(new MemorySocket(memory, layout, 0), memory, layout, 0);
  const { messages, iovecs, controls, names } = layout.send[0];
  const good = (): void => {
    memory.writePointer(messages, names);
    memory.i32[(messages + 8) >> 2] = 16;
    memory.writePointer(messages + 16, iovecs);
    memory.i32[(messages + 24) >> 2] = 1;
    memory.writePointer(messages + 32, controls);
    memory.i32[(messages + 40) >> 2] = 0;
    memory.writeIovec(iovecs, layout.arena, 100);
  };
  good();
  t.equal(socket.push(0, 1), 1);
  const setWord = (index: number, value: number): void => {
    memory.i32[index] = value;
  };
  const spoils: readonly (readonly [string, () => void])[] = [
    ['name', () => memory.writePointer(messages, names - 1)],
    ['name length', () => setWord((messages + 8) >> 2, SEND_MESSAGES * 32 + 1)],
    ['iovec array', () => memory.writePointer(messages + 16, iovecs + 16)],
    ['iovec count', () => setWord((messages + 24) >> 2, SEND_PIECES + 1)],
    ['iovec count below 0', () => setWord((messages + 24) >> 2, -1)],
    ['control', () => memory.writePointer(messages + 32, controls - 8)],
    ['control length', () => setWord((messages + 40) >> 2, SEND_CONTROL + 1)],
    ['payload', () => memory.writeIovec(iovecs, layout.arena - 1, 100)],
    ['payload end', () => memory.writeIovec(iovecs, end - 99, 100)],
    ['payload length', () => memory.writeIovec(iovecs, layout.arena, -1)],
    ['payload of another place', () => setWord((iovecs >> 2) + 1, 1)],
  ];
  for (const [what, spoil] of spoils) {
    good();
    spoil();
    t.throws(() => socket.push(0, 1), Error, what);
  }
  good();
  t.throws(() => socket.push(SEND_MESSAGES, 1));
  t.throws(() => socket.push(-1, 1));
  t.throws(() => socket.push(0, SEND_MESSAGES + 1));
});

t.test('the in-memory socket answers as the kernel does', async (t) => {
  const memory = EngineMemory.create(SMALL);
  const layout = memory.layout.workers[0];
  initSendArrays(memory, layout, 0, 0);
  const { messages, iovecs, controls } = layout.send[0];
  memory.u8.set(pattern(65536), layout.arena);
  const prepare = (pieces: readonly number[], segment: number, tos = 0): void => {
    memory.writePointer(messages, memory.layout.peers + 32);
    memory.i32[(messages + 8) >> 2] = 16;
    memory.i32[(messages + 24) >> 2] = pieces.length;
    let at = layout.arena;
    pieces.forEach((length, i) => {
      memory.writeIovec(iovecs + i * 16, at, length);
      at += length;
    });
    memory.writePointer(messages + 32, controls + (segment > 0 ? 0 : 24));
    memory.i32[(messages + 40) >> 2] = (segment > 0 ? 24 : 0) + (tos > 0 ? 24 : 0);
    memory.u16[(controls + 16) >> 1] = segment;
    memory.i32[(controls + 40) >> 2] = tos;
  };
  const sent: OutgoingDatagram[] = [];
  const make = (options = {}): MemorySocket => {
    const socket = new MemorySocket(memory, layout, 0, options);
    socket.onSend = (datagram) => sent.push(datagram);
    return socket;
  };
  const socket = make();
  prepare([100, 50], 0, 3);
  t.equal(socket.push(0, 1), 1);
  t.equal(hex(sent[0].bytes), hex(pattern(150)));
  t.equal(sent[0].tos, 3);
  prepare([100, 60], 64);
  t.equal(socket.push(0, 1), 1);
  t.same(
    sent.slice(1).map(({ bytes }) => bytes.length),
    [64, 64, 32],
  );
  t.equal(hex(sent[3].bytes), hex(pattern(160).subarray(128)));
  prepare([65507], 0);
  t.equal(socket.push(0, 1), 1);
  prepare([65508], 0);
  t.equal(socket.push(0, 1), -EMSGSIZE);
  prepare([1280], 10);
  t.equal(socket.push(0, 1), 1, '128 segments');
  prepare([1281], 10);
  t.equal(socket.push(0, 1), -EINVAL, '129 segments');
  prepare([641], 10);
  t.equal(make({ maxSegments: 64 }).push(0, 1), -EINVAL);
  t.equal(make({ refuseSegments: EIO }).push(0, 1), -EIO);
  prepare([10], 10);
  t.equal(make({ refuseSegments: EIO }).push(0, 1), 1, 'one segment is no segmentation');
  prepare([1001], 0);
  t.equal(make({ mtu: 1000 }).push(0, 1), -EMSGSIZE);
  prepare([3000], 1001);
  t.equal(make({ mtu: 1000 }).push(0, 1), -EINVAL);
  prepare([3000], 1000);
  t.equal(make({ mtu: 1000 }).push(0, 1), 1);
  const full = make();
  full.room = 0;
  t.equal(full.push(0, 1), -EAGAIN);
  t.equal(full.sent, 0);
});

t.test('the in-memory device copies what it is given and takes', async (t) => {
  const memory = EngineMemory.create(SMALL);
  const layout = memory.layout.workers[0];
  const device = new MemoryDevice(memory, layout);
  for (const [length, shift] of [
    [1, 0],
    [64, 0],
    [255, 1],
    [257, 4],
    [65535, 3],
  ]) {
    const vnet = pattern(10, length);
    device.load([{ vnet, bytes: pattern(length) }]);
    const at = layout.arena + shift;
    t.equal(device.pull(at), length);
    t.equal(hex(memory.u8.slice(at, at + length)), hex(pattern(length)), `${length} bytes at + ${shift}`);
    t.equal(hex(memory.u8.slice(layout.vnetIn, layout.vnetIn + VNET_HEADER)), hex(vnet));
    t.equal(device.pull(at), -EAGAIN);
  }
  device.load([plain(pattern(20)), plain(pattern(21))], 5);
  t.same(
    [1, 2, 3, 4, 5, 6].map(() => device.pull(layout.arena)),
    [20, 21, 20, 21, 20, -EAGAIN],
  );
});

t.test('--offload', async (t) => {
  t.equal(parseOffloads('all'), ALL_OFFLOADS);
  t.equal(parseOffloads('none'), 0);
  t.same(offloadNames(parseOffloads('all,-uso')), ['csum', 'tso4', 'tso6', 'segment', 'gro', 'merge']);
  t.same(offloadNames(parseOffloads('-uso, -gro')), ['csum', 'tso4', 'tso6', 'segment', 'merge']);
  t.same(offloadNames(parseOffloads('segment,gro')), ['segment', 'gro']);
  t.same(offloadNames(parseOffloads('-csum')), ['segment', 'gro', 'merge'], 'what needs csum goes with it');
  t.same(offloadNames(parseOffloads('none,gro')), ['gro']);
  t.ok(parseOffloads('tso4,gro') & OFFLOADS.tso4, 'what is asked for by name is not dropped without a word');
  for (const wrong of ['tso', '', 'all,-', 'all;gro', 'ALL', '-all', 'constructor']) {
    t.throws(() => parseOffloads(wrong), { name: 'RangeError', message: /^unknown offload/ }, wrong);
  }
});
