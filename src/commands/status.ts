/** `weft status`: how the daemon is, on one screen. */
import type { DaemonState, DeviceStatus, LinkState, StatusAnswer } from '../inspect/protocol.js';
import { bytes, count, duration, plural, shortTime, since } from './text/format.js';
import type { Colours } from './text/output.js';
import { clean } from './text/table.js';
import { view } from './view.js';

export const status = view({
  endpoint: 'status',
  summary: 'how the daemon is: devices, underlay, lease, peers, traffic',
  examples: `
  # weft status
  # ip netns exec a weft status          the daemon of another network namespace
  # weft status -j | jq -r .state        waiting, starting, forwarding, shut or stopping
`,
  show: (answer, colours) => statusText(answer, colours),
});

const COLOUR: Readonly<Record<DaemonState, keyof Colours>> = {
  waiting: 'yellow',
  starting: 'yellow',
  forwarding: 'green',
  shut: 'red',
  stopping: 'yellow',
};

type Line = readonly [label: string, text: string];

export function statusText(answer: StatusAnswer, colours: Colours, now = Date.now()): string {
  const { state, version, pid, uptimeSeconds, text, problem, troubles } = answer;
  const well = state !== 'forwarding' || (problem === null && troubles.length === 0);
  const said = colours[well ? COLOUR[state] : 'yellow'](clean(well ? text : `forwarding, but ${text}`));
  const head = `${colours.bold('weftd')} ${clean(version)}, pid ${pid}, up ${duration(uptimeSeconds)}: ${said}\n`;
  const lines = [
    ...problems(answer, now),
    ...places(answer),
    ...control(answer, now),
    ...amounts(answer),
    ...settings(answer, now),
  ];
  const width = Math.max(...lines.map(([label]) => label.length));
  return head + lines.map(([label, said]) => `  ${colours.dim(label.padEnd(width))}  ${clean(said)}\n`).join('');
}

/** What is not as it should be, and is not said yet. */
function* problems({ problem, staleSince, troubles }: StatusAnswer, now: number): Generator<Line> {
  if (problem !== null && staleSince !== null) yield ['stale', `for ${since(staleSince, now)}: ${problem}`];
  for (const trouble of problem === null ? troubles.slice(1) : troubles) yield ['trouble', trouble];
}

function* places({ mode, backend, devices, underlay, networks, subnets }: StatusAnswer): Generator<Line> {
  if (mode !== null) yield ['mode', `layer ${mode === 'l3' ? 3 : 2}${backend === null ? '' : `, ${backend}`}`];
  for (const device of devices) yield ['device', deviceText(device)];
  if (underlay) {
    const { interface: name, mtu, link, addresses, publicAddresses, port } = underlay;
    const told = publicAddresses.filter((address) => !addresses.includes(address));
    const parts = [name, mtuAndLink(mtu, link), ...addresses];
    if (told.length > 0) parts.push(`public ${told.join(', ')}`);
    if (port !== null) parts.push(`UDP port ${port}`);
    yield ['underlay', parts.join(', ')];
  }
  if (networks.length > 0) yield ['networks', networks.join(', ')];
  if (subnets.length > 0) yield ['subnets', `${subnets.join(', ')} (ours)`];
}

function deviceText({ name, vni, bridge, mtu, addresses, link }: DeviceStatus): string {
  const parts = [name, mtuAndLink(mtu, link)];
  if (vni !== null) parts.push(`VNI ${vni}`);
  if (bridge !== null) parts.push(bridgeText(bridge, link));
  return [...parts, ...addresses].join(', ');
}

const bridgeText = (bridge: string, link: LinkState | null): string =>
  link === null || link.bridge === bridge
    ? `in bridge ${bridge}`
    : `NOT IN BRIDGE ${bridge}${link.bridge === null ? '' : ` (IN ${link.bridge})`}`;

/** What is not so as weftd set it up is in capitals. */
function mtuAndLink(mtu: number, link: LinkState | null): string {
  if (link === null) return 'IS GONE';
  const changed = link.mtu === mtu ? '' : ` (NOW ${link.mtu})`;
  return `${link.up ? 'up' : 'DOWN'}, mtu ${mtu}${changed}`;
}

function* control({ registry, lease }: StatusAnswer, now: number): Generator<Line> {
  const { kind, name, lastEvent, updates, failures } = registry;
  const parts = [
    name?.replace(/^registry /, '') ?? kind,
    lastEvent === null ? 'nothing heard yet' : `last heard ${since(lastEvent, now)} ago`,
  ];
  yield [
    'registry',
    [...parts, plural(updates, 'update'), ...(failures > 0 ? [`${count(failures)} failed`] : [])].join(', '),
  ];
  if (lease) {
    const left = lease.secondsLeft === null ? '' : `, ${duration(lease.secondsLeft)} left`;
    yield ['lease', `${lease.how}${left}${lease.forwards ? '' : ', ENDED: nothing is forwarded'}`];
  }
}

function* amounts({ peers, routes, macs, neighbours, mode, traffic, workers, backend }: StatusAnswer): Generator<Line> {
  if (mode === null) return; // it is not known yet what there will be
  const tables = [plural(peers, 'peer')];
  if (mode === 'l3' || routes > 0) tables.push(plural(routes, 'route'));
  if (mode === 'l2') tables.push(plural(macs, 'MAC'), plural(neighbours, 'neighbour'));
  yield ['tables', tables.join(', ')];
  const { wanted, running, restarts, longestGapSeconds: gap } = workers;
  if (wanted === 0) return yield ['packets', `are the kernel's: ${backend ?? 'this backend'} encapsulates nothing`];
  const { packetsOut, bytesOut, packetsIn, bytesIn, drops, kernelDrops } = traffic;
  yield ['out', `${plural(packetsOut, 'packet')}, ${bytes(bytesOut)}`];
  yield ['in', `${plural(packetsIn, 'packet')}, ${bytes(bytesIn)}`];
  const why = drops + kernelDrops > 0 ? ' (weft drops)' : '';
  yield ['dropped', `${count(drops)} by weftd, ${count(kernelDrops)} by the kernel${why}`];
  const again = restarts > 0 ? `, ${plural(restarts, 'restart')}` : '';
  const waited = gap > 0 ? `, a packet waited ${shortTime(gap)} at most` : '';
  yield ['workers', `${running} of ${wanted} running${again}${waited}`];
}

function* settings(
  { workers, offloads, capture, logLevel, metrics, residentBytes }: StatusAnswer,
  now: number,
): Generator<Line> {
  if (workers.wanted > 0) yield ['offloads', offloads.join(', ') || 'none'];
  if (capture) {
    const { since: begun, captured, lost } = capture;
    yield ['capture', `for ${since(begun, now)}: ${count(captured)} captured, ${count(lost)} lost`];
  }
  yield ['log level', logLevel];
  if (metrics !== null) yield ['metrics', `http://${metrics}/metrics`];
  yield ['memory', bytes(residentBytes)];
}
