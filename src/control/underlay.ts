/** The underlay of this host: which interface, which addresses, and what its MTU leaves for the device. */
import { addressOf, findInterface } from '../host/links.js';
import { SetupError } from '../io/setup-error.js';
import { type Address, parseHostAddress } from './cidr.js';
import { OVERHEAD } from './plan.js';

export interface UnderlayWish {
  readonly iface: string | undefined;
  readonly publicIps: readonly Address[];
  /** The device's MTU; undefined: the largest that fits. */
  readonly mtu: number | undefined;
  readonly mtuLeast: number;
  readonly mtuMost: number;
}

export interface Underlay {
  readonly interface: string;
  /** The interface's MTU in bytes. */
  readonly mtu: number;
  /** Ours, one or two, of different families. */
  readonly addresses: readonly Address[];
  readonly deviceMtu: number;
}

/** Throws a SetupError: no such interface, it has no address, its MTU is too small. */
export async function findUnderlay(wish: UnderlayWish): Promise<Underlay> {
  const link = await findInterface(wish.iface, wish.publicIps[0]?.text);
  const addresses = wish.publicIps.length > 0 ? wish.publicIps : [parseHostAddress(addressOf(link))];
  const overhead = Math.max(...addresses.map((address) => OVERHEAD[address.family]));
  const deviceMtu = wish.mtu ?? Math.min(link.mtu - overhead, wish.mtuMost);
  if (deviceMtu < wish.mtuLeast) {
    throw new SetupError(
      'MTU_TOO_SMALL',
      `interface ${link.name} has MTU ${link.mtu}, which leaves ${deviceMtu} for the device, less than ${wish.mtuLeast}: raise it, or choose another --iface`,
    );
  }
  return { interface: link.name, mtu: link.mtu, addresses, deviceMtu };
}
