/**
 * Somebody who means a control socket ill: one process, for a time. What it did and was answered is one JSON object on stdout at
 * the end. No part of the engine is in it.
 *
 *     node control-abuser.js storm SOCKET SECONDS RATE PATH…    so many commands a second, each answered whole
 *     node control-abuser.js hostile SOCKET SECONDS PATH…       those who never read, half-open ones, garbage, huge requests
 */
import { randomBytes } from 'node:crypto';
import { Agent, get } from 'node:http';
import { connect, type Socket } from 'node:net';

export interface Storm {
  readonly asked: number;
  /** Whole answers with status 200. */
  readonly answered: number;
  /** Answers of another status, and connections that failed, by status or error code, path and kind of connection. */
  readonly otherwise: Readonly<Record<string, number>>;
  /** Milliseconds that the slowest took. */
  readonly slowest: number;
  readonly seconds: number;
  readonly bytes: number;
}

export interface Hostility {
  /** Connections by kind of abuse. */
  readonly connections: Readonly<Record<string, number>>;
  /** Bytes sent, of all kinds. */
  readonly sent: number;
}

const HEADERS = { 'weft-protocol': '1' };
const [mode, socketPath, secondsText, ...rest] = process.argv.slice(2);
const seconds = Number(secondsText);
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

// --- a storm of honest commands ---

/** Half of them over this many connections that are kept, the other half each on a connection of its own, so many at once. */
const KEPT = 8;
const FRESH = 16;

let answered = 0;
let bytes = 0;
let slowest = 0;
const otherwise: Record<string, number> = {};

const note = (what: string): void => {
  otherwise[what] = (otherwise[what] ?? 0) + 1;
};

/** One command; resolves when it is over, however that came. */
function command(path: string, agent: Agent | false): Promise<void> {
  const begun = performance.now();
  return new Promise((resolve) => {
    const done = (what?: string): void => {
      slowest = Math.max(slowest, performance.now() - begun);
      if (what === undefined) answered++;
      else note(`${what}, ${path}, ${agent ? 'kept' : 'fresh'}`);
      resolve();
    };
    const request = get({ socketPath, path, headers: HEADERS, agent }, (response) => {
      response.on('data', (data: Buffer) => {
        bytes += data.length;
      });
      response.once('end', () => done(response.statusCode === 200 ? undefined : `${response.statusCode}`));
      response.once('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message));
    });
    request.once('error', (error: NodeJS.ErrnoException) => done(error.code ?? error.message));
  });
}

async function storm([rateText, ...paths]: readonly string[]): Promise<Storm> {
  const rate = Number(rateText);
  const asked = rate * seconds;
  const kept = new Agent({ keepAlive: true, maxSockets: KEPT });
  const begun = performance.now();
  let next = 0;
  const lane = async (agent: Agent | false): Promise<void> => {
    while (next < asked) {
      const mine = next++;
      const due = (mine * 1000) / rate - (performance.now() - begun);
      if (due > 1) await sleep(due);
      await command(paths[mine % paths.length], agent);
    }
  };
  const lanes = Array.from({ length: KEPT + FRESH }, (_, i) => lane(i < KEPT ? kept : false));
  await Promise.all(lanes);
  kept.destroy();
  const took = (performance.now() - begun) / 1000;
  return { asked, answered, otherwise, slowest: Math.round(slowest), seconds: Math.round(took * 10) / 10, bytes };
}

// --- abuse ---

/** Whoever is cut off comes back after so long, ms. */
const PAUSE = 100;
const SLOW = 100;
const NEVER_READ = 20;
/** A body without end ends here after all, on each connection: the point is that nobody reads it. */
const MOST_BODY = 64 << 20;

const connections: Record<string, number> = {};
let sent = 0;
let end = 0;
let paths: readonly string[] = [];

const request = (path: string): string => `GET ${path} HTTP/1.1\r\nHost: a\r\nweft-protocol: 1\r\n\r\n`;

/** A connection that may fail at any time without a word. */
function open(kind: string): Socket {
  connections[kind] = (connections[kind] ?? 0) + 1;
  return connect({ path: socketPath, allowHalfOpen: true }).on('error', () => {});
}

/** Resolves when the connection is gone, whoever ended it; after `ms` we do. */
function gone(socket: Socket, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => socket.destroy(), Math.max(0, ms));
    socket.once('end', () => socket.destroy());
    socket.once('close', () => {
      clearTimeout(timer);
      sent += socket.bytesWritten;
      resolve();
    });
  });
}

/** One connection after the other, each used so, read or not, and ended after `ms` at the latest. */
async function repeat(kind: string, use: (socket: Socket) => void, reads = true, ms = 3000): Promise<void> {
  while (performance.now() < end) {
    const socket = open(kind);
    if (reads) socket.resume();
    else socket.pause();
    socket.once('connect', () => use(socket));
    await gone(socket, Math.min(ms, end - performance.now()));
    await sleep(PAUSE);
  }
}

/** Sends one byte a second of a request that has no end. */
function trickle(socket: Socket): void {
  const text = `${request(paths[0]).slice(0, -2)}X-Slow: ${'x'.repeat(4096)}`;
  let at = 0;
  const timer = setInterval(() => socket.write(text[at++ % text.length]), 1000);
  socket.once('close', () => clearInterval(timer));
}

/** Writes pieces for as long as they are taken, up to MOST_BODY. */
function pour(socket: Socket, head: string, piece: Buffer): void {
  socket.write(head);
  const more = (): void => {
    while (!socket.destroyed && socket.writable && socket.bytesWritten < MOST_BODY) {
      if (!socket.write(piece)) return void socket.once('drain', more);
    }
  };
  more();
}

const chunk = Buffer.from(`10000\r\n${'x'.repeat(0x10000)}\r\n`);
const lines = Buffer.from('X-Many: x\r\n'.repeat(10_000));
const HEAD = 'HTTP/1.1\r\nHost: a\r\nweft-protocol: 1\r\n';
const kinds: Record<string, (socket: Socket) => void> = {
  'header of 1 MB': (s) => s.write(`GET /v1/status ${HEAD}X-Long: ${'x'.repeat(1 << 20)}\r\n\r\n`),
  'headers without end': (s) => pour(s, `GET /v1/status ${HEAD}`, lines),
  'path of 1 MB': (s) => s.write(`GET /v1/explain?${'x'.repeat(1 << 20)} ${HEAD}\r\n`),
  'body without end': (s) => pour(s, `PUT /v1/log?level=info ${HEAD}Transfer-Encoding: chunked\r\n\r\n`, chunk),
  'body of a GET': (s) => pour(s, `GET /v1/status ${HEAD}Content-Length: 1000000000000\r\n\r\n`, chunk),
  pipelined: (s) => s.write(paths.map(request).join('').repeat(200)),
  garbage: (s) => s.write(randomBytes(64 * 1024)),
  'half closed': (s) => s.end(request(paths[0])),
  'half closed in a header': (s) => s.end(request(paths[0]).slice(0, 30)),
  'gone before the answer': (s) => s.write(request(paths[0]), () => s.destroy()),
  'gone at once': (s) => s.destroy(),
  'another protocol': (s) => s.write(request('/v1/status').replace('weft-protocol: 1', 'weft-protocol: 99')),
  'an upgrade': (s) => s.write(`GET /v1/status ${HEAD}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`),
};

async function hostile(all: readonly string[]): Promise<Hostility> {
  paths = all;
  end = performance.now() + seconds * 1000;
  const forever = seconds * 1000;
  const work = Object.entries(kinds).map(([kind, use]) => repeat(kind, use));
  for (let i = 0; i < SLOW; i++) {
    work.push(i % 2 === 0 ? repeat('silent', () => {}, true, forever) : repeat('slow', trickle, true, forever));
  }
  for (let i = 0; i < NEVER_READ; i++) {
    work.push(repeat('never reads', (s) => s.write(request(all[i % all.length]).repeat(2)), false, forever));
  }
  for (let i = 0; i < 2; i++) {
    work.push(repeat('capture, never read', (s) => s.write(request('/v1/capture')), false, forever));
  }
  await Promise.all(work);
  return { connections, sent };
}

const report = mode === 'storm' ? await storm(rest) : await hostile(rest);
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0));
