/**
 * `weft docker-opts`: subnet.env as options of a Docker daemon, in an environment file for its unit. Flags and output are those of
 * flannel's mk-docker-opts.sh, except that a file that is not there is a mistake, and that readers never see half of the output.
 */
import { randomUUID } from 'node:crypto';
import {
  appendFileSync,
  chmodSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { Command, CommanderError } from 'commander';
import { FLANNEL_SUBNET_FILE, UsageError } from './config.js';
import { ensureDirectory } from './host/directory.js';
import { SetupError } from './io/setup-error.js';

const OUTPUT = '/run/docker_opts.env';
const KEY = 'DOCKER_OPTS';
/** Of variables that are options one by one. */
const PREFIX = 'DOCKER_OPT_';

const EXAMPLES = `
  # weft docker-opts
  # cat ${OUTPUT}
  DOCKER_OPT_BIP="--bip=10.5.72.1/24"
  DOCKER_OPT_IPMASQ="--ip-masq=true"
  DOCKER_OPT_MTU="--mtu=1472"
  DOCKER_OPTS=" --bip=10.5.72.1/24 --ip-masq=true --mtu=1472"

In a drop-in for docker.service, with EnvironmentFile=${OUTPUT}:
  ExecStart=/usr/bin/dockerd $DOCKER_OPTS
Exit codes: 0 written, 1 could not be written, 2 wrong usage.
`;

type Environment = Readonly<Record<string, string | undefined>>;

interface DockerOpts {
  /** flannel's subnet.env. */
  readonly from: string;
  readonly to: string;
  /** A variable for each option. */
  readonly individual: boolean;
  /** One variable with all of them, under `key`. */
  readonly combined: boolean;
  readonly key: string;
  readonly ipMasq: boolean;
}

/** Does what the arguments ask for; the text to print. Throws a UsageError or a SetupError. */
export function dockerOpts(argv: readonly string[], env: Environment): string {
  const asked = readArguments(argv);
  if (typeof asked === 'string') return asked;
  const text = formatDockerOpts(readSubnetEnv(asked.from), asked, env);
  if (asked.to === '/dev/stdout') return text;
  write(asked.to, text);
  return '';
}

/** What the arguments ask for, or the help. */
function readArguments(argv: readonly string[]): DockerOpts | string {
  let printed = '';
  const command = new Command('weft docker-opts')
    .description("Writes options for Docker's daemon, so that its containers get addresses of this host's subnet.")
    .configureOutput({ writeOut: (text) => (printed += text), writeErr: () => {} })
    .configureHelp({ helpWidth: 100 })
    .showSuggestionAfterError(false)
    .allowExcessArguments(false)
    .exitOverride()
    .helpOption('-h, --help', 'print this and exit')
    .option('-f <file>', 'what weftd wrote', FLANNEL_SUBNET_FILE)
    .option('-d <file>', 'where to write', OUTPUT)
    .option('-i', 'each option as a variable of its own')
    .option('-c', 'all options in one variable (neither -i nor -c: both)')
    .option('-m', 'without --ip-masq')
    .option('-k <name>', 'name of the variable with all options', KEY)
    .addHelpText('after', EXAMPLES);
  try {
    command.parse([...argv], { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === 'commander.helpDisplayed') return printed;
    throw new UsageError(`${error.message.replace(/^error: |\.$/g, '')}: weft docker-opts --help lists what there is`);
  }
  const {
    f,
    d,
    i = false,
    c = false,
    m = false,
    k,
  } = command.opts<{
    f: string;
    d: string;
    i?: boolean;
    c?: boolean;
    m?: boolean;
    k: string;
  }>();
  if (!/^[A-Za-z_]\w*$/.test(k)) throw new UsageError(`-k ${JSON.stringify(k)}: expected the name of a variable`);
  for (const [flag, file] of [
    ['-f', f],
    ['-d', d],
  ]) {
    if (file === '') throw new UsageError(`${flag} "": expected a file`);
  }
  return { from: f, to: d, individual: i || !c, combined: c || !i, key: k, ipMasq: !m };
}

/** What the file says, by name. Throws a SetupError. */
function readSubnetEnv(path: string): Map<string, string> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    const reason = reasonOf(error);
    const missing = reason.startsWith('ENOENT');
    throw new SetupError(
      'NO_SUBNET_FILE',
      missing
        ? `subnet file ${path} does not exist: start weftd first, or name another with -f`
        : `cannot read subnet file ${path} (${reason}): make it readable, or name another with -f`,
    );
  }
  const values = new Map<string, string>();
  for (const [, name, quoted, plain] of text.matchAll(/^(FLANNEL_\w+)=(?:"([^"\n]*)"|(.*))$/gm)) {
    const value = quoted ?? plain.trim();
    if (!/^[\w.:/,-]*$/.test(value)) {
      throw new SetupError(
        'BAD_SUBNET_FILE',
        `subnet file ${path}: ${name} ${JSON.stringify(value)} is no plain value`,
      );
    }
    values.set(name, value);
  }
  if (values.size === 0) {
    throw new SetupError('BAD_SUBNET_FILE', `subnet file ${path} says nothing: is it what weftd wrote?`);
  }
  return values;
}

/**
 * The output. Options that `env` has already, one by one or in the variable of all, are taken along as the script does; the order is
 * that of their names.
 */
function formatDockerOpts(
  subnet: ReadonlyMap<string, string>,
  { individual, combined, key, ipMasq }: Omit<DockerOpts, 'from' | 'to'>,
  env: Environment,
): string {
  const options = new Map<string, string>();
  for (const [name, value] of Object.entries(env)) {
    if (name.startsWith(PREFIX) && value !== undefined) options.set(name, value);
  }
  const add = (name: string, flag: string, value: string | undefined): void => {
    if (value) options.set(`${PREFIX}${name}`, `--${flag}=${value}`);
  };
  add('BIP', 'bip', subnet.get('FLANNEL_SUBNET'));
  add('MTU', 'mtu', subnet.get('FLANNEL_MTU'));
  if (ipMasq) add('IPMASQ', 'ip-masq', notDoneByUs(subnet.get('FLANNEL_IPMASQ')));
  const sorted = [...options].sort(([a], [b]) => (a < b ? -1 : 1));
  const lines = individual ? sorted.map(([name, value]) => `${name}="${value}"`) : [];
  if (combined) {
    const before = env[key] ? `${env[key]} ` : '';
    lines.push(`${key}="${before}${sorted.map(([, value]) => ` ${value}`).join('')}"`);
  }
  return lines.map((line) => `${line}\n`).join('');
}

/** Docker masquerades if we do not. */
function notDoneByUs(ipMasq: string | undefined): string | undefined {
  if (!ipMasq) return undefined;
  if (ipMasq !== 'true' && ipMasq !== 'false') {
    throw new SetupError('BAD_SUBNET_FILE', `invalid value of FLANNEL_IPMASQ: ${ipMasq}: expected true or false`);
  }
  return String(ipMasq === 'false');
}

/** Replaced by rename, where it is a file; a pipe or a terminal is written to. */
function write(to: string, text: string): void {
  let temporary: string | undefined;
  try {
    const there = statSync(to, { throwIfNoEntry: false });
    if (there && !there.isFile()) {
      appendFileSync(to, text);
      return;
    }
    const path = there ? realpathSync(to) : to;
    ensureDirectory(dirname(path));
    temporary = `${path}.${randomUUID()}`;
    writeFileSync(temporary, text, { flag: 'wx', flush: true });
    chmodSync(temporary, 0o644);
    renameSync(temporary, path);
  } catch (error) {
    if (temporary !== undefined) rmSync(temporary, { force: true });
    throw new SetupError('NO_DOCKER_OPTS', `cannot write ${to} (${reasonOf(error)}): name another with -d`);
  }
}

/** `EACCES: permission denied` of a system error, which goes on with the call and its path. */
const reasonOf = (error: unknown): string => {
  const text = error instanceof Error ? error.message : String(error);
  return /^E[A-Z0-9]+: [^,]*/.exec(text)?.[0] ?? text;
};
