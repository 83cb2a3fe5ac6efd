/**
 * What the service manager hears of us: sd_notify(3), without its library. A unit of Type=notify is started once it has heard
 * READY=1; a daemon that nobody listens to says nothing.
 */
import { closeSync } from 'node:fs';
import { AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, sendto, socket } from '../io/syscalls.js';

/** sun_path of struct sockaddr_un (unix(7)); a path in the file system ends with a zero byte in it. */
const PATH_BYTES = 108;
const EAGAIN = -11;
/** A manager that is busy gets it later. */
const AGAIN = { after: 100, times: 50 };

/**
 * Says `state` (lines such as `READY=1` or `STATUS=waiting for etcd`) to $NOTIFY_SOCKET; nothing if that is not set. Never
 * throws and never waits: whether anybody hears it makes no difference to what we do.
 */
export function notify(state: string, path = process.env.NOTIFY_SOCKET): void {
  const address = socketAddress(path ?? '');
  if (address) send(Buffer.from(state), address, AGAIN.times);
}

function send(state: Uint8Array, address: Uint8Array, times: number): void {
  const fd = socket(AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const result = sendto(fd, state, address);
  closeSync(fd);
  if (result === EAGAIN && times > 0) setTimeout(() => send(state, address, times - 1), AGAIN.after).unref();
}

/** struct sockaddr_un: the family in host byte order, then a path, or after a zero byte a name without file (`@name`). */
function socketAddress(path: string): Uint8Array | undefined {
  const name = Buffer.from(path.startsWith('@') ? `\0${path.slice(1)}` : `${path}\0`);
  if (!/^[/@]./s.test(path) || name.length > PATH_BYTES) return undefined;
  return Uint8Array.of(AF_UNIX, 0, ...name);
}
