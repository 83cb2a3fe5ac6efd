/** What the kernel knows of the paths to other hosts: MTUs of routes, learned (ICMP) or configured, or else of the link. */
import * as v from 'valibot';
import { ipRead, ipReadEach } from './ip.js';

const routeSchema = v.array(
  v.object({
    dst: v.string(),
    dev: v.optional(v.string()),
    metrics: v.optional(v.array(v.object({ mtu: v.optional(v.number()) }))),
  }),
);
const linkSchema = v.array(v.object({ ifname: v.string(), mtu: v.number() }));

/**
 * The underlay's MTU in bytes towards each address (canonical text) that there is a route to, when sent from `source(address)`.
 */
export async function pathMtus(
  addresses: readonly string[],
  source: (address: string) => string | undefined,
): Promise<Map<string, number>> {
  const commands = addresses.map((address) => {
    const from = source(address);
    return from === undefined ? `route get ${address}` : `route get ${address} from ${from}`;
  });
  const routes = (await ipReadEach(routeSchema, commands)).flat();
  const links = (await ipRead(linkSchema, ['link', 'show'])) ?? [];
  const linkMtus = new Map(links.map((link) => [link.ifname, link.mtu]));
  const found = new Map<string, number>();
  for (const route of routes) {
    const link = linkMtus.get(route.dev ?? '');
    const learned = route.metrics?.find((metric) => metric.mtu !== undefined)?.mtu;
    const mtu = Math.min(learned ?? Number.POSITIVE_INFINITY, link ?? Number.POSITIVE_INFINITY);
    if (Number.isFinite(mtu)) found.set(route.dst, mtu);
  }
  return found;
}
