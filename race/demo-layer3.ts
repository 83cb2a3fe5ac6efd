/** The demo of layer 3: each weftd takes a subnet by itself, and packets are routed between them. */
import { readFileSync, renameSync } from 'node:fs';
import {
  answersPing,
  type Host,
  ipv6Works,
  type Lab,
  moveHost,
  type Namespace,
  NETWORK4,
  NETWORK6,
  sleep,
  twoHosts,
} from './hosts.js';
import { readHttp, readMetrics, showCounters } from './scrape.js';
import { METRICS, pingAllTheTime, say, showPing, since, status, transfer } from './show.js';
import { EmbeddedWeftd, embeddedWeft, kernelVxlan, type Subject, use } from './subjects.js';

/** Starts the daemon, says what was said to it and what it took, and addresses its host and client out of that. */
async function showStart(weftd: EmbeddedWeftd, host: Host): Promise<Host> {
  const command = `  ${weftd.host.letter}# weftd ${weftd.args.join(' ')}`.padEnd(58);
  status(`${command} …`);
  const begun = performance.now();
  const subnets = await weftd.start();
  status('');
  say(`${command} ready after ${since(begun)}, took ${subnets.join(', ')}`);
  const [v4, v6] = subnets;
  return moveHost(host, v4, v6);
}

function showTopology(a: Host, b: Host): void {
  const cell = (text: string): string => ` ${text} `.padEnd(16);
  const client = (host: Host): string => host.client4.padEnd(10);
  say(`
    client-a               host a                                          host b               client-b
  ┌────────────┐      ┌────────────────┐                             ┌────────────────┐      ┌────────────┐
  │ ${client(a)} ├──────┤${cell('weftd')}│    underlay: a veth pair    │${cell('weftd')}├──────┤ ${client(b)} │
  └────────────┘      │${cell(a.underlay4)}╞═════════════════════════════╡${cell(b.underlay4)}│      └────────────┘
                      │${cell(a.subnet4)}│    IP in UDP, port 8285     │${cell(b.subnet4)}│
                      └───────┬────────┘                             └───────┬────────┘
                              └───── registry: a folder that both use ───────┘
`);
}

/** The lines of each daemon's subnet.env that say what is the host's own. */
function showSubnetFiles(weftds: readonly EmbeddedWeftd[]): void {
  say('What each wrote into its file subnet.env, for other programs to read (among other lines):');
  for (const { host, subnetFile } of weftds) {
    const lines = readFileSync(subnetFile, 'utf8').split('\n');
    say(`  host ${host.letter}  ${lines.filter((line) => /_(SUBNET|MTU)=/.test(line)).join('  ')}`);
  }
  say();
}

/** The daemon of `host` crashes and starts again while the registry is away; then the registry comes back. */
async function showCrash(from: Host, host: Host, weftd: EmbeddedWeftd): Promise<void> {
  const { registry } = weftd;
  const step = (text: string, came: string): boolean => say(`  ${text.padEnd(27)} ${came}`);
  say(`weftd on host ${host.letter} crashes, and starts again while the registry is away:`);
  const answers = pingAllTheTime(from.client, host.client4, 0.05);
  await sleep(500);
  await weftd.kill();
  step('kill -9', 'its subnet stays its own for up to 60 s');
  renameSync(registry, `${registry}.away`);
  step('mv registry registry.away', 'nobody can ask it');
  const begun = performance.now();
  const [subnet] = await weftd.start();
  if (subnet !== host.subnet4) throw new Error(`weftd came back on host ${host.letter} with ${subnet}`);
  step(`weftd ${weftd.args.join(' ')}`, `ready after ${since(begun)} on its own ${subnet}, from what it remembers`);
  if (!(await answersPing(from.client, host.client4))) throw new Error(`${host.client4} answers no more`);
  const times = await answers();
  const silence = Math.max(...times.slice(1).map((time, i) => time - times[i]));
  step('ping client-a to client-b', `answered again; no answer for ${silence.toFixed(1)} s in all`);
  const indent = ''.padEnd(30);
  step('its /readyz says', (await readHttp(host.ns, METRICS, '/readyz')).replace(': registry', `:\n${indent}registry`));
  renameSync(`${registry}.away`, registry);
  const back = performance.now();
  step('mv registry.away registry', 'it is back');
  let said = await readHttp(host.ns, METRICS, '/readyz');
  while (said !== 'flanneld is ready') {
    if (performance.now() > back + 10_000) throw new Error(`weftd did not find the registry again: ${said}`);
    said = await readHttp(host.ns, METRICS, '/readyz');
  }
  step('its /readyz says', said);
}

/** Shows it; returns how to look around afterwards, as lines. `seconds`: length of each transfer. */
export async function showLayer3(lab: Lab, seconds: number): Promise<string> {
  const inside = ipv6Works() ? [NETWORK4, NETWORK6] : [NETWORK4];
  const pair = twoHosts(lab);
  for (const { client } of pair) client.sysctl({ 'net/ipv4/tcp_no_metrics_save': 1 });
  const weftds = pair.map((host, i) => {
    const args = [...(i === 0 ? ['--network', inside.join(',')] : []), '--iface', 'eth0'];
    return new EmbeddedWeftd(host, args, ['--metrics-address', METRICS]);
  });
  say('Two hosts on this machine, as network namespaces. The first names the network, and each takes a subnet of it:');
  const hosts: Host[] = [];
  for (const weftd of weftds) hosts.push(await showStart(weftd, pair[hosts.length]));
  say('  (and --registry-path and --state-dir in a folder of the demo: else they would be below /var/lib/weft)');
  const [a, b] = hosts;
  showTopology(a, b);
  showSubnetFiles(weftds);

  const through = async (subject: Subject): Promise<void> => use(subject, hosts);
  await through(embeddedWeft);
  say('Through Weft, from client-a to client-b:');
  await showPing(a.client, b.client4);
  if (inside.length > 1) await showPing(a.client, b.client6);
  say();
  say('One TCP flow from client-a to client-b:');
  const ours = await transfer('Weft', a.client, b.client, b.client4, seconds);
  const vxlan = kernelVxlan(hosts);
  await vxlan.start();
  await through(vxlan);
  const kernels = await transfer('kernel VXLAN', a.client, b.client, b.client4, seconds);
  await through(embeddedWeft);
  for (const host of hosts) host.ns.ip('link del vxlan0');
  say(`  Weft carries ${(ours / kernels).toFixed(2)} × what the kernel's VXLAN does on the same veth.`);
  say();
  say('What the two daemons counted (without what is zero on both):');
  say(showCounters(['host a', 'host b'], await Promise.all(hosts.map((host) => readMetrics(host.ns, METRICS)))));
  say();
  await showCrash(a, b, weftds[1]);
  return lookAround(weftds, a, b);
}

function lookAround([first, second]: readonly EmbeddedWeftd[], a: Host, b: Host): string {
  const inside = (ns: Namespace, command: string): string => `  sudo ip netns exec ${ns.name} ${command}`;
  return `${inside(a.client, `ping ${b.client4}`)}
${inside(b.client, 'iperf3 -s -1 &')}
${inside(a.client, `iperf3 -c ${b.client4}`)}
${inside(a.ns, 'ip route')}
${inside(a.ns, `curl -s http://${METRICS}/metrics`)}
${inside(b.ns, `curl -s http://${METRICS}/readyz`)}
  sudo cat ${second.subnetFile}
  sudo tail -f ${first.logFile}
To take the registry away, and see that packets still flow and what /readyz says (then move it back):
  sudo mv ${first.registry} ${first.registry}.away`;
}
