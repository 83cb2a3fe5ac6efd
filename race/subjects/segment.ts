/** One Ethernet segment over all hosts in VXLAN, with the kernel's vxlan device or a weftd's TAP on each of them. */
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Daemon, Host } from '../hosts.js';
import { assertBuilt, DAEMON } from './daemon.js';
import type { Subject } from './subject.js';

/** One Ethernet segment over all hosts, in VXLAN. On each of them it is reached through a device with an address of its own. */
export interface Segment {
  readonly name: string;
  readonly vni: number;
  readonly port: number;
  /** Host i's device has the address 10.254.`subnet`.i. */
  readonly subnet: number;
  /** Name of the device. */
  readonly device: string;
  /** Where weftd makes it, a TAP; elsewhere it is the kernel's vxlan device. */
  readonly weft: (host: Host) => boolean;
  readonly daemonArgs?: readonly string[];
}

/**
 * Sets a segment up as flannel does: routes lead through the far device's address, and all neighbours and MACs are set
 * beforehand, so that nothing is asked for by ARP and nothing is flooded. What the kernel is told by `bridge fdb`, weftd is
 * told by its peers file. The MTU of 1450 comes from the underlay's, in the kernel and in weftd.
 */
export function vxlanSegment(hosts: readonly Host[], segment: Segment): Subject {
  const { name, vni, port, device } = segment;
  const address = (host: Host): string => `10.254.${segment.subnet}.${host.number}`;
  const macs = new Map<Host, string>();

  const kernelDevice = (host: Host): void => {
    host.ns.ip(
      `link add ${device} address ${macs.get(host)} type vxlan id ${vni} dstport ${port} local ${host.underlay4} dev ${host.underlayInterface}`,
      `addr add ${address(host)}/24 dev ${device}`,
      `link set ${device} up`,
    );
  };
  const kernelPeers = (host: Host): void => {
    for (const peer of hosts) {
      if (peer === host) continue;
      // `replace`: a weftd that is up may have been heard of already.
      host.ns.runSync('bridge', 'fdb', 'replace', macs.get(peer)!, 'dev', device, 'dst', peer.underlay4);
    }
  };
  const peersFile = join(hosts[0].ns.lab.dir, `${name}.json`);
  const writePeers = (): void => {
    const peers = hosts.map((host) => {
      const mac = macs.get(host);
      return { name: host.letter, address: host.underlay4, port, macs: mac ? [mac] : [] };
    });
    writeFileSync(`${peersFile}.new`, JSON.stringify({ peers }));
    renameSync(`${peersFile}.new`, peersFile);
  };
  const startWeft = (host: Host): Daemon => {
    const args = ['--mode', 'l2', '--vni', `${vni}`, '--port', `${port}`, '--device', device];
    args.push('--address', `${address(host)}/24`, '--iface', host.underlayInterface, '--public-ip', host.underlay4);
    args.push('--peers', peersFile, ...(segment.daemonArgs ?? []));
    return host.ns.start(`${name}-${host.letter}`, process.execPath, [DAEMON, ...args]);
  };

  return {
    name,
    async start() {
      const kernels = hosts.filter((host) => !segment.weft(host));
      const wefts = hosts.filter(segment.weft);
      for (const host of kernels) {
        macs.set(host, `02:57:65:66:74:${host.number.toString(16).padStart(2, '0')}`);
        kernelDevice(host);
      }
      if (wefts.length > 0) {
        assertBuilt();
        writePeers();
        const daemons = wefts.map(startWeft);
        for (const daemon of daemons) await daemon.ready('"event":"ready"');
        // A TAP's MAC is the kernel's choice. The daemons read the file again by themselves.
        for (const host of wefts) {
          macs.set(host, host.ns.runSync('cat', `/sys/class/net/${device}/address`).trim());
        }
        writePeers();
      }
      for (const host of kernels) kernelPeers(host);
      for (const host of hosts) {
        const peers = hosts.filter((peer) => peer !== host);
        host.ns.ip(
          ...peers.map((peer) => `neigh add ${address(peer)} lladdr ${macs.get(peer)} dev ${device} nud permanent`),
        );
      }
    },
    route: (_, to) => `via ${address(to)} dev ${device}`,
    device: () => device,
  };
}
