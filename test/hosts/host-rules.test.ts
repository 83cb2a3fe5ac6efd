/**
 * weftd on hosts whose firewall lets nothing through by default: with its rules the overlay's packets get through, and out with the
 * host's address; somebody flushes them and they come back; they outlive the daemon, and the next one takes them over.
 */
import t from 'tap';
import { answersPing, type Host, Lab, NETWORK4, NETWORK6, sleep, twoHosts } from '../../race/hosts.js';
import { impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('iptables', 'iptables-save', 'nft');
t.setTimeout(0);

const rulesOf = ({ ns }: Host, save = 'iptables-save'): string[] =>
  ns
    .runSync(save)
    .split('\n')
    .filter((line) => line.includes('"flanneld '));

/** Of the rules above, those of both tables with the jumps. */
const ALL = 7 + 3;

t.test('rules of a host', { skip: why ? `SKIPPED: ${why}` : false }, async (t) => {
  const lab = new Lab('ht-rules');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const peers = writePeers(lab, [a, b]);
  for (const { ns } of [a, b]) {
    ns.runSync('iptables', '-P', 'FORWARD', 'DROP');
    ns.runSync('ip6tables', '-P', 'FORWARD', 'DROP');
  }
  const args = ['--ip-masq', '--iptables-forward-rules', '--ip-blackhole-route', '--iptables-resync', '1'];
  const [plain, other] = await Promise.all([Weft.start(a, { peers }), Weft.start(b, { peers, args })]);
  t.same(rulesOf(a), [], 'none unless asked for');
  t.equal(await answersPing(a.client, b.client4, 1000), false, 'the firewall lets nothing through');
  await plain.stop();

  const weft = await Weft.start(a, { peers, args });
  t.equal(rulesOf(a).length, ALL);
  t.equal(rulesOf(a, 'ip6tables-save').length, ALL);
  t.ok(await answersPing(a.client, b.client4), 'client to client');
  t.ok(await answersPing(a.client, b.client6), 'of IPv6 too');
  t.ok(await answersPing(a.ns, b.client4), 'host to client');
  b.ns.runSync('iptables', '-A', 'INPUT', '-s', a.underlay4, '-p', 'icmp', '-j', 'ACCEPT');
  b.ns.runSync('iptables', '-A', 'INPUT', '-s', NETWORK4, '-p', 'icmp', '-j', 'ACCEPT');
  t.ok(await answersPing(a.client, b.underlay4), 'and out');
  t.same(
    b.ns
      .runSync('iptables-save', '-c', '-t', 'filter')
      .split('\n')
      .flatMap((line) => /^\[(\d+):\d+\] -A INPUT/.exec(line)?.[1] ?? []),
    ['1', '0'],
    "with the host's address",
  );
  t.match(
    a.ns.runSync('ip', 'route', 'show', 'type', 'blackhole'),
    new RegExp(`^blackhole ${a.subnet4} .*metric 1000000`),
  );

  a.ns.runSync('iptables', '-F');
  a.ns.runSync('iptables', '-t', 'nat', '-F');
  await weft.event('host_rules_repaired');
  t.equal(rulesOf(a).length, ALL, 'they come back');
  t.ok(await answersPing(a.client, b.client4));

  const before = rulesOf(a);
  await weft.stop();
  t.same(rulesOf(a), before, 'they remain');
  const next = await Weft.start(a, { peers, args });
  t.same(rulesOf(a), before, 'the next one takes them over');
  await sleep(1500);
  t.same(next.events('host_rules_repaired'), [], 'and has nothing to repair');
  await next.stop('SIGKILL');
  const forwards = await Weft.start(a, { peers, args: ['--iptables-forward-rules'] });
  t.equal(rulesOf(a).length, 3, 'without --ip-masq its rules go');
  t.equal(a.ns.runSync('ip', 'route', 'show', 'type', 'blackhole'), '', 'and the route');
  t.ok(await answersPing(a.client, b.client4));
  t.match(rulesOf(a, 'ip6tables-save').join('\n'), new RegExp(NETWORK6));
  await forwards.stop();
  await other.stop();
});
