/** What the configuration makes of the dataplane. */
import t from 'tap';
import { parseConfig } from '../src/command-line.js';
import type { Config } from '../src/config.js';
import type { Backend, VxlanBackend } from '../src/control/backend.js';
import { parseCidr } from '../src/control/cidr.js';
import { engineSettingsFor, memoryFor } from '../src/engine-options.js';
import { DEFAULT_MEMORY, layoutFor, MAX_NETWORKS } from '../src/io/memory.js';
import { type Overlay, overlayOf } from '../src/overlay.js';

function configOf(args: readonly string[], file: unknown = {}): Config {
  const asked = parseConfig([...args, '--peers', 'peers.json', '--config', 'config.json'], {}, () =>
    JSON.stringify(file),
  );
  if (asked.kind !== 'run') throw new Error('not a configuration');
  return asked.config;
}
/** With the registry that says what the backend is. */
function etcdConfig(...args: readonly string[]): Config {
  const asked = parseConfig(['--registry', 'etcd', ...args], {}, () => '');
  if (asked.kind !== 'run') throw new Error('not a configuration');
  return asked.config;
}
/** What the configuration and the registry come to. */
const overlayFrom = (config: Config, backend?: Backend, networks: readonly string[] = []): Overlay =>
  overlayOf(config, { backend, networks: networks.map(parseCidr) });
const found = { offloads: 3, maxSegments: 64, mtus: [1472], addresses: [] };

t.test('layer 3', async (t) => {
  const config = overlayFrom(configOf(['--network', '10.5.0.0/16', '--subnet', '10.5.1.0/24', '--workers', '2']));
  t.same(memoryFor(config), { ...DEFAULT_MEMORY, workers: 2 });
  const bytes = Uint8Array.of(10, 5, 1, 0);
  t.same(engineSettingsFor(config, { ...found, addresses: [{ family: 4, bytes, text: '10.5.1.0' }] }), {
    sourceCheck: 'peer',
    offloads: 3,
    maxSegments: 64,
    inheritDscp: false,
    l2: undefined,
    mtu: 1472,
    address4: bytes,
    address6: undefined,
  });
});

t.test('layer 2', async (t) => {
  const args = ['--mode', 'l2', '--mac-age', '60', '--mac-table', '4096', '--storm-limit', 'off', '--dscp', 'inherit'];
  const config = overlayFrom(configOf(args, { networks: [{ vni: 7 }, { vni: 42 }] }));
  t.match(memoryFor(config), { networks: 2, macs: 4096, neighbours: 4096, senders: 4 });
  t.match(engineSettingsFor(config, { ...found, mtus: [1450, 9000] }), {
    inheritDscp: true,
    l2: {
      networks: [
        { vni: 7, mtu: 1450 },
        { vni: 42, mtu: 9000 },
      ],
      age: 60_000,
      macsPerPeer: 512,
      floodUnknown: true,
      stormLimit: 0,
      learning: true,
      floods: true,
    },
    mtu: 9000,
    address4: undefined,
  });
});

t.test("flannel's vxlan", async (t) => {
  const config = etcdConfig('--workers', '2');
  const vxlan: VxlanBackend = {
    type: 'vxlan',
    port: 8472,
    vni: 1,
    mtu: undefined,
    learning: false,
    directRouting: false,
  };
  const dual = overlayFrom(config, vxlan, ['10.5.0.0/16', 'fd05::/56']);
  t.match(memoryFor(dual), { networks: 2, workers: 2 });
  const { macs = 0, neighbours = 0, statics = 0 } = memoryFor(dual);
  t.ok(macs > 0 && neighbours > 0, 'the tables of a switch');
  t.ok(macs < config.macTable && neighbours < config.macTable, 'which stay empty');
  t.ok(statics >= 2 * 65_536, 'a MAC for each peer, in both families');
  t.match(engineSettingsFor(dual, { ...found, mtus: [1450, 1430] }).l2, {
    networks: [
      { vni: 1, mtu: 1450, family: 4 },
      { vni: 1, mtu: 1430, family: 6 },
    ],
    learning: false,
    floods: false,
  });
  const single = overlayFrom(config, { ...vxlan, learning: true }, ['fd05::/56']);
  t.match(memoryFor(single), { networks: 1, macs: config.macTable, neighbours: config.macTable });
  t.match(engineSettingsFor(single, found).l2, { networks: [{ vni: 1, family: 6 }], learning: true, floods: false });
});

t.test("flannel's udp is layer 3, and through the others nothing passes", async (t) => {
  const config = etcdConfig('--workers', '2');
  const udp = overlayFrom(config, { type: 'udp', port: 8285 }, ['10.5.0.0/16']);
  t.match(memoryFor(udp), { ...DEFAULT_MEMORY, workers: 2 });
  t.equal(engineSettingsFor(udp, found).l2, undefined);
  for (const type of ['host-gw', 'alloc'] as const) {
    t.equal(memoryFor(overlayFrom(config, { type }, ['10.5.0.0/16'])).workers, 0, type);
  }
});

t.test('the largest that may be asked for fits into the memory', async (t) => {
  const networks = Array.from({ length: MAX_NETWORKS }, (_, vni) => ({ vni }));
  const most = ['--mode', 'l2', '--mac-table', '1000000', '--workers', '8', '--source-ports', '8'];
  const { bytes } = layoutFor(memoryFor(overlayFrom(configOf(most, { networks }))));
  t.ok(bytes < 2 ** 31, `${Math.round(bytes / 2 ** 20)} MiB`);
});
