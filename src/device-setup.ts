/**
 * What each device gets from the host, by the overlay; and what earlier runs, of flanneld or of us with another backend, left in its
 * place.
 */
import { addressOf, type Cidr, contains, type InterfaceAddress, parsePrefixOf } from './control/cidr.js';
import type { EventLog } from './control/event-log.js';
import { parseMac } from './control/mac.js';
import type { MacsByFamily, Membership } from './control/membership.js';
import type { OwnMacsWatch } from './control/own-macs.js';
import { overlayDevices, rejoinBridge, removeDevice, setUpTap, setUpTun } from './host/device.js';
import type { Link } from './host/links.js';
import { lockDevice } from './host/lock.js';
import { type FoundVtep, findVtep } from './host/vtep.js';
import { isVtepName, type Overlay, vtepAddresses } from './overlay.js';

export interface DeviceParts {
  readonly overlay: Overlay;
  readonly member: Pick<Membership, 'networks' | 'subnets' | 'macs'>;
  /** Names and MTUs in bytes, by network. */
  readonly names: readonly string[];
  readonly mtus: readonly number[];
  readonly ownMacs: OwnMacsWatch;
  readonly log: EventLog;
}

/** Gives the open device of a network what it needs; can be repeated. Rejects with a SetupError. */
export async function setUpDevice(network: number, parts: DeviceParts): Promise<void> {
  const { overlay, member, ownMacs, log } = parts;
  const [name, mtu] = [parts.names[network], parts.mtus[network]];
  const warn = (reason: string): void => log.warn('device_setup', { device: name, reason });
  if (overlay.mode === 'l3') {
    const { networks, subnets } = member;
    return setUpTun({ name, mtu, addresses: subnets.map(({ bytes }) => addressOf(bytes)), networks }, warn);
  }
  const { bridge, family, addresses } = overlay.segments[network];
  if (overlay.routing === 'vxlan') {
    const vtep = interfaceTexts(vtepAddresses(family, member.subnets));
    return setUpTap({ name, mtu, bridge, addresses: vtep, mac: macOf(member, family), routed: family });
  }
  const before = ownMacs.last(network); // if it was lost, what it had then, even if the operator gave it that
  await setUpTap({ name, mtu, bridge, addresses: interfaceTexts(addresses), mac: before?.mac });
  if (bridge === undefined && before?.bridge !== undefined) await rejoinBridge(name, before.bridge, warn);
}

/** `10.7.0.1/24` */
export const interfaceTexts = (addresses: readonly InterfaceAddress[]): string[] =>
  addresses.map(({ text, length }) => `${text}/${length}`);

/** The MAC that the others know our device of this family by, six bytes. */
export function macOf({ macs }: Pick<Membership, 'macs'>, family: 4 | 6 | undefined): Uint8Array | undefined {
  const text = family && macs?.[family];
  return text === undefined ? undefined : parseMac(text).bytes;
}

/** Devices of flannel's vxlan backend that are there already, by network; undefined where there is none. */
export const findVteps = async ({ routing, segments }: Overlay): Promise<(FoundVtep | undefined)[]> =>
  routing === 'vxlan' ? Promise.all(segments.map(({ device, vni }) => findVtep(device, vni))) : [];

export const macsOf = (vteps: readonly (FoundVtep | undefined)[], { segments }: Overlay): MacsByFamily =>
  Object.fromEntries(vteps.flatMap((vtep, network) => (vtep ? [[segments[network].family, vtep.mac]] : [])));

/**
 * Removes devices that a run with another backend left (it was killed) and nobody runs now, and those that flanneld left with an
 * address in our networks: their routes would lead nowhere. Only for a registry that says the backend: there we know that they
 * have no other use.
 */
export async function removeLeftovers(
  { device }: Overlay,
  networks: readonly Cidr[],
  names: readonly string[],
  log: EventLog,
): Promise<void> {
  const { ours, vxlan } = await overlayDevices();
  const inside = ({ addresses }: Link): boolean =>
    addresses.some(({ text }) => networks.some((network) => contains(network, wholeAddress(text))));
  const left = [
    ...ours.filter(({ name }) => (name === device || isVtepName(name)) && isFree(name)),
    ...vxlan.filter((link) => isVtepName(link.name) && inside(link)),
  ];
  for (const { name } of left) {
    if (names.includes(name)) continue;
    log.warn('device_removed', { device: name, reason: 'left by a run with another backend' });
    await removeDevice(name);
  }
}

const wholeAddress = (text: string): Cidr => parsePrefixOf(`${text}/${text.includes(':') ? 128 : 32}`);

/** No weftd runs it. */
function isFree(name: string): boolean {
  try {
    lockDevice(name)();
    return true;
  } catch {
    return false;
  }
}
