/**
 * A real Prometheus scrapes four real daemons under load, two of each layer: what it answers is what the daemons count, exactly
 * once they are idle; all alerts evaluate; and no panel of the dashboard stays empty.
 *
 *     client-a ── a ══ underlay, with Prometheus at 192.168.77.254 ══ b ── client-b
 *                 weftd of layer 3: :9469, of layer 2: :9470
 *
 * WEFT_PANELS_PAGE=FILE.html keeps the page that is drawn, and in `npm run test:full` minutes of varied load are on it.
 */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { drawnPanels, readDashboard } from '../../race/dashboard/dashboard.js';
import type { Series } from '../../race/dashboard/prometheus.js';
import { answersPing, type Host, Lab, makeHosts, type Namespace, sleep } from '../../race/hosts.js';
import { ALERTS, Prometheus, prometheusMissing } from '../lib/prometheus.js';
import { settle, startEmbedded, until } from './lib/embedded.js';
import { sendDatagrams, sendFrames } from './lib/l2.js';
import { FULL, impossible, Weft } from './lib/weft.js';

const why = prometheusMissing() ?? impossible('iperf3', 'python3');
t.setTimeout(0);

const PANELS = fileURLToPath(new URL('../../race/dashboard/panels.js', import.meta.url));
const LAYER_3 = 9469;
const LAYER_2 = 9470;
const VNI = 42;
/** Seconds between two scrapes. */
const SCRAPE = 1;

/** A transfer; Gbit/s as iperf3's server had it. */
async function iperf(from: Namespace, to: Namespace, address: string, args: readonly string[]): Promise<number> {
  const server = to.spawn('iperf3', ['-s', '-1', '--forceflush'], { stdio: ['ignore', 'pipe', 'ignore'] });
  try {
    await Promise.race([new Promise((resolve) => server.stdout?.once('data', resolve)), sleep(3000)]);
    const { stdout } = await from.run('iperf3', ['-c', address, '-J', ...args]);
    const report = JSON.parse(stdout) as { error?: string; end: { sum_received?: { bits_per_second: number } } };
    if (report.error !== undefined) throw new Error(`iperf3: ${report.error}`);
    return (report.end.sum_received?.bits_per_second ?? 0) / 1e9;
  } finally {
    server.kill('SIGKILL');
  }
}

const layer2Address = (host: Host): string => `10.7.0.${host.number}`;

function startLayer2(host: Host, peers: string): Weft {
  const before = process.env.WEFT_CHECK_ADDRESSES;
  process.env.WEFT_CHECK_ADDRESSES = '1'; // the daemon inherits this process's environment
  try {
    return Weft.spawnBare(host, [
      ...['--mode', 'l2', '--vni', String(VNI), '--address', `${layer2Address(host)}/24`, '--iface', 'eth0'],
      ...['--public-ip', host.underlay4, '--registry', 'static', '--peers', peers],
      ...['--metrics-address', `0.0.0.0:${LAYER_2}`],
    ]);
  } finally {
    if (before === undefined) delete process.env.WEFT_CHECK_ADDRESSES;
    else process.env.WEFT_CHECK_ADDRESSES = before;
  }
}

/** Counters in a text of /metrics or in Prometheus' answer, under `name{label="value",…}` with the labels sorted. */
type Values = Map<string, number>;

const keyOf = (name: string, labels: readonly (readonly [string, string])[]): string =>
  `${name}{${labels
    .map(([label, value]) => `${label}="${value}"`)
    .sort()
    .join(',')}}`;

function countersIn(text: string): Values {
  const found: Values = new Map();
  for (const line of text.split('\n')) {
    const [, name, inside, value] = /^(weft_\w+_(?:total|bucket|sum|count))(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (!name) continue;
    const labels = [...(inside ?? '').matchAll(/(\w+)="([^"]*)"/g)].map((one) => [one[1], one[2]] as const);
    found.set(keyOf(name, labels), Number(value));
  }
  return found;
}

function countersOf(series: readonly Series[]): Values {
  const ours = ([label]: readonly [string, string]): boolean => !['__name__', 'instance', 'job'].includes(label);
  return new Map(
    series.map(({ labels, points }) => [
      keyOf(labels.__name__, Object.entries(labels).filter(ours)),
      points.at(-1)?.[1] ?? Number.NaN,
    ]),
  );
}

const sorted = (values: Values): [string, number][] => [...values].sort(([a], [b]) => (a < b ? -1 : 1));

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-prometheus');
  t.teardown(() => lab.close());
  const made = makeHosts(lab, { count: 2, join: 'bridge', clients: 'own' });
  const underlay = lab.namespaces.find(({ name }) => name.endsWith('-underlay'))!;
  underlay.ip('addr add 192.168.77.254/24 dev switch');

  // Layer 3 with leases, layer 2 with a peers file.
  const peers = join(lab.dir, 'peers.json');
  /** With `known`, a station behind b, by MAC and address, which makes control do something. */
  const writePeers = (known: boolean): void => {
    const [mac, address] = ['02:00:00:00:00:05', '10.7.0.5'];
    const behind = { macs: [mac], neighbours: [{ address, mac }] };
    const list = made.map(({ letter, underlay4 }) => ({
      ...{ name: letter, address: underlay4 },
      ...(known && letter === 'b' ? behind : {}),
    }));
    writeFileSync(peers, JSON.stringify({ peers: list }));
  };
  writePeers(false);
  let known = false;
  const hosts: Host[] = [];
  const layer3: Weft[] = [];
  for (const host of made) {
    const env = { WEFT_CHECK_ADDRESSES: '1' };
    layer3.push(await startEmbedded(host, { args: ['--metrics-address', `0.0.0.0:${LAYER_3}`], env }));
    hosts.push(settle(host));
  }
  const layer2 = made.map((host) => startLayer2(host, peers));
  await Promise.all(layer2.map((weft) => weft.ready()));
  const [a, b] = hosts;

  const targets = hosts.flatMap(({ letter, underlay4 }) =>
    [LAYER_3, LAYER_2].map((port) => ({ address: `${underlay4}:${port}`, instance: `${letter}:${port}` })),
  );
  const instances = targets.map(({ instance }) => instance);
  const prometheus = await Prometheus.start({
    dir: join(lab.dir, 'prometheus'),
    ns: underlay,
    targets,
    scrape: SCRAPE,
  });
  const { client } = prometheus;
  const begun = Date.now();

  /** What a daemon itself says, read in its own namespace. */
  const ownText = async (instance: string): Promise<string> => {
    const [name, port] = instance.split(':');
    const host = hosts.find(({ letter }) => letter === name)!;
    const script = `exec 3<>/dev/tcp/127.0.0.1/${port} && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3`;
    return (await host.ns.run('bash', ['-c', script])).stdout;
  };

  /** Packets that are dropped, outbound and inbound; what layer 2 answers, floods and learns; a change of the peers file. */
  const odds = async (): Promise<void> => {
    known = !known;
    writePeers(known);
    await a.client.run('ping', ['-n', '-q', '-c', '150', '-i', '0.004', '-W', '0.1', '10.5.250.9']);
    const strangers = Array.from({ length: 150 }, (_, i) => Buffer.alloc(40, i));
    await sendDatagrams(underlay, a.underlay4, strangers, { port: 8285 });
    for (const host of hosts) {
      host.ns.ip(`neigh flush dev weft${VNI}`);
      await host.ns.run('ping', ['-n', '-q', '-c', '2', '-i', '0.1', '-W', '1', layer2Address(host === a ? b : a)]);
    }
    // Broadcast frames of a type that no kernel answers, each from another station.
    const frames = Array.from({ length: 20 }, (_, i) =>
      Buffer.concat([Buffer.alloc(6, 0xff), Buffer.from([2, 7, 0, 0, 9, i, 0x88, 0xb5]), Buffer.alloc(46)]),
    );
    await sendFrames(a.ns, frames, { link: `weft${VNI}`, every: 2 });
  };

  t.test('under load', async (t) => {
    t.ok(await answersPing(a.client, b.client4), 'layer 3 forwards');
    t.ok(await answersPing(a.ns, layer2Address(b)), 'layer 2 forwards');
    await until(async () => (await client.query('up == 1')).length === 4);
    t.same(
      await client.targets(),
      instances.map((instance) => ({ instance, health: 'up', lastError: '' })),
      'Prometheus scrapes all four',
    );
    await odds();
    const minutes = FULL ? 4 : 0;
    for (let until = Date.now() + minutes * 60_000, round = 1; Date.now() < until; round++) {
      // Varied, so that the page has something to look at.
      await iperf(a.client, b.client, b.client4, ['-t', '12', '-b', `${round % 4}00M`]);
      await odds();
      await iperf(b.ns, a.ns, layer2Address(a), ['-t', '8', '-b', `${round}50M`]);
      await sleep(3000);
      await iperf(b.client, a.client, a.client4, ['-t', '6', '-u', '-l', '200', '-b', '30M']);
      await odds();
    }
    const seconds = 5;
    const [three, two] = [
      await iperf(a.client, b.client, b.client4, ['-t', String(seconds)]),
      await iperf(a.ns, b.ns, layer2Address(b), ['-t', String(seconds)]),
    ];
    await odds();
    for (const [port, gbits, what] of [
      [LAYER_3, three, 'layer 3'],
      [LAYER_2, two, 'layer 2'],
    ] as const) {
      const bytes = `weft_bytes_total{instance="${b.letter}:${port}",stage="socket_received_bytes"}`;
      const [rate] = await client.query(`8e-9 * max_over_time(rate(${bytes}[4s])[2m:1s])`);
      const seen = rate?.points[0][1] ?? 0;
      t.comment(
        `${what}: iperf3 ${gbits.toFixed(2)} Gbit/s, Prometheus' highest rate of 4 s ${seen.toFixed(2)} Gbit/s`,
      );
      t.ok(seen > gbits * 0.5 && seen < gbits * 4, `${what}: the rate is about what was carried`);
    }
  });

  t.test('idle: the same numbers', async (t) => {
    for (const instance of instances) {
      let own: Values = new Map();
      let theirs: Values = new Map();
      const still = await until(async () => {
        own = countersIn(await ownText(instance));
        const asked = Date.now();
        const selector = `{__name__=~"weft_.*_(total|bucket|sum|count)",instance="${instance}"}`;
        await until(async () => {
          const [last] = await client.query(`timestamp(weft_peers{instance="${instance}"})`);
          return last !== undefined && last.points[0][1] * 1000 > asked;
        });
        theirs = countersOf(await client.query(selector));
        // A lease that was renewed meanwhile, a neighbour that was asked for again: then it was not idle.
        return JSON.stringify(sorted(own)) === JSON.stringify(sorted(countersIn(await ownText(instance))));
      }, 20_000);
      t.ok(still, `${instance} is idle`);
      t.ok(own.size > 150, `${instance} has ${own.size} counters`);
      t.same(sorted(theirs), sorted(own), `${instance}: Prometheus has each of them, with the same value`);
    }
  });

  t.test('alerts', async (t) => {
    const blocks = readFileSync(ALERTS, 'utf8').split('- alert: ');
    const critical = blocks.filter((text) => text.includes('severity: critical')).map((text) => text.split('\n')[0]);
    t.ok(critical.includes('WeftDown') && critical.length >= 7, `${critical.length} critical ones`);
    const rules = await client.rules();
    t.ok(rules.length >= 20, `${rules.length} rules`);
    const bad = rules.filter(({ health, lastError }) => health !== 'ok' || lastError !== '');
    t.same(bad, [], 'all evaluate without error');
    const inState = (...states: string[]): string[] =>
      rules.filter(({ state = '' }) => states.includes(state)).map(({ name }) => name);
    const firing = inState('firing');
    // Some of them fire only after minutes: they may not be on their way either.
    t.same(
      inState('pending', 'firing').filter((name) => critical.includes(name)),
      [],
      'nothing critical fires, or is going to, while all is well',
    );
    t.comment(`fires: ${firing.join(', ') || 'nothing'}`);
    if (FULL) t.ok(firing.includes('WeftUnknownSenders'), 'strangers that came for minutes are told of');
  });

  t.test('no panel is empty', async (t) => {
    const page = join(lab.dir, 'panels.html');
    const minutes = Math.max(0.75, (Date.now() - begun) / 60_000);
    const args = ['--prometheus', prometheus.url, '--socket', prometheus.socketPath ?? '', '--out', page];
    const { stdout, stderr, code } = await underlay.run(process.execPath, [
      ...[PANELS, ...args, '--minutes', String(minutes), '--scrape', String(SCRAPE), '--queries'],
    ]);
    const count = drawnPanels(readDashboard()).length;
    t.equal(stderr, '', 'no complaint');
    const [first, ...quiet] = stdout.trim().split('\n');
    t.equal(first, `${page}: ${count} panels`, 'none is empty');
    t.equal(code, 0);
    // Of somebody who captures, of a mesh of more than 256 peers, and of etcd.
    t.same(
      quiet.map((line) => /weft_\w+/.exec(line)?.[0]).sort(),
      ['weft_capture_running', 'weft_peers_not_shown', 'weft_registry_requests_total'],
      'every query brings something, but for what these daemons do not have',
    );
    const html = readFileSync(page, 'utf8');
    t.equal(html.match(/<section /g)?.length, count, 'each is drawn');
    t.notMatch(html, 'No data');
    t.notMatch(html, /NaN|undefined/, 'and no number is none');
    if (process.env.WEFT_PANELS_PAGE) copyFileSync(page, process.env.WEFT_PANELS_PAGE);
  });

  t.test('a daemon that ends', async (t) => {
    await layer2[1].stop();
    const instance = `${b.letter}:${LAYER_2}`;
    t.ok(await until(async () => (await client.query(`up{instance="${instance}"} == 0`)).length === 1), 'is seen');
    const state = async (): Promise<string | undefined> =>
      (await client.rules()).find(({ name }) => name === 'WeftDown')?.state;
    t.ok(await until(async () => (await state()) === 'pending'), 'WeftDown is on its way');
    if (FULL) t.ok(await until(async () => (await state()) === 'firing', 60_000), 'and fires');
    await prometheus.close();
    t.notMatch(prometheus.log(), /level=error/, 'Prometheus has nothing to complain about');
  });
}
