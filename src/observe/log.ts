/**
 * The log: one line an event on standard output, under a stable name in `event`; JSON by pino, or text for people. Packets are
 * counted, never logged, and what is said again and again is counted too (folding.ts). The level can be changed at run time.
 */
import { type DestinationStream, destination, pino, stdTimeFunctions } from 'pino';
import { type EventLog, LOG_LEVELS, type LogLevel } from '../control/event-log.js';
import { Folding } from './folding.js';
import { jsonLine, textLine } from './log-text.js';

export type LogFormat = 'json' | 'text';

export const isLogLevel = (text: string): text is LogLevel => (LOG_LEVELS as readonly string[]).includes(text);

export interface Log extends EventLog {
  /** Events below it are not written. */
  readonly level: LogLevel;
  /** Takes effect with the next event. What was only counted so far is written first. */
  setLevel(level: LogLevel): void;
  /** Writes what was only counted so far; with standard output, the process's exit does that too. */
  flush(): void;
}

export interface LogOptions {
  /** Default: json. */
  readonly format?: LogFormat;
  /** Default: standard output. Gets whole lines. */
  readonly to?: DestinationStream;
}

/** Bytes that wait where standard output cannot be written to, because a disk is full; what comes then is lost. */
const MOST_WAITING = 1 << 18;
/** How often a write is tried again, every 100 ms, where standard output does not block and its reader is slow. */
const MOST_TRIES = 10;

export function createLog(level: LogLevel, { format = 'json', to: given }: LogOptions = {}): Log {
  const to = given ?? standardOutput();
  const shaped = format === 'json' ? jsonLine : textLine;
  const logger = pino(
    {
      level,
      base: null,
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write: (line) => to.write(shaped(line)) },
  );
  const folding = new Folding((at, event, fields) => logger[at]({ event, ...fields }));
  const flush = (): void => folding.flush();
  if (given === undefined) process.on('exit', flush);
  const say =
    (at: Exclude<LogLevel, 'trace'>) =>
    (event: string, fields?: Readonly<Record<string, unknown>>): void => {
      if (logger.isLevelEnabled(at)) folding.say(at, event, fields);
    };
  return {
    debug: say('debug'),
    info: say('info'),
    warn: say('warn'),
    error: say('error'),
    flush,
    get level(): LogLevel {
      return isLogLevel(logger.level) ? logger.level : level;
    },
    setLevel(wanted): void {
      flush();
      logger.level = wanted;
    },
  };
}

/** Written at once, so that the last line before an exit is not lost. A reader that went away must not stop forwarding. */
function standardOutput(): DestinationStream {
  let tries = 0;
  const retryEAGAIN = (): boolean => ++tries % MOST_TRIES !== 0;
  const stream = destination({ dest: 1, sync: true, maxLength: MOST_WAITING, retryEAGAIN });
  stream.on('error', () => {});
  return stream;
}
