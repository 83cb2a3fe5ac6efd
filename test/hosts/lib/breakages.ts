/**
 * How a running pair is broken, by the names of the causes in docs/operations.md: each does to it what its name says, and gives back
 * what puts it right again.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Host, type Lab, sleep, twoHosts } from '../../../race/hosts.js';
import { BrokenPair, type Mend } from './broken-pair.js';
import { makeSites, startSwitch, VNI, writeSwitchPeers } from './l2.js';
import { Weft, writePeers } from './weft.js';

export type Breakage = (pair: BrokenPair) => Mend | Promise<Mend>;

/** Several at once; mended in the other order. */
const all =
  (...breakages: readonly Breakage[]): Breakage =>
  async (pair) => {
    const mends: Mend[] = [];
    for (const breakage of breakages) mends.unshift(await breakage(pair));
    return async () => {
      for (const mend of mends) await mend();
    };
  };

/** A rule for as long as it takes: `-A INPUT …` comes and `-D INPUT …` takes it away. */
const rule =
  (place: string, words: string): Breakage =>
  (pair) =>
    pair.by(place, `iptables -w ${words}`, `iptables -w ${words.replace('-I ', '-D ')}`);

const command =
  (place: string, there: string, back = 'true'): Breakage =>
  (pair) =>
    pair.by(place, there, back);

/** What the kernel has learned of paths. */
const forgotten = (place: string): Breakage => command(place, 'ip route flush cache');

const goesOn =
  (place: string, what: string): Breakage =>
  (pair) =>
    pair.keepDoing(place, what);

// --- layer 3 ---

const TCP = 'timeout 1 bash -c "echo >/dev/tcp/10.5.2.2/9000"';

/** Every host has a peers file of its own, so that one of them can be out of date. */
const peersOf = (host: Host): string => `peers-${host.letter}.json`;

/** Another peers file for a host, in which `change` has changed its records. */
const peersFile =
  (letter: 'a' | 'b', change: (records: Record<string, unknown>[]) => void): Breakage =>
  async (pair) => {
    const { a, b } = pair.ends;
    const host = pair.ends[letter];
    const write = async (changed: boolean): Promise<void> => {
      const before = await pair.applied(letter);
      const path = writePeers(pair.lab, [a, b], { name: 'peers-next.json' });
      const file = JSON.parse(readFileSync(path, 'utf8')) as { peers: Record<string, unknown>[] };
      if (changed) change(file.peers);
      writeFileSync(join(pair.lab.dir, peersOf(host)), JSON.stringify(file));
      while ((await pair.applied(letter)) === before) await sleep(50);
    };
    await write(true);
    return () => write(false);
  };

/** A process that gets the processor only now and then. */
const stutter =
  (letter: 'a' | 'b'): Breakage =>
  async (pair) => {
    let ended = false;
    const { pid } = pair.wefts[letter].daemon.child;
    if (pid === undefined) throw new Error('weftd has no pid');
    const stuttering = (async () => {
      while (!ended) {
        process.kill(pid, 'SIGSTOP');
        await sleep(1300);
        process.kill(pid, 'SIGCONT');
        await sleep(300);
      }
    })();
    return async () => {
      ended = true;
      await stuttering;
    };
  };

/** By the names that docs/operations.md has in bold. */
export const ROUTED: Readonly<Record<string, Breakage>> = {
  'weftd does not run on b': (pair) => pair.stop('b'),
  'The underlay of a is down': command('a', 'ip link set eth0 down', 'ip link set eth0 up'),
  'b is down, or its cable is out': command('b', 'ip link set eth0 down', 'ip link set eth0 up'),
  'UDP port 8285 is blocked on the way': rule('b', '-I INPUT -p udp --dport 8285 -j DROP'),
  "a's own firewall refuses what weftd sends": rule('a', '-I OUTPUT -p udp --dport 8285 -j DROP'),
  'b has another address than a thinks': all(
    peersFile('a', (records) => {
      records[1].address = '192.168.77.9';
    }),
    goesOn('client-b', 'ping -c 1 -W 1 10.5.1.2'),
  ),
  'No peer has the address': peersFile('a', (records) => {
    records[1].subnets = ['10.5.3.0/24'];
  }),
  'Another route of the host goes first': command(
    'a',
    'ip route add 10.5.2.0/24 via 192.168.77.99',
    'ip route del 10.5.2.0/24 via 192.168.77.99',
  ),
  'The route into the device is gone': command(
    'a',
    'ip route del 10.5.0.0/16 dev flannel0',
    'ip route add 10.5.0.0/16 dev flannel0',
  ),
  "b's device is down": (pair) => {
    pair.on('b', 'ip link set flannel0 down'); // and with that its route and its IPv6 addresses are gone
    return async () => (await pair.stop('b'))();
  },
  'b does not forward': command('b', 'sysctl -q net.ipv4.ip_forward=0', 'sysctl -q net.ipv4.ip_forward=1'),
  "b's firewall drops what is forwarded": rule('b', '-I FORWARD -i flannel0 -j DROP'),
  "b believes that client-a's packets come from elsewhere": all(
    command('b', 'ip route add 10.5.1.0/24 via 192.168.77.1', 'ip route del 10.5.1.0/24 via 192.168.77.1'),
    command('b', 'sysctl -q net.ipv4.conf.flannel0.rp_filter=1', 'sysctl -q net.ipv4.conf.flannel0.rp_filter=0'),
  ),
  'client-b has no way back': command('client-b', 'ip route del default', 'ip route add default via 10.5.2.1'),

  'The underlay carries less than it says': all(
    // So that datagrams are single ones on the way already.
    command('a', 'ethtool -K eth0 tx-udp-segmentation off', 'ethtool -K eth0 tx-udp-segmentation on'),
    rule('b', '-t raw -I PREROUTING -i eth0 -m length --length 1401:65535 -j DROP'),
    forgotten('client-a'),
  ),
  'The address is there twice': command('a', 'ip addr add 10.5.2.2/32 dev lan0', 'ip addr del 10.5.2.2/32 dev lan0'),
  'A firewall drops the ICMP errors': all(
    rule('client-a', '-I INPUT -p icmp --icmp-type fragmentation-needed -j DROP'),
    forgotten('client-a'),
  ),
  'A network card gets checksums wrong': all(
    command(
      'client-a',
      'nft add table ip nic; nft add chain ip nic out "{ type filter hook output priority 300; }"; nft add rule ip nic out tcp checksum set 0x1234',
      'nft delete table ip nic',
    ),
    goesOn('client-a', TCP),
  ),
  'A firewall lets ICMP pass, and not TCP': all(rule('b', '-I FORWARD -p tcp -j DROP'), goesOn('client-a', TCP)),

  'weftd was told to do without offloads': (pair) => pair.restart('a', '--offload', 'none'),
  'Somebody switched an offload off at the device': command(
    'a',
    'ethtool -K flannel0 tso off',
    'ethtool -K flannel0 tso on',
  ),
  'The underlay loses packets': rule(
    'b',
    '-I INPUT -p udp --dport 8285 -m statistic --mode random --probability 0.1 -j DROP',
  ),
  'The path to b has become narrower': all(
    async (pair) => () => pair.restart('a').then(() => {}), // what it has learned it keeps for half a minute
    command('a', 'ip route add 192.168.77.2 dev eth0 mtu lock 1400', 'ip route del 192.168.77.2 dev eth0'),
    goesOn('client-a', 'ping -c 1 -W 1 -s 1440 10.5.2.2'),
  ),

  "b's datagrams come from another address": all(
    // Without the kernel's NAT, which remembers connections from before.
    command(
      'b',
      `nft add table ip nat2; nft add chain ip nat2 out "{ type filter hook output priority 300; }"; nft add rule ip nat2 out udp dport 8285 ip saddr set 192.168.77.22`,
      'nft delete table ip nat2',
    ),
    goesOn('client-b', 'ping -c 1 -W 1 10.5.1.2'),
  ),
  'Packets for nobody': goesOn('client-a', 'ping -c 1 -W 1 10.5.99.1'),
  'Two hosts send a packet to and fro': all(
    peersFile('a', (records) => {
      records[1].subnets = ['10.5.2.0/24', '10.5.9.0/24'];
    }),
    peersFile('b', (records) => {
      records[0].subnets = ['10.5.1.0/24', '10.5.9.0/24'];
    }),
    goesOn('client-a', 'ping -c 1 -W 1 10.5.9.1'),
  ),
  'More comes than weftd takes': all(stutter('b'), (pair) => pair.flood()),
};

/** Two hosts that route, with a client behind each. */
export async function routedPair(lab: Lab): Promise<BrokenPair> {
  const [a, b] = twoHosts(lab);
  for (const host of [a, b]) writePeers(lab, [a, b], { name: peersOf(host) });
  const places = { a: a.ns, b: b.ns, 'client-a': a.client, 'client-b': b.client };
  const ends = { a, b, places, from: a.client, to: b.client, address: b.client4, unasked: '' };
  return BrokenPair.start(ends, (host, args) => Weft.start(host, { peers: join(lab.dir, peersOf(host)), args }));
}

// --- layer 2 ---

const STATION_MTU = 1450;
const stationMtu = (mtu: number): string => `ip link set eth0 mtu ${mtu}`;

/** By the names that docs/operations.md has in bold. */
export const SWITCHED: Readonly<Record<string, Breakage>> = {
  'The TAP is not in the bridge': command('b', 'ip link set weft42 nomaster', 'ip link set weft42 master br0'),
  'The two have different VNIs': (pair) => pair.restart('b', '--vni', '43'),
  'UDP port 4789 is blocked on the way': rule('b', '-I INPUT -p udp --dport 4789 -j DROP'),
  'Frames are larger than the TAP, and a firewall drops the ICMP errors': all(
    rule('a1', '-I INPUT -p icmp --icmp-type fragmentation-needed -j DROP'),
    forgotten('a1'),
    command('a1', stationMtu(1500), stationMtu(STATION_MTU)),
    command('b1', stationMtu(1500), stationMtu(STATION_MTU)),
    command('a', 'ip link set p-a1 mtu 1500', `ip link set p-a1 mtu ${STATION_MTU}`),
    command('b', 'ip link set p-b1 mtu 1500', `ip link set p-b1 mtu ${STATION_MTU}`),
  ),
  'Two stations have one address': all(
    // In the end the right one asks for somebody, and with that says again whose the address is.
    command('b1', 'true', 'ip neigh flush dev eth0; ping -c 1 -W 2 10.7.0.22'),
    command('a1', 'true', 'ip neigh flush dev eth0'),
    command('a2', 'ip addr add 10.7.0.21/24 dev eth0', 'ip addr del 10.7.0.21/24 dev eth0'),
    goesOn('a2', 'ip neigh flush dev eth0; ping -c 1 -W 1 -I 10.7.0.21 10.7.0.22'),
  ),
  'Two stations have one MAC': all(
    command('b2', 'ip link set eth0 address 02:07:00:00:01:02', 'ip link set eth0 address 02:07:00:00:02:02'),
    goesOn('a2', 'ping -c 1 -W 1 10.7.0.21'),
    goesOn('b2', 'ping -c 1 -W 1 10.7.0.11'),
  ),
};

/** Two bridges, with two stations behind each. */
export async function switchedPair(lab: Lab): Promise<BrokenPair> {
  const [a, b] = makeSites(lab, { count: 2, stations: 2, stationMtu: STATION_MTU });
  const peers = writeSwitchPeers(lab, [a, b]);
  const stations = [...a.stations, ...b.stations].map(({ name, ns }) => [name, ns] as const);
  const places = { a: a.ns, b: b.ns, ...Object.fromEntries(stations) };
  const [from, to, other] = [a.stations[0], ...b.stations];
  const ends = { a, b, places, from: from.ns, to: to.ns, address: to.address4, unasked: other.address4 };
  return BrokenPair.start(ends, (host, args) => {
    const vni = args.includes('--vni') ? null : VNI;
    return startSwitch(host, { peers, vni, args: vni === null ? [...args, '--bridge', 'br0'] : args, checked: false });
  });
}
