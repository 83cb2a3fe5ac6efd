/**
 * What is raced: ways for host a to reach the networks behind hosts b, c, … over one underlay. See subjects/ for each.
 *
 * All of them are set up side by side and stay up; `use` switches by routes alone. Each subject is reached by
 * /24 routes, but weft-udp, which installs the overlay's /16 itself and carries what has no more specific route. Idle daemons cost
 * nothing that can be measured. Clients and their links are never touched, except that at a switch they forget learnt path
 * MTUs and TCP metrics: a smaller MTU learnt with one subject would shrink the packets of the next.
 */
import { spawnSync } from 'node:child_process';
import type { Host, Lab } from './hosts.js';
import { fastdKind } from './subjects/fastd.js';
import { directKind, kernelVxlanKind } from './subjects/kernel.js';
import { openvpnKind } from './subjects/openvpn.js';
import { ovsKind } from './subjects/ovs.js';
import type { Program, Subject, SubjectKind } from './subjects/subject.js';
import { tincKind } from './subjects/tinc.js';
import { weftSegmentKinds, weftUdpKind } from './subjects/weft.js';
import { wireguardKind } from './subjects/wireguard-go.js';

export { DAEMON } from './subjects/daemon.js';
export { kernelVxlan } from './subjects/kernel.js';
export { type Subject, use } from './subjects/subject.js';
export { WATCHED, type WatchedName, watched } from './subjects/watched.js';
export { EmbeddedWeftd, embeddedWeft, type WeftOptions, weftUdp } from './subjects/weft.js';

/** In the order in which they take part. */
export const SUBJECTS = [
  'direct',
  'kernel-vxlan',
  'weft-udp',
  'weft-vxlan',
  'weft-to-kernel',
  'kernel-to-weft',
  'fastd',
  'tinc',
  'openvpn',
  'wireguard-go',
  'ovs',
] as const;
export type SubjectName = (typeof SUBJECTS)[number];

const KINDS = new Map<string, SubjectKind>(
  [
    directKind,
    kernelVxlanKind,
    weftUdpKind,
    ...weftSegmentKinds,
    fastdKind,
    tincKind,
    openvpnKind,
    wireguardKind,
    ovsKind,
  ].map((kind) => [kind.name, kind]),
);

/** One subject on these hosts, not yet started. `daemonArgs` are for weftds only. */
export function makeSubject(
  name: SubjectName,
  lab: Lab,
  hosts: readonly Host[],
  daemonArgs: readonly string[],
): Subject {
  return KINDS.get(name)!.make(lab, hosts, daemonArgs);
}

/** Whether a subject can take part here: its version (if it is a program's), or the command that installs what is missing. */
export type Installed = { readonly version: string | undefined } | { readonly missing: string };

export function installed(name: SubjectName): Installed {
  const { needs } = KINDS.get(name)!;
  const said = needs.map(versionOf);
  const missing = needs.filter((_, i) => said[i] === undefined).map((program) => program.package);
  if (missing.length > 0) return { missing: `apt-get install ${[...new Set(missing)].join(' ')}` };
  return { version: said[0] };
}

/** What each of these subjects' programs says of its version, by the subject's name; those without a program are left out. */
export function versions(names: readonly SubjectName[] = SUBJECTS): Record<string, string> {
  const found: Record<string, string> = {};
  for (const name of names) {
    const here = installed(name);
    if ('version' in here && here.version !== undefined) found[name] = here.version;
  }
  return found;
}

/** Its name and version, without what else it says there, or undefined if the program isn't installed. */
function versionOf({ command, version }: Program): string | undefined {
  const done = spawnSync(command, version, { encoding: 'utf8' });
  if (done.error) return undefined;
  const line = `${done.stdout}${done.stderr}`.split('\n')[0].trim();
  return /^.*?\bv?\d+\.?\S*/.exec(line)?.[0] ?? line;
}
