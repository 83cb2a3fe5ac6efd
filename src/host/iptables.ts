/**
 * Our rules in iptables: read by one iptables-save, changed by one iptables-restore, whichever variant (nf_tables, legacy) these
 * names stand for here. One change of a table is one transaction, so no packet meets half of it, and two programs that do so at a
 * time do not mix (flannel-io/flannel #933, #988).
 *
 * A chain of ours hangs on a built-in one by a jump, `-A POSTROUTING … -j FLANNEL-POSTRTG`. In both, the rules with our comment
 * have to be the wanted ones, once each and in order; if not, all of ours go from there and come back at the end, together.
 */
import { SetupError } from '../io/setup-error.js';
import { type Finished, runCommand } from './command.js';
import { COMMENTS, type Keeper, MASQUERADE_MARK, mend, type Rule, type RuleKind, type WantedRules } from './rules.js';

interface Place {
  readonly table: 'nat' | 'filter';
  readonly hook: 'POSTROUTING' | 'FORWARD';
  readonly chain: string;
}

const PLACES: Readonly<Record<RuleKind, Place>> = {
  masq: { table: 'nat', hook: 'POSTROUTING', chain: 'FLANNEL-POSTRTG' },
  forward: { table: 'filter', hook: 'FORWARD', chain: 'FLANNEL-FWD' },
};

/** Seconds that a change waits for others of the legacy variant (/run/xtables.lock). */
const LOCK_WAIT = 5;
const TIMEOUT = 10_000;

const PREFIX = { 4: 'iptables', 6: 'ip6tables' } as const;

const run = (name: string, args: readonly string[], input = ''): Promise<Finished> =>
  runCommand({
    name,
    args,
    input,
    timeout: TIMEOUT,
    missing: ['NO_IPTABLES', 'install iptables, or start without --ip-masq and with --iptables-forward-rules=false'],
    failed: 'IPTABLES_FAILED',
  });

/** One line of what such a program complains of. */
const complaint = (stderr: string): string =>
  stderr
    .replace(/^ip6?tables-(nft-|legacy-)?(save|restore)( v\S+ \([a-z_]+\))?: /gm, '')
    .replace(/\s+/g, ' ')
    .trim()
    .slice(0, 300) || 'no reason given';

/**
 * Whether it knows `--random-fully`, and `--wait` of iptables-restore: from 1.6.2 on (January 2018). One whose version cannot be
 * told is taken for a newer one.
 */
async function isModern(family: 4 | 6): Promise<boolean> {
  const { stdout } = await run(`${PREFIX[family]}-restore`, ['--version']);
  const version = /v(\d+)\.(\d+)\.(\d+)/.exec(stdout)?.slice(1).map(Number);
  if (!version) return true;
  const [major, minor, patch] = version;
  return major > 1 || minor > 6 || (minor === 6 && patch >= 2);
}

/** Rules of one family. */
export class IptablesRules implements Keeper {
  readonly what: string;
  readonly #family: 4 | 6;
  readonly #wanted: WantedRules;
  /** Of the program, which stays the same. */
  #modern: boolean | undefined;

  constructor(family: 4 | 6, wanted: WantedRules) {
    this.what = `${PREFIX[family]} rules`;
    this.#family = family;
    this.#wanted = wanted;
  }

  async ensure(): Promise<boolean> {
    this.#modern ??= await isModern(this.#family);
    const modern = this.#modern;
    const [save, restore] = [`${PREFIX[this.#family]}-save`, `${PREFIX[this.#family]}-restore`];
    const failed = (reason: string): Error => new SetupError('IPTABLES_FAILED', `cannot set ${this.what}: ${reason}`);
    const tables = new Set<string>([...this.#wanted.keys()].map((kind) => PLACES[kind].table));
    return mend(
      async () => {
        // Without a table's name it tells only of those that there are, and makes none.
        const { code, stdout, stderr } = await run(save, tables.size === 1 ? ['-t', ...tables] : []);
        if (code !== 0) throw failed(complaint(stderr));
        const hidden = hiddenTable(stdout);
        if (hidden !== undefined && tables.has(hidden)) {
          throw failed(
            `nft has rules in table ${hidden} that iptables cannot show: keep them in a table of another name`,
          );
        }
        return repairFor(stdout, this.#wanted, modern);
      },
      async (todo) => {
        const { code, stderr } = await run(restore, ['--noflush', ...(modern ? ['--wait', `${LOCK_WAIT}`] : [])], todo);
        return code === 0 ? undefined : complaint(stderr);
      },
      failed,
    );
  }
}

/**
 * A table that iptables-save leaves out without a failure (nf_tables, as of 1.8.4): our rules may be there already, and would be
 * made once more at every look (projectcalico/felix #2501).
 */
const hiddenTable = (saved: string): string | undefined => /^# Table `(\w+)' is incompatible/m.exec(saved)?.[1];

/** A table as iptables-save prints it. */
interface Table {
  readonly chains: ReadonlySet<string>;
  /** `-A CHAIN …`, in order. */
  readonly rules: readonly string[];
}

function tablesIn(saved: string): Map<string, Table> {
  const tables = new Map<string, { chains: Set<string>; rules: string[] }>();
  let table = { chains: new Set<string>(), rules: [] as string[] };
  for (const line of saved.split('\n')) {
    if (line.startsWith('*')) {
      table = { chains: new Set(), rules: [] };
      tables.set(line.slice(1).trim(), table);
    } else if (line.startsWith(':')) table.chains.add(line.slice(1).split(' ')[0]);
    else if (line.startsWith('-A ')) table.rules.push(line.trimEnd());
  }
  return tables;
}

/**
 * What iptables-restore --noflush has to be told so that what iptables-save printed becomes what is wanted; undefined: nothing.
 */
export function repairFor(saved: string, wanted: WantedRules, randomFully = true): string | undefined {
  const tables = tablesIn(saved);
  const changes = [...wanted].map(([kind, rules]) =>
    tableRepair(tables.get(PLACES[kind].table) ?? { chains: new Set(), rules: [] }, kind, rules, randomFully),
  );
  return changes.join('') || undefined;
}

function tableRepair(have: Table, kind: RuleKind, rules: readonly Rule[], randomFully: boolean): string {
  const { table, hook, chain } = PLACES[kind];
  const comment = `-m comment --comment "${COMMENTS[kind]}"`;
  const ours = (of: string): string[] =>
    have.rules.filter((line) => line.startsWith(`-A ${of} `) && ` ${line} `.includes(` ${comment} `));
  const lines: string[] = [];
  const bring = (now: readonly string[], then: readonly string[]): void => {
    if (now.join('\n') === then.join('\n')) return;
    lines.push(...now.map((line) => line.replace('-A', '-D')), ...then);
  };
  const there = have.chains.has(chain);
  if (rules.length > 0 && !there) lines.push(`:${chain} - [0:0]`); // of one that is there it would take everything away
  bring(
    ours(chain),
    rules.map((rule) => textOf(chain, rule, comment, randomFully)),
  );
  bring(ours(hook), rules.length > 0 ? [`-A ${hook} ${comment} -j ${chain}`] : []);
  if (rules.length === 0 && there && !isNeeded(have, chain, comment)) lines.push(`-X ${chain}`);
  return lines.length > 0 ? `*${table}\n${lines.join('\n')}\nCOMMIT\n` : '';
}

/** Somebody else has rules in it or leads to it. */
const isNeeded = (have: Table, chain: string, comment: string): boolean =>
  have.rules.some(
    (line) =>
      !` ${line} `.includes(` ${comment} `) &&
      (line.startsWith(`-A ${chain} `) || new RegExp(`-[jg] ${chain}( |$)`).test(line)),
  );

/** As iptables-save prints it. */
function textOf(chain: string, rule: Rule, comment: string, randomFully: boolean): string {
  const { marked, source, destination, verdict } = rule;
  const mark = `0x${MASQUERADE_MARK.toString(16)}`;
  return [
    `-A ${chain}`,
    ...(source ? [`${source.not ? '! ' : ''}-s ${source.text}`] : []),
    ...(destination ? [`${destination.not ? '! ' : ''}-d ${destination.text}`] : []),
    ...(marked ? [`-m mark --mark ${mark}/${mark}`] : []),
    comment,
    `-j ${verdict.toUpperCase()}`,
    ...(rule.randomFully && randomFully ? ['--random-fully'] : []),
  ].join(' ');
}
