/**
 * What a race says on standard error while it runs, and how much longer it will take: each step's mean so far, or a guess
 * for steps that have not run yet.
 */
export const say = (line: string): boolean => process.stderr.write(`${line}\n`);

export interface Timed {
  readonly subject: { readonly name: string };
  /** `guess`: how many seconds it may take. */
  readonly task: { readonly name: string; readonly guess: number };
}

interface Mean {
  count: number;
  ms: number;
}

export class Estimate {
  readonly #means = new Map<string, Mean>();

  /** A step took `ms`. */
  add({ task, subject }: Timed, ms: number): void {
    for (const key of [task.name, `${task.name} ${subject.name}`]) {
      const mean = this.#means.get(key) ?? { count: 0, ms: 0 };
      this.#means.set(key, mean);
      mean.count++;
      mean.ms += (ms - mean.ms) / mean.count;
    }
  }

  /** Milliseconds that these steps will take. */
  of(steps: readonly Timed[]): number {
    const one = ({ task, subject }: Timed): number =>
      (this.#means.get(`${task.name} ${subject.name}`) ?? this.#means.get(task.name))?.ms ?? task.guess * 1000;
    return steps.reduce((sum, step) => sum + one(step), 0);
  }
}

/** Minutes and seconds: 12:10. */
export const clock = (ms: number): string =>
  `${Math.floor(ms / 60_000)}:${String(Math.floor(ms / 1000) % 60).padStart(2, '0')}`;

/** In words, no more exact than it is: "about 40 s left", "about 25 min left", "about 1 h 50 min left". */
export function aboutLeft(ms: number): string {
  const seconds = Math.ceil(ms / 10_000) * 10;
  if (seconds <= 90) return `about ${seconds} s left`;
  const minutes = Math.round(ms / 60_000);
  const rounded = minutes < 90 ? minutes : Math.round(minutes / 10) * 10;
  if (rounded < 90) return `about ${rounded} min left`;
  return `about ${Math.floor(rounded / 60)} h ${rounded % 60 ? `${rounded % 60} min ` : ''}left`;
}
