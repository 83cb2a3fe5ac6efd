/**
 * What a PromQL expression asks for, without evaluating it: its selectors, the labels that it groups by, and whether a
 * metrics text has what they name. Enough of the grammar for our dashboard and alerts; Prometheus itself judges the syntax.
 */

export interface Matcher {
  readonly label: string;
  readonly operator: '=' | '!=' | '=~' | '!~';
  readonly value: string;
}

export interface Selector {
  readonly metric: string;
  readonly matchers: readonly Matcher[];
}

export interface Asked {
  readonly selectors: readonly Selector[];
  /** Of `by (…)` and the like. */
  readonly groupedBy: readonly string[];
}

const TOKEN = /"(?:[^"\\]|\\.)*"|'[^']*'|\[[^\]]*\]|[A-Za-z_][\w:]*|\d[\w.]*|=~|!~|!=|==|>=|<=|\S/g;
const GROUPING = new Set(['by', 'without', 'on', 'ignoring', 'group_left', 'group_right']);
const WORDS = new Set(['and', 'or', 'unless', 'bool', 'offset', 'inf', 'nan']);

/** The selectors and the grouping labels of a query, in its order. Functions, numbers and ranges are passed over. */
export function askedBy(expression: string): Asked {
  const tokens = expression.match(TOKEN) ?? [];
  const selectors: Selector[] = [];
  const groupedBy: string[] = [];
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i];
    if (!/^[A-Za-z_]/.test(token) || WORDS.has(token.toLowerCase())) continue;
    if (GROUPING.has(token)) {
      if (tokens[i + 1] !== '(') continue;
      for (i += 2; tokens[i] !== ')'; i++) if (tokens[i] !== ',') groupedBy.push(tokens[i]);
    } else if (tokens[i + 1] === '{') {
      const matchers: Matcher[] = [];
      for (i += 2; tokens[i] !== '}'; i++) {
        if (tokens[i] === ',') continue;
        const [label, operator, value] = tokens.slice(i, i + 3);
        matchers.push({ label, operator: operator as Matcher['operator'], value: value.slice(1, -1) });
        i += 2;
      }
      selectors.push({ metric: token, matchers });
    } else if (tokens[i + 1] !== '(' && !(GROUPING.has(tokens[i + 1]) && tokens[i + 2] === '('))
      selectors.push({ metric: token, matchers: [] });
  }
  return { selectors, groupedBy };
}

export interface Served {
  /** The labels of each sample, by metric; a metric that has a type and no sample yet is here, too. */
  readonly samples: ReadonlyMap<string, readonly Readonly<Record<string, string>>[]>;
}

/** What one or several texts of /metrics have; histograms under the names of their series. */
export function servedBy(...texts: readonly string[]): Served {
  const samples = new Map<string, Record<string, string>[]>();
  for (const line of texts.join('\n').split('\n')) {
    const [, typed, type] = /^# TYPE (\S+) (\S+)/.exec(line) ?? [];
    for (const name of type === 'histogram' ? ['_bucket', '_sum', '_count'].map((end) => typed + end) : [typed])
      if (name && !samples.has(name)) samples.set(name, []);
    const [, name, inside] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line) ?? [];
    if (!name) continue;
    const labels = Object.fromEntries([...(inside ?? '').matchAll(/(\w+)="([^"]*)"/g)].map((one) => one.slice(1, 3)));
    samples.get(name)?.push(labels);
  }
  return { samples };
}

/** Labels that Prometheus adds to every sample. */
const ADDED = ['instance', 'job'];
/** Labels whose values are the operator's. */
const FREE = new Set([...ADDED, 'peer', 'device', 'vni', 'version', 'node_version', 'worker']);

/** What of an expression, and of the labels of its legend or text, `served` does not have: one line each, none if all is there. */
export function notServed(expression: string, labels: readonly string[], served: Served): string[] {
  const { selectors, groupedBy } = askedBy(expression);
  const wrong: string[] = [];
  const known = new Set(ADDED);
  for (const { metric, matchers } of selectors) {
    const samples = served.samples.get(metric);
    if (!samples) {
      wrong.push(`no metric ${metric}`);
      continue;
    }
    for (const name of samples.flatMap((sample) => Object.keys(sample))) known.add(name);
    const literal = matchers.filter(({ label }) => !FREE.has(label));
    for (const choice of choices(literal)) {
      const fits = samples.some((sample) => choice.every(([label, value]) => sample[label] === value));
      if (!fits) wrong.push(`${metric} with ${choice.map((pair) => pair.join('=')).join(', ')}`);
    }
  }
  if (selectors.length === 0) wrong.push('no metric at all');
  for (const label of [...groupedBy, ...labels]) if (!known.has(label)) wrong.push(`no label ${label}`);
  return wrong;
}

/**
 * Every alternative of a regular expression that is only alternatives has to be there, each with at least one of what the other
 * matchers allow: so with one such matcher each is paired with the first of the others.
 */
function choices(matchers: readonly Matcher[]): (readonly [string, string])[][] {
  const options = matchers.map(({ label, operator, value }) => {
    if (operator !== '=' && operator !== '=~') throw new Error(`no way to check ${label}${operator}"${value}"`);
    if (operator === '=~' && !/^[\w|]+$/.test(value)) throw new Error(`no way to check ${label}=~"${value}"`);
    return value.split('|').map((one) => [label, one] as const);
  });
  if (options.length === 0) return [];
  return options.flatMap((list, i) =>
    list.map((pair) => [
      pair,
      ...options.filter((_, j) => j !== i).flatMap((other) => (other.length === 1 ? other : [])),
    ]),
  );
}
