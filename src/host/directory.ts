/** Directories that are made when they are needed. */
import { existsSync, mkdirSync } from 'node:fs';
import { dirname } from 'node:path';

/**
 * Makes a directory and what it lies in, unless it is there; `mode` is for what is made. Throws what mkdir(2) says. Node's own
 * `recursive` never ends where a directory exists and none can be made in it with ENOENT, as in /proc.
 */
export function ensureDirectory(path: string, mode = 0o755): void {
  if (!existsSync(dirname(path))) ensureDirectory(dirname(path), mode);
  try {
    mkdirSync(path, mode);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST' && existsSync(`${path}/.`))) throw error;
  }
}
