/** The underlay of this host: which interface, which addresses, and what its MTU leaves for the device. */
import { addressOf, findInterface } from '../host/links.js';
import { SetupError } from '../io/setup-error.js';
import { type Address, type Cidr, parseHostAddress } from './cidr.js';
import { INNER_MOST, LINK_HEADER, type Mode, OVERHEAD } from './encapsulation.js';

export interface UnderlayWish {
  readonly iface: string | undefined;
  readonly publicIps: readonly Address[];
}

export interface Underlay {
  readonly interface: string;
  /** The interface's MTU in bytes. */
  readonly mtu: number;
  /** Ours, one or two, of different families. */
  readonly addresses: readonly Address[];
}

/** Throws a SetupError: no such interface, it has no address. */
export async function findUnderlay(wish: UnderlayWish): Promise<Underlay> {
  const link = await findInterface(wish.iface, wish.publicIps[0]?.text);
  const addresses = wish.publicIps.length > 0 ? wish.publicIps : [parseHostAddress(addressOf(link))];
  return { interface: link.name, mtu: link.mtu, addresses };
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
  underlay: Underlay,
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
