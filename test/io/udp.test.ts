/** Sockets as the kernel has them: what receives, what only sends, with and without outer checksum and DF. Native code. */
import { closeSync } from 'node:fs';
import t from 'tap';
import { ALL_OFFLOADS, OFFLOADS } from '../../src/io/offloads.js';
import * as sys from '../../src/io/syscalls.js';
import { openUdp, type UdpOptions, type UdpSocket } from '../../src/io/udp.js';
import { address } from '../lib/packets.js';

const BOTH = ['127.0.0.1', '::1'];

function open(t: { teardown(work: () => void): void }, text: string, options: Partial<UdpOptions> = {}): UdpSocket {
  const socket = openUdp({ address: address(text), text, port: undefined, offloads: ALL_OFFLOADS, ...options });
  t.teardown(() => closeSync(socket.fd));
  return socket;
}

const checksumOff = ({ fd, family }: UdpSocket): number =>
  family === 4
    ? sys.getsockopt(fd, sys.SOL_SOCKET, sys.SO_NO_CHECK)
    : sys.getsockopt(fd, sys.SOL_UDP, sys.UDP_NO_CHECK6_TX);

const discovery = ({ fd, family }: UdpSocket): number =>
  family === 4
    ? sys.getsockopt(fd, sys.SOL_IP, sys.IP_MTU_DISCOVER)
    : sys.getsockopt(fd, sys.SOL_IPV6, sys.IPV6_MTU_DISCOVER);

for (const text of BOTH) {
  t.test(`${text}: senders have ports of their own and hardly a buffer`, async (t) => {
    const [one, other] = [open(t, text), open(t, text)];
    t.ok(one.receiveBuffer < 5000, `${one.receiveBuffer} bytes`);
    t.ok(sys.getsockopt(one.fd, sys.SOL_SOCKET, sys.SO_SNDBUF) > 200_000);
    for (const socket of [one, other]) {
      t.equal(sys.getsockopt(socket.fd, sys.SOL_SOCKET, sys.SO_REUSEPORT), 0, 'nobody else gets its port');
      t.equal(socket.offloads, ALL_OFFLOADS);
    }
  });

  t.test(`${text}: outer checksum and DF`, async (t) => {
    const usual = open(t, text, { port: 40_789 });
    t.same([checksumOff(usual), discovery(usual)], [0, sys.IP_PMTUDISC_DO]);
    t.ok(usual.offloads & OFFLOADS.segment);
    t.ok(usual.receiveBuffer > 200_000);
    for (const port of [undefined, 40_789]) {
      const without = open(t, text, { port, checksum: false, df: false });
      t.same([checksumOff(without), discovery(without)], [1, sys.IP_PMTUDISC_DONT]);
      t.equal(without.offloads & OFFLOADS.segment, 0, 'no segmentation without checksums');
      t.equal(without.maxSegments, 1);
      t.ok(without.offloads & OFFLOADS.gro);
    }
  });
}

t.test('an address of nobody here', async (t) => {
  t.throws(() => open(t, '192.0.2.77'), {
    message: '192.0.2.77 is not an address of this host: check --iface and --public-ip',
  });
});
