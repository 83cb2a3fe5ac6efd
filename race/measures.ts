/**
 * The measures. Each runs once, between the client of host a and the client of host b, over whatever subject is in use.
 */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { collect, type Finished, type Host, type Namespace, NETWORK4 } from './hosts.js';
import type { Answers } from './rr.js';

const IPERF_PORT = 5201;
const RR_PORT = 5301;
/** Slow start, left out of the figure. */
const OMIT_SECONDS = 1;

export type CongestionControl = 'cubic' | 'bbr';

/**
 * One congestion control for all TCP of these hosts' clients. It is set on a route of theirs to the overlay, because the
 * sysctl of a namespace takes only what the whole machine allows to everybody. Whatever other way they had stays beside it.
 */
export function setCongestionControl(hosts: readonly Host[], name: CongestionControl): void {
  for (const { client, number } of hosts) {
    client.ip(`route replace ${NETWORK4} via 10.5.${number}.1 congctl ${name}`);
  }
}

/** Argument: an address that may have been reached before. */
const FORGET =
  'route=$(ip route get fibmatch "$1") && ip route del $route && ip route add $route && ip tcp_metrics flush';

/**
 * Makes the clients forget what earlier traffic taught their kernels: path MTUs, and TCP's metrics of connections to the
 * same address. Both would carry one subject's properties into the next one's run. A path MTU goes with the route that it
 * was learned on, so that is taken out and put back; `ip route flush cache` and the sysctl for the metrics write to
 * /proc/sys, which containers may only read.
 */
export function forgetPaths([a, ...far]: readonly Host[]): void {
  const forget = (client: Namespace, address: string): string => client.runSync('sh', '-c', FORGET, 'sh', address);
  forget(a.client, far[0].client4);
  for (const client of new Set(far.map((host) => host.client))) forget(client, a.client4);
}

export const congestionControls = (): string[] =>
  readFileSync('/proc/sys/net/ipv4/tcp_available_congestion_control', 'utf8').trim().split(' ');

/** Busy time of the whole machine so far, in ms: everything but idle, iowait and what the hypervisor took. */
function busyMs(): number {
  const [, ...fields] = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0].split(/\s+/);
  const [user, nice, system, , , irq, softirq] = fields.map(Number);
  return (user + nice + system + irq + softirq) * 10; // USER_HZ is 100 on every Linux
}

interface Flow {
  readonly gbits: number;
  /** All that was carried, the omitted second included. */
  readonly carriedGbit: number;
  readonly congestionControl: string;
}

interface IperfReport {
  readonly error?: string;
  readonly intervals: readonly { readonly sum: { readonly bytes: number } }[];
  readonly end: {
    readonly sum_received: { readonly bits_per_second: number };
    readonly sender_tcp_congestion?: string;
  };
}

export interface BulkOptions {
  readonly seconds: number;
  readonly flows?: number;
  readonly congestionControl: CongestionControl;
  /** Also the other way, at the same time. */
  readonly both?: boolean;
}

/** Waits on standard input for its start: what it takes to get a process going somewhere is no subject's work. */
const WHEN_TOLD = ['-c', 'echo ready; read -r _; exec "$@"', 'sh'];

/** One iperf3 run with a server of its own, so that nothing is left of a run that went wrong. */
class Iperf {
  readonly #server: ChildProcess;
  readonly #client: ChildProcess;
  readonly #report: Promise<Finished>;
  readonly #ready: Promise<unknown>;

  constructor(from: Namespace, to: Namespace, address: string, port: number, { seconds, ...options }: BulkOptions) {
    this.#server = to.spawn('iperf3', ['-s', '-1', '-p', `${port}`, '--forceflush'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const command = ['iperf3', '-c', address, '-p', `${port}`, '-J', '-O', `${OMIT_SECONDS}`, '-t', `${seconds}`];
    command.push('-P', `${options.flows ?? 1}`, '-C', options.congestionControl);
    // It has no limit of its own: where a subject dies under way, TCP goes on trying for a quarter of an hour.
    const timeout = Math.round((OMIT_SECONDS + seconds) * 1000) + 20_000;
    this.#client = from.spawn('sh', [...WHEN_TOLD, ...command], { stdio: 'pipe', timeout });
    this.#client.stdin!.on('error', () => {}); // it has ended, as its report says
    this.#ready = Promise.all([firstOutput(this.#server), firstOutput(this.#client)]);
    this.#report = collect(this.#client, 'iperf3');
    this.#report.catch(() => {}); // until `run` asks for it
  }

  /** Resolves when both ends wait. */
  async ready(): Promise<void> {
    await this.#ready;
  }

  async run(): Promise<Flow> {
    this.#client.stdin!.end('\n');
    const { stdout, stderr } = await this.#report;
    let report: IperfReport;
    try {
      report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as IperfReport;
    } catch {
      throw new Error(`iperf3 gave no report: ${stderr.trim().split('\n')[0]}`);
    }
    if (report.error) throw new Error(`iperf3: ${report.error}`);
    return {
      gbits: report.end.sum_received.bits_per_second / 1e9,
      carriedGbit: report.intervals.reduce((sum, interval) => sum + interval.sum.bytes, 0) * 8e-9,
      congestionControl: report.end.sender_tcp_congestion ?? 'unknown',
    };
  }

  end(): void {
    for (const child of [this.#server, this.#client]) child.kill('SIGKILL');
  }
}

/** Resolves once a process has said something or has ended, or after five seconds: what is wrong shows soon enough. */
async function firstOutput(child: ChildProcess): Promise<void> {
  const options = { signal: AbortSignal.timeout(5000) };
  await Promise.race([once(child.stdout!, 'data', options), once(child, 'close', options)]).catch(() => {});
}

export interface Bulk {
  /** Gbit/s of TCP payload received, both ways together. */
  readonly gbits: number;
  /** Busy milliseconds of all processors for each Gbit carried. */
  readonly cpuMsPerGbit: number;
}

export async function bulk(a: Host, b: Host, options: BulkOptions): Promise<Bulk> {
  const runs: Iperf[] = [];
  try {
    runs.push(new Iperf(a.client, b.client, b.client4, IPERF_PORT, options));
    if (options.both) runs.push(new Iperf(b.client, a.client, a.client4, IPERF_PORT + 1, options));
    for (const run of runs) await run.ready();
    const before = busyMs();
    const settled = await Promise.allSettled(runs.map((run) => run.run()));
    return sumUp(settled, busyMs() - before, options.congestionControl);
  } finally {
    for (const run of runs) run.end();
  }
}

function sumUp(settled: readonly PromiseSettledResult<Flow>[], busy: number, wanted: CongestionControl): Bulk {
  const flows = settled.map((one) => {
    if (one.status === 'rejected') throw one.reason;
    return one.value;
  });
  for (const { congestionControl } of flows) {
    if (congestionControl !== wanted) throw new Error(`iperf3 used ${congestionControl}, not ${wanted}`);
  }
  const sum = (of: (flow: Flow) => number): number => flows.reduce((total, flow) => total + of(flow), 0);
  return { gbits: sum((flow) => flow.gbits), cpuMsPerGbit: busy / sum((flow) => flow.carriedGbit) };
}

/** Shows what a command says when it has ended: 500 lines a second would wake whoever reads them while it measures. */
const SHOWN_AFTERWARDS = 'out=$(mktemp) && trap "rm -f $out" EXIT && "$@" >"$out"; code=$?; cat "$out"; exit $code';

/** Median round trip in microseconds, of a ping every 2 ms. */
export async function ping(a: Host, b: Host, seconds: number): Promise<number> {
  const count = Math.round(seconds * 500);
  const command = ['ping', '-n', '-i', '0.002', '-c', `${count}`, '-W', '1', b.client4];
  const { stdout } = await a.client.run('sh', ['-c', SHOWN_AFTERWARDS, 'sh', ...command]);
  const times = [...stdout.matchAll(/time=([\d.]+) ms/g)].map((match) => Number(match[1]) * 1000);
  if (times.length < count * 0.9) throw new Error(`only ${times.length} of ${count} pings were answered`);
  return median(times);
}

/** The first and the last processor that this process may use. */
function twoProcessors(): [string, string] {
  const status = readFileSync('/proc/self/status', 'utf8');
  const numbers = /Cpus_allowed_list:\s*(\S+)/.exec(status)?.[1].split(/[,-]/) ?? ['0'];
  return [numbers[0], numbers.at(-1) ?? numbers[0]];
}

/**
 * One byte there and back over TCP, one at a time. Client and server are pinned to different processors: they stand for
 * two machines. Left alone, the scheduler puts both on one for some subjects and not for others, which is 25 us against
 * 70 and says nothing about the subject.
 */
export async function requestResponse(a: Host, b: Host, seconds: number): Promise<Answers> {
  const program = fileURLToPath(new URL('rr.js', import.meta.url));
  const [ours, theirs] = twoProcessors();
  const server = b.client.spawn('taskset', ['-c', theirs, process.execPath, program, 'serve', `${RR_PORT}`], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  try {
    await firstOutput(server);
    const args = [program, 'ask', b.client4, `${RR_PORT}`, `${seconds}`];
    const { stdout, stderr } = await a.client.run('taskset', ['-c', ours, process.execPath, ...args], {
      timeout: Math.round(seconds * 1000) + 10_000,
    });
    if (!stdout) throw new Error(`no answers: ${stderr.trim().split('\n').at(-1)}`);
    return JSON.parse(stdout) as Answers;
  } finally {
    server.kill('SIGTERM');
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((x, y) => x - y);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
