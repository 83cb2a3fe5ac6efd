/** The HTTP endpoint: what it answers, and that nobody can hold it up; and the log's lines. */
import { once } from 'node:events';
import { request } from 'node:http';
import { connect, type Socket } from 'node:net';
import t from 'tap';
import { SetupError } from '../../src/io/setup-error.js';
import { serveHttp } from '../../src/observe/http.js';
import { createLog } from '../../src/observe/log.js';

const metrics = { contentType: 'text/plain; version=0.0.4', metrics: async () => 'weft_up 1\n' };
const tables = { macs: async () => '{"macs":[],"more":0}', neighbours: async () => '{"neighbours":[],"more":0}' };
const NOT_READY = { ready: false, text: 'weftd is not ready yet' };
let readiness = NOT_READY;
const endpoint = await serveHttp({ host: '127.0.0.1', port: 0, metrics, tables, ready: () => readiness, timeout: 300 });
t.teardown(() => endpoint.close());

function ask(
  path: string,
  method = 'GET',
  headers: Record<string, string> = {},
): Promise<{ status: number; body: string; type: string | undefined }> {
  return new Promise((resolve, reject) => {
    const sent = request(
      { host: '127.0.0.1', port: endpoint.port, path, method, headers, agent: false },
      (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (text: string) => {
          body += text;
        });
        response.on('end', () =>
          resolve({ status: response.statusCode ?? 0, body, type: response.headers['content-type'] }),
        );
      },
    );
    sent.on('error', reject).end();
  });
}

/** Sends raw bytes and waits until the other side has closed; what it said, and after how many milliseconds. */
function raw(bytes: string): Promise<{ said: string; after: number }> {
  return new Promise((resolve) => {
    const begun = performance.now();
    let said = '';
    const socket = connect(endpoint.port, '127.0.0.1', () => socket.write(bytes));
    socket.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    socket.on('error', () => {}).on('close', () => resolve({ said, after: performance.now() - begun }));
  });
}

t.test('what it answers', async (t) => {
  t.match(await ask('/metrics'), { status: 200, body: 'weft_up 1\n', type: metrics.contentType });
  t.match(await ask('/metrics?x=1'), { status: 200 });
  t.match(await ask('/healthz'), { status: 200 });
  t.match(await ask('/readyz'), { status: 503, body: 'weftd is not ready yet\n' });
  readiness = { ready: true, text: 'weftd is ready' };
  t.match(await ask('/readyz'), { status: 200, body: 'weftd is ready\n' });
  t.match(await ask('/v1/macs'), { status: 200, body: '{"macs":[],"more":0}\n', type: 'application/json' });
  t.match(await ask('/v1/neighbours?x'), { status: 200, body: /^\{"neighbours":/, type: 'application/json' });
  t.match(await ask('/'), { status: 404, body: /\/metrics.*\/v1\/macs and \/v1\/neighbours/ });
  t.match(await ask('/v1'), { status: 404 });
  t.match(await ask('/v1/macs', 'POST'), { status: 405 });
  t.match(await ask('/metrics/../metrics'), { status: 404 });
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS'])
    t.match(await ask('/metrics', method), { status: 405 }, method);
});

t.test('large answers that nobody takes', async (t) => {
  const large = JSON.stringify({ macs: ['x'.repeat(8 << 20)], more: 0 });
  let asked = 0;
  const macs = async (): Promise<string> => {
    asked++;
    return large;
  };
  const ready = (): typeof NOT_READY => NOT_READY;
  const server = await serveHttp({
    host: '127.0.0.1',
    port: 0,
    metrics,
    tables: { ...tables, macs },
    ready,
    timeout: 100,
  });
  t.teardown(() => server.close());
  const closed = (socket: Socket): Promise<unknown> => new Promise((resolve) => socket.once('close', resolve));
  const open = (bytes: string): Socket => {
    const socket = connect(server.port, '127.0.0.1', () => socket.write(bytes));
    return socket.on('error', () => {}).pause();
  };
  const one = 'GET /v1/macs HTTP/1.1\r\nHost: a\r\n\r\n';
  await closed(open(one.repeat(100)).resume());
  t.ok(asked <= 1, `of 100 requests in one piece ${asked} were answered`);
  const begun = performance.now();
  const idle = Array.from({ length: 64 }, () => open(one));
  const health = open('GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
  t.teardown(() => {
    for (const socket of [...idle, health]) socket.destroy();
  });
  const [answer] = (await once(health.resume(), 'data')) as [Buffer];
  t.match(answer.toString(), /^HTTP\/1\.1 200 /, 'whoever does not take it is cut off');
  t.ok(performance.now() - begun < 20_000);
});

t.test('it is bounded', async (t) => {
  t.match(await ask('/metrics', 'GET', { 'x-long': 'x'.repeat(9000) }), { status: 431 }, 'header bytes');
  const slow = await raw('GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ');
  t.match(slow.said, /^HTTP\/1\.1 408 /);
  t.ok(slow.after < 3000, `an unfinished request ends after ${Math.round(slow.after)} ms`);
  const idle = await raw('GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n');
  t.ok(idle.after < 3000, `an idle connection ends after ${Math.round(idle.after)} ms`);
  t.match((await raw('\x16\x03\x01 nonsense\r\n\r\n')).said, /^HTTP\/1\.1 400 /);
  const body = await raw('POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx');
  t.match(body.said, /^HTTP\/1\.1 405 /);
  t.ok(body.after < 3000, 'a body is not waited for');

  const held = Array.from({ length: 80 }, () => connect(endpoint.port, '127.0.0.1').on('error', () => {}));
  const ended = await Promise.all(
    held.map(
      (socket) =>
        new Promise<boolean>((resolve) => {
          socket.on('close', () => resolve(true));
          setTimeout(() => resolve(false), 150);
        }),
    ),
  );
  const refused = ended.filter(Boolean).length;
  t.ok(refused >= 16 && refused < 40, `${refused} of 80 connections refused at once`);
  for (const socket of held) socket.destroy();
  await new Promise((resolve) => setTimeout(resolve, 100)); // until it has seen them go
  t.match(await ask('/healthz'), { status: 200 }, 'and it still answers');
});

t.test('a port in use is one line', async (t) => {
  const again = serveHttp({ host: '127.0.0.1', port: endpoint.port, metrics, tables, ready: () => NOT_READY });
  await t.rejects(again, SetupError);
  await t.rejects(again, new RegExp(`^127\\.0\\.0\\.1:${endpoint.port} is in use: choose another --metrics-address$`));
  await t.rejects(
    serveHttp({ host: '192.0.2.77', port: 1, metrics, tables, ready: () => NOT_READY }),
    /not an address of this host/,
  );
});

t.test('log lines', async (t) => {
  const lines: string[] = [];
  const log = createLog('info', { write: (line) => void lines.push(line) });
  log.debug('hidden');
  log.info('ready', { device: 'flannel0' });
  log.error('failed', { reason: 'two\nlines', stack: undefined });
  t.equal(lines.length, 2);
  for (const line of lines) t.match(line, /^\{[^\n]*\}\n$/);
  const [ready, failed] = lines.map((line): unknown => JSON.parse(line));
  t.match(ready, { level: 'info', event: 'ready', device: 'flannel0', time: /^\d{4}-\d\d-\d\dT.*Z$/ });
  t.match(lines[0], /"event":"ready"/);
  t.match(failed, { level: 'error', event: 'failed', reason: 'two\nlines' });
});
