/** The ARP and ND proxy in the outbound walk: what is answered, what is flooded, what is dropped. */
import t, { type Test } from 'tap';
import { LOCAL } from '../../src/dataplane/macs.js';
import { EIO } from '../../src/io/device.js';
import type { DevicePacket } from '../../src/io/memory-device.js';
import { decode } from '../lib/decode.js';
import {
  advertise,
  advertisement,
  arpFrame,
  BROADCAST,
  decodeFrame,
  type EthernetSpec,
  frame,
  IPV6,
  linkLayer,
  mac,
  O_FLAG,
  padded,
  R_FLAG,
  routerAdvertisement,
  S_FLAG,
  SERVICE_VLAN,
  solicit,
  solicitation,
  solicitedNode,
  TAGGED,
  type Tag,
  VLAN,
  vxlan,
} from '../lib/frames.js';
import {
  address,
  changed,
  concat,
  flip,
  hex,
  type IpSpec,
  icmp,
  packet,
  pattern,
  plain,
  raw,
  udp,
} from '../lib/packets.js';
import {
  hear,
  makeSwitch,
  our4,
  our6,
  ourMac,
  type Pushed,
  receivers,
  their4,
  their6,
  theirMac,
} from '../lib/rig-l2.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const v4 = (change: Partial<IpSpec> = {}): IpSpec => ({ source: our4(), destination: their4(), ...change });
const ether = (change: Partial<EthernetSpec> = {}): EthernetSpec => ({
  source: ourMac(),
  destination: theirMac(),
  ...change,
});

const ask = (
  target: string,
  change: Partial<Parameters<typeof arpFrame>[0]> = {},
  to: Partial<EthernetSpec> = {},
): DevicePacket => plain(arpFrame({ senderMac: ourMac(), sender: our4(), target, ...change }, to));

/** The one ARP answer that was written: `target` is at `owner`. */
function checkArp(
  t: Pick<Test, 'equal' | 'same'>,
  pushed: readonly Pushed[],
  target: string,
  owner: string,
  asker: { mac: string; ip: string; tags?: readonly Tag[] },
): void {
  t.equal(pushed.length, 1, 'one answer');
  if (pushed.length !== 1) return;
  t.equal(hex(pushed[0].vnet), '00'.repeat(10));
  const want = arpFrame(
    { operation: 2, senderMac: owner, sender: target, targetMac: asker.mac, target: asker.ip },
    { tags: asker.tags ?? [] },
  );
  t.equal(hex(pushed[0].bytes.subarray(0, want.length)), hex(want));
  t.equal(hex(pushed[0].bytes.subarray(want.length)), '00'.repeat(pushed[0].bytes.length - want.length));
}

t.test('ARP: a static neighbour is answered for at once', async (t) => {
  for (const [what, tags] of TAGGED) {
    const rig = await makeSwitch({ peers: [{}, {}] });
    rig.tables.setNeighbour(0, address(their4()), mac(theirMac()), undefined, rig.refs[0][0]);
    await rig.tables.commit();
    t.equal(rig.out(0, ask(their4(), {}, { tags })).length, 0, `${what}: not flooded`);
    checkArp(t, rig.take().pushed, their4(), theirMac(), { mac: ourMac(), ip: our4(), tags });
    t.match(rig.changes(), {
      'outbound.device_pulled': 1,
      'outbound.answered': 1,
      'outbound.arp_answers_made': 1,
      'outbound.answers_sent': 1,
    });
    t.equal(rig.out(0, ask(their4(1), {}, { tags })).length, 2, 'an unknown target is flooded');
    t.equal(rig.take().pushed.length, 0);
    t.equal(rig.out(1, ask(their4(), {}, { tags })).length, 2, 'and so is one known in another network only');
    t.equal(rig.take().pushed.length, 0);
    // A padded request is a request.
    t.equal(rig.out(0, plain(padded(ask(their4(), {}, { tags }).bytes))).length, 0);
    checkArp(t, rig.take().pushed, their4(), theirMac(), { mac: ourMac(), ip: our4(), tags });
    rig.audit();
  }
});

t.test('ARP: what ARP itself taught is answered for, while it is fresh and its owner is behind a peer', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  const teach = (peer: number, mac: string, ip: string, operation = 1): void => {
    const bytes = arpFrame({
      operation,
      senderMac: mac,
      sender: ip,
      target: operation === 1 ? our4(99) : our4(),
      targetMac: ourMac(),
    });
    t.equal(rig.in([rig.from(peer, [vxlan(42, bytes)])]).length, 1, 'ARP goes to the device');
    t.equal(rig.take().sent.length, 0);
  };
  teach(0, theirMac(), their4());
  t.equal(rig.out(0, ask(their4())).length, 0);
  checkArp(t, rig.take().pushed, their4(), theirMac(), { mac: ourMac(), ip: our4() });
  teach(1, theirMac(1), their4(1), 2);
  t.equal(rig.out(0, ask(their4(1))).length, 0, 'a reply teaches too');
  checkArp(t, rig.take().pushed, their4(1), theirMac(1), { mac: ourMac(), ip: our4() });
  // A unicast request is a probe of its owner: it goes there.
  t.same(receivers(rig, rig.out(0, ask(their4(), {}, { destination: theirMac() }))), [0]);
  t.equal(rig.take().pushed.length, 0);
  // Never to the owner itself.
  t.equal(rig.out(0, ask(their4(), { senderMac: theirMac(), sender: our4(50) })).length, 2);
  t.equal(rig.take().pushed.length, 0, 'the asker has that MAC');
  hear(rig, 0);
  // A reply that gives the address to another MAC is believed.
  teach(1, theirMac(1, 9), their4(), 2);
  rig.out(0, ask(their4()));
  checkArp(t, rig.take().pushed, their4(), theirMac(1, 9), { mac: ourMac(), ip: our4() });
  // Old: flooded.
  rig.now = 301_000;
  t.equal(rig.out(0, ask(their4())).length, 2);
  t.equal(rig.take().pushed.length, 0);
  rig.audit();
});

t.test('ARP: no answer for what is on our own side, nor for an owner whose MAC nobody knows any more', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  // A second host of ours asks; that teaches its address.
  rig.out(0, ask(our4(77), { senderMac: ourMac(2), sender: our4(2) }));
  rig.take();
  t.equal(rig.out(0, ask(our4(2))).length, 2);
  t.equal(rig.take().pushed.length, 0);
  // Its neighbour entry is refreshed by ARP, its MAC not by anything.
  const taught = arpFrame({ senderMac: theirMac(), sender: their4(), target: our4(99) });
  rig.in([rig.from(0, [vxlan(42, taught)])]);
  rig.tables.removePeer(rig.refs[0][0]);
  await rig.tables.commit();
  t.equal(rig.out(0, ask(their4())).length, 1);
  t.equal(rig.take().pushed.length, 0);
  rig.audit();
});

t.test('ARP: probes and gratuitous ARP are always flooded', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setNeighbour(0, address(their4()), mac(theirMac()), undefined, rig.refs[0][0]);
  await rig.tables.commit();
  rig.in([rig.from(1, [vxlan(42, arpFrame({ senderMac: theirMac(1), sender: their4(1), target: our4(99) }))])]);
  rig.take();
  // A probe for a static address: flooded, and answered, since another has it.
  t.equal(rig.out(0, ask(their4(), { sender: '0.0.0.0' })).length, 2);
  checkArp(t, rig.take().pushed, their4(), theirMac(), { mac: ourMac(), ip: '0.0.0.0' });
  t.equal(rig.changes()['outbound.answered'], undefined, 'the request itself went on');
  // For one that was only learned: flooded, not answered.
  t.equal(rig.out(0, ask(their4(1), { sender: '0.0.0.0' })).length, 2);
  t.equal(rig.take().pushed.length, 0);
  // The owner of the static entry probes for its own address, having moved here: not answered.
  t.equal(rig.out(0, ask(their4(), { senderMac: theirMac(), sender: '0.0.0.0' })).length, 2);
  t.equal(rig.take().pushed.length, 0);
  // Gratuitous ARP, as request and as reply: flooded, and it teaches.
  for (const operation of [1, 2]) {
    const sent = rig.out(
      0,
      plain(
        arpFrame(
          { operation, senderMac: ourMac(5), sender: our4(5), target: our4(5), targetMac: BROADCAST },
          { destination: BROADCAST },
        ),
      ),
    );
    t.equal(sent.length, 2, `gratuitous, operation ${operation}`);
    t.equal(rig.take().pushed.length, 0);
  }
  // Even for an address that is known behind a peer.
  t.equal(rig.out(0, plain(arpFrame({ senderMac: ourMac(6), sender: their4(1), target: their4(1) }))).length, 2);
  t.equal(rig.take().pushed.length, 0);
  // Now it is ours: nobody is answered for it.
  t.equal(rig.out(0, ask(their4(1))).length, 2);
  t.equal(rig.take().pushed.length, 0);
  rig.audit();
});

t.test('ARP: wrong lengths, and senders that lie about a static neighbour', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setNeighbour(0, address(their4()), mac(theirMac()), undefined, rig.refs[0][0]);
  await rig.tables.commit();
  const good = ask(their4(1)).bytes;
  const cases: readonly (readonly [string, string, DevicePacket])[] = [
    ['hardware length 5', 'bad_arp', ask(their4(), { hardwareLength: 5 })],
    ['hardware length 0', 'bad_arp', ask(their4(), { hardwareLength: 0 })],
    ['protocol length 16', 'bad_arp', ask(their4(), { protocolLength: 16 })],
    ['cut', 'bad_arp', plain(good.subarray(0, 14 + 27))],
    ['cut in the fixed part', 'bad_arp', plain(good.subarray(0, 14 + 7))],
    ['a sender that lies', 'neighbour_conflict', ask(our4(3), { sender: their4() })],
    ['gratuitously', 'neighbour_conflict', ask(their4(), { sender: their4() })],
    ['in a reply', 'neighbour_conflict', ask(our4(3), { operation: 2, sender: their4(), targetMac: theirMac(1) })],
  ];
  for (const [what, counter, given] of cases) {
    t.equal(rig.out(0, given).length, 0, what);
    t.equal(rig.take().pushed.length, 0, what);
    t.match(rig.changes(), { 'outbound.device_pulled': 1, [`outbound.${counter}`]: 1 }, what);
    rig.audit();
  }
  // What is not ARP for IPv4 over Ethernet is none of our business.
  t.equal(rig.out(0, ask(their4(), { protocol: 0x86dd, protocolLength: 16 })).length, 2);
  t.equal(rig.out(0, ask(their4(), { operation: 8 })).length, 2, 'nor are other operations');
  // Who speaks for another's MAC is not believed.
  rig.out(
    0,
    plain(arpFrame({ senderMac: theirMac(1, 8), sender: their4(1, 8), target: our4(9) }, { source: ourMac() })),
  );
  t.equal(rig.learned().neighbours === 0 || rig.out(0, ask(their4(1, 8))).length === 2, true);
  rig.audit();
});

t.test('ARP: an answer that the device refuses is counted', async (t) => {
  const rig = await makeSwitch();
  rig.tables.setNeighbour(0, address(their4()), mac(theirMac()), undefined, rig.refs[0][0]);
  await rig.tables.commit();
  rig.devices[0].refuseWith(() => EIO);
  rig.out(0, ask(their4()));
  t.match(rig.changes(), { 'outbound.answered': 1, 'outbound.arp_answers_made': 1, 'outbound.answers_refused': 1 });
  rig.audit();
});

t.test('ARP: a static neighbour is a static MAC of its peer, once control says so too', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setNeighbour(0, address(their4()), mac(theirMac()), undefined, rig.refs[0][1]);
  rig.tables.setMac(0, mac(theirMac()), rig.refs[0][1]);
  await rig.tables.commit();
  rig.out(0, ask(their4()));
  checkArp(t, rig.take().pushed, their4(), theirMac(), { mac: ourMac(), ip: our4() });
  t.same(receivers(rig, rig.out(0, plain(frame(ether(), v4(), udp())))), [1]);
  rig.tables.removeNeighbour(0, address(their4()));
  await rig.tables.commit();
  t.equal(rig.out(0, ask(their4())).length, 2);
  t.equal(rig.take().pushed.length, 0);
  rig.audit();
});

/** The one neighbour advertisement that was written, byte for byte but for its hop limit's equals. */
function checkNd(
  t: Pick<Test, 'equal' | 'same'>,
  pushed: readonly Pushed[],
  target: string,
  owner: string,
  flags: number,
  to: { mac: string; ip: string; tags?: readonly Tag[] },
): void {
  t.equal(pushed.length, 1, 'one answer');
  if (pushed.length !== 1) return;
  t.equal(hex(pushed[0].vnet), '00'.repeat(10));
  const got = decodeFrame(pushed[0].bytes);
  t.same([got.destination, got.source, got.type], [to.mac, owner, IPV6]);
  t.same(got.tags, to.tags ?? []);
  const ip = decode(got.body); // checks the checksum
  const want = decode(
    packet({ source: target, destination: to.ip, ttl: 255 }, advertisement(target, flags, linkLayer(2, owner))),
  );
  t.same([ip.source, ip.destination, ip.ttl, ip.protocol], [want.source, want.destination, 255, 58]);
  t.equal(hex(ip.l4), hex(want.l4));
}

t.test('ND: a static neighbour is answered for, with O = 0 and its R flag', async (t) => {
  for (const [what, tags] of TAGGED) {
    for (const [router, flags] of [
      [false, S_FLAG],
      [true, S_FLAG | R_FLAG],
    ] as const) {
      const rig = await makeSwitch({ peers: [{}, {}] });
      rig.tables.setNeighbour(0, address(their6()), mac(theirMac()), router, rig.refs[0][0]);
      await rig.tables.commit();
      const asked = plain(solicit(ourMac(), our6(), their6(), { tags }));
      t.equal(rig.out(0, asked).length, 0, `${what}: not flooded`);
      checkNd(t, rig.take().pushed, their6(), theirMac(), flags, { mac: ourMac(), ip: our6(), tags });
      t.match(rig.changes(), { 'outbound.answered': 1, 'outbound.nd_answers_made': 1, 'outbound.answers_sent': 1 });
      t.equal(rig.out(0, plain(solicit(ourMac(), our6(), their6(1), { tags }))).length, 2, 'unknown: flooded');
      t.equal(rig.take().pushed.length, 0);
      t.equal(rig.out(1, asked).length, 2, 'another network');
      t.equal(rig.take().pushed.length, 0);
      rig.audit();
    }
  }
});

t.test('ND: what ND itself taught: an NA tells the R flag, an NS does not', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  const hearNd = (peer: number, bytes: Uint8Array): void => {
    t.equal(rig.in([rig.from(peer, [vxlan(42, bytes)])]).length, 1, 'goes to the device');
    t.equal(rig.take().sent.length, 0);
  };
  const asked = (target: string): DevicePacket => plain(solicit(ourMac(), our6(), target));
  const silent = (target: string, what: string): void => {
    t.equal(rig.out(0, asked(target)).length, 2, what);
    t.equal(rig.take().pushed.length, 0, what);
  };
  hearNd(0, solicit(theirMac(), their6(), our6(77)));
  silent(their6(), 'an NS does not say whether it is a router');
  hearNd(0, advertise(theirMac(), their6(), O_FLAG));
  t.equal(rig.out(0, asked(their6())).length, 0);
  checkNd(t, rig.take().pushed, their6(), theirMac(), S_FLAG, { mac: ourMac(), ip: our6() });
  hearNd(0, solicit(theirMac(), their6(), our6(78)));
  t.equal(rig.out(0, asked(their6())).length, 0, 'a later NS takes nothing back');
  checkNd(t, rig.take().pushed, their6(), theirMac(), S_FLAG, { mac: ourMac(), ip: our6() });
  hearNd(1, advertise(theirMac(1), their6(1), R_FLAG | O_FLAG | S_FLAG, { ip: our6(), mac: ourMac() }));
  rig.out(0, asked(their6(1)));
  checkNd(t, rig.take().pushed, their6(1), theirMac(1), S_FLAG | R_FLAG, { mac: ourMac(), ip: our6() });
  // An answer to a unicast probe may leave its MAC out (RFC 4861 7.2.4): what it says of the router holds for who is known.
  const bare = (owner: string, flags: number): Uint8Array =>
    frame(
      { source: owner, destination: ourMac() },
      { source: their6(), destination: our6(), ttl: 255 },
      advertisement(their6(), flags),
    );
  hearNd(0, bare(theirMac(), R_FLAG | S_FLAG));
  rig.out(0, asked(their6()));
  checkNd(t, rig.take().pushed, their6(), theirMac(), S_FLAG | R_FLAG, { mac: ourMac(), ip: our6() });
  hearNd(0, bare(theirMac(0, 44), S_FLAG));
  rig.out(0, asked(their6()));
  checkNd(t, rig.take().pushed, their6(), theirMac(), S_FLAG | R_FLAG, { mac: ourMac(), ip: our6() });
  // An RA teaches its sender as a router.
  hearNd(
    1,
    frame(
      { source: theirMac(1, 4), destination: '33:33:00:00:00:01' },
      { source: 'fe80::4', destination: 'ff02::1', ttl: 255 },
      routerAdvertisement(linkLayer(1, theirMac(1, 4))),
    ),
  );
  rig.out(0, asked('fe80::4'));
  checkNd(t, rig.take().pushed, 'fe80::4', theirMac(1, 4), S_FLAG | R_FLAG, { mac: ourMac(), ip: our6() });
  // A wrong checksum is carried, and neither believed nor answered.
  const broken = (bytes: Uint8Array): Uint8Array => changed(bytes, flip(14 + 40 + 2, 0x55));
  hearNd(1, broken(advertise(theirMac(1, 5), their6(1, 5), O_FLAG)));
  silent(their6(1, 5), 'a wrong checksum teaches nothing');
  t.equal(rig.out(0, plain(broken(asked(their6()).bytes))).length, 2, 'nor is it answered');
  t.equal(rig.take().pushed.length, 0);
  // Old: flooded.
  rig.now = 301_000;
  silent(their6(), 'aged');
  rig.audit();
});

t.test('ND: DAD and unsolicited advertisements are always flooded; unicast probes go to their owner', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setNeighbour(0, address(their6()), mac(theirMac()), false, rig.refs[0][0]);
  await rig.tables.commit();
  rig.in([rig.from(1, [vxlan(42, advertise(theirMac(1), their6(1), O_FLAG))])]);
  rig.take();
  t.equal(rig.out(0, plain(solicit(ourMac(), '::', their6()))).length, 2, 'DAD for a static address');
  checkNd(t, rig.take().pushed, their6(), theirMac(), 0, { mac: '33:33:00:00:00:01', ip: 'ff02::1' });
  t.equal(rig.changes()['outbound.answered'], undefined);
  t.equal(rig.out(0, plain(solicit(ourMac(), '::', their6(1)))).length, 2, 'DAD for a learned one');
  t.equal(rig.take().pushed.length, 0);
  t.equal(rig.out(0, plain(solicit(theirMac(), '::', their6()))).length, 2, 'DAD of the owner, moved here');
  t.equal(rig.take().pushed.length, 0);
  t.equal(rig.out(0, plain(advertise(ourMac(), our6(), O_FLAG))).length, 2, 'unsolicited NA');
  t.equal(rig.take().pushed.length, 0);
  hear(rig, 1);
  const unicast = solicit(ourMac(), our6(), their6(1), { destination: theirMac(1) }, { destination: their6(1) });
  t.same(receivers(rig, rig.out(0, plain(unicast))), [1], 'unicast NS');
  t.equal(rig.take().pushed.length, 0);
  t.equal(rig.out(0, plain(advertise(ourMac(6), their6(1), O_FLAG))).length, 2, 'the address is ours now');
  t.equal(rig.out(0, plain(solicit(ourMac(), our6(), their6(1)))).length, 2);
  t.equal(rig.take().pushed.length, 0, 'not answered for our own side');
  rig.audit();
});

t.test('ND: what RFC 4861 forbids, and senders that lie about a static neighbour', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setNeighbour(0, address(their6()), mac(theirMac()), false, rig.refs[0][0]);
  await rig.tables.commit();
  const group = solicitedNode(their6(1));
  const to = { source: ourMac(), destination: group.mac };
  const ip = { source: our6(), destination: group.ip, ttl: 255 };
  const short = (length: number): Uint8Array =>
    frame(to, ip, raw(58, concat([135, 0, 0, 0], new Uint8Array(length - 4))));
  const cases: readonly (readonly [string, string, Uint8Array])[] = [
    ['hop limit 254', 'bad_nd', solicit(ourMac(), our6(), their6(), {}, { ttl: 254 })],
    ['hop limit 64, an NA', 'bad_nd', advertise(ourMac(), our6(), 0, undefined, {}, { ttl: 64 })],
    ['option of length 0', 'bad_nd', frame(to, ip, solicitation(their6(), Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0)))],
    [
      'option beyond the packet',
      'bad_nd',
      frame(to, ip, solicitation(their6(), Uint8Array.of(1, 2, 0, 0, 0, 0, 0, 0))),
    ],
    ['23 bytes of NS', 'bad_nd', short(23)],
    ['8 bytes of NS', 'bad_nd', short(8)],
    ['an NA for the static address', 'neighbour_conflict', advertise(ourMac(), their6(), O_FLAG)],
    ['an NS from it', 'neighbour_conflict', solicit(ourMac(), their6(), our6(5))],
  ];
  for (const [what, counter, bytes] of cases) {
    t.equal(rig.out(0, plain(bytes)).length, 0, what);
    t.equal(rig.take().pushed.length, 0, what);
    t.match(rig.changes(), { 'outbound.device_pulled': 1, [`outbound.${counter}`]: 1 }, what);
    rig.audit();
  }
  // ICMPv6 that is no neighbour discovery goes its way.
  t.equal(rig.out(0, plain(frame(to, { ...ip, ttl: 1 }, icmp(128, pattern(8), true)))).length, 2);
  t.equal(rig.out(0, plain(frame(to, { ...ip, ttl: 1 }, icmp(143, pattern(20), true)))).length, 2, 'MLD');
  rig.audit();
});

t.test('answers go to the device that asked', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setNeighbour(1, address(their4()), mac(theirMac()), undefined, rig.refs[1][0]);
  rig.tables.setNeighbour(1, address(their6()), mac(theirMac()), false, rig.refs[1][0]);
  await rig.tables.commit();
  t.equal(rig.out(1, ask(their4()), plain(solicit(ourMac(), our6(), their6()))).length, 0);
  const { pushed } = rig.take();
  t.same(
    pushed.map(({ network }) => network),
    [1, 1],
  );
  checkArp(t, pushed.slice(0, 1), their4(), theirMac(), { mac: ourMac(), ip: our4() });
  checkNd(t, pushed.slice(1), their6(), theirMac(), S_FLAG, { mac: ourMac(), ip: our6() });
  rig.audit();
});

t.test(
  'what was learned in one VLAN is answered in that one only: an address may be another host in the next',
  async (t) => {
    const kinds: readonly (readonly [
      string,
      (owner: string, tags: readonly Tag[]) => Uint8Array,
      (tags: readonly Tag[]) => DevicePacket,
    ])[] = [
      [
        'ARP',
        (owner, tags) => arpFrame({ senderMac: owner, sender: their4(), target: our4(99) }, { tags }),
        (tags) => ask(their4(), {}, { tags }),
      ],
      [
        'ND',
        (owner, tags) => advertise(owner, their6(), O_FLAG, undefined, { tags }),
        (tags) => plain(solicit(ourMac(), our6(), their6(), { tags })),
      ],
    ];
    for (const [kind, says, asks] of kinds) {
      const rig = await makeSwitch({ peers: [{}, {}] });
      const vlans: readonly (readonly Tag[])[] = [
        [],
        [[VLAN, 100]],
        [[VLAN, 101]],
        [[SERVICE_VLAN, 102]],
        [
          [SERVICE_VLAN, 9],
          [VLAN, 100],
        ],
      ];
      for (const [i, tags] of vlans.entries()) {
        // Who is unknown in this VLAN, though known in all those before, is asked for.
        t.equal(rig.out(0, asks(tags)).length, 2, `${kind}, VLAN ${i}: flooded`);
        t.equal(rig.take().pushed.length, 0, `${kind}, VLAN ${i}: not answered for another`);
        rig.in([rig.from(i & 1, [vxlan(42, says(theirMac(i & 1, 10 + i), tags))])]);
        rig.take();
      }
      for (const [i, tags] of vlans.entries()) {
        const sent = rig.out(0, asks(tags));
        const { pushed } = rig.take();
        t.equal(sent.length / 2 + pushed.length, 1, `${kind}, VLAN ${i}: flooded or answered`);
        for (const { bytes } of pushed)
          t.equal(decodeFrame(bytes).source, theirMac(i & 1, 10 + i), `${kind}, VLAN ${i}: for its owner`);
      }
      // Priority is no part of it.
      if (rig.out(0, asks([[VLAN, 100]])).length === 0) {
        rig.take();
        rig.out(0, asks([[VLAN, 0xe000 | 100]]));
        for (const { bytes } of rig.take().pushed) t.equal(decodeFrame(bytes).source, theirMac(1, 11));
      }
      rig.audit();
    }
  },
);

t.test('what the registry says of our own side: never answered for, nobody behind a peer may claim it', async (t) => {
  const rig = await makeSwitch({ peers: [{}, {}] });
  rig.tables.setMac(0, mac(ourMac(5)), LOCAL);
  rig.tables.setNeighbour(0, address(our4(5)), mac(ourMac(5)), undefined, LOCAL);
  rig.tables.setNeighbour(0, address(our6(5)), mac(ourMac(5)), false, LOCAL);
  await rig.tables.commit();
  for (const asked of [ask(our4(5)), plain(solicit(ourMac(), our6(), our6(5)))]) {
    t.equal(rig.out(0, asked).length, 2, 'flooded');
    t.equal(rig.take().pushed.length, 0, 'it answers for itself');
  }
  const claims = [
    arpFrame({ senderMac: theirMac(), sender: our4(5), target: our4() }),
    arpFrame({ senderMac: theirMac(), sender: our4(5), target: our4(5) }),
    advertise(theirMac(), our6(5), O_FLAG),
  ];
  t.equal(rig.in(claims.map((bytes) => rig.from(0, [vxlan(42, bytes)]))).length, 0);
  t.equal(rig.counter('inbound.neighbour_conflict'), 3);
  // A peer that sends with its MAC is not followed: static entries are never overridden.
  hear(rig, 1, 0, ourMac(5));
  const to = plain(frame(ether({ destination: ourMac(5) }), v4(), udp()));
  t.equal(rig.out(0, to).length, 0);
  t.match(rig.changes(), { 'outbound.same_port': 1 });
  // It says so itself.
  t.equal(rig.out(0, plain(arpFrame({ senderMac: ourMac(5), sender: our4(5), target: our4(5) }))).length, 2);
  t.equal(rig.out(0, plain(advertise(ourMac(5), our6(5), O_FLAG))).length, 2);
  rig.audit();
});
