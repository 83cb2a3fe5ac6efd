/** Whether a text is well-formed XML, as far as a chart needs it: tags that match, attributes in quotes, no bare < or &. */
import type t from 'tap';

type Test = Pick<typeof t, 'ok' | 'equal'>;

const TOKEN = /<(\/?)([A-Za-z][\w:-]*)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>|<|&(?!amp;|lt;|gt;|quot;|#\d+;|#39;)/g;

export function checkXml(t: Test, text: string): void {
  const open: string[] = [];
  let roots = 0;
  const faults: string[] = [];
  for (const { 0: token, 1: closing, 2: name, 4: empty, index } of text.matchAll(TOKEN)) {
    if (name === undefined) faults.push(`${token} at ${index}`);
    else if (closing) {
      if (open.pop() !== name) faults.push(`</${name}> at ${index}`);
    } else {
      if (open.length === 0) roots++;
      if (!empty) open.push(name);
    }
  }
  t.equal(faults.concat(open).join(', '), '', 'well-formed');
  t.equal(roots, 1, 'one root');
}
