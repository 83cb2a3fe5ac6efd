/** What this host's kernel says of the way to an address, to tell why nothing comes back. */
import * as v from 'valibot';
import { ipRead } from '../../host/ip.js';

const routeSchema = v.array(
  v.object({ dev: v.optional(v.string()), gateway: v.optional(v.string()), type: v.optional(v.string()) }),
);
const linkSchema = v.array(
  v.object({ mtu: v.number(), flags: v.optional(v.array(v.string()), []), operstate: v.optional(v.string()) }),
);
const neighbourSchema = v.array(v.object({ state: v.optional(v.array(v.string()), []) }));

export interface Way {
  readonly device: string | undefined;
  readonly gateway: string | undefined;
  /** `local`: the address is one of this host's own. */
  readonly kind: string | undefined;
}

/** The route that the kernel takes; undefined: it has none. */
export async function wayTo(address: string, from: string | undefined): Promise<Way | undefined> {
  const source = from === undefined ? [] : ['from', from];
  const found = (await ipRead(routeSchema, ['route', 'get', address, ...source]))?.[0];
  return found && { device: found.dev, gateway: found.gateway, kind: found.type };
}

export interface Link {
  readonly mtu: number;
  /** undefined: nothing to say against it. */
  readonly trouble: string | undefined;
}

/** undefined: there is no such link. */
export async function linkOf(name: string): Promise<Link | undefined> {
  const found = (await ipRead(linkSchema, ['link', 'show', 'dev', name]))?.[0];
  if (!found) return undefined;
  const { mtu, flags } = found;
  const trouble = !flags.includes('UP') ? 'is down' : flags.includes('NO-CARRIER') ? 'has no carrier' : undefined;
  return { mtu, trouble };
}

/** Whether an address on the link has answered ARP or neighbour discovery; undefined: it was not asked. */
export async function neighbourAnswers(address: string, device: string): Promise<boolean | undefined> {
  const found = (await ipRead(neighbourSchema, ['neigh', 'show', 'to', address, 'dev', device]))?.[0];
  if (!found) return undefined;
  return !found.state.some((state) => state === 'FAILED' || state === 'INCOMPLETE');
}
