/** What the leases of a list take: subnets, and underlay addresses. */
import type { Address } from './cidr.js';
import type { KeyValue } from './etcd-client.js';
import { parseLease, subnetsTakenBy } from './flannel-lease.js';
import { PrefixSet } from './prefix-set.js';

/** Results that are kept: the same leases are listed again in every answer. */
const KEPT_MOST = 16_384;

function keeping<T>(make: (text: string) => T): (text: string) => T {
  const kept = new Map<string, T>();
  return (text) => {
    const known = kept.get(text);
    if (known !== undefined) return known;
    if (kept.size >= KEPT_MOST) kept.clear();
    const made = make(text);
    kept.set(text, made);
    return made;
  };
}

/** Underlay addresses that a lease tells; none if it makes no sense. */
export const addressesIn = keeping((value): readonly Address[] => {
  try {
    const { publicIp, publicIpv6 } = parseLease(value);
    return [publicIp, publicIpv6].filter((address) => address !== undefined);
  } catch {
    return [];
  }
});

const takenBy = keeping(subnetsTakenBy);

/** For messages. */
export function publicIpOf(value: string): string {
  try {
    const { publicIp, publicIpv6 } = parseLease(value);
    return `public IP ${publicIp?.text ?? publicIpv6?.text ?? 'none'}`;
  } catch {
    return 'somebody else';
  }
}

/** The subnets that the keys below `prefix` take. */
export function takenIn({ keys }: { readonly keys: readonly KeyValue[] }, prefix: string): PrefixSet {
  const taken = new PrefixSet();
  for (const { key } of keys) for (const subnet of takenBy(key.slice(prefix.length))) taken.add(subnet);
  return taken;
}
