/**
 * flannel's udp backend on an etcd-backed cluster, with weftd in flanneld's place: its command lines as operators have them,
 * waiting for a configuration, leases and subnet.env byte for byte, restarts, revocation, reservations, a node that goes away
 * and one whose address changes, and a node of somebody else's whose lease is written by hand.
 */
import { existsSync, readFileSync } from 'node:fs';
import t from 'tap';
import { answersPing, type Daemon, type Host, Lab, sleep } from '../../race/hosts.js';
import { etcdMissing } from '../lib/etcd.js';
import { PYTHON } from './lib/agents.js';
import { registryMetrics, until } from './lib/embedded.js';
import {
  assertDay,
  assertMesh,
  assertSubnetEnv,
  DAY,
  ETCD_ADDRESS,
  exitCode,
  flannelLease,
  http,
  IDLE_MS,
  IN_FORCE_MS,
  idleCost,
  leaseKey,
  leaseOf,
  leases,
  linkOf,
  logLines,
  Monitor,
  makeCluster,
  NotifyListener,
  networkConfig,
  PREFIX,
  readEnv,
  routesTo,
  settle,
  spawnNode,
  startNode,
  subnetEnvOf,
  udpNode,
  writeLease,
} from './lib/flannel.js';
import { impossible, type Weft } from './lib/weft.js';

const why = etcdMissing() ?? impossible(PYTHON, 'iptables', 'ss');
t.setTimeout(0);

/** Seconds, of a node that goes away. */
const SHORT = 3;
const HEALTH = 8471;

const cidrOf = (name: string): string => name.replace('-', '/');
const peersOf = async (weft: Weft): Promise<number | undefined> => (await registryMetrics(weft)).peers;

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-etcd-udp');
  const cluster = await makeCluster(lab, 4);
  const { etcd, hosts } = cluster;
  t.teardown(async () => {
    await lab.close();
    await etcd.close();
  });
  const endpoints = `http://${ETCD_ADDRESS}:2379`;
  const wefts: Weft[] = [];
  const listeners: NotifyListener[] = [];
  let d = hosts[3];

  /** How each node is started, always: flag forms, variables, and files of their own. */
  const starts = [
    async (host: Host): Promise<Weft> => {
      // Nothing but what flannel knows.
      const args = [
        ...[`-etcd-endpoints=${endpoints}`, '--etcd-prefix', PREFIX, '-iface=eth0', '--ip-masq=false', '-v', '0'],
        ...['-healthz-ip=127.0.0.1', '--healthz-port', String(HEALTH), '-kube-subnet-mgr=false'],
      ];
      return spawnNode(cluster, host, { args, env: { NOTIFY_SOCKET: listeners[0].name } });
    },
    async (host: Host): Promise<Weft> => {
      const env = {
        FLANNELD_ETCD_ENDPOINTS: endpoints,
        FLANNELD_IFACE: host.underlay4,
        FLANNELD_SUBNET_FILE: '/run/flannel/other.env',
        FLANNELD_IP_MASQ: 'false',
        FLANNELD_IPTABLES_FORWARD_RULES: 'false',
        NOTIFY_SOCKET: listeners[1].name,
      };
      return spawnNode(cluster, host, { args: [], env });
    },
    async (host: Host): Promise<Weft> => {
      const args = [
        ...['--etcd-endpoints', `http://127.0.0.1:4001,${endpoints}`, '-iface=nosuch0', '-iface', 'eth0', '--ip-masq'],
        ...[`-public-ip=${host.underlay4}`, '-subnet-file=/run/flannel/c.env', '--subnet-lease-renew-margin=120'],
      ];
      // A flag goes before its variable.
      return spawnNode(cluster, host, { args, env: { FLANNELD_SUBNET_FILE: '/run/flannel/wrong.env' } });
    },
  ];
  const files = [subnetEnvOf(hosts[0]), subnetEnvOf(hosts[1], 'other.env'), subnetEnvOf(hosts[2], 'c.env')];
  const [a, b, c] = [0, 1, 2];
  /** Starts one again, as it was started before. */
  const again = async (i: number): Promise<Weft> => {
    wefts[i] = await starts[i](hosts[i]);
    await wefts[i].ready();
    return wefts[i];
  };

  await t.test('no configuration yet', async (t) => {
    listeners.push(await NotifyListener.start(hosts[a], 'path', files[a]));
    listeners.push(await NotifyListener.start(hosts[b], 'abstract', files[b]));
    for (const i of [a, b, c]) wefts.push(await starts[i](hosts[i]));
    const served = await until(async () => (await http(hosts[a].ns, HEALTH, '/healthz')).code !== 0);
    t.ok(served, 'it serves its health from the start');
    await sleep(2000);
    t.same(await http(hosts[a].ns, HEALTH, '/healthz'), { code: 200, body: 'flanneld is running' }, '/healthz');
    t.same(await http(hosts[a].ns, HEALTH, '/readyz'), { code: 503, body: 'flanneld is not ready yet' }, '/readyz');
    for (const [i, weft] of wefts.entries()) {
      const { letter } = hosts[i];
      t.ok(weft.daemon.running, `${letter}: waits`);
      t.notOk(existsSync(files[i]), `${letter}: no subnet.env`);
      t.ok(logLines(weft).length < 10, `${letter}: does not go on about it (${logLines(weft).length} lines)`);
    }
    t.same(await etcd.list('/'), [], 'nobody wrote anything');
    t.same(
      listeners.map((one) => one.messages()),
      [[], []],
      'nobody said that it is ready',
    );

    // Go matches keys without regard to case.
    const config = '{"network":"10.5.0.0/16","SUBNETMIN":"10.5.10.0","subnetMax":"10.5.99.0","backend":{"TYPE":"UDP"}}';
    await etcd.put(`${PREFIX}/config`, config);
    await Promise.all(wefts.map((weft) => weft.ready()));
    t.same(await http(hosts[a].ns, HEALTH, '/healthz'), { code: 200, body: 'flanneld is running' }, '/healthz');
    t.same(await http(hosts[a].ns, HEALTH, '/readyz'), { code: 200, body: 'flanneld is ready' }, '/readyz');
    t.equal((await http(hosts[a].ns, HEALTH, '/metrics')).code, 404, 'nothing else is served there');
    await until(() => listeners.every((one) => one.messages().length > 0));
    const [first, second] = listeners.map((one) => one.messages());
    t.same(first, ["'READY=1' with"], 'sd_notify once, when subnet.env is there');
    t.same(second, ["'READY=1' with"], 'the same by an abstract socket');
  });

  await t.test('leases and files', async (t) => {
    const all = await leases(etcd);
    t.equal(all.size, 3, 'three leases');
    t.equal((await etcd.list('/')).length, 4, 'no other keys than those and the configuration');
    for (const [i, host] of hosts.slice(0, 3).entries()) {
      const { letter, ns, underlay4 } = host;
      const lease = await leaseOf(etcd, underlay4);
      t.match(lease.name, /^10\.5\.\d+\.0-24$/, `${letter}: its key`);
      const third = Number(lease.name.split('.')[2]);
      t.ok(third >= 10 && third <= 99, `${letter}: from SubnetMin to SubnetMax`);
      t.equal(lease.value, flannelLease.plain(underlay4), `${letter}: its value`);
      t.equal(lease.version, 1, `${letter}: written once`);
      await assertDay(t, etcd, lease, letter);
      const subnet = cidrOf(lease.name);
      assertSubnetEnv(t, files[i], { subnet, mtu: 1472, ipMasq: i === c }, letter);
      const device = linkOf(ns, 'flannel0');
      t.same(
        { ...device, mac: '', addresses: device?.addresses.filter((one) => !one.startsWith('fe80')) },
        { kind: 'tun', type: 'tun', mac: '', mtu: 1472, up: true, addresses: [subnet.replace('/24', '/32')] },
        `${letter}: its device`,
      );
      t.same(routesTo(ns, '10.5.0.0/16'), ['dev flannel0'], `${letter}: its route`);
      hosts[i] = settle(host, files[i]);
    }
    t.notOk(existsSync(subnetEnvOf(hosts[c], 'wrong.env')), 'the flag went before the variable');
    t.match(hosts[a].ns.runSync('iptables', '-S', 'FLANNEL-FWD'), 'flanneld forward', 'a: forward rules');
    t.match(hosts[c].ns.runSync('iptables', '-t', 'nat', '-S', 'FLANNEL-POSTRTG'), 'flanneld masq', 'c: masquerade');
    t.notMatch(hosts[b].ns.runSync('iptables', '-S'), 'FLANNEL', 'b: none, as it was told');
    await assertMesh(t, hosts.slice(0, 3), 'mesh');
  });

  /** Plays host d, as the data plane of a lease that was written by hand. */
  const playD = async (address: string): Promise<Daemon> => {
    const all = [...(await leases(etcd))].filter(([name]) => name !== '10.5.4.0-24');
    const address4 = (value: string): string => (JSON.parse(value) as { PublicIP: string }).PublicIP;
    const peers = Object.fromEntries(all.map(([name, { value }]) => [cidrOf(name), address4(value)]));
    return udpNode(d, { base: '10.5.4.0', address, peers });
  };
  let node: Daemon;

  await t.test("somebody else's node, by watch", async (t) => {
    node = await playD(d.underlay4);
    await writeLease(etcd, '10.5.4.0-24', flannelLease.plain(d.underlay4));
    t.ok(await answersPing(d.client, hosts[a].client4, IN_FORCE_MS), 'its client reaches one of ours');
    await assertMesh(t, [...hosts.slice(0, 3), d], 'mesh');

    const lines = wefts.map((weft) => logLines(weft).length);
    const monitor = await Monitor.start(hosts[a].ns);
    const reconciled = await wefts[a].metrics();
    await writeLease(etcd, '10.5.4.0-24', flannelLease.plain(d.underlay4));
    await sleep(1000);
    t.same(monitor.seen('10.5.', 'flannel0'), [], 'a renewal: nothing changes in the kernel');
    await monitor.stop();
    t.same(
      wefts.map((weft) => logLines(weft).length),
      lines,
      'a renewal: nobody says anything',
    );
    t.ok(reconciled.length > 0 && (await peersOf(wefts[a])) === 3, 'a renewal: three peers as before');
    await assertMesh(t, [hosts[a], d], 'after a renewal');

    // The same subnet at another address.
    await node.stop('SIGKILL');
    d.ns.ip('addr del 192.168.77.4/24 dev eth0', 'addr add 192.168.77.44/24 dev eth0');
    node = await playD('192.168.77.44');
    t.notOk(await answersPing(hosts[a].client, d.client4, 1000), 'it moved: gone until etcd says where to');
    await writeLease(etcd, '10.5.4.0-24', flannelLease.plain('192.168.77.44'));
    t.ok(await answersPing(hosts[a].client, d.client4, IN_FORCE_MS), 'it moved: a changed PublicIP is in force');
    await assertMesh(t, [...hosts.slice(0, 3), d], 'after it moved');
  });

  await t.test('leases that are none', async (t) => {
    const lines = logLines(wefts[a]).length;
    const bad: Record<string, string> = {
      'no-subnet': flannelLease.plain('192.168.77.9'),
      '10.5.5.0-24': 'not JSON',
      '10.5.6.0-24': '{"PublicIP":"192.168.77","PublicIPv6":null}',
      '10.5.7.0-24': '[1]',
      '10.5.8.0-24': '',
    };
    for (const [name, value] of Object.entries(bad)) await writeLease(etcd, name, value);
    await writeLease(etcd, '10.5.9.0-24', flannelLease.plain('192.168.77.9'));
    t.ok(await until(async () => (await peersOf(wefts[a])) === 4, IN_FORCE_MS), 'what comes after them is read');
    await sleep(200);
    const said = (name: string): string[] =>
      logLines(wefts[a])
        .slice(lines)
        .filter((line) => line.includes(name));
    for (const name of Object.keys(bad)) t.equal(said(name).length, 1, `${name}: said once: ${said(name).join(' | ')}`);
    for (const [name, value] of Object.entries(bad)) {
      await writeLease(etcd, name, value);
      t.equal(await etcd.del(`${PREFIX}/subnets/${name}`), 1, `${name}: nobody else removed it`);
    }
    await etcd.del(leaseKey('10.5.9.0/24'));
    t.ok(await until(async () => (await peersOf(wefts[a])) === 3, IN_FORCE_MS), 'and what is removed is forgotten');
    t.ok(
      wefts.every(({ daemon }) => daemon.running),
      'all run',
    );
  });

  await t.test('restarts', async (t) => {
    for (const [i, signal] of [
      [b, 'SIGTERM'],
      [c, 'SIGKILL'],
    ] as const) {
      const { letter, underlay4 } = hosts[i];
      const before = await leaseOf(etcd, underlay4);
      const text = readFileSync(files[i], 'utf8');
      await wefts[i].stop(signal);
      if (signal === 'SIGTERM') t.equal(wefts[i].daemon.child.exitCode, 0, `${signal}: exit code 0`);
      t.same(await leaseOf(etcd, underlay4), before, `${letter}, ${signal}: its lease stays as it is`);
      t.equal(readFileSync(files[i], 'utf8'), text, `${letter}, ${signal}: so does subnet.env`);
      const begun = performance.now();
      await again(i);
      t.comment(`${letter}, ${signal}: ready after ${Math.round(performance.now() - begun)} ms`);
      const now = await leaseOf(etcd, underlay4);
      t.same([now.name, now.value], [before.name, before.value], `${letter}, ${signal}: the same lease`);
      t.equal(now.createRevision, before.createRevision, `${letter}, ${signal}: which was never away`);
      await assertDay(t, etcd, now, `${letter}, ${signal}`);
      t.equal(readFileSync(files[i], 'utf8'), text, `${letter}, ${signal}: the same subnet.env`);
    }
    // d's lease was there before they were.
    await assertMesh(t, [...hosts.slice(0, 3), d], 'afterwards');
  });

  await t.test('revoked', async (t) => {
    const { name } = await leaseOf(etcd, hosts[b].underlay4);
    await etcd.del(`${PREFIX}/subnets/${name}`);
    t.equal(await exitCode(wefts[b], IN_FORCE_MS), 0, 'it ends, with exit code 0');
    t.match(wefts[b].daemon.log(), 'Lease has been revoked. Shutting down daemon.', "and flannel's message");
    t.ok(existsSync(files[b]), 'subnet.env stays');
    t.ok(await until(async () => (await peersOf(wefts[a])) === 2, IN_FORCE_MS), 'the others drop it');
    t.notOk(await answersPing(hosts[a].client, hosts[b].client4, 1000), 'and send it nothing');
    await again(b);
    const now = await leaseOf(etcd, hosts[b].underlay4);
    t.equal(now.name, name, 'started again it has its subnet back, from subnet.env');
    t.equal(now.version, 1, 'by a new lease');
    t.equal(now.value, flannelLease.plain(hosts[b].underlay4), 'like the one it had');
    await assertMesh(t, hosts.slice(0, 3), 'afterwards');
  });

  await t.test('a node that goes away, and one that moves', async (t) => {
    const host = hosts[c];
    await wefts[c].stop();
    const { name } = await leaseOf(etcd, host.underlay4);
    await etcd.del(`${PREFIX}/subnets/${name}`);
    const args = [`-etcd-endpoints=${endpoints}`, '-iface=eth0', '-subnet-file=/run/flannel/c.env'];
    const short = [...args, '--lease-ttl', String(SHORT)];
    wefts[c] = await startNode(cluster, host, { args: short });
    const first = await leaseOf(etcd, host.underlay4);
    t.equal(first.name, name, 'the subnet of subnet.env');
    t.equal((await etcd.lease(first.lease)).granted, SHORT, 'a lease as short as it was told');
    await sleep(SHORT * 1600);
    const renewed = await leaseOf(etcd, host.underlay4);
    t.same([renewed.name, renewed.value], [name, first.value], 'renewed in time');
    t.equal(renewed.createRevision, first.createRevision, 'and never gone');
    t.ok(await answersPing(hosts[a].client, host.client4), 'it answers');

    await wefts[c].stop('SIGKILL');
    const killed = performance.now();
    t.equal(await peersOf(wefts[a]), 3, 'dead: known until its lease has ended');
    t.ok(await until(async () => (await peersOf(wefts[a])) === 2, (SHORT + 10) * 1000), 'dead: then dropped');
    t.comment(`dropped ${((performance.now() - killed) / 1000).toFixed(1)} s after its death`);
    t.notOk((await leases(etcd)).has(name), 'dead: its key is gone');

    // It comes back with another address, before anybody took its subnet.
    host.ns.ip(`addr del ${host.underlay4}/24 dev eth0`, 'addr add 192.168.77.33/24 dev eth0');
    wefts[c] = await startNode(cluster, host, { args: short });
    const moved = await leaseOf(etcd, '192.168.77.33');
    t.equal(moved.name, name, 'back at another address: on its subnet');
    t.equal(moved.value, flannelLease.plain('192.168.77.33'), 'back: with the new PublicIP');
    await assertMesh(t, hosts.slice(0, 3), 'back');

    // Its address changes while its lease is still there.
    await wefts[c].stop();
    host.ns.ip('addr del 192.168.77.33/24 dev eth0', 'addr add 192.168.77.34/24 dev eth0');
    wefts[c] = await startNode(cluster, host, { args });
    const third = await leaseOf(etcd, '192.168.77.34');
    t.comment(`its address changed under a lease: ${third.name} after ${name}`);
    await assertDay(t, etcd, third, 'its address changed');
    assertSubnetEnv(t, files[c], { subnet: cidrOf(third.name), mtu: 1472 }, 'its address changed');
    hosts[c] = settle(host, files[c]);
    await assertMesh(t, hosts.slice(0, 3), 'its address changed');

    // Behind a NAT that gives it an address of its own, as clouds do: here its own host is that NAT.
    await wefts[c].stop();
    host.ns.ip('addr add 192.168.77.203/32 dev lo');
    const nat = (...rule: string[]): string => host.ns.runSync('iptables', '-t', 'nat', '-A', ...rule);
    nat('PREROUTING', '-p', 'udp', '-d', '192.168.77.203', '-j', 'DNAT', '--to-destination', '192.168.77.34');
    nat('POSTROUTING', '-p', 'udp', '-s', '192.168.77.34', '-j', 'SNAT', '--to-source', '192.168.77.203');
    wefts[c] = await startNode(cluster, host, { args: [...args, '-public-ip=192.168.77.203'] });
    const natted = await leaseOf(etcd, '192.168.77.203');
    t.equal(natted.value, flannelLease.plain('192.168.77.203'), 'behind a NAT: the lease has the public address');
    t.match(host.ns.runSync('ss', '-lnu'), '192.168.77.34:8285', "behind a NAT: the socket has the interface's");
    hosts[c] = settle(host, files[c]);
    await assertMesh(t, hosts.slice(0, 3), 'behind a NAT');
  });

  await t.test('a reservation', async (t) => {
    await node.stop('SIGKILL');
    // What was written for it by hand is outside SubnetMin to SubnetMax: of no use to a node that looks for its own.
    const taken = await leases(etcd);
    const reserved = Array.from({ length: 10 }, (_, i) => `10.5.${60 + i}.0-24`).find((name) => !taken.has(name)) ?? '';
    await etcd.put(`${PREFIX}/subnets/${reserved}`, flannelLease.plain('192.168.77.44')); // and no lease with it
    await etcd.del(leaseKey('10.5.4.0/24'));
    const args = [`-etcd-endpoints=${endpoints}`, '-iface=eth0', '--lease-ttl', String(SHORT)];
    let weft = await startNode(cluster, d, { args });
    const { FLANNEL_SUBNET } = readEnv(subnetEnvOf(d));
    t.equal(FLANNEL_SUBNET, reserved.replace('.0-', '.1/'), 'it gets what was reserved for its address');
    d = settle(d);
    await sleep(SHORT * 1300);
    for (const when of ['after its time to renew', 'after a restart']) {
      const lease = await leaseOf(etcd, '192.168.77.44');
      t.equal(lease.name, reserved, `${when}: the same key`);
      t.equal(lease.lease, 0n, `${when}: without a lease of etcd's`);
      t.equal(lease.value, flannelLease.plain('192.168.77.44'), `${when}: with the same value`);
      if (when === 'after a restart') break;
      await weft.stop();
      weft = await startNode(cluster, d, { args });
    }
    await assertMesh(t, [...hosts.slice(0, 3), d], 'mesh of four');
    await weft.stop();

    // flannel deletes a node's lease that its configuration does not allow any more, and so do we.
    await etcd.del(`${PREFIX}/subnets/${reserved}`);
    await writeLease(etcd, '10.5.4.0-24', flannelLease.plain('192.168.77.44'));
    weft = await startNode(cluster, d, { args });
    const own = await leaseOf(etcd, '192.168.77.44');
    t.equal(own.name, reserved, 'a lease outside the range: deleted, not used');

    // An operator makes a reservation of it while we run: the same value, without a lease.
    await etcd.put(own.key, own.value);
    await sleep(SHORT * 1300);
    const kept = await leaseOf(etcd, '192.168.77.44');
    t.same(
      [kept.name, kept.value, kept.lease],
      [own.name, own.value, 0n],
      'made a reservation while we run: it stays one',
    );
    t.ok(weft.daemon.running, 'made a reservation while we run: no reason to stop');
    await weft.stop();
  });

  await t.test('what it costs, and books', async (t) => {
    const { total } = await etcd.requests();
    t.comment(await idleCost(wefts[a]));
    t.comment(
      `idle: ${(await etcd.requests()).total - total} messages to etcd in ${IDLE_MS / 1000} s from three nodes`,
    );
    for (const [i, weft] of wefts.entries()) {
      const { in: into, made, sent, consumed, dropped } = await weft.idle();
      t.ok(into > 0, `${hosts[i].letter}: carried something`);
      t.equal(into + made, sent + consumed + dropped, `${hosts[i].letter}: in + made = sent + consumed + dropped`);
      const found = weft.events().filter(({ level }) => level === 'error' || level === 50);
      t.same(found, [], `${hosts[i].letter}: no error in its log`);
    }
    for (const lease of (await leases(etcd)).values()) {
      if (!lease.value.includes('192.168.77.44'))
        t.equal((await etcd.lease(lease.lease)).granted, DAY, `${lease.key}: a day`);
    }
    // Orderly, from within: exit code 0 and everything that another flanneld would want.
    for (const [i, weft] of wefts.entries()) {
      await weft.stop(i === 0 ? 'SIGINT' : 'SIGTERM');
      t.equal(weft.daemon.child.exitCode, 0, `${hosts[i].letter}: exit code 0`);
      t.ok(existsSync(files[i]), `${hosts[i].letter}: subnet.env stays`);
      t.equal(linkOf(hosts[i].ns, 'flannel0'), undefined, `${hosts[i].letter}: its device is gone`);
    }
    const left = await leases(etcd);
    for (const [i, file] of files.entries()) {
      const key = readEnv(file).FLANNEL_SUBNET?.replace('.1/', '.0-') ?? '';
      t.ok(left.has(key), `${hosts[i].letter}: its lease stays`);
    }
    t.match(hosts[a].ns.runSync('iptables', '-S', 'FLANNEL-FWD'), 'flanneld forward', 'so do the rules');
  });

  await t.test('dual stack', async (t) => {
    await etcd.del(`${PREFIX}/subnets/`, { prefix: true });
    const more = { EnableIPv6: true, IPv6Network: 'fd00:5::/48', IPv6SubnetMin: 'fd00:5:0:10::' };
    await etcd.put(`${PREFIX}/config`, networkConfig(undefined, more));
    const two = await Promise.all([a, b].map((i) => startNode(cluster, hosts[i])));
    const pair: Host[] = [];
    for (const host of [hosts[a], hosts[b]]) {
      // flannel's udp backend knows no IPv6 underlay.
      const lease = await leaseOf(etcd, host.underlay4);
      t.equal(lease.value, flannelLease.plain(host.underlay4), `${host.letter}: its lease`);
      const [subnet, subnet6] = lease.name.split('&').map(cidrOf);
      assertSubnetEnv(t, subnetEnvOf(host), { subnet, subnet6, mtu: 1472 }, host.letter);
      pair.push(settle(host));
    }
    t.ok(await until(async () => (await peersOf(two[0])) === 1, IN_FORCE_MS), 'they know each other');
    await assertMesh(t, pair, 'IPv4');
    await assertMesh(t, pair, 'IPv6', 6);
    await Promise.all(two.map((weft) => weft.stop()));
  });

  await t.test('a small network, and out of subnets', async (t) => {
    await etcd.del(`${PREFIX}/subnets/`, { prefix: true });
    // A /28 has four /30, of which the first is not given out.
    await etcd.put(`${PREFIX}/config`, '{"Network":"10.5.0.0/28"}');
    const free = ['10.5.0.4-30', '10.5.0.8-30', '10.5.0.12-30'];
    await writeLease(etcd, free[1], flannelLease.plain('192.168.77.9'));
    const started: Weft[] = [];
    const got: string[] = [];
    for (const i of [a, b]) {
      started.push(await startNode(cluster, hosts[i]));
      got.push((await leaseOf(etcd, hosts[i].underlay4)).name);
    }
    t.same(got.sort(), [free[0], free[2]].sort(), 'two nodes have what is left');
    t.match(readFileSync(subnetEnvOf(hosts[a]), 'utf8'), 'FLANNEL_NETWORK=10.5.0.0/28\n', 'subnet.env follows');
    const late = spawnNode(cluster, hosts[c]);
    t.equal(await exitCode(late), 1, 'the next one ends with exit code 1');
    t.match(late.daemon.lastWords(), /subnet/i, 'and says why');
    t.comment(late.daemon.lastWords());
    await Promise.all(started.map((weft) => weft.stop()));
  });
}
