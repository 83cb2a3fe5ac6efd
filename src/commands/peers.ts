/** `weft peers`: who is there, how large packets to them may be, and what went there. */
import type { PeerEntry, PeersAnswer } from '../inspect/protocol.js';
import { bytes, count, endpoint } from './text/format.js';
import type { Colours } from './text/output.js';
import { type Cell, type Column, table } from './text/table.js';
import { listView, moreLine } from './view.js';

export const peers = listView({
  endpoint: 'peers',
  summary: 'the other hosts: where they are, path MTU, traffic, and what is behind them',
  description: 'MTU is what an inner packet may have; "1400 of 1472": the kernel learned of a narrower path.',
  examples: `
  # weft peers
  # weft peers b                         one of them
  # weft peers 10.5.2.7                  the one that has this address
  # weft peers -j | jq -r '.peers[] | select(.packetsIn == 0) | .name'
`,
  completes: 'peers',
  show: (answer, colours) => peersText(answer, colours),
});

function peersText({ peers, mode, more }: PeersAnswer, colours: Colours): string {
  if (peers.length === 0) return `no peers\n${moreLine(more)}`;
  const l2 = mode === 'l2';
  const behind = [
    { title: 'SUBNETS', of: ({ subnets }: PeerEntry) => subnets },
    { title: 'STATIC MACS', of: ({ macs }: PeerEntry) => macs },
  ].filter(({ of }) => peers.some((peer) => of(peer).length > 0));
  const columns: Column[] = [
    { title: 'PEER' },
    { title: 'ADDRESS' },
    ...(l2 ? [{ title: 'VNI', align: 'right' } as const] : []),
    { title: 'MTU', align: 'right' },
    { title: 'OUT', align: 'right' },
    { title: '', align: 'right' },
    { title: 'IN', align: 'right' },
    { title: '', align: 'right' },
    ...behind,
  ];
  const rows = peers.map((peer) => [
    peer.name,
    endpoint(peer.address, peer.port),
    ...(l2 ? [String(peer.vni ?? '')] : []),
    mtuCell(peer),
    count(peer.packetsOut),
    bytes(peer.bytesOut),
    count(peer.packetsIn),
    bytes(peer.bytesIn),
    ...behind.map(({ of }) => of(peer).join(' ')),
  ]);
  return table(columns, rows, colours) + moreLine(more);
}

const mtuCell = ({ pathMtu, plannedMtu }: PeerEntry): Cell =>
  pathMtu < plannedMtu ? [`${pathMtu} of ${plannedMtu}`, 'yellow'] : String(pathMtu);
