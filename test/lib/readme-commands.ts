/**
 * The commands that a Markdown text tells its readers to run: in code blocks (indented or fenced) and in `inline code`.
 *
 *     # weftd --iface eth0      a line with a prompt (`#`, `$`, or a host's: `a#`), whatever it runs
 *     npm test                  a line that begins with one of WORDS; what follows `  # ` is a remark
 *
 * A name alone (`weftd`) is no command, nor is an option alone (`--mode l2`).
 */

/** What a command begins with; `sudo` and variables (`A=1 npm test`) may stand before it. `weftd 0.1.0` is what one has printed. */
const WORDS = /^(?!weftd \d)(npm|npx|node|weftd|weft|docker|docker-compose|dockerd|ip|curl|systemctl|git) \S/;
const BEFORE = /^(sudo |[A-Z_]+=\S+ )+/;
const PROMPT = /^(?:([a-z])?#|\$) (?=[a-z.])/;
const REMARK = /\s{2,}# .*$/;
/** At the left, or in an item of a list. */
const BLOCK = /^ {4,}\S/;
const COMMENT = /<!--.*?-->/gs;
const FENCE = /^\s*```/;

export interface Command {
  /** As in the text, without prompt and remark, on one line. */
  readonly text: string;
  /** The letter of the host that is to run it, where the text says so. */
  readonly host?: string;
  /** Of the text, from 1. */
  readonly line: number;
}

/** One space where there were several, and no prompt: what two spellings of a command have in common. */
export const normal = (text: string): string => text.replace(PROMPT, '').replace(/\s+/g, ' ').trim();

const begins = (text: string): boolean => WORDS.test(text.replace(BEFORE, ''));

/** A line of a code block; undefined: it is no command. */
function blockCommand(text: string, line: number): Command | undefined {
  const said = text.trim().replace(REMARK, '');
  const prompt = PROMPT.exec(said);
  if (!prompt && !begins(said)) return undefined;
  return { text: normal(said), ...(prompt?.[1] ? { host: prompt[1] } : {}), line };
}

/** Those in `inline code` of a paragraph that begins in this line. */
function inlineCommands(text: string, firstLine: number): Command[] {
  return [...text.matchAll(/(?<!`)`([^`]+)`(?!`)/g)]
    .map(({ 1: code, index }) => ({
      text: normal(code),
      line: firstLine + text.slice(0, index).split('\n').length - 1,
    }))
    .filter((command) => begins(command.text));
}

/** The commands of a text in their order. What stands there twice is there twice. */
export function commandsOf(markdown: string): Command[] {
  const found: Command[] = [];
  const lines = markdown.replace(COMMENT, (text) => text.replace(/./g, '')).split('\n');
  let paragraph: string[] = [];
  let fenced = false;
  const endParagraph = (next: number): void => {
    // Inline code may go on in the next line, not in the next paragraph.
    found.push(...inlineCommands(paragraph.join('\n'), next - paragraph.length + 1));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i];
    if (FENCE.test(line)) {
      endParagraph(i);
      fenced = !fenced;
      continue;
    }
    // An indented line that follows a paragraph belongs to that.
    if (fenced || (BLOCK.test(line) && paragraph.length === 0)) {
      const first = i;
      let text = line;
      while (/\\$/.test(text) && i + 1 < lines.length) text = `${text.slice(0, -1)} ${lines[++i].trim()}`;
      const command = blockCommand(text, first + 1);
      // It may also be a paragraph of a list's item.
      found.push(...(command ? [command] : inlineCommands(line, first + 1)));
    } else if (line.trim() === '') endParagraph(i);
    else paragraph.push(line);
  }
  endParagraph(lines.length);
  return found;
}

/** A command as a table has it: with its host's prompt, so that `a# weftd` and `b# weftd` are two. */
export const keyOf = ({ text, host }: Command): string => (host ? `${host}# ${text}` : text);

/** The commands of a text that a table does not have, as `README.md:12: npm start`, and what of the table is not in the text. */
export function compareCommands(
  name: string,
  markdown: string,
  table: Iterable<string>,
): { readonly missing: string[]; readonly stale: string[] } {
  const commands = commandsOf(markdown);
  const known = new Set(table);
  const said = new Set(commands.map(keyOf));
  return {
    missing: commands.filter((one) => !known.has(keyOf(one))).map((one) => `${name}:${one.line}: ${keyOf(one)}`),
    stale: [...known].filter((one) => !said.has(one)),
  };
}
