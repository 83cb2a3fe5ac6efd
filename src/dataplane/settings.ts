/** What a worker is told when it starts; everything else it learns from the shared memory. */
import type { SharedMemory } from '../io/memory.js';

export type SourceCheck = 'peer' | 'strict' | 'off';

export interface EngineSettings {
  /** `peer`: underlay sender must be a peer. `strict`: and own the inner source. `off`: anyone, as flannel does. */
  readonly sourceCheck: SourceCheck;
  /** Offloads in use (io/offloads.ts), as the device and the sockets granted them. */
  readonly offloads: number;
  /** Most datagrams one message may hold. */
  readonly maxSegments: number;
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
  readonly deviceFd: number;
  /** By family: IPv4 first, IPv6 second; -1 where there is none. */
  readonly socketFds: readonly [number, number];
  /** An eventfd that ends this worker's poll. */
  readonly wakeFd: number;
  readonly settings: EngineSettings;
}
