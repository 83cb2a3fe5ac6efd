/** The control socket: who may open it, what it says to whom, and that nobody can hold it up or fill it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:http';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { networkNamespace } from '../../src/host/network-namespace.js';
import { Inspected } from '../../src/inspect/inspected.js';
import { listenAt, tidyUp } from '../../src/inspect/place.js';
import { PATHS } from '../../src/inspect/protocol.js';
import { type ControlSocket, serveControl } from '../../src/inspect/server.js';
import { SetupError } from '../../src/io/setup-error.js';
import { createLog } from '../../src/observe/log.js';
import { ask, modeOf } from '../hosts/lib/control.js';

const VERSION = '1.2.3';
/** For those who are slow on purpose; all others have the time that the daemon gives them. */
const SHORT = 300;
const folder = mkdtempSync(join(tmpdir(), 'weft-inspect-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

const lines: string[] = [];
const log = createLog('info', { to: { write: (line) => void lines.push(line) } });
const makeInspected = (): Inspected =>
  new Inspected({ version: VERSION, registry: 'etcd', log, logFormat: 'json', networkNamespace: networkNamespace() });

let sockets = 0;
const freePath = (): string => join(folder, `${++sockets}.sock`);

async function serve(
  t: { teardown(end: () => unknown): void },
  path = freePath(),
  timeout?: number,
): Promise<{ control: ControlSocket; inspected: Inspected }> {
  const inspected = makeInspected();
  const control = await serveControl({ path, inspected, ...(timeout === undefined ? {} : { timeout }) });
  if (!control) throw new Error('it does not serve');
  t.teardown(() => control.close());
  return { control, inspected };
}

/** Of an error's answer: status and line, after what every answer has was looked at. */
async function refusal(
  t: Pick<typeof import('tap').default, 'match' | 'notMatch'>,
  path: string,
  url: string,
  asked: Parameters<typeof ask>[2] = {},
): Promise<[status: number, error: string]> {
  const { status, headers, body } = await ask(path, url, asked);
  t.match(headers, { 'weft-protocol': '1', 'weft-version': VERSION, 'content-type': 'application/json' }, url);
  const { error } = JSON.parse(body) as { error: string };
  t.notMatch(error, /\n|\.$/, 'one line, without a full stop');
  return [status, error];
}

/** Sends bytes and waits until the other side has closed; what it said. */
function raw(path: string, bytes: string | Buffer, end = false): Promise<string> {
  return new Promise((resolve) => {
    let said = '';
    const socket = connect(path, () => (end ? socket.end(bytes) : socket.write(bytes)));
    socket.setEncoding('latin1').on('data', (text: string) => {
      said += text;
    });
    socket.on('error', () => {}).on('close', () => resolve(said));
  });
}

t.test('before anything is known', async (t) => {
  const { control, inspected } = await serve(t);
  const { path } = control;
  const { status, headers, body } = await ask(path, PATHS.status);
  t.equal(status, 200);
  t.match(headers, { 'weft-protocol': '1', 'weft-version': VERSION });
  t.match(JSON.parse(body), {
    pid: process.pid,
    version: VERSION,
    networkNamespace: networkNamespace(),
    state: 'starting',
    text: 'being set up',
    waitingFor: null,
    troubles: [],
    registry: { kind: 'etcd', name: null },
    underlay: null,
    devices: [],
    lease: null,
    capture: null,
    logLevel: 'info',
  });
  inspected.waitingFor = 'the registry: etcd http://192.0.2.1:2379: away';
  await sleep(60); // an answer is given again for 50 ms at most
  t.match(JSON.parse((await ask(path, PATHS.status)).body), {
    state: 'waiting',
    text: 'waiting for the registry: etcd http://192.0.2.1:2379: away',
    waitingFor: 'the registry: etcd http://192.0.2.1:2379: away',
  });
  const { status: _status, log: _log, target, capture, ...others } = PATHS;
  for (const url of [...Object.values(others), `${target}?peer=b`]) {
    t.same(await refusal(t, path, url), [
      503,
      'weftd is still starting: the registry: etcd http://192.0.2.1:2379: away',
    ]);
  }
  t.match(await refusal(t, path, capture), [503, /^capture: /]);
  inspected.stopping = true;
  await sleep(60);
  t.match(JSON.parse((await ask(path, PATHS.status)).body), { state: 'stopping' });
});

t.test('what makes no sense is told so', async (t) => {
  const { path } = (await serve(t)).control;
  const other = (headers: Record<string, string>): Promise<[number, string]> =>
    refusal(t, path, PATHS.status, { headers });
  const speaks = `weftd ${VERSION} speaks protocol 1: use the weft of that version`;
  t.same(await other({ 'weft-protocol': '2' }), [400, `protocol 2: ${speaks}`]);
  t.same(await other({}), [400, `no weft-protocol header: ${speaks}`]);
  t.same(await other({ 'weft-protocol': `\x1b[31m${'9'.repeat(999)}`.replace('\x1b', '~') }), [
    400,
    `protocol ~[31m${'9'.repeat(59)}: ${speaks}`,
  ]);
  t.same(await refusal(t, path, '/v1/nonsense'), [404, 'weftd has no /v1/nonsense']);
  t.same(await refusal(t, path, '/'), [404, 'weftd has no /']);
  t.same(await refusal(t, path, '//'), [400, '// is no path']);
  t.same(await refusal(t, path, PATHS.peers, { method: 'PUT' }), [405, 'PUT is not for /v1/peers']);
  t.same(await refusal(t, path, PATHS.capture, { method: 'POST' }), [405, 'POST is not for /v1/capture']);
  t.same(await refusal(t, path, PATHS.target), [400, 'peer is missing']);
});

t.test('the level of the log', async (t) => {
  const { path } = (await serve(t)).control;
  const levels = ['trace', 'debug', 'info', 'warn', 'error'];
  const level = async (query: string, method = 'GET'): Promise<unknown> =>
    JSON.parse((await ask(path, `${PATHS.log}${query}`, { method })).body);
  t.same(await level(''), { level: 'info', levels, format: 'json' });
  t.same(await level('?level=debug', 'PUT'), { level: 'debug', levels, format: 'json' });
  t.equal(log.level, 'debug');
  for (const to of ['warn', 'debug', 'error', 'info']) await level(`?level=${to}`, 'PUT');
  const said = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  t.same(
    said.filter(({ event }) => event === 'log_level').map((line) => `${line.level}: ${line.from} ${line.to}`),
    ['info: info debug', 'info: debug warn', 'info: warn debug', 'info: debug error', 'info: error info'],
    'each change is said, under the one that lets it',
  );
  log.setLevel('debug');
  t.same(await refusal(t, path, `${PATHS.log}?level=loud`, { method: 'PUT' }), [
    400,
    '"loud" is no level: use trace, debug, info, warn, error',
  ]);
  t.same(await refusal(t, path, PATHS.log, { method: 'PUT' }), [400, 'level is missing']);
  t.equal(log.level, 'debug');
  log.setLevel('info');
});

t.test('only its owner may open it, from its making on', async (t) => {
  const path = freePath();
  const before = process.umask(0);
  t.teardown(() => process.umask(before));
  // Whoever looks all the time sees it with one mode alone.
  const seen = new Set<string | undefined>();
  const watcher = spawn(process.execPath, ['-e', WATCHER, path], { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  watcher.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  while (!said.includes('looking')) await sleep(10);
  const { control } = await serve(t, path);
  seen.add(modeOf(path));
  t.equal(process.umask(), 0, 'the umask is as it was');
  await once(watcher, 'exit');
  t.same([...seen], [`socket 600 ${process.getuid?.()}`]);
  t.match(said, /^looking\nsaw 600\n$/, 'so it was seen at first');
  await control.close();
  t.notOk(existsSync(path), 'it goes with the daemon');
});

/** Says the first mode that a file is seen with. */
const WATCHER = `
const { lstatSync } = require('node:fs');
console.log('looking');
const end = Date.now() + 10_000;
while (Date.now() < end) {
  const found = lstatSync(process.argv[1], { throwIfNoEntry: false });
  if (found) { console.log('saw ' + (found.mode & 0o777).toString(8)); break; }
}
`;

/** A process that serves at a path and is killed: its socket stays. */
async function leaveStale(path: string): Promise<void> {
  const program = 'require("node:net").createServer().listen(process.argv[1], () => console.log("there"))';
  const child = spawn(process.execPath, ['-e', program, path], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await once(child, 'exit');
}

t.test('where it may be', async (t) => {
  const stale = freePath();
  await leaveStale(stale);
  t.ok(lstatSync(stale).isSocket(), 'somebody was killed');
  const { control } = await serve(t, stale);
  t.equal((await ask(stale, PATHS.status)).status, 200, 'a stale socket is replaced');

  const fails = async (path: string, reason: string): Promise<void> => {
    const error = await serveControl({ path, inspected: makeInspected() }).then(
      () => undefined,
      (thrown: unknown) => thrown,
    );
    t.ok(error instanceof SetupError, path);
    t.match(error, {
      code: 'NO_CONTROL_SOCKET',
      message: `control socket ${path}: ${reason}: choose another --control-socket, or off`,
    });
  };
  await fails(stale, 'another process listens there');
  t.equal((await ask(stale, PATHS.status)).status, 200, 'and goes on to');
  const file = join(folder, 'file');
  writeFileSync(file, 'precious');
  await fails(file, 'there is something else than a socket');
  t.ok(lstatSync(file).isFile(), 'what is no socket stays');
  const link = join(folder, 'link.sock');
  symlinkSync(stale, link);
  await fails(link, 'there is something else than a socket');
  await fails(join(folder, 'no', 'where.sock'), `there is no folder ${join(folder, 'no')}`);
  await fails(join(folder, 'x'.repeat(108)), 'its path is longer than 107 bytes');

  // Somebody else's socket that has come to our path is not ours to remove.
  const aside = freePath();
  renameSync(stale, aside);
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(stale, resolve));
  t.teardown(() => other.close());
  await control.close();
  t.ok(existsSync(stale), "another's socket stays");
  unlinkSync(aside);
});

t.test('the default place', async (t) => {
  const base = join(folder, 'run');
  const own = join(base, networkNamespace());
  const path = join(own, '1.sock');
  const serving = createServer();
  const remove = await listenAt(serving, path, false);
  t.equal(modeOf(base), `folder 700 ${process.getuid?.()}`);
  t.equal(modeOf(own), `folder 700 ${process.getuid?.()}`);

  // What daemons that were killed have left, here and in a namespace that is no more.
  const gone = join(base, '12345');
  mkdirSync(gone);
  mkdirSync(join(base, 'notes'));
  await leaveStale(join(own, '2.sock'));
  await leaveStale(join(own, 'mine.sock'));
  await leaveStale(join(gone, '3.sock'));
  await tidyUp(base);
  t.same(readdirSync(own).sort(), ['1.sock', 'mine.sock'], 'a live one stays, and what is no pid');
  t.same(readdirSync(base).sort(), [networkNamespace(), 'notes'].sort());
  unlinkSync(join(own, 'mine.sock'));
  serving.close();
  remove();
  t.notOk(existsSync(own), 'the folder goes with the last socket');

  // Daemons that start and end at once, each of which takes the folder away behind itself.
  await Promise.all(
    Array.from({ length: 20 }, async (_, i) => {
      for (let round = 0; round < 5; round++) {
        const server = createServer();
        const end = await listenAt(server, join(own, `${100 + i}.sock`), false);
        await sleep(i % 3);
        server.close();
        end();
      }
    }),
  );
  t.notOk(existsSync(own), 'and each was there');

  mkdirSync(own, { mode: 0o777 });
  chmodSync(own, 0o777);
  await t.rejects(listenAt(createServer(), path, false), {
    code: 'NO_CONTROL_SOCKET',
    message: `control socket ${path}: ${own} can be changed by others: choose another --control-socket, or off`,
  });
});

t.test('garbage, and requests without end', async (t) => {
  const { path } = (await serve(t, freePath(), SHORT)).control;
  const head = /^HTTP\/1\.1 (\d+) .*\r\nweft-protocol: 1\r\nweft-version: 1\.2\.3\r\n/;
  const complaint = (said: string): [status: number, error: string] => {
    const [text, body] = said.split('\r\n\r\n');
    return [Number(head.exec(`${text}\r\n`)?.[1]), (JSON.parse(body) as { error: string }).error];
  };
  t.same(complaint(await raw(path, '\0\x01\x02 what\r\n\r\n')), [400, 'what was sent is not HTTP']);
  t.same(complaint(await raw(path, 'GET /v1/status HTTP/9.9\r\n\r\n')), [400, 'what was sent is not HTTP']);
  const long = `GET /v1/explain?packet=${'00'.repeat(100_000)} HTTP/1.1\r\nhost: weftd\r\n\r\n`;
  t.same(complaint(await raw(path, long)), [431, 'a request is longer than 163840 bytes']);
  const fits = `GET /v1/explain?packet=${'00'.repeat(65_535)} HTTP/1.1\r\nhost: weftd\r\nweft-protocol: 1\r\nconnection: close\r\n\r\n`;
  t.match(await raw(path, fits), /^HTTP\/1\.1 503 /, 'a whole packet fits');
  t.same(complaint(await raw(path, 'GET /v1/status HTTP/1.1\r\nhost: ')), [408, 'the request did not come in time']);
  t.same(complaint(await raw(path, '')), [408, 'the request did not come in time'], 'nor did this one');
  const body = 'PUT /v1/log?level=info HTTP/1.1\r\nhost: a\r\nweft-protocol: 1\r\ncontent-length: 1000000\r\n\r\n';
  t.match(await raw(path, body), /^HTTP\/1\.1 200 [\s\S]*connection: close/i, 'what is sent along is not waited for');
  const chunked =
    'GET /v1/status HTTP/1.1\r\nhost: a\r\nweft-protocol: 1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc';
  t.match(await raw(path, chunked), /^HTTP\/1\.1 200 /);
  const twice = 'GET /v1/status HTTP/1.1\r\nhost: a\r\nweft-protocol: 1\r\n\r\n'.repeat(50);
  t.ok((await raw(path, twice, true)).split('HTTP/1.1 200').length <= 3, 'what is asked before the answer is not kept');
  t.equal((await ask(path, PATHS.status)).status, 200);
});

t.test('crowds', async (t) => {
  const { path } = (await serve(t)).control;
  const idle: Socket[] = [];
  t.teardown(() => {
    for (const socket of idle) socket.destroy();
  });
  for (let i = 0; i < 400; i++) {
    idle.push(connect(path).on('error', () => {}));
    if (i % 20 === 0) t.equal((await ask(path, PATHS.status)).status, 200, `beside ${i} that say nothing`);
  }
  await sleep(20);
  t.ok(idle.filter((socket) => !socket.closed && !socket.destroyed && socket.readyState === 'open').length <= 400);
  const begun = performance.now();
  for (let i = 0; i < 50; i++) {
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(path, PATHS.status)));
    if (answers.some(({ status }) => status !== 200)) t.fail('one was not answered');
  }
  t.comment(`1,000 questions in ${Math.round(performance.now() - begun)} ms`);
});

t.test('its end', async (t) => {
  const { control } = await serve(t);
  const { path } = control;
  const waiting = connect(path);
  await once(waiting, 'connect');
  await control.close();
  await once(waiting.resume(), 'close');
  await t.rejects(ask(path, PATHS.status), { code: 'ENOENT' });
  const again = await serve(t, path);
  t.equal((await ask(again.control.path, PATHS.status)).status, 200, 'the place is free');
});
