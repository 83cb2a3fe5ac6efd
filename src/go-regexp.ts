/**
 * Regular expressions as Go's package regexp takes them (RE2), as patterns for JavaScript's RegExp. What the two understand
 * differently is translated or refused: nothing may match something else than it did in flannel.
 *
 * Source: https://github.com/google/re2/wiki/Syntax
 */
import { wrong } from './option.js';

const CLASSES: Readonly<Record<string, string>> = {
  alnum: '0-9A-Za-z',
  alpha: 'A-Za-z',
  ascii: '\\x00-\\x7f',
  blank: '\\t ',
  cntrl: '\\x00-\\x1f\\x7f',
  digit: '0-9',
  graph: '!-~',
  lower: 'a-z',
  print: ' -~',
  punct: '!-\\/:-@\\[-`{-~',
  space: '\\t\\n\\v\\f\\r ',
  upper: 'A-Z',
  word: '\\w',
  xdigit: '0-9A-Fa-f',
};

/** Escapes of letters and digits that mean the same in both; others are of one only, or mean different things. */
const SAME_ESCAPES = /^[abBdDwWsSfnrtvx]$/;

/** The pattern for `new RegExp`. Throws a RangeError for what is none, or cannot be translated. */
export function goPattern(text: string): string {
  if (text === '') return wrong();
  const pattern = text
    .replace(/\[:(\w+):\]/g, (whole, name: string) => CLASSES[name] ?? whole)
    .replace(/\(\?P</g, '(?<')
    .replace(/\\([\s\S])/g, (whole, letter: string) => {
      if (letter === 'A') return '^';
      if (letter === 'z') return '$';
      if (letter === 'a') return '\\x07';
      if (/[0-9A-Za-z]/.test(letter) && !SAME_ESCAPES.test(letter)) wrong(`"${whole}" is not supported`);
      return whole;
    });
  if (/\(\?(?![:<])|\(\?<[=!]/.test(pattern)) wrong('groups of (? with flags or looking around are not supported');
  try {
    new RegExp(pattern);
  } catch (error) {
    wrong(error instanceof Error ? error.message : String(error));
  }
  return pattern;
}
