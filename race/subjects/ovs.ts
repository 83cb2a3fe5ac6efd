/**
 * Open vSwitch with its userspace datapath (`datapath_type=netdev`, without DPDK) and VXLAN that it encapsulates by itself
 * ("native tunnelling"): no kernel module takes part. On each host:
 *
 *     routes ── ovs-in (bridge; its own port is a TAP, 10.254.4.i/24) ── VXLAN port for each peer
 *                                                                             │ routed within Open vSwitch
 *                    second underlay ── under1 ── ovs-out (bridge; its own port is a TAP, 192.168.78.i/24)
 *
 * Open vSwitch takes an underlay interface for itself, to read and write it by AF_PACKET, and its address has to move to the bridge's port.
 * So that eth0 stays to the other subjects, it gets a second veth of its own between the hosts, made as the first one is:
 * under1 of hosts a and b are its ends, those of hosts c, d, … macvlans on host b's end.
 *
 * A packet travels as Ethernet, IPv4 (20), UDP (8), VXLAN (8), Ethernet (14), IP packet, as with the kernel's vxlan device. As there,
 * neighbours are set beforehand. Where a MAC is, the bridges learn; they flood what they don't know, and no loop is possible, since
 * hosts b, c, … have host a as their one peer.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Daemon, Host, Lab } from '../hosts.js';
import { appears, type Subject, type SubjectKind } from './subject.js';

const IN = 'ovs-in';
const OUT = 'ovs-out';
const UNDERLAY = 'under1';
const VNI = 81;
const PORT = 4793;
/** Debian's place of the database's layout. */
const SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema';
const MTU = 1500 - 20 - 8 - 8 - 14;

const inside = (host: Host): string => `10.254.4.${host.number}`;
const outside = (host: Host): string => `192.168.78.${host.number}`;
/** Of the inner bridge's own port. */
const mac = (host: Host): string => `02:57:65:66:76:${host.number.toString(16).padStart(2, '0')}`;

/** The second underlay, as `makeHosts` makes the first one. */
function joinHosts(lab: Lab, hosts: readonly Host[]): void {
  const [a, b, ...more] = hosts;
  lab.veth(a.ns, UNDERLAY, b.ns, UNDERLAY);
  for (const { letter, ns } of more) {
    const far = `${UNDERLAY}-${letter}`;
    b.ns.ip(
      `link add link ${UNDERLAY} name ${far} mtu 1500 type macvlan mode bridge`,
      `link set ${far} netns ${ns.name}`,
    );
    ns.ip(`link set ${far} name ${UNDERLAY}`, `link set ${UNDERLAY} up`);
  }
  // The kernel sees what comes in there as well, and would refuse it (port unreachable) and answer ARP, for it has the address too.
  const deaf = { [`net/ipv4/conf/${UNDERLAY}/rp_filter`]: 1, [`net/ipv4/conf/${UNDERLAY}/arp_ignore`]: 1 };
  for (const { ns } of hosts) ns.sysctl(deaf);
}

/** One host's ovsdb-server and ovs-vswitchd, whose database and sockets are in a folder of the lab's. */
class Switch {
  readonly #host: Host;
  readonly #folder: string;
  readonly #env: NodeJS.ProcessEnv;

  constructor(host: Host) {
    this.#host = host;
    this.#folder = join(host.ns.lab.dir, `ovs-${host.letter}`);
    const all = ['OVS_RUNDIR', 'OVS_DBDIR', 'OVS_LOGDIR', 'OVS_SYSCONFDIR'].map((name) => [name, this.#folder]);
    this.#env = { ...process.env, ...Object.fromEntries(all) };
  }

  get #socket(): string {
    return join(this.#folder, 'db.sock');
  }

  get #server(): string {
    return `unix:${this.#socket}`;
  }

  #start(program: string, ...args: string[]): Daemon {
    const control = `--unixctl=${join(this.#folder, `${program}.ctl`)}`;
    const quiet = ['-vsyslog:off', '-vconsole:warn'];
    const name = `${program}-${this.#host.letter}`;
    return this.#host.ns.start(name, program, [control, ...quiet, ...args], { env: this.#env });
  }

  async start(): Promise<void> {
    const database = join(this.#folder, 'conf.db');
    mkdirSync(this.#folder);
    const made = spawnSync('ovsdb-tool', ['create', database, SCHEMA], { env: this.#env, encoding: 'utf8' });
    if (made.status !== 0) throw new Error(`ovsdb-tool create: ${made.stderr?.trim() || made.error?.message}`);
    this.#start('ovsdb-server', `--remote=p${this.#server}`, database);
    await appears(this.#socket, 'ovsdb-server');
    await this.change('--no-wait', 'init');
    this.#start('ovs-vswitchd', '--disable-system', this.#server);
  }

  /** Changes the database by ovs-vsctl; resolves once the switch is as it says. Several commands are joined by '--'. */
  async change(...commands: string[]): Promise<void> {
    const args = ['--retry', '--timeout=10', `--db=${this.#server}`, ...commands];
    const done = await this.#host.ns.run('ovs-vsctl', args, { env: this.#env });
    if (done.code !== 0) throw new Error(`ovs-vsctl in ${this.#host.ns.name}: ${done.stderr.trim().split('\n')[0]}`);
  }
}

const addBridge = (name: string): string[] => ['add-br', name, '--', 'set', 'bridge', name, 'datapath_type=netdev'];

async function configure(host: Host, peers: readonly Host[]): Promise<void> {
  const { ns } = host;
  const flows = new Switch(host);
  await flows.start();
  // A macvlan takes nothing for another MAC than its own.
  const macOut = ns.runSync('cat', `/sys/class/net/${UNDERLAY}/address`).trim();
  await flows.change(...addBridge(OUT), `other-config:hwaddr=${macOut}`, '--', 'add-port', OUT, UNDERLAY);
  ns.ip(`addr add ${outside(host)}/24 dev ${OUT}`, `link set ${OUT} up`);
  await flows.change(...addBridge(IN), `other-config:hwaddr=${mac(host)}`);
  await flows.change('set', 'interface', IN, `mtu_request=${MTU}`);
  for (const peer of peers) {
    const port = `vxlan-${peer.letter}`;
    const options = [`options:remote_ip=${outside(peer)}`, `options:key=${VNI}`, `options:dst_port=${PORT}`];
    await flows.change('add-port', IN, port, '--', 'set', 'interface', port, 'type=vxlan', ...options);
  }
  ns.ip(
    `addr add ${inside(host)}/24 dev ${IN}`,
    `link set ${IN} up`,
    ...peers.map((peer) => `neigh add ${inside(peer)} lladdr ${mac(peer)} dev ${IN} nud permanent`),
  );
}

function ovs(lab: Lab, hosts: readonly Host[]): Subject {
  return {
    name: 'ovs',
    async start() {
      const [a, ...far] = hosts;
      joinHosts(lab, hosts);
      for (const host of hosts) await configure(host, host === a ? far : [a]);
    },
    route: (_, to) => `via ${inside(to)} dev ${IN}`,
    device: () => IN,
  };
}

export const ovsKind: SubjectKind = {
  name: 'ovs',
  needs: ['ovs-vswitchd', 'ovsdb-server', 'ovsdb-tool', 'ovs-vsctl'].map((command) => ({
    command,
    package: 'openvswitch-switch',
    version: ['--version'],
  })),
  make: ovs,
};
