/** The work of `weft capture`, from the daemon's stream to a file or lines; loaded when it is needed. */
import { constants, setPriority } from 'node:os';
import {
  type CaptureCounts,
  type CaptureEnd,
  CaptureReader,
  CaptureStreamError,
} from '../../inspect/capture-frames.js';
import { SetupError } from '../../io/setup-error.js';
import type { DaemonClient, Query } from '../daemon/client.js';
import type { Output } from '../text/output.js';
import { PacketConverter } from './capture-packets.js';
import { LineWriter, type PacketWriter, PcapngWriter } from './packet-writers.js';
import { openSink } from './sink.js';

export interface CaptureWish {
  readonly query: Query;
  /** A path, or `-`; undefined: lines on standard output. */
  readonly write: string | undefined;
  /** Bytes of the file. */
  readonly limit: number | undefined;
  readonly json: boolean;
}

/** Captures until what was asked for is there, a signal comes, nobody reads, or the daemon stops. Rejects with a SetupError. */
export async function capturePackets(daemon: DaemonClient, wish: CaptureWish, out: Output): Promise<void> {
  const over = new AbortController();
  const stop = (): unknown => setTimeout(() => over.abort(), LAST_MS);
  const run = new Run(wish, out);
  try {
    if (out.signal.aborted) return;
    giveWay();
    out.signal.addEventListener('abort', stop, { once: true });
    await run.all(await daemon.stream('capture', wish.query, over.signal));
  } catch (error) {
    if (!over.signal.aborted) throw failure(error, daemon);
  } finally {
    out.signal.removeEventListener('abort', stop);
    over.abort();
    await run.end(); // what is there is kept, whatever happened
  }
  if (run.cutOff && !out.signal.aborted) throw gone(daemon);
}

/** Where processors are short, packets go before pictures of them: what is not read in time is counted as lost. */
function giveWay(): void {
  try {
    setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
  } catch {
    // it may be forbidden, and is not needed
  }
}

/** How long after a signal what the daemon still has may come: it looks every 20 ms. */
const LAST_MS = 200;

function failure(error: unknown, daemon: DaemonClient): Error {
  if (error instanceof SetupError) return error;
  if (error instanceof CaptureStreamError) return new SetupError('BAD_ANSWER', `capture: ${error.message}`);
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ECONNRESET' ? gone(daemon) : (error as Error);
}

const gone = ({ socket }: DaemonClient): SetupError =>
  new SetupError('DAEMON_GONE', `capture: weftd at ${socket} has ended: what was captured before is kept`);

class Run {
  readonly #wish: CaptureWish;
  readonly #out: Output;
  readonly #reader = new CaptureReader();
  readonly #converter = new PacketConverter();
  #writer: PacketWriter | undefined;
  #counts: CaptureCounts = { captured: 0, lost: 0 };
  #end: CaptureEnd | undefined;
  /** It ends because of us. */
  #enough = false;

  constructor(wish: CaptureWish, out: Output) {
    this.#wish = wish;
    this.#out = out;
  }

  /** The daemon ended before it had done what was asked. */
  get cutOff(): boolean {
    return !this.#enough && (this.#end === undefined || this.#end.reason === 'stopping');
  }

  async all(stream: AsyncIterable<Uint8Array>): Promise<void> {
    for await (const chunk of stream) {
      await this.#chunk(chunk);
      if (this.#enough) return;
    }
  }

  /** Ends the file, and says what there is. */
  async end(): Promise<void> {
    const writer = this.#writer;
    if (!writer) return;
    try {
      await writer.end(this.#counts.lost);
    } finally {
      process.stderr.write(`weft: ${writer.written} captured, ${this.#counts.lost} lost\n`);
    }
  }

  async #chunk(chunk: Uint8Array): Promise<void> {
    for (const item of this.#reader.read(chunk)) {
      if (item.kind === 'head') {
        const added = this.#converter.head(item.head);
        const first = this.#writer === undefined;
        this.#writer ??= await this.#open(item.head.version);
        this.#writer.interfaces(added);
        if (first) await this.#begun();
      } else if (item.kind === 'packet') {
        if (this.#writer?.packet(this.#converter.packet(item.packet)) === false) this.#enough = true;
        if (this.#enough) break;
      } else if (item.kind === 'counts') this.#counts = item.counts;
      else {
        this.#counts = item.end;
        this.#end = item.end;
      }
    }
    if ((await this.#writer?.flush()) === false) this.#enough = true;
  }

  async #open(version: string): Promise<PacketWriter> {
    const { write, limit, json } = this.#wish;
    if (write === undefined) return new LineWriter(this.#out, json);
    return new PcapngWriter(await openSink(write, this.#out), version, limit);
  }

  /** The file has its head, so that who reads it at once sees one. */
  async #begun(): Promise<void> {
    if ((await this.#writer?.flush()) === false) this.#enough = true;
    const names = this.#converter.interfaces.map(({ name }) => name).join(', ');
    process.stderr.write(`weft: capturing on ${names}; Ctrl-C ends it\n`);
  }
}
