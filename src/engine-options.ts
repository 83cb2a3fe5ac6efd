/** What the configuration makes of the dataplane: how much memory it needs, and the engine's settings. */
import type { Address } from './control/cidr.js';
import type { EngineSettings } from './dataplane/settings.js';
import { DEFAULT_MEMORY, type MemoryOptions } from './io/memory.js';
import type { Overlay } from './overlay.js';

/** Most MACs, and most neighbours, that a registry may name in layer 2; twice as many, so that all can be replaced in one change. */
const MOST_STATICS = 2 * 65_536;
/** Nodes of the route tables in layer 2, which routes nothing. */
const NO_ROUTES = 16;

/** Room for learned MACs and neighbours where none are learned: what is least. */
const NOTHING_LEARNED = 64;

export function memoryFor(overlay: Overlay): MemoryOptions {
  const { mode, workers, segments, learning, macTable, sourcePorts } = overlay;
  if (mode === 'l3') return { ...DEFAULT_MEMORY, workers };
  return {
    ...DEFAULT_MEMORY,
    workers,
    routeNodes: NO_ROUTES,
    networks: segments.length,
    macs: learning ? macTable : NOTHING_LEARNED,
    neighbours: learning ? macTable : NOTHING_LEARNED,
    statics: MOST_STATICS,
    senders: sourcePorts,
  };
}

/** What was found out at the start. */
export interface Found {
  /** Offloads that devices and sockets granted. */
  readonly offloads: number;
  readonly maxSegments: number;
  /** The devices' MTUs in bytes, by network. */
  readonly mtus: readonly number[];
  /** The TUN's own addresses. */
  readonly addresses: readonly Address[];
}

export function engineSettingsFor(overlay: Overlay, { offloads, maxSegments, mtus, addresses }: Found): EngineSettings {
  const { mode, segments, workers, sourceCheck, inheritDscp, macAge, macsPerPeer, floodUnknown } = overlay;
  const { learning, floods } = overlay;
  const stormLimit = Math.ceil(overlay.stormLimit / Math.max(workers, 1)); // each has a bucket of its own
  const networks = segments.map(({ vni, family }, network) => ({ vni, family, mtu: mtus[network] }));
  return {
    sourceCheck,
    offloads,
    maxSegments,
    inheritDscp,
    l2:
      mode === 'l2'
        ? { networks, age: macAge * 1000, macsPerPeer, floodUnknown, stormLimit, learning, floods }
        : undefined,
    mtu: Math.max(...mtus),
    address4: addresses.find((address) => address.family === 4)?.bytes,
    address6: addresses.find((address) => address.family === 6)?.bytes,
  };
}
