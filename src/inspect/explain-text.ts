/** What `weft explain` says in words: which entries decided, what became of the packet, and on what that depends. */

import { textOf } from '../control/cidr.js';
import { macText } from '../control/mac.js';
import {
  ARP_MADE,
  COUNTER_INFOS,
  ICMP_FORBIDDEN,
  ICMP_MADE,
  IN_PUSHED,
  MACS_LEARNED,
  MACS_MOVED,
  ND_MADE,
  OUT_FLOODED,
  OUT_FRAGMENTED,
  OUT_SEGMENTS,
  OUT_TOO_BIG,
} from '../dataplane/counters.js';
import type { DryOutcome } from '../dataplane/dry.js';
import { ICMP_RATE } from '../dataplane/icmp-errors.js';
import type { EngineSettings } from '../dataplane/settings.js';
import { RECEIVE_ROOM } from '../io/memory.js';
import type { ExplainedCondition, ExplainedEntry, ExplainedPeer, ExplainVerdict } from './explain-answer.js';
import type { Found, FoundNeighbour, Known } from './explain-known.js';
import type { Made } from './explain-make.js';

/** Milliseconds to seconds, as people want them. */
const seconds = (age: number): string => `${(age / 1000).toFixed(age < 10_000 ? 1 : 0)} s`;

const sourceOf = ({ origin, age }: Found): string =>
  origin === 'registry' ? 'says the registry' : `learned${age === undefined ? '' : `, seen ${seconds(age)} ago`}`;

const whereOf = ({ ours, peer }: Found): string =>
  ours ? 'our own side' : ((peer && `peer ${peer.name}`) ?? 'a peer that has left');

const NONE = { entry: null, origin: null, ageSeconds: null, peer: null } as const;

const detailsOf = (found: Found): Pick<ExplainedEntry, 'origin' | 'ageSeconds' | 'peer'> => ({
  origin: found.origin,
  ageSeconds: found.age === undefined ? null : found.age / 1000,
  peer: found.peer?.name ?? null,
});

export function routeEntry(known: Known, address: Uint8Array): ExplainedEntry {
  const key = textOf(address);
  const found = known.route(address);
  if (!found) return { table: 'routes', key, ...NONE, text: `no peer owns ${key}` };
  const peer = found.peer?.name ?? null;
  const text = `${key} is in ${found.prefix.text}, ${peer === null ? 'of a peer that has left' : `peer ${peer}'s`}`;
  return { table: 'routes', key, entry: found.prefix.text, origin: 'registry', ageSeconds: null, peer, text };
}

export function macEntry(known: Known, network: number, mac: Uint8Array, now: number): ExplainedEntry {
  const key = macText(mac);
  const found = known.mac(network, mac, now);
  if (!found) return { table: 'macs', key, ...NONE, text: `nobody knows where ${key} is` };
  const text = `${key} is behind ${whereOf(found)} (${sourceOf(found)})`;
  return { table: 'macs', key, entry: key, ...detailsOf(found), text };
}

export function neighbourEntry(known: Known, network: number, address: Uint8Array, now: number): ExplainedEntry {
  const key = textOf(address);
  const found: FoundNeighbour | undefined = known.neighbour(network, address, now);
  if (!found) return { table: 'neighbours', key, ...NONE, text: `nobody has told who has ${key}` };
  const mac = macText(found.mac);
  const behind = found.ours || found.peer ? `, behind ${whereOf(found)}` : '';
  return {
    table: 'neighbours',
    key,
    entry: mac,
    ...detailsOf(found),
    text: `${key} is at ${mac}${behind} (${sourceOf(found)})`,
  };
}

/** How a host's kernel reaches an address through our device, in flannel's way. */
export function hopEntry({ address, mac, via }: NonNullable<Made['resolved']>): ExplainedEntry {
  const key = textOf(address);
  const at = macText(mac);
  const text = `the kernel's next hop to ${key} is ${via}, permanently at ${at}`;
  return { table: 'neighbours', key, entry: at, origin: 'registry', ageSeconds: null, peer: null, text };
}

export function floodEntry(known: Known, network: number, key: string): ExplainedEntry {
  const peers = known.floodCount(network);
  const text = `frames to everybody go to ${count(peers, 'peer')}`;
  return { table: 'floods', key, entry: String(peers), origin: 'registry', ageSeconds: null, peer: null, text };
}

export function senderEntry({ address, peer }: NonNullable<Made['sender']>): ExplainedEntry {
  const key = address.text;
  if (!peer) return { table: 'peers', key, ...NONE, text: `no peer is at ${key}` };
  const text = `${key} is peer ${peer.name}`;
  return { table: 'peers', key, entry: key, origin: 'registry', ageSeconds: null, peer: peer.name, text };
}

const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`;

export interface Verdict {
  readonly verdict: ExplainVerdict;
  /** Number of the counter of a drop. */
  readonly counter: number | undefined;
}

/** What became of the packet as a whole: a copy or an answer that went its way counts more than one that did not. */
export function verdictOf({ moved, sentCount, pushed }: DryOutcome, outbound: boolean): Verdict {
  const dropped = [...moved.keys()].find((id) => COUNTER_INFOS[id].role === 'dropped');
  if (sentCount > 0) return { verdict: 'sent', counter: undefined };
  if (!outbound && moved.has(IN_PUSHED)) return { verdict: 'delivered', counter: undefined };
  if (dropped === undefined && outbound && pushed.length > 0) return { verdict: 'answered', counter: undefined };
  return { verdict: 'dropped', counter: dropped };
}

export interface TextParts {
  readonly outcome: DryOutcome;
  readonly verdict: Verdict;
  readonly peers: readonly ExplainedPeer[];
  readonly morePeers: number;
  readonly device: string;
  readonly answers: readonly { readonly text: string }[];
}

/** One line. */
export function verdictText({ outcome, verdict, peers, morePeers, device, answers }: TextParts): string {
  const { moved, sent, sentCount } = outcome;
  const name = verdict.counter === undefined ? undefined : COUNTER_INFOS[verdict.counter];
  if (verdict.verdict === 'dropped') {
    const said = answers.length > 0 ? `; the sender is told: ${answers[0].text}` : silence(moved);
    return name ? `dropped, ${name.name}: ${name.help}${said}` : 'dropped, and no counter says why';
  }
  if (verdict.verdict === 'answered') return `answered by us, and goes no further: ${answers[0].text}`;
  if (verdict.verdict === 'delivered') return `delivered to ${device}${changes(moved)}`;
  const whom =
    moved.has(OUT_FLOODED) || morePeers > 0
      ? `flooded to ${count(peers.length + morePeers, 'peer')}`
      : `sent to peer ${peers.map((peer) => peer.name).join(', ')}`;
  const size = sent.length > 0 ? ` of ${[...new Set(sent.map(({ bytes }) => bytes.length))].join(' and ')} bytes` : '';
  const tooBig = moved.get(OUT_TOO_BIG);
  const less = tooBig === undefined ? '' : `; for ${count(tooBig, 'peer')} it is too_big`;
  const said = answers.length > 0 ? `; and answered by us: ${answers[0].text}` : '';
  return `${whom}, ${count(sentCount, 'datagram')}${size}${changes(moved)}${less}${said}`;
}

const silence = (moved: ReadonlyMap<number, number>): string =>
  moved.has(ICMP_FORBIDDEN)
    ? '; the sender is not told: no ICMP error may be sent about it'
    : '; the sender is not told';

function changes(moved: ReadonlyMap<number, number>): string {
  const notes = [
    [OUT_FRAGMENTED, 'fragmented'],
    [OUT_SEGMENTS, 'split into segments'],
    [MACS_LEARNED, 'a MAC is learned from it'],
    [MACS_MOVED, 'a MAC moves by it'],
  ] as const;
  const said = notes.flatMap(([id, text]) => (moved.has(id) ? [text] : []));
  return said.length > 0 ? `, ${said.join(', ')}` : '';
}

/** What is not ours to know beforehand, of a packet that ends so. */
export function conditionsFor(
  { moved, sentCount, pushed }: DryOutcome,
  outbound: boolean,
  { l2 }: EngineSettings,
  to: string,
): ExplainedCondition[] {
  const found: ExplainedCondition[] = [];
  const add = (counter: string, when: string): void => void found.push({ counter, when });
  if (!outbound) {
    add('kernel.socket_overflow', "the socket's buffer is full: more comes than the worker takes");
    add('inbound.truncated', `more than ${RECEIVE_ROOM} bytes come as one message, which no single datagram can be`);
  } else {
    add('kernel.device_outbound', "the device's queue is full: more comes than the worker takes");
  }
  if (sentCount > 0) {
    add('outbound.socket_refused', `the kernel refuses to send to ${to}: a firewall in OUTPUT, or no underlay route`);
    add('outbound.path_mtu', `the kernel has learned since that the path to ${to} is smaller`);
  }
  if (moved.has(OUT_FLOODED) && l2 && l2.stormLimit > 0) {
    add('outbound.storm', `more than ${l2.stormLimit} frames a second are to be flooded by this worker`);
  }
  if (moved.has(ICMP_MADE)) {
    add(
      'outbound.icmp_limited',
      `more than ${ICMP_RATE} ICMP errors a second are called for: then this one is not made`,
    );
    add('outbound.icmp_refused', 'the device does not take the ICMP error: it is down');
  }
  if (moved.has(ARP_MADE) || moved.has(ND_MADE)) {
    add('outbound.answers_refused', 'the device does not take the answer: it is down');
  }
  if (!outbound && pushed.length > 0) {
    add('inbound.device_refused', 'the device does not take the packet: it is down');
    add(
      'inbound.merged',
      'others of its flow came right before it: then it is handed over as a part of one large packet',
    );
  }
  return found;
}

export const isFlooded = (moved: ReadonlyMap<number, number>): boolean => moved.has(OUT_FLOODED);
