/** Links of this host and their addresses, as `ip -j` tells them. */
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';
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
  readonly mtu: number;
  /** `tun` (a TAP too), `bridge`, `veth`, `vxlan`, …; undefined for plain hardware. */
  readonly kind: string | undefined;
  /** What `kind` says more: `tun` or `tap`. */
  readonly type: string | undefined;
  /** Name of the bridge, or whatever else, that it is a port of. */
  readonly master: string | undefined;
  readonly alias: string | undefined;
  readonly up: boolean;
  readonly addresses: readonly LinkAddress[];
}

const linksSchema = v.array(
  v.object({
    ifname: v.string(),
    mtu: v.number(),
    flags: v.array(v.string()),
    ifalias: v.optional(v.string()),
    master: v.optional(v.string()),
    linkinfo: v.optional(
      v.object({
        info_kind: v.optional(v.string()),
        info_data: v.optional(v.object({ type: v.fallback(v.optional(v.string()), undefined) }), {}),
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

async function readLinks(args: readonly string[]): Promise<Link[] | undefined> {
  const found = await ipRead(linksSchema, ['-d', 'address', 'show', ...args]);
  return found?.map((link) => ({
    name: link.ifname,
    mtu: link.mtu,
    kind: link.linkinfo?.info_kind,
    type: link.linkinfo?.info_data.type,
    master: link.master,
    alias: link.ifalias,
    up: link.flags.includes('UP'),
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

const routesSchema = v.array(v.object({ dev: v.optional(v.string()) }));

/**
 * The interface of the underlay: the named one, else the one that has `address`, else the default route's. Throws a
 * SetupError when there is none.
 */
export async function findInterface(name: string | undefined, address: string | undefined): Promise<Link> {
  if (name !== undefined) {
    const link = await readLink(name);
    if (!link) throw new SetupError('NO_INTERFACE', `interface ${name} does not exist: check --iface`);
    return link;
  }
  if (address !== undefined) {
    const links = (await readLinks([])) ?? [];
    const link = links.find((candidate) => candidate.addresses.some((one) => one.text === address));
    if (link) return link;
    throw new SetupError('NO_ADDRESS', `${address} is not an address of this host: check --public-ip`);
  }
  for (const family of ['-4', '-6']) {
    const routes = await ipRead(routesSchema, [family, 'route', 'show', 'default']);
    const dev = routes?.find((route) => route.dev !== undefined)?.dev;
    const link = dev === undefined ? undefined : await readLink(dev);
    if (link) return link;
  }
  throw new SetupError('NO_INTERFACE', 'this host has no default route to tell the interface by: name it with --iface');
}

/**
 * The address of an interface that peers send to: its first IPv4 address, or else its first IPv6 one that is not link-local.
 * Throws a SetupError when it has none.
 */
export function addressOf(link: Link): string {
  const usable = link.addresses.filter((address) => address.scope !== 'link' && address.lasting);
  const found = usable.find((address) => address.family === 4) ?? usable[0];
  if (!found) {
    throw new SetupError(
      'NO_ADDRESS',
      `interface ${link.name} has no address: give it one, or choose --iface or --public-ip`,
    );
  }
  return found.text;
}
