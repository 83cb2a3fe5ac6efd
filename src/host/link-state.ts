/**
 * What the kernel says of an interface now, by ioctl: microseconds, where running `ip` would be a process. Sources: netdevice(7),
 * linux/ethtool.h.
 */
import { closeSync } from 'node:fs';
import { addressOf, ioctl, SOCK_DGRAM_NONBLOCK_CLOEXEC, socket } from '../io/syscalls.js';
import { AF_UNIX } from '../io/syscalls-constants.js';

const SIOCGIFFLAGS = 0x8913;
const SIOCGIFMTU = 0x8921;
const SIOCETHTOOL = 0x8946;
const ETHTOOL_GTXCSUM = 0x16;
const ETHTOOL_GTSO = 0x1e;
const SIZEOF_IFREQ = 40;
/** Where the union of struct ifreq begins. */
const VALUE = 16;
const IFF_UP = 0x1;
const IFF_RUNNING = 0x40;

export interface LinkState {
  /** Up, and with a carrier. */
  readonly up: boolean;
  /** Bytes. */
  readonly mtu: number;
}

/** By name, of our network namespace; what is not there is left out. */
export function linkStates(names: readonly string[]): Map<string, LinkState> {
  const found = new Map<string, LinkState>();
  withSocket((fd) => {
    for (const name of names) {
      const { request, view } = requestFor(name);
      if (ioctl(fd, SIOCGIFFLAGS, request) < 0) continue;
      const flags = view.getUint16(VALUE, true);
      if (ioctl(fd, SIOCGIFMTU, request) < 0) continue;
      found.set(name, { up: (flags & IFF_UP) !== 0 && (flags & IFF_RUNNING) !== 0, mtu: view.getInt32(VALUE, true) });
    }
  });
  return found;
}

/** What a device's own features leave to it, as `ethtool -K` has set them: checksums, and TCP segmentation. */
export interface DeviceFeatures {
  readonly checksums: boolean;
  readonly segmentation: boolean;
}

/** undefined: there is no such device, or it does not say. */
export function deviceFeatures(name: string): DeviceFeatures | undefined {
  return withSocket((fd) => {
    const [checksums, segmentation] = [ETHTOOL_GTXCSUM, ETHTOOL_GTSO].map((command) => {
      // struct ethtool_value; in a buffer of its own, which does not move.
      const value = new DataView(new ArrayBuffer(8));
      value.setUint32(0, command, true);
      const { request, view } = requestFor(name);
      view.setBigUint64(VALUE, BigInt(addressOf(new Uint8Array(value.buffer))), true);
      return ioctl(fd, SIOCETHTOOL, request) < 0 ? undefined : value.getUint32(4, true) !== 0;
    });
    return checksums === undefined || segmentation === undefined ? undefined : { checksums, segmentation };
  });
}

/** struct ifreq. */
function requestFor(name: string): { readonly request: Uint8Array; readonly view: DataView } {
  const request = new Uint8Array(SIZEOF_IFREQ);
  request.set(new TextEncoder().encode(name).subarray(0, VALUE - 1));
  return { request, view: new DataView(request.buffer) };
}

/** Any socket will do. Gives undefined where there is none to be had. */
function withSocket<T>(ask: (fd: number) => T): T | undefined {
  const fd = socket(AF_UNIX, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) return undefined;
  try {
    return ask(fd);
  } finally {
    closeSync(fd);
  }
}
