/**
 * README's commands as a reader would run them, in a host of the lab: by a shell, with `weftd` and `weft` in the path, and with
 * a `/run` and a `/var/lib` of one's own, so that the defaults hold. What is not there in a namespace (`systemctl`, and an
 * engine for `dockerd`) is played by a few lines of shell.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Daemon, Finished, Host, Lab } from '../../../race/hosts.js';
import { DAEMON, Weft } from './weft.js';

const CLI = fileURLToPath(new URL('../../../src/cli.js', import.meta.url));
/** What `ip netns exec` has changed the mounts for is seen by nobody else. */
const OWN_FOLDERS = 'mount --bind "$1" /run && mount --bind "$2" /var/lib && exec sh -ec "$3"';
let starts = 0;

/** A machine's folders; hosts of one machine share `varLib`. */
export interface Folders {
  readonly run: string;
  readonly varLib: string;
}

export class Reader {
  readonly #lab: Lab;
  readonly #bin: string;

  constructor(lab: Lab) {
    this.#lab = lab;
    this.#bin = join(lab.dir, 'bin');
    mkdirSync(this.#bin);
    this.program('weftd', `exec '${process.execPath}' '${DAEMON}' "$@"`);
    this.program('weft', `exec '${process.execPath}' '${CLI}' "$@"`);
  }

  /** Puts a shell script into the path. */
  program(name: string, script: string): void {
    const path = join(this.#bin, name);
    writeFileSync(path, `#!/bin/sh\n${script}\n`);
    chmodSync(path, 0o755);
  }

  /** Empty folders, `/run` for one host and `/var/lib` for those of one machine. */
  folders(host: Host, machine: string = host.letter): Folders {
    const run = join(this.#lab.dir, `${machine}-run-${host.letter}`);
    const varLib = join(this.#lab.dir, `${machine}-var-lib`);
    for (const folder of [run, varLib]) mkdirSync(folder, { recursive: true });
    return { run, varLib };
  }

  /** Runs a line to its end. */
  run(host: Host, folders: Folders, line: string): Promise<Finished> {
    return host.ns.run('sh', this.#words(folders, line), { env: this.#env() });
  }

  /** Starts a daemon and waits until it forwards. */
  async start(host: Host, folders: Folders, line: string): Promise<Weft> {
    // The shell becomes the daemon: same pid.
    const words = this.#words(folders, `exec ${line}`);
    const daemon: Daemon = host.ns.start(`reader-${host.letter}-${++starts}`, 'sh', words, { env: this.#env() });
    const weft = Weft.of(host, daemon);
    await weft.ready();
    return weft;
  }

  #words({ run, varLib }: Folders, line: string): string[] {
    return ['-c', OWN_FOLDERS, 'sh', run, varLib, line];
  }

  /** What this process has for the daemon's eyes is not for it. */
  #env(): NodeJS.ProcessEnv {
    const inherited = Object.entries(process.env).filter(([name]) => !/^(WEFT|FLANNELD|NOTIFY|DOCKER)_/.test(name));
    return { ...Object.fromEntries(inherited), PATH: `${this.#bin}:${process.env.PATH}` };
  }
}
