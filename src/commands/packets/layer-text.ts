/** Layers of a packet as part of a readable line: `10.5.1.2:40000 > 10.5.2.2:80 TCP SYN seq 7 win 64240, 0 bytes`. */
import type { ArpLayer, Checksum, EthernetLayer, IcmpLayer, IpLayer, Layer, TcpLayer, UdpLayer } from './layers.js';

/** Parts of a tunnelled packet, from the outside in, are divided by bars. */
export function layersText(layers: readonly Layer[]): string {
  const parts: string[] = [];
  for (let i = 0; i < layers.length; i++) {
    const layer = layers[i];
    const next: Layer | undefined = layers[i + 1];
    if (layer.layer === 'ipv4' || layer.layer === 'ipv6') {
      const inside = next?.layer === 'vxlan' ? undefined : next;
      parts.push(ipText(layer, inside, layers[i + 2]));
      // The transport is told of together with the addresses.
      if (inside && isTransport(inside)) i++;
    } else {
      const text = plainText(layer, next);
      if (text !== '') parts.push(text);
    }
  }
  return parts.join(' | ');
}

const isTransport = ({ layer }: Layer): boolean =>
  layer === 'tcp' ||
  layer === 'udp' ||
  layer === 'icmp' ||
  layer === 'icmpv6' ||
  layer === 'other' ||
  layer === 'broken';

function plainText(layer: Layer, next: Layer | undefined): string {
  switch (layer.layer) {
    case 'ethernet':
      return ethernetText(layer, next);
    case 'arp':
      return arpText(layer);
    case 'vxlan':
      return layer.vni === undefined ? 'VXLAN without a VNI' : `VXLAN ${layer.vni}`;
    case 'other':
      return `${layer.what}, ${layer.bytes} bytes`;
    case 'broken':
      return `broken: ${layer.reason}`;
    default:
      return transportText(layer);
  }
}

const NO_MAC = '00:00:00:00:00:00';

/** Addresses that are all zero say nothing: loopback's, and those of our own underlay. */
function ethernetText({ source, destination, vlans }: EthernetLayer, next: Layer | undefined): string {
  if (source === NO_MAC && destination === NO_MAC && vlans.length === 0 && next !== undefined) return '';
  const tags = vlans.map((vlan) => ` vlan ${vlan}`).join('');
  return `${source} > ${destination}${tags}`;
}

function arpText({ operation, senderMac, sender, target, targetMac }: ArpLayer): string {
  if (operation === 'request') return `ARP who has ${target}, tell ${sender} at ${senderMac}`;
  if (operation === 'reply') return `ARP ${sender} is at ${senderMac}, to ${target} at ${targetMac}`;
  return `ARP operation ${operation} from ${sender} to ${target}`;
}

/** `inside`: the layer that follows; `tunnelled`: the one behind it. */
function ipText(ip: IpLayer, inside: Layer | undefined, tunnelled: Layer | undefined): string {
  const ports = inside?.layer === 'tcp' || inside?.layer === 'udp' ? inside : undefined;
  const from = endpoint(ip.source, ports?.from);
  const to = endpoint(ip.destination, ports?.to);
  const what = inside && isTransport(inside) ? plainOrTunnel(inside, tunnelled) : ipProtocol(ip);
  return [`${from} > ${to} ${what}`, ...ipNotes(ip)].join(', ');
}

/** Of a datagram with a packet in it only the outside is said. */
const plainOrTunnel = (inside: Layer, tunnelled: Layer | undefined): string =>
  inside.layer === 'udp' && tunnelled !== undefined
    ? ['UDP', ...checksumNotes(inside.checksum)].join(', ')
    : plainText(inside, undefined);

const PROTOCOLS: Readonly<Record<number, string>> = { 1: 'ICMP', 6: 'TCP', 17: 'UDP', 58: 'ICMPv6' };
const ipProtocol = ({ protocol }: IpLayer): string => PROTOCOLS[protocol] ?? `protocol ${protocol}`;

const endpoint = (address: string, port: number | undefined): string => {
  if (port === undefined) return address;
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
};

/** What is worth knowing of a header because it is not usual. */
function ipNotes({ fragment, checksum, ttl, ecn }: IpLayer): string[] {
  const notes: string[] = [];
  if (fragment) notes.push(`fragment of ${fragment.id} at ${fragment.offset}${fragment.more ? ', more' : ''}`);
  if (checksum === 'wrong') notes.push('IP header checksum wrong');
  if (ttl <= 1) notes.push(`ttl ${ttl}`);
  if (ecn === CONGESTION) notes.push('congestion marked');
  return notes;
}

const CONGESTION = 3;

function transportText(layer: TcpLayer | UdpLayer | IcmpLayer | IpLayer): string {
  if (layer.layer === 'tcp') return tcpText(layer);
  if (layer.layer === 'udp') return [`UDP ${layer.payload} bytes`, ...checksumNotes(layer.checksum)].join(', ');
  if ('meaning' in layer) return icmpText(layer);
  return ipText(layer, undefined, undefined);
}

function tcpText({ flags, sequence, acknowledgement, window, payload, checksum }: TcpLayer): string {
  const said = flags.length > 0 ? flags.join(',') : 'no flags';
  const ack = flags.includes('ACK') ? ` ack ${acknowledgement}` : '';
  return [`TCP ${said} seq ${sequence}${ack} win ${window}`, `${payload} bytes`, ...checksumNotes(checksum)].join(', ');
}

function icmpText({ layer, meaning, id, sequence, mtu, target, about, checksum }: IcmpLayer): string {
  const words = [
    `${layer === 'icmp' ? 'ICMP' : 'ICMPv6'} ${meaning}`,
    id === undefined ? '' : `id ${id} seq ${sequence}`,
    mtu === undefined ? '' : `mtu ${mtu}`,
    target === undefined ? '' : `target ${target}`,
    about === undefined || about.length === 0 ? '' : `about (${layersText(about)})`,
  ];
  return [words.filter(Boolean).join(' '), ...checksumNotes(checksum)].join(', ');
}

function checksumNotes(checksum: Checksum | undefined): string[] {
  if (checksum === 'wrong') return ['checksum wrong'];
  return checksum === 'offload' ? ['checksum left to offload'] : [];
}
