/** What tests of the embedded registry share: a clock that they move, a log that they read, folders that go. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConfigWish, makeNetworkConfig, type NetworkConfig } from '../../src/control/allocation.js';
import { parseCidr } from '../../src/control/cidr.js';
import type { EventLog } from '../../src/control/event-log.js';
import { entriesOf, openLmdb, readValue, writeValue } from '../../src/control/lmdb.js';
import type { Clock } from '../../src/host/clock.js';

/** Stands still until a test moves it. */
export class TestClock implements Clock {
  now = 1_000_000;
  boot = 'first boot';

  monotonic(): number {
    return this.now;
  }
}

export class TestLog implements EventLog {
  readonly lines: { readonly event: string; readonly fields: Readonly<Record<string, unknown>> }[] = [];
  readonly debug = (event: string, fields: Readonly<Record<string, unknown>> = {}): void => {
    this.lines.push({ event, fields });
  };
  readonly info = this.debug;
  readonly warn = this.debug;
  readonly error = this.debug;

  get events(): string[] {
    return this.lines.map((line) => line.event);
  }

  count(event: string): number {
    return this.events.filter((one) => one === event).length;
  }
}

/** A new folder, removed when the test ends. */
export function folder(t: { teardown(end: () => void): void }): string {
  const path = mkdtempSync(join(tmpdir(), 'weft-unit-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until something is so, and says whether it came to that; a busy machine only makes it later. */
export async function until(so: () => boolean, ms = 5000): Promise<boolean> {
  for (const end = performance.now() + ms; !so() && performance.now() < end; ) await pause(2);
  return so();
}

/** What a daemon with these networks, and subnets of these lengths, asks for. */
export const wishFor = (networks: string, subnetLengths: readonly number[] = []): ConfigWish => ({
  mode: 'l3',
  networks: networks === '' ? [] : networks.split(',').map(parseCidr),
  subnetLengths,
  mins: [],
  maxs: [],
  backend: undefined,
  port: undefined,
});

export const configFor = (networks: string, subnetLengths: readonly number[] = []): NetworkConfig =>
  makeNetworkConfig(wishFor(networks, subnetLengths));

export interface StoredLease {
  readonly addresses: readonly string[];
  readonly subnets: readonly string[];
  readonly vnis?: readonly number[];
  readonly ttl: number;
  readonly expires: number;
}

/** All that the registry in `path` has, read past the store. */
export interface Contents {
  readonly revision: number;
  readonly leases: ReadonlyMap<string, StoredLease>;
  /** `host` by subnet, and by address. */
  readonly subnets: ReadonlyMap<string, string>;
  readonly addresses: ReadonlyMap<string, string>;
  readonly deadlines: readonly { readonly host: string; readonly expires: number }[];
  readonly log: readonly { readonly revision: number; readonly host: string }[];
}

export async function contentsOf(path: string): Promise<Contents> {
  const db = openLmdb(path);
  try {
    db.resetReadTxn();
    const all = (space: string) => [...entriesOf(db, space)];
    return {
      revision: Number(readValue(db, ['meta', 'revision'])),
      leases: new Map(all('lease').map(({ key, value }) => [String(key[1]), value as StoredLease])),
      subnets: new Map(all('subnet').map(({ key, value }) => [String(key[1]), String(value)])),
      addresses: new Map(all('address').map(({ key, value }) => [String(key[1]), String(value)])),
      deadlines: all('deadline').map(({ key }) => ({ expires: Number(key[1]), host: String(key[2]) })),
      log: all('log').map(({ key, value }) => ({ revision: Number(key[1]), host: String(value) })),
    };
  } finally {
    await db.close();
  }
}

/** Writes into the registry in `path` past the store; `undefined` removes. */
export async function meddle(path: string, ...entries: [key: (string | number)[], value: unknown][]): Promise<void> {
  const db = openLmdb(path);
  try {
    db.transactionSync(() => {
      for (const [key, value] of entries) {
        if (value === undefined) db.removeSync(key);
        else writeValue(db, key, value);
      }
    });
  } finally {
    await db.close();
  }
}

/** What in these contents contradicts itself, one line each. */
export function contradictions({ revision, leases, subnets, addresses, deadlines, log }: Contents): string[] {
  const wrong: string[] = [];
  for (const [what, index] of [
    ['subnets', subnets],
    ['addresses', addresses],
  ] as const) {
    const owners = new Map<string, string>();
    for (const [host, lease] of leases) {
      for (const one of lease[what]) {
        if (owners.has(one)) wrong.push(`${one} has two owners, ${owners.get(one)} and ${host}`);
        owners.set(one, host);
        if (index.get(one) !== host) wrong.push(`${one} is ${host}'s, its index says ${index.get(one)}`);
      }
    }
    for (const [one, host] of index) if (!owners.has(one)) wrong.push(`${one} is free, its index says ${host}`);
  }
  const ends = (host: string, expires: number): string => `${host} ${expires}`;
  const wanted = [...leases].map(([host, lease]) => ends(host, lease.expires)).sort();
  const found = deadlines.map(({ host, expires }) => ends(host, expires)).sort();
  if (wanted.join() !== found.join()) wrong.push(`deadlines ${found.join()}, of leases ${wanted.join()}`);
  log.forEach((line, i) => {
    const want = revision - log.length + 1 + i;
    if (line.revision !== want) wrong.push(`the log has ${line.revision} where ${want} belongs`);
  });
  return wrong;
}
