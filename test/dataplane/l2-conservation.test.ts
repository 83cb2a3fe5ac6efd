/**
 * Every exit of both walks as a switch, taken on purpose in one engine: in + made = sent + consumed + dropped throughout, by
 * the engine's counters and by those of the in-memory devices and sockets. A layer-2 counter that is added without a way to
 * it here fails, and so does one that docs/walk.md does not name.
 */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { COUNTER_INFOS, conservation, OUT_RUNT } from '../../src/dataplane/counters.js';
import { READY_ALL } from '../../src/dataplane/engine.js';
import { EINVAL, EIO, EPERM } from '../../src/io/device.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import { socketAddress } from '../../src/io/socket-address.js';
import {
  advertise,
  arpFrame,
  BROADCAST,
  ethernet,
  frame,
  mac,
  NOBODY,
  O_FLAG,
  OTHER,
  partialFrame,
  solicit,
  superFrame,
  type VxlanLie,
  vxlan,
} from '../lib/frames.js';
import { address, type IpSpec, icmp, pattern, plain, tcp, udp } from '../lib/packets.js';
import {
  counterName,
  makeSwitch,
  our4,
  our6,
  ourMac,
  PORT,
  type SwitchRig,
  setOwnMacs,
  their4,
  their6,
  theirMac,
} from '../lib/rig-l2.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

/** What can go wrong at the ends, and does when a recipe says so. */
interface Trouble {
  read: number;
  device: (packet: DevicePacket) => number;
  /** Refuses messages of more than one datagram with this errno, once. */
  segments: number;
}

interface Stage {
  readonly rig: SwitchRig;
  /** Worker 1, who hears nothing until it has turns. */
  readonly other: SwitchRig;
  /** Worker 2, who floods nothing, and hears nothing either. */
  readonly quiet: SwitchRig;
  readonly trouble: Trouble;
  /** Counts up, so that every recipe can have MACs of its own. */
  fresh: number;
}

const MACS_PER_PEER = 32;
const MACS = 256;
const NEIGHBOURS = 64;
const AGE = 300_000;

const to4 = (peer = 0): IpSpec => ({ source: our4(), destination: their4(peer) });
const from4 = (peer = 0): IpSpec => ({ source: their4(peer), destination: our4() });
const outgoing = (destination: string, length = 100, source = ourMac()): Uint8Array =>
  frame({ source, destination }, to4(), udp({ payload: pattern(length) }));
const incoming = (source = theirMac(), length = 100): Uint8Array =>
  frame({ source, destination: ourMac() }, from4(), udp({ payload: pattern(length) }));

const out = ({ rig }: Stage, ...frames: DevicePacket[]): void => void rig.out(0, ...frames);
const into = ({ rig }: Stage, bytes: Uint8Array, lie: VxlanLie = {}, tos?: number): void =>
  void rig.in([rig.from(0, [vxlan(42, bytes, lie)], tos === undefined ? {} : { tos })]);
const broadcast = (length = 50): DevicePacket => plain(outgoing(BROADCAST, length));
const freshMac = (stage: Stage): string => {
  const n = stage.fresh++;
  return `02:77:00:${((n >> 16) & 255).toString(16)}:${((n >> 8) & 255).toString(16)}:${(n & 255).toString(16)}`;
};
/** Turns without traffic at a time so much later that all that was learned is old. */
const age = ({ rig }: Stage): void => {
  rig.now = (rig.now + AGE + 1000) | 0;
  for (let i = 0; i < 200; i++) rig.engine.turn((rig.now + i * 1000) | 0, 0);
  rig.now = (rig.now + 200_000) | 0;
};
/** The same sender says so again and again, until the table has no room for it. */
const fill = (stage: Stage, peers: number, each: (peer: number) => Uint8Array): void => {
  for (let i = 0; i < 2 * MACS; i++) stage.rig.in([stage.rig.from(i % peers, [vxlan(42, each(i % peers))])]);
};
const ask4 = (target: string): Uint8Array => arpFrame({ senderMac: ourMac(), sender: our4(), target });

/** A way to every counter of layer 2, and to those of layer 3 that it has in common, by direction and name. */
const RECIPES: Record<string, (stage: Stage) => void> = {
  'outbound.device_pulled': (s) => out(s, broadcast()),
  'outbound.device_pulled_bytes': (s) => out(s, broadcast()),
  'outbound.bad_offload': (s) =>
    out(
      s,
      superFrame({ source: ourMac(), destination: BROADCAST }, to4(), tcp({ payload: pattern(3000) }), 1000, {
        size: 0,
      }),
    ),
  'outbound.too_big': (s) => out(s, plain(outgoing(theirMac(1, 200), 1400))),
  'outbound.fragments_made': (s) =>
    out(
      s,
      plain(
        frame(
          { source: ourMac(), destination: theirMac(1, 200) },
          { ...to4(), df: false },
          udp({ payload: pattern(1400) }),
        ),
      ),
    ),
  'outbound.super_packets': (s) =>
    out(
      s,
      superFrame({ source: ourMac(), destination: theirMac(0, 200) }, to4(), tcp({ payload: pattern(3000) }), 1000),
    ),
  'outbound.segments_made': (s) =>
    out(s, superFrame({ source: ourMac(), destination: BROADCAST }, to4(), udp({ payload: pattern(3000) }), 900)),
  'outbound.socket_sent': (s) => out(s, broadcast()),
  'outbound.socket_sent_bytes': (s) => out(s, broadcast()),
  'outbound.messages_sent': (s) => out(s, broadcast()),
  'outbound.send_calls': (s) => out(s, broadcast()),
  'outbound.socket_full': (s) => {
    for (const socket of s.rig.senders[0]) socket.room = 0;
    s.rig.devices[0].load([broadcast()]);
    s.rig.engine.turn(s.rig.now, READY_ALL);
    for (const socket of s.rig.senders[0]) socket.room = Number.POSITIVE_INFINITY;
    s.rig.drain();
  },
  'outbound.messages_replayed': (s) => {
    s.trouble.segments = EIO;
    out(
      s,
      superFrame({ source: ourMac(), destination: theirMac(0, 200) }, to4(), tcp({ payload: pattern(3000) }), 1000),
    );
    s.trouble.segments = 0;
  },
  'outbound.socket_refused': (s) => {
    for (const socket of s.rig.senders[0]) socket.failOnce = EPERM;
    out(s, broadcast());
    for (const socket of s.rig.senders[0]) socket.failOnce = 0;
  },
  'outbound.path_mtu': (s) =>
    out(s, plain(ethernet({ source: ourMac(), destination: theirMac(2, 200) }, OTHER, pattern(65_500)))),
  'outbound.device_errors': (s) => {
    s.trouble.read = EIO;
    s.rig.engine.turn(s.rig.now, READY_ALL);
    s.trouble.read = 0;
  },
  'outbound.icmp_made': (s) => out(s, plain(outgoing(theirMac(1, 200), 1400))),
  'outbound.icmp_sent': (s) => out(s, plain(outgoing(theirMac(1, 200), 1400))),
  'outbound.icmp_refused': (s) => {
    s.trouble.device = () => EIO;
    out(s, plain(outgoing(theirMac(1, 200), 1400)));
    s.trouble.device = () => 0;
  },
  'outbound.icmp_limited': (s) => {
    s.rig.devices[0].load([plain(outgoing(theirMac(1, 200), 1400))], 300);
    s.rig.drain();
    for (let i = 0; i < 20; i++) s.rig.engine.turn((s.rig.now + i * 1000) | 0, 0); // so that the next recipe has tokens
    s.rig.now = (s.rig.now + 20_000) | 0;
  },
  'outbound.icmp_forbidden': (s) =>
    out(s, plain(frame({ source: ourMac(), destination: theirMac(1, 200) }, to4(), icmp(3, pattern(1400))))),
  'inbound.messages_received': (s) => into(s, incoming()),
  'inbound.socket_received': (s) => into(s, incoming()),
  'inbound.socket_received_bytes': (s) => into(s, incoming()),
  'inbound.truncated': (s) => void s.rig.in([{ name: s.rig.name(0), bytes: new Uint8Array(66_000) }]),
  'inbound.unknown_peer': (s) =>
    void s.rig.in([{ name: socketAddress(address('192.0.2.1'), PORT), bytes: vxlan(42, incoming()) }]),
  'inbound.empty': (s) => void s.rig.in([{ name: s.rig.name(0), bytes: new Uint8Array(0) }]),
  'inbound.ecn_ce_not_ect': (s) => into(s, incoming(), {}, 3),
  'inbound.ecn_marked': (s) =>
    into(s, frame({ source: theirMac(), destination: ourMac() }, { ...from4(), tos: 2 }, udp()), {}, 3),
  'inbound.above_mtu': (s) => into(s, incoming(theirMac(), 1500)),
  'inbound.merged': (s) => void s.rig.in([s.rig.from(0, segments(4))]),
  'inbound.super_packets': (s) => void s.rig.in([s.rig.from(0, segments(6))]),
  'inbound.unmerged': (s) => {
    s.trouble.device = ({ vnet }) => (vnet[1] !== 0 ? EINVAL : 0);
    s.rig.in([s.rig.from(0, segments6)]);
    s.trouble.device = () => 0;
  },
  'inbound.device_pushed': (s) => into(s, incoming()),
  'inbound.device_pushed_bytes': (s) => into(s, incoming()),
  'inbound.device_refused': (s) => {
    s.trouble.device = () => EIO;
    s.rig.in([s.rig.from(0, segments(4))]);
    into(s, incoming());
    s.trouble.device = () => 0;
  },
  // Layer 2 alone.
  'outbound.runt': (s) => out(s, plain(new Uint8Array(13))),
  'outbound.bad_source_mac': (s) => out(s, plain(outgoing(BROADCAST, 9, NOBODY))),
  'outbound.bad_arp': (s) => out(s, plain(ask4(their4(3)).subarray(0, 30))),
  'outbound.bad_nd': (s) => out(s, plain(solicit(ourMac(), our6(), their6(3), {}, { ttl: 64 }))),
  'outbound.neighbour_conflict': (s) =>
    out(s, plain(arpFrame({ senderMac: ourMac(), sender: their4(0, 200), target: our4(9) }))),
  'outbound.answered': (s) => out(s, plain(ask4(their4(0, 200)))),
  'outbound.not_flooded': (s) => void s.quiet.out(0, broadcast()),
  'outbound.same_port': (s) => out(s, plain(outgoing(ourMac()))),
  'outbound.unknown_unicast': (s) => out(s, plain(outgoing(freshMac(s)))),
  'outbound.storm': (s) => {
    s.rig.devices[0].load([broadcast()], 3000);
    s.rig.drain();
    s.rig.now = (s.rig.now + 20_000) | 0;
  },
  'outbound.no_peer': (s) => void s.rig.out(1, broadcast()),
  'outbound.flooded': (s) => out(s, broadcast()),
  'outbound.flood_copies': (s) => out(s, broadcast()),
  'outbound.arp_answers_made': (s) => out(s, plain(ask4(their4(0, 200)))),
  'outbound.nd_answers_made': (s) => out(s, plain(solicit(ourMac(), our6(), their6(0, 200)))),
  'outbound.answers_sent': (s) => out(s, plain(ask4(their4(0, 200)))),
  'outbound.answers_refused': (s) => {
    s.trouble.device = () => EIO;
    out(s, plain(ask4(their4(0, 200))), plain(solicit(ourMac(), our6(), their6(0, 200))));
    s.trouble.device = () => 0;
  },
  'inbound.short_vxlan': (s) => void s.rig.in([s.rig.from(0, [new Uint8Array(7)])]),
  'inbound.no_vni_flag': (s) => into(s, incoming(), { flags: 0 }),
  'inbound.unknown_vni': (s) => void s.rig.in([s.rig.from(0, [vxlan(99, incoming())])]),
  'inbound.runt': (s) => into(s, new Uint8Array(13)),
  'inbound.bad_source_mac': (s) => into(s, incoming('01:00:00:00:00:01')),
  'inbound.loop': (s) => into(s, incoming(ourMac(250))),
  'inbound.bad_arp': (s) =>
    into(s, arpFrame({ senderMac: theirMac(), sender: their4(), target: our4(), hardwareLength: 7 })),
  'inbound.bad_nd': (s) => into(s, advertise(theirMac(), their6(), O_FLAG, undefined, {}, { ttl: 1 })),
  'inbound.neighbour_conflict': (s) => into(s, advertise(theirMac(), their6(0, 200), O_FLAG)),
  'inbound.partial_checksums': (s) =>
    into(s, partialFrame({ source: theirMac(), destination: ourMac() }, from4(), tcp({ payload: pattern(9) }))),
  'inbound.unsegmented': (s) =>
    into(s, partialFrame({ source: theirMac(), destination: ourMac() }, from4(), tcp({ payload: pattern(9000) }))),
  'tables.macs_learned': (s) => {
    age(s); // whatever filled the table is gone
    into(s, incoming(freshMac(s)));
  },
  'tables.macs_moved': (s) => {
    age(s);
    const moving = freshMac(s);
    into(s, incoming(moving));
    s.rig.in([s.rig.from(1, [vxlan(42, incoming(moving))])]);
  },
  'tables.macs_aged': (s) => {
    age(s);
    into(s, incoming(freshMac(s)));
    age(s);
  },
  'tables.mac_moves_held': (s) => {
    age(s);
    const moving = freshMac(s);
    for (let i = 0; i < 8; i++) s.rig.in([s.rig.from(i & 1, [vxlan(42, incoming(moving))])]);
  },
  'tables.macs_over_limit': (s) => fill(s, 1, () => incoming(freshMac(s))),
  'tables.macs_table_full': (s) => {
    for (let i = 0; i <= 2 * MACS; i++) out(s, plain(outgoing(theirMac(0, 200), 9, freshMac(s))));
  },
  'tables.neighbours_learned': (s) => {
    age(s);
    const one = freshMac(s);
    into(s, arpFrame({ senderMac: one, sender: `10.9.${(s.fresh >> 8) & 255}.${s.fresh & 255}`, target: our4() }));
  },
  'tables.neighbours_aged': (s) => {
    RECIPES['tables.neighbours_learned'](s);
    age(s);
  },
  'tables.neighbours_table_full': (s) => {
    age(s);
    for (let i = 0; i < 4 * NEIGHBOURS; i++) {
      const sender = `10.10.${i >> 8}.${i & 255}`;
      s.rig.in([s.rig.from(i % 3, [vxlan(42, arpFrame({ senderMac: theirMac(i % 3), sender, target: our4() }))])]);
    }
  },
  'tables.ring_full': (s) => {
    // Worker 1 takes no turn meanwhile.
    for (let round = 0; round < 12; round++) {
      age(s);
      for (let i = 0; i < MACS_PER_PEER * 3; i++) {
        s.rig.in([s.rig.from(i % 3, [vxlan(42, incoming(freshMac(s)))])]);
      }
      for (let i = 0; i < 100; i++) out(s, plain(outgoing(theirMac(0, 200), 9, freshMac(s))));
    }
    for (const one of [s.other, s.quiet]) for (let i = 0; i < 100; i++) one.engine.turn(s.rig.now, 0);
  },
};

const segments = (count: number): Uint8Array[] =>
  Array.from({ length: count }, (_, i) =>
    vxlan(
      42,
      frame(
        { source: theirMac(), destination: ourMac() },
        { ...from4(), id: i },
        tcp({ seq: i * 100, payload: pattern(100) }),
      ),
    ),
  );
const segments6 = Array.from({ length: 4 }, (_, i) =>
  vxlan(
    42,
    frame(
      { source: theirMac(), destination: ourMac() },
      { source: their6(), destination: our6() },
      udp({ payload: pattern(100, i) }),
    ),
  ),
);

/** Layer 3 alone: what looks into IP as a router does. Listed, so that a new counter must be put somewhere. */
const NOT_HERE = new Set([
  'outbound.short',
  'outbound.bad_version',
  'outbound.bad_header_length',
  'outbound.bad_total_length',
  'outbound.bad_header_checksum',
  'outbound.no_route',
  'outbound.ttl_exceeded',
  'outbound.ip_options',
  'outbound.ip_fragments',
  'inbound.short',
  'inbound.bad_version',
  'inbound.bad_header_length',
  'inbound.bad_total_length',
  'inbound.bad_header_checksum',
  'inbound.ttl_zero',
  'inbound.spoofed_source',
  'inbound.ip_options',
  'inbound.ip_fragments',
]);

/** `tapped`: everything is captured meanwhile. */
async function makeStage(tapped = false): Promise<Stage> {
  const trouble: Trouble = { read: 0, device: () => 0, segments: 0 };
  const rig = await makeSwitch({
    tapped,
    workers: 3,
    peers: [{ networks: [0] }, { networks: [0], mtu: 1000 }, { networks: [0], mtu: 65_535 }],
    memory: { macs: MACS, neighbours: NEIGHBOURS, statics: 64 },
    l2: { macsPerPeer: MACS_PER_PEER, stormLimit: 1000, floodUnknown: false, age: AGE },
    wrapDevice: (device) => ({
      pull: (at) => (trouble.read !== 0 ? -trouble.read : device.pull(at)),
      push: (at, length) => device.push(at, length),
    }),
    wrapSocket: (socket) => ({
      pull: () => socket.pull(),
      push(first, count) {
        if (trouble.segments !== 0 && first < 1000) {
          socket.failOnce = trouble.segments;
          trouble.segments = 0;
        }
        return socket.push(first, count);
      },
    }),
  });
  const other = rig.other(1);
  const quiet = rig.other(2, { floods: false });
  for (const one of [rig, other, quiet])
    for (const device of one.devices) device.refuseWith((packet) => trouble.device(packet));
  [0, 1, 2].forEach((peer) => {
    rig.tables.setMac(0, mac(theirMac(peer, 200)), rig.refs[0][peer]);
    rig.tables.setNeighbour(0, address(their4(peer, 200)), mac(theirMac(peer, 200)), undefined, rig.refs[0][peer]);
    rig.tables.setNeighbour(0, address(their6(peer, 200)), mac(theirMac(peer, 200)), false, rig.refs[0][peer]);
  });
  await rig.tables.commit();
  setOwnMacs(rig, 0, ourMac(250));
  return { rig, other, quiet, trouble, fresh: 0 };
}

const names = COUNTER_INFOS.map((_, id) => counterName(id));

t.test('there is a way to every counter, but those of layer 3 alone', async (t) => {
  t.equal(new Set(names).size, names.length);
  t.same([...Object.keys(RECIPES), ...NOT_HERE].sort(), names.toSorted());
  const own = names.slice(OUT_RUNT);
  t.same(
    own.filter((name) => NOT_HERE.has(name)),
    [],
    'none of layer 2 is left out',
  );
});

t.test('every way leads there, and the books balance after each', async (t) => {
  const stage = await makeStage(true);
  for (const name of Object.keys(RECIPES)) {
    const before = stage.rig.counter(name);
    RECIPES[name](stage);
    t.ok(stage.rig.counter(name) > before, name);
    try {
      stage.rig.audit();
    } catch (error) {
      t.fail(`${name}: ${error}`);
    }
  }
  const sums = conservation(stage.rig.memory);
  t.ok(sums.in > 0 && sums.made > 0 && sums.consumed > 0 && sums.dropped > 0 && sums.sent > 0);
});

t.test('a drop is counted once, in its own counter', async (t) => {
  const dropped = COUNTER_INFOS.map((info, id) => ({ info, name: counterName(id) })).filter(
    ({ info, name }) => info.role === 'dropped' && name in RECIPES,
  );
  for (const { name } of dropped) {
    const stage = await makeStage();
    stage.rig.changes();
    RECIPES[name](stage);
    const changes = stage.rig.changes();
    const others = dropped.map((other) => other.name).filter((other) => other !== name && changes[other] !== undefined);
    // An ICMP error is refused because there was something to say.
    t.same(others, name === 'outbound.icmp_refused' ? ['outbound.too_big'] : [], name);
  }
});

t.test('in any order, as often as you like', async () => {
  // Filling tables takes thousands of frames: seldom.
  const slow = new Set(['tables.ring_full', 'tables.macs_table_full', 'tables.macs_over_limit', 'outbound.storm']);
  const quick = Object.keys(RECIPES).filter((name) => !slow.has(name));
  await fc.assert(
    fc.asyncProperty(fc.array(fc.constantFrom(...quick), { minLength: 1, maxLength: 60 }), async (list) => {
      const stage = await makeStage(true);
      for (const name of list) RECIPES[name](stage);
      stage.rig.audit();
    }),
    { numRuns: 60 },
  );
});

t.test('the audit itself notices what does not add up', async (t) => {
  for (const name of [
    'outbound.flood_copies',
    'outbound.answered',
    'outbound.answers_sent',
    'inbound.loop',
    'outbound.storm',
  ]) {
    const { rig } = await makeStage();
    rig.out(0, broadcast());
    rig.memory.f64[(rig.layout.counters >> 3) + names.indexOf(name)]++;
    t.throws(() => rig.audit(), Error, name);
  }
});

t.test('docs/walk.md names every counter', async (t) => {
  const walk = readFileSync(new URL('../../../docs/walk.md', import.meta.url), 'utf8');
  const words = new Set(walk.match(/[a-z0-9_]+/g));
  for (const { name } of COUNTER_INFOS) t.ok(words.has(name), name);
});
