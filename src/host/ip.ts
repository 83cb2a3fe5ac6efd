/**
 * The `ip` command (iproute2), which is on every node: reading with `-j`, changing in batches, so that a set-up of eight steps
 * is one process. Nothing here goes through a shell.
 */
import { spawn } from 'node:child_process';
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';

const TIMEOUT = 5000;

/** `ip` is often in sbin, which a service's PATH may lack. */
const environment = (): NodeJS.ProcessEnv => ({
  ...process.env,
  LC_ALL: 'C',
  PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin`,
});

interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `ip`. Rejects with a SetupError only when it could not be run or did not end in time. */
function run(args: readonly string[], input = ''): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn('ip', args, { env: environment(), timeout: TIMEOUT, killSignal: 'SIGKILL' });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.stdin.on('error', () => {}); // it may end before it has read all
    child.on('error', (error: NodeJS.ErrnoException) => {
      reject(new SetupError('NO_IP', `the ip command cannot be run (${error.code}): install iproute2`));
    });
    child.on('close', (code, signal) => {
      if (signal) reject(new SetupError('IP_FAILED', `ip ${args.join(' ')} did not end within ${TIMEOUT / 1000} s`));
      else resolve({ code, stdout, stderr });
    });
    child.stdin.end(input);
  });
}

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

/** Runs commands in order; rejects with a SetupError that names the first which failed, after which none is run. */
export async function ipBatch(commands: readonly string[]): Promise<void> {
  const { code, stderr } = await run(['-batch', '-'], `${commands.join('\n')}\n`);
  if (code === 0) return;
  const at = /^Command failed -:(\d+)/m.exec(stderr)?.[1];
  const command = at === undefined ? commands.join('; ') : commands[Number(at) - 1];
  throw new SetupError('IP_FAILED', `ip ${command}: ${complaint(stderr)}`);
}
