/** Letters of a reason: what was read may be of any length. */
const MOST = 400;

/**
 * What was thrown, as one line of bounded length. JSON.parse, for one, quotes the text it stumbled over, newlines and all; and what
 * would move a terminal's cursor is written as an escape.
 */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  const line = text
    .slice(0, 2 * MOST)
    .replace(/\s+/g, ' ')
    .trim();
  const plain = line.replace(/\p{Cc}|\p{Cf}/gu, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`);
  return plain.length > MOST ? `${plain.slice(0, MOST)}…` : plain;
}
