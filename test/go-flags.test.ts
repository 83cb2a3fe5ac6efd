/** Go's flag syntax: cases by hand, and arbitrary arguments against a model that is written after Go's parser, byte by byte. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { parseConfig } from '../src/command-line.js';
import { type GoFlags, readGoFlags } from '../src/go-flags.js';
import { goPattern } from '../src/go-regexp.js';

const KINDS: Readonly<Record<string, boolean>> = { b: true, masq: true, v: false, 'etcd-prefix': false, log_at: false };
const read = (...argv: string[]): GoFlags =>
  readGoFlags(argv, (name) => (Object.hasOwn(KINDS, name) ? KINDS[name] : undefined));

const seed = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 2 ** 31);
const runs = process.env.WEFT_TEST_FULL ? 100_000 : 5_000;

t.test('by hand', async (t) => {
  const flags = (...argv: string[]): string =>
    read(...argv)
      .flags.map(({ name, value }) => `${name}:${value}`)
      .join(' ');
  t.equal(flags('-v', '1', '--v', '2', '-v=3', '--v=4'), 'v:1 v:2 v:3 v:4');
  t.equal(flags('-b', '--b', '-b=false', '--b='), 'b:true b:true b:false b:');
  t.equal(flags('-v', '-b'), 'v:-b', 'whatever comes next is the value');
  t.equal(flags('-v', '--', '-b'), 'v:-- b:true');
  t.equal(flags('-v='), 'v:');
  t.equal(flags('-v=a=b', '-log_at', ''), 'v:a=b log_at:');
  t.same(read('-b', 'false', '-v', '1'), {
    flags: [{ name: 'b', value: 'true' }],
    rest: ['false', '-v', '1'],
    mistake: undefined,
  });
  t.same(read('-b', '--', '-v').rest, ['-v']);
  t.same(read('-', '-v').rest, ['-', '-v'], 'a lone dash is an argument');
  t.same(read('', '-v').rest, ['', '-v']);
  t.same(read('-b', '--'), { flags: [{ name: 'b', value: 'true' }], rest: [], mistake: undefined });
  t.equal(read('-v').mistake, "option '-v' argument missing");
  t.equal(read('--x=1').mistake, "unknown option '--x'");
  t.equal(read('-toString').mistake, "unknown option '-toString'");
  for (const bad of ['---b', '-=', '--=x', '---']) t.equal(read(bad).mistake, `'${bad}' is not a flag`);
  t.same(read('-b', '-x', '-b').flags, [{ name: 'b', value: 'true' }], 'what was read before a mistake stays');
});

/** parseOne of Go's package flag, as it goes through the characters. */
function model(argv: readonly string[]): { flags: [string, string][]; rest: string[]; wrong: boolean } {
  const args = [...argv];
  const flags: [string, string][] = [];
  for (;;) {
    const s = args[0];
    if (s === undefined || s.length < 2 || s[0] !== '-') return { flags, rest: args, wrong: false };
    let minuses = 1;
    if (s[1] === '-') {
      minuses++;
      if (s.length === 2) return { flags, rest: args.slice(1), wrong: false };
    }
    let name = s.slice(minuses);
    if (name.length === 0 || name[0] === '-' || name[0] === '=') return { flags, rest: args.slice(1), wrong: true };
    args.shift();
    let value: string | undefined;
    for (let i = 1; i < name.length; i++) {
      if (name[i] === '=') {
        value = name.slice(i + 1);
        name = name.slice(0, i);
        break;
      }
    }
    if (!Object.hasOwn(KINDS, name)) return { flags, rest: args, wrong: true };
    if (KINDS[name]) flags.push([name, value ?? 'true']);
    else {
      value ??= args.shift();
      if (value === undefined) return { flags, rest: [], wrong: true };
      flags.push([name, value]);
    }
  }
}

const word = fc.oneof(
  fc.constantFrom(...Object.keys(KINDS), 'x', 'bb', '', '-', 'constructor'),
  fc.string({ maxLength: 6 }),
);
const argument = fc.oneof(
  fc
    .tuple(fc.constantFrom('-', '--', '', '---'), word, fc.constantFrom('', '=', '=1', '==', '=\n'))
    .map((parts) => parts.join('')),
  fc.string({ unit: 'binary', maxLength: 8 }),
  fc.constantFrom('-', '--', '-=', '--=', '=', '\n', '-\n', '-b\n', '-v=\n\n'),
);

t.test('any arguments: the same as in Go', async () => {
  fc.assert(
    fc.property(fc.array(argument, { maxLength: 8 }), (argv) => {
      const { flags, rest, mistake } = read(...argv);
      const found = { flags: flags.map(({ name, value }) => [name, value]), rest, wrong: mistake !== undefined };
      assert.deepEqual(found, model(argv));
    }),
    { seed, numRuns: runs },
  );
});

t.test('any arguments and environment: a configuration or one line', async (t) => {
  const flag = fc.constantFrom(
    ...[
      'iface',
      'public-ip',
      'etcd-endpoints',
      'etcd-certfile',
      'ip-masq',
      'iface-regex',
      'healthz-port',
      'v',
      'network',
    ],
    ...[
      'kube-subnet-mgr',
      'subnet-lease-renew-margin',
      'mode',
      'vni',
      'registry',
      'peers',
      'public-ipv6',
      'etcd-prefix',
    ],
  );
  const text = fc.oneof(
    fc.constantFrom('eth0', '10.0.0.1', 'http://a:1', '1', 'true', 'l2', 'etcd', ''),
    fc.string({ unit: 'binary' }),
  );
  const given = fc.tuple(flag, text);
  let taken = 0;
  fc.assert(
    fc.property(fc.array(given, { maxLength: 4 }), fc.array(given, { maxLength: 3 }), (flags, variables) => {
      const env = Object.fromEntries(
        variables.map(([name, value]) => [`FLANNELD_${name.toUpperCase().replaceAll('-', '_')}`, value]),
      );
      try {
        parseConfig(
          flags.map(([name, value]) => `-${name}=${value}`),
          env,
          () => '{}',
        );
        taken++;
      } catch (error) {
        if (!(error instanceof Error) || !/^(UsageError|SetupError)$/.test(error.name)) throw error;
        if (/[\n\r]/.test(error.message)) throw new Error(`two lines: ${JSON.stringify(error.message)}`);
      }
    }),
    { seed, numRuns: runs / 5 },
  );
  t.ok(taken > 0, `${taken} were taken`);
});

t.test("Go's regular expressions", async (t) => {
  const same: [pattern: string, yes: string[], no: string[]][] = [
    ['eth.*', ['eth0', 'veth1'], ['ens3']],
    ['^(eth|ens)\\d{1,2}$', ['eth0', 'ens33'], ['eth', 'eth100', 'veth1']],
    ['192\\.168\\.77\\.', ['192.168.77.4'], ['192a168.77.4']],
    ['\\Aeth[[:digit:]]+\\z', ['eth12'], ['eth', 'veth1', 'eth1x']],
    ['[^[:alpha:]]$', ['eth0'], ['eth']],
    ['(?P<kind>eth|ens)0', ['eth0'], ['eno0']],
    ['(?:a|b)\\-c', ['a-c'], ['ac']],
    ['(?i)^ETH', ['eth0', 'Eth1'], ['veth0']],
    ['(?is)^E.0', ['e\n0'], ['a\n0']],
    // Outside of brackets this is a class of these letters.
    ['^[:digit:]', ['digit', ':'], ['0']],
    ['^[]a-c]+$', ['a]'], ['[', ']d']],
    ['^[^]a]$', ['b'], [']', 'a']],
    ['^[[a]+$', ['[a'], [']']],
    ['\\x65th', ['eth0'], ['x65th']],
  ];
  for (const [pattern, yes, no] of same) {
    const found = goPattern(pattern);
    for (const text of yes) t.match(text, found, `${pattern}: ${text}`);
    for (const text of no) t.notMatch(text, found, `${pattern}: not ${text}`);
  }
  const bad = [
    '',
    '(',
    '[',
    'a**',
    '(?i)',
    'a(?i)b',
    '(?m)a',
    '(?=a)',
    '(?<!a)b',
    '\\pL',
    '\\Q.\\E',
    '\\1',
    '\\C',
    '\\x{41}',
    '\\x4',
  ];
  const badInClass = ['[[:^digit:]]', '[[:foo:]]', '[[:constructor:]]', '[\\A]', '[\\b]', '[]', '[^]'];
  for (const pattern of [...bad, ...badInClass]) {
    t.throws(() => goPattern(pattern), RangeError, pattern);
  }
  fc.assert(
    fc.property(fc.string(), (pattern) => {
      try {
        goPattern(pattern);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }),
    { seed, numRuns: runs },
  );
});
t.comment(`WEFT_FUZZ_SEED=${seed}`);
