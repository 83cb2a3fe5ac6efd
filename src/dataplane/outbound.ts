/**
 * Outbound, host → network, in the order a packet takes:
 *
 *   pull → check → look up peer → TTL → fits the path? → finish checksum or split → join the peer's message → push
 *
 * A packet is read into the arena right behind the one before it, which is where it leaves from: a plain packet is never
 * copied, a super-packet is split where it lies. A packet that goes no further leaves its place to the next one.
 *
 * On this wire the datagram is the inner packet, nothing more (flannel's udp backend), so encapsulation moves nothing:
 * HEADER and TRAILER are where another wire would put its bytes around each datagram.
 */
import { type Device, EAGAIN, EBADFD } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import {
  ARENA_BYTES,
  type EngineMemory,
  MAX_PACKET,
  PEER_BYTES,
  SCRATCH_HALF,
  type WorkerLayout,
} from '../io/memory.js';
import * as ip from '../packet/ip.js';
import * as vnet from '../packet/virtio-net.js';
import * as count from './counters.js';
import { FRAGMENT_ROOM, fragmentIpv4, fragmentPayload } from './fragment.js';
import type { IcmpErrors } from './icmp-errors.js';
import type { Outbox } from './outbox.js';
import { PEER_FLAG_ECN, PEER_FLAGS, PEER_GENERATION, PEER_MTU, PEER_UNDERLAY } from './peers.js';
import { lookup4, lookup6 } from './routes.js';

/** Bytes of encapsulation before and behind each datagram. */
export const HEADER = 0;
export const TRAILER = 0;

/** Packets of one batch (hot-path.md: 32 is best; fewer is worse, more no better). */
export const PULL_PACKETS = 32;
/** More segments than this from one super-packet is a lie: set-up limits them to a message's worth. */
const MAX_SPLIT = 512;
/** What a packet may need in the arena: itself, and headers or fragments on top. */
const ROOM = MAX_PACKET + 1 + FRAGMENT_ROOM;

export class Outbound {
  readonly #memory: EngineMemory;
  readonly #layout: WorkerLayout;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #kernels: Kernels;
  readonly #device: Device;
  readonly #outboxes: readonly (Outbox | undefined)[];
  readonly #icmp: IcmpErrors;
  readonly #counters: number;
  readonly #peers: number;
  readonly #arenaEnd: number;
  #roots4 = 0;
  #roots6 = 0;
  #nodes = 0;
  #blocked = false;
  #deviceLost = false;
  /** Where the next packet is read to. */
  #at: number;

  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    kernels: Kernels,
    device: Device,
    outboxes: readonly (Outbox | undefined)[],
    icmp: IcmpErrors,
    view: DataView,
  ) {
    this.#memory = memory;
    this.#layout = layout;
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#kernels = kernels;
    this.#device = device;
    this.#outboxes = outboxes;
    this.#icmp = icmp;
    this.#counters = layout.counters >> 3;
    this.#peers = memory.layout.peers >> 2;
    this.#arenaEnd = layout.arena + ARENA_BYTES;
    this.#at = layout.arena;
  }

  /** True while a socket is full; the device is not read until it has taken what waits. */
  get blocked(): boolean {
    return this.#blocked;
  }

  get deviceLost(): boolean {
    return this.#deviceLost;
  }

  /** The table version for this turn. */
  useTables(version: number): void {
    const table = this.#memory.layout.tables[version];
    this.#roots4 = table.roots4 >> 2;
    this.#roots6 = table.roots6 >> 2;
    this.#nodes = table.nodes >> 2;
  }

  /** Sends what a full socket left over. True when nothing is left. */
  flush(): boolean {
    let all = true;
    for (let i = 0; i < this.#outboxes.length; i++) {
      const outbox = this.#outboxes[i];
      if (outbox !== undefined && !outbox.empty && !outbox.flush()) all = false;
    }
    this.#blocked = !all;
    if (all) this.#at = this.#layout.arena;
    return all;
  }

  /** One batch. Returns the bytes read, or 0 if the device had nothing or the socket is still full. */
  run(): number {
    if (this.#blocked && !this.flush()) return 0;
    let bytes = 0;
    let packets = 0;
    while (packets < PULL_PACKETS && this.#hasRoom()) {
      const at = this.#at + HEADER;
      const length = this.#device.pull(at);
      if (length < 0) {
        if (length !== -EAGAIN) this.#deviceError(length);
        break;
      }
      packets++;
      bytes += length;
      this.#forward(at, length);
    }
    if (packets > 0) {
      this.#f64[this.#counters + count.OUT_IN] += packets;
      this.#f64[this.#counters + count.OUT_IN_BYTES] += bytes;
      this.flush();
    }
    return bytes;
  }

  #deviceError(result: number): void {
    this.#f64[this.#counters + count.OUT_DEVICE_ERROR]++;
    if (result === -EBADFD) this.#deviceLost = true;
  }

  #hasRoom(): boolean {
    if (this.#at + ROOM > this.#arenaEnd) return false;
    for (let i = 0; i < this.#outboxes.length; i++) {
      const outbox = this.#outboxes[i];
      if (outbox !== undefined && outbox.room < MAX_SPLIT) return false;
    }
    return true;
  }

  #drop(counter: number): void {
    this.#f64[this.#counters + counter]++;
  }

  /** Takes one packet all the way to its peer's message, or to one drop. */
  #forward(at: number, length: number): void {
    const view = this.#view;
    const bad = ip.checkIp(view, at, length);
    if (bad !== ip.GOOD) {
      this.#drop(count.OUT_SHORT + bad - ip.BAD_SHORT);
      return;
    }
    const v4 = view.getUint8(at) >> 4 === 4;
    if (v4) this.#note4(at);

    const ref = v4
      ? lookup4(this.#i32, this.#roots4, this.#nodes, view.getInt32(at + ip.IPV4_DESTINATION))
      : lookup6(this.#i32, this.#memory.u8, this.#roots6, this.#nodes, at + ip.IPV6_DESTINATION);
    const slot = ref & 0xffff;
    const peer = this.#peers + slot * (PEER_BYTES >> 2);
    const outbox = this.#outboxes[this.#i32[peer + PEER_UNDERLAY]];
    if (ref === 0 || this.#i32[peer + PEER_GENERATION] !== ref >>> 16 || outbox === undefined) {
      this.#drop(count.OUT_NO_ROUTE);
      this.#icmp.noRoute(at, length);
      return;
    }

    if (view.getUint8(at + (v4 ? ip.IPV4_TTL : ip.IPV6_HOP_LIMIT)) <= 1) {
      this.#drop(count.OUT_TTL);
      this.#icmp.timeExceeded(at, length);
      return;
    }

    // Outer ECN stays 0 unless the peer is known to handle it (RFC 6040 4.3, compatibility mode).
    const tos = this.#i32[peer + PEER_FLAGS] & PEER_FLAG_ECN ? ip.ecnOf(view, at) : 0;
    const mtu = this.#i32[peer + PEER_MTU];
    const offload = this.#i32[this.#layout.vnetIn >> 2] & 0xffff; // flags, gso_type
    if (offload >> 8 !== vnet.GSO_NONE) {
      this.#forwardSuper(at, length, v4, offload, slot, outbox, mtu, tos);
      return;
    }
    if (offload & vnet.VNET_NEEDS_CSUM && !this.#finishChecksum(at, length, v4)) return;
    if (length > mtu) {
      this.#tooBig(at, length, v4, slot, outbox, mtu, tos);
      return;
    }
    this.#decrement(at, v4);
    outbox.append(slot, at - HEADER, HEADER + length + TRAILER, 1, HEADER + length + TRAILER, tos);
    this.#at = at + length + TRAILER;
  }

  /** Counts what is carried but worth knowing. */
  #note4(at: number): void {
    if (this.#view.getUint8(at) !== 0x45) this.#f64[this.#counters + count.OUT_OPTIONS]++;
    if (this.#view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) {
      this.#f64[this.#counters + count.OUT_FRAGMENTS]++;
    }
  }

  #decrement(at: number, v4: boolean): void {
    if (v4) ip.decrementTtl(this.#view, at);
    else this.#view.setUint8(at + ip.IPV6_HOP_LIMIT, this.#view.getUint8(at + ip.IPV6_HOP_LIMIT) - 1);
  }

  /** Completes the checksum that the host left to the device. False, and dropped, if the virtio header lies. */
  #finishChecksum(at: number, length: number, v4: boolean): boolean {
    const header = this.#layout.vnetIn;
    const start = this.#view.getUint16(header + vnet.VNET_CSUM_START, true);
    const offset = this.#view.getUint16(header + vnet.VNET_CSUM_OFFSET, true);
    const l3 = v4 ? (this.#view.getUint8(at) & 15) << 2 : ip.IPV6_HEADER;
    if (start < l3 || start + offset + 2 > length) {
      this.#drop(count.OUT_GSO);
      return false;
    }
    this.#kernels.finish(at, length, start, offset);
    return true;
  }

  /** A super-packet: TCP (or UDP where USO is on) larger than a datagram, to be split into segments. */
  #forwardSuper(
    at: number,
    length: number,
    v4: boolean,
    offload: number,
    slot: number,
    outbox: Outbox,
    mtu: number,
    tos: number,
  ): void {
    const view = this.#view;
    const header = this.#layout.vnetIn;
    const kind = (offload >> 8) & ~vnet.GSO_ECN;
    const size = view.getUint16(header + vnet.VNET_GSO_SIZE, true);
    const l3 = transportStart(view, at, length, kind === vnet.GSO_UDP_L4 ? ip.PROTOCOL_UDP : ip.PROTOCOL_TCP);
    const headers = this.#superHeaders(at, length, v4, offload, kind, l3);
    const segments = Math.ceil((length - headers) / size);
    if (
      headers === 0 ||
      size === 0 ||
      segments > MAX_SPLIT ||
      length + segments * (headers + HEADER + TRAILER) > ROOM
    ) {
      this.#drop(count.OUT_GSO);
      return;
    }
    this.#f64[this.#counters + count.OUT_SUPER]++;
    const tcp = kind !== vnet.GSO_UDP_L4;
    if (headers + Math.min(size, length - headers) <= mtu) {
      this.#decrement(at, v4);
      this.#split(at, length, l3, headers, size, tcp, slot, outbox, tos);
    } else if (!v4 || view.getUint16(at + ip.IPV4_FRAGMENT) & ip.IPV4_DF) {
      this.#drop(count.OUT_TOO_BIG);
      this.#icmp.tooBig(at, length, mtu);
    } else {
      this.#splitSmaller(at, length, l3, headers, size, tcp, slot, outbox, mtu, tos);
    }
  }

  /** Bytes of all headers of a super-packet, or 0 if its virtio header does not agree with them. */
  #superHeaders(at: number, length: number, v4: boolean, offload: number, kind: number, l3: number): number {
    const view = this.#view;
    const header = this.#layout.vnetIn;
    const tcp = kind !== vnet.GSO_UDP_L4;
    const kindFits = kind === (v4 ? vnet.GSO_TCPV4 : vnet.GSO_TCPV6) || !tcp;
    if (!kindFits || !(offload & vnet.VNET_NEEDS_CSUM) || l3 < 0) return 0;
    if (view.getUint16(header + vnet.VNET_CSUM_START, true) !== l3) return 0;
    if (view.getUint16(header + vnet.VNET_CSUM_OFFSET, true) !== (tcp ? 16 : 6)) return 0;
    if (v4) {
      if (view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) return 0;
    }
    if (!tcp) return l3 + 8 < length ? l3 + 8 : 0;
    if (l3 + 20 > length) return 0;
    const headers = l3 + ((view.getUint8(at + l3 + 12) >> 4) << 2);
    return headers >= l3 + 20 && headers < length ? headers : 0;
  }

  #split(
    at: number,
    length: number,
    l3: number,
    headers: number,
    size: number,
    tcp: boolean,
    slot: number,
    outbox: Outbox,
    tos: number,
  ): void {
    const segments = this.#kernels.split(at, length, l3, headers, size, tcp ? 1 : 0, HEADER + TRAILER);
    const datagram = HEADER + headers + size + TRAILER;
    const last = HEADER + length - (segments - 1) * size + TRAILER;
    this.#f64[this.#counters + count.OUT_SEGMENTS] += segments - 1;
    outbox.append(slot, at - HEADER, datagram, segments, last, tos);
    this.#at = at - HEADER + (segments - 1) * datagram + last;
  }

  /**
   * A super-packet whose segments do not fit, but may be fragmented. TCP is cut into smaller segments, which is as good as
   * what its sender meant; UDP datagrams keep their boundaries, so each is fragmented.
   */
  #splitSmaller(
    at: number,
    length: number,
    l3: number,
    headers: number,
    size: number,
    tcp: boolean,
    slot: number,
    outbox: Outbox,
    mtu: number,
    tos: number,
  ): void {
    const smaller = mtu - headers;
    if (tcp && smaller > 0 && Math.ceil((length - headers) / smaller) <= MAX_SPLIT) {
      this.#decrement(at, true);
      this.#split(at, length, l3, headers, smaller, tcp, slot, outbox, tos);
      return;
    }
    // The segments go to the scratch area, and come back one by one to be fragmented.
    const scratch = this.#layout.scratch;
    const segments = ((length - headers + size - 1) / size) | 0;
    const pieces = Math.ceil((headers + size) / Math.max(fragmentPayload(l3, mtu), 1));
    const room = (segments * pieces + segments) * headers + length;
    if (tcp || fragmentPayload(l3, mtu) < 8 || room > FRAGMENT_ROOM + MAX_PACKET || segments * pieces > MAX_SPLIT) {
      this.#drop(count.OUT_TOO_BIG);
      return;
    }
    this.#decrement(at, true);
    this.#kernels.copy(scratch, at, length);
    this.#kernels.split(scratch, length, l3, headers, size, 0, 0);
    this.#f64[this.#counters + count.OUT_SEGMENTS] += segments - 1;
    for (let i = 0; i < segments; i++) {
      const bytes = i === segments - 1 ? length - (segments - 1) * size : headers + size;
      this.#memory.u8.copyWithin(
        this.#at + HEADER,
        scratch + i * (headers + size),
        scratch + i * (headers + size) + bytes,
      );
      if (bytes > mtu) {
        this.#fragment(this.#at + HEADER, bytes, slot, outbox, mtu, tos, scratch + SCRATCH_HALF);
      } else {
        outbox.append(slot, this.#at, bytes, 1, bytes, tos);
        this.#at += bytes;
      }
    }
  }

  /** A packet larger than its peer's path: answered (DF, IPv6) or fragmented. */
  #tooBig(at: number, length: number, v4: boolean, slot: number, outbox: Outbox, mtu: number, tos: number): void {
    const header = (this.#view.getUint8(at) & 15) << 2;
    if (!v4 || this.#view.getUint16(at + ip.IPV4_FRAGMENT) & ip.IPV4_DF || fragmentPayload(header, mtu) < 8) {
      this.#drop(count.OUT_TOO_BIG);
      this.#icmp.tooBig(at, length, mtu);
      return;
    }
    if (Math.ceil((length - header) / fragmentPayload(header, mtu)) > MAX_SPLIT) {
      this.#drop(count.OUT_TOO_BIG);
      return;
    }
    this.#decrement(at, true);
    this.#fragment(at, length, slot, outbox, mtu, tos, this.#layout.scratch);
  }

  #fragment(at: number, length: number, slot: number, outbox: Outbox, mtu: number, tos: number, scratch: number): void {
    const header = (this.#view.getUint8(at) & 15) << 2;
    const pieces = fragmentIpv4(this.#memory, this.#view, at, length, mtu, scratch);
    const datagram = header + fragmentPayload(header, mtu);
    const last = length - (pieces - 1) * (datagram - header);
    this.#f64[this.#counters + count.OUT_FRAGMENTED] += pieces - 1;
    outbox.append(slot, at - HEADER, datagram, pieces, last, tos);
    this.#at = at - HEADER + (pieces - 1) * datagram + last;
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
