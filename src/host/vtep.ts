/**
 * The device of a VXLAN network that a start finds: our own TAP of before, or the kernel's vxlan device that flanneld leaves when
 * it is stopped. Its MAC is what other hosts know this one by, so it is kept; the kernel's device itself holds the UDP port, and
 * has to go.
 */
import { SetupError } from '../io/setup-error.js';
import { readLink } from './links.js';

export interface FoundVtep {
  readonly name: string;
  /** Canonical text. */
  readonly mac: string;
  /** It is a vxlan device of the kernel. */
  readonly kernel: boolean;
}

/** undefined: there is no device of that name. Throws a SetupError when it is the kernel's and of another VNI. */
export async function findVtep(name: string, vni: number): Promise<FoundVtep | undefined> {
  const link = await readLink(name);
  if (!link) return undefined;
  const kernel = link.kind === 'vxlan';
  if (kernel && link.vni !== vni) {
    throw new SetupError(
      'DEVICE_TAKEN',
      `device ${name} is a vxlan device of VNI ${link.vni}, not ${vni}: remove it (ip link del ${name})`,
    );
  }
  return { name, mac: link.mac, kernel };
}
