import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Daemon, Host, Lab } from '../hosts.js';
import { bringUp, type Subject, type SubjectKind } from './subject.js';

/**
 * fastd without encryption (method "null"), mode tun: one layer-3 device per peer, named after it. Its MTU leaves
 * room for IPv4, UDP and the one byte of its own header.
 */
function fastd(lab: Lab, hosts: readonly Host[]): Subject {
  const key = (field: string, text: string): string => {
    const found = new RegExp(`${field}:\\s*([0-9a-f]{64})`, 'i').exec(text);
    if (!found) throw new Error(`fastd --generate-key gave no ${field} key`);
    return found[1];
  };
  const device = (peer: Host): string => `fastd-${peer.letter}`;
  const daemons: Daemon[] = [];
  return {
    name: 'fastd',
    async start() {
      const keys = hosts.map(() => {
        const made = spawnSync('fastd', ['--generate-key'], { encoding: 'utf8' });
        const text = `${made.stdout}${made.stderr}`;
        return { secret: key('Secret', text), public: key('Public', text) };
      });
      hosts.forEach((host, i) => {
        const peers = hosts.flatMap((peer, j) =>
          // Only a host of the star needs its spokes, and a spoke only the star's centre: host a.
          peer === host || (i > 0 && j > 0)
            ? []
            : [`peer "${peer.letter}" { key "${keys[j].public}"; remote ${peer.underlay4}:10000; }`],
        );
        const config = join(lab.dir, `fastd-${host.letter}.conf`);
        const lines = ['mode tun;', 'interface "fastd-%n";', 'mtu 1471;', 'method "null";', 'log level info;'];
        lines.push(`bind ${host.underlay4}:10000;`, `secret "${keys[i].secret}";`, ...peers);
        writeFileSync(config, `${lines.join('\n')}\n`, { mode: 0o600 });
        daemons.push(host.ns.start(`fastd-${host.letter}`, 'fastd', ['--config', config]));
      });
      for (const daemon of daemons) await daemon.ready('fastd v');
      const [a, ...far] = hosts;
      for (const host of far) {
        await bringUp(a, device(host));
        await bringUp(host, device(a));
      }
    },
    route: (_, to) => `dev ${device(to)}`,
    device: (_, to) => device(to),
  };
}

export const fastdKind: SubjectKind = {
  name: 'fastd',
  needs: [{ command: 'fastd', package: 'fastd', version: ['--version'] }],
  make: fastd,
};
