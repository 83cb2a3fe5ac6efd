import { AF_INET, AF_INET6 } from './syscalls-constants.js';

/** struct sockaddr_in or sockaddr_in6. `port` in host byte order. */
export function socketAddress(address: Uint8Array, port: number): Uint8Array {
  const v4 = address.length === 4;
  const bytes = new Uint8Array(v4 ? 16 : 28);
  bytes[0] = v4 ? AF_INET : AF_INET6;
  bytes[2] = port >> 8;
  bytes[3] = port & 255;
  bytes.set(address, v4 ? 4 : 8);
  return bytes;
}
