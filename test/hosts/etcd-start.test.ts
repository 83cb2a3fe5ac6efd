/**
 * How weftd with etcd starts, and how it does not: bad configurations in etcd, options that flannel has and Weft has not,
 * unknown ones, exit codes, TLS and passwords, and endpoints of which some are dead.
 */
import { existsSync } from 'node:fs';
import t from 'tap';
import { type Host, Lab, makeHosts, run, sleep } from '../../race/hosts.js';
import { Etcd, etcdMissing } from '../lib/etcd.js';
import {
  assertSubnetEnv,
  type Cluster,
  exitCode,
  flannelLease,
  leaseOf,
  leases,
  logLines,
  networkConfig,
  PREFIX,
  spawnNode,
  subnetEnvOf,
} from './lib/flannel.js';
import { type Assertions, DAEMON, impossible, type Weft } from './lib/weft.js';

const why = etcdMissing() ?? impossible();
t.setTimeout(0);

/** Configurations that flannel refuses, or that say what Weft does not do yet; and what the line should speak of. */
const BAD: readonly (readonly [string, RegExp])[] = [
  ['', /JSON|config/i],
  ['{"Network":"10.5.0.0/16"', /JSON/i],
  ['[]', /config|object/i],
  ['"10.5.0.0/16"', /config|object/i],
  ['{}', /Network/],
  ['{"Network":"10.5.0.0"}', /Network/],
  ['{"Network":"fd00::/48"}', /Network/],
  ['{"Network":10}', /Network/],
  ['{"Network":"10.5.0.0/29"}', /Network.*\/28|\/29/],
  ['{"Network":"10.5.0.0/16","SubnetLen":31}', /SubnetLen/],
  ['{"Network":"10.5.0.0/16","SubnetLen":17}', /SubnetLen/],
  ['{"Network":"10.5.0.0/16","SubnetLen":"24"}', /SubnetLen/],
  ['{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}', /SubnetMin/],
  ['{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.1"}', /SubnetMin/],
  ['{"Network":"10.5.0.0/16","SubnetMax":"10.6.0.0"}', /SubnetMax/],
  ['{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.128"}', /SubnetMax/],
  ['{"Network":"10.5.0.0/16","EnableIPv6":true}', /IPv6Network/],
  ['{"EnableIPv4":false}', /EnableIPv4|IPv6|Network/],
  ['{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/126"}', /IPv6/],
  ['{"Network":"10.5.0.0/16","Backend":5}', /Backend/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"nonsense"}}', /nonsense/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}', /ipip/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}', /wireguard/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"extension"}}', /extension/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"aws-vpc"}}', /aws-vpc/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":70000}}', /Port/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}', /VNI/],
  ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}', /VNI/],
];

/** Command lines that are refused: the exit code, and what the line should speak of. */
const REFUSED: readonly (readonly [readonly string[], number, RegExp])[] = [
  [['-no-such-flag'], 2, /no-such-flag/],
  [['--no-such-flag=1'], 2, /no-such-flag/],
  [['-etcd-prefix'], 2, /etcd-prefix/],
  [['-ip-masq=perhaps'], 2, /ip-masq/],
  [['-healthz-port=http'], 2, /healthz-port/],
  [['-kube-subnet-mgr'], 1, /kube-subnet-mgr/],
  [['-kube-subnet-mgr=true'], 1, /kube-subnet-mgr/],
  [['--kube-api-url=http://127.0.0.1'], 1, /kube-api-url/],
  [['-kubeconfig-file', '/etc/kubeconfig'], 1, /kubeconfig-file/],
  [['-net-config-path=/etc/other.json'], 1, /net-config-path/],
  [['-subnet-lease-renew-margin=0'], 1, /subnet-lease-renew-margin/],
  [['-subnet-lease-renew-margin=1440'], 1, /subnet-lease-renew-margin/],
  [['-iface=nosuch0'], 1, /nosuch0/],
  [
    ['-etcd-endpoints=https://192.168.77.250:2379', '-etcd-certfile=/no/such.crt', '-etcd-keyfile=/no/such.key'],
    1,
    /no\/such/,
  ],
  [['-etcd-endpoints=https://192.168.77.250:2379', '-etcd-keyfile=/no/such.key'], 2, /etcd-certfile/],
];

/** That it ends with `code` and one line of complaint that speaks of `about`, and no stack. */
async function refuses(t: Assertions, weft: Weft, code: number, about: RegExp, message: string): Promise<void> {
  t.equal(await exitCode(weft), code, `${message}: exit code ${code}`);
  // What it tells of itself (its underlay, once it has one) is no complaint.
  const lines = logLines(weft).filter((line) => !line.includes('"level":"info"'));
  t.equal(lines.length, 1, `${message}: one line: ${lines.join(' | ')}`);
  t.match(lines.at(-1), about, `${message}: which says what is wrong`);
  t.notOk(lines.at(-1)?.includes('"stack"'), `${message}: as somebody's mistake, not as a bug`);
  if (weft.daemon.running) await weft.stop('SIGKILL');
}

/** Works through `all` two at a time. */
async function byTwo<T>(all: readonly T[], work: (one: T, host: 0 | 1) => Promise<void>): Promise<void> {
  const left = [...all];
  const worker = async (host: 0 | 1): Promise<void> => {
    for (let one = left.shift(); one !== undefined; one = left.shift()) await work(one, host);
  };
  await Promise.all([worker(0), worker(1)]);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-etcd-start');
  const hosts: Host[] = makeHosts(lab, { count: 2, join: 'bridge', clients: 'own' });
  const underlay = lab.namespaces.find(({ name }) => name.endsWith('-underlay'))!;
  underlay.ip('addr add 192.168.77.250/24 dev switch', 'addr add 192.168.77.251/24 dev switch');
  const place = { namespace: underlay.name, address: '192.168.77.250' };
  const user = { name: 'flannel', password: 'a password, = & all', prefix: PREFIX };
  const [plain, secured] = await Promise.all([
    Etcd.start(place),
    Etcd.start({ ...place, address: '192.168.77.251', clientPort: 22_379, tls: 'mutual', user }),
  ]);
  t.teardown(async () => {
    await lab.close();
    await Promise.all([plain.close(), secured.close()]);
  });
  const cluster: Cluster = { lab, etcd: plain, hosts, underlay };
  const endpoints = `-etcd-endpoints=${plain.endpoints.join()}`;

  await t.test('bad configurations', async (t) => {
    const cases = BAD.map(([text, about], i) => ({ text, about, prefix: `/bad/${i}` }));
    for (const { text, prefix } of cases) await plain.put(`${prefix}/config`, text);
    await byTwo(cases, async ({ text, about, prefix }, host) => {
      const args = [endpoints, '-iface=eth0', `-etcd-prefix=${prefix}`];
      await refuses(t, spawnNode(cluster, hosts[host], { args }), 1, about, text || 'an empty one');
    });
    t.equal((await plain.list('/')).length, BAD.length, 'nobody wrote anything');
  });

  await t.test('command lines', async (t) => {
    await plain.put(`${PREFIX}/config`, networkConfig());
    await byTwo(REFUSED, async ([more, code, about], host) => {
      const args = [endpoints, ...(more[0].startsWith('-iface') ? [] : ['-iface=eth0']), ...more];
      await refuses(t, spawnNode(cluster, hosts[host], { args }), code, about, more.join(' '));
    });
    const version = spawnNode(cluster, hosts[0], { args: ['--version'] });
    t.equal(await exitCode(version), 0, '--version: exit code 0');
    t.match(version.daemon.log(), /\d+\.\d+\.\d+/, '--version: a version');
    const { code, stdout, stderr } = await run(process.execPath, [DAEMON, '-version']);
    t.same([code, stdout], [0, ''], '-version: exit code 0, and nothing on stdout');
    t.match(stderr, /\d+\.\d+\.\d+/, '-version: on stderr');
    t.equal((await leases(plain)).size, 0, 'nobody took a lease');
  });

  await t.test('TLS, a password, and endpoints of which some are dead', async (t) => {
    await secured.put(`${PREFIX}/config`, networkConfig());
    const [live] = secured.endpoints;
    const { certificates } = secured;
    const dead = 'https://192.168.77.99:2379,https://127.0.0.1:4001';
    // By flags on one, by variables on the other; nobody answers at the first address, and nobody listens at the second.
    const [, ...flags] = secured.flags;
    const first = spawnNode(cluster, hosts[0], {
      args: [`--etcd-endpoints=${dead},${live}`, ...flags, '-iface=eth0', `-etcd-prefix=${PREFIX}/`],
    });
    const second = spawnNode(cluster, hosts[1], {
      args: ['-iface=eth0'],
      env: {
        FLANNELD_ETCD_ENDPOINTS: `${live},${dead}`,
        FLANNELD_ETCD_CAFILE: certificates?.ca ?? '',
        FLANNELD_ETCD_CERTFILE: certificates?.client.cert ?? '',
        FLANNELD_ETCD_KEYFILE: certificates?.client.key ?? '',
        FLANNELD_ETCD_USERNAME: user.name,
        FLANNELD_ETCD_PASSWORD: user.password,
      },
    });
    for (const [i, weft] of [first, second].entries()) {
      const { letter, underlay4 } = hosts[i];
      await weft.ready(30_000);
      const lease = await leaseOf(secured, underlay4);
      t.equal(lease.value, flannelLease.plain(underlay4), `${letter}: its lease`);
      assertSubnetEnv(t, subnetEnvOf(hosts[i]), { subnet: lease.name.replace('-', '/'), mtu: 1472 }, letter);
      t.notMatch(weft.daemon.log(), 'a password', `${letter}: does not tell the password`);
    }
    // A token that has run out is nobody's concern.
    await secured.members[0].stop('SIGKILL');
    await secured.members[0].start();
    await secured.del(`${PREFIX}/subnets/${(await leaseOf(secured, hosts[1].underlay4)).name}`);
    t.equal(await exitCode(second), 0, 'after a restart of etcd it still hears what happens');
    t.ok(first.daemon.running, 'the other one runs');
    await first.stop();
  });

  await t.test('stopped while it waits', async (t) => {
    const args = [endpoints, '-iface=eth0', '-etcd-prefix=/nothing/here'];
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      const weft = spawnNode(cluster, hosts[0], { args });
      await sleep(1500);
      t.ok(weft.daemon.running, `${signal}: it waits for a configuration`);
      await weft.stop(signal);
      t.equal(weft.daemon.child.exitCode, 0, `${signal}: exit code 0`);
    }
    // Nobody answers: it goes on trying, as flannel does.
    const weft = spawnNode(cluster, hosts[1], { args: ['--registry=etcd', '-iface=eth0'] });
    await sleep(2500);
    t.ok(weft.daemon.running, 'no etcd at all: it waits');
    t.ok(weft.daemon.log().split('\n').length < 12, `no etcd at all: few words:\n${weft.daemon.log()}`);
    t.match(weft.daemon.log(), /127\.0\.0\.1:(4001|2379)/, "no etcd at all: and says where, flannel's own ports");
    await weft.stop();
    t.equal(weft.daemon.child.exitCode, 0, 'no etcd at all: exit code 0');
    t.ok(existsSync(subnetEnvOf(hosts[0])), 'subnet.env of before stays');
  });
}
