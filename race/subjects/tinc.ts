/**
 * tinc 1.0 in router mode, without encryption, authentication and compression of packets. One daemon and one tun device on each
 * host; hosts b, c, … connect to host a.
 *
 * A packet travels as IPv4 (20), UDP (8), sequence number (4), Ethernet header (14, in router mode too), IP packet. Until tinc's
 * own path MTU discovery is done, which takes seconds, tinc would send large packets over its TCP connection. It is turned
 * off here, since the device's MTU already leaves room for all of that, so packets go by UDP from the first on.
 */
import { generateKeyPairSync } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Daemon, Host, Lab } from '../hosts.js';
import { bringUp, type Subject, type SubjectKind } from './subject.js';

const DEVICE = 'tinc0';
const PORT = 10655;
const MTU = 1500 - 20 - 8 - 4 - 14;

/** The daemons authenticate each other by these while they connect. Packets are not encrypted by them. */
function makeKeys(): { publicKey: string; privateKey: string } {
  return generateKeyPairSync('rsa', {
    modulusLength: 2048,
    publicKeyEncoding: { type: 'pkcs1', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs1', format: 'pem' },
  });
}

/** Writes a host's folder of configuration; `keys` are those of all hosts, in their order. */
function configure(host: Host, hosts: readonly Host[], keys: readonly ReturnType<typeof makeKeys>[]): string {
  const folder = join(host.ns.lab.dir, `tinc-${host.letter}`);
  const write = (name: string, lines: readonly string[]): void =>
    writeFileSync(join(folder, name), `${lines.join('\n')}\n`, { mode: 0o600 });
  const main = [`Name = ${host.letter}`, 'Mode = router', 'DeviceType = tun', `Interface = ${DEVICE}`];
  main.push('AddressFamily = ipv4', `BindToAddress = ${host.underlay4} ${PORT}`, 'PMTUDiscovery = no');
  if (host !== hosts[0]) main.push(`ConnectTo = ${hosts[0].letter}`);
  mkdirSync(join(folder, 'hosts'), { recursive: true });
  write('tinc.conf', main);
  write('rsa_key.priv', [keys[hosts.indexOf(host)].privateKey]);
  for (const [i, peer] of hosts.entries()) {
    const about = [`Address = ${peer.underlay4} ${PORT}`, `Port = ${PORT}`, `Subnet = ${peer.subnet4}`];
    about.push('Cipher = none', 'Digest = none', 'Compression = 0', keys[i].publicKey);
    write(`hosts/${peer.letter}`, about);
  }
  return folder;
}

function start(host: Host, folder: string): Daemon {
  const args = ['--no-detach', '--config', folder, '--pidfile', join(folder, 'pid'), '--debug=1'];
  return host.ns.start(`tinc-${host.letter}`, 'tincd', args);
}

function tinc(_: Lab, hosts: readonly Host[]): Subject {
  return {
    name: 'tinc',
    async start() {
      const keys = hosts.map(makeKeys);
      const daemons: Daemon[] = [];
      // Host a first: one that finds nobody to connect to waits seconds before it tries again.
      for (const host of hosts) {
        const daemon = start(host, configure(host, hosts, keys));
        await daemon.ready('Ready');
        await bringUp(host, DEVICE, `mtu ${MTU}`);
        daemons.push(daemon);
      }
      for (const daemon of daemons) await daemon.ready('activated');
    },
    route: () => `dev ${DEVICE}`,
    device: () => DEVICE,
  };
}

export const tincKind: SubjectKind = {
  name: 'tinc',
  needs: [{ command: 'tincd', package: 'tinc', version: ['--version'] }],
  make: tinc,
};
