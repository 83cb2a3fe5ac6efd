/**
 * What to change so that the tables hold what they should. Pure: have, want → actions, in an order that never black-holes:
 *
 *   1. add peers    2. give routes (new ones, and those that change hands)    3. take routes away    4. remove peers
 *
 * What is the same is not touched. A peer whose address, port or ECN changed is a new peer: it is added, the routes move
 * over, the old one goes. A changed MTU is set in place. Only the first two steps can fail for want of room, and they come
 * before anything is taken away, so undoing them is always possible.
 */
import type { Plan, PlannedPeer, PlannedRoute } from './plan.js';

export type Action =
  | { readonly kind: 'add-peer'; readonly peer: PlannedPeer }
  | { readonly kind: 'set-mtu'; readonly peer: string; readonly mtu: number; readonly before: number }
  /** `before`: who had it, if anyone. */
  | { readonly kind: 'set-route'; readonly route: PlannedRoute; readonly before: string | undefined }
  | { readonly kind: 'remove-route'; readonly route: PlannedRoute }
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
  for (const route of want.routes.values()) {
    const before = have.routes.get(route.key)?.peer;
    if (before !== route.peer) actions.push({ kind: 'set-route', route, before });
  }
  for (const route of have.routes.values()) {
    if (!want.routes.has(route.key)) actions.push({ kind: 'remove-route', route });
  }
  for (const peer of have.peers.values()) {
    if (!want.peers.has(peer.key)) actions.push({ kind: 'remove-peer', peer });
  }
  return actions;
}
