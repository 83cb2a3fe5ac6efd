/** `weft neighbours`: layer 2, the addresses for which ARP and neighbour discovery are answered here. */
import type { NeighbourEntry, NeighboursAnswer } from '../inspect/protocol.js';
import { ageText } from './macs.js';
import { inOrder } from './text/format.js';
import type { Colours } from './text/output.js';
import { type Column, table } from './text/table.js';
import { listView, moreLine } from './view.js';

const byAddress = (a: NeighbourEntry, b: NeighbourEntry): number => a.vni - b.vni || inOrder(a.address, b.address);

export const neighbours = listView({
  endpoint: 'neighbours',
  summary: 'layer 2: addresses whose MAC is known, for which ARP and ND are answered here',
  examples: `
  # weft neighbours
  # weft neighbours 10.7.0.6             one address
  # weft neighbours 10.7.0.0/24          those in a prefix
`,
  order: byAddress,
  show: (answer, colours) => neighboursText(answer, colours),
});

function neighboursText({ neighbours, mode, more }: NeighboursAnswer, colours: Colours): string {
  if (neighbours.length === 0) {
    return `no neighbours${mode === 'l3' ? ': layer 3 has none (weft routes)' : ''}\n${moreLine(more)}`;
  }
  const tagged = neighbours.some(({ vlans = [] }) => vlans.length > 0);
  const columns: Column[] = [
    { title: 'VNI', align: 'right' },
    ...(tagged ? [{ title: 'VLAN' }] : []),
    { title: 'ADDRESS' },
    { title: 'MAC' },
    { title: 'BEHIND' },
    { title: 'ORIGIN' },
    { title: 'LAST SEEN', align: 'right' },
    { title: '' },
  ];
  const rows = neighbours.map(({ vni, vlans = [], address, mac, peer, origin, ageSeconds, router }) => [
    String(vni),
    ...(tagged ? [vlans.join('.')] : []),
    address,
    mac,
    peer ?? '(this host)',
    origin,
    ageText(ageSeconds),
    router === true ? 'router' : '',
  ]);
  return table(columns, rows, colours) + moreLine(more);
}
