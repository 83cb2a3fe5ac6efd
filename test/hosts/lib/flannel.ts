/**
 * Nodes of a flannel cluster: an etcd on the underlay, weftd with flannel's command lines, and nodes of somebody else's, whose
 * leases a test writes by hand in flannel's exact form and whose packets the kernel carries (or a few lines of Python).
 *
 *     client-a ── host a ══ switch ══ host b ── client-b       etcd: 192.168.77.250, in the switch's namespace
 *
 * weftd gets 10.5.10.0/24 and above, so that 10.5.1.0/24 to 10.5.9.0/24 are free for hosts 1 to 9 that a test plays by hand.
 *
 * Every node has `/run` and `/var/lib` of its own (bind mounts in the mount namespace that `ip netns exec` makes), so that
 * flannel's defaults hold: a node's /run/flannel/subnet.env is `<lab.dir>/<letter>/run/flannel/subnet.env` here.
 */
import { mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type Daemon, type Host, type Lab, makeHosts, moveHost, type Namespace, sleep } from '../../../race/hosts.js';
import { Etcd, type EtcdOptions, type KeyValue } from '../../lib/etcd.js';
import { PYTHON } from './agents.js';
import { type Assertions, DAEMON, METRICS, Weft } from './weft.js';

export const ETCD_ADDRESS = '192.168.77.250';
export const PREFIX = '/coreos.com/network';
/** What flannel grants, seconds. */
export const DAY = 86_400;
/** Changes in etcd are in force after some milliseconds; the rest is for two busy cores. */
export const IN_FORCE_MS = 8000;
/** A MAC as Go writes it. */
export const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/;

export interface Cluster {
  readonly lab: Lab;
  readonly etcd: Etcd;
  /** As made; `settle` gives a host the addresses of its lease. */
  readonly hosts: Host[];
  /** Where the switch is, and etcd. */
  readonly underlay: Namespace;
}

/** `count` hosts on a switch, and an etcd without any key. */
export async function makeCluster(lab: Lab, count: number, options: EtcdOptions = {}): Promise<Cluster> {
  const hosts = makeHosts(lab, { count, join: 'bridge', clients: 'own' });
  const underlay = lab.namespaces.find(({ name }) => name === `${lab.prefix}-underlay`);
  if (!underlay) throw new Error('no underlay');
  underlay.ip(`addr add ${ETCD_ADDRESS}/24 dev switch`, 'addr add fd77::250/64 dev switch nodad');
  const etcd = await Etcd.start({ namespace: underlay.name, address: ETCD_ADDRESS, ...options });
  return { lab, etcd, hosts, underlay };
}

/** flannel's network configuration, with room for hosts that a test plays by hand. */
export const networkConfig = (backend?: object, more: object = {}): string =>
  JSON.stringify({ Network: '10.5.0.0/16', SubnetMin: '10.5.10.0', ...more, ...(backend ? { Backend: backend } : {}) });

// --- weftd ---

export interface NodeOptions {
  /** Exactly these; default: `-etcd-endpoints` and `-iface=eth0`. */
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Where /metrics is, for weftd.ts; default: yes. */
  readonly metrics?: boolean;
}

export const runOf = (host: Host): string => join(host.ns.lab.dir, host.letter, 'run');
export const subnetEnvOf = (host: Host, name = 'subnet.env'): string => join(runOf(host), 'flannel', name);

/** What `ip netns exec` has changed the mounts for is seen by nobody else. */
const OWN_FOLDERS = 'mount --bind "$1" /run && mount --bind "$2" /var/lib && shift 2 && exec "$@"';
let starts = 0;

/** Starts weftd on a host, without waiting. */
export function spawnNode({ etcd }: Cluster, host: Host, options: NodeOptions = {}): Weft {
  const { args = [`-etcd-endpoints=${etcd.endpoints.join(',')}`, '-iface=eth0'], metrics = true } = options;
  const run = runOf(host);
  const varLib = join(run, '..', 'var-lib');
  for (const folder of [run, varLib]) mkdirSync(folder, { recursive: true });
  // What this process has of them is not for the daemon.
  const inherited = Object.entries(process.env).filter(([name]) => !/^(WEFT|FLANNELD|NOTIFY)_/.test(name));
  const env = {
    ...Object.fromEntries(inherited),
    ...(metrics ? { WEFT_METRICS_ADDRESS: METRICS } : {}),
    WEFT_CHECK_ADDRESSES: '1',
    ...options.env,
  };
  const command = ['-c', OWN_FOLDERS, 'sh', run, varLib, process.execPath, DAEMON, ...args];
  return Weft.of(host, host.ns.start(`node-${host.letter}-${++starts}`, 'sh', command, { env }));
}

/** Starts weftd on a host and waits until it forwards. */
export async function startNode(cluster: Cluster, host: Host, options: NodeOptions = {}): Promise<Weft> {
  const weft = spawnNode(cluster, host, options);
  await weft.ready();
  return weft;
}

/** Resolves to the exit code of a daemon that ends by itself; undefined if it does not. Signals count as null. */
export async function exitCode(weft: Weft, timeoutMs = 15_000): Promise<number | null | undefined> {
  const deadline = performance.now() + timeoutMs;
  while (weft.daemon.running) {
    if (performance.now() > deadline) return undefined;
    await sleep(20);
  }
  await sleep(20);
  return weft.daemon.child.exitCode;
}

/** Lines of its log, of whatever level. */
export const logLines = (weft: Weft): string[] => weft.daemon.log().split('\n').filter(Boolean);

/** Gives `lan0` and the client the addresses of the node's subnets. */
export function settle(host: Host, file = subnetEnvOf(host)): Host {
  const values = readEnv(file);
  const base4 = values.FLANNEL_SUBNET?.replace(/\d+\//, (one) => `${Number.parseInt(one, 10) - 1}/`);
  const base6 = values.FLANNEL_IPV6_SUBNET?.replace(/1\//, '/');
  return moveHost(host, base4, base6);
}

export function readEnv(file: string): Record<string, string | undefined> {
  const lines = readFileSync(file, 'utf8').trim().split('\n');
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
}

// --- leases ---

/** The key of a lease, e.g. `10.5.1.0-24`, from a CIDR for each family. */
export const leaseKey = (...subnets: readonly string[]): string =>
  `${PREFIX}/subnets/${subnets.map((subnet) => subnet.replace('/', '-')).join('&')}`;

/** All leases, by their keys' last parts. */
export async function leases(etcd: Etcd): Promise<Map<string, KeyValue>> {
  const all = await etcd.list(`${PREFIX}/subnets/`);
  return new Map(all.map((one) => [one.key.slice(`${PREFIX}/subnets/`.length), one]));
}

/** The lease of the node with that public address. Throws if there is none or more than one. */
export async function leaseOf(etcd: Etcd, publicIp: string): Promise<KeyValue & { readonly name: string }> {
  const found = [...(await leases(etcd))].filter(([, { value }]) => value.includes(`"PublicIP":"${publicIp}"`));
  if (found.length !== 1) throw new Error(`${publicIp} has ${found.length} leases`);
  const [[name, lease]] = found;
  return { ...lease, name };
}

/** A lease's JSON as Go's encoding/json writes flannel's. */
export const flannelLease = {
  /** udp and alloc. */
  plain: (publicIp: string): string => `{"PublicIP":"${publicIp}","PublicIPv6":null}`,
  hostGw: (publicIp: string, publicIpv6?: string): string =>
    `{"PublicIP":"${publicIp}","PublicIPv6":${publicIpv6 ? `"${publicIpv6}"` : 'null'},"BackendType":"host-gw"}`,
  vxlan: (publicIp: string, mac: string, vni = 1): string =>
    `{"PublicIP":"${publicIp}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":${vni},"VtepMAC":"${mac}"}}`,
  vxlanDual: (publicIp: string, mac: string, publicIpv6: string, mac6: string, vni = 1): string =>
    `{"PublicIP":"${publicIp}","PublicIPv6":"${publicIpv6}","BackendType":"vxlan","BackendData":{"VNI":${vni},"VtepMAC":"${mac}"},` +
    `"BackendV6Data":{"VNI":${vni},"VtepMAC":"${mac6}"}}`,
};

/** A new lease (or a renewal: the same value and a new etcd lease), as a flanneld makes it. */
export const writeLease = (etcd: Etcd, name: string, value: string): Promise<object> =>
  etcd.put(`${PREFIX}/subnets/${name}`, value, { ttl: DAY });

// --- what a host says of itself ---

interface IpRoute {
  readonly dst: string;
  readonly gateway?: string;
  readonly dev?: string;
  readonly flags?: readonly string[];
}

/** The routes to a destination, as one line each: `via 10.5.3.0 dev flannel.1 onlink`. */
export function routesTo(ns: Namespace, destination: string): string[] {
  const family = destination.includes(':') ? '-6' : '-4';
  const routes = JSON.parse(ns.runSync('ip', family, '-j', 'route', 'show', 'exact', destination) || '[]') as IpRoute[];
  return routes.map(({ gateway, dev, flags = [] }) =>
    [gateway ? `via ${gateway}` : '', `dev ${dev}`, flags.includes('onlink') ? 'onlink' : ''].filter(Boolean).join(' '),
  );
}

/** The neighbours of a device, as `10.5.3.0 aa:bb:cc:dd:ee:ff PERMANENT`. */
export function neighbours(ns: Namespace, device: string): string[] {
  const all = JSON.parse(ns.runSync('ip', '-j', 'neigh', 'show', 'dev', device) || '[]') as {
    dst: string;
    lladdr?: string;
    state: string[];
  }[];
  return all.map(({ dst, lladdr, state }) => `${dst} ${lladdr} ${state.join(',')}`).sort();
}

export interface Link {
  readonly kind: string | undefined;
  /** Of a TUN device: tun or tap. */
  readonly type: string | undefined;
  readonly mac: string;
  readonly mtu: number;
  readonly up: boolean;
  /** With their lengths, sorted; link-local ones too. */
  readonly addresses: readonly string[];
}

/** A device of the host's; undefined: there is none of that name. */
export function linkOf(ns: Namespace, device: string): Link | undefined {
  type Json = {
    ifname: string;
    address: string;
    mtu: number;
    flags: string[];
    linkinfo?: { info_kind?: string; info_data?: { type?: string } };
    addr_info: { local: string; prefixlen: number }[];
  };
  const all = JSON.parse(ns.runSync('ip', '-d', '-j', 'addr', 'show')) as Json[];
  const found = all.find(({ ifname }) => ifname === device);
  if (!found) return undefined;
  return {
    kind: found.linkinfo?.info_kind,
    type: found.linkinfo?.info_data?.type,
    mac: found.address,
    mtu: found.mtu,
    up: found.flags.includes('UP'),
    addresses: found.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`).sort(),
  };
}

/** A plain HTTP answer inside a namespace, from 127.0.0.1. Code 0: nobody answers. */
export async function http(ns: Namespace, port: number, path: string): Promise<{ code: number; body: string }> {
  const script = `exec 3<>/dev/tcp/127.0.0.1/${port} && printf 'GET ${path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3`;
  const { stdout } = await ns.run('timeout', ['5', 'bash', '-c', script]);
  return { code: Number(/^HTTP\/1\.\d (\d+)/.exec(stdout)?.[1] ?? 0), body: stdout.split('\r\n\r\n')[1] ?? '' };
}

// --- what changes in the kernel ---

/** `ip monitor` in a namespace: what changes in its routes, neighbours and links. */
export class Monitor {
  readonly #daemon: Daemon;

  private constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  static async start(ns: Namespace): Promise<Monitor> {
    const daemon = ns.start(`monitor-${++starts}`, 'ip', ['-o', '-ts', 'monitor', 'link', 'route', 'neigh', 'address']);
    // It says nothing at first: a change of ours shows that it listens.
    for (let i = 0; i < 100 && !daemon.log().includes('127.77.0.1'); i++) {
      ns.ip('addr add 127.77.0.1/32 dev lo', 'addr del 127.77.0.1/32 dev lo');
      await sleep(50);
    }
    return new Monitor(daemon);
  }

  /** What was seen so far that concerns `about` (10.5.3. or flannel.1), without timestamps. */
  seen(...about: readonly string[]): string[] {
    return this.#daemon
      .log()
      .split('\n')
      .filter((line) => about.some((word) => line.includes(word)))
      .map((line) => line.replace(/^\[[^\]]*\] */, '').trim());
  }

  async stop(): Promise<void> {
    await this.#daemon.stop('SIGKILL');
  }
}

// --- nodes of somebody else's ---

export interface KernelNode {
  readonly device: string;
  readonly mac: string;
}

export interface KernelVxlan {
  readonly vni?: number;
  readonly family?: 4 | 6;
  readonly mac: string;
  readonly local: string;
  /** The host's own subnet's base. */
  readonly base: string;
  readonly port?: number;
}

/** The device of a flanneld with the vxlan backend. */
export function kernelFlannel(ns: Namespace, options: KernelVxlan): string {
  const { vni = 1, family = 4, mac, local, base, port = 8472 } = options;
  const device = family === 4 ? `flannel.${vni}` : `flannel-v6.${vni}`;
  const extra = family === 6 ? 'udp6zerocsumrx' : '';
  ns.ip(
    `link add ${device} type vxlan id ${vni} dev eth0 local ${local} dstport ${port} nolearning ${extra}`,
    `link set ${device} address ${mac} mtu ${family === 4 ? 1450 : 1430}`,
  );
  ns.sysctl({ [`net/ipv6/conf/${device}/addr_gen_mode`]: 1 });
  ns.ip(
    `addr add ${base}/${family === 4 ? 32 : 128} dev ${device} ${family === 6 ? 'nodad' : ''}`,
    `link set ${device} up`,
  );
  return device;
}

/** What a flanneld tells its kernel of another node, in its order: neighbour, FDB, route. */
export function kernelPeer(
  ns: Namespace,
  device: string,
  peer: { readonly subnet: string; readonly mac: string; readonly publicIp: string },
): void {
  const base = peer.subnet.replace(/\/.*/, '');
  ns.ip(`neigh replace ${base} lladdr ${peer.mac} dev ${device} nud permanent`);
  ns.runSync('bridge', 'fdb', 'replace', peer.mac, 'dev', device, 'dst', peer.publicIp, 'self', 'permanent');
  ns.ip(`route replace ${peer.subnet} via ${base} dev ${device} onlink`);
}

/**
 * The whole of flanneld's udp backend: a TUN, a socket from which packets leave as they are, and who has which subnet.
 * Arguments: address, port, then `10.5.10.0/24=192.168.77.1` each.
 */
const UDP_NODE = `
import fcntl, ipaddress, os, select, socket, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH', b'flannel0', 0x1001))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
peers = [(ipaddress.ip_network(a), b) for a, b in (arg.split('=') for arg in sys.argv[3:])]
print('listening', flush=True)
while True:
    for ready in select.select([tun, s], [], [])[0]:
        if ready is s: os.write(tun, s.recv(65536))
        else:
            packet = os.read(tun, 65536)
            if packet[0] >> 4 != 4: continue
            to = ipaddress.ip_address(packet[16:20])
            for network, address in peers:
                if to in network: s.sendto(packet, (address, int(sys.argv[2])))
`;

/** Starts a node with flannel's udp backend by hand; `peers` by subnet. */
export async function udpNode(
  host: Host,
  options: {
    readonly base: string;
    readonly address: string;
    readonly peers: Readonly<Record<string, string>>;
    readonly port?: number;
  },
): Promise<Daemon> {
  const { base, address, peers, port = 8285 } = options;
  const args = ['-c', UDP_NODE, address, String(port), ...Object.entries(peers).map(([to, at]) => `${to}=${at}`)];
  const daemon = host.ns.start(`udp-node-${host.letter}-${++starts}`, PYTHON, args);
  await daemon.ready('listening');
  host.ns.sysctl({ 'net/ipv6/conf/flannel0/disable_ipv6': 1 });
  host.ns.ip(
    `addr add ${base}/32 dev flannel0`,
    'link set flannel0 mtu 1472 up',
    'route replace 10.5.0.0/16 dev flannel0',
  );
  return daemon;
}

// --- sd_notify ---

/** Arguments: the socket's name (`@…` is abstract), and a file whose existence is told with every message. */
const LISTENER = `
import os, socket, sys
name = sys.argv[1]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('\\0' + name[1:] if name[0] == '@' else name)
print('listening', flush=True)
while True:
    text = s.recv(4096).decode()
    print('got', repr(text), 'with' if os.path.exists(sys.argv[2]) else 'without', flush=True)
`;

/** Somebody like systemd, who listens on $NOTIFY_SOCKET. */
export class NotifyListener {
  /** For $NOTIFY_SOCKET. */
  readonly name: string;
  readonly #daemon: Daemon;

  private constructor(name: string, daemon: Daemon) {
    this.name = name;
    this.#daemon = daemon;
  }

  /** `file`: what must be there when a daemon says that it is ready. */
  static async start(host: Host, kind: 'path' | 'abstract', file: string): Promise<NotifyListener> {
    const name = kind === 'path' ? join(host.ns.lab.dir, `notify-${host.letter}`) : `@weft-notify-${process.pid}`;
    const daemon = host.ns.start(`notify-${host.letter}`, PYTHON, ['-c', LISTENER, name, file]);
    await daemon.ready('listening');
    return new NotifyListener(name, daemon);
  }

  /** `'READY=1' with` for each message: its text, and whether the file was there. */
  messages(): string[] {
    return [...this.#daemon.log().matchAll(/^got (.*)$/gm)].map(([, text]) => text);
  }
}

// --- assertions ---

/** subnet.env is byte for byte what flannel would write, and for all to read. */
export function assertSubnetEnv(
  t: Assertions,
  file: string,
  wanted: { readonly subnet: string; readonly subnet6?: string; readonly mtu: number; readonly ipMasq?: boolean },
  message: string,
): void {
  const first = (subnet: string): string =>
    subnet.includes(':')
      ? subnet.replace('/', '1/')
      : subnet.replace(/\d+\//, (one) => `${Number.parseInt(one, 10) + 1}/`);
  const { subnet, subnet6, mtu, ipMasq = false } = wanted;
  const lines = [
    'FLANNEL_NETWORK=10.5.0.0/16',
    `FLANNEL_SUBNET=${first(subnet)}`,
    ...(subnet6 ? ['FLANNEL_IPV6_NETWORK=fd00:5::/48', `FLANNEL_IPV6_SUBNET=${first(subnet6)}`] : []),
    `FLANNEL_MTU=${mtu}`,
    `FLANNEL_IPMASQ=${ipMasq}`,
    '',
  ];
  t.equal(readFileSync(file, 'utf8'), lines.join('\n'), `${message}: subnet.env`);
  t.equal(statSync(file).mode & 0o777, 0o644, `${message}: subnet.env is for all to read`);
  const others = readdirSync(join(file, '..')).filter((name) => !/\.env$/.test(name));
  t.same(others, [], `${message}: and nothing is left beside it`);
}

/** The lease's own etcd lease is flannel's: granted for a day, and not long ago. */
export async function assertDay(t: Assertions, etcd: Etcd, lease: KeyValue, message: string): Promise<void> {
  const { ttl, granted } = await etcd.lease(lease.lease);
  t.equal(granted, DAY, `${message}: granted for a day`);
  t.ok(ttl > DAY - 300 && ttl <= DAY, `${message}: ${ttl} s of it left`);
}

/**
 * Client to client, host to client and client to host, from each of `hosts` to every other one. What does not answer is in the
 * assertion's difference, as `a.client->10.5.11.2`.
 */
export async function assertMesh(
  t: Assertions,
  hosts: readonly Host[],
  message: string,
  family: 4 | 6 = 4,
): Promise<void> {
  const clientOf = (host: Host): string => (family === 4 ? host.client4 : host.client6);
  const gatewayOf = (host: Host): string => clientOf(host).replace(/2$/, '1');
  const script = 'for a; do { ping -n -c3 -i0.2 -W2 "$a" >/dev/null || echo "$a"; } & done; wait';
  const silent = await Promise.all(
    hosts.flatMap((from) => {
      const others = hosts.filter((host) => host.letter !== from.letter);
      const ask = async (what: string, ns: Namespace, to: readonly string[]): Promise<string[]> =>
        (await ns.run('sh', ['-c', script, 'sh', ...to])).stdout
          .split('\n')
          .filter(Boolean)
          .map((address) => `${from.letter}.${what}->${address}`);
      return [
        ask(
          'client',
          from.client,
          others.flatMap((host) => [clientOf(host), gatewayOf(host)]),
        ),
        ask('host', from.ns, others.map(clientOf)),
      ];
    }),
  );
  t.same(silent.flat().sort(), [], `${message}: client to client, host to client, client to host`);
}

/** Milliseconds over which an idle daemon is watched: a look by default, a figure for README in the long version. */
export const IDLE_MS = process.env.WEFT_TEST_FULL ? 30_000 : 3000;

/** Resident memory and the share of a core over IDLE_MS of a daemon that has nothing to do, as a line of text. */
export async function idleCost(weft: Weft): Promise<string> {
  const { pid } = weft.daemon.child;
  const ticks = (): number => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /, '')
      .split(' ');
    return Number(fields[11]) + Number(fields[12]);
  };
  const [before, begun] = [ticks(), performance.now()];
  await sleep(IDLE_MS);
  // 100 ticks a second, as the kernel tells user space on every architecture of ours.
  const cpuPercent = ((ticks() - before) / 100 / ((performance.now() - begun) / 1000)) * 100;
  const rss = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
  return `idle: ${rss.toFixed(0)} MiB resident, ${cpuPercent.toFixed(2)} % of a core`;
}
