/**
 * flannel's leases in etcd: the key under `<prefix>/subnets/` names the subnets, the value says where they are. Keys and values
 * are written byte for byte as flannel's Go writes them; what others wrote is read as Go reads it (pkg/subnet/subnet.go,
 * pkg/lease/lease.go), and refused whole if any part of it makes no sense.
 *
 *   10.5.1.0-24                  IPv4
 *   10.5.1.0-24&fc00:0:0:1::-64  both
 *   0.0.0.0-0&fc00:0:0:1::-64    IPv6 alone: flannel has no other way to say it
 */
import type { BackendType } from './backend.js';
import { type Address, type Cidr, parseAddress, parseCidr, parseHostAddress, parsePrefixOf } from './cidr.js';
import { GoFields, parseGoJson } from './go-json.js';
import { parseMac } from './mac.js';

type Family = 4 | 6;

/** What the value of a lease says. */
export interface LeaseAttributes {
  /** Underlay addresses as others know them. */
  readonly publicIp: Address | undefined;
  readonly publicIpv6: Address | undefined;
  /** flannel's udp and alloc say none: empty. */
  readonly backendType: string;
  /** Of vxlan: the MAC of the device, canonical text, by underlay family. */
  readonly macs: { readonly [F in Family]?: string | undefined };
  /** Of vxlan; undefined where none is said (flannel before 0.16). */
  readonly vni: number | undefined;
}

/** flannel's own expression, for the last part of the key. */
const KEY = /^(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$/;
const NO_IPV4 = '0.0.0.0-0';

/** The last part of the key for these subnets: one or two, of different families. */
export function formatLeaseKey(subnets: readonly Cidr[]): string {
  const part = (family: Family): string | undefined =>
    subnets.find((one) => one.family === family)?.text.replace('/', '-');
  const [ipv4 = NO_IPV4, ipv6] = [part(4), part(6)];
  return ipv6 === undefined ? ipv4 : `${ipv4}&${ipv6}`;
}

/**
 * The subnets of a key, IPv4 first. Throws a RangeError: flannel would not take it for one, or it is not as flannel would have
 * written it, so that two keys could mean one subnet.
 */
export function parseLeaseKey(key: string): readonly Cidr[] {
  const match = KEY.exec(key);
  if (!match) throw new RangeError('not the key of a lease');
  const [, address4, length4, address6, length6] = match;
  const ipv4 = `${address4}-${length4}` === NO_IPV4 && address6 !== undefined ? [] : [`${address4}/${length4}`];
  const subnets = [...ipv4, ...(address6 === undefined ? [] : [`${address6}/${length6}`])].map(parseCidr);
  const canonical = formatLeaseKey(subnets);
  if (canonical !== key) throw new RangeError(`flannel would have called it ${canonical}`);
  return subnets;
}

/** What a key keeps others from using, even if it is not one that we read; empty: nothing. */
export function subnetsTakenBy(key: string): readonly Cidr[] {
  const match = KEY.exec(key.slice(key.lastIndexOf('/') + 1));
  if (!match) return [];
  const [, address4, length4, address6, length6] = match;
  return [`${address4}/${length4}`, `${address6}/${length6}`].flatMap((text) => {
    try {
      return [parsePrefixOf(text)];
    } catch {
      return [];
    }
  });
}

/** The value as flannel writes it; VtepMAC is last, where flannel's parsers look for it. */
export function formatLease({ publicIp, publicIpv6, backendType, macs, vni }: LeaseAttributes): string {
  const data = (mac: string | undefined): object | undefined => {
    return mac === undefined ? undefined : { ...(vni === undefined ? {} : { VNI: vni }), VtepMAC: mac };
  };
  return JSON.stringify({
    PublicIP: publicIp?.text ?? '0.0.0.0',
    PublicIPv6: publicIpv6?.text ?? null,
    BackendType: backendType || undefined,
    BackendData: data(macs[4]),
    BackendV6Data: data(macs[6]),
  });
}

/** Reads a value. Throws a RangeError of one line. */
export function parseLease(value: string): LeaseAttributes {
  const fields = new GoFields(parseGoJson(value));
  // flannel itself cannot read this; where it is followed, all hosts must agree on who is there.
  if (fields.isNull('PublicIP')) throw new RangeError('PublicIP: null');
  const backendType = fields.string('BackendType') ?? '';
  const vxlan = backendType === ('vxlan' satisfies BackendType);
  const [data, dataV6] = vxlan ? [fields.object('BackendData'), fields.object('BackendV6Data')] : [];
  const mac4 = data?.parsed('VtepMAC', parseGoMac);
  const mac6 = dataV6?.parsed('VtepMAC', parseGoMac);
  return {
    publicIp: fields.parsed('PublicIP', (text) => addressOf(4, text)),
    publicIpv6: fields.parsed('PublicIPv6', (text) => addressOf(6, text)),
    backendType,
    macs: { ...(mac4 === undefined ? {} : { 4: mac4 }), ...(mac6 === undefined ? {} : { 6: mac6 }) },
    vni: data?.integer('VNI') ?? dataV6?.integer('VNI'),
  };
}

/** All zeroes is Go's way to say none. */
function addressOf(family: Family, text: string): Address | undefined {
  const address = parseAddress(text);
  if (address.family !== family) throw new RangeError(`"${text}" is not IPv${family}`);
  return address.bytes.every((byte) => byte === 0) ? undefined : parseHostAddress(text);
}

/** The forms that Go's net.ParseMAC takes: `52:51:47:5c:73:1e`, with dashes, and `5251.475c.731e`. */
function parseGoMac(text: string): string {
  const digits = /^[0-9a-f]{4}(\.[0-9a-f]{4}){2}$/i.test(text)
    ? text.replaceAll('.', '').replace(/..(?!$)/g, '$&:')
    : text;
  return parseMac(digits.includes(':') ? digits : digits.replaceAll('-', ':')).text;
}
