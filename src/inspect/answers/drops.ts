/** /v1/drops: what was lost, where, and what that means; and what else tells of trouble though no packet ended there. */
import {
  COUNTER_INFOS,
  type CounterInfo,
  FIRST_OF_LAYER_2,
  IN_IN,
  OUT_IN,
  readCounter,
} from '../../dataplane/counters.js';
import { deviceDrops } from '../../host/device-drops.js';
import { KERNEL_COUNTERS } from '../../host/kernel-counters.js';
import type { Inspected, Running } from '../inspected.js';
import type { DropEntry, DropsAnswer } from '../protocol.js';

/** Counters that belong to no sum and that nobody has in a healthy network, or only in small numbers; by direction and name. */
const TROUBLE: ReadonlySet<string> = new Set([
  'outbound.socket_full',
  'outbound.messages_replayed',
  'outbound.device_errors',
  'outbound.icmp_limited',
  'outbound.icmp_forbidden',
  'outbound.icmp_made',
  'outbound.fragments_made',
  'inbound.above_mtu',
  'inbound.unmerged',
  'inbound.partial_checksums',
  'inbound.unsegmented',
  'tables.macs_moved',
  'tables.mac_moves_held',
  'tables.macs_over_limit',
  'tables.macs_table_full',
  'tables.neighbours_table_full',
  'tables.ring_full',
]);

/** `all`: those too that never moved. */
export function dropsAnswer(inspected: Inspected, all: boolean): DropsAnswer {
  const running = inspected.needRunning();
  const { memory } = running.dataplane;
  const drops: DropEntry[] = [];
  const notes: DropEntry[] = [];
  for (const [id, info] of COUNTER_INFOS.entries()) {
    if (id >= FIRST_OF_LAYER_2 && running.overlay.mode === 'l3') break;
    const list = info.role === 'dropped' ? drops : TROUBLE.has(`${info.direction}.${info.name}`) ? notes : undefined;
    list?.push(engineEntry(info, readCounter(memory, id)));
  }
  drops.push(...kernelEntries(running));
  notes.push(...hostEntries(inspected));
  const wanted = ({ packets }: DropEntry): boolean => all || packets > 0;
  return {
    drops: drops.filter(wanted),
    notes: notes.filter(wanted),
    entered: { outbound: readCounter(memory, OUT_IN), inbound: readCounter(memory, IN_IN) },
  };
}

const engineEntry = ({ name, direction, help }: CounterInfo, packets: number): DropEntry => {
  return { direction, by: 'engine', reason: name, packets, meaning: help, device: null };
};

/** What the kernel dropped on its way to us, or of what we gave it. */
export function kernelEntries({ dataplane, devices }: Running): DropEntry[] {
  const sockets: DropEntry = {
    direction: 'inbound',
    by: 'kernel',
    reason: 'socket_overflow',
    packets: dataplane.socketDrops,
    meaning:
      "messages that found our socket's buffer full: they came faster than the worker reads (one may hold many datagrams)",
    device: null,
  };
  const found = deviceDrops(devices);
  return [
    sockets,
    ...devices.flatMap((device): DropEntry[] => {
      const { outbound = 0, inbound = 0 } = found.get(device) ?? {};
      return [
        {
          direction: 'outbound',
          by: 'kernel',
          reason: 'device_queue_full',
          packets: outbound,
          meaning: "packets that found the device's queue to us full: the host sends faster than the worker reads",
          device,
        },
        {
          direction: 'inbound',
          by: 'kernel',
          reason: 'device_not_taken',
          packets: inbound,
          meaning: 'packets that we delivered and the host did not take (its backlog is full, or the device is down)',
          device,
        },
      ];
    }),
  ];
}

/** What the kernel dropped in the whole network namespace since we started: ours may be among it. */
function hostEntries(inspected: Inspected): DropEntry[] {
  const counters = inspected.kernelCounters();
  return KERNEL_COUNTERS.map(({ name, direction, meaning }) => {
    return { direction, by: 'host', reason: name, packets: counters.get(name) ?? 0, meaning, device: null };
  });
}
