/**
 * The outgoing batch of one sending socket: datagrams in the arena, grouped into messages for sendmmsg.
 *
 * A message groups datagrams of one peer, size and outer TOS: the kernel cuts it again (UDP_SEGMENT), so one pass through
 * its stack carries up to 128 of them. A datagram joins its peer's open message or closes it, so order to one peer never
 * changes. A shorter datagram may be the last of a message (udp(7)).
 *
 * Datagrams that lie one behind the other share a piece (iovec); the arena is filled in place, so a whole run is one piece.
 * What the socket does not take stays: `flush` says so, and the arena must not be reused until it says otherwise. A message
 * keeps its peer's address, copied in the turn that looked it up: by the time it leaves, the peer may be another.
 */
import { EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, type Socket } from '../io/device.js';
import {
  type EngineMemory,
  PEER_BYTES,
  PEER_COUNTERS,
  SEND_CONTROL,
  SEND_MESSAGES,
  SEND_PIECES,
  SIZEOF_IOVEC,
  SIZEOF_MMSGHDR,
  SIZEOF_SOCKADDR,
  type WorkerLayout,
} from '../io/memory.js';
import {
  initSendArrays,
  MSG_CONTROL,
  MSG_CONTROLLEN,
  MSG_IOVLEN,
  MSG_NAME,
  MSG_NAMELEN,
  SEGMENT_DATA,
  SEGMENT_SPACE,
  TOS_DATA,
} from '../io/messages.js';
import { OFFLOADS } from '../io/offloads.js';
import {
  OUT_BLOCKED,
  OUT_CALLS,
  OUT_MESSAGES,
  OUT_PATH_MTU,
  OUT_REFUSED,
  OUT_REPLAYED,
  OUT_SENT,
  OUT_SENT_BYTES,
} from './counters.js';
import { countSize, histogramAt, OUT_MESSAGE } from './histograms.js';
import { PEER_GENERATION, PEER_MTU_SUSPECT, PEER_NAME, PEER_NAME_LENGTH } from './peers.js';
import type { SharedWords } from './shared.js';
import { Tap } from './tap.js';
import { SENT } from './verdicts.js';

/** Longest UDP payload over IPv4 (RFC 768, RFC 791): 65,535 - 20 - 8. */
export const MAX_DATAGRAM = 65507;
/** The last message of the arrays is kept for replays. */
const REPLAY = SEND_MESSAGES - 1;

export class Outbox {
  readonly #memory: EngineMemory;
  readonly #i32: Int32Array;
  readonly #u16: Uint16Array;
  readonly #f64: Float64Array;
  readonly #peers: number;
  readonly #messages: number;
  readonly #iovecs: number;
  readonly #controls: number;
  readonly #names: number;
  readonly #counters: number;
  readonly #peerCounters: number;
  readonly #histogram: number;
  readonly #socket: Socket;
  readonly #shared: SharedWords;
  readonly #tap: Tap;
  readonly #underlay: number;
  readonly #sender: number;
  #maxSegments: number;

  // Per message; private, so plain arrays that no other thread sees.
  readonly #peer = new Int32Array(SEND_MESSAGES);
  readonly #generation = new Int32Array(SEND_MESSAGES);
  readonly #size = new Int32Array(SEND_MESSAGES);
  readonly #tos = new Int32Array(SEND_MESSAGES);
  readonly #segments = new Int32Array(SEND_MESSAGES);
  readonly #bytes = new Int32Array(SEND_MESSAGES);
  readonly #pieces = new Int32Array(SEND_MESSAGES);
  readonly #end = new Int32Array(SEND_MESSAGES);
  /** Per peer slot: its open message, or -1. */
  readonly #open: Int32Array;

  #count = 0;
  #ready = 0;
  #next = 0;

  // A message that the kernel refused whole is replayed datagram by datagram; this is how far it has come.
  #replaying = false;
  #replayPiece = 0;
  #replayAt = 0;
  #replayTaken = 0;

  /** `index`: its arrays in `layout.send` (`sendIndex`); `underlay`: 0 IPv4, 1 IPv6. */
  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    index: number,
    underlay: number,
    socket: Socket,
    shared: SharedWords,
    maxSegments: number,
    tap = new Tap(memory, layout, 0),
  ) {
    this.#memory = memory;
    this.#i32 = memory.i32;
    this.#u16 = memory.u16;
    this.#f64 = memory.f64;
    this.#peers = memory.layout.peers;
    this.#messages = layout.send[index].messages;
    this.#iovecs = layout.send[index].iovecs;
    this.#controls = layout.send[index].controls;
    this.#names = layout.send[index].names;
    this.#counters = layout.counters >> 3;
    this.#peerCounters = layout.peerCounters >> 3;
    this.#histogram = histogramAt(layout, OUT_MESSAGE);
    this.#socket = socket;
    this.#shared = shared;
    this.#tap = tap;
    this.#underlay = underlay;
    this.#sender = index - underlay * (memory.options.senders ?? 1);
    this.#maxSegments = maxSegments;
    this.#open = new Int32Array(memory.options.peers).fill(-1);
    initSendArrays(memory, layout, index, underlay);
  }

  /** Messages that may still be opened. */
  get room(): number {
    return REPLAY - this.#count;
  }

  /** True when nothing waits to be sent. */
  get empty(): boolean {
    return this.#count === 0;
  }

  /**
   * Adds `count` datagrams to the peer in `slot`: one behind the other at `at`, `size` bytes each, the last one `last` bytes
   * (at most `size`). The caller has checked that `room` is enough for one message a datagram.
   */
  append(slot: number, at: number, size: number, count: number, last: number, tos: number): void {
    let from = at;
    let left = count;
    while (left > 0) {
      let m = this.#open[slot];
      if (m < 0 || !this.#joins(m, from, left === 1 ? last : size, tos))
        m = this.#start(slot, left === 1 ? last : size, tos);
      const limit = this.#size[m];
      const fit = Math.min(
        left,
        this.#maxSegments - this.#segments[m],
        limit === size ? ((MAX_DATAGRAM - this.#bytes[m]) / size) | 0 : 1,
      );
      const taken = Math.max(fit, 1);
      const ends = taken === left;
      const bytes = ends ? (taken - 1) * size + last : taken * size;
      this.#extend(m, from, bytes, taken);
      // A shorter one closes its message; so does a full one.
      if ((ends && last < limit) || size < limit || this.#segments[m] === this.#maxSegments) this.#open[slot] = -1;
      from += bytes;
      left -= taken;
    }
  }

  /** Whether a datagram of `length` bytes at `at` may join message `m`. */
  #joins(m: number, at: number, length: number, tos: number): boolean {
    return (
      length <= this.#size[m] &&
      tos === this.#tos[m] &&
      this.#segments[m] < this.#maxSegments &&
      this.#bytes[m] + length <= MAX_DATAGRAM &&
      (at === this.#end[m] || this.#pieces[m] < SEND_PIECES)
    );
  }

  #start(slot: number, size: number, tos: number): number {
    const m = this.#count++;
    this.#peer[m] = slot;
    this.#generation[m] = this.#i32[((this.#peers + slot * PEER_BYTES) >> 2) + PEER_GENERATION];
    this.#size[m] = size;
    this.#tos[m] = tos;
    this.#segments[m] = 0;
    this.#bytes[m] = 0;
    this.#pieces[m] = 0;
    this.#end[m] = -1;
    this.#open[slot] = m;
    return m;
  }

  #extend(m: number, at: number, bytes: number, segments: number): void {
    if (at === this.#end[m]) {
      const piece = this.#iovecs + (m * SEND_PIECES + this.#pieces[m] - 1) * SIZEOF_IOVEC;
      this.#i32[(piece >> 2) + 2] += bytes;
    } else {
      this.#memory.writeIovec(this.#iovecs + (m * SEND_PIECES + this.#pieces[m]++) * SIZEOF_IOVEC, at, bytes);
    }
    this.#end[m] = at + bytes;
    this.#bytes[m] += bytes;
    this.#segments[m] += segments;
  }

  /** Sends what is there. True when all has left; false when the socket is full: wait until it can be written. */
  flush(): boolean {
    while (this.#ready < this.#count) this.#seal(this.#ready++);
    while (this.#next < this.#count) {
      if (this.#replaying) {
        if (!this.#replay()) return this.#blocked();
        continue;
      }
      const result = this.#socket.push(this.#next, this.#count - this.#next);
      this.#f64[this.#counters + OUT_CALLS]++;
      if (result > 0) {
        for (let m = this.#next; m < this.#next + result; m++) this.#sent(m, this.#segments[m], this.#bytes[m]);
        if (this.#tap.on) this.#watchSent(this.#next, result);
        this.#f64[this.#counters + OUT_MESSAGES] += result;
        this.#next += result;
      } else if (result === -EAGAIN) {
        return this.#blocked();
      } else if (result !== -EINTR) {
        this.#refused(this.#next, -result);
      }
    }
    for (let m = 0; m < this.#count; m++) this.#open[this.#peer[m]] = -1;
    this.#count = 0;
    this.#ready = 0;
    this.#next = 0;
    return true;
  }

  #blocked(): boolean {
    this.#f64[this.#counters + OUT_BLOCKED]++;
    return false;
  }

  /** Writes what the kernel reads of a message: name, pieces, control. */
  #seal(m: number): void {
    this.#copyName(m);
    this.#writeMessage(m, this.#pieces[m], m);
    if (this.#segments[m] > 1) {
      const control = this.#controls + m * SEND_CONTROL;
      this.#u16[(control + SEGMENT_DATA) >> 1] = this.#size[m];
    }
  }

  #copyName(m: number): void {
    const i32 = this.#i32;
    const peer = (this.#peers + this.#peer[m] * PEER_BYTES) >> 2;
    const name = (this.#names + m * SIZEOF_SOCKADDR) >> 2;
    for (let i = 0; i < SIZEOF_SOCKADDR >> 2; i++) i32[name + i] = i32[peer + PEER_NAME + i];
    i32[(this.#messages + m * SIZEOF_MMSGHDR + MSG_NAMELEN) >> 2] = i32[peer + PEER_NAME_LENGTH];
  }

  /** Fills header `to` for message `m`. Segmentation comes first in the control bytes, so a single one starts behind it. */
  #writeMessage(to: number, pieces: number, m: number): void {
    const i32 = this.#i32;
    const message = this.#messages + to * SIZEOF_MMSGHDR;
    const control = this.#controls + to * SEND_CONTROL;
    const segmented = to === m && this.#segments[m] > 1;
    const tos = this.#tos[m];
    const start = segmented ? 0 : SEGMENT_SPACE;
    i32[(message + MSG_IOVLEN) >> 2] = pieces;
    this.#memory.writePointer(message + MSG_CONTROL, control + start);
    i32[(message + MSG_CONTROLLEN) >> 2] =
      (segmented ? SEGMENT_SPACE : 0) + (tos === 0 ? 0 : SEND_CONTROL - SEGMENT_SPACE);
    if (tos !== 0) i32[(control + TOS_DATA) >> 2] = tos;
  }

  /** The socket took message `m`, or of one that is replayed a datagram, which is a message by itself then. */
  #sent(m: number, datagrams: number, bytes: number): void {
    const f64 = this.#f64;
    countSize(f64, this.#histogram, datagrams);
    f64[this.#counters + OUT_SENT] += datagrams;
    f64[this.#counters + OUT_SENT_BYTES] += bytes;
    if (!this.#peerStands(m)) return;
    const peer = this.#peerCounters + this.#peer[m] * PEER_COUNTERS;
    f64[peer] += datagrams;
    f64[peer + 1] += bytes;
  }

  #watchSent(first: number, count: number): void {
    for (let m = first; m < first + count; m++) this.#watch(m, SENT);
  }

  /** Shows the tap message `m`, datagram by datagram. */
  #watch(m: number, verdict: number): void {
    const size = this.#size[m];
    for (let p = 0; p < this.#pieces[m]; p++) {
      const piece = (this.#iovecs + (m * SEND_PIECES + p) * SIZEOF_IOVEC) >> 2;
      const at = this.#memory.readPointer(piece << 2);
      const length = this.#i32[piece + 2];
      for (let i = 0; i < length; i += size) this.#watchOne(m, at + i, Math.min(size, length - i), verdict);
    }
  }

  #watchOne(m: number, at: number, length: number, verdict: number): void {
    const name = this.#names + m * SIZEOF_SOCKADDR;
    const ref = this.#peer[m] | (this.#generation[m] << 16);
    this.#tap.underlayOut(this.#underlay, this.#sender, name, this.#tos[m], at, length, ref, verdict);
  }

  /** Shows the tap `count` datagrams that are not for this socket after all; parameters as of `append`. */
  watchRefused(
    slot: number,
    at: number,
    size: number,
    count: number,
    last: number,
    tos: number,
    verdict: number,
  ): void {
    const peer = this.#peers + slot * PEER_BYTES;
    const ref = slot | (this.#i32[(peer >> 2) + PEER_GENERATION] << 16);
    for (let i = 0; i < count; i++) {
      const length = i === count - 1 ? last : size;
      this.#tap.underlayOut(
        this.#underlay,
        this.#sender,
        peer + PEER_NAME * 4,
        tos,
        at + i * size,
        length,
        ref,
        verdict,
      );
    }
  }

  /** Whether the peer that message `m` is for is still the one in its slot. */
  #peerStands(m: number): boolean {
    return this.#i32[((this.#peers + this.#peer[m] * PEER_BYTES) >> 2) + PEER_GENERATION] === this.#generation[m];
  }

  /** The kernel refused a message whole. One that holds several datagrams is tried singly before anything is given up. */
  #refused(m: number, errno: number): void {
    if (this.#segments[m] > 1 && (errno === EINVAL || errno === EIO || errno === EMSGSIZE)) {
      this.#replaying = true;
      this.#replayPiece = 0;
      this.#replayAt = 0;
      this.#replayTaken = 0;
      this.#f64[this.#counters + OUT_REPLAYED]++;
      return;
    }
    this.#drop(m, errno, this.#segments[m]);
    if (this.#tap.on) this.#watch(m, refusal(errno));
    this.#next++;
  }

  #drop(m: number, errno: number, datagrams: number): void {
    if (errno !== EMSGSIZE) {
      this.#f64[this.#counters + OUT_REFUSED] += datagrams;
      return;
    }
    this.#f64[this.#counters + OUT_PATH_MTU] += datagrams;
    if (!this.#peerStands(m)) return;
    const suspect = ((this.#peers + this.#peer[m] * PEER_BYTES) >> 2) + PEER_MTU_SUSPECT;
    if (Atomics.exchange(this.#i32, suspect, 1) === 0) this.#shared.noteMtuEvent();
  }

  #useNameOf(m: number): void {
    const replay = this.#messages + REPLAY * SIZEOF_MMSGHDR;
    this.#memory.writePointer(replay + MSG_NAME, this.#names + m * SIZEOF_SOCKADDR);
    this.#i32[(replay + MSG_NAMELEN) >> 2] = this.#i32[(this.#messages + m * SIZEOF_MMSGHDR + MSG_NAMELEN) >> 2];
  }

  /**
   * Sends message `#next` datagram by datagram. True when it is done. If they pass, it was segmentation that the kernel did
   * not want (older kernels where egress has no checksum offload): it stays off from here on.
   */
  #replay(): boolean {
    const m = this.#next;
    const i32 = this.#i32;
    while (this.#replayPiece < this.#pieces[m]) {
      const piece = (this.#iovecs + (m * SEND_PIECES + this.#replayPiece) * SIZEOF_IOVEC) >> 2;
      const left = i32[piece + 2] - this.#replayAt;
      const length = Math.min(this.#size[m], left);
      const single = this.#iovecs + REPLAY * SEND_PIECES * SIZEOF_IOVEC;
      this.#writeMessage(REPLAY, 1, m);
      this.#useNameOf(m);
      this.#memory.writeIovec(single, this.#memory.readPointer(piece << 2) + this.#replayAt, length);
      const result = this.#socket.push(REPLAY, 1);
      this.#f64[this.#counters + OUT_CALLS]++;
      if (result === -EAGAIN) return false;
      if (result === -EINTR) continue;
      if (this.#tap.on) {
        const at = this.#memory.readPointer(piece << 2) + this.#replayAt;
        this.#watchOne(m, at, length, result > 0 ? SENT : refusal(-result));
      }
      if (result > 0) {
        this.#replayTaken++;
        this.#sent(m, 1, length);
        this.#f64[this.#counters + OUT_MESSAGES]++;
      } else {
        this.#drop(m, -result, 1);
      }
      this.#replayAt += length;
      if (this.#replayAt === i32[piece + 2]) {
        this.#replayPiece++;
        this.#replayAt = 0;
      }
    }
    if (this.#replayTaken === this.#segments[m]) {
      this.#maxSegments = 1;
      this.#shared.refuseOffload(OFFLOADS.segment);
    }
    this.#replaying = false;
    this.#next++;
    return true;
  }
}

/** The counter of a datagram that the kernel refused. */
const refusal = (errno: number): number => (errno === EMSGSIZE ? OUT_PATH_MTU : OUT_REFUSED);
