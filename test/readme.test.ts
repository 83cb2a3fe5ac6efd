/**
 * Every command of README.md is run, here or by another test, in its shortest form where it is long. A command that is in README
 * and not in the table below fails, and so does one that is in the table and no longer in README.
 *
 * To add a command: into `elsewhere`, if a test runs it already; else into `programs`, with the arguments that make it short and
 * with what it must print; or into a scenario of hosts at the end.
 */
import { spawn } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { answersPing, type Finished, type Host, Lab, makeHosts, twoHosts } from '../race/hosts.js';
import { OPTIONS } from '../src/config.js';
import { PYTHON } from './hosts/lib/agents.js';
import { settle, until } from './hosts/lib/embedded.js';
import { http, linkOf, networkConfig, udpNode } from './hosts/lib/flannel.js';
import { type Folders, Reader } from './hosts/lib/readme.js';
import { type Assertions, FULL, impossible, type Weft } from './hosts/lib/weft.js';
import { Etcd, etcdMissing } from './lib/etcd.js';
import { commandsOf, compareCommands, normal } from './lib/readme-commands.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
const read = (file: string): string => readFileSync(join(root, file), 'utf8');
const README = read('README.md');
const whyNoHosts = impossible('iperf3', 'ethtool');
t.setTimeout(0);

// --- the table ---

/** Run by test/hosts/compose.test.ts, which has them as they are. */
const COMPOSE = [
  'docker compose up -d --build',
  'docker compose exec client-a ping -c 3 10.5.2.2',
  'docker compose exec node-a weft status',
  'docker compose --profile observe up -d',
  'docker compose --profile bench run --rm bench',
  'docker compose --profile observe --profile bench down --volumes',
  'WEFT_BACKEND=vxlan docker compose up -d',
];

/** Run by another test, or by .ci/run: the file has each of these texts, in whatever quotes. */
const elsewhere: Readonly<Record<string, { readonly file: string; readonly has: readonly string[] }>> = {
  'npm install && npm test': { file: '.ci/run', has: ['npm ci', 'npm test'] },
  // By test:full with these figures' times, by npm test with short ones.
  'sudo WEFT_TEST_FULL=1 node dist/test/hosts/etcd-udp.test.js | grep idle': {
    file: 'test/hosts/etcd-udp.test.ts',
    has: ['idleCost('],
  },
  'sudo WEFT_TEST_FULL=1 node dist/test/hosts/etcd-outage.test.js': {
    file: 'test/hosts/etcd-outage.test.ts',
    has: ['FULL ?'],
  },
  ...Object.fromEntries(COMPOSE.map((command) => [command, { file: 'test/hosts/compose.test.ts', has: [command] }])),
};

interface Program {
  /** The command as it is run here: with more arguments, or with other ones. */
  readonly short?: (command: string) => string;
  /** The same where time is no matter; default: `short`. */
  readonly full?: (command: string) => string;
  /** What it prints. */
  readonly shows: readonly RegExp[];
  /** By root, in namespaces. */
  readonly hosts?: true;
  /** In a copy of the checkout, since it writes; and what has to be in that copy afterwards. */
  readonly leaves?: (t: Assertions, copy: string) => void;
}

const add =
  (words: string) =>
  (command: string): string =>
    `${command}${/ -- |^node/.test(command) ? '' : ' --'} ${words}`;
/** A race of one round and one second, of other measures where its own take minutes. */
const race =
  (measures?: string) =>
  (command: string): string => {
    const once = command.replace(/--rounds \d+/, '--rounds 1').replace(/ --seconds \d+|$/, ' --seconds 1');
    return measures === undefined ? once : once.replace(/--measures \S+/, `--measures ${measures}`);
  };
/** Rows of the race's table, with a figure in each. */
const rows = (...names: readonly string[]): RegExp[] => names.map((name) => new RegExp(`^\\W*${name}\\b.*\\d`, 'm'));

/** The races that the published table and chart come from: `--publish` writes them there. */
const published = commandsOf(/<!-- race: begin -->(.*)<!-- race: end -->/s.exec(README)?.[1] ?? '')
  .map(({ text }) => text)
  .filter((text) => /^sudo npm run race -- --subjects \S+ --measures \S+ --rounds \d+( --seconds \S+)?$/.test(text));

/** Commands that run by themselves in a checkout. */
const programs: Readonly<Record<string, Program>> = {
  ...Object.fromEntries(
    published.map((command) => [
      command,
      { short: race('ping'), full: race(), shows: rows('ping'), hosts: true } satisfies Program,
    ]),
  ),
  'npm install && sudo npm run demo': {
    short: (command) => add('--seconds 1')(command.replace('npm install && ', '')),
    shows: [
      /ping \S+ +\d+ of 10 answered/,
      /^ +Weft .* Gbit\/s/m,
      /^ +kernel VXLAN .* Gbit\/s/m,
      /kill -9/,
      /answered again/,
    ],
    hosts: true,
  },
  'sudo npm run demo -- --mode l2': {
    short: add('--seconds 1'),
    shows: [/each with a bridge and two clients/, /a2 moves from host a to host b/, /^ +Weft .* Gbit\/s/m],
    hosts: true,
  },
  'node dist/src/main.js': { short: (command) => `${command} --version`, shows: [/^\d+\.\d+\.\d+$/m] },
  'node dist/src/cli.js': {
    short: (command) => `${command} --help`,
    shows: [/^Usage: weft /, /\binit\b/, /\bdocker-opts\b/],
  },
  'weftd --help': {
    short: (command) => command.replace('weftd', 'node dist/src/main.js'),
    shows: Object.values(OPTIONS).map(({ flag }) => new RegExp(`--${flag}\\b`)),
  },
  'sudo npm run race -- --publish': {
    short: add('--subjects kernel-vxlan,weft-udp --measures rr,cpu,ping --rounds 1 --seconds 1'),
    shows: rows('rr', 'cpu', 'ping'),
    hosts: true,
    leaves: (t, copy) => {
      const readme = readFileSync(join(copy, 'README.md'), 'utf8');
      t.match(readme, /<!-- race: begin -->.*--measures rr,cpu,ping --rounds 1.*<!-- race: end -->/s, 'table');
      t.match(readFileSync(join(copy, 'docs/race.svg'), 'utf8'), /^<svg.*<\/svg>\s*$/s, 'chart');
      const kept = readdirSync(join(copy, 'race/results')).filter((name) => name.endsWith('.json'));
      t.equal(kept.length, 1, 'results');
    },
  },
  'sudo npm run race -- --subjects weft-udp,kernel-vxlan --measures imix --rounds 4': {
    short: race('ping'),
    full: race(),
    shows: rows(FULL ? 'imix' : 'ping'),
    hosts: true,
  },
  'sudo npm run race -- --subjects weft-udp,capture-all,capture-drops --measures bulk,pps64,rr,ping,cpu --rounds 3 --seconds 2':
    { short: race('ping'), full: race(), shows: rows('ping'), hosts: true },
  'sudo npm run race -- --subjects kernel-vxlan,weft-vxlan,weft-to-kernel,kernel-to-weft --measures bulk,rr --rounds 7 --seconds 2':
    {
      short: race('rr'),
      full: race(),
      shows: rows('rr'),
      hosts: true,
    },
  'npm run bench': {
    short: add("--only '64 B, 64 to a message' --rounds 1"),
    shows: [/^walk: inbound 64 B, 64 to a message .* M\/s/m, /^switch: inbound 64 B, 64 to a message .* M\/s/m],
  },
  'npm run bench:registry': {
    short: add('--leases 200'),
    full: (command) => command,
    shows: [
      /^start-up: .* ms/m,
      /^memory for it .* MB/m,
      /^polling, nothing changes .* % of a core/m,
      /^taking one lease.* ms/m,
    ],
  },
};

// --- hosts ---

interface Scenario {
  readonly name: string;
  /** As README has them; `run` gets them in this order. */
  readonly commands: readonly string[];
  /** Other programs than those of all scenarios. */
  readonly needs?: readonly string[];
  run(t: Assertions, lab: Lab, commands: readonly string[]): Promise<void>;
}

const text = (command: string): string => command.replace(/^[a-z]# /, '');
const stopAll = (wefts: readonly Weft[]): Promise<unknown> => Promise.all(wefts.map((weft) => weft.stop()));

/** Two hosts of one machine: each with the subnet that its subnet.env says, and answering. */
async function reach(t: Assertions, hosts: readonly Host[], machine: Folders, message: string): Promise<void> {
  const [a, b] = hosts.map((host) => {
    t.match(linkOf(host.ns, 'flannel0'), { type: 'tun', up: true }, `${message}: ${host.letter} has flannel0`);
    return settle(host, join(machine.varLib, 'weft', host.underlay4, 'subnet.env'));
  });
  t.ok(a.subnet4 !== b.subnet4, `${message}: ${a.subnet4} and ${b.subnet4}`);
  t.ok(await answersPing(a.client, b.client4), `${message}: packets flow`);
}

/** The lines of README that follow this one, while they are indented. */
function blockAfter(line: string): string {
  const lines = README.split('\n');
  const from = lines.findIndex((one) => one.trim() === line) + 1;
  const to = lines.findIndex((one, i) => i > from && !/^ {4}/.test(one));
  return lines.slice(from, to).join('\n');
}

const scenarios: readonly Scenario[] = [
  {
    name: 'two hosts, nothing to prepare',
    commands: [
      'a# weftd --network 10.5.0.0/16 --iface eth0',
      'b# weftd --iface eth0',
      'weft init --network 10.5.0.0/16',
      'weft init',
    ],
    async run(t, lab, [first, second, init]) {
      const reader = new Reader(lab);
      const [a, b] = twoHosts(lab);
      const folders = (host: Host, machine: string): Folders => reader.folders(host, machine);
      let wefts = [
        await reader.start(a, folders(a, 'one'), text(first)),
        await reader.start(b, folders(b, 'one'), text(second)),
      ];
      await reach(t, [a, b], folders(a, 'one'), 'the first names the network');
      await stopAll(wefts);

      const made = await reader.run(a, folders(a, 'two'), init);
      t.equal(made.code, 0, `${init}: ${made.stdout}${made.stderr}`);
      wefts = [
        await reader.start(a, folders(a, 'two'), text(second)),
        await reader.start(b, folders(b, 'two'), text(second)),
      ];
      await reach(t, [a, b], folders(a, 'two'), 'the registry was made before');

      // "made anew by `weft init`, the daemons join it by themselves"
      const registry = join(folders(a, 'two').varLib, 'weft/registry');
      renameSync(registry, `${registry}.away`);
      const ready = async (): Promise<string> => (await http(a.ns, 9469, '/readyz')).body;
      t.ok(await until(async () => /stale since/.test(await ready())), 'stale since the registry is away');
      t.equal((await reader.run(a, folders(a, 'two'), init)).code, 0, 'made anew');
      t.ok(await until(async () => (await ready()) === 'flanneld is ready', 20_000), 'and joined');
      await stopAll(wefts);
    },
  },
  {
    name: 'several machines, with a peers file',
    commands: [
      'a# weftd --network 10.5.0.0/16 --subnet 10.5.1.0/24 --iface eth0 --peers /etc/weft/peers.json',
      'b# weftd --network 10.5.0.0/16 --subnet 10.5.2.0/24 --iface eth0 --peers /etc/weft/peers.json',
      'curl -s http://127.0.0.1:9469/metrics',
      'a# weft status',
      'a# weft explain 10.5.2.7',
      'a# weft ping b',
      'a# weft capture --verdict drop --seconds 10',
      'a# weft capture -w trouble.pcapng --seconds 10',
      'a# weft decode trouble.pcapng',
    ],
    needs: ['curl'],
    async run(t, lab, commands) {
      const reader = new Reader(lab);
      const hosts = twoHosts(lab);
      const [a] = hosts;
      const peers = join(lab.dir, 'peers.json');
      writeFileSync(peers, blockAfter('# /etc/weft/peers.json'));
      const wefts = await Promise.all(
        hosts.map((host, i) =>
          reader.start(host, reader.folders(host), text(commands[i]).replace('/etc/weft/peers.json', peers)),
        ),
      );
      t.ok(await answersPing(hosts[0].client, hosts[1].client4), 'packets flow');
      const { stdout } = await reader.run(hosts[0], reader.folders(hosts[0]), commands[2]);
      t.match(stdout, /^weft_packets_total\{direction="outbound",.*\} [1-9]/m, commands[2]);
      t.match(stdout, /^weft_build_info\{/m, 'and what it is');

      const [status, explain, ping, drops, write, decode] = commands.slice(3).map(text);
      const weft = async (line: string): Promise<string> => {
        const { code, stdout, stderr } = await reader.run(a, reader.folders(a), `cd ${lab.dir}; ${line}`);
        t.equal(code, 0, `${line}: ${stderr}`);
        return stdout;
      };
      t.match(await weft(status), /all is well\n +mode +layer 3, udp\n +device +flannel0, up/);
      t.match(
        await weft(explain),
        /10\.5\.2\.7 is in 10\.5\.2\.0\/24, peer b's.*sent to peer b, 1 datagram of 84 bytes/s,
      );
      t.match(await weft(ping), /all well: b answers through the tunnel/);
      // To a host that there is not, until one of them is in the capture.
      const pings = 'for i in 1 2 3; do sleep 0.5; ping -c 1 -W 1 10.5.9.9 >/dev/null; done &';
      t.match(
        await weft(`${pings} ${drops.replace('10', '3')} --text`),
        /10\.5\.9\.9 ICMP echo request.*dropped, no_route/,
      );
      await weft(`${pings} ${write.replace('10', '3')}`);
      t.match(await weft(decode), /10\.5\.9\.9 ICMP echo request.*dropped, no_route/);
      await stopAll(wefts);
    },
  },
  {
    name: 'in place of flanneld',
    commands: [
      'systemctl stop flanneld',
      'weftd --etcd-endpoints=http://10.0.0.5:2379 --iface=eth0 --ip-masq',
      'weft docker-opts && . /run/docker_opts.env && dockerd $DOCKER_OPTS',
      'weftd --registry etcd',
    ],
    needs: [PYTHON, 'iptables'],
    async run(t, lab, [stop, weftd, docker, local]) {
      const reader = new Reader(lab);
      const [a, b] = makeHosts(lab, { count: 2, join: 'bridge', clients: 'own' });
      const underlay = lab.namespaces.find(({ name }) => name.endsWith('-underlay'));
      if (!underlay) throw new Error('no underlay');
      underlay.ip('addr add 10.0.0.5/32 dev switch', 'route add 192.168.77.0/24 dev switch');
      for (const { ns } of [a, b]) ns.ip('route add 10.0.0.5/32 dev eth0');
      const etcd = await Etcd.start({ namespace: underlay.name, address: '10.0.0.5' });
      try {
        await etcd.put('/coreos.com/network/config', networkConfig());
        // Somebody who has flanneld's device and port, and who ends when the unit is stopped.
        const flanneld = await udpNode(a, { base: '10.5.1.0', address: a.underlay4, peers: {} });
        reader.program('systemctl', `[ "$*" = 'stop flanneld' ] && kill ${flanneld.child.pid}`);
        reader.program('dockerd', 'echo "dockerd $*"');
        t.equal((await reader.run(a, reader.folders(a), stop)).code, 0, stop);
        t.ok(await until(() => !flanneld.running), 'flanneld is gone');
        const wefts = [
          await reader.start(a, reader.folders(a), weftd),
          await reader.start(b, reader.folders(b), weftd),
        ];
        const [left, right] = [a, b].map((host) => settle(host, join(reader.folders(host).run, 'flannel/subnet.env')));
        t.ok(await answersPing(left.client, right.client4), 'packets flow');
        const engine = await reader.run(a, reader.folders(a), docker);
        t.equal(
          engine.stdout.trim(),
          `dockerd --bip=${left.subnet4.replace('.0/24', '.1/24')} --ip-masq=false --mtu=1472`,
          docker,
        );
        await stopAll(wefts);
      } finally {
        await etcd.close();
      }
      // An etcd on the host itself, and the default route to tell the interface by.
      const own = await Etcd.start({ namespace: a.ns.name, address: a.underlay4 });
      try {
        await own.put('/coreos.com/network/config', networkConfig());
        a.ns.ip('route add default via 192.168.77.254 dev eth0');
        const weft = await reader.start(a, reader.folders(a, 'local'), local);
        t.match(linkOf(a.ns, 'flannel0'), { up: true }, local);
        await weft.stop();
      } finally {
        await own.close();
      }
    },
  },
  {
    name: 'as a switch',
    commands: [
      'a# weftd --mode l2 --vni 42 --iface eth0 --bridge br0',
      'b# weftd --mode l2 --vni 42 --iface eth0 --bridge br0',
      'ip link del weft42',
    ],
    async run(t, lab, [first, second, del]) {
      const reader = new Reader(lab);
      const [a, b] = twoHosts(lab);
      for (const { ns, client, number } of [a, b]) {
        ns.ip('addr flush dev lan0', 'link add br0 type bridge', 'link set br0 up', 'link set lan0 master br0');
        client.ip(`addr add 10.7.0.${number}/24 dev eth0`);
      }
      const machine = (host: Host): Folders => reader.folders(host, 'one');
      const wefts = [await reader.start(a, machine(a), text(first)), await reader.start(b, machine(b), text(second))];
      const ports = a.ns.runSync('ip', '-o', 'link', 'show', 'master', 'br0');
      t.match(ports, /: weft42: /, 'weft42 is in the bridge');
      t.ok(await answersPing(a.client, '10.7.0.2'), 'what lives behind the bridges sees one switch');
      // "A TAP that a killed daemon left behind stays"
      await wefts[0].stop('SIGKILL');
      t.ok(linkOf(a.ns, 'weft42'), 'a killed daemon leaves weft42 behind');
      t.equal((await reader.run(a, machine(a), del)).code, 0, del);
      t.notOk(linkOf(a.ns, 'weft42'), 'gone');
      await wefts[1].stop();
    },
  },
  {
    name: 'a peer that is a kernel’s vxlan device',
    commands: ['ip link add vxlan0 type vxlan id 42 dstport 4789 remote 192.168.77.1'],
    async run(t, lab, [link]) {
      const reader = new Reader(lab);
      const [a, b] = twoHosts(lab);
      const peers = join(lab.dir, 'peers.json');
      const [file] = /\{"peers":\[\{[^`]*?"macs"[^`]*?\]\}\]\}/.exec(README) ?? [];
      if (!file) throw new Error('README has no peers file with MACs');
      writeFileSync(peers, file);
      const options = `--mode l2 --vni 42 --iface eth0 --address 10.7.0.1/24 --peers ${peers}`;
      const weft = await reader.start(a, reader.folders(a), `weftd ${options}`);
      t.equal((await reader.run(b, reader.folders(b), link)).code, 0, link);
      b.ns.ip('link set vxlan0 address 02:00:00:00:00:05 mtu 1450 up', 'addr add 10.7.0.5/24 dev vxlan0');
      t.ok(await answersPing(a.ns, '10.7.0.5'), 'Weft reaches the kernel');
      t.ok(await answersPing(b.ns, '10.7.0.1'), 'and the kernel Weft');
      await weft.stop();
    },
  },
];

const table = [...Object.keys(elsewhere), ...Object.keys(programs), ...scenarios.flatMap(({ commands }) => commands)];

// --- what is read ---

const MADE_UP = `# A text

    npm install && npm test     # two
    a# weftd --network 10.5.0.0/16 \\
         --iface eth0
    b$ no prompt of ours
    {"peers":[]}
    # /etc/weft/peers.json

<!-- \`npm run made\` -->
Run \`npm run race -- --rounds
7\`, or \`weftd\`, \`--mode l2\` and \`/metrics\`; \`sudo A=1 node x.js | grep y\`.
- an item
    that goes on: \`ip link del weft42\`

      # systemctl stop flanneld

\`\`\`sh
docker compose up -d  # in the background
echo not ours
\`\`\`
`;
const SAID = [
  'npm install && npm test',
  'a# weftd --network 10.5.0.0/16 --iface eth0',
  'npm run race -- --rounds 7',
  'sudo A=1 node x.js | grep y',
  'ip link del weft42',
  'systemctl stop flanneld',
  'docker compose up -d',
];

t.test('commands are found', async (t) => {
  t.same(
    commandsOf(MADE_UP).map(({ text, host, line }) => `${line}: ${host ? `${host}# ` : ''}${text}`),
    [3, 4, 11, 12, 14, 16, 19].map((line, i) => `${line}: ${SAID[i]}`),
  );
  t.same(commandsOf(''), []);
  t.same(commandsOf('`npm` and ``npm test``'), [], 'a name alone is none');
});

t.test('a command that changed is missing from the table, and the table has one too many', async (t) => {
  t.same(compareCommands('README.md', MADE_UP, SAID), { missing: [], stale: [] });
  for (const [before, after] of [
    ['--rounds\n7', '--rounds\n8'],
    ['a# weftd', 'b# weftd'],
    ['up -d', 'up'],
    ['ip link del', 'ip link delete'],
  ]) {
    const { missing, stale } = compareCommands('README.md', MADE_UP.replace(before, after), SAID);
    t.same([missing.length, stale.length], [1, 1], `${before} → ${after}: ${missing[0]}`);
  }
  t.match(compareCommands('README.md', `${MADE_UP}\n    npm start\n`, SAID).missing, [/^README\.md:\d+: npm start$/]);
});

t.test('README', async (t) => {
  const { missing, stale } = compareCommands('README.md', README, table);
  t.same(missing, [], 'every command of README is in the table of test/readme.test.ts');
  t.same(stale, [], 'and nothing else is');
  t.equal(new Set(table).size, table.length, 'once');
  const bare = (text: string): string => normal(text.replace(/['"`,[\]]/g, ' '));
  for (const [command, { file, has }] of Object.entries(elsewhere)) {
    const there = existsSync(join(root, file)) ? bare(read(file)) : '';
    for (const one of has) t.ok(there.includes(bare(one)), `${command}: ${file} has ${one}`);
  }
});

/** The texts beside README: what they name has to be there. */
t.test('other texts', async (t) => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
  const helps = new Map<string, Promise<Finished>>();
  const beside = ['CONTRIBUTING.md', 'race/README.md', 'native-free-bench/README.md', 'docs/operations.md'];
  for (const file of beside.filter((name) => existsSync(join(root, name)))) {
    for (const { text, line } of commandsOf(read(file))) {
      const where = `${file}:${line}: ${text}`;
      for (const [, script] of text.matchAll(/\bnpm run (?:-s )?([\w:-]+)/g)) {
        if (!t.ok(scripts[script], `${where}: npm has ${script}`)) continue;
        // Those three say what they take.
        if (!/^(race|demo|bench)$/.test(script)) continue;
        const help = helps.get(script) ?? shell(`npm run -s ${script} -- --help`);
        helps.set(script, help);
        const { stdout } = await help;
        for (const [option] of text.matchAll(/(?<= )--\w[\w-]*/g)) {
          t.match(stdout, new RegExp(`${option}\\b`), `${where}: ${script} --help has ${option}`);
        }
      }
      for (const [, program] of text.matchAll(/\bnode (dist\/\S+)\.js/g)) {
        t.ok(existsSync(join(root, `${program.replace('dist/', '')}.ts`)), `${where}: ${program}.ts is there`);
      }
    }
  }
});

// --- runs ---

/** Process groups that run; they end with this process, whatever happens. */
const running = new Set<number>();
function endAll(): void {
  for (const pid of running) {
    try {
      process.kill(-pid, 'SIGTERM');
    } catch {
      // It is gone already.
    }
  }
}
process.on('exit', endAll);
process.once('SIGTERM', () => {
  endAll();
  setTimeout(() => process.exit(143), 5000); // a lab that is open exits before
});

/** A copy of what programs read and write, in a folder of its own, which goes with this process. */
function copyCheckout(): string {
  const copy = mkdtempSync(join(tmpdir(), `weft-readme-${process.pid}-`));
  process.on('exit', () => rmSync(copy, { recursive: true, force: true }));
  for (const name of ['dist', 'README.md', 'package.json'])
    cpSync(join(root, name), join(copy, name), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  return copy;
}

/** Runs a line in the checkout; stdout has both outputs in their order. */
function shell(line: string, cwd = root): Promise<Finished> {
  return new Promise((resolve) => {
    const { WEFT_TEST_FULL, ...env } = process.env;
    const child = spawn('sh', ['-c', `${line} 2>&1`], {
      cwd,
      env,
      stdio: ['ignore', 'pipe', 'inherit'],
      detached: true,
    });
    const pid = Number(child.pid);
    running.add(pid);
    let stdout = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.on('close', (code) => {
      running.delete(pid);
      resolve({ code, stdout, stderr: '' });
    });
  });
}

/** The command as this machine runs it: we are root already. */
const runnable = (command: string, { short = (same) => same, full = short }: Program): string =>
  (FULL ? full : short)(command).replace(/\bsudo /g, '');

const able = Object.entries(programs).filter(([, program]) => !program.hosts || !whyNoHosts);

/**
 * Three at a time (the published races, the others, the rest), beside the hosts below: each of them waits most of its time. What
 * they print as figures is not looked at.
 */
const outcomes = new Map<string, Promise<Finished>>();
const copies = new Map<string, string>();
const lane = (command: string): number => (published.includes(command) ? 0 : /npm run race/.test(command) ? 1 : 2);
for (const one of [0, 1, 2]) {
  let before: Promise<unknown> = Promise.resolve();
  for (const [command, program] of able.filter(([name]) => lane(name) === one)) {
    if (program.leaves) copies.set(command, copyCheckout());
    const outcome = before.then(() => shell(runnable(command, program), copies.get(command)));
    outcomes.set(command, outcome);
    before = outcome;
  }
}

if (whyNoHosts) t.comment(`SKIPPED: README's hosts, demo and race: ${whyNoHosts}`);
else {
  for (const { name, commands, needs = [], run } of scenarios) {
    await t.test(name, async (t) => {
      const etcd = commands.some((command) => /etcd/.test(command));
      const why = (etcd ? etcdMissing() : undefined) ?? impossible(...needs);
      if (why) return void t.comment(`SKIPPED: ${why}`);
      const lab = new Lab('ht-readme');
      t.teardown(() => lab.close());
      await run(t, lab, commands);
    });
  }
}

await t.test('commands that run by themselves', async (t) => {
  for (const [command, program] of able) {
    const line = runnable(command, program);
    const begun = performance.now();
    const { code, stdout } = (await outcomes.get(command)) ?? { code: -1, stdout: '' };
    t.comment(`${line}: waited ${((performance.now() - begun) / 1000).toFixed(1)} s`);
    t.equal(code, 0, `${line}${code === 0 ? '' : `: ${stdout.trim().split('\n').at(-1)}`}`);
    const lacks = program.shows.filter((one) => !one.test(stdout)).map(String);
    t.same(lacks, [], 'shows what README says');
    if (lacks.length > 0) t.comment(stdout);
    program.leaves?.(t, copies.get(command) ?? '');
  }
});
