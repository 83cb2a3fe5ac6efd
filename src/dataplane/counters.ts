/**
 * Every counter of the two walks. One worker writes a slot, observers sum over workers at scrape; none is computed as a
 * difference. The table below is also the metrics' text and, through docs/walk.md, the map of the walks' exits.
 *
 * Conservation, per engine: in + made = sent + consumed + dropped, where `role` says which sum a counter belongs to
 * (`note` counters belong to none).
 */
import { COUNTERS, type EngineMemory } from '../io/memory.js';

export type CounterRole = 'in' | 'made' | 'sent' | 'consumed' | 'dropped' | 'note' | 'bytes';
/** `tables`: what workers learn, from either direction. */
export type Direction = 'outbound' | 'inbound' | 'tables';

export interface CounterInfo {
  readonly name: string;
  readonly direction: Direction;
  readonly role: CounterRole;
  readonly help: string;
}

const infos: CounterInfo[] = [];

function counter(direction: Direction, role: CounterRole, name: string, help: string): number {
  infos.push({ name, direction, role, help });
  return infos.length - 1;
}

// Outbound: host → network, in the order of the walk.
export const OUT_IN = counter('outbound', 'in', 'device_pulled', 'packets read from the device');
export const OUT_IN_BYTES = counter('outbound', 'bytes', 'device_pulled_bytes', 'bytes read from the device');
export const OUT_SHORT = counter('outbound', 'dropped', 'short', 'shorter than its IP header');
export const OUT_VERSION = counter('outbound', 'dropped', 'bad_version', 'IP version neither 4 nor 6');
export const OUT_HEADER_LENGTH = counter(
  'outbound',
  'dropped',
  'bad_header_length',
  'header length below 20 or beyond the packet',
);
export const OUT_TOTAL_LENGTH = counter(
  'outbound',
  'dropped',
  'bad_total_length',
  'total length differs from what was read',
);
export const OUT_CHECKSUM = counter('outbound', 'dropped', 'bad_header_checksum', 'wrong IPv4 header checksum');
export const OUT_GSO = counter(
  'outbound',
  'dropped',
  'bad_offload',
  'virtio header that lies: gso_type, gso_size, csum_start or csum_offset',
);
export const OUT_NO_ROUTE = counter('outbound', 'dropped', 'no_route', 'no peer owns the destination');
export const OUT_TTL = counter('outbound', 'dropped', 'ttl_exceeded', 'TTL or hop limit used up');
export const OUT_TOO_BIG = counter(
  'outbound',
  'dropped',
  'too_big',
  'larger than the path to its peer and not to be fragmented',
);
export const OUT_FRAGMENTED = counter('outbound', 'made', 'fragments_made', 'extra packets made by fragmenting');
export const OUT_SUPER = counter('outbound', 'note', 'super_packets', 'super-packets read from the device');
export const OUT_SEGMENTS = counter(
  'outbound',
  'made',
  'segments_made',
  'extra packets made by splitting super-packets',
);
export const OUT_OPTIONS = counter('outbound', 'note', 'ip_options', 'packets with IP options, carried');
export const OUT_FRAGMENTS = counter('outbound', 'note', 'ip_fragments', 'fragments, carried');
export const OUT_SENT = counter('outbound', 'sent', 'socket_sent', 'datagrams handed to the socket');
export const OUT_SENT_BYTES = counter(
  'outbound',
  'bytes',
  'socket_sent_bytes',
  'bytes of those datagrams, outer headers not counted',
);
export const OUT_MESSAGES = counter('outbound', 'note', 'messages_sent', 'messages handed to the socket');
export const OUT_CALLS = counter('outbound', 'note', 'send_calls', 'sendmmsg calls');
export const OUT_BLOCKED = counter(
  'outbound',
  'note',
  'socket_full',
  'times the socket took no more and the device had to wait',
);
export const OUT_REPLAYED = counter(
  'outbound',
  'note',
  'messages_replayed',
  'segmented messages refused by the kernel and sent again singly',
);
export const OUT_REFUSED = counter(
  'outbound',
  'dropped',
  'socket_refused',
  'the kernel refused the datagram (firewall, no underlay route)',
);
export const OUT_PATH_MTU = counter(
  'outbound',
  'dropped',
  'path_mtu',
  'the underlay path turned out smaller than the datagram',
);
export const OUT_DEVICE_ERROR = counter('outbound', 'note', 'device_errors', 'reads from the device that failed');

// Inbound: network → host, in the order of the walk.
export const IN_MESSAGES = counter(
  'inbound',
  'note',
  'messages_received',
  'messages received (with UDP_GRO one may hold many datagrams)',
);
export const IN_IN = counter('inbound', 'in', 'socket_received', 'datagrams received');
export const IN_IN_BYTES = counter(
  'inbound',
  'bytes',
  'socket_received_bytes',
  'bytes of those datagrams, outer headers not counted',
);
export const IN_TRUNCATED = counter('inbound', 'dropped', 'truncated', 'datagrams that were longer than the buffer');
export const IN_UNKNOWN_PEER = counter('inbound', 'dropped', 'unknown_peer', 'underlay sender is not a peer');
export const IN_EMPTY = counter('inbound', 'dropped', 'empty', 'datagrams without payload');
export const IN_SHORT = counter('inbound', 'dropped', 'short', 'shorter than its IP header');
export const IN_VERSION = counter('inbound', 'dropped', 'bad_version', 'IP version neither 4 nor 6');
export const IN_HEADER_LENGTH = counter(
  'inbound',
  'dropped',
  'bad_header_length',
  'header length below 20 or beyond the datagram',
);
export const IN_TOTAL_LENGTH = counter(
  'inbound',
  'dropped',
  'bad_total_length',
  'total length differs from the datagram',
);
export const IN_CHECKSUM = counter('inbound', 'dropped', 'bad_header_checksum', 'wrong IPv4 header checksum');
export const IN_TTL = counter('inbound', 'dropped', 'ttl_zero', 'arrived with TTL or hop limit 0');
export const IN_SOURCE = counter(
  'inbound',
  'dropped',
  'spoofed_source',
  "inner source outside the sender's subnets (source-check strict)",
);
export const IN_ECN = counter(
  'inbound',
  'dropped',
  'ecn_ce_not_ect',
  'congestion marked outside, not ECN-capable inside (RFC 6040)',
);
export const IN_CE = counter('inbound', 'note', 'ecn_marked', 'congestion mark copied to the inner header (RFC 6040)');
export const IN_OPTIONS = counter('inbound', 'note', 'ip_options', 'packets with IP options, carried');
export const IN_FRAGMENTS = counter('inbound', 'note', 'ip_fragments', 'fragments, carried');
export const IN_ABOVE_MTU = counter('inbound', 'note', 'above_mtu', "packets larger than the device's MTU, carried");
export const IN_MERGED = counter('inbound', 'consumed', 'merged', 'packets merged into the super-packet before them');
export const IN_SUPER = counter('inbound', 'note', 'super_packets', 'super-packets written to the device');
export const IN_REPLAYED = counter(
  'inbound',
  'made',
  'unmerged',
  'packets split off again because the device refused the super-packet',
);
export const IN_PUSHED = counter('inbound', 'sent', 'device_pushed', 'packets written to the device');
export const IN_PUSHED_BYTES = counter('inbound', 'bytes', 'device_pushed_bytes', 'bytes written to the device');
export const IN_REFUSED = counter('inbound', 'dropped', 'device_refused', 'the device refused the packet');

// ICMP errors about outbound packets, written back to the device.
export const ICMP_MADE = counter('outbound', 'made', 'icmp_made', 'ICMP and ICMPv6 errors made');
export const ICMP_SENT = counter('outbound', 'sent', 'icmp_sent', 'ICMP and ICMPv6 errors written to the device');
export const ICMP_REFUSED = counter('outbound', 'dropped', 'icmp_refused', 'ICMP errors that the device refused');
export const ICMP_LIMITED = counter('outbound', 'note', 'icmp_limited', 'ICMP errors not made, by the rate limit');
export const ICMP_FORBIDDEN = counter(
  'outbound',
  'note',
  'icmp_forbidden',
  'ICMP errors not made: the RFCs forbid them for that packet, or the device has no address of that family',
);

// Outbound, layer 2.
/** From here on, counters of layer 2 only. */
export const FIRST_OF_LAYER_2 = infos.length;
export const OUT_RUNT = counter('outbound', 'dropped', 'runt', 'frame shorter than its Ethernet header');
export const OUT_SOURCE_MAC = counter('outbound', 'dropped', 'bad_source_mac', 'source MAC is a group or zero');
export const OUT_BAD_ARP = counter('outbound', 'dropped', 'bad_arp', 'ARP for IPv4 with wrong lengths');
export const OUT_BAD_ND = counter(
  'outbound',
  'dropped',
  'bad_nd',
  'neighbour discovery that RFC 4861 forbids: hop limit, length or option length',
);
export const OUT_CONFLICT = counter(
  'outbound',
  'dropped',
  'neighbour_conflict',
  'ARP or ND that gives the address of a static neighbour to another MAC',
);
export const OUT_ANSWERED = counter('outbound', 'consumed', 'answered', 'ARP and ND requests answered here');
export const OUT_SAME_PORT = counter('outbound', 'dropped', 'same_port', 'destination MAC is on the side it came from');
export const OUT_NOT_FLOODED = counter(
  'outbound',
  'dropped',
  'not_flooded',
  'broadcast or multicast where nothing is flooded',
);
export const OUT_UNKNOWN_UNICAST = counter(
  'outbound',
  'dropped',
  'unknown_unicast',
  'nobody knows the destination MAC (unknown-unicast drop, or nothing is flooded)',
);
export const OUT_STORM = counter('outbound', 'dropped', 'storm', 'frames to flood beyond storm-limit');
export const OUT_NO_PEER = counter('outbound', 'dropped', 'no_peer', 'frames to flood in a network without peers');
export const OUT_FLOODED = counter(
  'outbound',
  'note',
  'flooded',
  'frames flooded: broadcast, multicast, unknown unicast',
);
export const OUT_COPIES = counter('outbound', 'made', 'flood_copies', 'extra packets made by flooding');
export const ARP_MADE = counter('outbound', 'made', 'arp_answers_made', 'ARP answers made');
export const ND_MADE = counter('outbound', 'made', 'nd_answers_made', 'neighbour advertisements made');
export const ANSWER_SENT = counter('outbound', 'sent', 'answers_sent', 'ARP and ND answers written to the device');
export const ANSWER_REFUSED = counter(
  'outbound',
  'dropped',
  'answers_refused',
  'ARP and ND answers that the device refused',
);

// Inbound, layer 2.
export const IN_VXLAN_SHORT = counter('inbound', 'dropped', 'short_vxlan', 'shorter than a VXLAN header');
export const IN_VXLAN_FLAG = counter('inbound', 'dropped', 'no_vni_flag', 'VXLAN header without the I flag');
export const IN_UNKNOWN_VNI = counter(
  'inbound',
  'dropped',
  'unknown_vni',
  'VNI that is none of our networks over that underlay',
);
export const IN_RUNT = counter('inbound', 'dropped', 'runt', 'inner frame shorter than its Ethernet header');
export const IN_SOURCE_MAC = counter('inbound', 'dropped', 'bad_source_mac', 'source MAC is a group or zero');
export const IN_LOOP = counter(
  'inbound',
  'dropped',
  'loop',
  "source MAC is our own device's, its bridge's, or one that the registry says is behind them",
);
export const IN_BAD_ARP = counter('inbound', 'dropped', 'bad_arp', 'ARP for IPv4 with wrong lengths');
export const IN_BAD_ND = counter(
  'inbound',
  'dropped',
  'bad_nd',
  'neighbour discovery that RFC 4861 forbids: hop limit, length or option length',
);
export const IN_CONFLICT = counter(
  'inbound',
  'dropped',
  'neighbour_conflict',
  'ARP or ND that gives the address of a static neighbour to another MAC',
);
export const IN_PARTIAL = counter(
  'inbound',
  'note',
  'partial_checksums',
  'frames whose sender, a kernel across a veth, left the checksum to the device',
);
export const IN_UNSEGMENTED = counter(
  'inbound',
  'note',
  'unsegmented',
  'frames above the MTU whose sender, a kernel across a veth, left segmentation to the device',
);

// What workers learn, layer 2.
export const MACS_LEARNED = counter('tables', 'note', 'macs_learned', 'MACs learned');
export const MACS_MOVED = counter(
  'tables',
  'note',
  'macs_moved',
  'MACs that moved to another peer, or between us and one',
);
export const MACS_AGED = counter(
  'tables',
  'note',
  'macs_aged',
  'MACs forgotten because nothing came from them, or their peer went',
);
export const MACS_HELD = counter('tables', 'note', 'mac_moves_held', 'moves not followed: more than 5 in 10 s');
export const MACS_OVER_LIMIT = counter(
  'tables',
  'note',
  'macs_over_limit',
  'MACs not learned: their peer has its share',
);
export const MACS_FULL = counter('tables', 'note', 'macs_table_full', 'MACs not learned: the table is full');
export const NEIGHBOURS_LEARNED = counter(
  'tables',
  'note',
  'neighbours_learned',
  'neighbours learned, or taught another MAC',
);
export const NEIGHBOURS_AGED = counter('tables', 'note', 'neighbours_aged', 'neighbours forgotten');
export const NEIGHBOURS_FULL = counter(
  'tables',
  'note',
  'neighbours_table_full',
  'neighbours not learned: the table is full, or their peer has its share',
);
export const RING_FULL = counter(
  'tables',
  'note',
  'ring_full',
  'things learned that another worker could not be told at once',
);

export const COUNTER_INFOS: readonly CounterInfo[] = infos;
if (infos.length > COUNTERS) throw new Error(`${infos.length} counters do not fit into ${COUNTERS} slots`);

/** Sums one counter over all workers. Safe from any thread: an aligned 8-byte load is never torn. */
export function readCounter(memory: EngineMemory, id: number): number {
  let sum = 0;
  for (const worker of memory.layout.workers) sum += memory.f64[(worker.counters >> 3) + id];
  return sum;
}

/** Sums of each role: `in + made` equals `sent + consumed + dropped` once the engine is idle. */
export function conservation(memory: EngineMemory): Record<CounterRole, number> {
  const sums: Record<CounterRole, number> = { in: 0, made: 0, sent: 0, consumed: 0, dropped: 0, note: 0, bytes: 0 };
  COUNTER_INFOS.forEach((info, id) => {
    sums[info.role] += readCounter(memory, id);
  });
  return sums;
}
