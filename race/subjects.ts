/**
 * What is raced: ways for host a to reach the networks behind hosts b, c, … over one underlay.
 *
 * All of them are set up side by side and stay up; `use` switches by routes alone. Each subject is reached by
 * /24 routes, but weft-udp, which installs the overlay's /16 itself and carries what has no more specific route. Idle daemons cost
 * nothing that can be measured. Clients and their links are never touched, except that learnt path MTUs are forgotten at a
 * switch: a smaller one learnt with one subject would shrink the packets of the next.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { answersPing, type Daemon, type Host, type Lab, NETWORK4, NETWORK6, peersFile, sleep } from './hosts.js';

export const DAEMON = fileURLToPath(new URL('../src/main.js', import.meta.url));
const NOT_BUILT = 'weftd is not built (dist/src/main.js is missing): run npm run build';

export interface Subject {
  readonly name: string;
  /** Set up on all hosts and ready to forward, but unused. */
  start(): Promise<void>;
  /** The route (what follows `ip route replace`) that leads from one host to another, or undefined if it has its own. */
  route(from: Host, to: Host): string | undefined;
  /** The device through which packets leave host `from` for `to`. */
  device(from: Host, to: Host): string;
}

/** No overlay: plain routes over the underlay. What bounds every other subject. */
function direct(): Subject {
  return {
    name: 'direct',
    start: async () => {},
    route: (_, to) => `via ${to.underlay4} dev eth0`,
    device: () => 'eth0',
  };
}

/** One Ethernet segment over all hosts, in VXLAN. On each of them it is reached through a device with an address of its own. */
interface Segment {
  readonly name: string;
  readonly vni: number;
  readonly port: number;
  /** Host i's device has the address 10.254.`subnet`.i. */
  readonly subnet: number;
  /** Name of the device. */
  readonly device: string;
  /** Where weftd makes it, a TAP; elsewhere it is the kernel's vxlan device. */
  readonly weft: (host: Host) => boolean;
  readonly daemonArgs?: readonly string[];
}

/**
 * Sets a segment up as flannel does: routes lead through the far device's address, and all neighbours and MACs are set
 * beforehand, so that nothing is asked for by ARP and nothing is flooded. What the kernel is told by `bridge fdb`, weftd is
 * told by its peers file. The MTU of 1450 comes from the underlay's, in the kernel and in weftd.
 */
function vxlanSegment(hosts: readonly Host[], segment: Segment): Subject {
  const { name, vni, port, device } = segment;
  const address = (host: Host): string => `10.254.${segment.subnet}.${host.number}`;
  const macs = new Map<Host, string>();

  const kernelDevice = (host: Host): void => {
    host.ns.ip(
      `link add ${device} address ${macs.get(host)} type vxlan id ${vni} dstport ${port} local ${host.underlay4} dev eth0`,
      `addr add ${address(host)}/24 dev ${device}`,
      `link set ${device} up`,
    );
  };
  const kernelPeers = (host: Host): void => {
    for (const peer of hosts) {
      if (peer === host) continue;
      // `replace`: a weftd that is up may have been heard of already.
      host.ns.runSync('bridge', 'fdb', 'replace', macs.get(peer)!, 'dev', device, 'dst', peer.underlay4);
    }
  };
  const peersFile = join(hosts[0].ns.lab.dir, `${name}.json`);
  const writePeers = (): void => {
    const peers = hosts.map((host) => {
      const mac = macs.get(host);
      return { name: host.letter, address: host.underlay4, port, macs: mac ? [mac] : [] };
    });
    writeFileSync(`${peersFile}.new`, JSON.stringify({ peers }));
    renameSync(`${peersFile}.new`, peersFile);
  };
  const startWeft = (host: Host): Daemon => {
    const args = ['--mode', 'l2', '--vni', `${vni}`, '--port', `${port}`, '--device', device];
    args.push('--address', `${address(host)}/24`, '--iface', 'eth0', '--public-ip', host.underlay4);
    args.push('--peers', peersFile, ...(segment.daemonArgs ?? []));
    return host.ns.start(`${name}-${host.letter}`, process.execPath, [DAEMON, ...args]);
  };

  return {
    name,
    async start() {
      const kernels = hosts.filter((host) => !segment.weft(host));
      const wefts = hosts.filter(segment.weft);
      for (const host of kernels) {
        macs.set(host, `02:57:65:66:74:${host.number.toString(16).padStart(2, '0')}`);
        kernelDevice(host);
      }
      if (wefts.length > 0) {
        if (!existsSync(DAEMON)) throw new Error(NOT_BUILT);
        writePeers();
        const daemons = wefts.map(startWeft);
        for (const daemon of daemons) await daemon.ready('"event":"ready"');
        // A TAP's MAC is the kernel's choice. The daemons read the file again by themselves.
        for (const host of wefts) {
          macs.set(host, host.ns.runSync('cat', `/sys/class/net/${device}/address`).trim());
        }
        writePeers();
      }
      for (const host of kernels) kernelPeers(host);
      for (const host of hosts) {
        const peers = hosts.filter((peer) => peer !== host);
        host.ns.ip(
          ...peers.map((peer) => `neigh add ${address(peer)} lladdr ${macs.get(peer)} dev ${device} nud permanent`),
        );
      }
    },
    route: (_, to) => `via ${address(to)} dev ${device}`,
    device: () => device,
  };
}

/** The kernel's VXLAN with iproute2's defaults (UDP checksums on, learning on). */
export const kernelVxlan = (hosts: readonly Host[], device = 'vxlan0'): Subject =>
  vxlanSegment(hosts, { name: 'kernel-vxlan', vni: 77, port: 4789, subnet: 0, device, weft: () => false });

/** A real weftd in layer 2 on each host, or at one end only, and the kernel's vxlan device at the other. */
const WEFT_SEGMENTS = {
  'weft-vxlan': { vni: 78, port: 4790, subnet: 1, device: 'l2-both', weft: () => true },
  'weft-to-kernel': { vni: 79, port: 4791, subnet: 2, device: 'l2-near', weft: (host: Host) => host.letter === 'a' },
  'kernel-to-weft': { vni: 80, port: 4792, subnet: 3, device: 'l2-far', weft: (host: Host) => host.letter !== 'a' },
} as const;

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
      if (!existsSync(DAEMON)) throw new Error(NOT_BUILT);
      const both = options.inside === 'both';
      const peers = join(lab.dir, 'peers.json');
      writeFileSync(peers, peersFile(hosts, 4, options.inside));
      const daemons = hosts.map((host) => {
        const args = ['--network', both ? `${NETWORK4},${NETWORK6}` : NETWORK4];
        args.push('--subnet', both ? `${host.subnet4},${host.subnet6}` : host.subnet4);
        args.push('--iface', 'eth0', '--public-ip', host.underlay4, '--peers', peers, ...(options.daemonArgs ?? []));
        return host.ns.start(`weftd-${host.letter}`, process.execPath, [DAEMON, ...args]);
      });
      for (const daemon of daemons) await daemon.ready('"event":"ready"');
    },
    route: () => undefined,
    device: () => 'flannel0',
  };
}

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

/**
 * fastd without encryption (method "null"), mode tun: one layer-3 device per peer, named after it. Its MTU leaves
 * room for IPv4, UDP and the one byte of its own header.
 */
function fastd(lab: Lab, hosts: readonly Host[]): Subject {
  const key = (field: string, text: string): string => {
    const found = new RegExp(`${field}:\\s*([0-9a-f]{64})`, 'i').exec(text);
    if (!found) throw new Error(`fastd --generate-key gave no ${field} key`);
    return found[1];
  };
  const device = (peer: Host): string => `fastd-${peer.letter}`;
  const daemons: Daemon[] = [];
  return {
    name: 'fastd',
    async start() {
      const keys = hosts.map(() => {
        const made = spawnSync('fastd', ['--generate-key'], { encoding: 'utf8' });
        const text = `${made.stdout}${made.stderr}`;
        return { secret: key('Secret', text), public: key('Public', text) };
      });
      hosts.forEach((host, i) => {
        const peers = hosts.flatMap((peer, j) =>
          // Only a host of the star needs its spokes, and a spoke only the star's centre: host a.
          peer === host || (i > 0 && j > 0)
            ? []
            : [`peer "${peer.letter}" { key "${keys[j].public}"; remote ${peer.underlay4}:10000; }`],
        );
        const config = join(lab.dir, `fastd-${host.letter}.conf`);
        const lines = ['mode tun;', 'interface "fastd-%n";', 'mtu 1471;', 'method "null";', 'log level info;'];
        lines.push(`bind ${host.underlay4}:10000;`, `secret "${keys[i].secret}";`, ...peers);
        writeFileSync(config, `${lines.join('\n')}\n`, { mode: 0o600 });
        daemons.push(host.ns.start(`fastd-${host.letter}`, 'fastd', ['--config', config]));
      });
      for (const daemon of daemons) await daemon.ready('fastd v');
      const [a, ...far] = hosts;
      for (const host of far) {
        await bringUp(a, device(host));
        await bringUp(host, device(a));
      }
    },
    route: (_, to) => `dev ${device(to)}`,
    device: (_, to) => device(to),
  };
}

async function bringUp(host: Host, device: string): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      host.ns.ip(`link set ${device} up`);
      return;
    } catch (error) {
      if (tries === 100) throw error;
      await sleep(50);
    }
  }
}

export const SUBJECTS = [
  'direct',
  'kernel-vxlan',
  'weft-udp',
  'weft-vxlan',
  'weft-to-kernel',
  'kernel-to-weft',
  'fastd',
] as const;
export type SubjectName = (typeof SUBJECTS)[number];

export function makeSubject(
  name: SubjectName,
  lab: Lab,
  hosts: readonly Host[],
  daemonArgs: readonly string[],
): Subject {
  switch (name) {
    case 'direct':
      return direct();
    case 'kernel-vxlan':
      return kernelVxlan(hosts);
    case 'weft-udp':
      return weftUdp(lab, hosts, { inside: 'v4', daemonArgs });
    case 'weft-vxlan':
    case 'weft-to-kernel':
    case 'kernel-to-weft':
      return vxlanSegment(hosts, { name, ...WEFT_SEGMENTS[name], daemonArgs });
    case 'fastd':
      return fastd(lab, hosts);
  }
}

/** Sends everything between host a's clients and the others' through `subject`, and checks that it does go there. */
export async function use(subject: Subject, hosts: readonly Host[]): Promise<void> {
  const [a, ...far] = hosts;
  const change = (from: Host, to: Host): void => {
    const route = subject.route(from, to);
    if (route) from.ns.ip(`route replace ${to.subnet4} ${route}`);
    else if (from.ns.runSync('ip', 'route', 'show', 'exact', to.subnet4)) from.ns.ip(`route del ${to.subnet4}`);
  };
  for (const host of far) {
    change(a, host);
    change(host, a);
  }
  for (const ns of new Set(hosts.flatMap((host) => [host.ns, host.client]))) ns.ip('route flush cache');
  for (const host of far) {
    for (const [from, to] of [
      [a, host],
      [host, a],
    ]) {
      const device = subject.device(from, to);
      const taken = from.ns.runSync('ip', 'route', 'get', to.client4);
      if (!taken.includes(` dev ${device} `)) {
        throw new Error(
          `${subject.name}: ${to.client4} is not reached through ${device} but by: ${taken.split('\n')[0]}`,
        );
      }
    }
    if (!(await answersPing(a.client, host.client4, 10_000))) {
      throw new Error(`${subject.name}: ${host.client4} does not answer a ping from ${a.client4}`);
    }
  }
}
