/**
 * Two hosts with daemons that a test breaks and mends: what all of them can do. Commands run there as a person at a terminal would
 * run them, `weft` among them.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { answersPing, type Host, type Lab, type Namespace } from '../../../race/hosts.js';
import { Agent, sendSegments } from './agents.js';
import type { Weft } from './weft.js';

const CLI = fileURLToPath(new URL('../../../src/cli.js', import.meta.url));
/** Longer than any command of the text takes on a busy machine. */
const COMMAND_SECONDS = 40;

/** Puts right again what was broken. */
export type Mend = () => void | Promise<void>;

/** Starts a daemon with these arguments beside its usual ones, and resolves once it forwards. */
export type Start = (host: Host, args: readonly string[]) => Promise<Weft>;

export interface Ends {
  readonly a: Host;
  readonly b: Host;
  /** Every namespace by the name that it has in the text. */
  readonly places: Readonly<Record<string, Namespace>>;
  /** From where to where it has to be able to ping, and the latter's address. */
  readonly from: Namespace;
  readonly to: Namespace;
  readonly address: string;
  /** Layer 2: of another one there, whose MAC nobody has learned. */
  readonly unasked: string;
}

export class BrokenPair {
  readonly ends: Ends;
  readonly lab: Lab;
  /** The daemons that run, by their host's letter. */
  readonly wefts: { a: Weft; b: Weft };
  readonly #start: Start;
  readonly #agents: { from: Agent; to: Agent };
  readonly #path: string;

  private constructor(ends: Ends, start: Start, wefts: { a: Weft; b: Weft }, agents: { from: Agent; to: Agent }) {
    this.ends = ends;
    this.lab = ends.a.ns.lab;
    this.#start = start;
    this.wefts = wefts;
    this.#agents = agents;
    const bin = join(this.lab.dir, 'bin');
    mkdirSync(bin, { recursive: true });
    writeFileSync(join(bin, 'weft'), `#!/bin/sh\nexec '${process.execPath}' '${CLI}' "$@"\n`);
    chmodSync(join(bin, 'weft'), 0o755);
    this.#path = `${bin}:/usr/sbin:/sbin:${process.env.PATH}`;
  }

  /** Starts a daemon on each, and resolves once they forward. */
  static async start(ends: Ends, start: Start): Promise<BrokenPair> {
    const [a, b, from, to] = await Promise.all([
      start(ends.a, []),
      start(ends.b, []),
      Agent.start(ends.from),
      Agent.start(ends.to),
    ]);
    const pair = new BrokenPair(ends, start, { a, b }, { from, to });
    if (!(await pair.pings(5000))) throw new Error('the whole pair does not answer a ping');
    return pair;
  }

  /** Ends the daemon of a host; what comes back starts one again. */
  async stop(letter: 'a' | 'b'): Promise<Mend> {
    await this.wefts[letter].stop();
    return async () => {
      this.wefts[letter] = await this.#start(this.ends[letter], []);
    };
  }

  /** Ends the daemon of a host and starts one with more arguments; what comes back starts the former again. */
  async restart(letter: 'a' | 'b', ...args: string[]): Promise<Mend> {
    await this.stop(letter);
    this.wefts[letter] = await this.#start(this.ends[letter], args);
    return async () => (await this.stop(letter))();
  }

  /** How often a daemon has put in force what its registry said. */
  async applied(letter: 'a' | 'b'): Promise<number> {
    return (await this.wefts[letter].sample('weft_registry_applied_total')) ?? 0;
  }

  /** What a command prints on a terminal of that place, errors and all. */
  async type(place: string, command: string): Promise<string> {
    const ns = this.ends.places[place];
    if (!ns) throw new Error(`${place}# ${command}: there is no ${place}`);
    const env = { ...process.env, PATH: this.#path, NO_COLOR: '1', TERM: 'xterm' };
    const { stdout, stderr } = await ns.run('timeout', [`${COMMAND_SECONDS}`, 'script', '-qec', command, '/dev/null'], {
      env,
    });
    return `${stdout}${stderr}`.replaceAll('\r', '');
  }

  /** Runs `ip`, `iptables` and the like on a host, and throws where that fails. */
  on(place: string, command: string): void {
    this.ends.places[place].runSync('bash', '-c', command);
  }

  /** Breaks by one command, and mends by another. */
  by(place: string, command: string, back: string): Mend {
    this.on(place, command);
    return () => this.on(place, back);
  }

  /** True if a ping is answered; with a time: one of several. */
  async pings(withinMs = 0): Promise<boolean> {
    const { from, address } = this.ends;
    if (withinMs > 0) return answersPing(from, address, withinMs);
    return (await from.run('ping', ['-n', '-c', '1', '-W', '1', address])).code === 0;
  }

  /** Pings all the time, so that there is always something to see. */
  keepPinging(): Mend {
    const { a, b, from, places } = this.ends;
    const [place] = Object.entries(places).find(([, ns]) => ns === from && ns !== a.ns && ns !== b.ns) ?? ['a'];
    return this.keepDoing(place, `ping -n -c 5 -i 0.2 -W 1 ${this.ends.address}`);
  }

  /** What both daemons dropped, and the kernel at their sockets and devices. */
  async dropped(): Promise<number> {
    let sum = 0;
    for (const weft of [this.wefts.a, this.wefts.b]) {
      for (const line of (await weft.metrics()).split('\n')) {
        const match = /^weft_(?:drops|socket_overflow|device_dropped)_total(?:\{.*\})? (\S+)$/.exec(line);
        if (match) sum += Number(match[1]);
      }
    }
    return sum;
  }

  /** Layer 2: true if nobody answers for an address; what weftd has learned it goes on answering. */
  async asksInVain(): Promise<boolean> {
    const { from, unasked } = this.ends;
    const answered = (await from.run('ping', ['-n', '-c', '1', '-W', '1', unasked])).code === 0;
    const { stdout } = await from.run('ip', ['neigh', 'show', unasked]);
    await from.run('ip', ['neigh', 'flush', 'dev', 'eth0']); // so that it does not go on asking
    return !answered && /INCOMPLETE|FAILED/.test(stdout);
  }

  /** Of both daemons together: what was learned in layer 2, by its name in /metrics. */
  async learned(name: string): Promise<number> {
    const all = await Promise.all([this.wefts.a.counters(), this.wefts.b.counters()]);
    return all.reduce((sum, counters) => sum + counters.get(`tables.${name}`), 0);
  }

  /** True if bytes enough for several full segments arrive by TCP, as they were. */
  async carriesTcp(): Promise<boolean> {
    try {
      const { flows } = await this.#agents.from.tcp(this.ends.address, { bytes: 200_000, stallMs: 1200 });
      return flows.every(({ sent, received, wrongAt }) => sent === received && wrongAt < 0);
    } catch {
      return false;
    }
  }

  /** Datagrams from one end to the other, in such numbers that a host that stands still for a moment cannot keep them. */
  async flood(): Promise<Mend> {
    const { from, address } = this.ends;
    await this.#agents.to.expect();
    let ended = false;
    const sending = (async () => {
      while (!ended) await sendSegments(from, address, { size: 1200, each: 50, calls: 400 });
    })();
    return async () => {
      ended = true;
      await sending;
    };
  }

  /** Something that goes on in the background until it is mended. */
  keepDoing(place: string, command: string): Mend {
    const ns = this.ends.places[place];
    const child = ns.spawn('bash', ['-c', `while :; do ${command}; sleep 0.1; done`], { stdio: 'ignore' });
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    return async () => {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      await gone;
    };
  }
}
