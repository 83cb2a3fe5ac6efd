/** The work of `weft decode`; loaded when it is needed, since it brings binary-parser. */
import { createReadStream } from 'node:fs';
import type { Output } from '../text/output.js';
import { BadCapture, readCapture } from './capture-reader.js';
import { TUNNELS, type Tunnels } from './dissect.js';
import { PacketLines, packetJson, tunnelsOf } from './packet-lines.js';

export interface DecodeOptions {
  readonly json: boolean;
  /** Packets after which it ends. */
  readonly count: number;
  /** More ports than the usual ones. */
  readonly vxlanPorts: readonly number[];
  readonly ipPorts: readonly number[];
}

/** Prints the packets of a file, or of standard input (`-`). Rejects with a BadCapture after what could be read. */
export async function decodeFile(path: string, options: DecodeOptions, out: Output): Promise<void> {
  const source = path === '-' ? process.stdin : createReadStream(path);
  const name = path === '-' ? 'standard input' : path;
  const stop = (): unknown => source.destroy();
  out.signal.addEventListener('abort', stop, { once: true });
  try {
    await decodeStream(source, options, out);
  } catch (error) {
    if (out.signal.aborted) return;
    if (error instanceof BadCapture) throw new BadCapture(`decode: ${name}: ${error.message}`);
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    throw new BadCapture(`decode: cannot read ${name}: ${READ_ERRORS[code] ?? message}`);
  } finally {
    out.signal.removeEventListener('abort', stop);
    source.destroy();
  }
}

const READ_ERRORS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file',
  EACCES: 'permission denied',
  EISDIR: 'it is a folder',
};

/** Prints the packets of a stream. Rejects with a BadCapture after what could be read. */
export async function decodeStream(
  source: AsyncIterable<Uint8Array>,
  options: DecodeOptions,
  out: Output,
): Promise<void> {
  const lines = new PacketLines(out.colours);
  const said = saidTunnels(options);
  let known: { readonly of: object; readonly tunnels: Tunnels } | undefined;
  let count = 0;
  for await (const packet of readCapture(source)) {
    if (known?.of !== packet.interface) {
      known = { of: packet.interface, tunnels: tunnelsOf(packet.interface.description, said) };
    }
    if (options.json) out.json(packetJson(packet, known.tunnels));
    else out.print(lines.line(packet, known.tunnels));
    await out.flushed();
    if (++count === options.count || out.signal.aborted) return;
  }
}

const saidTunnels = ({ vxlanPorts, ipPorts }: DecodeOptions): Tunnels => ({
  vxlan: new Set([...[...TUNNELS.vxlan].filter((port) => !ipPorts.includes(port)), ...vxlanPorts]),
  ip: new Set([...[...TUNNELS.ip].filter((port) => !vxlanPorts.includes(port)), ...ipPorts]),
});
