/** `weft drops`: what became of packets that did not arrive, by reason. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { DropEntry, DropsAnswer } from '../inspect/protocol.js';
import type { WeftCommand } from './command.js';
import { keyOf } from './rates.js';
import { count, plural } from './text/format.js';
import { numberOf } from './text/number.js';
import type { Colours } from './text/output.js';
import { type Column, table } from './text/table.js';

interface Options {
  readonly all?: boolean;
  readonly seconds?: string;
}

/** Seconds. */
const LONGEST = 86_400;

export const drops: WeftCommand<Options> = {
  name: 'drops',
  summary: 'packets that were dropped, here or by the kernel, by reason',
  description:
    'Outbound is from this host to its peers, inbound from them. BY says who dropped: weftd (engine), the kernel at our devices and sockets (kernel), or the kernel for the whole network namespace (host). Counted since the daemon started; --seconds tells what is dropped now.',
  examples: `
  # weft drops
  # weft drops --seconds 5               only what is dropped in the next five seconds
  # weft drops --all                     every reason, also those that never came
  # weft capture --verdict no_route      the packets themselves
  # weft drops -j | jq '.drops[] | select(.packets > 0) | {reason, packets}'
`,
  define: (command) => {
    command
      .option('-a, --all', 'reasons too that never came')
      .option('-s, --seconds <number>', 'only what is counted in this time');
  },
  run: async ({ options, json, out, daemon }) => {
    const { all = false } = options;
    const seconds = options.seconds === undefined ? 0 : numberOf('--seconds', options.seconds, 0.1, LONGEST);
    const client = await daemon();
    const read = (): Promise<DropsAnswer> => client.get('drops', { all: all ? 1 : undefined });
    let answer = await read();
    if (seconds > 0) {
      await sleep(seconds * 1000);
      answer = since(answer, await read(), all);
    }
    if (json) out.json(answer);
    else out.print(dropsText(answer, out.colours));
  },
};

/** What was counted between two answers. */
export function since(before: DropsAnswer, after: DropsAnswer, all: boolean): DropsAnswer {
  const { outbound, inbound } = after.entered;
  return {
    drops: growth(before.drops, after.drops, all),
    notes: growth(before.notes, after.notes, all),
    entered: { outbound: outbound - before.entered.outbound, inbound: inbound - before.entered.inbound },
  };
}

function growth(before: readonly DropEntry[], after: readonly DropEntry[], all: boolean): DropEntry[] {
  const earlier = new Map(before.map((entry) => [keyOf(entry), entry.packets]));
  return after
    .map((entry) => ({ ...entry, packets: Math.max(0, entry.packets - (earlier.get(keyOf(entry)) ?? 0)) }))
    .filter(({ packets }) => all || packets > 0);
}

const COLUMNS: readonly Column[] = [
  { title: 'DIRECTION' },
  { title: 'BY' },
  { title: 'REASON' },
  { title: 'PACKETS', align: 'right' },
  { title: 'MEANING' },
];

function dropsText({ drops, notes, entered }: DropsAnswer, colours: Colours): string {
  const sums = `${plural(entered.outbound, 'packet')} out, ${count(entered.inbound)} in`;
  const dropped = drops.length > 0 ? table(COLUMNS, drops.map(row), colours) : `nothing was dropped (${sums})\n`;
  const noted =
    notes.length > 0 ? `\nNo drops, but they may tell why:\n${table(COLUMNS, notes.map(row), colours)}` : '';
  return `${dropped}${noted}${drops.length > 0 ? `\nOf ${sums}.\n` : ''}`;
}

const row = ({ direction, by, reason, packets, meaning, device }: DropEntry): (string | [string, 'red'])[] => [
  direction,
  by,
  reason,
  packets > 0 ? [count(packets), 'red'] : count(packets),
  device === null ? meaning : `${meaning} (${device})`,
];
