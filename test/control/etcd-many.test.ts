/**
 * Two hundred hosts that join a flannel cluster within a second, through a real etcd: control only, in this process, each with a
 * connection and a memory of its own. What it costs etcd is counted by etcd itself, for fifty, a hundred and two hundred.
 */
import t, { type Test } from 'tap';
import { until } from '../lib/embedded.js';
import { Etcd, etcdMissing, type Requests } from '../lib/etcd.js';
import { EtcdNode, NodeFolders } from '../lib/etcd-nodes.js';

const why = etcdMissing();
t.setTimeout(0);

const COUNTS = [50, 100, 200];
const JOIN_WITHIN_MS = 1000;
/** From the first that begins until the last knows all. */
const COMPLETE_WITHIN_MS = 10_000;
/** A host of the many may cost etcd this much more than one of the few: those that chose the same subnet choose again. */
const MORE_PER_NODE = 1.5;

const addressOf = (i: number): string => `192.168.${77 + (i >> 7)}.${1 + (i & 127)}`;

const prefixFor = (count: number): string => `/cluster-of-${count}/network`;

/** Nodes that begin one after the other within a second; and until when (performance.now()) the last of them was complete. */
async function joinAll(
  t: Test,
  etcd: Etcd,
  count: number,
): Promise<{ nodes: EtcdNode[]; begun: number; joined: number; complete: number }> {
  const folders = new NodeFolders(t);
  const prefix = prefixFor(count);
  const nodes = Array.from(
    { length: count },
    (_, i) => new EtcdNode(folders, { endpoints: etcd.endpoints, prefix, address: addressOf(i) }),
  );
  t.teardown(() => Promise.all(nodes.map((node) => node.stop())));
  const begun = performance.now();
  let joined = begun;
  await Promise.all(
    nodes.map(async (node, i) => {
      await new Promise((resolve) => setTimeout(resolve, (i * JOIN_WITHIN_MS) / count));
      await node.join();
      joined = Math.max(joined, performance.now());
      await node.follow();
    }),
  );
  await until(() => nodes.every((node) => node.size === count - 1), COMPLETE_WITHIN_MS);
  return { nodes, begun, joined, complete: Math.max(...nodes.map((node) => node.changed)) };
}

/** What `node` should have in force where these are all nodes there are. */
const othersOf = (node: EtcdNode, nodes: readonly EtcdNode[]): string[] =>
  nodes
    .filter((one) => one !== node)
    .map(({ subnet, address }) => `${subnet} ${address}`)
    .sort();

/** Those of `nodes` whose tables are not as they should be, one line each. */
const incomplete = (nodes: readonly EtcdNode[]): string[] =>
  nodes.flatMap((node) => {
    const [want, have] = [othersOf(node, nodes), node.routes];
    if (want.join() === have.join()) return [];
    const missing = want.filter((route) => !have.includes(route));
    const stray = have.filter((route) => !want.includes(route));
    return [
      `${node.address}: lacks ${missing.slice(0, 3)} (${missing.length}), has ${stray.slice(0, 3)} (${stray.length})`,
    ];
  });

/** What was asked between two counts, by method. */
function between(before: Requests, after: Requests): { total: number; text: string } {
  const differences = (['handled', 'streamed'] as const).flatMap((kind) =>
    Object.entries(after[kind]).map(([method, n]) => [`${kind} ${method}`, n - (before[kind][method] ?? 0)] as const),
  );
  const text = differences
    .filter(([, n]) => n > 0)
    .map(([name, n]) => `${name} ${n}`)
    .join(', ');
  return { total: after.total - before.total, text };
}

/** Through etcd's own gateway: a hundred etcdctls would take longer than what is looked at. */
async function revoke(etcd: Etcd, lease: bigint): Promise<void> {
  const body = JSON.stringify({ ID: lease.toString() });
  const answer = await fetch(`${etcd.endpoints[0]}/v3/lease/revoke`, { method: 'POST', body });
  if (!answer.ok) throw new Error(`revoke: ${await answer.text()}`);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const etcd = await Etcd.start();
  t.teardown(() => etcd.close());
  const perNode = new Map<number, number>();

  for (const count of COUNTS) {
    await t.test(`${count} nodes`, async (t) => {
      const prefix = prefixFor(count);
      await etcd.put(`${prefix}/config`, '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}');
      const before = await etcd.members[0].requests();
      const { nodes, begun, joined, complete } = await joinAll(t, etcd, count);
      const after = await etcd.members[0].requests();

      t.equal(new Set(nodes.map(({ subnet }) => subnet)).size, count, 'as many subnets');
      t.same(incomplete(nodes), [], 'all know all others');
      const took = complete - begun;
      t.comment(`all joined after ${Math.round(joined - begun)} ms, all know all after ${Math.round(took)} ms`);
      t.ok(took < COMPLETE_WITHIN_MS, `within ${COMPLETE_WITHIN_MS / 1000} s`);
      t.ok(
        nodes.every(({ member }) => member?.lease === 'new'),
        'with new leases',
      );
      const leases = await etcd.list(`${prefix}/subnets/`);
      t.same(
        leases.map(({ key, value }) => `${key.slice(prefix.length + 9)} ${value}`).sort(),
        nodes.map(({ key, address }) => `${key} {"PublicIP":"${address}","PublicIPv6":null}`).sort(),
        'and etcd has those, as flannel writes them',
      );
      t.equal(new Set(leases.map(({ lease }) => lease)).size, count, 'each with a lease of its own');

      const asked = between(before, after);
      const counted = nodes.reduce((sum, { member }) => sum + (member?.requests?.() ?? 0), 0);
      perNode.set(count, asked.total / count);
      t.comment(`${count} nodes: ${asked.total} requests, ${(asked.total / count).toFixed(2)} a node: ${asked.text}`);
      t.comment(`by our own count ${counted}, ${(counted / count).toFixed(2)} a node`);
      t.ok(counted >= 4 * count && counted <= 2 * asked.total, 'we count about the same');
      const noisy = nodes.filter(({ log }) => log.lines.some(({ event }) => event !== 'tables_applied'));
      t.same(
        noisy.slice(0, 3).map(({ log }) => log.lines.filter(({ event }) => event !== 'tables_applied')),
        [],
        'none has anything to complain of',
      );

      const quiet = await etcd.members[0].requests();
      await new Promise((resolve) => setTimeout(resolve, 1000));
      const idle = between(quiet, await etcd.members[0].requests());
      t.comment(`and in a second in which nothing happens: ${idle.total} (${idle.text})`);
      t.ok(idle.total <= count / 4, 'who has nothing to say asks nothing');
      if (count !== COUNTS.at(-1)) return;

      const leaving = nodes.filter((_, i) => i % 2 === 1);
      const staying = nodes.filter((_, i) => i % 2 === 0);
      const keys = new Map(leases.map(({ key, lease }) => [key.slice(prefix.length + 9), lease]));
      const left = performance.now();
      await Promise.all(leaving.map((node) => revoke(etcd, keys.get(node.key) ?? 0n)));
      const gone = await until(() => staying.every((node) => node.size === staying.length - 1), COMPLETE_WITHIN_MS);
      t.comment(`${leaving.length} left; all others know after ${Math.round(performance.now() - left)} ms`);
      t.ok(gone, 'half of them leave: all others know');
      t.same(incomplete(staying), [], 'and keep what is left');
      t.ok(await until(() => leaving.every(({ happened }) => happened.revoked > 0)), 'those that left know it too');
      t.same(
        nodes.filter(({ happened }) => happened.moved > 0 || happened.revoked > 1).map(({ address }) => address),
        [],
        'and are told once',
      );
      t.ok(
        staying.every(({ happened }) => happened.revoked === 0),
        'nobody else is',
      );
      t.equal((await etcd.list(`${prefix}/subnets/`)).length, staying.length, 'nobody came back by itself');
    });
  }

  t.test('what a node costs etcd does not grow with their number', async (t) => {
    const figures = COUNTS.map((count) => perNode.get(count) ?? Number.NaN);
    const text = figures.map((figure, i) => `${figure.toFixed(2)} of ${COUNTS[i]}`).join(', ');
    t.ok(figures[2] <= figures[0] * MORE_PER_NODE, `requests a node: ${text}`);
    t.ok(figures[1] <= figures[0] * MORE_PER_NODE, `requests a node: ${text}`);
  });
}
