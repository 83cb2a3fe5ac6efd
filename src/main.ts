#!/usr/bin/env node
/**
 * weftd: arguments, signals and exit codes. 0: stopped by a signal, or our lease was revoked; 1: could not be set up, or failed; 2: wrong usage.
 *
 * Signals are caught before anything else is loaded, so that one which comes early is obeyed too. After a failure at run
 * time the device stays, with its routes: a supervisor's restart goes on where this process ended.
 */
import { readFileSync, writeSync } from 'node:fs';
import { ownVersion } from './version.js';

/** SIGTERM must be over within a second; whatever still hangs then is left to the kernel. */
const STOP_WITHIN = 900;

const stop = new AbortController();
const stopped = new Promise<void>((resolve) => stop.signal.addEventListener('abort', () => resolve()));
for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  process.on(name, () => {
    if (stop.signal.aborted) return;
    stop.abort();
    setTimeout(() => process.exit(0), STOP_WITHIN);
  });
}

/** Ends the process with one line on standard error. */
function fail(code: 1 | 2, message: string): never {
  writeSync(2, `weftd: ${message.replace(/\s+/g, ' ')}\n`);
  process.exit(code);
}

async function main(): Promise<void> {
  const { parseConfig } = await import('./command-line.js');
  const { UsageError } = await import('./config.js');
  const { SetupError } = await import('./io/setup-error.js');
  try {
    const asked = parseConfig(process.argv.slice(2), process.env, (path) => readFileSync(path, 'utf8'));
    if (asked.kind !== 'run') {
      if (asked.kind === 'help') writeSync(1, asked.text);
      else writeSync(2, `${ownVersion()}\n`); // where flanneld says it
      return;
    }
    const { createLog } = await import('./observe/log.js');
    const log = createLog(asked.config.logLevel, { format: asked.config.logFormat });
    const failed = (error: unknown): never => {
      const { message, stack } = error instanceof Error ? error : new Error(String(error));
      log.flush(); // this is the last line
      log.error('failed', { reason: message, stack });
      process.exit(1);
    };
    process.on('uncaughtException', failed).on('unhandledRejection', failed);
    const { startDaemon } = await import('./daemon.js');
    const { notify } = await import('./host/notify.js');
    for (let again = false; ; again = true) {
      const daemon = await startDaemon(asked.config, ownVersion(), log, stop.signal, again);
      const why = await Promise.race([stopped, daemon.ended]);
      if (why === 'moved') {
        await daemon.stop(true);
        continue;
      }
      log.info('stopping');
      notify('STOPPING=1');
      await daemon.stop();
      break;
    }
    log.flush();
    log.info('stopped');
    process.exit(0);
  } catch (error) {
    if (stop.signal.aborted) process.exit(0);
    if (error instanceof UsageError) fail(2, error.message);
    if (error instanceof SetupError) fail(1, error.message);
    throw error;
  }
}

await main();
