/**
 * Routes and permanent neighbours of this host's kernel that lead to other hosts. Ours are the routes with our protocol number,
 * and all permanent neighbours of our own devices.
 */
import * as v from 'valibot';
import { ipEach, ipRead, ipReadEach } from './ip.js';

/** Routing protocol number of our routes: tells them from what an operator adds on the same device. */
export const PROTOCOL = 87;

export interface KernelRoute {
  /** `10.5.2.0/24` */
  readonly prefix: string;
  /** The next hop, an IP address. */
  readonly via: string;
  readonly device: string;
  /** The next hop is on the device's link, whatever its addresses say. */
  readonly onlink: boolean;
}

export interface KernelNeighbour {
  readonly device: string;
  /** IP address. */
  readonly address: string;
  readonly mac: string;
}

export type KernelChange =
  | { readonly kind: 'set-route' | 'remove-route'; readonly route: KernelRoute }
  | { readonly kind: 'set-neighbour' | 'remove-neighbour'; readonly neighbour: KernelNeighbour };

/** What is there now. */
export interface KernelState {
  readonly routes: readonly KernelRoute[];
  readonly neighbours: readonly KernelNeighbour[];
}

/** One line each, without prefix length if it is a whole address: `ip` writes a /32 that way. */
const withLength = (dst: string): string => (dst.includes('/') ? dst : `${dst}/${dst.includes(':') ? 128 : 32}`);

const routesSchema = v.array(
  v.object({
    dst: v.string(),
    gateway: v.optional(v.string()),
    dev: v.optional(v.string()),
    flags: v.optional(v.array(v.string()), []),
  }),
);
const neighboursSchema = v.array(
  v.object({ dst: v.string(), dev: v.optional(v.string()), lladdr: v.optional(v.string()) }),
);

/** Our routes of these families, and the permanent neighbours of these devices. Rejects with a SetupError: `ip` cannot be run. */
export async function readKernelState(
  families: readonly (4 | 6)[],
  neighboursOf: readonly string[],
): Promise<KernelState> {
  const routes: KernelRoute[] = [];
  for (const family of families) {
    const found = await ipRead(routesSchema, [`-${family}`, 'route', 'show', 'proto', String(PROTOCOL)]);
    for (const { dst, gateway, dev, flags } of found ?? []) {
      if (gateway === undefined || dev === undefined) continue; // that of a TUN
      routes.push({ prefix: withLength(dst), via: gateway, device: dev, onlink: flags.includes('onlink') });
    }
  }
  if (neighboursOf.length === 0) return { routes, neighbours: [] };
  const found = (await ipRead(neighboursSchema, ['neigh', 'show', 'nud', 'permanent'])) ?? [];
  const neighbours = found.flatMap(({ dst, dev, lladdr }): KernelNeighbour[] =>
    dev !== undefined && lladdr !== undefined && neighboursOf.includes(dev)
      ? [{ device: dev, address: dst, mac: lladdr }]
      : [],
  );
  return { routes, neighbours };
}

/**
 * Makes changes in order, in one process, whatever becomes of each; resolves to why those that failed did, by place. What is to
 * be removed and is not there is no failure. Rejects with a SetupError: `ip` cannot be run.
 */
export async function changeKernel(changes: readonly KernelChange[]): Promise<ReadonlyMap<number, string>> {
  const failures = new Map(await ipEach(changes.map(commandFor)));
  for (const [at, reason] of failures) {
    if (changes[at].kind.startsWith('remove') && GONE.test(reason)) failures.delete(at);
  }
  await setAnew(changes, failures);
  return failures;
}

/** What the kernel says of the case below. */
const LEADS_ELSEWHERE = /^(Nexthop has invalid gateway|No route to host)/;

/**
 * IPv6 refuses a next hop on a device's own link while a route over another device leads there, be it the very one that is to be
 * replaced (ip6_route_check_nh_onlink in net/ipv6/route.c): that one is removed first. A hole of microseconds.
 */
async function setAnew(changes: readonly KernelChange[], failures: Map<number, string>): Promise<void> {
  const again = [...failures].flatMap(([at, reason]) => {
    const change = changes[at];
    return LEADS_ELSEWHERE.test(reason) &&
      change.kind === 'set-route' &&
      change.route.onlink &&
      change.route.prefix.includes(':')
      ? [{ at, change }]
      : [];
  });
  const second = await ipEach(again.flatMap(({ change }) => [`route del ${change.route.prefix}`, commandFor(change)]));
  for (const [i, { at }] of again.entries()) {
    const reason = second.get(2 * i + 1);
    if (reason === undefined) failures.delete(at);
    else failures.set(at, reason);
  }
}

const GONE = /^(No such process|No such file or directory|Cannot find device)/;

function commandFor(change: KernelChange): string {
  if ('route' in change) {
    const { prefix, via, device, onlink } = change.route;
    const verb = change.kind === 'set-route' ? 'replace' : 'del';
    return `route ${verb} ${prefix} via ${via} dev ${device}${onlink ? ' onlink' : ''} proto ${PROTOCOL}`;
  }
  const { device, address, mac } = change.neighbour;
  return change.kind === 'set-neighbour'
    ? `neigh replace ${address} lladdr ${mac} dev ${device} nud permanent`
    : `neigh del ${address} dev ${device}`;
}

const pathSchema = v.array(v.object({ dst: v.string(), gateway: v.optional(v.string()), dev: v.optional(v.string()) }));

/** The way that the kernel sends to an address. */
export interface Path {
  readonly address: string;
  readonly device: string;
  /** No router is in between. */
  readonly onLink: boolean;
}

/** For those of these addresses (canonical text) that the kernel knows a way to. Rejects with a SetupError: `ip` cannot be run. */
export async function pathsTo(addresses: readonly string[]): Promise<Path[]> {
  const found = await ipReadEach(
    pathSchema,
    addresses.map((address) => `route get ${address}`),
  );
  return found.flat().flatMap(({ dst, gateway, dev }) => {
    return dev === undefined ? [] : [{ address: dst, device: dev, onLink: gateway === undefined }];
  });
}
