/** The kernel's numbers that go with syscalls.ts; apart, so that what runs in memory loads no native code. */

// Sources: asm-generic/socket.h, linux/in.h, in6.h, udp.h, poll.h, fcntl.h

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0o4000 | 0o2000000;

export const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0o4000 | 0o2000000;
export const IPPROTO_ICMP = 1;
export const IPPROTO_ICMPV6 = 58;

export const SOL_SOCKET = 1;
export const SO_REUSEPORT = 15;
export const SO_NO_CHECK = 11;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_MEMINFO = 55;

export const SOL_IP = 0;
export const IP_TOS = 1;
export const IP_MTU_DISCOVER = 10;
export const IP_RECVTOS = 13;
export const IP_PMTUDISC_DONT = 0;
export const IP_PMTUDISC_DO = 2;
/** DF, whatever the kernel has learned of the path. */
export const IP_PMTUDISC_PROBE = 3;

export const SOL_IPV6 = 41;
export const IPV6_MTU_DISCOVER = 23;
export const IPV6_PMTUDISC_DONT = 0;
export const IPV6_PMTUDISC_DO = 2;
export const IPV6_PMTUDISC_PROBE = 3;
export const IPV6_V6ONLY = 26;
export const IPV6_DONTFRAG = 62;
export const IPV6_RECVTCLASS = 66;
export const IPV6_TCLASS = 67;

export const SOL_UDP = 17;
export const UDP_NO_CHECK6_TX = 101;
export const UDP_NO_CHECK6_RX = 102;
export const UDP_SEGMENT = 103;
export const UDP_GRO = 104;

export const MSG_TRUNC = 0x20;
export const MSG_DONTWAIT = 0x40;

export const POLLIN = 1;
export const POLLOUT = 4;
export const POLLERR = 8;

export const LOCK_SH = 1;
export const LOCK_EX = 2;
/** With either of the two: do not wait. */
export const LOCK_NB = 4;
export const LOCK_UN = 8;
