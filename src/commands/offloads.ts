/** `weft offloads`: what the kernel does for us in one go. */
import type { OffloadEntry, OffloadsAnswer } from '../inspect/protocol.js';
import type { Colours } from './text/output.js';
import { type Cell, type Column, table } from './text/table.js';
import { view } from './view.js';

export const offloads = view({
  endpoint: 'offloads',
  summary: 'which offloads are in use; without them throughput is a fraction',
  examples: `
  # weft offloads
  # weftd … --offload off                without them, to find out whether one is to blame
`,
  show: (answer, colours) => offloadsText(answer, colours),
});

const COLUMNS: readonly Column[] = [{ title: 'OFFLOAD' }, { title: 'STATE' }, { title: 'MEANING' }];

function offloadsText({ offloads, maxSegments }: OffloadsAnswer, colours: Colours): string {
  const rows = offloads.map((one) => [one.name, stateOf(one), one.meaning]);
  return `${table(COLUMNS, rows, colours)}\nAt most ${maxSegments} datagrams in one message to the socket.\n`;
}

function stateOf({ wanted, granted, refused, inUse, device }: OffloadEntry): Cell {
  if (device === false) return ['SWITCHED OFF at the device (ethtool -K)', 'red'];
  if (inUse) return ['in use', 'green'];
  if (!wanted) return 'not wanted (--offload)';
  if (refused) return ['refused by the kernel at run time', 'red'];
  return granted ? ['off', 'yellow'] : ['not in this kernel', 'yellow'];
}
