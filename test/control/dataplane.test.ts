/** Worker threads as control keeps them: started, woken, started again when they die, stopped in time. */
import t from 'tap';
import { Dataplane, type DataplaneIo } from '../../src/control/dataplane.js';
import type { EventLog } from '../../src/control/event-log.js';
import { OFFLOADS } from '../../src/io/offloads.js';

const program = new URL('../lib/stub-worker.js', import.meta.url);

/** What stub-worker.ts does, by the device descriptor that it is given. */
const RUN = 1000;
const THROW_AT_ONCE = 1001;
const THROW_LATER = 1002;
const LOSE_DEVICE = 1003;
const IGNORE_STOP = 1004;

const io = (...deviceFds: number[]): DataplaneIo => ({
  deviceFds: deviceFds.map((fd) => [fd]),
  socketFds: deviceFds.map(() => [-1, -1]),
  senderFds: deviceFds.map(() => [[], []]),
  settings: {
    sourceCheck: 'peer',
    offloads: OFFLOADS.uso | OFFLOADS.gro,
    maxSegments: 1,
    mtu: 1472,
    address4: undefined,
    address6: undefined,
  },
  reopenDevices: async () => deviceFds.map(() => [RUN]),
});

function setUp(workers: number): { dataplane: Dataplane; events: string[] } {
  const events: string[] = [];
  const say = (event: string, fields?: Readonly<Record<string, unknown>>): void => {
    events.push([event, fields?.reason ?? fields?.offloads].filter(Boolean).join(': '));
  };
  const log: EventLog = { debug: say, info: say, warn: say, error: say };
  const memory = { peers: 16, routeNodes: 64 };
  return { dataplane: new Dataplane({ workers, log, memory, program }), events };
}

const until = async (so: () => boolean): Promise<boolean> => {
  for (let waited = 0; !so() && waited < 5000; waited += 10) await new Promise((resolve) => setTimeout(resolve, 10));
  return so();
};

t.test('start, commit, stop', async (t) => {
  const { dataplane, events } = setUp(2);
  const peer = { address: Uint8Array.of(192, 168, 77, 2), port: 8285, mtu: 1472, ecn: false, network: 0 };
  dataplane.tables.addPeer(peer);
  await dataplane.tables.commit();
  t.pass('the tables can be filled before');
  await dataplane.start(io(RUN, RUN));
  t.equal(dataplane.running, 2);
  t.equal(dataplane.offloads, OFFLOADS.uso | OFFLOADS.gro);
  dataplane.tables.addPeer({ ...peer, address: Uint8Array.of(192, 168, 77, 3) });
  await dataplane.tables.commit();
  t.pass('idle workers let a commit pass');
  dataplane.shared.refuseOffload(OFFLOADS.uso);
  t.ok(await until(() => events.includes('offload_refused: uso')));
  t.equal(dataplane.offloads, OFFLOADS.gro);
  const begun = performance.now();
  await dataplane.stop();
  t.ok(performance.now() - begun < 600, 'stopped at once');
  t.equal(dataplane.running, 0);
  t.same(events, ['offload_refused: uso'], 'and nothing else was said');
});

t.test('a worker that cannot start is a failure of the set-up', async (t) => {
  const { dataplane } = setUp(1);
  await t.rejects(dataplane.start(io(THROW_AT_ONCE)), /^the dataplane worker does not start: thrown by the stub$/);
  await dataplane.stop();
});

t.test('a worker that throws is started again, and commits do not wait for it', async (t) => {
  const { dataplane, events } = setUp(1);
  await dataplane.start(io(THROW_LATER));
  t.ok(await until(() => dataplane.restarts >= 2), 'again and again');
  await dataplane.tables.commit();
  t.ok(events.every((event) => event === 'worker_ended: thrown by the stub'));
  t.equal(events.length >= 2, true);
  const restarts = dataplane.restarts;
  t.ok(events.length - restarts <= 1, 'one line each');
  await dataplane.stop();
});

t.test('a lost device is made anew before', async (t) => {
  const { dataplane, events } = setUp(2);
  let reopened = 0;
  await dataplane.start({
    ...io(LOSE_DEVICE, LOSE_DEVICE),
    reopenDevices: async () => {
      t.equal(dataplane.running, 0, 'nobody holds the old one');
      if (reopened++ === 0) throw new Error('not yet');
      return [[RUN], [RUN]];
    },
  });
  t.ok(await until(() => dataplane.restarts === 2 && dataplane.running === 2));
  t.equal(reopened, 2, 'once, for both, at the second try');
  t.ok(events.includes('device_lost: not yet') && events.includes('device_reopened'), events.join('; '));
  await dataplane.stop();
});

t.test('a worker that does not listen is not waited for', async (t) => {
  const { dataplane } = setUp(1);
  await dataplane.start(io(IGNORE_STOP));
  const begun = performance.now();
  await t.rejects(dataplane.stop(), { message: /does not end/ }, 'so that its descriptors stay open');
  const took = performance.now() - begun;
  t.ok(took < 900, `${Math.round(took)} ms`);
});
