/** The shared tables against naive models: routes, underlay addresses, peer slots, and commits while a worker takes turns. */
import fc from 'fast-check';
import t from 'tap';
import { AddressTable, addressWords, lookupAddress } from '../../src/dataplane/addresses.js';
import { PEER_GENERATION, PEER_MTU, PeerSlots, type PeerSpec, slotOf } from '../../src/dataplane/peers.js';
import { lookup4, lookup6, type Prefix, RouteTrie } from '../../src/dataplane/routes.js';
import { SharedWords } from '../../src/dataplane/shared.js';
import { Tables } from '../../src/dataplane/tables.js';
import { EngineMemory, PEER_BYTES } from '../../src/io/memory.js';
import { address, packet, pattern, plain, prefix, random, udp } from '../lib/packets.js';
import { HOST_4, makeRig } from '../lib/rig.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const makeMemory = (options: { peers?: number; routeNodes?: number } = {}): EngineMemory =>
  EngineMemory.create({ workers: 1, peers: options.peers ?? 64, routeNodes: options.routeNodes ?? 4096, networks: 1 });

const word = (bytes: Uint8Array): number => new DataView(bytes.buffer, bytes.byteOffset).getInt32(0);

/** The reference that a destination's lookup gives in one version. */
function look(memory: EngineMemory, version: number, destination: Uint8Array): number {
  const table = memory.layout.tables[version];
  if (destination.length === 4) return lookup4(memory.i32, table.roots4 >> 2, table.nodes >> 2, word(destination));
  const at = memory.layout.workers[0].scratch;
  memory.u8.set(destination, at);
  return lookup6(memory.i32, memory.u8, table.roots6 >> 2, table.nodes >> 2, at);
}

const covers = (outer: Prefix, bytes: Uint8Array): boolean => {
  if (outer.bytes.length !== bytes.length) return false;
  for (let bit = 0; bit < outer.length; bit++) {
    if (((outer.bytes[bit >> 3] ^ bytes[bit >> 3]) >> (7 - (bit & 7))) & 1) return false;
  }
  return true;
};

const masked = (bytes: Uint8Array, length: number): Prefix => ({
  bytes: bytes.map((byte, i) => (length >= i * 8 + 8 ? byte : length <= i * 8 ? 0 : byte & (0xff00 >> (length & 7)))),
  length,
});

const key = ({ bytes, length }: Prefix): string => `${bytes.join('.')}/${length}`;

/** The obvious longest-prefix match. */
class NaiveRoutes {
  readonly routes = new Map<string, { prefix: Prefix; ref: number }>();
  set(one: Prefix, ref: number): void {
    this.routes.set(key(one), { prefix: one, ref });
  }
  remove(one: Prefix): void {
    this.routes.delete(key(one));
  }
  look(destination: Uint8Array): number {
    let best = -1;
    let ref = 0;
    for (const route of this.routes.values()) {
      if (route.prefix.length > best && covers(route.prefix, destination)) {
        best = route.prefix.length;
        ref = route.ref;
      }
    }
    return ref;
  }
}

/** Addresses close to a few bases, so that prefixes nest and collide. */
const bytes4 = fc
  .tuple(fc.constantFrom('10.5.0.0', '10.5.2.0', '10.6.0.0', '0.0.0.0', '255.255.255.255'), fc.nat(31), fc.nat(255))
  .map(([base, bit, low]) => {
    const bytes = address(base);
    bytes[bit >> 3] ^= 1 << (bit & 7);
    bytes[3] ^= low & 7;
    return bytes;
  });
const bytes6 = fc
  .tuple(
    fc.constantFrom('fd00:5::', 'fd00:5:0:2::', '::', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'),
    fc.nat(127),
    fc.nat(255),
  )
  .map(([base, bit, low]) => {
    const bytes = address(base);
    bytes[bit >> 3] ^= 1 << (bit & 7);
    bytes[15] ^= low & 7;
    return bytes;
  });
const length4 = fc.oneof(fc.nat(32), fc.constantFrom(0, 0, 8, 15, 16, 17, 20, 24, 28, 29, 31, 32));
const length6 = fc.oneof(fc.nat(128), fc.constantFrom(0, 0, 1, 15, 16, 17, 32, 48, 64, 65, 112, 124, 125, 127, 128));
const prefixes: fc.Arbitrary<Prefix> = fc.oneof(
  fc.tuple(bytes4, length4).map(([bytes, length]) => masked(bytes, length)),
  fc.tuple(bytes6, length6).map(([bytes, length]) => masked(bytes, length)),
);

/** First, last and one inner address of every prefix, and its neighbours: where a wrong edge shows. */
function probes(prefixesSeen: readonly Prefix[]): Uint8Array[] {
  return prefixesSeen.flatMap(({ bytes, length }) => {
    const last = bytes.map((byte, i) =>
      length >= i * 8 + 8 ? byte : length <= i * 8 ? 255 : byte | (0xff >> (length & 7)),
    );
    const flipped = Uint8Array.from(last);
    if (length > 0) flipped[(length - 1) >> 3] ^= 0x80 >> ((length - 1) & 7);
    const inner = bytes.map((byte, i) => byte | (last[i] & 0x5a));
    return [bytes, last, flipped, inner];
  });
}

t.test('routes: sets, replacements and removals agree with the naive match, and give every node back', async () => {
  const steps = fc.array(
    fc.record({
      prefix: prefixes,
      remove: fc.constantFrom(false, false, true),
      pick: fc.nat(1000),
      again: fc.boolean(),
    }),
    {
      minLength: 1,
      maxLength: 60,
    },
  );
  const memory = makeMemory();
  fc.assert(
    fc.property(steps, (list) => {
      const trie = new RouteTrie(memory, memory.layout.tables[0]);
      const free = trie.freeNodes;
      const naive = new NaiveRoutes();
      const cover = (one: Prefix): { ref: number; length: number } => {
        let best = { ref: 0, length: -1 };
        for (const { prefix: other, ref } of naive.routes.values()) {
          if (other.length < one.length && other.length > best.length && covers(other, one.bytes))
            best = { ref, length: other.length };
        }
        return best;
      };
      const remove = (one: Prefix): void => {
        naive.remove(one);
        const { ref, length } = cover(one);
        trie.remove(0, one, ref, length);
      };
      let ref = 65536;
      const seen: Prefix[] = [];
      for (const step of list) {
        const known = [...naive.routes.values()];
        const one = step.again && known.length > 0 ? known[step.pick % known.length].prefix : step.prefix;
        seen.push(one);
        if (step.remove && naive.routes.has(key(one))) {
          remove(one);
        } else {
          trie.set(0, one, ++ref, !naive.routes.has(key(one)));
          naive.set(one, ref);
        }
      }
      const right = (): boolean =>
        probes(seen).every((destination) => look(memory, 0, destination) === naive.look(destination));
      const before = right();
      for (const { prefix: one } of [...naive.routes.values()].sort((a, b) => (key(a.prefix) < key(b.prefix) ? -1 : 1)))
        remove(one);
      return before && right() && trie.freeNodes === free;
    }),
    { numRuns: 400 },
  );
});

t.test('tables: random commits, both versions, workers that may or may not look in between', async () => {
  const memory = makeMemory();
  const shared = new SharedWords(memory);
  const rounds = fc.array(
    fc.array(
      fc.record({
        prefix: prefixes,
        known: fc.boolean(),
        pick: fc.nat(1000),
        remove: fc.boolean(),
        ref: fc.integer({ min: 65536, max: 900000 }),
      }),
      { maxLength: 15 },
    ),
    { minLength: 1, maxLength: 6 },
  );
  await fc.assert(
    fc.asyncProperty(rounds, async (list) => {
      const tables = new Tables(memory, () => {});
      const naive = new NaiveRoutes();
      const seen: Prefix[] = [];
      for (const changes of list) {
        for (const { prefix: fresh, known, pick, remove, ref } of changes) {
          // Half of the time one that is there: removed, or given to another.
          const there = [...naive.routes.values()];
          const one = known && there.length > 0 ? there[pick % there.length].prefix : fresh;
          seen.push(one);
          if (remove) {
            tables.removeRoute(0, one);
            naive.remove(one);
          } else {
            tables.setRoute(0, one, ref);
            naive.set(one, ref);
          }
        }
        const before = probes(seen).map((destination) => look(memory, shared.activeVersion(), destination));
        const commit = tables.commit();
        // Nothing is seen until the commit has flipped.
        if (!probes(seen).every((destination, i) => look(memory, shared.activeVersion(), destination) === before[i]))
          return false;
        await commit;
        for (const version of [0, 1]) {
          if (!probes(seen).every((destination) => look(memory, version, destination) === naive.look(destination)))
            return false;
        }
      }
      if (tables.routeCount !== naive.routes.size) return false;
      for (const { prefix: one } of naive.routes.values()) tables.removeRoute(0, one);
      await tables.commit();
      return [0, 1].every((version) => probes(seen).every((destination) => look(memory, version, destination) === 0));
    }),
    { numRuns: 120 },
  );
});

t.test('tables: what does not fit is refused, and nothing changes', async (t) => {
  const memory = makeMemory({ peers: 2, routeNodes: 12 });
  const tables = new Tables(memory, () => {});
  const spec: PeerSpec = { address: address('192.168.77.2'), port: 8285, mtu: 1472, ecn: false, network: 0 };
  const ref = tables.addPeer(spec);
  tables.addPeer({ ...spec, address: address('192.168.77.3') });
  t.throws(() => tables.addPeer({ ...spec, address: address('192.168.77.4') }), RangeError);
  t.equal(tables.peerCount, 2);
  tables.setRoute(0, prefix('10.5.2.0/24'), ref);
  t.throws(() => tables.setRoute(0, prefix('fd00:5::1/128'), ref), { message: /route table full/ });
  t.equal(tables.routeCount, 1);
  await tables.commit();
  t.throws(() => tables.setRoute(0, prefix('fd00:5::1/128'), ref), RangeError, 'and after the commit');
  for (const version of [0, 1]) {
    t.equal(look(memory, version, address('10.5.2.9')), ref);
    t.equal(look(memory, version, address('fd00:5::1')), 0);
  }
  // What is promised before a commit is kept by it: adds until there is no more, and all of those are there.
  const promised: string[] = [];
  for (let i = 0; ; i++) {
    try {
      tables.setRoute(0, prefix(`10.${100 + i}.1.0/24`), ref);
    } catch {
      break;
    }
    promised.push(`10.${100 + i}.1.1`);
  }
  await tables.commit();
  t.ok(promised.length >= 4, `${promised.length} routes`);
  t.ok(promised.every((text) => [0, 1].every((version) => look(memory, version, address(text)) === ref)));
  for (const text of promised) tables.removeRoute(0, prefix(text.replace(/1$/, '0/24')));
  await tables.commit();
  // Room is given back: many times more routes than fit at once, a few at a time.
  for (let round = 0; round < 200; round++) {
    tables.setRoute(0, prefix(`10.6.${round}.0/24`), ref);
    tables.setRoute(0, prefix(`10.${7 + (round % 50)}.3.128/25`), ref);
    await tables.commit();
    t.equal(look(memory, round & 1, address(`10.6.${round}.77`)), ref);
    tables.removeRoute(0, prefix(`10.6.${round}.0/24`));
    tables.removeRoute(0, prefix(`10.${7 + (round % 50)}.3.128/25`));
    await tables.commit();
  }
  t.equal(tables.routeCount, 1);
  t.ok(memory.intactGuards());
});

t.test('tables: removing what is not there changes nothing', async (t) => {
  const memory = makeMemory();
  const tables = new Tables(memory, () => {});
  const ref = tables.addPeer({ address: address('192.168.77.2'), port: 1, mtu: 1472, ecn: false, network: 0 });
  tables.setRoute(0, prefix('10.5.0.0/16'), ref);
  tables.removeRoute(0, prefix('10.5.2.0/24'));
  await tables.commit();
  t.equal(look(memory, 0, address('10.5.2.9')), ref);
  t.throws(() => tables.removePeer(12345), RangeError);
  t.equal(tables.peerCount, 1);
});

const find = (memory: EngineMemory, version: number, words: Int32Array): number =>
  lookupAddress(
    memory.i32,
    memory.layout.tables[version].addresses >> 2,
    memory.layout.addressSlots - 1,
    words[0],
    words[1],
    words[2],
    words[3],
    0,
  );

t.test('addresses: added and removed in any order, like a Map', async () => {
  const memory = makeMemory({ peers: 16 }); // 64 slots, so that chains form and wrap round the end
  const underlay = fc.oneof(
    fc.nat(24).map((n) => Uint8Array.of(192, 168, 77, n)),
    fc.tuple(fc.nat(3), fc.nat(6)).map(([a, b]) => address(`fd00:${a}::${b}`)),
  );
  const steps = fc.array(fc.tuple(underlay, fc.boolean()), { minLength: 1, maxLength: 120 });
  fc.assert(
    fc.property(steps, (list) => {
      const table = memory.layout.tables[0];
      memory.i32.fill(0, table.addresses >> 2, (table.addresses >> 2) + memory.layout.addressSlots * 8);
      const addresses = new AddressTable(memory, table);
      const model = new Map<string, number>();
      let ref = 65536;
      for (const [bytes, remove] of list) {
        const name = bytes.join('.');
        if (remove && model.has(name)) {
          const known = model.get(name)!;
          (addresses.remove as (words: Int32Array, network: number, ref: number) => void).call(
            addresses,
            addressWords(bytes),
            0,
            known,
          );
          model.delete(name);
        } else if (!model.has(name) && model.size < 16) {
          addresses.add(addressWords(bytes), 0, ++ref);
          model.set(name, ref);
        }
      }
      const used = Array.from(
        { length: memory.layout.addressSlots },
        (_, i) => memory.i32[(table.addresses >> 2) + i * 8],
      ).filter((one) => one !== 0);
      return (
        used.length === model.size &&
        list.every(([bytes]) => find(memory, 0, addressWords(bytes)) === (model.get(bytes.join('.')) ?? 0))
      );
    }),
    { numRuns: 1000 },
  );
});

t.test('addresses: a peer that is replaced by another at its address', async (t) => {
  const at = { address: address('192.168.77.2'), mtu: 1472, ecn: false, network: 0 };
  const words = addressWords(at.address);
  for (const removed of ['old', 'new'] as const) {
    const memory = makeMemory();
    const tables = new Tables(memory, () => {});
    const old = tables.addPeer({ ...at, port: 8285 });
    await tables.commit();
    // Control adds first and removes then, so that nothing is black-holed; if it has to undo, it removes the new one.
    const fresh = tables.addPeer({ ...at, port: 9999 });
    tables.removePeer(removed === 'old' ? old : fresh);
    await tables.commit();
    for (const version of [0, 1])
      t.equal(
        find(memory, version, words),
        removed === 'old' ? fresh : old,
        `${removed} one removed, version ${version}`,
      );
  }
});

t.test('peers: slots and generations', async (t) => {
  const memory = makeMemory({ peers: 4 });
  const slots = new PeerSlots(memory);
  const spec: PeerSpec = { address: address('192.168.77.2'), port: 8285, mtu: 1400, ecn: true, network: 0 };
  const refs = Array.from({ length: 4 }, () => slots.add(spec));
  t.equal(new Set(refs.map(slotOf)).size, 4);
  t.equal(slots.free, 0);
  t.throws(() => slots.add(spec), { message: 'no free slot among 4 peers' });
  const generation = (ref: number): number =>
    memory.i32[((memory.layout.peers + slotOf(ref) * PEER_BYTES) >> 2) + PEER_GENERATION];
  const seen = new Set<number>();
  let ref = refs[0];
  for (let i = 0; i < 40_000; i++) {
    if (generation(ref) !== ref >>> 16 || ref <= 0 || ref >>> 16 > 32767) throw new Error(`reference ${ref}`);
    slots.remove(ref);
    if (generation(ref) === ref >>> 16) throw new Error(`${ref} is still good after it was removed`);
    ref = slots.add(spec);
    if (i < 10_000 && seen.has(ref)) throw new Error(`${ref} used twice in ${i} turns`);
    seen.add(ref);
  }
  slots.setMtu(ref, 1300);
  t.equal(slots.mtu(ref), 1300);
  t.equal(memory.i32[((memory.layout.peers + slotOf(ref) * PEER_BYTES) >> 2) + PEER_MTU], 1300);
  t.notOk(slots.takeMtuSuspect(ref));
});

t.test('networks do not see each other', async (t) => {
  const memory = EngineMemory.create({ workers: 1, peers: 8, routeNodes: 256, networks: 3 });
  const tables = new Tables(memory, () => {});
  const routes = ['10.5.0.0/16', '10.5.2.0/24', '0.0.0.0/0', 'fd00:5::/48', '::/0'].map(prefix);
  const spec = { address: address('192.168.77.2'), port: 1, mtu: 1472, ecn: false };
  // One underlay address, three networks, three peers.
  const refs = [0, 1, 2].map((network) => tables.addPeer({ ...spec, network }));
  routes.forEach((one, i) => {
    for (const network of [0, 1, 2]) if ((i + network) % 3 !== 0) tables.setRoute(network, one, refs[network] + i);
  });
  await tables.commit();
  for (const version of [0, 1]) {
    const table = memory.layout.tables[version];
    for (const network of [0, 1, 2]) {
      const naive = new NaiveRoutes();
      routes.forEach((one, i) => {
        if ((i + network) % 3 !== 0) naive.set(one, refs[network] + i);
      });
      for (const destination of probes(routes)) {
        const v4 = destination.length === 4;
        const roots = ((v4 ? table.roots4 : table.roots6) >> 2) + network * 65536;
        const at = memory.layout.workers[0].scratch;
        memory.u8.set(destination, at);
        const found = v4
          ? lookup4(memory.i32, roots, table.nodes >> 2, word(destination))
          : lookup6(memory.i32, memory.u8, roots, table.nodes >> 2, at);
        if (found !== naive.look(destination)) t.fail(`network ${network}, ${destination.join('.')}`);
      }
      const w = addressWords(spec.address);
      const mask = memory.layout.addressSlots - 1;
      t.equal(lookupAddress(memory.i32, table.addresses >> 2, mask, w[0], w[1], w[2], w[3], network), refs[network]);
    }
  }
});

t.test('a commit waits for a running worker, and changes made meanwhile join the next', async (t) => {
  const memory = makeMemory();
  const shared = new SharedWords(memory);
  let woken = 0;
  const tables = new Tables(memory, () => woken++);
  const [one, two] = ['192.168.77.2', '192.168.77.3'].map((text) =>
    tables.addPeer({ address: address(text), port: 1, mtu: 1472, ecn: false, network: 0 }),
  );
  tables.setRoute(0, prefix('10.5.2.0/24'), one);
  await tables.commit();
  const destination = address('10.5.2.9');
  const tick = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

  shared.setRunning(0, true);
  const old = shared.beginTurn(0);
  tables.setRoute(0, prefix('10.5.2.0/24'), two);
  tables.setRoute(0, prefix('10.5.3.0/24'), two);
  let done = false;
  const first = tables.commit().then(() => {
    done = true;
  });
  await tick();
  t.notOk(done, 'the worker is still in the turn in which it saw the old version');
  t.ok(woken > 0, 'and it was woken');
  t.equal(look(memory, old, destination), one, 'which stays as it was');
  t.equal(look(memory, shared.activeVersion(), destination), two);
  t.not(shared.activeVersion(), old);

  tables.removeRoute(0, prefix('10.5.3.0/24'));
  tables.setRoute(0, prefix('10.5.4.0/24'), one);
  const second = tables.commit();
  await tick();
  t.equal(look(memory, shared.activeVersion(), address('10.5.3.9')), two, 'a second commit waits for the first');
  const next = shared.beginTurn(0);
  t.equal(look(memory, next, destination), two);
  await first;
  await tick();
  shared.beginTurn(0);
  await second;
  for (const version of [0, 1]) {
    t.equal(look(memory, version, address('10.5.3.9')), 0);
    t.equal(look(memory, version, address('10.5.4.9')), one);
  }
  shared.setRunning(0, false);
  tables.setRoute(0, prefix('10.5.5.0/24'), one);
  await tables.commit();
  t.equal(look(memory, 0, address('10.5.5.9')), one, 'a worker that does not run is not waited for');
});

t.test('a removed peer finds nobody, its slot is used again, its successor does', async (t) => {
  const rig = await makeRig({ peers: [{}, {}], memory: { peers: 2 } });
  const probe = plain(packet({ source: HOST_4, destination: '10.5.2.9' }, udp({ payload: pattern(10) })));
  t.equal(rig.out(probe).length, 1);
  // Its route is left behind on purpose: the generation must do.
  rig.tables.removePeer(rig.refs[0]);
  await rig.tables.commit();
  t.equal(rig.out(probe).length, 0);
  rig.changes();
  const next = rig.tables.addPeer({ address: address('192.168.77.9'), port: 7, mtu: 1472, ecn: false, network: 0 });
  t.equal(slotOf(next), slotOf(rig.refs[0]));
  await rig.tables.commit();
  t.equal(rig.out(probe).length, 0, 'the old route does not go to the new peer');
  t.match(rig.changes(), { 'outbound.no_route': 1 });
  rig.tables.setRoute(0, prefix('10.5.2.0/24'), next);
  await rig.tables.commit();
  const [sent] = rig.out(probe);
  t.same([...sent.name.subarray(2, 8)], [0, 7, 192, 168, 77, 9]);
  rig.audit();
});

t.test('10^5 routes replaced while packets flow: none is lost', async (t) => {
  const rig = await makeRig({
    peers: [{ subnets: [] }, { subnets: [] }],
    memory: { routeNodes: 1 << 17 },
    keep: false,
  });
  const count = 100_000;
  const routeOf = (i: number): Prefix => ({
    bytes: Uint8Array.of(10, 8 + (i >> 16), (i >> 8) & 255, i & 255),
    length: 32,
  });
  for (let i = 0; i < count; i++) {
    rig.tables.setRoute(0, routeOf(i), rig.refs[0]);
    if (i % 5000 === 4999) await rig.tables.commit(); // new routes reserve room for the worst case until they are in
  }
  await rig.tables.commit();
  t.equal(rig.tables.routeCount, count);

  const shared = new SharedWords(rig.memory);
  const rng = random(5);
  const packets = Array.from({ length: 256 }, () => {
    const { bytes } = routeOf(Math.floor(rng() * count));
    return plain(packet({ source: HOST_4, destination: bytes.join('.') }, udp({ payload: pattern(22) })));
  });
  const perPeer = [0, 0];
  rig.sockets[0].onSend = ({ name }) => void perPeer[name[7] - 2]++;
  shared.setRunning(0, true);
  let flowing = true;
  const flow = (async () => {
    while (flowing) {
      rig.device.load(packets);
      rig.drain();
      await new Promise((resolve) => setImmediate(resolve));
    }
  })();
  for (let i = 0; i < count; i++) {
    rig.tables.setRoute(0, routeOf(i), rig.refs[1]);
    if (i % 5000 === 4999) await rig.tables.commit();
  }
  await rig.tables.commit();
  flowing = false;
  await flow;
  shared.setRunning(0, false);
  const moved = perPeer[1];
  rig.device.load(packets);
  rig.drain();
  t.equal(perPeer[1], moved + packets.length, 'at the end all go to the new peer');
  t.equal(rig.counter('outbound.no_route'), 0);
  t.equal(rig.counter('outbound.socket_sent'), rig.device.pulled);
  t.ok(perPeer[0] > 0 && rig.device.pulled > 20 * packets.length, `${rig.device.pulled} packets, ${perPeer} to each`);
  rig.audit();
});
