/**
 * From arguments, environment and file to a configuration, by the table in config.ts. A flag goes before the environment, there
 * WEFT_… before FLANNELD_…, that before the file, that before the default.
 */
import {
  type Config,
  DEVICE,
  FLANNEL_SUBNET_FILE,
  LEASE_TTL,
  OPTION_KEYS,
  OPTIONS,
  type Option,
  type Segment,
  type Settings,
  UsageError,
} from './config.js';
import {
  checkEmbedded,
  checkEtcd,
  checkMode,
  checkMtu,
  checkStatic,
  ONLY_ETCD,
  ONLY_L3,
  type RegistryChoice,
  refuse,
} from './config-checks.js';
import {
  type ConfigFile,
  type Found,
  type Given,
  type Givens,
  NO_FILE,
  OF_SEGMENT,
  readConfigFile,
  readEnvironment,
} from './config-sources.js';
import type { Address } from './control/cidr.js';
import { INNER_MOST, LINK_HEADER } from './control/encapsulation.js';
import { NOTHING_SAID, OF_ETCD } from './flannel-options.js';
import { type GoFlag, readGoFlags } from './go-flags.js';
import { DAEMON, helpOf, INIT, type Program } from './help.js';
import { MAX_NETWORKS } from './io/memory.js';
import { SetupError } from './io/setup-error.js';
import { Refusal, truth } from './option.js';

/** What the arguments ask for. */
export type CommandLine =
  | { readonly kind: 'run'; readonly config: Config }
  | { readonly kind: 'help'; readonly text: string }
  | { readonly kind: 'version' };

/**
 * Reads the configuration of weftd. Pure: `argv` is the arguments after the program's name, `readFile` gives a file's text or
 * throws. Throws a UsageError, or a SetupError for what Weft does not do.
 */
export function parseConfig(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  readFile: (path: string) => string,
): CommandLine {
  const flags = readFlags(argv, DAEMON);
  if (!(flags instanceof Map)) return flags;
  const weft = readEnvironment(env, DAEMON.keys, 'WEFT');
  const flanneld = readEnvironment(env, DAEMON.keys, 'FLANNELD');
  const path = (flags.get(OPTIONS.configFile.flag) ?? weft.get(OPTIONS.configFile.flag))?.text;
  const file = path === undefined ? NO_FILE : readConfigFile(path, readFile);
  const named: Found = (flag) => flags.get(flag) ?? weft.get(flag) ?? file.options.get(flag);
  const registry = registryOf(named, flanneld);
  const mode = check(OPTIONS.mode, named(OPTIONS.mode.flag));
  // What flanneld is told is no mistake here, even if it is of no use.
  for (const key of [...(registry.kind === 'etcd' ? [] : ONLY_ETCD), ...(mode === 'l2' ? ONLY_L3 : [])]) {
    flanneld.delete(OPTIONS[key].flag);
  }
  const found: Found = (flag) => flags.get(flag) ?? weft.get(flag) ?? flanneld.get(flag) ?? file.options.get(flag);
  const settings = { ...readOptions(found), registry: registry.kind };
  if (registry.kind === 'etcd') checkEtcd(settings, registry, found, file, path);
  else
    for (const key of ONLY_ETCD) refuse(found(OPTIONS[key].flag), 'is for --registry etcd: give that, or leave it out');
  checkMode(settings, found);
  if (settings.verbosity > 0 && !found(OPTIONS.logLevel.flag)) settings.logLevel = 'debug';
  const segments = settings.mode === 'l2' ? readSegments(found, file, path) : [];
  if (settings.mode === 'l3' && file.networks) {
    throw new UsageError(`config file ${path}: "networks": is for --mode l2; the prefixes of layer 3 are "network"`);
  }
  const config = configOf(settings, segments, found);
  if (config.registry === 'static') checkStatic(config);
  if (config.registry === 'embedded') checkEmbedded(config);
  checkMtu(config);
  return { kind: 'run', config };
}

/**
 * The one that is named; else a peers file or an option of etcd says it, whoever starts us; else etcd, if flanneld is told of it.
 */
function registryOf(named: Found, flanneld: ReadonlyMap<string, Given>): RegistryChoice {
  const given = named(OPTIONS.registry.flag);
  if (given) return { kind: check(OPTIONS.registry, given), because: given.where };
  const firstOf = (all: Found): Given | undefined => OF_ETCD.map((key) => all(OPTIONS[key].flag)).find(Boolean);
  const etcd = firstOf(named);
  if (etcd) return { kind: 'etcd', because: etcd.where };
  const peers = named(OPTIONS.peersFile.flag);
  if (peers) return { kind: 'static', because: peers.where };
  const told = firstOf((flag) => flanneld.get(flag));
  if (told) return { kind: 'etcd', because: told.where };
  return { kind: 'embedded', because: 'default' };
}

/** The same for `weft init`; what it does not know has its default. */
export function parseInit(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): CommandLine {
  const flags = readFlags(argv, INIT);
  if (!(flags instanceof Map)) return flags;
  const environment = readEnvironment(env, INIT.keys, 'WEFT');
  const found: Found = (flag) => flags.get(flag) ?? environment.get(flag);
  const config = configOf(readOptions(found), [], found);
  checkMode(config, found);
  if (config.mode === 'l3' && config.networks.length === 0)
    throw new UsageError(`--network: missing: expected ${OPTIONS.networks.expects}`);
  checkEmbedded(config);
  return { kind: 'run', config };
}

type Mutable = { -readonly [K in keyof Settings]: Settings[K] };

function readOptions(found: Found): Mutable {
  const settings = {} as Mutable;
  const fill = <K extends keyof Settings>(key: K): void => {
    const option: Option<Settings[K]> = OPTIONS[key];
    settings[key] = check(option, found(option.flag));
  };
  OPTION_KEYS.forEach(fill);
  return settings;
}

/** The one network that options tell of, or those of the file. */
function readSegments(found: Found, { networks }: ConfigFile, path: string | undefined): Segment[] {
  const subject = `config file ${path}: "networks"`;
  if (!networks) return [readSegment(found, `--${OPTIONS.vni.flag}`)];
  for (const key of OF_SEGMENT) {
    const given = found(OPTIONS[key].flag);
    if (given) throw new UsageError(`${given.where}: say it of a network: ${subject} is given`);
  }
  if (networks.length === 0 || networks.length > MAX_NETWORKS) {
    throw new UsageError(`${subject}: ${networks.length} networks: expected 1 to ${MAX_NETWORKS}`);
  }
  const segments = networks.map((one, i) =>
    readSegment((flag) => one.get(flag), `config file ${path}: "networks.${i}.vni"`),
  );
  for (const [i, { vni, device, addresses }] of segments.entries()) {
    for (const earlier of segments.slice(0, i)) {
      if (earlier.vni === vni) throw new UsageError(`${subject}: VNI ${vni} is listed twice`);
      const same = addresses.find(({ text }) => earlier.addresses.some((other) => other.text === text));
      if (same) throw new UsageError(`${subject}: address ${same.text} is listed twice`);
      if (earlier.device === device) throw new UsageError(`${subject}: device ${device} is listed twice`);
    }
  }
  return segments;
}

/** `vniAt`: where a VNI is missing if there is none. */
function readSegment(found: Found, vniAt: string): Segment {
  const read = <K extends (typeof OF_SEGMENT)[number]>(key: K): Settings[K] => {
    const option: Option<Settings[K]> = OPTIONS[key];
    return check(option, found(option.flag));
  };
  const wrong = (key: (typeof OF_SEGMENT)[number], reason: string): never => {
    throw new UsageError(`${found(OPTIONS[key].flag)?.where}: ${reason}`);
  };
  const vni = read('vni');
  if (vni === undefined) throw new UsageError(`${vniAt}: missing: --mode l2 expects ${OPTIONS.vni.expects}`);
  const device = read('device') ?? `weft${vni}`;
  const bridge = read('bridge');
  if (bridge === device) wrong('bridge', `${bridge} is the device itself: expected a bridge`);
  const mtu = read('mtu');
  const most = INNER_MOST.l2 - LINK_HEADER.l2;
  if (mtu !== undefined && mtu > most) wrong('mtu', `${mtu}: expected at most ${most} in layer 2`);
  return { vni, device, bridge, addresses: read('addresses'), mtu };
}

function configOf(settings: Settings, segments: readonly Segment[], found: Found): Config {
  const { device = DEVICE, macsPerPeer, registry, healthzIp, healthzPort, etcdEndpoints, ...all } = settings;
  const scheme = settings.etcdCertFile === undefined ? 'http://' : 'https://'; // as etcd's own clients have it
  return {
    ...withoutKeys(all, ['vni', 'bridge', 'addresses', 'publicIpv6', 'verbosity', ...NOTHING_SAID]),
    registry,
    segments,
    device: segments[0]?.device ?? device,
    // All networks learn into one table, and one host may be in all of them.
    macsPerPeer: macsPerPeer ?? Math.floor(settings.macTable / 4 / Math.max(segments.length, 1)),
    publicIps: publicIpsOf(settings),
    etcdEndpoints: etcdEndpoints.map((endpoint) => (endpoint.includes('://') ? endpoint : scheme + endpoint)),
    leaseTtl: settings.leaseTtl ?? LEASE_TTL[registry],
    subnetFile: settings.subnetFile ?? (registry === 'etcd' ? FLANNEL_SUBNET_FILE : undefined),
    forwardRules: settings.forwardRules ?? registry === 'etcd',
    metricsSaid: found(OPTIONS.metricsAddress.flag) !== undefined,
    healthAddress: healthzPort === 0 ? undefined : { host: healthzIp, port: healthzPort },
  };
}

function publicIpsOf({ publicIps, publicIpv6 }: Settings): readonly Address[] {
  const other = publicIps.find(({ family }) => family === publicIpv6?.family);
  if (!publicIpv6 || other?.text === publicIpv6.text) return publicIps;
  if (other) throw new UsageError(`--public-ipv6 ${publicIpv6.text}: --public-ip names ${other.text} already`);
  return [...publicIps, publicIpv6];
}

function withoutKeys<T extends object, K extends keyof T>(from: T, keys: readonly K[]): Omit<T, K> {
  const copy = { ...from };
  for (const key of keys) delete copy[key];
  return copy;
}

/** The value that was given, or the default. */
function check<T>(option: Option<T>, given: Given | undefined): T {
  const said = given?.text === '' && option.mayBeEmpty ? undefined : given;
  try {
    return option.check(said?.text ?? option.default);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const where = said?.where ?? `--${option.flag}`;
    const value = said && !error.message.includes('"') ? ` ${JSON.stringify(said.text)}` : '';
    if (error instanceof Refusal) throw new SetupError(error.code, `${where}${value}: ${error.message}`);
    throw new UsageError([where + value, error.message, `expected ${option.expects}`].filter(Boolean).join(': '));
  }
}

/** Flags that are no options, and what they are short for. */
const OTHER_FLAGS: Readonly<Record<string, 'help' | 'version'>> = {
  help: 'help',
  h: 'help',
  version: 'version',
  V: 'version',
};

/** The flags that were given, or what else the arguments ask for. */
function readFlags(argv: readonly string[], program: Program): Givens | Exclude<CommandLine, { kind: 'run' }> {
  const options = new Map(program.keys.map((key): [string, Option<unknown>] => [OPTIONS[key].flag, OPTIONS[key]]));
  const { flags, rest, mistake } = readGoFlags(argv, (name) => {
    if (Object.hasOwn(OTHER_FLAGS, name)) return true;
    const option = options.get(name);
    return option && option.value === undefined;
  });
  const asked = (what: 'help' | 'version'): boolean =>
    flags.some((flag) => OTHER_FLAGS[flag.name] === what && on(flag));
  if (asked('help')) return { kind: 'help', text: helpOf(program) };
  const problem = mistake ?? (rest.length > 0 ? `too many arguments: '${rest[0]}'` : undefined);
  if (problem !== undefined) throw new UsageError(`${problem}: ${program.name} --help lists what there is`);
  if (asked('version')) return { kind: 'version' };
  const given: Givens = new Map();
  for (const { name, value } of flags) {
    const option = options.get(name);
    if (!option) continue;
    const earlier = option.list && !option.lastCounts ? given.get(name)?.text : undefined;
    given.set(name, { where: `--${name}`, text: earlier ? `${earlier}${option.separator ?? ','}${value}` : value });
  }
  return given;
}

/** Of a switch that is no option. */
function on({ name, value }: GoFlag): boolean {
  try {
    return truth(value);
  } catch {
    throw new UsageError(`--${name} ${JSON.stringify(value)}: expected true or false`);
  }
}
