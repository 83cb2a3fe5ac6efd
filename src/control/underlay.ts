/** The underlay of this host: which interface, which addresses, and what its MTU leaves for the device. */
import type { Family } from '../dataplane/routes.js';
import { chooseInterface } from '../host/interface-choice.js';
import { usableAddresses } from '../host/links.js';
import { SetupError } from '../io/setup-error.js';
import { type Address, type Cidr, parseAddress, parseHostAddress } from './cidr.js';
import { INNER_MOST, LINK_HEADER, type Mode, OVERHEAD } from './encapsulation.js';

export interface UnderlayWish {
  /** Names or addresses of interfaces, the first that will do. */
  readonly ifaces: readonly string[];
  readonly ifaceRegexes: readonly RegExp[];
  readonly ifaceCanReach: Address | undefined;
  readonly publicIps: readonly Address[];
  /** Public addresses need not be this host's: a router may translate them to ours. */
  readonly outside?: boolean;
  /** Families that the overlay's config wants an address of; before it is known: undefined, and one address is found. */
  readonly families?: readonly Family[] | undefined;
}

export interface Underlay {
  readonly interface: string;
  /** The interface's MTU in bytes. */
  readonly mtu: number;
  /** This host's, one or two, of different families: sockets are bound to them. */
  readonly addresses: readonly Address[];
  /** What others are to send to, of the same families in the same order. */
  readonly publicAddresses: readonly Address[];
}

/**
 * Finds the underlay (host/interface-choice.ts says how). It changes nothing, so it can be asked again when more is known of what
 * is wanted. Rejects with a SetupError: no such interface, or it has no address of a family that it should have.
 */
export async function findUnderlay(wish: UnderlayWish): Promise<Underlay> {
  const { ifaces, ifaceRegexes, ifaceCanReach, families = [], outside = false } = wish;
  const told = wish.publicIps.filter(({ family }) => families.length === 0 || families.includes(family));
  const { link, address } = await chooseInterface({
    names: ifaces.map(canonical),
    expressions: ifaceRegexes,
    canReach: ifaceCanReach?.text,
    addresses: told.map(({ text }) => text),
    outside,
    families: familiesOf(families, told),
  });
  const own = new Map<Family, Address>();
  const usable = usableAddresses(link).map(({ text }) => text);
  for (const text of address === undefined ? usable : [address, ...usable]) {
    const one = hostAddress(text);
    if (one && !own.has(one.family)) own.set(one.family, one);
  }
  const first = (address === undefined ? undefined : hostAddress(address)?.family) ?? (own.has(4) ? 4 : 6);
  const wanted = familiesOf(families, told);
  const pairs = (wanted.length > 0 ? wanted : [first]).map((family) => {
    const publicAddress = told.find((one) => one.family === family);
    const here = publicAddress && (!outside || link.addresses.some(({ text }) => text === publicAddress.text));
    const bound = here ? publicAddress : own.get(family);
    if (!bound) throw new SetupError('NO_ADDRESS', `interface ${link.name} has no IPv${family} address: give it one`);
    return { bound, told: publicAddress ?? bound };
  });
  return {
    interface: link.name,
    mtu: link.mtu,
    addresses: pairs.map(({ bound }) => bound),
    publicAddresses: pairs.map((pair) => pair.told),
  };
}

const familiesOf = (families: readonly Family[], addresses: readonly Address[]): readonly Family[] =>
  families.length > 0 ? families : addresses.map(({ family }) => family);

function hostAddress(text: string): Address | undefined {
  try {
    return parseHostAddress(text);
  } catch {
    return undefined;
  }
}

/** An address as the kernel's tools write it; a name stays. */
function canonical(nameOrAddress: string): string {
  try {
    return parseAddress(nameOrAddress).text;
  } catch {
    return nameOrAddress;
  }
}

/** Larger packets do not fit into a UDP datagram. */
export const MTU_MOST = INNER_MOST.l3;
export const MTU_LEAST = 576;
/** RFC 8200 section 5. */
export const MTU_LEAST_IPV6 = 1280;

/**
 * The device's MTU: the one that was asked for, or the largest that fits. `networks`: the overlay of layer 3; a segment of layer
 * 2 may carry IPv6 or not, so nothing is demanded of it. Throws a SetupError when that is too small.
 */
export function deviceMtuOf(
  underlay: Omit<Underlay, 'publicAddresses'>,
  wish: { readonly mode: Mode; readonly mtu: number | undefined; readonly networks: readonly Cidr[] },
): number {
  const { mode } = wish;
  const overhead = Math.max(...underlay.addresses.map((address) => OVERHEAD[mode][address.family]));
  const mtu = wish.mtu ?? Math.min(underlay.mtu - overhead, INNER_MOST[mode]) - LINK_HEADER[mode];
  const least = wish.networks.some((network) => network.family === 6) ? MTU_LEAST_IPV6 : MTU_LEAST;
  if (mtu >= least) return mtu;
  if (wish.mtu !== undefined) {
    throw new SetupError(
      'MTU_TOO_SMALL',
      `--mtu ${mtu} is too small for the overlay's IPv6 network: at least ${least}`,
    );
  }
  throw new SetupError(
    'MTU_TOO_SMALL',
    `interface ${underlay.interface} has MTU ${underlay.mtu}, which leaves ${mtu} for the device, less than ${least}: raise it, or choose another --iface`,
  );
}
