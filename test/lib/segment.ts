/**
 * What a network card with TSO or USO would make of a super-packet, in plain TypeScript: the reference for the split kernel
 * and for whatever the engine sends. Works on whole packets through packets.ts and decode.ts only.
 */
import type { DevicePacket } from '../../src/io/memory-device.js';
import { decode, decodeVnet } from './decode.js';
import { CWR, checksum, concat, FIN, onesSum, PSH, pseudoSum, UDP } from './packets.js';

const pseudoOf = (bytes: Uint8Array, protocol: number, length: number): number =>
  bytes[0] >> 4 === 4
    ? pseudoSum(bytes.subarray(12, 16), bytes.subarray(16, 20), protocol, length)
    : pseudoSum(bytes.subarray(8, 24), bytes.subarray(24, 40), protocol, length);

/** Packets as they leave a card: a super-packet's segments, or the one packet with its checksum finished. */
export function onTheWire({ vnet, bytes }: DevicePacket): Uint8Array[] {
  const virtio = decodeVnet(vnet);
  if ((virtio.type & 0x7f) === 0) {
    if (!(virtio.flags & 1)) return [bytes];
    const whole = Uint8Array.from(bytes);
    const at = virtio.start + virtio.offset;
    const value = 0xffff - onesSum(bytes.subarray(virtio.start));
    new DataView(whole.buffer).setUint16(at, value === 0 ? 0xffff : value);
    return [whole];
  }
  const ip = decode(bytes, 'partial');
  const headers = ip.l4At + (ip.tcp ? ip.tcp.dataOffset * 4 : 8);
  const payload = bytes.subarray(headers);
  const count = Math.ceil(payload.length / virtio.size);
  return Array.from({ length: count }, (_, i) => {
    const part = payload.subarray(i * virtio.size, (i + 1) * virtio.size);
    const segment = concat(bytes.subarray(0, headers), part);
    const view = new DataView(segment.buffer);
    if (ip.family === 4) {
      view.setUint16(2, segment.length);
      view.setUint16(4, (ip.id + i) & 0xffff);
      view.setUint16(10, 0);
      view.setUint16(10, checksum(segment.subarray(0, ip.l4At)));
    } else {
      view.setUint16(4, segment.length - 40);
    }
    const field = ip.l4At + (ip.protocol === UDP ? 6 : 16);
    if (ip.tcp) {
      view.setUint32(ip.l4At + 4, (ip.tcp.seq + i * virtio.size) >>> 0);
      let { flags } = ip.tcp;
      if (i < count - 1) flags &= ~(FIN | PSH);
      if (i > 0) flags &= ~CWR;
      view.setUint8(ip.l4At + 13, flags);
    } else {
      view.setUint16(ip.l4At + 4, segment.length - ip.l4At);
    }
    view.setUint16(field, 0);
    const value = checksum(segment.subarray(ip.l4At), pseudoOf(bytes, ip.protocol, segment.length - ip.l4At));
    view.setUint16(field, value === 0 && ip.protocol === UDP ? 0xffff : value);
    return segment;
  });
}

/** The same packets with the TTL or hop limit one lower. */
export function hop(bytes: Uint8Array): Uint8Array {
  const copy = Uint8Array.from(bytes);
  if (copy[0] >> 4 === 6) {
    copy[7]--;
    return copy;
  }
  copy[8]--;
  const view = new DataView(copy.buffer);
  view.setUint16(10, 0);
  view.setUint16(10, checksum(copy.subarray(0, (copy[0] & 15) * 4)));
  return copy;
}
