/**
 * A real Prometheus (Debian's package), on a port and with a data folder of its own, here or in a namespace of a lab. In a
 * namespace nobody outside reaches its port, so a relay inside leads there from a unix socket: those are the file system's.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PrometheusClient } from '../../race/dashboard/prometheus.js';
import { type Namespace, sleep } from '../../race/hosts.js';

/** What deploy/ has. */
export const DEPLOY = fileURLToPath(new URL('../../../deploy/', import.meta.url));
export const ALERTS = join(DEPLOY, 'prometheus', 'alerts.yml');

/** Why there can be none, for a SKIPPED line. */
export function prometheusMissing(): string | undefined {
  const missing = ['prometheus', 'promtool'].filter((command) => spawnSync(command, ['--version']).error);
  return missing.length > 0 ? `needs the commands ${missing.join(', ')}: install prometheus` : undefined;
}

export interface PrometheusOptions {
  /** A folder of the caller's, in which everything is put. */
  readonly dir: string;
  readonly port?: number;
  /** The namespace to run in; undefined: here, on loopback. */
  readonly ns?: Namespace;
  /** Each daemon: where it serves its metrics, and the label `instance` that it gets. */
  readonly targets: readonly { readonly address: string; readonly instance: string }[];
  /** Seconds between two scrapes. */
  readonly scrape: number;
  /** Default: deploy/prometheus/alerts.yml. */
  readonly rules?: string;
}

/** Arguments: the socket's path, the port. */
const RELAY = `
const net = require('node:net');
const [path, port] = process.argv.slice(1);
net.createServer((near) => {
  const far = net.connect(Number(port), '127.0.0.1');
  near.pipe(far).pipe(near);
  near.on('error', () => far.destroy());
  far.on('error', () => near.destroy());
}).listen(path);`;

/** In deploy/prometheus/prometheus.yml's form, with other times and targets. */
function configFor({ targets, scrape, rules = ALERTS }: PrometheusOptions): string {
  const times = { scrape_interval: `${scrape}s`, scrape_timeout: `${scrape}s`, evaluation_interval: `${scrape}s` };
  const static_configs = targets.map(({ address, instance }) => ({ targets: [address], labels: { instance } }));
  // JSON is YAML.
  return JSON.stringify({
    global: times,
    rule_files: [rules],
    scrape_configs: [{ job_name: 'weft', static_configs }],
  });
}

/** A running Prometheus of the caller's, who closes it; its folder is the caller's, too. */
export class Prometheus {
  readonly client: PrometheusClient;
  /** For `--prometheus` and `--socket` of race/dashboard/panels.ts. */
  readonly url: string;
  readonly socketPath: string | undefined;
  readonly #children: readonly ChildProcess[];
  readonly #logFile: string;

  private constructor(url: string, socketPath: string | undefined, children: readonly ChildProcess[], logFile: string) {
    this.url = url;
    this.socketPath = socketPath;
    this.client = new PrometheusClient(url, socketPath);
    this.#children = children;
    this.#logFile = logFile;
  }

  /** Starts it and waits until it answers; rejects with the last line that it said. */
  static async start(options: PrometheusOptions): Promise<Prometheus> {
    const { dir, ns, port = 9090 } = options;
    mkdirSync(dir, { recursive: true });
    const config = join(dir, 'prometheus.yml');
    writeFileSync(config, configFor(options));
    const logFile = join(dir, 'prometheus.log');
    const args = [`--config.file=${config}`, `--storage.tsdb.path=${join(dir, 'data')}`];
    args.push(`--web.listen-address=127.0.0.1:${port}`, '--log.level=warn');
    const log = openSync(logFile, 'a');
    const stdio = ['ignore', log, log] as const;
    const begin = (command: string, given: string[]): ChildProcess =>
      ns ? ns.spawn(command, given, { stdio: [...stdio] }) : spawn(command, given, { stdio: [...stdio] });
    const children = [begin('prometheus', args)];
    const socketPath = ns ? join(dir, 'prometheus.sock') : undefined;
    if (socketPath) children.push(begin(process.execPath, ['-e', RELAY, socketPath, String(port)]));
    closeSync(log);
    const prometheus = new Prometheus(`http://127.0.0.1:${port}`, socketPath, children, logFile);
    await prometheus.#ready();
    return prometheus;
  }

  async #ready(timeoutMs = 20_000): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    while (!(await this.client.ready())) {
      const ended = this.#children.some(({ exitCode, signalCode }) => exitCode !== null || signalCode !== null);
      if (ended || Date.now() > deadline) {
        await this.close();
        throw new Error(`Prometheus does not get ready: ${this.log().trim().split('\n').at(-1) || 'it says nothing'}`);
      }
      await sleep(100);
    }
  }

  /** All that it wrote so far. */
  log(): string {
    return readFileSync(this.#logFile, 'utf8');
  }

  /** Ends it; its files stay. */
  async close(): Promise<void> {
    const running = this.#children.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null);
    const gone = Promise.all(running.map((child) => new Promise((resolve) => child.once('exit', resolve))));
    for (const child of running) child.kill('SIGTERM');
    const timer = setTimeout(() => {
      for (const child of running) child.kill('SIGKILL');
    }, 5000);
    await gone;
    clearTimeout(timer);
  }
}
