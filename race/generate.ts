/**
 * The packet generator: UDP datagrams at a given rate, each an skb of its own (sendmmsg without UDP_SEGMENT).
 *
 * Pace comes from the clock, not from sleeps: whenever it wakes it sends what is due since the start, so an inexact sleep
 * (some 60 µs more than asked) changes the size of a burst, never the rate. It sleeps between bursts and does not spin:
 * the subject needs the processor. A burst is what 100 to 200 µs make, 20 to 40 packets at 200,000 a second. When the
 * machine kept it from the processor for more than MAX_BEHIND_MS it gives up what was due before that, and says so.
 */
import {
  AF_INET,
  errnoText,
  SO_SNDBUFFORCE,
  SOCK_DGRAM_NONBLOCK_CLOEXEC,
  SOL_SOCKET,
  sendmmsg,
  setsockopt,
  socket,
} from '../src/io/syscalls.js';
import { Batch } from './batch.js';
import {
  destinationOf,
  type GenerateCommand,
  type Generated,
  type Mix,
  payloadBytes,
  serve,
  TRAFFIC,
} from './traffic.js';

/** Most messages in one sendmmsg. */
const BURST = 64;
const TICK_MS = 0.1;
const MAX_BEHIND_MS = 4;
const EAGAIN = -11;
const ENOBUFS = -105;

const sleeper = new Int32Array(new SharedArrayBuffer(4));
const sleepMs = (ms: number): unknown => Atomics.wait(sleeper, 0, 0, ms);

/** A batch in which every flow has every size in its proportion, in a fixed shuffled order. */
function prepare(mix: Mix, addresses: readonly string[]): { batch: Batch; flowOf: Int32Array } {
  const { flows, sizes } = TRAFFIC[mix];
  const repeat = Math.ceil(BURST / (flows * sizes.length));
  const packets = Array.from({ length: repeat * flows * sizes.length }, (_, i) => ({
    flow: i % flows,
    size: sizes[Math.floor(i / flows) % sizes.length],
  }));
  let seed = 12345;
  for (let i = packets.length - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    const j = (seed >>> 8) % (i + 1);
    [packets[i], packets[j]] = [packets[j], packets[i]];
  }
  const batch = new Batch(packets.length, payloadBytes(Math.max(...sizes)));
  packets.forEach(({ flow, size }, i) => {
    const { address, port } = destinationOf(flow, addresses);
    batch.setDestination(i, address, port);
    batch.setLength(i, payloadBytes(size));
    batch.i32[(batch.payloadAt(i) + 4) >> 2] = flow;
  });
  return { batch, flowOf: Int32Array.from(packets, ({ flow }) => flow) };
}

function generate(fd: number, command: GenerateCommand): Generated {
  const { batch, flowOf } = prepare(command.mix, command.addresses);
  const sequence = new Int32Array(TRAFFIC[command.mix].flows);
  const { i32 } = batch;
  for (let i = 0; i < batch.count; i++) i32[batch.payloadAt(i) >> 2] = command.run;
  const perMs = command.rate === null ? Number.POSITIVE_INFINITY : command.rate / 1000;
  const maxBehind = perMs * MAX_BEHIND_MS;
  const begun = performance.now();
  const end = begun + command.seconds * 1000;
  let sent = 0;
  let behind = 0;
  let next = 0; // the message to send next, in the batch that is sent round and round
  for (let now = begun; now < end; now = performance.now()) {
    let due = perMs === Number.POSITIVE_INFINITY ? BURST : Math.floor((now - begun) * perMs) - sent - behind;
    if (due <= 0) {
      sleepMs(TICK_MS);
      continue;
    }
    if (due > maxBehind && due > BURST) {
      const give = Math.floor(due - maxBehind);
      behind += give;
      due -= give;
    }
    while (due > 0) {
      const count = Math.min(due, BURST, batch.count - next);
      for (let i = next; i < next + count; i++) i32[(batch.payloadAt(i) + 8) >> 2] = sequence[flowOf[i]]++;
      const done = sendmmsg(fd, batch.addressOfMessage(next), count);
      if (done < 0 && done !== EAGAIN && done !== ENOBUFS) throw new Error(`sendmmsg failed: ${errnoText(done)}`);
      const took = Math.max(done, 0);
      for (let i = next + took; i < next + count; i++) sequence[flowOf[i]]--;
      sent += took;
      due -= took;
      next = (next + took) % batch.count;
      if (took < count) {
        // The socket's buffer is full: the rest is still due at the next turn.
        sleepMs(TICK_MS);
        break;
      }
    }
  }
  return { sent, seconds: (performance.now() - begun) / 1000, behind };
}

const fd = socket(AF_INET, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
if (fd < 0) throw new Error(`no socket: ${errnoText(fd)}`);
setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20);
await serve((command: GenerateCommand) => generate(fd, command));
