/**
 * The static registry: a JSON file of peers, read again whenever it changes.
 *
 * Changes are noticed through the directory (inotify), because a file that is replaced by rename, as editors and
 * configuration managers do it, is not the inode that was watched; a slow poll of what stat says is the safety net (network
 * file systems, no inotify left). A file that is absent or half written is looked at again a little later before it is
 * called bad. What was read last stays in force then: that is the reader's rule (registry.ts).
 */
import { type FSWatcher, watch } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import * as v from 'valibot';
import { VNI_MOST } from '../packet/vxlan.js';
import type { Mode } from './encapsulation.js';
import { reasonOf } from './reason.js';
import { makeRecord, type PeerRecord } from './records.js';
import type { Registry, RegistryUpdate } from './registry.js';
import { Bell, sleep } from './waiting.js';

const MOST_BYTES = 64 << 20;

const port = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65535));

const fileSchema = v.strictObject({ peers: v.array(v.unknown()) });

const common = {
  name: v.optional(v.pipe(v.string(), v.minLength(1), v.maxLength(253))),
  address: v.string(),
  port: v.optional(port),
  mtu: v.optional(v.pipe(v.number(), v.integer(), v.minValue(576), v.maxValue(65535))),
};
const vni = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(VNI_MOST));
const notIn = (mode: Mode, why: string) => v.optional(v.never(`is not for --mode ${mode}: ${why}`));
const PREFIXES = 'a peer owns "subnets" there';

/** A peer of each mode; what only the other one has is refused by a line of its own. */
const peerSchemas = {
  l3: v.strictObject({
    ...common,
    subnets: v.array(v.string()),
    ecn: v.optional(v.boolean(), false),
    vnis: notIn('l3', PREFIXES),
    macs: notIn('l3', PREFIXES),
    neighbours: notIn('l3', PREFIXES),
  }),
  l2: v.strictObject({
    ...common,
    subnets: notIn('l2', 'where a MAC is is learned, or said in "macs"'),
    ecn: notIn('l2', 'VXLAN always copies it'),
    vnis: v.optional(v.pipe(v.array(vni), v.minLength(1))),
    macs: v.optional(
      v.array(
        v.union([
          v.pipe(
            v.string(),
            v.transform((mac) => ({ mac })),
          ),
          v.strictObject({ vni: v.optional(vni), mac: v.string() }),
        ]),
      ),
    ),
    neighbours: v.optional(
      v.array(
        v.strictObject({
          vni: v.optional(vni),
          address: v.string(),
          mac: v.string(),
          router: v.optional(v.boolean(), false),
        }),
      ),
    ),
  }),
} as const;

/** What a peers file is for. */
export interface PeersFor {
  readonly mode: Mode;
  /** Of peers that name none. */
  readonly port: number;
}

/** Peers that are read before the event loop has its turn; each may have many subnets. */
const SLICE = 16;

/** What `schema` makes of `value`. Throws a RangeError that names the place and what is wrong there. */
function check<T>(schema: v.GenericSchema<unknown, T>, value: unknown, place?: string): T {
  const parsed = v.safeParse(schema, value);
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0];
  const path = [place, v.getDotPath(issue)].filter(Boolean).join('.');
  throw new RangeError([path, issue.message].filter(Boolean).join(': '));
}

/**
 * The records in a peers file, read in slices so that a large one keeps no signal waiting. Rejects with a RangeError or
 * SyntaxError that says what is wrong.
 */
export async function parsePeers(text: string, { mode, port: defaultPort }: PeersFor): Promise<PeerRecord[]> {
  const { peers } = check(fileSchema, JSON.parse(text));
  const seen = new Set<string>();
  const records: PeerRecord[] = [];
  for (const [i, one] of peers.entries()) {
    if (i % SLICE === SLICE - 1) await setImmediate();
    const peer = mode === 'l3' ? check(peerSchemas.l3, one, `peers.${i}`) : check(peerSchemas.l2, one, `peers.${i}`);
    const name = peer.name ?? peer.address;
    const id = seen.has(name) ? `${name} (${i})` : name; // two of one name are refused later, by name
    seen.add(id);
    const { address, port = defaultPort, subnets = [], mtu: underlayMtu, ecn = true, vnis, macs, neighbours } = peer;
    records.push(makeRecord({ id, name, address, port, subnets, underlayMtu, ecn, vnis, macs, neighbours }));
  }
  return records;
}

export interface StaticRegistryTimes {
  /** Milliseconds between looks at what stat says. */
  readonly poll: number;
  /** How long a change is given to be complete, before the first look and before each further one. */
  readonly settle: number;
}

const TIMES: StaticRegistryTimes = { poll: 2000, settle: 50 };
/** Looks, each `settle` times 1, 2, 4, … after the one before, before a file is called bad. */
const LOOKS = 4;

export class StaticRegistry implements Registry {
  readonly name: string;
  readonly #path: string;
  readonly #kind: PeersFor;
  readonly #times: StaticRegistryTimes;

  constructor(path: string, kind: PeersFor, times: StaticRegistryTimes = TIMES) {
    this.name = `peers file ${path}`;
    this.#path = path;
    this.#kind = kind;
    this.#times = times;
  }

  /** Snapshots only; the cursor counts them. */
  async *watch(signal: AbortSignal): AsyncGenerator<RegistryUpdate> {
    const bell = new Bell();
    const watcher = this.#watchDirectory(bell);
    const poll = setInterval(() => void this.#lookAtStat(bell), this.#times.poll);
    poll.unref();
    let text: string | undefined;
    let trouble: string | undefined;
    let cursor = 0;
    try {
      while (!signal.aborted) {
        this.#seen = await this.#signature();
        const found = await this.#read(signal);
        if (found.reason !== undefined) {
          if (found.reason !== trouble) yield { kind: 'trouble', trouble: found };
        } else if (found.text !== text || trouble !== undefined) {
          text = found.text;
          yield { kind: 'snapshot', records: found.records, cursor: String(++cursor) };
        }
        trouble = found.reason;
        await bell.wait(signal);
        await sleep(this.#times.settle, signal);
        bell.silence();
      }
    } finally {
      clearInterval(poll);
      watcher?.close();
    }
  }

  /** What stat said before the last read. */
  #seen = '';

  async #lookAtStat(bell: Bell): Promise<void> {
    if ((await this.#signature()) !== this.#seen) bell.ring();
  }

  async #signature(): Promise<string> {
    try {
      const { dev, ino, size, mtimeNs, ctimeNs } = await stat(this.#path, { bigint: true });
      return [dev, ino, size, mtimeNs, ctimeNs].join(' ');
    } catch (error) {
      return reasonOf(error);
    }
  }

  /** Any change in the directory counts: a mounted ConfigMap changes by a link of another name. */
  #watchDirectory(bell: Bell): FSWatcher | undefined {
    try {
      const watcher = watch(dirname(this.#path), { persistent: false }, () => bell.ring());
      watcher.on('error', () => watcher.close());
      return watcher;
    } catch {
      return undefined; // the poll sees to it
    }
  }

  async #read(
    signal: AbortSignal,
  ): Promise<{ text: string; records: PeerRecord[]; reason?: undefined } | { reason: string }> {
    for (let look = 1; ; look++) {
      try {
        const { size } = await stat(this.#path).then((found) => {
          if (!found.isFile()) throw new RangeError('not a regular file');
          return found;
        });
        if (size > MOST_BYTES) throw new RangeError(`larger than ${MOST_BYTES} bytes`);
        const text = await readFile(this.#path, 'utf8');
        return { text, records: await parsePeers(text, this.#kind) };
      } catch (error) {
        const reason = reasonOf(error);
        if (look === LOOKS || signal.aborted) {
          return { reason: error instanceof SyntaxError ? `not JSON: ${reason}` : reason };
        }
        await sleep(this.#times.settle * 2 ** (look - 1), signal);
      }
    }
  }
}
