/**
 * What this host's kernel is to know of the peers, where it is the kernel that routes to them (flannel's vxlan and host-gw): its
 * routes and permanent neighbours. Kept in force: looked at every 10 s, put in again when somebody took them away, and what an
 * earlier run left and nobody wants now is removed.
 *
 * One that the kernel refuses (a next hop that is not on our link) keeps no other from its way: it is said once, and tried again
 * at every look.
 */
import {
  changeKernel,
  type KernelChange,
  type KernelNeighbour,
  type KernelRoute,
  readKernelState,
} from '../host/routes.js';
import { type Cidr, contains, parseCidr } from './cidr.js';
import type { EventLog } from './event-log.js';
import { reasonOf } from './reason.js';
import { sameKernelNeighbour, sameKernelRoute } from './reconcile.js';

const LOOK_EVERY = 10_000;

export interface HostForwardingOptions {
  /** The overlay, and what it was at the start before; routes of ours elsewhere, on devices not ours, are another daemon's. */
  readonly networks: readonly Cidr[];
  /** Our own, whose permanent neighbours are all ours. */
  readonly devices: readonly string[];
  /** Gives the devices anew what they should have: what lost its routes has lost more, perhaps. May reject. */
  readonly restore?: () => Promise<void>;
  readonly log: EventLog;
  /** The kernel; tests give their own. */
  readonly kernel?: { readonly read: typeof readKernelState; readonly change: typeof changeKernel };
}

export class HostForwarding {
  readonly #options: HostForwardingOptions;
  readonly #kernel: NonNullable<HostForwardingOptions['kernel']>;
  /** By prefix. */
  readonly #routes = new Map<string, KernelRoute>();
  /** By device and address. */
  readonly #neighbours = new Map<string, KernelNeighbour>();
  #queue: KernelChange[] = [];
  /** Changes that are noted and not made yet. */
  #pending = 0;
  /** The devices are there. */
  #up = false;
  /** Why the kernel refuses some, by what they are. */
  readonly #refused = new Map<string, string>();
  #trouble: string | undefined;
  #running: Promise<unknown> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;

  constructor(options: HostForwardingOptions) {
    this.#options = options;
    this.#kernel = options.kernel ?? { read: readKernelState, change: changeKernel };
  }

  /** Routes to peers that are wanted. */
  get routes(): number {
    return this.#routes.size;
  }

  /** Routes and neighbours that the kernel refuses. */
  get refused(): number {
    return this.#refused.size;
  }

  /** Notes a change, for `flush` to make. */
  change(change: KernelChange): void {
    if ('route' in change) {
      if (change.kind === 'set-route') this.#routes.set(change.route.prefix, change.route);
      else this.#routes.delete(change.route.prefix);
    } else {
      const key = `${change.neighbour.device} ${change.neighbour.address}`;
      if (change.kind === 'set-neighbour') this.#neighbours.set(key, change.neighbour);
      else this.#neighbours.delete(key);
    }
    this.#queue.push(change);
    this.#pending++;
  }

  /** Makes the noted changes, in order. Never rejects. */
  flush(): Promise<void> {
    const changes = this.#queue;
    this.#queue = [];
    if (changes.length === 0) return Promise.resolve();
    return this.#alone(async () => {
      this.#pending -= changes.length;
      // Before the devices are there, to note what is wanted is all that can be done.
      if (this.#up) await this.#make(changes);
    });
  }

  /** The devices are there: puts in all that is wanted, and keeps it in force. */
  async start(): Promise<void> {
    this.#up = true;
    await this.look(false);
    if (this.#up) this.#timer = setInterval(() => void this.look(), LOOK_EVERY);
  }

  /** Stops to look. What is in force stays: without encapsulation traffic goes on without us. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#up = false;
    await this.#running;
  }

  /** Compares the kernel's tables with what is wanted, and mends them; `repair`: what is missing was there. Never rejects. */
  look(repair = true): Promise<void> {
    return this.#alone(async () => {
      if (this.#up) await this.#look(repair);
    });
  }

  /** One at a time, in the order of the calls. */
  #alone(work: () => Promise<void>): Promise<void> {
    const next = this.#running.then(async () => {
      try {
        await work();
        this.#say(undefined);
      } catch (error) {
        this.#say(reasonOf(error));
      }
    });
    this.#running = next;
    return next;
  }

  async #look(repair: boolean): Promise<void> {
    const { networks, devices, restore, log } = this.#options;
    const families = [...new Set(networks.map(({ family }) => family))];
    const found = await this.#kernel.read(families, devices);
    const routes = new Map(found.routes.filter((route) => this.#isOurs(route)).map((route) => [route.prefix, route]));
    const neighbours = new Map(found.neighbours.map((one) => [`${one.device} ${one.address}`, one]));
    const missing: KernelChange[] = [];
    const stale: KernelChange[] = [];
    for (const [key, neighbour] of this.#neighbours) {
      const there = neighbours.get(key);
      if (!there || !sameKernelNeighbour(there, neighbour)) missing.push({ kind: 'set-neighbour', neighbour });
    }
    for (const [key, route] of this.#routes) {
      const there = routes.get(key);
      if (!there || !sameKernelRoute(there, route)) missing.push({ kind: 'set-route', route });
    }
    for (const [key, route] of routes) if (!this.#routes.has(key)) stale.push({ kind: 'remove-route', route });
    for (const [key, neighbour] of neighbours) {
      if (!this.#neighbours.has(key)) stale.push({ kind: 'remove-neighbour', neighbour });
    }
    const changes = [...missing, ...stale];
    const keys = new Set(changes.map(keyOf));
    for (const key of this.#refused.keys()) if (!keys.has(key)) this.#refused.delete(key);
    const fresh = changes.filter((change) => !this.#refused.has(keyOf(change))).map(keyOf);
    // What waits to be made was not there, or is there still, for no other reason.
    if (repair && fresh.length > 0 && this.#pending === 0) {
      log.warn('kernel_routes_repaired', { count: fresh.length, first: fresh.slice(0, MOST_NAMED) });
      await restore?.();
    }
    await this.#make(changes);
  }

  #isOurs({ prefix, device }: KernelRoute): boolean {
    const { networks, devices } = this.#options;
    if (devices.includes(device)) return true;
    try {
      return networks.some((network) => contains(network, parseCidr(prefix)));
    } catch {
      return false; // `default`, say
    }
  }

  async #make(changes: readonly KernelChange[]): Promise<void> {
    if (changes.length === 0) return;
    const failures = await this.#kernel.change(changes);
    for (const [at, change] of changes.entries()) {
      const key = keyOf(change);
      const reason = failures.get(at);
      if (reason === undefined) this.#refused.delete(key);
      else if (this.#refused.get(key) !== reason) {
        this.#refused.set(key, reason);
        this.#options.log.error('kernel_refuses', { what: key, reason, effect: 'tried again every 10 s' });
      }
    }
  }

  #say(reason: string | undefined): void {
    if (reason !== undefined && reason !== this.#trouble) this.#options.log.error('kernel_routes_unknown', { reason });
    this.#trouble = reason;
  }
}

const MOST_NAMED = 5;

const keyOf = (change: KernelChange): string =>
  'route' in change
    ? `route ${change.route.prefix} via ${change.route.via} dev ${change.route.device}`
    : `neighbour ${change.neighbour.address} dev ${change.neighbour.device}`;
