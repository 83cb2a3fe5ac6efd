/** The log: lines as they were before folding, folding itself with a clock of our own, text for people, and what an exit leaves. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import t from 'tap';
import {
  FEW,
  type FoldedLevel,
  Folding,
  type FoldingClock,
  MOST_REMEMBERED,
  WINDOW,
} from '../../src/observe/folding.js';
import { createLog, type LogOptions } from '../../src/observe/log.js';
import { textLine } from '../../src/observe/log-text.js';

const LOG = fileURLToPath(new URL('../../src/observe/log.js', import.meta.url));

interface Said {
  readonly level: FoldedLevel;
  readonly event: string;
  readonly fields: Readonly<Record<string, unknown>>;
}

/** A clock that stands until it is told. */
class Clock implements FoldingClock {
  #now = 0;
  #due: { at: number; work: () => void }[] = [];
  now = (): number => this.#now;
  date = (): Date => new Date(this.#now);
  after = (ms: number, work: () => void): void => void this.#due.push({ at: this.#now + ms, work });

  advance(ms: number): void {
    const end = this.#now + ms;
    for (;;) {
      const next = this.#due.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      this.#due = this.#due.filter((one) => one !== next);
      this.#now = Math.max(this.#now, next.at);
      next.work();
    }
    this.#now = end;
  }
}

function folded(): { said: Said[]; clock: Clock; folding: Folding } {
  const said: Said[] = [];
  const clock = new Clock();
  const folding = new Folding((level, event, fields = {}) => void said.push({ level, event, fields }), clock);
  return { said, clock, folding };
}

function collected(level: 'debug' | 'info' | 'error' = 'info', options: LogOptions = {}) {
  const lines: string[] = [];
  const log = createLog(level, { ...options, to: { write: (line) => void lines.push(line) } });
  return { lines, log, json: () => lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

t.test('one JSON line an event', async (t) => {
  const { log, lines, json } = collected();
  log.debug('hidden');
  log.info('ready', { device: 'flannel0' });
  log.error('failed', { reason: 'two\nlines', stack: undefined });
  t.equal(lines.length, 2);
  for (const line of lines) t.match(line, /^\{[^\n]*\}\n$/);
  t.match(lines[0], /^\{"level":"info","time":"[^"]+","event":"ready","device":"flannel0"\}\n$/);
  t.match(json()[0], { time: /^\d{4}-\d\d-\d\dT.*Z$/ });
  t.match(json()[1], { level: 'error', event: 'failed', reason: 'two\nlines' });
});

t.test('the level at run time', async (t) => {
  const { log, json } = collected();
  t.equal(log.level, 'info');
  log.debug('hidden');
  log.setLevel('debug');
  t.equal(log.level, 'debug');
  log.debug('shown');
  for (let i = 0; i < FEW + 3; i++) log.warn('again', { reason: 'x' });
  log.setLevel('error');
  log.warn('hidden');
  log.setLevel('info');
  log.info('shown too');
  const events = json().map(({ event, repeated }) => (repeated === undefined ? event : `${event} ${repeated}`));
  t.same(events, ['shown', ...Array(FEW).fill('again'), 'again 3', 'shown too'], 'what was counted is written before');
});

t.test('a few are written at once, the rest becomes one line a minute', async (t) => {
  const { said, clock, folding } = folded();
  for (let i = 1; i <= 100; i++) {
    folding.say('warn', 'etcd_waiting', { reason: 'refused', restartIn: i });
    clock.advance(100);
  }
  t.equal(said.length, FEW, 'a few at once');
  clock.advance(WINDOW);
  t.equal(said.length, FEW + 1, 'and one line');
  t.same(said[FEW], {
    level: 'warn',
    event: 'etcd_waiting',
    fields: { reason: 'refused', restartIn: 100, repeated: 100 - FEW, last: new Date(9900).toISOString() },
  });
  for (let i = 0; i < 7; i++) folding.say('warn', 'etcd_waiting', { reason: 'refused', restartIn: 1 });
  t.equal(said.length, FEW + 1, 'it goes on: only counted');
  clock.advance(WINDOW);
  t.match(said[FEW + 1].fields, { repeated: 7 });
  clock.advance(2 * WINDOW);
  t.equal(said.length, FEW + 2, 'nothing more to say');
  t.equal(folding.size, 0, 'and nothing remembered');
  folding.say('warn', 'etcd_waiting', { reason: 'refused', restartIn: 1 });
  t.equal(said.length, FEW + 3, 'later it is news again');
});

t.test('what differs is not folded', async (t) => {
  const { said, folding } = folded();
  for (let i = 0; i < 100; i++) {
    folding.say('info', 'path_mtu', { peer: 'b', mtu: 1400 - i });
    folding.say(i % 2 ? 'info' : 'warn', `event_${i}`);
    folding.say('info', 'ready', { version: '1' });
    folding.say('error', 'failed', { reason: 'x' });
  }
  t.equal(said.length, 400);
});

t.test('memory is bounded', async (t) => {
  const { said, folding } = folded();
  for (let i = 0; i < FEW + 2; i++) folding.say('error', 'first', {});
  for (let i = 0; i < 20_000; i++) {
    folding.say('warn', 'different', { i });
    if (folding.size > MOST_REMEMBERED) t.fail(`${folding.size} are remembered`);
  }
  t.equal(said.length, FEW + 1 + 20_000, 'none is lost');
  t.match(said[FEW + MOST_REMEMBERED - 1], { event: 'first', fields: { repeated: 2 } }, 'who makes room is written');
  const before = folding.size;
  for (let i = 0; i < 20; i++) folding.say('warn', `long_${i}`, { reason: 'x'.repeat(5000) });
  for (let i = 0; i < 20; i++) folding.say('warn', 'long', { reason: 'x'.repeat(5000) });
  t.equal(folding.size, before, 'nothing long is remembered');
  t.equal(said.length, FEW + 1 + 20_000 + 40, 'but written each time');
  const circle: Record<string, unknown> = {};
  circle.self = circle;
  folding.say('warn', 'circle', circle);
  folding.say('warn', 'big', { value: 1n });
  t.equal(said.length, FEW + 1 + 20_000 + 42, 'so is what is no JSON');
});

t.test('whatever is said, and when: each is written or counted, the first at once', async (t) => {
  const step = fc.record({ name: fc.integer({ min: 0, max: 400 }), wait: fc.integer({ min: 0, max: 20_000 }) });
  const skewed = fc.oneof(step, fc.record({ name: fc.integer({ min: 0, max: 3 }), wait: fc.constantFrom(0, 1, 1000) }));
  fc.assert(
    fc.property(fc.array(skewed, { maxLength: 600, size: 'max' }), (steps) => {
      const { said, clock, folding } = folded();
      const asked = new Map<string, number>();
      for (const { name, wait } of steps) {
        const event = `e${name}`;
        const before = said.length;
        folding.say('info', event);
        if (!asked.has(event) && !said.slice(before).some((one) => one.event === event && !('repeated' in one.fields)))
          throw new Error(`${event}: the first was not written at once`);
        asked.set(event, (asked.get(event) ?? 0) + 1);
        clock.advance(wait);
        if (folding.size > MOST_REMEMBERED) throw new Error(`${folding.size} are remembered`);
      }
      folding.flush();
      const told = new Map<string, number>();
      for (const { event, fields } of said) told.set(event, (told.get(event) ?? 0) + Number(fields.repeated ?? 1));
      for (const [event, times] of asked) {
        if (told.get(event) !== times) throw new Error(`${event}: said ${times} times, told ${told.get(event)}`);
      }
    }),
    { numRuns: 60 },
  );
  t.pass('60 histories');
});

t.test('text for people', async (t) => {
  const { log, lines } = collected('debug', { format: 'text' });
  log.info('ready', {
    device: 'flannel0',
    mtu: 1472,
    underlay: { interface: 'eth0', addresses: ['192.0.2.1', 'fd77::1'] },
  });
  log.warn('metrics_off', { reason: 'the port is in use', empty: '', none: null, list: [] });
  log.error('failed', { reason: 'two\nlines \u001b[31m\u202e"quoted"', stack: undefined, devices: [{ vni: 1 }] });
  log.debug('alone');
  const stripped = lines.map((line) => line.replace(/^\S+Z/, 'TIME'));
  t.same(stripped, [
    'TIME  INFO   ready                 device=flannel0 mtu=1472 underlay.interface=eth0 underlay.addresses=192.0.2.1,fd77::1\n',
    'TIME  WARN   metrics_off           reason="the port is in use" empty="" none=null list=[]\n',
    'TIME  ERROR  failed                reason="two\\nlines \\u001b[31m\\u202e\\"quoted\\"" devices=[{"vni":1}]\n',
    'TIME  DEBUG  alone\n',
  ]);
  t.equal(textLine('no JSON\n'), 'no JSON\n');
});

t.test('it is always one line of printable characters', async (t) => {
  for (const format of ['text', 'json'] as const) {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.jsonValue(),
        fc.string({ unit: 'binary' }),
        (event, value, name) => {
          const { log, lines } = collected('info', { format });
          log.info(event, { [name]: value, reason: event });
          if (lines.length !== 1 || !/^[^\p{C}\p{Zl}\p{Zp}]+\n$/u.test(lines[0]))
            throw new Error(JSON.stringify(lines));
          if (format === 'json' && (JSON.parse(lines[0]) as { reason?: string }).reason !== event)
            throw new Error(`not the same: ${lines[0]}`);
        },
      ),
    );
    t.pass(format);
  }
});

/** Runs a program with the log's module in `log`; its standard output and exit code. */
async function child(program: string, closeAfter?: string): Promise<{ lines: string[]; code: number | null }> {
  const source = `import { createLog } from ${JSON.stringify(LOG)}; const log = createLog('info'); ${program}`;
  const running = spawn(process.execPath, ['--expose-gc', '--input-type=module', '-e', source], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => running.kill('SIGKILL'));
  let text = '';
  running.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    if (closeAfter !== undefined && text.includes(closeAfter)) running.stdout.destroy();
  });
  const [code] = (await once(running, 'close')) as [number | null];
  return { lines: text.split('\n').filter(Boolean), code };
}

t.test('an exit loses nothing', async (t) => {
  const { lines, code } = await child(
    `for (let i = 0; i < 1000; i++) log.warn('again', { reason: 'x' }); log.error('failed', { reason: 'y' }); process.exit(3);`,
  );
  t.equal(code, 3);
  const events = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  t.same(
    events.map(({ event, repeated }) => [event, repeated]),
    [...Array(FEW).fill(['again', undefined]), ['failed', undefined], ['again', 1000 - FEW]],
  );
});

t.test('a fold that is open keeps no process alive', async (t) => {
  const { lines, code } = await child(`for (let i = 0; i < 10; i++) log.info('again');`);
  t.equal(code, 0);
  t.match(lines.at(-1), `"repeated":${10 - FEW}`);
});

t.test('a reader that goes away stops nothing, and what is written then piles up nowhere', async (t) => {
  const { code } = await child(
    `log.info('ready');
     await new Promise((resolve) => setTimeout(resolve, 300));
     const kept = () => { gc(); const { heapUsed, external } = process.memoryUsage(); return heapUsed + external; };
     const before = kept();
     const reason = 'x'.repeat(2000);
     for (let i = 0; i < 40_000; i++) log.info('different', { i, reason });
     process.exit(kept() - before < 20e6 ? 7 : 8);`,
    'ready',
  );
  t.equal(code, 7);
});
