/**
 * Whoever asks again and again must not take all of control's time: a result is given again for `times` as long as it took, at
 * most `most` milliseconds, and to all who ask meanwhile.
 */
export function sparing<T>(read: () => Promise<T>, times: number, most = Number.POSITIVE_INFINITY): () => Promise<T> {
  let last: Promise<T> | undefined;
  let until = Number.NEGATIVE_INFINITY;
  return () => {
    const begun = performance.now();
    if (last && begun < until) return last;
    until = Number.POSITIVE_INFINITY;
    last = failing(read).finally(() => {
      const ended = performance.now();
      until = ended + Math.min(times * (ended - begun), most);
    });
    return last;
  };
}

/** What is thrown before there is a promise is one that rejects, too. */
async function failing<T>(read: () => Promise<T>): Promise<T> {
  return read();
}
