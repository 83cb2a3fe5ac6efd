/**
 * What this host's firewall and routes have to say about the overlay, set at the start and kept so: looked at every few seconds,
 * since others flush, reorder and reload rules (a firewall's restart, Docker, `iptables -F`), and mended where it is not as it
 * has to be. What is right is never touched. The rules remain when we stop: traffic goes on through the kernel.
 *
 * One daemon of a network namespace may have them: they are flannel's, in chains of one name.
 */
import { BlackholeRoutes } from '../host/blackhole.js';
import { IptablesRules } from '../host/iptables.js';
import { NftRules } from '../host/nft.js';
import { forwardRules, type Keeper, masqRules, RULE_KINDS, type Rule, type RuleKind } from '../host/rules.js';
import { type Cidr, contains, parseCidr } from './cidr.js';
import type { EventLog } from './event-log.js';
import { reasonOf } from './reason.js';

export interface HostRulesOptions {
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  /** What leaves the overlay gets this host's address. */
  readonly ipMasq: boolean;
  /** Masqueraded flows get any source port. */
  readonly randomFully: boolean;
  /** The overlay's packets are forwarded whatever the firewall's default is. */
  readonly forward: boolean;
  /** Addresses of our subnets that nobody has lead nowhere. */
  readonly blackhole: boolean;
  /** Rules are made by nft, not by iptables. */
  readonly nftables: boolean;
  /** Seconds between two looks; 0: only the first. */
  readonly resync: number;
  readonly log: EventLog;
}

const FAMILIES = [4, 6] as const;

export class HostRules {
  readonly #options: HostRulesOptions;
  readonly #keepers: readonly Keeper[];
  /** Why something of it cannot be kept, by what it is. */
  readonly #troubles = new Map<string, string>();
  #looking: Promise<void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(options: HostRulesOptions) {
    this.#options = options;
    this.#keepers = keepersFor(options);
  }

  /**
   * Sets the rules, and takes away what an earlier run with other options left of them; then keeps them. When none are asked for,
   * those that are there may be somebody else's, and stay. Rejects with a SetupError: a program is missing, or refuses them.
   */
  async start(): Promise<void> {
    for (const keeper of this.#keepers) await keeper.ensure();
    for (const keeper of leftovers(this.#options)) {
      await keeper.ensure().catch((error: unknown) => {
        // Of a program that there need not be.
        this.#options.log.debug('host_rules_leftovers', { what: keeper.what, reason: reasonOf(error) });
      });
    }
    this.#plan();
  }

  /** Stops to look; resolves when none of the programs that a look runs is running any more. The rules remain. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#looking;
  }

  /** Looks, and mends what is not as it has to be; a call meanwhile waits for the same look. Never rejects. */
  look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = undefined;
    });
    return this.#looking;
  }

  #plan(): void {
    const { resync } = this.#options;
    if (this.#stopped || resync <= 0 || this.#keepers.length === 0) return;
    // From the end of one look to the next: a slow host gets no more of them than it can do.
    this.#timer = setTimeout(() => void this.look().then(() => this.#plan()), resync * 1000);
  }

  async #look(): Promise<void> {
    const { log } = this.#options;
    for (const keeper of this.#keepers) {
      if (this.#stopped) return;
      const { what } = keeper;
      try {
        if (await keeper.ensure()) log.info('host_rules_repaired', { what });
        if (this.#troubles.delete(what)) log.info('host_rules_kept_again', { what });
      } catch (error) {
        const reason = reasonOf(error);
        if (!this.#troubles.has(what)) log.error('host_rules_failed', { what, reason, effect: 'tried again' });
        this.#troubles.set(what, reason);
      }
    }
  }
}

function keepersFor(options: HostRulesOptions): Keeper[] {
  const Rules = options.nftables ? NftRules : IptablesRules;
  const keepers: Keeper[] = FAMILIES.flatMap((family) => {
    const wanted = wantedOf(options, family).filter(([, rules]) => rules.length > 0);
    return wanted.length > 0 ? [new Rules(family, new Map(wanted))] : [];
  });
  return options.blackhole ? [...keepers, blackholes(options)] : keepers;
}

/** What an earlier run may have left of what is not wanted now: to be looked at once. */
function leftovers(options: HostRulesOptions): Keeper[] {
  // Nobody else has blackhole routes of our protocol; one of a subnet that is another host's now would keep packets from it.
  const routes = options.blackhole ? [] : [blackholes({ ...options, subnets: [] })];
  if (!(options.ipMasq || options.forward || options.blackhole)) return routes;
  const [Rules, Others] = options.nftables ? [NftRules, IptablesRules] : [IptablesRules, NftRules];
  const nothing = new Map(RULE_KINDS.map((kind): [RuleKind, readonly Rule[]] => [kind, []]));
  const keepers: Keeper[] = FAMILIES.flatMap((family) => {
    const unwanted = wantedOf(options, family).filter(([, rules]) => rules.length === 0);
    return [...(unwanted.length > 0 ? [new Rules(family, new Map(unwanted))] : []), new Others(family, nothing)];
  });
  return [...keepers, ...routes];
}

function wantedOf(options: HostRulesOptions, family: 4 | 6): [RuleKind, readonly Rule[]][] {
  const { ipMasq, forward, randomFully } = options;
  const networks = options.networks.filter((network) => network.family === family);
  const subnets = options.subnets.filter((subnet) => subnet.family === family);
  return [
    ['masq', ipMasq ? masqRules(networks, subnets, randomFully) : []],
    ['forward', forward ? forwardRules(networks) : []],
  ];
}

const blackholes = ({ networks, subnets }: Pick<HostRulesOptions, 'networks' | 'subnets'>): Keeper =>
  new BlackholeRoutes({
    families: FAMILIES.filter((family) => networks.some((network) => network.family === family)),
    subnets,
    isOurs: (prefix) => isPartOf(networks, prefix),
  });

function isPartOf(networks: readonly Cidr[], prefix: string): boolean {
  try {
    const inner = parseCidr(prefix);
    return networks.some((network) => contains(network, inner));
  } catch {
    return false; // 0.0.0.0/0, say
  }
}
