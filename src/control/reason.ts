/** What was thrown, as one line. JSON.parse, for one, quotes the text it stumbled over, newlines and all. */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replace(/\s+/g, ' ').trim();
}
