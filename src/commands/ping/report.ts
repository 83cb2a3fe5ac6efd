/** What `weft ping` found out, layer by layer; what follows from it, in one line; and both as text. */
import type { Colours } from '../text/output.js';
import { clean } from '../text/table.js';

export interface Echoes {
  readonly sent: number;
  readonly received: number;
  /** Seconds; null: no answer. */
  readonly rtt: { readonly min: number; readonly average: number; readonly max: number } | null;
  /** Why the kernel did not send, as `EPERM: operation not permitted`. */
  readonly refused: string | null;
  /** What routers and hosts said, as `192.0.2.1: host unreachable`; each once. */
  readonly problems: readonly string[];
}

export interface UnderlayReport extends Echoes {
  /** What this host knows that may be why: its interface is down, nobody answers ARP. */
  readonly cause: string | null;
}

export interface PathReport {
  /** Bytes of the largest IP packet that arrives; null: not found out. */
  readonly carries: number | null;
  /** Bytes that weftd reckons with, outer headers and all. */
  readonly reckonedWith: number;
  /** Who said that more is too much. */
  readonly told: string | null;
}

export interface TunnelReport extends Echoes {
  readonly from: string;
  readonly to: string;
  /** The device that the host sends it to; null: no route. */
  readonly routedTo: string | null;
  /** Whether packets of the size that weftd promises pass; `carries`: the largest that does, where they do not. */
  readonly full: { readonly bytes: number; readonly passes: boolean; readonly carries: number | null } | null;
}

/** Counters of this host's weftd while echoes went through the tunnel. */
export interface Meanwhile {
  readonly packetsOut: number;
  readonly packetsIn: number;
  readonly drops: readonly {
    readonly direction: string;
    readonly reason: string;
    readonly packets: number;
    readonly meaning: string;
  }[];
}

export const VERDICTS = ['well', 'loss', 'mtu', 'tunnel', 'unreachable', 'refused', 'untried'] as const;
export type Verdict = (typeof VERDICTS)[number];

export interface Findings {
  readonly peer: string;
  readonly address: string;
  /** UDP; 0: nothing is encapsulated. */
  readonly port: number;
  readonly ownAddress: string | null;
  readonly interface: string;
  readonly devices: readonly string[];
  /** Bytes that the device's MTU is smaller than the path's; 0: nothing is encapsulated. */
  readonly overhead: number;
  readonly underlay: UnderlayReport;
  readonly path: PathReport;
  readonly tunnel: readonly TunnelReport[];
  readonly meanwhile: Meanwhile;
  /** What ICMP said of weftd's own datagrams. */
  readonly aboutDatagrams: readonly string[];
}

export interface PingReport extends Findings {
  readonly verdict: Verdict;
  readonly text: string;
}

/** The first thing that is wrong, from below. `interrupted`: not all of it was tried, so nothing follows. */
export function judged(found: Findings, interrupted = false): PingReport {
  if (interrupted) return { ...found, verdict: 'untried', text: 'interrupted before all was tried' };
  const [verdict, text] =
    nothingAtAll(found) ?? nothingInside(found) ?? narrow(found) ?? lossy(found) ?? allWell(found);
  return { ...found, verdict, text };
}

type Judged = readonly [Verdict, string];

const answers = ({ tunnel }: Findings): boolean => tunnel.some(({ received }) => received > 0);

function nothingAtAll(found: Findings): Judged | undefined {
  const { underlay, address } = found;
  if (underlay.received > 0 || answers(found)) return undefined;
  if (underlay.refused !== null) {
    const why = underlay.refused.startsWith('EPERM')
      ? 'a firewall of this host drops it (OUTPUT)'
      : (underlay.cause ?? 'is there a route?');
    return ['refused', `this host does not send to ${address} (${underlay.refused}): ${why}`];
  }
  const why = underlay.cause ?? underlay.problems[0] ?? 'is it up, and does a firewall let ICMP echo pass?';
  return ['unreachable', `${address} does not answer: ${why}`];
}

function nothingInside(found: Findings): Judged | undefined {
  const { tunnel, peer } = found;
  const failing = tunnel.filter(({ received }) => received === 0);
  if (failing.length === 0) return undefined;
  const [first] = failing;
  const what = failing.length === tunnel.length ? 'nothing passes the tunnel' : `${first.to} is not reached`;
  return ['tunnel', `${peer} answers at ${found.address}, but ${what}: ${whyNothing(found, first)}`];
}

function whyNothing(found: Findings, { from, to, routedTo, refused, sent, problems }: TunnelReport): string {
  const { devices, port, meanwhile, aboutDatagrams, overhead } = found;
  if (routedTo === null) return `this host has no route to ${to}`;
  if (overhead > 0 && !devices.includes(routedTo))
    return `this host sends ${to} to ${routedTo}, not to weft's ${devices.join(', ')}: ip route get ${to} from ${from}`;
  if (refused !== null) return `this host does not send to ${to} (${refused}): a firewall here?`;
  const dropped = meanwhile.drops.find(({ packets }) => packets * 2 >= sent);
  if (dropped) {
    const { direction, reason, meaning } = dropped;
    return `weftd here drops it: ${direction} ${reason} (${meaning})`;
  }
  if (aboutDatagrams.length > 0) return `UDP port ${port} is refused (${aboutDatagrams[0]}): does weftd run there?`;
  if (problems.length > 0) return problems[0];
  if (overhead === 0) return `does the peer route back, and answer ICMP echo at ${to}?`;
  if (meanwhile.packetsOut * 2 < sent) return `this host's echoes do not come to weftd: a firewall here (OUTPUT)?`;
  if (meanwhile.packetsIn * 2 >= sent)
    return `packets come back through the tunnel, but no answer to the echo: a firewall here (INPUT), or there?`;
  return `is UDP port ${port} open both ways, and weftd running there?`;
}

function narrow(found: Findings): Judged | undefined {
  const { path, tunnel, address, overhead } = found;
  if (path.carries !== null && path.carries < path.reckonedWith) {
    const remedy = overhead === 0 ? '' : `: set --mtu ${path.carries - overhead} on both hosts,`;
    return [
      'mtu',
      `the path to ${address} carries ${path.carries} bytes, weft reckons with ${path.reckonedWith}: larger packets are lost${remedy} or let ICMP "too big" messages pass`,
    ];
  }
  const short = tunnel.find(({ full }) => full !== null && !full.passes);
  if (!short?.full) return undefined;
  const { to, full } = short;
  const most = full.carries === null ? 'less' : `only ${full.carries}`;
  return [
    'mtu',
    `packets of ${full.bytes} bytes do not get to ${to} through the tunnel, ${most}: set a smaller --mtu on both hosts`,
  ];
}

function lossy({ underlay, tunnel }: Findings): Judged | undefined {
  const rounds = [...(underlay.received > 0 ? [{ ...underlay, to: 'the underlay' }] : []), ...tunnel];
  const lost = rounds.filter(({ sent, received }) => received < sent);
  if (lost.length === 0) return undefined;
  const told = lost.map(({ sent, received, to }) => `${sent - received} of ${sent} lost (${to})`);
  return ['loss', `${told.join(', ')}: a bad link or a full queue on the way? weft drops tells what was lost here`];
}

function allWell(found: Findings): Judged {
  const { underlay, peer, tunnel, path } = found;
  if (tunnel.length === 0 && found.port === 0)
    return ['untried', 'the underlay is well; with this backend there is no tunnel, the kernel routes (weft routes)'];
  if (tunnel.length === 0)
    return [
      'untried',
      `the underlay is well; the tunnel was not tried: no overlay address here or at ${peer} is known`,
    ];
  const sizes = tunnel.flatMap(({ full }) => (full ? [full.bytes] : []));
  const carried = sizes.length > 0 ? `, packets of ${Math.min(...sizes)} bytes too` : '';
  const silent = underlay.received > 0 ? '' : '; its underlay address does not answer ICMP echo';
  const lower = path.told === null ? '' : `; the path carries ${path.carries} bytes (${path.told}), and weft knows it`;
  return ['well', `all well: ${peer} answers through the tunnel${carried}${silent}${lower}`];
}

/** Lines for people: one a layer, the verdict last. */
export function pingText(report: PingReport, colours: Colours): string {
  const { peer, address, port, ownAddress, underlay, path, tunnel, verdict, text } = report;
  const at = port === 0 ? address : `${address} port ${port}`;
  const from = ownAddress === null ? '' : `from ${ownAddress} `;
  const lines = [
    `${'peer'.padEnd(9)}  ${peer}: ${at}, ${from}on ${report.interface}`,
    `${'underlay'.padEnd(9)}  ${echoesText(underlay)}`,
    `${'path MTU'.padEnd(9)}  ${path.carries ?? 'not found out'}, weft reckons with ${path.reckonedWith}`,
    ...tunnel.flatMap((one) => [
      `${'tunnel'.padEnd(9)}  ${one.from} to ${one.to}  ${echoesText(one)}`,
      ...(one.full ? [`${' '.repeat(9)}  ${fullText(one.full)}`] : []),
    ]),
  ];
  const colour = verdict === 'well' ? colours.green : verdict === 'untried' ? colours.yellow : colours.red;
  return `${lines.map(clean).join('\n')}\n${colour(clean(text))}\n`;
}

function echoesText({ sent, received, rtt, refused, problems }: Echoes): string {
  const took = rtt ? `, round trip ${ms(rtt.min)} / ${ms(rtt.average)} / ${ms(rtt.max)} ms` : '';
  const why = [...(refused === null ? [] : [refused]), ...problems].slice(0, 3);
  return `${received} of ${sent} answered${took}${why.length > 0 ? ` (${why.join('; ')})` : ''}`;
}

const ms = (seconds: number): string => (seconds * 1000).toFixed(seconds < 0.01 ? 3 : 1);

function fullText({ bytes, passes, carries }: { bytes: number; passes: boolean; carries: number | null }): string {
  if (passes) return `packets of ${bytes} bytes pass`;
  return `packets of ${bytes} bytes do not pass${carries === null ? '' : `, of ${carries} do`}`;
}
