/**
 * ARP and Neighbour Discovery of one worker: looks at every such frame, lets it teach who has which address, and answers
 * the host's own requests where the answer is known, so that they need not be flooded to every peer (RFC 9161).
 *
 *   check → does its sender lie about a static neighbour? → teach → answer
 *
 * Whom it believes: a sender that names its own Ethernet source as its MAC, unless the registry gives its address to another
 * one. What it answers: requests to a group of hosts. A unicast request asks whether its target is still there (RFC 1122
 * 2.3.2.1, RFC 4861 7.3), which only the target can say. Whom it answers for: static neighbours first, then learned ones
 * whose MAC is known to be behind a peer; never for the asker itself, nor for hosts on its own side of the tunnel, which
 * hear it anyway.
 *
 * Who asks whether an address is free (an ARP probe, RFC 5227; duplicate address detection, RFC 4862 5.4) claims nothing
 * yet, so nothing is learned from it, and it must reach everybody. It is answered as well, but only for static neighbours:
 * a learned one may have left, and its address be free.
 *
 * Where nothing is to be learned, it knows the static neighbours and MACs only.
 */
import type { Device } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import { type EngineMemory, HEADROOM, VNET_HEADER, type WorkerLayout } from '../io/memory.js';
import * as arp from '../packet/arp.js';
import * as ethernet from '../packet/ethernet.js';
import * as ip from '../packet/ip.js';
import * as nd from '../packet/nd.js';
import { VNET_CSUM_OFFSET, VNET_CSUM_START, VNET_NEEDS_CSUM } from '../packet/virtio-net.js';
import { MAPPED } from './addresses.js';
import * as count from './counters.js';
import { type LearnedMacs, LOCAL, lookupStaticMac } from './macs.js';
import {
  findStaticNeighbour,
  type LearnedNeighbours,
  NEIGHBOUR_FLAGS,
  NEIGHBOUR_MAC_HIGH,
  NEIGHBOUR_MAC_LOW,
  NEIGHBOUR_REF,
  networkOf,
  ROUTER,
  ROUTER_KNOWN,
  scopeOf,
} from './neighbours.js';
import { Tap } from './tap.js';
import { SENT } from './verdicts.js';

/** The frame goes on its way. */
export const PASS = 0;
/** It is to be dropped, and has been counted. */
export const DROP = 1;
/** It was a request; it has been answered and counted, and goes no further. */
export const ANSWERED = 2;

/** What looking at a frame found: nothing to do, malformed, a lie, or a request that may be answered here. */
const CARRY = 0;
const BAD = 1;
const CONFLICT = 2;
const ASKS = 3;

export class NeighbourProxy {
  readonly #memory: EngineMemory;
  readonly #u8: Uint8Array;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #kernels: Kernels;
  readonly #neighbours: LearnedNeighbours | undefined;
  readonly #macs: LearnedMacs | undefined;
  readonly #counters: number;
  readonly #tap: Tap;
  readonly #vnetIn: number;
  /** Where answers are built: a virtio header fits before. */
  readonly #scratch: number;
  /** Slots - 1 of the static tables; -1: there are none. */
  readonly #mask: number;
  /** The network and VLANs of the frame in question (neighbours.ts). */
  #scope = 0;
  #staticMacs = 0;
  #staticNeighbours = 0;
  /** The IP address in question, as tables keep it: IPv4 as ::ffff:a.b.c.d. */
  readonly #address = new Int32Array(4);

  constructor(
    memory: EngineMemory,
    layout: WorkerLayout,
    kernels: Kernels,
    view: DataView,
    neighbours: LearnedNeighbours | undefined,
    macs: LearnedMacs | undefined,
    tap = new Tap(memory, layout, 0),
  ) {
    this.#memory = memory;
    this.#u8 = memory.u8;
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#kernels = kernels;
    this.#neighbours = neighbours;
    this.#macs = macs;
    this.#counters = layout.counters >> 3;
    this.#tap = tap;
    this.#vnetIn = layout.vnetIn;
    this.#scratch = layout.scratch + HEADROOM;
    this.#mask = memory.layout.staticSlots - 1;
  }

  /** The table version for this turn. */
  useTables(version: number): void {
    const table = this.#memory.layout.tables[version];
    this.#staticMacs = table.staticMacs >> 2;
    this.#staticNeighbours = table.staticNeighbours >> 2;
  }

  /**
   * An ARP or IPv6 frame of `length` bytes at `at`, just read from `device`: its virtio header is still in `layout.vnetIn`.
   * `l2` bytes come before its network layer. PASS, DROP or ANSWERED. Frames that are neither ARP nor Neighbour Discovery
   * pass.
   */
  outbound(device: Device, at: number, length: number, l2: number, network: number, now: number): number {
    this.#setScope(at, l2, network);
    const type = this.#view.getUint16(at + l2 - 2);
    if (type === ethernet.ETHERTYPE_ARP) {
      const found = this.#arp(at, length, l2, LOCAL, now);
      if (found === ASKS) return this.#answerArp(device, at, l2, network, now);
      return this.#verdict(found, count.OUT_BAD_ARP, count.OUT_CONFLICT);
    }
    if (type === ethernet.ETHERTYPE_IPV6) {
      const found = this.#nd(at, length, l2, LOCAL, now, this.#leftToDevice(l2));
      if (found === ASKS) return this.#answerNd(device, at, l2, network, now);
      return this.#verdict(found, count.OUT_BAD_ND, count.OUT_CONFLICT);
    }
    return PASS;
  }

  /** The same for a frame from the peer `ref`, or from a stranger (0), who teaches nothing. PASS or DROP. */
  inbound(at: number, length: number, l2: number, network: number, ref: number, now: number): number {
    this.#setScope(at, l2, network);
    const type = this.#view.getUint16(at + l2 - 2);
    if (type === ethernet.ETHERTYPE_ARP) {
      const found = this.#arp(at, length, l2, ref, now);
      return this.#verdict(found, count.IN_BAD_ARP, count.IN_CONFLICT);
    }
    if (type === ethernet.ETHERTYPE_IPV6) {
      const found = this.#nd(at, length, l2, ref, now, false);
      return this.#verdict(found, count.IN_BAD_ND, count.IN_CONFLICT);
    }
    return PASS;
  }

  #setScope(at: number, l2: number, network: number): void {
    this.#scope = scopeOf(network, ethernet.vlanOf(this.#view, at, l2, 0), ethernet.vlanOf(this.#view, at, l2, 1));
  }

  #count(counter: number): void {
    this.#f64[this.#counters + counter]++;
  }

  #verdict(found: number, bad: number, conflict: number): number {
    if (found !== BAD && found !== CONFLICT) return PASS;
    this.#count(found === BAD ? bad : conflict);
    return DROP;
  }

  /** Checks an ARP frame and lets it teach. */
  #arp(at: number, length: number, l2: number, ref: number, now: number): number {
    const view = this.#view;
    const packet = at + l2;
    const kind = arp.checkArp(view, packet, length - l2);
    if (kind !== arp.ARP_GOOD) return kind === arp.ARP_BAD ? BAD : CARRY;
    const operation = view.getUint16(packet + arp.ARP_OPERATION);
    if (operation !== arp.ARP_REQUEST && operation !== arp.ARP_REPLY) return CARRY;
    const mac = packet + arp.ARP_SENDER_MAC;
    const sender = packet + arp.ARP_SENDER_IP;
    if (arp.isHost4(view, sender)) {
      this.#setAddress4(sender);
      if (!this.#claim(at, mac, 0, ref, now)) return CONFLICT;
    } else if (view.getInt32(sender) !== 0) {
      return CARRY;
    }
    if (operation !== arp.ARP_REQUEST || !this.#mayAnswer(at, mac)) return CARRY;
    // To itself: an announcement (RFC 5227 3), which everybody is to hear.
    return view.getInt32(sender) === view.getInt32(packet + arp.ARP_TARGET_IP) ? CARRY : ASKS;
  }

  /** The same for Neighbour Discovery. `left`: its checksum is left to us as the device, so it is not to be checked. */
  #nd(at: number, length: number, l2: number, ref: number, now: number, left: boolean): number {
    const view = this.#view;
    const packet = at + l2;
    const type = nd.checkNd(view, packet, length - l2);
    if (type === nd.ND_OTHER) return CARRY;
    if (type === nd.ND_BAD) return BAD;
    if (!left && this.#sum6(packet) !== 0xffff) return CARRY;
    const message = packet + ip.IPV6_HEADER;
    const advertises = type === nd.ND_ADVERTISEMENT;
    const whose = advertises ? message + nd.ND_TARGET : packet + ip.IPV6_SOURCE;
    const named = nd.linkLayerAddress(view, packet, advertises ? nd.ND_TARGET_LINK_LAYER : nd.ND_SOURCE_LINK_LAYER);
    const mac = named === 0 && advertises && this.#isKnown(at, whose, now) ? at + ethernet.SOURCE : named;
    if (mac !== 0 && nd.isHost6(view, whose)) {
      let flags = 0;
      if (advertises) {
        flags = view.getUint8(message + nd.ND_FLAGS) & nd.ND_FLAG_ROUTER ? ROUTER_KNOWN | ROUTER : ROUTER_KNOWN;
      } else if (type === nd.ND_ROUTER_ADVERTISEMENT && view.getUint16(message + nd.ND_ROUTER_LIFETIME) !== 0) {
        flags = ROUTER_KNOWN | ROUTER;
      }
      this.#setAddress6(whose);
      if (!this.#claim(at, mac, flags, ref, now)) return CONFLICT;
    }
    if (type !== nd.ND_SOLICITATION || !this.#mayAnswer(at, mac)) return CARRY;
    const answerable = nd.isHost6(view, whose) || nd.isUnspecified(view, whose);
    return answerable && nd.isHost6(view, message + nd.ND_TARGET) ? ASKS : CARRY;
  }

  /** Whether the frame at `at` asks a group, and the MAC at `mac` (0: it names none) is indeed its sender's. */
  #mayAnswer(at: number, mac: number): boolean {
    return ethernet.isGroupMac(this.#view, at + ethernet.DESTINATION) && (mac === 0 || this.#isOwn(at, mac));
  }

  /**
   * Whether the address at `whose` is known to be at the source of the frame at `at`. Then an advertisement need not name its MAC
   * again (RFC 4861 7.2.4: who asks by unicast knows it), and tells all the same that it is there, and whether it is a router.
   */
  #isKnown(at: number, whose: number, now: number): boolean {
    this.#setAddress6(whose);
    const entry = this.#findLearned(now);
    const low = this.#view.getInt32(at + ethernet.SOURCE, true);
    return entry >= 0 && this.#hasMac(entry, low, this.#view.getUint16(at + ethernet.SOURCE + 4, true));
  }

  /** Whether the MAC at `mac` is the source of the frame at `at`, and one host's. */
  #isOwn(at: number, mac: number): boolean {
    const view = this.#view;
    const source = at + ethernet.SOURCE;
    const low = view.getInt32(mac);
    const high = view.getUint16(mac + 4);
    if (low !== view.getInt32(source) || high !== view.getUint16(source + 4)) return false;
    return !ethernet.isGroupMac(view, mac) && (low !== 0 || high !== 0);
  }

  /**
   * The frame at `at` says that the current address is at the MAC at `mac`. Learns that if it is to be believed. False: the
   * registry says that it is at another one.
   */
  #claim(at: number, mac: number, flags: number, ref: number, now: number): boolean {
    const low = this.#view.getInt32(mac, true);
    const high = this.#view.getUint16(mac + 4, true);
    const entry = this.#findStatic();
    if (entry >= 0) return this.#hasMac(entry, low, high);
    if (ref === 0 || !this.#isOwn(at, mac)) return true;
    const words = this.#address;
    this.#neighbours?.teach(words[0], words[1], words[2], words[3], this.#scope, low, high, flags, ref, now);
    return true;
  }

  #setAddress4(at: number): void {
    const words = this.#address;
    words[0] = 0;
    words[1] = 0;
    words[2] = MAPPED;
    words[3] = this.#view.getInt32(at, true);
  }

  #setAddress6(at: number): void {
    for (let i = 0; i < 4; i++) this.#address[i] = this.#view.getInt32(at + 4 * i, true);
  }

  /** The current address's static entry (i32 index), or -1. */
  #findStatic(): number {
    const words = this.#address;
    const table = this.#staticNeighbours;
    const network = networkOf(this.#scope); // the registry knows no VLANs
    return findStaticNeighbour(this.#i32, table, this.#mask, words[0], words[1], words[2], words[3], network);
  }

  /** The current address's learned entry (i32 index), or -1. */
  #findLearned(now: number): number {
    const words = this.#address;
    return this.#neighbours?.find(words[0], words[1], words[2], words[3], this.#scope, now) ?? -1;
  }

  #hasMac(entry: number, low: number, high: number): boolean {
    return this.#i32[entry + NEIGHBOUR_MAC_LOW] === low && this.#i32[entry + NEIGHBOUR_MAC_HIGH] === high;
  }

  /**
   * The entry (i32 index) of whoever has the current address, if the frame at `at` may be told; or -1. `probe`: it asks
   * whether the address is free. A learned entry must have `known` among its flags.
   */
  #findOwner(at: number, probe: boolean, known: number, network: number, now: number): number {
    const view = this.#view;
    const low = view.getInt32(at + ethernet.SOURCE, true);
    const high = view.getUint16(at + ethernet.SOURCE + 4, true);
    const fixed = this.#findStatic();
    if (fixed >= 0) return !this.#hasMac(fixed, low, high) && this.#isRemote(fixed, true, network, now) ? fixed : -1;
    if (probe) return -1;
    const learned = this.#findLearned(now);
    if (learned < 0 || (this.#i32[learned + NEIGHBOUR_FLAGS] & known) !== known) return -1;
    return !this.#hasMac(learned, low, high) && this.#isRemote(learned, false, network, now) ? learned : -1;
  }

  /**
   * Whether an entry's MAC is behind a peer. Where it was when it was learned does not tell where it is now; of a static
   * one (`fixed`), the registry may say.
   */
  #isRemote(entry: number, fixed: boolean, network: number, now: number): boolean {
    const ref = this.#i32[entry + NEIGHBOUR_REF];
    if (fixed && ref !== 0) return ref > 0;
    const low = this.#i32[entry + NEIGHBOUR_MAC_LOW];
    const high = this.#i32[entry + NEIGHBOUR_MAC_HIGH];
    const found = lookupStaticMac(this.#i32, this.#staticMacs, this.#mask, low, high, network);
    return (found !== 0 ? found : (this.#macs?.lookup(low, high, network, now) ?? 0)) > 0;
  }

  /** Answers the ARP request at `at`, if its target is known. */
  #answerArp(device: Device, at: number, l2: number, network: number, now: number): number {
    const packet = at + l2;
    const probe = this.#view.getInt32(packet + arp.ARP_SENDER_IP) === 0;
    this.#setAddress4(packet + arp.ARP_TARGET_IP);
    const owner = this.#findOwner(at, probe, 0, network, now);
    if (owner < 0) return PASS;
    const low = this.#i32[owner + NEIGHBOUR_MAC_LOW];
    const high = this.#i32[owner + NEIGHBOUR_MAC_HIGH];
    this.#writeEthernet(at, l2, low, high);
    arp.writeArpReply(this.#view, this.#scratch + l2, packet, low, high);
    this.#count(count.ARP_MADE);
    return this.#push(device, network, l2 + arp.ARP_LENGTH, probe);
  }

  /** Answers the neighbour solicitation at `at`, if its target is known, and whether that is a router. */
  #answerNd(device: Device, at: number, l2: number, network: number, now: number): number {
    const view = this.#view;
    const packet = at + l2;
    const probe = nd.isUnspecified(view, packet + ip.IPV6_SOURCE);
    this.#setAddress6(packet + ip.IPV6_HEADER + nd.ND_TARGET);
    const owner = this.#findOwner(at, probe, ROUTER_KNOWN, network, now);
    if (owner < 0) return PASS;
    const low = this.#i32[owner + NEIGHBOUR_MAC_LOW];
    const high = this.#i32[owner + NEIGHBOUR_MAC_HIGH];
    // Where the registry does not say, a static neighbour is a host.
    const router = (this.#i32[owner + NEIGHBOUR_FLAGS] & ROUTER) !== 0;
    const to = this.#scratch + l2;
    this.#writeEthernet(at, l2, low, high);
    if (probe) ethernet.writeAllNodesMac(view, this.#scratch);
    nd.writeAdvertisement(view, to, packet, low, high, router);
    view.setUint16(to + ip.IPV6_HEADER + nd.ND_CHECKSUM, ~this.#sum6(to), true);
    this.#count(count.ND_MADE);
    return this.#push(device, network, l2 + ip.IPV6_HEADER + nd.ND_ANSWER, probe);
  }

  /** The answer's Ethernet header: to the sender of the frame at `at`, from the MAC given, with the same tags and type. */
  #writeEthernet(at: number, l2: number, low: number, high: number): void {
    const to = this.#scratch;
    const source = at + ethernet.SOURCE;
    this.#u8.copyWithin(to, source, source + 6);
    this.#view.setInt32(to + ethernet.SOURCE, low, true);
    this.#view.setUint16(to + ethernet.SOURCE + 4, high, true);
    this.#u8.copyWithin(to + ethernet.TYPE, at + ethernet.TYPE, at + l2);
  }

  /** Gives the answer to the device. A probe goes on to everybody, whatever we have said. */
  #push(device: Device, network: number, length: number, probe: boolean): number {
    this.#u8.fill(0, this.#scratch - VNET_HEADER, this.#scratch);
    const refused = device.push(this.#scratch, length) < 0;
    this.#count(refused ? count.ANSWER_REFUSED : count.ANSWER_SENT);
    if (this.#tap.on) this.#tap.deviceOut(network, this.#scratch, length, 0, refused ? count.ANSWER_REFUSED : SENT);
    if (probe) return PASS;
    this.#count(count.OUT_ANSWERED);
    return ANSWERED;
  }

  /**
   * The folded sum of the ICMPv6 message in the IPv6 packet at `packet` and its pseudo-header (RFC 8200 8.1), in
   * little-endian words: 0xffff if its checksum is right.
   */
  #sum6(packet: number): number {
    const payload = this.#view.getUint16(packet + ip.IPV6_PAYLOAD_LENGTH);
    const pseudo = ((payload & 0xff) << 8) + (payload >> 8) + (ip.PROTOCOL_ICMPV6 << 8);
    const message = this.#kernels.sum(packet + ip.IPV6_HEADER, payload, pseudo);
    return this.#kernels.sum(packet + ip.IPV6_SOURCE, 32, message);
  }

  /** Whether the sender of the frame just read left its ICMPv6 checksum to the device: then it is not wrong, but unfinished. */
  #leftToDevice(l2: number): boolean {
    if (!(this.#u8[this.#vnetIn] & VNET_NEEDS_CSUM)) return false;
    const start = this.#view.getUint16(this.#vnetIn + VNET_CSUM_START, true);
    const offset = this.#view.getUint16(this.#vnetIn + VNET_CSUM_OFFSET, true);
    return start === l2 + ip.IPV6_HEADER && offset === nd.ND_CHECKSUM;
  }
}
