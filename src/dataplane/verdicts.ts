/**
 * What became of a packet, as a number: the counter that it was dropped or consumed by, or one of those behind the counters.
 *
 * An entering packet's verdict is what the walk decided about it; a leaving one's what the kernel said. A counter of the
 * leaving side (the kernel refused) is therefore no verdict of a packet that entered; nor is `merged`, which goes on.
 */
import { COUNTERS } from '../io/memory.js';
import {
  ANSWER_REFUSED,
  COUNTER_INFOS,
  type Direction,
  ICMP_REFUSED,
  IN_MERGED,
  IN_REFUSED,
  OUT_PATH_MTU,
  OUT_REFUSED,
} from './counters.js';

/** The kernel took it. */
export const SENT = COUNTERS;
/** It went on; where to, the record's peer says. */
export const FORWARDED = COUNTERS + 1;
/** It went on to all peers of its network. */
export const FLOODED = COUNTERS + 2;
/** Verdicts are below. */
export const VERDICTS = 256;

export interface VerdictInfo {
  readonly verdict: number;
  /** `sent`, `forwarded`, `flooded`, or the counter's name. */
  readonly name: string;
  readonly kind: 'sent' | 'forwarded' | 'consumed' | 'dropped';
  /** Of the counter. */
  readonly direction?: Direction;
  /** Of the counter: what it means. */
  readonly help?: string;
}

const LEAVING = new Set([OUT_REFUSED, OUT_PATH_MTU, IN_REFUSED, ICMP_REFUSED, ANSWER_REFUSED]);

const counted = COUNTER_INFOS.flatMap(({ name, direction, role, help }, verdict): VerdictInfo[] =>
  (role === 'dropped' || role === 'consumed') && verdict !== IN_MERGED
    ? [{ verdict, name, kind: role, direction, help }]
    : [],
);

export const VERDICT_INFOS: readonly VerdictInfo[] = [
  ...counted,
  { verdict: SENT, name: 'sent', kind: 'sent' },
  { verdict: FORWARDED, name: 'forwarded', kind: 'forwarded' },
  { verdict: FLOODED, name: 'flooded', kind: 'forwarded' },
];

/** The counters that decide about entering packets of a direction. */
export const enteringVerdicts = (direction: Direction): Int32Array =>
  Int32Array.from(
    counted.filter((info) => info.direction === direction && !LEAVING.has(info.verdict)),
    ({ verdict }) => verdict,
  );

/**
 * The verdicts that a word names: `drop` all of that kind, `forwarded` flooded ones too, or one by its name, in both directions.
 * Undefined: it names none.
 */
export function verdictsOf(word: string): number[] | undefined {
  const found = VERDICT_INFOS.filter(
    ({ name, kind }) => name === word || kind === word || (kind === 'dropped' && word === 'drop'),
  );
  return found.length > 0 ? found.map(({ verdict }) => verdict) : undefined;
}
