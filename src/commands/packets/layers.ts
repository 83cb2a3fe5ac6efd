/** A captured packet, taken apart: its layers from the outside in, as `weft decode -j` prints them. */

export type Layer =
  | EthernetLayer
  | ArpLayer
  | IpLayer
  | TcpLayer
  | UdpLayer
  | IcmpLayer
  | VxlanLayer
  | OtherLayer
  | BrokenLayer;

export interface EthernetLayer {
  readonly layer: 'ethernet';
  readonly source: string;
  readonly destination: string;
  /** From the outer tag to the inner one. */
  readonly vlans: readonly number[];
  /** Behind the tags. */
  readonly type: number;
}

export interface ArpLayer {
  readonly layer: 'arp';
  readonly operation: 'request' | 'reply' | number;
  readonly senderMac: string;
  readonly sender: string;
  readonly targetMac: string;
  readonly target: string;
}

export interface IpLayer {
  readonly layer: 'ipv4' | 'ipv6';
  readonly source: string;
  readonly destination: string;
  /** TTL or hop limit. */
  readonly ttl: number;
  readonly dscp: number;
  readonly ecn: number;
  /** Of the whole packet, header included, in bytes. */
  readonly length: number;
  /** What follows, behind all extension headers. */
  readonly protocol: number;
  /** IPv4: the DF flag. */
  readonly dontFragment?: boolean;
  /** IPv4. */
  readonly checksum?: 'good' | 'wrong';
  /** Only of fragments; the offset in bytes. */
  readonly fragment?: { readonly id: number; readonly offset: number; readonly more: boolean };
}

/**
 * `offload`: it is what a sender leaves whose device is to finish it. `none`: UDP without. Undefined: not all bytes are there.
 */
export type Checksum = 'good' | 'wrong' | 'offload' | 'none';

export interface TcpLayer {
  readonly layer: 'tcp';
  readonly from: number;
  readonly to: number;
  readonly sequence: number;
  readonly acknowledgement: number;
  /** `SYN`, `ACK`, … */
  readonly flags: readonly string[];
  readonly window: number;
  /** Bytes behind the header. */
  readonly payload: number;
  readonly checksum: Checksum | undefined;
}

export interface UdpLayer {
  readonly layer: 'udp';
  readonly from: number;
  readonly to: number;
  readonly payload: number;
  readonly checksum: Checksum | undefined;
}

export interface IcmpLayer {
  readonly layer: 'icmp' | 'icmpv6';
  readonly type: number;
  readonly code: number;
  /** In words. */
  readonly meaning: string;
  /** Of an echo. */
  readonly id?: number;
  readonly sequence?: number;
  /** Of fragmentation needed, and packet too big. */
  readonly mtu?: number;
  /** Of neighbour discovery. */
  readonly target?: string;
  /** The packet that an error is about, as much of it as it quotes. */
  readonly about?: readonly Layer[];
  readonly checksum: Checksum | undefined;
}

export interface VxlanLayer {
  readonly layer: 'vxlan';
  /** Undefined: the header does not have the flag that says that it has one. */
  readonly vni: number | undefined;
}

/** What is not looked into. */
export interface OtherLayer {
  readonly layer: 'other';
  readonly what: string;
  readonly bytes: number;
}

/** Bytes that contradict themselves, or that the capture cut off. */
export interface BrokenLayer {
  readonly layer: 'broken';
  readonly reason: string;
}
