/**
 * Stands in for dataplane/worker.ts in tests of control: takes turns and does, by its first device descriptor, what it is told
 * (test/control/dataplane.test.ts): 1001 throw at once, 1002 throw later, 1003 lose the device, 1004 not listen to stop.
 */
import { workerData } from 'node:worker_threads';
import type { WorkerData } from '../../src/dataplane/settings.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { EngineMemory } from '../../src/io/memory.js';

const data = workerData as WorkerData;
const shared = new SharedWords(new EngineMemory(data.shared));
const [what] = data.deviceFds;
if (what === 1001) throw new Error('thrown by the stub');

shared.setRunning(data.worker, true);
const begun = Date.now();
const nothing = new Int32Array(new SharedArrayBuffer(4));
while (!shared.stopping() || (what === 1004 && Date.now() - begun < 2000)) {
  shared.beginTurn(data.worker);
  Atomics.wait(nothing, 0, 0, 5);
  if (what === 1002 && Date.now() - begun > 100) throw new Error('thrown by the stub');
  if (what === 1003 && Date.now() - begun > 1000) throw new Error('DEVICE_LOST');
}
shared.setRunning(data.worker, false);
