/**
 * ICMP errors about packets from the host, written back to the device: no route, time exceeded, too big.
 *
 * In layer 3 the source is the device's own address (RFC 1812 4.3.2.4), so the host must accept its own address from the
 * device (`accept_local`, which set-up turns on). A switch has no address: there "too big" comes from the frame's destination,
 * MAC and IP, as from the kernel's VXLAN. Errors are never made about errors, non-first fragments, multicast or broadcast
 * destinations, or sources that are not one host (RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4 e), and a token bucket
 * bounds their rate (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
 */
import type { Device } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import { type EngineMemory, VNET_HEADER, type WorkerLayout } from '../io/memory.js';
import * as icmp from '../packet/icmp.js';
import * as ip from '../packet/ip.js';
import { ICMP_FORBIDDEN, ICMP_LIMITED, ICMP_MADE, ICMP_REFUSED, ICMP_SENT } from './counters.js';
import type { EngineSettings } from './settings.js';
import { Tap } from './tap.js';
import { SENT } from './verdicts.js';

/** Tokens a second, and how many may gather: a traceroute passes, a scan does not become a flood. */
export const ICMP_RATE = 200;
export const ICMP_BURST = 100;

/** Internetwork control (RFC 1812 4.3.2.5). */
const TOS = 0xc0;
const TTL = 64;

export class IcmpErrors {
  readonly #u8: Uint8Array;
  readonly #view: DataView;
  readonly #f64: Float64Array;
  readonly #counters: number;
  readonly #scratch: number;
  readonly #kernels: Kernels;
  #device: Device;
  #network = 0;
  readonly #tap: Tap;
  readonly #address4: Uint8Array | undefined;
  readonly #address6: Uint8Array | undefined;
  /** In thousandths of a token, so that milliseconds add up. */
  #tokens = ICMP_BURST * 1000;
  /** "Too big" has tokens of its own: without it TCP stalls, so a scan that uses up the others must not stop it. */
  #tooBigTokens = ICMP_BURST * 1000;
  #refilled = 0;

  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    kernels: Kernels,
    device: Device,
    view: DataView,
    settings: EngineSettings,
    tap = new Tap(memory, layout, 0),
  ) {
    this.#u8 = memory.u8;
    this.#view = view;
    this.#f64 = memory.f64;
    this.#counters = layout.counters >> 3;
    this.#scratch = layout.scratch;
    this.#kernels = kernels;
    this.#device = device;
    this.#tap = tap;
    this.#address4 = settings.address4;
    this.#address6 = settings.address6;
  }

  /** Where errors about what comes next go: the device of `network`, that it came from. */
  useDevice(device: Device, network: number): void {
    this.#device = device;
    this.#network = network;
  }

  /** Refills the bucket. `now` in milliseconds (wraps). */
  tick(now: number): void {
    const passed = Math.min((now - this.#refilled) | 0, 10_000);
    this.#refilled = now;
    if (passed <= 0) return;
    this.#tokens = Math.min(this.#tokens + passed * ICMP_RATE, ICMP_BURST * 1000);
    this.#tooBigTokens = Math.min(this.#tooBigTokens + passed * ICMP_RATE, ICMP_BURST * 1000);
  }

  /** The packet at `at` has no route. */
  noRoute(at: number, length: number): void {
    if (this.#isV4(at)) this.#send4(at, length, icmp.ICMP_UNREACHABLE, icmp.ICMP_NET_UNREACHABLE, 0);
    else this.#send6(at, length, icmp.ICMPV6_UNREACHABLE, icmp.ICMPV6_NO_ROUTE, 0);
  }

  /** Its TTL or hop limit is used up. */
  timeExceeded(at: number, length: number): void {
    if (this.#isV4(at)) this.#send4(at, length, icmp.ICMP_TIME_EXCEEDED, 0, 0);
    else this.#send6(at, length, icmp.ICMPV6_TIME_EXCEEDED, 0, 0);
  }

  /**
   * It does not fit; `mtu` bytes would (RFC 1191, RFC 8201). `l2`: bytes of Ethernet header before it, which the error gets too,
   * turned round.
   */
  tooBig(at: number, length: number, mtu: number, l2: number): void {
    if (this.#isV4(at)) this.#send4(at, length, icmp.ICMP_UNREACHABLE, icmp.ICMP_FRAGMENTATION_NEEDED, mtu, l2);
    else this.#send6(at, length, icmp.ICMPV6_TOO_BIG, 0, mtu, l2);
  }

  #isV4(at: number): boolean {
    return this.#u8[at] >> 4 === 4;
  }

  #mayAnswer4(at: number, length: number): boolean {
    const view = this.#view;
    const header = (view.getUint8(at) & 15) << 2;
    if (view.getUint16(at + ip.IPV4_FRAGMENT) & ip.IPV4_OFFSET_MASK) return false;
    if (!isHost4(view.getUint8(at + ip.IPV4_SOURCE), view.getInt32(at + ip.IPV4_SOURCE))) return false;
    const destination = view.getUint8(at + ip.IPV4_DESTINATION);
    if (destination >= 224) return false; // multicast, reserved, broadcast
    if (view.getUint8(at + ip.IPV4_PROTOCOL) !== ip.PROTOCOL_ICMP) return true;
    return length > header && !icmp.isIcmpError(view.getUint8(at + header));
  }

  #mayAnswer6(at: number, length: number, tooBig: boolean): boolean {
    const view = this.#view;
    const source = at + ip.IPV6_SOURCE;
    if (view.getUint8(source) === 0xff) return false;
    if (isZero(this.#u8, source, 15) && view.getUint8(source + 15) <= 1) return false; // unspecified, loopback
    // Path MTU discovery works for multicast too (RFC 4443 2.4 e.3).
    if (!tooBig && view.getUint8(at + ip.IPV6_DESTINATION) === 0xff) return false;
    return !this.#isError6(at, length);
  }

  /** Whether it is an ICMPv6 error or something that may be one: extension headers are followed as far as they go. */
  #isError6(at: number, length: number): boolean {
    const view = this.#view;
    let next = view.getUint8(at + ip.IPV6_NEXT_HEADER);
    let offset = ip.IPV6_HEADER;
    while (offset + 8 <= length) {
      if (next === ip.PROTOCOL_ICMPV6) return icmp.isIcmpv6Error(view.getUint8(at + offset));
      if (next === ip.NEXT_FRAGMENT) {
        if (view.getUint16(at + offset + 2) & 0xfff8) return true; // not the first: no telling what it belongs to
        next = view.getUint8(at + offset);
        offset += 8;
      } else if (next === ip.NEXT_HOP_BY_HOP || next === ip.NEXT_ROUTING || next === ip.NEXT_DESTINATION) {
        next = view.getUint8(at + offset);
        offset += (view.getUint8(at + offset + 1) + 1) << 3;
      } else {
        return false;
      }
    }
    return next === ip.PROTOCOL_ICMPV6;
  }

  /** Whether there is anybody for an error to come from: us, or in layer 2 the one host that the frame was for. */
  #hasSource(at: number, l2: number, own: Uint8Array | undefined): boolean {
    if (l2 === 0) return own !== undefined;
    const mac = at - l2;
    return (this.#u8[mac] & 1) === 0 && !isZero(this.#u8, mac, 6);
  }

  /** True if the rules and the rate allow an error; counts why not. */
  #allowed(may: boolean, tooBig: boolean): boolean {
    if (!may) {
      this.#f64[this.#counters + ICMP_FORBIDDEN]++;
      return false;
    }
    if ((tooBig ? this.#tooBigTokens : this.#tokens) < 1000) {
      this.#f64[this.#counters + ICMP_LIMITED]++;
      return false;
    }
    if (tooBig) this.#tooBigTokens -= 1000;
    else this.#tokens -= 1000;
    this.#f64[this.#counters + ICMP_MADE]++;
    return true;
  }

  #send4(at: number, length: number, type: number, code: number, mtu: number, l2 = 0): void {
    const may = this.#hasSource(at, l2, this.#address4) && this.#mayAnswer4(at, length);
    if (!this.#allowed(may, mtu !== 0)) return;
    const view = this.#view;
    const to = this.#scratch + l2;
    const body = to + ip.IPV4_HEADER;
    const quoted = Math.min(length, icmp.ICMP_MAX - ip.IPV4_HEADER - icmp.ICMP_HEADER);
    const total = ip.IPV4_HEADER + icmp.ICMP_HEADER + quoted;
    view.setUint16(to, 0x4500 | TOS);
    view.setUint16(to + ip.IPV4_TOTAL_LENGTH, total);
    view.setUint32(to + ip.IPV4_ID, 0);
    view.setUint8(to + ip.IPV4_TTL, TTL);
    view.setUint8(to + ip.IPV4_PROTOCOL, ip.PROTOCOL_ICMP);
    if (this.#address4 && l2 === 0) this.#u8.set(this.#address4, to + ip.IPV4_SOURCE);
    else this.#u8.copyWithin(to + ip.IPV4_SOURCE, at + ip.IPV4_DESTINATION, at + ip.IPV4_DESTINATION + 4);
    this.#u8.copyWithin(to + ip.IPV4_DESTINATION, at + ip.IPV4_SOURCE, at + ip.IPV4_SOURCE + 4);
    ip.writeHeaderChecksum(view, to, ip.IPV4_HEADER);
    view.setUint16(body, (type << 8) | code);
    view.setUint16(body + 2, 0);
    view.setUint32(body + 4, mtu);
    this.#u8.copyWithin(body + icmp.ICMP_HEADER, at, at + quoted);
    view.setUint16(body + 2, ~this.#kernels.sum(body, icmp.ICMP_HEADER + quoted, 0), true);
    this.#push(at, to, total, l2);
  }

  #send6(at: number, length: number, type: number, code: number, mtu: number, l2 = 0): void {
    const may =
      this.#hasSource(at, l2, this.#address6) && this.#mayAnswer6(at, length, type === icmp.ICMPV6_TOO_BIG && l2 === 0);
    if (!this.#allowed(may, mtu !== 0)) return;
    const view = this.#view;
    const to = this.#scratch + l2;
    const body = to + ip.IPV6_HEADER;
    const quoted = Math.min(length, icmp.ICMPV6_MAX - ip.IPV6_HEADER - icmp.ICMP_HEADER);
    const payload = icmp.ICMP_HEADER + quoted;
    view.setUint32(to, 0x60000000);
    view.setUint16(to + ip.IPV6_PAYLOAD_LENGTH, payload);
    view.setUint8(to + ip.IPV6_NEXT_HEADER, ip.PROTOCOL_ICMPV6);
    view.setUint8(to + ip.IPV6_HOP_LIMIT, TTL);
    if (this.#address6 && l2 === 0) this.#u8.set(this.#address6, to + ip.IPV6_SOURCE);
    else this.#u8.copyWithin(to + ip.IPV6_SOURCE, at + ip.IPV6_DESTINATION, at + ip.IPV6_DESTINATION + 16);
    this.#u8.copyWithin(to + ip.IPV6_DESTINATION, at + ip.IPV6_SOURCE, at + ip.IPV6_SOURCE + 16);
    view.setUint16(body, (type << 8) | code);
    view.setUint16(body + 2, 0);
    view.setUint32(body + 4, mtu);
    this.#u8.copyWithin(body + icmp.ICMP_HEADER, at, at + quoted);
    // Pseudo-header (RFC 8200 8.1): addresses, length, next header, in little-endian words like the sum itself.
    const pseudo = ((payload & 0xff) << 8) + (payload >> 8) + (ip.PROTOCOL_ICMPV6 << 8);
    const sum = this.#kernels.sum(to + ip.IPV6_SOURCE, 32, this.#kernels.sum(body, payload, pseudo));
    view.setUint16(body + 2, ~sum, true);
    this.#push(at, to, ip.IPV6_HEADER + payload, l2);
  }

  /** Writes the error at `to` about the packet at `at`, behind that one's Ethernet header with its addresses exchanged. */
  #push(at: number, to: number, length: number, l2: number): void {
    const frame = to - l2;
    this.#u8.fill(0, frame - VNET_HEADER, frame);
    if (l2 > 0) {
      this.#u8.copyWithin(frame, at - l2 + 6, at - l2 + 12);
      this.#u8.copyWithin(frame + 6, at - l2, at - l2 + 6);
      this.#u8.copyWithin(frame + 12, at - l2 + 12, at);
    }
    const refused = this.#device.push(frame, l2 + length) < 0;
    this.#f64[this.#counters + (refused ? ICMP_REFUSED : ICMP_SENT)]++;
    if (this.#tap.on) this.#tap.deviceOut(this.#network, frame, l2 + length, 0, refused ? ICMP_REFUSED : SENT);
  }
}

/** One host's address: not 0/8, loopback, multicast, reserved or broadcast. `first` is its first byte. */
function isHost4(first: number, address: number): boolean {
  return first !== 0 && first !== 127 && first < 224 && address !== -1;
}

function isZero(u8: Uint8Array, at: number, length: number): boolean {
  for (let i = 0; i < length; i++) if (u8[at + i] !== 0) return false;
  return true;
}
