/**
 * A device in memory: what the tests and the native-free benchmark put behind the engine instead of a TUN. It keeps the
 * contract of device.ts and, like the kernel, copies what it takes and gives.
 */
import { type Device, EAGAIN } from './device.js';
import { type EngineMemory, VNET_HEADER, type WorkerLayout } from './memory.js';

/** A packet as it crosses the device: its virtio header (10 bytes) and itself. */
export interface DevicePacket {
  readonly vnet: Uint8Array;
  readonly bytes: Uint8Array;
}

export const NO_VNET = new Uint8Array(VNET_HEADER);

export class MemoryDevice implements Device {
  readonly #memory: EngineMemory;
  readonly #vnetIn: number;
  #packets: readonly DevicePacket[] = [];
  #words: readonly Int32Array[] = [];
  #next = 0;
  #left = 0;
  /** Packets and bytes pushed; counted here, independently of the engine's counters. */
  pushed = 0;
  pushedBytes = 0;
  /** Packets pulled. */
  pulled = 0;
  /** Called with every packet pushed (copies). Unset in benchmarks. */
  onPush: ((packet: DevicePacket) => void) | undefined;
  /** What push answers instead of taking the packet: an errno, or 0. */
  refuse: (packet: DevicePacket) => number = () => 0;
  #refusing = false;

  constructor(memory: EngineMemory, layout: WorkerLayout) {
    this.#memory = memory;
    this.#vnetIn = layout.vnetIn;
  }

  /** Gives `count` packets to read, going round `packets`. */
  load(packets: readonly DevicePacket[], count = packets.length): void {
    this.#packets = packets;
    // Copies in words: a typed array's set() costs more than a short packet.
    this.#words = packets.map(({ bytes }) => {
      const padded = new Int32Array(Math.ceil(bytes.length / 4));
      new Uint8Array(padded.buffer).set(bytes);
      return padded;
    });
    this.#next = 0;
    this.#left = count;
  }

  /** Lets `count` more of the loaded packets be read. */
  more(count: number): void {
    this.#left += count;
  }

  /** Makes pushes fail as `refuse` says. */
  refuseWith(refuse: (packet: DevicePacket) => number): void {
    this.refuse = refuse;
    this.#refusing = true;
  }

  pull(at: number): number {
    if (this.#left === 0) return -EAGAIN;
    this.#left--;
    const { vnet, bytes } = this.#packets[this.#next];
    const words = this.#words[this.#next];
    this.#next = this.#next + 1 === this.#packets.length ? 0 : this.#next + 1;
    this.pulled++;
    const { u8, i32 } = this.#memory;
    if (vnet === NO_VNET) {
      const header = this.#vnetIn >> 2;
      i32[header] = 0;
      i32[header + 1] = 0;
      i32[header + 2] = 0;
    } else {
      u8.set(vnet, this.#vnetIn);
    }
    if ((at & 3) === 0 && bytes.length <= 256) {
      const to = at >> 2;
      for (let i = 0; i < words.length; i++) i32[to + i] = words[i];
    } else {
      u8.set(bytes, at);
    }
    return bytes.length;
  }

  push(at: number, length: number): number {
    if (this.#refusing) {
      const errno = this.refuse(this.#packet(at, length));
      if (errno !== 0) return -errno;
    }
    this.pushed++;
    this.pushedBytes += length;
    this.onPush?.(this.#packet(at, length));
    return 0;
  }

  #packet(at: number, length: number): DevicePacket {
    return { vnet: this.#memory.u8.slice(at - VNET_HEADER, at), bytes: this.#memory.u8.slice(at, at + length) };
  }
}
