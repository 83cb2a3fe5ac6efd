/** Reads what a daemon serves inside its namespace, and shows what the two walks counted, for the demo. */
import type { Namespace } from './hosts.js';

export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** Prints the text of a URL; there may be no curl. */
const FETCH = 'fetch(process.argv[1]).then((r) => r.text()).then((text) => process.stdout.write(text))';

/** What the daemon that listens at `address` answers to a GET of `path`; nothing if it does not answer. */
export async function readHttp(ns: Namespace, address: string, path: string): Promise<string> {
  const { stdout } = await ns.run(process.execPath, ['-e', FETCH, `http://${address}${path}`]);
  return stdout.trim();
}

/** What it counts. */
export async function readMetrics(ns: Namespace, address: string): Promise<Sample[]> {
  return (await readHttp(ns, address, '/metrics')).split('\n').flatMap((line) => {
    const [, name, inside, value] = /^(weft_\w+)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
    if (!name) return [];
    const labels = Object.fromEntries(
      [...(inside ?? '').matchAll(/(\w+)="([^"]*)"/g)].map((match) => match.slice(1, 3)),
    );
    return [{ name, labels, value: Number(value) }];
  });
}

/** Families of the walks' counters, and the label that says which one a sample is. */
const FAMILIES: Readonly<Record<string, string>> = {
  weft_packets_total: 'stage',
  weft_bytes_total: 'stage',
  weft_notes_total: 'note',
};
const DROPS = 'weft_drops_total';

/**
 * An aligned table with a column for each host: what is zero everywhere is left out, but the sum of all drops is always
 * there, and so are the two sides of the conservation of packets.
 */
export function showCounters(hostNames: readonly string[], hosts: readonly Sample[][]): string {
  if (hosts.every((samples) => samples.length === 0)) return '  the daemons serve no metrics';
  const lines: [string, ...string[]][] = [['', ...hostNames]];
  const add = (text: string, values: readonly number[]): void => {
    lines.push([text, ...values.map((value) => value.toLocaleString('en'))]);
  };
  const sum = (fits: (sample: Sample) => boolean): number[] =>
    hosts.map((samples) => samples.filter(fits).reduce((total, sample) => total + sample.value, 0));
  const list = (indent: string, fits: (sample: Sample) => boolean, text: (sample: Sample) => string): void => {
    for (const one of new Set(hosts.flatMap((samples) => samples.filter(fits).map(text)))) {
      const values = sum((sample) => fits(sample) && text(sample) === one);
      if (values.some((value) => value !== 0)) add(`${indent}${one}`, values);
    }
  };
  const words = (text: string | undefined): string => (text ?? '').replaceAll('_', ' ');
  const directions = {
    outbound: 'out: clients → device → underlay',
    inbound: 'in: underlay → device → clients',
    tables: 'tables: what was learned',
  };
  for (const [direction, heading] of Object.entries(directions)) {
    const before = lines.push([heading]);
    const inWalk = ({ name, labels }: Sample): boolean => name in FAMILIES && labels.direction === direction;
    list('  ', inWalk, ({ name, labels }) => words(labels[FAMILIES[name]]));
    if (lines.length === before && direction === 'tables') lines.pop(); // layer 3 learns nothing
  }
  add(
    'dropped',
    sum(({ name }) => name === DROPS),
  );
  list(
    '  ',
    ({ name }) => name === DROPS,
    ({ labels }) => `${labels.direction}: ${words(labels.reason)}`,
  );
  const role =
    (...roles: string[]): ((sample: Sample) => boolean) =>
    (sample) =>
      roles.includes(sample.labels.role);
  const ended = role('sent', 'consumed');
  add('in + made', sum(role('in', 'made')));
  add(
    'sent + consumed + dropped',
    sum((sample) => ended(sample) || sample.name === DROPS),
  );

  const columns = [...hostNames.keys()].map((i) => i + 1);
  const width = (column: number): number => Math.max(...lines.map((line) => line[column]?.length ?? 0));
  const widths = [width(0), ...columns.map(width)];
  return lines
    .map((line) => `  ${line.map((cell, i) => (i ? cell.padStart(widths[i] + 3) : cell.padEnd(widths[0]))).join('')}`)
    .join('\n');
}
