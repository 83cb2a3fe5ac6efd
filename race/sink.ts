/**
 * The packet sink: counts the datagrams of one run.
 *
 * It takes what has arrived once a millisecond, in large batches from a buffer that holds far more than a millisecond's
 * worth, and never waits in poll for the socket: nobody is woken for each packet, so it costs the machine little and every
 * subject the same. Between runs it sleeps. What its own buffer had to drop, it reports apart.
 */
import { readFileSync } from 'node:fs';
import {
  AF_INET,
  bind,
  errnoText,
  recvmmsg,
  SO_RCVBUFFORCE,
  SOCK_DGRAM_NONBLOCK_CLOEXEC,
  SOL_SOCKET,
  setsockopt,
  socket,
} from '../src/io/syscalls.js';
import { Batch, sockaddr } from './batch.js';
import { type Counted, FIRST_PORT, FLOWS, PORTS, type SinkCommand, serve } from './traffic.js';

const MESSAGES = 256;
/** Only the first bytes of a payload are looked at; the rest may be cut off. */
const HEADER = 12;
const BUFFER = 128 << 20;

const sockets = Array.from({ length: PORTS }, (_, i) => {
  const fd = socket(AF_INET, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  const result = fd < 0 ? fd : bind(fd, sockaddr('0.0.0.0', FIRST_PORT + i));
  if (result < 0) throw new Error(`can't listen on UDP port ${FIRST_PORT + i}: ${errnoText(result)}`);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);
  return fd;
});
const batch = new Batch(MESSAGES, HEADER);
const lastOf = new Int32Array(FLOWS);

let run = -1;
let received = 0;
let reordered = 0;
let overflowedBefore = 0;

/** Drops of our sockets, from the last column of /proc/net/udp; ports there are hexadecimal. */
function overflowed(): number {
  let sum = 0;
  for (const line of readFileSync('/proc/self/net/udp', 'utf8').trim().split('\n').slice(1)) {
    const columns = line.trim().split(/\s+/);
    const port = Number.parseInt(columns[1].split(':')[1], 16);
    if (port >= FIRST_PORT && port < FIRST_PORT + PORTS) sum += Number(columns.at(-1));
  }
  return sum;
}

function drain(): void {
  for (const fd of sockets) {
    let count: number;
    do {
      count = recvmmsg(fd, batch.address, MESSAGES);
      for (let i = 0; i < count; i++) {
        const at = batch.payloadAt(i) >> 2;
        if (batch.i32[at] !== run) continue;
        received++;
        const flow = batch.i32[at + 1] & (FLOWS - 1);
        const sequence = batch.i32[at + 2];
        if (sequence > lastOf[flow]) lastOf[flow] = sequence;
        else reordered++;
      }
    } while (count === MESSAGES);
  }
}

let turning = false;

function turn(): void {
  drain();
  turning = run >= 0;
  if (turning) setTimeout(turn, 1);
}

await serve((command: SinkCommand): Counted => {
  if ('count' in command) {
    run = command.count;
    received = 0;
    reordered = 0;
    lastOf.fill(-1);
    overflowedBefore = overflowed();
    if (!turning) turn();
  } else {
    drain();
    run = -1;
  }
  return { received, reordered, overflowed: overflowed() - overflowedBefore };
});
process.exit(0);
