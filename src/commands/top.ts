/** `weft top`: what moves now, by peer, and what is dropped now, by reason. */
import { setTimeout as sleep } from 'node:timers/promises';
import { UsageError } from '../option.js';
import type { Invocation, WeftCommand } from './command.js';
import type { DaemonClient } from './daemon/client.js';
import { type Look, type Rates, ratesOf } from './rates.js';
import { bitsPerSecond, percent, perSecond, shortTime } from './text/format.js';
import { numberOf } from './text/number.js';
import type { Colours } from './text/output.js';
import { Screen } from './text/screen.js';
import { type Column, table } from './text/table.js';

interface Options {
  readonly interval: string;
  readonly count?: string;
}

/** Seconds. */
const INTERVAL = { least: 0.1, most: 3600 };
/** Rows of peers where there is no screen that ends. */
const MOST_PEERS = 20;
/** Reasons of drops; more at once are rare. */
const MOST_DROPS = 6;

export const top: WeftCommand<Options> = {
  name: 'top',
  summary: 'live: traffic by peer, drops by reason, and the time of workers',
  description:
    'Ends with q or Ctrl-C. With -n, or where standard output is no terminal, one block after the other; with -j, one line of JSON each.',
  examples: `
  # weft top
  # weft top -i 5                        every five seconds
  # weft top -n 1                        one second of it, once
  # weft top -j -n 10 | jq -c '.peers[0]'
`,
  define: (command) => {
    command
      .option('-i, --interval <seconds>', 'time between two looks', '1')
      .option('-n, --count <number>', 'end after so many');
  },
  run,
};

async function run({ options, json, out, signal, daemon }: Invocation<Options>): Promise<void> {
  const interval = numberOf('--interval', options.interval, INTERVAL.least, INTERVAL.most);
  const most = options.count === undefined ? Number.POSITIVE_INFINITY : numberOf('--count', options.count, 1, 1e9);
  if (!Number.isInteger(most) && Number.isFinite(most))
    throw new UsageError(`--count ${options.count}: expected a whole number`);
  const client = await daemon();
  let before = await look(client);
  // So many looks are to be read afterwards: they stay on the terminal.
  const screen =
    out.terminal && !json && options.count === undefined
      ? new Screen(process.stdin, process.stdout, signal)
      : undefined;
  const end = screen?.left ?? signal;
  try {
    screen?.show(`the first look takes ${interval} s\n`);
    for (let shown = 0; shown < most; shown++) {
      await sleep(interval * 1000, undefined, { signal: end }).catch(() => {});
      if (end.aborted) break;
      const after = await look(client);
      const rates = ratesOf(before, after);
      before = after;
      if (json) out.json(rates);
      else if (screen) screen.show(topText(rates, out.colours, screen.rows));
      else out.print(`${shown > 0 ? '\n' : ''}${topText(rates, out.colours)}`);
      await out.flushed();
    }
  } finally {
    screen?.close();
  }
}

const look = async (client: DaemonClient): Promise<Look> => {
  const [counters, drops] = await Promise.all([client.get('counters'), client.get('drops')]);
  return { counters, drops };
};

const PEERS: readonly Column[] = [
  { title: 'PEER' },
  { title: 'OUT', align: 'right' },
  { title: '', align: 'right' },
  { title: 'IN', align: 'right' },
  { title: '', align: 'right' },
];
const DROPS: readonly Column[] = [
  { title: 'DROPPED', align: 'right' },
  { title: 'DIRECTION' },
  { title: 'REASON' },
  { title: 'MEANING' },
];

/** As many peers as fit into `rows` lines. */
export function topText(rates: Rates, colours: Colours, rows = Number.POSITIVE_INFINITY): string {
  const { packetsOut, bytesOut, packetsIn, bytesIn, dropped, drops, cores } = rates;
  const head = [
    `${colours.bold('out')} ${perSecond(packetsOut)}, ${bitsPerSecond(bytesOut * 8)}   ${colours.bold('in')} ${perSecond(packetsIn)}, ${bitsPerSecond(bytesIn * 8)}   ${dropped > 0 ? colours.red(`dropped ${perSecond(dropped)}`) : 'nothing dropped'}   CPU ${percent(cores)}`,
    ...rates.workers.map(workerText),
    '',
  ];
  const dropRows = drops
    .slice(0, MOST_DROPS)
    .map(({ packets, direction, reason, meaning }) => [perSecond(packets), direction, reason, meaning]);
  const dropText = dropRows.length > 0 ? `${table(DROPS, dropRows, colours)}\n` : '';
  const taken = head.length + (dropRows.length > 0 ? dropRows.length + 2 : 0) + 2; // titles, and what is left out
  const most = Number.isFinite(rows) ? Math.max(1, rows - taken) : MOST_PEERS;
  const peers = rates.peers
    .slice(0, most)
    .map((peer) => [
      peer.name,
      perSecond(peer.packetsOut),
      bitsPerSecond(peer.bytesOut * 8),
      perSecond(peer.packetsIn),
      bitsPerSecond(peer.bytesIn * 8),
    ]);
  const more = rates.peers.length - peers.length;
  return `${head.join('\n')}\n${dropText}${table(PEERS, peers, colours)}${more > 0 ? `… and ${more} more\n` : ''}`;
}

const workerText = ({ running, busy, spinning, longestGapSeconds }: Rates['workers'][number], i: number): string =>
  running
    ? `worker ${i}: ${percent(busy)} busy, ${percent(spinning)} looking, a packet waited ${shortTime(longestGapSeconds)} at most`
    : `worker ${i}: NOT RUNNING`;
