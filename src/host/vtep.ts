/**
 * The device of a VXLAN network that a start finds: our own TAP of before, or the kernel's vxlan device that flanneld leaves when
 * it is stopped. Its MAC is what other hosts know this one by, so it is kept; the kernel's device itself holds the UDP port, and
 * has to go.
 */
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';
import { ipRead } from './ip.js';

export interface FoundVtep {
  readonly name: string;
  /** Canonical text. */
  readonly mac: string;
  /** It is a vxlan device of the kernel. */
  readonly kernel: boolean;
}

const schema = v.array(
  v.object({
    address: v.optional(v.string(), ''),
    linkinfo: v.optional(
      v.object({
        info_kind: v.optional(v.string()),
        info_data: v.optional(v.object({ id: v.fallback(v.optional(v.number()), undefined) }), {}),
      }),
    ),
  }),
);

/** undefined: there is no device of that name. Throws a SetupError when it is the kernel's and of another VNI. */
export async function findVtep(name: string, vni: number): Promise<FoundVtep | undefined> {
  const [link] = (await ipRead(schema, ['-d', 'link', 'show', 'dev', name])) ?? [];
  if (!link) return undefined;
  const kernel = link.linkinfo?.info_kind === 'vxlan';
  const id = link.linkinfo?.info_data.id;
  if (kernel && id !== vni) {
    throw new SetupError(
      'DEVICE_TAKEN',
      `device ${name} is a vxlan device of VNI ${id}, not ${vni}: remove it (ip link del ${name})`,
    );
  }
  return { name, mac: link.address.toLowerCase(), kernel };
}
