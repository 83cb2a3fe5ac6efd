/**
 * Captures: turns the workers' taps on, and streams what they write to their rings to whoever asked, frame by frame
 * (capture-frames.ts). One at a time. A reader that does not read stops the draining; then rings fill, and what finds no room is
 * counted as lost: the daemon holds one chunk, and forwarding does not wait.
 */
import type { Writable } from 'node:stream';
import { type CaptureWish, writeCaptureFilter } from '../dataplane/capture-filter.js';
import { CaptureRing } from '../dataplane/capture-ring.js';
import type { PeerRef } from '../dataplane/peers.js';
import type { SharedWords } from '../dataplane/shared.js';
import { VERDICT_INFOS } from '../dataplane/verdicts.js';
import type { EngineMemory } from '../io/memory.js';
import {
  type CaptureCounts,
  type CaptureEnd,
  type CaptureHead,
  type CapturePeer,
  type CaptureScene,
  FRAME_COUNTS,
  FRAME_END,
  FRAME_HEAD,
  FRAME_PEERS,
  FRAME_RECORDS,
  frameOf,
  jsonFrame,
} from './capture-frames.js';
import { type CaptureQuestion, captureQuestion } from './capture-question.js';
import { Refusal } from './refusal.js';

/** What captures look at. */
export interface CaptureSource {
  /** Undefined while there is no dataplane (yet), or it has no workers: then there is nothing to capture. */
  readonly dataplane: () => CapturedDataplane | undefined;
  /** What the packets pass, now. */
  readonly scene: () => CaptureScene;
  /** References of a peer that is named by its name or underlay address, one for each network that it is in; none: unknown. */
  readonly refsOf: (peer: string) => readonly PeerRef[];
  /** All that there are, with their references. */
  readonly peers: () => Iterable<CapturePeer & { readonly ref: PeerRef }>;
  /** Of the package. */
  readonly version: string;
}

export interface CapturedDataplane {
  readonly memory: EngineMemory;
  readonly shared: SharedWords;
  /** Ends the poll of every worker. */
  readonly wake: () => void;
}

/** One that runs. */
export interface RunningCapture extends CaptureCounts {
  /** Milliseconds since 1970. */
  readonly since: number;
  /** The query that asked for it. */
  readonly query: string;
}

/** How often rings that were empty are looked at again, in milliseconds. */
const LOOK_EVERY = 20;
/** How often it is looked whether the scene or a wanted peer has changed. */
const REFRESH_EVERY = 1000;
/** Bytes of records in one frame: of several turns, and more than the longest record. */
const CHUNK = 256 * 1024;
/** Seconds that wall-clock time may run away from what the head said, before another one says it again. */
const CLOCK_TOLERANCE = 0.1;
/** Milliseconds that a reader has for what is still in the rings: when it ends as was asked, and when the daemon stops. */
const END_WITHIN = 5000;
const STOP_WITHIN = 150;
/** Longest wait for workers to see that a capture begins or ends; they take a turn twice a second, whatever happens. */
const WORKERS_WITHIN = 1000;

export class Captures {
  readonly #source: CaptureSource;
  #current: Capture | undefined;

  constructor(source: CaptureSource) {
    this.#source = source;
  }

  get running(): RunningCapture | undefined {
    return this.#current?.status;
  }

  /**
   * Claims the capture that `query` asks for (capture-question.ts); `run` must follow. Throws a Refusal: what is asked makes no
   * sense, there is no such peer, there is nothing to capture, or somebody captures already.
   */
  open(query: URLSearchParams): Capture {
    const question = captureQuestion(query);
    const dataplane = this.#source.dataplane();
    if (dataplane === undefined) throw new Refusal(503, 'capture: no packets pass through weftd yet');
    for (const peer of question.peers) {
      if (this.#source.refsOf(peer).length === 0) throw new Refusal(404, `capture: no peer ${JSON.stringify(peer)}`);
    }
    if (this.#current !== undefined) {
      const { since } = this.#current.status;
      throw new Refusal(409, `capture: another one runs, since ${new Date(since).toISOString()}: end that first`);
    }
    const capture = new Capture(this.#source, dataplane, question, query.toString(), () => {
      if (this.#current === capture) this.#current = undefined;
    });
    this.#current = capture;
    return capture;
  }

  /** Ends the one that runs; resolves when it has. */
  async close(): Promise<void> {
    await this.#current?.stop();
  }
}

export class Capture {
  readonly #source: CaptureSource;
  readonly #dataplane: CapturedDataplane;
  readonly #question: CaptureQuestion;
  readonly #query: string;
  readonly #since = Date.now();
  readonly #rings: readonly CaptureRing[];
  /** Copied from when it goes to the sink, which then holds no more than there is. */
  readonly #chunk = Buffer.allocUnsafeSlow(CHUNK);
  readonly #over: Promise<void>;
  #finish: () => void = () => {};
  #sink: Writable | undefined;
  #session = 0;
  #captured = 0;
  #saidLost = 0;
  /** Packets that were still in the rings when it ended. */
  #left = 0;
  /** The ring that is read first next time: one with a backlog must not keep the chunk from the others. */
  #first = 0;
  /** Why it ends; `gone`: nobody listens any more. */
  #why: CaptureEnd['reason'] | 'gone' | undefined;
  /** Ends a wait before its time. */
  #interrupt: () => void = () => {};
  #saidScene = '';
  #saidClock: CaptureHead['clock'] = { seconds: 0, nanoseconds: 0 };
  #wanted = '';
  readonly #saidPeers = new Set<PeerRef>();

  constructor(
    source: CaptureSource,
    dataplane: CapturedDataplane,
    question: CaptureQuestion,
    query: string,
    release: () => void,
  ) {
    this.#source = source;
    this.#dataplane = dataplane;
    this.#question = question;
    this.#query = query;
    this.#rings = dataplane.memory.layout.workers.map((layout) => new CaptureRing(dataplane.memory, layout));
    this.#over = new Promise((resolve) => {
      this.#finish = () => {
        release();
        resolve();
      };
    });
  }

  get status(): RunningCapture {
    return { since: this.#since, query: this.#query, ...this.#counts() };
  }

  /**
   * Streams into `sink` and ends it; resolves when it is over: as was asked (`count`, `seconds`), because the sink has closed, or
   * by `stop`. Rejects, with the sink destroyed, where something is wrong with us.
   */
  async run(sink: Writable): Promise<void> {
    this.#sink = sink;
    const gone = (): void => this.#end('gone');
    sink.on('close', gone);
    sink.on('error', gone);
    const { seconds } = this.#question;
    let timer: NodeJS.Timeout | undefined;
    try {
      if (sink.destroyed || sink.writableEnded) gone();
      await this.#begin();
      if (seconds !== undefined) timer = setTimeout(() => this.#end('seconds'), seconds * 1000);
      await this.#stream();
      await this.#conclude();
    } catch (error) {
      sink.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
      this.#dataplane.shared.endCapture();
      sink.off('close', gone);
      if (!sink.destroyed) sink.end();
      this.#finish();
    }
  }

  /** Ends it; resolves when it has. */
  async stop(): Promise<void> {
    if (this.#sink === undefined) this.#finish();
    this.#end('stopping');
    await this.#over;
  }

  #end(why: CaptureEnd['reason'] | 'gone'): void {
    if (this.#why === undefined || why === 'gone') this.#why = why;
    this.#interrupt();
  }

  #counts(): CaptureCounts {
    return { captured: this.#captured, lost: this.#session === 0 ? 0 : this.#lost() };
  }

  #lost(): number {
    return this.#rings.reduce((sum, ring) => sum + ring.lost, this.#left);
  }

  /** Turns the taps on. The head follows when every worker has seen it: so from then on nothing is missed. */
  async #begin(): Promise<void> {
    this.#wish();
    for (const ring of this.#rings) ring.start();
    this.#session = this.#dataplane.shared.beginCapture();
    await this.#workersPassed();
    this.#sayScene();
  }

  async #stream(): Promise<void> {
    let refreshed = performance.now();
    while (this.#why === undefined) {
      if (performance.now() - refreshed > REFRESH_EVERY) {
        refreshed = performance.now();
        this.#wish();
        this.#sayScene();
      }
      const bytes = this.#drain();
      if (this.#sink?.writableNeedDrain) await this.#drained();
      // A ring holds far more than comes in that time, unless a chunk of it is waiting already; a trickle need not wake control each time.
      else await this.#wait(bytes > CHUNK / 2 ? 0 : LOOK_EVERY);
    }
  }

  /** What is still in the rings, as far as it is read in time; the rest is lost. Then the end. */
  async #conclude(): Promise<void> {
    this.#dataplane.shared.endCapture();
    const sink = this.#sink;
    if (this.#why === undefined || this.#why === 'gone' || sink === undefined) return;
    const until = performance.now() + (this.#why === 'stopping' ? STOP_WITHIN : END_WITHIN);
    await this.#workersPassed();
    while (!sink.destroyed) {
      if (sink.writableNeedDrain) await this.#drainedBy(sink, until);
      if (sink.writableNeedDrain || this.#drain() === 0) break;
    }
    if (this.#why !== 'count') for (const ring of this.#rings) this.#left += ring.skip(this.#session);
    const end: CaptureEnd = { ...this.#counts(), reason: this.#why };
    if (!sink.destroyed) sink.write(jsonFrame(FRAME_END, end));
  }

  async #drainedBy(sink: Writable, until: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    let over = (): void => {};
    await new Promise<void>((resolve) => {
      over = resolve;
      timer = setTimeout(over, Math.max(0, until - performance.now()));
      sink.once('drain', over);
      sink.once('close', over);
    });
    clearTimeout(timer);
    sink.off('drain', over);
    sink.off('close', over);
  }

  /** Moves one chunk to the sink. Returns its bytes. */
  #drain(): number {
    if (this.#rings.every((ring) => ring.empty)) {
      this.#sayLost();
      return 0;
    }
    const most = (this.#question.count ?? Number.POSITIVE_INFINITY) - this.#captured;
    const fresh = new Set<PeerRef>();
    let packets = 0;
    const seen = (ref: PeerRef): void => {
      packets++;
      if (ref !== 0 && !this.#saidPeers.has(ref)) fresh.add(ref);
    };
    let bytes = 0;
    for (let i = 0; i < this.#rings.length; i++) {
      const ring = this.#rings[(this.#first + i) % this.#rings.length];
      bytes += ring.take(this.#session, this.#chunk, bytes, most - packets, seen);
    }
    this.#first = (this.#first + 1) % this.#rings.length;
    this.#captured += packets;
    this.#sayPeers(fresh);
    if (packets > 0) this.#sink?.write(frameOf(FRAME_RECORDS, this.#chunk.subarray(0, bytes)));
    this.#sayLost();
    if (this.#captured === this.#question.count) this.#end('count');
    return packets > 0 ? bytes : 0;
  }

  /** Says again what is wanted, if that has changed: the references of peers do. */
  #wish(): void {
    const { peers: names, snaplen, places, verdicts, hosts } = this.#question;
    const peers = names.length === 0 ? undefined : [...new Set(names.flatMap((name) => this.#source.refsOf(name)))];
    const wanted = peers?.join() ?? 'all';
    if (wanted === this.#wanted) return;
    this.#wanted = wanted;
    const wish: CaptureWish = { snaplen, places, verdicts, peers, hosts };
    writeCaptureFilter(this.#dataplane.memory, wish);
    if (this.#session !== 0) this.#dataplane.shared.reviseCapture();
  }

  #sayScene(): void {
    const scene = this.#source.scene();
    const text = JSON.stringify(scene);
    const clock = clockOffset();
    const apart = Math.abs(secondsOf(clock) - secondsOf(this.#saidClock));
    if (text === this.#saidScene && apart < CLOCK_TOLERANCE) return;
    this.#saidScene = text;
    this.#saidClock = clock;
    const head: CaptureHead = {
      ...scene,
      version: this.#source.version,
      clock,
      snaplen: this.#question.snaplen,
      verdicts: VERDICT_INFOS,
    };
    this.#sink?.write(jsonFrame(FRAME_HEAD, head));
  }

  /** Those that nobody finds have just gone; should they be seen again, they are looked for again. */
  #sayPeers(fresh: ReadonlySet<PeerRef>): void {
    if (fresh.size === 0) return;
    const peers: Record<string, CapturePeer> = {};
    for (const { ref, name, address } of this.#source.peers()) {
      if (!fresh.has(ref)) continue;
      peers[ref] = { name, address };
      this.#saidPeers.add(ref);
    }
    if (Object.keys(peers).length > 0) this.#sink?.write(jsonFrame(FRAME_PEERS, peers));
  }

  #sayLost(): void {
    const counts = this.#counts();
    if (counts.lost === this.#saidLost) return;
    this.#saidLost = counts.lost;
    this.#sink?.write(jsonFrame(FRAME_COUNTS, counts));
  }

  /** Every worker that runs has begun a turn since. */
  async #workersPassed(): Promise<void> {
    const { shared, wake } = this.#dataplane;
    const epochs = shared.epochs();
    wake();
    for (const until = performance.now() + WORKERS_WITHIN; !shared.passed(epochs) && performance.now() < until; ) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async #drained(): Promise<void> {
    const sink = this.#sink;
    await new Promise<void>((resolve) => {
      this.#interrupt = resolve;
      sink?.once('drain', resolve);
      if (this.#why !== undefined) resolve();
    });
  }

  async #wait(milliseconds: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#interrupt = resolve;
      timer = setTimeout(resolve, milliseconds);
      if (this.#why !== undefined) resolve();
    });
    clearTimeout(timer);
  }
}

const secondsOf = ({ seconds, nanoseconds }: CaptureHead['clock']): number => seconds + nanoseconds / 1e9;

/** Wall-clock time less CLOCK_MONOTONIC. It leaps when the clock is set, and after the machine was suspended. */
function clockOffset(): CaptureHead['clock'] {
  const before = process.hrtime.bigint();
  const wall = BigInt(Date.now()) * 1_000_000n; // whole milliseconds: what is lost is less than that
  const offset = wall - before;
  return { seconds: Number(offset / 1_000_000_000n), nanoseconds: Number(offset % 1_000_000_000n) };
}
