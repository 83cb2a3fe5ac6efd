#!/usr/bin/env node
/** weft: looks into a running weftd, and sets up what is around it. Exit codes: 0 done, 1 failed, 2 wrong usage. */
import { writeSync } from 'node:fs';
import { runCommand } from './commands/command.js';
import { commandNamed } from './commands/list.js';
import { clean } from './commands/text/table.js';
import { SetupError } from './io/setup-error.js';
import { UsageError } from './option.js';
import { ownVersion } from './version.js';

async function main([name, ...argv]: readonly string[]): Promise<void> {
  const { env } = process;
  if (name === undefined || name === '--help' || name === '-h')
    return say((await import('./commands/overview.js')).overview());
  if (name === '--version' || name === '-V') return say(`${ownVersion()}\n`);
  if (name === '__complete') return say(await (await import('./commands/complete.js')).completeLines(argv, env));
  if (name === 'help') return main(argv.length > 0 ? [argv[0], '--help'] : []);
  if (name.startsWith('-')) throw new UsageError(`${name}: options come after the command: weft <command> ${name}`);
  const listed = commandNamed(name);
  if (!listed) throw new UsageError(`unknown command ${name}: weft --help lists what there is`);
  if ('standalone' in listed) return say(await listed.standalone(argv, env));
  await runCommand(await listed.load(), argv, env);
}

/** Short texts; where nobody reads them any more, that is no failure. */
function say(text: string): void {
  try {
    writeSync(1, text);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  if (error instanceof Error && error.name === 'AbortError') process.exitCode = 1;
  else if (error instanceof UsageError || error instanceof SetupError) {
    writeSync(2, `weft: ${clean(error.message.replace(/\s+/g, ' ').trim())}\n`); // some of it comes from a daemon
    process.exitCode = error instanceof UsageError ? 2 : 1;
  } else throw error;
}
