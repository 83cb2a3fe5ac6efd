/**
 * The images that deploy/Dockerfile and docker-compose.yml name, where no registry is: Debian made by debootstrap, this
 * machine's Node for that of node:22, Debian's Prometheus for Prometheus'. What a build would fetch lies in them already:
 * Debian's packages installed, npm's cache with the packages of package-lock.json. So the Dockerfile is built as it is, and
 * offline.
 *
 * debootstrap runs once (45 s); its result is kept in node_modules/.cache, as a tarball named by what is in it.
 */
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { run } from '../../../race/hosts.js';
import type { Engine } from './docker.js';

const ROOT = fileURLToPath(new URL('../../../../', import.meta.url));
const CACHE = join(ROOT, 'node_modules/.cache/weft-images');

const RELEASE = 'bookworm';
/** Of all images of the Dockerfile together: nothing tells the base images apart. */
const PACKAGES = [
  ...['iproute2', 'iptables', 'iputils-ping', 'iperf3', 'ethtool', 'netcat-openbsd'],
  ...['etcd-server', 'etcd-client', 'ca-certificates'],
];
/** With file capabilities, which ping has in Debian's own image too, and without what is of no use there. */
const PACKED = [
  ...['--one-file-system', '--xattrs', '--xattrs-include=security.capability'],
  ...['proc', 'sys', 'var/cache/apt', 'var/lib/apt/lists', 'usr/share/doc', 'usr/share/man', 'usr/share/locale'].map(
    (folder) => `--exclude=./${folder}/*`,
  ),
];

/** Runs a command; its output, or throws with its last line. */
async function output(command: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(command, args);
  if (code === 0) return stdout.trim();
  throw new Error(`${command} ${args[0]}: ${(stderr.trim() || stdout.trim()).split('\n').at(-1)}`);
}

/** A tarball of Debian with `PACKAGES`; `scratch` is for making it. */
export async function debian(scratch: string): Promise<string> {
  const key = createHash('sha256').update(`${RELEASE} ${PACKAGES} ${PACKED}`).digest('hex').slice(0, 12);
  const tarball = join(CACHE, `debian-${RELEASE}-${key}.tar`);
  if (existsSync(tarball)) return tarball;
  const root = join(scratch, 'debian');
  // Wherever this machine has its packages from.
  const indexes = ['--format', '$(REPO_URI)', 'Identifier: Packages', `Release: ${RELEASE}`];
  const mirrors = (await output('apt-get', 'indextargets', ...indexes)).split('\n').filter(Boolean);
  await output('debootstrap', '--variant=minbase', `--include=${PACKAGES}`, RELEASE, root, ...mirrors.slice(0, 1));
  // Nothing to fetch, and nowhere to fetch it: `apt-get update` and `install` find all of it done.
  writeFileSync(join(root, 'etc/apt/sources.list'), '');
  mkdirSync(CACHE, { recursive: true });
  const made = `${tarball}.${process.pid}`;
  await output('tar', '-C', root, ...PACKED, '-cf', made, '.');
  renameSync(made, tarball);
  return tarball;
}

/** Gives `engine` the base images of the Dockerfile. */
export async function importBases(engine: Engine, scratch: string): Promise<void> {
  const base = await debian(scratch);
  await engine.docker('import', base, 'debian:bookworm-slim');
  // The same with Node: one image of one layer is made more quickly than a layer upon another.
  const files = join(scratch, 'node');
  await putNode(files);
  const tarball = join(scratch, 'node.tar');
  copyFileSync(base, tarball);
  // What is not there yet, file by file: docker import takes no path twice.
  const added = ['usr/local/bin/node', 'usr/local/bin/npm', 'usr/local/lib/node_modules', 'root/.npm', 'root/.npmrc'];
  await output('tar', '-C', files, '-rf', tarball, ...added);
  await engine.docker('import', tarball, 'node:22-bookworm-slim');
}

/** This machine's Node and npm, and npm's cache, below `files`, which is made. */
async function putNode(files: string): Promise<void> {
  const [modules, cache, registry] = await Promise.all([
    output('npm', 'root', '--global'),
    output('npm', 'config', 'get', 'cache'),
    output('npm', 'config', 'get', 'registry'),
  ]);
  mkdirSync(join(files, 'usr/local/bin'), { recursive: true });
  copyFileSync(process.execPath, join(files, 'usr/local/bin/node'));
  cpSync(join(modules, 'npm'), join(files, 'usr/local/lib/node_modules/npm'), { recursive: true });
  symlinkSync('../lib/node_modules/npm/bin/npm-cli.js', join(files, 'usr/local/bin/npm'));
  copyNpmCache(cache, join(files, 'root/.npm'));
  writeFileSync(join(files, 'root/.npmrc'), `registry=${registry}\noffline=true\n`);
}

/** Gives `engine` Debian's Prometheus as `image`, laid out as Prometheus' own is. */
export async function importPrometheus(engine: Engine, scratch: string, image: string): Promise<void> {
  const dir = join(scratch, 'prometheus');
  mkdirSync(dir, { recursive: true });
  for (const program of ['prometheus', 'busybox']) copyFileSync(await output('which', program), join(dir, program));
  await build(engine, dir, image, [
    'FROM debian:bookworm-slim',
    'COPY prometheus busybox /bin/',
    'RUN ln -s busybox /bin/wget && install -d -o nobody -g nogroup /prometheus /etc/prometheus',
    'USER nobody',
    'WORKDIR /prometheus',
    'ENTRYPOINT ["/bin/prometheus"]',
  ]);
}

async function build(engine: Engine, dir: string, image: string, lines: readonly string[]): Promise<void> {
  writeFileSync(join(dir, 'Dockerfile'), `${lines.join('\n')}\n`);
  await engine.docker('build', '--quiet', '--tag', image, dir);
}

// --- npm's cache ---

interface CacheEntry {
  readonly key: string;
  readonly integrity?: string;
}

/**
 * Copies of npm's cache (cacache, version 5 of its index) what package-lock.json names: a package's document and its tarball.
 * A file of the index has a line for each time that it was written; the last one holds.
 */
function copyNpmCache(from: string, to: string): void {
  const lock = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, unknown>;
  };
  const names = new Set(Object.keys(lock.packages).map((path) => path.replace(/^.*node_modules\//, '')));
  const index = join(from, '_cacache/index-v5');
  if (!existsSync(index)) throw new Error(`${from}: npm has no cache there; run npm ci`);
  for (const name of readdirSync(index, { recursive: true, encoding: 'utf8' })) {
    if (name.split('/').length !== 3) continue;
    const line = readFileSync(join(index, name), 'utf8').trimEnd().split('\n').at(-1) ?? '';
    const { key, integrity } = JSON.parse(line.slice(line.indexOf('\t') + 1)) as CacheEntry;
    if (integrity === undefined || !names.has(packageOf(key))) continue;
    copyInto(to, from, join('_cacache/index-v5', name));
    const [algorithm, digest] = integrity.split('-');
    const hex = Buffer.from(digest, 'base64').toString('hex');
    copyInto(to, from, join('_cacache/content-v2', algorithm, hex.slice(0, 2), hex.slice(2, 4), hex.slice(4)));
  }
}

/** `pacote:tarball:@a/b@1.0.0`, `make-fetch-happen:request-cache:https://host/@a%2fb`, …/@a/b/-/b-1.0.0.tgz: all are of `@a/b`. */
function packageOf(key: string): string {
  const tarball = /^pacote:tarball:(@?[^@]+)@/.exec(key)?.[1];
  if (tarball !== undefined) return tarball;
  const path = decodeURIComponent(/:https?:\/\/[^/]+\/(.*)$/.exec(key)?.[1] ?? '');
  return /(@[^/]+\/[^/]+|[^/@]+)(\/-\/[^/]+)?$/.exec(path)?.[1] ?? '';
}

function copyInto(to: string, from: string, path: string): void {
  if (!existsSync(join(from, path))) return;
  mkdirSync(dirname(join(to, path)), { recursive: true });
  copyFileSync(join(from, path), join(to, path));
}
