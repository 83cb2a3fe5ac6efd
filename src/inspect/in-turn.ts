/**
 * Work that somebody may ask for without end, that waits in between (so that pace.ts does not do), and may hold much while it does: one
 * at a time, and then control has some time for other things.
 */
import { setTimeout as sleep } from 'node:timers/promises';

/** So many times as long as the work took, milliseconds at most. */
const PAUSE = { times: 3, most: 1000 };

/** `work`, each after the one before. Rejects with what it rejects with. */
export function inTurn<A, T>(work: (asked: A) => Promise<T>): (asked: A) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return (asked) => {
    let begun = 0;
    const next = last.then(() => {
      begun = performance.now();
      return work(asked);
    });
    const pause = (): Promise<void> => {
      const milliseconds = Math.min((performance.now() - begun) * PAUSE.times, PAUSE.most);
      return sleep(milliseconds, undefined, { ref: false });
    };
    last = next.then(pause, pause);
    return next;
  };
}
