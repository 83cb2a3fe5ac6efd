/**
 * What the kernel itself dropped at our devices: packets for us that found the device's queue full (`outbound`, its
 * tx_dropped), and ours that the host did not take (`inbound`, its rx_dropped). A device that is made anew begins at 0.
 *
 * From /proc, which always tells of our own network namespace; /sys tells of the one it was mounted in. It counts rx_missed_errors with
 * rx_dropped, of which a TUN has none.
 */
import { readFileSync } from 'node:fs';

export interface DeviceDrops {
  readonly outbound: number;
  readonly inbound: number;
}

/** Columns behind the name in proc_pid_net(5), `dev`. */
const RX_DROP = 3;
const TX_DROP = 11;

/** By name, of those that are there now. It takes some ten microseconds, and nothing waits for a disk. */
export function deviceDrops(names: readonly string[]): ReadonlyMap<string, DeviceDrops> {
  const found = new Map<string, DeviceDrops>();
  for (const line of readFileSync('/proc/self/net/dev', 'latin1').split('\n')) {
    const colon = line.indexOf(':');
    const name = line.slice(0, Math.max(colon, 0)).trim();
    if (!names.includes(name)) continue;
    const columns = line
      .slice(colon + 1)
      .trim()
      .split(/\s+/);
    found.set(name, { outbound: Number(columns[TX_DROP]), inbound: Number(columns[RX_DROP]) });
  }
  return found;
}
