/**
 * docker-compose.yml as its users have it, with a real engine and no registry: the images of the real Dockerfile on base images
 * that are made here (lib/images.ts says of what), then every service of the file but Grafana, which cannot be had here.
 *
 *     client-a ── node-a ══ underlay ══ node-b ── client-b         and etcd, Prometheus, the race with its agents
 *
 * It says what ran and how long it took. The commands are those of README.md, with docker-compose 1.29 for `docker compose`.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { run as command, Lab } from '../../race/hosts.js';
import { Compose, composeImpossible, readComposeFile } from './lib/compose.js';
import { type Container, Engine, engineImpossible, leftovers } from './lib/docker.js';
import { until } from './lib/embedded.js';
import { importBases, importPrometheus } from './lib/images.js';
import { type Assertions, FULL, impossible } from './lib/weft.js';

t.setTimeout(0);

const DEFAULT = ['etcd', 'node-a', 'node-b', 'client-a', 'client-b'];
/** Of images and layers there are about 3 GB. */
const MEMORY_NEEDED = 8 * 2 ** 30;
/** One service of each image. */
const IMAGES = ['etcd', 'node-a', 'client-a', 'bench'];
/** What the issue says of a start. */
const HEALTHY_WITHIN_MS = 30_000;
const HEALS_WITHIN_MS = 30_000;
/** In CI. */
const BENCH = FULL
  ? { BENCH_ROUNDS: '2', BENCH_SECONDS: '3' }
  : { BENCH_ROUNDS: '1', BENCH_SECONDS: '1', BENCH_MEASURES: 'ping,rr' };

/** Of it all but Grafana. */
const OBSERVE = 'docker compose --profile observe up -d';

const CLIENTS = [
  ['client-a', '10.5.2.2', 'client-b'],
  ['client-b', '10.5.1.2', 'client-a'],
] as const;
/** What goes through TCP: the same bytes wherever it is said, about 30 MB. */
const DATA = 'seq 1 4000000';
const PORT = 7000;

/** Bits of /proc/<pid>/status (capabilities(7)). */
const NET_ADMIN = 1n << 12n;

const why = impossible('ip');
if (why) t.plan(0, `SKIPPED: ${why}`);
else await run();

async function run(): Promise<void> {
  const missing = engineImpossible() ?? composeImpossible();
  if (missing !== undefined) {
    t.fail(`the compose file cannot run here: ${missing}`);
    return;
  }
  const lab = new Lab('compose');
  const engine = new Engine(lab.namespace('host'), 'engine', { inMemory: freemem() > MEMORY_NEEDED });
  const results = join(lab.dir, 'results');
  const compose = new Compose(engine, 'weft', { BENCH_RESULTS: results, ...BENCH });
  const end = async (): Promise<void> => {
    if (engine.running) await compose.down();
    await engine.stop();
    await lab.close();
  };
  t.teardown(end);
  mkdirSync(results);

  const file = await readComposeFile();
  await t.test('images', async (t) => {
    const options = join(engine.dir, 'options');
    writeFileSync(options, 'DOCKER_OPTS=\n');
    await engine.start(options);
    const scratch = join(lab.dir, 'images');
    await timed(t, 'base images', () => importBases(engine, scratch));
    await timed(t, 'Prometheus', () => importPrometheus(engine, scratch, file.services.prometheus.image));
    await timed(t, 'docker-compose build', () => compose.run('--profile', 'bench', 'build', '--quiet', ...IMAGES));
    const version = await engine.docker('version', '--format', '{{.Server.Version}}');
    const node = await engine.docker('run', '--rm', '--entrypoint', 'node', file.services['node-a'].image, '--version');
    t.comment(`engine ${version}; as node:22-bookworm-slim this machine's Node ${node}; Grafana is left out`);
    t.comment(await engine.docker('images', '--format', '{{.Repository}}:{{.Tag}} {{.Size}}'));
  });

  await t.test('docker compose up -d --build', async (t) => {
    await compose.text('docker compose up -d --build');
    // The images are there: from the first container on.
    const etcd = await compose.container('etcd');
    const began = Date.parse(await etcd.inspect('{{.Created}}'));
    await compose.healthy(DEFAULT, began + HEALTHY_WITHIN_MS - Date.now());
    const took = Date.now() - began;
    t.ok(took < HEALTHY_WITHIN_MS, 'all are healthy within 30 s');
    t.comment(`healthy after ${(took / 1000).toFixed(1)} s`);
    await compose.text('docker compose exec client-a ping -c 3 10.5.2.2');
    await reach(t);
    t.match(await compose.text('docker compose exec node-a weft status'), /^weftd .*: all is well\n/, 'node-a says so');
    t.match(await lease('10.5.1.0-24'), '192.168.77.1', 'node-a has the subnet of its clients');
    t.match(await lease('10.5.2.0-24'), '192.168.77.2', 'node-b too');
    t.match(await exec('node-a', 'ip', '-4', 'addr', 'show', 'eth0'), '192.168.77.1', 'eth0 of a node is the underlay');
  });

  await t.test('rights', async (t) => {
    for (const service of DEFAULT) {
      const container = await compose.container(service);
      const privileged = await container.inspect('{{.HostConfig.Privileged}} {{.HostConfig.CapDrop}}');
      t.equal(privileged, 'false [ALL]', `${service} is not privileged`);
      const { effective, user, noNewPrivileges } = await statusOf(container);
      const isNode = service.startsWith('node');
      t.equal(effective, isNode ? NET_ADMIN : 0n, `${service}: ${isNode ? 'NET_ADMIN alone' : 'no capability'}`);
      t.equal(user, isNode ? 0 : 65_534, `${service}: ${isNode ? 'root' : 'nobody'}`);
      t.ok(noNewPrivileges, `${service}: no new privileges`);
    }
    const logs = await compose.run('logs', '--no-color', 'node-a', 'node-b');
    const complaints = logs.split('\n').filter((line) => /"level":"(warn|error|fatal)"/.test(line));
    t.same(complaints, [], 'and weftd has nothing to complain of');
  });

  await t.test('node-b is killed', async (t) => {
    const node = await compose.container('node-b');
    // As docker kill: the engine takes it for our will, and starts nothing.
    await engine.docker('kill', node.name);
    t.notOk(await pings('client-a', '10.5.2.2', 1), 'no way then');
    const start = performance.now();
    await compose.run('start', 'node-b');
    t.ok(await until(() => pings('client-a', '10.5.2.2', 1), HEALS_WITHIN_MS), 'docker-compose start heals it');
    t.comment(`${seconds(start)} s after docker-compose start`);
    t.equal(await exec('node-b', 'cat', '/run/flannel/subnet.env').then(subnetOf), '10.5.2.1/24', 'with its subnet');

    // As a crash: the engine starts it again. Process ids are those of the engine's namespace.
    const pid = await node.inspect('{{.State.Pid}}');
    const crash = performance.now();
    await command('nsenter', ['--target', String(engine.pid), '--pid', 'kill', '-KILL', pid]);
    const again = async (): Promise<boolean> => (await node.inspect('{{.RestartCount}}')) === '1';
    t.ok(await until(again, HEALS_WITHIN_MS), 'of one that ends by itself the engine starts another');
    t.ok(await until(() => pings('client-a', '10.5.2.2', 1), HEALS_WITHIN_MS), 'which heals it too');
    t.comment(`${seconds(crash)} s after the crash`);
    await reach(t);
  });

  await t.test('etcd is away', async (t) => {
    await compose.run('stop', 'etcd');
    const stale = async (): Promise<boolean> => /^HTTP\/1.1 200 .*stale since/s.test(await readyz('node-a'));
    t.ok(await until(stale, HEALS_WITHIN_MS), 'the nodes are ready, and say since when they know no better');
    await reach(t);
    await compose.run('start', 'etcd');
    const fresh = async (): Promise<boolean> => !(await readyz('node-a')).includes('stale');
    t.ok(await until(fresh, HEALS_WITHIN_MS), 'and know better when it is back');
  });

  await t.test('profile observe', async (t) => {
    await compose.text(`${OBSERVE} prometheus`);
    await compose.healthy(['prometheus'], HEALTHY_WITHIN_MS);
    const up = (): Promise<unknown[]> => query('up{job="weft"} == 1');
    t.ok(await until(async () => (await up()).length === 2, HEALS_WITHIN_MS), 'Prometheus has both nodes up');
    const packets = await query('sum by (instance) (weft_packets_total)');
    t.equal(packets.length, 2, 'and answers with the counters of both');
  });

  await t.test('profile bench', async (t) => {
    const start = performance.now();
    await compose.text('docker compose --profile bench run --rm bench');
    t.comment(`the race has ended by itself after ${seconds(start)} s`);
    for (const name of ['race.md', 'race.svg', 'race.json'])
      t.ok(existsSync(join(results, name)), `and leaves ${name}`);
    t.match(readFileSync(join(results, 'race.md'), 'utf8'), 'weft-udp', 'with weft-udp in it');
    t.match(readFileSync(join(results, 'race.svg'), 'utf8'), /<svg[\s\S]*<\/svg>/, 'and a chart');
    await reach(t);
  });

  await t.test('WEFT_BACKEND=vxlan', async (t) => {
    const start = performance.now();
    await compose.text('WEFT_BACKEND=vxlan docker compose up -d');
    await compose.healthy(DEFAULT, HEALTHY_WITHIN_MS);
    t.comment(`healthy after ${seconds(start)} s`);
    await reach(t);
    t.match(await exec('node-a', 'ip', 'route', 'get', '10.5.2.2'), 'dev flannel.1', 'the way is flannel.1');
  });

  await t.test('nothing is left', async (t) => {
    await compose.text('docker compose --profile observe --profile bench down --volumes');
    t.equal(await engine.docker('ps', '--all', '--quiet'), '', 'docker-compose down leaves no container');
    t.equal(
      await engine.docker('volume', 'ls', '--quiet', '--filter', 'label=com.docker.compose.project'),
      '',
      'nor a volume',
    );
    await end();
    t.same(leftovers(lab), [], 'no process, mount, cgroup, namespace or folder');
  });

  // --- what is asked of it ---

  async function exec(service: string, ...words: string[]): Promise<string> {
    return (await compose.container(service)).exec(...words);
  }

  async function pings(service: string, address: string, count = 3): Promise<boolean> {
    return (await compose.container(service)).pings(address, { count });
  }

  /** Ping and TCP between the clients, both ways. */
  async function reach(t: Assertions): Promise<void> {
    const { stdout } = await command('sh', ['-c', `${DATA} | sha256sum`]);
    for (const [from, to, other] of CLIENTS) {
      t.ok(await pings(from, to), `${from} to ${other}: ping`);
      const receives = exec(other, 'sh', '-c', `timeout 20 nc -l ${PORT} | sha256sum`);
      // Until the other listens.
      const send = `for i in $(seq 50); do ${DATA} | nc -N -w 5 ${to} ${PORT} && exit; sleep 0.1; done; exit 1`;
      const [received] = await Promise.all([receives, exec(from, 'sh', '-c', send)]);
      t.equal(received.slice(0, 64), stdout.slice(0, 64), `${from} to ${other}: 30 MB by TCP, the same bytes`);
    }
  }

  function lease(subnet: string): Promise<string> {
    return exec('etcd', 'etcdctl', 'get', '--print-value-only', `/coreos.com/network/subnets/${subnet}`);
  }

  function readyz(service: 'node-a'): Promise<string> {
    const script = "exec 3<>/dev/tcp/192.168.77.1/9469 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    return exec(service, 'bash', '-c', script);
  }

  /** What Prometheus answers at its published port, on the host of the engine. */
  async function query(text: string): Promise<unknown[]> {
    const url = `http://127.0.0.1:9090/api/v1/query?query=${encodeURIComponent(text)}`;
    const script = `fetch('${url}').then((answer) => answer.text()).then(console.log)`;
    const { stdout } = await engine.ns.run(process.execPath, ['-e', script]);
    return (JSON.parse(stdout || '{"data":{"result":[]}}') as { data: { result: unknown[] } }).data.result;
  }
}

/** Of process 1 of a container. */
async function statusOf(container: Container): Promise<{ effective: bigint; user: number; noNewPrivileges: boolean }> {
  const status = await container.exec('cat', '/proc/1/status');
  const field = (name: string): string => new RegExp(`^${name}:\\s+(\\S+)`, 'm').exec(status)?.[1] ?? '';
  return {
    effective: BigInt(`0x${field('CapEff')}`),
    user: Number(field('Uid')),
    noNewPrivileges: field('NoNewPrivs') === '1',
  };
}

function subnetOf(env: string): string | undefined {
  return /^FLANNEL_SUBNET=(.*)$/m.exec(env)?.[1];
}

function seconds(since: number): string {
  return ((performance.now() - since) / 1000).toFixed(1);
}

async function timed(t: Assertions, what: string, make: () => Promise<unknown>): Promise<void> {
  const start = performance.now();
  await make();
  t.comment(`${what}: ${seconds(start)} s`);
}
