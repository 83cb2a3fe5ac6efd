/** Where values come from beside the arguments: the environment and the configuration file. Each knows where it was found. */
import * as v from 'valibot';
import { OPTION_KEYS, OPTIONS, type Option, type Settings, UsageError } from './config.js';

/** The environment variable of an option; flannel's own options have one of flannel's too. */
export const environmentName = (flag: string, prefix: 'WEFT' | 'FLANNELD' = 'WEFT'): string =>
  `${prefix}_${flag.toUpperCase().replaceAll('-', '_')}`;

/** Where a value came from, as the error line names it, and its text. */
export interface Given {
  readonly where: string;
  readonly text: string;
}

/** What was given, by flag. */
export type Givens = Map<string, Given>;

/** What was given for a flag; undefined: nothing. */
export type Found = (flag: string) => Given | undefined;

/** What a configuration file says: options, and what no option can say. */
export interface ConfigFile {
  readonly options: ReadonlyMap<string, Given>;
  /** Layer 2: by network, what is said of it alone. */
  readonly networks: readonly ReadonlyMap<string, Given>[] | undefined;
}
export const NO_FILE: ConfigFile = { options: new Map(), networks: undefined };

/** Options that say something of one network of layer 2; in the file's "networks" these alone may be. */
export const OF_SEGMENT = ['vni', 'device', 'bridge', 'addresses', 'mtu'] as const;

/** What the variables of one prefix say. An empty one says nothing. */
export function readEnvironment(
  env: Readonly<Record<string, string | undefined>>,
  options: readonly (keyof Settings)[],
  prefix: 'WEFT' | 'FLANNELD',
): Givens {
  const environment: Givens = new Map();
  for (const key of options) {
    const option: Option<unknown> = OPTIONS[key];
    if (prefix === 'FLANNELD' && !option.flannel) continue;
    const where = environmentName(option.flag, prefix);
    const text = env[where];
    if (text) environment.set(option.flag, { where, text });
  }
  return environment;
}

const scalar = v.union([v.string(), v.number(), v.boolean()]);
/** Of each of these options a value, or several where it takes several. */
const objectOf = (some: readonly (keyof Settings)[]) =>
  Object.fromEntries(
    some.map((key) => {
      const { flag, list }: Option<unknown> = OPTIONS[key];
      return [flag, v.optional(list ? v.union([scalar, v.array(scalar)]) : scalar)];
    }),
  );
const networkSchema = v.strictObject(objectOf(OF_SEGMENT));
const fileSchema = v.strictObject({
  ...objectOf(OPTION_KEYS.filter((key) => key !== 'configFile')),
  networks: v.optional(v.array(networkSchema)),
});

/** V8 quotes what is around the mistake (`Unexpected token 'x', ..."assword": x"}" is not valid JSON`), perhaps a password. */
const withoutQuote = (reason: string): string => reason.replace(/, (\.\.\.)?".*"(\.\.\.)? is not valid JSON$/s, '');

/** Throws a UsageError. */
export function readConfigFile(path: string, readFile: (path: string) => string): ConfigFile {
  const subject = `config file ${path}`;
  let json: unknown;
  try {
    json = JSON.parse(readFile(path));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(`${subject}: ${error instanceof SyntaxError ? `not JSON: ${withoutQuote(reason)}` : reason}`);
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

function givenIn(values: Readonly<Record<string, unknown>>, subject: string, place: string): Givens {
  const given: Givens = new Map();
  for (const [flag, value] of Object.entries(values)) {
    const where = `${subject}: ${JSON.stringify(place + flag)}`;
    if (value !== undefined) given.set(flag, { where, text: textOf(flag, value) });
  }
  return given;
}

/** An array of the file, as the flag has it. */
function textOf(flag: string, value: unknown): string {
  if (!Array.isArray(value)) return String(value);
  const option: Option<unknown> | undefined = Object.values(OPTIONS).find((one) => one.flag === flag);
  return value.join(option?.separator ?? ',');
}
