/**
 * Runs the compiled test files, each in a process of its own, and ends with the plain line "N passed, N failed". A test point is
 * a top-level one of a file's TAP output. Files that measure, load the machine or start many daemons (bench/, most of hosts/, race/,
 * readme, *-many) run one after the other, since they want both cores; the others, which mostly wait, run two at a time before them.
 *
 *   npm test                        everything that fits into CI's time
 *   npm run test:full               the long versions too (WEFT_TEST_FULL=1 for the files)
 *   npm test -- kernels hosts/bulk  only files whose path contains a word
 */
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const TIMEOUT_MINUTES = { ci: 8, full: 120 };

const here = fileURLToPath(new URL('.', import.meta.url));
const words = process.argv.slice(2).filter((word) => word !== '--full');
const full = process.argv.includes('--full');

const files = readdirSync(here, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.js'))
  .filter((file) => words.length === 0 || words.some((word) => file.includes(word)))
  .sort();

let passed = 0;
let failed = 0;
/** Of those that join hosts: they wait for leases, timeouts, answers and signals. */
const WAITING =
  /^hosts\/(capture|compose|control-(?!abuse)|embedded|etcd|explain|host-rules|l2-bridge|l2-mesh|lifecycle|ping)/;
const waits = (file: string): boolean => WAITING.test(file);
const alone = (file: string): boolean => /^(bench|hosts|race)\/|^readme\.|-many\./.test(file) && !waits(file);
await inLanes(
  files.filter((file) => !alone(file)),
  2,
);
await inLanes(files.filter(alone), 1);
if (files.length === 0) console.log(`no test file matches ${words.join(' ')}`);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;

/** Runs files in their order, `lanes` at a time. */
async function inLanes(queue: string[], lanes: number): Promise<void> {
  const lane = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) await report(file);
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}

async function report(file: string): Promise<void> {
  const start = Date.now();
  const result = await run(join(here, file));
  passed += result.passed;
  failed += result.failed;
  const seconds = ((Date.now() - start) / 1000).toFixed(1).padStart(6);
  const name = relative(here, join(here, file)).replace('.test.js', '');
  console.log(
    `${result.failed > 0 ? 'FAIL' : 'ok  '} ${seconds} s  ${String(result.passed).padStart(3)} passed  ${name}`,
  );
  for (const line of result.skipped) console.log(`     ${line}`);
  if (result.failed > 0) console.log(result.output);
}

interface Outcome {
  passed: number;
  failed: number;
  readonly skipped: string[];
  output: string;
}

function run(file: string): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...process.env, ...(full ? { WEFT_TEST_FULL: '1' } : {}), TAP_BAIL: '0' };
    const child = spawn(process.execPath, ['--enable-source-maps', file], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    const minutes = full ? TIMEOUT_MINUTES.full : TIMEOUT_MINUTES.ci;
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      child.kill('SIGTERM'); // files clean up on SIGTERM
      setTimeout(() => child.kill('SIGKILL'), 20_000).unref();
    }, minutes * 60_000);
    let output = '';
    const collect = (chunk: Buffer): void => {
      output += chunk.toString();
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      const points = output.split('\n').filter((line) => /^(not )?ok \d/.test(line));
      const outcome: Outcome = {
        passed: points.filter((line) => line.startsWith('ok') && !/# (SKIP|TODO)/i.test(line)).length,
        failed: points.filter((line) => line.startsWith('not ok')).length,
        skipped: output
          .split('\n')
          .filter((line) => /# SKIP|SKIPPED/.test(line))
          .map((line) => line.trim()),
        output: timedOut ? `${output}\ntimed out after ${minutes} minutes` : output,
      };
      // A crash before the first point, or after the last, is a failure too; so is a file that tests nothing.
      const silent = points.length === 0 && outcome.skipped.length === 0;
      if (outcome.failed === 0 && (code !== 0 || signal !== null || silent)) outcome.failed = 1;
      resolve(outcome);
    });
  });
}
