/**
 * What an operator reads when weftd and etcd do not get together: one line that says what failed, on what, and what to do. What will not pass by itself
 * (a certificate, a password, a config) ends the daemon with exit code 1; what may pass (nobody answers, no config yet) is said
 * once and waited for. Through the real weftd, in a namespace with an interface and nothing else.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Lab, type Namespace, sleep } from '../../race/hosts.js';
import { until } from '../hosts/lib/embedded.js';
import { DAEMON, impossible } from '../hosts/lib/weft.js';
import { Etcd, type EtcdOptions, etcdMissing } from '../lib/etcd.js';

const why = impossible() ?? etcdMissing();
t.setTimeout(0);

const PREFIX = '/coreos.com/network';
const CONFIG = '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}';
const GOOD = { key: `${PREFIX}/config`, value: CONFIG };
const PASSWORD = 'a-secret-of-ours';

interface Said {
  /** null: it was still running when it was ended. */
  readonly code: number | null;
  /** It forwarded. */
  readonly ready: boolean;
  readonly lines: readonly string[];
}

interface Look {
  /** Milliseconds after its first line, after which a daemon that has not ended, nor become ready, is one that waits. */
  readonly patience?: number;
  readonly env?: Readonly<Record<string, string>>;
  /** How one that waits is ended; by default so that it has nothing more to say. */
  readonly stop?: NodeJS.Signals;
  /** What happens after its first line. */
  readonly meanwhile?: () => Promise<unknown>;
}

/** For a first line, on a machine that does much else. */
const START_WITHIN_MS = 30_000;
/** What a daemon that waits has to say anything more. */
const WAITING: Look = { patience: 2500 };

/** A namespace for daemons: one that forwards, or several that do not get so far. */
class Place {
  readonly lab = new Lab('ht-etcd-refusals');
  readonly ns: Namespace = this.lab.namespace('a');
  #runs = 0;

  constructor(t: Test) {
    t.teardown(() => this.lab.close());
    this.lab.veth(this.ns, 'eth0', this.lab.namespace('nobody'), 'eth0');
    this.ns.ip('addr add 192.168.77.1/24 dev eth0');
  }

  /** `config`: null, none. */
  async etcd(t: Test, options: EtcdOptions = {}, config: string | null = CONFIG): Promise<Etcd> {
    const etcd = await Etcd.start({ namespace: this.ns.name, clientPort: 2379 + 100 * ++this.#runs, ...options });
    t.teardown(() => etcd.close());
    if (config !== null && !options.expiredServer) await etcd.put(GOOD.key, config);
    return etcd;
  }

  /** What weftd says with these flags, until it ends, is ready, or only waits. */
  async run(
    flags: readonly string[],
    { patience = 15_000, env = {}, meanwhile, stop = 'SIGKILL' }: Look = {},
  ): Promise<Said> {
    const name = `weftd-${++this.#runs}`;
    const dir = join(this.lab.dir, name);
    mkdirSync(dir);
    const own = ['--iface=eth0', `--state-dir=${dir}/state`, `--subnet-file=${dir}/subnet.env`];
    const daemon = this.ns.start(name, process.execPath, [DAEMON, ...flags, ...own], {
      env: { ...process.env, ...env },
    });
    const isReady = (): boolean => daemon.log().includes('"event":"ready"');
    const settled = (): boolean => !daemon.running || isReady();
    await until(() => settled() || daemon.log() !== '', START_WITHIN_MS);
    await meanwhile?.();
    if (stop === 'SIGKILL') await until(settled, patience);
    const ready = isReady();
    if (daemon.running) await daemon.stop(stop);
    return { code: daemon.child.exitCode, ready, lines: daemon.log().split('\n').filter(Boolean) };
  }
}

/** Words that belong to whoever reads a stack trace, not to an operator; and bare codes without what they mean. */
const JARGON = /\bat \S+:\d+:\d+|node_modules|\[object|undefined|NaN|GRPCGeneric|EtcdError|Error: Error/;

/** One line, which says all of `words`, and nothing that only a programmer reads. */
function assertLine(t: Test, line: string, words: readonly RegExp[], what: string): void {
  t.comment(`${what}: ${line}`);
  for (const word of words) t.match(line, word, `${what}: says ${word.source}`);
  t.notMatch(line, JARGON, `${what}: in an operator's words`);
  t.notMatch(line, PASSWORD, `${what}: and keeps the password`);
  t.ok(line.length < 400, `${what}: it can be read at once`);
}

/** Exit code 1 and one line on it. */
function assertRefused(t: Test, said: Said, words: readonly RegExp[], what: string): void {
  t.equal(said.code, 1, `${what}: exit code 1`);
  t.equal(said.lines.length, 1, `${what}: one line: ${said.lines.join(' | ')}`);
  t.match(said.lines.at(-1) ?? '', /^weftd: /, `${what}: weftd's`);
  assertLine(t, said.lines.at(-1) ?? '', words, what);
}

/** It goes on trying, and said so once. */
function assertWaits(t: Test, said: Said, words: readonly RegExp[], what: string): void {
  t.same([said.code, said.ready], [null, false], `${what}: it goes on trying`);
  // What interface it would use is no complaint.
  const complaints = said.lines.filter((line) => !line.includes('"event":"underlay"'));
  t.equal(complaints.length, 1, `${what}: one line: ${complaints.join(' | ')}`);
  assertLine(t, complaints.at(-1) ?? '', words, what);
}

/** Either of them: two programs that speak past each other are a mistake that somebody may put right at either end. */
function assertTold(t: Test, said: Said, words: readonly RegExp[], what: string): void {
  if (said.code === null) assertWaits(t, said, words, what);
  else assertRefused(t, said, words, what);
}

/** Most of their time is waiting, each in a namespace of its own. */
const beside = (name: string, work: (t: Test) => Promise<void>): void => {
  t.jobs = 4;
  void t.test(name, { buffered: true }, work);
};

const at = (etcd: Etcd): RegExp => new RegExp(new URL(etcd.endpoints[0]).host.replaceAll('.', '\\.'));

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  beside('certificates', async (t) => {
    const place = new Place(t);
    const etcd = await place.etcd(t, { tls: 'mutual' });
    const { ca, client, expiredClient, wrongCa, wrongClient } = etcd.certificates!;
    const flags = (cafile: string, pair: { cert: string; key: string }): string[] => [
      `--etcd-endpoints=${etcd.endpoints[0]}`,
      `--etcd-cafile=${cafile}`,
      `--etcd-certfile=${pair.cert}`,
      `--etcd-keyfile=${pair.key}`,
    ];
    const [wrong, expired, another, none, mismatch] = await Promise.all([
      place.run(flags(wrongCa, client)),
      place.run(flags(ca, expiredClient)),
      place.run(flags(ca, wrongClient)),
      place.run([`--etcd-endpoints=${etcd.endpoints[0]}`, `--etcd-cafile=${ca}`]),
      place.run(flags(ca, { cert: client.cert, key: wrongClient.key })),
    ]);
    assertRefused(t, wrong, [at(etcd), /certificate/i, /--etcd-cafile/], 'a CA that did not sign it');
    assertRefused(
      t,
      expired,
      [/certificate/i, /expired/i, /expired-client\.crt|--etcd-certfile/],
      'our certificate expired',
    );
    assertRefused(t, another, [at(etcd), /certificate/i, /--etcd-certfile/], "another CA's client");
    assertRefused(t, none, [at(etcd), /certificate/i, /--etcd-certfile/], 'no certificate of ours');
    assertRefused(t, mismatch, [/key/i, /--etcd-keyfile|wrong-client\.key/], "another certificate's key");

    const missing = join(place.lab.dir, 'no-such.pem');
    const garbage = join(place.lab.dir, 'garbage.pem');
    writeFileSync(garbage, 'no certificate\n');
    const [lost, rubbish, alone] = await Promise.all([
      place.run(flags(missing, client)),
      place.run(flags(garbage, client)),
      place.run([`--etcd-endpoints=${etcd.endpoints[0]}`, `--etcd-cafile=${ca}`, `--etcd-certfile=${client.cert}`]),
    ]);
    assertRefused(
      t,
      lost,
      [/no-such\.pem/, /no such file|does not exist|ENOENT/i, /--etcd-cafile/],
      'a file that is not there',
    );
    assertRefused(t, rubbish, [/garbage\.pem/, /certificate/i, /--etcd-cafile/], 'a file that is no certificate');
    t.ok(alone.code === 1 || alone.code === 2, `a certificate without its key: exit code ${alone.code}`);
    t.equal(alone.lines.length, 1, 'a certificate without its key: one line');
    assertLine(t, alone.lines[0], [/--etcd-certfile/, /--etcd-keyfile/], 'a certificate without its key');

    const right = await place.run(flags(ca, client));
    t.ok(right.ready, `with the right ones it starts: ${right.lines.at(-1)}`);
  });

  beside("the server's certificate has expired", async (t) => {
    const place = new Place(t);
    const etcd = await place.etcd(t, { tls: 'server', expiredServer: true });
    const said = await place.run([`--etcd-endpoints=${etcd.endpoints[0]}`, `--etcd-cafile=${etcd.certificates?.ca}`]);
    assertRefused(t, said, [at(etcd), /certificate/i, /expired/i], 'expired');
  });

  beside('users', async (t) => {
    const place = new Place(t);
    const user = { name: 'flanneld', password: PASSWORD, prefix: '/coreos.com/' };
    const etcd = await place.etcd(t, { user });
    const flags = (...more: string[]): string[] => [`--etcd-endpoints=${etcd.endpoints[0]}`, ...more];
    const as = (name: string, password: string): string[] =>
      flags(`--etcd-username=${name}`, `--etcd-password=${password}`);
    const [wrong, stranger, nobody, elsewhere] = await Promise.all([
      place.run(as('flanneld', 'not-it')),
      place.run(as('stranger', PASSWORD)),
      place.run(flags()),
      place.run([...as('flanneld', PASSWORD), '--etcd-prefix=/other/network']),
    ]);
    assertRefused(t, wrong, [at(etcd), /flanneld/, /password/i, /--etcd-password/], 'a wrong password');
    t.notMatch(wrong.lines.join(), 'not-it', 'a wrong password: is not printed');
    assertRefused(t, stranger, [at(etcd), /stranger/, /--etcd-username/], 'no such user');
    assertRefused(t, nobody, [at(etcd), /user/i, /--etcd-username/], 'no user at all');
    assertRefused(t, elsewhere, [at(etcd), /flanneld/, /may not|permission/i, /\/other\/network/], 'not permitted');
    const right = await place.run(flags(), {
      env: { FLANNELD_ETCD_USERNAME: 'flanneld', FLANNELD_ETCD_PASSWORD: PASSWORD },
    });
    t.ok(right.ready, `with the right ones it starts: ${right.lines.at(-1)}`);

    // It may read all, and write nothing.
    await etcd.ctl('user', 'add', `reader:${PASSWORD}`);
    await etcd.ctl('role', 'add', 'reader');
    await etcd.ctl('role', 'grant-permission', 'reader', '--prefix=true', 'read', '/coreos.com/');
    await etcd.ctl('user', 'grant-role', 'reader', 'reader');
    const reader = await place.run(as('reader', PASSWORD));
    assertRefused(t, reader, [at(etcd), /reader/, /may not|permission/i, /\/coreos\.com\/network/], 'may read only');
  });

  beside('a user for an etcd that asks for none', async (t) => {
    const place = new Place(t);
    const etcd = await place.etcd(t);
    const said = await place.run([...etcd.flags, '--etcd-username=flanneld', `--etcd-password=${PASSWORD}`]);
    t.ok(said.ready, `it starts, as flannel does: ${said.lines.at(-1)}`);
  });

  beside('TLS or not', async (t) => {
    const place = new Place(t);
    const [plain, secure] = await Promise.all([place.etcd(t), place.etcd(t, { tls: 'server' })]);
    const ca = `--etcd-cafile=${secure.certificates?.ca}`;
    const [http, https] = await Promise.all([
      place.run([`--etcd-endpoints=${secure.endpoints[0].replace('https', 'http')}`], WAITING),
      place.run([`--etcd-endpoints=${plain.endpoints[0].replace('http', 'https')}`, ca], WAITING),
    ]);
    assertTold(t, http, [at(secure), /https:\/\//], 'http to a TLS port');
    assertTold(t, https, [at(plain), /http:\/\//], 'TLS to a plain port');
  });

  beside('nobody there', async (t) => {
    const place = new Place(t);
    const etcd = await place.etcd(t);
    const dead = 'http://127.0.0.1:2222';
    const [refused, silent] = await Promise.all([
      place.run([`--etcd-endpoints=${dead}`], WAITING),
      // On a link where nobody answers at all.
      place.run(['--etcd-endpoints=http://192.168.77.250:2379'], WAITING),
    ]);
    assertWaits(t, refused, [/127\.0\.0\.1:2222/], 'connection refused');
    assertWaits(t, silent, [/192\.168\.77\.250:2379/], 'no answer');
    const second = await place.run([`--etcd-endpoints=${dead},${etcd.endpoints[0]}`]);
    t.ok(second.ready, `a dead first endpoint is no trouble: ${second.lines.at(-1)}`);
    t.same(
      second.lines.filter((line) => !/"level":"(debug|info)"/.test(line)),
      [],
      'nor worth a line',
    );
    const begun = performance.now();
    const stopped = await place.run(['--etcd-endpoints=http://192.168.77.250:2379'], { stop: 'SIGTERM' });
    t.equal(stopped.code, 0, `SIGTERM ends one that waits, ${Math.round(performance.now() - begun)} ms after it began`);
    for (const [endpoint, what] of [
      ['ftp://127.0.0.1:2379', 'another scheme'],
      ['http://127.0.0.1:99999', 'a port that is none'],
      ['http://', 'nothing'],
    ]) {
      const said = await place.run([`--etcd-endpoints=${endpoint}`]);
      t.ok(said.code === 1 || said.code === 2, `${what}: exit code ${said.code}`);
      t.equal(said.lines.length, 1, `${what}: one line`);
      assertLine(t, said.lines[0] ?? '', [/--etcd-endpoints|FLANNELD_ETCD_ENDPOINTS/], what);
    }
  });

  beside('configs that cannot be used', async (t) => {
    const place = new Place(t);
    const etcd = await place.etcd(t, {}, null);
    const cases: readonly (readonly [string, readonly RegExp[], string])[] = [
      ['{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}', [/ipip/], 'ipip'],
      ['{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}', [/wireguard/], 'wireguard'],
      ['{"Network":"10.5.0.0/16","Backend":{"Type":"extension"}}', [/extension/], 'extension'],
      ['{"Network":"10.5.0.0/16","Backend":{"Type":"aws-vpc"}}', [/aws-vpc/], 'a cloud'],
      ['{"Network":"10.5.0.0/16","Backend":{"Type":"nonsense"}}', [/nonsense/], 'no backend'],
      ['{"Network":"10.5.0.0/29"}', [/Network/, /10\.5\.0\.0\/29/], 'a network that is too small'],
      ['{"Network":"10.5.0.0/16","SubnetLen":31}', [/SubnetLen/, /31/], 'subnets that are too small'],
      ['{"Network":"10.5.0.0/16","SubnetLen":17}', [/SubnetLen/, /17/], 'subnets that are too large'],
      ['{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}', [/SubnetMin/, /10\.6\.0\.0/], 'a first subnet outside'],
      ['{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.7"}', [/SubnetMin/, /10\.5\.1\.7/], 'one that is not aligned'],
      ['{"EnableIPv4":false}', [/EnableIPv/], 'no family'],
      ['{"SubnetLen":24}', [/Network/], 'no network'],
      ['{"Network":', [/JSON/], 'half a text'],
      ['', [/JSON|empty/], 'nothing'],
    ];
    const told: Said[] = [];
    const read = async (i: number): Promise<void> => {
      await etcd.put(`/case-${i}/config`, cases[i][0]);
      told[i] = await place.run([...etcd.flags, `--etcd-prefix=/case-${i}`], WAITING);
    };
    for (let i = 0; i < cases.length; i += 3) {
      await Promise.all([i, i + 1, i + 2].filter((one) => one < cases.length).map(read));
    }
    for (const [i, [, words, what]] of cases.entries()) {
      // As flannel, it may wait for a better one.
      assertTold(t, told[i], [new RegExp(`/case-${i}/config`), ...words], what);
    }
  });

  beside('no config yet', async (t) => {
    const place = new Place(t);
    const etcd = await place.etcd(t, {}, null);
    const { ready, lines } = await place.run(etcd.flags, {
      meanwhile: async () => {
        await sleep(3500);
        await etcd.put(GOOD.key, CONFIG);
      },
    });
    t.ok(ready, 'it starts when there is one');
    const before = lines.filter((line) => line.includes('"level":"warn"'));
    t.equal(before.length, 1, `one line until then: ${before.join(' | ')}`);
    t.ok(lines.length <= 3, `${lines.length} lines in all`);
    assertLine(t, before[0] ?? '', [/\/coreos\.com\/network\/config/, at(etcd)], 'no config yet');
  });
}
