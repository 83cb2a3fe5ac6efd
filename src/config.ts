/**
 * Every option of weftd, once: the flag, the environment variable, the key of the JSON file, the default, the check and the
 * help all come from the table below. A flag goes before the environment, that before the file, that before the default.
 *
 * All sources give text that goes through the same check. Errors are one line: which option, its value, what is expected.
 */
import { Command, CommanderError, Option as CommanderOption } from 'commander';
import * as v from 'valibot';
import { type ConfigWish, DEFAULT_PORT, makeNetworkConfig } from './control/allocation.js';
import {
  type Address,
  type Cidr,
  contains,
  overlaps,
  parseAddress,
  parseCidr,
  parseHostAddress,
} from './control/cidr.js';
import { MTU_LEAST, MTU_LEAST_IPV6, MTU_MOST } from './control/underlay.js';
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

/** What the arguments ask for. */
export type CommandLine =
  | { readonly kind: 'run'; readonly config: Config }
  | { readonly kind: 'help'; readonly text: string }
  | { readonly kind: 'version' };

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

const keys = Object.keys(OPTIONS) as (keyof Config)[];

/** The environment variable of an option. */
export const environmentName = (flag: string): string => `WEFT_${flag.toUpperCase().replaceAll('-', '_')}`;

/** Where a value came from, as the error line names it, and its text. */
interface Given {
  readonly where: string;
  readonly text: string;
}

/** A program by its options; both of them read the same table. */
interface Program {
  readonly name: string;
  readonly description: string;
  readonly keys: readonly (keyof Config)[];
  readonly examples: string;
}

const DAEMON: Program = {
  name: 'weftd',
  description: 'Carries IP packets between hosts in UDP, at the speed of the kernel.',
  keys,
  get examples() {
    return EXAMPLES;
  },
};

const INIT: Program = {
  name: 'weft init',
  description:
    'Makes the embedded registry of this machine and writes its configuration, before the first daemon does.',
  keys: ['registryPath', 'networks', 'subnetLengths', 'subnetMins', 'subnetMaxs', 'backend', 'port'],
  examples: `
  # weft init --network 10.5.0.0/16 --subnet-len 26
  # weft init --network 10.5.0.0/16,fd00:5::/48 --registry-path /srv/weft/registry

Said again, it changes nothing; a registry that says otherwise is left as it is.
Exit codes: 0 it is so now, 1 it could not be made so, 2 wrong usage.
`,
};

/**
 * Reads the configuration of weftd. Pure: `argv` is the arguments after the program's name, `readFile` gives a file's text or
 * throws. Throws a UsageError.
 */
export function parseConfig(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  readFile: (path: string) => string,
): CommandLine {
  const flags = readFlags(argv, DAEMON);
  if (!(flags instanceof Map)) return flags;
  const environment = readEnvironment(env, DAEMON);
  const given = (flag: string): Given | undefined => flags.get(flag) ?? environment.get(flag);
  const path = given(OPTIONS.configFile.flag)?.text;
  const file = path === undefined ? new Map<string, Given>() : readConfigFile(path, readFile);
  const found = (flag: string): Given | undefined => given(flag) ?? file.get(flag);
  const config = readOptions(found);
  if (!found(OPTIONS.registry.flag) && config.peersFile !== undefined) config.registry = 'static';
  if (config.registry === 'static') checkStatic(config);
  else checkEmbedded(config);
  for (const network of config.networks) {
    if (network.family === 6 && config.mtu !== undefined && config.mtu < MTU_LEAST_IPV6) {
      throw new UsageError(
        `--mtu ${config.mtu}: expected at least ${MTU_LEAST_IPV6}, which IPv6 --network ${network.text} needs`,
      );
    }
  }
  return { kind: 'run', config };
}

/** The same for `weft init`; what it does not know has its default. */
export function parseInit(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): CommandLine {
  const flags = readFlags(argv, INIT);
  if (!(flags instanceof Map)) return flags;
  const environment = readEnvironment(env, INIT);
  const config = readOptions((flag) => flags.get(flag) ?? environment.get(flag));
  if (config.networks.length === 0) throw new UsageError(`--network: missing: expected ${OPTIONS.networks.expects}`);
  checkEmbedded(config);
  return { kind: 'run', config };
}

/** What the options say of the embedded registry's configuration. */
export const wishOf = (config: Config): ConfigWish => ({
  networks: config.networks,
  subnetLengths: config.subnetLengths,
  mins: config.subnetMins,
  maxs: config.subnetMaxs,
  backend: config.backend,
  port: config.port,
});

type Mutable = { -readonly [K in keyof Config]: Config[K] };

function readOptions(found: (flag: string) => Given | undefined): Mutable {
  const config = {} as Mutable;
  const fill = <K extends keyof Config>(key: K): void => {
    const option: Option<Config[K]> = OPTIONS[key];
    config[key] = check(option, found(option.flag));
  };
  keys.forEach(fill);
  return config;
}

function readEnvironment(env: Readonly<Record<string, string | undefined>>, program: Program): Map<string, Given> {
  const environment = new Map<string, Given>();
  for (const key of program.keys) {
    const { flag } = OPTIONS[key];
    const where = environmentName(flag);
    const text = env[where];
    if (text) environment.set(flag, { where, text });
  }
  return environment;
}

function check<T>(option: Option<T>, given: Given | undefined): T {
  try {
    return option.check(given?.text ?? option.default);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const where = given?.where ?? `--${option.flag}`;
    const value = given && !error.message.includes('"') ? ` ${JSON.stringify(given.text)}` : '';
    throw new UsageError([where + value, error.message, `expected ${option.expects}`].filter(Boolean).join(': '));
  }
}

// What one option's check cannot see.

function checkStatic(config: Config): void {
  const missing = (option: { readonly flag: string; readonly expects: string }): never => {
    throw new UsageError(`--${option.flag}: missing: --registry static expects ${option.expects}`);
  };
  if (config.peersFile === undefined) missing(OPTIONS.peersFile);
  if (config.networks.length === 0) missing(OPTIONS.networks);
  if (config.subnets.length === 0) missing(OPTIONS.subnets);
  for (const key of ['subnetLengths', 'subnetMins', 'subnetMaxs'] as const) {
    if (config[key].length > 0) {
      throw new UsageError(
        `--${OPTIONS[key].flag}: is for --registry embedded: --subnet says it all with a peers file`,
      );
    }
  }
  for (const subnet of config.subnets) {
    const network = config.networks.find((candidate) => candidate.family === subnet.family);
    if (!network) throw new UsageError(`--subnet ${subnet.text}: there is no IPv${subnet.family} --network`);
    if (!contains(network, subnet)) {
      throw new UsageError(`--subnet ${subnet.text}: expected a part of --network ${network.text}`);
    }
  }
  for (const network of config.networks) {
    if (!config.subnets.some((subnet) => subnet.family === network.family)) {
      throw new UsageError(`--network ${network.text}: expected a --subnet of it for this host`);
    }
  }
}

function checkEmbedded(config: Config): void {
  for (const key of ['subnets', 'peersFile'] as const) {
    if (config[key]?.length) {
      throw new UsageError(
        `--${OPTIONS[key].flag}: is for --registry static: the embedded registry finds it out by itself`,
      );
    }
  }
  if (config.networks.length === 0) {
    for (const key of ['subnetLengths', 'subnetMins', 'subnetMaxs'] as const) {
      if (config[key].length > 0) throw new UsageError(`--${OPTIONS[key].flag}: expected --network with it`);
    }
    return;
  }
  try {
    makeNetworkConfig(wishOf(config));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UsageError(error.message);
  }
}

/** The flags that were given, or what else the arguments ask for. */
function readFlags(
  argv: readonly string[],
  program: Program,
): Map<string, Given> | Exclude<CommandLine, { kind: 'run' }> {
  let printed = '';
  const command = new Command(program.name)
    .description(program.description)
    .configureOutput({ writeOut: (text) => (printed += text), writeErr: () => {} })
    .configureHelp({ helpWidth: 100 })
    .showSuggestionAfterError(false)
    .allowExcessArguments(false)
    .exitOverride()
    .helpOption('-h, --help', 'print this and exit')
    .addOption(new CommanderOption('-V, --version', 'print the version and exit'))
    .addHelpText('after', program.examples);
  const given = new Map<string, Given>();
  for (const key of program.keys) {
    const { flag, value, list, default: initial, help, example } = OPTIONS[key];
    const notes = [initial === undefined || value === undefined ? '' : `default: ${initial}`, `e.g. ${example}`];
    const name = `--${flag}`;
    const option = new CommanderOption(
      value === undefined ? name : `${name} <${value}>`,
      `${help} (${notes.filter(Boolean).join('; ')})`,
    );
    command.addOption(option);
    command.on(`option:${flag}`, (text: string | null) => {
      const earlier = list ? given.get(flag)?.text : undefined;
      given.set(flag, { where: name, text: earlier === undefined ? (text ?? 'true') : `${earlier},${text}` });
    });
  }
  try {
    command.parse([...argv], { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === 'commander.helpDisplayed') return { kind: 'help', text: printed };
    throw new UsageError(`${error.message.replace(/^error: |\.$/g, '')}: ${program.name} --help lists what there is`);
  }
  return command.getOptionValue('version') ? { kind: 'version' } : given;
}

const EXAMPLES = `
Each option can also be given as WEFT_<FLAG> in the environment (WEFT_SOURCE_CHECK=strict) or in a JSON file; a flag goes
before the environment, the environment before the file.

The hosts of one machine (network namespaces) find each other and their subnets by themselves; the first says the network:
  a# weftd --network 10.5.0.0/16 --iface eth0
  b# weftd --iface eth0
  b# cat /var/lib/weft/192.168.77.2/subnet.env
  FLANNEL_NETWORK=10.5.0.0/16
  FLANNEL_SUBNET=10.5.42.1/24
  FLANNEL_MTU=1472
  FLANNEL_IPMASQ=false

Several machines, 192.168.77.1 and 192.168.77.2, with one peers file on both:
  {"peers":[{"name":"a","address":"192.168.77.1","subnets":["10.5.1.0/24"]},
            {"name":"b","address":"192.168.77.2","subnets":["10.5.2.0/24"]}]}
  a# weftd --network 10.5.0.0/16 --subnet 10.5.1.0/24 --iface eth0 --peers /etc/weft/peers.json
  b# weftd --network 10.5.0.0/16 --subnet 10.5.2.0/24 --iface eth0 --peers /etc/weft/peers.json
  a# ping 10.5.2.0

From a file, with metrics:
  # cat /etc/weft/weftd.json
  {"network":["10.5.0.0/16","fd00:5::/48"],"subnet-len":["24","64"],
   "source-check":"strict","metrics-address":"127.0.0.1:9469"}
  # weftd --config /etc/weft/weftd.json
  # curl -s http://127.0.0.1:9469/metrics

A peer may also have "port", "mtu" (what the underlay carries to it, in bytes) and "ecn": true (it is weft as well).
Exit codes: 0 stopped by a signal, 1 could not set up or failed, 2 wrong usage.
`;

const scalar = v.union([v.string(), v.number(), v.boolean()]);
const fileSchema = v.strictObject(
  Object.fromEntries(
    keys
      .filter((key) => key !== 'configFile')
      .map((key) => [OPTIONS[key].flag, v.optional(OPTIONS[key].list ? v.union([scalar, v.array(scalar)]) : scalar)]),
  ),
);

function readConfigFile(path: string, readFile: (path: string) => string): Map<string, Given> {
  const subject = `config file ${path}`;
  let json: unknown;
  try {
    json = JSON.parse(readFile(path));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(`${subject}: ${error instanceof SyntaxError ? `not JSON: ${reason}` : reason}`);
  }
  const parsed = v.safeParse(fileSchema, json);
  // To valibot an array is an object.
  if (Array.isArray(json)) throw new UsageError(`${subject}: expected a JSON object`);
  if (!parsed.success) {
    const issue = parsed.issues[0];
    const key = v.getDotPath(issue);
    if (key === null) throw new UsageError(`${subject}: expected a JSON object`);
    if (!(key in fileSchema.entries)) throw new UsageError(`${subject}: unknown key ${JSON.stringify(key)}`);
    throw new UsageError(`${subject}: ${JSON.stringify(key)}: expected a value, not ${issue.received}`);
  }
  const given = new Map<string, Given>();
  for (const [flag, value] of Object.entries(parsed.output)) {
    if (value !== undefined) given.set(flag, { where: `${subject}: ${JSON.stringify(flag)}`, text: String(value) });
  }
  return given;
}
