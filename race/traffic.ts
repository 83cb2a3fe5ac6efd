/**
 * What the generator and the sink agree on: the command lines between them and the race (one JSON object a line, on stdin
 * and stdout), the traffic mixes, and the payload's first bytes.
 *
 *     offset 0  run number   u32    a late packet of an earlier run is not counted in this one
 *            4  flow         u32    0 … 15
 *            8  sequence     u32    within the flow; what comes out of order, or twice, shows
 */
import { createInterface } from 'node:readline';

export type Mix = 'pps64' | 'imix';

/** UDP payload is the inner IP length less 20 (IPv4) and 8 (UDP). */
const IP_AND_UDP = 28;

export interface Traffic {
  readonly flows: number;
  /** Inner IP lengths, in the proportion they are sent. */
  readonly sizes: readonly number[];
}

/** 64-byte IP packets of one flow; and 7:4:1 of 64, 576 and 1400 bytes in 16 flows. */
export const TRAFFIC: Readonly<Record<Mix, Traffic>> = {
  pps64: { flows: 1, sizes: [64] },
  imix: { flows: 16, sizes: [64, 64, 64, 64, 64, 64, 64, 576, 576, 576, 576, 1400] },
};

export const payloadBytes = (ipLength: number): number => ipLength - IP_AND_UDP;

/** Flow f goes to port FIRST_PORT + f / peers of peer f % peers, so 16 flows to 4 peers need 4 ports. */
export const FIRST_PORT = 9100;
export const PORTS = 4;
export const FLOWS = 16;

export interface Destination {
  readonly address: string;
  readonly port: number;
}

export const destinationOf = (flow: number, addresses: readonly string[]): Destination => ({
  address: addresses[flow % addresses.length],
  port: FIRST_PORT + Math.floor(flow / addresses.length),
});

export interface GenerateCommand {
  readonly run: number;
  readonly mix: Mix;
  readonly addresses: readonly string[];
  /** Packets a second, or null for as many as it can. */
  readonly rate: number | null;
  readonly seconds: number;
}

export interface Generated {
  readonly sent: number;
  /** Time from the first packet to the last. */
  readonly seconds: number;
  /** Packets that were due but given up, because the generator had fallen too far behind its clock. */
  readonly behind: number;
}

export type SinkCommand = { readonly count: number } | { readonly report: true };

export interface Counted {
  readonly received: number;
  /** Arrived after a later packet of the same flow. */
  readonly reordered: number;
  /** Lost in the sink's own socket buffer: not the subject's fault. */
  readonly overflowed: number;
}

/** Answers each line of stdin by a line on stdout, one at a time, until stdin ends. */
export async function serve<Command, Answer>(answer: (command: Command) => Answer | Promise<Answer>): Promise<void> {
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line) as Command))}\n`);
  }
}
