/**
 * What weftd and the `weft` command say to each other: HTTP/1.1 over a unix socket, JSON answers. Both sides import this file, so
 * there is one truth about it; a change that an older side would misread raises PROTOCOL.
 *
 * Every request and every response carries PROTOCOL_HEADER, every response VERSION_HEADER. Whoever hears another protocol says so
 * in one line and reads no further. What goes wrong is an ErrorAnswer with a status of 400 or above:
 *
 *   400  another protocol, or parameters that make no sense     405  another method
 *   404  no such path, no such peer                             409  somebody captures already
 *   503  the daemon is still starting: what is asked for is not there yet, and the error says what it waits for
 *
 * Times are ISO 8601 in UTC, durations seconds, sizes bytes. `null`: there is none, or it is not known.
 */
import type { ExplainAnswer } from './explain-answer.js';

export type { ExplainAnswer };

export const PROTOCOL = 1;
/** Lower case, as node:http gives them. */
export const PROTOCOL_HEADER = 'weft-protocol';
export const VERSION_HEADER = 'weft-version';

/**
 * Sockets lie at `<RUN_FOLDER>/<inode of the network namespace>/<pid>.sock`. Folders are 0700, sockets 0600, of root. The inode
 * is what /proc/self/ns/net says between its brackets.
 */
export const RUN_FOLDER = '/run/weft';
export const SOCKET_SUFFIX = '.sock';
/** Instead of looking there: the environment of `weft`. */
export const SOCKET_VARIABLE = 'WEFT_SOCKET';

/** Entries of a list; how many more there were is in `more`. */
export const MOST_ENTRIES = 10_000;

export const PATHS = {
  status: '/v1/status',
  peers: '/v1/peers',
  routes: '/v1/routes',
  macs: '/v1/macs',
  neighbours: '/v1/neighbours',
  /** `?all=1`: those too that never moved. */
  drops: '/v1/drops',
  offloads: '/v1/offloads',
  leases: '/v1/leases',
  counters: '/v1/counters',
  /** Parameters: see explain-answer.ts. */
  explain: '/v1/explain',
  /** `?peer=` a peer's name, or its underlay address, or an overlay address that is its. */
  target: '/v1/target',
  /** GET; PUT with `?level=` of LOG_LEVELS changes it until the daemon ends. */
  log: '/v1/log',
  /** A stream until either side closes; parameters and framing: see capture-frames.ts. */
  capture: '/v1/capture',
} as const;

/** What each path answers; capture is a stream and not among them. */
export interface Answers {
  readonly status: StatusAnswer;
  readonly peers: PeersAnswer;
  readonly routes: RoutesAnswer;
  readonly macs: MacsAnswer;
  readonly neighbours: NeighboursAnswer;
  readonly drops: DropsAnswer;
  readonly offloads: OffloadsAnswer;
  readonly leases: LeasesAnswer;
  readonly counters: CountersAnswer;
  readonly explain: ExplainAnswer;
  readonly target: TargetAnswer;
  readonly log: LogAnswer;
}

export interface ErrorAnswer {
  /** One line, without a full stop. */
  readonly error: string;
}

/**
 * `waiting`: for the registry (and `waitingFor` says which). `starting`: being set up. `forwarding`: all is well, or
 * `problem` says what is not. `shut`: nothing is forwarded, because our lease has ended, or a worker does not run.
 */
export type DaemonState = 'waiting' | 'starting' | 'forwarding' | 'shut' | 'stopping';
export type Mode = 'l2' | 'l3';

export interface StatusAnswer {
  readonly pid: number;
  readonly version: string;
  readonly node: string;
  /** Inode of the network namespace that the daemon is in. */
  readonly networkNamespace: string;
  readonly started: string;
  readonly uptimeSeconds: number;
  readonly state: DaemonState;
  /** The same for people, one line; the first of `troubles`, where there are any. */
  readonly text: string;
  /** What is not as weftd set it up or needs it (a device is down, or in no bridge; the host does not forward), one line each. */
  readonly troubles: readonly string[];
  readonly waitingFor: string | null;
  /** Why what is in force may be old, and since when. */
  readonly problem: string | null;
  readonly staleSince: string | null;
  /** From here on null, 0 or empty before it is known. */
  readonly mode: Mode | null;
  /** What moves the packets: `udp`, `vxlan`, `host-gw`, `alloc`. */
  readonly backend: string | null;
  readonly registry: RegistryStatus;
  readonly underlay: UnderlayStatus | null;
  readonly devices: readonly DeviceStatus[];
  /** The overlay, and what of it is ours. */
  readonly networks: readonly string[];
  readonly subnets: readonly string[];
  readonly lease: OwnLease | null;
  /** `longestGapSeconds`: how long a packet may have waited for one in the last minute. */
  readonly workers: {
    readonly wanted: number;
    readonly running: number;
    readonly restarts: number;
    readonly longestGapSeconds: number;
  };
  readonly peers: number;
  readonly routes: number;
  /** Learned and static. */
  readonly macs: number;
  readonly neighbours: number;
  /** Since the start; bytes without outer headers. `drops`: by the engine; `kernelDrops`: by the kernel, at our devices and sockets. */
  readonly traffic: Traffic & { readonly drops: number; readonly kernelDrops: number };
  /** In use. */
  readonly offloads: readonly string[];
  readonly capture: CaptureStatus | null;
  readonly logLevel: string;
  /** Of the daemon's memory, in RAM now. */
  readonly residentBytes: number;
  /** `127.0.0.1:9469` */
  readonly metrics: string | null;
  /** Whether the kernel forwards from interface to interface, which pods need. */
  readonly forwarding: { readonly ipv4: boolean | null; readonly ipv6: boolean | null };
}

export interface RegistryStatus {
  readonly kind: 'embedded' | 'static' | 'etcd';
  /** As in log lines: `peers file /etc/weft/peers.json`. */
  readonly name: string | null;
  /** When it last told something. */
  readonly lastEvent: string | null;
  readonly updates: number;
  /** Updates that could not be put in force. */
  readonly failures: number;
}

export interface UnderlayStatus {
  readonly interface: string;
  /** Of the interface, when weftd looked for it. */
  readonly mtu: number;
  /** Now; null: the interface is gone. */
  readonly link: LinkState | null;
  readonly addresses: readonly string[];
  /** What others are told; mostly the same. */
  readonly publicAddresses: readonly string[];
  /** UDP; null where nothing is encapsulated. */
  readonly port: number | null;
}

export interface DeviceStatus {
  readonly name: string;
  /** Layer 2. */
  readonly vni: number | null;
  /** That it was put into. */
  readonly bridge: string | null;
  /** What weftd gave it. */
  readonly mtu: number;
  readonly addresses: readonly string[];
  /** Now; null: it is gone. */
  readonly link: LinkState | null;
}

/** What the kernel says of an interface. */
export interface LinkState {
  /** Up, and with a carrier. */
  readonly up: boolean;
  readonly mtu: number;
  /** That it is a port of; told of our own devices of layer 2. */
  readonly bridge: string | null;
}

/** Seen from this host: out to peers, in from them. */
export interface Traffic {
  readonly packetsOut: number;
  readonly bytesOut: number;
  readonly packetsIn: number;
  readonly bytesIn: number;
}

export interface CaptureStatus {
  readonly since: string;
  readonly captured: number;
  readonly lost: number;
}

export interface List {
  /** How many entries were left out. */
  readonly more: number;
}

export interface PeersAnswer extends List {
  readonly mode: Mode;
  /** By name. One that is in several of our networks comes once for each. */
  readonly peers: readonly PeerEntry[];
}

export interface PeerEntry extends Traffic {
  readonly name: string;
  /** Underlay; port 0: nothing is encapsulated. */
  readonly address: string;
  readonly port: number;
  /** Layer 2. */
  readonly vni: number | null;
  /** Largest inner IP packet that is sent to it, in bytes (a frame of layer 2 has 14 more); where the kernel sends, the underlay's MTU. */
  readonly pathMtu: number;
  /** What that was before the kernel learned of a narrower path; equal where it did not. */
  readonly plannedMtu: number;
  readonly ecn: boolean;
  readonly subnets: readonly string[];
  /** Layer 2: what the registry says is behind it. */
  readonly macs: readonly string[];
  /** Its reference in the tables, as in captures. */
  readonly ref: number;
}

export interface RoutesAnswer extends List {
  readonly mode: Mode;
  /** By prefix. Layer 2 without a routing kernel has none: its frames go by MAC. */
  readonly routes: readonly RouteEntry[];
}

export interface RouteEntry {
  readonly prefix: string;
  /** Name; null for our own subnets. */
  readonly peer: string | null;
  /** Of the peer in the underlay. */
  readonly address: string | null;
  readonly port: number | null;
  readonly vni: number | null;
  readonly pathMtu: number | null;
  /** `weft`: our tables decide; `kernel`: the host's routes do, and `kernel` says how; `local`: ours. */
  readonly by: 'weft' | 'kernel' | 'local';
  readonly kernel: KernelRouteEntry | null;
}

export interface KernelRouteEntry {
  readonly via: string;
  readonly device: string;
  /** `true`: through our VXLAN device; `false`: over the link itself. */
  readonly encapsulated: boolean;
}

export interface MacsAnswer extends List {
  readonly mode: Mode;
  readonly macs: readonly MacEntry[];
}

export interface MacEntry {
  readonly vni: number;
  readonly mac: string;
  /** null: behind our own device. */
  readonly peer: string | null;
  readonly origin: 'learned' | 'static';
  /** Since it was seen last. */
  readonly ageSeconds: number | null;
}

export interface NeighboursAnswer extends List {
  readonly mode: Mode;
  readonly neighbours: readonly NeighbourEntry[];
}

export interface NeighbourEntry {
  readonly vni: number;
  readonly vlans?: readonly number[];
  readonly address: string;
  readonly mac: string;
  /** Behind whom; null: our own device. */
  readonly peer: string | null;
  readonly router: boolean | null;
  readonly origin: 'learned' | 'static';
  readonly ageSeconds: number | null;
}

export interface DropsAnswer {
  /** In the order of the walk (docs/walk.md), then what the kernel dropped. */
  readonly drops: readonly DropEntry[];
  /** What is no drop and tells of trouble all the same (`socket_full`, `device_errors`, `icmp_limited`, …). */
  readonly notes: readonly DropEntry[];
  /** All that came in, by direction: what the drops are a part of. */
  readonly entered: { readonly outbound: number; readonly inbound: number };
}

export interface DropEntry {
  /** Seen from this host: `outbound` to the peers, `inbound` from them. */
  readonly direction: 'outbound' | 'inbound' | 'tables';
  /** `engine`: counted by weftd; `kernel`: by the kernel, at our device or sockets; `host`: by the kernel for the whole network namespace. */
  readonly by: 'engine' | 'kernel' | 'host';
  /** Name of the counter; `weft capture --verdict` takes those of the engine. */
  readonly reason: string;
  readonly packets: number;
  /** One line for people. */
  readonly meaning: string;
  /** The device, where it is one's. */
  readonly device: string | null;
}

export interface OffloadsAnswer {
  readonly offloads: readonly OffloadEntry[];
  /** Most datagrams in one message to the socket. */
  readonly maxSegments: number;
}

export interface OffloadEntry {
  readonly name: string;
  readonly meaning: string;
  /** By --offload. */
  readonly wanted: boolean;
  /** The kernel could do it, when devices and sockets were opened. */
  readonly granted: boolean;
  /** The kernel refused it since, at run time, and it was switched off. */
  readonly refused: boolean;
  /** granted and not refused. */
  readonly inUse: boolean;
  /** csum, tso4, tso6 in use: our devices have it on now; `false`: somebody switched it off there (ethtool -K). Others: null. */
  readonly device: boolean | null;
}

export interface OwnLease {
  /** `new`, `reused`, `taken over`, `warm` (from memory: the registry is away). */
  readonly how: string;
  readonly secondsLeft: number | null;
  /** False: nothing is forwarded, because it has ended. */
  readonly forwards: boolean;
}

export interface LeasesAnswer extends List {
  /** null: a registry without leases. */
  readonly own: (OwnLease & { readonly subnets: readonly string[] }) | null;
  /** Everyone's, as the registry told last; ours among them if it tells. */
  readonly leases: readonly LeaseEntry[];
}

export interface LeaseEntry {
  /** What the registry knows it by. */
  readonly id: string;
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly subnets: readonly string[];
  readonly vnis: readonly number[];
  readonly macs: readonly string[];
  readonly ours: boolean;
  /** It is in our tables; never so for our own. */
  readonly inForce: boolean;
}

/** For `weft top`: two of these give rates. */
export interface CountersAnswer {
  /** Seconds of CLOCK_MONOTONIC when these were read. */
  readonly monotonic: number;
  /** By `direction.name` (docs/walk.md). Kernel's under `kernel.socket_overflow`, `kernel.device_outbound`, `kernel.device_inbound`. */
  readonly counters: Readonly<Record<string, number>>;
  /** Sums over networks, by name, sorted; at most MOST_ENTRIES. */
  readonly peers: readonly (Traffic & { readonly name: string })[];
  readonly workers: readonly WorkerEntry[];
  /** CPU seconds of the whole process since its start. */
  readonly cpuSeconds: number;
}

export interface WorkerEntry {
  readonly running: boolean;
  /** Seconds since its start. */
  readonly busySeconds: number;
  readonly spinningSeconds: number;
  /** In the last minute: how long a packet may have waited for it. */
  readonly longestGapSeconds: number;
}

/** For `weft ping`, which probes by itself. */
export interface TargetAnswer {
  readonly name: string;
  readonly mode: Mode;
  readonly networkNamespace: string;
  /** Underlay: the peer's address and port, our address of that family, our interface and its MTU; port 0: nothing is encapsulated. */
  readonly address: string;
  readonly port: number;
  readonly ownAddress: string | null;
  readonly interface: string;
  readonly underlayMtu: number;
  /** Bytes that pathMtu has more in the underlay: outer headers, in layer 2 the inner Ethernet header too; 0 where nothing is encapsulated. */
  readonly overhead: number;
  /** Inner, as in PeerEntry. */
  readonly pathMtu: number;
  readonly plannedMtu: number;
  /**
   * Its addresses in the overlay that should answer, and ours to ask from, at most one pair a family: those of the devices; in
   * layer 2, `to` is a neighbour that is known to be behind it. May be empty.
   */
  readonly inner: readonly { readonly from: string; readonly to: string }[];
  /** Our devices that lead there, and in layer 2 their VNIs. */
  readonly devices: readonly string[];
  readonly vnis: readonly number[];
  readonly traffic: Traffic;
}

export interface LogAnswer {
  readonly level: string;
  /** In `trace` to `error`. */
  readonly levels: readonly string[];
  readonly format: string;
}
