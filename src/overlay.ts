/**
 * What this host sets up to be in the overlay: the configuration, completed by what the registry says of the backend. With a
 * static or the embedded registry the configuration says it all.
 */
import type { Config, Segment } from './config.js';
import type { VxlanBackend } from './control/backend.js';
import { addressOf, type Cidr, type InterfaceAddress } from './control/cidr.js';
import type { Candidate } from './control/membership.js';
import { deviceMtuOf, type Underlay } from './control/underlay.js';
import { SetupError } from './io/setup-error.js';

/** A network of layer 2. */
export interface OverlaySegment extends Segment {
  /** The only underlay that it goes over; undefined: any. */
  readonly family?: 4 | 6 | undefined;
}

/** Of the options, those that depend on the backend say here what is so in the end. */
export interface Overlay extends Omit<Config, 'segments'> {
  readonly segments: readonly OverlaySegment[];
  /** Layer 2: MACs and neighbours are learned; frames may go to all peers. */
  readonly learning: boolean;
  readonly floods: boolean;
  /** The kernel routes to the peers' subnets: to our VXLAN devices, or to the other hosts themselves. */
  readonly routing: 'vxlan' | 'host-gw' | undefined;
  readonly directRouting: boolean;
  /** Instead of the interface's MTU, in bytes. */
  readonly underlayMtu: number | undefined;
}

type Families = readonly (4 | 6)[];

/** flannel's names of its VXLAN devices. */
const VTEPS = { 4: 'flannel.', 6: 'flannel-v6.' } as const;
export const isVtepName = (name: string): boolean => /^flannel(-v6)?\.\d+$/.test(name);

/** Throws a SetupError: an option that the backend cannot do. */
export function overlayOf(config: Config, { backend, networks }: Pick<Candidate, 'backend' | 'networks'>): Overlay {
  const plain: Overlay = {
    ...config,
    learning: true,
    floods: true,
    routing: undefined,
    directRouting: false,
    underlayMtu: undefined,
  };
  if (backend === undefined || backend.type === 'udp') return plain;
  if (backend.type === 'vxlan')
    return vxlanOverlay(
      plain,
      backend,
      networks.map(({ family }) => family),
    );
  // Nothing passes through us: no thread moves packets, and there is no device.
  return { ...plain, workers: 0, routing: backend.type === 'host-gw' ? 'host-gw' : undefined };
}

function vxlanOverlay(plain: Overlay, backend: VxlanBackend, families: Families): Overlay {
  if (plain.sourceCheck === 'strict') {
    throw new SetupError(
      'NO_STRICT',
      '--source-check strict: is for the udp backend: in vxlan no sender owns addresses: choose peer or off',
    );
  }
  const { vni, mtu, learning, directRouting } = backend;
  const segments = families.map((family) => {
    return { vni, family, device: `${VTEPS[family]}${vni}`, bridge: undefined, addresses: [], mtu: plain.mtu };
  });
  return {
    ...plain,
    mode: 'l2',
    segments,
    learning,
    floods: false, // flannel's devices have nobody to send a broadcast to
    routing: 'vxlan',
    directRouting,
    underlayMtu: mtu,
  };
}

/** Throws a SetupError when others would send to an address that is not ours, where no router can translate it. */
export function checkPublicIps({ routing }: Overlay, { interface: name, addresses, publicAddresses }: Underlay): void {
  if (routing !== 'host-gw') return;
  for (const { text } of publicAddresses) {
    if (addresses.some((address) => address.text === text)) continue;
    throw new SetupError(
      'NO_ADDRESS',
      `public IP ${text} is not of interface ${name}: host-gw needs one of its addresses: check --public-ip and --iface`,
    );
  }
}

/** Names of the devices, by network. */
export const deviceNames = ({ mode, workers, device, segments }: Overlay): string[] =>
  mode === 'l2' ? segments.map((segment) => segment.device) : workers > 0 ? [device] : [];

/**
 * MTUs in bytes, by network; without a device, that of the pods' own. Throws a SetupError when the underlay leaves too little.
 */
export function mtusOf(overlay: Overlay, found: Underlay, networks: readonly Cidr[]): [number, ...number[]] {
  const { mode, workers, segments } = overlay;
  const underlay = { ...found, mtu: overlay.underlayMtu ?? found.mtu };
  if (workers === 0) return [overlay.mtu ?? underlay.mtu];
  if (mode === 'l3') return [deviceMtuOf(underlay, { mode, mtu: overlay.mtu, networks })];
  const [first, ...others] = segments.map(({ mtu, family }) => {
    const addresses = underlay.addresses.filter((address) => family === undefined || address.family === family);
    return deviceMtuOf({ ...underlay, addresses }, { mode, mtu, networks: family === 6 ? networks : [] });
  });
  return [first, ...others];
}

/** The address of a VXLAN device: the first of our subnet of its family, alone, as flannel gives it. */
export function vtepAddresses(family: 4 | 6 | undefined, subnets: readonly Cidr[]): InterfaceAddress[] {
  return subnets
    .filter((subnet) => subnet.family === family)
    .map(({ bytes }) => ({ ...addressOf(bytes), length: bytes.length * 8 }));
}
