/** `weft macs`: layer 2, which MAC address is behind which peer. */
import type { MacEntry, MacsAnswer } from '../inspect/protocol.js';
import { duration, inOrder } from './text/format.js';
import type { Colours } from './text/output.js';
import { type Column, table } from './text/table.js';
import { listView, moreLine } from './view.js';

/** Ours first, then by peer. */
const byPlace = (a: MacEntry, b: MacEntry): number =>
  a.vni - b.vni || inOrder(a.peer ?? '', b.peer ?? '') || inOrder(a.mac, b.mac);

export const macs = listView({
  endpoint: 'macs',
  summary: 'layer 2: which MAC is behind which peer, and since when',
  examples: `
  # weft macs
  # weft macs 02:00:00:00:00:05          where one station is
  # weft macs b                          who is behind one peer
  # weft macs -j | jq '.macs | length'
`,
  completes: 'peers',
  order: byPlace,
  show: (answer, colours) => macsText(answer, colours),
});

const COLUMNS: readonly Column[] = [
  { title: 'VNI', align: 'right' },
  { title: 'MAC' },
  { title: 'BEHIND' },
  { title: 'ORIGIN' },
  { title: 'LAST SEEN', align: 'right' },
];

function macsText({ macs, mode, more }: MacsAnswer, colours: Colours): string {
  if (macs.length === 0) {
    return `no MACs${mode === 'l3' ? ': packets of layer 3 go by their address (weft routes)' : ''}\n${moreLine(more)}`;
  }
  const rows = macs.map(({ vni, mac, peer, origin, ageSeconds }) => [
    String(vni),
    mac,
    peer ?? '(this host)',
    origin,
    ageText(ageSeconds),
  ]);
  return table(COLUMNS, rows, colours) + moreLine(more);
}

export const ageText = (seconds: number | null): string => (seconds === null ? '' : `${duration(seconds)} ago`);
