/**
 * Which daemon is meant: the one whose socket was said, or the one of this network namespace, so that
 * `ip netns exec a weft status` asks the daemon of namespace a. A socket counts where somebody listens: a daemon that was killed
 * leaves its own behind.
 */
import { readdirSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { networkNamespace } from '../../host/network-namespace.js';
import { RUN_FOLDER, SOCKET_SUFFIX, SOCKET_VARIABLE } from '../../inspect/protocol.js';
import { SetupError } from '../../io/setup-error.js';
import { DaemonClient, failureOf } from './client.js';

/** Where `ip netns` names namespaces. */
const NAMED_NAMESPACES = '/run/netns';
/** Milliseconds for a daemon to take a connection. */
const PATIENCE = 2000;
/** Milliseconds for it to say who it is, for an error; one that hangs has its pid in the error. */
const ASKING = 1000;
/** Daemons that an error tells of. */
const MOST_TOLD = 8;

interface Found {
  readonly path: string;
  readonly pid: string;
  /** Inode of its network namespace, as text. */
  readonly namespace: string;
}

/** Rejects with a SetupError where there is none, or several; one that was said is not looked at before it is asked. */
export async function findDaemon(said: string | undefined, folder: string = RUN_FOLDER): Promise<DaemonClient> {
  if (said !== undefined) return new DaemonClient(said);
  const own = networkNamespace();
  const here = await listening(folder, own);
  if (here.length === 1) return new DaemonClient(here[0].path);
  if (here.length > 1) throw await severalHere(here);
  throw await noneHere(folder, own);
}

/** Sockets of a namespace's folder at which somebody listens. */
async function listening(folder: string, namespace: string): Promise<Found[]> {
  const names = entriesOf(join(folder, namespace)).filter((name) => name.endsWith(SOCKET_SUFFIX));
  const all = names.sort().map((name) => {
    return { path: join(folder, namespace, name), pid: name.slice(0, -SOCKET_SUFFIX.length), namespace };
  });
  const live = await Promise.all(all.map(({ path }) => listens(path)));
  return all.filter((_, i) => live[i]);
}

/** Throws a SetupError where looking is not allowed. */
function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return [];
    throw new SetupError('NO_PERMISSION', `cannot look into ${folder} (${code || message}): run weft as root`);
  }
}

/** Rejects with a SetupError where asking is not allowed. */
function listens(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    const end = (live: boolean): void => {
      socket.destroy();
      resolve(live);
    };
    socket.on('connect', () => end(true));
    socket.on('error', ({ code = '', message }: NodeJS.ErrnoException) => {
      if (code === 'EACCES' || code === 'EPERM') reject(failureOf(path, code, message));
      else end(code === 'EAGAIN'); // its queue is full, but it is there
    });
    socket.setTimeout(PATIENCE, () => end(true));
  });
}

async function severalHere(all: readonly Found[]): Promise<SetupError> {
  const told = await Promise.all(all.slice(0, MOST_TOLD).map(async (one) => `${one.path} (${await described(one)})`));
  return new SetupError(
    'SEVERAL_DAEMONS',
    `${all.length} weftd run in this network namespace: say which by --socket, or in ${SOCKET_VARIABLE}: ${told.join(', ')}`,
  );
}

async function noneHere(folder: string, own: string): Promise<SetupError> {
  const others: Found[] = [];
  for (const namespace of entriesOf(folder)) {
    if (namespace !== own && /^\d+$/.test(namespace)) others.push(...(await listening(folder, namespace)));
  }
  const none = 'no weftd answers in this network namespace';
  if (others.length === 0) {
    return new SetupError('NO_DAEMON', `${none}: start weftd, or say by --socket where its --control-socket is`);
  }
  const names = namedNamespaces();
  const told = await Promise.all(
    others.slice(0, MOST_TOLD).map(async (one) => `${await described(one)}: ${entering(one, names)}`),
  );
  const more = others.length > MOST_TOLD ? [`${others.length - MOST_TOLD} more in ${folder}`] : [];
  return new SetupError('NO_DAEMON', `${none}, but in another: ${[...told, ...more].join('; ')}`);
}

/** What people know a daemon by. */
async function described({ path, pid }: Found): Promise<string> {
  const status = await new DaemonClient(path, ASKING).get('status').catch(() => undefined);
  const devices = status?.devices.map(({ name }) => name) ?? [];
  return [`pid ${pid}`, ...devices].join(', ');
}

/** How to run weft in the namespace of a daemon. */
function entering({ namespace, pid }: Found, names: ReadonlyMap<string, string>): string {
  const name = names.get(namespace);
  return name === undefined ? `nsenter --net=/proc/${pid}/ns/net weft …` : `ip netns exec ${name} weft …`;
}

/** By inode. */
function namedNamespaces(): Map<string, string> {
  const found = new Map<string, string>();
  let names: string[] = [];
  try {
    names = readdirSync(NAMED_NAMESPACES);
  } catch {
    // nobody has used `ip netns` here
  }
  for (const name of names) {
    const inode = statSync(join(NAMED_NAMESPACES, name), { throwIfNoEntry: false })?.ino;
    if (inode !== undefined) found.set(String(inode), name);
  }
  return found;
}
