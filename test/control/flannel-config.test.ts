/** flannel's configuration as flannel reads it, table by table. */
import t from 'tap';
import { type FlannelConfig, readFlannelConfig, sameFlannelConfig } from '../../src/control/flannel-config.js';
import { SetupError } from '../../src/io/setup-error.js';

const read = (config: unknown): FlannelConfig => readFlannelConfig(JSON.stringify(config));

/** `network length min max`, by pool. */
const pools = (config: FlannelConfig): string[] =>
  config.pools.map(({ network, subnetLength, min, max }) => `${network.text} ${subnetLength} ${min.text} ${max.text}`);

function failure(text: string): { code: string; message: string } {
  try {
    readFlannelConfig(text, 'etcd');
    return { code: 'none', message: '' };
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    return { code: error.code, message: error.message };
  }
}

t.test('pools: defaults and what is said', async (t) => {
  for (const [config, ...want] of [
    [{ Network: '10.5.0.0/16' }, '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    [{ Network: '10.5.0.0/22' }, '10.5.0.0/22 24 10.5.1.0 10.5.3.0'],
    [{ Network: '10.5.0.0/23' }, '10.5.0.0/23 25 10.5.0.128 10.5.1.128'],
    [{ Network: '10.5.0.0/28' }, '10.5.0.0/28 30 10.5.0.4 10.5.0.12'],
    [{ Network: '10.5.7.9/16' }, '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    [{ Network: '10.5.0.0/16', SubnetLen: 28 }, '10.5.0.0/16 28 10.5.0.16 10.5.255.240'],
    [{ Network: '10.5.0.0/16', SubnetLen: 0, SubnetMin: '0.0.0.0' }, '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    [{ Network: '10.5.0.0/16', SubnetMin: '10.5.10.0', SubnetMax: '10.5.20.0' }, '10.5.0.0/16 24 10.5.10.0 10.5.20.0'],
    [{ Network: '10.5.0.0/16', SubnetMin: '10.5.0.0' }, '10.5.0.0/16 24 10.5.0.0 10.5.255.0'],
    [
      { EnableIPv6: true, Network: '10.5.0.0/16', IPv6Network: 'fd00:5::/48' },
      '10.5.0.0/16 24 10.5.1.0 10.5.255.0',
      'fd00:5::/48 64 fd00:5:0:1:: fd00:5:0:ffff::',
    ],
    [
      { EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fd00::/63' },
      'fd00::/63 65 fd00::8000:0:0:0 fd00:0:0:1:8000::',
    ],
    [{ Network: '10.5.0.0/16', IPv6Network: 'fd00::/48' }, '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
  ] as const) {
    t.same(pools(read(config)), want, JSON.stringify(config));
  }
});

t.test('backends', async (t) => {
  const network = { Network: '10.5.0.0/16' };
  const vxlan = { type: 'vxlan', port: 8472, vni: 1, mtu: undefined, learning: false, directRouting: false };
  for (const [backend, want] of [
    [undefined, { type: 'udp', port: 8285 }],
    [
      { Type: 'udp', Port: 7890 },
      { type: 'udp', port: 7890 },
    ],
    [{ Type: 'UDP' }, { type: 'udp', port: 8285 }],
    [{ Type: 'vxlan' }, vxlan],
    [
      { type: 'VXLAN', vni: 42, PORT: 4789, mtu: 1400 },
      { ...vxlan, port: 4789, vni: 42, mtu: 1400 },
    ],
    [
      { Type: 'vxlan', Port: 0, MTU: 0, VNI: 0 },
      { ...vxlan, vni: 0 },
    ],
    [
      { Type: 'vxlan', Learning: true, DirectRouting: true },
      { ...vxlan, learning: true, directRouting: true },
    ],
    [{ Type: 'host-gw' }, { type: 'host-gw' }],
    [{ Type: 'alloc', Whatever: [1] }, { type: 'alloc' }],
  ] as const) {
    const config = read({ ...network, ...(backend ? { Backend: backend } : {}) });
    t.same(config.backend, want, JSON.stringify(backend));
    t.same(config.warnings, []);
  }
  t.match(
    read({ ...network, Backend: { Type: 'vxlan', GBP: true } }).warnings,
    [/^Backend\.GBP: /],
    'GBP is not done, and said',
  );
  t.equal(read({ ...network, EnableNFTables: true }).nftables, true);
  t.equal(read(network).nftables, false);
});

t.test("Go's JSON: case, doubles, null, unknown keys", async (t) => {
  for (const [text, want] of [
    ['{"network":"10.5.0.0/16","SUBNETLEN":26,"x":{"y":[]}}', '10.5.0.0/16 26 10.5.0.64 10.5.255.192'],
    ['{"Network":"10.1.0.0/16","network":"10.5.0.0/16"}', '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    [
      '{"network":"10.1.0.0/16","Network":"10.5.0.0/16","SubnetLen":26,"SubnetLen":null}',
      '10.5.0.0/16 26 10.5.0.64 10.5.255.192',
    ],
    ['{"Network":"10.1.0.0/16","NETWORK":"10.2.0.0/16","Network":"10.5.0.0/16"}', '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    ['{"Network":"10.5.0.0/16","EnableIPv4":null}', '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    ['{"Networ\\u006b":"10.5.0.0\\/16"}', '10.5.0.0/16 24 10.5.1.0 10.5.255.0'],
    ['{"Networ\u212a":"10.5.0.0/16","\u017fubnetLen":26}', '10.5.0.0/16 26 10.5.0.64 10.5.255.192'],
  ]) {
    t.same(pools(readFlannelConfig(text)), [want], text);
  }
});

t.test('what makes no sense is one line that names the key', async (t) => {
  for (const [text, message] of [
    ['', /^etcd: it is no JSON: Unexpected end/],
    ['[]', /^etcd: expected an object$/],
    ['{}', /^etcd: Network: missing/],
    ['{"Network":""}', /^etcd: Network: /],
    ['{"Network":"10.5.0.0/29"}', /^etcd: Network 10\.5\.0\.0\/29: too small/],
    ['{"Network":"fd00::/48"}', /^etcd: Network: fd00::\/48 is not IPv4$/],
    ['{"Network":"10.5.0.0/16","SubnetLen":31}', /^etcd: SubnetLen 31: /],
    ['{"Network":"10.5.0.0/16","SubnetLen":17}', /^etcd: SubnetLen 17: /],
    ['{"Network":"10.5.0.0/16","SubnetLen":"24"}', /^etcd: SubnetLen: expected an integer$/],
    ['{"Network":"10.5.0.0/16","SubnetLen":24.5}', /^etcd: SubnetLen: expected an integer$/],
    ['{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}', /^etcd: SubnetMin 10\.6\.0\.0: /],
    ['{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.128"}', /^etcd: SubnetMin 10\.5\.1\.128: /],
    ['{"Network":"10.5.0.0/16","SubnetMax":"10.4.0.0"}', /^etcd: SubnetMax 10\.4\.0\.0: /],
    ['{"Network":"10.5.0.0/16","EnableIPv6":true}', /^etcd: IPv6Network: missing/],
    ['{"Network":"10.5.0.0/16","EnableIPv4":"yes"}', /^etcd: EnableIPv4: expected true or false$/],
    ['{"EnableIPv4":false}', /^etcd: EnableIPv4 and EnableIPv6 are both false$/],
    ['{"Network":"10.5.0.0/16","Backend":"udp"}', /^etcd: Backend: expected an object$/],
    ['{"Network":"10.5.0.0/16","Backend":{}}', /^etcd: Backend\.Type: missing/],
    ['{"Network":"10.5.0.0/16","Backend":null}', /^etcd: Backend\.Type: missing/],
    ['{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":0}}', /^etcd: Backend\.Port: 0: /],
    ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":65536}}', /^etcd: Backend\.Port: 65536: /],
    ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}', /^etcd: Backend\.VNI: 16777216: /],
    ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":67}}', /^etcd: Backend\.MTU: 67: /],
    ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","GBP":1}}', /^etcd: Backend\.GBP: expected true or false$/],
    [`${'['.repeat(200)}${']'.repeat(200)}`, /^etcd: nested more than 100 deep$/],
  ] as const) {
    t.match(failure(text), { code: 'BAD_CONFIG', message }, text.slice(0, 80));
  }
  for (const type of ['ipip', 'wireguard', 'WireGuard', 'extension', 'aws-vpc', 'nonsense']) {
    const { code, message } = failure(JSON.stringify({ Network: '10.5.0.0/16', Backend: { Type: type } }));
    t.equal(code, 'UNSUPPORTED_BACKEND');
    t.match(
      message,
      new RegExp(`^etcd: Backend\\.Type: .*${type.toLowerCase()}.*: expected udp, vxlan, host-gw or alloc$`),
    );
  }
});

t.test('the same is what means the same', async (t) => {
  const one = readFlannelConfig('{"Network":"10.5.0.0/16"}');
  t.ok(
    sameFlannelConfig(
      one,
      readFlannelConfig('{ "network": "10.5.3.0/16", "SubnetLen": 24, "Backend": {"Type":"udp"} }'),
    ),
  );
  t.notOk(sameFlannelConfig(one, readFlannelConfig('{"Network":"10.5.0.0/16","SubnetLen":25}')));
  t.notOk(sameFlannelConfig(one, readFlannelConfig('{"Network":"10.5.0.0/16","EnableNFTables":true}')));
  t.notOk(sameFlannelConfig(one, readFlannelConfig('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}')));
});
