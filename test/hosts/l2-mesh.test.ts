/**
 * Three hosts and one segment: of Weft, and of Weft and the kernel's vxlan device. Everybody reaches everybody, and nobody gets
 * a broadcast twice (split horizon: what came from a host never goes to a host). Hosts find each other by a peers file or by
 * an embedded registry. And several networks in one daemon, which share a port and nothing else.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { Lab, type Namespace, sleep } from '../../race/hosts.js';
import { Agent, MiB, PYTHON } from './lib/agents.js';
import { Capture } from './lib/capture.js';
import {
  addBridge,
  addStation,
  assertEverybodyOnce,
  assertTcp,
  assertUdp,
  forgetNeighbours,
  framesIn,
  HABITS,
  kernelVxlan,
  macsOf,
  makeSites,
  OVERHEAD,
  pings,
  type Site,
  type Station,
  sendToAll,
  startSwitch,
  VXLAN_PORT,
  writeSwitchPeers,
} from './lib/l2.js';
import { type Assertions, assertConserved, FULL, impossible, METRICS, Weft } from './lib/weft.js';

const why = impossible('bridge', 'tcpdump', 'ss', PYTHON);
t.setTimeout(0);

/** Who starts first has nobody to flood to. */
const ALONE = { 'outbound.no_peer': true } as const;

const SOME = FULL ? 128 * MiB : 16 * MiB;

type Kind = 'kernel' | 'weft';

/** Pairs of stations that do not reach each other, by IPv4 or IPv6. */
async function unreachable(stations: readonly Station[]): Promise<string[]> {
  const lost = await Promise.all(
    stations.flatMap((from) =>
      stations
        .filter((to) => to !== from)
        .flatMap((to) =>
          [to.address4, to.address6].map(async (address) =>
            (await pings(from, address, 3)) ? '' : `${from.name} to ${address}`,
          ),
        ),
    ),
  );
  return lost.filter(Boolean);
}

/** Everything that a mesh has to do. */
async function mesh(
  t: Assertions,
  sites: readonly Site[],
  wefts: readonly Weft[],
  expected: Readonly<Record<string, true>> = {},
): Promise<void> {
  const stations = sites.flatMap((site) => site.stations);
  const agents = await Promise.all(stations.map((station) => Agent.start(station.ns)));
  const all = stations.map((station, i) => ({ station, agent: agents[i] }));
  t.same(await unreachable(stations), [], 'everybody reaches everybody');
  const firsts = sites.map((site) => site.stations[0]);
  await assertEverybodyOnce(t, firsts, all, 'mesh', 30);

  // On the wire: one copy for each other host, sent by the host where it began, and none by those that got it.
  const [origin] = firsts;
  const captures = await Promise.all(
    sites.map((site) => Capture.start(site.ns, 'eth0', `udp dst port ${VXLAN_PORT} and src host ${site.underlay4}`)),
  );
  const broadcasts = 20;
  await sendSome(origin, broadcasts);
  const copies = [];
  for (const capture of captures) {
    await capture.stop();
    // Several datagrams may leave in one piece.
    copies.push(framesIn(capture.file).reduce((sum, bytes) => sum + occurrences(Buffer.from(bytes)), 0));
  }
  t.same(
    copies,
    sites.map((_, i) => (i === 0 ? broadcasts * (sites.length - 1) : 0)),
    'one copy for each other host, and nobody passes it on',
  );

  const flows: Promise<void>[] = [];
  for (const [i, site] of sites.entries()) {
    const to = sites[(i + 1) % sites.length].stations[0];
    const agent = agents[stations.indexOf(site.stations[0])];
    const address = i % 2 === 0 ? to.address4 : to.address6;
    flows.push(
      assertTcp(t, agent, address, `${site.letter} to the next, all at once`, { bytes: SOME, flows: 2, duplex: true }),
    );
  }
  await Promise.all(flows);
  const last = stations[stations.length - 1];
  await assertUdp(t, agents[0], last.address4, `UDP to ${last.name}`, [1, 100, 1400, 1422, 1423, 4000]);
  for (const weft of wefts) {
    const macs = await macsOf(weft);
    const wrong = stations.filter(({ mac, name }) => {
      const peer = name[0] === weft.host.letter ? null : name[0];
      return !macs.some((entry) => entry.mac === mac && entry.vni === 42 && peerOf(entry.peer) === peer);
    });
    t.same(
      wrong.map(({ name }) => name),
      [],
      `${weft.host.letter} shows at which host each station is`,
    );
  }
  if (wefts.length > 0) await assertConserved(t, wefts, 'mesh', { ...HABITS, ...expected });
}

/** With an embedded registry peers have names of its choosing; each daemon of these tests has a public IP that ends in its number. */
function peerOf(name: string | null): string | null {
  const number = /192\.168\.77\.(\d)/.exec(name ?? '')?.[1];
  return number === undefined ? name : String.fromCharCode(96 + Number(number));
}

const MARK = Buffer.from('weft-broadcast');

function occurrences(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(MARK); at >= 0; at = bytes.indexOf(MARK, at + 1)) count++;
  return count;
}

/** Broadcast frames of a type that no kernel answers. */
async function sendSome(from: Station, count: number): Promise<void> {
  const script = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
for n in range(${count}):
    s.send(b'\\xff' * 6 + bytes.fromhex('${from.mac.replaceAll(':', '')}') + b'\\x88\\xb5' + b'${MARK}' + bytes([n]) * 40)`;
  const { code, stderr } = await from.ns.run(PYTHON, ['-c', script]);
  if (code !== 0) throw new Error(`packet socket: ${stderr.trim().split('\n').at(-1)}`);
  await sleep(150);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  for (const kinds of [
    ['weft', 'weft', 'weft'],
    ['weft', 'kernel', 'weft'],
    ['kernel', 'weft', 'kernel'],
  ] as const satisfies readonly (readonly Kind[])[]) {
    await t.test(`${kinds.join(', ')}; a peers file`, async (t) => {
      const lab = new Lab('ht-l2-mesh');
      t.teardown(() => lab.close());
      const sites = makeSites(lab, { count: 3, stations: 2 });
      const peers = writeSwitchPeers(lab, sites);
      sites.forEach((site, i) => {
        if (kinds[i] === 'kernel') kernelVxlan(site, sites);
      });
      const wefts = await Promise.all(
        sites.filter((_, i) => kinds[i] === 'weft').map((site) => startSwitch(site, { peers })),
      );
      await mesh(t, sites, wefts);
    });
  }

  await t.test('an embedded registry', async (t) => {
    const lab = new Lab('ht-l2-mesh');
    t.teardown(() => lab.close());
    const sites = makeSites(lab, { count: 3, stations: 2 });
    const first = await startSwitch(sites[0], {});
    const others = await Promise.all(sites.slice(1).map((site) => startSwitch(site, {})));
    const wefts = [first, ...others];
    const stations = sites.flatMap((site) => site.stations);
    const begun = performance.now();
    let lost: string[] = ['nobody'];
    while (lost.length > 0 && performance.now() - begun < 15_000) lost = await unreachable(stations);
    t.same(lost, [], 'they find each other');
    await mesh(t, sites, wefts, ALONE);

    // One stops (its lease stays), and comes back.
    await wefts[2].stop();
    const again = await startSwitch(sites[2], {});
    const [a] = sites[0].stations;
    const [c] = sites[2].stations;
    forgetNeighbours(a, c);
    t.ok(await pings(a, c.address4, 8), 'who returns is found again');
    t.ok(await pings(c, a.address6, 8), 'and finds the others');

    // It changes its network: nothing of the old one is sent to it any more.
    await again.stop();
    const elsewhere = await startSwitch(sites[2], { vni: 43 });
    const [toIt] = await Promise.all([Capture.start(sites[2].ns, 'eth0', `udp dst port ${VXLAN_PORT}`), sleep(1500)]);
    await sendSome(a, 20);
    await toIt.stop();
    const strays = framesIn(toIt.file).reduce((sum, bytes) => sum + occurrences(Buffer.from(bytes)), 0);
    t.equal(strays, 0, 'who is in another network now gets nothing of the old one');
    t.notOk(await pings(a, c.address4, 1), 'and is not reached');

    // A daemon of the other mode has no business here.
    await elsewhere.stop();
    const l3 = Weft.spawnBare(sites[2], [
      ...['--registry', 'embedded', '--registry-path', join(lab.dir, 'registry'), '--state-dir', join(lab.dir, 'l3')],
      ...['--iface', 'eth0', '--public-ip', sites[2].underlay4, '--metrics-address', METRICS],
    ]);
    await until(() => !l3.daemon.running, 15_000);
    t.equal(l3.daemon.child.exitCode, 1, 'a daemon of mode l3 in a registry of l2: exit code 1');
    t.equal(l3.daemon.log().trim().split('\n').length, 1, `and one line: ${l3.daemon.log().trim()}`);
  });

  await t.test('the TAP itself has addresses', async (t) => {
    const lab = new Lab('ht-l2-mesh');
    t.teardown(() => lab.close());
    const sites = makeSites(lab, { count: 3 });
    const own = (site: Site) => [`10.7.0.${100 + site.number}`, `fd07::1:${site.number}`] as const;
    const wefts = await Promise.all(
      sites.map((site) => {
        const [v4, v6] = own(site);
        return startSwitch(site, { bridge: null, args: ['--address', `${v4}/24,${v6}/64`] });
      }),
    );
    for (const { ns } of sites) t.match(ns.runSync('ip', 'link', 'show', 'weft42'), 'mtu 1450', 'MTU 1450');
    const agents = await Promise.all(sites.map((site) => Agent.start(site.ns)));
    for (const from of sites) {
      for (const to of sites) {
        if (from === to) continue;
        for (const address of own(to)) {
          const station = { ...from.stations[0], ns: from.ns };
          t.ok(await pings(station, address, 8), `${from.letter} reaches ${address}`);
        }
      }
    }
    const [toB4] = own(sites[1]);
    const [, toC6] = own(sites[2]);
    await assertTcp(t, agents[0], toB4, 'a to b, IPv4', { bytes: SOME, duplex: true });
    await assertTcp(t, agents[1], toC6, 'b to c, IPv6', { bytes: SOME, duplex: true });
    await assertUdp(t, agents[2], own(sites[0])[0], 'UDP c to a', [1, 100, 1400, 1422, 1423, 4000]);
    await assertConserved(t, wefts, 'afterwards', { ...HABITS, ...ALONE });
    await wefts[0].stop();
    t.throws(() => sites[0].ns.runSync('ip', 'link', 'show', 'weft42'), 'the device goes with its daemon');
  });

  await t.test('several networks in one daemon', async (t) => {
    const lab = new Lab('ht-l2-mesh');
    t.teardown(() => lab.close());
    // Three networks; the same MACs and addresses in each, which only isolation can tell apart. Host b has two of them.
    const sites = makeSites(lab, { count: 3 });
    const vnis = [42, 43, 16_777_215];
    const mtu = 1500 - OVERHEAD[4];
    const stations = new Map<string, Station>(); // by "a 42"
    const of = (letter: string, vni: number): Station => stations.get(`${letter} ${vni}`) as Station;
    for (const site of sites) {
      stations.set(`${site.letter} 42`, site.stations[0]);
      for (const vni of vnis.slice(1)) {
        if (site.letter === 'b' && vni > 43) continue;
        const bridge = `br${vni % 1000}`;
        addBridge(site.ns, bridge);
        stations.set(`${site.letter} ${vni}`, addStation(lab, site, 1, { mtu, bridge, suffix: `-${vni % 1000}` }));
      }
    }
    // Host c is a kernel with a device for each network.
    const [a, b, c] = sites;
    const peers = writeSwitchPeers(lab, sites, { extra: { b: { vnis: [42, 43] } } });
    kernelVxlan(c, [a, b], { vni: 42, bridge: 'br0' });
    kernelVxlan(c, [a, b], { vni: 43, bridge: 'br43' });
    kernelVxlan(c, [a], { vni: 16_777_215, bridge: 'br215' });
    const start = (site: Site, mine: readonly number[]): Promise<Weft> => {
      const folder = join(lab.dir, `config-${site.letter}`);
      mkdirSync(folder);
      const file = join(folder, 'weftd.json');
      const networks = mine.map((vni) => ({
        vni,
        bridge: vni === 42 ? 'br0' : `br${vni % 1000}`,
        ...(vni > 1000 ? { device: 'weft-far' } : {}),
      }));
      writeFileSync(file, JSON.stringify({ mode: 'l2', networks }));
      return startSwitch(site, { peers, vni: null, args: ['--config', file] });
    };
    const wefts = await Promise.all([start(a, vnis), start(b, vnis.slice(0, 2))]);
    t.match(a.ns.runSync('ip', 'link', 'show', 'weft-far'), 'mtu 1450', 'a device has the name that it was given');
    t.match(a.ns.runSync('ip', 'link', 'show', 'weft43'), 'mtu 1450', 'or one made of its VNI');
    t.equal(listeners(a.ns), 1, 'they share a port');

    for (const vni of vnis) {
      const members = sites
        .filter(({ letter }) => stations.has(`${letter} ${vni}`))
        .map(({ letter }) => of(letter, vni));
      t.same(await unreachable(members), [], `VNI ${vni}: everybody reaches everybody`);
    }
    const agents = new Map<string, Agent>();
    for (const [name, station] of stations) agents.set(name, await Agent.start(station.ns));
    for (const vni of vnis) {
      // Everybody of all networks listens; only those of this one hear anything.
      await Promise.all([...agents.values()].map((agent) => agent.expect()));
      const sender = of('a', vni);
      await sendToAll(sender.ns, 4, 30);
      await sendToAll(sender.ns, 6, 30);
      await sleep(300);
      const heard: Record<string, number> = {};
      for (const [name, agent] of agents) {
        const { received, duplicates } = await agent.counted();
        if (received > 0) heard[name] = received;
        // The same numbers were sent by IPv4 and by IPv6.
        if (received > 0) t.equal(duplicates, 30, `VNI ${vni}: ${name} got each once by IPv4 and once by IPv6`);
      }
      const members = [...stations.keys()].filter((name) => name.endsWith(` ${vni}`));
      t.same(heard, Object.fromEntries(members.map((name) => [name, 60])), `VNI ${vni}: nobody else hears of it`);
    }
    await Promise.all(
      vnis.map((vni, i) => {
        const from = agents.get(`a ${vni}`) as Agent;
        const to = of(vni > 43 || i === 1 ? 'c' : 'b', vni);
        return assertTcp(t, from, to.address4, `VNI ${vni}, all at once`, { bytes: SOME, duplex: true });
      }),
    );
    // One MAC, at home here in one network and there in another.
    const twin = '02:07:00:00:77:77';
    giveAddress(of('a', 42), twin, '10.7.0.77');
    giveAddress(of('b', 43), twin, '10.7.0.77');
    t.ok(await pings(of('c', 42), '10.7.0.77', 4), 'a MAC that is at host a in VNI 42');
    t.ok(await pings(of('c', 43), '10.7.0.77', 4), 'is at host b in VNI 43');
    t.ok(await pings(of('b', 42), '10.7.0.77', 4), 'as host b sees it, too');
    t.ok(await pings(of('a', 43), '10.7.0.77', 4), 'and host a');
    t.ok(await pings(of('b', 42), '10.7.0.77', 4), 'and host b again');
    for (const weft of wefts) {
      const macs = (await macsOf(weft)).filter(({ mac }) => mac === twin);
      const here = weft.host.letter === 'a' ? ['42 null', '43 b'] : ['42 a', '43 null'];
      t.same(macs.map(({ vni, peer }) => `${vni} ${peer}`).sort(), here, `the tables of ${weft.host.letter} agree`);
    }
    await assertConserved(t, wefts, 'networks', HABITS);
  });
}

/** Gives a station another MAC and one more address. */
function giveAddress({ ns }: Station, mac: string, address: string): void {
  ns.ip('link set eth0 down', `link set eth0 address ${mac}`, 'link set eth0 up', `addr add ${address}/24 dev eth0`);
}

/** How many UDP sockets wait on VXLAN's port for anybody. */
function listeners(ns: Namespace): number {
  const lines = ns.runSync('ss', '-H', '-u', '-a', '-n').split('\n');
  return lines.filter((line) => new RegExp(`:${VXLAN_PORT}\\b`).test(line)).length;
}

async function until(so: () => boolean | Promise<boolean>, timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await so()) && performance.now() < deadline) await sleep(50);
}
