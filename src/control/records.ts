/**
 * Peer records as registries tell them, and the reducer where snapshots and events meet.
 *
 * A record is plain data in canonical form, so that two records mean the same exactly when all their fields are equal. The
 * whole record is compared, never a part: what is not compared is a change that nobody notices.
 */
import { VNI_MOST } from '../packet/vxlan.js';
import { parseCidr, parseHostAddress, parseNeighbourAddress } from './cidr.js';
import { parseMac } from './mac.js';
import type { RegistryUpdate } from './registry.js';

export interface PeerRecord {
  /** What the registry knows the record by; unique in it. */
  readonly id: string;
  /** For people and metrics. */
  readonly name: string;
  /** Underlay address, canonical text. */
  readonly address: string;
  readonly port: number;
  /** Prefixes that it owns: canonical text, sorted, each once. */
  readonly subnets: readonly string[];
  /** Bytes that the underlay carries to it in one packet; undefined: what our interface carries. */
  readonly underlayMtu: number | undefined;
  /** It does as RFC 6040 says: the inner ECN field is copied outside. */
  readonly ecn: boolean;
  /** Layer 2: the networks that it is in, sorted, each once; empty: all of ours. */
  readonly vnis: readonly number[];
  /** Layer 2: stations behind it, sorted. */
  readonly macs: readonly StationMac[];
  /** Layer 2: whose IP addresses are known; their MACs are stations behind it too. Sorted. */
  readonly neighbours: readonly StationAddress[];
}

export interface StationMac {
  /** undefined: in each network of the peer. */
  readonly vni?: number | undefined;
  /** Canonical text. */
  readonly mac: string;
}

export interface StationAddress extends StationMac {
  /** IP address: canonical text. */
  readonly address: string;
  /** It forwards packets (the R flag of RFC 4861). */
  readonly router: boolean;
}

type Layer2Field = 'vnis' | 'macs' | 'neighbours';

/** The same as a registry may find it, not yet checked. */
export type PeerFields = Omit<PeerRecord, 'underlayMtu' | Layer2Field> & {
  readonly [K in Layer2Field | 'underlayMtu']?: PeerRecord[K] | undefined;
};

/** Makes a record canonical. Throws a RangeError that names the peer and what is wrong with it. */
export function makeRecord(fields: PeerFields): PeerRecord {
  try {
    const subnets = fields.subnets.map((text) => parseCidr(text).text).sort();
    const twice = subnets.find((text, i) => text === subnets[i + 1]);
    if (twice !== undefined) throw new RangeError(`subnet ${twice} is listed twice`);
    const vnis = [...(fields.vnis ?? [])].sort((a, b) => a - b);
    for (const [i, vni] of vnis.entries()) {
      if (!Number.isInteger(vni) || vni < 0 || vni > VNI_MOST) throw new RangeError(`${vni} is not a VNI`);
      if (vni === vnis[i + 1]) throw new RangeError(`VNI ${vni} is listed twice`);
    }
    const vniOf = ({ vni }: StationMac, what: string): number | undefined => {
      if (vni === undefined || vnis.length === 0 || vnis.includes(vni)) return vni;
      throw new RangeError(`${what} is of VNI ${vni}, which is not among its own, ${vnis.join(', ')}`);
    };
    const macs = (fields.macs ?? []).map((station): StationMac => {
      const mac = parseMac(station.mac).text;
      return { vni: vniOf(station, `MAC ${mac}`), mac };
    });
    const neighbours = (fields.neighbours ?? []).map((station): StationAddress => {
      const address = parseNeighbourAddress(station.address).text;
      const vni = vniOf(station, `neighbour ${address}`);
      return { vni, address, mac: parseMac(station.mac).text, router: station.router };
    });
    return {
      id: fields.id,
      name: fields.name,
      address: parseHostAddress(fields.address).text,
      port: fields.port,
      subnets,
      underlayMtu: fields.underlayMtu,
      ecn: fields.ecn,
      vnis,
      macs: sortedBy(keyOfMac, macs),
      neighbours: sortedBy(keyOfAddress, neighbours),
    };
  } catch (error) {
    throw error instanceof RangeError ? new RangeError(`peer ${fields.name}: ${error.message}`) : error;
  }
}

// What two lists are sorted and compared by: all of an entry.

const keyOfMac = ({ vni, mac }: StationMac): string => `${vni ?? 'all'} ${mac}`;
const keyOfAddress = ({ vni, address, mac, router }: StationAddress): string =>
  `${vni ?? 'all'} ${address} ${mac} ${router}`;

const sortedBy = <T>(key: (item: T) => string, items: T[]): T[] =>
  items.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));

const sameList = <T>(a: readonly T[], b: readonly T[], key: (item: T) => string): boolean =>
  a.length === b.length && a.every((item, i) => key(item) === key(b[i]));

/** True when nothing differs. */
export function sameRecord(a: PeerRecord, b: PeerRecord): boolean {
  return (
    a.id === b.id &&
    a.name === b.name &&
    a.address === b.address &&
    a.port === b.port &&
    a.underlayMtu === b.underlayMtu &&
    a.ecn === b.ecn &&
    sameList(a.subnets, b.subnets, String) &&
    sameList(a.vnis, b.vnis, String) &&
    sameList(a.macs, b.macs, keyOfMac) &&
    sameList(a.neighbours, b.neighbours, keyOfAddress)
  );
}

/** Records by id. */
export type Records = ReadonlyMap<string, PeerRecord>;

/**
 * The records after an update. Gives back the very map it got when nothing changed, so that a renewal costs no more than
 * this comparison; otherwise a new one, unchanged records in it by identity.
 */
export function reduceRecords(records: Records, update: RegistryUpdate): Records {
  if (update.kind === 'trouble') return records;
  const next = update.kind === 'snapshot' ? new Map<string, PeerRecord>() : new Map(records);
  let changed = false;
  const put = (record: PeerRecord): void => {
    const known = next.get(record.id) ?? records.get(record.id);
    const same = known !== undefined && sameRecord(known, record);
    if (!same) changed = true;
    next.set(record.id, same ? known : record);
  };
  if (update.kind === 'snapshot') {
    update.records.forEach(put);
    if (next.size !== records.size) changed = true;
  } else {
    for (const event of update.events) {
      if (event.type === 'put') put(event.record);
      else if (next.delete(event.id)) changed = true;
    }
  }
  return changed ? next : records;
}
