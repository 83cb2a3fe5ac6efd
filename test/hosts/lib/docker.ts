/**
 * Docker engines for the tests, each in a network namespace of a lab and with no way to touch another one: its files are in
 * the lab's folder, and it is process 1 of a PID namespace and a mount namespace of its own. So whatever ends it (we, the lab,
 * an uncaught error) ends its containerd, its shims and its containers with it, and every mount goes when the last of them has.
 * What such a death leaves are empty cgroups; they are under one name, and removed here.
 *
 *     nsenter --net=<host>          not `ip netns exec`, which hides the mounts below /sys/fs/cgroup
 *       unshare --pid --mount       stays; it dies with us (setpriv --pdeathsig), and process 1 with it
 *         dockerd $DOCKER_OPTS      process 1; the options from the file that `weft docker-opts` wrote
 *           containerd
 *           containerd-shim … container
 *
 * No registry is needed: `makeImage` packs Debian's static busybox, and ping with its libraries, for `docker import`.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { Daemon, type Finished, type Lab, type Namespace, run, sleep } from '../../../race/hosts.js';

/** The name of what `makeImage` packs, in every engine that has imported it. */
export const IMAGE = 'weft-test';
/** Where a container serves HTTP: /data, /cgi-bin/peer, /cgi-bin/slow. */
export const WEB_PORT = 80;

const CGROUPS = '/sys/fs/cgroup';
const CGROUP_PREFIX = 'weft-docker-';
const CGROUP = `${CGROUP_PREFIX}${process.pid}`;
const NEEDED = {
  dockerd: 'docker.io',
  docker: 'docker.io',
  containerd: 'containerd',
  runc: 'runc',
  busybox: 'busybox-static',
  ping: 'iputils-ping',
  setpriv: 'util-linux',
  unshare: 'util-linux',
  nsenter: 'util-linux',
};

/** What of an engine's world is missing on this machine, in one line with Debian's packages; undefined: nothing. */
export function engineImpossible(): string | undefined {
  const missing = Object.entries(NEEDED).filter(([command]) => spawnSync('which', [command]).status !== 0);
  if (missing.length === 0) return undefined;
  const packages = [...new Set(missing.map(([, name]) => name))];
  return `no ${missing.map(([command]) => command).join(', ')}: apt-get install --no-install-recommends ${packages.join(' ')}`;
}

// --- an engine ---

/** What the engine keeps beside its data folder: read by nobody else, so it goes with the mount namespace. */
const PRIVATE = ['/etc/docker', '/run/docker', '/run/containerd', '/opt/containerd'];

/**
 * Arguments: the file with DOCKER_OPTS, then more for dockerd. It chooses its storage driver by itself: overlay2, or vfs where
 * the folder is on an overlay already.
 */
const START = `
set -e
for folder in ${PRIVATE.join(' ')} $IN_MEMORY; do mkdir -p "$folder"; mount -t tmpfs tmpfs "$folder"; done
. "$1"; shift
exec dockerd $DOCKER_OPTS "$@"
`;

/** Those that the image needs. Docker's own choice is more, and a machine that lacks one of them could run no container. */
const CAPABILITIES = ['--cap-drop', 'ALL', '--cap-add', 'NET_RAW', '--cap-add', 'NET_BIND_SERVICE'];

const STARTS_WITHIN_MS = 30_000;
/** Containers get one second (stop-timeout); the rest is for two busy cores. */
const STOPS_WITHIN_MS = 20_000;

export interface EngineOptions {
  /** Images and containers are in memory, so they are made and removed more quickly; they go when the engine stops. Default false. */
  readonly inMemory?: boolean;
}

export class Engine {
  readonly ns: Namespace;
  /** Short; socket paths must fit into 108 bytes. */
  readonly dir: string;
  readonly #options: EngineOptions;
  #daemon: Daemon | undefined;
  #starts = 0;

  constructor(ns: Namespace, name: string, options: EngineOptions = {}) {
    this.ns = ns;
    this.#options = options;
    this.dir = join(ns.lab.dir, name);
    mkdirSync(this.dir, { recursive: true });
    writeFileSync(join(this.dir, 'daemon.json'), '{}\n'); // not the machine's /etc/docker/daemon.json
    watchExit();
  }

  /** Starts dockerd with the DOCKER_OPTS of `optsFile`; rejects with its last words if it does not serve. */
  async start(optsFile: string): Promise<void> {
    this.ns.lab.assertOpen();
    const at = (name: string): string => join(this.dir, name);
    const files = ['--data-root', at('data'), '--exec-root', at('exec'), '--pidfile', at('pid'), '--host', this.#host];
    const options = ['--config-file', at('daemon.json'), '--cgroup-parent', `/${CGROUP}`];
    const into = [
      '--pdeathsig',
      'KILL',
      'nsenter',
      `--net=/run/netns/${this.ns.name}`,
      'unshare',
      '--mount',
      '--pid',
      '--fork',
    ];
    const name = `dockerd-${++this.#starts}`;
    const logFile = at(`${name}.log`);
    const log = openSync(logFile, 'a');
    const words = [
      ...into,
      '--kill-child',
      '--mount-proc',
      '--propagation',
      'private',
      'sh',
      '-c',
      START,
      'sh',
      optsFile,
      ...files,
      ...options,
    ];
    const env = { ...process.env, IN_MEMORY: this.#options.inMemory === true ? at('data') : '' };
    const child = spawn('setpriv', words, { detached: true, stdio: ['ignore', log, log], env });
    closeSync(log);
    this.ns.lab.adopt(child);
    this.#daemon = new Daemon(child, name, logFile);
    try {
      await this.#daemon.ready('API listen on', STARTS_WITHIN_MS);
    } catch (error) {
      throw new Error(`dockerd does not run on this machine: ${why(this.#daemon.log()) ?? (error as Error).message}`);
    }
  }

  /** Process id of dockerd itself, as this process sees it. */
  get pid(): number {
    const outer = this.#daemon?.child.pid;
    const pids = outer === undefined ? '' : readFileSync(`/proc/${outer}/task/${outer}/children`, 'utf8').trim();
    if (!/^\d+$/.test(pids)) throw new Error(`no dockerd runs in ${this.ns.name}`);
    return Number(pids);
  }

  get running(): boolean {
    return this.#daemon?.running ?? false;
  }

  /** Stops dockerd and its containers in order. What is stopped may be started again, with other options. */
  async stop(): Promise<void> {
    const daemon = this.#daemon;
    if (!daemon?.running) return;
    process.kill(this.pid, 'SIGTERM');
    const deadline = Date.now() + STOPS_WITHIN_MS;
    while (daemon.running && Date.now() < deadline) await sleep(20);
    await daemon.stop('SIGKILL');
    removeCgroups();
  }

  /** Runs a docker command to its end; its output without the last newline. Rejects with what it says. */
  async docker(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.try(...args);
    if (code === 0) return stdout.trimEnd();
    throw new Error(`docker ${args.join(' ')} in ${this.ns.name}: ${why(stderr) ?? `exit ${code}`}`);
  }

  /** The same, whatever its outcome. */
  try(...args: string[]): Promise<Finished> {
    const env = { ...process.env, DOCKER_CONFIG: this.dir };
    return run('docker', ['--host', this.#host, ...args], { env });
  }

  async import(tarball: string): Promise<void> {
    await this.docker('import', tarball, IMAGE);
  }

  /** Starts a container that serves HTTP, instead of any of that name, and waits until it does; see `makeImage`. */
  async serve(name: string, ...options: string[]): Promise<Container> {
    await this.try('rm', '--force', name);
    const common = ['--detach', '--stop-timeout', '1', '--name', name, ...CAPABILITIES];
    await this.docker('run', ...common, ...options, IMAGE, '/bin/sh', '/serve');
    const container = new Container(this, name);
    for (const deadline = Date.now() + 10_000; ; await sleep(50)) {
      const answer = await container.try('wget', '-q', '-O', '-', `http://127.0.0.1:${WEB_PORT}/cgi-bin/peer`);
      if (answer.code === 0) return container;
      if (Date.now() > deadline) throw new Error(`${name} serves nothing: ${why(answer.stderr) ?? 'no word'}`);
    }
  }

  get #host(): string {
    return `unix://${join(this.dir, 'docker.sock')}`;
  }
}

/** The last line that says what is wrong, without the decoration of dockerd's log. */
function why(text: string): string | undefined {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  const line =
    lines.findLast((one) => /level=(fatal|error)|failed|error|denied|not permitted/i.test(one)) ?? lines.at(-1);
  return line?.replace(/^time="[^"]*" level=\w+ msg=/, '').trim();
}

/** A running container, by its name. */
export class Container {
  readonly engine: Engine;
  readonly name: string;

  constructor(engine: Engine, name: string) {
    this.engine = engine;
    this.name = name;
  }

  /** Runs a command inside; its output, or rejects. */
  exec(...command: string[]): Promise<string> {
    return this.engine.docker('exec', this.name, ...command);
  }

  /** The same, whatever its outcome. */
  try(...command: string[]): Promise<Finished> {
    return this.engine.try('exec', this.name, ...command);
  }

  inspect(format: string): Promise<string> {
    return this.engine.docker('inspect', '--format', format, this.name);
  }

  /** Its IPv4 address in docker0's network. */
  address(): Promise<string> {
    return this.inspect('{{.NetworkSettings.IPAddress}}');
  }

  /** What `url` answers, as text; rejects if nothing does within `seconds`. */
  get(url: string, seconds = 5): Promise<string> {
    return this.exec('timeout', String(seconds), 'wget', '-q', '-O', '-', url);
  }

  /** SHA-256 of what `url` answers, as 64 hexadecimal digits. */
  async hashOf(url: string, seconds = 30): Promise<string> {
    const script = `set -o pipefail; timeout ${seconds} wget -q -O - "$1" | sha256sum`;
    return (await this.exec('sh', '-c', script, 'sh', url)).slice(0, 64);
  }

  /** True if all of `count` echo requests are answered; `size` is that of the whole IPv4 packet, sent with DF set. */
  async pings(address: string, options: { readonly size?: number; readonly count?: number } = {}): Promise<boolean> {
    const { size = 84, count = 3 } = options;
    const words = ['-n', '-q', '-M', 'do', '-s', String(size - 28), '-c', String(count), '-i', '0.1', '-W', '2'];
    return (await this.try('ping', ...words, address)).stdout.includes(` ${count} received`);
  }
}

// --- the image ---

/** Bytes of each container's /data. */
export const DATA_BYTES = 8 * 1024 * 1024;
/** What /cgi-bin/slow sends: so many pieces of this size, one every `SLOW_PAUSE_MS`, as fast as `/data` begins. */
export const SLOW = { pieces: 80, bytes: 65_536, pauseMs: 50 };

const FILES: Readonly<Record<string, string>> = {
  // Process 1 of a container: data of its own, then the web server until SIGTERM.
  '/serve': `head -c ${DATA_BYTES} /dev/urandom >/www/data
httpd -f -p ${WEB_PORT} -h /www &
trap 'kill $!' TERM
wait
`,
  '/www/cgi-bin/peer': `#!/bin/sh
address=\${REMOTE_ADDR#[::ffff:}
printf 'Content-Type: text/plain\\r\\n\\r\\n%s' "\${address%]}"
`,
  '/www/cgi-bin/slow': `#!/bin/sh
printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'
i=0
while [ $i -lt ${SLOW.pieces} ]; do
  dd if=/www/data bs=${SLOW.bytes} skip=$i count=1 2>/dev/null
  usleep ${SLOW.pauseMs * 1000}
  i=$((i + 1))
done
`,
};

/** Makes a tarball for `docker import` in a new folder `dir`: a busybox for everything, iputils' ping, and a web server's files. */
export async function makeImage(dir: string): Promise<string> {
  const root = join(dir, 'root');
  for (const folder of ['bin', 'etc', 'tmp', 'proc', 'sys', 'dev']) mkdirSync(join(root, folder), { recursive: true });
  const which = (command: string): string => spawnSync('which', [command], { encoding: 'utf8' }).stdout.trim();
  cpSync(which('busybox'), join(root, 'bin/busybox'), { dereference: true });
  const packed = await run('sh', [
    '-c',
    'cd "$1/bin" && for name in $(./busybox --list); do ln -s busybox "$name"; done',
    '-',
    root,
  ]);
  if (packed.code !== 0) throw new Error(`can't use busybox: ${why(packed.stderr)}`);
  const ping = which('ping');
  cpSync(ping, join(root, 'bin/ping.iputils'), { dereference: true });
  for (const library of await librariesOf(ping)) {
    mkdirSync(join(root, dirname(library)), { recursive: true });
    cpSync(library, join(root, library), { dereference: true });
  }
  await run('sh', ['-c', 'mv -f "$1/bin/ping.iputils" "$1/bin/ping"', '-', root]);
  for (const [path, text] of Object.entries(FILES)) {
    mkdirSync(join(root, dirname(path)), { recursive: true });
    writeFileSync(join(root, path), text);
    chmodSync(join(root, path), 0o755);
  }
  const tarball = join(dir, 'image.tar');
  const { code, stderr } = await run('tar', ['-C', root, '-cf', tarball, '.']);
  if (code !== 0) throw new Error(`tar: ${why(stderr)}`);
  return tarball;
}

/** Paths of the shared libraries of a program, the loader among them, as ldd names them. */
async function librariesOf(program: string): Promise<string[]> {
  const { stdout } = await run('ldd', [program]);
  return [...stdout.matchAll(/(?:=> |^\s*)(\/\S+)/gm)].map((match) => match[1]);
}

// --- what is left ---

/** Folders of cgroups whose engine is gone: ours, and of processes that no longer live. Deepest first. */
function emptyCgroups(): string[] {
  const isOver = (name: string): boolean =>
    name === CGROUP || (name.startsWith(CGROUP_PREFIX) && !existsSync(`/proc/${name.slice(CGROUP_PREFIX.length)}`));
  const below = (folder: string): string[] =>
    foldersIn(folder).flatMap((name) => [...below(join(folder, name)), join(folder, name)]);
  // Version 2: the engines' parents are children of the root; version 1: of each controller's.
  const roots = [CGROUPS, ...foldersIn(CGROUPS).map((name) => join(CGROUPS, name))];
  return roots
    .flatMap((root) =>
      foldersIn(root)
        .filter(isOver)
        .map((name) => join(root, name)),
    )
    .flatMap((parent) => [...below(parent), parent]);
}

function foldersIn(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return []; // gone meanwhile
  }
}

/** Removes the cgroups of containers that were killed; those with a process in them stay. */
export function removeCgroups(): void {
  for (const folder of emptyCgroups()) {
    try {
      rmdirSync(folder);
    } catch {
      // Something dies there yet; the next one that calls this finds it.
    }
  }
}

let watching = false;

function watchExit(): void {
  if (watching) return;
  watching = true;
  removeCgroups();
  process.on('exit', removeCgroups); // after the lab's own handler, which was registered before
}

/** What is left of a lab and its engines on this machine, one line each: for a last assertion. */
export function leftovers(lab: Lab): string[] {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  const processes = readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && commandOf(pid).includes(lab.dir));
  return [
    ...mounts.filter((line) => line.includes(lab.dir)).map((line) => `mount ${line}`),
    ...processes.map((pid) => `process ${pid} ${commandOf(pid)}`),
    ...emptyCgroups().map((folder) => `cgroup ${folder}`),
    ...(existsSync(lab.dir) ? [`folder ${lab.dir}`] : []),
    ...readdirSync('/run/netns').filter((name) => name.startsWith(lab.prefix)),
  ];
}

function commandOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    return ''; // gone meanwhile
  }
}
