/** subnet.env: byte for byte what flannel writes, whole or not at all, and what is made of one that is found. */
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parseCidr, parsePrefixOf } from '../../src/control/cidr.js';
import { readSubnetFile, type SubnetFile, writeSubnetFile } from '../../src/host/subnet-file.js';

const content = (networks: string, subnets: string, rest: Partial<SubnetFile> = {}): SubnetFile => ({
  networks: networks.split(',').map(parseCidr),
  subnets: subnets.split(',').map(parseCidr),
  mtu: 1472,
  ipMasq: false,
  ...rest,
});

const four = content('10.5.0.0/16', '10.5.1.0/24');
const FOUR = 'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n';

t.test('what is written', async (t) => {
  const path = join(t.testdir(), 'subnet.env');
  const cases: [SubnetFile, string][] = [
    [four, FOUR],
    [
      content('10.5.0.0/16,fd00:5::/48', '10.5.255.252/30,fd00:5:0:2::/64', { mtu: 1452, ipMasq: true }),
      'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.255.253/30\nFLANNEL_IPV6_NETWORK=fd00:5::/48\n' +
        'FLANNEL_IPV6_SUBNET=fd00:5:0:2::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=true\n',
    ],
    [
      content('fd00:5::/48,10.5.0.0/16', 'fd00:5:0:2::/64,10.5.1.0/24'),
      'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\n' +
        'FLANNEL_IPV6_SUBNET=fd00:5:0:2::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n',
    ],
    [
      content('fd00:5::/48', 'fd00:5:0:0:8000::/66'),
      'FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5::8000:0:0:1/66\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n',
    ],
    [
      content('10.5.0.0/16', '10.5.1.255/32'),
      'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.255/32\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n',
    ],
  ];
  for (const [one, text] of cases) {
    await writeSubnetFile(path, one);
    t.equal(readFileSync(path, 'utf8'), text);
  }
  t.same(readdirSync(t.testdirName), ['subnet.env'], 'nothing else is left');
});

t.test('anyone may read it, whatever the umask', async (t) => {
  const path = join(t.testdir(), 'new', 'deep', 'subnet.env');
  const before = process.umask(0o077);
  t.teardown(() => process.umask(before));
  await writeSubnetFile(path, four);
  t.equal(statSync(path).mode & 0o7777, 0o644);
  t.equal(readFileSync(path, 'utf8'), FOUR, 'in a directory that was not there');
});

t.test('it is replaced, not rewritten', async (t) => {
  const dir = t.testdir({ 'subnet.env': 'old', other: 'as it was', link: t.fixture('symlink', 'other') });
  const path = join(dir, 'subnet.env');
  const { ino } = statSync(path);
  await writeSubnetFile(path, four);
  t.not(statSync(path).ino, ino, 'who reads the old one reads all of it');
  const written = statSync(path).ino;
  await writeSubnetFile(path, four);
  t.equal(statSync(path).ino, written, 'what says so already is left');
  await writeSubnetFile(join(dir, 'link'), four);
  t.equal(readFileSync(join(dir, 'other'), 'utf8'), 'as it was', 'nothing is written through a link');
});

t.test('two that write one file at once leave one of theirs', async (t) => {
  const path = join(t.testdir(), 'subnet.env');
  const all = Array.from({ length: 20 }, (_, i) => content('10.5.0.0/16', `10.5.${i}.0/24`));
  await Promise.all(all.map((one) => writeSubnetFile(path, one)));
  t.match(
    readFileSync(path, 'utf8'),
    /^FLANNEL_NETWORK=10\.5\.0\.0\/16\nFLANNEL_SUBNET=10\.5\.\d+\.1\/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n$/,
  );
  t.same(readdirSync(t.testdirName), ['subnet.env']);
});

t.test('a failure is one line and leaves nothing behind', async (t) => {
  const dir = t.testdir({ file: 'a file', taken: { 'in it': '' } });
  const cases: [what: string, path: string, expected: RegExp][] = [
    ['a directory that is a file', join(dir, 'file', 'subnet.env'), /\((ENOTDIR|EEXIST): [^,]*\)/],
    ['a directory in its place', join(dir, 'taken'), /\(EISDIR: [^,]*\)/],
    ['a name that is too long', join(dir, 'n'.repeat(250)), /\(ENAMETOOLONG: [^,]*\)/],
  ];
  for (const [what, path, reason] of cases) {
    const error = await writeSubnetFile(path, four).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    t.match(error, { name: 'SetupError', code: 'SUBNET_FILE', message: reason }, what);
    t.match(error, { message: `cannot write subnet file ${path} (` });
    t.match(error, { message: /^[^\n]+--subnet-file$/ });
  }
  t.same(readdirSync(dir).sort(), ['file', 'taken']);
  t.same(readdirSync(join(dir, 'taken')), ['in it']);
  t.equal(readFileSync(join(dir, 'file'), 'utf8'), 'a file');
});

/** What is read from a file with that text, and what was said. */
async function read(dir: string, text: string | undefined): Promise<{ subnets: string[] | undefined; said: string[] }> {
  const path = join(dir, 'subnet.env');
  if (text === undefined) rmSync(path, { force: true });
  else writeFileSync(path, text);
  const said: string[] = [];
  const found = await readSubnetFile(path, parsePrefixOf, (reason) => said.push(reason.replace(path, 'F')));
  return { subnets: found?.subnets.map((subnet) => subnet.text), said };
}

t.test('what is read', async (t) => {
  t.testdir();
  const cases: [what: string, text: string | undefined, subnets: string[] | undefined, said?: RegExp][] = [
    ['no file', undefined, undefined],
    ['our own', FOUR, ['10.5.1.0/24']],
    ['both', `FLANNEL_IPV6_SUBNET=fd00:5:0:2::1/64\n${FOUR}`, ['10.5.1.0/24', 'fd00:5:0:2::/64']],
    ['IPv6 alone', 'FLANNEL_IPV6_SUBNET=fd00:5:0:2::1/64\nFLANNEL_MTU=1452\n', ['fd00:5:0:2::/64']],
    ['other line ends', FOUR.replaceAll('\n', '\r\n'), ['10.5.1.0/24']],
    ['spaces', 'FLANNEL_SUBNET= 10.5.1.1/24 \n', ['10.5.1.0/24']],
    ['no last line end', 'FLANNEL_SUBNET=10.5.1.1/24', ['10.5.1.0/24']],
    ['empty', '', undefined, /^subnet file F names no subnet$/],
    ['without a subnet', 'FLANNEL_NETWORK=10.5.0.0/16\n', undefined, /^subnet file F names no subnet$/],
    ['a key that ends so', 'OLD_FLANNEL_SUBNET=10.5.1.1/24\n', undefined, /names no subnet$/],
    ['an empty subnet', 'FLANNEL_SUBNET=\n', undefined, /names no subnet$/],
    ['nonsense', 'FLANNEL_SUBNET=nonsense\n', undefined, /^subnet file F is of no use: "nonsense" is not a CIDR$/],
    ['half nonsense', `${FOUR}FLANNEL_IPV6_SUBNET=::/x\n`, undefined, /is of no use: "::\/x" is not a CIDR$/],
    ['bytes', '\0\xff\0', undefined, /names no subnet$/],
  ];
  for (const [what, text, subnets, expected] of cases) {
    const found = await read(t.testdirName, text);
    t.same(found.subnets, subnets, what);
    if (expected) t.match(found.said, [expected], what);
    t.equal(found.said.length, expected ? 1 : 0, what);
  }
});

t.test('what cannot be read is of no use, and no error', async (t) => {
  const dir = t.testdir({ folder: {}, file: '' });
  mkdirSync(join(dir, 'loop'));
  symlinkSync('self', join(dir, 'loop', 'self'));
  for (const [path, expected] of [
    // Where no file can be, whoever writes it has something to say, and says it.
    [join(dir, 'folder'), []],
    [join(dir, 'file', 'subnet.env'), []],
    [join(dir, 'loop', 'self'), [/ELOOP/]],
  ] as const) {
    const said: string[] = [];
    t.equal(await readSubnetFile(path, parsePrefixOf, (reason) => said.push(reason)), undefined);
    t.equal(said.length, expected.length);
    t.match(said, expected);
    t.equal(await readSubnetFile(path, parsePrefixOf), undefined, 'nobody has to listen');
  }
});

t.test('what was written is read', async (t) => {
  const path = join(t.testdir(), 'subnet.env');
  await writeSubnetFile(path, content('10.5.0.0/16,fd00:5::/48', '10.5.1.0/24,fd00:5:0:1::/64'));
  const found = await readSubnetFile(path, parsePrefixOf);
  t.same(
    found?.subnets.map((subnet) => subnet.text),
    ['10.5.1.0/24', 'fd00:5:0:1::/64'],
  );
});
