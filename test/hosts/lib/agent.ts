/**
 * The tests' hand inside a namespace: one process that makes and checks traffic. It takes one JSON object a line on stdin
 * and answers each, in order, by one on stdout (agents.ts has the other end). No part of the engine is in it.
 *
 * TCP: the client sends a header (seed u32, flags u32, bytes u64, big-endian), then the bytes of that seed. The server hashes
 * what it got, and compares it with what the seed says, so that a difference has an offset. It ends with a line of JSON.
 * With the flag DUPLEX both send at once.
 */
import { createHash, type Hash } from 'node:crypto';
import { createSocket, type Socket as Datagrams } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, isIPv6, type Server, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { ByteStream, bytesOf, CHUNK } from './stream.js';

export type AgentCommand =
  | { readonly op: 'listen'; readonly port: number }
  | {
      readonly op: 'tcp';
      readonly address: string;
      readonly port: number;
      readonly seed: number;
      readonly bytes: number;
      readonly flows: number;
      readonly duplex: boolean;
      /** Give up when nothing moves for so long. */
      readonly stallMs: number;
    }
  | {
      readonly op: 'udp';
      readonly address: string;
      readonly port: number;
      readonly sizes: readonly number[];
      readonly seed: number;
    }
  | { readonly op: 'expect'; readonly port: number }
  | {
      readonly op: 'send';
      readonly address: string;
      readonly port: number;
      readonly rate: number;
      readonly size: number;
    }
  | { readonly op: 'stop' }
  | { readonly op: 'counted' }
  | {
      readonly op: 'datagrams';
      readonly address: string;
      readonly port: number;
      readonly from?: { readonly address: string; readonly port: number };
      readonly hex: readonly string[];
    }
  | { readonly op: 'raw'; readonly address: string; readonly hex: readonly string[] }
  | { readonly op: 'blast'; readonly address: string; readonly port: number; readonly seconds: number };

/** One direction of a TCP flow: its hash where it was made, where it arrived, and where the first wrong byte was (-1: none). */
export interface Carried {
  readonly sent: string;
  readonly received: string;
  readonly bytes: number;
  readonly wrongAt: number;
}

export interface TcpAnswer {
  readonly flows: readonly Carried[];
  readonly seconds: number;
}

export interface UdpAnswer {
  readonly echoed: number;
  /** Sizes that had to be sent again because nothing came back in time. */
  readonly again: readonly number[];
  readonly lost: readonly number[];
  readonly wrong: readonly number[];
}

/** What a numbered stream came to. */
export interface StreamAnswer {
  readonly received: number;
  /** Arrived with other bytes than were sent. */
  readonly wrong: number;
  readonly duplicates: number;
  readonly reordered: number;
  /** The highest number seen, plus one. */
  readonly end: number;
  readonly missing: number;
  /** First runs of missing numbers. */
  readonly gaps: readonly (readonly [number, number])[];
  /** Longest time without any packet between the first and the last, ms. */
  readonly longestSilence: number;
}

const DUPLEX = 1;
const HEADER = 16;
const MOST_NUMBERS = 1 << 22;

// --- TCP ---

/** Sends `bytes` of `seed`; resolves to their hash. */
async function pour(socket: Socket, seed: number, bytes: number): Promise<string> {
  const stream = new ByteStream(seed);
  const hash = createHash('sha256');
  for (let left = bytes; left > 0; ) {
    const chunk = stream.next(Math.min(left, CHUNK));
    left -= chunk.length;
    hash.update(chunk);
    if (!socket.write(chunk)) await once(socket, 'drain');
  }
  return hash.digest('hex');
}

/** Takes `bytes` of `seed`, in whatever pieces, and hands back what follows them. */
class Collector {
  readonly #hash: Hash = createHash('sha256');
  readonly #stream: ByteStream;
  readonly #bytes: number;
  #got = 0;
  wrongAt = -1;

  constructor(seed: number, bytes: number) {
    this.#stream = new ByteStream(seed);
    this.#bytes = bytes;
  }

  get done(): boolean {
    return this.#got === this.#bytes;
  }

  /** Returns what is left of `data` once all is there. */
  take(data: Buffer): Buffer {
    let rest = data;
    while (rest.length > 0 && !this.done) {
      const piece = rest.subarray(0, Math.min(rest.length, this.#bytes - this.#got, CHUNK));
      const expected = this.#stream.next(piece.length);
      if (this.wrongAt < 0 && !piece.equals(expected)) {
        this.wrongAt = this.#got + piece.findIndex((byte, i) => byte !== expected[i]);
      }
      this.#hash.update(piece);
      this.#got += piece.length;
      rest = rest.subarray(piece.length);
    }
    return rest;
  }

  digest(): string {
    return this.#hash.digest('hex');
  }
}

const backSeed = (seed: number): number => (seed ^ 0x5a5a5a5a) >>> 0;

function serveTcp(socket: Socket): void {
  let head = Buffer.alloc(0);
  let collector: Collector | undefined;
  let pouring: Promise<string | undefined> = Promise.resolve(undefined);
  let bytes = 0;
  socket.on('error', () => socket.destroy());
  socket.on('data', (data) => {
    let rest = data;
    if (!collector) {
      head = Buffer.concat([head, data]);
      if (head.length < HEADER) return;
      const seed = head.readUInt32BE(0);
      bytes = Number(head.readBigUInt64BE(8));
      if (bytes === 0) {
        socket.resume(); // a blast: nobody looks at it
        socket.removeAllListeners('data');
        socket.on('data', () => {});
        return;
      }
      collector = new Collector(seed, bytes);
      if (head.readUInt32BE(4) & DUPLEX) pouring = pour(socket, backSeed(seed), bytes);
      rest = head.subarray(HEADER);
    }
    collector.take(rest);
    if (!collector.done) return;
    const { wrongAt } = collector;
    const received = collector.digest();
    void pouring.then((sentBack) => socket.end(JSON.stringify({ received, wrongAt, sentBack })));
    socket.removeAllListeners('data').resume();
  });
}

async function tcpFlow(command: AgentCommand & { op: 'tcp' }, seed: number): Promise<Carried[]> {
  const { address, port, bytes, duplex, stallMs } = command;
  const socket = connect({ host: address, port, noDelay: true });
  socket.setTimeout(stallMs, () => socket.destroy(new Error(`nothing moved for ${stallMs / 1000} s`)));
  const back = duplex ? new Collector(backSeed(seed), bytes) : undefined;
  let tail = '';
  const failed = once(socket, 'close').then(() => {
    if (socket.errored) throw socket.errored;
  });
  socket.on('error', () => {});
  socket.on('data', (data) => {
    const rest = back ? back.take(data) : data;
    tail += rest.toString();
  });
  await Promise.race([once(socket, 'connect'), failed]);
  const head = Buffer.alloc(HEADER);
  head.writeUInt32BE(seed, 0);
  head.writeUInt32BE(duplex ? DUPLEX : 0, 4);
  head.writeBigUInt64BE(BigInt(bytes), 8);
  socket.write(head);
  const sent = (await Promise.race([pour(socket, seed, bytes), failed])) ?? 'closed early';
  await failed;
  const { received, wrongAt, sentBack } = JSON.parse(tail) as Record<string, string> & { wrongAt: number };
  const flows = [{ sent, received, wrongAt, bytes }];
  if (back) flows.push({ sent: sentBack, received: back.digest(), wrongAt: back.wrongAt, bytes });
  return flows;
}

async function tcp(command: AgentCommand & { op: 'tcp' }): Promise<TcpAnswer> {
  const begun = performance.now();
  const flows = await Promise.all(Array.from({ length: command.flows }, (_, i) => tcpFlow(command, command.seed + i)));
  return { flows: flows.flat(), seconds: (performance.now() - begun) / 1000 };
}

/** TCP as fast as it goes for a time, without looking at content. */
async function blast(command: AgentCommand & { op: 'blast' }): Promise<{ bytes: number }> {
  const socket = connect({ host: command.address, port: command.port });
  socket.on('error', () => {});
  socket.setMaxListeners(0);
  await once(socket, 'connect');
  socket.write(Buffer.alloc(HEADER));
  const chunk = Buffer.alloc(256 * 1024, 0x77);
  let bytes = 0;
  // Whatever happens on the way, it ends in time.
  const timer = setTimeout(() => socket.destroy(), command.seconds * 1000);
  const closed = once(socket, 'close');
  while (!socket.destroyed) {
    bytes += chunk.length;
    if (!socket.write(chunk)) await Promise.race([once(socket, 'drain').catch(() => {}), closed]);
  }
  clearTimeout(timer);
  return { bytes };
}

// --- UDP ---

let server: Server | undefined;
let echo: Datagrams | undefined;

async function listen(port: number): Promise<object> {
  server = createServer(serveTcp).listen(port, '::');
  await once(server, 'listening');
  echo = createSocket({ type: 'udp6', recvBufferSize: 1 << 20, sendBufferSize: 1 << 20 });
  echo.on('message', (data, from) => echo?.send(data, from.port, from.address));
  echo.bind(port, '::');
  await once(echo, 'listening');
  return {};
}

/** One datagram of each size, one after the other, each echoed; the content depends on seed and size. */
async function udp(command: AgentCommand & { op: 'udp' }): Promise<UdpAnswer> {
  const { address, port, sizes, seed } = command;
  const socket = createSocket({ type: isIPv6(address) ? 'udp6' : 'udp4', recvBufferSize: 1 << 20 });
  socket.connect(port, address);
  await once(socket, 'connect');
  let arrived: (data: Buffer | undefined) => void = () => {};
  socket.on('message', (data) => arrived(data));
  const again: number[] = [];
  const lost: number[] = [];
  const wrong: number[] = [];
  socket.on('error', () => {}); // path MTU news; the datagram is sent again
  let echoed = 0;
  let before: Buffer = Buffer.alloc(0);
  for (const size of sizes) {
    const data = bytesOf(seed + size * 65_537, size);
    for (let tries = 0; ; tries++) {
      const answer = new Promise<Buffer | undefined>((resolve) => {
        const timer = setTimeout(() => resolve(undefined), 1000);
        arrived = (got) => {
          if (got && before.length > 0 && got.equals(before)) return; // a late echo of the one before
          clearTimeout(timer);
          resolve(got);
        };
      });
      socket.send(data, () => {});
      const got = await answer;
      if (got) {
        if (got.equals(data)) echoed++;
        else wrong.push(size);
        break;
      }
      if (tries === 3) {
        lost.push(size);
        break;
      }
      again.push(size);
    }
    before = data;
  }
  socket.close();
  return { echoed, again, lost, wrong };
}

// --- a numbered stream ---

/**
 * Datagram number n: n (u32, big-endian), then byte i is n * 7 + i * 13 + (i >> 8) * 31. PYTHON_SEGMENTS of agents.ts makes
 * the same.
 */
const PATTERN = Buffer.from(Uint8Array.from({ length: 10_000 }, (_, i) => i * 13 + (i >> 8) * 31));
const patterns = new Map<number, Buffer>();

function numbered(number: number, size: number): Buffer {
  let pattern = patterns.get(number & 255);
  if (!pattern) {
    pattern = Buffer.from(PATTERN.map((byte) => byte + number * 7));
    patterns.set(number & 255, pattern);
  }
  const data = Buffer.from(pattern.subarray(0, size));
  data.writeUInt32BE(number);
  return data;
}

let counting: Counting | undefined;
let sending: Sending | undefined;

class Counting {
  readonly #seen = new Uint8Array(MOST_NUMBERS);
  #received = 0;
  #wrong = 0;
  #duplicates = 0;
  #reordered = 0;
  #end = 0;
  #last = 0;
  #silence = 0;
  readonly socket: Datagrams;

  constructor(socket: Datagrams) {
    this.socket = socket;
    socket.on('message', (data) => this.#take(data));
  }

  #take(data: Buffer): void {
    const number = data.length < 4 ? MOST_NUMBERS : data.readUInt32BE(0);
    if (number >= MOST_NUMBERS || !data.equals(numbered(number, data.length))) {
      this.#wrong++;
      return;
    }
    const now = performance.now();
    if (this.#received > 0) this.#silence = Math.max(this.#silence, now - this.#last);
    this.#last = now;
    this.#received++;
    if (this.#seen[number]) this.#duplicates++;
    this.#seen[number] = 1;
    if (number < this.#end - 1) this.#reordered++;
    this.#end = Math.max(this.#end, number + 1);
  }

  answer(): StreamAnswer {
    const gaps: [number, number][] = [];
    let missing = 0;
    for (let i = 0; i < this.#end; i++) {
      if (this.#seen[i]) continue;
      const from = i;
      while (i < this.#end && !this.#seen[i]) i++;
      missing += i - from;
      if (gaps.length < 20) gaps.push([from, i - 1]);
    }
    const counts = {
      received: this.#received,
      wrong: this.#wrong,
      duplicates: this.#duplicates,
      reordered: this.#reordered,
    };
    return { ...counts, end: this.#end, missing, gaps, longestSilence: Math.round(this.#silence) };
  }
}

async function expect(port: number): Promise<object> {
  counting?.socket.close();
  const socket = createSocket({ type: 'udp6', recvBufferSize: 1 << 22 });
  socket.bind(port, '::');
  await once(socket, 'listening');
  counting = new Counting(socket);
  return {};
}

class Sending {
  readonly #socket: Datagrams;
  readonly #timer: NodeJS.Timeout;
  #sent = 0;
  refused = 0;

  constructor(socket: Datagrams, { rate, size }: { rate: number; size: number }) {
    this.#socket = socket;
    socket.on('error', () => {});
    const begun = performance.now();
    let due = 0;
    this.#timer = setInterval(() => {
      // What a late timer left undone is not made up for at once: a burst would be lost for reasons of its own.
      due = Math.min(((performance.now() - begun) * rate) / 1000, this.#sent + Math.max(rate / 50, 1));
      while (this.#sent < due) {
        socket.send(numbered(this.#sent++, Math.max(size, 4)), (error) => {
          if (error) this.refused++;
        });
      }
    }, 2);
  }

  stop(): number {
    clearInterval(this.#timer);
    setTimeout(() => this.#socket.close(), 50);
    return this.#sent;
  }
}

async function send(command: AgentCommand & { op: 'send' }): Promise<object> {
  const socket = createSocket({ type: isIPv6(command.address) ? 'udp6' : 'udp4', sendBufferSize: 1 << 20 });
  socket.connect(command.port, command.address);
  await once(socket, 'connect');
  sending = new Sending(socket, command);
  return {};
}

// --- raw bytes ---

/** Payloads as they are, from an address and a port of this host's choosing. */
async function datagrams(command: AgentCommand & { op: 'datagrams' }): Promise<object> {
  const { address, port, from, hex } = command;
  const socket = createSocket({ type: isIPv6(address) ? 'udp6' : 'udp4', sendBufferSize: 1 << 20 });
  socket.bind({ port: from?.port ?? 0, ...(from ? { address: from.address } : {}) });
  await once(socket, 'listening');
  for (const text of hex) {
    await new Promise<void>((resolve, reject) => {
      socket.send(Buffer.from(text, 'hex'), port, address, (error) => (error ? reject(error) : resolve()));
    });
  }
  socket.close();
  return {};
}

/** Nothing else holds a raw socket, or a promise that waits for one: without this the garbage collector takes both. */
const rawSockets = new Set<RawSocket>();

/** Whole IPv4 packets through raw-socket, header and all; the kernel fills in only the total length and the checksum. */
async function raw(command: AgentCommand & { op: 'raw' }): Promise<object> {
  const module = (await import('raw-socket' as string)) as { default: RawSocketModule };
  const api = module.default;
  const socket = api.createSocket({ protocol: 255 });
  rawSockets.add(socket);
  socket.setOption(api.SocketLevel.IPPROTO_IP, api.SocketOption.IP_HDRINCL, Buffer.from([1, 0, 0, 0]), 4);
  for (const text of command.hex) {
    const bytes = Buffer.from(text, 'hex');
    await new Promise<void>((resolve, reject) => {
      socket.send(bytes, 0, bytes.length, command.address, (error) => (error ? reject(error) : resolve()));
    });
  }
  rawSockets.delete(socket);
  socket.close();
  return {};
}

interface RawSocket {
  setOption(level: number, option: number, value: Buffer, length: number): void;
  send(bytes: Buffer, offset: number, length: number, address: string, done: (error: Error | null) => void): void;
  close(): void;
}

interface RawSocketModule {
  readonly SocketLevel: { readonly IPPROTO_IP: number };
  readonly SocketOption: { readonly IP_HDRINCL: number };
  createSocket(options: { readonly protocol: number }): RawSocket;
}

// --- the line protocol ---

async function answer(command: AgentCommand): Promise<object> {
  switch (command.op) {
    case 'listen':
      return listen(command.port);
    case 'tcp':
      return tcp(command);
    case 'blast':
      return blast(command);
    case 'udp':
      return udp(command);
    case 'expect':
      return expect(command.port);
    case 'send':
      return send(command);
    case 'stop': {
      const sent = sending?.stop() ?? 0;
      return { sent, refused: sending?.refused ?? 0 };
    }
    case 'counted':
      return counting?.answer() ?? {};
    case 'datagrams':
      return datagrams(command);
    case 'raw':
      return raw(command);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let text: string;
  try {
    text = JSON.stringify({ answer: await answer(JSON.parse(line) as AgentCommand) });
  } catch (error) {
    text = JSON.stringify({ error: error instanceof Error ? error.message : String(error) });
  }
  process.stdout.write(`${text}\n`);
}
process.exit(0);
