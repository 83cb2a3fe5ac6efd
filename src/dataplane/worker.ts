/**
 * The dataplane thread: poll → turn → poll, until control says stop. It never awaits, so nothing of the event loop reaches it;
 * control talks to it through the shared words and an eventfd.
 *
 * Waiting: after a quiet turn it looks again for up to SPIN_MICROSECONDS, yielding the core each time, before it blocks: an
 * answer that comes at once is not worth a sleep and a wake-up (request/response 1.4-2.0 -> 0.7 of kernel VXLAN's time,
 * hot-path.md 5). After turns that carry much there is always more to come in one piece later, so then it blocks at once.
 */
import { workerData } from 'node:worker_threads';
import { CheckedDevice, CheckedSocket } from '../io/checked.js';
import { EngineMemory } from '../io/memory.js';
import { addressOf, clockMonotonic, POLLERR, POLLIN, POLLOUT, poll, readv, schedYield } from '../io/syscalls.js';
import { TunDevice } from '../io/tun-device.js';
import { UdpSocketIo } from '../io/udp-socket.js';
import { Engine, READY_DEVICE, READY_SOCKETS } from './engine.js';
import type { WorkerData } from './settings.js';
import { SharedWords } from './shared.js';

const SPIN_MICROSECONDS = 50;
/** A turn that moves this much is bulk; spinning is off for the next BULK_TURNS turns. */
const BULK_BYTES = 30_000;
const BULK_TURNS = 64;
/** Longest sleep, so that a lost wake-up cannot hold the thread. */
const POLL_MILLISECONDS = 500;

const SIZEOF_POLLFD = 8;

function main(data: WorkerData): void {
  const memory = new EngineMemory(data.shared, addressOf);
  const layout = memory.layout.workers[data.worker];
  const shared = new SharedWords(memory);
  const { i32, u16 } = memory;
  const checked = process.env.WEFT_CHECK_ADDRESSES === '1';
  const tun = new TunDevice(memory, layout, data.deviceFd);
  const device = checked ? new CheckedDevice(tun, layout) : tun;
  const sockets = data.socketFds.map((fd, i) => {
    if (fd < 0) return undefined;
    const socket = new UdpSocketIo(memory, layout, fd, i);
    return checked ? new CheckedSocket(socket, memory, layout, i) : socket;
  });
  const engine = new Engine(memory, data.worker, device, sockets, data.settings);

  const fds = [data.wakeFd, data.deviceFd, ...data.socketFds.filter((fd) => fd >= 0)];
  const pollfds = layout.pollfds;
  fds.forEach((fd, i) => {
    i32[(pollfds + i * SIZEOF_POLLFD) >> 2] = fd;
  });
  const readyBits = [0, 0, ...READY_SOCKETS.filter((_, i) => data.socketFds[i] >= 0)];
  const events = (pollfds + 4) >> 1;
  const returned = (pollfds + 6) >> 1;
  const pollPointer = memory.pointer(pollfds);
  const clockPointer = memory.pointer(layout.timespec);
  const clock = layout.timespec >> 2;
  // The eventfd's counter is read into scratch; the iovec for it is the push one, which every push writes anew.
  const wakePointer = memory.pointer(layout.pushIov);

  u16[events] = POLLIN;
  let spinning = false;
  let lastBusy = 0;
  let bulk = 0;
  shared.setRunning(data.worker, true);
  while (!shared.stopping()) {
    u16[events + 4] = engine.blocked ? 0 : POLLIN;
    for (let i = 2; i < fds.length; i++) u16[events + i * 4] = engine.blocked ? POLLIN | POLLOUT : POLLIN;
    const found = poll(pollPointer, fds.length, spinning ? 0 : POLL_MILLISECONDS);
    clockMonotonic(clockPointer);
    // Both wrap; only differences are used.
    const microseconds = (Math.imul(i32[clock], 1_000_000) + i32[clock + 2] / 1000) | 0;
    const milliseconds = (Math.imul(i32[clock], 1000) + i32[clock + 2] / 1_000_000) | 0;
    let bytes = 0;
    if (found > 0) {
      if (u16[returned] !== 0) {
        memory.writeIovec(layout.pushIov, layout.scratch, 8);
        readv(data.wakeFd, wakePointer, 1);
      }
      let ready = u16[returned + 4] !== 0 ? READY_DEVICE : 0;
      for (let i = 2; i < fds.length; i++) if (u16[returned + i * 4] !== 0) ready |= readyBits[i];
      bytes = engine.turn(milliseconds, ready);
      if (u16[returned + 4] & POLLERR && engine.deviceLost) throw new Error('DEVICE_LOST');
    }
    if (bytes > 0) {
      lastBusy = microseconds;
      bulk = bytes >= BULK_BYTES ? BULK_TURNS : Math.max(bulk - 1, 0);
      spinning = bulk === 0;
    } else if (spinning) {
      const waited = (microseconds - lastBusy) | 0;
      spinning = waited >= 0 && waited < SPIN_MICROSECONDS;
      schedYield();
    }
  }
  shared.setRunning(data.worker, false);
}

main(workerData as WorkerData);
