/**
 * JSON as Go's encoding/json reads it into structs, which is how flannel reads its configuration and its leases: the case of
 * keys does not matter, of a key that comes twice the last counts, null leaves what was there, and unknown keys are passed over.
 *
 * JSON.parse alone loses the order of keys that differ in case only; so it checks the text, and this takes its tokens apart.
 */
import { reasonOf } from './reason.js';

export type GoJson = null | boolean | number | string | readonly GoJson[] | GoObject;

/** Values by folded key. */
export type GoObject = ReadonlyMap<string, GoJson>;

const TOKEN = /"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+/g;

/** Objects and arrays in each other; nobody means more. */
const DEEPEST = 100;

/** Go's folding of a key: simple folding, under which the long s and the Kelvin sign are letters like any other. */
const fold = (key: string): string => key.toUpperCase().toLowerCase();

/** Throws a RangeError: it is no JSON, or is nested too deeply to be meant. */
export function parseGoJson(text: string): GoJson {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new RangeError(`it is no JSON: ${reasonOf(error)}`);
  }
  const tokens = text.match(TOKEN) ?? [];
  let at = 0;
  let depth = 0;
  const value = (): GoJson => {
    const token = tokens[at++];
    if (token !== '{' && token !== '[') return JSON.parse(token);
    if (++depth > DEEPEST) throw new RangeError(`nested more than ${DEEPEST} deep`);
    const found = token === '{' ? object() : array();
    depth--;
    return found;
  };
  const object = (): GoObject => {
    const members = new Map<string, GoJson>();
    for (; tokens[at] !== '}'; at += Number(tokens[at] === ',')) {
      const key = fold(JSON.parse(tokens[at]));
      at += 2; // the key, and its colon
      const found = value();
      if (found !== null || !members.has(key)) members.set(key, found);
    }
    at++;
    return members;
  };
  const array = (): readonly GoJson[] => {
    const items: GoJson[] = [];
    for (; tokens[at] !== ']'; at += Number(tokens[at] === ',')) items.push(value());
    at++;
    return items;
  };
  return value();
}

/** Members of one object, each asked for by the type that it must have. `where` goes before the key in what is thrown. */
export class GoFields {
  readonly #members: GoObject;
  readonly #where: string;

  /** Throws a RangeError if `value` is no object; null is an empty one. */
  constructor(value: GoJson, where = '') {
    if (value !== null && !(value instanceof Map)) {
      throw new RangeError(`${where === '' ? '' : `${where.slice(0, -1)}: `}expected an object`);
    }
    this.#members = value ?? new Map();
    this.#where = where;
  }

  /** undefined: not there, or null. */
  get(key: string): Exclude<GoJson, null> | undefined {
    return this.#members.get(fold(key)) ?? undefined;
  }

  /** True if it is there and null. */
  isNull(key: string): boolean {
    return this.#members.get(fold(key)) === null;
  }

  string(key: string): string | undefined {
    const value = this.get(key);
    return value === undefined || typeof value === 'string' ? value : this.#expected(key, 'a string');
  }

  boolean(key: string): boolean | undefined {
    const value = this.get(key);
    return value === undefined || typeof value === 'boolean' ? value : this.#expected(key, 'true or false');
  }

  integer(key: string): number | undefined {
    const value = this.get(key);
    return value === undefined || Number.isSafeInteger(value)
      ? (value as number | undefined)
      : this.#expected(key, 'an integer');
  }

  /** A text that `parse` takes. Throws a RangeError that names the key. */
  parsed<T>(key: string, parse: (text: string) => T): T | undefined {
    const text = this.string(key);
    if (text === undefined) return undefined;
    try {
      return parse(text);
    } catch (error) {
      throw new RangeError(`${this.#where}${key}: ${reasonOf(error)}`);
    }
  }

  object(key: string): GoFields | undefined {
    const value = this.get(key);
    return value === undefined ? undefined : new GoFields(value, `${this.#where}${key}.`);
  }

  #expected(key: string, what: string): never {
    throw new RangeError(`${this.#where}${key}: expected ${what}`);
  }
}
