/** Real weftds: in layer 3 with a peers file or an embedded registry, and in layer 2 at both ends or at one. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Daemon, type Host, type Lab, NETWORK4, NETWORK6, peersFile } from '../hosts.js';
import { assertBuilt, DAEMON } from './daemon.js';
import { type Segment, vxlanSegment } from './segment.js';
import type { Subject, SubjectKind } from './subject.js';

export interface WeftOptions {
  /** What the overlay carries. */
  readonly inside: 'v4' | 'both';
  /** Further arguments for weftd. */
  readonly daemonArgs?: readonly string[];
}

/** One real weftd on each host, with a peers file that names all of them. */
export function weftUdp(lab: Lab, hosts: readonly Host[], options: WeftOptions): Subject {
  return {
    name: 'weft-udp',
    async start() {
      assertBuilt();
      const both = options.inside === 'both';
      const peers = join(lab.dir, 'peers.json');
      writeFileSync(peers, peersFile(hosts, 4, options.inside));
      const daemons = hosts.map((host) => {
        const args = ['--network', both ? `${NETWORK4},${NETWORK6}` : NETWORK4];
        args.push('--subnet', both ? `${host.subnet4},${host.subnet6}` : host.subnet4);
        args.push(
          '--iface',
          host.underlayInterface,
          '--public-ip',
          host.underlay4,
          '--peers',
          peers,
          ...(options.daemonArgs ?? []),
        );
        return host.ns.start(`weftd-${host.letter}`, process.execPath, [DAEMON, ...args]);
      });
      for (const daemon of daemons) await daemon.ready('"event":"ready"');
    },
    route: () => undefined,
    device: () => 'flannel0',
  };
}

export const weftUdpKind: SubjectKind = {
  name: 'weft-udp',
  needs: [],
  make: (lab, hosts, daemonArgs) => weftUdp(lab, hosts, { inside: 'v4', daemonArgs }),
};

/** A real weftd in layer 2 on each host, or at one end only, and the kernel's vxlan device at the other. */
const SEGMENTS: readonly Segment[] = [
  { name: 'weft-vxlan', vni: 78, port: 4790, subnet: 1, device: 'l2-both', weft: () => true },
  { name: 'weft-to-kernel', vni: 79, port: 4791, subnet: 2, device: 'l2-near', weft: (host) => host.letter === 'a' },
  { name: 'kernel-to-weft', vni: 80, port: 4792, subnet: 3, device: 'l2-far', weft: (host) => host.letter !== 'a' },
];

export const weftSegmentKinds: readonly SubjectKind[] = SEGMENTS.map((segment) => ({
  name: segment.name,
  needs: [],
  make: (_, hosts, daemonArgs) => vxlanSegment(hosts, { ...segment, daemonArgs }),
}));

/**
 * A real weftd without a peers file: it finds the others, and a subnet of its own, in an embedded registry. All hosts of a lab
 * share one file system, so the registry and what each daemon remembers are folders of the lab's.
 */
export class EmbeddedWeftd {
  readonly host: Pick<Host, 'ns' | 'letter'>;
  /** What an operator would have to say. */
  readonly args: readonly string[];
  /** Shared by all of the lab. */
  readonly registry: string;
  readonly subnetFile: string;
  readonly #more: readonly string[];
  #daemon: Daemon | undefined;
  #starts = 0;

  /** The first one's `args` name the network. `more`: what only the lab needs. */
  constructor(host: Pick<Host, 'ns' | 'letter'>, args: readonly string[], more: readonly string[] = []) {
    const { dir } = host.ns.lab;
    const state = join(dir, `state-${host.letter}`);
    this.host = host;
    this.args = args;
    this.registry = join(dir, 'registry');
    this.subnetFile = join(state, 'subnet.env');
    this.#more = ['--registry-path', this.registry, '--state-dir', state, ...more];
  }

  get logFile(): string | undefined {
    return this.#daemon?.logFile;
  }

  /** Starts it; resolves once it forwards, to its subnets: at most one of each family, IPv4 first; in layer 2 none. */
  async start(): Promise<string[]> {
    const { ns, letter } = this.host;
    const name = ++this.#starts === 1 ? `weftd-${letter}` : `weftd-${letter}-${this.#starts}`; // each has a log of its own
    const daemon = ns.start(name, process.execPath, [DAEMON, ...this.args, ...this.#more]);
    this.#daemon = daemon;
    const event = '"event":"ready"';
    await daemon.ready(event);
    const line = daemon
      .log()
      .split('\n')
      .find((text) => text.includes(event));
    return (JSON.parse(line ?? '{}') as { subnets?: string[] }).subnets ?? [];
  }

  /** Ends it as a crash would. */
  async kill(): Promise<void> {
    await this.#daemon?.stop('SIGKILL');
  }
}

/** Those daemons as a subject, for `use`: they are started by themselves. */
export const embeddedWeft: Subject = {
  name: 'weft-udp',
  start: async () => {},
  route: () => undefined,
  device: () => 'flannel0',
};
