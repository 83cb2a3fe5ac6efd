/**
 * Arrays for sendmmsg and recvmmsg over plain memory, shared by the generator and the sink.
 *
 * One allocation holds `count` messages: mmsghdr (64 bytes each), iovec (16), sockaddr_in (16) and a payload of `room`
 * bytes, so message i lives at a fixed place in each array. Layouts: kernel-interfaces, "UDP in batches"; ip(7).
 */
import { AF_INET, addressOf } from '../src/io/syscalls.js';

const MMSGHDR = 64;
const IOVEC = 16;
const SOCKADDR = 16;

/** A struct sockaddr_in: family in host order, port and address in network order. */
export function sockaddr(address: string, port: number): Uint8Array {
  const bytes = new Uint8Array(SOCKADDR);
  bytes.set([AF_INET, 0, port >> 8, port & 0xff, ...address.split('.').map(Number)]);
  return bytes;
}

export class Batch {
  readonly count: number;
  /** Bytes from one payload to the next, a multiple of 4. */
  readonly room: number;
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
  /** Address of message 0, for the system calls. */
  readonly address: number;
  readonly #base: number;

  constructor(count: number, room: number) {
    this.count = count;
    this.room = (room + 63) & ~63;
    this.u8 = new Uint8Array(count * (MMSGHDR + IOVEC + SOCKADDR + this.room));
    this.i32 = new Int32Array(this.u8.buffer);
    this.#base = addressOf(this.u8);
    this.address = this.#base;
    for (let i = 0; i < count; i++) {
      this.#pointer(i * MMSGHDR + 16, this.#iovecAt(i)); // msg_iov
      this.i32[(i * MMSGHDR + 24) >> 2] = 1; // msg_iovlen
      this.#pointer(this.#iovecAt(i), this.payloadAt(i));
      this.setLength(i, room);
    }
  }

  /** Address of message i. */
  addressOfMessage(i: number): number {
    return this.#base + i * MMSGHDR;
  }

  /** Byte offset of payload i. */
  payloadAt(i: number): number {
    return this.count * (MMSGHDR + IOVEC + SOCKADDR) + i * this.room;
  }

  /** Bytes that message i sends, or may receive. */
  setLength(i: number, bytes: number): void {
    this.i32[(this.#iovecAt(i) + 8) >> 2] = bytes;
  }

  setDestination(i: number, address: string, port: number): void {
    const at = this.count * (MMSGHDR + IOVEC) + i * SOCKADDR;
    this.u8.set(sockaddr(address, port), at);
    this.#pointer(i * MMSGHDR, at); // msg_name
    this.i32[(i * MMSGHDR + 8) >> 2] = SOCKADDR;
  }

  #iovecAt(i: number): number {
    return this.count * MMSGHDR + i * IOVEC;
  }

  #pointer(to: number, at: number): void {
    const address = this.#base + at;
    this.i32[to >> 2] = address | 0;
    this.i32[(to >> 2) + 1] = Math.floor(address / 2 ** 32);
  }
}
