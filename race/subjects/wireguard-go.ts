/**
 * wireguard-go, WireGuard in userspace: the one subject that encrypts (ChaCha20-Poly1305), since WireGuard has no mode without.
 * One daemon and one tun device on each host; hosts b, c, … have host a as their one peer.
 *
 * A packet travels as IPv4 (20), UDP (8), WireGuard's header (16), IP packet padded to a multiple of 16, tag (16).
 *
 * The daemon puts its socket into /var/run/wireguard, which all hosts of a lab and the machine share. So it, and `wg`, run in a
 * mount namespace of their own (that of `ip netns exec`) where a folder of the lab's is mounted as /var/run: nothing
 * can stay behind, even of a daemon that was killed.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Daemon, Host, Lab } from '../hosts.js';
import { appears, bringUp, type Subject, type SubjectKind } from './subject.js';

const DEVICE = 'wg0';
const PORT = 10820;
const MTU = 1500 - 20 - 8 - 16 - 16;
/** Runs a command ($2, …) with the folder $1 in place of /var/run. */
const WITH_RUN_FOLDER = 'mount --bind "$1" /var/run && shift && exec "$@"';

interface Keys {
  readonly secret: string;
  readonly public: string;
}

function makeKeys(): Keys {
  const wg = (command: string, input = ''): string => {
    const done = spawnSync('wg', [command], { input, encoding: 'utf8' });
    if (done.status !== 0) throw new Error(`wg ${command}: ${done.stderr?.trim() || done.error?.message}`);
    return done.stdout.trim();
  };
  const secret = wg('genkey');
  return { secret, public: wg('pubkey', secret) };
}

/** Host a has all others as its peers, the others have host a. */
function configuration(host: Host, hosts: readonly Host[], keys: ReadonlyMap<Host, Keys>): string {
  const [a] = hosts;
  const peers = host === a ? hosts.slice(1) : [a];
  const lines = ['[Interface]', `PrivateKey = ${keys.get(host)!.secret}`, `ListenPort = ${PORT}`];
  for (const peer of peers) {
    lines.push('[Peer]', `PublicKey = ${keys.get(peer)!.public}`, `AllowedIPs = ${peer.subnet4}`);
    lines.push(`Endpoint = ${peer.underlay4}:${PORT}`);
  }
  return `${lines.join('\n')}\n`;
}

function wireguard(lab: Lab, hosts: readonly Host[]): Subject {
  const runFolder = (host: Host): string => join(lab.dir, `wireguard-${host.letter}`);
  const inRunFolder = (host: Host, ...command: string[]): string[] => [
    '-c',
    WITH_RUN_FOLDER,
    'sh',
    runFolder(host),
    ...command,
  ];
  const start = (host: Host): Daemon => {
    mkdirSync(runFolder(host));
    const command = inRunFolder(host, 'wireguard-go', '--foreground', DEVICE);
    return host.ns.start(`wireguard-go-${host.letter}`, 'sh', command, {
      env: { ...process.env, LOG_LEVEL: 'error' },
    });
  };
  return {
    name: 'wireguard-go',
    async start() {
      const keys = new Map(hosts.map((host) => [host, makeKeys()]));
      for (const host of hosts) start(host);
      for (const host of hosts) {
        await bringUp(host, DEVICE, `mtu ${MTU}`);
        // The device is there a moment before the socket by which `wg` sets it up.
        await appears(join(runFolder(host), 'wireguard', `${DEVICE}.sock`), 'wireguard-go');
        const file = join(lab.dir, `wireguard-${host.letter}.conf`);
        writeFileSync(file, configuration(host, hosts, keys), { mode: 0o600 });
        host.ns.runSync('sh', ...inRunFolder(host, 'wg', 'setconf', DEVICE, file));
      }
    },
    route: () => `dev ${DEVICE}`,
    device: () => DEVICE,
  };
}

export const wireguardKind: SubjectKind = {
  name: 'wireguard-go',
  needs: [
    { command: 'wireguard-go', package: 'wireguard-go', version: ['--version'] },
    { command: 'wg', package: 'wireguard-tools', version: ['--version'] },
  ],
  make: wireguard,
};
