/** Sizes of batches and messages, against what really crossed the in-memory device and sockets. */
import t from 'tap';
import {
  BOUNDS,
  countSize,
  IN_BATCH,
  IN_MESSAGE,
  OUT_BATCH,
  OUT_MESSAGE,
  readHistogram,
} from '../../src/dataplane/histograms.js';
import { PULL_PACKETS } from '../../src/dataplane/outbound.js';
import { EAGAIN, EIO } from '../../src/io/device.js';
import { EngineMemory, HISTOGRAM_SLOTS, RECEIVE_MESSAGES } from '../../src/io/memory.js';
import { message, packet, pattern, plain, superPacket, tcp, udp } from '../lib/packets.js';
import { HOST_4, makeRig, type Rig, remote4 } from '../lib/rig.js';

/** How many there were of each bound, not added up; the last are those beyond. */
function sizes({ memory }: Pick<Rig, 'memory'>, id: number): Record<string, number> {
  const { upTo, count } = readHistogram(memory, id);
  const found: Record<string, number> = {};
  [...upTo, count].forEach((n, i) => {
    const times = n - (i === 0 ? 0 : upTo[i - 1]);
    if (times > 0) found[String(BOUNDS[i] ?? '+Inf')] = times;
  });
  return found;
}
const sumOf = ({ memory }: Rig, id: number): number => readHistogram(memory, id).sum;

const toPeer = (i: number, bytes = 100) =>
  plain(packet({ source: HOST_4, destination: remote4(i) }, udp({ payload: pattern(bytes) })));

t.test('every size has its slot', async (t) => {
  const f64 = new Float64Array(HISTOGRAM_SLOTS + 1);
  for (let size = 1; size <= 4096; size++) {
    f64.fill(0);
    countSize(f64, 0, size);
    const slot = f64.indexOf(1);
    if (size > 2 ** slot || (slot > 0 && size <= 2 ** (slot - 1))) t.fail(`${size} is in slot ${slot}`);
  }
  f64.fill(0);
  countSize(f64, 0, 2 ** 31 - 1);
  t.equal(f64[HISTOGRAM_SLOTS - 1], 1, 'the largest there can be');
});

t.test('outbound: batches of the device, datagrams of each message', async (t) => {
  const rig = await makeRig({ peers: [{}, {}] });
  rig.out(toPeer(0));
  t.same(sizes(rig, OUT_BATCH), { 1: 1 });
  t.same(sizes(rig, OUT_MESSAGE), { 1: 1 });
  rig.out(...Array.from({ length: 70 }, (_, i) => toPeer(i & 1)));
  // 32, 32 and 6 packets, half of each to either peer.
  t.equal(PULL_PACKETS, 32);
  t.same(sizes(rig, OUT_BATCH), { 1: 1, 8: 1, 32: 2 });
  t.same(sizes(rig, OUT_MESSAGE), { 1: 1, 4: 2, 16: 4 });
  rig.out(superPacket({ source: HOST_4, destination: remote4() }, tcp({ payload: pattern(40_000) }), 1000));
  t.same(sizes(rig, OUT_MESSAGE), { 1: 1, 4: 2, 16: 4, 64: 1 }, '40 segments are one message');
  t.equal(sumOf(rig, OUT_MESSAGE), rig.sockets[0].sent);
  t.equal(sumOf(rig, OUT_BATCH), rig.device.pulled);
  rig.audit();
});

t.test('outbound: what is dropped, and what waits, is no message', async (t) => {
  const rig = await makeRig();
  rig.out(plain(packet({ source: HOST_4, destination: '10.99.0.1' }, udp())));
  t.same(sizes(rig, OUT_BATCH), { 1: 1 });
  t.same(sizes(rig, OUT_MESSAGE), {});
  rig.sockets[0].room = 0;
  rig.device.load([toPeer(0), toPeer(0)]);
  rig.engine.turn(0, 7);
  t.same(sizes(rig, OUT_MESSAGE), {}, 'the socket is full');
  rig.sockets[0].room = Number.POSITIVE_INFINITY;
  rig.drain();
  t.same(sizes(rig, OUT_MESSAGE), { 2: 1 });
  rig.audit();
});

t.test('outbound: a message that is replayed singly is as many messages of one', async (t) => {
  for (const interrupted of [false, true]) {
    let pushes = 0;
    const rig = await makeRig({
      socket: { refuseSegments: EIO },
      wrapSocket: (socket) => ({
        pull: () => socket.pull(),
        push: (first, count) => (interrupted && ++pushes % 2 === 0 ? -EAGAIN : socket.push(first, count)),
      }),
    });
    rig.out(superPacket({ source: HOST_4, destination: remote4() }, tcp({ payload: pattern(5000) }), 1000));
    for (let i = 0; i < 20; i++) rig.drain();
    t.same(sizes(rig, OUT_MESSAGE), { 1: 5 });
    t.equal(rig.counter('outbound.messages_sent'), 5);
    t.equal(rig.counter('outbound.messages_replayed'), 1);
    rig.audit();
  }
});

t.test('inbound: messages of each recvmmsg, datagrams of each message', async (t) => {
  const rig = await makeRig();
  const datagram = packet({ source: remote4(), destination: HOST_4 }, udp({ payload: pattern(100) }));
  rig.in([{ name: rig.name(0), bytes: datagram }]);
  t.same(sizes(rig, IN_BATCH), { 1: 1 });
  t.same(sizes(rig, IN_MESSAGE), { 1: 1 });
  const run = Array.from({ length: 5 }, () => datagram);
  rig.in(Array.from({ length: RECEIVE_MESSAGES + 3 }, () => message(rig.name(0), run)));
  t.same(sizes(rig, IN_BATCH), { 1: 1, 4: 1, 16: 1 });
  t.same(sizes(rig, IN_MESSAGE), { 1: 1, 8: RECEIVE_MESSAGES + 3 });
  rig.in([{ name: rig.name(0), bytes: new Uint8Array(0) }]);
  rig.in([{ name: rig.name(0), bytes: new Uint8Array(66_000), segment: 100 }]);
  t.same(sizes(rig, IN_MESSAGE), { 1: 2, 8: RECEIVE_MESSAGES + 3, '+Inf': 1 }, 'empty, and truncated');
  t.equal(sumOf(rig, IN_MESSAGE), rig.sockets[0].received);
  t.equal(sumOf(rig, IN_BATCH), rig.counter('inbound.messages_received'));
  rig.audit();
});

t.test('workers add up', async (t) => {
  const memory = EngineMemory.create({ workers: 3, peers: 16, routeNodes: 16, networks: 1 });
  memory.layout.workers.forEach((worker, i) => {
    const at = (worker.histograms >> 3) + IN_BATCH * HISTOGRAM_SLOTS;
    countSize(memory.f64, at, 1 << i);
    countSize(memory.f64, at, 1000);
  });
  t.same(sizes({ memory }, IN_BATCH), { 1: 1, 2: 1, 4: 1, '+Inf': 3 });
  t.ok(memory.intactGuards());
});
