/**
 * From what the daemon streams to packets as a capture file has them: with an interface, link-layer and outer headers, and the verdict
 * as a comment. All interfaces of one file have one link type and one snapshot length, since libpcap (tcpdump) reads no others; nor
 * does it read a second interface of LINKTYPE_RAW. So in layer 2 all is Ethernet, the underlay without addresses; in layer 3 all
 * is as `tcpdump -i any` has it (LINKTYPE_LINUX_SLL), which says the direction too.
 */
import type { CapturedPacket, CaptureHead } from '../../inspect/capture-frames.js';
import type { FileInterface, FilePacket } from './capture-reader.js';
import { linkHeader, MOST_LINK_HEADER } from './link-header.js';
import { MOST_OUTER, outerHeaders, ownAddress } from './outer-headers.js';
import type { Interface } from './pcapng.js';
import { LINK_ETHERNET, LINK_LINUX_SLL } from './pcapng-format.js';
import { verdictComment } from './verdict-comment.js';

const UNDERLAY = 'underlay';
/** Comments that are remembered. */
const MOST_SAID = 4096;

/** A packet of the file, and the number of its interface. */
export interface ConvertedPacket extends Omit<FilePacket, 'bytes'> {
  readonly number: number;
  /** What was kept of it: headers, and a view of the stream's chunk. */
  readonly pieces: readonly Uint8Array[];
}

export class PacketConverter {
  /** In the order of their numbers; grows, since devices may come. */
  readonly interfaces: (Interface & FileInterface)[] = [];
  readonly #said = new Map<string, readonly string[]>();
  #head: CaptureHead | undefined;
  #own: { readonly 4: Uint8Array; readonly 6: Uint8Array } | undefined;

  /** What packets from here on passed. Returns the interfaces that are new. */
  head(head: CaptureHead): readonly Interface[] {
    this.#head = head;
    this.#own = { 4: ownAddress(head, 4), 6: ownAddress(head, 6) };
    const known = this.interfaces.length;
    for (const device of head.devices) this.#add(head, device.name, deviceText(device));
    this.#add(head, UNDERLAY, underlayText(head));
    return this.interfaces.slice(known);
  }

  packet(packet: CapturedPacket): ConvertedPacket {
    const { side, direction } = packet;
    const name = side === 'underlay' ? UNDERLAY : this.#deviceName(packet);
    const number = this.interfaces.findIndex((one) => one.name === name);
    return {
      number,
      interface: this.interfaces[number],
      time: BigInt(packet.seconds) * 1_000_000_000n + BigInt(packet.nanoseconds),
      direction: direction === 'inbound' ? 'in' : 'out',
      comments: this.#comments(packet),
      ...this.#bytes(packet),
    };
  }

  /** As in the file: with all headers. */
  #bytes(packet: CapturedPacket): { readonly pieces: readonly Uint8Array[]; readonly length: number } {
    const { bytes, length, outer, direction } = packet;
    const pieces = [bytes];
    if (!this.#own || !this.#head) return { pieces, length };
    const inbound = direction === 'inbound';
    if (outer) pieces.unshift(outerHeaders({ outer, own: this.#own[outer.family], inbound, bytes, length }));
    const isFrame = this.#head.mode === 'l2' && !outer;
    if (!isFrame) pieces.unshift(linkHeader(this.#head.mode, pieces[0][0] >> 4, inbound));
    return { pieces, length: pieces.reduce((sum, piece) => sum + piece.length, length - bytes.length) };
  }

  /** Few packets say what none before them has said. */
  #comments({ verdict, direction, peer, segment }: CapturedPacket): readonly string[] {
    const key = `${verdict.verdict} ${direction} ${segment} ${peer?.name ?? ''}`;
    const known = this.#said.get(key);
    if (known) return known;
    const reason = verdict.name === verdict.kind ? {} : { reason: verdict.name };
    const whom = peer ? { peer: peer.name } : {};
    const comments = [verdictComment({ direction, kind: verdict.kind, ...reason, ...whom }, verdict.help, segment)];
    if (this.#said.size === MOST_SAID) this.#said.clear();
    this.#said.set(key, comments);
    return comments;
  }

  #deviceName({ network }: CapturedPacket): string {
    return this.#head?.devices[network ?? 0]?.name ?? UNDERLAY;
  }

  #add({ mode, snaplen: kept }: CaptureHead, name: string, description: string): void {
    if (this.interfaces.some((one) => one.name === name)) return;
    const linkType = mode === 'l2' ? LINK_ETHERNET : LINK_LINUX_SLL;
    this.interfaces.push({ name, description, linkType, snaplen: kept + MOST_OUTER + MOST_LINK_HEADER });
  }
}

const deviceText = ({ mtu, vni }: CaptureHead['devices'][number]): string =>
  vni === null
    ? `MTU ${mtu}: packets as the host gives and gets them`
    : `VNI ${vni}, MTU ${mtu}: frames as the host gives and gets them`;

/** `tunnelsOf` reads it again. */
const underlayText = ({ mode, underlay }: CaptureHead): string => {
  const what = mode === 'l2' ? 'VXLAN' : 'IP packets';
  return `${underlay.interface}, UDP port ${underlay.port} carries ${what}; outer headers are made again`;
};
