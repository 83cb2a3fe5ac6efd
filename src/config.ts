/**
 * Every option of weftd, once: the flag, the environment variable, the key of the JSON file, the default, the check and the
 * help all come from the table below; command-line.ts reads them.
 *
 * All sources give text that goes through the same check. Errors are one line: which option, its value, what is expected.
 */
import { type ConfigWish, DEFAULT_PORT } from './control/allocation.js';
import { type Address, type Cidr, overlaps, parseAddress, parseCidr, parseHostAddress } from './control/cidr.js';
import { MTU_LEAST, MTU_MOST } from './control/underlay.js';
import type { SourceCheck } from './dataplane/settings.js';
import { OFFLOAD_NAMES, parseOffloads } from './io/offloads.js';

/** What weftd runs with. Lists by family hold at most one IPv4 and one IPv6 entry. */
export interface Config {
  /** `static` has networks, subnets and a peers file; `embedded` none of the latter two, and networks perhaps. */
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
  /** undefined: in the state directory; none with a static registry. */
  readonly subnetFile: string | undefined;
  /** Seconds. */
  readonly leaseTtl: number;
  /** Seconds. */
  readonly staleLimit: number;
  /** Interface of the underlay; undefined: that of --public-ip, or else of the default route. */
  readonly iface: string | undefined;
  /** Underlay addresses; empty: the interface's. */
  readonly publicIps: readonly Address[];
  /** undefined: what the registry says, or DEFAULT_PORT. */
  readonly port: number | undefined;
  readonly peersFile: string | undefined;
  /** Device MTU in bytes; undefined: what the interface carries. */
  readonly mtu: number | undefined;
  readonly device: string;
  /** Bit set of io/offloads.ts. */
  readonly offloads: number;
  readonly sourceCheck: SourceCheck;
  /** undefined: no HTTP endpoint. */
  readonly metricsAddress: { readonly host: string; readonly port: number } | undefined;
  readonly workers: number;
  readonly logLevel: LogLevel;
  readonly keepDevice: boolean;
  readonly configFile: string | undefined;
}

/** The registry of this machine is in it, and the state of each daemon. */
export const DIRECTORY = '/var/lib/weft';
export const REGISTRIES = ['embedded', 'static'] as const;
export type RegistryKind = (typeof REGISTRIES)[number];

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** A mistake on the command line, in the environment or in the configuration file: one line, exit code 2. */
export class UsageError extends Error {
  constructor(message: string) {
    super(message.replace(/\s+/g, ' ')); // JSON.parse quotes what it stumbled over, newlines and all
    this.name = 'UsageError';
  }
}

export interface Option<T> {
  /** Long flag without dashes; also the key in the file and, in capitals after WEFT_, the environment variable. */
  readonly flag: string;
  /** Placeholder of the value in the help; undefined: a switch. */
  readonly value?: string;
  /** Several values: a comma list, in the file also an array, on the command line also the flag again. */
  readonly list?: true;
  /** As text, checked like any other; undefined: none, and `check` is told so. */
  readonly default: string | undefined;
  /** What `check` takes, for the error line. */
  readonly expects: string;
  /** Turns text into the value. Throws a RangeError that says what is wrong, or an empty one: `expects` says it. */
  readonly check: (text: string | undefined) => T;
  readonly help: string;
  readonly example: string;
}

const wrong = (reason = ''): never => {
  throw new RangeError(reason);
};

/** A check for options that may be left out. */
const optional =
  <T>(check: (text: string) => T) =>
  (text: string | undefined): T | undefined =>
    text === undefined ? undefined : check(text);

/** A check for options that have a default. */
const needed =
  <T>(check: (text: string) => T) =>
  (text: string | undefined): T =>
    text === undefined ? wrong('missing') : check(text);

/** A check for lists that may be left out. */
const listOf =
  <T>(check: (text: string) => readonly T[]) =>
  (text: string | undefined): readonly T[] =>
    text === undefined ? [] : check(text);

const wholeNumber = (least: number, most: number) => (text: string) => {
  const value = /^(0|[1-9]\d{0,9})$/.test(text) ? Number(text) : Number.NaN;
  return value >= least && value <= most ? value : wrong();
};

const oneOf =
  <T extends string>(words: readonly T[]) =>
  (text: string): T =>
    words.find((word) => word === text) ?? wrong();

const nonEmpty = (text: string): string => text || wrong();

const onePerFamily =
  <T extends Address | Cidr>(parse: (text: string) => T) =>
  (text: string): readonly T[] => {
    const items = text.split(',').map((item) => parse(item.trim()));
    for (const [i, item] of items.entries()) {
      const other = items.slice(0, i).find((earlier) => earlier.family === item.family);
      if (!other) continue;
      if ('length' in item && 'length' in other && overlaps(item, other))
        wrong(`${other.text} and ${item.text} overlap`);
      wrong(`${other.text} and ${item.text} are both IPv${item.family}`);
    }
    return items;
  };

/** A name that the kernel takes (dev_valid_name) and that means nothing else: `%` is a template, `all` a sysctl. */
function deviceName(text: string): string {
  if (text.length > 15) wrong(`${text.length} characters long`);
  return /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(text) && !['all', 'default', 'lo'].includes(text) ? text : wrong();
}

const interfaceName = (text: string): string => (/^[^\s/:-][^\s/:]{0,14}$/.test(text) ? text : wrong());

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

export const OPTIONS: { readonly [K in keyof Config]: Option<Config[K]> } = {
  registry: {
    flag: 'registry',
    value: 'kind',
    default: 'embedded',
    expects: 'embedded or static',
    check: needed(oneOf(REGISTRIES)),
    help: 'who tells which host has which subnet: the daemons of this machine among themselves, or a peers file (the default with --peers)',
    example: '--registry static',
  },
  networks: {
    flag: 'network',
    value: 'cidr,…',
    list: true,
    default: undefined,
    expects: `${CIDRS}10.5.0.0/16,fd00:5::/48`,
    check: listOf(onePerFamily(parseCidr)),
    help: 'the overlay: all that is routed into the device (needed by the first daemon of an embedded registry, and with a peers file)',
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
    help: "how packets go from host to host: udp is flannel's IP in UDP",
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
    help: `embedded: what this daemon remembers over a restart (default: ${DIRECTORY}/<public ip>)`,
    example: '--state-dir /srv/weft/node-1',
  },
  subnetFile: {
    flag: 'subnet-file',
    value: 'file',
    default: undefined,
    expects: 'a file',
    check: optional(nonEmpty),
    help: 'where to write our subnet and MTU for others to read, as flannel does (default: subnet.env in --state-dir; none with a peers file)',
    example: '--subnet-file /run/flannel/subnet.env',
  },
  leaseTtl: {
    flag: 'lease-ttl',
    value: 'seconds',
    default: '60',
    expects: 'seconds, 3 to 1000000',
    check: needed(wholeNumber(3, 1_000_000)),
    help: 'embedded: how long our subnet stays ours after we are gone',
    example: '--lease-ttl 86400',
  },
  staleLimit: {
    flag: 'stale-limit',
    value: 'seconds',
    default: '86400',
    expects: 'seconds, 0 to 9999999999',
    check: needed(wholeNumber(0, 9_999_999_999)),
    help: 'embedded: how old what we remember may be to forward with it while the registry is away',
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
    help: 'static: who owns which subnet; read again whenever it changes',
    example: '--peers /etc/weft/peers.json',
  },
  iface: {
    flag: 'iface',
    value: 'name',
    default: undefined,
    expects: 'the name of an interface, e.g. eth0',
    check: optional(interfaceName),
    help: "interface to the other hosts (default: the one with --public-ip, or the default route's)",
    example: '--iface eth1',
  },
  publicIps: {
    flag: 'public-ip',
    value: 'address,…',
    list: true,
    default: undefined,
    expects: 'at most one IPv4 and one IPv6 address of this host, e.g. 192.168.77.1,2001:db8::1',
    check: listOf(onePerFamily(parseHostAddress)),
    help: "address that peers send to (default: the interface's, IPv4 if it has one); one of each family to have both underlays",
    example: '--public-ip 192.168.77.1',
  },
  port: {
    flag: 'port',
    value: 'number',
    default: undefined,
    expects: PORT,
    check: optional(wholeNumber(1, 65535)),
    help: `UDP port, here and, unless the peers file says otherwise, there (default: the registry's, or ${DEFAULT_PORT})`,
    example: '--port 8286',
  },
  mtu: {
    flag: 'mtu',
    value: 'bytes',
    default: undefined,
    expects: `bytes, ${MTU_LEAST} to ${MTU_MOST}`,
    check: optional(wholeNumber(MTU_LEAST, MTU_MOST)),
    help: "the device's MTU (default: the interface's less 28, or less 48 when there is an IPv6 underlay)",
    example: '--mtu 1400',
  },
  device: {
    flag: 'device',
    value: 'name',
    default: 'flannel0',
    expects: 'at most 15 letters, digits, _, . or -',
    check: needed(deviceName),
    help: 'name of the TUN device',
    example: '--device weft0',
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
    help: "peer: packets only from peers; strict: and only from the sender's own subnets; off: from anyone",
    example: '--source-check strict',
  },
  metricsAddress: {
    flag: 'metrics-address',
    value: 'address:port',
    default: 'off',
    expects: 'off or an address and a port, e.g. 127.0.0.1:9469 or [::1]:9469',
    check: needed(hostAndPort),
    help: 'where to serve /metrics, /healthz and /readyz',
    example: '--metrics-address 127.0.0.1:9469',
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
    help: `least level of the JSON lines on standard output: ${LOG_LEVELS.join(', ')}`,
    example: '--log-level debug',
  },
  keepDevice: {
    flag: 'keep-device',
    default: 'false',
    expects: 'true or false',
    check: (text) => oneOf(['true', 'false'] as const)(text ?? 'false') === 'true',
    help: 'leave the device and its routes when stopped, so that the next start takes them over',
    example: '--keep-device',
  },
  configFile: {
    flag: 'config',
    value: 'file',
    default: undefined,
    expects: 'a JSON file, e.g. {"network":["10.5.0.0/16"],"port":8285,"keep-device":true}',
    check: optional(nonEmpty),
    help: 'JSON file with any of these options, named as the flags are, without dashes in front',
    example: '--config /etc/weft/weftd.json',
  },
};

/** What the options say of the embedded registry's configuration. */
export const wishOf = (config: Config): ConfigWish => ({
  networks: config.networks,
  subnetLengths: config.subnetLengths,
  mins: config.subnetMins,
  maxs: config.subnetMaxs,
  backend: config.backend,
  port: config.port,
});
