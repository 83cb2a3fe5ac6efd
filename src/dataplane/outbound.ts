/**
 * Outbound, host → network, in the order a packet takes:
 *
 *   pull → to whom? (routing.ts, switching.ts) → fits the path? → finish checksum or split → encapsulate → join the peer's
 *   message → push
 *
 * A packet is read into the arena right behind the one before it, which is where it leaves from, with room for the
 * encapsulation's header in front: a plain packet is never copied, a super-packet is split where it lies, and a flooded frame
 * lies there once, however many peers it goes to. A packet that goes no further leaves its place to the next one.
 *
 * In layer 3 the datagram is the inner packet, nothing more (flannel's udp backend); in layer 2 it is a VXLAN header (RFC 7348)
 * and the frame. What stands in front of an inner IP packet (VXLAN and Ethernet header) is its prefix: each segment or fragment
 * gets a copy of it.
 */
import { type Device, EAGAIN, EBADFD } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import {
  ARENA_BYTES,
  type EngineMemory,
  MAX_PACKET,
  PEER_BYTES,
  SCRATCH_HALF,
  SEND_MESSAGES,
  type TableLayout,
  type WorkerLayout,
} from '../io/memory.js';
import { isGroupMac } from '../packet/ethernet.js';
import * as ip from '../packet/ip.js';
import * as vnet from '../packet/virtio-net.js';
import { VXLAN_HEADER, writeVxlan } from '../packet/vxlan.js';
import * as count from './counters.js';
import { floodList } from './floods.js';
import { flowHash } from './flow-hash.js';
import { fragmentIpv4, fragmentPayload } from './fragment.js';
import { countSize, histogramAt, OUT_BATCH } from './histograms.js';
import type { IcmpErrors } from './icmp-errors.js';
import { DONE, FLOOD, type Layer } from './layer.js';
import type { Outbox } from './outbox.js';
import { PEER_FLAG_ECN, PEER_FLAGS, PEER_GENERATION, PEER_MTU, PEER_UNDERLAY } from './peers.js';
import type { EngineSettings } from './settings.js';
import { Tap } from './tap.js';

/** Packets of one batch (hot-path.md: 32 is best; fewer is worse, more no better). */
export const PULL_PACKETS = 32;
/** More segments than this from one super-packet is a lie: 64 KiB at Linux's least segment size, 48 bytes, are 1,365. */
const MAX_SPLIT = 1400;
/** What a packet may need in the arena: itself, and the headers of its segments or fragments on top. */
const ROOM = 4 * 65536;
/** Longer than anything that can be read. */
const ANY_LENGTH = 1 << 20;
const ECN = 3;
const DSCP = 0xfc;

export class Outbound {
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #kernels: Kernels;
  readonly #layer: Layer;
  /** By underlay, then sender. */
  readonly #outboxes: readonly (Outbox | undefined)[];
  readonly #senders: number;
  readonly #icmp: IcmpErrors;
  readonly #tap: Tap;
  readonly #counters: number;
  readonly #batches: number;
  readonly #peers: number;
  readonly #arenaEnd: number;
  /** Bytes of the encapsulation before the inner packet. */
  readonly #header: number;
  /** By network. */
  readonly #vnis: readonly number[];
  readonly #dscp: number;
  #table: TableLayout;
  /** Messages that every outbox has room for, at the least: looked up anew only when it seems to end. */
  #room = 0;
  #blocked = 0;
  #deviceLost = false;
  // The packet on its way: its network, its peer's slot and outbox, the largest inner packet there, the outer TOS.
  #network = 0;
  #slot = 0;
  #outbox: Outbox;
  #mtu = 0;
  #tos = 0;
  // A frame that goes to all peers: its datagrams, which sender, the next peer in the list, and whether one has got it.
  #flooding = false;
  #floodAt = 0;
  #floodSize = 0;
  #floodCount = 0;
  #floodLast = 0;
  #floodSender = 0;
  #floodNext = 0;
  #floodBegun = false;
  /** Where the next datagram begins. */
  #at: number;

  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    kernels: Kernels,
    layer: Layer,
    outboxes: readonly (Outbox | undefined)[],
    icmp: IcmpErrors,
    view: DataView,
    settings: EngineSettings,
    tap = new Tap(memory, layout, 0),
  ) {
    this.#memory = memory;
    this.#layout = layout;
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#kernels = kernels;
    this.#layer = layer;
    this.#outboxes = outboxes;
    this.#senders = outboxes.length >> 1;
    this.#icmp = icmp;
    this.#tap = tap;
    this.#counters = layout.counters >> 3;
    this.#batches = histogramAt(layout, OUT_BATCH);
    this.#peers = memory.layout.peers >> 2;
    this.#arenaEnd = layout.arena + ARENA_BYTES;
    this.#table = memory.layout.tables[0];
    this.#header = settings.l2 ? VXLAN_HEADER : 0;
    this.#vnis = settings.l2?.networks.map(({ vni }) => vni) ?? [];
    this.#dscp = settings.inheritDscp ? DSCP : 0;
    this.#at = layout.arena;
    // Set anew before each use; some outbox, so that its type stays simple.
    this.#outbox = outboxes.find((outbox) => outbox !== undefined) as Outbox;
  }

  /** Bit set of the outboxes whose socket is full; no device is read until they have taken what waits. */
  get blocked(): number {
    return this.#blocked;
  }

  get deviceLost(): boolean {
    return this.#deviceLost;
  }

  /** The table version for this turn. */
  useTables(version: number): void {
    this.#layer.useTables(version);
    this.#table = this.#memory.layout.tables[version];
  }

  /** Sends what a full socket left over. True when nothing is left. */
  flush(): boolean {
    while (this.#send()) {
      if (!this.#flooding) {
        this.#at = this.#layout.arena;
        return true;
      }
      this.#copyToPeers();
    }
    return false;
  }

  /** Sends what is in the outboxes. True when all has left. */
  #send(): boolean {
    this.#blocked = 0;
    for (let i = 0; i < this.#outboxes.length; i++) {
      const outbox = this.#outboxes[i];
      if (outbox !== undefined && !outbox.empty && !outbox.flush()) this.#blocked |= 1 << i;
    }
    return this.#blocked === 0;
  }

  /** One batch of the device of `network`. Returns the bytes read, or 0 if it had nothing or a socket is still full. */
  run(device: Device, network: number): number {
    if (this.#blocked !== 0 && !this.flush()) return 0;
    this.#network = network;
    this.#icmp.useDevice(device, network);
    let bytes = 0;
    let packets = 0;
    while (packets < PULL_PACKETS && this.#blocked === 0 && this.#hasRoom()) {
      const at = this.#at + this.#header;
      const length = device.pull(at);
      if (length < 0) {
        if (length !== -EAGAIN) this.#deviceError(length);
        break;
      }
      packets++;
      bytes += length;
      if (this.#tap.on) this.#forwardWatched(at, length);
      else this.#forward(at, length);
    }
    if (packets > 0) {
      this.#f64[this.#counters + count.OUT_IN] += packets;
      this.#f64[this.#counters + count.OUT_IN_BYTES] += bytes;
      countSize(this.#f64, this.#batches, packets);
      this.flush();
    }
    return bytes;
  }

  #deviceError(result: number): void {
    this.#f64[this.#counters + count.OUT_DEVICE_ERROR]++;
    if (result === -EBADFD) this.#deviceLost = true;
  }

  /** Whether whatever is read next fits: into the arena, and into any outbox with a message for each datagram. */
  #hasRoom(): boolean {
    if (this.#at + ROOM > this.#arenaEnd) return false;
    if (this.#room < MAX_SPLIT) this.#room = this.#leastRoom();
    return this.#room >= MAX_SPLIT;
  }

  #leastRoom(): number {
    let least = SEND_MESSAGES;
    for (let i = 0; i < this.#outboxes.length; i++) {
      const outbox = this.#outboxes[i];
      if (outbox !== undefined) least = Math.min(least, outbox.room);
    }
    return least;
  }

  #drop(counter: number): void {
    this.#f64[this.#counters + counter]++;
  }

  /** `#forward`, and the tap sees it. A flood that has begun is one, though copies of it may be dropped yet. */
  #forwardWatched(at: number, length: number): void {
    const tap = this.#tap;
    tap.enterDevice(this.#network, at, length);
    this.#slot = -1;
    this.#floodBegun = false;
    this.#forward(at, length);
    const slot = this.#slot;
    const generation = slot < 0 ? 0 : this.#i32[this.#peers + slot * (PEER_BYTES >> 2) + PEER_GENERATION];
    tap.decideDevice(slot < 0 ? 0 : slot | (generation << 16), this.#flooding || this.#floodBegun);
  }

  /** Takes one packet all the way to its peer's message, or to one drop. */
  #forward(at: number, length: number): void {
    const layer = this.#layer;
    const to = layer.outbound(at, length, this.#network);
    if (to === DONE) return;
    const packet = at + layer.l2;
    if (to === FLOOD) {
      this.#aimAtAll(packet, at, length);
    } else {
      const peer = this.#peers + (to & 0xffff) * (PEER_BYTES >> 2);
      const sender = this.#senders === 1 ? 0 : this.#senderFor(packet, at, length);
      const outbox = this.#outboxes[this.#i32[peer + PEER_UNDERLAY] * this.#senders + sender];
      if (outbox === undefined || this.#i32[peer + PEER_GENERATION] !== to >>> 16) {
        layer.lost(at, length);
        return;
      }
      this.#slot = to & 0xffff;
      this.#outbox = outbox;
      this.#mtu = this.#i32[peer + PEER_MTU];
      // Outer ECN stays 0 unless the peer is known to handle it (RFC 6040 4.3, compatibility mode).
      const bits = this.#i32[peer + PEER_FLAGS] & PEER_FLAG_ECN ? this.#dscp | ECN : this.#dscp;
      this.#tos = bits === 0 || layer.version === 0 ? 0 : ip.tosOf(this.#view, packet) & bits;
    }
    if (this.#header > 0) writeVxlan(this.#view, at - this.#header, this.#vnis[this.#network]);

    const offload = this.#i32[this.#layout.vnetIn >> 2] & 0xffff; // flags, gso_type
    if (offload >> 8 !== vnet.GSO_NONE) {
      this.#forwardSuper(at, length, offload);
      return;
    }
    if (offload & vnet.VNET_NEEDS_CSUM && !this.#finishChecksum(at, length)) return;
    if (length > this.#mtu) {
      this.#tooBig(at, length);
      return;
    }
    layer.depart(at);
    this.#append(at - this.#header, this.#header + length, 1, this.#header + length);
  }

  /**
   * The packet goes to all peers of its network; what fits on which path is looked at copy by copy. One to a single host that
   * fits on none is too big as if we knew where that is.
   */
  #aimAtAll(packet: number, at: number, length: number): void {
    this.#flooding = true;
    this.#floodSender = this.#senders === 1 ? 0 : this.#senderFor(packet, at, length);
    this.#mtu = isGroupMac(this.#view, at) ? ANY_LENGTH : this.#extremeMtu(true);
    this.#tos = this.#layer.version === 0 ? 0 : ip.tosOf(this.#view, packet) & (this.#dscp | ECN);
  }

  /** The largest or smallest inner packet that the paths to the network's peers carry. */
  #extremeMtu(largest: boolean): number {
    const i32 = this.#i32;
    const list = floodList(this.#table, this.#memory.options.peers, this.#network);
    let mtu = largest ? 0 : ANY_LENGTH;
    for (let i = 1; i <= i32[list]; i++) {
      const one = i32[this.#peers + (i32[list + i] & 0xffff) * (PEER_BYTES >> 2) + PEER_MTU];
      mtu = largest ? Math.max(mtu, one) : Math.min(mtu, one);
    }
    return mtu;
  }

  /** What a sender is told that its packet may have: enough for whichever peer it is for, if nobody knows. */
  #toldMtu(): number {
    return this.#flooding ? this.#extremeMtu(false) : this.#mtu;
  }

  /** Which of an underlay's sockets sends a flow: its source port is what routers on the way tell flows by (RFC 7348 4.1). */
  #senderFor(packet: number, at: number, length: number): number {
    return ((flowHash(this.#view, this.#layer.version, packet, at, length) >>> 16) * this.#senders) >>> 16;
  }

  /** Datagrams of one packet, one behind the other at `at`: to the peer's message. The next packet is read behind them. */
  #append(at: number, size: number, count: number, last: number): void {
    if (this.#flooding) this.#flood(at, size, count, last);
    else this.#outbox.append(this.#slot, at, size, count, last, this.#tos);
    this.#room -= count;
    this.#at = at + (count - 1) * size + last;
  }

  #flood(at: number, size: number, count: number, last: number): void {
    this.#floodAt = at;
    this.#floodSize = count === 1 ? last : size;
    this.#floodCount = count;
    this.#floodLast = last;
    this.#floodNext = 0;
    this.#floodBegun = false;
    do this.#copyToPeers();
    while (this.#flooding && this.#send());
    this.#room = 0;
  }

  /**
   * Head-end replication (RFC 7348 4.2 by unicast): the datagrams of a flooded frame to one peer after the other, the same bytes
   * for all. It ends early when an outbox has no room, to go on when that has been sent.
   */
  #copyToPeers(): void {
    const i32 = this.#i32;
    const list = floodList(this.#table, this.#memory.options.peers, this.#network);
    const peers = i32[list];
    const datagrams = this.#floodCount;
    for (; this.#floodNext < peers; this.#floodNext++) {
      const ref = i32[list + 1 + this.#floodNext];
      const peer = this.#peers + (ref & 0xffff) * (PEER_BYTES >> 2);
      const outbox = this.#outboxes[i32[peer + PEER_UNDERLAY] * this.#senders + this.#floodSender];
      if (outbox === undefined) continue;
      if (outbox.room < datagrams) return;
      if (this.#floodBegun) this.#f64[this.#counters + count.OUT_COPIES] += datagrams;
      this.#floodBegun = true;
      if (this.#floodSize - this.#header > i32[peer + PEER_MTU]) {
        this.#f64[this.#counters + count.OUT_TOO_BIG] += datagrams;
        if (this.#tap.on) this.#watchTooBig(outbox, ref & 0xffff);
      } else {
        outbox.append(ref & 0xffff, this.#floodAt, this.#floodSize, datagrams, this.#floodLast, this.#tos);
      }
    }
    this.#flooding = false;
    if (!this.#floodBegun) this.#f64[this.#counters + count.OUT_NO_PEER] += datagrams;
  }

  /** A flooded frame's copy to the peer in `slot` is dropped: the tap sees it where it would have left. */
  #watchTooBig(outbox: Outbox, slot: number): void {
    const datagrams = this.#floodCount;
    outbox.watchRefused(slot, this.#floodAt, this.#floodSize, datagrams, this.#floodLast, this.#tos, count.OUT_TOO_BIG);
  }

  /** Completes the checksum that the host left to the device. False, and dropped, if the virtio header lies. */
  #finishChecksum(at: number, length: number): boolean {
    const { l2, version } = this.#layer;
    const header = this.#layout.vnetIn;
    const start = this.#view.getUint16(header + vnet.VNET_CSUM_START, true);
    const offset = this.#view.getUint16(header + vnet.VNET_CSUM_OFFSET, true);
    const least =
      version === 4 ? l2 + ((this.#view.getUint8(at + l2) & 15) << 2) : version === 6 ? l2 + ip.IPV6_HEADER : l2;
    if (start < least || start + offset + 2 > length) {
      this.#dropWhole(count.OUT_GSO);
      return false;
    }
    this.#kernels.finish(at, length, start, offset);
    return true;
  }

  /** Drops a packet before there are datagrams of it. */
  #dropWhole(counter: number): void {
    this.#flooding = false;
    this.#drop(counter);
  }

  /** A super-packet: TCP (or UDP where USO is on) larger than a datagram, to be split into segments. */
  #forwardSuper(frame: number, frameLength: number, offload: number): void {
    const view = this.#view;
    const { l2, version } = this.#layer;
    const at = frame + l2;
    const length = frameLength - l2;
    const prefix = this.#header + l2;
    const kind = (offload >> 8) & ~vnet.GSO_ECN;
    const size = view.getUint16(this.#layout.vnetIn + vnet.VNET_GSO_SIZE, true);
    const protocol = kind === vnet.GSO_UDP_L4 ? ip.PROTOCOL_UDP : ip.PROTOCOL_TCP;
    const l3 = this.#layer.exact && version !== 0 ? transportStart(view, at, length, protocol) : -1;
    const headers = this.#superHeaders(at, length, offload, kind, l3);
    const segments = Math.ceil((length - headers) / size);
    if (headers === 0 || size === 0 || segments > MAX_SPLIT || length + segments * (prefix + headers) > ROOM) {
      this.#dropWhole(count.OUT_GSO);
      return;
    }
    this.#f64[this.#counters + count.OUT_SUPER]++;
    const tcp = kind !== vnet.GSO_UDP_L4;
    if (l2 + headers + Math.min(size, length - headers) <= this.#mtu) {
      this.#layer.depart(at);
      this.#split(at, length, l3, headers, size, tcp);
    } else if (version === 6 || view.getUint16(at + ip.IPV4_FRAGMENT) & ip.IPV4_DF) {
      this.#icmp.tooBig(at, length, this.#toldMtu() - l2, l2);
      this.#dropWhole(count.OUT_TOO_BIG);
    } else {
      this.#splitSmaller(at, length, l3, headers, size, tcp);
    }
  }

  /** Bytes of all headers of a super-packet, or 0 if its virtio header does not agree with them. */
  #superHeaders(at: number, length: number, offload: number, kind: number, l3: number): number {
    const view = this.#view;
    const { l2, version } = this.#layer;
    const header = this.#layout.vnetIn;
    const tcp = kind !== vnet.GSO_UDP_L4;
    const kindFits = kind === (version === 4 ? vnet.GSO_TCPV4 : vnet.GSO_TCPV6) || !tcp;
    if (!kindFits || !(offload & vnet.VNET_NEEDS_CSUM) || l3 < 0) return 0;
    if (view.getUint16(header + vnet.VNET_CSUM_START, true) !== l2 + l3) return 0;
    if (view.getUint16(header + vnet.VNET_CSUM_OFFSET, true) !== (tcp ? 16 : 6)) return 0;
    if (version === 4 && view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) return 0;
    if (!tcp) return l3 + 8 < length ? l3 + 8 : 0;
    if (l3 + 20 > length) return 0;
    const headers = l3 + ((view.getUint8(at + l3 + 12) >> 4) << 2);
    return headers >= l3 + 20 && headers < length ? headers : 0;
  }

  #split(at: number, length: number, l3: number, headers: number, size: number, tcp: boolean): void {
    const prefix = this.#header + this.#layer.l2;
    const segments = this.#kernels.split(at, length, l3, headers, size, tcp ? 1 : 0, prefix);
    this.#f64[this.#counters + count.OUT_SEGMENTS] += segments - 1;
    this.#append(at - prefix, prefix + headers + size, segments, prefix + length - (segments - 1) * size);
  }

  /**
   * A super-packet whose segments do not fit, but may be fragmented. TCP is cut into smaller segments, which is as good as
   * what its sender meant; UDP datagrams keep their boundaries, so each is fragmented.
   */
  #splitSmaller(at: number, length: number, l3: number, headers: number, size: number, tcp: boolean): void {
    const mtu = this.#mtu - this.#layer.l2;
    const prefix = this.#header + this.#layer.l2;
    const smaller = mtu - headers;
    if (tcp && smaller > 0 && Math.ceil((length - headers) / smaller) <= MAX_SPLIT) {
      this.#layer.depart(at);
      this.#split(at, length, l3, headers, smaller, tcp);
      return;
    }
    // The segments go to the scratch area, and come back one by one to be fragmented.
    const scratch = this.#layout.scratch;
    const segments = ((length - headers + size - 1) / size) | 0;
    const pieces = Math.ceil((headers + size) / Math.max(fragmentPayload(l3, mtu), 1));
    const room = (segments * pieces + segments) * (prefix + headers) + length;
    const fits = fragmentPayload(l3, mtu) >= 8 && room <= SCRATCH_HALF && segments * pieces <= MAX_SPLIT;
    if (tcp || !fits || this.#flooding) {
      this.#dropWhole(count.OUT_TOO_BIG);
      return;
    }
    this.#layer.depart(at);
    this.#kernels.copy(scratch, at - prefix, prefix + length);
    this.#kernels.split(scratch + prefix, length, l3, headers, size, 0, prefix);
    this.#f64[this.#counters + count.OUT_SEGMENTS] += segments - 1;
    for (let i = 0; i < segments; i++) {
      const bytes = i === segments - 1 ? length - (segments - 1) * size : headers + size;
      this.#kernels.copy(this.#at, scratch + i * (prefix + headers + size), prefix + bytes);
      if (bytes > mtu) this.#fragment(this.#at + prefix, bytes, scratch + SCRATCH_HALF);
      else this.#append(this.#at, prefix + bytes, 1, prefix + bytes);
    }
  }

  /** A packet larger than its peer's path: answered (DF, IPv6), fragmented, or, if it is not IP, only dropped. */
  #tooBig(frame: number, frameLength: number): void {
    const { l2, version, exact } = this.#layer;
    const at = frame + l2;
    const length = frameLength - l2;
    const mtu = this.#mtu - l2;
    if (version === 0 || !exact) {
      this.#dropWhole(count.OUT_TOO_BIG);
      return;
    }
    const header = (this.#view.getUint8(at) & 15) << 2;
    const fragment = this.#view.getUint16(at + ip.IPV4_FRAGMENT);
    if (version === 6 || fragment & ip.IPV4_DF || fragmentPayload(header, mtu) < 8) {
      this.#icmp.tooBig(at, length, this.#toldMtu() - l2, l2);
      this.#dropWhole(count.OUT_TOO_BIG);
      return;
    }
    if (((fragment & ip.IPV4_OFFSET_MASK) << 3) + length - header > MAX_PACKET) {
      this.#dropWhole(count.OUT_TOTAL_LENGTH); // a fragment of more than there can be
      return;
    }
    if (Math.ceil((length - header) / fragmentPayload(header, mtu)) > MAX_SPLIT) {
      this.#dropWhole(count.OUT_TOO_BIG);
      return;
    }
    this.#layer.depart(at);
    this.#fragment(at, length, this.#layout.scratch);
  }

  #fragment(at: number, length: number, scratch: number): void {
    const { l2 } = this.#layer;
    const prefix = this.#header + l2;
    const mtu = this.#mtu - l2;
    const header = (this.#view.getUint8(at) & 15) << 2;
    const payload = fragmentPayload(header, mtu);
    const pieces = fragmentIpv4(this.#memory, this.#view, at, length, mtu, scratch, prefix);
    this.#f64[this.#counters + count.OUT_FRAGMENTED] += pieces - 1;
    this.#append(at - prefix, prefix + header + payload, pieces, prefix + length - (pieces - 1) * payload);
  }
}

/**
 * Where the header of transport `protocol` starts: behind IPv4 options or IPv6 extension headers; -1 if it is not that
 * protocol or lies beyond the packet.
 */
function transportStart(view: DataView, at: number, length: number, protocol: number): number {
  if (view.getUint8(at) >> 4 === 4) {
    return view.getUint8(at + ip.IPV4_PROTOCOL) === protocol ? (view.getUint8(at) & 15) << 2 : -1;
  }
  let next = view.getUint8(at + ip.IPV6_NEXT_HEADER);
  let offset = ip.IPV6_HEADER;
  while (next === ip.NEXT_HOP_BY_HOP || next === ip.NEXT_DESTINATION) {
    if (offset + 8 > length) return -1;
    next = view.getUint8(at + offset);
    offset += (view.getUint8(at + offset + 1) + 1) << 3;
  }
  return next === protocol && offset <= length ? offset : -1;
}
