/** What an option is, and the checks that options are made of: text in, a value out, or a RangeError that says what is wrong. */
import { type Address, type Cidr, overlaps } from './control/cidr.js';

/** A mistake on the command line, in the environment or in the configuration file: one line, exit code 2. */
export class UsageError extends Error {
  constructor(message: string) {
    // What is quoted may have newlines in it, and worse.
    super(message.replace(/\s+/g, ' ').replace(/\p{Cc}/gu, '\u{fffd}'));
    this.name = 'UsageError';
  }
}

/** What Weft does not do, or flannel takes for a failure: one line, exit code 1. Thrown by an option's check. */
export class Refusal extends RangeError {
  /** Of the SetupError that it becomes. */
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export interface Option<T> {
  /** Long flag without dashes; also the key in the file and, in capitals after WEFT_, the environment variable. */
  readonly flag: string;
  /** Placeholder of the value in the help; undefined: a switch. */
  readonly value?: string;
  /** True for one of flannel's, by its name: FLANNELD_… is its environment variable too, after WEFT_…. */
  readonly flannel?: true;
  /** Heading in the help that it stands under; undefined: the first. */
  readonly group?: string;
  /** Several values: a comma list, in the file also an array, on the command line also the flag again. */
  readonly list?: true;
  /** Of a list: what parts its values in the text, where that is no comma. */
  readonly separator?: '\n';
  /** Of a list: the flag again replaces what was said before, as in flannel. */
  readonly lastCounts?: true;
  /** Empty text means that nothing is said, as in flannel, where that is the default. */
  readonly mayBeEmpty?: true;
  /** As text, checked like any other; undefined: none, and `check` is told so. */
  readonly default: string | undefined;
  /** What `check` takes, for the error line. */
  readonly expects: string;
  /** Turns text into the value. Throws a RangeError that says what is wrong, or an empty one: `expects` says it. */
  readonly check: (text: string | undefined) => T;
  readonly help: string;
  readonly example: string;
}

export const wrong = (reason = ''): never => {
  throw new RangeError(reason);
};

/** A check for options that may be left out. */
export const optional =
  <T>(check: (text: string) => T) =>
  (text: string | undefined): T | undefined =>
    text === undefined ? undefined : check(text);

/** A check for options that have a default. */
export const needed =
  <T>(check: (text: string) => T) =>
  (text: string | undefined): T =>
    text === undefined ? wrong('missing') : check(text);

/** A check for lists that may be left out. */
export const listOf =
  <T>(check: (text: string) => readonly T[]) =>
  (text: string | undefined): readonly T[] =>
    text === undefined ? [] : check(text);

/** A check for decimal numbers. */
export const wholeNumber = (least: number, most: number) => (text: string) => {
  const value = /^(0|[1-9]\d{0,9})$/.test(text) ? Number(text) : Number.NaN;
  return value >= least && value <= most ? value : wrong();
};

export const oneOf =
  <T extends string>(words: readonly T[]) =>
  (text: string): T =>
    words.find((word) => word === text) ?? wrong();

/** A check for one of two words, true for the first. */
export const eitherOf =
  (yes: string, no: string) =>
  (text: string): boolean =>
    oneOf([yes, no])(text) === yes;

const TRUE = ['1', 't', 'T', 'TRUE', 'true', 'True'];
const FALSE = ['0', 'f', 'F', 'FALSE', 'false', 'False'];
/** A check for switches: what strconv.ParseBool of Go takes. */
export const truth = (text: string): boolean => TRUE.includes(text) || (!FALSE.includes(text) && wrong());

export const nonEmpty = (text: string): string => text || wrong();

export const onePerFamily =
  <T extends Address | Cidr>(parse: (text: string) => T) =>
  (text: string): readonly T[] => {
    const items = text.split(',').map((item) => parse(item.trim()));
    for (const [i, item] of items.entries()) {
      const other = items.slice(0, i).find((earlier) => earlier.family === item.family);
      if (!other) continue;
      if ('length' in item && 'length' in other && overlaps(item, other))
        wrong(`${other.text} and ${item.text} overlap`);
      wrong(`${other.text} and ${item.text} are both IPv${item.family}`);
    }
    return items;
  };
