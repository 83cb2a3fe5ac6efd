/**
 * The engine's one memory: where every packet, iovec, message array, table and counter lives.
 *
 * It is a shared WebAssembly.Memory whose initial size is its maximum, so it never moves: the kernel reaches it by address,
 * TypeScript by typed arrays, the WASM kernels as their linear memory, and both threads see the same bytes. Untouched
 * pages cost nothing, so regions are sized for the worst case.
 *
 * The layout is a pure function of the options: main and worker each compute it and agree. Every region is followed by
 * guard bytes that nobody may write; `intactGuards()` finds a stray write.
 *
 * Offsets (`at`) are byte offsets into the memory. Only `EngineMemory.iovec` and `pointer` turn them into addresses.
 */
export interface MemoryOptions {
  /** Dataplane workers, 1 to 8: each has its own I/O regions and counters. */
  readonly workers: number;
  /** Peer slots. */
  readonly peers: number;
  /** Nodes of 16 entries in each version of the route tables. */
  readonly routeNodes: number;
  /** Networks (VNIs); layer 3 has one. */
  readonly networks: number;
  /** Most MACs that each worker learns; default 0, layer 3. */
  readonly macs?: number;
  /** Most neighbours (IP addresses) that each worker learns; default 0. */
  readonly neighbours?: number;
  /** Most MACs, and most neighbours, that the registry may name; default 0. */
  readonly statics?: number;
  /** Sockets per underlay that send; default 1, the one that receives. */
  readonly senders?: number;
}

/** Most peers of a node. There are twice as many slots, so that every peer can be replaced in one change. */
export const MAX_PEERS = 16384;

/** Most networks of a daemon: each has a device that every worker polls. */
export const MAX_NETWORKS = 16;
/** Most sockets per underlay that send (`--source-ports`). */
export const MAX_SENDERS = 8;

export const DEFAULT_MEMORY: MemoryOptions = {
  workers: 1,
  peers: 2 * MAX_PEERS,
  routeNodes: 1 << 19,
  networks: 1,
};

/** Most messages one sendmmsg batch may hold, per underlay. */
export const SEND_MESSAGES = 2048;
/** Most separate pieces one outgoing message may gather. */
export const SEND_PIECES = 16;
/** Messages one recvmmsg takes (hot-path.md: 16). */
export const RECEIVE_MESSAGES = 16;
/** Longest datagram or GRO run that recvmmsg can deliver. */
export const RECEIVE_ROOM = 65536;
/** Bytes kept free before each receive buffer, for the virtio header of its first packet. */
export const HEADROOM = 64;
/** Open merges, direct-mapped by a hash of the flow. */
export const MERGE_SLOTS = 64;
/** Words (i32) of state of one open merge; see kernels/merge.ts. */
export const MERGE_WORDS = 16;
/** Longest IP packet. */
export const MAX_PACKET = 65535;
/** Longest frame: an Ethernet header with two VLAN tags, and the longest IP packet; rounded up. */
export const MAX_FRAME = 65600;
/** Outgoing packets of one batch, in place: 32 super-packets and their extra headers. */
export const ARENA_BYTES = 3 << 20;
/** Control bytes of one outgoing message: UDP_SEGMENT (24) and TOS (24). */
export const SEND_CONTROL = 48;
/** Control bytes kept for one incoming message. */
export const RECEIVE_CONTROL = 128;

export const SIZEOF_MMSGHDR = 64;
export const SIZEOF_IOVEC = 16;
export const SIZEOF_SOCKADDR = 32;
/** Bytes of virtio_net_hdr without num_buffers (linux/virtio_net.h); what a TUN with IFF_VNET_HDR exchanges. */
export const VNET_HEADER = 10;

/** Each half of the scratch area holds a longest packet cut into at most 512 segments, with all their headers. */
export const SCRATCH_HALF = 2 * 65536;

const GUARD_BYTES = 64;
const GUARD = 0xa5;

/** One worker's own regions, all byte offsets. */
export interface WorkerLayout {
  readonly counters: number;
  readonly peerCounters: number;
  /** Where readv puts the virtio header of a packet from the device. */
  readonly vnetIn: number;
  /** Two iovecs for readv from the device. */
  readonly pullIov: number;
  /** One iovec for writev to the device. */
  readonly pushIov: number;
  readonly arena: number;
  /** Per sending socket (`sendIndex`): mmsghdr, iovec, control and sockaddr arrays of the outgoing batch. */
  readonly send: readonly {
    readonly messages: number;
    readonly iovecs: number;
    readonly controls: number;
    readonly names: number;
  }[];
  readonly receive: {
    readonly messages: number;
    readonly iovecs: number;
    readonly controls: number;
    readonly names: number;
    /** First receive buffer's data; buffer i is at `buffers + i * stride`. */
    readonly buffers: number;
    readonly stride: number;
  };
  /** MERGE_SLOTS states of MERGE_WORDS words. */
  readonly mergeStates: number;
  /** First merge buffer's data (a virtio header fits before it); buffer i at `mergeBuffers + i * mergeStride`. */
  readonly mergeBuffers: number;
  readonly mergeStride: number;
  /** ICMP messages, fragments and replays are built here; two halves of SCRATCH_HALF bytes. */
  readonly scratch: number;
  readonly pollfds: number;
  readonly timespec: number;
  /** Results of kernels that return more than one value. */
  readonly kernelOut: number;
  /** Learned MACs: `macSlots` entries of MAC_BYTES. */
  readonly macs: number;
  /** By the same slots: what is not needed for every frame about each of them, MAC_BYTES too. */
  readonly macDetails: number;
  /** Learned neighbours: `neighbourSlots` entries of NEIGHBOUR_BYTES. */
  readonly neighbours: number;
  /** By receiving worker: the ring in which this one tells it what it has learned; RING_BYTES each. */
  readonly rings: readonly number[];
  /** HISTOGRAMS of HISTOGRAM_SLOTS counts (f64); see dataplane/histograms.ts. */
  readonly histograms: number;
  /** GAUGES values (f64): see dataplane/gauges.ts. */
  readonly gauges: number;
  /** CAPTURE_BYTES: packets that somebody watches (dataplane/tap.ts); never touched, and so no memory, until somebody does. */
  readonly capture: number;
  /** Slots of its hashes of learned MACs and neighbours, powers of two; 0 in layer 3. */
  readonly macSlots: number;
  readonly neighbourSlots: number;
}

/** Instead of a worker's index: the engine that forwards nothing (dataplane/dry.ts), whose regions are `Layout.dry`. */
export const DRY = -1;

/** One version of the tables. */
export interface TableLayout {
  /** networks × 65,536 entries (i32) for IPv4, then the same for IPv6. */
  readonly roots4: number;
  readonly roots6: number;
  /** Nodes of 16 entries. */
  readonly nodes: number;
  /** Open-addressed hash of underlay addresses. */
  readonly addresses: number;
  /** Open-addressed hashes of what the registry says: `staticSlots` entries of MAC_BYTES and of NEIGHBOUR_BYTES. */
  readonly staticMacs: number;
  readonly staticNeighbours: number;
  /** Whom a network's frames are flooded to: per network `peers` + 1 words, a count and then references. */
  readonly floods: number;
}

export interface Layout {
  /** Words shared by control and workers; see dataplane/shared.ts. */
  readonly words: number;
  readonly peers: number;
  readonly tables: readonly [TableLayout, TableLayout];
  readonly addressSlots: number;
  /** Slots of the hashes, powers of two; 0 in layer 3. */
  readonly macSlots: number;
  readonly neighbourSlots: number;
  readonly staticSlots: number;
  /** NETWORK_BYTES for each network; see dataplane/networks.ts. */
  readonly networks: number;
  /** CAPTURE_FILTER_BYTES: what is to be captured, written by control before it turns capture on; see dataplane/tap.ts. */
  readonly captureFilter: number;
  readonly workers: readonly WorkerLayout[];
  /**
   * Of the engine that forwards nothing and tells what would become of a packet: no worker's, in no sum. It has no rings and no
   * capture, and its tables are small. Never touched, and so no memory, until somebody asks.
   */
  readonly dry: WorkerLayout;
  readonly guards: readonly number[];
  readonly bytes: number;
}

export const SHARED_WORDS = 256;
export const COUNTERS = 128;
/** Histograms of one worker, and slots of one: one for each number of bits that an i32 can have. */
export const HISTOGRAMS = 4;
export const HISTOGRAM_SLOTS = 32;
/** What a worker says of itself and its tables. */
export const GAUGES = 8;
/** Bytes of one peer record; see dataplane/peers.ts. */
export const PEER_BYTES = 128;
/** Counters (f64) of one peer: packets and bytes, out and in. */
export const PEER_COUNTERS = 4;
/** Bytes of one entry of the underlay address hash. */
export const ADDRESS_BYTES = 32;
/** Bytes of one entry of a MAC table, and of a learned one's details; see dataplane/macs.ts. */
export const MAC_BYTES = 16;
/** Bytes of one entry of a neighbour table; see dataplane/neighbours.ts. */
export const NEIGHBOUR_BYTES = 64;
/** Bytes of a ring between two workers; see dataplane/rings.ts. */
export const RING_BYTES = 64 + 1024 * 64;
/** Bytes of one worker's capture ring: some thousand packets of full length. */
export const CAPTURE_BYTES = 8 << 20;
/** Bytes in which control says what is to be captured. */
export const CAPTURE_FILTER_BYTES = 4096;
/** Bytes that control tells workers of one network. */
export const NETWORK_BYTES = 64;
/** Slots of the learned tables of `Layout.dry`: for what one packet asks for. */
export const DRY_SLOTS = 64;
const SCRATCH_BYTES = 2 * SCRATCH_HALF;
const UNDERLAYS = 2;

/** Where the arrays of an underlay's `sender`th socket are in `WorkerLayout.send`. */
export const sendIndex = ({ senders = 1 }: MemoryOptions, underlay: number, sender: number): number =>
  underlay * senders + sender;

/** Slots of an open-addressed hash for `most` entries, at most half full. */
const slotsFor = (most: number): number => (most === 0 ? 0 : 1 << Math.ceil(Math.log2(most * 2)));

/** The regions of a worker, or of DRY. */
export const workerLayout = ({ workers, dry }: Layout, worker: number): WorkerLayout =>
  worker === DRY ? dry : workers[worker];

export function layoutFor(options: MemoryOptions): Layout {
  let next = 1024; // nothing lives at the first addresses, so a zero offset is always a bug
  const guards: number[] = [];
  const take = (bytes: number, headroom = 0): number => {
    const at = Math.ceil((next + headroom) / 64) * 64;
    next = at + bytes;
    guards.push(next);
    next += GUARD_BYTES;
    return at;
  };
  const addressSlots = 1 << Math.ceil(Math.log2(options.peers * 4));
  const { macs = 0, neighbours = 0, statics = 0, senders = 1 } = options;
  const macSlots = slotsFor(macs);
  const neighbourSlots = slotsFor(neighbours);
  const staticSlots = slotsFor(statics);
  const words = take(SHARED_WORDS * 4);
  const networks = take(options.networks * NETWORK_BYTES);
  const captureFilter = take(CAPTURE_FILTER_BYTES);
  const peers = take(options.peers * PEER_BYTES);
  const table = (): TableLayout => ({
    roots4: take(options.networks * 65536 * 4),
    roots6: take(options.networks * 65536 * 4),
    nodes: take(options.routeNodes * 64),
    addresses: take(addressSlots * ADDRESS_BYTES),
    staticMacs: take(staticSlots * MAC_BYTES),
    staticNeighbours: take(staticSlots * NEIGHBOUR_BYTES),
    floods: take(options.networks * (options.peers + 1) * 4),
  });
  const tables: [TableLayout, TableLayout] = [table(), table()];
  const strided = (count: number, stride: number): number => {
    const at = take(count * stride - GUARD_BYTES - HEADROOM, HEADROOM);
    for (let i = 1; i < count; i++) guards.push(at + i * stride - HEADROOM - GUARD_BYTES);
    return at;
  };
  const sendArrays = () => ({
    messages: take(SEND_MESSAGES * SIZEOF_MMSGHDR),
    iovecs: take(SEND_MESSAGES * SEND_PIECES * SIZEOF_IOVEC),
    controls: take(SEND_MESSAGES * SEND_CONTROL),
    names: take(SEND_MESSAGES * SIZEOF_SOCKADDR),
  });
  const worker = (dry: boolean): WorkerLayout => {
    const receiveStride = RECEIVE_ROOM + HEADROOM + GUARD_BYTES;
    const mergeStride = MAX_FRAME + HEADROOM + GUARD_BYTES;
    const ownMacSlots = dry ? Math.min(macSlots, DRY_SLOTS) : macSlots;
    const ownNeighbourSlots = dry ? Math.min(neighbourSlots, DRY_SLOTS) : neighbourSlots;
    return {
      counters: take(COUNTERS * 8),
      peerCounters: take(options.peers * PEER_COUNTERS * 8),
      vnetIn: take(16),
      pullIov: take(2 * SIZEOF_IOVEC),
      pushIov: take(SIZEOF_IOVEC),
      arena: take(ARENA_BYTES, HEADROOM),
      // Of one packet at a time, which only one sender of an underlay gets, all senders can have the same.
      send: Array.from({ length: UNDERLAYS }, () => {
        const all = Array.from({ length: dry ? 1 : senders }, sendArrays);
        return Array.from({ length: senders }, (_, sender) => all[sender % all.length]);
      }).flat(),
      receive: {
        messages: take(RECEIVE_MESSAGES * SIZEOF_MMSGHDR),
        iovecs: take(RECEIVE_MESSAGES * SIZEOF_IOVEC),
        controls: take(RECEIVE_MESSAGES * RECEIVE_CONTROL),
        names: take(RECEIVE_MESSAGES * SIZEOF_SOCKADDR),
        buffers: strided(RECEIVE_MESSAGES, receiveStride),
        stride: receiveStride,
      },
      mergeStates: take(MERGE_SLOTS * MERGE_WORDS * 4),
      mergeBuffers: strided(MERGE_SLOTS, mergeStride),
      mergeStride,
      scratch: take(SCRATCH_BYTES, HEADROOM),
      pollfds: take(8 * (1 + MAX_NETWORKS + UNDERLAYS * (1 + MAX_SENDERS))),
      timespec: take(16),
      kernelOut: take(64),
      macs: take(ownMacSlots * MAC_BYTES),
      macDetails: take(ownMacSlots * MAC_BYTES),
      neighbours: take(ownNeighbourSlots * NEIGHBOUR_BYTES),
      rings: Array.from({ length: dry ? 0 : options.workers }, () => take(options.workers > 1 ? RING_BYTES : 0)),
      histograms: take(HISTOGRAMS * HISTOGRAM_SLOTS * 8),
      gauges: take(GAUGES * 8),
      capture: take(dry ? 0 : CAPTURE_BYTES),
      macSlots: ownMacSlots,
      neighbourSlots: ownNeighbourSlots,
    };
  };
  const workers = Array.from({ length: options.workers }, () => worker(false));
  const dry = worker(true);
  return {
    words,
    peers,
    tables,
    addressSlots,
    macSlots,
    neighbourSlots,
    staticSlots,
    networks,
    captureFilter,
    workers,
    dry,
    guards,
    bytes: next,
  };
}

/** What a worker thread needs to see the same memory. */
export interface SharedMemory {
  readonly memory: WebAssembly.Memory;
  readonly options: MemoryOptions;
}

export class EngineMemory {
  readonly memory: WebAssembly.Memory;
  readonly options: MemoryOptions;
  readonly layout: Layout;
  /** Views of the whole memory. `i32[at >> 2]`, `f64[at >> 3]`. */
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly i32: Int32Array;
  readonly f64: Float64Array;
  readonly #baseLow: number;
  readonly #baseHigh: number;
  readonly #carryAt: number;
  readonly #base: number;

  /**
   * `addressOf` (of syscalls.ts) finds where the memory lies for the kernel. Without it addresses count from 0, as the
   * in-memory device and socket do, and no native code is loaded.
   */
  constructor(shared: SharedMemory, addressOf?: (bytes: Uint8Array) => number) {
    this.memory = shared.memory;
    this.options = shared.options;
    this.layout = layoutFor(shared.options);
    const buffer = shared.memory.buffer;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.f64 = new Float64Array(buffer);
    this.#base = addressOf ? addressOf(this.u8) : 0;
    this.#baseLow = this.#base | 0;
    this.#baseHigh = Math.floor(this.#base / 2 ** 32);
    // The offset at which base + offset passes a multiple of 2^32; clamped, since it is only compared with offsets.
    this.#carryAt = Math.min(2 ** 32 - (this.#base % 2 ** 32), 2 ** 31 - 1);
    if (this.layout.bytes >= 2 ** 31 - 1) throw new RangeError('engine memory must stay below 2 GiB');
  }

  /** Makes a memory of the size that `options` need. */
  static create(options: MemoryOptions, addressOf?: (bytes: Uint8Array) => number): EngineMemory {
    const pages = Math.ceil(layoutFor(options).bytes / 65536);
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    const made = new EngineMemory({ memory, options }, addressOf);
    for (const at of made.layout.guards) made.u8.fill(GUARD, at, at + GUARD_BYTES);
    return made;
  }

  /** The address of a byte. A heap number: make it once, not per packet. */
  pointer(at: number): number {
    return this.#base + at;
  }

  /** Writes the 8-byte address of byte `at` to `to`, without making a number above 2^31. */
  writePointer(to: number, at: number): void {
    this.i32[to >> 2] = (this.#baseLow + at) | 0;
    this.i32[(to >> 2) + 1] = at >= this.#carryAt ? this.#baseHigh + 1 : this.#baseHigh;
  }

  /** Writes a struct iovec of `length` bytes from byte `at`. */
  writeIovec(to: number, at: number, length: number): void {
    this.writePointer(to, at);
    this.i32[(to >> 2) + 2] = length;
    this.i32[(to >> 2) + 3] = 0;
  }

  /** The offset that the 8-byte address at `from` points to; outside [0, bytes) if it points elsewhere. */
  readPointer(from: number): number {
    return (this.i32[(from >> 2) + 1] >>> 0) * 2 ** 32 + (this.i32[from >> 2] >>> 0) - this.#base;
  }

  /** True while no guard byte has been written. */
  intactGuards(): boolean {
    return this.layout.guards.every((at) => {
      for (let i = at; i < at + GUARD_BYTES; i++) if (this.u8[i] !== GUARD) return false;
      return true;
    });
  }

  share(): SharedMemory {
    return { memory: this.memory, options: this.options };
  }
}
