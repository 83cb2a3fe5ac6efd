/**
 * The metrics port under abuse while the daemon carries packets: 1,000 scrapes beside two hundred slow connections, clients that
 * never read, requests of a megabyte, bodies without end, garbage, resets. Forwarding does not notice, memory is bounded,
 * descriptors come back, and an honest scrape is answered meanwhile. Then odd requests, and scrapes of a daemon
 * that starts and ends.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { answersPing, type Host, Lab, peersFile, sleep, twoHosts } from '../../race/hosts.js';
import type { Abuse } from './lib/abuser.js';
import { Agent, PYTHON } from './lib/agents.js';
import { FULL, impossible, METRICS, Weft, writePeers } from './lib/weft.js';

const ABUSER = fileURLToPath(new URL('./lib/abuser.js', import.meta.url));
const why = impossible(PYTHON);
t.setTimeout(0);

const PEERS = 1000;
const SCRAPES = 1000;
/** Of each phase, calm and abused. */
const SECONDS = FULL ? 60 : 8;
/** Datagrams a second: far below what saturates anything. */
const RATE = 2000;
/**
 * Of 10,000 that were sent, in the abused phase beyond the calm one. Mostly none; but a busy machine may take the processor away
 * for longer than the queue of the sender's TUN lasts, 250 ms at this rate.
 */
const MOST_LOST = 50;
/** What a scrape may be kept waiting: Prometheus gives up after ten seconds unless told otherwise. */
const SCRAPE_MS = 10_000;
/** While the abuser sends some hundreds of MiB that would be in memory if anybody kept them. */
const MORE_MEMORY_MIB = 96;

/** Connections that ask for all and never take it, with as small a receive buffer as there is. Arguments: address, port, how many. */
const NEVER_READS = `
import socket, sys, time
def ask():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    s.settimeout(1)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        s.send(b'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' * 2)
    except OSError: pass
    return s
held = [ask() for _ in range(int(sys.argv[3]))]
print('asked', flush=True)
while True:
    time.sleep(1)
    held.pop(0).close()
    held.append(ask())
`;

/** A peers file of a, b and so many others that nobody ever sends to, that there are PEERS besides a. */
function manyPeers(lab: Lab, a: Host, b: Host): string {
  const path = join(lab.dir, 'many.json');
  const { peers } = JSON.parse(peersFile([a, b])) as { peers: object[] };
  for (let i = 0; i < PEERS - 1; i++) {
    peers.push({
      name: `n${i}`,
      address: `192.168.${100 + (i >> 8)}.${i & 255}`,
      subnets: [`10.5.${10 + (i >> 4)}.${(i & 15) * 16}/28`],
    });
  }
  writeFileSync(path, JSON.stringify({ peers }));
  return path;
}

// --- what the daemon carries ---

interface Carried {
  readonly sent: number;
  readonly lost: number;
  readonly wrong: number;
  readonly reordered: number;
  /** Round trips, ms: median and 99th percentile. */
  readonly ping: number;
  readonly p99: number;
}

/** A stream from a's client to b's, and pings beside it, for SECONDS. */
async function carryAndPing(a: Host, b: Host, left: Agent, right: Agent): Promise<Carried> {
  await right.expect();
  await left.send(b.client4, RATE, 200);
  const ping = await a.client.run('ping', ['-n', '-i', '0.02', '-w', `${SECONDS}`, b.client4]);
  const { sent } = await left.stop();
  const { received, wrong, reordered } = await right.countedUpTo(sent);
  const times = [...ping.stdout.matchAll(/time=([\d.]+) ms/g)].map((one) => Number(one[1])).sort((x, y) => x - y);
  const at = (share: number): number => times[Math.floor(times.length * share)] ?? Number.POSITIVE_INFINITY;
  return { sent, lost: sent - received, wrong, reordered, ping: at(0.5), p99: at(0.99) };
}

/** What the daemons say they lost; nothing else is a reason to lose a packet of the stream here. */
async function losses(wefts: readonly Weft[]): Promise<Record<string, number>> {
  const all: Record<string, number> = {};
  for (const weft of wefts) {
    for (const line of (await scrape(weft)).split('\n')) {
      const [, name, value] =
        /^(weft_(?:drops|socket_overflow|device_dropped)_total(?:\{.*\})?) (\d+)$/.exec(line) ?? [];
      if (name) all[`${weft.host.letter} ${name}`] = Number(value);
    }
  }
  return all;
}

const difference = (one: Record<string, number>, two: Record<string, number>): Record<string, number> =>
  Object.fromEntries(
    Object.keys(one)
      .map((name) => [name, Math.abs((two[name] ?? 0) - one[name])] as const)
      .filter(([, value]) => value > 0),
  );

// --- what the daemon takes ---

const rss = (pid: number): number => {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) * 1024;
};

const descriptors = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** True once the process has no more descriptors than that, within a few seconds. */
async function returns(pid: number, count: number): Promise<boolean> {
  for (let i = 0; i < 100 && descriptors(pid) > count; i++) await sleep(100);
  return descriptors(pid) <= count;
}

// --- honest scrapes ---

let attempts = 0;

/** The text of /metrics; asks again when it was turned away, until SCRAPE_MS. */
async function scrape(weft: Weft): Promise<string> {
  const deadline = performance.now() + SCRAPE_MS;
  for (;;) {
    attempts++;
    const text = await weft.metrics();
    if (text.includes('weft_build_info{') || performance.now() > deadline) return text;
    await sleep(50);
  }
}

/** Scrapes every half second until the result is called; how long each waited, ms. */
function scrapeAllTheTime(weft: Weft): () => Promise<number[]> {
  const waits: number[] = [];
  let done = false;
  const run = (async () => {
    while (!done) {
      const begun = performance.now();
      await scrape(weft);
      waits.push(Math.round(performance.now() - begun));
      await sleep(500);
    }
  })();
  return async () => {
    done = true;
    await run;
    return waits;
  };
}

// --- odd requests ---

const HOST = 'Host: a\r\nConnection: close\r\n\r\n';
const ODD: readonly (readonly [string, string, RegExp])[] = [
  ['HEAD', `HEAD /metrics HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 405 (.+\r\n)+\r\n$/],
  ['OPTIONS *', `OPTIONS * HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 405 /],
  ['CONNECT', `CONNECT 192.0.2.1:443 HTTP/1.1\r\n${HOST}`, /^(HTTP\/1\.1 40[05] |$)/],
  ['a method of one’s own', `WEFT /metrics HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 400 /],
  ['a path that is percent-encoded is not that path', `GET /%6detrics HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 404 /],
  ['dots are not followed', `GET /x/../metrics HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 404 /],
  ['absolute form', `GET http://${METRICS}/metrics HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 (200|404) /],
  ['two slashes', `GET //metrics HTTP/1.1\r\n${HOST}`, /^HTTP\/1\.1 404 /],
  ['without Host', 'GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n', /^HTTP\/1\.1 400 /],
  ['HTTP/1.0', 'GET /healthz HTTP/1.0\r\n\r\n', /^HTTP\/1\.1 200 /],
  ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', /^HTTP\/1\.1 400 /],
  ['TLS', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', /^HTTP\/1\.1 400 /],
  [
    'an upgrade is not made',
    `GET /healthz HTTP/1.1\r\nUpgrade: websocket\r\n${HOST.replace('close', 'Upgrade')}`,
    /^HTTP\/1\.1 (200|426) /,
  ],
  [
    'two lengths',
    `POST /metrics HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n${HOST}0\r\n\r\n`,
    /^HTTP\/1\.1 40[05] /,
  ],
  ['a header line that is folded', `GET /metrics HTTP/1.1\r\nX: a\r\n b\r\n${HOST}`, /^HTTP\/1\.1 (200|400) /],
  ['9 KB of headers', `GET /metrics HTTP/1.1\r\nX: ${'x'.repeat(9000)}\r\n${HOST}`, /^HTTP\/1\.1 431 /],
];

/** Arguments: port, address, then the bytes of each request in hex. Prints the answers as a JSON list. */
const ASK = `
const { connect } = require('node:net');
const [port, address, ...all] = process.argv.slice(1);
const ask = (hex) => new Promise((resolve) => {
  let said = '';
  const socket = connect(port, address, () => socket.write(Buffer.from(hex, 'hex')));
  socket.setEncoding('latin1').on('data', (text) => { said += text; }).on('error', () => {}).on('close', () => resolve(said));
  socket.setTimeout(8000, () => socket.destroy());
});
(async () => {
  const answers = await Promise.all(all.map(ask));
  process.stdout.write(JSON.stringify(answers));
})();
`;

/** What the port answers to each of these, on a connection of its own from within the namespace, until that is closed. */
async function ask(host: Host, requests: readonly string[]): Promise<string[]> {
  const [address, port] = METRICS.split(':');
  const hex = requests.map((bytes) => Buffer.from(bytes, 'latin1').toString('hex'));
  return JSON.parse((await host.ns.run(process.execPath, ['-e', ASK, port, address, ...hex])).stdout) as string[];
}

// --- the tests ---

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('abuse of the metrics port', async (t) => {
    const lab = new Lab('ht-abuse');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const [weft, other] = await Promise.all([
      Weft.start(a, { peers: manyPeers(lab, a, b) }),
      Weft.start(b, { peers: writePeers(lab, [a, b]) }),
    ]);
    const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    t.equal(await weft.sample('weft_peers'), PEERS, 'a has many peers');
    // The first scrapes compile what they run through.
    for (let i = 0; i < 20; i++) await weft.metrics();

    const carry = (): Promise<Carried> => carryAndPing(a, b, left, right);
    const lossesBefore = await losses([weft, other]);
    const calm = await carry();
    const calmLosses = difference(lossesBefore, await losses([weft, other]));

    const pid = Number(weft.daemon.child.pid);
    const before = { memory: rss(pid), descriptors: descriptors(pid) };
    const [address, port] = METRICS.split(':');
    let peak = 0;
    let mostDescriptors = 0;
    const over: number[] = [];
    const begunAbuse = performance.now();
    const watch = setInterval(() => {
      const now = rss(pid);
      peak = Math.max(peak, now);
      if (performance.now() - begunAbuse > (over.length * SECONDS * 1000) / 10) over.push(Math.round(now / 1048576));
      mostDescriptors = Math.max(mostDescriptors, descriptors(pid));
    }, 50);
    t.teardown(() => clearInterval(watch));
    const idle = a.ns.start('never-reads', PYTHON, ['-c', NEVER_READS, address, port, '20']);
    await idle.ready('asked');
    const abuser = a.ns.run(process.execPath, [ABUSER, address, port, `${SECONDS}`, `${SCRAPES}`]);
    const tried = attempts;
    const honest = scrapeAllTheTime(weft);
    const abused = await carry();
    const abusedLosses = difference(await losses([weft, other]), lossesBefore);
    const waits = await honest();
    const turnedAway = attempts - tried - waits.length;
    await idle.stop();
    const { stdout, stderr } = await abuser;
    clearInterval(watch);
    if (!stdout) return void t.fail(`the abuser fell over: ${stderr}`);
    const abuse = JSON.parse(stdout) as Abuse;

    t.comment(`calm:   ${JSON.stringify(calm)} ${JSON.stringify(calmLosses)}`);
    t.comment(`abused: ${JSON.stringify(abused)} ${JSON.stringify(abusedLosses)}`);
    t.comment(`abuse:  ${JSON.stringify(abuse)}`);
    t.comment(`resident memory in tenths of the time, MiB: ${over.join(' ')}`);
    t.comment(`honest scrapes waited, ms: ${waits.join(' ')}; turned away ${turnedAway} times`);
    t.equal(abuse.scraped, SCRAPES, `${SCRAPES} scrapes were answered whole, the slowest in ${abuse.slowestScrape} ms`);
    t.equal(abuse.broken, 0, 'and none otherwise');
    t.ok(calm.sent > RATE * SECONDS * 0.8, `a steady stream: ${calm.sent} datagrams in ${SECONDS} s`);
    t.ok(abused.sent > calm.sent * 0.8, `and ${abused.sent} under abuse`);
    t.ok(
      abused.lost <= calm.lost + Math.ceil((abused.sent * MOST_LOST) / 10_000),
      `lost of the stream: ${calm.lost} in calm, ${abused.lost} under abuse`,
    );
    t.same([abused.wrong, abused.reordered], [0, 0], 'the rest arrived as it was sent, in order');
    t.ok(
      abused.ping <= calm.ping * 10 + 10,
      `ping, median: ${calm.ping} ms in calm, ${abused.ping} ms under abuse; 99th percentile ${calm.p99} and ${abused.p99} ms`,
    );
    t.ok(
      waits.length >= 3 && Math.max(...waits) < SCRAPE_MS,
      `an honest scrape waits ${Math.max(...waits)} ms at most`,
    );
    // A crowd of connections that come back at once may push one out; holding them keeps nobody out.
    t.ok(turnedAway <= 2 * waits.length, `${waits.length} were answered, ${turnedAway} turned away`);
    const begun = performance.now();
    t.match(await scrape(weft), /^weft_build_info\{/m, 'and right after');
    t.comment(`right after: ${Math.round(performance.now() - begun)} ms`);
    t.ok(
      await returns(pid, before.descriptors),
      `descriptors: ${before.descriptors}, ${mostDescriptors} at most, ${descriptors(pid)} after`,
    );
    const mib = (bytes: number): string => `${(bytes / 1048576).toFixed(1)} MiB`;
    t.ok(
      peak - before.memory < MORE_MEMORY_MIB * 1048576,
      `resident memory: ${mib(before.memory)} before, ${mib(peak)} at most, ${mib(rss(pid))} after`,
    );
    t.equal(await weft.sample('weft_worker_restarts_total'), 0, 'the worker never fell over');
    t.same(
      weft.events().filter(({ level }) => level === 'error' || level === 'fatal'),
      [],
      'nothing to complain about',
    );

    await t.test('odd requests', async (t) => {
      const answers = await ask(
        a,
        ODD.map(([, bytes]) => bytes),
      );
      for (const [i, [what, , expected]] of ODD.entries()) t.match(answers[i], expected, what);
      t.ok(weft.daemon.running, 'and it goes on');
    });
  });

  await t.test('scraped while it starts and while it ends', async (t) => {
    const lab = new Lab('ht-abuse-start');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    const peers = manyPeers(lab, a, b);
    const [address, port] = METRICS.split(':');
    for (const round of [1, 2]) {
      const idle = a.ns.start(`never-reads-${round}`, PYTHON, ['-c', NEVER_READS, address, port, '10']);
      // More scrapes than there is time for: it is at it when the daemon ends.
      const abuser = a.ns.start(`abuser-${round}`, process.execPath, [ABUSER, address, port, '60', '1000000']);
      await idle.ready('asked');
      const weft = Weft.spawn(a, { peers });
      await weft.ready();
      t.match(await scrape(weft), /^weft_build_info\{/m, `round ${round}: ready, and scraped`);
      await sleep(500);
      const took = await weft.stop();
      t.equal(weft.daemon.child.exitCode, 0, `round ${round}: SIGTERM under scrapes: exit code 0`);
      t.ok(took < 10_000, `out after ${Math.round(took)} ms`);
      t.same(
        weft.events().filter(({ level }) => level !== 'info' && level !== 'debug'),
        [],
        'without a complaint',
      );
      await abuser.stop();
      const { scraped } = JSON.parse(abuser.log()) as Abuse;
      t.ok(scraped > 0, `${scraped} scrapes meanwhile`);
      await idle.stop();
    }
  });
}
