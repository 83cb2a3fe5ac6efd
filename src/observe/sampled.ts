/**
 * prom-client's metrics, read instead of counted: each asks for its samples when it is scraped, and prom-client makes the text. It has
 * no way to say what a histogram holds other than by observing value after value, and a counter only grows by what it is told;
 * ours are in the shared memory already.
 */
import { Gauge, type MetricObjectWithValues, type MetricValue, type Registry } from 'prom-client';

export type Labels = Readonly<Record<string, string>>;
/** No two of one metric have the same labels. */
export type Sample = readonly [labels: Labels, value: number];
export type Samples = Iterable<Sample> | Promise<Iterable<Sample>>;

/** Sizes by upper bounds; `upTo[i]` are those of at most `bounds[i]`. */
export interface Distribution {
  readonly labels: Labels;
  readonly upTo: readonly number[];
  readonly count: number;
  readonly sum: number;
}

type Values = MetricObjectWithValues<MetricValue<string>>;
type Kind = 'counter' | 'gauge' | 'histogram';

/** A gauge to prom-client, which makes its text of what `get` gives it and looks at nothing else. */
class Read extends Gauge {
  readonly #what: { readonly name: string; readonly help: string; readonly type: Kind };
  readonly #read: () => Iterable<object> | Promise<Iterable<object>>;

  constructor(type: Kind, name: string, help: string, read: () => Iterable<object> | Promise<Iterable<object>>) {
    super({ name, help, registers: [] });
    this.#what = { name, help, type };
    this.#read = read;
  }

  override async get(): Promise<Values> {
    return { ...this.#what, values: [...(await this.#read())] } as unknown as Values;
  }
}

const valuesOf = (samples: () => Samples) => async (): Promise<object[]> =>
  Array.from(await samples(), ([labels, value]) => ({ labels, value }));

/** The series of a histogram, by the conventions of Prometheus: buckets that hold the smaller ones too, sum and count. */
function* seriesOf(name: string, bounds: readonly number[], { labels, upTo, count, sum }: Distribution) {
  const bucket = (le: number | string, value: number): object => ({
    metricName: `${name}_bucket`,
    labels: { le, ...labels },
    value,
  });
  for (const [i, bound] of bounds.entries()) yield bucket(bound, upTo[i]);
  yield bucket('+Inf', count);
  yield { metricName: `${name}_sum`, labels, value: sum };
  yield { metricName: `${name}_count`, labels, value: count };
}

/** Defines metrics in `registry`. */
export class Definitions {
  readonly #registry: Registry;

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  counter(name: string, help: string, samples: () => Samples): void {
    this.#registry.registerMetric(new Read('counter', name, help, valuesOf(samples)));
  }

  gauge(name: string, help: string, samples: () => Samples): void {
    this.#registry.registerMetric(new Read('gauge', name, help, valuesOf(samples)));
  }

  histogram(name: string, help: string, bounds: readonly number[], read: () => Iterable<Distribution>): void {
    this.#registry.registerMetric(
      new Read('histogram', name, help, () => Array.from(read(), (one) => [...seriesOf(name, bounds, one)]).flat()),
    );
  }
}

/** A metric with one value and no labels. */
export const one = (value: number): Sample[] => [[{}, value]];
