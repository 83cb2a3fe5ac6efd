/** The client of etcd's v3 API against a real etcd: what it asks, what it says when that fails, and how it finds etcd again. */
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { EtcdClient, type EtcdClientOptions, type WatchNews } from '../../src/control/etcd-client.js';
import { parseEndpoint } from '../../src/control/etcd-dial.js';
import { SetupError } from '../../src/io/setup-error.js';
import { folder, until } from '../lib/embedded.js';
import { Etcd, type EtcdOptions, etcdMissing } from '../lib/etcd.js';

const why = etcdMissing();
t.setTimeout(0);

const NO_TLS = { keyFile: undefined, certFile: undefined, caFile: undefined };
const PLAIN = { ...NO_TLS, username: undefined, password: undefined };
const BELOW = '/net/subnets/';

async function startEtcd(t: Test, options: EtcdOptions = {}): Promise<Etcd> {
  const etcd = await Etcd.start(options);
  t.teardown(() => etcd.close());
  return etcd;
}

function clientOf(
  t: Test,
  options: Partial<EtcdClientOptions> & { readonly endpoints: readonly string[] },
): EtcdClient {
  const client = new EtcdClient({ ...PLAIN, ...options });
  t.teardown(() => client.close());
  return client;
}

/** What a try ends with: `code: message`, or `fine`. */
async function saidOf(make: () => EtcdClient): Promise<string> {
  try {
    const client = make();
    try {
      await client.get('/net/config');
    } finally {
      client.close();
    }
    return 'fine';
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    t.notMatch(error.message, /\n/);
    return `${error.code}: ${error.message}`;
  }
}

/** A watch that is read until the test ends. */
function follow(t: Test, client: EtcdClient, from: number): { news: WatchNews[]; ended: Promise<unknown> } {
  const abort = new AbortController();
  const news: WatchNews[] = [];
  const read = async (): Promise<unknown> => {
    try {
      for await (const one of client.watch(BELOW, from, abort.signal)) news.push(one);
      return undefined;
    } catch (error) {
      return error;
    }
  };
  const ended = read();
  t.teardown(async () => {
    abort.abort();
    await ended;
  });
  return { news, ended };
}

t.test('endpoints', async (t) => {
  const files = { ...NO_TLS, caFile: 'ca.pem' };
  for (const [text, tls, want] of [
    ['http://127.0.0.1:2379', NO_TLS, 'http://127.0.0.1:2379'],
    ['http://127.0.0.1:4001/', NO_TLS, 'http://127.0.0.1:4001'],
    ['https://etcd.example', NO_TLS, 'https://etcd.example:2379'],
    ['HTTP://[fd00::1]:2379', NO_TLS, 'http://[fd00::1]:2379'],
    ['10.0.0.1:2379', NO_TLS, 'http://10.0.0.1:2379'],
    ['10.0.0.1:2379', files, 'https://10.0.0.1:2379'],
    [' http://a:1 ', files, 'http://a:1'],
  ] as const) {
    t.equal(parseEndpoint(text, tls).text, want);
  }
  for (const text of [
    '',
    'ftp://a:1',
    'http://',
    'http://a:0',
    'http://a:65536',
    'http://a:b',
    'http://a/b',
    'fd00::1',
  ]) {
    t.throws(() => parseEndpoint(text, NO_TLS), {
      code: 'BAD_ENDPOINT',
      message: `--etcd-endpoints ${text}: expected http://host:port or https://host:port`,
    });
  }
});

t.test('what is wrong with an endpoint is said without its password', async (t) => {
  t.throws(() => parseEndpoint('http://root:secret@10.0.0.1:2379', NO_TLS), {
    code: 'BAD_ENDPOINT',
    message: '--etcd-endpoints http://…@10.0.0.1:2379: expected http://host:port or https://host:port',
  });
});

if (why) t.comment(`SKIPPED: ${why}`);
else {
  t.test('reads, writes that are guarded, leases', async (t) => {
    const etcd = await startEtcd(t);
    const client = clientOf(t, { endpoints: etcd.endpoints });
    t.match(await client.get('/net/config'), { entry: undefined, revision: 1 });
    await etcd.put('/net/config', 'größe');
    t.match(await client.get('/net/config'), { entry: { value: 'größe', modRevision: 2, lease: '0' }, revision: 2 });
    t.match(await client.list(BELOW), { keys: [], revision: 2 });

    const { id, ttl } = await client.grant(60);
    t.ok(ttl >= 60);
    const first = await client.write({ key: `${BELOW}a`, at: 0, value: 'one', lease: id, list: BELOW });
    t.match(first, {
      written: true,
      revision: 3,
      keys: [{ key: `${BELOW}a`, value: 'one', createRevision: 3, modRevision: 3, lease: id }],
    });
    const late = await client.write({ key: `${BELOW}a`, at: 0, value: 'two', list: BELOW });
    t.match(late, { written: false, revision: 3, keys: [{ value: 'one' }] }, 'there is one: left, and told');
    t.match(await client.write({ key: `${BELOW}a`, at: 3, value: 'two', lease: id, list: BELOW }), { written: true });
    t.match(
      await client.write({ key: `${BELOW}a`, at: 3, value: undefined, list: BELOW }),
      { written: false },
      'it was changed',
    );
    t.equal((await etcd.lease(BigInt(id))).keys.length, 1);
    t.match(await client.write({ key: `${BELOW}a`, at: 4, value: undefined, list: BELOW }), {
      written: true,
      keys: [],
    });
    await client.write({ key: `${BELOW}b`, at: 0, value: '', lease: id, list: BELOW });
    await client.revoke(id);
    t.match(await client.list(BELOW), { keys: [] });
    await t.rejects(client.revoke(id), { kind: 'answer', message: /requested lease not found/ });
    t.equal(client.requests, 13);
    t.same(client.counts.get('txn'), 6);
    t.same((await etcd.requests()).handled.Txn, 6, 'etcd counts the same');
  });

  t.test('a watch tells what was and what comes, and that its history is gone', async (t) => {
    const etcd = await startEtcd(t);
    const client = clientOf(t, { endpoints: etcd.endpoints });
    await etcd.put(`${BELOW}a`, '1');
    await etcd.put(`${BELOW}a`, '2');
    await etcd.put('/net/subnetsx', 'not below');
    const { news } = follow(t, client, 2);
    t.ok(await until(() => news.length >= 2));
    t.match(news, [
      { kind: 'watching', revision: 4 },
      { kind: 'events', revision: 3, events: [{ type: 'put', entry: { value: '2' } }] },
    ]);
    t.equal(news.length, 2, 'of a key the last is told');
    await etcd.del(`${BELOW}a`);
    t.ok(await until(() => news.length >= 3));
    t.match(news[2], { kind: 'events', revision: 5, events: [{ type: 'delete', key: `${BELOW}a`, revision: 5 }] });

    await etcd.put(`${BELOW}a`, '3');
    await etcd.compact();
    const late = follow(t, client, 3);
    t.equal(await late.ended, undefined);
    t.equal(late.news.at(-1)?.kind, 'compacted');
  });

  t.test('an etcd that goes and comes back', async (t) => {
    const etcd = await startEtcd(t);
    const [member] = etcd.members;
    const client = clientOf(t, { endpoints: etcd.endpoints });
    await client.get('x');
    const { ended } = follow(t, client, 1);
    await member.stop('SIGKILL');
    t.match(await ended, { kind: 'away' }, 'the watch ends');
    await t.rejects(client.get('x'), {
      kind: 'away',
      message: `etcd ${member.endpoint}: connection refused: is etcd running there?`,
    });
    await member.start();
    t.match(await client.get('x'), { entry: undefined }, 'at once, nothing stays broken');

    member.pause();
    await t.rejects(client.get('x'), { kind: 'away', message: /: no answer within 5 s$/ });
    await t.rejects(client.get('x'), { kind: 'away', message: /: no answer within 3 s$/ });
    member.resume();
    t.match(await client.get('x'), { entry: undefined });
  });

  t.test('several endpoints', async (t) => {
    const etcd = await startEtcd(t);
    const dead = ['http://127.0.0.1:1', 'http://127.0.0.1:2'];
    for (let i = 0; i < 5; i++) {
      const client = clientOf(t, { endpoints: [dead[0], ...etcd.endpoints, dead[1]] });
      t.match(await client.get('x'), { entry: undefined });
    }
    await t.rejects(clientOf(t, { endpoints: dead }).get('x'), {
      kind: 'away',
      message:
        /^etcd http:\/\/127\.0\.0\.1:[12],http:\/\/127\.0\.0\.1:[12]: connection refused: is etcd running there\?$/,
    });
  });

  t.test('what is no etcd', async (t) => {
    const listen = (greet: (server: Server) => void): Promise<string> => {
      const server = createServer();
      greet(server);
      t.teardown(() => server.close());
      return new Promise((resolve) => {
        server.listen(0, '127.0.0.1', () => {
          const address = server.address();
          resolve(`http://127.0.0.1:${typeof address === 'object' ? address?.port : ''}`);
        });
      });
    };
    const web = await listen((server) =>
      server.on('connection', (socket) => socket.on('error', () => {}).end('HTTP/1.1 400 Bad Request\r\n\r\n')),
    );
    t.equal(
      await saidOf(() => clientOf(t, { endpoints: [web] })),
      `NOT_ETCD: etcd ${web}: what answers there is not etcd`,
    );
    const shy = await listen((server) => server.on('connection', (socket) => socket.on('error', () => {}).end()));
    t.equal(
      await saidOf(() => clientOf(t, { endpoints: [shy] })),
      `ETCD_AWAY: etcd ${shy}: it closes the connection: is it https://?`,
    );
    t.match(
      await saidOf(() => clientOf(t, { endpoints: ['http://nowhere.invalid:2379'] })),
      /^ETCD_AWAY: etcd http:\/\/nowhere\.invalid:2379: (its name is unknown to DNS|DNS does not answer)$/,
    );
  });

  t.test('certificates', async (t) => {
    const etcd = await startEtcd(t, { tls: 'mutual' });
    const { certificates: made } = etcd;
    if (!made) throw new Error('no certificates');
    const [endpoint] = etcd.endpoints;
    const good = { endpoints: etcd.endpoints, caFile: made.ca, certFile: made.client.cert, keyFile: made.client.key };
    const tries = (more: Partial<EtcdClientOptions>): Promise<string> =>
      saidOf(() => new EtcdClient({ ...PLAIN, ...good, ...more }));
    const pair = ({ cert, key }: { cert: string; key: string }) => ({ certFile: cert, keyFile: key });
    t.equal(await tries({}), 'fine');
    t.match(
      await tries({ caFile: made.wrongCa }),
      /^ETCD_TLS: etcd .*: its certificate is not of a CA in .*wrong-ca.* \([A-Z_]+\): check --etcd-cafile$/,
    );
    t.match(await tries({ caFile: undefined }), /^ETCD_TLS: .*: check --etcd-cafile$/);
    t.match(
      await tries(pair(made.expiredClient)),
      /^ETCD_TLS: .*: it refuses our certificate \(bad certificate\): --etcd-certfile has expired, on /,
    );
    t.match(
      await tries(pair(made.wrongClient)),
      /^ETCD_TLS: .*: it refuses our certificate \(bad certificate\): check --etcd-certfile and --etcd-keyfile$/,
    );
    t.match(
      await tries({ certFile: undefined, keyFile: undefined }),
      /^ETCD_TLS: .*: it wants one: give --etcd-certfile and --etcd-keyfile$/,
    );
    t.match(await tries({ endpoints: [endpoint.replace('https', 'http')] }), /^ETCD_AWAY: .*: is it https:\/\/\?$/);
    for (const [files, message] of [
      [{ keyFile: undefined }, '--etcd-certfile and --etcd-keyfile: one does not do without the other'],
      [{ keyFile: made.wrongClient.key }, /^--etcd-keyfile .* is not the key of --etcd-certfile /],
      [{ keyFile: '/nowhere.key' }, /^--etcd-keyfile \/nowhere\.key is of no use: ENOENT: no such file/],
      [{ caFile: made.client.key }, /^--etcd-cafile .* is of no use: there is no certificate in it, as PEM has them$/],
    ] as const) {
      t.throws(() => new EtcdClient({ ...PLAIN, ...good, ...files }), { code: 'ETCD_TLS_FILE', message });
    }
    // Renewed files are read anew, without a restart.
    const [certFile, keyFile] = ['cert', 'key'].map((name) => join(folder(t), name));
    const install = ({ cert, key }: { cert: string; key: string }): void => {
      writeFileSync(certFile, readFileSync(cert));
      writeFileSync(keyFile, readFileSync(key));
    };
    install(made.expiredClient);
    const client = clientOf(t, { ...good, certFile, keyFile });
    await t.rejects(client.get('x'), { code: 'ETCD_TLS' });
    install(made.client);
    t.match(await client.get('x'), { entry: undefined });
  });

  t.test('a server whose certificate has expired', async (t) => {
    const etcd = await startEtcd(t, { tls: 'server', expiredServer: true });
    const caFile = etcd.certificates?.ca;
    t.match(
      await saidOf(() => new EtcdClient({ ...PLAIN, endpoints: etcd.endpoints, caFile })),
      /^ETCD_TLS: .*: its certificate has expired$/,
    );
  });

  t.test('users', async (t) => {
    // Tokens that are not used for a second are forgotten.
    const etcd = await startEtcd(t, {
      user: { name: 'weft', password: 'secret', prefix: '/net/' },
      args: ['--auth-token-ttl=1'],
    });
    const { endpoints } = etcd;
    const right = { endpoints, username: 'weft', password: 'secret' };
    t.match(
      await saidOf(() => new EtcdClient({ ...PLAIN, ...right, password: 'wrong' })),
      /^ETCD_AUTH: .*: wrong user or password \(user weft\): check --etcd-username and --etcd-password$/,
    );
    t.match(
      await saidOf(() => new EtcdClient({ ...PLAIN, ...right, username: 'nobody' })),
      /^ETCD_AUTH: .*wrong user or password/,
    );
    t.match(await saidOf(() => new EtcdClient({ ...PLAIN, endpoints })), /^ETCD_AUTH: .*: it wants a user: /);
    const client = clientOf(t, right);
    const { news } = follow(t, client, 1);
    t.ok(await until(() => news.length > 0), 'watches');
    await t.rejects(client.get('/other'), {
      kind: 'denied',
      message: /: user weft may not read \/other: grant a role/,
    });
    await new Promise((resolve) => setTimeout(resolve, 2500));
    t.match(await client.get('/net/x'), { entry: undefined }, 'with a new token');
    const again = follow(t, client, 1);
    t.ok(await until(() => again.news.length > 0));
  });

  t.test('a user for an etcd that asks for none', async (t) => {
    const etcd = await startEtcd(t);
    t.match(await clientOf(t, { endpoints: etcd.endpoints, username: 'u', password: 'p' }).get('x'), {
      entry: undefined,
    });
  });
}
