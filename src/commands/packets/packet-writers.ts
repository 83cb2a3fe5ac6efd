/** What becomes of captured packets: blocks of a pcapng file, or lines. */
import { arch, platform, release } from 'node:os';
import type { Output } from '../text/output.js';
import type { ConvertedPacket } from './capture-packets.js';
import { PacketLines, packetJson, tunnelsOf } from './packet-lines.js';
import { type Interface, interfaceBlock, packetBlock, sectionBlock, statisticsBlock } from './pcapng.js';
import type { Sink } from './sink.js';

export interface PacketWriter {
  /** Packets that have been written. */
  readonly written: number;
  interfaces(added: readonly Interface[]): void;
  /** False: there is no room for it, or for more. */
  packet(packet: ConvertedPacket): boolean;
  /** Writes what there is; false: nobody reads it any more. Rejects with a SetupError. */
  flush(): Promise<boolean>;
  /** After the last packet; `lost`: packets that were wanted and could not be had. Rejects with a SetupError. */
  end(lost: number): Promise<void>;
}

/** Bytes kept for the end of a file of limited size. */
const END_ROOM = 128;

export class PcapngWriter implements PacketWriter {
  readonly #sink: Sink;
  readonly #limit: number;
  readonly #start = now();
  readonly #received: number[] = [];
  /** Blocks that tell of the packets: they come before those that they are about. */
  #descriptions = 1;
  #pending: Uint8Array[];
  /** Packets before the last blocks. */
  #atEnd: number | undefined;
  /** Of all blocks, written or pending. */
  #bytes: number;

  /** `limit`: most bytes of the file; `version`: of the daemon. */
  constructor(sink: Sink, version: string, limit = Number.POSITIVE_INFINITY) {
    this.#sink = sink;
    this.#limit = limit;
    const section = sectionBlock({
      application: `weft capture, weftd ${version}`,
      os: `${platform()} ${release()} ${arch()}`,
    });
    this.#pending = [section];
    this.#bytes = section.length;
  }

  get written(): number {
    return this.#atEnd ?? Math.max(0, this.#sink.blocks - this.#descriptions);
  }

  interfaces(added: readonly Interface[]): void {
    this.#descriptions += added.length;
    for (const one of added) {
      this.#add(interfaceBlock(one));
      this.#received.push(0);
    }
  }

  packet(packet: ConvertedPacket): boolean {
    const { number, pieces, length, time, direction, comments } = packet;
    const block = packetBlock({
      interface: number,
      time: time ?? 0n,
      pieces,
      length,
      direction: direction ?? 'in',
      comment: comments[0],
    });
    if (this.#bytes + block.length + END_ROOM * this.#received.length > this.#limit) return false;
    this.#add(block);
    this.#received[number]++;
    return true;
  }

  async flush(): Promise<boolean> {
    if (this.#pending.length === 0) return true;
    const blocks = this.#pending;
    this.#pending = [];
    return this.#sink.write(blocks);
  }

  async end(lost: number): Promise<void> {
    const end = now();
    try {
      await this.flush();
      this.#atEnd = this.written;
      for (const [number, received] of this.#received.entries()) {
        // What was lost is known of all interfaces together.
        const dropped = number === 0 ? lost : 0;
        this.#add(statisticsBlock({ interface: number, start: this.#start, end, received, dropped }));
      }
      await this.flush();
    } finally {
      await this.#sink.close();
    }
  }

  #add(block: Uint8Array): void {
    this.#pending.push(block);
    this.#bytes += block.length;
  }
}

const now = (): bigint => BigInt(Date.now()) * 1_000_000n;

export class LineWriter implements PacketWriter {
  written = 0;
  readonly #out: Output;
  readonly #json: boolean;
  readonly #lines: PacketLines;

  constructor(out: Output, json: boolean) {
    this.#out = out;
    this.#json = json;
    this.#lines = new PacketLines(out.colours);
  }

  interfaces(): void {}

  packet(packet: ConvertedPacket): boolean {
    const tunnels = tunnelsOf(packet.interface.description);
    const whole = { ...packet, bytes: Buffer.concat(packet.pieces) };
    if (this.#json) this.#out.json(packetJson(whole, tunnels));
    else this.#out.print(this.#lines.line(whole, tunnels));
    this.written++;
    return true;
  }

  async flush(): Promise<boolean> {
    await this.#out.flushed();
    return true;
  }

  async end(): Promise<void> {}
}
