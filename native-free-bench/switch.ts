/**
 * The layer-2 walk over the in-memory device and sockets: each direction alone. Frames are 64 bytes long, Ethernet header
 * included, and carry UDP over IPv4 of one flow.
 */
import { MACS_LEARNED, readCounter } from '../src/dataplane/counters.js';
import type { Bench } from './bench.js';
import {
  BROADCAST,
  frame,
  macList,
  macOf,
  message,
  OUR_MAC,
  plain,
  superFrame,
  superPacket,
  tcp,
  udp,
  vxlan,
} from './packets.js';
import { makeSwitchRig, type SwitchRig, type SwitchRigOptions } from './rig.js';
import { DESTINATION, SOURCE, VaryingDevice } from './varying-device.js';

const FRAMES = 1 << 20;
const FLOODED = 1 << 14;
const SUPER_FRAMES = 1 << 14;
/** Where a frame's source MAC is in a datagram. */
const SOURCE_AT = 14;
const OURS = 0x0a070001;
const THEIRS = 0x0a070002;
/** Of a frame of 64 bytes, without its Ethernet header. */
const PACKET = udp(OURS, THEIRS, 50);
const ANSWER = udp(THEIRS, OURS, 50);
/** Payload of a full TCP segment with timestamps on a TAP with an MTU of 1,450. */
const SEGMENT = 1398;

/** MACs that a busy segment learns in a second. */
const NEW_A_SECOND = 100_000;
/** The largest table there is, so that learning does not end while we look. */
const MOST_MACS = 1_000_000;
/** Sources of the stream from which nothing is to be learned. */
const KNOWN = 64;
/** Of the frames that are not from one of those. */
const USUAL = macOf(MOST_MACS);

const ONE_MAC = 'switch: outbound 64 B, one MAC';
const SPREAD = 'switch: outbound 64 B, random among 64 MACs, 64 peers';

/** A rig whose device gives frames that differ in one MAC. */
async function makeVaryingRig(
  options: SwitchRigOptions,
  template: Uint8Array,
  where: typeof DESTINATION | typeof SOURCE,
  macs: Uint8Array,
): Promise<{ rig: SwitchRig; device: VaryingDevice }> {
  const made: VaryingDevice[] = [];
  const rig = await makeSwitchRig({
    ...options,
    device: (memory, layout) => {
      made.push(new VaryingDevice(memory, layout, template, where, macs));
      return made[0];
    },
  });
  return { rig, device: made[0] };
}

/** `macs` of them behind `peers`, all learned, hit at random. */
function outbound(name: string, macs: number, peers: number, against?: string): Bench {
  return {
    name,
    unit: 'frame',
    against,
    prepare: async () => {
      const known = Array.from({ length: macs }, (_, i) => macOf(i));
      let state = 1;
      const order = macList(1 << 17, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return (state >>> 8) % macs;
      });
      const template = frame(known[0], OUR_MAC, PACKET);
      const { rig, device } = await makeVaryingRig({ peers, macs: 1 << 17 }, template, DESTINATION, order);
      rig.teach(known);
      return () => {
        device.load(FRAMES);
        rig.drain();
        return FRAMES;
      };
    },
  };
}

// --- learning ---

/** Traffic in which every `every`th frame has another source MAC. */
interface Stream {
  readonly rig: SwitchRig;
  /** Lets `count` frames through. */
  run(count: number): void;
}

/** `sources`: that many other source MACs, gone round. */
type MakeStream = (sources: number, every: number) => Promise<Stream>;

/**
 * 10^5 new MACs a second and none, at the same traffic. How many frames make a second is found out first, for both; the
 * stream without new ones has as many frames from others, but those are known.
 */
function learning(what: string, make: MakeStream): Bench[] {
  let every: Promise<number> | undefined;
  const findEvery = async (): Promise<number> => {
    const { run } = await make(KNOWN, 64);
    let best = 0;
    for (let i = 0; i < 4; i++) {
      const begun = performance.now();
      run(FRAMES);
      best = Math.max(best, FRAMES / (performance.now() - begun));
    }
    return Math.max(1, Math.floor((best * 1000) / NEW_A_SECOND));
  };
  const bench = (name: string, sources: number, against?: string): Bench => ({
    name,
    unit: 'frame',
    against,
    prepare: async () => {
      every ??= findEvery();
      const between = await every;
      const { rig, run } = await make(sources, between);
      // As long as it takes to touch every page of the table.
      for (const begun = performance.now(); performance.now() < begun + 1000; ) run(FRAMES >> 3);
      return () => {
        const before = readCounter(rig.memory, MACS_LEARNED);
        run(FRAMES);
        const learned = readCounter(rig.memory, MACS_LEARNED) - before;
        const wanted = sources === KNOWN ? 0 : FRAMES / between;
        if (Math.abs(learned - wanted) > 1) throw new Error(`${learned} MACs were learned, not ${wanted}: less rounds`);
        return FRAMES;
      };
    },
  });
  const none = `switch: ${what}, no new MACs`;
  return [bench(none, KNOWN), bench(`switch: ${what}, 10^5 new MACs a second`, MOST_MACS - KNOWN, none)];
}

async function outboundStream(sources: number, every: number): Promise<Stream> {
  const template = frame(USUAL, OUR_MAC, PACKET);
  const options = { peers: 1, macs: MOST_MACS };
  const { rig, device } = await makeVaryingRig(options, template, SOURCE, macList(sources));
  device.every = every;
  rig.teach([USUAL]);
  return {
    rig,
    run(count) {
      device.load(count);
      rig.drain();
    },
  };
}

async function inboundStream(sources: number, every: number): Promise<Stream> {
  const GROUP = 64;
  const rig = await makeSwitchRig({ peers: 1, macs: MOST_MACS });
  const list = macList(sources);
  const usual = vxlan(frame(OUR_MAC, USUAL, ANSWER));
  const one = message(
    rig.name(0),
    Array.from({ length: GROUP }, () => usual),
  );
  // As many as are received at once; before they are, some of their frames get another source.
  const batch = Array.from({ length: 16 }, () => ({ ...one, bytes: one.bytes.slice() }));
  const frames = batch.length * GROUP;
  const changed: number[] = [];
  let next = 0;
  let countdown = every;
  const setSource = (index: number, from: Uint8Array, offset: number): void => {
    const { bytes } = batch[Math.floor(index / GROUP)];
    const at = (index % GROUP) * usual.length + SOURCE_AT;
    for (let i = 0; i < 6; i++) bytes[at + i] = from[offset + i];
  };
  return {
    rig,
    run(count) {
      for (let done = 0; done < count; done += frames) {
        for (const index of changed) setSource(index, usual, SOURCE_AT);
        changed.length = 0;
        for (; countdown <= frames; countdown += every) {
          setSource(countdown - 1, list, next * 6);
          changed.push(countdown - 1);
          next = next + 1 === sources ? 0 : next + 1;
        }
        countdown -= frames;
        rig.socket.load(batch);
        rig.drain();
      }
    },
  };
}

// --- flooding ---

function flood(peers: number): Bench {
  return {
    name: `switch: outbound 64 B flooded to ${peers} peer${peers > 1 ? 's' : ''}`,
    unit: 'copy',
    prepare: async () => {
      const rig = await makeSwitchRig({ peers });
      const frames = [plain(frame(BROADCAST, OUR_MAC, PACKET))];
      return () => {
        rig.device.load(frames, FLOODED);
        rig.drain();
        return FLOODED * peers;
      };
    },
  };
}

// --- the other direction, and super-packets ---

function inbound(group: number): Bench {
  return {
    name: `switch: inbound 64 B, ${group} to a message`,
    unit: 'frame',
    prepare: async () => {
      const rig = await makeSwitchRig({ peers: 1 });
      const datagram = vxlan(frame(OUR_MAC, macOf(0), ANSWER));
      const messages = [
        message(
          rig.name(0),
          Array.from({ length: group }, () => datagram),
        ),
      ];
      const count = Math.floor(FRAMES / group);
      return () => {
        rig.socket.load(messages, count);
        rig.drain();
        return count * group;
      };
    },
  };
}

function superOutbound(): Bench {
  return {
    name: `switch: outbound TCP super-frame, 44 x ${SEGMENT} B`,
    unit: 'super',
    prepare: async () => {
      const rig = await makeSwitchRig({ peers: 1 });
      rig.teach([macOf(0)]);
      const frames = [superFrame(macOf(0), OUR_MAC, superPacket(OURS, THEIRS, 44, SEGMENT))];
      return () => {
        rig.device.load(frames, SUPER_FRAMES);
        rig.drain();
        return SUPER_FRAMES;
      };
    },
  };
}

function superInbound(): Bench {
  return {
    name: `switch: inbound TCP run, 44 x ${SEGMENT} B`,
    unit: 'super',
    prepare: async () => {
      const rig = await makeSwitchRig({ peers: 1 });
      const run = Array.from({ length: 44 }, (_, i) =>
        vxlan(frame(OUR_MAC, macOf(0), tcp(THEIRS, OURS, SEGMENT, i * SEGMENT))),
      );
      const messages = [message(rig.name(0), run)];
      return () => {
        rig.socket.load(messages, SUPER_FRAMES);
        rig.drain();
        return SUPER_FRAMES;
      };
    },
  };
}

export const switchBenches: readonly Bench[] = [
  outbound(ONE_MAC, 1, 1),
  outbound('switch: outbound 64 B, random among 100000 MACs', 100_000, 1, ONE_MAC),
  // The same 64 peers behind one MAC each and behind 10^5: the difference is what the table costs.
  outbound(SPREAD, 64, 64),
  outbound('switch: outbound 64 B, random among 100000 MACs, 64 peers', 100_000, 64, SPREAD),
  ...learning('outbound 64 B', outboundStream),
  ...learning('inbound 64 B, 64 to a message', inboundStream),
  flood(1),
  flood(100),
  inbound(64),
  inbound(1),
  superOutbound(),
  superInbound(),
];
