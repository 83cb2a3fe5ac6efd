/**
 * What this host's kernel does with a packet before it comes to our device, and after: `weft explain` asks it with `ip route get`, in
 * the daemon's network namespace. All of it is read; nothing is changed.
 */
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import * as v from 'valibot';
import { runCommand } from '../host/command.js';

/** Milliseconds. */
const TIMEOUT = 5000;

const routeSchema = v.array(
  v.object({
    type: v.optional(v.string()),
    dev: v.optional(v.string()),
    gateway: v.optional(v.string()),
    prefsrc: v.optional(v.string()),
    metrics: v.optional(v.array(v.object({ mtu: v.optional(v.number()) }))),
  }),
);
const linkSchema = v.array(
  v.object({
    ifname: v.string(),
    flags: v.array(v.string()),
    mtu: v.number(),
    address: v.optional(v.string()),
    master: v.optional(v.string()),
  }),
);
const neighbourSchema = v.array(v.object({ lladdr: v.optional(v.string()), state: v.optional(v.array(v.string())) }));

/** How the kernel sends to an address. */
export interface HostRoute {
  /** `device`: over one; `local`: it is the host's own; `refused`: it sends nothing there, `reason` says why. */
  readonly kind: 'device' | 'local' | 'refused';
  readonly device: string | null;
  readonly via: string | null;
  readonly source: string | null;
  /** Of the route or of the link, in bytes. */
  readonly mtu: number | null;
  readonly reason: string | null;
}

/** An interface, as netlink has it: /sys may be another namespace's (`nsenter --net`). */
export interface Link {
  readonly up: boolean;
  readonly mtu: number;
  readonly mac: string | undefined;
  /** The bridge that it is a port of. */
  readonly master: string | undefined;
}

/** By name. Rejects with a SetupError: `ip` cannot be run. */
export async function readLinks(): Promise<ReadonlyMap<string, Link>> {
  const { stdout } = await ip(['link', 'show']);
  return new Map(
    parsed(linkSchema, stdout).map(({ ifname, flags, mtu, address: mac, master }) => {
      return [ifname, { up: flags.includes('UP'), mtu, mac, master }];
    }),
  );
}

/** Whether a frame for this MAC that comes to a bridge is the host's own, or everybody's. */
export function isForHost(mac: string | null, bridge: Link | undefined): boolean {
  if (mac === null) return true;
  const group = (Number.parseInt(mac.slice(0, 2), 16) & 1) === 1;
  return group || bridge?.mac === mac;
}

/** Which interface has an address of this host. */
export function interfaceOf(address: string): string | undefined {
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    if (addresses?.some((one) => one.address === address)) return name;
  }
  return undefined;
}

/** How the host sends to an address. Rejects with a SetupError: `ip` cannot be run. */
export const routeTo = async (to: string, links: ReadonlyMap<string, Link>): Promise<HostRoute> =>
  routeOf(await ip(['route', 'get', to]), links);

/** The same for a packet from another host that a device has just handed over. */
export async function routeFrom(
  to: string,
  from: string,
  device: string,
  links: ReadonlyMap<string, Link>,
): Promise<HostRoute> {
  const route = routeOf(await ip(['route', 'get', to, 'from', from, 'iif', device]), links);
  if (route.kind === 'local') return route;
  const family = to.includes(':') ? 'ipv6' : 'ipv4';
  const forwards = setting(`${family}/conf/${device}/forwarding`);
  if (forwards === '0') {
    const name = family === 'ipv4' ? 'net.ipv4.ip_forward' : 'net.ipv6.conf.all.forwarding';
    return { ...route, kind: 'refused', reason: `this host does not forward: ${name} is 0` };
  }
  if (route.reason !== 'Invalid argument') return route;
  const filtered = [setting(`ipv4/conf/all/rp_filter`), setting(`ipv4/conf/${device}/rp_filter`)].includes('1');
  const reason = filtered ? `rp_filter: its source, ${from}, is not reached through ${device}` : route.reason;
  return { ...route, reason };
}

/** The MAC that the host has for a neighbour; undefined: none, so that it would ask. */
export async function neighbourOf(
  address: string,
  device: string,
): Promise<{ readonly mac: string; readonly state: string } | undefined> {
  const { code, stdout } = await ip(['neigh', 'show', 'to', address, 'dev', device]);
  if (code !== 0) return undefined;
  const [found] = parsed(neighbourSchema, stdout);
  return found?.lladdr === undefined ? undefined : { mac: found.lladdr, state: (found.state ?? []).join(' ') };
}

const ip = (args: readonly string[]) =>
  runCommand({
    name: 'ip',
    args: ['-j', ...args],
    timeout: TIMEOUT,
    missing: ['NO_IP', 'install iproute2'],
    failed: 'IP_FAILED',
  });

function parsed<T>(schema: v.GenericSchema<unknown, T[]>, text: string): T[] {
  try {
    return v.parse(schema, JSON.parse(text.trim() || '[]'));
  } catch {
    return [];
  }
}

const NOWHERE = { device: null, via: null, source: null, mtu: null } as const;

function routeOf(
  { code, stdout, stderr }: Awaited<ReturnType<typeof ip>>,
  links: ReadonlyMap<string, Link>,
): HostRoute {
  const [found] = code === 0 ? parsed(routeSchema, stdout) : [];
  if (!found) {
    const [line = ''] = stderr.split('\n');
    const reason = line.replace(/^(Error|RTNETLINK answers): /, '').replace(/\.$/, '') || 'no reason given';
    return { ...NOWHERE, kind: 'refused', reason };
  }
  const { type = 'unicast', dev = null, gateway = null, prefsrc = null, metrics } = found;
  const mtu = metrics?.find((one) => one.mtu !== undefined)?.mtu ?? links.get(dev ?? '')?.mtu ?? null;
  const kind = type === 'local' ? 'local' : 'device';
  return { kind, device: dev, via: gateway, source: prefsrc, mtu, reason: null };
}

function setting(name: string): string | undefined {
  try {
    return readFileSync(`/proc/sys/net/${name}`, 'utf8').trim();
  } catch {
    return undefined;
  }
}
