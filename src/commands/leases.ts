/** `weft leases`: who has what in the registry, ours among them. */
import type { LeasesAnswer } from '../inspect/protocol.js';
import { duration, endpoint } from './text/format.js';
import type { Colours } from './text/output.js';
import { type Cell, type Column, table } from './text/table.js';
import { listView, moreLine } from './view.js';

export const leases = listView({
  endpoint: 'leases',
  summary: 'the registry: which host has which subnet, and how long ours lasts',
  description: 'What the registry told last. A lease that is not in force is not in our tables: weft status says why.',
  examples: `
  # weft leases
  # weft leases 10.5.2.0/24              who has a subnet
  # weft leases -j | jq .own.secondsLeft
`,
  completes: 'peers',
  show: (answer, colours) => leasesText(answer, colours),
});

function leasesText({ own, leases, more }: LeasesAnswer, colours: Colours): string {
  const ours = own === null ? 'ours: this registry gives no leases\n' : ownText(own, colours);
  if (leases.length === 0) return `${ours}no leases\n${moreLine(more)}`;
  const l2 = leases.some(({ vnis }) => vnis.length > 0);
  const columns: Column[] = [
    { title: 'HOST' },
    { title: 'ADDRESS' },
    { title: 'SUBNETS' },
    ...(l2 ? [{ title: 'VNI' }] : []),
    { title: 'STATE' },
  ];
  const rows = leases.map(({ name, address, port, subnets, vnis, ours: mine, inForce }) => [
    name,
    endpoint(address, port),
    subnets.join(' '),
    ...(l2 ? [vnis.join(' ')] : []),
    mine ? 'ours' : inForce ? 'in force' : (['NOT IN FORCE', 'red'] as Cell),
  ]);
  return `${ours}\n${table(columns, rows, colours)}${moreLine(more)}`;
}

function ownText({ subnets, how, secondsLeft, forwards }: NonNullable<LeasesAnswer['own']>, colours: Colours): string {
  const what = subnets.length > 0 ? subnets.join(' ') : 'a place among the hosts';
  const left = secondsLeft === null ? '' : `, ${duration(secondsLeft)} left`;
  const state = forwards ? '' : colours.red(', ENDED: nothing is forwarded');
  return `ours: ${what} (${how}${left})${state}\n`;
}
