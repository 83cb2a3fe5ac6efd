/** Files of /proc that tell of our own network namespace, whatever /proc was mounted in. */
import { readFileSync } from 'node:fs';

/** Empty if there is none of that name: a kernel without IPv6 lacks some. */
export function readProcNet(file: string): string {
  try {
    return readFileSync(`/proc/self/net/${file}`, 'latin1');
  } catch {
    return '';
  }
}
