/**
 * Inbound, network → host, in the order a packet takes:
 *
 *   pull → find peer → check → source → ECN → merge with the packets before it → push
 *
 * A message may hold many datagrams of one sender (UDP_GRO), all of one size but the last. TypeScript checks the first of
 * each run; the merge kernel takes the run's rest as long as it agrees with the first. A packet that cannot be merged is
 * written from where it was received: its virtio header goes over the bytes before it, which belong to datagrams that have
 * already been handled.
 */
import { type Device, EINVAL, type Socket } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import {
  type EngineMemory,
  MERGE_SLOTS,
  MERGE_WORDS,
  PEER_COUNTERS,
  RECEIVE_CONTROL,
  SIZEOF_MMSGHDR,
  SIZEOF_SOCKADDR,
  VNET_HEADER,
  type WorkerLayout,
} from '../io/memory.js';
import { CMSG_HEADER, initReceiveArrays, MSG_CONTROLLEN, MSG_FLAGS, MSG_LEN } from '../io/messages.js';
import { OFFLOADS } from '../io/offloads.js';
import * as sys from '../io/syscalls-constants.js';
import * as ip from '../packet/ip.js';
import { GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_GSO_SIZE, VNET_GSO_TYPE } from '../packet/virtio-net.js';
import { lookupAddress, MAPPED } from './addresses.js';
import * as count from './counters.js';
import { lookup4, lookup6 } from './routes.js';
import type { EngineSettings } from './settings.js';
import type { SharedWords } from './shared.js';

const ECN_NOT_ECT = 0;
const ECN_ECT1 = 1;
const ECN_ECT0 = 2;
const ECN_CE = 3;

const ALLOW_TCP4 = 1;
const ALLOW_TCP6 = 2;
const ALLOW_UDP = 4;
/** UDP_MAX_SEGMENTS of the oldest kernels with USO: a longer UDP super-packet is refused with EINVAL. */
const MIN_UDP_SEGMENTS = 64;

/** What the merge kernel leaves in its first output word. */
const CLOSE_ALL = -2;

/** Most receive calls of one socket in a turn. */
const MAX_PULLS = 16;

/** The only network of layer 3. */
const NETWORK = 0;

export class Inbound {
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #kernels: Kernels;
  readonly #device: Device;
  readonly #shared: SharedWords;
  readonly #counters: number;
  readonly #peerCounters: number;
  readonly #addressMask: number;
  readonly #states: number;
  readonly #out: number;
  readonly #mtu: number;
  readonly #strict: boolean;
  readonly #anyone: boolean;
  #allow: number;

  #roots4 = 0;
  #roots6 = 0;
  #nodes = 0;
  #addresses = 0;

  /** Slots with an open merge, in the order they were opened. */
  readonly #openSlots = new Int32Array(MERGE_SLOTS);
  #openCount = 0;

  // What the current message's control data said.
  #segment = 0;
  #tos = 0;
  // The last sender, since most messages come from the same one.
  readonly #sender = new Int32Array(4);
  #senderRef = 0;
  #senderVersion = -1;

  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    kernels: Kernels,
    device: Device,
    shared: SharedWords,
    view: DataView,
    settings: EngineSettings,
  ) {
    this.#memory = memory;
    this.#layout = layout;
    this.#u8 = memory.u8;
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#kernels = kernels;
    this.#device = device;
    this.#shared = shared;
    this.#counters = layout.counters >> 3;
    this.#peerCounters = layout.peerCounters >> 3;
    this.#addressMask = memory.layout.addressSlots - 1;
    this.#states = layout.mergeStates >> 2;
    this.#out = layout.kernelOut >> 2;
    this.#mtu = settings.mtu;
    this.#strict = settings.sourceCheck === 'strict';
    this.#anyone = settings.sourceCheck === 'off';
    const { offloads } = settings;
    this.#allow = 0;
    if (offloads & OFFLOADS.merge && offloads & OFFLOADS.csum) {
      if (offloads & OFFLOADS.tso4) this.#allow |= ALLOW_TCP4;
      if (offloads & OFFLOADS.tso6) this.#allow |= ALLOW_TCP6;
      if (offloads & OFFLOADS.uso) this.#allow |= ALLOW_UDP | (Math.max(settings.maxSegments, MIN_UDP_SEGMENTS) << 8);
    }
    initReceiveArrays(memory, layout);
    // A worker that died may have left merges open; their packets are lost with it.
    memory.i32.fill(0, this.#states, this.#states + MERGE_SLOTS * MERGE_WORDS);
  }

  /** The table version for this turn. */
  useTables(version: number): void {
    const table = this.#memory.layout.tables[version];
    this.#roots4 = table.roots4 >> 2;
    this.#roots6 = table.roots6 >> 2;
    this.#nodes = table.nodes >> 2;
    this.#addresses = table.addresses >> 2;
    if (version !== this.#senderVersion) {
      this.#senderVersion = version;
      this.#senderRef = 0;
    }
  }

  /** Up to `budget` bytes from one socket, all written to the device on return. Returns the bytes received. */
  run(socket: Socket, underlay: number, budget: number): number {
    let bytes = 0;
    // Bounded by pulls too: a flood of empty datagrams has no bytes.
    for (let pulls = 0; pulls < MAX_PULLS && bytes < budget; pulls++) {
      const messages = socket.pull();
      if (messages <= 0) break;
      this.#f64[this.#counters + count.IN_MESSAGES] += messages;
      for (let m = 0; m < messages; m++) bytes += this.#message(m, underlay);
    }
    // Not after each pull: a super-packet that its sender had to send as two messages often arrives as two pulls.
    this.#closeAll();
    return bytes;
  }

  #add(counter: number, n: number): void {
    this.#f64[this.#counters + counter] += n;
  }

  /** One received message: find who sent it, then run through its datagrams. Returns its length. */
  #message(m: number, underlay: number): number {
    const { receive } = this.#layout;
    const header = (receive.messages + m * SIZEOF_MMSGHDR) >> 2;
    const length = this.#i32[header + (MSG_LEN >> 2)];
    const at = receive.buffers + m * receive.stride;
    this.#readControl(receive.controls + m * RECEIVE_CONTROL, this.#i32[header + (MSG_CONTROLLEN >> 2)], underlay);
    const size = this.#segment > 0 && this.#segment < length ? this.#segment : length;
    const datagrams = length === 0 ? 1 : Math.ceil(length / size);
    this.#add(count.IN_IN, datagrams);
    this.#add(count.IN_IN_BYTES, length);

    if (this.#i32[header + (MSG_FLAGS >> 2)] & sys.MSG_TRUNC) {
      this.#add(count.IN_TRUNCATED, datagrams);
      return length;
    }
    const ref = this.#findPeer(receive.names + m * SIZEOF_SOCKADDR, underlay);
    if (ref === 0 && !this.#anyone) {
      this.#add(count.IN_UNKNOWN_PEER, datagrams);
      return length;
    }
    if (length === 0) {
      this.#add(count.IN_EMPTY, 1);
      return 0;
    }
    if (ref !== 0) {
      const peer = this.#peerCounters + (ref & 0xffff) * PEER_COUNTERS;
      this.#f64[peer + 2] += datagrams;
      this.#f64[peer + 3] += length;
    }
    this.#datagrams(at, size, datagrams, length - (datagrams - 1) * size, ref);
    return length;
  }

  /** Reads UDP_GRO's segment size, the outer TOS or traffic class, and the socket's drop counter. */
  #readControl(at: number, length: number, underlay: number): void {
    const i32 = this.#i32;
    this.#segment = 0;
    this.#tos = 0;
    for (let offset = 0; offset + CMSG_HEADER < length; ) {
      const word = (at + offset) >> 2;
      const level = i32[word + 2];
      const type = i32[word + 3];
      if (level === sys.SOL_UDP && type === sys.UDP_GRO) this.#segment = i32[word + 4];
      else if (level === sys.SOL_IP && type === sys.IP_TOS) this.#tos = this.#u8[at + offset + CMSG_HEADER];
      else if (level === sys.SOL_IPV6 && type === sys.IPV6_TCLASS) this.#tos = i32[word + 4];
      else if (level === sys.SOL_SOCKET && type === sys.SO_RXQ_OVFL) this.#noteOverflow(underlay, i32[word + 4]);
      if (i32[word] < CMSG_HEADER) break;
      offset += (i32[word] + 7) & ~7;
    }
  }

  /** The kernel counts from the socket's birth; the last value is kept where a worker that follows this one finds it. */
  #noteOverflow(underlay: number, value: number): void {
    const last = (this.#layout.overflow >> 2) + underlay;
    this.#add(count.IN_OVERFLOW, (value - this.#i32[last]) >>> 0);
    this.#i32[last] = value;
  }

  /** The peer behind a struct sockaddr at `at`, or 0. */
  #findPeer(at: number, underlay: number): number {
    const i32 = this.#i32;
    const name = at >> 2;
    let w0 = 0;
    let w1 = 0;
    let w2 = MAPPED;
    let w3 = i32[name + 1];
    if (underlay === 1) {
      w0 = i32[name + 2];
      w1 = i32[name + 3];
      w2 = i32[name + 4];
      w3 = i32[name + 5];
    }
    const last = this.#sender;
    if (this.#senderRef !== 0 && last[3] === w3 && last[2] === w2 && last[1] === w1 && last[0] === w0) {
      return this.#senderRef;
    }
    const ref = lookupAddress(i32, this.#addresses, this.#addressMask, w0, w1, w2, w3, NETWORK);
    last[0] = w0;
    last[1] = w1;
    last[2] = w2;
    last[3] = w3;
    this.#senderRef = ref;
    return ref;
  }

  /** The datagrams of one message, one behind the other at `at`: `size` bytes each, the last one `last`. */
  #datagrams(at: number, size: number, total: number, last: number, ref: number): void {
    for (let i = 0; i < total; ) {
      const packet = at + i * size;
      const length = i === total - 1 ? last : size;
      if (!this.#accept(packet, length, ref)) {
        i++;
        continue;
      }
      // CE and ECT(1) have to be written into each inner header, so then they go one by one.
      const run = this.#tos & 1 ? 1 : total - i;
      const taken = (this.#allow & 0xff) === 0 ? 0 : this.#merge(packet, size, run, run === total - i ? last : size);
      if (length > this.#mtu) this.#add(count.IN_ABOVE_MTU, above(taken, i + taken === total, last > this.#mtu));
      if (taken > 0) {
        i += taken;
      } else {
        this.#u8.fill(0, packet - VNET_HEADER, packet);
        this.#push(packet, length);
        i++;
      }
    }
  }

  /** Check, source, ECN. False: counted and done with. */
  #accept(at: number, length: number, ref: number): boolean {
    const view = this.#view;
    const bad = ip.checkIp(view, at, length);
    if (bad !== ip.GOOD) {
      this.#add(count.IN_SHORT + bad - ip.BAD_SHORT, 1);
      return false;
    }
    const v4 = view.getUint8(at) >> 4 === 4;
    if (view.getUint8(at + (v4 ? ip.IPV4_TTL : ip.IPV6_HOP_LIMIT)) === 0) {
      this.#add(count.IN_TTL, 1);
      return false;
    }
    if (this.#strict && !this.#ownsSource(at, v4, ref)) {
      this.#add(count.IN_SOURCE, 1);
      return false;
    }
    if (this.#tos & 3 && !this.#decapsulateEcn(at)) {
      this.#add(count.IN_ECN, 1);
      return false;
    }
    if (v4) this.#note4(at);
    return true;
  }

  #ownsSource(at: number, v4: boolean, ref: number): boolean {
    const owner = v4
      ? lookup4(this.#i32, this.#roots4, this.#nodes, this.#view.getInt32(at + ip.IPV4_SOURCE))
      : lookup6(this.#i32, this.#u8, this.#roots6, this.#nodes, at + ip.IPV6_SOURCE);
    return owner === ref && ref !== 0;
  }

  /** RFC 6040 4.2, figure 4. False: the packet must be dropped. */
  #decapsulateEcn(at: number): boolean {
    const outer = this.#tos & 3;
    const inner = ip.ecnOf(this.#view, at);
    if (inner === ECN_NOT_ECT) return outer !== ECN_CE;
    if (inner === ECN_CE) return true;
    if (outer === ECN_CE) {
      ip.writeEcn(this.#view, at, ECN_CE);
      this.#add(count.IN_CE, 1);
    } else if (outer === ECN_ECT1 && inner === ECN_ECT0) {
      ip.writeEcn(this.#view, at, ECN_ECT1);
    }
    return true;
  }

  /** Counts what is carried but worth knowing. */
  #note4(at: number): void {
    if (this.#view.getUint8(at) !== 0x45) this.#add(count.IN_OPTIONS, 1);
    if (this.#view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK))
      this.#add(count.IN_FRAGMENTS, 1);
  }

  /**
   * Merges as many datagrams as follow each other in one flow, and returns how many. 0: the first must be pushed by itself;
   * whatever was open for its flow has been pushed before.
   */
  #merge(at: number, size: number, run: number, last: number): number {
    const { mergeStates, mergeBuffers, mergeStride, kernelOut } = this.#layout;
    for (;;) {
      const taken = this.#kernels.merge(
        mergeStates,
        mergeBuffers,
        mergeStride,
        kernelOut,
        at,
        size,
        run,
        last,
        this.#allow,
      );
      const slot = this.#i32[this.#out];
      if (taken > 0) {
        // A merge that began in this call holds exactly what the call took.
        if (this.#i32[this.#states + slot * MERGE_WORDS] === taken) this.#openSlots[this.#openCount++] = slot;
        return taken;
      }
      if (slot === CLOSE_ALL) this.#closeAll();
      else if (slot >= 0) this.#close(slot);
      if (this.#i32[this.#out + 1] === 0) return 0;
    }
  }

  /** Pushes all open merges, in the order they were opened. */
  #closeAll(): void {
    for (let i = 0; i < this.#openCount; i++) this.#pushMerged(this.#openSlots[i]);
    this.#openCount = 0;
  }

  /** Pushes one slot's merge, if it has one. */
  #close(slot: number): void {
    for (let i = 0; i < this.#openCount; i++) {
      if (this.#openSlots[i] !== slot) continue;
      this.#pushMerged(slot);
      this.#openSlots.copyWithin(i, i + 1, this.#openCount);
      this.#openCount--;
      return;
    }
  }

  #pushMerged(slot: number): void {
    const state = this.#layout.mergeStates + slot * MERGE_WORDS * 4;
    const buffer = this.#layout.mergeBuffers + slot * this.#layout.mergeStride;
    const segments = this.#i32[state >> 2];
    const length = this.#kernels.mergeClose(state, buffer);
    if (segments === 1) {
      this.#push(buffer, length);
      return;
    }
    this.#add(count.IN_MERGED, segments - 1);
    const result = this.#device.push(buffer, length);
    if (result >= 0) {
      this.#add(count.IN_SUPER, 1);
      this.#pushed(length);
    } else if (result === -EINVAL) {
      this.#unmerge(buffer, length, state, segments);
    } else {
      this.#add(count.IN_REFUSED, 1);
    }
  }

  /**
   * The device refused a super-packet (some kernels do, against their own word): its segments go singly, and that kind is
   * not merged again; it is reported as that offload refused.
   */
  #unmerge(buffer: number, length: number, state: number, segments: number): void {
    const { scratch } = this.#layout;
    const kind = this.#u8[buffer - VNET_HEADER + VNET_GSO_TYPE];
    const size = this.#view.getUint16(buffer - VNET_HEADER + VNET_GSO_SIZE, true);
    const headers = this.#i32[(state >> 2) + 2];
    const l3 = this.#i32[(state >> 2) + 3];
    if (kind === GSO_TCPV4) this.#refuse(ALLOW_TCP4, OFFLOADS.tso4);
    else if (kind === GSO_TCPV6) this.#refuse(ALLOW_TCP6, OFFLOADS.tso6);
    else if (kind === GSO_UDP_L4) this.#refuse(ALLOW_UDP, OFFLOADS.uso);
    this.#kernels.copy(scratch, buffer, length);
    this.#kernels.split(scratch, length, l3, headers, size, kind === GSO_UDP_L4 ? 0 : 1, VNET_HEADER);
    this.#add(count.IN_REPLAYED, segments - 1);
    for (let i = 0; i < segments; i++) {
      const at = scratch + i * (headers + size + VNET_HEADER);
      const bytes = i === segments - 1 ? length - (segments - 1) * size : headers + size;
      this.#u8.fill(0, at - VNET_HEADER, at);
      this.#push(at, bytes);
    }
  }

  #refuse(allow: number, offload: number): void {
    this.#allow &= ~allow;
    this.#shared.refuseOffload(offload);
  }

  /** Writes one packet whose virtio header is in place. */
  #push(at: number, length: number): void {
    if (this.#device.push(at, length) < 0) this.#add(count.IN_REFUSED, 1);
    else this.#pushed(length);
  }

  #pushed(length: number): void {
    this.#add(count.IN_PUSHED, 1);
    this.#add(count.IN_PUSHED_BYTES, length);
  }
}

/** Packets above the MTU in a run of `taken` (0: one by itself) whose first is; only a message's last may be shorter. */
const above = (taken: number, hasLast: boolean, lastIs: boolean): number =>
  taken < 2 ? 1 : hasLast && !lastIs ? taken - 1 : taken;
