/**
 * The race: Weft against the kernel's VXLAN and other engines over one veth, or between containers. See README.md.
 *
 *     sudo npm run race -- --subjects weft-udp,kernel-vxlan,fastd --measures bulk,pps64,imix,ping,rr,cpu --rounds 7
 *
 * A round is every measure once for every subject; the order of the subjects rotates from measure to measure and from
 * round to round, so that a drift of the machine meets all of them alike.
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { containerHosts, runningWeft } from './containers.js';
import { type Host, hostsImpossible, Lab, makeHosts } from './hosts.js';
import { Blaster } from './lossless.js';
import { setCongestionControl } from './measures.js';
import { MEASURES, type Options, readOptions, USAGE, UsageError } from './options.js';
import { aboutLeft, clock, Estimate, say } from './progress.js';
import type { Race } from './publish/publish.js';
import { weftVersion } from './publish/tree.js';
import { Results } from './report.js';
import { installed, makeSubject, type Subject, use, versions, watched } from './subjects.js';
import { makeTasks, type Task } from './tasks.js';

/** imix goes to four peers: hosts b, c, d and e, all behind the one veth, with one client namespace between them. */
const IMIX_PEERS = 4;

/** First line of a command's output, or undefined if it isn't installed. */
function version(command: string, ...args: string[]): string | undefined {
  const done = spawnSync(command, args, { encoding: 'utf8' });
  return done.error ? undefined : `${done.stdout}${done.stderr}`.split('\n')[0].trim();
}

/** Everything a reader needs to judge the figures. */
function describeSetup({ options, leftOut }: Field, hosts: readonly Host[]): object {
  const [a, b] = hosts;
  const features = (ns: Host['ns'], device: string): string => {
    try {
      return ns.runSync('ethtool', '-k', device);
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  };
  return {
    date: new Date().toISOString(),
    where: options.containers === undefined ? 'namespaces' : 'containers',
    options: {
      subjects: [...options.subjects, ...options.watched],
      measures: [...options.measures],
      rounds: options.rounds,
      seconds: options.seconds,
      weftArgs: options.weftArgs,
      containers: options.containers !== undefined,
    },
    left_out: leftOut,
    congestion_control: 'cubic; for bulk-bbr: bbr (both by the route and by iperf3 -C, in the client namespaces)',
    versions: {
      kernel: release(),
      node: process.version,
      weft: weftVersion(),
      iproute2: version('ip', '-V'),
      iperf3: version('iperf3', '--version'),
      ping: version('ping', '-V'),
      ...versions(options.subjects),
    },
    processors: { count: cpus().length, model: cpus()[0]?.model },
    load: loadavg(),
    'ip -d link': {
      a: a.ns.runSync('ip', '-d', 'link'),
      b: b.ns.runSync('ip', '-d', 'link'),
      'client-a': a.client.runSync('ip', '-d', 'link'),
    },
    'ethtool -k': {
      'a underlay': features(a.ns, a.underlayInterface),
      'a lan': features(a.ns, a.lanInterface),
      'client-a': features(a.client, a.clientInterface),
    },
  };
}

const oneLine = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0];

/** What takes part, after a look at what there is. */
interface Field {
  readonly options: Options;
  /** Subjects that were asked for but can't take part, and why. */
  readonly leftOut: readonly string[];
}

const makeField = (lab: Lab, options: Options): Promise<readonly Host[]> | readonly Host[] =>
  options.containers === undefined
    ? makeHosts(lab, { count: options.measures.has('imix') ? 1 + IMIX_PEERS : 2, join: 'veth', clients: 'shared' })
    : containerHosts(lab, options.containers, say);

/** What the generator can do at all, over `direct` and alone: in a figure near it, the generator is what was measured. */
async function measureGenerator(blaster: Blaster, direct: Subject, hosts: readonly Host[]): Promise<object> {
  await use(direct, hosts);
  const flood = await blaster.step('pps64', null, 2);
  // What its own work costs: host a throws the packets away.
  hosts[0].ns.ip(`route replace blackhole ${hosts[1].subnet4}`);
  const alone = await blaster.step('pps64', null, 1);
  const maxima = {
    sent_per_second_over_direct: Math.round(flood.sent),
    received_per_second_over_direct: Math.round(flood.received),
    sent_per_second_alone: Math.round(alone.sent),
  };
  say(`generator, flat out, packets/s: ${JSON.stringify(maxima)}`);
  return maxima;
}

/** One task for one subject, in one round. */
interface Step {
  readonly round: number;
  readonly task: Task;
  readonly subject: Subject;
}

function orderOf(rounds: number, tasks: readonly Task[], subjects: readonly Subject[]): Step[] {
  return Array.from({ length: rounds }, (_, round) =>
    tasks.flatMap((task, t) =>
      subjects.map((_, s) => ({ round, task, subject: subjects[(s + t + round) % subjects.length] })),
    ),
  ).flat();
}

/** Its figures by row; undefined if it failed twice, or the lab is being closed. */
async function carryOut(
  { task, subject }: Step,
  hosts: readonly Host[],
  tell: (text: string) => void,
): Promise<Record<string, number> | undefined> {
  for (let tries = 0; tries < 2; tries++) {
    try {
      await use(subject, hosts);
      await subject.begin?.();
      return await task.run(subject, tell);
    } catch (error) {
      if (await hosts[0].ns.lab.interrupted()) return undefined;
      tell(`failed: ${oneLine(error)}`);
    } finally {
      if (!hosts[0].ns.lab.closing) await subject.end?.();
    }
  }
  return undefined;
}

/** Resolves to the results as JSON lines, or to undefined if it was interrupted. */
async function race(field: Field, lab: Lab): Promise<string | undefined> {
  const { options } = field;
  const hosts = await makeField(lab, options);
  checkPrograms(options, (command) => hosts.slice(0, 2).every(({ client }) => has(client, command)));
  setCongestionControl(hosts.slice(0, 2), 'cubic');
  const running = options.containers === undefined ? undefined : runningWeft(hosts);
  const subjects = options.subjects.map((name) =>
    name === running?.name ? running : makeSubject(name, lab, hosts, options.weftArgs),
  );
  const weft = subjects.find(({ name }) => name === 'weft-udp');
  if (weft) subjects.push(...options.watched.map((name) => watched(name, weft, hosts)));
  for (const subject of subjects) {
    await subject.start();
    await use(subject, hosts);
    say(`${subject.name}: set up on ${hosts.length} hosts and answering`);
  }

  const results = new Results();
  const wantsPackets = options.measures.has('pps64') || options.measures.has('imix');
  const blaster = wantsPackets ? new Blaster(hosts) : undefined;
  const loads: number[] = [];
  const setup: Record<string, unknown> = { ...describeSetup(field, hosts), load_after_each_round: loads };
  if (blaster) setup.generator = await measureGenerator(blaster, subjects[0], hosts);
  const save = (): void => {
    if (options.json) writeFileSync(options.json, results.json(setup));
  };
  save();
  const steps = orderOf(options.rounds, makeTasks(options, hosts, blaster, results), subjects);
  const estimate = new Estimate();
  const begun = Date.now();
  for (const [i, step] of steps.entries()) {
    const { round, task, subject } = step;
    const stepBegun = Date.now();
    const left = aboutLeft(estimate.of(steps.slice(i)));
    const head = `[${round + 1}/${options.rounds} ${clock(stepBegun - begun)}, ${left}] ${task.name} ${subject.name}`;
    const figures = await carryOut(step, hosts, (text) => say(`${head}   ${text}`));
    if (lab.closing) return undefined;
    estimate.add(step, Date.now() - stepBegun);
    for (const row of task.rows) {
      const figure = figures?.[row];
      results.add(row, subject.name, round, figure ?? null);
      if (figure !== undefined) say(`${head} → ${row} ${figure >= 1000 ? Math.round(figure) : figure.toFixed(2)}`);
    }
    if (steps[i + 1]?.round === round) continue;
    loads.push(loadavg()[0]);
    save();
  }
  process.stdout.write(`\n${results.table()}`);
  return results.json(setup);
}

const NEEDED = { iperf3: ['bulk', 'cpu'], ping: MEASURES, taskset: ['rr'] } as const;
const PACKAGES = { iperf3: 'iperf3', ping: 'iputils-ping', taskset: 'util-linux' } as const;

/** Throws for the first program that the measures need and that is not there, in a lab here and in containers there. */
function checkPrograms(options: Options, has: (command: string) => boolean): void {
  for (const command of ['iperf3', 'ping', 'taskset'] as const) {
    if (!NEEDED[command].some((measure) => options.measures.has(measure)) || has(command)) continue;
    const where = options.containers === undefined ? '' : ' in the clients';
    throw new Error(`${command} is missing${where}: apt-get install ${PACKAGES[command]}`);
  }
}

const has = (ns: Host['ns'], command: string): boolean => {
  try {
    return ns.runSync('sh', '-c', 'command -v "$1"', 'sh', command) !== '';
  } catch {
    return false;
  }
};

/** Leaves out what isn't installed or isn't possible, and says so. */
function chooseField(options: Options): Field {
  const leftOut: string[] = [];
  if (options.containers !== undefined) {
    if (!options.measures.has('imix')) return { options, leftOut };
    say(`no imix: it goes to ${IMIX_PEERS} hosts, and between containers there is one`);
    const measures = new Set(options.measures);
    measures.delete('imix');
    if (measures.size === 0) throw new UsageError('--measures imix: between containers there is no such measure');
    return { options: { ...options, measures }, leftOut };
  }
  const impossible = hostsImpossible();
  if (impossible) throw new Error(`the race ${impossible}`);
  const subjects = options.subjects.filter((name) => {
    const here = installed(name);
    if (!('missing' in here)) return true;
    say(`${name} is not installed, so it does not take part: ${here.missing}`);
    leftOut.push(`${name}: not installed`);
    return false;
  });
  return { options: { ...options, subjects }, leftOut };
}

/** Races, unless there is a race to publish already. Undefined if it was interrupted. */
async function raceText(options: Options): Promise<string | undefined> {
  const field = chooseField(options);
  const lab = new Lab('race');
  try {
    return await race(field, lab);
  } catch (error) {
    if (!(await lab.interrupted())) throw error;
    return undefined;
  } finally {
    await lab.close();
  }
}

async function main(options: Options): Promise<void> {
  const publishes = options.publish || options.publishTo !== undefined;
  if (options.from !== undefined && !publishes) throw new UsageError('--from is for --publish or --publish-to');
  if (!publishes) {
    await raceText(options);
    return;
  }
  const { checkFolder, checkReadme, parseRace, publish, publishTo, readRace } = await import('./publish/publish.js');
  // What can't be published in the end should fail now.
  if (options.publish) checkReadme();
  if (options.publishTo !== undefined) checkFolder(options.publishTo);
  const write = (found: Race): void => {
    const files = options.publish ? publish(found) : [];
    if (options.publishTo !== undefined) files.push(...publishTo(found, options.publishTo));
    say(`written: ${files.join(', ')}`);
  };
  if (options.from !== undefined) {
    write(readRace(options.from));
    return;
  }
  const text = await raceText(options);
  if (text === undefined) return;
  try {
    write(parseRace(text));
  } catch (error) {
    const file = options.json ?? join(tmpdir(), `weft-race-${Date.now()}.json`);
    if (options.json === undefined) writeFileSync(file, text, { flag: 'wx', mode: 0o600 });
    throw new Error(`${oneLine(error)}; the results are in ${file}, to be published by --from`);
  }
}

try {
  await main(readOptions());
} catch (error) {
  say(`race: ${oneLine(error)}`);
  if (error instanceof UsageError) say(USAGE);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
