/** docker-compose.yml, run by docker-compose with an `Engine` of the tests: the machine's own engine, if it has one, is not touched. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Finished, run, sleep } from '../../../race/hosts.js';
import { Container, type Engine } from './docker.js';

/** The project's top folder, where docker-compose.yml is. */
export const ROOT = fileURLToPath(new URL('../../../../', import.meta.url));

/** Commands by Debian's packages. */
const TO_READ = { 'docker-compose': 'docker-compose' };
const TO_RUN = { ...TO_READ, debootstrap: 'debootstrap', prometheus: 'prometheus' };

/** Why docker-compose.yml cannot be read here, in one line; undefined: it can. */
export const composeFileUnreadable = (): string | undefined => missing(TO_READ);
/** What is missing to run it, beside an engine, in one line; undefined: nothing. */
export const composeImpossible = (): string | undefined => missing(TO_RUN);

function missing(needed: Readonly<Record<string, string>>): string | undefined {
  const lacking = Object.entries(needed).filter(([command]) => spawnSync('which', [command]).status !== 0);
  if (lacking.length === 0) return undefined;
  const [commands, packages] = [0, 1].map((i) => lacking.map((one) => one[i]));
  return `no ${commands.join(', ')}: apt-get install --no-install-recommends ${packages.join(' ')}`;
}

/** What the file says, with variables and defaults in place; only what the tests look at. */
export interface ComposeFile {
  readonly services: Readonly<Record<string, Service>>;
  readonly networks: Readonly<Record<string, unknown>>;
}

export interface Service {
  readonly image: string;
  readonly build?: { readonly context: string; readonly dockerfile: string; readonly target: string };
  readonly cap_add?: readonly string[];
  readonly cap_drop?: readonly string[];
  readonly devices?: readonly string[];
  readonly healthcheck?: object;
  readonly network_mode?: string;
  readonly pid?: string;
  readonly ports?: readonly (string | { readonly host_ip?: string })[];
  readonly privileged?: boolean;
  readonly profiles?: readonly string[];
  readonly security_opt?: readonly string[];
  readonly volumes?: readonly (string | { readonly source: string })[];
}

/**
 * Variables for docker-compose: those of the file, of which none may come from this shell, and that Debian's own client builds,
 * which has BuildKit within it.
 */
function environment(env: Readonly<Record<string, string>>): NodeJS.ProcessEnv {
  const own = Object.entries(process.env).filter(([name]) => !/^(COMPOSE|DOCKER|BENCH|WEFT)_/.test(name));
  const builder = { COMPOSE_DOCKER_CLI_BUILD: '1', DOCKER_BUILDKIT: '1', PATH: `/usr/bin:${process.env.PATH}` };
  return { ...Object.fromEntries(own), ...builder, ...env };
}

/** Reads docker-compose.yml as docker-compose does; rejects with what that says. All profiles are in it. */
export async function readComposeFile(env: Readonly<Record<string, string>> = {}): Promise<ComposeFile> {
  const words = ['--profile', 'observe', '--profile', 'bench', 'config'];
  const { code, stdout, stderr } = await run('docker-compose', words, { cwd: ROOT, env: environment(env) });
  if (code !== 0) throw new Error(`docker-compose config: ${stderr.trim()}`);
  // docker-compose 1.29 is a Python program and brings its parser with it.
  const script = 'import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.argv[1])))';
  const json = spawnSync('python3', ['-c', script, stdout], { encoding: 'utf8' });
  if (json.status !== 0) throw new Error(`docker-compose config: not YAML: ${json.stderr.trim().split('\n').at(-1)}`);
  return JSON.parse(json.stdout) as ComposeFile;
}

function lastLines(text: string): string {
  return text.trim().split('\n').slice(-10).join('\n  ');
}

export class Compose {
  readonly engine: Engine;
  readonly #project: string;
  readonly #env: Readonly<Record<string, string>>;

  constructor(engine: Engine, project: string, env: Readonly<Record<string, string>> = {}) {
    this.engine = engine;
    this.#project = project;
    this.#env = env;
  }

  /** Runs docker-compose to its end; its output. Rejects with what it says last. */
  async run(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.#compose(args);
    if (code === 0) return stdout.trim();
    throw new Error(`docker-compose ${args.join(' ')}: exit ${code}: ${lastLines(`${stdout}\n${stderr}`)}`);
  }

  /** Runs a command as the README has it, `WEFT_BACKEND=vxlan docker compose up -d`: with docker-compose, where it is Compose's. */
  async text(line: string): Promise<string> {
    const [, variables, words] = /^((?:\w+=\S+ )*)docker compose (.*)$/.exec(line) ?? [];
    if (words === undefined) throw new Error(`not a command of Compose: ${line}`);
    const env = Object.fromEntries(
      variables
        .trim()
        .split(' ')
        .filter(Boolean)
        .map((one) => one.split('=')),
    );
    // There is no terminal here.
    const args = words
      .replace(/^(exec|run)\b/, '$1 -T')
      .replace(/ run /, ' run -T ')
      .split(' ');
    const { code, stdout, stderr } = await this.#compose(args, env);
    if (code === 0) return stdout.trim();
    throw new Error(`${line}: exit ${code}: ${lastLines(`${stdout}\n${stderr}`)}`);
  }

  /** The same, whatever its outcome. */
  try(...args: string[]): Promise<Finished> {
    return this.#compose(args);
  }

  #compose(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Finished> {
    const host = { DOCKER_HOST: `unix://${join(this.engine.dir, 'docker.sock')}`, DOCKER_CONFIG: this.engine.dir };
    const words = ['--ansi', 'never', '--project-name', this.#project, ...args];
    return run('docker-compose', words, { cwd: ROOT, env: environment({ ...host, ...this.#env, ...env }) });
  }

  /** The one container of a service, stopped or not; rejects if there is none. */
  async container(service: string): Promise<Container> {
    const label = (name: string, value: string): string[] => ['--filter', `label=com.docker.compose.${name}=${value}`];
    const filter = [...label('project', this.#project), ...label('service', service), ...label('oneoff', 'False')];
    const ids = (await this.engine.docker('ps', '--all', '--quiet', '--no-trunc', ...filter)).split('\n');
    if (ids.length !== 1 || ids[0] === '')
      throw new Error(`${ids.length - (ids[0] === '' ? 1 : 0)} containers of ${service}`);
    return new Container(this.engine, ids[0]);
  }

  /** What the health check says: healthy, unhealthy, starting; of a container that does not run its state. */
  async health(service: string): Promise<string> {
    const container = await this.container(service);
    return container.inspect('{{if .State.Running}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}');
  }

  /** Resolves once all of `services` are healthy; rejects after `timeoutMs` with what each of the others is and said. */
  async healthy(services: readonly string[], timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (let left = [...services]; ; await sleep(200)) {
      const states = await Promise.all(left.map((service) => this.health(service)));
      left = left.filter((_, i) => states[i] !== 'healthy');
      if (left.length === 0) return;
      if (performance.now() > deadline)
        throw new Error((await Promise.all(left.map((one) => this.#story(one)))).join('; '));
    }
  }

  async #story(service: string): Promise<string> {
    const container = await this.container(service);
    const logs = await this.engine.try('logs', '--tail', '3', container.name);
    const probe = await container.inspect('{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{end}}');
    return `${service} is ${await this.health(service)}: ${probe.trim()} ${logs.stdout}${logs.stderr}`.trim();
  }

  /** Removes containers, networks and volumes, whatever there is of them. */
  async down(): Promise<void> {
    await this.try('--profile', 'observe', '--profile', 'bench', 'down', '--volumes', '--timeout', '1');
  }
}
