/**
 * What goes wrong between `weft` and a daemon, each of it one clear line and the exit code that was promised: no daemon, a socket
 * that nobody listens on, one that is not ours to open, somebody else on it, two daemons, one that was killed and started again. And
 * what a daemon refuses to answer.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { type Finished, type Host, Lab, twoHosts } from '../../race/hosts.js';
import {
  ask,
  CLI,
  failsWith,
  lanes,
  modeOf,
  pidOf,
  socketOf,
  TOO_LONG,
  VERSION,
  weftIn,
  withUmask,
} from './lib/control.js';
import { refusal, until } from './lib/embedded.js';
import { nonsense } from './lib/nonsense.js';
import { impostors, NEVER_ANSWERS } from './lib/not-weftd.js';
import { FULL, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('setpriv', 'unshare');
t.setTimeout(0);

const NOBODY = ['--reuid=65534', '--regid=65534', '--clear-groups'];

// --- a daemon's surroundings ---

/** A second daemon on `host`, of another overlay. */
function spawnSecond(host: Host, ...more: readonly string[]): Weft {
  const peers = join(host.ns.lab.dir, 'second.json');
  writeFileSync(peers, '{"peers":[]}');
  return Weft.spawnBare(host, [
    ...['--network', '10.9.0.0/16', '--subnet', '10.9.1.0/24', '--iface', 'eth0', '--peers', peers, '--port', '8299'],
    ...['--device', 'second0', '--metrics-address', 'off', ...more],
  ]);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-ctl');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const peers = writePeers(lab, [a, b]);

  // Takes longer than all the rest: it is looked at in the end.
  const silent = await NEVER_ANSWERS.serve(join(lab.dir, 'silent.sock'));
  lab.whenClosing(() => silent.close());
  const unanswered = weftIn(a.ns, ['status', '--socket', silent.path]);

  await t.test('no daemon', async (t) => {
    const other = await Weft.start(b, { peers });
    failsWith(t, await weftIn(a.ns, ['status']), 1, /weftd|daemon/, 'none in this namespace');
    const hint = /ip netns exec|nsenter/;
    failsWith(t, await weftIn(a.ns, ['peers', '-j']), 1, hint, 'but in another, and how to get there');
    const args = ['-m', '--propagation', 'private', 'sh', '-c', 'mount -t tmpfs none /run; exec "$@"', 'sh'];
    const alone = await a.ns.run('unshare', [...args, process.execPath, CLI, 'status']);
    failsWith(t, alone, 1, /weftd|daemon/, 'none on this machine');
    const folder = join(lab.dir, 'folder');
    mkdirSync(folder);
    const file = join(lab.dir, 'file');
    writeFileSync(file, 'not a socket');
    const places: [string, string][] = [
      ['nothing there', join(lab.dir, 'nothing.sock')],
      ['no such folder', join(lab.dir, 'nowhere', 'weft.sock')],
      ['a folder instead of a socket', folder],
      ['a file instead of a socket', file],
    ];
    await lanes(places, 2, async ([what, path]) => {
      const done = await weftIn(a.ns, ['status', '--socket', path]);
      failsWith(t, done, 1, new RegExp(path), what);
      t.equal(/its weftd|ended/.test(done.stderr), false, `${what}: and nothing that is not so`);
      failsWith(t, await weftIn(a.ns, ['status'], { WEFT_SOCKET: path }), 1, new RegExp(path), `${what}: WEFT_SOCKET`);
    });
    const long = await weftIn(a.ns, ['status', '--socket', join(lab.dir, TOO_LONG)]);
    failsWith(t, { ...long, code: long.code === 2 ? 1 : long.code }, 1, /long/, 'a path too long');
    failsWith(t, await weftIn(a.ns, ['nonsense']), 2, /nonsense/, 'wrong usage');
    failsWith(t, await weftIn(a.ns, ['status', '--nonsense']), 2, /nonsense/, 'wrong usage');
    await other.stop();
  });

  await t.test('somebody else on the socket', async (t) => {
    const all = impostors(VERSION).map((impostor, i) => ({ ...impostor, path: join(lab.dir, `impostor-${i}.sock`) }));
    await lanes(all, 3, async ({ what, line, path, serve }) => {
      const server = await serve(path);
      try {
        const commands = [['status'], ['top'], ['capture', '-w', '-']];
        for (const args of what.includes('protocol') ? commands : commands.slice(0, 1)) {
          failsWith(t, await weftIn(a.ns, [...args, '--socket', path]), 1, line, `${what}: weft ${args[0]}`);
        }
      } finally {
        server.close();
      }
    });
  });

  await t.test('one daemon: who may open its socket, and what becomes of it', async (t) => {
    let weft = withUmask(0, () => Weft.spawn(a, { peers }));
    await weft.ready();
    const socket = socketOf(weft);
    t.equal(modeOf(socket), 'socket 600 0', 'the socket is root’s alone');
    t.equal(modeOf(dirname(socket)), 'folder 700 0', 'its folder too');
    const { status, headers, body } = await ask(socket, '/v1/status');
    t.same(
      [status, headers['weft-protocol'], headers['weft-version'], (JSON.parse(body) as { pid: number }).pid],
      [200, '1', VERSION, pidOf(weft)],
      'it says who it is',
    );

    await t.test('requests that it does not take', async (t) => {
      const asked: [string, string, string, number[], Record<string, string>?][] = [
        ['another protocol', 'GET', '/v1/status', [400], { 'weft-protocol': '2' }],
        ['a protocol that is no number', 'GET', '/v1/status', [400], { 'weft-protocol': 'one' }],
        ['no protocol', 'GET', '/v1/status', [200, 400], {}],
        ['no such path', 'GET', '/v1/nonsense', [404]],
        ['the root', 'GET', '/', [404]],
        ['a path that is percent-encoded', 'GET', '/v1/%73tatus', [404]],
        ['dots', 'GET', '/v1/x/../status', [200, 404]],
        ['another method', 'DELETE', '/v1/status', [405]],
        ['PUT of what is only read', 'PUT', '/v1/peers', [405]],
        ['a level that is none', 'PUT', '/v1/log?level=loud', [400]],
        ['no level', 'PUT', '/v1/log', [400]],
        ['a level of many', 'PUT', `/v1/log?level=${'x'.repeat(4000)}`, [400]],
        ['lines in a level', 'PUT', '/v1/log?level=info%0a%0d%00%1b[31m', [400]],
        ['nothing to explain', 'GET', '/v1/explain', [400]],
        ['an address that is none', 'GET', '/v1/explain?to=10.5.2.256', [400, 404]],
        ['a packet that is none', 'GET', '/v1/explain?packet=xyz', [400]],
        ['a packet of a byte', 'GET', '/v1/explain?packet=45', [200, 400]],
        ['a size beyond all', 'GET', '/v1/explain?to=10.5.2.2&size=1e99', [400]],
        ['a size below all', 'GET', '/v1/explain?to=10.5.2.2&size=-1', [400]],
        ['a TTL beyond all', 'GET', '/v1/explain?to=10.5.2.2&ttl=256', [400]],
        ['broken escapes', 'GET', '/v1/explain?to=%zz%', [400, 404]],
        ['no such peer', 'GET', '/v1/target?peer=nobody', [404]],
        ['no peer', 'GET', '/v1/target', [400, 404]],
        ['a verdict that is none', 'GET', '/v1/capture?verdict=nonsense', [400]],
        ['a length that is none', 'GET', '/v1/capture?snaplen=-1', [400]],
      ];
      for (const [what, method, path, expected, headers] of asked) {
        const answer = await ask(socket, path, headers ? { method, headers } : { method }).catch(String);
        if (typeof answer === 'string') {
          t.fail(`${what}: ${answer}`);
          continue;
        }
        t.ok(expected.includes(answer.status), `${what}: ${answer.status}`);
        t.equal(answer.headers['weft-protocol'], '1', `${what}: says its protocol`);
        if (answer.status < 400) continue;
        const { error } = JSON.parse(answer.body) as { error: string };
        // biome-ignore lint/suspicious/noControlCharactersInRegex: it is the point
        t.match(error, /^[^\x00-\x1f\x7f]{3,}$/, `${what}: one line: ${error.slice(0, 100)}`);
      }
      t.equal(
        (JSON.parse((await ask(socket, '/v1/log')).body) as { level: string }).level,
        'info',
        'the level is as it was',
      );
      t.same(
        weft.events().map(({ event }) => event),
        ['ready'],
        'nothing of it is worth a log line',
      );
    });

    await t.test('questions that make no sense', async (t) => {
      const wrong: string[] = [];
      const statuses: Record<string, number> = {};
      for (const path of nonsense(FULL ? 20_000 : 400)) {
        const { status, body } = await ask(socket, path).catch((error) => ({ status: 0, body: String(error) }));
        statuses[status] = (statuses[status] ?? 0) + 1;
        const refused = status === 400 || status === 404;
        if (refused ? !/^{"error":"[^\n]{3,}"}\n$/.test(body) : status !== 200)
          wrong.push(`${path}: ${status} ${body}`);
      }
      t.same(wrong.slice(0, 10), [], `each is answered or refused in a line: ${JSON.stringify(statuses)}`);
      t.ok((statuses[200] ?? 0) > 0 && (statuses[400] ?? 0) > 0, 'some make sense');
      t.same(weft.events('inspection_failed'), [], 'none makes it stumble');
      t.equal((await ask(socket, '/v1/status')).status, 200, 'it goes on');
    });

    await t.test('not for others', async (t) => {
      // With the right to read all there is, since the checkout may be root's alone; but without that to write.
      const reads = [...NOBODY, '--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search'];
      for (const args of [['status'], ['status', '--socket', socket]]) {
        const denied = await a.ns.run('setpriv', [...reads, process.execPath, CLI, ...args]);
        failsWith(t, denied, 1, /permission|root/i, `nobody: weft ${args.join(' ')}`);
        t.notMatch(denied.stderr, /no weftd (runs|here)/, 'it is there, only not for them');
      }
      const canRead = (await a.ns.run('setpriv', [...NOBODY, 'test', '-r', CLI])).code === 0;
      t.comment(canRead ? 'nobody can read the checkout' : 'nobody cannot read the checkout');
      if (canRead) {
        for (const args of [['status'], ['status', '--socket', socket]]) {
          const denied = await a.ns.run('setpriv', [...NOBODY, process.execPath, CLI, ...args]);
          failsWith(t, denied, 1, /permission|root/i, `nobody at all: weft ${args.join(' ')}`);
        }
      }
    });

    await t.test('standard output that takes nothing', async (t) => {
      const sh = (script: string): Promise<Finished> => a.ns.run('sh', ['-c', script, 'sh', process.execPath, CLI]);
      const full = await sh('"$@" status >/dev/full');
      failsWith(t, full, 1, /ENOSPC|space|write/i, 'a full disk');
      const piped = await sh('{ "$@" drops -j; "$@" status; } | :');
      t.notMatch(piped.stderr, /\n {4}at /, `a reader that goes away: no stack ${piped.stderr}`);
    });

    await t.test('two of them', async (t) => {
      const second = spawnSecond(a);
      await second.ready();
      const both = await weftIn(a.ns, ['status']);
      failsWith(t, both, 1, /--socket/, 'which one?');
      for (const one of [pidOf(weft), pidOf(second), 'flannel0', 'second0']) {
        t.match(both.stderr, new RegExp(`\\b${one}\\b`), `the line names ${one}`);
      }
      for (const one of [weft, second]) {
        const { code, stdout, stderr } = await weftIn(a.ns, ['status', '-j', '--socket', socketOf(one)]);
        t.equal(code, 0, `asked for by its socket ${stderr}`);
        t.equal((JSON.parse(stdout) as { pid: number }).pid, pidOf(one), 'the right one answers');
      }
      const third = await refusal(spawnSecond(a, '--control-socket', socket, '--device', 'third0', '--port', '8300'));
      t.equal(third.code, 1, 'a third one with the socket of the first: exit code 1');
      t.match(third.lines, [/^weftd: .*use|running|another/], `one line: ${third.lines.join(' | ')}`);
      t.equal((await ask(socket, '/v1/status')).status, 200, 'the first one is still there');
      await second.stop();
      t.equal(modeOf(socket), 'socket 600 0', 'one of them stops');
      t.equal((await weftIn(a.ns, ['status'])).code, 0, 'and there is no doubt any more');
    });

    await t.test('kill -9 and start again', async (t) => {
      const top = a.ns.start('top', process.execPath, [CLI, 'top', '-j']);
      await top.ready('{');
      await weft.stop('SIGKILL');
      t.ok(await until(() => !top.running), 'weft top ends with it');
      t.equal(top.child.exitCode, 1, 'exit code 1');
      t.match(
        top.log().trimEnd().split('\n').at(-1),
        /^weft: /,
        `in one line: ${top.log().trimEnd().split('\n').at(-1)}`,
      );
      // Another daemon of this machine that starts just now takes away what is left.
      const left = modeOf(socket) !== undefined;
      t.comment(`the socket is ${left ? 'left' : 'taken away already'}`);
      failsWith(t, await weftIn(a.ns, ['status']), 1, /weftd|daemon/, 'nobody listens on it');
      failsWith(t, await weftIn(a.ns, ['status', '--socket', socket]), 1, new RegExp(socket), 'by its name');
      weft = await Weft.start(a, { peers });
      t.ok(await until(() => modeOf(socket) === undefined), 'the next one cleans up');
      t.equal(modeOf(socketOf(weft)), 'socket 600 0', 'and has its own');
      const { code, stdout, stderr } = await weftIn(a.ns, ['status', '-j']);
      t.equal(code, 0, `which is found without a word ${stderr}`);
      t.equal((JSON.parse(stdout) as { pid: number }).pid, pidOf(weft), 'the right one answers');
    });

    const last = socketOf(weft);
    await weft.stop();
    t.equal(weft.daemon.child.exitCode, 0, 'SIGTERM: exit code 0');
    t.equal(modeOf(last), undefined, 'and the socket is gone');
  });

  await t.test('one that never answers', async (t) => {
    failsWith(t, await unanswered, 1, NEVER_ANSWERS.line, NEVER_ANSWERS.what);
  });
}
