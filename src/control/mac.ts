/** MAC addresses as text from outside, checked strictly, and as six bytes. */

export interface Mac {
  /** Six, in the order of the wire. */
  readonly bytes: Uint8Array;
  /** Canonical text: lower case, with colons. */
  readonly text: string;
}

/** Six bytes of a MAC address of any kind; undefined: the text is none. */
export function macBytesOf(text: string): Uint8Array | undefined {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)) return undefined;
  return Uint8Array.from(text.split(':'), (octet) => Number.parseInt(octet, 16));
}

/** Parses the MAC address of one station. Throws a RangeError: not a MAC address, a group address, or zero. */
export function parseMac(text: string): Mac {
  const bytes = macBytesOf(text);
  if (!bytes) throw new RangeError(`"${text}" is not a MAC address`);
  // The lowest bit of the first octet: IEEE 802, I/G.
  if (bytes[0] & 1) throw new RangeError(`"${text}" is a group address, not that of one station`);
  if (bytes.every((octet) => octet === 0)) throw new RangeError(`"${text}" is no station's address`);
  return { bytes, text: macText(bytes) };
}

/** Canonical text of six bytes. */
export const macText = (bytes: Uint8Array): string =>
  Array.from(bytes, (octet) => octet.toString(16).padStart(2, '0')).join(':');
