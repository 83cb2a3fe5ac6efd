/**
 * One VNI over both underlays as two networks, as flannel's dual stack has it: what arrives is told apart by where it arrived,
 * and nothing of the one is ever seen, learned, merged or sent in the other.
 */
import fc from 'fast-check';
import t from 'tap';
import type { SwitchedNetwork } from '../../src/dataplane/settings.js';
import type { IncomingMessage } from '../../src/io/memory-socket.js';
import { socketAddress } from '../../src/io/socket-address.js';
import { BROADCAST, frame, framesOnTheWire, vxlan } from '../lib/frames.js';
import { address, pattern, plain, tcp, udp } from '../lib/packets.js';
import { carried, hear, MTU, makeSwitch, our4, ourMac, PORT, their4, theirMac } from '../lib/rig-l2.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const VNI = 42;
const OVER4: SwitchedNetwork = { vni: VNI, mtu: MTU, family: 4 };
const OVER6: SwitchedNetwork = { vni: VNI, mtu: MTU, family: 6 };
const DUAL = [OVER4, OVER6];
/** By underlay: the peer there is in the network of that family, as control has it. */
const PEERS = [{ networks: [0] }, { address: 'fd99::3', networks: [1] }];
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const incoming = (payload: Uint8Array, source = theirMac()): Uint8Array =>
  frame({ source, destination: ourMac() }, { source: their4(), destination: our4() }, udp({ payload }));
const outgoing = (destination: string): Uint8Array =>
  frame({ source: ourMac(), destination }, { source: our4(), destination: their4() }, udp({ payload: pattern(40) }));
/** Bytes before the payload of a frame of `flow`. */
const HEADERS = 14 + 20 + 20;
/** One and the same flow, whoever sends it: segments from number `first` on, which can be merged. */
const flow = (vni: number, first: number, count: number): Uint8Array[] =>
  Array.from({ length: count }, (_, i) =>
    vxlan(
      vni,
      frame(
        { source: theirMac(), destination: ourMac() },
        { source: their4(), destination: our4() },
        tcp({ seq: (first + i) * 100, payload: pattern(100, first + i) }),
      ),
    ),
  );

t.test('the same VNI goes to the network of the underlay that it came over', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { networks: DUAL } });
  for (const underlay of [0, 1]) {
    const pushed = rig.in([rig.from(underlay, [vxlan(VNI, incoming(pattern(30, underlay)))])], underlay);
    t.same(
      pushed.map(({ network, bytes }) => [network, hex(bytes)]),
      [[underlay, hex(incoming(pattern(30, underlay)))]],
    );
  }
  rig.audit();
});

t.test('a VNI over the other underlay is unknown, whoever sends it', async (t) => {
  const networks: readonly SwitchedNetwork[] = [OVER4, { vni: 43, mtu: MTU, family: 6 }];
  for (const sourceCheck of ['peer', 'off'] as const) {
    const rig = await makeSwitch({ peers: PEERS, l2: { networks }, settings: { sourceCheck } });
    for (const [underlay, vni] of [
      [0, 43],
      [1, 42],
    ] as const) {
      for (const name of [rig.name(underlay), socketAddress(address(['192.0.2.1', 'fd98::1'][underlay]), PORT)]) {
        rig.changes();
        t.same(rig.in([{ name, bytes: vxlan(vni, incoming(pattern(30))) }], underlay), []);
        t.same(rig.changes(), { 'inbound.socket_received': 1, 'inbound.unknown_vni': 1 });
      }
    }
    rig.audit();
  }
});

t.test('a network without a family is in both', async (t) => {
  const networks: readonly SwitchedNetwork[] = [{ vni: VNI, mtu: MTU, family: undefined }, OVER6];
  const rig = await makeSwitch({ peers: [{}, { address: 'fd99::3' }], l2: { networks } });
  for (const underlay of [0, 1]) {
    const pushed = rig.in([rig.from(underlay, [vxlan(VNI, incoming(pattern(30)))])], underlay);
    t.same(
      pushed.map(({ network }) => network),
      [0],
    );
  }
  rig.audit();
});

t.test('what is learned in the one is not known in the other', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { networks: DUAL, floodUnknown: false } });
  hear(rig, 0, 0);
  t.same(
    rig.out(0, plain(outgoing(theirMac()))).map((one) => [rig.peerOf(one), one.underlay]),
    [[0, 0]],
  );
  rig.changes();
  t.same(rig.out(1, plain(outgoing(theirMac()))), []);
  t.match(rig.changes(), { 'outbound.unknown_unicast': 1 });
  hear(rig, 1, 0); // the peer over IPv6, and so the second network
  t.same(
    rig.out(1, plain(outgoing(theirMac(1)))).map((one) => [rig.peerOf(one), one.underlay, carried(one).vni]),
    [[1, 1, VNI]],
  );
  t.same(rig.out(0, plain(outgoing(theirMac(1)))), []);
  rig.audit();
});

t.test('a flood stays in its network', async (t) => {
  const rig = await makeSwitch({ peers: PEERS, l2: { networks: DUAL } });
  for (const network of [0, 1]) {
    const sent = rig.out(network, plain(outgoing(BROADCAST)));
    t.same(
      sent.map((one) => [rig.peerOf(one), one.underlay, carried(one).vni]),
      [[network, network, VNI]],
    );
  }
  rig.audit();
});

t.test('sending goes by the peer: one over the other underlay is reached there', async (t) => {
  const rig = await makeSwitch({ peers: [{}, { address: 'fd99::3' }], l2: { networks: DUAL } });
  const sent = rig.out(0, plain(outgoing(BROADCAST)));
  t.same(sent.map((one) => one.underlay).sort(), [0, 1]);
  rig.audit();
});

t.test('one flow in both at once: each device gets its own segments, in their order', async (t) => {
  let merged = 0;
  const run = fc.record({
    underlay: fc.constantFrom(0, 1),
    vni: fc.constantFrom(VNI, VNI, VNI, 43),
    length: fc.integer({ min: 1, max: 8 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(fc.array(run, { maxLength: 8 }), { maxLength: 6 }), async (turns) => {
      const rig = await makeSwitch({ peers: PEERS, l2: { networks: DUAL } });
      const want: [string[], string[]] = [[], []];
      // One after the other in sequence, whichever network: what is open in the one would go on in the other.
      let next = 0;
      let unknown = 0;
      for (const runs of turns) {
        const messages: [IncomingMessage[], IncomingMessage[]] = [[], []];
        for (const { underlay, vni, length } of runs.toSorted((a, b) => a.underlay - b.underlay)) {
          const datagrams = flow(vni, next, length);
          messages[underlay].push(rig.from(underlay, datagrams));
          if (vni === VNI) want[underlay].push(...datagrams.map((bytes) => hex(bytes.subarray(8 + HEADERS))));
          else unknown += length;
          if (vni === VNI) next += length;
        }
        for (const underlay of [0, 1]) rig.sockets[underlay].load(messages[underlay]);
        rig.drain();
      }
      const { pushed } = rig.take();
      for (const network of [0, 1]) {
        const got = pushed.filter((one) => one.network === network).flatMap(framesOnTheWire);
        if (got.map((bytes) => hex(bytes.subarray(HEADERS))).join() !== want[network].join()) {
          throw new Error(`network ${network}: ${got.length} segments, and not its own`);
        }
      }
      if (rig.counter('inbound.unknown_vni') !== unknown) throw new Error('unknown VNIs were miscounted');
      merged += rig.counter('inbound.merged');
      rig.audit();
    }),
    { numRuns: 200 },
  );
  t.ok(merged > 100, `${merged} segments were merged`);
});
