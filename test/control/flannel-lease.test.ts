/** Keys and values of leases: byte for byte as flannel writes them, and read as Go reads them. */
import t from 'tap';
import { parseCidr, parseHostAddress } from '../../src/control/cidr.js';
import {
  formatLease,
  formatLeaseKey,
  type LeaseAttributes,
  parseLease,
  parseLeaseKey,
  subnetsTakenBy,
} from '../../src/control/flannel-lease.js';

const texts = (items: readonly { readonly text: string }[]): string[] => items.map(({ text }) => text);

t.test('keys', async (t) => {
  for (const [key, ...subnets] of [
    ['10.5.1.0-24', '10.5.1.0/24'],
    ['10.5.1.0-24&fc00::-64', '10.5.1.0/24', 'fc00::/64'],
    ['10.5.1.0-24&fc00:0:0:1::-64', '10.5.1.0/24', 'fc00:0:0:1::/64'],
    ['0.0.0.0-0&fc00:0:0:1::-64', 'fc00:0:0:1::/64'],
  ]) {
    t.same(texts(parseLeaseKey(key)), subnets, key);
    t.equal(formatLeaseKey(subnets.map(parseCidr)), key);
    t.equal(formatLeaseKey(subnets.map(parseCidr).reverse()), key, 'in whatever order');
  }
  for (const key of [
    '',
    '10.5.1.0',
    '10.5.1.0-',
    '10.5.1.0/24',
    '10.5.1.0-33',
    '10.5.1.7-24',
    '10.5.01.0-24',
    '10.5.1.0-024',
    '10.5.300.0-24',
    ' 10.5.1.0-24',
    '10.5.1.0-24 ',
    'old/10.5.1.0-24',
    '0.0.0.0-0',
    '10.5.1.0-24&',
    '10.5.1.0-24&fc00::-129',
    '10.5.1.0-24&fc00:0::-64',
    '10.5.1.0-24&FC00::-64',
    '10.5.1.0-24&fc00::1-64',
    '10.5.1.0-24&10.6.0.0-24',
    'fc00::-64',
    '224.0.0.0-24',
  ]) {
    t.throws(() => parseLeaseKey(key), RangeError, JSON.stringify(key));
  }
});

t.test('what a key keeps others from using', async (t) => {
  for (const [key, ...subnets] of [
    ['10.5.1.0-24', '10.5.1.0/24'],
    ['10.5.1.7-24', '10.5.1.0/24'],
    ['10.5.1.7-24&fc00:0::1-64', '10.5.1.0/24', 'fc00::/64'],
    ['0.0.0.0-0&fc00::-64', 'fc00::/64'],
    ['old/10.5.1.0-24', '10.5.1.0/24'],
    ['10.5.1.0-99'],
    ['nonsense'],
  ]) {
    t.same(texts(subnetsTakenBy(key)), subnets, key);
  }
});

const none: LeaseAttributes = { publicIp: undefined, publicIpv6: undefined, backendType: '', macs: {}, vni: undefined };
const four = parseHostAddress('192.168.77.1');
const six = parseHostAddress('fd00:77::1');
const [mac4, mac6] = ['52:51:47:5c:73:1e', '6a:00:00:00:00:01'];

t.test('values, as flannel 0.28 wrote them on real nodes', async (t) => {
  for (const [value, lease] of [
    ['{"PublicIP":"192.168.77.1","PublicIPv6":null}', { ...none, publicIp: four }],
    [
      '{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"host-gw"}',
      { ...none, publicIp: four, backendType: 'host-gw' },
    ],
    [
      '{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"52:51:47:5c:73:1e"}}',
      { ...none, publicIp: four, backendType: 'vxlan', macs: { 4: mac4 }, vni: 1 },
    ],
    [
      '{"PublicIP":"192.168.77.1","PublicIPv6":"fd00:77::1","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"52:51:47:5c:73:1e"},"BackendV6Data":{"VNI":7,"VtepMAC":"6a:00:00:00:00:01"}}',
      { publicIp: four, publicIpv6: six, backendType: 'vxlan', macs: { 4: mac4, 6: mac6 }, vni: 7 },
    ],
    [
      '{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:77::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"6a:00:00:00:00:01"}}',
      { ...none, publicIpv6: six, backendType: 'vxlan', macs: { 6: mac6 }, vni: 1 },
    ],
  ] as const) {
    t.equal(formatLease(lease), value);
    t.same(parseLease(value), lease, value);
  }
});

t.test('values of others', async (t) => {
  for (const [value, lease] of [
    ['{"publicip":"192.168.77.1"}', { ...none, publicIp: four }],
    ['{"PublicIP":"10.0.0.9","PUBLICIP":"192.168.77.1","more":1}', { ...none, publicIp: four }],
    ['{"PublicIP":"192.168.77.1","PublicIPv6":"::"}', { ...none, publicIp: four }],
    ['{}', none],
    [
      '{"PublicIP":"192.168.77.1","BackendType":"vxlan","BackendData":{"VtepMAC":"52-51-47-5C-73-1E"}}',
      { ...none, publicIp: four, backendType: 'vxlan', macs: { 4: mac4 } },
    ],
    [
      '{"PublicIP":"192.168.77.1","BackendType":"vxlan","backenddata":{"vtepmac":"5251.475c.731e","vni":3}}',
      { ...none, publicIp: four, backendType: 'vxlan', macs: { 4: mac4 }, vni: 3 },
    ],
    [
      '{"PublicIP":"192.168.77.1","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}',
      { ...none, publicIp: four, backendType: 'wireguard' },
    ],
    [
      '{"PublicIP":"192.168.77.1","BackendType":"host-gw","BackendData":"null"}',
      { ...none, publicIp: four, backendType: 'host-gw' },
    ],
  ] as const) {
    t.same(parseLease(value), lease, value);
  }
});

t.test('what makes no sense is refused whole', async (t) => {
  for (const [value, message] of [
    ['', /JSON/],
    ['"x"', /expected an object/],
    ['{"PublicIP":null}', /^PublicIP: null$/],
    ['{"PublicIP":"fd00::1"}', /^PublicIP: "fd00::1" is not IPv4$/],
    ['{"PublicIP":"192.168.077.1"}', /^PublicIP: /],
    ['{"PublicIP":"224.0.0.1"}', /^PublicIP: .*multicast/],
    ['{"PublicIP":3232255233}', /^PublicIP: expected a string$/],
    ['{"PublicIP":"192.168.77.1","PublicIPv6":"192.168.77.1"}', /^PublicIPv6: /],
    ['{"PublicIP":"192.168.77.1","BackendType":1}', /^BackendType: expected a string$/],
    ['{"PublicIP":"192.168.77.1","BackendType":"vxlan","BackendData":"x"}', /^BackendData: expected an object$/],
    ['{"PublicIP":"192.168.77.1","BackendType":"vxlan","BackendData":{"VtepMAC":"52:51"}}', /^BackendData\.VtepMAC: /],
    [
      '{"PublicIP":"192.168.77.1","BackendType":"vxlan","BackendData":{"VtepMAC":"53:51:47:5c:73:1e"}}',
      /group address/,
    ],
    ['{"PublicIP":"192.168.77.1","BackendType":"vxlan","BackendData":{"VtepMAC":"00:00:00:00:00:00"}}', /no station/],
    [
      '{"PublicIP":"192.168.77.1","BackendType":"vxlan","BackendData":{"VNI":"1","VtepMAC":"52:51:47:5c:73:1e"}}',
      /^BackendData\.VNI: /,
    ],
  ] as const) {
    t.throws(() => parseLease(value), { name: 'RangeError', message }, value);
  }
});
