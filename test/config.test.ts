/** Every option from every source, in the order of precedence, and every check with the line that it gives. */
import t from 'tap';
import { parseConfig, parseInit } from '../src/command-line.js';
import { type Config, OPTIONS, type Option, type Settings, UsageError } from '../src/config.js';
import { environmentName } from '../src/config-sources.js';
import { parsePeers } from '../src/control/static-registry.js';
import { type NOTHING_SAID, OF_ETCD } from '../src/flannel-options.js';
import { ALL_OFFLOADS, OFFLOADS } from '../src/io/offloads.js';
import { SetupError } from '../src/io/setup-error.js';

const noFile = (path: string): string => {
  throw new Error(`unexpected read of ${path}`);
};

const BASE = ['--network', '10.5.0.0/16', '--subnet', '10.5.1.0/24', '--peers', 'peers.json'];

function run(argv: readonly string[], env: Record<string, string> = {}, readFile = noFile): Config {
  const asked = parseConfig(argv, env, readFile);
  if (asked.kind !== 'run') throw new Error(`asked for ${asked.kind}`);
  return asked.config;
}

/** The line that a mistake gives. */
function complaint(argv: readonly string[], env: Record<string, string> = {}, readFile = noFile): string {
  try {
    run(argv, env, readFile);
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
  return 'nothing was wrong';
}

/** The configuration, or the line that a mistake gives. */
function outcome(argv: readonly string[], env: Record<string, string> = {}): Config | string {
  try {
    return run(argv, env);
  } catch (error) {
    return String(error);
  }
}

t.test('defaults', async (t) => {
  const config = run(BASE);
  t.match(config, {
    ifaces: [],
    ifaceRegexes: [],
    ifaceCanReach: undefined,
    publicIps: [],
    ipMasq: false,
    ipMasqRandomFully: true,
    rulesResync: 5,
    forwardRules: false,
    blackholeRoute: false,
    healthAddress: undefined,
    registry: 'static',
    port: undefined,
    peersFile: 'peers.json',
    registryPath: '/var/lib/weft/registry',
    stateDir: undefined,
    subnetFile: undefined,
    leaseTtl: 60,
    staleLimit: 86_400,
    mtu: undefined,
    device: 'flannel0',
    offloads: ALL_OFFLOADS,
    sourceCheck: 'peer',
    metricsAddress: { host: '127.0.0.1', port: 9469 },
    metricsSaid: false,
    controlSocket: undefined,
    workers: 1,
    logLevel: 'info',
    logFormat: 'json',
    keepDevice: false,
  });
  t.same(
    config.networks.map(({ text, length, bytes }) => ({ text, length, bytes: [...bytes] })),
    [{ text: '10.5.0.0/16', length: 16, bytes: [10, 5, 0, 0] }],
  );
});

t.test('every option has what it needs', async (t) => {
  const help = parseConfig(['--help'], {}, noFile);
  if (help.kind !== 'help') throw new Error('no help');
  const words = help.text.replace(/\s+/g, ' ');
  for (const option of Object.values<Option<unknown>>(OPTIONS)) {
    t.ok(words.includes(`--${option.flag}`), `${option.flag} is in the help`);
    t.ok(words.includes(option.help), `${option.flag} has its help there`);
    t.ok(words.includes(option.example), `${option.flag} has its example there`);
    if (option.value !== undefined && option.default !== undefined) {
      t.ok(words.includes(`default: ${option.default}`), `${option.flag} has its default there`);
    }
    if (option.default !== undefined)
      t.doesNotThrow(() => option.check(option.default), `the default of ${option.flag}`);
    // The example is taken, and a value that is wrong for every option is not.
    const [flag, ...value] = option.example.split(/[ =]/);
    t.equal(flag, `--${option.flag}`);
    t.doesNotThrow(() => option.check(value[0] ?? 'true'), `the example of ${option.flag}`);
    if (option.expects !== 'nothing') t.throws(() => option.check(''), RangeError, `${option.flag} is checked`);
  }
});

t.test('a flag goes before the environment, that before the file, that before the default', async (t) => {
  const file = (): string =>
    JSON.stringify({ port: 3, device: 'file0', 'log-level': 'warn', network: ['10.5.0.0/16'] });
  const env = { WEFT_PORT: '2', WEFT_DEVICE: 'env0', WEFT_SUBNET: '10.5.2.0/24' };
  const argv = ['--config', 'c.json', '--port', '1', '--peers', 'p'];
  const config = run(argv, env, file);
  t.match(config, { port: 1, device: 'env0', logLevel: 'warn', workers: 1 });
  t.equal(config.subnets[0].text, '10.5.2.0/24');
  t.equal(run(argv.slice(2), { ...env, WEFT_CONFIG: 'c.json' }, file).logLevel, 'warn', 'the file by environment');
  t.equal(run(BASE, { WEFT_PORT: '' }).port, undefined, 'an empty variable is none');
});

const ONLY_EMBEDDED = new Set<string>(['subnetLengths', 'subnetMins', 'subnetMaxs']);
const ONLY_ETCD = new Set<string>([...OF_ETCD, 'renewMargin']);
const ONLY_L2 = new Set<string>([
  'mode',
  'vni',
  'bridge',
  'addresses',
  'sourcePorts',
  'macAge',
  'macTable',
  'macsPerPeer',
  'floodUnknown',
  'stormLimit',
]);

const L2 = ['--mode', 'l2', '--vni', '42'];

/** Of these the configuration has another name, or nothing. */
type Elsewhere =
  | 'configFile'
  | 'publicIpv6'
  | 'healthzIp'
  | 'healthzPort'
  | 'verbosity'
  | (typeof NOTHING_SAID)[number];

t.test('each option by each source', async (t) => {
  const cases: Record<Exclude<keyof Settings, Elsewhere>, [text: string, json: unknown, expected: unknown]> = {
    networks: ['10.0.0.0/8,fd00::/32', ['10.0.0.0/8', 'fd00::/32'], ['10.0.0.0/8', 'fd00::/32']],
    registry: ['static', 'static', 'static'],
    subnetLengths: ['26,80', ['26', 80], [26, 80]],
    subnetMins: ['10.5.16.0,fd00:5:0:2::', ['10.5.16.0', 'fd00:5:0:2::'], ['10.5.16.0', 'fd00:5:0:2::']],
    subnetMaxs: ['10.5.31.0', '10.5.31.0', ['10.5.31.0']],
    backend: ['udp', 'udp', 'udp'],
    registryPath: ['/r', '/r', '/r'],
    stateDir: ['/s', '/s', '/s'],
    subnetFile: ['/f', '/f', '/f'],
    leaseTtl: ['86400', 86_400, 86_400],
    staleLimit: ['0', 0, 0],
    subnets: ['10.5.3.0/24', '10.5.3.0/24', ['10.5.3.0/24']],
    ifaces: ['eth7,192.168.77.1', ['eth7', '192.168.77.1'], ['eth7', '192.168.77.1']],
    ifaceRegexes: ['^(eth|ens){1,2}', '^(eth|ens){1,2}', [/^(eth|ens){1,2}/]],
    ifaceCanReach: ['192.0.2.9', '192.0.2.9', '192.0.2.9'],
    publicIps: ['192.0.2.1,2001:DB8::1', ['192.0.2.1', '2001:db8::1'], ['192.0.2.1', '2001:db8::1']],
    port: ['9000', 9000, 9000],
    peersFile: ['/p', '/p', '/p'],
    mtu: ['1400', 1400, 1400],
    device: ['weft0', 'weft0', 'weft0'],
    mode: ['l2', 'l2', 'l2'],
    vni: ['16777215', 16_777_215, 16_777_215],
    bridge: ['br0', 'br0', 'br0'],
    addresses: ['10.7.0.1/24,FD07::1/64', ['10.7.0.1/24', 'FD07::1/64'], ['10.7.0.1', 'fd07::1']],
    sourcePorts: ['8', 8, 8],
    outerChecksum: ['off', 'off', false],
    outerDf: ['unset', 'unset', false],
    inheritDscp: ['inherit', 'inherit', true],
    macAge: ['10', 10, 10],
    macTable: ['1000000', 1_000_000, 1_000_000],
    macsPerPeer: ['7', 7, 7],
    floodUnknown: ['drop', 'drop', false],
    stormLimit: ['off', 'off', 0],
    offloads: ['tso4,csum', 'tso4,csum', OFFLOADS.tso4 | OFFLOADS.csum],
    sourceCheck: ['strict', 'strict', 'strict'],
    metricsAddress: ['[::1]:9', '[::1]:9', { host: '::1', port: 9 }],
    workers: ['8', 8, 8],
    controlSocket: ['/run/weft-blue.sock', '/run/weft-blue.sock', '/run/weft-blue.sock'],
    logLevel: ['debug', 'debug', 'debug'],
    logFormat: ['text', 'text', 'text'],
    keepDevice: ['true', true, true],
    etcdEndpoints: [
      'https://a.example:2379,http://[::1]:4001/',
      ['https://a.example:2379', 'http://[::1]:4001'],
      ['https://a.example:2379', 'http://[::1]:4001'],
    ],
    etcdPrefix: ['/a//b/', '/a/b', '/a/b'],
    etcdKeyFile: ['/k', '/k', '/k'],
    etcdCertFile: ['/c', '/c', '/c'],
    etcdCaFile: ['/ca', '/ca', '/ca'],
    etcdUsername: ['u', 'u', 'u'],
    etcdPassword: ['p w', 'p w', 'p w'],
    renewMargin: ['1439', 1439, 1439],
    ipMasq: ['T', true, true],
    ipMasqRandomFully: ['TRUE', true, false],
    forwardRules: ['1', true, true],
    rulesResync: ['60', 60, 60],
    blackholeRoute: ['true', true, true],
  };
  const alone: Record<string, readonly string[]> = {
    etcdKeyFile: ['--etcd-certfile', '/c'],
    etcdCertFile: ['--etcd-keyfile', '/k'],
    etcdUsername: ['--etcd-password', 'p'],
    etcdPassword: ['--etcd-username', 'u'],
  };
  const EMBEDDED = ['--network', '10.5.0.0/16,fd00:5::/48'];
  for (const [key, [text, json, expected]] of Object.entries(cases)) {
    const name = key as keyof typeof cases;
    const etcd = ['--registry', 'etcd', ...(alone[name] ?? [])];
    const base = ONLY_EMBEDDED.has(name) ? EMBEDDED : ONLY_L2.has(name) ? L2 : ONLY_ETCD.has(name) ? etcd : BASE;
    const { flag, value, flannel }: Option<unknown> = OPTIONS[name];
    const seen = (config: Config): unknown => {
      const all: { readonly [key in keyof Settings]?: unknown } = { ...config, ...config.segments[0] };
      const found = all[name];
      const plain = (one: unknown): unknown =>
        typeof one === 'object' && one !== null && 'text' in one ? one.text : one;
      return Array.isArray(found) ? found.map(plain) : plain(found);
    };
    const subnet6 = name === 'networks' ? ['--subnet', 'fd00::/64'] : [];
    const argv = [...base, ...subnet6].filter((_, i, all) => all[i] !== `--${flag}` && all[i - 1] !== `--${flag}`);
    for (const dashes of ['-', '--']) {
      const way = `${dashes}${flag}`;
      t.same(seen(run([...argv, `${way}=${text}`])), expected, `${way}=`);
      if (value) t.same(seen(run([...argv, way, text])), expected, way);
      else t.same(seen(run([...argv, way])), expected, way);
      if (!value) t.not(seen(run([...argv, `${way}=false`])), expected, `${way}=false`);
      if (!value) t.throws(() => run([...argv, way, 'false']), /^too many arguments: 'false'/, `${way} false`);
    }
    t.same(seen(run(argv, { [environmentName(flag)]: text })), expected, environmentName(flag));
    const variable = environmentName(flag, 'FLANNELD');
    if (flannel) t.same(seen(run(argv, { [variable]: text })), expected, variable);
    else t.same(outcome(argv, { [variable]: text }), outcome(argv), `there is no ${variable}`);
    const file = (): string => JSON.stringify({ [flag]: json });
    t.same(seen(run([...argv, '--config', 'f'], {}, file)), expected, `"${flag}" in the file`);
  }
});

t.test('lists may be repeated flags', async (t) => {
  const config = run([...BASE, '--network', 'fd00:5::/48', '--subnet=fd00:5:0:1::/64']);
  t.same(
    config.networks.map((one) => one.text),
    ['10.5.0.0/16', 'fd00:5::/48'],
  );
  t.equal(run([...BASE, '--port', '1', '--port', '2']).port, 2, 'of others the last counts');
});

t.test('a mistake gives one line', async (t) => {
  const cases: [what: string, argv: string[], expected: RegExp][] = [
    ['unknown option', ['--frobnicate'], /^unknown option '--frobnicate'/],
    ['argument', ['up'], /^too many arguments: 'up': weftd --help/],
    ['argument after the flags', ['--', '--port', '1'], /^too many arguments: '--port'/],
    ['three dashes', ['---port', '1'], /^'---port' is not a flag/],
    ['unknown option, as in Go', ['-frobnicate=1'], /^unknown option '-frobnicate': weftd --help/],
    ['a value that looks like a flag', ['-public-ip', '-x'], /^--public-ip: "-x" is not an IP address/],
    ['no value', ['--port'], /argument missing/],
    ['port too large', ['--port', '65536'], /^--port "65536": expected a port, 1 to 65535$/],
    ['port zero', ['--port', '0'], /^--port "0": expected/],
    ['port not decimal', ['--port', '0x10'], /^--port "0x10": expected/],
    ['no CIDR', ['--network', '10.5.0.0'], /^--network: "10.5.0.0" is not a CIDR: expected/],
    ['length', ['--network', '10.5.0.0/33'], /prefix length above 32/],
    ['length with zero', ['--network', '10.0.0.0/08'], /not a CIDR/],
    ['host bits', ['--network', '10.5.1.0/16'], /host bits set \(10\.5\.0\.0\/16\?\)/],
    ['host bits, IPv6', ['--network', 'fd00:5::1/48'], /host bits set \(fd00:5::\/48\?\)/],
    ['octal', ['--network', '010.5.0.0/16'], /"010\.5\.0\.0" is not an IP address/],
    ['short form', ['--network', '10.5/16'], /"10\.5" is not an IP address/],
    ['number', ['--network', '0x0a050000/16'], /is not an IP address/],
    ['octet', ['--network', '10.256.0.0/16'], /is not an IP address/],
    ['mapped', ['--network', '::ffff:10.5.0.0/112'], /IPv4 address in IPv6 form/],
    ['zone', ['--public-ip', 'fe80::1%eth0'], /is not an IP address/],
    ['link-local', ['--public-ip', 'fe80::1'], /link local/],
    ['multicast', ['--network', '224.0.0.0/8'], /multicast, not unicast/],
    ['everything', ['--network', '0.0.0.0/0'], /unspecified, not unicast/],
    ['two of a family', ['--network', '10.6.0.0/16'], /10\.5\.0\.0\/16 and 10\.6\.0\.0\/16 are both IPv4/],
    ['overlap', ['--network', '10.5.0.0/17'], /10\.5\.0\.0\/16 and 10\.5\.0\.0\/17 overlap/],
    ['duplicate', ['--network', '10.5.0.0/16'], /10\.5\.0\.0\/16 and 10\.5\.0\.0\/16 overlap/],
    ['network without subnet', ['--network', 'fd00:5::/48'], /^--network fd00:5::\/48: expected a --subnet/],
    ['subnet without network', ['--subnet', 'fd00:5:0:1::/64'], /there is no IPv6 --network/],
    ['mtu too small', ['--mtu', '575'], /^--mtu "575": expected bytes, 576 to 65507$/],
    ['mtu too large', ['--mtu', '65508'], /^--mtu "65508"/],
    ['mtu for IPv6', ['--mtu', '1279', '--network', 'fd00:5::/48', '--subnet', 'fd00:5:0:1::/64'], /at least 1280/],
    ['device too long', ['--device', 'sixteen-letters-'], /^--device "sixteen-letters-": 16 characters long: expected/],
    ['device with slash', ['--device', 'a/b'], /^--device "a\/b"/],
    ['device template', ['--device', 'tun%d'], /^--device "tun%d"/],
    ['device that is a sysctl', ['--device', 'all'], /^--device "all"/],
    ['interface', ['--iface', 'a b'], /^--iface "a b"/],
    ['offload', ['--offload', 'tso5'], /unknown offload "tso5"/],
    ['source check', ['--source-check', 'maybe'], /expected peer, strict or off$/],
    ['workers', ['--workers', '9'], /^--workers "9": expected a number, 1 to 8$/],
    ['metrics without port', ['--metrics-address', '127.0.0.1'], /^--metrics-address "127\.0\.0\.1": expected/],
    ['metrics by name', ['--metrics-address', 'localhost:9469'], /"localhost" is not an IP address/],
    ['metrics without brackets', ['--metrics-address', '::1:9469'], /^--metrics-address "::1:9469"/],
    ['log level', ['--log-level', 'loud'], /^--log-level "loud": expected trace,/],
    ['switch', ['--keep-device=maybe'], /keep-device/],
    ['registry', ['--registry', 'zookeeper'], /^--registry "zookeeper": expected embedded, static or etcd$/],
    ['backend', ['--backend', 'vxlan'], /^--backend "vxlan": expected udp$/],
    ['lease too short', ['--lease-ttl', '2'], /^--lease-ttl "2": expected seconds, 3 to 1000000$/],
    ['stale limit', ['--stale-limit', '1d'], /^--stale-limit "1d": expected seconds/],
    ['length that is none', ['--subnet-len', '129'], /^--subnet-len "129": expected a prefix length/],
    ['of the other registry', ['--subnet-len', '24'], /^--subnet-len: is for --registry embedded/],
    ['empty', ['--peers', ''], /^--peers "": expected a JSON file/],
  ];
  for (const [what, argv, expected] of cases) {
    const line = complaint([...BASE, ...argv]);
    t.match(line, expected, what);
    t.notMatch(line, /\n/, `${what}: one line`);
  }
  t.match(complaint(['--registry', 'static']), /^--peers: missing: --registry static expects/);
  t.match(complaint(['--peers', 'p']), /^--network: missing: --registry static expects/);
  t.match(complaint(BASE.filter((_, i) => i < 2 || i > 3)), /^--subnet: missing: --registry static expects/);
  t.match(
    complaint(['--network', '10.5.0.0/16', '--subnet', '10.6.1.0/24', '--peers', 'p']),
    /^--subnet 10\.6\.1\.0\/24: expected a part of --network 10\.5\.0\.0\/16$/,
  );
  t.match(complaint(BASE, { WEFT_PORT: 'tcp://10.0.0.1:80' }), /^WEFT_PORT "tcp:\/\/10\.0\.0\.1:80": expected a port/);
});

t.test('a mistake in the file gives one line', async (t) => {
  const line = (text: string): string => {
    const message = complaint([...BASE, '--config', 'c.json'], {}, () => text);
    t.notMatch(message, /\n/);
    return message;
  };
  t.match(line('{"prot": 1}'), /^config file c\.json: unknown key "prot"/);
  t.match(line('{"config": "d.json"}'), /unknown key "config"/);
  t.match(line('{"port": 0}'), /^config file c\.json: "port" "0": expected a port/);
  t.match(line('{"port": [1]}'), /"port": expected a value, not Array/);
  t.match(line('{"port": null}'), /"port": expected a value, not null/);
  t.match(line('{\n"port":\n}'), /^config file c\.json: not JSON: /);
  for (const text of ['{"etcd-password": s3cret"}', '{"etcd-password":"s3cret" x}', 's3cret', '{"a":"s3cret\n"}']) {
    t.match(line(text), /^config file c\.json: not JSON: [A-Z][^3]+$/, 'no secrets in it');
  }
  t.match(line('[]'), /^config file c\.json: /);
  const missing = (): string => {
    throw new Error('ENOENT: no such file');
  };
  t.match(complaint(['--config', 'c.json'], {}, missing), /^config file c\.json: ENOENT/);
});

t.test('the embedded registry, which is the default', async (t) => {
  t.match(run([]), { registry: 'embedded', networks: [], subnets: [], peersFile: undefined });
  t.equal(run(BASE).registry, 'static', 'a peers file says which');
  t.match(complaint([...BASE, '--registry', 'embedded']), /^--subnet: is for --registry static/);
  t.match(complaint(['--peers', 'p', '--registry', 'embedded']), /^--peers: is for --registry static/);
  for (const [argv, expected] of [
    [['--subnet-len', '24'], /^--subnet-len: expected --network with it$/],
    [['--subnet-min', '10.5.1.0'], /^--subnet-min: expected --network with it$/],
    [['--network', '10.5.0.0/16', '--subnet-len', '24,64'], /^--subnet-len 24,64: expected one for each of --network/],
    [['--network', '10.5.0.0/16', '--subnet-len', '17'], /^--subnet-len 17: expected 18 to 30/],
    [['--network', '10.5.0.0/29'], /^--network 10\.5\.0\.0\/29: too small/],
    [['--network', '10.5.0.0/16', '--subnet-min', '10.6.0.0'], /^--subnet-min 10\.6\.0\.0: expected an address in/],
    [['--network', '10.5.0.0/16', '--subnet-max', 'fd00:5::'], /^--subnet-max fd00:5::: there is no IPv6/],
  ] as const) {
    t.match(complaint(argv), expected);
  }
});

const ETCD = ['--registry', 'etcd'];
const KEYS = {
  FLANNELD_ETCD_ENDPOINTS: 'https://10.0.0.1:2379',
  FLANNELD_ETCD_CERTFILE: '/c.pem',
  FLANNELD_ETCD_KEYFILE: '/k.pem',
  FLANNELD_ETCD_CAFILE: '/ca.pem',
};

t.test('etcd: defaults, which are those of flannel', async (t) => {
  t.match(run(ETCD), {
    registry: 'etcd',
    etcdEndpoints: ['http://127.0.0.1:4001', 'http://127.0.0.1:2379'],
    etcdPrefix: '/coreos.com/network',
    etcdKeyFile: undefined,
    etcdCertFile: undefined,
    etcdCaFile: undefined,
    etcdUsername: undefined,
    etcdPassword: undefined,
    ifaces: [],
    ifaceRegexes: [],
    ifaceCanReach: undefined,
    publicIps: [],
    subnetFile: '/run/flannel/subnet.env',
    leaseTtl: 86_400,
    renewMargin: 60,
    ipMasq: false,
    ipMasqRandomFully: true,
    rulesResync: 5,
    forwardRules: true,
    blackholeRoute: false,
    healthAddress: undefined,
    logLevel: 'info',
    segments: [],
  });
  t.match(run([...ETCD, '--lease-ttl', '90', '--subnet-file', '/f', '--iptables-forward-rules=false']), {
    leaseTtl: 90,
    subnetFile: '/f',
    forwardRules: false,
  });
});

t.test('the flags and the environment of a flanneld', async (t) => {
  const flags = [
    '-etcd-endpoints=http://10.0.0.1:2379,http://10.0.0.2:2379',
    '-etcd-prefix=/kube-centos/network/',
    '-iface=eth0',
    '--iface=10.0.0.7',
    '-iface-regex=^ens{1,2}',
    '-iface-regex=[[:digit:]],x',
    '-public-ip=10.0.0.7',
    '-public-ipv6=2001:DB8::7',
    '-ip-masq',
    '-ip-masq-fully-random-disable=t',
    '-iptables-forward-rules=0',
    '-healthz-ip=',
    '-healthz-port=8471',
    '-kube-subnet-mgr=false',
    '-v=10',
    '-vmodule=main=2',
    '-log_backtrace_at=',
    '-etcd-cafile=',
  ];
  t.match(run(flags), {
    registry: 'etcd',
    etcdEndpoints: ['http://10.0.0.1:2379', 'http://10.0.0.2:2379'],
    etcdPrefix: '/kube-centos/network',
    etcdCaFile: undefined,
    ifaces: ['eth0', '10.0.0.7'],
    ifaceRegexes: [/^ens{1,2}/, /[0-9],x/],
    publicIps: [{ text: '10.0.0.7' }, { text: '2001:db8::7' }],
    ipMasq: true,
    ipMasqRandomFully: false,
    forwardRules: false,
    healthAddress: { host: '0.0.0.0', port: 8471 },
    logLevel: 'debug',
  });
  const environment = Object.fromEntries(
    flags.map((flag) => {
      const [, name, value = 'true'] = /^--?([^=]*)=?(.*)$/.exec(flag) ?? [];
      return [environmentName(name, 'FLANNELD'), value];
    }),
  );
  t.match(run([], { ...environment, FLANNELD_IFACE: 'eth0', FLANNELD_IP_MASQ: '1' }), {
    registry: 'etcd',
    ifaces: ['eth0'],
    ipMasq: true,
    etcdPrefix: '/kube-centos/network',
    logLevel: 'debug',
  });
  t.match(run(['-etcd-endpoints=http://a:1', '-etcd-endpoints=http://b:2']).etcdEndpoints, ['http://b:2']);
  t.same(run(['-etcd-endpoints', 'a:1,http://b:2']).etcdEndpoints, ['http://a:1', 'http://b:2'], 'without a scheme');
  t.same(
    run(ETCD, { ...KEYS, FLANNELD_ETCD_ENDPOINTS: 'a:1' }).etcdEndpoints,
    ['https://a:1'],
    'and with a certificate',
  );
  t.match(run(ETCD, { ...KEYS, FLANNELD_ETCD_CERTFILE: '', FLANNELD_ETCD_KEYFILE: '' }), { etcdCaFile: '/ca.pem' });
  t.equal(run([...ETCD, '-v', '1', '--log-level', 'warn']).logLevel, 'warn');
  const nothing = ['-iface=', '-iface-regex=', '-iface-can-reach=', '-public-ip=', '-public-ipv6=', '-etcd-username='];
  t.match(run([...ETCD, ...nothing]), { ifaces: [], ifaceRegexes: [], publicIps: [] }, 'empty ones say nothing');
  t.match(run([...ETCD, '-iface=', '-iface=eth0']).ifaces, ['eth0']);
  t.match(run(['-healthz-port', '1', '-healthz-ip', 'localhost']).healthAddress, { host: '127.0.0.1', port: 1 });
  t.match(run(['-public-ipv6', 'fd00::1', '-public-ip', 'fd00::1']).publicIps, [{ text: 'fd00::1' }]);
});

t.test('a flag goes before WEFT_, that before FLANNELD_, that before the file', async (t) => {
  const file = (): string => JSON.stringify({ 'etcd-prefix': '/file', 'public-ip': '10.0.0.4', 'iptables-resync': 4 });
  const argv = ['--config', 'f'];
  const prefix = (more: readonly string[], env: Record<string, string>): string =>
    run([...argv, ...more], env, file).etcdPrefix;
  const flanneld = { FLANNELD_ETCD_PREFIX: '/flanneld' };
  const both = { ...flanneld, WEFT_ETCD_PREFIX: '/weft' };
  t.equal(prefix(['-etcd-prefix', '/flag'], both), '/flag');
  t.equal(prefix([], both), '/weft');
  t.equal(prefix([], flanneld), '/flanneld');
  t.equal(prefix([], {}), '/file');
  t.equal(run(argv, {}, file).registry, 'etcd', 'a key of the file names etcd too');
  t.same(
    run([...argv, '-public-ip='], { FLANNELD_PUBLIC_IP: '10.0.0.3' }, file).publicIps,
    [],
    'set to nothing is set',
  );
});

t.test('which registry', async (t) => {
  t.equal(run([], KEYS).registry, 'etcd');
  t.equal(run(['-etcd-prefix', '/p']).registry, 'etcd');
  t.equal(run([], { WEFT_ETCD_USERNAME: 'u', WEFT_ETCD_PASSWORD: 'p' }).registry, 'etcd');
  t.equal(run(['-iface', 'eth0', '-ip-masq'], { FLANNELD_PUBLIC_IP: '10.0.0.7' }).registry, 'embedded');
  for (const [argv, registry] of [
    [BASE, 'static'],
    [['--registry', 'embedded'], 'embedded'],
  ] as const) {
    t.match(run(argv, { ...KEYS, FLANNELD_SUBNET_LEASE_RENEW_MARGIN: 'x' }), {
      registry,
      etcdCertFile: undefined,
      renewMargin: 60,
    });
    t.match(complaint(['--registry', registry, ...argv, '-etcd-prefix=/p']), /^--etcd-prefix: is for --registry etcd/);
    t.match(complaint(['--registry', registry, ...argv], { WEFT_ETCD_CAFILE: '/ca' }), /^WEFT_ETCD_CAFILE: is for/);
  }
  t.match(
    complaint(['-subnet-lease-renew-margin=90']),
    /^--subnet-lease-renew-margin: is for --registry etcd: give that/,
  );
  t.match(run(L2, { FLANNELD_IP_MASQ: 'true', FLANNELD_SUBNET_FILE: '/f' }), { ipMasq: false, subnetFile: undefined });
  t.match(run(BASE, { FLANNELD_IP_MASQ: 'true', FLANNELD_SUBNET_FILE: '/f' }), { ipMasq: true, subnetFile: '/f' });
});

t.test('etcd: what its configuration says is not said here', async (t) => {
  for (const [flag, text] of [
    ['mode', 'l3'],
    ['network', '10.5.0.0/16'],
    ['subnet', '10.5.1.0/24'],
    ['subnet-len', '24'],
    ['subnet-min', '10.5.1.0'],
    ['subnet-max', '10.5.9.0'],
    ['backend', 'udp'],
    ['port', '8285'],
    ['vni', '1'],
    ['bridge', 'br0'],
    ['address', '10.7.0.1/24'],
  ]) {
    const hint = (where: string, because: string): string =>
      `${where}: the configuration in etcd says it, and etcd is the registry (${because}): leave it out`;
    t.equal(complaint([...ETCD, `-${flag}`, text]), hint(`--${flag}`, '--registry'));
    const variable = environmentName(flag);
    t.equal(complaint([], { ...KEYS, [variable]: text }), hint(variable, 'FLANNELD_ETCD_ENDPOINTS'));
    const file = (): string => JSON.stringify({ [flag]: text });
    t.equal(
      complaint(['-config', 'f', '-etcd-prefix', '/p'], {}, file),
      hint(`config file f: "${flag}"`, '--etcd-prefix'),
    );
  }
  const networks = (): string => '{"networks":[{"vni":1}]}';
  t.match(
    complaint(['-config', 'f', ...ETCD], {}, networks),
    /^config file f: "networks": the configuration in etcd says/,
  );
  t.match(
    complaint(['--peers', 'p', '-etcd-prefix', '/p']),
    /^--peers: is for --registry static, and etcd is the registry/,
  );
  t.match(complaint([...ETCD, '--registry-path', '/r']), /^--registry-path: is for --registry embedded, and etcd is/);
  t.match(
    run([...ETCD, '--mac-age', '60', '--source-ports', '8', '--unknown-unicast', 'drop', '--storm-limit', 'off']),
    {
      macAge: 60,
      sourcePorts: 8,
    },
  );
  t.match(run([...ETCD, '--source-check', 'strict', '--mtu', '1400', '--device', 'x', '--state-dir', '/s']), {
    mtu: 1400,
  });
});

t.test('etcd: mistakes', async (t) => {
  const cases: [argv: string[], expected: RegExp][] = [
    [['-etcd-endpoints='], /^--etcd-endpoints: "" is not an endpoint: expected http:\/\/ or https:/],
    [['-etcd-endpoints=ftp://a:1'], /"ftp:\/\/a:1" is not an endpoint/],
    [['-etcd-endpoints=http://a'], /"http:\/\/a" is not an endpoint/],
    [['-etcd-endpoints=http://a:1/v2'], /is not an endpoint/],
    [
      ['-etcd-endpoints=http://a:1,http://u:s3cret@a:1'],
      /^--etcd-endpoints: "…@…": (?!.*s3)user and password are --etcd-username/,
    ],
    [['-etcd-endpoints=http://a:1,'], /"" is not an endpoint/],
    [['-etcd-endpoints=http://a:65536'], /has no port from 1 to 65535/],
    [['-etcd-endpoints=http://300.0.0.1:1'], /"300\.0\.0\.1" is not an IP address/],
    [['-etcd-endpoints=http://[a]:1'], /"a" is not an IP address/],
    [['-etcd-prefix='], /^--etcd-prefix "": expected a key/],
    [['-etcd-certfile=/c'], /^--etcd-certfile: expected --etcd-keyfile with it$/],
    [['-etcd-keyfile=/k', '-etcd-certfile='], /^--etcd-keyfile: expected --etcd-certfile with it$/],
    [['-etcd-username=u'], /^--etcd-username: expected --etcd-password with it$/],
    [['-etcd-password=p'], /^--etcd-password: expected --etcd-username with it$/],
    [[...ETCD, '-ip-masq=yes'], /^--ip-masq "yes": expected true or false$/],
    [[...ETCD, '-iptables-resync=0'], /^--iptables-resync "0": expected seconds, 1 to/],
    [[...ETCD, '-healthz-port=65536'], /^--healthz-port "65536": expected a port/],
    [[...ETCD, '-healthz-ip=all'], /^--healthz-ip: "all" is not an IP address/],
    [[...ETCD, '-iface=eth0,'], /^--iface "eth0,": expected names or addresses/],
    [[...ETCD, '-iface=10.0.0.300'], /^--iface: "10\.0\.0\.300" is not an IP address/],
    [[...ETCD, '-iface-regex=('], /^--iface-regex "\(": .*: expected a regular expression/],
    [[...ETCD, '-iface-regex=a(?i)b'], /^--iface-regex "a\(\?i\)b": groups of/],
    [[...ETCD, '-iface-can-reach=eth0'], /^--iface-can-reach: "eth0" is not an IP address/],
    [[...ETCD, '-public-ip=0.0.0.0'], /^--public-ip: "0\.0\.0\.0" is an unspecified address: expected/],
    [[...ETCD, '-public-ipv6=10.0.0.7'], /^--public-ipv6: "10\.0\.0\.7" is an IPv4 address: expected an IPv6/],
    [
      [...ETCD, '-public-ipv6=fd00::1', '-public-ip=fd00::2'],
      /^--public-ipv6 fd00::1: --public-ip names fd00::2 already/,
    ],
    [[...ETCD, '-subnet-lease-renew-margin=1h'], /^--subnet-lease-renew-margin "1h": expected minutes, 1 to 1439$/],
    [[...ETCD, '-v=high'], /^--v "high": expected a number/],
  ];
  for (const [argv, expected] of cases) {
    const line = complaint(argv);
    t.match(line, expected, argv.join(' '));
    t.notMatch(line, /\n/);
  }
  t.match(
    complaint([], { ...KEYS, FLANNELD_ETCD_KEYFILE: '' }),
    /^FLANNELD_ETCD_CERTFILE: expected --etcd-keyfile with it/,
  );
  t.match(complaint(ETCD, { FLANNELD_IP_MASQ: 'yes' }), /^FLANNELD_IP_MASQ "yes": expected true or false$/);
});

t.test("flannel's flags of what is not there yet", async (t) => {
  const refused = (argv: string[], env = {}, expected: RegExp, code = 'NOT_SUPPORTED'): void => {
    try {
      run(argv, env);
      t.fail(`${argv.join(' ')} is taken`);
    } catch (error) {
      t.ok(error instanceof SetupError);
      t.match(error, { message: expected, code });
      t.notMatch(String(error), /\n/);
    }
  };
  const kubernetes: [flag: string, standard: string, other: string][] = [
    ['kube-subnet-mgr', 'false', 'true'],
    ['kube-api-url', '', 'https://10.0.0.1'],
    ['kubeconfig-file', '', '/k'],
    ['kube-annotation-prefix', 'flannel.alpha.coreos.com', 'example.com'],
    ['net-config-path', '/etc/kube-flannel/net-conf.json', '/n.json'],
    ['set-node-network-unavailable', 'true', 'false'],
  ];
  for (const [flag, standard, other] of kubernetes) {
    t.doesNotThrow(() => run([...ETCD, `-${flag}=${standard}`]), `${flag}: flannel's default`);
    refused([...ETCD, `-${flag}=${other}`], {}, new RegExp(`^--${flag} "${other}": Weft does not do Kubernetes yet`));
    const variable = environmentName(flag, 'FLANNELD');
    refused(ETCD, { [variable]: other }, new RegExp(`^${variable} "${other}": Weft does not do Kubernetes yet`));
  }
  refused(['-kube-subnet-mgr'], {}, /^--kube-subnet-mgr "true": /);
  t.match(complaint([...ETCD, '-kube-subnet-mgr=no']), /^--kube-subnet-mgr "no": expected true or false$/);
  for (const minutes of ['0', '1440', '-5', '100000']) {
    refused(
      [...ETCD, '-subnet-lease-renew-margin', minutes],
      {},
      /^--subnet-lease-renew-margin "-?\d+": expected minutes, 1 to 1439$/,
      'RENEW_MARGIN',
    );
  }
});

t.test('layer 2: host rules are for layer 3', async (t) => {
  for (const flag of ['ip-masq', 'iptables-forward-rules', 'ip-blackhole-route', 'iptables-resync=9']) {
    t.match(complaint([...L2, `--${flag}`]), new RegExp(`^--${flag.split('=')[0]}: is for --mode l3`));
  }
});

t.test('weft init', async (t) => {
  const asked = parseInit(['--network', '10.5.0.0/16', '--registry-path', '/r'], { WEFT_SUBNET_LEN: '26' });
  t.match(asked, { kind: 'run', config: { registryPath: '/r', subnetLengths: [26] } });
  const help = parseInit(['--help'], {});
  t.match(help.kind === 'help' ? help.text : '', /weft init/);
  t.throws(() => parseInit([], {}), new UsageError(`--network: missing: expected ${OPTIONS.networks.expects}`));
  t.match(parseInit(['--mode', 'l2'], {}), { kind: 'run', config: { mode: 'l2', networks: [] } });
  t.throws(() => parseInit(['--mode', 'l2', '--network', '10.5.0.0/16'], {}), /^--network: is for --mode l3/);
  t.throws(() => parseInit(['--peers', 'p'], {}), /unknown option '--peers': weft init --help/);
});

t.test('version and help', async (t) => {
  const kind = (...argv: string[]): string => parseConfig(argv, {}, noFile).kind;
  for (const flag of ['--version', '-version', '-V', '--version=1']) {
    t.same(parseConfig([flag], {}, noFile), { kind: 'version' }, flag);
  }
  for (const flag of ['--help', '-help', '-h', '--h']) t.equal(kind(flag, 'and more'), 'help', flag);
  t.equal(kind('-version=false', '-help=0'), 'run');
  t.throws(() => kind('-version=no'), /^--version "no": expected true or false$/);
});

t.test('layer 2: one network by options', async (t) => {
  const config = run(L2);
  t.match(config, {
    mode: 'l2',
    registry: 'embedded',
    port: undefined,
    device: 'weft42',
    sourcePorts: 4,
    outerChecksum: true,
    outerDf: true,
    inheritDscp: false,
    macAge: 300,
    macTable: 65_536,
    macsPerPeer: 16_384,
    floodUnknown: true,
    stormLimit: 10_000,
    networks: [],
    subnets: [],
  });
  t.same(config.segments, [{ vni: 42, device: 'weft42', bridge: undefined, addresses: [], mtu: undefined }]);
  t.equal(run([...L2, '--peers', 'p']).registry, 'static', 'a peers file needs neither network nor subnet');
  t.equal(run([...L2, '--mac-table', '2000']).macsPerPeer, 500);
  t.equal(run([...L2, '--vni', '0']).segments[0].device, 'weft0');
  const full = run([
    ...L2,
    '--device',
    'lab',
    '--bridge',
    'br0',
    '--address',
    '10.7.0.1/24,fd07::1/64',
    '--mtu',
    '576',
  ]);
  t.match(full.segments, [
    {
      vni: 42,
      device: 'lab',
      bridge: 'br0',
      addresses: [
        { family: 4, text: '10.7.0.1', length: 24, bytes: Uint8Array.of(10, 7, 0, 1) },
        { family: 6, text: 'fd07::1', length: 64 },
      ],
      mtu: 576,
    },
  ]);
  t.same(run(BASE).segments, [], 'none in layer 3');
});

t.test('layer 2: several networks in the file', async (t) => {
  const file = (networks: unknown, more: object = {}) => [
    '--config',
    'c.json',
    JSON.stringify({ mode: 'l2', networks, ...more }),
  ];
  const read = ([flag, path, text]: string[], argv: string[] = []): Config =>
    run([flag, path, ...argv], {}, () => text);
  const line = ([flag, path, text]: string[], argv: string[] = [], env: Record<string, string> = {}): string =>
    complaint([flag, path, ...argv], env, () => text);
  const two = [
    { vni: 42, bridge: 'br0' },
    { vni: '43', device: 'lab', address: ['10.8.0.1/24', 'fd08::1/64'], mtu: 1400 },
  ];
  const config = read(file(two, { 'mac-age': 60 }));
  t.match(config, { device: 'weft42', macAge: 60 });
  t.match(config.segments, [
    { vni: 42, device: 'weft42', bridge: 'br0', addresses: [], mtu: undefined },
    { vni: 43, device: 'lab', bridge: undefined, addresses: [{ text: '10.8.0.1' }, { text: 'fd08::1' }], mtu: 1400 },
  ]);
  t.equal(read(file(Array.from({ length: 16 }, (_, vni) => ({ vni })))).segments.length, 16);

  const cases: [what: string, expected: RegExp, networks: unknown, more?: object][] = [
    ['none', /^config file c\.json: "networks": 0 networks: expected 1 to 16$/, []],
    ['too many', /"networks": 17 networks/, Array.from({ length: 17 }, (_, vni) => ({ vni }))],
    ['no list', /"networks": expected a list of networks, not Object$/, { vni: 42 }],
    ['no network', /"networks\.0": expected a network, e\.g\. {"vni":42}, not 42$/, [42]],
    [
      'no VNI',
      /^config file c\.json: "networks\.1\.vni": missing: --mode l2 expects a VXLAN network identifier/,
      [{ vni: 1 }, {}],
    ],
    ['a VNI that is none', /"networks\.0\.vni" "16777216": expected a VXLAN network identifier/, [{ vni: 16_777_216 }]],
    ['an address', /"networks\.0\.address": "10\.7\.0\.1" is not a CIDR/, [{ vni: 1, address: '10.7.0.1' }]],
    ['an unknown key', /unknown key "networks\.0\.vin"$/, [{ vin: 42 }]],
    ['a key of all', /unknown key "networks\.0\.mac-age"$/, [{ vni: 42, 'mac-age': 60 }]],
    ['a VNI twice', /"networks": VNI 42 is listed twice$/, [{ vni: 42 }, { vni: 42, device: 'x' }]],
    ['a device twice', /"networks": device weft42 is listed twice$/, [{ vni: 42 }, { vni: 7, device: 'weft42' }]],
    ['one beside them', /"mtu": say it of a network: config file c\.json: "networks" is given$/, two, { mtu: 1400 }],
    ['layer 3', /"networks": is for --mode l2; the prefixes of layer 3 are "network"$/, two, { mode: 'l3' }],
  ];
  for (const [what, expected, networks, more] of cases) t.match(line(file(networks, more)), expected, what);
  t.match(line(file(two), ['--vni', '42']), /^--vni: say it of a network: config file c\.json: "networks" is given$/);
  t.match(line(file(two), [], { WEFT_BRIDGE: 'br1' }), /^WEFT_BRIDGE: say it of a network/);
});

t.test('layer 2: mistakes', async (t) => {
  const cases: [what: string, argv: string[], expected: RegExp][] = [
    ['mode', ['--mode', 'l4'], /^--mode "l4": expected l3 or l2$/],
    ['no VNI', ['--mode', 'l2'], /^--vni: missing: --mode l2 expects a VXLAN network identifier, 0 to 16777215$/],
    ['VNI', [...L2, '--vni', '16777216'], /^--vni "16777216": expected a VXLAN network identifier/],
    ['network', [...L2, '--network', '10.5.0.0/16'], /^--network: is for --mode l3: layer 2 has no subnets$/],
    ['subnet', [...L2, '--peers', 'p', '--subnet', '10.5.0.0/24'], /^--subnet: is for --mode l3/],
    ['subnet length', [...L2, '--subnet-len', '24'], /^--subnet-len: is for --mode l3/],
    ['subnet.env', [...L2, '--subnet-file', '/f'], /^--subnet-file: is for --mode l3/],
    ['backend', [...L2, '--backend', 'udp'], /^--backend: is for --mode l3/],
    ['strict', [...L2, '--source-check', 'strict'], /^--source-check strict: is for --mode l3: .* peer or off$/],
    ['address without length', [...L2, '--address', '10.7.0.1'], /^--address: "10\.7\.0\.1" is not a CIDR/],
    ['two of a family', [...L2, '--address', '10.7.0.1/24,10.8.0.1/24'], /10\.7\.0\.1 and 10\.8\.0\.1 are both IPv4/],
    ['multicast', [...L2, '--address', '224.0.0.5/24'], /^--address: .*multicast/],
    ['in itself', [...L2, '--device', 'br0', '--bridge', 'br0'], /^--bridge: br0 is the device itself/],
    ['source ports', [...L2, '--source-ports', '9'], /^--source-ports "9": expected a number, 1 to 8$/],
    ['checksum', [...L2, '--outer-checksum', 'no'], /^--outer-checksum "no": expected on or off$/],
    ['DF', [...L2, '--outer-df', 'off'], /^--outer-df "off": expected set or unset$/],
    ['DSCP', [...L2, '--dscp', 'copy'], /^--dscp "copy": expected zero or inherit$/],
    ['age', [...L2, '--mac-age', '9'], /^--mac-age "9": expected seconds, 10 to 1000000$/],
    ['table', [...L2, '--mac-table', '1023'], /^--mac-table "1023": expected a number, 1024 to 1000000$/],
    [
      'share',
      [...L2, '--mac-table', '1024', '--mac-per-peer', '1025'],
      /^--mac-per-peer 1025: expected at most --mac-table, 1024$/,
    ],
    ['unknown unicast', [...L2, '--unknown-unicast', 'yes'], /^--unknown-unicast "yes": expected flood or drop$/],
    ['storm', [...L2, '--storm-limit', '0'], /^--storm-limit "0": expected off or frames a second/],
    ['mtu too large', [...L2, '--mtu', '65486'], /^--mtu: 65486: expected at most 65485 in layer 2$/],
    ['embedded with peers', [...L2, '--registry', 'embedded', '--peers', 'p'], /^--peers: is for --registry static/],
    ['static without', [...L2, '--registry', 'static'], /^--peers: missing: --registry static expects/],
  ];
  for (const [what, argv, expected] of cases) t.match(complaint(argv), expected, what);
  for (const [flag, text] of [
    ['vni', '42'],
    ['bridge', 'br0'],
    ['address', '10.7.0.1/24'],
    ['source-ports', '4'],
    ['mac-age', '300'],
    ['mac-table', '65536'],
    ['mac-per-peer', '100'],
    ['unknown-unicast', 'flood'],
    ['storm-limit', '10000'],
  ]) {
    const expected = /: is for --mode l2: give that, or leave it out$/;
    t.match(complaint([...BASE, `--${flag}`, text]), expected, `${flag}, even if it says what is so anyway`);
    t.match(complaint(BASE, { [environmentName(flag)]: text }), expected);
  }
  t.match(run([...BASE, '--dscp', 'inherit', '--outer-df', 'unset', '--outer-checksum', 'off']), {
    inheritDscp: true,
    outerDf: false,
    outerChecksum: false,
  });
});

t.test('the examples in the help are taken', async (t) => {
  const help = parseConfig(['--help'], {}, noFile);
  const text = help.kind === 'help' ? help.text : '';
  const lines = [...text.matchAll(/^ {2}\w?# weftd (.*)$/gm)].map((found) => found[1]);
  t.ok(lines.length >= 9);
  // Files are printed before the command that reads them.
  const files = [...text.matchAll(/# cat \S+\.json\n((?: {2,}[^#\n]*\n)+)/g)].map((found) => found[1]);
  for (const line of lines) {
    const argv = line.split(' ');
    t.doesNotThrow(() => run(argv, {}, () => files.shift() ?? ''), line);
  }
  t.equal(files.length, 0);
  const peers = [...text.matchAll(/^ {2}(\{"peers":[^#]*?\]\})$/gm)].map((found) => found[1]);
  t.equal(peers.length, 2);
  t.equal((await parsePeers(peers[0], { mode: 'l3', port: 1 })).length, 2);
  t.equal((await parsePeers(peers[1], { mode: 'l2', port: 1 })).length, 3);
});
