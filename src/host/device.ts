/**
 * The TUN, or in layer 2 the TAP, as the host sees it: whose it is, its addresses, MTU, routes, bridge. All of it can be done
 * again at any time: it changes what differs, and takes away what an earlier run with other options left.
 *
 * Ours are those with the alias `weft`. A TAP is also the operator's, who may give it addresses or put it into a bridge by hand:
 * so its alias goes on with what we gave it ourselves, `weft bridge=br0 10.7.0.1/24`, which is all that we may take away. The device is persistent while weftd runs, so that after a kill the next start finds
 * it with its routes and goes on; a fresh one gets its alias before it becomes persistent, so none is ever left unmarked.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';
import { ipBatch, ipRead } from './ip.js';
import { type Link, readLink, readLinks } from './links.js';
import { PROTOCOL } from './routes.js';

const ALIAS = 'weft';

/**
 * Packets that the device's queue holds. While the engine's thread is off its core for 10 ms, 200,000 packets a second fill
 * 2,000: with 1,000 the lossless 64-byte rate was lost to such gaps, with 4,096 it was not (ADR 5).
 */
const QUEUE_LENGTH = 4096;

/** An address or prefix as text, `ip` understands both. */
interface Text {
  readonly family: 4 | 6;
  readonly text: string;
}

export interface TunSetup {
  readonly name: string;
  readonly mtu: number;
  /** Without prefix length. */
  readonly addresses: readonly Text[];
  /** What is routed into the device. */
  readonly networks: readonly Text[];
}

/** Of a TAP; all that is not said here is the operator's. */
export interface TapSetup {
  readonly name: string;
  readonly mtu: number;
  /** `10.7.0.1/24` */
  readonly addresses: readonly string[];
  readonly bridge: string | undefined;
  /** Six bytes; undefined: the one that it has. A device that was lost had better come back with its own, which others remember. */
  readonly mac: Uint8Array | undefined;
  /** The kernel routes into it, for this family alone: nothing of IPv6 goes out by itself. undefined: a plain segment's. */
  readonly routed?: 4 | 6 | undefined;
}

/** True when there is a device of that name and it is ours, false when there is none. Throws a SetupError when it is another's. */
export async function isOurs(name: string, kind: 'tun' | 'tap'): Promise<boolean> {
  const link = await readLink(name);
  if (!link) return false;
  if (link.kind === 'tun' && link.alias?.split(' ')[0] === ALIAS) {
    if (link.type === kind) return true;
    throw new SetupError(
      'DEVICE_TAKEN',
      `device ${name} is a ${link.type?.toUpperCase()} that weft left in its other mode: remove it (ip link del ${name}), or choose another --device`,
    );
  }
  throw new SetupError(
    'DEVICE_TAKEN',
    `device name ${name} is taken by an interface that is not weft's: choose another with --device${name.startsWith('flannel') ? ', or stop the flanneld that has it' : ''}`,
  );
}

/** All that are ours, and the kernel's vxlan devices. Rejects with a SetupError. */
export async function overlayDevices(): Promise<{ readonly ours: readonly Link[]; readonly vxlan: readonly Link[] }> {
  const links = (await readLinks()) ?? [];
  return {
    ours: links.filter(({ kind, alias }) => kind === 'tun' && alias?.split(' ')[0] === ALIAS),
    vxlan: links.filter(({ kind }) => kind === 'vxlan'),
  };
}

/** Rejects with a SetupError. */
export const removeDevice = (name: string): Promise<void> => ipBatch([`link del dev ${name}`]);

/** Throws a SetupError unless there is a bridge of that name. */
export async function checkBridge(name: string): Promise<void> {
  const link = await readLink(name);
  if (link?.kind === 'bridge') return;
  throw new SetupError(
    'NO_BRIDGE',
    link
      ? `interface ${name} is not a bridge: choose another --bridge`
      : `bridge ${name} does not exist: make it (ip link add ${name} type bridge), or choose another --bridge`,
  );
}

const routesSchema = v.array(v.object({ dst: v.string(), dev: v.optional(v.string()) }));

/** Throws a SetupError when a network is routed elsewhere already: replacing that route could cut the host off. */
export async function checkRoutes(name: string, networks: readonly Text[]): Promise<void> {
  for (const { family, text } of networks) {
    const routes = (await ipRead(routesSchema, [`-${family}`, 'route', 'show', 'exact', text])) ?? [];
    const other = routes.find((route) => route.dev !== name);
    if (!other) continue;
    const where = other.dev === undefined ? '' : ` to ${other.dev}`;
    throw new SetupError(
      'ROUTE_TAKEN',
      `network ${text} is routed${where} already: remove that route, or choose another --network (with etcd: Network in its config)`,
    );
  }
}

/** Marks a fresh device as ours. To be done before it is made persistent. */
export const markDevice = (name: string): Promise<void> => ipBatch([`link set dev ${name} alias ${ALIAS}`]);

/**
 * Gives a TUN its MTU, addresses and routes and takes it up. Throws a SetupError when one of these fails; what only
 * makes things better or quieter is told to `warn` instead.
 */
export async function setUpTun(setup: TunSetup, warn: (text: string) => void): Promise<void> {
  const { name, mtu } = setup;
  const ipv6 = setup.networks.some((network) => network.family === 6);
  quietIpv6(name, ipv6);
  const optional = async (command: string): Promise<void> => {
    await ipBatch([command]).catch((error: Error) => warn(error.message));
  };
  if (ipv6) await optional(`link set dev ${name} addrgenmode none`);
  await ipBatch([
    `link set dev ${name} mtu ${mtu} txqueuelen ${QUEUE_LENGTH} multicast off`,
    ...setup.addresses.map((address) => addAddress(name, address)),
    `link set dev ${name} up`,
    ...setup.networks.map(({ text }) => `route replace ${text} dev ${name} proto ${PROTOCOL}`),
  ]);
  await removeStale(setup);
  // ICMP errors that we write to the device come from its own address, which the kernel takes for forged otherwise.
  // rp_filter stays as it is: even the strict check passes, since all that arrives here is also routed here.
  if (!writeSysctl(`net/ipv4/conf/${name}/accept_local`, '1')) {
    warn(`cannot set net.ipv4.conf.${name}.accept_local: this host's own programs will not see ICMP errors from weft`);
  }
}

/**
 * Gives a TAP its MTU, bridge and addresses and takes it up; what an earlier run gave it and is not asked for now goes. Throws a
 * SetupError when one of these fails.
 */
export async function setUpTap({ name, mtu, addresses, bridge, mac, routed }: TapSetup): Promise<void> {
  if (bridge !== undefined) await checkBridge(bridge);
  if (routed !== undefined) quietIpv6(name, routed === 6);
  const link = await readLink(name);
  const before = givenIn(link?.alias);
  const stale = (link?.addresses ?? [])
    .map((address) => `${address.text}/${address.length}`)
    .filter((address) => before.addresses.includes(address) && !addresses.includes(address));
  const leaves = bridge === undefined && before.bridge !== undefined && before.bridge === link?.master;
  const commands = [
    `link set dev ${name} mtu ${mtu} txqueuelen ${QUEUE_LENGTH}`,
    // Written down before it is done, old and new, so that whenever this ends, the next run knows what is ours.
    setAlias(name, bridge ?? before.bridge, new Set([...addresses, ...before.addresses])),
  ];
  if (mac)
    commands.push(
      `link set dev ${name} address ${Buffer.from(mac)
        .toString('hex')
        .replace(/..(?=.)/g, '$&:')}`,
    );
  if (leaves) commands.push(`link set dev ${name} nomaster`);
  if (bridge !== undefined && bridge !== link?.master) commands.push(`link set dev ${name} master ${bridge}`);
  await ipBatch([
    ...commands,
    ...stale.map((address) => `address del ${address} dev ${name}`),
    ...(routed === 6 ? [`link set dev ${name} addrgenmode none`] : []),
    ...addresses.map((address) => `address replace ${address} dev ${name}${routed === 6 ? ' nodad' : ''}`),
    `link set dev ${name} up`,
    setAlias(name, bridge, new Set(addresses)),
  ]);
}

/** Puts a device into a bridge that it was in when it was lost; `warn` is told why it cannot be. */
export const rejoinBridge = (name: string, bridge: string, warn: (text: string) => void): Promise<void> =>
  ipBatch([`link set dev ${name} master ${bridge}`]).catch((error: Error) => warn(error.message));

/** Most bytes of an alias, IFALIASZ with its end (linux/if.h). */
const ALIAS_MOST = 255;

function setAlias(name: string, bridge: string | undefined, addresses: ReadonlySet<string>): string {
  const words = [ALIAS, ...(bridge === undefined ? [] : [`bridge=${bridge}`]), ...addresses];
  while (words.join(' ').length > ALIAS_MOST) words.pop();
  return `link set dev ${name} alias "${words.join(' ')}"`;
}

/** What an earlier run gave a TAP with this alias. */
function givenIn(alias = ''): { readonly bridge: string | undefined; readonly addresses: readonly string[] } {
  const words = alias.split(' ').slice(1);
  const bridge = words.find((word) => word.startsWith('bridge='));
  return { bridge: bridge?.slice('bridge='.length), addresses: words.filter((word) => word !== bridge) };
}

const addAddress = (name: string, { family, text }: Text): string =>
  family === 4 ? `address replace ${text}/32 dev ${name}` : `address replace ${text}/128 dev ${name} nodad`;

/**
 * No link-local address, router solicitation or neighbour discovery goes into the overlay by itself; that the device knows no
 * multicast (set with its MTU) keeps listener reports out too.
 */
function quietIpv6(name: string, used: boolean): void {
  const directory = `net/ipv6/conf/${name}`;
  writeSysctl(`${directory}/disable_ipv6`, used ? '0' : '1');
  for (const key of ['accept_ra', 'autoconf', 'router_solicitations', 'dad_transmits']) {
    writeSysctl(`${directory}/${key}`, '0');
  }
}

/**
 * False when the kernel or the container does not let us. In a container /proc/sys is read-only, but what it was started with
 * (`net.ipv4.conf.default`) may be right already.
 */
function writeSysctl(path: string, value: string): boolean {
  try {
    const file = `/proc/sys/${path}`;
    if (readFileSync(file, 'utf8').trim() !== value) writeFileSync(file, value);
    return true;
  } catch {
    return false;
  }
}

/** Addresses and routes that an earlier run with other options left. */
async function removeStale({ name, addresses, networks }: TunSetup): Promise<void> {
  const commands: string[] = [];
  for (const address of (await readLink(name))?.addresses ?? []) {
    if (address.scope === 'link' || addresses.some((own) => own.text === address.text)) continue;
    commands.push(`address del ${address.text}/${address.length} dev ${name}`);
  }
  for (const family of ['-4', '-6']) {
    const args = [family, 'route', 'show', 'dev', name, 'proto', String(PROTOCOL)];
    for (const route of (await ipRead(routesSchema, args)) ?? []) {
      if (networks.some((network) => network.text === route.dst)) continue;
      commands.push(`route del ${route.dst} dev ${name} proto ${PROTOCOL}`);
    }
  }
  if (commands.length > 0) await ipBatch(commands);
}
