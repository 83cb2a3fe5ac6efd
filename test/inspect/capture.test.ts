/**
 * A capture as the control socket gives it: what is asked, one at a time, the stream with its head, peers, counts and end, readers
 * that go away or never read, a daemon that stops. Packets come from an engine in memory.
 */
import { once } from 'node:events';
import { PassThrough, Writable } from 'node:stream';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { RING_TAIL, ringRecords } from '../../src/dataplane/capture-ring.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { VERDICT_INFOS } from '../../src/dataplane/verdicts.js';
import { type CaptureSource, Captures } from '../../src/inspect/capture.js';
import {
  type CapturedPacket,
  type CaptureEnd,
  type CaptureItem,
  CaptureReader,
  type CaptureScene,
  CaptureStreamError,
  FRAME_HEADER,
  FRAME_RECORDS,
  frameOf,
} from '../../src/inspect/capture-frames.js';
import { captureQuestion } from '../../src/inspect/capture-question.js';
import { Refusal } from '../../src/inspect/refusal.js';
import { DEVICE_IN, DEVICE_OUT, MAX_SNAPLEN, UNDERLAY_IN, UNDERLAY_OUT } from '../../src/io/capture-record.js';
import { BROADCAST, frame } from '../lib/frames.js';
import { hex, message, packet, pattern, plain, udp } from '../lib/packets.js';
import { HOST_4, makeRig, type Rig, remote4 } from '../lib/rig.js';
import { makeSwitch, our4, ourMac, their4 } from '../lib/rig-l2.js';

const SCENE: CaptureScene = {
  mode: 'l3',
  devices: [{ name: 'weft0', mtu: 1472, vni: null }],
  underlay: { interface: 'eth0', mtu: 1500, addresses: ['192.168.77.1'], port: 8285, sourcePorts: [[4001], []] },
};

interface Stage {
  readonly rig: Rig;
  readonly captures: Captures;
  /** What the source says; tests change it. */
  readonly source: { scene: CaptureScene; refs: Record<string, number[]>; up: boolean };
  /** One packet to peer `i`, and what the engine makes of it. */
  to(i: number): void;
  /** A turn every few milliseconds, as a worker takes; ended by the test's end. */
  idle(): void;
}

async function makeStage(t: Test): Promise<Stage> {
  const rig = await makeRig({ peers: [{}, {}], keep: false });
  const source = { scene: SCENE, refs: { b: [rig.refs[0]], c: [rig.refs[1]] } as Record<string, number[]>, up: true };
  const shared = new SharedWords(rig.memory);
  const captures = new Captures({
    dataplane: () => (source.up ? { memory: rig.memory, shared, wake: () => rig.drain() } : undefined),
    scene: () => source.scene,
    refsOf: (peer) => source.refs[peer] ?? [],
    peers: () =>
      Object.entries(source.refs).flatMap(([name, refs]) =>
        refs.map((ref) => ({ name, ref, address: '192.168.77.2' })),
      ),
    version: '1.2.3',
  } satisfies CaptureSource);
  shared.setRunning(0, true);
  t.teardown(() => captures.close());
  return {
    rig,
    captures,
    source,
    to: (i) => void rig.out(plain(packet({ source: HOST_4, destination: remote4(i) }, udp({ payload: pattern(50) })))),
    idle() {
      const timer = setInterval(() => rig.drain(), 5);
      t.teardown(() => clearInterval(timer));
    },
  };
}

/** Reads a stream to its end. */
async function readAll(stream: AsyncIterable<Buffer>): Promise<{ items: CaptureItem[]; reader: CaptureReader }> {
  const reader = new CaptureReader();
  const items: CaptureItem[] = [];
  for await (const chunk of stream) items.push(...reader.read(chunk));
  return { items, reader };
}

const packetsOf = (items: readonly CaptureItem[]): CapturedPacket[] =>
  items.flatMap((item) => (item.kind === 'packet' ? [item.packet] : []));
const endOf = (items: readonly CaptureItem[]): CaptureEnd | undefined =>
  items.flatMap((item) => (item.kind === 'end' ? [item.end] : []))[0];

/** Starts a capture into a stream that is read at once; `begun` resolves with its head. */
function start(
  { captures }: Stage,
  query = '',
): { begun: Promise<void>; all: ReturnType<typeof readAll>; over: Promise<void> } {
  const sink = new PassThrough();
  const begun = once(sink, 'data').then(() => {});
  const copy = new PassThrough();
  sink.pipe(copy);
  return { begun, all: readAll(copy), over: captures.open(new URLSearchParams(query)).run(sink) };
}

t.test('what makes no sense is refused in one line, before anything runs', async (t) => {
  const bad: Record<string, RegExp> = {
    'colour=red': /^capture: no parameter "colour": peer, host/,
    'host=nobody': /^capture: host "nobody" is not an address, a prefix or a MAC$/,
    'host=10.0.0.0/33': /is not an address/,
    'host=10.0.0.0/': /is not an address/,
    'host=': /is not an address/,
    'verdict=lost': /^capture: no verdict "lost": drop, sent/,
    'verdict=drop,': /no verdict ""/,
    'side=left': /neither device nor underlay/,
    'side=device&side=underlay': /side more than once/,
    'direction=up': /neither in nor out/,
    'snaplen=0': /snaplen "0" is not a whole number from 1 to 65600/,
    'snaplen=1e3': /snaplen/,
    'count=0': /count/,
    'count=-1': /count/,
    'seconds=0.5': /seconds/,
    'seconds=99999999': /seconds/,
    [Array.from({ length: 17 }, (_, i) => `host=10.0.0.${i}`).join('&')]: /at most 16 hosts/,
    [Array.from({ length: 5 }, () => 'peer=b').join('&')]: /at most 4 peers/,
  };
  for (const [query, line] of Object.entries(bad)) {
    try {
      captureQuestion(new URLSearchParams(query));
      t.fail(`${query} is taken`);
    } catch (error) {
      t.ok(error instanceof Refusal && error.status === 400, query);
      t.match((error as Error).message, line, query);
      t.notOk((error as Error).message.includes('\n'));
    }
  }
});

t.test('what is asked', async (t) => {
  t.same(captureQuestion(new URLSearchParams('')), {
    peers: [],
    hosts: undefined,
    verdicts: undefined,
    places: [DEVICE_IN, DEVICE_OUT, UNDERLAY_IN, UNDERLAY_OUT],
    snaplen: MAX_SNAPLEN,
    count: undefined,
    seconds: undefined,
  });
  const places = (query: string): readonly number[] => captureQuestion(new URLSearchParams(query)).places;
  t.same(places('side=device'), [DEVICE_IN, DEVICE_OUT]);
  t.same(places('direction=in'), [DEVICE_OUT, UNDERLAY_IN]);
  t.same(places('side=underlay&direction=out'), [UNDERLAY_OUT]);
  const { hosts, verdicts } = captureQuestion(
    new URLSearchParams('host=10.5.2.9/24&host=FE:00:00:00:00:01&host=fd00::1&verdict=sent,no_route&verdict=forwarded'),
  );
  t.same(
    hosts?.map(({ bytes, length }) => `${hex(bytes)}/${length}`),
    ['0a050200/24', 'fe0000000001/48', 'fd000000000000000000000000000001/128'],
  );
  t.same(
    verdicts?.map((verdict) => VERDICT_INFOS.find((info) => info.verdict === verdict)?.name),
    ['sent', 'no_route', 'forwarded', 'flooded'],
  );
});

t.test('a capture, from its head to its end', async (t) => {
  const stage = await makeStage(t);
  const { begun, all, over } = start(stage, 'count=5');
  await begun;
  t.match(stage.captures.running, { query: 'count=5', captured: 0, lost: 0 });
  for (const i of [0, 1, 0]) stage.to(i);
  await over;
  t.equal(stage.captures.running, undefined);
  const { items, reader } = await all;
  t.ok(reader.complete);
  t.match(reader.head, { ...SCENE, version: '1.2.3', snaplen: MAX_SNAPLEN });
  t.same(reader.head?.verdicts, JSON.parse(JSON.stringify(VERDICT_INFOS)));
  const packets = packetsOf(items);
  t.equal(packets.length, 5, 'not one more than was asked');
  t.same(endOf(items), { captured: 5, lost: 0, reason: 'count' });
  t.same(packets.map(({ side, verdict, peer }) => `${side} ${verdict.name} ${peer?.name}`).sort(), [
    'device forwarded b',
    'device forwarded b',
    'device forwarded c',
    'underlay sent b',
    'underlay sent c',
  ]);
  const sent = packets.find(({ side }) => side === 'underlay');
  t.same(sent?.outer?.ownPort, 4001, 'from the port of the socket that sent it');
});

t.test('packet times are wall-clock times', async (t) => {
  const stage = await makeStage(t);
  const { begun, all, over } = start(stage, 'count=1');
  await begun;
  const now = process.hrtime.bigint();
  stage.rig.memory.i32[stage.rig.layout.timespec >> 2] = Number(now / 1_000_000_000n);
  stage.rig.memory.i32[(stage.rig.layout.timespec >> 2) + 2] = Number(now % 1_000_000_000n);
  stage.to(0);
  await over;
  const [{ seconds, nanoseconds }] = packetsOf((await all).items);
  t.ok(nanoseconds >= 0 && nanoseconds < 1e9);
  t.ok(Math.abs(seconds * 1000 + nanoseconds / 1e6 - Date.now()) < 60_000);
});

t.test('one at a time; and the next one when it is over', async (t) => {
  const stage = await makeStage(t);
  stage.idle();
  const first = start(stage);
  await first.begun;
  t.throws(() => stage.captures.open(new URLSearchParams()), {
    status: 409,
    message: /^capture: another one runs, since /,
  });
  await stage.captures.close();
  await first.over;
  t.equal(endOf((await first.all).items)?.reason, 'stopping');
  const second = start(stage, 'count=1');
  await second.begun;
  stage.to(0);
  await second.over;
  t.equal(packetsOf((await second.all).items).length, 1);
});

t.test('a clock that is set is said', async (t) => {
  const stage = await makeStage(t);
  const { begun, all, over } = start(stage, 'count=4');
  await begun;
  stage.to(0);
  const { now } = Date;
  t.teardown(() => {
    Date.now = now;
  });
  Date.now = () => now() + 3_600_000;
  await new Promise((resolve) => setTimeout(resolve, 1200));
  stage.to(0);
  await over;
  const packets = packetsOf((await all).items);
  t.ok(
    Math.abs(packets[2].seconds - packets[0].seconds - 3600) < 2,
    'the engine in memory has one time for all of them',
  );
});

t.test('several workers: one with a backlog does not keep the others from being read', async (t) => {
  const rig = await makeSwitch({ workers: 3, senders: 0, keep: false });
  const rigs = [rig, rig.other(1), rig.other(2)];
  const shared = new SharedWords(rig.memory);
  const captures = new Captures({
    dataplane: () => ({ memory: rig.memory, shared, wake: () => {} }),
    scene: () => SCENE,
    refsOf: () => [],
    peers: () => [],
    version: '1.2.3',
  });
  const sink = new PassThrough({ highWaterMark: 1 });
  const over = captures.open(new URLSearchParams('side=device&direction=out')).run(sink);
  const chunks: Buffer[] = [];
  chunks.push(...(await once(sink, 'readable').then(() => [sink.read() as Buffer])));
  const large = frame(
    { source: ourMac(), destination: BROADCAST },
    { source: our4(), destination: their4() },
    udp({ payload: pattern(1400) }),
  );
  for (const { out } of rigs) for (let i = 0; i < 100; i++) out(0, ...Array.from({ length: 32 }, () => plain(large)));
  const reader = new CaptureReader();
  for (const _ of reader.read(chunks[0]));
  const workers: number[] = [];
  while (workers.length < 1000) {
    await new Promise((resolve) => setTimeout(resolve, 1));
    const chunk = sink.read() as Buffer | null;
    if (chunk !== null) workers.push(...packetsOf([...reader.read(chunk)]).map(({ worker }) => worker));
  }
  t.same([...new Set(workers)].sort(), [0, 1, 2], 'among the first thousand of nine');
  sink.destroy();
  await over;
});

t.test('a ring that is damaged ends it, is told to whoever runs it, and the next one begins anew', async (t) => {
  const stage = await makeStage(t);
  const sink = new PassThrough();
  sink.resume();
  const over = stage.captures.open(new URLSearchParams()).run(sink);
  await once(sink, 'data');
  const { i32 } = stage.rig.memory;
  const ring = stage.rig.layout.capture >> 2;
  stage.to(0);
  i32[(ringRecords(stage.rig.layout) + i32[ring + RING_TAIL]) >> 2] = 12_345;
  await t.rejects(over, { message: /^capture ring: a record of 12345 bytes at / });
  t.equal(stage.captures.running, undefined);
  t.ok(sink.destroyed);
  const next = start(stage, 'count=2');
  await next.begun;
  stage.to(0);
  await next.over;
  t.equal(packetsOf((await next.all).items).length, 2);
});

t.test('nothing to capture, and nobody of that name', async (t) => {
  const stage = await makeStage(t);
  t.throws(() => stage.captures.open(new URLSearchParams('peer=z')), { status: 404, message: 'capture: no peer "z"' });
  stage.source.up = false;
  t.throws(() => stage.captures.open(new URLSearchParams()), { status: 503, message: /^capture: no packets/ });
  t.equal(stage.captures.running, undefined);
});

t.test('for as long as was asked', async (t) => {
  const stage = await makeStage(t);
  stage.idle();
  const { all, over, begun } = start(stage, 'seconds=1');
  await begun;
  stage.to(0);
  await over;
  const { items } = await all;
  t.same(endOf(items), { captured: 2, lost: 0, reason: 'seconds' });
});

t.test('a reader that goes away ends it, and the taps are off', async (t) => {
  const stage = await makeStage(t);
  const sink = new PassThrough();
  const over = stage.captures.open(new URLSearchParams()).run(sink);
  await once(sink, 'data');
  sink.destroy();
  await over;
  t.equal(stage.captures.running, undefined);
  t.equal(new SharedWords(stage.rig.memory).captureWord(), 0);
  const gone = new PassThrough();
  gone.destroy();
  await stage.captures.open(new URLSearchParams()).run(gone);
  t.equal(stage.captures.running, undefined, 'also one that had gone before it began');
});

t.test(
  'a reader that never reads costs one chunk; what then finds no room is counted; stopping does not hang',
  async (t) => {
    const stage = await makeStage(t);
    let pending = 0;
    const sink = new Writable({
      write(chunk: Buffer, _encoding, _done) {
        pending += chunk.length; // and never done
      },
    });
    const capture = stage.captures.open(new URLSearchParams());
    const over = capture.run(sink);
    const large = plain(packet({ source: HOST_4, destination: remote4() }, udp({ payload: pattern(1400) })));
    for (let i = 0; i < 300; i++) {
      stage.rig.out(...Array.from({ length: 32 }, () => large));
      if (i % 30 === 0) await new Promise((resolve) => setTimeout(resolve, 25));
    }
    t.ok(sink.writableLength + pending < 1 << 20, `${sink.writableLength + pending} bytes wait`);
    t.ok((stage.captures.running?.lost ?? 0) > 5000, `${stage.captures.running?.lost} lost`);
    stage.rig.audit();
    await stage.captures.close();
    sink.destroy();
    await over;
  },
);

t.test('what is still in the rings at the end is sent, to whoever reads; else it is lost', async (t) => {
  const large = plain(packet({ source: HOST_4, destination: remote4() }, udp({ payload: pattern(1400) })));
  const batches = 80;
  const stage = await makeStage(t);
  const { begun, all, over } = start(stage, 'side=device');
  await begun;
  for (let i = 0; i < batches; i++) stage.rig.out(...Array.from({ length: 32 }, () => large));
  await stage.captures.close();
  await over;
  const { items } = await all;
  t.same(endOf(items), { captured: batches * 32, lost: 0, reason: 'stopping' });
  t.equal(packetsOf(items).length, batches * 32, 'four megabytes');

  const quiet = await makeStage(t);
  let written = Buffer.alloc(0);
  let go = (): void => {};
  const sink = new Writable({
    highWaterMark: 1,
    write(chunk: Buffer, _encoding, done) {
      written = Buffer.concat([written, chunk]);
      go = done; // read only when the test says so
    },
  });
  const slow = quiet.captures.open(new URLSearchParams('side=device')).run(sink);
  while (written.length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  for (let i = 0; i < batches; i++) quiet.rig.out(...Array.from({ length: 32 }, () => large));
  const closed = quiet.captures.close();
  await closed;
  const reading = setInterval(() => go(), 1);
  await slow;
  await once(sink, 'finish');
  clearInterval(reading);
  const end = endOf([...new CaptureReader().read(written)]);
  t.same(end, { captured: 0, lost: batches * 32, reason: 'stopping' }, 'not one was read in time');
});

t.test('lost packets are told of', async (t) => {
  const stage = await makeStage(t);
  const { begun, all, over } = start(stage, 'side=device&direction=out');
  await begun;
  const large = plain(packet({ source: HOST_4, destination: remote4() }, udp({ payload: pattern(1400) })));
  const batches = 400;
  for (let i = 0; i < batches; i++) stage.rig.out(...Array.from({ length: 32 }, () => large)); // control sleeps meanwhile
  await new Promise((resolve) => setTimeout(resolve, 200));
  t.ok((stage.captures.running?.lost ?? 0) > 0);
  await stage.captures.close();
  await over;
  const { items } = await all;
  const end = endOf(items);
  t.equal(packetsOf(items).length, end?.captured);
  t.equal((end?.captured ?? 0) + (end?.lost ?? 0), batches * 32);
  const counts = items.flatMap((item) => (item.kind === 'counts' ? [item.counts] : []));
  t.equal(counts.at(-1)?.lost, end?.lost);
});

t.test(
  'a peer that comes back under another reference is still the one that was asked for; a scene that changes is said',
  async (t) => {
    const stage = await makeStage(t);
    stage.idle();
    const { begun, all, over } = start(stage, 'peer=b&count=4');
    await begun;
    stage.to(0);
    stage.to(1);
    stage.source.refs = { b: [stage.rig.refs[1]] };
    stage.source.scene = { ...SCENE, devices: [{ name: 'weft0', mtu: 1400, vni: null }] };
    await new Promise((resolve) => setTimeout(resolve, 1200));
    stage.to(0);
    stage.to(1);
    await over;
    const { items } = await all;
    t.same(
      items.flatMap((item) => (item.kind === 'head' ? [item.head.devices[0].mtu] : [])),
      [1472, 1400],
    );
    const packets = packetsOf(items);
    t.equal(packets.length, 4);
    t.ok(
      packets.slice(2).every(({ bytes }) => hex(bytes).includes('0a050309')),
      'now peer c has the name',
    );
  },
);

/** A stream of everything there is. */
async function sample(t: Test): Promise<Buffer> {
  const stage = await makeStage(t);
  const sink = new PassThrough();
  const chunks: Buffer[] = [];
  sink.on('data', (chunk: Buffer) => chunks.push(chunk));
  const over = stage.captures.open(new URLSearchParams('count=6')).run(sink);
  await once(sink, 'data');
  stage.to(0);
  stage.rig.in([message(stage.rig.name(1), [packet({ source: remote4(1), destination: HOST_4 }, udp())])]);
  stage.to(1);
  await over;
  return Buffer.concat(chunks);
}

t.test(
  'the reader: the same in chunks of any size; cut off anywhere it says so; damaged anywhere it never goes wrong',
  async (t) => {
    const whole = await sample(t);
    const items = (chunks: readonly Buffer[]): { text: string; complete: boolean } => {
      const reader = new CaptureReader();
      const found = chunks.flatMap((chunk) => [...reader.read(chunk)]);
      return { text: JSON.stringify(found), complete: reader.complete };
    };
    const once = items([whole]);
    const head = whole.subarray(0, FRAME_HEADER + whole.readUInt32LE(0));
    t.ok(once.complete);
    for (const size of [1, 7, 100, 4096]) {
      const chunks = Array.from({ length: Math.ceil(whole.length / size) }, (_, i) =>
        whole.subarray(i * size, (i + 1) * size),
      );
      t.same(items(chunks), once, `chunks of ${size}`);
    }
    for (let cut = 0; cut < whole.length; cut += 13) {
      if (items([whole.subarray(0, cut)]).complete) t.fail(`${cut} bytes are taken for all of it`);
    }
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(whole.length - 1), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 8 }),
        (changes) => {
          const damaged = Buffer.from(whole);
          for (const [at, value] of changes) damaged[at] = value;
          try {
            items([damaged]);
          } catch (error) {
            if (!(error instanceof CaptureStreamError)) throw error;
          }
        },
      ),
      { numRuns: 2000 },
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        try {
          items([Buffer.from(bytes)]);
          items([head, frameOf(FRAME_RECORDS, bytes)]);
        } catch (error) {
          if (!(error instanceof CaptureStreamError)) throw error;
        }
      }),
      { numRuns: 2000 },
    );
  },
);
