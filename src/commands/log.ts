/** `weft log`: what the daemon writes, changed while it runs. */
import { LOG_LEVELS } from '../control/event-log.js';
import { UsageError } from '../option.js';
import type { WeftCommand } from './command.js';

export const log: WeftCommand = {
  name: 'log',
  summary: 'the level of the log, or another one from now on',
  description:
    'It holds until the daemon ends; --log-level of weftd is where it begins. The log itself is on its standard output.',
  examples: `
  # weft log                             which it is
  # weft log debug                       more of it, from now on
  # journalctl -fu weftd                 where it goes, under systemd
`,
  completes: LOG_LEVELS,
  define: (command) => {
    command.argument('[level]', LOG_LEVELS.join(', '));
  },
  run: async ({ args: [level], json, out, daemon }) => {
    const client = await daemon();
    const before = await client.get('log');
    if (level !== undefined && !before.levels.includes(level)) {
      throw new UsageError(`log level ${JSON.stringify(level)}: expected one of ${before.levels.join(', ')}`);
    }
    const after = level === undefined ? before : await client.put('log', { level });
    if (json) out.json(after);
    else if (level === undefined) out.print(`log level ${after.level} (${after.format})\n`);
    else out.print(`log level ${after.level} (was ${before.level})\n`);
  },
};
