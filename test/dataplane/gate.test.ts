/**
 * The gate: packets are forwarded until a deadline that control moves. Its arithmetic, and a real worker behind it: on a pair of
 * sockets instead of a TUN, and on loopback, so that it needs no root.
 */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { closeSync, readSync, writeSync } from 'node:fs';
import fc from 'fast-check';
import koffi from 'koffi';
import t, { type Test } from 'tap';
import { Dataplane } from '../../src/control/dataplane.js';
import { IN_IN, OUT_IN, readCounter } from '../../src/dataplane/counters.js';
import type { PeerRef } from '../../src/dataplane/peers.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { DEFAULT_MEMORY, EngineMemory } from '../../src/io/memory.js';
import { openUdp } from '../../src/io/udp.js';
import { pause, TestLog, until } from '../lib/embedded.js';
import { address, concat, packet, prefix, udp } from '../lib/packets.js';

const MEMORY = { ...DEFAULT_MEMORY, peers: 16, routeNodes: 64 };
const DAYS_24 = 24 * 86_400_000;

t.test('no gate is an open gate', async (t) => {
  const words = new SharedWords(EngineMemory.create(MEMORY));
  for (const now of [0, 1, -1, 2 ** 31 - 1, -(2 ** 31)]) t.ok(words.gateOpen(now));
});

t.test('open before its deadline, shut from there on, wherever the 32 bits wrap', async (t) => {
  const words = new SharedWords(EngineMemory.create(MEMORY));
  const open = (until: number, now: number): boolean => {
    words.setGate(until);
    return words.gateOpen(now | 0);
  };
  for (const until of [
    0,
    1,
    1_000_000,
    2 ** 31 - 1,
    2 ** 31,
    2 ** 31 + 1,
    2 ** 32 - 1,
    2 ** 32,
    2 ** 32 + 1,
    2 ** 45,
  ]) {
    t.ok(open(until, until - 1), `a millisecond before ${until}`);
    t.notOk(open(until, until), `at ${until}`);
    t.notOk(open(until, until + 1), `a millisecond after ${until}`);
  }
  const time = fc.oneof(fc.integer({ min: 0, max: 2 ** 45 }), fc.integer({ min: 2 ** 31 - 10, max: 2 ** 31 + 10 }));
  fc.assert(
    fc.property(time, fc.integer({ min: -DAYS_24, max: DAYS_24 }), (until, ahead) => {
      if (open(until, until - ahead) !== ahead > 0) throw new Error('wrong');
    }),
  );
});

/** Two connected sockets that keep packets apart: a device for the worker, and the host's side of it. */
function devicePair(): [number, number] {
  const fds = new Int32Array(2);
  const socketpair = koffi.load(null).func('int socketpair(int family, int type, int protocol, int *fds)');
  if (socketpair(1, 5 | 0o4000 | 0o2000000, 0, fds) !== 0) throw new Error(`socketpair: errno ${koffi.errno()}`);
  return [fds[0], fds[1]];
}

const monotonic = (): number => Number(process.hrtime.bigint() / 1_000_000n);

interface Stage {
  readonly dataplane: Dataplane;
  readonly log: TestLog;
  readonly ref: PeerRef;
  /** Packet number `i` into the device, and to the socket. */
  out(i: number): void;
  in(i: number): void;
  /** Payloads that came out at the socket, and at the device. */
  readonly sent: number[];
  readonly pushed: number[];
  stop(): Promise<void>;
}

/** Loopback addresses of our own. */
const OURS = `127.87.${process.pid % 250}.1`;
const PEER = `127.87.${process.pid % 250}.2`;
const PORT = 8285;

/** The number in packet `i`'s payload, which is its last byte. */
const numbered = (source: string, destination: string, i: number): Uint8Array =>
  packet({ source, destination }, udp({ payload: Uint8Array.of(i) }));

async function setUp(t: Test): Promise<Stage> {
  const [device, host] = devicePair();
  const socket = openUdp({ address: address(OURS), text: OURS, port: PORT, offloads: 0 });
  const peer: Socket = createSocket('udp4');
  peer.bind(PORT, PEER);
  await once(peer, 'listening');
  const log = new TestLog();
  const dataplane = new Dataplane({ workers: 1, log, memory: MEMORY });
  const sent: number[] = [];
  const pushed: number[] = [];
  peer.on('message', (bytes) => sent.push(bytes[bytes.length - 1]));
  const buffer = new Uint8Array(2048);
  const timer = setInterval(() => {
    for (;;) {
      try {
        pushed.push(buffer[readSync(host, buffer) - 1]);
      } catch {
        return; // EAGAIN
      }
    }
  }, 2);
  let stopped: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopped ??= dataplane.stop();
    return stopped;
  };
  t.teardown(async () => {
    clearInterval(timer);
    await stop();
    peer.close();
    for (const fd of [device, host, socket.fd]) closeSync(fd);
  });
  const ref = dataplane.tables.addPeer({ address: address(PEER), port: PORT, mtu: 1472, ecn: false, network: 0 });
  dataplane.tables.setRoute(0, prefix('10.5.2.0/24'), ref);
  await dataplane.tables.commit();
  await dataplane.start({
    deviceFds: [[device]],
    socketFds: [[socket.fd, -1]],
    senderFds: [[[], []]],
    settings: { sourceCheck: 'peer', offloads: 0, maxSegments: 1, mtu: 1472, address4: undefined, address6: undefined },
    reopenDevices: async () => [[device]],
  });
  return {
    dataplane,
    log,
    ref,
    sent,
    pushed,
    stop,
    out: (i) => void writeSync(host, concat(new Uint8Array(10), numbered('10.5.1.1', '10.5.2.1', i))),
    in: (i) => peer.send(numbered('10.5.2.1', '10.5.1.1', i), PORT, OURS),
  };
}

t.test('a worker moves packets both ways until the gate shuts, and those that waited when it opens', async (t) => {
  const { dataplane, sent, pushed, log, ...stage } = await setUp(t);
  const both = (i: number): void => {
    stage.out(i);
    stage.in(i);
  };
  both(1);
  t.ok(await until(() => sent.length === 1 && pushed.length === 1), 'no gate');
  dataplane.setGate(monotonic() + 60_000);
  both(2);
  t.ok(await until(() => sent.length === 2 && pushed.length === 2), 'an open one');

  dataplane.setGate(monotonic());
  dataplane.wake();
  both(3);
  both(4);
  await pause(700); // longer than a worker ever sleeps
  t.same(
    [sent, pushed],
    [
      [1, 2],
      [1, 2],
    ],
    'a shut one',
  );
  t.equal(readCounter(dataplane.memory, OUT_IN), 2, 'not even read from the device');
  t.equal(readCounter(dataplane.memory, IN_IN), 2, 'nor from the socket');

  const begun = performance.now();
  dataplane.setGate(monotonic() + 60_000);
  t.ok(await until(() => sent.length === 4 && pushed.length === 4), 'open again');
  t.ok(performance.now() - begun < 400, 'at once: it is woken');
  t.same(
    [sent, pushed],
    [
      [1, 2, 3, 4],
      [1, 2, 3, 4],
    ],
    'nothing was lost',
  );
  t.equal(dataplane.restarts, 0);
  t.same(log.lines, []);
});

t.test('the gate shuts by itself, whether there is traffic or not', async (t) => {
  const { dataplane, sent, out } = await setUp(t);
  let number = 0;
  const send = async (ms: number): Promise<void> => {
    for (const end = monotonic() + ms; monotonic() < end; await pause(3)) out(number++ & 127);
  };
  for (const traffic of [true, false, true]) {
    dataplane.setGate(monotonic() + 150);
    const before = sent.length;
    if (traffic) await send(100);
    else await pause(100);
    t.ok(sent.length > before, traffic ? 'open for its time' : 'those that waited');
    await pause(100);
    const after = sent.length;
    await send(100);
    t.equal(sent.length, after, 'and nothing after that');
  }
  dataplane.setGate(monotonic() + 60_000);
  t.ok(await until(() => sent.length === number));
  t.same(
    sent,
    Array.from({ length: number }, (_, i) => i & 127),
    'all came, in their order',
  );
});

t.test('behind a shut gate commits pass, and so does the end', async (t) => {
  const { dataplane, ref, sent, out, stop } = await setUp(t);
  dataplane.setGate(monotonic() - 1);
  dataplane.wake();
  out(1);
  const begun = performance.now();
  for (let i = 3; i < 13; i++) {
    dataplane.tables.setRoute(0, prefix(`10.5.${i}.0/24`), ref);
    await dataplane.tables.commit();
  }
  const took = performance.now() - begun;
  t.ok(took < 1000, `ten commits in ${Math.round(took)} ms: the worker is woken for each`);
  const cpu = process.cpuUsage();
  await pause(300);
  const { user, system } = process.cpuUsage(cpu);
  t.ok(user + system < 200_000, `it sleeps with packets waiting: ${Math.round((user + system) / 1000)} ms of 300`);
  t.same(sent, []);
  const stopping = performance.now();
  await stop();
  t.ok(performance.now() - stopping < 600);
  t.equal(dataplane.running, 0);
});
