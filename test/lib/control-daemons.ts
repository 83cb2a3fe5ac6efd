/** Control-only daemons (control-daemon.ts) as child processes. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { ControlLine, ControlOptions } from './control-daemon.js';

const PROGRAM = fileURLToPath(new URL('control-daemon.js', import.meta.url));

export class ControlDaemon {
  readonly options: ControlOptions;
  readonly child: ChildProcess;
  /** What it said, with performance.now() of when. */
  readonly lines: { readonly at: number; readonly line: ControlLine }[] = [];
  #waiting: (() => void)[] = [];

  constructor(options: ControlOptions) {
    this.options = options;
    this.child = spawn(process.execPath, [PROGRAM, JSON.stringify(options)], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.child.stdin?.on('error', () => {});
    if (!this.child.stdout) throw new Error('no standard output');
    createInterface({ input: this.child.stdout }).on('line', (text) => {
      this.lines.push({ at: performance.now(), line: JSON.parse(text) as ControlLine });
      this.#wake();
    });
    this.child.once('exit', () => this.#wake());
  }

  go(): void {
    this.child.stdin?.write('go\n');
  }

  /** Resolves to the first line that fits, or rejects: it said that it failed, it ended, or `ms` went by. */
  async said<E extends ControlLine['event']>(
    event: E,
    fits: (line: Extract<ControlLine, { event: E }>) => boolean = () => true,
    ms = 20_000,
  ): Promise<{ readonly at: number; readonly line: Extract<ControlLine, { event: E }> }> {
    const deadline = performance.now() + ms;
    for (;;) {
      for (const { at, line } of this.lines) {
        if (line.event === event && fits(line as Extract<ControlLine, { event: E }>)) {
          return { at, line: line as Extract<ControlLine, { event: E }> };
        }
        if (line.event === 'failed') throw new Error(`${this.options.host} failed: ${line.reason}`);
      }
      if (this.ended) throw new Error(`${this.options.host} ended without ${event}`);
      if (performance.now() > deadline) throw new Error(`${this.options.host} did not say ${event} in ${ms} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.max(1, deadline - performance.now()));
        this.#waiting.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (this.ended) return;
    const exit = once(this.child, 'exit');
    this.child.kill(signal);
    await exit;
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }
}
