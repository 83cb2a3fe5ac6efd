/**
 * TCP request and response: one byte there, one byte back, one at a time; how long each took.
 *
 *     node rr.js serve PORT                    node rr.js ask ADDRESS PORT SECONDS → one line of JSON
 *
 * Node's own sockets would add some 30 µs of event loop to each turn. So Node only connects; the connected socket is then
 * handed as descriptor 3 to a child that does nothing but writev, poll and readv on it. Both ends are the same for every
 * subject.
 */
import { spawn } from 'node:child_process';
import { connect, createServer, type Socket } from 'node:net';
import { addressOf, POLLIN, poll, readv, writev } from '../src/io/syscalls.js';

export interface Answers {
  readonly count: number;
  /** Microseconds. */
  readonly p50: number;
  readonly p99: number;
}

const FD = 3;
const WARM_UP_MS = 200;

/** Runs this file again, in `role`, with the socket as its descriptor 3. */
function handOver(socket: Socket, role: string, ...args: string[]): void {
  socket.setNoDelay(true);
  const child = spawn(process.execPath, [process.argv[1], role, ...args], {
    stdio: ['ignore', 'inherit', 'inherit', socket],
  });
  child.on('exit', (code) => {
    socket.destroy();
    if (role === 'ask-here') process.exit(code ?? 1);
  });
}

/** One byte in, or the reason why not; it waits at most two seconds, so that a dead peer ends it. */
class Turn {
  readonly #memory = new Uint8Array(128); // byte 0, iovec at 16, pollfd at 32
  readonly #iov: number;
  readonly #pollfd: number;

  constructor() {
    const view = new DataView(this.#memory.buffer);
    const base = addressOf(this.#memory);
    view.setBigUint64(16, BigInt(base), true);
    view.setBigUint64(24, 1n, true);
    view.setInt32(32, FD, true);
    view.setInt16(36, POLLIN, true);
    this.#iov = base + 16;
    this.#pollfd = base + 32;
  }

  send(): boolean {
    return writev(FD, this.#iov, 1) === 1;
  }

  receive(): boolean {
    return poll(this.#pollfd, 1, 2000) === 1 && readv(FD, this.#iov, 1) === 1;
  }
}

function ask(seconds: number): void {
  const turn = new Turn();
  const times: number[] = [];
  const begun = performance.now();
  const counted = begun + WARM_UP_MS;
  const end = counted + seconds * 1000;
  for (let now = begun; now < end; ) {
    if (!turn.send() || !turn.receive()) throw new Error(`the connection broke after ${times.length} answers`);
    const then = performance.now();
    if (now >= counted) times.push((then - now) * 1000);
    now = then;
  }
  const sorted = Float64Array.from(times).sort();
  const at = (share: number): number => sorted[Math.floor(sorted.length * share)];
  process.stdout.write(`${JSON.stringify({ count: sorted.length, p50: at(0.5), p99: at(0.99) } satisfies Answers)}\n`);
}

function answer(): void {
  const turn = new Turn();
  while (turn.receive() && turn.send());
}

const [role, ...args] = process.argv.slice(2);
switch (role) {
  case 'serve':
    createServer({ pauseOnConnect: true }, (socket) => handOver(socket, 'answer-here')).listen(Number(args[0]), () => {
      process.stdout.write('listening\n');
    });
    break;
  case 'ask': {
    const socket = connect(Number(args[1]), args[0], () => handOver(socket, 'ask-here', args[2]));
    socket.pause();
    break;
  }
  case 'answer-here':
    answer();
    break;
  case 'ask-here':
    ask(Number(args[0]));
    break;
}
