/** What the kernel does without any daemon: plain routes, and its own VXLAN. */
import type { Host } from '../hosts.js';
import { vxlanSegment } from './segment.js';
import type { Subject, SubjectKind } from './subject.js';

/** No overlay: plain routes over the underlay. What bounds every other subject. */
export const directKind: SubjectKind = {
  name: 'direct',
  needs: [],
  make: () => ({
    name: 'direct',
    start: async () => {},
    route: (from, to) => `via ${to.underlay4} dev ${from.underlayInterface}`,
    device: (from) => from.underlayInterface,
  }),
};

/** The kernel's VXLAN with iproute2's defaults (UDP checksums on, learning on). */
export const kernelVxlan = (hosts: readonly Host[], device = 'vxlan0'): Subject =>
  vxlanSegment(hosts, { name: 'kernel-vxlan', vni: 77, port: 4789, subnet: 0, device, weft: () => false });

export const kernelVxlanKind: SubjectKind = {
  name: 'kernel-vxlan',
  needs: [],
  make: (_, hosts) => kernelVxlan(hosts),
};
