/** Packets for the benchmarks, built plainly; their checksums come from the kernels, which have tests of their own. */
import type { DevicePacket } from '../src/io/memory-device.js';
import { NO_VNET } from '../src/io/memory-device.js';
import type { IncomingMessage } from '../src/io/memory-socket.js';

/** One's complement checksum of 16-bit big-endian words (RFC 1071), the slow and obvious way. */
export function checksum(bytes: Uint8Array, seed = 0): number {
  let sum = seed;
  for (let i = 0; i < bytes.length; i++) sum += bytes[i] << (i & 1 ? 0 : 8);
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 65536);
  return ~sum & 0xffff;
}

const put16 = (bytes: Uint8Array, at: number, value: number): void => {
  bytes[at] = value >> 8;
  bytes[at + 1] = value & 255;
};

function ipv4(source: number, destination: number, protocol: number, total: number): Uint8Array {
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  bytes[0] = 0x45;
  put16(bytes, 2, total);
  put16(bytes, 6, 0x4000);
  bytes[8] = 64;
  bytes[9] = protocol;
  view.setUint32(12, source);
  view.setUint32(16, destination);
  put16(bytes, 10, checksum(bytes.subarray(0, 20)));
  return bytes;
}

function transportChecksum(bytes: Uint8Array, offset: number): void {
  const length = bytes.length - 20;
  const pseudo = new Uint8Array(12);
  pseudo.set(bytes.subarray(12, 20));
  pseudo[9] = bytes[9];
  put16(pseudo, 10, length);
  const sum = ~checksum(pseudo) & 0xffff;
  put16(bytes, 20 + offset, checksum(bytes.subarray(20), sum) || 0xffff);
}

/** An IPv4 UDP packet of `total` bytes. Addresses in host byte order. */
export function udp(source: number, destination: number, total: number, port = 4000): Uint8Array {
  const bytes = ipv4(source, destination, 17, total);
  put16(bytes, 20, port);
  put16(bytes, 22, 5000);
  put16(bytes, 24, total - 20);
  transportChecksum(bytes, 6);
  return bytes;
}

/** An IPv4 TCP data segment with timestamps (32 bytes of header), as Linux sends them. */
export function tcp(source: number, destination: number, payload: number, sequence: number): Uint8Array {
  const bytes = ipv4(source, destination, 6, 52 + payload);
  const view = new DataView(bytes.buffer);
  put16(bytes, 20, 4000);
  put16(bytes, 22, 5000);
  view.setUint32(24, sequence);
  view.setUint32(28, 1);
  bytes[32] = 0x80;
  bytes[33] = 0x10;
  put16(bytes, 34, 500);
  bytes.set([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], 40);
  transportChecksum(bytes, 16);
  return bytes;
}

export const plain = (bytes: Uint8Array): DevicePacket => ({ vnet: NO_VNET, bytes });

/** A TCP super-packet as the kernel hands it over: `segments` of `size` payload bytes. */
export function superPacket(source: number, destination: number, segments: number, size: number): DevicePacket {
  const bytes = tcp(source, destination, segments * size, 1);
  const vnet = new Uint8Array(10);
  const view = new DataView(vnet.buffer);
  view.setUint8(0, 1);
  view.setUint8(1, 1);
  view.setUint16(2, 52, true);
  view.setUint16(4, size, true);
  view.setUint16(6, 20, true);
  view.setUint16(8, 16, true);
  return { vnet, bytes };
}

/** One received message of `packets`, all of one size, as UDP_GRO delivers them. */
export function message(name: Uint8Array, packets: readonly Uint8Array[]): IncomingMessage {
  const bytes = new Uint8Array(packets.reduce((sum, packet) => sum + packet.length, 0));
  let at = 0;
  for (const packet of packets) {
    bytes.set(packet, at);
    at += packet.length;
  }
  return { name, bytes, segment: packets.length > 1 ? packets[0].length : 0, tos: 0 };
}

const ETHERNET = 14;
const VXLAN = 8;
/** The network of the layer-2 benchmarks. */
export const VNI = 42;
/** Our one client's MAC. */
export const OUR_MAC = Uint8Array.of(2, 0, 0, 0, 0, 1);
export const BROADCAST = new Uint8Array(6).fill(255);

/** MAC `i` of many: locally administered, unicast. */
export const macOf = (i: number): Uint8Array => Uint8Array.of(2, 1, i >>> 24, i >> 16, i >> 8, i);

/** `count` MACs one behind the other, 6 bytes each. */
export function macList(count: number, which: (i: number) => number = (i) => i): Uint8Array {
  const list = new Uint8Array(count * 6);
  for (let i = 0; i < count; i++) list.set(macOf(which(i)), i * 6);
  return list;
}

/** An Ethernet frame around an IPv4 packet. */
export function frame(destination: Uint8Array, source: Uint8Array, packet: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(ETHERNET + packet.length);
  bytes.set(destination);
  bytes.set(source, 6);
  put16(bytes, 12, 0x0800);
  bytes.set(packet, ETHERNET);
  return bytes;
}

/** The same as a VXLAN datagram's payload (RFC 7348, section 5). */
export function vxlan(inner: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(VXLAN + inner.length);
  bytes[0] = 8;
  bytes[6] = VNI;
  bytes.set(inner, VXLAN);
  return bytes;
}

/** A super-packet as a TAP gives it. */
export function superFrame(destination: Uint8Array, source: Uint8Array, inner: DevicePacket): DevicePacket {
  const vnet = Uint8Array.from(inner.vnet);
  const view = new DataView(vnet.buffer);
  for (const field of [2, 6]) view.setUint16(field, view.getUint16(field, true) + ETHERNET, true); // hdr_len, csum_start
  return { vnet, bytes: frame(destination, source, inner.bytes) };
}
