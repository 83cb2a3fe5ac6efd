/**
 * A process that profiles one benchmark: `node profile.js NAME SECONDS`. What it found goes to standard output, as JSON.
 *
 * The profiler runs during the warm-up too: only what was compiled then knows the lines of what is inlined. Rounds with and
 * without the profiler alternate: the ones without say what a packet costs, the ones with it what the share of each line is.
 */
import { type Profiler, Session } from 'node:inspector';
import { register } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { Bench } from '../bench.js';
import { modules } from './lines.js';

export interface Sampled {
  readonly name: string;
  readonly unit: string;
  /** ns an operation, by round: without the profiler, and with it. */
  readonly plain: readonly number[];
  readonly profiled: readonly number[];
  readonly samples: number;
  /** Samples by line (numbered by `modules`) of the innermost function and the function whose code it was in. */
  readonly lines: readonly { readonly line: number; readonly within: string; readonly samples: number }[];
  /** Samples by function that the WASM module exports; "wasm-function[3]" if it is one that it does not. */
  readonly kernels: Readonly<Record<string, number>>;
  /** Samples by the name of what has no line: the engine's own work, the garbage collector's. */
  readonly others: Readonly<Record<string, number>>;
}

/** Microseconds between two samples. */
const INTERVAL = 100;
/** Compiled by the second or third round, and well within a second. */
const WARM_UP_ROUNDS = 2;
const WARM_UP_MS = 1000;

const session = new Session();
const post = <T>(method: string, params?: object): Promise<T> =>
  new Promise((resolve, reject) => {
    session.post(method, params, (error, result) => (error ? reject(error) : resolve(result as T)));
  });

async function sample(name: string, seconds: number): Promise<Sampled> {
  session.connect();
  await post('Profiler.enable');
  await post('Profiler.setSamplingInterval', { interval: INTERVAL });
  await post('Profiler.start');
  register('./lines.js', import.meta.url, { data: modules() });
  const { walkBenches } = (await import('../walk.js')) as { walkBenches: readonly Bench[] };
  const { switchBenches } = (await import('../switch.js')) as { switchBenches: readonly Bench[] };
  const bench = [...walkBenches, ...switchBenches].find((one) => one.name === name);
  if (!bench) throw new Error(`no benchmark is called "${name}": see npm run bench -- --list`);
  const round = await bench.prepare();
  const time = async (): Promise<number> => {
    const start = process.hrtime.bigint();
    const operations = await round();
    return Number(process.hrtime.bigint() - start) / operations;
  };
  const warm = performance.now() + WARM_UP_MS;
  for (let i = 0; i < WARM_UP_ROUNDS || performance.now() < warm; i++) await round();
  await post('Profiler.stop');

  const plain: number[] = [];
  const profiled: number[] = [];
  const counts = new Map<string, { line: number; within: string; samples: number }>();
  const kernels: Record<string, number> = {};
  const others: Record<string, number> = {};
  const kernelNames = await namesOfKernels();
  let samples = 0;
  for (const begun = performance.now(); performance.now() < begun + seconds * 1000; ) {
    plain.push(await time());
    await post('Profiler.start');
    profiled.push(await time());
    const { profile } = await post<Profiler.StopReturnType>('Profiler.stop');
    for (const { callFrame, hitCount = 0, positionTicks = [] } of profile.nodes) {
      if (hitCount === 0) continue;
      samples += hitCount;
      const within = callFrame.functionName;
      if (callFrame.url.startsWith('wasm:')) {
        const name = kernelNames.get(within) ?? within;
        kernels[name] = (kernels[name] ?? 0) + hitCount;
        continue;
      }
      const named = positionTicks.reduce((sum, { ticks }) => sum + ticks, 0);
      if (named < hitCount) others[within] = (others[within] ?? 0) + hitCount - named;
      for (const { line, ticks } of positionTicks) {
        const one = counts.get(`${line} ${within}`) ?? { line, within, samples: 0 };
        counts.set(`${line} ${within}`, one);
        one.samples += ticks;
      }
    }
  }
  return { name, unit: bench.unit, plain, profiled, samples, lines: [...counts.values()], kernels, others };
}

/** V8 names WASM functions by their number, and so does an exported function. */
async function namesOfKernels(): Promise<Map<string, string>> {
  const { EngineMemory } = await import('../../src/io/memory.js');
  const { loadKernels } = await import('../../src/io/kernels.js');
  const memory = EngineMemory.create({ workers: 1, peers: 16, routeNodes: 16, networks: 1 });
  const kernels = Object.entries(loadKernels(memory)) as [string, { name: string }][];
  return new Map(kernels.map(([name, { name: number }]) => [`wasm-function[${number}]`, name]));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name, seconds] = process.argv.slice(2);
  process.stdout.write(JSON.stringify(await sample(name, Number(seconds))));
}
