/** Which UDP port the kernel chose for a socket of ours, from /proc: nobody has to remember it. */
import { readlinkSync } from 'node:fs';
import { readProcNet } from './proc-net.js';

/** By descriptor, in their order; 0: it is no UDP socket. */
export function udpPorts(fds: readonly number[]): number[] {
  const byInode = new Map<string, number>();
  for (const file of ['udp', 'udp6']) {
    for (const line of readProcNet(file).split('\n').slice(1)) {
      // Columns of proc_pid_net(5): the local address and port in hexadecimal, and, tenth, the inode.
      const columns = line.trim().split(/\s+/);
      const port = /:([0-9A-F]{4})$/.exec(columns[1] ?? '')?.[1];
      if (port !== undefined && columns[9] !== undefined) byInode.set(columns[9], Number.parseInt(port, 16));
    }
  }
  return fds.map((fd) => byInode.get(inodeOf(fd)) ?? 0);
}

/** What `socket:[4711]` says. */
function inodeOf(fd: number): string {
  try {
    return /\d+/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[0] ?? '';
  } catch {
    return '';
  }
}
