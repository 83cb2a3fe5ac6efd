/** `weft --help`. */
import { COMMANDS } from './list.js';

const EXAMPLES = `
Why does it not arrive? In this order:
  # weft status                          is the daemon well, and up to date?
  # weft explain 10.5.2.7                what would become of a packet to there?
  # weft ping b                          is the peer reached, by packets of which size?
  # weft drops                           what is dropped, and why?
  # weft capture --host 10.5.2.7         the packets themselves, with what became of each

weft asks the weftd of its own network namespace, as root; for another: --socket PATH, WEFT_SOCKET, or
  # ip netns exec a weft status
Completion, here for bash:
  # weft completion bash > /etc/bash_completion.d/weft
Exit codes: 0 done, 1 failed, 2 wrong usage. The daemon is weftd (weftd --help).
`;

export function overview(): string {
  const width = Math.max(...COMMANDS.map(({ name }) => name.length));
  const groups = [...new Set(COMMANDS.map(({ group }) => group))].map((group) => {
    const lines = COMMANDS.filter((one) => one.group === group).map(
      ({ name, summary }) => `  ${name.padEnd(width)}  ${summary}\n`,
    );
    return `${group}:\n${lines.join('')}`;
  });
  return `Usage: weft <command> [options]      weft <command> --help tells more, by example
       weft --version

${groups.join('\n')}
With every command that looks or asks:
  -j, --json       print JSON: one value, or one a line
  --socket <path>  the daemon's control socket
${EXAMPLES}`;
}
