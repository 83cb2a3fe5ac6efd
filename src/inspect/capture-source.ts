/** What captures (capture.ts) look at, from what the daemon is. */
import type { CaptureSource } from './capture.js';
import type { CaptureScene } from './capture-frames.js';
import { type Inspected, peersOf, type Running, textsOf } from './inspected.js';
import { Refusal } from './refusal.js';

export function captureSource(inspected: Inspected): CaptureSource {
  return {
    dataplane: () => {
      if (!inspected.running || !inspected.forwarding) return undefined;
      const { dataplane } = inspected.needForwarding();
      return { memory: dataplane.memory, shared: dataplane.shared, wake: () => dataplane.wake() };
    },
    scene: () => {
      if (!inspected.running) throw new Refusal(503, inspected.notYet());
      return sceneOf(inspected.running);
    },
    refsOf: (who) => {
      if (!inspected.running) return [];
      const all = [...peersOf(inspected.running)];
      const named = all.filter(({ name }) => name === who);
      return (named.length > 0 ? named : all.filter(({ address }) => address === who)).map(({ ref }) => ref);
    },
    peers: () => (inspected.running ? peersOf(inspected.running) : []),
    version: inspected.options.version,
  };
}

function sceneOf({ overlay, underlay, member, devices, mtus, sourcePorts }: Running): CaptureScene {
  return {
    mode: overlay.mode,
    devices: devices.map((name, network) => {
      return { name, mtu: mtus[network], vni: overlay.segments[network]?.vni ?? null };
    }),
    underlay: {
      interface: underlay.interface,
      mtu: underlay.mtu,
      addresses: textsOf(underlay.addresses),
      port: member.port,
      sourcePorts,
    },
  };
}
