/**
 * What a query asks to capture. `peer` (name or underlay address), `host` (address, prefix or MAC: inner source or destination,
 * or the outer end that is not ours) and `verdict` (words, with commas: drop, sent, forwarded, or a counter) each as often as one
 * likes; `side` device|underlay, `direction` in|out, `snaplen` (bytes of a packet), and for how long: `count` (packets),
 * `seconds`.
 */
import { cidrOf, parseAddress } from '../control/cidr.js';
import { macBytesOf } from '../control/mac.js';
import { type CaptureHost, MOST_HOSTS, MOST_PEERS } from '../dataplane/capture-filter.js';
import { verdictsOf } from '../dataplane/verdicts.js';
import { DEVICE_IN, DEVICE_OUT, MAX_SNAPLEN, UNDERLAY_IN, UNDERLAY_OUT } from '../io/capture-record.js';
import { Refusal } from './refusal.js';

export interface CaptureQuestion {
  /** As they were named; none: all, and those who are nobody. */
  readonly peers: readonly string[];
  readonly hosts: readonly CaptureHost[] | undefined;
  readonly verdicts: readonly number[] | undefined;
  /** Of io/capture-record.ts. */
  readonly places: readonly number[];
  /** Bytes. */
  readonly snaplen: number;
  readonly count: number | undefined;
  readonly seconds: number | undefined;
}

const KNOWN = ['peer', 'host', 'verdict', 'side', 'direction', 'snaplen', 'count', 'seconds'];
/** Longest a timer can wait. */
const MOST_SECONDS = 2_000_000;

/** Throws a Refusal: what is asked makes no sense. */
export function captureQuestion(query: URLSearchParams): CaptureQuestion {
  const unknown = [...query.keys()].find((key) => !KNOWN.includes(key));
  if (unknown !== undefined) throw refusal(`no parameter ${JSON.stringify(unknown)}: ${KNOWN.join(', ')}`);
  const peers = query.getAll('peer');
  const hosts = query.getAll('host').map(hostOf);
  const words = query.getAll('verdict').flatMap((list) => list.split(','));
  // A peer has a reference in each of its networks.
  if (peers.length > MOST_PEERS / 16) throw refusal(`at most ${MOST_PEERS / 16} peers`);
  if (hosts.length > MOST_HOSTS) throw refusal(`at most ${MOST_HOSTS} hosts`);
  return {
    peers,
    hosts: hosts.length > 0 ? hosts : undefined,
    verdicts: words.length > 0 ? words.flatMap(verdictOf) : undefined,
    places: placesOf(one(query, 'side'), one(query, 'direction')),
    snaplen: numberOf(query, 'snaplen', 1, MAX_SNAPLEN) ?? MAX_SNAPLEN,
    count: numberOf(query, 'count', 1, Number.MAX_SAFE_INTEGER),
    seconds: numberOf(query, 'seconds', 1, MOST_SECONDS),
  };
}

const refusal = (line: string): Refusal => new Refusal(400, `capture: ${line}`);

function one(query: URLSearchParams, name: string): string | undefined {
  const values = query.getAll(name);
  if (values.length > 1) throw refusal(`${name} more than once`);
  return values[0];
}

function numberOf(query: URLSearchParams, name: string, least: number, most: number): number | undefined {
  const text = one(query, name);
  if (text === undefined) return undefined;
  const number = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!(number >= least && number <= most)) {
    throw refusal(`${name} ${JSON.stringify(text)} is not a whole number from ${least} to ${most}`);
  }
  return number;
}

function verdictOf(word: string): readonly number[] {
  const found = verdictsOf(word);
  if (found) return found;
  throw refusal(`no verdict ${JSON.stringify(word)}: drop, sent, forwarded, flooded, or a reason of weft drops`);
}

function placesOf(side: string | undefined, direction: string | undefined): number[] {
  if (side !== undefined && side !== 'device' && side !== 'underlay') {
    throw refusal(`side ${JSON.stringify(side)} is neither device nor underlay`);
  }
  if (direction !== undefined && direction !== 'in' && direction !== 'out') {
    throw refusal(`direction ${JSON.stringify(direction)} is neither in nor out`);
  }
  const sides = { device: [DEVICE_IN, DEVICE_OUT], underlay: [UNDERLAY_IN, UNDERLAY_OUT] };
  const directions = { out: [DEVICE_IN, UNDERLAY_OUT], in: [UNDERLAY_IN, DEVICE_OUT] };
  const all = side === undefined ? [...sides.device, ...sides.underlay] : sides[side];
  return direction === undefined ? all : all.filter((place) => directions[direction].includes(place));
}

/** An address, a prefix, or a MAC of any kind. */
function hostOf(text: string): CaptureHost {
  const mac = macBytesOf(text);
  if (mac) return { bytes: mac, length: 48 };
  const [, address, bits] = /^([^/]*)(?:\/(0|[1-9]\d{0,2}))?$/.exec(text) ?? [];
  try {
    const { bytes } = parseAddress(address ?? text);
    const length = bits === undefined ? bytes.length * 8 : Number(bits);
    if (length <= bytes.length * 8) return { bytes: cidrOf(bytes, length).bytes, length };
  } catch {
    // Said below, whatever was wrong with it.
  }
  throw refusal(`host ${JSON.stringify(text)} is not an address, a prefix or a MAC`);
}
