/**
 * weft ping: can a peer be reached, and how large may packets be? From below: echoes to its underlay address, the largest that gets
 * there, then echoes through the tunnel. So a host that is away, a blocked UDP port and a narrow path look different.
 *
 * This process sends the echoes by itself, so it has to be in the daemon's network namespace.
 */
import type { Command } from 'commander';
import { parseAddress } from '../control/cidr.js';
import { networkNamespace } from '../host/network-namespace.js';
import type { DropsAnswer, TargetAnswer } from '../inspect/protocol.js';
import { SetupError } from '../io/setup-error.js';
import type { Invocation, WeftCommand } from './command.js';
import type { DaemonClient } from './daemon/client.js';
import type { Largest, Prober, Problem, Round, SearchOptions } from './ping/probe.js';
import {
  type Echoes,
  type Findings,
  judged,
  type Meanwhile,
  type PathReport,
  pingText,
  type TunnelReport,
} from './ping/report.js';
import { wholeNumber } from './text/arguments.js';
import { numberOf } from './text/number.js';

interface Options {
  readonly count: number;
  readonly interval: number;
  readonly wait: number;
}

export const ping: WeftCommand<Options> = {
  name: 'ping',
  summary: 'whether a peer can be reached, and how large packets may be',
  description:
    'Echoes to its underlay address, the largest packet that gets there, then echoes through the tunnel; the last line says what is wrong, and the exit code is 1 then.',
  examples: `
  # weft ping b                          the peer by its name
  # weft ping 192.168.77.2               by its underlay address
  # weft ping 10.5.2.7                   or by an address behind it
  # weft ping -c 100 -i 0.02 b           is anything lost?
  # weft ping -j b | jq .verdict
`,
  completes: 'peers',
  define(command: Command): void {
    command
      .argument('<peer>', 'name of a peer, or an address of it')
      .option('-c, --count <number>', 'echoes in each layer', (text: string) => wholeNumber(text, 1, 100_000), 5)
      .option('-i, --interval <seconds>', 'time from one to the next', seconds('--interval', 0.001), 0.2)
      .option('-W, --wait <seconds>', 'how long the last answer may take', seconds('--wait', 0.01), 1);
  },
  run: probe,
};

const seconds =
  (flag: string, least: number) =>
  (text: string): number =>
    numberOf(flag, text, least, 60);

/** Where three in ten packets are lost each way, one size in a thousand is taken for too large. */
const TRIES = { well: 3, lossy: 10 };
/** The smallest echoes: what ping(8) sends. */
const SMALL = { 4: 84, 6: 104 } as const;
/** Milliseconds until counters are there, and how long weftd may take to learn of a smaller path. */
const SETTLED = 150;
const LEARNED_WITHIN = 3000;

/** What all parts need. */
interface Run {
  readonly daemon: DaemonClient;
  readonly peer: string;
  readonly options: Options;
  readonly signal: AbortSignal;
  readonly target: TargetAnswer;
}

/** Opens what sends echoes to an address, from one of ours. */
type Opener = (to: string, from: string | null) => Prober;

async function probe({ args, options, json, out, signal, daemon: find }: Invocation<Options>): Promise<void> {
  const daemon = await find();
  const [peer] = args;
  const target = await daemon.get('target', { peer });
  await checkNamespace(daemon, target);
  // Loaded here: no other command has to carry native code.
  const { Prober } = await import('./ping/probe.js');
  const open: Prober[] = [];
  const opener: Opener = (to, from) => {
    const made = new Prober(parseAddress(to), from === null ? undefined : parseAddress(from));
    open.push(made);
    return made;
  };
  try {
    const found = await findings({ daemon, peer, options, signal, target }, opener);
    const report = judged(found, signal.aborted);
    if (json) out.json(report);
    else out.print(pingText(report, out.colours));
    if (signal.aborted || (report.verdict !== 'well' && report.verdict !== 'untried')) process.exitCode = 1;
  } finally {
    for (const one of open) one.close();
  }
}

/** The underlay, the path, the tunnel, in this order. */
async function findings(run: Run, opener: Opener): Promise<Findings> {
  const { target, signal } = run;
  const underlay = opener(target.address, target.ownAddress);
  const round = await underlay.round(roundOptions(run, target.address));
  const carried = await carries(run, underlay, round);
  const before = await counts(run);
  const tunnel: TunnelReport[] = [];
  for (const { from, to } of target.inner) {
    if (!signal.aborted) tunnel.push(await throughTunnel(run, from, to, opener));
  }
  await sleep(SETTLED);
  return {
    peer: target.name,
    address: target.address,
    port: target.port,
    ownAddress: target.ownAddress,
    interface: target.interface,
    devices: target.devices,
    overhead: target.overhead,
    underlay: { ...echoes(round), cause: round.rtts.length > 0 ? null : await causeOf(target) },
    path: await pathReport(run, carried),
    tunnel,
    meanwhile: difference(before, await counts(run)),
    aboutDatagrams: unique(underlay.aboutUdp(target.port).map(problemText)),
  };
}

async function checkNamespace(daemon: DaemonClient, { networkNamespace: theirs }: TargetAnswer): Promise<void> {
  if (theirs === networkNamespace()) return;
  const { pid } = await daemon.get('status');
  throw new SetupError(
    'OTHER_NAMESPACE',
    `weftd (pid ${pid}) is in another network namespace: nsenter --net=/proc/${pid}/ns/net weft ping …`,
  );
}

const familyOf = (address: string): 4 | 6 => (address.includes(':') ? 6 : 4);

const roundOptions = ({ options, signal }: Run, to: string) => ({
  count: options.count,
  size: SMALL[familyOf(to)],
  interval: options.interval * 1000,
  wait: options.wait * 1000,
  signal,
});

/**
 * How long to wait for the answer to a large packet: some round trips, as they were. And how many times to try before it counts as too
 * large: often, where small ones were lost as well.
 */
function patience({ options, signal }: Run, { sent, rtts }: Round): SearchOptions {
  const wait = Math.min(options.wait * 1000, 40 + 4 * Math.max(0, ...rtts));
  return { wait, tries: rtts.length < sent ? TRIES.lossy : TRIES.well, signal };
}

/** Bytes that weftd believes fit on the way, outer headers and all. */
const reckoned = ({ overhead, pathMtu }: TargetAnswer): number => pathMtu + overhead;

/** The largest packet that gets to the peer's underlay address; nothing where that does not answer at all. */
async function carries(run: Run, prober: Prober, round: Round): Promise<Largest> {
  const { address, underlayMtu } = run.target;
  if (round.rtts.length === 0) return { bytes: undefined, told: undefined };
  const least = SMALL[familyOf(address)];
  const wanted = Math.min(reckoned(run.target), underlayMtu);
  const found = await prober.largest(least, Math.max(least, wanted), patience(run, round));
  if (found.bytes !== wanted || underlayMtu <= wanted) return found;
  // All that weft asks for; perhaps there is more.
  const most = await prober.round({ ...roundOptions(run, address), count: 1, size: underlayMtu, first: true });
  return most.rtts.length > 0 ? { bytes: underlayMtu, told: undefined } : found;
}

/** Where somebody said that the path is smaller, weftd learns it from its own packets: it gets the time for that. */
async function pathReport(run: Run, { bytes, told }: Largest): Promise<PathReport> {
  const deadline = performance.now() + LEARNED_WITHIN;
  let { target } = run;
  const over = (): boolean => told === undefined || bytes === undefined || reckoned(target) <= bytes;
  while (!over() && performance.now() < deadline && !run.signal.aborted) {
    await sleep(SETTLED);
    target = await run.daemon.get('target', { peer: run.peer });
  }
  return {
    carries: bytes ?? null,
    reckonedWith: reckoned(target),
    told: told === undefined ? null : problemText(told),
  };
}

/** Echoes to an overlay address of the peer, small ones and then one as large as weftd says. */
async function throughTunnel(run: Run, from: string, to: string, opener: Opener): Promise<TunnelReport> {
  const { wayTo } = await import('./ping/host.js');
  const probing = opener(to, from);
  const way = await wayTo(to, from);
  const round = await probing.round(roundOptions(run, to));
  const full = round.rtts.length === 0 ? null : await fullSize(run, probing, to, round, way?.device);
  return { from, to, routedTo: way?.device ?? null, ...echoes(round), full };
}

async function fullSize(
  run: Run,
  prober: Prober,
  to: string,
  round: Round,
  device: string | undefined,
): Promise<TunnelReport['full']> {
  const { linkOf } = await import('./ping/host.js');
  const { pathMtu } = run.target;
  const link = device === undefined ? undefined : await linkOf(device);
  const least = SMALL[familyOf(to)];
  const bytes = Math.max(least, Math.min(pathMtu, link?.mtu ?? pathMtu));
  const found = await prober.largest(least, bytes, patience(run, round));
  if (found.bytes === bytes) return { bytes, passes: true, carries: null };
  // Whoever said it was heard by the kernel too, and what is larger is fragmented from now on.
  if (found.told && found.bytes === found.told.mtu) return { bytes: found.bytes ?? bytes, passes: true, carries: null };
  return { bytes, passes: false, carries: found.bytes ?? null };
}

/** Why the underlay may be silent, as far as this host knows. */
async function causeOf({ address, ownAddress, interface: name }: TargetAnswer): Promise<string | null> {
  const { linkOf, neighbourAnswers, wayTo } = await import('./ping/host.js');
  const link = await linkOf(name);
  if (!link) return `there is no interface ${name}`;
  if (link.trouble !== undefined) return `${name} ${link.trouble}`;
  const way = await wayTo(address, ownAddress ?? undefined);
  if (way?.device === undefined) return 'this host has no route to it';
  const hop = way.gateway ?? address;
  const asked = familyOf(hop) === 4 ? 'ARP' : 'neighbour discovery';
  const answered = await neighbourAnswers(hop, way.device);
  if (answered === false)
    return `${hop === address ? 'no' : `the router ${hop} gives no`} ${asked} answer on ${way.device}: is it up, and on this link?`;
  if (answered && hop === address) return `it answers ${asked} on ${way.device}, but no ICMP echo: a firewall there?`;
  return null;
}

function echoes({ sent, rtts, refused, problems }: Round): Echoes {
  const sum = rtts.reduce((all, one) => all + one, 0);
  const seconds = (ms: number): number => Math.round(ms * 1e3) / 1e6;
  return {
    sent,
    received: rtts.length,
    rtt:
      rtts.length === 0
        ? null
        : {
            min: seconds(Math.min(...rtts)),
            average: seconds(sum / rtts.length),
            max: seconds(Math.max(...rtts)),
          },
    refused,
    problems: unique(problems.map(problemText)),
  };
}

const problemText = ({ from, what }: Problem): string => `${from}: ${what}`;
const unique = (texts: readonly string[]): string[] => [...new Set(texts)];
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

interface Counts {
  readonly target: TargetAnswer;
  readonly drops: DropsAnswer['drops'];
}

async function counts({ daemon, peer }: Run): Promise<Counts> {
  const [target, { drops }] = await Promise.all([daemon.get('target', { peer }), daemon.get('drops')]);
  return { target, drops };
}

/** What moved; of the drops those that did, the most first. */
function difference(before: Counts, now: Counts): Meanwhile {
  const were = new Map(before.drops.map((drop) => [keyOf(drop), drop.packets]));
  const drops = now.drops
    .map((drop) => ({
      direction: drop.direction,
      reason: drop.reason,
      packets: drop.packets - (were.get(keyOf(drop)) ?? 0),
      meaning: drop.meaning,
    }))
    .filter(({ packets }) => packets > 0)
    .sort((a, b) => b.packets - a.packets);
  return {
    packetsOut: now.target.traffic.packetsOut - before.target.traffic.packetsOut,
    packetsIn: now.target.traffic.packetsIn - before.target.traffic.packetsIn,
    drops,
  };
}

const keyOf = ({ direction, reason, device }: DropsAnswer['drops'][number]): string =>
  `${direction} ${reason} ${device ?? ''}`;
