/**
 * Hosts that are containers: `race --containers DIR`. In each container's network namespace runs an agent (agent.ts), whose
 * socket is in DIR: a.sock and b.sock of the nodes, client-a.sock and client-b.sock of the clients behind them. Their
 * addresses are those that a lab's hosts have. Agents and race run out of one image: programs have the same paths.
 *
 * Nothing here is ours: what a race changes (routes, the kernel's vxlan device) is put back when the lab closes. What a
 * killed race left is found by what it looks like, and removed first.
 */
import { join } from 'node:path';
import { PROTOCOL } from '../src/host/routes.js';
import { addressesOf, type Host, type Lab, type Namespace, NETWORK4, sleep } from './hosts.js';
import type { Subject, SubjectName } from './subjects.js';

/** Others need programs and files of their own in the nodes. */
export const CONTAINER_SUBJECTS: readonly SubjectName[] = ['direct', 'kernel-vxlan', 'weft-udp'];

const LETTERS = ['a', 'b'] as const;
const AGENTS_WITHIN_MS = 60_000;
/** Of one that takes the connection: its container may be paused. */
const ANSWER_WITHIN_MS = 5000;
const WEFT_WITHIN_MS = 30_000;
/** What kernelVxlan makes. */
const VXLAN_DEVICE = 'vxlan0';

type Say = (line: string) => void;

/** Waits for the four agents, and makes hosts of what they are in. Rejects with one line. */
export async function containerHosts(lab: Lab, folder: string, say: Say): Promise<Host[]> {
  const socketOf = (name: string): string => join(folder, `${name}.sock`);
  const remote = (name: string): Namespace => lab.remote(name, socketOf(name));
  const pairs = LETTERS.map((letter) => ({ letter, ns: remote(letter), client: remote(`client-${letter}`) }));
  await agentsAnswer(
    pairs.flatMap(({ ns, client }) => [ns, client]),
    socketOf,
    say,
  );
  const hosts = pairs.map(({ letter, ns, client }, i): Host => {
    const addresses = addressesOf(i + 1);
    return {
      letter,
      number: i + 1,
      ns,
      ...addresses,
      underlayInterface: interfaceWith(ns, addresses.underlay4),
      lanInterface: interfaceWith(ns, `10.5.${i + 1}.1`),
      client,
      clientInterface: interfaceWith(client, addresses.client4),
    };
  });
  const [a, b] = hosts;
  checkBackend(a, b);
  cleanUp(a, b, say);
  cleanUp(b, a, say);
  putBackLater(lab, a, b);
  putBackLater(lab, b, a);
  return hosts;
}

async function agentsAnswer(
  namespaces: readonly Namespace[],
  socketOf: (name: string) => string,
  say: Say,
): Promise<void> {
  const deadline = Date.now() + AGENTS_WITHIN_MS;
  let said = '';
  for (;;) {
    const tried = await Promise.all(
      namespaces.map(async (ns) => ({ ns, done: await ns.run('true', [], { timeout: ANSWER_WITHIN_MS }) })),
    );
    const silent = tried.filter(({ done }) => done.code !== 0);
    if (silent.length === 0) return;
    const names = silent.map(({ ns }) => socketOf(ns.name)).join(', ');
    if (Date.now() > deadline) {
      const why = silent[0].done.stderr.trim().split('\n')[0] || 'it takes the connection and does not answer';
      throw new Error(`no agent answers at ${names} after ${AGENTS_WITHIN_MS / 1000} s: ${why}`);
    }
    if (names !== said) say(`waiting up to ${AGENTS_WITHIN_MS / 1000} s for the agents at ${names}`);
    said = names;
    await sleep(500);
  }
}

/** Interfaces have other names where a container joined its networks in another order. */
function interfaceWith(ns: Namespace, address: string): string {
  const links = JSON.parse(ns.runSync('ip', '-j', 'addr', 'show')) as {
    readonly ifname: string;
    readonly addr_info: readonly { readonly local?: string }[];
  }[];
  const link = links.find(({ addr_info }) => addr_info.some(({ local }) => local === address));
  if (link) return link.ifname;
  const has = links.flatMap(({ addr_info }) => addr_info.map(({ local }) => local)).join(', ');
  throw new Error(`${ns.name} has no interface with ${address}, only ${has}: see docker-compose.yml for the addresses`);
}

// --- what is changed, and put back ---

const routesTo = (ns: Namespace, destination: string): string[] =>
  ns
    .runSync('ip', '-o', 'route', 'show', 'exact', destination)
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean);

const hasDevice = (ns: Namespace, device: string): boolean =>
  ns.runSync('ip', '-o', 'link', 'show').includes(` ${device}: `);

/**
 * With the backends vxlan and host-gw weftd has routes of its own to each far subnet, which are what a race changes; and it puts
 * them back within seconds, in the midst of another subject's figures.
 */
function checkBackend(host: Host, far: Host): void {
  const own = routesTo(host.ns, far.subnet4).find((route) => `${route} `.includes(` proto ${PROTOCOL} `));
  if (own === undefined) return;
  throw new Error(
    `${host.ns.name} has weftd's route "${own}": the race is for the backend udp: docker compose up -d without WEFT_BACKEND`,
  );
}

/** Removes what a race that was killed left on `host`: a vxlan device with its routes, a route of `direct` or to nowhere. */
function cleanUp(host: Host, far: Host, say: Say): void {
  if (hasDevice(host.ns, VXLAN_DEVICE)) {
    say(`${host.ns.name}: an earlier race left the device ${VXLAN_DEVICE}, which is removed`);
    host.ns.ip(`link del ${VXLAN_DEVICE}`);
  }
  for (const route of routesTo(host.ns, far.subnet4)) {
    if (!route.includes(` via ${far.underlay4} `) && !route.startsWith('blackhole ')) continue;
    say(`${host.ns.name}: an earlier race left a route, which is removed: ${route}`);
    host.ns.ip(`route del ${route}`);
  }
}

function putBackLater(lab: Lab, host: Host, far: Host): void {
  const keep = (ns: Namespace, destination: string): void => {
    const before = routesTo(ns, destination).map((route) => route.replace(/ congctl \S+/, ''));
    lab.whenClosing(() => {
      const now = routesTo(ns, destination);
      ns.ip(...now.map((route) => `route del ${route}`), ...before.map((route) => `route add ${route}`));
    });
  };
  keep(host.client, NETWORK4);
  keep(host.ns, far.subnet4);
  lab.whenClosing(() => {
    if (hasDevice(host.ns, VXLAN_DEVICE)) host.ns.ip(`link del ${VXLAN_DEVICE}`);
  });
}

// --- Weft ---

/** The daemons that run in the nodes already, found by their route to the whole overlay. */
export function runningWeft(hosts: readonly Host[]): Subject {
  const devices = new Map<Host, string>();
  const deviceOf = (host: Host): string | undefined => / dev (\S+)/.exec(routesTo(host.ns, NETWORK4)[0] ?? '')?.[1];
  return {
    name: 'weft-udp',
    async start() {
      const deadline = Date.now() + WEFT_WITHIN_MS;
      for (const host of hosts) {
        let device = deviceOf(host);
        for (; device === undefined; device = deviceOf(host)) {
          if (Date.now() > deadline)
            throw new Error(`${host.ns.name} has no route to ${NETWORK4}: is its weftd ready?`);
          await sleep(500);
        }
        devices.set(host, device);
      }
    },
    route: () => undefined,
    device: (from) => devices.get(from) ?? 'the device of its weftd',
  };
}
