/**
 * Which packets a capture wants: words in the shared memory that control writes before it turns taps on (or says that they have
 * changed), and that each worker copies then. All conditions must hold; of several peers, hosts or verdicts any one will do.
 */
import { DEVICE_IN, DEVICE_OUT } from '../io/capture-record.js';
import { CAPTURE_FILTER_BYTES, type EngineMemory } from '../io/memory.js';
import { AF_INET } from '../io/syscalls-constants.js';
import * as arp from '../packet/arp.js';
import * as ethernet from '../packet/ethernet.js';
import * as icmp from '../packet/icmp.js';
import * as ip from '../packet/ip.js';
import { VXLAN_HEADER } from '../packet/vxlan.js';
import { addressWords, MAPPED } from './addresses.js';
import type { PeerRef } from './peers.js';
import { FLOODED, VERDICTS } from './verdicts.js';

/** An address, a prefix, or a MAC. */
export interface CaptureHost {
  /** 4, 16 or (a MAC) 6 bytes. */
  readonly bytes: Uint8Array;
  /** Bits that count; of a MAC all. */
  readonly length: number;
}

export interface CaptureWish {
  /** Most bytes of a packet that are kept. */
  readonly snaplen: number;
  readonly places: readonly number[];
  /** Undefined: all. */
  readonly verdicts: readonly number[] | undefined;
  /** Undefined: all; none: nothing that is anybody's. At most MOST_PEERS. */
  readonly peers: readonly PeerRef[] | undefined;
  /** Undefined: all. At most MOST_HOSTS. */
  readonly hosts: readonly CaptureHost[] | undefined;
}

export const MOST_PEERS = 64;
export const MOST_HOSTS = 16;

const SNAPLEN = 0;
const PLACE_BITS = 1;
/** A bit for each verdict. */
const VERDICT_BITS = 2;
/** How many follow; -1: all. */
const PEERS = VERDICT_BITS + VERDICTS / 32;
const HOSTS = PEERS + 1 + MOST_PEERS;
/** What kind, then four words of address, and four of mask. */
const HOST_WORDS = 9;
const WORDS = HOSTS + 1 + MOST_HOSTS * HOST_WORDS;
const KIND_IPV4 = 4;
const KIND_IPV6 = 6;
const KIND_MAC = 1;
if (WORDS * 4 > CAPTURE_FILTER_BYTES) throw new Error(`a capture filter of ${WORDS} words does not fit`);

/** Control: writes what is wanted. Workers look at it when the word of shared.ts changes. */
export function writeCaptureFilter(memory: EngineMemory, wish: CaptureWish): void {
  const { snaplen, places, verdicts, peers, hosts } = wish;
  const words = memory.i32.subarray(memory.layout.captureFilter >> 2, (memory.layout.captureFilter >> 2) + WORDS);
  words.fill(0);
  words[SNAPLEN] = snaplen;
  for (const place of places) words[PLACE_BITS] |= 1 << place;
  if (verdicts === undefined) words.fill(-1, VERDICT_BITS, PEERS);
  for (const verdict of verdicts ?? []) words[VERDICT_BITS + (verdict >> 5)] |= 1 << (verdict & 31);
  words[PEERS] = peers === undefined ? -1 : Math.min(peers.length, MOST_PEERS);
  words.set((peers ?? []).slice(0, MOST_PEERS), PEERS + 1);
  words[HOSTS] = hosts === undefined ? -1 : Math.min(hosts.length, MOST_HOSTS);
  (hosts ?? []).slice(0, MOST_HOSTS).forEach((host, i) => {
    words.set(hostWords(host), HOSTS + 1 + i * HOST_WORDS);
  });
}

function hostWords({ bytes, length }: CaptureHost): Int32Array {
  const words = new Int32Array(HOST_WORDS);
  if (bytes.length === 6) {
    words[0] = KIND_MAC;
    new Uint8Array(words.buffer).set(bytes, 4);
    return words;
  }
  const mask = new Uint8Array(16).fill(0xff);
  const first = 16 - bytes.length;
  for (let i = 0; i < bytes.length; i++) mask[first + i] = 0xff00 >> Math.min(8, Math.max(0, length - i * 8));
  words[0] = bytes.length === 4 ? KIND_IPV4 : KIND_IPV6;
  words.set(addressWords(bytes), 1);
  words.set(new Int32Array(mask.buffer), 5);
  for (let i = 1; i <= 4; i++) words[i] &= words[i + 4];
  return words;
}

/** A worker's copy. */
export class CaptureFilter {
  snaplen = 0;
  readonly #memory: EngineMemory;
  readonly #view: DataView;
  readonly #words = new Int32Array(WORDS);
  readonly #l2: boolean;

  constructor(memory: EngineMemory) {
    this.#memory = memory;
    this.#view = new DataView(memory.memory.buffer);
    this.#l2 = (memory.options.macs ?? 0) > 0;
  }

  /** Copies what control has written. */
  read(): void {
    const from = this.#memory.layout.captureFilter >> 2;
    for (let i = 0; i < WORDS; i++) this.#words[i] = this.#memory.i32[from + i];
    this.snaplen = this.#words[SNAPLEN];
  }

  wantsPlace(place: number): boolean {
    return (this.#words[PLACE_BITS] & (1 << place)) !== 0;
  }

  /** `ref` 0: nobody that we know. What goes to all peers goes to those who are wanted. */
  wants(verdict: number, ref: PeerRef): boolean {
    const words = this.#words;
    if ((words[VERDICT_BITS + (verdict >> 5)] & (1 << (verdict & 31))) === 0) return false;
    const peers = words[PEERS];
    if (peers < 0 || verdict === FLOODED) return true;
    for (let i = 1; i <= peers; i++) if (words[PEERS + i] === ref) return ref !== 0;
    return false;
  }

  /** Whether a wanted host is an end of the packet at `at`; on the underlay's side `name` is the other end's sockaddr. */
  wantsHost(place: number, at: number, length: number, name: number): boolean {
    if (this.#words[HOSTS] < 0) return true;
    if (place === DEVICE_IN || place === DEVICE_OUT) return this.#inner(at, length);
    if (this.#outer(name)) return true;
    return this.#l2 ? this.#inner(at + VXLAN_HEADER, length - VXLAN_HEADER) : this.#inner(at, length);
  }

  #outer(name: number): boolean {
    const view = this.#view;
    return view.getUint16(name, true) === AF_INET ? this.#is4(name + 4) : this.#is6(name + 8);
  }

  #inner(at: number, length: number): boolean {
    const view = this.#view;
    if (!this.#l2) return length > 0 && this.#packet(view.getUint8(at) >> 4, at, length);
    const header = ethernet.headerLength(view, at, length);
    if (header === 0) return false;
    if (this.#isMac(at + ethernet.DESTINATION) || this.#isMac(at + ethernet.SOURCE)) return true;
    const type = view.getUint16(at + header - 2);
    const packet = at + header;
    const left = length - header;
    if (type === ethernet.ETHERTYPE_ARP) {
      return left >= arp.ARP_LENGTH && (this.#is4(packet + arp.ARP_SENDER_IP) || this.#is4(packet + arp.ARP_TARGET_IP));
    }
    const version = type === ethernet.ETHERTYPE_IPV4 ? 4 : type === ethernet.ETHERTYPE_IPV6 ? 6 : 0;
    return this.#packet(version, packet, left);
  }

  /** An ICMP error is its host's too about whose packet it is. */
  #packet(version: number, at: number, length: number): boolean {
    if (version === 4 && length >= ip.IPV4_HEADER) {
      return this.#ends4(at) || this.#ends4(quotedBy4(this.#view, at, length));
    }
    if (version === 6 && length >= ip.IPV6_HEADER) {
      return this.#ends6(at) || this.#ends6(quotedBy6(this.#view, at, length));
    }
    return false;
  }

  /** Of the IPv4 header at `at`; 0: there is none. */
  #ends4(at: number): boolean {
    return at !== 0 && (this.#is4(at + ip.IPV4_SOURCE) || this.#is4(at + ip.IPV4_DESTINATION));
  }

  #ends6(at: number): boolean {
    return at !== 0 && (this.#is6(at + ip.IPV6_SOURCE) || this.#is6(at + ip.IPV6_DESTINATION));
  }

  #is4(at: number): boolean {
    return this.#isHost(KIND_IPV4, 0, 0, MAPPED, this.#view.getInt32(at, true));
  }

  #is6(at: number): boolean {
    const view = this.#view;
    return this.#isHost(
      KIND_IPV6,
      view.getInt32(at, true),
      view.getInt32(at + 4, true),
      view.getInt32(at + 8, true),
      view.getInt32(at + 12, true),
    );
  }

  #isHost(kind: number, w0: number, w1: number, w2: number, w3: number): boolean {
    const words = this.#words;
    for (let i = HOSTS + 1; i <= HOSTS + words[HOSTS] * HOST_WORDS; i += HOST_WORDS) {
      if (
        words[i] === kind &&
        (w0 & words[i + 5]) === words[i + 1] &&
        (w1 & words[i + 6]) === words[i + 2] &&
        (w2 & words[i + 7]) === words[i + 3] &&
        (w3 & words[i + 8]) === words[i + 4]
      ) {
        return true;
      }
    }
    return false;
  }

  #isMac(at: number): boolean {
    const words = this.#words;
    const low = this.#view.getInt32(at, true);
    const high = this.#view.getUint16(at + 4, true);
    for (let i = HOSTS + 1; i <= HOSTS + words[HOSTS] * HOST_WORDS; i += HOST_WORDS) {
      if (words[i] === KIND_MAC && words[i + 1] === low && words[i + 2] === high) return true;
    }
    return false;
  }
}

/** Where the header is that the ICMP error at `at` quotes; 0: it is not one. */
function quotedBy4(view: DataView, at: number, length: number): number {
  const header = (view.getUint8(at) & 15) << 2;
  const quoted = header + icmp.ICMP_HEADER;
  if (view.getUint8(at + ip.IPV4_PROTOCOL) !== ip.PROTOCOL_ICMP || length < quoted + ip.IPV4_HEADER) return 0;
  if (view.getUint16(at + ip.IPV4_FRAGMENT) & ip.IPV4_OFFSET_MASK) return 0;
  return icmp.isIcmpError(view.getUint8(at + header)) ? at + quoted : 0;
}

function quotedBy6(view: DataView, at: number, length: number): number {
  const quoted = ip.IPV6_HEADER + icmp.ICMP_HEADER;
  if (view.getUint8(at + ip.IPV6_NEXT_HEADER) !== ip.PROTOCOL_ICMPV6 || length < quoted + ip.IPV6_HEADER) return 0;
  return icmp.isIcmpv6Error(view.getUint8(at + ip.IPV6_HEADER)) ? at + quoted : 0;
}
