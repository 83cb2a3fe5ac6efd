/**
 * Layer 2: a frame goes to the peer behind which its destination MAC is, or to all of them.
 *
 *   outbound   check → learn source → answer ARP and ND → look up MAC → (flood)
 *   inbound    check → loop? → ARP and ND teach → learn source
 *
 * What is behind our own device is learned too (LOCAL), so that moves are seen from both sides. What the registry says goes
 * before what was learned; where nothing is to be learned, it alone counts. A frame from a peer goes to the device and
 * nowhere else (split horizon).
 */
import type { Device } from '../io/device.js';
import type { Kernels } from '../io/kernels.js';
import { type EngineMemory, NETWORK_BYTES, type TableLayout, workerLayout } from '../io/memory.js';
import * as ethernet from '../packet/ethernet.js';
import * as ip from '../packet/ip.js';
import * as count from './counters.js';
import { floodList } from './floods.js';
import { DONE, FLOOD, type Layer } from './layer.js';
import { LearnedMacs, LOCAL, lookupStaticMac } from './macs.js';
import { LearnedNeighbours } from './neighbours.js';
import { NETWORK_BRIDGE_MAC, NETWORK_DEVICE_MAC } from './networks.js';
import { ANSWERED, DROP, NeighbourProxy } from './proxy.js';
import { Rings } from './rings.js';
import type { SwitchSettings } from './settings.js';
import type { SharedWords } from './shared.js';
import type { Tap } from './tap.js';

/** What has been learned. */
export interface Learned {
  readonly macs: LearnedMacs;
  readonly neighbours: LearnedNeighbours;
}

export class Switching implements Layer {
  l2 = 0;
  version = 0;
  exact = false;
  readonly #memory: EngineMemory;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #counters: number;
  /** Most frames flooded in a second, per network; 0: no limit. */
  readonly #stormLimit: number;
  readonly #floods: boolean;
  readonly #floodUnknown: boolean;
  readonly #devices: readonly Device[];
  readonly #shared: SharedWords;
  readonly #rings: Rings | undefined;
  /** Undefined: nothing is learned. */
  readonly #macs: LearnedMacs | undefined;
  readonly #neighbours: LearnedNeighbours | undefined;
  readonly #proxy: NeighbourProxy;
  readonly #staticMask: number;
  /** By network: frames that may be flooded now, in thousandths. */
  readonly #storm: Float64Array;
  #now = 0;
  /** i32 index of the static MACs; 0: there are none. */
  #statics = 0;
  #table: TableLayout;

  /** `learned`: instead of tables of its own, and nobody is told. */
  constructor(
    memory: EngineMemory,
    worker: number,
    kernels: Kernels,
    devices: readonly Device[],
    shared: SharedWords,
    view: DataView,
    settings: SwitchSettings,
    tap: Tap,
    learned?: Learned,
  ) {
    const layout = workerLayout(memory.layout, worker);
    const limits = { age: settings.age, perPeer: settings.macsPerPeer };
    this.#memory = memory;
    this.#table = memory.layout.tables[0];
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#counters = layout.counters >> 3;
    this.#stormLimit = settings.stormLimit;
    this.#floods = settings.floods;
    this.#floodUnknown = settings.floods && settings.floodUnknown;
    this.#devices = devices;
    this.#shared = shared;
    if (learned !== undefined) {
      this.#macs = learned.macs;
      this.#neighbours = learned.neighbours;
    } else if (settings.learning) {
      this.#rings = memory.options.workers > 1 ? new Rings(memory, worker) : undefined;
      this.#macs = new LearnedMacs(memory, worker, limits, this.#rings);
      this.#neighbours = new LearnedNeighbours(memory, worker, limits, this.#rings);
    }
    this.#proxy = new NeighbourProxy(memory, layout, kernels, view, this.#neighbours, this.#macs, tap);
    this.#staticMask = memory.layout.staticSlots - 1;
    this.#storm = new Float64Array(settings.networks.length).fill(settings.stormLimit * 1000);
  }

  useTables(version: number): void {
    const table = this.#memory.layout.tables[version];
    this.#statics = this.#shared.hasStatics(version) ? table.staticMacs >> 2 : 0;
    this.#table = table;
    this.#proxy.useTables(version);
  }

  /** Between batches: takes what other workers learned, forgets a little, refills the buckets. `now` in milliseconds (wraps). */
  tick(now: number): void {
    const passed = Math.min((now - this.#now) | 0, 10_000);
    this.#now = now;
    if (this.#macs !== undefined && this.#neighbours !== undefined) {
      this.#rings?.receive(this.#macs, this.#neighbours, now);
      this.#macs.sweep(now);
      this.#neighbours.sweep(now);
    }
    if (passed <= 0) return;
    const limit = this.#stormLimit;
    for (let i = 0; i < this.#storm.length; i++) {
      this.#storm[i] = Math.min(this.#storm[i] + passed * limit, limit * 1000);
    }
  }

  outbound(at: number, length: number, network: number): number {
    const view = this.#view;
    if (length < ethernet.ETHERNET_HEADER) return this.#drop(count.OUT_RUNT);
    const toLow = view.getInt32(at + ethernet.DESTINATION, true);
    const toHigh = view.getUint16(at + ethernet.DESTINATION + 4, true);
    this.#macs?.prefetch(toLow, toHigh, network);
    if (!this.#parse(at, length)) return this.#drop(count.OUT_RUNT);
    const low = view.getInt32(at + ethernet.SOURCE, true);
    const high = view.getUint16(at + ethernet.SOURCE + 4, true);
    if (low & 1 || (low | high) === 0) return this.#drop(count.OUT_SOURCE_MAC);
    this.#macs?.learn(low, high, network, LOCAL, this.#now);
    if (this.#mayTeach(at)) {
      const verdict = this.#proxy.outbound(this.#devices[network], at, length, this.l2, network, this.#now);
      if (verdict === DROP || verdict === ANSWERED) return DONE;
    }
    if (toLow & 1) return this.#floods ? this.#flood(network) : this.#drop(count.OUT_NOT_FLOODED);
    const ref = this.#find(toLow, toHigh, network);
    if (ref > 0) return ref;
    if (ref === LOCAL) return this.#drop(count.OUT_SAME_PORT);
    return this.#floodUnknown ? this.#flood(network) : this.#drop(count.OUT_UNKNOWN_UNICAST);
  }

  lost(): void {
    this.#f64[this.#counters + count.OUT_NO_PEER]++;
  }

  /** A switch leaves a frame as it is. */
  depart(): void {}

  inbound(at: number, length: number, ref: number, network: number): boolean {
    if (!this.#parse(at, length)) return this.#refuse(count.IN_RUNT);
    const view = this.#view;
    const low = view.getInt32(at + ethernet.SOURCE, true);
    const high = view.getUint16(at + ethernet.SOURCE + 4, true);
    if (low & 1 || (low | high) === 0) return this.#refuse(count.IN_SOURCE_MAC);
    if (this.#isOurs(low, high, network)) return this.#refuse(count.IN_LOOP);
    if (this.#mayTeach(at) && this.#proxy.inbound(at, length, this.l2, network, ref, this.#now) === DROP) return false;
    if (ref > 0) this.#macs?.learn(low, high, network, ref, this.#now);
    return true;
  }

  /** The reference behind a MAC: what the registry says, or what was learned. */
  #find(low: number, high: number, network: number): number {
    if (this.#statics !== 0) {
      const ref = lookupStaticMac(this.#i32, this.#statics, this.#staticMask, low, high, network);
      if (ref !== 0) return ref;
    }
    return this.#macs === undefined ? 0 : this.#macs.lookup(low, high, network, this.#now);
  }

  #flood(network: number): number {
    const peers = this.#i32[floodList(this.#table, this.#memory.options.peers, network)];
    if (peers === 0) return this.#drop(count.OUT_NO_PEER);
    if (this.#stormLimit > 0) {
      if (this.#storm[network] < 1000) return this.#drop(count.OUT_STORM);
      this.#storm[network] -= 1000;
    }
    this.#f64[this.#counters + count.OUT_FLOODED]++;
    return FLOOD;
  }

  /**
   * Whether a MAC is our device's or its bridge's: then the frame has come round in a circle. Or one that the registry says is behind
   * our device: then somebody has taken it, and the bridge there must not learn it from us.
   */
  #isOurs(low: number, high: number, network: number): boolean {
    const i32 = this.#i32;
    if (this.#statics !== 0) {
      if (lookupStaticMac(i32, this.#statics, this.#staticMask, low, high, network) === LOCAL) return true;
    }
    const words = (this.#memory.layout.networks + network * NETWORK_BYTES) >> 2;
    return (
      (i32[words + NETWORK_DEVICE_MAC] === low && i32[words + NETWORK_DEVICE_MAC + 1] === high) ||
      (i32[words + NETWORK_BRIDGE_MAC] === low && i32[words + NETWORK_BRIDGE_MAC + 1] === high)
    );
  }

  /** Finds the IP packet in a frame. False: it is shorter than its Ethernet header. */
  #parse(at: number, length: number): boolean {
    const view = this.#view;
    const l2 = ethernet.headerLength(view, at, length);
    this.l2 = l2;
    this.version = 0;
    this.exact = false;
    if (l2 === 0) return false;
    const packet = at + l2;
    const room = length - l2;
    const type = view.getUint16(packet - 2);
    if (type === ethernet.ETHERTYPE_IPV4) {
      if (room < ip.IPV4_HEADER) return true;
      const header = (view.getUint8(packet) & 15) << 2;
      const total = view.getUint16(packet + ip.IPV4_TOTAL_LENGTH);
      if (view.getUint8(packet) >> 4 !== 4 || header < ip.IPV4_HEADER || total < header || total > room) return true;
      if (ip.headerSum(view, packet, header) !== 0xffff) return true;
      this.version = 4;
      this.exact = total === room;
    } else if (type === ethernet.ETHERTYPE_IPV6) {
      if (room < ip.IPV6_HEADER || view.getUint8(packet) >> 4 !== 6) return true;
      const total = ip.IPV6_HEADER + view.getUint16(packet + ip.IPV6_PAYLOAD_LENGTH);
      if (total > room) return true;
      this.version = 6;
      this.exact = total === room;
    }
    return true;
  }

  /** ARP, or ICMPv6 right behind the IPv6 header: what the proxy looks at. */
  #mayTeach(at: number): boolean {
    const packet = at + this.l2;
    if (this.version === 6) return this.#view.getUint8(packet + ip.IPV6_NEXT_HEADER) === ip.PROTOCOL_ICMPV6;
    return this.version === 0 && this.#view.getUint16(packet - 2) === ethernet.ETHERTYPE_ARP;
  }

  #drop(counter: number): typeof DONE {
    this.#f64[this.#counters + counter]++;
    return DONE;
  }

  #refuse(counter: number): false {
    this.#f64[this.#counters + counter]++;
    return false;
  }
}
