/**
 * The underlay's UDP sockets, opened by main, read and written by a worker with recvmmsg and sendmmsg. Those on the known port
 * receive; in layer 2 others only send, so that flows have different source ports (RFC 7348 5).
 *
 * SO_REUSEPORT lets several workers, or a successor, bind the same port; DF is set outside (RFC 4459 3.1: the tunnel
 * must not fragment) unless asked otherwise, so a path that shrinks shows as EMSGSIZE. Sources: udp(7), ip(7), linux/udp.h.
 */
import { closeSync } from 'node:fs';
import { release } from 'node:os';
import { OFFLOADS } from './offloads.js';
import { SetupError } from './setup-error.js';
import { socketAddress } from './socket-address.js';
import * as sys from './syscalls.js';

const EADDRINUSE = -98;
const EADDRNOTAVAIL = -99;
const BUFFER_BYTES = 8 << 20;
/** For a socket that nobody reads: the kernel rounds it up to the least there is. */
const NO_BUFFER = 0;

export interface UdpOptions {
  /** Local address in network byte order, 4 or 16 bytes. */
  readonly address: Uint8Array;
  /** For messages. */
  readonly text: string;
  /** undefined: the socket only sends, from a port of the kernel's choice. */
  readonly port: number | undefined;
  /** Wanted offloads (io/offloads.ts). */
  readonly offloads: number;
  /** Send with a UDP checksum (default). Without it, which IPv6 needs RFC 6935's leave for, there is no `segment`. */
  readonly checksum?: boolean;
  /** Send with DF, IPv6 without fragmenting at the source (default). */
  readonly df?: boolean;
}

export interface UdpSocket {
  readonly fd: number;
  readonly family: 4 | 6;
  /** Those of the wanted offloads that this kernel has. */
  readonly offloads: number;
  /** Most datagrams one message may hold: 128 from Linux 6.9, 64 before, 1 without `segment`. */
  readonly maxSegments: number;
  /** Bytes the kernel really granted, as getsockopt tells (twice what was asked). */
  readonly receiveBuffer: number;
}

/** Opens a bound, non-blocking socket. Throws a SetupError: port in use, address not of this host. */
export function openUdp(options: UdpOptions): UdpSocket {
  const v4 = options.address.length === 4;
  const { port, checksum = true, df = true } = options;
  const fd = sys.socket(v4 ? sys.AF_INET : sys.AF_INET6, sys.SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) throw new SetupError('NO_SOCKET', `cannot make a UDP socket: ${sys.errnoText(fd)}`);
  const set = (level: number, name: number, value: number): boolean => sys.setsockopt(fd, level, name, value) >= 0;
  // A port of the kernel's choice is to be nobody else's.
  if (port !== undefined) set(sys.SOL_SOCKET, sys.SO_REUSEPORT, 1);
  if (!v4) {
    set(sys.SOL_IPV6, sys.IPV6_V6ONLY, 1);
    set(sys.SOL_UDP, sys.UDP_NO_CHECK6_RX, 1);
  }
  const bound = sys.bind(fd, socketAddress(options.address, port ?? 0));
  if (bound < 0) {
    closeSync(fd);
    const where = `${v4 ? options.text : `[${options.text}]`}:${port ?? 'any'}/udp`;
    if (bound === EADDRINUSE)
      throw new SetupError(
        'PORT_IN_USE',
        `${where} is in use: stop its owner, or choose another --port (with etcd: Port in its config)`,
      );
    if (bound === EADDRNOTAVAIL) {
      throw new SetupError(
        'NO_ADDRESS',
        `${options.text} is not an address of this host: check --iface and --public-ip`,
      );
    }
    throw new SetupError('NO_SOCKET', `cannot bind ${where}: ${sys.errnoText(bound)}`);
  }
  if (v4) set(sys.SOL_IP, sys.IP_MTU_DISCOVER, df ? sys.IP_PMTUDISC_DO : sys.IP_PMTUDISC_DONT);
  else set(sys.SOL_IPV6, sys.IPV6_MTU_DISCOVER, df ? sys.IPV6_PMTUDISC_DO : sys.IPV6_PMTUDISC_DONT);
  // The forced size needs CAP_NET_ADMIN; without it the host's limit decides.
  if (!set(sys.SOL_SOCKET, sys.SO_SNDBUFFORCE, BUFFER_BYTES)) set(sys.SOL_SOCKET, sys.SO_SNDBUF, BUFFER_BYTES);
  let offloads = options.offloads;
  if (port === undefined) {
    set(sys.SOL_SOCKET, sys.SO_RCVBUF, NO_BUFFER); // what comes here is for nobody: the kernel drops it
  } else {
    set(v4 ? sys.SOL_IP : sys.SOL_IPV6, v4 ? sys.IP_RECVTOS : sys.IPV6_RECVTCLASS, 1);
    if (!set(sys.SOL_SOCKET, sys.SO_RCVBUFFORCE, BUFFER_BYTES)) set(sys.SOL_SOCKET, sys.SO_RCVBUF, BUFFER_BYTES);
    if (offloads & OFFLOADS.gro && !set(sys.SOL_UDP, sys.UDP_GRO, 1)) offloads &= ~OFFLOADS.gro;
  }
  if (!checksum) {
    if (v4) set(sys.SOL_SOCKET, sys.SO_NO_CHECK, 1);
    else set(sys.SOL_UDP, sys.UDP_NO_CHECK6_TX, 1);
    offloads &= ~OFFLOADS.segment; // the kernel refuses to segment what it may not checksum
  }
  // Setting the option to 0 changes nothing, and fails where the kernel does not know it.
  if (offloads & OFFLOADS.segment && !set(sys.SOL_UDP, sys.UDP_SEGMENT, 0)) offloads &= ~OFFLOADS.segment;
  return {
    fd,
    family: v4 ? 4 : 6,
    offloads,
    maxSegments: offloads & OFFLOADS.segment ? kernelSegments() : 1,
    receiveBuffer: sys.getsockopt(fd, sys.SOL_SOCKET, sys.SO_RCVBUF),
  };
}

/** UDP_MAX_SEGMENTS of this kernel (linux/udp.h): 64, doubled in 6.9. A longer message would fail with EINVAL. */
function kernelSegments(): number {
  const [major, minor] = release().split('.').map(Number);
  return major > 6 || (major === 6 && minor >= 9) ? 128 : 64;
}

/** Index of SK_MEMINFO_DROPS (linux/sock_diag.h) in what SO_MEMINFO tells, nine 32-bit numbers. */
const MEMINFO_DROPS = 8;

/**
 * Messages that the kernel has dropped because the socket's buffer was full, since it was opened; wraps at 2^32.
 *
 * Not by SO_RXQ_OVFL, which would tell a worker with each message: the kernel copies that control message out of the packet's own
 * memory, and where that is a local TCP's (a kernel's VXLAN across a veth), hardened usercopy takes it for an exploit and kills
 * the thread (seen with Linux 6.18).
 */
export function socketDrops(fd: number): number {
  const words = new Uint32Array(9);
  const result = sys.getsockoptBytes(fd, sys.SOL_SOCKET, sys.SO_MEMINFO, new Uint8Array(words.buffer));
  return result < 0 ? 0 : words[MEMINFO_DROPS];
}
