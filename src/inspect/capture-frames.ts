/**
 * What /v1/capture streams, and how it is read again.
 *
 * A stream is a row of frames: length of the payload (u32), type (u32), payload; little-endian. First comes a head, JSON, and
 * another one when what it says has changed. Records are as workers wrote them (io/capture-record.ts). A peer is told before the
 * first record that refers to it. The last frame is an end; where it is missing, the stream was cut off.
 */
import * as record from '../io/capture-record.js';

export const FRAME_HEAD = 1;
export const FRAME_RECORDS = 2;
export const FRAME_PEERS = 3;
export const FRAME_COUNTS = 4;
export const FRAME_END = 5;
export const FRAME_HEADER = 8;
/** Longest payload; a longer one is no capture stream. */
const MAX_FRAME_PAYLOAD = 1 << 22;

/** What the captured packets passed. */
export interface CaptureScene {
  readonly mode: 'l2' | 'l3';
  /** By network; layer 3 has one. `vni` null: layer 3. */
  readonly devices: readonly { readonly name: string; readonly mtu: number; readonly vni: number | null }[];
  readonly underlay: {
    readonly interface: string;
    /** Bytes. */
    readonly mtu: number;
    /** Our own, as text. */
    readonly addresses: readonly string[];
    /** UDP: where datagrams arrive. */
    readonly port: number;
    /** By underlay (IPv4, IPv6) and sending socket, worker by worker: from where datagrams leave; empty: from `port`. */
    readonly sourcePorts: readonly (readonly number[])[];
  };
}

export interface CaptureVerdict {
  readonly verdict: number;
  readonly name: string;
  readonly kind: 'sent' | 'forwarded' | 'consumed' | 'dropped';
  readonly direction?: string;
  readonly help?: string;
}

export interface CaptureHead extends CaptureScene {
  /** What weft this is. */
  readonly version: string;
  /** Wall-clock time less CLOCK_MONOTONIC: what to add to a record's. */
  readonly clock: { readonly seconds: number; readonly nanoseconds: number };
  /** Most bytes of a packet that are kept. */
  readonly snaplen: number;
  readonly verdicts: readonly CaptureVerdict[];
}

export interface CapturePeer {
  readonly name: string;
  /** Its underlay address, as text. */
  readonly address: string;
}

export interface CaptureCounts {
  /** Packets in the stream so far. */
  readonly captured: number;
  /** Packets that were wanted, and for which a ring had no room. */
  readonly lost: number;
}

export interface CaptureEnd extends CaptureCounts {
  /** `count`, `seconds`: as was asked; `stopping`: the daemon stops. */
  readonly reason: 'count' | 'seconds' | 'stopping';
}

export interface CapturedPacket {
  /** Since 1970: whole seconds, and nanoseconds (below 10^9). */
  readonly seconds: number;
  readonly nanoseconds: number;
  readonly side: 'device' | 'underlay';
  /** Outbound is from the host to the network, on both of our sides: device in, and underlay out. */
  readonly direction: 'outbound' | 'inbound';
  /** It came to us: its verdict is what the walk decided. Otherwise it leaves us, and the kernel has said. */
  readonly entering: boolean;
  /** On the device's side: whose device. Undefined on the underlay's. */
  readonly network: number | undefined;
  readonly worker: number;
  readonly verdict: CaptureVerdict;
  /** Whom it came from or goes to; undefined: nobody we know, or all. */
  readonly peer: CapturePeer | undefined;
  /** Bytes of the packet; `bytes` may hold fewer. */
  readonly length: number;
  /** On the device's side a packet or frame, on the underlay's a UDP payload. A view: copy what is to stay. */
  readonly bytes: Uint8Array;
  /** Payload bytes of a segment of a super-packet; 0: it is none. */
  readonly segment: number;
  /** Its inner transport checksum is left to the device: only the pseudo-header's sum stands there. */
  readonly checksumLeft: boolean;
  /** On the underlay's side. */
  readonly outer: CapturedOuter | undefined;
}

export interface CapturedOuter {
  readonly family: 4 | 6;
  /** The other end's, network byte order. */
  readonly address: Uint8Array;
  readonly port: number;
  /** Our own UDP port. */
  readonly ownPort: number;
  /** TOS or traffic class. */
  readonly tos: number;
}

export type CaptureItem =
  | { readonly kind: 'head'; readonly head: CaptureHead }
  | { readonly kind: 'packet'; readonly packet: CapturedPacket }
  | { readonly kind: 'counts'; readonly counts: CaptureCounts }
  | { readonly kind: 'end'; readonly end: CaptureEnd };

/** A stream that is none, or is damaged. */
export class CaptureStreamError extends Error {}

/** One frame with a copy of a payload. Throws a RangeError when it is too long. */
export function frameOf(type: number, payload: Uint8Array): Buffer {
  if (payload.length > MAX_FRAME_PAYLOAD) throw new RangeError(`a frame of ${payload.length} bytes`);
  const frame = Buffer.allocUnsafe(FRAME_HEADER + payload.length);
  frame.writeUInt32LE(payload.length, 0);
  frame.writeUInt32LE(type, 4);
  frame.set(payload, FRAME_HEADER);
  return frame;
}

export const jsonFrame = (type: number, value: unknown): Buffer => frameOf(type, Buffer.from(JSON.stringify(value)));

/** Takes a stream in chunks of any size. */
export class CaptureReader {
  #rest: Buffer = Buffer.alloc(0);
  #head: CaptureHead | undefined;
  #verdicts = new Map<number, CaptureVerdict>();
  readonly #peers = new Map<number, CapturePeer>();
  #ended = false;

  /** The head in force. */
  get head(): CaptureHead | undefined {
    return this.#head;
  }

  /** After the last chunk: the stream came to its end, not only to an end. */
  get complete(): boolean {
    return this.#ended && this.#rest.length === 0;
  }

  /**
   * What has become whole with this chunk, in order. Packets' bytes are views, good as long as they are kept. Throws a
   * CaptureStreamError, from where it ceases to make sense; a stream that is only cut off throws nothing (`complete`).
   */
  *read(chunk: Uint8Array): Generator<CaptureItem> {
    let data = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : bufferOf(chunk);
    this.#rest = Buffer.alloc(0);
    while (data.length >= FRAME_HEADER) {
      const length = data.readUInt32LE(0);
      const type = data.readUInt32LE(4);
      if (length > MAX_FRAME_PAYLOAD || type < FRAME_HEAD || type > FRAME_END)
        throw new CaptureStreamError('not a capture stream');
      if (data.length < FRAME_HEADER + length) break;
      const payload = data.subarray(FRAME_HEADER, FRAME_HEADER + length);
      data = data.subarray(FRAME_HEADER + length);
      yield* this.#frame(type, payload);
    }
    this.#rest = data;
  }

  *#frame(type: number, payload: Buffer): Generator<CaptureItem> {
    if (this.#ended) throw new CaptureStreamError('the capture stream goes on behind its end');
    if (type === FRAME_HEAD) {
      this.#head = jsonOf(payload, isHead);
      this.#verdicts = new Map(this.#head.verdicts.map((verdict) => [verdict.verdict, verdict]));
      yield { kind: 'head', head: this.#head };
    } else if (this.#head === undefined) {
      throw new CaptureStreamError('the capture stream has no head');
    } else if (type === FRAME_PEERS) {
      for (const [ref, peer] of Object.entries(jsonOf(payload, isPeers))) this.#peers.set(Number(ref), peer);
    } else if (type === FRAME_COUNTS) {
      yield { kind: 'counts', counts: jsonOf(payload, isCounts) };
    } else if (type === FRAME_END) {
      this.#ended = true;
      yield { kind: 'end', end: jsonOf(payload, isEnd) };
    } else {
      yield* this.#records(payload, this.#head);
    }
  }

  *#records(payload: Buffer, head: CaptureHead): Generator<CaptureItem> {
    for (let at = 0; at < payload.length; ) {
      const left = payload.length - at;
      const size = left < record.RECORD_HEADER ? 0 : payload.readInt32LE(at);
      if (size < record.RECORD_HEADER || size > left || size % record.RECORD_ALIGN !== 0) {
        throw new CaptureStreamError('the capture stream has a damaged record');
      }
      yield { kind: 'packet', packet: this.#packet(payload.subarray(at, at + size), head) };
      at += size;
    }
  }

  #packet(data: Buffer, head: CaptureHead): CapturedPacket {
    const word = (index: number): number => data.readInt32LE(index * 4);
    const captured = word(record.RECORD_CAPTURED);
    if (captured < 0 || captured > data.length - record.RECORD_HEADER) {
      throw new CaptureStreamError('the capture stream has a damaged record');
    }
    const where = record.RECORD_WHERE * 4;
    const place = data[where];
    const underlay = place === record.UNDERLAY_IN || place === record.UNDERLAY_OUT;
    const verdict = data.readUInt16LE(record.RECORD_VERDICT * 4);
    const nanoseconds = word(record.RECORD_NANOSECONDS) + head.clock.nanoseconds;
    const carry = nanoseconds >= 1e9 ? 1 : 0;
    return {
      seconds: word(record.RECORD_SECONDS) + head.clock.seconds + carry,
      nanoseconds: nanoseconds - carry * 1e9,
      side: underlay ? 'underlay' : 'device',
      direction: place === record.DEVICE_IN || place === record.UNDERLAY_OUT ? 'outbound' : 'inbound',
      entering: place === record.DEVICE_IN || place === record.UNDERLAY_IN,
      network: data[where + 1] === record.NO_NETWORK ? undefined : data[where + 1],
      worker: data[where + 2],
      verdict: this.#verdicts.get(verdict) ?? { verdict, name: `verdict ${verdict}`, kind: 'dropped' },
      peer: this.#peers.get(word(record.RECORD_PEER)),
      length: word(record.RECORD_LENGTH),
      bytes: data.subarray(record.RECORD_HEADER, record.RECORD_HEADER + captured),
      segment: data.readUInt16LE(record.RECORD_VERDICT * 4 + 2),
      checksumLeft: (data[where + 3] & record.RECORD_FLAG_PARTIAL) !== 0,
      outer: underlay ? outerOf(data, place, head) : undefined,
    };
  }
}

function outerOf(data: Buffer, place: number, { underlay }: CaptureHead): CapturedOuter {
  const at = record.RECORD_OUTER * 4;
  const [tos, sender, index] = data.subarray(at, at + 3);
  const name = record.RECORD_NAME * 4;
  const family = index === 0 ? 4 : 6;
  return {
    family,
    address: data.subarray(name + (family === 4 ? 4 : 8), name + (family === 4 ? 8 : 24)),
    port: data.readUInt16BE(name + 2),
    ownPort: (place === record.UNDERLAY_OUT ? underlay.sourcePorts[index]?.[sender] : undefined) ?? underlay.port,
    tos,
  };
}

const bufferOf = (bytes: Uint8Array): Buffer => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Throws a CaptureStreamError, unless the frame is JSON and what it should be. */
function jsonOf<Value>(payload: Buffer, check: (value: unknown) => value is Value): Value {
  let value: unknown;
  try {
    value = JSON.parse(payload.toString());
  } catch {
    // Said below.
  }
  if (check(value)) return value;
  throw new CaptureStreamError('the capture stream has a damaged frame');
}

type Fields = Readonly<Record<string, unknown>>;
const isObject = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const hasNumbers = (value: unknown, ...names: readonly string[]): value is Fields =>
  isObject(value) && names.every((name) => typeof value[name] === 'number');
const isListOf = (value: unknown, check: (item: unknown) => boolean): boolean =>
  Array.isArray(value) && value.every((item) => check(item));
const isNumber = (value: unknown): boolean => typeof value === 'number';
const isText = (value: unknown): boolean => typeof value === 'string';

const isVerdict = (value: unknown): boolean => hasNumbers(value, 'verdict') && isText(value.name) && isText(value.kind);
const isCounts = (value: unknown): value is CaptureCounts => hasNumbers(value, 'captured', 'lost');
const isEnd = (value: unknown): value is CaptureEnd =>
  hasNumbers(value, 'captured', 'lost') && isText((value as Fields).reason);
const isPeers = (value: unknown): value is Record<string, CapturePeer> =>
  isObject(value) && Object.values(value).every((peer) => isObject(peer) && isText(peer.name) && isText(peer.address));

function isHead(value: unknown): value is CaptureHead {
  if (!hasNumbers(value, 'snaplen')) return false;
  const { mode, version, devices, underlay, clock, verdicts } = value as Fields;
  return (
    (mode === 'l2' || mode === 'l3') &&
    isText(version) &&
    hasNumbers(clock, 'seconds', 'nanoseconds') &&
    isListOf(devices, (one) => hasNumbers(one, 'mtu') && isText((one as Fields).name)) &&
    isListOf(verdicts, isVerdict) &&
    hasNumbers(underlay, 'mtu', 'port') &&
    isListOf((underlay as Fields).addresses, isText) &&
    isListOf((underlay as Fields).sourcePorts, (ports) => isListOf(ports, isNumber))
  );
}
