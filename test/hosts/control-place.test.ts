/**
 * The control socket's place: who may open it, at any moment, with any umask; what is left of it after a kill and a stop; places that
 * were said and cannot be had, and a usual place that others prepared.
 */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import t from 'tap';
import { type Host, Lab, twoHosts } from '../../race/hosts.js';
import { failsWith, lanes, modeOf, pidOf, socketOf, TOO_LONG, weftIn, withUmask } from './lib/control.js';
import { refusal } from './lib/embedded.js';
import { type Assertions, DAEMON, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('unshare');
t.setTimeout(0);

/** A /run of its own, made by `before` (sh), for the daemon alone. */
function spawnInOwnRun(host: Host, peers: string, before: string): Weft {
  const flags = ['--network', '10.5.0.0/16', '--subnet', host.subnet4, '--iface', 'eth0', '--peers', peers];
  const script = `${before}; exec "$@"`;
  const args = ['-m', '--propagation', 'private', 'sh', '-c', script, 'sh', process.execPath, DAEMON, ...flags];
  return Weft.of(host, host.ns.start(`own-run-${++runs}`, 'unshare', [...args, '--metrics-address', 'off']));
}
let runs = 0;

/** One line, exit code 1, and it names the socket. */
async function refuses(t: Assertions, weft: Weft, path: string, what: string): Promise<void> {
  const { code, lines } = await refusal(weft);
  t.equal(code, 1, `${what}: exit code 1`);
  t.equal(lines.length, 1, `${what}: one line: ${lines.join(' | ')}`);
  t.match(lines[0], /^weftd: /, `${what}: says who speaks`);
  t.ok(lines[0].includes(path.slice(0, 60)), `${what}: names the path`);
}

/**
 * Loaded before a daemon: it notes the mode of each socket right after `bind`, before anything else can be done about it, and that of
 * the folder it is in. A process that looked from outside would nearly always come too late.
 */
const NOTES_MODES = (file: string): string => `
  import { appendFileSync, statSync } from 'node:fs';
  import { Server } from 'node:net';
  import { dirname } from 'node:path';
  const { listen } = Server.prototype;
  Server.prototype.listen = function (...args) {
    const result = listen.apply(this, args);
    const path = typeof args[0] === 'string' ? args[0] : args[0]?.path;
    const mode = (one) => (statSync(one).mode & 0o7777).toString(8);
    if (path !== undefined) appendFileSync(${JSON.stringify(file)}, mode(dirname(path)) + ' ' + mode(path) + '\\n');
    return result;
  };`;

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-ctl-place');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const peers = writePeers(lab, [a, b]);
  /** Whose folders others may look into, as /run is. */
  const open = mkdtempSync('/tmp/weft-ctl-');
  lab.whenClosing(() => rmSync(open, { recursive: true, force: true }));
  chmodSync(open, 0o755);

  await t.test('--control-socket', async (t) => {
    const path = join(open, 'weft.sock');
    const args = ['--control-socket', path];
    const file = join(open, 'file');
    writeFileSync(file, 'precious');
    const folder = join(open, 'folder');
    mkdirSync(folder);
    const foreign = join(open, 'foreign.sock');
    const somebody = createServer((socket) => socket.destroy()).listen(foreign);
    t.teardown(() => void somebody.close());
    const link = join(open, 'link');
    symlinkSync(file, link);
    const long = join(open, TOO_LONG);
    const places: [string, string][] = [
      ['a file is there', file],
      ['a folder is there', folder],
      ['somebody else listens there', foreign],
      ['a link to a file is there', link],
      ['a file is its folder', join(file, 'weft.sock')],
      ['a path too long', long],
    ];
    await lanes(places, 2, async ([what, place]) => {
      await refuses(t, Weft.spawn(a, { peers, args: ['--control-socket', place] }), place, what);
    });
    t.equal(readFileSync(file, 'utf8'), 'precious', 'the file is as it was');
    t.equal(modeOf(folder), 'folder 755 0', 'the folder too');
    t.ok(existsSync(foreign), 'the other’s socket too');

    const notes = join(lab.dir, 'modes');
    const preload = join(lab.dir, 'preload.mjs');
    writeFileSync(preload, NOTES_MODES(notes));
    const modes = (): string => readFileSync(notes, 'utf8');
    /** With a umask that lets everybody in. */
    const startNoted = async (args: readonly string[]): Promise<Weft> => {
      writeFileSync(notes, '');
      const weft = withUmask(0, () => Weft.spawn(a, { peers, args, nodeArgs: ['--import', preload] }));
      await weft.ready();
      return weft;
    };

    // What is left of one that was killed is replaced.
    const killed = await Weft.start(a, { peers, args });
    t.equal((await weftIn(a.ns, ['status', '--socket', path])).code, 0, 'it is found where it was said');
    await killed.stop('SIGKILL');
    t.equal(modeOf(path), 'socket 600 0', 'killed, it leaves its socket');
    const nobody = await weftIn(a.ns, ['status', '--socket', path]);
    failsWith(t, nobody, 1, /nobody listens|refused|has ended/, 'on which nobody listens');
    const weft = await startNoted(['--control-socket', path]);
    t.equal((await weftIn(a.ns, ['status'], { WEFT_SOCKET: path })).code, 0, 'the next one takes its place');
    t.match(modes(), /^\d+ 600\n$/, `at no moment was it for others: ${modes().trim()}`);
    await weft.stop();
    t.equal(modeOf(path), undefined, 'and it is gone');
    const usual = await startNoted([]);
    t.match(modes(), /^700 600\n$/, `nor is one in the usual place, or its folder: ${modes().trim()}`);
    await usual.stop();

    const off = await Weft.start(a, { peers, args: ['--control-socket', 'off'] });
    t.equal(modeOf(socketOf(off)), undefined, 'off: there is none');
    failsWith(t, await weftIn(a.ns, ['status']), 1, /weftd|daemon/, 'off: none is found');
    await off.stop();
  });

  await t.test('a default place that others prepared', async (t) => {
    const cases: [string, string][] = [
      ['/run cannot be written', 'mount -t tmpfs -o ro none /run'],
      ['/run/weft is a file', 'mount -t tmpfs none /run; echo x >/run/weft'],
      ['/run/weft is for all', 'mount -t tmpfs none /run; mkdir -m 777 /run/weft; chown 65534 /run/weft'],
      [
        'its folder is for all',
        'mount -t tmpfs none /run; n=$(readlink /proc/self/ns/net | tr -dc 0-9); mkdir -p /run/weft/$n; chmod 777 /run/weft/$n; chown 65534 /run/weft/$n',
      ],
      [
        'its folder is a link',
        'mount -t tmpfs none /run; n=$(readlink /proc/self/ns/net | tr -dc 0-9); mkdir -m 777 /run/weft /run/theirs; ln -s /run/theirs /run/weft/$n',
      ],
    ];
    const free = [a, b];
    await lanes(cases, free.length, async ([what, before]) => {
      const host = free.pop() ?? a;
      const weft = spawnInOwnRun(host, peers, before);
      await weft.ready();
      const pid = pidOf(weft);
      const socket = `/proc/${pid}/root${socketOf(weft)}`;
      const warned = weft.events('control_socket_off');
      if (modeOf(socket) === undefined) {
        t.equal(warned.length, 1, `${what}: it goes on without, and says so once`);
        t.equal(warned[0]?.level, 'warn', `${what}: a warning`);
        t.match(warned[0]?.reason, /\/run/, `${what}: ${String(warned[0]?.reason)}`);
      } else {
        t.same(warned, [], `${what}: it has a socket`);
        t.equal(modeOf(socket), 'socket 600 0', `${what}: which is root’s alone`);
        t.equal(modeOf(dirname(socket)), 'folder 700 0', `${what}: in a folder that is root’s alone, and no link`);
        const above = modeOf(dirname(dirname(socket)));
        t.match(above, /^folder 7[0-5][0-5] 0$/, `${what}: nobody else can put another in its place: ${above}`);
      }
      await weft.stop();
      t.equal(weft.daemon.child.exitCode, 0, `${what}: exit code 0`);
      free.push(host);
    });
  });
}
