/**
 * Reads capture files of any program as a stream: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), in both byte
 * orders, with timestamps of any resolution. Files come from elsewhere: every length is checked before it is believed, memory is
 * bounded, and what is wrong is a BadCapture of one line that says where.
 */
import { Parser } from 'binary-parser';
import { SetupError } from '../../io/setup-error.js';
import { ByteQueue } from './byte-queue.js';
import {
  BLOCK_HEADER,
  BLOCK_OVERHEAD,
  BYTE_ORDER_MAGIC,
  COMMENT,
  END_OF_OPTIONS,
  ENHANCED_PACKET,
  ENHANCED_PACKET_HEADER,
  FLAG_DIRECTION,
  FLAG_INBOUND,
  FLAG_OUTBOUND,
  INTERFACE_DESCRIPTION,
  INTERFACE_NAME,
  INTERFACE_OFFSET,
  INTERFACE_RESOLUTION,
  INTERFACE_TEXT,
  PACKET,
  PACKET_FLAGS,
  PCAP_HEADER,
  PCAP_MICROSECONDS,
  PCAP_NANOSECONDS,
  PCAP_RECORD_HEADER,
  SECTION_HEADER,
  SIMPLE_PACKET,
} from './pcapng-format.js';

/** A file is damaged, cut short, or no capture. */
export class BadCapture extends SetupError {
  constructor(message: string) {
    super('BAD_CAPTURE', message);
    this.name = 'BadCapture';
  }
}

/** Where packets were seen, as far as the file says. */
export interface FileInterface {
  readonly name: string | undefined;
  readonly description: string | undefined;
  readonly linkType: number;
}

/** One packet of a file. */
export interface FilePacket {
  readonly interface: FileInterface;
  /** Nanoseconds since 1970, UTC; undefined where the file has none. */
  readonly time: bigint | undefined;
  /** What was kept of it. */
  readonly bytes: Uint8Array;
  /** Bytes that it had. */
  readonly length: number;
  readonly direction: 'in' | 'out' | undefined;
  readonly comments: readonly string[];
}

type Order = 'big' | 'little';

/** Longest block or packet that is believed: longer ones are damage. */
const MOST_BLOCK = 16 << 20;
/** Interfaces of one section. */
const MOST_INTERFACES = 65536;
const SECOND = 1_000_000_000n;

interface Fields {
  readonly section: Parser;
  readonly block: Parser;
  readonly interface: Parser;
  readonly enhanced: Parser;
  readonly packet: Parser;
  readonly option: Parser;
  readonly pcap: Parser;
  readonly record: Parser;
}

const fieldsOf = (order: Order): Fields => {
  const start = (): Parser => new Parser().endianess(order);
  return {
    section: start().uint32('magic').uint16('major').uint16('minor'),
    block: start().uint32('type').uint32('length'),
    interface: start().uint16('linkType').uint16('reserved').uint32('snaplen'),
    enhanced: start().uint32('interface').uint32('high').uint32('low').uint32('captured').uint32('length'),
    packet: start()
      .uint16('interface')
      .uint16('drops')
      .uint32('high')
      .uint32('low')
      .uint32('captured')
      .uint32('length'),
    option: start().uint16('code').uint16('length'),
    pcap: start().uint32('magic').uint16('major').uint16('minor').skip(8).uint32('snaplen').uint32('linkType'),
    record: start().uint32('seconds').uint32('fraction').uint32('captured').uint32('length'),
  };
};
const FIELDS: Readonly<Record<Order, Fields>> = { big: fieldsOf('big'), little: fieldsOf('little') };

const read = <T>(parser: Parser, bytes: Uint8Array): T => parser.parse(bytes) as T;

const word = (bytes: Uint8Array, at: number, order: Order): number =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(at, order === 'little');

/** The packets of a file, in its order; the stream is read as they are asked for. Rejects with a BadCapture. */
export async function* readCapture(source: AsyncIterable<Uint8Array>): AsyncGenerator<FilePacket> {
  const bytes = new ByteQueue(source);
  try {
    const magic = await bytes.take(4);
    if (!magic) throw new BadCapture(bytes.held === 0 ? 'the file is empty' : NO_CAPTURE);
    if (word(magic, 0, 'big') === SECTION_HEADER) {
      yield* readPcapng(bytes);
      return;
    }
    for (const order of ['little', 'big'] as const) {
      const first = word(magic, 0, order);
      if (first === PCAP_MICROSECONDS) yield* readPcap(bytes, order, 1000n);
      else if (first === PCAP_NANOSECONDS) yield* readPcap(bytes, order, 1n);
      else continue;
      return;
    }
    throw new BadCapture(NO_CAPTURE);
  } finally {
    await bytes.close();
  }
}

const NO_CAPTURE = 'neither pcap nor pcapng';

// --- pcap ---

/** The magic number has been taken. */
async function* readPcap(bytes: ByteQueue, order: Order, unit: bigint): AsyncGenerator<FilePacket> {
  const rest = await bytes.take(PCAP_HEADER - 4);
  if (!rest) throw cut(bytes, 'the file header');
  const whole = new Uint8Array(PCAP_HEADER);
  whole.set(rest, 4);
  const header = read<{ major: number; minor: number; linkType: number }>(FIELDS[order].pcap, whole);
  if (header.major !== 2) throw new BadCapture(`pcap of version ${header.major}.${header.minor}: expected 2`);
  // The upper bits tell of frame check sequences.
  const seenBy = { name: undefined, description: undefined, linkType: header.linkType & 0xffff };
  for (;;) {
    const at = bytes.position;
    const record = await bytes.take(PCAP_RECORD_HEADER);
    if (!record) {
      if (bytes.held > 0) throw cut(bytes, 'a packet header');
      return;
    }
    const { seconds, fraction, captured, length } = read<{
      seconds: number;
      fraction: number;
      captured: number;
      length: number;
    }>(FIELDS[order].record, record);
    if (captured > MOST_BLOCK) throw damaged(at, `a packet of ${captured} bytes`);
    const packet = await bytes.take(captured);
    if (!packet) throw cut(bytes, `a packet of ${captured} bytes`);
    yield {
      interface: seenBy,
      time: BigInt(seconds) * SECOND + BigInt(fraction) * unit,
      bytes: packet,
      length: Math.max(length, captured),
      direction: undefined,
      comments: [],
    };
  }
}

// --- pcapng ---

interface KnownInterface extends FileInterface {
  readonly snaplen: number;
  readonly nanoseconds: (units: bigint) => bigint;
}

/** One block after the other; the type of the first, a section header, has been taken. */
async function* readPcapng(bytes: ByteQueue): AsyncGenerator<FilePacket> {
  let order: Order = 'little';
  let interfaces: KnownInterface[] = [];
  let typeTaken = true;
  for (;;) {
    const at = typeTaken ? 0 : bytes.position;
    const head = await bytes.take(typeTaken ? BLOCK_HEADER - 4 : BLOCK_HEADER);
    if (!head) {
      if (bytes.held > 0 || typeTaken) throw cut(bytes, 'the head of a block');
      return;
    }
    const isSection = typeTaken || word(head, 0, 'big') === SECTION_HEADER;
    // A section says its byte order only behind its length.
    const magic = isSection ? await bytes.take(4) : undefined;
    if (isSection) {
      if (!magic) throw cut(bytes, 'a section header');
      order = orderOf(magic, at);
      interfaces = [];
    }
    const length = word(head, head.length - 4, order);
    const taken = BLOCK_HEADER + (magic?.length ?? 0);
    typeTaken = false;
    if (length % 4 !== 0 || length < taken + 4 || length > MOST_BLOCK) throw damaged(at, `a block of ${length} bytes`);
    const rest = await bytes.take(length - taken);
    if (!rest) throw cut(bytes, `a block of ${length} bytes`);
    if (word(rest, rest.length - 4, order) !== length) throw damaged(at, 'a block whose two lengths differ');
    const body = rest.subarray(0, rest.length - 4);
    if (isSection) {
      checkVersion(body, order, at);
      continue;
    }
    const type = word(head, 0, order);
    if (type === INTERFACE_DESCRIPTION) {
      if (interfaces.length === MOST_INTERFACES) throw damaged(at, `more than ${MOST_INTERFACES} interfaces`);
      interfaces.push(readInterface(body, order, at));
    }
    const packet = readBlock(type, body, order, interfaces, at);
    if (packet) yield packet;
  }
}

function orderOf(magic: Uint8Array, at: number): Order {
  if (word(magic, 0, 'little') === BYTE_ORDER_MAGIC) return 'little';
  if (word(magic, 0, 'big') === BYTE_ORDER_MAGIC) return 'big';
  throw damaged(at, 'a section without its byte order');
}

function checkVersion(body: Uint8Array, order: Order, at: number): void {
  if (body.length < 12) throw damaged(at, 'a section header that is too short');
  const magic = new Uint8Array(8);
  magic.set(body.subarray(0, 4), 4);
  const { major, minor } = read<{ major: number; minor: number }>(FIELDS[order].section, magic);
  if (major !== 1) throw new BadCapture(`pcapng of version ${major}.${minor}: expected 1`);
}

function readInterface(body: Uint8Array, order: Order, at: number): KnownInterface {
  if (body.length < 8) throw damaged(at, 'an interface that is too short');
  const { linkType, snaplen } = read<{ linkType: number; snaplen: number }>(FIELDS[order].interface, body);
  let name: string | undefined;
  let description: string | undefined;
  let resolution = 6;
  let offset = 0n;
  for (const [code, value] of optionsIn(body.subarray(8), order, at)) {
    if (code === INTERFACE_NAME) name = textIn(value);
    else if (code === INTERFACE_TEXT) description = textIn(value);
    else if (code === INTERFACE_RESOLUTION && value.length === 1) resolution = value[0];
    else if (code === INTERFACE_OFFSET && value.length === 8) offset = signed64(value, order) * SECOND;
  }
  const exponent = BigInt(resolution & 0x7f);
  const unitsInSecond = resolution & 0x80 ? 2n ** exponent : 10n ** exponent;
  const nanoseconds = (units: bigint): bigint => (units * SECOND) / unitsInSecond + offset;
  return { name, description, linkType, snaplen, nanoseconds };
}

/** The packet of a block; undefined if it is another kind of block, which readers skip. */
function readBlock(
  type: number,
  body: Uint8Array,
  order: Order,
  interfaces: readonly KnownInterface[],
  at: number,
): FilePacket | undefined {
  if (type === SIMPLE_PACKET) return readSimplePacket(body, order, interfaces, at);
  if (type !== ENHANCED_PACKET && type !== PACKET) return undefined;
  if (body.length < ENHANCED_PACKET_HEADER) throw damaged(at, 'a packet block that is too short');
  const fields = type === PACKET ? FIELDS[order].packet : FIELDS[order].enhanced;
  const {
    interface: number,
    high,
    low,
    captured,
    length,
  } = read<{
    interface: number;
    high: number;
    low: number;
    captured: number;
    length: number;
  }>(fields, body);
  const seenBy = interfaces[number];
  if (!seenBy) throw damaged(at, `a packet of interface ${number}, which is not described`);
  const end = ENHANCED_PACKET_HEADER + captured;
  if (end > body.length)
    throw damaged(at, `a packet of ${captured} bytes in a block of ${body.length + BLOCK_OVERHEAD}`);
  let flags = 0;
  const comments: string[] = [];
  for (const [code, value] of optionsIn(body.subarray((end + 3) & ~3), order, at)) {
    if (code === COMMENT) comments.push(textIn(value));
    else if (code === PACKET_FLAGS && value.length === 4) flags = word(value, 0, order);
  }
  return {
    interface: seenBy,
    time: seenBy.nanoseconds((BigInt(high) << 32n) | BigInt(low)),
    bytes: body.subarray(ENHANCED_PACKET_HEADER, end),
    length: Math.max(length, captured),
    direction: DIRECTIONS[flags & FLAG_DIRECTION],
    comments,
  };
}

const DIRECTIONS: Readonly<Record<number, 'in' | 'out'>> = { [FLAG_INBOUND]: 'in', [FLAG_OUTBOUND]: 'out' };

/** It is of the first interface, has no time, and says only how long it was. */
function readSimplePacket(body: Uint8Array, order: Order, [seenBy]: readonly KnownInterface[], at: number): FilePacket {
  if (body.length < 4) throw damaged(at, 'a packet block that is too short');
  if (!seenBy) throw damaged(at, 'a packet before any interface');
  const length = word(body, 0, order);
  const kept = Math.min(length, seenBy.snaplen || length, body.length - 4);
  const bytes = body.subarray(4, 4 + kept);
  return { interface: seenBy, time: undefined, bytes, length, direction: undefined, comments: [] };
}

/** Each is a code, a length and a value that is padded to four bytes. They end where they say so, or with the block. */
function optionsIn(bytes: Uint8Array, order: Order, at: number): [code: number, value: Uint8Array][] {
  const found: [number, Uint8Array][] = [];
  for (let next = 0; next + 4 <= bytes.length; ) {
    const { code, length } = read<{ code: number; length: number }>(
      FIELDS[order].option,
      bytes.subarray(next, next + 4),
    );
    if (code === END_OF_OPTIONS) break;
    const from = next + 4;
    if (from + length > bytes.length) throw damaged(at, `an option of ${length} bytes beyond its block`);
    found.push([code, bytes.subarray(from, from + length)]);
    next = from + ((length + 3) & ~3);
  }
  return found;
}

/** Some writers end texts with a zero byte. */
const textIn = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf8').replace(/\0+$/, '');

function signed64(bytes: Uint8Array, order: Order): bigint {
  return new DataView(bytes.buffer, bytes.byteOffset, 8).getBigInt64(0, order === 'little');
}

// --- errors ---

const damaged = (at: number, what: string): BadCapture => new BadCapture(`damaged at byte ${at}: ${what}`);
const cut = (bytes: ByteQueue, what: string): BadCapture =>
  new BadCapture(`cut short at byte ${bytes.position + bytes.held}, within ${what}`);
