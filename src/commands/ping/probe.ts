/** Echoes to one address: rounds of them, and the largest that gets through. Every packet leaves with DF. */
import { randomInt } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { type Address, addressOf } from '../../control/cidr.js';
import { IcmpSocket } from '../../io/icmp-socket.js';
import { errnoText } from '../../io/syscalls.js';
import { type EchoMark, echoRequest, type IcmpError, IP_HEADER, readIcmp } from '../../packet/echo.js';

/** Milliseconds from one try of a size to the next. */
const MOST_BETWEEN = 100;
/** Milliseconds that this process is deaf to signals. */
const MOST_BLOCKED = 20;

/** An ICMP error, or the kernel's own, about something that we sent. */
export interface Problem {
  /** The address of who says it. */
  readonly from: string;
  readonly what: string;
  /** Bytes, if it is about size. */
  readonly mtu: number | undefined;
}

export interface Round {
  readonly sent: number;
  /** Milliseconds, one for each answer. */
  readonly rtts: readonly number[];
  /** Why the kernel did not send the last one that it refused, as `EPERM: operation not permitted`; null: it sent all. */
  readonly refused: string | null;
  readonly problems: readonly Problem[];
}

export interface RoundOptions {
  readonly count: number;
  /** Of the whole IP packet, in bytes. */
  readonly size: number;
  /** Milliseconds from one to the next. */
  readonly interval: number;
  /** Milliseconds for the last one's answer. */
  readonly wait: number;
  /** The first answer, or the first that says why there is none, is enough. */
  readonly first?: boolean;
  readonly signal: AbortSignal;
}

export interface SearchOptions {
  /** Milliseconds for the answer to the last try. */
  readonly wait: number;
  /** How often a size is tried before it counts as too large: a packet may be lost for other reasons. */
  readonly tries: number;
  readonly signal: AbortSignal;
}

export interface Largest {
  /** Of the whole IP packet; undefined: not found out. */
  readonly bytes: number | undefined;
  /** Who said that more is too much. */
  readonly told: Problem | undefined;
}

export class Prober {
  readonly #to: Address;
  readonly #socket: IcmpSocket;
  readonly #mark: EchoMark = { id: randomInt(0x10000), token: randomInt(2 ** 32) };
  #sequence = 0;
  #about: { readonly port: number; readonly problem: Problem }[] = [];

  /** Throws a SetupError: no permission, or `from` is no address of this host. */
  constructor(to: Address, from: Address | undefined) {
    this.#to = to;
    this.#socket = new IcmpSocket(to.family, from?.bytes);
  }

  /** Sends echoes and waits for the answers. */
  async round(options: RoundOptions): Promise<Round> {
    const { count, size, interval, wait, first = false, signal } = options;
    const sentAt = new Map<number, number>();
    const rtts: number[] = [];
    const problems: Problem[] = [];
    let refused: string | null = null;
    let [sent, refusals] = [0, 0];
    let next = performance.now();
    const over = (now: number): boolean => {
      if (signal.aborted || rtts.length + refusals === count) return true;
      if (first && (rtts.length > 0 || refusals > 0 || problems.length > 0)) return true;
      return sent === count && now >= next - interval + wait;
    };
    for (let now = next; !over(now); now = performance.now()) {
      if (sent < count && now >= next) {
        const sequence = ++this.#sequence & 0xffff;
        sentAt.set(sequence, performance.now());
        const result = this.#send(sequence, size);
        if (result < 0) {
          refused = errnoText(result);
          refusals++;
        }
        sent++;
        next = now + interval;
      }
      const until = sent < count ? next : next - interval + wait;
      this.#socket.wait(Math.min(MOST_BLOCKED, Math.max(0, Math.ceil(until - performance.now()))));
      this.#listen(sentAt, rtts, problems);
      await nextTurn();
    }
    return { sent, rtts, refused, problems };
  }

  /** The largest packet between `least`, which got through, and `most` that gets through. */
  async largest(least: number, most: number, { wait, tries, signal }: SearchOptions): Promise<Largest> {
    let told: Problem | undefined;
    const passes = async (size: number): Promise<boolean> => {
      const interval = Math.min(MOST_BETWEEN, wait);
      const round = await this.round({ count: tries, size, interval, wait, first: true, signal });
      told = round.problems.find(({ mtu }) => mtu !== undefined) ?? told;
      return round.rtts.length > 0;
    };
    if (await passes(most)) return { bytes: most, told: undefined };
    // Whoever says how much it takes is mostly right.
    const said = told?.mtu;
    let [low, high] = [least, most];
    if (said !== undefined && said > low && said < high && (await passes(said))) low = said;
    if (low === said && !(await passes(said + 1))) return { bytes: said, told };
    while (high - low > 1 && !signal.aborted) {
      const middle = (low + high) >> 1;
      if (await passes(middle)) low = middle;
      else high = middle;
    }
    return { bytes: signal.aborted ? undefined : low, told };
  }

  /** What was said about UDP datagrams that went to this address, at that port, as long as this is open. */
  aboutUdp(port: number): Problem[] {
    this.#listen(new Map(), [], []);
    return this.#about.filter((one) => one.port === port).map(({ problem }) => problem);
  }

  close(): void {
    this.#socket.close();
  }

  #send(sequence: number, size: number): number {
    const { family, bytes } = this.#to;
    return this.#socket.send(echoRequest(family, this.#mark, sequence, size - IP_HEADER[family]), bytes);
  }

  #listen(sentAt: Map<number, number>, rtts: number[], problems: Problem[]): void {
    for (let came = this.#socket.receive(); came; came = this.#socket.receive()) {
      const read = readIcmp(this.#to.family, came.message, this.#mark);
      if (read?.kind === 'reply' && equal(came.from, this.#to.bytes)) {
        const at = sentAt.get(read.sequence);
        if (at !== undefined) rtts.push(performance.now() - at);
        sentAt.delete(read.sequence);
      } else if (read?.kind === 'error' && equal(read.to, this.#to.bytes)) {
        const problem = { from: addressOf(came.from).text, what: meaning(this.#to.family, read), mtu: read.mtu };
        if (read.sequence !== undefined && sentAt.delete(read.sequence)) problems.push(problem);
        if (read.udpPort !== undefined) this.#about = [...this.#about, { port: read.udpPort, problem }].slice(-64);
      }
    }
  }
}

const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

const UNREACHABLE4: Readonly<Record<number, string>> = {
  0: 'network unreachable',
  1: 'host unreachable',
  2: 'protocol unreachable',
  3: 'port unreachable',
  4: 'too big',
  9: 'forbidden by a firewall',
  10: 'forbidden by a firewall',
  13: 'forbidden by a firewall',
};
const UNREACHABLE6: Readonly<Record<number, string>> = {
  0: 'no route',
  1: 'forbidden by a firewall',
  3: 'host unreachable',
  4: 'port unreachable',
  5: 'forbidden by a firewall',
  6: 'route rejects it',
};

/** For people (RFC 792, RFC 1812 5.2.7.1; RFC 4443 3). */
function meaning(family: 4 | 6, { type, code, mtu }: IcmpError): string {
  if (mtu !== undefined) return `too big, at most ${mtu} bytes`;
  if (type === (family === 4 ? 11 : 3)) return 'time to live exceeded';
  if (family === 6 && type === 2) return 'too big';
  return (family === 4 ? UNREACHABLE4 : UNREACHABLE6)[code] ?? `ICMP type ${type} code ${code}`;
}
