// Merges received segments of a flow into a super-packet, by the rules of Linux's GRO (net/ipv4/tcp_offload.c,
// udp_offload.c): the same headers but for length, id, checksums and sequence; TCP flags exactly ACK or ACK and PSH;
// adjacent sequence numbers; equal sizes but for the last. Both checksums of every segment are verified first, since the
// receiving kernel trusts a merged packet's.
//
// Open merges lie in MERGE_SLOTS slots by a hash of the flow. Order within a flow is kept by the caller, who closes the slot
// named in `out` before anything of that flow goes another way.
//
// State of a slot, in words of 4 bytes:
//   0 segments (0: closed)   1 bytes so far    2 IP and transport headers   3 IP header
//   4 payload of a segment   5 next sequence   6 full: nothing may follow   7 protocol (6 or 17)   8 PSH seen
//   9 prefix
//
// What stands in front of each IP packet (an encapsulation's header and an Ethernet header) is a prefix: it lies in front of
// the buffer too, and has to be the same in all segments.
import { copyHeaders, sameBytes, swap16 } from './bytes';
import { copySumUp, fold, sumWide } from './checksum';

// @ts-ignore: decorator
@inline
const STATE_BYTES = 64;
// @ts-ignore: decorator
@inline
const SLOT_MASK = 63;
// @ts-ignore: decorator
@inline
const MAX_PACKET = 65535;
// @ts-ignore: decorator
@inline
const MAX_SEGMENTS: u32 = 512; // so that a refused super-packet can be split again in the scratch area
// @ts-ignore: decorator
@inline
const TCP: u32 = 6;
// @ts-ignore: decorator
@inline
const UDP: u32 = 17;

// @ts-ignore: decorator
@inline
function mix(h: u32): u32 {
  h = (h ^ (h >> 16)) * 0x45d9f3b;
  return h ^ (h >> 16);
}

/**
 * Takes as many of `count` datagrams as belong to one flow and follow each other, beginning with the first. They lie one
 * behind the other at `at`, `size` bytes each, the last one `last` bytes, `prefix` (an even number) of them in front of the IP
 * packet. The first has passed the caller's checks.
 * `allow`: 1 TCP over IPv4, 2 TCP over IPv6, 4 UDP; from bit 8 the most UDP datagrams that the kernel takes as one.
 *
 * Returns how many it took. If none: `out` word 0 is the slot to close before the packet goes on by itself (-1: none, -2:
 * all, since it may belong to any), and word 1 is 1 if it may then begin a merge: call again.
 */
export function merge(
  states: usize, buffers: usize, stride: i32, out: usize,
  datagram: usize, size: i32, count: i32, last: i32, allow: u32, prefix: i32,
): i32 {
  store<u32>(out, 0, 4);
  const at = datagram + prefix;
  let length = (count == 1 ? last : size) - prefix;

  const v4 = load<u8>(at) >> 4 == 4;
  let l3 = 40;
  let protocol: u32;
  let key: u32;
  if (v4) {
    protocol = load<u8>(at, 9);
    if (load<u8>(at) != 0x45 || load<u16>(at, 6) & 0xffbf) {
      // Options, or a fragment (any bit but DF): it may belong to any open flow.
      store<i32>(out, -2);
      return 0;
    }
    l3 = 20;
    key = load<u32>(at, 12) ^ load<u32>(at, 16);
  } else {
    protocol = load<u8>(at, 6);
    key = load<u32>(at, 8) ^ load<u32>(at, 12) ^ load<u32>(at, 16) ^ load<u32>(at, 20)
        ^ load<u32>(at, 24) ^ load<u32>(at, 28) ^ load<u32>(at, 32) ^ load<u32>(at, 36);
    if (protocol == 0 || protocol == 43 || protocol == 44 || protocol == 60) {
      store<i32>(out, -2); // extension headers hide whose packet it is
      return 0;
    }
  }
  if ((protocol != TCP && protocol != UDP) || length < l3 + 8) {
    store<i32>(out, -1);
    return 0;
  }
  const l4 = at + l3;
  const ports = load<u32>(l4);
  const slot = mix(key ^ ports * 0x9e3779b1 ^ protocol) & SLOT_MASK;
  store<i32>(out, slot);

  let headers = l3 + 8;
  if (protocol == TCP) {
    if (!(allow & (v4 ? 1 : 2)) || length < l3 + 20) return 0;
    headers = l3 + ((load<u8>(l4, 12) >> 4) << 2);
    if (headers < l3 + 20 || load<u8>(l4, 12) & 15 || (load<u8>(l4, 13) & 0xf7) != 0x10) return 0;
  } else {
    if (!(allow & 4) || swap16(load<u16>(l4, 4)) != length - l3 || load<u16>(l4, 6) == 0) return 0;
  }
  if (length <= headers) return 0;

  const state = states + slot * STATE_BYTES;
  const buffer = buffers + slot * stride;
  let taken = 0;
  if (load<u32>(state) == 0) {
    const s = copySumUp(buffer + headers, at + headers, length - headers);
    if (!verified(at, l3, headers, length, protocol, v4, s)) return 0;
    copyHeaders(buffer - prefix, datagram, prefix + headers);
    const psh = protocol == TCP && load<u8>(l4, 13) & 8 ? 1 : 0;
    store<u32>(state, 1);
    store<i32>(state, length, 4);
    store<i32>(state, headers, 8);
    store<i32>(state, l3, 12);
    store<i32>(state, length - headers, 16);
    store<u32>(state, protocol == TCP ? bswap(load<u32>(l4, 4)) + (length - headers) : 0, 20);
    store<i32>(state, psh, 24);
    store<u32>(state, protocol, 28);
    store<i32>(state, psh, 32);
    store<i32>(state, prefix, 36);
    taken = 1;
  } else if (
    load<u32>(state, 28) != protocol || load<i32>(state, 8) != headers || load<i32>(state, 12) != l3 ||
    load<i32>(state, 36) != prefix
  ) {
    store<u32>(out, 1, 4);
    return 0;
  }

  while (taken < count) {
    const packet = at + taken * size;
    length = (taken == count - 1 ? last : size) - prefix;
    if (!append(state, buffer, packet, length, l3, headers, protocol, v4, allow, prefix)) break;
    taken++;
  }
  if (taken == 0) store<u32>(out, 1, 4);
  return taken;
}

/** Adds one datagram to an open merge, if it is the next of its flow. */
// @ts-ignore: decorator
@inline
function append(state: usize, buffer: usize, at: usize, length: i32, l3: i32, headers: i32, protocol: u32, v4: bool, allow: u32, prefix: i32): bool {
  const payload = length - headers;
  const so_far = load<i32>(state, 4);
  const size = load<i32>(state, 16);
  if (payload <= 0 || payload > size || load<i32>(state, 24) || prefix + so_far + payload > MAX_PACKET) return false;
  if (load<u32>(state) == (protocol == UDP ? allow >> 8 : MAX_SEGMENTS)) return false;
  if (prefix && !sameBytes(at - prefix, buffer - prefix, prefix)) return false;
  if (v4) {
    if (
      load<u16>(at) != load<u16>(buffer) || // version, header length, TOS
      swap16(load<u16>(at, 2)) != length ||
      load<u16>(at, 6) != load<u16>(buffer, 6) || // flags, fragment
      load<u16>(at, 8) != load<u16>(buffer, 8) || // TTL, protocol
      load<u64>(at, 12) != load<u64>(buffer, 12)
    ) return false;
    if (fold(sumWide(at, 20)) != 0xffff) return false;
  } else {
    if (
      load<u32>(at) != load<u32>(buffer) || // version, traffic class, flow label
      swap16(load<u16>(at, 4)) != length - 40 ||
      load<u16>(at, 6) != load<u16>(buffer, 6) || // next header, hop limit
      v128.any_true(v128.xor(v128.load(at, 8), v128.load(buffer, 8))) ||
      v128.any_true(v128.xor(v128.load(at, 24), v128.load(buffer, 24)))
    ) return false;
  }
  const l4 = at + l3;
  const first = buffer + l3;
  if (load<u32>(l4) != load<u32>(first)) return false;
  let psh: u32 = 0;
  if (protocol == TCP) {
    const word = load<u32>(l4, 12); // data offset, flags, window
    if (
      bswap(load<u32>(l4, 4)) != load<u32>(state, 20) ||
      load<u32>(l4, 8) != load<u32>(first, 8) ||
      (word & 0xfffff7ff) != (load<u32>(first, 12) & 0xfffff7ff) ||
      load<u16>(l4, 18) != load<u16>(first, 18)
    ) return false;
    for (let i = l3 + 20; i < headers; i += 4) if (load<u32>(at + i) != load<u32>(buffer + i)) return false;
    psh = (word >> 11) & 1;
  } else if (swap16(load<u16>(l4, 4)) != length - l3 || load<u16>(l4, 6) == 0) {
    return false;
  }
  const s = copySumUp(buffer + so_far, at + headers, payload);
  if (!verified(at, l3, headers, length, protocol, v4, s)) return false;
  store<u32>(state, load<u32>(state) + 1);
  store<i32>(state, so_far + payload, 4);
  store<u32>(state, load<u32>(state, 20) + payload, 20);
  if (psh) store<u32>(state, 1, 32);
  if (psh || payload < size) store<u32>(state, 1, 24);
  return true;
}

/** Whether a segment's transport checksum is right, given its payload's sum. */
// @ts-ignore: decorator
@inline
function verified(at: usize, l3: i32, headers: i32, length: i32, protocol: u32, v4: bool, payload: u64): bool {
  const addresses = v4 ? sumWide(at + 12, 8) : sumWide(at + 8, 32);
  const s = payload + addresses + (protocol << 8) + swap16(length - l3) + sumWide(at + l3, headers - l3);
  return fold(s) == 0xffff;
}

/**
 * Closes a slot's merge and makes it ready for the device: headers as if it had never been split, a 10-byte virtio header
 * right before it. The last `l2` bytes of the prefix, an Ethernet header, go to the device too: the virtio header is before
 * them. Returns the length in bytes of what begins at `buffer - l2`. The slot's segments (state word 0) are the caller's to
 * read before, and are 0 after.
 */
export function mergeClose(state: usize, buffer: usize, l2: i32): i32 {
  const count = load<u32>(state);
  const length = load<i32>(state, 4);
  const vnet = buffer - l2 - 10;
  store<u32>(state, 0);
  store<u64>(vnet, 0);
  store<u16>(vnet, 0, 8);
  if (count == 1) return l2 + length;

  const headers = load<i32>(state, 8);
  const l3 = load<i32>(state, 12);
  const tcp = load<u32>(state, 28) == TCP;
  const v4 = l3 == 20;
  if (v4) {
    store<u16>(buffer, swap16(length), 2);
    store<u16>(buffer, 0, 10);
    store<u16>(buffer, ~fold(sumWide(buffer, 20)), 10);
  } else {
    store<u16>(buffer, swap16(length - 40), 4);
  }
  const l4 = buffer + l3;
  const segment = swap16(length - l3);
  const addresses = v4 ? sumWide(buffer + 12, 8) : sumWide(buffer + 8, 32);
  const pseudo = fold(addresses + (tcp ? 0x0600 : 0x1100) + segment);
  if (tcp) {
    if (load<u32>(state, 32)) store<u8>(l4, load<u8>(l4, 13) | 8, 13);
    store<u16>(l4, pseudo, 16);
  } else {
    store<u16>(l4, segment, 4);
    store<u16>(l4, pseudo, 6);
  }
  store<u8>(vnet, 1); // VIRTIO_NET_HDR_F_NEEDS_CSUM
  store<u8>(vnet, tcp ? (v4 ? 1 : 4) : 5, 1);
  store<u16>(vnet, l2 + headers, 2);
  store<u16>(vnet, load<u32>(state, 16), 4);
  store<u16>(vnet, l2 + l3, 6);
  store<u16>(vnet, tcp ? 16 : 6, 8);
  return l2 + length;
}
