/**
 * Docker as its users have it: an engine on each of two hosts, started with what `weft docker-opts` says of weftd's subnet.env,
 * weftd with flannel's flags and a real etcd between them. Containers reach each other across hosts by their own addresses,
 * and everybody else through masquerade. First over `udp`, then over `vxlan`, as an operator changes it: configuration, both
 * daemons, both engines.
 *
 *     container ─ docker0 ─ host a ══╗                                        host a: 192.168.77.1
 *                                    ╠══ router (etcd) ── outside             host b: 192.168.77.2
 *     container ─ docker0 ─ host b ══╝   192.168.77.254   203.0.113.2
 *
 * Outside knows no way to any container. An engine that does not run is a failure here, not
 * a reason to skip.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Daemon, Lab, type Namespace } from '../../race/hosts.js';
import { Etcd, etcdMissing } from '../lib/etcd.js';
import { type Container, Engine, engineImpossible, leftovers, makeImage, SLOW, WEB_PORT } from './lib/docker.js';
import { readSubnetEnv, until, WEFT } from './lib/embedded.js';
import { type Assertions, DAEMON, impossible } from './lib/weft.js';

t.setTimeout(0);

const CONFIG = '/coreos.com/network/config';
const ROUTER = '192.168.77.254';
const OUTSIDE = '203.0.113.2';
/** Of the servers outside the containers that answer with the address they see. */
const PORT = 8000;
/** Where host a publishes its container's web server. */
const PUBLISHED = 8080;
const BACKENDS = [
  { type: 'udp', mtu: 1472, device: 'flannel0', end: 'SIGTERM' },
  { type: 'vxlan', mtu: 1450, device: 'flannel.1', end: 'SIGKILL' },
] as const;

const SEES = `require('node:http').createServer((request, answer) => answer.end(request.socket.remoteAddress)).listen(${PORT}, '0.0.0.0')`;

/** A host, its daemon and its engine. */
class Machine {
  readonly name: string;
  readonly ns: Namespace;
  readonly underlay: string;
  readonly engine: Engine;
  readonly #etcd: Etcd;
  weft: Daemon | undefined;
  #starts = 0;

  constructor(ns: Namespace, name: string, underlay: string, etcd: Etcd) {
    this.ns = ns;
    this.name = name;
    this.underlay = underlay;
    this.engine = new Engine(ns, name);
    this.#etcd = etcd;
  }

  get subnetFile(): string {
    return join(this.engine.dir, 'subnet.env');
  }

  /** The subnet.env's lines. */
  get env(): Record<string, string> {
    return readSubnetEnv(this.subnetFile);
  }

  /** The network address of its subnet, which its overlay device has with the udp and the vxlan backend. */
  get base(): string {
    return this.env.FLANNEL_SUBNET.replace(/1\/24$/, '0');
  }

  async startWeft(): Promise<void> {
    const flags = [...this.#etcd.flags, '-iface=eth0', '-ip-masq', `-subnet-file=${this.subnetFile}`];
    // Where Weft keeps more than flannel does.
    const own = [`--state-dir=${join(this.engine.dir, 'state')}`];
    const name = `weftd-${this.name}-${++this.#starts}`;
    const env = { ...process.env, WEFT_CHECK_ADDRESSES: '1' };
    this.weft = this.ns.start(name, process.execPath, [DAEMON, ...flags, ...own], { env });
    await this.weft.ready('"event":"ready"', 20_000);
  }

  /** Writes the engine's options as an operator's unit would, and starts it with them. Returns their text. */
  async startEngine(): Promise<string> {
    const opts = join(this.engine.dir, 'docker_opts.env');
    const words = [WEFT, 'docker-opts', '-f', this.subnetFile, '-d', opts];
    const { status, stderr } = spawnSync(process.execPath, words, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`weft docker-opts: ${stderr.trim()}`);
    await this.engine.start(opts);
    return readFileSync(opts, 'utf8');
  }

  /** How many rules of each table bear flannel's comment. */
  rules(): Record<string, number> {
    const count = (table: string): number =>
      this.ns
        .runSync('iptables-save', '-t', table)
        .split('\n')
        .filter((line) => line.includes('flanneld')).length;
    return { nat: count('nat'), filter: count('filter') };
  }

  /** Packets that this host cut into fragments, or put together, since it exists. */
  fragments(): { made: number; joined: number } {
    const [names, values] = this.ns
      .runSync('cat', '/proc/net/snmp')
      .split('\n')
      .filter((line) => line.startsWith('Ip:'))
      .map((line) => line.split(' '));
    return { made: Number(values[names.indexOf('FragCreates')]), joined: Number(values[names.indexOf('ReasmReqds')]) };
  }
}

const urlOf = (address: string, path: string, port: number = WEB_PORT): string => `http://${address}:${port}${path}`;
const seenBy = (address: string): string => urlOf(address, '/', PORT);

/** Asks from a namespace, as curl would. */
async function ask(ns: Namespace, url: string): Promise<string> {
  const script = `fetch('${url}', { signal: AbortSignal.timeout(5000) }).then((answer) => answer.text()).then(console.log)`;
  return (await ns.run(process.execPath, ['-e', script])).stdout.trim();
}

const why = impossible('ip');
if (why) t.plan(0, `SKIPPED: ${why}`);
else await run();

async function run(): Promise<void> {
  const missing = engineImpossible() ?? etcdMissing();
  if (missing !== undefined) {
    t.fail(`no Docker engine here: ${missing}`);
    return;
  }
  const lab = new Lab('docker');
  let etcd: Etcd | undefined;
  const machines: Machine[] = [];
  const end = async (): Promise<void> => {
    await Promise.all(machines.map(({ engine }) => engine.stop()));
    await etcd?.close();
    await lab.close();
  };
  t.teardown(end);

  // --- hosts, router, outside ---

  const router = lab.namespace('router');
  const outside = lab.namespace('outside');
  router.sysctl({ 'net/ipv4/ip_forward': 1 });
  router.ip('link add switch type bridge', 'link set switch up', `addr add ${ROUTER}/24 dev switch`);
  lab.veth(outside, 'eth0', router, 'wan');
  router.ip('addr add 203.0.113.1/24 dev wan');
  outside.ip(`addr add ${OUTSIDE}/24 dev eth0`, 'route add 192.168.77.0/24 via 203.0.113.1');
  etcd = await Etcd.start({ namespace: router.name, address: ROUTER });
  for (const [i, name] of ['a', 'b'].entries()) {
    const ns = lab.namespace(name);
    lab.veth(ns, 'eth0', router, `port-${name}`);
    router.ip(`link set port-${name} master switch`);
    ns.ip(`addr add 192.168.77.${i + 1}/24 dev eth0`, `route add default via ${ROUTER}`);
    machines.push(new Machine(ns, name, `192.168.77.${i + 1}`, etcd));
  }
  const [a, b] = machines;
  for (const ns of [outside, b.ns]) ns.start(`sees-${ns.name}`, process.execPath, ['-e', SEES]);
  const image = await makeImage(join(lab.dir, 'image'));

  let subnet: string | undefined;
  for (const backend of BACKENDS) {
    await t.test(`over ${backend.type}`, async (t) => {
      await etcd.put(CONFIG, JSON.stringify({ Network: '10.5.0.0/16', Backend: { Type: backend.type } }));
      await Promise.all(machines.map(({ weft }) => weft?.stop()));
      await Promise.all(machines.map((machine) => machine.startWeft()));
      subnet ??= b.env.FLANNEL_SUBNET;
      t.equal(b.env.FLANNEL_SUBNET, subnet, 'one subnet, whatever the backend');

      const [first, second] = await startEngines(t, backend.mtu);
      await reach(t, first, second, backend.mtu);
      await outward(t, first);
      await restart(t, first, second, backend);
      for (const { name, weft } of machines) {
        // Not of leases: the other's of the backend before is skipped until it has its own again. Nor of a busy machine's etcd.
        const complaints = weft
          ?.log()
          .split('\n')
          .filter((line) => /"level":"(warn|error|fatal)"/.test(line) && !/lease_skipped|registry_trouble/.test(line));
        t.same(complaints, [], `${name}: weftd has nothing to complain of`);
      }
      t.match(
        a.ns.runSync('ip', 'route', 'get', await second.address()),
        `dev ${backend.device}`,
        `the way was ${backend.device}`,
      );
    });
  }

  await t.test('nothing is left', async (t) => {
    await end();
    t.same(leftovers(lab), [], 'no process, mount, cgroup, namespace or folder');
  });

  /** Engines with options from subnet.env, and a container of each. */
  async function startEngines(t: Assertions, mtu: number): Promise<[Container, Container]> {
    for (const machine of machines) {
      const again = machine.engine.running;
      await machine.engine.stop();
      const opts = await machine.startEngine();
      const { FLANNEL_SUBNET: bip, FLANNEL_MTU } = machine.env;
      t.equal(FLANNEL_MTU, String(mtu), `${machine.name}: the MTU`);
      t.match(
        opts,
        `DOCKER_OPTS=" --bip=${bip} --ip-masq=false --mtu=${mtu}"`,
        `${machine.name}: the engine's options`,
      );
      t.match(machine.ns.runSync('ip', 'addr', 'show', 'docker0'), `inet ${bip}`, `${machine.name}: docker0 has them`);
      const theirs = /! -o docker0 -j MASQUERADE/.test(machine.ns.runSync('iptables-save', '-t', 'nat'));
      t.notOk(theirs, `${machine.name}: the engine leaves masquerading to weftd`);
      if (!again) await machine.engine.import(image);
    }
    return Promise.all([a.engine.serve('from-a', '--publish', `${PUBLISHED}:${WEB_PORT}`), b.engine.serve('from-b')]);
  }

  /** Container to container. */
  async function reach(t: Assertions, first: Container, second: Container, mtu: number): Promise<void> {
    const before = machines.map((machine) => machine.fragments());
    for (const [from, to] of [
      [first, second],
      [second, first],
    ]) {
      const ways = `${from.name} to ${to.name}`;
      const [own, other] = await Promise.all([from.address(), to.address()]);
      t.ok(await until(() => from.pings(other, { count: 1 }), 10_000), `${ways}: ping`);
      t.equal(await from.exec('cat', '/sys/class/net/eth0/mtu'), String(mtu), `${from.name}: FLANNEL_MTU inside`);
      t.ok(await from.pings(other, { size: mtu }), `${ways}: ${mtu} bytes with DF`);
      t.notOk(await from.pings(other, { size: mtu + 1, count: 1 }), `${ways}: ${mtu + 1} bytes with DF do not fit`);
      t.equal(await from.get(urlOf(other, '/cgi-bin/peer')), own, `${ways}: seen with its own address`);
      const sent = (await to.exec('sha256sum', '/www/data')).slice(0, 64);
      t.equal(await from.hashOf(urlOf(other, '/data')), sent, `${ways}: 8 MiB by TCP, the same bytes`);
    }
    t.same(
      machines.map((machine) => machine.fragments()),
      before,
      'nothing was cut into fragments',
    );
  }

  /** Containers and the world: masquerade, published ports, hosts. */
  async function outward(t: Assertions, first: Container): Promise<void> {
    const address = await first.address();
    t.notOk(await answersPing(outside, address, 500), 'outside knows no way to a container');
    t.ok(await first.pings(OUTSIDE), 'container to outside: ping');
    t.equal(await first.get(seenBy(OUTSIDE)), a.underlay, "container to outside: seen with its host's address");
    t.equal(
      await first.get(seenBy(b.underlay)),
      a.underlay,
      "container to the other host: seen with its host's address",
    );
    const gateway = b.env.FLANNEL_SUBNET.replace('/24', '');
    t.equal(await first.get(seenBy(gateway)), address, "container to the other host's docker0: with its own address");
    t.equal(
      await ask(b.ns, urlOf(address, '/cgi-bin/peer')),
      b.base,
      'host to a container of the other: with its overlay address',
    );
    const published = urlOf(a.underlay, '/cgi-bin/peer', PUBLISHED);
    t.equal(await ask(outside, published), OUTSIDE, 'outside to a published port: seen with its own address');
  }

  /** weftd goes and comes back under a running transfer, and the engine does not notice. */
  async function restart(
    t: Assertions,
    first: Container,
    second: Container,
    { end: signal }: (typeof BACKENDS)[number],
  ): Promise<void> {
    const state = async (): Promise<unknown> => ({
      engine: a.engine.pid,
      container: await first.inspect('{{.Id}} {{.State.StartedAt}} {{.State.Pid}}'),
      docker0: a.ns.runSync('cat', '/sys/class/net/docker0/ifindex'),
      subnet: a.env,
      rules: a.rules(),
    });
    const before = await state();
    const sent = await second.exec('sh', '-c', `head -c ${SLOW.pieces * SLOW.bytes} /www/data | sha256sum`);
    let over = false;
    const transfer = first.hashOf(urlOf(await second.address(), '/cgi-bin/slow'), 60).finally(() => {
      over = true;
    });
    transfer.catch(() => {}); // it is awaited below, unless something fails before
    await a.weft?.stop(signal);
    t.notOk(over, `${signal}: weftd goes while a transfer runs`);
    await a.startWeft();
    t.equal(await transfer, sent.slice(0, 64), `${signal}: which ends with every byte when it is back`);
    t.ok(await second.pings(await first.address()), `${signal}: the other way too`);
    t.same(await state(), before, `${signal}: engine, container, docker0, subnet.env and rules are as they were`);
  }
}
