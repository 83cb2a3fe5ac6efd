/**
 * The dataplane thread: poll → turn → poll, until control says stop. It never awaits, so nothing of the event loop reaches it;
 * control talks to it through the shared words and an eventfd.
 *
 * Waiting: after a quiet turn it looks again for up to SPIN_MICROSECONDS, yielding the core each time, before it blocks: an
 * answer that comes at once is not worth a sleep and a wake-up, which cost the one who wakes as much as the one who is woken
 * (request/response 1.4-2.0 -> 0.7 of kernel VXLAN's time, hot-path.md 5; bulk: ADR 6).
 */
import { workerData } from 'node:worker_threads';
import { CheckedDevice, CheckedSocket } from '../io/checked.js';
import type { Socket } from '../io/device.js';
import { EngineMemory, sendIndex } from '../io/memory.js';
import { addressOf, clockMonotonic, POLLERR, POLLIN, POLLOUT, poll, readv, schedYield } from '../io/syscalls.js';
import { TunDevice } from '../io/tun-device.js';
import { UdpSocketIo } from '../io/udp-socket.js';
import { Engine, READY_SOCKETS, readyDevice } from './engine.js';
import { WorkerTimes } from './gauges.js';
import type { WorkerData } from './settings.js';
import { SharedWords } from './shared.js';

const SPIN_MICROSECONDS = 100;
/** Longest sleep, so that a lost wake-up cannot hold the thread. */
const POLL_MILLISECONDS = 500;

const SIZEOF_POLLFD = 8;

/** Everything one turn of the loop needs; a method that returns every turn is compiled sooner than a loop that never ends. */
class Loop {
  readonly #i32: Int32Array;
  readonly #u16: Uint16Array;
  readonly #memory: EngineMemory;
  readonly #engine: Engine;
  readonly #shared: SharedWords;
  readonly #times: WorkerTimes;
  readonly #scratch: number;
  readonly #wakeFd: number;
  readonly #wakeIov: number;
  readonly #wakePointer: number;
  readonly #fds: number;
  /** READY_* bit of each polled descriptor, and the bit that `blocked` has for it while it cannot be written. */
  readonly #ready: Int32Array;
  readonly #writes: Int32Array;
  readonly #pollPointer: number;
  /** Indices of the first descriptor's events and revents in the u16 view; each further one is 4 on. */
  readonly #events: number;
  readonly #returned: number;
  readonly #deviceFds: readonly number[];
  readonly #firstDevice: number;
  readonly #clockPointer: number;
  readonly #clock: number;
  #blocked = 0;
  #spinning = false;
  #lastBusy = 0;
  /** The last step moved something. */
  #moved = false;
  /** Descriptors that poll looks at: all of them, or, while the gate is shut, only the first, by which control wakes us. */
  #polled: number;

  constructor(data: WorkerData, memory: EngineMemory, shared: SharedWords, engine: Engine) {
    const layout = memory.layout.workers[data.worker];
    this.#i32 = memory.i32;
    this.#u16 = memory.u16;
    this.#memory = memory;
    this.#engine = engine;
    this.#shared = shared;
    this.#times = new WorkerTimes(memory, layout);
    this.#scratch = layout.scratch;
    this.#wakeFd = data.wakeFd;
    // The push iovec: every push writes it anew.
    this.#wakeIov = layout.pushIov;
    this.#wakePointer = memory.pointer(layout.pushIov);
    const sending = (fd: number, underlay: number, i: number, ready: number) => ({
      fd,
      ready,
      writes: 1 << sendIndex(memory.options, underlay, i),
    });
    const fds = [
      { fd: data.wakeFd, ready: 0, writes: 0 },
      ...data.deviceFds.map((fd, network) => ({ fd, ready: readyDevice(network), writes: 0 })),
      // A socket that only sends is looked at only while it is full: what anyone sends to it is nobody's concern.
      ...data.senderFds.flatMap((list, underlay) => list.map((fd, i) => sending(fd, underlay, i, 0))),
      ...data.socketFds.map((fd, i) =>
        data.senderFds[i].length > 0 ? { fd, ready: READY_SOCKETS[i], writes: 0 } : sending(fd, i, 0, READY_SOCKETS[i]),
      ),
    ].filter(({ fd }) => fd >= 0);
    this.#fds = fds.length;
    this.#polled = fds.length;
    this.#ready = Int32Array.from(fds, ({ ready }) => ready);
    this.#writes = Int32Array.from(fds, ({ writes }) => writes);
    this.#pollPointer = memory.pointer(layout.pollfds);
    this.#events = (layout.pollfds + 4) >> 1;
    this.#returned = (layout.pollfds + 6) >> 1;
    fds.forEach(({ fd, ready }, i) => {
      this.#i32[(layout.pollfds + i * SIZEOF_POLLFD) >> 2] = fd;
      this.#u16[this.#events + i * 4] = i === 0 || ready !== 0 ? POLLIN : 0;
    });
    this.#deviceFds = data.deviceFds;
    this.#firstDevice = (layout.pollfds + SIZEOF_POLLFD) >> 2;
    this.#clockPointer = memory.pointer(layout.timespec);
    this.#clock = layout.timespec >> 2;
  }

  /** Waits as long as it should, then takes one turn. */
  step(): void {
    const { blocked } = this.#engine;
    if (blocked !== this.#blocked) this.#block(blocked);
    const found = poll(this.#pollPointer, this.#polled, this.#spinning ? 0 : POLL_MILLISECONDS);
    clockMonotonic(this.#clockPointer);
    // Both wrap; only differences are used.
    const seconds = this.#i32[this.#clock];
    const nanoseconds = this.#i32[this.#clock + 2];
    const microseconds = (Math.imul(seconds, 1_000_000) + ((nanoseconds / 1000) | 0)) | 0;
    const milliseconds = (Math.imul(seconds, 1000) + ((nanoseconds / 1_000_000) | 0)) | 0;
    this.#times.look(microseconds, milliseconds, this.#spinning, this.#moved);
    this.#moved = false;
    if (!this.#shared.gateOpen(milliseconds)) {
      this.#wait();
      return;
    }
    if (this.#polled !== this.#fds) {
      this.#polled = this.#fds; // what poll found was of one descriptor only: look again
      return;
    }
    // After a sleep too: a turn's epoch is what control waits for, should its wake-up ever be lost.
    const bytes = found > 0 || !this.#spinning ? this.#turn(milliseconds) : 0;
    if (bytes > 0) {
      this.#moved = true;
      this.#lastBusy = microseconds;
      this.#spinning = true;
    } else if (this.#spinning) {
      const waited = (microseconds - this.#lastBusy) | 0;
      this.#spinning = waited >= 0 && waited < SPIN_MICROSECONDS;
      schedYield();
    }
  }

  /** What poll looks for while the sockets in `blocked` are full. */
  #block(blocked: number): void {
    this.#blocked = blocked;
    // It must not look at the devices then, not even for errors: a descriptor of -1 is passed over.
    for (let i = 0; i < this.#deviceFds.length; i++) {
      this.#i32[this.#firstDevice + i * (SIZEOF_POLLFD >> 2)] = blocked === 0 ? this.#deviceFds[i] : -1;
    }
    for (let i = 1 + this.#deviceFds.length; i < this.#fds; i++) {
      const reads = this.#ready[i] === 0 ? 0 : POLLIN;
      this.#u16[this.#events + i * 4] = blocked & this.#writes[i] ? reads | POLLOUT : reads;
    }
  }

  /** The gate is shut: packets stay in the kernel's queues, and only control's wake-ups are looked for. */
  #wait(): void {
    this.#polled = 1;
    this.#spinning = false;
    this.#clearWake();
    this.#engine.pause();
  }

  #deviceFailed(): boolean {
    for (let i = 1; i <= this.#deviceFds.length; i++) if (this.#u16[this.#returned + i * 4] & POLLERR) return true;
    return false;
  }

  #clearWake(): void {
    if (this.#u16[this.#returned] === 0) return;
    this.#memory.writeIovec(this.#wakeIov, this.#scratch, 8);
    readv(this.#wakeFd, this.#wakePointer, 1);
  }

  #turn(now: number): number {
    const u16 = this.#u16;
    this.#clearWake();
    let ready = 0;
    for (let i = 1; i < this.#fds; i++) if (u16[this.#returned + i * 4] !== 0) ready |= this.#ready[i];
    const bytes = this.#engine.turn(now, ready);
    if (this.#engine.deviceLost && this.#deviceFailed()) throw new Error('DEVICE_LOST');
    return bytes;
  }
}

function main(data: WorkerData): void {
  const memory = new EngineMemory(data.shared, addressOf);
  const layout = memory.layout.workers[data.worker];
  const shared = new SharedWords(memory);
  const checked = process.env.WEFT_CHECK_ADDRESSES === '1';
  const devices = data.deviceFds.map((fd) => {
    const tun = new TunDevice(memory, layout, fd);
    return checked ? new CheckedDevice(tun, layout) : tun;
  });
  const socket = (fd: number, underlay: number, sender: number): Socket => {
    const index = sendIndex(memory.options, underlay, sender);
    const udp = new UdpSocketIo(memory, layout, fd, index);
    return checked ? new CheckedSocket(udp, memory, layout, index) : udp;
  };
  const sockets = data.socketFds.map((fd, i) => (fd < 0 ? undefined : socket(fd, i, 0)));
  const senders = data.senderFds.map((fds, underlay) => fds.map((fd, i) => socket(fd, underlay, i)));
  const engine = new Engine(memory, data.worker, { devices, sockets, senders }, data.settings);
  const loop = new Loop(data, memory, shared, engine);
  shared.setRunning(data.worker, true);
  while (!shared.stopping()) loop.step();
  shared.setRunning(data.worker, false);
}

main(workerData as WorkerData);
