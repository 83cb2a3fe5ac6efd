/** A process in a namespace that sets rules and finds interfaces there as a daemon would (host-child.ts). */
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Namespace } from '../../../race/hosts.js';

const CHILD = fileURLToPath(new URL('host-child.js', import.meta.url));

export interface RulesOptions {
  readonly networks: readonly string[];
  readonly subnets: readonly string[];
  readonly ipMasq: boolean;
  readonly randomFully: boolean;
  readonly forward: boolean;
  readonly blackhole: boolean;
  readonly nftables: boolean;
  readonly resync: number;
}

export interface Wish {
  readonly ifaces: readonly string[];
  readonly ifaceRegexes: readonly string[];
  readonly ifaceCanReach: string | undefined;
  readonly publicIps: readonly string[];
  readonly outside: boolean;
  readonly families?: readonly (4 | 6)[] | undefined;
}

export type Question =
  | { readonly ask: 'start'; readonly options: RulesOptions }
  | { readonly ask: 'look'; readonly times: number }
  | { readonly ask: 'stop' }
  | { readonly ask: 'underlay'; readonly wish: Wish }
  | { readonly ask: 'log' };

export interface Logged extends Readonly<Record<string, unknown>> {
  readonly level: string;
  readonly event: string;
}

export interface Answer {
  /** What was thrown, if anything was. */
  readonly error?: string;
  readonly code?: string;
  /** Since the last answer. */
  readonly logged: readonly Logged[];
  /** Of all looks, with the programs that they ran. */
  readonly cpuMs?: number;
  /** The look that was going on when it was stopped had ended. */
  readonly looked?: boolean;
  readonly underlay?: {
    readonly interface: string;
    readonly mtu: number;
    readonly addresses: readonly string[];
    readonly publicAddresses: readonly string[];
  };
}

export class HostProcess {
  readonly #child: ChildProcess;

  /** `before`: a command that runs the rest of its arguments; it must pass on its file descriptors. */
  constructor(
    ns: Namespace,
    { before = [], env = {} }: { readonly before?: readonly string[]; readonly env?: NodeJS.ProcessEnv } = {},
  ) {
    const [command, ...args] = [...before, process.execPath, '--enable-source-maps', CHILD];
    this.#child = ns.spawn(command, args, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, ...env },
    });
  }

  /** One question at a time. */
  #ask(question: Question): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const ended = (): void => reject(new Error('the process in the namespace has ended'));
      this.#child.once('exit', ended);
      this.#child.once('message', (answer) => {
        this.#child.off('exit', ended);
        resolve(answer as Answer);
      });
      this.#child.send(question);
    });
  }

  /** As a daemon's start; one that was started before is stopped. */
  start(options: Partial<RulesOptions> = {}): Promise<Answer> {
    const base = {
      networks: ['10.5.0.0/16'],
      subnets: ['10.5.1.0/24'],
      ipMasq: true,
      randomFully: true,
      forward: true,
    };
    return this.#ask({
      ask: 'start',
      options: { ...base, blackhole: false, nftables: false, resync: 0, ...options },
    });
  }

  /** What a resync does, so many times. */
  look(times = 1): Promise<Answer> {
    return this.#ask({ ask: 'look', times });
  }

  /** As a daemon's end, in the middle of a look. */
  stop(): Promise<Answer> {
    return this.#ask({ ask: 'stop' });
  }

  /** What was logged meanwhile. */
  log(): Promise<Answer> {
    return this.#ask({ ask: 'log' });
  }

  underlay(wish: Partial<Wish> = {}): Promise<Answer> {
    const base = { ifaces: [], ifaceRegexes: [], ifaceCanReach: undefined, publicIps: [], outside: false };
    return this.#ask({ ask: 'underlay', wish: { ...base, ...wish } });
  }

  /** Ends at once, as a killed daemon does. */
  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
