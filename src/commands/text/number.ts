/** Numbers on the command line. */
import { UsageError } from '../../option.js';

/** Throws a UsageError for what is no number from `least` to `most`. */
export function numberOf(flag: string, text: string, least: number, most: number): number {
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new UsageError(`${flag} ${JSON.stringify(text)}: expected a number from ${least} to ${most}`);
}
