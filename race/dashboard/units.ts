/** Values in the units that our dashboard uses, as Grafana writes them. */

/** Prefixes of thousands, for what grows without bound. */
function scaled(value: number, step: number, prefixes: readonly string[], decimals: number | undefined): string {
  let power = 0;
  let rest = value;
  // 999.95 would be written as 1000.
  while (Math.abs(rest) >= step * 0.99995 && power < prefixes.length - 1) {
    rest /= step;
    power++;
  }
  return `${digits(rest, decimals)}${prefixes[power]}`;
}

/** Three significant digits, unless the panel says how many decimals. */
function digits(value: number, decimals?: number): string {
  if (decimals !== undefined) return value.toFixed(decimals);
  const size = Math.abs(value);
  if (size === 0) return '0';
  return String(Number(size >= 100 ? value.toFixed(0) : size >= 1 ? value.toPrecision(3) : value.toPrecision(2)));
}

const THOUSANDS = ['', ' k', ' M', ' G', ' T'];
const BINARY = [' B', ' KiB', ' MiB', ' GiB', ' TiB'];

function seconds(value: number, decimals: number | undefined): string {
  const size = Math.abs(value);
  if (size === 0) return '0 s';
  if (size < 1e-3) return `${digits(value * 1e6, decimals)} µs`;
  if (size < 1) return `${digits(value * 1e3, decimals)} ms`;
  if (size < 120) return `${digits(value, decimals)} s`;
  if (size < 7200) return `${digits(value / 60, decimals)} min`;
  return size < 48 * 3600 ? `${digits(value / 3600, decimals)} h` : `${digits(value / 86_400, decimals)} d`;
}

const UNITS: Readonly<Record<string, (value: number, decimals: number | undefined) => string>> = {
  none: (value, decimals) => digits(value, decimals),
  short: (value, decimals) =>
    Math.abs(value) < 1000 ? digits(value, decimals) : scaled(value, 1000, THOUSANDS, undefined),
  s: seconds,
  percentunit: (value, decimals) => `${digits(value * 100, decimals)} %`,
  bps: (value, decimals) => `${scaled(value, 1000, THOUSANDS.with(0, ' '), decimals)}b/s`,
  pps: (value, decimals) => `${scaled(value, 1000, THOUSANDS, decimals)} p/s`,
  cps: (value, decimals) => `${scaled(value, 1000, THOUSANDS, decimals)} c/s`,
  bytes: (value, decimals) => scaled(value, 1024, BINARY, decimals),
  bool: (value) => (value ? 'True' : 'False'),
  bool_yes_no: (value) => (value ? 'Yes' : 'No'),
  bool_on_off: (value) => (value ? 'On' : 'Off'),
  dateTimeAsIso: (value) => `${new Date(value).toISOString().slice(0, 16).replace('T', ' ')} UTC`,
};

/** The units that a panel of ours may have. */
export const KNOWN_UNITS: readonly string[] = Object.keys(UNITS);

/** `value` in a unit of Grafana's; throws for one that is not among KNOWN_UNITS. */
export function withUnit(value: number, unit: string, decimals?: number): string {
  const write = UNITS[unit];
  if (!write) throw new Error(`no way to write a value in the unit ${unit}: add it to race/dashboard/units.ts`);
  if (Number.isNaN(value)) return '–';
  return Number.isFinite(value) ? write(value, decimals) : value > 0 ? '+Inf' : '-Inf';
}

// --- axes ---

export interface Axis {
  readonly min: number;
  readonly max: number;
  readonly interval: number;
}

/** What steps of an axis are made of: times a power of ten, or of 1024. */
const NICE = [1, 2, 5, 10];
const NICE_BINARY = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
/** Seconds, from a minute on. */
const NICE_TIMES = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800, 604_800];

/** The smallest step for a person's eye that is not below `least`. */
function stepFrom(least: number, unit: string): number {
  if (unit === 's' && least > 30) return NICE_TIMES.find((step) => step >= least) ?? least;
  const base = unit === 'bytes' ? 1024 : 10;
  const power = base ** Math.floor(Math.log(least) / Math.log(base));
  return power * ((unit === 'bytes' ? NICE_BINARY : NICE).find((step) => step * power >= least * 0.999) ?? base);
}

/** An axis of about `lines` steps that has `low` and `high` on it; `whole`: no fractions. */
export function axisFor(low: number, high: number, lines: number, unit: string, whole = false): Axis {
  // Where all is 0, an axis that says so.
  const top = high > low ? high : low + (unit === 'percentunit' ? 0.01 : 1);
  const least = (top - low) / lines;
  const interval = stepFrom(whole ? Math.max(1, least) : least, unit);
  const up = (value: number): number => Math.ceil(Number((value / interval).toFixed(9)));
  const min = -up(-low) * interval;
  return { min, max: Math.max(up(top) * interval, min + interval), interval };
}

const TIMES: readonly (readonly [seconds: number, name: string])[] = [
  [86_400, 'd'],
  [3600, 'h'],
  [60, 'min'],
  [1, 's'],
  [1e-3, 'ms'],
  [1e-6, 'µs'],
];

/** A value on an axis: all in the unit that fits its step. */
export function onAxis(value: number, { max, interval }: Axis, unit: string): string {
  if (unit !== 's') return withUnit(value, unit);
  // Fractions of a second are easy to read, those of an hour are not.
  const [size, name] = TIMES.find(([unitSize]) => (unitSize > 1 ? interval : max) >= unitSize) ?? [1e-9, 'ns'];
  return `${Number((value / size).toPrecision(6))} ${name}`;
}
