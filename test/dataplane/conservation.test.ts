/**
 * Every exit of both walks, taken on purpose in one engine: in + made = sent + consumed + dropped throughout, by the engine's
 * counters and by those of the in-memory device and sockets. A counter that is added without a way to it here fails, and so
 * does one that docs/walk.md does not name.
 */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { COUNTER_INFOS, conservation, FIRST_OF_LAYER_2 } from '../../src/dataplane/counters.js';
import { EINVAL, EIO, EPERM } from '../../src/io/device.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';
import { socketAddress } from '../../src/io/socket-address.js';
import {
  add,
  address,
  changed,
  type IpSpec,
  message,
  packet,
  pattern,
  plain,
  put,
  rechecksum,
  superPacket,
  tcp,
  udp,
} from '../lib/packets.js';
import { counterName, HOST_4, HOST_6, makeRig, type Rig, remote4, remote6 } from '../lib/rig.js';

/** What can go wrong at the ends, and does when a recipe says so. */
interface Trouble {
  read: number;
  device: (packet: DevicePacket) => number;
  /** Refuses messages of more than one datagram with this errno. */
  segments: number;
}

interface Stage {
  readonly rig: Rig;
  readonly trouble: Trouble;
}

const out4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: HOST_4, destination: remote4(), ...change });
const in4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: remote4(), destination: HOST_4, ...change });
const outgoing = packet(out4(), udp({ payload: pattern(100) }));
const incoming = packet(in4(), udp({ payload: pattern(100) }));

const out = ({ rig }: Stage, ...packets: DevicePacket[]): void => void rig.out(...packets);
const into = ({ rig }: Stage, bytes: Uint8Array, outer: Partial<IncomingMessage> = {}): void =>
  void rig.in([{ name: rig.name(0), bytes, ...outer }]);
const noRoute = plain(packet(out4({ destination: '10.99.0.1' }), udp()));
const segments4 = Array.from({ length: 4 }, (_, i) =>
  packet(in4({ id: i }), tcp({ seq: i * 100, payload: pattern(100) })),
);
const segments6 = Array.from({ length: 4 }, (_, i) =>
  packet({ source: remote6(), destination: HOST_6 }, tcp({ seq: i * 100, payload: pattern(100) })),
);

/** A way to every counter, by direction and name. */
const RECIPES: Record<string, (stage: Stage) => void> = {
  'outbound.device_pulled': (s) => out(s, plain(outgoing)),
  'outbound.device_pulled_bytes': (s) => out(s, plain(outgoing)),
  'outbound.short': (s) => out(s, plain(outgoing.subarray(0, 19))),
  'outbound.bad_version': (s) => out(s, plain(changed(outgoing, put(0, 0x55)))),
  'outbound.bad_header_length': (s) => out(s, plain(changed(outgoing, put(0, 0x44)))),
  'outbound.bad_total_length': (s) => out(s, plain(changed(outgoing, add(3, 1)))),
  'outbound.bad_header_checksum': (s) => out(s, plain(changed(outgoing, add(10, 1)))),
  'outbound.bad_offload': (s) => out(s, superPacket(out4(), tcp({ payload: pattern(3000) }), 1000, { size: 0 })),
  'outbound.no_route': (s) => out(s, noRoute),
  'outbound.ttl_exceeded': (s) => out(s, plain(packet(out4({ ttl: 1 }), udp()))),
  'outbound.too_big': (s) => out(s, plain(packet(out4({ destination: remote4(1) }), udp({ payload: pattern(1400) })))),
  'outbound.fragments_made': (s) =>
    out(s, plain(packet(out4({ destination: remote4(1), df: false }), udp({ payload: pattern(1400) })))),
  'outbound.super_packets': (s) => out(s, superPacket(out4(), tcp({ payload: pattern(3000) }), 1000)),
  'outbound.segments_made': (s) => out(s, superPacket(out4(), udp({ payload: pattern(3000) }), 1000)),
  'outbound.ip_options': (s) => out(s, plain(packet(out4({ options: new Uint8Array(4).fill(1) }), udp()))),
  'outbound.ip_fragments': (s) => out(s, plain(packet(out4({ mf: true, df: false }), udp()))),
  'outbound.socket_sent': (s) => out(s, plain(outgoing)),
  'outbound.socket_sent_bytes': (s) => out(s, plain(outgoing)),
  'outbound.messages_sent': (s) => out(s, plain(outgoing)),
  'outbound.send_calls': (s) => out(s, plain(outgoing)),
  'outbound.socket_full': (s) => {
    s.rig.sockets[0].room = 0;
    s.rig.device.load([plain(outgoing)]);
    s.rig.engine.turn(0, 7);
    s.rig.sockets[0].room = Number.POSITIVE_INFINITY;
    s.rig.drain();
  },
  'outbound.messages_replayed': (s) => {
    s.trouble.segments = EIO;
    out(s, superPacket(out4(), tcp({ payload: pattern(3000) }), 1000));
    s.trouble.segments = 0;
  },
  'outbound.socket_refused': (s) => {
    s.rig.sockets[0].failOnce = EPERM;
    out(s, plain(outgoing), plain(outgoing));
  },
  'outbound.path_mtu': (s) =>
    out(s, plain(packet(out4({ destination: remote4(2) }), udp({ payload: pattern(65507) })))),
  'outbound.device_errors': (s) => {
    s.trouble.read = EIO;
    s.rig.engine.turn(0, 7);
    s.trouble.read = 0;
  },
  'inbound.messages_received': (s) => into(s, incoming),
  'inbound.socket_received': (s) => into(s, incoming),
  'inbound.socket_received_bytes': (s) => into(s, incoming),
  'inbound.truncated': (s) => into(s, new Uint8Array(66000)),
  'inbound.unknown_peer': (s) => into(s, incoming, { name: socketAddress(address('192.0.2.1'), 8285) }),
  'inbound.empty': (s) => into(s, new Uint8Array(0)),
  'inbound.short': (s) => into(s, incoming.subarray(0, 19)),
  'inbound.bad_version': (s) => into(s, changed(incoming, put(0, 0x75))),
  'inbound.bad_header_length': (s) => into(s, changed(incoming, put(0, 0x41))),
  'inbound.bad_total_length': (s) => into(s, changed(incoming, add(3, -1))),
  'inbound.bad_header_checksum': (s) => into(s, changed(incoming, add(11, 1))),
  'inbound.ttl_zero': (s) =>
    into(
      s,
      changed(incoming, (copy) => void rechecksum(copy.fill(0, 8, 9))),
    ),
  'inbound.spoofed_source': (s) => into(s, packet(in4({ source: '10.5.99.9' }), udp())),
  'inbound.ecn_ce_not_ect': (s) => into(s, incoming, { tos: 3 }),
  'inbound.ecn_marked': (s) => into(s, packet(in4({ tos: 2 }), udp()), { tos: 3 }),
  'inbound.ip_options': (s) => into(s, packet(in4({ options: new Uint8Array(4).fill(1) }), udp())),
  'inbound.ip_fragments': (s) => into(s, packet(in4({ mf: true, df: false }), udp())),
  'inbound.above_mtu': (s) => into(s, packet(in4(), udp({ payload: pattern(1500) }))),
  'inbound.merged': (s) => void s.rig.in([message(s.rig.name(0), segments4)]),
  'inbound.super_packets': (s) => void s.rig.in([message(s.rig.name(0), segments4)]),
  'inbound.unmerged': (s) => {
    s.trouble.device = ({ vnet }) => (vnet[1] !== 0 ? EINVAL : 0);
    s.rig.in([message(s.rig.name(0), segments6)]);
    s.trouble.device = () => 0;
  },
  'inbound.device_pushed': (s) => into(s, incoming),
  'inbound.device_pushed_bytes': (s) => into(s, incoming),
  'inbound.device_refused': (s) => {
    s.trouble.device = () => EIO;
    s.rig.in([message(s.rig.name(0), segments4), { name: s.rig.name(0), bytes: incoming }]);
    s.trouble.device = () => 0;
  },
  'outbound.icmp_made': (s) => out(s, noRoute),
  'outbound.icmp_sent': (s) => out(s, noRoute),
  'outbound.icmp_refused': (s) => {
    s.trouble.device = () => EIO;
    out(s, noRoute);
    s.trouble.device = () => 0;
  },
  'outbound.icmp_limited': (s) => {
    s.rig.device.load([noRoute], 150);
    s.rig.drain();
    for (let now = 0; now < 20; now++) s.rig.engine.turn(now * 1000, 0); // so that the next recipe has tokens
    s.rig.engine.turn(0, 0);
  },
  'outbound.icmp_forbidden': (s) => out(s, plain(packet(out4({ destination: '224.0.0.1' }), udp()))),
};

/** `tapped`: everything is captured meanwhile. */
async function makeStage(tapped = false): Promise<Stage> {
  const trouble: Trouble = { read: 0, device: () => 0, segments: 0 };
  const rig: Rig = await makeRig({
    tapped,
    peers: [{}, { mtu: 1000 }, { mtu: 65535 }],
    settings: { sourceCheck: 'strict' },
    wrapDevice: (device) => ({
      pull: (at) => (trouble.read !== 0 ? -trouble.read : device.pull(at)),
      push: (at, length) => device.push(at, length),
    }),
    wrapSocket: (socket) => ({
      pull: () => socket.pull(),
      push(first, count) {
        // The first message of a super-packet: refused as long as it holds several.
        if (trouble.segments !== 0 && first < 1000) {
          socket.failOnce = trouble.segments;
          trouble.segments = 0;
        }
        return socket.push(first, count);
      },
    }),
  });
  rig.device.refuseWith((packet) => trouble.device(packet));
  return { rig, trouble };
}

/** Those of layer 2 are in l2-conservation.test.ts. */
const names = COUNTER_INFOS.map((_, id) => counterName(id)).slice(0, FIRST_OF_LAYER_2);

t.test('names are unique, and there is a way to every counter', async (t) => {
  t.equal(new Set(names).size, names.length);
  t.same(Object.keys(RECIPES).sort(), names.toSorted());
  t.ok(COUNTER_INFOS.every(({ help }) => help.length > 0));
});

t.test('every way leads there, and the books balance after each', async (t) => {
  const stage = await makeStage(true);
  for (const name of names) {
    const before = stage.rig.counter(name);
    RECIPES[name](stage);
    t.ok(stage.rig.counter(name) > before, name);
    stage.rig.audit();
  }
  const sums = conservation(stage.rig.memory);
  t.ok(sums.in > 0 && sums.made > 0 && sums.consumed > 0 && sums.dropped > 0 && sums.sent > 0);
});

t.test('a drop is counted once, in its own counter', async (t) => {
  const dropped = names
    .map((name, id) => ({ info: COUNTER_INFOS[id], name }))
    .filter(({ info }) => info.role === 'dropped');
  for (const { name } of dropped) {
    const stage = await makeStage();
    RECIPES[name](stage);
    const changes = stage.rig.changes();
    const others = dropped.map((other) => other.name).filter((other) => other !== name && changes[other] !== undefined);
    // An ICMP error is refused because there was something to say.
    t.same(others, name === 'outbound.icmp_refused' ? ['outbound.no_route'] : [], name);
  }
});

t.test('in any order, as often as you like', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom(...names), { minLength: 1, maxLength: 60 }), async (list) => {
      const stage = await makeStage(true);
      for (const name of list) RECIPES[name](stage);
      stage.rig.audit();
    }),
    { numRuns: 60 },
  );
});

t.test('the audit itself notices what does not add up', async (t) => {
  for (const name of ['outbound.device_pulled', 'outbound.socket_sent', 'inbound.device_pushed', 'inbound.merged']) {
    const { rig } = await makeStage();
    rig.out(plain(outgoing));
    rig.memory.f64[(rig.layout.counters >> 3) + names.indexOf(name)]++;
    t.throws(() => rig.audit(), Error, name);
  }
  const { rig } = await makeStage();
  rig.memory.u8[rig.memory.layout.guards[7]] ^= 1;
  t.throws(() => rig.audit(), { message: /guard/ });
});

t.test('docs/walk.md names every counter', async (t) => {
  const walk = readFileSync(new URL('../../../docs/walk.md', import.meta.url), 'utf8');
  const words = new Set(walk.match(/[a-z0-9_]+/g));
  for (const { name } of COUNTER_INFOS) t.ok(words.has(name), name);
});
