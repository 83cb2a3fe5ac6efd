/**
 * The control half of a daemon as a process of its own: the real registry, reducer and plan, with no device and no packets.
 * JSON lines on standard output; on standard input "go" starts it, so that many can begin at once.
 *
 *     control-daemon.js '{"path": "…", "host": "192.168.77.1", "network": "10.5.0.0/16", "ttl": 60000, "times": {…}}'
 */
import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { parseCidr, parseHostAddress } from '../../src/control/cidr.js';
import { EmbeddedRegistry, type EmbeddedTimes } from '../../src/control/embedded-registry.js';
import { PATIENCE } from '../../src/control/embedded-store.js';
import { ControlLoop } from '../../src/control/loop.js';
import { systemClock } from '../../src/host/clock.js';

export interface ControlOptions {
  readonly path: string;
  readonly host: string;
  /** Empty: what the registry says. */
  readonly network: string;
  /** Milliseconds. */
  readonly ttl: number;
  readonly times?: Partial<EmbeddedTimes>;
}

export type ControlLine =
  | { readonly event: 'started' }
  | { readonly event: 'joined'; readonly subnet: string; readonly how: string }
  /** So many peers are known, with so many routes. */
  | { readonly event: 'applied'; readonly peers: number; readonly routes: number }
  | { readonly event: 'failed'; readonly reason: string }
  | { readonly event: 'log'; readonly line: string };

const say = (line: ControlLine): number => writeSync(1, `${JSON.stringify(line)}\n`);

async function main(options: ControlOptions): Promise<void> {
  const addresses = [parseHostAddress(options.host)];
  const networks = options.network ? [parseCidr(options.network)] : [];
  const note = (event: string, fields?: object): void => {
    say({ event: 'log', line: JSON.stringify({ event, ...fields }) });
  };
  const log = { debug: () => {}, info: note, warn: note, error: note };
  const registry = new EmbeddedRegistry({
    path: options.path,
    wish: { mode: 'l3', networks, subnetLengths: [], mins: [], maxs: [], backend: undefined, port: undefined },
    addresses,
    ttl: options.ttl,
    clock: systemClock(),
    log,
    gate: () => {},
    moved: () => note('moved'),
    ...(options.times ? { times: options.times } : {}),
  });
  say({ event: 'started' });
  await once(process.stdin, 'data');
  const { config, subnets, how } = await registry.join([], { create: networks.length > 0, patience: PATIENCE.first });
  say({ event: 'joined', subnet: subnets[0].text, how });
  const self = { addresses, networks: config.pools.map((pool) => pool.network), subnets, underlayMtu: 1500, vnis: [] };
  const applier = {
    apply: async (plan: {
      readonly peers: ReadonlyMap<string, unknown>;
      readonly routes: ReadonlyMap<string, unknown>;
    }) => {
      say({ event: 'applied', peers: plan.peers.size, routes: plan.routes.size });
      return 1;
    },
  };
  const loop = new ControlLoop({ registry, self, applier, log });
  await loop.start();
}

try {
  await main(JSON.parse(process.argv[2]) as ControlOptions);
} catch (error) {
  say({ event: 'failed', reason: error instanceof Error ? error.message : String(error) });
  process.exitCode = 1;
}
