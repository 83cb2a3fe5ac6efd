/**
 * Layer 3: a packet goes to the peer with the longest prefix that has its destination.
 *
 *   outbound   check → look up peer → TTL          inbound   check → TTL → source
 */
import type { EngineMemory, WorkerLayout } from '../io/memory.js';
import * as ip from '../packet/ip.js';
import * as count from './counters.js';
import type { IcmpErrors } from './icmp-errors.js';
import { DONE, type Layer } from './layer.js';
import { lookup4, lookup6 } from './routes.js';

export class Routing implements Layer {
  readonly l2 = 0;
  readonly exact = true;
  version = 0;
  readonly #memory: EngineMemory;
  readonly #i32: Int32Array;
  readonly #f64: Float64Array;
  readonly #view: DataView;
  readonly #icmp: IcmpErrors;
  readonly #counters: number;
  readonly #strict: boolean;
  #roots4 = 0;
  #roots6 = 0;
  #nodes = 0;

  constructor(memory: EngineMemory, layout: WorkerLayout, icmp: IcmpErrors, view: DataView, strict: boolean) {
    this.#memory = memory;
    this.#i32 = memory.i32;
    this.#f64 = memory.f64;
    this.#view = view;
    this.#icmp = icmp;
    this.#counters = layout.counters >> 3;
    this.#strict = strict;
  }

  useTables(version: number): void {
    const table = this.#memory.layout.tables[version];
    this.#roots4 = table.roots4 >> 2;
    this.#roots6 = table.roots6 >> 2;
    this.#nodes = table.nodes >> 2;
  }

  outbound(at: number, length: number): number {
    const view = this.#view;
    const bad = ip.checkIp(view, at, length);
    if (bad !== ip.GOOD) return this.#drop(count.OUT_SHORT + bad - ip.BAD_SHORT);
    const v4 = view.getUint8(at) >> 4 === 4;
    this.version = v4 ? 4 : 6;
    if (v4) this.#note4(at);

    const ref = this.#owner(at, v4, v4 ? ip.IPV4_DESTINATION : ip.IPV6_DESTINATION);
    if (ref === 0) {
      this.lost(at, length);
      return DONE;
    }
    if (view.getUint8(at + (v4 ? ip.IPV4_TTL : ip.IPV6_HOP_LIMIT)) <= 1) {
      this.#icmp.timeExceeded(at, length);
      return this.#drop(count.OUT_TTL);
    }
    return ref;
  }

  lost(at: number, length: number): void {
    this.#f64[this.#counters + count.OUT_NO_ROUTE]++;
    this.#icmp.noRoute(at, length);
  }

  depart(at: number): void {
    const view = this.#view;
    if (this.version === 4) ip.decrementTtl(view, at);
    else view.setUint8(at + ip.IPV6_HOP_LIMIT, view.getUint8(at + ip.IPV6_HOP_LIMIT) - 1);
  }

  inbound(at: number, length: number, ref: number): boolean {
    const view = this.#view;
    const bad = ip.checkIp(view, at, length);
    if (bad !== ip.GOOD) return this.#refuse(count.IN_SHORT + bad - ip.BAD_SHORT);
    const v4 = view.getUint8(at) >> 4 === 4;
    this.version = v4 ? 4 : 6;
    if (view.getUint8(at + (v4 ? ip.IPV4_TTL : ip.IPV6_HOP_LIMIT)) === 0) return this.#refuse(count.IN_TTL);
    if (this.#strict && (ref === 0 || this.#owner(at, v4, v4 ? ip.IPV4_SOURCE : ip.IPV6_SOURCE) !== ref)) {
      return this.#refuse(count.IN_SOURCE);
    }
    return true;
  }

  /** Whose the address at `at + offset` is; 0: nobody's. */
  #owner(at: number, v4: boolean, offset: number): number {
    return v4
      ? lookup4(this.#i32, this.#roots4, this.#nodes, this.#view.getInt32(at + offset))
      : lookup6(this.#i32, this.#memory.u8, this.#roots6, this.#nodes, at + offset);
  }

  /** Counts what is carried but worth knowing. */
  #note4(at: number): void {
    if (this.#view.getUint8(at) !== 0x45) this.#f64[this.#counters + count.OUT_OPTIONS]++;
    if (this.#view.getUint16(at + ip.IPV4_FRAGMENT) & (ip.IPV4_MF | ip.IPV4_OFFSET_MASK)) {
      this.#f64[this.#counters + count.OUT_FRAGMENTS]++;
    }
  }

  #refuse(counter: number): false {
    this.#f64[this.#counters + counter]++;
    return false;
  }

  #drop(counter: number): typeof DONE {
    this.#f64[this.#counters + counter]++;
    return DONE;
  }
}
