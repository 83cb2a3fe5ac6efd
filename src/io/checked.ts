/**
 * A device and a socket that check every address before it reaches the real ones: the test build of the I/O layer
 * (`WEFT_CHECK_ADDRESSES=1` for a daemon, always in the fuzz tests). An address outside its region is a bug of ours and
 * throws, which restarts the worker and fails the test.
 */
import type { Device, Socket } from './device.js';
import {
  ARENA_BYTES,
  type EngineMemory,
  MAX_FRAME,
  SEND_CONTROL,
  SEND_MESSAGES,
  SEND_PIECES,
  SIZEOF_IOVEC,
  SIZEOF_MMSGHDR,
  SIZEOF_SOCKADDR,
  VNET_HEADER,
  type WorkerLayout,
} from './memory.js';
import { MSG_CONTROL, MSG_CONTROLLEN, MSG_IOV, MSG_IOVLEN, MSG_NAME, MSG_NAMELEN } from './messages.js';

function within(what: string, at: number, length: number, start: number, end: number): void {
  if (!(length >= 0 && at >= start && at + length <= end)) {
    throw new Error(`${what}: ${length} bytes at ${at} are outside [${start}, ${end})`);
  }
}

export class CheckedDevice implements Device {
  readonly #device: Device;
  readonly #layout: WorkerLayout;

  constructor(device: Device, layout: WorkerLayout) {
    this.#device = device;
    this.#layout = layout;
  }

  pull(at: number): number {
    within('device read', at, MAX_FRAME, this.#layout.arena, this.#layout.arena + ARENA_BYTES);
    return this.#device.pull(at);
  }

  push(at: number, length: number): number {
    const { receive, timespec } = this.#layout;
    // Received, merged and made packets lie between the receive buffers and the end of the scratch area.
    within('device write', at - VNET_HEADER, VNET_HEADER, receive.buffers - VNET_HEADER, timespec);
    within('device write', at, length, receive.buffers, timespec);
    return this.#device.push(at, length);
  }
}

export class CheckedSocket implements Socket {
  readonly #socket: Socket;
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #index: number;

  /** `index`: whose arrays in `layout.send` it sends from. */
  constructor(socket: Socket, memory: EngineMemory, layout: WorkerLayout, index: number) {
    this.#socket = socket;
    this.#memory = memory;
    this.#layout = layout;
    this.#index = index;
  }

  pull(): number {
    return this.#socket.pull();
  }

  push(first: number, count: number): number {
    within('messages', first, count, 0, SEND_MESSAGES);
    for (let m = first; m < first + count; m++) this.#check(m);
    return this.#socket.push(first, count);
  }

  #check(m: number): void {
    const memory = this.#memory;
    const { i32 } = memory;
    const { messages, iovecs, controls, names } = this.#layout.send[this.#index];
    const message = messages + m * SIZEOF_MMSGHDR;
    const namesEnd = names + SEND_MESSAGES * SIZEOF_SOCKADDR;
    within('name', memory.readPointer(message + MSG_NAME), i32[(message + MSG_NAMELEN) >> 2], names, namesEnd);
    const control = controls + m * SEND_CONTROL;
    const controlLength = i32[(message + MSG_CONTROLLEN) >> 2];
    within('control', memory.readPointer(message + MSG_CONTROL), controlLength, control, control + SEND_CONTROL);
    const iov = memory.readPointer(message + MSG_IOV);
    const pieces = i32[(message + MSG_IOVLEN) >> 2];
    const first = iovecs + m * SEND_PIECES * SIZEOF_IOVEC;
    within('iovecs', iov, pieces * SIZEOF_IOVEC, first, first + SEND_PIECES * SIZEOF_IOVEC);
    for (let p = 0; p < pieces; p++) {
      const piece = iov + p * SIZEOF_IOVEC;
      const length = i32[(piece >> 2) + 2];
      within('payload', memory.readPointer(piece), length, this.#layout.arena, this.#layout.arena + ARENA_BYTES);
    }
  }
}
