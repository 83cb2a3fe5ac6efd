/**
 * Runs commands where it is, for whoever may open its socket: the race's hand inside a container. Its client is remote.ts,
 * the protocol is in frames.ts.
 *
 *     node agent.js SOCKET
 *
 * One command a connection. It runs in a process group of its own and ends with its connection: SIGTERM to the group, then
 * SIGKILL; what it leaves running in that group when it exits is ended in the same way. SIGTERM and SIGINT end the agent:
 * the commands first, then the socket's file. Whoever reaches the socket can do what the agent can, so its mode is 0600,
 * and its folder must be nobody else's to write. As process 1 of a container it would have to reap orphans: give the
 * container an init.
 *
 * The race asks for programs by their paths here (Node itself, rr.js, generate.js, sink.js): agent and race run out of the
 * same image.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, lstatSync, mkdirSync, rmSync, statSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { constants } from 'node:os';
import { dirname, resolve } from 'node:path';
import {
  EXIT_CANNOT_RUN,
  EXIT_NOT_FOUND,
  type Exit,
  FRAME,
  FrameReader,
  type FrameType,
  frame,
  MAX_REQUEST,
  type Refusal,
  type Request,
  WINDOW,
} from './frames.js';

const MAX_COMMANDS = 64;
/** Beyond these connections are closed without a word. */
const MAX_CONNECTIONS = 4 * MAX_COMMANDS;
/** How long a connection may be without its first line. */
const REQUEST_WITHIN_MS = 5000;
/** How long it may stay once it has got the last frame. */
const LEAVES_WITHIN_MS = 30_000;
/** What SIGTERM gets before SIGKILL follows. */
const GRACE_MS = 2000;
/** sun_path, unix(7), with its final zero. */
const MAX_PATH = 107;

const say = (line: string): boolean => process.stderr.write(`agent: ${line}\n`);

/** True if there was anybody to signal. */
function signalGroup(leader: number, signal: NodeJS.Signals | 0): boolean {
  try {
    process.kill(-leader, signal);
    return true;
  } catch {
    return false;
  }
}

// --- a command ---

/** Reads the first line; throws what is wrong with it. */
function parseRequest(line: string): Request {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw new Error('the first line is no JSON');
  }
  const { argv, env = {} } = (typeof value === 'object' && value !== null ? value : {}) as Partial<Request>;
  const isText = (one: unknown): one is string => typeof one === 'string' && !one.includes('\0');
  if (!Array.isArray(argv) || argv.length === 0 || !argv.every(isText) || argv[0] === '') {
    throw new Error('the first line has no argv, a list of words');
  }
  if (typeof env !== 'object' || env === null || !Object.entries(env).flat().every(isText)) {
    throw new Error('env must give each name a text');
  }
  return { argv, env };
}

/** One connection and what runs for it. */
class Command {
  readonly #socket: Socket;
  readonly #gone: () => void;
  readonly #frames = new FrameReader([FRAME.stdin, FRAME.signal]);
  /** Ends a client that keeps us waiting, at the beginning or at the end. */
  #late: NodeJS.Timeout;
  #firstLine: Buffer = Buffer.alloc(0);
  #child: ChildProcess | undefined;
  /** Bytes that the command has not taken. */
  #input = 0;
  #killer: NodeJS.Timeout | undefined;
  #exited = false;
  #ending = false;

  /** `gone` is called once, when neither the connection nor its command is there any more. */
  constructor(socket: Socket, gone: () => void) {
    this.#socket = socket;
    this.#gone = gone;
    this.#late = setTimeout(() => this.refuse('no command came'), REQUEST_WITHIN_MS);
    socket.on('data', (bytes) => this.#read(bytes));
    socket.on('end', () => socket.destroy());
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => {
      clearTimeout(this.#late);
      this.end();
      this.#settle();
    });
  }

  /** Says why not, and ends. */
  refuse(error: string, code = EXIT_CANNOT_RUN): void {
    clearTimeout(this.#late);
    if (this.#socket.destroyed || this.#socket.writableEnded) return;
    say(`refused: ${error}`);
    this.#sendLast(FRAME.refused, { error, code });
    this.end();
  }

  /** Ends the command's whole group, in time by force. */
  end(): void {
    const pid = this.#child?.pid;
    if (this.#ending || pid === undefined) return;
    this.#ending = true;
    if (this.#socket.destroyed) {
      // Unread output would keep the command's pipes open, and itself waiting.
      for (const stream of this.#child!.stdio) stream?.destroy();
    }
    if (!signalGroup(pid, 'SIGTERM')) return;
    this.#killer = setTimeout(() => {
      this.#killer = undefined;
      signalGroup(pid, 'SIGKILL');
      this.#settle();
    }, GRACE_MS);
  }

  #read(bytes: Buffer): void {
    if (this.#socket.writableEnded) return; // refused, or over
    try {
      if (this.#child) {
        this.#frames.push(bytes, (type, payload) => this.#take(type, payload));
        return;
      }
      const end = bytes.indexOf('\n');
      const line = Buffer.concat([this.#firstLine, end < 0 ? bytes : bytes.subarray(0, end)]);
      if (line.length >= MAX_REQUEST) throw new Error(`the first line is longer than ${MAX_REQUEST} bytes`);
      this.#firstLine = line;
      if (end < 0) return;
      clearTimeout(this.#late);
      this.#start(parseRequest(line.toString()));
      if (end + 1 < bytes.length) this.#read(bytes.subarray(end + 1));
    } catch (error) {
      this.refuse((error as Error).message);
    }
  }

  #start({ argv: [program, ...args], env }: Request): void {
    const child = spawn(program, args, { detached: true, stdio: 'pipe', env: { ...process.env, ...env } });
    this.#child = child;
    this.#passOn(child, FRAME.stdout);
    this.#passOn(child, FRAME.stderr);
    child.stdin!.on('error', () => {}); // it does not read: its affair
    child.on('error', (error: NodeJS.ErrnoException) => {
      this.#exited ||= child.pid === undefined;
      if (error.code === 'ENOENT') this.refuse(`no program ${program} here`, EXIT_NOT_FOUND);
      else this.refuse(`can't run ${program}: ${error.message}`);
    });
    child.on('exit', () => {
      this.#exited = true;
      this.end(); // what it leaves
      this.#settle();
    });
    child.on('close', (code, signal) => this.#sendLast(FRAME.exit, { code, signal }));
  }

  #passOn(child: ChildProcess, type: typeof FRAME.stdout | typeof FRAME.stderr): void {
    const from = type === FRAME.stdout ? child.stdout! : child.stderr!;
    from.on('data', (bytes: Buffer) => {
      if (this.#send(type, bytes)) return;
      from.pause();
      this.#socket.once('drain', () => from.resume());
    });
  }

  #take(type: FrameType, payload: Buffer): void {
    const child = this.#child!;
    if (type === FRAME.signal) {
      const name = payload.toString();
      if (!(name in constants.signals)) throw new Error('no such signal');
      child.kill(name as NodeJS.Signals);
    } else if (payload.length === 0) {
      child.stdin!.end();
    } else {
      const { length } = payload;
      this.#input += length;
      if (this.#input > WINDOW) throw new Error(`more than ${WINDOW} bytes of input under way`);
      child.stdin!.write(payload, () => {
        this.#input -= length;
        const taken = Buffer.alloc(4);
        taken.writeUInt32BE(length);
        this.#send(FRAME.taken, taken);
      });
    }
  }

  /** False if the client is slower than that. */
  #send(type: FrameType, payload: Uint8Array): boolean {
    return this.#socket.destroyed || this.#socket.writableEnded || this.#socket.write(frame(type, payload));
  }

  /**
   * Nothing is said after it. Closing is the client's part: what it writes to a socket that is closed already makes it
   * give up before it has read everything.
   */
  #sendLast(type: FrameType, what: Exit | Refusal): void {
    if (this.#socket.destroyed || this.#socket.writableEnded) return;
    this.#socket.end(frame(type, JSON.stringify(what)), () => {
      this.#late = setTimeout(() => this.#socket.destroy(), LEAVES_WITHIN_MS);
    });
  }

  #settle(): void {
    const pid = this.#child?.pid;
    if (pid !== undefined && !this.#exited) return;
    if (pid !== undefined && this.#killer && !signalGroup(pid, 0)) {
      clearTimeout(this.#killer);
      this.#killer = undefined;
    }
    if (this.#socket.destroyed && !this.#killer) this.#gone();
  }
}

// --- the socket ---

/** True if somebody listens at `path`. */
const answers = (path: string): Promise<boolean> =>
  new Promise((done) => {
    const probe = connect(path, () => {
      probe.destroy();
      done(true);
    });
    probe.on('error', () => done(false));
  });

/** Makes room for a socket at `path`: its folder, and nothing where it will be. Throws one line. */
async function makeRoom(path: string): Promise<void> {
  if (Buffer.byteLength(path) > MAX_PATH) throw new Error(`${path}: a socket's path has at most ${MAX_PATH} bytes`);
  const folder = dirname(path);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (statSync(folder).mode & 0o022) {
    throw new Error(`others may write into ${folder}: give the socket a folder of its own (chmod go-w)`);
  }
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (!there) return;
  if (!there.isSocket()) throw new Error(`${path} is there already, and is no socket`);
  if (await answers(path)) throw new Error(`an agent listens at ${path} already`);
  rmSync(path);
}

async function listen(server: Server, path: string): Promise<void> {
  const mask = process.umask(0o177); // from its first moment nobody else's
  try {
    await new Promise<void>((done, failed) => server.once('error', failed).listen(path, done));
  } finally {
    process.umask(mask);
  }
  chmodSync(path, 0o600);
}

async function serve(path: string): Promise<void> {
  await makeRoom(path);
  const commands = new Set<Command>();
  let stopping = false;
  const server = createServer((socket) => {
    const command = new Command(socket, () => {
      commands.delete(command);
      if (stopping && commands.size === 0) process.exit(0);
    });
    commands.add(command);
    if (stopping) command.refuse('it is being stopped');
    else if (commands.size > MAX_COMMANDS) command.refuse(`${MAX_COMMANDS} commands run already`);
  });
  server.maxConnections = MAX_CONNECTIONS;
  const stop = (): void => {
    stopping = true;
    rmSync(path, { force: true });
    server.close();
    for (const command of commands) command.end();
    if (commands.size === 0) process.exit(0);
    setTimeout(() => process.exit(0), GRACE_MS + 500);
  };
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, stop);
  await listen(server, path);
  say(`listening at ${path}`);
}

const [path, ...more] = process.argv.slice(2);
if (!path || more.length > 0) {
  say('usage: agent SOCKET');
  process.exitCode = 2;
} else {
  try {
    await serve(resolve(path));
  } catch (error) {
    say((error as Error).message);
    process.exitCode = 1;
  }
}
