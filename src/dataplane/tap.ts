/**
 * One worker's tap: while somebody captures, it copies packets that enter and leave to the worker's capture ring, with what has
 * become of them. While nobody does, `on` is false, and a walk asks nothing more than that.
 *
 *   device in ─▶ outbound walk ─▶ underlay out          underlay in ─▶ inbound walk ─▶ device out
 *
 * An entering packet is copied before the walk changes it, and its verdict filled in when the walk is through with it: which of
 * the counters that can decide about it has moved, or else it was forwarded. What leaves meanwhile stands behind it in the ring.
 * If nobody wants it after all, its place is given back, or, if there is something behind it, made void. A packet is in the ring
 * for the reader only when its walk is over, so a worker that dies leaves no half of one.
 *
 * A full ring takes no more, and counts: forwarding never waits.
 */
import * as record from '../io/capture-record.js';
import type { Kernels } from '../io/kernels.js';
import { type EngineMemory, VNET_HEADER, type WorkerLayout } from '../io/memory.js';
import * as vnet from '../packet/virtio-net.js';
import { CaptureFilter } from './capture-filter.js';
import { RING_HEAD, RING_LOST, RING_ROOM, RING_TAIL, RING_WRAP, ringRecords } from './capture-ring.js';
import type { PeerRef } from './peers.js';
import { captureOf, type SharedWords } from './shared.js';
import { enteringVerdicts, FLOODED, FORWARDED } from './verdicts.js';

const NO_RECORD = -1;

/** The counters that can decide about what enters in a direction, as they were before. */
class Decisions {
  readonly #f64: Float64Array;
  readonly #counters: number;
  readonly #ids: Int32Array;
  readonly #before: Float64Array;

  constructor(memory: EngineMemory, layout: WorkerLayout, direction: 'outbound' | 'inbound') {
    this.#f64 = memory.f64;
    this.#counters = layout.counters >> 3;
    this.#ids = enteringVerdicts(direction);
    this.#before = new Float64Array(this.#ids.length);
  }

  note(): void {
    for (let i = 0; i < this.#ids.length; i++) this.#before[i] = this.#f64[this.#counters + this.#ids[i]];
  }

  /** The first that has moved since, or FORWARDED. */
  made(): number {
    for (let i = 0; i < this.#ids.length; i++) {
      if (this.#f64[this.#counters + this.#ids[i]] !== this.#before[i]) return this.#ids[i];
    }
    return FORWARDED;
  }
}

export class Tap {
  /** Somebody captures. The same for a whole turn. */
  on = false;
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #view: DataView;
  readonly #kernels: Pick<Kernels, 'copy'> | undefined;
  readonly #filter: CaptureFilter;
  readonly #outbound: Decisions;
  readonly #inbound: Decisions;
  readonly #worker: number;
  /** Sockets per underlay that send, of one worker. */
  readonly #senders: number;
  readonly #vnetIn: number;
  readonly #timespec: number;
  /** The ring: its words (i32 index), and its records (bytes). */
  readonly #ring: number;
  readonly #records: number;
  #word = 0;
  #session = 0;
  #seconds = 0;
  #nanoseconds = 0;
  /** Offset behind the last record. The reader's head follows when no walk is under way. */
  #head = 0;
  // The entering packet: whether anybody may want it, its record's offset, and the head before and behind that.
  #wanted = false;
  #entered = NO_RECORD;
  #before = 0;
  #behind = 0;

  /** `kernels`: of `memory`; without them, copies are slower. */
  constructor(memory: EngineMemory, layout: WorkerLayout, worker: number, kernels?: Pick<Kernels, 'copy'>) {
    this.#u8 = memory.u8;
    this.#i32 = memory.i32;
    this.#view = new DataView(memory.memory.buffer);
    this.#kernels = kernels;
    this.#filter = new CaptureFilter(memory);
    this.#outbound = new Decisions(memory, layout, 'outbound');
    this.#inbound = new Decisions(memory, layout, 'inbound');
    this.#worker = worker;
    this.#senders = memory.options.senders ?? 1;
    this.#vnetIn = layout.vnetIn;
    this.#timespec = layout.timespec >> 2;
    this.#ring = layout.capture >> 2;
    this.#records = ringRecords(layout);
  }

  /** Looks whether somebody captures; once a turn, before the first packet. */
  beginTurn(shared: SharedWords): void {
    if (shared.captureWord() !== this.#word) this.#change(shared.changedCaptureWord());
    if (!this.on) return;
    this.#seconds = this.#i32[this.#timespec];
    this.#nanoseconds = this.#i32[this.#timespec + 2];
  }

  #change(word: number): void {
    this.#word = word;
    this.on = word !== 0;
    if (!this.on) return;
    this.#session = captureOf(word);
    this.#filter.read();
    this.#head = this.#i32[this.#ring + RING_HEAD]; // a worker before us may have written it
  }

  /** A packet that the device of `network` has just given; its virtio header is still in `layout.vnetIn`. */
  enterDevice(network: number, at: number, length: number): void {
    this.#outbound.note();
    this.#enter(record.DEVICE_IN, at, length, 0);
    if (this.#entered !== NO_RECORD) this.#writeDevice(this.#entered, network, this.#vnetIn);
  }

  /** It is through: `ref` is whom it was for, if it got that far; `flooded`: all peers. */
  decideDevice(ref: PeerRef, flooded: boolean): void {
    this.#decide(flooded ? FLOODED : this.#outbound.made(), flooded ? 0 : ref);
  }

  /** A datagram from the underlay (0 IPv4, 1 IPv6), whose sender's sockaddr is at `name`. */
  enterUnderlay(underlay: number, name: number, tos: number, at: number, length: number): void {
    this.#inbound.note();
    this.#enter(record.UNDERLAY_IN, at, length, name);
    if (this.#entered !== NO_RECORD) this.#writeUnderlay(this.#entered, underlay, 0, tos, name);
  }

  /** It is through; returns its verdict, which those that went with it share. */
  decideUnderlay(ref: PeerRef): number {
    const verdict = this.#inbound.made();
    this.#decide(verdict, ref);
    return verdict;
  }

  /** A datagram about which has been decided already. */
  underlayIn(
    underlay: number,
    name: number,
    tos: number,
    at: number,
    length: number,
    ref: PeerRef,
    verdict: number,
  ): void {
    const offset = this.#add(record.UNDERLAY_IN, at, length, ref, verdict, name);
    if (offset === NO_RECORD) return;
    this.#writeUnderlay(offset, underlay, 0, tos, name);
    this.#publish();
  }

  /** A datagram that `sender` of this worker's sockets of the underlay sent, or did not, to the sockaddr at `name`. */
  underlayOut(
    underlay: number,
    sender: number,
    name: number,
    tos: number,
    at: number,
    length: number,
    ref: PeerRef,
    verdict: number,
  ): void {
    const offset = this.#add(record.UNDERLAY_OUT, at, length, ref, verdict, name);
    if (offset === NO_RECORD) return;
    this.#writeUnderlay(offset, underlay, this.#worker * this.#senders + sender, tos, name);
    this.#publish();
  }

  /** A packet that was written to the device of `network`, or was to be; its virtio header lies before it. */
  deviceOut(network: number, at: number, length: number, ref: PeerRef, verdict: number): void {
    const offset = this.#add(record.DEVICE_OUT, at, length, ref, verdict, 0);
    if (offset === NO_RECORD) return;
    this.#writeDevice(offset, network, at - VNET_HEADER);
    this.#publish();
  }

  #enter(place: number, at: number, length: number, name: number): void {
    this.#entered = NO_RECORD;
    this.#wanted = this.#filter.wantsPlace(place) && this.#filter.wantsHost(place, at, length, name);
    if (!this.#wanted) return;
    this.#before = this.#head;
    this.#entered = this.#write(place, at, length);
    this.#behind = this.#head;
  }

  #decide(verdict: number, ref: PeerRef): void {
    if (!this.#wanted) {
      this.#publishNow();
      return;
    }
    this.#wanted = false;
    const offset = this.#entered;
    this.#entered = NO_RECORD;
    const wanted = this.#filter.wants(verdict, ref);
    if (offset === NO_RECORD) {
      if (wanted) this.#lose();
    } else if (wanted) {
      this.#writeVerdict(offset, ref, verdict);
    } else if (this.#head === this.#behind) {
      this.#head = this.#before;
    } else {
      this.#i32[((this.#records + offset) >> 2) + record.RECORD_SESSION] = record.RECORD_VOID;
    }
    this.#publishNow();
  }

  /** A packet whose verdict is known: the offset of its record, or NO_RECORD. */
  #add(place: number, at: number, length: number, ref: PeerRef, verdict: number, name: number): number {
    const filter = this.#filter;
    if (!filter.wantsPlace(place) || !filter.wants(verdict, ref) || !filter.wantsHost(place, at, length, name)) {
      return NO_RECORD;
    }
    const offset = this.#write(place, at, length);
    if (offset === NO_RECORD) this.#lose();
    else this.#writeVerdict(offset, ref, verdict);
    return offset;
  }

  /** Copies a packet; what depends on the side, and the verdict, are still to be written. The record's offset, or NO_RECORD. */
  #write(place: number, at: number, length: number): number {
    const captured = Math.min(length, this.#filter.snaplen);
    const size = record.recordSize(captured);
    const offset = this.#reserve(size);
    if (offset === NO_RECORD) return NO_RECORD;
    const i32 = this.#i32;
    const word = (this.#records + offset) >> 2;
    i32[word + record.RECORD_SIZE] = size;
    i32[word + record.RECORD_SESSION] = this.#session;
    i32[word + record.RECORD_SECONDS] = this.#seconds;
    i32[word + record.RECORD_NANOSECONDS] = this.#nanoseconds;
    i32[word + record.RECORD_WHERE] = place | (record.NO_NETWORK << 8) | (this.#worker << 16);
    i32[word + record.RECORD_VERDICT] = FORWARDED;
    i32[word + record.RECORD_PEER] = 0;
    i32[word + record.RECORD_LENGTH] = length;
    i32[word + record.RECORD_CAPTURED] = captured;
    for (let i = record.RECORD_OUTER; i < record.RECORD_NAME + record.RECORD_NAME_WORDS; i++) i32[word + i] = 0;
    const to = this.#records + offset + record.RECORD_HEADER;
    if (this.#kernels === undefined) this.#u8.copyWithin(to, at, at + captured);
    else this.#kernels.copy(to, at, captured);
    return offset;
  }

  #writeVerdict(offset: number, ref: PeerRef, verdict: number): void {
    const word = (this.#records + offset) >> 2;
    this.#i32[word + record.RECORD_VERDICT] = (this.#i32[word + record.RECORD_VERDICT] & ~0xffff) | verdict;
    this.#i32[word + record.RECORD_PEER] = ref;
  }

  /** `header`: where the packet's virtio header is. */
  #writeDevice(offset: number, network: number, header: number): void {
    const at = this.#records + offset;
    const partial = this.#u8[header] & vnet.VNET_NEEDS_CSUM ? record.RECORD_FLAG_PARTIAL : 0;
    this.#u8[at + record.RECORD_WHERE * 4 + 1] = network;
    this.#u8[at + record.RECORD_WHERE * 4 + 3] = partial;
    if (this.#u8[header + vnet.VNET_GSO_TYPE] === vnet.GSO_NONE) return;
    const segment = this.#view.getUint16(header + vnet.VNET_GSO_SIZE, true);
    this.#view.setUint16(at + record.RECORD_VERDICT * 4 + 2, segment, true);
  }

  #writeUnderlay(offset: number, underlay: number, sender: number, tos: number, name: number): void {
    const i32 = this.#i32;
    const word = (this.#records + offset) >> 2;
    i32[word + record.RECORD_OUTER] = (tos & 0xff) | (sender << 8) | (underlay << 16);
    for (let i = 0; i < record.RECORD_NAME_WORDS; i++) i32[word + record.RECORD_NAME + i] = i32[(name >> 2) + i];
  }

  /** Room for a record behind the last: its offset, or NO_RECORD. The head may not catch up with the tail. */
  #reserve(size: number): number {
    const tail = Atomics.load(this.#i32, this.#ring + RING_TAIL);
    let offset = this.#head;
    if (offset >= tail && offset + size > RING_ROOM) {
      if (size >= tail) return NO_RECORD;
      this.#i32[((this.#records + offset) >> 2) + record.RECORD_SIZE] = RING_WRAP;
      offset = 0;
    } else if (offset < tail ? offset + size >= tail : offset + size === RING_ROOM && tail === 0) {
      return NO_RECORD;
    }
    this.#head = offset + size === RING_ROOM ? 0 : offset + size;
    return offset;
  }

  #lose(): void {
    this.#i32[this.#ring + RING_LOST]++;
  }

  /** Lets the reader see what is written, unless a walk is under way. */
  #publish(): void {
    if (!this.#wanted) this.#publishNow();
  }

  #publishNow(): void {
    Atomics.store(this.#i32, this.#ring + RING_HEAD, this.#head);
  }
}
