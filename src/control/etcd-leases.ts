/**
 * All leases of a flannel network as etcd has them, and the peers that they come to.
 *
 * A lease is used whole or not at all. One that does not parse, is of another backend, or cannot be true together with another is
 * passed over, and said once. Against this host's own nobody's holds. Of two hosts with one address or MAC the one that wrote
 * last is the living one; of two with one subnet the one that had it first holds it. Several leases of one host (one address,
 * and one MAC where there is one) are one peer with all their subnets. So whatever is in etcd, what comes out is a set of
 * records that a plan can be made of, and the same one on every host.
 */
import { type Address, type Cidr, contains, parseAddress } from './cidr.js';
import type { KeyEvent, KeyValue } from './etcd-client.js';
import type { EventLog } from './event-log.js';
import type { FlannelConfig } from './flannel-config.js';
import { type LeaseAttributes, parseLease, parseLeaseKey } from './flannel-lease.js';
import type { MacsByFamily } from './membership.js';
import { PrefixSet } from './prefix-set.js';
import { reasonOf } from './reason.js';
import { makeRecord, type PeerRecord, sameRecord } from './records.js';

type Family = 4 | 6;

/** This host, against which nobody's lease holds. */
export interface Own {
  /** Last part of the key that our lease has, or should have; undefined before we know it. */
  readonly key: string | undefined;
  readonly subnets: readonly Cidr[];
  readonly macs: MacsByFamily;
  /** Underlay addresses: ours, and those that others know us by. */
  readonly addresses: readonly Address[];
}

export interface EtcdLeasesOptions {
  /** Of the keys: `/coreos.com/network/subnets/`. */
  readonly prefix: string;
  readonly config: FlannelConfig;
  /** Of our underlay. */
  readonly families: readonly Family[];
  readonly log: EventLog;
}

interface Entry {
  /** Last part of the key. */
  readonly name: string;
  readonly createRevision: number;
  /** A renewal changes it. */
  modRevision: number;
  readonly value: string;
  /** Or why there is none. */
  readonly peer: Peer | string;
}

/** A lease as others use it. */
interface Peer {
  readonly subnets: readonly Cidr[];
  /** Where it is, once for each underlay family that it is reached by. */
  readonly places: readonly Place[];
  readonly records: readonly PeerRecord[];
}

interface Place {
  readonly address: string;
  /** With its family: a MAC is of a device, and there is one for each. Empty: there is none. */
  readonly mac: string;
}

export class EtcdLeases {
  readonly #options: EtcdLeasesOptions;
  #entries = new Map<string, Entry>();
  #records = new Map<string, PeerRecord>();
  /** Leases that are passed over, by name; each is said once. */
  #skipped = new Set<string>();
  /** What is resolved is of no use: something was changed or taken away. */
  #dirty = true;
  /** Newer than all that is resolved, and nothing else has changed. */
  #fresh: Entry[] = [];
  #own: Own | undefined;
  /** What is claimed by what is resolved. */
  #claims = new Claims();
  #newest = 0;

  constructor(options: EtcdLeasesOptions) {
    this.#options = options;
  }

  /** Takes all leases there are, instead of those before. */
  load(entries: readonly KeyValue[]): void {
    const before = this.#entries;
    this.#entries = new Map();
    for (const entry of entries) this.#put(entry, before.get(this.#nameOf(entry.key)));
    this.#dirty = true;
  }

  apply(events: readonly KeyEvent[]): void {
    for (const event of events) {
      if (event.type === 'delete') {
        if (this.#entries.delete(this.#nameOf(event.key))) this.#dirty = true;
      } else this.#put(event.entry, this.#entries.get(this.#nameOf(event.entry.key)));
    }
  }

  /** The peers, by record id: the same map as long as nothing changes. */
  records(own: Own): ReadonlyMap<string, PeerRecord> {
    if (this.#dirty || own !== this.#own) this.#resolveAll(own);
    else if (this.#fresh.length > 0) this.#resolveFresh(own);
    return this.#records;
  }

  #nameOf(key: string): string {
    return key.slice(this.#options.prefix.length);
  }

  /** A renewal says nothing new, and costs nothing. */
  #put({ key, value, createRevision, modRevision }: KeyValue, before: Entry | undefined): void {
    const name = this.#nameOf(key);
    if (before?.value === value && before.createRevision === createRevision) {
      before.modRevision = modRevision;
      this.#entries.set(name, before);
      if (this.#claims.isContested(before.peer)) this.#dirty = true;
      return;
    }
    const entry = { name, createRevision, modRevision, value, peer: this.#read(name, value) };
    this.#entries.set(name, entry);
    if (before || createRevision <= this.#newest) this.#dirty = true;
    else this.#fresh.push(entry);
  }

  #read(name: string, value: string): Peer | string {
    try {
      return this.#peerOf(name, parseLeaseKey(name), parseLease(value));
    } catch (error) {
      return reasonOf(error);
    }
  }

  /** Throws a RangeError: it is of no use to us, and why. */
  #peerOf(name: string, all: readonly Cidr[], lease: LeaseAttributes): Peer {
    const { config, families } = this.#options;
    const { backend, pools } = config;
    const backendType = lease.backendType || (backend.type === 'alloc' ? 'alloc' : 'udp');
    if (backendType !== backend.type) throw new RangeError(`its backend is ${backendType}, not ${backend.type}`);
    const subnets = all.filter(({ family }) => pools.some((pool) => pool.family === family));
    if (subnets.length === 0) throw new RangeError('no subnet of a family that the network has');
    for (const subnet of subnets) {
      const network = pools.find(({ family }) => family === subnet.family)?.network;
      if (network && !contains(network, subnet)) throw new RangeError(`${subnet.text} is not in ${network.text}`);
    }
    if (backend.type === 'alloc') return { subnets, places: [], records: [] };
    const port = 'port' in backend ? backend.port : 0;
    const addressOf = (family: Family): Address => {
      const address = family === 4 ? lease.publicIp : lease.publicIpv6;
      if (!address) throw new RangeError(`no public IPv${family} address`);
      const { bytes, text } = address;
      const own = all.find((subnet) => contains(subnet, { bytes, length: bytes.length * 8 }));
      if (own) throw new RangeError(`its address ${text} lies in its own subnet ${own.text}`);
      if (!families.includes(family)) throw new RangeError(`${text} is IPv${family}, of which our underlay has none`);
      return address;
    };
    if (backend.type === 'udp') {
      const address = addressOf(pools[0].family).text;
      const texts = subnets.map(({ text }) => text);
      const record = makeRecord({ id: name, name, address, port, subnets: texts, ecn: false });
      return { subnets, places: [{ address, mac: '' }], records: [record] };
    }
    const places: Place[] = [];
    const records = subnets.map((subnet) => {
      const { family, text } = subnet;
      const address = addressOf(family).text;
      const mac = lease.macs[family];
      if (backend.type === 'vxlan' && mac === undefined) throw new RangeError(`no VtepMAC for IPv${family}`);
      places.push({ address, mac: mac === undefined ? '' : macOf(family, mac) });
      const id = text.replace('/', '-');
      const macs = mac === undefined ? [] : [{ mac }];
      return makeRecord({ id, name: id, address, port, subnets: [text], macs, ecn: backend.type === 'vxlan' });
    });
    return { subnets, places, records };
  }

  #resolveAll(own: Own): void {
    this.#own = own;
    this.#claims = new Claims(own);
    this.#newest = 0;
    const { records, skipped } = { records: this.#records, skipped: this.#skipped };
    this.#records = new Map();
    this.#skipped = new Set();
    const reasons = new Map<string, string>();
    const sound = [...this.#entries.values()].filter(({ name, createRevision, peer }) => {
      this.#newest = Math.max(this.#newest, createRevision);
      if (typeof peer === 'string') reasons.set(name, peer);
      return typeof peer !== 'string';
    });
    const living = sound.sort(byWriting).filter((entry) => this.#settle(entry, own, reasons));
    for (const entry of living.sort(byAge)) this.#admit(entry, reasons);
    for (const [name, reason] of reasons) if (name !== own.key) this.#skip(name, reason, skipped);
    this.#fresh = [];
    this.#dirty = false;
    if (sameRecords(this.#records, records)) this.#records = records;
  }

  /** False: it is ours, or not where it says that it is. */
  #settle({ name, peer }: Entry, own: Own, reasons: Map<string, string>): boolean {
    if (typeof peer === 'string' || name === own.key) return false;
    const reason = this.#claims.placeConflict(peer);
    if (reason === undefined) this.#claims.place(name, peer);
    else reasons.set(name, reason);
    return reason === undefined;
  }

  #admit({ name, peer }: Entry, reasons: Map<string, string>): void {
    if (typeof peer === 'string') return;
    const reason = this.#claims.subnetConflict(peer);
    if (reason !== undefined) {
      reasons.set(name, reason);
      return;
    }
    this.#claims.take(peer);
    for (const record of peer.records) {
      const first = this.#claims.recordAt(record);
      this.#records.set(first.id, merged(this.#records.get(first.id), record));
    }
  }

  /** The same for what is newer than all the rest, and meets nothing of it; else all is looked at again. */
  #resolveFresh(own: Own): void {
    // One may have come and gone, or changed again.
    const fresh = this.#fresh.filter((entry) => this.#entries.get(entry.name) === entry);
    this.#records = new Map(this.#records);
    const reasons = new Map<string, string>();
    for (const entry of fresh.sort(byAge)) {
      const { name, peer, createRevision } = entry;
      this.#newest = Math.max(this.#newest, createRevision);
      if (typeof peer === 'string') reasons.set(name, peer);
      else if (this.#claims.meets(peer)) {
        this.#resolveAll(own);
        return;
      } else if (this.#settle(entry, own, reasons)) this.#admit(entry, reasons);
    }
    for (const [name, reason] of reasons) if (name !== own.key) this.#skip(name, reason, this.#skipped);
    this.#fresh = [];
  }

  #skip(name: string, reason: string, said: ReadonlySet<string>): void {
    if (!said.has(name)) this.#options.log.warn('lease_skipped', { lease: name, reason });
    this.#skipped.add(name);
  }
}

const byName = (a: Entry, b: Entry): number => (a.name < b.name ? -1 : 1);
/** The order in which they were made. */
const byAge = (a: Entry, b: Entry): number => a.createRevision - b.createRevision || byName(a, b);
/** Who wrote last comes first. */
const byWriting = (a: Entry, b: Entry): number => b.modRevision - a.modRevision || byName(a, b);

/** A peer's records of several leases, as one. */
function merged(first: PeerRecord | undefined, other: PeerRecord): PeerRecord {
  if (!first) return other;
  return makeRecord({ ...first, subnets: [...new Set([...first.subnets, ...other.subnets])] });
}

/** Whose which subnet, address and MAC is. */
class Claims {
  readonly #own: Own | undefined;
  readonly #ours = new PrefixSet();
  readonly #others = new PrefixSet();
  /** By address, and by MAC: the lease that says so, and the MAC or address beside it. */
  readonly #addresses = new Map<string, { readonly name: string; readonly mac: string }>();
  readonly #macs = new Map<string, { readonly name: string; readonly address: string }>();
  /** The first record at an address. */
  readonly #records = new Map<string, PeerRecord>();
  /** Addresses and MACs that more than one lease has. */
  readonly #contested = new Set<string>();

  constructor(own?: Own) {
    this.#own = own;
    for (const subnet of own?.subnets ?? []) this.#ours.add(subnet);
    for (const { text } of own?.addresses ?? []) this.#addresses.set(text, { name: 'this host', mac: 'ours' });
    for (const family of [4, 6] as const) {
      const mac = own?.macs[family];
      if (mac !== undefined) this.#macs.set(macOf(family, mac), { name: 'this host', address: 'ours' });
    }
  }

  isContested(peer: Peer | string): boolean {
    if (typeof peer === 'string') return false;
    return peer.places.some(({ address, mac }) => this.#contested.has(address) || this.#contested.has(mac));
  }

  /** Somebody has one of its addresses or MACs. */
  meets({ places }: Peer): boolean {
    return places.some(({ address, mac }) => this.#addresses.has(address) || this.#macs.has(mac));
  }

  /** Why it cannot be where it says; undefined: it can. */
  placeConflict({ places }: Peer): string | undefined {
    let reason: string | undefined;
    for (const { address, mac } of places) {
      const there = this.#addresses.get(address);
      const same = mac === '' ? undefined : this.#macs.get(mac);
      if (there) this.#contested.add(address);
      if (same) this.#contested.add(mac);
      if (there && there.mac !== mac) reason ??= `${address} is also that of ${there.name}`;
      if (same && same.address !== address) reason ??= `${mac} is also that of ${same.name}`;
    }
    return reason;
  }

  place(name: string, { places }: Peer): void {
    for (const { address, mac } of places) {
      this.#addresses.set(address, { name, mac });
      if (mac !== '') this.#macs.set(mac, { name, address });
    }
  }

  /** Why its subnets cannot be its own; undefined: they can. */
  subnetConflict({ subnets, places }: Peer): string | undefined {
    const ours = subnets.find((one) => this.#ours.overlaps(one));
    if (ours) return `${ours.text} overlaps our own subnet`;
    const others = subnets.find((one) => this.#others.overlaps(one));
    if (others) return `${others.text} overlaps the subnet of an older lease`;
    const inside = this.#own?.subnets.find((subnet) => places.some(({ address }) => isIn(subnet, address)));
    return inside && `its address lies in our own subnet ${inside.text}`;
  }

  take({ subnets }: Peer): void {
    for (const subnet of subnets) this.#others.add(subnet);
  }

  /** The record that this one is merged into: itself, if it is the first at its address. */
  recordAt(record: PeerRecord): PeerRecord {
    const first = this.#records.get(record.address) ?? record;
    this.#records.set(record.address, first);
    return first;
  }
}

const macOf = (family: Family, mac: string): string => `${mac} of IPv${family}`;

function isIn(subnet: Cidr, address: string): boolean {
  const { bytes } = parseAddress(address);
  return contains(subnet, { bytes, length: bytes.length * 8 });
}

const sameRecords = (a: ReadonlyMap<string, PeerRecord>, b: ReadonlyMap<string, PeerRecord>): boolean =>
  a.size === b.size &&
  [...a].every(([id, record]) => {
    const other = b.get(id);
    return other !== undefined && (other === record || sameRecord(other, record));
  });
