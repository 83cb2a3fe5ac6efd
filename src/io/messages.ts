/**
 * The message arrays that sendmmsg and recvmmsg share with us: struct mmsghdr, iovec and cmsghdr (bits/socket.h), laid out
 * once; per message only what varies is written.
 */
import {
  type EngineMemory,
  RECEIVE_CONTROL,
  RECEIVE_MESSAGES,
  RECEIVE_ROOM,
  SEND_CONTROL,
  SEND_MESSAGES,
  SEND_PIECES,
  SIZEOF_IOVEC,
  SIZEOF_MMSGHDR,
  SIZEOF_SOCKADDR,
  type WorkerLayout,
} from './memory.js';
import * as sys from './syscalls-constants.js';

/** Byte offsets in struct mmsghdr (LP64). */
export const MSG_NAME = 0;
export const MSG_NAMELEN = 8;
export const MSG_IOV = 16;
export const MSG_IOVLEN = 24;
export const MSG_CONTROL = 32;
export const MSG_CONTROLLEN = 40;
export const MSG_FLAGS = 48;
export const MSG_LEN = 56;

/** struct cmsghdr: u64 length, i32 level, i32 type, then the data; each padded to 8. */
export const CMSG_HEADER = 16;
/** Outgoing control: UDP_SEGMENT first, its u16 at this offset, then the TOS or traffic class, its int at that. */
export const SEGMENT_DATA = 16;
export const SEGMENT_SPACE = 24;
export const TOS_DATA = SEGMENT_SPACE + 16;

/** Lays out the outgoing arrays of `layout.send[index]`: pointers to names and iovecs, and both control messages of each. */
export function initSendArrays(memory: EngineMemory, layout: WorkerLayout, index: number, underlay: number): void {
  const { messages, iovecs, controls, names } = layout.send[index];
  const { i32 } = memory;
  for (let m = 0; m < SEND_MESSAGES; m++) {
    const message = messages + m * SIZEOF_MMSGHDR;
    const control = controls + m * SEND_CONTROL;
    i32.fill(0, message >> 2, (message + SIZEOF_MMSGHDR) >> 2);
    memory.writePointer(message + MSG_NAME, names + m * SIZEOF_SOCKADDR);
    memory.writePointer(message + MSG_IOV, iovecs + m * SEND_PIECES * SIZEOF_IOVEC);
    i32.fill(0, control >> 2, (control + SEND_CONTROL) >> 2);
    i32[control >> 2] = CMSG_HEADER + 2;
    i32[(control >> 2) + 2] = sys.SOL_UDP;
    i32[(control >> 2) + 3] = sys.UDP_SEGMENT;
    const tos = (control + SEGMENT_SPACE) >> 2;
    i32[tos] = CMSG_HEADER + 4;
    i32[tos + 2] = underlay === 0 ? sys.SOL_IP : sys.SOL_IPV6;
    i32[tos + 3] = underlay === 0 ? sys.IP_TOS : sys.IPV6_TCLASS;
  }
}

/** Lays out the incoming arrays. */
export function initReceiveArrays(memory: EngineMemory, layout: WorkerLayout): void {
  const { messages, iovecs, controls, names, buffers, stride } = layout.receive;
  for (let m = 0; m < RECEIVE_MESSAGES; m++) {
    const message = messages + m * SIZEOF_MMSGHDR;
    memory.i32.fill(0, message >> 2, (message + SIZEOF_MMSGHDR) >> 2);
    memory.writePointer(message + MSG_NAME, names + m * SIZEOF_SOCKADDR);
    memory.writePointer(message + MSG_IOV, iovecs + m * SIZEOF_IOVEC);
    memory.i32[(message + MSG_IOVLEN) >> 2] = 1;
    memory.writePointer(message + MSG_CONTROL, controls + m * RECEIVE_CONTROL);
    memory.writeIovec(iovecs + m * SIZEOF_IOVEC, buffers + m * stride, RECEIVE_ROOM);
    armReceive(memory.i32, message >> 2);
  }
}

/** Gives a message back its room for a name and control data: the kernel left there what it used. `word` is an i32 index. */
export function armReceive(i32: Int32Array, word: number): void {
  i32[word + (MSG_NAMELEN >> 2)] = 28;
  i32[word + (MSG_CONTROLLEN >> 2)] = RECEIVE_CONTROL;
  i32[word + (MSG_FLAGS >> 2)] = 0;
}
