/**
 * Hosts of a flannel cluster without their packets: the real etcd registry, reducer and plan, many of them in this process, each
 * with connections, memory and folder of its own.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseHostAddress } from '../../src/control/cidr.js';
import { type EtcdOptions, openEtcd } from '../../src/control/etcd-membership.js';
import { ControlLoop } from '../../src/control/loop.js';
import type { Candidate, Membership } from '../../src/control/membership.js';
import type { Plan } from '../../src/control/plan.js';
import type { Clock } from '../../src/host/clock.js';
import { TestLog } from './embedded.js';

export interface NodeOptions {
  readonly endpoints: readonly string[];
  /** Underlay address, which the others are told. */
  readonly address: string;
  readonly prefix?: string;
  /** Seconds. */
  readonly ttl?: number;
  /** Minutes. */
  readonly renewMargin?: number;
  readonly clock?: Clock;
  readonly more?: Partial<EtcdOptions>;
}

/** Where there is a file system in memory: hundreds of hosts have hundreds of disks, and this machine has one. */
const PLACE = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();

/** Folders of nodes, all in one; removed with `t`, and when this process ends. */
export class NodeFolders {
  readonly path = mkdtempSync(join(PLACE, 'weft-nodes-'));

  constructor(t: { teardown(end: () => void): void }) {
    process.setMaxListeners(0); // as many as there are tests
    const remove = (): void => rmSync(this.path, { recursive: true, force: true });
    process.once('exit', remove);
    t.teardown(() => {
      process.off('exit', remove);
      remove();
    });
  }

  of(name: string): string {
    const path = join(this.path, name);
    mkdirSync(path, { recursive: true });
    return path;
  }
}

export class EtcdNode {
  readonly address: string;
  readonly log: TestLog;
  /** How often the registry said so. */
  readonly happened = { moved: 0, revoked: 0 };
  /** What is in force. */
  plan: Plan | undefined;
  /** Plans that were put in force; and milliseconds (performance.now()) of the last. */
  plans = 0;
  changed = 0;
  member: Membership | undefined;
  #candidate: Candidate | undefined;
  #loop: ControlLoop | undefined;
  readonly #abort = new AbortController();
  readonly #open: Omit<EtcdOptions, 'signal' | 'log' | 'moved' | 'revoked'>;

  constructor(folders: NodeFolders, options: NodeOptions) {
    const folder = folders.of(options.address);
    const addresses = [parseHostAddress(options.address)];
    this.address = options.address;
    this.log = new TestLog();
    this.#open = {
      endpoints: options.endpoints,
      prefix: options.prefix ?? '/coreos.com/network',
      keyFile: undefined,
      certFile: undefined,
      caFile: undefined,
      username: undefined,
      password: undefined,
      ttl: options.ttl ?? 86_400,
      renewMargin: options.renewMargin ?? 60,
      staleLimit: 86_400,
      stateDir: join(folder, 'state'),
      subnetFile: join(folder, 'subnet.env'),
      addresses,
      underlayFor: async () => ({ addresses, publicAddresses: addresses }),
      ...(options.clock ? { clock: options.clock } : {}),
      ...options.more,
    };
  }

  /** Opens the registry, and waits for the configuration. */
  async open(): Promise<Candidate> {
    this.#candidate = await openEtcd({
      ...this.#open,
      signal: this.#abort.signal,
      log: this.log,
      moved: () => this.happened.moved++,
      revoked: () => this.happened.revoked++,
    });
    return this.#candidate;
  }

  /** Takes a lease. */
  async join(): Promise<Membership> {
    this.#candidate ??= await this.open();
    this.member = await this.#candidate.join({});
    return this.member;
  }

  /** Follows the others; resolves once the first word of them is in force. */
  async follow(): Promise<void> {
    const member = this.member ?? (await this.join());
    const { networks, subnets, registry } = member;
    const self = {
      addresses: this.#open.addresses,
      networks,
      subnets,
      underlayMtu: 1500,
      vnis: [],
      underlayInside: true,
    };
    const applier = {
      apply: async (plan: Plan): Promise<number> => {
        this.plan = plan;
        this.plans++;
        this.changed = performance.now();
        return 1;
      },
    };
    this.#loop = new ControlLoop({ registry, self, applier, log: this.log });
    await this.#loop.start();
  }

  /** All of it. */
  static async start(folders: NodeFolders, options: NodeOptions): Promise<EtcdNode> {
    const node = new EtcdNode(folders, options);
    await node.join();
    await node.follow();
    return node;
  }

  /** Our subnet; the first, where there are two. */
  get subnet(): string {
    return this.member?.subnets[0]?.text ?? '';
  }

  /** The last part of our lease's key, e.g. 10.5.1.0-24. */
  get key(): string {
    return this.subnet.replace('/', '-');
  }

  /** How many routes are in force. */
  get size(): number {
    return this.plan?.routes.size ?? 0;
  }

  /** Routes in force, as `subnet address`, sorted. */
  get routes(): string[] {
    const { routes, peers } = this.plan ?? { routes: new Map(), peers: new Map() };
    return [...routes.values()].map(({ prefix, peer }) => `${prefix.text} ${peers.get(peer)?.address}`).sort();
  }

  /** Why what is in force may be old; undefined: it is not. */
  get problem(): string | undefined {
    return this.#loop?.state.problem;
  }

  /** Ends it, without a word to etcd: its lease stays, as that of a host that was killed. */
  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#loop?.stop();
    await this.#candidate?.close();
    this.#loop = undefined;
    this.#candidate = undefined;
  }
}
