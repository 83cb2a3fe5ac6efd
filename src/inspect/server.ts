/**
 * The control socket: answers the `weft` command (protocol.ts). It serves from the very start of the daemon to its end, in control's
 * thread: workers never wait for it. Whoever asks without end, or asks and does not read, costs bounded time and memory: answers
 * are given again for a while (sparing), as the same bytes to all.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { LOG_LEVELS } from '../control/event-log.js';
import { sleep } from '../control/waiting.js';
import { SetupError } from '../io/setup-error.js';
import { boundedServer, closeServer, type Release } from '../observe/bounded-server.js';
import { isLogLevel } from '../observe/log.js';
import { sparing } from '../observe/sparing.js';
import { countersAnswer } from './answers/counters.js';
import { dropsAnswer } from './answers/drops.js';
import { leasesAnswer } from './answers/leases.js';
import { offloadsAnswer } from './answers/offloads.js';
import { peersAnswer } from './answers/peers.js';
import { routesAnswer } from './answers/routes.js';
import { statusAnswer } from './answers/status.js';
import { macsAnswer, neighboursAnswer } from './answers/tables.js';
import { targetAnswer } from './answers/target.js';
import { Captures } from './capture.js';
import { captureSource } from './capture-source.js';
import { inTurn } from './in-turn.js';
import type { Inspected } from './inspected.js';
import { defaultPath, listenAt, tidyUp } from './place.js';
import {
  type Answers,
  type ErrorAnswer,
  type ExplainAnswer,
  type LogAnswer,
  PATHS,
  PROTOCOL,
  PROTOCOL_HEADER,
  VERSION_HEADER,
} from './protocol.js';
import { Refusal } from './refusal.js';

/** A packet of 65,535 bytes in hexadecimal digits goes into the path of a request. */
const BOUNDS = { connections: 128, asked: 96, headerBytes: 160 * 1024, timeout: 5000 };
/** How long an answer is given again (sparing.ts): what is quick to make, and what may be long. */
const SPARED = { quick: { times: 4, most: 50 }, long: { times: 10, most: 2000 } };

export interface ControlOptions {
  /** undefined: the default place; a SetupError is thrown only for one that was said. */
  readonly path: string | undefined;
  readonly inspected: Inspected;
  /** Milliseconds; tests shorten it. */
  readonly timeout?: number;
}

export interface ControlSocket {
  readonly path: string;
  /** Ends it: captures first, which are told so. */
  close(): Promise<void>;
}

/**
 * Starts to serve. Resolves to nothing where nobody said a path and the default one cannot be had, which is said in the log. Rejects
 * with a SetupError.
 */
export async function serveControl({ path, inspected, timeout }: ControlOptions): Promise<ControlSocket | undefined> {
  const { log, version } = inspected.options;
  const captures = new Captures(captureSource(inspected));
  inspected.captures = captures;
  const control = new Control(inspected, captures);
  const bounds = { ...BOUNDS, ...(timeout === undefined ? {} : { timeout }) };
  const server = boundedServer(bounds, (request, response, release) => control.answer(request, response, release));
  server.on('clientError', (error, socket) => complain(version, error, socket));
  try {
    const at = path ?? defaultPath();
    const remove = await listenAt(server, at, path !== undefined);
    server.on('error', () => {});
    process.once('exit', remove); // a failure ends the process without more ado
    void tidyUp();
    return { path: at, close: () => end(server, captures, remove) };
  } catch (error) {
    if (path !== undefined || !(error instanceof SetupError)) throw error;
    log.warn('control_socket_off', { reason: error.message });
    return undefined;
  }
}

/** Milliseconds. */
const STOP_WITHIN = 200;

async function end(server: Server, captures: Captures, remove: () => void): Promise<void> {
  process.off('exit', remove);
  remove(); // nobody new; those who ask now are answered
  // A client that does not read could keep a capture from ending.
  const patience = new AbortController();
  await Promise.race([captures.close(), sleep(STOP_WITHIN, patience.signal)]);
  patience.abort();
  closeServer(server);
}

type Query = URLSearchParams;
/** Makes the answer's bytes. Rejects with a Refusal. */
type Answer = (query: Query) => Promise<Buffer>;

const bytesOf = (answer: Answers[keyof Answers]): Buffer => Buffer.from(`${JSON.stringify(answer)}\n`);

/** One for all who ask meanwhile. */
function spared(read: () => Answers[keyof Answers] | Promise<Answers[keyof Answers]>, kind: 'quick' | 'long'): Answer {
  const { times, most } = SPARED[kind];
  return sparing(async () => bytesOf(await read()), times, most);
}

class Control {
  readonly #inspected: Inspected;
  readonly #captures: Captures;
  readonly #gets: ReadonlyMap<string, Answer>;

  constructor(inspected: Inspected, captures: Captures) {
    this.#inspected = inspected;
    this.#captures = captures;
    const drops = spared(() => dropsAnswer(inspected, false), 'quick');
    const allDrops = spared(() => dropsAnswer(inspected, true), 'quick');
    const target = inTurn((peer: string) => targetAnswer(inspected, peer));
    this.#gets = new Map<string, Answer>([
      [PATHS.status, spared(() => statusAnswer(inspected), 'quick')],
      [PATHS.peers, spared(() => peersAnswer(inspected), 'long')],
      [PATHS.routes, spared(() => routesAnswer(inspected), 'long')],
      [PATHS.macs, spared(() => macsAnswer(inspected), 'long')],
      [PATHS.neighbours, spared(() => neighboursAnswer(inspected), 'long')],
      [PATHS.drops, (query) => (query.get('all') === '1' ? allDrops : drops)(query)],
      [PATHS.offloads, spared(() => offloadsAnswer(inspected), 'quick')],
      [PATHS.leases, spared(() => leasesAnswer(inspected), 'long')],
      [PATHS.counters, spared(() => countersAnswer(inspected), 'quick')],
      [PATHS.explain, async (query) => bytesOf(await explained(inspected, query))],
      [PATHS.target, async (query) => bytesOf(await target(needed(query, 'peer')))],
      [PATHS.log, async () => bytesOf(this.#log())],
    ]);
  }

  async answer(request: IncomingMessage, response: ServerResponse, release: Release): Promise<void> {
    const { version } = this.#inspected.options;
    const headers = headersOf(version);
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    // What is sent along is not read: the connection ends with the answer.
    if (request.headers['content-length'] !== undefined || request.headers['transfer-encoding'] !== undefined) {
      response.setHeader('connection', 'close');
    }
    try {
      checkProtocol(request, version);
      const url = urlOf(request);
      if (url.pathname === PATHS.capture) await this.#capture(request, url, response, release);
      else say(response, 200, await this.#body(request.method ?? '', url));
    } catch (error) {
      const [status, body] = failureOf(error, this.#inspected);
      if (response.headersSent) response.destroy();
      else say(response, status, body);
    }
  }

  async #body(method: string, url: URL): Promise<Buffer> {
    const get = this.#gets.get(url.pathname);
    if (!get) throw new Refusal(404, `weftd has no ${shortened(url.pathname)}`);
    if (method === 'GET') return get(url.searchParams);
    if (method === 'PUT' && url.pathname === PATHS.log)
      return bytesOf(this.#setLevel(needed(url.searchParams, 'level')));
    throw new Refusal(405, `${shortened(method)} is not for ${url.pathname}`);
  }

  /** An answer without end: it has no patience to lose, and counts among no others. */
  async #capture(
    { method = '' }: IncomingMessage,
    url: URL,
    response: ServerResponse,
    release: Release,
  ): Promise<void> {
    if (method !== 'GET') throw new Refusal(405, `${shortened(method)} is not for ${url.pathname}`);
    const run = this.#captures.open(url.searchParams);
    release();
    response.socket?.setTimeout(0);
    response.writeHead(200, { 'content-type': 'application/octet-stream', connection: 'close' });
    response.flushHeaders();
    await run.run(response);
  }

  #log(): LogAnswer {
    const { log, logFormat } = this.#inspected.options;
    return { level: log.level, levels: LOG_LEVELS, format: logFormat };
  }

  #setLevel(level: string): LogAnswer {
    const { log } = this.#inspected.options;
    if (!isLogLevel(level)) throw new Refusal(400, `"${shortened(level)}" is no level: use ${LOG_LEVELS.join(', ')}`);
    const from = log.level;
    const say = (): void => log.info('log_level', { from, to: level });
    // While it is one that says so.
    if (LOG_LEVELS.indexOf(from) < LOG_LEVELS.indexOf(level)) say();
    log.setLevel(level);
    if (LOG_LEVELS.indexOf(from) > LOG_LEVELS.indexOf(level)) say();
    return this.#log();
  }
}

/** Rejects with a Refusal. */
async function explained(inspected: Inspected, query: Query): Promise<ExplainAnswer> {
  const { explain } = inspected.needForwarding();
  try {
    return await explain(query);
  } catch (error) {
    // What was asked makes no sense.
    throw error instanceof RangeError ? new Refusal(400, error.message) : error;
  }
}

/** Throws a Refusal. */
function needed(query: Query, name: string): string {
  const value = query.get(name);
  if (value === null || value === '') throw new Refusal(400, `${name} is missing`);
  return value;
}

/** Throws a Refusal. */
function urlOf({ url = '' }: IncomingMessage): URL {
  try {
    return new URL(url, 'http://weftd');
  } catch {
    throw new Refusal(400, `${shortened(url)} is no path`);
  }
}

/** Throws a Refusal. */
function checkProtocol({ headers }: IncomingMessage, version: string): void {
  const theirs = headers[PROTOCOL_HEADER];
  if (theirs === String(PROTOCOL)) return;
  const said = theirs === undefined ? `no ${PROTOCOL_HEADER} header` : `protocol ${shortened(String(theirs))}`;
  throw new Refusal(400, `${said}: weftd ${version} speaks protocol ${PROTOCOL}: use the weft of that version`);
}

/** Of what a client sent: enough to recognise it, and nothing that a terminal would obey. */
const shortened = (text: string): string => text.slice(0, 64).replace(/[^\x20-\x7e]/g, '?');

function failureOf(error: unknown, { options }: Inspected): [status: number, body: Buffer] {
  if (error instanceof Refusal) return [error.status, errorBytes(error.message)];
  const { message, stack } = error instanceof Error ? error : new Error(String(error));
  options.log.error('inspection_failed', { reason: message, stack });
  return [500, errorBytes(`weftd could not answer: ${message}`)];
}

function errorBytes(message: string): Buffer {
  const answer: ErrorAnswer = { error: message.replace(/\s+/g, ' ') };
  return Buffer.from(`${JSON.stringify(answer)}\n`);
}

const headersOf = (version: string): Readonly<Record<string, string>> => ({
  [PROTOCOL_HEADER]: String(PROTOCOL),
  [VERSION_HEADER]: version,
  'cache-control': 'no-store',
});

function say(response: ServerResponse, status: number, body: Buffer): void {
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': body.length }).end(body);
}

/** What is no HTTP, or too long, or too slow, is told so where it can still be told anything. */
function complain(version: string, error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, reason] = COMPLAINTS[error.code ?? ''] ?? ['400 Bad Request', 'what was sent is not HTTP'];
  const body = errorBytes(reason);
  const headers = Object.entries({
    ...headersOf(version),
    'content-type': 'application/json',
    'content-length': String(body.length),
    connection: 'close',
  });
  setTimeout(() => socket.destroy(), PATIENCE).unref();
  socket.end(`HTTP/1.1 ${status}\r\n${headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body}`);
}

/** Milliseconds to read a complaint. */
const PATIENCE = 1000;

const COMPLAINTS: Readonly<Record<string, readonly [status: string, reason: string]>> = {
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', `a request is longer than ${BOUNDS.headerBytes} bytes`],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'the request did not come in time'],
};
