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
  /** Code of the SetupError when it cannot be run, and what to do then. */
  readonly missing: readonly [code: string, remedy: string];
  /** Code of the SetupError when it does not end in time, or somebody kills it. */
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
    const called = [name, ...args].join(' ').slice(0, MOST_SAID); // arguments may be long: nft's are all of its rules
    const child = spawn(name, args, { env: environment(), timeout, killSignal: 'SIGKILL' });
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
      const [code, remedy] = missing;
      reject(new SetupError(code, `the ${name} command cannot be run (${error.code}): ${remedy}`));
    });
    child.on('close', (code, signal) => {
      if (!signal) resolve({ code, stdout, stderr });
      else
        reject(
          new SetupError(
            failed,
            `${called} ${child.killed ? `did not end within ${timeout / 1000} s` : `was ended by ${signal}`}`,
          ),
        );
    });
    child.stdin.end(input);
  });
}
