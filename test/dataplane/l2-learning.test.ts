/** What a switch learns and forgets, end to end with a clock of the test: ageing, moves, peers that go, two workers. */
import t from 'tap';
import { arpFrame, BROADCAST, type EthernetSpec, frame, vxlan } from '../lib/frames.js';
import { address, type IpSpec, plain, udp } from '../lib/packets.js';
import { hear, makeSwitch, our4, ourMac, PORT, receivers, their4, theirMac } from '../lib/rig-l2.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const v4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: our4(), destination: their4(), ...change });
const ether = (change: Partial<EthernetSpec> = {}): EthernetSpec => ({
  source: ourMac(),
  destination: theirMac(),
  ...change,
});

t.test('ageing: 299 s is young, 301 s is old, traffic at 299 s makes young again', async (t) => {
  for (const start of [0, 0x7fffffff - 150_000, -200_000]) {
    const at = (seconds: number): number => (start + seconds * 1000) | 0;
    const given = plain(frame(ether(), v4(), udp()));
    for (const [seconds, refresh, want] of [
      [299, -1, [0]],
      [301, -1, [0, 1, 2]],
      [301, 299, [0]],
      [598, 299, [0]],
      [601, 299, [0, 1, 2]],
    ] as const) {
      const rig = await makeSwitch({ peers: [{}, {}, {}] });
      rig.now = at(0);
      hear(rig);
      if (refresh >= 0) {
        rig.now = at(refresh);
        hear(rig);
      }
      rig.now = at(seconds);
      t.same(
        receivers(rig, rig.out(0, given)),
        want,
        `at ${seconds} s, heard at ${refresh < 0 ? 0 : refresh} s, from ${start}`,
      );
      rig.audit();
    }
    // Sending to it is no sign of life.
    const rig = await makeSwitch({ peers: [{}, {}, {}] });
    rig.now = at(0);
    hear(rig);
    for (let seconds = 1; seconds < 300; seconds += 13) {
      rig.now = at(seconds);
      t.same(receivers(rig, rig.out(0, given)), [0]);
    }
    rig.now = at(301);
    t.same(receivers(rig, rig.out(0, given)), [0, 1, 2]);
    rig.audit();
  }
});

t.test('ageing: our own side, and the sweep that forgets between batches', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  const local = plain(frame(ether({ source: ourMac(2), destination: BROADCAST }), v4(), udp()));
  const to = plain(frame(ether({ destination: ourMac(2) }), v4(), udp()));
  rig.out(0, local);
  rig.now = 299_000;
  t.equal(rig.out(0, to).length, 0, 'same port');
  rig.now = 301_000;
  t.equal(rig.out(0, to).length, 2, 'unknown: flooded');
  const idle = await makeSwitch({ memory: { macs: 1024 } });
  for (let n = 1; n <= 200; n++)
    idle.out(0, plain(frame(ether({ source: ourMac(n), destination: BROADCAST }), v4(), udp())));
  hear(idle);
  t.equal(idle.learned().macs, 201);
  // Turns that find nothing to do forget all the same.
  for (let i = 0; i < 2000; i++) idle.engine.turn((301_000 + i * 500) | 0, 0);
  t.equal(idle.learned().macs, 0);
  t.equal(idle.counter('tables.macs_aged'), 201);
  idle.audit();
});

t.test('a MAC that moves is followed at once; more than five times in ten seconds it is held', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  const moving = theirMac(0, 66);
  const to = plain(frame(ether({ destination: moving }), v4(), udp()));
  hear(rig, 0, 0, moving);
  t.same(receivers(rig, rig.out(0, to)), [0]);
  for (let move = 1; move <= 5; move++) {
    rig.now += 100;
    hear(rig, move & 1, 0, moving);
    t.same(receivers(rig, rig.out(0, to)), [move & 1], `move ${move}`);
  }
  t.equal(rig.counter('tables.macs_moved'), 5);
  rig.now += 100;
  hear(rig, 0, 0, moving);
  t.same(receivers(rig, rig.out(0, to)), [1], 'the sixth is not followed');
  t.equal(rig.counter('tables.mac_moves_held'), 1);
  rig.now += 9_000;
  hear(rig, 0, 0, moving);
  t.same(receivers(rig, rig.out(0, to)), [1], 'for ten seconds');
  rig.now += 1_500;
  hear(rig, 0, 0, moving);
  t.same(receivers(rig, rig.out(0, to)), [0], 'then it is');
  // To our side and back.
  rig.now += 60_000;
  rig.out(0, plain(frame({ source: moving, destination: BROADCAST }, v4(), udp())));
  t.equal(rig.out(0, to).length, 0, 'now on our side');
  hear(rig, 1, 0, moving);
  t.same(receivers(rig, rig.out(0, to)), [1]);
  rig.audit();
});

t.test('a peer that goes takes its MACs along', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}, {}] });
  hear(rig, 0);
  const to = plain(frame(ether(), v4(), udp()));
  t.same(receivers(rig, rig.out(0, to)), [0]);
  rig.tables.removePeer(rig.refs[0][0]);
  await rig.tables.commit();
  t.same(receivers(rig, rig.out(0, to)), [1, 2]);
  rig.tables.addPeer({ address: address('192.168.77.99'), port: PORT, mtu: 1464, ecn: true, network: 0 });
  await rig.tables.commit();
  t.same(receivers(rig, rig.out(0, to)), [-1, 1, 2], 'its successor in the slot is flooded to like all');
  rig.audit();
});

t.test('two workers tell each other what they learn', async (t) => {
  const one = await makeSwitch({ peers: [{}, {}], workers: 2 });
  const two = one.other(1);
  const both = (turns = 4): void => {
    for (let i = 0; i < turns; i++) {
      one.engine.turn(one.now, 0);
      two.engine.turn(one.now, 0);
    }
  };
  hear(one, 0);
  one.in([one.from(1, [vxlan(42, arpFrame({ senderMac: theirMac(1), sender: their4(1), target: our4(99) }))])]);
  both();
  t.same(receivers(two, two.out(0, plain(frame(ether(), v4(), udp())))), [0], 'a MAC');
  const asked = arpFrame({ senderMac: ourMac(), sender: our4(), target: their4(1) });
  t.equal(two.out(0, plain(asked)).length, 0, 'a neighbour');
  t.equal(two.take().pushed.length, 1, 'answered for');
  // It moves: both know.
  hear(two, 1, 0, theirMac());
  both();
  t.same(receivers(one, one.out(0, plain(frame(ether(), v4(), udp())))), [1]);
  // Traffic that only one worker sees keeps it alive for both.
  for (let seconds = 10; seconds <= 900; seconds += 10) {
    one.now = seconds * 1000;
    two.now = one.now;
    hear(one, 1, 0, theirMac());
    both(1);
  }
  t.same(receivers(two, two.out(0, plain(frame(ether(), v4(), udp())))), [1], 'refreshed');
  one.now += 301_000;
  two.now = one.now;
  t.equal(two.out(0, plain(frame(ether(), v4(), udp()))).length, 2, 'and old for both');
  t.equal(one.out(0, plain(frame(ether(), v4(), udp()))).length, 2);
  one.audit();
});
