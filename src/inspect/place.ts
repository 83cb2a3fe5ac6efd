/**
 * Where the control socket lies, and that only root may open it: folders of mode 0700, and a socket that is 0600 from its making on.
 *
 * A daemon that was killed leaves its socket behind. Where nobody listens any more it is removed: at our own path before we bind,
 * and those beside it once we serve.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, linkSync, lstatSync, readdirSync, rmdirSync, statSync, unlinkSync } from 'node:fs';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { dirname, join } from 'node:path';
import { ensureDirectory } from '../host/directory.js';
import { networkNamespace } from '../host/network-namespace.js';
import { SetupError } from '../io/setup-error.js';
import { RUN_FOLDER, SOCKET_SUFFIX } from './protocol.js';

/** Of sockaddr_un (unix(7)), with the byte that ends it. */
const PATH_MOST = 107;
const FOLDER_MODE = 0o700;
/** Takes away all but the owner's reading and writing. */
const SOCKET_UMASK = 0o177;
/** How often a folder that vanishes under us is made again. */
const TRIES = 5;
/** Milliseconds for a daemon to take a connection; one that does not is alive, and busy. */
const PATIENCE = 1000;
/** Other namespaces whose leavings are looked at. */
const MOST_FOLDERS = 256;

export const defaultPath = (): string => join(RUN_FOLDER, networkNamespace(), `${process.pid}${SOCKET_SUFFIX}`);

/**
 * Makes `server` listen at a path; the result takes the socket away. Rejects with a SetupError. `said`: the path is the operator's
 * own, in a folder that is there; otherwise the folder is made, and goes with the last socket in it.
 */
export async function listenAt(server: Server, path: string, said: boolean): Promise<() => void> {
  const folder = dirname(path);
  // Bound under another name, and linked to its own: link(2) takes a free name only, and what libuv removes when it closes is the
  // name that it bound, not what may be at ours by then.
  const bound = join(folder, `.weft-${randomBytes(4).toString('hex')}`);
  if (Buffer.byteLength(path) > PATH_MOST) throw refused(path, `its path is longer than ${PATH_MOST} bytes`);
  const beyond = Buffer.byteLength(bound) - PATH_MOST;
  if (beyond > 0) throw refused(path, `the path of its folder is ${beyond} bytes too long`);
  for (let tries = 1; ; tries++) {
    try {
      if (!said) makeFolder(folder);
      await removeStale(path);
      await listen(server, bound);
      linkSync(bound, path);
      remove(bound);
      break;
    } catch (error) {
      if (server.listening) await new Promise((resolve) => server.close(resolve));
      if (error instanceof SetupError) throw error;
      const { code, message } = error as NodeJS.ErrnoException;
      const there = existsSync(folder);
      // Another daemon may have removed the folder, or taken the path, since we looked.
      if (tries < TRIES && (code === 'EEXIST' || code === 'ENOENT' || !there) && (there || !said)) continue;
      throw refused(path, there ? reasonFor(code, message) : `there is no folder ${folder}`);
    }
  }
  const { ino } = statSync(path);
  return () => {
    if (statSync(path, { throwIfNoEntry: false })?.ino === ino) remove(path);
    if (!said) removeFolder(folder);
  };
}

function makeFolder(folder: string): void {
  for (const one of [dirname(folder), folder]) {
    ensureDirectory(one, FOLDER_MODE);
    const { uid, mode } = lstatSync(one);
    if (uid !== process.getuid?.() || (mode & 0o022) !== 0) throw new Error(`${one} can be changed by others`);
  }
}

/** Throws a SetupError: somebody listens there, or it is something else. */
async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw refused(path, 'there is something else than a socket');
  if (await listens(path)) throw refused(path, 'another process listens there');
  if (lstatSync(path, { throwIfNoEntry: false })?.ino === found.ino) remove(path);
}

const refused = (path: string, reason: string): SetupError =>
  new SetupError('NO_CONTROL_SOCKET', `control socket ${path}: ${reason}: choose another --control-socket, or off`);

function reasonFor(code: string | undefined, message: string): string {
  if (code === 'EACCES' || code === 'EPERM') return 'no permission to make it';
  if (code === 'EROFS') return 'the file system is read-only';
  return code === 'EEXIST' ? 'another process listens there' : message;
}

/** Node binds at once, before `listen` returns: nobody sees the socket with other permissions. */
function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    const before = process.umask(SOCKET_UMASK);
    try {
      server.listen({ path, exclusive: true }, () => {
        server.off('error', reject);
        resolve();
      });
    } finally {
      process.umask(before);
    }
  });
}

/** True where somebody takes connections, or might. */
function listens(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const end = (live: boolean): void => {
      socket.destroy();
      resolve(live);
    };
    socket.on('connect', () => end(true));
    socket.on('error', ({ code }: NodeJS.ErrnoException) => end(code !== 'ECONNREFUSED' && code !== 'ENOENT'));
    socket.setTimeout(PATIENCE, () => end(true));
  });
}

/** Takes away what daemons that are no more have left: their sockets, and folders without any. Never rejects. */
export async function tidyUp(folder: string = RUN_FOLDER): Promise<void> {
  for (const namespace of namesIn(folder).slice(0, MOST_FOLDERS)) {
    if (!/^\d+$/.test(namespace)) continue;
    for (const name of namesIn(join(folder, namespace))) {
      const path = join(folder, namespace, name);
      if (/^(\d+\.sock|\.weft-[0-9a-f]+)$/.test(name) && !(await listens(path))) remove(path);
    }
    // One that a daemon has just made for itself is empty for a moment: then that daemon makes it again.
    if (namespace !== networkNamespace()) removeFolder(join(folder, namespace));
  }
}

const namesIn = (folder: string): string[] => {
  try {
    return existsSync(folder) ? readdirSync(folder) : [];
  } catch {
    return [];
  }
};

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // it is gone, or will be found again
  }
}

/** If it is empty. */
function removeFolder(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {
    // others' sockets are in it
  }
}
