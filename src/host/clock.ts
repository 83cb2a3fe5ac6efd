/**
 * Time that nobody can set: CLOCK_MONOTONIC (clock_gettime(2)), which all processes of one boot and one time namespace share,
 * and the boot's identity, without which a reading means nothing to another process.
 */
import { readFileSync, readlinkSync } from 'node:fs';

export interface Clock {
  /** Milliseconds of CLOCK_MONOTONIC; does not go on while the machine is suspended. */
  monotonic(): number;
  /** Equal exactly while the kernel has not been started again. */
  readonly boot: string;
}

export const systemClock = (): Clock => ({
  monotonic: () => Number(process.hrtime.bigint() / 1_000_000n),
  boot: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
});

/**
 * What processes must have in common to share an LMDB environment with deadlines in it: the boot, the PID namespace (LMDB knows
 * its readers by their pids, and two processes of one pid would end each other's) and the time namespace (CLOCK_MONOTONIC is another in another).
 */
export function processWorld(boot: string): string {
  return [boot, ...['pid', 'time'].map((kind) => namespaceOf(kind))].join(' ');
}

function namespaceOf(kind: string): string {
  try {
    return readlinkSync(`/proc/self/ns/${kind}`);
  } catch {
    return `${kind}:[none]`; // a kernel without that kind has one of it
  }
}
