/**
 * From arguments, environment and file to a configuration, by the table in config.ts. A flag goes before the environment, that
 * before the file, that before the default.
 */
import { Command, CommanderError, Option as CommanderOption } from 'commander';
import * as v from 'valibot';
import {
  type Config,
  DEVICE,
  OPTIONS,
  type Option,
  type Segment,
  type Settings,
  UsageError,
  wishOf,
} from './config.js';
import { makeNetworkConfig } from './control/allocation.js';
import { contains } from './control/cidr.js';
import { INNER_MOST, LINK_HEADER } from './control/encapsulation.js';
import { MTU_LEAST_IPV6 } from './control/underlay.js';
import { MAX_NETWORKS } from './io/memory.js';

/** What the arguments ask for. */
export type CommandLine =
  | { readonly kind: 'run'; readonly config: Config }
  | { readonly kind: 'help'; readonly text: string }
  | { readonly kind: 'version' };

const keys = Object.keys(OPTIONS) as (keyof Settings)[];

/** The environment variable of an option. */
export const environmentName = (flag: string): string => `WEFT_${flag.toUpperCase().replaceAll('-', '_')}`;

/** Where a value came from, as the error line names it, and its text. */
interface Given {
  readonly where: string;
  readonly text: string;
}

/** What was given for a flag; undefined: nothing. */
type Found = (flag: string) => Given | undefined;

/** What a configuration file says: options, and what no option can say. */
interface ConfigFile {
  readonly options: ReadonlyMap<string, Given>;
  /** Layer 2: by network, what is said of it alone. */
  readonly networks: readonly ReadonlyMap<string, Given>[] | undefined;
}
const NO_FILE: ConfigFile = { options: new Map(), networks: undefined };

/** A program by its options; both of them read the same table. */
interface Program {
  readonly name: string;
  readonly description: string;
  readonly keys: readonly (keyof Settings)[];
  readonly examples: string;
}

const DAEMON: Program = {
  name: 'weftd',
  description: 'Carries IP packets between hosts in UDP, or Ethernet frames in VXLAN, at the speed of the kernel.',
  keys,
  get examples() {
    return EXAMPLES;
  },
};

const INIT: Program = {
  name: 'weft init',
  description:
    'Makes the embedded registry of this machine and writes its configuration, before the first daemon does.',
  keys: ['mode', 'registryPath', 'networks', 'subnetLengths', 'subnetMins', 'subnetMaxs', 'backend', 'port'],
  examples: `
  # weft init --network 10.5.0.0/16 --subnet-len 26
  # weft init --network 10.5.0.0/16,fd00:5::/48 --registry-path /srv/weft/registry
  # weft init --mode l2

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
  const file = path === undefined ? NO_FILE : readConfigFile(path, readFile);
  const found: Found = (flag) => given(flag) ?? file.options.get(flag);
  const settings = readOptions(found);
  if (!found(OPTIONS.registry.flag) && settings.peersFile !== undefined) settings.registry = 'static';
  checkMode(settings, found);
  const segments = settings.mode === 'l2' ? readSegments(found, file, path) : [];
  if (settings.mode === 'l3' && file.networks) {
    throw new UsageError(`config file ${path}: "networks": is for --mode l2; the prefixes of layer 3 are "network"`);
  }
  const config = configOf(settings, segments);
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
  const found: Found = (flag) => flags.get(flag) ?? environment.get(flag);
  const config = configOf(readOptions(found), []);
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
  keys.forEach(fill);
  return settings;
}

/** Options that say something of one network of layer 2; in the file's "networks" these alone may be. */
const OF_SEGMENT = ['vni', 'device', 'bridge', 'addresses', 'mtu'] as const;

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

function configOf(settings: Settings, segments: readonly Segment[]): Config {
  const { device = DEVICE, vni: _, bridge: __, addresses: ___, macsPerPeer, ...rest } = settings;
  return {
    ...rest,
    segments,
    device: segments[0]?.device ?? device,
    // All networks learn into one table, and one host may be in all of them.
    macsPerPeer: macsPerPeer ?? Math.floor(settings.macTable / 4 / Math.max(segments.length, 1)),
  };
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

/** Options that make sense in one mode only. */
const ONLY_L3 = ['networks', 'subnets', 'subnetLengths', 'subnetMins', 'subnetMaxs', 'subnetFile', 'backend'] as const;
const ONLY_L2 = [
  'vni',
  'bridge',
  'addresses',
  'sourcePorts',
  'macAge',
  'macTable',
  'macsPerPeer',
  'floodUnknown',
  'stormLimit',
] as const;

type CheckedByMode = Pick<Settings, 'mode' | 'sourceCheck' | 'macTable' | 'macsPerPeer'>;

function checkMode({ mode, sourceCheck, macTable, macsPerPeer }: CheckedByMode, found: Found): void {
  const [others, hint] =
    mode === 'l2'
      ? [ONLY_L3, 'is for --mode l3: layer 2 has no subnets']
      : [ONLY_L2, 'is for --mode l2: give that, or leave it out'];
  for (const key of others) {
    const given = found(OPTIONS[key].flag);
    if (given) throw new UsageError(`${given.where}: ${hint}`);
  }
  if (mode === 'l2' && sourceCheck === 'strict') {
    throw new UsageError(
      `--${OPTIONS.sourceCheck.flag} strict: is for --mode l3: in layer 2 no sender owns addresses: expected peer or off`,
    );
  }
  if (macsPerPeer !== undefined && macsPerPeer > macTable) {
    throw new UsageError(
      `--${OPTIONS.macsPerPeer.flag} ${macsPerPeer}: expected at most --${OPTIONS.macTable.flag}, ${macTable}`,
    );
  }
}

const PEERS_OF_LAYER_2 = 'a JSON file, e.g. {"peers":[{"name":"b","address":"192.168.77.2"}]}';

function checkStatic(config: Config): void {
  const missing = (option: { readonly flag: string; readonly expects: string }): never => {
    throw new UsageError(`--${option.flag}: missing: --registry static expects ${option.expects}`);
  };
  if (config.mode === 'l2') {
    if (config.peersFile === undefined) missing({ flag: OPTIONS.peersFile.flag, expects: PEERS_OF_LAYER_2 });
    return;
  }
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
  if (config.mode === 'l2') return;
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

Layer 2, an Ethernet segment over the hosts of one machine; the device weft42 has an address, or is in a bridge:
  a# weftd --mode l2 --vni 42 --iface eth0 --address 10.7.0.1/24
  b# weftd --mode l2 --vni 42 --iface eth0 --bridge br0

Several machines, one of them with the kernel's own vxlan device (what is behind it may be named, or is learned):
  {"peers":[{"name":"a","address":"192.168.77.1"},{"name":"b","address":"192.168.77.2","vnis":[42]},
            {"name":"k","address":"192.168.77.3","vnis":[42],"macs":["02:00:00:00:00:05"],
             "neighbours":[{"address":"10.7.0.6","mac":"02:00:00:00:00:06","router":true}]}]}
  a# weftd --mode l2 --vni 42 --iface eth0 --peers /etc/weft/peers.json
  k# ip link add vxlan42 type vxlan id 42 dstport 4789 local 192.168.77.3 dev eth0
  k# bridge fdb append 00:00:00:00:00:00 dev vxlan42 dst 192.168.77.1

Two networks in one daemon:
  # cat /etc/weft/weftd.json
  {"mode":"l2","networks":[{"vni":42,"bridge":"br0"},
                           {"vni":43,"device":"lab","address":["10.8.0.1/24","fd08::1/64"],"mtu":1400}]}
  # weftd --config /etc/weft/weftd.json

From a file, with metrics:
  # cat /etc/weft/weftd.json
  {"network":["10.5.0.0/16","fd00:5::/48"],"subnet-len":["24","64"],
   "source-check":"strict","metrics-address":"127.0.0.1:9469"}
  # weftd --config /etc/weft/weftd.json
  # curl -s http://127.0.0.1:9469/metrics

A peer may also have "port", "mtu" (what the underlay carries to it, in bytes) and, in layer 3, "ecn": true (it is weft
as well). In layer 2 it is in all our networks unless "vnis" says which.
Exit codes: 0 stopped by a signal, 1 could not set up or failed, 2 wrong usage.
`;

const scalar = v.union([v.string(), v.number(), v.boolean()]);
/** Of each of these options a value, or several where it takes several. */
const objectOf = (some: readonly (keyof Settings)[]) =>
  Object.fromEntries(
    some.map((key) => [OPTIONS[key].flag, v.optional(OPTIONS[key].list ? v.union([scalar, v.array(scalar)]) : scalar)]),
  );
const networkSchema = v.strictObject(objectOf(OF_SEGMENT));
const fileSchema = v.strictObject({
  ...objectOf(keys.filter((key) => key !== 'configFile')),
  networks: v.optional(v.array(networkSchema)),
});

function readConfigFile(path: string, readFile: (path: string) => string): ConfigFile {
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
    const place = v.getDotPath(issue);
    if (place === null) throw new UsageError(`${subject}: expected a JSON object`);
    if (issue.expected === 'never') throw new UsageError(`${subject}: unknown key ${JSON.stringify(place)}`);
    const expected =
      place === 'networks'
        ? 'a list of networks'
        : /^networks\.\d+$/.test(place)
          ? 'a network, e.g. {"vni":42}'
          : 'a value';
    throw new UsageError(`${subject}: ${JSON.stringify(place)}: expected ${expected}, not ${issue.received}`);
  }
  const { networks, ...options } = parsed.output;
  return {
    options: givenIn(options, subject, ''),
    networks: networks?.map((one, i) => givenIn(one, subject, `networks.${i}.`)),
  };
}

function givenIn(values: Readonly<Record<string, unknown>>, subject: string, place: string): Map<string, Given> {
  const given = new Map<string, Given>();
  for (const [flag, value] of Object.entries(values)) {
    const where = `${subject}: ${JSON.stringify(place + flag)}`;
    if (value !== undefined) given.set(flag, { where, text: String(value) });
  }
  return given;
}
