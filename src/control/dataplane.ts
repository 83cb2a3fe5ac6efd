/**
 * The dataplane as control sees it: the shared memory, the tables, and the worker threads on the descriptors that main opened.
 *
 * A worker that throws or dies is started again on the same descriptors, after a delay that doubles while it keeps dying;
 * packets wait in the kernel's queues meanwhile. If it died because a device is gone (someone deleted it), that device is
 * made anew first, once no worker holds the old one. Workers post no messages: all is read from the shared memory.
 */
import { closeSync, writeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { EngineSettings, WorkerData } from '../dataplane/settings.js';
import { SharedWords } from '../dataplane/shared.js';
import { Tables } from '../dataplane/tables.js';
import { DEFAULT_MEMORY, EngineMemory, type MemoryOptions } from '../io/memory.js';
import { OFFLOADS, offloadNames } from '../io/offloads.js';
import { SetupError } from '../io/setup-error.js';
import { addressOf, errnoText, eventfd } from '../io/syscalls.js';
import { socketDrops } from '../io/udp.js';
import type { EventLog } from './event-log.js';
import { reasonOf } from './reason.js';
import { Backoff, sleep } from './waiting.js';

/** How often the refused offloads, and whether workers take turns, are looked at. */
const LOOK_EVERY = 250;
const START_WITHIN = 5000;
const STOP_WITHIN = 700;
/** A worker that ran this long is well: its next restart is quick again. */
const WELL_AFTER = 60_000;

/** Looks that found no turn; a worker sleeps at most 500 ms. Looks, not time: main may have been asleep as well. */
const STUCK_AFTER = 20;

/** What a worker throws when a device has been deleted under it. */
const DEVICE_LOST = 'DEVICE_LOST';

/** Adds 1 to an eventfd, in the machine's byte order (io/syscalls.ts: little-endian). */
const ONE = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);

export interface DataplaneOptions {
  readonly workers: number;
  readonly log: EventLog;
  readonly memory?: Partial<MemoryOptions>;
  /** The worker's program; tests give their own. */
  readonly program?: URL;
}

/** What workers work on. Descriptors belong to main. */
export interface DataplaneIo {
  /** By worker: a descriptor of the device of each network. */
  readonly deviceFds: readonly (readonly number[])[];
  /** By worker: the IPv4 and the IPv6 socket, -1 where there is none. */
  readonly socketFds: readonly (readonly [number, number])[];
  /** By worker: the IPv4 and the IPv6 sockets that only send; empty where the others send. */
  readonly senderFds: readonly (readonly [readonly number[], readonly number[]])[];
  readonly settings: EngineSettings;
  /** Makes and sets up lost devices again; resolves to what `deviceFds` is then. No worker holds the old ones. */
  readonly reopenDevices: () => Promise<readonly (readonly number[])[]>;
}

interface Slot {
  readonly index: number;
  readonly wakeFd: number;
  readonly backoff: Backoff;
  worker: Worker | undefined;
  exited: Promise<void>;
  /** Its last epoch, and how many looks have found it unchanged. */
  epoch: number;
  looks: number;
  stuck: boolean;
}

export class Dataplane {
  readonly memory: EngineMemory;
  readonly shared: SharedWords;
  readonly tables: Tables;
  readonly #options: DataplaneOptions;
  readonly #slots: Slot[];
  readonly #stop = new AbortController();
  /** Set by `start`. */
  #io: DataplaneIo | undefined;
  #reopening: Promise<void> | undefined;
  #closed = false;
  #restarts = 0;
  #refused = 0;
  #timer: NodeJS.Timeout | undefined;
  /** Tells `start` that a worker ended; undefined once all have started. */
  #startFailed: ((error: SetupError) => void) | undefined;

  /** Makes the memory and the tables, which can be filled before the workers start. */
  constructor(options: DataplaneOptions) {
    this.#options = options;
    const { workers } = options;
    this.memory = EngineMemory.create({ ...DEFAULT_MEMORY, ...options.memory, workers }, addressOf);
    this.shared = new SharedWords(this.memory);
    this.#slots = Array.from({ length: workers }, (_, index) => {
      const wakeFd = eventfd();
      if (wakeFd < 0) throw new SetupError('NO_EVENTFD', `cannot make an eventfd: ${errnoText(wakeFd)}`);
      const backoff = new Backoff(100, 5000);
      return { index, wakeFd, backoff, worker: undefined, exited: Promise.resolve(), epoch: 0, looks: 0, stuck: false };
    });
    this.tables = new Tables(this.memory, () => this.wake());
  }

  /** Times a worker was started again. */
  get restarts(): number {
    return this.#restarts;
  }

  /** Workers that run now, and take turns. */
  get running(): number {
    return this.#slots.filter(({ index }) => this.runs(index)).length;
  }

  /** Whether a worker runs now, and takes turns. */
  runs(worker: number): boolean {
    const { worker: thread, stuck } = this.#slots[worker];
    return thread !== undefined && !stuck;
  }

  /** Messages that the kernel dropped because a socket's buffer was full. */
  get socketDrops(): number {
    const fds = this.#io?.socketFds.flat().filter((fd) => fd >= 0) ?? [];
    return fds.reduce((sum, fd) => sum + socketDrops(fd), 0);
  }

  /** Offloads in use: what was granted less what the kernel refused since. */
  get offloads(): number {
    return (this.#io?.settings.offloads ?? 0) & ~this.shared.refusedOffloads();
  }

  /** Ends the poll of every worker, so that an idle one takes a turn. */
  wake(): void {
    if (this.#closed) return;
    for (const slot of this.#slots) writeSync(slot.wakeFd, ONE);
  }

  /** Lets packets through until `until`, in milliseconds of CLOCK_MONOTONIC; without a call there is no end. */
  setGate(until: number): void {
    const shut = !this.shared.gateOpen(Number(process.hrtime.bigint() / 1_000_000n) | 0);
    this.shared.setGate(until);
    if (shut) this.wake();
  }

  /** Starts the workers; resolves once each has taken a turn. Throws a SetupError when one ends or does not get there. */
  async start(io: DataplaneIo): Promise<void> {
    this.#io = io;
    const before = this.shared.epochs();
    const failed = new Promise<never>((_, reject) => {
      this.#startFailed = reject;
    });
    for (const slot of this.#slots) this.#spawn(slot, io);
    const deadline = performance.now() + START_WITHIN;
    const started = async (): Promise<void> => {
      while (this.shared.epochs().some((epoch, i) => epoch === before[i])) {
        if (performance.now() > deadline) throw new SetupError('NO_WORKER', 'the dataplane worker does not start');
        this.wake();
        await sleep(5, this.#stop.signal);
        if (this.#stop.signal.aborted) return;
      }
    };
    await Promise.race([failed, started()]);
    this.#startFailed = undefined;
    this.#timer = setInterval(() => {
      this.#lookAtOffloads();
      this.#lookAtTurns();
    }, LOOK_EVERY);
  }

  /**
   * Stops the workers; resolves when they have ended. Rejects after STOP_WITHIN: then their descriptors must stay open, since
   * a worker may yet use them; the end of the process closes them.
   */
  async stop(): Promise<void> {
    this.#stop.abort();
    this.#startFailed = undefined;
    clearInterval(this.#timer);
    this.shared.stop();
    this.wake();
    const patience = new AbortController();
    const ended = Promise.all(this.#slots.map((slot) => slot.exited)).then(() => true);
    const inTime = await Promise.race([ended, sleep(STOP_WITHIN, patience.signal)]);
    patience.abort();
    if (inTime !== true) throw new Error('a dataplane worker does not end');
    this.#closed = true;
    for (const slot of this.#slots) closeSync(slot.wakeFd);
  }

  #spawn(slot: Slot, io: DataplaneIo): void {
    const { program } = this.#options;
    const { index, wakeFd } = slot;
    const [socket4, socket6] = io.socketFds[index];
    const workerData: WorkerData = {
      shared: this.memory.share(),
      worker: index,
      deviceFds: io.deviceFds[index],
      socketFds: [socket4, socket6],
      senderFds: io.senderFds[index],
      wakeFd,
      settings: {
        ...io.settings,
        offloads: this.offloads,
        maxSegments: this.offloads & OFFLOADS.segment ? io.settings.maxSegments : 1,
      },
    };
    const worker = new Worker(program ?? new URL('../dataplane/worker.js', import.meta.url), { workerData });
    const begun = performance.now();
    slot.worker = worker;
    let thrown: unknown;
    worker.on('error', (error) => {
      thrown = error;
    });
    slot.exited = new Promise((resolve) => {
      worker.on('exit', (code) => {
        slot.worker = undefined;
        // A worker that threw could not say so itself, and commits wait only for those that run.
        this.shared.setRunning(index, false);
        resolve();
        if (this.#stop.signal.aborted) return;
        if (performance.now() - begun > WELL_AFTER) slot.backoff.reset();
        this.#ended(slot, thrown ?? `exit code ${code}`);
      });
    });
  }

  #ended(slot: Slot, cause: unknown): void {
    const reason = reasonOf(cause);
    if (this.#startFailed) {
      this.#startFailed(new SetupError('NO_WORKER', `the dataplane worker does not start: ${reason}`));
      return;
    }
    const delay = slot.backoff.next();
    const stack = cause instanceof Error ? cause.stack : undefined;
    this.#options.log.error('worker_ended', { worker: slot.index, reason, stack, restartIn: delay });
    void this.#restart(slot, delay, reason === DEVICE_LOST);
  }

  async #restart(slot: Slot, delay: number, deviceLost: boolean): Promise<void> {
    if (deviceLost) {
      this.#reopening ??= this.#reopen().finally(() => {
        this.#reopening = undefined;
      });
    }
    await sleep(delay, this.#stop.signal);
    while (this.#reopening) await this.#reopening;
    if (this.#stop.signal.aborted || !this.#io) return;
    this.#restarts++;
    this.#spawn(slot, this.#io);
  }

  /** Waits until no worker holds a lost device, then makes it anew, however often that takes. */
  async #reopen(): Promise<void> {
    const { log } = this.#options;
    const { signal } = this.#stop;
    const backoff = new Backoff(200, 5000);
    let said: string | undefined;
    while (this.#slots.some((slot) => slot.worker !== undefined) && !signal.aborted) await sleep(10, signal);
    while (this.#io && !signal.aborted) {
      try {
        this.#io = { ...this.#io, deviceFds: await this.#io.reopenDevices() };
        log.warn('device_reopened');
        return;
      } catch (error) {
        const reason = reasonOf(error);
        if (reason !== said) log.error('device_lost', { reason });
        said = reason;
        await sleep(backoff.next(), signal);
      }
    }
  }

  /** A thread that dies in the kernel does not say so; but one that lives takes a turn twice a second, whatever happens. */
  #lookAtTurns(): void {
    const epochs = this.shared.epochs();
    for (const slot of this.#slots) {
      if (epochs[slot.index] !== slot.epoch || slot.worker === undefined) {
        if (slot.stuck) this.#options.log.warn('worker_moves', { worker: slot.index });
        slot.epoch = epochs[slot.index];
        slot.looks = 0;
        slot.stuck = false;
      } else if (++slot.looks === STUCK_AFTER) {
        slot.stuck = true;
        this.#options.log.error('worker_stuck', { worker: slot.index, effect: 'it forwards nothing: restart weftd' });
      }
    }
  }

  #lookAtOffloads(): void {
    const refused = this.shared.refusedOffloads();
    if (refused === this.#refused) return;
    const names = offloadNames(refused & ~this.#refused);
    this.#refused = refused;
    this.#options.log.warn('offload_refused', { offloads: names, effect: 'switched off; packets go without it' });
  }
}
