/**
 * The highest packet rate that a subject carries with at most 0.1 % loss.
 *
 * A rate passes if two of three steps of three seconds do; a step before them of one second, cheaper, finds the rates that
 * are far too high. First the generator sends as fast as it can: if even that passes, it is the answer, and the subject is
 * "sender-bound". That is how the kernel's own forwarding ends, whose work is done in the sender's time: it shows no loss,
 * it makes sending slower. Otherwise the search grows or shrinks the rate until it has one that passes and one that fails,
 * and halves the gap between them (geometrically) until it is below 3 %, beginning at the median of the rounds before.
 */
import type { ChildProcess } from 'node:child_process';
import { createInterface, type Interface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { type Host, type Namespace, sleep } from './hosts.js';
import { median } from './measures.js';
import type { Counted, GenerateCommand, Generated, Mix, SinkCommand } from './traffic.js';

export const MAX_LOSS = 0.001;
const STEPS = 3;
const STEPS_TO_PASS = 2;
const STEP_SECONDS = 3;
const SCREEN_SECONDS = 1;
const SCREEN_MAX_LOSS = 0.01;
/** The search ends when the failing rate is this little above the passing one. */
const PRECISION = 1.03;
const MAX_PROBES = 9;
/** Below this share of the asked rate the sender was held back, and a higher rate would not be another one. */
const MIN_SENT = 0.98;
/** What is still on its way when the generator stops. */
const DRAIN_MS = 150;

/** A process that answers each line of JSON by one; see traffic.ts. */
class Peer<Command, Answer> {
  readonly #child: ChildProcess;
  readonly #name: string;
  readonly #lines: Interface;
  #error = '';

  constructor(ns: Namespace, name: string) {
    this.#name = name;
    const program = fileURLToPath(new URL(`${name}.js`, import.meta.url));
    this.#child = ns.spawn(process.execPath, [program], { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#lines = createInterface({ input: this.#child.stdout! });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#error += text;
    });
    this.#child.stdin!.on('error', () => {});
  }

  ask(command: Command): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const ended = (): void => {
        const why = this.#error.split('\n').find((line) => line.includes('Error')) ?? 'it ended';
        reject(new Error(`the ${this.#name} process failed: ${why}`));
      };
      if (this.#child.exitCode !== null) return ended();
      this.#child.once('close', ended);
      this.#lines.once('line', (line) => {
        this.#child.off('close', ended);
        resolve(JSON.parse(line) as Answer);
      });
      this.#child.stdin!.write(`${JSON.stringify(command)}\n`);
    });
  }
}

export interface Step {
  /** Packets a second, really sent and received. */
  readonly sent: number;
  readonly received: number;
  /** Share lost, 0 … 1. */
  readonly loss: number;
  readonly reordered: number;
}

export interface Lossless {
  /** Packets a second, really sent. */
  readonly rate: number;
  /** No loss was seen at any rate that could be sent. */
  readonly senderBound: boolean;
  readonly reordered: number;
}

/** Generator at host a's client, sink at the others' (which they share); both live as long as the race. */
export class Blaster {
  readonly #generator: Peer<GenerateCommand, Generated>;
  readonly #sink: Peer<SinkCommand, Counted>;
  readonly #hosts: readonly Host[];
  #run = 0;

  /** `hosts`: a, then those whose clients receive. */
  constructor(hosts: readonly Host[]) {
    this.#hosts = hosts;
    this.#generator = new Peer(hosts[0].client, 'generate');
    this.#sink = new Peer(hosts[1].client, 'sink');
  }

  /** Sends at `rate` packets a second, or flat out for null: pps64 to host b, imix to all of them. */
  async step(mix: Mix, rate: number | null, seconds: number): Promise<Step> {
    const far = this.#hosts.slice(1);
    const addresses = (mix === 'pps64' ? far.slice(0, 1) : far).map((host) => host.client4);
    const run = ++this.#run;
    await this.#sink.ask({ count: run });
    const generated = await this.#generator.ask({ run, mix, addresses, rate, seconds });
    await sleep(DRAIN_MS);
    const counted = await this.#sink.ask({ report: true });
    if (counted.overflowed > 0)
      throw new Error(`the sink itself lost ${counted.overflowed} packets: the figure means nothing`);
    return {
      sent: generated.sent / generated.seconds,
      received: counted.received / generated.seconds,
      loss: Math.max(0, 1 - counted.received / generated.sent),
      reordered: counted.reordered,
    };
  }

  /** `before`: what the earlier searches for this subject found. `tell` is called with each step's outcome. */
  async search(mix: Mix, before: readonly Lossless[], tell: (text: string) => void): Promise<Lossless> {
    let best: Lossless | undefined;
    let heldBackBefore = false;
    let senderBound = false;
    let low = 0;
    let high = Number.POSITIVE_INFINITY;
    const last = before.at(-1);
    let rate: number | null = last && !last.senderBound ? median(before.map((one) => one.rate)) : null;
    let growth = 1.1;
    for (let probes = 0; probes < MAX_PROBES && high / low > PRECISION; probes++) {
      const { found, received } = await this.#probe(mix, rate, tell);
      if (found && found.rate > (best?.rate ?? 0)) best = found;
      // Held back once at a given rate, it may have been something else on this machine; twice is the end.
      senderBound = (found?.senderBound && (rate === null || heldBackBefore)) ?? false;
      if (senderBound) break;
      heldBackBefore ||= found?.senderBound ?? false;
      // What arrives when flooded is a rough guess, most often too high.
      if (found) low = Math.max(low, found.rate);
      else high = rate ?? high;
      if (low > 0 && high < Number.POSITIVE_INFINITY) {
        rate = Math.sqrt(low * high);
      } else {
        rate = low > 0 ? low * growth : rate === null ? received * 0.9 : rate / growth;
        growth *= 1.1;
      }
    }
    if (!best) throw new Error(`${mix}: not even ${Math.round(high)} packets/s pass without loss`);
    return { ...best, senderBound };
  }

  /** Whether `rate` (null: as fast as it can) passes; and what arrived each second in the last step. */
  async #probe(
    mix: Mix,
    rate: number | null,
    tell: (text: string) => void,
  ): Promise<{ found: Lossless | undefined; received: number }> {
    const screened = await this.step(mix, rate, SCREEN_SECONDS);
    tell(`${describe(rate, screened)} (1 s)`);
    let received = screened.received;
    if (screened.loss > SCREEN_MAX_LOSS) return { found: undefined, received };
    const passing: Step[] = [];
    for (let left = STEPS; left > 0 && passing.length + left >= STEPS_TO_PASS; left--) {
      const step = await this.step(mix, rate, STEP_SECONDS);
      tell(describe(rate, step));
      received = step.received;
      if (step.loss <= MAX_LOSS) passing.push(step);
      if (passing.length === STEPS_TO_PASS) {
        const sent = passing.reduce((sum, one) => sum + one.sent, 0) / passing.length;
        const reordered = passing.reduce((sum, one) => sum + one.reordered, 0);
        return { found: { rate: sent, senderBound: heldBack(rate, sent), reordered }, received };
      }
    }
    return { found: undefined, received };
  }
}

const heldBack = (rate: number | null, sent: number): boolean => rate === null || sent < rate * MIN_SENT;

function describe(rate: number | null, step: Step): string {
  const asked = rate === null ? 'flat out' : `${(rate / 1000).toFixed(1)} kpps`;
  const sent = heldBack(rate, step.sent) ? `, sent ${(step.sent / 1000).toFixed(1)} kpps` : '';
  return `${asked}: loss ${(step.loss * 100).toFixed(3)} %${sent}`;
}
