/**
 * `weft ping` between real daemons: what is broken on purpose is what its last line names. By firewalls, links and routes, over IPv4 and
 * IPv6, in layer 3 and layer 2; a hop that drops what is too large without a word, and one that says so.
 */
import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { answersPing, collect, type Host, Lab, sleep, twoHosts } from '../../race/hosts.js';
import type { PingReport, Verdict } from '../../src/commands/ping/report.js';
import { makeSites } from './lib/l2.js';
import { type Assertions, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('nft', 'setpriv');
t.setTimeout(0);

const WEFT = fileURLToPath(new URL('../../src/cli.js', import.meta.url));
/** Short rounds: nothing here is far away. */
const QUICK = ['-c', '3', '-i', '0.03', '-W', '0.3'];

async function weftPing(
  from: Host,
  ...args: string[]
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return from.ns.run(process.execPath, [WEFT, 'ping', ...args]);
}

async function report(from: Host, ...args: string[]): Promise<PingReport> {
  const { code, stdout, stderr } = await weftPing(from, '-j', ...QUICK, ...args);
  if (stdout === '') throw new Error(`weft ping: exit code ${code}: ${stderr}`);
  const found = JSON.parse(stdout) as PingReport;
  const bad = found.verdict !== 'well' && found.verdict !== 'untried';
  if (code !== (bad ? 1 : 0)) throw new Error(`weft ping: exit code ${code} with ${found.verdict}`);
  return found;
}

/** Asks b from a, and compares the verdict and its text. */
async function says(t: Assertions, from: Host, verdict: Verdict, text: RegExp, what: string, peer = 'b') {
  const found = await report(from, peer);
  t.equal(found.verdict, verdict, `${what}: ${found.text}`);
  t.match(found.text, text, `${what}: its words`);
  return found;
}

/** For the time of `work`, rules in a host's firewall, each in the chain of a hook. */
async function firewalled(
  { ns }: Host,
  hook: 'input' | 'output' | 'prerouting',
  rules: readonly string[],
  work: () => Promise<unknown>,
): Promise<void> {
  ns.runSync('nft', 'add table inet broken');
  try {
    ns.runSync('nft', `add chain inet broken c { type filter hook ${hook} priority 0 ; }`);
    for (const rule of rules) ns.runSync('nft', `add rule inet broken c ${rule}`);
    await work();
  } finally {
    ns.runSync('nft', 'delete table inet broken');
  }
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  // Mostly they wait for answers that do not come.
  t.jobs = 4;

  /** A pair of daemons in layer 3, over IPv4. */
  async function pair(t: Test): Promise<{ a: Host; b: Host; peers: string; weftB: Weft }> {
    const lab = new Lab('ht-ping');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const peers = writePeers(lab, [a, b]);
    const [, weftB] = await Promise.all([a, b].map((host) => Weft.start(host, { peers })));
    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    return { a, b, peers, weftB };
  }

  t.test('layer 3: what passes', { buffered: true }, async (t) => {
    const { a, b } = await pair(t);

    await t.test('all well', async (t) => {
      const found = await says(
        t,
        a,
        'well',
        /^all well: b answers through the tunnel, packets of 1472 bytes too$/,
        'well',
      );
      t.match(found, {
        peer: 'b',
        address: b.underlay4,
        port: 8285,
        ownAddress: a.underlay4,
        underlay: { sent: 3, received: 3, refused: null, problems: [] },
        path: { carries: 1500, reckonedWith: 1500, told: null },
        tunnel: [
          {
            from: '10.5.1.0',
            to: '10.5.2.0',
            sent: 3,
            received: 3,
            routedTo: 'flannel0',
            full: { bytes: 1472, passes: true },
          },
          { from: 'fd00:5:0:1::', to: 'fd00:5:0:2::', received: 3, full: { bytes: 1472, passes: true } },
        ],
      });
      const { min, average, max } = found.underlay.rtt ?? { min: 0, average: 0, max: 0 };
      t.ok(min > 0 && min <= average && average <= max && max < 0.3, `round trips of ${min} to ${max} s`);
      const named = await report(a, b.underlay4);
      t.same([named.peer, named.verdict], ['b', 'well'], 'by its underlay address');
      const behind = await report(a, b.client6);
      t.match(behind, { peer: 'b', verdict: 'well', tunnel: [{}, { to: b.client6, received: 3 }] }, 'by one behind it');
      const { code, stdout, stderr } = await weftPing(a, ...QUICK, 'b');
      t.equal(code, 0, 'as text');
      t.equal(stderr, '');
      t.match(stdout, /^peer {7}b: 192\.168\.77\.2 port 8285, from 192\.168\.77\.1 on eth0\n/);
      t.match(stdout, /^underlay {3}3 of 3 answered, round trip [\d.]+ \/ [\d.]+ \/ [\d.]+ ms$/m);
      t.match(stdout, /^path MTU {3}1500, weft reckons with 1500$/m);
      t.match(stdout, /^tunnel {5}10\.5\.1\.0 to 10\.5\.2\.0 {2}3 of 3 answered/m);
      t.match(stdout, /\nall well: [^\n]*\n$/, 'the verdict is the last line');
      t.notMatch(stdout, '\x1b', 'no colour where nobody looks');
    });

    await t.test('a path that carries less than weft thinks, and does not say so', async (t) => {
      await firewalled(b, 'prerouting', ['iifname eth0 meta length > 1400 drop'], async () => {
        const found = await says(
          t,
          a,
          'mtu',
          /^the path to 192\.168\.77\.2 carries 1400 bytes, weft reckons with 1500: .* --mtu 1372 /,
          'silent',
        );
        t.equal(found.path.carries, 1400, 'to the byte');
        t.match(found.tunnel, [{ received: 3, full: { bytes: 1472, passes: false, carries: 1372 } }, {}], 'inside too');
      });
      // Only what is UDP: the underlay's echoes do not find it.
      await firewalled(b, 'prerouting', ['iifname eth0 meta l4proto udp meta length > 1400 drop'], () =>
        says(
          t,
          a,
          'mtu',
          /^packets of 1472 bytes do not get to 10\.5\.2\.0 through the tunnel, only 1372: /,
          'UDP only',
        ),
      );
    });

    await t.test('some are lost', async (t) => {
      await firewalled(b, 'input', ['icmp type echo-request numgen inc mod 3 0 drop'], () =>
        says(t, a, 'loss', /\d of 3 lost/, 'every third'),
      );
      // Of large ones too: that does not make them too large.
      await firewalled(b, 'input', ['icmp type echo-request numgen inc mod 5 < 4 drop'], async () => {
        const { verdict, path, tunnel } = await report(a, '-c', '10', 'b');
        t.equal(verdict, 'loss', 'four of five');
        t.match([path, tunnel[0]], [{ carries: 1500 }, { received: 2, full: { bytes: 1472, passes: true } }]);
      });
    });

    await t.test('wrong questions', async (t) => {
      for (const [args, code, text] of [
        [['nobody'], 1, /^weft: there is no peer called nobody/],
        [[], 2, /^weft: missing required argument 'peer'/],
        [['-c', '0', 'b'], 2, /^weft: .*expected a whole number from 1 to/],
        [['-c', '2.5', 'b'], 2, /^weft: .*expected a whole number/],
        [['-i', 'x', 'b'], 2, /^weft: .*expected a number/],
      ] as const) {
        const answer = await weftPing(a, ...args);
        t.equal(answer.code, code, `${args.join(' ')}: exit code`);
        t.match(answer.stderr, text, `${args.join(' ')}: one line`);
        t.equal(answer.stderr.trim().split('\n').length, 1);
      }
      const long = a.ns.spawn(process.execPath, [WEFT, 'ping', '-c', '1000', 'b'], {
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const ended = collect(long, 'weft');
      await sleep(1000);
      long.kill('SIGINT');
      const interrupted = await ended;
      t.equal(interrupted.code, 1, 'interrupted: exit code');
      t.match(interrupted.stdout, /\ninterrupted before all was tried\n$/, 'and no conclusion');
      const inode = statSync(`/run/netns/${a.ns.name}`).ino;
      const folder = `/run/weft/${inode}`;
      const other = await weftPing(b, '--socket', join(folder, readdirSync(folder)[0]), 'b');
      t.equal(other.code, 1);
      t.match(other.stderr, /^weft: weftd \(pid \d+\) is in another network namespace: nsenter [^\n]*\n$/);
      const weak = ['--inh-caps=-net_raw', '--bounding-set=-net_raw', process.execPath, WEFT, 'ping', 'b'];
      const less = await a.ns.run('setpriv', weak);
      t.equal(less.code, 1);
      t.match(
        less.stderr,
        /^weft: cannot open a raw ICMP socket \(EPERM: [^\n]*\): run weft as root, with CAP_NET_RAW\n$/,
      );
    });
  });

  t.test('layer 3: what does not', { buffered: true }, async (t) => {
    const { a, b, peers, weftB } = await pair(t);

    await t.test('a blocked port, and an unreachable host', async (t) => {
      const open = /is UDP port 8285 open both ways, and weftd running there\?$/;
      await firewalled(b, 'input', ['udp dport 8285 drop'], () => says(t, a, 'tunnel', open, 'dropped over there'));
      await firewalled(b, 'output', ['udp dport 8285 drop'], () => says(t, a, 'tunnel', open, 'the way back'));
      await firewalled(b, 'input', ['udp dport 8285 reject'], () =>
        says(t, a, 'tunnel', /UDP port 8285 is refused \(192\.168\.77\.2: port unreachable\)/, 'refused over there'),
      );
      await firewalled(a, 'output', ['udp dport 8285 drop'], () =>
        says(t, a, 'tunnel', /weftd here drops it: outbound socket_refused \(/, 'dropped here'),
      );
      await firewalled(a, 'input', ['iifname flannel0 drop'], () =>
        says(t, a, 'tunnel', /packets come back through the tunnel, but no answer/, 'dropped behind the tunnel'),
      );
      await firewalled(a, 'output', ['ip protocol icmp drop', 'udp dport 8285 drop'], () =>
        says(
          t,
          a,
          'refused',
          /^this host does not send to 192\.168\.77\.2 \(EPERM: .*firewall of this host/,
          'no echo from here',
        ),
      );
      await firewalled(b, 'input', ['ip daddr 192.168.77.2 ip protocol icmp drop'], () =>
        says(t, a, 'well', /its underlay address does not answer ICMP echo$/, 'no echo from there'),
      );
      await firewalled(b, 'input', ['ip daddr 192.168.77.2 drop'], () =>
        says(t, a, 'unreachable', /answers ARP on eth0, but no ICMP echo/, 'nothing gets in there'),
      );
      await weftB.stop();
      await says(t, a, 'tunnel', /UDP port 8285 is refused .*: does weftd run there\?$/, 'no daemon there');
      await Weft.start(b, { peers });
    });

    await t.test('a route of this host', async (t) => {
      a.ns.ip('route add 10.5.2.0/24 dev lan0');
      await says(t, a, 'tunnel', /this host sends 10\.5\.2\.0 to lan0, not to weft's flannel0/, 'elsewhere');
      a.ns.ip('route del 10.5.2.0/24 dev lan0');
    });

    await t.test('links', async (t) => {
      b.ns.ip(`addr del ${b.underlay4}/24 dev eth0`);
      a.ns.ip('neigh flush dev eth0');
      await says(
        t,
        a,
        'unreachable',
        /^192\.168\.77\.2 does not answer: no ARP answer on eth0/,
        'nobody has its address',
      );
      b.ns.ip(`addr add ${b.underlay4}/24 dev eth0`, 'link set eth0 down');
      await says(t, a, 'unreachable', /eth0 has no carrier$/, 'its link is down');
      a.ns.ip('link set eth0 down');
      await says(t, a, 'refused', /\(ENETUNREACH: [^)]*\): eth0 is down$/, 'ours is down');
      for (const { ns } of [a, b]) ns.ip('link set eth0 up');
    });
  });

  t.test('an IPv6 underlay, and a router that says what it takes', { buffered: true }, async (t) => {
    const lab = new Lab('ht-ping6');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const six = writePeers(lab, [a, b], { family: 6, name: 'six.json' });
    const wefts = await Promise.all([a, b].map((host) => Weft.start(host, { peers: six, publicIp: host.underlay6 })));
    await says(t, a, 'well', /packets of 1452 bytes too$/, 'IPv6');
    await firewalled(b, 'input', ['udp dport 8285 drop'], () =>
      says(t, a, 'tunnel', /is UDP port 8285 open/, 'IPv6: blocked'),
    );
    await firewalled(b, 'input', ['udp dport 8285 reject'], () =>
      says(t, a, 'tunnel', /is refused \(fd77::2: port unreachable\)/, 'IPv6: refused'),
    );
    await firewalled(b, 'prerouting', ['iifname eth0 meta length > 1400 drop'], async () => {
      const found = await says(t, a, 'mtu', /carries 1400 bytes, .* --mtu 1352 /, 'IPv6: silent');
      t.equal(found.path.carries, 1400);
    });
    await Promise.all(wefts.map((weft) => weft.stop()));

    const r = lab.namespace('r');
    r.sysctl({ 'net/ipv4/ip_forward': 1 });
    const ends = [
      { host: a, net: '192.168.78', mtu: 1500 },
      { host: b, net: '192.168.79', mtu: 1300 },
    ];
    for (const { host, net, mtu } of ends) {
      lab.veth(host.ns, 'up0', r, `down-${host.letter}`, 1500);
      host.ns.ip(`addr add ${net}.1/24 dev up0`, `route add 192.168.78.0/23 via ${net}.254`);
      r.ip(`addr add ${net}.254/24 dev down-${host.letter}`, `link set down-${host.letter} mtu ${mtu}`);
    }
    const peers = join(lab.dir, 'routed.json');
    const entries = ends.map(({ host, net }) => {
      return { name: host.letter, address: `${net}.1`, subnets: [host.subnet4, host.subnet6] };
    });
    writeFileSync(peers, JSON.stringify({ peers: entries }));
    await Promise.all(
      ends.map(({ host, net }) => Weft.start(host, { peers, publicIp: `${net}.1`, args: ['--iface', 'up0'] })),
    );
    const found = await says(
      t,
      a,
      'well',
      /the path carries 1300 bytes \(192\.168\.78\.254: too big/,
      'a router that says so',
    );
    t.match(found.path, { carries: 1300, reckonedWith: 1300 }, 'weftd has learned it');
    await firewalled(a, 'input', ['iifname up0 icmp type destination-unreachable drop'], async () => {
      r.ip('link set down-b mtu 1200');
      await says(t, a, 'mtu', /carries 1200 bytes, weft reckons with 1300/, 'a router that says so in vain');
    });
    r.ip('link del down-b');
    await says(
      t,
      a,
      'unreachable',
      /^192\.168\.79\.1 does not answer: 192\.168\.78\.254: network unreachable$/,
      'behind a router',
    );
  });

  t.test('layer 2', { buffered: true }, async (t) => {
    const lab = new Lab('ht-ping-l2');
    t.teardown(() => lab.close());
    const [a, b] = makeSites(lab, { count: 2 });
    const peers = join(lab.dir, 'l2.json');
    const entries = [a, b].map(({ letter, underlay4 }) => ({ name: letter, address: underlay4, vnis: [42] }));
    writeFileSync(peers, JSON.stringify({ peers: entries }));
    const args = ({ underlay4, number }: Host): string[] => [
      ...['--mode', 'l2', '--vni', '42', '--peers', peers, '--iface', 'eth0', '--public-ip', underlay4],
      ...['--address', `10.8.0.${number}/24`],
    ];
    const wefts = [a, b].map((host) => Weft.spawnBare(host, args(host)));
    await Promise.all(wefts.map((weft) => weft.ready()));
    const untried = await report(a, 'b');
    if (untried.tunnel.length === 0) t.equal(untried.verdict, 'untried', untried.text);
    t.ok(await answersPing(a.ns, '10.8.0.2'), 'a reaches b');
    const deadline = Date.now() + 10_000;
    let found = await report(a, 'b');
    while (found.tunnel.length === 0 && Date.now() < deadline) {
      await sleep(200);
      found = await report(a, 'b');
    }
    t.equal(found.verdict, 'well', found.text);
    t.match(
      found.tunnel,
      [{ from: '10.8.0.1', to: '10.8.0.2', full: { bytes: 1450, passes: true } }],
      'through the switch',
    );
    await firewalled(b, 'input', ['udp dport 4789 drop'], () =>
      says(t, a, 'tunnel', /is UDP port 4789 open both ways/, 'blocked'),
    );
    await firewalled(b, 'prerouting', ['iifname eth0 meta length > 1400 drop'], () =>
      says(t, a, 'mtu', /carries 1400 bytes, .* --mtu 1350 /, 'silent'),
    );
  });
}
