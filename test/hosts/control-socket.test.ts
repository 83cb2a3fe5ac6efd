/**
 * The control socket of a real daemon: it answers while the registry keeps the daemon waiting, tells of what is broken on the
 * host, lies where it was told to, or nowhere, and goes with the daemon.
 */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { answersPing, Lab, sleep, twoHosts } from '../../race/hosts.js';
import { type OffloadsAnswer, PATHS, type StatusAnswer } from '../../src/inspect/protocol.js';
import { ask, modeOf, pidOf, socketOf } from './lib/control.js';
import { DAEMON, impossible, METRICS, Weft, writePeers } from './lib/weft.js';

const why = impossible('ethtool');
t.setTimeout(0);

async function status(path: string): Promise<StatusAnswer> {
  return JSON.parse((await ask(path, PATHS.status)).body) as StatusAnswer;
}

/** Asks again until the answer fits. */
async function until(path: string, fits: (answer: StatusAnswer) => boolean, timeoutMs = 15_000): Promise<StatusAnswer> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const answer = existsSync(path) ? await status(path) : undefined;
    if (answer && fits(answer)) return answer;
    if (Date.now() > deadline) throw new Error(`not in time: ${JSON.stringify(answer)}`);
    await sleep(50);
  }
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-socket');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);

  await t.test('while there is no registry', async (t) => {
    const args = ['--registry', 'etcd', '--etcd-endpoints', 'http://192.168.77.99:2379', '--iface', 'eth0'];
    const weft = Weft.spawnBare(a, [...args, '--state-dir', join(lab.dir, 'state')]);
    await weft.event('etcd_waiting'); // by then it is in the host's namespace
    const path = socketOf(weft);
    const { text, underlay, state } = await until(path, (answer) => answer.text.includes('192.168.77.99'));
    t.equal(state, 'waiting');
    t.match(text, /^waiting for the registry: etcd http:\/\/192\.168\.77\.99:2379: \S/);
    t.match(underlay, { interface: 'eth0', addresses: [a.underlay4], link: { up: true, mtu: 1500 } });
    const { status: code, body } = await ask(path, PATHS.peers);
    t.equal(code, 503);
    t.match(
      body,
      /^\{"error":"weftd is still starting: the registry: etcd http:\/\/192\.168\.77\.99:2379: [^\n]*"\}\n$/,
    );
    t.match([modeOf(path), modeOf(dirname(path)), modeOf('/run/weft')], ['socket 600 0', 'folder 700 0', /^folder 7/]);
    await weft.stop();
    t.notOk(existsSync(path), 'it goes with the daemon');
    t.notOk(existsSync(dirname(path)), 'and its folder');
  });

  await t.test('where it was told to be', async (t) => {
    const peers = writePeers(lab, [a, b]);
    const path = join(lab.dir, 'here.sock');
    const weft = await Weft.start(a, { peers, args: ['--control-socket', path] });
    const off = await Weft.start(b, { peers, args: ['--control-socket', 'off'] });
    t.match(await status(path), {
      state: 'forwarding',
      text: 'all is well',
      troubles: [],
      devices: [{ link: { up: true, bridge: null } }],
    });
    for (const other of [weft, off]) t.notOk(existsSync(socketOf(other)), 'and nowhere else');
    t.ok(await answersPing(a.client, b.client4));
    const { peers: known } = JSON.parse((await ask(path, PATHS.peers)).body) as {
      peers: { name: string; packetsOut: number; packetsIn: number }[];
    };
    t.match(known, [{ name: 'b', pathMtu: 1472 }]);
    t.ok(known[0].packetsOut > 0 && known[0].packetsIn > 0, 'what went to and fro');

    // What explains silence comes first.
    const [{ name: device }] = (await status(path)).devices;
    a.ns.ip(`link set ${device} mtu 1300`);
    const smaller = await until(path, (answer) => answer.troubles.length > 0);
    t.equal(smaller.text, `device ${device} has an MTU of 1300, not 1472`);
    a.ns.ip(`link set ${device} mtu 1472`, `link set ${device} down`);
    t.equal((await until(path, (answer) => / is down$/.test(answer.text))).text, `device ${device} is down`);
    a.ns.ip(`link set ${device} up`);
    a.ns.sysctl({ 'net/ipv4/ip_forward': 0 });
    const forwards = await until(path, (answer) => answer.forwarding.ipv4 === false);
    t.equal(forwards.text, 'the host does not forward IPv4 (net.ipv4.ip_forward)');
    a.ns.sysctl({ 'net/ipv4/ip_forward': 1 });
    await until(path, (answer) => answer.text === 'all is well');

    const offloads = async (): Promise<Record<string, boolean | null>> => {
      const { offloads: found } = JSON.parse((await ask(path, PATHS.offloads)).body) as OffloadsAnswer;
      return Object.fromEntries(found.map(({ name, device: on }) => [name, on]));
    };
    t.match(await offloads(), { csum: true, tso4: true, tso6: true, uso: null, gro: null });
    a.ns.runSync('ethtool', '-K', device, 'tso', 'off');
    await sleep(100); // an answer is given again for 50 ms at most
    t.match(await offloads(), { csum: true, tso4: false, tso6: false, merge: null });
    a.ns.runSync('ethtool', '-K', device, 'tso', 'on');

    const second = Weft.spawnBare(b, ['--control-socket', path, '--network', '10.6.0.0/16', '--iface', 'eth0']);
    await second.daemon.child.exitCode;
    while (second.daemon.running) await sleep(20);
    t.equal(second.daemon.child.exitCode, 1);
    t.equal(
      second.daemon.log(),
      `weftd: control socket ${path}: another process listens there: choose another --control-socket, or off\n`,
    );
    await weft.stop('SIGKILL');
    t.ok(existsSync(path), 'one that is killed leaves it behind');
    const again = await Weft.start(a, { peers, args: ['--control-socket', path] });
    t.equal((await status(path)).pid, pidOf(again), 'and the next one takes its place');
    await Promise.all([again.stop(), off.stop()]);
    t.notOk(existsSync(path));
  });

  await t.test('where it cannot be', async (t) => {
    const peers = writePeers(lab, [a, b]);
    const run = join(lab.dir, 'run');
    mkdirSync(run);
    writeFileSync(join(run, 'weft'), 'in the way');
    const subnets = ['--network', '10.5.0.0/16', '--subnet', a.subnet4, '--peers', peers, '--iface', 'eth0'];
    const args = [process.execPath, DAEMON, ...subnets, '--metrics-address', METRICS];
    const command = ['-c', 'mount --bind "$1" /run && shift && exec "$@"', 'sh', run, ...args];
    const weft = Weft.of(a, a.ns.start('no-place', 'sh', command));
    await weft.ready();
    t.match(weft.events('control_socket_off'), [
      {
        level: 'warn',
        reason: /^control socket \/run\/weft\/\d+\/\d+\.sock: .*: choose another --control-socket, or off$/,
      },
    ]);
    t.same(readdirSync(run), ['weft'], 'what was there stays');
    await weft.stop();
  });
}
