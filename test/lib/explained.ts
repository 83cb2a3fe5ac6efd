/** What `weft explain` needs beside a rig: the registry's plan that the rig's tables were filled by. */
import type { Applier } from '../../src/control/apply.js';
import { cidrOf, textOf } from '../../src/control/cidr.js';
import { EMPTY_PLAN, OURSELVES, type Plan, type PlannedMac, type PlannedPeer } from '../../src/control/plan.js';
import { LOCAL } from '../../src/dataplane/macs.js';
import type { ExplainAnswer } from '../../src/inspect/explain-answer.js';
import { macText } from './frames.js';
import { address, prefix } from './packets.js';

export interface ExplainedPeerSpec {
  readonly name: string;
  readonly address: string;
  readonly ref: number;
  readonly mtu: number;
  readonly network?: number;
  readonly port?: number;
  readonly subnets?: readonly string[];
}

/** `ref` LOCAL: our own side. */
export interface StationSpec {
  readonly network: number;
  readonly mac: Uint8Array;
  readonly address?: Uint8Array;
  readonly ref: number;
}

/** How the host's kernel reaches a peer's prefix, as flannel's vxlan backend has it. */
export interface HostHopSpec {
  readonly prefix: string;
  readonly via: string;
  readonly device: string;
  readonly mac: Uint8Array;
}

/** The applier of a plan that says so. */
export function applierOf(
  peers: readonly ExplainedPeerSpec[],
  stations: readonly StationSpec[] = [],
  hops: readonly HostHopSpec[] = [],
): Pick<Applier, 'have' | 'ref'> {
  const refs = new Map<string, number>();
  const keys = new Map<number, string>([[LOCAL, OURSELVES]]);
  const planned = new Map<string, PlannedPeer>();
  const routes: Map<string, Plan['routes'] extends ReadonlyMap<string, infer R> ? R : never> = new Map();
  for (const { name, address: text, ref, mtu, network = 0, port = 8285, subnets = [] } of peers) {
    const bytes = address(text);
    const key = `${network} ${name}`;
    refs.set(key, ref);
    keys.set(ref, key);
    const family = bytes.length === 4 ? 4 : 6;
    const common = { key, name, network, family, address: textOf(bytes), bytes, port } as const;
    planned.set(key, { ...common, ecn: false, overhead: 28, mtu });
    for (const subnet of subnets) {
      const { bytes: base, length } = prefix(subnet);
      const cidr = cidrOf(base, length);
      routes.set(`0 ${cidr.text}`, { key: `0 ${cidr.text}`, network: 0, prefix: cidr, peer: key });
    }
  }
  const macs = new Map<string, PlannedMac>();
  const neighbours = new Map<string, Plan['neighbours'] extends ReadonlyMap<string, infer N> ? N : never>();
  for (const { network, mac, address: bytes, ref } of stations) {
    const one = { network, mac: macText(mac), macBytes: mac, peer: keys.get(ref) ?? '' };
    macs.set(`${network} ${one.mac}`, { ...one, key: `${network} ${one.mac}` });
    if (!bytes) continue;
    const key = `${network} ${textOf(bytes)}`;
    neighbours.set(key, { ...one, key, address: textOf(bytes), addressBytes: bytes, router: false });
  }
  const hostRoutes: Plan['hostRoutes'] = new Map(
    hops.map(({ prefix, via, device }) => [prefix, { key: prefix, route: { prefix, via, device, onlink: true } }]),
  );
  const hostNeighbours: Plan['hostNeighbours'] = new Map(
    hops.map(({ via, device, mac }) => {
      const key = `${device} ${via}`;
      return [key, { key, neighbour: { device, address: via, mac: macText(mac) } }];
    }),
  );
  const have: Plan = { ...EMPTY_PLAN, peers: planned, routes, macs, neighbours, hostRoutes, hostNeighbours };
  return { have, ref: (key) => refs.get(key) };
}

/** As a query of /v1/explain. */
export const asking = (question: Readonly<Record<string, string | number>>): URLSearchParams =>
  new URLSearchParams(Object.entries(question).map(([name, value]): [string, string] => [name, String(value)]));

/** Names of the peers that an answer names, sorted. */
export const peersIn = ({ peers }: ExplainAnswer): string[] => peers.map(({ name }) => name).sort();
