/**
 * Writes pcapng (IETF draft-ietf-opsawg-pcapng), little-endian, one section, timestamps in nanoseconds: pure functions that
 * make whole blocks, so that what has been written up to any block is a readable file.
 *
 *     section header │ interface description … │ enhanced packet … │ interface statistics …
 */
import {
  BLOCK_OVERHEAD,
  BYTE_ORDER_MAGIC,
  COMMENT,
  END_OF_OPTIONS,
  ENHANCED_PACKET,
  ENHANCED_PACKET_HEADER,
  FLAG_INBOUND,
  FLAG_OUTBOUND,
  INTERFACE_DESCRIPTION,
  INTERFACE_NAME,
  INTERFACE_RESOLUTION,
  INTERFACE_STATISTICS,
  INTERFACE_TEXT,
  PACKET_FLAGS,
  SECTION_APPLICATION,
  SECTION_HEADER,
  SECTION_OS,
  STATISTICS_DROPPED,
  STATISTICS_END,
  STATISTICS_RECEIVED,
  STATISTICS_START,
  UNKNOWN_LENGTH,
} from './pcapng-format.js';

/** Who wrote a file. */
export interface Section {
  readonly application: string;
  readonly os: string;
  readonly comment?: string;
}

/** Interfaces have numbers from 0 in the order of their blocks. */
export interface Interface {
  readonly name: string;
  readonly description: string;
  readonly linkType: number;
  /** Most bytes kept of a packet; 0: all. */
  readonly snaplen: number;
}

export interface Packet {
  readonly interface: number;
  /** Nanoseconds since 1970, UTC. */
  readonly time: bigint;
  /** What was kept of it, in pieces that follow each other. */
  readonly pieces: readonly Uint8Array[];
  /** Bytes that it had. */
  readonly length: number;
  readonly direction: 'in' | 'out';
  readonly comment: string;
}

export interface Statistics {
  readonly interface: number;
  /** Nanoseconds since 1970, UTC; of the capture, and of this block. */
  readonly start: bigint;
  readonly end: bigint;
  readonly received: number;
  readonly dropped: number;
}

/** Longest text of an option: its length has 16 bits. */
const MOST_TEXT = 65535;

const padded = (length: number): number => (length + 3) & ~3;

/** One block, filled from the front. Multi-byte fields are little-endian. */
class Block {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  #at = 8;

  /** `body`: bytes between the two lengths, a multiple of 4. */
  constructor(type: number, body: number) {
    this.bytes = new Uint8Array(body + BLOCK_OVERHEAD);
    this.#view = new DataView(this.bytes.buffer);
    this.#view.setUint32(0, type, true);
    this.#view.setUint32(4, this.bytes.length, true);
    this.#view.setUint32(this.bytes.length - 4, this.bytes.length, true);
  }

  u16(...values: readonly number[]): this {
    for (const value of values) {
      this.#view.setUint16(this.#at, value, true);
      this.#at += 2;
    }
    return this;
  }

  u32(...values: readonly number[]): this {
    for (const value of values) {
      this.#view.setUint32(this.#at, value, true);
      this.#at += 4;
    }
    return this;
  }

  /** Timestamps are written high word first, in either byte order. */
  time(nanoseconds: bigint): this {
    return this.u32(Number((nanoseconds >> 32n) & 0xffffffffn), Number(nanoseconds & 0xffffffffn));
  }

  /** The pieces, then padding. */
  padded(...pieces: readonly Uint8Array[]): this {
    for (const piece of pieces) {
      this.bytes.set(piece, this.#at);
      this.#at += piece.length;
    }
    this.#at = padded(this.#at);
    return this;
  }

  options(options: readonly Option[]): this {
    for (const [code, value] of options) this.u16(code, value.length).padded(value);
    return this.u16(END_OF_OPTIONS, 0);
  }
}

type Option = readonly [code: number, value: Uint8Array];

const lengthOf = (options: readonly Option[]): number =>
  options.reduce((sum, [, value]) => sum + 4 + padded(value.length), 4);

/** Most comments are said again and again. */
const encoded = new Map<string, Uint8Array>();
const MOST_ENCODED = 4096;

function comment(value: string): Uint8Array {
  const known = encoded.get(value);
  if (known) return known;
  const bytes = text(value);
  if (encoded.size === MOST_ENCODED) encoded.clear();
  encoded.set(value, bytes);
  return bytes;
}

/** Valid UTF-8 of at most 65,535 bytes; a text that is longer is cut. */
function text(value: string): Uint8Array {
  const bytes = Buffer.from(value);
  return bytes.length <= MOST_TEXT
    ? bytes
    : Buffer.from(bytes.toString('utf8', 0, MOST_TEXT - 3)).subarray(0, MOST_TEXT);
}

function words(...values: readonly number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  for (const [i, value] of values.entries()) view.setUint32(4 * i, value, true);
  return new Uint8Array(view.buffer);
}

const timeWords = (nanoseconds: bigint): Uint8Array =>
  words(Number(nanoseconds >> 32n), Number(nanoseconds & 0xffffffffn));

/** A count of 64 bits, which the formats write low word first when they are little-endian. */
const count = (value: number): Uint8Array => words(value % 2 ** 32, Math.floor(value / 2 ** 32));

export function sectionBlock({ application, os, comment: said }: Section): Uint8Array {
  const options: Option[] = [
    [SECTION_OS, text(os)],
    [SECTION_APPLICATION, text(application)],
  ];
  if (said !== undefined) options.push([COMMENT, text(said)]);
  return new Block(SECTION_HEADER, 16 + lengthOf(options))
    .u32(BYTE_ORDER_MAGIC)
    .u16(1, 0)
    .u32(UNKNOWN_LENGTH, UNKNOWN_LENGTH)
    .options(options).bytes;
}

export function interfaceBlock({ name, description, linkType, snaplen }: Interface): Uint8Array {
  const options: Option[] = [
    [INTERFACE_NAME, text(name)],
    [INTERFACE_TEXT, text(description)],
    [INTERFACE_RESOLUTION, Uint8Array.of(9)],
  ];
  return new Block(INTERFACE_DESCRIPTION, 8 + lengthOf(options)).u16(linkType, 0).u32(snaplen).options(options).bytes;
}

const DIRECTIONS = { in: words(FLAG_INBOUND), out: words(FLAG_OUTBOUND) } as const;

export function packetBlock(packet: Packet): Uint8Array {
  const { pieces, time, length, direction } = packet;
  const captured = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const options: Option[] = [
    [PACKET_FLAGS, DIRECTIONS[direction]],
    [COMMENT, comment(packet.comment)],
  ];
  return new Block(ENHANCED_PACKET, ENHANCED_PACKET_HEADER + padded(captured) + lengthOf(options))
    .u32(packet.interface)
    .time(time)
    .u32(captured, length)
    .padded(...pieces)
    .options(options).bytes;
}

export function statisticsBlock(statistics: Statistics): Uint8Array {
  const { start, end, received, dropped } = statistics;
  const options: Option[] = [
    [STATISTICS_START, timeWords(start)],
    [STATISTICS_END, timeWords(end)],
    [STATISTICS_RECEIVED, count(received)],
    [STATISTICS_DROPPED, count(dropped)],
  ];
  return new Block(INTERFACE_STATISTICS, 12 + lengthOf(options)).u32(statistics.interface).time(end).options(options)
    .bytes;
}
