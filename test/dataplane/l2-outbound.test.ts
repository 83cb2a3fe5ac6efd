/** Host → network as a switch: every way a frame can go, checked by an independent decoder and the second set of books. */
import t, { type Test } from 'tap';
import { READY_ALL } from '../../src/dataplane/engine.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { type EngineMemory, sendIndex } from '../../src/io/memory.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import { decode, reassemble } from '../lib/decode.js';
import {
  ARP,
  arpFrame,
  BROADCAST,
  decodeFrame,
  type EthernetSpec,
  ethernet,
  frame,
  framesOnTheWire,
  headerOf,
  IPV4,
  mac,
  NOBODY,
  OTHER,
  padded,
  superFrame,
  TAGGED,
  type Tag,
  unfinishedFrame,
  VLAN,
  vxlan,
} from '../lib/frames.js';
import {
  ACK,
  changed,
  concat,
  difference,
  FIN,
  GSO,
  hex,
  type IpSpec,
  icmp,
  PSH,
  packet,
  pattern,
  plain,
  put,
  raw,
  tcp,
  udp,
  type Vnet,
} from '../lib/packets.js';
import {
  carried,
  FRAME,
  hear,
  makeSwitch,
  our4,
  our6,
  ourMac,
  PORT,
  type Pushed,
  piecesOf,
  receivers,
  type Sent,
  type SwitchPeer,
  type SwitchRig,
  their4,
  their6,
  theirMac,
  VNIS,
} from '../lib/rig-l2.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const v4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: our4(), destination: their4(), ...change });
const v6 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: our6(), destination: their6(), ...change });
const both = [v4, v6] as const;
const ether = (change: Partial<EthernetSpec> = {}): EthernetSpec => ({
  source: ourMac(),
  destination: theirMac(),
  ...change,
});
const toAll = ether({ destination: BROADCAST });

const expected = (packets: readonly DevicePacket[], vni: number = VNIS[0]): string[] =>
  packets.flatMap(framesOnTheWire).map((bytes) => hex(vxlan(vni, bytes)));
const bytesOf = (sent: readonly Sent[]): string[] => sent.map(({ bytes }) => hex(bytes));
const many = (count: number, spec: (i: number) => SwitchPeer = () => ({})): SwitchPeer[] =>
  Array.from({ length: count }, (_, i) => ({ address: `10.200.${i >> 8}.${i & 255}`, ...spec(i) }));

t.test('unicast to a MAC that was heard: one datagram behind a VXLAN header, byte for byte', async (t) => {
  for (const underlay of [0, 1]) {
    for (const [what, tags] of TAGGED) {
      const rig = await makeSwitch({ peers: [underlay === 0 ? {} : { address: 'fd99::2' }, {}] });
      hear(rig);
      const payload = pattern(1000);
      const to = ether({ tags });
      const packets: DevicePacket[] = both.flatMap((ip) => [
        plain(frame(to, ip(), udp({ payload }))),
        plain(frame(to, ip(), tcp({ payload }))),
        plain(frame(to, ip({ ttl: 1 }), icmp(ip === v4 ? 8 : 128, payload, ip === v6))),
        plain(frame(to, ip({ ttl: 0 }), raw(132, payload))),
        unfinishedFrame(to, ip(), udp({ payload })),
        unfinishedFrame(to, ip(), tcp({ payload })),
        unfinishedFrame(to, ip(), udp()),
        superFrame(to, ip(), tcp({ payload: pattern(40000), flags: ACK | PSH | FIN }), 1350),
        superFrame(to, ip({ id: 65530 }), udp({ payload: pattern(9001) }), 500),
        superFrame(to, ip(), tcp({ payload: pattern(100) }), 1350),
        superFrame(to, ip(), tcp({ payload: pattern(65000) }), 536),
      ]);
      packets.push(
        plain(frame(to, v4({ mf: true, df: false }), raw(17, pattern(800)))),
        plain(frame(to, v4({ offset: 100, df: false }), raw(17, pattern(7)))),
        plain(frame(to, v4({ options: new Uint8Array(8).fill(1) }), tcp({ payload }))),
        superFrame(to, v4({ options: new Uint8Array(8).fill(1) }), tcp({ payload: pattern(5000) }), 1000),
        plain(padded(frame(to, v4(), udp({ payload: pattern(1) })))),
        plain(ethernet(to, OTHER, pattern(400))),
        plain(ethernet(to, OTHER, new Uint8Array(0))),
        plain(ethernet(to, 0x0026, pattern(38))), // an 802.3 length
        // Not IP, though they say so: a switch carries them as they are.
        plain(ethernet(to, IPV4, pattern(9))),
        plain(changed(frame(to, v4(), udp()), put(headerOf(to), 0x4f))),
        plain(changed(frame(to, v4(), udp()), put(headerOf(to) + 10, 1, 2))),
        plain(changed(frame(to, v6(), udp()), put(headerOf(to) + 4, 255, 255))),
      );
      // A flow keeps its order; flows may leave by different sockets.
      const sent = rig.out(0, ...packets);
      t.equal(difference(bytesOf(sent).sort(), expected(packets).sort()), '', `${what}, underlay ${underlay}`);
      for (const datagram of sent) {
        t.equal(rig.peerOf(datagram), 0);
        t.equal(datagram.underlay, underlay);
        t.ok(datagram.sender >= 0 && datagram.sender < 4);
        t.equal(datagram.tos, 0);
      }
      const changes = rig.changes();
      t.equal(changes['outbound.super_packets'], 9);
      t.equal(changes['outbound.segments_made'], sent.length - packets.length);
      t.equal(changes['outbound.flooded'], undefined);
      t.equal(changes['tables.macs_learned'], 1, 'ours');
      t.equal(rig.take().pushed.length, 0);
      rig.audit();
    }
  }
});

t.test('each network has its own VNI, peers and MACs', async (t) => {
  const rig = await makeSwitch({ peers: [{ networks: [0] }, { networks: [1] }, {}] });
  hear(rig, 2, 0, theirMac(9));
  hear(rig, 1, 1, theirMac(9));
  for (const [network, peer] of [
    [0, 2],
    [1, 1],
  ] as const) {
    const given = plain(frame(ether({ destination: theirMac(9) }), v4(), udp()));
    const sent = rig.out(network, given);
    t.equal(difference(bytesOf(sent), expected([given], VNIS[network])), '');
    t.same(receivers(rig, sent), [peer]);
    t.same(
      receivers(rig, rig.out(network, plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: our4(77) })))),
      [network, 2],
    );
  }
  rig.audit();
});

t.test('flooding: broadcast, multicast and unknown unicast go to every peer once', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}, { address: 'fd99::4' }, { networks: [1] }, {}] });
  const cases: readonly (readonly [string, DevicePacket])[] = [
    ['broadcast', plain(frame(toAll, v4({ destination: '255.255.255.255' }), udp({ payload: pattern(300) })))],
    [
      'IPv4 multicast',
      plain(frame(ether({ destination: '01:00:5e:00:00:fb' }), v4({ destination: '224.0.0.251' }), udp())),
    ],
    [
      'IPv6 multicast',
      unfinishedFrame(ether({ destination: '33:33:00:00:00:fb' }), v6({ destination: 'ff02::fb' }), udp()),
    ],
    ['unknown unicast', plain(frame(ether({ destination: '02:aa:00:00:00:01' }), v4(), tcp({ payload: pattern(5) })))],
    ['spanning tree', plain(ethernet(ether({ destination: '01:80:c2:00:00:00' }), 38, pattern(38)))],
    [
      'a super-frame to a group',
      superFrame(
        ether({ destination: '01:00:5e:00:00:fb' }),
        v4({ destination: '224.0.0.251' }),
        udp({ payload: pattern(5000) }),
        900,
      ),
    ],
    [
      'a super-frame to an unknown MAC',
      superFrame(ether({ destination: '02:aa:00:00:00:02' }), v6(), tcp({ payload: pattern(30000) }), 1300),
    ],
  ];
  rig.out(0, plain(frame(toAll, v4(), udp())));
  rig.changes();
  for (const [what, given] of cases) {
    const sent = rig.out(0, given);
    const want = expected([given]);
    for (const peer of [0, 1, 2, 4]) {
      t.equal(difference(bytesOf(sent.filter((one) => rig.peerOf(one) === peer)), want), '', `${what} to peer ${peer}`);
    }
    t.equal(sent.length, 4 * want.length, what);
    const changes = rig.changes();
    t.same(
      changes,
      {
        'outbound.device_pulled': 1,
        'outbound.flooded': 1,
        'outbound.flood_copies': 3 * want.length,
        'outbound.socket_sent': 4 * want.length,
        ...(want.length > 1 ? { 'outbound.super_packets': 1, 'outbound.segments_made': want.length - 1 } : {}),
      },
      what,
    );
    rig.audit();
  }
  t.same(receivers(rig, rig.out(1, cases[0][1])), [0, 1, 2, 3, 4]);
  rig.audit();
});

t.test('flooding copies no frame: all messages point to the same bytes', async (t) => {
  const ends: number[][] = [];
  let memory: EngineMemory | undefined;
  const rig: SwitchRig = await makeSwitch({
    peers: many(50, () => ({ networks: [0] })),
    wrapSocket: (socket, underlay, sender) => ({
      pull: () => socket.pull(),
      push(first, count) {
        const result = socket.push(first, count);
        const index = sendIndex((memory as EngineMemory).options, underlay, Math.max(sender, 0));
        for (let m = first; m < first + result; m++) {
          const last = piecesOf(rig, index, m).at(-1);
          if (last) ends.push([last.at + last.length, last.length]);
        }
        return result;
      },
    }),
  });
  memory = rig.memory;
  t.equal(rig.out(0, plain(frame(toAll, v4(), udp({ payload: pattern(900) })))).length, 50);
  t.equal(ends.length, 50, 'one message for every peer');
  t.equal(new Set(ends.map(([end]) => end)).size, 1, 'one frame in memory');
  rig.audit();
});

t.test('a socket that is full in the middle of 2,000 copies: every peer gets exactly one, in order', async (t) => {
  const PEERS = 2000;
  for (const [senders, room] of [
    [4, 0],
    [4, 1],
    [4, 777],
    [1, 1999],
    [1, 1000],
    [0, 1234],
  ] as const) {
    const rig = await makeSwitch({
      peers: many(PEERS, () => ({ networks: [0] })),
      memory: { peers: 2048 },
      senders,
    });
    const frames = Array.from({ length: 9 }, (_, i) =>
      plain(frame(toAll, v4({ id: i }), udp({ from: 3000 + (i % 3), payload: pattern(100 + i) }))),
    );
    const marks = frames.map(({ bytes }) => hex(vxlan(VNIS[0], bytes)));
    rig.devices[0].load(frames);
    for (const socket of rig.senders[0]) socket.room = room;
    for (let i = 0; i < 20; i++) rig.engine.turn(0, READY_ALL);
    t.ok(rig.engine.blocked, `${senders} senders, room for ${room}`);
    const pulled = rig.devices[0].pulled;
    for (let i = 0; i < 3; i++) rig.engine.turn(0, READY_ALL);
    t.equal(rig.devices[0].pulled, pulled, 'the device is not read meanwhile');
    for (let i = 0; i < 40; i++) {
      for (const socket of rig.senders[0]) socket.room = 333;
      rig.engine.turn(0, READY_ALL);
    }
    for (const socket of rig.senders[0]) socket.room = Number.POSITIVE_INFINITY;
    rig.drain();
    const got = rig.refs[0].map((): number[][] => [[], [], []]);
    for (const datagram of rig.take().sent) {
      const mark = marks.indexOf(hex(datagram.bytes));
      got[rig.peerOf(datagram)][mark % 3].push(mark);
    }
    const wrong = got.findIndex((flows) => JSON.stringify(flows) !== '[[0,3,6],[1,4,7],[2,5,8]]');
    t.equal(wrong, -1, `peer ${wrong} got ${JSON.stringify(got[wrong])}`);
    t.match(rig.changes(), {
      'outbound.flooded': 9,
      'outbound.flood_copies': 9 * (PEERS - 1),
      'outbound.socket_sent': 9 * PEERS,
    });
    rig.audit();
  }
});

t.test('peers come and go while a flood waits for full sockets', async (t) => {
  for (const room of [0, 10, 299, 700, 999]) {
    const rig = await makeSwitch({ peers: many(1000, () => ({ networks: [0] })), memory: { peers: 2048 }, senders: 1 });
    const shared = new SharedWords(rig.memory);
    shared.setRunning(0, true);
    const given = plain(frame(toAll, v4(), udp({ payload: pattern(100) })));
    rig.devices[0].load([given, plain(frame(toAll, v4({ id: 2 }), udp({ payload: pattern(101) })))]);
    rig.senders[0][0].room = room;
    rig.engine.turn(0, READY_ALL);
    t.ok(rig.engine.blocked);
    const gone = new Set([0, 3, 298, 299, 300, 650, 998, 999]);
    for (const i of gone) rig.tables.removePeer(rig.refs[0][i]);
    for (let i = 0; i < 5; i++) {
      rig.tables.addPeer({ address: Uint8Array.of(10, 201, 0, i), port: PORT, mtu: FRAME, ecn: true, network: 0 });
    }
    let done = false;
    void rig.tables.commit().then(() => {
      done = true;
    });
    while (!done) {
      rig.engine.turn(0, READY_ALL);
      await new Promise((resolve) => setImmediate(resolve));
    }
    rig.senders[0][0].room = Number.POSITIVE_INFINITY;
    rig.drain();
    const { sent } = rig.take();
    for (const length of [100, 101]) {
      const counts = new Map<number, number>();
      for (const one of sent) {
        if (one.bytes.length !== 8 + 14 + 28 + length || rig.peerOf(one) < 0) continue;
        counts.set(rig.peerOf(one), (counts.get(rig.peerOf(one)) ?? 0) + 1);
      }
      t.ok(
        [...counts.values()].every((n) => n === 1),
        `room ${room}: nobody gets frame ${length} twice`,
      );
      const missed = rig.refs[0].filter((_, i) => !gone.has(i) && !counts.has(i)).length;
      t.ok(missed <= gone.size, `room ${room}: ${missed} of those who stay missed frame ${length}`);
    }
    shared.setRunning(0, false);
    rig.audit();
  }
});

t.test('super-frames flooded to many peers through full sockets', async (t) => {
  const PEERS = 300;
  const rig = await makeSwitch({ peers: many(PEERS), memory: { peers: 1024 } });
  const group = ether({ destination: '01:00:5e:00:00:fb' });
  const frames = Array.from({ length: 6 }, (_, i) =>
    superFrame(group, v4({ destination: '224.0.0.251', id: i * 100 }), udp({ payload: pattern(20000, i) }), 1000),
  );
  rig.devices[0].load(frames);
  for (let i = 0; i < 100; i++) {
    for (const socket of rig.senders[0]) socket.room = 37;
    rig.engine.turn(0, READY_ALL);
  }
  for (const socket of rig.senders[0]) socket.room = Number.POSITIVE_INFINITY;
  rig.drain();
  const want = expected(frames).join();
  const got = rig.refs[0].map((): string[] => []);
  for (const datagram of rig.take().sent) got[rig.peerOf(datagram)].push(hex(datagram.bytes));
  t.ok(got.every((list) => list.join() === want));
  rig.audit();
});

t.test('unknown unicast may be dropped; groups are flooded all the same', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}], l2: { floodUnknown: false } });
  hear(rig);
  const unknown = plain(frame(ether({ destination: '02:aa:00:00:00:01' }), v4(), udp()));
  t.equal(rig.out(0, unknown).length, 0);
  t.same(rig.changes(), { 'outbound.device_pulled': 1, 'outbound.unknown_unicast': 1, 'tables.macs_learned': 1 });
  t.equal(rig.out(0, plain(frame(toAll, v4(), udp()))).length, 2);
  t.equal(rig.out(0, plain(frame(ether(), v4(), udp()))).length, 1);
  rig.audit();
});

t.test('a storm: at most as many frames a second as the limit, each network by itself', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}, {}], l2: { stormLimit: 100 } });
  hear(rig);
  rig.now = 5000;
  const storm = plain(frame(toAll, v4(), udp()));
  const burst = (network: number, count: number, given = storm): number => {
    const before = rig.counter('outbound.flooded');
    const dropped = rig.counter('outbound.storm');
    const sent = rig.out(network, ...Array.from({ length: count }, () => given));
    const flooded = rig.counter('outbound.flooded') - before;
    t.equal(flooded + rig.counter('outbound.storm') - dropped, count);
    t.equal(sent.length, flooded * 3);
    return flooded;
  };
  const first = burst(0, 500);
  t.ok(first >= 50 && first <= 101, `${first} of 500 at once`);
  t.equal(burst(0, 100), 0, 'the bucket is empty');
  t.equal(rig.out(0, plain(frame(ether(), v4(), udp()))).length, 1, 'what is known is no storm');
  const second = burst(1, 500);
  t.equal(second, first, 'the other network has its own');
  rig.now += 500;
  const half = burst(0, 500);
  t.ok(half >= 45 && half <= 55, `${half} after half a second`);
  rig.now += 60_000;
  t.equal(burst(0, 500), first, 'a long quiet fills it once');
  let total = 0;
  for (let i = 0; i < 200; i++) {
    rig.now += 7;
    total += burst(0, 5, plain(frame(ether({ destination: '02:aa:00:00:00:01' }), v4(), udp())));
  }
  t.ok(total >= 130 && total <= 141, `${total} in 1.4 s of small steps`);
  rig.audit();
});

t.test('runts, and sources that cannot be', async (t) => {
  const rig = await makeSwitch();
  const good = frame(ether(), v4(), udp());
  const tagged = frame(ether({ tags: [[VLAN, 5]] }), v4(), udp());
  const twice = frame(
    ether({
      tags: [
        [VLAN, 5],
        [VLAN, 6],
      ],
    }),
    v4(),
    udp(),
  );
  const cases: readonly (readonly [string, string, DevicePacket])[] = [
    ['one byte', 'runt', plain(good.subarray(0, 1))],
    ['13 bytes', 'runt', plain(good.subarray(0, 13))],
    ['14 bytes that end in a VLAN tag', 'runt', plain(tagged.subarray(0, 14))],
    ['17 bytes of a tagged frame', 'runt', plain(tagged.subarray(0, 17))],
    ['21 bytes of a frame with two tags', 'runt', plain(twice.subarray(0, 21))],
    ['a group as source', 'bad_source_mac', plain(frame(ether({ source: '03:00:00:00:00:01' }), v4(), udp()))],
    ['broadcast as source', 'bad_source_mac', plain(frame(ether({ source: BROADCAST }), v4(), udp()))],
    ['zero as source', 'bad_source_mac', plain(frame(ether({ source: NOBODY }), v4(), udp()))],
  ];
  for (const [what, counter, given] of cases) {
    t.equal(rig.out(0, given).length, 0, what);
    t.same(rig.changes(), { 'outbound.device_pulled': 1, [`outbound.${counter}`]: 1 }, what);
    rig.audit();
  }
  t.same(rig.learned().macs, 0);
});

t.test('virtio headers that lie, with and without a VLAN tag', async (t) => {
  for (const [where, tags] of TAGGED) {
    const rig = await makeSwitch();
    hear(rig);
    const to = ether({ tags });
    const l2 = headerOf(to);
    const gso = (lie: Vnet, ip = v4()): DevicePacket => superFrame(to, ip, tcp({ payload: pattern(5000) }), 1000, lie);
    const uso = (lie: Vnet, ip = v4()): DevicePacket => superFrame(to, ip, udp({ payload: pattern(5000) }), 1000, lie);
    const unfinishedAt = (start: number, offset: number): DevicePacket => ({
      vnet: gso({ type: 0, size: 0, start, offset }).vnet,
      bytes: frame(to, v4(), tcp({ payload: pattern(100) })),
    });
    const cut = ({ vnet, bytes }: DevicePacket, length: number): DevicePacket => ({
      vnet,
      bytes: bytes.subarray(0, length),
    });
    const cases: readonly (readonly [string, DevicePacket])[] = [
      ['gso_size 0', gso({ size: 0 })],
      ['csum_start as in layer 3', gso({ start: 20 })],
      ['csum_start in the Ethernet header', gso({ start: l2 - 2 })],
      ['csum_start beyond TCP', gso({ start: l2 + 40 })],
      ['csum_start beyond the frame', gso({ start: 65535 })],
      ['csum_offset of UDP', gso({ offset: 6 })],
      ['csum_offset of TCP', uso({ offset: 16 })],
      ['no NEEDS_CSUM', gso({ flags: 0 })],
      ['gso_type 2', gso({ type: 2 })],
      ['TCPv6 on IPv4', gso({ type: GSO.tcp6 })],
      ['TCPv4 on IPv6', gso({ type: GSO.tcp4 }, v6())],
      ['UDP on TCP', gso({ type: GSO.udp, offset: 6 })],
      [
        'super-frame of an unknown type',
        { vnet: gso({}).vnet, bytes: ethernet(to, OTHER, gso({}).bytes.subarray(l2)) },
      ],
      ['an ARP super-frame', { vnet: gso({}).vnet, bytes: ethernet(to, ARP, pattern(2000)) }],
      ['a super-frame of one Ethernet header', cut(gso({}), l2)],
      ['a super-frame cut in its IP header', cut(gso({}), l2 + 10)],
      ['unfinished, start beyond the frame', unfinishedAt(2000, 0)],
      ['unfinished, field beyond the frame', unfinishedAt(l2 + 20, 200)],
      ['unfinished, both at the limit', unfinishedAt(65535, 65535)],
    ];
    for (const [what, given] of cases) {
      t.equal(rig.out(0, given).length, 0, `${where}, ${what}`);
      t.match(rig.changes(), { 'outbound.device_pulled': 1, 'outbound.bad_offload': 1 }, `${where}, ${what}`);
      t.equal(rig.take().pushed.length, 0);
      rig.audit();
    }
  }
});

t.test('same port: the destination is on our side', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.out(0, plain(frame({ source: ourMac(2), destination: BROADCAST }, v4(), udp())));
  rig.changes();
  t.equal(rig.out(0, plain(frame(ether({ destination: ourMac(2) }), v4(), udp()))).length, 0);
  t.same(rig.changes(), { 'outbound.device_pulled': 1, 'outbound.same_port': 1, 'tables.macs_learned': 1 });
  t.equal(rig.out(0, plain(frame(ether({ destination: ourMac() }), v4(), udp()))).length, 0, 'to itself');
  t.match(rig.changes(), { 'outbound.same_port': 1 });
  t.equal(
    rig.out(1, plain(frame(ether({ destination: ourMac(2) }), v4(), udp()))).length,
    2,
    'unknown in the other network',
  );
  rig.audit();
});

t.test('no peer: nobody to flood to', async (t) => {
  const rig = await makeSwitch({ peers: [{ networks: [1] }] });
  t.equal(rig.out(0, plain(frame(toAll, v4(), udp()))).length, 0);
  t.match(rig.changes(), { 'outbound.device_pulled': 1, 'outbound.no_peer': 1 });
  const given = superFrame(toAll, v4(), udp({ payload: pattern(5000) }), 1000);
  t.equal(rig.out(0, given).length, 0);
  t.match(rig.changes(), { 'outbound.device_pulled': 1 });
  rig.audit();
});

t.test('split horizon: what a peer floods is never sent to any peer', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}, {}] });
  hear(rig, 1);
  for (const destination of [BROADCAST, '33:33:00:00:00:01', '02:aa:00:00:00:09', theirMac(1), theirMac(0)]) {
    const given = frame({ source: theirMac(0), destination }, { source: their4(), destination: our4() }, udp());
    const pushed = rig.in([rig.from(0, [vxlan(42, given)])]);
    t.same(
      pushed.map(({ bytes }) => hex(bytes)),
      [hex(given)],
      `to ${destination}: to the device`,
    );
    t.equal(rig.take().sent.length, 0, 'and to nobody else');
  }
  rig.audit();
});

t.test('static MACs win over what was learned, and need not be learned', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setMac(0, mac(theirMac(7)), rig.refs[0][0]);
  await rig.tables.commit();
  const given = plain(frame(ether({ destination: theirMac(7) }), v4(), udp()));
  t.same(receivers(rig, rig.out(0, given)), [0]);
  hear(rig, 1, 0, theirMac(7));
  t.same(receivers(rig, rig.out(0, given)), [0], 'never overridden');
  t.same(receivers(rig, rig.out(1, given)), [0, 1], 'of that network only');
  rig.tables.setMac(0, mac(theirMac(7)), rig.refs[0][1]);
  await rig.tables.commit();
  t.same(receivers(rig, rig.out(0, given)), [1], 'set again: replaced');
  rig.tables.removeMac(0, mac(theirMac(7)));
  await rig.tables.commit();
  rig.now += 400_000;
  t.same(receivers(rig, rig.out(0, given)), [0, 1], 'removed: flooded');
  rig.audit();
});

// --- Too large ---

interface Answer {
  readonly mtu: number;
  readonly network?: number;
  readonly tags?: readonly Tag[];
}

/** The one ICMP error that was written, checked from end to end: about frame `about`, to who sent it, as from who should get it. */
function checkTooBig(
  t: Pick<Test, 'equal' | 'same' | 'ok'>,
  pushed: readonly Pushed[],
  about: Uint8Array,
  want: Answer,
): void {
  t.equal(pushed.length, 1, 'one answer');
  if (pushed.length !== 1) return;
  t.equal(pushed[0].network, want.network ?? 0, 'to the device that it came from');
  t.same([...pushed[0].vnet], [...new Uint8Array(10)], 'checksums are complete');
  const asked = decodeFrame(about);
  const answer = decodeFrame(pushed[0].bytes);
  t.equal(answer.destination, asked.source);
  t.equal(answer.source, asked.destination);
  t.same(answer.tags, asked.tags, 'in the same VLAN');
  t.equal(answer.type, asked.type);
  const error = decode(answer.body);
  const offending = decode(asked.body, 'quoted');
  t.equal(error.source, offending.destination);
  t.equal(error.destination, offending.source);
  const v4 = asked.type === IPV4;
  const most = v4 ? 576 : 1280;
  t.same([error.icmp?.type, error.icmp?.code, error.icmp?.word], v4 ? [3, 4, want.mtu] : [2, 0, want.mtu]);
  t.ok(error.ttl >= 64);
  t.ok(answer.body.length <= most, `${answer.body.length} bytes`);
  t.ok(error.payload.length >= Math.min(asked.body.length, most - 60), `quotes ${error.payload.length} bytes`);
  t.equal(difference([hex(error.payload)], [hex(asked.body.subarray(0, error.payload.length))]), '');
}

t.test('too large for the path: DF and IPv6 are answered from the frame itself', async (t) => {
  for (const [what, tags] of TAGGED) {
    const rig = await makeSwitch({ peers: [{ mtu: 1314 }] });
    hear(rig);
    const to = ether({ tags });
    const fits = 1314 - headerOf(to);
    const cases: readonly (readonly [string, DevicePacket])[] = [
      ['IPv4', plain(frame(to, v4(), udp({ payload: pattern(fits - 28 + 1) })))],
      ['IPv6', plain(frame(to, v6(), udp({ payload: pattern(fits - 48 + 1) })))],
      ['IPv4 TCP', unfinishedFrame(to, v4({ tos: 3 }), tcp({ payload: pattern(1390) }))],
      ['IPv4 super-frame', superFrame(to, v4(), tcp({ payload: pattern(9000) }), fits - 52 + 1)],
      ['IPv6 super-frame', superFrame(to, v6(), tcp({ payload: pattern(9000) }), 1350)],
      ['UDP super-frame', superFrame(to, v4(), udp({ payload: pattern(9000) }), 1350)],
      ['UDP super-frame over IPv6', superFrame(to, v6(), udp({ payload: pattern(9000) }), fits - 48 + 1)],
    ];
    for (const [kind, given] of cases) {
      await t.test(`${what}, ${kind}`, async (t) => {
        t.equal(rig.out(0, given).length, 0);
        // Quoted as it would have gone out; of a super-frame there is no such thing.
        const [wire, ...more] = framesOnTheWire(given);
        checkTooBig(t, rig.take().pushed, more.length > 0 ? given.bytes : wire, { mtu: fits, tags });
        t.match(rig.changes(), { 'outbound.too_big': 1, 'outbound.icmp_made': 1, 'outbound.icmp_sent': 1 });
        rig.audit();
      });
    }
    const limit = [
      plain(frame(to, v4(), udp({ payload: pattern(fits - 28) }))),
      plain(frame(to, v6(), udp({ payload: pattern(fits - 48) }))),
      superFrame(to, v4(), tcp({ payload: pattern(9000) }), fits - 52),
      superFrame(to, v6(), udp({ payload: pattern(9000) }), fits - 48),
      plain(ethernet(to, OTHER, pattern(fits))),
    ];
    t.equal(difference(bytesOf(rig.out(0, ...limit)).sort(), expected(limit).sort()), '', 'the limit itself passes');
    t.equal(rig.counter('outbound.too_big'), cases.length);
    rig.audit();
  }
});

t.test('too large: answered to the device of its own network', async (t) => {
  const rig = await makeSwitch({ peers: [{ mtu: 1000 }] });
  hear(rig, 0, 1);
  const bytes = frame(ether(), v4(), udp({ payload: pattern(1200) }));
  t.equal(rig.out(1, plain(bytes)).length, 0);
  checkTooBig(t, rig.take().pushed, bytes, { mtu: 986, network: 1 });
  rig.audit();
});

t.test('too large: no error about an error, about a later fragment, or to nobody', async (t) => {
  const rig = await makeSwitch({ peers: [{ mtu: 1000 }] });
  hear(rig);
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['an ICMP error', frame(ether(), v4(), icmp(3, pattern(1200)))],
    ['an ICMPv6 error', frame(ether(), v6(), icmp(2, pattern(1200), true))],
    ['a later fragment', frame(ether(), v4({ offset: 100 }), raw(17, pattern(1200)))],
    ['from 0.0.0.0', frame(ether(), v4({ source: '0.0.0.0' }), udp({ payload: pattern(1200) }))],
    ['from ::', frame(ether(), v6({ source: '::' }), udp({ payload: pattern(1200) }))],
    ['from a group', frame(ether(), v4({ source: '224.0.0.1' }), udp({ payload: pattern(1200) }))],
    ['to a group', frame(ether(), v4({ destination: '224.0.0.1' }), udp({ payload: pattern(1200) }))],
  ];
  for (const [what, bytes] of cases) {
    t.equal(rig.out(0, plain(bytes)).length, 0, what);
    t.match(rig.changes(), { 'outbound.too_big': 1, 'outbound.icmp_forbidden': 1 }, what);
    t.equal(rig.take().pushed.length, 0, what);
  }
  rig.audit();
});

t.test('too large and not IP: dropped, with nothing to say', async (t) => {
  const rig = await makeSwitch({ peers: [{ mtu: 1314 }] });
  hear(rig);
  const cases = [
    ethernet(ether(), OTHER, pattern(1400)),
    ethernet(ether(), ARP, pattern(1400)),
    ethernet(ether(), IPV4, pattern(1400)), // no IP header
    changed(frame(ether(), v4(), udp({ payload: pattern(1400) })), put(14, 0x43)),
    changed(frame(ether(), v6(), udp({ payload: pattern(1400) })), put(14, 0x55)),
  ];
  for (const [i, bytes] of cases.entries()) {
    t.equal(rig.out(0, plain(bytes)).length, 0, `case ${i}`);
    t.match(rig.changes(), { 'outbound.too_big': 1 }, `case ${i}`);
    t.equal(rig.take().pushed.length, 0, `case ${i}`);
    rig.audit();
  }
});

t.test('too large without DF: fragments that make the packet again, each behind the Ethernet header', async (t) => {
  for (const [what, tags] of TAGGED) {
    for (const mtu of [1314, 598]) {
      const rig = await makeSwitch({ peers: [{ mtu }] });
      hear(rig);
      const to = ether({ tags });
      const whole = [
        packet(v4({ df: false, id: 7 }), udp({ payload: pattern(1400) })),
        packet(v4({ df: false, id: 8, tos: 0xb8 }), tcp({ payload: pattern(1400) })),
        packet(v4({ df: false, id: 9, options: new Uint8Array(12).fill(1) }), udp({ payload: pattern(1370) })),
        packet(v4({ df: false, id: 10, ttl: 1 }), icmp(8, pattern(3001))),
      ];
      for (const [i, bytes] of whole.entries()) {
        const given =
          i === 0
            ? unfinishedFrame(to, v4({ df: false, id: 7 }), udp({ payload: pattern(1400) }))
            : plain(ethernet(to, IPV4, bytes));
        const sent = rig.out(0, given).map((one) => carried(one).frame);
        t.ok(sent.length > 1 && sent.every(({ length }) => length <= mtu), `${what}: ${sent.length} fragments`);
        for (const part of sent) {
          t.equal(hex(part.subarray(0, headerOf(to))), hex(given.bytes.subarray(0, headerOf(to))));
        }
        t.equal(hex(reassemble(sent.map((part) => part.slice(headerOf(to))))), hex(bytes));
        t.equal(rig.changes()['outbound.fragments_made'], sent.length - 1);
        rig.audit();
      }
      // TCP super-frames without DF are cut smaller, UDP datagrams are fragmented, as in layer 3.
      const stream = pattern(20000);
      const cut = rig
        .out(0, superFrame(to, v4({ df: false }), tcp({ payload: stream }), 1350))
        .map((one) => carried(one).frame);
      t.ok(cut.every(({ length }) => length <= mtu));
      t.equal(hex(concat(...cut.map((part) => decode(decodeFrame(part).body).payload))), hex(stream));
      rig.audit();
      const datagrams = superFrame(to, v4({ df: false, id: 500 }), udp({ payload: pattern(4000) }), 1400);
      const parts = rig.out(0, datagrams).map((one) => carried(one).frame.slice(headerOf(to)));
      t.ok(parts.every(({ length }) => length <= mtu - headerOf(to)));
      const byId = new Map<number, Uint8Array[]>();
      for (const part of parts) {
        const { id } = decode(part);
        byId.set(id, [...(byId.get(id) ?? []), part]);
      }
      const again = [...byId.values()].map((list) => (list.length > 1 ? reassemble(list) : list[0]));
      t.equal(
        difference(
          again.map(hex),
          framesOnTheWire(datagrams).map((bytes) => hex(bytes.slice(headerOf(to)))),
        ),
        '',
      );
      rig.audit();
    }
  }
});

t.test('flooded to paths of different MTUs: to those it fits; each other copy is too big', async (t) => {
  const mtus = [1464, 1000, 1464, 600, 1444];
  const rig = await makeSwitch({ peers: mtus.map((mtu, i) => ({ mtu, ...(i === 4 ? { address: 'fd99::9' } : {}) })) });
  const group = ether({ destination: '01:00:5e:00:00:fb' });
  const ip = v4({ destination: '224.0.0.251' });
  const cases: readonly (readonly [string, DevicePacket, number[]])[] = [
    ['DF', plain(frame(group, ip, udp({ payload: pattern(1200) }))), [0, 2, 4]],
    ['no DF', plain(frame(group, { ...ip, df: false }, udp({ payload: pattern(1200) }))), [0, 2, 4]],
    ['not IP', plain(ethernet(toAll, OTHER, pattern(900))), [0, 1, 2, 4]],
    [
      'unknown unicast',
      plain(frame(ether({ destination: '02:aa:00:00:00:01' }), v6(), udp({ payload: pattern(1400) }))),
      [0, 2],
    ],
    ['too big for all', plain(ethernet(toAll, OTHER, pattern(1460))), []],
    ['a super-frame of one short segment', superFrame(group, ip, udp({ payload: pattern(60) }), 1400), [0, 1, 2, 3, 4]],
    ['small', plain(ethernet(toAll, OTHER, pattern(90))), [0, 1, 2, 3, 4]],
    [
      'super-frame',
      superFrame(group, ip, udp({ payload: pattern(3600) }), 900),
      [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4],
    ],
  ];
  for (const [what, given, want] of cases) {
    rig.changes();
    const sent = rig.out(0, given);
    t.same(receivers(rig, sent), want, what);
    const whole = expected([given]);
    t.ok(
      sent.every(({ bytes }) => whole.includes(hex(bytes))),
      `${what}: whole`,
    );
    const changes = rig.changes();
    t.ok((changes['outbound.too_big'] ?? 0) >= mtus.length - new Set(want).size, what);
    const made = rig.take().pushed;
    t.ok(
      made.every(({ bytes }) => (bytes[6] & 1) === 0),
      `${what}: no answer comes from a group`,
    );
    if (group.destination === decodeFrame(given.bytes).destination)
      t.equal(made.length, 0, `${what}: no answer about a group`);
    rig.audit();
  }
});

t.test(
  'unknown unicast that fits no path is answered once, as from who should get it; groups and nobody are not',
  async (t) => {
    const rig = await makeSwitch({ peers: [{ mtu: 1000 }, { mtu: 900 }, { mtu: 1200 }] });
    for (const ip of both) {
      const bytes = frame(ether({ destination: theirMac(1) }), ip(), udp({ payload: pattern(1300) }));
      t.equal(rig.out(0, plain(bytes)).length, 0);
      t.match(
        rig.changes(),
        { 'outbound.too_big': 1, 'outbound.icmp_made': 1 },
        'the frame, not each copy: none was made',
      );
      const { pushed } = rig.take();
      t.equal(pushed.length, 1, 'one answer');
      const mtu = decode(decodeFrame(pushed[0].bytes).body).icmp?.word ?? 0;
      t.equal(mtu, 886, 'what fits on every path');
      checkTooBig(t, pushed, bytes, { mtu });
      for (const destination of [NOBODY, BROADCAST, '01:00:5e:00:00:fb', '33:33:00:00:00:01']) {
        rig.out(0, plain(frame(ether({ destination }), ip(), udp({ payload: pattern(1300) }))));
        t.equal(rig.take().pushed.length, 0, `to ${destination}`);
      }
      rig.changes();
      rig.audit();
    }
  },
);

t.test('the largest: jumbo frames, and super-frames of 65,535 bytes with two tags', async (t) => {
  const rig = await makeSwitch({
    peers: [{ mtu: 9014 }, { mtu: 65499 }],
    l2: { networks: VNIS.map((vni) => ({ vni, mtu: 9000 })) },
  });
  hear(rig, 0);
  hear(rig, 1);
  const tags = TAGGED[2][1];
  const far = ether({ destination: theirMac(1), tags });
  const frames = [
    plain(frame(ether(), v4(), udp({ payload: pattern(8972) }))),
    plain(frame(ether(), v6(), tcp({ payload: pattern(8928) }))),
    superFrame(ether({ tags }), v4(), tcp({ payload: pattern(65535 - 52) }), 1400),
    superFrame(ether({ tags }), v6(), udp({ payload: pattern(65535 - 48) }), 1400),
    superFrame(ether(), v4(), tcp({ payload: pattern(65535 - 52) }), 8000),
    plain(frame(far, v4(), udp({ payload: pattern(65499 - 22 - 28) }))),
    superFrame(far, v4(), tcp({ payload: pattern(65535 - 52) }), 30000),
  ];
  for (const given of frames) {
    t.equal(difference(bytesOf(rig.out(0, given)), expected([given])), '');
    rig.audit();
  }
  // 32 and more of them at once.
  rig.devices[0].load(frames, 300);
  rig.drain();
  t.equal(rig.counter('outbound.device_pulled'), 300 + frames.length);
  t.equal(rig.counter('outbound.too_big') + rig.counter('outbound.path_mtu') + rig.counter('outbound.bad_offload'), 0);
  rig.audit();
});

t.test('ECN is copied to the outer header, DSCP where it is to be: all four by several, both families', async (t) => {
  for (const inheritDscp of [false, true]) {
    for (const underlay of [0, 1]) {
      for (const [what, tags] of TAGGED) {
        const rig = await makeSwitch({
          peers: [underlay === 0 ? {} : { address: 'fd99::2' }],
          settings: { inheritDscp },
        });
        hear(rig);
        for (const ip of both) {
          for (const ecn of [0, 1, 2, 3]) {
            for (const dscp of [0, 1, 46, 63]) {
              const tos = (dscp << 2) | ecn;
              const frames = [
                plain(frame(ether({ tags }), ip({ tos }), udp({ payload: pattern(9) }))),
                superFrame(ether({ tags }), ip({ tos }), tcp({ payload: pattern(4000) }), 1000),
              ];
              const sent = rig.out(0, ...frames);
              const want = inheritDscp ? tos : ecn;
              t.equal(difference(bytesOf(sent).sort(), expected(frames).sort()), '');
              t.ok(
                sent.length === 5 && sent.every((one) => one.tos === want),
                `${what}: tos ${tos} makes ${sent[0].tos}, expected ${want}`,
              );
            }
          }
        }
        const [other] = rig.out(0, plain(ethernet(ether({ tags }), OTHER, pattern(100, 77))));
        t.equal(other.tos, 0, 'not IP: nothing to copy');
        const [arp] = rig.out(0, plain(ethernet(ether({ tags }), ARP, pattern(28, 177))));
        t.equal(arp?.tos ?? 0, 0);
        rig.audit();
      }
    }
  }
});

t.test('ECN of a flooded frame, and of one that is fragmented', async (t) => {
  const rig = await makeSwitch({ peers: [{ mtu: 700 }, {}, {}], settings: { inheritDscp: true } });
  hear(rig);
  const flooded = rig.out(0, plain(frame(toAll, v4({ tos: 0xb9 }), udp({ payload: pattern(300) }))));
  t.same(
    flooded.map(({ tos }) => tos),
    [0xb9, 0xb9, 0xb9],
  );
  const parts = rig.out(0, plain(frame(ether(), v4({ tos: 0x2a, df: false }), udp({ payload: pattern(1300) }))));
  t.ok(parts.length > 1 && parts.every(({ tos }) => tos === 0x2a));
  rig.audit();
});

t.test('source ports: a flow has one of the pool for ever, flows are spread over all', async (t) => {
  for (const underlay of [0, 1]) {
    for (const [what, tags] of TAGGED) {
      const rig = await makeSwitch({ peers: [underlay === 0 ? {} : { address: 'fd99::2' }], senders: 4 });
      hear(rig);
      const kinds: readonly (readonly [string, (flow: number, n: number) => Uint8Array])[] = [
        [
          'UDP ports',
          (flow, n) => frame(ether({ tags }), v4({ id: n }), udp({ from: 2000 + flow, payload: pattern(30, n) })),
        ],
        [
          'TCP ports',
          (flow, n) => frame(ether({ tags }), v4({ id: n }), tcp({ to: 2000 + flow, seq: n, payload: pattern(30, n) })),
        ],
        [
          'IPv6 UDP ports',
          (flow, n) => frame(ether({ tags }), v6(), udp({ from: 2000 + flow, payload: pattern(30, n) })),
        ],
        [
          'IPv6 TCP ports',
          (flow, n) => frame(ether({ tags }), v6(), tcp({ to: 2000 + flow, seq: n, payload: pattern(30, n) })),
        ],
        [
          'IPv4 addresses',
          (flow, n) => frame(ether({ tags }), v4({ source: our4(flow + 1), id: n }), icmp(8, pattern(30, n))),
        ],
        [
          'IPv6 addresses',
          (flow, n) => frame(ether({ tags }), v6({ source: our6(flow + 1) }), icmp(128, pattern(30, n), true)),
        ],
        ['MACs', (flow, n) => ethernet(ether({ tags, source: ourMac(flow + 1) }), OTHER, pattern(60, n))],
      ];
      for (const [kind, make] of kinds) {
        const used = new Map<number, number>();
        let moved = 0;
        for (let n = 0; n < 3; n++) {
          const frames = Array.from({ length: 64 }, (_, flow) => make(flow, n));
          const sent = rig.out(0, ...frames.map(plain));
          for (const [flow, bytes] of frames.entries()) {
            const by = sent.find((one) => hex(one.bytes) === hex(vxlan(42, bytes)))?.sender ?? -1;
            if (used.has(flow) && used.get(flow) !== by) moved++;
            used.set(flow, by);
          }
        }
        t.equal(moved, 0, `${what}, ${kind}: a flow stays`);
        const counts = [0, 1, 2, 3].map((sender) => [...used.values()].filter((by) => by === sender).length);
        t.ok(Math.min(...counts) >= 4, `${what}, ${kind}: 64 flows over the pool: ${counts}`);
      }
      rig.audit();
    }
  }
});

t.test('source ports: the fragments of a datagram take one way; a tunnelled super-frame too', async (t) => {
  const rig = await makeSwitch();
  hear(rig);
  for (let i = 0; i < 32; i++) {
    const pair = v4({ source: our4(i + 1), df: false, id: i });
    const fragments = [
      frame(ether(), { ...pair, mf: true }, raw(17, udp({ from: 999 * i, payload: pattern(72) }).bytes)),
      frame(ether(), { ...pair, mf: true, offset: 10 }, raw(17, pattern(80))),
      frame(ether(), { ...pair, offset: 20 }, raw(17, pattern(33))),
    ];
    const sent = rig.out(0, ...fragments.map(plain));
    t.equal(new Set(sent.map(({ sender }) => sender)).size, 1, `fragments of datagram ${i}`);
    const segments = rig.out(
      0,
      superFrame(ether(), v4({ source: our4(i + 1) }), tcp({ payload: pattern(9000) }), 1000),
    );
    t.equal(new Set(segments.map(({ sender }) => sender)).size, 1);
    const [single] = rig.out(0, plain(frame(ether(), v4({ source: our4(i + 1) }), tcp({ payload: pattern(9) }))));
    t.equal(single.sender, segments[0].sender, 'a super-frame and a single frame of a flow');
  }
  rig.audit();
});

t.test('source ports: order within a flow, whatever the sockets take', async (t) => {
  for (const senders of [0, 1, 2, 8]) {
    const rig = await makeSwitch({ peers: [{}, {}], senders });
    hear(rig, 0);
    hear(rig, 1);
    const frames = Array.from({ length: 2000 }, (_, n) => {
      const flow = (n * 7) % 16;
      const to = ether({ destination: theirMac(flow & 1) });
      const payload = concat([n >> 8, n & 255], pattern(20 + ((n * 13) % 5) * 100, n));
      return n % 9 === 0
        ? superFrame(
            to,
            v4({ source: our4(flow + 1) }),
            udp({ from: flow, payload: concat([n >> 8, n & 255], pattern(3000, n)) }),
            1000,
          )
        : plain(frame(to, v4({ source: our4(flow + 1) }), udp({ from: flow, payload })));
    });
    rig.devices[0].load(frames);
    let step = 0;
    while (rig.devices[0].pulled < frames.length || rig.engine.blocked) {
      for (const socket of rig.senders[0]) socket.room = step++ % 3 === 0 ? 0 : step % 5;
      rig.engine.turn(0, READY_ALL);
    }
    const seen = new Map<number, string[]>();
    for (const one of rig.take().sent) {
      const { from } = decode(decodeFrame(carried(one).frame).body).udp ?? { from: -1 };
      seen.set(from, [...(seen.get(from) ?? []), hex(one.bytes)]);
    }
    for (let flow = 0; flow < 16; flow++) {
      const want = expected(frames.filter((_, n) => (n * 7) % 16 === flow));
      t.equal(difference(seen.get(flow) ?? [], want), '', `flow ${flow}, ${senders} senders`);
    }
    rig.audit();
  }
});

t.test('equal frames to one peer share a message', async (t) => {
  const rig = await makeSwitch({ senders: 1 });
  hear(rig);
  const before = rig.senders[0][0].sentMessages;
  rig.out(
    0,
    ...Array.from({ length: 30 }, (_, i) => plain(frame(ether(), v4({ id: i }), udp({ payload: pattern(64) })))),
  );
  t.equal(rig.senders[0][0].sentMessages - before, 1);
  rig.audit();
});

t.test('a path that turns out smaller is marked for the peer it is of, also by a flood', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}, {}], socket: { mtu: 1000 } });
  const shared = new SharedWords(rig.memory);
  hear(rig, 1);
  t.equal(
    rig.out(0, plain(frame(ether({ destination: theirMac(1) }), v4(), udp({ payload: pattern(1200) })))).length,
    0,
  );
  t.match(rig.changes(), { 'outbound.path_mtu': 1 });
  t.equal(shared.mtuEvents(), 1);
  t.same(
    [0, 1, 2].map((i) => rig.tables.takeMtuSuspect(rig.refs[0][i])),
    [false, true, false],
  );
  rig.out(0, plain(frame(toAll, v4(), udp({ payload: pattern(1200) }))));
  t.match(rig.changes(), { 'outbound.path_mtu': 3 });
  t.same(
    [0, 1, 2].map((i) => rig.tables.takeMtuSuspect(rig.refs[0][i])),
    [true, true, true],
  );
  rig.tables.setPeerMtu(rig.refs[0][1], 900);
  const bytes = frame(ether({ destination: theirMac(1) }), v4(), udp({ payload: pattern(1200) }));
  t.equal(rig.out(0, plain(bytes)).length, 0);
  checkTooBig(t, rig.take().pushed, bytes, { mtu: 886 });
  rig.audit();
});

t.test('per peer: packets and bytes out, each copy of a flood for whom it went to', async (t) => {
  const rig = await makeSwitch({ peers: [{}, { address: 'fd99::2' }] });
  const totals = (ref: number): number[] => {
    const at = (rig.layout.peerCounters >> 3) + (ref & 0xffff) * 4;
    return [...rig.memory.f64.subarray(at, at + 2)];
  };
  const given = plain(frame(toAll, v4(), udp({ payload: pattern(100) })));
  rig.out(0, given);
  const length = given.bytes.length + 8;
  t.same(
    rig.refs.map((list) => list.map(totals)),
    [
      [
        [1, length],
        [1, length],
      ],
      [
        [0, 0],
        [0, 0],
      ],
    ],
  );
  rig.out(1, superFrame(toAll, v4(), udp({ payload: pattern(3000) }), 1000));
  t.same(rig.refs[1].map(totals), [
    [3, 3 * 50 + 3000],
    [3, 3 * 50 + 3000],
  ]);
  rig.audit();
});

t.test('no segmentation (outer checksums off): one message a datagram', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}], settings: { maxSegments: 1 }, socket: { maxSegments: 1 } });
  hear(rig);
  const given = [
    superFrame(ether(), v4(), tcp({ payload: pattern(30_000) }), 1350),
    superFrame(toAll, v4(), udp({ payload: pattern(3000) }), 1000),
  ];
  t.equal(
    difference(bytesOf(rig.out(0, ...given).filter((one) => rig.peerOf(one) === 0)).sort(), expected(given).sort()),
    '',
  );
  t.equal(rig.counter('outbound.messages_sent'), rig.counter('outbound.socket_sent'));
  rig.audit();
});
