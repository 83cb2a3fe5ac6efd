/**
 * One Ethernet segment over several hosts: a Linux bridge in each, stations behind it, and one port of the bridge that leads
 * to the other hosts: Weft's TAP, or the kernel's own vxlan device. All hosts but their kind of port are alike.
 *
 *     station a1 ── p1 ┐                          ┌ p1 ── station b1      station 2 of host 1 (a2):
 *                      br0 ─ weft42 ══ underlay ══ vx42 ─ br0                10.7.0.12/24, fd07::12/64
 *     station a2 ── p2 ┘     host a      host b           └ p2 ── station b2     02:07:00:00:01:02
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Host, type Lab, type Namespace, sleep } from '../../../race/hosts.js';
import { type Agent, MiB, PYTHON, STREAM_PORT, sendSegments } from './agents.js';
import { type Assertions, METRICS, Weft } from './weft.js';

export const VNI = 42;
export const VXLAN_PORT = 4789;
/** What a frame's payload may have: outer IPv4 or IPv6, UDP, VXLAN and the inner Ethernet header. */
export const OVERHEAD = { 4: 50, 6: 70 } as const;
/** What stands in front of an IP packet without VLAN tag. */
export const ETHERNET = 14;

export type Family = 4 | 6;

/** A namespace with one Ethernet interface, `eth0`, whose other end is a port of a host's bridge. */
export interface Station {
  readonly name: string;
  readonly ns: Namespace;
  /** The bridge's end. */
  readonly port: string;
  readonly mac: string;
  readonly address4: string;
  readonly address6: string;
}

/** A host with a bridge, `br0`. */
export interface Site extends Host {
  readonly stations: readonly Station[];
}

export interface SitesOptions {
  readonly count: number;
  /** Behind each bridge; default 1. */
  readonly stations?: number;
  /** Of the underlay; default 1500. */
  readonly mtu?: number;
  /** Of the stations; default: what an underlay of IPv4 leaves. */
  readonly stationMtu?: number;
}

const twoDigits = (n: number): string => n.toString(16).padStart(2, '0');

/** Bridges with their stations, joined by an underlay without any overlay yet. */
export function makeSites(lab: Lab, options: SitesOptions): Site[] {
  const { count, stations = 1, mtu = 1500, stationMtu = mtu - OVERHEAD[4] } = options;
  const underlay = count > 2 ? lab.namespace('underlay') : undefined;
  underlay?.ip('link add switch type bridge', 'link set switch up');
  const sites: Site[] = [];
  for (let number = 1; number <= count; number++) {
    const letter = String.fromCharCode(96 + number);
    const ns = lab.namespace(letter);
    if (underlay) {
      lab.veth(ns, 'eth0', underlay, `port-${letter}`, mtu);
      underlay.ip(`link set port-${letter} master switch`);
    } else if (number === 2) lab.veth(sites[0].ns, 'eth0', ns, 'eth0', mtu);
    addBridge(ns, 'br0');
    const behind = Array.from({ length: stations }, (_, i) =>
      addStation(lab, { letter, number, ns }, i + 1, { mtu: stationMtu }),
    );
    const [first] = behind;
    sites.push({
      letter,
      number,
      ns,
      underlayInterface: 'eth0',
      lanInterface: 'br0',
      underlay4: `192.168.77.${number}`,
      underlay6: `fd77::${number}`,
      subnet4: '10.7.0.0/24',
      subnet6: 'fd07::/64',
      client: first.ns,
      client4: first.address4,
      client6: first.address6,
      clientInterface: 'eth0',
      stations: behind,
    });
  }
  for (const { ns, underlay4, underlay6 } of sites) {
    ns.ip(`addr add ${underlay4}/24 dev eth0`, `addr add ${underlay6}/64 dev eth0 nodad`);
  }
  return sites;
}

/** A bridge that says nothing by itself, so that what is counted is what a test sent. */
export function addBridge(ns: Namespace, name: string): void {
  ns.ip(`link add ${name} type bridge`);
  ns.sysctl({ [`net/ipv6/conf/${name}/disable_ipv6`]: 1 });
  ns.ip(`link set ${name} up`);
}

/** Station `number` behind a host's bridge. Two networks may have one of the same number: then `suffix` tells them apart. */
export function addStation(
  lab: Lab,
  host: { readonly letter: string; readonly number: number; readonly ns: Namespace },
  number: number,
  options: { readonly mtu: number; readonly bridge?: string; readonly suffix?: string },
): Station {
  const { mtu, bridge = 'br0', suffix = '' } = options;
  const name = `${host.letter}${number}${suffix}`;
  const station = {
    name,
    ns: lab.namespace(`station-${name}`),
    port: `p-${name}`,
    mac: `02:07:00:00:${twoDigits(host.number)}:${twoDigits(number)}`,
    address4: `10.7.0.${host.number * 10 + number}`,
    address6: `fd07::${host.number * 10 + number}`,
  };
  lab.veth(host.ns, station.port, station.ns, 'eth0', mtu);
  host.ns.sysctl({ [`net/ipv6/conf/${station.port}/disable_ipv6`]: 1 });
  host.ns.ip(`link set ${station.port} master ${bridge}`);
  station.ns.ip(
    `link set eth0 address ${station.mac}`,
    `addr add ${station.address4}/24 brd + dev eth0`,
    `addr add ${station.address6}/64 dev eth0 nodad`,
  );
  return station;
}

export const underlayOf = (site: Host, family: Family): string => (family === 4 ? site.underlay4 : site.underlay6);

/** Puts the kernel's vxlan device into a host's bridge, with all `peers` as destinations of what is flooded. */
export function kernelVxlan(
  site: Host,
  peers: readonly Host[],
  options: {
    readonly family?: Family;
    readonly vni?: number;
    readonly bridge?: string;
    /** For example `noudpcsum`. */
    readonly extra?: string;
  } = {},
): void {
  const { family = 4, vni = VNI, bridge = 'br0', extra = '' } = options;
  const device = `vx${vni}`;
  site.ns.ip(
    `link add ${device} type vxlan id ${vni} dstport ${VXLAN_PORT} local ${underlayOf(site, family)} dev eth0 ${extra}`,
  );
  site.ns.sysctl({ [`net/ipv6/conf/${device}/disable_ipv6`]: 1 });
  site.ns.ip(`link set ${device} master ${bridge}`, `link set ${device} up`);
  for (const peer of peers) {
    if (peer.letter === site.letter) continue;
    const to = underlayOf(peer, family);
    site.ns.runSync('bridge', 'fdb', 'append', '00:00:00:00:00:00', 'dev', device, 'dst', to);
  }
}

/** A peers file of layer 2. `extra` by a host's letter, for example `{a: {mtu: 1400}}`. Returns its path. */
export function writeSwitchPeers(
  lab: Lab,
  sites: readonly Host[],
  options: {
    readonly family?: Family;
    readonly name?: string;
    readonly extra?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  } = {},
): string {
  const { family = 4, name = 'peers.json', extra = {} } = options;
  const path = join(lab.dir, name);
  const peers = sites.map((site) => ({ name: site.letter, address: underlayOf(site, family), ...extra[site.letter] }));
  writeFileSync(path, JSON.stringify({ peers }));
  return path;
}

export interface SwitchOptions {
  /** Path of the peers file; without it the daemons of a lab share an embedded registry. */
  readonly peers?: string | undefined;
  readonly family?: Family;
  /** null: the networks are in `args`' configuration file. */
  readonly vni?: number | null;
  /** null: in no bridge. */
  readonly bridge?: string | null;
  readonly args?: readonly string[];
  /** Check every address that goes into a system call; default true. */
  readonly checked?: boolean;
}

/** Starts weftd --mode l2 without waiting. */
export function spawnSwitch(site: Host, options: SwitchOptions): Weft {
  const { peers, family = 4, vni = VNI, bridge = 'br0', args = [], checked = true } = options;
  const { dir } = site.ns.lab;
  const all = [
    '--mode',
    'l2',
    '--iface',
    'eth0',
    '--public-ip',
    underlayOf(site, family),
    '--metrics-address',
    METRICS,
  ];
  if (vni !== null) all.push('--vni', String(vni));
  if (vni !== null && bridge !== null) all.push('--bridge', bridge);
  if (peers !== undefined) all.push('--registry', 'static', '--peers', peers);
  else {
    all.push('--registry', 'embedded', '--registry-path', join(dir, 'registry'));
    all.push('--state-dir', join(dir, `state-${site.letter}`));
  }
  const before = process.env.WEFT_CHECK_ADDRESSES;
  if (checked) process.env.WEFT_CHECK_ADDRESSES = '1'; // the daemon inherits this process's environment
  try {
    return Weft.spawnBare(site, [...all, ...args]);
  } finally {
    if (before === undefined) delete process.env.WEFT_CHECK_ADDRESSES;
    else process.env.WEFT_CHECK_ADDRESSES = before;
  }
}

/** Starts weftd --mode l2 and waits until it forwards. */
export async function startSwitch(site: Host, options: SwitchOptions): Promise<Weft> {
  const weft = spawnSwitch(site, options);
  await weft.ready();
  return weft;
}

/** What a bridge's own habits make of a healthy segment: it floods what it does not know yet back towards the TAP. */
export const HABITS = { 'outbound.same_port': true } as const;

// --- what a daemon says ---

export interface MacEntry {
  readonly vni: number;
  readonly mac: string;
  readonly peer: string | null;
  readonly origin: 'learned' | 'static';
  readonly ageSeconds: number | null;
}

export interface NeighbourEntry {
  readonly vni: number;
  readonly address: string;
  readonly mac: string;
  readonly router: boolean | null;
  readonly origin: 'learned' | 'static';
  readonly ageSeconds: number | null;
}

async function get(weft: Weft, path: string): Promise<string> {
  const [address, port] = METRICS.split(':');
  const script = `exec 3<>/dev/tcp/${address}/${port} && printf 'GET ${path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3`;
  const answer = (await weft.host.ns.run('timeout', ['5', 'bash', '-c', script])).stdout;
  return answer.slice(answer.indexOf('\r\n\r\n') + 4);
}

export const macsOf = async (weft: Weft): Promise<MacEntry[]> =>
  (JSON.parse(await get(weft, '/v1/macs')) as { macs: MacEntry[] }).macs;

export const neighboursOf = async (weft: Weft): Promise<NeighbourEntry[]> =>
  (JSON.parse(await get(weft, '/v1/neighbours')) as { neighbours: NeighbourEntry[] }).neighbours;

// --- frames ---

/** Sends frames as they are out of an interface; `times` over, `every` ms apart. */
export async function sendFrames(
  ns: Namespace,
  frames: readonly Uint8Array[],
  options: { readonly link?: string; readonly times?: number; readonly every?: number } = {},
): Promise<void> {
  const { link = 'eth0', times = 1, every = 0 } = options;
  const script = `
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
frames = [bytes.fromhex(a) for a in sys.argv[4:]]
for _ in range(int(sys.argv[2])):
    for frame in frames: s.send(frame)
    if float(sys.argv[3]): time.sleep(float(sys.argv[3]))`;
  const hex = frames.map((bytes) => Buffer.from(bytes).toString('hex'));
  const { code, stderr } = await ns.run(PYTHON, ['-c', script, link, String(times), String(every / 1000), ...hex]);
  if (code !== 0) throw new Error(`packet socket: ${stderr.trim().split('\n').at(-1)}`);
}

/** UDP payloads from an address, without a UDP checksum where `bare`. */
export async function sendDatagrams(
  ns: Namespace,
  to: string,
  payloads: readonly Uint8Array[],
  options: {
    readonly from?: string;
    readonly bare?: boolean;
    readonly tos?: number;
    readonly port?: number;
  } = {},
): Promise<void> {
  const { from = '', bare = false, tos = 0, port = VXLAN_PORT } = options;
  const script = `
import socket, sys
to, source = sys.argv[1:3]
port, bare, tos = map(int, sys.argv[3:])
v6 = ':' in to
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
if bare: s.setsockopt(*((17, 101) if v6 else (socket.SOL_SOCKET, 11)), 1) # UDP_NO_CHECK6_TX, SO_NO_CHECK
if tos: s.setsockopt(*((socket.IPPROTO_IPV6, 67) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)), tos)
if source: s.bind((source, 0))
for a in sys.stdin.read().split(): s.sendto(b'' if a == '-' else bytes.fromhex(a), (to, port))`;
  const args = [to, from, port, bare ? 1 : 0, tos].map(String);
  const child = ns.spawn(PYTHON, ['-c', script, ...args], { stdio: ['pipe', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  child.stdin?.end(payloads.map((bytes) => Buffer.from(bytes).toString('hex') || '-').join('\n'));
  const code = await new Promise((resolve) => child.once('close', resolve));
  if (code !== 0) throw new Error(`UDP: ${stderr.trim().split('\n').at(-1)}`);
}

/** The frames in an Ethernet pcap file (microseconds, this machine's byte order). */
export function framesIn(file: string): Uint8Array[] {
  const bytes = readFileSync(file);
  const frames: Uint8Array[] = [];
  for (let at = 24; at + 16 <= bytes.length; ) {
    const length = bytes.readUInt32LE(at + 8);
    frames.push(bytes.subarray(at + 16, at + 16 + length));
    at += 16 + length;
  }
  return frames;
}

export const mac = (text: string): Uint8Array => Uint8Array.from(text.split(':'), (part) => Number.parseInt(part, 16));

export const BROADCAST = 'ff:ff:ff:ff:ff:ff';

/** An interface's MAC address. */
export const macOf = (ns: Namespace, link: string): string =>
  ns.runSync('cat', `/sys/class/net/${link}/address`).trim();

export function frame(destination: string, source: string, type: number, payload: Uint8Array): Uint8Array {
  return Buffer.concat([mac(destination), mac(source), Uint8Array.of(type >> 8, type & 255), payload]);
}

// --- groups ---

/** Numbered datagrams (agent.ts) to a broadcast or multicast address. Arguments: address, port, how many, size. */
const PYTHON_GROUP = `
import socket, struct, sys, time
address, port, count, size = sys.argv[1], *map(int, sys.argv[2:])
v6 = ':' in address
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
to = (address, port, 0, socket.if_nametoindex('eth0')) if v6 else (address, port)
for n in range(count):
    s.sendto(struct.pack('>I', n) + bytes((i * 13 + (i >> 8) * 31 + n * 7) & 255 for i in range(4, size)), to)
    time.sleep(0.001)
`;

/** Sends `count` numbered datagrams to everybody: 10.7.0.255, or ff02::1. */
export async function sendToAll(from: Namespace, family: Family, count: number, size = 200): Promise<void> {
  const address = family === 4 ? '10.7.0.255' : 'ff02::1';
  const args = ['-c', PYTHON_GROUP, address, String(STREAM_PORT), String(count), String(size)];
  const { code, stderr } = await from.run(PYTHON, args);
  if (code !== 0) throw new Error(`to everybody: ${stderr.trim().split('\n').at(-1)}`);
}

/**
 * Each of `senders` sends to everybody, and every station of `stations` gets each datagram once: the sender, too, from its own
 * kernel, and nothing of its own back from the segment.
 */
export async function assertEverybodyOnce(
  t: Assertions,
  senders: readonly Station[],
  stations: readonly { readonly station: Station; readonly agent: Agent }[],
  what: string,
  count = 50,
): Promise<void> {
  for (const family of [4, 6] as const) {
    for (const sender of senders) {
      await Promise.all(stations.map(({ agent }) => agent.expect()));
      await sendToAll(sender.ns, family, count);
      await sleep(100);
      const got = await Promise.all(
        stations.map(async ({ station, agent }) => {
          const { received, wrong, duplicates, reordered } = await agent.countedUpTo(count);
          return { station: station.name, received, wrong, duplicates, reordered };
        }),
      );
      const expected = { received: count, wrong: 0, duplicates: 0, reordered: 0 };
      t.same(
        got,
        stations.map(({ station }) => ({ station: station.name, ...expected })),
        `${what}: everybody gets ${family === 4 ? 'a broadcast' : 'a multicast'} of ${sender.name} once`,
      );
    }
  }
}

// --- unicast ---

/** Forgets who has which address. */
export function forgetNeighbours(...stations: readonly Station[]): void {
  for (const { ns } of stations) ns.ip('neigh flush dev eth0');
}

/** True if one of up to `tries` pings, a second each, is answered; flags go to ping. */
export async function pings(from: Station, address: string, tries = 2, ...flags: string[]): Promise<boolean> {
  for (let i = 0; i < tries; i++) {
    if ((await from.ns.run('ping', ['-n', '-c', '1', '-W', '1', ...flags, address])).code === 0) return true;
  }
  return false;
}

/** ARP and ND in both directions, from nothing. */
export async function assertResolves(t: Assertions, a: Station, b: Station, what: string): Promise<void> {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ]) {
    forgetNeighbours(a, b);
    t.ok(await pings(from, to.address4), `${what}: ${from.name} asks for ${to.name} by ARP and pings it`);
    t.ok(await pings(from, to.address6), `${what}: ${from.name} asks for ${to.name} by ND and pings it`);
    const known = from.ns.runSync('ip', 'neigh', 'show', 'dev', 'eth0');
    t.match(known, `${to.address4} lladdr ${to.mac}`, `${what}: ${from.name} has the right MAC by ARP`);
    t.match(known, `${to.address6} lladdr ${to.mac}`, `${what}: ${from.name} has the right MAC by ND`);
  }
}

export async function assertTcp(
  t: Assertions,
  from: Agent,
  to: string,
  what: string,
  options: { readonly bytes: number; readonly flows?: number; readonly duplex?: boolean; readonly stallMs?: number },
): Promise<void> {
  const { flows, seconds } = await from.tcp(to, options);
  const bytes = flows.reduce((sum, flow) => sum + flow.bytes, 0);
  const wrong = flows.filter(({ sent, received, wrongAt }) => sent !== received || wrongAt >= 0);
  t.same(wrong, [], `${what}: the same bytes at both ends`);
  const rate = ((bytes * 8) / seconds / 1e9).toFixed(2);
  t.comment(`${what}: ${bytes / MiB} MiB in ${seconds.toFixed(1)} s, ${rate} Gbit/s`);
}

export async function assertUdp(
  t: Assertions,
  from: Agent,
  to: string,
  what: string,
  sizes: readonly number[],
): Promise<void> {
  const { echoed, again, lost, wrong } = await from.udp(to, sizes);
  const expected = { echoed: sizes.length, lost: [], wrong: [] };
  t.same({ echoed, lost, wrong }, expected, `${what}: every datagram came back as it was`);
  t.same(again, [], `${what}: none had to be sent again`);
}

/** Datagrams that leave a station many in one piece (UDP_SEGMENT), and arrive one by one. */
export async function assertSegments(
  t: Assertions,
  from: Station,
  to: Station,
  receiver: Agent,
  what: string,
  mtu = 1430,
): Promise<void> {
  const most = mtu - 48;
  for (const address of [to.address4, to.address6]) {
    for (const [size, each, last] of [
      [1200, 40, 1200],
      [most, Math.min(46, Math.floor(65_000 / most)), 700],
      [512, 64, 4],
      [100, 64, 99],
      [5, 30, 5],
    ]) {
      await receiver.expect();
      const sent = await sendSegments(from.ns, address, { size, each, calls: 20, last });
      const { received, wrong, duplicates, reordered, missing } = await receiver.countedUpTo(sent);
      const expected = { received: sent, wrong: 0, duplicates: 0, reordered: 0, missing: 0 };
      t.same(
        { received, wrong, duplicates, reordered, missing },
        expected,
        `${what}: ${each} datagrams of ${size} bytes a call to ${address}`,
      );
    }
  }
}
