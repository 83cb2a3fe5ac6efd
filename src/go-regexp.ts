/**
 * Regular expressions as Go's package regexp takes them (RE2), for JavaScript. What the two understand differently is translated
 * or refused: nothing may match something else than it did in flannel.
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

/** Escapes of letters and digits, where they stand; those that are not here are of one of the two only, or mean different things. */
const SAME_ESCAPES = { outside: /^\\([bBdDwWsSfnrtv]|x..)$/, inClass: /^\\([dDwWsSfnrtv]|x..)$/ };
const OTHER_ESCAPES: Readonly<Record<string, string>> = { '\\A': '^', '\\z': '$' };

/** One piece of a pattern: `[`, `[^`, `[]` and `[^]` begin a class, the latter two with a bracket in it. */
const OUTSIDE = /\[\^?\]?|\(\?(?:P?<(?![=!])|:)?|\\x[\dA-Fa-f]{2}|\\?[\s\S]/y;
const IN_CLASS = /\[:\^?\w*:\]|\\x[\dA-Fa-f]{2}|\\?[\s\S]/y;

/** Throws a RangeError for what is none, or cannot be translated. */
export function goPattern(text: string): RegExp {
  const [, flags, body] = /^(?:\(\?([is]{1,2})\))?(.*)$/s.exec(text) ?? wrong();
  if (body === '') wrong();
  let inClass = false;
  let pattern = '';
  for (let at = 0; at < body.length; ) {
    const pieces = inClass ? IN_CLASS : OUTSIDE;
    pieces.lastIndex = at;
    const [piece] = pieces.exec(body) ?? wrong();
    at += piece.length;
    pattern += inClass ? pieceInClass(piece) : pieceOutside(piece);
    if (inClass ? piece === ']' : piece.startsWith('[')) inClass = !inClass;
  }
  try {
    return new RegExp(pattern, flags);
  } catch (error) {
    return wrong(error instanceof Error ? error.message : String(error));
  }
}

function pieceOutside(piece: string): string {
  if (piece === '(?') wrong('groups of (? with flags or looking around are not supported');
  if (piece === '(?P<') return '(?<';
  if (piece.startsWith('[')) return piece.replace(']', '\\]');
  return OTHER_ESCAPES[piece] ?? checkEscape(piece, SAME_ESCAPES.outside);
}

function pieceInClass(piece: string): string {
  const name = /^\[:(.*):\]$/.exec(piece)?.[1];
  if (name === undefined) return checkEscape(piece, SAME_ESCAPES.inClass);
  return Object.hasOwn(CLASSES, name) ? CLASSES[name] : wrong(`"${piece}" is not supported`);
}

/** `same`: escapes that may stay as they are. Of what is no letter and no digit all may. */
const checkEscape = (piece: string, same: RegExp): string =>
  /^\\[0-9A-Za-z]/.test(piece) && !same.test(piece) ? wrong(`"${piece}" is not supported`) : piece;
