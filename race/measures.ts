/**
 * The measures. Each runs once, between the client of host a and the client of host b, over whatever subject is in use.
 */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type Host, type Namespace, sleep } from './hosts.js';
import type { Answers } from './rr.js';

const IPERF_PORT = 5201;
const RR_PORT = 5301;
/** Slow start, left out of the figure. */
const OMIT_SECONDS = 1;

export type CongestionControl = 'cubic' | 'bbr';

/**
 * One congestion control for all TCP of these hosts' clients. It is set on their route, because the sysctl of a namespace
 * takes only what the whole machine allows to everybody. And no memory of earlier connections to the same address, which
 * would carry what one subject taught the kernel into the next one's run.
 */
export function setCongestionControl(hosts: readonly Host[], name: CongestionControl): void {
  for (const { client, number } of hosts) {
    client.ip(`route replace default via 10.5.${number}.1 congctl ${name}`);
    client.sysctl({ 'net/ipv4/tcp_no_metrics_save': 1 });
  }
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

/** One iperf3 run of `parallel` TCP flows; a server of its own, so that nothing is left of a run that went wrong. */
async function iperf(from: Namespace, to: Namespace, address: string, port: number, options: string[]): Promise<Flow> {
  const server = to.spawn('iperf3', ['-s', '-1', '-p', `${port}`, '--forceflush'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  try {
    await Promise.race([once(server.stdout!, 'data'), sleep(2000)]);
    const args = ['-c', address, '-p', `${port}`, '-J', '-O', `${OMIT_SECONDS}`, ...options];
    const { stdout, stderr } = await from.run('iperf3', args);
    let report: IperfReport;
    try {
      report = JSON.parse(stdout) as IperfReport;
    } catch {
      throw new Error(`iperf3 gave no report: ${stderr.trim().split('\n')[0]}`);
    }
    if (report.error) throw new Error(`iperf3: ${report.error}`);
    return {
      gbits: report.end.sum_received.bits_per_second / 1e9,
      carriedGbit: report.intervals.reduce((sum, interval) => sum + interval.sum.bytes, 0) * 8e-9,
      congestionControl: report.end.sender_tcp_congestion ?? 'unknown',
    };
  } finally {
    server.kill('SIGKILL');
  }
}

export interface BulkOptions {
  readonly seconds: number;
  readonly flows?: number;
  readonly congestionControl: CongestionControl;
  /** Also the other way, at the same time. */
  readonly both?: boolean;
}

export interface Bulk {
  /** Gbit/s of TCP payload received, both ways together. */
  readonly gbits: number;
  /** Busy milliseconds of all processors for each Gbit carried. */
  readonly cpuMsPerGbit: number;
}

export async function bulk(a: Host, b: Host, options: BulkOptions): Promise<Bulk> {
  const args = ['-t', `${options.seconds}`, '-P', `${options.flows ?? 1}`, '-C', options.congestionControl];
  const before = busyMs();
  const runs = [iperf(a.client, b.client, b.client4, IPERF_PORT, args)];
  if (options.both) runs.push(iperf(b.client, a.client, a.client4, IPERF_PORT + 1, args));
  const settled = await Promise.allSettled(runs);
  const busy = busyMs() - before;
  const flows = settled.map((one) => {
    if (one.status === 'rejected') throw one.reason;
    return one.value;
  });
  for (const { congestionControl } of flows) {
    if (congestionControl !== options.congestionControl) {
      throw new Error(`iperf3 used ${congestionControl}, not ${options.congestionControl}`);
    }
  }
  const sum = (of: (flow: Flow) => number): number => flows.reduce((total, flow) => total + of(flow), 0);
  return { gbits: sum((flow) => flow.gbits), cpuMsPerGbit: busy / sum((flow) => flow.carriedGbit) };
}

/** Median round trip in microseconds, of a ping every 2 ms. */
export async function ping(a: Host, b: Host, seconds: number): Promise<number> {
  const count = Math.round(seconds * 500);
  const { stdout } = await a.client.run('ping', ['-n', '-i', '0.002', '-c', `${count}`, '-W', '1', b.client4]);
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
    await Promise.race([once(server.stdout!, 'data'), sleep(5000)]);
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
