/** What a new snapshot lacks is kept for a while: by example, and for any sequence of snapshots and events. */
import fc from 'fast-check';
import t from 'tap';
import { Lingering } from '../../src/control/lingering.js';
import { makeRecord, type PeerRecord, type Records, reduceRecords, sameRecord } from '../../src/control/records.js';
import type { RegistryEvent } from '../../src/control/registry.js';

const PATIENCE = 5000;

const record = (number: number, subnet = number, address = number): PeerRecord =>
  makeRecord({
    id: `p${number}`,
    name: `p${number}`,
    address: `192.168.77.${address}`,
    port: 8285,
    subnets: [`10.5.${subnet}.0/24`],
    ecn: true,
  });
const put = (one: PeerRecord): RegistryEvent => ({ type: 'put', record: one });
const gone = (id: string): RegistryEvent => ({ type: 'delete', id });
const ids = (records: readonly PeerRecord[]): string[] => records.map((one) => one.id).sort();

t.test('the first snapshot is told as it is, and events go through', async (t) => {
  const lingering = new Lingering([], PATIENCE);
  t.same(lingering.snapshot([record(1), record(2)], 0), [record(1), record(2)]);
  const events = [put(record(3)), gone('p1'), put(record(2, 20))];
  t.same(lingering.events(events, 1), events);
  t.same(lingering.events([], 1e9), [], 'nothing was left to linger');
});

t.test('who a snapshot lacks goes after the patience, and is told of once', async (t) => {
  const lingering = new Lingering([record(1), record(2)], PATIENCE);
  t.same(ids(lingering.snapshot([record(1)], 100)), ['p1', 'p2']);
  t.same(lingering.events([], 100 + PATIENCE - 1), []);
  t.same(lingering.events([], 100 + PATIENCE), [gone('p2')]);
  t.same(lingering.events([], 1e9), []);
});

t.test('who comes back stays', async (t) => {
  const lingering = new Lingering([record(1), record(2)], PATIENCE);
  lingering.snapshot([record(1)], 0);
  t.same(lingering.events([put(record(2, 22))], 10), [put(record(2, 22))]);
  t.same(lingering.events([], 1e9), []);
  lingering.snapshot([record(1)], 0);
  t.same(ids(lingering.snapshot([record(1), record(2)], 10)), ['p1', 'p2']);
  t.same(lingering.events([], 1e9), [], 'in a snapshot too');
});

t.test('who lingers in another’s way goes at once, before the other comes', async (t) => {
  for (const [what, newcomer] of [
    ['subnet', record(3, 2)],
    ['address', record(3, 3, 2)],
  ] as const) {
    const lingering = new Lingering([record(1), record(2)], PATIENCE);
    t.same(ids(lingering.snapshot([record(1), newcomer], 0)), ['p1', 'p3'], what);
    t.same(lingering.events([], 1e9), []);

    const later = new Lingering([record(1), record(2)], PATIENCE);
    later.snapshot([record(1)], 0);
    t.same(later.events([put(newcomer)], 1), [gone('p2'), put(newcomer)], what);
    t.same(later.events([], 1e9), []);
  }
});

t.test('who is said to be gone does not linger', async (t) => {
  const lingering = new Lingering([record(1), record(2)], PATIENCE);
  lingering.snapshot([record(1)], 0);
  t.same(lingering.events([gone('p2')], 1), [gone('p2')]);
  t.same(lingering.events([], 1e9), []);
  t.same(ids(lingering.snapshot([record(1)], 2)), ['p1'], 'nor comes back by the next snapshot');
});

// --- any sequence ---

type Step =
  | { readonly do: 'snapshot'; readonly owners: readonly number[] }
  | { readonly do: 'give'; readonly host: number; readonly subnet: number }
  | { readonly do: 'take'; readonly host: number }
  | { readonly do: 'wait'; readonly ms: number };

const HOSTS = 5;
const step: fc.Arbitrary<Step> = fc.oneof(
  // Who has subnet i; what is not a host: nobody. A host that is named twice has the last.
  fc.record({
    do: fc.constant('snapshot' as const),
    owners: fc.array(fc.integer({ min: 0, max: HOSTS }), { maxLength: 4 }),
  }),
  fc.record({
    do: fc.constant('give' as const),
    host: fc.integer({ min: 1, max: HOSTS }),
    subnet: fc.integer({ min: 0, max: 5 }),
  }),
  fc.record({ do: fc.constant('take' as const), host: fc.integer({ min: 1, max: HOSTS }) }),
  fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: 4000 }) }),
);

t.test('whatever is told: all of the registry is in it, nothing twice, and what is not goes in time', async (t) => {
  const check = (known: readonly number[], steps: readonly Step[]): void => {
    const before = known.map((number, subnet) => record(number, subnet));
    const lingering = new Lingering(before, PATIENCE);
    /** The registry's word, and what the reader has of it. */
    let truth = new Map<string, PeerRecord>(before.map((one) => [one.id, one]));
    let reader: Records = new Map(truth);
    let now = 0;
    /** When the last snapshot came. */
    let snapshotAt = Number.NEGATIVE_INFINITY;
    for (const one of steps) {
      if (one.do === 'wait') now += one.ms;
      if (one.do === 'snapshot') {
        const owners = one.owners.flatMap((host, subnet) => (host === 0 ? [] : [record(host, subnet)]));
        truth = new Map(owners.map((owner) => [owner.id, owner]));
        snapshotAt = now;
        const records = lingering.snapshot([...truth.values()], now);
        reader = reduceRecords(reader, { kind: 'snapshot', records, cursor: '' });
      } else {
        const events: RegistryEvent[] = [];
        if (one.do === 'give') {
          const given = record(one.host, one.subnet);
          const owner = [...truth.values()].find((other) => other.subnets[0] === given.subnets[0]);
          if (owner && owner.id !== given.id) {
            truth.delete(owner.id);
            events.push(gone(owner.id));
          }
          truth.set(given.id, given);
          events.push(put(given));
        } else if (one.do === 'take') {
          truth.delete(`p${one.host}`);
          events.push(gone(`p${one.host}`));
        }
        // Told one by one, so that the order within one update is looked at too.
        for (const event of lingering.events(events, now)) {
          reader = reduceRecords(reader, { kind: 'events', events: [event], cursor: '' });
          const claims = [...reader.values()].flatMap((each) => [each.address, ...each.subnets]);
          if (new Set(claims).size !== claims.length) throw new Error(`told twice: ${claims}`);
        }
      }
      for (const [id, want] of truth) {
        const found = reader.get(id);
        if (!found || !sameRecord(found, want)) throw new Error(`${id} is in the registry, told was ${found?.subnets}`);
      }
      const claims = [...reader.values()].flatMap((each) => [each.address, ...each.subnets]);
      if (new Set(claims).size !== claims.length) throw new Error(`told twice: ${claims}`);
      const extra = [...reader.keys()].filter((id) => !truth.has(id));
      if (one.do !== 'snapshot' && now >= snapshotAt + PATIENCE && extra.length > 0) {
        throw new Error(`${extra} linger ${now - snapshotAt} ms after the snapshot`);
      }
      if (one.do === 'take' && reader.has(`p${one.host}`)) throw new Error(`p${one.host} was taken out`);
    }
  };
  const known = fc.uniqueArray(fc.integer({ min: 1, max: HOSTS }), { maxLength: HOSTS });
  fc.assert(fc.property(known, fc.array(step, { maxLength: 30 }), check), { numRuns: 2000 });
  t.pass();
});
