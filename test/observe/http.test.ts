/** The HTTP endpoint: what it answers, and that nobody can hold it up; and the log's lines. */
import { once } from 'node:events';
import { request } from 'node:http';
import { connect, type Socket } from 'node:net';
import t from 'tap';
import { SetupError } from '../../src/io/setup-error.js';
import { NOT_READY as NOT_READY_TEXT, READY, serveHttp } from '../../src/observe/http.js';

const metrics = { contentType: 'text/plain; version=0.0.4', metrics: async () => 'weft_up 1\n' };
const tables = { macs: async () => '{"macs":[],"more":0}', neighbours: async () => '{"neighbours":[],"more":0}' };
const NOT_READY = { ready: false, text: NOT_READY_TEXT };
let readiness = NOT_READY;
const endpoint = await serveHttp({ host: '127.0.0.1', port: 0, metrics, tables, ready: () => readiness, timeout: 300 });
t.teardown(() => endpoint.close());

function ask(
  path: string,
  method = 'GET',
  headers: Record<string, string> = {},
  port = endpoint.port,
): Promise<{ status: number; body: string; type: string | undefined }> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: '127.0.0.1', port, path, method, headers, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => {
        body += text;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, body, type: response.headers['content-type'] }),
      );
    });
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

/** As flannel does, byte for byte, without a newline. */
async function answersHealth(t: Pick<typeof import('tap').default, 'same' | 'match'>, port: number): Promise<void> {
  const type = 'text/plain; charset=utf-8';
  const get = (path: string, method = 'GET'): ReturnType<typeof ask> => ask(path, method, {}, port);
  readiness = NOT_READY;
  t.same(await get('/healthz'), { status: 200, body: 'flanneld is running', type });
  t.same(await get('/readyz'), { status: 503, body: 'flanneld is not ready yet', type });
  t.same(await get('/readyz', 'HEAD'), { status: 503, body: '', type });
  readiness = { ready: true, text: READY };
  t.same(await get('/readyz'), { status: 200, body: 'flanneld is ready', type });
  t.match(await get('/healthz', 'POST'), { status: 405 });
}

t.test('health alone', async (t) => {
  const health = await serveHttp({ host: '127.0.0.1', port: 0, only: 'health', ready: () => readiness, timeout: 300 });
  t.teardown(() => health.close());
  await answersHealth(t, health.port);
  for (const path of ['/', '/metrics', '/v1/macs', '/v1/neighbours']) {
    t.match(await ask(path, 'GET', {}, health.port), { status: 404, body: 'there are /healthz and /readyz\n' }, path);
  }
  const again = (host: string): Promise<unknown> =>
    serveHttp({ host, port: health.port, only: 'health', ready: () => readiness });
  await t.rejects(again('127.0.0.1'), {
    code: 'HEALTHZ_PORT_IN_USE',
    message: `127.0.0.1:${health.port} is in use: choose another --healthz-port`,
  });
  await t.rejects(again('192.0.2.77'), /^192\.0\.2\.77 is not an address of this host: choose another --healthz-ip$/);
});

t.test('what it answers', async (t) => {
  t.match(await ask('/metrics'), { status: 200, body: 'weft_up 1\n', type: metrics.contentType });
  t.match(await ask('/metrics?x=1'), { status: 200 });
  await answersHealth(t, endpoint.port);
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
  t.ok(refused >= 16 && refused < 40, `${refused} of 80 connections closed at once`);
  t.same(
    ended.map((closed, i) => (closed ? i : -1)).filter((i) => i >= 0 && i >= refused),
    [],
    'the oldest',
  );
  t.match(await ask('/healthz'), { status: 200 }, 'another one is answered meanwhile');
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
