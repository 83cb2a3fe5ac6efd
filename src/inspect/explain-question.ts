/** The parameters of /v1/explain, checked. What is wrong with them is a RangeError of one line. */
import { type Address, parseAddress } from '../control/cidr.js';
import { macBytesOf } from '../control/mac.js';
import { VNET_HEADER } from '../io/memory.js';
import * as ip from '../packet/ip.js';

/** An IP address, a MAC, or a name. */
export type Place =
  | { readonly kind: 'address'; readonly address: Address }
  | { readonly kind: 'mac'; readonly mac: Uint8Array }
  | { readonly kind: 'name'; readonly name: string };

export interface Question {
  readonly to: Place | undefined;
  readonly from: Place | undefined;
  readonly mac: Uint8Array | undefined;
  readonly in: Place | undefined;
  readonly size: number | undefined;
  readonly df: boolean;
  readonly ttl: number;
  /** undefined: ICMP of the family. */
  readonly protocol: number | undefined;
  /** Who has `to`? */
  readonly asks: boolean;
  readonly tos: number | undefined;
  readonly vni: number | undefined;
  readonly packet: Uint8Array | undefined;
  readonly vnet: Uint8Array | undefined;
}

const PARAMETERS = ['to', 'from', 'mac', 'in', 'size', 'df', 'ttl', 'proto', 'tos', 'vni', 'packet', 'vnet'] as const;
type Name = (typeof PARAMETERS)[number];

/** What describes a packet that is to be made. */
const DESCRIBING: readonly Name[] = ['to', 'from', 'mac', 'size', 'df', 'ttl', 'proto'];

/** Characters of an address or a name. */
const MOST_TEXT = 256;
/** The longest packet there is. */
const MOST_BYTES = 65_535;

export function parseQuestion(query: URLSearchParams): Question {
  const values = new Map<string, string>();
  for (const [name, value] of query) {
    if (!PARAMETERS.some((known) => known === name)) {
      throw new RangeError(`no such parameter: ${name.slice(0, 32)}: there are ${PARAMETERS.join(', ')}`);
    }
    if (values.has(name)) throw new RangeError(`${name}: said twice`);
    values.set(name, value);
  }
  const text = (name: Name): string | undefined => values.get(name);
  const place = (name: Name): Place | undefined => parsed(name, text(name), parsePlace);
  const number = (name: Name, least: number, most: number): number | undefined =>
    parsed(name, text(name), (value) => parseNumber(value, least, most));
  const question: Question = {
    to: place('to'),
    from: place('from'),
    in: place('in'),
    mac: parsed('mac', text('mac'), parseAnyMac),
    size: number('size', 1, MOST_BYTES),
    df: number('df', 0, 1) === 1,
    ttl: number('ttl', 0, 255) ?? 64,
    ...parseProtocol(text('proto')),
    tos: number('tos', 0, 255),
    vni: number('vni', 0, 0xffffff),
    packet: parsed('packet', text('packet'), parseHex),
    vnet: parsed('vnet', text('vnet'), parseHex),
  };
  check(question);
  const said = DESCRIBING.find((name) => values.has(name));
  if (question.packet && said) throw new RangeError(`${said}: a packet that is given says that itself: leave it out`);
  return question;
}

function check({ to, from, packet, vnet, in: sender, tos }: Question): void {
  if (packet === undefined && to === undefined && sender === undefined) {
    throw new RangeError('what is to be explained? give an address, a MAC or a peer, or a packet');
  }
  if (from?.kind === 'name') throw new RangeError('from: expected an address or a MAC');
  if (sender?.kind === 'mac') throw new RangeError('in: expected a peer or an underlay address, not a MAC');
  if (vnet !== undefined && (packet === undefined || sender !== undefined)) {
    throw new RangeError('vnet: goes with a packet from our device only');
  }
  if (vnet !== undefined && vnet.length !== VNET_HEADER) {
    throw new RangeError(`vnet: expected ${VNET_HEADER} bytes, not ${vnet.length}`);
  }
  if (tos !== undefined && sender === undefined)
    throw new RangeError('tos: is the outer one of what comes in: give in');
}

function parsed<T>(name: Name, text: string | undefined, parse: (text: string) => T): T | undefined {
  if (text === undefined) return undefined;
  try {
    return parse(text);
  } catch (error) {
    throw new RangeError(`${name}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** A group's too: frames go to groups. */
function parseAnyMac(text: string): Uint8Array {
  const mac = macBytesOf(text);
  if (!mac) throw new RangeError(`"${text.slice(0, 64)}" is not a MAC address`);
  return mac;
}

function parsePlace(text: string): Place {
  if (text.length === 0 || text.length > MOST_TEXT) throw new RangeError('expected an address, a MAC or a name');
  const mac = macBytesOf(text);
  if (mac) return { kind: 'mac', mac };
  if (!/:|^[\d.]+$/.test(text)) return { kind: 'name', name: text };
  try {
    return { kind: 'address', address: parseAddress(text) };
  } catch {
    return { kind: 'name', name: text };
  }
}

function parseNumber(text: string, least: number, most: number): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= least && value <= most)) {
    throw new RangeError(`"${text.slice(0, 64)}": expected a number, ${least} to ${most}`);
  }
  return value;
}

function parseHex(text: string): Uint8Array {
  if (text.length > 2 * MOST_BYTES) throw new RangeError(`more than ${MOST_BYTES} bytes`);
  if (text.length % 2 === 1 || !/^[0-9a-f]*$/i.test(text)) throw new RangeError('expected bytes in hexadecimal');
  return Uint8Array.from(Buffer.from(text, 'hex'));
}

const PROTOCOLS: Readonly<Record<string, number | undefined>> = { udp: ip.PROTOCOL_UDP, tcp: ip.PROTOCOL_TCP };

function parseProtocol(text: string | undefined): Pick<Question, 'protocol' | 'asks'> {
  if (text === undefined || text === 'icmp') return { protocol: undefined, asks: false };
  if (text === 'arp' || text === 'nd') return { protocol: undefined, asks: true };
  const named = PROTOCOLS[text];
  if (named !== undefined) return { protocol: named, asks: false };
  return { protocol: parsed('proto', text, (value) => parseProtocolNumber(value)), asks: false };
}

function parseProtocolNumber(text: string): number {
  if (!/^\d+$/.test(text)) throw new RangeError(`"${text.slice(0, 64)}": expected icmp, udp, tcp, arp or a number`);
  return parseNumber(text, 0, 255);
}
