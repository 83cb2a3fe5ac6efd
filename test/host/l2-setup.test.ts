/**
 * A real weftd of layer 2 and its TAPs: what it gives them and takes away again, what it leaves to the operator, what it does when
 * one is lost, and the mistakes it refuses. In a network namespace of its own.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Daemon, type Finished, hostsImpossible, Lab, sleep } from '../../race/hosts.js';

const impossible = hostsImpossible();
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

const WEFTD = fileURLToPath(new URL('../../src/main.js', import.meta.url));
const lab = new Lab('l2-setup');
t.teardown(() => lab.close());
t.setTimeout(0);

const host = lab.namespace('host');
const other = lab.namespace('other');
lab.veth(host, 'eth0', other, 'eth0');
host.ip(
  'address add 192.168.77.1/24 dev eth0',
  'address add 192.168.77.100/24 dev eth0',
  'link add br0 type bridge',
  'link add br1 type bridge',
  'link set br0 up',
  'link set br1 up',
);
other.ip('address add 192.168.77.2/24 dev eth0');

const file = (name: string, content: unknown): string => {
  const path = join(lab.dir, name);
  writeFileSync(path, JSON.stringify(content));
  return path;
};
const peers = file('peers.json', { peers: [{ name: 'b', address: '192.168.77.2' }] });
const BASE = ['--mode', 'l2', '--iface', 'eth0', '--peers', peers];

interface Link {
  readonly ifname: string;
  readonly ifindex: number;
  readonly address: string;
  readonly mtu: number;
  readonly txqlen: number;
  readonly master?: string;
  readonly flags: readonly string[];
  readonly linkinfo?: { readonly info_data?: { readonly type?: string; readonly numqueues?: number } };
  readonly addr_info: readonly { readonly local: string; readonly prefixlen: number; readonly scope: string }[];
}

const links = (): Map<string, Link> => {
  const all = JSON.parse(host.runSync('ip', '-j', '-d', 'address', 'show')) as Link[];
  return new Map(all.map((link) => [link.ifname, link]));
};
const link = (name: string): Link => {
  const found = links().get(name);
  if (!found) throw new Error(`there is no ${name}`);
  return found;
};
/** But link-local ones. */
const addressesOf = (name: string): string[] =>
  link(name)
    .addr_info.filter((address) => address.scope === 'global')
    .map(({ local, prefixlen }) => `${local}/${prefixlen}`)
    .sort();

let starts = 0;
async function start(...args: string[]): Promise<Daemon> {
  const daemon = host.start(`weftd-${++starts}`, process.execPath, [WEFTD, ...BASE, ...args]);
  await daemon.ready('"event":"ready"', 20_000);
  return daemon;
}
const readyLine = (daemon: Daemon): Record<string, unknown> => {
  const line = daemon
    .log()
    .split('\n')
    .find((text) => text.includes('"event":"ready"'));
  return JSON.parse(line ?? '{}') as Record<string, unknown>;
};
const run = (...args: string[]): Promise<Finished> =>
  host.run(process.execPath, [WEFTD, ...BASE, ...args], { stdio: ['ignore', 'pipe', 'pipe'], timeout: 10_000 });

async function until(so: () => boolean): Promise<boolean> {
  for (let waited = 0; !so() && waited < 15_000; waited += 50) await sleep(50);
  return so();
}

t.test('mistakes', async (t) => {
  const fails = async (what: string, expected: RegExp, ...args: string[]): Promise<void> => {
    const before = [...links().keys()];
    const done = await run(...args);
    t.match(done.stderr, /^weftd: [^\n]+\n$/, `${what}: one line`);
    t.match(done.stderr, expected, what);
    t.equal(done.code, 1, `${what}: exit code`);
    t.same([...links().keys()], before, `${what}: no device is left`);
  };
  await fails(
    'no bridge',
    /bridge br7 does not exist: make it \(ip link add br7 type bridge\), or choose another --bridge/,
    ...['--vni', '42', '--bridge', 'br7'],
  );
  await fails(
    'no bridge either',
    /interface eth0 is not a bridge: choose another --bridge/,
    ...['--vni', '42', '--bridge', 'eth0'],
  );
  await fails(
    'a device of others',
    /device name br1 is taken by an interface that is not weft's/,
    '--vni',
    '42',
    '--device',
    'br1',
  );
  await fails(
    'a peer behind the TAP',
    /peer b: 192\.168\.77\.2 lies in .*192\.168\.77\.0\/28: give its underlay address/,
    ...['--vni', '42', '--address', '192.168.77.14/28', '--public-ip', '192.168.77.100'],
  );
  host.ip('tuntap add dev weft42 mode tun', 'link set weft42 alias weft');
  await fails(
    'a device of the other mode',
    /device weft42 is a TUN that weft left in its other mode: remove it \(ip link del weft42\), or choose another --device/,
    ...['--vni', '42'],
  );
  host.ip('link del weft42');
});

t.test('two networks: what each device has, what is kept, and what of it goes', async (t) => {
  const config = (name: string, networks: readonly object[]): string => file(name, { networks, 'keep-device': true });
  const first = config('first.json', [
    { vni: 42, bridge: 'br0' },
    { vni: 43, device: 'red', address: ['10.7.0.1/24', 'fd07::1/64'], mtu: 1400 },
  ]);
  const daemon = await start('--config', first, '--workers', '2');
  t.match(readyLine(daemon), {
    mode: 'l2',
    devices: [
      { vni: 42, device: 'weft42', mtu: 1450, addresses: [], bridge: 'br0', reused: false },
      { vni: 43, device: 'red', mtu: 1400, addresses: ['10.7.0.1/24', 'fd07::1/64'], reused: false },
    ],
    underlay: { port: 4789 },
    reused: false,
  });
  t.match(link('weft42'), {
    mtu: 1450,
    txqlen: 4096,
    master: 'br0',
    linkinfo: { info_data: { type: 'tap', numqueues: 2 } },
  });
  t.match(link('red'), { mtu: 1400, linkinfo: { info_data: { type: 'tap', numqueues: 2 } } });
  t.equal(link('red').master, undefined);
  t.same(addressesOf('red'), ['10.7.0.1/24', 'fd07::1/64']);
  t.same(addressesOf('weft42'), []);
  for (const name of ['weft42', 'red']) t.ok(link(name).flags.includes('UP'), `${name} is up`);
  t.equal(host.runSync('ip', 'route', 'show', 'proto', '87'), '', 'no routes');

  const locked = await run('--vni', '44', '--device', 'red', '--port', '4790');
  t.match(locked.stderr, /another weftd runs device red in this network namespace/, 'each device is locked');
  t.equal(locked.code, 1);

  const sockets = host.runSync('ss', '-uanH').split('\n').filter(Boolean);
  t.equal(sockets.filter((line) => line.includes('192.168.77.1:4789')).length, 2, 'a socket a worker receives');
  t.equal(sockets.length, 2 + 2 * 4, 'and four send');

  const macs = [link('weft42').address, link('red').address];
  await daemon.stop();
  t.same([link('weft42').address, link('red').address], macs, 'both stay');
  t.equal(link('weft42').master, 'br0');
  host.ip('address add 10.9.0.1/24 dev red', 'link set red master br1');

  const second = config('second.json', [{ vni: 42 }, { vni: 43, device: 'red', address: ['10.7.0.2/24'], mtu: 1400 }]);
  const again = await start('--config', second);
  t.match(readyLine(again), { reused: true, devices: [{ reused: true }, { reused: true }] });
  t.same([link('weft42').address, link('red').address], macs, 'the same devices');
  t.equal(link('weft42').master, undefined, 'out of the bridge that we had put it into');
  t.equal(link('red').master, 'br1', "the operator's bridge stays");
  t.same(addressesOf('red'), ['10.7.0.2/24', '10.9.0.1/24'], "ours are exchanged, the operator's stays");
  await again.stop('SIGKILL');

  const third = await start('--vni', '43', '--device', 'red');
  t.same(addressesOf('red'), ['10.9.0.1/24'], 'known after a kill too');
  await third.stop();
  t.notOk(links().has('red'), 'and without --keep-device it goes');
  host.ip('link del weft42');
});

t.test('a device that is lost comes back as it was; the others stay', async (t) => {
  const networks = [
    { vni: 42, bridge: 'br0', address: ['10.7.0.1/24'] },
    { vni: 43, device: 'red' },
    { vni: 44, device: 'blue' },
  ];
  const daemon = await start('--config', file('lose.json', { networks }), '--workers', '2');
  host.ip('link set blue master br1');
  await sleep(5500); // it is looked at every 5 s
  const before = links();
  const index = (name: string): number | undefined => links().get(name)?.ifindex;
  host.ip('link del weft42', 'link del blue');
  t.ok(await until(() => daemon.log().includes('"event":"device_reopened"')));
  t.not(index('weft42'), before.get('weft42')?.ifindex, 'made anew');
  t.equal(index('red'), before.get('red')?.ifindex, 'not made anew');
  for (const name of ['weft42', 'blue']) {
    t.equal(link(name).address, before.get(name)?.address, `${name}: its MAC`);
    t.equal(link(name).master, before.get(name)?.master, `${name}: its bridge`);
  }
  t.same(addressesOf('weft42'), ['10.7.0.1/24']);
  t.ok(await until(() => link('blue').linkinfo?.info_data?.numqueues === 2));
  await daemon.stop();
  t.same(
    [...links().keys()].filter((name) => ['weft42', 'red', 'blue'].includes(name)),
    [],
  );
});

t.test('datagrams without checksum and DF, and with', async (t) => {
  const seen = async (...args: string[]): Promise<string> => {
    const daemon = await start('--vni', '42', '--address', '10.7.0.1/24', ...args);
    const dump = other.spawn('tcpdump', ['-nvv', '-i', 'eth0', '-c', '4', '-l', 'udp', 'dst', 'port', '4789'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    let text = '';
    dump.stdout?.setEncoding('utf8').on('data', (some: string) => {
      text += some;
    });
    await sleep(500);
    await host.run('ping', ['-c', '4', '-i', '0.2', '-W', '1', '10.7.0.2']);
    await until(() => (text.match(/VXLAN/g) ?? []).length >= 2);
    dump.kill();
    await daemon.stop();
    return text;
  };
  if (await host.run('which', ['tcpdump']).then(({ code }) => code !== 0)) {
    t.comment('SKIPPED: needs tcpdump');
    return;
  }
  const without = await seen('--outer-checksum', 'off', '--outer-df', 'unset');
  t.match(without, /\[no cksum\] VXLAN/);
  t.match(without, /flags \[none\]/);
  const usual = await seen();
  t.match(usual, /flags \[DF\]/);
  t.notMatch(usual, /\[no cksum\] VXLAN/);
});
