/**
 * The peers file changes while traffic flows: peers come, go, move and change, and what is wrong with the file changes
 * nothing; the stream to a peer that stays never misses a datagram.
 *
 * Most of it is watched by a numbered stream of UDP datagrams, 500 to 1,000 a second: what is missing at the other end was
 * lost. Times are bounds that the design promises, or generous ones.
 */
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { answersPing, type Host, Lab, makeHosts, sleep } from '../../race/hosts.js';
import { Agent } from './lib/agents.js';
import { replace } from './lib/rig.js';
import { assertConserved, impossible, Weft, writePeers } from './lib/weft.js';

const why = impossible();
t.setTimeout(0);

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  await t.test('the peers file changes while traffic flows', async (t) => {
    const lab = new Lab('ht-peers');
    t.teardown(() => lab.close());
    const hosts = makeHosts(lab, { count: 3, join: 'bridge', clients: 'own' });
    const [a, b, c] = hosts;
    const own = writePeers(lab, hosts, { name: 'all.json' });
    const peers = join(lab.dir, 'a.json');
    const entry = (host: Host, more: object = {}): object => ({
      name: host.letter,
      address: host.underlay4,
      subnets: [host.subnet4, host.subnet6],
      ...more,
    });
    const write = (...entries: object[]): void => replace(peers, JSON.stringify({ peers: entries }));
    write(entry(a), entry(b));
    const weft = await Weft.start(a, { peers });
    await Weft.start(b, { peers: own });
    let weftC = await Weft.start(c, { peers: own });
    const [left, right] = await Promise.all([Agent.start(a.client), Agent.start(b.client)]);
    const applied = async (work: () => void): Promise<void> => {
      const before = weft.events('tables_applied').length;
      work();
      const deadline = Date.now() + 10_000;
      while (weft.events('tables_applied').length === before) {
        if (Date.now() > deadline) throw new Error('the change was not applied within 10 s');
        await sleep(20);
      }
    };
    const reaches = async (host: Host): Promise<boolean> =>
      (await a.client.run('ping', ['-n', '-c', '1', '-W', '1', host.client4])).code === 0;

    t.ok(await answersPing(a.client, b.client4), 'a reaches b');
    await right.expect();
    await left.send(b.client4, 1000);
    await sleep(300);

    t.notOk(await reaches(c), 'c is not known');
    await applied(() => write(entry(a), entry(b), entry(c)));
    t.ok(await reaches(c), 'added: a reaches c');
    await applied(() => write(entry(a), entry(b)));
    t.notOk(await reaches(c), 'removed: a does not reach c');

    // c moves to another underlay address.
    await applied(() => write(entry(b), entry(c, { name: 'called-otherwise' })));
    t.ok(await reaches(c), 'added under another name');
    c.ns.ip('addr add 192.168.77.33/24 dev eth0');
    await weftC.stop();
    const others = writePeers(lab, [a, b], { name: 'others.json' });
    weftC = await Weft.start(c, { peers: others, publicIp: '192.168.77.33' });
    const before = await weft.counters();
    await c.client.run('ping', ['-n', '-c', '3', '-i', '0.1', '-W', '1', a.client4]);
    const after = await weft.counters();
    t.equal(
      after.get('inbound.unknown_peer') - before.get('inbound.unknown_peer'),
      3,
      'moved: from there it is a stranger',
    );
    await applied(() => write(entry(b), entry(c, { address: '192.168.77.33' })));
    t.ok(await reaches(c), 'moved: a knows the new address');
    await weftC.stop();
    weftC = await Weft.start(c, { peers: own });
    await applied(() => write(entry(b), entry(c)));
    t.ok(await reaches(c), 'moved back');

    // A port, an MTU, ECN: the peer stays what it is, for others and for itself.
    await applied(() => write(entry(b, { ecn: true }), entry(c, { port: 8285, mtu: 1400 })));
    t.ok(await reaches(c), 'other properties');
    await applied(() => write(entry(b, { mtu: 1450 }), entry(c)));

    // A subnet moves from one peer to another.
    await applied(() => write(entry(b), entry(c, { subnets: [c.subnet4, '10.5.64.0/20'] })));
    await applied(() => write(entry(b, { subnets: [b.subnet4, b.subnet6, '10.5.64.0/20'] }), entry(c)));

    // What cannot be read changes nothing, is said once, and so is its end.
    const good = JSON.stringify({ peers: [entry(b), entry(c)] });
    await applied(() => replace(peers, good));
    for (const [what, text] of [
      ['malformed', good.slice(0, -10)],
      ['empty', ''],
      ['no JSON', 'peers: []\n'],
      ['unknown key', JSON.stringify({ peers: [entry(b, { colour: 'red' })] })],
      ['two owners of one subnet', JSON.stringify({ peers: [entry(b), entry(c, { subnets: [b.subnet4] })] })],
      ['an address that is none', JSON.stringify({ peers: [entry(b, { address: '192.168.77.256' })] })],
      ['our own subnet', JSON.stringify({ peers: [entry(b), entry(c, { subnets: [a.subnet4] })] })],
    ]) {
      const said = weft.events().length;
      replace(peers, text);
      const complaint = (): Record<string, unknown>[] =>
        weft
          .events()
          .slice(said)
          .filter(({ event }) => event === 'registry_trouble' || event === 'peers_refused');
      const deadline = Date.now() + 10_000;
      while (complaint().length === 0 && Date.now() < deadline) await sleep(20);
      t.match(
        complaint().map(({ reason }) => reason),
        [/a\.json/],
        `${what}: said once, with the file's name`,
      );
      t.ok(await reaches(c), `${what}: the last good one stays in force`);
      t.equal(await weft.sample('weft_registry_up'), 0, `${what}: metrics tell`);
      replace(peers, good);
      while ((await weft.sample('weft_registry_up')) !== 1 && Date.now() < deadline) await sleep(50);
      t.equal(await weft.sample('weft_registry_up'), 1, `${what}: and it is over when the file is good again`);
    }
    // Written in place, not by rename; and gone for a moment.
    await applied(() => writeFileSync(peers, JSON.stringify({ peers: [entry(b)] })));
    renameSync(peers, `${peers}.away`);
    await sleep(1500);
    t.ok(await reaches(b), 'the file is gone: what it said stays in force');
    await applied(() => write(entry(b), entry(c)));
    t.ok(await reaches(c), 'and it is back');

    const { sent } = await left.stop();
    const got = await right.countedUpTo(sent);
    t.same(
      { received: got.received, missing: got.missing, reordered: got.reordered, duplicates: got.duplicates },
      { received: sent, missing: 0, reordered: 0, duplicates: 0 },
      `b's stream of ${sent} datagrams lost nothing through all that`,
    );
    await assertConserved(t, [weft], 'after all changes', { 'outbound.no_route': true, 'inbound.unknown_peer': true });
  });
}
