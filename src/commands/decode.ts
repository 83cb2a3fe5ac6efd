/** `weft decode FILE`: what is in a capture file, one line a packet. */
import type { Command } from 'commander';
import type { WeftCommand } from './command.js';
import { countOf, portOf } from './text/arguments.js';

interface Options {
  readonly count?: number;
  readonly vxlanPort?: readonly number[];
  readonly ipPort?: readonly number[];
}

export const decode: WeftCommand<Options> = {
  name: 'decode',
  summary: 'a capture as readable lines',
  description:
    'Reads pcap and pcapng, of weft capture and of other programs. Looks into VXLAN (UDP ports 4789 and 8472) and into IP in UDP (8285); a file of weft capture says its own port.',
  local: true,
  completes: 'files',
  examples: `
Examples:
  # weft capture -w trouble.pcapng --seconds 10
  # weft decode trouble.pcapng
  09:14:03.120417  weft42    out  02:07:00:00:01:01 > 02:07:00:00:02:01 | 10.7.0.11 > 10.7.0.21 ICMP echo request id 7 seq 1  # outbound: forwarded to b
  # weft decode trouble.pcapng -j | jq 'select(.verdict.kind == "dropped")'
  # tcpdump -i eth0 -w - udp port 4790 | weft decode - --vxlan-port 4790
`,
  define: (command: Command) => {
    command
      .argument('<file>', 'a capture file; - is standard input')
      .option('-c, --count <packets>', 'end after so many', countOf)
      .option('--vxlan-port <port>', 'look for VXLAN behind this UDP port too (may be said again)', portOf)
      .option('--ip-port <port>', 'look for IP packets behind this UDP port too (may be said again)', portOf);
  },
  run: async ({ args, options, json, out }) => {
    const { decodeFile } = await import('./packets/decode-file.js');
    const { count = 0, vxlanPort = [], ipPort = [] } = options;
    await decodeFile(args[0], { json, count, vxlanPorts: vxlanPort, ipPorts: ipPort }, out);
  },
};
