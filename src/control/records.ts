/**
 * Peer records as registries tell them, and the reducer where snapshots and events meet.
 *
 * A record is plain data in canonical form, so that two records mean the same exactly when all their fields are equal. The
 * whole record is compared, never a part: what is not compared is a change that nobody notices.
 */
import { parseCidr, parseHostAddress } from './cidr.js';
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
  /** It is weft too: the inner ECN field is copied outside (RFC 6040). */
  readonly ecn: boolean;
}

/** The same as a registry may find it, not yet checked. */
export type PeerFields = Omit<PeerRecord, 'underlayMtu'> & { readonly underlayMtu?: number | undefined };

/** Makes a record canonical. Throws a RangeError that names the peer and what is wrong with it. */
export function makeRecord(fields: PeerFields): PeerRecord {
  try {
    const subnets = fields.subnets.map((text) => parseCidr(text).text).sort();
    const twice = subnets.find((text, i) => text === subnets[i + 1]);
    if (twice !== undefined) throw new RangeError(`subnet ${twice} is listed twice`);
    return {
      id: fields.id,
      name: fields.name,
      address: parseHostAddress(fields.address).text,
      port: fields.port,
      subnets,
      underlayMtu: fields.underlayMtu,
      ecn: fields.ecn,
    };
  } catch (error) {
    throw error instanceof RangeError ? new RangeError(`peer ${fields.name}: ${error.message}`) : error;
  }
}

/** True when nothing differs. */
export function sameRecord(a: PeerRecord, b: PeerRecord): boolean {
  return (
    a.id === b.id &&
    a.name === b.name &&
    a.address === b.address &&
    a.port === b.port &&
    a.underlayMtu === b.underlayMtu &&
    a.ecn === b.ecn &&
    a.subnets.length === b.subnets.length &&
    a.subnets.every((subnet, i) => subnet === b.subnets[i])
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
