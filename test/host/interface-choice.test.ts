/** Which interface and which addresses the underlay gets, on a host with several, in flannel's order; in a real namespace. */
import t from 'tap';
import { hostsImpossible, Lab } from '../../race/hosts.js';
import { HostProcess, type Wish } from './lib/host-process.js';

const impossible = hostsImpossible();
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

const lab = new Lab('choice');
t.teardown(() => lab.close());
const ns = lab.namespace('host');
ns.ip(
  'link add eth0 type bridge',
  'link add eth1 mtu 1400 type bridge',
  'link add six0 type bridge',
  'link add bare0 type bridge',
  'link add flannel.1 type bridge',
  'link add left0 type bridge',
  'link set left0 alias weft',
  'link property add dev eth1 altname enp9s0',
  ...['eth0', 'eth1', 'six0', 'bare0', 'flannel.1', 'left0'].map((name) => `link set ${name} up`),
  'addr add 192.168.77.1/24 dev eth0',
  'addr add 192.168.77.11/24 dev eth0',
  'addr add fd77::1/64 dev eth0 nodad',
  'addr add 172.20.0.1/24 dev eth1',
  'addr add fd20::1/64 dev six0 nodad',
  'addr add 10.5.1.0/32 dev flannel.1',
  'addr add 10.5.1.1/32 dev left0',
);

const host = new HostProcess(ns);

const TEXTS = /^(\S+) (\d+) (\S+)(?: as (\S+))?$/;

/** Checks the choice: `eth0 1500 192.168.77.1,fd77::1 as 203.0.113.9,fd77::1`. */
async function finds(t: Tap, what: string, wish: Partial<Wish>, expected: string): Promise<void> {
  const [, name, mtu, addresses, told = addresses] = TEXTS.exec(expected) ?? [];
  const { underlay, error } = await host.underlay(wish);
  t.same(
    underlay ?? error,
    {
      interface: name,
      mtu: Number(mtu),
      addresses: addresses.split(','),
      publicAddresses: told.split(','),
    },
    what,
  );
}

async function fails(t: Tap, what: string, wish: Partial<Wish>, code: string, error: string): Promise<void> {
  const answer = await host.underlay(wish);
  t.same([answer.code, answer.error], [code, error], what);
}
type Tap = Pick<typeof t, 'same'>;

t.test('a list of interfaces', async (t) => {
  await finds(t, 'by name', { ifaces: ['eth1'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'by another of its names', { ifaces: ['enp9s0'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'by address', { ifaces: ['192.168.77.1'] }, 'eth0 1500 192.168.77.1');
  await finds(t, 'by its second address', { ifaces: ['192.168.77.11'] }, 'eth0 1500 192.168.77.11');
  await finds(t, 'by an IPv6 address', { ifaces: ['FD77:0:0::1'] }, 'eth0 1500 fd77::1');
  await finds(t, 'the first that exists', { ifaces: ['eth7', '10.9.9.9', 'eth1', 'eth0'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'and has an address', { ifaces: ['bare0', 'eth0'] }, 'eth0 1500 192.168.77.1');
  await finds(t, 'with IPv6 only', { ifaces: ['six0'] }, 'six0 1500 fd20::1');
  await fails(t, 'none', { ifaces: ['eth7'] }, 'NO_INTERFACE', 'interface eth7 does not exist: check --iface');
  await fails(
    t,
    'none of them',
    { ifaces: ['eth7', '10.9.9.9', 'bare0'] },
    'NO_INTERFACE',
    'interface eth7 does not exist; 10.9.9.9 is not an address of this host; interface bare0 has no address: check --iface, or give it one, or choose --iface or --public-ip',
  );
});

t.test('expressions', async (t) => {
  await finds(t, 'an address', { ifaceRegexes: ['^172\\.2'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'a second address', { ifaceRegexes: ['77\\.11$'] }, 'eth0 1500 192.168.77.11');
  await finds(t, 'a name', { ifaceRegexes: ['^eth1$'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'an address before a name', { ifaceRegexes: ['1$|six'] }, 'eth0 1500 192.168.77.1');
  await finds(t, 'an IPv6 address after all of IPv4', { ifaceRegexes: ['^fd20'] }, 'six0 1500 fd20::1');
  await finds(t, 'the second expression', { ifaceRegexes: ['^nothing', 'eth1'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'letters of either case', { ifaceRegexes: ['(?i)^ETH1'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'after the list', { ifaces: ['eth7'], ifaceRegexes: ['eth1'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'not when the list has one', { ifaces: ['eth0'], ifaceRegexes: ['eth1'] }, 'eth0 1500 192.168.77.1');
  await finds(t, 'any that has an address', { ifaceRegexes: ['bare0|eth1'] }, 'eth1 1400 172.20.0.1');
  await fails(
    t,
    'not our own device, nor flannel’s, nor loopback',
    { ifaceRegexes: ['^10\\.5\\.|^127\\.|^lo$'] },
    'NO_INTERFACE',
    '^10\\.5\\.|^127\\.|^lo$ matches none of the interfaces (eth0 192.168.77.1 192.168.77.11 fd77::1, eth1 172.20.0.1, six0 fd20::1, bare0): check --iface-regex',
  );
});

t.test('one that can reach an address', async (t) => {
  await finds(t, 'on its link', { ifaceCanReach: '172.20.0.9' }, 'eth1 1400 172.20.0.1');
  await finds(t, 'of IPv6', { ifaceCanReach: 'fd20::9' }, 'six0 1500 fd20::1');
  await finds(
    t,
    'after the others',
    { ifaces: ['eth7'], ifaceRegexes: ['^y'], ifaceCanReach: '172.20.0.9' },
    'eth1 1400 172.20.0.1',
  );
  await fails(
    t,
    'no route',
    { ifaceCanReach: '203.0.113.1' },
    'NO_INTERFACE',
    'this host has no route to 203.0.113.1: check --iface-can-reach',
  );
  await fails(
    t,
    'ourselves',
    { ifaceCanReach: '172.20.0.1' },
    'NO_INTERFACE',
    '172.20.0.1 is an address of this host: check --iface-can-reach',
  );
  ns.ip('route add 203.0.113.0/24 via 192.168.77.254 src 192.168.77.11');
  await finds(t, 'by the route and its source', { ifaceCanReach: '203.0.113.1' }, 'eth0 1500 192.168.77.11');
});

t.test('nothing named', async (t) => {
  ns.ip('route add unreachable ::/0 metric 4294967295');
  await fails(
    t,
    'no default route',
    {},
    'NO_INTERFACE',
    'this host has no default route to tell the interface by: name it with --iface',
  );
  await finds(t, 'the public address', { publicIps: ['172.20.0.1'] }, 'eth1 1400 172.20.0.1');
  await finds(t, 'both', { publicIps: ['192.168.77.11', 'fd77::1'] }, 'eth0 1500 192.168.77.11,fd77::1');
  await fails(
    t,
    "another's",
    { publicIps: ['203.0.113.9'] },
    'NO_ADDRESS',
    '203.0.113.9 is not an address of this host: check --public-ip',
  );
  ns.ip('route add default via fd20::ff dev six0');
  await finds(t, 'the default route of IPv6, if it is the only one', {}, 'six0 1500 fd20::1');
  ns.ip('route add default metric 5 nexthop via 172.20.0.254 nexthop via 192.168.77.254');
  await finds(t, 'one of several hops', {}, 'eth1 1400 172.20.0.1');
  ns.ip('route add default via 192.168.77.254');
  await finds(t, 'the best default route of IPv4', {}, 'eth0 1500 192.168.77.1');
});

t.test('public addresses outside of this host', async (t) => {
  const outside = true;
  await finds(
    t,
    'are told, and not bound',
    { outside, ifaces: ['eth1'], publicIps: ['203.0.113.9'] },
    'eth1 1400 172.20.0.1 as 203.0.113.9',
  );
  await finds(
    t,
    'one of ours is both',
    { outside, ifaces: ['eth0'], publicIps: ['192.168.77.11'] },
    'eth0 1500 192.168.77.11',
  );
  await finds(
    t,
    'one of another interface is outside',
    { outside, ifaces: ['eth1'], publicIps: ['192.168.77.1'] },
    'eth1 1400 172.20.0.1 as 192.168.77.1',
  );
  await finds(t, 'none', { outside }, 'eth0 1500 192.168.77.1');
  await finds(t, 'with no interface named it is ours', { outside, publicIps: ['172.20.0.1'] }, 'eth1 1400 172.20.0.1');
  await fails(
    t,
    'or an error',
    { outside, publicIps: ['203.0.113.9'] },
    'NO_ADDRESS',
    '203.0.113.9 is not an address of this host: check --public-ip, or name the interface with --iface',
  );
  await finds(
    t,
    'not of that: bound as given',
    { ifaces: ['eth0'], publicIps: ['203.0.113.9'] },
    'eth0 1500 203.0.113.9',
  );
  await finds(
    t,
    'an interface need have none then',
    { ifaces: ['bare0'], publicIps: ['192.168.77.1'] },
    'bare0 1500 192.168.77.1',
  );
});

t.test('families that are wanted', async (t) => {
  const outside = true;
  await finds(t, 'both', { outside, families: [4, 6] }, 'eth0 1500 192.168.77.1,fd77::1');
  await finds(t, 'IPv6', { outside, ifaces: ['eth0'], families: [6] }, 'eth0 1500 fd77::1');
  await finds(t, 'IPv6 by its default route', { outside, families: [6] }, 'six0 1500 fd20::1');
  await finds(
    t,
    'the first interface that has both',
    { outside, ifaces: ['eth1', 'six0', 'eth0'], families: [4, 6] },
    'eth0 1500 192.168.77.1,fd77::1',
  );
  await finds(
    t,
    'one told, one ours',
    { outside, ifaces: ['eth0'], publicIps: ['203.0.113.9'], families: [4, 6] },
    'eth0 1500 192.168.77.1,fd77::1 as 203.0.113.9,fd77::1',
  );
  await finds(
    t,
    'what is not wanted is not told',
    { outside, ifaces: ['eth0'], publicIps: ['203.0.113.9', '2001:db8::9'], families: [4] },
    'eth0 1500 192.168.77.1 as 203.0.113.9',
  );
  await finds(
    t,
    'an expression for one of them',
    { outside, ifaceRegexes: ['77\\.11'], families: [4, 6] },
    'eth0 1500 192.168.77.11,fd77::1',
  );
  await finds(
    t,
    'addresses of the wanted only',
    { outside, ifaceRegexes: ['77\\.11', '^fd20'], families: [6] },
    'six0 1500 fd20::1',
  );
  await fails(
    t,
    'missing',
    { outside, ifaces: ['eth1'], families: [4, 6] },
    'NO_ADDRESS',
    'interface eth1 has no IPv6 address, which the network config wants: give it one, or choose another --iface',
  );
  await fails(
    t,
    'missing, with a public one',
    { outside, ifaces: ['eth1'], publicIps: ['2001:db8::9'], families: [6] },
    'NO_ADDRESS',
    'interface eth1 has no IPv6 address, which the network config wants: give it one, or choose another --iface',
  );
});
