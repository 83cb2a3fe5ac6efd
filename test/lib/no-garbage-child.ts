/**
 * A process of its own for dataplane/no-garbage.test.ts: packets through an in-memory engine between two calls of gc(), whose
 * lines in the output of --trace-gc are the marks between which there must be none. (A mark written by JavaScript would not
 * do: V8 writes its lines through a buffer.)
 *
 *   node --trace-gc --expose-gc no-garbage-child.js <packets to warm up> <packets> [allocate|capture]
 *
 * `allocate`: one object for every packet read from the device, to show that the test would see it. `capture`: everything is
 * captured meanwhile.
 */
import { CaptureRing, RING_HEAD } from '../../src/dataplane/capture-ring.js';
import { conservation } from '../../src/dataplane/counters.js';
import { Engine, READY_ALL, READY_DEVICE } from '../../src/dataplane/engine.js';
import { Tables } from '../../src/dataplane/tables.js';
import type { Device } from '../../src/io/device.js';
import { EngineMemory } from '../../src/io/memory.js';
import { type DevicePacket, MemoryDevice, NO_VNET } from '../../src/io/memory-device.js';
import { type IncomingMessage, MemorySocket } from '../../src/io/memory-socket.js';
import { ALL_OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import {
  ACK,
  address,
  icmp,
  message,
  PSH,
  packet,
  pattern,
  prefix,
  superPacket,
  tcp,
  udp,
  unfinished,
} from './packets.js';
import { DEVICE_4, HOST_4, HOST_6, remote4, remote6 } from './rig.js';
import { beginCapture } from './tapped.js';

const [warmUp, count] = process.argv.slice(2, 4).map(Number);
const allocate = process.argv[4] === 'allocate';
const captures = process.argv[4] === 'capture';
const gc = (globalThis as { gc?: () => void }).gc;
if (!gc || !(warmUp >= 0) || !(count > 0)) throw new Error('usage: see the top of this file');

const memory = EngineMemory.create({ workers: 1, peers: 64, routeNodes: 4096, networks: 1 });
const layout = memory.layout.workers[0];
const device = new MemoryDevice(memory, layout);
const sockets = [0, 1].map((underlay) => new MemorySocket(memory, layout, underlay));
const tables = new Tables(memory, () => {});
const addresses = ['192.168.77.2', '192.168.77.3', 'fd99::4'].map(address);
addresses.forEach((underlay, i) => {
  const ref = tables.addPeer({ address: underlay, port: 8285, mtu: 1472, ecn: i > 0, network: 0 });
  tables.setRoute(0, prefix(`10.5.${i + 2}.0/24`), ref);
  tables.setRoute(0, prefix(`fd00:5:0:${i + 2}::/64`), ref);
});
await tables.commit();
const name = (i: number): Uint8Array => socketAddress(addresses[i], 8285);

/** One object a packet, kept until the next so that no optimiser takes it away. */
class Allocating implements Device {
  last: { readonly at: number } | undefined;
  pull(at: number): number {
    this.last = { at };
    return device.pull(at);
  }
  push(at: number, length: number): number {
    return device.push(at, length);
  }
}

const engine = new Engine(
  memory,
  0,
  { devices: [allocate ? new Allocating() : device], sockets },
  {
    sourceCheck: 'strict',
    offloads: ALL_OFFLOADS,
    maxSegments: 128,
    mtu: 1472,
    address4: address(DEVICE_4),
    address6: undefined,
  },
);

const short = pattern(22);
const bulk = pattern(14000);
/** What a busy host sends: mostly small, some super-packets, errors of every kind. */
const outgoing: DevicePacket[] = [0, 1, 2].flatMap((peer) => [
  ...Array.from({ length: 40 }, (_, i) => ({
    vnet: NO_VNET,
    bytes: packet({ source: HOST_4, destination: remote4(peer), id: i }, udp({ payload: short })),
  })),
  ...Array.from({ length: 10 }, () => ({
    vnet: NO_VNET,
    bytes: packet({ source: HOST_6, destination: remote6(peer), tos: 2 }, udp({ payload: pattern(500) })),
  })),
  unfinished({ source: HOST_4, destination: remote4(peer) }, tcp({ payload: short })),
  superPacket({ source: HOST_4, destination: remote4(peer) }, tcp({ payload: bulk }), 1400),
  superPacket({ source: HOST_6, destination: remote6(peer) }, udp({ payload: pattern(2000) }), 500),
  { vnet: NO_VNET, bytes: packet({ source: HOST_4, destination: '10.99.0.1' }, udp()) },
  { vnet: NO_VNET, bytes: packet({ source: HOST_4, destination: remote4(peer), ttl: 1 }, icmp(8)) },
  {
    vnet: NO_VNET,
    bytes: packet({ source: HOST_4, destination: remote4(peer), df: false }, udp({ payload: pattern(1460) })),
  },
  { vnet: NO_VNET, bytes: packet({ source: HOST_4, destination: remote4(peer) }, udp({ payload: pattern(1460) })) },
  { vnet: NO_VNET, bytes: new Uint8Array(30) },
]);

const stream = (peer: number, six: boolean, size: number, segments: number): Uint8Array[] =>
  Array.from({ length: segments }, (_, i) =>
    packet(
      six
        ? { source: remote6(peer), destination: HOST_6 }
        : { source: remote4(peer), destination: HOST_4, id: i, tos: 2 },
      tcp({ seq: i * size, payload: pattern(size), flags: i === segments - 1 ? ACK | PSH : ACK }),
    ),
  );
const datagrams = (peer: number): Uint8Array[] =>
  Array.from({ length: 30 }, (_, i) =>
    packet({ source: remote4(peer), destination: HOST_4, id: i }, udp({ payload: short })),
  );
/** What a busy network brings: runs that merge, runs that do not, singles, marks, and what is dropped. */
const incoming = (peer: number): IncomingMessage[] => [
  message(name(peer), stream(peer, false, 1400, 20), { tos: 0 }),
  message(name(peer), stream(peer, true, 100, 40), { tos: 0 }),
  message(name(peer), stream(peer, false, 100, 10), { tos: 3 }),
  message(name(peer), datagrams(peer)),
  ...datagrams(peer).map((bytes) => message(name(peer), [bytes], { tos: 0 })),
  message(name(peer), [packet({ source: remote4(peer), destination: HOST_4 }, icmp(8))]),
  message(name(peer), [packet({ source: '10.99.0.1', destination: HOST_4 }, udp())]),
  message(name(peer), [new Uint8Array(0)]),
  message(name(peer), [new Uint8Array(19)]),
  message(socketAddress(address(peer === 2 ? 'fd98::1' : '192.0.2.1'), 1), datagrams(peer)),
];

const incoming4 = [...incoming(0), ...incoming(1)];
const incoming6 = incoming(2);

/** Forgets what has been captured: for the reader, which need not do without objects. */
const ring = captures ? new CaptureRing(memory, layout) : undefined;
if (captures) beginCapture(memory);

/** Half of `packets` each way at least. */
function run(packets: number): void {
  const half = packets / 2;
  sockets[0].load(incoming4, packets);
  sockets[1].load(incoming6, packets);
  const outBefore = device.pulled;
  const inBefore = sockets[0].received + sockets[1].received;
  let now = 0;
  for (;;) {
    const out = device.pulled - outBefore;
    const into = sockets[0].received + sockets[1].received - inBefore;
    if (out >= half && into >= half) break;
    now = (now + 1) | 0;
    // A turn brings more in than it takes out: let outbound catch up.
    engine.turn(now, into > out ? READY_DEVICE : READY_ALL);
    ring?.start();
  }
}

device.load(outgoing, warmUp + count);
run(warmUp);
const base = device.pulled + sockets[0].received + sockets[1].received;
gc();
run(count);
gc();
const sums = conservation(memory);
const passed = device.pulled + sockets[0].received + sockets[1].received - base;
console.log(
  JSON.stringify({
    passed,
    out: device.pulled,
    in: sockets[0].received + sockets[1].received,
    captured: memory.i32[(layout.capture >> 2) + RING_HEAD] > 0,
    balanced: sums.in + sums.made === sums.sent + sums.consumed + sums.dropped,
  }),
);
