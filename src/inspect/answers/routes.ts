/** /v1/routes: whose each prefix is, and who sends packets there: our tables, or the host's kernel by what we told it. */
import type { PlannedHostRoute } from '../../control/plan.js';
import type { Inspected, PeerInTables, Running } from '../inspected.js';
import { peersOf, textsOf } from '../inspected.js';
import { MOST_ENTRIES, type RouteEntry, type RoutesAnswer } from '../protocol.js';
import { mtusOf, vniOf } from './peers.js';

export function routesAnswer(inspected: Inspected): RoutesAnswer {
  const running = inspected.needRunning();
  const { overlay, member, applier } = running;
  const { routes, hostRoutes } = applier.have;
  const most = MOST_ENTRIES - member.subnets.length;
  const found = overlay.routing ? kernelRoutes(running, most) : ownRoutes(running, most);
  const local = textsOf(member.subnets).map((prefix): RouteEntry => {
    return { prefix, peer: null, address: null, port: null, vni: null, pathMtu: null, by: 'local', kernel: null };
  });
  const there = overlay.routing ? hostRoutes.size : routes.size;
  return { mode: overlay.mode, routes: [...local, ...found], more: there - found.length };
}

/** Those of our own tables, in the plan's order, which is that of the prefixes. */
function ownRoutes(running: Running, most: number): RouteEntry[] {
  const peers = new Map(Array.from(peersOf(running), (peer) => [peer.key, peer]));
  const found: RouteEntry[] = [];
  for (const { prefix, peer } of running.applier.have.routes.values()) {
    if (found.length === most) break;
    found.push({ prefix: prefix.text, ...towards(running, peers.get(peer)), by: 'weft', kernel: null });
  }
  return found;
}

function kernelRoutes(running: Running, most: number): RouteEntry[] {
  const owners = new Map<string, string>();
  for (const { address, subnets } of running.records().values()) {
    for (const subnet of subnets) owners.set(subnet, address);
  }
  const names = new Map(Array.from(running.records().values(), ({ address, name }) => [address, name]));
  const peers = new Map(Array.from(peersOf(running), (peer) => [`${peer.address} ${peer.family}`, peer]));
  const sorted = [...running.applier.have.hostRoutes.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
  return sorted.slice(0, most).map(({ route }): RouteEntry => {
    const { prefix, via, device } = route;
    const owner = owners.get(prefix);
    const encapsulated = isEncapsulated(running, route);
    const peer = owner === undefined ? undefined : (peers.get(`${owner} 4`) ?? peers.get(`${owner} 6`));
    return {
      prefix,
      ...towards(running, peer),
      peer: peer?.name ?? (owner === undefined ? null : (names.get(owner) ?? null)),
      ...(encapsulated ? {} : { pathMtu: running.underlay.mtu, port: null, vni: null }),
      by: 'kernel',
      kernel: { via, device, encapsulated },
    };
  });
}

const isEncapsulated = ({ devices }: Running, { device }: PlannedHostRoute['route']): boolean =>
  devices.includes(device);

function towards(
  running: Running,
  peer: PeerInTables | undefined,
): Pick<RouteEntry, 'peer' | 'address' | 'port' | 'vni' | 'pathMtu'> {
  if (!peer) return { peer: null, address: null, port: null, vni: null, pathMtu: null };
  const { name, address, port, network } = peer;
  return { peer: name, address, port, vni: vniOf(running, network), pathMtu: mtusOf(running, peer).pathMtu };
}
