/** `weft routes`: which peer has which prefix, and who decides that: weftd's tables or the host's routes. */
import type { KernelRouteEntry, RouteEntry, RoutesAnswer } from '../inspect/protocol.js';
import { endpoint } from './text/format.js';
import type { Colours } from './text/output.js';
import { type Column, table } from './text/table.js';
import { listView, moreLine } from './view.js';

export const routes = listView({
  endpoint: 'routes',
  summary: 'which peer has which prefix of the overlay',
  examples: `
  # weft routes
  # weft routes 10.5.2.7                 those that this address is in; the longest prefix decides
  # weft routes b                        what one peer has
  # weft explain 10.5.2.7                what becomes of a packet, all things considered
`,
  completes: 'peers',
  show: (answer, colours) => routesText(answer, colours),
});

const COLUMNS: readonly Column[] = [
  { title: 'PREFIX' },
  { title: 'PEER' },
  { title: 'ADDRESS' },
  { title: 'MTU', align: 'right' },
  { title: 'BY' },
];

function routesText({ routes, mode, more }: RoutesAnswer, colours: Colours): string {
  if (routes.length === 0) {
    return `no routes${mode === 'l2' ? ': frames of layer 2 go by their MAC (weft macs)' : ''}\n${moreLine(more)}`;
  }
  const rows = routes.map((route) => [
    route.prefix,
    route.peer ?? '(this host)',
    route.address === null ? '' : endpoint(route.address, route.port),
    route.pathMtu === null ? '' : String(route.pathMtu),
    decider(route),
  ]);
  return table(COLUMNS, rows, colours) + moreLine(more);
}

const decider = ({ by, kernel }: RouteEntry): string => (kernel === null ? by : `${by}: ${kernelText(kernel)}`);

const kernelText = ({ via, device, encapsulated }: KernelRouteEntry): string =>
  `via ${via} dev ${device}${encapsulated ? '' : ', not encapsulated'}`;
