/**
 * A packet for every reason to drop that does not wait for the kernel's word: what `weft explain` is asked about, and what a rig or a
 * real daemon is then given. The stage is that of rig.ts (and of race/hosts.ts), in layer 2 that of rig-l2.ts, with the stations
 * `theirMac(peer, 200)` at `their4(peer, 200)` in the registry.
 */
import type { DevicePacket } from '../../src/io/memory-device.js';
import {
  advertise,
  arpFrame,
  BROADCAST,
  ethernet,
  frame,
  O_FLAG,
  OTHER,
  solicit,
  superFrame,
  vxlan,
} from './frames.js';
import {
  add,
  changed,
  hex,
  type IpSpec,
  packet,
  pattern,
  plain,
  put,
  rechecksum,
  superPacket,
  tcp,
  udp,
} from './packets.js';
import { HOST_4 } from './rig.js';
import { our4, our6, ourMac, their4, their6, theirMac } from './rig-l2.js';

export interface DropCase {
  /** From our device; else bytes is the payload of a datagram from the first peer. */
  readonly device?: DevicePacket;
  readonly datagram?: Uint8Array;
  /** Outer TOS of the datagram. */
  readonly tos?: number;
  /** The datagram is from somebody who is no peer. */
  readonly stranger?: boolean;
  /** Of layer 2; default the first, in which all peers are. Nobody is in the second. */
  readonly network?: 0 | 1;
  /** Settings of layer 2; default true. */
  readonly floods?: boolean;
  readonly floodUnknown?: boolean;
}

/** An address in the underlay at which no peer is. */
export const STRANGER = '192.168.77.99';

/** As parameters of /v1/explain. `peer`: the first one's name; `vnis`: by network, in layer 2. */
export function questionOf(drop: DropCase, peer: string, vnis?: readonly number[]): Record<string, string | number> {
  const { device, datagram, tos, stranger, network = 0 } = drop;
  const common = vnis ? { vni: vnis[network] } : {};
  if (device) return { ...common, packet: hex(device.bytes), vnet: hex(device.vnet) };
  const from = stranger ? STRANGER : peer;
  return { ...common, packet: hex(datagram ?? new Uint8Array(0)), in: from, ...(tos === undefined ? {} : { tos }) };
}

const out4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: HOST_4, destination: '10.5.2.9', id: 0, ...change });
const in4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: '10.5.2.9', destination: HOST_4, id: 0, ...change });
const leaving = packet(out4(), udp({ payload: pattern(100) }));
const coming = packet(in4(), udp({ payload: pattern(100) }));

const leaves = (bytes: Uint8Array): DropCase => ({ device: plain(bytes) });
const comes = (datagram: Uint8Array): DropCase => ({ datagram });

/** The second peer has 10.5.3.0/24 behind a path of at most 1000 bytes; source-check is strict. */
export const LAYER_3_DROPS: Readonly<Record<string, DropCase>> = {
  'outbound.short': leaves(leaving.subarray(0, 19)),
  'outbound.bad_version': leaves(changed(leaving, put(0, 0x55))),
  'outbound.bad_header_length': leaves(changed(leaving, put(0, 0x44))),
  'outbound.bad_total_length': leaves(changed(leaving, add(3, 1))),
  'outbound.bad_header_checksum': leaves(changed(leaving, add(10, 1))),
  'outbound.bad_offload': { device: superPacket(out4(), tcp({ payload: pattern(3000) }), 1000, { size: 0 }) },
  'outbound.no_route': leaves(packet(out4({ destination: '10.5.99.1' }), udp())),
  'outbound.ttl_exceeded': leaves(packet(out4({ ttl: 1 }), udp())),
  'outbound.too_big': leaves(packet(out4({ destination: '10.5.3.9' }), udp({ payload: pattern(1400) }))),
  'inbound.unknown_peer': { datagram: coming, stranger: true },
  'inbound.empty': comes(new Uint8Array(0)),
  'inbound.short': comes(coming.subarray(0, 19)),
  'inbound.bad_version': comes(changed(coming, put(0, 0x75))),
  'inbound.bad_header_length': comes(changed(coming, put(0, 0x41))),
  'inbound.bad_total_length': comes(changed(coming, add(3, -1))),
  'inbound.bad_header_checksum': comes(changed(coming, add(11, 1))),
  'inbound.ttl_zero': comes(changed(coming, (copy) => void rechecksum(copy.fill(0, 8, 9)))),
  'inbound.spoofed_source': comes(packet(in4({ source: '10.5.99.9' }), udp())),
  'inbound.ecn_ce_not_ect': { datagram: coming, tos: 3 },
};

const to4: IpSpec = { source: our4(), destination: their4(0), id: 0 };
const from4: IpSpec = { source: their4(), destination: our4(), id: 0 };
export const outFrame = (destination: string, source = ourMac()): Uint8Array =>
  frame({ source, destination }, to4, udp({ payload: pattern(60) }));
const inFrame = (source = theirMac()): Uint8Array =>
  frame({ source, destination: ourMac() }, from4, udp({ payload: pattern(60) }));
const GROUP = '01:00:00:00:00:01';

/** Our own device has the MAC ourMac(250); the second peer's path carries frames of 1000 bytes at most. */
export const LAYER_2_DROPS: Readonly<Record<string, DropCase>> = {
  'outbound.bad_offload': {
    device: superFrame({ source: ourMac(), destination: BROADCAST }, to4, tcp({ payload: pattern(3000) }), 1000, {
      size: 0,
    }),
  },
  'outbound.runt': leaves(new Uint8Array(13)),
  'outbound.bad_source_mac': leaves(outFrame(BROADCAST, GROUP)),
  'outbound.bad_arp': leaves(arpFrame({ senderMac: ourMac(), sender: our4(), target: their4() }).subarray(0, 30)),
  'outbound.bad_nd': leaves(solicit(ourMac(), our6(), their6(), {}, { ttl: 64 })),
  'outbound.neighbour_conflict': leaves(arpFrame({ senderMac: ourMac(), sender: their4(0, 200), target: our4(9) })),
  'outbound.same_port': leaves(outFrame(ourMac())),
  'outbound.not_flooded': { ...leaves(outFrame(BROADCAST)), floods: false },
  'outbound.unknown_unicast': { ...leaves(outFrame('02:00:00:00:00:77')), floodUnknown: false },
  'outbound.no_peer': { ...leaves(outFrame(BROADCAST)), network: 1 },
  'outbound.too_big': leaves(ethernet({ source: ourMac(), destination: theirMac(1, 200) }, OTHER, pattern(1400))),
  'inbound.empty': comes(new Uint8Array(0)),
  'inbound.short_vxlan': comes(new Uint8Array(7)),
  'inbound.no_vni_flag': comes(vxlan(42, inFrame(), { flags: 0 })),
  'inbound.unknown_vni': comes(vxlan(99, inFrame())),
  'inbound.runt': comes(vxlan(42, new Uint8Array(13))),
  'inbound.bad_source_mac': comes(vxlan(42, inFrame(GROUP))),
  'inbound.loop': comes(vxlan(42, inFrame(ourMac(250)))),
  'inbound.bad_arp': comes(
    vxlan(42, arpFrame({ senderMac: theirMac(), sender: their4(), target: our4(), hardwareLength: 7 })),
  ),
  'inbound.bad_nd': comes(vxlan(42, advertise(theirMac(), their6(), O_FLAG, undefined, {}, { ttl: 1 }))),
  'inbound.neighbour_conflict': comes(
    vxlan(42, arpFrame({ senderMac: theirMac(), sender: their4(0, 200), target: our4() })),
  ),
};
