/** Which network namespace we are in. */
import { readlinkSync } from 'node:fs';

/** Its inode, as text: what /proc/self/ns/net says between its brackets. */
export const networkNamespace = (): string => /\d+/.exec(readlinkSync('/proc/self/ns/net'))?.[0] ?? '';
