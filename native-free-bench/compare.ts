/**
 * Base against head: the base revision is checked out beside, built with this tree's packages, and each benchmark that both
 * have runs in turn in a process of its own, base and head alternating. The ratio is the median of the rounds' ratios.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Result } from './bench.js';

const script = 'dist/native-free-bench/bench.js';

export function compare(base: string, only: string, rounds: number): void {
  const head = fileURLToPath(new URL('../..', import.meta.url));
  const other = mkdtempSync(join(tmpdir(), 'weft-bench-base-'));
  try {
    execFileSync('git', ['-C', head, 'worktree', 'add', '--detach', '--force', other, base], { stdio: 'pipe' });
    symlinkSync(join(head, 'node_modules'), join(other, 'node_modules'));
    execFileSync('npm', ['run', '-s', 'build'], { cwd: other, stdio: ['ignore', 'ignore', 'inherit'] });
    const names = list(head, only).filter((name) => list(other, only).includes(name));
    console.log(
      `${'benchmark'.padEnd(58)} ${base.padStart(12)} ${'head'.padStart(12)}   head/base (below 1: head is faster)`,
    );
    for (const name of names) {
      const pairs = Array.from({ length: rounds }, (_, i) => {
        const order = i % 2 === 0 ? [other, head] : [head, other];
        const results = new Map(order.map((tree) => [tree, one(tree, name)]));
        return { base: results.get(other) ?? 0, head: results.get(head) ?? 0 };
      });
      const ratio = median(pairs.map((pair) => pair.head / pair.base));
      const show = (values: number[]): string => `${median(values).toFixed(1)} ns`.padStart(12);
      console.log(
        `${name.padEnd(58)} ${show(pairs.map((p) => p.base))} ${show(pairs.map((p) => p.head))}   ${ratio.toFixed(3)}`,
      );
    }
  } finally {
    execFileSync('git', ['-C', head, 'worktree', 'remove', '--force', other], { stdio: 'pipe' });
    rmSync(other, { recursive: true, force: true });
  }
}

const list = (tree: string, only: string): string[] =>
  execFileSync(process.execPath, [script, '--list', '--only', only], { cwd: tree, encoding: 'utf8' })
    .split('\n')
    .filter((name) => name !== '');

function one(tree: string, name: string): number {
  const text = execFileSync(process.execPath, [script, '-j', '--rounds', '3', '--only', name], {
    cwd: tree,
    encoding: 'utf8',
  });
  const results = text
    .trim()
    .split('\n')
    .map((row) => JSON.parse(row) as Result);
  return results.find((result) => result.name === name)?.nanoseconds ?? Number.NaN;
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1];
