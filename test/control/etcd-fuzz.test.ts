/**
 * What etcd may say that flannel never would: configs and leases of every kind of nonsense, and such as are nearly right. Whoever reads
 * them must come to one of two ends, all of what was meant or one line that says why not, and never to anything between. Where flannel's
 * rules say what is meant, a second reader, written from those alone, says the same.
 *
 *   WEFT_FUZZ_SEED=n     the seed of all properties (a failure prints its own, and what it came down to)
 */
import fc from 'fast-check';
import t from 'tap';
import { parseCidr, parseHostAddress } from '../../src/control/cidr.js';
import type { KeyValue } from '../../src/control/etcd-client.js';
import { EtcdLeases } from '../../src/control/etcd-leases.js';
import { type FlannelConfig, readFlannelConfig } from '../../src/control/flannel-config.js';
import { formatLease, formatLeaseKey, parseLease, parseLeaseKey } from '../../src/control/flannel-lease.js';
import { type HostRouting, planFor } from '../../src/control/plan.js';
import { makeRecord, type PeerRecord } from '../../src/control/records.js';
import { TestLog, until } from '../lib/embedded.js';
import { Etcd, etcdMissing } from '../lib/etcd.js';
import { EtcdNode, NodeFolders } from '../lib/etcd-nodes.js';

t.setTimeout(0);

const FULL = process.env.WEFT_TEST_FULL === '1';
const SEED = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 1e9);
t.comment(`WEFT_FUZZ_SEED=${SEED}`);

/** Cases of one property; all of them together are 10^5, in the long version ten times that. */
const runs = (thousands: number): fc.Parameters<unknown> => ({
  seed: SEED,
  numRuns: thousands * 1000 * (FULL ? 10 : 1),
  verbose: 0,
});

// --- errors ---

/** One line, which a terminal and a log can show, and which nobody has to scroll through. */
function assertReadable(error: unknown): void {
  if (!(error instanceof Error)) throw new Error(`threw what is no error: ${String(error)}`);
  if (error.name !== 'SetupError' && error.name !== 'RangeError') {
    throw new Error(`${error.name}, which nobody expects: ${error.message}`, { cause: error });
  }
  const { message } = error;
  if (/\p{Cc}/u.test(message)) throw new Error(`not one line: ${JSON.stringify(message)}`);
  if (message.length === 0 || message.length > 500)
    throw new Error(`${message.length} letters: ${message.slice(0, 200)}`);
  if (/call stack|undefined|\[object|NaN|cannot read prop|is not a function|not iterable/i.test(message)) {
    throw new Error(`not for an operator: ${message}`);
  }
}

/** The result, or undefined and an error that can be read. */
function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    assertReadable(error);
    return undefined;
  }
}

// --- texts ---

/** A key with letters of either case, as Go reads it. */
const inAnyCase = (key: string): fc.Arbitrary<string> =>
  fc.bigInt({ min: 0n, max: (1n << BigInt(key.length)) - 1n }).map((bits) => {
    return [...key].map((c, i) => ((bits >> BigInt(i)) & 1n ? c.toUpperCase() : c.toLowerCase())).join('');
  });

const anyCase = (key: string): fc.Arbitrary<string> =>
  fc.oneof({ arbitrary: fc.constant(key), weight: 3 }, { arbitrary: inAnyCase(key), weight: 1 });

/** UTF-16 units as they come, lone surrogates among them; as JSON, escaped or not. */
const oddString = fc
  .array(
    fc.oneof(
      fc.integer({ min: 0, max: 0xffff }),
      fc.integer({ min: 0xd800, max: 0xdfff }),
      fc.integer({ min: 0, max: 127 }),
    ),
    {
      maxLength: 12,
    },
  )
  .map((units) => String.fromCharCode(...units));

const PROTOTYPE_KEYS = [
  '__proto__',
  'constructor',
  'prototype',
  'toString',
  'hasOwnProperty',
  'valueOf',
  'then',
  'length',
];

const oddNumber = fc.constantFrom(
  ...[
    '-1',
    '0',
    '1e400',
    '-1e400',
    '1e-400',
    '9007199254740993',
    '18446744073709551616',
    '24.5',
    '2.4e1',
    '-0',
    '4294967320',
  ],
  `1${'0'.repeat(400)}`,
);

/** JSON of any kind, nested a little. */
const oddJson: fc.Arbitrary<string> = fc.letrec<{ value: string }>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.constantFrom('null', 'true', 'false', '""', '{}', '[]', '"10.5.0.0/16"', '"vxlan"'),
    oddNumber,
    oddString.map((text) => JSON.stringify(text)),
    fc.array(tie('value'), { maxLength: 3 }).map((items) => `[${items.join(',')}]`),
    fc
      .array(
        fc.tuple(
          fc.oneof(fc.constantFrom(...PROTOTYPE_KEYS, 'Type', 'VNI', 'VtepMAC', 'PublicIP'), oddString),
          tie('value'),
        ),
        {
          maxLength: 3,
        },
      )
      .map((members) => `{${members.map(([key, value]) => `${JSON.stringify(key)}:${value}`).join(',')}}`),
  ),
})).value;

/** A text with a piece that was lost, doubled, or became another; and where it was cut off. */
const damaged = (texts: fc.Arbitrary<string>): fc.Arbitrary<string> =>
  fc
    .tuple(
      texts,
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.nat(6),
      fc.oneof(oddString, fc.constantFrom('"', '\\', '{', '}', ',', ':', '\u0000', '\n', '\u2028')),
      fc.nat(4),
    )
    .map(([text, where, length, other, kind]) => {
      const at = Math.floor(where * text.length);
      const [before, piece, after] = [text.slice(0, at), text.slice(at, at + length), text.slice(at + length)];
      if (kind === 0) return before + after;
      if (kind === 1) return before + piece + piece + after;
      if (kind === 2) return before + other + after;
      if (kind === 3) return before + other + piece + after;
      return before;
    });

/** Bytes as etcd may have them, read as text. */
const bytesAsText = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes).toString());

/** Nested until most readers give up, and texts of the size of etcd's limit. */
const EXTREMES: readonly string[] = [
  '['.repeat(100_000),
  '['.repeat(100_000) + ']'.repeat(100_000),
  '{"a":'.repeat(100_000),
  `${'{"Backend":'.repeat(50_000)}null${'}'.repeat(50_000)}`,
  `{"Network":${'['.repeat(3000)}${']'.repeat(3000)}}`,
  `{"Network":"${'1'.repeat(1_400_000)}"}`,
  `{"PublicIP":"${'9'.repeat(1_400_000)}"}`,
  `{"${'k'.repeat(1_400_000)}":1}`,
  `{"Network":"10.5.0.0/16","Backend":{"Type":"${'x'.repeat(1_400_000)}"}}`,
  `{"PublicIP":"192.168.77.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"${'a'.repeat(1_400_000)}"}}`,
  `{"Network":"10.5.0.0/16","SubnetLen":${'9'.repeat(1_400_000)}}`,
  `{${'"a":1,'.repeat(200_000)}"Network":"10.5.0.0/16"}`,
  `{"Network":"${'\\u0000'.repeat(200_000)}"}`,
  `{"Network":"10.5.0.0/16"${' '.repeat(1_400_000)}}`,
  '"'.repeat(100_000),
  '\ufeff{"Network":"10.5.0.0/16"}',
  'null',
  'true',
  '[]',
  '',
  '\u0000',
];

// --- a second reader of configs ---

type Family = 4 | 6;
const BITS = { 4: 32n, 6: 128n } as const;

const KEYS = {
  4: { enable: 'EnableIPv4', network: 'Network', length: 'SubnetLen', min: 'SubnetMin', max: 'SubnetMax' },
  6: {
    enable: 'EnableIPv6',
    network: 'IPv6Network',
    length: 'IPv6SubnetLen',
    min: 'IPv6SubnetMin',
    max: 'IPv6SubnetMax',
  },
} as const;

function textOf(family: Family, value: bigint): string {
  const parts = (count: number, bits: number, radix: number): string[] =>
    Array.from({ length: count }, (_, i) =>
      ((value >> BigInt((count - 1 - i) * bits)) & ((1n << BigInt(bits)) - 1n)).toString(radix),
    );
  return family === 4 ? parts(4, 8, 10).join('.') : parts(8, 16, 16).join(':');
}

const numberOf = (bytes: Uint8Array): bigint => bytes.reduce((value, byte) => (value << 8n) | BigInt(byte), 0n);

const masked = (family: Family, value: bigint, length: number): bigint => {
  const host = BITS[family] - BigInt(length);
  return (value >> host) << host;
};

/** What a config says of a family; undefined: nothing. */
interface FamilySpec {
  readonly enable: boolean | null | undefined;
  readonly network: { readonly address: bigint; readonly length: number } | undefined;
  readonly length: number | undefined;
  readonly min: bigint | undefined;
  readonly max: bigint | undefined;
}

interface BackendSpec {
  readonly type: string;
  readonly port: number | undefined;
  readonly vni: number | undefined;
  readonly learning: boolean | undefined;
  readonly direct: boolean | undefined;
}

interface ConfigSpec {
  readonly families: Readonly<Record<Family, FamilySpec>>;
  readonly nftables: boolean | undefined;
  readonly backend: BackendSpec | undefined;
}

interface ReadPool {
  readonly family: Family;
  readonly network: bigint;
  readonly networkLength: number;
  readonly subnetLength: number;
  readonly min: bigint;
  readonly max: bigint;
}

/** By flannel's rules; undefined: it must be refused. */
function poolOf(family: Family, spec: FamilySpec): ReadPool | undefined {
  if (!spec.network) return undefined;
  const networkLength = spec.network.length;
  const network = masked(family, spec.network.address, networkLength);
  const [usual, most] = family === 4 ? [24, 30] : [64, 126];
  let subnetLength = spec.length ?? 0;
  if (subnetLength === 0) {
    if (networkLength > most - 2) return undefined;
    subnetLength = networkLength <= usual - 2 ? usual : networkLength + 2;
  } else if (subnetLength > most || subnetLength < networkLength + 2) return undefined;
  const step = 1n << (BITS[family] - BigInt(subnetLength));
  const end = network + (1n << (BITS[family] - BigInt(networkLength)));
  const min = spec.min || network + step;
  const max = spec.max || end - step;
  for (const one of [min, max]) if (one < network || one >= end || one % step !== 0n) return undefined;
  if (min > max) return undefined;
  return { family, network, networkLength, subnetLength, min, max };
}

function poolsOf({ families }: ConfigSpec): ReadPool[] | undefined {
  const enabled = [families[4].enable ?? true, families[6].enable ?? false];
  const pools = ([4, 6] as const).filter((_, i) => enabled[i]).map((family) => poolOf(family, families[family]));
  return pools.length === 0 || pools.includes(undefined) ? undefined : (pools as ReadPool[]);
}

const poolsIn = ({ pools }: FlannelConfig): ReadPool[] =>
  pools.map(({ family, network, subnetLength, min, max }) => ({
    family,
    network: numberOf(network.bytes),
    networkLength: network.length,
    subnetLength,
    min: numberOf(min.bytes),
    max: numberOf(max.bytes),
  }));

const say = (value: unknown): string =>
  JSON.stringify(value, (_, one) => (typeof one === 'bigint' ? `0x${one.toString(16)}` : one));

/** What is so of every config that is taken, whatever it was read from. */
function assertSound(config: FlannelConfig): void {
  const { backend, pools } = config;
  const wrong = (what: string): never => {
    throw new Error(`${what}: ${say(config)}`);
  };
  if (pools.length < 1 || pools.length > 2 || new Set(pools.map(({ family }) => family)).size !== pools.length)
    wrong('pools');
  for (const pool of poolsIn(config)) {
    const spec: FamilySpec = {
      enable: true,
      network: { address: pool.network, length: pool.networkLength },
      length: pool.subnetLength,
      min: pool.min,
      max: pool.max,
    };
    if (say(poolOf(pool.family, spec)) !== say(pool)) wrong('a pool that flannel would refuse');
  }
  if (!['udp', 'vxlan', 'host-gw', 'alloc'].includes(backend.type)) wrong('backend');
  if ('port' in backend && !(Number.isInteger(backend.port) && backend.port >= 1 && backend.port <= 65535))
    wrong('port');
  if ('vni' in backend && !(Number.isInteger(backend.vni) && backend.vni >= 0 && backend.vni < 1 << 24)) wrong('VNI');
  if (typeof config.nftables !== 'boolean') wrong('nftables');
}

// --- configs that are nearly right ---

const BASES: Readonly<Record<Family, fc.Arbitrary<bigint>>> = {
  4: fc
    .tuple(fc.constantFrom(10n, 100n, 172n, 203n), fc.bigInt({ min: 0n, max: (1n << 24n) - 1n }))
    .map(([first, rest]) => (first << 24n) | rest),
  6: fc.bigInt({ min: 0n, max: (1n << 120n) - 1n }).map((rest) => (0xfdn << 120n) | rest),
};

/** Lengths are mostly such as make sense, and at the edges of it. */
const lengths = (family: Family): fc.Arbitrary<number> =>
  family === 4
    ? fc.oneof(fc.constantFrom(8, 16, 20, 22, 23, 24, 26, 28, 29, 30, 32), fc.integer({ min: 8, max: 32 }))
    : fc.oneof(fc.constantFrom(48, 56, 62, 63, 64, 120, 124, 125, 126, 128), fc.integer({ min: 8, max: 128 }));

function familySpecs(family: Family): fc.Arbitrary<FamilySpec> {
  const bits = Number(BITS[family]);
  return fc
    .record({
      enable: fc.constantFrom(undefined, undefined, true, true, null, false),
      address: BASES[family],
      networkLength: lengths(family),
      hasNetwork: fc.integer({ min: 0, max: 12 }),
      subnetLength: fc.oneof(
        fc.constant(undefined),
        fc.constant('fits' as const),
        fc.constant('fits' as const),
        fc.integer({ min: 0, max: bits + 2 }),
      ),
      more: fc.integer({ min: 2, max: 12 }),
      ends: fc.tuple(fc.nat(5), fc.nat(5), fc.nat(1 << 16), fc.nat(1 << 16)),
    })
    .map(({ enable, address, networkLength, hasNetwork, subnetLength, more, ends }): FamilySpec => {
      const length = subnetLength === 'fits' ? networkLength + more : subnetLength;
      const network = masked(family, address, networkLength);
      const size = BigInt(Math.max(0, Math.min(bits, length || networkLength + 2)));
      const step = 1n << (BITS[family] - size);
      const count = 1n << BigInt(Math.max(0, Number(size) - networkLength));
      const end = (kind: number, n: number): bigint | undefined => {
        if (kind < 2) return undefined;
        if (kind === 2) return 0n;
        if (kind === 3) return network + BigInt(n) * step; // inside or not
        return network + (BigInt(n) % count) * step + (kind === 5 && n % 4 === 0 ? 1n : 0n);
      };
      const within = (value: bigint | undefined): bigint | undefined =>
        value === undefined || value < 1n << BITS[family] ? value : undefined;
      return {
        enable,
        network: hasNetwork === 0 ? undefined : { address, length: networkLength },
        length,
        min: within(end(ends[0], ends[2])),
        max: within(end(ends[1], ends[3])),
      };
    });
}

const backendSpecs: fc.Arbitrary<BackendSpec> = fc.record({
  type: fc.constantFrom(
    'udp',
    'vxlan',
    'host-gw',
    'alloc',
    'udp',
    'vxlan',
    'ipip',
    'wireguard',
    'extension',
    'nonsense',
  ),
  port: fc.oneof(fc.constant(undefined), fc.integer({ min: 1, max: 65535 })),
  vni: fc.oneof(fc.constant(undefined), fc.integer({ min: 0, max: (1 << 24) - 1 })),
  learning: fc.constantFrom(undefined, true, false),
  direct: fc.constantFrom(undefined, true, false),
});

const configSpecs: fc.Arbitrary<ConfigSpec> = fc.record({
  families: fc.tuple(familySpecs(4), familySpecs(6)).map(([v4, v6]) => ({ 4: v4, 6: v6 })),
  nftables: fc.constantFrom(undefined, true, false),
  backend: fc.oneof(fc.constant(undefined), backendSpecs),
});

/** Members of an object, in the order in which they are written. */
type Members = readonly (readonly [key: string, json: string])[];

const memberOf = (key: string, value: unknown): Members => (value === undefined ? [] : [[key, JSON.stringify(value)]]);

function membersOf({ families, nftables, backend }: ConfigSpec): Members {
  const all = ([4, 6] as const).flatMap((family): Members => {
    const { enable, network, length, min, max } = families[family];
    const keys = KEYS[family];
    const text = (value: bigint | undefined): string | undefined =>
      value === undefined ? undefined : textOf(family, value);
    return [
      ...memberOf(keys.enable, enable),
      ...memberOf(keys.network, network && `${textOf(family, network.address)}/${network.length}`),
      ...memberOf(keys.length, length),
      ...memberOf(keys.min, text(min)),
      ...memberOf(keys.max, text(max)),
    ];
  });
  return [
    ...all,
    ...memberOf('EnableNFTables', nftables),
    ...(backend ? ([['Backend', backendJson(backend)]] as const) : []),
  ];
}

const backendJson = ({ type, port, vni, learning, direct }: BackendSpec): string => {
  const more = type === 'vxlan' ? { VNI: vni, Learning: learning, DirectRouting: direct } : {};
  return JSON.stringify({ Type: type, ...(type === 'udp' || type === 'vxlan' ? { Port: port } : {}), ...more });
};

/**
 * An object's text with its members in another order, their keys in another case, strangers among them, and of some an earlier
 * one with another value, which must not count.
 */
const written = (members: Members): fc.Arbitrary<string> =>
  fc
    .tuple(
      fc.shuffledSubarray([...members], { minLength: members.length, maxLength: members.length }),
      fc.array(fc.tuple(fc.oneof(fc.constantFrom(...PROTOTYPE_KEYS, 'Networks', 'Mtu', ''), oddString), oddJson), {
        maxLength: 2,
      }),
      fc.shuffledSubarray([...members], { maxLength: Math.min(2, members.length) }),
      fc.constantFrom('', ' ', '\n', '\t\r\n '),
    )
    .chain(([own, strangers, earlier, space]) => {
      const known = new Set(members.map(([key]) => key.toLowerCase()));
      const others = strangers.filter(([key]) => !known.has(key.toLowerCase()) && !isOurs(key));
      const all: Members = [...earlier.map(([key, json]) => [key, decoyFor(json)] as const), ...others, ...own];
      return fc.tuple(...all.map(([key]) => anyCase(key))).map((keys) => {
        const texts = all.map(([, json], i) => `${JSON.stringify(keys[i])}${space}:${space}${json}`);
        return `${space}{${texts.join(`${space},`)}${space}}${space}`;
      });
    });

/** Another value of the same kind. */
const decoyFor = (json: string): string => {
  if (json === 'null') return json; // which says nothing, so that an earlier one would count
  if (json === 'true' || json === 'false') return 'true';
  if (/^\d/.test(json)) return '25';
  return json.startsWith('{') ? '{"Type":"ipip"}' : json;
};

/** Keys that mean something to flannel, by Go's folding, in which K and S have other forms. */
const isOurs = (key: string): boolean =>
  [...Object.values(KEYS[4]), ...Object.values(KEYS[6]), 'EnableNFTables', 'Backend'].some(
    (ours) => ours.toLowerCase() === key.toUpperCase().toLowerCase(),
  );

t.test('configs that are nearly right mean what flannel’s rules say', async (t) => {
  const ends = { taken: 0, refused: 0 };
  const cases = configSpecs.chain((spec) => fc.tuple(fc.constant(spec), written(membersOf(spec))));
  fc.assert(
    fc.property(cases, ([spec, text]) => {
      const pools = poolsOf(spec);
      const type = spec.backend?.type ?? 'udp';
      const known = ['udp', 'vxlan', 'host-gw', 'alloc'].includes(type);
      const config = attempt(() => readFlannelConfig(text));
      if (!pools || !known) {
        ends.refused++;
        if (config) throw new Error(`flannel would refuse it: ${say(config)}`);
        return;
      }
      ends.taken++;
      if (!config) throw new Error(`flannel would take it: ${say(pools)}`);
      assertSound(config);
      if (say(poolsIn(config)) !== say(pools)) throw new Error(`${say(poolsIn(config))}, flannel: ${say(pools)}`);
      if (config.nftables !== (spec.nftables ?? false)) throw new Error('nftables');
      const { port, vni, learning, direct } = spec.backend ?? {};
      const want: Record<string, unknown> = { type };
      if (type === 'udp') Object.assign(want, { port: port ?? 8285 });
      if (type === 'vxlan') {
        Object.assign(want, {
          port: port ?? 8472,
          vni: vni ?? 1,
          learning: learning ?? false,
          directRouting: direct ?? false,
        });
      }
      for (const [key, value] of Object.entries(want)) {
        const have = (config.backend as unknown as Record<string, unknown>)[key];
        if (have !== value) throw new Error(`backend ${key}: ${String(have)}, flannel: ${String(value)}`);
      }
    }),
    runs(20),
  );
  t.comment(`${ends.taken} taken, ${ends.refused} refused`);
  t.ok(Math.min(ends.taken, ends.refused) > 2000, 'both of them often');
});

const CONFIG_KEYS = [
  ...Object.values(KEYS[4]),
  ...Object.values(KEYS[6]),
  'EnableNFTables',
  'Backend',
  ...PROTOTYPE_KEYS,
];

/** Right keys with anything for their values. */
const oddConfigs = fc
  .array(fc.tuple(fc.constantFrom(...CONFIG_KEYS).chain(anyCase), oddJson), { maxLength: 8 })
  .map(
    (members) =>
      `{${[['Network', '"10.5.0.0/16"'], ...members].map(([key, json]) => `${JSON.stringify(key)}:${json}`).join(',')}}`,
  );

t.test('no config ends in anything but a config or one line', async (t) => {
  let taken = 0;
  const read = (text: string): void => {
    const config = attempt(() => readFlannelConfig(text, 'etcd http://127.0.0.1:2379 /coreos.com/network/config'));
    if (!config) return;
    taken++;
    assertSound(config);
  };
  const nearly = configSpecs.chain((spec) => written(membersOf(spec)));
  fc.assert(fc.property(damaged(nearly), read), runs(10));
  fc.assert(fc.property(oddConfigs, read), runs(15));
  fc.assert(fc.property(fc.oneof(bytesAsText, oddString, oddJson), read), runs(10));
  for (const text of EXTREMES) t.doesNotThrow(() => read(text), `${text.length} letters: ${text.slice(0, 30)}`);
  t.comment(`${taken} taken`);
  t.equal(({} as Record<string, unknown>).Type, undefined, 'and nobody changed the prototype of everything');
});

// --- leases ---

const subnet4 = fc
  .tuple(BASES[4], fc.integer({ min: 8, max: 30 }))
  .map(([address, length]) => parseCidr(`${textOf(4, masked(4, address, length))}/${length}`));
const subnet6 = fc
  .tuple(BASES[6], fc.integer({ min: 8, max: 126 }))
  .map(([address, length]) => parseCidr(`${textOf(6, masked(6, address, length))}/${length}`));

const subnetsOfLease = fc.oneof(
  subnet4.map((one) => [one]),
  fc.tuple(subnet4, subnet6).map((both) => [...both]),
  subnet6.map((one) => [one]),
);

t.test('keys of leases', async (t) => {
  fc.assert(
    fc.property(subnetsOfLease, (subnets) => {
      const key = formatLeaseKey(subnets);
      const found = parseLeaseKey(key).map(({ text }) => text);
      if (found.join() !== subnets.map(({ text }) => text).join()) throw new Error(`${key}: ${found}`);
    }),
    runs(5),
  );
  let taken = 0;
  const read = (key: string): void => {
    const subnets = attempt(() => parseLeaseKey(key));
    if (!subnets) return;
    taken++;
    // One subnet has one key: what was read is written the same way.
    if (formatLeaseKey(subnets) !== key) throw new Error(`${key} is another's key: ${formatLeaseKey(subnets)}`);
    if (subnets.length === 0 || new Set(subnets.map(({ family }) => family)).size !== subnets.length)
      throw new Error(key);
  };
  const octet = fc.oneof(
    fc.integer({ min: 0, max: 300 }).map(String),
    fc.constantFrom('010', '', '0x1', '1e2', '-1', '٣'),
  );
  const plausible = fc
    .tuple(octet, octet, octet, octet, fc.integer({ min: -1, max: 40 }), fc.constantFrom('.', '-', ' ', 'x'))
    .map(([a, b, c, d, length, dot]) => `${a}.${b}${dot}${c}.${d}-${length}`);
  fc.assert(
    fc.property(fc.oneof(damaged(subnetsOfLease.map(formatLeaseKey)), plausible, bytesAsText, oddString), read),
    runs(10),
  );
  t.comment(`${taken} taken`);
  t.ok(taken > 100, 'some of them are keys');
});

const macs = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((bytes) => {
  bytes[0] = (bytes[0] | 2) & ~1;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
});

const hosts4 = fc.integer({ min: 1, max: 0xfffffe }).map((rest) => textOf(4, (10n << 24n) | BigInt(rest)));
const hosts6 = BASES[6].map((value) => textOf(6, value));

const leaseMembers: fc.Arbitrary<Members> = fc
  .record({
    ip: hosts4,
    ipv6: fc.oneof(fc.constant(null), hosts6),
    type: fc.constantFrom(undefined, 'vxlan', 'host-gw', 'udp', 'ipip'),
    mac: macs,
    mac6: fc.oneof(fc.constant(undefined), macs),
    vni: fc.integer({ min: 0, max: (1 << 24) - 1 }),
  })
  .map(({ ip, ipv6, type, mac, mac6, vni }) => [
    ...memberOf('PublicIP', ip),
    ...memberOf('PublicIPv6', ipv6),
    ...memberOf('BackendType', type),
    ...(type === 'vxlan' ? memberOf('BackendData', { VNI: vni, VtepMAC: mac }) : []),
    ...(type === 'vxlan' && mac6 ? memberOf('BackendV6Data', { VNI: vni, VtepMAC: mac6 }) : []),
  ]);

const GOOD_MAC = '02:00:00:00:00:01';
const LEASE_KEYS = ['PublicIP', 'PublicIPv6', 'BackendType', 'BackendData', 'BackendV6Data', ...PROTOTYPE_KEYS];

t.test('values of leases', async (t) => {
  const text = (members: Members): string => `{${members.map(([key, json]) => `"${key}":${json}`).join(',')}}`;
  const jsonOf = (members: Members, key: string): unknown => {
    const found = members.find(([one]) => one === key);
    return found && JSON.parse(found[1]);
  };
  fc.assert(
    fc.property(leaseMembers, (members) => {
      const lease = parseLease(text(members));
      const data = jsonOf(members, 'BackendData') as { VNI: number; VtepMAC: string } | undefined;
      if (lease.publicIp?.text !== jsonOf(members, 'PublicIP')) throw new Error('PublicIP');
      if ((lease.publicIpv6 === undefined) !== (jsonOf(members, 'PublicIPv6') === null)) throw new Error('PublicIPv6');
      if (lease.backendType !== (jsonOf(members, 'BackendType') ?? '')) throw new Error('BackendType');
      if (lease.macs[4] !== data?.VtepMAC || (data && lease.vni !== data.VNI)) throw new Error('BackendData');
      // Byte for byte, but for the text of an IPv6 address, of which there are several.
      if (lease.publicIpv6 === undefined && formatLease(lease) !== text(members)) throw new Error(formatLease(lease));
      const again = parseLease(formatLease(lease));
      if (say(again) !== say(lease)) throw new Error(`${say(again)} was ${say(lease)}`);
    }),
    runs(10),
  );
  let taken = 0;
  const read = (value: string): void => {
    const lease = attempt(() => parseLease(value));
    if (!lease) return;
    taken++;
    if (lease.publicIp && lease.publicIp.family !== 4) throw new Error('PublicIP');
    if (lease.publicIpv6 && lease.publicIpv6.family !== 6) throw new Error('PublicIPv6');
    if (typeof lease.backendType !== 'string') throw new Error('BackendType');
    const { 4: mac = GOOD_MAC, 6: mac6 = GOOD_MAC } = lease.macs;
    if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/.test(mac) || mac.length !== mac6.length) throw new Error(`${mac} ${mac6}`);
    if (lease.vni !== undefined && !Number.isSafeInteger(lease.vni)) throw new Error('VNI');
  };
  const oddLeases = fc
    .tuple(leaseMembers, fc.array(fc.tuple(fc.constantFrom(...LEASE_KEYS).chain(anyCase), oddJson), { maxLength: 4 }))
    .map(([members, odd]) => text([...members, ...odd.map(([key, json]) => [key, json] as const)]));
  fc.assert(fc.property(damaged(leaseMembers.map(text)), read), runs(5));
  fc.assert(fc.property(oddLeases, read), runs(10));
  fc.assert(fc.property(fc.oneof(bytesAsText, oddString, oddJson), read), runs(5));
  for (const value of EXTREMES) t.doesNotThrow(() => read(value), `${value.length} letters: ${value.slice(0, 30)}`);
  t.comment(`${taken} taken`);
  t.ok(taken > 100, 'some of them are leases');
});

// --- sets of leases ---

/** Few of each, so that they meet. */
const WORLD = {
  keys: [
    ...[0, 1, 2, 3, 4, 5].map((i) => `10.5.${i}.0-24`),
    ...['10.5.0.0-16', '10.5.1.128-25', '10.5.1.0-32', '10.6.1.0-24', '10.5.2.1-24', 'nonsense', ''],
    ...[1, 2, 3].flatMap((i) => [`10.5.${i}.0-24&fd00:5:0:${i}::-64`, `10.5.${i + 3}.0-24&fd00:5:0:${i}::-64`]),
    ...['0.0.0.0-0&fd00:5:0:1::-64', '0.0.0.0-0&fd00:5:0:4::-64', '10.5.3.0-24&fd00:6::-64', '10.5.3.0-24&fd00:5::-48'],
  ],
  addresses4: [...[1, 2, 3, 4, 5, 6, 7].map((i) => `192.168.77.${i}`), '10.5.3.3', '224.0.0.1', '0.0.0.0'],
  addresses6: [...[1, 2, 3, 4, 5, 6, 7].map((i) => `fd77::${i}`), 'fd00:5::9', 'ff02::1'],
  macs: [
    ...[1, 2, 3, 4, 5, 6].map((i) => `02:00:00:00:00:0${i}`),
    ...['02-00-00-00-00-03', '01:00:5e:00:00:01', '00:00:00:00:00:00', 'x'],
  ],
} as const;

const OWN_LEASE = { key: '10.5.0.0-24&fd00:5::-64', subnets: ['10.5.0.0/24', 'fd00:5::/64'].map(parseCidr) };
const OWN_ADDRESSES = ['192.168.77.1', 'fd77::1'].map(parseHostAddress);

const CLUSTERS = [
  '{"Network":"10.5.0.0/16"}',
  '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}',
  '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}',
  '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}',
  '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}',
  '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}',
  '{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}',
].map((text) => readFlannelConfig(text));

/** Most are of the cluster's own kind. */
const worldValues = (type: string): fc.Arbitrary<string> =>
  fc.oneof(
    {
      weight: 12,
      arbitrary: fc
        .record({
          ip: fc.constantFrom(...WORLD.addresses4),
          ipv6: fc.oneof(fc.constantFrom(...WORLD.addresses6), fc.constant(null)),
          type: fc.constantFrom(type, type, type, type, type, 'vxlan', 'host-gw', ''),
          mac: fc.constantFrom(...WORLD.macs),
          mac6: fc.oneof(fc.constantFrom(...WORLD.macs), fc.constant(undefined)),
        })
        .map(({ ip, ipv6, type, mac, mac6 }) => {
          const data = type === 'vxlan' ? { BackendData: { VNI: 1, VtepMAC: mac } } : {};
          const v6Data = type === 'vxlan' && mac6 ? { BackendV6Data: { VNI: 1, VtepMAC: mac6 } } : {};
          return JSON.stringify({ PublicIP: ip, PublicIPv6: ipv6, BackendType: type || undefined, ...data, ...v6Data });
        }),
    },
    { weight: 1, arbitrary: fc.oneof(oddJson, bytesAsText) },
  );

/** What happens to keys, one after the other; undefined: deleted. */
const histories = (type: string) =>
  fc.array(
    fc.record({
      key: fc.constantFrom(...WORLD.keys),
      value: fc.oneof({ arbitrary: worldValues(type), weight: 5 }, { arbitrary: fc.constant(undefined), weight: 1 }),
      /** Nobody asks for the peers before the next. */
      unseen: fc.boolean(),
    }),
    { maxLength: 14 },
  );

const routingOf = ({ backend, pools }: FlannelConfig): HostRouting | undefined => {
  const devices = pools.map(({ family }) => (family === 4 ? 'flannel.1' : 'flannel-v6.1'));
  if (backend.type === 'vxlan') return { kind: 'vxlan', devices, direct: new Map() };
  return backend.type === 'host-gw' ? { kind: 'host-gw', interface: 'eth0' } : undefined;
};

/** Each subnet is in force for a lease of which all is in force, and what the backend needs of a peer is in its record. */
function assertWhole(
  config: FlannelConfig,
  records: ReadonlyMap<string, PeerRecord>,
  values: ReadonlyMap<string, string>,
): void {
  const { backend, pools } = config;
  const all = [...records.values()];
  /** `subnet address`, of whole leases. */
  const whole = new Set<string>();
  for (const [key, value] of values) {
    const subnets = (attempt(() => parseLeaseKey(key)) ?? [])
      .filter(({ family }) => pools.some((pool) => pool.family === family))
      .map(({ text }) => text);
    const its = subnets.map((text) => all.find((record) => record.subnets.includes(text) && isOf(record, value)));
    if (its.every((record) => record !== undefined)) {
      for (const [i, record] of its.entries()) whole.add(`${subnets[i]} ${record?.address}`);
    }
  }
  for (const record of all) {
    const half = record.subnets.filter((text) => !whole.has(`${text} ${record.address}`));
    if (half.length > 0 || record.subnets.length === 0) throw new Error(`of no whole lease: ${half} of ${say(record)}`);
    if (backend.type === 'vxlan' && record.macs.length !== 1) throw new Error(`no MAC: ${say(record)}`);
    if (say(makeRecord(record)) !== say(record)) throw new Error(`not canonical: ${say(record)}`);
  }
}

const isOf = ({ address }: PeerRecord, value: string): boolean => {
  const lease = attempt(() => parseLease(value));
  return lease?.publicIp?.text === address || lease?.publicIpv6?.text === address;
};

t.test('whatever leases there are, peers are whole, and fit together', async (t) => {
  const prefix = '/coreos.com/network/subnets/';
  const seen = { peers: 0, skipped: 0 };
  const own = { ...OWN_LEASE, macs: { 4: '02:00:00:00:00:0a', 6: '02:00:00:00:00:0b' }, addresses: OWN_ADDRESSES };
  const cases = fc.constantFrom(...CLUSTERS).chain((config) => {
    const { type } = config.backend;
    return fc.tuple(fc.constant(config), histories(type === 'udp' ? '' : type), fc.nat(14));
  });
  fc.assert(
    fc.property(cases, ([config, history, loadedAt]) => {
      const log = new TestLog();
      const make = (to: TestLog): EtcdLeases => new EtcdLeases({ prefix, config, families: [4, 6], log: to });
      const [followed, listed] = [make(log), make(new TestLog())];
      const keys = new Map<string, KeyValue>();
      history.forEach(({ key: name, value, unseen }, i) => {
        const key = prefix + name;
        if (value === undefined) {
          keys.delete(key);
          followed.apply([{ type: 'delete', key, revision: i + 1 }]);
        } else {
          const createRevision = keys.get(key)?.createRevision ?? i + 1;
          const entry: KeyValue = { key, value, createRevision, modRevision: i + 1, lease: '1' };
          keys.set(key, entry);
          followed.apply([{ type: 'put', entry }]);
        }
        if (i === loadedAt) followed.load([...keys.values()]);
        if (unseen) return;
        const records = followed.records(own);
        const values = new Map([...keys].map(([one, entry]) => [one.slice(prefix.length), entry.value]));
        assertWhole(config, records, values);
        // A set that is refused would be refused whole: all peers would be as they were.
        const { pools, backend } = config;
        const vnis = backend.type === 'vxlan' ? pools.map(() => 1) : [];
        const plan = planFor(records, {
          addresses: OWN_ADDRESSES,
          networks: pools.map(({ network }) => network),
          subnets: own.subnets,
          underlayMtu: 1500,
          vnis,
          families: vnis.length > 0 ? pools.map(({ family }) => family) : [],
          hostRouting: routingOf(config),
          underlayInside: true,
        });
        seen.peers += plan.peers.size;
      });
      listed.load([...keys.values()]);
      const [one, other] = [followed, listed].map((leases) => [...leases.records(own).values()].map(say).sort());
      if (say(one) !== say(other)) throw new Error(`followed ${say(one)}, listed ${say(other)}`);
      seen.skipped += log.lines.length;
      for (const { fields } of log.lines) assertReadable(new RangeError(String(fields.reason)));
      for (const { fields } of log.lines) if (say(fields).length > 800) throw new Error(say(fields).slice(0, 200));
    }),
    runs(6),
  );
  t.comment(`${seen.peers} peers, ${seen.skipped} leases passed over`);
  t.ok(Math.min(seen.peers, seen.skipped) > 1000, 'both of them often');
});

// --- among good ones, in a real etcd ---

const SUBNETS = '/coreos.com/network/subnets/';
const goodLease = (i: number): { key: string; value: string; route: string } => {
  const ip = `192.168.77.${100 + i}`;
  const value = `{"PublicIP":"${ip}","PublicIPv6":null}`;
  return { key: `10.5.${100 + i}.0-24`, value, route: `10.5.${100 + i}.0/24 ${ip}` };
};
const VALUE = '{"PublicIP":"192.168.77.66","PublicIPv6":null}';

const BAD: readonly (readonly [key: string, value: string | Buffer])[] = [
  ['10.5.30.0-24', 'not JSON'],
  ['10.5.31.0-24', ''],
  ['10.5.32.0-24', '{"PublicIP":null,"PublicIPv6":null}'],
  ['10.5.33.0-24', '{"PublicIP":"192.168.77.300","PublicIPv6":null}'],
  ['10.5.34.0-24', '{"PublicIPv6":null}'],
  ['10.5.35.0-24', '[]'],
  ['10.5.36.0-24', '{"PublicIP":"224.0.0.1","PublicIPv6":null}'],
  ['10.5.37.0-24', '{"PublicIP":{"__proto__":"192.168.77.9"}}'],
  ['10.5.38.0-24', '{"PublicIP":"192.168.77.9","PublicIPv6":'],
  ['10.5.39.0-24', `{"PublicIP":${'['.repeat(50_000)}${']'.repeat(50_000)}}`],
  ['10.5.40.0-24', Buffer.from([0xff, 0xfe, 0x00, 0x80])],
  ['10.5.41.0-24', '{"PublicIP":"192.168.77.9\\u0000","PublicIPv6":null}'],
  ['10.5.42.0-24', '{"PublicIP":"\\ud800","PublicIPv6":null}'],
  ['10.5.43.7-24', VALUE],
  ['10.5.44.0-33', VALUE],
  ['10.5.999.0-24', VALUE],
  ['nonsense', VALUE],
  ['__proto__', VALUE],
  ['10.6.1.0-24', VALUE],
];

/** Through etcd's gateway: keys and values may be any bytes. */
async function putBytes(etcd: Etcd, key: string | Buffer, value: string | Buffer): Promise<void> {
  const full = Buffer.concat([Buffer.from(SUBNETS), Buffer.from(key)]);
  const body = JSON.stringify({ key: full.toString('base64'), value: Buffer.from(value).toString('base64') });
  const answer = await fetch(`${etcd.endpoints[0]}/v3/kv/put`, { method: 'POST', body });
  if (!answer.ok) throw new Error(`put: ${await answer.text()}`);
}

/** Lines that speak of a key. */
const linesAbout = (node: EtcdNode, key: string): string[] =>
  node.log.lines.map(({ event, fields }) => `${event} ${JSON.stringify(fields)}`).filter((line) => line.includes(key));

const why = etcdMissing();
if (why) t.comment(`SKIPPED: ${why}`);
else {
  t.test('garbage among good leases', async (t) => {
    const etcd = await Etcd.start();
    t.teardown(() => etcd.close());
    await etcd.put('/coreos.com/network/config', '{"Network":"10.5.0.0/16","SubnetMax":"10.5.20.0"}');
    const good = [0, 1, 2, 3, 4].map(goodLease);
    const put = async (i: number): Promise<void> => putBytes(etcd, good[i].key, good[i].value);
    await put(0);
    for (const [key, value] of BAD) await putBytes(etcd, key, value);
    await putBytes(etcd, Buffer.from([0xff, 0x00, 0x80]), VALUE);
    // Flaws that no lease shows alone: it came later than one that it overlaps.
    await putBytes(etcd, '10.5.100.128-25', '{"PublicIP":"192.168.77.67","PublicIPv6":null}');
    await put(1);
    const node = await EtcdNode.start(new NodeFolders(t), { endpoints: etcd.endpoints, address: '192.168.77.1' });
    t.teardown(() => node.stop());
    const routesOf = (...numbers: number[]): string[] => numbers.map((i) => good[i].route).sort();
    t.same(node.routes, routesOf(0, 1), 'at the start the good ones are in force');
    t.equal(node.problem, undefined, 'and nothing is wrong with them');

    await put(2);
    t.ok(await until(() => node.routes.length === 3), 'a good one comes');
    // The same garbage again, and other garbage, among a renewal and a new one.
    for (const [key, value] of BAD) await putBytes(etcd, key, value);
    await put(0);
    await putBytes(etcd, '10.5.50.0-24', '{"PublicIP":12}');
    await putBytes(etcd, '10.5.0.0-16', '{"PublicIP":"192.168.77.68","PublicIPv6":null}');
    await put(3);
    t.ok(await until(() => node.routes.length === 4), 'another comes after more garbage');
    t.same(node.routes, routesOf(0, 1, 2, 3), 'the good ones are in force');

    const keys = [...BAD.map(([key]) => key), '10.5.50.0-24', '10.5.100.128-25', '10.5.0.0-16'];
    for (const key of keys) t.equal(linesAbout(node, key).length, 1, `${key}: ${linesAbout(node, key).join(' | ')}`);
    const long = node.log.lines.map((line) => JSON.stringify(line)).filter((line) => line.length > 800);
    t.same(
      long.map((line) => line.slice(0, 200)),
      [],
      'no line is long',
    );

    // What becomes good counts, what becomes garbage is the old one or none.
    await putBytes(etcd, '10.5.30.0-24', VALUE);
    t.ok(
      await until(() => node.routes.includes('10.5.30.0/24 192.168.77.66')),
      'garbage that becomes a lease is in force',
    );
    await putBytes(etcd, good[1].key, '{"PublicIP":"192.168.77.');
    await put(4);
    t.ok(await until(() => node.routes.includes(good[4].route)), 'a good one comes');
    t.same(
      node.routes.filter((route) => route !== good[1].route),
      [...routesOf(0, 2, 3, 4), '10.5.30.0/24 192.168.77.66'].sort(),
      'and a lease that becomes garbage harms no other',
    );
    t.equal(node.problem, undefined, 'all that is in force is right');
    t.same([node.happened.moved, node.happened.revoked], [0, 0], 'our own lease is untouched');
  });
}
