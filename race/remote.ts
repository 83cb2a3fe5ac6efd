/**
 * Runs a command where an agent is (agent.ts), as if it ran here: `ip netns exec`, for containers.
 *
 *     node remote.js SOCKET [NAME=VALUE …] -- COMMAND [ARGUMENT …]
 *
 * Input, output, exit code and signals pass through: this process ends as the command did, by the same signal if it was
 * one. SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGUSR2 go to the command; when this process is killed outright, the agent ends
 * the command because the connection has ended. While nobody reads its output, only SIGKILL reaches it: Node writes to a
 * pipe synchronously. Exit codes of its own, each with one line on standard error: 125 no agent, 126 the agent can't or
 * won't run the command, 127 no such program there.
 */
import { connect } from 'node:net';
import { constants } from 'node:os';
import {
  EXIT_NO_AGENT,
  type Exit,
  FRAME,
  FrameReader,
  type FrameType,
  frame,
  type Refusal,
  type Request,
  WINDOW,
} from './frames.js';

const USAGE = 'usage: remote SOCKET [NAME=VALUE ...] -- COMMAND [ARGUMENT ...]';
const FORWARDED = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'] as const;
/** For a signal that this process outlives, because Node ignores it. */
const STILL_HERE_MS = 100;

interface Asked {
  readonly path: string;
  readonly request: Request;
}

function readArguments([path, ...rest]: readonly string[]): Asked | undefined {
  const dashes = rest.indexOf('--');
  const argv = rest.slice(dashes + 1);
  const settings = rest.slice(0, dashes).map((word) => /^([^=]+)=(.*)$/s.exec(word));
  if (!path || dashes < 0 || argv.length === 0 || settings.includes(null)) return undefined;
  return { path, request: { argv, env: Object.fromEntries(settings.map((match) => [match![1], match![2]])) } };
}

/** Ends this process once all that was written is out. */
function leave(end: () => void): void {
  process.stdin.destroy();
  process.stdout.write('', () => process.stderr.write('', () => end()));
}

function fail(line: string, code: number): void {
  process.stderr.write(`${line}\n`);
  leave(() => process.exit(code));
}

function endLike({ code, signal }: Exit): void {
  leave(() => {
    if (signal === null) process.exit(code ?? EXIT_NO_AGENT);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
    setTimeout(() => process.exit(128 + constants.signals[signal]), STILL_HERE_MS);
  });
}

function run({ path, request }: Asked): void {
  const socket = connect(path);
  const reader = new FrameReader([FRAME.taken, FRAME.stdout, FRAME.stderr, FRAME.exit, FRAME.refused]);
  let connected = false;
  let over = false;
  const finish = (end: () => void): void => {
    if (over) return;
    over = true;
    socket.destroy();
    end();
  };

  let underWay = 0; // bytes of input
  const giveInput = (bytes: Buffer): void => {
    socket.write(frame(FRAME.stdin, bytes));
    underWay += bytes.length;
    if (underWay >= WINDOW / 2) process.stdin.pause();
  };
  const take = (type: FrameType, payload: Buffer): void => {
    switch (type) {
      case FRAME.stdout:
      case FRAME.stderr: {
        const to = type === FRAME.stdout ? process.stdout : process.stderr;
        if (to.write(payload) || socket.isPaused()) return;
        socket.pause();
        to.once('drain', () => socket.resume());
        return;
      }
      case FRAME.taken:
        underWay -= payload.readUInt32BE();
        if (underWay < WINDOW / 2 && !over) process.stdin.resume();
        return;
      case FRAME.exit: {
        const exit = JSON.parse(payload.toString()) as Exit;
        finish(() => endLike(exit));
        return;
      }
      case FRAME.refused: {
        const { error, code } = JSON.parse(payload.toString()) as Refusal;
        finish(() => fail(`agent at ${path}: ${error}`, code));
      }
    }
  };

  socket.on('connect', () => {
    connected = true;
    socket.write(`${JSON.stringify(request)}\n`);
    process.stdin.on('data', giveInput);
    process.stdin.on('end', () => over || socket.write(frame(FRAME.stdin, '')));
    process.stdin.on('error', () => over || socket.write(frame(FRAME.stdin, '')));
  });
  socket.on('data', (bytes) => {
    try {
      reader.push(bytes, take);
    } catch (error) {
      finish(() => fail(`no agent answers at ${path}: ${(error as Error).message}`, EXIT_NO_AGENT));
    }
  });
  let problem = 'it ended before the command did';
  socket.on('error', (error: NodeJS.ErrnoException) => {
    if (!connected) problem = error.code === 'ENOENT' ? 'there is no such socket: is it running?' : error.message;
  });
  socket.on('close', () => finish(() => fail(`agent at ${path}: ${problem}`, EXIT_NO_AGENT)));
  // Nobody reads what the command writes: it is told by the end of the connection.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', () => {
      socket.destroy();
      process.exit(1);
    });
  }
  for (const signal of FORWARDED) {
    process.on(signal, () => {
      if (connected) socket.write(frame(FRAME.signal, signal));
      else finish(() => endLike({ code: null, signal }));
    });
  }
}

const asked = readArguments(process.argv.slice(2));
if (asked) run(asked);
else fail(USAGE, EXIT_NO_AGENT);
