/**
 * flannel's backends that carry nothing themselves, on an etcd-backed cluster: host-gw, with two weftds and a host whose lease
 * and routes are made by hand, and alloc.
 */
import { existsSync } from 'node:fs';
import t from 'tap';
import { answersPing, Lab, sleep } from '../../race/hosts.js';
import { etcdMissing } from '../lib/etcd.js';
import { until } from './lib/embedded.js';
import {
  assertDay,
  assertMesh,
  assertSubnetEnv,
  ETCD_ADDRESS,
  exitCode,
  flannelLease,
  IN_FORCE_MS,
  idleCost,
  leaseKey,
  leaseOf,
  leases,
  linkOf,
  logLines,
  Monitor,
  makeCluster,
  networkConfig,
  PREFIX,
  routesTo,
  settle,
  spawnNode,
  startNode,
  subnetEnvOf,
  writeLease,
} from './lib/flannel.js';
import { impossible, type Weft } from './lib/weft.js';

const why = etcdMissing() ?? impossible('iptables');
t.setTimeout(0);

/** flannel looks every 10 s. */
const ROUTE_CHECK_MS = 15_000;
const cidrOf = (name: string): string => name.replace('-', '/');

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-etcd-gw');
  const cluster = await makeCluster(lab, 3);
  const { etcd, hosts } = cluster;
  t.teardown(async () => {
    await lab.close();
    await etcd.close();
  });
  let [a, b] = hosts;
  const c = hosts[2];
  const wefts: Weft[] = [];
  const links = (): string => a.ns.runSync('ip', '-o', 'link', 'show');
  const linksBefore = links();
  const onlyEtcd = [`-etcd-endpoints=${etcd.endpoints.join()}`];

  await t.test('host-gw: only where the public address is ours', async (t) => {
    await etcd.put(`${PREFIX}/config`, networkConfig({ Type: 'host-gw' }));
    const args = ['-iface=eth0', '-public-ip=192.168.77.99'];
    const weft = spawnNode(cluster, a, { args: [...onlyEtcd, ...args] });
    t.equal(await exitCode(weft), 1, 'exit code 1');
    t.match(weft.daemon.lastWords(), /192\.168\.77\.99/, 'which address it is');
    t.match(weft.daemon.lastWords(), /host-gw/, 'and for what');
    t.same((await leases(etcd)).size, 0, 'it took no lease');
    t.notOk(existsSync(subnetEnvOf(a)), 'and wrote no subnet.env');
  });

  await t.test('host-gw', async (t) => {
    a.ns.ip('route add 10.5.99.0/24 via 192.168.77.250'); // somebody's own
    await writeLease(etcd, '10.5.3.0-24', flannelLease.hostGw(c.underlay4));
    wefts.push(
      await startNode(cluster, a, { args: [...onlyEtcd, `-iface-can-reach=${ETCD_ADDRESS}`] }),
      await startNode(cluster, b, {
        args: [...onlyEtcd, '-iface-regex=^wlan', String.raw`--iface-regex=^192\.168\.77\.`],
      }),
    );
    for (const host of [a, b]) {
      const { letter, ns, underlay4 } = host;
      const lease = await leaseOf(etcd, underlay4);
      t.equal(lease.value, flannelLease.hostGw(underlay4), `${letter}: its lease`);
      await assertDay(t, etcd, lease, letter);
      assertSubnetEnv(t, subnetEnvOf(host), { subnet: cidrOf(lease.name), mtu: 1500 }, letter);
      t.same(routesTo(ns, '10.5.3.0/24'), [`via ${c.underlay4} dev eth0`], `${letter}: c, at boot`);
      c.ns.ip(`route replace ${cidrOf(lease.name)} via ${underlay4}`);
    }
    t.equal(links(), linksBefore, 'no device was made');
    [a, b] = [settle(a), settle(b)];
    const [near, far] = [await leaseOf(etcd, a.underlay4), await leaseOf(etcd, b.underlay4)];
    const wanted = [`via ${b.underlay4} dev eth0`];
    t.ok(await until(() => routesTo(a.ns, cidrOf(far.name)).join() === wanted.join(), IN_FORCE_MS), 'a: b, by watch');
    t.same(routesTo(b.ns, cidrOf(near.name)), [`via ${a.underlay4} dev eth0`], 'b: a, at boot');
    await assertMesh(t, [a, b, c], 'mesh');

    const monitor = await Monitor.start(a.ns);
    const lines = wefts.map((weft) => logLines(weft).length);
    await writeLease(etcd, '10.5.3.0-24', flannelLease.hostGw(c.underlay4));
    await sleep(1000);
    t.same(monitor.seen('10.5.'), [], 'a renewal: nothing changes in the kernel');
    t.same(
      wefts.map((weft) => logLines(weft).length),
      lines,
      'a renewal: nobody says anything',
    );
    await monitor.stop();

    // Two at once, since it may take 10 s.
    a.ns.ip('route del 10.5.3.0/24');
    a.ns.ip(`route replace ${cidrOf(far.name)} via 192.168.77.250`);
    const deleted = performance.now();
    t.ok(
      await until(() => routesTo(a.ns, '10.5.3.0/24').length > 0, ROUTE_CHECK_MS),
      'a route somebody deletes is back',
    );
    t.comment(`after ${((performance.now() - deleted) / 1000).toFixed(1)} s`);
    t.same(routesTo(a.ns, '10.5.3.0/24'), [`via ${c.underlay4} dev eth0`], 'as it was');
    await sleep(200);
    t.comment(`a route somebody changed: ${routesTo(a.ns, cidrOf(far.name)).join()}`);
    a.ns.ip(`route replace ${cidrOf(far.name)} ${wanted[0]}`);

    c.ns.ip('addr del 192.168.77.3/24 dev eth0', 'addr add 192.168.77.33/24 dev eth0');
    for (const { name, host } of [
      { name: near.name, host: a },
      { name: far.name, host: b },
    ])
      c.ns.ip(`route replace ${cidrOf(name)} via ${host.underlay4}`);
    await writeLease(etcd, '10.5.3.0-24', flannelLease.hostGw('192.168.77.33'));
    t.ok(await answersPing(a.client, c.client4, IN_FORCE_MS), 'a changed PublicIP is in force');
    const there = ['via 192.168.77.33 dev eth0'];
    t.ok(
      await until(() => routesTo(a.ns, '10.5.3.0/24').join() === there.join(), IN_FORCE_MS),
      `one route, to where it is now: ${routesTo(a.ns, '10.5.3.0/24').join()}`,
    );

    await etcd.del(leaseKey('10.5.3.0/24'));
    t.ok(
      await until(() => routesTo(a.ns, '10.5.3.0/24').length === 0, IN_FORCE_MS),
      'a lease that goes takes its route',
    );
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan('192.168.77.33', '02:c0:ff:ee:00:03'));
    await sleep(500);
    t.same(routesTo(a.ns, '10.5.3.0/24'), [], 'one of another type gets none');
    // Nobody can be routed to through a host that is not on our link: said, and no reason to stop.
    const before = logLines(wefts[0]).length;
    await writeLease(etcd, '10.5.8.0-24', flannelLease.hostGw('172.31.9.9'));
    await writeLease(etcd, '10.5.3.0-24', flannelLease.hostGw('192.168.77.33'));
    t.ok(await answersPing(a.client, c.client4, IN_FORCE_MS), 'one of ours does, after one that is out of reach');
    await sleep(1500);
    const said = logLines(wefts[0]).slice(before);
    t.ok(said.length > 0 && said.length < 5, `that is said, and not all the time: ${said.join(' | ')}`);
    t.ok(
      said.some((line) => line.includes('172.31.9.9') || line.includes('10.5.8.0')),
      'and which',
    );
    await etcd.del(leaseKey('10.5.8.0/24'));
  });

  await t.test('host-gw: restarts', async (t) => {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const before = await leaseOf(etcd, a.underlay4);
      await wefts[0].stop(signal);
      if (signal === 'SIGTERM') t.equal(wefts[0].daemon.child.exitCode, 0, `${signal}: exit code 0`);
      t.comment(`${signal}: ${routesTo(a.ns, '10.5.3.0/24').join() || 'no route'} is left`);
      // While it is away one node goes.
      if (signal === 'SIGKILL') await etcd.del(leaseKey('10.5.3.0/24'));
      wefts[0] = await startNode(cluster, a);
      const now = await leaseOf(etcd, a.underlay4);
      t.same(
        [now.name, now.value, now.createRevision],
        [before.name, before.value, before.createRevision],
        `${signal}: the same lease`,
      );
      await assertMesh(t, [a, b], signal);
    }
    t.ok(await until(() => routesTo(a.ns, '10.5.3.0/24').length === 0, IN_FORCE_MS), 'who went meanwhile has no route');
    t.comment(await idleCost(wefts[0]));
    const { name } = await leaseOf(etcd, b.underlay4);
    await etcd.del(`${PREFIX}/subnets/${name}`);
    t.equal(await exitCode(wefts[1], IN_FORCE_MS), 0, 'revoked: it ends with exit code 0');
    t.match(wefts[1].daemon.log(), 'Lease has been revoked. Shutting down daemon.', "revoked: and flannel's message");
    t.ok(await until(() => routesTo(a.ns, cidrOf(name)).length === 0, IN_FORCE_MS), 'revoked: the others drop it');
    await wefts[0].stop();
    t.same(routesTo(a.ns, '10.5.99.0/24'), ['via 192.168.77.250 dev eth0'], "a route of somebody else's stays");
    a.ns.ip('route del 10.5.99.0/24');
  });

  await t.test('host-gw, dual stack', async (t) => {
    await etcd.del(`${PREFIX}/subnets/`, { prefix: true });
    const config = { EnableIPv6: true, IPv6Network: 'fd00:5::/48', IPv6SubnetMin: 'fd00:5:0:10::' };
    await etcd.put(`${PREFIX}/config`, networkConfig({ Type: 'host-gw' }, config));
    wefts.splice(0, 2, await startNode(cluster, a), await startNode(cluster, b));
    const found: string[][] = [];
    for (const host of [a, b]) {
      const lease = await leaseOf(etcd, host.underlay4);
      t.equal(lease.value, flannelLease.hostGw(host.underlay4, host.underlay6), `${host.letter}: its lease`);
      const [subnet, subnet6] = lease.name.split('&').map(cidrOf);
      assertSubnetEnv(t, subnetEnvOf(host), { subnet, subnet6, mtu: 1500 }, host.letter);
      found.push([subnet, subnet6]);
    }
    [a, b] = [settle(a), settle(b)];
    const there = (): boolean => routesTo(a.ns, found[1][1]).join() === `via ${b.underlay6} dev eth0`;
    t.ok(await until(there, IN_FORCE_MS), `a: b, IPv6: ${routesTo(a.ns, found[1][1]).join()}`);
    await assertMesh(t, [a, b], 'IPv4');
    await assertMesh(t, [a, b], 'IPv6', 6);
    await Promise.all(wefts.map((weft) => weft.stop()));
  });

  await t.test('alloc', async (t) => {
    await etcd.del(`${PREFIX}/subnets/`, { prefix: true });
    await etcd.put(`${PREFIX}/config`, networkConfig({ type: 'alloc' }));
    await writeLease(etcd, '10.5.3.0-24', flannelLease.plain('192.168.77.33'));
    const before = links();
    const weft = await startNode(cluster, a);
    const lease = await leaseOf(etcd, a.underlay4);
    t.equal(lease.value, flannelLease.plain(a.underlay4), 'its lease');
    await assertDay(t, etcd, lease, 'alloc');
    assertSubnetEnv(t, subnetEnvOf(a), { subnet: cidrOf(lease.name), mtu: 1500 }, 'alloc');
    await sleep(500);
    t.equal(links(), before, 'no device');
    t.notMatch(a.ns.runSync('ip', 'route'), / via /, 'no route, and none of before');
    t.equal(linkOf(a.ns, 'flannel0'), undefined, 'no flannel0');
    await weft.stop('SIGKILL');
    const again = await startNode(cluster, a);
    t.equal((await leaseOf(etcd, a.underlay4)).name, lease.name, 'a restart: the same subnet');
    await etcd.del(`${PREFIX}/subnets/${lease.name}`);
    t.equal(await exitCode(again, IN_FORCE_MS), 0, 'revoked: it ends with exit code 0');
  });

  await t.test('what a run with another backend left', async (t) => {
    await etcd.del(`${PREFIX}/subnets/`, { prefix: true });
    const run = async (backend: object, devices: readonly string[], more: object = {}): Promise<void> => {
      const what = JSON.stringify({ ...more, ...backend });
      await etcd.put(`${PREFIX}/config`, networkConfig(backend, more));
      wefts.splice(0, 2, await startNode(cluster, a), await startNode(cluster, b));
      [a, b] = [settle(a), settle(b)];
      await answersPing(a.client, b.client4, IN_FORCE_MS);
      await assertMesh(t, [a, b], what);
      const found = ['flannel0', 'flannel.1', 'flannel.5'].filter((name) => linkOf(a.ns, name) !== undefined);
      t.same(found, devices, `${what}: its own device and no other`);
      const ours = a.ns.runSync('ip', 'route', 'show', 'proto', '87').trim().split('\n');
      t.equal(ours.length, 1, `${what}: its own route and no other: ${ours.join(' | ')}`);
    };
    const kill = (): Promise<unknown> => Promise.all(wefts.map((weft) => weft.stop('SIGKILL')));
    for (const [backend, devices, more] of [
      [{ Type: 'udp' }, ['flannel0'], {}],
      [{ Type: 'vxlan' }, ['flannel.1'], {}],
      [{ Type: 'vxlan', VNI: 5 }, ['flannel.5'], {}],
      [{ Type: 'host-gw' }, [], {}],
      [{ Type: 'udp' }, ['flannel0'], {}],
      [{ Type: 'host-gw' }, [], {}],
      [{ Type: 'host-gw' }, [], { Network: '10.6.0.0/16', SubnetMin: '10.6.10.0' }],
      [{ Type: 'host-gw' }, [], {}],
    ] as const) {
      await run(backend, devices, more);
      await kill();
    }
    // And what a flanneld left: its routes say nothing of whose they are.
    await writeLease(etcd, '10.5.3.0-24', flannelLease.hostGw('192.168.77.33'));
    const far = cidrOf((await leaseOf(etcd, b.underlay4)).name);
    a.ns.ip('route add 10.5.3.0/24 via 192.168.77.33', `route del ${far}`, `route add ${far} via ${b.underlay4}`);
    wefts.splice(0, 2, await startNode(cluster, a), await startNode(cluster, b));
    await assertMesh(t, [a, b], 'after a flanneld');
    t.same(routesTo(a.ns, '10.5.3.0/24'), ['via 192.168.77.33 dev eth0'], "a flanneld's route: there once");
    await etcd.del(leaseKey('10.5.3.0/24'));
    const gone = await until(() => routesTo(a.ns, '10.5.3.0/24').length === 0, IN_FORCE_MS);
    t.ok(gone, "a flanneld's route: goes with the lease");
    await Promise.all(wefts.map((weft) => weft.stop()));
  });
}
