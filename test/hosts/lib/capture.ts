/** Packets as they are on a link: captured by tcpdump, taken apart by test/lib/decode.ts, which is no part of the engine. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Daemon, type Namespace, sleep } from '../../../race/hosts.js';
import { type Decoded, decode } from '../../lib/decode.js';

const LINK_ETHERNET = 1;
const ETHERNET_HEADER = 14;

/** A datagram on the underlay, and the packet in it. */
export interface Carried {
  readonly outer: Decoded;
  readonly inner: Decoded;
  /** The inner packet's bytes. */
  readonly bytes: Uint8Array;
}

let captures = 0;

export class Capture {
  readonly file: string;
  readonly #tcpdump: Daemon;

  private constructor(file: string, tcpdump: Daemon) {
    this.file = file;
    this.#tcpdump = tcpdump;
  }

  /** Captures what matches `filter` on `link` of `ns` from now on. */
  static async start(ns: Namespace, link: string, filter: string): Promise<Capture> {
    const name = `capture-${++captures}`;
    const file = join(ns.lab.dir, `${name}.pcap`);
    const args = [
      '-i',
      link,
      '-n',
      '-s',
      '0',
      '-B',
      '16384',
      '-U',
      '--immediate-mode',
      '-Z',
      'root',
      '-w',
      file,
      filter,
    ];
    const tcpdump = ns.start(name, 'tcpdump', args);
    await tcpdump.ready('listening on');
    return new Capture(file, tcpdump);
  }

  /** Ends it; the IP packets that were seen, in order. Throws if tcpdump missed any. */
  async stop(): Promise<Uint8Array[]> {
    await sleep(150);
    await this.#tcpdump.stop('SIGINT');
    const dropped = /(\d+) packets? dropped by kernel/.exec(this.#tcpdump.log());
    if (dropped?.[1] !== '0') throw new Error(`tcpdump missed ${dropped?.[1] ?? 'nobody knows how many'} packets`);
    return ipPackets(readFileSync(this.file));
  }

  /** Ends it; what was in UDP datagrams on the underlay. Throws if any header or checksum is wrong, inside or outside. */
  async stopCarried(): Promise<Carried[]> {
    return (await this.stop()).map((packet) => {
      const outer = decode(packet);
      return { outer, inner: decode(outer.payload), bytes: outer.payload };
    });
  }
}

/** The IP packets in a pcap file (pcap-savefile(5), microseconds, this machine's byte order). */
function ipPackets(file: Buffer): Uint8Array[] {
  const link = file.readUInt32LE(20);
  const packets: Uint8Array[] = [];
  for (let at = 24; at + 16 <= file.length; ) {
    const length = file.readUInt32LE(at + 8);
    const frame = file.subarray(at + 16, at + 16 + length);
    at += 16 + length;
    if (link !== LINK_ETHERNET) packets.push(frame);
    else {
      const type = frame.readUInt16BE(12);
      const packet = frame.subarray(ETHERNET_HEADER);
      // Ethernet pads short frames.
      if (type === 0x0800) packets.push(packet.subarray(0, packet.readUInt16BE(2)));
      else if (type === 0x86dd) packets.push(packet.subarray(0, 40 + packet.readUInt16BE(4)));
    }
  }
  return packets;
}

/** tcpdump's filter for the overlay's datagrams. */
export const OVERLAY = 'udp port 8285';

/** On veth nothing is checksummed and little is cut up unless asked for: makes `link` put real packets on the wire. */
export function realPackets(ns: Namespace, link: string): void {
  ns.runSync('ethtool', '-K', link, 'tx', 'off', 'tso', 'off', 'gso', 'off', 'gro', 'off');
}
