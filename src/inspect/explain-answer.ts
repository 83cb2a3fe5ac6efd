/**
 * The question and the answer of `weft explain`, as they go over the control socket. Both sides import this file, and it imports
 * nothing.
 */

/** Parameters of /v1/explain, as text. Either a packet is described, or `packet` gives its bytes. */
export interface ExplainQuestion {
  /** Where it goes: an IP address, in layer 2 a MAC too, or the name of a peer: then an address that is its. */
  readonly to?: string;
  /** Where it comes from: an IP address, in layer 2 a MAC too. Default: ours, or with `in` one of that peer's. */
  readonly from?: string;
  /** Layer 2: the MAC that it is sent to, for one who knows what the host has; default: the one that our tables have for `to`. */
  readonly mac?: string;
  /** It comes in from the network, from this peer (name) or underlay address. Without it: it comes from this host. */
  readonly in?: string;
  /** Bytes of the IP packet; default 84, an echo request of `ping`. */
  readonly size?: number;
  /** `1`: it may not be fragmented (IPv4). */
  readonly df?: number;
  /** TTL or hop limit; default 64. */
  readonly ttl?: number;
  /** `icmp`, `udp`, `tcp`, `arp` (in IPv6 a neighbour solicitation), or a protocol's number; default icmp. */
  readonly proto?: string;
  /** Outer TOS or traffic class of what comes in; its lower two bits are ECN. */
  readonly tos?: number;
  /** Layer 2: the network, where there are several. */
  readonly vni?: number;
  /** Bytes in hexadecimal: the packet or frame as our device has it, or with `in` the payload of the UDP datagram. */
  readonly packet?: string;
  /** The virtio header before `packet`, ten bytes in hexadecimal; default zeros: no offload. */
  readonly vnet?: string;
}

/**
 * `sent`: to the network. `delivered`: to our device. `answered`: by us, and it goes no further. `dropped`: `reason` says in which
 * counter.
 */
export type ExplainVerdict = 'sent' | 'delivered' | 'answered' | 'dropped';

export interface ExplainAnswer {
  /** Seen from this host. */
  readonly direction: 'outbound' | 'inbound';
  readonly verdict: ExplainVerdict;
  /** Name of the counter of a drop, as `weft drops` has it. */
  readonly reason: string | null;
  /** One line for people: what becomes of the packet. */
  readonly text: string;
  readonly packet: ExplainedPacket;
  /** Entries of our tables that decide, in the order in which they are asked. */
  readonly entries: readonly ExplainedEntry[];
  /** To whom it goes; with `inbound`, whom it comes from, if that is a peer. At most MOST_EXPLAINED_PEERS. */
  readonly peers: readonly ExplainedPeer[];
  readonly morePeers: number;
  /** What leaves: datagrams, and bytes of each, outer headers not counted. At most as many as peers. */
  readonly datagrams: readonly { readonly bytes: number; readonly to: string }[];
  /** How many in all. */
  readonly datagramCount: number;
  /** What we write back to our device: ICMP errors, ARP and ND answers. */
  readonly answers: readonly ExplainedAnswer[];
  /** By how much which counter would move, by `direction.name`. Bytes and system calls are left out. */
  readonly counters: Readonly<Record<string, number>>;
  /** What may change that, and is not ours to know beforehand: the kernel's word, and how much else comes. */
  readonly depends: readonly ExplainedCondition[];
  /** Layer 2: workers that would do otherwise, since they have learned other things. */
  readonly others: readonly { readonly worker: number; readonly text: string }[];
  /** What else there is to know. */
  readonly notes: readonly string[];
  /** Our device, and what it may carry. */
  readonly device: { readonly name: string; readonly mtu: number };
  /** Inode of the network namespace that the daemon is in. */
  readonly networkNamespace: string;
  /** Nothing is forwarded at all now, and why. */
  readonly shut: string | null;
}

/** Most peers and datagrams in an answer. */
export const MOST_EXPLAINED_PEERS = 64;

export interface ExplainedPacket {
  /** For people: `84 bytes, ICMP echo request, 10.5.1.0 > 10.5.2.1, TTL 64`. */
  readonly text: string;
  /** Bytes of the packet, in layer 2 of the frame. */
  readonly bytes: number;
  /** IP, if it is that. */
  readonly source: string | null;
  readonly destination: string | null;
  /** Layer 2. */
  readonly sourceMac: string | null;
  readonly destinationMac: string | null;
  readonly vni: number | null;
}

export interface ExplainedEntry {
  /** `peers`: who is at an underlay address. */
  readonly table: 'routes' | 'macs' | 'neighbours' | 'floods' | 'peers';
  /** What was looked up, and what was found: a prefix, a MAC, how many peers; null: nothing. */
  readonly key: string;
  readonly entry: string | null;
  readonly origin: 'registry' | 'learned' | null;
  /** Of a learned one, since it was seen last. */
  readonly ageSeconds: number | null;
  /** Whose it is; null: our own side, or nobody. */
  readonly peer: string | null;
  /** One line for people. */
  readonly text: string;
}

export interface ExplainedPeer {
  readonly name: string;
  /** Underlay. */
  readonly address: string;
  readonly port: number;
  /** Largest IP packet that is sent to it whole: now, and by what the registry and our link say. */
  readonly pathMtu: number;
  readonly plannedMtu: number;
}

export interface ExplainedAnswer {
  /** `ICMP fragmentation needed, MTU 1400`, `ARP answer, 10.7.0.2 is at 02:…` */
  readonly text: string;
  readonly bytes: number;
}

export interface ExplainedCondition {
  /** The counter that would move. */
  readonly counter: string;
  /** When it would. */
  readonly when: string;
}
