/** `weft capture`: packets on both sides of the engine, with what became of them. */
import type { Command } from 'commander';
import { Option } from 'commander';
import { MAX_SNAPLEN } from '../io/capture-record.js';
import { UsageError } from '../option.js';
import type { WeftCommand } from './command.js';
import { bytesOf, collect, countOf, wholeNumber } from './text/arguments.js';

interface Options {
  readonly write?: string;
  readonly text?: boolean;
  readonly peer?: readonly string[];
  readonly host?: readonly string[];
  readonly verdict?: readonly string[];
  readonly side?: string;
  readonly direction?: string;
  readonly snaplen?: number;
  readonly count?: number;
  readonly seconds?: number;
  readonly limit?: number;
}

const MOST_SECONDS = 1e6;

export const capture: WeftCommand<Options> = {
  name: 'capture',
  summary: 'packets on both sides of the engine, with what became of them',
  description: `Each packet is seen twice: on the device's side, as the host gives and gets it, and on the underlay's side, as a datagram. Its verdict is a comment: "outbound: forwarded to b", "inbound: dropped, unknown_peer (…)". Writes pcapng, which tcpdump and Wireshark read, to a file or a pipe; on a terminal, lines. Packets for which there was no room are counted as lost; forwarding never waits. One capture can run at a time.`,
  examples: `
Examples:
  # weft capture                                           lines, on a terminal
  # weft capture --verdict drop                            only what is dropped, and why
  # weft capture --peer b --host 10.5.2.0/24 -c 20
  # weft capture -w trouble.pcapng --seconds 10            then: weft decode trouble.pcapng
  # weft capture -w - --side device | tcpdump -n -r -
  # ssh host weft capture -w - | wireshark -k -i -
`,
  optionValues: {
    peer: 'peers',
    write: 'files',
    verdict: ['drop', 'sent', 'forwarded', 'flooded'],
    side: ['device', 'underlay'],
    direction: ['in', 'out'],
  },
  define: (command: Command) => {
    command
      .option('-w, --write <file>', 'pcapng to this file or named pipe; - is standard output')
      .option('--text', 'lines, though standard output is no terminal')
      .option('--peer <name>', 'only from or to this peer: its name or underlay address (may be said again)', collect)
      .option(
        '--host <address>',
        'only with this inner address, prefix or MAC, or outer address (may be said again)',
        collect,
      )
      .option(
        '--verdict <words>',
        'only drop, sent, forwarded, or a reason of weft drops; with commas, several',
        collect,
      )
      .addOption(new Option('--side <side>', 'only on this side of the engine').choices(['device', 'underlay']))
      .addOption(
        new Option('--direction <direction>', 'only towards the peers (out), or from them').choices(['in', 'out']),
      )
      .option('--snaplen <bytes>', 'keep only the first bytes of each packet', (text) =>
        wholeNumber(text, 1, MAX_SNAPLEN),
      )
      .option('-c, --count <packets>', 'end after so many', countOf)
      .option('--seconds <seconds>', 'end after this time', (text) => wholeNumber(text, 1, MOST_SECONDS))
      .option('--limit <bytes>', 'end before the file is larger: 500000, 64K, 10M, 2G', bytesOf);
  },
  run: async ({ options, json, out, daemon }) => {
    const write = destination(options, json, out.terminal);
    if (options.limit !== undefined && write === undefined) throw new UsageError('--limit is for a file: say -w FILE');
    const { capturePackets } = await import('./packets/capture-stream.js');
    const { peer, host, verdict, side, direction, snaplen, count, seconds, limit } = options;
    const query = { peer, host, verdict, side, direction, snaplen, count, seconds };
    await capturePackets(await daemon(), { query, write, limit, json }, out);
  },
};

/** Where pcapng goes; undefined: lines are wanted. */
function destination({ write, text = false }: Options, json: boolean, terminal: boolean): string | undefined {
  if (write !== undefined && (text || json)) {
    throw new UsageError(`-w is for pcapng, ${json ? '-j' : '--text'} for standard output: say one of them`);
  }
  if (write === '') throw new UsageError('-w "": expected a file, or - for standard output');
  if (write === '-' && terminal) throw new UsageError('-w -: a terminal shows no pcapng: say a file, or leave it out');
  return write ?? (text || json || terminal ? undefined : '-');
}
