/** What a worker is told when it starts; everything else it learns from the shared memory. */
import type { SharedMemory } from '../io/memory.js';

export type SourceCheck = 'peer' | 'strict' | 'off';

/** A network of a switch, which has a device of its own. */
export interface SwitchedNetwork {
  /** VXLAN network identifier, 24 bits. */
  readonly vni: number;
  /** The device's MTU in bytes. */
  readonly mtu: number;
  /**
   * The only underlay it may arrive over; undefined: either. Two networks may have one VNI if they differ in this. Sending
   * goes by the peer's address anyway.
   */
  readonly family?: 4 | 6 | undefined;
}

/** What makes an engine a switch (layer 2). */
export interface SwitchSettings {
  readonly networks: readonly SwitchedNetwork[];
  /**
   * MACs and neighbours are learned, of our own side and of peers. False: nothing is ever, and only what the registry says
   * counts, as in a kernel's VXLAN device with `nolearning`.
   */
  readonly learning: boolean;
  /**
   * Broadcast, multicast and (`floodUnknown`) unknown unicast from our own side go to all peers. False: to none, as in a
   * kernel's VXLAN device without a default entry.
   */
  readonly floods: boolean;
  /** Milliseconds without traffic after which what was learned is forgotten. */
  readonly age: number;
  /** Most MACs learned from one peer. */
  readonly macsPerPeer: number;
  /** Frames to a MAC that nobody knows: to all peers, or to none. */
  readonly floodUnknown: boolean;
  /** Most frames flooded in a second, per network; 0: no limit. */
  readonly stormLimit: number;
}

export interface EngineSettings {
  /** `peer`: underlay sender must be a peer. `strict`: and own the inner source. `off`: anyone, as flannel does. */
  readonly sourceCheck: SourceCheck;
  /** Offloads in use (io/offloads.ts), as the device and the sockets granted them. */
  readonly offloads: number;
  /** Most datagrams one message may hold. */
  readonly maxSegments: number;
  /** Copy the inner DSCP to the outer header; default not. */
  readonly inheritDscp?: boolean;
  /** Layer 2; undefined: layer 3, for which the three below are. */
  readonly l2?: SwitchSettings | undefined;
  /** The device's MTU in bytes. */
  readonly mtu: number;
  /** The device's own addresses, network byte order: the sources of ICMP errors. */
  readonly address4: Uint8Array | undefined;
  readonly address6: Uint8Array | undefined;
}

/** workerData of dataplane/worker.js. Descriptors belong to main, which outlives the worker. */
export interface WorkerData {
  readonly shared: SharedMemory;
  /** 0-based index of this worker. */
  readonly worker: number;
  /** By network; layer 3 has one. */
  readonly deviceFds: readonly number[];
  /** By family: IPv4 first, IPv6 second; -1 where there is none. They receive, and send where there are no senders. */
  readonly socketFds: readonly [number, number];
  /** By family: sockets that only send, one a source port; empty: the one that receives. */
  readonly senderFds: readonly [readonly number[], readonly number[]];
  /** An eventfd that ends this worker's poll. */
  readonly wakeFd: number;
  readonly settings: EngineSettings;
}
