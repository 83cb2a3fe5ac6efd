/**
 * A process of its own for dataplane/l2-no-garbage.test.ts, as no-garbage-child.ts is for layer 3: frames through a switch in
 * memory between two calls of gc(). It learns, ages, floods, answers ARP and ND, merges, and tells a second worker.
 *
 *   node --trace-gc --expose-gc no-garbage-l2-child.js <frames to warm up> <frames> [allocate|capture]
 *
 * `allocate`: one object for every frame read from a device, to show that the test would see it. `capture`: everything is
 * captured meanwhile.
 */
import { CaptureRing, RING_HEAD } from '../../src/dataplane/capture-ring.js';
import { conservation } from '../../src/dataplane/counters.js';
import { READY_ALL, readyDevice } from '../../src/dataplane/engine.js';
import type { Device } from '../../src/io/device.js';
import { type DevicePacket, type MemoryDevice, NO_VNET } from '../../src/io/memory-device.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';
import { socketAddress } from '../../src/io/socket-address.js';
import {
  advertise,
  arpFrame,
  BROADCAST,
  ethernet,
  frame,
  mac,
  NOBODY,
  O_FLAG,
  OTHER,
  padded,
  partialFrame,
  solicit,
  superFrame,
  unfinishedFrame,
  VLAN,
  vxlan,
} from './frames.js';
import { ACK, address, PSH, pattern, tcp, udp } from './packets.js';
import { makeSwitch, our4, our6, ourMac, PORT, setOwnMacs, their4, their6, theirMac, VNIS } from './rig-l2.js';
import { beginCapture } from './tapped.js';

const [warmUp, count] = process.argv.slice(2, 4).map(Number);
const allocate = process.argv[4] === 'allocate';
const captures = process.argv[4] === 'capture';
const gc = (globalThis as { gc?: () => void }).gc;
if (!gc || !(warmUp >= 0) || !(count > 0)) throw new Error('usage: see the top of this file');

/** One object a frame, kept until the next so that no optimiser takes it away. */
class Allocating implements Device {
  last: { readonly at: number } | undefined;
  readonly #device: MemoryDevice;
  constructor(device: MemoryDevice) {
    this.#device = device;
  }
  pull(at: number): number {
    this.last = { at };
    return this.#device.pull(at);
  }
  push(at: number, length: number): number {
    return this.#device.push(at, length);
  }
}

const rig = await makeSwitch({
  keep: false,
  workers: 2,
  peers: [{}, {}, { address: 'fd99::4' }, { mtu: 1000 }],
  // Short, so that entries come and go all the time.
  l2: { age: 500, macsPerPeer: 40, stormLimit: 50_000 },
  settings: { inheritDscp: true },
  memory: { macs: 256, neighbours: 64, statics: 32 },
  wrapDevice: (device) => (allocate ? new Allocating(device) : device),
});
const other = rig.other(1);
rig.tables.setMac(0, mac(theirMac(0, 200)), rig.refs[0][0]);
rig.tables.setNeighbour(0, address(their4(0, 200)), mac(theirMac(0, 200)), undefined, rig.refs[0][0]);
rig.tables.setNeighbour(0, address(their6(0, 200)), mac(theirMac(0, 200)), true, rig.refs[0][0]);
await rig.tables.commit();
setOwnMacs(rig, 0, ourMac(250));

const short = pattern(22);
const plain = (bytes: Uint8Array): DevicePacket => ({ vnet: NO_VNET, bytes });
/** What busy hosts send: mostly small and to hosts that are known, some super-frames, some to all, errors of every kind. */
const outgoing: DevicePacket[] = [0, 1, 2].flatMap((peer) => {
  const to = { source: ourMac(peer + 1), destination: theirMac(peer) };
  const four = { source: our4(peer + 1), destination: their4(peer) };
  const six = { source: our6(peer + 1), destination: their6(peer), tos: 0xba };
  return [
    ...Array.from({ length: 40 }, (_, i) => plain(frame(to, { ...four, id: i }, udp({ from: i & 7, payload: short })))),
    ...Array.from({ length: 10 }, () =>
      plain(frame({ ...to, tags: [[VLAN, 5]] }, six, udp({ payload: pattern(500) }))),
    ),
    unfinishedFrame(to, four, tcp({ payload: short })),
    superFrame(to, four, tcp({ payload: pattern(14_000) }), 1350),
    superFrame({ ...to, tags: [[VLAN, 5]] }, six, udp({ payload: pattern(2000) }), 500),
    plain(frame({ ...to, destination: theirMac(0, 200) }, four, udp())),
    plain(
      frame({ ...to, destination: BROADCAST }, { ...four, destination: '255.255.255.255' }, udp({ payload: short })),
    ),
    plain(frame({ ...to, destination: '02:99:00:00:00:01' }, four, udp())),
    plain(frame({ source: ourMac(60 + peer), destination: ourMac(peer + 1) }, four, udp())),
    plain(frame({ ...to, destination: theirMac(3) }, four, udp({ payload: pattern(1200) }))),
    plain(frame({ ...to, destination: theirMac(3) }, { ...four, df: false }, udp({ payload: pattern(1200) }))),
    plain(ethernet(to, OTHER, short)),
    plain(new Uint8Array(13)),
    plain(ethernet({ ...to, source: NOBODY }, OTHER, short)),
    plain(arpFrame({ senderMac: ourMac(peer + 1), sender: our4(peer + 1), target: their4(0, 200) })),
    plain(arpFrame({ senderMac: ourMac(peer + 1), sender: our4(peer + 1), target: their4(peer) })),
    plain(arpFrame({ senderMac: ourMac(peer + 1), sender: their4(0, 200), target: our4(9) })),
    plain(arpFrame({ senderMac: ourMac(peer + 1), sender: our4(9), target: our4(9) })),
    plain(solicit(ourMac(peer + 1), our6(peer + 1), their6(0, 200))),
    plain(solicit(ourMac(peer + 1), our6(peer + 1), their6(peer))),
    plain(solicit(ourMac(peer + 1), '::', our6(77))),
  ];
});

const stream = (peer: number, six: boolean, size: number, segments: number, tag = false): Uint8Array[] =>
  Array.from({ length: segments }, (_, i) =>
    vxlan(
      VNIS[0],
      frame(
        { source: theirMac(peer), destination: ourMac(), ...(tag ? { tags: [[VLAN, 7]] } : {}) },
        six
          ? { source: their6(peer), destination: our6() }
          : { source: their4(peer), destination: our4(), id: i, tos: 2 },
        tcp({ seq: i * size, payload: pattern(size), flags: i === segments - 1 ? ACK | PSH : ACK }),
      ),
    ),
  );
const datagrams = (peer: number, network: number): Uint8Array[] =>
  Array.from({ length: 30 }, (_, i) =>
    vxlan(
      VNIS[network],
      frame(
        { source: theirMac(peer, 1 + (i % 20)), destination: ourMac() },
        { source: their4(peer), destination: our4(), id: i },
        udp({ payload: short }),
      ),
    ),
  );
/** What busy peers send: runs that merge, runs that do not, a kernel's unfinished frames, hosts that move, what is dropped. */
const incoming = (peer: number): IncomingMessage[] => {
  const from = { source: theirMac(peer), destination: ourMac() };
  const four = { source: their4(peer), destination: our4() };
  const one = (bytes: Uint8Array, outer: { tos?: number } = {}): IncomingMessage =>
    rig.from(peer, [vxlan(VNIS[0], bytes)], outer);
  return [
    rig.from(peer, stream(peer, false, 1350, 20), { tos: 0 }),
    rig.from(peer, stream(peer, true, 100, 40, true), { tos: 0 }),
    rig.from(peer, stream(peer, false, 100, 10), { tos: 3 }),
    rig.from(peer, datagrams(peer, 0)),
    rig.from(peer, datagrams(peer, 1)),
    ...datagrams(peer, 0).map((bytes) => rig.from(peer, [bytes], { tos: 0 })),
    one(partialFrame(from, four, tcp({ payload: short }))),
    one(partialFrame(from, four, tcp({ payload: pattern(30_000) }))),
    { ...one(partialFrame(from, four, udp({ payload: pattern(5000) }))), segment: 1000 },
    one(padded(frame(from, four, udp({ payload: short })), 100)),
    one(arpFrame({ senderMac: theirMac(peer), sender: their4(peer), target: our4() })),
    one(arpFrame({ senderMac: theirMac(peer), sender: their4(0, 200), target: our4() })),
    one(arpFrame({ senderMac: theirMac(peer), sender: their4(peer), target: our4(), hardwareLength: 5 })),
    one(advertise(theirMac(peer), their6(peer), O_FLAG)),
    one(solicit(theirMac(peer), their6(peer), our6(), {}, { ttl: 9 })),
    one(frame({ ...from, source: theirMac(9, 9) }, four, udp())),
    one(frame({ ...from, source: ourMac(250) }, four, udp())),
    one(frame(from, four, udp()), { tos: 3 }),
    one(new Uint8Array(3)),
    rig.from(peer, [vxlan(99, short)]),
    rig.from(peer, [vxlan(VNIS[0], short, { flags: 0 })]),
    rig.from(peer, [short.subarray(0, 5)]),
    { name: socketAddress(address(peer === 2 ? 'fd98::1' : '192.0.2.1'), PORT), bytes: stream(peer, false, 9, 1)[0] },
  ];
};

const incoming4 = [...incoming(0), ...incoming(1), ...incoming(3)];
const incoming6 = incoming(2);
const DEVICES = readyDevice(0) | readyDevice(1);
const pulled = (): number => rig.devices[0].pulled + rig.devices[1].pulled;
const received = (): number => rig.sockets[0].received + rig.sockets[1].received;

let turns = 0;

/** Forgets what has been captured: for the reader, which need not do without objects. */
const ring = captures ? new CaptureRing(rig.memory, rig.layout) : undefined;
if (captures) beginCapture(rig.memory);

/** Half of `frames` each way at least. */
function run(frames: number): void {
  const half = frames / 2;
  rig.sockets[0].load(incoming4, frames);
  rig.sockets[1].load(incoming6, frames);
  const outBefore = pulled();
  const inBefore = received();
  for (;;) {
    const out = pulled() - outBefore;
    const into = received() - inBefore;
    if (out >= half && into >= half) break;
    // Now and then a leap, after which all that was learned is old.
    rig.now = (rig.now + (++turns % 256 === 0 ? 1000 : 1)) | 0;
    // A turn brings more in than it takes out: let outbound catch up.
    rig.engine.turn(rig.now, into > out ? DEVICES : READY_ALL);
    ring?.start();
    other.engine.turn(rig.now, 0);
  }
}

for (const device of rig.devices) device.load(outgoing, warmUp + count);
run(warmUp);
const base = pulled() + received();
gc();
run(count);
gc();
const sums = conservation(rig.memory);
console.log(
  JSON.stringify({
    passed: pulled() + received() - base,
    out: pulled(),
    in: received(),
    captured: rig.memory.i32[(rig.layout.capture >> 2) + RING_HEAD] > 0,
    balanced: sums.in + sums.made === sums.sent + sums.consumed + sums.dropped,
  }),
);
