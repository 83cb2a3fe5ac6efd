/**
 * Somebody who means a metrics port ill: one process with many connections, each of a kind below, for a time. What it did and was
 * answered is one JSON object on stdout at the end. No part of the engine is in it.
 *
 *     node abuser.js ADDRESS PORT SECONDS SCRAPES        SIGTERM ends it before its time
 */
import { randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';

export interface Abuse {
  /** Whole answers to the scrapes, of SCRAPES. */
  readonly scraped: number;
  /** Answers of another status, or cut short. */
  readonly broken: number;
  /** The longest that one scrape took, with all its attempts, ms. */
  readonly slowestScrape: number;
  /** How long all the scrapes took, ms. */
  readonly scrapeTime: number;
  /** Connections by kind of abuse. */
  readonly connections: Readonly<Record<string, number>>;
  /** Bytes sent, of all kinds. */
  readonly sent: number;
}

/** Over so many connections, kept open from one scrape to the next. */
const SCRAPERS = 8;
const SLOW = 200;
/** A body without end ends here after all, on each connection: the point is that nobody reads it. */
const MOST_BODY = 64 << 20;
/** Whoever is cut off comes back after so long, ms. */
const PAUSE = 100;
const GET = 'GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n';

const [address, port, seconds, scrapes] = process.argv.slice(2);
const end = performance.now() + Number(seconds) * 1000;
const connections: Record<string, number> = {};
let sent = 0;
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** A connection that may fail at any time without a word. */
function open(kind: string): Socket {
  connections[kind] = (connections[kind] ?? 0) + 1;
  return connect({ host: address, port: Number(port), allowHalfOpen: true }).on('error', () => {});
}

/** Resolves when the connection is gone, whoever ended it; after `ms` we do. */
function gone(socket: Socket, ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => socket.destroy(), ms);
    socket.once('end', () => socket.destroy());
    socket.once('close', () => {
      clearTimeout(timer);
      sent += socket.bytesWritten;
      resolve();
    });
  });
}

// --- scrapes ---

let scraped = 0;
let broken = 0;
let slowestScrape = 0;
let wanted = Number(scrapes);

/** The next whole answer on a connection: its status; undefined when it was cut short. */
function answer(socket: Socket): Promise<number | undefined> {
  return new Promise((resolve) => {
    let text = '';
    const done = (status?: number): void => {
      socket.removeListener('data', take).removeListener('close', cut).removeListener('end', cut);
      resolve(status);
    };
    const cut = (): void => done();
    const take = (data: Buffer): void => {
      text += data.toString('latin1');
      const head = text.indexOf('\r\n\r\n');
      if (head < 0) return;
      const length = Number(/^content-length: (\d+)/im.exec(text)?.[1] ?? 0);
      if (text.length >= head + 4 + length) done(Number(text.slice(9, 12)));
    };
    socket.on('data', take).once('close', cut).once('end', cut);
  });
}

async function scraper(): Promise<void> {
  let socket = open('scrape');
  while (wanted > 0) {
    wanted--;
    const begun = performance.now();
    for (;;) {
      socket.write(GET);
      const status = await answer(socket);
      if (status === 200) {
        scraped++;
        break;
      }
      if (status !== undefined) broken++;
      if (performance.now() > end) return void socket.destroy();
      socket.destroy();
      await sleep(PAUSE);
      socket = open('scrape');
    }
    slowestScrape = Math.max(slowestScrape, performance.now() - begun);
  }
  socket.destroy();
}

// --- abuse ---

/** Sends nothing, or one byte a second of a request that has no end. */
async function slow(silent: boolean): Promise<void> {
  while (performance.now() < end) {
    const socket = open(silent ? 'silent' : 'slow').resume();
    let at = 0;
    const text = `${GET.slice(0, -2)}X-Slow: ${'x'.repeat(4096)}`;
    const timer = silent ? undefined : setInterval(() => socket.write(text[at++ % text.length]), 1000);
    await gone(socket, end - performance.now());
    clearInterval(timer);
    await sleep(PAUSE);
  }
}

/** One connection after the other that sends `bytes`. */
async function repeat(kind: string, use: (socket: Socket) => void): Promise<void> {
  while (performance.now() < end) {
    const socket = open(kind);
    socket.once('connect', () => use(socket));
    await gone(socket.resume(), Math.min(3000, end - performance.now()));
    await sleep(PAUSE);
  }
}

/** Writes pieces for as long as they are taken, up to MOST_BODY. */
function pour(socket: Socket, piece: Buffer): void {
  const more = (): void => {
    while (!socket.destroyed && socket.writable && socket.bytesWritten < MOST_BODY) {
      if (!socket.write(piece)) return void socket.once('drain', more);
    }
  };
  more();
}

const chunk = Buffer.from(`10000\r\n${'x'.repeat(0x10000)}\r\n`);
const kinds: Record<string, (socket: Socket) => void> = {
  'header of 1 MB': (s) => s.write(`GET /metrics HTTP/1.1\r\nHost: a\r\nX-Long: ${'x'.repeat(1 << 20)}\r\n\r\n`),
  'headers of 1 MB': (s) => s.write(`GET /metrics HTTP/1.1\r\nHost: a\r\n${'X-Many: x\r\n'.repeat(100_000)}\r\n`),
  'path of 1 MB': (s) => s.write(`GET /${'x'.repeat(1 << 20)} HTTP/1.1\r\nHost: a\r\n\r\n`),
  'body without end': (s) => {
    s.write('POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n');
    pour(s, chunk);
  },
  'body of a GET': (s) => {
    s.write('GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n');
    pour(s, chunk);
  },
  pipelined: (s) => s.write(GET.repeat(1000)),
  garbage: (s) => s.write(randomBytes(64 * 1024)),
  'half closed': (s) => s.end(GET),
  'half closed in a header': (s) => s.end(GET.slice(0, 30)),
  reset: (s) => s.write(GET, () => s.resetAndDestroy()),
  'reset at once': (s) => s.resetAndDestroy(),
  HEAD: (s) => s.write(GET.replace('GET', 'HEAD')),
  OPTIONS: (s) => s.write(GET.replace('GET /metrics', 'OPTIONS *')),
  'absolute form': (s) => s.write(GET.replace('/metrics', `http://${address}:${port}/metrics`)),
  'percent encoded': (s) => s.write(GET.replace('/metrics', '/%6d%65trics')),
};

async function scrapeAll(): Promise<number> {
  const begun = performance.now();
  await Promise.all(Array.from({ length: SCRAPERS }, scraper));
  return Math.round(performance.now() - begun);
}

function report(scrapeTime: number): void {
  const abuse: Abuse = { scraped, broken, slowestScrape: Math.round(slowestScrape), scrapeTime, connections, sent };
  process.stdout.write(`${JSON.stringify(abuse)}\n`, () => process.exit(0));
}

process.on('SIGTERM', () => report(0));
const scraping = scrapeAll();
const work: Promise<unknown>[] = Object.entries(kinds).map(([kind, use]) => repeat(kind, use));
for (let i = 0; i < SLOW; i++) work.push(slow(i % 2 === 0));
await Promise.all(work);
report(await scraping);
