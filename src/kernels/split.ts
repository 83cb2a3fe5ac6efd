// Splits a super-packet into segments where it lies: segment i moves up by i x (headers + prefix), last first, so nothing is
// overwritten before it is read and no second buffer is needed. Payload is copied and summed in one pass. What stands in
// front of the packet (an encapsulation's header, an Ethernet header) is a prefix that each segment gets a copy of.
//
// What Linux does in tcp_gso_segment and __udp_gso_segment: IPv4 id + i, lengths, sequence + i x size, FIN and PSH only on
// the last segment, CWR only on the first, full checksums.
import { copyHeaders, swap16 } from './bytes';
import { copySumDown, fold, sumWide } from './checksum';

// @ts-ignore: decorator
@inline
const FIN_PSH: u32 = 0x0900; // byte 13 of the TCP header, in the high byte of a little-endian load of bytes 12..13
// @ts-ignore: decorator
@inline
const CWR: u32 = 0x8000;

/**
 * The IP packet of `length` bytes at `at` has `l3` bytes of IP header and `headers` of IP and TCP or UDP header. Segments get
 * `size` payload bytes each (the last: the rest) and start `prefix + headers + size` apart, the first at `at`; the `prefix`
 * bytes before `at` (an even number) are copied to before each of them.
 * Returns how many there are. The caller has checked all of it: lengths, `size` > 0, room behind the packet.
 */
export function split(at: usize, length: i32, l3: i32, headers: i32, size: i32, tcp: bool, prefix: i32): i32 {
  const v4 = load<u8>(at) >> 4 == 4;
  const l4 = at + l3;
  const payload = length - headers;
  const count = (payload + size - 1) / size;
  const stride = prefix + headers + size;

  // Everything in the two headers that stays the same from segment to segment, summed once.
  let ipBase: u64 = 0;
  let id: u32 = 0;
  let pseudo: u64 = 0;
  if (v4) {
    id = swap16(load<u16>(at, 4));
    store<u16>(at, 0, 2);
    store<u16>(at, 0, 4);
    store<u16>(at, 0, 10);
    ipBase = sumWide(at, l3);
    pseudo = sumWide(at + 12, 8);
  } else {
    pseudo = sumWide(at + 8, 32);
  }
  pseudo += tcp ? 0x0600 : 0x1100;
  let seq: u32 = 0;
  let flags: u32 = 0;
  let l4Base: u64 = 0;
  const l4Length = headers - l3;
  if (tcp) {
    seq = bswap(load<u32>(l4, 4));
    flags = load<u16>(l4, 12);
    store<u32>(l4, 0, 4);
    store<u16>(l4, 0, 12);
    store<u16>(l4, 0, 16);
    l4Base = pseudo + sumWide(l4, l4Length);
  } else {
    store<u32>(l4, 0, 4);
    l4Base = pseudo + load<u32>(l4);
  }

  for (let i = count - 1; i >= 0; i--) {
    const to = at + i * stride;
    const from = at + headers + i * size;
    const bytes = i == count - 1 ? payload - i * size : size;
    let s = i == 0 ? sumWide(from, bytes) : copySumDown(to + headers, from, bytes);
    if (i > 0) copyHeaders(to - prefix, at - prefix, prefix + headers);

    if (v4) {
      const total = swap16(headers + bytes);
      const identity = swap16((id + i) & 0xffff);
      store<u16>(to, total, 2);
      store<u16>(to, identity, 4);
      store<u16>(to, ~fold(ipBase + total + identity), 10);
    } else {
      store<u16>(to, swap16(headers - 40 + bytes), 4);
    }
    const header = to + l3;
    const segment = swap16(l4Length + bytes);
    s += l4Base + segment;
    if (tcp) {
      const sequence = bswap(seq + i * size);
      let word = flags;
      if (i < count - 1) word &= ~FIN_PSH;
      if (i > 0) word &= ~CWR;
      store<u32>(header, sequence, 4);
      store<u16>(header, word, 12);
      store<u16>(header, ~fold(s + sequence + word), 16);
    } else {
      store<u16>(header, segment, 4);
      const checksum = ~fold(s + segment) & 0xffff;
      store<u16>(header, checksum == 0 ? 0xffff : checksum, 6);
    }
  }
  return count;
}
