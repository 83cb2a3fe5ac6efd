/** `weft completion`: a script for the shell. */
import { UsageError } from '../option.js';
import type { WeftCommand } from './command.js';
import { SHELLS } from './shells.js';

const NAMES = Object.keys(SHELLS);

export const completion: WeftCommand = {
  name: 'completion',
  summary: 'a script with which the shell completes commands, options and names of peers',
  examples: `
  # weft completion bash > /etc/bash_completion.d/weft
  # weft completion zsh > /usr/local/share/zsh/site-functions/_weft
  # weft completion fish > /etc/fish/completions/weft.fish

For this shell alone:
  # source <(weft completion bash)
`,
  completes: NAMES,
  local: true,
  noJson: true,
  define: (command) => command.argument('<shell>', NAMES.join(', ')),
  run: async ({ args: [shell], out }) => {
    const script = Object.hasOwn(SHELLS, shell) ? SHELLS[shell] : undefined;
    if (script === undefined)
      throw new UsageError(`shell ${JSON.stringify(shell)}: expected one of ${NAMES.join(', ')}`);
    out.print(script);
  },
};
