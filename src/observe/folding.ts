/**
 * Repeated events, folded: of what is said again and again within a minute the first few lines are written at once, the rest is
 * counted and becomes one line, with `repeated` (how many were not written) and `last` (when the last of them was), at the minute's
 * end. As long as it goes on, there is one such line a minute. A few and not one: a state that comes and goes is seen as it does,
 * and only a storm is folded.
 *
 * Two events are equal if level, name and fields are, apart from fields that tell a time or count something (VARYING); the line
 * has those of the last one. Memory is bounded: so many different events are remembered, the ones that were said longest ago
 * make room, and what is too long to be remembered is written each time.
 */

/** Fields by which two events may differ and still are the same. */
const VARYING: ReadonlySet<string> = new Set(['since', 'restartIn', 'count']);
/** Of a daemon's life: always written. */
const NEVER_FOLDED: ReadonlySet<string> = new Set(['ready', 'failed', 'stopping', 'stopped']);

/** Milliseconds. */
export const WINDOW = 60_000;
/** Equal lines that are written at once. */
export const FEW = 5;
export const MOST_REMEMBERED = 256;
/** Characters of an event, as JSON. */
const MOST_CHARACTERS = 4096;

export type FoldedLevel = 'debug' | 'info' | 'warn' | 'error';
type Fields = Readonly<Record<string, unknown>>;

interface Remembered {
  readonly level: FoldedLevel;
  readonly event: string;
  /** When its window ends, in milliseconds of the clock. */
  ends: number;
  written: number;
  /** Not written in this window. */
  repeated: number;
  /** Of the last one that was not written. */
  fields: Fields | undefined;
  last: Date;
}

export interface FoldingClock {
  /** Milliseconds that only go forward. */
  now(): number;
  date(): Date;
  /** Calls back once, after so many milliseconds, if the process is still there. */
  after(ms: number, work: () => void): void;
}

const systemClock: FoldingClock = {
  now: () => performance.now(),
  date: () => new Date(),
  after: (ms, work) => void setTimeout(work, ms).unref(),
};

export class Folding {
  readonly #write: (level: FoldedLevel, event: string, fields: Fields | undefined) => void;
  readonly #clock: FoldingClock;
  /** By all that makes them equal; the one said longest ago first. */
  readonly #remembered = new Map<string, Remembered>();
  #waiting = false;

  constructor(
    write: (level: FoldedLevel, event: string, fields: Fields | undefined) => void,
    clock: FoldingClock = systemClock,
  ) {
    this.#write = write;
    this.#clock = clock;
  }

  /** How many events are remembered now. */
  get size(): number {
    return this.#remembered.size;
  }

  /** Writes an event, or counts it. */
  say(level: FoldedLevel, event: string, fields?: Fields): void {
    const key = NEVER_FOLDED.has(event) ? undefined : keyOf(level, event, fields);
    if (key === undefined) {
      this.#write(level, event, fields);
      return;
    }
    this.#endWindows();
    const known = this.#remembered.get(key) ?? this.#remember(level, event);
    // The last one again: whoever is said least often makes room.
    this.#remembered.delete(key);
    this.#remembered.set(key, known);
    if (known.written < FEW) {
      known.written++;
      this.#write(level, event, fields);
    } else {
      known.repeated++;
      known.fields = fields;
      known.last = this.#clock.date();
    }
    this.#wait();
  }

  /** Writes what was only counted so far, and starts afresh. */
  flush(): void {
    for (const known of this.#remembered.values()) this.#writeCount(known);
    this.#remembered.clear();
  }

  #remember(level: FoldedLevel, event: string): Remembered {
    if (this.#remembered.size === MOST_REMEMBERED) {
      const [[oldest, forgotten]] = this.#remembered;
      this.#remembered.delete(oldest);
      this.#writeCount(forgotten);
    }
    const ends = this.#clock.now() + WINDOW;
    return { level, event, ends, written: 0, repeated: 0, fields: undefined, last: this.#clock.date() };
  }

  /** What had nothing to count in its window is forgotten; what had is only counted on: one line a window. */
  #endWindows(): void {
    const now = this.#clock.now();
    for (const [key, known] of this.#remembered) {
      if (known.ends > now) continue;
      if (known.repeated === 0) this.#remembered.delete(key);
      this.#writeCount(known);
      known.ends = now + WINDOW;
    }
  }

  #writeCount(known: Remembered): void {
    const { level, event, repeated, fields, last } = known;
    if (repeated === 0) return;
    known.repeated = 0;
    known.fields = undefined;
    this.#write(level, event, { ...fields, repeated, last: last.toISOString() });
  }

  /** One timer, for the window that ends first. */
  #wait(): void {
    if (this.#waiting || this.#remembered.size === 0) return;
    this.#waiting = true;
    let first = Number.POSITIVE_INFINITY;
    for (const { ends } of this.#remembered.values()) first = Math.min(first, ends);
    this.#clock.after(Math.max(0, first - this.#clock.now()), () => {
      this.#waiting = false;
      this.#endWindows();
      this.#wait();
    });
  }
}

/** All that makes two events equal; undefined if that is too much to remember, or no JSON. */
function keyOf(level: FoldedLevel, event: string, fields: Fields = {}): string | undefined {
  try {
    const key = JSON.stringify([level, event, fields], (name, value: unknown) =>
      VARYING.has(name) ? undefined : value,
    );
    return key.length <= MOST_CHARACTERS ? key : undefined;
  } catch {
    return undefined;
  }
}
