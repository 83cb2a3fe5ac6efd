/**
 * Prometheus' HTTP API, as far as the dashboard's rendering and the tests need it
 * (https://prometheus.io/docs/prometheus/latest/querying/api/). Values come as text there, "NaN" and "+Inf" among them.
 */
import { request } from 'node:http';

export interface Series {
  readonly labels: Readonly<Record<string, string>>;
  /** Milliseconds since 1970 and value; NaN where a division by zero was asked for. */
  readonly points: readonly (readonly [ms: number, value: number])[];
}

export interface Range {
  /** Milliseconds since 1970. */
  readonly from: number;
  readonly to: number;
  /** Seconds between two points. */
  readonly step: number;
}

export interface ScrapeTarget {
  readonly instance: string;
  readonly health: string;
  readonly lastError: string;
}

export interface RuleState {
  readonly name: string;
  /** `ok`, `err` or `unknown` (not evaluated yet). */
  readonly health: string;
  readonly lastError: string;
  /** `inactive`, `pending`, `firing`; undefined: no alert. */
  readonly state: string | undefined;
}

interface RawSeries {
  readonly metric: Readonly<Record<string, string>>;
  readonly value?: readonly [number, string];
  readonly values?: readonly (readonly [number, string])[];
}

type Raw = { readonly resultType: string; readonly result: unknown };

/** Longer than this no query of a panel takes. */
const TIMEOUT_MS = 20_000;

const numberOf = (text: string): number =>
  text === '+Inf' ? Number.POSITIVE_INFINITY : text === '-Inf' ? Number.NEGATIVE_INFINITY : Number(text);

/** A Prometheus that is asked over HTTP, a connection a question, so that there is nothing to close. Questions reject with one line. */
export class PrometheusClient {
  readonly #url: URL;
  readonly #socketPath: string | undefined;

  /** `url`: http://host:port. `socketPath`: a unix socket to send to instead of that host. */
  constructor(url: string, socketPath?: string) {
    this.#url = new URL(url);
    this.#socketPath = socketPath;
  }

  /** An instant query, now or at `at` (milliseconds). Rejects with one line when Prometheus refuses it. */
  async query(expression: string, at?: number): Promise<Series[]> {
    const time: Record<string, string> = at === undefined ? {} : { time: String(at / 1000) };
    return seriesOf((await this.#ask('/api/v1/query', { query: expression, ...time })) as Raw);
  }

  /** Values at each step of a range; NaN and missing points stay so. Rejects with one line when Prometheus refuses it. */
  async queryRange(expression: string, { from, to, step }: Range): Promise<Series[]> {
    const parameters = { query: expression, start: String(from / 1000), end: String(to / 1000), step: String(step) };
    return seriesOf((await this.#ask('/api/v1/query_range', parameters)) as Raw);
  }

  /** The values that a label has in series that match a selector, of any time that is stored. */
  async labelValues(label: string, matches: string): Promise<string[]> {
    return (await this.#ask(`/api/v1/label/${label}/values`, { 'match[]': matches })) as string[];
  }

  /** By instance. */
  async targets(): Promise<ScrapeTarget[]> {
    const { activeTargets } = (await this.#ask('/api/v1/targets', { state: 'active' })) as {
      activeTargets: { labels: Record<string, string>; health: string; lastError: string }[];
    };
    return activeTargets
      .map(({ labels, health, lastError }) => ({ instance: labels.instance, health, lastError }))
      .sort((a, b) => (a.instance < b.instance ? -1 : 1));
  }

  /** All alerts of all groups, in the files' order, as they were evaluated last. */
  async rules(): Promise<RuleState[]> {
    const { groups } = (await this.#ask('/api/v1/rules', {})) as { groups: { rules: RuleState[] }[] };
    return groups.flatMap(({ rules }) =>
      rules.map(({ name, health, lastError, state }) => ({ name, health, lastError: lastError ?? '', state })),
    );
  }

  /** True once it answers that it is ready. */
  async ready(): Promise<boolean> {
    return (await this.#get('/-/ready').catch(() => undefined))?.status === 200;
  }

  async #ask(path: string, parameters: Readonly<Record<string, string>>): Promise<unknown> {
    const { status, body } = await this.#get(`${path}?${new URLSearchParams(parameters)}`);
    const what = parameters.query ?? path;
    let answer: { status: string; data: unknown; error?: string };
    try {
      answer = JSON.parse(body) as typeof answer;
    } catch {
      throw new Error(`Prometheus at ${this.#url.host} answers ${what} with ${status} and no JSON`);
    }
    if (answer.status !== 'success') throw new Error(`Prometheus refuses ${what}: ${answer.error ?? status}`);
    return answer.data;
  }

  #get(path: string): Promise<{ status: number; body: string }> {
    return new Promise((resolve, reject) => {
      const where = this.#socketPath === undefined ? {} : { socketPath: this.#socketPath };
      const sent = request(new URL(path, this.#url), { ...where, agent: false, timeout: TIMEOUT_MS }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (text: string) => {
          body += text;
        });
        response.on('error', reject).on('end', () => resolve({ status: response.statusCode ?? 0, body }));
      });
      sent.on('timeout', () => sent.destroy(new Error('no answer')));
      sent.on('error', (error) =>
        reject(new Error(`can't ask Prometheus at ${this.#url.host}: ${error.message}: does it run there?`)),
      );
      sent.end();
    });
  }
}

function seriesOf({ resultType, result }: Raw): Series[] {
  if (resultType === 'scalar') {
    const [at, value] = result as [number, string];
    return [{ labels: {}, points: [[at * 1000, numberOf(value)]] }];
  }
  return (result as RawSeries[]).map(({ metric, value, values }) => ({
    labels: metric,
    points: (values ?? (value ? [value] : [])).map(([at, text]) => [at * 1000, numberOf(text)] as const),
  }));
}
