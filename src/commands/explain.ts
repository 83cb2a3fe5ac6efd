/**
 * `weft explain`: what becomes of a packet, and why. The daemon tells what its engine would do with it; what the kernel does with it
 * before and after is asked here, if this is the daemon's network namespace.
 */
import type { Command } from 'commander';
import { networkNamespace } from '../host/network-namespace.js';
import type { ExplainAnswer, ExplainQuestion } from '../inspect/explain-answer.js';
import { UsageError } from '../option.js';
import type { WeftCommand } from './command.js';
import type { DaemonClient } from './daemon/client.js';
import {
  type HostRoute,
  interfaceOf,
  isForHost,
  type Link,
  neighbourOf,
  readLinks,
  routeFrom,
  routeTo,
} from './explain-host.js';
import { explainText } from './explain-text.js';
import { wholeNumber } from './text/arguments.js';

interface Options extends Omit<ExplainQuestion, 'to' | 'df'> {
  readonly df?: boolean;
}

/** What the kernel says. */
export interface ExplainedHost {
  /** Outbound: how it sends to the packet's destination; inbound: what it does with what our device hands over. */
  readonly route: HostRoute | null;
  /** It takes the packet to us; null: that cannot be said. */
  readonly toUs: boolean | null;
  /** The interface that has the destination, if that is the host's own. */
  readonly ownInterface: string | null;
  /** The bridge that our device is in. */
  readonly bridge: string | null;
  readonly deviceUp: boolean;
  /** Layer 2: the next hop's MAC, as the host has it. */
  readonly neighbour: { readonly address: string; readonly mac: string; readonly state: string } | null;
  /** How it sends to the peer in the underlay. */
  readonly underlay: HostRoute | null;
}

export interface ExplainReport extends ExplainAnswer {
  /** null: this is not the daemon's network namespace. */
  readonly host: ExplainedHost | null;
}

const number =
  (least: number, most: number) =>
  (text: string): number =>
    wholeNumber(text, least, most);

export const explain: WeftCommand<Options> = {
  name: 'explain',
  summary: 'what becomes of a packet, and why',
  description:
    'Nothing is sent: the engine of the running daemon is run dry, on its tables as they are. Without --in the packet comes from this host, with it from the network.',
  examples: `
  # weft explain 10.5.2.7                     to an address behind a peer
  # weft explain b --size 1500 --df           does a large packet get to peer b?
  # weft explain 02:00:00:00:00:05            layer 2: to a station
  # weft explain 10.7.0.5 --proto arp         layer 2: who answers when the host asks for it?
  # weft explain 10.5.1.2 --in b              what comes from peer b, and what the host does with it
  # weft explain --in 192.0.2.9               what comes from an address in the underlay
  # weft explain 10.5.2.7 -j | jq -r .reason  the counter of the drop; null: it is not dropped
`,
  completes: 'peers',
  optionValues: { '--in': 'peers', '--proto': ['icmp', 'udp', 'tcp', 'arp'] },
  define,
  run: async ({ args, options, json, out, daemon }) => {
    if (args.length === 0 && options.in === undefined && options.packet === undefined) {
      throw new UsageError(
        'what is to be explained? weft explain ADDRESS, MAC or PEER; weft explain --help lists more',
      );
    }
    const report = await reportOf(await daemon(), args.at(0), options);
    if (json) out.json(report);
    else out.print(explainText(report, out.colours));
  },
};

function define(command: Command): void {
  command
    .argument('[to]', 'an address, a MAC (layer 2), or a peer')
    .option('--from <source>', 'an address or a MAC (default: ours; with --in, one of that peer)')
    .option('--in <peer>', 'it comes in, from this peer or underlay address')
    .option('--size <bytes>', 'of the IP packet (default: 84)', number(1, 65_535))
    .option('--df', 'it may not be fragmented')
    .option('--ttl <n>', 'TTL or hop limit (default: 64)', number(0, 255))
    .option('--proto <name>', 'icmp, udp, tcp, arp (IPv6: a neighbour solicitation) or a number (default: icmp)')
    .option('--tos <n>', 'with --in: the outer TOS byte', number(0, 255))
    .option('--vni <n>', 'layer 2: in which network', number(0, 0xffffff))
    .option('--mac <mac>', "layer 2: the MAC that it is sent to (default: the host's neighbour, or our table's)")
    .option('--packet <hex>', 'these bytes: a packet, in layer 2 a frame; with --in the payload of the datagram')
    .option('--vnet <hex>', 'the virtio header before --packet, 10 bytes');
}

async function reportOf(daemon: DaemonClient, to: string | undefined, options: Options): Promise<ExplainReport> {
  const { df, ...rest } = options;
  const question = { ...rest, to, df: df ? 1 : undefined };
  const answer = await daemon.get('explain', question);
  if (answer.networkNamespace !== networkNamespace()) return { ...answer, host: null };
  const host = await (answer.direction === 'outbound' ? hostBefore(answer, question) : hostAfter(answer));
  const { neighbour } = host;
  // The host sends to the MAC that it has, whatever our tables say.
  if (neighbour === null || options.mac !== undefined) return { ...answer, host };
  const address = answer.packet.destination ?? to;
  const again = await daemon.get('explain', { ...question, to: address, mac: neighbour.mac });
  return { ...again, host: { ...host, underlay: await underlayOf(again, await readLinks()) } };
}

const NOTHING: ExplainedHost = {
  route: null,
  toUs: null,
  ownInterface: null,
  bridge: null,
  deviceUp: true,
  neighbour: null,
  underlay: null,
};

async function hostBefore(
  answer: ExplainAnswer,
  { proto, packet }: Pick<ExplainQuestion, 'proto' | 'packet'>,
): Promise<ExplainedHost> {
  const { destination, destinationMac } = answer.packet;
  const { name } = answer.device;
  const links = await readLinks();
  const bridge = links.get(name)?.master ?? null;
  const deviceUp = links.get(name)?.up ?? false;
  const underlay = await underlayOf(answer, links);
  if (destination === null || (destinationMac !== null && DOCUMENTED.test(destination))) {
    return { ...NOTHING, bridge, deviceUp, underlay };
  }
  const route = await routeTo(destination, links);
  const ours = route.kind === 'device' && (route.device === name || route.device === bridge);
  // What stations behind the bridge send comes to us whatever the host's routes say.
  const toUs = !ours && bridge !== null ? null : ours;
  const ownInterface = route.kind === 'local' ? (interfaceOf(destination) ?? null) : null;
  const asks = proto === 'arp' || proto === 'nd' || packet !== undefined;
  const hop = route.via ?? destination;
  const known = ours && destinationMac !== null && !asks ? await neighbourOf(hop, route.device ?? name) : undefined;
  const neighbour = known ? { address: hop, ...known } : null;
  return { route, toUs, ownInterface, bridge, deviceUp, neighbour, underlay };
}

/** Where the daemon knew no address, it has put one of documentation. */
const DOCUMENTED = /^(192\.0\.2\.[12]|2001:db8::[12])$/;

async function hostAfter(answer: ExplainAnswer): Promise<ExplainedHost> {
  const { destination, source } = answer.packet;
  const { name } = answer.device;
  const links = await readLinks();
  const bridge = links.get(name)?.master ?? null;
  const deviceUp = links.get(name)?.up ?? false;
  if (answer.verdict !== 'delivered' || destination === null || source === null)
    return { ...NOTHING, bridge, deviceUp };
  if (bridge !== null && !isForHost(answer.packet.destinationMac, links.get(bridge)))
    return { ...NOTHING, bridge, deviceUp };
  const route = await routeFrom(destination, source, bridge ?? name, links);
  const ownInterface = route.kind === 'local' ? (interfaceOf(destination) ?? null) : null;
  return { ...NOTHING, route, toUs: null, ownInterface, bridge, deviceUp };
}

const underlayOf = async (
  { direction, peers: [peer] }: ExplainAnswer,
  links: ReadonlyMap<string, Link>,
): Promise<HostRoute | null> => (direction === 'outbound' && peer ? routeTo(peer.address, links) : null);
