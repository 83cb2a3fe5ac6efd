/** Links of this host and their addresses, as `ip -j` tells them. */
import * as v from 'valibot';
import { ipRead } from './ip.js';

export interface LinkAddress {
  readonly family: 4 | 6;
  readonly text: string;
  readonly length: number;
  /** `global`, `link` or `host`. */
  readonly scope: string;
  /** Meant to stay and to be used: neither deprecated nor temporary nor found twice (RFC 4862, RFC 8981). */
  readonly lasting: boolean;
}

export interface Link {
  readonly name: string;
  /** Other names that it goes by (`ip link property`). */
  readonly altNames: readonly string[];
  readonly mtu: number;
  /** `tun` (a TAP too), `bridge`, `veth`, `vxlan`, …; undefined for plain hardware. */
  readonly kind: string | undefined;
  /** What `kind` says more: `tun` or `tap`. */
  readonly type: string | undefined;
  /** Of a vxlan device. */
  readonly vni: number | undefined;
  /** Lower case; of a device that is none of Ethernet's, whatever it has, or nothing. */
  readonly mac: string;
  /** Name of the bridge, or whatever else, that it is a port of. */
  readonly master: string | undefined;
  readonly alias: string | undefined;
  readonly up: boolean;
  readonly loopback: boolean;
  readonly addresses: readonly LinkAddress[];
}

const linksSchema = v.array(
  v.object({
    ifname: v.string(),
    altnames: v.optional(v.array(v.string()), []),
    mtu: v.number(),
    address: v.optional(v.string(), ''),
    flags: v.array(v.string()),
    ifalias: v.optional(v.string()),
    master: v.optional(v.string()),
    linkinfo: v.optional(
      v.object({
        info_kind: v.optional(v.string()),
        info_data: v.optional(
          v.object({
            type: v.fallback(v.optional(v.string()), undefined),
            id: v.fallback(v.optional(v.number()), undefined),
          }),
          {},
        ),
      }),
    ),
    addr_info: v.array(
      v.object({
        family: v.string(),
        local: v.optional(v.string()),
        prefixlen: v.optional(v.number(), 0),
        scope: v.optional(v.string(), 'global'),
        deprecated: v.optional(v.boolean(), false),
        temporary: v.optional(v.boolean(), false),
        dadfailed: v.optional(v.boolean(), false),
      }),
    ),
  }),
);

/** All links that `ip address show` with these arguments tells of, in the kernel's order; undefined: there is none of that name. */
export async function readLinks(args: readonly string[] = []): Promise<Link[] | undefined> {
  const found = await ipRead(linksSchema, ['-d', 'address', 'show', ...args]);
  return found?.map((link) => ({
    name: link.ifname,
    altNames: link.altnames,
    mtu: link.mtu,
    kind: link.linkinfo?.info_kind,
    type: link.linkinfo?.info_data.type,
    vni: link.linkinfo?.info_kind === 'vxlan' ? link.linkinfo.info_data.id : undefined,
    mac: link.address.toLowerCase(),
    master: link.master,
    alias: link.ifalias,
    up: link.flags.includes('UP'),
    loopback: link.flags.includes('LOOPBACK'),
    addresses: link.addr_info
      .filter((address) => address.local !== undefined && (address.family === 'inet' || address.family === 'inet6'))
      .map((address) => ({
        family: address.family === 'inet' ? 4 : 6,
        text: address.local ?? '',
        length: address.prefixlen,
        scope: address.scope,
        lasting: !address.deprecated && !address.temporary && !address.dadfailed,
      })),
  }));
}

/** The link of that name, or undefined. */
export const readLink = async (name: string): Promise<Link | undefined> => (await readLinks(['dev', name]))?.[0];

/** Addresses of a link that peers may send to: none that hold on the link only, or that are going. */
export const usableAddresses = (link: Link): readonly LinkAddress[] =>
  link.addresses.filter((address) => address.scope !== 'link' && address.lasting);

const routesSchema = v.array(
  v.object({
    type: v.optional(v.string(), 'unicast'),
    dev: v.optional(v.string()),
    nexthops: v.optional(v.array(v.object({ dev: v.optional(v.string()) })), []),
  }),
);

/** Name of the interface that the default route of a family leads to. */
export async function defaultRouteDevice(family: 4 | 6): Promise<string | undefined> {
  const routes = (await ipRead(routesSchema, [`-${family}`, 'route', 'show', 'default'])) ?? [];
  return routes
    .filter(({ type }) => type === 'unicast') // IPv6 has `unreachable default dev lo`
    .flatMap(({ dev, nexthops }) => dev ?? nexthops.map((hop) => hop.dev))
    .find((dev) => dev !== undefined);
}

const routeSchema = v.array(
  v.object({ type: v.optional(v.string()), dev: v.optional(v.string()), prefsrc: v.optional(v.string()) }),
);

/** Where the kernel would send to an address (canonical text), and from which of our own; undefined: it has no route to it. */
export async function routeTo(
  address: string,
): Promise<{ readonly device: string; readonly source: string | undefined; readonly local: boolean } | undefined> {
  const [route] = (await ipRead(routeSchema, ['route', 'get', address])) ?? [];
  if (route?.dev === undefined) return undefined;
  return { device: route.dev, source: route.prefsrc, local: route.type === 'local' };
}
