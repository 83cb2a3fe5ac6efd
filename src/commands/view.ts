/** Commands that ask the daemon once and show what it says; most are of this kind. */
import { type Cidr, overlaps, parseAddress, parsePrefixOf } from '../control/cidr.js';
import type { Answers, LeaseEntry, MacEntry, NeighbourEntry, PeerEntry, RouteEntry } from '../inspect/protocol.js';
import type { WeftCommand } from './command.js';
import type { Query } from './daemon/client.js';
import { count } from './text/format.js';
import type { Colours } from './text/output.js';
import { clean } from './text/table.js';

/** Endpoints whose answer has a list of their own name, and what that has in it. */
interface EntryOf {
  readonly peers: PeerEntry;
  readonly routes: RouteEntry;
  readonly macs: MacEntry;
  readonly neighbours: NeighbourEntry;
  readonly leases: LeaseEntry;
}

interface Shown<K extends keyof Answers, O extends object> extends Omit<WeftCommand<O>, 'name' | 'run'> {
  /** The command has the same name. */
  readonly endpoint: K;
  readonly show: (answer: Answers[K], colours: Colours, options: O) => string;
}

export interface View<K extends keyof Answers, O extends object> extends Shown<K, O> {
  readonly query?: (options: O) => Query;
}

export function view<K extends keyof Answers, O extends object = object>(view: View<K, O>): WeftCommand<O> {
  const { endpoint, query, show, ...rest } = view;
  return {
    ...rest,
    name: endpoint,
    run: async ({ options, json, out, daemon }) => {
      const answer = await (await daemon()).get(endpoint, query?.(options));
      if (json) out.json(answer);
      else out.print(show(answer, out.colours, options));
    },
  };
}

export interface ListView<K extends keyof EntryOf> extends Shown<K, object> {
  readonly order?: (a: EntryOf[K], b: EntryOf[K]) => number;
}

/** One that can be told which entries are wanted. */
export function listView<K extends keyof EntryOf>(view: ListView<K>): WeftCommand {
  const { endpoint, show, order, ...rest } = view;
  return {
    ...rest,
    name: endpoint,
    define: (command) => void command.argument(...FILTER),
    run: async ({ args, options, json, out, daemon }) => {
      const whole = await (await daemon()).get(endpoint);
      const all = (whole as unknown as Readonly<Record<K, readonly EntryOf[K][]>>)[endpoint];
      const entries = [...matching(all, args)];
      if (order) entries.sort(order);
      const answer = { ...whole, [endpoint]: entries };
      const none = entries.length === 0 && all.length > 0;
      if (json) out.json(answer);
      else if (none) out.print(`none of ${count(all.length)} ${endpoint} has ${clean(args.join(' or '))}\n`);
      else out.print(show(answer, out.colours, options));
    },
  };
}

const FILTER = [
  '[what...]',
  'only what has one of these: a name, a MAC, an address (or a prefix that it is in), a prefix (or what is in it)',
] as const;

/**
 * The entries that have one of `wanted` among their values, whole; of addresses and prefixes it is enough that one is in the other.
 * All of them if nothing is wanted.
 */
export function matching<T extends object>(entries: readonly T[], wanted: readonly string[]): readonly T[] {
  if (wanted.length === 0) return entries;
  const tests = wanted.map(testFor);
  return entries.filter((entry) => textsOf(entry).some((text) => tests.some((test) => test(text))));
}

function testFor(wanted: string): (text: string) => boolean {
  const plain = wanted.toLowerCase();
  const inner = prefixIn(wanted);
  return (text) => {
    if (text.toLowerCase() === plain) return true;
    const found = inner && prefixIn(text);
    return inner !== undefined && found !== undefined && overlaps(found, inner);
  };
}

/** An address is a prefix of all its bits. */
function prefixIn(text: string): Cidr | undefined {
  try {
    if (text.includes('/')) return parsePrefixOf(text); // 10.5.2.7/24 is 10.5.2.0/24
    const { family, bytes, text: canonical } = parseAddress(text);
    return { family, bytes, length: bytes.length * 8, text: canonical };
  } catch {
    return undefined;
  }
}

const textsOf = (entry: object): string[] =>
  Object.values(entry)
    .flat()
    .filter((value): value is string => typeof value === 'string');

/** What a list left out. */
export const moreLine = (more: number): string =>
  more > 0 ? `… and ${count(more)} more, which the daemon left out\n` : '';
