/**
 * The host's rules in real namespaces, by iptables of both variants and by nft: what they say, what they do to packets, and that
 * they come back whatever somebody does to them, without a duplicate and without touching what is another's.
 */
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, hostsImpossible, Lab, type Namespace, sleep } from '../../race/hosts.js';
import { HostProcess } from './lib/host-process.js';

const impossible = hostsImpossible();
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

t.setTimeout(0);
const lab = new Lab('rules');
t.teardown(() => lab.close());

/** A folder in which the names that we use stand for the legacy variant. */
const legacy = join(lab.dir, 'legacy');
mkdirSync(legacy);
for (const name of [
  'iptables',
  'ip6tables',
  'iptables-save',
  'iptables-restore',
  'ip6tables-save',
  'ip6tables-restore',
]) {
  symlinkSync('/usr/sbin/xtables-legacy-multi', join(legacy, name));
}
const legacyWorks = ((): boolean => {
  if (!existsSync('/usr/sbin/xtables-legacy-multi')) return false;
  try {
    lab.namespace('legacy-probe').runSync(join(legacy, 'iptables'), '-t', 'nat', '-S');
    return true;
  } catch {
    return false;
  }
})();

const VARIANTS: readonly { readonly name: string; readonly env: NodeJS.ProcessEnv }[] = [
  { name: 'nf_tables', env: {} },
  ...(legacyWorks
    ? [{ name: 'legacy', env: { PATH: `${legacy}:${process.env.PATH}`, XTABLES_LOCKFILE: join(lab.dir, 'lock') } }]
    : []),
];

const BOTH = {
  networks: ['10.5.0.0/16', 'fd00:5::/48'],
  subnets: ['10.5.1.0/24', 'fd00:5:0:1::/64'],
};

/** As iptables-save prints flannel's rules. */
const masq = (net: string, sub: string, multicast: string, random = ' --random-fully'): string[] => [
  '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
  '-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
  `-A FLANNEL-POSTRTG -s ${sub} -d ${net} -m comment --comment "flanneld masq" -j RETURN`,
  `-A FLANNEL-POSTRTG -s ${net} -d ${sub} -m comment --comment "flanneld masq" -j RETURN`,
  `-A FLANNEL-POSTRTG ! -s ${net} -d ${sub} -m comment --comment "flanneld masq" -j RETURN`,
  `-A FLANNEL-POSTRTG -s ${net} ! -d ${multicast} -m comment --comment "flanneld masq" -j MASQUERADE${random}`,
  `-A FLANNEL-POSTRTG ! -s ${net} -d ${net} -m comment --comment "flanneld masq" -j MASQUERADE${random}`,
];
const forward = (net: string): string[] => [
  '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
  `-A FLANNEL-FWD -s ${net} -m comment --comment "flanneld forward" -j ACCEPT`,
  `-A FLANNEL-FWD -d ${net} -m comment --comment "flanneld forward" -j ACCEPT`,
];
const MASQ4 = masq('10.5.0.0/16', '10.5.1.0/24', '224.0.0.0/4');
const MASQ6 = masq('fd00:5::/48', 'fd00:5:0:1::/64', 'ff00::/8');
const FORWARD4 = forward('10.5.0.0/16');
const FORWARD6 = forward('fd00:5::/48');

interface Tables {
  /** Rules as iptables-save prints them, in order. */
  rules(table: string, family?: 4 | 6): string[];
  /** Runs `iptables` with these words; comments with a space in single quotes. */
  iptables(words: string, family?: 4 | 6): void;
  restore(text: string, family?: 4 | 6): void;
}

function tablesOf(ns: Namespace, variant: string): Tables {
  const folder = variant === 'legacy' ? legacy : '/usr/sbin';
  const name = (family: 4 | 6): string => join(folder, family === 4 ? 'iptables' : 'ip6tables');
  return {
    rules: (table, family = 4) =>
      ns
        .runSync(`${name(family)}-save`, '-t', table)
        .split('\n')
        .filter((line) => line.startsWith('-A ')),
    iptables: (words, family = 4) => {
      const args = words.match(/'[^']*'|\S+/g) ?? [];
      ns.runSync(name(family), ...args.map((arg) => arg.replace(/'/g, '')));
    },
    restore: (text, family = 4) => {
      ns.runSync('sh', '-c', 'printf %s "$1" | "$2" --noflush', 'sh', text, `${name(family)}-restore`);
    },
  };
}

let namespaces = 0;
const fresh = (): Namespace => lab.namespace(`h${++namespaces}`);

const events = (answer: { readonly logged: readonly { readonly event: string }[] }): string[] =>
  answer.logged.map(({ event }) => event);

for (const { name, env } of VARIANTS) {
  t.test(`iptables, ${name}`, async (t) => {
    t.test('says what flannel says', async (t) => {
      const ns = fresh();
      const tables = tablesOf(ns, name);
      const host = new HostProcess(ns, { env });
      t.match(await host.start(BOTH), { error: undefined, logged: [] });
      t.same(tables.rules('nat'), MASQ4);
      t.same(tables.rules('filter'), FORWARD4);
      t.same(tables.rules('nat', 6), MASQ6);
      t.same(tables.rules('filter', 6), FORWARD6);

      await host.start({ ...BOTH, randomFully: false });
      t.same(
        tables.rules('nat'),
        masq('10.5.0.0/16', '10.5.1.0/24', '224.0.0.0/4', ''),
        'ports kept where they can be',
      );
      t.same(tables.rules('nat', 6), masq('fd00:5::/48', 'fd00:5:0:1::/64', 'ff00::/8', ''));

      await host.start({ forward: false });
      t.same(tables.rules('nat'), MASQ4);
      t.same(tables.rules('filter'), [], 'what is not asked for any more goes');
      t.same(tables.rules('nat', 6), [], 'and another family');
      t.same(tables.rules('filter', 6), []);
      t.notMatch(ns.runSync(join(name === 'legacy' ? legacy : '/usr/sbin', 'iptables-save')), /FLANNEL-FWD/);
      await host.start({ ipMasq: false, forward: false });
      t.same(tables.rules('nat'), MASQ4, 'when nothing is asked for, nothing is done');
      host.kill();
      t.same(tables.rules('nat'), MASQ4, 'they remain');
    });

    t.test('several networks and subnets', async (t) => {
      const ns = fresh();
      const host = new HostProcess(ns, { env });
      await host.start({ networks: ['10.5.0.0/16', '10.6.0.0/16'], subnets: ['10.5.1.0/24', '10.6.1.0/24'] });
      const rules = tablesOf(ns, name).rules('nat');
      t.equal(rules.length, 1 + 1 + 2 * 4 + 4 + 2 + 2);
      t.equal(new Set(rules).size, rules.length, 'no duplicates');
      t.same(
        rules.filter((rule) => rule.includes('MASQUERADE')).map((rule) => /-A \S+ (.*) -m/.exec(rule)?.[1]),
        [
          '-s 10.5.0.0/16 ! -d 224.0.0.0/4',
          '-s 10.6.0.0/16 ! -d 224.0.0.0/4',
          '! -s 10.5.0.0/16 -d 10.5.0.0/16',
          '! -s 10.6.0.0/16 -d 10.6.0.0/16',
        ],
      );
      t.same(events(await host.look(3)), []);
      host.kill();
    });

    t.test('comes back', async (t) => {
      const ns = fresh();
      const tables = tablesOf(ns, name);
      const host = new HostProcess(ns, { env });
      await host.start(BOTH);
      const damages: readonly [string, () => void][] = [
        ['a rule is deleted', () => tables.iptables('-t nat -D FLANNEL-POSTRTG 3')],
        ['the first is deleted', () => tables.iptables('-t nat -D FLANNEL-POSTRTG 1')],
        ['a jump is deleted', () => tables.iptables('-D FORWARD 1')],
        ['both tables are flushed', () => tables.restore('*nat\n-F\nCOMMIT\n*filter\n-F\nCOMMIT\n')],
        ['chains are gone', () => tables.restore('*filter\n-F\n-X\nCOMMIT\n')],
        [
          'two rules change places',
          () => {
            tables.iptables('-t nat -D FLANNEL-POSTRTG 5');
            tables.iptables(
              "-t nat -I FLANNEL-POSTRTG 2 -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment 'flanneld masq' -j MASQUERADE --random-fully",
            );
          },
        ],
        [
          'a rule is doubled',
          () =>
            tables.iptables(
              "-t nat -A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment 'flanneld masq' -j RETURN",
            ),
        ],
        [
          'a jump is there three times',
          () => {
            tables.iptables("-I FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD");
            tables.iptables("-A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD");
          },
        ],
        ['a rule of IPv6 is deleted', () => tables.iptables('-D FLANNEL-FWD 1', 6)],
        [
          'rules of another subnet come',
          () => tables.restore(`*nat\n${masq('10.5.0.0/16', '10.5.9.0/24', '224.0.0.0/4').join('\n')}\nCOMMIT\n`),
        ],
      ];
      for (const [what, damage] of damages) {
        damage();
        t.match(await host.look(), { logged: [{ level: 'info', event: 'host_rules_repaired' }] }, what);
        t.same(tables.rules('nat'), MASQ4, `${what}: nat`);
        t.same(tables.rules('filter'), FORWARD4, `${what}: filter`);
        t.same(tables.rules('filter', 6), FORWARD6, `${what}: IPv6`);
        t.same(events(await host.look()), [], `${what}: once`);
      }
      host.kill();
    });

    t.test('leaves alone what is not ours', async (t) => {
      const ns = fresh();
      const tables = tablesOf(ns, name);
      const foreign = {
        nat: [
          '-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080',
          '-A POSTROUTING -s 10.99.0.0/16 -m comment --comment "not flanneld masq" -j MASQUERADE',
          '-A POSTROUTING -s 10.5.0.0/16 -d 10.98.0.0/16 -j RETURN',
          '-A FLANNEL-POSTRTG -s 10.5.1.7/32 -m comment --comment "of an operator" -j ACCEPT',
        ],
        filter: [
          '-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT',
          '-A FORWARD -i lo -m comment --comment flanneld -j DROP',
          '-A FLANNEL-FWD -s 10.5.1.66/32 -j DROP',
        ],
      };
      tables.restore(
        `*nat\n:FLANNEL-POSTRTG - [0:0]\n${foreign.nat.join('\n')}\nCOMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n:FORWARD DROP [0:0]\n${foreign.filter.join('\n')}\nCOMMIT\n`,
      );
      const theirs = (table: string): string[] =>
        tables.rules(table).filter((rule) => !/"flanneld (masq|forward)"/.test(rule));
      const ours = (table: string): string[] =>
        tables.rules(table).filter((rule) => /"flanneld (masq|forward)"/.test(rule));
      const check = (what: string): void => {
        for (const table of ['nat', 'filter'] as const) t.same(theirs(table), foreign[table], `${what}: ${table}`);
        t.same([ours('nat'), ours('filter')], [MASQ4, FORWARD4], `${what}: ours`);
      };
      const host = new HostProcess(ns, { env });
      await host.start();
      check('at the start');
      tables.iptables('-t nat -D FLANNEL-POSTRTG 3');
      tables.iptables("-A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD");
      t.same(events(await host.look()), ['host_rules_repaired']);
      check('after a repair');
      // Others put theirs behind and between ours: no reason to do anything.
      tables.iptables('-A FORWARD -i lo -j ACCEPT');
      tables.iptables('-t nat -I FLANNEL-POSTRTG 3 -s 10.5.1.8 -j ACCEPT');
      t.same(events(await host.look(2)), []);
      await host.start({ ipMasq: false });
      t.same(ours('nat'), [], 'taken away again');
      t.equal(theirs('nat').length, foreign.nat.length + 1, 'but not theirs, nor the chain that has theirs');
      host.kill();
    });

    t.test('takes over from flanneld and from an earlier run', async (t) => {
      const ns = fresh();
      const tables = tablesOf(ns, name);
      const host = new HostProcess(ns, { env });
      const flanneld = (nat: readonly string[], filter: readonly string[]): void =>
        tables.restore(
          `*nat\n:FLANNEL-POSTRTG - [0:0]\n${nat.join('\n')}\nCOMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n${filter.join('\n')}\nCOMMIT\n`,
        );
      flanneld(MASQ4, FORWARD4);
      tables.iptables('-Z FLANNEL-FWD');
      const before = ns.runSync('nft', '-a', 'list', 'ruleset');
      await host.start();
      t.same([tables.rules('nat'), tables.rules('filter')], [MASQ4, FORWARD4], 'the same are kept');
      if (name === 'nf_tables') t.equal(ns.runSync('nft', '-a', 'list', 'ruleset'), before, 'and not touched');

      tables.restore('*nat\n-F POSTROUTING\nCOMMIT\n*filter\n-F FORWARD\nCOMMIT\n');
      flanneld(masq('10.5.0.0/16', '10.5.77.0/24', '224.0.0.0/4', ''), forward('10.4.0.0/16'));
      await host.start();
      t.same([tables.rules('nat'), tables.rules('filter')], [MASQ4, FORWARD4], 'another subnet and network');

      // flannel before 0.20 had its rules in the built-in chains.
      tables.restore(
        '*nat\n-A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN\nCOMMIT\n*filter\n-A FORWARD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT\nCOMMIT\n',
      );
      await host.start();
      t.same([tables.rules('nat'), tables.rules('filter')], [MASQ4, FORWARD4], 'an old flannel');

      await host.start({ subnets: ['10.5.3.0/24'] });
      t.same(tables.rules('nat'), masq('10.5.0.0/16', '10.5.3.0/24', '224.0.0.0/4'), 'a second start, another subnet');
      await host.start({ nftables: true });
      t.same([tables.rules('nat'), tables.rules('filter')], [[], []], 'nft instead');
      t.match(ns.runSync('nft', 'list', 'table', 'ip', 'flannel-ipv4'), /10\.5\.1\.0\/24/);
      await host.start();
      t.same([tables.rules('nat'), tables.rules('filter')], [MASQ4, FORWARD4], 'and back');
      t.notMatch(ns.runSync('nft', 'list', 'table', 'ip', 'flannel-ipv4'), /10\.5\./);
      host.kill();
    });

    t.test('a hundred looks', async (t) => {
      const ns = fresh();
      const host = new HostProcess(ns, { env });
      await host.start(BOTH);
      const before = ns.runSync('nft', '-a', 'list', 'ruleset');
      const answer = await host.look(100);
      t.same(answer.logged, []);
      t.equal(ns.runSync('nft', '-a', 'list', 'ruleset'), before, 'not one rule was touched');
      t.comment(`CPU of a look at both families: ${((answer.cpuMs ?? 0) / 100).toFixed(1)} ms`);
      const tables = tablesOf(ns, name);
      t.same([tables.rules('nat'), tables.rules('filter')], [MASQ4, FORWARD4]);
      host.kill();
    });

    t.test('others change the same tables meanwhile', async (t) => {
      const ns = fresh();
      const tables = tablesOf(ns, name);
      const host = new HostProcess(ns, { env });
      await host.start();
      const iptables = join(name === 'legacy' ? legacy : '/usr/sbin', 'iptables');
      const churn = ns.start(
        'churn',
        'sh',
        [
          '-c',
          `while :; do ${iptables} -w -t nat -D FLANNEL-POSTRTG 2; ${iptables} -w -A FORWARD -i lo -j ACCEPT; ${iptables} -w -D FORWARD -i lo -j ACCEPT; done`,
        ],
        { env: { ...process.env, ...env } },
      );
      await host.look(25);
      await churn.stop();
      const { logged } = await host.look();
      t.notMatch(logged, [{ event: 'host_rules_failed' }]);
      t.same(tables.rules('nat'), MASQ4);
      t.same(
        tables.rules('filter').filter((rule) => rule.includes('flanneld')),
        FORWARD4,
      );
      host.kill();
    });

    t.test('packets', async (t) => {
      const [client, host, outside] = [fresh(), fresh(), fresh()];
      lab.veth(host, 'lan0', client, 'eth0');
      lab.veth(host, 'eth0', outside, 'eth0');
      host.ip('addr add 10.5.1.1/24 dev lan0', 'addr add 192.168.77.1/24 dev eth0');
      host.ip('addr add fd00:5:0:1::1/64 dev lan0 nodad', 'addr add fd77::1/64 dev eth0 nodad');
      host.sysctl({ 'net/ipv4/ip_forward': 1, 'net/ipv6/conf/all/forwarding': 1 });
      client.ip('addr add 10.5.1.2/24 dev eth0', 'route add default via 10.5.1.1');
      client.ip('addr add fd00:5:0:1::2/64 dev eth0 nodad', 'route add default via fd00:5:0:1::1');
      outside.ip('addr add 192.168.77.2/24 dev eth0', 'addr add fd77::2/64 dev eth0 nodad');
      // Another host of the overlay: it knows the way to our subnet, and its own client is 10.5.2.2.
      outside.ip('addr add 10.5.2.2/32 dev lo', 'route add 10.5.1.0/24 via 192.168.77.1 src 10.5.2.2');
      host.ip('route add 10.5.2.0/24 via 192.168.77.2');
      const tables = tablesOf(host, name);
      tables.iptables('-P FORWARD DROP');
      tables.iptables('-P FORWARD DROP', 6);
      const seen = tablesOf(outside, 'nf_tables');
      seen.iptables('-A INPUT -p icmp -s 192.168.77.1 -j ACCEPT');
      seen.iptables('-A INPUT -p icmp -s 10.5.1.2 -j ACCEPT');
      seen.iptables('-A INPUT -p icmp -s 10.5.2.2 -j ACCEPT');
      const counts = (): string[] =>
        outside
          .runSync('/usr/sbin/iptables-save', '-t', 'filter', '-c')
          .split('\n')
          .flatMap((line) => /^\[(\d+):/.exec(line)?.[1] ?? []);

      t.equal(await answersPing(client, '192.168.77.2', 1000), false, 'nothing is forwarded without the rules');
      const rules = new HostProcess(host, { env });
      await rules.start(BOTH);
      seen.iptables('-Z');
      t.ok(await answersPing(client, '192.168.77.2'), 'forwarded');
      t.same(counts(), ['1', '0', '0'], "and masqueraded: it came from the host's address");
      t.ok(await answersPing(client, '10.5.2.2'), 'inside the overlay');
      t.same(counts(), ['1', '1', '0'], "with the client's own address");
      t.ok(await answersPing(host, '10.5.2.2'), 'from the host itself into the overlay');
      t.same(counts(), ['2', '1', '0'], 'masqueraded');
      t.ok(await answersPing(outside, '10.5.1.2'), 'from another host to our client');
      t.ok(await answersPing(client, 'fd77::2'), 'IPv6, to where nobody knows the way back');
      rules.kill();
    });
  });
}

t.test('by itself, at every resync', async (t) => {
  const ns = fresh();
  const tables = tablesOf(ns, 'nf_tables');
  const host = new HostProcess(ns);
  await host.start({ resync: 1 });
  for (let round = 0; round < 2; round++) {
    tables.restore('*nat\n-F\nCOMMIT\n');
    for (let i = 0; i < 100 && tables.rules('nat').length < MASQ4.length; i++) await sleep(100);
    t.same(tables.rules('nat'), MASQ4);
  }
  host.kill();
});

/** A folder with stand-ins that note their calls, and fail while a file `broken` is there. */
function standIns(folder: string, version = ''): string {
  const path = join(lab.dir, folder);
  mkdirSync(path);
  for (const name of ['iptables-save', 'iptables-restore', 'ip6tables-save', 'ip6tables-restore', 'nft']) {
    const file = join(path, name);
    writeFileSync(
      file,
      [
        '#!/bin/sh',
        `echo "${name} $*" >>${path}/calls`,
        `[ -e ${path}/broken ] && { echo "${name} v1.8.9 (nf_tables): it is broken" >&2; exit 4; }`,
        ...(version ? [`[ "$1" = --version ] && { echo "${name} ${version}"; exit 0; }`] : []),
        `exec /usr/sbin/${name} "$@"`,
      ].join('\n'),
    );
    chmodSync(file, 0o755);
  }
  return path;
}

t.test('a failure is said when it begins and when it ends', async (t) => {
  const path = standIns('breaks');
  const host = new HostProcess(fresh(), { env: { PATH: `${path}:${process.env.PATH}` } });
  await host.start();
  writeFileSync(join(path, 'broken'), '');
  const { logged } = await host.look(5);
  t.match(logged, [
    {
      level: 'error',
      event: 'host_rules_failed',
      what: 'iptables rules',
      reason: 'cannot set iptables rules: it is broken',
    },
  ]);
  t.equal(logged.length, 1);
  rmSync(join(path, 'broken'));
  t.same(events(await host.look(3)), ['host_rules_kept_again']);
  host.kill();
});

t.test('a stop waits for a look', async (t) => {
  const ns = fresh();
  const tables = tablesOf(ns, 'nf_tables');
  const host = new HostProcess(ns);
  await host.start();
  tables.restore('*nat\n-F\nCOMMIT\n');
  t.match(await host.stop(), { looked: true, logged: [{ event: 'host_rules_repaired' }] });
  t.same(tables.rules('nat'), MASQ4, 'the rules remain');
  t.same(await host.look(), { ...(await host.look()), logged: [] }, 'no more of them');
  host.kill();
});

t.test('processes of a look', async (t) => {
  const path = standIns('counts');
  const host = new HostProcess(fresh(), { env: { PATH: `${path}:${process.env.PATH}` } });
  const calls = (): string[] => {
    const lines = readFileSync(join(path, 'calls'), 'utf8').trim().split(/ *\n/);
    rmSync(join(path, 'calls'));
    return lines;
  };
  await host.start(BOTH);
  t.same(
    calls().filter((call) => call.includes('--noflush')),
    ['iptables-restore --noflush --wait 5', 'ip6tables-restore --noflush --wait 5'],
    'each family is set by one, which waits for a lock for so long',
  );
  await host.look();
  t.same(calls(), ['iptables-save', 'ip6tables-save'], 'one a family reads');
  await host.start({ ...BOTH, nftables: true });
  calls();
  await host.look();
  t.same(calls(), ['nft -j list table ip flannel-ipv4', 'nft -j list table ip6 flannel-ipv6']);
  host.kill();
});

t.test('a table that iptables-save does not show', async (t) => {
  const path = standIns('hides');
  const host = new HostProcess(fresh(), { env: { PATH: `${path}:${process.env.PATH}` } });
  await host.start();
  writeFileSync(join(path, 'iptables-save'), "#!/bin/sh\necho \"# Table \\`nat' is incompatible, use 'nft' tool.\"\n");
  rmSync(join(path, 'calls'));
  const reason = /^cannot set iptables rules: nft has rules in table nat that iptables cannot show: keep/;
  t.match(await host.look(3), { logged: [{ event: 'host_rules_failed', reason }] });
  t.notOk(existsSync(join(path, 'calls')), 'nothing is set again and again');
  host.kill();
});

t.test('an iptables of before --random-fully', async (t) => {
  const path = standIns('old', 'v1.6.1');
  const ns = fresh();
  const host = new HostProcess(ns, { env: { PATH: `${path}:${process.env.PATH}` } });
  await host.start();
  t.same(
    tablesOf(ns, 'nf_tables').rules('nat'),
    masq('10.5.0.0/16', '10.5.1.0/24', '224.0.0.0/4', ''),
    'does without it',
  );
  t.notMatch(readFileSync(join(path, 'calls'), 'utf8'), /--wait/);
  host.kill();
});

if (legacyWorks) {
  t.test("legacy's lock", async (t) => {
    const ns = fresh();
    const { env } = VARIANTS[1];
    const tables = tablesOf(ns, 'legacy');
    const host = new HostProcess(ns, { env });
    await host.start();
    const hold = (seconds: number): ReturnType<Namespace['start']> =>
      ns.start('lock', 'flock', [env.XTABLES_LOCKFILE ?? '', 'sh', '-c', `echo held; sleep ${seconds}`]);
    tables.iptables('-D FLANNEL-FWD 1');
    const shortly = hold(2);
    await shortly.ready('held');
    t.same(events(await host.look()), ['host_rules_repaired'], 'is waited for');
    t.same(tables.rules('filter'), FORWARD4);
    await shortly.stop();
    tables.iptables('-D FLANNEL-FWD 1');
    const long = hold(60);
    await sleep(200);
    t.match(
      await host.look(),
      { logged: [{ event: 'host_rules_failed', reason: /cannot set iptables rules: .*xtables lock/ }] },
      'but not for ever',
    );
    await long.stop('SIGKILL');
    host.kill();
  });
} else t.comment('legacy iptables does not work here: left out');

const nftOf = (ns: Namespace, family: 4 | 6 = 4): string =>
  ns.runSync('nft', 'list', 'table', family === 4 ? 'ip' : 'ip6', `flannel-ipv${family}`);

const nftText = (family: 4 | 6, net: string, sub: string, multicast: string, random = ' fully-random'): string => {
  const ip = family === 4 ? 'ip' : 'ip6';
  return `table ${ip} flannel-ipv${family} {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld masq"
		${ip} saddr ${sub} ${ip} daddr ${net} return comment "flanneld masq"
		${ip} saddr ${net} ${ip} daddr ${sub} return comment "flanneld masq"
		${ip} saddr != ${net} ${ip} daddr ${sub} return comment "flanneld masq"
		${ip} saddr ${net} ${ip} daddr != ${multicast} masquerade${random} comment "flanneld masq"
		${ip} saddr != ${net} ${ip} daddr ${net} masquerade${random} comment "flanneld masq"
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		${ip} saddr ${net} accept comment "flanneld forward"
		${ip} daddr ${net} accept comment "flanneld forward"
	}
}
`;
};
const NFT4 = nftText(4, '10.5.0.0/16', '10.5.1.0/24', '224.0.0.0/4');
const NFT6 = nftText(6, 'fd00:5::/48', 'fd00:5:0:1::/64', 'ff00::/8');

t.test('nft', async (t) => {
  const NFT = { ...BOTH, nftables: true };

  t.test('says the same', async (t) => {
    const ns = fresh();
    const host = new HostProcess(ns);
    t.match(await host.start(NFT), { error: undefined, logged: [] });
    t.equal(nftOf(ns), NFT4);
    t.equal(nftOf(ns, 6), NFT6);
    await host.start({ ...NFT, randomFully: false });
    t.equal(nftOf(ns), nftText(4, '10.5.0.0/16', '10.5.1.0/24', '224.0.0.0/4', ''));
    await host.start({ nftables: true, forward: false, subnets: ['10.5.8.0/24'] });
    t.notMatch(nftOf(ns), /forward|10\.5\.1\.0/, 'another subnet, and not forwarded');
    t.notMatch(nftOf(ns, 6), /fd00/, 'no IPv6');
    await host.start({ nftables: true, networks: ['10.5.1.8/29'], subnets: ['10.5.1.9/32'] });
    t.match(nftOf(ns), /ip saddr 10\.5\.1\.9 ip daddr 10\.5\.1\.8\/29 return/, 'a subnet of one address');
    t.same(events(await host.look()), [], 'is known again');
    host.kill();
    t.match(nftOf(ns), /10\.5\.1\.9/, 'they remain');
  });

  t.test('comes back', async (t) => {
    const ns = fresh();
    const host = new HostProcess(ns);
    await host.start(NFT);
    const first = (chain: string): string =>
      /accept comment.* # handle (\d+)/.exec(
        ns.runSync('nft', '-a', 'list', 'chain', 'ip', 'flannel-ipv4', chain),
      )?.[1] ?? '';
    const nft = (text: string): string => ns.runSync('nft', ...text.split(' '));
    const damages: readonly [string, () => unknown][] = [
      ['a rule is deleted', () => nft(`delete rule ip flannel-ipv4 forward handle ${first('forward')}`)],
      ['a chain is flushed', () => nft('flush chain ip flannel-ipv4 postrtg')],
      ['the table is gone', () => nft('delete table ip flannel-ipv4')],
      ['all is flushed', () => nft('flush ruleset')],
      [
        'a rule is doubled',
        () =>
          ns.runSync(
            'nft',
            'insert rule ip flannel-ipv4 forward ip daddr 10.5.0.0/16 accept comment "flanneld forward"',
          ),
      ],
      ['the policy is drop', () => nft('chain ip flannel-ipv4 forward { policy drop ; }')],
      [
        'a chain hooks in nowhere',
        () =>
          ns.runSync(
            'sh',
            '-c',
            'nft flush chain ip flannel-ipv4 postrtg; nft delete chain ip flannel-ipv4 postrtg; nft add chain ip flannel-ipv4 postrtg',
          ),
      ],
    ];
    for (const [what, damage] of damages) {
      damage();
      t.match(await host.look(), { logged: [{ level: 'info', event: 'host_rules_repaired' }] }, what);
      t.same(chainsOf(nftOf(ns)), chainsOf(NFT4), what);
      t.same(chainsOf(nftOf(ns, 6)), chainsOf(NFT6), `${what}: IPv6`);
      t.same(events(await host.look()), [], `${what}: once`);
    }
    host.kill();
  });

  t.test('leaves alone what is not ours, and takes over what flanneld left', async (t) => {
    const ns = fresh();
    const host = new HostProcess(ns);
    ns.runSync(
      'sh',
      '-c',
      `nft -f - <<'.'
table ip other {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.5.0.0/16 accept comment "flanneld masq"
	}
}
table ip flannel-ipv4 {
	chain own { ip saddr 10.5.0.0/16 accept; }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.5.0.0/16 accept
		ip daddr 10.5.0.0/16 accept
		tcp dport 22 drop
		ip saddr 10.5.0.0/16 accept comment "an operator's"
	}
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark 0x00004000 return
		ip saddr 10.5.7.0/24 ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr 10.5.7.0/24 return
		ip saddr != 10.5.7.0/24 ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
	}
}
.`,
    );
    const other = ns.runSync('nft', '-a', 'list', 'table', 'ip', 'other');
    await host.start({ nftables: true });
    t.equal(ns.runSync('nft', '-a', 'list', 'table', 'ip', 'other'), other);
    const { own, forward: forwarded, postrtg } = Object.fromEntries(chainsOf(nftOf(ns)));
    t.same(own, ['ip saddr 10.5.0.0/16 accept']);
    t.same(forwarded.slice(1), [
      'tcp dport 22 drop',
      'ip saddr 10.5.0.0/16 accept comment "an operator\'s"',
      'ip saddr 10.5.0.0/16 accept comment "flanneld forward"',
      'ip daddr 10.5.0.0/16 accept comment "flanneld forward"',
    ]);
    t.same(postrtg, Object.fromEntries(chainsOf(NFT4)).postrtg);
    const before = ns.runSync('nft', '-a', 'list', 'ruleset');
    t.same(events(await host.look(2)), []);
    ns.runSync('nft', 'flush', 'chain', 'ip', 'flannel-ipv4', 'postrtg');
    await host.look();
    t.same(chainsOf(ns.runSync('nft', 'list', 'ruleset')), chainsOf(before.replace(/ # handle \d+/g, '')));
    host.kill();
  });

  t.test('a hundred looks', async (t) => {
    const ns = fresh();
    const host = new HostProcess(ns);
    await host.start(NFT);
    const before = ns.runSync('nft', '-a', 'list', 'ruleset');
    const answer = await host.look(100);
    t.same(answer.logged, []);
    t.equal(ns.runSync('nft', '-a', 'list', 'ruleset'), before, 'not one rule was touched');
    t.comment(`CPU of a look at both families: ${((answer.cpuMs ?? 0) / 100).toFixed(1)} ms`);
    host.kill();
  });

  t.test('packets', async (t) => {
    const [client, host, outside] = [fresh(), fresh(), fresh()];
    lab.veth(host, 'lan0', client, 'eth0');
    lab.veth(host, 'eth0', outside, 'eth0');
    host.ip('addr add 10.5.1.1/24 dev lan0', 'addr add 192.168.77.1/24 dev eth0');
    host.sysctl({ 'net/ipv4/ip_forward': 1 });
    client.ip('addr add 10.5.1.2/24 dev eth0', 'route add default via 10.5.1.1');
    outside.ip('addr add 192.168.77.2/24 dev eth0');
    t.equal(await answersPing(client, '192.168.77.2', 1000), false, 'no answer finds its way back');
    const rules = new HostProcess(host);
    await rules.start({ nftables: true });
    t.ok(await answersPing(client, '192.168.77.2'), 'masqueraded');
    rules.kill();
  });
});

/** Name and lines of each chain, in the order of their names. */
const chainsOf = (listed: string): [string, string[]][] =>
  [...listed.matchAll(/^\tchain (\S+) \{[^\n]*\n(.*?)^\t\}/gms)]
    .map((found): [string, string[]] => [
      found[1],
      found[2]
        .split('\n')
        .map((line) => line.trim())
        .filter(Boolean),
    ])
    .sort(([a], [b]) => a.localeCompare(b));

t.test('programs that are missing', async (t) => {
  const without = (...names: string[]): string[] => [
    'unshare',
    '--mount',
    'sh',
    '-c',
    `for n in ${names.join(' ')}; do for d in /usr/sbin /sbin /usr/bin /bin; do [ -e $d/$n ] && mount --bind /dev/null $d/$n; done; done; exec "$@"`,
    'sh',
  ];
  const ns = fresh();
  const bare = new HostProcess(ns, { before: without('iptables-save', 'iptables-restore') });
  t.match(await bare.start(), {
    code: 'NO_IPTABLES',
    error:
      /^the iptables-restore command cannot be run \(E[A-Z]+\): install iptables, or start without --ip-masq[^\n]*$/,
  });
  t.match(await bare.start({ ipMasq: false, forward: false }), { error: undefined }, 'nobody needs it then');
  t.match(await bare.start({ nftables: true }), { error: undefined }, 'nor with nft');
  bare.kill();
  const noNft = new HostProcess(ns, { before: without('nft') });
  t.match(await noNft.start({ nftables: true }), {
    code: 'NO_NFT',
    error:
      /^the nft command cannot be run \(E[A-Z]+\): install nftables, or leave EnableNFTables out of the network config$/,
  });
  t.match(await noNft.start(), { error: undefined }, 'iptables needs no nft');
  noNft.kill();
  const powerless = new HostProcess(ns, { before: ['setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin'] });
  const powerlessStart = await powerless.start();
  t.match(powerlessStart, {
    code: 'IPTABLES_FAILED',
    error: /^cannot set iptables rules: [^\n]*permitted|denied[^\n]*$/i,
  });
  powerless.kill();
});

t.test('blackhole routes', async (t) => {
  const ns = fresh();
  const BLACKHOLE = { ...BOTH, ipMasq: false, forward: false, blackhole: true };
  const routes = (family: 4 | 6 = 4): string[] =>
    ns
      .runSync('ip', `-${family}`, 'route', 'show', 'type', 'blackhole')
      .trim()
      .split('\n')
      .filter(Boolean)
      .map((line) => line.replace(/ (dev lo|pref medium)/g, '').trim());
  const OURS = ['blackhole 10.5.1.0/24 proto 87 metric 1000000'];
  const way = (address: string): string => {
    try {
      return / dev (\S+)/.exec(ns.runSync('ip', 'route', 'get', address))?.[1] ?? 'nowhere';
    } catch {
      return 'nowhere';
    }
  };
  ns.ip('link add uplink type bridge', 'addr add 192.168.77.1/24 dev uplink', 'link set uplink up');
  ns.ip('route add default via 192.168.77.254');
  ns.ip('route add blackhole 10.77.0.0/16', 'route add blackhole 10.5.9.0/24 metric 7');
  const operators = ['blackhole 10.5.9.0/24 metric 7', 'blackhole 10.77.0.0/16'];
  t.equal(way('10.5.1.77'), 'uplink', 'without one, out by the default route');

  const host = new HostProcess(ns);
  t.match(await host.start(BLACKHOLE), { error: undefined });
  t.same(routes(), [...OURS, ...operators]);
  t.same(routes(6), ['blackhole fd00:5:0:1::/64 proto 87 metric 1000000']);
  t.equal(way('10.5.1.77'), 'nowhere');
  t.equal(way('10.5.2.77'), 'uplink', 'not so the rest of the network');

  ns.ip('link add br0 type bridge', 'link set br0 up', 'addr add 10.5.1.1/24 dev br0');
  t.equal(way('10.5.1.77'), 'br0', 'a bridge that comes later wins');
  t.same(events(await host.look(2)), []);
  await host.start(BLACKHOLE);
  t.equal(way('10.5.1.77'), 'br0', 'and one that was there before');
  ns.ip('route del blackhole 10.5.1.0/24 metric 1000000');
  t.same(events(await host.look()), ['host_rules_repaired']);
  t.same(routes(), [...OURS, ...operators]);

  ns.ip('route del blackhole 10.5.1.0/24 metric 1000000', 'link del br0', 'route add blackhole 10.5.1.0/24');
  await host.start(BLACKHOLE);
  t.same(routes(), [...OURS, ...operators], "flanneld's is replaced");

  await host.start({ ...BLACKHOLE, subnets: ['10.5.2.0/24'] });
  t.same(routes(), ['blackhole 10.5.2.0/24 proto 87 metric 1000000', ...operators], 'another subnet');
  t.same(routes(6), [], 'and none of IPv6');
  await host.start({ ...BLACKHOLE, forward: true, blackhole: false });
  t.same(routes(), operators, 'not asked for any more');
  ns.ip('route add blackhole 10.5.1.0/24 metric 1000000 proto 87', 'route add blackhole default metric 9 proto 87');
  t.same(await host.start({ ...BLACKHOLE, blackhole: false }), { logged: [] });
  t.same(routes(), ['blackhole default proto 87 metric 9', ...operators], 'nothing is asked for');
  host.kill();
});
