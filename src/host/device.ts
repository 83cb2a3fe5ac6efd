/**
 * The TUN as the host sees it: whose it is, its address, MTU and routes. All of it can be done again at any time: it changes
 * what differs, and takes away what an earlier run with other options left.
 *
 * Ours are TUNs with the alias `weft`. The device is persistent while weftd runs, so that after a kill the next start finds
 * it with its routes and goes on; a fresh one gets its alias before it becomes persistent, so none is ever left unmarked.
 */
import { existsSync, writeFileSync } from 'node:fs';
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';
import { ipBatch, ipRead } from './ip.js';
import { readLink } from './links.js';

const ALIAS = 'weft';

/** Routing protocol number of our routes: tells them from what an operator adds on the same device. */
const PROTOCOL = 87;

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

export interface DeviceSetup {
  readonly name: string;
  readonly mtu: number;
  /** Without prefix length. */
  readonly addresses: readonly Text[];
  /** What is routed into the device. */
  readonly networks: readonly Text[];
}

/** True when there is a device of that name and it is ours, false when there is none. Throws a SetupError when it is another's. */
export async function isOurs(name: string): Promise<boolean> {
  const link = await readLink(name);
  if (!link) return false;
  if (link.kind === 'tun' && link.alias === ALIAS) return true;
  throw new SetupError(
    'DEVICE_TAKEN',
    `device name ${name} is taken by an interface that is not weft's: choose another with --device`,
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
      `network ${text} is routed${where} already: remove that route, or choose another --network`,
    );
  }
}

/** Marks a fresh device as ours. To be done before it is made persistent. */
export const markDevice = (name: string): Promise<void> => ipBatch([`link set dev ${name} alias ${ALIAS}`]);

/**
 * Gives the device its MTU, addresses and routes and takes it up. Throws a SetupError when one of these fails; what only
 * makes things better or quieter is told to `warn` instead.
 */
export async function setUpDevice(setup: DeviceSetup, warn: (text: string) => void): Promise<void> {
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

/** False when the kernel or the container does not let us. */
function writeSysctl(path: string, value: string): boolean {
  try {
    const file = `/proc/sys/${path}`;
    if (!existsSync(file)) return false;
    writeFileSync(file, value);
    return true;
  } catch {
    return false;
  }
}

/** Addresses and routes that an earlier run with other options left. */
async function removeStale({ name, addresses, networks }: DeviceSetup): Promise<void> {
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
