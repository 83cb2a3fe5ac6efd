/** A UDP socket as a Socket: recvmmsg and sendmmsg on the worker's arrays. */
import type { Socket } from './device.js';
import { type EngineMemory, RECEIVE_MESSAGES, SIZEOF_MMSGHDR, type WorkerLayout } from './memory.js';
import { armReceive } from './messages.js';
import { recvmmsg, sendmmsg } from './syscalls.js';

export class UdpSocketIo implements Socket {
  readonly #i32: Int32Array;
  readonly #fd: number;
  readonly #receive: number;
  readonly #receivePointer: number;
  readonly #sendPointer: number;

  /** `index`: whose arrays in `layout.send` it sends from. */
  constructor(memory: EngineMemory, layout: WorkerLayout, fd: number, index: number) {
    this.#i32 = memory.i32;
    this.#fd = fd;
    this.#receive = layout.receive.messages >> 2;
    this.#receivePointer = memory.pointer(layout.receive.messages);
    this.#sendPointer = memory.pointer(layout.send[index].messages);
  }

  pull(): number {
    // Two sockets share the arrays, so all are armed, not only those that this one used last.
    for (let m = 0; m < RECEIVE_MESSAGES; m++) armReceive(this.#i32, this.#receive + m * (SIZEOF_MMSGHDR >> 2));
    return recvmmsg(this.#fd, this.#receivePointer, RECEIVE_MESSAGES);
  }

  push(first: number, count: number): number {
    // The sum is a new heap number, but only after a batch that the kernel took in part.
    const at = first === 0 ? this.#sendPointer : this.#sendPointer + first * SIZEOF_MMSGHDR;
    return sendmmsg(this.#fd, at, count);
  }
}
