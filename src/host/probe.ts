/**
 * Is the UDP port free? weftd's own sockets set SO_REUSEPORT, with which a second owner's bind succeeds and half of the
 * packets go astray; so first a socket without it is bound, and closed again.
 */
import { closeSync } from 'node:fs';
import { SetupError } from '../io/setup-error.js';
import { socketAddress } from '../io/socket-address.js';
import {
  AF_INET,
  AF_INET6,
  bind,
  errnoText,
  IPV6_V6ONLY,
  SOCK_DGRAM_NONBLOCK_CLOEXEC,
  SOL_IPV6,
  setsockopt,
  socket,
} from '../io/syscalls.js';

const EADDRINUSE = -98;
const EADDRNOTAVAIL = -99;

/** Throws a SetupError: the port is in use, or the address (4 or 16 bytes, network byte order) is not of this host. */
export function probePort(address: Uint8Array, text: string, port: number): void {
  const v4 = address.length === 4;
  const fd = socket(v4 ? AF_INET : AF_INET6, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) throw new SetupError('NO_SOCKET', `cannot make a UDP socket: ${errnoText(fd)}`);
  if (!v4) setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, 1);
  const result = bind(fd, socketAddress(address, port));
  closeSync(fd);
  if (result >= 0) return;
  const where = `UDP port ${port} of ${text}`;
  if (result === EADDRINUSE) {
    throw new SetupError(
      'PORT_IN_USE',
      `${where} is in use: stop its owner, or choose another --port (with etcd: Port in its config)`,
    );
  }
  if (result === EADDRNOTAVAIL) {
    throw new SetupError('NO_ADDRESS', `${text} is not an address of this host: check --iface and --public-ip`);
  }
  throw new SetupError('NO_SOCKET', `cannot bind ${where}: ${errnoText(result)}`);
}
