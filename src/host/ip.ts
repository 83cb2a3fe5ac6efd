/**
 * The `ip` command (iproute2), which is on every node: reading with `-j`, changing in batches, so that a set-up of eight steps
 * is one process. Nothing here goes through a shell.
 */
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';
import { type Finished, runCommand } from './command.js';

const TIMEOUT = 5000;

/** Runs `ip`. Rejects with a SetupError only when it could not be run or did not end in time. */
const run = (args: readonly string[], input = ''): Promise<Finished> =>
  runCommand({
    name: 'ip',
    args,
    input,
    timeout: TIMEOUT,
    missing: ['NO_IP', 'install iproute2'],
    failed: 'IP_FAILED',
  });

/** The first line that says what was wrong. */
const complaint = (stderr: string): string => {
  const lines = stderr.split('\n').filter((line) => line && !line.startsWith('Command failed'));
  return (lines[0] ?? 'no reason given').replace(/^(Error|RTNETLINK answers): /, '').replace(/\.$/, '');
};

/**
 * What `ip -j …` prints, checked. undefined when the command failed: the thing asked for does not exist.
 */
export async function ipRead<T>(schema: v.GenericSchema<unknown, T>, args: readonly string[]): Promise<T | undefined> {
  const { code, stdout } = await run(['-j', ...args]);
  if (code !== 0) return undefined;
  return checked(schema, stdout.trim() || '[]', args);
}

/** What each of several reading commands prints, in order; those that fail are left out. */
export async function ipReadEach<T>(schema: v.GenericSchema<unknown, T>, commands: readonly string[]): Promise<T[]> {
  const { stdout } = await run(['-j', '-force', '-batch', '-'], `${commands.join('\n')}\n`);
  const lines = stdout.split('\n').filter((line) => line.trim());
  return lines.map((line) => checked(schema, line, ['-batch', '-']));
}

function checked<T>(schema: v.GenericSchema<unknown, T>, text: string, args: readonly string[]): T {
  try {
    return v.parse(schema, JSON.parse(text));
  } catch {
    throw new SetupError(
      'IP_FAILED',
      `ip -j ${args.join(' ')} gave no JSON that is understood: iproute2 5 or later is needed`,
    );
  }
}

/**
 * Runs all commands in order, whatever becomes of each; resolves to why those that failed did, by their place in `commands`.
 */
export async function ipEach(commands: readonly string[]): Promise<ReadonlyMap<number, string>> {
  const failures = new Map<number, string>();
  for (let from = 0; from < commands.length; ) {
    const rest = commands.slice(from);
    // When the kernel refuses a neighbour, `ip` ends the whole batch: a line printed after each command tells how far it came.
    const batch = rest.map((command) => `${command}\nlink show dev lo\n`).join('');
    const { stdout, stderr } = await run(['-o', '-force', '-batch', '-'], batch);
    const reached = stdout.split('\n').filter((line) => line.trim()).length;
    let said = '';
    for (const line of stderr.split('\n')) {
      const at = /^Command failed -:(\d+)/.exec(line)?.[1];
      if (at === undefined) said ||= line;
      else {
        failures.set(from + ((Number(at) - 1) >> 1), complaint(said));
        said = '';
      }
    }
    if (reached < rest.length) failures.set(from + reached, complaint(said));
    from += reached + 1;
  }
  return failures;
}

/** Runs commands in order; rejects with a SetupError that names the first which failed, after which none is run. */
export async function ipBatch(commands: readonly string[]): Promise<void> {
  const { code, stderr } = await run(['-batch', '-'], `${commands.join('\n')}\n`);
  if (code === 0) return;
  const at = /^Command failed -:(\d+)/m.exec(stderr)?.[1];
  const command = at === undefined ? commands.join('; ') : commands[Number(at) - 1];
  throw new SetupError('IP_FAILED', `ip ${command}: ${complaint(stderr)}`);
}
