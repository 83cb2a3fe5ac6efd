/** Network → host as a switch: every way a datagram can go, checked by an independent decoder and the second set of books. */
import fc from 'fast-check';
import t from 'tap';
import { READY_ALL } from '../../src/dataplane/engine.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { EINVAL, EIO } from '../../src/io/device.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import { ALL_OFFLOADS, OFFLOADS } from '../../src/io/offloads.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { decode, decodeVnet } from '../lib/decode.js';
import {
  ARP,
  advertise,
  arpFrame,
  BROADCAST,
  decodeFrame,
  type EthernetSpec,
  ethernet,
  frame,
  framesOnTheWire,
  headerOf,
  IPV4,
  IPV6,
  mac,
  NOBODY,
  O_FLAG,
  OTHER,
  padded,
  partialFrame,
  SERVICE_VLAN,
  solicit,
  superFrame,
  TAGGED,
  unfinishedFrame,
  VLAN,
  vxlan,
} from '../lib/frames.js';
import {
  ACK,
  address,
  changed,
  concat,
  difference,
  FIN,
  flip,
  hex,
  type IpSpec,
  icmp,
  onesSum,
  PSH,
  packet,
  pattern,
  plain,
  pseudoSum,
  put,
  raw,
  rechecksum,
  SYN,
  type Transport,
  tcp,
  udp,
} from '../lib/packets.js';
import {
  hear,
  MTU,
  makeSwitch,
  our4,
  our6,
  ourMac,
  PORT,
  receivers,
  type SwitchRig,
  setOwnMacs,
  their4,
  their6,
  theirMac,
  VNIS,
} from '../lib/rig-l2.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const v4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: their4(), destination: our4(), ...change });
const v6 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: their6(), destination: our6(), ...change });
const both = [v4, v6] as const;
const ether = (change: Partial<EthernetSpec> = {}): EthernetSpec => ({
  source: theirMac(),
  destination: ourMac(),
  ...change,
});

/** A datagram in the first network. */
const wrap = (bytes: Uint8Array): Uint8Array => vxlan(VNIS[0], bytes);
const EMPTY = '00'.repeat(10);
/** A frame without its IPv4 id, which merging does not keep, nor the bytes behind the packet. */
function timeless(bytes: Uint8Array): string {
  const { header, type } = decodeFrame(bytes);
  if (type !== IPV4) return hex(bytes);
  const ip = bytes.slice(header, header + ((bytes[header + 2] << 8) | bytes[header + 3]));
  if (ip.length < 20 || onesSum(ip.subarray(0, (ip[0] & 15) * 4)) !== 0xffff) return hex(bytes);
  return hex(concat(bytes.subarray(0, header), rechecksum(changed(ip, (copy) => copy.fill(0, 4, 6)))));
}
const cut = (pushed: readonly DevicePacket[]): Uint8Array[] => pushed.flatMap(framesOnTheWire);

t.test('what is well-formed arrives as it was sent, behind an empty virtio header', async (t) => {
  for (const underlay of [0, 1]) {
    for (const [what, tags] of TAGGED) {
      const rig = await makeSwitch({ peers: [underlay === 0 ? {} : { address: 'fd99::2' }] });
      const from = ether({ tags });
      const frames = both.flatMap((ip) => [
        frame(from, ip({ ttl: 1 }), udp({ payload: pattern(1000) })),
        frame(from, ip({ ttl: 0 }), tcp({ payload: pattern(1000), flags: ACK | FIN })),
        frame(from, ip(), icmp(ip === v4 ? 0 : 129, pattern(56), ip === v6)),
        frame(from, ip(), raw(132, pattern(3))),
        frame(from, ip(), raw(59, new Uint8Array(0))),
      ]);
      frames.push(
        frame(from, v4({ options: new Uint8Array(12).fill(1) }), udp({ payload: pattern(10) })),
        frame(from, v4({ mf: true, df: false }), raw(17, pattern(80))),
        frame(from, v4({ offset: 10, df: false }), raw(17, pattern(7))),
        frame({ ...from, destination: BROADCAST }, v4(), udp({ payload: pattern(12) })),
        padded(frame(from, v4(), udp({ payload: pattern(1) }))),
        ethernet(from, OTHER, pattern(400)),
        ethernet(from, OTHER, new Uint8Array(0)),
        ethernet(from, 0x0026, pattern(38)),
        ethernet(from, ARP, concat([0, 6, 8, 0], pattern(40))), // not of Ethernet
        // Not IP, though they say so; and what only the host can judge.
        ethernet(from, IPV4, pattern(9)),
        ethernet(from, IPV6, pattern(39)),
        changed(frame(from, v4(), udp()), put(headerOf(from), 0x4f)),
        changed(frame(from, v4(), udp()), put(headerOf(from) + 10, 1, 2)),
        changed(frame(from, v6(), udp()), put(headerOf(from) + 4, 255, 255)),
        changed(frame(from, v4(), tcp({ payload: pattern(9) })), flip(headerOf(from) + 40, 1)),
        changed(frame(from, v4(), udp({ payload: pattern(9) })), put(headerOf(from) + 26, 0, 0)),
      );
      const pushed = rig.in(
        frames.map((bytes) => rig.from(0, [wrap(bytes)])),
        underlay,
      );
      t.equal(difference(pushed.map(({ bytes }) => hex(bytes)).sort(), frames.map(hex).sort()), '', what);
      t.ok(pushed.every(({ vnet, network }) => hex(vnet) === EMPTY && network === 0));
      t.equal(rig.take().sent.length, 0);
      t.match(rig.changes(), { 'tables.macs_learned': 1, 'inbound.device_pushed': frames.length });
      rig.audit();
    }
  }
});

t.test('bad datagrams: each its own counter, nothing written', async (t) => {
  const rig = await makeSwitch({ peers: [{}, { networks: [1] }] });
  rig.tables.setNeighbour(0, address(their4(5)), mac(theirMac(5)), false, rig.refs[0][0]);
  rig.tables.setNeighbour(0, address(their6(5)), mac(theirMac(5)), false, rig.refs[0][0]);
  await rig.tables.commit();
  setOwnMacs(rig, 0, ourMac(200), ourMac(201));
  const good = frame(ether(), v4(), udp({ payload: pattern(50) }));
  const tagged = frame(ether({ tags: [[VLAN, 5]] }), v4(), udp());
  const source = (text: string): Uint8Array => wrap(frame(ether({ source: text }), v4(), udp()));
  const stranger = socketAddress(address('192.168.77.99'), PORT);
  const request = arpFrame({ senderMac: theirMac(), sender: their4(), target: our4() });
  const ask = (change: Partial<Parameters<typeof arpFrame>[0]>): Uint8Array =>
    wrap(arpFrame({ senderMac: theirMac(), sender: their4(), target: our4(), ...change }));
  const cases: readonly (readonly [string, string, Uint8Array, Uint8Array?])[] = [
    ['one byte', 'short_vxlan', wrap(good).subarray(0, 1)],
    ['7 bytes', 'short_vxlan', wrap(good).subarray(0, 7)],
    ['no I flag', 'no_vni_flag', vxlan(42, good, { flags: 0 })],
    ['every flag but I', 'no_vni_flag', vxlan(42, good, { flags: 0xf7 })],
    ['VNI 44', 'unknown_vni', vxlan(44, good)],
    ['VNI 0', 'unknown_vni', vxlan(0, good)],
    ['VNI 42 with a high bit', 'unknown_vni', vxlan(42 | (1 << 23), good)],
    ['VNI 42 shifted', 'unknown_vni', vxlan(42 << 8, good)],
    ['VNI 2^24 - 1', 'unknown_vni', vxlan(0xffffff, good)],
    ['a stranger', 'unknown_peer', wrap(good), stranger],
    ['a peer of the other network', 'unknown_peer', wrap(good), rig.name(1)],
    ['nothing inside', 'runt', wrap(new Uint8Array(0))],
    ['13 bytes inside', 'runt', wrap(good.subarray(0, 13))],
    ['14 bytes that end in a VLAN tag', 'runt', wrap(tagged.subarray(0, 14))],
    ['17 bytes of a tagged frame', 'runt', wrap(tagged.subarray(0, 17))],
    ['a group as source', 'bad_source_mac', source('03:00:00:00:00:01')],
    ['broadcast as source', 'bad_source_mac', source(BROADCAST)],
    ['zero as source', 'bad_source_mac', source(NOBODY)],
    ["our device's MAC as source", 'loop', source(ourMac(200))],
    ["our bridge's MAC as source", 'loop', source(ourMac(201))],
    ['ARP, hardware length 8', 'bad_arp', ask({ hardwareLength: 8 })],
    ['ARP, protocol length 0', 'bad_arp', ask({ protocolLength: 0 })],
    ['ARP, cut', 'bad_arp', wrap(request.subarray(0, 41))],
    ['ARP reply, cut', 'bad_arp', ask({ operation: 2, targetMac: ourMac() }).subarray(0, 8 + 30)],
    ['ARP that lies', 'neighbour_conflict', ask({ sender: their4(5) })],
    ['ARP reply that lies', 'neighbour_conflict', ask({ operation: 2, sender: their4(5), targetMac: ourMac() })],
    ['ND, hop limit 254', 'bad_nd', wrap(solicit(theirMac(), their6(), our6(), {}, { ttl: 254 }))],
    ['ND, option length 0', 'bad_nd', wrap(changed(advertise(theirMac(), their6(), 0), put(14 + 40 + 24 + 1, 0)))],
    ['an NA that lies', 'neighbour_conflict', wrap(advertise(theirMac(), their6(5), O_FLAG))],
  ];
  for (const [what, counter, bytes, name] of cases) {
    t.equal(rig.in([{ name: name ?? rig.name(0), bytes }]).length, 0, `${what}: nothing written`);
    t.same(rig.changes(), { 'inbound.socket_received': 1, [`inbound.${counter}`]: 1 }, what);
    t.equal(rig.learned().macs, 0, `${what}: nothing learned`);
    rig.audit();
  }
  t.equal(rig.in([{ name: rig.name(0), bytes: new Uint8Array(0) }]).length, 0, 'an empty datagram');
  t.equal(rig.counter('inbound.empty') + rig.counter('inbound.short_vxlan'), 3);
  // Loops are a matter of each network.
  t.equal(rig.in([rig.from(0, [vxlan(43, source(ourMac(200)).subarray(8))])]).length, 1);
  rig.changes();
  // In a run, only the bad one is lost.
  const run = Array.from({ length: 9 }, (_, i) =>
    wrap(frame(ether(), v4({ id: i }), tcp({ seq: 1 + i * 100, payload: pattern(100, i) }))),
  );
  for (const spoil of [0, 3, 8]) {
    for (const [counter, change] of [
      ['no_vni_flag', put(0, 0)],
      ['unknown_vni', put(5, 1)],
      ['bad_source_mac', put(14, 1)],
      ['loop', put(14, ...mac(ourMac(200)))],
    ] as const) {
      const given = run.map((bytes, i) => (i === spoil ? changed(bytes, change) : bytes));
      const pushed = cut(rig.in([rig.from(0, given)]));
      const want = run.filter((_, i) => i !== spoil).map((bytes) => timeless(bytes.slice(8)));
      t.equal(difference(pushed.map(timeless), want), '', `${counter} of segment ${spoil}`);
      t.match(rig.changes(), { [`inbound.${counter}`]: 1, 'inbound.socket_received': 9 });
      rig.audit();
    }
  }
});

t.test('reserved bits are ignored', async (t) => {
  const rig = await makeSwitch();
  const good = frame(ether(), v4(), tcp({ payload: pattern(50) }));
  for (const lie of [
    { flags: 0xff },
    { flags: 0x88 },
    { reserved: 0xffffff },
    { last: 0xff },
    { flags: 0x0c, reserved: 1, last: 1 },
  ]) {
    const pushed = rig.in([rig.from(0, [vxlan(42, good, lie)])]);
    t.same(
      pushed.map(({ bytes }) => hex(bytes)),
      [hex(good)],
      JSON.stringify(lie),
    );
  }
  // And in the middle of a run.
  const run = Array.from({ length: 6 }, (_, i) =>
    vxlan(
      42,
      frame(ether(), v4({ id: i }), tcp({ seq: i * 90, payload: pattern(90, i) })),
      i % 2 ? { flags: 0xff, last: i } : {},
    ),
  );
  t.equal(
    difference(
      cut(rig.in([rig.from(0, run)])).map(timeless),
      run.map((bytes) => timeless(bytes.slice(8))),
    ),
    '',
  );
  rig.audit();
});

t.test('learning: whoever sends is found, up to a limit for each peer', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}, {}], l2: { macsPerPeer: 10 } });
  const find = (to: string): number[] =>
    receivers(rig, rig.out(0, plain(frame({ source: ourMac(), destination: to }, v4(), udp()))));
  for (let n = 1; n <= 20; n++) {
    const pushed = rig.in([rig.from(0, [wrap(frame(ether({ source: theirMac(0, n) }), v4(), udp()))])]);
    t.equal(pushed.length, 1, 'carried all the same');
    t.same(find(theirMac(0, n)), n <= 10 ? [0] : [0, 1, 2], `MAC ${n}`);
  }
  t.equal(rig.counter('tables.macs_over_limit'), 10);
  hear(rig, 1);
  t.same(find(theirMac(1)), [1], 'another peer has its own share');
  // One that goes makes room for one that comes.
  hear(rig, 1, 0, theirMac(0, 3));
  t.same(find(theirMac(0, 3)), [1]);
  hear(rig, 0, 0, theirMac(0, 20));
  t.same(find(theirMac(0, 20)), [0]);
  rig.audit();
});

t.test('learning: one message of many senders', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  const run = Array.from({ length: 40 }, (_, i) =>
    wrap(frame(ether({ source: theirMac(0, (i % 20) + 1) }), v4({ id: i }), udp({ payload: pattern(50, i) }))),
  );
  t.equal(cut(rig.in([rig.from(0, run)])).length, 40);
  t.equal(rig.learned().macs, 20);
  for (let n = 1; n <= 20; n++) {
    const sent = rig.out(0, plain(frame({ source: ourMac(), destination: theirMac(0, n) }, v4(), udp())));
    t.same(receivers(rig, sent), [0]);
  }
  rig.audit();
});

t.test('a peer is its address: it may send from any port', async (t) => {
  for (const [underlay, at] of [
    [0, '192.168.77.2'],
    [1, 'fd99::2'],
  ] as const) {
    const rig = await makeSwitch({ peers: [{ address: at }, {}] });
    for (const port of [1, 49_152, 65_535, 8472]) {
      const bytes = frame(ether({ source: theirMac(0, port & 255) }), v4(), udp());
      t.equal(
        rig.in([{ name: socketAddress(address(at), port), bytes: wrap(bytes) }], underlay).length,
        1,
        `port ${port}`,
      );
      const sent = rig.out(0, plain(frame({ source: ourMac(), destination: theirMac(0, port & 255) }, v4(), udp())));
      t.same(receivers(rig, sent), [0], 'and is answered at its own');
    }
    rig.audit();
  }
});

t.test('the table of MACs is bounded', async (t) => {
  const rig = await makeSwitch({ memory: { macs: 64 }, l2: { macsPerPeer: 1000 }, peers: [{}, {}] });
  for (let n = 0; n < 500; n++) {
    hear(rig, n & 1, 0, `02:01:00:00:${(n >> 8).toString(16)}:${(n & 255).toString(16)}`);
    rig.audit();
  }
  t.ok(rig.learned().macs <= 64 && rig.learned().macs > 32, `${rig.learned().macs}`);
  t.ok(rig.counter('tables.macs_table_full') > 0);
});

t.test('source-check off: unknown senders are carried, and nothing is learned from them', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}], settings: { sourceCheck: 'off' } });
  const stranger = socketAddress(address('192.168.77.99'), PORT);
  const frames = [
    frame(ether({ source: theirMac(9) }), v4(), udp()),
    arpFrame({ senderMac: theirMac(9), sender: their4(9), target: our4() }),
    advertise(theirMac(9), their6(9), O_FLAG),
  ];
  const pushed = rig.in(frames.map((bytes) => ({ name: stranger, bytes: wrap(bytes) })));
  t.equal(
    difference(
      pushed.map(({ bytes }) => hex(bytes)),
      frames.map(hex),
    ),
    '',
  );
  t.same(rig.learned().macs, 0);
  t.same(rig.learned().neighbours, 0);
  t.equal(rig.out(0, plain(frame({ source: ourMac(), destination: theirMac(9) }, v4(), udp()))).length, 2);
  // A peer is learned from as ever, also one that shares a message's turn with a stranger.
  const run = [{ name: stranger, bytes: wrap(frames[0]) }, rig.from(0, [wrap(frame(ether(), v4(), udp()))])];
  t.equal(rig.in(run).length, 2);
  t.same(receivers(rig, rig.out(0, plain(frame({ source: ourMac(), destination: theirMac() }, v4(), udp())))), [0]);
  t.equal(rig.out(0, plain(frame({ source: ourMac(), destination: theirMac(9) }, v4(), udp()))).length, 2);
  rig.audit();
});

t.test('two networks, two devices', async (t) => {
  const rig = await makeSwitch();
  const frames = Array.from({ length: 60 }, (_, i) => {
    const network = (i * 7) % 3 === 0 ? 1 : 0;
    return { network, bytes: frame(ether(), v4({ id: i }), udp({ from: 9, to: i, payload: pattern(200, i) })) };
  });
  const pushed = rig.in(frames.map(({ network, bytes }) => rig.from(0, [vxlan(VNIS[network], bytes)])));
  for (const network of [0, 1]) {
    t.equal(
      difference(
        cut(pushed.filter((one) => one.network === network))
          .map(timeless)
          .sort(),
        frames
          .filter((one) => one.network === network)
          .map(({ bytes }) => timeless(bytes))
          .sort(),
      ),
      '',
      `network ${network}`,
    );
  }
  rig.audit();
});

t.test('two VNIs interleaved in one message, with the same flow in both: nothing crosses over', async (t) => {
  for (const order of [(i: number) => i & 1, (i: number) => (i >> 2) & 1, (i: number) => (i % 3 === 0 ? 1 : 0)]) {
    for (const ip of both) {
      for (const make of [
        (i: number): Transport => tcp({ seq: 1 + i * 300, payload: pattern(300, i) }),
        (i: number): Transport => udp({ payload: pattern(300, i) }),
      ]) {
        const rig = await makeSwitch();
        const next = [0, 0];
        const datagrams = Array.from({ length: 60 }, (_, i) => {
          const network = order(i);
          const n = next[network]++;
          return { network, bytes: frame(ether(), ip({ id: n }), make(n)) };
        });
        const pushed = rig.in([
          rig.from(
            0,
            datagrams.map(({ network, bytes }) => vxlan(VNIS[network], bytes)),
          ),
        ]);
        for (const network of [0, 1]) {
          const want = datagrams.filter((one) => one.network === network).map(({ bytes }) => timeless(bytes));
          const got = cut(pushed.filter((one) => one.network === network)).map(timeless);
          t.equal(difference(got, want), '', `network ${network}`);
        }
        rig.audit();
      }
    }
  }
});

t.test('merged: one super-frame per flow, its checksum begins behind the Ethernet header', async (t) => {
  for (const ip of both) {
    for (const [what, tags] of TAGGED) {
      for (const [kind, make, type, offset] of [
        [
          'TCP',
          (i: number, size: number): Transport =>
            tcp({ seq: 1 + i * size, payload: pattern(size, i * size), flags: i === 39 ? ACK | PSH : ACK }),
          ip === v4 ? 1 : 4,
          16,
        ],
        ['UDP', (i: number, size: number): Transport => udp({ payload: pattern(size, i * size) }), 5, 6],
      ] as const) {
        const rig = await makeSwitch();
        const from = ether({ tags });
        const frames = Array.from({ length: 40 }, (_, i) => frame(from, ip({ id: i }), make(i, 1300)));
        const run = [rig.from(0, frames.map(wrap))];
        const singles = frames.map((bytes) => rig.from(0, [wrap(bytes)]));
        for (const messages of [run, singles, [rig.from(0, frames.slice(0, 20).map(wrap)), ...singles.slice(20)]]) {
          const pushed = rig.in(messages);
          t.equal(pushed.length, 1, `${what} ${kind}`);
          const virtio = decodeVnet(pushed[0].vnet);
          t.same([virtio.flags, virtio.type, virtio.size, virtio.offset], [1, type, 1300, offset]);
          t.equal(virtio.start, headerOf(from) + (ip === v4 ? 20 : 40));
          const got = decodeFrame(pushed[0].bytes);
          t.same(got.tags, tags);
          t.equal(hex(pushed[0].bytes.subarray(0, headerOf(from))), hex(frames[0].subarray(0, headerOf(from))));
          t.equal(hex(decode(got.body, 'partial').payload), hex(pattern(52000)));
          t.equal(difference(cut(pushed).map(timeless), frames.map(timeless)), '');
          t.match(rig.changes(), { 'inbound.merged': 39, 'inbound.super_packets': 1, 'inbound.device_pushed': 1 });
        }
        rig.audit();
      }
    }
  }
});

t.test('merged as far as it goes: flows that differ in MAC, tag or priority stay apart', async (t) => {
  const kinds: readonly (readonly [string, (i: number) => EthernetSpec])[] = [
    ['source MAC', (i) => ether({ source: theirMac(0, 1 + (i & 1)) })],
    ['destination MAC', (i) => ether({ destination: ourMac(1 + (i & 1)) })],
    ['VLAN', (i) => ether({ tags: [[VLAN, 5 + (i & 1)]] })],
    ['priority', (i) => ether({ tags: [[VLAN, (i & 1) << 13]] })],
    [
      'inner VLAN',
      (i) =>
        ether({
          tags: [
            [SERVICE_VLAN, 5],
            [VLAN, 5 + (i & 1)],
          ],
        }),
    ],
    ['tag or none', (i) => ether({ tags: i & 1 ? [[VLAN, 5]] : [] })],
    ['tag type', (i) => ether({ tags: [[i & 1 ? VLAN : SERVICE_VLAN, 5]] })],
  ];
  for (const [what, make] of kinds) {
    const rig = await makeSwitch();
    const frames = Array.from({ length: 20 }, (_, i) =>
      frame(make(i), v4({ id: i }), tcp({ seq: i * 99, payload: pattern(99, i) })),
    );
    const pushed = rig.in(frames.map((bytes) => rig.from(0, [wrap(bytes)])));
    t.equal(difference(cut(pushed).map(timeless).sort(), frames.map(timeless).sort()), '', what);
    rig.audit();
  }
});

t.test('Ethernet padding is no payload', async (t) => {
  for (const [what, tags] of TAGGED) {
    for (const [kind, make] of [
      ['UDP', (i: number): Uint8Array => frame(ether({ tags }), v4({ id: i }), udp({ payload: pattern(3, i) }))],
      [
        'TCP',
        (i: number): Uint8Array =>
          frame(
            ether({ tags }),
            v4({ id: i }),
            tcp({ seq: i * 2, options: new Uint8Array(0), payload: pattern(2, i) }),
          ),
      ],
      ['IPv6 UDP', (i: number): Uint8Array => frame(ether({ tags }), v6(), udp({ payload: pattern(3, i) }))],
    ] as const) {
      const rig = await makeSwitch();
      const frames = Array.from({ length: 30 }, (_, i) => padded(make(i), 80));
      for (const messages of [[rig.from(0, frames.map(wrap))], frames.map((bytes) => rig.from(0, [wrap(bytes)]))]) {
        const packets = cut(rig.in(messages)).map((bytes) => {
          const { header, body, type } = decodeFrame(bytes);
          const length = type === IPV4 ? (body[2] << 8) | body[3] : 40 + ((body[4] << 8) | body[5]);
          return timeless(concat(bytes.subarray(0, header), body.subarray(0, length)));
        });
        t.equal(
          difference(
            packets,
            frames.map((_, i) => timeless(make(i))),
          ),
          '',
          `${what}, ${kind}`,
        );
      }
      // Some padded, some not, and padding that is not zero.
      const mixed = Array.from({ length: 12 }, (_, i) => {
        const bytes = make(i);
        return i % 3 === 0
          ? padded(bytes, 100)
          : i % 3 === 1
            ? concat(bytes, pattern(100 - bytes.length, 7))
            : padded(bytes, 100);
      });
      const got = cut(rig.in([rig.from(0, mixed.map(wrap))])).map((bytes) => {
        const { header, body, type } = decodeFrame(bytes);
        const length = type === IPV4 ? (body[2] << 8) | body[3] : 40 + ((body[4] << 8) | body[5]);
        return timeless(concat(bytes.subarray(0, header), body.subarray(0, length)));
      });
      t.equal(
        difference(
          got,
          mixed.map((_, i) => timeless(make(i))),
        ),
        '',
        `${what}, ${kind}, mixed`,
      );
      rig.audit();
    }
  }
});

// --- A kernel across a veth ---

t.test('a kernel across a veth: unfinished checksums, from a SYN on', async (t) => {
  for (const offloads of [ALL_OFFLOADS, OFFLOADS.gro, 0]) {
    for (const [what, tags] of TAGGED) {
      for (const ip of both) {
        const from = ether({ tags });
        const carriedKinds: readonly (readonly [string, Transport, number])[] = [
          ['SYN', tcp({ flags: SYN, options: new Uint8Array(20).fill(1) }), 16],
          ['ACK', tcp(), 16],
          ['data', tcp({ payload: pattern(1300), flags: ACK | PSH }), 16],
          ['FIN', tcp({ flags: ACK | FIN }), 16],
          ['UDP', udp({ payload: pattern(600) }), 6],
          ['UDP of nothing', udp(), 6],
        ];
        for (const [kind, transport, offset] of carriedKinds) {
          const rig = await makeSwitch({ settings: { offloads } });
          const pushed = rig.in([rig.from(0, [wrap(partialFrame(from, ip(), transport))])]);
          t.equal(pushed.length, 1);
          const virtio = decodeVnet(pushed[0].vnet);
          // Without that offload the engine finishes them itself.
          const left = offloads & OFFLOADS.csum;
          const want = left ? [1, 0, headerOf(from) + (ip === v4 ? 20 : 40), offset] : [0, 0, 0, 0];
          t.same(
            [virtio.flags, virtio.type, virtio.start, virtio.offset],
            want,
            `${what} ${kind}, offloads ${offloads}`,
          );
          t.equal(difference(cut(pushed).map(hex), [hex(frame(from, ip(), transport))]), '');
          t.equal(rig.counter('inbound.partial_checksums'), 1);
          rig.audit();
        }
      }
    }
  }
});

t.test('a kernel across a veth: a run of frames with unfinished checksums', async (t) => {
  for (const ip of both) {
    for (const make of [
      (i: number): Transport => tcp({ seq: i * 1300, payload: pattern(1300, i) }),
      (i: number): Transport => udp({ payload: pattern(1300, i) }),
    ]) {
      for (const messages of [1, 0]) {
        const rig = await makeSwitch();
        const count = 20;
        const frames = Array.from({ length: count }, (_, i) => partialFrame(ether(), ip({ id: i }), make(i)));
        const given = messages ? [rig.from(0, frames.map(wrap))] : frames.map((bytes) => rig.from(0, [wrap(bytes)]));
        const want = Array.from({ length: count }, (_, i) => timeless(frame(ether(), ip({ id: i }), make(i))));
        t.equal(difference(cut(rig.in(given)).map(timeless), want), '');
        // Finished and unfinished ones of a flow by turns.
        const mixed = frames.map((bytes, i) => (i & 1 ? bytes : frame(ether(), ip({ id: i }), make(i))));
        const again = messages ? [rig.from(0, mixed.map(wrap))] : mixed.map((bytes) => rig.from(0, [wrap(bytes)]));
        t.equal(difference(cut(rig.in(again)).map(timeless), want), '');
        rig.audit();
      }
    }
  }
});

t.test('a kernel across a veth: an unsegmented TCP frame gets a segment size that fits the device', async (t) => {
  for (const [what, tags] of TAGGED) {
    for (const ip of both) {
      for (const length of [1500, 9000, 60_000]) {
        for (const options of [new Uint8Array(0), new Uint8Array(12).fill(1)]) {
          const rig = await makeSwitch();
          const from = ether({ tags });
          const stream = pattern(length);
          const transport = tcp({ seq: 0xffffff00, payload: stream, flags: ACK | PSH, options });
          const pushed = rig.in([rig.from(0, [wrap(partialFrame(from, ip({ tos: 2 }), transport))], { tos: 3 })]);
          t.equal(pushed.length, 1, `${what}, ${length} bytes`);
          const virtio = decodeVnet(pushed[0].vnet);
          const network = ip === v4 ? 20 : 40;
          t.same([virtio.flags, virtio.type & 0x7f, virtio.offset], [1, ip === v4 ? 1 : 4, 16]);
          t.equal(virtio.start, headerOf(from) + network);
          t.equal(virtio.size, MTU - network - 20 - options.length, 'MTU less headers');
          const segments = cut(pushed).map((bytes) => decode(decodeFrame(bytes).body));
          t.equal(hex(concat(...segments.map(({ payload }) => payload))), hex(stream));
          t.ok(
            segments.every(({ ecn }) => ecn === 3),
            'and the mark from outside',
          );
          t.equal(rig.counter('inbound.unsegmented'), 1);
          rig.audit();
        }
      }
    }
  }
});

t.test('a kernel across a veth: an unsegmented UDP frame, whose message names the inner segment size', async (t) => {
  for (const [what, tags] of TAGGED) {
    for (const ip of both) {
      for (const [size, length] of [
        [1000, 60_000],
        [1000, 3500],
        [1400, 2801],
        [100, 6400],
      ] as const) {
        const rig = await makeSwitch();
        const from = ether({ tags });
        const transport = udp({ payload: pattern(length) });
        const bytes = wrap(partialFrame(from, ip({ id: 77 }), transport));
        const pushed = rig.in([{ name: rig.name(0), bytes, segment: size, tos: 0 }]);
        t.equal(pushed.length, 1, `${what}, ${length} bytes in segments of ${size}`);
        if (pushed.length !== 1) continue;
        const virtio = decodeVnet(pushed[0].vnet);
        t.same(
          [virtio.flags, virtio.type, virtio.size, virtio.start, virtio.offset],
          [1, 5, size, headerOf(from) + (ip === v4 ? 20 : 40), 6],
        );
        t.equal(hex(pushed[0].bytes), hex(bytes.subarray(8)), 'the frame itself is as it was');
        const parts = cut(pushed).map((part) => decode(decodeFrame(part).body).payload);
        t.equal(parts.length, Math.ceil(length / size));
        t.equal(hex(concat(...parts)), hex(pattern(length)));
        countOnce(rig);
        rig.audit();
      }
    }
  }
});

t.test('a kernel across a veth: what only looks unsegmented is no super-frame', async (t) => {
  for (const ip of both) {
    const l4 = 14 + (ip === v4 ? 20 : 40);
    const stream = partialFrame(ether(), ip(), tcp({ payload: pattern(3000) }));
    const datagram = partialFrame(ether(), ip(), udp({ payload: pattern(3000) }));
    const cases: readonly (readonly [string, Uint8Array, number])[] = [
      ['TCP with bytes behind it', concat(stream, pattern(100)), 0],
      ['TCP without room for its header', changed(stream, put(l4 + 12, 0x40)), 0],
      ['UDP with bytes behind it', concat(datagram, pattern(100)), 1000],
      ['UDP whose length lies', changed(datagram, put(l4 + 4, 255, 255)), 1000],
      ['UDP whose length is 0', changed(datagram, put(l4 + 4, 0, 0)), 1000],
    ];
    for (const [what, bytes, segment] of cases) {
      const rig = await makeSwitch();
      const pushed = rig.in([{ name: rig.name(0), bytes: wrap(bytes), ...(segment > 0 ? { segment } : {}) }]);
      t.ok(
        pushed.every(({ vnet }) => vnet[1] === 0 && vnet[4] === 0 && vnet[5] === 0),
        what,
      );
      t.equal(rig.counter('inbound.unsegmented'), 0, what);
      countOnce(rig);
      rig.audit();
    }
  }
});

/** One datagram arrived, whatever its message says; the in-memory socket cannot know. */
function countOnce(rig: SwitchRig): void {
  if (rig.counter('inbound.socket_received') === 1) rig.sockets[0].received = 1;
}

/** Changes the last two bytes of a payload so that the whole checksum equals the pseudo-header's sum. */
function ambiguous(ip: IpSpec, make: (payload: Uint8Array) => Transport, payload: Uint8Array): Transport {
  const blank = make(concat(payload, [0, 0]));
  const pseudo = pseudoSum(address(ip.source), address(ip.destination), blank.protocol, blank.bytes.length);
  const sum = onesSum(blank.bytes, 0) + 2 * pseudo;
  const word = (0xffff - (sum % 0xffff)) % 0xffff;
  return make(concat(payload, [word >> 8, word & 255]));
}

t.test('a right checksum that equals the pseudo-header sum is right either way', async (t) => {
  for (const ip of both) {
    for (const [make, at] of [
      [(i: number) => (payload: Uint8Array) => tcp({ seq: 1 + i * 100, payload }), 16],
      [() => (payload: Uint8Array) => udp({ payload }), 6],
    ] as const) {
      const transport = ambiguous(ip(), make(0), pattern(98));
      const whole = frame(ether(), ip(), transport);
      const l4 = 14 + (ip === v4 ? 20 : 40);
      const partial = partialFrame(ether(), ip(), transport);
      t.equal(hex(whole), hex(partial), 'the two cannot be told apart');
      t.equal(decode(whole.slice(14)).payload.length, 100);
      t.ok(whole[l4 + at] | whole[l4 + at + 1]);
      const rig = await makeSwitch();
      t.equal(difference(cut(rig.in([rig.from(0, [wrap(whole)])])).map(hex), [hex(whole)]), '');
      const run = Array.from({ length: 7 }, (_, i) =>
        frame(
          ether(),
          ip({ id: i }),
          i % 3 === 1 ? ambiguous(ip(), make(i), pattern(98, i)) : make(i)(pattern(100, i)),
        ),
      );
      for (const messages of [[rig.from(0, run.map(wrap))], run.map((bytes) => rig.from(0, [wrap(bytes)]))]) {
        t.equal(difference(cut(rig.in(messages)).map(timeless), run.map(timeless)), '');
      }
      rig.audit();
    }
  }
});

t.test('frames above the MTU that are whole are carried, and counted', async (t) => {
  const rig = await makeSwitch();
  const frames = [
    frame(ether(), v4(), udp({ payload: pattern(MTU - 28 + 1) })),
    frame(ether(), v6(), tcp({ payload: pattern(3000) })),
    frame(ether(), v4(), udp({ payload: pattern(MTU - 28) })),
    ethernet(ether(), OTHER, pattern(MTU)),
  ];
  const pushed = rig.in(frames.map((bytes) => rig.from(0, [wrap(bytes)])));
  t.equal(difference(pushed.map(({ bytes }) => hex(bytes)).sort(), frames.map(hex).sort()), '');
  t.equal(rig.counter('inbound.above_mtu'), 2);
  t.equal(rig.counter('inbound.unsegmented'), 0);
  rig.audit();
});

t.test('ECN on the way in (RFC 6040, figure 4), behind Ethernet and VLAN headers', async (t) => {
  const CE = 3;
  const results = [
    [0, 0, 0, -1],
    [1, 1, 1, CE],
    [2, 1, 2, CE],
    [CE, CE, CE, CE],
  ];
  for (const underlay of [0, 1]) {
    for (const [what, tags] of TAGGED) {
      const rig = await makeSwitch({ peers: [underlay === 0 ? {} : { address: 'fd99::2' }] });
      for (const ip of both) {
        for (const inner of [0, 1, 2, 3]) {
          for (const outer of [0, 1, 2, 3]) {
            const result = results[inner][outer];
            const make = (ecn: number, i = 0): Uint8Array =>
              frame(ether({ tags }), ip({ tos: 0xb8 | ecn, id: i }), tcp({ seq: i * 50, payload: pattern(50, i) }));
            const where = `${what}: inner ${inner}, outer ${outer}`;
            const alone = rig.in([rig.from(0, [wrap(make(inner))], { tos: outer | 0x20 })], underlay);
            t.same(
              alone.map(({ bytes }) => hex(bytes)),
              result < 0 ? [] : [hex(make(result))],
              where,
            );
            const changes = rig.changes();
            t.equal(changes['inbound.ecn_ce_not_ect'] ?? 0, result < 0 ? 1 : 0, where);
            t.equal(changes['inbound.ecn_marked'] ?? 0, result === CE && inner !== CE ? 1 : 0, where);
            const run = (ecn: number): Uint8Array[] => Array.from({ length: 6 }, (_, i) => make(ecn, i));
            const pushed = cut(rig.in([rig.from(0, run(inner).map(wrap), { tos: outer })], underlay));
            t.equal(
              difference(pushed.map(timeless), result < 0 ? [] : run(result).map(timeless)),
              '',
              `a run: ${where}`,
            );
            rig.changes();
          }
        }
      }
      // What is not IP has no mark to lose.
      const other = ethernet(ether({ tags }), OTHER, pattern(50));
      const arp = arpFrame({ senderMac: theirMac(), sender: their4(), target: our4() }, { tags });
      const pushed = rig.in([rig.from(0, [wrap(other)], { tos: 3 }), rig.from(0, [wrap(arp)], { tos: 3 })], underlay);
      t.equal(
        difference(
          pushed.map(({ bytes }) => hex(bytes)),
          [hex(other), hex(arp)],
        ),
        '',
      );
      rig.audit();
    }
  }
});

t.test('the device refuses a super-frame: its segments follow singly, and that kind is off', async (t) => {
  for (const [what, tags] of TAGGED) {
    for (const [name, make, type] of [
      [
        'tso4',
        (i: number) => frame(ether({ tags }), v4({ id: i }), tcp({ seq: i * 900, payload: pattern(900, i) })),
        1,
      ],
      ['tso6', (i: number) => frame(ether({ tags }), v6(), tcp({ seq: i * 900, payload: pattern(900, i) })), 4],
      ['uso', (i: number) => frame(ether({ tags }), v6(), udp({ payload: pattern(900, i) })), 5],
    ] as const) {
      const rig = await makeSwitch();
      rig.devices[0].refuseWith(({ vnet }) => (vnet[1] === type ? EINVAL : 0));
      const run = Array.from({ length: 30 }, (_, i) => make(i));
      const pushed = rig.in([rig.from(0, run.map(wrap))]);
      t.equal(
        difference(
          pushed.map(({ bytes }) => timeless(bytes)),
          run.map(timeless),
        ),
        '',
        `${what} ${name}`,
      );
      t.ok(pushed.every(({ vnet }) => hex(vnet) === EMPTY));
      t.equal(new SharedWords(rig.memory).refusedOffloads(), OFFLOADS[name]);
      t.match(rig.changes(), { 'inbound.merged': 29, 'inbound.unmerged': 29, 'inbound.device_pushed': 30 });
      rig.in([rig.from(0, run.map(wrap))]);
      t.equal(rig.changes()['inbound.merged'], undefined);
      rig.audit();
    }
  }
  // An unsegmented frame that the device refuses is lost or cut, but never miscounted.
  for (const transport of [tcp({ payload: pattern(30_000) }), udp({ payload: pattern(30_000) })]) {
    const rig = await makeSwitch();
    rig.devices[0].refuseWith(({ vnet }) => (vnet[1] !== 0 ? EINVAL : 0));
    const bytes = wrap(partialFrame(ether(), v4(), transport));
    rig.in([{ name: rig.name(0), bytes, ...(transport.protocol === 17 ? { segment: 1000 } : {}) }]);
    countOnce(rig);
    rig.audit();
  }
  const rig = await makeSwitch();
  rig.devices[0].refuseWith(() => EIO);
  rig.in([rig.from(0, [wrap(frame(ether(), v4(), icmp(8)))])]);
  t.match(rig.changes(), { 'inbound.device_refused': 1 });
  rig.audit();
});

t.test('every set of offloads delivers the same bytes', async (t) => {
  const flows = Array.from({ length: 6 }, (_, flow) => ({
    flow,
    seq: 1,
    to: ether({ tags: TAGGED[flow % 3][1], source: theirMac(flow % 3, flow) }),
  }));
  const runs = Array.from({ length: 60 }, (_, r) => {
    const state = flows[(r * 5) % 6];
    const size = [64, 700, 1300][r % 3];
    const packets = Array.from({ length: 1 + ((r * 7) % 25) }, () => {
      const payload = pattern(size, state.seq);
      const ip =
        state.flow & 1 ? v6({ source: their6(state.flow % 3) }) : v4({ source: their4(state.flow % 3), id: r });
      const made = frame(state.to, ip, tcp({ from: 1000 + state.flow, seq: state.seq, payload }));
      state.seq += size;
      return made;
    });
    return { peer: state.flow % 3, packets };
  });
  let want: string[] | undefined;
  for (let offloads = 0; offloads <= ALL_OFFLOADS; offloads++) {
    if (offloads & OFFLOADS.segment) continue; // of no account on the way in
    const rig = await makeSwitch({ peers: [{}, {}, {}], settings: { offloads } });
    const messages = runs.flatMap(({ peer, packets }) =>
      offloads & OFFLOADS.gro
        ? [rig.from(peer, packets.map(wrap))]
        : packets.map((bytes) => rig.from(peer, [wrap(bytes)])),
    );
    const parts: Uint8Array[][] = flows.map(() => []);
    for (const bytes of cut(rig.in(messages))) {
      const ip = decode(decodeFrame(bytes).body);
      parts[(ip.tcp?.from ?? 0) - 1000].push(ip.payload);
    }
    rig.audit();
    const got = parts.map((list) => hex(concat(...list)));
    want ??= got;
    if (got.join() !== want.join()) t.fail(`offloads ${offloads}`);
  }
  t.equal(want?.length, 6);
});

t.test('order within every flow is kept and nothing is lost, whatever arrives how', async () => {
  interface Step {
    readonly peer: number;
    readonly flow: number;
    readonly network: number;
    readonly kind: 'tcp' | 'udp' | 'partial' | 'big' | 'ack' | 'fragment' | 'other' | 'padded';
    readonly length: number;
    readonly tags: number;
    readonly count: number;
  }
  const steps = fc.array(
    fc.record({
      peer: fc.nat(1),
      flow: fc.nat(3),
      network: fc.constantFrom(0, 0, 0, 1),
      kind: fc.constantFrom(
        ...(['tcp', 'tcp', 'tcp', 'udp', 'udp', 'partial', 'big', 'ack', 'fragment', 'other', 'padded'] as const),
      ),
      length: fc.constantFrom(12, 100, 100, 1300),
      tags: fc.constantFrom(0, 0, 0, 1),
      count: fc.constantFrom(1, 1, 2, 5, 30),
    }),
    { minLength: 1, maxLength: 50 },
  );
  const mark = (n: number, length: number): Uint8Array => {
    const bytes = pattern(length, n);
    new DataView(bytes.buffer).setUint32(0, n);
    return bytes;
  };
  await fc.assert(
    fc.asyncProperty(steps, fc.nat(127), fc.boolean(), async (list: readonly Step[], offloads, grouped) => {
      const rig = await makeSwitch({ peers: [{}, {}], settings: { offloads } });
      const sequence = new Map<string, number>();
      const want = new Map<string, string[]>();
      let next = 0;
      for (const step of list) {
        const of = step.kind === 'other' ? 'other' : step.kind === 'udp' || step.kind === 'padded' ? 'udp' : 'tcp';
        const key = `${step.network} ${step.peer} ${step.flow} ${step.tags} ${of}`;
        const to = { source: theirMac(step.peer, step.flow + 1), destination: ourMac(), tags: TAGGED[step.tags][1] };
        const six = step.flow & 1;
        const ip: IpSpec = six
          ? { source: their6(step.peer, step.flow + 1), destination: our6() }
          : { source: their4(step.peer, step.flow + 1), destination: our4() };
        const datagrams = Array.from({ length: step.kind === 'big' ? Math.min(step.count, 7) : step.count }, () => {
          const n = next++;
          const seq = sequence.get(key) ?? 1;
          const length = step.kind === 'big' ? 8000 : step.length;
          const payload = mark(n, length);
          let bytes: Uint8Array;
          let whole: Uint8Array;
          if (step.kind === 'udp') whole = bytes = frame(to, { ...ip, id: n }, udp({ payload }));
          else if (step.kind === 'padded') {
            whole = frame(to, { ...ip, id: n }, udp({ payload }));
            bytes = padded(whole, 60);
          } else if (step.kind === 'fragment' && !six)
            whole = bytes = frame(to, { ...ip, df: false, offset: 4 }, raw(6, payload));
          else if (step.kind === 'other') whole = bytes = ethernet(to, OTHER, payload);
          else if (step.kind === 'ack') whole = bytes = frame(to, { ...ip, id: n }, tcp({ seq, options: mark(n, 12) }));
          else {
            sequence.set(key, seq + length);
            const transport = tcp({ seq, payload });
            whole = frame(to, { ...ip, id: n }, transport);
            bytes =
              step.kind === 'tcp' || step.kind === 'fragment' ? whole : partialFrame(to, { ...ip, id: n }, transport);
          }
          want.set(key, [...(want.get(key) ?? []), numberOf(whole)]);
          return vxlan(VNIS[step.network], bytes);
        });
        rig.sockets[0].load(
          grouped ? [rig.from(step.peer, datagrams)] : datagrams.map((one) => rig.from(step.peer, [one])),
        );
        rig.drain();
      }
      rig.audit();
      const got = new Map<string, string[]>();
      for (const one of rig.take().pushed) {
        for (const bytes of framesOnTheWire(one)) {
          const peer = bytes[10] - 2;
          const { tags, type, body } = decodeFrame(bytes);
          const protocol = type === IPV4 ? body[9] : body[6];
          const of = type !== IPV4 && type !== IPV6 ? 'other' : protocol === 17 ? 'udp' : 'tcp';
          const key = `${one.network} ${peer} ${bytes[11] - 1} ${tags.length} ${of}`;
          const number = numberOf(bytes);
          // Of a big one only the first segment has its number.
          if (number !== '') got.set(key, [...(got.get(key) ?? []), number]);
        }
      }
      return [...want].every(([key, list]) => {
        const found = got.get(key) ?? [];
        const rest = found.filter((n) => list.includes(n));
        return rest.join() === list.join();
      });
    }),
    { numRuns: 150 },
  );

  /** What marks a frame: its own number, wherever that is. */
  function numberOf(bytes: Uint8Array): string {
    const { type, body } = decodeFrame(bytes);
    const at = (from: number): string => hex(body.subarray(from, from + 4));
    if (type !== IPV4 && type !== IPV6) return at(0);
    const ip = decode(type === IPV4 ? body.subarray(0, (body[2] << 8) | body[3]) : body);
    if (ip.offset > 0) return hex(ip.payload.subarray(0, 4));
    if (ip.tcp && ip.payload.length === 0) return hex(ip.tcp.options.subarray(0, 4));
    return hex(ip.payload.subarray(0, 4));
  }
});

t.test('there: what one switch sends, another one writes, whatever both may do', async () => {
  const shapes = fc.record({
    kind: fc.constantFrom('tcp', 'udp', 'unfinished', 'super', 'uso', 'other', 'arp') as fc.Arbitrary<string>,
    six: fc.boolean(),
    flow: fc.nat(3),
    tags: fc.nat(2),
    length: fc.constantFrom(0, 1, 100, 1000, 1300),
    tos: fc.constantFrom(0, 2, 3),
    to: fc.constantFrom('known', 'known', 'known', 'all'),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(shapes, { minLength: 1, maxLength: 60 }),
      fc.nat(127),
      fc.constantFrom(0, 1),
      async (list, offloads, network) => {
        const here = await makeSwitch({ peers: [{ address: '192.168.77.3' }] });
        const there = await makeSwitch({ peers: [{ address: '192.168.77.2' }], settings: { offloads } });
        here.tables.setMac(network, mac(theirMac()), here.refs[network][0]);
        await here.tables.commit();
        const frames = list.map((shape, n): DevicePacket => {
          const to = {
            source: ourMac(shape.flow + 1),
            destination: shape.to === 'known' ? theirMac() : BROADCAST,
            tags: TAGGED[shape.tags][1],
          };
          const ip: IpSpec = shape.six
            ? { source: our6(shape.flow + 1), destination: their6(), tos: shape.tos }
            : { source: our4(shape.flow + 1), destination: their4(), tos: shape.tos, id: n * 100 };
          const payload = pattern(shape.length, n);
          if (shape.kind === 'tcp') return plain(frame(to, ip, tcp({ seq: n * 2000, payload })));
          if (shape.kind === 'udp') return plain(frame(to, ip, udp({ payload })));
          if (shape.kind === 'unfinished') return unfinishedFrame(to, ip, tcp({ seq: n * 2000, payload }));
          if (shape.kind === 'super')
            return superFrame(to, ip, tcp({ seq: n * 70_000, payload: pattern(9 * shape.length + 1, n) }), 1300);
          if (shape.kind === 'uso') return superFrame(to, ip, udp({ payload: pattern(5 * shape.length + 1, n) }), 700);
          if (shape.kind === 'arp') return plain(arpFrame({ senderMac: ourMac(9), sender: our4(9), target: our4(9) }));
          return plain(ethernet(to, OTHER, payload));
        });
        const sent = here.out(network, ...frames);
        here.audit();
        // Equal datagrams in a row that left by one socket arrive as one message.
        const messages: { sender: number; tos: number; parts: Uint8Array[] }[] = [];
        for (const { bytes, sender, tos } of sent) {
          const last = messages.at(-1);
          const joins =
            last !== undefined &&
            offloads & OFFLOADS.gro &&
            last.sender === sender &&
            last.tos === tos &&
            last.parts[0].length >= bytes.length &&
            last.parts[0].length === last.parts[last.parts.length - 1].length &&
            (last.parts.length + 1) * last.parts[0].length < 65_000;
          if (joins) last.parts.push(bytes);
          else messages.push({ sender, tos, parts: [bytes] });
        }
        const pushed = there.in(messages.map(({ tos, parts }) => there.from(0, parts, { tos })));
        there.audit();
        const want = frames.flatMap(framesOnTheWire).map(timeless).sort();
        return (
          pushed.every((one) => one.network === network) && difference(cut(pushed).map(timeless).sort(), want) === ''
        );
      },
    ),
    { numRuns: 150 },
  );
});

t.test('a turn ends: empty datagrams and runts cannot hold it', async (t) => {
  for (const bytes of [new Uint8Array(0), new Uint8Array(8), wrap(new Uint8Array(5))]) {
    const rig = await makeSwitch({ keep: false });
    rig.sockets[0].load([{ name: rig.name(0), bytes }], 5_000_000);
    rig.engine.turn(0, READY_ALL);
    t.ok(rig.sockets[0].received < 200_000, `${rig.sockets[0].received} in one turn`);
  }
});

t.test('per peer: packets and bytes in', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  const totals = (ref: number): number[] => {
    const at = (rig.layout.peerCounters >> 3) + (ref & 0xffff) * 4;
    return [...rig.memory.f64.subarray(at, at + 4)];
  };
  const run = Array.from({ length: 5 }, (_, i) =>
    wrap(frame(ether(), v4({ id: i }), udp({ payload: pattern(100, i) }))),
  );
  rig.in([rig.from(0, run)]);
  t.same(totals(rig.refs[0][0]).slice(2), [5, 5 * run[0].length]);
  t.same(totals(rig.refs[0][1]).slice(2), [0, 0]);
  t.same(totals(rig.refs[1][0]).slice(2), [0, 0]);
  rig.in([rig.from(0, [vxlan(43, run[0].subarray(8))])]);
  t.same(totals(rig.refs[1][0]).slice(2), [1, run[0].length], 'of the network it came in');
  rig.audit();
});

t.test('the longest: 65,507 bytes of datagram', async (t) => {
  const rig = await makeSwitch();
  const longest = [
    frame(ether(), v4(), udp({ payload: pattern(65507 - 8 - 14 - 28) })),
    frame(ether({ tags: TAGGED[2][1] }), v6(), tcp({ payload: pattern(65507 - 8 - 22 - 72) })),
    ethernet(ether(), OTHER, pattern(65507 - 8 - 14)),
  ];
  const pushed = rig.in(longest.map((bytes) => rig.from(0, [wrap(bytes)])));
  t.equal(difference(pushed.map(({ bytes }) => hex(bytes)).sort(), longest.map(hex).sort()), '');
  rig.in([{ name: rig.name(0), bytes: new Uint8Array(66_000).fill(8) }]);
  t.equal(rig.counter('inbound.truncated'), 1);
  t.same(packet(v4(), udp()).length, 28);
  rig.audit();
});
