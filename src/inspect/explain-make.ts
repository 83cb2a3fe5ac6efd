/**
 * From a question to a packet and where it enters the walk. What the question leaves open is filled in as it most likely is: our own
 * addresses on our side, a peer's on its side, the MAC that our tables have for an address. What cannot be filled in is a RangeError.
 */
import { type Address, textOf } from '../control/cidr.js';
import { macText } from '../control/mac.js';
import type { PlannedPeer } from '../control/plan.js';
import type { DryInput } from '../dataplane/dry.js';
import type { SwitchedNetwork } from '../dataplane/settings.js';
import { NO_VNET } from '../io/memory-device.js';
import { socketAddress } from '../io/socket-address.js';
import { ETHERTYPE_IPV4, ETHERTYPE_IPV6 } from '../packet/ethernet.js';
import * as ip from '../packet/ip.js';
import { VXLAN_HEADER } from '../packet/vxlan.js';
import { type Known, MOST_LOOKED_AT } from './explain-known.js';
import { type Described, describe, leastSize, makeFrame, makeIp, makeRequest } from './explain-packet.js';
import type { Place, Question } from './explain-question.js';

/** What `ping` sends: an IPv4 header, an ICMP header and 56 bytes. */
const PING_SIZE = 84;
/** Documentation addresses (RFC 5737, 3849), where nobody's is known: on our side, and on the other. */
const documented = (last: number) => ({
  4: Uint8Array.of(192, 0, 2, last),
  6: Uint8Array.of(0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last),
});
const OURS = documented(1);
const THEIRS = documented(2);
/** Locally administered MACs, for stations of which none is known: on our side, and on the other. */
const OUR_STATION = Uint8Array.of(2, 0, 0, 0, 0, 1);
const THEIR_STATION = Uint8Array.of(2, 0, 0, 0, 0, 2);

export interface MakeContext {
  readonly known: Known;
  /** Of layer 2; undefined: layer 3. */
  readonly networks: readonly SwitchedNetwork[] | undefined;
  /** By network: our devices' addresses. */
  readonly addresses: readonly (readonly Address[])[];
  /** Which underlays there are sockets of. */
  readonly underlays: readonly [boolean, boolean];
  /** The workers' clock, milliseconds. */
  readonly now: number;
}

export interface Made {
  readonly input: DryInput;
  readonly network: number;
  /** The packet, or in layer 2 the frame, without VXLAN header. */
  readonly bytes: Uint8Array;
  readonly described: Described;
  /** What is behind an IP address in layer 2, where that was looked up: `via` the next hop. */
  readonly resolved:
    | { readonly address: Uint8Array; readonly mac: Uint8Array; readonly via: string | undefined }
    | undefined;
  /** What comes in: from where. */
  readonly sender: { readonly address: Address; readonly peer: PlannedPeer | undefined } | undefined;
  /** What there is to say of how the packet was made. */
  readonly notes: readonly string[];
}

export function make(question: Question, context: MakeContext): Made {
  return question.in === undefined ? makeOutbound(question, context) : makeInbound(question, question.in, context);
}

function makeOutbound(question: Question, context: MakeContext): Made {
  const vnet = question.vnet ?? NO_VNET;
  if (question.packet) {
    const network = networkFor(question, context, undefined);
    return outboundOf(question.packet, network, context, { vnet });
  }
  return context.networks ? makeFrameOut(question, context) : makePacketOut(question, context);
}

interface Extra {
  readonly vnet?: Uint8Array;
  readonly resolved?: Made['resolved'];
  readonly notes?: readonly string[];
}

function outboundOf(bytes: Uint8Array, network: number, { networks }: MakeContext, extra: Extra): Made {
  return {
    input: { from: 'device', network, packet: { vnet: extra.vnet ?? NO_VNET, bytes } },
    network,
    bytes,
    described: describe(bytes, networks !== undefined),
    resolved: extra.resolved,
    sender: undefined,
    notes: extra.notes ?? [],
  };
}

// Layer 3.

function makePacketOut(question: Question, context: MakeContext): Made {
  refuseMacs(question);
  const family = familyOf(question.from) ?? familyOf(question.to);
  const to = question.to && addressBehind(question.to, family, context);
  if (!to) throw new RangeError('to: expected an address, or a peer');
  const source = addressIn(question.from) ?? ownAddress(context, 0, to) ?? OURS[familyIn(to)];
  return outboundOf(ipPacket(question, source, to), 0, context, {});
}

function refuseMacs({ to, from, mac, asks, vni }: Question): void {
  if (to?.kind === 'mac' || from?.kind === 'mac' || mac) throw new RangeError('a MAC decides nothing in layer 3');
  if (asks) throw new RangeError('proto: there is no ARP and no ND in layer 3');
  if (vni !== undefined) throw new RangeError('vni: there is none in layer 3');
}

/** An address that is meant: itself, or the first of a peer's. */
function addressBehind(place: Place, family: 4 | 6 | undefined, { known }: MakeContext): Uint8Array | undefined {
  if (place.kind === 'address') return place.address.bytes;
  if (place.kind === 'mac') return undefined;
  const [peer] = known.peersNamed(place.name);
  if (!peer) throw new RangeError(noPeer(place.name));
  const prefix = known.routeOf(peer, family);
  if (!prefix)
    throw new RangeError(`peer ${place.name} owns no ${family ? `IPv${family} ` : ''}subnet: give an address`);
  return prefix.bytes;
}

const noPeer = (name: string): string => `"${name}" is no address, and no peer in force has that name`;

// Layer 2.

function makeFrameOut(question: Question, context: MakeContext): Made {
  const { to } = question;
  if (!to) throw new RangeError('to: expected an address, a MAC or a peer');
  const { known, now } = context;
  const network = networkFor(question, context, to);
  const address = to.kind === 'address' ? to.address.bytes : undefined;
  const family = address ? familyIn(address) : (familyOf(question.from) ?? 4);
  const ours = ourSide(question, network, family, context);
  if (question.asks || (address && !question.mac && !isGroup(address))) {
    if (!address) throw new RangeError('proto: arp asks for an address');
    const hop = known.hostHop(address);
    const found = hop ?? known.neighbour(network, address, now);
    if (question.asks || !found) {
      const notes = question.asks ? [] : [`nobody has told where ${textOf(address)} is: the host asks for it first`];
      return outboundOf(makeRequest(ours.mac, ours.address, address), network, context, { notes });
    }
    const resolved = { address, mac: found.mac, via: hop?.via };
    return frameOut(question, context, hop?.network ?? network, { mac: found.mac, ours, address, resolved });
  }
  const mac =
    question.mac ?? (to.kind === 'mac' ? to.mac : address ? groupMac(address) : macOfPeer(to, network, context));
  return frameOut(question, context, network, { mac, ours, address, resolved: undefined });
}

interface FrameParts {
  readonly mac: Uint8Array;
  readonly ours: Station;
  readonly address: Uint8Array | undefined;
  readonly resolved: Made['resolved'];
}

function frameOut(question: Question, context: MakeContext, network: number, parts: FrameParts): Made {
  const { mac, ours, address, resolved } = parts;
  const family = familyIn(ours.address);
  const type = family === 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6;
  const bytes = makeFrame(mac, ours.mac, type, ipPacket(question, ours.address, address ?? THEIRS[family]));
  return outboundOf(bytes, network, context, { resolved });
}

function macOfPeer(place: Place, network: number, { known, now }: MakeContext): Uint8Array {
  const name = place.kind === 'name' ? place.name : '';
  const peers = known.peersNamed(name);
  const peer = peers.find((one) => one.network === network);
  if (!peer) throw new RangeError(peers.length === 0 ? noPeer(name) : `peer ${name} is not in that network`);
  const mac = known.macOf(peer) ?? known.learnedMacOf(peer, now);
  if (!mac) throw new RangeError(`nothing is known to be behind peer ${name}: give an address or a MAC`);
  return mac;
}

interface Station {
  readonly address: Uint8Array;
  readonly mac: Uint8Array;
}

/** Who sends on our side: who is said, or this host, or a station that is known to be there. */
function ourSide({ from }: Question, network: number, family: 4 | 6, context: MakeContext): Station {
  const { known, now } = context;
  const device = known.deviceMac(network) ?? OUR_STATION;
  const own = ownOfFamily(context, network, family);
  if (from?.kind === 'mac') return { mac: from.mac, address: own ?? OURS[family] };
  if (from?.kind === 'address') {
    const found = known.neighbour(network, from.address.bytes, now);
    return { mac: found?.ours ? found.mac : device, address: from.address.bytes };
  }
  if (own) return { mac: device, address: own };
  return known.station(network, family, now) ?? { mac: device, address: OURS[family] };
}

/** The group's MAC (RFC 1112 6.4, RFC 2464 7), or everybody's. */
function groupMac(address: Uint8Array): Uint8Array {
  if (address.length === 16) return Uint8Array.of(0x33, 0x33, ...address.subarray(12));
  if (address[0] >= 240) return new Uint8Array(6).fill(255);
  return Uint8Array.of(1, 0, 0x5e, address[1] & 0x7f, address[2], address[3]);
}

const isGroup = (address: Uint8Array): boolean =>
  address.length === 4
    ? (address[0] >= 224 && address[0] < 240) || address.every((byte) => byte === 255)
    : address[0] === 0xff;

/** Which network is meant: the one said, the only one, the one of the address's family, or the one that knows it. */
function networkFor({ vni, to }: Question, context: MakeContext, place: Place | undefined): number {
  const { networks, known, now } = context;
  if (!networks) {
    if (vni !== undefined) throw new RangeError('vni: there is none in layer 3');
    return 0;
  }
  const all = networks.map((network, index) => ({ ...network, index }));
  const family = familyOf(to);
  const fitting = all.filter((one) => vni === undefined || one.vni === vni);
  if (fitting.length === 0) throw new RangeError(`vni ${vni} is none of ours: ${all.map((one) => one.vni).join(', ')}`);
  const inFamily = fitting.filter((one) => family === undefined || one.family === undefined || one.family === family);
  const left = inFamily.length > 0 ? inFamily : fitting;
  if (left.length === 1) return left[0].index;
  const knowing = left.filter(({ index }) => knows(place, index, known, now));
  if (knowing.length === 1) return knowing[0].index;
  const vnis = [...new Set(left.map((one) => one.vni))];
  if (vnis.length === 1) return left[0].index;
  throw new RangeError(`vni: say in which network: ${vnis.join(', ')}`);
}

function knows(place: Place | undefined, network: number, known: Known, now: number): boolean {
  if (place?.kind === 'mac') return known.mac(network, place.mac, now) !== undefined;
  if (place?.kind === 'address') return known.neighbour(network, place.address.bytes, now) !== undefined;
  return place !== undefined && known.peersNamed(place.name).some((peer) => peer.network === network);
}

// Inbound.

function makeInbound(question: Question, from: Place, context: MakeContext): Made {
  const { known, networks, underlays } = context;
  const network = networkFor(question, context, question.packet ? undefined : (question.to ?? from));
  const sender = senderOf(from, networks && network, known);
  const underlay = sender.address.family === 4 ? 0 : 1;
  if (!underlays[underlay]) {
    throw new RangeError(
      `in: nothing comes from ${sender.address.text}: we have no IPv${sender.address.family} underlay`,
    );
  }
  const payload = question.packet ?? inboundPayload(question, sender, network, context);
  const most = MOST_PAYLOAD[sender.address.family];
  if (payload.length > most) {
    throw new RangeError(
      `in: no datagram over IPv${sender.address.family} carries ${payload.length} bytes, only ${most}`,
    );
  }
  const bytes = networks ? payload.subarray(Math.min(VXLAN_HEADER, payload.length)) : payload;
  const name = socketAddress(sender.address.bytes, sender.peer?.port ?? 0);
  const message = { name, bytes: payload, ...(question.tos === undefined ? {} : { tos: question.tos }) };
  return {
    input: { from: 'network', underlay, message },
    network,
    bytes,
    described: describe(bytes, networks !== undefined),
    resolved: undefined,
    sender,
    notes: [],
  };
}

/** Of UDP: 65,535 less its header, and over IPv4 (whose total length counts it) less that header (RFC 768, 791, 8200). */
const MOST_PAYLOAD = { 4: 65_507, 6: 65_527 } as const;

type Sender = NonNullable<Made['sender']>;

/** `network`: the one whose peer it is to be, where there are several; layer 3 has one. */
function senderOf(place: Place, network: number | undefined, known: Known): Sender {
  if (place.kind === 'mac') throw new RangeError('in: expected a peer or an underlay address');
  const named = place.kind === 'name';
  const peers = named ? known.peersNamed(place.name) : known.peersAt(place.address.text);
  const peer = peers.find((one) => network === undefined || one.network === network) ?? peers.at(0);
  if (!named) return { address: place.address, peer };
  if (!peer) throw new RangeError(noPeer(place.name));
  return { address: { family: peer.family, bytes: peer.bytes, text: peer.address }, peer };
}

function inboundPayload(question: Question, sender: Sender, network: number, context: MakeContext): Uint8Array {
  const { known, networks, now } = context;
  const wanted = familyOf(question.to) ?? familyOf(question.from);
  if (question.to?.kind === 'name') throw new RangeError('to: what comes in goes to an address or a MAC of ours');
  const asked = addressIn(question.to) ?? addressIn(question.from);
  const to = addressIn(question.to) ?? ownOfFamily(context, network, wanted) ?? OURS[wanted ?? 4];
  const theirs = sender.peer && known.routeOf(sender.peer, familyIn(asked ?? to))?.bytes;
  const source = addressIn(question.from) ?? theirs ?? THEIRS[familyIn(to)];
  if (!networks) {
    refuseMacs(question);
    return ipPacket(question, source, to);
  }
  const theirMac = (): Uint8Array | undefined =>
    sender.peer && (known.macOf(sender.peer) ?? known.learnedMacOf(sender.peer, now, MOST_LOOKED_AT));
  const sourceMac = question.from?.kind === 'mac' ? question.from.mac : (theirMac() ?? THEIR_STATION);
  const frame = question.asks
    ? makeRequest(sourceMac, source, to)
    : makeFrame(
        inboundMac(question, network, context),
        sourceMac,
        familyIn(to) === 4 ? ETHERTYPE_IPV4 : ETHERTYPE_IPV6,
        ipPacket(question, source, to),
      );
  return withVxlan(networks[network].vni, frame);
}

/** For whom on our side it is. */
function inboundMac({ to, mac }: Question, network: number, { known, now }: MakeContext): Uint8Array {
  if (mac) return mac;
  if (to?.kind === 'mac') return to.mac;
  const found = to?.kind === 'address' ? known.neighbour(network, to.address.bytes, now) : undefined;
  return found?.ours ? found.mac : (known.deviceMac(network) ?? OUR_STATION);
}

function withVxlan(vni: number, frame: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(VXLAN_HEADER + frame.length);
  bytes[0] = 8; // the I flag
  bytes.set([vni >> 16, (vni >> 8) & 255, vni & 255], 4);
  bytes.set(frame, VXLAN_HEADER);
  return bytes;
}

// Both.

const familyIn = (bytes: Uint8Array): 4 | 6 => (bytes.length === 4 ? 4 : 6);
const familyOf = (place: Place | undefined): 4 | 6 | undefined =>
  place?.kind === 'address' ? place.address.family : undefined;
const addressIn = (place: Place | undefined): Uint8Array | undefined =>
  place?.kind === 'address' ? place.address.bytes : undefined;

const ownOfFamily = ({ addresses }: MakeContext, network: number, family: 4 | 6 | undefined): Uint8Array | undefined =>
  addresses.at(network)?.find((address) => family === undefined || address.family === family)?.bytes;

const ownAddress = (context: MakeContext, network: number, like: Uint8Array): Uint8Array | undefined =>
  ownOfFamily(context, network, familyIn(like));

function ipPacket({ size, ttl, df, protocol }: Question, source: Uint8Array, destination: Uint8Array): Uint8Array {
  if (source.length !== destination.length) {
    throw new RangeError(`${textOf(source)} and ${textOf(destination)} are of two families`);
  }
  const v4 = source.length === 4;
  const number = protocol ?? (v4 ? ip.PROTOCOL_ICMP : ip.PROTOCOL_ICMPV6);
  const least = leastSize(v4, number);
  const bytes = size ?? Math.max(PING_SIZE, least);
  if (bytes < least) throw new RangeError(`size: such a packet has at least ${least} bytes`);
  return makeIp({ source, destination, size: bytes, ttl, df, protocol: number });
}

export const macOrNull = (mac: Uint8Array | undefined): string | null => (mac ? macText(mac) : null);
export const textOrNull = (address: Uint8Array | undefined): string | null => (address ? textOf(address) : null);
