/**
 * Commands through agents, and a race between "containers": hosts of a lab that are reached through agents in their network
 * namespaces only, in which /proc/sys is read-only and interfaces have other names than in a lab.
 */
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Exit, FRAME, FrameReader, frame, MAX_REQUEST, type Refusal } from '../../race/frames.js';
import {
  type Daemon,
  type Host,
  hostsImpossible,
  Lab,
  type Namespace,
  peersFile,
  run,
  sleep,
  twoHosts,
} from '../../race/hosts.js';

const programOf = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const AGENT = programOf('race/agent.js');
const RACE = programOf('race/race.js');
const DAEMON = programOf('src/main.js');

/** More takes more than CI has. */
const MEASURES = process.env.WEFT_TEST_FULL === '1' ? ['bulk', 'pps64', 'cpu', 'ping', 'rr'] : ['cpu', 'rr'];

const why = hostsImpossible();
t.setTimeout(0);

/** As a container has it. `ip netns exec` has made a mount namespace of its own. */
const READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"';

async function startAgent(ns: Namespace, socket: string): Promise<Daemon> {
  const agent = ns.start('agent', 'sh', ['-c', READ_ONLY, 'sh', process.execPath, AGENT, socket]);
  const deadline = Date.now() + 10_000;
  while (!existsSync(socket)) {
    if (!agent.running || Date.now() > deadline) throw new Error(`no agent: ${agent.lastWords()}`);
    await sleep(20);
  }
  return agent;
}

/** True once process `pid` is gone; waits up to ten seconds. */
async function gone(pid: number): Promise<boolean> {
  for (const deadline = Date.now() + 10_000; Date.now() < deadline; await sleep(20)) {
    if (!existsSync(`/proc/${pid}`)) return true;
  }
  return false;
}

/** Of this process alone. */
const SLEEP = ['sleep', `1000.${process.pid}`];

/** Starts a command that says its process id and then sleeps, ignoring the signals named. */
async function sleeper(
  ns: Namespace,
  ...ignored: string[]
): Promise<{ child: ReturnType<Namespace['spawn']>; pid: number }> {
  const trap = ignored.length > 0 ? `trap '' ${ignored.join(' ')};` : '';
  const child = ns.spawn('sh', ['-c', `${trap} echo $$; exec ${SLEEP.join(' ')}`], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const [said] = (await once(child.stdout!, 'data')) as [Buffer];
  return { child, pid: Number(said.toString()) };
}

/** A client of an agent without any manners. */
class Raw {
  readonly socket: Socket;
  output = '';
  refusal: Refusal | undefined;
  exit: Exit | undefined;
  readonly over: Promise<void>;

  constructor(path: string) {
    const reader = new FrameReader(Object.values(FRAME));
    this.socket = connect(path);
    this.over = new Promise((done) => {
      this.socket.on('error', () => {}).on('close', () => done());
      this.socket.on('data', (bytes) =>
        reader.push(bytes, (type, payload) => {
          if (type === FRAME.stdout) this.output += payload.toString();
          if (type === FRAME.refused) this.refusal = JSON.parse(payload.toString()) as Refusal;
          if (type === FRAME.exit) this.exit = JSON.parse(payload.toString()) as Exit;
          if (type === FRAME.refused || type === FRAME.exit) this.socket.destroy();
        }),
      );
    });
  }

  say(...pieces: (string | Buffer)[]): this {
    for (const piece of pieces) this.socket.write(piece);
    return this;
  }

  ask(...argv: string[]): this {
    return this.say(`${JSON.stringify({ argv })}\n`);
  }
}

async function commands(lab: Lab, a: Host): Promise<void> {
  const socket = join(lab.dir, 'one', 'far.sock');
  let agent = await startAgent(a.ns, socket);
  const far = lab.remote('far', socket);

  await t.test('a command runs there, as it would here', async (t) => {
    t.equal(statSync(socket).mode & 0o777, 0o600, 'the socket is nobody else’s');
    t.equal(statSync(dirname(socket)).mode & 0o777, 0o700, 'and so is its folder');
    t.match(far.runSync('ip', '-o', 'addr', 'show', 'eth0'), a.underlay4, 'in its network namespace');
    t.same(await far.run('sh', ['-c', 'echo out; echo err >&2; exit 7']), {
      code: 7,
      stdout: 'out\n',
      stderr: 'err\n',
    });
    far.ip('link add dummy7 type veth peer name dummy8', 'link set dummy7 up');
    t.match(a.ns.runSync('ip', 'link', 'show', 'dummy7'), ',UP', 'ip commands, in a batch');
    t.throws(
      () => far.ip('link set dummy8 up', 'link set nosuch up'),
      { message: 'ip link set nosuch up in far: Cannot find device "nosuch"' },
      'whose error names the one that failed',
    );
    t.throws(() => far.runSync('cat', '/nosuch'), { message: /^cat \/nosuch in far: cat: .*No such file/ });
    t.throws(() => far.runSync('no-such-program'), {
      message: `no-such-program in far: agent at ${socket}: no program no-such-program here`,
    });
    const env = { ...process.env, WEFT_WORD: 'two words' };
    t.equal((await far.run('sh', ['-c', 'echo "$WEFT_WORD"'], { env })).stdout, 'two words\n', 'with what env adds');
  });

  await t.test('input and output of any length', async (t) => {
    const size = 20_000_000;
    const child = far.spawn('sh', ['-c', 'cat; echo end >&2'], { stdio: ['pipe', 'pipe', 'pipe'] });
    const output = Promise.all([child.stdout!.toArray(), child.stderr!.toArray()]);
    const bytes = Buffer.alloc(size, 'weft, warp, weave; ');
    child.stdin!.end(bytes);
    const [copy, end] = (await output).map((pieces) => Buffer.concat(pieces as Buffer[]));
    t.ok(copy.equals(bytes), `${size} bytes in come out again`);
    t.equal(end.toString(), 'end\n', 'and the last line after them');
    const deaf = far.spawn('true', [], { stdio: ['pipe', 'ignore', 'ignore'] });
    deaf.stdin!.on('error', () => {});
    deaf.stdin!.write(bytes);
    t.same(await once(deaf, 'exit'), [0, null], 'a command that reads nothing ends all the same');
    const endless = far.spawn('yes', [], { stdio: ['ignore', 'pipe', 'ignore'] });
    await once(endless.stdout!, 'data');
    endless.stdout!.destroy();
    t.same(await once(endless, 'exit'), [1, null], 'and one whose output nobody reads any more');
  });

  await t.test('signals, and the end of either end', async (t) => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
      const { child, pid } = await sleeper(far);
      child.kill(signal);
      t.same(await once(child, 'exit'), [null, signal], `${signal} reaches the command, and its end is told`);
      t.ok(await gone(pid));
    }
    t.equal(
      (await far.run('sh', ['-c', 'trap "exit 9" TERM; kill $$; sleep 9'])).code,
      9,
      'which may be one of its own',
    );
    t.same(
      await once(far.spawn('sh', ['-c', 'kill -KILL $$'], { stdio: 'ignore' }), 'exit'),
      [null, 'SIGKILL'],
      'an end by a signal is one here',
    );
    const { stdout } = await far.run('sh', ['-c', 'sleep 1000 & echo $!']);
    t.ok(await gone(Number(stdout)), 'what a command leaves behind ends with it');

    const killed = await sleeper(far);
    killed.child.kill('SIGKILL');
    t.ok(await gone(killed.pid), 'the client killed: the command ends');
    const stubborn = await sleeper(far, 'TERM', 'INT');
    stubborn.child.kill('SIGKILL');
    t.ok(await gone(stubborn.pid), 'by force, where it has to be');

    const orphan = await sleeper(far);
    const words = orphan.child.stderr!.toArray();
    const exit = once(orphan.child, 'exit');
    await agent.stop('SIGKILL');
    t.same(await exit, [125, null], 'the agent killed: its client ends');
    t.equal(
      Buffer.concat((await words) as Buffer[]).toString(),
      `agent at ${socket}: it ended before the command did\n`,
    );
    process.kill(orphan.pid);
    t.match(
      (await far.run('true', [])).stderr,
      `agent at ${socket}: connect ECONNREFUSED`,
      'so does one that comes later',
    );
    agent = await startAgent(a.ns, `${socket}2`);
    await agent.stop();
    t.notOk(existsSync(`${socket}2`), 'one that is asked to end takes its socket with it');
    agent = a.ns.start('agent', process.execPath, [AGENT, socket]);
    for (const deadline = Date.now() + 10_000; (await far.run('true', [])).code !== 0; await sleep(50)) {
      if (Date.now() > deadline) throw new Error('the second agent does not answer');
    }
    t.pass('another agent takes the place of one that was killed');
    const second = await a.ns.run(process.execPath, [AGENT, socket]);
    t.same(
      [second.code, second.stderr],
      [1, `agent: an agent listens at ${socket} already\n`],
      'not of one that lives',
    );
    const open = await a.ns.run(process.execPath, [AGENT, '/tmp/weft-agent.sock']);
    t.same(
      [open.code, open.stderr.includes('others may write into /tmp')],
      [1, true],
      'nor in a folder of everybody’s',
    );
    const last = await sleeper(far);
    const ended = once(last.child, 'exit');
    await agent.stop();
    t.same(await ended, [null, 'SIGTERM'], 'an agent that ends, ends its commands first');
    t.ok(await gone(last.pid));
    agent = await startAgent(a.ns, socket);
  });

  await t.test('clients without manners', async (t) => {
    const noise = Buffer.from(Array.from({ length: 5000 }, (_, i) => (i * 7919) & 0xff).filter((byte) => byte !== 10));
    const bad: [string, Raw, string][] = [
      ['noise', new Raw(socket).say(noise, '\n'), 'the first line is no JSON'],
      ['no end of it', new Raw(socket).say(Buffer.alloc(MAX_REQUEST, 'x')), `is longer than ${MAX_REQUEST} bytes`],
      ['no command', new Raw(socket).say('{"argv":[]}\n'), 'no argv'],
      ['no words', new Raw(socket).say('{"argv":["true",7]}\n'), 'no argv'],
      ['a zero', new Raw(socket).ask('true', 'a\0b'), 'no argv'],
      ['no environment', new Raw(socket).say('{"argv":["true"],"env":{"A":1}}\n'), 'env must give each name a text'],
      ['no frame', new Raw(socket).ask(...SLEEP).say('garbage, garbage'), 'what came is no frame'],
      ['a long frame', new Raw(socket).ask(...SLEEP).say(Buffer.from([0, 255, 0, 0, 0])), 'a frame of'],
      ['no signal', new Raw(socket).ask(...SLEEP).say(frame(FRAME.signal, 'SIGNOSUCH')), 'no such signal'],
      ['silence', new Raw(socket), 'no command came'],
    ];
    for (const [name, raw, text] of bad) {
      await raw.over;
      const error = raw.refusal?.error ?? 'nothing';
      t.ok(error.includes(text) && !error.includes('\n'), `${name}: ${error}`);
    }
    t.equal((await far.run('pgrep', ['-f', `^${SLEEP.join(' ')}`])).stdout, '', 'none of their commands runs on');

    const many = Array.from({ length: 100 }, () => new Raw(socket).ask('cat'));
    const refused = (): Raw[] => many.filter((raw) => raw.refusal !== undefined);
    for (const deadline = Date.now() + 10_000; refused().length < 36 && Date.now() < deadline; ) await sleep(20);
    t.equal(refused().length, 36, 'of 100 connections, 36 are too many');
    t.match((await far.run('true', [])).stderr, '64 commands run already', 'and so is the next');
    const served = many.filter((raw) => raw.refusal === undefined);
    for (const [i, raw] of served.entries()) raw.say(frame(FRAME.stdin, `${i}`), frame(FRAME.stdin, ''));
    await Promise.all(served.map((raw) => raw.over));
    t.ok(
      served.every((raw, i) => raw.output === `${i}` && raw.exit?.code === 0),
      'the others get what is theirs',
    );
    t.equal((await far.run('true', [])).code, 0, 'then there is room again');
    await agent.stop();
  });
}

// --- the race ---

const namespacesOf = ([a, b]: readonly Host[]): readonly (readonly [string, Namespace])[] => [
  ['a', a.ns],
  ['b', b.ns],
  ['client-a', a.client],
  ['client-b', b.client],
];

/** Interfaces as containers may have them, clients whose default route leads elsewhere, a weftd in each node. */
async function likeContainers(lab: Lab, hosts: readonly Host[]): Promise<void> {
  const rename = (ns: Namespace, from: string, to: string): void =>
    ns.ip(`link set ${from} down`, `link set ${from} name ${to}`, `link set ${to} up`);
  for (const { ns, client, number } of hosts) {
    rename(ns, 'eth0', 'net7');
    rename(ns, 'lan0', 'eth0');
    client.ip(`route replace default via 10.5.${number}.254`, `route add 10.5.0.0/16 via 10.5.${number}.1`);
  }
  const peers = join(lab.dir, 'peers.json');
  writeFileSync(peers, peersFile(hosts, 4, 'v4'));
  const daemons = hosts.map(({ ns, letter, subnet4 }) => {
    const args = ['--network', '10.5.0.0/16', '--subnet', subnet4, '--iface', 'net7', '--peers', peers];
    return ns.start(`weftd-${letter}`, process.execPath, [DAEMON, ...args]);
  });
  for (const daemon of daemons) await daemon.ready('"event":"ready"');
}

async function raceBetween(lab: Lab, hosts: readonly Host[]): Promise<void> {
  const folder = join(lab.dir, 'agents');
  const race = (...words: string[]): [string, string[]] => [process.execPath, [RACE, ...words]];
  const between = ['--containers', folder, '--rounds', '1', '--seconds', '1'];
  const routes = (): string[] =>
    namespacesOf(hosts).map(([name, ns]) => `${name}: ${ns.runSync('ip', 'route')}${ns.runSync('ip', '-br', 'link')}`);

  await t.test('race --containers', async (t) => {
    await likeContainers(lab, hosts);
    const before = routes();
    // What a race leaves that was killed.
    const [a, b] = hosts;
    a.ns.ip('link add vxlan0 type vxlan id 77 dstport 4789', `route add ${b.subnet4} via ${b.underlay4}`);
    b.ns.ip(`route add blackhole ${a.subnet4}`);

    const json = join(lab.dir, 'race.json');
    const publishTo = ['--publish-to', join(lab.dir, 'published')];
    const words = race(...between, '--measures', `${MEASURES.join()},imix`, '--json', json, ...publishTo);
    const racing = a.ns.start('race-1', ...words);
    const ended = once(racing.child, 'exit');
    await racing.ready('waiting up to 60 s for the agents at ', 30_000);
    await Promise.all(namespacesOf(hosts).map(([name, ns]) => startAgent(ns, join(folder, `${name}.sock`))));
    t.same(await ended, [0, null], racing.lastWords());
    const said = racing.log();
    t.match(said, 'no imix', 'and what cannot be measured');
    t.match(said, /a: an earlier race left the device vxlan0/, 'and what it found');
    t.match(said, /\[1\/1 \d+:\d\d, about \d+ (s|min) left\] rr weft-udp → rr \d/, 'and how far it is');
    for (const row of MEASURES) {
      for (const subject of ['direct', 'kernel-vxlan', 'weft-udp']) {
        const figure = new RegExp(`"subject":"${subject}","measure":"${row}",.*"median":[\\d.]+,`);
        t.match(readFileSync(json, 'utf8'), figure, `${row} of ${subject}`);
      }
    }
    t.match(said, /\nmeasure +unit +subject +median/, 'with a table at the end');
    t.same(routes(), before, 'routes and devices are as they were');
    for (const file of ['race.md', 'race.svg', 'race.json']) t.ok(existsSync(join(lab.dir, 'published', file)), file);

    const again = await run(...race('--from', json, '--publish-to', join(lab.dir, 'again')));
    t.equal(again.code, 0, again.stderr);
    const text = (name: string): string => readFileSync(join(lab.dir, name, 'race.md'), 'utf8');
    t.equal(text('again'), text('published'), '--from writes the same');
  });

  await t.test('race --containers, interrupted', async (t) => {
    const before = routes();
    const daemon = hosts[0].ns.start(
      'race-2',
      ...race(...between, '--measures', 'cpu', '--seconds', '60', '--subjects', 'kernel-vxlan'),
    );
    await daemon.ready('kernel-vxlan: set up', 60_000);
    t.notSame(routes(), before, 'a race that is under way');
    await sleep(500);
    daemon.child.kill('SIGINT');
    t.same(await once(daemon.child, 'exit'), [130, null], 'ends');
    t.same(routes(), before, 'routes and devices are as they were');
    t.same(
      hosts.map(({ client }) => client.runSync('sh', '-c', 'ss -Htln | wc -l').trim()),
      ['0', '0'],
      'nothing runs on',
    );

    const [a, b] = hosts;
    a.ns.ip(`route add ${b.subnet4} via ${b.underlay4} proto 87`);
    const another = routes();
    const refused = await run(...race(...between, '--measures', 'ping'));
    t.equal(refused.code, 1, 'another backend, which has routes of its own');
    t.match(refused.stderr, /^race: a has weftd's route ".* proto 87": the race is for the backend udp/m);
    t.same(routes(), another, 'they are left alone');
    a.ns.ip(`route del ${b.subnet4}`);

    for (const [words, error] of [
      [['--subjects', 'fastd'], '--subjects fastd: choose from direct, kernel-vxlan, weft-udp'],
      [['--weft-args=-v'], '--weft-args: between containers'],
      [['--publish'], '--publish: the README shows a race between namespaces'],
    ] as const) {
      const { code, stderr } = await run(...race(...between, ...words));
      t.same([code, stderr.startsWith(`race: ${error}`)], [2, true], words.join(' '));
    }
  });
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  const lab = new Lab('remote');
  t.teardown(() => lab.close());
  const hosts = twoHosts(lab);
  await commands(lab, hosts[0]);
  await raceBetween(lab, hosts);
}
