/** What the configuration makes of the dataplane. */
import t from 'tap';
import { parseConfig } from '../src/command-line.js';
import type { Config } from '../src/config.js';
import { engineSettingsFor, memoryFor } from '../src/engine-options.js';
import { DEFAULT_MEMORY, layoutFor, MAX_NETWORKS } from '../src/io/memory.js';

function configOf(args: readonly string[], file: unknown = {}): Config {
  const asked = parseConfig([...args, '--peers', 'peers.json', '--config', 'config.json'], {}, () =>
    JSON.stringify(file),
  );
  if (asked.kind !== 'run') throw new Error('not a configuration');
  return asked.config;
}
const found = { offloads: 3, maxSegments: 64, mtus: [1472], addresses: [] };

t.test('layer 3', async (t) => {
  const config = configOf(['--network', '10.5.0.0/16', '--subnet', '10.5.1.0/24', '--workers', '2']);
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
  const config = configOf(args, { networks: [{ vni: 7 }, { vni: 42 }] });
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
    },
    mtu: 9000,
    address4: undefined,
  });
});

t.test('the largest that may be asked for fits into the memory', async (t) => {
  const networks = Array.from({ length: MAX_NETWORKS }, (_, vni) => ({ vni }));
  const most = ['--mode', 'l2', '--mac-table', '1000000', '--workers', '8', '--source-ports', '8'];
  const { bytes } = layoutFor(memoryFor(configOf(most, { networks })));
  t.ok(bytes < 2 ** 31, `${Math.round(bytes / 2 ** 20)} MiB`);
});
