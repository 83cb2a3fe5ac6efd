/** A queue of a TUN or TAP as a Device: one packet a system call; readv keeps the virtio header away from the packet's neighbours. */
import type { Device } from './device.js';
import { type EngineMemory, MAX_FRAME, SIZEOF_IOVEC, VNET_HEADER, type WorkerLayout } from './memory.js';
import { readv, writev } from './syscalls.js';

export class TunDevice implements Device {
  readonly #memory: EngineMemory;
  readonly #fd: number;
  readonly #pullIov: number;
  readonly #pushIov: number;
  readonly #pullIovPointer: number;
  readonly #pushIovPointer: number;

  constructor(memory: EngineMemory, layout: WorkerLayout, fd: number) {
    this.#memory = memory;
    this.#fd = fd;
    this.#pullIov = layout.pullIov;
    this.#pushIov = layout.pushIov;
    this.#pullIovPointer = memory.pointer(layout.pullIov);
    this.#pushIovPointer = memory.pointer(layout.pushIov);
    memory.writeIovec(layout.pullIov, layout.vnetIn, VNET_HEADER);
    memory.writeIovec(layout.pullIov + SIZEOF_IOVEC, 0, MAX_FRAME);
  }

  pull(at: number): number {
    this.#memory.writePointer(this.#pullIov + SIZEOF_IOVEC, at);
    const result = readv(this.#fd, this.#pullIovPointer, 2);
    return result < 0 ? result : result - VNET_HEADER;
  }

  push(at: number, length: number): number {
    this.#memory.writeIovec(this.#pushIov, at - VNET_HEADER, length + VNET_HEADER);
    const result = writev(this.#fd, this.#pushIovPointer, 1);
    return Math.min(result, 0);
  }
}
