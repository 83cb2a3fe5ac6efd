/**
 * From arguments, environment and file to a configuration, by the table in config.ts. A flag goes before the environment, that
 * before the file, that before the default.
 */
import { Command, CommanderError, Option as CommanderOption } from 'commander';
import * as v from 'valibot';
import { type Config, OPTIONS, type Option, UsageError, wishOf } from './config.js';
import { makeNetworkConfig } from './control/allocation.js';
import { contains } from './control/cidr.js';
import { MTU_LEAST_IPV6 } from './control/underlay.js';

/** What the arguments ask for. */
export type CommandLine =
  | { readonly kind: 'run'; readonly config: Config }
  | { readonly kind: 'help'; readonly text: string }
  | { readonly kind: 'version' };

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
