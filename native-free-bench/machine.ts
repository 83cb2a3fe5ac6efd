/** What a run was made on: machine, versions, commit, load. */
import { cpus, loadavg, release, totalmem } from 'node:os';
import { type Commit, commitOf } from '../race/publish/tree.js';

export interface Machine {
  readonly date: string;
  readonly processors: { readonly count: number; readonly model: string };
  readonly memoryGib: number;
  readonly kernel: string;
  readonly node: string;
  /** null: not in a repository. */
  readonly commit: Commit | null;
  /** Load average of the last minute when the run began. */
  readonly load: number;
}

export const describeMachine = (): Machine => ({
  date: new Date().toISOString(),
  processors: { count: cpus().length, model: cpus()[0]?.model ?? 'unknown' },
  memoryGib: Math.round(totalmem() / 2 ** 30),
  kernel: release(),
  node: process.version,
  commit: commitOf() ?? null,
  load: loadavg()[0],
});
