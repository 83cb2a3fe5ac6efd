/** Other programs of this host, run without a shell: `ip`, `iptables-restore`, `nft`. */
import { spawn } from 'node:child_process';
import { SetupError } from '../io/setup-error.js';

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Command {
  readonly name: string;
  readonly args: readonly string[];
  /** For its standard input. */
  readonly input?: string;
  /** Milliseconds after which it is killed. */
  readonly timeout: number;
  /** Code of the SetupError when it is not there, or not for us, and what to do then. */
  readonly missing: readonly [code: string, remedy: string];
  /** Code of the SetupError when it cannot be run, does not end in time, or is killed by somebody. */
  readonly failed: string;
}

/** Letters of a call in an error. */
const MOST_SAID = 60;

/** They are often in sbin, which a service's PATH may lack. */
const environment = (): NodeJS.ProcessEnv => ({
  ...process.env,
  LC_ALL: 'C',
  PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin`,
});

/** Runs it to its end. Rejects with a SetupError only when it could not be run or was killed. */
export function runCommand({ name, args, input = '', timeout, missing, failed }: Command): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn(name, args, { env: environment(), timeout, killSignal: 'SIGKILL' });
    child.on('error', ({ code }: NodeJS.ErrnoException) => {
      const [missingCode, remedy] = missing;
      const what = `the ${name} command cannot be run (${code})`;
      const absent = code === 'ENOENT' || code === 'EACCES';
      reject(absent ? new SetupError(missingCode, `${what}: ${remedy}`) : new SetupError(failed, what));
    });
    if (!child.stdout) return; // no more file descriptors: the error comes later
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    child.stdin.on('error', () => {}); // it may end before it has read all
    child.on('close', (code, signal) => {
      if (!signal) return resolve({ code, stdout, stderr });
      const called = [name, ...args].join(' ').slice(0, MOST_SAID); // nft's arguments are all of its rules
      const why = child.killed ? `did not end within ${timeout / 1000} s` : `was ended by ${signal}`;
      reject(new SetupError(failed, `${called} ${why}`));
    });
    child.stdin.end(input);
  });
}
