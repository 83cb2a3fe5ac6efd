/** Waiting that an AbortSignal ends. None of it rejects for that, but what says so: who waits looks at the signal. */

/** Resolves after `milliseconds`, or when `signal` aborts. */
export function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener('abort', end, { once: true });
  });
}

/** What `promise` comes to, unless `signal` aborts before: then it rejects with its reason, and nobody minds what comes of the promise. */
export function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const end = (): void => reject(signal.reason);
    if (signal.aborted) end();
    else signal.addEventListener('abort', end, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', end));
  });
}

/** A flag to wait for. Rings before and during a wait count alike; several count once. */
export class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  silence(): void {
    this.#rung = false;
  }

  /** Resolves once it has rung since the last `silence`, or when `signal` aborts. */
  wait(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (this.#rung || signal.aborted) return resolve();
      const end = (): void => {
        signal.removeEventListener('abort', end);
        this.#wake = undefined;
        resolve();
      };
      this.#wake = end;
      signal.addEventListener('abort', end, { once: true });
    });
  }
}

/** Delays that double from `first` to `most` milliseconds. */
export class Backoff {
  readonly #first: number;
  readonly #most: number;
  #next: number;

  constructor(first: number, most: number) {
    this.#first = first;
    this.#most = most;
    this.#next = first;
  }

  next(): number {
    const delay = this.#next;
    this.#next = Math.min(delay * 2, this.#most);
    return delay;
  }

  reset(): void {
    this.#next = this.#first;
  }
}
