/**
 * Standard output of a command: text or JSON, colour where a person looks at it, and an end when nobody reads any more
 * (`weft macs | head`).
 */
import { writeSync } from 'node:fs';

/** What may be told by a colour; without colour the words have to say it by themselves. */
export interface Colours {
  readonly bold: (text: string) => string;
  readonly dim: (text: string) => string;
  readonly red: (text: string) => string;
  readonly green: (text: string) => string;
  readonly yellow: (text: string) => string;
}

export interface Output {
  readonly terminal: boolean;
  readonly colours: Colours;
  /** Aborts as Invocation.signal says. */
  readonly signal: AbortSignal;
  /** Text as it is, or bytes. */
  print(text: string | Uint8Array): void;
  /** A line of JSON. */
  json(value: unknown): void;
  /** Resolves when what was printed has gone: await it in loops, so that a slow reader slows us. */
  flushed(): Promise<void>;
}

const ESCAPE = '\x1b[';
const coloured =
  (code: number) =>
  (text: string): string =>
    text === '' ? '' : `${ESCAPE}${code}m${text}${ESCAPE}0m`;
const plain = (text: string): string => text;

export const COLOURS: Colours = {
  bold: coloured(1),
  dim: coloured(2),
  red: coloured(31),
  green: coloured(32),
  yellow: coloured(33),
};
export const NO_COLOURS: Colours = { bold: plain, dim: plain, red: plain, green: plain, yellow: plain };

/** One for the process. It takes over the signals once somebody wants to know of them; until then they end the process. */
export function createOutput(env: Readonly<Record<string, string | undefined>>): Output {
  const { stdout } = process;
  const stop = new AbortController();
  let asked = false;
  let broken = false;
  stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (!broken && error.code !== 'EPIPE') {
      process.exitCode = 1;
      writeSync(2, `weft: cannot write to standard output: ${error.code ?? error.message}\n`);
    }
    broken = true;
    stop.abort();
  });
  const terminal = stdout.isTTY === true;
  const print = (text: string | Uint8Array): void => {
    if (!broken) stdout.write(text);
  };
  return {
    terminal,
    colours: terminal && !env.NO_COLOR && env.TERM !== 'dumb' ? COLOURS : NO_COLOURS,
    get signal() {
      if (!asked) for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(name, () => stop.abort());
      asked = true;
      return stop.signal;
    },
    print,
    json: (value) => print(`${jsonText(value)}\n`),
    flushed: async () => {
      // What is still to go when the end is wanted goes while the process ends.
      while (stdout.writableNeedDrain && !stop.signal.aborted) await drained(stdout, stop.signal);
    },
  };
}

/** Resolves when there is room again, or at the end. */
function drained(stream: NodeJS.WriteStream, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      stream.off('drain', done);
      signal.removeEventListener('abort', done);
      resolve();
    };
    stream.on('drain', done);
    signal.addEventListener('abort', done);
  });
}

/** On one line, and without what a terminal may obey: JSON itself only escapes the first 32 control characters. */
export const jsonText = (value: unknown): string =>
  JSON.stringify(value).replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (letter) =>
    [...Array(letter.length).keys()].map((i) => `\\u${letter.charCodeAt(i).toString(16).padStart(4, '0')}`).join(''),
  );
