/**
 * What a registry gives out: its network config, checked by flannel's rules, and the choice of a subnet from it.
 *
 * The config has one pool of subnets per family, from `min` to `max`. As in flannel the first subnet of a network is left
 * out unless `min` says otherwise (its base is the network's own address), and a network must hold at least four, each with
 * room for four addresses. Pure: who has which subnet is the store's business.
 */
import * as v from 'valibot';
import {
  type Address,
  addressOf,
  type Cidr,
  cidrOf,
  compareAddresses,
  contains,
  lastBase,
  nextBase,
  parseAddress,
  parseCidr,
} from './cidr.js';
import { DEFAULT_PORTS, type Mode } from './encapsulation.js';

/** The subnets of one network that are given out. */
export interface NetworkPool {
  readonly family: 4 | 6;
  readonly network: Cidr;
  readonly subnetLength: number;
  /** Base addresses of the first and the last subnet given out. */
  readonly min: Address;
  readonly max: Address;
}

/** What subnets are given out from. */
export interface Pools {
  /** IPv4 first; one or two, and none in layer 2. */
  readonly pools: readonly NetworkPool[];
}

export interface NetworkConfig extends Pools {
  readonly backend: { readonly type: (typeof BACKENDS)[Mode]; readonly port: number };
}

/** flannel's names of the two encapsulations. */
const BACKENDS = { l3: 'udp', l2: 'vxlan' } as const satisfies Record<Mode, string>;

/** What a registry of this configuration is for. */
export const modeOf = ({ backend }: NetworkConfig): Mode => (backend.type === BACKENDS.l2 ? 'l2' : 'l3');

/** What the options ask for. Lists have at most one entry per family; layer 2 has none in them. */
export interface ConfigWish {
  readonly mode: Mode;
  readonly networks: readonly Cidr[];
  /** One for each network in its order, or empty. */
  readonly subnetLengths: readonly number[];
  readonly mins: readonly Address[];
  readonly maxs: readonly Address[];
  readonly backend: 'udp' | undefined;
  readonly port: number | undefined;
}

const FAMILIES = [4, 6] as const;

/** The length of a subnet when nobody says; the most it may be: four addresses, for a tunnel and a bridge. */
const LENGTHS = { 4: { usual: 24, most: 30 }, 6: { usual: 64, most: 126 } } as const;
/** A network must have room for four subnets: the first is not used, and a half would leave one host. */
const LEAST_BITS = 2;

/** How many free subnets the random choice is among, as in flannel. */
export const CHOICE = 100;

const ofFamily = <T extends { readonly family: 4 | 6 }>(family: 4 | 6, items: readonly T[]): T | undefined =>
  items.find((item) => item.family === family);

/** Makes a config of what is asked for and flannel's defaults. Throws a RangeError of one line that names the option. */
export function makeNetworkConfig(wish: ConfigWish): NetworkConfig {
  const { mode, networks, subnetLengths, mins, maxs } = wish;
  const backend = { type: BACKENDS[mode], port: wish.port ?? DEFAULT_PORTS[mode] };
  if (mode === 'l2') return { pools: [], backend };
  if (networks.length === 0) throw new RangeError('--network: missing: expected a prefix, e.g. 10.5.0.0/16');
  if (subnetLengths.length > 0 && subnetLengths.length !== networks.length) {
    throw new RangeError(`--subnet-len ${subnetLengths}: expected one for each of --network ${texts(networks)}`);
  }
  for (const [flag, addresses] of [['--subnet-min', mins] as const, ['--subnet-max', maxs] as const]) {
    const stray = addresses.find(({ family }) => !ofFamily(family, networks));
    if (stray) throw new RangeError(`${flag} ${stray.text}: there is no IPv${stray.family} --network`);
  }
  const pools = FAMILIES.flatMap((family) => {
    const at = networks.findIndex((network) => network.family === family);
    return at < 0
      ? []
      : [makePool(networks[at], subnetLengths[at], ofFamily(family, mins), ofFamily(family, maxs), FLAGS)];
  });
  return { pools, backend };
}

/** What the parts of a pool are called where they came from. */
export interface PoolNames {
  readonly network: string;
  readonly length: string;
  readonly min: string;
  readonly max: string;
}

const FLAGS: PoolNames = {
  network: '--network',
  length: '--subnet-len',
  min: '--subnet-min',
  max: '--subnet-max',
};

/** Makes a pool by flannel's defaults and checks. Throws a RangeError of one line that calls its parts by `names`. */
export function makePool(
  network: Cidr,
  wishedLength: number | undefined,
  wishedMin: Address | undefined,
  wishedMax: Address | undefined,
  names: PoolNames,
): NetworkPool {
  const { family } = network;
  const { usual, most } = LENGTHS[family];
  const least = network.length + LEAST_BITS;
  const where = `${names.network} ${network.text}`;
  if (least > most) {
    throw new RangeError(
      `${where}: too small for four subnets of four addresses: expected /${most - LEAST_BITS} or larger`,
    );
  }
  const subnetLength = wishedLength ?? Math.max(usual, least);
  if (!Number.isInteger(subnetLength) || subnetLength < least || subnetLength > most) {
    throw new RangeError(`${names.length} ${subnetLength}: expected ${least} to ${most} for ${where}`);
  }
  const check = (name: string, address: Address): Address => {
    if (!contains(network, cidrOf(address.bytes, subnetLength))) {
      throw new RangeError(`${name} ${address.text}: expected an address in ${where}`);
    }
    const base = addressOf(cidrOf(address.bytes, subnetLength).bytes);
    if (base.text === address.text) return address;
    throw new RangeError(`${name} ${address.text}: expected the first address of a /${subnetLength} (${base.text}?)`);
  };
  const second = nextBase({ bytes: network.bytes, length: subnetLength });
  const min = wishedMin ? check(names.min, wishedMin) : addressOf(second ?? network.bytes);
  const max = wishedMax ? check(names.max, wishedMax) : addressOf(lastBase(network, subnetLength));
  if (compareAddresses(min.bytes, max.bytes) > 0) {
    throw new RangeError(`${names.max} ${max.text}: below the first subnet that is given out, ${min.text}`);
  }
  return { family, network, subnetLength, min, max };
}

const texts = (items: readonly { readonly text: string }[]): string => items.map(({ text }) => text).join();

/** What the wish asks for and the config has otherwise, as one line; undefined: nothing. What it leaves open agrees. */
export function disagreement(config: NetworkConfig, wish: ConfigWish): string | undefined {
  const differs = (flag: string, wished: string, found: string): string | undefined =>
    wished === found ? undefined : `${flag} ${wished}, but the registry says ${found}`;

  const mode = differs('--mode', wish.mode, modeOf(config));
  if (mode !== undefined) return mode;
  const { networks, subnetLengths, port } = wish;
  const pools = FAMILIES.flatMap((family) => ofFamily(family, config.pools) ?? []);
  const wished = FAMILIES.flatMap((family) => ofFamily(family, networks) ?? []);
  const found: (string | undefined)[] = [];
  if (networks.length > 0) found.push(differs('--network', texts(wished), texts(pools.map(({ network }) => network))));
  if (subnetLengths.length > 0) {
    // In the order of --network, which is how they were given.
    const order = networks.length === pools.length ? networks : pools;
    const lengths = order.map(({ family }) => ofFamily(family, pools)?.subnetLength);
    found.push(differs('--subnet-len', subnetLengths.join(), lengths.join()));
  }
  for (const [flag, end] of [['--subnet-min', 'min'] as const, ['--subnet-max', 'max'] as const]) {
    for (const { family, text } of wish[`${end}s`]) {
      found.push(differs(flag, text, ofFamily(family, pools)?.[end].text ?? `nothing of IPv${family}`));
    }
  }
  if (wish.backend !== undefined) found.push(differs('--backend', wish.backend, config.backend.type));
  if (port !== undefined) found.push(differs('--port', String(port), String(config.backend.port)));
  return found.find((line) => line !== undefined);
}

/** Keys of flannel's JSON, by family. */
export const KEYS = {
  4: { enable: 'EnableIPv4', network: 'Network', length: 'SubnetLen', min: 'SubnetMin', max: 'SubnetMax' },
  6: {
    enable: 'EnableIPv6',
    network: 'IPv6Network',
    length: 'IPv6SubnetLen',
    min: 'IPv6SubnetMin',
    max: 'IPv6SubnetMax',
  },
} as const;

/** The config as flannel writes it. */
export function configToJson(config: NetworkConfig): unknown {
  const { type, port } = config.backend;
  const json: Record<string, unknown> = {};
  for (const family of FAMILIES) {
    const keys = KEYS[family];
    const pool = ofFamily(family, config.pools);
    json[keys.enable] = pool !== undefined;
    if (!pool) continue;
    json[keys.network] = pool.network.text;
    json[keys.length] = pool.subnetLength;
    json[keys.min] = pool.min.text;
    json[keys.max] = pool.max.text;
  }
  return { ...json, Backend: { Type: type, Port: port } };
}

/** A text that `parse` takes. */
const parsed = <T>(parse: (text: string) => T) =>
  v.pipe(
    v.string(),
    v.rawTransform<string, T>(({ dataset, addIssue, NEVER }) => {
      try {
        return parse(dataset.value);
      } catch (error) {
        addIssue({ message: error instanceof RangeError ? error.message : String(error) });
        return NEVER;
      }
    }),
  );

const network = v.optional(parsed(parseCidr));
const length = v.optional(v.number());
const address = v.optional(parsed(parseAddress));

/** Keys that are not ours are flannel's other settings: they change nothing here. */
const configSchema = v.object({
  EnableIPv4: v.optional(v.boolean(), true),
  EnableIPv6: v.optional(v.boolean(), false),
  Network: network,
  SubnetLen: length,
  SubnetMin: address,
  SubnetMax: address,
  IPv6Network: network,
  IPv6SubnetLen: length,
  IPv6SubnetMin: address,
  IPv6SubnetMax: address,
  Backend: v.optional(
    v.object({
      Type: v.picklist(Object.values(BACKENDS)),
      Port: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65535))),
    }),
    { Type: 'udp' },
  ),
});

/** Reads what `configToJson` or flannel's users wrote. Throws a RangeError of one line that names the key. */
export function configFromJson(json: unknown): NetworkConfig {
  const result = v.safeParse(configSchema, json);
  if (!result.success) {
    const issue = result.issues[0];
    throw new RangeError([v.getDotPath(issue), issue.message].filter(Boolean).join(': '));
  }
  const values = result.output;
  const pools = FAMILIES.flatMap((family) => {
    const keys = KEYS[family];
    if (!values[keys.enable]) return [];
    const [network, min, max] = [values[keys.network], values[keys.min], values[keys.max]];
    if (!network) throw new RangeError(`${keys.network}: missing`);
    for (const [key, item] of [[keys.network, network] as const, [keys.min, min] as const, [keys.max, max] as const]) {
      if (item && item.family !== family) throw new RangeError(`${key}: ${item.text} is not IPv${family}`);
    }
    return [makePool(network, values[keys.length], min, max, keys)];
  });
  const { Type: type, Port } = values.Backend;
  const mode = type === BACKENDS.l2 ? 'l2' : 'l3';
  if (mode === 'l3' && pools.length === 0) throw new RangeError('EnableIPv4 and EnableIPv6 are both false');
  if (mode === 'l2' && pools.length > 0) {
    throw new RangeError(
      `Backend.Type: ${type} is for layer 2, which has no networks: expected ${BACKENDS.l3}, or EnableIPv4 and EnableIPv6 false`,
    );
  }
  return { pools, backend: { type, port: Port ?? DEFAULT_PORTS[mode] } };
}

/** True when these are what the config could have given out: one of each pool, and nothing else. */
export function fits(subnets: readonly Cidr[], config: Pools): boolean {
  return (
    subnets.length === config.pools.length &&
    config.pools.every(({ family, subnetLength, min, max }) => {
      const subnet = ofFamily(family, subnets);
      return (
        subnet !== undefined &&
        subnet.length === subnetLength &&
        compareAddresses(subnet.bytes, min.bytes) >= 0 &&
        compareAddresses(subnet.bytes, max.bytes) <= 0
      );
    })
  );
}

/** The subnets of a pool in order, made one at a time: an IPv6 pool may have 2^32 and more. */
export function* candidates(pool: NetworkPool): Generator<Cidr> {
  let bytes: Uint8Array | undefined = pool.min.bytes;
  while (bytes && compareAddresses(bytes, pool.max.bytes) <= 0) {
    const subnet = cidrOf(bytes, pool.subnetLength);
    yield subnet;
    bytes = nextBase(subnet);
  }
}

/**
 * One subnet of each pool: a random one of the first `choice` that are free, so that hosts that start at once seldom collide.
 * undefined: a pool is exhausted. `random` gives numbers from 0 to below 1.
 */
export function chooseSubnets(
  config: Pools,
  isTaken: (subnet: Cidr) => boolean,
  random: () => number,
  choice = CHOICE,
): Cidr[] | undefined {
  const chosen: Cidr[] = [];
  for (const pool of config.pools) {
    const free: Cidr[] = [];
    for (const subnet of candidates(pool)) {
      if (!isTaken(subnet)) free.push(subnet);
      if (free.length === choice) break;
    }
    if (free.length === 0) return undefined;
    chosen.push(free[Math.floor(random() * free.length)]);
  }
  return chosen;
}
