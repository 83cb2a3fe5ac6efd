/** Rows of text in columns, for people: two spaces between them, numbers to the right, no space at a line's end. */
import { type Colours, NO_COLOURS } from './output.js';

export interface Column {
  readonly title: string;
  /** `right`: numbers. */
  readonly align?: 'left' | 'right';
}

/** Text, or text with a colour; its width is the text's. */
export type Cell = string | readonly [text: string, colour: keyof Colours];
export type Row = readonly Cell[];

/** Lines, each with its end; without rows only the head. */
export function table(columns: readonly Column[], rows: readonly Row[], colours: Colours = NO_COLOURS): string {
  const cells = rows.map((row) => row.map(cleaned));
  const widths = columns.map(({ title }, i) =>
    cells.reduce((most, row) => Math.max(most, row[i][0].length), title.length),
  );
  const line = (row: readonly Cleaned[]): string => {
    const parts = row.map(([text, colour], i) => {
      const space = ' '.repeat(widths[i] - text.length);
      const last = i === row.length - 1;
      const shown = colour === undefined ? text : colours[colour](text);
      return columns[i].align === 'right' ? space + shown : last ? shown : shown + space;
    });
    return `${parts.join('  ').trimEnd()}\n`;
  };
  return line(columns.map(({ title }) => [title, 'bold'])) + cells.map(line).join('');
}

type Cleaned = readonly [text: string, colour?: keyof Colours];

const cleaned = (cell: Cell): Cleaned => (typeof cell === 'string' ? [clean(cell)] : [clean(cell[0]), cell[1]]);

/** What is printed of text from elsewhere: names come from other hosts, and a terminal obeys control characters. */
export const clean = (text: string): string => text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '?');
