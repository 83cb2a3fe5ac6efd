/**
 * Captures that go wrong: a reader that never reads, one that is killed, a second one at once, a worker that dies, a daemon that stops
 * or is killed. Forwarding does not wait for any of them, memory is bounded, what was not captured is counted, and a file that was
 * begun can be read.
 */
import { readdirSync } from 'node:fs';
import { get } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Daemon, type Finished, Lab, type Namespace, sleep, twoHosts } from '../../race/hosts.js';
import { Agent, MiB } from './lib/agents.js';
import { ask, CLI, failsWith, mib, pidOf, rss, socketOf, watchMemory, weftIn } from './lib/control.js';
import { until } from './lib/embedded.js';
import { type Assertions, FULL, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible('tcpdump');
t.setTimeout(0);

/** What a capture's ring, the buffers of sockets and pipes, and the stream's heads may take. */
const MORE_MEMORY = 64 * MiB;
/** Datagrams a second, and bytes of each: some times the ring and all other buffers in SECONDS. */
const RATE = 4000;
const SIZE = 1400;
const SECONDS = FULL ? 30 : 3;
/** A busy machine takes the processor away for longer than the queue of the sender's TUN lasts, 125 ms at this rate. */
const MOST_LOST = Math.ceil((RATE * SECONDS) / 100);

/** Captures, one after the other. */
const OFTEN = FULL ? 2000 : 200;

interface Capturing {
  readonly daemon: Daemon;
  readonly file: string;
}

let captures = 0;

/** Starts `weft capture` with these filters into a file; resolves once the daemon captures. */
async function capture(ns: Namespace, ...filters: readonly string[]): Promise<Capturing> {
  const name = `capture-${++captures}`;
  const file = join(ns.lab.dir, `${name}.pcapng`);
  const daemon = ns.start(name, process.execPath, [CLI, 'capture', '-w', file, ...filters]);
  await daemon.ready('weft: capturing');
  return { daemon, file };
}

/** What it said at the end, in numbers. */
function counted({ daemon }: Capturing): { readonly captured: number; readonly lost: number } {
  const [, captured, lost] = /(\d+) captured, (\d+) lost/.exec(daemon.log()) ?? [];
  return { captured: Number(captured), lost: Number(lost) };
}

/** Lines of tcpdump about the packets in a file that match `filter`; it fails if it cannot read all of it. */
async function packetsIn(t: Assertions, ns: Namespace, { file }: Capturing, filter = ''): Promise<string[]> {
  const { code, stdout, stderr } = await ns.run('tcpdump', ['-n', '-r', file, ...(filter ? [filter] : [])]);
  t.equal(code, 0, `tcpdump reads the file to its end: ${stderr.trim().split('\n').at(-1)}`);
  t.notOk(/truncated|bogus|error/i.test(stderr), 'and finds nothing wrong with it');
  return stdout.split('\n').filter(Boolean);
}

interface CaptureStatus {
  readonly captured: number;
  readonly lost: number;
}

/** What the daemon says of a capture that runs; null: none. */
async function running(weft: Weft): Promise<CaptureStatus | null> {
  const { body } = await ask(socketOf(weft), '/v1/status');
  return (JSON.parse(body) as { capture: CaptureStatus | null }).capture;
}

/** Begins a capture, waits for its first bytes, and hangs up. Its status. */
function begunCapture(weft: Weft): Promise<number> {
  return new Promise((resolve, reject) => {
    const options = {
      socketPath: socketOf(weft),
      path: '/v1/capture',
      headers: { 'weft-protocol': '1' },
      agent: false,
    };
    get(options, (response) => {
      response
        .once('error', () => {})
        .once('data', () => {
          response.destroy();
          resolve(response.statusCode ?? 0);
        });
    }).once('error', reject);
  });
}

const descriptors = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** Waits until what has been captured is with its reader: for a while, nothing more comes. */
async function settled(weft: Weft): Promise<void> {
  await until(async () => {
    const before = await running(weft);
    await sleep(300);
    return (await running(weft))?.captured === before?.captured;
  });
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-capture');
  t.teardown(() => lab.close());
  const [a, b] = twoHosts(lab);
  const peers = writePeers(lab, [a, b]);
  const [first, other] = await Promise.all([Weft.start(a, { peers }), Weft.start(b, { peers })]);
  let weft = first;
  const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);

  await t.test('one that never reads', async (t) => {
    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    t.equal(await running(weft), null, 'no capture runs');
    const begun = rss(pidOf(weft));
    const stopped = await capture(a.ns, '--host', b.client4, '--side', 'device', '--direction', 'out');
    const reader = Number(stopped.daemon.child.pid);
    process.kill(reader, 'SIGSTOP');
    lab.whenClosing(() => void (stopped.daemon.running && process.kill(reader, 'SIGCONT')));
    const memory = watchMemory(pidOf(weft));
    await right.expect();
    await left.send(b.client4, RATE, SIZE);
    await sleep(SECONDS * 1000);
    const { sent } = await left.stop();
    const { received, wrong, reordered } = await right.countedUpTo(sent);
    t.ok(sent - received <= MOST_LOST, `of ${sent} datagrams, ${sent - received} were lost on the way`);
    t.same([wrong, reordered], [0, 0], 'the rest arrived as it was sent, in order');
    const most = memory();
    t.ok(most - begun < MORE_MEMORY, `memory: ${mib(begun)} before, ${mib(most)} at most`);
    const entered = (await weft.counters()).get('outbound.device_pulled');
    t.ok(entered >= sent - MOST_LOST, `${entered} packets came from the device`);
    const { captured, lost } = (await running(weft)) ?? { captured: 0, lost: 0 };
    t.ok(lost > 0, `the ring was full: ${lost} are lost to the capture, ${captured} are not`);

    // What waits comes through once it reads on, and no packet is in neither number.
    process.kill(reader, 'SIGCONT');
    await settled(weft);
    await stopped.daemon.stop('SIGINT');
    const end = counted(stopped);
    t.equal(stopped.daemon.child.exitCode, 0, 'Ctrl-C: exit code 0');
    t.ok(end.lost > 0, `it says so: ${end.captured} captured, ${end.lost} lost`);
    const inFile = await packetsIn(t, a.ns, stopped, 'udp and port 9001');
    const total = inFile.length + end.lost;
    t.ok(
      total >= received && total <= sent,
      `${inFile.length} in the file and ${end.lost} lost are the ${received} of the stream`,
    );
    t.equal(await running(weft), null, 'it is over');
  });

  await t.test('a reader of the bare socket that never reads', async (t) => {
    const begun = rss(pidOf(weft));
    const socket = connect(socketOf(weft)).on('error', () => {});
    socket.pause().write('GET /v1/capture HTTP/1.1\r\nHost: a\r\nweft-protocol: 1\r\n\r\n');
    t.ok(await until(async () => (await running(weft)) !== null), 'it captures');
    failsWith(t, await weftIn(a.ns, ['capture', '-w', '-']), 1, /already|another|one at a time/i, 'a second one');
    await right.expect();
    await left.send(b.client4, RATE, SIZE);
    const memory = watchMemory(pidOf(weft));
    await sleep(2000);
    const { sent } = await left.stop();
    const { received } = await right.countedUpTo(sent);
    t.ok(sent - received <= MOST_LOST, `of ${sent} datagrams, ${sent - received} were lost on the way`);
    t.ok(memory() - begun < MORE_MEMORY, `memory: ${mib(begun)} before, ${mib(memory())} at most`);
    socket.destroy();
    t.ok(await until(async () => (await running(weft)) === null), 'it hangs up, and that was it');
  });

  await t.test(`${OFTEN} captures one after the other`, async (t) => {
    const begun = { memory: rss(pidOf(weft)), descriptors: descriptors(pidOf(weft)) };
    await right.expect();
    await left.send(b.client4, RATE, SIZE);
    let refused = 0;
    for (let i = 0; i < OFTEN; ) {
      if ((await begunCapture(weft)) === 200) i++;
      else refused++;
      if (refused > OFTEN * 10) break;
    }
    const { sent } = await left.stop();
    const { received, wrong, reordered } = await right.countedUpTo(sent);
    t.comment(`${refused} came before the one before was over`);
    t.ok(refused <= OFTEN * 10, 'each that ends makes room for the next');
    t.ok(sent - received <= MOST_LOST, `of ${sent} datagrams, ${sent - received} were lost on the way`);
    t.same([wrong, reordered], [0, 0], 'the rest arrived as it was sent, in order');
    t.ok(await until(async () => (await running(weft)) === null), 'none is left');
    t.ok(
      await until(() => descriptors(pidOf(weft)) <= begun.descriptors),
      `${begun.descriptors} descriptors as before`,
    );
    const memory = rss(pidOf(weft));
    t.ok(memory - begun.memory < MORE_MEMORY, `memory: ${mib(begun.memory)} before, ${mib(memory)} after`);
  });

  await t.test('two at once, and one that is killed', async (t) => {
    const one = await capture(a.ns, '--host', b.client4);
    const two = await weftIn(a.ns, ['capture', '-w', join(lab.dir, 'two.pcapng')]);
    failsWith(t, two, 1, /already|another|one at a time/i, 'the second');
    t.ok(await answersPing(a.client, b.client4), 'packets for the first');
    await one.daemon.stop('SIGKILL');
    t.ok(await until(async () => (await running(weft)) === null), 'the first is killed: the daemon notices');
    const next = await capture(a.ns, '--host', b.client4, '--side', 'device');
    t.ok(await answersPing(a.client, b.client4), 'packets for the next');
    await settled(weft);
    await next.daemon.stop('SIGINT');
    t.equal(next.daemon.child.exitCode, 0, 'the next one ends as it should');
    const echoes = await packetsIn(t, a.ns, next, 'icmp');
    t.ok(echoes.length >= 2, `${echoes.length} packets: a request and its answer at least`);
    t.equal(counted(next).captured, echoes.length, 'as many as it said');
  });

  await t.test('readers that have enough, and disks that are full', async (t) => {
    await right.expect();
    await left.send(b.client4, 200);
    const sh = (script: string): Promise<Finished> =>
      a.ns.run('timeout', ['20', 'bash', '-c', script, 'bash', process.execPath, CLI]);
    for (const [what, script] of [
      ['lines', '"$@" capture --text | head -n 2 | wc -l'],
      ['pcapng', '"$@" capture -w - | tcpdump -n -c 2 -r - 2>/dev/null | wc -l'],
      ['JSON', '"$@" capture -j | head -n 2 | wc -l'],
    ]) {
      const { code, stdout, stderr } = await sh(`set -o pipefail; ${script}`);
      t.same([code, stdout.trim()], [0, '2'], `${what}: two packets, exit code 0`);
      t.ok(
        stderr.split('\n').every((line) => line === '' || line.startsWith('weft: ')),
        `${what}: ${stderr.trim()}`,
      );
    }
    const full = await sh('"$@" capture -w /dev/full');
    t.equal(full.code, 1, 'a full disk: exit code 1');
    t.match(full.stderr, /^weft: .*\/dev\/full.*space/m, `and a line: ${full.stderr.trim()}`);
    t.equal(await running(weft), null, 'none is left');
    await left.stop();
  });

  await t.test('a worker dies', async (t) => {
    const through = await capture(a.ns, '--side', 'device', '--host', b.client4);
    await a.client.run('ping', ['-n', '-c', '3', '-i', '0.05', '-s', '1001', b.client4]);
    // Whoever deletes the device ends the worker, which is started again on another one.
    a.ns.ip('link del flannel0');
    await weft.event('worker_ended');
    t.ok(await answersPing(a.client, b.client4, 15_000), 'it forwards again');
    t.equal(await weft.sample('weft_worker_restarts_total'), 1, 'by another worker');
    await a.client.run('ping', ['-n', '-c', '3', '-i', '0.05', '-s', '1002', b.client4]);
    t.ok(through.daemon.running, 'the capture goes on');
    await settled(weft);
    await through.daemon.stop('SIGINT');
    t.equal(through.daemon.child.exitCode, 0, 'it ends as it should');
    for (const [what, size] of [
      ['before', 1009],
      ['after', 1010],
    ] as const) {
      const lines = await packetsIn(t, a.ns, through, `icmp and (ip[2:2] = ${size + 20})`);
      t.equal(lines.length, 6, `three requests and answers ${what}`);
    }
  });

  await t.test('the daemon stops', async (t) => {
    const one = await capture(a.ns);
    t.ok(await answersPing(a.client, b.client4), 'packets');
    await weft.stop();
    t.equal(weft.daemon.child.exitCode, 0, 'exit code 0');
    t.equal(weft.events('stopped').length, 1, 'it does not wait for the capture');
    t.ok(await until(() => !one.daemon.running), 'the capture ends with it');
    t.match(
      one.daemon.log(),
      /captured, 0 lost/,
      `and says what it has: ${one.daemon.log().trim().split('\n').at(-1)}`,
    );
    t.notMatch(one.daemon.log(), /\n {4}at /, 'no stack');
    t.ok((await packetsIn(t, a.ns, one)).length >= 4, 'each packet on both sides');
    weft = await Weft.start(a, { peers });
  });

  await t.test('the daemon is killed', async (t) => {
    const one = await capture(a.ns);
    t.ok(await answersPing(a.client, b.client4), 'packets');
    t.ok(await until(async () => ((await running(weft))?.captured ?? 0) >= 4), 'captured');
    await sleep(200);
    await weft.stop('SIGKILL');
    t.ok(await until(() => !one.daemon.running), 'the capture ends with it');
    t.equal(one.daemon.child.exitCode, 1, 'exit code 1: it did not end as it should');
    const said = one.daemon.log().trim().split('\n').slice(1);
    t.ok(said.length <= 2 && said.every((line) => /^weft: |captured/.test(line)), `in few words: ${said.join(' | ')}`);
    t.ok((await packetsIn(t, a.ns, one)).length >= 4, 'what it has can be read');
  });

  await t.test('the other host', async (t) => {
    t.equal(other.events('worker_ended').length, 0, 'noticed nothing');
    await other.stop();
    t.equal(other.daemon.child.exitCode, 0, 'and stops');
  });
}
