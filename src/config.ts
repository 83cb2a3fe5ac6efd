/**
 * Every option of weftd, once: the flag, the environment variable, the key of the JSON file, the default, the check and the
 * help all come from the table below, flannel's rows from flannel-options.ts; command-line.ts reads them.
 *
 * All sources give text that goes through the same check. Errors are one line: which option, its value, what is expected.
 */
import type { ConfigWish } from './control/allocation.js';
import {
  type Address,
  type Cidr,
  type InterfaceAddress,
  parseAddress,
  parseCidr,
  parseInterfaceAddress,
} from './control/cidr.js';
import { DEFAULT_PORTS, MODES, type Mode } from './control/encapsulation.js';
import { LOG_LEVELS, type LogLevel } from './control/event-log.js';
import { MTU_LEAST, MTU_MOST } from './control/underlay.js';
import type { SourceCheck } from './dataplane/settings.js';
import {
  FLANNEL_OPTIONS,
  type FlannelSettings,
  interfaceName,
  type NOTHING_SAID,
  UNDERLAY_OPTIONS,
} from './flannel-options.js';
import { MAX_SENDERS } from './io/memory.js';
import { OFFLOAD_NAMES, parseOffloads } from './io/offloads.js';
import {
  eitherOf,
  listOf,
  needed,
  nonEmpty,
  type Option,
  oneOf,
  onePerFamily,
  optional,
  truth,
  wholeNumber,
  wrong,
} from './option.js';
import { VNI_MOST } from './packet/vxlan.js';

export { type Option, UsageError } from './option.js';

/** What the options say, each by itself. Lists by family hold at most one IPv4 and one IPv6 entry. */
export interface Settings extends FlannelSettings {
  readonly mode: Mode;
  /**
   * `static` has networks, subnets and a peers file; `embedded` none of the latter two, and networks perhaps; with `etcd`, etcd says
   * it all: `mode`, `networks`, `port` and `segments` here mean nothing then.
   */
  readonly registry: RegistryKind;
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  /** Of the subnets that are given out, by network in the order of `networks`; empty: flannel's. */
  readonly subnetLengths: readonly number[];
  readonly subnetMins: readonly Address[];
  readonly subnetMaxs: readonly Address[];
  readonly backend: 'udp' | undefined;
  readonly registryPath: string;
  /** undefined: one named by the first underlay address. */
  readonly stateDir: string | undefined;
  /** Seconds; undefined: LEASE_TTL. */
  readonly leaseTtl: number | undefined;
  /** Seconds. */
  readonly staleLimit: number;
  /** undefined: what the registry says, or that of DEFAULT_PORTS. */
  readonly port: number | undefined;
  readonly peersFile: string | undefined;
  /** Device MTU in bytes; undefined: what the interface carries. */
  readonly mtu: number | undefined;
  readonly device: string | undefined;
  /** Layer 2; what of it says something of one network is in `segments`. */
  readonly vni: number | undefined;
  readonly bridge: string | undefined;
  readonly addresses: readonly InterfaceAddress[];
  /** Sockets per underlay to send from, in layer 2. */
  readonly sourcePorts: number;
  /** UDP checksums outside; without them they are zero. */
  readonly outerChecksum: boolean;
  /** IPv4's DF bit outside. */
  readonly outerDf: boolean;
  /** The inner DSCP is copied outside. */
  readonly inheritDscp: boolean;
  /** Seconds without traffic after which what was learned is forgotten. */
  readonly macAge: number;
  /** Most MACs that are learned. */
  readonly macTable: number;
  readonly macsPerPeer: number | undefined;
  /** Frames to a MAC that nobody knows go to all peers of the network. */
  readonly floodUnknown: boolean;
  /** Most frames flooded in a second, per network; 0: no limit. */
  readonly stormLimit: number;
  /** Bit set of io/offloads.ts. */
  readonly offloads: number;
  readonly sourceCheck: SourceCheck;
  /** undefined: no HTTP endpoint. */
  readonly metricsAddress: { readonly host: string; readonly port: number } | undefined;
  /** Path of the socket that `weft` asks; undefined: the default place; 'off': none. */
  readonly controlSocket: string | undefined;
  readonly workers: number;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
  readonly keepDevice: boolean;
  readonly configFile: string | undefined;
}

/** A network of layer 2 and its device. */
export interface Segment {
  readonly vni: number;
  readonly device: string;
  /** The bridge that the device is put into. */
  readonly bridge: string | undefined;
  /** Of the device itself, at most one of each family. */
  readonly addresses: readonly InterfaceAddress[];
  /** Of the device, in bytes; undefined: what the underlay carries. */
  readonly mtu: number | undefined;
}

/** What is said here otherwise, or is of no use after it was checked. */
type NotInConfig =
  | (typeof NOTHING_SAID)[number]
  | 'vni'
  | 'bridge'
  | 'addresses'
  | 'publicIpv6'
  | 'healthzIp'
  | 'healthzPort'
  | 'verbosity';

/** What weftd runs with: the settings, checked together. */
export interface Config extends Omit<Settings, NotInConfig> {
  /** Layer 3: the TUN device. In layer 2 each segment has its own; this is the first's. */
  readonly device: string;
  /** Layer 2: the networks, by number; at least one, at most MAX_NETWORKS. Empty in layer 3. */
  readonly segments: readonly Segment[];
  /** Most MACs learned from one peer. */
  readonly macsPerPeer: number;
  readonly leaseTtl: number;
  readonly forwardRules: boolean;
  /** Somebody said where metrics are to be served: it has to be there, then. */
  readonly metricsSaid: boolean;
  /** Where /healthz and /readyz are served, and nothing else. */
  readonly healthAddress: { readonly host: string; readonly port: number } | undefined;
}

/** The device of layer 3 when nobody says otherwise: flannel's. */
export const DEVICE = 'flannel0';
/** The registry of this machine is in it, and the state of each daemon. */
export const DIRECTORY = '/var/lib/weft';
/** Where flanneld writes it, and weftd with etcd. */
export const FLANNEL_SUBNET_FILE = '/run/flannel/subnet.env';
export const REGISTRIES = ['embedded', 'static', 'etcd'] as const;
export type RegistryKind = (typeof REGISTRIES)[number];
/** In seconds, where nobody says otherwise. */
export const LEASE_TTL: Readonly<Record<RegistryKind, number>> = { embedded: 60, static: 60, etcd: 86_400 };

export const LOG_FORMATS = ['json', 'text'] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

/** A name that the kernel takes (dev_valid_name) and that means nothing else: `%` is a template, `all` a sysctl. */
function deviceName(text: string): string {
  if (text.length > 15) wrong(`${text.length} characters long`);
  return /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(text) && !['all', 'default', 'lo'].includes(text) ? text : wrong();
}

function hostAndPort(text: string): { host: string; port: number } | undefined {
  if (text === 'off') return undefined;
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(text);
  if (!match) return wrong();
  const address = parseAddress(match[1] ?? match[2]);
  if ((address.family === 6) !== (match[1] !== undefined)) return wrong();
  return { host: address.text, port: wholeNumber(1, 65535)(match[3]) };
}

const PORT = 'a port, 1 to 65535';
const CIDRS = 'at most one IPv4 and one IPv6 prefix with host bits zero, e.g. ';

export const OPTIONS: { readonly [K in keyof Settings]: Option<Settings[K]> } = {
  mode: {
    flag: 'mode',
    value: 'layer',
    default: 'l3',
    expects: 'l3 or l2',
    check: needed(oneOf(MODES)),
    help: 'l3: a router, IP packets in UDP; l2: a switch, Ethernet frames in VXLAN',
    example: '--mode l2',
  },
  registry: {
    flag: 'registry',
    value: 'kind',
    default: 'embedded',
    expects: 'embedded, static or etcd',
    check: needed(oneOf(REGISTRIES)),
    help: "who tells of the other hosts, and which has which subnet: embedded: the daemons of this machine among themselves; static: a peers file (the default with --peers); etcd: flannel's keys (the default with an etcd flag)",
    example: '--registry static',
  },
  networks: {
    flag: 'network',
    value: 'cidr,…',
    list: true,
    default: undefined,
    expects: `${CIDRS}10.5.0.0/16,fd00:5::/48`,
    check: listOf(onePerFamily(parseCidr)),
    help: 'l3: the overlay, all that is routed into the device (needed by the first daemon of an embedded registry, and with a peers file)',
    example: '--network 10.5.0.0/16,fd00:5::/48',
  },
  subnetLengths: {
    flag: 'subnet-len',
    value: 'bits,…',
    list: true,
    default: undefined,
    expects: 'a prefix length for each of --network, in its order, e.g. 24,64',
    check: listOf((text) => text.split(',').map((item) => wholeNumber(1, 128)(item.trim()))),
    help: 'embedded: length of the subnet that each host gets (default: 24 and 64, or 2 more than the network)',
    example: '--subnet-len 26',
  },
  subnetMins: {
    flag: 'subnet-min',
    value: 'address,…',
    list: true,
    default: undefined,
    expects: 'at most one IPv4 and one IPv6 address, e.g. 10.5.16.0',
    check: listOf(onePerFamily(parseAddress)),
    help: "embedded: first subnet that is given out (default: the network's second)",
    example: '--subnet-min 10.5.16.0',
  },
  subnetMaxs: {
    flag: 'subnet-max',
    value: 'address,…',
    list: true,
    default: undefined,
    expects: 'at most one IPv4 and one IPv6 address, e.g. 10.5.31.0',
    check: listOf(onePerFamily(parseAddress)),
    help: "embedded: last subnet that is given out (default: the network's last)",
    example: '--subnet-max 10.5.31.0',
  },
  backend: {
    flag: 'backend',
    value: 'name',
    default: undefined,
    expects: 'udp',
    check: optional(oneOf(['udp'] as const)),
    help: "l3: how packets go from host to host: udp is flannel's IP in UDP",
    example: '--backend udp',
  },
  registryPath: {
    flag: 'registry-path',
    value: 'directory',
    default: `${DIRECTORY}/registry`,
    expects: 'a directory',
    check: needed(nonEmpty),
    help: 'embedded: the registry, one for all daemons of this machine',
    example: '--registry-path /srv/weft/registry',
  },
  stateDir: {
    flag: 'state-dir',
    value: 'directory',
    default: undefined,
    expects: 'a directory',
    check: optional(nonEmpty),
    help: `embedded, etcd: what this daemon remembers over a restart (default: ${DIRECTORY}/<public ip>)`,
    example: '--state-dir /srv/weft/node-1',
  },
  leaseTtl: {
    flag: 'lease-ttl',
    value: 'seconds',
    default: undefined,
    expects: 'seconds, 3 to 1000000',
    check: optional(wholeNumber(3, 1_000_000)),
    help: `how long our subnet stays ours, and we are known to the others, after we are gone (default: ${LEASE_TTL.embedded}; etcd: ${LEASE_TTL.etcd})`,
    example: '--lease-ttl 86400',
  },
  staleLimit: {
    flag: 'stale-limit',
    value: 'seconds',
    default: '86400',
    expects: 'seconds, 0 to 9999999999',
    check: needed(wholeNumber(0, 9_999_999_999)),
    help: 'how old what we remember may be while the registry is away: embedded: to forward with it; etcd: to start with it',
    example: '--stale-limit 3600',
  },
  subnets: {
    flag: 'subnet',
    value: 'cidr,…',
    list: true,
    default: undefined,
    expects: `${CIDRS}10.5.1.0/24,fd00:5:0:1::/64`,
    check: listOf(onePerFamily(parseCidr)),
    help: "static: this host's part of each network; its first address becomes the device's",
    example: '--subnet 10.5.1.0/24,fd00:5:0:1::/64',
  },
  peersFile: {
    flag: 'peers',
    value: 'file',
    default: undefined,
    expects: 'a JSON file, e.g. {"peers":[{"name":"b","address":"192.168.77.2","subnets":["10.5.2.0/24"]}]}',
    check: optional(nonEmpty),
    help: 'static: the peers, and who owns which subnet (l2: which networks, MACs and neighbours); read again whenever it changes',
    example: '--peers /etc/weft/peers.json',
  },
  ...UNDERLAY_OPTIONS,
  port: {
    flag: 'port',
    value: 'number',
    default: undefined,
    expects: PORT,
    check: optional(wholeNumber(1, 65535)),
    help: `UDP port, here and, unless the peers file says otherwise, there (default: the registry's, or ${DEFAULT_PORTS.l3}; l2: ${DEFAULT_PORTS.l2})`,
    example: '--port 8286',
  },
  mtu: {
    flag: 'mtu',
    value: 'bytes',
    default: undefined,
    expects: `bytes, ${MTU_LEAST} to ${MTU_MOST}`,
    check: optional(wholeNumber(MTU_LEAST, MTU_MOST)),
    help: "the device's MTU (default: the interface's less 28, or less 48 when there is an IPv6 underlay; l2: less 50 or 70)",
    example: '--mtu 1400',
  },
  device: {
    flag: 'device',
    value: 'name',
    default: undefined,
    expects: 'at most 15 letters, digits, _, . or -',
    check: optional(deviceName),
    help: `name of the TUN or TAP device (default: ${DEVICE}; l2: weft<VNI>)`,
    example: '--device weft0',
  },
  vni: {
    flag: 'vni',
    value: 'number',
    default: undefined,
    expects: `a VXLAN network identifier, 0 to ${VNI_MOST}`,
    check: optional(wholeNumber(0, VNI_MOST)),
    help: 'l2: the network; several are "networks" in the JSON file',
    example: '--vni 42',
  },
  bridge: {
    flag: 'bridge',
    value: 'name',
    default: undefined,
    expects: 'the name of a bridge, e.g. br0',
    check: optional(interfaceName),
    help: 'l2: an existing bridge to put the device into',
    example: '--bridge br0',
  },
  addresses: {
    flag: 'address',
    value: 'cidr,…',
    list: true,
    default: undefined,
    expects: 'at most one IPv4 and one IPv6 address with its prefix length, e.g. 10.7.0.1/24,fd07::1/64',
    check: listOf(onePerFamily(parseInterfaceAddress)),
    help: 'l2: addresses of the device itself',
    example: '--address 10.7.0.1/24,fd07::1/64',
  },
  sourcePorts: {
    flag: 'source-ports',
    value: 'number',
    default: '4',
    expects: `a number, 1 to ${MAX_SENDERS}`,
    check: needed(wholeNumber(1, MAX_SENDERS)),
    help: 'l2: source ports to send from, chosen by a hash of the inner flow, so that paths and receive queues share the load',
    example: '--source-ports 8',
  },
  outerChecksum: {
    flag: 'outer-checksum',
    value: 'on|off',
    default: 'on',
    expects: 'on or off',
    check: needed(eitherOf('on', 'off')),
    help: 'UDP checksums of the underlay; off sends zero ones, and one datagram at a time',
    example: '--outer-checksum off',
  },
  outerDf: {
    flag: 'outer-df',
    value: 'set|unset',
    default: 'set',
    expects: 'set or unset',
    check: needed(eitherOf('set', 'unset')),
    help: "the underlay's don't-fragment bit; unset lets routers fragment what is too large for their links",
    example: '--outer-df unset',
  },
  inheritDscp: {
    flag: 'dscp',
    value: 'zero|inherit',
    default: 'zero',
    expects: 'zero or inherit',
    check: needed(eitherOf('inherit', 'zero')),
    help: 'DSCP of the underlay: zero, or that of the inner packet',
    example: '--dscp inherit',
  },
  macAge: {
    flag: 'mac-age',
    value: 'seconds',
    default: '300',
    expects: 'seconds, 10 to 1000000',
    check: needed(wholeNumber(10, 1_000_000)),
    help: 'l2: how long a MAC or neighbour that was learned is remembered without traffic from it',
    example: '--mac-age 60',
  },
  macTable: {
    flag: 'mac-table',
    value: 'entries',
    default: '65536',
    expects: 'a number, 1024 to 1000000',
    check: needed(wholeNumber(1024, 1_000_000)),
    help: 'l2: most MACs that are learned',
    example: '--mac-table 1000000',
  },
  macsPerPeer: {
    flag: 'mac-per-peer',
    value: 'entries',
    default: undefined,
    expects: 'a number, 1 to 1000000',
    check: optional(wholeNumber(1, 1_000_000)),
    help: 'l2: most MACs that are learned from one peer in each network (default: a quarter of --mac-table, divided by the networks)',
    example: '--mac-per-peer 4096',
  },
  floodUnknown: {
    flag: 'unknown-unicast',
    value: 'flood|drop',
    default: 'flood',
    expects: 'flood or drop',
    check: needed(eitherOf('flood', 'drop')),
    help: 'l2: frames to a MAC that nobody knows go to all peers of the network, or nowhere',
    example: '--unknown-unicast drop',
  },
  stormLimit: {
    flag: 'storm-limit',
    value: 'frames',
    default: '10000',
    expects: 'off or frames a second, 1 to 1000000000',
    check: needed((text) => (text === 'off' ? 0 : wholeNumber(1, 1_000_000_000)(text))),
    help: 'l2: most frames that are flooded in a second, per network',
    example: '--storm-limit off',
  },
  offloads: {
    flag: 'offload',
    value: 'list',
    default: 'all',
    expects: 'a list such as all,-uso or tso4,gro',
    check: needed(parseOffloads),
    help: `work left to the kernel or done in bulk: all, none, or of ${OFFLOAD_NAMES.join(', ')}; -name takes one out`,
    example: '--offload all,-uso',
  },
  sourceCheck: {
    flag: 'source-check',
    value: 'mode',
    default: 'peer',
    expects: 'peer, strict or off',
    check: needed(oneOf(['peer', 'strict', 'off'] as const)),
    help: "peer: packets only from peers; strict (l3): and only from the sender's own subnets; off: from anyone",
    example: '--source-check strict',
  },
  metricsAddress: {
    flag: 'metrics-address',
    value: 'address:port',
    default: '127.0.0.1:9469',
    expects: 'off or an address and a port, e.g. 127.0.0.1:9469 or [::1]:9469',
    check: needed(hostAndPort),
    help: 'where to serve /metrics, /healthz and /readyz, and in layer 2 /v1/macs and /v1/neighbours; nowhere, with a warning, where the default is taken',
    example: '--metrics-address 192.168.77.1:9469',
  },
  controlSocket: {
    flag: 'control-socket',
    value: 'path',
    default: undefined,
    expects: 'off or the path of a unix socket',
    check: optional(nonEmpty),
    help: 'where root may look inside with the weft command, or off; default: /run/weft/<network namespace>/<pid>.sock, where weft looks by itself',
    example: '--control-socket /run/weft-blue.sock',
  },
  workers: {
    flag: 'workers',
    value: 'number',
    default: '1',
    expects: 'a number, 1 to 8',
    check: needed(wholeNumber(1, 8)),
    help: 'threads that move packets',
    example: '--workers 2',
  },
  logLevel: {
    flag: 'log-level',
    value: 'level',
    default: 'info',
    expects: LOG_LEVELS.join(', '),
    check: needed(oneOf(LOG_LEVELS)),
    help: `least level of the lines on standard output: ${LOG_LEVELS.join(', ')}; weft log changes it while weftd runs`,
    example: '--log-level debug',
  },
  logFormat: {
    flag: 'log-format',
    value: 'format',
    default: 'json',
    expects: LOG_FORMATS.join(' or '),
    check: needed(oneOf(LOG_FORMATS)),
    help: 'json: a JSON object a line, for programs; text: aligned, for people',
    example: '--log-format text',
  },
  keepDevice: {
    flag: 'keep-device',
    default: 'false',
    expects: 'true or false',
    check: needed(truth),
    help: 'leave the device and its routes when stopped, so that the next start takes them over',
    example: '--keep-device',
  },
  configFile: {
    flag: 'config',
    value: 'file',
    default: undefined,
    expects: 'a JSON file, e.g. {"network":["10.5.0.0/16"],"port":8285,"keep-device":true}',
    check: optional(nonEmpty),
    help: 'JSON file with any of these options, named as the flags are, without dashes in front; in layer 2 also "networks"',
    example: '--config /etc/weft/weftd.json',
  },
  ...FLANNEL_OPTIONS,
};

export const OPTION_KEYS = Object.keys(OPTIONS) as readonly (keyof Settings)[];

/** What the options say of the embedded registry's configuration. */
export const wishOf = (config: Config): ConfigWish => ({
  mode: config.mode,
  networks: config.networks,
  subnetLengths: config.subnetLengths,
  mins: config.subnetMins,
  maxs: config.subnetMaxs,
  backend: config.backend,
  port: config.port,
});
