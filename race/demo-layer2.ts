/**
 * The demo of layer 2: one Ethernet segment over two hosts. On each, a Linux bridge joins two clients and the TAP of a weftd.
 *
 * Clients are called by their host at first: a1 and a2, b1 and b2. The hosts have no address in the segment: they switch.
 */
import { type Host, ipv6Works, type Lab, type Namespace, sleep } from './hosts.js';
import { readHttp, readMetrics, showCounters } from './scrape.js';
import { aligned, METRICS, pingAllTheTime, say, showPing, since, status, transfer } from './show.js';
import { EmbeddedWeftd } from './subjects.js';

const VNI = 42;
const BRIDGE = 'br0';
/** Of the clients' links: what the underlay's 1,500 bytes leave in VXLAN over IPv4. */
const MTU = 1450;

type SwitchHost = Pick<Host, 'ns' | 'letter' | 'underlay4'>;

interface Client {
  readonly name: string;
  readonly ns: Namespace;
  readonly mac: string;
  readonly address4: string;
  readonly address6: string;
}

// --- the stage ---

function makeHosts(lab: Lab): [SwitchHost, SwitchHost] {
  const make = (letter: string, number: number): SwitchHost => {
    const ns = lab.namespace(letter);
    if (ipv6Works()) ns.sysctl({ 'net/ipv6/conf/all/disable_ipv6': 1, 'net/ipv6/conf/default/disable_ipv6': 1 });
    ns.ip(`link add ${BRIDGE} type bridge`, `link set ${BRIDGE} up`);
    return { ns, letter, underlay4: `192.168.77.${number}` };
  };
  const hosts: [SwitchHost, SwitchHost] = [make('a', 1), make('b', 2)];
  lab.veth(hosts[0].ns, 'eth0', hosts[1].ns, 'eth0');
  for (const { ns, underlay4 } of hosts) ns.ip(`addr add ${underlay4}/24 dev eth0`);
  return hosts;
}

function makeClient(lab: Lab, name: string, number: number): Client {
  const ns = lab.namespace(name);
  // It announces itself to its neighbours whenever it says its MAC, as hosts do that were moved.
  ns.sysctl({ 'net/ipv4/conf/default/arp_notify': 1, 'net/ipv4/tcp_no_metrics_save': 1 });
  if (ipv6Works()) ns.sysctl({ 'net/ipv6/conf/default/ndisc_notify': 1 });
  return { name, ns, mac: `02:00:00:00:00:${number}`, address4: `10.7.0.${number}`, address6: `fd07::${number}` };
}

const portOf = (client: Client): string => `to-${client.name}`;

/** Joins a client to the bridge of a host, and waits until its port forwards. */
async function plug(client: Client, host: SwitchHost): Promise<void> {
  const port = portOf(client);
  client.ns.ip(
    `link add eth0 address ${client.mac} mtu ${MTU} type veth peer name ${port} mtu ${MTU} netns ${host.ns.name}`,
    `addr add ${client.address4}/24 dev eth0`,
    ...(ipv6Works() ? [`addr add ${client.address6}/64 dev eth0 nodad`] : []),
    'link set eth0 up',
  );
  host.ns.ip(`link set ${port} master ${BRIDGE}`, `link set ${port} up`);
  const FORWARDING = '3'; // BR_STATE_FORWARDING, linux/if_bridge.h
  for (let tries = 0; host.ns.runSync('cat', `/sys/class/net/${port}/brport/state`).trim() !== FORWARDING; tries++) {
    if (tries === 200) throw new Error(`the bridge of host ${host.letter} does not forward for ${client.name}`);
    await sleep(10);
  }
}

const unplug = (client: Client): void => client.ns.ip('link del eth0');

function showTopology([a, b]: readonly SwitchHost[], [a1, a2, b1, b2]: readonly Client[]): void {
  const c = (client: Client): string => `${client.name} ${client.address4}`;
  say(`
                          host a                                          host b
  ┌──────────────┐      ┌────────────────┐                             ┌────────────────┐      ┌──────────────┐
  │ ${c(a1)} ├───┬──┤ ${BRIDGE} ── weft${VNI}  │    underlay: a veth pair    │ weft${VNI} ── ${BRIDGE}  ├──┬───┤ ${c(b1)} │
  └──────────────┘   │  │ ${a.underlay4}   ╞═════════════════════════════╡ ${b.underlay4}   │  │   └──────────────┘
  ┌──────────────┐   │  │ weftd          │  Ethernet in VXLAN, VNI ${VNI}  │ weftd          │  │   ┌──────────────┐
  │ ${c(a2)} ├───┘  └────────────────┘                             └────────────────┘  └───┤ ${c(b2)} │
  └──────────────┘                                                                             └──────────────┘
`);
}

async function showStart(weftd: EmbeddedWeftd): Promise<void> {
  const command = `  ${weftd.host.letter}# weftd ${weftd.args.join(' ')}`.padEnd(58);
  status(`${command} …`);
  const begun = performance.now();
  await weftd.start();
  status('');
  say(`${command} ready after ${since(begun)}`);
}

// --- the tables ---

interface Entry {
  readonly mac: string;
  /** Of a MAC: the peer that it is behind, null here. */
  readonly peer?: string | null;
  /** Of a neighbour. */
  readonly address?: string;
  readonly router?: boolean | null;
  readonly origin: 'learned' | 'static';
  readonly ageSeconds: number | null;
}

async function read(host: SwitchHost, what: 'macs' | 'neighbours'): Promise<Entry[]> {
  const text = await readHttp(host.ns, METRICS, `/v1/${what}`);
  return (JSON.parse(text || '{}') as Partial<Record<typeof what, Entry[]>>)[what] ?? [];
}

const age = ({ ageSeconds }: Entry): string => (ageSeconds === null ? '-' : `${ageSeconds.toFixed(1)} s`);

/** Whether it calls itself a router, which ARP does not tell. */
const router = ({ address, router }: Entry): string => {
  if (!address?.includes(':')) return '-';
  return router === null ? '?' : router ? 'yes' : 'no';
};

/** What each host knows, side by side: one line a key that is known to any, `columns` of text for each host. */
async function showTables(
  hosts: readonly SwitchHost[],
  what: 'macs' | 'neighbours',
  heading: readonly string[],
  keys: readonly (readonly string[])[],
  find: (entry: Entry, key: readonly string[]) => boolean,
  columns: (entry: Entry) => readonly string[],
): Promise<void> {
  const known = await Promise.all(hosts.map((host) => read(host, what)));
  const keyColumns = keys[0].length;
  const perHost = (heading.length - keyColumns) / hosts.length;
  const someone = keys.filter((key) => known.flat().some((entry) => find(entry, key)));
  const rows = someone.map((key) => [
    ...key,
    ...known.flatMap((entries) => {
      const entry = entries.find((one) => find(one, key));
      return entry ? columns(entry) : Array.from({ length: perHost }, (_, i) => (i === 0 ? 'not known' : ''));
    }),
  ]);
  const ages = hosts.map((_, i) => keyColumns + (i + 1) * perHost - 1);
  say(aligned([heading, ...rows], ages));
}

const showMacs = (hosts: readonly SwitchHost[], clients: readonly Client[]): Promise<void> =>
  showTables(
    hosts,
    'macs',
    ['MAC', 'client', ...hosts.flatMap(({ letter }) => [`host ${letter}: it is`, 'origin', 'age'])],
    clients.map(({ mac, name }) => [mac, name]),
    (entry, [mac]) => entry.mac === mac,
    (entry) => [entry.peer ? `at ${entry.peer}` : 'here', entry.origin, age(entry)],
  );

const showNeighbours = (hosts: readonly SwitchHost[], clients: readonly Client[]): Promise<void> =>
  showTables(
    hosts,
    'neighbours',
    ['address', 'MAC', ...hosts.flatMap(({ letter }) => [`host ${letter}: origin`, 'router', 'age'])],
    [
      ...clients.map((client) => [client.address4, client.mac]),
      ...clients.map((client) => [client.address6, client.mac]),
    ],
    (entry, [address, mac]) => entry.address === address && entry.mac === mac,
    (entry) => [entry.origin, router(entry), age(entry)],
  );

// --- the show ---

/** ARP and ND requests that a host's daemon answered by itself. */
async function answered(host: SwitchHost): Promise<number> {
  const samples = await readMetrics(host.ns, METRICS);
  const mine = samples.find(({ labels }) => labels.direction === 'outbound' && labels.stage === 'answered');
  return mine?.value ?? 0;
}

/** `asker` has never talked to `owner`, but another client of its host has. */
async function showProxy(host: SwitchHost, asker: Client, owner: Client): Promise<void> {
  say(
    `${asker.name} asks who has ${owner.address4}, for the first time. Host ${host.letter} has learned it, and answers by itself:`,
  );
  const before = await answered(host);
  await asker.ns.run('ping', ['-n', '-c', '1', '-W', '2', owner.address4]);
  const after = await answered(host);
  const taught = asker.ns.runSync('ip', 'neigh', 'show', owner.address4).trim() || 'nothing';
  say(`  requests answered on host ${host.letter}    ${before} → ${after}`);
  say(`  ${`${asker.name}# ip neigh`.padEnd(30)} ${taught}`);
}

/** A client moves to another host and says so, while `watcher`, which stays, pings it. */
async function showMove(client: Client, from: SwitchHost, to: SwitchHost, watcher: Client): Promise<void> {
  const step = (text: string, came: string): boolean => say(`  ${text.padEnd(42)} ${came}`);
  say(
    `${client.name} moves from host ${from.letter} to host ${to.letter}, with its addresses, while ${watcher.name} pings it 50 times a second:`,
  );
  const answers = pingAllTheTime(watcher.ns, client.address4, 0.02);
  await sleep(500);
  unplug(client);
  const unplugged = Date.now();
  step(`out of the bridge of host ${from.letter}`, 'silence');
  await plug(client, to);
  const plugged = Date.now();
  step(`into the bridge of host ${to.letter}`, `${plugged - unplugged} ms later`);
  client.ns.ip(`link set eth0 address ${client.mac}`); // what the kernel announces
  await sleep(1500);
  const times = await answers();
  const first = times.find((time) => time * 1000 > plugged);
  if (first === undefined) throw new Error(`${client.name} is not reached from ${watcher.name} after its move`);
  step(
    'it announces itself (gratuitous ARP)',
    `reached again ${Math.max(1, Math.round(first * 1000 - plugged))} ms after that`,
  );
}

/** Shows it; returns how to look around afterwards, as lines. `seconds`: length of the transfer. */
export async function showLayer2(lab: Lab, seconds: number): Promise<string> {
  const hosts = makeHosts(lab);
  const [a, b] = hosts;
  const clients = [
    makeClient(lab, 'a1', 11),
    makeClient(lab, 'a2', 12),
    makeClient(lab, 'b1', 21),
    makeClient(lab, 'b2', 22),
  ];
  const [a1, a2, b1, b2] = clients;
  for (const client of clients) await plug(client, client.name.startsWith('a') ? a : b);
  const args = ['--mode', 'l2', '--vni', `${VNI}`, '--bridge', BRIDGE, '--iface', 'eth0'];
  const weftds = hosts.map((host) => new EmbeddedWeftd(host, args, ['--metrics-address', METRICS]));
  say('Two hosts on this machine, as network namespaces, each with a bridge and two clients. One segment joins them:');
  for (const weftd of weftds) await showStart(weftd);
  say('  (and --registry-path and --state-dir in a folder of the demo: else they would be below /var/lib/weft)');
  showTopology(hosts, clients);

  say('Pings across; each host learns who is where:');
  const across = async (from: Client, to: Client): Promise<void> =>
    showPing(from.ns, to.address4, `${from.name} → ${to.name}`);
  await across(a1, b1);
  await across(a1, b2);
  await across(b1, a2);
  if (ipv6Works()) await showPing(a1.ns, b1.address6, 'a1 → b1, IPv6');
  say();

  await showProxy(a, a2, b2);
  say();
  say('What each host knows of MACs:');
  await showMacs(hosts, clients);
  say('and of neighbours, by which it answers ARP and ND (without link-local ones):');
  await showNeighbours(hosts, clients);
  say();

  await showMove(a2, a, b, a1);
  await showMacs(hosts, [a2]);
  say();

  say('One TCP flow from a1 to b1:');
  await transfer('Weft', a1.ns, b1.ns, b1.address4, seconds);
  say();
  say('What the two daemons counted (without what is zero on both):');
  say(showCounters(['host a', 'host b'], await Promise.all(hosts.map((host) => readMetrics(host.ns, METRICS)))));

  const inside = (ns: Namespace, command: string): string => `  sudo ip netns exec ${ns.name} ${command}`;
  return `${inside(a1.ns, `ping ${b1.address4}`)}
${inside(b1.ns, 'iperf3 -s -1 &')}
${inside(a1.ns, `iperf3 -c ${b1.address4}`)}
${inside(a.ns, `bridge fdb show br ${BRIDGE}`)}
${inside(a.ns, `curl -s http://${METRICS}/v1/macs`)}
${inside(b.ns, `curl -s http://${METRICS}/v1/neighbours`)}
  sudo tail -f ${weftds[0].logFile}`;
}
