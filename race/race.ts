/**
 * The race: Weft against the kernel's VXLAN and other engines over one veth. See README.md.
 *
 *     sudo npm run race -- --subjects weft-udp,kernel-vxlan,fastd --measures bulk,pps64,imix,ping,rr,cpu --rounds 7
 *
 * A round is every measure once for every subject; the order of the subjects rotates from measure to measure and from
 * round to round, so that a drift of the machine meets all of them alike.
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus, loadavg, release } from 'node:os';
import { parseArgs } from 'node:util';
import { type Host, hostsImpossible, Lab, makeHosts } from './hosts.js';
import { Blaster, type Lossless } from './lossless.js';
import { bulk, congestionControls, ping, requestResponse, setCongestionControl } from './measures.js';
import { Results } from './report.js';
import { makeSubject, SUBJECTS, type Subject, type SubjectName, use } from './subjects.js';

const MEASURES = ['bulk', 'pps64', 'imix', 'ping', 'rr', 'cpu'] as const;
type Measure = (typeof MEASURES)[number];

/** imix goes to four peers: hosts b, c, d and e, all behind the one veth, with one client namespace between them. */
const IMIX_PEERS = 4;

const USAGE = `usage: race [--subjects LIST] [--measures LIST] [--rounds N] [--seconds N] [--json FILE] [--weft-args ARGS]
  --subjects   of ${SUBJECTS.slice(1).join(', ')}
               (default: all that are installed); direct always runs too. Weft in layer 2: weft-vxlan has it at both ends,
               weft-to-kernel on host a and the kernel's vxlan on the others, kernel-to-weft the other way round;
               bulk goes from host a to host b
  --measures   of ${MEASURES.join(', ')}, or all (default)
  --rounds     interleaved rounds (default 7)
  --seconds    length of one bulk run; rr and ping take two thirds of it (default 3)
  --json       write the set-up and the results there, one JSON object a line
  --weft-args  more arguments for every weftd, as one word: --weft-args="--offload all,-uso"`;

class UsageError extends Error {}

interface Options {
  readonly subjects: SubjectName[];
  readonly measures: Set<Measure>;
  readonly rounds: number;
  readonly seconds: number;
  readonly json: string | undefined;
  readonly weftArgs: string[];
}

function readOptions(): Options {
  const strings = ['subjects', 'measures', 'rounds', 'seconds', 'json', 'weft-args'] as const;
  const parsed = (): { values: Partial<Record<(typeof strings)[number] | 'help', string | boolean>> } => {
    const options = Object.fromEntries(strings.map((name) => [name, { type: 'string' }] as const));
    try {
      return parseArgs({ options: { ...options, help: { type: 'boolean', short: 'h' } } });
    } catch (error) {
      throw new UsageError(error instanceof Error ? error.message : String(error));
    }
  };
  const { values } = parsed();
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    process.exit(0);
  }
  const text = (name: (typeof strings)[number], otherwise: string): string => (values[name] as string) ?? otherwise;
  const list = <T extends string>(name: 'subjects' | 'measures', known: readonly T[], otherwise: readonly T[]): T[] => {
    const words = text(name, 'all').split(',').filter(Boolean);
    if (words.includes('all')) return [...otherwise];
    const wrong = words.find((word) => !known.includes(word as T));
    if (wrong) throw new UsageError(`--${name} ${wrong}: choose from ${known.join(', ')}`);
    return words as T[];
  };
  const number = (name: 'rounds' | 'seconds', otherwise: number): number => {
    const value = Number(text(name, `${otherwise}`));
    if (!(value >= 1 && value <= 1000)) throw new UsageError(`--${name} ${values[name]}: a number from 1 to 1000`);
    return value;
  };
  return {
    // direct comes first: what cannot be reached without an overlay cannot be reached with one.
    subjects: [...new Set<SubjectName>(['direct', ...list('subjects', SUBJECTS, SUBJECTS)])],
    measures: new Set(list('measures', MEASURES, MEASURES)),
    rounds: Math.round(number('rounds', 7)),
    seconds: number('seconds', 3),
    json: values.json as string | undefined,
    weftArgs: text('weft-args', '').split(/\s+/).filter(Boolean),
  };
}

const say = (line: string): boolean => process.stderr.write(`${line}\n`);

/** First line of a command's output, or undefined if it isn't installed. */
function version(command: string, ...args: string[]): string | undefined {
  const done = spawnSync(command, args, { encoding: 'utf8' });
  return done.error ? undefined : `${done.stdout}${done.stderr}`.split('\n')[0].trim();
}

/** Everything a reader needs to judge the figures. */
function describeSetup(options: Options, hosts: readonly Host[]): object {
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
    options: { ...options, measures: [...options.measures] },
    congestion_control: 'cubic; for bulk-bbr: bbr (both by the route and by iperf3 -C, in the client namespaces)',
    versions: {
      kernel: release(),
      node: process.version,
      iproute2: version('ip', '-V'),
      iperf3: version('iperf3', '--version'),
      ping: version('ping', '-V'),
      fastd: version('fastd', '--version'),
    },
    processors: { count: cpus().length, model: cpus()[0]?.model },
    load: loadavg(),
    'ip -d link': {
      a: a.ns.runSync('ip', '-d', 'link'),
      b: b.ns.runSync('ip', '-d', 'link'),
      'client-a': a.client.runSync('ip', '-d', 'link'),
    },
    'ethtool -k': {
      'a eth0': features(a.ns, 'eth0'),
      'a lan0': features(a.ns, 'lan0'),
      'client-a eth0': features(a.client, 'eth0'),
    },
  };
}

/** One step of a round: measures once and gives the figures of its rows. */
interface Task {
  readonly name: string;
  readonly rows: readonly string[];
  run(subject: Subject, tell: (text: string) => void): Promise<Record<string, number>>;
}

function makeTasks(options: Options, hosts: readonly Host[], blaster: Blaster | undefined, results: Results): Task[] {
  const [a, b] = hosts;
  const { measures, seconds } = options;
  const short = Math.max(1, (seconds * 2) / 3);
  const tasks: Task[] = [];
  if (measures.has('bulk') || measures.has('cpu')) {
    tasks.push({
      name: 'bulk',
      rows: (['bulk', 'cpu'] as const).filter((row) => measures.has(row)),
      run: async () => {
        const { gbits, cpuMsPerGbit } = await bulk(a, b, { seconds, congestionControl: 'cubic' });
        return { bulk: gbits, cpu: cpuMsPerGbit };
      },
    });
  }
  if (measures.has('bulk')) {
    const row = (name: string, more: { flows?: number; both?: boolean }): void => {
      const run = async (): Promise<Record<string, number>> => ({
        [name]: (await bulk(a, b, { seconds, congestionControl: 'cubic', ...more })).gbits,
      });
      tasks.push({ name, rows: [name], run });
    };
    row('bulk-both', { both: true });
    row('bulk-8', { flows: 8 });
    if (congestionControls().includes('bbr') || spawnSync('modprobe', ['tcp_bbr']).status === 0) {
      tasks.push({
        name: 'bulk-bbr',
        rows: ['bulk-bbr'],
        run: async () => {
          setCongestionControl([a, b], 'bbr');
          try {
            return { 'bulk-bbr': (await bulk(a, b, { seconds, congestionControl: 'bbr' })).gbits };
          } finally {
            setCongestionControl([a, b], 'cubic');
          }
        },
      });
    } else {
      say('no bulk-bbr: this kernel has no BBR (module tcp_bbr)');
    }
  }
  for (const mix of ['pps64', 'imix'] as const) {
    if (!measures.has(mix) || !blaster) continue;
    const found = new Map<Subject, Lossless[]>();
    tasks.push({
      name: mix,
      rows: [mix],
      run: async (subject, tell) => {
        const before = found.get(subject) ?? [];
        found.set(subject, before);
        const one = await blaster.search(mix, before, tell);
        before.push(one);
        if (one.senderBound) results.markSenderBound(mix, subject.name);
        if (one.reordered > 0) tell(`${one.reordered} packets came out of order`);
        return { [mix]: one.rate };
      },
    });
  }
  if (measures.has('ping'))
    tasks.push({ name: 'ping', rows: ['ping'], run: async () => ({ ping: await ping(a, b, short) }) });
  if (measures.has('rr')) {
    tasks.push({
      name: 'rr',
      rows: ['rr', 'rr-p99'],
      run: async () => {
        const { p50, p99 } = await requestResponse(a, b, short);
        return { rr: p50, 'rr-p99': p99 };
      },
    });
  }
  return tasks;
}

const oneLine = (error: unknown): string => (error instanceof Error ? error.message : String(error)).split('\n')[0];

async function race(options: Options, lab: Lab): Promise<void> {
  const count = options.measures.has('imix') ? 1 + IMIX_PEERS : 2;
  const hosts = makeHosts(lab, { count, join: 'veth', clients: 'shared' });
  setCongestionControl(hosts.slice(0, 2), 'cubic');
  const subjects = options.subjects.map((name) => makeSubject(name, lab, hosts, options.weftArgs));
  for (const subject of subjects) {
    await subject.start();
    await use(subject, hosts);
    say(`${subject.name}: set up on ${hosts.length} hosts and answering`);
  }

  const results = new Results();
  const wantsPackets = options.measures.has('pps64') || options.measures.has('imix');
  const blaster = wantsPackets ? new Blaster(hosts) : undefined;
  const loads: number[] = [];
  const setup: Record<string, unknown> = { ...describeSetup(options, hosts), load_after_each_round: loads };
  if (blaster) {
    await use(subjects[0], hosts);
    const flood = await blaster.step('pps64', null, 2);
    // What its own work costs: host a throws the packets away.
    hosts[0].ns.ip(`route replace blackhole ${hosts[1].subnet4}`);
    const alone = await blaster.step('pps64', null, 1);
    const maxima = {
      sent_per_second_over_direct: Math.round(flood.sent),
      received_per_second_over_direct: Math.round(flood.received),
      sent_per_second_alone: Math.round(alone.sent),
    };
    setup.generator = maxima;
    say(`generator, flat out, packets/s: ${JSON.stringify(maxima)}`);
  }

  if (options.json) writeFileSync(options.json, results.json(setup));
  const tasks = makeTasks(options, hosts, blaster, results);
  const begun = Date.now();
  for (let round = 0; round < options.rounds; round++) {
    for (const [t, task] of tasks.entries()) {
      for (let s = 0; s < subjects.length; s++) {
        const subject = subjects[(s + t + round) % subjects.length];
        const head = `[${round + 1}/${options.rounds} ${clock(Date.now() - begun)}] ${task.name} ${subject.name}`;
        const tell = (text: string): boolean => say(`${head}   ${text}`);
        let figures: Record<string, number> | undefined;
        for (let tries = 0; tries < 2 && !figures; tries++) {
          try {
            await use(subject, hosts);
            figures = await task.run(subject, tell);
          } catch (error) {
            if (await lab.interrupted()) return;
            tell(`failed: ${oneLine(error)}`);
          }
        }
        for (const row of task.rows) {
          const figure = figures?.[row];
          results.add(row, subject.name, round, figure ?? null);
          if (figure !== undefined) say(`${head} → ${row} ${figure >= 1000 ? Math.round(figure) : figure.toFixed(2)}`);
        }
      }
    }
    loads.push(loadavg()[0]);
    if (options.json) writeFileSync(options.json, results.json(setup));
  }
  process.stdout.write(`\n${results.table()}`);
}

const clock = (ms: number): string =>
  `${Math.floor(ms / 60_000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, '0')}`;

/** Leaves out what isn't installed, and stops at what nothing works without. */
function checkPrograms(options: Options): Options {
  const impossible = hostsImpossible();
  if (impossible) throw new Error(`the race ${impossible}`);
  const needed = { iperf3: ['bulk', 'cpu'], ping: MEASURES } as const;
  for (const [program, by] of Object.entries(needed)) {
    if (by.some((measure) => options.measures.has(measure)) && !version(program, '-V')) {
      throw new Error(`${program} is missing: apt-get install ${program === 'ping' ? 'iputils-ping' : program}`);
    }
  }
  if (!options.subjects.includes('fastd') || version('fastd', '--version')) return options;
  say('fastd is not installed, so it does not take part: apt-get install fastd');
  return { ...options, subjects: options.subjects.filter((name) => name !== 'fastd') };
}

try {
  const options = checkPrograms(readOptions());
  const lab = new Lab('race');
  try {
    await race(options, lab);
  } catch (error) {
    if (!(await lab.interrupted())) throw error;
  } finally {
    await lab.close();
  }
} catch (error) {
  say(`race: ${oneLine(error)}`);
  if (error instanceof UsageError) say(USAGE);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
