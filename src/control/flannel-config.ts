/**
 * flannel's network configuration, `<prefix>/config` in etcd, read as flannel reads it (flannel.md 2 to 4; pkg/subnet/config.go):
 * Go's JSON, no Backend means udp, its defaults and its checks.
 */
import { SetupError } from '../io/setup-error.js';
import { VNI_MOST } from '../packet/vxlan.js';
import { KEYS, makePool, type NetworkPool } from './allocation.js';
import { type Backend, KERNEL_VXLAN_PORT } from './backend.js';
import { type Address, type Cidr, parseAddress, parsePrefixOf } from './cidr.js';
import { DEFAULT_PORTS } from './encapsulation.js';
import { GoFields, parseGoJson } from './go-json.js';
import { reasonOf } from './reason.js';

export interface FlannelConfig {
  /** As it was read. */
  readonly text: string;
  /** IPv4 first; one or two. */
  readonly pools: readonly NetworkPool[];
  readonly backend: Backend;
  /** The host's rules are to be made by nft, not by iptables. */
  readonly nftables: boolean;
  /** What it asks for and we do not do, and can do without: one line each. */
  readonly warnings: readonly string[];
}

/** What flannel has besides, and this does not. */
const NOT_DONE = new Set([
  'ipip',
  'wireguard',
  'extension',
  'ipsec',
  'aws-vpc',
  'gce',
  'ali-vpc',
  'tencent-vpc',
  'hns',
]);

const UDP_MTU_LEAST = 68;

/**
 * Throws a SetupError of one line: `name`, what it was read from, and the key that is wrong (BAD_CONFIG), or the backend that is
 * not done (UNSUPPORTED_BACKEND).
 */
export function readFlannelConfig(text: string, name = 'flannel configuration'): FlannelConfig {
  try {
    const fields = new GoFields(parseGoJson(text));
    const pools = [
      ...((fields.boolean(KEYS[4].enable) ?? true) ? [poolOf(4, fields)] : []),
      ...((fields.boolean(KEYS[6].enable) ?? false) ? [poolOf(6, fields)] : []),
    ];
    if (pools.length === 0) throw new RangeError('EnableIPv4 and EnableIPv6 are both false');
    const warnings: string[] = [];
    const backend = backendOf(fields, warnings);
    return { text, pools, backend, nftables: fields.boolean('EnableNFTables') ?? false, warnings };
  } catch (error) {
    if (error instanceof SetupError) throw new SetupError(error.code, `${name}: ${reasonOf(error)}`);
    throw new SetupError('BAD_CONFIG', `${name}: ${reasonOf(error)}`);
  }
}

/** True when nothing of what they mean differs. */
export const sameFlannelConfig = (a: FlannelConfig, b: FlannelConfig): boolean => meaningOf(a) === meaningOf(b);

const meaningOf = ({ pools, backend, nftables }: FlannelConfig): string =>
  JSON.stringify([
    pools.map(({ network, subnetLength, min, max }) => [network.text, subnetLength, min.text, max.text]),
    backend,
    nftables,
  ]);

function poolOf(family: 4 | 6, fields: GoFields): NetworkPool {
  const keys = KEYS[family];
  const own = <T extends Address | Cidr>(parse: (text: string) => T) => {
    return (text: string): T => {
      const parsed = parse(text);
      if (parsed.family !== family) throw new RangeError(`${text} is not IPv${family}`);
      return parsed;
    };
  };
  /** All zeroes is Go's way to say nothing. */
  const end = (key: string): Address | undefined => {
    const address = fields.parsed(key, own(parseAddress));
    return address?.bytes.some((byte) => byte !== 0) ? address : undefined;
  };
  const network = fields.parsed(keys.network, own(parsePrefixOf));
  if (!network) throw new RangeError(`${keys.network}: missing: expected a prefix`);
  return makePool(network, fields.integer(keys.length) || undefined, end(keys.min), end(keys.max), keys);
}

function backendOf(fields: GoFields, warnings: string[]): Backend {
  if (fields.get('Backend') === undefined && !fields.isNull('Backend')) {
    return { type: 'udp', port: DEFAULT_PORTS.l3 };
  }
  const backend = fields.object('Backend') ?? new GoFields(null, 'Backend.');
  const type = (backend.string('Type') ?? '').toLowerCase();
  switch (type) {
    case 'udp':
      return { type, port: portOf(backend, DEFAULT_PORTS.l3, false) };
    case 'vxlan':
      return vxlanOf(backend, warnings);
    case 'host-gw':
    case 'alloc':
      return { type };
    case '':
      throw new RangeError('Backend.Type: missing: expected udp, vxlan, host-gw or alloc');
    default:
      throw new SetupError(
        'UNSUPPORTED_BACKEND',
        `Backend.Type: ${NOT_DONE.has(type) ? `weftd does not have flannel's backend ${type}` : `there is no backend ${JSON.stringify(type)}`}: expected udp, vxlan, host-gw or alloc`,
      );
  }
}

function vxlanOf(backend: GoFields, warnings: string[]): Backend {
  const vni = backend.integer('VNI') ?? 1;
  if (vni < 0 || vni > VNI_MOST) throw new RangeError(`Backend.VNI: ${vni}: expected 0 to ${VNI_MOST}`);
  const mtu = backend.integer('MTU') || undefined;
  if (mtu !== undefined && (mtu < UDP_MTU_LEAST || mtu > 65535)) {
    throw new RangeError(`Backend.MTU: ${mtu}: expected ${UDP_MTU_LEAST} to 65535`);
  }
  if (backend.boolean('GBP')) {
    warnings.push(
      'Backend.GBP: weftd carries no group policy (draft-smith-vxlan-group-policy): peers see packets of none',
    );
  }
  return {
    type: 'vxlan',
    port: portOf(backend, KERNEL_VXLAN_PORT, true),
    vni,
    mtu,
    learning: backend.boolean('Learning') ?? false,
    directRouting: backend.boolean('DirectRouting') ?? false,
  };
}

/** `zero`: means the default. */
function portOf(backend: GoFields, usual: number, zero: boolean): number {
  const port = backend.integer('Port') ?? usual;
  if (port === 0 && zero) return usual;
  if (port < 1 || port > 65535) throw new RangeError(`Backend.Port: ${port}: expected 1 to 65535`);
  return port;
}
