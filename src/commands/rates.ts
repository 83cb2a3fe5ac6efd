/** What moved between two looks at the counters, per second. */
import type { CountersAnswer, DropEntry, DropsAnswer, Traffic } from '../inspect/protocol.js';

/** One look of `weft top`. */
export interface Look {
  readonly counters: CountersAnswer;
  readonly drops: DropsAnswer;
}

export interface PeerRate extends Traffic {
  readonly name: string;
}

export interface DropRate {
  readonly direction: DropEntry['direction'];
  readonly reason: string;
  readonly meaning: string;
  readonly packets: number;
}

export interface WorkerRate {
  readonly running: boolean;
  /** Shares of the time between the looks. */
  readonly busy: number;
  readonly spinning: number;
  readonly longestGapSeconds: number;
}

/** All per second. */
export interface Rates extends Traffic {
  /** Of the time between the looks. */
  readonly seconds: number;
  /** Cores in use by the whole process: 1.5 is one and a half. */
  readonly cores: number;
  /** Of all reasons together. */
  readonly dropped: number;
  /** Those that came, the busiest first. */
  readonly drops: readonly DropRate[];
  /** The busiest first; those that are quiet too. */
  readonly peers: readonly PeerRate[];
  readonly workers: readonly WorkerRate[];
}

/** Tells one count from all others of an answer. */
export const keyOf = ({ direction, by, reason, device }: DropEntry): string =>
  [direction, by, reason, device].join(' ');

const QUIET: Traffic = { packetsOut: 0, bytesOut: 0, packetsIn: 0, bytesIn: 0 };

/** Nothing is below zero, whatever was counted anew: a peer that came again, a daemon that was started again. */
export function ratesOf(before: Look, after: Look): Rates {
  const seconds = Math.max(1e-3, after.counters.monotonic - before.counters.monotonic);
  const per = (later: number, earlier = 0): number => Math.max(0, later - earlier) / seconds;
  const counter = (name: string): number => per(after.counters.counters[name] ?? 0, before.counters.counters[name]);
  const drops = dropRates(before.drops, after.drops, per);
  return {
    seconds,
    cores: per(after.counters.cpuSeconds, before.counters.cpuSeconds),
    packetsOut: counter('outbound.socket_sent'),
    bytesOut: counter('outbound.socket_sent_bytes'),
    packetsIn: counter('inbound.socket_received'),
    bytesIn: counter('inbound.socket_received_bytes'),
    dropped: drops.reduce((sum, { packets }) => sum + packets, 0),
    drops,
    peers: peerRates(before.counters, after.counters, per),
    workers: after.counters.workers.map(({ running, busySeconds, spinningSeconds, longestGapSeconds }, i) => {
      const earlier = before.counters.workers[i];
      const busy = per(busySeconds, earlier?.busySeconds);
      return { running, busy, spinning: per(spinningSeconds, earlier?.spinningSeconds), longestGapSeconds };
    }),
  };
}

type Per = (later: number, earlier?: number) => number;

function dropRates(before: DropsAnswer, after: DropsAnswer, per: Per): DropRate[] {
  const earlier = new Map(before.drops.map((one) => [keyOf(one), one.packets]));
  return after.drops
    .map((one) => {
      const { direction, reason, meaning } = one;
      return { direction, reason, meaning, packets: per(one.packets, earlier.get(keyOf(one))) };
    })
    .filter(({ packets }) => packets > 0)
    .sort((a, b) => b.packets - a.packets);
}

function peerRates(before: CountersAnswer, after: CountersAnswer, per: Per): PeerRate[] {
  const earlier = new Map(before.peers.map((peer) => [peer.name, peer]));
  // One that has just come has counted since then only, in a slot that began at zero.
  return after.peers
    .map((peer) => {
      const { packetsOut, bytesOut, packetsIn, bytesIn } = earlier.get(peer.name) ?? QUIET;
      return {
        name: peer.name,
        packetsOut: per(peer.packetsOut, packetsOut),
        bytesOut: per(peer.bytesOut, bytesOut),
        packetsIn: per(peer.packetsIn, packetsIn),
        bytesIn: per(peer.bytesIn, bytesIn),
      };
    })
    .sort((a, b) => b.bytesOut + b.bytesIn - (a.bytesOut + a.bytesIn) || (a.name < b.name ? -1 : 1));
}
