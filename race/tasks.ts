/** The steps of a round, out of the measures that were asked for. */
import { spawnSync } from 'node:child_process';
import type { Host } from './hosts.js';
import type { Blaster, Lossless } from './lossless.js';
import { bulk, congestionControls, ping, requestResponse, setCongestionControl } from './measures.js';
import type { Options } from './options.js';
import { say } from './progress.js';
import type { Results } from './report.js';
import type { Subject } from './subjects.js';

/** Of a bulk run: the second left out, and switching to the subject. */
const BULK_MORE = 2;
/** Of a search for a packet rate. */
const SEARCH = 45;

/** One step of a round: measures once and gives the figures of its rows. */
export interface Task {
  readonly name: string;
  readonly rows: readonly string[];
  /** Seconds that it may take, for the first estimate of the time left. */
  readonly guess: number;
  run(subject: Subject, tell: (text: string) => void): Promise<Record<string, number>>;
}

export function makeTasks(
  options: Options,
  hosts: readonly Host[],
  blaster: Blaster | undefined,
  results: Results,
): Task[] {
  const [a, b] = hosts;
  const { lab } = a.ns;
  const { measures, seconds } = options;
  const short = Math.max(1, (seconds * 2) / 3);
  const tasks: Task[] = [];
  if (measures.has('bulk') || measures.has('cpu')) {
    tasks.push({
      name: 'bulk',
      guess: seconds + BULK_MORE,
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
      tasks.push({ name, rows: [name], guess: seconds + BULK_MORE, run });
    };
    row('bulk-both', { both: true });
    row('bulk-8', { flows: 8 });
    if (congestionControls().includes('bbr') || spawnSync('modprobe', ['tcp_bbr']).status === 0) {
      tasks.push({
        name: 'bulk-bbr',
        rows: ['bulk-bbr'],
        guess: seconds + BULK_MORE,
        run: async () => {
          setCongestionControl([a, b], 'bbr');
          try {
            return { 'bulk-bbr': (await bulk(a, b, { seconds, congestionControl: 'bbr' })).gbits };
          } finally {
            // A lab that closes has put the routes back already.
            if (!lab.closing) setCongestionControl([a, b], 'cubic');
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
      guess: SEARCH,
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
    tasks.push({
      name: 'ping',
      rows: ['ping'],
      guess: short + 1,
      run: async () => ({ ping: await ping(a, b, short) }),
    });
  if (measures.has('rr')) {
    tasks.push({
      name: 'rr',
      rows: ['rr', 'rr-p99'],
      guess: short + 1,
      run: async () => {
        const { p50, p99 } = await requestResponse(a, b, short);
        return { rr: p50, 'rr-p99': p99 };
      },
    });
  }
  return tasks;
}
