/**
 * Every option of weftd, once: the flag, the environment variable, the key of the JSON file, the default, the check and the
 * help all come from the table below. A flag goes before the environment, that before the file, that before the default.
 *
 * All sources give text that goes through the same check. Errors are one line: which option, its value, what is expected.
 */
import { Command, CommanderError, Option as CommanderOption } from 'commander';
import * as v from 'valibot';
import {
  type Address,
  type Cidr,
  contains,
  overlaps,
  parseAddress,
  parseCidr,
  parseHostAddress,
} from './control/cidr.js';
import type { SourceCheck } from './dataplane/settings.js';
import { OFFLOAD_NAMES, parseOffloads } from './io/offloads.js';

/** What weftd runs with. Lists by family hold at most one IPv4 and one IPv6 entry. */
export interface Config {
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  /** Interface of the underlay; undefined: that of --public-ip, or else of the default route. */
  readonly iface: string | undefined;
  /** Underlay addresses; empty: the interface's. */
  readonly publicIps: readonly Address[];
  readonly port: number;
  readonly peersFile: string;
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

/** A check for options that must be there. */
const needed =
  <T>(check: (text: string) => T) =>
  (text: string | undefined): T =>
    text === undefined ? wrong('missing') : check(text);

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

/** Larger packets do not fit into a UDP datagram. */
export const MTU_MOST = 65507;
export const MTU_LEAST = 576;
/** RFC 8200 section 5. */
export const MTU_LEAST_IPV6 = 1280;

export const OPTIONS: { readonly [K in keyof Config]: Option<Config[K]> } = {
  networks: {
    flag: 'network',
    value: 'cidr,…',
    list: true,
    default: undefined,
    expects: `${CIDRS}10.5.0.0/16,fd00:5::/48`,
    check: needed(onePerFamily(parseCidr)),
    help: 'the overlay: all that is routed into the device (required)',
    example: '--network 10.5.0.0/16,fd00:5::/48',
  },
  subnets: {
    flag: 'subnet',
    value: 'cidr,…',
    list: true,
    default: undefined,
    expects: `${CIDRS}10.5.1.0/24,fd00:5:0:1::/64`,
    check: needed(onePerFamily(parseCidr)),
    help: "this host's part of each network; its first address becomes the device's (required)",
    example: '--subnet 10.5.1.0/24,fd00:5:0:1::/64',
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
    check: (text) => (text === undefined ? [] : onePerFamily(parseHostAddress)(text)),
    help: "address that peers send to (default: the interface's, IPv4 if it has one); one of each family to have both underlays",
    example: '--public-ip 192.168.77.1',
  },
  port: {
    flag: 'port',
    value: 'number',
    default: '8285',
    expects: PORT,
    check: needed(wholeNumber(1, 65535)),
    help: 'UDP port, here and, unless the peers file says otherwise, there',
    example: '--port 8286',
  },
  peersFile: {
    flag: 'peers',
    value: 'file',
    default: undefined,
    expects: 'a JSON file, e.g. {"peers":[{"name":"b","address":"192.168.77.2","subnets":["10.5.2.0/24"]}]}',
    check: needed(nonEmpty),
    help: 'who owns which subnet; read again whenever it changes (required)',
    example: '--peers /etc/weft/peers.json',
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

/**
 * Reads the configuration. Pure: `argv` is the arguments after the program's name, `readFile` gives a file's text or throws.
 * Throws a UsageError.
 */
export function parseConfig(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  readFile: (path: string) => string,
): CommandLine {
  const flags = readFlags(argv);
  if (!(flags instanceof Map)) return flags;
  const environment = new Map<string, Given>();
  for (const key of keys) {
    const where = environmentName(OPTIONS[key].flag);
    const text = env[where];
    if (text) environment.set(OPTIONS[key].flag, { where, text });
  }
  const given = (flag: string): Given | undefined => flags.get(flag) ?? environment.get(flag);
  const path = given(OPTIONS.configFile.flag)?.text;
  const file = path === undefined ? new Map<string, Given>() : readConfigFile(path, readFile);

  const config = {} as { -readonly [K in keyof Config]: Config[K] };
  const fill = <K extends keyof Config>(key: K): void => {
    const option: Option<Config[K]> = OPTIONS[key];
    const value = given(option.flag) ?? file.get(option.flag);
    config[key] = check(option, value);
  };
  keys.forEach(fill);
  checkTogether(config);
  return { kind: 'run', config };
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

/** What one option's check cannot see. */
function checkTogether(config: Config): void {
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
    if (network.family === 6 && config.mtu !== undefined && config.mtu < MTU_LEAST_IPV6) {
      throw new UsageError(
        `--mtu ${config.mtu}: expected at least ${MTU_LEAST_IPV6}, which IPv6 --network ${network.text} needs`,
      );
    }
  }
}

/** The flags that were given, or what else the arguments ask for. */
function readFlags(argv: readonly string[]): Map<string, Given> | Exclude<CommandLine, { kind: 'run' }> {
  let printed = '';
  const command = new Command('weftd')
    .description('Carries IP packets between hosts in UDP, at the speed of the kernel.')
    .configureOutput({ writeOut: (text) => (printed += text), writeErr: () => {} })
    .configureHelp({ helpWidth: 100 })
    .showSuggestionAfterError(false)
    .allowExcessArguments(false)
    .exitOverride()
    .helpOption('-h, --help', 'print this and exit')
    .addOption(new CommanderOption('-V, --version', 'print the version and exit'))
    .addHelpText('after', EXAMPLES);
  const given = new Map<string, Given>();
  for (const key of keys) {
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
    throw new UsageError(`${error.message.replace(/^error: |\.$/g, '')}: weftd --help lists what there is`);
  }
  return command.getOptionValue('version') ? { kind: 'version' } : given;
}

const EXAMPLES = `
Each option can also be given as WEFT_<FLAG> in the environment (WEFT_SOURCE_CHECK=strict) or in a JSON file; a flag goes
before the environment, the environment before the file.

Two hosts, 192.168.77.1 and 192.168.77.2, with one peers file on both:
  {"peers":[{"name":"a","address":"192.168.77.1","subnets":["10.5.1.0/24"]},
            {"name":"b","address":"192.168.77.2","subnets":["10.5.2.0/24"]}]}
  a# weftd --network 10.5.0.0/16 --subnet 10.5.1.0/24 --iface eth0 --peers /etc/weft/peers.json
  b# weftd --network 10.5.0.0/16 --subnet 10.5.2.0/24 --iface eth0 --peers /etc/weft/peers.json
  a# ping 10.5.2.0

The same from a file, with metrics:
  # cat /etc/weft/weftd.json
  {"network":["10.5.0.0/16","fd00:5::/48"],"subnet":["10.5.1.0/24","fd00:5:0:1::/64"],
   "peers":"/etc/weft/peers.json","source-check":"strict","metrics-address":"127.0.0.1:9469"}
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
      .map((key) => [
        OPTIONS[key].flag,
        v.optional(OPTIONS[key].list ? v.union([v.string(), v.array(v.string())]) : scalar),
      ]),
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
