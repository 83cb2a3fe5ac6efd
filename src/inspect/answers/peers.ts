/** /v1/peers: whom we send to, how, and how much. */
import { LINK_HEADER } from '../../control/encapsulation.js';
import type { PeerRecord, Records } from '../../control/records.js';
import type { Inspected, PeerInTables, Running } from '../inspected.js';
import { peersOf } from '../inspected.js';
import { MOST_ENTRIES, type PeerEntry, type PeersAnswer } from '../protocol.js';
import { pathMtuOf, trafficOf } from './peer-memory.js';

export function peersAnswer(inspected: Inspected): PeersAnswer {
  const running = inspected.needRunning();
  const { mode } = running.overlay;
  const all = [...peersOf(running)].sort(byName);
  const records = byAddress(running.records());
  const prefixes = prefixesOf(running);
  const peers = all.slice(0, MOST_ENTRIES).map((peer): PeerEntry => {
    const record = records.get(peer.address);
    const { name, address, port, ecn, ref } = peer;
    return {
      name,
      address,
      port,
      vni: vniOf(running, peer.network),
      ...mtusOf(running, peer),
      ecn,
      subnets: prefixes.get(peer.key) ?? record?.subnets ?? [],
      macs: record?.macs.map(({ mac }) => mac) ?? [],
      ...trafficOf(running.dataplane.memory, [ref]),
      ref,
    };
  });
  return { mode, peers, more: all.length - peers.length };
}

const byName = (a: PeerInTables, b: PeerInTables): number =>
  a.name < b.name ? -1 : a.name > b.name ? 1 : a.network - b.network;

/** null in layer 3. */
export const vniOf = ({ overlay }: Running, network: number): number | null => overlay.segments[network]?.vni ?? null;

/** The peers' records, by underlay address, which only one of them has. */
export const byAddress = (records: Records): Map<string, PeerRecord> =>
  new Map(Array.from(records.values(), (record) => [record.address, record]));

/** Largest inner IP packet towards a peer: in force, and planned. */
export function mtusOf(
  { overlay, underlay, dataplane }: Running,
  peer: PeerInTables,
): { pathMtu: number; plannedMtu: number } {
  // What nobody encapsulates has the whole of the underlay.
  if (overlay.workers === 0) return { pathMtu: underlay.mtu, plannedMtu: underlay.mtu };
  const header = LINK_HEADER[overlay.mode];
  return { pathMtu: pathMtuOf(dataplane.memory, peer.ref) - header, plannedMtu: peer.mtu - header };
}

/** By peer's key: the prefixes that our own tables send to it, as text; none in layer 2. */
export function prefixesOf({ applier }: Running): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const { peer, prefix } of applier.have.routes.values()) {
    const known = found.get(peer);
    if (known) known.push(prefix.text);
    else found.set(peer, [prefix.text]);
  }
  return found;
}
