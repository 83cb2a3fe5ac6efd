/** Captured packets as readable lines, or as one JSON value a line. */

import type { Colours } from '../text/output.js';
import { clean } from '../text/table.js';
import type { FilePacket } from './capture-reader.js';
import { dissect, TUNNELS, type Tunnels } from './dissect.js';
import { layersText } from './layer-text.js';
import { type Verdict, verdictIn } from './verdict-comment.js';

const SECOND = 1_000_000_000n;

/** One packet as JSON. */
export function packetJson(packet: FilePacket, tunnels: Tunnels): object {
  const { time, direction, bytes, length, comments } = packet;
  return {
    time: time === undefined ? null : isoText(time),
    interface: packet.interface.name ?? null,
    direction: direction ?? null,
    length,
    captured: bytes.length,
    verdict: verdictOf(comments) ?? null,
    comments,
    layers: dissect(packet.interface.linkType, bytes, tunnels),
  };
}

/** Makes lines whose columns stay where they are. */
export class PacketLines {
  readonly #colours: Colours;
  #width = LEAST_NAME;

  constructor(colours: Colours) {
    this.#colours = colours;
  }

  line(packet: FilePacket, tunnels: Tunnels): string {
    const { time, direction, bytes, length, comments } = packet;
    const name = clean(packet.interface.name ?? '-');
    this.#width = Math.min(Math.max(this.#width, name.length), MOST_NAME);
    const head = [time === undefined ? '-'.padEnd(CLOCK.length) : clockText(time), name.padEnd(this.#width)];
    const cut = bytes.length < length ? ` (first ${bytes.length} of ${length} bytes)` : '';
    const text = clean(layersText(dissect(packet.interface.linkType, bytes, tunnels)) || `${length} bytes`);
    const says = comments.map((comment) => `  # ${clean(comment)}`).join('');
    return `${head.join('  ')}  ${(direction ?? '-').padEnd(3)}  ${text}${cut}${this.#coloured(says, comments)}\n`;
  }

  #coloured(text: string, comments: readonly string[]): string {
    if (verdictOf(comments)?.kind === 'dropped') return this.#colours.red(text);
    return this.#colours.dim(text);
  }
}

/** `underlay`, and most devices. */
const LEAST_NAME = 8;
const MOST_NAME = 20;
const CLOCK = '00:00:00.000000';

const verdictOf = (comments: readonly string[]): Verdict | undefined => {
  for (const comment of comments) {
    const verdict = verdictIn(comment);
    if (verdict) return verdict;
  }
  return undefined;
};

/**
 * Where packets are looked for in UDP: what the user said, the well-known ports, and what the description of an interface of ours
 * says (`underlayText`).
 */
export function tunnelsOf(description: string | undefined, said: Tunnels = TUNNELS): Tunnels {
  const [, port, what] = /UDP port (\d+) carries (VXLAN|IP)/.exec(description ?? '') ?? [];
  if (port === undefined) return said;
  const own = Number(port);
  return what === 'VXLAN'
    ? { vxlan: new Set([...said.vxlan, own]), ip: without(said.ip, own) }
    : { vxlan: without(said.vxlan, own), ip: new Set([...said.ip, own]) };
}

const without = (ports: ReadonlySet<number>, port: number): Set<number> => {
  const left = new Set(ports);
  left.delete(port);
  return left;
};

/** Milliseconds since 1970, and the nanoseconds beyond them. */
function split(time: bigint): { readonly date: Date; readonly rest: bigint } {
  const rest = ((time % 1_000_000n) + 1_000_000n) % 1_000_000n;
  return { date: new Date(Number((time - rest) / 1_000_000n)), rest };
}

/** UTC with nanoseconds; a time that no calendar has, in seconds since 1970. */
function isoText(time: bigint): string {
  const { date, rest } = split(time);
  if (Number.isNaN(date.getTime())) return `${time / SECOND}`;
  return date.toISOString().replace('Z', `${rest.toString().padStart(6, '0')}Z`);
}

/** The time of day here, with microseconds. */
function clockText(time: bigint): string {
  const { date, rest } = split(time);
  if (Number.isNaN(date.getTime())) return '?'.padEnd(CLOCK.length);
  const two = (value: number): string => value.toString().padStart(2, '0');
  const micros = BigInt(date.getMilliseconds()) * 1000n + rest / 1000n;
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${micros.toString().padStart(6, '0')}`;
}
