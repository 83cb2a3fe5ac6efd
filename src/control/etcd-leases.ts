/**
 * All leases of a flannel network as etcd has them, and the peers that they come to.
 *
 * A lease is used whole or not at all. One that does not parse, is of another backend, or cannot be true together with another
 * (one subnet, address or MAC twice) is passed over, and said once; of two, the one that was made first holds, and against
 * this host's own nobody's. So whatever is in etcd, what comes out is a set of records that a plan can be made of.
 */
import type { Address, Cidr } from './cidr.js';
import { contains } from './cidr.js';
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
  readonly value: string;
  /** Or why there is none. */
  readonly peer: Peer | string;
}

/** A lease as others use it. */
interface Peer {
  readonly subnets: readonly Cidr[];
  /** Addresses and MACs: what nobody else may have. */
  readonly claims: readonly string[];
  readonly records: readonly PeerRecord[];
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
  #put({ key, value, createRevision }: KeyValue, before: Entry | undefined): void {
    const name = this.#nameOf(key);
    if (before?.value === value && before.createRevision === createRevision) {
      this.#entries.set(name, before);
      return;
    }
    const entry = { name, createRevision, value, peer: this.#read(name, value) };
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
    if (backend.type === 'alloc') return { subnets, claims: [], records: [] };
    const port = 'port' in backend ? backend.port : 0;
    const addressOf = (family: Family): Address => {
      const address = family === 4 ? lease.publicIp : lease.publicIpv6;
      if (!address) throw new RangeError(`no public IPv${family} address`);
      const { bytes, text } = address;
      const within = pools.find(({ network }) => contains(network, { bytes, length: bytes.length * 8 }));
      if (within) throw new RangeError(`its address ${text} lies in the network ${within.network.text}`);
      if (!families.includes(family)) throw new RangeError(`${text} is IPv${family}, of which our underlay has none`);
      return address;
    };
    if (backend.type === 'udp') {
      const address = addressOf(pools[0].family).text;
      const texts = subnets.map(({ text }) => text);
      const record = makeRecord({ id: name, name, address, port, subnets: texts, ecn: false });
      return { subnets, claims: [address], records: [record] };
    }
    const claims: string[] = [];
    const records = subnets.map((subnet) => {
      const { family, text } = subnet;
      const address = addressOf(family).text;
      const mac = lease.macs[family];
      if (backend.type === 'vxlan' && mac === undefined) throw new RangeError(`no VtepMAC for IPv${family}`);
      claims.push(address, ...(mac === undefined ? [] : [claimOf(family, mac)]));
      const id = text.replace('/', '-');
      const macs = mac === undefined ? [] : [{ mac }];
      return makeRecord({ id, name: id, address, port, subnets: [text], macs, ecn: backend.type === 'vxlan' });
    });
    return { subnets, claims, records };
  }

  /** The oldest first. */
  #resolveAll(own: Own): void {
    this.#own = own;
    this.#claims = new Claims(own);
    this.#newest = 0;
    const before = { records: this.#records, skipped: this.#skipped };
    this.#records = new Map();
    this.#skipped = new Set();
    this.#resolve([...this.#entries.values()], own, before.skipped);
    this.#dirty = false;
    if (sameRecords(this.#records, before.records)) this.#records = before.records;
  }

  #resolveFresh(own: Own): void {
    // One may have come and gone, or changed again.
    const fresh = this.#fresh.filter((entry) => this.#entries.get(entry.name) === entry);
    this.#records = new Map(this.#records);
    this.#resolve(fresh, own, this.#skipped);
  }

  /** `said`: leases that are known to be passed over. */
  #resolve(entries: Entry[], own: Own, said: ReadonlySet<string>): void {
    for (const { name, createRevision, peer } of entries.sort(byAge)) {
      this.#newest = Math.max(this.#newest, createRevision);
      if (name === own.key) continue;
      const reason = typeof peer === 'string' ? peer : this.#claims.conflictOf(peer);
      if (typeof peer === 'string' || reason !== undefined) {
        if (!said.has(name)) this.#options.log.warn('lease_skipped', { lease: name, reason });
        this.#skipped.add(name);
        continue;
      }
      this.#claims.add(name, peer);
      for (const record of peer.records) this.#records.set(record.id, record);
    }
    this.#fresh = [];
  }
}

/** The order in which they were made. */
const byAge = (a: Entry, b: Entry): number => a.createRevision - b.createRevision || (a.name < b.name ? -1 : 1);

/** What one host has, and no other can have. */
class Claims {
  readonly #ours = new PrefixSet();
  readonly #others = new PrefixSet();
  /** Whose an address or MAC is. */
  readonly #holders = new Map<string, string>();

  constructor(own?: Own) {
    for (const subnet of own?.subnets ?? []) this.#ours.add(subnet);
    for (const { text } of own?.addresses ?? []) this.#holders.set(text, 'this host');
    for (const family of [4, 6] as const) {
      const mac = own?.macs[family];
      if (mac !== undefined) this.#holders.set(claimOf(family, mac), 'this host');
    }
  }

  add(name: string, { subnets, claims }: Peer): void {
    for (const subnet of subnets) this.#others.add(subnet);
    for (const claim of claims) this.#holders.set(claim, name);
  }

  /** Why this one cannot be true as well; undefined: it can. */
  conflictOf({ subnets, claims }: Peer): string | undefined {
    const ours = subnets.find((one) => this.#ours.overlaps(one));
    if (ours) return `${ours.text} overlaps our own subnet`;
    const others = subnets.find((one) => this.#others.overlaps(one));
    if (others) return `${others.text} overlaps the subnet of an older lease`;
    const claim = claims.find((one) => this.#holders.has(one));
    return claim === undefined ? undefined : `${claim} is also that of ${this.#holders.get(claim)}`;
  }
}

/** MACs are of a device, and there is one for each family. */
const claimOf = (family: Family, mac: string): string => `${mac} of IPv${family}`;

const sameRecords = (a: ReadonlyMap<string, PeerRecord>, b: ReadonlyMap<string, PeerRecord>): boolean =>
  a.size === b.size &&
  [...a].every(([id, record]) => {
    const other = b.get(id);
    return other !== undefined && (other === record || sameRecord(other, record));
  });
