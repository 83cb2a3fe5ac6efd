/** The peers file: what is taken and refused, and that every way of changing it is noticed. */
import { appendFileSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { RegistryUpdate } from '../../src/control/registry.js';
import { parsePeers, StaticRegistry } from '../../src/control/static-registry.js';

const NO_LAYER_2 = { vnis: [], macs: [], neighbours: [] };
const L3 = { mode: 'l3', port: 8285 } as const;
const peer = (number: number): unknown => ({
  name: `p${number}`,
  address: `192.168.77.${number}`,
  subnets: [`10.5.${number}.0/24`],
});
const file = (...numbers: number[]): string => JSON.stringify({ peers: numbers.map(peer) });

t.test('the format', async (t) => {
  const text = `{"peers":[{"name":"b","address":"192.168.77.2","port":8286,"subnets":["10.5.2.0/24","fd00:5:0:2::/64"],
    "mtu":1400,"ecn":true},{"address":"fd77::3","subnets":[]}]}`;
  t.same(await parsePeers(text, L3), [
    {
      id: 'b',
      name: 'b',
      address: '192.168.77.2',
      port: 8286,
      subnets: ['10.5.2.0/24', 'fd00:5:0:2::/64'],
      underlayMtu: 1400,
      ecn: true,
      ...NO_LAYER_2,
    },
    {
      id: 'fd77::3',
      name: 'fd77::3',
      address: 'fd77::3',
      port: 8285,
      subnets: [],
      underlayMtu: undefined,
      ecn: false,
      ...NO_LAYER_2,
    },
  ]);
  const cases: [what: string, peers: unknown, expected: RegExp][] = [
    ['not an array', {}, /^peers: /],
    ['address missing', [{ subnets: [] }], /^peers\.0\.address: /],
    ['address', [{ address: '10.1', subnets: [] }], /^peer 10\.1: "10\.1" is not an IP address$/],
    ['address type', [{ address: 7, subnets: [] }], /^peers\.0\.address: .*string/],
    ['subnet', [{ name: 'b', address: '10.0.0.1', subnets: ['10.5.2.0'] }], /^peer b: "10\.5\.2\.0" is not a CIDR$/],
    ['host bits', [{ name: 'b', address: '10.0.0.1', subnets: ['10.5.2.1/24'] }], /host bits set/],
    ['port', [{ address: '10.0.0.1', port: 0, subnets: [] }], /^peers\.0\.port: /],
    ['mtu', [{ address: '10.0.0.1', mtu: 100, subnets: [] }], /^peers\.0\.mtu: /],
    ['unknown key', [{ address: '10.0.0.1', subnet: ['10.5.2.0/24'], subnets: [] }], /^peers\.0\.subnet: /],
  ];
  for (const [what, peers, expected] of cases)
    await t.rejects(parsePeers(JSON.stringify({ peers }), L3), expected, what);
  await t.rejects(parsePeers('{"peers":[', L3), SyntaxError);
});

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Follows a registry; `next` resolves to what it says next, as short text. */
function follow(
  path: string,
  poll: number,
): { next(): Promise<string>; quiet(ms: number): Promise<boolean>; stop(): Promise<void> } {
  const abort = new AbortController();
  const updates: RegistryUpdate[] = [];
  const running = (async () => {
    for await (const update of new StaticRegistry(path, L3, { poll, settle: 10 }).watch(abort.signal)) {
      updates.push(update);
    }
  })();
  return {
    next: async () => {
      for (let waited = 0; updates.length === 0 && waited < 5000; waited += 5) await pause(5);
      const update = updates.shift();
      if (!update) return 'nothing within 5 s';
      if (update.kind === 'trouble') return `trouble: ${update.trouble.reason}`;
      return update.kind === 'snapshot' ? `${update.cursor}: ${update.records.map((one) => one.name)}` : 'events';
    },
    quiet: async (ms) => {
      await pause(ms);
      return updates.length === 0;
    },
    stop: async () => {
      abort.abort();
      await running;
    },
  };
}

t.test('inotify notices, the poll never comes', async (t) => {
  const dir = t.testdir();
  const path = join(dir, 'peers.json');
  writeFileSync(path, file(2));
  const followed = follow(path, 1e6);
  t.equal(await followed.next(), '1: p2');

  writeFileSync(path, file(2, 3));
  t.equal(await followed.next(), '2: p2,p3', 'rewritten in place');

  writeFileSync(join(dir, 'new'), file(3));
  renameSync(join(dir, 'new'), path);
  t.equal(await followed.next(), '3: p3', 'replaced by rename');

  writeFileSync(join(dir, 'new'), file(3));
  renameSync(join(dir, 'new'), path);
  t.ok(await followed.quiet(150), 'the same again is no change');

  rmSync(path);
  await pause(20);
  writeFileSync(path, file(4));
  t.equal(await followed.next(), '4: p4', 'a short absence is none');

  rmSync(path);
  t.match(await followed.next(), /^trouble: ENOENT/, 'a long one is');
  t.ok(await followed.quiet(150), 'said once');
  writeFileSync(path, file(4));
  t.equal(await followed.next(), '5: p4', 'back again, with what it said before');

  writeFileSync(path, '{"peers": [{');
  t.match(await followed.next(), /^trouble: not JSON: /);
  appendFileSync(path, '"address":"10.1","subnets":[]}]}');
  t.match(await followed.next(), /^trouble: peer 10\.1: "10\.1" is not an IP address/);
  writeFileSync(path, file(4, 5));
  t.equal(await followed.next(), '6: p4,p5');

  // Written in two halves: the first alone is nonsense, but only for a moment.
  writeFileSync(path, file(4, 5, 6).slice(0, 60));
  await pause(15);
  appendFileSync(path, file(4, 5, 6).slice(60));
  t.equal(await followed.next(), '7: p4,p5,p6');
  await followed.stop();
});

t.test('without inotify the poll notices', async (t) => {
  const dir = t.testdir({ one: { 'peers.json': file(2) }, two: { 'peers.json': file(3) } });
  mkdirSync(join(dir, 'etc'));
  symlinkSync('../one/peers.json', join(dir, 'etc/peers.json'));
  const followed = follow(join(dir, 'etc/peers.json'), 30);
  t.equal(await followed.next(), '1: p2');
  writeFileSync(join(dir, 'one/peers.json'), file(2, 9));
  t.equal(await followed.next(), '2: p2,p9', 'the file behind the link, in a directory that is not watched');
  symlinkSync('../two/peers.json', join(dir, 'etc/new'));
  renameSync(join(dir, 'etc/new'), join(dir, 'etc/peers.json'));
  t.equal(await followed.next(), '3: p3', 'the link itself');
  await followed.stop();
});

t.test('what is not a file is trouble', async (t) => {
  const followed = follow(t.testdir(), 1e6);
  t.match(await followed.next(), /^trouble: not a regular file/);
  await followed.stop();
  const absent = follow('/nonexistent-weft/peers.json', 1e6);
  t.match(await absent.next(), /^trouble: ENOENT/, 'nor is a directory that is not there');
  await absent.stop();
});
