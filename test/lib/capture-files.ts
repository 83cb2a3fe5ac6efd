/** Capture files as other programs write them, byte by byte and in either byte order: shares nothing with src/commands. */
import { concat } from './packets.js';

export type Order = 'big' | 'little';

const word = (order: Order, bytes: 2 | 4, value: number): Uint8Array => {
  const view = new DataView(new ArrayBuffer(bytes));
  if (bytes === 2) view.setUint16(0, value, order === 'little');
  else view.setUint32(0, value, order === 'little');
  return new Uint8Array(view.buffer);
};
export const u16 = (order: Order, ...values: readonly number[]): Uint8Array =>
  concat(...values.map((value) => word(order, 2, value)));
export const u32 = (order: Order, ...values: readonly number[]): Uint8Array =>
  concat(...values.map((value) => word(order, 4, value)));

export interface Seen {
  readonly seconds: number;
  /** In the file's own units. */
  readonly fraction: number;
  readonly bytes: Uint8Array;
  /** Default: all of it. */
  readonly length?: number;
}

export interface PcapSpec {
  readonly order: Order;
  readonly nanoseconds?: boolean;
  readonly linkType: number;
}

export function pcapFile({ order, nanoseconds = false, linkType }: PcapSpec, packets: readonly Seen[]): Uint8Array {
  const head = concat(
    u32(order, nanoseconds ? 0xa1b23c4d : 0xa1b2c3d4),
    u16(order, 2, 4),
    u32(order, 0, 0, 262144, linkType),
  );
  const records = packets.map(({ seconds, fraction, bytes, length = bytes.length }) =>
    concat(u32(order, seconds, fraction, bytes.length, length), bytes),
  );
  return concat(head, ...records);
}

const padding = (length: number): Uint8Array => new Uint8Array(-length & 3);

export function block(order: Order, type: number, body: Uint8Array): Uint8Array {
  const length = body.length + padding(body.length).length + 12;
  return concat(u32(order, type, length), body, padding(body.length), u32(order, length));
}

export type FileOption = readonly [code: number, value: Uint8Array];

const options = (order: Order, list: readonly FileOption[]): Uint8Array =>
  list.length === 0
    ? new Uint8Array(0)
    : concat(
        ...list.map(([code, value]) => concat(u16(order, code, value.length), value, padding(value.length))),
        u16(order, 0, 0),
      );

export const section = (order: Order, list: readonly FileOption[] = []): Uint8Array =>
  block(
    order,
    0x0a0d0d0a,
    concat(u32(order, 0x1a2b3c4d), u16(order, 1, 0), u32(order, 0xffffffff, 0xffffffff), options(order, list)),
  );

export const interfaceOf = (
  order: Order,
  linkType: number,
  list: readonly FileOption[] = [],
  snaplen = 0,
): Uint8Array => block(order, 1, concat(u16(order, linkType, 0), u32(order, snaplen), options(order, list)));

export interface Enhanced {
  readonly interface?: number;
  /** In the interface's units. */
  readonly time: bigint;
  readonly bytes: Uint8Array;
  readonly length?: number;
  readonly options?: readonly FileOption[];
}

const units = (order: Order, time: bigint): Uint8Array => u32(order, Number(time >> 32n), Number(time & 0xffffffffn));

export function enhanced(order: Order, packet: Enhanced): Uint8Array {
  const { time, bytes, length = bytes.length, options: list = [] } = packet;
  const head = concat(u32(order, packet.interface ?? 0), units(order, time), u32(order, bytes.length, length));
  return block(order, 6, concat(head, bytes, padding(bytes.length), options(order, list)));
}

/** The obsolete packet block. */
export function oldPacket(
  order: Order,
  { time, bytes, length = bytes.length, interface: number = 0 }: Enhanced,
): Uint8Array {
  const head = concat(u16(order, number, 0xffff), units(order, time), u32(order, bytes.length, length));
  return block(order, 2, concat(head, bytes));
}

export const simple = (order: Order, bytes: Uint8Array, length = bytes.length): Uint8Array =>
  block(order, 3, concat(u32(order, length), bytes));

/** Name resolution, which a reader of packets skips. */
export const names = (order: Order): Uint8Array =>
  block(order, 4, concat(u16(order, 1, 8), [192, 0, 2, 1], [97, 98, 99, 0], u16(order, 0, 0)));

export const textOption = (code: number, text: string): FileOption => [code, Buffer.from(text)];
