/**
 * What the dataplane asks of a device and of a socket. The real ones (tun-device.ts, udp-socket.ts) and the in-memory ones
 * (memory-device.ts, memory-socket.ts) implement the same contracts, on the same arrays in the engine's memory.
 *
 * Nothing here allocates, blocks or throws. Results below 0 are -errno.
 */

/** The host's end: whole IP packets (layer 2: Ethernet frames), each behind a virtio_net_hdr of 10 bytes. */
export interface Device {
  /**
   * Reads one packet to byte `at`, where MAX_FRAME bytes must be free, and its virtio header to `layout.vnetIn`.
   * Returns the packet's length, or -errno (-EAGAIN: none waits).
   */
  pull(at: number): number;
  /**
   * Writes the packet of `length` bytes at `at`; its virtio header lies in the 10 bytes before. The device has taken what it
   * needs when the call returns. Returns 0, or -errno: then it took nothing.
   */
  push(at: number, length: number): number;
}

/** The network's end: one underlay socket. */
export interface Socket {
  /**
   * Receives up to RECEIVE_MESSAGES messages into the arrays at `layout.receive`; they are valid until the next pull of any
   * socket of this worker. Returns how many, or -errno (-EAGAIN: none waits).
   */
  pull(): number;
  /**
   * Sends messages `first` to `first + count - 1` of this underlay's arrays at `layout.send`. Returns how many were taken (at
   * least one), or -errno of message `first`. What was taken may be overwritten when the call returns.
   */
  push(first: number, count: number): number;
}

export const EPERM = 1;
export const EINTR = 4;
export const EIO = 5;
export const EAGAIN = 11;
export const EINVAL = 22;
export const EBADFD = 77;
export const EMSGSIZE = 90;
