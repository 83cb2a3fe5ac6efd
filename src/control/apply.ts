/**
 * Carries out a plan on the tables, and on the kernel's where that routes: action by action in reconcile's order; if one fails,
 * what was done is undone and the tables hold what they held. A long list is committed in parts: each part is safe to see by
 * itself, because of the order. Between our tables and the kernel's each waits until the other has been seen to.
 */
import { setImmediate } from 'node:timers/promises';
import { LOCAL } from '../dataplane/macs.js';
import type { PeerRef } from '../dataplane/peers.js';
import type { Tables } from '../dataplane/tables.js';
import type { HostForwarding } from './host-forwarding.js';
import {
  EMPTY_PLAN,
  OURSELVES,
  type Plan,
  type PlannedMac,
  type PlannedNeighbour,
  type PlannedPeer,
  type PlannedRoute,
} from './plan.js';
import { type Action, reconcile } from './reconcile.js';

/** Actions between commits: bounds the pessimistic room that uncommitted routes reserve, and how long others wait. */
const ACTIONS_PER_COMMIT = 4096;

type TableAction = Exclude<Action, { kind: 'change-kernel' }>;

export class Applier {
  readonly #tables: Tables;
  readonly #host: Pick<HostForwarding, 'change' | 'flush'> | undefined;
  readonly #refs = new Map<string, PeerRef>();
  readonly #carriedOut: Record<Action['kind'], number> = {
    'add-peer': 0,
    'set-mtu': 0,
    'set-neighbour': 0,
    'set-mac': 0,
    'set-route': 0,
    'change-kernel': 0,
    'remove-route': 0,
    'remove-mac': 0,
    'remove-neighbour': 0,
    'remove-peer': 0,
  };
  #have: Plan = EMPTY_PLAN;

  /** `host`: for plans with something for the kernel. */
  constructor(tables: Tables, host?: Pick<HostForwarding, 'change' | 'flush'>) {
    this.#tables = tables;
    this.#host = host;
  }

  /** What the tables hold. */
  get have(): Plan {
    return this.#have;
  }

  /** Actions that were carried out, by kind; what had to be undone is not among them. */
  get carriedOut(): Readonly<Record<Action['kind'], number>> {
    return this.#carriedOut;
  }

  /** The reference of a peer in the tables, by its key. */
  ref(key: string): PeerRef | undefined {
    return this.#refs.get(key);
  }

  /**
   * Makes the tables hold `want`; resolves to the number of actions once every worker sees it. Rejects with what the failed
   * action threw (RangeError: a table is full) after undoing the others; the kernel has not been touched then. One at a time.
   */
  async apply(want: Plan): Promise<number> {
    const actions = reconcile(this.#have, want);
    let done = 0;
    try {
      for (; done < actions.length; done++) {
        if (done > 0 && done % ACTIONS_PER_COMMIT === 0) {
          await this.#tables.commit();
          await setImmediate(); // a commit waits for workers; at the start there are none, and signals want their turn
        }
        const action = actions[done];
        const before = actions[done - 1]?.kind;
        if (action.kind === 'change-kernel') {
          if (before !== 'change-kernel') await this.#tables.commit();
          this.#host?.change(action.change);
          continue;
        }
        if (before === 'change-kernel') await this.#host?.flush();
        this.#do(action);
      }
    } catch (error) {
      while (done > 0) this.#undo(actions[--done]);
      await this.#tables.commit();
      throw error;
    }
    await this.#host?.flush();
    await this.#tables.commit();
    this.#have = want;
    for (const { kind } of actions) this.#carriedOut[kind]++;
    return actions.length;
  }

  #do(action: TableAction): void {
    if (action.kind === 'add-peer') this.#addPeer(action.peer);
    else if (action.kind === 'set-mtu') this.#tables.setPeerMtu(this.#known(action.peer), action.mtu);
    else if (action.kind === 'set-neighbour') this.#setNeighbour(action.neighbour);
    else if (action.kind === 'set-mac') this.#setMac(action.mac);
    else if (action.kind === 'set-route') this.#setRoute(action.route, action.route.peer);
    else if (action.kind === 'remove-route') this.#removeRoute(action.route);
    else if (action.kind === 'remove-mac') this.#removeMac(action.mac);
    else if (action.kind === 'remove-neighbour') this.#removeNeighbour(action.neighbour);
    else this.#removePeer(action.peer);
  }

  #undo(action: Action): void {
    if (action.kind === 'change-kernel') return; // comes after all that can fail
    if (action.kind === 'add-peer') this.#removePeer(action.peer);
    else if (action.kind === 'set-mtu') this.#tables.setPeerMtu(this.#known(action.peer), action.before);
    else if (action.kind === 'remove-route') this.#setRoute(action.route, action.route.peer);
    else if (action.kind === 'remove-mac') this.#setMac(action.mac);
    else if (action.kind === 'remove-neighbour') this.#setNeighbour(action.neighbour);
    else if (action.kind === 'remove-peer') this.#addPeer(action.peer);
    else if (action.kind === 'set-neighbour') {
      if (action.before === undefined) this.#removeNeighbour(action.neighbour);
      else this.#setNeighbour(action.before);
    } else if (action.kind === 'set-mac') {
      if (action.before === undefined) this.#removeMac(action.mac);
      else this.#setMac(action.before);
    } else if (action.before === undefined) this.#removeRoute(action.route);
    else this.#setRoute(action.route, action.before);
  }

  #setNeighbour({ network, addressBytes, macBytes, router, peer }: PlannedNeighbour): void {
    this.#tables.setNeighbour(network, addressBytes, macBytes, router, this.#known(peer));
  }

  #removeNeighbour({ network, addressBytes }: PlannedNeighbour): void {
    this.#tables.removeNeighbour(network, addressBytes);
  }

  #setMac({ network, macBytes, peer }: PlannedMac): void {
    this.#tables.setMac(network, macBytes, this.#known(peer));
  }

  #removeMac({ network, macBytes }: PlannedMac): void {
    this.#tables.removeMac(network, macBytes);
  }

  #setRoute(route: PlannedRoute, peer: string): void {
    this.#tables.setRoute(route.network, route.prefix, this.#known(peer));
  }

  #removeRoute(route: PlannedRoute): void {
    this.#tables.removeRoute(route.network, route.prefix);
  }

  #addPeer(peer: PlannedPeer): void {
    const { bytes: address, port, mtu, ecn, network } = peer;
    this.#refs.set(peer.key, this.#tables.addPeer({ address, port, mtu, ecn, network }));
  }

  #removePeer(peer: PlannedPeer): void {
    this.#tables.removePeer(this.#known(peer.key));
    this.#refs.delete(peer.key);
  }

  #known(key: string): PeerRef {
    if (key === OURSELVES) return LOCAL;
    const ref = this.#refs.get(key);
    if (ref === undefined) throw new Error(`no peer ${key} in the tables`);
    return ref;
  }
}
