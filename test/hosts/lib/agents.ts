/** The near end of agent.ts: an agent in a namespace, asked by method calls. */
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { type Namespace, sleep } from '../../../race/hosts.js';
import type { AgentCommand, StreamAnswer, TcpAnswer, UdpAnswer } from './agent.js';

const PROGRAM = fileURLToPath(new URL('./agent.js', import.meta.url));

/** Where every agent listens for TCP, and echoes UDP. */
export const PORT = 9000;
/** Where it counts a numbered stream. */
export const STREAM_PORT = 9001;

export const MiB = 1024 * 1024;

export class Agent {
  readonly #child: ChildProcess;
  readonly #waiting: ((line: string | undefined) => void)[] = [];
  #stderr = '';
  #ended = false;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
    const lines = createInterface({ input: child.stdout! });
    lines.on('line', (line) => this.#waiting.shift()?.(line));
    lines.on('close', () => {
      this.#ended = true;
      for (const wake of this.#waiting.splice(0)) wake(undefined);
    });
    child.stdin?.on('error', () => {});
  }

  /** Starts an agent in `ns` and has it listen. */
  static async start(ns: Namespace): Promise<Agent> {
    const agent = new Agent(ns.spawn(process.execPath, [PROGRAM], { stdio: ['pipe', 'pipe', 'pipe'] }));
    await agent.ask({ op: 'listen', port: PORT });
    return agent;
  }

  async ask<Answer>(command: AgentCommand): Promise<Answer> {
    const line = await new Promise<string | undefined>((resolve) => {
      if (this.#ended) return resolve(undefined);
      this.#waiting.push(resolve);
      this.#child.stdin?.write(`${JSON.stringify(command)}\n`);
    });
    if (line === undefined) throw new Error(`the agent ended: ${this.#stderr.trim().split('\n').at(-1) || 'no word'}`);
    const { answer, error } = JSON.parse(line) as { answer?: Answer; error?: string };
    if (error !== undefined) throw new Error(`${command.op}: ${error}`);
    return answer as Answer;
  }

  /** `flows` TCP connections to another agent, each `bytes` long (and back, with `duplex`), seeds from `seed` up. */
  tcp(
    address: string,
    options: { bytes: number; flows?: number; duplex?: boolean; seed?: number; stallMs?: number },
  ): Promise<TcpAnswer> {
    const { bytes, flows = 1, duplex = false, seed = 1, stallMs = 30_000 } = options;
    return this.ask({ op: 'tcp', address, port: PORT, seed, bytes, flows, duplex, stallMs });
  }

  /** TCP for a time, content not looked at. */
  blast(address: string, seconds: number): Promise<{ bytes: number }> {
    return this.ask({ op: 'blast', address, port: PORT, seconds });
  }

  udp(address: string, sizes: readonly number[], seed = 1): Promise<UdpAnswer> {
    return this.ask({ op: 'udp', address, port: PORT, sizes, seed });
  }

  /** Counts, from now on, a numbered stream that `send` of another agent makes. */
  expect(): Promise<object> {
    return this.ask({ op: 'expect', port: STREAM_PORT });
  }

  send(address: string, rate: number, size = 64): Promise<object> {
    return this.ask({ op: 'send', address, port: STREAM_PORT, rate, size });
  }

  /** Ends what `send` began. */
  stop(): Promise<{ readonly sent: number; readonly refused: number }> {
    return this.ask({ op: 'stop' });
  }

  counted(): Promise<StreamAnswer> {
    return this.ask({ op: 'counted' });
  }

  /** The count, as soon as `sent` datagrams are there, or after a moment in which no more come. */
  async countedUpTo(sent: number): Promise<StreamAnswer> {
    let before = -1;
    for (;;) {
      const now = await this.counted();
      if (now.received + now.wrong >= sent || now.received === before) return now;
      before = now.received;
      await sleep(400);
    }
  }

  datagrams(
    address: string,
    payloads: readonly Uint8Array[],
    from?: { readonly address: string; readonly port: number },
    port = 8285,
  ): Promise<object> {
    const hex = payloads.map((bytes) => Buffer.from(bytes).toString('hex'));
    return this.ask({ op: 'datagrams', address, port, hex, ...(from ? { from } : {}) });
  }

  raw(address: string, packets: readonly Uint8Array[]): Promise<object> {
    return this.ask({ op: 'raw', address, hex: packets.map((bytes) => Buffer.from(bytes).toString('hex')) });
  }
}

/** Debian's own python3, which has python3-scapy; another may come first in the path. */
export const PYTHON = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3';

/**
 * Numbered datagrams (agent.ts), many in one system call by UDP_SEGMENT: what applications with USO give the kernel.
 * Arguments: address, port, datagram size, datagrams a call, calls, bytes of each call's last datagram, 1 to leave
 * DF off and to care for no path MTU (IP_PMTUDISC_INTERFACE), 1 to send them one by one without UDP checksums.
 */
const PYTHON_SEGMENTS = `
import socket, struct, sys, time
address = sys.argv[1]
port, size, each, calls, last, whole, bare = map(int, sys.argv[2:])
s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
s.connect((address, port))
if bare: s.setsockopt(socket.SOL_SOCKET, 11, 1)
else: s.setsockopt(17, 103, size)
if whole: s.setsockopt(socket.IPPROTO_IP, 10, 4)
pattern = [bytes((i * 13 + (i >> 8) * 31 + n * 7) & 255 for i in range(4, size)) for n in range(256)]
def datagram(n, bytes): return struct.pack('>I', n) + pattern[n & 255][:bytes - 4]
n = again = 0
for _ in range(calls):
    parts = [datagram(n + i, size if i < each - 1 else last) for i in range(each)]
    if bare:
        for part in parts: s.send(part)
        parts = []
    data = b''.join(parts)
    for tries in range(5 if data else 0):
        try:
            s.send(data)
            break
        except OSError as error:
            if error.errno != 90 or tries == 4: raise
            again += 1
    n += each
    time.sleep(0.002)
print(n, again)
`;

/** Sends `calls` x `each` numbered datagrams of `size` bytes from `ns` to another agent's stream port. Returns how many. */
export async function sendSegments(
  ns: Namespace,
  address: string,
  options: {
    readonly size: number;
    readonly each: number;
    readonly calls: number;
    readonly last?: number;
    readonly mayFragment?: boolean;
    /** One by one, and without UDP checksums (IPv4). */
    readonly bare?: boolean;
  },
): Promise<number> {
  const { size, each, calls, last = size, mayFragment = false, bare = false } = options;
  const numbers = [STREAM_PORT, size, each, calls, last, mayFragment ? 1 : 0, bare ? 1 : 0].map(String);
  const { code, stdout, stderr } = await ns.run(PYTHON, ['-c', PYTHON_SEGMENTS, address, ...numbers]);
  if (code !== 0) throw new Error(`UDP_SEGMENT: ${stderr.trim().split('\n').at(-1)}`);
  return Number(stdout.split(' ')[0]);
}
