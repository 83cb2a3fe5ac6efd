/**
 * Our rules in nftables, in tables of their own (`ip flannel-ipv4`, `ip6 flannel-ipv6`): read by one `nft -j list table`, changed
 * by one `nft -j`, which is one transaction (libnftables-json(5)). That is told what to do by its argument: its standard input it
 * opens as a file, which a socket, such as Node gives, cannot be.
 *
 * Base chains of several tables all have their say: what is accepted here another table may still drop, so this variant is for
 * hosts whose other rules are not iptables' either.
 *
 * flanneld's own rules have no comment there. What has none and looks like one of its rules, whatever the prefixes, was its.
 */
import * as v from 'valibot';
import { SetupError } from '../io/setup-error.js';
import { type Finished, runCommand } from './command.js';
import {
  COMMENTS,
  forwardRules,
  type Keeper,
  MASQUERADE_MARK,
  masqRules,
  mend,
  type Rule,
  type RuleKind,
  type WantedRules,
} from './rules.js';

interface Chain {
  readonly name: string;
  readonly type: string;
  readonly hook: string;
  readonly prio: number;
}

const CHAINS: Readonly<Record<RuleKind, Chain>> = {
  masq: { name: 'postrtg', type: 'nat', hook: 'postrouting', prio: 100 },
  forward: { name: 'forward', type: 'filter', hook: 'forward', prio: 0 },
};

const TABLES = { 4: { family: 'ip', name: 'flannel-ipv4' }, 6: { family: 'ip6', name: 'flannel-ipv6' } } as const;

const TIMEOUT = 10_000;

const run = (args: readonly string[]): Promise<Finished> =>
  runCommand({
    name: 'nft',
    args,
    timeout: TIMEOUT,
    missing: ['NO_NFT', 'install nftables, or leave EnableNFTables out of the network config'],
    failed: 'NFT_FAILED',
  });

const complaint = (stderr: string): string =>
  stderr
    .split('\n')[0]
    .replace(/^(\S+: )?Error: /, '')
    .trim() || 'no reason given';

/** What `nft -j list table` tells of chains and rules. */
const listingSchema = v.object({
  nftables: v.array(
    v.object({
      chain: v.optional(
        v.object({
          name: v.string(),
          type: v.optional(v.string()),
          hook: v.optional(v.string()),
          prio: v.optional(v.number()),
          policy: v.optional(v.string()),
        }),
      ),
      rule: v.optional(
        v.object({
          chain: v.string(),
          handle: v.number(),
          comment: v.optional(v.string()),
          expr: v.array(v.unknown()),
        }),
      ),
    }),
  ),
});
type Listing = v.InferOutput<typeof listingSchema>['nftables'];

/** Rules of one family. */
export class NftRules implements Keeper {
  readonly what: string;
  readonly #family: 4 | 6;
  readonly #wanted: WantedRules;

  constructor(family: 4 | 6, wanted: WantedRules) {
    this.what = `nft rules (${TABLES[family].family})`;
    this.#family = family;
    this.#wanted = wanted;
  }

  ensure(): Promise<boolean> {
    const { family, name } = TABLES[this.#family];
    const failed = (reason: string): Error => new SetupError('NFT_FAILED', `cannot set ${this.what}: ${reason}`);
    return mend(
      async () => {
        const { code, stdout, stderr } = await run(['-j', 'list', 'table', family, name]);
        if (code === 0) return nftRepairFor(stdout, this.#family, this.#wanted);
        if (!stderr.includes('No such file or directory')) throw failed(complaint(stderr));
        return nftRepairFor('{"nftables":[]}', this.#family, this.#wanted);
      },
      async (todo) => {
        const { code, stderr } = await run(['-j', todo]);
        return code === 0 ? undefined : complaint(stderr);
      },
      failed,
    );
  }
}

/** What `nft -j` has to be told so that what `nft -j list table` printed becomes what is wanted; undefined: nothing. */
export function nftRepairFor(listed: string, family: 4 | 6, wanted: WantedRules): string | undefined {
  const listing = parsed(listed);
  const changes = [...wanted].flatMap(([kind, rules]) => chainRepair(listing, family, kind, rules));
  if (changes.length === 0) return undefined;
  const makesTable = [...wanted.values()].some((rules) => rules.length > 0);
  const table = { add: { table: TABLES[family] } };
  return JSON.stringify({ nftables: makesTable ? [table, ...changes] : changes });
}

function parsed(listed: string): Listing {
  try {
    return v.parse(listingSchema, JSON.parse(listed)).nftables;
  } catch {
    throw new SetupError('NFT_FAILED', 'nft -j gave no JSON that is understood: nftables 0.9.3 or later is needed');
  }
}

function chainRepair(listing: Listing, family: 4 | 6, kind: RuleKind, rules: readonly Rule[]): object[] {
  const { name, ...base } = CHAINS[kind];
  const at = { family: TABLES[family].family, table: TABLES[family].name };
  const there = listing.find((item) => item.chain?.name === name)?.chain;
  const inChain = listing.flatMap((item) => (item.rule?.chain === name ? [item.rule] : []));
  const ours = inChain.filter(({ comment, expr }) =>
    comment === undefined ? SHAPES[family].has(shapeOf(expr)) : comment === COMMENTS[kind],
  );
  const remove = ours.map(({ handle }) => ({ delete: { rule: { ...at, chain: name, handle } } }));
  if (rules.length === 0) {
    const alone = there !== undefined && ours.length === inChain.length;
    return alone ? [...remove, { delete: { chain: { ...at, name } } }] : remove;
  }
  const then = rules.map((rule) => expressionsOf(rule, family));
  const comment = COMMENTS[kind];
  const right =
    ours.length === then.length &&
    ours.every((rule, i) => rule.comment === comment && canonical(rule.expr) === canonical(then[i]));
  const hooked = there?.type === base.type && there.hook === base.hook && there.prio === base.prio;
  if (right && hooked && there.policy === 'accept') return [];
  const add = { add: { chain: { ...at, name, ...base, policy: 'accept' } } };
  const fill = then.map((expr) => ({ add: { rule: { ...at, chain: name, comment, expr } } }));
  if (there && !hooked) {
    // Where a chain hooks in can't be changed: it has to be made anew.
    return [{ flush: { chain: { ...at, name } } }, { delete: { chain: { ...at, name } } }, add, ...fill];
  }
  return right ? [add] : [add, ...remove, ...fill];
}

const match = (op: string, left: unknown, right: unknown): object => ({ match: { op, left, right } });

const MARK = { meta: { key: 'mark' } };

function expressionsOf({ marked, source, destination, verdict, randomFully }: Rule, family: 4 | 6): unknown[] {
  const { family: protocol } = TABLES[family];
  const address = (field: string, { text, not }: { readonly text: string; readonly not: boolean }): object =>
    match(not ? '!=' : '==', { payload: { protocol, field } }, prefixOf(text, family));
  return [
    ...(marked ? [match('==', { '&': [MARK, MASQUERADE_MARK] }, MASQUERADE_MARK)] : []),
    ...(source ? [address('saddr', source)] : []),
    ...(destination ? [address('daddr', destination)] : []),
    verdict === 'masquerade' ? { masquerade: randomFully ? { flags: 'fully-random' } : null } : { [verdict]: null },
  ];
}

/** nft prints the prefix of a single address as that address. */
function prefixOf(text: string, family: 4 | 6): unknown {
  const [addr, length] = text.split('/');
  return Number(length) === (family === 4 ? 32 : 128) ? addr : { prefix: { addr, len: Number(length) } };
}

/** Text that two equal expressions share, however a version of nft orders keys and writes a list of one. */
const canonical = (value: unknown): string => JSON.stringify(ordered(value));

function ordered(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(ordered);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .map(([key, item]): [string, unknown] => [
        key,
        key === 'flags' && Array.isArray(item) ? item.join() : ordered(item),
      ])
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

/** The same for all rules that differ in their prefixes only. */
const shapeOf = (expr: unknown): string => canonical(expr).replace(/\{"prefix":\{[^}]*\}\}/g, '"prefix"');

/** Shapes of flanneld's rules. */
const SHAPES = { 4: flannelShapes(4), 6: flannelShapes(6) } as const;

function flannelShapes(family: 4 | 6): ReadonlySet<string> {
  const any = [{ family, text: family === 4 ? '10.0.0.0/8' : 'fd00::/8' }];
  const rules = [...masqRules(any, any, true), ...masqRules(any, any, false), ...forwardRules(any)];
  const unmasked = [match('==', MARK, MASQUERADE_MARK), { return: null }]; // how flanneld looks at the mark
  return new Set([...rules.map((rule) => expressionsOf(rule, family)), unmasked].map(shapeOf));
}
