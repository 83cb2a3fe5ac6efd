/** The weftd that is raced: this build's. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export const DAEMON = fileURLToPath(new URL('../../src/main.js', import.meta.url));

/** Throws, with what to do, where there is no such file. */
export function assertBuilt(): void {
  if (!existsSync(DAEMON)) throw new Error('weftd is not built (dist/src/main.js is missing): run npm run build');
}
