/**
 * The whole walk over the in-memory device and socket: each direction alone, by packet size, message size and table size. A
 * packet here costs what it costs the engine, without the kernel's share.
 */
import type { Bench } from './bench.js';
import { message, plain, superPacket, tcp, udp } from './packets.js';
import { RandomDevice } from './random-device.js';
import { destination, makeRig } from './rig.js';

const PACKETS = 1 << 20;
const SUPER_PACKETS = 1 << 14;
const HOST = 0x0a000001;

export const walkBenches: readonly Bench[] = [
  outbound(64, 1),
  outbound(576, 1),
  outbound(1400, 1),
  outbound(64, 64),
  outboundBatch(1),
  outboundBatch(8),
  // The same 64 peers behind one route each and behind 10^5 routes: the difference is what the table costs.
  outboundRandom(64),
  outboundRandom(100_000),
  inbound(64, 64),
  inbound(64, 8),
  inbound(576, 64),
  inbound(1400, 44),
  inbound(64, 1),
  superOutbound(44, 1420),
  superInbound(44, 1420),
];

function outbound(size: number, peers: number): Bench {
  return {
    name: `walk: outbound ${size} B to ${peers} peer${peers > 1 ? 's' : ''}`,
    unit: 'packet',
    prepare: async () => {
      const rig = await makeRig({ peers, routes: peers });
      const packets = Array.from({ length: peers }, (_, i) => plain(udp(HOST, destination(i), size)));
      return () => {
        rig.device.load(packets, PACKETS);
        rig.drain();
        return PACKETS;
      };
    },
  };
}

/** `packets` wait each time the device is read: what a quiet network pays for a turn. */
function outboundBatch(packets: number): Bench {
  return {
    name: `walk: outbound 64 B, ${packets} a turn`,
    unit: 'packet',
    prepare: async () => {
      const rig = await makeRig({ peers: 1, routes: 1 });
      const waiting = [plain(udp(HOST, destination(0), 64))];
      const turns = (PACKETS >> 2) / packets;
      return () => {
        rig.device.load(waiting, 0);
        for (let i = 0; i < turns; i++) {
          rig.device.more(packets);
          rig.turn();
        }
        return turns * packets;
      };
    },
  };
}

function outboundRandom(routes: number): Bench {
  return {
    name: `walk: outbound 64 B, random among ${routes} routes, 64 peers`,
    unit: 'packet',
    prepare: async () => {
      let state = 1;
      const destinations = Array.from({ length: 1 << 17 }, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return destination((state >>> 8) % routes);
      });
      let device: RandomDevice | undefined;
      const rig = await makeRig({
        peers: 64,
        routes,
        device: (memory, layout) => {
          device = new RandomDevice(memory, layout, destinations);
          return device;
        },
      });
      return () => {
        device?.load(PACKETS);
        rig.drain();
        return PACKETS;
      };
    },
  };
}

function inbound(size: number, group: number): Bench {
  return {
    name: `walk: inbound ${size} B, ${group} to a message`,
    unit: 'packet',
    prepare: async () => {
      const rig = await makeRig({ peers: 1, routes: 1 });
      const packet = udp(destination(0), HOST, size);
      const messages = [
        message(
          rig.name(0),
          Array.from({ length: group }, () => packet),
        ),
      ];
      const count = Math.floor(PACKETS / group);
      return () => {
        rig.socket.load(messages, count);
        rig.drain();
        return count * group;
      };
    },
  };
}

function superOutbound(segments: number, size: number): Bench {
  return {
    name: `walk: outbound TCP super-packet, ${segments} x ${size} B`,
    unit: 'super',
    prepare: async () => {
      const rig = await makeRig({ peers: 1, routes: 1 });
      const packets = [superPacket(HOST, destination(0), segments, size)];
      return () => {
        rig.device.load(packets, SUPER_PACKETS);
        rig.drain();
        return SUPER_PACKETS;
      };
    },
  };
}

function superInbound(segments: number, size: number): Bench {
  return {
    name: `walk: inbound TCP run, ${segments} x ${size} B`,
    unit: 'super',
    prepare: async () => {
      const rig = await makeRig({ peers: 1, routes: 1 });
      const run = Array.from({ length: segments }, (_, i) => tcp(destination(0), HOST, size, i * size));
      const messages = [message(rig.name(0), run)];
      return () => {
        rig.socket.load(messages, SUPER_PACKETS);
        rig.drain();
        return SUPER_PACKETS;
      };
    },
  };
}
