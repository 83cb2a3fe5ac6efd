/**
 * What to change so that the tables hold what they should. Pure: have, want → actions, in an order that never black-holes:
 *
 *   1. add peers    2. give neighbours, MACs and routes (new ones, and those that change hands)
 *   3. give the kernel its neighbours and routes    4. take the kernel's routes and neighbours away
 *   5. take routes, MACs and neighbours away    6. remove peers
 *
 * What is the same is not touched. A peer whose address, port or ECN changed is a new peer: it is added, what was the old
 * one's moves over, the old one goes. A changed MTU is set in place. Only the first two steps can fail for want of room, and they come
 * before anything else, so undoing them is always possible.
 */
import type { KernelChange, KernelNeighbour, KernelRoute } from '../host/routes.js';
import type { Plan, PlannedMac, PlannedNeighbour, PlannedPeer, PlannedRoute } from './plan.js';

export type Action =
  | { readonly kind: 'add-peer'; readonly peer: PlannedPeer }
  | { readonly kind: 'set-mtu'; readonly peer: string; readonly mtu: number; readonly before: number }
  | {
      readonly kind: 'set-neighbour';
      readonly neighbour: PlannedNeighbour;
      readonly before: PlannedNeighbour | undefined;
    }
  | { readonly kind: 'set-mac'; readonly mac: PlannedMac; readonly before: PlannedMac | undefined }
  | { readonly kind: 'set-route'; readonly route: PlannedRoute; readonly before: string | undefined }
  | { readonly kind: 'change-kernel'; readonly change: KernelChange }
  | { readonly kind: 'remove-route'; readonly route: PlannedRoute }
  | { readonly kind: 'remove-mac'; readonly mac: PlannedMac }
  | { readonly kind: 'remove-neighbour'; readonly neighbour: PlannedNeighbour }
  | { readonly kind: 'remove-peer'; readonly peer: PlannedPeer };

export function reconcile(have: Plan, want: Plan): Action[] {
  const actions: Action[] = [];
  for (const peer of want.peers.values()) {
    const known = have.peers.get(peer.key);
    if (!known) actions.push({ kind: 'add-peer', peer });
    else if (known.mtu !== peer.mtu) {
      actions.push({ kind: 'set-mtu', peer: peer.key, mtu: peer.mtu, before: known.mtu });
    }
  }
  for (const neighbour of want.neighbours.values()) {
    const before = have.neighbours.get(neighbour.key);
    if (before && sameMac(before, neighbour) && before.router === neighbour.router) continue;
    actions.push({ kind: 'set-neighbour', neighbour, before });
  }
  for (const mac of want.macs.values()) {
    const before = have.macs.get(mac.key);
    if (!before || !sameMac(before, mac)) actions.push({ kind: 'set-mac', mac, before });
  }
  for (const route of want.routes.values()) {
    const before = have.routes.get(route.key)?.peer;
    if (before !== route.peer) actions.push({ kind: 'set-route', route, before });
  }
  for (const change of kernelChanges(have, want)) actions.push({ kind: 'change-kernel', change });
  for (const route of have.routes.values()) {
    if (!want.routes.has(route.key)) actions.push({ kind: 'remove-route', route });
  }
  for (const mac of have.macs.values()) {
    if (!want.macs.has(mac.key)) actions.push({ kind: 'remove-mac', mac });
  }
  for (const neighbour of have.neighbours.values()) {
    if (!want.neighbours.has(neighbour.key)) actions.push({ kind: 'remove-neighbour', neighbour });
  }
  for (const peer of have.peers.values()) {
    if (!want.peers.has(peer.key)) actions.push({ kind: 'remove-peer', peer });
  }
  return actions;
}

const sameMac = (a: PlannedMac, b: PlannedMac): boolean => a.mac === b.mac && a.peer === b.peer;

function* kernelChanges(have: Plan, want: Plan): Generator<KernelChange> {
  for (const { key, neighbour } of want.hostNeighbours.values()) {
    const before = have.hostNeighbours.get(key);
    if (!before || !sameKernelNeighbour(before.neighbour, neighbour)) yield { kind: 'set-neighbour', neighbour };
  }
  for (const { key, route } of want.hostRoutes.values()) {
    const before = have.hostRoutes.get(key);
    if (!before || !sameKernelRoute(before.route, route)) yield { kind: 'set-route', route };
  }
  for (const { key, route } of have.hostRoutes.values()) {
    if (!want.hostRoutes.has(key)) yield { kind: 'remove-route', route };
  }
  for (const { key, neighbour } of have.hostNeighbours.values()) {
    if (!want.hostNeighbours.has(key)) yield { kind: 'remove-neighbour', neighbour };
  }
}

export const sameKernelRoute = (a: KernelRoute, b: KernelRoute): boolean =>
  a.prefix === b.prefix && a.via === b.via && a.device === b.device && a.onlink === b.onlink;

export const sameKernelNeighbour = (a: KernelNeighbour, b: KernelNeighbour): boolean =>
  a.device === b.device && a.address === b.address && a.mac === b.mac;
