/**
 * Lines of the log. For people: time, level and event in columns, then the fields as name=value, those of an object with its name in
 * front (underlay.interface=eth0). Always one line of printable text, in JSON too, whatever a registry or a peers file made us say:
 * it may come to a terminal.
 */

/** Columns of an event's name; longer ones push the rest to the right. */
const EVENT_COLUMNS = 20;
const LEVEL_COLUMNS = 5;
/** What needs no quotes. */
const PLAIN = /^[^\s"'=,[\]{}\\\p{C}]+$/u;
/** Besides what JSON escapes: C1 controls, DEL, line and paragraph separators, marks that turn the writing direction. */
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]/gu;

/** The same JSON, with its newline, without a character that a terminal would obey. */
export const jsonLine = (json: string): string => `${escaped(json.slice(0, -1))}\n`;

/** Of a JSON line, with its newline; what is no JSON comes back as it is. */
export function textLine(json: string): string {
  let line: unknown;
  try {
    line = JSON.parse(json);
  } catch {
    return json;
  }
  if (typeof line !== 'object' || line === null) return json;
  const { time, level, event, ...fields } = line as Record<string, unknown>;
  const head = `${text(time)}  ${text(level).toUpperCase().padEnd(LEVEL_COLUMNS)}  ${text(event)}`;
  const tail = pairs('', fields).join(' ');
  if (tail === '') return `${head}\n`;
  return `${head.padEnd(`${text(time)}    `.length + LEVEL_COLUMNS + EVENT_COLUMNS)}  ${tail}\n`;
}

function pairs(prefix: string, fields: object): string[] {
  return Object.entries(fields).flatMap(([name, value]) =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? pairs(`${prefix}${name}.`, value)
      : [`${text(prefix + name)}=${text(value)}`],
  );
}

/** A list of simple values with commas in between; whatever else is not plain as JSON. */
function text(value: unknown): string {
  if (Array.isArray(value) && value.length > 0 && value.every((one) => isPlain(one))) return value.join(',');
  return isPlain(value) ? String(value) : escaped(JSON.stringify(value) ?? '');
}

const isPlain = (value: unknown): boolean =>
  typeof value === 'string' ? PLAIN.test(value) : typeof value === 'number' || typeof value === 'boolean';

const escaped = (json: string): string =>
  json.replace(UNPRINTABLE, (character) =>
    [...Array(character.length).keys()]
      .map((i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`)
      .join(''),
  );
