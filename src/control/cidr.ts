/**
 * IP addresses and prefixes as text from outside, checked strictly, and as bytes for the tables.
 *
 * IPv4 is four decimal numbers without leading zeros and nothing else: `010.0.0.1`, `10.1` and `0x0a000001` mean different
 * addresses to different programs, so they are refused (RFC 6943 3.1.1). IPv6 is RFC 4291 text; canonical output is RFC 5952.
 */
import ipaddr from 'ipaddr.js';
import type { Family, Prefix } from '../dataplane/routes.js';

export interface Address {
  readonly family: Family;
  /** Network byte order, 4 or 16 bytes. */
  readonly bytes: Uint8Array;
  /** Canonical text: two equal addresses have the same. */
  readonly text: string;
}

/** A prefix with its canonical text, `address/length`; bits beyond the length are zero. */
export interface Cidr extends Prefix {
  readonly family: Family;
  readonly text: string;
}

/** An address of an interface, with the length of the prefix that is on its link. */
export interface InterfaceAddress extends Address {
  readonly length: number;
}

/** Parses an address. Throws a RangeError that says what is wrong with it. */
export function parseAddress(text: string): Address {
  if (ipaddr.IPv4.isValidFourPartDecimal(text)) {
    const octets = text.split('.').map(Number);
    if (octets.every((octet) => octet <= 255)) return { family: 4, bytes: Uint8Array.from(octets), text };
  } else if (text.includes(':') && !text.includes('%') && ipaddr.IPv6.isValid(text)) {
    const address = ipaddr.IPv6.parse(text);
    if (address.isIPv4MappedAddress()) throw new RangeError(`"${text}" is an IPv4 address in IPv6 form`);
    return { family: 6, bytes: Uint8Array.from(address.toByteArray()), text: address.toRFC5952String() };
  }
  throw new RangeError(`"${text}" is not an IP address`);
}

/** What an address is for, by the IANA registries that ipaddr.js knows: `unicast`, `private`, `multicast`, … */
export function rangeOf(address: Address): string {
  return ipaddr.fromByteArray([...address.bytes]).range();
}

/** Ranges that name no host; link-local names one only together with an interface. Loopback is for trying out. */
const NO_HOST = new Set(['unspecified', 'linkLocal', 'multicast', 'broadcast']);
const NO_STATION = new Set(['unspecified', 'loopback', 'multicast', 'broadcast']);
const NO_NETWORK = new Set([...NO_HOST, 'loopback']);

/** Parses the underlay address of a host. Throws a RangeError for one that names no single host. */
export function parseHostAddress(text: string): Address {
  const address = parseAddress(text);
  const range = rangeOf(address);
  if (NO_HOST.has(range)) throw new RangeError(`"${text}" is ${aOrAn(range)} ${words(range)} address`);
  return address;
}

/** Parses the address of a station on a network, which may be link-local. Throws a RangeError for one that names none. */
export function parseNeighbourAddress(text: string): Address {
  const address = parseAddress(text);
  const range = rangeOf(address);
  if (NO_STATION.has(range)) throw new RangeError(`"${text}" is ${aOrAn(range)} ${words(range)} address`);
  return address;
}

/**
 * Parses `address/length` of unicast addresses. Throws a RangeError: not a CIDR, bits set beyond the length (with the one
 * that was probably meant), or not unicast.
 */
export function parseCidr(text: string): Cidr {
  const { address, prefix } = parseAddressAndLength(text);
  if (!equalBytes(prefix.bytes, address.bytes)) throw new RangeError(`"${text}" has host bits set (${prefix.text}?)`);
  return prefix;
}

/** The prefix of an address on it: `10.5.1.0/24` of `10.5.1.1/24`. Throws a RangeError: not a CIDR, or not unicast. */
export const parsePrefixOf = (text: string): Cidr => parseAddressAndLength(text).prefix;

/** Parses `address/length` of an interface, to which host bits belong. Throws a RangeError: not that, or not unicast. */
export function parseInterfaceAddress(text: string): InterfaceAddress {
  const { address, prefix } = parseAddressAndLength(text);
  return { ...address, length: prefix.length };
}

function parseAddressAndLength(text: string): { readonly address: Address; readonly prefix: Cidr } {
  const match = /^([^/]+)\/(0|[1-9]\d{0,2})$/.exec(text);
  if (!match) throw new RangeError(`"${text}" is not a CIDR`);
  const address = parseAddress(match[1]);
  const length = Number(match[2]);
  const bits = address.bytes.length * 8;
  if (length > bits) throw new RangeError(`"${text}" has a prefix length above ${bits}`);
  const prefix = cidrOf(address.bytes, length);
  const range = rangeOf({ ...address, bytes: prefix.bytes });
  if (NO_NETWORK.has(range)) throw new RangeError(`"${text}" is ${words(range)}, not unicast`);
  return { address, prefix };
}

/** The prefix of that length that has the address in `bytes`. */
export function cidrOf(bytes: Uint8Array, length: number): Cidr {
  const masked = maskedBytes(bytes, length);
  return { family: masked.length === 4 ? 4 : 6, bytes: masked, length, text: `${textOf(masked)}/${length}` };
}

/** The address in `bytes`. */
export const addressOf = (bytes: Uint8Array): Address => ({
  family: bytes.length === 4 ? 4 : 6,
  bytes,
  text: textOf(bytes),
});

/** The base address of the next prefix of the same length; undefined after the last one of the family. */
export function nextBase({ bytes, length }: Prefix): Uint8Array | undefined {
  const next = Uint8Array.from(bytes);
  let step = 1 << (7 - ((length + 7) & 7)); // the last bit of the prefix, in its byte
  for (let i = (length - 1) >> 3; i >= 0; i--) {
    const sum = next[i] + step;
    next[i] = sum; // modulo 256
    if (sum < 256) return next;
    step = 1;
  }
  return undefined;
}

/** The base address of the last prefix of length `inner` in a shorter one. */
export const lastBase = ({ bytes, length }: Prefix, inner: number): Uint8Array =>
  maskedBytes(
    bytes.map((byte, i) => byte | (0xff >> Math.min(8, Math.max(0, length - i * 8)))),
    inner,
  );

/** Negative, 0 or positive: the order of two addresses of one family. */
export function compareAddresses(a: Uint8Array, b: Uint8Array): number {
  const differs = a.findIndex((byte, i) => byte !== b[i]);
  return differs < 0 ? 0 : a[differs] - b[differs];
}

/** Canonical text of 4 or 16 bytes. */
export function textOf(bytes: Uint8Array): string {
  return bytes.length === 4 ? bytes.join('.') : new ipaddr.IPv6([...bytes]).toRFC5952String();
}

/** True when every address of `inner` is in `outer`. */
export function contains(outer: Prefix, inner: Prefix): boolean {
  return (
    outer.bytes.length === inner.bytes.length &&
    outer.length <= inner.length &&
    equalBytes(maskedBytes(inner.bytes, outer.length), outer.bytes)
  );
}

/** True when some address is in both: prefixes nest or are disjoint. */
export const overlaps = (a: Prefix, b: Prefix): boolean => contains(a, b) || contains(b, a);

function maskedBytes(bytes: Uint8Array, length: number): Uint8Array {
  return bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, length - i * 8))));
}

function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** `linkLocal` → `link local`. */
const words = (range: string): string => range.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);

const aOrAn = (word: string): string => (/^[aeiou]/.test(word) ? 'an' : 'a');
