/** What metrics are made of, without a daemon: a memory, and stands-ins for control that a test can change. */
import type { LoopState } from '../../src/control/loop.js';
import { EngineMemory, type MemoryOptions } from '../../src/io/memory.js';
import { ALL_OFFLOADS, OFFLOADS } from '../../src/io/offloads.js';
import type { Observed } from '../../src/observe/metrics.js';
import type { PeerInForce } from '../../src/observe/tables.js';

export interface ObservedRig {
  readonly memory: EngineMemory;
  readonly observed: Observed;
  readonly peers: PeerInForce[];
  readonly state: { now: LoopState };
}

export function makeObserved(workers: number, options: Partial<MemoryOptions> = {}): ObservedRig {
  const memory = EngineMemory.create({ workers, peers: 512, routeNodes: 64, networks: 1, ...options });
  const peers = [
    { name: 'c', ref: (1 << 16) | 3 },
    { name: 'b', ref: (9 << 16) | 7 },
  ];
  const state = {
    now: {
      synced: true,
      problem: undefined as string | undefined,
      staleSince: 0,
      updates: 4,
      lastEvent: 1_700_000_001_250,
      applied: 3,
      failures: 1,
      lastApplied: 1_700_000_000_500,
    },
  };
  const observed: Observed = {
    version: '1.2.3',
    memory,
    mtu: 1472,
    segments: [],
    deviceDrops: () => new Map([['flannel0', { outbound: 21, inbound: 22 }]]),
    host: { routes: 3, refused: 1 },
    requests: () => 12,
    forwarding: { summary: async () => ({ macs: [], neighbours: [], oldest: [] }) },
    tables: { routeCount: 5, routeFill: 0.25, peerCount: 128, macCount: 0, neighbourCount: 0 },
    peers: () => peers,
    workers: { running: workers, restarts: 2, socketDrops: 7, offloads: ALL_OFFLOADS & ~OFFLOADS.uso },
    loop: {
      get state() {
        return state.now;
      },
    },
    applier: { carriedOut: { 'add-peer': 6, 'set-route': 0 } },
    lease: { secondsLeft: () => 41.5, forwards: () => true },
    capturing: () => true,
    pathMtu: { lowered: 1 },
  };
  return { memory, observed, peers, state };
}

/** What layer 2 has besides, for a memory made with MACs, neighbours and statics: two networks. */
export const LAYER_2: Pick<Observed, 'segments' | 'forwarding'> = {
  segments: [
    { vni: 42, device: 'weft42', mtu: 1450 },
    { vni: 7, device: 'red', mtu: 9000 },
  ],
  forwarding: {
    summary: async () => ({
      macs: [
        { local: 1, peer: 2, static: 3 },
        { local: 0, peer: 0, static: 0 },
      ],
      neighbours: [
        { learned: 4, static: 5 },
        { learned: 0, static: 6 },
      ],
      oldest: [12.5, 0],
    }),
  },
};

/** The samples in a scrape: name and labels to value. */
export const samplesOf = (text: string): Map<string, number> =>
  new Map(
    text
      .split('\n')
      .filter((line) => line && !line.startsWith('#'))
      .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
  );
