/** /v1/counters: all that moves, for rates. */
import { COUNTER_INFOS, readCounter } from '../../dataplane/counters.js';
import { readGauges } from '../../dataplane/gauges.js';
import type { PeerRef } from '../../dataplane/peers.js';
import { deviceDrops } from '../../host/device-drops.js';
import type { Inspected, Running } from '../inspected.js';
import { peersOf } from '../inspected.js';
import { type CountersAnswer, MOST_ENTRIES } from '../protocol.js';
import { trafficOf } from './peer-memory.js';

export function countersAnswer(inspected: Inspected): CountersAnswer {
  const running = inspected.needRunning();
  const { memory } = running.dataplane;
  const refs = new Map<string, PeerRef[]>();
  for (const { name, ref } of peersOf(running)) {
    const known = refs.get(name);
    if (known) known.push(ref);
    else refs.set(name, [ref]);
  }
  const names = [...refs.keys()].sort().slice(0, MOST_ENTRIES);
  const { user, system } = process.cpuUsage();
  return {
    monotonic: Number(process.hrtime.bigint()) / 1e9,
    counters: countersOf(running),
    peers: names.map((name) => ({ name, ...trafficOf(memory, refs.get(name) ?? []) })),
    workers: memory.layout.workers.map((_, worker) => {
      const { busy, spinning, longestGap } = readGauges(memory, worker);
      return {
        running: running.dataplane.runs(worker),
        busySeconds: busy,
        spinningSeconds: spinning,
        longestGapSeconds: longestGap,
      };
    }),
    cpuSeconds: (user + system) / 1e6,
  };
}

function countersOf({ dataplane, devices }: Running): Record<string, number> {
  const found: Record<string, number> = {};
  for (const [id, { direction, name }] of COUNTER_INFOS.entries()) {
    found[`${direction}.${name}`] = readCounter(dataplane.memory, id);
  }
  let [outbound, inbound] = [0, 0];
  for (const drops of deviceDrops(devices).values()) {
    outbound += drops.outbound;
    inbound += drops.inbound;
  }
  return {
    ...found,
    'kernel.socket_overflow': dataplane.socketDrops,
    'kernel.device_outbound': outbound,
    'kernel.device_inbound': inbound,
  };
}
