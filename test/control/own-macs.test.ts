/** Which MACs are our own, as workers see them. */
import t from 'tap';
import { OwnMacsWatch } from '../../src/control/own-macs.js';
import { NETWORK_BRIDGE_MAC, NETWORK_DEVICE_MAC } from '../../src/dataplane/networks.js';
import type { OwnMacs } from '../../src/host/own-macs.js';
import { EngineMemory, NETWORK_BYTES } from '../../src/io/memory.js';

const mac = (last: number): Uint8Array => Uint8Array.of(2, 0x81, 0x82, 0x83, 0x84, last);

t.test('written where workers look, again when they change', async (t) => {
  const memory = EngineMemory.create({ workers: 1, peers: 4, routeNodes: 16, networks: 2 });
  const words = (network: number): number[] => {
    const at = (memory.layout.networks + network * NETWORK_BYTES) >> 2;
    return [...memory.i32.subarray(at + NETWORK_DEVICE_MAC, at + NETWORK_BRIDGE_MAC + 2)];
  };
  const low = 0x83828102 | 0;
  const warned: unknown[] = [];
  const say = (event: string, fields?: Readonly<Record<string, unknown>>): void =>
    void warned.push([event, fields?.reason]);
  let answers: (OwnMacs | undefined)[] | Error = [];
  const watch = new OwnMacsWatch({
    memory,
    devices: ['weft42', 'weft7'],
    query: async (devices) => {
      t.same(devices, ['weft42', 'weft7']);
      if (answers instanceof Error) throw answers;
      return answers;
    },
    log: { debug: say, info: say, warn: say, error: say },
  });
  t.same(words(0), [0, 0, 0, 0], 'none');
  answers = [
    { mac: mac(1), bridge: undefined, bridgeMac: undefined },
    { mac: mac(2), bridge: 'br0', bridgeMac: mac(0xff) },
  ];
  await watch.look();
  t.same(words(0), [low, 0x0184, 0, 0]);
  t.same(words(1), [low, 0x0284, low, 0xff84]);
  t.equal(watch.last(1)?.bridge, 'br0');

  answers = [{ mac: mac(1), bridge: 'br1', bridgeMac: mac(9) }, undefined];
  await watch.look();
  t.same(words(0), [low, 0x0184, low, 0x0984], 'put into a bridge');
  t.equal(watch.last(1)?.bridge, 'br0', 'what was known of a lost device stays');

  answers = [{ mac: mac(1), bridge: undefined, bridgeMac: undefined }, undefined];
  await watch.look();
  t.same(words(0), [low, 0x0184, 0, 0], 'and taken out');

  answers = new Error('no ip');
  await watch.look();
  await watch.look();
  t.same(warned, [['own_macs_unknown', 'no ip']], 'said once');
  t.same(words(0), [low, 0x0184, 0, 0]);
});
