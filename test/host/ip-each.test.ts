/**
 * Changes of this host's routes and neighbours by a real `ip` and kernel, in a network namespace: each is made or refused by
 * itself, whatever becomes of those before it, and what is read back is what was made.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { hostsImpossible, Lab } from '../../race/hosts.js';
import { ipEach } from '../../src/host/ip.js';
import {
  changeKernel,
  type KernelChange,
  type KernelNeighbour,
  type KernelRoute,
  pathsTo,
  readKernelState,
} from '../../src/host/routes.js';

// A busy machine may be slow: longer than the default.
t.setTimeout(180_000);

const impossible = hostsImpossible();
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

const lab = new Lab('ip');
t.teardown(() => lab.close());
const host = lab.namespace('host');
host.ip(
  ...['flannel.1', 'flannel-v6.1', 'eth0'].flatMap((name) => [`link add ${name} type bridge`, `link set ${name} up`]),
  'addr add 192.168.77.1/24 dev eth0',
  'addr add fd77::1/64 dev eth0 nodad',
  'addr add 10.5.1.0/32 dev flannel.1',
  'addr add fd05:0:0:1::/128 dev flannel-v6.1 nodad',
);
const real = host.runSync('sh', '-c', 'command -v ip').trim();
const path = join(lab.dir, 'bin');
mkdirSync(path);
writeFileSync(join(path, 'ip'), `#!/bin/sh\nexec ${real} -n ${host.name} "$@"\n`);
chmodSync(join(path, 'ip'), 0o755);

/** Runs code of ours with an `ip` that is in the namespace. */
async function inside<T>(work: () => Promise<T>): Promise<T> {
  const before = process.env.PATH;
  process.env.PATH = `${path}${delimiter}${before}`;
  try {
    return await work();
  } finally {
    process.env.PATH = before;
  }
}

const DEVICES = ['flannel.1', 'flannel-v6.1'];
const change = (changes: readonly KernelChange[]): Promise<ReadonlyMap<number, string>> =>
  inside(() => changeKernel(changes));
const read = async (): Promise<string[]> => {
  const { routes, neighbours } = await inside(() => readKernelState([4, 6], DEVICES));
  return [...routes, ...neighbours].map(lineOf).sort();
};
const lineOf = (one: KernelRoute | KernelNeighbour): string =>
  'prefix' in one
    ? `${one.prefix} via ${one.via} dev ${one.device}${one.onlink ? ' onlink' : ''}`
    : `${one.address} at ${one.mac} dev ${one.device}`;
function flush(): void {
  for (const family of ['-4', '-6']) host.runSync('ip', family, 'route', 'flush', 'proto', '87');
  for (const device of DEVICES) host.runSync('ip', 'neigh', 'flush', 'dev', device, 'nud', 'permanent');
}

const base = (family: 4 | 6, n: number): string => (family === 4 ? `10.5.${n + 2}.0` : `fd05:0:0:${n + 2}::`);
const prefix = (family: 4 | 6, n: number): string => `${base(family, n)}/${family === 4 ? 24 : 64}`;
const deviceOf = (family: 4 | 6): string => (family === 4 ? DEVICES[0] : DEVICES[1]);
const routeTo = (n: number, family: 4 | 6 = 4): KernelRoute => ({
  prefix: prefix(family, n),
  via: base(family, n),
  device: deviceOf(family),
  onlink: true,
});
const neighbour = (n: number, family: 4 | 6 = 4): KernelNeighbour => ({
  device: deviceOf(family),
  address: base(family, n),
  mac: `02:00:00:00:00:0${n}`,
});

t.test('a command that makes `ip` give up hides none behind it', async (t) => {
  const good = (n: number): string => `route replace 10.5.${n}.0/24 via 10.5.${n}.0 dev flannel.1 onlink proto 87`;
  const bad = 'neigh del 10.5.200.0 dev flannel.1';
  const failures = await inside(() => ipEach([bad, good(2), bad, bad, good(3), 'link set nobody up', good(4), bad]));
  t.same([...failures.keys()], [0, 2, 3, 5, 7]);
  t.match(
    [...failures.values()],
    [/No such file/, /No such file/, /No such file/, /Cannot find device/, /No such file/],
  );
  t.same(
    await read(),
    [2, 3, 4].map((n) => `10.5.${n}.0/24 via 10.5.${n}.0 dev flannel.1 onlink`),
  );
  t.equal((await inside(() => ipEach([]))).size, 0);
  flush();
  t.same(await read(), []);
});

t.test('a thousand at once, one of them refused in the middle', async (t) => {
  const commands = Array.from(
    { length: 1000 },
    (_, i) => `neigh replace 10.5.${i >> 8}.${i & 255} lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent`,
  );
  commands[500] = 'neigh replace 10.5.200.0 lladdr 02:00 dev flannel.1 nud permanent';
  const failures = await inside(() => ipEach(commands));
  t.same([...failures.keys()], [500]);
  t.equal((await read()).length, 999);
  flush();
});

t.test('what was made is read back as it was asked for', async (t) => {
  const changes: KernelChange[] = ([4, 6] as const).flatMap((family): KernelChange[] => [
    { kind: 'set-neighbour', neighbour: neighbour(0, family) },
    { kind: 'set-route', route: routeTo(0, family) },
    {
      kind: 'set-route',
      route: { ...routeTo(1, family), device: 'eth0', via: family === 4 ? '192.168.77.3' : 'fd77::3', onlink: false },
    },
  ]);
  t.same([...(await change(changes))], []);
  const want = [
    '10.5.2.0 at 02:00:00:00:00:00 dev flannel.1',
    '10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink',
    '10.5.3.0/24 via 192.168.77.3 dev eth0',
    'fd05:0:0:2:: at 02:00:00:00:00:00 dev flannel-v6.1',
    'fd05:0:0:2::/64 via fd05:0:0:2:: dev flannel-v6.1 onlink',
    'fd05:0:0:3::/64 via fd77::3 dev eth0',
  ];
  t.same(await read(), want);
  t.same([...(await change(changes))], [], 'again');
  t.same(await read(), want);

  // An operator's own routes and neighbours elsewhere are no business of ours.
  host.ip(
    'route add 10.9.0.0/16 via 192.168.77.9 dev eth0',
    'neigh add 192.168.77.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent',
  );
  t.same(await read(), want);
  host.ip('route del 10.9.0.0/16', 'neigh del 192.168.77.9 dev eth0');
  flush();
});

t.test('a route that another program left is taken over', async (t) => {
  host.ip('route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink', 'route add 10.5.3.0/24 via 192.168.77.3 dev eth0');
  const near = { ...routeTo(1), via: '192.168.77.4', device: 'eth0', onlink: false };
  t.same(
    [
      ...(await change([
        { kind: 'set-route', route: routeTo(0) },
        { kind: 'set-route', route: near },
      ])),
    ],
    [],
  );
  t.same(await read(), [lineOf(routeTo(0)), lineOf(near)]);
  t.equal(host.runSync('ip', '-4', 'route', 'show', '10.5.0.0/16').trim(), '');
  t.equal(
    host.runSync('ip', '-4', 'route', 'show', 'root', '10.5.0.0/16').trim().split('\n').length,
    2,
    'and not doubled',
  );
  flush();
});

t.test('from one device to another and back, in both families', async (t) => {
  // IPv6 looks where the gateway of an onlink route lies now: on the old route, which is to be replaced.
  for (const family of [4, 6] as const) {
    const far = routeTo(0, family);
    const near = { ...far, via: family === 4 ? '192.168.77.9' : 'fd77::9', device: 'eth0', onlink: false };
    for (const route of [near, far, near, far]) {
      t.same([...(await change([{ kind: 'set-route', route }]))], []);
      t.same(await read(), [lineOf(route)]);
    }
    flush();
    host.ip(`route add ${near.prefix} via ${near.via} dev eth0`);
    t.same([...(await change([{ kind: 'set-route', route: far }]))], [], "another program's");
    t.same(await read(), [lineOf(far)]);
    t.equal(host.runSync('ip', `-${family}`, 'route', 'show', near.prefix).trim().split('\n').length, 1);
    flush();
  }
});

t.test('a route that cannot be replaced stays as it is', async (t) => {
  const near = { ...routeTo(0, 6), via: 'fd77::9', device: 'eth0', onlink: false };
  await change([{ kind: 'set-route', route: near }]);
  const failures = await change([{ kind: 'set-route', route: { ...routeTo(0, 6), device: 'gone0' } }]);
  t.match([...failures], [[0, /Cannot find device/]]);
  t.same(await read(), [lineOf(near)]);
  flush();
});

t.test('who is on which of our links', async (t) => {
  host.ip(
    'addr add 192.168.78.1/24 dev flannel.1',
    'route add 192.168.80.0/24 via 192.168.77.9',
    'route add fd80::/64 via fd77::9',
  );
  const asked = ['192.168.77.5', '192.168.80.5', 'fd77::5', 'fd80::5', '203.0.113.1', '192.168.78.6'];
  t.same(await inside(() => pathsTo(asked)), [
    { address: '192.168.77.5', device: 'eth0', onLink: true },
    { address: '192.168.80.5', device: 'eth0', onLink: false },
    { address: 'fd77::5', device: 'eth0', onLink: true },
    { address: 'fd80::5', device: 'eth0', onLink: false },
    { address: '192.168.78.6', device: 'flannel.1', onLink: true },
  ]);
  t.same(await inside(() => pathsTo([])), []);
  host.ip('addr del 192.168.78.1/24 dev flannel.1');
});

// --- Any sequence ---

const families = fc.constantFrom(4 as const, 6 as const);
const routes: fc.Arbitrary<KernelRoute> = fc
  .record({ family: families, n: fc.nat(3), way: fc.constantFrom('overlay', 'overlay', 'direct', 'far', 'gone') })
  .map(({ family, n, way }): KernelRoute => {
    const overlay = routeTo(n, family);
    if (way === 'overlay') return overlay;
    if (way === 'gone') return { ...overlay, device: 'gone0' };
    const via =
      way === 'direct' ? (family === 4 ? '192.168.77.9' : 'fd77::9') : family === 4 ? '192.168.99.9' : 'fd99::9';
    return { ...overlay, via, device: 'eth0', onlink: false };
  });
const neighbours: fc.Arbitrary<KernelNeighbour> = fc
  .record({ family: families, n: fc.nat(3), mac: fc.nat(2), way: fc.constantFrom('right', 'right', 'bad', 'gone') })
  .map(({ family, n, mac, way }) => ({
    ...neighbour(n, family),
    mac: way === 'bad' ? '02:00' : `02:00:00:00:00:0${mac}`,
    ...(way === 'gone' ? { device: 'gone0' } : {}),
  }));
const anyChange: fc.Arbitrary<KernelChange> = fc.oneof(
  fc.record({ kind: fc.constantFrom('set-route' as const, 'remove-route' as const), route: routes }),
  fc.record({ kind: fc.constantFrom('set-neighbour' as const, 'remove-neighbour' as const), neighbour: neighbours }),
);

/** As those of one plan: nothing twice. */
const batches = fc.uniqueArray(anyChange, {
  selector: (one) => ('route' in one ? one.route.prefix : one.neighbour.address),
  maxLength: 12,
});

t.test('any sequence of changes: as a model has it, and who is refused is named', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(batches, { maxLength: 5 }), async (sequence) => {
      flush();
      const table = new Map<string, string>();
      for (const changes of sequence) {
        const refused: number[] = [];
        for (const [at, one] of changes.entries()) if (!make(table, one)) refused.push(at);
        const failures = await change(changes);
        const found = JSON.stringify([[...failures.keys()].sort((a, b) => a - b), await read()]);
        const want = JSON.stringify([refused, [...table.values()].sort()]);
        if (found !== want) throw new Error(`found\n${found}\nwanted\n${want}\n${JSON.stringify([...failures])}`);
      }
    }),
    { numRuns: 25 },
  );
});

/** Does a change to the model. False: it is refused, and nothing changes. */
function make(table: Map<string, string>, one: KernelChange): boolean {
  if ('route' in one) {
    const { route } = one;
    if (one.kind === 'remove-route') {
      if (table.get(route.prefix) === lineOf(route)) table.delete(route.prefix);
      return true;
    }
    if (/99/.test(route.via) || route.device === 'gone0') return false;
    table.set(route.prefix, lineOf(route));
    return true;
  }
  const { address, mac, device } = one.neighbour;
  if (one.kind === 'remove-neighbour') {
    if (device !== 'gone0') table.delete(address);
    return true;
  }
  if (mac === '02:00' || device === 'gone0') return false;
  table.set(address, lineOf(one.neighbour));
  return true;
}
