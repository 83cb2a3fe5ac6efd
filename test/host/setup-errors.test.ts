/**
 * Every mistake in the set-up of a real weftd gives one line that says what failed, on what, and what to do; exit code 1 or 2;
 * and leaves no device behind. In a network namespace of its own.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Finished, hostsImpossible, Lab, type Namespace } from '../../race/hosts.js';

const impossible = hostsImpossible();
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

const WEFTD = fileURLToPath(new URL('../../src/main.js', import.meta.url));
const lab = new Lab('setup');
t.teardown(() => lab.close());

const host = lab.namespace('host');
const other = lab.namespace('other');
lab.veth(host, 'eth0', other, 'eth0');
lab.veth(host, 'bare0', other, 'bare0');
lab.veth(host, 'small0', other, 'small0', 1300);
host.ip(
  'address add 192.168.77.1/24 dev eth0',
  'address add fd77::1/64 dev eth0 nodad',
  'address add 192.168.78.1/24 dev small0',
);

const file = (name: string, content: unknown): string => {
  const path = join(lab.dir, name);
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
};
const peer = (name: string, address: string, ...subnets: string[]): unknown => ({ name, address, subnets });
const good = file('good.json', { peers: [peer('b', '192.168.77.2', '10.5.2.0/24')] });

const BASE: Readonly<Record<string, string>> = {
  '--network': '10.5.0.0/16',
  '--subnet': '10.5.1.0/24',
  '--iface': 'eth0',
  '--peers': good,
};

/** The arguments of a weftd that would start, with some options changed, added, or (undefined) left out. */
function args(changes: Readonly<Record<string, string | undefined>> = {}): string[] {
  return Object.entries({ ...BASE, ...changes }).flatMap(([flag, value]) => (value === undefined ? [] : [flag, value]));
}

/** Checks that weftd, behind `before` (a command that runs it), ends as it should. */
async function fails(
  t: Tap,
  what: string,
  expected: RegExp,
  changes: Readonly<Record<string, string | undefined>> = {},
  { code = 1, before = [] as readonly string[], ns = host, env = {} as NodeJS.ProcessEnv } = {},
): Promise<void> {
  const [command, ...rest] = [...before, process.execPath, WEFTD, ...args(changes)];
  const done: Finished = await ns.run(command, rest, {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 10_000,
    env: { ...process.env, ...env },
  });
  t.match(done.stderr, /^weftd: [^\n]+\n$/, `${what}: one line`);
  t.match(done.stderr, expected, what);
  t.equal(done.code, code, `${what}: exit code`);
  t.equal(done.stdout, '', `${what}: nothing else`);
  t.equal(links(ns).includes('flannel0'), false, `${what}: no device is left`);
}
type Tap = Pick<typeof t, 'match' | 'equal'>;

const links = (ns: Namespace): string[] =>
  ns
    .runSync('ip', '-o', 'link', 'show')
    .split('\n')
    .map((line) => line.split(': ')[1]?.split('@')[0] ?? '');

t.test('usage', async (t) => {
  await fails(t, 'unknown option', /unknown option '--frobnicate': weftd --help/, { '--frobnicate': '1' }, { code: 2 });
  await fails(
    t,
    'bad CIDR',
    /--network: "10\.5\.0\.0\/33" has a prefix length above 32/,
    { '--network': '10.5.0.0/33' },
    { code: 2 },
  );
  await fails(
    t,
    'overlapping CIDR',
    /10\.5\.0\.0\/16 and 10\.5\.0\.0\/17 overlap/,
    { '--network': '10.5.0.0/16,10.5.0.0/17' },
    { code: 2 },
  );
  await fails(
    t,
    'subnet elsewhere',
    /--subnet 10\.6\.1\.0\/24: expected a part of/,
    { '--subnet': '10.6.1.0/24' },
    { code: 2 },
  );
});

t.test('the host', async (t) => {
  await fails(t, 'no interface', /interface eth7 does not exist: check --iface/, { '--iface': 'eth7' });
  await fails(t, 'no address', /interface bare0 has no address: give it one/, { '--iface': 'bare0' });
  await fails(t, 'no default route', /no default route to tell the interface by: name it with --iface/, {
    '--iface': undefined,
  });
  await fails(t, 'public address elsewhere', /192\.168\.77\.99 is not an address of this host/, {
    '--public-ip': '192.168.77.99',
  });
  await fails(t, 'and no interface named', /192\.168\.77\.99 is not an address of this host: check --public-ip/, {
    '--iface': undefined,
    '--public-ip': '192.168.77.99',
  });
  await fails(t, 'MTU too small', /interface small0 has MTU 1300, which leaves 1272 for the device, less than 1280/, {
    '--iface': 'small0',
    '--network': '10.5.0.0/16,fd00:5::/48',
    '--subnet': '10.5.1.0/24,fd00:5:0:1::/64',
  });
  await fails(
    t,
    'no ip command',
    /the ip command cannot be run \(E[A-Z]+\): install iproute2/,
    {},
    {
      before: [
        'unshare',
        '--mount',
        'sh',
        '-c',
        'for f in /usr/sbin/ip /sbin/ip /usr/bin/ip /bin/ip; do [ -e $f ] && mount --bind /dev/null $f; done; exec "$@"',
        'sh',
      ],
    },
  );
});

t.test('rights', async (t) => {
  await fails(
    t,
    'no CAP_NET_ADMIN',
    /CAP_NET_ADMIN is missing, run as root/,
    {},
    {
      before: ['setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin', '--ambient-caps=-net_admin'],
    },
  );
  await fails(
    t,
    'no /dev/net/tun',
    /\/dev\/net\/tun is missing: load the tun module/,
    {},
    {
      before: ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh'],
    },
  );
});

t.test('what is taken', async (t) => {
  await fails(
    t,
    'device',
    /device name eth0 is taken by an interface that is not weft's: choose another with --device/,
    {
      '--device': 'eth0',
    },
  );
  host.ip('tuntap add dev strange0 mode tun');
  await fails(t, 'a TUN of another', /device name strange0 is taken/, { '--device': 'strange0' });
  host.ip('link del strange0');

  const holder = host.start('holder', process.execPath, [
    '-e',
    `require('node:dgram').createSocket('udp4').bind(8285, '192.168.77.1', () => console.log('bound'));
     require('node:net').createServer().listen(9469, '127.0.0.1');`,
  ]);
  await holder.ready('bound');
  await fails(t, 'port', /UDP port 8285 of 192\.168\.77\.1 is in use: stop its owner, or choose another --port/);
  await fails(t, 'metrics port', /127\.0\.0\.1:9469 is in use: choose another --metrics-address/, {
    '--port': '8286',
    '--metrics-address': '127.0.0.1:9469',
  });
  await holder.stop('SIGKILL');

  host.ip('route add 10.5.0.0/16 via 192.168.77.2');
  await fails(t, 'route', /network 10\.5\.0\.0\/16 is routed to eth0 already/);
  host.ip('route del 10.5.0.0/16');
});

t.test('metrics where nobody asked for them: one warning, and packets flow', async (t) => {
  const holder = host.start('port', process.execPath, [
    '-e',
    `require('node:net').createServer().listen(9469, '127.0.0.1', () => console.log('bound'));`,
  ]);
  await holder.ready('bound');
  const weftd = host.start('unasked', process.execPath, [WEFTD, ...args()]);
  await weftd.ready('"event":"ready"');
  const warnings = weftd
    .log()
    .split('\n')
    .filter((line) => line.includes('"warn"'));
  t.equal(warnings.length, 1);
  t.match(
    warnings[0],
    /"event":"metrics_off","reason":"127\.0\.0\.1:9469 is in use: choose another --metrics-address"/,
  );
  await weftd.stop();
  t.equal(weftd.child.exitCode, 0);
  await holder.stop('SIGKILL');
});

t.test('the peers file', async (t) => {
  const with_ = (name: string, ...peers: unknown[]): Record<string, string> => ({ '--peers': file(name, { peers }) });
  await fails(t, 'absent', /peers file \/nonexistent\.json: ENOENT/, { '--peers': '/nonexistent.json' });
  await fails(t, 'a directory', /: not a regular file/, { '--peers': lab.dir });
  const unreadable = file('unreadable.json', '{}');
  await fails(
    t,
    'unreadable',
    /unreadable\.json: EACCES/,
    { '--peers': unreadable },
    {
      before: [
        'sh',
        '-c',
        `chmod 0 ${unreadable}; exec setpriv --bounding-set=-dac_override,-dac_read_search "$@"`,
        'sh',
      ],
    },
  );
  await fails(t, 'malformed', /malformed\.json: not JSON: /, { '--peers': file('malformed.json', '{"peers":[\n') });
  await fails(t, 'not peers', /shape\.json: peers/, { '--peers': file('shape.json', '{"peer":[]}') });
  await fails(
    t,
    'bad address',
    /peer b: "10\.1" is not an IP address/,
    with_('address.json', peer('b', '10.1', '10.5.2.0/24')),
  );
  await fails(
    t,
    'bad CIDR',
    /peer b: "10\.5\.2\.1\/24" has host bits set/,
    with_('cidr.json', peer('b', '192.168.77.2', '10.5.2.1/24')),
  );
  await fails(
    t,
    'two owners',
    /two\.json: subnet 10\.5\.2\.0\/24 has two owners, peers b and c/,
    with_('two.json', peer('b', '192.168.77.2', '10.5.2.0/24'), peer('c', '192.168.77.3', '10.5.2.0/24')),
  );
  await fails(
    t,
    'overlap',
    /subnets 10\.5\.2\.0\/24 of peer b and 10\.5\.2\.128\/25 of peer c overlap/,
    with_('overlap.json', peer('b', '192.168.77.2', '10.5.2.0/24'), peer('c', '192.168.77.3', '10.5.2.128/25')),
  );
  await fails(
    t,
    'our own subnet',
    /overlaps --subnet 10\.5\.1\.0\/24/,
    with_('own.json', peer('b', '192.168.77.2', '10.5.1.0/24')),
  );
  await fails(
    t,
    'no such underlay',
    /this host has no IPv6 underlay/,
    with_('six.json', peer('b', 'fd77::2', '10.5.2.0/24')),
  );
});
