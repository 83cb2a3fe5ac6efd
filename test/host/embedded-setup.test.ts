/**
 * Every mistake in the set-up of a weftd with the embedded registry gives one line that names what, on what, and what to do;
 * exit code 1 or 2; and leaves no device behind. And the set-ups beside them that are right.
 */
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { answersPing, type Host, hostsImpossible, ipv6Works, Lab, makeHosts } from '../../race/hosts.js';
import {
  dataFiles,
  type EmbeddedOptions,
  embeddedArgs,
  readSubnetEnv,
  settle,
  startEmbedded,
  subnetsIn,
  until,
  weft,
} from '../hosts/lib/embedded.js';
import { DAEMON, type Weft } from '../hosts/lib/weft.js';

const impossible = hostsImpossible();
if (impossible) {
  t.plan(0, `SKIPPED: ${impossible}`);
  process.exit(0);
}

t.setTimeout(0);
const lab = new Lab('esetup');
t.teardown(() => lab.close());
const [a, b] = makeHosts(lab, { count: 2, join: 'bridge', clients: 'own' });

const NETWORK = '10.5.0.0/16';
const DUAL = '10.5.0.0/16,fd00:5::/48';
type Tap = Pick<typeof t, 'match' | 'equal' | 'same' | 'ok' | 'comment'>;

// --- places and processes ---

/** A registry and state directories that no other case has seen. */
interface Place {
  readonly registry: string;
  state(host: Host): string;
  subnetFile(host: Host): string;
  options(host: Host, more?: EmbeddedOptions): EmbeddedOptions;
}

let places = 0;
function newPlace(): Place {
  const folder = join(lab.dir, `place-${++places}`);
  mkdirSync(folder);
  const registry = join(folder, 'registry');
  const state = (host: Host): string => join(folder, `state-${host.letter}`);
  return {
    registry,
    state,
    subnetFile: (host) => join(state(host), 'subnet.env'),
    options: (host, more = {}) => ({ registryPath: registry, stateDir: state(host), ...more }),
  };
}

const start = (place: Place, host: Host, more?: EmbeddedOptions): Promise<Weft> =>
  startEmbedded(host, place.options(host, more));

/** Runs daemons until `work` is done, whatever it does. */
async function during(wefts: readonly Promise<Weft>[], work: (...running: Weft[]) => Promise<unknown>): Promise<void> {
  const started = await Promise.allSettled(wefts);
  const running = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  try {
    for (const one of started) if (one.status === 'rejected') throw one.reason;
    await work(...running);
  } finally {
    await Promise.all(running.map((one) => one.stop()));
  }
}

/** A place whose registry was in use and isn't any more. */
async function usedPlace(host = a, more: EmbeddedOptions = {}): Promise<Place> {
  const place = newPlace();
  await during([start(place, host, more)], async () => {});
  return place;
}

const hasDevice = (host: Host): boolean => /\bflannel0\b/.test(host.ns.runSync('ip', '-o', 'link', 'show'));

interface Refusing {
  readonly host?: Host;
  readonly code?: number | 'either';
  /** A command that runs it. */
  readonly before?: readonly string[];
}

/** Checks that weftd with these arguments ends as it should. */
async function refusesArgs(
  t: Tap,
  what: string,
  expected: RegExp,
  args: readonly string[],
  { host = a, code = 1, before = [] }: Refusing = {},
): Promise<void> {
  const [command, ...rest] = [...before, process.execPath, DAEMON, ...args];
  const done = await host.ns.run(command, rest, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 15_000 });
  t.match(done.stderr, /^weftd: [^\n]+\n$/, `${what}: one line`);
  t.match(done.stderr, expected, what);
  if (code === 'either') t.ok(done.code === 1 || done.code === 2, `${what}: exit code ${done.code}`);
  else t.equal(done.code, code, `${what}: exit code`);
  t.equal(done.stdout, '', `${what}: nothing else`);
  t.equal(hasDevice(host), false, `${what}: no device is left`);
  t.comment(done.stderr.trim());
}

const refuses = (
  t: Tap,
  what: string,
  expected: RegExp,
  place: Place,
  more: EmbeddedOptions = {},
  how: Refusing = {},
): Promise<void> =>
  refusesArgs(t, what, expected, embeddedArgs(how.host ?? a, place.options(how.host ?? a, more)), how);

/** Root, but bound by the permission bits. */
const NO_OVERRIDE = ['setpriv', '--bounding-set=-dac_override,-dac_read_search'];

// --- damage ---

const MAGIC = Buffer.from([0xde, 0xc0, 0xef, 0xbe]);

/** Where a data file's two meta pages have LMDB's magic number; the version comes right after it. */
function magicsOf(path: string): number[] {
  const bytes = readFileSync(path);
  const first = bytes.indexOf(MAGIC);
  const second = bytes.indexOf(MAGIC, first + 1);
  if (first < 0 || second < 0) throw new Error(`${path} is no LMDB file`);
  return [first, second];
}

function overwrite(path: string, offset: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, bytes, 0, bytes.length, offset);
  closeSync(fd);
}

const DAMAGES: Readonly<Record<string, (path: string) => void>> = {
  'bad magic': (path) => {
    for (const at of magicsOf(path)) overwrite(path, at, Buffer.from('none'));
  },
  'another version': (path) => {
    for (const at of magicsOf(path)) overwrite(path, at + 4, Buffer.from([77, 0, 0, 0]));
  },
  // The two meta pages are left, and those name pages that are not there.
  truncated: (path) => truncateSync(path, 2 * (magicsOf(path)[1] - magicsOf(path)[0])),
  'cut in a page': (path) => truncateSync(path, statSync(path).size - 1000),
  'something else': (path) => writeFileSync(path, 'This was a registry once.\n'.repeat(2000)),
};

// --- the cases ---

t.test('usage', async (t) => {
  const place = newPlace();
  const usage = (what: string, expected: RegExp, more: EmbeddedOptions): Promise<void> =>
    refuses(t, what, expected, place, more, { code: 2 });
  const withArgs = (...args: string[]): EmbeddedOptions => ({ args });
  const peers = join(lab.dir, 'peers.json');
  writeFileSync(peers, '{"peers":[]}');
  await usage('embedded with --peers', /--peers/, withArgs('--peers', peers));
  await usage('embedded with --subnet', /--subnet\b/, withArgs('--subnet', '10.5.1.0/24'));
  await usage('no such registry', /--registry "etcd3".*embedded/, withArgs('--registry', 'etcd3'));
  await usage('no such backend', /--backend "vxlan".*udp/, withArgs('--backend', 'vxlan'));
  await usage('--subnet-len without --network', /--subnet-len.*--network/, {
    network: null,
    args: ['--subnet-len', '24'],
  });
  await usage('one length for two networks', /--subnet-len/, { network: DUAL, args: ['--subnet-len', '24'] });
  await usage('two lengths for one network', /--subnet-len/, withArgs('--subnet-len', '24,64'));
  await usage('a length that is none', /--subnet-len.*"x"/, withArgs('--subnet-len', 'x'));
  await usage('two first subnets of one family', /--subnet-min/, withArgs('--subnet-min', '10.5.1.0,10.5.2.0'));
  await usage('a first subnet that is none', /--subnet-min.*10\.5\.1\b/, withArgs('--subnet-min', '10.5.1'));
  await usage('a lease of no time', /--lease-ttl "0"/, withArgs('--lease-ttl', '0'));
  await usage('a lease of words', /--lease-ttl "soon"/, withArgs('--lease-ttl', 'soon'));
  await usage('a limit below nothing', /--stale-limit "-1"/, withArgs('--stale-limit=-1'));
  const noPeers = ['--registry', 'static', '--network', NETWORK, '--subnet', '10.5.1.0/24', '--iface', 'eth0'];
  await refusesArgs(t, 'static without --peers', /--peers/, noPeers, { code: 2 });
  t.notOk(existsSync(place.registry), 'none of them made a registry');
});

t.test("lengths, first and last subnet: flannel's checks", async (t) => {
  const place = newPlace();
  const cases: readonly (readonly [string, RegExp, string, ...string[]])[] = [
    ['a network too small', /10\.5\.0\.0\/29/, '10.5.0.0/29'],
    ['an IPv6 network too small', /fd00:5::\/125/, 'fd00:5::/125'],
    ['subnets as large as half of it', /--subnet-len.*17/, NETWORK, '--subnet-len', '17'],
    ['subnets too small', /--subnet-len.*31/, NETWORK, '--subnet-len', '31'],
    ['IPv6 subnets too large', /--subnet-len.*49/, 'fd00:5::/48', '--subnet-len', '49'],
    ['IPv6 subnets too small', /--subnet-len.*127/, 'fd00:5::/48', '--subnet-len', '127'],
    ['first subnet elsewhere', /--subnet-min.*10\.6\.1\.0/, NETWORK, '--subnet-min', '10.6.1.0'],
    ['last subnet elsewhere', /--subnet-max.*10\.6\.1\.0/, NETWORK, '--subnet-max', '10.6.1.0'],
    ['first subnet inside another', /--subnet-min.*10\.5\.1\.5/, NETWORK, '--subnet-min', '10.5.1.5'],
    ['last subnet inside another', /--subnet-max.*10\.5\.9\.128/, NETWORK, '--subnet-max', '10.5.9.128'],
    ['first after last', /--subnet-m/, NETWORK, '--subnet-min', '10.5.9.0', '--subnet-max', '10.5.8.0'],
    ['of a family that is not there', /--subnet-min.*fd00:5:0:1::/, NETWORK, '--subnet-min', 'fd00:5:0:1::'],
  ];
  for (const [what, expected, network, ...args] of cases) {
    await refuses(t, what, expected, place, { network, args }, { code: 'either' });
    const init = weft('init', '--registry-path', place.registry, '--network', network, ...args);
    t.ok(init.code === 1 || init.code === 2, `${what}: weft init too: exit code ${init.code}`);
    t.match(init.stderr, expected, `${what}: weft init says the same`);
    t.match(init.stderr, /^weft: [^\n]+\n$/, `${what}: in one line`);
  }
  t.notOk(existsSync(join(place.registry, 'data.mdb')), 'none of them made a registry');
});

t.test('weft init', async (t) => {
  const place = newPlace();
  const init = (...args: string[]): ReturnType<typeof weft> => weft('init', '--registry-path', place.registry, ...args);
  const first = init('--network', NETWORK, '--subnet-len', '26');
  t.same([first.code, first.stderr], [0, ''], 'makes a registry');
  t.match(first.stdout, /^[^\n]*created[^\n]*\n$/, 'and says so');
  const again = init('--network', NETWORK, '--subnet-len', '26');
  t.same([again.code, again.stderr], [0, ''], 'the same again is fine');
  t.match(again.stdout, /^[^\n]*already so[^\n]*\n$/, 'and it says so');
  for (const [what, args, expected] of [
    [
      'another network',
      ['--network', '10.6.0.0/16', '--subnet-len', '26'],
      /(?=.*10\.5\.0\.0\/16)(?=.*10\.6\.0\.0\/16)/,
    ],
    ['another length', ['--network', NETWORK, '--subnet-len', '25'], /(?=.*\b25\b)(?=.*\b26\b)/],
    ['another port', ['--network', NETWORK, '--subnet-len', '26', '--port', '9000'], /(?=.*\b9000\b)(?=.*\b8285\b)/],
  ] as const) {
    const done = init(...args);
    t.equal(done.code, 1, `${what}: exit code`);
    t.match(done.stderr, /^weft: [^\n]+\n$/, `${what}: one line`);
    t.match(done.stderr, expected, `${what}: says both`);
    t.comment(done.stderr.trim());
  }
  for (const [what, args, expected] of [
    ['no network', ['init', '--registry-path', place.registry], /--network/],
    ['a bad network', ['init', '--registry-path', place.registry, '--network', '10.5.0.0/33'], /10\.5\.0\.0\/33/],
    ['unknown option', ['init', '--frobnicate', '1', '--network', NETWORK], /--frobnicate/],
    ['unknown command', ['frobnicate'], /frobnicate/],
    ['too many words', ['init', 'twice', '--registry-path', place.registry, '--network', NETWORK], /./],
    [
      'no such backend',
      ['init', '--registry-path', place.registry, '--network', NETWORK, '--backend', 'x'],
      /--backend/,
    ],
  ] as const) {
    const done = weft(...args);
    t.equal(done.code, 2, `${what}: exit code`);
    t.match(done.stderr, /^weft: [^\n]+\n$/, `${what}: one line`);
    t.match(done.stderr, expected, what);
    t.comment(done.stderr.trim());
  }
  for (const args of [['--help'], ['init', '--help']]) {
    const help = weft(...args);
    t.equal(help.code, 0, `weft ${args.join(' ')}`);
    t.match(help.stdout, /init/, `weft ${args.join(' ')} tells of init`);
  }

  // Daemons need not say anything; what they say must agree.
  await during([start(place, a, { network: null }), start(place, b, { args: ['--subnet-len', '26'] })], async () => {
    for (const host of [a, b]) t.match(subnetsIn(place.subnetFile(host)).v4, /\/26$/, `${host.letter}: a /26 of it`);
    t.equal(init('--network', NETWORK, '--subnet-len', '26').code, 0, 'weft init while daemons run: already so');
  });

  const file = join(lab.dir, 'a-file');
  writeFileSync(file, '');
  const onFile = weft('init', '--registry-path', file, '--network', NETWORK);
  t.equal(onFile.code, 1, 'a file is no registry: exit code');
  t.match(onFile.stderr, /^weft: [^\n]*a-file[^\n]*\n$/, 'a file is no registry: one line');
  t.equal(readFileSync(file, 'utf8'), '', 'and is left alone');
});

t.test("what disagrees with the registry's configuration", async (t) => {
  const place = newPlace();
  const first = { args: ['--subnet-len', '25', '--subnet-min', '10.5.1.0', '--subnet-max', '10.5.9.0'] };
  await during([start(place, a, first)], async () => {
    const host = b;
    const no = (what: string, expected: RegExp, more: EmbeddedOptions): Promise<void> =>
      refuses(t, what, expected, place, more, { host });
    await no('network', /(?=.*--network)(?=.*10\.6\.0\.0\/16)(?=.*10\.5\.0\.0\/16)/, { network: '10.6.0.0/16' });
    await no('one family more', /--network/, { network: DUAL });
    await no('length', /(?=.*--subnet-len)(?=.*\b26\b)(?=.*\b25\b)/, { args: ['--subnet-len', '26'] });
    await no('first', /(?=.*--subnet-min)(?=.*10\.5\.2\.0)(?=.*10\.5\.1\.0)/, {
      args: ['--subnet-len', '25', '--subnet-min', '10.5.2.0'],
    });
    await no('last', /(?=.*--subnet-max)(?=.*10\.5\.8\.0)(?=.*10\.5\.9\.0)/, {
      args: ['--subnet-len', '25', '--subnet-max', '10.5.8.0'],
    });
    await no('port', /(?=.*--port)(?=.*\b8286\b)(?=.*\b8285\b)/, { network: null, args: ['--port', '8286'] });

    await during([start(place, b, { network: null })], async (second) => {
      t.equal(second.events('ready')[0].lease, 'new', 'a second daemon needs no --network at all');
      t.match(subnetsIn(place.subnetFile(b)).v4, /^10\.5\.[1-9]\.\d+\/25$/, 'and gets what the registry says');
    });
  });
  const other = newPlace();
  await during([start(other, a, { args: ['--port', '8299'] })], async () => {
    await during([start(other, b, { network: null })], async (second) => {
      await until(async () => (await second.sample('weft_peers')) === 1);
      const [moved, to] = [settle(a, other.subnetFile(a)), settle(b, other.subnetFile(b))];
      t.ok(await answersPing(moved.client, to.client4), "the registry's port serves those who say none");
    });
  });
});

t.test('no registry', async (t) => {
  const place = newPlace();
  const network = null;
  await refuses(t, 'none and no --network', /registry .*(--network|weft init)/, place, { network });
  mkdirSync(place.registry);
  await refuses(t, 'an empty folder and no --network', /registry .*(--network|weft init)/, place, { network });
  await during([start(place, a)], async () => t.ok(existsSync(place.registry), 'with --network it is made'));

  const within = { network: '192.168.0.0/16' };
  await refuses(t, 'the underlay inside the network', /192\.168\.77\.1.*192\.168\.0\.0\/16/, newPlace(), within);

  const file = join(lab.dir, 'not-a-folder');
  writeFileSync(file, 'mine\n');
  const fresh = newPlace();
  await refuses(t, 'a file', /not-a-folder/, fresh, { registryPath: file });
  await refuses(t, 'below a file', /not-a-folder/, fresh, { registryPath: join(file, 'registry') });
  t.equal(readFileSync(file, 'utf8'), 'mine\n', 'the file is as it was');
});

t.test('not writable', async (t) => {
  const before = NO_OVERRIDE;
  const closed = newPlace();
  mkdirSync(join(lab.dir, 'closed'));
  chmodSync(join(lab.dir, 'closed'), 0o555);
  const inside = (name: string): string => join(lab.dir, 'closed', name);
  await refuses(
    t,
    'no registry can be made',
    /closed\/registry/,
    closed,
    { registryPath: inside('registry') },
    { before },
  );
  await refuses(t, 'no state can be made', /closed\/state/, closed, { stateDir: inside('state') }, { before });
  const file = join(lab.dir, 'state-file');
  writeFileSync(file, '');
  await refuses(t, 'state directory is a file', /state-file/, closed, { stateDir: file });

  const place = newPlace();
  t.equal(weft('init', '--registry-path', place.registry, '--network', NETWORK).code, 0, 'a registry');
  for (const name of readdirSync(place.registry)) chmodSync(join(place.registry, name), 0o444);
  chmodSync(place.registry, 0o555);
  const registry = new RegExp(`${place.registry.split('/').at(-2)}/registry`);
  await refuses(t, 'a registry for reading only', registry, place, {}, { before });
  for (const name of readdirSync(place.registry)) chmodSync(join(place.registry, name), 0o000);
  await refuses(t, 'a registry that cannot be read', registry, place, {}, { before });
});

t.test('who has it already', async (t) => {
  const only = ['--subnet-min', '10.5.7.0', '--subnet-max', '10.5.7.0'];
  const place = newPlace();
  await during([start(place, a, { args: only })], async (running) => {
    t.equal(subnetsIn(place.subnetFile(a)).v4, '10.5.7.0/24', 'one subnet only: taken');
    await refuses(t, 'subnets exhausted', /subnets exhausted/, place, { network: null }, { host: b });

    b.ns.ip(`addr add ${a.underlay4}/24 dev eth0`);
    const { pid } = running.daemon.child;
    const publicIp = a.underlay4;
    const twin = new RegExp(`another weftd \\(pid ${pid}\\) has public IP 192\\.168\\.77\\.1\\b`);
    await refuses(t, 'a live twin', twin, place, { network: null, publicIp }, { host: b });
    b.ns.ip(`addr del ${a.underlay4}/24 dev eth0`);

    const stateDir = place.state(a);
    const sameState = new RegExp(stateDir.split('/').slice(-2).join('/'));
    await refuses(t, 'one state directory', sameState, place, { stateDir }, { host: b });
    const other = newPlace().registry;
    await refuses(t, 'and two registries', sameState, place, { stateDir, registryPath: other }, { host: b });
    t.ok(running.daemon.running, 'the first runs');
    t.equal(await running.sample('weft_registry_up'), 1, 'and has its registry');
    t.same(
      running.events().map(({ event }) => event),
      ['ready'],
      'and nothing to say',
    );

    await running.stop('SIGKILL');
    await during([start(place, a, { network: null })], async (next) =>
      t.equal(next.events('ready')[0].lease, 'taken over', 'a dead one is taken over'),
    );
  });
});

t.test('PID namespaces', async (t) => {
  const before = ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const place = newPlace();
  await during([start(place, a)], async () => {
    await refuses(t, 'of another one', /PID namespace/, place, { network: null }, { host: b, before });
  });
  // Nobody uses the registry now: it is as good as any.
  const args = [...before.slice(1), process.execPath, DAEMON, ...embeddedArgs(b, place.options(b))];
  const inside = b.ns.start('inside', before[0], args);
  await inside.ready('"event":"ready"', 20_000);
  await refuses(t, 'from outside', /PID namespace/, place, { network: null });
  await inside.stop('SIGKILL');
  const gone = (): boolean => a.ns.runSync('ip', 'netns', 'pids', b.ns.name).trim() === '';
  t.ok(await until(gone), 'it is gone');
  b.ns.ip('link del flannel0'); // as ever after a SIGKILL
  await during([start(place, a, { network: null })], async () => t.pass('after its death, from outside again'));
});

t.test('a damaged registry', async (t) => {
  for (const [what, damage] of Object.entries(DAMAGES)) {
    const place = await usedPlace();
    const [file, ...more] = dataFiles(place.registry);
    t.same(more, [], `${what}: one data file`);
    damage(file);
    const bytes = readFileSync(file);
    // With a snapshot of it in the state directory and without.
    await refuses(t, what, /(?=.*\/registry\b)(?=.*damaged)/i, place);
    await refuses(t, `${what}, a stranger`, /(?=.*\/registry\b)(?=.*damaged)/i, place, {}, { host: b });
    t.ok(bytes.equals(readFileSync(file)), `${what}: nobody touched it`);
    const init = weft('init', '--registry-path', place.registry, '--network', NETWORK);
    t.equal(init.code, 1, `${what}: weft init: exit code`);
    t.match(init.stderr, /^weft: [^\n]*damaged[^\n]*\n$/i, `${what}: weft init: one line`);
  }
});

t.test("a damaged state of one's own", async (t) => {
  for (const [what, damage] of Object.entries(DAMAGES)) {
    const place = await usedPlace();
    const subnet = subnetsIn(place.subnetFile(a)).v4;
    const files = dataFiles(place.state(a));
    t.equal(files.length, 1, `${what}: one data file`);
    damage(files[0]);
    await during([start(place, a)], async (running) => {
      t.equal(running.events('state_damaged').length, 1, `${what}: one line`);
      t.equal(running.events('ready')[0].lease, 'taken over', `${what}: goes on with its lease`);
      t.equal(subnetsIn(place.subnetFile(a)).v4, subnet, `${what}: on its subnet`);
      const aside = readdirSync(dirname(files[0])).filter((name) => /\.damaged-/.test(name));
      t.ok(aside.length >= 1, `${what}: moved aside: ${aside.join(' ')}`);
    });
    await during([start(place, a)], async (running) =>
      t.equal(running.events('state_damaged').length, 0, `${what}: and the next start has nothing to say`),
    );
  }
});

t.test('subnet.env', async (t) => {
  const env = (network: string, subnet: string): string =>
    `FLANNEL_NETWORK=${network}\nFLANNEL_SUBNET=${subnet}\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n`;
  const file = join(lab.dir, 'env-file');
  writeFileSync(file, '');
  const place = newPlace();
  const below = ['--subnet-file', join(file, 'subnet.env')];
  await refuses(t, 'below a file', /env-file\/subnet\.env/, place, { args: below });
  await refuses(t, 'a folder', /esetup/, place, { args: ['--subnet-file', lab.dir] });
  const before = NO_OVERRIDE;
  mkdirSync(join(lab.dir, 'shut'));
  chmodSync(join(lab.dir, 'shut'), 0o555);
  const shut = ['--subnet-file', join(lab.dir, 'shut', 'subnet.env')];
  await refuses(t, 'not writable', /shut\/subnet\.env/, place, { args: shut }, { before });

  for (const [what, text] of [
    ['garbage', Buffer.from([0, 255, 10, 61, 10, 61, 61, 0xc3, 0x28])],
    ['no address', env(NETWORK, 'banana')],
    ['of another network', env('10.9.0.0/16', '10.9.200.1/24')],
    ['of another length', env(NETWORK, '10.5.200.1/25')],
    ['empty', ''],
  ] as const) {
    const place = newPlace();
    mkdirSync(place.state(a));
    writeFileSync(place.subnetFile(a), text);
    await during([start(place, a)], async (running) => {
      t.equal(running.events('ready')[0].lease, 'new', `${what}: ignored`);
      t.match(subnetsIn(place.subnetFile(a)).v4, /^10\.5\.\d+\.0\/24$/, `${what}: replaced`);
    });
  }

  // Far from where the first free ones are.
  const reused = newPlace();
  for (const host of [a, b]) {
    mkdirSync(reused.state(host));
    writeFileSync(reused.subnetFile(host), env(NETWORK, '10.5.200.1/24'));
  }
  await during([start(reused, a)], async (running) => {
    t.equal(running.events('ready')[0].lease, 'reused', 'a subnet that is free and fits is used');
    t.equal(subnetsIn(reused.subnetFile(a)).v4, '10.5.200.0/24', 'that very one');
    await during([start(reused, b)], async (second) => {
      t.equal(second.events('ready')[0].lease, 'new', 'in use by another: another one');
      t.not(subnetsIn(reused.subnetFile(b)).v4, '10.5.200.0/24', 'really');
    });
    t.equal(subnetsIn(reused.subnetFile(a)).v4, '10.5.200.0/24', 'its owner keeps it');
  });

  const elsewhere = newPlace();
  const path = join(dirname(elsewhere.registry), 'elsewhere.env');
  await during([start(elsewhere, a, { args: ['--subnet-file', path] })], async () => {
    t.equal(readSubnetEnv(path).FLANNEL_NETWORK, NETWORK, '--subnet-file says where');
    t.notOk(existsSync(elsewhere.subnetFile(a)), 'and nowhere else');
    t.equal(statSync(path).mode & 0o777, 0o644, 'for all to read');
    t.same(
      readdirSync(dirname(path)).filter((name) => name.includes('elsewhere')),
      ['elsewhere.env'],
      'nothing is left beside it',
    );
  });
});

t.test('dual stack', async (t) => {
  if (!ipv6Works()) return t.comment('SKIPPED: the kernel runs without IPv6');
  const place = newPlace();
  const args = ['--subnet-len', '25,66'];
  await during([start(place, a, { network: DUAL, args })], async (one) => {
    const file = readSubnetEnv(place.subnetFile(a));
    t.same(
      Object.keys(file),
      [
        ...['FLANNEL_NETWORK', 'FLANNEL_SUBNET', 'FLANNEL_IPV6_NETWORK', 'FLANNEL_IPV6_SUBNET'],
        ...['FLANNEL_MTU', 'FLANNEL_IPMASQ'],
      ],
      'the lines of both families',
    );
    t.match(file.FLANNEL_SUBNET, /^10\.5\.\d+\.(1|129)\/25$/, 'IPv4 subnet');
    t.match(file.FLANNEL_IPV6_SUBNET, /^fd00:5:.*1\/66$/, 'IPv6 subnet');
    t.equal(file.FLANNEL_IPV6_NETWORK, 'fd00:5::/48', 'IPv6 network');
    t.equal((one.events('ready')[0].subnets as string[]).length, 2, 'ready names both');
    await refuses(t, 'one family less than the registry', /--network/, place, {}, { host: b });
  });

  const whole = newPlace();
  await during([start(whole, a, { network: DUAL }), start(whole, b, { network: DUAL })], async (one, two) => {
    for (const daemon of [one, two]) await until(async () => (await daemon.sample('weft_routes')) === 2);
    const [from, to] = [settle(a, whole.subnetFile(a)), settle(b, whole.subnetFile(b))];
    t.ok(await answersPing(from.client, to.client4), `IPv4: ${from.subnet4} to ${to.subnet4}`);
    t.ok(await answersPing(from.client, to.client6), `IPv6: ${from.subnet6} to ${to.subnet6}`);
  });

  const six = newPlace();
  await during([start(six, a, { network: 'fd00:5::/48' })], async () => {
    t.same(
      Object.keys(readSubnetEnv(six.subnetFile(a))),
      ['FLANNEL_IPV6_NETWORK', 'FLANNEL_IPV6_SUBNET', 'FLANNEL_MTU', 'FLANNEL_IPMASQ'],
      'IPv6 alone: its lines alone',
    );
  });
});
