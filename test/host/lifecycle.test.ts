/**
 * A real weftd among real hosts: what it sets up, what it leaves, and that it comes back: SIGTERM, kill -9, a second start, a
 * lost device, a bad peers file, a path that shrinks. Needs root and network namespaces.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Daemon, type Host, hostsImpossible, ipv6Works, Lab, makeHosts, sleep } from '../../race/hosts.js';

const impossible = hostsImpossible() ?? (ipv6Works() ? undefined : 'the kernel runs without IPv6');
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

const WEFTD = fileURLToPath(new URL('../../src/main.js', import.meta.url));
const lab = new Lab('life');
t.teardown(() => lab.close());
const [a, b] = makeHosts(lab, { count: 2, join: 'veth', clients: 'own' });
const path = join(lab.dir, 'peers.json');

function writePeers(change: (entry: { address: string; subnets: string[] }) => void = () => {}): void {
  const peers = [a, b].map((host) => {
    const entry = { name: host.letter, address: host.underlay4, subnets: [host.subnet4, host.subnet6] };
    if (host === b) change(entry);
    return entry;
  });
  writeFileSync(`${path}.new`, JSON.stringify({ peers }));
  renameSync(`${path}.new`, path);
}

let starts = 0;
function start(host: Host, ...more: string[]): Daemon {
  const networks = ['--network', '10.5.0.0/16,fd00:5::/48', '--subnet', `${host.subnet4},${host.subnet6}`];
  const args = [...networks, '--iface', 'eth0', '--peers', path, '--metrics-address', '127.0.0.1:9469', ...more];
  return host.ns.start(`weftd-${host.letter}-${++starts}`, process.execPath, [WEFTD, ...args]);
}
const ready = (daemon: Daemon): Promise<void> => daemon.ready('"event":"ready"');

/** The events in a daemon's log, in order. */
const eventsOf = (daemon: Daemon): string[] => [...daemon.log().matchAll(/"event":"(\w+)"/g)].map((found) => found[1]);

const pings = async (to: string): Promise<boolean> =>
  (await a.client.run('ping', ['-n', '-c', '1', '-W', '1', to])).code === 0;

/** Pings until it is answered; how long that took in milliseconds. */
async function answered(to: string): Promise<number> {
  const begun = performance.now();
  while (performance.now() - begun < 10_000) {
    if ((await a.client.run('ping', ['-n', '-c', '1', '-W', '0.2', to])).code === 0) return performance.now() - begun;
  }
  return Number.POSITIVE_INFINITY;
}

async function until(so: () => boolean | Promise<boolean>): Promise<boolean> {
  for (let waited = 0; waited < 5000; waited += 10) {
    if (await so()) return true;
    await sleep(10);
  }
  return false;
}

const ask = (host: Host, what: string): string => host.ns.runSync('ip', ...what.split(' '));
const metric = (host: Host, name: string): number => {
  const script = `fetch('http://127.0.0.1:9469/metrics').then((r) => r.text()).then((t) => process.stdout.write(t))`;
  const text = host.ns.runSync(process.execPath, '-e', script);
  return Number(new RegExp(`^${name.replace(/[{}]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1]);
};

writePeers();
const peerB = start(b);
let daemon = start(a);
await ready(peerB);
await ready(daemon);

t.test('what it sets up', async (t) => {
  const link = ask(a, '-d link show flannel0');
  t.match(link, / mtu 1472 /);
  t.match(link, / qlen 4096/);
  t.match(link, /alias weft/);
  t.match(link, /persist on/);
  const addresses = ask(a, '-o address show flannel0');
  t.match(addresses, /inet 10\.5\.1\.0\/32 /);
  t.match(addresses, /inet6 fd00:5:0:1::\/128 /);
  t.notMatch(addresses, /fe80::/, 'no link-local address');
  t.match(ask(a, 'route show 10.5.0.0/16'), /dev flannel0/);
  t.match(ask(a, '-6 route show fd00:5::/48'), /dev flannel0/);
  t.equal(a.ns.runSync('cat', '/proc/sys/net/ipv4/conf/flannel0/accept_local'), '1\n');
  t.ok(await pings(b.client4));
  t.ok(await pings(b.client6));
  t.equal(metric(a, 'weft_peers'), 1);
  t.ok(metric(a, 'weft_peer_packets_total{peer="b",direction="outbound"}') >= 2);
});

t.test('an ICMP error from the device reaches a program of this host', async (t) => {
  const done = await a.ns.run('ping', ['-n', '-c', '1', '-W', '1', '10.5.99.1']);
  t.match(done.stdout, /From 10\.5\.1\.0 .*Unreachable/);
});

t.test('a second one is refused, and the first goes on', async (t) => {
  const second = start(a, '--port', '8299');
  t.ok(await until(() => !second.running));
  t.equal(second.child.exitCode, 1);
  t.equal(
    second.log(),
    'weftd: another weftd runs device flannel0 in this network namespace: stop it, or choose another --device\n',
  );
  const elsewhere = ['--network', '10.6.0.0/16', '--subnet', '10.6.1.0/24', '--iface', 'eth0', '--peers', path];
  const port = a.ns.start('weftd-port', process.execPath, [WEFTD, '--device', 'flannel1', ...elsewhere]);
  t.ok(await until(() => !port.running));
  t.match(port.log(), /^weftd: UDP port 8285 of 192\.168\.77\.1 is in use/);
  t.ok(await pings(b.client4));
});

t.test('kill -9 and a new start: traffic again within 2 s, the other undisturbed', async (t) => {
  await daemon.stop('SIGKILL');
  t.match(ask(a, 'route show 10.5.0.0/16'), /dev flannel0/, 'device and route stay');
  const begun = performance.now();
  daemon = start(a);
  await answered(b.client4);
  const took = performance.now() - begun;
  t.ok(took < 2000, `${Math.round(took)} ms`);
  await ready(daemon);
  t.match(daemon.log(), /"reused":true/);
  t.same(eventsOf(peerB), ['ready'], 'nothing happened over there');
});

t.test('SIGTERM: out within a second, and nothing is left', async (t) => {
  const took = await daemon.stop('SIGTERM');
  t.ok(took < 1000, `${Math.round(took)} ms`);
  t.equal(daemon.child.exitCode, 0);
  t.notMatch(ask(a, '-o link'), /flannel0/);
  t.equal(ask(a, 'route show 10.5.0.0/16'), '');
});

t.test('a signal during start-up, at any time', async (t) => {
  for (const delay of [0, 20, 40, 70, 100, 140, 180]) {
    const early = start(a);
    // Before our first line runs, the signal's default is all there is; the system calls are loaded soon after it.
    await until(() => readFileSync(`/proc/${early.child.pid}/maps`, 'utf8').includes('koffi'));
    await sleep(delay);
    const took = await early.stop('SIGTERM');
    const { exitCode, signalCode } = early.child;
    t.equal(exitCode ?? signalCode, 0, `after ${delay} ms, ${eventsOf(early).join(', ') || 'not ready'}`);
    t.ok(took < 1000, `in ${Math.round(took)} ms`);
    t.notMatch(ask(a, '-o link'), /flannel0/, 'no device is left');
  }
});

t.test('--keep-device, and a start with other options takes away what is old', async (t) => {
  daemon = start(a, '--keep-device');
  await ready(daemon);
  await daemon.stop();
  t.match(ask(a, 'route show 10.5.0.0/16'), /dev flannel0/);
  a.ns.ip('route add 10.99.0.0/16 dev flannel0'); // an operator's
  const other = ['--network', '10.5.0.0/17', '--subnet', '10.5.1.0/25', '--mtu', '1400'];
  const changed = a.ns.start('weftd-a-other', process.execPath, [WEFTD, ...other, '--iface', 'eth0', '--peers', path]);
  await ready(changed);
  t.match(ask(a, '-o address show flannel0'), /inet 10\.5\.1\.0\/32 /);
  t.notMatch(ask(a, '-o address show flannel0'), /inet6/);
  t.equal(ask(a, 'route show 10.5.0.0/16').includes('10.5.0.0/16'), false);
  t.match(ask(a, 'route show 10.5.0.0/17'), /dev flannel0/);
  t.match(ask(a, 'route show 10.99.0.0/16'), /dev flannel0/, "an operator's route stays");
  t.equal(ask(a, '-6 route show fd00:5::/48'), '');
  await changed.stop();
  daemon = start(a);
  await ready(daemon);
});

t.test('the peers file changes while packets flow', async (t) => {
  t.ok(await pings(b.client4));
  writeFileSync(path, '{"peers":[');
  t.ok(await until(() => eventsOf(daemon).includes('registry_trouble')));
  t.ok(await pings(b.client4), 'a malformed file: the last good one stays in force');
  t.equal(metric(a, 'weft_registry_up'), 0);

  writePeers((entry) => {
    entry.subnets.push('10.5.1.0/24');
  });
  t.ok(await until(() => eventsOf(daemon).includes('peers_refused')));
  t.ok(await pings(b.client4), 'so does it when subnets overlap');

  writePeers((entry) => {
    entry.address = '192.168.77.9';
  });
  t.ok(await until(() => eventsOf(daemon).includes('tables_applied')));
  t.notOk(await pings(b.client4), 'the peer moved to where nobody is');
  writePeers();
  t.ok((await answered(b.client4)) < 5000, 'and back');
  t.equal(metric(a, 'weft_registry_up'), 1);
});

t.test('a path that shrinks, and grows again', async (t) => {
  const big = (): Promise<{ code: number | null }> =>
    a.client.run('ping', ['-n', '-c', '1', '-W', '1', '-M', 'do', '-s', '1400', b.client4]);
  t.equal((await big()).code, 0, '1,428 bytes fit');
  // The underlay's route says 1,300 now, as it would after an ICMP "fragmentation needed".
  a.ns.ip('route replace 192.168.77.2/32 dev eth0 mtu 1300');
  t.ok(
    await until(async () => {
      await big();
      return daemon.log().includes('"event":"path_mtu"');
    }),
  );
  t.match(daemon.log(), /"event":"path_mtu","peer":"b","mtu":1272,"before":1472/);
  t.equal(metric(a, 'weft_peers_path_mtu_lowered'), 1);
  const refused = await a.client.run('ping', ['-n', '-c', '1', '-W', '1', '-M', 'do', '-s', '1400', b.client4]);
  t.match(refused.stdout + refused.stderr, /mtu ?= ?1272/, 'the sender is told');
  const whole = await a.client.run('ping', ['-n', '-c', '1', '-W', '1', '-M', 'dont', '-s', '1400', b.client4]);
  t.equal(whole.code, 0, 'what may be fragmented still arrives');
  a.ns.ip('route del 192.168.77.2/32 dev eth0');
});

t.test('a device that someone deletes comes back', async (t) => {
  a.ns.ip('link del flannel0');
  t.ok(await until(() => eventsOf(daemon).includes('device_reopened')));
  t.ok((await answered(b.client4)) < 5000);
  t.match(ask(a, '-o address show flannel0'), /inet6 fd00:5:0:1::\/128 /);
  t.equal(metric(a, 'weft_worker_restarts_total'), 1);
});

t.test('stop all', async (t) => {
  t.ok((await daemon.stop('SIGINT')) < 1000);
  t.equal(daemon.child.exitCode, 0);
  t.ok((await peerB.stop()) < 1000);
  t.equal(peerB.child.exitCode, 0);
});
