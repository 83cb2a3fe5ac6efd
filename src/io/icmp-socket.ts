/**
 * A raw ICMP or ICMPv6 socket whose packets leave with DF, however large the kernel thinks that the path is (IP_PMTUDISC_PROBE): only
 * the interface's own MTU is in the way. Raw and not a ping socket: net.ipv4.ping_group_range forbids those by default, and a raw one
 * also hears the ICMP errors about packets of others, such as our UDP datagrams. Waiting blocks the thread: for a command, not a daemon.
 */
import { closeSync } from 'node:fs';
import { type Family, icmpOffset } from '../packet/echo.js';
import { IPV4_SOURCE } from '../packet/ip.js';
import { SetupError } from './setup-error.js';
import { socketAddress } from './socket-address.js';
import {
  AF_INET,
  AF_INET6,
  addressOf,
  bind,
  errnoText,
  IP_MTU_DISCOVER,
  IP_PMTUDISC_PROBE,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPV6_DONTFRAG,
  IPV6_MTU_DISCOVER,
  IPV6_PMTUDISC_PROBE,
  POLLIN,
  poll,
  recvfrom,
  SOCK_RAW_NONBLOCK_CLOEXEC,
  SOL_IP,
  SOL_IPV6,
  sendto,
  setsockopt,
  socket,
} from './syscalls.js';

const MOST = 65_600;
const SOCKADDR_IN6 = 28;

export interface IcmpMessage {
  /** Who sent it, 4 or 16 bytes. */
  readonly from: Uint8Array;
  /** From the ICMP header on; only valid until the next receive(). */
  readonly message: Uint8Array;
}

export class IcmpSocket {
  readonly #family: Family;
  readonly #fd: number;
  readonly #bytes = new Uint8Array(MOST);
  readonly #from = new Uint8Array(SOCKADDR_IN6);
  /** struct pollfd. */
  readonly #poll = new Uint8Array(8);
  readonly #pollAt: number;

  /** `source`: one of our addresses, or whichever the kernel takes. Throws a SetupError: no permission, no such address here. */
  constructor(family: Family, source: Uint8Array | undefined) {
    this.#family = family;
    const v4 = family === 4;
    const protocol = v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
    this.#fd = socket(v4 ? AF_INET : AF_INET6, SOCK_RAW_NONBLOCK_CLOEXEC, protocol);
    if (this.#fd < 0) {
      throw new SetupError(
        'NO_RAW_SOCKET',
        `cannot open a raw ICMP socket (${errnoText(this.#fd)}): run weft as root, with CAP_NET_RAW`,
      );
    }
    const options = v4
      ? [setsockopt(this.#fd, SOL_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)]
      : [
          setsockopt(this.#fd, SOL_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE),
          setsockopt(this.#fd, SOL_IPV6, IPV6_DONTFRAG, 1),
        ];
    const bound = source === undefined ? 0 : bind(this.#fd, socketAddress(source, 0));
    const failed = [...options, bound].find((result) => result < 0);
    if (failed !== undefined) {
      this.close();
      throw new SetupError('NO_RAW_SOCKET', `cannot set up a raw ICMP socket: ${errnoText(failed)}`);
    }
    const view = new DataView(this.#poll.buffer);
    view.setInt32(0, this.#fd, true);
    view.setInt16(4, POLLIN, true);
    this.#pollAt = addressOf(this.#poll);
  }

  /** Sends an ICMP message: bytes sent, or -errno. */
  send(message: Uint8Array, to: Uint8Array): number {
    return sendto(this.#fd, message, socketAddress(to, 0));
  }

  /** What came next, of whatever kind; undefined: nothing is there. */
  receive(): IcmpMessage | undefined {
    const length = recvfrom(this.#fd, this.#bytes, this.#from);
    if (length < 0) return undefined;
    const bytes = this.#bytes.subarray(0, length);
    if (this.#family === 6) return { from: this.#from.slice(8, 24), message: bytes };
    const at = icmpOffset(bytes);
    const none = { from: new Uint8Array(4), message: bytes.subarray(0, 0) };
    return at < 0 ? none : { from: bytes.slice(IPV4_SOURCE, IPV4_SOURCE + 4), message: bytes.subarray(at) };
  }

  /** Waits until something has come, at most so many milliseconds; the whole thread waits. */
  wait(ms: number): void {
    poll(this.#pollAt, 1, ms);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
