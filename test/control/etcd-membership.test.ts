/**
 * Membership by a lease in a real etcd: how a lease is had and what is written into it, who is believed when leases contradict each
 * other, and what a restart without etcd remembers. Hosts are EtcdNodes: control alone, in this process.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type Address, parseHostAddress } from '../../src/control/cidr.js';
import type { EtcdOptions } from '../../src/control/etcd-membership.js';
import { until } from '../lib/embedded.js';
import { Etcd, etcdMissing } from '../lib/etcd.js';
import { EtcdNode, NodeFolders, type NodeOptions } from '../lib/etcd-nodes.js';

const why = etcdMissing();
t.setTimeout(0);

const PREFIX = '/coreos.com/network';
const CONFIG = `${PREFIX}/config`;
const BELOW = `${PREFIX}/subnets/`;
const V4 = '192.168.77.1';
const V6 = 'fd00:77::1';
const MAC4 = '52:51:47:5c:73:1e';
const MAC6 = '6a:00:00:00:00:06';
const DUAL = { Network: '10.5.0.0/16', EnableIPv6: true, IPv6Network: 'fc00::/48' };

interface Stage {
  readonly etcd: Etcd;
  readonly folders: NodeFolders;
  configure(config: object): Promise<unknown>;
  /** A host that is not started. */
  node(address?: string, more?: Partial<EtcdOptions>, options?: Partial<NodeOptions>): EtcdNode;
  /** Another's lease; its key is the last part. */
  lease(key: string, value: object | string, ttl?: number): Promise<unknown>;
  /** Keys and values of leases, by key. */
  leases(): Promise<Record<string, string>>;
}

async function setUp(t: Test, config?: object): Promise<Stage> {
  const etcd = await Etcd.start();
  t.teardown(() => etcd.close());
  const folders = new NodeFolders(t);
  const configure = (value: object): Promise<unknown> => etcd.put(CONFIG, JSON.stringify(value));
  if (config) await configure(config);
  return {
    etcd,
    folders,
    configure,
    node: (address = V4, more = {}, options = {}) => {
      const node = new EtcdNode(folders, { endpoints: etcd.endpoints, address, more, ...options });
      t.teardown(() => node.stop());
      return node;
    },
    lease: (key, value, ttl = 600) =>
      etcd.put(BELOW + key, typeof value === 'string' ? value : JSON.stringify(value), { ttl }),
    leases: async () =>
      Object.fromEntries((await etcd.list(BELOW)).map(({ key, value }) => [key.slice(BELOW.length), value])),
  };
}

/** An underlay with these addresses. */
function underlay(...texts: string[]): Partial<EtcdOptions> {
  const all: Address[] = texts.map(parseHostAddress);
  return {
    underlayFor: async (families) => {
      const addresses = all.filter(({ family }) => families.includes(family));
      return { addresses, publicAddresses: addresses };
    },
  };
}

/** It does not start, and ends when it is told to. */
async function waits(t: Test, node: EtcdNode, what: string): Promise<void> {
  const opening = t.rejects(node.open(), { name: 'AbortError' }, what);
  t.ok(await until(() => node.log.count('etcd_waiting') > 0), what);
  await node.stop();
  await opening;
}

const events = (node: EtcdNode, ...names: string[]): string[] =>
  node.log.events.filter((event) => names.length === 0 || names.includes(event));
const fieldsOf = (node: EtcdNode, event: string): Readonly<Record<string, unknown>> =>
  node.log.lines.find((line) => line.event === event)?.fields ?? {};

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  t.test('what is written, byte for byte, by backend and family', async (t) => {
    for (const [config, value, macs] of [
      [{ Network: '10.5.0.0/16' }, `{"PublicIP":"${V4}","PublicIPv6":null}`, {}],
      [{ ...DUAL, Backend: { Type: 'udp' } }, `{"PublicIP":"${V4}","PublicIPv6":null}`, {}],
      [{ Network: '10.5.0.0/16', Backend: { Type: 'alloc' } }, `{"PublicIP":"${V4}","PublicIPv6":null}`, {}],
      [
        { ...DUAL, Backend: { Type: 'host-gw' } },
        `{"PublicIP":"${V4}","PublicIPv6":"${V6}","BackendType":"host-gw"}`,
        {},
      ],
      [
        { Network: '10.5.0.0/16', Backend: { Type: 'vxlan', VNI: 7 } },
        `{"PublicIP":"${V4}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"${MAC4}"}}`,
        { 4: MAC4 },
      ],
      [
        { ...DUAL, Backend: { Type: 'vxlan' } },
        `{"PublicIP":"${V4}","PublicIPv6":"${V6}","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"${MAC4}"},"BackendV6Data":{"VNI":1,"VtepMAC":"${MAC6}"}}`,
        { 4: MAC4, 6: MAC6 },
      ],
      [
        { EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fc00::/48', Backend: { Type: 'vxlan' } },
        `{"PublicIP":"0.0.0.0","PublicIPv6":"${V6}","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"${MAC6}"}}`,
        { 6: MAC6 },
      ],
      [
        { EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fc00::/48' },
        `{"PublicIP":"0.0.0.0","PublicIPv6":"${V6}"}`,
        {},
      ],
    ] as const) {
      const { node, leases } = await setUp(t, config);
      const host = node(V4, underlay(V4, V6));
      const candidate = await host.open();
      const member = await candidate.join({ 4: MAC4, 6: MAC6 });
      const parts = [...member.subnets.map(({ text }) => text.replace('/', '-'))];
      const key = parts.length === 2 ? parts.join('&') : parts[0].includes(':') ? `0.0.0.0-0&${parts[0]}` : parts[0];
      t.same(await leases(), { [key]: value }, JSON.stringify(config));
      t.same(member.macs, macs);
      t.equal(member.lease, 'new');
    }
  });

  t.test('taken over: whose public IP is ours; what is of another network is deleted', async (t) => {
    const { etcd, node, lease, leases } = await setUp(t, { Network: '10.5.0.0/16' });
    await lease('10.5.9.0-24', { PublicIP: V4, PublicIPv6: null }, 300);
    await lease('10.9.9.0-24', { PublicIP: V4 });
    await lease('10.5.8.0-25', { PublicIP: '192.168.77.2' });
    const before = await etcd.get(`${BELOW}10.5.9.0-24`);
    t.match(await node().join(), { lease: 'taken over', subnets: [{ text: '10.5.9.0/24' }] });
    const after = await etcd.get(`${BELOW}10.5.9.0-24`);
    t.equal(after?.createRevision, before?.createRevision, 'never gone meanwhile');
    t.not(after?.lease, before?.lease);
    t.ok((await etcd.lease(after?.lease ?? 0n)).ttl > 80_000, 'for a day');
    t.same(Object.keys(await leases()), ['10.5.8.0-25', '10.5.9.0-24', '10.9.9.0-24']);

    const stage = await setUp(t, { Network: '10.5.0.0/16' });
    await stage.lease('10.9.9.0-24', { PublicIP: V4 });
    await stage.lease('10.5.8.0-25', { PublicIP: V4 });
    const host = stage.node();
    const member = await host.join();
    t.equal(member.lease, 'new');
    t.same(Object.keys(await stage.leases()), [host.key]);
    t.same(events(host, 'lease_deleted'), ['lease_deleted', 'lease_deleted']);
  });

  t.test('reused: what subnet.env names, if it is free; and why it is not, is said', async (t) => {
    const { node, folders, lease } = await setUp(t, { Network: '10.5.0.0/16' });
    const remember = (address: string, subnet: string): void => {
      writeFileSync(join(folders.of(address), 'subnet.env'), `FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=${subnet}\n`);
    };
    remember(V4, '10.5.33.1/24');
    t.match(await node().join(), { lease: 'reused', subnets: [{ text: '10.5.33.0/24' }] });

    await lease('10.5.44.0-24', { PublicIP: '192.168.77.9' });
    remember('192.168.77.2', '10.5.44.1/24');
    const moved = node('192.168.77.2');
    t.match(await moved.join(), { lease: 'new' });
    t.match(fieldsOf(moved, 'subnet_not_reused'), {
      subnet: ['10.5.44.0/24'],
      reason: 'its lease is of public IP 192.168.77.9, and we are 192.168.77.2',
    });

    remember('192.168.77.3', '10.99.1.1/24');
    const elsewhere = node('192.168.77.3');
    t.match(await elsewhere.join(), { lease: 'new' });
    t.match(fieldsOf(elsewhere, 'subnet_not_reused'), { reason: 'not free, or not of this network' });
  });

  t.test('MACs: those of our devices, else those of our lease, else made', async (t) => {
    const { node, leases, etcd } = await setUp(t, { Network: '10.5.0.0/16', Backend: { Type: 'vxlan' } });
    const host = node();
    const first = await host.join();
    await host.stop();
    t.match(first.macs?.[4], /^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/, 'locally administered, of one station');
    const again = node();
    t.same((await again.join()).macs, first.macs);
    await again.stop();
    const given = node();
    t.same((await (await given.open()).join({ 4: MAC4 })).macs, { 4: MAC4 });
    t.match(Object.values(await leases()), [new RegExp(MAC4)]);
    await etcd.del(BELOW, { prefix: true });
    t.notSame((await node('192.168.77.2').join()).macs, first.macs);
  });

  t.test('two families: who comes second to either gives way', async (t) => {
    const { node, leases, etcd } = await setUp(t, { ...DUAL, Backend: { Type: 'host-gw' } });
    // While it chooses somebody takes the IPv6 subnet that it will choose, under another key.
    const { random } = Math;
    t.teardown(() => {
      Math.random = random;
    });
    const host = node(V4, underlay(V4, V6));
    const candidate = await host.open();
    const other = [`${BELOW}10.5.200.0-24&fc00:0:0:1::-64`, '{"PublicIP":"192.168.77.9","PublicIPv6":"fd00:77::9"}'];
    let put = 0;
    Math.random = () => {
      const args = [`--endpoints=${etcd.endpoints}`, 'put', '--', ...other];
      if (put++ === 0) execFileSync('etcdctl', args, { env: { ...process.env, ETCDCTL_API: '3' } });
      return 0;
    };
    const member = await candidate.join({});
    Math.random = random;
    t.same(
      member.subnets.map(({ text }) => text),
      ['10.5.1.0/24', 'fc00:0:0:2::/64'],
    );
    t.equal(Object.keys(await leases()).length, 2);
  });

  t.test('out of subnets', async (t) => {
    const { node, lease } = await setUp(t, { Network: '10.5.0.0/24', SubnetLen: 26 });
    for (const n of [64, 128, 192]) await lease(`10.5.0.${n}-26`, 'whatever it is, it is taken');
    await t.rejects(node().join(), {
      code: 'EXHAUSTED',
      message: /^etcd http:.*: out of subnets: no free one is left in 10\.5\.0\.0\/24$/,
    });
  });

  t.test('a configuration that is not there is waited for; one that makes no sense is not', async (t) => {
    const { node, configure, etcd } = await setUp(t);
    const host = node();
    let opened = false;
    const opening = host.open().then(() => {
      opened = true;
    });
    t.ok(await until(() => events(host, 'etcd_waiting').length > 0));
    t.match(fieldsOf(host, 'etcd_waiting'), { reason: /there is no key \/coreos\.com\/network\/config: / });
    t.notOk(opened);
    await configure({ Network: '10.5.0.0/16' });
    await opening;
    t.same(events(host), ['etcd_waiting', 'etcd_found']);
    await configure({ Network: '10.5.0.0/16', Backend: { Type: 'ipip' } });
    await t.rejects(node('192.168.77.2').open(), {
      code: 'UNSUPPORTED_BACKEND',
      message: /^etcd http:.*: \/coreos\.com\/network\/config: Backend\.Type: /,
    });
    await etcd.put(CONFIG, '{"Network":');
    await t.rejects(node('192.168.77.3').open(), { code: 'BAD_CONFIG', message: /\/config: it is no JSON: / });
    await configure({ Network: '10.5.0.0/16', Backend: { Type: 'vxlan', GBP: true } });
    const other = node('192.168.77.4');
    await other.open();
    t.match(fieldsOf(other, 'config_ignored'), { reason: /GBP/ });
  });

  t.test('waiting ends when it is told to', async (t) => {
    const { node, etcd } = await setUp(t);
    await waits(t, node(), 'no configuration');
    await etcd.members[0].stop('SIGKILL');
    await waits(t, node(), 'no etcd');
  });

  t.test('leases that contradict each other', async (t) => {
    const vxlan = { Network: '10.5.0.0/16', Backend: { Type: 'vxlan' } };
    const { etcd, node, lease } = await setUp(t, vxlan);
    const value = (n: number, mac: number, PublicIP = `192.168.77.${n}`) => {
      return { PublicIP, BackendType: 'vxlan', BackendData: { VtepMAC: `52:00:00:00:00:0${mac}` } };
    };
    const host = node();
    await host.join();
    await host.follow();
    await lease('10.5.200.0-24', value(2, 2));
    await lease('10.5.201.0-24', value(2, 2)); // another lease of the same host: one peer
    await lease('10.5.202.0-24', value(4, 4));
    await lease('10.5.203.0-24', value(5, 4)); // the same device elsewhere: it wrote last
    await lease('10.5.200.0-25', value(6, 6)); // a part of what an older one has
    await lease('10.5.204.0-24', value(1, 7)); // our address
    await lease('10.5.205.0-24', value(0, 8, '10.5.205.9')); // behind itself
    await lease('10.5.206.0-24', { PublicIP: '192.168.77.8' });
    await lease('10.6.0.0-24', value(9, 9));
    await lease('10.5.207.0-24', value(0, 1, '10.5.208.1')); // an underlay inside the network, which flannel allows
    await lease('10.5.209.0-24', value(0, 5, host.subnet.replace('0/24', '77'))); // behind us
    t.ok(await until(() => host.size === 4 && events(host, 'lease_skipped').length === 7));
    t.same(host.routes, [
      '10.5.200.0/24 192.168.77.2',
      '10.5.201.0/24 192.168.77.2',
      '10.5.203.0/24 192.168.77.5',
      '10.5.207.0/24 10.5.208.1',
    ]);
    t.same(
      host.log.lines
        .filter(({ event }) => event === 'lease_skipped')
        .map(({ fields }) => `${fields.lease}: ${fields.reason}`)
        .sort(),
      [
        '10.5.200.0-25: 10.5.200.0/25 overlaps the subnet of an older lease',
        '10.5.202.0-24: 52:00:00:00:00:04 of IPv4 is also that of 10.5.203.0-24',
        `10.5.204.0-24: ${V4} is also that of this host`,
        '10.5.205.0-24: its address 10.5.205.9 lies in its own subnet 10.5.205.0/24',
        '10.5.206.0-24: its backend is udp, not vxlan',
        `10.5.209.0-24: its address lies in our own subnet ${host.subnet}`,
        '10.6.0.0-24: 10.6.0.0/24 is not in 10.5.0.0/16',
      ],
    );
    await lease('10.5.202.0-24', value(4, 4)); // renewed: that one is the living one after all
    await etcd.del(`${BELOW}10.5.200.0-24`);
    t.ok(await until(() => host.routes.includes('10.5.200.0/25 192.168.77.6')));
    t.same(host.routes, [
      '10.5.200.0/25 192.168.77.6',
      '10.5.201.0/24 192.168.77.2',
      '10.5.202.0/24 192.168.77.4',
      '10.5.207.0/24 10.5.208.1',
    ]);
    await lease('10.5.207.0-24', value(0, 1, '10.5.208.1'));
    const { plans } = host;
    await lease('10.5.207.0-24', value(10, 1));
    t.ok(await until(() => host.routes.includes('10.5.207.0/24 192.168.77.10')));
    t.equal(host.plans, plans + 1, 'a renewal is nothing, a new address is');
  });

  t.test('underlay inside the network: no subnet of ours has an underlay address in it', async (t) => {
    const { node, lease } = await setUp(t, {
      Network: '192.168.0.0/16',
      SubnetMin: '192.168.76.0',
      SubnetMax: '192.168.80.0',
    });
    await lease('192.168.80.0-24', { PublicIP: '192.168.78.9' });
    await lease('192.168.76.0-24', { PublicIP: '192.168.78.8' });
    t.match(await node().join(), { subnets: [{ text: '192.168.79.0/24' }] });
    await t.rejects(node('192.168.77.2').join(), { code: 'EXHAUSTED' });
  });

  t.test('several leases of ours', async (t) => {
    const { etcd, node, lease } = await setUp(t, { Network: '10.5.0.0/16' });
    await lease('10.5.1.0-24', { PublicIP: V4 });
    await lease('10.5.2.0-24', { PublicIP: V4 });
    await etcd.put(`${BELOW}10.5.3.0-24`, `{"PublicIP":"${V4}"}`);
    const host = node();
    t.match(
      await host.join(),
      { subnets: [{ text: '10.5.3.0/24' }], lease: 'taken over' },
      'what was reserved is meant',
    );
    t.equal((await etcd.get(`${BELOW}10.5.3.0-24`))?.lease, 0n, 'and has no time to live');
    t.equal(host.member?.secondsLeft(), undefined);
  });

  t.test('our key is made a reservation, or another’s', async (t) => {
    const { etcd, node } = await setUp(t, { Network: '10.5.0.0/16' });
    const host = node();
    await host.join();
    await host.follow();
    const { value = 'none' } = (await etcd.get(BELOW + host.key)) ?? {};
    // As flannel's documentation has it made: its address alone. The rest is ours to say, and is put back.
    await etcd.put(BELOW + host.key, `{"PublicIP":"${V4}"}`);
    t.ok(await until(() => events(host, 'lease_reserved').length === 1));
    let entry = await etcd.get(BELOW + host.key);
    for (let i = 0; i < 100 && entry?.value !== value; i++) entry = await etcd.get(BELOW + host.key);
    t.match(entry, { value, lease: 0n });
    t.equal(host.member?.secondsLeft(), undefined, 'it has no end');
    t.same(host.happened, { moved: 0, revoked: 0 });
    await etcd.put(BELOW + host.key, '{"PublicIP":"192.168.77.9"}', { ttl: 600 });
    t.ok(await until(() => host.happened.moved === 1), 'it is another’s: moved');
    t.match(fieldsOf(host, 'lease_moved'), { from: [host.subnet] });
    t.equal(host.happened.revoked, 0);
  });

  t.test('an etcd that is another one: nothing was revoked', async (t) => {
    const { etcd, node, configure } = await setUp(t, { Network: '10.5.0.0/16' });
    const host = node();
    await host.join();
    await host.follow();
    const peer = node('192.168.77.2');
    await peer.join();
    t.ok(await until(() => host.size === 1));
    const [{ subnet }] = [host];
    // The same place, the same identity, and nothing in it.
    await etcd.del(BELOW + peer.key);
    const [member] = etcd.members;
    await member.stop('SIGKILL');
    rmSync(join(etcd.dir, member.name), { recursive: true });
    mkdirSync(join(etcd.dir, member.name), { mode: 0o700 });
    await member.start();
    await configure({ Network: '10.5.0.0/16' });
    t.ok(await until(() => events(host, 'lease_acquired_again').length === 1, 15_000));
    t.same([host.happened, host.subnet], [{ moved: 0, revoked: 0 }, subnet]);
    t.ok(await etcd.get(BELOW + host.key));
    t.equal(host.size, 0);
  });

  t.test('started without etcd: at once, with what is remembered', async (t) => {
    const vxlan = { Network: '10.5.0.0/16', Backend: { Type: 'vxlan', Port: 4789 } };
    const { etcd, node, lease, configure } = await setUp(t, vxlan);
    const [member] = etcd.members;
    await lease('10.5.200.0-24', { PublicIP: '192.168.77.2', BackendType: 'vxlan', BackendData: { VtepMAC: MAC4 } });
    const first = node();
    const { subnets, macs } = await first.join();
    await first.follow();
    t.equal(first.size, 1);
    await first.stop();
    await member.stop('SIGKILL');

    const warm = node();
    const candidate = await warm.open();
    t.match(candidate, { networks: [{ text: '10.5.0.0/16' }], backend: { type: 'vxlan', port: 4789 } });
    t.match(await warm.join(), { lease: 'warm', subnets, macs, port: 4789 });
    await warm.follow();
    t.same(warm.routes, ['10.5.200.0/24 192.168.77.2']);
    t.match(warm.problem, /^etcd http:.*: connection refused: is etcd running there\?$/);
    t.equal(warm.member?.secondsLeft(), 0);
    t.ok(warm.member?.forwards());
    t.match(fieldsOf(warm, 'warm_start'), { reason: /connection refused/, since: /Z$/ });

    await waits(t, node('192.168.77.3'), 'another remembers nothing');
    await member.start();
    t.ok(await until(() => warm.problem === undefined && events(warm, 'lease_acquired_again').length === 1, 15_000));
    t.ok(Number(warm.member?.secondsLeft()) > 80_000);
    t.same(warm.happened, { moved: 0, revoked: 0 });
    await warm.stop();

    await member.stop('SIGKILL');
    const stale = node(V4, { staleLimit: 0 });
    await waits(t, stale, 'too old');
    t.match(fieldsOf(stale, 'etcd_waiting'), { reason: /older than --stale-limit 0 allows$/ });

    await member.start();
    await configure({ ...vxlan, Backend: { Type: 'udp' } });
    await member.stop('SIGKILL');
    const changed = node();
    t.match(await changed.join(), { lease: 'warm' });
    await changed.follow();
    await member.start();
    t.ok(await until(() => changed.happened.moved === 1, 15_000), 'the network is another now');
    await changed.stop();
    await member.stop('SIGKILL');
    await waits(t, node(), 'and what was remembered of it is forgotten');
  });

  t.test('it ends when it is told to, whatever etcd does', async (t) => {
    const { etcd, node } = await setUp(t, { Network: '10.5.0.0/16' });
    const host = node();
    await host.join();
    await host.follow();
    const [member] = etcd.members;
    // Its watch ends, and a new one gets as far as a first word that nobody answers.
    await member.stop('SIGKILL');
    await member.start();
    member.pause();
    t.teardown(() => member.resume());
    await until(() => false, 1000);
    const begun = performance.now();
    await host.stop();
    t.ok(performance.now() - begun < 1000, `${performance.now() - begun} ms`);
  });

  t.test('refused at the start: said, and over; with a memory it is a warm start', async (t) => {
    const etcd = await Etcd.start({ user: { name: 'weft', password: 'secret' } });
    t.teardown(() => etcd.close());
    await etcd.put(CONFIG, '{"Network":"10.5.0.0/16"}');
    const folders = new NodeFolders(t);
    const node = (password: string, address = V4): EtcdNode => {
      const one = new EtcdNode(folders, { endpoints: etcd.endpoints, address, more: { username: 'weft', password } });
      t.teardown(() => one.stop());
      return one;
    };
    await t.rejects(node('wrong').open(), { code: 'ETCD_AUTH', message: /wrong user or password/ });
    const good = node('secret');
    await good.join();
    await good.follow();
    await good.stop();
    const warm = node('wrong');
    t.match(await warm.join(), { lease: 'warm' });
    await warm.follow();
    t.ok(await until(() => /wrong user or password/.test(warm.problem ?? '')));
  });
}
