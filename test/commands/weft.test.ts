/**
 * `weft` at real daemons: two hosts in namespaces with clients behind them, in layer 3 and in layer 2. What it prints is held
 * against what was set up; the daemon is found or not; a terminal, a pipe that closes and a shell are real ones.
 */
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Finished, Lab, type Namespace, run, twoHosts } from '../../race/hosts.js';
import { findDaemon } from '../../src/commands/daemon/discovery.js';
import { COMMANDS } from '../../src/commands/list.js';
import { networkNamespace } from '../../src/host/network-namespace.js';
import type { Answers, PATHS } from '../../src/inspect/protocol.js';
import { CLI, failsWith, lanes, socketOf, VERSION, weftIn } from '../hosts/lib/control.js';
import { makeSites, startSwitch, VNI, writeSwitchPeers } from '../hosts/lib/l2.js';
import { impossible, Weft, writePeers } from '../hosts/lib/weft.js';

t.setTimeout(0);

const ESC = '\x1b';

/** What a command printed that must succeed, say nothing on standard error, and print plain text; throws otherwise. */
async function printed(ns: Namespace, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await weftIn(ns, args);
  const wrong = [
    code === 0 ? '' : `exit code ${code}`,
    stderr,
    stdout.includes(ESC) ? 'colour where no terminal is' : '',
    / $/m.test(stdout) ? 'a space at the end of a line' : '',
  ].filter(Boolean);
  if (wrong.length > 0) throw new Error(`weft ${args.join(' ')}: ${wrong.join('; ')}: ${stdout}`);
  return stdout;
}

/** The one JSON value that it prints with -j. */
async function json<K extends keyof Answers & keyof typeof PATHS>(ns: Namespace, name: K, ...args: string[]) {
  const text = await printed(ns, name, '-j', ...args);
  if (text.indexOf('\n') !== text.length - 1) throw new Error(`weft ${name} -j: more than one line: ${text}`);
  return JSON.parse(text) as Answers[K];
}

/** A line of a table by its first word, as its columns. */
const lineOf = (text: string, first: string): string[] =>
  text
    .split('\n')
    .map((line) => line.trim().split(/ {2,}/))
    .find(([word]) => word === first) ?? [];

/** Runs a shell command with `weft` in its PATH. */
function shell(ns: Namespace, script: string, ...args: string[]): Promise<Finished> {
  const bin = join(ns.lab.dir, 'bin');
  mkdirSync(bin, { recursive: true });
  writeFileSync(join(bin, 'weft'), `#!/bin/sh\nexec '${process.execPath}' '${CLI}' "$@"\n`);
  chmodSync(join(bin, 'weft'), 0o755);
  return ns.run('bash', ['-c', script, 'bash', ...args], {
    env: { ...process.env, PATH: `${bin}:${process.env.PATH}` },
  });
}

/** Runs `weft` on a terminal of its own, types `keys` after a second, and gives what it wrote and its exit code. */
async function onTerminal(
  ns: Namespace,
  args: readonly string[],
  keys = '',
  env: NodeJS.ProcessEnv = {},
): Promise<Finished> {
  const program = `
import os, pty, select, sys, time
keys, command = sys.argv[1].encode(), sys.argv[2:]
pid, fd = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
out, typed, begun = b'', False, time.time()
while time.time() < begun + 20:
    if out and keys and not typed and time.time() > begun + 1:
        os.write(fd, keys)
        typed = True
    if not select.select([fd], [], [], 0.1)[0]:
        continue
    try:
        part = os.read(fd, 65536)
    except OSError:
        break
    if not part:
        break
    out += part
else:
    os.kill(pid, 9)
sys.stdout.buffer.write(out)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
`;
  const command = [process.execPath, CLI, ...args];
  const { NO_COLOR: _, ...own } = process.env;
  return ns.run('python3', ['-c', program, keys, ...command], { env: { ...own, TERM: 'xterm', ...env } });
}

t.test('help', async (t) => {
  const lines = (text: string): string[] => text.trimEnd().split('\n');
  const weft = (...args: string[]): Promise<Finished> => run(process.execPath, [CLI, ...args]);
  const overview = await weft('--help');
  t.equal(overview.code, 0);
  t.same((await weft()).stdout, overview.stdout, 'also where nothing is said');
  await lanes(COMMANDS, 3, async ({ name }) => {
    t.match(overview.stdout, new RegExp(`^  ${name} +\\S`, 'm'), `${name} is listed`);
    const { code, stdout } = await weft(name, '--help');
    t.equal(code, 0);
    t.match(stdout, new RegExp(`^Usage: weft ${name} `), `weft ${name} --help`);
    t.match(stdout, new RegExp(`^  [#a-z]*#? ?weft ${name}`, 'm'), 'teaches by example');
    t.match(lines(stdout).at(-1), /^Exit codes: 0 /);
    t.ok(
      lines(stdout).every((line) => line.length <= 160),
      'fits',
    );
  });
  t.equal((await weft('help', 'drops')).stdout, (await weft('drops', '-h')).stdout);
  t.equal((await weft('--version')).stdout, `${VERSION}\n`);
  failsWith(t, await weft('nonsense'), 2, /unknown command nonsense: weft --help/, 'an unknown command');
  failsWith(t, await weft('-j', 'status'), 2, /-j: options come after the command/, 'an option before the command');
  failsWith(t, await weft('status', '--bad'), 2, /unknown option '--bad': weft status --help/, 'an unknown option');
  failsWith(t, await weft('status', 'more'), 2, /weft status --help/, 'an argument too many');
  failsWith(t, await weft('status', '--socket', ''), 2, /--socket/, 'no path');
  failsWith(t, await weft('top', '-i', '0'), 2, /--interval "0": expected a number from 0.1 to 3600/, 'no interval');
  failsWith(t, await weft('completion', 'ksh'), 2, /bash, zsh, fish/, 'another shell');
  failsWith(
    t,
    await weft('peers', '--socket', '/nowhere/at.all'),
    1,
    /no control socket \/nowhere\/at.all/,
    'no socket',
  );
});

const why = impossible('python3');
if (why) t.test('at daemons', { skip: `SKIPPED: ${why}` }, async () => {});
else {
  t.test('layer 3', async (t) => {
    const lab = new Lab('cmd3');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const peers = writePeers(lab, [a, b]);
    const [one] = await Promise.all([a, b].map((host) => Weft.start(host, { peers, args: ['--mtu', '1400'] })));
    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    await a.client.run('ping', ['-n', '-c', '3', '-i', '0.2', '-W', '1', '10.5.99.1']); // nobody's
    const ns = a.ns;

    const status = await json(ns, 'status');
    t.equal(status.pid, one.daemon.child.pid);
    t.equal(status.state, 'forwarding');
    t.same(status.subnets, [a.subnet4, a.subnet6]);
    const statusText = await printed(ns, 'status');
    t.match(statusText, new RegExp(`^weftd ${VERSION}, pid ${status.pid}, up \\d+ s: `));
    t.match(statusText, /^ {2}mode +layer 3, udp$/m);
    t.match(statusText, new RegExp(`^  device +${status.devices[0].name}, up, mtu 1400`, 'm'));
    t.match(statusText, new RegExp(`^  underlay +eth0, up, mtu 1500, ${a.underlay4}`, 'm'));
    t.match(statusText, /^ {2}tables +1 peer, /m);

    const [peer] = (await json(ns, 'peers')).peers;
    t.match(peer, { name: 'b', address: b.underlay4, pathMtu: 1472, subnets: [b.subnet4, b.subnet6] });
    t.ok(peer.packetsOut > 0 && peer.packetsIn > 0, 'the pings are counted');
    const row = lineOf(await printed(ns, 'peers'), 'b');
    t.same([row[1], row[2], row.at(-1)], [`${b.underlay4}:${peer.port}`, '1472', `${b.subnet4} ${b.subnet6}`]);
    t.same((await json(ns, 'peers', 'nobody')).peers, [], 'only what was asked for');
    t.equal(await printed(ns, 'peers', 'nobody'), 'none of 1 peers has nobody\n');
    t.equal((await json(ns, 'peers', b.client4)).peers.length, 1, 'by an address that is behind it');

    const { routes } = await json(ns, 'routes', b.client4);
    t.match(routes, [{ prefix: b.subnet4, peer: 'b', by: 'weft' }]);
    t.same(lineOf(await printed(ns, 'routes'), b.subnet4).slice(1), [
      'b',
      `${b.underlay4}:${peer.port}`,
      '1472',
      'weft',
    ]);
    t.match(await printed(ns, 'macs'), /^no MACs: .*weft routes/);
    t.match(await printed(ns, 'neighbours'), /^no neighbours: .*weft routes/);

    const { drops } = await json(ns, 'drops');
    const lost = drops.find(({ reason }) => reason === 'no_route')?.packets ?? 0;
    t.ok(lost >= 3, 'each ping to nowhere'); // the kernel sends some of its own
    t.same(
      drops.filter(({ packets }) => packets === 0),
      [],
      'and nothing that never came',
    );
    const dropText = await printed(ns, 'drops');
    t.match(dropText, new RegExp(`^outbound +engine +no_route +${lost} +no peer owns the destination$`, 'm'));
    t.match(dropText, /\nOf \d+ packets out, \d+ in\.\n$/);
    const all = await json(ns, 'drops', '--all');
    t.ok(all.drops.length > drops.length && all.drops.some(({ packets }) => packets === 0), '--all');

    const meanwhile = a.client.run('ping', ['-n', '-c', '15', '-i', '0.1', '-W', '1', '10.5.99.1']);
    const now = await json(ns, 'drops', '--seconds', '1');
    await meanwhile;
    const newly = now.drops.find(({ reason }) => reason === 'no_route')?.packets ?? 0;
    t.ok(newly > 0 && newly < 30 && now.entered.outbound < 40, `--seconds: ${newly} of them in one`);
    t.match(await printed(ns, 'drops', '--seconds', '0.1'), /^nothing was dropped|^DIRECTION/);

    const { offloads } = await json(ns, 'offloads');
    const offloadText = await printed(ns, 'offloads');
    for (const { name, inUse } of offloads)
      t.equal(lineOf(offloadText, name)[1] === 'in use', inUse, `offload ${name}`);
    t.match(lineOf(await printed(ns, 'leases'), 'b').slice(1), [
      /^192\.168\.77\.2/,
      `${b.subnet4} ${b.subnet6}`,
      'in force',
    ]);

    await t.test('top', async (t) => {
      const load = a.client.run('ping', ['-n', '-q', '-c', '200', '-i', '0.01', b.client4]);
      const [rates] = (await printed(ns, 'top', '-j', '-n', '2', '-i', '0.4'))
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line) as { packetsOut: number; peers: { name: string; packetsOut: number }[] });
      await load;
      t.ok(rates.packetsOut > 20, `${Math.round(rates.packetsOut)} packets a second`);
      t.equal(rates.peers[0].name, 'b');
      t.ok(rates.peers[0].packetsOut > 20, 'by peer too');
      t.match(await printed(ns, 'top', '-n', '1', '-i', '0.1'), /^out .*\nworker 0: /);
      const [shown, interrupted] = await Promise.all(
        ['q', '\x03'].map((key) => onTerminal(ns, ['top', '-i', '0.1'], key)),
      );
      t.equal(shown.code, 0, 'q ends it');
      const once = await onTerminal(ns, ['top', '-n', '1', '-i', '0.1']);
      t.notMatch(once.stdout, `${ESC}[?1049h`, 'with -n it stays to be read');
      t.match(shown.stdout, `${ESC}[?1049h`, 'on a page of its own');
      t.ok(shown.stdout.endsWith(`${ESC}[?25h${ESC}[?1049l`), 'which is left as it was');
      t.equal(interrupted.code, 0, 'and so does Ctrl-C');
    });

    await t.test('colour', async (t) => {
      t.match((await onTerminal(ns, ['status'])).stdout, `${ESC}[32m`, 'on a terminal');
      t.notMatch((await onTerminal(ns, ['status'], '', { NO_COLOR: '1' })).stdout, ESC, 'not where it is not wanted');
      t.notMatch((await onTerminal(ns, ['status', '-j'])).stdout, ESC, 'not in JSON');
    });

    await t.test('log', async (t) => {
      t.equal(await printed(ns, 'log'), 'log level info (json)\n');
      t.equal(await printed(ns, 'log', 'debug'), 'log level debug (was info)\n');
      t.match(await json(ns, 'log'), { level: 'debug' });
      t.equal((await json(ns, 'status')).logLevel, 'debug');
      failsWith(t, await weftIn(ns, ['log', 'loud']), 2, /"loud": expected one of trace, debug/, 'another level');
    });

    await t.test('which daemon', async (t) => {
      const elsewhere = lab.namespace('c');
      failsWith(t, await weftIn(elsewhere, ['status']), 1, /, but in another: .*ip netns exec/, 'none here');
      const folder = join(lab.dir, 'run'); // as /run/weft, in which other tests' daemons are as well
      const link = (namespace: string, pid: number): void => {
        mkdirSync(join(folder, namespace), { recursive: true });
        symlinkSync(socketOf(one), join(folder, namespace, `${pid}.sock`));
      };
      await t.rejects(findDaemon(undefined, folder), { message: /start weftd, or say by --socket/ }, 'none anywhere');
      link(status.networkNamespace, status.pid);
      const there = `pid ${status.pid}, ${status.devices[0].name}: ip netns exec ${a.ns.name} weft`;
      await t.rejects(findDaemon(undefined, folder), { message: there }, 'where it is');
      const own = networkNamespace();
      link(own, 1);
      t.equal((await findDaemon(undefined, folder)).socket, join(folder, own, '1.sock'));
      link(own, 2);
      const both = `${join(folder, own, '1.sock')} (pid 1, ${status.devices[0].name}), ${join(folder, own, '2.sock')}`;
      await t.rejects(findDaemon(undefined, folder), { message: both }, 'which there are');
      const path = socketOf(one);
      t.match(await printed(elsewhere, 'status', '--socket', path), `pid ${status.pid}`, '--socket');
      const named = await weftIn(elsewhere, ['status', '-j'], { WEFT_SOCKET: path });
      t.equal(JSON.parse(named.stdout).pid, status.pid, 'WEFT_SOCKET');
      const { code, stdout } = await weftIn(ns, ['status', '-j', '--socket', path], { WEFT_SOCKET: '/nowhere' });
      t.equal(code, 0, 'what is said goes first');
      t.equal(JSON.parse(stdout).networkNamespace, status.networkNamespace);
    });

    await t.test('a reader that has had enough', async (t) => {
      const { stdout, stderr } = await shell(ns, 'set -o pipefail; weft top -i 0.1 -j | head -1; echo $?');
      t.match(stdout, /^\{.*\}\n0\n$/s, 'ends it, which is no failure');
      t.equal(stderr, '');
    });

    await t.test('completion', async (t) => {
      const wanted: Readonly<Record<string, readonly string[]>> = {
        'weft pe': ['peers'],
        'weft ': [...COMMANDS.map(({ name }) => name), '--help', '--version'],
        'weft peers ': ['b'],
        'weft capture --peer ': ['b'],
        'weft capture --peer=': ['b'],
        'weft log d': ['debug'],
        'weft drops --a': ['--all'],
        'weft peers --socket /nowhere b': [], // nothing, and quietly, where nobody answers
        'weft nonsense x': [],
      };
      const script = `source <(weft completion bash)
        for COMP_LINE; do COMP_POINT=\${#COMP_LINE}; _weft; echo "\${COMPREPLY[*]}"; done`;
      const lines = Object.keys(wanted);
      const { code, stdout, stderr } = await shell(ns, script, ...lines);
      t.same({ code, stderr }, { code: 0, stderr: '' });
      const found = stdout.split('\n').map((line) => line.split(' ').filter(Boolean));
      for (const [i, line] of lines.entries()) t.same(found[i], wanted[line], `after "${line}"`);
    });
  });

  t.test('layer 2', async (t) => {
    const lab = new Lab('cmd2');
    t.teardown(() => lab.close());
    const [a, b] = makeSites(lab, { count: 2 });
    const fixed = '02:00:00:00:00:05';
    const peers = writeSwitchPeers(lab, [a, b], { extra: { b: { macs: [fixed] } } });
    await Promise.all([a, b].map((site) => startSwitch(site, { peers })));
    const [here, there] = [a.stations[0], b.stations[0]];
    t.ok(await answersPing(here.ns, there.address4), 'a reaches b');

    const ns = a.ns;
    t.match(await printed(ns, 'status'), new RegExp(`^  device +\\S+, up, mtu \\d+, VNI ${VNI}, in bridge br0`, 'm'));
    t.match(lineOf(await printed(ns, 'peers'), 'b').slice(1, 3), [`${b.underlay4}:4789`, `${VNI}`]);
    t.match(await printed(ns, 'routes'), /^no routes: .*weft macs/);
    const macs = await printed(ns, 'macs');
    const entry = (mac: string): string[] =>
      macs
        .split('\n')
        .find((line) => line.includes(mac))
        ?.trim()
        .split(/ {2,}/) ?? [];
    t.match(entry(there.mac), [`${VNI}`, there.mac, 'b', 'learned', / ago$/]);
    t.match(entry(here.mac), [`${VNI}`, here.mac, '(this host)', 'learned', / ago$/]);
    t.same(entry(fixed), [`${VNI}`, fixed, 'b', 'static']);
    const behind = (await json(ns, 'macs', 'b')).macs;
    t.ok(behind.length >= 2 && behind.every(({ peer }) => peer === 'b'), 'of one peer');
    t.match((await json(ns, 'macs', fixed.toUpperCase())).macs, [{ mac: fixed, origin: 'static', ageSeconds: null }]);
    const { neighbours } = await json(ns, 'neighbours', '10.7.0.0/24');
    const found = neighbours.find(({ address }) => address === there.address4);
    t.match(found, { mac: there.mac, vni: VNI });
    t.match(await printed(ns, 'neighbours'), new RegExp(`${there.address4} +${there.mac} +`));
  });
}
