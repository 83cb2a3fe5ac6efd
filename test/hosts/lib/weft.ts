/** A real weftd in a host of the lab, and its counters as an operator would read them: from /metrics. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import {
  type Daemon,
  type Host,
  hostsImpossible,
  type Lab,
  NETWORK4,
  NETWORK6,
  peersFile,
  sleep,
} from '../../../race/hosts.js';

export const DAEMON = fileURLToPath(new URL('../../../src/main.js', import.meta.url));
/** Where every daemon of these tests serves its metrics, each in its own namespace. */
export const METRICS = '127.0.0.1:9469';

/** Why these tests can't run here, for a SKIPPED line: no root, no namespaces, or one of `commands` is missing. */
export function impossible(...commands: string[]): string | undefined {
  const missing = ['bash', 'ping', ...commands].filter((command) => spawnSync('which', [command]).status !== 0);
  return hostsImpossible() ?? (missing.length > 0 ? `needs the commands ${missing.join(', ')}` : undefined);
}

/** True in `npm run test:full`. */
export const FULL = process.env.WEFT_TEST_FULL === '1';

/** What helpers need of a tap test; the root and its subtests both have it. */
export type Assertions = Pick<Test, 'equal' | 'ok' | 'notOk' | 'same' | 'comment' | 'match'>;

export interface WeftOptions {
  /** Path of the peers file; several daemons may read one. */
  readonly peers: string;
  /** What peers send to; default: the host's IPv4 underlay address. */
  readonly publicIp?: string;
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** For node itself. */
  readonly nodeArgs?: readonly string[];
  /** The daemon's program; default: the one that was built. */
  readonly program?: string;
}

/** Counters by `outbound.device_pulled`, and the sums of their roles. */
export interface Counters {
  readonly values: ReadonlyMap<string, number>;
  readonly drops: Readonly<Record<string, number>>;
  readonly in: number;
  readonly made: number;
  readonly sent: number;
  readonly consumed: number;
  readonly dropped: number;
  get(name: string): number;
}

export class Weft {
  readonly host: Host;
  readonly options: WeftOptions;
  readonly daemon: Daemon;

  private constructor(host: Host, options: WeftOptions, daemon: Daemon) {
    this.host = host;
    this.options = options;
    this.daemon = daemon;
  }

  /** Starts weftd on `host`, without waiting. */
  static spawn(host: Host, options: WeftOptions, name = `weftd-${host.letter}-${++starts}`): Weft {
    const args = ['--network', `${NETWORK4},${NETWORK6}`, '--subnet', `${host.subnet4},${host.subnet6}`];
    args.push('--iface', 'eth0', '--public-ip', options.publicIp ?? host.underlay4, '--peers', options.peers);
    args.push('--metrics-address', METRICS, ...(options.args ?? []));
    const node = [...(options.nodeArgs ?? []), options.program ?? DAEMON, ...args];
    const env = { ...process.env, ...options.env };
    return new Weft(host, options, host.ns.start(name, process.execPath, node, { env }));
  }

  /** Starts weftd on `host` with these arguments and no others, without waiting. */
  static spawnBare(host: Host, args: readonly string[]): Weft {
    const daemon = host.ns.start(`weftd-${host.letter}-${++starts}`, process.execPath, [DAEMON, ...args]);
    return new Weft(host, { peers: '' }, daemon);
  }

  /** A daemon that somebody else started on `host`. */
  static of(host: Host, daemon: Daemon): Weft {
    return new Weft(host, { peers: '' }, daemon);
  }

  /** Starts weftd on `host` and waits until it forwards. */
  static async start(host: Host, options: WeftOptions): Promise<Weft> {
    const weft = Weft.spawn(host, options);
    await weft.ready();
    return weft;
  }

  ready(timeoutMs = 20_000): Promise<void> {
    return this.daemon.ready('"event":"ready"', timeoutMs);
  }

  /** The log's lines as objects; what is no JSON is left out. */
  events(event?: string): Record<string, unknown>[] {
    return this.daemon
      .log()
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter((line) => event === undefined || line.event === event);
  }

  /** Resolves to the first event of that name that `fits`; rejects after `timeoutMs`. */
  async event(
    name: string,
    fits: (line: Record<string, unknown>) => boolean = () => true,
    timeoutMs = 15_000,
  ): Promise<Record<string, unknown>> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const found = this.events(name).find(fits);
      if (found) return found;
      if (Date.now() > deadline) throw new Error(`${this.daemon.name} logged no ${name} in ${timeoutMs / 1000} s`);
      await sleep(20);
    }
  }

  /** The text of /metrics; empty if nobody answers. By bash alone: a scrape must not cost as much as what it looks at. */
  async metrics(): Promise<string> {
    const [address, port] = METRICS.split(':');
    const script = `exec 3<>/dev/tcp/${address}/${port} && printf 'GET /metrics HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3 && cat <&3`;
    return (await this.host.ns.run('bash', ['-c', script])).stdout;
  }

  /** The value of one sample, by name and labels as they are printed; undefined if there is none. */
  async sample(nameAndLabels: string): Promise<number | undefined> {
    const line = (await this.metrics()).split('\n').find((text) => text.startsWith(`${nameAndLabels} `));
    return line === undefined ? undefined : Number(line.slice(nameAndLabels.length + 1));
  }

  async counters(): Promise<Counters> {
    return parseCounters(await this.metrics());
  }

  /** The counters once nothing has moved for a moment. */
  async idle(timeoutMs = 20_000): Promise<Counters> {
    const deadline = Date.now() + timeoutMs;
    for (let before = await this.counters(); ; ) {
      await sleep(120);
      const now = await this.counters();
      if (now.in > 0 && now.in === before.in && now.sent === before.sent && balance(now) === 0) return now;
      if (Date.now() > deadline) return now;
      before = now;
    }
  }

  stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number> {
    return this.daemon.stop(signal);
  }
}

let starts = 0;

const balance = (c: Counters): number => c.in + c.made - c.sent - c.consumed - c.dropped;

function parseCounters(text: string): Counters {
  const values = new Map<string, number>();
  const drops: Record<string, number> = {};
  const sums = { in: 0, made: 0, sent: 0, consumed: 0, dropped: 0 };
  for (const line of text.split('\n')) {
    const match = /^weft_(packets|drops|notes|bytes)_total\{([^}]*)\} (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...match[2].matchAll(/(\w+)="([^"]*)"/g)].map((one) => [one[1], one[2]]));
    const name = `${labels.direction}.${labels.stage ?? labels.reason ?? labels.note}`;
    const value = Number(match[3]);
    values.set(name, value);
    if (match[1] === 'drops') {
      if (value !== 0) drops[name] = value;
      sums.dropped += value;
    }
    const role = labels.role;
    if (role === 'in' || role === 'made' || role === 'sent' || role === 'consumed') sums[role] += value;
  }
  return {
    values,
    drops,
    ...sums,
    get(name) {
      const value = values.get(name);
      if (value === undefined) throw new Error(`/metrics has no ${name}`);
      return value;
    },
  };
}

/** A peers file of its own for a lab, in which every host has the options of `extra`. Returns its path. */
export function writePeers(
  lab: Lab,
  hosts: readonly Host[],
  options: { readonly family?: 4 | 6; readonly name?: string; readonly extra?: Readonly<Record<string, unknown>> } = {},
): string {
  const path = join(lab.dir, options.name ?? 'peers.json');
  const file = JSON.parse(peersFile(hosts, options.family ?? 4)) as { peers: Record<string, unknown>[] };
  const peers = file.peers.map((peer) => ({ ...peer, ...options.extra }));
  writeFileSync(path, JSON.stringify({ peers }));
  return path;
}

const NO_ROUTE = 'outbound.no_route';
/** More than the kernel sends by itself, in the time of a test. */
const MOST_REPORTS = 8;

/**
 * A kernel that forwards IPv6 reports its multicast groups on every device (RFC 3810), and the overlay carries no multicast:
 * these end as no route, without an answer.
 */
const hostsMulticast = (now: Counters, expected: number): number =>
  Math.max(0, Math.min((now.drops[NO_ROUTE] ?? 0) - expected, now.get('outbound.icmp_forbidden'), MOST_REPORTS));

/**
 * Once idle: in + made = sent + consumed + dropped on every daemon, no drop but those named in `expected` (a number: exactly
 * so many; true: any), and no address that a checked build complained about.
 */
export async function assertConserved(
  t: Assertions,
  wefts: readonly Weft[],
  message: string,
  expected: Readonly<Record<string, number | true>> = {},
): Promise<Counters[]> {
  const all: Counters[] = [];
  for (const weft of wefts) {
    const now = await weft.idle();
    const { in: into, made, sent, consumed, dropped } = now;
    const unexpected = Object.fromEntries(Object.entries(now.drops).filter(([name]) => expected[name] !== true));
    const numbers = Object.fromEntries(Object.entries(expected).filter(([, value]) => value !== true && value !== 0));
    const reports = hostsMulticast(now, numbers[NO_ROUTE] === undefined ? 0 : Number(numbers[NO_ROUTE]));
    unexpected[NO_ROUTE] -= reports;
    if (!unexpected[NO_ROUTE]) delete unexpected[NO_ROUTE];
    t.ok(into > 0, `${message}: ${weft.host.letter} carried something`);
    t.equal(
      into + made,
      sent + consumed + dropped,
      `${message}: ${weft.host.letter}: in + made = sent + consumed + dropped`,
    );
    t.same(unexpected, numbers, `${message}: ${weft.host.letter} dropped what it had to and nothing else`);
    t.equal(
      await weft.sample('weft_worker_restarts_total'),
      0,
      `${message}: ${weft.host.letter}: its worker never fell over`,
    );
    all.push(now);
  }
  return all;
}

/** What the kernel's or our own batching decides; no packet ends there. */
const BATCHING = new Set(['send_calls', 'messages_sent', 'messages_received']);

/** Counters of one direction that moved from `before` to `now`, bytes and batches left out. */
export function changes(before: Counters, now: Counters, direction: 'outbound' | 'inbound'): Record<string, number> {
  const moved: Record<string, number> = {};
  for (const [name, value] of now.values) {
    const [side, what] = name.split('.');
    const difference = value - (before.values.get(name) ?? 0);
    if (side === direction && difference !== 0 && !BATCHING.has(what) && !what.endsWith('_bytes'))
      moved[name] = difference;
  }
  return moved;
}
