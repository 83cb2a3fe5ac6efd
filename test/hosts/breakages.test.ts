/**
 * The chapter of docs/operations.md that goes from symptom to cause, tried: each cause that it names is made in a running pair of
 * daemons (lib/breakages.ts), the symptom is there, the command that the text names is typed as the text has it, and shows the
 * lines that the text shows; on the whole pair it does not. Then the pair is mended, and carries packets again.
 *
 * `WEFT_SHOW=1` prints what the commands print, for the text; `WEFT_ONLY=…` tries only causes with those words.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { Lab, sleep } from '../../race/hosts.js';
import { type Cause, causesOf, missingFrom, type Step } from '../lib/causes.js';
import { type Breakage, ROUTED, routedPair, SWITCHED, switchedPair } from './lib/breakages.js';
import type { BrokenPair } from './lib/broken-pair.js';
import { type Assertions, FULL, impossible } from './lib/weft.js';

const why = impossible('iptables', 'nft', 'ethtool', 'script', 'tcpdump');
t.setTimeout(0);

const TEXT = fileURLToPath(new URL('../../../docs/operations.md', import.meta.url));
const CHAPTER = 'Why does it not arrive?';
const { WEFT_SHOW: show, WEFT_ONLY: only } = process.env;

const causes = causesOf(readFileSync(TEXT, 'utf8'), CHAPTER);

/** What was so before something broke. */
interface Before {
  readonly dropped: number;
  readonly moves: number;
  readonly neighbours: number;
}

const noTcp = async (pair: BrokenPair): Promise<boolean> => (await pair.pings(5000)) && !(await pair.carriesTcp());

/** What a symptom looks like from outside. */
const SYMPTOMS: Readonly<Record<string, (pair: BrokenPair, before: Before) => Promise<boolean>>> = {
  'No ping': async (pair) => !(await pair.pings()),
  'Ping, but no TCP': noTcp,
  Slow: (pair) => pair.pings(10_000),
  Drops: (pair, { dropped }) => grows(() => pair.dropped(), dropped),
  'Layer 2: no answer to ARP': async (pair) => !(await pair.pings()) && (await pair.asksInVain()),
  'Layer 2: ping, but no TCP': noTcp,
  'Layer 2: an address that is there twice': (pair, { neighbours }) =>
    grows(() => pair.learned('neighbours_learned'), neighbours),
  'Layer 2: a MAC that moves': (pair, { moves }) => grows(() => pair.learned('macs_moved'), moves),
};

/** True as soon as a count is larger than it was; false after some seconds. */
async function grows(count: () => Promise<number>, before: number): Promise<boolean> {
  for (let tries = 100; tries > 0; tries--) {
    if ((await count()) > before) return true;
    await sleep(100);
  }
  return false;
}

const keyOf = ({ host, command }: Step): string => `${host}# ${command}`;

/** What takes its time, and says what is so now: once is enough. Sums since the start are looked at before each breakage. */
const ONCE = /^weft (ping|capture) /;

/** What such commands of the causes print while nothing is broken. One after the other on each host: so captures are. */
async function whileWhole(pair: BrokenPair, tried: readonly Cause[]): Promise<Map<string, string>> {
  const all = tried.flatMap(({ steps }) => steps).filter(({ command }) => ONCE.test(command));
  const steps = new Map(all.map((step) => [keyOf(step), step]));
  const printed = new Map<string, string>();
  const hosts = new Set([...steps.values()].map(({ host }) => host));
  const typeAll = async (host: string): Promise<void> => {
    for (const [key, step] of steps) {
      if (step.host === host) printed.set(key, await pair.type(host, step.command));
    }
  };
  await Promise.all([...hosts].map(typeAll));
  return printed;
}

/** The steps that show nothing of the kind now. */
async function tellingOf(
  pair: BrokenPair,
  steps: readonly Step[],
  whole: ReadonlyMap<string, string>,
): Promise<readonly Step[]> {
  const telling: Step[] = [];
  for (const step of steps) {
    const printed = whole.get(keyOf(step)) ?? (await pair.type(step.host, step.command));
    if (missingFrom(printed, step.shows) !== undefined) telling.push(step);
  }
  return telling;
}

/** A person, too, would look again: what breaks shows after a moment. */
const LOOKS = 4;

async function typedUntilShown(
  pair: BrokenPair,
  { host, command, shows }: Step,
): Promise<{ readonly printed: string; readonly missing: string | undefined }> {
  for (let look = 1; ; look++) {
    const printed = await pair.type(host, command);
    const missing = missingFrom(printed, shows);
    if (missing === undefined || look === LOOKS) return { printed, missing };
    await sleep(500);
  }
}

async function tryCause(
  t: Assertions,
  pair: BrokenPair,
  { symptom, name, steps, line }: Cause,
  breakage: Breakage,
  whole: ReadonlyMap<string, string>,
): Promise<void> {
  const where = `${name} (line ${line})`;
  const telling = await tellingOf(pair, steps, whole);
  t.ok(telling.length > 0, `${where}: nothing of the kind is shown while the pair is whole`);
  const before = {
    dropped: await pair.dropped(),
    moves: await pair.learned('macs_moved'),
    neighbours: await pair.learned('neighbours_learned'),
  };
  const mend = await breakage(pair);
  try {
    t.ok(await SYMPTOMS[symptom](pair, before), `${where}: ${symptom}`);
    for (const step of steps) {
      const { printed, missing } = await typedUntilShown(pair, step);
      t.equal(missing, undefined, `${where}: ${keyOf(step)} shows it`);
      if (missing !== undefined || show) for (const text of printed.split('\n')) t.comment(text);
    }
  } finally {
    await mend();
  }
  t.ok(await pair.pings(10_000), `${where}: mended`);
}

t.test('how a line of the text is compared', async (t) => {
  const shown = (line: string, output: string): boolean => missingFrom(output, [line]) === undefined;
  t.ok(
    shown(
      'inbound  engine  empty  17  datagrams …',
      ' inbound    engine  empty        1,234  datagrams without payload',
    ),
  );
  t.notOk(shown('inbound  engine  empty  17  datagrams …', 'inbound engine empty 0 datagrams without payload'));
  t.notOk(shown('inbound  engine  empty  17  datagrams …', 'inbound engine runt 17 datagrams without payload'));
  t.ok(shown('5 of 5 answered', '20 of 20 answered'));
  t.notOk(shown('5 of 5 answered', '0 of 5 answered'));
  t.notOk(shown('0 of 5 answered', '5 of 5 answered'));
  t.ok(shown('path MTU 1400, 0 lost', 'path MTU   1400, 0 lost'));
  t.notOk(shown('path MTU 1400, 0 lost', 'path MTU 1500, 0 lost'));
  t.ok(shown('18:00:38.404265  10.5.1.2:37498 > 10.5.2.2:9000', '09:10:11.123456 10.5.1.2:4 > 10.5.2.2:9000'));
  t.notOk(shown('18:00:38.404265  10.5.1.2:37498 > 10.5.2.2:9000', '09:10:11.123456 10.5.1.3:4 > 10.5.2.2:9000'));
  t.notOk(shown('42  02:07:00:00:01:02', '42  02:07:00:00:02:02'));
  t.equal(missingFrom('one\ntwo\nthree', ['one', 'three']), undefined, 'others may be in between');
  t.equal(missingFrom('one\ntwo\nthree', ['three', 'one']), 'one', 'the order is theirs');
});

t.test('the chapter', async (t) => {
  t.ok(causes.length >= 20, `${causes.length} causes`);
  const known = [...Object.keys(ROUTED), ...Object.keys(SWITCHED)];
  t.same(
    causes.map(({ name }) => name).sort(),
    known.sort(),
    'each cause of the text can be made, and each that can is in the text',
  );
  for (const { name, symptom, steps, line } of causes) {
    t.ok(SYMPTOMS[symptom], `line ${line}: ${symptom} is a symptom`);
    t.ok(
      steps.some(({ shows }) => shows.length > 0),
      `line ${line}: ${name} has a command, and what it shows`,
    );
  }
});

/** A pair, and causes one after the other. */
async function tryAll(
  t: Assertions,
  makePair: (lab: Lab) => Promise<BrokenPair>,
  breakages: Readonly<Record<string, Breakage>>,
  lab: Lab,
  tried: readonly Cause[],
): Promise<void> {
  const pair = await makePair(lab);
  const pinging = pair.keepPinging();
  const whole = await whileWhole(pair, tried);
  for (const cause of tried) await tryCause(t, pair, cause, breakages[cause.name], whole);
  await pinging();
}

/** Pairs that are broken side by side, since most of the time something is waited for; where time is no matter, one has it all. */
const ROUTED_PAIRS = FULL ? 1 : 3;

t.test('each cause', { skip: why ? `SKIPPED: ${why}` : false }, async (t) => {
  const wanted = causes.filter(({ name }) => !only || new RegExp(only).test(name));
  const [routed, switched] = [ROUTED, SWITCHED].map((breakages) => wanted.filter(({ name }) => breakages[name]));
  const labs: Lab[] = [];
  const lab = (name: string): Lab => {
    labs.push(new Lab(`ht-broken-${name}`));
    return labs[labs.length - 1];
  };
  t.teardown(() => Promise.all(labs.map((one) => one.close())));
  const lanes = Array.from({ length: ROUTED_PAIRS }, (_, lane) => routed.filter((_, i) => i % ROUTED_PAIRS === lane));
  await Promise.all([
    ...lanes.map((tried, lane) => tryAll(t, routedPair, ROUTED, lab(`r${lane}`), tried)),
    tryAll(t, switchedPair, SWITCHED, lab('s'), switched),
  ]);
});
