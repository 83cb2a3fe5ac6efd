/**
 * Work that somebody may ask for without end, and that has to be done anew each time: it gets at most a quarter of control's time, after
 * a while in which it is done at once. Whoever asks beyond that waits; no work is left out.
 */
import { setTimeout as sleep } from 'node:timers/promises';

/** Of the time. */
const SHARE = 1 / 4;
/** Milliseconds of work in a row that are done at once. */
const AT_ONCE = 20;

/** `work`, at that pace. Rejects with what it throws. `now`: milliseconds. */
export function paced<A, T>(
  work: (asked: A) => T,
  now: () => number = () => performance.now(),
): (asked: A) => Promise<T> {
  /** Milliseconds worked beyond our share, and when that was so. */
  let debt = 0;
  let at = now();
  const owed = (): number => {
    const time = now();
    debt = Math.max(0, debt - (time - at) * SHARE);
    at = time;
    return debt;
  };
  return async (asked) => {
    for (let over = owed() - AT_ONCE; over > 0; over = owed() - AT_ONCE) await sleep(Math.ceil(over / SHARE));
    const begun = now();
    try {
      return work(asked);
    } finally {
      debt += now() - begun;
    }
  };
}
