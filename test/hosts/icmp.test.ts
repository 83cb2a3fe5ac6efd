/**
 * What the clients of real hosts are told: traceroute, no route, and path MTU discovery with all that depends on it.
 */
import t from 'tap';
import { Lab } from '../../race/hosts.js';
import { decode } from '../lib/decode.js';
import { icmp, packet, pattern, udp } from '../lib/packets.js';
import { MiB, sendSegments } from './lib/agents.js';
import { Capture, OVERLAY } from './lib/capture.js';
import { assertConserved, changes, impossible, writePeers } from './lib/weft.js';
import { expand6, intoDevice, makeWireRig, ping, WIRE_TOOLS } from './lib/wire.js';

const why = impossible(...WIRE_TOOLS);
t.setTimeout(0);

const FRAGMENTATION_NEEDED = 4;

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('ht-icmp');
  t.teardown(() => lab.close());
  const { a, b, hosts, left, right, during } = await makeWireRig(lab);

  await t.test('ICMP errors reach the client', (t) =>
    during(async (wefts) => {
      // traceroute: the host's kernel, this weft, the other host's kernel (its nearest address is its device's), the client.
      const hops4 = ['10.5.1.1', '10.5.1.0', '10.5.2.0'];
      const hops6 = ['fd00:5:0:1::1', 'fd00:5:0:1::', 'fd00:5:0:2::'];
      for (const [to, hops] of [
        [b.client4, hops4],
        [b.client6, hops6],
      ] as const) {
        for (const [i, hop] of hops.entries()) {
          const line = await ping(a.client, to, '-t', String(i + 1));
          t.match(
            line,
            new RegExp(`^From ${hop} .*(Time to live exceeded|Time exceeded: Hop limit)`),
            `hop ${i + 1} to ${to}`,
          );
        }
        t.match(await ping(a.client, to, '-t', String(hops.length + 1)), `from ${to}`, `then ${to} itself`);
      }
      t.match(await ping(a.client, '10.5.99.1'), /^From 10\.5\.1\.0 .*Destination Net Unreachable/, 'no route, IPv4');
      t.match(await ping(a.client, 'fd00:5:0:99::1'), /^From fd00:5:0:1:: .*No route/, 'no route, IPv6');
      t.match(await ping(a.ns, '10.5.99.1'), /^From 10\.5\.1\.0 .*Net Unreachable/, "no route, the host's own program");

      // Hosts that check sources strictly believe them too.
      a.ns.sysctl({ 'net/ipv4/conf/all/rp_filter': 1, 'net/ipv4/conf/flannel0/rp_filter': 1 });
      t.match(await ping(a.client, b.client4, '-t', '2'), /^From 10\.5\.1\.0 /, 'under rp_filter=1');
      t.match(await ping(a.ns, '10.5.99.1'), /^From 10\.5\.1\.0 /, "under rp_filter=1, the host's own program");
      a.ns.sysctl({ 'net/ipv4/conf/all/rp_filter': 0, 'net/ipv4/conf/flannel0/rp_filter': 0 });

      // The errors themselves: sources, quotes.
      const capture = await Capture.start(a.client, 'eth0', 'icmp[icmptype] != icmp-echo or icmp6');
      await ping(a.client, b.client4, '-t', '2', '-s', '1000');
      await ping(a.client, b.client6, '-t', '2', '-s', '1300');
      await left.datagrams('10.5.99.7', [pattern(900)], undefined, 4321);
      await left.datagrams('fd00:5:0:99::7', [pattern(900)], undefined, 4321);
      const errors = (await capture.stop())
        .map((bytes) => ({ bytes, got: decode(bytes) }))
        .filter(({ got }) => ['10.5.1.0', expand6('fd00:5:0:1::')].includes(got.source));
      const expected = [
        { type: 11, code: 0, to: b.client4, ttl: 1 },
        { type: 3, code: 0, to: b.client6, ttl: 1 },
        { type: 3, code: 0, to: '10.5.99.7', ttl: 63 },
        { type: 1, code: 0, to: 'fd00:5:0:99::7', ttl: 63 },
      ];
      t.equal(errors.length, expected.length, 'one error each');
      for (const [i, want] of expected.entries()) {
        if (!errors[i]) continue;
        const { got, bytes } = errors[i];
        const quoted = decode(got.payload, 'quoted');
        t.same(
          { type: got.icmp?.type, code: got.icmp?.code, word: got.icmp?.word, to: quoted.destination, ttl: quoted.ttl },
          { ...want, to: want.to.includes(':') ? expand6(want.to) : want.to, word: 0 },
          `error about a packet to ${want.to}: type, code, and the packet as weft saw it`,
        );
        t.equal(quoted.source, got.destination, 'it goes to the sender of the quoted packet');
        if (got.family === 4) t.ok(bytes.length <= 576, `${bytes.length} bytes, at most 576 (RFC 1812 4.3.2.3)`);
        else t.ok(bytes.length <= 1280, `${bytes.length} bytes, at most 1280 (RFC 4443 2.4 c)`);
        t.ok(got.payload.length >= Math.min(quoted.l4At + 64, 500), 'quotes as much as there is room for');
      }

      // Never about errors, multicast, later fragments, or strange sources.
      const before = await wefts[0].idle();
      const to = '10.5.99.9';
      const header = { source: a.client4, destination: to };
      const forbidden = [
        packet(header, icmp(3, packet({ source: to, destination: a.client4 }, udp({ payload: pattern(8) })))),
        packet(header, icmp(11, packet({ source: to, destination: a.client4 }, udp({ payload: pattern(8) })))),
        packet({ ...header, offset: 100, df: false }, udp({ payload: pattern(64) })),
        packet({ ...header, destination: '239.1.2.3' }, udp()),
        packet({ ...header, destination: '255.255.255.255' }, udp()),
        packet({ ...header, source: '0.0.0.0' }, udp()),
        packet({ ...header, source: '127.0.0.1' }, udp()),
        packet({ ...header, source: '224.0.0.1' }, udp()),
        packet({ ...header, source: '255.255.255.255' }, udp()),
        packet({ source: a.client6, destination: 'fd00:5:0:99::9' }, icmp(1, pattern(48), true)),
        packet({ source: a.client6, destination: 'ff05::9' }, udp()),
        packet({ source: 'ff05::9', destination: 'fd00:5:0:99::9' }, udp()),
        packet({ source: '::', destination: 'fd00:5:0:99::9' }, udp()),
      ];
      await intoDevice(a.ns, forbidden);
      t.same(
        changes(before, await wefts[0].idle(), 'outbound'),
        {
          'outbound.device_pulled': forbidden.length,
          'outbound.no_route': forbidden.length,
          'outbound.icmp_forbidden': forbidden.length,
          'outbound.ip_fragments': 1,
        },
        'no error about errors, later fragments, multicast, broadcast or sources that are not one host',
      );

      // A flood of hopeless packets is not answered by a flood.
      const quiet = await wefts[0].idle();
      await left.datagrams(
        to,
        Array.from({ length: 3000 }, () => pattern(10)),
        undefined,
        4321,
      );
      const moved = changes(quiet, await wefts[0].idle(), 'outbound');
      t.equal(moved['outbound.no_route'], 3000, 'a flood: all counted');
      t.ok(moved['outbound.icmp_limited'] > 1500, `a flood: ${moved['outbound.icmp_limited']} not answered`);
      t.ok(moved['outbound.icmp_made'] >= 100, `a flood: ${moved['outbound.icmp_made']} answered`);
      t.equal(moved['outbound.icmp_made'], moved['outbound.icmp_sent'], 'all that were made got out');
      await assertConserved(t, wefts, 'ICMP', { 'outbound.no_route': true, 'outbound.ttl_exceeded': true });
    }),
  );

  await t.test('a peer behind a smaller path', async (t) => {
    const peers = writePeers(lab, hosts, { name: 'small.json', extra: { mtu: 1400 } });
    const small = 1372;
    await during(
      async (wefts) => {
        const capture = await Capture.start(
          a.client,
          'eth0',
          'icmp[icmptype] == icmp-unreach or icmp6[icmp6type] == 2',
        );
        const wire = await Capture.start(b.ns, 'eth0', OVERLAY);
        t.match(
          await ping(a.client, b.client4, '-M', 'do', '-s', '1400'),
          /^From 10\.5\.1\.0 .*[Ff]rag needed and DF set \(mtu = 1372\)/,
          'DF: fragmentation needed, with the MTU',
        );
        t.match(
          await ping(a.client, b.client6, '-M', 'do', '-s', '1400'),
          /^From fd00:5:0:1:: .*Packet too big: mtu=1372/,
          'IPv6: packet too big, with the MTU',
        );
        t.match(
          await ping(a.client, b.client4, '-M', 'do', '-s', String(small - 28)),
          'bytes from',
          'what just fits goes',
        );
        t.match(
          await ping(a.client, b.client6, '-M', 'do', '-s', String(small - 48)),
          'bytes from',
          'and so over IPv6',
        );

        for (const { client } of hosts) {
          client.ip('route flush cache');
          client.runSync('ip', '-6', 'route', 'flush', 'cache');
        }
        t.match(
          await ping(a.client, b.client4, '-M', 'dont', '-s', '1440'),
          '1448 bytes from',
          'without DF it arrives whole',
        );
        const sizes = [1344, 1345, 1400, 1472, 2000, 4000, 8192];
        t.equal((await left.udp(b.client4, sizes)).echoed, sizes.length, 'UDP in fragments arrives whole');
        t.equal((await left.udp(b.client6, sizes)).echoed, sizes.length, 'and so over IPv6');
        await right.expect();
        const options = { size: 1420, each: 30, calls: 20, last: 900, mayFragment: true };
        const sent = await sendSegments(a.client, b.client4, options);
        const { received, wrong, missing } = await right.countedUpTo(sent);
        t.same(
          { received, wrong, missing },
          { received: sent, wrong: 0, missing: 0 },
          'UDP super-packets without DF, too',
        );

        for (const to of [b.client4, b.client6]) {
          const { flows } = await left.tcp(to, { bytes: 8 * MiB, duplex: true });
          t.ok(
            flows.every((flow) => flow.sent === flow.received),
            `TCP finds its size: ${to}`,
          );
        }
        const carried = await wire.stopCarried();
        const large = carried.filter(({ bytes }) => bytes.length > small);
        t.same(
          large.map(({ bytes }) => bytes.length),
          [],
          `nothing above ${small} bytes on the wire`,
        );
        t.ok(
          carried.some(({ inner }) => inner.mf && inner.source === a.client4),
          'fragments are among it',
        );
        const errors = (await capture.stop())
          .map((bytes) => decode(bytes))
          .filter(({ source }) => /:0$|\.0$/.test(source));
        const mtus = new Set(errors.map(({ icmp }) => icmp?.word));
        t.same([...mtus], [small], `all ${errors.length} errors name ${small}`);
        t.ok(
          errors.every(({ icmp, family }) => family === 6 || icmp?.code === FRAGMENTATION_NEEDED),
          'all are about size',
        );
        const [now] = await assertConserved(t, wefts, 'small path', { 'outbound.too_big': true });
        t.ok(now.get('outbound.fragments_made') > 0, 'fragments were made, and counted');
      },
      { peers },
      { peers },
    );
  });
}
