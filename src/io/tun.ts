/**
 * TUN (layer 3, IP packets) and TAP (layer 2, Ethernet frames): the host's end of the overlay, opened by main, read and
 * written by a worker.
 *
 * Every packet crosses it behind a 10-byte virtio_net_hdr (IFF_VNET_HDR), whether or not an offload is on, so that there is
 * one path. IFF_MULTI_QUEUE lets several workers, or a successor, attach. Sources: Documentation/networking/tuntap.rst,
 * linux/if_tun.h, linux/virtio_net.h.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { OFFLOADS } from './offloads.js';
import { SetupError } from './setup-error.js';
import { errnoText, ioctl, ioctlValue } from './syscalls.js';

const TUNSETIFF = 0x400454ca;
const TUNGETIFF = 0x800454d2;
const TUNSETPERSIST = 0x400454cb;
const TUNSETOFFLOAD = 0x400454d0;
const TUNSETVNETHDRSZ = 0x400454d8;

const IFF_TUN = 0x0001;
const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;

const TUN_F_CSUM = 1;
const TUN_F_TSO4 = 2;
const TUN_F_TSO6 = 4;
const TUN_F_USO4 = 0x20;
const TUN_F_USO6 = 0x40;

const IFNAMSIZ = 16;
const SIZEOF_IFREQ = 40;
const EBADFD = -77;
const EBUSY = -16;
const EINVAL = -22;
const EPERM = -1;

export interface TunOptions {
  readonly name: string;
  /** What crosses it: IP packets, or Ethernet frames. */
  readonly kind: 'tun' | 'tap';
  /** One descriptor a worker. */
  readonly queues: number;
  /** Wanted offloads (io/offloads.ts). */
  readonly offloads: number;
}

export interface Tun {
  readonly name: string;
  readonly fds: readonly number[];
  /** Those of the wanted offloads that this kernel has. */
  readonly offloads: number;
  /** True when the device has been deleted: its descriptors are of no use any more. */
  lost(): boolean;
  /** Whether the device stays when its last descriptor is closed. */
  persist(keep: boolean): void;
  close(): void;
}

/**
 * Opens a TUN or TAP, making it if it does not exist. Throws a SetupError: no /dev/net/tun, no CAP_NET_ADMIN, or a device of
 * that name that is something else.
 */
export function openTun(options: TunOptions): Tun {
  const fds: number[] = [];
  try {
    for (let i = 0; i < options.queues; i++) fds.push(attach(options));
    const offloads = Math.min(...fds.map((fd) => setOffloads(fd, options.offloads)));
    return {
      name: options.name,
      fds,
      offloads,
      lost: () => ioctl(fds[0], TUNGETIFF, new Uint8Array(SIZEOF_IFREQ)) === EBADFD,
      persist: (keep) => void ioctlValue(fds[0], TUNSETPERSIST, keep ? 1 : 0),
      close: () => {
        for (const fd of fds) closeSync(fd);
      },
    };
  } catch (error) {
    for (const fd of fds) closeSync(fd);
    throw error;
  }
}

function openClone(): number {
  try {
    return openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENXIO' || code === 'ENODEV') {
      throw new SetupError('NO_TUN', '/dev/net/tun is missing: load the tun module, or give the container that device');
    }
    throw new SetupError(
      'NO_TUN',
      `cannot open /dev/net/tun (${code}): run as root, or give the container that device`,
    );
  }
}

function attach({ name, kind }: TunOptions): number {
  const fd = openClone();
  const request = new Uint8Array(SIZEOF_IFREQ); // struct ifreq
  request.set(new TextEncoder().encode(name).subarray(0, IFNAMSIZ - 1));
  const flags = (kind === 'tap' ? IFF_TAP : IFF_TUN) | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
  new DataView(request.buffer).setUint16(IFNAMSIZ, flags, true);
  const result = ioctl(fd, TUNSETIFF, request);
  if (result >= 0) {
    ioctl(fd, TUNSETVNETHDRSZ, new Uint8Array(Int32Array.of(10).buffer));
    return fd;
  }
  closeSync(fd);
  if (result === EPERM)
    throw new SetupError('NO_CAPABILITY', `cannot make device ${name}: CAP_NET_ADMIN is missing, run as root`);
  if (result === EBUSY || result === EINVAL) {
    throw new SetupError(
      'DEVICE_TAKEN',
      `device name ${name} is taken by another kind of interface: choose one with --device`,
    );
  }
  throw new SetupError('NO_TUN', `cannot make device ${name}: ${errnoText(result)}`);
}

/** Turns on those of `wanted` that the kernel has, and says which: older kernels answer EINVAL to bits they don't know. */
function setOffloads(fd: number, wanted: number): number {
  const deviceBits = OFFLOADS.csum | OFFLOADS.tso4 | OFFLOADS.tso6 | OFFLOADS.uso;
  const tries = [
    wanted,
    wanted & ~OFFLOADS.uso,
    wanted & ~(OFFLOADS.uso | OFFLOADS.tso6 | OFFLOADS.tso4),
    wanted & ~deviceBits,
  ];
  for (const bits of tries) {
    const flags =
      (bits & OFFLOADS.csum ? TUN_F_CSUM : 0) |
      (bits & OFFLOADS.tso4 ? TUN_F_TSO4 : 0) |
      (bits & OFFLOADS.tso6 ? TUN_F_TSO6 : 0) |
      (bits & OFFLOADS.uso ? TUN_F_USO4 | TUN_F_USO6 : 0);
    if (ioctlValue(fd, TUNSETOFFLOAD, flags) >= 0) return bits;
  }
  return wanted & ~deviceBits;
}
