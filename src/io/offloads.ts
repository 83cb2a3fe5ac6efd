/**
 * The offloads that Weft uses, each with an off switch (`--offload`). A set of them is a bit set.
 *
 *  csum     the device may hand over packets with unfinished checksums
 *  tso4/6   the device may hand over and take TCP super-packets (IPv4, IPv6)
 *  uso      the same for UDP, both families (Linux 6.2)
 *  segment  one message to the socket may hold many datagrams (UDP_SEGMENT, Linux 4.18)
 *  gro      one message from the socket may hold many datagrams (UDP_GRO, Linux 5.0)
 *  merge    received packets of a flow are merged into super-packets before they go to the device
 */
export const OFFLOADS = { csum: 1, tso4: 2, tso6: 4, uso: 8, segment: 16, gro: 32, merge: 64 } as const;

export type OffloadName = keyof typeof OFFLOADS;
export const OFFLOAD_NAMES = Object.keys(OFFLOADS) as OffloadName[];
export const ALL_OFFLOADS = 127;

/** The names in a bit set. */
export const offloadNames = (bits: number): OffloadName[] => OFFLOAD_NAMES.filter((name) => bits & OFFLOADS[name]);

/**
 * Parses `all`, `none`, or a comma list in which `-name` takes one out: `all,-uso`, `tso4,gro`. A list that starts with a
 * minus starts from all. tso4, tso6 and uso need csum: naming one brings it, taking csum out takes them out.
 * Throws a RangeError that names the unknown word.
 */
export function parseOffloads(text: string): number {
  const needCsum = OFFLOADS.tso4 | OFFLOADS.tso6 | OFFLOADS.uso;
  const words = text.split(',').map((word) => word.trim());
  let bits = words[0].startsWith('-') ? ALL_OFFLOADS : 0;
  for (const word of words) {
    const name = word.replace(/^-/, '');
    if (word === 'all') bits = ALL_OFFLOADS;
    else if (word === 'none') bits = 0;
    else if (Object.hasOwn(OFFLOADS, name)) {
      const bit = OFFLOADS[name as OffloadName];
      if (!word.startsWith('-')) bits |= bit & needCsum ? bit | OFFLOADS.csum : bit;
      else bits &= bit === OFFLOADS.csum ? ~(bit | needCsum) : ~bit;
    } else throw new RangeError(`unknown offload "${name}": use all, none, or ${OFFLOAD_NAMES.join(', ')}`);
  }
  return bits;
}
