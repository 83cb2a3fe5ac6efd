/**
 * A terminal's whole screen, drawn again and again on its second page, so that what was there comes back in the end. `q` and Ctrl-C
 * leave. Each line is written over the one before, then the rest is wiped: no flicker.
 */
import type { ReadStream, WriteStream } from 'node:tty';

const SECOND_PAGE = '\x1b[?1049h\x1b[?25l';
const FIRST_PAGE = '\x1b[?25h\x1b[?1049l';
const HOME = '\x1b[H';
const WIPE_LINE = '\x1b[K';
/** q, Q, Ctrl-C, Ctrl-D. */
const LEAVING = [0x71, 0x51, 0x03, 0x04];
const WIPE_REST = '\x1b[J';

export class Screen {
  readonly #from: ReadStream;
  readonly #to: WriteStream;
  readonly #leave = new AbortController();
  readonly #keys = (bytes: Buffer): void => {
    if (bytes.some((key) => LEAVING.includes(key))) this.#leave.abort();
  };
  #last = '';
  readonly #redraw = (): void => this.show(this.#last);

  /** `end`: leaves it as the keys do. */
  constructor(from: ReadStream, to: WriteStream, end: AbortSignal) {
    this.#from = from;
    this.#to = to;
    end.addEventListener('abort', () => this.#leave.abort(), { once: true });
    if (end.aborted) this.#leave.abort();
    to.write(SECOND_PAGE);
    to.on('resize', this.#redraw);
    if (!from.isTTY) return; // `weft top < /dev/null`
    from.setRawMode(true);
    from.on('data', this.#keys);
  }

  /** Aborts when the person at the keyboard has had enough. */
  get left(): AbortSignal {
    return this.#leave.signal;
  }

  /** Lines that there is place for. */
  get rows(): number {
    return this.#to.rows || 24; // some terminals do not say, or do so late
  }

  /** Lines with their ends; those that do not fit are cut. */
  show(text: string): void {
    this.#last = text;
    const lines = text
      .trimEnd()
      .split('\n')
      .slice(0, this.rows - 1);
    this.#to.write(
      `${HOME}${lines.map((line) => `${cut(line, this.#to.columns || 80)}${WIPE_LINE}\n`).join('')}${WIPE_REST}`,
    );
  }

  close(): void {
    this.#to.off('resize', this.#redraw);
    if (!this.#to.destroyed) this.#to.write(FIRST_PAGE);
    if (!this.#from.isTTY) return;
    this.#from.off('data', this.#keys);
    this.#from.setRawMode(false);
    this.#from.pause();
    this.#from.unref();
  }
}

/** At most `width` letters; colours (ESC [ n m) take no place, and none of them is cut. */
export function cut(line: string, width: number): string {
  const [first, ...coloured] = line.split('\x1b[');
  let left = width;
  const shown = (text: string): string => {
    const part = text.slice(0, Math.max(0, left));
    left -= text.length;
    return part;
  };
  return [
    shown(first),
    ...coloured.map((part) => {
      const end = part.indexOf('m') + 1;
      return `\x1b[${part.slice(0, end)}${shown(part.slice(end))}`;
    }),
  ].join('');
}
