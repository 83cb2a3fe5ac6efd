/**
 * What control tells workers of a network, NETWORK_BYTES each from `layout.networks`, i32 words: the MACs that are this host's
 * own, that of the device and that of the bridge it is in. A frame from a peer with one of them as its source is our own, come
 * back (a loop).
 *
 * A MAC is two words: bytes 0..3 as a little-endian load has them, and bytes 4..5 the same way; 0 and 0: there is none.
 */
import { type EngineMemory, NETWORK_BYTES } from '../io/memory.js';
import { macHigh, macLow } from './macs.js';

/** Words of a network, from its first. */
export const NETWORK_DEVICE_MAC = 2;
export const NETWORK_BRIDGE_MAC = 4;

/** As a second word, it equals none of a frame's. */
const NOBODY = -1;

/** Control: says which MACs (six bytes) are our own; workers see it at once. */
export function writeOwnMacs(
  memory: EngineMemory,
  network: number,
  device: Uint8Array | undefined,
  bridge: Uint8Array | undefined,
): void {
  const at = (memory.layout.networks + network * NETWORK_BYTES) >> 2;
  writeMac(memory.i32, at + NETWORK_DEVICE_MAC, device);
  writeMac(memory.i32, at + NETWORK_BRIDGE_MAC, bridge);
}

function writeMac(i32: Int32Array, at: number, mac: Uint8Array | undefined): void {
  const low = mac ? macLow(mac) : 0;
  const high = mac ? macHigh(mac) : 0;
  if (i32[at] === low && i32[at + 1] === high) return;
  // A worker never sees the one half with the other one's half.
  Atomics.store(i32, at + 1, NOBODY);
  Atomics.store(i32, at, low);
  Atomics.store(i32, at + 1, high);
}
