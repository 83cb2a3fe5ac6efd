/** Every metric that a daemon may serve: the real registry's text in both layers. */
import { createMetrics } from '../../src/observe/metrics.js';
import { LAYER_2, makeObserved } from './observed.js';
import { type Served, servedBy } from './promql.js';

/** Both layers' texts as one, of daemons that are not running: nothing is to be closed. */
export async function everythingServed(): Promise<Served> {
  const layer3 = makeObserved(1);
  const layer2 = makeObserved(2, { networks: 2, macs: 64, neighbours: 64, statics: 16 });
  const texts = [layer3.observed, { ...layer2.observed, ...LAYER_2 }].map((observed) =>
    createMetrics(observed).metrics(),
  );
  return servedBy(...(await Promise.all(texts)));
}
