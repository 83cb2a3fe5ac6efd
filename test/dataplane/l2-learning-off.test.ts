/**
 * A switch that learns nothing and one that floods nothing, as flannel's VXLAN device is (`nolearning`, no default entry):
 * only what the registry says counts, whatever arrives. The model in here knows static MACs and neighbours and no more.
 */
import fc from 'fast-check';
import t from 'tap';
import { COUNTER_INFOS } from '../../src/dataplane/counters.js';
import { LOCAL } from '../../src/dataplane/macs.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';
import {
  advertise,
  arpFrame,
  BROADCAST,
  type EthernetSpec,
  ethernet,
  frame,
  mac,
  O_FLAG,
  OTHER,
  R_FLAG,
  solicit,
  superFrame,
  VLAN,
  vxlan,
} from '../lib/frames.js';
import { address, type IpSpec, pattern, plain, tcp, udp } from '../lib/packets.js';
import {
  hear,
  makeSwitch,
  our4,
  our6,
  ourMac,
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

const PEERS = [{}, {}, { address: 'fd99::4' }];
const GROUP = '01:00:5e:00:00:fb';
const UNKNOWN = '02:aa:00:00:00:01';
const v4: IpSpec = { source: our4(), destination: their4() };
const data = (ether: Partial<EthernetSpec> = {}, length = 40): Uint8Array =>
  frame({ source: ourMac(), destination: theirMac(), ...ether }, v4, udp({ payload: pattern(length) }));
const TABLES = COUNTER_INFOS.filter(({ direction }) => direction === 'tables').map(({ name }) => `tables.${name}`);

/** Throws unless the switch is as it was born. */
function assertIgnorant(rig: SwitchRig): void {
  rig.audit(); // nothing in the tables of a switch that learns nothing
  for (const name of TABLES) if (rig.counter(name) !== 0) throw new Error(`${name}: ${rig.counter(name)}`);
}

const from = (rig: SwitchRig, peer: number, network: number, bytes: Uint8Array): IncomingMessage =>
  rig.from(peer, [vxlan(VNIS[network], bytes)]);
const underlayOf = (peer: number): number => (PEERS[peer].address === undefined ? 0 : 1);

// --- Learning ---

t.test('what a peer sends teaches nothing: frames back to it go to all, or nowhere', async (t) => {
  for (const floodUnknown of [true, false]) {
    const rig = await makeSwitch({ peers: PEERS, l2: { learning: false, floodUnknown } });
    for (const peer of [0, 1, 2]) hear(rig, peer);
    t.same(receivers(rig, rig.out(0, plain(data()))), floodUnknown ? [0, 1, 2] : []);
    t.match(rig.changes(), floodUnknown ? { 'outbound.flooded': 1 } : { 'outbound.unknown_unicast': 1 });
    assertIgnorant(rig);
  }
});

t.test('nor does our own side', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { learning: false, floodUnknown: false } });
  rig.out(0, plain(data({ source: ourMac(2), destination: BROADCAST })));
  rig.changes();
  t.same(rig.out(0, plain(data({ destination: ourMac(2) }))), []);
  t.same(rig.changes(), { 'outbound.device_pulled': 1, 'outbound.unknown_unicast': 1 });
  assertIgnorant(rig);
});

t.test('static MACs decide', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { learning: false } });
  const to = (n: number): string => theirMac(0, n);
  rig.tables.setMac(0, mac(to(1)), rig.refs[0][1]);
  rig.tables.setMac(0, mac(to(2)), rig.refs[0][2]);
  rig.tables.setMac(0, mac(to(3)), LOCAL);
  await rig.tables.commit();
  for (const n of [1, 2, 3]) hear(rig, 0, 0, to(n)); // from elsewhere than the registry says
  t.same(receivers(rig, rig.out(0, plain(data({ destination: to(1) })))), [1]);
  t.same(receivers(rig, rig.out(0, plain(data({ destination: to(2) })))), [2]);
  rig.changes();
  t.same(rig.out(0, plain(data({ destination: to(3) }))), []);
  t.same(rig.changes(), { 'outbound.device_pulled': 1, 'outbound.same_port': 1 });
  t.same(receivers(rig, rig.out(1, plain(data({ destination: to(1) })))), [0, 1, 2], 'of the first network only');
  rig.tables.removeMac(0, mac(to(1)));
  await rig.tables.commit();
  t.same(receivers(rig, rig.out(0, plain(data({ destination: to(1) })))), [0, 1, 2]);
  assertIgnorant(rig);
});

t.test('answers are those of the registry', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { learning: false } });
  const asks = [
    (of: number) => arpFrame({ senderMac: ourMac(), sender: our4(), target: their4(of) }),
    (of: number) => solicit(ourMac(), our6(), their6(of)),
  ];
  rig.in([
    from(rig, 0, 0, arpFrame({ senderMac: theirMac(), sender: their4(), target: our4() })),
    from(rig, 0, 0, advertise(theirMac(), their6(), O_FLAG | R_FLAG)),
  ]);
  hear(rig);
  for (const ask of asks) {
    rig.changes();
    t.same(receivers(rig, rig.out(0, plain(ask(0)))), [0, 1, 2], 'heard of, but not known');
    t.match(rig.changes(), { 'outbound.flooded': 1, 'outbound.answered': undefined });
  }
  // Without a peer's reference it is the static MAC that says where it is.
  for (const ref of [rig.refs[0][1], 0]) {
    rig.tables.setMac(0, mac(theirMac(1)), rig.refs[0][1]);
    rig.tables.setNeighbour(0, address(their4(1)), mac(theirMac(1)), undefined, ref);
    rig.tables.setNeighbour(0, address(their6(1)), mac(theirMac(1)), false, ref);
    await rig.tables.commit();
    for (const ask of asks) {
      rig.changes();
      t.same(rig.out(0, plain(ask(1))), []);
      t.match(rig.changes(), { 'outbound.answered': 1, 'outbound.answers_sent': 1 });
    }
  }
  assertIgnorant(rig);
});

t.test('several workers tell each other nothing', async () => {
  const rig = await makeSwitch({ peers: PEERS, workers: 2, l2: { learning: false } });
  const other = rig.other(1);
  for (const peer of [0, 1, 2]) hear(rig, peer);
  rig.out(0, plain(data()), plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: our4(9) })));
  other.engine.turn(1, 0);
  assertIgnorant(rig);
  assertIgnorant(other);
});

// --- Floods ---

t.test('floods off: each kind goes nowhere, in its own counter, with peers or without', async (t) => {
  for (const networks of [[0, 1], []]) {
    const peers = PEERS.map((peer) => ({ ...peer, networks }));
    for (const learning of [true, false]) {
      const l2 = { learning, floods: false, floodUnknown: true, stormLimit: 1 };
      const rig = await makeSwitch({ peers, l2 });
      const cases: readonly (readonly [string, DevicePacket])[] = [
        ['not_flooded', plain(data({ destination: BROADCAST }))],
        ['not_flooded', plain(data({ destination: GROUP }))],
        ['not_flooded', plain(data({ destination: GROUP, tags: [[VLAN, 5]] }))],
        ['not_flooded', plain(ethernet({ source: ourMac(), destination: BROADCAST }, OTHER, pattern(20)))],
        ['not_flooded', plain(arpFrame({ senderMac: ourMac(), sender: our4(), target: their4() }))],
        ['not_flooded', plain(solicit(ourMac(), our6(), their6()))],
        [
          'not_flooded',
          superFrame({ source: ourMac(), destination: GROUP }, v4, udp({ payload: pattern(3000) }), 1000),
        ],
        ['unknown_unicast', plain(data({ destination: UNKNOWN }))],
        ['unknown_unicast', plain(data({ destination: UNKNOWN }, 1600))],
        [
          'unknown_unicast',
          superFrame({ source: ourMac(), destination: UNKNOWN }, v4, tcp({ payload: pattern(3000) }), 1000),
        ],
      ];
      for (const [name, given] of [...cases, ...cases]) {
        rig.changes();
        t.same(rig.out(0, given), []);
        const { 'tables.macs_learned': _, 'tables.neighbours_learned': __, ...changes } = rig.changes();
        t.same(changes, { 'outbound.device_pulled': 1, [`outbound.${name}`]: 1 });
      }
      t.same(rig.take().pushed, [], 'and nobody is told');
      rig.audit();
    }
  }
});

t.test('floods off: who is known is reached, and what peers flood arrives', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { floods: false } });
  hear(rig, 1);
  t.same(receivers(rig, rig.out(0, plain(data({ destination: theirMac(1) })))), [1], 'learned');
  rig.tables.setMac(0, mac(theirMac(2)), rig.refs[0][2]);
  await rig.tables.commit();
  t.same(receivers(rig, rig.out(0, plain(data({ destination: theirMac(2) })))), [2], 'static');
  for (const destination of [BROADCAST, GROUP, UNKNOWN]) {
    t.equal(rig.in([from(rig, 0, 0, data({ source: theirMac(), destination }))]).length, 1, destination);
  }
  rig.audit();
});

t.test('floods off: who asks whether an address is free hears of a static neighbour, and no further', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { learning: false, floods: false } });
  rig.tables.setNeighbour(0, address(their4()), mac(theirMac()), undefined, rig.refs[0][0]);
  await rig.tables.commit();
  t.same(rig.out(0, plain(arpFrame({ senderMac: ourMac(), sender: '0.0.0.0', target: their4() }))), []);
  t.same(rig.changes(), {
    'outbound.device_pulled': 1,
    'outbound.arp_answers_made': 1,
    'outbound.answers_sent': 1,
    'outbound.not_flooded': 1,
  });
  rig.audit();
});

// --- Whatever arrives ---

/** MACs and addresses of few hosts, so that they meet; those behind a peer may be claimed by any. */
const anyMac = fc.oneof(
  fc.tuple(fc.nat(2), fc.integer({ min: 1, max: 3 })).map(([peer, n]) => theirMac(peer, n)),
  fc.integer({ min: 1, max: 3 }).map(ourMac),
);
const anyTarget = fc.oneof(anyMac, fc.constantFrom(BROADCAST, GROUP, UNKNOWN));
const any4 = fc.oneof(
  fc.nat(2).map((peer) => their4(peer)),
  fc.constantFrom(our4(), our4(2), '0.0.0.0'),
);
const any6 = fc.oneof(
  fc.nat(2).map((peer) => their6(peer)),
  fc.constantFrom(our6(), our6(2)),
);
const anyTags = fc.constantFrom<readonly (readonly [number, number])[]>([], [[VLAN, 5]]);

/** Frames that a switch that learns would learn from, or be asked by. */
const teaching = fc.oneof(
  fc
    .tuple(anyMac, anyTarget, any4, any4, anyTags)
    .map(([source, destination, a, b, tags]) =>
      frame({ source, destination, tags }, { source: a, destination: b }, udp({ payload: pattern(20) })),
    ),
  fc
    .tuple(fc.constantFrom(1, 2), anyMac, any4, any4, anyTarget)
    .map(([operation, senderMac, sender, target, destination]) =>
      arpFrame({ operation, senderMac, sender, target }, { destination }),
    ),
  fc.tuple(anyMac, any6, any6).map(([asker, source, target]) => solicit(asker, source, target)),
  fc
    .tuple(anyMac, any6, fc.constantFrom(0, O_FLAG, O_FLAG | R_FLAG))
    .map(([owner, target, flags]) => advertise(owner, target, flags)),
  fc.tuple(anyMac, anyTarget).map(([source, destination]) => ethernet({ source, destination }, OTHER, pattern(9))),
  fc.uint8Array({ maxLength: 90 }),
);

type Step =
  | { readonly kind: 'out'; readonly network: number; readonly bytes: Uint8Array }
  | { readonly kind: 'in'; readonly network: number; readonly peer: number; readonly bytes: Uint8Array }
  | { readonly kind: 'mac'; readonly network: number; readonly mac: string; readonly peer: number }
  | { readonly kind: 'neighbour'; readonly network: number; readonly peer: number; readonly gone: boolean };

const anyNetwork = fc.nat(1);
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  { arbitrary: fc.record({ kind: fc.constant('out' as const), network: anyNetwork, bytes: teaching }), weight: 8 },
  {
    arbitrary: fc.record({ kind: fc.constant('in' as const), network: anyNetwork, peer: fc.nat(2), bytes: teaching }),
    weight: 8,
  },
  // Peer 3: it is on our own side; 4: it is taken out.
  {
    arbitrary: fc.record({ kind: fc.constant('mac' as const), network: anyNetwork, mac: anyMac, peer: fc.nat(4) }),
    weight: 2,
  },
  {
    arbitrary: fc.record({
      kind: fc.constant('neighbour' as const),
      network: anyNetwork,
      peer: fc.nat(2),
      gone: fc.boolean(),
    }),
    weight: 1,
  },
);

/** ARP and ND may be answered or refused on account of a static neighbour; everything else is settled by its MAC alone. */
const isPlainData = (bytes: Uint8Array): boolean => bytes.length > 14 && bytes[12] === 0x08 && bytes[13] === 0x00;

t.test('nothing is ever learned, and each frame goes where the registry says', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(anyStep, { maxLength: 80 }), fc.boolean(), fc.boolean(), async (steps, floods, all) => {
      const rig = await makeSwitch({ peers: PEERS, l2: { learning: false, floods, floodUnknown: all } });
      setOwnMacs(rig, 0, ourMac(250));
      const statics = new Map<string, number>();
      for (const step of steps) {
        if (step.kind === 'mac') {
          const { network, peer } = step;
          const key = `${network} ${step.mac}`;
          if (peer === 4) rig.tables.removeMac(network, mac(step.mac));
          else rig.tables.setMac(network, mac(step.mac), peer === 3 ? LOCAL : rig.refs[network][peer]);
          if (peer === 4) statics.delete(key);
          else statics.set(key, peer);
          await rig.tables.commit();
        } else if (step.kind === 'neighbour') {
          const { network, peer, gone } = step;
          const ref = rig.refs[network][peer];
          for (const text of [their4(peer), their6(peer)]) {
            if (gone) rig.tables.removeNeighbour(network, address(text));
            else rig.tables.setNeighbour(network, address(text), mac(theirMac(peer)), undefined, ref);
          }
          await rig.tables.commit();
        } else if (step.kind === 'in') {
          rig.in([from(rig, step.peer, step.network, step.bytes)], underlayOf(step.peer));
          if (rig.take().sent.length > 0) throw new Error('a frame from a peer went to peers');
        } else {
          rig.changes();
          const sent = receivers(rig, rig.out(step.network, plain(step.bytes)));
          const changes = rig.changes();
          if (!floods && sent.length > 1) throw new Error(`flooded to ${sent}`);
          if (isPlainData(step.bytes)) check(step, sent, changes);
          rig.take();
        }
        assertIgnorant(rig);
      }

      function check(step: Step & { kind: 'out' }, sent: number[], changes: Record<string, number>): void {
        const group = (step.bytes[0] & 1) === 1;
        const to = Buffer.from(step.bytes.subarray(0, 6))
          .toString('hex')
          .replace(/..(?=.)/g, '$&:');
        const known = group ? undefined : statics.get(`${step.network} ${to}`);
        const lost = ['outbound.not_flooded', 'outbound.unknown_unicast', 'outbound.same_port'];
        const dropped = lost.filter((name) => changes[name] !== undefined).join();
        const flooded = known === undefined && floods && (group || all);
        const want =
          known === 3
            ? 'outbound.same_port'
            : known === undefined && !flooded
              ? group
                ? 'outbound.not_flooded'
                : 'outbound.unknown_unicast'
              : '';
        const peers = flooded ? [0, 1, 2] : known !== undefined && known < 3 ? [known] : [];
        if (sent.join() !== peers.join() || dropped !== want) {
          throw new Error(`to ${to}: went to [${sent}], '${dropped}'; should to [${peers}], '${want}'`);
        }
      }
    }),
    { numRuns: 400 },
  );
});
