/**
 * The daemon as a command sees it: HTTP over its control socket. Each answer says which protocol the daemon speaks, and that is looked
 * at before anything else of it. Every failure is a SetupError of one line.
 */
import { statSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { type Answers, PATHS, PROTOCOL, PROTOCOL_HEADER, VERSION_HEADER } from '../../inspect/protocol.js';
import { SetupError } from '../../io/setup-error.js';
import { ownVersion } from '../../version.js';

/** Milliseconds without a byte from a daemon that was asked. */
const PATIENCE = 10_000;
/** Bytes of an answer: ten thousand entries are a few megabytes. */
const MOST = 64 * 1024 * 1024;

/** Values of a query; what is undefined is left out, a list comes as several of one name. */
export type Query = Readonly<Record<string, string | number | boolean | readonly string[] | undefined>>;

/** Bytes: unix(7), sun_path without the zero at its end. */
const LONGEST_PATH = 107;

export class DaemonClient {
  readonly socket: string;
  readonly #patience: number;

  /** `patience`: milliseconds without a byte, after which it is said that the daemon does not answer. */
  constructor(socket: string, patience = PATIENCE) {
    this.socket = socket;
    this.#patience = patience;
  }

  /** The answer of an endpoint. */
  async get<K extends keyof Answers>(endpoint: K, query: Query = {}): Promise<Answers[K]> {
    return this.#json<Answers[K]>('GET', PATHS[endpoint], query);
  }

  /** Changes something; the answer is how it is then. */
  async put<K extends keyof Answers>(endpoint: K, query: Query): Promise<Answers[K]> {
    return this.#json<Answers[K]>('PUT', PATHS[endpoint], query);
  }

  /**
   * An answer that has no end: a stream of bytes, which is read as fast as it is consumed. It ends when the daemon stops, with an
   * error (`aborted`) if that was sudden; abort the signal to end it from here.
   */
  async stream(endpoint: keyof typeof PATHS, query: Query = {}, signal?: AbortSignal): Promise<IncomingMessage> {
    return this.#ask('GET', PATHS[endpoint], query, signal ?? new AbortController().signal);
  }

  async #json<T>(method: string, path: string, query: Query): Promise<T> {
    const text = await this.#text(await this.#ask(method, path, query));
    try {
      return JSON.parse(text) as T;
    } catch {
      throw new SetupError('BAD_ANSWER', `weftd at ${this.socket} answered ${path} with something else than JSON`);
    }
  }

  async #text(answer: IncomingMessage): Promise<string> {
    const chunks: Buffer[] = [];
    let length = 0;
    try {
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        chunks.push(chunk);
        length += chunk.length;
        if (length > MOST)
          throw new SetupError('BAD_ANSWER', `weftd at ${this.socket} answers with more than ${MOST} bytes`);
      }
    } catch (error) {
      throw error instanceof SetupError ? error : this.#failure(error);
    }
    return Buffer.concat(chunks).toString();
  }

  async #ask(method: string, path: string, query: Query, signal?: AbortSignal): Promise<IncomingMessage> {
    const answer = await this.#answer(method, `${path}${queryText(query)}`, signal);
    checkProtocol(this.socket, answer.headers);
    if (answer.statusCode === 200) return answer;
    throw new SetupError(
      'REFUSED',
      reasonIn(await this.#text(answer)) ?? `weftd at ${this.socket} refused ${path}: ${answer.statusCode}`,
    );
  }

  #answer(method: string, path: string, signal: AbortSignal | undefined): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const asked = request({
        socketPath: this.socket,
        method,
        path,
        agent: false,
        headers: { [PROTOCOL_HEADER]: String(PROTOCOL), host: 'weftd' },
        ...(signal ? { signal } : {}),
      });
      asked.on('response', (answer) => {
        if (signal) asked.setTimeout(0); // a stream may be quiet
        resolve(answer);
      });
      asked.on('error', (error) => reject(this.#failure(error)));
      asked.setTimeout(this.#patience, () =>
        asked.destroy(new SetupError('NO_ANSWER', `weftd at ${this.socket} does not answer`)),
      );
      asked.end();
    });
  }

  #failure(error: unknown): Error {
    if (error instanceof SetupError || (error instanceof Error && error.name === 'AbortError')) return error;
    const { code = '', message } = error as NodeJS.ErrnoException;
    return failureOf(this.socket, code, message);
  }
}

/** Why nothing came of a request to `socket`, in one line. */
export function failureOf(socket: string, code: string, message: string): SetupError {
  const unfit = unfitness(socket);
  if (unfit !== undefined)
    return new SetupError('NO_SOCKET', `${socket} ${unfit}: say where the --control-socket of weftd is`);
  const [name, text] = FAILURES[code.startsWith('HPE_') ? 'HPE' : code] ?? [
    'NO_DAEMON',
    `cannot ask weftd at $ (${code || message})`,
  ];
  return new SetupError(
    name,
    text.replace('$', () => socket),
  );
}

/** By the system's code; `$` is the socket. */
const FAILURES: Readonly<Record<string, readonly [code: string, text: string]>> = {
  EACCES: ['NO_PERMISSION', 'no permission to open $: run weft as root'],
  EPERM: ['NO_PERMISSION', 'no permission to open $: run weft as root'],
  ENOENT: ['NO_DAEMON', 'there is no control socket $: is weftd running?'],
  ECONNREFUSED: ['NO_DAEMON', 'nobody listens at $: its weftd has ended; start weftd again'],
  ECONNRESET: ['DAEMON_GONE', 'weftd at $ ended the connection'],
  EPIPE: ['DAEMON_GONE', 'weftd at $ ended the connection'],
  HPE: ['NO_WEFTD', 'what answers at $ is no weftd'],
};

/** Why nobody can listen there; the system's codes do not tell. */
function unfitness(socket: string): string | undefined {
  if (Buffer.byteLength(socket) > LONGEST_PATH) return `is too long for the path of a socket (${LONGEST_PATH} bytes)`;
  try {
    const found = statSync(socket);
    if (found.isSocket()) return undefined;
    return `is ${found.isDirectory() ? 'a folder' : found.isFile() ? 'a file' : 'something else'} and no socket`;
  } catch {
    return undefined;
  }
}

function checkProtocol(socket: string, headers: IncomingMessage['headers']): void {
  const [theirs, version = 'unknown'] = [headers[PROTOCOL_HEADER], headers[VERSION_HEADER]];
  if (theirs === undefined) throw new SetupError('NO_WEFTD', `what answers at ${socket} is no weftd`);
  if (theirs === String(PROTOCOL)) return;
  throw new SetupError(
    'OTHER_VERSION',
    `weftd at ${socket} is version ${version} (protocol ${theirs}), this weft is ${ownVersion()} (protocol ${PROTOCOL}): use the weft of that weftd`,
  );
}

/** The line of `{"error":"…"}`. */
function reasonIn(text: string): string | undefined {
  try {
    const json: unknown = JSON.parse(text);
    return typeof json === 'object' && json !== null && 'error' in json ? String(json.error) : undefined;
  } catch {
    return undefined;
  }
}

function queryText(query: Query): string {
  const all = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? (value as readonly string[]) : [value]) {
      if (one !== undefined) all.append(name, String(one));
    }
  }
  const text = all.toString();
  return text === '' ? '' : `?${text}`;
}
