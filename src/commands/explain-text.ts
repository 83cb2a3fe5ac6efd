/** `weft explain` for people: one line for each who has a say in it, in the order in which the packet comes to them. */
import type { ExplainedHost, ExplainReport } from './explain.js';
import type { Colours } from './text/output.js';
import { clean } from './text/table.js';

type Line = readonly [label: string, text: string, colour?: keyof Colours];

export function explainText(report: ExplainReport, colours: Colours): string {
  const lines = [...linesOf(report)];
  const width = Math.max(...lines.map(([label]) => label.length));
  return lines
    .map(([label, text, colour]) => {
      const said = clean(text);
      return `${colours.dim(label.padEnd(width))}  ${colour ? colours[colour](said) : said}\n`;
    })
    .join('');
}

function* linesOf(report: ExplainReport): Generator<Line> {
  const { direction, packet, entries, notes, others, counters, depends, shut, host } = report;
  const outbound = direction === 'outbound';
  yield ['packet', `${outbound ? '' : 'from the network: '}${packet.text}`];
  if (outbound) yield* beforeLines(report, host);
  for (const { text } of entries) yield ['table', text];
  yield* peerLines(report);
  for (const note of notes) yield ['note', note, 'yellow'];
  if (shut !== null) yield ['shut', shut, 'red'];
  yield ['verdict', verdictText(report), colourOf(report)];
  for (const { worker, text } of others) yield ['verdict', `but by worker ${worker}: ${text}`, 'yellow'];
  if (!outbound) yield* afterLines(report, host);
  const moved = Object.entries(counters).map(([name, by]) => `${name} +${by}`);
  yield ['counters', moved.join(', ')];
  for (const { counter, when } of depends) yield ['unless', `${counter}: ${when}`];
}

function colourOf({ verdict, shut, host }: ExplainReport): keyof Colours {
  if (verdict === 'dropped' || shut !== null || host?.deviceUp === false) return 'red';
  return host?.toUs === false ? 'yellow' : 'green';
}

/** What the engine does holds only if the packet gets there. */
function verdictText({ text, host, direction, verdict }: ExplainReport): string {
  if (direction === 'inbound' && verdict === 'delivered' && host?.deviceUp === false)
    return `${text}, which is DOWN and refuses it`;
  return host?.toUs === false ? `it does not come to weft, see host; if it did: ${text}` : text;
}

function* beforeLines({ device, packet }: ExplainReport, host: ExplainedHost | null): Generator<Line> {
  if (host === null) {
    yield ['host', 'not asked: this is another network namespace than the daemon is in', 'yellow'];
    return;
  }
  const { route, ownInterface, bridge, deviceUp, neighbour } = host;
  if (!deviceUp) yield ['host', `${device.name} is DOWN: nothing comes from it`, 'red'];
  if (route === null) return;
  const over = `dev ${route.device}${route.via === null ? '' : ` via ${route.via}`}`;
  const itself =
    bridge === null ? '' : `${device.name} is in ${bridge}: what stations send comes by the bridge; the host itself `;
  const own = `keeps it: ${packet.destination} is a local address of this host${inBrackets(ownInterface)}`;
  if (route.kind === 'local') yield ['host', `${itself}${own}`, 'yellow'];
  else if (route.kind === 'refused')
    yield ['host', `${itself}does not route it to us, nor anywhere: ${route.reason}`, 'yellow'];
  else if (route.device === device.name) yield ['host', `routes it to us: ${over}`];
  else if (route.device === bridge) yield ['host', `routes it to us: ${over}, the bridge that ${device.name} is in`];
  else yield ['host', `${itself}does not route it to us: ${over}`, 'yellow'];
  if (neighbour) yield ['host', `has ${neighbour.address} at ${neighbour.mac} (${neighbour.state})`];
}

function* afterLines({ device, packet, verdict }: ExplainReport, host: ExplainedHost | null): Generator<Line> {
  if (host === null) yield ['host', 'not asked: this is another network namespace than the daemon is in', 'yellow'];
  if (!host || verdict !== 'delivered') return;
  const { route, ownInterface, bridge, deviceUp } = host;
  if (!deviceUp) yield ['host', `${device.name} is DOWN: it takes nothing, which is counted as device_refused`, 'red'];
  else if (route === null) {
    if (bridge !== null) yield ['host', `${bridge}, which ${device.name} is in, takes it to ${packet.destinationMac}`];
  } else if (route.kind === 'local')
    yield ['host', `takes it: ${packet.destination} is local${inBrackets(ownInterface)}`];
  else if (route.kind === 'refused') yield ['host', `refuses it: ${route.reason}`, 'red'];
  else yield ['host', `forwards it to ${route.device}${route.via === null ? '' : ` via ${route.via}`}`];
}

const inBrackets = (name: string | null): string => (name === null ? '' : ` (${name})`);

function* peerLines({ peers, morePeers, device, host, direction }: ExplainReport): Generator<Line> {
  for (const { name, address, port, pathMtu, plannedMtu } of peers) {
    const planned = plannedMtu === pathMtu ? '' : ` (${plannedMtu} before the kernel learned of a narrower path)`;
    yield [
      'peer',
      `${name}, ${address.includes(':') ? `[${address}]` : address}:${port}, path MTU ${pathMtu}${planned}`,
    ];
  }
  if (morePeers > 0) yield ['peer', `and ${morePeers} more`];
  const { underlay = null } = host ?? {};
  if (underlay !== null) {
    const over = `dev ${underlay.device}${underlay.via === null ? '' : ` via ${underlay.via}`}, MTU ${underlay.mtu}`;
    const text = underlay.kind === 'device' ? over : `nowhere: ${underlay.reason ?? 'it is a local address'}`;
    yield ['underlay', `the kernel sends to it: ${text}`, underlay.kind === 'device' ? undefined : 'red'] as Line;
  }
  if (direction === 'outbound') yield ['device', `${device.name}, MTU ${device.mtu}`];
}
