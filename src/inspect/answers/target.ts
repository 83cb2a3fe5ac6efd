/** /v1/target: where `weft ping` has to send to reach a peer, outside the tunnel and inside. */
import {
  type Address,
  addressOf,
  type Cidr,
  contains,
  parseAddress,
  parseCidr,
  parsePrefixOf,
  textOf,
} from '../../control/cidr.js';
import { LINK_HEADER } from '../../control/encapsulation.js';
import { type NeighbourEntry, readNeighbours } from '../../dataplane/forwarding.js';
import type { PeerRef } from '../../dataplane/peers.js';
import { inSlices, monotonic } from '../../observe/tables.js';
import { type Inspected, ownAddressOf, type PeerInTables, peersOf, type Running } from '../inspected.js';
import type { TargetAnswer } from '../protocol.js';
import { Refusal } from '../refusal.js';
import { trafficOf } from './peer-memory.js';
import { byAddress, mtusOf, vniOf } from './peers.js';
import { ageLimit } from './tables.js';

type Inner = TargetAnswer['inner'][number];

/** `who`: a peer's name, its underlay address, or an overlay address that is its. Rejects with a Refusal. */
export async function targetAnswer(inspected: Inspected, who: string): Promise<TargetAnswer> {
  const running = inspected.needRunning();
  const { overlay, underlay, dataplane, devices } = running;
  const address = addressIn(who);
  const meant = await find(running, who, address);
  // In layer 2 it may be in several of our networks.
  const its = [...filtered(peersOf(running), (peer) => peer.address === meant)];
  if (its.length === 0) throw new Refusal(404, unknown(running, who, address));
  const [first] = its;
  const encapsulated = overlay.workers > 0;
  const networks = its.map(({ network }) => network);
  return {
    name: first.name,
    mode: overlay.mode,
    networkNamespace: inspected.options.networkNamespace,
    address: first.address,
    port: first.port,
    ownAddress: ownAddressOf(running, first.family) ?? null,
    interface: underlay.interface,
    underlayMtu: underlay.mtu,
    overhead: encapsulated ? first.overhead + LINK_HEADER[overlay.mode] : 0,
    ...mtusOf(running, first),
    inner: await innerOf(running, its, address),
    devices: devices.length > 1 ? networks.map((network) => devices[network]) : devices,
    vnis: networks.map((network) => vniOf(running, network)).filter((vni) => vni !== null),
    traffic: trafficOf(
      dataplane.memory,
      its.map(({ ref }) => ref),
    ),
  };
}

/** Canonical; undefined: it is none. */
function addressIn(text: string): Address | undefined {
  try {
    return parseAddress(text);
  } catch {
    return undefined;
  }
}

function* filtered<T>(items: Iterable<T>, wanted: (item: T) => boolean): Generator<T> {
  for (const item of items) if (wanted(item)) yield item;
}

/** The underlay address of the peer that is meant; undefined: none. */
async function find(running: Running, who: string, address: Address | undefined): Promise<string | undefined> {
  let named: string | undefined;
  for (const peer of running.applier.have.peers.values()) {
    if (peer.name === who) return peer.address;
    if (peer.address === address?.text) named = peer.address;
  }
  if (named !== undefined || address === undefined) return named;
  for (const record of running.records().values()) {
    if (record.subnets.some((subnet) => holds(parseCidr(subnet), address))) return record.address;
  }
  return running.overlay.mode === 'l2' ? behindWhom(running, address) : undefined;
}

const holds = (prefix: Cidr, { bytes }: Address): boolean => contains(prefix, { bytes, length: bytes.length * 8 });

function unknown({ underlay, member }: Running, who: string, address: Address | undefined): string {
  if (address === undefined) return `there is no peer called ${who}: see weft peers`;
  const own = [...underlay.addresses, ...underlay.publicAddresses].some(({ text }) => text === address.text);
  if (own || member.subnets.some((subnet) => holds(subnet, address))) return `${address.text} is this host's own`;
  return `no peer has ${address.text}: see weft peers and weft routes`;
}

/** The untagged neighbours that are known, one after the other. */
const eachNeighbour = (running: Running, take: (neighbour: NeighbourEntry) => void): Promise<void> =>
  inSlices(readNeighbours(running.dataplane.memory, monotonic(), ageLimit(running)), (entry) => {
    if (entry.vlans.length === 0) take(entry);
  });

/** The underlay address of the peer that a neighbour is behind. */
async function behindWhom(running: Running, { text }: Address): Promise<string | undefined> {
  let found: PeerRef | undefined;
  await eachNeighbour(running, ({ address, ref }) => {
    if (textOf(address) === text) found = ref;
  });
  for (const { ref, address } of peersOf(running)) if (ref === found) return address;
  return undefined;
}

/** What should answer inside the tunnel, and from where to ask; at most one pair a family. `wanted` first, if it is of the overlay. */
async function innerOf(
  running: Running,
  its: readonly PeerInTables[],
  wanted: Address | undefined,
): Promise<readonly Inner[]> {
  const { overlay, member } = running;
  if (overlay.workers === 0) return []; // no device of ours has an address there
  const record = byAddress(running.records()).get(its[0].address);
  const pairs: Inner[] = [];
  for (const family of [4, 6] as const) {
    const subnets = (record?.subnets ?? []).map(parseCidr).filter((subnet) => subnet.family === family);
    const own = member.subnets.find((subnet) => subnet.family === family);
    // The device of each host has the first address of its subnet.
    const to = wanted?.family === family && wanted.text !== its[0].address ? wanted.text : undefined;
    if (own && (to !== undefined || subnets.length > 0)) {
      pairs.push({ from: textOf(own.bytes), to: to ?? textOf(subnets[0].bytes) });
    }
  }
  if (pairs.length > 0 || overlay.mode === 'l3' || overlay.routing) return pairs;
  return neighbourPairs(running, its, wanted);
}

/** Neighbours that are known to be behind a peer, of each family the wanted one or else any. */
async function neighbourPairs(
  running: Running,
  its: readonly PeerInTables[],
  wanted: Address | undefined,
): Promise<readonly Inner[]> {
  const refs = new Set(its.map(({ ref }) => ref));
  const pairs = new Map<4 | 6, Inner>();
  await eachNeighbour(running, ({ ref, network, address: bytes }) => {
    if (!refs.has(ref)) return;
    const address = addressOf(bytes);
    const from = isLinkLocal(address) ? undefined : ownIn(running, network, address);
    if (from === undefined || (pairs.has(address.family) && address.text !== wanted?.text)) return;
    pairs.set(address.family, { from, to: address.text });
  });
  return ([4, 6] as const).flatMap((family) => pairs.get(family) ?? []);
}

/** Our own address on the link that `address` is on, by its prefix. */
function ownIn({ addresses }: Running, network: number, address: Address): string | undefined {
  return addresses[network]?.find((text) => holds(parsePrefixOf(text), address))?.split('/')[0];
}

const isLinkLocal = ({ family, bytes }: Address): boolean =>
  family === 6 && bytes[0] === 0xfe && (bytes[1] & 0xc0) === 0x80;
