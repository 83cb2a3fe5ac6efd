/**
 * `weft explain` against real daemons: for thousands of random addresses, the counters that it names are those that move in the worker
 * when such a packet comes from the device, and the peers those that are sent to. Then every reason to drop that can be brought about
 * here, and what only the kernel decides.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Host, Lab, type Namespace, run, sleep, twoHosts } from '../../race/hosts.js';
import type { ExplainReport } from '../../src/commands/explain.js';
import type { CountersAnswer, ExplainAnswer } from '../../src/inspect/protocol.js';
import { type DropCase, LAYER_2_DROPS, LAYER_3_DROPS, outFrame, questionOf, STRANGER } from '../lib/drops.js';
import { ethernet } from '../lib/frames.js';
import { icmp, packet, pattern, random, udp } from '../lib/packets.js';
import { their4, theirMac } from '../lib/rig-l2.js';
import { PYTHON } from './lib/agents.js';
import { Asking } from './lib/asking.js';
import { BROADCAST, mac, macOf, makeSites, sendDatagrams, startSwitch, VNI } from './lib/l2.js';
import { type Assertions, FULL, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible(PYTHON);
const CLI = fileURLToPath(new URL('../../src/cli.js', import.meta.url));
t.setTimeout(0);

/** Addresses in a batch: explained, then sent, then the counters compared. */
const BATCH = 100;
const ADDRESSES = { layer3: FULL ? 20_000 : 8000, layer2: FULL ? 10_000 : 2000 };

const IPV4 = 0x0800;
const IPV6 = 0x86dd;

/** Gives packets to a device as they are, as the host's own kernel would. */
class DeviceSender {
  readonly #child: ReturnType<Namespace['spawn']>;
  #heard = '';
  #wake: (() => void) | undefined;

  constructor(ns: Namespace, device: string) {
    const script = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
for line in sys.stdin:
    words = line.split()
    for word in words:
        kind, bytes_ = word.split(':')
        s.sendto(bytes.fromhex(bytes_), (sys.argv[1], int(kind)))
    print('sent', flush=True)`;
    this.#child = ns.spawn(PYTHON, ['-c', script, device], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#heard += text;
      this.#wake?.();
    });
  }

  /** Resolves when the device's queue has them. */
  async send(type: number, packets: readonly Uint8Array[]): Promise<void> {
    this.#heard = '';
    const line = packets.map((bytes) => `${type}:${Buffer.from(bytes).toString('hex')}`).join(' ');
    this.#child.stdin?.write(`${line}\n`);
    while (!this.#heard.includes('sent')) {
      if (this.#child.exitCode !== null) throw new Error('the sender ended');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 100);
      });
    }
  }

  end(): void {
    this.#child.stdin?.end();
  }
}

interface Case {
  readonly question: Readonly<Record<string, string | number>>;
  readonly type: number;
  readonly bytes: Uint8Array;
}

/** What is compared: by how much counters and peers' packets moved. ICMP errors that the rate limit held back count as made. */
type Moves = Record<string, number>;

const SIDES = /^(outbound|tables)\./;

function movesBetween(before: CountersAnswer, now: CountersAnswer): Moves {
  const moves: Moves = {};
  const sum = (name: string, by: number): void => {
    if (by !== 0) moves[name] = (moves[name] ?? 0) + by;
  };
  for (const [name, value] of Object.entries(now.counters)) {
    if (SIDES.test(name)) sum(name, value - (before.counters[name] ?? 0));
  }
  const sentBefore = new Map(before.peers.map(({ name, packetsOut }) => [name, packetsOut]));
  for (const { name, packetsOut } of now.peers) sum(`to ${name}`, packetsOut - (sentBefore.get(name) ?? 0));
  return settled(moves);
}

const UNTOLD = ['send_calls', 'messages_sent', 'socket_full', 'device_pulled_bytes', 'socket_sent_bytes'];

function settled(moves: Moves): Moves {
  const limited = moves['outbound.icmp_limited'] ?? 0;
  for (const name of ['outbound.icmp_made', 'outbound.icmp_sent']) {
    if (limited > 0) moves[name] = (moves[name] ?? 0) + limited;
  }
  delete moves['outbound.icmp_limited'];
  for (const name of UNTOLD) delete moves[`outbound.${name}`];
  return Object.fromEntries(Object.entries(moves).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function movesOf(answers: readonly ExplainAnswer[], nameAt: ReadonlyMap<string, string>): Moves {
  const moves: Moves = {};
  for (const { counters, datagrams } of answers) {
    for (const [name, by] of Object.entries(counters)) {
      if (SIDES.test(name)) moves[name] = (moves[name] ?? 0) + by;
    }
    for (const { to } of datagrams) {
      const name = `to ${nameAt.get(to) ?? to}`;
      moves[name] = (moves[name] ?? 0) + 1;
    }
  }
  return settled(moves);
}

/** The counters once a batch has gone through: `device_pulled` has moved by as much, and nothing moves any more. */
async function after(asking: Asking, before: CountersAnswer, count: number): Promise<CountersAnswer> {
  const pulled = ({ counters }: CountersAnswer): number => counters['outbound.device_pulled'];
  const deadline = Date.now() + 10_000;
  for (let last = before; ; ) {
    const now = await asking.counters();
    const through = pulled(now) - pulled(before) >= count;
    const still = JSON.stringify(now.counters) === JSON.stringify(last.counters);
    if ((through && still) || Date.now() > deadline) return now;
    last = now;
    await sleep(2);
  }
}

/** '' if a batch went as explained. What the kernel sends by itself may come between: then once more. */
async function tryBatch(
  asking: Asking,
  sender: DeviceSender,
  batch: readonly Case[],
  nameAt: ReadonlyMap<string, string>,
): Promise<{ readonly problem: string; readonly answers: readonly ExplainAnswer[] }> {
  for (let again = 0; ; again++) {
    const answers: ExplainAnswer[] = [];
    for (const { question } of batch) answers.push(await asking.explain(question));
    const before = await asking.counters();
    for (const type of new Set(batch.map((one) => one.type))) {
      const packets = batch.filter((one) => one.type === type).map((one) => one.bytes);
      await sender.send(type, packets);
    }
    const was = movesBetween(before, await after(asking, before, batch.length));
    const said = movesOf(answers, nameAt);
    if (JSON.stringify(said) === JSON.stringify(was)) return { problem: '', answers };
    if (again === 2) return { problem: `said ${JSON.stringify(said)}, was ${JSON.stringify(was)}`, answers };
  }
}

async function tryAll(
  t: Assertions,
  asking: Asking,
  sender: DeviceSender,
  cases: { readonly count: number; readonly next: () => Case },
  nameAt: ReadonlyMap<string, string>,
): Promise<Map<string, number>> {
  const verdicts = new Map<string, number>();
  const problems: string[] = [];
  for (let done = 0; done < cases.count && problems.length < 3; done += BATCH) {
    const batch = Array.from({ length: BATCH }, cases.next);
    const { problem, answers } = await tryBatch(asking, sender, batch, nameAt);
    if (problem !== '') problems.push(`batch ${done / BATCH}: ${problem}`);
    for (const { verdict, reason } of answers) {
      verdicts.set(reason ?? verdict, (verdicts.get(reason ?? verdict) ?? 0) + 1);
    }
  }
  t.same(
    problems,
    [],
    `${cases.count} random addresses went as explained: ${[...verdicts].map((pair) => pair.join(' ')).join(', ')}`,
  );
  return verdicts;
}

/** Peers who are nowhere: what is sent to them leaves, and ends in the next host, which is not theirs. */
interface Absent {
  readonly name: string;
  readonly address: string;
  readonly mtu?: number;
}

const absent = (count: number): Absent[] =>
  Array.from({ length: count }, (_, i) => ({
    name: `n${i}`,
    address: `192.168.77.${100 + i}`,
    ...(i % 3 === 0 ? { mtu: 1308 + 2 * i } : {}),
  }));

function reach(from: Host, via: Host, peers: readonly Absent[]): void {
  const lladdr = macOf(via.ns, 'eth0');
  from.ns.ip(...peers.map(({ address }) => `neigh replace ${address} lladdr ${lladdr} dev eth0 nud permanent`));
}

/** Prefixes of all lengths from 22 to 30 in 10.5.4.0 to 10.5.255.255, none in another; some are nobody's. */
function* prefixes4(next: () => number): Generator<string | undefined> {
  for (let at = 4 << 8; at < 65_536; ) {
    const size = 1 << (2 + Math.floor(next() * 9));
    const start = Math.ceil(at / size) * size;
    if (start + size > 65_536) return;
    yield next() < 0.7 ? `10.5.${start >> 8}.${start & 255}/${32 - Math.log2(size)}` : undefined;
    at = start + size;
  }
}

/** fd00:5:0:400::/56 and on: one prefix of 56 to 72 bits in each. */
function* prefixes6(next: () => number): Generator<string | undefined> {
  for (let at = 4; at < 256; at++) {
    yield next() < 0.7 ? `fd00:5:0:${at.toString(16)}00::/${56 + Math.floor(next() * 17)}` : undefined;
  }
}

function randomIp(next: () => number, source4: string, source6: string): Case {
  const some = (most: number): number => Math.floor(next() * most);
  const v4 = next() < 0.5;
  const tail = next() < 0.5 ? '' : `${some(65_536).toString(16)}:`;
  const to = v4
    ? `10.5.${[2, 3, some(256), some(256)][some(4)]}.${some(256)}`
    : `fd00:5:0:${some(65_536).toString(16)}:${tail}:${(1 + some(65_535)).toString(16)}`;
  const header = v4 ? 20 : 40;
  const size = header + 8 + some(1472 - header - 7);
  const [df, ttl] = [next() < 0.5, next() < 0.95 ? 64 : some(3)];
  const echo = icmp(v4 ? 8 : 128, new Uint8Array(size - header - 8), !v4);
  const ip = { source: v4 ? source4 : source6, destination: to, df, ttl, id: 0, flow: 0 };
  return {
    question: { to, size, ttl, ...(df ? { df: 1 } : {}) },
    type: v4 ? IPV4 : IPV6,
    bytes: packet(ip, echo),
  };
}

/** A datagram or a packet of a drop, given to a daemon. */
async function bringAbout(a: Host, b: Host, sender: DeviceSender, drop: DropCase, port: number): Promise<void> {
  const { device, datagram, tos, stranger } = drop;
  if (device) await sender.send(IPV4, [device.bytes]);
  const options = { port, ...(tos === undefined ? {} : { tos }), from: stranger ? STRANGER : b.underlay4 };
  if (datagram) await sendDatagrams(b.ns, a.underlay4, [datagram], options);
}

/** Each of `drops` is named by explain, and then happens. */
async function assertDrops(
  t: Assertions,
  asking: Asking,
  drops: Readonly<Record<string, DropCase>>,
  question: (drop: DropCase) => Record<string, string | number>,
  bring: (drop: DropCase) => Promise<void>,
): Promise<void> {
  for (const [name, drop] of Object.entries(drops)) {
    const answer = await asking.explain(question(drop));
    t.same(
      [answer.verdict, answer.reason, answer.counters[name]],
      ['dropped', name.split('.')[1], 1],
      `${name} is named`,
    );
    await assertMoves(t, asking, name, () => bring(drop));
  }
}

async function assertMoves(t: Assertions, asking: Asking, name: string, bring: () => Promise<unknown>): Promise<void> {
  const before = (await asking.counters()).counters[name];
  await bring();
  const deadline = Date.now() + 5000;
  let now = before;
  while (now === before && Date.now() < deadline) {
    now = (await asking.counters()).counters[name];
    await sleep(5);
  }
  t.ok(now > before, `${name} is what happens`);
}

const without = (drops: Readonly<Record<string, DropCase>>, ...names: string[]): Record<string, DropCase> =>
  Object.fromEntries(Object.entries(drops).filter(([name]) => !names.includes(name)));

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('layer 3', async (t) => {
    const lab = new Lab('ht-explain3');
    t.teardown(() => lab.close());
    const next = random(3);
    const [a, b] = twoHosts(lab);
    const others = absent(30).map((peer) => ({ ...peer, subnets: [] as string[] }));
    for (const prefix of [...prefixes4(next), ...prefixes6(next)]) {
      if (prefix !== undefined) others[Math.floor(next() * others.length)].subnets.push(prefix);
    }
    const c = { name: 'c', address: '192.168.77.3', mtu: 1028, subnets: ['10.5.3.0/24'] };
    const peersA = join(lab.dir, 'peers-a.json');
    const entryB = { name: 'b', address: b.underlay4, subnets: [b.subnet4, b.subnet6] };
    writeFileSync(peersA, JSON.stringify({ peers: [entryB, c, ...others] }));
    b.ns.ip(`addr add ${STRANGER}/24 dev eth0`);
    reach(a, b, [...others, c]);
    const weft = await Weft.start(a, { peers: peersA, args: ['--source-check', 'strict'] });
    await Weft.start(b, { peers: writePeers(lab, [a, b]) });
    const asking = new Asking(weft);
    const sender = new DeviceSender(a.ns, 'flannel0');
    t.teardown(() => {
      asking.close();
      sender.end();
    });
    const nameAt = new Map([entryB, c, ...others].map(({ name, address }) => [`${address}:8285`, name]));

    await t.test('random addresses', async (t) => {
      await asking.explain({ to: 'b' }); // makes what it needs
      const resident = asking.resident();
      const cases = { count: ADDRESSES.layer3, next: () => randomIp(next, '10.5.1.0', 'fd00:5:0:1::') };
      const verdicts = await tryAll(t, asking, sender, cases, nameAt);
      for (const verdict of ['sent', 'no_route', 'too_big', 'ttl_exceeded']) {
        t.ok((verdicts.get(verdict) ?? 0) > 20, `${verdict} is among them`);
      }
      const grown = asking.resident() - resident;
      t.ok(grown < 64 << 20, `its memory grew by ${Math.round(grown / 2 ** 20)} MiB`);
    });

    await t.test('reasons to drop', async (t) => {
      // A lie in a virtio header cannot be told by a packet socket.
      const drops = without(LAYER_3_DROPS, 'outbound.bad_offload');
      await assertDrops(
        t,
        asking,
        drops,
        (drop) => questionOf(drop, 'b'),
        (drop) => bringAbout(a, b, sender, drop, 8285),
      );
    });

    await t.test('as the command tells it, with what the kernel does before and after', async (t) => {
      const weft = async (...args: string[]) => (await a.ns.run(process.execPath, [CLI, 'explain', ...args])).stdout;
      t.match(await weft(b.client4), /^host +routes it to us: dev flannel0$/m);
      t.match(await weft(b.client4), /^verdict +sent to peer b, 1 datagram of 84 bytes$/m);
      t.match(await weft('10.5.1.1'), /^host +keeps it: 10\.5\.1\.1 is a local address of this host \(lan0\)$/m);
      t.match(await weft('192.0.2.9'), /^verdict +it does not come to weft, see host; if it did: dropped, no_route/m);
      a.ns.ip('route add 10.5.2.0/25 via 192.168.77.2');
      t.match(await weft(b.client4), /^host +does not route it to us: dev eth0 via 192\.168\.77\.2$/m);
      a.ns.ip('route del 10.5.2.0/25');
      t.match(await weft('10.5.1.2', '--in', 'b'), /^host +forwards it to lan0$/m);
      t.match(await weft('10.5.1.1', '--in', 'b'), /^host +takes it: 10\.5\.1\.1 is local \(lan0\)$/m);
      a.ns.sysctl({ 'net/ipv4/ip_forward': 0 });
      t.match(await weft('10.5.1.2', '--in', 'b'), /^host +refuses it: .*net\.ipv4\.ip_forward is 0$/m);
      a.ns.sysctl({ 'net/ipv4/ip_forward': 1 });
      const elsewhere = await run(process.execPath, [CLI, 'explain', b.client4, '--socket', asking.socketPath]);
      t.match(elsewhere.stdout, /^host +not asked: this is another network namespace/m);
      const entered = ['--net=/proc/self/ns/net', process.execPath, CLI, 'explain', b.client4, '-j'];
      const { host } = JSON.parse((await a.ns.run('nsenter', entered)).stdout) as ExplainReport;
      t.match(host, { toUs: true, deviceUp: true, route: { device: 'flannel0', mtu: 1472 } });
      const wrong = await a.ns.run(process.execPath, [CLI, 'explain']);
      t.equal(wrong.code, 2);
      t.match(wrong.stderr, /^weft: what is to be explained\? .*\n$/);
    });

    await t.test('what only the kernel decides', async (t) => {
      const out = packet({ source: '10.5.1.0', destination: b.client4, id: 0 }, udp({ payload: pattern(1400) }));
      const send = (): Promise<void> => sender.send(IPV4, [out]);
      const answer = await asking.explain({ to: b.client4, size: out.length });
      t.equal(answer.verdict, 'sent');
      const depends = answer.depends.map(({ counter }) => counter);
      t.ok(depends.includes('outbound.socket_refused') && depends.includes('outbound.path_mtu'), depends.join(' '));
      a.ns.ip('route add prohibit 192.168.77.2');
      await assertMoves(t, asking, 'outbound.socket_refused', send);
      a.ns.ip('route del prohibit 192.168.77.2', 'link set eth0 mtu 1400');
      await assertMoves(t, asking, 'outbound.path_mtu', send);
      // Control has asked the kernel since: now it is known.
      for (let i = 0; i < 100 && (await asking.explain({ to: b.client4 })).peers[0].pathMtu !== 1372; i++)
        await sleep(50);
      const narrower = await asking.explain({ to: b.client4, size: out.length, df: 1 });
      t.same([narrower.reason, narrower.peers[0].pathMtu, narrower.peers[0].plannedMtu], ['too_big', 1372, 1472]);
      a.ns.ip('link set eth0 mtu 1500');

      const incoming = packet({ source: '10.5.2.2', destination: '10.5.1.2', id: 0 }, udp());
      const delivered = await asking.explain({ in: 'b', from: '10.5.2.2', to: '10.5.1.2' });
      t.equal(delivered.verdict, 'delivered');
      t.ok(delivered.depends.some(({ counter }) => counter === 'inbound.device_refused'));
      a.ns.ip('link set flannel0 down');
      await assertMoves(t, asking, 'inbound.device_refused', () =>
        sendDatagrams(b.ns, a.underlay4, [incoming], { port: 8285, from: b.underlay4 }),
      );
    });
  });

  await t.test('layer 2', async (t) => {
    const lab = new Lab('ht-explain2');
    t.teardown(() => lab.close());
    const next = random(5);
    const some = (most: number): number => Math.floor(next() * most);
    const sites = makeSites(lab, { count: 2 });
    const [a, b] = sites;
    const others = absent(3);
    reach(a, b, others);
    const registered = [
      { name: 'b', address: b.underlay4, neighbours: [{ address: their4(0, 200), mac: theirMac(0, 200) }] },
      { ...others[0], name: 'c', mtu: 1050, neighbours: [{ address: their4(1, 200), mac: theirMac(1, 200) }] },
      ...others.slice(1),
    ];
    const peers = join(lab.dir, 'peers-a.json');
    writeFileSync(peers, JSON.stringify({ peers: registered }));
    const nameAt = new Map(registered.map(({ name, address }) => [`${address}:4789`, name]));

    const site = async (args: readonly string[]) => {
      const weft = await startSwitch(a, { peers, args });
      const asking = new Asking(weft);
      const sender = new DeviceSender(a.ns, `weft${VNI}`);
      t.teardown(() => {
        asking.close();
        sender.end();
      });
      return { weft, asking, sender };
    };
    const ours = Array.from({ length: 8 }, (_, i) => `02:0a:00:00:00:${(16 + i).toString(16)}`);
    const theirs = Array.from({ length: 50 }, (_, i) => `02:0b:00:00:00:${(16 + i).toString(16)}`);

    await t.test('random MACs', async (t) => {
      const { weft, asking, sender } = await site(['--storm-limit', 'off']);
      // What is behind our device, and behind b: both speak once.
      await sender.send(
        IPV4,
        ours.map((one) => outFrame(BROADCAST, one)),
      );
      const heard = theirs.map((one) => vxlanOf(outFrame(ours[0], one)));
      await sendDatagrams(b.ns, a.underlay4, heard, { from: b.underlay4 });
      await sleep(200);
      const cases = {
        count: ADDRESSES.layer2,
        next: (): Case => {
          const source = ours[some(8)];
          const unknown = `02:0c:00:00:${some(256).toString(16).padStart(2, '0')}:00`;
          const kinds = [theirs[some(50)], theirs[some(50)], theirMac(some(2), 200), ours[some(8)], unknown, BROADCAST];
          const destination = kinds[some(6)];
          const [size, df] = [28 + some(1423), next() < 0.5];
          const ip = { source: '192.0.2.1', destination: '192.0.2.2', df, id: 0 };
          const body = packet(ip, icmp(8, new Uint8Array(size - 28)));
          const question = { to: destination, from: source, size, ...(df ? { df: 1 } : {}) };
          return { question, type: IPV4, bytes: ethernet({ source, destination }, IPV4, body) };
        },
      };
      const verdicts = await tryAll(t, asking, sender, cases, nameAt);
      for (const verdict of ['sent', 'same_port', 'too_big']) {
        t.ok((verdicts.get(verdict) ?? 0) > 20, `${verdict} is among them`);
      }
      await weft.stop();
    });

    await t.test('reasons to drop', async (t) => {
      const { asking, sender } = await site(['--unknown-unicast', 'drop', '--storm-limit', '50']);
      await sender.send(IPV4, [outFrame(BROADCAST)]); // we are known to be here
      await sleep(100);
      const loop = Uint8Array.from(LAYER_2_DROPS['inbound.loop'].datagram ?? []);
      loop.set(mac(macOf(a.ns, `weft${VNI}`)), 8 + 6);
      // Of one network with peers that floods: the others are shown in memory.
      const here = without(
        LAYER_2_DROPS,
        'outbound.bad_offload',
        'outbound.runt',
        'outbound.no_peer',
        'outbound.not_flooded',
      );
      await assertDrops(
        t,
        asking,
        { ...here, 'inbound.loop': { datagram: loop } },
        (drop) => questionOf(drop, 'b', [VNI]),
        (drop) => bringAbout(a, b, sender, drop, 4789),
      );
      const flooded = await asking.explain({ to: BROADCAST });
      t.ok(flooded.depends.some(({ counter }) => counter === 'outbound.storm'));
      const burst = Array.from({ length: 200 }, () => outFrame(BROADCAST));
      await assertMoves(t, asking, 'outbound.storm', () => sender.send(IPV4, burst));
    });
  });
}

/** A frame as a peer sends it in our network. */
function vxlanOf(frame: Uint8Array): Uint8Array {
  return Uint8Array.from([8, 0, 0, 0, VNI >> 16, VNI >> 8, VNI & 255, 0, ...frame]);
}
