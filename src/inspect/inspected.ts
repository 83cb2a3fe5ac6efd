/**
 * What the control socket looks at. The daemon makes it first of all and completes it as it gets on, so that somebody can look
 * while it still waits for its registry. Nothing is counted here: each answer reads what is there when it is asked for.
 */
import type { Applier } from '../control/apply.js';
import type { Cidr } from '../control/cidr.js';
import type { Dataplane } from '../control/dataplane.js';
import type { ControlLoop } from '../control/loop.js';
import type { Membership } from '../control/membership.js';
import type { PlannedPeer } from '../control/plan.js';
import type { Records } from '../control/records.js';
import type { Underlay } from '../control/underlay.js';
import { KERNEL_COUNTERS, readKernelCounters } from '../host/kernel-counters.js';
import { readOwnMacs } from '../host/own-macs.js';
import type { Log } from '../observe/log.js';
import { sparing } from '../observe/sparing.js';
import type { Captures } from './capture.js';
import type { ExplainAnswer } from './explain-answer.js';
import type { Mode } from './protocol.js';
import { Refusal } from './refusal.js';

/** Of the configuration and the registry's backend. */
export interface OverlayParts {
  readonly mode: Mode;
  readonly workers: number;
  /** Wanted offloads (io/offloads.ts). */
  readonly offloads: number;
  /** Seconds. */
  readonly macAge: number;
  /** The networks of layer 2. */
  readonly segments: readonly { readonly vni: number; readonly bridge: string | undefined }[];
  /** The kernel routes to the peers' subnets. */
  readonly routing: 'vxlan' | 'host-gw' | undefined;
}

/** What there is once the daemon knows its overlay. */
export interface Running {
  readonly overlay: OverlayParts;
  /** By flannel's names. */
  readonly backend: string;
  readonly underlay: Underlay;
  readonly member: Membership;
  /** By network: our devices, their MTUs, and their addresses with prefix lengths; none where nothing is encapsulated. */
  readonly devices: readonly string[];
  readonly mtus: readonly number[];
  readonly addresses: readonly (readonly string[])[];
  readonly dataplane: Dataplane;
  readonly applier: Applier;
  readonly loop: Pick<ControlLoop, 'state'>;
  /** What the registry told last. */
  readonly records: () => Records;
  /** Where metrics are served: `127.0.0.1:9469`. */
  readonly metrics: string | undefined;
  /** UDP ports of the sockets that only send, by underlay (IPv4, IPv6); empty where the others send. */
  readonly sourcePorts: readonly (readonly number[])[];
}

/** What there is once packets flow. */
export interface Forwarding {
  /** What devices and sockets granted of the offloads. */
  readonly granted: number;
  readonly maxSegments: number;
  /** Rejects with a RangeError: the question makes no sense. */
  readonly explain: (question: URLSearchParams) => Promise<ExplainAnswer>;
}

export interface InspectedOptions {
  readonly version: string;
  readonly registry: 'embedded' | 'static' | 'etcd';
  readonly log: Log;
  readonly logFormat: string;
  /** Inode. */
  readonly networkNamespace: string;
}

/** Of the time that it takes to ask. */
const BRIDGES_SPARED = 100;
const NOTHING_PASSES = 'no packet passes through weftd with this backend: the kernel routes them (see weft routes)';

export class Inspected {
  readonly options: InspectedOptions;
  readonly started = new Date();
  /** What it waits for, one line; undefined: nothing. */
  waitingFor: string | undefined;
  underlay: Underlay | undefined;
  running: Running | undefined;
  forwarding: Forwarding | undefined;
  /** Made by the server, which ends it. */
  captures: Captures | undefined;
  /** READY=1 was said. */
  ready = false;
  stopping = false;
  readonly #before = readKernelCounters();
  /** Bridges that our devices are in now, by network; it costs a process, and so is asked once a second at most. */
  readonly #bridges = sparing(async () => this.#readBridges(), BRIDGES_SPARED, 1000);

  constructor(options: InspectedOptions) {
    this.options = options;
  }

  /** Throws a Refusal: not yet. */
  needRunning(): Running {
    if (this.running) return this.running;
    throw new Refusal(503, this.notYet());
  }

  /** Throws a Refusal: not yet, or never. */
  needForwarding(): Running & Forwarding {
    if (this.running?.overlay.workers === 0) throw new Refusal(409, NOTHING_PASSES);
    if (this.running && this.forwarding) return { ...this.running, ...this.forwarding };
    throw new Refusal(503, this.notYet());
  }

  /** By network: the bridge that our device is in now; undefined: in none, or it is gone. Empty where nobody knows. */
  bridges(): Promise<readonly (string | undefined)[]> {
    const { running } = this;
    return running?.overlay.mode === 'l2' && !running.overlay.routing ? this.#bridges() : Promise.resolve([]);
  }

  async #readBridges(): Promise<readonly (string | undefined)[]> {
    try {
      return (await readOwnMacs(this.running?.devices ?? [])).map((device) => device?.bridge);
    } catch {
      return []; // `ip` could not be run
    }
  }

  notYet(): string {
    return `weftd is still starting: ${this.waitingFor ?? 'try again in a moment'}`;
  }

  /** What the kernel dropped in the whole namespace since we started, by the names of KERNEL_COUNTERS. */
  kernelCounters(): Map<string, number> {
    const now = readKernelCounters();
    return new Map(
      KERNEL_COUNTERS.map(({ name }) => [name, Math.max(0, (now.get(name) ?? 0) - (this.#before.get(name) ?? 0))]),
    );
  }
}

/** A peer, and by what our tables know it. */
export interface PeerInTables extends PlannedPeer {
  readonly ref: number;
}

/** Peers in force; in layer 2 one of several of our networks comes several times. */
export function* peersOf({ applier }: Pick<Running, 'applier'>): Generator<PeerInTables> {
  for (const peer of applier.have.peers.values()) {
    const ref = applier.ref(peer.key);
    if (ref !== undefined) yield { ...peer, ref };
  }
}

/** The family's own address, canonical text. */
export const ownAddressOf = ({ underlay }: Pick<Running, 'underlay'>, family: 4 | 6): string | undefined =>
  underlay.addresses.find((address) => address.family === family)?.text;

export const textsOf = (items: readonly (Cidr | { readonly text: string })[]): string[] =>
  items.map(({ text }) => text);
