/** Values of options, checked for commander, which puts its own words before ours. */
import { InvalidArgumentError } from 'commander';

/** A whole number from `least` on. */
export function wholeNumber(text: string, least: number, most: number): number {
  const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new InvalidArgumentError(`expected a whole number from ${least} to ${most}`);
}

const MOST_COUNT = 1e15 - 1;

export const countOf = (text: string): number => wholeNumber(text, 1, MOST_COUNT);

/** One more UDP port. */
export const portOf = (text: string, before: readonly number[] = []): readonly number[] => [
  ...before,
  wholeNumber(text, 1, 65535),
];

/** Bytes: `500000`, `64K`, `10M`, `2G`, in powers of 1024. */
export function bytesOf(text: string): number {
  const [, digits, unit = ''] = /^(\d{1,12})([KMG]?)$/i.exec(text) ?? [];
  const value = Number(digits) * 1024 ** ['', 'K', 'M', 'G'].indexOf(unit.toUpperCase());
  if (digits !== undefined && value > 0 && value <= MOST_COUNT) return value;
  throw new InvalidArgumentError('expected bytes, such as 500000, 64K, 10M or 2G');
}

/** Collects an option that may be said again. */
export const collect = (text: string, before: readonly string[] = []): readonly string[] => [...before, text];
