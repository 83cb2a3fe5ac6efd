/** ICMP (RFC 792, 1122) and ICMPv6 (RFC 4443, 4861, 2710, 3810) messages in words. */

const ICMP: Readonly<Record<number, string>> = {
  0: 'echo reply',
  3: 'unreachable',
  5: 'redirect',
  8: 'echo request',
  11: 'time exceeded',
  12: 'parameter problem',
};

const UNREACHABLE: Readonly<Record<number, string>> = {
  0: 'network unreachable',
  1: 'host unreachable',
  2: 'protocol unreachable',
  3: 'port unreachable',
  4: 'fragmentation needed',
  9: 'network prohibited',
  10: 'host prohibited',
  13: 'prohibited by filter',
};

const ICMPV6: Readonly<Record<number, string>> = {
  1: 'unreachable',
  2: 'packet too big',
  3: 'hop limit exceeded',
  4: 'parameter problem',
  128: 'echo request',
  129: 'echo reply',
  130: 'multicast listener query',
  131: 'multicast listener report',
  132: 'multicast listener done',
  133: 'router solicitation',
  134: 'router advertisement',
  135: 'neighbour solicitation',
  136: 'neighbour advertisement',
  137: 'redirect',
  143: 'multicast listener report',
};

const UNREACHABLE6: Readonly<Record<number, string>> = {
  0: 'no route',
  1: 'prohibited',
  3: 'address unreachable',
  4: 'port unreachable',
};

const numbered = (type: number, code: number): string => `type ${type} code ${code}`;

export const icmpMeaning = (type: number, code: number): string =>
  (type === 3 ? UNREACHABLE[code] : undefined) ?? ICMP[type] ?? numbered(type, code);

export const icmpv6Meaning = (type: number, code: number): string =>
  (type === 1 ? UNREACHABLE6[code] : undefined) ?? ICMPV6[type] ?? numbered(type, code);
