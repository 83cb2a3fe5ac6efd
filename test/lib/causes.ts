/**
 * The chapter of docs/operations.md that finds a cause by its symptom, as a test reads it:
 *
 *     ### No ping                                a symptom
 *
 *     **The underlay of b is down.** …           a cause, and what helps
 *
 *         a# weft ping b                         on which host to type which command
 *         underlay  no answer …                  and lines that it must show, in this order, perhaps with others in between
 *
 * In such a line `…` is any text, spaces are any spaces, a time of day is any, and a number is any number of its kind: 0 stays 0,
 * and what is not 0 is not 0. Addresses, and numbers behind `MTU`, `VNI` or `port`, are taken as they are.
 */

export interface Step {
  /** In whose namespace: `a`, `client-a`. */
  readonly host: string;
  readonly command: string;
  /** The text's own lines of output. */
  readonly shows: readonly string[];
  /** Of the text, from 1. */
  readonly line: number;
}

export interface Cause {
  readonly symptom: string;
  /** Its words in bold, without the full stop. */
  readonly name: string;
  readonly steps: readonly Step[];
  readonly line: number;
}

const PROMPT = /^ {4}([a-z][a-z0-9-]*)# (.+)$/;
const CAUSE = /^\*\*(.+?)\.?\*\*/;

/** The causes under the heading `## <chapter>`. Throws where a line of output follows no command. */
export function causesOf(markdown: string, chapter: string): Cause[] {
  const causes: { symptom: string; name: string; steps: Step[]; line: number }[] = [];
  const lines = markdown.split('\n');
  const start = lines.indexOf(`## ${chapter}`);
  if (start < 0) throw new Error(`there is no chapter "${chapter}"`);
  let symptom = '';
  let shows: string[] | undefined;
  for (let i = start + 1; i < lines.length && !lines[i].startsWith('## '); i++) {
    const text = lines[i];
    const prompt = PROMPT.exec(text);
    if (text.startsWith('### ')) symptom = text.slice(4);
    if (symptom === '') continue; // what stands before the first symptom is no cause's
    const cause = CAUSE.exec(text);
    if (cause) causes.push({ symptom, name: cause[1], steps: [], line: i + 1 });
    if (prompt) {
      shows = [];
      const [, host, command] = prompt;
      causes.at(-1)?.steps.push({ host, command: command.replace(/ {2,}# .*$/, ''), shows, line: i + 1 });
    } else if (/^ {4}/.test(text)) {
      if (!shows) throw new Error(`line ${i + 1}: output of which command?`);
      shows.push(text.trim());
    } else if (text !== '') shows = undefined;
  }
  return causes;
}

const LITERAL = /\d+\.\d+\.\d+\.\d+(?:\/\d+)?|[0-9a-f]*(?::[0-9a-f]*){2,}(?:\/\d+)?|(?<=\b(?:mtu|vni|port) )\d+/gi;
const TIME = /\b\d\d:\d\d:\d\d\.\d+/g;
const escaped = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');

/** Text in which numbers stand for others. */
const loose = (text: string): string =>
  text
    .split(/(\d[\d,.]*\d|\d|…)/)
    .map((part, i) => (i % 2 === 0 ? escaped(part) : part === '…' ? '.*?' : numberLike(part)))
    .join('');

function numberLike(text: string): string {
  return /[1-9]/.test(text) ? '(?=[\\d,.]*[1-9])\\d[\\d,.]*' : '0(?:\\.0+)?(?![\\d,.]*[1-9])';
}

/** What a line of the text stands for. */
export function patternOf(line: string): RegExp {
  let pattern = '';
  let at = 0;
  const text = line.trim().replace(/\s+/g, ' ').replace(TIME, '…');
  for (const match of text.matchAll(LITERAL)) {
    pattern += loose(text.slice(at, match.index)) + escaped(match[0]);
    at = match.index + match[0].length;
  }
  pattern += loose(text.slice(at));
  return new RegExp(`^${pattern.replace(/ /g, '\\s+')}$`);
}

/** The first line of the text that the output does not have where it should; undefined: it has them all. */
export function missingFrom(output: string, shows: readonly string[]): string | undefined {
  const lines = output.split('\n').map((line) => line.trim());
  let at = 0;
  for (const line of shows) {
    const pattern = patternOf(line);
    while (at < lines.length && !pattern.test(lines[at])) at++;
    if (at++ >= lines.length) return line;
  }
  return undefined;
}
