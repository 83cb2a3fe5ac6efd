/** What `promtool check metrics` has to say of /metrics: nothing. */
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { createMetrics } from '../../src/observe/metrics.js';
import { LAYER_2, makeObserved } from '../lib/observed.js';

const PROMTOOL = 'promtool';
const missing = spawnSync(PROMTOOL, ['--version']).error ? 'no promtool: apt-get install prometheus' : false;

interface Verdict {
  readonly status: number | null;
  readonly said: string;
}

function check(metrics: string): Verdict {
  const { status, stdout, stderr } = spawnSync(PROMTOOL, ['check', 'metrics'], { input: metrics, encoding: 'utf8' });
  return { status, said: stdout + stderr };
}

const CLEAN: Verdict = { status: 0, said: '' };

t.test('it objects to what it should', { skip: missing }, async (t) => {
  t.match(check('# TYPE weft_things_total gauge\nweft_things_total 1\n'), { status: 3, said: /weft_things_total/ });
});

for (const [layer, workers, setUp] of [
  ['layer 3', 1, () => makeObserved(1)],
  ['layer 2, three workers', 3, () => makeObserved(3, { networks: 2, macs: 64, neighbours: 64, statics: 64 })],
] as const) {
  t.test(layer, { skip: missing }, async (t) => {
    const { observed, peers } = setUp();
    for (let i = 0; i < 300; i++)
      peers.push({ name: i === 0 ? 'a "quoted\\\n name' : `p${i}`, ref: (1 << 16) | (i + 8) });
    const metrics = createMetrics(workers === 1 ? observed : { ...observed, ...LAYER_2 });
    t.same(check(await metrics.metrics()), CLEAN);
    t.same(check(await metrics.metrics()), CLEAN, 'a second time');
  });
}
