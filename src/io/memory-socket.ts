/**
 * A socket in memory. It reads and writes the very arrays that sendmmsg and recvmmsg would, every iovec and control byte, and
 * answers as Linux does where an array is wrong (net/ipv4/udp.c): so what passes here is what the kernel would take.
 */
import { EAGAIN, EINVAL, EMSGSIZE, type Socket } from './device.js';
import { type EngineMemory, RECEIVE_MESSAGES, SIZEOF_IOVEC, SIZEOF_MMSGHDR, type WorkerLayout } from './memory.js';
import {
  armReceive,
  CMSG_HEADER,
  MSG_CONTROL,
  MSG_CONTROLLEN,
  MSG_FLAGS,
  MSG_IOV,
  MSG_IOVLEN,
  MSG_LEN,
  MSG_NAME,
  MSG_NAMELEN,
} from './messages.js';
import * as sys from './syscalls-constants.js';

/** A message as it arrives: datagrams of `segment` bytes one behind the other (0: one datagram). */
export interface IncomingMessage {
  /** struct sockaddr_in or sockaddr_in6 of the sender. */
  readonly name: Uint8Array;
  readonly bytes: Uint8Array;
  readonly segment?: number;
  /** Outer TOS or traffic class. */
  readonly tos?: number;
}

/** A datagram as it leaves. */
export interface OutgoingDatagram {
  readonly name: Uint8Array;
  readonly bytes: Uint8Array;
  readonly tos: number;
}

export interface MemorySocketOptions {
  /** UDP_MAX_SEGMENTS. */
  readonly maxSegments?: number;
  /** Path MTU as UDP payload; larger datagrams are refused with EMSGSIZE. */
  readonly mtu?: number;
  /** Refuses segmentation with this errno, as old kernels do where egress has no checksum offload. */
  readonly refuseSegments?: number;
}

const MAX_DATAGRAM = 65507;

export class MemorySocket implements Socket {
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #messages: number;
  readonly #v4: boolean;
  readonly #options: MemorySocketOptions;
  #incoming: readonly IncomingMessage[] = [];
  #next = 0;
  #left = 0;
  /** Messages that push still takes before it answers EAGAIN. */
  room = Number.POSITIVE_INFINITY;
  /** Datagrams and bytes sent; counted here, independently of the engine's counters. */
  sent = 0;
  sentBytes = 0;
  sentMessages = 0;
  /** Datagrams received by the engine. */
  received = 0;
  /** Called with every datagram sent (copies). Unset in benchmarks. */
  onSend: ((datagram: OutgoingDatagram) => void) | undefined;
  /** Errno to refuse the next message with, once; 0: none. */
  failOnce = 0;

  /** `index`: whose arrays in `layout.send` it sends from (`sendIndex`). */
  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    index: number,
    options: MemorySocketOptions = {},
    underlay = index,
  ) {
    this.#memory = memory;
    this.#layout = layout;
    this.#messages = layout.send[index].messages;
    this.#v4 = underlay === 0;
    this.#options = options;
  }

  /** Gives `count` messages to receive, going round `messages`. */
  load(messages: readonly IncomingMessage[], count = messages.length): void {
    this.#incoming = messages;
    this.#next = 0;
    this.#left = count;
  }

  pull(): number {
    const { i32 } = this.#memory;
    let m = 0;
    for (; m < RECEIVE_MESSAGES && this.#left > 0; m++, this.#left--) {
      const word = (this.#layout.receive.messages + m * SIZEOF_MMSGHDR) >> 2;
      armReceive(i32, word);
      this.#receive(word << 2, this.#incoming[this.#next]);
      this.#next = this.#next + 1 === this.#incoming.length ? 0 : this.#next + 1;
    }
    return m === 0 ? -EAGAIN : m;
  }

  #receive(message: number, incoming: IncomingMessage): void {
    const { u8, i32 } = this.#memory;
    const iov = this.#memory.readPointer(message + MSG_IOV);
    const room = i32[(iov >> 2) + 2];
    const taken = Math.min(incoming.bytes.length, room);
    u8.set(
      taken < incoming.bytes.length ? incoming.bytes.subarray(0, taken) : incoming.bytes,
      this.#memory.readPointer(iov),
    );
    u8.set(incoming.name, this.#memory.readPointer(message + MSG_NAME));
    i32[(message + MSG_NAMELEN) >> 2] = incoming.name.length;
    i32[(message + MSG_LEN) >> 2] = taken;
    i32[(message + MSG_FLAGS) >> 2] = taken < incoming.bytes.length ? sys.MSG_TRUNC : 0;
    const segment = incoming.segment ?? 0;
    this.received += segment > 0 && segment < taken ? Math.ceil(taken / segment) : 1;

    const control = this.#memory.readPointer(message + MSG_CONTROL);
    let used = 0;
    if (incoming.tos !== undefined) {
      used = this.#v4
        ? this.#putControl(control, used, sys.SOL_IP, sys.IP_TOS, 1, incoming.tos)
        : this.#putControl(control, used, sys.SOL_IPV6, sys.IPV6_TCLASS, 4, incoming.tos);
    }
    if (segment > 0) used = this.#putControl(control, used, sys.SOL_UDP, sys.UDP_GRO, 4, segment);
    i32[(message + MSG_CONTROLLEN) >> 2] = used;
  }

  /** Writes one control message of at most 8 bytes behind the `used` bytes at `control`; returns how many are used then. */
  #putControl(control: number, used: number, level: number, type: number, length: number, value: number): number {
    const { i32 } = this.#memory;
    const word = (control + used) >> 2;
    i32[word] = CMSG_HEADER + length;
    i32[word + 1] = 0;
    i32[word + 2] = level;
    i32[word + 3] = type;
    i32[word + 4] = value;
    return used + CMSG_HEADER + 8;
  }

  push(first: number, count: number): number {
    let m = first;
    for (; m < first + count; m++) {
      if (this.room <= 0) break;
      const result = this.#send(this.#messages + m * SIZEOF_MMSGHDR);
      if (result !== 0) return m === first ? -result : m - first;
      this.room--;
    }
    return m === first ? -EAGAIN : m - first;
  }

  /** Takes one message, or says with which errno Linux would not. */
  #send(message: number): number {
    if (this.failOnce !== 0) {
      const errno = this.failOnce;
      this.failOnce = 0;
      return errno;
    }
    const memory = this.#memory;
    const { i32 } = memory;
    const iov = memory.readPointer(message + MSG_IOV) >> 2;
    const pieces = i32[(message + MSG_IOVLEN) >> 2];
    let length = 0;
    for (let p = 0; p < pieces; p++) length += i32[iov + p * (SIZEOF_IOVEC >> 2) + 2];

    let segment = 0;
    let tos = 0;
    const control = memory.readPointer(message + MSG_CONTROL);
    const controlLength = i32[(message + MSG_CONTROLLEN) >> 2];
    for (let offset = 0; offset < controlLength; ) {
      const word = (control + offset) >> 2;
      const level = i32[word + 2];
      const type = i32[word + 3];
      if (i32[word] < CMSG_HEADER || i32[word] > controlLength - offset) return EINVAL;
      if (level === sys.SOL_UDP && type === sys.UDP_SEGMENT) segment = i32[word + 4] & 0xffff;
      else if (level === (this.#v4 ? sys.SOL_IP : sys.SOL_IPV6) && type === (this.#v4 ? sys.IP_TOS : sys.IPV6_TCLASS)) {
        tos = i32[word + 4];
      } else return EINVAL;
      offset += (i32[word] + 7) & ~7;
    }
    if (length > MAX_DATAGRAM) return EMSGSIZE;
    if (segment > 0 && segment < length) {
      if (this.#options.refuseSegments) return this.#options.refuseSegments;
      if (length > segment * (this.#options.maxSegments ?? 128)) return EINVAL;
    }
    const size = segment > 0 && segment < length ? segment : length;
    if (this.#options.mtu !== undefined && size > this.#options.mtu) return segment > 0 ? EINVAL : EMSGSIZE;

    this.sentMessages++;
    this.sent += length === 0 ? 1 : Math.ceil(length / size);
    this.sentBytes += length;
    if (this.onSend) this.#deliver(message, iov, pieces, length, size, tos);
    return 0;
  }

  /** Gathers the pieces and cuts them into datagrams, as the network would see them. */
  #deliver(message: number, iov: number, pieces: number, length: number, size: number, tos: number): void {
    const { u8, i32 } = this.#memory;
    const name = this.#memory.readPointer(message + MSG_NAME);
    const nameBytes = u8.slice(name, name + i32[(message + MSG_NAMELEN) >> 2]);
    const whole = new Uint8Array(length);
    let filled = 0;
    for (let p = 0; p < pieces; p++) {
      const piece = iov + p * (SIZEOF_IOVEC >> 2);
      const from = this.#memory.readPointer(piece << 2);
      whole.set(u8.subarray(from, from + i32[piece + 2]), filled);
      filled += i32[piece + 2];
    }
    for (let at = 0; at < length || at === 0; at += size) {
      this.onSend?.({ name: nameBytes, bytes: whole.slice(at, Math.min(at + size, length)), tos });
      if (size === 0) break;
    }
  }
}
