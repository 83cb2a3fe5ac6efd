/** ICMP (RFC 792) and ICMPv6 (RFC 4443) errors: types, codes, and how much of the offending packet they quote. */

export const ICMP_UNREACHABLE = 3;
export const ICMP_NET_UNREACHABLE = 0;
export const ICMP_FRAGMENTATION_NEEDED = 4;
const ICMP_SOURCE_QUENCH = 4;
const ICMP_REDIRECT = 5;
export const ICMP_TIME_EXCEEDED = 11;
const ICMP_PARAMETER_PROBLEM = 12;

export const ICMPV6_UNREACHABLE = 1;
export const ICMPV6_NO_ROUTE = 0;
export const ICMPV6_TOO_BIG = 2;
export const ICMPV6_TIME_EXCEEDED = 3;
/** Informational ICMPv6 types start here; below are errors (RFC 4443 2.1). */
const ICMPV6_FIRST_INFORMATIONAL = 128;

/** Informational by number, but never to be answered by an error (RFC 4443 2.4 e.2). */
const ICMPV6_REDIRECT = 137;

/** The whole error datagram may be this long (RFC 1812 4.3.2.3; RFC 4443 2.4 c). */
export const ICMP_MAX = 576;
export const ICMPV6_MAX = 1280;
/** Type, code, checksum, and four bytes that depend on the type. */
export const ICMP_HEADER = 8;

/** The same for ICMPv6: errors, and redirects. */
export const isIcmpv6Error = (type: number): boolean => type < ICMPV6_FIRST_INFORMATIONAL || type === ICMPV6_REDIRECT;

/** Whether an ICMP type is an error, which must never be answered by one (RFC 1122 3.2.2). */
export const isIcmpError = (type: number): boolean =>
  type === ICMP_UNREACHABLE ||
  type === ICMP_SOURCE_QUENCH ||
  type === ICMP_REDIRECT ||
  type === ICMP_TIME_EXCEEDED ||
  type === ICMP_PARAMETER_PROBLEM;
