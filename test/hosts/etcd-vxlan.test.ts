/**
 * flannel's vxlan backend on an etcd-backed cluster: two weftds and a node of somebody else's, which is a kernel device
 * `flannel.1` with what flanneld would tell the kernel, and a lease written by hand. Leases, devices, neighbours, routes and
 * MACs as flannel has them, the wire, bulk transfers, renewals that touch nothing, changed and removed leases, restarts, a
 * kernel device that is taken over, DirectRouting, learning, and dual stack.
 */
import t from 'tap';
import { answersPing, Lab, run, sleep } from '../../race/hosts.js';
import { etcdMissing } from '../lib/etcd.js';
import { Agent, MiB, PYTHON } from './lib/agents.js';
import { Capture } from './lib/capture.js';
import { until } from './lib/embedded.js';
import {
  assertDay,
  assertMesh,
  assertSubnetEnv,
  exitCode,
  flannelLease,
  IN_FORCE_MS,
  idleCost,
  kernelFlannel,
  kernelPeer,
  leaseKey,
  leaseOf,
  leases,
  linkOf,
  logLines,
  MAC,
  Monitor,
  makeCluster,
  neighbours,
  networkConfig,
  PREFIX,
  readEnv,
  routesTo,
  settle,
  startNode,
  subnetEnvOf,
  writeLease,
} from './lib/flannel.js';
import { assertTcp, type MacEntry, macsOf, sendDatagrams } from './lib/l2.js';
import { type Assertions, assertConserved, FULL, impossible, type Weft } from './lib/weft.js';

const why = etcdMissing() ?? impossible(PYTHON, 'bridge', 'tshark', 'tcpdump', 'iptables');
t.setTimeout(0);

const BULK = FULL ? 512 * MiB : 64 * MiB;
const C_MAC = '02:c0:ff:ee:00:03';
const KERNEL_PORT = 8472;
/** We look every 10 s. */
const BACK_MS = 25_000;
const STRANGER = '02:ba:d0:00:00:01';

const cidrOf = (name: string): string => name.replace('-', '/');
const baseOf = (cidr: string): string => cidr.replace(/\/.*/, '');

/** Addresses that the kernel does not make by itself. */
const addressesOf = (addresses: readonly string[] = []): string[] => addresses.filter((one) => !one.startsWith('fe80'));

const peerMacs = async (weft: Weft): Promise<string[]> =>
  (await macsOf(weft)).filter(({ peer }) => peer !== null).map(({ mac }) => mac);

/** VXLAN with VNI 1: a station that nobody knows asks for 10.5.10.1. */
function strangersArp(destination: string): Uint8Array {
  const station = STRANGER.replaceAll(':', '');
  const ethernet = `${destination.replaceAll(':', '')}${station}0806`;
  const arp = `0001080006040001${station}0a0503630000000000000a050a01`;
  return Buffer.from(`0800000000000100${ethernet}${arp}`, 'hex');
}

/** Datagrams of a capture as tshark, which knows nothing of ours, takes them apart. */
async function dissected(capture: Capture, port: number): Promise<Record<string, string>[]> {
  await capture.stop();
  const fields = ['ip.src', 'ip.dst', 'ip.flags.df', 'udp.dstport', 'vxlan.vni', 'vxlan.flags', 'eth.src', 'eth.dst'];
  const { stdout, stderr } = await run('tshark', [
    ...['-r', capture.file, '-d', `udp.port==${port},vxlan`, '-T', 'fields', '-E', 'occurrence=a'],
    ...fields.flatMap((field) => ['-e', field]),
  ]);
  if (stdout === '' && !stderr.includes('Running as user')) throw new Error(`tshark: ${stderr.trim()}`);
  return stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => Object.fromEntries(line.split('\t').map((value, i) => [fields[i], value])));
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-etcd-vxlan');
  const cluster = await makeCluster(lab, 3);
  const { etcd, hosts } = cluster;
  t.teardown(async () => {
    await lab.close();
    await etcd.close();
  });
  let [a, b] = hosts;
  const c = hosts[2];
  const wefts: Weft[] = [];
  const agents = await Promise.all(hosts.map((host) => Agent.start(host.client)));

  /** What weftd has for a node, in each place: nothing else, and nothing less. */
  const assertPeer = async (
    t: Assertions,
    weft: Weft,
    peer: { subnet: string; mac: string },
    message: string,
  ): Promise<void> => {
    const { ns } = weft.host;
    const base = baseOf(peer.subnet);
    t.same(routesTo(ns, peer.subnet), [`via ${base} dev flannel.1 onlink`], `${message}: route`);
    const found = neighbours(ns, 'flannel.1').filter((one) => one.startsWith(`${base} `));
    t.same(found, [`${base} ${peer.mac} PERMANENT`], `${message}: neighbour`);
    const macs = (await macsOf(weft)).filter(({ mac }) => mac === peer.mac);
    t.same(
      macs.map(({ vni, origin }) => ({ vni, origin })),
      [{ vni: 1, origin: 'static' }],
      `${message}: MAC`,
    );
  };

  const own = async (publicIp: string): Promise<{ subnet: string; mac: string; value: string; revision: number }> => {
    const { name, value, createRevision } = await leaseOf(etcd, publicIp);
    const { BackendData } = JSON.parse(value) as { BackendData: { VtepMAC: string } };
    return { subnet: cidrOf(name), mac: BackendData.VtepMAC, value, revision: createRevision };
  };

  /** Tells c's kernel of our two, as c's flanneld would. */
  const tellC = async (device = 'flannel.1'): Promise<void> => {
    for (const { underlay4 } of [a, b]) {
      const { subnet, mac } = await own(underlay4);
      kernelPeer(c.ns, device, { subnet, mac, publicIp: underlay4 });
    }
  };

  await t.test('two of ours and one of the kernel', async (t) => {
    await etcd.put(`${PREFIX}/config`, networkConfig({ Type: 'VXLAN' })); // lower-cased by flannel
    kernelFlannel(c.ns, { mac: C_MAC, local: c.underlay4, base: '10.5.3.0' });
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan(c.underlay4, C_MAC));
    wefts.push(await startNode(cluster, a));
    wefts.push(await startNode(cluster, b));
    await tellC();
    t.equal((await leases(etcd)).size, 3, 'three leases');
    for (const [i, host] of [a, b].entries()) {
      const { letter, ns, underlay4 } = host;
      const lease = await leaseOf(etcd, underlay4);
      const device = linkOf(ns, 'flannel.1');
      t.equal(lease.value, flannelLease.vxlan(underlay4, device?.mac ?? ''), `${letter}: its lease, with its MAC`);
      await assertDay(t, etcd, lease, letter);
      t.match(device?.mac, MAC, `${letter}: a MAC as Go writes it`);
      t.equal(Number.parseInt(device?.mac ?? '', 16) & 3, 2, `${letter}: of one station, made up`);
      t.same(
        { ...device, mac: '', addresses: addressesOf(device?.addresses) },
        {
          kind: 'tun',
          type: 'tap',
          mac: '',
          mtu: 1450,
          up: true,
          addresses: [cidrOf(lease.name).replace('/24', '/32')],
        },
        `${letter}: its device`,
      );
      assertSubnetEnv(t, subnetEnvOf(host), { subnet: cidrOf(lease.name), mtu: 1450 }, letter);
      await assertPeer(t, wefts[i], { subnet: '10.5.3.0/24', mac: C_MAC }, `${letter}: c, at boot`);
    }
    const far = await own(b.underlay4);
    t.ok(await until(() => routesTo(a.ns, far.subnet).length > 0, IN_FORCE_MS), 'a: b, by watch');
    await assertPeer(t, wefts[0], far, 'a: b, by watch');
    await assertPeer(t, wefts[1], await own(a.underlay4), 'b: a, at boot');
    [a, b] = [settle(a), settle(b)];
    await assertMesh(t, [a, b, c], 'mesh');
    t.same(
      (await macsOf(wefts[0])).filter(({ origin }) => origin === 'learned'),
      [],
      'nothing was learned',
    );
  });

  await t.test('bulk', async (t) => {
    const [left, right, kernel] = agents;
    await assertTcp(t, left, b.client4, 'a to b', { bytes: BULK });
    await assertTcp(t, right, a.client4, '8 flows of b and a', { bytes: BULK / 16, flows: 8, duplex: true });
    await assertTcp(t, left, c.client4, 'a to the kernel', { bytes: BULK });
    await assertTcp(t, kernel, b.client4, 'the kernel to b', { bytes: BULK });
    await assertTcp(t, kernel, a.client4, '8 flows of the kernel and a', { bytes: BULK / 16, flows: 8, duplex: true });
    const sizes = [1, 17, 64, 500, 1000, 1421, 1422, 1423, 3000, 8192];
    for (const [from, to, what] of [
      [left, b, 'a to b'],
      [right, c, 'b to the kernel'],
    ] as const) {
      const { echoed, again, lost, wrong } = await from.udp(to.client4, sizes);
      t.same({ echoed, lost, wrong }, { echoed: sizes.length, lost: [], wrong: [] }, `${what}: UDP`);
      // The clients' veth carries 1500: the first that is too large tells them so.
      t.ok(again.length <= 2, `${what}: UDP: sent again: ${again.join(' ') || 'none'}`);
    }
    for (const [i, { letter, ns }] of [a, b].entries()) {
      await assertConserved(t, [wefts[i]], letter, { 'outbound.not_flooded': true, 'outbound.unknown_mac': true });
      t.equal(linkOf(ns, 'flannel.1')?.up, true, `${letter}: its device is up`);
    }
  });

  await t.test('on the wire', async (t) => {
    const capture = await Capture.start(a.ns, 'eth0', `udp port ${KERNEL_PORT}`);
    for (const to of [b, c]) await a.client.run('ping', ['-n', '-c2', '-i0.2', to.client4]);
    const packets = await dissected(capture, KERNEL_PORT);
    const [near, far] = [await own(a.underlay4), await own(b.underlay4)];
    for (const [to, mac] of [
      [b, far.mac],
      [c, C_MAC],
    ] as const) {
      const there = packets.filter((one) => one['ip.dst']?.startsWith(to.underlay4));
      t.equal(there.length, 2, `two to ${to.letter}`);
      for (const one of there) {
        t.equal(one['udp.dstport'], `${KERNEL_PORT}`, `${to.letter}: port`);
        t.equal(one['vxlan.vni'], '1', `${to.letter}: VNI`);
        t.equal(one['vxlan.flags'], '0x0800', `${to.letter}: flags`);
        t.match(one['ip.flags.df'], /^(1|True)/, `${to.letter}: DF outside`);
        t.match(one['eth.src'], near.mac, `${to.letter}: from our VtepMAC`);
        t.match(one['eth.dst'], mac, `${to.letter}: to its VtepMAC`);
      }
      t.equal(packets.filter((one) => one['ip.src']?.startsWith(to.underlay4)).length, 2, `two from ${to.letter}`);
    }
  });

  await t.test('nothing is flooded and nothing learned', async (t) => {
    const before = await macsOf(wefts[0]);
    // VXLAN, VNI 1, from c's address: an ARP request of a station that nobody knows, to everybody.
    const arp = strangersArp('ff:ff:ff:ff:ff:ff');
    await sendDatagrams(c.ns, a.underlay4, [arp, arp], { port: KERNEL_PORT });
    const capture = await Capture.start(a.ns, 'eth0', `udp port ${KERNEL_PORT}`);
    await a.ns.run('ping', ['-n', '-c2', '-i0.2', '-W1', '-b', '-I', 'flannel.1', '255.255.255.255']);
    await a.ns.run('ping', ['-n', '-c2', '-i0.2', '-W1', '10.5.200.1']);
    t.same(await dissected(capture, KERNEL_PORT), [], 'a broadcast goes to nobody');
    const key = ({ mac, origin }: MacEntry): string => `${mac} ${origin}`;
    t.same((await macsOf(wefts[0])).map(key).sort(), before.map(key).sort(), 'no MAC was learned');
  });

  await t.test("a renewal of somebody else's lease", async (t) => {
    const monitors = await Promise.all([a, b].map(({ ns }) => Monitor.start(ns)));
    const lines = wefts.map((weft) => logLines(weft).length);
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan(c.underlay4, C_MAC));
    await sleep(1500);
    for (const monitor of monitors) {
      t.same(monitor.seen('flannel.1', '10.5.3.'), [], 'nothing changes in the kernel');
      await monitor.stop();
    }
    t.same(
      wefts.map((weft) => logLines(weft).length),
      lines,
      'nobody says anything',
    );
    await assertPeer(t, wefts[0], { subnet: '10.5.3.0/24', mac: C_MAC }, 'afterwards');
  });

  await t.test('restarts', async (t) => {
    const before = await own(b.underlay4);
    const monitor = await Monitor.start(a.ns);
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      await wefts[1].stop(signal);
      if (signal === 'SIGTERM') t.equal(wefts[1].daemon.child.exitCode, 0, `${signal}: exit code 0`);
      if (signal === 'SIGTERM') t.equal(linkOf(b.ns, 'flannel.1'), undefined, `${signal}: its device is gone`);
      wefts[1] = await startNode(cluster, b);
      t.same(await own(b.underlay4), before, `${signal}: the same lease, with the same VtepMAC`);
      t.equal(linkOf(b.ns, 'flannel.1')?.mac, before.mac, `${signal}: its device has that MAC`);
      await assertPeer(t, wefts[1], { subnet: '10.5.3.0/24', mac: C_MAC }, `${signal}: c`);
      await assertPeer(t, wefts[1], await own(a.underlay4), `${signal}: a`);
      await assertMesh(t, [a, b, c], signal);
    }
    t.same(monitor.seen('flannel.1', before.subnet.replace('0/24', '')), [], 'a touched nothing for all that');
    await monitor.stop();
  });

  await t.test('somebody changes our device', async (t) => {
    // As systemd has done (flannel #1155).
    const { mac } = await own(a.underlay4);
    a.ns.ip('link set flannel.1 address 02:5a:5a:5a:5a:5a');
    // And its routes go with a link that goes down.
    b.ns.ip('link set flannel.1 down');
    await sleep(300);
    b.ns.ip('link set flannel.1 up');
    t.ok(await until(() => linkOf(a.ns, 'flannel.1')?.mac === mac, BACK_MS), 'its MAC is put back');
    const there = (): boolean => routesTo(b.ns, '10.5.3.0/24').length === 1;
    t.ok(await until(there, BACK_MS), 'down and up: its routes are put back');
    t.ok(await answersPing(a.client, c.client4, IN_FORCE_MS), 'packets go again');
    await assertMesh(t, [a, b, c], 'afterwards');
    await assertPeer(t, wefts[0], { subnet: '10.5.3.0/24', mac: C_MAC }, 'afterwards, c');
    await assertPeer(t, wefts[0], await own(b.underlay4), 'afterwards, b');
    await assertPeer(t, wefts[1], await own(a.underlay4), 'afterwards, a');
  });

  await t.test("somebody else's lease changes", async (t) => {
    const mac = '02:c0:ff:ee:00:33';
    c.ns.ip(`link set flannel.1 address ${mac}`);
    await tellC();
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan(c.underlay4, mac));
    for (const weft of wefts) {
      t.ok(await until(async () => (await peerMacs(weft)).includes(mac), IN_FORCE_MS), 'a changed VtepMAC is known');
    }
    await sleep(200);
    for (const weft of wefts) {
      const { letter } = weft.host;
      await assertPeer(t, weft, { subnet: '10.5.3.0/24', mac }, `${letter}: the new VtepMAC`);
      t.notOk((await peerMacs(weft)).includes(C_MAC), `${letter}: the old one is gone`);
    }
    await assertMesh(t, [a, b, c], 'with another VtepMAC');

    c.ns.ip('link del flannel.1', 'addr del 192.168.77.3/24 dev eth0', 'addr add 192.168.77.33/24 dev eth0');
    kernelFlannel(c.ns, { mac, local: '192.168.77.33', base: '10.5.3.0' });
    await tellC();
    t.notOk(await answersPing(a.client, c.client4, 1000), 'it moved: gone until etcd says where to');
    const monitor = await Monitor.start(a.ns);
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan('192.168.77.33', mac));
    t.ok(await answersPing(a.client, c.client4, IN_FORCE_MS), 'it moved: a changed PublicIP is in force');
    await assertMesh(t, [a, b, c], 'at another PublicIP');
    await assertPeer(t, wefts[0], { subnet: '10.5.3.0/24', mac }, 'at another PublicIP');
    t.comment(`of that the kernel saw: ${monitor.seen('flannel.1', '10.5.3.').join(' | ') || 'nothing'}`);
    await monitor.stop();

    // Of another type: flannel ignores it.
    await writeLease(etcd, '10.5.3.0-24', flannelLease.hostGw('192.168.77.33'));
    t.ok(await until(() => routesTo(a.ns, '10.5.3.0/24').length === 0, IN_FORCE_MS), 'another type: no route');
    t.notOk((await peerMacs(wefts[0])).includes(mac), 'another type: no MAC');
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan('192.168.77.33', mac));
    t.ok(await answersPing(a.client, c.client4, IN_FORCE_MS), 'vxlan again: it answers');
  });

  await t.test('a host with two leases', async (t) => {
    const mac = '02:c0:ff:ee:00:33';
    await writeLease(etcd, '10.5.8.0-24', flannelLease.vxlan('192.168.77.33', mac));
    t.ok(await until(() => routesTo(a.ns, '10.5.8.0/24').length === 1, IN_FORCE_MS), 'its second subnet is routed');
    await assertPeer(t, wefts[0], { subnet: '10.5.8.0/24', mac }, 'the second');
    await assertPeer(t, wefts[0], { subnet: '10.5.3.0/24', mac }, 'the first');
    await etcd.del(leaseKey('10.5.8.0/24'));
    t.ok(await until(() => routesTo(a.ns, '10.5.8.0/24').length === 0, IN_FORCE_MS), 'one goes');
    await assertPeer(t, wefts[0], { subnet: '10.5.3.0/24', mac }, 'the other stays');
    t.ok(await answersPing(a.client, c.client4), 'and answers');
  });

  await t.test('our lease made a reservation, as flannel describes it', async (t) => {
    const before = await leaseOf(etcd, b.underlay4);
    // Without a lease, and with no more than the address.
    await etcd.put(before.key, `{"PublicIP":"${b.underlay4}"}`);
    const restored = async (): Promise<boolean> => (await etcd.get(before.key))?.value === before.value;
    t.ok(await until(restored, IN_FORCE_MS), 'what was left out is put back');
    t.equal((await etcd.get(before.key))?.lease, 0n, 'and it stays a reservation');
    t.ok(await answersPing(a.client, b.client4, IN_FORCE_MS), 'the others know it');
    await writeLease(etcd, before.name, before.value);
    await sleep(300);
    t.ok(wefts[1].daemon.running, 'a lease again');
    await assertMesh(t, [a, b, c], 'afterwards');
  });

  await t.test("somebody else's lease goes, and comes", async (t) => {
    const monitor = await Monitor.start(a.ns);
    const about = (): string[] => monitor.seen('10.5.3.0').filter((line) => /dev flannel\.1/.test(line));
    await etcd.del(leaseKey('10.5.3.0/24'));
    t.ok(await until(() => about().length >= 2, IN_FORCE_MS), 'gone: the kernel is told');
    t.match(about()[0], /^Deleted 10\.5\.3\.0\/24 via 10\.5\.3\.0/, 'gone: first the route');
    t.match(
      about()[1],
      /^Deleted 10\.5\.3\.0 dev flannel\.1|^10\.5\.3\.0 dev flannel\.1 .*FAILED/,
      'then the neighbour',
    );
    t.ok(await until(async () => !(await peerMacs(wefts[0])).includes('02:c0:ff:ee:00:33')), 'then the MAC');
    t.equal(
      neighbours(a.ns, 'flannel.1').filter((one) => one.startsWith('10.5.3.0 ')).length,
      0,
      'no neighbour is left',
    );
    await monitor.stop();

    const coming = await Monitor.start(a.ns);
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan('192.168.77.33', '02:c0:ff:ee:00:33'));
    const seen = (): string[] => coming.seen('10.5.3.0').filter((line) => /dev flannel\.1/.test(line));
    t.ok(await until(() => seen().length >= 2, IN_FORCE_MS), 'back: the kernel is told');
    t.match(seen()[0], '10.5.3.0 dev flannel.1 lladdr 02:c0:ff:ee:00:33 PERMANENT', 'back: first the neighbour');
    t.match(seen()[1], /^10\.5\.3\.0\/24 via 10\.5\.3\.0 dev flannel\.1/, 'then the route');
    await coming.stop();
    await assertMesh(t, [a, b, c], 'back');
  });

  await t.test('while we were away', async (t) => {
    await wefts[0].stop('SIGKILL');
    await etcd.del(leaseKey('10.5.3.0/24'));
    const mac = '02:c0:ff:ee:00:09';
    await writeLease(etcd, '10.5.9.0-24', flannelLease.vxlan('192.168.77.9', mac));
    wefts[0] = await startNode(cluster, a);
    t.same(routesTo(a.ns, '10.5.3.0/24'), [], 'who went has no route');
    t.notOk(
      neighbours(a.ns, 'flannel.1').some((one) => one.startsWith('10.5.3.0 ')),
      'and no neighbour',
    );
    await assertPeer(t, wefts[0], { subnet: '10.5.9.0/24', mac }, 'who came');
    await etcd.del(leaseKey('10.5.9.0/24'));
    await writeLease(etcd, '10.5.3.0-24', flannelLease.vxlan('192.168.77.33', '02:c0:ff:ee:00:33'));
    t.ok(await answersPing(a.client, c.client4, IN_FORCE_MS), 'c is back');
  });

  await t.test("a stopped flanneld's device is taken over", async (t) => {
    await wefts[1].stop();
    const { subnet } = await own(b.underlay4);
    const mac = '52:51:47:5c:73:1e';
    kernelFlannel(b.ns, { mac, local: b.underlay4, base: baseOf(subnet) });
    await writeLease(etcd, subnet.replace('/', '-'), flannelLease.vxlan(b.underlay4, mac));
    kernelPeer(b.ns, 'flannel.1', { ...(await own(a.underlay4)), publicIp: a.underlay4 });
    kernelPeer(b.ns, 'flannel.1', { subnet: '10.5.3.0/24', mac: '02:c0:ff:ee:00:33', publicIp: '192.168.77.33' });
    await tellC();
    await assertMesh(t, [a, b, c], 'flanneld runs on b');
    // And one of a VNI that it had before.
    kernelFlannel(b.ns, { mac: '02:0b:0b:0b:0b:0b', local: b.underlay4, base: baseOf(subnet), vni: 9 });
    b.ns.ip('route add 10.5.7.0/24 via 10.5.7.0 dev flannel.9 onlink');
    const monitor = await Monitor.start(a.ns);
    wefts[1] = await startNode(cluster, b);
    const device = linkOf(b.ns, 'flannel.1');
    t.same([device?.kind, device?.type, device?.mac], ['tun', 'tap', mac], "weftd's own, with the MAC that it had");
    t.equal(linkOf(b.ns, 'flannel.9'), undefined, 'what it had for another VNI is gone');
    t.equal((await leaseOf(etcd, b.underlay4)).value, flannelLease.vxlan(b.underlay4, mac), 'so says the lease');
    t.equal((await own(b.underlay4)).subnet, subnet, 'on the same subnet');
    await assertMesh(t, [a, b, c], 'weftd runs on b');
    t.same(monitor.seen('flannel.1'), [], 'a touched nothing for it');
    await monitor.stop();
  });

  await t.test('revoked', async (t) => {
    const before = await own(b.underlay4);
    await etcd.del(leaseKey(before.subnet));
    t.equal(await exitCode(wefts[1], IN_FORCE_MS), 0, 'it ends, with exit code 0');
    t.match(wefts[1].daemon.log(), 'Lease has been revoked. Shutting down daemon.', "and flannel's message");
    t.ok(await until(() => routesTo(a.ns, before.subnet).length === 0, IN_FORCE_MS), 'the others drop it');
    wefts[1] = await startNode(cluster, b);
    t.equal((await own(b.underlay4)).subnet, before.subnet, 'started again it has its subnet back');
    t.comment(await idleCost(wefts[0]));
    await Promise.all(wefts.map((weft) => weft.stop()));
    for (const { ns } of [a, b]) {
      t.same(routesTo(ns, '10.5.3.0/24'), [], 'stopped: no route is left');
    }
  });

  const direct: string[] = [];
  await t.test('VNI, port and DirectRouting', async (t) => {
    await etcd.del(leaseKey('10.5.3.0/24'));
    const backend = { Type: 'vxlan', VNI: 77, Port: 4790, directrouting: true, MTU: 1400 };
    await etcd.put(`${PREFIX}/config`, networkConfig(backend));
    // Beyond a gateway: encapsulated. On our link: not.
    a.ns.ip('route add 172.31.9.0/24 via 192.168.77.250');
    await writeLease(etcd, '10.5.8.0-24', flannelLease.vxlan('172.31.9.9', '02:c0:ff:ee:00:08', 77));
    const before = await Promise.all([a, b].map(({ underlay4 }) => own(underlay4)));
    wefts.splice(0, 2, await startNode(cluster, a), await startNode(cluster, b));
    const now = await Promise.all([a, b].map(({ underlay4 }) => own(underlay4)));
    for (const [i, { letter, ns, underlay4 }] of [a, b].entries()) {
      t.equal(now[i].subnet, before[i].subnet, `${letter}: the same subnet`);
      t.equal(linkOf(ns, 'flannel.1'), undefined, `${letter}: no flannel.1`);
      const device = linkOf(ns, 'flannel.77');
      t.equal(device?.mtu, 1350, `${letter}: the configured MTU, less what is around it`);
      assertSubnetEnv(t, subnetEnvOf([a, b][i]), { subnet: now[i].subnet, mtu: 1350 }, letter);
      t.equal(now[i].value, flannelLease.vxlan(underlay4, device?.mac ?? '', 77), `${letter}: its lease`);
    }
    const straight = (): boolean => routesTo(a.ns, now[1].subnet)[0] === `via ${b.underlay4} dev eth0`;
    t.ok(await until(straight, IN_FORCE_MS), `a: b is reached directly: ${routesTo(a.ns, now[1].subnet).join()}`);
    t.same(routesTo(a.ns, '10.5.8.0/24'), ['via 10.5.8.0 dev flannel.77 onlink'], 'a: who is far is not');
    const capture = await Capture.start(a.ns, 'eth0', 'udp port 4790');
    await assertMesh(t, [a, b], 'directly');
    await a.ns.run('ping', ['-n', '-c1', '-W1', '10.5.8.1']);
    const packets = await dissected(capture, 4790);
    t.same(
      packets.map((one) => [one['ip.dst']?.split(',')[0], one['udp.dstport'], one['vxlan.vni']]),
      [['172.31.9.9', '4790', '77']],
      'one packet was encapsulated: to who is far',
    );
    await etcd.del(leaseKey('10.5.8.0/24'));
    await Promise.all(wefts.map((weft) => weft.stop()));
    // As flannel's: what it routed to other hosts goes on. Who starts next puts it right.
    t.comment(`stopped: ${routesTo(a.ns, now[1].subnet).join() || 'no route'} is left`);
    direct.push(...now.map(({ subnet }) => subnet));
    a.ns.ip('route del 172.31.9.0/24');
  });

  await t.test('dual stack', async (t) => {
    const config = { EnableIPv6: true, IPv6Network: 'fd00:5::/48', IPv6SubnetMin: 'fd00:5:0:10::' };
    await etcd.put(`${PREFIX}/config`, networkConfig({ Type: 'vxlan', Learning: true }, config));
    const [mac4, mac6] = ['02:c0:ff:ee:04:03', '02:c0:ff:ee:06:03'];
    c.ns.ip('link del flannel.1');
    const address = '192.168.77.33';
    kernelFlannel(c.ns, { mac: mac4, local: address, base: '10.5.3.0' });
    kernelFlannel(c.ns, { mac: mac6, local: c.underlay6, base: 'fd00:5:0:3::', family: 6 });
    const value = flannelLease.vxlanDual(address, mac4, c.underlay6, mac6);
    await writeLease(etcd, '10.5.3.0-24&fd00:5:0:3::-64', value);
    wefts.splice(0, 2, await startNode(cluster, a), await startNode(cluster, b));
    const all = await leases(etcd);
    t.equal(all.size, 3, `three leases; those that had no IPv6 are gone: ${[...all.keys()].join(' ')}`);
    const subnets: [string, string][] = [];
    for (const host of [a, b]) {
      const { letter, ns, underlay4, underlay6 } = host;
      const lease = await leaseOf(etcd, underlay4);
      t.match(lease.name, /^10\.5\.\d+\.0-24&fd00:5:0:[0-9a-f]+::-64$/, `${letter}: its key`);
      const [v4, v6] = lease.name.split('&').map(cidrOf);
      const [device4, device6] = [linkOf(ns, 'flannel.1'), linkOf(ns, 'flannel-v6.1')];
      t.equal(
        lease.value,
        flannelLease.vxlanDual(underlay4, device4?.mac ?? '', underlay6, device6?.mac ?? ''),
        `${letter}: its lease`,
      );
      await assertDay(t, etcd, lease, letter);
      t.same(addressesOf(device4?.addresses), [v4.replace('/24', '/32')], `${letter}: flannel.1`);
      t.same(addressesOf(device6?.addresses), [v6.replace('/64', '/128')], `${letter}: flannel-v6.1`);
      t.equal(device4?.mtu, 1450, `${letter}: flannel.1 leaves room for 50 bytes`);
      t.equal(device6?.mtu, 1430, `${letter}: flannel-v6.1 leaves room for 70 bytes`);
      assertSubnetEnv(t, subnetEnvOf(host), { subnet: v4, subnet6: v6, mtu: 1430 }, letter);
      subnets.push([v4, v6]);
      const data = JSON.parse(lease.value) as Record<'BackendData' | 'BackendV6Data', { VtepMAC: string }>;
      kernelPeer(c.ns, 'flannel.1', { subnet: v4, mac: data.BackendData.VtepMAC, publicIp: underlay4 });
      kernelPeer(c.ns, 'flannel-v6.1', { subnet: v6, mac: data.BackendV6Data.VtepMAC, publicIp: underlay6 });
    }
    [a, b] = [settle(a), settle(b)];
    await until(() => routesTo(a.ns, subnets[1][1]).length > 0, IN_FORCE_MS);
    const old = direct.filter((subnet) => subnets.every(([v4]) => v4 !== subnet));
    t.same(
      old.flatMap((subnet) => routesTo(a.ns, subnet)),
      [],
      'a: no route to where somebody was before',
    );
    t.same(routesTo(a.ns, 'fd00:5:0:3::/64'), ['via fd00:5:0:3:: dev flannel-v6.1 onlink'], 'a: c, IPv6');
    t.same(routesTo(a.ns, '10.5.3.0/24'), ['via 10.5.3.0 dev flannel.1 onlink'], 'a: c, IPv4');
    const known = neighbours(a.ns, 'flannel-v6.1').filter((one) => one.includes('PERMANENT'));
    t.ok(known.includes(`fd00:5:0:3:: ${mac6} PERMANENT`), `a: c's neighbour: ${known.join(', ')}`);
    await assertMesh(t, [a, b, c], 'IPv4');
    await assertMesh(t, [a, b, c], 'IPv6', 6);
    const capture = await Capture.start(a.ns, 'eth0', 'udp port 8472');
    const whole = ['-n', '-c1', '-W2', '-M', 'do', '-s'];
    t.equal((await a.ns.run('ping', [...whole, '1422', b.client4])).code, 0, 'a full packet, IPv4');
    t.equal((await a.ns.run('ping', [...whole, '1382', b.client6])).code, 0, 'a full packet, IPv6');
    const packets = await capture.stop();
    t.same(
      packets.map(({ length }) => length),
      [1500, 1500, 1500, 1500],
      'each in one packet outside',
    );
    await assertTcp(t, agents[0], b.client6, 'a to b, IPv6', { bytes: BULK / 2 });
    await assertTcp(t, agents[2], a.client6, 'the kernel to a, IPv6', { bytes: BULK / 2 });
    await assertTcp(t, agents[1], c.client4, 'b to the kernel, IPv4', { bytes: BULK / 4, duplex: true });

    // Learning: a station that b speaks for.
    const stranger = strangersArp(linkOf(a.ns, 'flannel.1')?.mac ?? '');
    await sendDatagrams(c.ns, a.underlay4, [stranger], { port: KERNEL_PORT, from: address });
    const learned = async (): Promise<MacEntry | undefined> =>
      (await macsOf(wefts[0])).find(({ mac }) => mac === STRANGER);
    t.ok(
      await until(async () => (await learned()) !== undefined, IN_FORCE_MS),
      'Learning: a MAC that arrived is known',
    );
    t.equal((await learned())?.origin, 'learned', 'Learning: as one that was learned');

    // IPv6 addresses go with a link that goes down.
    const before = linkOf(a.ns, 'flannel-v6.1')?.addresses;
    a.ns.ip('link set flannel-v6.1 down');
    await sleep(300);
    a.ns.ip('link set flannel-v6.1 up');
    const there = (): boolean => routesTo(a.ns, 'fd00:5:0:3::/64').length === 1;
    t.ok(await until(there, BACK_MS), 'flannel-v6.1 down and up: its routes are put back');
    const addresses = (): string => addressesOf(linkOf(a.ns, 'flannel-v6.1')?.addresses).join();
    t.ok(await until(() => addresses() === addressesOf(before).join(), BACK_MS), `and its address: ${addresses()}`);
    await assertMesh(t, [a, b, c], 'down and up, IPv6', 6);

    const macs = [linkOf(a.ns, 'flannel.1')?.mac, linkOf(a.ns, 'flannel-v6.1')?.mac];
    await wefts[0].stop('SIGKILL');
    wefts[0] = await startNode(cluster, a);
    t.same([linkOf(a.ns, 'flannel.1')?.mac, linkOf(a.ns, 'flannel-v6.1')?.mac], macs, 'a restart keeps both MACs');
    await assertMesh(t, [a, b, c], 'after a restart, IPv6', 6);
    await Promise.all(wefts.map((weft) => weft.stop()));
  });

  await t.test('IPv6 alone', async (t) => {
    await etcd.del(`${PREFIX}/subnets/`, { prefix: true });
    const config = { EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fd00:5::/48', Backend: { Type: 'vxlan' } };
    await etcd.put(`${PREFIX}/config`, JSON.stringify(config));
    wefts.splice(0, 2, await startNode(cluster, a), await startNode(cluster, b));
    const all = [...(await leases(etcd))];
    for (const host of [a, b]) {
      const { letter, ns, underlay6 } = host;
      const [name, { value }] = all.find(([, lease]) => lease.value.includes(`"${underlay6}"`)) ?? ['', { value: '' }];
      const mac = linkOf(ns, 'flannel-v6.1')?.mac;
      t.equal(
        value,
        `{"PublicIP":"0.0.0.0","PublicIPv6":"${underlay6}","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"${mac}"}}`,
        `${letter}: its lease`,
      );
      const { FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET } = readEnv(subnetEnvOf(host));
      t.equal(FLANNEL_SUBNET, undefined, `${letter}: no IPv4 in subnet.env`);
      t.equal(FLANNEL_IPV6_SUBNET, name.replace(/.*&/, '').replace('-', '1/'), `${letter}: but IPv6`);
      t.equal(linkOf(ns, 'flannel.1'), undefined, `${letter}: no flannel.1`);
    }
    [a, b] = [settle(a), settle(b)];
    t.ok(await answersPing(a.client, b.client6, IN_FORCE_MS), 'they know each other');
    await assertMesh(t, [a, b], 'IPv6', 6);
    await Promise.all(wefts.map((weft) => weft.stop()));
  });
}
