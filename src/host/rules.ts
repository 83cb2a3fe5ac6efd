/**
 * The firewall rules that let an overlay's packets through and out, in flannel's words and order, whichever program makes them
 * (iptables.ts, nft.ts). Two kinds, each with a chain of its own:
 *
 *   masq      what leaves the overlay, or comes into it from this host, gets this host's address; what stays in it, or goes to
 *             our own subnet, keeps its own. Marked packets are kube-proxy's, which masquerades them itself.
 *   forward   what comes from or goes to the overlay is forwarded, where Docker and others let nothing through by default
 *
 * Ours are those that say `flanneld masq` or `flanneld forward` in a comment: flannel's own words, so that what flanneld left is
 * taken over and not doubled. All others are left alone, in our chains too.
 */

/** A prefix as control has it. */
export interface RulePrefix {
  readonly family: 4 | 6;
  /** `address/length`, canonical. */
  readonly text: string;
}

export interface RuleMatch {
  readonly text: string;
  /** All but it. */
  readonly not: boolean;
}

export interface Rule {
  /** Only packets that kube-proxy has marked (MASQUERADE_MARK). */
  readonly marked?: true;
  readonly source?: RuleMatch;
  readonly destination?: RuleMatch;
  readonly verdict: 'return' | 'accept' | 'masquerade';
  /** Of masquerading: the source port is any, not the packet's if it can be (two flows may race for it). */
  readonly randomFully?: boolean;
}

export type RuleKind = 'masq' | 'forward';

export const RULE_KINDS: readonly RuleKind[] = ['masq', 'forward'];

export const COMMENTS: Readonly<Record<RuleKind, string>> = { masq: 'flanneld masq', forward: 'flanneld forward' };

/** Bit of the packet's mark; also its mask. */
export const MASQUERADE_MARK = 0x4000;

/** What one family is to have of each kind; kinds that are not named are left as they are, those without rules are removed. */
export type WantedRules = ReadonlyMap<RuleKind, readonly Rule[]>;

/** Keeps something of this host's set-up as it has to be. */
export interface Keeper {
  /** For the log: `iptables rules`. */
  readonly what: string;
  /** Looks, and mends what is not as wanted; true when something was not. Rejects with a SetupError. */
  ensure(): Promise<boolean>;
}

const MULTICAST = { 4: '224.0.0.0/4', 6: 'ff00::/8' } as const;

const is = ({ text }: { readonly text: string }): RuleMatch => ({ text, not: false });
const isNot = ({ text }: { readonly text: string }): RuleMatch => ({ text, not: true });

/** Rules of one family; none without a network. With several networks, what goes from one to another stays inside as well. */
export function masqRules(
  networks: readonly RulePrefix[],
  subnets: readonly RulePrefix[],
  randomFully: boolean,
): readonly Rule[] {
  if (networks.length === 0) return [];
  const masquerade = { verdict: 'masquerade', randomFully } as const;
  const pairs = subnets.flatMap((subnet) => networks.map((network) => ({ subnet, network })));
  return [
    { marked: true, verdict: 'return' },
    ...pairs.flatMap(({ subnet, network }): Rule[] => [
      { source: is(subnet), destination: is(network), verdict: 'return' },
      { source: is(network), destination: is(subnet), verdict: 'return' },
    ]),
    // From outside to us: it has come to the right host already, and may know its client by the address.
    ...pairs.map(
      ({ subnet, network }): Rule => ({ source: isNot(network), destination: is(subnet), verdict: 'return' }),
    ),
    ...networks.map(
      (network): Rule => ({
        source: is(network),
        destination: isNot({ text: MULTICAST[network.family] }),
        ...masquerade,
      }),
    ),
    ...networks.map((network): Rule => ({ source: isNot(network), destination: is(network), ...masquerade })),
  ];
}

/** Rules of one family. */
export const forwardRules = (networks: readonly RulePrefix[]): readonly Rule[] =>
  networks.flatMap((network): Rule[] => [
    { source: is(network), verdict: 'accept' },
    { destination: is(network), verdict: 'accept' },
  ]);

/** Times that a repair is tried while somebody else changes the same rules. */
const ATTEMPTS = 3;

/**
 * Looks, and if need be mends. Others change firewall rules too: between our look and our change, which then fails as a whole;
 * so it is tried again as long as what is to be done is something else each time. `plan` gives undefined when all is well,
 * `change` why it failed. True when something was done.
 */
export async function mend(
  plan: () => Promise<string | undefined>,
  change: (todo: string) => Promise<string | undefined>,
  failed: (reason: string) => Error,
): Promise<boolean> {
  let tried: string | undefined;
  let reason: string | undefined;
  for (let attempt = 1; ; attempt++) {
    const todo = await plan();
    if (todo === undefined) return tried !== undefined;
    if (todo === tried || attempt > ATTEMPTS) throw failed(reason ?? 'no reason given');
    tried = todo;
    reason = await change(todo);
    if (reason === undefined) return true;
  }
}
