/**
 * OpenVPN 2.6 without encryption, authentication and compression: a plain point-to-point UDP tunnel, which has no header of
 * its own, so a packet travels as IPv4 (20), UDP (8), IP packet. Such a tunnel has two ends: one process and one tun
 * device on each host for each peer, named after the peer. Hosts b, c, … have host a as their one peer.
 */
import type { Daemon, Host, Lab } from '../hosts.js';
import { bringUp, type Subject, type SubjectKind } from './subject.js';

const MTU = 1500 - 20 - 8;

const device = (peer: Host): string => `openvpn-${peer.letter}`;

/** One end of a tunnel. A pair of hosts has a port of its own. */
function startEnd(host: Host, peer: Host): Daemon {
  const port = `${11_940 + Math.max(host.number, peer.number)}`;
  const args = ['--dev', device(peer), '--dev-type', 'tun', '--proto', 'udp4'];
  args.push('--local', host.underlay4, '--lport', port, '--remote', peer.underlay4, port);
  args.push('--cipher', 'none', '--auth', 'none', '--disable-dco');
  // Its clients' TCP finds the MTU as with every other subject, not by a smaller MSS that OpenVPN would write into it.
  args.push('--tun-mtu', `${MTU}`, '--mssfix', '0', '--verb', '1');
  return host.ns.start(`openvpn-${host.letter}-${peer.letter}`, 'openvpn', args);
}

function openvpn(_: Lab, hosts: readonly Host[]): Subject {
  return {
    name: 'openvpn',
    async start() {
      const [a, ...far] = hosts;
      const daemons = far.flatMap((host) => [startEnd(a, host), startEnd(host, a)]);
      for (const host of far) {
        await bringUp(a, device(host), `mtu ${MTU}`);
        await bringUp(host, device(a), `mtu ${MTU}`);
      }
      for (const daemon of daemons) await daemon.ready('Initialization Sequence Completed');
    },
    route: (_, to) => `dev ${device(to)}`,
    device: (_, to) => device(to),
  };
}

export const openvpnKind: SubjectKind = {
  name: 'openvpn',
  needs: [{ command: 'openvpn', package: 'openvpn', version: ['--version'] }],
  make: openvpn,
};
