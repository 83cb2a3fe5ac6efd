/** What both demos show with: lines, tables, pings, a transfer. */
import { createInterface } from 'node:readline';
import { answersPing, type Namespace } from './hosts.js';
import { median } from './measures.js';

/** Where the demos' daemons serve HTTP, each in its own namespace. */
export const METRICS = '127.0.0.1:9469';

let stopped = false;
/** From now on nothing is said. */
export function silence(): void {
  stopped = true;
}

export const say = (text = ''): boolean => !stopped && process.stdout.write(`${text}\n`);
const live = process.stdout.isTTY;
/** Replaces the terminal's current line; says nothing where there is no terminal. */
export const status = (text: string): boolean => live && !stopped && process.stdout.write(`\r\x1b[K${text}`);

/** Seconds since `begun` (of performance.now), as text. */
export const since = (begun: number): string => `${((performance.now() - begun) / 1000).toFixed(1)} s`;

/** Rows of cells, aligned and indented; the first row is the heading. Columns in `right` are aligned to the right. */
export function aligned(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const cell = (text: string, column: number): string =>
    right.includes(column) ? text.padStart(widths[column]) : text.padEnd(widths[column]);
  return rows.map((row) => `  ${row.map(cell).join('   ')}`.trimEnd()).join('\n');
}

/** Ten pings, and how they were answered; throws if none was. */
export async function showPing(from: Namespace, address: string, label = address): Promise<void> {
  await answersPing(from, address); // the first waits for the neighbours' addresses
  const { stdout } = await from.run('ping', ['-n', '-c', '10', '-i', '0.1', '-W', '2', address]);
  const times = [...stdout.matchAll(/time=([\d.]+) ms/g)].map((match) => Number(match[1]));
  if (times.length === 0) throw new Error(`no answer from ${address} (${from.name} pinged it ten times)`);
  say(`  ping ${label.padEnd(15)} ${times.length} of 10 answered, median ${median(times).toFixed(3)} ms`);
}

/** Pings until the result is called, which resolves to the times of the answers, in seconds since 1970. */
export function pingAllTheTime(from: Namespace, address: string, interval: number): () => Promise<number[]> {
  const args = ['-n', '-D', '-i', `${interval}`, address];
  const ping = from.spawn('ping', args, { stdio: ['ignore', 'pipe', 'ignore'] });
  let text = '';
  ping.stdout!.setEncoding('utf8').on('data', (more: string) => {
    text += more;
  });
  const ended = new Promise((resolve) => ping.once('close', resolve));
  return async () => {
    ping.kill('SIGINT');
    await ended;
    return [...text.matchAll(/^\[([\d.]+)\] .* time=/gm)].map((match) => Number(match[1]));
  };
}

/** One TCP transfer by iperf3 with the rate shown as it runs. Gbit/s received. */
export async function transfer(
  label: string,
  from: Namespace,
  to: Namespace,
  address: string,
  seconds: number,
): Promise<number> {
  const server = to.spawn('iperf3', ['-s', '-1', '--forceflush'], { stdio: ['ignore', 'pipe', 'ignore'] });
  const listening = createInterface({ input: server.stdout! });
  await new Promise((resolve) => listening.on('line', resolve).on('close', resolve));
  const args = ['-c', address, '-t', `${seconds}`, '-i', '0.5', '-f', 'm', '--forceflush'];
  const client = from.spawn('iperf3', args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let problem = '';
  client.stderr!.setEncoding('utf8').on('data', (text: string) => {
    problem += text;
  });
  let received: number | undefined;
  for await (const line of createInterface({ input: client.stdout! })) {
    if (line.includes('error')) problem += line;
    const interval = /-([\d.]+)\s+sec\s+[\d.]+ \w+\s+([\d.]+) Mbits\/sec/.exec(line);
    if (!interval) continue;
    const rate = Number(interval[2]) / 1000;
    if (line.includes('receiver')) received = rate;
    else if (!line.includes('sender'))
      status(`  ${label.padEnd(15)} ${bar(rate)} ${rate.toFixed(2)} Gbit/s  ${interval[1]} s`);
  }
  server.kill('SIGKILL');
  status('');
  if (received === undefined) throw new Error(`iperf3: ${problem.trim().split('\n')[0] || 'the transfer broke off'}`);
  say(`  ${label.padEnd(15)} ${bar(received)} ${received.toFixed(2)} Gbit/s over ${seconds} s`);
  return received;
}

/** A bar on which 30 Gbit/s fill 30 columns. */
const bar = (gbits: number): string => '█'.repeat(Math.min(30, Math.max(1, Math.round(gbits)))).padEnd(30, '·');
