/**
 * Which interface is the underlay's, in flannel's order (pkg/ipmatch): the names and addresses that were given, the first that
 * will do; else the expressions, each against addresses and then names; else the one on the way to an address. With none of
 * these: the one that has the public address, or that the default route leads to.
 *
 * An interface will do when it has an address of each family that is needed; one that has not is passed over if there are others to try.
 */
import { isIP } from 'node:net';
import { SetupError } from '../io/setup-error.js';
import { defaultRouteDevice, type Link, readLinks, routeTo, usableAddresses } from './links.js';

export interface InterfaceWish {
  /** Names, or addresses in canonical text. */
  readonly names: readonly string[];
  readonly expressions: readonly RegExp[];
  /** An address, canonical text. */
  readonly canReach: string | undefined;
  /** Public addresses, canonical text. */
  readonly addresses: readonly string[];
  /** The public addresses may be another device's, which translates them to ours. */
  readonly outside: boolean;
  /** An address of each is needed; empty: any will do. */
  readonly families: readonly (4 | 6)[];
}

export interface InterfaceChoice {
  readonly link: Link;
  /** That it was chosen by; undefined: any of the interface's will do. */
  readonly address: string | undefined;
}

/** Why one will not do, and what to do about it. */
interface Problem {
  readonly code: string;
  readonly what: string;
  readonly remedy: string;
}

type Candidate = InterfaceChoice | Problem;

/** Rejects with a SetupError of one line: none will do. */
export async function chooseInterface(wish: InterfaceWish): Promise<InterfaceChoice> {
  const links = (await readLinks()) ?? [];
  const problems: Problem[] = [];
  for await (const candidate of candidates(wish, links)) {
    const problem = 'code' in candidate ? candidate : lackOf(candidate, wish);
    if (problem) problems.push(problem);
    else if ('link' in candidate) return candidate;
  }
  const [first] = problems;
  const remedies = [...new Set(problems.map(({ remedy }) => remedy))];
  throw new SetupError(first.code, `${problems.map(({ what }) => what).join('; ')}: ${remedies.join(', or ')}`);
}

/** At least one, in the order in which they are tried. */
async function* candidates(wish: InterfaceWish, links: readonly Link[]): AsyncGenerator<Candidate> {
  const { names, expressions, canReach, addresses, outside } = wish;
  for (const name of names) yield named(name, links);
  for (const expression of expressions) yield* matching(expression, wish.families, links);
  if (canReach !== undefined) yield await reaching(canReach, links);
  if (names.length > 0 || expressions.length > 0 || canReach !== undefined) return;
  if (addresses.length === 0) yield* ofDefaultRoutes(wish.families, links);
  else yield having(addresses, outside, links);
}

const withAddress = (links: readonly Link[], address: string): Link | undefined =>
  links.find((link) => link.addresses.some(({ text }) => text === address));

const withName = (links: readonly Link[], name: string): Link | undefined =>
  links.find((link) => link.name === name || link.altNames.includes(name));

function named(name: string, links: readonly Link[]): Candidate {
  if (isIP(name)) {
    const link = withAddress(links, name);
    if (link) return { link, address: name };
    return { code: 'NO_ADDRESS', what: `${name} is not an address of this host`, remedy: 'check --iface' };
  }
  const link = withName(links, name);
  if (link) return { link, address: undefined };
  return { code: 'NO_INTERFACE', what: `interface ${name} does not exist`, remedy: 'check --iface' };
}

function* matching(expression: RegExp, families: readonly (4 | 6)[], links: readonly Link[]): Generator<Candidate> {
  const wanted = families.length > 0 ? families : ([4, 6] as const);
  const eligible = links.filter((link) => !link.loopback && !isOverlay(link));
  let found = false;
  for (const family of wanted) {
    for (const link of eligible) {
      for (const address of usableAddresses(link)) {
        if (address.family !== family || !expression.test(address.text)) continue;
        found = true;
        yield { link, address: address.text };
      }
    }
  }
  for (const link of eligible) {
    if (!expression.test(link.name)) continue;
    found = true;
    yield { link, address: undefined };
  }
  if (found) return;
  yield {
    code: 'NO_INTERFACE',
    what: `${expression.source} matches none of the interfaces (${eligible.map(described).join(', ') || 'there is none'})`,
    remedy: 'check --iface-regex',
  };
}

const MOST_DESCRIBED = 3;

const described = (link: Link): string =>
  [
    link.name,
    ...usableAddresses(link)
      .slice(0, MOST_DESCRIBED)
      .map(({ text }) => text),
  ].join(' ');

/** Ours and flannel's: what an earlier run left must not become its own underlay. */
const isOverlay = (link: Link): boolean =>
  link.alias?.split(' ')[0] === 'weft' || /^flannel(-v6)?[.\d]/.test(link.name);

async function reaching(address: string, links: readonly Link[]): Promise<Candidate> {
  const route = await routeTo(address);
  const remedy = 'check --iface-can-reach';
  if (route?.local) return { code: 'NO_INTERFACE', what: `${address} is an address of this host`, remedy };
  const link = route && withName(links, route.device);
  if (link) return { link, address: route.source };
  return { code: 'NO_INTERFACE', what: `this host has no route to ${address}`, remedy };
}

function having(addresses: readonly string[], outside: boolean, links: readonly Link[]): Candidate {
  for (const address of addresses) {
    const link = withAddress(links, address);
    if (link) return { link, address };
  }
  return {
    code: 'NO_ADDRESS',
    what: `${addresses.join(' and ')} is not an address of this host`,
    remedy: outside ? 'check --public-ip, or name the interface with --iface' : 'check --public-ip',
  };
}

async function* ofDefaultRoutes(families: readonly (4 | 6)[], links: readonly Link[]): AsyncGenerator<Candidate> {
  let found = false;
  for (const family of families.length > 0 ? families : ([4, 6] as const)) {
    const device = await defaultRouteDevice(family);
    const link = device === undefined ? undefined : withName(links, device);
    if (!link) continue;
    found = true;
    yield { link, address: undefined };
  }
  if (found) return;
  yield {
    code: 'NO_INTERFACE',
    what: 'this host has no default route to tell the interface by',
    remedy: 'name it with --iface',
  };
}

/** Why an interface will not do; undefined: it will. Public addresses are its own, as far as is known, unless they are outside. */
function lackOf(
  { link, address }: InterfaceChoice,
  { families, addresses, outside }: InterfaceWish,
): Problem | undefined {
  const given = [...(address === undefined ? [] : [address]), ...(outside ? [] : addresses)];
  const has = new Set([
    ...usableAddresses(link).map(({ family }) => family),
    ...given.map((text): 4 | 6 => (isIP(text) === 4 ? 4 : 6)),
  ]);
  const remedy = 'give it one, or choose --iface or --public-ip';
  if (has.size === 0) return { code: 'NO_ADDRESS', what: `interface ${link.name} has no address`, remedy };
  const lacking = families.filter((family) => !has.has(family));
  if (lacking.length === 0) return undefined;
  const which = lacking.map((family) => `IPv${family}`).join(' and no ');
  return {
    code: 'NO_ADDRESS',
    what: `interface ${link.name} has no ${which} address, which the network config wants`,
    remedy: 'give it one, or choose another --iface',
  };
}
