/**
 * The control loop: registry → reducer → plan → reconcile → apply.
 *
 * Updates that come while one is applied, or within 50 ms of it, are applied together: a flood of events costs one change of
 * the tables per 50 ms. Whatever goes wrong (the registry is away or tells nonsense, the tables are full) leaves in force
 * what was applied last, is logged when it begins and when it ends, and is tried again.
 */
import { SetupError } from '../io/setup-error.js';
import type { Applier } from './apply.js';
import type { EventLog } from './event-log.js';
import { type Plan, parseAhead, planFor, type Self } from './plan.js';
import { reasonOf } from './reason.js';
import { type Records, reduceRecords } from './records.js';
import type { Cursor, Registry, Trouble } from './registry.js';
import { Backoff, Bell, sleep } from './waiting.js';

const LEAST_INTERVAL = 50;

/** What metrics and /readyz tell of the loop. */
export interface LoopState {
  /** Something from the registry is in force. */
  readonly synced: boolean;
  /** Why what is in force may be old; undefined while all is well. */
  readonly problem: string | undefined;
  /** Date.now() of when what is in force was last known to be right; 0 while all is well. */
  readonly staleSince: number;
  readonly updates: number;
  /** Date.now() of when the registry itself last told something; 0 before it. */
  readonly lastEvent: number;
  readonly applied: number;
  readonly failures: number;
  /** Date.now() of the last success, 0 before it. */
  readonly lastApplied: number;
}

export interface ControlLoopOptions {
  readonly registry: Registry;
  readonly self: Self;
  readonly applier: Pick<Applier, 'apply'>;
  /** Finds out what `self` must know of these records before they are planned for. */
  readonly prepare?: ((records: Records) => Promise<void>) | undefined;
  readonly log: EventLog;
}

/** How many of each kind are in a plan; of those that only layer 2 has, where there are any. */
function sizesOf({ peers, routes, hostRoutes, macs, neighbours }: Plan): Readonly<Record<string, number>> {
  const stations = macs.size > 0 ? { macs: macs.size, neighbours: neighbours.size } : {};
  return { peers: peers.size, routes: routes.size || hostRoutes.size, ...stations };
}

export class ControlLoop {
  readonly #options: ControlLoopOptions;
  readonly #abort = new AbortController();
  readonly #dirty = new Bell();
  #records: Records = new Map();
  #told = false;
  #cursor: Cursor | undefined;
  /** Of the registry itself, and of what it told. */
  #trouble: string | undefined;
  #refused: string | undefined;
  #staleSince = 0;
  #updates = 0;
  #lastEvent = 0;
  #applied = 0;
  #failures = 0;
  #lastApplied = 0;
  #running: Promise<unknown> = Promise.resolve();
  #settleFirst: ((problem: string | undefined) => void) | undefined;

  constructor(options: ControlLoopOptions) {
    this.#options = options;
  }

  get state(): LoopState {
    return {
      synced: this.#applied > 0,
      problem: this.#trouble ?? this.#refused,
      staleSince: this.#staleSince,
      updates: this.#updates,
      lastEvent: this.#lastEvent,
      applied: this.#applied,
      failures: this.#failures,
      lastApplied: this.#lastApplied,
    };
  }

  /** Starts; resolves once the first snapshot is in force, rejects with a SetupError if it cannot be. */
  start(): Promise<void> {
    const first = new Promise<void>((resolve, reject) => {
      this.#settleFirst = (problem) => {
        this.#settleFirst = undefined;
        if (problem === undefined) resolve();
        else reject(new SetupError('BAD_PEERS', problem));
      };
    });
    this.#running = Promise.all([this.#follow(), this.#work()]);
    return first;
  }

  /** Ends both halves. What is in force stays. */
  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#running;
  }

  /** Takes updates from the registry, again and again. */
  async #follow(): Promise<void> {
    const { registry } = this.#options;
    const { signal } = this.#abort;
    const backoff = new Backoff(100, 5000);
    while (!signal.aborted) {
      try {
        for await (const update of registry.watch(signal, this.#cursor)) {
          if (signal.aborted) return;
          this.#updates++;
          this.#setTrouble(update.trouble, update.kind === 'trouble');
          if (update.kind === 'trouble') continue;
          // A snapshot with trouble is what was remembered of a registry that is away.
          if (update.kind === 'events' || !update.trouble) this.#lastEvent = Date.now();
          backoff.reset();
          const records = reduceRecords(this.#records, update);
          this.#cursor = update.cursor;
          if (records === this.#records && this.#told) continue;
          this.#records = records;
          this.#told = true;
          this.#dirty.ring();
        }
      } catch (error) {
        this.#setTrouble({ reason: reasonOf(error) });
      }
      await sleep(backoff.next(), signal);
    }
  }

  /** Applies what was taken, at most once per LEAST_INTERVAL. */
  async #work(): Promise<void> {
    const { registry, self, applier, prepare, log } = this.#options;
    const { signal } = this.#abort;
    const backoff = new Backoff(100, 5000);
    for (;;) {
      await this.#dirty.wait(signal);
      if (signal.aborted) return;
      this.#dirty.silence();
      let retry = false;
      try {
        const records = this.#records;
        await parseAhead(records, self, signal);
        await prepare?.(records);
        if (signal.aborted) return;
        const plan = planFor(records, self);
        retry = true; // from here on a failure may be of the moment
        const actions = await applier.apply(plan);
        this.#applied++;
        this.#lastApplied = Date.now();
        backoff.reset();
        this.#setRefused(undefined);
        const first = this.#settleFirst !== undefined; // the ready line tells of that one
        if (actions > 0 && !first) log.info('tables_applied', { ...sizesOf(plan), actions });
        this.#settleFirst?.(undefined);
      } catch (error) {
        this.#failures++;
        this.#setRefused(`${registry.name}: ${reasonOf(error)}`);
      }
      if (retry && this.#refused !== undefined) {
        await sleep(backoff.next(), signal);
        this.#dirty.ring();
      } else await sleep(LEAST_INTERVAL, signal);
    }
  }

  /** `alone`: with no records, so that there is nothing to start with. */
  #setTrouble(trouble: Trouble | undefined, alone = true): void {
    const problem = trouble && `${this.#options.registry.name}: ${trouble.reason}`;
    this.#say(this.#trouble, problem, 'registry_trouble', 'registry_recovered', alone);
    this.#trouble = problem;
    this.#setStale(trouble?.since);
  }

  #setRefused(problem: string | undefined): void {
    this.#say(this.#refused, problem, 'peers_refused', 'peers_accepted', true);
    this.#refused = problem;
    this.#setStale();
  }

  #setStale(since = Date.now()): void {
    if (this.#trouble === undefined && this.#refused === undefined) this.#staleSince = 0;
    else if (this.#staleSince === 0 || since < this.#staleSince) this.#staleSince = since;
  }

  #say(before: string | undefined, now: string | undefined, begins: string, ends: string, atFirst: boolean): void {
    if (now === before) return;
    if (now !== undefined && atFirst && this.#settleFirst) this.#settleFirst(now);
    else if (now === undefined) this.#options.log.info(ends);
    else this.#options.log.error(begins, { reason: now, inForce: 'what was applied last' });
  }
}
