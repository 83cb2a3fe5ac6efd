/** The network config by flannel's rules, as options, as JSON, compared; and which subnet is chosen from it. */
import fc from 'fast-check';
import t from 'tap';
import {
  type ConfigWish,
  candidates,
  chooseSubnets,
  configFromJson,
  configToJson,
  disagreement,
  fits,
  makeNetworkConfig,
  type NetworkConfig,
} from '../../src/control/allocation.js';
import {
  addressOf,
  type Cidr,
  cidrOf,
  compareAddresses,
  contains,
  lastBase,
  nextBase,
  parseAddress,
  parseCidr,
  parsePrefixOf,
} from '../../src/control/cidr.js';

interface WishText {
  readonly network?: string;
  readonly length?: string;
  readonly min?: string;
  readonly max?: string;
  readonly backend?: 'udp';
  readonly port?: number;
}

const items = <T>(text: string | undefined, parse: (item: string) => T): T[] => text?.split(',').map(parse) ?? [];

const wish = ({ network, length, min, max, backend, port }: WishText): ConfigWish => ({
  mode: 'l3',
  networks: items(network, parseCidr),
  subnetLengths: items(length, Number),
  mins: items(min, parseAddress),
  maxs: items(max, parseAddress),
  backend,
  port,
});

const make = (text: WishText): NetworkConfig => makeNetworkConfig(wish(text));

/** `network length min max` of each pool. */
const said = (config: NetworkConfig): string[] =>
  config.pools.map(({ network, subnetLength, min, max }) => [network.text, subnetLength, min.text, max.text].join(' '));

t.test('defaults', async (t) => {
  const cases: [network: string, ...pools: string[]][] = [
    ['10.5.0.0/16', '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    ['10.0.0.0/8', '10.0.0.0/8 24 10.0.1.0 10.255.255.0'],
    ['10.5.0.0/22', '10.5.0.0/22 24 10.5.1.0 10.5.3.0'],
    ['10.5.0.0/23', '10.5.0.0/23 25 10.5.0.128 10.5.1.128'],
    ['10.5.0.16/28', '10.5.0.16/28 30 10.5.0.20 10.5.0.28'],
    ['fd00:5::/48', 'fd00:5::/48 64 fd00:5:0:1:: fd00:5:0:ffff::'],
    ['fd00:5::/62', 'fd00:5::/62 64 fd00:5:0:1:: fd00:5:0:3::'],
    ['fd00:5::/63', 'fd00:5::/63 65 fd00:5:0:0:8000:: fd00:5:0:1:8000::'],
    ['fd00:5::10/124', 'fd00:5::10/124 126 fd00:5::14 fd00:5::1c'],
    ['fd00:5::/48,10.5.0.0/16', '10.5.0.0/16 24 10.5.1.0 10.5.255.0', 'fd00:5::/48 64 fd00:5:0:1:: fd00:5:0:ffff::'],
  ];
  for (const [network, ...pools] of cases) t.same(said(make({ network })), pools, network);
  t.same(make({ network: '10.5.0.0/16' }).backend, { type: 'udp', port: 8285 });
});

t.test('what is asked for', async (t) => {
  t.same(said(make({ network: 'fd00:5::/48,10.5.0.0/16', length: '56,26' })), [
    '10.5.0.0/16 26 10.5.0.64 10.5.255.192',
    'fd00:5::/48 56 fd00:5:0:100:: fd00:5:0:ff00::',
  ]);
  t.same(said(make({ network: '10.5.0.0/16', min: '10.5.0.0', max: '10.5.9.0' })), [
    '10.5.0.0/16 24 10.5.0.0 10.5.9.0',
  ]);
  t.same(said(make({ network: '10.5.0.0/16', min: '10.5.9.0', max: '10.5.9.0' })), [
    '10.5.0.0/16 24 10.5.9.0 10.5.9.0',
  ]);
  t.same(
    said(make({ network: '10.5.0.0/16,fd00:5::/48', min: 'fd00:5:0:7::,10.5.3.0', max: 'fd00:5:0:8::' })),
    ['10.5.0.0/16 24 10.5.3.0 10.5.255.0', 'fd00:5::/48 64 fd00:5:0:7:: fd00:5:0:8::'],
    'one list for both families',
  );
  for (const [network, length] of [
    ['10.5.0.0/16', '18'],
    ['10.5.0.0/16', '30'],
    ['fd00:5::/48', '50'],
    ['fd00:5::/48', '126'],
  ]) {
    t.equal(make({ network, length }).pools[0].subnetLength, Number(length), 'the ends of what is allowed');
  }
  t.same(make({ network: '10.5.0.0/16', backend: 'udp', port: 9000 }).backend, { type: 'udp', port: 9000 });
});

t.test('what cannot be', async (t) => {
  const network = '10.5.0.0/16';
  const cases: [WishText, RegExp][] = [
    [{}, /^--network: missing/],
    [{ network: '10.5.0.0/29' }, /^--network 10\.5\.0\.0\/29: too small .*\/28/],
    [{ network: '10.5.0.0/29', length: '30' }, /^--network 10\.5\.0\.0\/29: too small/],
    [{ network: 'fd00::/125' }, /^--network fd00::\/125: too small .*\/124/],
    [{ network, length: '17' }, /^--subnet-len 17: expected 18 to 30 for --network 10\.5\.0\.0\/16$/],
    [{ network, length: '31' }, /^--subnet-len 31: expected 18 to 30/],
    [{ network, length: '24.5' }, /^--subnet-len 24\.5: /],
    [{ network: 'fd00::/48', length: '49' }, /^--subnet-len 49: expected 50 to 126/],
    [{ network: 'fd00::/48', length: '127' }, /^--subnet-len 127: expected 50 to 126/],
    [{ network, length: '24,64' }, /^--subnet-len 24,64: expected one for each of --network 10\.5\.0\.0\/16$/],
    [{ network: `${network},fd00::/48`, length: '24' }, /^--subnet-len 24: expected one for each/],
    [{ network, min: '10.6.1.0' }, /^--subnet-min 10\.6\.1\.0: expected an address in --network 10\.5\.0\.0\/16$/],
    [{ network, max: '10.6.0.0' }, /^--subnet-max 10\.6\.0\.0: expected an address in/],
    [
      { network, min: '10.5.1.9' },
      /^--subnet-min 10\.5\.1\.9: expected the first address of a \/24 \(10\.5\.1\.0\?\)$/,
    ],
    [{ network, max: '10.5.255.255' }, /^--subnet-max 10\.5\.255\.255: .*10\.5\.255\.0/],
    [{ network, min: '10.5.9.0', max: '10.5.8.0' }, /^--subnet-max 10\.5\.8\.0: below .*10\.5\.9\.0$/],
    [{ network, max: '10.5.0.0' }, /^--subnet-max 10\.5\.0\.0: below .*10\.5\.1\.0$/],
    [{ network, min: 'fd00::' }, /^--subnet-min fd00::: there is no IPv6 --network$/],
    [{ network: 'fd00::/48', max: '10.5.1.0' }, /^--subnet-max 10\.5\.1\.0: there is no IPv4 --network$/],
  ];
  for (const [text, expected] of cases) {
    t.throws(() => make(text), expected, JSON.stringify(text));
    t.throws(() => make(text), RangeError);
  }
});

t.test('only what is asked for can disagree', async (t) => {
  const both = '10.5.0.0/16,fd00:5::/48';
  const config = make({ network: both, length: '26,64', min: '10.5.3.0', max: 'fd00:5:0:ff::', port: 9000 });
  for (const agrees of [
    {},
    { network: both },
    { network: 'fd00:5::/48,10.5.0.0/16', length: '64,26' },
    { length: '26,64' },
    { min: '10.5.3.0', max: 'fd00:5:0:ff::' },
    { max: '10.5.255.192', backend: 'udp' as const, port: 9000 },
  ]) {
    t.equal(disagreement(config, wish(agrees)), undefined, JSON.stringify(agrees));
  }
  const cases: [WishText, string][] = [
    [{ network: '10.6.0.0/16' }, `--network 10.6.0.0/16, but the registry says ${both}`],
    [{ network: '10.5.0.0/16' }, `--network 10.5.0.0/16, but the registry says ${both}`],
    [{ network: 'fd00:6::/48,10.5.0.0/16' }, `--network 10.5.0.0/16,fd00:6::/48, but the registry says ${both}`],
    [{ network: both, length: '24,64' }, '--subnet-len 24,64, but the registry says 26,64'],
    [{ network: 'fd00:5::/48,10.5.0.0/16', length: '64,24' }, '--subnet-len 64,24, but the registry says 64,26'],
    [{ min: '10.5.4.0' }, '--subnet-min 10.5.4.0, but the registry says 10.5.3.0'],
    [{ min: '10.5.3.0,fd00:5:0:2::' }, '--subnet-min fd00:5:0:2::, but the registry says fd00:5:0:1::'],
    [{ max: 'fd00:5:0:fe::' }, '--subnet-max fd00:5:0:fe::, but the registry says fd00:5:0:ff::'],
    [{ port: 8285 }, '--port 8285, but the registry says 9000'],
  ];
  for (const [text, expected] of cases) t.equal(disagreement(config, wish(text)), expected);
  const four = make({ network: '10.5.0.0/16' });
  t.equal(
    disagreement(four, wish({ network: '10.6.0.0/16' })),
    '--network 10.6.0.0/16, but the registry says 10.5.0.0/16',
  );
  t.equal(disagreement(four, wish({ min: 'fd00::' })), '--subnet-min fd00::, but the registry says nothing of IPv6');
});

t.test('as JSON', async (t) => {
  const config = make({ network: 'fd00:5::/48,10.5.0.0/16', max: '10.5.9.0' });
  const json = {
    EnableIPv4: true,
    Network: '10.5.0.0/16',
    SubnetLen: 24,
    SubnetMin: '10.5.1.0',
    SubnetMax: '10.5.9.0',
    EnableIPv6: true,
    IPv6Network: 'fd00:5::/48',
    IPv6SubnetLen: 64,
    IPv6SubnetMin: 'fd00:5:0:1::',
    IPv6SubnetMax: 'fd00:5:0:ffff::',
    Backend: { Type: 'udp', Port: 8285 },
  };
  t.same(configToJson(config), json);
  t.same(configFromJson(JSON.parse(JSON.stringify(json))), config);
  t.same(configToJson(make({ network: 'fd00:5::/48', port: 9000 })), {
    EnableIPv4: false,
    EnableIPv6: true,
    IPv6Network: 'fd00:5::/48',
    IPv6SubnetLen: 64,
    IPv6SubnetMin: 'fd00:5:0:1::',
    IPv6SubnetMax: 'fd00:5:0:ffff::',
    Backend: { Type: 'udp', Port: 9000 },
  });
  t.same(configFromJson({ Network: '10.5.0.0/16' }), make({ network: '10.5.0.0/16' }), 'the least that flannel takes');
  t.same(
    configFromJson({
      Network: '10.5.0.0/16',
      Backend: { Type: 'udp' },
      EnableNFTables: true,
      IPv6Network: 'fd00:5::/48',
    }),
    make({ network: '10.5.0.0/16' }),
    'what is not switched on or not ours is nothing',
  );

  const cases: [unknown, RegExp][] = [
    ['{}', /object/i],
    [null, /object/i],
    [{}, /^Network: missing$/],
    [{ Network: '10.5.0.0' }, /^Network: "10\.5\.0\.0" is not a CIDR$/],
    [{ Network: '10.5.0.1/16' }, /^Network: .*host bits/],
    [{ Network: 'fd00::/48' }, /^Network: fd00::\/48 is not IPv4$/],
    [{ Network: '10.5.0.0/16', SubnetLen: '24' }, /^SubnetLen: /],
    [{ Network: '10.5.0.0/16', SubnetLen: 17 }, /^SubnetLen 17: expected 18 to 30 for Network 10\.5\.0\.0\/16$/],
    [{ Network: '10.5.0.0/16', SubnetMin: '10.5' }, /^SubnetMin: "10\.5" is not an IP address$/],
    [{ Network: '10.5.0.0/16', SubnetMin: '10.5.0.1' }, /^SubnetMin 10\.5\.0\.1: expected the first address/],
    [{ Network: '10.5.0.0/16', SubnetMax: 'fd00::' }, /^SubnetMax: fd00:: is not IPv4$/],
    [{ Network: '10.5.0.0/16', EnableIPv6: true }, /^IPv6Network: missing$/],
    [{ EnableIPv4: false, EnableIPv6: true, IPv6Network: '10.5.0.0/16' }, /^IPv6Network: 10\.5\.0\.0\/16 is not IPv6$/],
    [{ EnableIPv4: false, Network: '10.5.0.0/16' }, /EnableIPv4 and EnableIPv6/],
    [{ EnableIPv4: 'yes', Network: '10.5.0.0/16' }, /^EnableIPv4: /],
    [{ Network: '10.5.0.0/16', Backend: { Type: 'vxlan' } }, /^Backend\.Type: .*udp/],
    [{ Network: '10.5.0.0/16', Backend: { Type: 'udp', Port: 0 } }, /^Backend\.Port: /],
    [{ Network: '10.5.0.0/16', Backend: 'udp' }, /^Backend: /],
  ];
  for (const [value, expected] of cases) {
    t.throws(() => configFromJson(value), expected, JSON.stringify(value));
    t.throws(() => configFromJson(value), RangeError);
    t.throws(() => configFromJson(value), { message: /^[^\n]+$/ }, 'one line');
  }
});

t.test('what fits', async (t) => {
  const config = make({ network: '10.5.0.0/16,fd00:5::/48', min: '10.5.3.0', max: '10.5.9.0,fd00:5:0:9::' });
  const check = (text: string): boolean => fits(items(text, parseCidr), config);
  for (const good of ['10.5.3.0/24,fd00:5:0:1::/64', 'fd00:5:0:9::/64,10.5.9.0/24']) t.ok(check(good), good);
  for (const bad of [
    '10.5.3.0/24',
    'fd00:5:0:1::/64',
    '10.5.3.0/24,10.5.4.0/24',
    '10.5.3.0/24,fd00:5:0:1::/64,fd00:5:0:2::/64',
    '10.5.2.0/24,fd00:5:0:1::/64',
    '10.5.10.0/24,fd00:5:0:1::/64',
    '10.5.3.0/24,fd00:5::/64',
    '10.5.3.0/24,fd00:5:0:a::/64',
    '10.6.3.0/24,fd00:5:0:1::/64',
    '10.5.3.0/25,fd00:5:0:1::/64',
    '10.5.4.0/23,fd00:5:0:1::/64',
    '10.5.3.0/24,fd00:5:0:1::/65',
  ]) {
    t.notOk(check(bad), bad);
  }
  t.notOk(fits([], config));
});

t.test('candidates are all subnets from the first to the last, in order', async (t) => {
  const all = (text: WishText): string[] => [...candidates(make(text).pools[0])].map((subnet) => subnet.text);
  t.same(all({ network: '10.5.0.0/22' }), ['10.5.1.0/24', '10.5.2.0/24', '10.5.3.0/24']);
  t.same(all({ network: '10.5.0.0/16', min: '10.5.9.0', max: '10.5.9.0' }), ['10.5.9.0/24']);
  t.same(
    all({ network: '10.5.0.0/16', length: '30', min: '10.5.0.248', max: '10.5.1.4' }),
    ['10.5.0.248/30', '10.5.0.252/30', '10.5.1.0/30', '10.5.1.4/30'],
    'with a carry',
  );
  t.equal(all({ network: 'fd00:5::/48' }).length, 65535);
  t.equal(all({ network: 'fd00:5::/48' }).at(-1), 'fd00:5:0:ffff::/64');
  t.same(
    all({ network: '240.0.0.0/4', length: '8', min: '254.0.0.0' }),
    ['254.0.0.0/8', '255.0.0.0/8'],
    'to the very end',
  );
  const [first] = candidates(make({ network: 'fd00::/16', length: '126' }).pools[0]);
  t.equal(first.text, 'fd00::4/126', '2^110 of them are not made at once');
});

/** Any pool that can be. */
const anyConfig = fc
  .record({ v6: fc.boolean(), bytes: fc.uint8Array({ minLength: 16, maxLength: 16 }), at: fc.nat(), more: fc.nat() })
  .map(({ v6, bytes, at, more }) => {
    const most = v6 ? 126 : 30;
    const length = 8 + (at % (most - 9));
    bytes[0] = v6 ? 0xfd : 10;
    const network = cidrOf(v6 ? bytes : bytes.slice(0, 4), length);
    const subnetLength = length + 2 + (more % (most - length - 1));
    return makeNetworkConfig({ ...wish({}), networks: [network], subnetLengths: [subnetLength] });
  });

t.test('any config: through JSON, and its first candidates', async (t) => {
  fc.assert(
    fc.property(anyConfig, (config) => {
      const again = configFromJson(JSON.parse(JSON.stringify(configToJson(config))));
      t.same(again, config);
      const { network, subnetLength, min, max } = config.pools[0];
      let before: Cidr | undefined;
      let count = 0;
      for (const subnet of candidates(config.pools[0])) {
        if (!fits([subnet], config) || !contains(network, subnet)) t.fail(`${subnet.text} of ${network.text}`);
        if (
          before ? compareAddresses(before.bytes, subnet.bytes) >= 0 : subnet.text !== `${min.text}/${subnetLength}`
        ) {
          t.fail(`${before?.text} before ${subnet.text}`);
        }
        before = subnet;
        if (++count === 300) break;
      }
      const all = 2 ** (subnetLength - network.length) - 1;
      t.equal(count, Math.min(300, all));
      if (all < 300) t.equal(before?.text, `${max.text}/${subnetLength}`);
    }),
    { numRuns: 300 },
  );
});

t.test('the choice', async (t) => {
  const config = make({ network: '10.5.0.0/16,fd00:5::/48' });
  const none = (): boolean => false;
  const chosen = (taken: (subnet: Cidr) => boolean, random: number): string[] | undefined =>
    chooseSubnets(config, taken, () => random)?.map((subnet) => subnet.text);
  t.same(chosen(none, 0), ['10.5.1.0/24', 'fd00:5:0:1::/64']);
  t.same(chosen(none, 1 - 2 ** -53), ['10.5.100.0/24', 'fd00:5:0:64::/64'], 'of the first hundred');
  t.same(chosen(none, 0.5), ['10.5.51.0/24', 'fd00:5:0:33::/64']);

  const third = (subnet: Cidr): boolean => subnet.family === 4 && subnet.bytes[2] % 3 === 0;
  t.equal(chosen(third, 1 - 2 ** -53)?.[0], '10.5.149.0/24', 'a hundred that are free');
  const but =
    (...free: string[]) =>
    (subnet: Cidr) =>
      !free.includes(subnet.text);
  t.same(chosen(but('10.5.255.0/24', 'fd00:5:0:ffff::/64'), 0.99), ['10.5.255.0/24', 'fd00:5:0:ffff::/64'], 'the last');
  t.equal(chosen(but('10.5.255.0/24'), 0), undefined, 'one of two pools is exhausted');
  t.equal(chosen(but('fd00:5:0:9::/64'), 0), undefined);

  const seen = new Set<string | undefined>();
  for (let i = 0; i < 2000; i++) seen.add(chooseSubnets(config, none, Math.random)?.[0].text);
  t.ok(seen.size > 90, `${seen.size} of 100 come up in 2,000`);

  const one = make({ network: '10.5.0.0/16', min: '10.5.9.0', max: '10.5.9.0' });
  t.equal(chooseSubnets(one, none, Math.random)?.[0].text, '10.5.9.0/24');
  t.equal(
    chooseSubnets(one, () => true, Math.random),
    undefined,
  );
});

t.test('ten thousand taken subnets cost little', async (t) => {
  for (const [network, length] of [
    ['10.0.0.0/8', '24'],
    ['fd00:5::/32', '64'],
  ]) {
    const config = make({ network, length });
    const taken = new Set<string>();
    for (const subnet of candidates(config.pools[0])) if (taken.add(subnet.text).size === 10_000) break;
    const times: number[] = [];
    for (let i = 0; i < 7; i++) {
      const begin = performance.now();
      const chosen = chooseSubnets(config, (subnet) => taken.has(subnet.text), Math.random);
      times.push(performance.now() - begin);
      t.ok(chosen && !taken.has(chosen[0].text));
    }
    const best = Math.min(...times);
    t.comment(`${network}: ${best.toFixed(1)} ms`);
    t.ok(best < 100, 'five times what it was measured at, for a busy machine');
  }
});

t.test('arithmetic on prefixes', async (t) => {
  t.equal(parsePrefixOf('10.5.1.1/24').text, '10.5.1.0/24');
  t.equal(parsePrefixOf('10.5.1.0/24').text, '10.5.1.0/24');
  t.equal(parsePrefixOf('fd00:5:0:2::1/64').text, 'fd00:5:0:2::/64');
  for (const odd of ['10.5.1.1', '10.5.1/24', '10.5.1.1/33', '10.5.1.1/24 ', 'fd00::1/129', '224.0.0.9/24', '']) {
    t.throws(() => parsePrefixOf(odd), RangeError, odd);
  }
  const next = (text: string): string | undefined => {
    const bytes = nextBase(parseCidr(text));
    return bytes && addressOf(bytes).text;
  };
  t.equal(next('10.5.0.0/16'), '10.6.0.0');
  t.equal(next('10.255.255.252/30'), '11.0.0.0');
  t.equal(next('10.5.1.255/32'), '10.5.2.0');
  t.equal(next('128.0.0.0/1'), undefined, 'there is none');
  t.equal(next('255.255.255.0/24'), undefined);
  t.equal(next('fd00:ffff:ffff:ffff::/64'), 'fd01::');
  t.equal(addressOf(lastBase(parseCidr('10.5.0.0/20'), 26)).text, '10.5.15.192');
  t.equal(addressOf(lastBase(parseCidr('10.5.0.0/20'), 20)).text, '10.5.0.0');
  t.same(
    ['10.5.1.0', '9.255.0.0', '10.5.0.255', '200.0.0.0']
      .map(parseAddress)
      .sort((a, b) => compareAddresses(a.bytes, b.bytes))
      .map((address) => address.text),
    ['9.255.0.0', '10.5.0.255', '10.5.1.0', '200.0.0.0'],
  );
});
