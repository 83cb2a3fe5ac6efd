/**
 * The log: JSON lines on standard output, one event each, under a stable name in `event`. Packets are counted, never logged.
 */
import { type DestinationStream, destination, pino, stdTimeFunctions } from 'pino';
import type { EventLog } from '../control/event-log.js';

/** Fields by the names that control uses; an Error's stack goes in as text. `to` is standard output unless a test says. */
export function createLog(level: string, to: DestinationStream = standardOutput()): EventLog {
  const logger = pino(
    {
      level,
      base: null,
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    to,
  );
  return {
    debug: (event, fields) => logger.debug({ event, ...fields }),
    info: (event, fields) => logger.info({ event, ...fields }),
    warn: (event, fields) => logger.warn({ event, ...fields }),
    error: (event, fields) => logger.error({ event, ...fields }),
  };
}

/** Written at once, so that the last line before an exit is not lost. A reader that went away must not stop forwarding. */
function standardOutput(): DestinationStream {
  const stream = destination({ dest: 1, sync: true });
  stream.on('error', () => {});
  return stream;
}
