/**
 * A worker thread for dataplane/tap-threads.test.ts: an engine over a device that never runs dry. Each packet says its number, and
 * its bytes follow from that.
 */
import { workerData } from 'node:worker_threads';
import { Engine } from '../../src/dataplane/engine.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import type { Device } from '../../src/io/device.js';
import { EngineMemory, type SharedMemory } from '../../src/io/memory.js';
import { MemorySocket } from '../../src/io/memory-socket.js';
import { address, packet, udp } from './packets.js';
import { DEVICE_4, HOST_4, remote4 } from './rig.js';

/** `first`: the number of its first packet. */
const { memory: ofAll, first } = workerData as { readonly memory: SharedMemory; readonly first: number };
const memory = new EngineMemory(ofAll);
const layout = memory.layout.workers[0];
const shared = new SharedWords(memory);
const view = new DataView(memory.memory.buffer);
const LENGTHS = [32, 33, 100, 700, 1400];
const templates = LENGTHS.map((length) =>
  packet({ source: HOST_4, destination: remote4() }, udp({ payload: new Uint8Array(length - 28) })),
);
let left = 0;
let number = first;

const device: Device = {
  pull(at) {
    if (left-- === 0) return -11;
    const bytes = templates[number % LENGTHS.length];
    memory.u8.fill(0, layout.vnetIn, layout.vnetIn + 10);
    memory.u8.set(bytes, at);
    memory.u8.fill(number & 255, at + 32, at + bytes.length);
    view.setUint32(at + 28, number++);
    return bytes.length;
  },
  push: () => 0,
};

const engine = new Engine(
  memory,
  0,
  { devices: [device], sockets: [new MemorySocket(memory, layout, 0), undefined] },
  {
    sourceCheck: 'peer',
    offloads: 0,
    maxSegments: 64,
    mtu: 1472,
    address4: address(DEVICE_4),
    address6: undefined,
  },
);
shared.setRunning(0, true);
while (!shared.stopping()) {
  left = 32;
  engine.turn(0, 1);
}
