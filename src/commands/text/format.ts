/** Quantities as people read them. */

/** `1,234,567`, `12`. */
export const count = (value: number): string => Math.round(value).toLocaleString('en-US');

const PREFIXES = ['', 'k', 'M', 'G', 'T', 'P', 'E'];

/** Three digits that matter and a decimal prefix: `0`, `999`, `1.23 k`, `12.3 M`; the unit comes after it. */
function scaled(value: number): string {
  let prefix = 0;
  let left = Math.abs(value);
  while (left >= 999.5 && prefix < PREFIXES.length - 1) {
    left /= 1000;
    prefix++;
  }
  const digits = prefix === 0 || left >= 99.95 ? 0 : left >= 9.995 ? 1 : 2;
  return `${value < 0 ? '-' : ''}${left.toFixed(digits)} ${PREFIXES[prefix]}`;
}

/** `1.23 MB`. */
export const bytes = (value: number): string => `${scaled(value)}B`;
/** `1.23 Mbit/s`. */
export const bitsPerSecond = (value: number): string => `${scaled(value)}bit/s`;
/** `0/s`, `0.33/s`, `5.0/s`, `999/s`, `1.23 k/s`: a packet in three seconds is not none. */
export function perSecond(value: number): string {
  const small = value > 0 && value < 9.95;
  return `${small ? value.toFixed(value < 0.995 ? 2 : 1) : scaled(value).trim()}/s`;
}
/** Of a share: `12 %`. */
export const percent = (share: number): string => `${Math.round(share * 100)} %`;

const UNITS = [
  [86_400, 'd'],
  [3600, 'h'],
  [60, 'min'],
  [1, 's'],
] as const;

/** The two largest units that there are: `0 s`, `42 s`, `3 min 5 s`, `2 h`, `3 d 4 h`. */
export function duration(seconds: number): string {
  let left = Math.max(0, Math.round(seconds));
  const parts: string[] = [];
  for (const [i, [size, unit]] of UNITS.entries()) {
    const many = Math.floor(left / size);
    left -= many * size;
    if (many > 0) parts.push(`${many} ${unit}`);
    if (parts.length > 0 && (parts.length === 2 || i === UNITS.length - 1 || many === 0)) break;
  }
  return parts.join(' ') || '0 s';
}

/** For what is mostly shorter than a second: `1.2 ms`, `40 µs`. */
export function shortTime(seconds: number): string {
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return seconds >= 1e-3 ? `${(seconds * 1e3).toFixed(1)} ms` : `${Math.round(seconds * 1e6)} µs`;
}

/** Time since `then`, an ISO 8601 time; `now` in milliseconds. */
export const since = (then: string, now: number = Date.now()): string => duration((now - Date.parse(then)) / 1000);

/** `10.0.0.1:8472`, `[fd00::1]:8472`; without a port where nothing is encapsulated. */
export const endpoint = (address: string, port: number | null): string =>
  port === null || port === 0 ? address : address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;

/** `1 peer`, `2 peers`. */
export const plural = (many: number, word: string, words = `${word}s`): string =>
  `${count(many)} ${many === 1 ? word : words}`;

/** As people count: 10.7.0.9 before 10.7.0.10. */
export const inOrder = new Intl.Collator('en', { numeric: true }).compare;
