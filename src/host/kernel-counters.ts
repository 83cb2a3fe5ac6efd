/**
 * What the kernel has dropped of IP packets in this network namespace, for reasons that a tunnel shows as silence: a wrong checksum,
 * a source that the reverse path filter does not believe, a destination that the host does not forward to. From /proc/self/net,
 * which always tells of our own namespace; snmp_counter.rst of the kernel's documentation says what each is.
 */
import { readFileSync } from 'node:fs';
import { readProcNet } from './proc-net.js';

export interface KernelCounter {
  /** Stable, for programs. */
  readonly name: string;
  readonly direction: 'inbound' | 'outbound';
  readonly meaning: string;
  /** `file section.field`, added up. */
  readonly from: readonly string[];
}

export const KERNEL_COUNTERS: readonly KernelCounter[] = [
  {
    name: 'udp_checksum_errors',
    direction: 'inbound',
    meaning: 'UDP datagrams with a wrong checksum: of the underlay, or of what came out of the tunnel for this host',
    from: ['snmp Udp.InCsumErrors', 'snmp6 Udp6InCsumErrors'],
  },
  {
    name: 'tcp_checksum_errors',
    direction: 'inbound',
    meaning: 'TCP segments for this host with a wrong checksum: checksum offload of some interface is broken',
    from: ['snmp Tcp.InCsumErrors'],
  },
  {
    name: 'icmp_checksum_errors',
    direction: 'inbound',
    meaning: 'ICMP messages for this host with a wrong checksum',
    from: ['snmp Icmp.InCsumErrors', 'snmp6 Icmp6InCsumErrors'],
  },
  {
    name: 'udp_no_port',
    direction: 'inbound',
    meaning: 'UDP datagrams to a port of this host that nobody has: a peer may send to another port than ours',
    from: ['snmp Udp.NoPorts', 'snmp6 Udp6NoPorts'],
  },
  {
    name: 'reverse_path_filter',
    direction: 'inbound',
    meaning: 'IPv4 packets whose source is routed to another interface (net.ipv4.conf.*.rp_filter)',
    from: ['netstat TcpExt.IPReversePathFilter'],
  },
  {
    name: 'not_forwarded',
    direction: 'inbound',
    meaning:
      'IP packets for an address that is not of this host, which does not forward (ip_forward), or that make no sense',
    from: ['snmp Ip.InAddrErrors', 'snmp6 Ip6InAddrErrors'],
  },
  {
    name: 'no_route_in',
    direction: 'inbound',
    meaning: 'IP packets that came in and that the host has no route for',
    from: ['netstat IpExt.InNoRoutes', 'snmp6 Ip6InNoRoutes'],
  },
  {
    name: 'no_route_out',
    direction: 'outbound',
    meaning: 'IP packets of this host that it has no route for',
    from: ['snmp Ip.OutNoRoutes', 'snmp6 Ip6OutNoRoutes'],
  },
  {
    name: 'fragmentation_failed',
    direction: 'outbound',
    meaning: "IP packets larger than the next interface's MTU and not to be fragmented",
    from: ['snmp Ip.FragFails', 'snmp6 Ip6FragFails'],
  },
];

/** By name, since the namespace was made; 0 for what this kernel does not count. Takes some tens of microseconds. */
export function readKernelCounters(): Map<string, number> {
  const values = new Map<string, number>();
  for (const file of ['snmp', 'netstat']) {
    const lines = readProcNet(file).split('\n');
    // Two lines a section: names, then values.
    for (let i = 0; i + 1 < lines.length; i += 2) {
      const [section, ...names] = lines[i].split(' ');
      const numbers = lines[i + 1].split(' ').slice(1);
      for (const [at, name] of names.entries())
        values.set(`${file} ${section.slice(0, -1)}.${name}`, Number(numbers[at]));
    }
  }
  for (const line of readProcNet('snmp6').split('\n')) {
    const [name, value] = line.trim().split(/\s+/);
    if (value !== undefined) values.set(`snmp6 ${name}`, Number(value));
  }
  return new Map(
    KERNEL_COUNTERS.map(({ name, from }) => [name, from.reduce((sum, field) => sum + (values.get(field) ?? 0), 0)]),
  );
}

/** Whether the kernel forwards IP packets from interface to interface; undefined: it does not say. */
export function kernelForwards(family: 4 | 6): boolean | undefined {
  try {
    const name = family === 4 ? 'ipv4/ip_forward' : 'ipv6/conf/all/forwarding';
    return readFileSync(`/proc/sys/net/${name}`, 'latin1').trim() !== '0';
  } catch {
    return undefined;
  }
}
