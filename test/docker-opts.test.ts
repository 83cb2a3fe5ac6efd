/** weft docker-opts: the output of flannel's mk-docker-opts.sh, byte for byte. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { UsageError } from '../src/config.js';
import { parseCidr } from '../src/control/cidr.js';
import { dockerOpts } from '../src/docker-opts.js';
import { writeSubnetFile } from '../src/host/subnet-file.js';
import { SetupError } from '../src/io/setup-error.js';

const WEFT = fileURLToPath(new URL('../src/cli.js', import.meta.url));
const dir = t.testdir({
  'subnet.env': 'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n',
});
const subnetEnv = join(dir, 'subnet.env');
const output = join(dir, 'docker.env');

function made(args: readonly string[], env: Record<string, string> = {}, from = subnetEnv): string {
  const printed = dockerOpts(['-f', from, '-d', output, ...args], env);
  return printed + readFileSync(output, 'utf8');
}

const BIP = 'DOCKER_OPT_BIP="--bip=10.5.72.1/24"\n';
const IPMASQ = 'DOCKER_OPT_IPMASQ="--ip-masq=true"\n';
const MTU = 'DOCKER_OPT_MTU="--mtu=1472"\n';
const ALL = 'DOCKER_OPTS=" --bip=10.5.72.1/24 --ip-masq=true --mtu=1472"\n';

t.test("what flannel's script writes", async (t) => {
  t.equal(made([]), BIP + IPMASQ + MTU + ALL);
  t.equal(made(['-i']), BIP + IPMASQ + MTU);
  t.equal(made(['-c']), ALL);
  t.equal(made(['-i', '-c']), BIP + IPMASQ + MTU + ALL);
  t.equal(made(['-ic']), BIP + IPMASQ + MTU + ALL, 'flags in one');
  t.equal(made(['-m']), `${BIP}${MTU}DOCKER_OPTS=" --bip=10.5.72.1/24 --mtu=1472"\n`);
  t.equal(made(['-c', '-k', 'NETWORK']), ALL.replace('DOCKER_OPTS', 'NETWORK'));
  t.equal(made(['-ckNETWORK']), ALL.replace('DOCKER_OPTS', 'NETWORK'));
  t.equal(made(['-c'], { DOCKER_OPTS: '-H fd://' }), ALL.replace('" ', '"-H fd://  '), 'what is there already');
  t.equal(made(['-i'], { DOCKER_OPT_LOG: '-l warn' }), `${BIP}${IPMASQ}DOCKER_OPT_LOG="-l warn"\n${MTU}`);
});

t.test('of other subnet files', async (t) => {
  const from = join(dir, 'other.env');
  const of = (text: string, args: string[] = []): string => {
    writeFileSync(from, text);
    return made(args, {}, from);
  };
  t.equal(of('FLANNEL_SUBNET="10.1.2.1/24"\n', ['-i']), 'DOCKER_OPT_BIP="--bip=10.1.2.1/24"\n', 'quoted');
  t.equal(of('FLANNEL_IPMASQ=true\n'), 'DOCKER_OPT_IPMASQ="--ip-masq=false"\nDOCKER_OPTS=" --ip-masq=false"\n');
  t.equal(
    of('FLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1400'),
    'DOCKER_OPT_MTU="--mtu=1400"\nDOCKER_OPTS=" --mtu=1400"\n',
  );
  const one = { networks: [parseCidr('10.5.0.0/16')], subnets: [parseCidr('10.5.72.0/24')], mtu: 1472, ipMasq: false };
  await writeSubnetFile(from, one);
  t.equal(made([], {}, from), BIP + IPMASQ + MTU + ALL, 'what weftd writes');
});

t.test('the file', async (t) => {
  const nested = join(dir, 'a', 'b', 'docker.env');
  dockerOpts(['-f', subnetEnv, '-d', nested], {});
  t.equal(statSync(nested).mode & 0o777, 0o644, 'others may read it');
  const link = join(dir, 'link.env');
  symlinkSync(nested, link);
  writeFileSync(nested, 'old');
  dockerOpts(['-f', subnetEnv, '-d', link, '-i'], {});
  t.equal(readFileSync(nested, 'utf8'), BIP + IPMASQ + MTU, 'a link stays one');
  t.same(readdirSync(join(dir, 'a', 'b')), ['docker.env'], 'nothing else is left');
  t.equal(dockerOpts(['-f', subnetEnv, '-d', '/dev/stdout', '-c'], {}), ALL);
});

t.test('mistakes give one line, and leave what was there', async (t) => {
  writeFileSync(output, 'before');
  const bad = (name: string, text: string): string => {
    writeFileSync(join(dir, name), text);
    return join(dir, name);
  };
  mkdirSync(join(dir, 'folder'));
  const cases: [args: string[], expected: RegExp, type: typeof SetupError | typeof UsageError][] = [
    [
      ['-f', join(dir, 'none')],
      /^subnet file \S+ does not exist: start weftd first, or name another with -f$/,
      SetupError,
    ],
    [
      ['-f', dir],
      /^cannot read subnet file \S+ \(EISDIR: [^)]*\): make it readable, or name another with -f$/,
      SetupError,
    ],
    [['-f', bad('empty', 'x\n')], /says nothing: is it what weftd wrote\?$/, SetupError],
    [
      ['-f', bad('masq', 'FLANNEL_IPMASQ=maybe')],
      /^invalid value of FLANNEL_IPMASQ: maybe: expected true or/,
      SetupError,
    ],
    [['-f', bad('shell', 'FLANNEL_MTU=$(reboot)')], /FLANNEL_MTU "\$\(reboot\)" is no plain value$/, SetupError],
    [['-d', '/proc/nothing'], /^cannot write \/proc\/nothing \(E[^)]*\): name another with -d$/, SetupError],
    [['-d', join(dir, 'folder')], /^cannot write \S+ \(EISDIR/, SetupError],
    [['-k', 'A B'], /^-k "A B": expected the name of a variable$/, UsageError],
    [['-f', ''], /^-f "": expected a file$/, UsageError],
    [['-x'], /^unknown option '-x': weft docker-opts --help lists what there is$/, UsageError],
    [['up'], /^too many arguments/, UsageError],
    [['-k'], /argument missing/, UsageError],
  ];
  for (const [args, expected, type] of cases) {
    try {
      dockerOpts(['-f', subnetEnv, '-d', output, ...args], {});
      t.fail(`${args} is taken`);
    } catch (error) {
      t.ok(error instanceof type, args.join(' '));
      t.match(error, { message: expected });
      t.notMatch(String(error), /\n/);
    }
  }
  t.equal(readFileSync(output, 'utf8'), 'before');
  t.notOk(existsSync('/proc/nothing'));
});

t.test('the command', async (t) => {
  const weft = (...args: string[]): string => execFileSync(process.execPath, [WEFT, ...args], { encoding: 'utf8' });
  t.match(weft('--help'), /docker-opts/);
  const help = weft('docker-opts', '--help');
  for (const flag of ['-f', '-d', '-i', '-c', '-m', '-k']) t.match(help, new RegExp(`^  ${flag} `, 'm'));
  t.ok(help.includes(ALL.trim()), 'the example is what it writes');
  t.equal(weft('docker-opts', '-f', subnetEnv, '-d', output), '');
  const lone = spawnSync(process.execPath, [WEFT, 'docker-opts', '-f', '/nowhere'], { encoding: 'utf8' });
  t.match(lone, { status: 1, stderr: /^weft: subnet file \/nowhere does not exist: start weftd first[^\n]*\n$/ });
  t.equal(spawnSync(process.execPath, [WEFT, 'docker-opts', '-z']).status, 2);
});
