/**
 * `weft explain`: what would become of a packet, and why. The verdict and the counters are what the engine itself does with it, run
 * dry (dataplane/dry.ts); around them are the entries of our tables that decide, and what the kernel may yet say. It runs in
 * control's thread, between changes to the tables, and touches no worker; what it needs is made at the first question.
 */
import { type Address, addressOf, parseAddress, textOf } from '../control/cidr.js';
import { LINK_HEADER } from '../control/encapsulation.js';
import type { PlannedPeer } from '../control/plan.js';
import { COUNTER_INFOS } from '../dataplane/counters.js';
import { DryEngine, type DryOutcome } from '../dataplane/dry.js';
import type { EngineSettings } from '../dataplane/settings.js';
import type { EngineMemory } from '../io/memory.js';
import { AF_INET } from '../io/syscalls-constants.js';
import { type ExplainAnswer, type ExplainedEntry, type ExplainedPeer, MOST_EXPLAINED_PEERS } from './explain-answer.js';
import { Known, type KnownParts } from './explain-known.js';
import { type Made, type MakeContext, macOrNull, make, textOrNull } from './explain-make.js';
import { describe } from './explain-packet.js';
import { parseQuestion } from './explain-question.js';
import * as words from './explain-text.js';

export interface ExplainParts extends Pick<KnownParts, 'applier' | 'devices'> {
  readonly memory: EngineMemory;
  /** As the workers have them. */
  readonly settings: EngineSettings;
  /** Whether there are sockets, by underlay: IPv4, IPv6. */
  readonly underlays: readonly [boolean, boolean];
  /** By network: our devices' MTUs, and their addresses, as text, with or without a prefix length. */
  readonly mtus: readonly number[];
  readonly addresses: readonly (readonly string[])[];
  /** Inode of the network namespace. */
  readonly networkNamespace: string;
  /** Milliseconds of CLOCK_MONOTONIC wrapped to 32 bits, as workers have it; tests give their own. */
  readonly now?: () => number;
}

/**
 * A question's answer. Throws a RangeError, one line: the question makes no sense (400). Takes well below a millisecond, unless it is
 * about a flood to thousands or a crowded table of MACs (pace.ts is for those).
 */
export type Explain = (question: URLSearchParams) => ExplainAnswer;

export function createExplain(parts: ExplainParts): Explain {
  let made: Explainer | undefined;
  return (question) => {
    if (parts.memory.options.workers === 0) {
      throw new RangeError('nothing passes through weftd with this backend: the kernel routes');
    }
    made ??= new Explainer(parts);
    try {
      return made.explain(question);
    } catch (error) {
      if (!(error instanceof RangeError)) made = undefined; // a defect of ours: what a walk left half done must not last
      throw error;
    }
  };
}

const monotonic = (): number => Number(process.hrtime.bigint() / 1_000_000n) | 0;

/** What says nothing to people: bytes, and how often the kernel was called. */
const UNTOLD = new Set(['send_calls', 'messages_sent', 'messages_received']);
const TOLD = COUNTER_INFOS.map(({ direction, name, role }) =>
  role === 'bytes' || UNTOLD.has(name) ? undefined : `${direction}.${name}`,
);

class Explainer {
  readonly #parts: ExplainParts;
  readonly #dry: DryEngine;
  readonly #known: Known;
  readonly #addresses: readonly (readonly Address[])[];
  readonly #now: () => number;

  constructor(parts: ExplainParts) {
    const { memory, settings, underlays, applier, devices, addresses } = parts;
    this.#parts = parts;
    this.#dry = new DryEngine(memory, settings, underlays);
    this.#known = new Known({ memory, applier, devices, age: settings.l2?.age ?? 0 });
    this.#addresses = addresses.map((texts) => texts.map((text) => parseAddress(text.split('/')[0])));
    this.#now = parts.now ?? monotonic;
  }

  explain(query: URLSearchParams): ExplainAnswer {
    const { settings, underlays, mtus, devices, networkNamespace } = this.#parts;
    const now = this.#now();
    const context: MakeContext = {
      known: this.#known,
      networks: settings.l2?.networks,
      addresses: this.#addresses,
      underlays,
      now,
    };
    const made = make(parseQuestion(query), context);
    const [outcome, ...others] = this.#runs(made, now);
    const told = this.#tell(made, outcome);
    const { described, network } = made;
    return {
      direction: told.outbound ? 'outbound' : 'inbound',
      ...told.answer,
      packet: {
        text: described.text,
        bytes: made.bytes.length,
        source: textOrNull(described.source),
        destination: textOrNull(described.destination ?? described.asksFor),
        sourceMac: macOrNull(described.sourceMac),
        destinationMac: macOrNull(described.destinationMac),
        vni: settings.l2?.networks[network].vni ?? null,
      },
      entries: this.#entries(made, outcome, now),
      counters: countersOf(outcome),
      others: others.flatMap((other, i) => {
        const { text } = this.#tell(made, other).answer;
        return text === told.answer.text ? [] : [{ worker: i + 1, text }];
      }),
      notes: [...made.notes, ...this.#notes(made, told.outbound)],
      device: { name: devices[network], mtu: mtus[network] },
      networkNamespace,
      shut: this.#known.shut(now) ?? null,
    };
  }

  /** One run for each worker that may have learned something of its own. */
  #runs({ input }: Made, now: number): DryOutcome[] {
    const { memory, settings } = this.#parts;
    const workers = settings.l2?.learning ? memory.layout.workers.length : 1;
    return Array.from({ length: workers }, (_, worker) => this.#dry.run(input, worker, now));
  }

  #tell(
    made: Made,
    outcome: DryOutcome,
  ): {
    readonly outbound: boolean;
    readonly answer: Pick<
      ExplainAnswer,
      'verdict' | 'reason' | 'text' | 'peers' | 'morePeers' | 'datagrams' | 'datagramCount' | 'answers' | 'depends'
    >;
  } {
    const { settings, devices } = this.#parts;
    const outbound = made.input.from === 'device';
    const verdict = words.verdictOf(outcome, outbound);
    const { peers, morePeers } = this.#peersOf(made, outcome);
    const l2 = settings.l2 !== undefined;
    const answers = outbound
      ? outcome.pushed.map(({ bytes }) => ({ text: describe(bytes, l2).text, bytes: bytes.length }))
      : [];
    const device = devices[made.network];
    const to = outcome.sent.at(0);
    return {
      outbound,
      answer: {
        verdict: verdict.verdict,
        reason: verdict.counter === undefined ? null : COUNTER_INFOS[verdict.counter].name,
        text: words.verdictText({ outcome, verdict, peers, morePeers, device, answers }),
        peers,
        morePeers,
        datagrams: outcome.sent.map(({ bytes, name }) => ({ bytes: bytes.length, to: endpointText(name) })),
        datagramCount: outcome.sentCount,
        answers,
        depends: words.conditionsFor(outcome, outbound, settings, to ? addressIn(to.name) : ''),
      },
    };
  }

  /** Whom it goes to or comes from; of what is dropped, whom it would have gone to. */
  #peersOf(made: Made, outcome: DryOutcome): { readonly peers: ExplainedPeer[]; readonly morePeers: number } {
    const { network, sender, described } = made;
    const found = new Map<string, PlannedPeer>();
    const add = (peer: PlannedPeer | undefined): void => void (peer && found.set(peer.key, peer));
    if (sender) add(sender.peer);
    else if (outcome.sent.length > 0) {
      for (const { name } of outcome.sent) {
        add(this.#known.peersAt(addressIn(name)).find((peer) => peer.network === network));
      }
    } else if (described.destinationMac) add(this.#known.mac(network, described.destinationMac, this.#now())?.peer);
    else if (described.destination) add(this.#known.route(described.destination)?.peer);
    const peers = Array.from(found.values())
      .slice(0, MOST_EXPLAINED_PEERS)
      .map((peer) => this.#explained(peer));
    // The datagrams of a flood beyond those that were kept are copies for one peer each.
    const unseen = outcome.sentCount > outcome.sent.length ? this.#known.floodCount(network) - peers.length : 0;
    return { peers, morePeers: Math.max(0, unseen) };
  }

  #explained(peer: PlannedPeer): ExplainedPeer {
    const link = LINK_HEADER[this.#parts.settings.l2 ? 'l2' : 'l3'];
    const pathMtu = this.#known.pathMtu(peer) - link;
    return { name: peer.name, address: peer.address, port: peer.port, pathMtu, plannedMtu: peer.mtu - link };
  }

  #entries(made: Made, { moved }: DryOutcome, now: number): ExplainedEntry[] {
    const known = this.#known;
    const { settings } = this.#parts;
    const { described, network, resolved, sender } = made;
    const { source, destination, destinationMac, asksFor, tagged } = described;
    const entries: ExplainedEntry[] = [];
    if (sender) {
      entries.push(words.senderEntry(sender));
      if (settings.sourceCheck === 'strict' && source && !settings.l2) entries.push(words.routeEntry(known, source));
      return entries;
    }
    if (!settings.l2) return destination ? [words.routeEntry(known, destination)] : [];
    if (resolved?.via !== undefined) entries.push(words.hopEntry(resolved));
    else if (resolved) entries.push(words.neighbourEntry(known, network, resolved.address, now));
    // Neighbours of a VLAN are others than these.
    if (asksFor && !tagged) entries.push(words.neighbourEntry(known, network, asksFor, now));
    const group = destinationMac !== undefined && (destinationMac[0] & 1) === 1;
    if (destinationMac && !group) entries.push(words.macEntry(known, network, destinationMac, now));
    if (words.isFlooded(moved)) entries.push(words.floodEntry(known, network, macOrNull(destinationMac) ?? ''));
    return entries;
  }

  #notes({ bytes, network, described }: Made, outbound: boolean): string[] {
    const { mtus, devices, settings } = this.#parts;
    const packet = bytes.length - LINK_HEADER[settings.l2 ? 'l2' : 'l3'];
    if (packet <= mtus[network] || described.source === undefined) return [];
    const device = `the MTU of ${devices[network]}, ${mtus[network]}`;
    return outbound
      ? [
          `it is larger than ${device}: this host cuts it, or refuses it, before it gets to us; only a forwarded super-packet is so large`,
        ]
      : [`it is larger than ${device}, and is carried all the same`];
  }
}

function countersOf({ moved }: DryOutcome): Record<string, number> {
  const counters: Record<string, number> = {};
  for (const [id, by] of moved) {
    const name = TOLD[id];
    if (name !== undefined) counters[name] = by;
  }
  return counters;
}

/** Of a struct sockaddr. */
const addressIn = (name: Uint8Array): string =>
  textOf(name[0] === AF_INET ? name.subarray(4, 8) : name.subarray(8, 24));

function endpointText(name: Uint8Array): string {
  const { text, family } = addressOf(name[0] === AF_INET ? name.slice(4, 8) : name.slice(8, 24));
  const port = (name[2] << 8) | name[3];
  return family === 4 ? `${text}:${port}` : `[${text}]:${port}`;
}
