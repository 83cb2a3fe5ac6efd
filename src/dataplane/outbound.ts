/**
 * Outbound, host → network, in the order a packet takes:
 *
 *   pull → check → look up peer → TTL → fits the path? → finish checksum or split → join the peer's message → push
 *
 * A packet is read into the arena right behind the one before it, which is where it leaves from: a plain packet is never
 * copied, a super-packet is split where it lies. A packet that goes no further leaves its place to the next one.
 *
 * On this wire the datagram is the inner packet, nothing more (flannel's udp backend), so encapsulation moves nothing.
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
import { fragmentIpv4, fragmentPayload } from './fragment.js';
import type { IcmpErrors } from './icmp-errors.js';
import type { Outbox } from './outbox.js';
import { PEER_FLAG_ECN, PEER_FLAGS, PEER_GENERATION, PEER_MTU, PEER_UNDERLAY } from './peers.js';
import { lookup4, lookup6 } from './routes.js';

/** Packets of one batch (hot-path.md: 32 is best; fewer is worse, more no better). */
export const PULL_PACKETS = 32;
/** More segments than this from one super-packet is a lie: 64 KiB at Linux's least segment size, 48 bytes, are 1,365. */
const MAX_SPLIT = 1400;
/** What a packet may need in the arena: itself, and the headers of its segments or fragments on top. */
const ROOM = 4 * 65536;

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
  #blocked = 0;
  #deviceLost = false;
  // The peer of the packet on its way: its slot, outbox, largest inner packet, and the outer TOS.
  #slot = 0;
  #outbox: Outbox;
  #mtu = 0;
  #tos = 0;
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
    // Set anew before each use; some outbox, so that its type stays simple.
    this.#outbox = outboxes[0] ?? (outboxes[1] as Outbox);
  }

  /** Bit set of the underlays whose socket is full; the device is not read until they have taken what waits. */
  get blocked(): number {
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
    this.#blocked = 0;
    for (let i = 0; i < this.#outboxes.length; i++) {
      const outbox = this.#outboxes[i];
      if (outbox !== undefined && !outbox.empty && !outbox.flush()) this.#blocked |= 1 << i;
    }
    if (this.#blocked !== 0) return false;
    this.#at = this.#layout.arena;
    return true;
  }

  /** One batch. Returns the bytes read, or 0 if the device had nothing or the socket is still full. */
  run(): number {
    if (this.#blocked !== 0 && !this.flush()) return 0;
    let bytes = 0;
    let packets = 0;
    while (packets < PULL_PACKETS && this.#hasRoom()) {
      const at = this.#at;
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
    const peer = this.#peers + (ref & 0xffff) * (PEER_BYTES >> 2);
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

    this.#slot = ref & 0xffff;
    this.#outbox = outbox;
    this.#mtu = this.#i32[peer + PEER_MTU];
    // Outer ECN stays 0 unless the peer is known to handle it (RFC 6040 4.3, compatibility mode).
    this.#tos = this.#i32[peer + PEER_FLAGS] & PEER_FLAG_ECN ? ip.ecnOf(view, at) : 0;
    const offload = this.#i32[this.#layout.vnetIn >> 2] & 0xffff; // flags, gso_type
    if (offload >> 8 !== vnet.GSO_NONE) {
      this.#forwardSuper(at, length, v4, offload);
      return;
    }
    if (offload & vnet.VNET_NEEDS_CSUM && !this.#finishChecksum(at, length, v4)) return;
    if (length > this.#mtu) {
      this.#tooBig(at, length, v4);
      return;
    }
    this.#decrement(at, v4);
    this.#append(at, length, 1, length);
  }

  /** Datagrams of one packet, one behind the other at `at`: to the peer's message. The next packet is read behind them. */
  #append(at: number, size: number, count: number, last: number): void {
    this.#outbox.append(this.#slot, at, size, count, last, this.#tos);
    this.#at = at + (count - 1) * size + last;
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
  #forwardSuper(at: number, length: number, v4: boolean, offload: number): void {
    const view = this.#view;
    const header = this.#layout.vnetIn;
    const kind = (offload >> 8) & ~vnet.GSO_ECN;
    const size = view.getUint16(header + vnet.VNET_GSO_SIZE, true);
    const l3 = transportStart(view, at, length, kind === vnet.GSO_UDP_L4 ? ip.PROTOCOL_UDP : ip.PROTOCOL_TCP);
    const headers = this.#superHeaders(at, length, v4, offload, kind, l3);
    const segments = Math.ceil((length - headers) / size);
    if (headers === 0 || size === 0 || segments > MAX_SPLIT || length + segments * headers > ROOM) {
      this.#drop(count.OUT_GSO);
      return;
    }
    this.#f64[this.#counters + count.OUT_SUPER]++;
    const tcp = kind !== vnet.GSO_UDP_L4;
    if (headers + Math.min(size, length - headers) <= this.#mtu) {
      this.#decrement(at, v4);
      this.#split(at, length, l3, headers, size, tcp);
    } else if (!v4 || view.getUint16(at + ip.IPV4_FRAGMENT) & ip.IPV4_DF) {
      this.#drop(count.OUT_TOO_BIG);
      this.#icmp.tooBig(at, length, this.#mtu);
    } else {
      this.#splitSmaller(at, length, l3, headers, size, tcp);
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
    if (v4 && view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) return 0;
    if (!tcp) return l3 + 8 < length ? l3 + 8 : 0;
    if (l3 + 20 > length) return 0;
    const headers = l3 + ((view.getUint8(at + l3 + 12) >> 4) << 2);
    return headers >= l3 + 20 && headers < length ? headers : 0;
  }

  #split(at: number, length: number, l3: number, headers: number, size: number, tcp: boolean): void {
    const segments = this.#kernels.split(at, length, l3, headers, size, tcp ? 1 : 0, 0);
    this.#f64[this.#counters + count.OUT_SEGMENTS] += segments - 1;
    this.#append(at, headers + size, segments, length - (segments - 1) * size);
  }

  /**
   * A super-packet whose segments do not fit, but may be fragmented. TCP is cut into smaller segments, which is as good as
   * what its sender meant; UDP datagrams keep their boundaries, so each is fragmented.
   */
  #splitSmaller(at: number, length: number, l3: number, headers: number, size: number, tcp: boolean): void {
    const mtu = this.#mtu;
    const smaller = mtu - headers;
    if (tcp && smaller > 0 && Math.ceil((length - headers) / smaller) <= MAX_SPLIT) {
      this.#decrement(at, true);
      this.#split(at, length, l3, headers, smaller, tcp);
      return;
    }
    // The segments go to the scratch area, and come back one by one to be fragmented.
    const scratch = this.#layout.scratch;
    const segments = ((length - headers + size - 1) / size) | 0;
    const pieces = Math.ceil((headers + size) / Math.max(fragmentPayload(l3, mtu), 1));
    const room = (segments * pieces + segments) * headers + length;
    if (tcp || fragmentPayload(l3, mtu) < 8 || room > SCRATCH_HALF || segments * pieces > MAX_SPLIT) {
      this.#drop(count.OUT_TOO_BIG);
      return;
    }
    this.#decrement(at, true);
    this.#kernels.copy(scratch, at, length);
    this.#kernels.split(scratch, length, l3, headers, size, 0, 0);
    this.#f64[this.#counters + count.OUT_SEGMENTS] += segments - 1;
    for (let i = 0; i < segments; i++) {
      const bytes = i === segments - 1 ? length - (segments - 1) * size : headers + size;
      this.#kernels.copy(this.#at, scratch + i * (headers + size), bytes);
      if (bytes > mtu) this.#fragment(this.#at, bytes, scratch + SCRATCH_HALF);
      else this.#append(this.#at, bytes, 1, bytes);
    }
  }

  /** A packet larger than its peer's path: answered (DF, IPv6) or fragmented. */
  #tooBig(at: number, length: number, v4: boolean): void {
    const mtu = this.#mtu;
    const header = (this.#view.getUint8(at) & 15) << 2;
    const fragment = this.#view.getUint16(at + ip.IPV4_FRAGMENT);
    if (!v4 || fragment & ip.IPV4_DF || fragmentPayload(header, mtu) < 8) {
      this.#drop(count.OUT_TOO_BIG);
      this.#icmp.tooBig(at, length, mtu);
      return;
    }
    if (((fragment & ip.IPV4_OFFSET_MASK) << 3) + length - header > MAX_PACKET) {
      this.#drop(count.OUT_TOTAL_LENGTH); // a fragment of more than there can be
      return;
    }
    if (Math.ceil((length - header) / fragmentPayload(header, mtu)) > MAX_SPLIT) {
      this.#drop(count.OUT_TOO_BIG);
      return;
    }
    this.#decrement(at, true);
    this.#fragment(at, length, this.#layout.scratch);
  }

  #fragment(at: number, length: number, scratch: number): void {
    const header = (this.#view.getUint8(at) & 15) << 2;
    const payload = fragmentPayload(header, this.#mtu);
    const pieces = fragmentIpv4(this.#memory, this.#view, at, length, this.#mtu, scratch);
    this.#f64[this.#counters + count.OUT_FRAGMENTED] += pieces - 1;
    this.#append(at, header + payload, pieces, length - (pieces - 1) * payload);
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
