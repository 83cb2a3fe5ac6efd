/**
 * `weft capture` of real daemons, in both layers, read back by tshark and tcpdump: what is in a file against what tcpdump sees on
 * the underlay and what the counters say; VXLAN, verdicts and reasons; filters; and how a capture ends: by count, time, size, a
 * signal, a reader that goes away, a full disk, the daemon's end.
 */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Daemon, type Finished, type Host, Lab, type Namespace, run, sleep, twoHosts } from '../../race/hosts.js';
import { Agent, MiB, PYTHON } from './lib/agents.js';
import { Capture, realPackets } from './lib/capture.js';
import { makeSites, startSwitch, writeSwitchPeers } from './lib/l2.js';
import { FULL, impossible, Weft, writePeers } from './lib/weft.js';

const CLI = fileURLToPath(new URL('../../src/cli.js', import.meta.url));
const why = impossible('tcpdump', 'tshark', 'capinfos', 'ethtool', 'timeout', PYTHON);
t.setTimeout(0);

let files = 0;

const weft = (ns: Namespace, ...args: readonly string[]): Promise<Finished> =>
  ns.run('timeout', ['60', process.execPath, CLI, ...args]);

/** `weft capture -w` into a file of the lab, from when the daemon captures. */
class Running {
  readonly file: string;
  readonly command: Daemon;

  private constructor(file: string, command: Daemon) {
    this.file = file;
    this.command = command;
  }

  static async start(ns: Namespace, ...args: readonly string[]): Promise<Running> {
    const name = `weft-capture-${++files}`;
    const file = join(ns.lab.dir, `${name}.pcapng`);
    const command = ns.start(name, process.execPath, [CLI, 'capture', '-w', file, ...args]);
    await command.ready('weft: capturing');
    return new Running(file, command);
  }

  /** Ends it by Ctrl-C; what it said. */
  async stop(): Promise<string> {
    await this.command.stop('SIGINT');
    return this.said();
  }

  /** When it ends by itself. */
  async ended(timeoutMs = 20_000): Promise<string> {
    for (const until = Date.now() + timeoutMs; this.command.running && Date.now() < until; ) await sleep(20);
    return this.said();
  }

  said(): string {
    return this.command.log();
  }

  get code(): number | null {
    return this.command.child.exitCode;
  }
}

/** How many packets a command says that it captured; NaN if it lost some. */
const captured = (said: string): number => Number(/(\d+) captured, 0 lost/.exec(said)?.[1] ?? Number.NaN);

/** tshark's columns, one row a packet. Rejects for a file that it finds fault with. */
async function tshark(file: string, fields: readonly string[], ...args: readonly string[]): Promise<string[][]> {
  const checks = ['-o', 'udp.check_checksum:TRUE', '-o', 'ip.check_checksum:TRUE'];
  const wanted = ['-T', 'fields', ...fields.flatMap((field) => ['-e', field])];
  const { code, stdout, stderr } = await run('tshark', ['-r', file, ...checks, ...args, ...wanted]);
  if (code !== 0) throw new Error(`tshark: ${stderr.trim().split('\n').at(-1)}`);
  return stdout
    .split('\n')
    .slice(0, -1)
    .map((line) => line.split('\t'));
}

const VERDICTS = ['frame.interface_name', 'frame.packet_flags_direction', 'frame.comment'];
const OUT = '0x00000002';
const IN = '0x00000001';

/** How often each row is there. */
function tally(rows: readonly (readonly string[])[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const row of rows) counts[row.join(' ')] = (counts[row.join(' ')] ?? 0) + 1;
  return counts;
}

const ping = (from: Namespace, to: string, ...args: readonly string[]): Promise<Finished> =>
  from.run('ping', ['-n', '-c', '3', '-i', '0.02', '-W', '1', ...args, to]);

/** Pings until it is stopped. */
const pinging = (from: Namespace, to: string, ...args: readonly string[]): Daemon =>
  from.start(`ping-${++files}`, 'ping', ['-n', '-q', '-i', '0.02', ...args, to]);

/** A datagram with a payload in hexadecimal from a host's own address. */
async function datagram(from: Host, source: string, to: string, port: number, payload: string): Promise<void> {
  const script =
    'import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((sys.argv[1],0)); s.sendto(bytes.fromhex(sys.argv[4]),(sys.argv[2],int(sys.argv[3])))';
  const { code, stderr } = await from.ns.run(PYTHON, ['-c', script, source, to, String(port), payload]);
  if (code !== 0) throw new Error(`datagram: ${stderr}`);
}

if (why) t.plan(0, `SKIPPED: ${why}`);
else {
  t.test('layer 3', async (t) => {
    const lab = new Lab('ht-capture');
    t.teardown(() => lab.close());
    const [a, b] = twoHosts(lab);
    for (const { ns } of [a, b]) realPackets(ns, 'eth0');
    const peers = writePeers(lab, [a, b]);
    const [left] = await Promise.all([a, b].map((host) => Weft.start(host, { peers })));

    await t.test('both sides, with what became of each packet', async (t) => {
      const capture = await Running.start(a.ns, '--host', `${b.client4}`);
      const wire = await Capture.start(a.ns, 'eth0', 'udp port 8285');
      t.equal((await ping(a.client, b.client4)).code, 0);
      const said = await capture.stop();
      await wire.stop();
      t.match(said, /^weft: capturing on flannel0, underlay[^\n]*\nweft: 12 captured, 0 lost\n$/);
      t.equal(capture.code, 0, 'a signal ends it well');
      t.same(tally(await tshark(capture.file, VERDICTS)), {
        [`flannel0 ${OUT} outbound: forwarded to b`]: 3,
        [`underlay ${OUT} outbound: sent to b`]: 3,
        [`underlay ${IN} inbound: forwarded, from b`]: 3,
        [`flannel0 ${IN} inbound: sent to the host, from b`]: 3,
      });
      // Outer headers that are made again, against those of the kernel. It numbers its packets, though they may not be fragmented.
      const outer = ['ip.src', 'ip.dst', 'ip.ttl', 'ip.flags.df', 'ip.dsfield', 'udp.srcport', 'udp.dstport'];
      const all = [...outer, 'udp.length', 'udp.checksum', 'udp.checksum.status', 'udp.payload'];
      const ours = await tshark(capture.file, all, '-Y', 'udp.port==8285 and ip.addr==192.168.77.2');
      const theirs = await tshark(wire.file, all);
      const pings = theirs.filter((row) => row.at(-1)?.includes(Buffer.from([10, 5, 2, 2]).toString('hex')));
      t.equal(ours.length, 6);
      t.same(new Set(ours.map(String)), new Set(pings.map(String)), 'datagrams are as tcpdump sees them on the wire');
      const sums = await tshark(
        capture.file,
        ['ip.checksum.status', 'icmp.checksum.status'],
        '-d',
        'udp.port==8285,ip',
      );
      t.ok(
        sums.every((row) => row.every((status) => /^1(,1)*$/.test(status))),
        'every checksum is right',
      );
    });

    await t.test('drops, with their reason', async (t) => {
      const before = await left.counters();
      a.ns.ip('addr add 192.168.77.77/24 dev eth0');
      b.ns.ip('addr add 192.168.77.78/24 dev eth0');
      const capture = await Running.start(
        a.ns,
        '--verdict',
        'drop',
        '--host',
        '10.5.0.0/16',
        '--host',
        '192.168.77.78',
      );
      await ping(a.client, '10.5.99.1'); // nobody's subnet
      await ping(a.client, b.client4, '-t', '2'); // used up at a, which is the second router
      await datagram(b, '192.168.77.78', a.underlay4, 8285, '4500');
      await datagram(b, b.underlay4, a.underlay4, 8285, '45');
      const said = await capture.stop();
      const now = await left.counters();
      const moved = (name: string): number => now.get(name) - before.get(name);
      const names = ['outbound.no_route', 'outbound.ttl_exceeded', 'inbound.unknown_peer'];
      t.same(names.map(moved), [3, 3, 1], 'the counters');
      t.equal(captured(said), 7);
      t.same(
        tally((await tshark(capture.file, VERDICTS)).map(([name, , comment]) => [name, comment.replace(', to b', '')])),
        {
          'flannel0 outbound: dropped, no_route (no peer owns the destination)': 3,
          'flannel0 outbound: dropped, ttl_exceeded (TTL or hop limit used up)': 3,
          'underlay inbound: dropped, unknown_peer (underlay sender is not a peer)': 1,
        },
        'the same in the file',
      );
      const { stdout } = await run(process.execPath, [CLI, 'decode', capture.file]);
      t.match(
        stdout,
        /underlay {2}in {3}192\.168\.77\.78:\d+ > 192\.168\.77\.1:8285 .*# inbound: dropped, unknown_peer/,
      );
      t.match(
        stdout,
        /flannel0 {2}out {2}10\.5\.1\.2 > 10\.5\.99\.1 ICMP echo request .*# outbound: dropped, no_route/,
      );
      const json = await run(process.execPath, [CLI, 'decode', '-j', capture.file]);
      const reasons = json.stdout
        .trim()
        .split('\n')
        .map((line) => (JSON.parse(line) as { verdict: { reason: string } }).verdict.reason);
      t.same(new Set(reasons), new Set(['no_route', 'ttl_exceeded', 'unknown_peer']));
      a.ns.ip('addr del 192.168.77.77/24 dev eth0');
      b.ns.ip('addr del 192.168.77.78/24 dev eth0');
    });

    await t.test('filters', async (t) => {
      const seen = async (...args: readonly string[]): Promise<Record<string, number>> => {
        const capture = await Running.start(a.ns, ...args);
        await ping(a.client, b.client4);
        await ping(b.client, a.client6);
        await ping(a.client, '10.5.98.1');
        t.ok(captured(await capture.stop()) >= 0, `${args.join(' ')}: nothing lost`);
        // What the kernel says of its own is no part of this.
        const rows = await tshark(
          capture.file,
          ['frame.interface_name', 'frame.packet_flags_direction', 'ip.version'],
          '-Y',
          'icmp.type!=3 or icmpv6.type==128 or icmpv6.type==129',
          '-d',
          'udp.port==8285,ip',
        );
        return tally(rows.map(([name, direction, version]) => [name, direction === OUT ? 'out' : 'in', version]));
      };
      t.match(await seen('--side', 'device', '--direction', 'in', '--peer', 'b'), { 'flannel0 in 4': 3 });
      t.same(await seen('--side', 'underlay', '--host', b.client4), { 'underlay out 4,4': 3, 'underlay in 4,4': 3 });
      t.same(await seen('--verdict', 'no_route', '--host', '10.5.98.0/24'), { 'flannel0 out 4': 3 });
      t.same(await seen('--host', `${a.client6}/128`, '--verdict', 'forwarded,sent', '--side', 'device'), {
        'flannel0 in 6': 3,
        'flannel0 out 6': 3,
      });
    });

    await t.test('ends by itself', async (t) => {
      const pings = pinging(a.client, b.client4);
      const byCount = await weft(a.ns, 'capture', '-w', join(lab.dir, 'five.pcapng'), '-c', '5', '--host', b.client4);
      t.match(byCount, { code: 0, stdout: '', stderr: /\nweft: 5 captured, 0 lost\n$/ });
      t.equal((await tshark(join(lab.dir, 'five.pcapng'), ['frame.len'])).length, 5);
      t.equal(statSync(join(lab.dir, 'five.pcapng')).mode & 0o777, 0o600, 'packets are for root alone');

      const lines = await weft(a.ns, 'capture', '--text', '-c', '3', '--host', b.client4, '--side', 'device');
      t.equal(lines.stdout.trim().split('\n').length, 3);
      t.match(
        lines.stdout,
        /^\d\d:\d\d:\d\d\.\d{6} {2}flannel0 {2}(out|in ) {2}10\.5\.\d\.2 > 10\.5\.\d\.2 ICMP echo re\w+ id \d+ seq \d+ {2}# /,
      );

      const json = await weft(
        a.ns,
        'capture',
        '-j',
        '-c',
        '2',
        '--snaplen',
        '24',
        '--side',
        'device',
        '--verdict',
        'forwarded',
      );
      const values = json.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as Record<string, unknown>);
      t.match(values, [{ interface: 'flannel0', direction: 'out', verdict: { kind: 'forwarded', peer: 'b' } }, {}]);
      t.ok(
        values.every(({ length, captured: kept }) => Number(kept) < Number(length)),
        '--snaplen',
      );

      const none = await weft(
        a.ns,
        'capture',
        '-w',
        join(lab.dir, 'none.pcapng'),
        '--seconds',
        '1',
        '--host',
        '203.0.113.9',
      );
      t.match(none, { code: 0, stderr: /\nweft: 0 captured, 0 lost\n$/ });
      t.same(await tshark(join(lab.dir, 'none.pcapng'), ['frame.len']), [], 'a file without packets is one');

      const limited = join(lab.dir, 'limited.pcapng');
      t.match(await weft(a.ns, 'capture', '-w', limited, '--limit', '4K'), { code: 0 });
      t.ok(statSync(limited).size <= 4096 && statSync(limited).size > 3000, '--limit');
      t.ok((await tshark(limited, ['frame.len'])).length > 5);
      await pings.stop();
    });

    await t.test('into a pipe', async (t) => {
      const shell = (script: string): Promise<Finished> =>
        a.ns.run('bash', ['-c', script.replaceAll('weft ', `"${process.execPath}" "${CLI}" `)]);
      const pings = pinging(a.client, b.client4);
      const dump = await shell('weft capture -c 6 --host 10.5.2.2 | tcpdump -n -r - 2>/dev/null');
      t.equal(dump.stdout.match(/ICMP echo re|8285: UDP, length/g)?.length, 6, 'tcpdump reads it while it is written');
      t.match(dump.stderr, /weft: 6 captured, 0 lost\n$/);
      const gone = await shell(`weft capture -w - --host 10.5.2.2 | head -c 1000 >/dev/null; echo "\${PIPESTATUS[0]}"`);
      t.match(gone, { stdout: '0\n', stderr: /captured, 0 lost\n$/ }, 'a reader that goes away ends it well');
      const named = await shell(
        `mkfifo ${lab.dir}/pipe; tcpdump -n -c 3 -r ${lab.dir}/pipe 2>/dev/null & weft capture -w ${lab.dir}/pipe --side device; echo "$?"; wait`,
      );
      t.equal(named.stdout.match(/ICMP echo re/g)?.length, 3, 'a named pipe');
      t.match(named.stdout, /^0$/m, `ends well with its reader: ${named.stderr}`);
      const again = await shell('weft capture -w - --host 10.5.2.2 -c 4 | weft decode -');
      t.equal(again.stdout.match(/ # (out|in)bound: /g)?.length, 4, 'weft decode reads it on the way');
      await pings.stop();
    });

    await t.test('a full disk', async (t) => {
      const pings = pinging(a.client, b.client4, '-s', '1400', '-i', '0.002');
      const dir = join(lab.dir, 'full');
      const script = [
        `mkdir ${dir} && mount -t tmpfs -o size=64k none ${dir}`,
        `"${process.execPath}" "${CLI}" capture -w ${dir}/f.pcapng; echo "$?"`,
        `cp ${dir}/f.pcapng ${lab.dir}/full.pcapng; umount ${dir}`,
      ].join('; ');
      const full = await a.ns.run('bash', ['-c', script]);
      t.equal(full.stdout, '1\n');
      t.notOk(readFileSync('/proc/mounts', 'utf8').includes(dir), 'the mount was seen by nobody else');
      t.match(full.stderr, /\nweft: capture: cannot write \S+f\.pcapng: no space left on it\n$/);
      t.ok(
        (await tshark(join(lab.dir, 'full.pcapng'), ['frame.len'])).length >= 10,
        'what is there can be read to its end',
      );
      const device = await weft(a.ns, 'capture', '-w', '/dev/full');
      t.match(device, { code: 1, stderr: /weft: capture: cannot write \/dev\/full: no space left on it\n$/ });
      t.match(await weft(a.ns, 'capture', '-w', join(lab.dir, 'no', 'file')), {
        code: 1,
        stderr: /^weft: capture: cannot open \S+: there is no such folder\n$/,
      });
      await pings.stop();
    });

    await t.test('of a busy engine', async (t) => {
      const [from] = await Promise.all([a, b].map((host) => Agent.start(host.client)));
      const before = await left.idle();
      const running = await Running.start(a.ns);
      const { flows } = await from.tcp(b.client4, { bytes: (FULL ? 512 : 16) * MiB });
      t.ok(flows.every(({ sent, received }) => sent === received));
      const now = await left.idle();
      await sleep(300);
      const said = /(\d+) captured, (\d+) lost/.exec(await running.stop()) ?? [];
      const moved = (name: string): number => now.get(name) - before.get(name);
      const passed = [
        'outbound.device_pulled',
        'outbound.socket_sent',
        'inbound.socket_received',
        'inbound.device_pushed',
      ];
      const [kept, lost] = said.slice(1).map(Number);
      t.comment(`${kept} captured, ${lost} lost`);
      t.equal(
        kept + lost,
        passed.map(moved).reduce((sum, count) => sum + count),
        'each packet once on each side, captured or counted as lost',
      );
      const { stdout } = await run('capinfos', ['-c', '-M', '-T', '-r', running.file]);
      t.equal(Number(stdout.trim().split('\t').at(-1)), kept, 'and the file has them');
    });

    await t.test('what cannot be, in one line', async (t) => {
      const running = await Running.start(a.ns, '--host', '203.0.113.9');
      const wrong = [
        [1, /another one runs, since .*: end that first/],
        [1, /no peer "nobody"/, '--peer', 'nobody'],
        [1, /frobnicated/, '--verdict', 'frobnicated'],
        [1, /10\.5\.0\.0\.0/, '--host', '10.5.0.0.0'],
        [2, /--limit is for a file/, '--limit', '10K', '--text'],
        [2, /-w is for pcapng/, '-w', 'x', '-j'],
        [2, /choices/, '--side', 'north'],
        [2, /whole number/, '-c', 'many'],
      ] as const;
      await Promise.all(
        wrong.map(async ([code, message, ...args]) => {
          const done = await weft(a.ns, 'capture', ...args);
          t.equal(done.code, code, `${args.join(' ')}: ${done.stderr}`);
          t.match(done.stderr, message);
          t.match(done.stderr, /^weft: [^\n]+\n$/, 'one line');
        }),
      );
      t.ok(running.command.running, 'nobody ended the one that runs');
      t.equal(captured(await running.stop()), 0);
    });

    await t.test('the daemon ends', async (t) => {
      const running = await Running.start(a.ns);
      await ping(a.client, b.client4);
      await sleep(200);
      await left.stop();
      const said = await running.ended();
      t.equal(running.code, 1);
      t.match(said, /\nweft: \d+ captured, 0 lost\nweft: capture: [^\n]*has ended[^\n]*\n$/);
      t.ok((await tshark(running.file, ['frame.len'])).length >= 12, 'what was captured is kept');
      const next = await Weft.start(a, { peers });
      const killed = await Running.start(a.ns);
      await ping(a.client, b.client4);
      await sleep(200);
      await next.stop('SIGKILL');
      t.match(await killed.ended(), /\nweft: \d+ captured, 0 lost\nweft: capture: [^\n]*has ended[^\n]*\n$/);
      t.equal(killed.code, 1);
      t.ok((await tshark(killed.file, ['frame.len'])).length >= 12);
    });
  });

  /** Ports and families in which datagrams go out. */
  const switches = [
    { name: 'layer 2', family: 4, port: 4789, args: [] },
    {
      name: 'layer 2 over IPv6, with other ports',
      family: 6,
      port: 4790,
      args: ['--port', '4790', '--source-ports', '4'],
    },
  ] as const;
  for (const { name, family, port, args } of switches) {
    t.test(name, async (t) => {
      const lab = new Lab('ht-capture-l2');
      t.teardown(() => lab.close());
      const sites = makeSites(lab, { count: 2, stationMtu: 1400 });
      const [a, b] = sites;
      for (const { ns } of sites) realPackets(ns, 'eth0');
      const peers = writeSwitchPeers(lab, sites, { family });
      const wefts = await Promise.all(sites.map((site) => startSwitch(site, { peers, family, args })));
      const [one, other] = [a.stations[0], b.stations[0]];
      const capture = await Running.start(a.ns);
      const wire = await Capture.start(a.ns, 'eth0', `udp and port ${port}`);
      t.equal((await ping(one.ns, other.address4)).code, 0);
      if (family === 4) await datagram(b, b.underlay4, a.underlay4, port, '0000000000002a00');
      const said = await capture.stop();
      await wire.stop();
      const total = captured(said);
      const vxlan = ['-d', `udp.port==${port},vxlan`];
      const rows = await tshark(capture.file, ['vxlan.vni', ...VERDICTS], ...vxlan, '-Y', 'icmp');
      t.same(
        tally(rows),
        {
          [` weft42 ${OUT} outbound: forwarded to b`]: 3,
          [`42 underlay ${OUT} outbound: sent to b`]: 3,
          [`42 underlay ${IN} inbound: forwarded, from b`]: 3,
          [` weft42 ${IN} inbound: sent to the host, from b`]: 3,
        },
        'tshark decodes VXLAN, on both sides of the engine',
      );
      const arps = await tshark(
        capture.file,
        ['frame.interface_name', 'frame.comment'],
        ...vxlan,
        '-Y',
        'arp.opcode==1',
      );
      t.match(tally(arps), { 'weft42 outbound: forwarded, flooded': /\d/ }, 'a broadcast is flooded');
      const odd = await tshark(capture.file, ['frame.comment'], '-Y', 'frame.comment contains "no_vni_flag"');
      t.match(
        odd,
        family === 4 ? [[/^inbound: dropped, no_vni_flag(, from b)? \(VXLAN header without the I flag\)$/]] : [],
      );
      t.equal(odd.length, family === 4 ? 1 : 0);
      const fields = [
        'ip.src',
        'ip.dst',
        'ipv6.src',
        'ipv6.dst',
        'udp.srcport',
        'udp.dstport',
        'udp.checksum',
        'udp.checksum.status',
        'udp.payload',
      ];
      const plain = ['--disable-protocol', 'vxlan'];
      const ours = await tshark(capture.file, fields, ...plain, '-Y', `udp.port==${port}`);
      const theirs = await tshark(wire.file, fields, ...plain);
      // ARP, and IPv4 without options: stations' kernels send reports of their own (IGMP) at any time.
      const asked = (rows: readonly string[][]): Set<string> =>
        new Set(rows.filter((row) => /^.{40}080(6|045)/.test(row.at(-1) ?? '')).map(String));
      t.ok(asked(ours).size >= 7);
      t.same(asked(ours), asked(theirs), 'datagrams are as tcpdump sees them on the wire');
      const read = await a.ns.run('tcpdump', ['-n', '-e', '-r', capture.file]);
      t.match(read, {
        code: 0,
        stdout: family === 4 ? /VXLAN, flags \[I\] \(0x08\), vni 42/ : /fd77::1\.\d+ > fd77::2\.4790/,
      });
      t.equal((await tshark(capture.file, ['frame.len'])).length, total, 'as many as it says');
      const { stdout } = await run(process.execPath, [CLI, 'decode', capture.file]);
      t.match(
        stdout,
        new RegExp(
          `underlay {2}out {2}\\S+ > \\S+:${port} UDP \\| VXLAN 42 \\| ${one.mac} > ${other.mac} \\| ${one.address4} > ${other.address4} ICMP echo request .*# outbound: sent to b`,
        ),
        'weft decode knows the port by itself',
      );
      const byMac = await Running.start(a.ns, '--host', other.mac, '--side', 'device', '--direction', 'in');
      await ping(one.ns, other.address4);
      const macs = await byMacRows(byMac);
      t.ok(macs.length >= 3 && macs.every(([source]) => source === other.mac), 'a MAC as filter');
      await Promise.all(wefts.map((daemon) => daemon.stop()));
    });
  }

  const byMacRows = async (capture: Running): Promise<string[][]> => {
    await capture.stop();
    return tshark(capture.file, ['eth.src']);
  };
}
