/**
 * Inbound, network → host, in the order a packet takes:
 *
 *   pull → [VXLAN header] → find peer → may it come in? (routing.ts, switching.ts) → ECN → merge with the packets before it →
 *   push
 *
 * A message may hold many datagrams of one sender (UDP_GRO), all of one size but the last. TypeScript checks the first of
 * each run; the merge kernel takes the run's rest as long as it agrees with the first. A packet that cannot be merged is
 * written from where it was received: its virtio header goes over the bytes before it, which belong to datagrams that have
 * already been handled, or to the VXLAN header.
 */
import { type Device, EINVAL, type Socket } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import {
  type EngineMemory,
  MERGE_SLOTS,
  MERGE_WORDS,
  PEER_COUNTERS,
  RECEIVE_CONTROL,
  SCRATCH_HALF,
  SIZEOF_MMSGHDR,
  SIZEOF_SOCKADDR,
  VNET_HEADER,
  type WorkerLayout,
} from '../io/memory.js';
import { CMSG_HEADER, initReceiveArrays, MSG_CONTROLLEN, MSG_FLAGS, MSG_LEN } from '../io/messages.js';
import { OFFLOADS } from '../io/offloads.js';
import * as sys from '../io/syscalls-constants.js';
import { ETHERTYPE_IPV4, ETHERTYPE_IPV6, headerLength } from '../packet/ethernet.js';
import * as ip from '../packet/ip.js';
import * as vnet from '../packet/virtio-net.js';
import { hasVni, VXLAN_HEADER, vniOf } from '../packet/vxlan.js';
import { lookupAddress, MAPPED } from './addresses.js';
import * as count from './counters.js';
import { countSize, histogramAt, IN_BATCH, IN_MESSAGE } from './histograms.js';
import type { Layer } from './layer.js';
import type { EngineSettings } from './settings.js';
import type { SharedWords } from './shared.js';
import { Tap } from './tap.js';
import { FINISHED, findUnfinished, UNSEGMENTED } from './unfinished.js';
import { SENT } from './verdicts.js';

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

/** Equals no VNI, which has 24 bits. */
const NO_VNI = -1;

/** Most receive calls of one socket in a turn. */
const MAX_PULLS = 16;

export class Inbound {
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #kernels: Kernels;
  readonly #layer: Layer;
  /** By network. */
  readonly #devices: readonly Device[];
  readonly #shared: SharedWords;
  readonly #tap: Tap;
  readonly #counters: number;
  readonly #peerCounters: number;
  readonly #batches: number;
  readonly #messages: number;
  readonly #addressMask: number;
  readonly #states: number;
  readonly #out: number;
  /** By network: largest IP packet. */
  readonly #mtus: readonly number[];
  /** By underlay, then network: what arrives in it over that underlay; NO_VNI: nothing does. Undefined in layer 3. */
  readonly #vnisOf: readonly (readonly number[])[] | undefined;
  /** Those of the underlay that is read. */
  #vnis: readonly number[] | undefined;
  /** Bytes of the encapsulation before the inner packet. */
  readonly #header: number;
  readonly #anyone: boolean;
  /** Unfinished checksums may go to the device. */
  readonly #partial: boolean;
  #allow: number;
  #addresses = 0;

  /** Slots with an open merge, in the order they were opened. */
  readonly #openSlots = new Int32Array(MERGE_SLOTS);
  #openCount = 0;
  /** By slot: which network's packets are in it, and whose the first is. */
  readonly #slotNetworks = new Int32Array(MERGE_SLOTS);
  readonly #slotRefs = new Int32Array(MERGE_SLOTS);

  // What the current message's control data said.
  #segment = 0;
  #tos = 0;
  // The current message's sender; where its name is; and the peer that it is in which network.
  readonly #sender = new Int32Array(4);
  #name = 0;
  #underlay = 0;
  #senderRef = 0;
  #senderNetwork = -1;
  #senderVersion = -1;
  // The current datagram: its network and peer.
  #network = 0;
  #ref = 0;

  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    kernels: Kernels,
    layer: Layer,
    devices: readonly Device[],
    shared: SharedWords,
    view: DataView,
    settings: EngineSettings,
    tap = new Tap(memory, layout, 0),
  ) {
    this.#memory = memory;
    this.#layout = layout;
    this.#u8 = memory.u8;
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#kernels = kernels;
    this.#layer = layer;
    this.#devices = devices;
    this.#shared = shared;
    this.#tap = tap;
    this.#counters = layout.counters >> 3;
    this.#peerCounters = layout.peerCounters >> 3;
    this.#batches = histogramAt(layout, IN_BATCH);
    this.#messages = histogramAt(layout, IN_MESSAGE);
    this.#addressMask = memory.layout.addressSlots - 1;
    this.#states = layout.mergeStates >> 2;
    this.#out = layout.kernelOut >> 2;
    const { offloads, l2 } = settings;
    this.#mtus = l2 ? l2.networks.map(({ mtu }) => mtu) : [settings.mtu];
    this.#vnisOf =
      l2 && [4, 6].map((over) => l2.networks.map(({ vni, family = over }) => (family === over ? vni : NO_VNI)));
    this.#vnis = this.#vnisOf?.[0];
    this.#header = l2 ? VXLAN_HEADER : 0;
    this.#anyone = settings.sourceCheck === 'off';
    this.#partial = (offloads & OFFLOADS.csum) !== 0;
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
    this.#addresses = this.#memory.layout.tables[version].addresses >> 2;
    if (version !== this.#senderVersion) this.forgetSender();
    this.#senderVersion = version;
  }

  /** Whoever sends next is looked up. */
  forgetSender(): void {
    this.#senderNetwork = -1;
  }

  /** Up to `budget` bytes from one socket, all written to the device on return. Returns the bytes received. */
  run(socket: Socket, underlay: number, budget: number): number {
    let bytes = 0;
    this.#vnis = this.#vnisOf?.[underlay];
    // Bounded by pulls too: a flood of empty datagrams has no bytes.
    for (let pulls = 0; pulls < MAX_PULLS && bytes < budget; pulls++) {
      const messages = socket.pull();
      if (messages <= 0) break;
      this.#f64[this.#counters + count.IN_MESSAGES] += messages;
      countSize(this.#f64, this.#batches, messages);
      for (let m = 0; m < messages; m++) bytes += this.#message(m, underlay);
    }
    // Not after each pull: a super-packet that its sender had to send as two messages often arrives as two pulls. But before the
    // other underlay is read: there the same VNI may be another network, and the merge kernel tells flows by their bytes.
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
    this.#readControl(receive.controls + m * RECEIVE_CONTROL, this.#i32[header + (MSG_CONTROLLEN >> 2)]);
    const size = this.#segment > 0 && this.#segment < length && !this.#spans(at, length) ? this.#segment : length;
    const datagrams = length === 0 ? 1 : Math.ceil(length / size);
    this.#add(count.IN_IN, datagrams);
    countSize(this.#f64, this.#messages, datagrams);
    this.#add(count.IN_IN_BYTES, length);

    this.#name = receive.names + m * SIZEOF_SOCKADDR;
    this.#underlay = underlay;
    const last = length - (datagrams - 1) * size;
    if (this.#i32[header + (MSG_FLAGS >> 2)] & sys.MSG_TRUNC) {
      this.#refuseAll(at, size, datagrams, last, 0, count.IN_TRUNCATED);
      return length;
    }
    if (this.#vnis === undefined) {
      this.#ref = this.#findPeer(0);
      if (this.#ref === 0 && !this.#anyone) {
        this.#refuseAll(at, size, datagrams, last, 0, count.IN_UNKNOWN_PEER);
        return length;
      }
      if (length === 0) {
        this.#refuseAll(at, size, 1, 0, this.#ref, count.IN_EMPTY);
        return 0;
      }
      this.#countPeer(datagrams, length);
    }
    this.#datagrams(at, size, datagrams, last);
    return length;
  }

  /** A message's datagrams are dropped, all of them; they are from `ref`, if that has been found out. */
  #refuseAll(at: number, size: number, total: number, last: number, ref: number, counter: number): void {
    this.#add(counter, total);
    if (this.#tap.on) this.#watchRun(at, size, 0, total, total, last, ref, counter);
  }

  /** Reads UDP_GRO's segment size, and the outer TOS or traffic class. */
  #readControl(at: number, length: number): void {
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
      if (i32[word] < CMSG_HEADER) break;
      offset += (i32[word] + 7) & ~7;
    }
  }

  /** The peer of `network` that sent the current message, or 0. */
  #findPeer(network: number): number {
    const i32 = this.#i32;
    const name = this.#name >> 2;
    let w0 = 0;
    let w1 = 0;
    let w2 = MAPPED;
    let w3 = i32[name + 1];
    if (this.#underlay === 1) {
      w0 = i32[name + 2];
      w1 = i32[name + 3];
      w2 = i32[name + 4];
      w3 = i32[name + 5];
    }
    // Most messages come from the same one as the last.
    const last = this.#sender;
    const same = last[3] === w3 && last[2] === w2 && last[1] === w1 && last[0] === w0;
    if (same && this.#senderNetwork === network && this.#senderRef !== 0) return this.#senderRef;
    const ref = lookupAddress(i32, this.#addresses, this.#addressMask, w0, w1, w2, w3, network);
    last[0] = w0;
    last[1] = w1;
    last[2] = w2;
    last[3] = w3;
    this.#senderRef = ref;
    this.#senderNetwork = network;
    return ref;
  }

  #countPeer(datagrams: number, bytes: number): void {
    if (this.#ref === 0) return;
    const peer = this.#peerCounters + (this.#ref & 0xffff) * PEER_COUNTERS;
    this.#f64[peer + 2] += datagrams;
    this.#f64[peer + 3] += bytes;
  }

  /** The datagrams of one message, one behind the other at `at`: `size` bytes each, the last one `last`. */
  #datagrams(at: number, size: number, total: number, last: number): void {
    for (let i = 0; i < total; ) {
      i += this.#tap.on ? this.#takeWatched(at, size, i, total, last) : this.#take(at, size, i, total, last);
    }
  }

  /** Takes datagram `i`, and of those behind it what merges with it. Returns how many that are. */
  #take(at: number, size: number, i: number, total: number, last: number): number {
    const header = this.#header;
    const datagram = at + i * size;
    const length = i === total - 1 ? last : size;
    const packet = datagram + header;
    if (!this.#accept(datagram, length)) return 1;
    const { l2 } = this.#layer;
    const mtu = this.#mtus[this.#network];
    const over = length - header - l2 > mtu;
    // CE and ECT(1) have to be written into each inner header, so then they go one by one.
    const run = this.#tos & 1 ? 1 : total - i;
    const taken = this.#merge(datagram, size, run, run === total - i ? last : size, over && header > 0);
    const done = Math.max(taken, 1);
    if (header > 0) this.#countPeer(done, i + done === total ? (done - 1) * size + last : done * size);
    if (over) this.#add(count.IN_ABOVE_MTU, above(taken, i + taken === total, last - header - l2 > mtu));
    if (taken > 0) return taken;
    this.#u8.fill(0, packet - VNET_HEADER, packet);
    if (header > 0) this.#pushFrame(packet, length - header);
    else this.#push(this.#devices[0], packet, length, this.#ref);
    return 1;
  }

  /** `#take`, and the tap sees it. What merges with the first has not been changed, and shares its verdict. */
  #takeWatched(at: number, size: number, i: number, total: number, last: number): number {
    const tap = this.#tap;
    tap.enterUnderlay(this.#underlay, this.#name, this.#tos, at + i * size, i === total - 1 ? last : size);
    if (this.#vnis !== undefined) this.#ref = 0;
    const done = this.#take(at, size, i, total, last);
    const verdict = tap.decideUnderlay(this.#ref === 0 ? this.#senderAnywhere() : this.#ref);
    if (done > 1) this.#watchRun(at, size, i + 1, i + done, total, last, this.#ref, verdict);
    return done;
  }

  /** The sender's reference in whichever network, for a datagram that came no further than its VXLAN header; 0: in none. */
  #senderAnywhere(): number {
    const networks = this.#vnis?.length ?? 0;
    for (let network = 0; network < networks; network++) {
      const ref = this.#findPeer(network);
      if (ref !== 0) return ref;
    }
    return 0;
  }

  /** Shows the tap datagrams `from` to `to` - 1, about which the same has been decided. */
  #watchRun(
    at: number,
    size: number,
    from: number,
    to: number,
    total: number,
    last: number,
    ref: number,
    verdict: number,
  ): void {
    for (let i = from; i < to; i++) {
      const length = i === total - 1 ? last : size;
      this.#tap.underlayIn(this.#underlay, this.#name, this.#tos, at + i * size, length, ref, verdict);
    }
  }

  /** Decapsulation, whatever the layer checks, ECN. False: counted and done with. */
  #accept(datagram: number, length: number): boolean {
    if (this.#vnis !== undefined && !this.#decapsulate(datagram, length)) return false;
    const at = datagram + this.#header;
    const layer = this.#layer;
    if (!layer.inbound(at, length - this.#header, this.#ref, this.#network)) return false;
    if (this.#tos & 3 && layer.version !== 0 && !this.#decapsulateEcn(at + layer.l2)) {
      this.#add(count.IN_ECN, 1);
      return false;
    }
    if (this.#vnis === undefined && layer.version === 4) this.#note4(at);
    return true;
  }

  /** The VXLAN header: which network, and who of it sent it. */
  #decapsulate(at: number, length: number): boolean {
    if (length < VXLAN_HEADER) return this.#refuseDatagram(length === 0 ? count.IN_EMPTY : count.IN_VXLAN_SHORT);
    if (!hasVni(this.#view, at)) return this.#refuseDatagram(count.IN_VXLAN_FLAG);
    const network = this.#networkOf(vniOf(this.#view, at));
    if (network < 0) return this.#refuseDatagram(count.IN_UNKNOWN_VNI);
    this.#network = network;
    this.#ref = this.#findPeer(network);
    if (this.#ref === 0 && !this.#anyone) return this.#refuseDatagram(count.IN_UNKNOWN_PEER);
    return true;
  }

  #networkOf(vni: number): number {
    const vnis = this.#vnis as readonly number[];
    for (let i = 0; i < vnis.length; i++) if (vnis[i] === vni) return i;
    return -1;
  }

  #refuseDatagram(counter: number): false {
    this.#add(counter, 1);
    return false;
  }

  /**
   * Whether the message is one VXLAN datagram although its control data named a segment size: a kernel across a veth hands
   * over UDP super-frames unsegmented, and the size is that of the inner datagrams.
   */
  #spans(at: number, length: number): boolean {
    if (this.#vnis === undefined || length < VXLAN_HEADER) return false;
    const l2 = headerLength(this.#view, at + VXLAN_HEADER, length - VXLAN_HEADER);
    const packet = at + VXLAN_HEADER + l2;
    const room = length - VXLAN_HEADER - l2;
    if (l2 === 0 || room < ip.IPV6_HEADER) return false;
    const type = this.#view.getUint16(packet - 2);
    if (type === ETHERTYPE_IPV4) return this.#view.getUint16(packet + ip.IPV4_TOTAL_LENGTH) === room;
    return type === ETHERTYPE_IPV6 && this.#view.getUint16(packet + ip.IPV6_PAYLOAD_LENGTH) === room - ip.IPV6_HEADER;
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
   * whatever was open for its flow has been pushed before. `alone`: it must be so in any case.
   */
  #merge(at: number, size: number, run: number, last: number, alone: boolean): number {
    const { mergeStates, mergeBuffers, mergeStride, kernelOut } = this.#layout;
    const { l2, version, exact } = this.#layer;
    if ((this.#allow & 0xff) === 0 || version === 0) return 0;
    if (alone || !exact) {
      this.#closeAll();
      return 0;
    }
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
        this.#header + l2,
      );
      const slot = this.#i32[this.#out];
      if (taken > 0) {
        // A merge that began in this call holds exactly what the call took.
        if (this.#i32[this.#states + slot * MERGE_WORDS] === taken) {
          this.#openSlots[this.#openCount++] = slot;
          this.#slotNetworks[slot] = this.#network;
          this.#slotRefs[slot] = this.#ref;
        }
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
    const word = state >> 2;
    const segments = this.#i32[word];
    const l2 = this.#header === 0 ? 0 : this.#i32[word + 9] - this.#header;
    const device = this.#devices[this.#slotNetworks[slot]];
    const length = this.#kernels.mergeClose(state, buffer, l2);
    const ref = this.#slotRefs[slot];
    if (segments === 1) {
      this.#push(device, buffer - l2, length, ref);
      return;
    }
    this.#add(count.IN_MERGED, segments - 1);
    this.#pushSuper(device, buffer, l2, length - l2, this.#i32[word + 3], this.#i32[word + 2], ref);
  }

  /** Writes a frame from where it was received. What its sender left unfinished is left to the device, if that may be. */
  #pushFrame(frame: number, length: number): void {
    const { l2, version, exact } = this.#layer;
    const device = this.#devices[this.#network];
    const at = frame + l2;
    const found =
      version === 0
        ? FINISHED
        : findUnfinished(this.#view, this.#kernels, at, l2, version, exact, this.#mtus[this.#network], this.#segment);
    if (found === FINISHED) {
      this.#push(device, frame, length, this.#ref);
      return;
    }
    const header = frame - VNET_HEADER;
    const start = this.#view.getUint16(header + vnet.VNET_CSUM_START, true);
    this.#add(count.IN_PARTIAL, 1);
    if (found === UNSEGMENTED) {
      this.#add(count.IN_UNSEGMENTED, 1);
      const headers = this.#view.getUint16(header + vnet.VNET_HDR_LEN, true) - l2;
      this.#pushSuper(device, at, l2, length - l2, start - l2, headers, this.#ref);
      return;
    }
    if (!this.#partial) {
      this.#kernels.finish(frame, length, start, this.#view.getUint16(header + vnet.VNET_CSUM_OFFSET, true));
      this.#u8.fill(0, header, frame);
    }
    this.#push(device, frame, length, this.#ref);
  }

  /** Writes the super-packet at `at`, behind `l2` bytes and a filled virtio header; in segments, if the device has it so. */
  #pushSuper(device: Device, at: number, l2: number, length: number, l3: number, headers: number, ref: number): void {
    const kind = this.#u8[at - l2 - VNET_HEADER + vnet.VNET_GSO_TYPE];
    const allow = kind === vnet.GSO_TCPV4 ? ALLOW_TCP4 : kind === vnet.GSO_TCPV6 ? ALLOW_TCP6 : ALLOW_UDP;
    const result = this.#allow & allow ? device.push(at - l2, l2 + length) : -EINVAL;
    if (result >= 0) {
      this.#add(count.IN_SUPER, 1);
      this.#pushed(device, at - l2, l2 + length, ref);
    } else if (result === -EINVAL) {
      this.#refuseKind(allow);
      this.#pushSegments(device, at, l2, length, l3, headers, kind !== vnet.GSO_UDP_L4, ref);
    } else {
      this.#refused(device, at - l2, l2 + length, ref);
    }
  }

  /** The segments of a super-packet, one by one. */
  #pushSegments(
    device: Device,
    at: number,
    l2: number,
    length: number,
    l3: number,
    headers: number,
    tcp: boolean,
    ref: number,
  ): void {
    const { scratch } = this.#layout;
    const size = this.#view.getUint16(at - l2 - VNET_HEADER + vnet.VNET_GSO_SIZE, true);
    const segments = Math.ceil((length - headers) / size);
    const prefix = VNET_HEADER + l2;
    if (length + segments * (prefix + headers) > SCRATCH_HALF) {
      this.#refused(device, at - l2, l2 + length, ref);
      return;
    }
    this.#kernels.copy(scratch, at - l2, l2 + length);
    this.#u8.fill(0, scratch - VNET_HEADER, scratch);
    this.#kernels.split(scratch + l2, length, l3, headers, size, tcp ? 1 : 0, prefix);
    this.#add(count.IN_REPLAYED, segments - 1);
    for (let i = 0; i < segments; i++) {
      const bytes = i === segments - 1 ? length - (segments - 1) * size : headers + size;
      this.#push(device, scratch + i * (prefix + headers + size), l2 + bytes, ref);
    }
  }

  /**
   * The device refused a super-packet of a kind that it had said it takes (some kernels do): that kind is not merged again, and
   * it is reported as that offload refused.
   */
  #refuseKind(allow: number): void {
    if (!(this.#allow & allow)) return;
    this.#allow &= ~allow;
    this.#shared.refuseOffload(
      allow === ALLOW_TCP4 ? OFFLOADS.tso4 : allow === ALLOW_TCP6 ? OFFLOADS.tso6 : OFFLOADS.uso,
    );
  }

  /** Writes one packet, which came from `ref`, and whose virtio header is in place. */
  #push(device: Device, at: number, length: number, ref: number): void {
    if (device.push(at, length) < 0) this.#refused(device, at, length, ref);
    else this.#pushed(device, at, length, ref);
  }

  #pushed(device: Device, at: number, length: number, ref: number): void {
    this.#add(count.IN_PUSHED, 1);
    this.#add(count.IN_PUSHED_BYTES, length);
    if (this.#tap.on) this.#tap.deviceOut(this.#devices.indexOf(device), at, length, ref, SENT);
  }

  #refused(device: Device, at: number, length: number, ref: number): void {
    this.#add(count.IN_REFUSED, 1);
    if (this.#tap.on) this.#tap.deviceOut(this.#devices.indexOf(device), at, length, ref, count.IN_REFUSED);
  }
}

/** Packets above the MTU in a run of `taken` (0: one by itself) whose first is; only a message's last may be shorter. */
const above = (taken: number, hasLast: boolean, lastIs: boolean): number =>
  taken < 2 ? 1 : hasLast && !lastIs ? taken - 1 : taken;
