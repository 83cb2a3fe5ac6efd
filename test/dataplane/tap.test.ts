/**
 * The tap by itself: filters, how much is kept, a ring that is full, a capture that begins and ends under traffic, a worker that
 * dies in the middle of a packet. That a capture of everything has every packet once on each side, with the verdict that the
 * counters confirm, is checked where every exit is taken (conservation) and where all is random (fuzz).
 */
import fc from 'fast-check';
import t from 'tap';
import type { CaptureWish } from '../../src/dataplane/capture-filter.js';
import { RING_ROOM } from '../../src/dataplane/capture-ring.js';
import { COUNTER_INFOS, IN_UNKNOWN_PEER, OUT_NO_ROUTE, OUT_TOO_BIG } from '../../src/dataplane/counters.js';
import { Engine } from '../../src/dataplane/engine.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { FLOODED, FORWARDED, SENT, VERDICT_INFOS, verdictsOf } from '../../src/dataplane/verdicts.js';
import type { CapturedPacket } from '../../src/inspect/capture-frames.js';
import {
  DEVICE_IN,
  DEVICE_OUT,
  MAX_SNAPLEN,
  RECORD_HEADER,
  recordSize,
  UNDERLAY_IN,
  UNDERLAY_OUT,
} from '../../src/io/capture-record.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';
import { ALL_OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { arpFrame, BROADCAST, frame, mac, vxlan } from '../lib/frames.js';
import { address, hex, message, packet, pattern, plain, superPacket, tcp, udp } from '../lib/packets.js';
import { DEVICE_4, HOST_4, HOST_6, makeRig, type Rig, remote4, remote6 } from '../lib/rig.js';
import { FRAME, hear, makeSwitch, our4, ourMac, type SwitchRig, their4, theirMac } from '../lib/rig-l2.js';
import { ALL_PLACES, beginCapture, Captured, EVERYTHING } from '../lib/tapped.js';

const ADDRESS = 4;
const host = (text: string, length?: number): { bytes: Uint8Array; length: number } => {
  const bytes = text.length === 17 ? mac(text) : address(text);
  return { bytes, length: length ?? bytes.length * 8 };
};

type Ends = Pick<Rig, 'memory' | 'layout'>;

/** Captures what `wish` names while `traffic` passes. */
function capture({ memory, layout }: Ends, wish: Partial<CaptureWish>, traffic: () => void): CapturedPacket[] {
  const captured = new Captured(memory, layout, beginCapture(memory, { ...EVERYTHING, ...wish }));
  traffic();
  new SharedWords(memory).endCapture();
  return captured.take();
}

const id = ({ side, direction, bytes, verdict, peer, length }: CapturedPacket): string =>
  [side, direction, verdict.name, peer?.name, length, hex(bytes)].join(' ');

/** Routed traffic of many kinds: two peers, both families, drops on both sides, ICMP errors, merges, splits. */
function routed(rig: Rig): void {
  const stranger = socketAddress(address('192.0.2.9'), 8285);
  rig.out(
    plain(packet({ source: HOST_4, destination: remote4(0) }, udp({ payload: pattern(64) }))),
    plain(packet({ source: HOST_6, destination: remote6(1) }, udp({ payload: pattern(65) }))),
    superPacket({ source: HOST_4, destination: remote4(1) }, tcp({ payload: pattern(5000) }), 1000),
    plain(packet({ source: HOST_4, destination: '10.99.0.1' }, udp())),
    plain(packet({ source: HOST_4, destination: remote4(0) }, udp({ payload: pattern(2000) }))),
    plain(new Uint8Array(3)),
  );
  const stream = [0, 1, 2].map((i) =>
    packet({ source: remote4(0), destination: HOST_4, id: i }, tcp({ seq: i * 100, payload: pattern(100) })),
  );
  const messages: IncomingMessage[] = [
    message(rig.name(0), stream),
    message(rig.name(1), [packet({ source: remote4(1), destination: HOST_4 }, udp({ payload: pattern(66) }))]),
    message(stranger, [packet({ source: remote4(1), destination: HOST_4 }, udp({ payload: pattern(67) }))]),
    message(rig.name(1), [new Uint8Array(0)]),
  ];
  rig.in(messages);
}

/** Switched traffic: learned, flooded, answered, dropped. */
function switched(rig: SwitchRig): void {
  const to = (destination: string, source = ourMac()): Uint8Array =>
    frame({ source, destination }, { source: our4(), destination: their4(0) }, udp({ payload: pattern(40) }));
  rig.out(
    0,
    plain(to(theirMac(0))),
    plain(to(BROADCAST)),
    plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: their4(0, 200) })),
    plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: their4(1, 77) })),
    plain(to(theirMac(0), BROADCAST)),
  );
  rig.out(1, plain(to(BROADCAST)));
  rig.in([
    rig.from(1, [
      vxlan(
        42,
        frame({ source: theirMac(1), destination: ourMac() }, { source: their4(1), destination: our4() }, udp()),
      ),
    ]),
  ]);
}

async function makeStage(): Promise<SwitchRig> {
  const rig = await makeSwitch({ peers: [{}, { mtu: FRAME - 100 }, {}] });
  rig.tables.setMac(0, mac(theirMac(0, 200)), rig.refs[0][0]);
  rig.tables.setNeighbour(0, address(their4(0, 200)), mac(theirMac(0, 200)), undefined, rig.refs[0][0]);
  await rig.tables.commit();
  hear(rig, 0);
  return rig;
}

const peersOf = { peers: [{}, {}] };

t.test('every verdict has a name of its own direction, and words name them', async (t) => {
  t.equal(new Set(VERDICT_INFOS.map(({ verdict }) => verdict)).size, VERDICT_INFOS.length);
  const names = VERDICT_INFOS.map(({ name, direction = '' }) => `${direction}.${name}`);
  t.equal(new Set(names).size, names.length);
  t.same(verdictsOf('sent'), [SENT]);
  t.same(verdictsOf('forwarded'), [FORWARDED, FLOODED]);
  t.same(verdictsOf('too_big'), [OUT_TOO_BIG]);
  t.equal(verdictsOf('short')?.length, 2, 'one in each direction');
  const dropped = COUNTER_INFOS.filter(({ role }) => role === 'dropped');
  t.equal(verdictsOf('drop')?.length, dropped.length);
  t.equal(verdictsOf('merged'), undefined);
});

t.test('what is not wanted is not there, and all that is wanted is', async (t) => {
  /** A filter, and the same in words about a packet that was captured. */
  const layer3: Record<string, [Partial<CaptureWish>, (packet: CapturedPacket, bytes: string) => boolean]> = {
    everything: [{}, () => true],
    'a place': [{ places: [UNDERLAY_OUT] }, (one) => one.side === 'underlay' && one.direction === 'outbound'],
    'two places': [{ places: [DEVICE_IN, UNDERLAY_IN] }, (one) => one.entering],
    'a verdict': [{ verdicts: [OUT_NO_ROUTE] }, (one) => one.verdict.name === 'no_route'],
    drops: [{ verdicts: verdictsOf('drop') }, (one) => one.verdict.kind === 'dropped'],
    'what went on': [{ verdicts: verdictsOf('forwarded') }, (one) => one.verdict.kind === 'forwarded'],
    nobody: [{ peers: [] }, () => false],
    'a host': [{ hosts: [host(remote4(1))] }, (_, bytes) => bytes.includes(hex(address(remote4(1))))],
    'a host of IPv6': [{ hosts: [host(remote6(1))] }, (_, bytes) => bytes.includes(hex(address(remote6(1))))],
    'a prefix': [{ hosts: [host('10.5.3.0', 24)] }, (_, bytes) => bytes.includes('0a0503')],
    'all of IPv4': [
      { hosts: [host('0.0.0.0', 0)] },
      (one) => one.side === 'underlay' || (one.length >= 20 && one.bytes[0] >> 4 === 4),
    ],
    'several hosts': [
      { hosts: [host('10.99.0.1'), host(remote6(1))] },
      (_, bytes) => bytes.includes('0a630001') || bytes.includes(hex(address(remote6(1)))),
    ],
    'a verdict and a host': [
      { verdicts: verdictsOf('sent'), hosts: [host(remote4(0))] },
      (one, bytes) => one.verdict.name === 'sent' && bytes.includes(hex(address(remote4(0)))),
    ],
  };
  for (const [name, [wish, wanted]] of Object.entries(layer3)) {
    const all = await makeRig(peersOf);
    const some = await makeRig(peersOf);
    const expected = capture(all, {}, () => routed(all)).filter((one) => wanted(one, hex(one.bytes)));
    const found = capture(some, wish, () => routed(some));
    t.same(found.map(id), expected.map(id), name);
    t.equal(found.length > 0, name !== 'nobody', `${name}: there is one, unless nobody is asked for`);
  }
});

t.test('by peer: what is its own, and what is flooded to all', async (t) => {
  const rig = await makeRig(peersOf);
  const name = String(rig.refs[1]);
  const all = capture(rig, {}, () => routed(rig));
  const own = capture(rig, { peers: [rig.refs[1]] }, () => routed(rig));
  t.same(own.map(id), all.filter((one) => one.peer?.name === name).map(id));
  t.ok(own.some((one) => one.side === 'device' && one.entering));
  t.ok(own.some((one) => one.side === 'device' && !one.entering));
  t.ok(own.some((one) => one.side === 'underlay' && one.entering));
  t.ok(own.some((one) => one.side === 'underlay' && !one.entering));
  const l2 = await makeStage();
  const flood = capture(l2, { peers: [l2.refs[0][2]] }, () => switched(l2));
  t.same(
    flood.map(({ side, verdict }) => `${side} ${verdict.name}`),
    ['device flooded', 'device flooded', 'underlay sent', 'underlay sent', 'device flooded'],
    'of its own network only its copy, though what the other network floods might be for it',
  );
});

t.test('by outer address: the underlay side alone', async (t) => {
  const rig = await makeRig(peersOf);
  const found = capture(rig, { hosts: [host('192.168.77.3')] }, () => routed(rig));
  t.ok(found.length > 5);
  t.ok(found.every((one) => one.side === 'underlay' && hex(one.outer?.address ?? new Uint8Array()) === 'c0a84d03'));
  const stranger = capture(rig, { hosts: [host('192.0.2.9')] }, () => routed(rig));
  t.same(
    stranger.map(({ verdict }) => verdict.verdict),
    [IN_UNKNOWN_PEER],
  );
  t.equal(stranger[0].outer?.port, 8285);
  const six = await makeRig({ peers: [{ address: 'fd99::2' }] });
  const underlay6 = capture(six, { hosts: [host('fd99::', 16)] }, () => {
    six.out(plain(packet({ source: HOST_4, destination: remote4(0) }, udp())));
    six.in([message(six.name(0), [packet({ source: remote4(0), destination: HOST_4 }, udp())], { tos: 2 })], 1);
  });
  t.same(
    underlay6.map(({ outer }) => [outer?.family, hex(outer?.address ?? new Uint8Array()), outer?.port, outer?.tos]),
    [
      [6, 'fd990000000000000000000000000002', 8285, 0],
      [6, 'fd990000000000000000000000000002', 8285, 2],
    ],
  );
});

t.test('layer 2: by MAC, by the address in an ARP packet, by the address in a datagram', async (t) => {
  const rig = await makeStage();
  const asked = hex(address(their4(1, 77)));
  const arp = capture(rig, { hosts: [host(their4(1, 77))] }, () => switched(rig));
  t.ok(arp.length >= 3, 'the request, and a copy for each peer');
  t.ok(arp.every(({ bytes }) => hex(bytes).includes(asked)));
  const frames = capture(rig, { hosts: [host(theirMac(1))] }, () => switched(rig));
  t.same(
    frames.map(({ side, direction }) => `${side} ${direction}`),
    ['underlay inbound', 'device inbound'],
  );
  const inner = capture(rig, { hosts: [host(their4(1))], places: [UNDERLAY_IN] }, () => switched(rig));
  t.equal(inner.length, 1);
  t.same(
    capture(rig, { hosts: [host('02:99:99:99:99:99')] }, () => switched(rig)),
    [],
  );
});

t.test('verdicts of layer 2: forwarded, flooded, answered, dropped; which network', async (t) => {
  const rig = await makeStage();
  const found = capture(rig, { places: [DEVICE_IN, DEVICE_OUT] }, () => switched(rig));
  t.same(
    found.map(({ network, direction, verdict }) => `${network} ${direction} ${verdict.name}`),
    [
      '0 outbound forwarded',
      '0 outbound flooded',
      '0 outbound answered',
      '0 inbound sent',
      '0 outbound flooded',
      '0 outbound bad_source_mac',
      '1 outbound flooded',
      '0 inbound sent',
    ],
    'the answer stands behind the request',
  );
});

t.test('a copy of a flooded frame that is too big for its peer is a drop on the way out', async (t) => {
  const rig = await makeStage();
  const large = frame(
    { source: ourMac(), destination: BROADCAST },
    { source: our4(), destination: their4(0) },
    udp({ payload: pattern(FRAME - 42) }),
  );
  const found = capture(rig, {}, () => void rig.out(0, plain(large)));
  t.same(
    found.map(({ side, verdict, peer }) => [side, verdict.name, peer?.name]),
    [
      ['device', 'flooded', undefined],
      ['underlay', 'too_big', String(rig.refs[0][1])],
      ['underlay', 'sent', String(rig.refs[0][0])],
      ['underlay', 'sent', String(rig.refs[0][2])],
    ],
  );
});

t.test('several workers with several sockets: the port is that of the one that sent it', async (t) => {
  const rig = await makeSwitch({ workers: 2, senders: 4, tapped: true });
  const other = rig.other(1);
  const flows = Array.from({ length: 40 }, (_, from) =>
    plain(
      frame(
        { source: ourMac(), destination: BROADCAST },
        { source: our4(), destination: their4() },
        udp({ from, payload: pattern(40) }),
      ),
    ),
  );
  for (const one of [rig, other]) {
    const ports = new Set(one.out(0, ...flows).map(({ sender }) => sender));
    t.equal(ports.size, 4, 'all of its pool');
  }
  rig.audit();
  other.audit();
});

t.test('a super-packet is one going in, and its segments going out', async (t) => {
  const rig = await makeRig();
  const found = capture(
    rig,
    {},
    () => void rig.out(superPacket({ source: HOST_4, destination: remote4() }, tcp({ payload: pattern(5000) }), 1000)),
  );
  t.same(
    found.map(({ side, segment, checksumLeft, length }) => [side, segment, checksumLeft, length > 2000]),
    [['device', 1000, true, true], ...Array.from({ length: 5 }, () => ['underlay', 0, false, false])],
  );
});

t.test('snaplen: the first bytes, and how long it was', async (t) => {
  for (const snaplen of [1, 20, 61, 64, 1500, MAX_SNAPLEN]) {
    const rig = await makeRig(peersOf);
    const whole = capture(rig, {}, () => routed(rig));
    const found = capture(rig, { snaplen }, () => routed(rig));
    t.equal(found.length, whole.length);
    found.forEach((one, i) => {
      t.equal(one.length, whole[i].length);
      t.equal(one.bytes.length, Math.min(snaplen, one.length));
    });
    t.same(
      found.map(({ bytes }) => hex(bytes)),
      whole.map(({ bytes }) => hex(bytes.subarray(0, snaplen))),
    );
  }
});

t.test('a full ring only counts: all goes on, and what is there is whole', async (t) => {
  const rig = await makeRig(peersOf);
  const quiet = await makeRig(peersOf);
  const captured = new Captured(rig.memory, rig.layout, beginCapture(rig.memory));
  const large = plain(packet({ source: HOST_4, destination: remote4() }, udp({ payload: pattern(1400) })));
  const rounds = Math.ceil(RING_ROOM / recordSize(1428) / 64);
  for (let i = 0; i < 2 * rounds; i++) {
    rig.out(...Array.from({ length: 32 }, () => large));
    quiet.out(...Array.from({ length: 32 }, () => large));
  }
  t.same(rig.changes(), quiet.changes());
  rig.audit();
  const first = captured.take();
  const total = 2 * rounds * 64;
  t.equal(first.length + captured.ring.lost, total);
  t.ok(captured.ring.lost > 0.4 * total && first.length > RING_ROOM / recordSize(1428) - 2, 'it was filled to the end');
  t.ok(first.every(({ bytes }) => bytes.length === 1428 && bytes[1427] === pattern(1400)[1399]));
  const { lost } = captured.ring;
  rig.out(large);
  t.equal(captured.take().length, 2, 'there is room again');
  t.equal(captured.ring.lost, lost);
});

t.test('a full ring of equal records: the head never catches up with the tail', async (t) => {
  const rig = await makeRig(peersOf);
  const session = beginCapture(rig.memory, { ...EVERYTHING, places: [DEVICE_IN] });
  const { ring } = new Captured(rig.memory, rig.layout, session);
  const numbered = (id: number): DevicePacket =>
    plain(packet({ source: HOST_4, destination: remote4(), id }, udp({ payload: pattern(1400) })));
  let given = 0;
  const give = (): void => void rig.out(numbered(given++));
  const into = Buffer.alloc(2000);
  const found: number[] = [];
  const takeOne = (): void => {
    ring.take(session, into, 0, 1, () => found.push(into.readUInt16BE(RECORD_HEADER + 4)));
  };
  while (ring.lost === 0) give();
  const room = given - 1;
  t.equal(room, Math.floor((RING_ROOM - 1) / recordSize(1428)));
  takeOne(); // there is a place for one more of that size, but then the ring would seem empty
  give();
  t.equal(ring.lost, 2);
  takeOne();
  give();
  t.equal(ring.lost, 2);
  for (let i = 0; i < given; i++) takeOne();
  t.same(found, [...Array.from({ length: room }, (_, i) => i), room + 2]);
});

t.test('what nobody wants takes no room', async (t) => {
  const rig = await makeRig(peersOf);
  const captured = new Captured(
    rig.memory,
    rig.layout,
    beginCapture(rig.memory, { ...EVERYTHING, verdicts: verdictsOf('drop') }),
  );
  const large = plain(packet({ source: HOST_4, destination: remote4() }, udp({ payload: pattern(1400) })));
  for (let i = 0; i < 400; i++) rig.out(...Array.from({ length: 32 }, () => large));
  rig.out(plain(packet({ source: HOST_4, destination: '10.99.0.1' }, udp())));
  t.equal(captured.ring.lost, 0, '18 MB went through a ring of 8 MB');
  t.same(
    captured.take().map(({ verdict }) => verdict.name),
    ['no_route'],
  );
});

t.test('readers that come when they like: nothing twice, nothing out of order, lost ones counted', async () => {
  const lengths = fc.array(fc.integer({ min: 28, max: 65_000 }), { minLength: 1, maxLength: 40 });
  const rounds = fc.array(fc.record({ lengths, reads: fc.boolean() }), { minLength: 1, maxLength: 12 });
  const rig = await makeRig({ peers: [{ mtu: 65_535 }], settings: { maxSegments: 1 }, keep: false });
  await fc.assert(
    fc.property(rounds, fc.constantFrom(100, MAX_SNAPLEN), (list, snaplen) => {
      const wish = { ...EVERYTHING, places: [DEVICE_IN], snaplen };
      const captured = new Captured(rig.memory, rig.layout, beginCapture(rig.memory, wish));
      let given = 0;
      const found: number[] = [];
      const read = (): void => {
        for (const { bytes } of captured.take())
          found.push(new DataView(bytes.buffer, bytes.byteOffset).getUint16(ADDRESS));
      };
      for (const round of list) {
        rig.out(
          ...round.lengths.map((length) =>
            plain(
              packet(
                { source: HOST_4, destination: remote4(), id: given++ & 0xffff },
                udp({ payload: pattern(length - 28) }),
              ),
            ),
          ),
        );
        if (round.reads) read();
      }
      read();
      if (found.length + captured.ring.lost !== given)
        throw new Error(`${found.length} and ${captured.ring.lost} of ${given}`);
      if (found.some((number, i) => i > 0 && number <= found[i - 1])) throw new Error('out of order');
    }),
    { numRuns: 40 },
  );
  rig.audit();
});

t.test(
  'captures that begin and end under traffic: each has what passed meanwhile, and nothing of another',
  async (t) => {
    const rig = await makeRig();
    const shared = new SharedWords(rig.memory);
    const numbered = (id: number): DevicePacket => plain(packet({ source: HOST_4, destination: remote4(), id }, udp()));
    const identification = ({ bytes }: CapturedPacket): number => bytes[4] * 256 + bytes[5];
    for (let round = 0; round < 200; round++) {
      rig.out(numbered(1));
      const wish = { ...EVERYTHING, places: round % 2 === 0 ? ALL_PLACES : [DEVICE_IN] };
      const captured = new Captured(rig.memory, rig.layout, beginCapture(rig.memory, wish));
      for (let i = 0; i < 5; i++) rig.out(numbered(100 + round));
      if (round % 3 > 0) shared.endCapture();
      if (round % 3 === 1) rig.out(numbered(2));
      const found = captured.take();
      t.equal(found.length, round % 2 === 0 ? 10 : 5);
      t.ok(found.every((one) => identification(one) === 100 + round));
      // Some captures are followed by another at once, and never read to their end.
    }
    rig.audit();
  },
);

t.test('a filter that is written anew holds from the next turn on', async (t) => {
  const rig = await makeRig(peersOf);
  const captured = new Captured(
    rig.memory,
    rig.layout,
    beginCapture(rig.memory, { ...EVERYTHING, peers: [rig.refs[0]] }),
  );
  const to = (peer: number): DevicePacket => plain(packet({ source: HOST_4, destination: remote4(peer) }, udp()));
  rig.out(to(0), to(1));
  t.same(
    captured.take().map(({ peer }) => peer?.name),
    Array.from({ length: 2 }, () => String(rig.refs[0])),
  );
  const { writeCaptureFilter } = await import('../../src/dataplane/capture-filter.js');
  writeCaptureFilter(rig.memory, { ...EVERYTHING, peers: [rig.refs[1]] });
  new SharedWords(rig.memory).reviseCapture();
  rig.out(to(0), to(1));
  t.same(
    captured.take().map(({ peer }) => peer?.name),
    Array.from({ length: 2 }, () => String(rig.refs[1])),
  );
});

t.test('a worker that dies in the middle of a packet leaves no half of one, and the next goes on', async (t) => {
  let dies = false;
  const rig = await makeRig({
    wrapDevice: (device) => ({
      pull: (at) => device.pull(at),
      push(at, length) {
        if (dies) throw new Error('dies');
        return device.push(at, length);
      },
    }),
  });
  const captured = new Captured(rig.memory, rig.layout, beginCapture(rig.memory));
  rig.out(plain(packet({ source: HOST_4, destination: remote4() }, udp())));
  dies = true;
  // Its ICMP error is what it dies of: the packet that entered is in the ring, its verdict is not.
  t.throws(() => rig.out(plain(packet({ source: HOST_4, destination: '10.99.0.1' }, udp()))), { message: 'dies' });
  t.same(
    captured.take().map(({ verdict }) => verdict.name),
    ['forwarded', 'sent'],
  );
  const next = new Engine(
    rig.memory,
    0,
    { devices: [rig.device], sockets: rig.sockets },
    {
      sourceCheck: 'peer',
      offloads: ALL_OFFLOADS,
      maxSegments: 128,
      mtu: 1472,
      address4: address(DEVICE_4),
      address6: undefined,
    },
  );
  rig.device.load([plain(packet({ source: HOST_4, destination: '10.99.0.1' }, udp()))]);
  while (next.turn(0, 7) > 0);
  t.same(
    captured.take().map(({ side, verdict }) => `${side} ${verdict.name}`),
    ['device no_route', 'device sent'],
  );
  t.equal(captured.ring.lost, 0);
});

t.test('times are those of the turn', async (t) => {
  const rig = await makeRig();
  const clock = rig.layout.timespec >> 2;
  rig.memory.i32[clock] = 12;
  rig.memory.i32[clock + 2] = 345_678_901;
  const found = capture(rig, {}, () => void rig.out(plain(packet({ source: HOST_4, destination: remote4() }, udp()))));
  t.same(
    found.map(({ seconds, nanoseconds }) => [seconds, nanoseconds]),
    [
      [12, 345_678_901],
      [12, 345_678_901],
    ],
  );
});
