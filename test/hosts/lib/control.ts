/** What tests of the control socket share: the `weft` command as a process, the socket's place, and what a daemon takes. */
import { lstatSync, readFileSync, readlinkSync } from 'node:fs';
import { type IncomingHttpHeaders, request } from 'node:http';
import { fileURLToPath } from 'node:url';
import type { Finished, Namespace } from '../../../race/hosts.js';
import type { Assertions, Weft } from './weft.js';

export const CLI = fileURLToPath(new URL('../../../src/cli.js', import.meta.url));

/** Of this package, as daemon and command say it. */
export const VERSION = String(
  (JSON.parse(readFileSync(new URL('../../../../package.json', import.meta.url), 'utf8')) as { version: string })
    .version,
);

/** The inode of a process's network namespace. */
export const namespaceOf = (pid: number): string => {
  const inode = /\[(\d+)\]/.exec(readlinkSync(`/proc/${pid}/ns/net`))?.[1];
  if (inode === undefined) throw new Error(`/proc/${pid}/ns/net has no inode`);
  return inode;
};

export const pidOf = (weft: Weft): number => Number(weft.daemon.child.pid);

/** Where a daemon that was told nothing has its socket. */
export const socketOf = (weft: Weft): string => `/run/weft/${namespaceOf(pidOf(weft))}/${pidOf(weft)}.sock`;

/** More than sun_path holds, wherever it is. */
export const TOO_LONG = 'x'.repeat(120);

/** What is started meanwhile has this umask. */
export function withUmask<T>(mask: number, work: () => T): T {
  const before = process.umask(mask);
  try {
    return work();
  } finally {
    process.umask(before);
  }
}

/** Runs `weft` in a namespace to its end. */
export function weftIn(
  ns: Namespace,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  return ns.run(process.execPath, [CLI, ...args], { env: { ...process.env, ...env } });
}

/** It failed with this exit code and one line that says why; nothing on standard output. */
export function failsWith(t: Assertions, done: Finished, code: number, line: RegExp, message: string): void {
  const { stdout, stderr } = done;
  t.same(
    { code: done.code, stdout, lines: stderr.trimEnd().split('\n').length },
    { code, stdout: '', lines: 1 },
    `${message}: exit code ${code}, one line`,
  );
  t.match(stderr, /^weft: /, `${message}: says who speaks`);
  t.match(stderr, line, `${message}: ${stderr.trim()}`);
}

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export interface Asked {
  readonly method?: string;
  /** Instead of `weft-protocol: 1`. */
  readonly headers?: Readonly<Record<string, string>>;
  readonly timeoutMs?: number;
}

/** One request to a control socket, on a connection of its own. */
export function ask(socketPath: string, path: string, asked: Asked = {}): Promise<Answer> {
  const { method = 'GET', headers = { 'weft-protocol': '1' }, timeoutMs = 10_000 } = asked;
  return new Promise((resolve, reject) => {
    const sent = request({ socketPath, path, method, headers, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => {
        body += text;
      });
      response.once('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }));
      response.once('error', reject);
    });
    sent.setTimeout(timeoutMs, () => sent.destroy(new Error(`${path} was not answered`)));
    sent.once('error', reject).end();
  });
}

/** Type, mode and owner of a file, as `socket 600 0`; undefined where there is none. */
export function modeOf(path: string): string | undefined {
  try {
    const found = lstatSync(path);
    const kind = found.isSocket() ? 'socket' : found.isDirectory() ? 'folder' : 'other';
    return `${kind} ${(found.mode & 0o7777).toString(8)} ${found.uid}`;
  } catch {
    return undefined;
  }
}

/** Resident memory, bytes. */
export const rss = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;

/** Looks at a process's memory all the time until the result is called; the most it had, bytes. */
export function watchMemory(pid: number): () => number {
  let most = rss(pid);
  const timer = setInterval(() => {
    most = Math.max(most, rss(pid));
  }, 50);
  timer.unref();
  return () => {
    clearInterval(timer);
    return most;
  };
}

export const mib = (bytes: number): string => `${(bytes / 1048576).toFixed(1)} MiB`;

/** Works through `items`, so many at a time. */
export async function lanes<T>(items: readonly T[], count: number, work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  const lane = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  };
  await Promise.all(Array.from({ length: count }, lane));
}
