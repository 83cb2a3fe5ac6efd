/**
 * Every system call that Node does not offer, through koffi; nothing else in Weft knows koffi.
 *
 * Addresses are plain numbers (user addresses stay below 2^47, so a double holds them exactly) and are declared
 * `uint64_t`: 40 ns a call, where a Buffer argument costs 57. A number above 2^31 is a heap object in V8, so the packet
 * path passes only addresses that it made once (the start of an iovec, message or poll array); what varies from call to
 * call, it writes into those arrays. That is why there is `readv` and no `read`: with it, no call allocates.
 *
 * Each wrapper returns the call's result, or -errno; none throws. An address does not keep its buffer alive: all of them
 * point into the engine's one WebAssembly.Memory, which lives as long as the process.
 *
 * Sources: the manual pages of section 2; constants from the kernel's uapi headers, equal on x86-64 and aarch64.
 */
import { endianness } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import koffi from 'koffi';
import { MSG_DONTWAIT } from './syscalls-constants.js';

type Call = (...args: (number | Uint8Array)[]) => number;

const libc = koffi.load(null);
const define = (prototype: string): Call => libc.func(prototype) as Call;

if (endianness() !== 'LE') throw new Error('weft runs on little-endian machines only');

const c = {
  readv: define('int readv(int fd, uint64_t iov, int count)'),
  writev: define('int writev(int fd, uint64_t iov, int count)'),
  recvmmsg: define('int recvmmsg(int fd, uint64_t messages, unsigned int count, int flags, uint64_t timeout)'),
  sendmmsg: define('int sendmmsg(int fd, uint64_t messages, unsigned int count, int flags)'),
  poll: define('int poll(uint64_t fds, uint64_t count, int timeout)'),
  yield: define('int sched_yield()'),
  clock: define('int clock_gettime(int clock, uint64_t timespec)'),
  socket: define('int socket(int family, int type, int protocol)'),
  bind: define('int bind(int fd, uint8_t *address, unsigned int length)'),
  setsockopt: define('int setsockopt(int fd, int level, int name, uint8_t *value, unsigned int length)'),
  getsockopt: define('int getsockopt(int fd, int level, int name, uint8_t *value, uint8_t *length)'),
  sendto: define('int sendto(int fd, uint8_t *bytes, uint64_t length, int flags, uint8_t *to, unsigned int toLength)'),
  recvfrom: define(
    'int64_t recvfrom(int fd, uint8_t *bytes, uint64_t length, int flags, uint8_t *from, uint8_t *fromLength)',
  ),
  ioctl: define('int ioctl(int fd, uint64_t request, uint8_t *argument)'),
  ioctlValue: define('int ioctl(int fd, uint64_t request, uint64_t argument)'),
  eventfd: define('int eventfd(unsigned int initial, int flags)'),
  flock: define('int flock(int fd, int operation)'),
  memmove: define('uint64_t memmove(uint8_t *to, uint8_t *from, uint64_t length)'),
};

/** The result, or -errno, read before anything else can change it. */
const orErrno = (result: number): number => (result < 0 ? -koffi.errno() : result);

// --- the packet path: numbers only ---

/** readv(2) of `count` iovecs at `iov`: bytes read, or -errno. */
export const readv = (fd: number, iov: number, count: number): number => orErrno(c.readv(fd, iov, count));
/** writev(2) of `count` iovecs at `iov`: bytes written, or -errno. */
export const writev = (fd: number, iov: number, count: number): number => orErrno(c.writev(fd, iov, count));
/** recvmmsg(2), never blocking: messages received, or -errno. */
export const recvmmsg = (fd: number, messages: number, count: number): number =>
  orErrno(c.recvmmsg(fd, messages, count, MSG_DONTWAIT, 0));
/** sendmmsg(2), never blocking: messages sent, or -errno of the first. */
export const sendmmsg = (fd: number, messages: number, count: number): number =>
  orErrno(c.sendmmsg(fd, messages, count, MSG_DONTWAIT));
/** poll(2): descriptors with events, or -errno. `timeout` in milliseconds. */
export const poll = (fds: number, count: number, timeout: number): number => orErrno(c.poll(fds, count, timeout));
/** sched_yield(2). */
export const schedYield = (): number => c.yield();
/** clock_gettime(CLOCK_MONOTONIC) into the 16-byte timespec at `at`; costs no allocation, unlike performance.now(). */
export const clockMonotonic = (at: number): number => c.clock(1, at);

// --- set-up: typed arrays allowed ---

export const socket = (family: number, type: number, protocol: number): number =>
  orErrno(c.socket(family, type, protocol));
/** bind(2) to a struct sockaddr. */
export const bind = (fd: number, address: Uint8Array): number => orErrno(c.bind(fd, address, address.length));
/** sendto(2) of one datagram, never blocking, to a struct sockaddr: bytes sent, or -errno. */
export const sendto = (fd: number, bytes: Uint8Array, to: Uint8Array): number =>
  orErrno(c.sendto(fd, bytes, bytes.length, MSG_DONTWAIT, to, to.length));
/** recvfrom(2) of one datagram, never blocking: bytes written to `bytes`, or -errno; its sender's struct sockaddr goes to `from`. */
export const recvfrom = (fd: number, bytes: Uint8Array, from: Uint8Array): number =>
  orErrno(c.recvfrom(fd, bytes, bytes.length, MSG_DONTWAIT, from, new Uint8Array(Uint32Array.of(from.length).buffer)));
/** setsockopt(2) with an int value. */
export const setsockopt = (fd: number, level: number, name: number, value: number): number =>
  orErrno(c.setsockopt(fd, level, name, new Uint8Array(Int32Array.of(value).buffer), 4));
/** getsockopt(2) of an int: the value (which may not be negative), or -errno. */
export function getsockopt(fd: number, level: number, name: number): number {
  const value = new Int32Array(1);
  const length = new Uint8Array(Uint32Array.of(4).buffer);
  const result = orErrno(c.getsockopt(fd, level, name, new Uint8Array(value.buffer), length));
  return result < 0 ? result : value[0];
}
/** getsockopt(2) of a structure, written to `value`: 0, or -errno. */
export const getsockoptBytes = (fd: number, level: number, name: number, value: Uint8Array): number =>
  orErrno(c.getsockopt(fd, level, name, value, new Uint8Array(Uint32Array.of(value.length).buffer)));
/** ioctl(2) whose argument is a structure, read and written in place. */
export const ioctl = (fd: number, request: number, argument: Uint8Array): number =>
  orErrno(c.ioctl(fd, request, argument));
/** ioctl(2) whose argument is the value itself. */
export const ioctlValue = (fd: number, request: number, value: number): number =>
  orErrno(c.ioctlValue(fd, request, value));
/** eventfd(2), non-blocking and close-on-exec. */
export const eventfd = (): number => orErrno(c.eventfd(0, 0o2004000));
/** flock(2): 0, or -errno. `operation`: LOCK_* of syscalls-constants.ts. */
export const flock = (fd: number, operation: number): number => orErrno(c.flock(fd, operation));
/** The address of a typed array's first byte. The caller keeps the array alive. */
export const addressOf = (bytes: Uint8Array): number => c.memmove(bytes, bytes, 0);

export * from './syscalls-constants.js';

const names = getSystemErrorMap();

/** The name and text of an errno given negative, as the wrappers return it: "EBUSY: resource busy or locked". */
export function errnoText(negative: number): string {
  const known = names.get(negative);
  return known ? `${known[0]}: ${known[1]}` : `errno ${-negative}`;
}
