/**
 * What a large embedded registry costs a daemon: start-up, memory, and the polling of one that nobody changes.
 *
 *     npm run bench:registry [-- --leases 10000]
 *
 * Needs no root. The registry is filled by another process, so that only what a daemon does is measured.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { ConfigWish } from '../src/control/allocation.js';
import { parseCidr, parseHostAddress } from '../src/control/cidr.js';
import { EmbeddedRegistry } from '../src/control/embedded-registry.js';
import { EmbeddedStore, PATIENCE } from '../src/control/embedded-store.js';
import { ControlLoop } from '../src/control/loop.js';
import { systemClock } from '../src/host/clock.js';

const NETWORK = '10.0.0.0/8';
const TTL = 3_600_000;
const wish: ConfigWish = {
  mode: 'l3',
  networks: [parseCidr(NETWORK)],
  subnetLengths: [],
  mins: [],
  maxs: [],
  backend: undefined,
  port: undefined,
};

const { values } = parseArgs({
  options: { leases: { type: 'string', default: '10000' }, fill: { type: 'string' } },
});
const leases = Number(values.leases);
if (!Number.isInteger(leases) || leases < 1 || leases > 60_000) {
  console.error(`bench:registry: --leases ${values.leases}: expected a whole number from 1 to 60000`);
  process.exit(2);
}
if (values.fill !== undefined) await fill(values.fill);
else await measure();

/** Underlay addresses of the many, all different. */
function hostOf(i: number): string {
  return `172.${16 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`;
}

async function fill(path: string): Promise<void> {
  const store = await EmbeddedStore.open(path, systemClock(), true, PATIENCE.first);
  const { config } = await store.configure(wish, true);
  for (let i = 1; i <= leases; i++) {
    await store.acquire(
      { addresses: [hostOf(i)], prefer: [parseCidr(`10.${i >> 8}.${i & 255}.0/24`)], ttl: TTL },
      config,
    );
  }
  await store.close();
}

async function measure(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'weft-registry-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'registry');
  const filled = performance.now();
  const args = [fileURLToPath(import.meta.url), '--fill', path, '--leases', String(leases)];
  if (spawnSync(process.execPath, args, { stdio: 'inherit' }).status !== 0) process.exit(1);
  const perLease = (performance.now() - filled) / leases;

  const rss = (): number => process.memoryUsage.rss() / 1e6;
  const before = rss();
  const begun = performance.now();
  const addresses = [parseHostAddress('192.168.77.1')];
  const quiet = { debug() {}, info() {}, warn() {}, error() {} };
  const registry = new EmbeddedRegistry({
    path,
    wish,
    addresses,
    ttl: TTL,
    clock: systemClock(),
    log: quiet,
    gate() {},
    moved() {},
  });
  const { config, subnets } = await registry.join([], { create: true, patience: PATIENCE.first });
  const joined = performance.now() - begun;
  const self = { addresses, networks: config.pools.map((pool) => pool.network), subnets, underlayMtu: 1500, vnis: [] };
  let peers = 0;
  const applier = {
    apply: async (plan: { readonly peers: ReadonlyMap<string, unknown> }) => {
      peers = plan.peers.size;
      return 1;
    },
  };
  const loop = new ControlLoop({ registry, self, applier, log: quiet });
  await loop.start();
  const known = performance.now() - begun;
  const after = rss();
  const cpu = process.cpuUsage();
  const seconds = 10;
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  const { user, system } = process.cpuUsage(cpu);
  await loop.stop();
  await registry.close();

  const rows: [string, string][] = [
    ['leases', String(peers)],
    ['registry file', `${(statSync(join(path, 'data.mdb')).size / 1e6).toFixed(1)} MB`],
    ['taking one lease, commit included', `${perLease.toFixed(2)} ms`],
    ['start-up: checked, opened, own lease taken', `${joined.toFixed(0)} ms`],
    ['start-up: all peers planned', `${known.toFixed(0)} ms`],
    ['memory for it', `${(after - before).toFixed(0)} MB`],
    ['polling, nothing changes', `${((user + system) / 1e4 / seconds).toFixed(2)} % of a core`],
  ];
  for (const [name, value] of rows) console.log(`${name.padEnd(46)}${value}`);
}
