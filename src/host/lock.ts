/**
 * One daemon per network namespace and device. The flags that let a successor attach before its predecessor leaves (tun
 * MULTI_QUEUE, SO_REUSEPORT) let a second daemon in as well, silently, so there is a lock: an abstract unix socket
 * (unix(7)). Such names belong to the network namespace, and go with the process however it ends. A plain bind, not
 * node:net, whose versions differ in how they pad the name.
 */
import { closeSync } from 'node:fs';
import { SetupError } from '../io/setup-error.js';
import { bind, errnoText, SOCK_DGRAM_NONBLOCK_CLOEXEC, socket } from '../io/syscalls.js';

const AF_UNIX = 1;
const EADDRINUSE = -98;

/** Takes the lock; the result lets go of it. Throws a SetupError when another process has it. */
export function lockDevice(device: string): () => void {
  const fd = socket(AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) throw new SetupError('NO_SOCKET', `cannot make a unix socket: ${errnoText(fd)}`);
  // struct sockaddr_un: family (host byte order), then a name that starts with NUL.
  const result = bind(fd, Uint8Array.of(AF_UNIX, 0, 0, ...new TextEncoder().encode(`weft/${device}`)));
  if (result >= 0) return () => closeSync(fd);
  closeSync(fd);
  if (result === EADDRINUSE) {
    throw new SetupError(
      'ALREADY_RUNNING',
      `another weftd runs device ${device} in this network namespace: stop it, or choose another --device`,
    );
  }
  throw new SetupError('NO_SOCKET', `cannot lock device ${device}: ${errnoText(result)}`);
}
